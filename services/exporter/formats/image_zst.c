/* Compressed raw images (zst.h): frames of one piece each, found by the seek table. Of the table
 * only every CHECKPOINT_FRAMES-th frame's place is kept, so that a disk of any size costs little
 * memory; the entries between are read when they are needed. */
#include <inttypes.h>
#include <string.h>
#include <zstd.h>

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/image_impl.h"
#include "services/exporter/formats/zst.h"

#define CHECKPOINT_FRAMES 1024U
#define NO_FRAME          UINT64_MAX

struct zst {
    uint64_t count;        /* of frames */
    uint64_t table;        /* offset of its first entry */
    uint64_t *checkpoints; /* offset of each CHECKPOINT_FRAMES-th frame */
    uint8_t entries[CHECKPOINT_FRAMES * ZST_ENTRY_BYTES];
    uint64_t loaded; /* the checkpoint that entries belong to; NO_FRAME: none */
    uint64_t cached; /* the frame that plain holds; NO_FRAME: none */
    uint8_t *frame;
    uint8_t *plain;
    ZSTD_DCtx *context;
};

static void zst_close(struct image *image)
{
    struct zst *zst = image->data;

    if (zst == NULL)
        return;
    free(zst->checkpoints);
    free(zst->frame);
    free(zst->plain);
    (void)ZSTD_freeDCtx(zst->context);
    free(zst);
    image->data = NULL;
}

static int read_footer(struct image *image, struct zst *zst, struct error *err)
{
    uint8_t footer[ZST_FOOTER_BYTES];
    uint8_t head[ZST_TABLE_HEAD_BYTES];
    uint64_t bytes;

    if (image->file_bytes < ZST_TABLE_HEAD_BYTES + ZST_FOOTER_BYTES)
        return error_set(err, ERR_CORRUPT, "it is too short for a raw.zst");
    if (image_file_read(image, footer, sizeof footer, image->file_bytes - sizeof footer, err) < 0)
        return -1;
    if (get_le32(footer + 5) != ZST_SEEK_MAGIC)
        return error_set(err, ERR_CORRUPT, "it is not a raw.zst with a seek table, or was cut");
    if (footer[4] != 0)
        return error_set(err, ERR_NOT_AVAILABLE, "its seek table has flags 0x%x", footer[4]);
    zst->count = get_le32(footer);
    bytes = ZST_TABLE_HEAD_BYTES + zst->count * ZST_ENTRY_BYTES + ZST_FOOTER_BYTES;
    if (zst->count == 0 || bytes > image->file_bytes) {
        return error_set(err, ERR_CORRUPT, "its seek table of %" PRIu64 " frames does not fit",
                         zst->count);
    }
    if (zst->count > IMAGE_DISK_BYTES_MAX / ZST_PIECE_BYTES)
        return error_set(err, ERR_LIMIT, "a disk of more than 64 TiB");
    zst->table = image->file_bytes - bytes + ZST_TABLE_HEAD_BYTES;
    if (image_file_read(image, head, sizeof head, zst->table - sizeof head, err) < 0)
        return -1;
    if (get_le32(head) != ZST_TABLE_MAGIC || get_le32(head + 4) != bytes - sizeof head)
        return error_set(err, ERR_CORRUPT, "its seek table does not begin where it should");
    return 0;
}

/* The entries behind the checkpoint. */
static int load_entries(struct image *image, uint64_t checkpoint, struct error *err)
{
    struct zst *zst = image->data;
    uint64_t first = checkpoint * CHECKPOINT_FRAMES;
    size_t count = (size_t)min_u64(CHECKPOINT_FRAMES, zst->count - first);

    if (zst->loaded == checkpoint)
        return 0;
    zst->loaded = NO_FRAME;
    if (image_file_read(image, zst->entries, count * ZST_ENTRY_BYTES,
                        zst->table + first * ZST_ENTRY_BYTES, err) < 0)
        return -1;
    zst->loaded = checkpoint;
    return 0;
}

