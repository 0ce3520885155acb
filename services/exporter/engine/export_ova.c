/* Format ova: the disks are copied straight into the package, one behind the other, each a
 * streamOptimized VMDK whose journal works as in a file of its own. In front of them stands room
 * for descriptor and digest list; both are written, with all headers, when the last disk is
 * complete. Until then the file begins with zeros and no program takes it for a tar.
 *
 *   header, descriptor (padded with line ends to ovf_bytes), header, .mf, {header, disk}, end
 *
 * With stream_upload a disk's header is written as soon as the disk is complete, and what is there
 * of the file is what was not uploaded yet (export_stream.c).
 *
 * A disk's place follows from the sizes of those before it, which a later lease reads from their
 * notes; a disk whose place is another than its journal says begins anew. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <string.h>

#include "common/autos.h"
#include "common/strbuf.h"
#include "services/exporter/engine/export_run.h"
#include "services/exporter/formats/mf.h"
#include "services/exporter/formats/ova.h"
#include "services/exporter/formats/ovf.h"

/* "-disk64.vmdk" must fit behind it into OVA_NAME_BYTES_MAX. */
#define STEM_BYTES_MAX 80
/* Room for a VM whose facts grow a little between two leases; then its disks need not move. */
#define OVF_STEP_BYTES 4096
#define READ_BYTES     ((size_t)MIB)

bool export_is_ova(const struct export_run *run)
{
    return strcmp(run->options.format, "ova") == 0;
}

void export_ova_free(struct export_run *run)
{
    free(run->ova.name);
    free(run->ova.path);
    free(run->ova.ovf_name);
    free(run->ova.mf_name);
    run->ova = (struct export_ova){0};
}

/* ---- layout ---- */

static int list_digests(const struct export_run *run, const char *ovf_sha256, char **out,
                        struct error *err)
{
    autofree struct mf_file *list = xcalloc(run->disk_count + 1, sizeof *list);

    list[0] = (struct mf_file){run->ova.ovf_name, ovf_sha256};
    for (size_t i = 0; i < run->disk_count; i++) {
        const struct export_image *image = &run->disks[i].images[0];
        /* A digest that is not known yet takes as much room as any other. */
        list[i + 1] =
            (struct mf_file){image->member, image->sha256[0] == '\0' ? ovf_sha256 : image->sha256};
    }
    return mf_format(list, run->disk_count + 1, out, err);
}

int export_ova_plan(struct export_run *run, struct error *err)
{
    struct export_ova *ova = &run->ova;
    autofree char *stem = utf8_clean(run->stem, STEM_BYTES_MAX);
    autofree char *ovf = NULL;
    autofree char *mf = NULL;
    char any[DIGEST_HEX_SIZE];

    memset(any, '0', sizeof any - 1);
    any[sizeof any - 1] = '\0';
    ova->name = xasprintf("%s.ova", run->stem);
    ova->path = local_partial_path(run->dir, ova->name, run->generation);
    ova->ovf_name = xasprintf("%s.ovf", stem);
    ova->mf_name = xasprintf("%s.mf", stem);
    for (size_t i = 0; i < run->disk_count; i++) {
        struct export_image *image = &run->disks[i].images[0];
        image->member =
            xasprintf("%s-disk%zu%s", stem, run->disks[i].vm_disk_index + 1, image->format->suffix);
        free(image->name);
        image->name = xstrdup(ova->name);
        free(image->path);
        image->path = xstrdup(ova->path);
    }
    if (export_descriptor(run, true, &ovf, err) < 0 || list_digests(run, any, &mf, err) < 0)
        return error_wrap(err, "layout of '%.200s'", ova->name);
    ova->ovf_bytes = round_up_u64(strlen(ovf), OVF_STEP_BYTES);
    ova->mf_bytes = strlen(mf);
    return 0;
}

static uint64_t mf_offset(const struct export_ova *ova)
{
    return OVA_BLOCK + ova_padded(ova->ovf_bytes) + OVA_BLOCK;
}

void export_ova_place(struct export_run *run, size_t index)
{
    struct export_image *image = &run->disks[index].images[0];

    if (index == 0) {
        image->offset = mf_offset(&run->ova) + ova_padded(run->ova.mf_bytes) + OVA_BLOCK;
        return;
    }
    const struct export_image *before = &run->disks[index - 1].images[0];
    image->offset = before->offset + ova_padded(before->bytes) + OVA_BLOCK;
}

/* ---- digests ---- */

