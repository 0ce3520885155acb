/* "raw.zst": a raw image in zstd frames, as `zstd -d` reads it. Each frame holds one piece of the
 * disk (1 MiB, the last may be shorter) with its size and a checksum. Behind them stands the seek
 * table of zstd's "seekable format" (a skippable frame, which zstd -d passes over), so that pieces
 * are read by themselves:
 *
 *   u32 LE magic 184D2A5E, u32 bytes that follow; per frame u32 its bytes, u32 plain bytes; then
 *   u32 number of frames, u8 0 (no checksums in the table), u32 magic 8F92EAB1. */
#ifndef EXPORTER_ZST_H
#define EXPORTER_ZST_H

#include "common/error.h"

#define ZST_PIECE_BYTES      ((size_t)MIB)
#define ZST_TABLE_MAGIC      0x184D2A5EU
#define ZST_SEEK_MAGIC       0x8F92EAB1U
#define ZST_TABLE_HEAD_BYTES 8U
#define ZST_ENTRY_BYTES      8U
#define ZST_FOOTER_BYTES     9U
#define ZST_FRAME_BYTES_MAX  (ZST_PIECE_BYTES + 4096) /* zstd's own bound is 4 KiB over */

#endif
