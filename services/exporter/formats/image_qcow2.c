/* Reading qcow2, versions 2 and 3, any cluster size, with deflate-compressed clusters; no backing
 * file, no encryption, no external data file, no zstd (its library is not linked), no subclusters.
 *
 * Nothing in the file is believed: the L1 table is bounded before it is read, every table and
 * cluster must be aligned and lie inside the file. Two entries may name the same cluster: that is
 * what snapshots look like, and reading it does no harm. */
#include <inttypes.h>
#include <libdeflate.h>
#include <string.h>

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/image_impl.h"
#include "services/exporter/formats/qcow2.h"

#define CLUSTER_BITS_MIN  9U
#define CLUSTER_BITS_MAX  21U
#define L1_BYTES_MAX      (32 * MIB) /* QEMU's own limit */
#define TABLES            8U         /* L2 tables in memory: at most 16 MiB */
#define CODEC_DEFLATE     0U
#define HEADER_BYTES_READ 112U
#define NONE              UINT64_MAX

enum cluster_kind { CLUSTER_ZERO, CLUSTER_DATA, CLUSTER_COMPRESSED };

struct cluster {
    enum cluster_kind kind;
    uint64_t offset; /* in the file */
    uint64_t length; /* compressed: at most that many bytes */
};

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
    struct libdeflate_decompressor *inflate;
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
    libdeflate_free_decompressor(q->inflate);
    free(q->l1);
    free(q->packed);
    free(q->unpacked);
    free(q);
}

/* ---- header ---- */

