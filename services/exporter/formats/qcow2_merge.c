/* See qcow2_merge.h.
 *
 * Design notes
 * - New clusters go where lower's tables name nothing (room left by an earlier merge) or behind its
 *   end; new tables go behind that, so the file grows by its tables (1/8000 of the disk) with each
 *   merge, as holes. Nothing that the present header reaches is overwritten, so the
 *   header is the commit.
 * - lower's compressed clusters are kept as they are; upper's are unpacked, since both may have
 *   different codecs and an image has one.
 * - lower has no backing file: zeros need no entry. */
#include "services/exporter/formats/qcow2_merge.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "services/exporter/formats/bytes.h"
#include "services/exporter/formats/image.h"
#include "services/exporter/formats/qcow2.h"
#include "services/exporter/formats/qcow2_tables.h"

#define CLUSTER         QCOW2_CLUSTER_BYTES
#define AT_SNAPSHOTS    60
#define GO_ON_CLUSTERS  64 /* 4 MiB between two questions */
#define TABLE_BYTES_MAX (64 * MIB)

struct merge {
    struct image *lower;
    struct image *upper; /* with its chain */
    int fd;              /* lower's file */
    int index_fd;
    char *index_path;
    uint64_t size_bytes;
    uint64_t clusters; /* of the disk */
    uint64_t end;      /* of lower's file, in clusters; grows */
    uint64_t used_end; /* what the bitmap covers */
    uint8_t *used;     /* clusters below used_end that lower's tables reach */
    uint64_t free_at;  /* no free one below */
    bool packed;
    enum qcow2_codec codec;
    int (*go_on)(void *arg, struct error *err);
    void *arg;
};

static void merge_release(struct merge *merge)
{
    image_close(merge->lower);
    image_close(merge->upper);
    if (merge->fd >= 0)
        (void)close(merge->fd);
    if (merge->index_fd >= 0)
        (void)close(merge->index_fd);
    free(merge->index_path);
    free(merge->used);
}

/* ---- which clusters are in use ---- */

static void mark(uint8_t *bitmap, uint64_t end, uint64_t offset, uint64_t length)
{
    for (uint64_t i = offset / CLUSTER; length > 0 && i <= (offset + length - 1) / CLUSTER; i++) {
        if (i < end)
            bitmap[i / 8] = (uint8_t)(bitmap[i / 8] | 1U << (i % 8));
    }
}

static bool is_marked(const uint8_t *bitmap, uint64_t i)
{
    return (bitmap[i / 8] >> (i % 8) & 1) != 0;
}

/* A table of offsets, and the clusters that these name. */
static int mark_table(struct merge *merge, uint64_t offset, uint64_t bytes, struct error *err)
{
    autofree uint8_t *table = NULL;

    if (bytes > TABLE_BYTES_MAX)
        return error_set(err, ERR_LIMIT, "a table of %" PRIu64 " bytes", bytes);
    table = xmalloc(bytes + 1);
    if (pread_all(merge->fd, table, bytes, offset) < 0)
        return error_set_errno(err, errno, "cannot read a table at %" PRIu64, offset);
    mark(merge->used, merge->used_end, offset, bytes);
    for (uint64_t at = 0; at + 8 <= bytes; at += 8) {
        uint64_t named = get_be64(table + at) & QCOW2_OFFSET_MASK;
        if (named != 0)
            mark(merge->used, merge->used_end, named, CLUSTER);
    }
    return 0;
}

static int mark_metadata(struct merge *merge, struct error *err)
{
    uint8_t header[QCOW2_HEADER_CODEC_BYTES];

    if (pread_all(merge->fd, header, sizeof header, 0) < 0)
        return error_set_errno(err, errno, "cannot read the header");
    if (get_be32(header + AT_SNAPSHOTS) != 0)
        return error_set(err, ERR_NOT_AVAILABLE, "the image has snapshots inside");
    if ((get_be64(header + QCOW2_AT_INCOMPATIBLE) & QCOW2_INCOMPAT_CODEC) != 0)
        merge->codec = header[QCOW2_AT_CODEC];
    mark(merge->used, merge->used_end, 0, CLUSTER);
    if (mark_table(merge, get_be64(header + QCOW2_AT_L1_OFFSET),
                   get_be32(header + QCOW2_AT_L1_SIZE) * UINT64_C(8), err) < 0)
        return -1;
    return mark_table(merge, get_be64(header + QCOW2_AT_REFTABLE_OFFSET),
                      get_be32(header + QCOW2_AT_REFTABLE_CLUSTERS) * CLUSTER, err);
}

