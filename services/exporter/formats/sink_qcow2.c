/* qcow2, version 3, 64 KiB clusters, written while pieces come in any order from several threads.
 *
 * Design notes
 * - Data is appended as it comes: the host offset is one atomic addition, so threads never wait for
 *   each other. Cluster 0 stays a hole until the end: a file without its header is no image,
 *   whoever finds it.
 * - The map guest cluster -> host offset lives in `<path>.index`: a header page, then one 8-byte
 *   entry per guest cluster, already in the form of an L2 entry. So memory does not grow with the
 *   disk, and finish copies blocks of it as L2 tables.
 * - Checkpoint: the state names the append position; then data is synced, then the index, while
 *   writing goes on. After a crash entries at or above that position are dropped and the image is
 *   cut there, so what is left is exactly what the checkpoint spoke of.
 * - Without compression there are no gaps: every cluster below the append position is referenced by
 *   one entry (a failed write breaks the sink), hence every refcount is one.
 * - With compression a piece's clusters are packed one behind the other from a sector on; several
 *   share a host cluster, and a piece that comes again after a resume leaves its old place unused.
 *   So refcounts are counted from the index. What does not shrink is written as it is.
 * - An image that is sent on is never written to below its last checkpoint's append position, but
 *   for the header: what was there may be gone. So there, too, a piece that comes again is appended
 *   and its old place stays unused. Tables are made from the index alone.
 * - With a backing file, clusters that are the same there have no entry, and zeros over its data an
 *   entry that says so.
 * - Finish writes L2 tables, L1, refcounts, syncs, then the header, syncs, then removes the index.
 *   A resume that finds the header but no index knows that finish was through. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/image.h"
#include "services/exporter/formats/qcow2.h"
#include "services/exporter/formats/qcow2_tables.h"

#define CLUSTER_BYTES  QCOW2_CLUSTER_BYTES
#define L2_ENTRIES     QCOW2_L2_ENTRIES
#define SECTOR_BYTES   512U
#define PIECE_CLUSTERS (SINK_PIECE_BYTES / CLUSTER_BYTES)
#define PACKERS_MAX    8 /* kept for the next piece; as many as a copy has workers */
#define STATE_TAG      "qcow2-1"

struct sink {
    int fd;
    int index_fd;
    char *index_path;
    uint64_t size_bytes;
    uint64_t l2_count;
    bool resumed;
    bool complete; /* finish was through before the crash */
    bool packed;   /* clusters are compressed */
    bool sent_on;  /* what is written may be gone from the file */
    enum qcow2_codec codec;
    int level;
    char *backing;             /* name of the image below, or NULL */
    atomic_bool broken;        /* a write failed: there may be a gap */
    atomic_uint_fast64_t next; /* append position: whole clusters, packed: sectors */
    struct writeback writeback;
    pthread_mutex_t base_mutex;                /* guards base */
    struct image *base;                        /* the image below; NULL: none */
    pthread_mutex_t mutex;                     /* guards all below; taken last */
    struct error failure;                      /* of the write that broke it */
    struct qcow2_packer *packers[PACKERS_MAX]; /* not in use */
    size_t packer_count;
};

/* What becomes of the clusters of one piece. */
enum action {
    ACTION_NONE, /* the image below, or no image, says the same */
    ACTION_ZERO, /* zeros where the image below has data */
    ACTION_DATA,
    ACTION_PACKED,
};

struct plan {
    enum action actions[PIECE_CLUSTERS];
    size_t count;
    uint8_t *packed;              /* compressed clusters, each from a sector on */
    size_t sizes[PIECE_CLUSTERS]; /* of those */
    size_t packed_bytes;          /* of all, in whole sectors */
};

static void qcow2_close(struct sink *sink)
{
    if (sink == NULL)
        return;
    writeback_release(&sink->writeback);
    (void)pthread_mutex_destroy(&sink->mutex);
    (void)pthread_mutex_destroy(&sink->base_mutex);
    image_close(sink->base);
    for (size_t i = 0; i < sink->packer_count; i++)
        qcow2_packer_free(sink->packers[i]);
    free(sink->backing);
    if (sink->fd >= 0)
        (void)close(sink->fd);
    if (sink->index_fd >= 0)
        (void)close(sink->index_fd);
    free(sink->index_path);
    free(sink);
}
DEFINE_AUTO(sink, struct sink, qcow2_close)

