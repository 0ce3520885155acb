/* YAML documents, and what becomes of them as JSON. */
#include "common/autos.h"
#include "common/yaml.h"

#define INPUT_BYTES_MAX ((size_t)(256 * KIB))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_NONE;
    auto_yaml_node *node = NULL;
    auto_json *json = NULL;

    if (yaml_parse((const char *)data, size, INPUT_BYTES_MAX, &node, &err) < 0)
        return 0;
    json = yaml_to_json(node);
    if (json == NULL)
        abort();
    return 0;
}
