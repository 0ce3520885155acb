/* SHA-256 of a long stream that another process can go on with: behind whole blocks all that there
 * is of it are eight words and the number of bytes. EVP cannot give them out, so this is the one
 * place that uses OpenSSL's older interface (deprecated since 3.0, there in all of 3.x). */
#ifndef EXPORTER_RUNNING_SHA256_H
#define EXPORTER_RUNNING_SHA256_H

#include "services/exporter/formats/digest.h"

#define RUNNING_SHA256_BLOCK 64U

struct running_sha256;

struct running_sha256 *running_sha256_new(void);
void running_sha256_free(struct running_sha256 *sha); /* NULL-safe */
void running_sha256_add(struct running_sha256 *sha, const void *data, size_t size);
/* After a multiple of RUNNING_SHA256_BLOCK bytes. */
void running_sha256_save(const struct running_sha256 *sha, uint8_t out[DIGEST_BYTES]);
/* As it was when it was saved, behind `bytes` bytes. */
void running_sha256_restore(struct running_sha256 *sha, const uint8_t saved[DIGEST_BYTES],
                            uint64_t bytes);
/* The digest; nothing can be added any more. */
void running_sha256_end(struct running_sha256 *sha, char out[DIGEST_HEX_SIZE]);

#endif
