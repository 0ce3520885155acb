/* OVA packages: one plain tar of descriptor, digest list and disks, in this order.
 *
 * Writing is front to back but for the first two members, whose room is reserved: sizes and digests
 * of the disks are known only when the last byte was written. Names are at most OVA_NAME_BYTES_MAX
 * bytes, so that no extension header ever stands before the descriptor, which must come first.
 *
 * Reading: everything in the package is hostile. Only regular files with plain names get in; they
 * are described, never unpacked, so nothing can be written outside of anywhere. */
#ifndef EXPORTER_OVA_H
#define EXPORTER_OVA_H

#include "common/error.h"
#include "services/exporter/formats/image.h"

#define OVA_BLOCK          512U
#define OVA_RECORD         10240U /* a package's size is padded to it, as tar does */
#define OVA_NAME_BYTES_MAX 100U   /* of what is written; more is read */
#define OVA_MEMBERS_MAX    1000U  /* as for OVF files and digests */

/* ---- writing ---- */

/* The header block of a regular file, mode 0644, owner 0. Sizes over 8 GiB - 1 in base-256.
 * ERR_INVALID: the name is too long, or no plain file name. */
MUST_CHECK int ova_header(const char *name, uint64_t bytes, int64_t mtime_s, uint8_t out[OVA_BLOCK],
                          struct error *err);
/* Room that a member of this size takes behind its header. */
uint64_t ova_padded(uint64_t bytes);
/* How long a package is whose last member's padding ends at `end`. */
uint64_t ova_total(uint64_t end);

/* ---- reading ---- */

struct ova_member {
    char *name;      /* plain base name */
    uint64_t offset; /* of its first byte in the package */
    uint64_t bytes;
};

struct ova {
    struct ova_member *members; /* in the package's order; the first is the descriptor */
    size_t count;
};

/* Walks the headers: ustar and GNU, with long names of either kind (GNU 'L', pax path and size).
 * ERR_CORRUPT: no tar, cut, a bad checksum, a name twice, a name with directories, a link, device
 * or directory, no descriptor in front. ERR_LIMIT: too many members. ERR_NOT_AVAILABLE: sparse
 * members, or compressed as a whole. */
MUST_CHECK int ova_read(const char *path, struct ova **out, struct error *err);
/* NULL: there is none of that name. */
const struct ova_member *ova_find(const struct ova *ova, const char *name);
/* Where the image that is member `name` of the package at out->path stands: sets offset and length.
 * ERR_CORRUPT: no such member, or an empty one; else as ova_read. */
MUST_CHECK int ova_find_part(const char *name, struct image_part *out, struct error *err);
/* A member's content, NUL-terminated. Caller frees. ERR_LIMIT: over size_max bytes. */
MUST_CHECK int ova_member_read(const char *path, const struct ova_member *member, size_t size_max,
                               char **out, struct error *err);
void ova_free(struct ova *ova); /* NULL-safe */
DEFINE_AUTO(ova, struct ova, ova_free)
#define auto_ova CLEANUP(ova_auto) struct ova

#endif
