/* The tables of a qcow2 image whose clusters are in place: L2, L1, refcounts, header; written from
 * an index file, which holds one L2 entry (8 bytes, big endian) per cluster of the disk behind a
 * header page. 64 KiB clusters, version 3.
 *
 * Nothing that the image held before is touched but the header, which is written last, in one
 * sector: until then it is what it was. */
#ifndef EXPORTER_QCOW2_TABLES_H
#define EXPORTER_QCOW2_TABLES_H

#include "services/exporter/formats/qcow2_codec.h"
#include "services/exporter/formats/sink_file.h"

#define QCOW2_CLUSTER_BITS  16
#define QCOW2_CLUSTER_BYTES (UINT64_C(1) << QCOW2_CLUSTER_BITS)
#define QCOW2_L2_ENTRIES    (QCOW2_CLUSTER_BYTES / 8)
/* Of the disk, per table: 512 MiB. */
#define QCOW2_L2_SPAN_BYTES (QCOW2_L2_ENTRIES * QCOW2_CLUSTER_BYTES)

/* Offset in the index file of the entry of this cluster. */
static inline uint64_t qcow2_index_offset(uint64_t cluster)
{
    return 4096 + cluster * 8;
}

struct qcow2_index {
    int fd;
    const char *path;    /* for errors */
    uint64_t size_bytes; /* of the disk */
};

uint64_t qcow2_l2_count(uint64_t size_bytes);
/* Header and size of a new index, all entries 0. */
MUST_CHECK int qcow2_index_create(const struct qcow2_index *index, struct error *err);
/* ERR_CORRUPT unless it is the index of a disk of this size. */
MUST_CHECK int qcow2_index_check(const struct qcow2_index *index, struct error *err);

struct qcow2_image {
    int fd;
    struct qcow2_index index;
    uint64_t end; /* tables go behind it; multiple of QCOW2_CLUSTER_BYTES */
    bool counted; /* refcounts come from the index; else all below end are 1. What is there is not
                     read either way: it may be gone. */
    bool packed;  /* there are compressed clusters */
    enum qcow2_codec codec;
    const char *backing;         /* NULL: none; a qcow2 */
    struct writeback *writeback; /* may be NULL */
};

/* Everything is durable afterwards. */
MUST_CHECK int qcow2_tables_write(const struct qcow2_image *image, struct error *err);

#endif
