/* The configuration file: syntax, names, and the values of every section. */
#include <stdio.h>
#include <string.h>

#include "common/config.h"
#include "common/config_schema.h"
#include "common/config_tables.h"
#include "common/paths.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char path[64];
    struct error err = ERROR_NONE;
    auto_config_file *file = NULL;
    auto_strbuf problems;

    strbuf_init(&problems, CONFIG_PROBLEMS_BYTES_MAX);
    if (path[0] == '\0')
        (void)snprintf(path, sizeof path, "/tmp/fuzz-config-%ld", (long)getpid());
    FILE *out = fopen(path, "we");
    if (out == NULL || fwrite(data, 1, size, out) != size || fclose(out) != 0)
        abort();
    if (config_file_load(path, &file, &problems, &err) < 0) {
        (void)unlink(path);
        return 0;
    }
    for (size_t i = 0; i < config_tables_count; i++) {
        struct error why = ERROR_NONE;
        void *section = calloc(1, config_tables[i].size);
        if (config_section(file, config_tables[i].section, section, &problems, &why) == 0)
            config_release(config_tables[i].keys, section);
        free(section);
    }
    (void)unlink(path);
    return 0;
}
