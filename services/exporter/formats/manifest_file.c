/* Manifests on disk. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "common/yaml.h"
#include "services/exporter/formats/manifest.h"

#define FILE_MODE 0640U

static bool has_suffix(const char *text, const char *suffix)
{
    size_t n = strlen(text);
    size_t m = strlen(suffix);

    return n >= m && strcmp(text + n - m, suffix) == 0;
}

int manifest_load(const char *path, json_t **out, struct error *err)
{
    autofree char *text = NULL;
    auto_yaml_node *node = NULL;
    size_t size = 0;
    int result;

    if (file_read(path, MANIFEST_BYTES_MAX, &text, &size, err) < 0)
        return -1;
    if (!has_suffix(path, ".yaml") && !has_suffix(path, ".yml")) {
        result = json_parse(text, size, MANIFEST_BYTES_MAX, out, err);
        return result < 0 ? error_wrap(err, "'%.256s'", path) : 0;
    }
    if (yaml_parse(text, size, MANIFEST_BYTES_MAX, &node, err) < 0)
        return error_wrap(err, "'%.256s'", path);
    *out = yaml_to_json(node);
    return 0;
}