static void evp_ctx_free(EVP_MD_CTX *ctx)
{
    EVP_MD_CTX_free(ctx);
}
DEFINE_AUTO(evp_ctx, EVP_MD_CTX, evp_ctx_free)

static int digest_new(EVP_MD_CTX **out, struct error *err)
{
    *out = EVP_MD_CTX_new();
    if (*out == NULL || EVP_DigestInit_ex(*out, EVP_sha256(), NULL) != 1)
        return error_set(err, ERR_INTERNAL, "SHA-256 is not available");
    return 0;
}

static int digest_end(EVP_MD_CTX *ctx, char out[DIGEST_HEX_SIZE], struct error *err)
{
    uint8_t raw[DIGEST_BYTES];

    if (EVP_DigestFinal_ex(ctx, raw, NULL) != 1)
        return error_set(err, ERR_INTERNAL, "SHA-256 failed");
    hex_encode(raw, sizeof raw, out);
    return 0;
}

/* Bytes [from, to) of the package into the digests; each may be NULL. */
static int digest_range(const struct export_run *run, int fd, uint64_t from, uint64_t to,
                        EVP_MD_CTX *const into[2], struct error *err)
{
    autofree uint8_t *buffer = xmalloc(READ_BYTES);

    while (from < to) {
        size_t n = (size_t)min_u64(READ_BYTES, to - from);
        if (worker_task_check(run->task, err) < 0)
            return -1;
        if (pread_all(fd, buffer, n, from) < 0)
            return error_set_errno(err, errno, "cannot read '%.200s'", run->ova.path);
        for (size_t i = 0; i < 2; i++) {
            if (into[i] != NULL && EVP_DigestUpdate(into[i], buffer, n) != 1)
                return error_set(err, ERR_INTERNAL, "SHA-256 failed");
        }
        (void)posix_fadvise(fd, (off_t)from, (off_t)n, POSIX_FADV_DONTNEED);
        from += n;
    }
    return 0;
}

/* The member's digest as it stands on disk; it must be what was written. */
static int digest_member(const struct export_run *run, int fd, struct export_image *image,
                         EVP_MD_CTX *whole, struct error *err)
{
    CLEANUP(evp_ctx_auto) EVP_MD_CTX *ctx = NULL;
    char hex[DIGEST_HEX_SIZE];

    if (digest_new(&ctx, err) < 0 ||
        digest_range(run, fd, image->offset, image->offset + image->bytes,
                     (EVP_MD_CTX *[]){ctx, whole}, err) < 0 ||
        digest_end(ctx, hex, err) < 0)
        return -1;
    if (image->sha256[0] != '\0' && strcmp(image->sha256, hex) != 0) {
        return error_set(err, ERR_CORRUPT,
                         "'%.200s' reads back as SHA-256 %.12s..., %.12s... was written: is the "
                         "storage sound?",
                         image->member, hex, image->sha256);
    }
    memcpy(image->sha256, hex, sizeof hex);
    image->read_back = true;
    return 0;
}

/* Reads all of it once, for the package's own digest and for those of its members. */
static int digest_package(struct export_run *run, int fd, struct error *err)
{
    CLEANUP(evp_ctx_auto) EVP_MD_CTX *whole = NULL;
    uint64_t at = 0;

    if (digest_new(&whole, err) < 0)
        return -1;
    for (size_t i = 0; i < run->disk_count; i++) {
        struct export_image *image = &run->disks[i].images[0];
        if (digest_range(run, fd, at, image->offset, (EVP_MD_CTX *[]){whole, NULL}, err) < 0 ||
            digest_member(run, fd, image, whole, err) < 0)
            return -1;
        at = image->offset + image->bytes;
    }
    if (digest_range(run, fd, at, run->ova.bytes, (EVP_MD_CTX *[]){whole, NULL}, err) < 0)
        return -1;
    return digest_end(whole, run->ova.sha256, err);
}

/* ---- packing ---- */

static int write_at(struct export_run *run, int fd, uint64_t offset, const void *data, size_t size,
                    struct error *err)
{
    if (export_may_write(run, err) < 0)
        return -1;
    if (pwrite_all(fd, data, size, offset) < 0)
        return error_set_errno(err, errno, "cannot write '%.200s'", run->ova.path);
    return 0;
}

static int write_header(struct export_run *run, int fd, uint64_t offset, const char *name,
                        uint64_t bytes, struct error *err)
{
    uint8_t header[OVA_BLOCK];

    if (ova_header(name, bytes, run->started_wall_ms / 1000, header, err) < 0)
        return -1;
    return write_at(run, fd, offset, header, sizeof header, err);
}

