/* OVA packages: listing, and reading the small members. */
#include <stdio.h>
#include <sys/mman.h>

#include "services/exporter/formats/ova.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define TEXT_BYTES_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_NONE;
    auto_ova *ova = NULL;
    char path[64];
    autoclose int fd = memfd_create("ova", MFD_CLOEXEC);

    if (fd < 0 || write_all(fd, data, size) < 0)
        abort();
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (ova_read(path, &ova, &err) < 0)
        return 0;
    for (size_t i = 0; i < ova->count; i++) {
        const struct ova_member *member = &ova->members[i];
        autofree char *text = NULL;
        if (!range_is_inside(member->offset, member->bytes, size) ||
            ova_find(ova, member->name) != member)
            abort();
        error_clear(&err);
        if (ova_member_read(path, member, TEXT_BYTES_MAX, &text, &err) < 0 && err.code != ERR_LIMIT)
            abort();
    }
    return 0;
}
