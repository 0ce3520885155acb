/* See seal.h.
 *
 * Design notes. The subkey of an audience is crypto_kdf of the master with the context "hypersdk"
 * and, as number, the first 8 bytes of BLAKE2b over the audience's name. A key's id is a keyed
 * hash of a fixed text: it tells keys apart and says nothing about them. */
#include "common/seal.h"

#include <ctype.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "common/paths.h"

#define SEAL_VERSION      1
#define SEAL_KEY_ID_BYTES 8
#define SEAL_FILE_BYTES   (2 * SEAL_KEY_BYTES) /* hex; one newline may follow */

static_assert(SEAL_KEY_BYTES == crypto_kdf_KEYBYTES, "a master key is a kdf key");
static_assert(SEAL_KEY_BYTES == crypto_secretbox_KEYBYTES, "a subkey is a secretbox key");
static_assert(SEAL_OVERHEAD_BYTES ==
                  1 + SEAL_KEY_ID_BYTES + crypto_secretbox_NONCEBYTES + crypto_secretbox_MACBYTES,
              "the header describes the sealed form");

struct seal_master {
    uint8_t key[SEAL_KEY_BYTES];
};

struct seal_key {
    uint8_t key[SEAL_KEY_BYTES];
    uint8_t id[SEAL_KEY_ID_BYTES];
    char id_text[SEAL_KEY_ID_SIZE];
    char *audience;
};

static void global_init(void)
{
    if (sodium_init() < 0)
        abort(); /* without randomness nothing here is safe */
}

void seal_global_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    (void)pthread_once(&once, global_init);
}

int seal_master_new(const char *hex, struct seal_master **out, struct error *err)
{
    struct seal_master *master;

    seal_global_init();
    master = xcalloc(1, sizeof *master);
    if (!hex_decode(hex, master->key, sizeof master->key)) {
        seal_master_free(master);
        return error_set(err, ERR_INVALID, "the master key is not %d hex digits",
                         2 * SEAL_KEY_BYTES);
    }
    *out = master;
    return 0;
}

void seal_master_free(struct seal_master *master)
{
    if (master == NULL)
        return;
    sodium_memzero(master, sizeof *master);
    free(master);
}

static bool audience_is_valid(const char *audience)
{
    size_t length = strlen(audience);

    if (length == 0 || length > SEAL_AUDIENCE_MAX || audience[0] == '.')
        return false;
    for (const char *p = audience; *p != '\0'; p++) {
        if (!isascii(*p) || (!islower(*p) && !isdigit(*p) && strchr(":_.-", *p) == NULL))
            return false;
    }
    return true;
}

static struct seal_key *key_new(const char *audience)
{
    struct seal_key *key = xcalloc(1, sizeof *key);

    assert(audience_is_valid(audience));
    key->audience = xstrdup(audience);
    return key;
}

static void set_id(struct seal_key *key)
{
    static const char text[] = "hypersdk key id";
    uint8_t hash[crypto_generichash_BYTES];

    (void)crypto_generichash(hash, sizeof hash, (const uint8_t *)text, sizeof text - 1, key->key,
                             sizeof key->key);
    memcpy(key->id, hash, sizeof key->id);
    hex_encode(key->id, sizeof key->id, key->id_text);
}

struct seal_key *seal_master_derive(const struct seal_master *master, const char *audience)
{
    struct seal_key *key = key_new(audience);
    uint8_t hash[crypto_generichash_BYTES];
    uint64_t number = 0;

    (void)crypto_generichash(hash, sizeof hash, (const uint8_t *)audience, strlen(audience), NULL,
                             0);
    for (size_t i = 0; i < sizeof number; i++)
        number = number << 8 | hash[i];
    (void)crypto_kdf_derive_from_key(key->key, sizeof key->key, number, "hypersdk", master->key);
    set_id(key);
    return key;
}

static char *key_path(const char *dir, const char *audience)
{
    char *path = xasprintf("%s/%s.key", dir, audience);

    for (char *p = path + strlen(dir); *p != '\0'; p++) {
        if (*p == ':')
            *p = '-';
    }
    return path;
}

int seal_key_save(const struct seal_key *key, const char *dir, struct error *err)
{
    autofree char *path = key_path(dir, key->audience);
    char text[SEAL_FILE_BYTES + 2];
    int rv;

    if (path_make_dirs(dir, err) < 0)
        return -1;
    hex_encode(key->key, sizeof key->key, text);
    text[SEAL_FILE_BYTES] = '\n';
    text[SEAL_FILE_BYTES + 1] = '\0';
    rv = file_write_atomic(path, text, SEAL_FILE_BYTES + 1, 0600, err);
    sodium_memzero(text, sizeof text);
    return rv < 0 ? error_wrap(err, "key of '%s'", key->audience) : 0;
}

int seal_key_load(const char *dir, const char *audience, struct seal_key **out, struct error *err)
{
    autofree char *path = key_path(dir, audience);
    auto_seal_key *key = NULL;
    auto_secret *text = NULL;
    size_t size = 0;

    seal_global_init();
    if (!audience_is_valid(audience))
        return error_set(err, ERR_INVALID, "'%.64s' is no audience of secrets", audience);
    if (file_read(path, SEAL_FILE_BYTES + 1, &text, &size, err) < 0)
        return error_wrap(err, "key of '%s' (api-gateway --export-keys writes it)", audience);
    if (size == SEAL_FILE_BYTES + 1 && text[SEAL_FILE_BYTES] == '\n')
        text[SEAL_FILE_BYTES] = '\0';
    key = key_new(audience);
    if (!hex_decode(text, key->key, sizeof key->key)) {
        return error_set(err, ERR_INVALID, "key file '%.200s' is not %d hex digits", path,
                         SEAL_FILE_BYTES);
    }
    set_id(key);
    *out = STEAL(key);
    return 0;
}

