/* Compressed raw images (zst.h), written front to back.
 *
 * Design notes
 * - encode() makes a piece a frame on the reader's thread, write_encoded() only appends it: the
 *   shape of sink_vmdk.c, and as there nothing is patched and the file's SHA-256 comes in stream.
 * - A resume walks the frames from the front by their block headers (nine small reads per MiB),
 *   which gives the seek table back, and cuts the file where the pipeline goes on. An image that is
 *   sent on loses its front meanwhile: the sizes of its frames are in "<path>.index" then. */
#include <errno.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <zstd.h>

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/sink_file.h"
#include "services/exporter/formats/zst.h"

#define STATE_TAG         "zst1"
#define LEVEL_MAX         9
#define LEVEL_DEFAULT     3 /* zstd's own */
#define TABLE_STEP        8192
#define INDEX_ENTRY_BYTES 4U
#define FRAME_HEAD_MAX    18U
#define BLOCK_HEAD        3U
#define CHECKSUM_BYTES    4U
#define ZERO_FRAME_ROOM   256U /* a MiB of zeros takes 48 bytes */

struct sink {
    int fd;
    uint64_t size_bytes;
    int level;
    uint64_t pos;    /* end of the file */
    uint64_t next;   /* disk offset of the next piece */
    uint32_t *sizes; /* of the frames, in order */
    size_t count;
    size_t room;
    struct sink_index index; /* only when it is sent on: the same as sizes */
    bool sent_on;
    struct {
        uint8_t frame[ZERO_FRAME_ROOM]; /* of a whole piece of zeros */
        size_t size;
    } zero;
    EVP_MD_CTX *digest; /* NULL after a resume */
    char sha256[65];    /* empty until finished */
    struct writeback writeback;
};

static void zst_close(struct sink *sink)
{
    if (sink == NULL)
        return;
    writeback_release(&sink->writeback);
    EVP_MD_CTX_free(sink->digest);
    free(sink->sizes);
    sink_index_close(&sink->index);
    if (sink->fd >= 0)
        (void)close(sink->fd);
    free(sink);
}
DEFINE_AUTO(sink, struct sink, zst_close)

static int append(struct sink *sink, const void *data, size_t size, struct error *err)
{
    if (pwrite_all(sink->fd, data, size, sink->pos) < 0)
        return error_set_errno(err, errno, "cannot write zstd image at offset %" PRIu64, sink->pos);
    if (sink->digest != NULL && EVP_DigestUpdate(sink->digest, data, size) != 1)
        return error_set(err, ERR_INTERNAL, "SHA-256 of the zstd image failed");
    writeback_wrote(&sink->writeback, sink->pos, size);
    sink->pos += size;
    return 0;
}

static void note_frame(struct sink *sink, size_t size)
{
    if (sink->count == sink->room) {
        sink->room += TABLE_STEP;
        sink->sizes = xrealloc(sink->sizes, sink->room * sizeof *sink->sizes);
    }
    sink->sizes[sink->count++] = (uint32_t)size;
}

static int frame_written(struct sink *sink, size_t size, struct error *err)
{
    uint8_t entry[INDEX_ENTRY_BYTES];

    note_frame(sink, size);
    if (!sink->sent_on)
        return 0;
    put_le32(entry, (uint32_t)size);
    return sink_index_append(&sink->index, entry, err);
}

/* Plain bytes of the frame `index`. */
static uint32_t plain_bytes(const struct sink *sink, size_t index)
{
    return (uint32_t)min_u64(ZST_PIECE_BYTES, sink->size_bytes - index * ZST_PIECE_BYTES);
}

struct frame { /* where one goes */
    void *data;
    size_t room;
    size_t size; /* of what was put there */
};

static int compress(const struct sink *sink, const void *data, size_t length, struct frame *out,
                    struct error *err)
{
    ZSTD_CCtx *context = ZSTD_createCCtx();
    size_t size;

    if (context == NULL ||
        ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, sink->level)) ||
        ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1)))
        abort(); /* out of memory */
    size = ZSTD_compress2(context, out->data, out->room, data, length);
    (void)ZSTD_freeCCtx(context);
    if (ZSTD_isError(size))
        return error_set(err, ERR_INTERNAL, "zstd: %s", ZSTD_getErrorName(size));
    out->size = size;
    return 0;
}

