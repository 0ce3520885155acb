/* Reading qcow2, versions 2 and 3, any cluster size, compressed clusters, backing files; no
 * encryption, no external data file, no subclusters.
 *
 * Nothing in the file is believed: the L1 table is bounded before it is read, every table and
 * cluster must be aligned and lie inside the file. Two entries may name the same cluster: that is
 * what snapshots look like, and reading it does no harm. */
#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/image_impl.h"
#include "services/exporter/formats/qcow2.h"
#include "services/exporter/formats/qcow2_codec.h"

#define CLUSTER_BITS_MIN  9U
#define CLUSTER_BITS_MAX  21U
#define L1_BYTES_MAX      (32 * MIB) /* QEMU's own limit */
#define TABLES            8U         /* L2 tables in memory: at most 16 MiB */
#define HEADER_BYTES_READ 112U
#define NONE              UINT64_MAX

struct table {
    uint64_t index; /* in L1; NONE: empty */
    uint64_t used;  /* when */
    uint8_t *bytes;
};

struct qcow2 {
    unsigned int cluster_bits;
    uint64_t cluster_bytes;
    uint64_t l1_size;
    uint8_t *l1;
    struct table tables[TABLES];
    uint64_t clock;
    enum qcow2_codec codec;
    struct qcow2_unpacker *unpacker;
    uint8_t *packed;   /* compressed bytes */
    uint8_t *unpacked; /* the last compressed cluster */
    uint64_t unpacked_cluster;
};

static void qcow2_close(struct image *image)
{
    struct qcow2 *q = image->data;

    if (q == NULL)
        return;
    for (size_t i = 0; i < TABLES; i++)
        free(q->tables[i].bytes);
    qcow2_unpacker_free(q->unpacker);
    free(q->l1);
    free(q->packed);
    free(q->unpacked);
    free(q);
}

/* ---- header ---- */

static unsigned int codec_of(const uint8_t *header, uint32_t version)
{
    if (version == 2 || (get_be64(header + QCOW2_AT_INCOMPATIBLE) & QCOW2_INCOMPAT_CODEC) == 0)
        return QCOW2_CODEC_ZLIB;
    return get_be32(header + QCOW2_AT_HEADER_LENGTH) <= QCOW2_AT_CODEC ? UINT_MAX
                                                                       : header[QCOW2_AT_CODEC];
}

static int check_features(const uint8_t *header, uint32_t version, struct error *err)
{
    uint64_t known = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_DATA_FILE |
                     QCOW2_INCOMPAT_CODEC | QCOW2_INCOMPAT_EXT_L2;
    uint64_t features = version == 2 ? 0 : get_be64(header + QCOW2_AT_INCOMPATIBLE);

    if (get_be32(header + QCOW2_AT_CRYPT_METHOD) != 0)
        return error_set(err, ERR_NOT_AVAILABLE, "it is encrypted");
    if ((features & QCOW2_INCOMPAT_CORRUPT) != 0)
        return error_set(err, ERR_CORRUPT, "its header says that it is corrupt");
    if ((features & QCOW2_INCOMPAT_DATA_FILE) != 0)
        return error_set(err, ERR_NOT_AVAILABLE, "its data lies in another file");
    if ((features & QCOW2_INCOMPAT_EXT_L2) != 0)
        return error_set(err, ERR_NOT_AVAILABLE, "it has subclusters");
    if (codec_of(header, version) > QCOW2_CODEC_ZSTD)
        return error_set(err, ERR_NOT_AVAILABLE, "its clusters are compressed in an unknown way");
    if ((features & ~known) != 0) {
        return error_set(err, ERR_NOT_AVAILABLE, "it has unknown features (0x%" PRIx64 ")",
                         features & ~known);
    }
    return 0;
}

static int read_header(const struct image *image, uint8_t *header, struct error *err)
{
    size_t size = (size_t)min_u64(HEADER_BYTES_READ, image->file_bytes);
    uint32_t version;

    memset(header, 0, HEADER_BYTES_READ);
    if (size < QCOW2_HEADER_V2_BYTES)
        return error_set(err, ERR_CORRUPT, "it is too short for a qcow2 image");
    if (image_file_read(image, header, size, 0, err) < 0)
        return -1;
    version = get_be32(header + QCOW2_AT_VERSION);
    if (get_be32(header + QCOW2_AT_MAGIC) != QCOW2_MAGIC)
        return error_set(err, ERR_CORRUPT, "it is not a qcow2 image");
    if (version != 2 && version != 3)
        return error_set(err, ERR_NOT_AVAILABLE, "qcow2 version %" PRIu32 " is unknown", version);
    if (version == 3 && (size < QCOW2_HEADER_V3_BYTES ||
                         get_be32(header + QCOW2_AT_HEADER_LENGTH) < QCOW2_HEADER_V3_BYTES))
        return error_set(err, ERR_CORRUPT, "its header is cut");
    return check_features(header, version, err);
}

