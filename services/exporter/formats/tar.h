/* Fields of a tar header block (POSIX ustar). Only ova_read.c and ova_write.c include this. */
#ifndef EXPORTER_TAR_H
#define EXPORTER_TAR_H

#include <string.h>

#include "common/base.h"

enum tar_field {
    TAR_AT_NAME = 0,
    TAR_AT_MODE = 100,
    TAR_AT_UID = 108,
    TAR_AT_GID = 116,
    TAR_AT_SIZE = 124,
    TAR_AT_MTIME = 136,
    TAR_AT_CHECKSUM = 148,
    TAR_AT_TYPE = 156,
    TAR_AT_MAGIC = 257,
    TAR_AT_PREFIX = 345,
};

#define TAR_NAME_BYTES     100U
#define TAR_ID_BYTES       8U
#define TAR_SIZE_BYTES     12U
#define TAR_CHECKSUM_BYTES 8U
#define TAR_PREFIX_BYTES   155U
#define TAR_BASE256        0x80U /* first byte of a number that is binary, not octal */
#define TAR_OCTAL_MAX      UINT64_C(077777777777) /* 8 GiB - 1 */

/* Sum of the header's bytes, its checksum field taken as blanks. */
static inline uint32_t tar_checksum(const uint8_t *header, size_t size)
{
    uint32_t sum = 0;

    for (size_t i = 0; i < size; i++) {
        bool blank = i >= TAR_AT_CHECKSUM && i < TAR_AT_CHECKSUM + TAR_CHECKSUM_BYTES;
        sum += blank ? ' ' : header[i];
    }
    return sum;
}

#endif
