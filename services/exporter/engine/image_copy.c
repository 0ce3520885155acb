/* See image_copy.h. */
#include "services/exporter/engine/image_copy.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "common/autos.h"

#define CHUNK_BYTES (10 * MIB) /* export.chunk_size's default */
#define MARK_SIZE   128

struct provider_session {
    const struct image_part *image;
};

struct provider_disk {
    struct image *image;
};

static int mark_of(const struct image *image, char out[MARK_SIZE], struct error *err)
{
    struct stat st;

    if (image_file_stat(image, &st) < 0)
        return error_set_errno(err, errno, "image file");
    (void)snprintf(out, MARK_SIZE, "%" PRIu64 ":%" PRIu64 ":%" PRIu64 ":%" PRId64 ".%09ld",
                   (uint64_t)st.st_dev, (uint64_t)st.st_ino, (uint64_t)st.st_size,
                   (int64_t)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    return 0;
}

static int disk_open(struct provider_session *session, const struct frozen_vm *frozen, size_t index,
                     struct provider_disk **out, struct error *err)
{
    struct provider_disk *disk = xcalloc(1, sizeof *disk);

    (void)frozen;
    (void)index;
    if (image_open_part(session->image, &disk->image, err) < 0) {
        free(disk);
        return -1;
    }
    *out = disk;
    return 0;
}

static int disk_read(struct provider_disk *disk, void *buffer, size_t length, uint64_t offset,
                     struct error *err)
{
    return image_read(disk->image, buffer, length, offset, err);
}

static int disk_extents(struct provider_disk *disk, uint64_t offset, uint64_t length,
                        struct extent_list *out, struct error *err)
{
    uint64_t end = offset + length;
    struct extent *last = NULL;

    (void)err;
    out->count = 0;
    while (offset < end) {
        uint64_t n = min_u64(MIB - offset % MIB, end - offset);
        if (!image_is_hole(disk->image, offset, n)) {
            if (last != NULL && last->offset + last->length == offset) {
                last->length += n;
            } else if (out->count == out->count_max) {
                break;
            } else {
                last = &out->items[out->count++];
                *last = (struct extent){.offset = offset, .length = n};
            }
        }
        offset += n;
    }
    out->end = offset;
    return 0;
}

static void disk_close(struct provider_disk *disk)
{
    if (disk == NULL)
        return;
    image_close(disk->image);
    free(disk);
}

static int disk_mark(struct provider_session *session, const struct frozen_vm *frozen, size_t index,
                     char **out, struct error *err)
{
    auto_image *image = NULL;
    char mark[MARK_SIZE];

    (void)frozen;
    (void)index;
    if (image_open_part(session->image, &image, err) < 0 || mark_of(image, mark, err) < 0)
        return -1;
    *out = xstrdup(mark);
    return 0;
}

static const struct provider image_provider = {
    .name = "image",
    .parallel_reads_max = COPY_READERS_MAX,
    .local = true,
    .disk_open = disk_open,
    .disk_read = disk_read,
    .disk_extents = disk_extents,
    .disk_close = disk_close,
    .disk_mark = disk_mark,
};

int image_copy(const struct image_copy_options *options, struct copy_result *out, struct error *err)
{
    struct provider_session session = {&options->image};
    auto_image *image = NULL;
    char mark[MARK_SIZE];
    struct frozen_disk disk = {.mark = mark};
    struct frozen_vm frozen = {.disks = &disk, .disk_count = 1};
    struct copy_options copy = {
        .provider = &image_provider,
        .session = &session,
        .frozen = &frozen,
        .chunk_bytes = CHUNK_BYTES,
        .readers = 2 * options->threads, /* half of them may wait for the disk */
        .journal_path = options->journal_path,
        .identity = mark,
        .outputs = options->outputs,
        .output_count = options->output_count,
        .hash = !options->no_hash,
        .stopped = options->stopped,
        .may_write = options->may_write,
        .progress = options->progress,
        .arg = options->arg,
    };

    assert(options->threads > 0 && options->threads <= IMAGE_COPY_THREADS_MAX);
    if (image_open_part(&options->image, &image, err) < 0 || mark_of(image, mark, err) < 0)
        return -1;
    disk.size_bytes = image_size_bytes(image);
    return copy_disk(&copy, out, err);
}
