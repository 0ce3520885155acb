/* Reading VMDKs. Sparse extents in one file are read here: streamOptimized (grain directory behind
 * the data, found through the footer; or in front, as some writers do) and monolithicSparse. Deltas
 * are refused. A descriptor in a file of its own: image_vmdk_extents.c.
 *
 * Nothing in the file is believed: the directory is bounded before it is read, tables and grains
 * must lie inside the file, and a compressed grain must carry its own place on the disk and inflate
 * to exactly one grain. */
#include <inttypes.h>
#include <libdeflate.h>
#include <string.h>

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/image_impl.h"
#include "services/exporter/formats/vmdk.h"

#define FOOTER_FROM_END 1024U /* footer, then the end-of-stream marker */
#define TABLES          16U
#define NONE            UINT64_MAX

struct table {
    uint64_t index; /* in the directory; NONE: empty */
    uint64_t used;  /* when */
    uint8_t *bytes;
};

struct vmdk {
    bool compressed;
    bool zero_grains;
    uint64_t grain_bytes;
    uint64_t table_entries;
    uint64_t directory_count;
    uint8_t *directory;
    struct table tables[TABLES];
    uint64_t clock;
    struct libdeflate_decompressor *inflate;
    uint8_t *packed;
    uint8_t *unpacked; /* the last grain of which a part was read */
    uint64_t unpacked_grain;
};

static void vmdk_close(struct image *image)
{
    struct vmdk *v = image->data;

    if (v == NULL)
        return;
    for (size_t i = 0; i < TABLES; i++)
        free(v->tables[i].bytes);
    libdeflate_free_decompressor(v->inflate);
    free(v->directory);
    free(v->packed);
    free(v->unpacked);
    free(v);
}

/* ---- header ---- */

/* A descriptor that is a file of its own begins with this line. */
static bool is_descriptor(const struct image *image)
{
    static const char start[] = "# Disk DescriptorFile";
    char line[sizeof start - 1];
    struct error none = ERROR_NONE;

    return image_file_read(image, line, sizeof line, 0, &none) == 0 &&
           memcmp(line, start, sizeof line) == 0;
}

/* A disk of its own, not a delta? */
static int check_descriptor(const struct image *image, const uint8_t *header, struct error *err)
{
    uint64_t offset = get_le64(header + VMDK_AT_DESCRIPTOR_OFFSET);
    uint64_t size = get_le64(header + VMDK_AT_DESCRIPTOR_SIZE);
    autofree char *text = NULL;

    if (offset == 0 || size == 0 || size > VMDK_DESCRIPTOR_BYTES_MAX / VMDK_SECTOR ||
        offset > INT64_MAX / VMDK_SECTOR)
        return error_set(err, ERR_CORRUPT, "it has no descriptor of its own");
    text = xcalloc(1, (size_t)(size * VMDK_SECTOR) + 1);
    if (image_file_read(image, text, (size_t)(size * VMDK_SECTOR), offset * VMDK_SECTOR, err) < 0)
        return error_wrap(err, "descriptor");
    return vmdk_descriptor_check(text, err);
}

/* The header that names the directory: the first, or the footer. */
static int read_headers(const struct image *image, uint8_t *header, struct error *err)
{
    uint8_t footer[VMDK_SECTOR];

    if (image->file_bytes < VMDK_SECTOR)
        return error_set(err, ERR_CORRUPT, "it is too short for a VMDK");
    if (image_file_read(image, header, VMDK_SECTOR, 0, err) < 0 ||
        vmdk_header_check(header, "header", err) < 0 ||
        (image->above == NULL && check_descriptor(image, header, err) < 0))
        return -1;
    if (get_le64(header + VMDK_AT_GD_OFFSET) != VMDK_GD_AT_END)
        return 0;
    if (image->file_bytes < FOOTER_FROM_END + VMDK_SECTOR)
        return error_set(err, ERR_CORRUPT, "it has no footer: it is cut");
    if (image_file_read(image, footer, sizeof footer, image->file_bytes - FOOTER_FROM_END, err) < 0)
        return -1;
    if (vmdk_header_check(footer, "footer", err) < 0)
        return error_wrap(err, "it is cut or unfinished");
    if (get_le64(footer + VMDK_AT_CAPACITY) != get_le64(header + VMDK_AT_CAPACITY))
        return error_set(err, ERR_CORRUPT, "header and footer name different sizes");
    memcpy(header, footer, sizeof footer);
    return 0;
}

