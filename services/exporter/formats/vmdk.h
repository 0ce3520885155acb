/* streamOptimized VMDK as far as writer and reader share it (VMware "Virtual Disk Format 5.0").
 * Little endian, everything counted in sectors of 512 bytes. */
#ifndef EXPORTER_VMDK_H
#define EXPORTER_VMDK_H

#include "common/base.h"

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

#endif