static int zst_encode(struct sink *sink, uint64_t offset, const void *data, size_t length,
                      struct sink_blob *out, struct error *err)
{
    size_t room = ZSTD_compressBound(length);
    autofree uint8_t *bytes = xmalloc(room);
    struct frame frame = {bytes, room, 0};

    assert(offset % ZST_PIECE_BYTES == 0 && length <= ZST_PIECE_BYTES);
    if (compress(sink, data, length, &frame, err) < 0)
        return -1;
    *out = (struct sink_blob){.data = STEAL(bytes), .size = frame.size, .raw_size = length};
    return 0;
}

/* ---- going on ---- */

static int read_at(const struct sink *sink, void *out, size_t size, uint64_t pos, uint64_t end,
                   struct error *err)
{
    if (!range_is_inside(pos, size, end))
        return error_set(err, ERR_CORRUPT, "the frames end in the middle of one");
    if (pread_all(sink->fd, out, size, pos) < 0)
        return error_set_errno(err, errno, "cannot read frame at offset %" PRIu64, pos);
    return 0;
}

/* Bytes of the header of a frame that begins so (RFC 8878, 3.1.1.1); 0: it is none. */
static size_t head_bytes(const uint8_t *head)
{
    static const size_t dictionary[] = {0, 1, 2, 4};
    bool single = (head[4] & 0x20U) != 0;
    unsigned int content = head[4] >> 6;
    size_t content_bytes = content == 0 ? (single ? 1 : 0) : (size_t)1 << content;

    if (get_le32(head) != ZSTD_MAGICNUMBER)
        return 0;
    return (single ? 5U : 6U) + dictionary[head[4] & 3U] + content_bytes;
}

/* Moves *pos behind the frame that begins there. */
static int walk_frame(const struct sink *sink, uint64_t *pos, uint64_t end, struct error *err)
{
    uint8_t head[5];
    uint8_t block[BLOCK_HEAD] = {0};
    uint64_t at = *pos;

    if (read_at(sink, head, sizeof head, at, end, err) < 0)
        return -1;
    if (head_bytes(head) == 0)
        return error_set(err, ERR_CORRUPT, "no frame begins at offset %" PRIu64, at);
    at += head_bytes(head);
    while ((block[0] & 1U) == 0) { /* the last block says so */
        uint32_t value;
        if (read_at(sink, block, sizeof block, at, end, err) < 0)
            return -1;
        value = (uint32_t)block[0] | (uint32_t)block[1] << 8 | (uint32_t)block[2] << 16;
        at += BLOCK_HEAD + ((value >> 1 & 3U) == 1 ? 1 : value >> 3); /* 1: a run of one byte */
    }
    at += (head[4] & 4U) != 0 ? CHECKSUM_BYTES : 0;
    if (at > end)
        return error_set(err, ERR_CORRUPT, "the frames end in the middle of one");
    *pos = at;
    return 0;
}

/* The frames before disk offset `stop`, from the file or, when its front may be gone, the index. */
static int recall_frames(struct sink *sink, uint64_t stop, uint64_t end, struct error *err)
{
    while (sink->next < stop) {
        uint64_t begin = sink->pos;
        uint8_t entry[INDEX_ENTRY_BYTES];
        if (!sink->sent_on) {
            if (walk_frame(sink, &sink->pos, end, err) < 0)
                return -1;
        } else {
            if (sink_index_read(&sink->index, sink->count, entry, 1, err) < 0)
                return -1;
            sink->pos += get_le32(entry);
        }
        sink->next += plain_bytes(sink, sink->count);
        note_frame(sink, sink->pos - begin);
    }
    if (sink->pos > end)
        return error_set(err, ERR_CORRUPT, "its index is that of a longer file");
    return sink->sent_on ? sink_index_cut(&sink->index, sink->count, err) : 0;
}

