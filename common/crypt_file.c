/* See crypt_file.h. */
#include "common/crypt_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/paths.h"
#include "common/seal.h"

#define MAGIC      "HSDKENC1"
#define KDF_FILE   1
#define KDF_PHRASE 2
#define TAG_BYTES  crypto_secretstream_xchacha20poly1305_ABYTES
#define AT_KDF     8
#define AT_PASSES  9
#define AT_MEMORY  10 /* log2 of MiB */
#define AT_CHUNK   12
#define AT_SALT    16
#define AT_STREAM  32
#define AT_KEY_ID  56
#define SALT_BYTES 16
#define ID_BYTES   8

/* RFC 9106's second choice (64 MiB, 3 passes) and one pass more for the one lane of libsodium: 0.2
 * s and no more memory than a reader of a disk has. */
#define PHRASE_PASSES     4
#define PHRASE_MEMORY     6
#define PHRASE_PASSES_MAX 16 /* of a stranger's header, which must not cost minutes */
#define PHRASE_MEMORY_MAX 10

static_assert(AT_STREAM + crypto_secretstream_xchacha20poly1305_HEADERBYTES == AT_KEY_ID, "header");
static_assert(AT_KEY_ID + ID_BYTES == CRYPT_HEADER_BYTES, "header");

struct stretched {         /* what Argon2id made of the passphrase */
    pthread_mutex_t mutex; /* guards the rest */
    bool known;
    uint8_t parameters[2]; /* passes, memory: as in the header */
    uint8_t salt[SALT_BYTES];
    uint8_t bytes[CRYPT_KEY_BYTES_MIN];
};

struct crypt_key {
    struct stretched *stretched; /* NULL: the data are a key file's */
    size_t size;
    uint8_t data[CRYPT_KEY_BYTES_MAX];
};

typedef crypto_secretstream_xchacha20poly1305_state stream_state;

struct crypt_key *crypt_key_new(const void *data, size_t size)
{
    struct crypt_key *key;

    assert(size >= CRYPT_KEY_BYTES_MIN && size <= CRYPT_KEY_BYTES_MAX);
    seal_global_init();
    key = xcalloc(1, sizeof *key);
    memcpy(key->data, data, size);
    key->size = size;
    return key;
}

int crypt_key_load(const char *path, struct crypt_key **out, struct error *err)
{
    struct stat st;
    char *text = NULL;
    size_t size = 0;

    if (stat(path, &st) < 0)
        return error_set_errno(err, errno, "key file '%.200s'", path);
    if ((st.st_mode & 077) != 0) {
        return error_set(err, ERR_DENIED,
                         "key file '%.200s' can be read by others: its mode must be 0600", path);
    }
    if (file_read(path, CRYPT_KEY_BYTES_MAX, &text, &size, err) < 0)
        return error_wrap(err, "key file");
    if (size >= CRYPT_KEY_BYTES_MIN)
        *out = crypt_key_new(text, size);
    sodium_memzero(text, size);
    free(text);
    if (size < CRYPT_KEY_BYTES_MIN) {
        return error_set(err, ERR_INVALID,
                         "key file '%.200s' has %zu bytes, at least %d are needed", path, size,
                         CRYPT_KEY_BYTES_MIN);
    }
    return 0;
}

int crypt_key_from_passphrase(const char *passphrase, struct crypt_key **out, struct error *err)
{
    size_t size = strlen(passphrase);
    struct crypt_key *key;

    static_assert(CRYPT_PASSPHRASE_BYTES_MAX <= CRYPT_KEY_BYTES_MAX, "it fits");
    if (size < CRYPT_PASSPHRASE_BYTES_MIN || size > CRYPT_PASSPHRASE_BYTES_MAX) {
        return error_set(err, ERR_INVALID, "a passphrase has %d to %d bytes, not %zu",
                         CRYPT_PASSPHRASE_BYTES_MIN, CRYPT_PASSPHRASE_BYTES_MAX, size);
    }
    seal_global_init();
    key = xcalloc(1, sizeof *key);
    memcpy(key->data, passphrase, size);
    key->size = size;
    key->stretched = xcalloc(1, sizeof *key->stretched);
    (void)pthread_mutex_init(&key->stretched->mutex, NULL);
    *out = key;
    return 0;
}