static struct qcow2_index index_of(const struct sink *sink)
{
    return (struct qcow2_index){sink->index_fd, sink->index_path, sink->size_bytes};
}

static uint64_t index_offset(uint64_t cluster)
{
    return qcow2_index_offset(cluster);
}

static uint64_t entry_host(const uint8_t *entry)
{
    return get_be64(entry) & QCOW2_OFFSET_MASK;
}

/* End of what the entry names in the file; 0: it names nothing. */
static uint64_t entry_end(const uint8_t *entry)
{
    uint64_t value = get_be64(entry);
    uint64_t offset = 0;
    uint64_t length = 0;

    if ((value & QCOW2_COMPRESSED) == 0)
        return entry_host(entry) == 0 ? 0 : entry_host(entry) + CLUSTER_BYTES;
    qcow2_packed_range(value, QCOW2_CLUSTER_BITS, &offset, &length);
    return offset + length;
}

/* Forgets entries that reach over next. They may share clusters: they are counted at the end. */
static bool block_trim_packed(uint8_t *block, uint64_t next)
{
    bool dirty = false;

    for (size_t i = 0; i < L2_ENTRIES; i++) {
        if (entry_end(block + 8 * i) <= next)
            continue;
        put_be64(block + 8 * i, 0);
        dirty = true;
    }
    return dirty;
}

/* Pieces that came again left their old places unused. */
static bool leaves_gaps(const struct sink *sink)
{
    return sink->packed || sink->sent_on;
}

struct census {
    uint8_t *seen; /* one bit per cluster */
    uint64_t count;
};

/* Forgets entries at or above next and counts the others; each must be a cluster of its own. */
static int block_trim(struct sink *sink, uint8_t *block, uint64_t next, struct census *census,
                      bool *out_dirty, struct error *err)
{
    *out_dirty = false;
    for (size_t i = 0; i < L2_ENTRIES; i++) {
        uint64_t host = entry_host(block + 8 * i);
        uint64_t cluster = host / CLUSTER_BYTES;
        if (host == 0)
            continue;
        if (host >= next) {
            put_be64(block + 8 * i, 0);
            *out_dirty = true;
            continue;
        }
        if (host % CLUSTER_BYTES != 0 || host < CLUSTER_BYTES ||
            (census->seen[cluster / 8] >> (cluster % 8) & 1) != 0) {
            return error_set(err, ERR_CORRUPT,
                             "'%.256s' names cluster %" PRIu64 " wrongly or twice",
                             sink->index_path, cluster);
        }
        census->seen[cluster / 8] = (uint8_t)(census->seen[cluster / 8] | 1U << (cluster % 8));
        census->count++;
    }
    return 0;
}

static int index_trim(struct sink *sink, uint64_t next, struct error *err)
{
    autofree uint8_t *block = xmalloc(CLUSTER_BYTES);
    autofree uint8_t *seen = sink->packed ? NULL : xcalloc(next / CLUSTER_BYTES / 8 + 1, 1);
    struct census census = {seen, 0};

    for (uint64_t i = 0; i < sink->l2_count; i++) {
        uint64_t at = index_offset(i * L2_ENTRIES);
        bool dirty = false;
        if (pread_all(sink->index_fd, block, CLUSTER_BYTES, at) < 0)
            return error_set_errno(err, errno, "cannot read '%.256s'", sink->index_path);
        if (mem_is_zero(block, CLUSTER_BYTES))
            continue;
        if (sink->packed) {
            dirty = block_trim_packed(block, next);
        } else if (block_trim(sink, block, next, &census, &dirty, err) < 0) {
            return -1;
        }
        if (dirty && pwrite_all(sink->index_fd, block, CLUSTER_BYTES, at) < 0)
            return error_set_errno(err, errno, "cannot write '%.256s'", sink->index_path);
    }
    if (!leaves_gaps(sink) && census.count != next / CLUSTER_BYTES - 1) {
        return error_set(err, ERR_CORRUPT,
                         "'%.256s' knows %" PRIu64 " clusters, its checkpoint %" PRIu64
                         ": start over",
                         sink->index_path, census.count, next / CLUSTER_BYTES - 1);
    }
    return 0;
}

