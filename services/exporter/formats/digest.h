/* Digests of disks and files. A disk's digest is a tree of one level: SHA-256 of each 1 MiB of its
 * logical content (the leaves; the last may be shorter), SHA-256 over the leaves in order (the
 * root), written "sha256-tree-1m:<hex>". Leaves can be made in any order by any thread, a resume
 * checks only what it has, and a comparison names the first differing MiB.
 *
 * Leaves file: 64 bytes of header (magic "H2KLEAF1", u64 LE size of the disk, u32 LE leaf size,
 * u32 zero, the root, 8 bytes zero), then 32 bytes per leaf. */
#ifndef EXPORTER_DIGEST_H
#define EXPORTER_DIGEST_H

#include <stdatomic.h>

#include "common/error.h"

#define LEAF_BYTES        ((size_t)MIB)
#define DIGEST_BYTES      32U
#define DIGEST_HEX_SIZE   65U /* 64 hex digits and the NUL */
#define DIGEST_TEXT_SIZE  80U /* "sha256-tree-1m:" + 64 hex digits + NUL */
#define DIGEST_TEXT_START "sha256-tree-1m:"

struct leaves;

/* Digest of one leaf, length <= LEAF_BYTES. */
void leaf_digest(const void *data, size_t length, uint8_t out[DIGEST_BYTES]);
/* The same for `length` zero bytes, remembered for whole leaves. */
void leaf_digest_zero(size_t length, uint8_t out[DIGEST_BYTES]);

/* For a disk of this size (at most 64 TiB: 2 GiB of leaves, touched only as they are set). All
 * leaves are unset (zero bytes). */
struct leaves *leaves_new(uint64_t disk_bytes);
void leaves_free(struct leaves *leaves); /* NULL-safe */
DEFINE_AUTO(leaves, struct leaves, leaves_free)
#define auto_leaves CLEANUP(leaves_auto) struct leaves
uint64_t leaves_disk_bytes(const struct leaves *leaves);
size_t leaves_count(const struct leaves *leaves);
/* Different indices may be set by different threads at the same time. */
void leaves_set(struct leaves *leaves, size_t index, const uint8_t digest[DIGEST_BYTES]);
const uint8_t *leaves_get(const struct leaves *leaves, size_t index);
/* "sha256-tree-1m:<hex>" */
void leaves_root_text(const struct leaves *leaves, char out[DIGEST_TEXT_SIZE]);
/* Whole file at once under its name (temporary file, fsync, rename). */
MUST_CHECK int leaves_store(const struct leaves *leaves, const char *path, struct error *err);
/* ERR_CORRUPT: not a leaves file, cut, or its root is not that of its leaves. */
MUST_CHECK int leaves_load(const char *path, struct leaves **out, struct error *err);
/* The content of a leaves file. */
MUST_CHECK int leaves_parse(const void *data, size_t size, struct leaves **out, struct error *err);

/* SHA-256 of a file's bytes, read once, front to back, without keeping them in the page cache. */
MUST_CHECK int file_sha256(const char *path, char out[DIGEST_HEX_SIZE], struct error *err);
/* The same; ERR_CANCELLED soon after *stopped (may be NULL) became true. */
MUST_CHECK int file_sha256_until(const char *path, const atomic_bool *stopped,
                                 char out[DIGEST_HEX_SIZE], struct error *err);
/* Any digest that OpenSSL knows by name ("SHA1", "SHA256", "SHA512"), in hex. out_size: at least
 * 129 for the longest. */
MUST_CHECK int file_digest(const char *path, const char *algorithm, char *out, size_t out_size,
                           struct error *err);

#endif