static int read_directory(struct image *image, uint64_t sector, struct error *err)
{
    struct vmdk *v = image->data;
    uint64_t span = v->grain_bytes * v->table_entries; /* at most 2^32 */
    uint64_t count = image->size_bytes / span + (image->size_bytes % span != 0);

    if (count * 4 > VMDK_DIRECTORY_BYTES_MAX)
        return error_set(err, ERR_LIMIT, "its directory would have %" PRIu64 " entries", count);
    if (sector > INT64_MAX / VMDK_SECTOR ||
        !range_is_inside(sector * VMDK_SECTOR, count * 4, image->file_bytes))
        return error_set(err, ERR_CORRUPT, "its grain directory lies outside of the file");
    v->directory_count = count;
    v->directory = xmalloc(count * 4 + 1);
    return image_file_read(image, v->directory, count * 4, sector * VMDK_SECTOR, err);
}

static int vmdk_open(struct image *image, struct error *err)
{
    uint8_t header[VMDK_SECTOR];
    uint32_t flags;
    struct vmdk *v;

    if (is_descriptor(image)) {
        image->ops = &image_vmdk_extents;
        return image->ops->open(image, err);
    }
    if (read_headers(image, header, err) < 0)
        return -1;
    flags = get_le32(header + VMDK_AT_FLAGS);
    if ((flags & VMDK_FLAG_COMPRESSED) != 0 &&
        get_le16(header + VMDK_AT_COMPRESSION) != VMDK_COMPRESS_DEFLATE)
        return error_set(err, ERR_NOT_AVAILABLE, "its compression is unknown");
    v = xcalloc(1, sizeof *v);
    image->data = v;
    image->size_bytes = get_le64(header + VMDK_AT_CAPACITY) * VMDK_SECTOR;
    v->compressed = (flags & VMDK_FLAG_COMPRESSED) != 0;
    v->zero_grains = (flags & VMDK_FLAG_ZERO_GRAINS) != 0;
    v->grain_bytes = get_le64(header + VMDK_AT_GRAIN_SIZE) * VMDK_SECTOR;
    v->table_entries = get_le32(header + VMDK_AT_TABLE_ENTRIES);
    v->unpacked_grain = NONE;
    for (size_t i = 0; i < TABLES; i++)
        v->tables[i].index = NONE;
    v->inflate = libdeflate_alloc_decompressor();
    if (v->inflate == NULL)
        abort(); /* out of memory, as in xmalloc */
    v->packed = xmalloc(VMDK_PACKED_BYTES_MAX(v->grain_bytes));
    v->unpacked = xmalloc(v->grain_bytes);
    return read_directory(image, get_le64(header + VMDK_AT_GD_OFFSET), err);
}

/* ---- tables ---- */

static int table_get(struct image *image, uint64_t index, const uint8_t **out, struct error *err)
{
    struct vmdk *v = image->data;
    uint64_t offset = get_le32(v->directory + 4 * index) * VMDK_SECTOR;
    struct table *oldest = &v->tables[0];

    *out = NULL;
    if (offset == 0)
        return 0;
    for (size_t i = 0; i < TABLES; i++) {
        struct table *table = &v->tables[i];
        if (table->index == index) {
            table->used = ++v->clock;
            *out = table->bytes;
            return 0;
        }
        if (table->used < oldest->used)
            oldest = table;
    }
    if (oldest->bytes == NULL)
        oldest->bytes = xmalloc(v->table_entries * 4);
    oldest->index = NONE;
    if (image_file_read(image, oldest->bytes, v->table_entries * 4, offset, err) < 0)
        return error_wrap(err, "grain table %" PRIu64, index);
    oldest->index = index;
    oldest->used = ++v->clock;
    *out = oldest->bytes;
    return 0;
}

/* File offset of the grain; 0: it is all zeros. */
static int grain_find(struct image *image, uint64_t grain, uint64_t *out, struct error *err)
{
    struct vmdk *v = image->data;
    const uint8_t *table = NULL;
    uint32_t sector;

    *out = 0;
    assert(grain / v->table_entries < v->directory_count);
    if (table_get(image, grain / v->table_entries, &table, err) < 0)
        return -1;
    if (table == NULL)
        return 0;
    sector = get_le32(table + 4 * (grain % v->table_entries));
    if (v->zero_grains && sector == VMDK_GRAIN_ZERO)
        return 0;
    *out = sector * VMDK_SECTOR;
    return 0;
}

