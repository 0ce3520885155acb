/* What the image readers share. Nobody but image*.c includes this. */
#ifndef EXPORTER_IMAGE_IMPL_H
#define EXPORTER_IMAGE_IMPL_H

#include <sys/types.h>

#include "services/exporter/formats/image.h"

#define IMAGE_DISK_BYTES_MAX (64 * 1024 * GIB) /* as the sinks write */

struct image_ops {
    const char *format;
    /* `image` has fd, base, path, file_bytes; sets size_bytes and data. On failure close() is
     * called. */
    int (*open)(struct image *image, struct error *err);
    /* Inside the disk. */
    int (*read)(struct image *image, uint8_t *out, size_t length, uint64_t offset,
                struct error *err);
    bool (*is_hole)(struct image *image, uint64_t offset, uint64_t length);
    void (*close)(struct image *image); /* frees data, which may be NULL */
};

#define IMAGE_CACHE_BLOCKS      2U /* data, and the table that speaks of it */
#define IMAGE_CACHE_BLOCK_BYTES ((size_t)(8 * MIB))

struct image_cache { /* of a source: one request for many records */
    struct {
        uint64_t index; /* of the block; UINT64_MAX: none */
        uint64_t used;
        uint8_t *bytes;
    } blocks[IMAGE_CACHE_BLOCKS];
    uint64_t clock;
};

struct image {
    const struct image_ops *ops;
    const struct image_source *source; /* NULL: it is the file: */
    struct image_cache *cache;
    int fd;
    uint64_t base; /* of the image in its file: offsets count from here */
    char *path;
    uint64_t file_bytes; /* of the image */
    uint64_t size_bytes;
    void *data; /* the format's own */
    dev_t device;
    ino_t inode;
    char *root;                /* where the chain may lie; NULL: the image's own directory */
    const struct image *above; /* whose backing file or extent this is */
    struct image *backing;
    char *backing_name;
};

extern const struct image_ops image_raw;
extern const struct image_ops image_qcow2;
extern const struct image_ops image_vmdk;
extern const struct image_ops image_zst;
extern const struct image_ops image_vmdk_extents; /* image_vmdk hands over to it */

/* image.c: opens one file. flags: more of open(2)'s; above, and check with it: NULL for the first.
 */
MUST_CHECK int image_open_file(const struct image_part *part, int flags, const struct image *above,
                               int (*check)(const struct image *above, const struct image *image,
                                            struct error *err),
                               struct image **out, struct error *err);
/* image_backing.c: sets image->backing and backing_name. */
MUST_CHECK int image_open_backing(struct image *image, const char *name, const char *format,
                                  struct error *err);
MUST_CHECK int image_root_check(const struct image *image, struct error *err);

/* Exactly these bytes of the image's file; ERR_CORRUPT when they do not lie in it. */
MUST_CHECK int image_file_read(const struct image *image, void *out, size_t length, uint64_t offset,
                               struct error *err);

#endif
