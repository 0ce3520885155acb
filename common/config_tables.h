/* Between config.c and config_schema.c only. */
#ifndef COMMON_CONFIG_TABLES_H
#define COMMON_CONFIG_TABLES_H

#include "common/config.h"

struct config_table {
    const char *section;
    const struct config_key *keys;
    size_t size;             /* of the section's struct */
    const char *free_member; /* read as JSON by its service; NULL: none */
};

extern const struct config_table config_tables[];
extern const size_t config_tables_count;
extern const char *const config_provider_keys[]; /* NULL-terminated */
extern const char *const config_endpoint_keys[];
extern const char *const config_upload_keys[];

#endif