void crypt_key_free(struct crypt_key *key)
{
    if (key == NULL)
        return;
    if (key->stretched != NULL) {
        (void)pthread_mutex_destroy(&key->stretched->mutex);
        sodium_memzero(key->stretched, sizeof *key->stretched);
        free(key->stretched);
    }
    sodium_memzero(key, sizeof *key);
    free(key);
}

/* Under the mutex: the passphrase with the header's salt and parameters. */
static int stretch(const struct crypt_key *key, const uint8_t *header, struct error *err)
{
    struct stretched *s = key->stretched;

    if (s->known && memcmp(s->parameters, header + AT_PASSES, sizeof s->parameters) == 0 &&
        memcmp(s->salt, header + AT_SALT, SALT_BYTES) == 0)
        return 0;
    s->known = false;
    static_assert(SALT_BYTES == crypto_pwhash_argon2id_SALTBYTES, "one salt for both");
    if (crypto_pwhash_argon2id(s->bytes, sizeof s->bytes, (const char *)key->data, key->size,
                               header + AT_SALT, header[AT_PASSES],
                               (size_t)MIB << header[AT_MEMORY],
                               crypto_pwhash_argon2id_ALG_ARGON2ID13) != 0) {
        return error_set(err, ERR_LIMIT, "no %zu MiB of memory for the passphrase's derivation",
                         (size_t)1 << header[AT_MEMORY]);
    }
    memcpy(s->parameters, header + AT_PASSES, sizeof s->parameters);
    memcpy(s->salt, header + AT_SALT, SALT_BYTES);
    s->known = true;
    return 0;
}

static void hash_key(const void *data, size_t size, const uint8_t *salt,
                     uint8_t out[crypto_secretstream_xchacha20poly1305_KEYBYTES])
{
    (void)crypto_generichash(out, crypto_secretstream_xchacha20poly1305_KEYBYTES, data, size, salt,
                             SALT_BYTES);
}

/* The stream's key, and its id, for a header whose salt and parameters stand. */
static int derive(const struct crypt_key *key, const uint8_t *header,
                  uint8_t out[crypto_secretstream_xchacha20poly1305_KEYBYTES],
                  uint8_t out_id[ID_BYTES], struct error *err)
{
    static const char text[] = "hypersdk file key id";
    uint8_t hash[crypto_generichash_BYTES];

    if (key->stretched == NULL) {
        hash_key(key->data, key->size, header + AT_SALT, out);
    } else {
        LOCK_SCOPE(&key->stretched->mutex);
        if (stretch(key, header, err) < 0)
            return -1;
        hash_key(key->stretched->bytes, sizeof key->stretched->bytes, header + AT_SALT, out);
    }
    (void)crypto_generichash(hash, sizeof hash, (const uint8_t *)text, sizeof text - 1, out,
                             crypto_secretstream_xchacha20poly1305_KEYBYTES);
    memcpy(out_id, hash, ID_BYTES);
    return 0;
}

/* Up to size bytes; fewer only at the end of the file. */
static int read_up_to(int fd, void *buffer, size_t size, size_t *out, const char *name,
                      struct error *err)
{
    size_t done = 0;

