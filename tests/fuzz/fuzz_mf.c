/* Digest lists (.mf). */
#include "services/exporter/formats/mf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_NONE;
    auto_mf *mf = NULL;

    if (mf_parse((const char *)data, size, &mf, &err) < 0)
        return 0;
    for (size_t i = 0; i < mf->count; i++) {
        if (!file_name_is_plain(mf->entries[i].name) || mf_find(mf, mf->entries[i].name) == NULL)
            abort();
    }
    return 0;
}
