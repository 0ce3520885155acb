/* See running_sha256.h. */
#define OPENSSL_SUPPRESS_DEPRECATED
#include "services/exporter/formats/running_sha256.h"

#include <openssl/sha.h>

#include "services/exporter/formats/bytes.h"

#define WORDS (DIGEST_BYTES / 4)

struct running_sha256 {
    SHA256_CTX context;
};

struct running_sha256 *running_sha256_new(void)
{
    struct running_sha256 *sha = xcalloc(1, sizeof *sha);

    if (SHA256_Init(&sha->context) != 1)
        abort(); /* it cannot fail */
    return sha;
}

void running_sha256_free(struct running_sha256 *sha)
{
    free(sha);
}

void running_sha256_add(struct running_sha256 *sha, const void *data, size_t size)
{
    if (SHA256_Update(&sha->context, data, size) != 1)
        abort();
}

void running_sha256_save(const struct running_sha256 *sha, uint8_t out[DIGEST_BYTES])
{
    assert(sha->context.num == 0);
    for (size_t i = 0; i < WORDS; i++)
        put_le32(out + 4 * i, sha->context.h[i]);
}

void running_sha256_restore(struct running_sha256 *sha, const uint8_t saved[DIGEST_BYTES],
                            uint64_t bytes)
{
    assert(bytes % RUNNING_SHA256_BLOCK == 0);
    if (SHA256_Init(&sha->context) != 1)
        abort();
    for (size_t i = 0; i < WORDS; i++)
        sha->context.h[i] = get_le32(saved + 4 * i);
    sha->context.Nl = (uint32_t)(bytes << 3); /* it counts bits */
    sha->context.Nh = (uint32_t)(bytes >> 29);
}

void running_sha256_end(struct running_sha256 *sha, char out[DIGEST_HEX_SIZE])
{
    uint8_t raw[DIGEST_BYTES];

    if (SHA256_Final(raw, &sha->context) != 1)
        abort();
    hex_encode(raw, sizeof raw, out);
}