    while (done < size) {
        ssize_t n = read(fd, (uint8_t *)buffer + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(err, errno, "'%.200s' cannot be read", name);
        if (n == 0)
            break;
        done += (size_t)n;
    }
    *out = done;
    return 0;
}

static int check_stopped(const atomic_bool *stopped, struct error *err)
{
    return stopped != NULL && atomic_load(stopped) ? error_set(err, ERR_CANCELLED, "stopped") : 0;
}

/* ---- encrypting ---- */

/* Salt and parameters: of a passphrase those that it was stretched with before. */
static void choose_derivation(const struct crypt_key *key, uint8_t header[CRYPT_HEADER_BYTES])
{
    struct stretched *s = key->stretched;

    header[AT_KDF] = s == NULL ? KDF_FILE : KDF_PHRASE;
    randombytes_buf(header + AT_SALT, SALT_BYTES);
    if (s == NULL)
        return;
    header[AT_PASSES] = PHRASE_PASSES;
    header[AT_MEMORY] = PHRASE_MEMORY;
    LOCK_SCOPE(&s->mutex);
    if (s->known && s->parameters[0] == PHRASE_PASSES && s->parameters[1] == PHRASE_MEMORY)
        memcpy(header + AT_SALT, s->salt, SALT_BYTES);
}

static int start_stream(const struct crypt_key *key, uint8_t header[CRYPT_HEADER_BYTES],
                        stream_state *state, struct error *err)
{
    uint8_t derived[crypto_secretstream_xchacha20poly1305_KEYBYTES];

    memset(header, 0, CRYPT_HEADER_BYTES);
    memcpy(header, MAGIC, strlen(MAGIC));
    choose_derivation(key, header);
    for (int i = 0; i < 4; i++)
        header[AT_CHUNK + i] = (uint8_t)(CRYPT_CHUNK_BYTES >> (8 * i));
    if (derive(key, header, derived, header + AT_KEY_ID, err) < 0)
        return -1;
    (void)crypto_secretstream_xchacha20poly1305_init_push(state, header + AT_STREAM, derived);
    sodium_memzero(derived, sizeof derived);
    return 0;
}

static int write_out(int fd, const void *data, size_t size, const char *name, struct error *err)
{
    if (write_all(fd, data, size) < 0)
        return error_set_errno(err, errno, "'%.200s' cannot be written", name);
    return 0;
}

/* One chunk is read ahead, to know which is the last. */
static int push_all(const struct crypt_file *in, const struct crypt_file *out,
                    const struct crypt_key *key, const atomic_bool *stopped, struct error *err)
{
    autofree uint8_t *plain_a = xmalloc(CRYPT_CHUNK_BYTES);
    autofree uint8_t *plain_b = xmalloc(CRYPT_CHUNK_BYTES);
    autofree uint8_t *cipher = xmalloc(CRYPT_CHUNK_BYTES + TAG_BYTES);
    uint8_t header[CRYPT_HEADER_BYTES];
    uint8_t *now = plain_a;
    uint8_t *ahead = plain_b;
    size_t size = 0;
    stream_state state;
    bool first = true;

    if (start_stream(key, header, &state, err) < 0 ||
        write_out(out->fd, header, sizeof header, out->name, err) < 0 ||
        read_up_to(in->fd, now, CRYPT_CHUNK_BYTES, &size, in->name, err) < 0)
        return -1;
    for (bool last = false; !last; first = false) {
        uint8_t *swap = now;
        size_t next = 0;
        if (check_stopped(stopped, err) < 0 ||
            read_up_to(in->fd, ahead, CRYPT_CHUNK_BYTES, &next, in->name, err) < 0)
            return -1;
        last = next == 0;
        (void)crypto_secretstream_xchacha20poly1305_push(
            &state, cipher, NULL, now, size, first ? header : NULL, first ? sizeof header : 0,
            last ? crypto_secretstream_xchacha20poly1305_TAG_FINAL : 0);
        if (write_out(out->fd, cipher, size + TAG_BYTES, out->name, err) < 0)
            return -1;
        now = ahead;
        ahead = swap;
        size = next;
    }
    return 0;
}

int crypt_encrypt_file(const char *from, const char *to, const struct crypt_key *key,
                       const atomic_bool *stopped, struct error *err)
{
    autoclose int in = open(from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    autoclose int out = -1;

    if (in < 0)
        return error_set_errno(err, errno, "'%.200s'", from);
    out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0640);
    if (out < 0)
        return error_set_errno(err, errno, "'%.200s'", to);
    if (push_all(&(struct crypt_file){in, from}, &(struct crypt_file){out, to}, key, stopped, err) <
        0)
        return -1;
    return fsync(out) < 0 ? error_set_errno(err, errno, "'%.200s' cannot be synced", to) : 0;
}

/* ---- decrypting ---- */

struct pull {
    int fd;
    const char *name;
    uint8_t header[CRYPT_HEADER_BYTES];
    uint32_t chunk_bytes;
    stream_state state;
};

/* The header, if it is one that can be read. */
static int load_header(struct pull *pull, struct error *err)
{
    const uint8_t *h = pull->header;
    size_t size = 0;
    bool known;

    if (read_up_to(pull->fd, pull->header, sizeof pull->header, &size, pull->name, err) < 0)
        return -1;
    if (size < sizeof pull->header || memcmp(h, MAGIC, strlen(MAGIC)) != 0)
        return error_set(err, ERR_CORRUPT, "'%.200s' is no encrypted file of HyperSDK", pull->name);
    for (int i = 3; i >= 0; i--)
        pull->chunk_bytes = pull->chunk_bytes << 8 | h[AT_CHUNK + i];
    known = h[AT_KDF] == KDF_FILE ||
            (h[AT_KDF] == KDF_PHRASE && h[AT_PASSES] >= crypto_pwhash_argon2id_OPSLIMIT_MIN &&
             h[AT_PASSES] <= PHRASE_PASSES_MAX && h[AT_MEMORY] <= PHRASE_MEMORY_MAX);
    if (!known || pull->chunk_bytes == 0 || pull->chunk_bytes > CRYPT_CHUNK_MAX) {
        return error_set(err, ERR_CORRUPT, "'%.200s' has a header that this version cannot read",
                         pull->name);
    }
    return 0;
}

static int check_kind(const struct pull *pull, const struct crypt_key *key, struct error *err)
{
    bool phrase = pull->header[AT_KDF] == KDF_PHRASE;

    if (phrase == (key->stretched != NULL))
        return 0;
    return error_set(err, ERR_DENIED, "'%.200s' was encrypted with a %s", pull->name,
                     phrase ? "passphrase, not with a key file"
                            : "key file, not with a passphrase");
}

static int read_header(struct pull *pull, const struct crypt_key *key, struct error *err)
{
    uint8_t derived[crypto_secretstream_xchacha20poly1305_KEYBYTES];
    uint8_t id[ID_BYTES];
    const uint8_t *h = pull->header;
    int rc = 0;

    if (load_header(pull, err) < 0 || check_kind(pull, key, err) < 0 ||
        derive(key, h, derived, id, err) < 0)
        return -1;
    if (memcmp(id, h + AT_KEY_ID, ID_BYTES) != 0) {
        rc =
            key->stretched != NULL
                ? error_set(err, ERR_DENIED, "wrong passphrase for '%.200s'", pull->name)
                : error_set(err, ERR_DENIED, "'%.200s' was encrypted with another key", pull->name);
    } else if (crypto_secretstream_xchacha20poly1305_init_pull(&pull->state, h + AT_STREAM,
                                                               derived) != 0) {
        rc = error_set(err, ERR_CORRUPT, "'%.200s' has a damaged header", pull->name);
    }
    sodium_memzero(derived, sizeof derived);
    return rc;
}

static int open_encrypted(const char *path, struct pull *pull, struct error *err)
{
    *pull = (struct pull){.fd = open(path, O_RDONLY | O_CLOEXEC), .name = path};
    return pull->fd < 0 ? error_set_errno(err, errno, "'%.200s'", path) : 0;
}

int crypt_wants_passphrase(const char *path, bool *out, struct error *err)
{
    struct pull pull;
    int rc;

    if (open_encrypted(path, &pull, err) < 0)
        return -1;
    rc = load_header(&pull, err);
    (void)close(pull.fd);
    if (rc == 0)
        *out = pull.header[AT_KDF] == KDF_PHRASE;
    return rc;
}

int crypt_key_check(const char *path, const struct crypt_key *key, struct error *err)
{
    struct pull pull;
    int rc;

    if (open_encrypted(path, &pull, err) < 0)
        return -1;
    rc = read_header(&pull, key, err);
    sodium_memzero(&pull.state, sizeof pull.state);
    (void)close(pull.fd);
    return rc;
}

static int check_end(const struct pull *pull, struct error *err)
{
    uint8_t more;
    size_t size = 0;

    if (read_up_to(pull->fd, &more, 1, &size, pull->name, err) < 0)
        return -1;
    return size == 0 ? 0
                     : error_set(err, ERR_CORRUPT, "'%.200s' goes on behind its end", pull->name);
}

int crypt_decrypt_fd(const struct crypt_file *file, const struct crypt_key *key,
                     const atomic_bool *stopped,
                     int (*take)(void *arg, const void *data, size_t size, struct error *err),
                     void *arg, struct error *err)
{
    struct pull pull = {.fd = file->fd, .name = file->name};
    const char *name = file->name;
    autofree uint8_t *cipher = NULL;
    autofree uint8_t *plain = NULL;
    uint64_t offset = CRYPT_HEADER_BYTES;
    uint8_t tag = 0;

    if (read_header(&pull, key, err) < 0)
        return -1;
    cipher = xmalloc(pull.chunk_bytes + TAG_BYTES);
    plain = xmalloc(pull.chunk_bytes);
    for (bool first = true; tag != crypto_secretstream_xchacha20poly1305_TAG_FINAL; first = false) {
        unsigned long long length = 0;
        size_t size = 0;
        if (check_stopped(stopped, err) < 0 ||
            read_up_to(file->fd, cipher, pull.chunk_bytes + TAG_BYTES, &size, name, err) < 0)
            return -1;
        if (size == 0) {
            return error_set(err, ERR_CORRUPT, "'%.200s' is cut short at byte %" PRIu64, name,
                             offset);
        }
        if (size < TAG_BYTES ||
            crypto_secretstream_xchacha20poly1305_pull(&pull.state, plain, &length, &tag, cipher,
                                                       size, first ? pull.header : NULL,
                                                       first ? sizeof pull.header : 0) != 0) {
            return error_set(err, ERR_CORRUPT,
                             "'%.200s' is damaged or cut in the %zu bytes at byte %" PRIu64, name,
                             size, offset);
        }
        if (length > 0 && take(arg, plain, (size_t)length, err) < 0)
            return -1;
        offset += size;
    }
    return check_end(&pull, err);
}

static int add_to_digest(void *arg, const void *data, size_t size, struct error *err)
{
    return EVP_DigestUpdate(arg, data, size) == 1 ? 0
                                                  : error_set(err, ERR_INTERNAL, "SHA-256 failed");
}

int crypt_plain_sha256(const char *path, const struct crypt_key *key, const atomic_bool *stopped,
                       char out_hex[65], struct error *err)
{
    autoclose int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    EVP_MD_CTX *digest;
    uint8_t raw[EVP_MAX_MD_SIZE];
    int rc;

    if (fd < 0)
        return error_set_errno(err, errno, "'%.200s'", path);
    digest = EVP_MD_CTX_new();
    if (digest == NULL || EVP_DigestInit_ex(digest, EVP_sha256(), NULL) != 1)
        abort(); /* out of memory */
    rc = crypt_decrypt_fd(&(struct crypt_file){fd, path}, key, stopped, add_to_digest, digest, err);
    if (rc == 0 && EVP_DigestFinal_ex(digest, raw, NULL) == 1)
        hex_encode(raw, 32, out_hex);
    EVP_MD_CTX_free(digest);
    return rc;
}

struct plain_file {
    int fd;
    const char *name;
};

static int write_plain(void *arg, const void *data, size_t size, struct error *err)
{
    const struct plain_file *file = arg;

    return write_out(file->fd, data, size, file->name, err);
}

static int finish_plain(const struct plain_file *file, const char *to, struct error *err)
{
    if (fsync(file->fd) < 0)
        return error_set_errno(err, errno, "'%.200s' cannot be synced", file->name);
    if (link(file->name, to) < 0) {
        return errno == EEXIST
                   ? error_set(err, ERR_CONFLICT, "'%.200s' exists already and is not replaced", to)
                   : error_set_errno(err, errno, "'%.200s'", to);
    }
    return dir_sync_parent(to, err);
}

int crypt_decrypt_file(const char *from, const char *to, const struct crypt_key *key,
                       struct error *err)
{
    autofree char *partial = xasprintf("%s.partial", to);
    autoclose int in = open(from, O_RDONLY | O_CLOEXEC);
    autoclose int out = -1;
    struct plain_file file = {.name = partial};
    int rc;

    if (in < 0)
        return error_set_errno(err, errno, "'%.200s'", from);
    if (access(to, F_OK) == 0)
        return error_set(err, ERR_CONFLICT, "'%.200s' exists already and is not replaced", to);
    out = open(partial, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (out < 0)
        return error_set_errno(err, errno, "'%.200s'", partial);
    file.fd = out;
    rc = crypt_decrypt_fd(&(struct crypt_file){in, from}, key, NULL, write_plain, &file, err);
    if (rc == 0)
        rc = finish_plain(&file, to, err);
    (void)unlink(partial); /* its other name stays */
    return rc;
}
