/* streamOptimized VMDK as far as writer and reader share it (VMware "Virtual Disk Format 5.0").
 * Little endian, everything counted in sectors of 512 bytes. */
#ifndef EXPORTER_VMDK_H
#define EXPORTER_VMDK_H

#include "common/error.h"

#define VMDK_SECTOR            UINT64_C(512)
#define VMDK_MAGIC             0x564d444bU /* "KDMV" */
#define VMDK_GRAIN_SECTORS     128U
#define VMDK_GRAIN_BYTES       (VMDK_GRAIN_SECTORS * VMDK_SECTOR)
#define VMDK_TABLE_ENTRIES     512U
#define VMDK_TABLE_BYTES       (VMDK_TABLE_ENTRIES * 4U)
#define VMDK_TABLE_SECTORS     (VMDK_TABLE_BYTES / VMDK_SECTOR)
#define VMDK_SPAN_BYTES        (VMDK_TABLE_ENTRIES * VMDK_GRAIN_BYTES) /* 32 MiB per table */
#define VMDK_GD_AT_END         UINT64_MAX
#define VMDK_COMPRESS_DEFLATE  1U
#define VMDK_FLAG_NEWLINE_TEST (1U << 0)
#define VMDK_FLAG_ZERO_GRAINS  (1U << 2)
#define VMDK_FLAG_COMPRESSED   (1U << 16)
#define VMDK_FLAG_MARKERS      (1U << 17)
#define VMDK_NO_PARENT         "ffffffff" /* parentCID of a disk that is no delta */
#define VMDK_RECORD_HEADER     12U /* u64 sector, u32 compressed size; then the deflate stream */

#define VMDK_GRAIN_ZERO 1U /* table entry, with VMDK_FLAG_ZERO_GRAINS */

/* What we take from others. */
#define VMDK_GRAIN_SECTORS_MIN    8U
#define VMDK_GRAIN_SECTORS_MAX    2048U /* 1 MiB; real ones have 128 */
#define VMDK_TABLE_ENTRIES_MAX    4096U /* real ones have 512 */
#define VMDK_DESCRIPTOR_BYTES_MAX (64 * KIB)
#define VMDK_DIRECTORY_BYTES_MAX  (16 * MIB) /* 64 TiB in 64 KiB grains take 8 MiB */
/* Of one record; deflate makes what does not compress a little longer. */
#define VMDK_PACKED_BYTES_MAX(grain_bytes) (2 * (grain_bytes) + VMDK_SECTOR)

enum vmdk_marker { VMDK_MARKER_EOS, VMDK_MARKER_TABLE, VMDK_MARKER_DIRECTORY, VMDK_MARKER_FOOTER };

/* Byte offsets of the header's fields. */
enum vmdk_field {
    VMDK_AT_MAGIC = 0,
    VMDK_AT_VERSION = 4,
    VMDK_AT_FLAGS = 8,
    VMDK_AT_CAPACITY = 12,
    VMDK_AT_GRAIN_SIZE = 20,
    VMDK_AT_DESCRIPTOR_OFFSET = 28,
    VMDK_AT_DESCRIPTOR_SIZE = 36,
    VMDK_AT_TABLE_ENTRIES = 44,
    VMDK_AT_RGD_OFFSET = 48,
    VMDK_AT_GD_OFFSET = 56,
    VMDK_AT_OVERHEAD = 64,
    VMDK_AT_NEWLINE_TEST = 73,
    VMDK_AT_COMPRESSION = 77,
};

/* Is this sector a header (or footer, `what`) with fields in bounds? */
MUST_CHECK int vmdk_header_check(const uint8_t *header, const char *what, struct error *err);
/* Is it the descriptor of a disk of its own? ERR_NOT_AVAILABLE: of a delta. */
MUST_CHECK int vmdk_descriptor_check(const char *text, struct error *err);

#endif
