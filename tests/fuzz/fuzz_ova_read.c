/* OVA packages: listing, and reading the small members. */
#include "services/exporter/formats/ova.h"
#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define TEXT_BYTES_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_NONE;
    auto_ova *ova = NULL;
    char path[FUZZ_PATH_SIZE];
    autoclose int fd = fuzz_file(data, size, path);

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