static int mark_data(struct merge *merge, struct error *err)
{
    for (uint64_t i = 0; i < merge->clusters; i++) {
        struct qcow2_cluster where;
        if (qcow2_cluster_find(merge->lower, i, &where, err) < 0)
            return -1;
        merge->packed = merge->packed || where.kind == QCOW2_KIND_PACKED;
        if (where.kind == QCOW2_KIND_DATA)
            where.length = CLUSTER;
        mark(merge->used, merge->used_end, where.offset, where.length);
    }
    return 0;
}

/* ---- the new map ---- */

static uint64_t free_cluster(struct merge *merge)
{
    while (merge->free_at < merge->used_end && is_marked(merge->used, merge->free_at))
        merge->free_at++;
    return merge->free_at < merge->used_end ? merge->free_at++ : merge->end++;
}

/* The entry of a cluster that upper has. */
static int take_upper(struct merge *merge, uint64_t cluster, uint8_t *buffer, uint8_t *entry,
                      struct error *err)
{
    uint64_t offset = cluster * CLUSTER;
    size_t length = (size_t)min_u64(CLUSTER, merge->size_bytes - offset);
    uint64_t host;

    memset(buffer, 0, CLUSTER);
    if (image_read(merge->upper, buffer, length, offset, err) < 0)
        return -1;
    if (mem_is_zero(buffer, CLUSTER))
        return 0;
    host = free_cluster(merge) * CLUSTER;
    if (pwrite_all(merge->fd, buffer, CLUSTER, host) < 0)
        return error_set_errno(err, errno, "cannot write at %" PRIu64, host);
    put_be64(entry, host | QCOW2_COPIED);
    return 0;
}

static int take_lower(struct merge *merge, uint64_t cluster, uint8_t *entry, struct error *err)
{
    struct qcow2_cluster where;
    uint64_t sectors;

    if (qcow2_cluster_find(merge->lower, cluster, &where, err) < 0)
        return -1;
    if (where.kind == QCOW2_KIND_DATA) {
        put_be64(entry, where.offset | QCOW2_COPIED);
    } else if (where.kind == QCOW2_KIND_PACKED) {
        sectors = (where.offset % 512 + where.length) / 512;
        put_be64(entry, where.offset | (sectors - 1) << (62 - (QCOW2_CLUSTER_BITS - 8)) |
                            QCOW2_COMPRESSED);
    }
    return 0;
}

static int map_cluster(struct merge *merge, uint64_t cluster, uint8_t *buffer, uint8_t *entry,
                       struct error *err)
{
    struct qcow2_cluster where;

    if (cluster % GO_ON_CLUSTERS == 0 && merge->go_on(merge->arg, err) < 0)
        return -1;
    if (qcow2_cluster_find(merge->upper, cluster, &where, err) < 0)
        return -1;
    switch (where.kind) {
    case QCOW2_KIND_NONE:
        return take_lower(merge, cluster, entry, err);
    case QCOW2_KIND_ZERO:
        return 0;
    case QCOW2_KIND_DATA:
    case QCOW2_KIND_PACKED:
        return take_upper(merge, cluster, buffer, entry, err);
    }
    return error_set(err, ERR_INTERNAL, "unknown kind of cluster");
}

/* One table of the index at a time. */
static int make_map(struct merge *merge, struct error *err)
{
    autofree uint8_t *block = xmalloc(CLUSTER);
    autofree uint8_t *buffer = xmalloc(CLUSTER);

    for (uint64_t table = 0; table < qcow2_l2_count(merge->size_bytes); table++) {
        uint64_t first = table * QCOW2_L2_ENTRIES;
        uint64_t count = min_u64(QCOW2_L2_ENTRIES, merge->clusters - first);
        memset(block, 0, CLUSTER);
        for (uint64_t i = 0; i < count; i++) {
            if (map_cluster(merge, first + i, buffer, block + 8 * i, err) < 0)
                return -1;
        }
        if (pwrite_all(merge->index_fd, block, CLUSTER, qcow2_index_offset(first)) < 0)
            return error_set_errno(err, errno, "cannot write '%.200s'", merge->index_path);
    }
    return 0;
}

/* ---- what is not needed any more ---- */

static void punch(int fd, uint64_t first, uint64_t end)
{
    /* Room is all that is lost where this does not work. */
    if (end > first) {
        (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(first * CLUSTER),
                        (off_t)((end - first) * CLUSTER));
    }
}

