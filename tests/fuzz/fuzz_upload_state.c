/* State files of uploads: parts lie inside the object, one behind the other. */
#include "services/exporter/targets/upload.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_upload_state *state = NULL;
    struct error err = ERROR_NONE;
    uint64_t end = 0;

    if (upload_state_parse((const char *)data, size, &state, &err) < 0)
        return 0;
    if (state->whole_bytes > size || state->part_count == 0 ||
        (state->marks == NULL) != (state->identity == NULL) ||
        (state->identity != NULL && state->done_size > state->size))
        abort();
    for (size_t i = 0; i < state->part_count; i++) {
        if (state->parts[i].offset != end)
            abort();
        end += state->parts[i].size;
    }
    if (end != state->size)
        abort();
    return 0;
}
