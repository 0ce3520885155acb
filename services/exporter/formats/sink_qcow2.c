/* qcow2, version 3, 64 KiB clusters, written while pieces come in any order from several threads.
 *
 * Design notes
 * - Data clusters are appended as they come: the host offset is one atomic addition, so threads
 *   never wait for each other. Cluster 0 stays a hole until the end: a file without its header is
 *   no image, whoever finds it.
 * - The map guest cluster -> host offset lives in `<path>.index`: a header page, then one 8-byte
 *   entry per guest cluster, already in the form of an L2 entry. So memory does not grow with the
 *   disk, and finish copies blocks of it as L2 tables.
 * - Checkpoint: the state names the append position; then data is synced, then the index, while
 *   writing goes on. After a crash entries at or above that position are dropped and the image is
 *   cut there, so what is left is exactly what the checkpoint spoke of.
 * - No gaps: every cluster below the append position is referenced by one entry (a failed write
 *   breaks the sink), hence every refcount is one and qemu-img check finds no leak.
 * - Finish writes L2 tables, L1, refcounts, syncs, then the header, syncs, then removes the index.
 *   A resume that finds the header but no index knows that finish was through. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/qcow2.h"
#include "services/exporter/formats/sink_file.h"

#define CLUSTER_BITS        16
#define CLUSTER_BYTES       (UINT64_C(1) << CLUSTER_BITS)
#define L2_ENTRIES          (CLUSTER_BYTES / 8)
#define L2_SPAN_BYTES       (L2_ENTRIES * CLUSTER_BYTES) /* 512 MiB of disk per table */
#define REFCOUNT_ORDER      4                            /* 16 bits */
#define REFCOUNTS_PER_BLOCK (CLUSTER_BYTES / 2)
#define PIECE_CLUSTERS      (SINK_PIECE_BYTES / CLUSTER_BYTES)
#define INDEX_HEADER_BYTES  4096
#define INDEX_MAGIC         UINT64_C(0x4853444b51495831) /* "HSDKQIX1" */
#define STATE_TAG           "qcow2-1"

struct sink {
    int fd;
    int index_fd;
    char *index_path;
    uint64_t size_bytes;
    uint64_t l2_count;
    bool resumed;
    bool complete;             /* finish was through before the crash */
    atomic_bool broken;        /* a write failed: there may be a gap */
    atomic_uint_fast64_t next; /* append position, multiple of CLUSTER_BYTES */
    struct writeback writeback;
    pthread_mutex_t mutex; /* guards failure */
    struct error failure;  /* of the write that broke it */
};

static void qcow2_close(struct sink *sink)
{
    if (sink == NULL)
        return;
    writeback_release(&sink->writeback);
    (void)pthread_mutex_destroy(&sink->mutex);
    if (sink->fd >= 0)
        (void)close(sink->fd);
    if (sink->index_fd >= 0)
        (void)close(sink->index_fd);
    free(sink->index_path);
    free(sink);
}
DEFINE_AUTO(sink, struct sink, qcow2_close)

static uint64_t index_offset(uint64_t cluster)
{
    return INDEX_HEADER_BYTES + cluster * 8;
}

static uint64_t entry_host(const uint8_t *entry)
{
    return get_be64(entry) & QCOW2_OFFSET_MASK;
}

static int index_create(struct sink *sink, struct error *err)
{
    uint8_t header[INDEX_HEADER_BYTES] = {0};

    put_be64(header, INDEX_MAGIC);
    put_be64(header + 8, sink->size_bytes);
    if (pwrite_all(sink->index_fd, header, sizeof header, 0) < 0 ||
        ftruncate(sink->index_fd, (off_t)index_offset(sink->l2_count * L2_ENTRIES)) < 0)
        return error_set_errno(err, errno, "cannot write '%.256s'", sink->index_path);
    return 0;
}

static int index_check(struct sink *sink, struct error *err)
{
    uint8_t header[INDEX_HEADER_BYTES];
    struct stat st;

    if (fstat(sink->index_fd, &st) < 0 || pread_all(sink->index_fd, header, sizeof header, 0) < 0)
        return error_set_errno(err, errno, "cannot read '%.256s'", sink->index_path);
    if (get_be64(header) != INDEX_MAGIC || get_be64(header + 8) != sink->size_bytes ||
        (uint64_t)st.st_size != index_offset(sink->l2_count * L2_ENTRIES))
        return error_set(err, ERR_CORRUPT, "'%.256s' belongs to another image: start over",
                         sink->index_path);
    return 0;
}