/* Does the file carry the header that finish writes last? */
static bool header_is_ours(const struct sink *sink)
{
    uint8_t header[QCOW2_HEADER_V3_BYTES];

    return pread_all(sink->fd, header, sizeof header, 0) == 0 &&
           get_be32(header + QCOW2_AT_MAGIC) == QCOW2_MAGIC &&
           get_be32(header + QCOW2_AT_VERSION) == 3 &&
           get_be64(header + QCOW2_AT_SIZE) == sink->size_bytes;
}

/* Is the finished image the one whose data ended at `next`? L2 tables follow the data, L1 them. */
static bool finished_behind(const struct sink *sink, uint64_t next)
{
    uint64_t l1_bytes = sink->l2_count * 8;
    autofree uint8_t *l1 = xmalloc(l1_bytes);
    uint8_t field[8];
    uint64_t tables = 0;

    if (pread_all(sink->fd, field, sizeof field, QCOW2_AT_L1_OFFSET) < 0 ||
        pread_all(sink->fd, l1, l1_bytes, get_be64(field)) < 0)
        return false;
    for (uint64_t i = 0; i < sink->l2_count; i++)
        tables += get_be64(l1 + 8 * i) != 0;
    return round_up_u64(next, CLUSTER_BYTES) + tables * CLUSTER_BYTES == get_be64(field);
}

/* Could a checkpoint with this position belong to a file of so many bytes? */
static bool next_is_possible(const struct sink *sink, uint64_t next, uint64_t file_bytes)
{
    if (next < CLUSTER_BYTES || next % (sink->packed ? SECTOR_BYTES : CLUSTER_BYTES) != 0 ||
        (next > CLUSTER_BYTES && file_bytes <= next - CLUSTER_BYTES))
        return false;
    return leaves_gaps(sink) ||
           next <= round_up_u64(sink->size_bytes, CLUSTER_BYTES) + CLUSTER_BYTES;
}

static int resume(struct sink *sink, const struct sink_options *options, struct error *err)
{
    static const uint8_t zeros[QCOW2_HEADER_V3_BYTES];
    uint64_t size = 0;
    uint64_t next = 0;
    struct qcow2_index index = index_of(sink);
    struct stat st;

    if (sink_state_u64(options->resume, STATE_TAG, "size", UINT64_MAX, &size, err) < 0 ||
        sink_state_u64(options->resume, STATE_TAG, "next", UINT64_MAX, &next, err) < 0)
        return -1;
    if (fstat(sink->fd, &st) < 0)
        return error_set_errno(err, errno, "cannot examine '%.256s'", options->path);
    if (size != sink->size_bytes || !next_is_possible(sink, next, (uint64_t)st.st_size)) {
        return error_set(err, ERR_CORRUPT,
                         "'%.256s' does not fit its checkpoint '%.64s': start over", options->path,
                         options->resume);
    }
    atomic_store(&sink->next, next);
    if (sink->index_fd < 0) {
        if (!header_is_ours(sink) || !finished_behind(sink, next))
            return error_set(err, ERR_CORRUPT, "'%.256s' is missing: start over", sink->index_path);
        sink->complete = true;
        return 0;
    }
    if (qcow2_index_check(&index, err) < 0 || index_trim(sink, next, err) < 0)
        return -1;
    if (ftruncate(sink->fd, (off_t)next) < 0 || pwrite_all(sink->fd, zeros, sizeof zeros, 0) < 0)
        return error_set_errno(err, errno, "cannot cut '%.256s'", options->path);
    return 0;
}

static int compression_open(struct sink *sink, const struct sink_options *options,
                            struct error *err)
{
    bool zstd = options->compression != NULL && strcmp(options->compression, "zstd") == 0;

    if (options->compression != NULL && !zstd && strcmp(options->compression, "zlib") != 0) {
        return error_set(err, ERR_INVALID, "qcow2 knows no compression '%.32s'",
                         options->compression);
    }
    if (options->compression_level < 0 || options->compression_level > QCOW2_LEVEL_MAX ||
        (options->compression == NULL && options->compression_level != 0)) {
        return error_set(err, ERR_INVALID, "compression level %d of qcow2 is not in 0 to %d",
                         options->compression_level,
                         options->compression == NULL ? 0 : QCOW2_LEVEL_MAX);
    }
    sink->packed = options->compression != NULL;
    sink->codec = zstd ? QCOW2_CODEC_ZSTD : QCOW2_CODEC_ZLIB;
    sink->level = options->compression_level;
    return 0;
}

