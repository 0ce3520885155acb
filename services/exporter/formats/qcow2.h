/* The qcow2 format as far as writer and reader share it (QEMU docs/interop/qcow2.txt). */
#ifndef EXPORTER_QCOW2_H
#define EXPORTER_QCOW2_H

#define QCOW2_MAGIC              0x514649fbU /* "QFI" 0xfb */
#define QCOW2_HEADER_V2_BYTES    72
#define QCOW2_HEADER_V3_BYTES    104
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

#endif
