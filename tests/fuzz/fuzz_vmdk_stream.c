/* streamOptimized VMDKs as a stream: every grain is inflated; what it says stays in its bounds. */
#include <stdlib.h>
#include <string.h>

#include "services/exporter/formats/vmdk_stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define GRAINS_MAX 64 /* inflated per input */

struct memory {
    const uint8_t *data;
    size_t size;
    size_t at;
};

static int memory_read(void *arg, void *buffer, size_t length, size_t *out_got, struct error *err)
{
    struct memory *memory = arg;
    size_t n = (size_t)min_u64(length, memory->size - memory->at);

    (void)err;
    memcpy(buffer, memory->data + memory->at, n);
    memory->at += n;
    *out_got = n;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t out[VMDK_GRAIN_SECTORS_MAX * VMDK_SECTOR];
    struct memory memory = {data, size, 0};
    struct vmdk_stream_input input = {memory_read, &memory};
    struct grain_codec *codec = grain_codec_new(0);
    struct vmdk_stream *stream = NULL;
    struct vmdk_grain grain;
    struct error err = ERROR_NONE;
    uint64_t end = 0;
    int inflated = 0;

    if (vmdk_stream_open(&input, &stream, &err) == 0) {
        while (vmdk_stream_next(stream, &grain, &err) == 1) {
            struct error ignored = ERROR_NONE;
            if (grain.offset < end || grain.length == 0 ||
                !range_is_inside(grain.offset, grain.length, vmdk_stream_disk_bytes(stream)))
                abort();
            end = grain.offset + grain.length;
            if (inflated++ < GRAINS_MAX &&
                vmdk_grain_inflate(codec, vmdk_stream_grain_bytes(stream), &grain.packed, out,
                                   grain.length, &ignored) < 0)
                error_clear(&ignored);
        }
    }
    vmdk_stream_close(stream);
    grain_codec_free(codec);
    return 0;
}
