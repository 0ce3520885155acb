/* qcow2 images: open, read, ask for holes. */
#include "tests/fuzz/fuzz_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return fuzz_image("qcow2", data, size);
}