/* ---- reading ---- */

/* Inflates the record of the grain at that file offset into out, which has room for one. */
static int inflate_record(struct image *image, uint64_t grain, uint64_t offset, uint8_t *out,
                          struct error *err)
{
    struct vmdk *v = image->data;
    uint8_t head[VMDK_RECORD_HEADER];
    uint32_t size;
    size_t got = 0;

    if (image_file_read(image, head, sizeof head, offset, err) < 0)
        return -1;
    size = get_le32(head + 8);
    if (get_le64(head) != grain * (v->grain_bytes / VMDK_SECTOR)) {
        return error_set(err, ERR_CORRUPT,
                         "the grain record at %" PRIu64 " is that of sector %" PRIu64, offset,
                         get_le64(head));
    }
    if (size == 0 || size > VMDK_PACKED_BYTES_MAX(v->grain_bytes)) {
        return error_set(err, ERR_CORRUPT, "the grain record at %" PRIu64 " has %" PRIu32 " bytes",
                         offset, size);
    }
    if (image_file_read(image, v->packed, size, offset + VMDK_RECORD_HEADER, err) < 0)
        return -1;
    if (libdeflate_zlib_decompress(v->inflate, v->packed, size, out, (size_t)v->grain_bytes,
                                   &got) != LIBDEFLATE_SUCCESS) {
        return error_set(err, ERR_CORRUPT, "the grain record at %" PRIu64 " cannot be inflated",
                         offset);
    }
    /* Some writers cut the last grain at the disk's end. */
    if (got != min_u64(v->grain_bytes, image->size_bytes - grain * v->grain_bytes) &&
        got != v->grain_bytes) {
        return error_set(err, ERR_CORRUPT, "the grain record at %" PRIu64 " inflates to %zu bytes",
                         offset, got);
    }
    return 0;
}

/* A part of a grain: the rest is kept, it is often wanted next. */
static int read_part(struct image *image, uint64_t grain, uint64_t offset, struct error *err)
{
    struct vmdk *v = image->data;

    if (v->unpacked_grain == grain)
        return 0;
    v->unpacked_grain = NONE;
    if (inflate_record(image, grain, offset, v->unpacked, err) < 0)
        return -1;
    v->unpacked_grain = grain;
    return 0;
}

static int read_grain(struct image *image, uint8_t *out, size_t length, uint64_t grain,
                      uint64_t inside, struct error *err)
{
    struct vmdk *v = image->data;
    uint64_t offset = 0;

    if (grain_find(image, grain, &offset, err) < 0)
        return -1;
    if (offset == 0) {
        memset(out, 0, length);
        return 0;
    }
    if (!v->compressed)
        return image_file_read(image, out, length, offset + inside, err);
    if (length == v->grain_bytes)
        return inflate_record(image, grain, offset, out, err);
    if (read_part(image, grain, offset, err) < 0)
        return -1;
    memcpy(out, v->unpacked + inside, length);
    return 0;
}

static int vmdk_read(struct image *image, uint8_t *out, size_t length, uint64_t offset,
                     struct error *err)
{
    const struct vmdk *v = image->data;

    while (length > 0) {
        uint64_t inside = offset % v->grain_bytes;
        size_t n = (size_t)min_u64(length, v->grain_bytes - inside);
        if (read_grain(image, out, n, offset / v->grain_bytes, inside, err) < 0)
            return error_wrap(err, "disk offset %" PRIu64, offset);
        out += n;
        offset += n;
        length -= n;
    }
    return 0;
}

static bool vmdk_is_hole(struct image *image, uint64_t offset, uint64_t length)
{
    const struct vmdk *v = image->data;

    for (uint64_t end = offset + length; offset < end;) {
        struct error ignored = ERROR_NONE;
        uint64_t where = 0;
        if (grain_find(image, offset / v->grain_bytes, &where, &ignored) < 0 || where != 0)
            return false;
        offset = (offset / v->grain_bytes + 1) * v->grain_bytes;
    }
    return true;
}

const struct image_ops image_vmdk = {
    .format = "vmdk",
    .open = vmdk_open,
    .read = vmdk_read,
    .is_hole = vmdk_is_hole,
    .close = vmdk_close,
};
