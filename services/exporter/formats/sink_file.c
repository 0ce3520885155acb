/* See sink_file.h. */
#include "services/exporter/formats/sink_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/parse.h"

#define SECTOR_BYTES 512U

int sink_file_open(const struct sink_options *options, int *out_fd, struct error *err)
{
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
    int fd;

    if (options->size_bytes == 0 || options->size_bytes % SECTOR_BYTES != 0) {
        return error_set(err, ERR_INVALID,
                         "disk size %" PRIu64 " is not a positive multiple of 512 bytes",
                         options->size_bytes);
    }
    if (options->size_bytes > SINK_DISK_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "disk size %" PRIu64 " is over the limit of 64 TiB",
                         options->size_bytes);
    }
    assert(options->file_offset % SECTOR_BYTES == 0);
    if (options->resume == NULL)
        flags |= options->file_offset > 0 ? O_CREAT : O_CREAT | O_TRUNC;
    fd = open(options->path, flags, SINK_FILE_MODE);
    if (fd < 0)
        return error_set_errno(err, errno, "cannot open '%.256s'", options->path);
    if (options->resume == NULL && options->file_offset > 0 &&
        ftruncate(fd, (off_t)options->file_offset) < 0) {
        (void)error_set_errno(err, errno, "cannot cut '%.256s'", options->path);
        (void)close(fd);
        return -1;
    }
    *out_fd = fd;
    return 0;
}

int sink_level_check(const struct sink_options *options, const char *format, int max,
                     struct error *err)
{
    if (options->compression != NULL || options->backing != NULL) {
        return error_set(err, ERR_INVALID, "format %s has no %s", format,
                         options->backing != NULL ? "backing files" : "choice of compression");
    }
    if (options->compression_level >= 0 && options->compression_level <= max)
        return 0;
    if (max == 0) {
        return error_set(err, ERR_INVALID,
                         "format %s is written without compression, level %d means nothing to it",
                         format, options->compression_level);
    }
    return error_set(err, ERR_INVALID, "compression level %d of format %s is not in 0 to %d",
                     options->compression_level, format, max);
}

/* *out: the value's text, caller frees. */
static int state_value(const char *state, const char *tag, const char *key, char **out,
                       struct error *err)
{
    size_t tag_length = strlen(tag);
    size_t key_length = strlen(key);
    const char *at;

    if (strlen(state) > SINK_STATE_BYTES_MAX || strncmp(state, tag, tag_length) != 0 ||
        state[tag_length] != ' ')
        return error_set(err, ERR_CORRUPT, "checkpoint '%.64s' is not of kind '%s'", state, tag);
    for (at = strchr(state, ' '); at != NULL; at = strchr(at + 1, ' ')) {
        if (strncmp(at + 1, key, key_length) == 0 && at[1 + key_length] == '=') {
            const char *text = at + 1 + key_length + 1;
            *out = xstrndup(text, strcspn(text, " "));
            return 0;
        }
    }
    return error_set(err, ERR_CORRUPT, "checkpoint '%.64s' lacks '%s'", state, key);
}

int sink_state_u64(const char *state, const char *tag, const char *key, uint64_t max, uint64_t *out,
                   struct error *err)
{
    autofree char *value = NULL;

    if (state_value(state, tag, key, &value, err) < 0)
        return -1;
    return parse_u64(key, value, 0, max, out, err);
}

int sink_state_bytes(const char *state, const char *tag, const char *key, uint8_t *out, size_t size,
                     struct error *err)
{
    autofree char *value = NULL;

    if (state_value(state, tag, key, &value, err) < 0)
        return -1;
    if (!hex_decode(value, out, size))
        return error_set(err, ERR_CORRUPT, "checkpoint '%.64s': '%s' is wrong", state, key);
    return 0;
}

/* ---- the index of an image that is sent on ---- */

int sink_index_open(const struct sink_options *options, size_t entry_bytes, struct sink_index *out,
                    struct error *err)
{
    autofree char *path =
        options->file_offset == 0
            ? xasprintf("%s.index", options->path)
            : xasprintf("%s.%" PRIu64 ".index", options->path, options->file_offset);
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;

