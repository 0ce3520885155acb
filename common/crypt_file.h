/* Files encrypted at rest: libsodium's secretstream (XChaCha20-Poly1305), chunk by chunk, so that a
 * flipped byte, another order, a cut or an added end is noticed where it stands.
 *
 *   64 bytes of header: magic "HSDKENC1", u8 key derivation (1: key file, 2: passphrase), u8 passes
 *   and u8 log2 of the MiB of memory (Argon2id; zero for a key file), one zero byte, u32 LE bytes
 *   of a chunk, 16 bytes salt, 24 bytes secretstream header, 8 bytes id of the derived key; then
 *   chunks, each 17 bytes longer than its plain bytes, the last one tagged as the end. The header
 *   is authenticated with the first chunk.
 *
 * The key is BLAKE2b-256, keyed with the salt, over the key file's bytes or over the 32 bytes that
 * Argon2id (version 1.3, one lane, the same salt) makes of the passphrase. The files that one
 * struct crypt_key encrypts share the salt of a passphrase, so that it is stretched once for all of
 * them; their random secretstream headers keep them apart. Any thread. */
#ifndef COMMON_CRYPT_FILE_H
#define COMMON_CRYPT_FILE_H

#include <stdatomic.h>

#include "common/error.h"

#define CRYPT_SUFFIX               ".enc"
#define CRYPT_METHOD               "xchacha20poly1305"
#define CRYPT_KEY_BYTES_MIN        32 /* of the key file: what 256 bits need at least */
#define CRYPT_KEY_BYTES_MAX        4096
#define CRYPT_HEADER_BYTES         64U
#define CRYPT_PASSPHRASE_BYTES_MIN 8 /* as NIST SP 800-63B wants at least */
#define CRYPT_PASSPHRASE_BYTES_MAX 1024
#define CRYPT_CHUNK_BYTES          ((uint32_t)(64 * KIB))
#define CRYPT_CHUNK_MAX            ((uint32_t)(4 * MIB)) /* of a stranger's header */

struct crypt_key;

/* ERR_DENIED: others than the owner may read it. ERR_INVALID: too short or too long. */
MUST_CHECK int crypt_key_load(const char *path, struct crypt_key **out, struct error *err);
/* From memory; size within the bounds above (asserted). */
struct crypt_key *crypt_key_new(const void *data, size_t size);
/* ERR_INVALID: shorter or longer than the bounds above. */
MUST_CHECK int crypt_key_from_passphrase(const char *passphrase, struct crypt_key **out,
                                         struct error *err);
void crypt_key_free(struct crypt_key *key); /* NULL-safe, wipes */
DEFINE_AUTO(crypt_key, struct crypt_key, crypt_key_free)
#define auto_crypt_key CLEANUP(crypt_key_auto) struct crypt_key

/* Does the file want a passphrase, not a key file? ERR_CORRUPT: it is no encrypted file. */
MUST_CHECK int crypt_wants_passphrase(const char *path, bool *out, struct error *err);
/* Is it the key of this file? Reads its header only. ERR_DENIED, ERR_CORRUPT. */
MUST_CHECK int crypt_key_check(const char *path, const struct crypt_key *key, struct error *err);
/* Writes `to` (made or emptied, mode 0640) from `from`, and syncs it. stopped may be NULL. */
MUST_CHECK int crypt_encrypt_file(const char *from, const char *to, const struct crypt_key *key,
                                  const atomic_bool *stopped, struct error *err);
struct crypt_file {
    int fd;
    const char *name; /* for errors */
};
/* Hands the plain bytes to take() in order; only after 0 was returned are they all there.
 * ERR_CORRUPT: no such file, damaged, cut, in another order, or with something behind its end.
 * ERR_DENIED: another key. */
MUST_CHECK int crypt_decrypt_fd(const struct crypt_file *file, const struct crypt_key *key,
                                const atomic_bool *stopped,
                                int (*take)(void *arg, const void *data, size_t size,
                                            struct error *err),
                                void *arg, struct error *err);
/* SHA-256 of the plain bytes of an encrypted file. */
MUST_CHECK int crypt_plain_sha256(const char *path, const struct crypt_key *key,
                                  const atomic_bool *stopped, char out_hex[65], struct error *err);
/* Writes the plain file under a temporary name (mode 0600) and gives it its own when all of it is
 * proven. ERR_CONFLICT: `to` exists. */
MUST_CHECK int crypt_decrypt_file(const char *from, const char *to, const struct crypt_key *key,
                                  struct error *err);

#endif
