/* Configuration: one YAML file for all services, key tables as parser, defaults, ranges and help.
 *
 * The tables of the whole file live in config_schema.c, so that every service finds an unknown
 * key anywhere; a service expands ${ENV} and validates values only in the sections it reads.
 * Order: default < file < flag. All problems come together as "file:line: key: what is wrong". */
#ifndef COMMON_CONFIG_H
#define COMMON_CONFIG_H

#include <jansson.h>

#include "common/error.h"
#include "common/strbuf.h"

#define CONFIG_FILE_BYTES_MAX     ((size_t)MIB) /* a file for nine providers is 10 KiB */
#define CONFIG_PROBLEMS_BYTES_MAX 8192
#define CONFIG_PATH_DEFAULT       "/etc/hypersdk/config.yaml"

enum config_type {
    CONFIG_STRING,      /* char * */
    CONFIG_BOOL,        /* bool */
    CONFIG_U32,         /* uint32_t */
    CONFIG_U64,         /* uint64_t */
    CONFIG_SIZE,        /* uint64_t bytes; "64M" works */
    CONFIG_DURATION_MS, /* int64_t; "30s" works */
    CONFIG_STRING_LIST, /* struct config_list */
    CONFIG_FILE,        /* char *: content of the file named by the value, one trailing newline cut;
                           by convention the key ends in _file and fills the same field as the
                           key without it */
};

#define CONFIG_SECRET     1U /* never printed, never returned */
#define CONFIG_REQUIRED   2U
#define CONFIG_RELOADABLE 4U

struct config_list {
    char **items;
    size_t count;
};

struct config_key {
    const char *name;
    enum config_type type;
    size_t offset;
    const char *default_text; /* NULL: "" / 0 / empty list */
    uint64_t min;
    uint64_t max; /* 0 = no limit; strings: length */
    unsigned int flags;
    const char *help;
};

/* Fills *out (zeroed here) from a JSON object through the table: defaults, types, ranges, unknown
 * keys (ERR_INVALID naming them). Strings in *out are owned; config_release frees them. */
MUST_CHECK int config_from_json(const struct config_key *keys, const json_t *object, void *out,
                                struct error *err);
void config_release(const struct config_key *keys, void *config);

struct config_file; /* a parsed file: tree with line numbers */

/* path NULL: CONFIG_PATH_DEFAULT, and its absence is an empty file. Checks syntax and unknown keys
 * of all sections. ERR_INVALID carries the first problems; *problems (may be NULL) gets all. */
MUST_CHECK int config_file_load(const char *path, struct config_file **out, struct strbuf *problems,
                                struct error *err);
void config_file_free(struct config_file *file);
DEFINE_AUTO(config_file, struct config_file, config_file_free)
#define auto_config_file CLEANUP(config_file_auto) struct config_file

/* The section's struct (config_schema.h names them) from the file: ${ENV} expanded, defaults,
 * types, ranges. Problems with file and line are appended to *problems. */
MUST_CHECK int config_section(const struct config_file *file, const char *section, void *out,
                              struct strbuf *problems, struct error *err);
/* Frees what config_section put into *out. */
void config_section_release(const char *section, void *out);
/* A section as JSON, ${ENV} expanded; for free-form ones (providers, webhooks, roles).
 * New reference; JSON null when absent. */
MUST_CHECK int config_section_json(const struct config_file *file, const char *section,
                                   json_t **out, struct error *err);
/* Every section's keys with defaults and help, for --help and docs/configuration.md. */
void config_help(struct strbuf *out);

#endif
