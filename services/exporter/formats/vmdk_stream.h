/* Decoder of a streamOptimized VMDK that arrives as a stream: read once, from its first byte to its
 * last, in memory that does not depend on the disk's size (but for the directory of a stream that
 * begins with its tables, at most VMDK_DIRECTORY_BYTES_MAX).
 *
 * Nothing in the stream is believed: grains must come in rising order inside the disk, tables and
 * directory must count what came, header and footer must agree. A stream that was cut anywhere
 * never looks complete: vmdk_stream_next() says 0 only when
 * - the grain directory is behind the data (ESXi, our own sink): directory, footer and
 * end-of-stream marker came, and the tables count as many grains as came;
 * - or it is in front (qemu-img): as many grains came as those tables name;
 * and nothing but zeros follows. What no grain covers is zeros.
 *
 * Inflating is left to the caller, so that several threads can do it. */
#ifndef EXPORTER_VMDK_STREAM_H
#define EXPORTER_VMDK_STREAM_H

#include "services/exporter/formats/grain_codec.h"
#include "services/exporter/formats/vmdk.h"

/* Where the bytes come from. */
struct vmdk_stream_input {
    /* Fills all of the buffer, or less (in *out_got) when the stream has ended. */
    int (*read)(void *arg, void *buffer, size_t length, size_t *out_got, struct error *err);
    void *arg;
};

struct vmdk_grain {
    uint64_t offset; /* on the disk */
    size_t length;   /* of the disk's bytes; the last grain may be cut by the disk's end */
    struct grain_packed packed; /* at most VMDK_PACKED_BYTES_MAX, valid until the next call */
};

struct vmdk_stream;

/* Reads up to the first grain. ERR_CORRUPT: not such a stream. ERR_NOT_AVAILABLE: one that cannot
 * be read so. ERR_LIMIT. ERR_UNAVAILABLE: it was cut. */
MUST_CHECK int vmdk_stream_open(const struct vmdk_stream_input *input, struct vmdk_stream **out,
                                struct error *err);
void vmdk_stream_close(struct vmdk_stream *stream); /* NULL-safe */
uint64_t vmdk_stream_disk_bytes(const struct vmdk_stream *stream);
size_t vmdk_stream_grain_bytes(const struct vmdk_stream *stream);
/* 1: *out is the next grain. 0: the stream is complete. Errors as for open, and the input's. */
MUST_CHECK int vmdk_stream_next(struct vmdk_stream *stream, struct vmdk_grain *out,
                                struct error *err);

/* The `length` bytes of a grain into out. Thread-safe. ERR_CORRUPT. */
MUST_CHECK int vmdk_grain_inflate(struct grain_codec *codec, size_t grain_bytes,
                                  const struct grain_packed *packed, void *out, size_t length,
                                  struct error *err);

#endif
