/* See qcow2_tables.h. */
#include "services/exporter/formats/qcow2_tables.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/qcow2.h"

#define REFCOUNT_ORDER      4 /* 16 bits */
#define REFCOUNT_MAX        UINT16_MAX
#define REFCOUNTS_PER_BLOCK (QCOW2_CLUSTER_BYTES / 2)
#define WINDOW_BLOCKS       512U /* counted at a time: 32 MiB of memory for 1 TiB of file */
#define INDEX_MAGIC         UINT64_C(0x4853444b51495831) /* "HSDKQIX1" */

uint64_t qcow2_l2_count(uint64_t size_bytes)
{
    return round_up_u64(size_bytes, QCOW2_L2_SPAN_BYTES) / QCOW2_L2_SPAN_BYTES;
}

/* ---- the index ---- */

static uint64_t index_bytes(const struct qcow2_index *index)
{
    return qcow2_index_offset(qcow2_l2_count(index->size_bytes) * QCOW2_L2_ENTRIES);
}

int qcow2_index_create(const struct qcow2_index *index, struct error *err)
{
    uint8_t header[4096] = {0};

    put_be64(header, INDEX_MAGIC);
    put_be64(header + 8, index->size_bytes);
    if (pwrite_all(index->fd, header, sizeof header, 0) < 0 ||
        ftruncate(index->fd, (off_t)index_bytes(index)) < 0)
        return error_set_errno(err, errno, "cannot write '%.256s'", index->path);
    return 0;
}

int qcow2_index_check(const struct qcow2_index *index, struct error *err)
{
    uint8_t header[16];
    struct stat st;

    if (fstat(index->fd, &st) < 0 || pread_all(index->fd, header, sizeof header, 0) < 0)
        return error_set_errno(err, errno, "cannot read '%.256s'", index->path);
    if (get_be64(header) != INDEX_MAGIC || get_be64(header + 8) != index->size_bytes ||
        (uint64_t)st.st_size != index_bytes(index)) {
        return error_set(err, ERR_CORRUPT, "'%.256s' belongs to another image: start over",
                         index->path);
    }
    return 0;
}

static int read_block(const struct qcow2_image *image, uint64_t table, uint8_t *block,
                      struct error *err)
{
    if (pread_all(image->index.fd, block, QCOW2_CLUSTER_BYTES,
                  qcow2_index_offset(table * QCOW2_L2_ENTRIES)) < 0)
        return error_set_errno(err, errno, "cannot read '%.256s'", image->index.path);
    return 0;
}

/* ---- tables ---- */

/* Appends at *pos and moves it. */
static int append(const struct qcow2_image *image, const void *data, size_t size, uint64_t *pos,
                  struct error *err)
{
    if (pwrite_all(image->fd, data, size, *pos) < 0)
        return error_set_errno(err, errno, "cannot write qcow2 image at offset %" PRIu64, *pos);
    if (image->writeback != NULL)
        writeback_wrote(image->writeback, *pos, size);
    *pos += size;
    return 0;
}

static int write_l2_tables(const struct qcow2_image *image, uint8_t *l1, uint64_t *pos,
                           struct error *err)
{
    autofree uint8_t *block = xmalloc(QCOW2_CLUSTER_BYTES);

