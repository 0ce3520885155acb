/* Raw images: the file is the disk. */
#include <errno.h>
#include <inttypes.h>

#include "services/exporter/formats/image_impl.h"

static int raw_open(struct image *image, struct error *err)
{
    if (image->file_bytes > IMAGE_DISK_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "a disk of %" PRIu64 " bytes is over the limit of 64 TiB",
                         image->file_bytes);
    }
    image->size_bytes = image->file_bytes;
    return 0;
}

static int raw_read(struct image *image, uint8_t *out, size_t length, uint64_t offset,
                    struct error *err)
{
    return image_file_read(image, out, length, offset, err);
}

static bool raw_is_hole(struct image *image, uint64_t offset, uint64_t length)
{
    off_t data;

    if (image->source != NULL)
        return false;
    data = lseek(image->fd, (off_t)(image->base + offset), SEEK_DATA);
    if (data < 0)
        return errno == ENXIO; /* nothing but a hole up to the end */
    return (uint64_t)data >= image->base + offset + length;
}

static void raw_close(struct image *image)
{
    (void)image;
}

const struct image_ops image_raw = {
    .format = "raw",
    .open = raw_open,
    .read = raw_read,
    .is_hole = raw_is_hole,
    .close = raw_close,
};