/* Clusters below `end` that the new map does not name. The new tables lie behind. */
static int give_back(const struct merge *merge, uint64_t end, struct error *err)
{
    autofree uint8_t *needed = xcalloc(end / 8 + 1, 1);
    autofree uint8_t *block = xmalloc(CLUSTER);
    uint64_t first = 1;

    for (uint64_t table = 0; table < qcow2_l2_count(merge->size_bytes); table++) {
        if (pread_all(merge->index_fd, block, CLUSTER,
                      qcow2_index_offset(table * QCOW2_L2_ENTRIES)) < 0)
            return error_set_errno(err, errno, "cannot read '%.200s'", merge->index_path);
        for (size_t i = 0; i < QCOW2_L2_ENTRIES; i++) {
            uint64_t entry = get_be64(block + 8 * i);
            uint64_t offset = entry & QCOW2_OFFSET_MASK;
            uint64_t length = offset == 0 ? 0 : CLUSTER;
            if ((entry & QCOW2_COMPRESSED) != 0)
                qcow2_packed_range(entry, QCOW2_CLUSTER_BITS, &offset, &length);
            mark(needed, end, offset, length);
        }
    }
    for (uint64_t i = 1; i < end; i++) {
        if (!is_marked(needed, i))
            continue;
        punch(merge->fd, first, i);
        first = i + 1;
    }
    punch(merge->fd, first, end);
    return 0;
}

/* ---- the whole ---- */

static int open_images(struct merge *merge, const char *lower, const char *upper, const char *root,
                       struct error *err)
{
    struct stat st;
    struct stat below;
    uint64_t bytes;

    if (image_open_chain(lower, "qcow2", root, &merge->lower, err) < 0 ||
        image_open_chain(upper, "qcow2", root, &merge->upper, err) < 0)
        return -1;
    merge->size_bytes = image_size_bytes(merge->upper);
    merge->fd = open(lower, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (merge->fd < 0 || fstat(merge->fd, &st) < 0)
        return error_set_errno(err, errno, "cannot open '%.200s'", lower);
    bytes = (uint64_t)st.st_size;
    if (image_backing(merge->upper) == NULL || image_backing(merge->lower) != NULL ||
        image_file_stat(image_backing(merge->upper), &below) < 0 || below.st_ino != st.st_ino ||
        below.st_dev != st.st_dev) {
        return error_set(err, ERR_CORRUPT, "'%.200s' does not stand on '%.200s' alone", upper,
                         lower);
    }
    if (image_size_bytes(merge->lower) != merge->size_bytes ||
        qcow2_cluster_bytes(merge->lower) != CLUSTER ||
        qcow2_cluster_bytes(merge->upper) != CLUSTER) {
        return error_set(err, ERR_NOT_AVAILABLE, "'%.200s' and '%.200s' differ in size or clusters",
                         lower, upper);
    }
    merge->clusters = round_up_u64(merge->size_bytes, CLUSTER) / CLUSTER;
    merge->end = round_up_u64(bytes, CLUSTER) / CLUSTER;
    merge->used_end = merge->end;
    merge->used = xcalloc(merge->used_end / 8 + 1, 1);
    merge->index_path = xasprintf("%s.index", lower);
    merge->index_fd = open(merge->index_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
                           SINK_FILE_MODE);
    if (merge->index_fd < 0)
        return error_set_errno(err, errno, "cannot create '%.200s'", merge->index_path);
    return 0;
}

static int run(struct merge *merge, struct error *err)
{
    struct qcow2_image image = {
        .fd = merge->fd,
        .index = {merge->index_fd, merge->index_path, merge->size_bytes},
        .counted = true,
    };

    if (qcow2_index_create(&image.index, err) < 0 || mark_metadata(merge, err) < 0 ||
        mark_data(merge, err) < 0 || make_map(merge, err) < 0 || merge->go_on(merge->arg, err) < 0)
        return -1;
    if (fdatasync(merge->fd) < 0)
        return error_set_errno(err, errno, "cannot sync");
    image.end = merge->end * CLUSTER;
    image.packed = merge->packed;
    image.codec = merge->codec;
    if (qcow2_tables_write(&image, err) < 0 || give_back(merge, merge->end, err) < 0)
        return -1;
    if (unlink(merge->index_path) < 0)
        return error_set_errno(err, errno, "cannot remove '%.200s'", merge->index_path);
    return 0;
}

int qcow2_merge(const char *lower, const char *upper, const char *root,
                int (*go_on)(void *arg, struct error *err), void *arg, struct error *err)
{
    CLEANUP(merge_release)
    struct merge merge = {.fd = -1, .index_fd = -1, .go_on = go_on, .arg = arg};

    if (open_images(&merge, lower, upper, root, err) < 0)
        return -1;
    if (run(&merge, err) < 0)
        return error_wrap(err, "merging into '%.200s'", lower);
    return 0;
}
