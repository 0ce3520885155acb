/* Manifests on disk. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "common/yaml.h"
#include "services/exporter/formats/manifest.h"

#define FILE_MODE 0640U

int manifest_load(const char *path, json_t **out, struct error *err)
{
    autofree char *text = NULL;
    auto_yaml_node *node = NULL;
    size_t size = 0;
    int result;

    if (file_read(path, MANIFEST_BYTES_MAX, &text, &size, err) < 0)
        return -1;
    if (!path_has_suffix(path, ".yaml") && !path_has_suffix(path, ".yml")) {
        result = json_parse(text, size, MANIFEST_BYTES_MAX, out, err);
        return result < 0 ? error_wrap(err, "'%.256s'", path) : 0;
    }
    if (yaml_parse(text, size, MANIFEST_BYTES_MAX, &node, err) < 0)
        return error_wrap(err, "'%.256s'", path);
    *out = yaml_to_json(node);
    return 0;
}
