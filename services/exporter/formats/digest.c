/* See digest.h. */
#include "services/exporter/formats/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <string.h>

#include "common/paths.h"
#include "services/exporter/formats/bytes.h"

#define MAGIC          "H2KLEAF1"
#define MAGIC_BYTES    8U
#define HEADER_BYTES   64U
#define AT_DISK_BYTES  8U
#define AT_LEAF_BYTES  16U
#define AT_ROOT        24U
#define DISK_BYTES_MAX (64 * 1024 * GIB)
#define FILE_BYTES_MAX (HEADER_BYTES + DISK_BYTES_MAX / MIB * DIGEST_BYTES)
#define READ_BYTES     MIB
#define FILE_MODE      0640U

/* The file's bytes: header (filled when stored), then the digests. */
struct leaves {
    uint64_t disk_bytes;
    size_t count;
    uint8_t *bytes;
};

static const EVP_MD *sha256_method;
static uint8_t zero_leaf[DIGEST_BYTES];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void digest_or_abort(const void *data, size_t length, uint8_t out[DIGEST_BYTES])
{
    if (EVP_Digest(data, length, out, NULL, sha256_method, NULL) != 1)
        abort(); /* SHA-256 in memory fails only without memory */
}

static void init_once(void)
{
    static const uint8_t zeros[LEAF_BYTES];

    /* Fetched once: an implicit fetch per call costs as much as hashing 10 KiB. */
    sha256_method = EVP_MD_fetch(NULL, "SHA256", NULL);
    if (sha256_method == NULL)
        abort();
    digest_or_abort(zeros, sizeof zeros, zero_leaf);
}

void leaf_digest(const void *data, size_t length, uint8_t out[DIGEST_BYTES])
{
    assert(length <= LEAF_BYTES);
    (void)pthread_once(&once, init_once);
    digest_or_abort(data, length, out);
}

void leaf_digest_zero(size_t length, uint8_t out[DIGEST_BYTES])
{
    assert(length <= LEAF_BYTES);
    (void)pthread_once(&once, init_once);
    if (length == LEAF_BYTES) {
        memcpy(out, zero_leaf, DIGEST_BYTES);
        return;
    }
    autofree uint8_t *zeros = xcalloc(1, length);
    digest_or_abort(zeros, length, out);
}

static size_t count_of(uint64_t disk_bytes)
{
    return (size_t)(round_up_u64(disk_bytes, LEAF_BYTES) / LEAF_BYTES);
}

static size_t file_bytes(size_t count)
{
    return HEADER_BYTES + count * DIGEST_BYTES;
}

struct leaves *leaves_new(uint64_t disk_bytes)
{
    struct leaves *leaves = xcalloc(1, sizeof *leaves);

    assert(disk_bytes <= DISK_BYTES_MAX);
    leaves->disk_bytes = disk_bytes;
    leaves->count = count_of(disk_bytes);
    leaves->bytes = xcalloc(1, file_bytes(leaves->count));
    return leaves;
}

void leaves_free(struct leaves *leaves)
{
    if (leaves == NULL)
        return;
    free(leaves->bytes);
    free(leaves);
}

uint64_t leaves_disk_bytes(const struct leaves *leaves)
{
    return leaves->disk_bytes;
}

size_t leaves_count(const struct leaves *leaves)
{
    return leaves->count;
}

void leaves_set(struct leaves *leaves, size_t index, const uint8_t digest[DIGEST_BYTES])
{
    assert(index < leaves->count);
    memcpy(leaves->bytes + file_bytes(index), digest, DIGEST_BYTES);
}

const uint8_t *leaves_get(const struct leaves *leaves, size_t index)
{
    assert(index < leaves->count);
    return leaves->bytes + file_bytes(index);
}

static void root_of(const struct leaves *leaves, uint8_t out[DIGEST_BYTES])
{
    (void)pthread_once(&once, init_once);
    digest_or_abort(leaves->bytes + HEADER_BYTES, leaves->count * DIGEST_BYTES, out);
}

void leaves_root_text(const struct leaves *leaves, char out[DIGEST_TEXT_SIZE])
{
    uint8_t root[DIGEST_BYTES];
    size_t start = sizeof DIGEST_TEXT_START - 1;

    root_of(leaves, root);
    memcpy(out, DIGEST_TEXT_START, start);
    hex_encode(root, sizeof root, out + start);
}

int leaves_store(const struct leaves *leaves, const char *path, struct error *err)
{
    uint8_t root[DIGEST_BYTES];

    root_of(leaves, root);
    memset(leaves->bytes, 0, HEADER_BYTES);
    memcpy(leaves->bytes, MAGIC, MAGIC_BYTES);
    put_le64(leaves->bytes + AT_DISK_BYTES, leaves->disk_bytes);
    put_le32(leaves->bytes + AT_LEAF_BYTES, (uint32_t)LEAF_BYTES);
    memcpy(leaves->bytes + AT_ROOT, root, sizeof root);
    return file_write_atomic(path, leaves->bytes, file_bytes(leaves->count), FILE_MODE, err);
}