static int base_open(struct sink *sink, const struct sink_options *options, struct error *err)
{
    const char *slash = strrchr(options->path, '/');
    autofree char *dir =
        slash == NULL ? xstrdup(".") : xstrndup(options->path, (size_t)(slash - options->path));
    autofree char *path = NULL;

    if (options->backing == NULL)
        return 0;
    if (strlen(options->backing) > QCOW2_BACKING_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "the name of the backing file is over %d bytes",
                         QCOW2_BACKING_BYTES_MAX);
    }
    path = xasprintf("%s/%s", dir, options->backing);
    if (image_open_chain(path, "qcow2", options->backing_root, &sink->base, err) < 0)
        return -1;
    if (image_size_bytes(sink->base) != options->size_bytes)
        return error_set(err, ERR_INVALID, "'%.200s' has another size than the disk", path);
    sink->backing = xstrdup(options->backing);
    return 0;
}

static struct sink *sink_new(const struct sink_options *options)
{
    struct sink *sink = xcalloc(1, sizeof *sink);

    sink->fd = -1;
    sink->index_fd = -1;
    writeback_init(&sink->writeback, -1);
    (void)pthread_mutex_init(&sink->mutex, NULL);
    (void)pthread_mutex_init(&sink->base_mutex, NULL);
    assert(options->file_offset == 0);
    sink->size_bytes = options->size_bytes;
    sink->l2_count = qcow2_l2_count(options->size_bytes);
    sink->index_path = xasprintf("%s.index", options->path);
    sink->resumed = options->resume != NULL;
    sink->sent_on = options->sent_on;
    atomic_init(&sink->next, CLUSTER_BYTES);
    return sink;
}

static int qcow2_open(const struct sink_options *options, struct sink **out, struct error *err)
{
    CLEANUP(sink_auto) struct sink *sink = sink_new(options);
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | (sink->resumed ? 0 : O_CREAT | O_TRUNC);
    struct qcow2_index index;

    if (compression_open(sink, options, err) < 0 || base_open(sink, options, err) < 0 ||
        sink_file_open(options, &sink->fd, err) < 0)
        return -1;
    sink->writeback.fd = sink->fd;
    sink->index_fd = open(sink->index_path, flags, SINK_FILE_MODE);
    if (sink->index_fd < 0 && !(sink->resumed && errno == ENOENT))
        return error_set_errno(err, errno, "cannot open '%.256s'", sink->index_path);
    index = index_of(sink);
    if ((sink->resumed ? resume(sink, options, err) : qcow2_index_create(&index, err)) < 0)
        return -1;
    *out = STEAL(sink);
    return 0;
}

/* ---- what a piece becomes ---- */

/* Marks clusters whose content the image below has already, and zeros over its data. */
static int compare_with_base(struct sink *sink, uint64_t offset, const uint8_t *data, size_t length,
                             struct plan *plan, struct error *err)
{
    autofree uint8_t *below = NULL;
    bool hole;

    {
        LOCK_SCOPE(&sink->base_mutex);
        hole = image_is_hole(sink->base, offset, length);
        if (!hole) {
            below = xalloc_aligned(SINK_PIECE_BYTES);
            if (image_read(sink->base, below, length, offset, err) < 0)
                return error_wrap(err, "comparing with the restore point below");
        }
    }
    for (size_t i = 0; i < plan->count && !hole; i++) {
        size_t at = i * CLUSTER_BYTES;
        size_t n = (size_t)min_u64(CLUSTER_BYTES, length - at);
        if (memcmp(data + at, below + at, n) == 0) {
            plan->actions[i] = ACTION_NONE;
        } else if (plan->actions[i] == ACTION_NONE) {
            plan->actions[i] = ACTION_ZERO;
        }
    }
    return 0;
}

static struct qcow2_packer *packer_get(struct sink *sink)
{
    LOCK_SCOPE(&sink->mutex);
    if (sink->packer_count > 0)
        return sink->packers[--sink->packer_count];
    return qcow2_packer_new(sink->codec, sink->level);
}

static void packer_put(struct sink *sink, struct qcow2_packer *packer)
{
    LOCK_SCOPE(&sink->mutex);
    if (sink->packer_count < PACKERS_MAX) {
        sink->packers[sink->packer_count++] = packer;
    } else {
        qcow2_packer_free(packer);
    }
}

