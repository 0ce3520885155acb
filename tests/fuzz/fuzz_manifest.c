/* Artifact manifests, JSON (the input begins with '{') or YAML: parse, validate, write again. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/yaml.h"
#include "services/exporter/formats/manifest.h"

#define TEXT_BYTES_MAX ((size_t)(256 * KIB))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int parse(const char *text, size_t size, json_t **out)
{
    auto_yaml_node *node = NULL;
    struct error err = ERROR_NONE;

    if (size > 0 && text[0] == '{')
        return json_parse(text, size, TEXT_BYTES_MAX, out, &err);
    if (yaml_parse(text, size, TEXT_BYTES_MAX, &node, &err) < 0)
        return -1;
    *out = yaml_to_json(node);
    return 0;
}

/* What we write must read back as the same. */
static void write_again(const json_t *manifest)
{
    struct error err = ERROR_NONE;
    auto_json *again = NULL;
    autofree char *text = NULL;

    if (yaml_format(manifest, 4 * TEXT_BYTES_MAX, &text, &err) < 0)
        return;
    if (parse(text, strlen(text), &again) < 0 || !json_equal(again, manifest))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct manifest_check check = {.dir = "/proc/self/fdinfo"};
    auto_json *manifest = NULL;
    struct error err = ERROR_NONE;

    if (parse((const char *)data, size, &manifest) < 0 || manifest == NULL)
        return 0;
    if (manifest_validate(manifest, &check, &err) == 0)
        write_again(manifest);
    return 0;
}