    if (options->resume == NULL)
        flags |= O_CREAT | O_TRUNC;
    *out = (struct sink_index){.fd = open(path, flags, SINK_FILE_MODE), .entry_bytes = entry_bytes};
    return out->fd < 0 ? error_set_errno(err, errno, "cannot open '%.256s'", path) : 0;
}

void sink_index_close(struct sink_index *index)
{
    if (index->fd >= 0)
        (void)close(fd_steal(&index->fd));
}

int sink_index_append(struct sink_index *index, const void *entry, struct error *err)
{
    if (pwrite_all(index->fd, entry, index->entry_bytes, index->count * index->entry_bytes) < 0)
        return error_set_errno(err, errno, "cannot write the image's index");
    index->count++;
    return 0;
}

int sink_index_read(const struct sink_index *index, uint64_t first, void *out, size_t count,
                    struct error *err)
{
    if (pread_all(index->fd, out, count * index->entry_bytes, first * index->entry_bytes) < 0) {
        return error_set(err, ERR_CORRUPT, "the image's index ends before entry %" PRIu64,
                         first + count);
    }
    return 0;
}

int sink_index_cut(struct sink_index *index, uint64_t count, struct error *err)
{
    if (ftruncate(index->fd, (off_t)(count * index->entry_bytes)) < 0)
        return error_set_errno(err, errno, "cannot cut the image's index");
    index->count = count;
    return 0;
}

int sink_index_sync(const struct sink_index *index, struct error *err)
{
    if (index->fd >= 0 && fdatasync(index->fd) < 0)
        return error_set_errno(err, errno, "cannot sync the image's index");
    return 0;
}

/* ---- writeback ---- */

void writeback_init(struct writeback *writeback, int fd)
{
    *writeback = (struct writeback){.fd = fd};
    (void)pthread_mutex_init(&writeback->mutex, NULL);
}

void writeback_release(struct writeback *writeback)
{
    (void)pthread_mutex_destroy(&writeback->mutex);
}

static void window_add(struct writeback_window *window, uint64_t offset, uint64_t length)
{
    window->bytes += length;
    if (window->count > 0) {
        size_t last = window->count - 1;
        if (window->ranges[last].offset + window->ranges[last].length == offset) {
            window->ranges[last].length += length;
            return;
        }
    }
    assert(window->count < WRITEBACK_RANGES_MAX);
    window->ranges[window->count].offset = offset;
    window->ranges[window->count].length = length;
    window->count++;
}

/* Results are ignored: a file system without sync_file_range only loses the speed, and a write
 * error is reported again by the fdatasync of the next checkpoint. */
static void window_start(int fd, const struct writeback_window *window)
{
    for (size_t i = 0; i < window->count; i++) {
        (void)sync_file_range(fd, (off_t)window->ranges[i].offset, (off_t)window->ranges[i].length,
                              SYNC_FILE_RANGE_WRITE);
    }
}

static void window_finish(int fd, const struct writeback_window *window)
{
    for (size_t i = 0; i < window->count; i++) {
        off_t offset = (off_t)window->ranges[i].offset;
        off_t length = (off_t)window->ranges[i].length;
        (void)sync_file_range(fd, offset, length,
                              SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                  SYNC_FILE_RANGE_WAIT_AFTER);
        (void)posix_fadvise(fd, offset, length, POSIX_FADV_DONTNEED);
    }
}

void writeback_wrote(struct writeback *writeback, uint64_t offset, uint64_t length)
{
    struct writeback_window full;
    struct writeback_window before;

    if (length == 0)
        return;
    {
        LOCK_SCOPE(&writeback->mutex);
        window_add(&writeback->filling, offset, length);
        if (writeback->filling.bytes < WRITEBACK_WINDOW_BYTES &&
            writeback->filling.count < WRITEBACK_RANGES_MAX)
            return;
        full = writeback->filling;
        before = writeback->waiting;
        writeback->waiting = full;
        writeback->filling = (struct writeback_window){0};
    }
    window_start(writeback->fd, &full);
    window_finish(writeback->fd, &before);
}
