/* Leaves files. */
#include "services/exporter/formats/digest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_NONE;
    auto_leaves *leaves = NULL;
    char text[DIGEST_TEXT_SIZE];

    if (leaves_parse(data, size, &leaves, &err) < 0)
        return 0;
    leaves_root_text(leaves, text);
    return 0;
}