/* Descriptor and digest list, into the room in front. */
static int write_front(struct export_run *run, int fd, struct error *err)
{
    const struct export_ova *ova = &run->ova;
    autofree char *padded = xmalloc(ova->ovf_bytes);
    autofree char *text = NULL;
    autofree char *mf = NULL;
    uint8_t raw[DIGEST_BYTES];
    char sha256[DIGEST_HEX_SIZE];

    if (export_descriptor(run, false, &text, err) < 0)
        return -1;
    assert(strlen(text) <= ova->ovf_bytes);
    memset(padded, '\n', ova->ovf_bytes);
    memcpy(padded, text, strlen(text));
    if (EVP_Digest(padded, ova->ovf_bytes, raw, NULL, EVP_sha256(), NULL) != 1)
        return error_set(err, ERR_INTERNAL, "SHA-256 failed");
    hex_encode(raw, sizeof raw, sha256);
    if (list_digests(run, sha256, &mf, err) < 0)
        return -1;
    assert(strlen(mf) == ova->mf_bytes);
    if (write_header(run, fd, 0, ova->ovf_name, ova->ovf_bytes, err) < 0 ||
        write_at(run, fd, OVA_BLOCK, padded, ova->ovf_bytes, err) < 0 ||
        write_header(run, fd, mf_offset(ova) - OVA_BLOCK, ova->mf_name, ova->mf_bytes, err) < 0)
        return -1;
    return write_at(run, fd, mf_offset(ova), mf, ova->mf_bytes, err);
}

int export_ova_disk_done(struct export_run *run, const struct export_disk *disk, struct error *err)
{
    const struct export_image *image = &disk->images[0];
    autoclose int fd = open(run->ova.path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);

    if (fd < 0)
        return error_set_errno(err, errno, "cannot open '%.200s'", run->ova.path);
    if (image->sha256[0] == '\0') /* it cannot be read back from what is here */
        return error_set(err, ERR_INTERNAL, "'%.200s' has no digest", image->member);
    if (write_header(run, fd, image->offset - OVA_BLOCK, image->member, image->bytes, err) < 0)
        return -1;
    return fdatasync(fd) == 0 ? 0
                              : error_set_errno(err, errno, "cannot sync '%.200s'", run->ova.path);
}

/* Everything behind the last disk is zeros: its padding, and what ends a tar. */
static int write_end(struct export_run *run, int fd, struct error *err)
{
    const struct export_image *last = &run->disks[run->disk_count - 1].images[0];
    uint64_t end = last->offset + last->bytes;

    run->ova.bytes = ova_total(last->offset + ova_padded(last->bytes));
    if (export_may_write(run, err) < 0)
        return -1;
    if (ftruncate(fd, (off_t)end) < 0 || ftruncate(fd, (off_t)run->ova.bytes) < 0 || fsync(fd) < 0)
        return error_set_errno(err, errno, "cannot finish '%.200s'", run->ova.path);
    return 0;
}

static int write_headers(struct export_run *run, int fd, struct error *err)
{
    for (size_t i = 0; i < run->disk_count; i++) {
        struct export_image *image = &run->disks[i].images[0];
        /* After a resume there is no digest made in stream. */
        if (image->sha256[0] == '\0' && digest_member(run, fd, image, NULL, err) < 0)
            return -1;
        if (write_header(run, fd, image->offset - OVA_BLOCK, image->member, image->bytes, err) < 0)
            return -1;
    }
    return 0;
}

