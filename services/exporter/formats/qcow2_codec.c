/* See qcow2_codec.h.
 *
 * Deflate: QEMU inflates with a window of 4 KiB, so that is what may be written; libdeflate cannot
 * be told so, and reads whatever window there is. */
#include "services/exporter/formats/qcow2_codec.h"

#include <libdeflate.h>
#include <zlib.h>
#include <zstd.h>

#define WINDOW_BITS (-12) /* raw deflate, 4 KiB */
#define MEMORY      9     /* as QEMU's own writer */

struct qcow2_packer {
    enum qcow2_codec codec;
    int level;
    z_stream deflate;
    ZSTD_CCtx *zstd;
};

struct qcow2_unpacker {
    struct libdeflate_decompressor *inflate;
    ZSTD_DCtx *zstd;
};

struct qcow2_packer *qcow2_packer_new(enum qcow2_codec codec, int level)
{
    struct qcow2_packer *packer = xcalloc(1, sizeof *packer);

    assert(level >= 0 && level <= QCOW2_LEVEL_MAX);
    packer->codec = codec;
    packer->level = level == 0 ? QCOW2_LEVEL_DEFAULT : level;
    if (codec == QCOW2_CODEC_ZSTD) {
        packer->zstd = ZSTD_createCCtx();
    } else if (deflateInit2(&packer->deflate, packer->level, Z_DEFLATED, WINDOW_BITS, MEMORY,
                            Z_DEFAULT_STRATEGY) != Z_OK) {
        abort(); /* out of memory, as in xmalloc */
    }
    if (codec == QCOW2_CODEC_ZSTD && packer->zstd == NULL)
        abort();
    return packer;
}

void qcow2_packer_free(struct qcow2_packer *packer)
{
    if (packer == NULL)
        return;
    if (packer->codec == QCOW2_CODEC_ZLIB)
        (void)deflateEnd(&packer->deflate);
    (void)ZSTD_freeCCtx(packer->zstd);
    free(packer);
}

static size_t pack_deflate(z_stream *stream, const uint8_t *cluster, size_t length, uint8_t *out,
                           size_t out_max)
{
    if (deflateReset(stream) != Z_OK)
        return 0;
    stream->next_in = (Bytef *)(uintptr_t)cluster; /* zlib only reads it */
    stream->avail_in = (uInt)length;
    stream->next_out = out;
    stream->avail_out = (uInt)out_max;
    return deflate(stream, Z_FINISH) == Z_STREAM_END ? out_max - stream->avail_out : 0;
}

size_t qcow2_pack(struct qcow2_packer *packer, const uint8_t *cluster, size_t length, uint8_t *out,
                  size_t out_max)
{
    size_t size;

    if (packer->codec == QCOW2_CODEC_ZLIB)
        return pack_deflate(&packer->deflate, cluster, length, out, out_max);
    size = ZSTD_compressCCtx(packer->zstd, out, out_max, cluster, length, packer->level);
    return ZSTD_isError(size) ? 0 : size;
}

struct qcow2_unpacker *qcow2_unpacker_new(enum qcow2_codec codec)
{
    struct qcow2_unpacker *unpacker = xcalloc(1, sizeof *unpacker);

    if (codec == QCOW2_CODEC_ZSTD) {
        unpacker->zstd = ZSTD_createDCtx();
    } else {
        unpacker->inflate = libdeflate_alloc_decompressor();
    }
    if (unpacker->zstd == NULL && unpacker->inflate == NULL)
        abort();
    return unpacker;
}

void qcow2_unpacker_free(struct qcow2_unpacker *unpacker)
{
    if (unpacker == NULL)
        return;
    libdeflate_free_decompressor(unpacker->inflate);
    (void)ZSTD_freeDCtx(unpacker->zstd);
    free(unpacker);
}

bool qcow2_unpack(struct qcow2_unpacker *unpacker, const uint8_t *packed, size_t packed_bytes,
                  uint8_t *out, size_t length)
{
    size_t got = 0;

    if (unpacker->inflate != NULL) {
        return libdeflate_deflate_decompress_ex(unpacker->inflate, packed, packed_bytes, out,
                                                length, NULL, &got) == LIBDEFLATE_SUCCESS &&
               got == length;
    }
    /* The whole frame at once: no window is allocated, however large it says it needs one. */
    packed_bytes = ZSTD_findFrameCompressedSize(packed, packed_bytes);
    if (ZSTD_isError(packed_bytes))
        return false;
    got = ZSTD_decompressDCtx(unpacker->zstd, out, length, packed, packed_bytes);
    return !ZSTD_isError(got) && got == length;
}