/* The last cluster of a disk may be cut: it is packed as a whole one. */
static void pack(struct sink *sink, const uint8_t *data, size_t length, struct plan *plan)
{
    struct qcow2_packer *packer = packer_get(sink);
    uint8_t whole[CLUSTER_BYTES];

    plan->packed = xmalloc(SINK_PIECE_BYTES);
    for (size_t i = 0; i < plan->count; i++) {
        size_t at = i * CLUSTER_BYTES;
        const uint8_t *cluster = data + at;
        if (plan->actions[i] != ACTION_DATA)
            continue;
        if (length - at < CLUSTER_BYTES) {
            memset(whole, 0, sizeof whole);
            memcpy(whole, cluster, length - at);
            cluster = whole;
        }
        plan->sizes[i] =
            qcow2_pack(packer, cluster, CLUSTER_BYTES, plan->packed + plan->packed_bytes,
                       CLUSTER_BYTES - SECTOR_BYTES);
        if (plan->sizes[i] == 0)
            continue;
        plan->actions[i] = ACTION_PACKED;
        /* what is between this one and the next sector is written as well */
        memset(plan->packed + plan->packed_bytes + plan->sizes[i], 0,
               round_up_u64(plan->sizes[i], SECTOR_BYTES) - plan->sizes[i]);
        plan->packed_bytes += round_up_u64(plan->sizes[i], SECTOR_BYTES);
    }
    packer_put(sink, packer);
}

static int make_plan(struct sink *sink, uint64_t offset, const uint8_t *data, size_t length,
                     struct plan *plan, struct error *err)
{
    plan->count = (length + CLUSTER_BYTES - 1) / CLUSTER_BYTES;
    for (size_t i = 0; i < plan->count; i++) {
        size_t at = i * CLUSTER_BYTES;
        if (!mem_is_zero(data + at, (size_t)min_u64(CLUSTER_BYTES, length - at)))
            plan->actions[i] = ACTION_DATA;
    }
    if (sink->base != NULL && compare_with_base(sink, offset, data, length, plan, err) < 0)
        return -1;
    if (sink->packed)
        pack(sink, data, length, plan);
    return 0;
}

static uint64_t allocate(struct sink *sink, uint64_t bytes, uint64_t align)
{
    uint64_t next = atomic_load(&sink->next);
    uint64_t start;

    do {
        start = round_up_u64(next, align);
    } while (!atomic_compare_exchange_weak(&sink->next, &next, start + bytes));
    return start;
}

/* Writes clusters [first, first+count) of the piece to host and notes them in entries. */
static int write_run(struct sink *sink, uint64_t host, const uint8_t *data, size_t length,
                     uint8_t *entries, struct error *err)
{
    if (pwrite_all(sink->fd, data, length, host) < 0)
        return error_set_errno(err, errno, "cannot write qcow2 image at offset %" PRIu64, host);
    for (size_t i = 0; i * CLUSTER_BYTES < length; i++)
        put_be64(entries + 8 * i, (host + i * CLUSTER_BYTES) | QCOW2_COPIED);
    return 0;
}

/* Appends the compressed clusters of the plan, one behind the other. */
static int append_packed(struct sink *sink, const struct plan *plan, uint8_t *entries,
                         struct error *err)
{
    uint64_t first;
    uint64_t host;

    if (plan->packed_bytes == 0)
        return 0;
    first = allocate(sink, plan->packed_bytes, SECTOR_BYTES);
    host = first;
    if (pwrite_all(sink->fd, plan->packed, plan->packed_bytes, first) < 0)
        return error_set_errno(err, errno, "cannot write qcow2 image at offset %" PRIu64, first);
    for (size_t i = 0; i < plan->count; i++) {
        uint64_t sectors = round_up_u64(plan->sizes[i], SECTOR_BYTES) / SECTOR_BYTES;
        if (plan->actions[i] != ACTION_PACKED)
            continue;
        put_be64(entries + 8 * i,
                 host | (sectors - 1) << (62 - (QCOW2_CLUSTER_BITS - 8)) | QCOW2_COMPRESSED);
        host += sectors * SECTOR_BYTES;
    }
    writeback_wrote(&sink->writeback, first, plan->packed_bytes);
    return 0;
}

