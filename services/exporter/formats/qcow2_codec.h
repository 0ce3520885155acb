/* Compressed clusters of qcow2: raw deflate or zstd frames, one per cluster. */
#ifndef EXPORTER_QCOW2_CODEC_H
#define EXPORTER_QCOW2_CODEC_H

#include "common/error.h"

#define QCOW2_LEVEL_MAX     9
#define QCOW2_LEVEL_DEFAULT 6 /* of both codecs, as everywhere else in the suite */

enum qcow2_codec { /* as in the header's field */
                   QCOW2_CODEC_ZLIB = 0,
                   QCOW2_CODEC_ZSTD = 1,
};

/* One thread at a time. level 0: the default. */
struct qcow2_packer;
struct qcow2_packer *qcow2_packer_new(enum qcow2_codec codec, int level);
void qcow2_packer_free(struct qcow2_packer *packer); /* NULL-safe */
/* Bytes written to out; 0: it does not get shorter than out_max. */
size_t qcow2_pack(struct qcow2_packer *packer, const uint8_t *cluster, size_t length, uint8_t *out,
                  size_t out_max);

struct qcow2_unpacker;
struct qcow2_unpacker *qcow2_unpacker_new(enum qcow2_codec codec);
void qcow2_unpacker_free(struct qcow2_unpacker *unpacker); /* NULL-safe */
/* Exactly `length` bytes out of packed, behind which there may be anything; false: it is damaged.
 */
bool qcow2_unpack(struct qcow2_unpacker *unpacker, const uint8_t *packed, size_t packed_bytes,
                  uint8_t *out, size_t length);

#endif
