/* See image.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "services/exporter/formats/image_impl.h"

static const struct image_ops *const formats[] = {&image_raw, &image_qcow2, &image_vmdk,
                                                  &image_zst};

static const struct image_ops *ops_find(const char *format)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        if (strcmp(formats[i]->format, format) == 0)
            return formats[i];
    }
    return NULL;
}

static int file_open(struct image *image, const char *path, int flags, struct error *err)
{
    struct stat st;

    image->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | flags);
    if (image->fd < 0 || fstat(image->fd, &st) < 0)
        return error_set_errno(err, errno, "cannot open '%.256s'", path);
    if (!S_ISREG(st.st_mode))
        return error_set(err, ERR_INVALID, "'%.256s' is not a regular file", path);
    image->file_bytes = (uint64_t)st.st_size;
    image->device = st.st_dev;
    image->inode = st.st_ino;
    return 0;
}

static void source_open(struct image *image, const struct image_source *source)
{
    image->source = source;
    image->file_bytes = source->size_bytes;
    image->cache = xcalloc(1, sizeof *image->cache);
    for (size_t i = 0; i < IMAGE_CACHE_BLOCKS; i++)
        image->cache->blocks[i].index = UINT64_MAX;
}

/* Narrows the file to the part. */
static int take_part(struct image *image, const struct image_part *part, struct error *err)
{
    if (!range_is_inside(part->offset, part->length, image->file_bytes)) {
        return error_set(err, ERR_CORRUPT,
                         "the file ends before the part at %" PRIu64 " + %" PRIu64, part->offset,
                         part->length);
    }
    image->base = part->offset;
    image->file_bytes = part->length > 0 ? part->length : image->file_bytes - part->offset;
    return 0;
}

int image_open_file(const struct image_part *part, int flags, const struct image *above,
                    int (*check)(const struct image *above, const struct image *image,
                                 struct error *err),
                    struct image **out, struct error *err)
{
    const struct image_ops *ops = ops_find(part->format);
    auto_image *image = NULL;

    if (ops == NULL) {
        return error_set(err, ERR_NOT_AVAILABLE, "image format '%.32s' cannot be read",
                         part->format);
    }
    image = xcalloc(1, sizeof *image);
    image->ops = ops;
    image->above = above;
    image->path = xstrdup(part->path);
    image->root = part->root == NULL ? NULL : xstrdup(part->root);
    image->fd = -1;
    if (part->source != NULL) {
        source_open(image, part->source);
    } else if (file_open(image, part->path, flags, err) < 0) {
        return -1;
    }
    if ((check != NULL && check(above, image, err) < 0) || image_root_check(image, err) < 0 ||
        take_part(image, part, err) < 0 || ops->open(image, err) < 0) {
        /* Of a chain, the first image and the one that fails are named. */
        bool below = image->backing_name != NULL && image->backing == NULL;
        return above != NULL && below ? -1 : error_wrap(err, "'%.200s'", part->path);
    }
    assert(image->size_bytes <= IMAGE_DISK_BYTES_MAX);
    *out = STEAL(image);
    return 0;
}

int image_open_chain(const char *path, const char *format, const char *root, struct image **out,
                     struct error *err)
{
    const struct image_part whole = {.path = path, .format = format, .root = root};

    return image_open_part(&whole, out, err);
}

int image_open(const char *path, const char *format, struct image **out, struct error *err)
{
    return image_open_chain(path, format, NULL, out, err);
}

int image_open_part(const struct image_part *part, struct image **out, struct error *err)
{
    return image_open_file(part, 0, NULL, NULL, out, err);
}

int image_file_stat(const struct image *image, struct stat *out)
{
    return fstat(image->fd, out);
}

const char *image_backing_name(const struct image *image)
{
    return image->backing_name;
}

struct image *image_backing(struct image *image)
{
    return image->backing;
}