/* Appends the clusters of the plan that are written as they are. */
static int append_data(struct sink *sink, const struct plan *plan, const uint8_t *data,
                       size_t length, uint8_t *entries, struct error *err)
{
    size_t used_count = 0;
    uint64_t host;
    uint64_t first;

    for (size_t i = 0; i < plan->count; i++)
        used_count += plan->actions[i] == ACTION_DATA;
    if (used_count == 0)
        return 0;
    first = allocate(sink, used_count * CLUSTER_BYTES, CLUSTER_BYTES);
    host = first;
    for (size_t i = 0; i < plan->count;) {
        size_t end = i;
        while (end < plan->count && plan->actions[end] == ACTION_DATA)
            end++;
        if (end > i) {
            size_t at = i * CLUSTER_BYTES;
            size_t bytes = (size_t)min_u64((end - i) * CLUSTER_BYTES, length - at);
            if (write_run(sink, host, data + at, bytes, entries + 8 * i, err) < 0)
                return -1;
            host += (end - i) * CLUSTER_BYTES;
        }
        i = end == i ? i + 1 : end;
    }
    writeback_wrote(&sink->writeback, first, host - first);
    return 0;
}

static int append_piece(struct sink *sink, const struct plan *plan, const uint8_t *data,
                        size_t length, uint8_t *entries, struct error *err)
{
    for (size_t i = 0; i < plan->count; i++) {
        if (plan->actions[i] == ACTION_ZERO || plan->actions[i] == ACTION_NONE)
            put_be64(entries + 8 * i, plan->actions[i] == ACTION_ZERO ? QCOW2_ZERO : 0);
    }
    if (append_packed(sink, plan, entries, err) < 0)
        return -1;
    return append_data(sink, plan, data, length, entries, err);
}

/* A piece that the image has already (the caller repeats it after a resume): in place, unless that
 * may have been sent on. */
static int rewrite_piece(struct sink *sink, const struct plan *plan, const uint8_t *data,
                         size_t length, uint8_t *entries, struct error *err)
{
    for (size_t at = 0, i = 0; at < length; at += CLUSTER_BYTES, i++) {
        size_t n = (size_t)min_u64(CLUSTER_BYTES, length - at);
        uint64_t host = entry_host(entries + 8 * i);
        if (host == 0 && plan->actions[i] != ACTION_DATA) {
            put_be64(entries + 8 * i, plan->actions[i] == ACTION_ZERO ? QCOW2_ZERO : 0);
            continue;
        }
        if (host == 0)
            host = allocate(sink, CLUSTER_BYTES, CLUSTER_BYTES);
        if (write_run(sink, host, data + at, n, entries + 8 * i, err) < 0)
            return -1;
    }
    return 0;
}

static int write_planned(struct sink *sink, uint64_t offset, const struct plan *plan,
                         const uint8_t *data, size_t length, struct error *err)
{
    uint8_t entries[8 * PIECE_CLUSTERS] = {0};
    size_t entries_bytes = 8 * plan->count;
    uint64_t at = index_offset(offset / CLUSTER_BYTES);
    bool known;
    int result;

    if (sink->resumed && pread_all(sink->index_fd, entries, entries_bytes, at) < 0)
        return error_set_errno(err, errno, "cannot read '%.256s'", sink->index_path);
    known = !mem_is_zero(entries, entries_bytes);
    if (known && !leaves_gaps(sink)) {
        result = rewrite_piece(sink, plan, data, length, entries, err);
    } else {
        result = append_piece(sink, plan, data, length, entries, err);
    }
    if (result < 0)
        return -1;
    if ((known || !mem_is_zero(entries, entries_bytes)) &&
        pwrite_all(sink->index_fd, entries, entries_bytes, at) < 0)
        return error_set_errno(err, errno, "cannot write '%.256s'", sink->index_path);
    return 0;
}

static int write_piece(struct sink *sink, uint64_t offset, const uint8_t *data, size_t length,
                       struct error *err)
{
    struct plan plan = {0};
    int result = make_plan(sink, offset, data, length, &plan, err);

    if (result == 0)
        result = write_planned(sink, offset, &plan, data, length, err);
    free(plan.packed);
    return result;
}

static int check_writable(struct sink *sink, struct error *err)
{
    if (sink->complete)
        return error_set(err, ERR_CONFLICT, "the qcow2 image is finished already");
    if (!atomic_load(&sink->broken))
        return 0;
    LOCK_SCOPE(&sink->mutex);
    return error_set(err, sink->failure.code, "an earlier write failed: %.400s",
                     sink->failure.message);
}

