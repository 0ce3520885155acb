/* export.json of an export that exists. */
#include "services/exporter/engine/export_record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_NONE;
    struct export_record *record = NULL;

    if (export_record_parse((const char *)data, size, &record, &err) == 0)
        export_record_free(record);
    return 0;
}
