/* Raw image: a sparse file of the disk's size. The checkpoint needs no position, since every piece
 * has its fixed place; a resume only makes sure that it is the same file. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <sys/stat.h>

#include "services/exporter/formats/sink_file.h"

#define STATE_TAG  "raw1"
#define ZERO_BYTES (64 * KIB)

struct sink {
    int fd;
    bool resumed; /* the file may hold bytes of pieces that come again */
    uint64_t size_bytes;
    struct writeback writeback;
};

static void raw_close(struct sink *sink)
{
    if (sink == NULL)
        return;
    writeback_release(&sink->writeback);
    (void)close(sink->fd);
    free(sink);
}

static int check_resume(int fd, const struct sink_options *options, struct error *err)
{
    struct stat st;
    uint64_t size = 0;

    if (sink_state_u64(options->resume, STATE_TAG, "size", SINK_DISK_BYTES_MAX, &size, err) < 0)
        return -1;
    if (fstat(fd, &st) < 0)
        return error_set_errno(err, errno, "cannot examine '%.256s'", options->path);
    if (size != options->size_bytes || (uint64_t)st.st_size != options->size_bytes) {
        return error_set(err, ERR_CORRUPT,
                         "'%.256s' has %jd bytes, its checkpoint says %" PRIu64
                         " and the disk has %" PRIu64 ": start over",
                         options->path, (intmax_t)st.st_size, size, options->size_bytes);
    }
    return 0;
}

static int raw_open(const struct sink_options *options, struct sink **out, struct error *err)
{
    autoclose int fd = -1;
    struct sink *sink;

    assert(options->file_offset == 0);
    if (sink_level_check(options, "raw", 0, err) < 0 || sink_file_open(options, &fd, err) < 0)
        return -1;
    if (options->resume != NULL && check_resume(fd, options, err) < 0)
        return -1;
    if (ftruncate(fd, (off_t)options->size_bytes) < 0)
        return error_set_errno(err, errno, "cannot set the size of '%.256s'", options->path);
    sink = xcalloc(1, sizeof *sink);
    sink->resumed = options->resume != NULL;
    sink->size_bytes = options->size_bytes;
    sink->fd = fd_steal(&fd);
    writeback_init(&sink->writeback, sink->fd);
    *out = sink;
    return 0;
}

static int raw_write(struct sink *sink, uint64_t offset, const void *data, size_t length,
                     struct error *err)
{
    assert(range_is_inside(offset, length, sink->size_bytes));
    if (pwrite_all(sink->fd, data, length, offset) < 0)
        return error_set_errno(err, errno, "cannot write raw image at offset %" PRIu64, offset);
    writeback_wrote(&sink->writeback, offset, length);
    return 0;
}

static int write_zeros(struct sink *sink, uint64_t offset, uint64_t length, struct error *err)
{
    static const uint8_t zeros[ZERO_BYTES];

    while (length > 0) {
        size_t n = (size_t)min_u64(length, sizeof zeros);
        if (pwrite_all(sink->fd, zeros, n, offset) < 0)
            return error_set_errno(err, errno, "cannot clear raw image at offset %" PRIu64, offset);
        offset += n;
        length -= n;
    }
    return 0;
}

static int raw_write_zero(struct sink *sink, uint64_t offset, uint64_t length, struct error *err)
{
    assert(range_is_inside(offset, length, sink->size_bytes));
    if (!sink->resumed) /* a new file is all holes */
        return 0;
    if (fallocate(sink->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                  (off_t)length) == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return error_set_errno(err, errno, "cannot clear raw image at offset %" PRIu64, offset);
    return write_zeros(sink, offset, length, err);
}

static int raw_state(struct sink *sink, struct strbuf *state, struct error *err)
{
    (void)err;
    strbuf_addf(state, STATE_TAG " size=%" PRIu64, sink->size_bytes);
    return 0;
}

static int raw_sync(struct sink *sink, struct error *err)
{
    if (fdatasync(sink->fd) < 0)
        return error_set_errno(err, errno, "cannot sync raw image");
    return 0;
}

/* Every piece has its place, and none is needed by another. */
static uint64_t raw_final(struct sink *sink, uint64_t disk_offset)
{
    (void)sink;
    return disk_offset;
}

static int raw_finish(struct sink *sink, struct error *err)
{
    if (fsync(sink->fd) < 0)
        return error_set_errno(err, errno, "cannot sync raw image");
    return 0;
}

static bool raw_file_sha256(const struct sink *sink, char out[65])
{
    (void)sink;
    (void)out;
    return false;
}

const struct sink_format sink_raw = {
    .name = "raw",
    .suffix = ".raw",
    .open = raw_open,
    .write = raw_write,
    .write_zero = raw_write_zero,
    .state = raw_state,
    .sync = raw_sync,
    .final = raw_final,
    .finish = raw_finish,
    .close = raw_close,
    .file_sha256 = raw_file_sha256,
};
