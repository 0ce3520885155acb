/* Deflate and inflate of VMDK grains (zlib streams), for any number of threads: pools of
 * compressors and decompressors, since each has a work area and belongs to one caller at a time. */
#ifndef EXPORTER_GRAIN_CODEC_H
#define EXPORTER_GRAIN_CODEC_H

#include "common/error.h"

#define GRAIN_CODEC_LEVEL_MAX 9
/* isa-l at level 1: 7 times as fast as zlib -1 for 1 % more bytes. */
#define GRAIN_CODEC_LEVEL_DEFAULT 1

struct grain_codec;

struct grain_packed { /* a zlib stream; borrowed */
    const void *data;
    size_t size;
};

/* Levels 1 to 3 are isa-l's, 4 to 9 libdeflate's; 0 is the default. */
struct grain_codec *grain_codec_new(int level);
void grain_codec_free(struct grain_codec *codec); /* NULL-safe */
/* Room that deflate needs for `size` bytes of any content. */
size_t grain_codec_bound(size_t size);
/* Thread-safe. out has room for grain_codec_bound(size) bytes. */
MUST_CHECK int grain_codec_deflate(struct grain_codec *codec, const void *data, size_t size,
                                   void *out, size_t *out_size, struct error *err);
/* Thread-safe. out has room for `room` bytes; *out_size of them are filled. ERR_CORRUPT: no whole
 * zlib stream with a right checksum, or it is longer. */
MUST_CHECK int grain_codec_inflate(struct grain_codec *codec, const struct grain_packed *packed,
                                   void *out, size_t room, size_t *out_size, struct error *err);

#endif
