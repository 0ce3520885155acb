/* See export_plain.h. */
#include "services/exporter/engine/export_plain.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <string.h>

struct reading {
    const struct export_plain_options *options;
    struct export_plain *out;
    EVP_MD_CTX *digest;
    uint8_t *leaf; /* LEAF_BYTES; NULL without leaves */
    size_t leaf_used;
    size_t leaf_index;
};

static void end_leaf(struct reading *reading)
{
    const struct leaves *leaves = reading->options->leaves;
    struct copy_differences *found = &reading->out->differences;
    uint8_t digest[DIGEST_BYTES];

    if (reading->leaf_index < leaves_count(leaves)) {
        leaf_digest(reading->leaf, reading->leaf_used, digest);
        if (memcmp(digest, leaves_get(leaves, reading->leaf_index), DIGEST_BYTES) != 0 &&
            found->count < COPY_DIFFERENCES_MAX)
            found->leaf[found->count++] = reading->leaf_index;
    }
    reading->leaf_index++;
    reading->leaf_used = 0;
}

static void add_to_leaves(struct reading *reading, const uint8_t *data, size_t size)
{
    while (size > 0) {
        size_t n = (size_t)min_u64(size, LEAF_BYTES - reading->leaf_used);
        memcpy(reading->leaf + reading->leaf_used, data, n);
        reading->leaf_used += n;
        data += n;
        size -= n;
        if (reading->leaf_used == LEAF_BYTES)
            end_leaf(reading);
    }
}

static int take(void *arg, const void *data, size_t size, struct error *err)
{
    struct reading *reading = arg;
    struct export_plain *out = reading->out;

    if (EVP_DigestUpdate(reading->digest, data, size) != 1)
        return error_set(err, ERR_INTERNAL, "SHA-256 failed");
    if (reading->leaf != NULL)
        add_to_leaves(reading, data, size);
    if (out->kept != NULL) {
        if (size > reading->options->keep_max - out->bytes)
            return error_set(err, ERR_LIMIT, "it holds more than it was written with");
        memcpy(out->kept + out->bytes, data, size);
    }
    out->bytes += size;
    return 0;
}

static int read_all(struct reading *reading, struct error *err)
{
    const struct export_plain_options *options = reading->options;
    autoclose int fd = open(options->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    uint8_t raw[EVP_MAX_MD_SIZE];

    if (fd < 0)
        return error_set_errno(err, errno, "'%.200s'", options->path);
    if (crypt_decrypt_fd(&(struct crypt_file){fd, options->path}, options->key, options->stopped,
                         take, reading, err) < 0)
        return -1;
    if (reading->leaf != NULL && reading->leaf_used > 0)
        end_leaf(reading);
    if (EVP_DigestFinal_ex(reading->digest, raw, NULL) != 1)
        return error_set(err, ERR_INTERNAL, "SHA-256 failed");
    hex_encode(raw, DIGEST_BYTES, reading->out->sha256);
    return 0;
}

int export_plain_read(const struct export_plain_options *options, struct export_plain *out,
                      struct error *err)
{
    autofree uint8_t *leaf = options->leaves == NULL ? NULL : xmalloc(LEAF_BYTES);
    struct reading reading = {.options = options, .out = out, .leaf = leaf};
    int rc;

    memset(out, 0, sizeof *out);
    if (options->keep_max > 0)
        out->kept = xmalloc(options->keep_max);
    reading.digest = EVP_MD_CTX_new();
    if (reading.digest == NULL || EVP_DigestInit_ex(reading.digest, EVP_sha256(), NULL) != 1)
        abort(); /* out of memory */
    rc = read_all(&reading, err);
    EVP_MD_CTX_free(reading.digest);
    return rc;
}
