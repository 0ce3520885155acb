/* The name of the file below a qcow2 image, as deletions look for it. */
#include <string.h>

#include "services/hyper2kvm-bridge/libvirt/usage.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[FUZZ_PATH_SIZE];
    autoclose int fd = fuzz_file(data, size, path);
    autofree char *name = usage_backing(path);

    (void)fd;
    if (name != NULL && (name[0] != '/' || strlen(name) > 1100))
        abort();
    return 0;
}