/* Forgets entries at or above next and counts the others; each must be a cluster of its own. */
static int block_trim(struct sink *sink, uint8_t *block, uint64_t next, uint8_t *seen,
                      uint64_t *count, bool *out_dirty, struct error *err)
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
            (seen[cluster / 8] >> (cluster % 8) & 1) != 0)
            return error_set(err, ERR_CORRUPT,
                             "'%.256s' names cluster %" PRIu64 " wrongly or twice",
                             sink->index_path, cluster);
        seen[cluster / 8] = (uint8_t)(seen[cluster / 8] | 1U << (cluster % 8));
        (*count)++;
    }
    return 0;
}

static int index_trim(struct sink *sink, uint64_t next, struct error *err)
{
    autofree uint8_t *block = xmalloc(CLUSTER_BYTES);
    autofree uint8_t *seen = xcalloc(next / CLUSTER_BYTES / 8 + 1, 1);
    uint64_t count = 0;

    for (uint64_t i = 0; i < sink->l2_count; i++) {
        uint64_t at = index_offset(i * L2_ENTRIES);
        bool dirty = false;
        if (pread_all(sink->index_fd, block, CLUSTER_BYTES, at) < 0)
            return error_set_errno(err, errno, "cannot read '%.256s'", sink->index_path);
        if (mem_is_zero(block, CLUSTER_BYTES))
            continue;
        if (block_trim(sink, block, next, seen, &count, &dirty, err) < 0)
            return -1;
        if (dirty && pwrite_all(sink->index_fd, block, CLUSTER_BYTES, at) < 0)
            return error_set_errno(err, errno, "cannot write '%.256s'", sink->index_path);
    }
    if (count != next / CLUSTER_BYTES - 1)
        return error_set(err, ERR_CORRUPT,
                         "'%.256s' knows %" PRIu64 " clusters, its checkpoint %" PRIu64
                         ": start over",
                         sink->index_path, count, next / CLUSTER_BYTES - 1);
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
    return next + tables * CLUSTER_BYTES == get_be64(field);
}

static int resume(struct sink *sink, const struct sink_options *options, struct error *err)
{
    static const uint8_t zeros[QCOW2_HEADER_V3_BYTES];
    uint64_t size = 0;
    uint64_t next = 0;
    struct stat st;

    if (sink_state_u64(options->resume, STATE_TAG, "size", UINT64_MAX, &size, err) < 0 ||
        sink_state_u64(options->resume, STATE_TAG, "next", UINT64_MAX, &next, err) < 0)
        return -1;
    if (fstat(sink->fd, &st) < 0)
        return error_set_errno(err, errno, "cannot examine '%.256s'", options->path);
    if (size != sink->size_bytes || next % CLUSTER_BYTES != 0 || next < CLUSTER_BYTES ||
        next > round_up_u64(size, CLUSTER_BYTES) + CLUSTER_BYTES ||
        (next > CLUSTER_BYTES && (uint64_t)st.st_size <= next - CLUSTER_BYTES))
        return error_set(err, ERR_CORRUPT,
                         "'%.256s' does not fit its checkpoint '%.64s': start over", options->path,
                         options->resume);
    atomic_store(&sink->next, next);
    if (sink->index_fd < 0) {
        if (!header_is_ours(sink) || !finished_behind(sink, next))
            return error_set(err, ERR_CORRUPT, "'%.256s' is missing: start over", sink->index_path);
        sink->complete = true;
        return 0;
    }
    if (index_check(sink, err) < 0 || index_trim(sink, next, err) < 0)
        return -1;
    if (ftruncate(sink->fd, (off_t)next) < 0 || pwrite_all(sink->fd, zeros, sizeof zeros, 0) < 0)
        return error_set_errno(err, errno, "cannot cut '%.256s'", options->path);
    return 0;
}

