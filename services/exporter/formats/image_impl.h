/* What the image readers share. Nobody but image*.c includes this. */
#ifndef EXPORTER_IMAGE_IMPL_H
#define EXPORTER_IMAGE_IMPL_H

#include "services/exporter/formats/image.h"

#define IMAGE_DISK_BYTES_MAX (64 * 1024 * GIB) /* as the sinks write */

struct image_ops {
    const char *format;
    /* `image` has fd, path, file_bytes; sets size_bytes and data. On failure close() is called. */
    int (*open)(struct image *image, struct error *err);
    /* Inside the disk. */
    int (*read)(struct image *image, uint8_t *out, size_t length, uint64_t offset,
                struct error *err);
    bool (*is_hole)(struct image *image, uint64_t offset, uint64_t length);
    void (*close)(struct image *image); /* frees data, which may be NULL */
};

struct image {
    const struct image_ops *ops;
    int fd;
    char *path;
    uint64_t file_bytes;
    uint64_t size_bytes;
    void *data; /* the format's own */
};

extern const struct image_ops image_raw;
extern const struct image_ops image_qcow2;
extern const struct image_ops image_vmdk;

/* Exactly these bytes of the file; ERR_CORRUPT when they do not lie in it. */
MUST_CHECK int image_file_read(const struct image *image, void *out, size_t length, uint64_t offset,
                               struct error *err);

#endif
