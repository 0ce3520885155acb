/* See image.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "services/exporter/formats/image_impl.h"

static const struct image_ops *const formats[] = {&image_raw, &image_qcow2, &image_vmdk};

static const struct image_ops *ops_find(const char *format)
{
    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        if (strcmp(formats[i]->format, format) == 0)
            return formats[i];
    }
    return NULL;
}

static int file_open(const char *path, int *out_fd, uint64_t *out_bytes, struct error *err)
{
    autoclose int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "cannot open '%.256s'", path);
    if (!S_ISREG(st.st_mode))
        return error_set(err, ERR_INVALID, "'%.256s' is not a regular file", path);
    *out_bytes = (uint64_t)st.st_size;
    *out_fd = fd_steal(&fd);
    return 0;
}

int image_open(const char *path, const char *format, struct image **out, struct error *err)
{
    const struct image_ops *ops = ops_find(format);
    auto_image *image = NULL;
    autoclose int fd = -1;
    uint64_t file_bytes = 0;

    if (ops == NULL)
        return error_set(err, ERR_NOT_AVAILABLE, "image format '%.32s' cannot be read", format);
    if (file_open(path, &fd, &file_bytes, err) < 0)
        return -1;
    image = xcalloc(1, sizeof *image);
    image->ops = ops;
    image->fd = fd_steal(&fd);
    image->path = xstrdup(path);
    image->file_bytes = file_bytes;
    if (ops->open(image, err) < 0)
        return error_wrap(err, "'%.200s'", path);
    assert(image->size_bytes <= IMAGE_DISK_BYTES_MAX);
    *out = STEAL(image);
    return 0;
}

uint64_t image_size_bytes(const struct image *image)
{
    return image->size_bytes;
}

int image_read(struct image *image, void *buffer, size_t length, uint64_t offset, struct error *err)
{
    if (!range_is_inside(offset, length, image->size_bytes))
        return error_set(err, ERR_INVALID,
                         "%zu bytes at %" PRIu64 " are not inside the disk of %" PRIu64 " bytes",
                         length, offset, image->size_bytes);
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

void image_close(struct image *image)
{
    if (image == NULL)
        return;
    image->ops->close(image);
    (void)close(image->fd);
    free(image->path);
    free(image);
}

int image_file_read(const struct image *image, void *out, size_t length, uint64_t offset,
                    struct error *err)
{
    if (!range_is_inside(offset, length, image->file_bytes))
        return error_set(err, ERR_CORRUPT, "the file ends before %" PRIu64 " + %zu", offset,
                         length);
    if (pread_all(image->fd, out, length, offset) < 0)
        return error_set_errno(err, errno, "cannot read at %" PRIu64, offset);
    return 0;
}