int leaves_parse(const void *data, size_t size, struct leaves **out, struct error *err)
{
    const uint8_t *bytes = data;
    auto_leaves *leaves = NULL;
    uint8_t root[DIGEST_BYTES];
    uint64_t disk_bytes;

    if (size < HEADER_BYTES || memcmp(bytes, MAGIC, MAGIC_BYTES) != 0)
        return error_set(err, ERR_CORRUPT, "not a leaves file");
    if (get_le32(bytes + AT_LEAF_BYTES) != LEAF_BYTES) {
        return error_set(err, ERR_CORRUPT, "leaves of %" PRIu32 " bytes, expected 1 MiB",
                         get_le32(bytes + AT_LEAF_BYTES));
    }
    disk_bytes = get_le64(bytes + AT_DISK_BYTES);
    if (disk_bytes > DISK_BYTES_MAX || file_bytes(count_of(disk_bytes)) != size) {
        return error_set(err, ERR_CORRUPT,
                         "leaves file of %zu bytes does not fit a disk of %" PRIu64 " bytes", size,
                         disk_bytes);
    }
    leaves = leaves_new(disk_bytes);
    memcpy(leaves->bytes, bytes, size);
    root_of(leaves, root);
    if (memcmp(root, bytes + AT_ROOT, sizeof root) != 0)
        return error_set(err, ERR_CORRUPT, "the leaves do not give the root stored with them");
    *out = STEAL(leaves);
    return 0;
}

int leaves_load(const char *path, struct leaves **out, struct error *err)
{
    autofree char *data = NULL;
    size_t size = 0;

    if (file_read(path, FILE_BYTES_MAX, &data, &size, err) < 0)
        return -1;
    if (leaves_parse(data, size, out, err) < 0)
        return error_wrap(err, "'%.256s'", path);
    return 0;
}

static void evp_ctx_free(EVP_MD_CTX *ctx)
{
    EVP_MD_CTX_free(ctx);
}
DEFINE_AUTO(evp_ctx, EVP_MD_CTX, evp_ctx_free)

static int digest_fd(int fd, const char *path, const atomic_bool *stopped, EVP_MD_CTX *ctx,
                     struct error *err)
{
    autofree uint8_t *buffer = xmalloc(READ_BYTES);
    off_t at = 0;

    for (;;) {
        ssize_t n = read(fd, buffer, READ_BYTES);
        if (stopped != NULL && atomic_load(stopped))
            return error_set(err, ERR_CANCELLED, "stopped while reading '%.256s'", path);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set_errno(err, errno, "cannot read '%.256s'", path);
        if (n == 0)
            return 0;
        if (EVP_DigestUpdate(ctx, buffer, (size_t)n) != 1)
            return error_set(err, ERR_INTERNAL, "digest of '%.256s' failed", path);
        (void)posix_fadvise(fd, at, n, POSIX_FADV_DONTNEED);
        at += n;
    }
}

static int digest_file(const char *path, const char *algorithm, const atomic_bool *stopped,
                       char *out, size_t out_size, struct error *err)
{
    CLEANUP(evp_ctx_auto) EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    const EVP_MD *method = EVP_get_digestbyname(algorithm);
    uint8_t raw[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    autoclose int fd = -1;

    if (method == NULL)
        return error_set(err, ERR_NOT_AVAILABLE, "digest '%.32s' is not known here", algorithm);
    if (ctx == NULL || EVP_DigestInit_ex(ctx, method, NULL) != 1)
        return error_set(err, ERR_INTERNAL, "digest '%.32s' cannot be started", algorithm);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return error_set_errno(err, errno, "cannot open '%.256s'", path);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    if (digest_fd(fd, path, stopped, ctx, err) < 0)
        return -1;
    if (EVP_DigestFinal_ex(ctx, raw, &size) != 1)
        return error_set(err, ERR_INTERNAL, "digest of '%.256s' failed", path);
    assert(out_size >= 2 * (size_t)size + 1);
    hex_encode(raw, size, out);
    return 0;
}

int file_digest(const char *path, const char *algorithm, char *out, size_t out_size,
                struct error *err)
{
    return digest_file(path, algorithm, NULL, out, out_size, err);
}

int file_sha256(const char *path, char out[DIGEST_HEX_SIZE], struct error *err)
{
    return file_sha256_until(path, NULL, out, err);
}

int file_sha256_until(const char *path, const atomic_bool *stopped, char out[DIGEST_HEX_SIZE],
                      struct error *err)
{
    return digest_file(path, "SHA256", stopped, out, DIGEST_HEX_SIZE, err);
}
