/* Restore points of one VM: exports with format qcow2 that lie beside each other, each of them an
 * image whose backing file is the point before.
 *
 *   <root>/                        one directory per VM: the output_path of its incremental exports
 *     .hypersdk-chain.<vm>         lock of the VM's points: shared for readers, else exclusive
 *     exp-1/  web-03-disk1.qcow2   full
 *     exp-2/  web-03-disk1.qcow2   backing file ../exp-1/web-03-disk1.qcow2
 *             export.json          incremental.base_id = exp-1, incremental.base_dir = ../exp-1
 *
 * A full point may also lie in <root> itself (an export that was not asked to be incremental).
 * Names in the records come from disk and are checked: a point never leads out of its root.
 * Any thread; nothing here is shared. */
#ifndef EXPORTER_CHAIN_H
#define EXPORTER_CHAIN_H

#include "services/exporter/engine/export_record.h"
#include "services/exporter/formats/image.h"

#define CHAIN_POINTS_MAX IMAGE_CHAIN_MAX
#define CHAIN_DIRS_MAX   100000 /* entries of a root that are looked at */

struct chain_point {
    char *dir; /* absolute */
    struct export_record *record;
};

struct chain {
    char *root;
    struct chain_point points[CHAIN_POINTS_MAX]; /* the youngest first, the full one last */
    size_t count;
};

/* From the point in `dir` down to the full one. root: canonical. ERR_NOT_FOUND: a point is missing.
 * ERR_CORRUPT: the records do not make a chain. ERR_LIMIT: over CHAIN_POINTS_MAX. */
MUST_CHECK int chain_load(const char *root, const char *dir, struct chain **out, struct error *err);
/* The same from the point below that of `record`, which lies below root. */
MUST_CHECK int chain_load_base(const char *root, const struct export_record *record,
                               struct chain **out, struct error *err);
void chain_free(struct chain *chain); /* NULL-safe */
DEFINE_AUTO(chain, struct chain, chain_free)
#define auto_chain CLEANUP(chain_auto) struct chain

/* "" for a full point. */
const char *chain_base_id(const struct export_record *record);
const char *chain_vm_id(const struct export_record *record);
const char *chain_disk_text(const struct export_record *record, size_t disk, const char *key);
size_t chain_disk_count(const struct export_record *record);

/* The directory below root of a point that stands on `export_id`; NULL in *out_dir: none does.
 * Caller frees. Cleanup asks this before it removes an export. */
MUST_CHECK int chain_child(const char *root, const char *export_id, char **out_dir,
                           struct error *err);

/* Directory of the youngest point that stands on the one in dir. Caller frees. */
MUST_CHECK int chain_youngest(const char *root, const char *dir, const char *export_id,
                              char **out_dir, struct error *err);

/* Are all images and leaves of the points there, with their sizes and backing names, and does the
 * youngest one open? With digests their SHA-256 is compared, which reads them all.
 * ERR_CORRUPT or ERR_NOT_FOUND names the file. */
MUST_CHECK int chain_check(const struct chain *chain, bool digests, const atomic_bool *stopped,
                           struct error *err);

/* The files only, without opening images: of exports that share whole disks. */
MUST_CHECK int chain_check_files(const struct chain *chain, bool digests,
                                 const atomic_bool *stopped, struct error *err);

/* Journal of what is being done to the VM's points (chain_edit.h). Caller frees. */
char *chain_journal_path(const char *root, const char *vm_id);
/* The lock of the VM's points below root; closing *out_fd gives it back. ERR_UNAVAILABLE: somebody
 * else has it. ERR_NOT_AVAILABLE: the file system has no locks. */
MUST_CHECK int chain_lock(const char *root, const char *vm_id, bool exclusive, int *out_fd,
                          struct error *err);
/* For reading the images of the export in dir: *out_root is what image_open_chain wants, NULL
 * unless it is a restore point; then it is locked, shared. ERR_UNAVAILABLE: it is being
 * changed, or was and that is not finished. */
MUST_CHECK int chain_reader_lock(const char *dir, const struct export_record *record,
                                 char **out_root, int *out_fd, struct error *err);

#endif
