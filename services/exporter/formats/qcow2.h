/* The qcow2 format as far as writer and reader share it (QEMU docs/interop/qcow2.txt). */
#ifndef EXPORTER_QCOW2_H
#define EXPORTER_QCOW2_H

#include "services/exporter/formats/image.h"

#define QCOW2_MAGIC              0x514649fbU /* "QFI" 0xfb */
#define QCOW2_HEADER_V2_BYTES    72
#define QCOW2_HEADER_V3_BYTES    104
#define QCOW2_HEADER_CODEC_BYTES 112 /* with the field that names the codec */
#define QCOW2_BACKING_BYTES_MAX  1023
#define QCOW2_EXT_END            0U
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acaU
#define QCOW2_COPIED             (UINT64_C(1) << 63) /* refcount is exactly one */
#define QCOW2_COMPRESSED         (UINT64_C(1) << 62)
#define QCOW2_ZERO               UINT64_C(1)
#define QCOW2_OFFSET_MASK        UINT64_C(0x00fffffffffffe00)
#define QCOW2_INCOMPAT_DIRTY     (UINT64_C(1) << 0) /* refcounts may be stale: no matter to readers */
#define QCOW2_INCOMPAT_CORRUPT   (UINT64_C(1) << 1)
#define QCOW2_INCOMPAT_DATA_FILE (UINT64_C(1) << 2)
#define QCOW2_INCOMPAT_CODEC     (UINT64_C(1) << 3)
#define QCOW2_INCOMPAT_EXT_L2    (UINT64_C(1) << 4)

/* Byte offsets of the header's fields; all big endian. */
enum qcow2_field {
    QCOW2_AT_MAGIC = 0,
    QCOW2_AT_VERSION = 4,
    QCOW2_AT_BACKING_OFFSET = 8,
    QCOW2_AT_BACKING_SIZE = 16,
    QCOW2_AT_CLUSTER_BITS = 20,
    QCOW2_AT_SIZE = 24,
    QCOW2_AT_CRYPT_METHOD = 32,
    QCOW2_AT_L1_SIZE = 36,
    QCOW2_AT_L1_OFFSET = 40,
    QCOW2_AT_REFTABLE_OFFSET = 48,
    QCOW2_AT_REFTABLE_CLUSTERS = 56,
    QCOW2_AT_INCOMPATIBLE = 72,
    QCOW2_AT_REFCOUNT_ORDER = 96,
    QCOW2_AT_HEADER_LENGTH = 100,
    QCOW2_AT_CODEC = 104,
};

/* Where a cluster of the disk is. */
enum qcow2_kind {
    QCOW2_KIND_NONE, /* as in the backing file, else zeros */
    QCOW2_KIND_ZERO,
    QCOW2_KIND_DATA,
    QCOW2_KIND_PACKED,
};
struct qcow2_cluster {
    enum qcow2_kind kind;
    uint64_t offset; /* in the file */
    uint64_t length; /* packed: at most that many bytes */
};

/* The offset and length in an L2 entry of a compressed cluster. */
static inline void qcow2_packed_range(uint64_t entry, unsigned int cluster_bits,
                                      uint64_t *out_offset, uint64_t *out_length)
{
    unsigned int bits = 62 - (cluster_bits - 8);
    uint64_t sectors = (entry & (QCOW2_COMPRESSED - 1)) >> bits;

    *out_offset = entry & ((UINT64_C(1) << bits) - 1);
    *out_length = (sectors + 1) * 512 - *out_offset % 512;
}

/* Of an open qcow2 image, without its chain. */
MUST_CHECK int qcow2_cluster_find(struct image *image, uint64_t cluster, struct qcow2_cluster *out,
                                  struct error *err);
uint64_t qcow2_cluster_bytes(const struct image *image);

#endif