static int read_l1(struct image *image, const uint8_t *header, struct error *err)
{
    struct qcow2 *q = image->data;
    uint64_t offset = get_be64(header + QCOW2_AT_L1_OFFSET);
    uint64_t entries = get_be32(header + QCOW2_AT_L1_SIZE);
    uint64_t span = q->cluster_bytes / 8 * q->cluster_bytes; /* at most 2^39 */
    uint64_t needed = image->size_bytes / span + (image->size_bytes % span != 0);

    if (entries < needed || needed * 8 > L1_BYTES_MAX) {
        return error_set(err, entries < needed ? ERR_CORRUPT : ERR_LIMIT,
                         "its L1 table of %" PRIu64 " entries does not fit its size of %" PRIu64,
                         entries, image->size_bytes);
    }
    if (offset % q->cluster_bytes != 0)
        return error_set(err, ERR_CORRUPT, "its L1 table lies at %" PRIu64, offset);
    if (!range_is_inside(offset, needed * 8, image->file_bytes))
        return error_set(err, ERR_CORRUPT, "its L1 table lies outside of the file");
    q->l1_size = needed;
    q->l1 = xmalloc(needed * 8 + 1);
    return image_file_read(image, q->l1, needed * 8, offset, err);
}

/* ---- the backing file ---- */

/* The backing format among the header extensions in [at, end) of area; "" if it is not there. */
static int backing_format(const uint8_t *area, uint64_t at, uint64_t end, char out[16],
                          struct error *err)
{
    out[0] = '\0';
    while (end - at >= 8) {
        uint32_t type = get_be32(area + at);
        uint64_t length = get_be32(area + at + 4);
        at += 8;
        if (type == QCOW2_EXT_END)
            return 0;
        if (length > end - at)
            return error_set(err, ERR_CORRUPT, "its header extensions are cut");
        if (type == QCOW2_EXT_BACKING_FORMAT) {
            if (length == 0 || length > 15 || memchr(area + at, '\0', length) != NULL)
                return error_set(err, ERR_CORRUPT, "the format of its backing file is no name");
            memcpy(out, area + at, length);
            out[length] = '\0';
            return 0;
        }
        at = min_u64(round_up_u64(at + length, 8), end);
    }
    return 0;
}

static int backing_check(const struct image *image, const char *format, struct error *err)
{
    if (format[0] == '\0') {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "it does not say which format its backing file has: set it with "
                         "'qemu-img rebase -u -F qcow2 -b ... %.200s'",
                         image->path);
    }
    if (strcmp(format, "qcow2") != 0 && strcmp(format, "raw") != 0)
        return error_set(err, ERR_NOT_AVAILABLE, "its backing file has the format '%.15s'", format);
    return 0;
}

static int open_backing(struct image *image, const uint8_t *header, struct error *err)
{
    const struct qcow2 *q = image->data;
    uint64_t offset = get_be64(header + QCOW2_AT_BACKING_OFFSET);
    uint64_t length = get_be32(header + QCOW2_AT_BACKING_SIZE);
    uint64_t first = get_be32(header + QCOW2_AT_VERSION) == 2
                         ? QCOW2_HEADER_V2_BYTES
                         : get_be32(header + QCOW2_AT_HEADER_LENGTH);
    uint64_t area_bytes = min_u64(q->cluster_bytes, image->file_bytes);
    autofree uint8_t *area = NULL;
    autofree char *name = NULL;
    char format[16];

    if (offset == 0 || length == 0)
        return 0;
    if (length > QCOW2_BACKING_BYTES_MAX || first > offset ||
        !range_is_inside(offset, length, area_bytes))
        return error_set(err, ERR_CORRUPT, "the name of its backing file lies outside of its head");
    area = xmalloc(area_bytes);
    if (image_file_read(image, area, area_bytes, 0, err) < 0 ||
        backing_format(area, first, offset, format, err) < 0)
        return -1;
    if (memchr(area + offset, '\0', length) != NULL)
        return error_set(err, ERR_CORRUPT, "the name of its backing file is none");
    if (backing_check(image, format, err) < 0)
        return -1;
    name = xstrndup((const char *)area + offset, length);
    return image_open_backing(image, name, format, err);
}

