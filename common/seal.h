/* Secrets at rest and in flight: libsodium secretbox under subkeys of one master key.
 * The gateway holds the master; every other process only the subkey of its audience:
 * "provider:<kind>", "upload", "notify", "bridge", "exports". Sealed form: 1 byte version, 8 bytes
 * key id, 24 bytes nonce, box. Keys are wiped when freed. */
#ifndef COMMON_SEAL_H
#define COMMON_SEAL_H

#include "common/config_schema.h"
#include "common/error.h"

#define SEAL_KEY_BYTES        32
#define SEAL_OVERHEAD_BYTES   (1 + 8 + 24 + 16)
#define SEAL_KEY_ID_SIZE      17 /* 16 hex and the NUL */
#define SEAL_AUDIENCE_MAX     64
#define SEAL_PUBLIC_BYTES     32 /* Ed25519 */
#define SEAL_SIGNATURE_BYTES  64
#define SEAL_EVIDENCE         "evidence" /* the audience whose key signs, and does nothing else */
#define SEAL_EXPORTS          "exports"  /* opens passphrases of exports */
#define SEAL_SECRET_BYTES_MAX 65536      /* a service account file is 3 KiB */

/* libsodium's set-up; idempotent, thread-safe. service_main calls it before threads start; the
 * functions here that make keys call it too. */
void seal_global_init(void);

struct seal_key; /* one audience's subkey */
struct seal_master;

/* 64 hex digits. ERR_INVALID. */
MUST_CHECK int seal_master_new(const char *hex, struct seal_master **out, struct error *err);
void seal_master_free(struct seal_master *master);
DEFINE_AUTO(seal_master, struct seal_master, seal_master_free)
#define auto_seal_master CLEANUP(seal_master_auto) struct seal_master
/* audience: 1 to SEAL_AUDIENCE_MAX bytes of [a-z0-9:_.-] (asserted: configuration is checked
 * before). */
struct seal_key *seal_master_derive(const struct seal_master *master, const char *audience);
/* Writes <dir>/<audience with : as ->.key (mode 0600) for the audience; makes dir if missing. */
MUST_CHECK int seal_key_save(const struct seal_key *key, const char *dir, struct error *err);
MUST_CHECK int seal_key_load(const char *dir, const char *audience, struct seal_key **out,
                             struct error *err);
void seal_key_free(struct seal_key *key);
DEFINE_AUTO(seal_key, struct seal_key, seal_key_free)
#define auto_seal_key CLEANUP(seal_key_auto) struct seal_key
const char *seal_key_id(const struct seal_key *key);
/* *out is malloc'ed. size is at most SEAL_SECRET_BYTES_MAX (asserted). */
void seal(const struct seal_key *key, const void *data, size_t size, uint8_t **out,
          size_t *out_size);
/* *out is NUL-terminated; wipe it with secret_free. ERR_DENIED: another key, or tampered with. */
MUST_CHECK int seal_open(const struct seal_key *key, const void *sealed, size_t size, char **out,
                         size_t *out_size, struct error *err);
/* Ed25519 with the audience's key as its seed: whoever has the public key can check. */
void seal_public(const struct seal_key *key, uint8_t out[SEAL_PUBLIC_BYTES]);
void seal_sign(const struct seal_key *key, const void *data, size_t size,
               uint8_t out[SEAL_SIGNATURE_BYTES]);
bool seal_signature_fits(const uint8_t public_key[SEAL_PUBLIC_BYTES], const void *data, size_t size,
                         const uint8_t signature[SEAL_SIGNATURE_BYTES]);
/* The public key as OpenSSL reads it. Caller frees. */
char *seal_public_pem(const struct seal_key *key);
/* Wipes and frees a NUL-terminated secret; NULL-safe. */
void secret_free(char *secret);
DEFINE_AUTO(secret, char, secret_free)
#define auto_secret CLEANUP(secret_auto) char

#endif
