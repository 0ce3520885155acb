/* A configured provider by name, as requests mean it. */
#ifndef COMMON_PROVIDER_LOOKUP_H
#define COMMON_PROVIDER_LOOKUP_H

#include "common/db.h"
#include "common/fields.h"

#define PROVIDER_DEFAULT  "vsphere"
#define PROVIDER_NAME_MAX 63

struct provider_row {
    char kind[64];
    bool enabled;
};
/* 422 in problem with the configured names when there is none of that name, or when it is
 * disabled and must_be_enabled. problem->status stays 0 when the database fails. */
MUST_CHECK int provider_lookup(struct db *db, const char *name, bool must_be_enabled,
                               struct provider_row *out, struct field_problem *problem,
                               struct error *err);

#endif