static int resume(struct sink *sink, const struct sink_options *options, struct error *err)
{
    uint64_t size = 0;
    uint64_t end = 0;
    uint64_t next = 0;
    uint64_t level = 0;
    struct stat st;

    if (sink_state_u64(options->resume, STATE_TAG, "size", SINK_DISK_BYTES_MAX, &size, err) < 0 ||
        sink_state_u64(options->resume, STATE_TAG, "end", INT64_MAX, &end, err) < 0 ||
        sink_state_u64(options->resume, STATE_TAG, "next", UINT64_MAX, &next, err) < 0 ||
        sink_state_u64(options->resume, STATE_TAG, "level", LEVEL_MAX, &level, err) < 0)
        return -1;
    if (fstat(sink->fd, &st) < 0)
        return error_set_errno(err, errno, "cannot examine '%.256s'", options->path);
    if (size != sink->size_bytes || end > (uint64_t)st.st_size || next > size ||
        options->resume_offset > next ||
        (options->resume_offset % ZST_PIECE_BYTES != 0 && options->resume_offset != size)) {
        return error_set(err, ERR_CORRUPT,
                         "'%.256s' does not fit its checkpoint '%.64s': start over", options->path,
                         options->resume);
    }
    if (recall_frames(sink, options->resume_offset, end, err) < 0)
        return error_wrap(err, "'%.256s' cannot be resumed, start over", options->path);
    if (ftruncate(sink->fd, (off_t)sink->pos) < 0)
        return error_set_errno(err, errno, "cannot cut '%.256s'", options->path);
    return 0;
}

static int start(struct sink *sink, struct error *err)
{
    sink->digest = EVP_MD_CTX_new();
    if (sink->digest == NULL || EVP_DigestInit_ex(sink->digest, EVP_sha256(), NULL) != 1)
        return error_set(err, ERR_INTERNAL, "SHA-256 is not available");
    return 0;
}

static int zst_open(const struct sink_options *options, struct sink **out, struct error *err)
{
    CLEANUP(sink_auto) struct sink *sink = xcalloc(1, sizeof *sink);
    autofree void *zeros = xcalloc(1, ZST_PIECE_BYTES);
    struct frame zero;

    sink->fd = -1;
    sink->index.fd = -1;
    sink->sent_on = options->sent_on;
    writeback_init(&sink->writeback, -1);
    assert(options->file_offset == 0);
    if (sink_level_check(options, "raw.zst", LEVEL_MAX, err) < 0 ||
        sink_file_open(options, &sink->fd, err) < 0 ||
        (sink->sent_on && sink_index_open(options, INDEX_ENTRY_BYTES, &sink->index, err) < 0))
        return -1;
    sink->writeback.fd = sink->fd;
    sink->size_bytes = options->size_bytes;
    sink->level = options->compression_level == 0 ? LEVEL_DEFAULT : options->compression_level;
    zero = (struct frame){sink->zero.frame, sizeof sink->zero.frame, 0};
    if (compress(sink, zeros, ZST_PIECE_BYTES, &zero, err) < 0)
        return -1;
    sink->zero.size = zero.size;
    if ((options->resume != NULL ? resume(sink, options, err) : start(sink, err)) < 0)
        return -1;
    *out = STEAL(sink);
    return 0;
}

/* ---- writing ---- */

static int check_order(const struct sink *sink, uint64_t offset, uint64_t length, struct error *err)
{
    assert(range_is_inside(offset, length, sink->size_bytes));
    if (offset == sink->next)
        return 0;
    return error_set(err, ERR_INTERNAL,
                     "piece at %" PRIu64 " comes where that at %" PRIu64
                     " was due: raw.zst is ordered",
                     offset, sink->next);
}

static int zst_write_encoded(struct sink *sink, uint64_t offset, const struct sink_blob *blob,
                             struct error *err)
{
    if (check_order(sink, offset, blob->raw_size, err) < 0 ||
        append(sink, blob->data, blob->size, err) < 0 || frame_written(sink, blob->size, err) < 0)
        return -1;
    sink->next += blob->raw_size;
    return 0;
}

static int write_zero_piece(struct sink *sink, struct error *err)
{
    size_t length = plain_bytes(sink, sink->count);
    autofree void *zeros = NULL;
    uint8_t own[ZERO_FRAME_ROOM];
    struct frame frame = {sink->zero.frame, sizeof sink->zero.frame, sink->zero.size};

    if (length < ZST_PIECE_BYTES) {
        zeros = xcalloc(1, length);
        frame = (struct frame){own, sizeof own, 0};
        if (compress(sink, zeros, length, &frame, err) < 0)
            return -1;
    }
    if (append(sink, frame.data, frame.size, err) < 0 || frame_written(sink, frame.size, err) < 0)
        return -1;
    sink->next += length;
    return 0;
}