static int qcow2_open(struct image *image, struct error *err)
{
    uint8_t header[HEADER_BYTES_READ];
    uint32_t bits;
    struct qcow2 *q;

    if (read_header(image, header, err) < 0)
        return -1;
    bits = get_be32(header + QCOW2_AT_CLUSTER_BITS);
    if (bits < CLUSTER_BITS_MIN || bits > CLUSTER_BITS_MAX)
        return error_set(err, ERR_CORRUPT, "its clusters have 2^%" PRIu32 " bytes", bits);
    if (get_be64(header + QCOW2_AT_SIZE) > IMAGE_DISK_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "a disk of %" PRIu64 " bytes is over the limit of 64 TiB",
                         get_be64(header + QCOW2_AT_SIZE));
    }
    q = xcalloc(1, sizeof *q);
    image->data = q;
    image->size_bytes = get_be64(header + QCOW2_AT_SIZE);
    q->cluster_bits = bits;
    q->cluster_bytes = UINT64_C(1) << bits;
    q->codec = codec_of(header, get_be32(header + QCOW2_AT_VERSION));
    q->unpacked_cluster = NONE;
    for (size_t i = 0; i < TABLES; i++)
        q->tables[i].index = NONE;
    if (read_l1(image, header, err) < 0)
        return -1;
    return open_backing(image, header, err);
}

/* ---- tables ---- */

/* The table of this L1 entry; NULL in *out when it has none. */
static int table_get(struct image *image, uint64_t index, const uint8_t **out, struct error *err)
{
    struct qcow2 *q = image->data;
    uint64_t offset = get_be64(q->l1 + 8 * index) & QCOW2_OFFSET_MASK;
    struct table *oldest = &q->tables[0];

    *out = NULL;
    if (offset == 0)
        return 0;
    for (size_t i = 0; i < TABLES; i++) {
        struct table *table = &q->tables[i];
        if (table->index == index) {
            table->used = ++q->clock;
            *out = table->bytes;
            return 0;
        }
        if (table->used < oldest->used)
            oldest = table;
    }
    if (offset % q->cluster_bytes != 0)
        return error_set(err, ERR_CORRUPT, "L2 table %" PRIu64 " lies at %" PRIu64, index, offset);
    if (oldest->bytes == NULL)
        oldest->bytes = xmalloc(q->cluster_bytes);
    oldest->index = NONE;
    if (image_file_read(image, oldest->bytes, q->cluster_bytes, offset, err) < 0)
        return error_wrap(err, "L2 table %" PRIu64, index);
    oldest->index = index;
    oldest->used = ++q->clock;
    *out = oldest->bytes;
    return 0;
}

int qcow2_cluster_find(struct image *image, uint64_t cluster, struct qcow2_cluster *out,
                       struct error *err)
{
    struct qcow2 *q = image->data;
    uint64_t per_table = q->cluster_bytes / 8;
    const uint8_t *table = NULL;
    uint64_t entry;

    *out = (struct qcow2_cluster){.kind = QCOW2_KIND_NONE};
    assert(cluster / per_table < q->l1_size);
    if (table_get(image, cluster / per_table, &table, err) < 0)
        return -1;
    if (table == NULL)
        return 0;
    entry = get_be64(table + 8 * (cluster % per_table));
    if ((entry & QCOW2_COMPRESSED) != 0) {
        out->kind = QCOW2_KIND_PACKED;
        qcow2_packed_range(entry, q->cluster_bits, &out->offset, &out->length);
        return 0;
    }
    if ((entry & QCOW2_ZERO) != 0) {
        out->kind = QCOW2_KIND_ZERO;
        return 0;
    }
    if ((entry & QCOW2_OFFSET_MASK) == 0)
        return 0;
    out->kind = QCOW2_KIND_DATA;
    out->offset = entry & QCOW2_OFFSET_MASK;
    if (out->offset % q->cluster_bytes != 0) {
        return error_set(err, ERR_CORRUPT, "cluster %" PRIu64 " lies at %" PRIu64, cluster,
                         out->offset);
    }
    return 0;
}

uint64_t qcow2_cluster_bytes(const struct image *image)
{
    const struct qcow2 *q = image->data;

    return q->cluster_bytes;
}

/* ---- reading ---- */

static int unpack(struct image *image, uint64_t cluster, const struct qcow2_cluster *where,
                  struct error *err)
{
    struct qcow2 *q = image->data;
    uint64_t length = where->length;

