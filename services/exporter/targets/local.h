/* The local target: one export's directory on a mounted volume. It is claimed by the export before
 * the first byte, locked by the process that writes, and holds nothing that looks finished until
 * the export is.
 *
 *   .hypersdk-export           whose directory this is: the export's id; lock of the first writer
 *   .hypersdk-export.e7        lock of the writer that began anew in epoch 7
 *   web-03-disk1.vmdk.partial  and .e7.partial: unfinished files of those two
 *   .web-03-disk1.journal, .web-03-disk1.done
 *
 * OFD locks end with the process that holds them, so a lock that is free means that nobody writes
 * any more. They also work across hosts on NFSv4; a file system without them reports
 * ERR_NOT_AVAILABLE, and then nothing is resumed there. */
#ifndef EXPORTER_TARGET_LOCAL_H
#define EXPORTER_TARGET_LOCAL_H

#include <stdatomic.h>

#include "common/config.h"
#include "common/id.h"

#define LOCAL_MARK_NAME   ".hypersdk-export"
#define LOCAL_VOLUME_NAME ".hypersdk-volume"
#define LOCAL_DOMAIN_MARK \
    ".hypersdk-domain" /* a libvirt domain uses the images of the export here */
#define LOCAL_PARTIAL      ".partial"
#define LOCAL_LOCK_WAIT_MS INT64_C(10000) /* a fenced writer stops within its 5 s of margin */
#define LOCAL_FILE_MODE    0640
#define LOCAL_MARK_MAX     256 /* bytes of a mark or volume file */

/* Uuid of the volume that holds path: the base of `bases` it lies in. ERR_UNAVAILABLE: the base has
 * no such file, so its volume is probably not mounted; nothing may be written there. */
MUST_CHECK int local_volume(const struct config_list *bases, const char *path, char out[UUID_SIZE],
                            struct error *err);
/* Does dir hold nothing but what an export may stand next to: is it absent, or empty apart from the
 * volume's file and export_id's own mark? */
MUST_CHECK int local_dir_is_free(const char *dir, const char *export_id, bool *out,
                                 struct error *err);
/* Makes dir if it must, and marks it as export_id's. Repeatable. ERR_CONFLICT: another export's. */
MUST_CHECK int local_claim(const char *dir, const char *export_id, struct error *err);
/* Is dir marked as export_id's? */
bool local_is_claimed_by(const char *dir, const char *export_id);
/* Do the images of the export in dir belong to a domain now (task kind import)? */
bool local_is_used_by_domain(const char *dir);
/* Path of the lock of the writer that began in epoch `generation` (0: the first). Caller frees. */
char *local_lock_path(const char *dir, uint64_t generation);
/* Takes the lock, waiting up to wait_ms; closing *out_fd gives it back. ERR_TIMEOUT: someone else
 * has it. ERR_NOT_AVAILABLE: no locks on this file system. ERR_CANCELLED: *stopped became true. */
MUST_CHECK int local_lock(const char *path, int64_t wait_ms, const atomic_bool *stopped,
                          int *out_fd, struct error *err);

/* ERR_LIMIT unless the file system of path (or of its nearest existing parent) has `needed` bytes
 * free for us; the message names path, needed and free. */
MUST_CHECK int local_check_space(const char *path, uint64_t needed, struct error *err);
/* Bytes that unfinished files take on disk already. */
uint64_t local_partial_bytes(const char *dir, const char *stem);

/* Renames without ever replacing: ERR_CONFLICT if `to` exists, ERR_NOT_FOUND if `from` does not. */
MUST_CHECK int local_rename_new(const char *from, const char *to, struct error *err);
/* What local_rename_new does on file systems without RENAME_NOREPLACE: link, then unlink. */
MUST_CHECK int local_rename_by_link(const char *from, const char *to, struct error *err);
MUST_CHECK int local_sync_dir(const char *dir, struct error *err);

/* Removes the unfinished files, journals and notes of the export with this stem from dir. Those of
 * one generation are kept when keep_generation is not NULL. Files under final names stay. */
MUST_CHECK int local_sweep(const char *dir, const char *stem, const uint64_t *keep_generation,
                           struct error *err);
/* Removes marks and locks, and dir itself when it is empty then and remove_dir is set. */
MUST_CHECK int local_unclaim(const char *dir, bool remove_dir, struct error *err);

/* "<name>.partial" or "<name>.e7.partial" below dir. Caller frees. */
char *local_partial_path(const char *dir, const char *name, uint64_t generation);
/* ".<name>.<what>" or ".<name>.e7.<what>": journal and notes. Caller frees. */
char *local_note_path(const char *dir, const char *name, const char *what, uint64_t generation);

#endif