/* Whoever meets it later reports why, since that thread may be heard first. */
static void note_failure(struct sink *sink, const struct error *err)
{
    LOCK_SCOPE(&sink->mutex);
    if (sink->failure.code == ERR_NONE)
        sink->failure = *err;
    atomic_store(&sink->broken, true);
}

static int qcow2_write(struct sink *sink, uint64_t offset, const void *data, size_t length,
                       struct error *err)
{
    assert(offset % SINK_PIECE_BYTES == 0 && length <= SINK_PIECE_BYTES);
    assert(range_is_inside(offset, length, sink->size_bytes));
    if (check_writable(sink, err) < 0)
        return -1;
    if (write_piece(sink, offset, data, length, err) < 0) {
        note_failure(sink, err);
        return -1;
    }
    return 0;
}

static bool base_is_hole(struct sink *sink, uint64_t offset, uint64_t length)
{
    LOCK_SCOPE(&sink->base_mutex);
    return sink->base == NULL || image_is_hole(sink->base, offset, length);
}

static int qcow2_write_zero(struct sink *sink, uint64_t offset, uint64_t length, struct error *err)
{
    static const uint8_t zeros[SINK_PIECE_BYTES];

    assert(offset % SINK_PIECE_BYTES == 0 && range_is_inside(offset, length, sink->size_bytes));
    if (check_writable(sink, err) < 0)
        return -1;
    if (!sink->resumed && sink->base == NULL) /* unallocated reads as zeros */
        return 0;
    while (length > 0) {
        size_t n = (size_t)min_u64(length, sizeof zeros);
        if ((sink->resumed || !base_is_hole(sink, offset, n)) &&
            qcow2_write(sink, offset, zeros, n, err) < 0)
            return -1;
        offset += n;
        length -= n;
    }
    return 0;
}

static int qcow2_state(struct sink *sink, struct strbuf *state, struct error *err)
{
    if (atomic_load(&sink->broken))
        return check_writable(sink, err);
    strbuf_addf(state, STATE_TAG " size=%" PRIu64 " next=%" PRIu64, sink->size_bytes,
                (uint64_t)atomic_load(&sink->next));
    return 0;
}

static int qcow2_sync(struct sink *sink, struct error *err)
{
    if (fdatasync(sink->fd) < 0)
        return error_set_errno(err, errno, "cannot sync qcow2 image");
    if (!sink->complete && fdatasync(sink->index_fd) < 0)
        return error_set_errno(err, errno, "cannot sync '%.256s'", sink->index_path);
    return 0;
}

/* The last cluster of a disk may be cut, and the file with it. */
static uint64_t qcow2_final(struct sink *sink, uint64_t disk_offset)
{
    struct stat st;

    (void)disk_offset;
    if (fstat(sink->fd, &st) < 0)
        return CLUSTER_BYTES;
    return min_u64(atomic_load(&sink->next), (uint64_t)st.st_size);
}

static int qcow2_finish(struct sink *sink, struct error *err)
{
    struct qcow2_image image = {
        .fd = sink->fd,
        .index = index_of(sink),
        .end = round_up_u64(atomic_load(&sink->next), CLUSTER_BYTES),
        .counted = leaves_gaps(sink),
        .packed = sink->packed,
        .codec = sink->codec,
        .backing = sink->backing,
        .writeback = &sink->writeback,
    };

    if (sink->complete)
        return 0;
    if (check_writable(sink, err) < 0 || qcow2_tables_write(&image, err) < 0)
        return -1;
    if (unlink(sink->index_path) < 0 && errno != ENOENT)
        return error_set_errno(err, errno, "cannot remove '%.256s'", sink->index_path);
    sink->complete = true;
    return 0;
}

static bool qcow2_file_sha256(const struct sink *sink, char out[65])
{
    (void)sink;
    (void)out;
    return false;
}

const struct sink_format sink_qcow2 = {
    .name = "qcow2",
    .suffix = ".qcow2",
    .flags = SINK_APPENDS,
    .open = qcow2_open,
    .write = qcow2_write,
    .write_zero = qcow2_write_zero,
    .state = qcow2_state,
    .sync = qcow2_sync,
    .final = qcow2_final,
    .finish = qcow2_finish,
    .close = qcow2_close,
    .file_sha256 = qcow2_file_sha256,
};