    if (q->unpacked_cluster == cluster)
        return 0;
    if (where->offset >= image->file_bytes) {
        return error_set(err, ERR_CORRUPT,
                         "compressed cluster %" PRIu64 " lies outside of the file", cluster);
    }
    /* The length is in whole sectors, the last of which the file need not have. */
    length = min_u64(length, image->file_bytes - where->offset);
    if (q->unpacker == NULL) {
        q->unpacker = qcow2_unpacker_new(q->codec);
        q->unpacked = xmalloc(q->cluster_bytes);
        q->packed = xmalloc(2 * q->cluster_bytes + 512); /* more than an entry can say */
    }
    assert(length <= 2 * q->cluster_bytes + 512);
    q->unpacked_cluster = NONE;
    if (image_file_read(image, q->packed, (size_t)length, where->offset, err) < 0)
        return -1;
    if (!qcow2_unpack(q->unpacker, q->packed, (size_t)length, q->unpacked,
                      (size_t)q->cluster_bytes)) {
        return error_set(err, ERR_CORRUPT, "compressed cluster %" PRIu64 " cannot be inflated",
                         cluster);
    }
    q->unpacked_cluster = cluster;
    return 0;
}

static const char backing_text[] = "backing file ";

/* What the chain below has there; nothing below, or behind its end, is zeros. */
static int read_below(struct image *image, uint8_t *out, size_t length, uint64_t offset,
                      struct error *err)
{
    struct image *backing = image->backing;
    size_t n = 0;

    if (backing != NULL && offset < backing->size_bytes)
        n = (size_t)min_u64(length, backing->size_bytes - offset);
    memset(out + n, 0, length - n);
    if (n == 0 || backing->ops->read(backing, out, n, offset, err) == 0)
        return 0;
    /* Of a chain, the one that fails is named. */
    return strstr(err->message, backing_text) != NULL
               ? -1
               : error_wrap(err, "%s'%.200s'", backing_text, backing->path);
}

/* Inside of one cluster. */
static int read_cluster(struct image *image, uint8_t *out, size_t length, uint64_t offset,
                        struct error *err)
{
    struct qcow2 *q = image->data;
    uint64_t cluster = offset >> q->cluster_bits;
    uint64_t inside = offset & (q->cluster_bytes - 1);
    struct qcow2_cluster where;

    if (qcow2_cluster_find(image, cluster, &where, err) < 0)
        return -1;
    switch (where.kind) {
    case QCOW2_KIND_NONE:
        return read_below(image, out, length, offset, err);
    case QCOW2_KIND_ZERO:
        memset(out, 0, length);
        return 0;
    case QCOW2_KIND_DATA:
        return image_file_read(image, out, length, where.offset + inside, err);
    case QCOW2_KIND_PACKED:
        if (unpack(image, cluster, &where, err) < 0)
            return -1;
        memcpy(out, q->unpacked + inside, length);
        return 0;
    }
    return error_set(err, ERR_INTERNAL, "unknown kind of cluster");
}

static int qcow2_read(struct image *image, uint8_t *out, size_t length, uint64_t offset,
                      struct error *err)
{
    const struct qcow2 *q = image->data;

    while (length > 0) {
        uint64_t inside = offset & (q->cluster_bytes - 1);
        size_t n = (size_t)min_u64(length, q->cluster_bytes - inside);
        if (read_cluster(image, out, n, offset, err) < 0) {
            return strstr(err->message, backing_text) != NULL
                       ? -1
                       : error_wrap(err, "disk offset %" PRIu64, offset);
        }
        out += n;
        offset += n;
        length -= n;
    }
    return 0;
}

static bool below_is_hole(struct image *image, uint64_t offset, uint64_t end)
{
    struct image *backing = image->backing;

    if (backing == NULL || offset >= backing->size_bytes)
        return true;
    return image_is_hole(backing, offset, min_u64(end, backing->size_bytes) - offset);
}

static bool qcow2_is_hole(struct image *image, uint64_t offset, uint64_t length)
{
    const struct qcow2 *q = image->data;

    for (uint64_t end = offset + length; offset < end;) {
        uint64_t next = ((offset >> q->cluster_bits) + 1) << q->cluster_bits;
        struct error ignored = ERROR_NONE;
        struct qcow2_cluster where;
        if (qcow2_cluster_find(image, offset >> q->cluster_bits, &where, &ignored) < 0 ||
            where.kind == QCOW2_KIND_DATA || where.kind == QCOW2_KIND_PACKED)
            return false;
        if (where.kind == QCOW2_KIND_NONE && !below_is_hole(image, offset, min_u64(next, end)))
            return false;
        offset = next;
    }
    return true;
}

const struct image_ops image_qcow2 = {
    .format = "qcow2",
    .open = qcow2_open,
    .read = qcow2_read,
    .is_hole = qcow2_is_hole,
    .close = qcow2_close,
};