static int qcow2_open(const struct sink_options *options, struct sink **out, struct error *err)
{
    CLEANUP(sink_auto) struct sink *sink = xcalloc(1, sizeof *sink);
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;

    sink->fd = -1;
    sink->index_fd = -1;
    writeback_init(&sink->writeback, -1);
    (void)pthread_mutex_init(&sink->mutex, NULL);
    if (sink_level_check(options, "qcow2", 0, err) < 0 ||
        sink_file_open(options, &sink->fd, err) < 0)
        return -1;
    sink->writeback.fd = sink->fd;
    sink->size_bytes = options->size_bytes;
    sink->l2_count = round_up_u64(options->size_bytes, L2_SPAN_BYTES) / L2_SPAN_BYTES;
    sink->index_path = xasprintf("%s.index", options->path);
    sink->resumed = options->resume != NULL;
    atomic_init(&sink->next, CLUSTER_BYTES);
    if (!sink->resumed)
        flags |= O_CREAT | O_TRUNC;
    sink->index_fd = open(sink->index_path, flags, SINK_FILE_MODE);
    if (sink->index_fd < 0 && !(sink->resumed && errno == ENOENT))
        return error_set_errno(err, errno, "cannot open '%.256s'", sink->index_path);
    if ((sink->resumed ? resume(sink, options, err) : index_create(sink, err)) < 0)
        return -1;
    *out = STEAL(sink);
    return 0;
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

/* Appends the clusters of the piece that are not all zero. */
static int append_piece(struct sink *sink, const uint8_t *data, size_t length, uint8_t *entries,
                        struct error *err)
{
    size_t count = (length + CLUSTER_BYTES - 1) / CLUSTER_BYTES;
    bool used[PIECE_CLUSTERS];
    size_t used_count = 0;
    uint64_t host;
    uint64_t first;

    for (size_t i = 0; i < count; i++) {
        size_t at = i * CLUSTER_BYTES;
        used[i] = !mem_is_zero(data + at, (size_t)min_u64(CLUSTER_BYTES, length - at));
        used_count += used[i];
    }
    if (used_count == 0)
        return 0;
    first = atomic_fetch_add(&sink->next, used_count * CLUSTER_BYTES);
    host = first;
    for (size_t i = 0; i < count;) {
        size_t end = i;
        while (end < count && used[end])
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

/* A piece that the image has already (the caller repeats it after a resume): in place. */
static int rewrite_piece(struct sink *sink, const uint8_t *data, size_t length, uint8_t *entries,
                         struct error *err)
{
    for (size_t at = 0, i = 0; at < length; at += CLUSTER_BYTES, i++) {
        size_t n = (size_t)min_u64(CLUSTER_BYTES, length - at);
        uint64_t host = entry_host(entries + 8 * i);
        if (host == 0 && mem_is_zero(data + at, n))
            continue;
        if (host == 0)
            host = atomic_fetch_add(&sink->next, CLUSTER_BYTES);
        if (write_run(sink, host, data + at, n, entries + 8 * i, err) < 0)
            return -1;
    }
    return 0;
}

static int write_piece(struct sink *sink, uint64_t offset, const uint8_t *data, size_t length,
                       struct error *err)
{
    uint8_t entries[8 * PIECE_CLUSTERS] = {0};
    size_t entries_bytes = 8 * ((length + CLUSTER_BYTES - 1) / CLUSTER_BYTES);
    uint64_t at = index_offset(offset / CLUSTER_BYTES);
    int result;

    if (sink->resumed && pread_all(sink->index_fd, entries, entries_bytes, at) < 0)
        return error_set_errno(err, errno, "cannot read '%.256s'", sink->index_path);
    if (mem_is_zero(entries, entries_bytes))
        result = append_piece(sink, data, length, entries, err);
    else
        result = rewrite_piece(sink, data, length, entries, err);
    if (result < 0)
        return -1;
    if (!mem_is_zero(entries, entries_bytes) &&
        pwrite_all(sink->index_fd, entries, entries_bytes, at) < 0)
        return error_set_errno(err, errno, "cannot write '%.256s'", sink->index_path);
    return 0;
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

static int qcow2_write_zero(struct sink *sink, uint64_t offset, uint64_t length, struct error *err)
{
    static const uint8_t zeros[SINK_PIECE_BYTES];

    assert(offset % SINK_PIECE_BYTES == 0 && range_is_inside(offset, length, sink->size_bytes));
    if (check_writable(sink, err) < 0)
        return -1;
    if (!sink->resumed) /* unallocated reads as zeros */
        return 0;
    while (length > 0) {
        size_t n = (size_t)min_u64(length, sizeof zeros);
        if (qcow2_write(sink, offset, zeros, n, err) < 0)
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

/* Appends at *pos and moves it. */
static int append(struct sink *sink, const void *data, size_t size, uint64_t *pos,
                  struct error *err)
{
    if (pwrite_all(sink->fd, data, size, *pos) < 0)
        return error_set_errno(err, errno, "cannot write qcow2 image at offset %" PRIu64, *pos);
    writeback_wrote(&sink->writeback, *pos, size);
    *pos += size;
    return 0;
}

static int write_l2_tables(struct sink *sink, uint8_t *l1, uint64_t *pos, struct error *err)
{
    autofree uint8_t *block = xmalloc(CLUSTER_BYTES);

    for (uint64_t i = 0; i < sink->l2_count; i++) {
        if (pread_all(sink->index_fd, block, CLUSTER_BYTES, index_offset(i * L2_ENTRIES)) < 0)
            return error_set_errno(err, errno, "cannot read '%.256s'", sink->index_path);
        if (mem_is_zero(block, CLUSTER_BYTES))
            continue;
        put_be64(l1 + 8 * i, *pos | QCOW2_COPIED);
        if (append(sink, block, CLUSTER_BYTES, pos, err) < 0)
            return -1;
    }
    return 0;
}

/* Every cluster up to the end is used once: blocks of ones, cut at the last cluster. The count of
 * blocks and of the table's clusters covers these themselves. */
static int write_refcounts(struct sink *sink, uint64_t *pos, uint64_t *out_table,
                           uint64_t *out_table_clusters, struct error *err)
{
    uint64_t before = *pos / CLUSTER_BYTES;
    uint64_t blocks = 1;
    uint64_t table_clusters = 1;
    autofree uint8_t *block = xmalloc(CLUSTER_BYTES);
    autofree uint8_t *table = NULL;

    for (;;) { /* grows, and converges since a block covers 32768 clusters */
        uint64_t total = before + blocks + table_clusters;
        uint64_t blocks_wanted = (total + REFCOUNTS_PER_BLOCK - 1) / REFCOUNTS_PER_BLOCK;
        uint64_t table_wanted = (blocks_wanted * 8 + CLUSTER_BYTES - 1) / CLUSTER_BYTES;
        if (blocks_wanted <= blocks && table_wanted <= table_clusters)
            break;
        blocks = max_u64(blocks, blocks_wanted);
        table_clusters = max_u64(table_clusters, table_wanted);
    }
    table = xcalloc(table_clusters, CLUSTER_BYTES);
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t total = before + blocks + table_clusters;
        memset(block, 0, CLUSTER_BYTES);
        for (uint64_t j = 0; j < REFCOUNTS_PER_BLOCK && i * REFCOUNTS_PER_BLOCK + j < total; j++)
            put_be16(block + 2 * j, 1);
        put_be64(table + 8 * i, *pos);
        if (append(sink, block, CLUSTER_BYTES, pos, err) < 0)
            return -1;
    }
    *out_table = *pos;
    *out_table_clusters = table_clusters;
    return append(sink, table, (size_t)(table_clusters * CLUSTER_BYTES), pos, err);
}

static int write_header(struct sink *sink, uint64_t l1_offset, uint64_t table,
                        uint64_t table_clusters, struct error *err)
{
    uint8_t header[QCOW2_HEADER_V3_BYTES + 8] = {0}; /* 8: end of the header extensions */

    put_be32(header + QCOW2_AT_MAGIC, QCOW2_MAGIC);
    put_be32(header + QCOW2_AT_VERSION, 3);
    put_be32(header + QCOW2_AT_CLUSTER_BITS, CLUSTER_BITS);
    put_be64(header + QCOW2_AT_SIZE, sink->size_bytes);
    put_be32(header + QCOW2_AT_L1_SIZE, (uint32_t)sink->l2_count);
    put_be64(header + QCOW2_AT_L1_OFFSET, l1_offset);
    put_be64(header + QCOW2_AT_REFTABLE_OFFSET, table);
    put_be32(header + QCOW2_AT_REFTABLE_CLUSTERS, (uint32_t)table_clusters);
    put_be32(header + QCOW2_AT_REFCOUNT_ORDER, REFCOUNT_ORDER);
    put_be32(header + QCOW2_AT_HEADER_LENGTH, QCOW2_HEADER_V3_BYTES);
    if (pwrite_all(sink->fd, header, sizeof header, 0) < 0)
        return error_set_errno(err, errno, "cannot write the qcow2 header");
    return 0;
}

static int qcow2_finish(struct sink *sink, struct error *err)
{
    uint64_t pos = atomic_load(&sink->next);
    uint64_t l1_bytes = round_up_u64(sink->l2_count * 8, CLUSTER_BYTES);
    autofree uint8_t *l1 = xcalloc(1, l1_bytes);
    uint64_t l1_offset;
    uint64_t table = 0;
    uint64_t table_clusters = 0;

    if (sink->complete)
        return 0;
    if (check_writable(sink, err) < 0 || write_l2_tables(sink, l1, &pos, err) < 0)
        return -1;
    l1_offset = pos;
    if (append(sink, l1, l1_bytes, &pos, err) < 0 ||
        write_refcounts(sink, &pos, &table, &table_clusters, err) < 0)
        return -1;
    if (fdatasync(sink->fd) < 0)
        return error_set_errno(err, errno, "cannot sync qcow2 image");
    if (write_header(sink, l1_offset, table, table_clusters, err) < 0)
        return -1;
    if (fsync(sink->fd) < 0)
        return error_set_errno(err, errno, "cannot sync qcow2 image");
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
    .open = qcow2_open,
    .write = qcow2_write,
    .write_zero = qcow2_write_zero,
    .state = qcow2_state,
    .sync = qcow2_sync,
    .finish = qcow2_finish,
    .close = qcow2_close,
    .file_sha256 = qcow2_file_sha256,
};
