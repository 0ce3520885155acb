/* See grain_codec.h. */
#include "services/exporter/formats/grain_codec.h"

#include <isa-l/igzip_lib.h>
#include <libdeflate.h>

#define ISAL_LEVEL_LAST 3

struct compressor {
    struct compressor *next;
    struct isal_zstream *stream;
    uint8_t *level_buffer;
    struct libdeflate_compressor *libdeflate;
};

struct decompressor {
    struct decompressor *next;
    struct libdeflate_decompressor *libdeflate;
};

struct grain_codec {
    int level;
    pthread_mutex_t mutex; /* guards the next two */
    struct compressor *idle;
    struct decompressor *idle_inflate;
};

static uint32_t level_buffer_size(int level)
{
    if (level == 1)
        return ISAL_DEF_LVL1_DEFAULT;
    return level == 2 ? ISAL_DEF_LVL2_DEFAULT : ISAL_DEF_LVL3_DEFAULT;
}

struct grain_codec *grain_codec_new(int level)
{
    struct grain_codec *codec = xcalloc(1, sizeof *codec);

    assert(level >= 0 && level <= GRAIN_CODEC_LEVEL_MAX);
    codec->level = level == 0 ? GRAIN_CODEC_LEVEL_DEFAULT : level;
    (void)pthread_mutex_init(&codec->mutex, NULL);
    return codec;
}

void grain_codec_free(struct grain_codec *codec)
{
    if (codec == NULL)
        return;
    while (codec->idle != NULL) {
        struct compressor *c = codec->idle;
        codec->idle = c->next;
        free(c->stream);
        free(c->level_buffer);
        libdeflate_free_compressor(c->libdeflate);
        free(c);
    }
    while (codec->idle_inflate != NULL) {
        struct decompressor *d = codec->idle_inflate;
        codec->idle_inflate = d->next;
        libdeflate_free_decompressor(d->libdeflate);
        free(d);
    }
    (void)pthread_mutex_destroy(&codec->mutex);
    free(codec);
}

size_t grain_codec_bound(size_t size)
{
    /* Stored blocks of at most 65535 bytes with 5 bytes each, zlib header and checksum; isa-l wants
     * some slack to decide late. libdeflate's own bound is below this. */
    return size + size / 16 + 1024;
}

static struct compressor *compressor_get(struct grain_codec *codec)
{
    struct compressor *c;

    {
        LOCK_SCOPE(&codec->mutex);
        c = codec->idle;
        if (c != NULL) {
            codec->idle = c->next;
            return c;
        }
    }
    c = xcalloc(1, sizeof *c);
    if (codec->level <= ISAL_LEVEL_LAST) {
        c->stream = xmalloc(sizeof *c->stream);
        c->level_buffer = xmalloc(level_buffer_size(codec->level));
    } else {
        c->libdeflate = libdeflate_alloc_compressor(codec->level);
        if (c->libdeflate == NULL)
            abort(); /* out of memory, as in xmalloc */
    }
    return c;
}

static void compressor_put(struct grain_codec *codec, struct compressor *c)
{
    LOCK_SCOPE(&codec->mutex);
    c->next = codec->idle;
    codec->idle = c;
}

static size_t isal_run(struct compressor *c, int level, const void *data, size_t size, void *out,
                       size_t capacity)
{
    struct isal_zstream *stream = c->stream;

    isal_deflate_stateless_init(stream);
    stream->level = (uint32_t)level;
    stream->level_buf = c->level_buffer;
    stream->level_buf_size = level_buffer_size(level);
    stream->gzip_flag = IGZIP_ZLIB;
    stream->end_of_stream = 1;
    stream->flush = NO_FLUSH;
    stream->next_in = (uint8_t *)(uintptr_t)data; /* the library only reads it */
    stream->avail_in = (uint32_t)size;
    stream->next_out = out;
    stream->avail_out = (uint32_t)capacity;
    return isal_deflate_stateless(stream) == COMP_OK ? stream->total_out : 0;
}

int grain_codec_deflate(struct grain_codec *codec, const void *data, size_t size, void *out,
                        size_t *out_size, struct error *err)
{
    struct compressor *c = compressor_get(codec);
    const size_t capacity = grain_codec_bound(size);
    size_t n;

    assert(size <= UINT32_MAX / 2);
    if (c->stream != NULL) {
        n = isal_run(c, codec->level, data, size, out, capacity);
    } else {
        n = libdeflate_zlib_compress(c->libdeflate, data, size, out, capacity);
    }
    compressor_put(codec, c);
    if (n == 0)
        return error_set(err, ERR_INTERNAL, "cannot compress %zu bytes", size);
    *out_size = n;
    return 0;
}

static struct decompressor *decompressor_get(struct grain_codec *codec)
{
    struct decompressor *d;

    {
        LOCK_SCOPE(&codec->mutex);
        d = codec->idle_inflate;
        if (d != NULL) {
            codec->idle_inflate = d->next;
            return d;
        }
    }
    d = xcalloc(1, sizeof *d);
    d->libdeflate = libdeflate_alloc_decompressor();
    if (d->libdeflate == NULL)
        abort(); /* out of memory, as in xmalloc */
    return d;
}

int grain_codec_inflate(struct grain_codec *codec, const struct grain_packed *packed, void *out,
                        size_t room, size_t *out_size, struct error *err)
{
    struct decompressor *d = decompressor_get(codec);
    size_t got = 0;
    enum libdeflate_result result =
        libdeflate_zlib_decompress(d->libdeflate, packed->data, packed->size, out, room, &got);

    {
        LOCK_SCOPE(&codec->mutex);
        d->next = codec->idle_inflate;
        codec->idle_inflate = d;
    }
    if (result != LIBDEFLATE_SUCCESS)
        return error_set(err, ERR_CORRUPT, "%zu compressed bytes cannot be inflated", packed->size);
    *out_size = got;
    return 0;
}