uint64_t image_size_bytes(const struct image *image)
{
    return image->size_bytes;
}

int image_read(struct image *image, void *buffer, size_t length, uint64_t offset, struct error *err)
{
    if (!range_is_inside(offset, length, image->size_bytes)) {
        return error_set(err, ERR_INVALID,
                         "%zu bytes at %" PRIu64 " are not inside the disk of %" PRIu64 " bytes",
                         length, offset, image->size_bytes);
    }
    if (image->ops->read(image, buffer, length, offset, err) < 0)
        return error_wrap(err, "'%.200s'", image->path);
    return 0;
}

bool image_is_hole(struct image *image, uint64_t offset, uint64_t length)
{
    if (!range_is_inside(offset, length, image->size_bytes))
        return false;
    return image->ops->is_hole(image, offset, length);
}

/* NOLINTNEXTLINE(misc-no-recursion): a chain ends at IMAGE_CHAIN_MAX */
void image_close(struct image *image)
{
    if (image == NULL)
        return;
    image->ops->close(image);
    image_close(image->backing);
    if (image->fd >= 0)
        (void)close(image->fd);
    for (size_t i = 0; image->cache != NULL && i < IMAGE_CACHE_BLOCKS; i++)
        free(image->cache->blocks[i].bytes);
    free(image->cache);
    free(image->backing_name);
    free(image->root);
    free(image->path);
    free(image);
}

/* The block of the source, from the cache or into it. */
static int block_get(const struct image *image, uint64_t index, const uint8_t **out,
                     struct error *err)
{
    const struct image_source *source = image->source;
    struct image_cache *cache = image->cache;
    uint64_t offset = index * IMAGE_CACHE_BLOCK_BYTES;
    size_t oldest = 0;

    for (size_t i = 0; i < IMAGE_CACHE_BLOCKS; i++) {
        if (cache->blocks[i].index == index) {
            cache->blocks[i].used = ++cache->clock;
            *out = cache->blocks[i].bytes;
            return 0;
        }
        if (cache->blocks[i].used < cache->blocks[oldest].used)
            oldest = i;
    }
    if (cache->blocks[oldest].bytes == NULL)
        cache->blocks[oldest].bytes = xmalloc(IMAGE_CACHE_BLOCK_BYTES);
    cache->blocks[oldest].index = UINT64_MAX;
    if (source->read(source->arg, cache->blocks[oldest].bytes,
                     (size_t)min_u64(IMAGE_CACHE_BLOCK_BYTES, source->size_bytes - offset), offset,
                     err) < 0)
        return -1;
    cache->blocks[oldest].index = index;
    cache->blocks[oldest].used = ++cache->clock;
    *out = cache->blocks[oldest].bytes;
    return 0;
}

static int source_read(const struct image *image, uint8_t *out, size_t length, uint64_t offset,
                       struct error *err)
{
    while (length > 0) {
        size_t inside = (size_t)(offset % IMAGE_CACHE_BLOCK_BYTES);
        size_t n = (size_t)min_u64(length, IMAGE_CACHE_BLOCK_BYTES - inside);
        const uint8_t *block = NULL;
        if (block_get(image, offset / IMAGE_CACHE_BLOCK_BYTES, &block, err) < 0)
            return -1;
        memcpy(out, block + inside, n);
        out += n;
        offset += n;
        length -= n;
    }
    return 0;
}

int image_file_read(const struct image *image, void *out, size_t length, uint64_t offset,
                    struct error *err)
{
    if (!range_is_inside(offset, length, image->file_bytes)) {
        return error_set(err, ERR_CORRUPT, "the file ends before %" PRIu64 " + %zu", offset,
                         length);
    }
    if (image->source != NULL)
        return source_read(image, out, length, image->base + offset, err);
    if (pread_all(image->fd, out, length, image->base + offset) < 0)
        return error_set_errno(err, errno, "cannot read at %" PRIu64, offset);
    return 0;
}
