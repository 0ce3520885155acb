/* Who is calling: sessions, API keys, passwords. Tokens are random and stored as SHA-256 only;
 * passwords as Argon2id. */
#ifndef GATEWAY_AUTH_H
#define GATEWAY_AUTH_H

#include <sodium.h>

#include "headers.h"
#include "transport.h"

#define SESSION_PREFIX     "s."
#define KEY_PREFIX         "k."
#define TOKEN_TEXT_SIZE    (2 + 64 + 1) /* prefix, 256 bits in hex, NUL */
#define TOKEN_HASH_BYTES   crypto_hash_sha256_BYTES
#define KEY_SHOWN_BYTES    10 /* of a key: enough to recognise it, too little to guess the rest */
#define PASSWORD_BYTES_MIN 8
#define PASSWORD_BYTES_MAX 1024

/* From Authorization, X-API-Key or, for routes that stream, the session cookie. Without any of
 * them: 0 and an identity with no name. Wrong or expired: ERR_DENIED. */
MUST_CHECK int auth_identify(struct call *call, struct db *db, struct error *err);
/* The token that the request brought; NULL when none. cookie is storage for it. */
const char *auth_credential(const struct call *call, char cookie[TOKEN_BYTES_MAX]);
/* The identity of a session token or API key. ERR_DENIED. */
MUST_CHECK int auth_token(const struct gateway *gateway, struct db *db, const char *token,
                          struct identity *out, struct error *err);
/* Again, by the hash kept of it: a session that was ended since, or whose user was disabled, is
 * ERR_DENIED. */
MUST_CHECK int auth_token_again(const struct gateway *gateway, struct db *db, bool session,
                                const uint8_t hash[TOKEN_HASH_BYTES], struct identity *out,
                                struct error *err);
/* What everyone is in dev mode. */
void auth_dev(struct identity *out);
void identity_release(struct identity *identity);

/* A new token of the kind; its hash as db text (caller frees). */
char *token_new(const char *prefix, char out[TOKEN_TEXT_SIZE]);
char *token_hash_text(const char *token);
void token_hash(const char *token, uint8_t out[TOKEN_HASH_BYTES]);

/* 64 MiB and about 0.1 s each; only on the password pool. */
MUST_CHECK int password_hash(const char *password, char out[crypto_pwhash_STRBYTES],
                             struct error *err);
/* hash NULL: takes as long as with one, and fails. */
bool password_verify(const char *hash, const char *password);

/* The permissions of one role: the configuration's, else the table's. *out: array. ERR_NOT_FOUND.
 */
MUST_CHECK int role_permissions(const struct gateway *gateway, struct db *db, const char *role,
                                json_t **out, struct error *err);
/* All permissions that there are; NULL-terminated. */
extern const char *const permissions_known[];
bool permission_is_known(const char *permission);

#endif