int export_ova_pack(struct export_run *run, struct error *err)
{
    autoclose int fd = open(run->ova.path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    bool streamed = run->package != NULL;

    if (fd < 0)
        return error_set_errno(err, errno, "cannot open '%.200s'", run->ova.path);
    if ((!streamed && write_headers(run, fd, err) < 0) || write_front(run, fd, err) < 0 ||
        write_end(run, fd, err) < 0 ||
        (streamed ? export_stream_packed(run, err) : digest_package(run, fd, err)) < 0)
        return -1;
    return export_add_file(run, run->ova.name, "ova", run->ova.bytes, run->ova.sha256, err);
}

/* ---- verification ---- */

static int check_members(const struct export_run *run, const struct ova *ova, struct error *err)
{
    if (ova->count != run->disk_count + 2)
        return error_set(err, ERR_CORRUPT, "it has %zu members", ova->count);
    for (size_t i = 0; i < run->disk_count; i++) {
        const struct export_image *image = &run->disks[i].images[0];
        const struct ova_member *member = &ova->members[i + 2];
        if (strcmp(member->name, image->member) != 0 || member->offset != image->offset ||
            member->bytes != image->bytes) {
            return error_set(err, ERR_CORRUPT, "member '%.200s' is not where it should be",
                             image->member);
        }
    }
    return 0;
}

static int check_digests(const struct export_run *run, const char *text, size_t size,
                         const char *ovf_text, size_t ovf_size, struct error *err)
{
    auto_mf *mf = NULL;
    uint8_t raw[DIGEST_BYTES];
    char ovf_sha256[DIGEST_HEX_SIZE];
    const struct mf_entry *entry;

    if (mf_parse(text, size, &mf, err) < 0)
        return -1;
    if (EVP_Digest(ovf_text, ovf_size, raw, NULL, EVP_sha256(), NULL) != 1)
        return error_set(err, ERR_INTERNAL, "SHA-256 failed");
    hex_encode(raw, sizeof raw, ovf_sha256);
    entry = mf_find(mf, run->ova.ovf_name);
    if (entry == NULL || strcmp(entry->hex, ovf_sha256) != 0)
        return error_set(err, ERR_CORRUPT, "its digest list does not fit its descriptor");
    for (size_t i = 0; i < run->disk_count; i++) {
        entry = mf_find(mf, run->disks[i].images[0].member);
        if (entry == NULL || strcmp(entry->hex, run->disks[i].images[0].sha256) != 0) {
            return error_set(err, ERR_CORRUPT, "its digest list does not fit '%.200s'",
                             run->disks[i].images[0].member);
        }
    }
    return 0;
}

/* Bytes [from, to) of the package at the target into the file. */
static int fetch_range(const struct export_run *run, int fd, uint64_t from, uint64_t to,
                       struct error *err)
{
    autofree uint8_t *buffer = xmalloc(READ_BYTES);

    while (from < to) {
        size_t n = (size_t)min_u64(READ_BYTES, to - from);
        if (export_stream_read(run, run->ova.name, buffer, n, from, err) < 0)
            return -1;
        if (pwrite_all(fd, buffer, n, from) < 0)
            return error_set_errno(err, errno, "cannot write what the target has");
        from += n;
    }
    return 0;
}

/* What the target has of the package, but for its disks, into a sparse file. */
static int fetch_skeleton(const struct export_run *run, const char *path, struct error *err)
{
    autoclose int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    const struct export_image *last = &run->disks[run->disk_count - 1].images[0];

    if (fd < 0 || ftruncate(fd, (off_t)run->ova.bytes) < 0)
        return error_set_errno(err, errno, "cannot write '%.200s'", path);
    if (fetch_range(run, fd, 0, run->disks[0].images[0].offset, err) < 0)
        return -1;
    for (size_t i = 1; i < run->disk_count; i++) {
        uint64_t begin = run->disks[i].images[0].offset;
        if (fetch_range(run, fd, begin - OVA_BLOCK, begin, err) < 0)
            return -1;
    }
    return fetch_range(run, fd, last->offset + last->bytes, run->ova.bytes, err);
}

static int verify_at(struct export_run *run, const char *path, struct error *err)
{
    autofree char *ovf_text = NULL;
    autofree char *mf_text = NULL;
    auto_ova *ova = NULL;

    if (ova_read(path, &ova, err) < 0 || check_members(run, ova, err) < 0 ||
        ova_member_read(path, &ova->members[0], OVF_BYTES_MAX, &ovf_text, err) < 0 ||
        ova_member_read(path, &ova->members[1], MF_BYTES_MAX, &mf_text, err) < 0 ||
        export_check_descriptor(run, ovf_text, (size_t)ova->members[0].bytes, err) < 0 ||
        check_digests(run, mf_text, (size_t)ova->members[1].bytes, ovf_text,
                      (size_t)ova->members[0].bytes, err) < 0)
        return error_wrap(err, "verifying '%.200s'", run->ova.name);
    return 0;
}

int export_ova_verify(struct export_run *run, struct error *err)
{
    autofree char *skeleton = xasprintf("%s.skeleton", run->ova.path);
    int rc;

    if (!run->options.stream)
        return verify_at(run, run->ova.path, err);
    rc = fetch_skeleton(run, skeleton, err);
    if (rc == 0)
        rc = verify_at(run, skeleton, err);
    (void)unlink(skeleton);
    return rc;
}