/* Every entry once: frames follow each other up to the table, and all but the last hold a piece. */
static int read_table(struct image *image, struct error *err)
{
    struct zst *zst = image->data;
    uint64_t offset = 0;

    zst->checkpoints =
        xcalloc((size_t)(zst->count / CHECKPOINT_FRAMES + 1), sizeof *zst->checkpoints);
    for (uint64_t i = 0; i < zst->count; i++) {
        const uint8_t *entry = zst->entries + i % CHECKPOINT_FRAMES * ZST_ENTRY_BYTES;
        uint32_t plain;
        if (load_entries(image, i / CHECKPOINT_FRAMES, err) < 0)
            return -1;
        plain = get_le32(entry + 4);
        if (get_le32(entry) == 0 || get_le32(entry) > ZST_FRAME_BYTES_MAX || plain == 0 ||
            plain > ZST_PIECE_BYTES || (plain < ZST_PIECE_BYTES && i + 1 < zst->count)) {
            return error_set(err, ERR_CORRUPT,
                             "frame %" PRIu64 " of its seek table is not of a raw.zst of ours", i);
        }
        if (i % CHECKPOINT_FRAMES == 0)
            zst->checkpoints[i / CHECKPOINT_FRAMES] = offset;
        offset += get_le32(entry);
        image->size_bytes += plain;
    }
    if (offset != zst->table - ZST_TABLE_HEAD_BYTES)
        return error_set(err, ERR_CORRUPT, "its frames do not fill the file up to the seek table");
    return 0;
}

static int zst_open(struct image *image, struct error *err)
{
    struct zst *zst = xcalloc(1, sizeof *zst);

    image->data = zst;
    zst->loaded = NO_FRAME;
    zst->cached = NO_FRAME;
    if (read_footer(image, zst, err) < 0 || read_table(image, err) < 0)
        return -1;
    zst->frame = xmalloc(ZST_FRAME_BYTES_MAX);
    zst->plain = xmalloc(ZST_PIECE_BYTES);
    zst->context = ZSTD_createDCtx();
    if (zst->context == NULL)
        abort(); /* out of memory */
    return 0;
}

static int load_frame(struct image *image, uint64_t index, struct error *err)
{
    struct zst *zst = image->data;
    const uint8_t *entry = zst->entries;
    uint64_t offset;
    size_t size;
    size_t got;

    if (zst->cached == index)
        return 0;
    zst->cached = NO_FRAME;
    if (load_entries(image, index / CHECKPOINT_FRAMES, err) < 0)
        return -1;
    offset = zst->checkpoints[index / CHECKPOINT_FRAMES];
    for (uint64_t i = 0; i < index % CHECKPOINT_FRAMES; i++, entry += ZST_ENTRY_BYTES)
        offset += get_le32(entry);
    size = get_le32(entry);
    if (size > ZST_FRAME_BYTES_MAX) /* the file changed since it was opened */
        return error_set(err, ERR_CORRUPT, "frame %" PRIu64 " is too long", index);
    if (image_file_read(image, zst->frame, size, offset, err) < 0)
        return -1;
    /* The whole frame at once: no window is allocated, however large it says it needs one. */
    got = ZSTD_decompressDCtx(zst->context, zst->plain, ZST_PIECE_BYTES, zst->frame, size);
    if (ZSTD_isError(got) || got != get_le32(entry + 4)) {
        return error_set(err, ERR_CORRUPT, "the MiB at offset %" PRIu64 " is damaged: %s",
                         index * (uint64_t)ZST_PIECE_BYTES,
                         ZSTD_isError(got) ? ZSTD_getErrorName(got) : "wrong length");
    }
    zst->cached = index;
    return 0;
}

static int zst_read(struct image *image, uint8_t *out, size_t length, uint64_t offset,
                    struct error *err)
{
    const struct zst *zst = image->data;

    while (length > 0) {
        size_t inside = (size_t)(offset % ZST_PIECE_BYTES);
        size_t n = (size_t)min_u64(length, ZST_PIECE_BYTES - inside);
        if (load_frame(image, offset / ZST_PIECE_BYTES, err) < 0)
            return -1;
        memcpy(out, zst->plain + inside, n);
        out += n;
        offset += n;
        length -= n;
    }
    return 0;
}

static bool zst_is_hole(struct image *image, uint64_t offset, uint64_t length)
{
    (void)image, (void)offset, (void)length;
    return false; /* zeros are frames like others */
}

const struct image_ops image_zst = {
    .format = "raw.zst",
    .open = zst_open,
    .read = zst_read,
    .is_hole = zst_is_hole,
    .close = zst_close,
};