void seal_key_free(struct seal_key *key)
{
    if (key == NULL)
        return;
    free(key->audience);
    sodium_memzero(key, sizeof *key);
    free(key);
}

const char *seal_key_id(const struct seal_key *key)
{
    return key->id_text;
}

void seal(const struct seal_key *key, const void *data, size_t size, uint8_t **out,
          size_t *out_size)
{
    uint8_t *sealed = xmalloc(SEAL_OVERHEAD_BYTES + size);
    uint8_t *nonce = sealed + 1 + SEAL_KEY_ID_BYTES;

    assert(size <= SEAL_SECRET_BYTES_MAX);
    sealed[0] = SEAL_VERSION;
    memcpy(sealed + 1, key->id, SEAL_KEY_ID_BYTES);
    randombytes_buf(nonce, crypto_secretbox_NONCEBYTES);
    (void)crypto_secretbox_easy(nonce + crypto_secretbox_NONCEBYTES, data, size, nonce, key->key);
    *out = sealed;
    *out_size = SEAL_OVERHEAD_BYTES + size;
}

static int check_header(const struct seal_key *key, const uint8_t *sealed, size_t size,
                        struct error *err)
{
    char id[SEAL_KEY_ID_SIZE];

    if (size < SEAL_OVERHEAD_BYTES)
        return error_set(err, ERR_DENIED, "the sealed secret is cut short");
    if (size > SEAL_OVERHEAD_BYTES + SEAL_SECRET_BYTES_MAX)
        return error_set(err, ERR_DENIED, "the sealed secret is too long");
    if (sealed[0] != SEAL_VERSION)
        return error_set(err, ERR_DENIED, "the sealed secret has unknown version %u", sealed[0]);
    if (memcmp(sealed + 1, key->id, SEAL_KEY_ID_BYTES) == 0)
        return 0;
    hex_encode(sealed + 1, SEAL_KEY_ID_BYTES, id);
    return error_set(err, ERR_DENIED,
                     "the secret is sealed with key %s, this process holds %s of '%s'", id,
                     key->id_text, key->audience);
}

int seal_open(const struct seal_key *key, const void *sealed, size_t size, char **out,
              size_t *out_size, struct error *err)
{
    const uint8_t *bytes = sealed;
    const uint8_t *nonce;
    size_t text_size;
    char *text;

    if (check_header(key, bytes, size, err) < 0)
        return -1;
    nonce = bytes + 1 + SEAL_KEY_ID_BYTES;
    text_size = size - SEAL_OVERHEAD_BYTES;
    text = xmalloc(text_size + 1);
    if (crypto_secretbox_open_easy((uint8_t *)text, nonce + crypto_secretbox_NONCEBYTES,
                                   size - 1 - SEAL_KEY_ID_BYTES - crypto_secretbox_NONCEBYTES,
                                   nonce, key->key) != 0) {
        free(text);
        return error_set(err, ERR_DENIED, "the sealed secret was tampered with");
    }
    text[text_size] = '\0';
    *out = text;
    *out_size = text_size;
    return 0;
}

static void sign_pair(const struct seal_key *key, uint8_t public_key[SEAL_PUBLIC_BYTES],
                      uint8_t secret[crypto_sign_SECRETKEYBYTES])
{
    static_assert(SEAL_KEY_BYTES == crypto_sign_SEEDBYTES, "a key is a seed");
    static_assert(SEAL_PUBLIC_BYTES == crypto_sign_PUBLICKEYBYTES, "size of public keys");
    static_assert(SEAL_SIGNATURE_BYTES == crypto_sign_BYTES, "size of signatures");
    (void)crypto_sign_seed_keypair(public_key, secret, key->key);
}

void seal_public(const struct seal_key *key, uint8_t out[SEAL_PUBLIC_BYTES])
{
    uint8_t secret[crypto_sign_SECRETKEYBYTES];

    sign_pair(key, out, secret);
    sodium_memzero(secret, sizeof secret);
}

void seal_sign(const struct seal_key *key, const void *data, size_t size,
               uint8_t out[SEAL_SIGNATURE_BYTES])
{
    uint8_t public_key[SEAL_PUBLIC_BYTES];
    uint8_t secret[crypto_sign_SECRETKEYBYTES];

    sign_pair(key, public_key, secret);
    (void)crypto_sign_detached(out, NULL, data, size, secret);
    sodium_memzero(secret, sizeof secret);
}

bool seal_signature_fits(const uint8_t public_key[SEAL_PUBLIC_BYTES], const void *data, size_t size,
                         const uint8_t signature[SEAL_SIGNATURE_BYTES])
{
    return crypto_sign_verify_detached(signature, data, size, public_key) == 0;
}

char *seal_public_pem(const struct seal_key *key)
{
    /* SubjectPublicKeyInfo of RFC 8410: a fixed beginning and the 32 bytes */
    uint8_t der[12 + SEAL_PUBLIC_BYTES] = {0x30, 0x2a, 0x30, 0x05, 0x06, 0x03,
                                           0x2b, 0x65, 0x70, 0x03, 0x21, 0x00};
    char text[sodium_base64_ENCODED_LEN(sizeof der, sodium_base64_VARIANT_ORIGINAL)];

    seal_public(key, der + 12);
    (void)sodium_bin2base64(text, sizeof text, der, sizeof der, sodium_base64_VARIANT_ORIGINAL);
    return xasprintf("-----BEGIN PUBLIC KEY-----\n%s\n-----END PUBLIC KEY-----\n", text);
}

void secret_free(char *secret)
{
    if (secret == NULL)
        return;
    sodium_memzero(secret, strlen(secret));
    free(secret);
}