static int zst_write_zero(struct sink *sink, uint64_t offset, uint64_t length, struct error *err)
{
    uint64_t end = offset + length;

    if (check_order(sink, offset, length, err) < 0)
        return -1;
    assert(end % ZST_PIECE_BYTES == 0 || end == sink->size_bytes);
    while (sink->next < end) {
        if (write_zero_piece(sink, err) < 0)
            return -1;
    }
    return 0;
}

static int zst_state(struct sink *sink, struct strbuf *state, struct error *err)
{
    (void)err;
    strbuf_addf(state, STATE_TAG " size=%" PRIu64 " end=%" PRIu64 " next=%" PRIu64 " level=%d",
                sink->size_bytes, sink->pos, sink->next, sink->level);
    return 0;
}

static int zst_sync(struct sink *sink, struct error *err)
{
    if (fdatasync(sink->fd) < 0)
        return error_set_errno(err, errno, "cannot sync zstd image");
    return sink_index_sync(&sink->index, err);
}

/* The frames behind the disk offset come again. */
static uint64_t zst_final(struct sink *sink, uint64_t disk_offset)
{
    size_t count = (size_t)(round_up_u64(disk_offset, ZST_PIECE_BYTES) / ZST_PIECE_BYTES);
    uint64_t pos = 0;

    for (size_t i = 0; i < count && i < sink->count; i++)
        pos += sink->sizes[i];
    return pos;
}

static int append_table(struct sink *sink, struct error *err)
{
    size_t size = ZST_TABLE_HEAD_BYTES + sink->count * ZST_ENTRY_BYTES + ZST_FOOTER_BYTES;
    autofree uint8_t *table = xcalloc(1, size);
    uint8_t *at = table + ZST_TABLE_HEAD_BYTES;

    put_le32(table, ZST_TABLE_MAGIC);
    put_le32(table + 4, (uint32_t)(size - ZST_TABLE_HEAD_BYTES));
    for (size_t i = 0; i < sink->count; i++, at += ZST_ENTRY_BYTES) {
        put_le32(at, sink->sizes[i]);
        put_le32(at + 4, plain_bytes(sink, i));
    }
    put_le32(at, (uint32_t)sink->count);
    put_le32(at + 5, ZST_SEEK_MAGIC);
    return append(sink, table, size, err);
}

static int zst_finish(struct sink *sink, struct error *err)
{
    uint8_t raw[EVP_MAX_MD_SIZE];

    static_assert(SINK_DISK_BYTES_MAX / ZST_PIECE_BYTES * ZST_ENTRY_BYTES < UINT32_MAX - 64,
                  "the table's size fits its header");
    if (sink->next != sink->size_bytes) {
        return error_set(err, ERR_INTERNAL, "the zstd image ends at %" PRIu64 " of %" PRIu64,
                         sink->next, sink->size_bytes);
    }
    if (append_table(sink, err) < 0)
        return -1;
    if (fsync(sink->fd) < 0)
        return error_set_errno(err, errno, "cannot sync zstd image");
    if (sink->digest == NULL)
        return 0;
    if (EVP_DigestFinal_ex(sink->digest, raw, NULL) != 1)
        return error_set(err, ERR_INTERNAL, "SHA-256 of the zstd image failed");
    hex_encode(raw, 32, sink->sha256);
    return 0;
}

static bool zst_file_sha256(const struct sink *sink, char out[65])
{
    if (sink->sha256[0] == '\0')
        return false;
    memcpy(out, sink->sha256, sizeof sink->sha256);
    return true;
}

const struct sink_format sink_zst = {
    .name = "raw.zst",
    .suffix = ".raw.zst",
    .flags = SINK_ORDERED,
    .open = zst_open,
    .encode = zst_encode,
    .write_encoded = zst_write_encoded,
    .write_zero = zst_write_zero,
    .state = zst_state,
    .sync = zst_sync,
    .final = zst_final,
    .finish = zst_finish,
    .close = zst_close,
    .file_sha256 = zst_file_sha256,
};
