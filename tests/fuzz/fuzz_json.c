/* Request bodies: JSON, else YAML; secrets masked, text made again and read back. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"

#define INPUT_BYTES_MAX ((size_t)(256 * KIB))
#define AGAIN_BYTES_MAX (8 * INPUT_BYTES_MAX) /* escapes make text longer */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_NONE;
    auto_json *json = NULL;
    auto_json *masked = NULL;
    auto_json *again = NULL;
    autofree char *text = NULL;

    if (body_parse((const char *)data, size, INPUT_BYTES_MAX, size % 2 == 0, &json, &err) < 0)
        return 0;
    masked = json_mask_secrets(json);
    if (!json_is_object(json) && !json_is_array(json))
        return 0;
    text = json_text(json);
    if (json_parse(text, strlen(text), AGAIN_BYTES_MAX, &again, &err) < 0 ||
        !json_equal(json, again))
        abort();
    return 0;
}