    for (uint64_t i = 0; i < qcow2_l2_count(image->index.size_bytes); i++) {
        if (read_block(image, i, block, err) < 0)
            return -1;
        if (mem_is_zero(block, QCOW2_CLUSTER_BYTES))
            continue;
        put_be64(l1 + 8 * i, *pos | QCOW2_COPIED);
        if (append(image, block, QCOW2_CLUSTER_BYTES, pos, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- refcounts ---- */

struct window {
    uint16_t *counts; /* of host clusters [first, first + size) */
    uint64_t first;
    uint64_t size;
};

static int count_entry(const struct window *window, uint64_t entry, struct error *err)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    uint64_t length = QCOW2_CLUSTER_BYTES;

    if ((entry & QCOW2_COMPRESSED) != 0) {
        qcow2_packed_range(entry, QCOW2_CLUSTER_BITS, &offset, &length);
    } else if (offset == 0) {
        return 0;
    }
    for (uint64_t i = offset / QCOW2_CLUSTER_BYTES;
         i <= (offset + length - 1) / QCOW2_CLUSTER_BYTES; i++) {
        if (i < window->first || i - window->first >= window->size)
            continue;
        if (window->counts[i - window->first] == REFCOUNT_MAX)
            return error_set(err, ERR_CORRUPT, "host cluster %" PRIu64 " is used too often", i);
        window->counts[i - window->first]++;
    }
    return 0;
}

/* How often the index names each host cluster of the window; tables and header are used once. */
static int count_window(const struct qcow2_image *image, struct window *window, struct error *err)
{
    autofree uint8_t *block = xmalloc(QCOW2_CLUSTER_BYTES);
    uint64_t end = image->end / QCOW2_CLUSTER_BYTES;

    for (uint64_t i = 0; i < window->size; i++) {
        uint64_t cluster = window->first + i;
        window->counts[i] = !image->counted || cluster == 0 || cluster >= end;
    }
    if (!image->counted || window->first >= end)
        return 0;
    for (uint64_t i = 0; i < qcow2_l2_count(image->index.size_bytes); i++) {
        if (read_block(image, i, block, err) < 0)
            return -1;
        for (size_t k = 0; k < QCOW2_L2_ENTRIES; k++) {
            if (count_entry(window, get_be64(block + 8 * k), err) < 0)
                return -1;
        }
    }
    return 0;
}

/* How many blocks, and clusters of their table, cover `before` clusters and themselves. */
static void size_refcounts(uint64_t before, uint64_t *out_blocks, uint64_t *out_table)
{
    uint64_t blocks = 1;
    uint64_t table = 1;

    for (;;) { /* grows, and converges since a block covers 32768 clusters */
        uint64_t total = before + blocks + table;
        uint64_t blocks_wanted = (total + REFCOUNTS_PER_BLOCK - 1) / REFCOUNTS_PER_BLOCK;
        uint64_t table_wanted = (blocks_wanted * 8 + QCOW2_CLUSTER_BYTES - 1) / QCOW2_CLUSTER_BYTES;
        if (blocks_wanted <= blocks && table_wanted <= table)
            break;
        blocks = max_u64(blocks, blocks_wanted);
        table = max_u64(table, table_wanted);
    }
    *out_blocks = blocks;
    *out_table = table;
}

static int write_refcounts(const struct qcow2_image *image, uint64_t *pos, uint64_t *out_table,
                           uint64_t *out_table_clusters, struct error *err)
{
    uint64_t blocks = 0;
    uint64_t total;
    autofree uint8_t *table = NULL;
    autofree uint8_t *block = xmalloc(QCOW2_CLUSTER_BYTES);
    autofree uint16_t *counts = NULL;
    struct window window = {0};

    size_refcounts(*pos / QCOW2_CLUSTER_BYTES, &blocks, out_table_clusters);
    total = *pos / QCOW2_CLUSTER_BYTES + blocks + *out_table_clusters;
    table = xcalloc(*out_table_clusters, QCOW2_CLUSTER_BYTES);
    counts = xcalloc(min_u64(total, WINDOW_BLOCKS * REFCOUNTS_PER_BLOCK), sizeof *counts);
    window.counts = counts;
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t first = i * REFCOUNTS_PER_BLOCK;
        if (i % WINDOW_BLOCKS == 0) {
            window.first = first;
            window.size = min_u64(total - first, WINDOW_BLOCKS * REFCOUNTS_PER_BLOCK);
            if (count_window(image, &window, err) < 0)
                return -1;
        }
        memset(block, 0, QCOW2_CLUSTER_BYTES);
        for (uint64_t j = 0; j < REFCOUNTS_PER_BLOCK && first + j < total; j++)
            put_be16(block + 2 * j, window.counts[first + j - window.first]);
        put_be64(table + 8 * i, *pos);
        if (append(image, block, QCOW2_CLUSTER_BYTES, pos, err) < 0)
            return -1;
    }
    *out_table = *pos;
    return append(image, table, (size_t)(*out_table_clusters * QCOW2_CLUSTER_BYTES), pos, err);
}

/* ---- header ---- */

/* Extensions and the name of the backing file behind the header; returns the end. */
static size_t put_backing(uint8_t *area, size_t at, const char *backing)
{
    static const char format[] = {'q', 'c', 'o', 'w', '2'}; /* no NUL in the file */
    size_t length = strlen(backing);

    put_be32(area + at, QCOW2_EXT_BACKING_FORMAT);
    put_be32(area + at + 4, sizeof format);
    memcpy(area + at + 8, format, sizeof format);
    at += 16;
    put_be32(area + at, QCOW2_EXT_END);
    at += 8;
    put_be64(area + QCOW2_AT_BACKING_OFFSET, at);
    put_be32(area + QCOW2_AT_BACKING_SIZE, (uint32_t)length);
    memcpy(area + at, backing, length);
    return at + length;
}

static int write_header(const struct qcow2_image *image, uint64_t l1_offset, uint64_t table,
                        uint64_t table_clusters, struct error *err)
{
    uint8_t area[QCOW2_HEADER_CODEC_BYTES + 24 + QCOW2_BACKING_BYTES_MAX] = {0};
    bool zstd = image->packed && image->codec == QCOW2_CODEC_ZSTD;
    size_t length = zstd ? QCOW2_HEADER_CODEC_BYTES : QCOW2_HEADER_V3_BYTES;
    size_t end = length + 8; /* 8: end of the header extensions */

    put_be32(area + QCOW2_AT_MAGIC, QCOW2_MAGIC);
    put_be32(area + QCOW2_AT_VERSION, 3);
    put_be32(area + QCOW2_AT_CLUSTER_BITS, QCOW2_CLUSTER_BITS);
    put_be64(area + QCOW2_AT_SIZE, image->index.size_bytes);
    put_be32(area + QCOW2_AT_L1_SIZE, (uint32_t)qcow2_l2_count(image->index.size_bytes));
    put_be64(area + QCOW2_AT_L1_OFFSET, l1_offset);
    put_be64(area + QCOW2_AT_REFTABLE_OFFSET, table);
    put_be32(area + QCOW2_AT_REFTABLE_CLUSTERS, (uint32_t)table_clusters);
    put_be32(area + QCOW2_AT_REFCOUNT_ORDER, REFCOUNT_ORDER);
    put_be32(area + QCOW2_AT_HEADER_LENGTH, (uint32_t)length);
    if (zstd) {
        put_be64(area + QCOW2_AT_INCOMPATIBLE, QCOW2_INCOMPAT_CODEC);
        area[QCOW2_AT_CODEC] = QCOW2_CODEC_ZSTD;
    }
    if (image->backing != NULL)
        end = put_backing(area, length, image->backing);
    if (pwrite_all(image->fd, area, end, 0) < 0)
        return error_set_errno(err, errno, "cannot write the qcow2 header");
    return 0;
}

int qcow2_tables_write(const struct qcow2_image *image, struct error *err)
{
    uint64_t pos = image->end;
    uint64_t l1_bytes =
        round_up_u64(qcow2_l2_count(image->index.size_bytes) * 8, QCOW2_CLUSTER_BYTES);
    autofree uint8_t *l1 = xcalloc(1, l1_bytes);
    uint64_t l1_offset;
    uint64_t table = 0;
    uint64_t table_clusters = 0;

    assert(image->end % QCOW2_CLUSTER_BYTES == 0 && image->end > 0);
    if (write_l2_tables(image, l1, &pos, err) < 0)
        return -1;
    l1_offset = pos;
    if (append(image, l1, l1_bytes, &pos, err) < 0 ||
        write_refcounts(image, &pos, &table, &table_clusters, err) < 0)
        return -1;
    if (fdatasync(image->fd) < 0)
        return error_set_errno(err, errno, "cannot sync qcow2 image");
    if (write_header(image, l1_offset, table, table_clusters, err) < 0)
        return -1;
    if (fsync(image->fd) < 0)
        return error_set_errno(err, errno, "cannot sync qcow2 image");
    return 0;
}
