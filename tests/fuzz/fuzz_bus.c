/* Messages of the bus: what passes the checks passes them again and can be packed. (Not unpacked
 * again: protobuf-c keeps unknown fields of number 0 and refuses them in what it packed itself.) */
#include "common/bus.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_NONE;
    auto_bus_envelope *first = NULL;
    autofree uint8_t *packed = NULL;
    size_t packed_size;

    if (bus_envelope_decode(data, size, &first, &err) < 0)
        return 0;
    packed_size = hypersdk__v1__envelope__get_packed_size(first);
    packed = xmalloc(packed_size + 1);
    if (hypersdk__v1__envelope__pack(first, packed) != packed_size ||
        bus_envelope_check(first, &err) < 0)
        abort();
    return 0;
}
