/* What an encrypted file of an export holds, read in stream: no plain byte reaches a disk. */
#ifndef EXPORTER_EXPORT_PLAIN_H
#define EXPORTER_EXPORT_PLAIN_H

#include "common/crypt_file.h"
#include "services/exporter/engine/copy.h"

struct export_plain_options {
    const char *path;
    const struct crypt_key *key;
    const struct leaves *leaves; /* of the disk that a raw image is; NULL: any other file */
    const atomic_bool *stopped;
    size_t keep_max; /* keep the plain bytes, at most so many; 0: do not */
};

struct export_plain {
    uint64_t bytes; /* plain ones; on failure so many that are sound */
    char sha256[DIGEST_HEX_SIZE];
    struct copy_differences differences; /* from the leaves */
    uint8_t *kept;                       /* `bytes` of them; caller frees */
};

/* ERR_CORRUPT: damaged behind out->bytes; ERR_DENIED: another key; ERR_LIMIT: over keep_max. *out
 * is written in any case. */
MUST_CHECK int export_plain_read(const struct export_plain_options *options,
                                 struct export_plain *out, struct error *err);

#endif