static int check_features(const uint8_t *header, uint32_t version, struct error *err)
{
    uint64_t known = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_DATA_FILE |
                     QCOW2_INCOMPAT_CODEC | QCOW2_INCOMPAT_EXT_L2;
    uint64_t features = version == 2 ? 0 : get_be64(header + QCOW2_AT_INCOMPATIBLE);

    if (get_be64(header + QCOW2_AT_BACKING_OFFSET) != 0)
        return error_set(err, ERR_NOT_AVAILABLE, "it has a backing file and cannot be read alone");
    if (get_be32(header + QCOW2_AT_CRYPT_METHOD) != 0)
        return error_set(err, ERR_NOT_AVAILABLE, "it is encrypted");
    if ((features & QCOW2_INCOMPAT_CORRUPT) != 0)
        return error_set(err, ERR_CORRUPT, "its header says that it is corrupt");
    if ((features & QCOW2_INCOMPAT_DATA_FILE) != 0)
        return error_set(err, ERR_NOT_AVAILABLE, "its data lies in another file");
    if ((features & QCOW2_INCOMPAT_EXT_L2) != 0)
        return error_set(err, ERR_NOT_AVAILABLE, "it has subclusters");
    if ((features & QCOW2_INCOMPAT_CODEC) != 0 &&
        (get_be32(header + QCOW2_AT_HEADER_LENGTH) <= QCOW2_AT_CODEC ||
         header[QCOW2_AT_CODEC] != CODEC_DEFLATE))
        return error_set(err, ERR_NOT_AVAILABLE, "its clusters are compressed with zstd");
    if ((features & ~known) != 0)
        return error_set(err, ERR_NOT_AVAILABLE, "it has unknown features (0x%" PRIx64 ")",
                         features & ~known);
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

    if (entries < needed || needed * 8 > L1_BYTES_MAX)
        return error_set(err, entries < needed ? ERR_CORRUPT : ERR_LIMIT,
                         "its L1 table of %" PRIu64 " entries does not fit its size of %" PRIu64,
                         entries, image->size_bytes);
    if (offset % q->cluster_bytes != 0)
        return error_set(err, ERR_CORRUPT, "its L1 table lies at %" PRIu64, offset);
    if (!range_is_inside(offset, needed * 8, image->file_bytes))
        return error_set(err, ERR_CORRUPT, "its L1 table lies outside of the file");
    q->l1_size = needed;
    q->l1 = xmalloc(needed * 8 + 1);
    return image_file_read(image, q->l1, needed * 8, offset, err);
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
    if (get_be64(header + QCOW2_AT_SIZE) > IMAGE_DISK_BYTES_MAX)
        return error_set(err, ERR_LIMIT, "a disk of %" PRIu64 " bytes is over the limit of 64 TiB",
                         get_be64(header + QCOW2_AT_SIZE));
    q = xcalloc(1, sizeof *q);
    image->data = q;
    image->size_bytes = get_be64(header + QCOW2_AT_SIZE);
    q->cluster_bits = bits;
    q->cluster_bytes = UINT64_C(1) << bits;
    q->unpacked_cluster = NONE;
    for (size_t i = 0; i < TABLES; i++)
        q->tables[i].index = NONE;
    return read_l1(image, header, err);
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

static void compressed_cluster(const struct qcow2 *q, uint64_t entry, struct cluster *out)
{
    unsigned int bits = 62 - (q->cluster_bits - 8);
    uint64_t sectors = (entry & (QCOW2_COMPRESSED - 1)) >> bits;

    out->kind = CLUSTER_COMPRESSED;
    out->offset = entry & ((UINT64_C(1) << bits) - 1);
    out->length = (sectors + 1) * 512 - out->offset % 512;
}

/* Where the cluster of the disk is. */
static int cluster_find(struct image *image, uint64_t cluster, struct cluster *out,
                        struct error *err)
{
    struct qcow2 *q = image->data;
    uint64_t per_table = q->cluster_bytes / 8;
    const uint8_t *table = NULL;
    uint64_t entry;

    *out = (struct cluster){.kind = CLUSTER_ZERO};
    assert(cluster / per_table < q->l1_size);
    if (table_get(image, cluster / per_table, &table, err) < 0)
        return -1;
    if (table == NULL)
        return 0;
    entry = get_be64(table + 8 * (cluster % per_table));
    if ((entry & QCOW2_COMPRESSED) != 0) {
        compressed_cluster(q, entry, out);
        return 0;
    }
    if ((entry & QCOW2_ZERO) != 0 || (entry & QCOW2_OFFSET_MASK) == 0)
        return 0;
    out->kind = CLUSTER_DATA;
    out->offset = entry & QCOW2_OFFSET_MASK;
    if (out->offset % q->cluster_bytes != 0)
        return error_set(err, ERR_CORRUPT, "cluster %" PRIu64 " lies at %" PRIu64, cluster,
                         out->offset);
    return 0;
}

/* ---- reading ---- */

static int unpack(struct image *image, uint64_t cluster, const struct cluster *where,
                  struct error *err)
{
    struct qcow2 *q = image->data;
    uint64_t length = where->length;
    size_t got = 0;

    if (q->unpacked_cluster == cluster)
        return 0;
    if (where->offset >= image->file_bytes)
        return error_set(err, ERR_CORRUPT,
                         "compressed cluster %" PRIu64 " lies outside of the file", cluster);
    /* The length is in whole sectors, the last of which the file need not have. */
    length = min_u64(length, image->file_bytes - where->offset);
    if (q->inflate == NULL) {
        q->inflate = libdeflate_alloc_decompressor();
        if (q->inflate == NULL)
            abort(); /* out of memory, as in xmalloc */
        q->unpacked = xmalloc(q->cluster_bytes);
        q->packed = xmalloc(2 * q->cluster_bytes + 512); /* more than an entry can say */
    }
    assert(length <= 2 * q->cluster_bytes + 512);
    q->unpacked_cluster = NONE;
    if (image_file_read(image, q->packed, (size_t)length, where->offset, err) < 0)
        return -1;
    if (libdeflate_deflate_decompress_ex(q->inflate, q->packed, (size_t)length, q->unpacked,
                                         (size_t)q->cluster_bytes, NULL,
                                         &got) != LIBDEFLATE_SUCCESS ||
        got != q->cluster_bytes)
        return error_set(err, ERR_CORRUPT, "compressed cluster %" PRIu64 " cannot be inflated",
                         cluster);
    q->unpacked_cluster = cluster;
    return 0;
}

static int qcow2_read(struct image *image, uint8_t *out, size_t length, uint64_t offset,
                      struct error *err)
{
    struct qcow2 *q = image->data;

    while (length > 0) {
        uint64_t cluster = offset >> q->cluster_bits;
        uint64_t inside = offset & (q->cluster_bytes - 1);
        size_t n = (size_t)min_u64(length, q->cluster_bytes - inside);
        struct cluster where;
        int rc = cluster_find(image, cluster, &where, err);
        if (rc == 0) {
            switch (where.kind) {
            case CLUSTER_ZERO:
                memset(out, 0, n);
                break;
            case CLUSTER_DATA:
                rc = image_file_read(image, out, n, where.offset + inside, err);
                break;
            case CLUSTER_COMPRESSED:
                rc = unpack(image, cluster, &where, err);
                if (rc == 0)
                    memcpy(out, q->unpacked + inside, n);
                break;
            }
        }
        if (rc < 0)
            return error_wrap(err, "disk offset %" PRIu64, offset);
        out += n;
        offset += n;
        length -= n;
    }
    return 0;
}

static bool qcow2_is_hole(struct image *image, uint64_t offset, uint64_t length)
{
    struct qcow2 *q = image->data;

    for (uint64_t end = offset + length; offset < end;) {
        struct error ignored = ERROR_NONE;
        struct cluster where;
        if (cluster_find(image, offset >> q->cluster_bits, &where, &ignored) < 0 ||
            where.kind != CLUSTER_ZERO)
            return false;
        offset = ((offset >> q->cluster_bits) + 1) << q->cluster_bits;
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
