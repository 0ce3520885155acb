/* One export task while it runs; shared by the export*.c files only.
 *
 *   export.c         the flow, and what happens when it fails
 *   export_spec.c    options, the VM, its disks, free space
 *   export_rate.c    bandwidth: what the job may take, and telling so
 *   export_place.c   directory, claim, lock, generation
 *   export_disks.c   copying, progress, the source's marks
 *   export_package.c descriptor, digests, manifests, verification, the plan
 *   export_ova.c     the same as members of one OVA
 *   export_upload.c  the way to a target outside
 *   export_stream.c  the same for images while they are written
 *   export_steps.c   steps that the export goes on without
 *   export_encrypt.c encryption at rest
 *   export_finish.c  final names, and back
 *   export_base.c    the earlier export that an incremental one goes on from
 *   export_changes.c what the source says that changed since
 *   export_share.c   files of an earlier export that stay as they are
 *   export_record.c  export.json
 *
 * Design notes
 * - Everything is written as *.partial. When all of it is complete and verified, the future
 *   export.json is stored as export.json.partial: the plan. Finishing is nothing but renames by
 *   that plan, export.json last, so it can be repeated by any process after any crash.
 * - Source released before the permit: removing a snapshot may take minutes, and a job should stay
 *   cancellable meanwhile. It happens after the plan is stored: from there on the source is not
 *   needed any more, a lease that finds a plan does not look at the VM again.
 * - A "generation" is one set of partial files, named by the epoch that began it. A new one begins
 *   when another process still holds the lock, or when the disks were frozen anew (other marks),
 *   so that old bytes never mix with new ones. */
#ifndef EXPORTER_EXPORT_RUN_H
#define EXPORTER_EXPORT_RUN_H

#include "services/exporter/engine/chain.h"
#include "services/exporter/engine/copy.h"
#include "services/exporter/engine/export_record.h"
#include "services/exporter/engine/session.h"
#include "services/exporter/targets/local.h"

#define EXPORT_WARNINGS_MAX     (VM_DISKS_MAX + 16)
#define EXPORT_PHASES_MAX       12
#define EXPORT_PARALLEL_MAX     COPY_READERS_MAX
#define EXPORT_PARALLEL_DEFAULT 4

struct export_options {
    const char *job_id;
    const char *vm;
    const char *output_path;
    const char *format;
    bool convert;
    bool verify;
    struct prepare_options prepare;
    unsigned int parallel;
    int compress_level;
    const char *compression; /* of qcow2 clusters: "zlib", "zstd"; NULL: none */
    const char *upload;      /* URL; "" for none */
    bool keep_local;         /* false: local files go when the upload is verified */
    bool stream;             /* images are uploaded while they are written, none stays here */
    bool incremental;        /* below output_path, going on from the export before if that can be */
    bool by_disk;            /* incremental, and of whole disks: every format but qcow2 */
    bool force_full;
    bool enable_cbt;                /* switch the VM's change tracking on first */
    bool remove_cdrom;              /* take its CD-ROM drives away */
    int64_t incremental_max_age_ms; /* of the last full one */
    const char *encrypt_key;        /* name below export.encryption_key_dir; NULL: none */
    const char *passphrase;         /* sealed, instead of encrypt_key; NULL: none */
    bool snapshot_may_fail;         /* the export goes on without what was asked for */
    bool upload_may_fail;
    uint64_t tries_max; /* attempts of the job: a step that may fail is given up in the last */
    json_t *tags;       /* borrowed; may be NULL */
};

struct export_image { /* one output of one disk */
    const struct sink_format *format;
    char *name;      /* final base name of the file */
    char *path;      /* partial */
    char *member;    /* the image is that member of the OVA `name`; NULL: it is the file */
    uint64_t offset; /* of the member's first byte in the OVA; else 0 */
    uint64_t bytes;  /* of the image */
    char sha256[DIGEST_HEX_SIZE]; /* of the image; "" until known */
    bool read_back;               /* the digest is that of the bytes on disk */
    char *earlier; /* by_disk: the same disk's image in the base, "../exp-1/web-disk1.vmdk"; or NULL
                    */
};

/* What its bytes are called. */
static inline const char *export_image_name(const struct export_image *image)
{
    return image->member != NULL ? image->member : image->name;
}

#define EXPORT_REASON_MAX 400

struct export_disk {
    size_t frozen_index;
    size_t vm_disk_index;
    char *name; /* "<stem>-disk1" */
    uint64_t size_bytes;
    struct export_image images[COPY_OUTPUTS_MAX];
    size_t image_count;
    char *leaves_name;
    char *leaves_path; /* partial */
    struct leaves *leaves;
    char root[DIGEST_TEXT_SIZE];
    uint64_t bytes_data;
    uint64_t bytes_transferred;
    char *backing;                    /* relative name of the image below; NULL: none */
    const struct leaves *base_leaves; /* of the disk in the base; run->base owns them */
    const char *base_change_id;       /* likewise; "": none */
    /* Of incremental exports, how the disk was read: "changed_extents", "leaf_compare", "full"
     * (literal), and why not only what changed. */
    const char *incremental_mode; /* "" until it is known */
    char incremental_reason[EXPORT_REASON_MAX];
    uint8_t *changed;       /* copy.h; NULL: all may differ */
    uint64_t changed_bytes; /* that its bits stand for */
    bool shared;            /* nothing changed: its images are files of the base (export_share.c) */
};

struct export_base {
    char *root;                     /* canonical output_path; NULL: nothing is locked */
    int lock_fd;                    /* of the VM's restore points */
    struct chain *chain;            /* what the new one goes on from; NULL: it is a full one */
    char reason[EXPORT_REASON_MAX]; /* why it is */
    int64_t full_at_ms;             /* of the chain's last full export, wall */
    char dir[260];                  /* "../exp-1": of the base, seen from the new point */
    struct leaves *leaves[VM_DISKS_MAX];
};

/* What export_base_choose looks at; borrowed. */
struct export_base_wish {
    const json_t *spec; /* with "bases": the catalogue's restore points of the directory */
    const char *root;
    const struct vm *vm;
    const char *format;
    bool convert;
    bool force_full;
    int64_t age_max_ms;
    bool digests; /* read the images below and compare their digests */
    const atomic_bool *stopped;
};

struct export_ova { /* format ova; else all zero */
    char *name;     /* final base name */
    char *path;     /* partial */
    char *ovf_name; /* of the members in front */
    char *mf_name;
    uint64_t ovf_bytes; /* reserved, hence written */
    uint64_t mf_bytes;
    uint64_t bytes; /* of the whole, once it is packed */
    char sha256[DIGEST_HEX_SIZE];
};

struct crypt_key;

struct export_file {  /* of the finished export */
    char *plain_name; /* NULL unless encrypted; then what the file holds */
    uint64_t plain_size;
    char plain_sha256[DIGEST_HEX_SIZE];
    char *name;
    const char *type; /* literal */
    uint64_t size;
    char sha256[DIGEST_HEX_SIZE];
};

struct export_warning {
    const char *stage; /* literal */
    char *message;
    int64_t wall_ms;
};

struct export_run {
    struct worker_task *task;
    struct exporter *exporter;
    struct exporter_records records;
    struct exporter_session session;
    struct export_options options;
    struct rate_transfer *rate; /* what all its transfers take their bytes from */
    struct {
        pthread_mutex_t mutex; /* guards settings */
        struct rate_settings settings;
        atomic_bool changed; /* not told yet */
    } bandwidth;
    atomic_bool never; /* stays false: for tidying up after a cancel */

    char *vm_id;
    struct frozen_vm *frozen;
    struct export_disk *disks;
    size_t disk_count;
    struct export_ova ova;

    struct crypt_key *encrypt_key; /* NULL: plain files */
    json_t *plain_manifest;        /* as written, before it is encrypted */
    char *export_id;
    int64_t started_wall_ms;
    char volume[UUID_SIZE];
    char *output; /* the spec's path, confined */
    char *dir;    /* NULL until it is ours */
    char *stem;
    uint64_t generation;
    bool generation_is_new; /* begun by this lease */
    int lock_fd;

    struct export_file files[EXPORT_FILES_MAX];
    size_t file_count;
    struct export_warning warnings[EXPORT_WARNINGS_MAX];
    size_t warning_count;
    struct {
        const char *name;
        int64_t start_ms;
    } phases[EXPORT_PHASES_MAX];
    size_t phase_count;

    struct export_base base;

    struct worker_disk_progress *progress_disks; /* disk_count */
    size_t progress_disk;                        /* the one being worked on */

    struct export_record *plan;    /* set once everything is complete and verified */
    struct export_stream *package; /* the upload of an OVA while it is written; else NULL */
    bool committed;                /* export.json is there */
    bool release_pending;

    struct export_upload *upload; /* NULL: none wanted */
    bool uploaded;                /* complete at the target, export.json too */
    json_t *manifest;             /* set by export_recall */
    uint64_t record_bytes;        /* size of export.json, likewise */
};

/* Sets the phase, and notes when it began. */
void export_phase(struct export_run *run, const char *phase);
/* Into the job's log, the manifest and the result. */
void export_warn(struct export_run *run, const char *stage, const char *format, ...)
    PRINTF_LIKE(3, 4);
/* "12.3 GiB", into out. */
#define EXPORT_SIZE_TEXT 32
const char *export_size_text(uint64_t bytes, char out[EXPORT_SIZE_TEXT]);
/* Writes text as "<name>.partial" and enters it in run->files. */
MUST_CHECK int export_write_file(struct export_run *run, const char *name, const char *type,
                                 const char *text, size_t size, struct error *err);
/* The path of a final name. Caller frees. */
char *export_path(const struct export_run *run, const char *name);
MUST_CHECK int export_may_write(void *run, struct error *err);

/* export_spec.c */
MUST_CHECK int export_spec_read(struct export_run *run, struct error *err);
MUST_CHECK int export_find_vm(struct export_run *run, struct error *err);
/* Switches change tracking on when that was asked for. */
MUST_CHECK int export_track(struct export_run *run, struct error *err);
/* Has the guest shut down when that was asked for. */
MUST_CHECK int export_shut_down(struct export_run *run, struct error *err);
/* export_cdrom.c; the option of the spec: ERR_NOT_AVAILABLE: not with this provider. */
MUST_CHECK int export_cdroms_read(struct export_run *run, const json_t *spec, struct error *err);
/* Takes the CD-ROM drives away, once per task, when that was asked for. */
MUST_CHECK int export_remove_cdroms(struct export_run *run, struct error *err);
MUST_CHECK int export_freeze(struct export_run *run, struct error *err);
/* ERR_LIMIT: there is no room for what the export will write. */
MUST_CHECK int export_check_space(struct export_run *run, const struct vm *vm, struct error *err);
/* Was the VM frozen by a snapshot (else it was off)? Needs run->frozen or run->plan. */
bool export_uses_snapshot(const struct export_run *run);
/* Names and outputs of the frozen disks; needs stem, dir and generation. */
MUST_CHECK int export_disks_plan(struct export_run *run, struct error *err);
/* A digest of everything that partial files depend on: 64 hex. */
void export_base_digest(const struct export_run *run, char out[DIGEST_HEX_SIZE]);
void export_disks_free(struct export_run *run);

/* export_rate.c */
/* run->rate, by the task's bandwidth, which may change until export_rate_stop. */
void export_rate_start(struct export_run *run);
void export_rate_stop(struct export_run *run); /* NULL-safe */
/* Writes into the job's log what limit holds since the last call, if that is news. */
void export_rate_tell(struct export_run *run);

/* export_place.c */
/* What the records say: id, start, and, if there is one, the directory: it is claimed and locked
 * then, and run->committed or run->plan set when the export got that far. */
MUST_CHECK int export_place_recall(struct export_run *run, struct error *err);
/* The directory of an export whose VM is frozen: chosen, claimed, locked; a generation that fits
 * the marks. */
MUST_CHECK int export_place_open(struct export_run *run, struct error *err);
char *export_plan_path(const struct export_run *run);

/* export_disks.c */
#define EXPORT_NOTE_DONE    "done"    /* what a disk that is complete looks like */
#define EXPORT_NOTE_JOURNAL "journal" /* how far the others are */
/* The path of that file of a disk. Caller frees. */
char *export_disk_note(const struct export_run *run, const struct export_disk *disk,
                       const char *what);
MUST_CHECK int export_copy_disks(struct export_run *run, struct error *err);
/* ERR_SOURCE_CHANGED unless every disk still has the mark it had when it was frozen. */
MUST_CHECK int export_check_marks(struct export_run *run, struct error *err);
/* Progress of the present disk in its state "copying" or "verifying". */
void export_progress(struct export_run *run, const char *state, uint64_t bytes_done,
                     const char *limited_by);

/* export_package.c */
MUST_CHECK int export_package(struct export_run *run, struct error *err);
MUST_CHECK int export_verify(struct export_run *run, struct error *err);
/* Digest lists, manifests, and the plan; run->plan is set. */
MUST_CHECK int export_plan_store(struct export_run *run, struct error *err);
json_t *export_document(const struct export_run *run);

/* export_base.c */
/* The catalogue's row of this VM among the task's; NULL: none. */
const json_t *export_base_row(const json_t *spec, const char *vm_id);
/* base->chain, or NULL there and the reason. */
MUST_CHECK int export_base_choose(const struct export_base_wish *wish, struct export_base *base,
                                  struct error *err);
void export_base_release(struct export_base *base);
/* With incremental: locks the VM's restore points and chooses. ERR_UNAVAILABLE: another job works
 * on them. */
MUST_CHECK int export_base_find(struct export_run *run, const struct vm *vm, struct error *err);
/* Do the frozen disks still fit the base? Else it becomes a full export. */
MUST_CHECK int export_base_fit(struct export_run *run, struct error *err);
MUST_CHECK int export_base_disk(struct export_run *run, struct export_disk *disk,
                                struct error *err);
/* Before the finish of a plan that an earlier attempt stored. */
MUST_CHECK int export_base_recall(struct export_run *run, struct error *err);
/* Of the VM's disk with that id in the base; "": none. Borrowed. */
const char *export_base_change_id(const struct export_base *base, const char *disk_id);
/* Asks the source what changed on the disk since the base: sets disk->incremental_mode and what
 * belongs to it, and tells it. */
MUST_CHECK int export_base_changes(struct export_run *run, struct export_disk *disk,
                                   struct error *err);
/* Modes as an earlier attempt noted them. */
void export_base_recall_mode(struct export_disk *disk, const char *mode, const char *reason);
/* "leaf" or "disk"; needs base->chain. */
const char *export_base_mode(const struct export_base *base);
/* mode, base and chain or disks of an incremental export: new reference. */
json_t *export_base_summary(const struct export_run *run);
/* "incremental" and the disks' part of it, into export.json. */
void export_base_document(const struct export_run *run, json_t *document, int64_t completed_ms);

/* export_share.c */
/* After the disk was copied: if no MiB differs from the base, the base's images get a second name
 * in this export (pending, see export_pending_path) and disk->images mean those. On file systems
 * without hard links the disk stays a whole one, and that is told. */
MUST_CHECK int export_share(struct export_run *run, struct export_disk *disk, struct error *err);
/* The disk's images are the ones to be copied, or the base's. */
void export_share_use(const struct export_run *run, struct export_disk *disk, bool shared);
/* Where the base's image is, absolute; NULL: it has none. Caller frees. */
char *export_earlier_path(const struct export_run *run, const struct export_image *image);
/* What was copied of a shared disk goes. */
void export_share_drop(const struct export_run *run, const struct export_disk *disk);
/* "../exp-1/web-disk1.vmdk" if the export's file `name` is that one, else NULL. */
const char *export_shared_with(const struct export_run *run, const char *name);
/* Where a file of a plan is until it has its final name. Caller frees. */
char *export_pending_path(const char *dir, const struct export_record_file *file,
                          uint64_t generation);

/* export_steps.c */
enum export_step { EXPORT_STEP_SHUTDOWN, EXPORT_STEP_SNAPSHOT, EXPORT_STEP_UPLOAD };
/* Is a step that failed so, and that may (asked), given up now? Else the task fails, and maybe
 * comes again. */
bool export_goes_on(const struct export_run *run, bool asked, const struct error *cause);
MUST_CHECK int export_step_failed(struct export_run *run, enum export_step step,
                                  const struct error *cause, struct error *err);
/* It worked; an earlier attempt may have gone on without it. */
MUST_CHECK int export_step_done(struct export_run *run, enum export_step step, struct error *err);
/* "hooks_failed" of the result (docs/tasks.md). */
void export_steps_result(const struct export_run *run, json_t *result);

/* export_upload.c; nothing to do unless an upload is wanted */
/* Credentials and target, as early as possible: ERR_DENIED ... before anything is read. A target
 * that does not answer is no reason not to begin. */
MUST_CHECK int export_upload_open(struct export_run *run, struct error *err);
/* All files of the plan but export.json, verified there. Repeatable. */
MUST_CHECK int export_upload_files(struct export_run *run, struct error *err);
/* export.json, after export_commit: run->uploaded is set. */
MUST_CHECK int export_upload_record(struct export_run *run, struct error *err);
/* Do the records say that the target has everything? */
bool export_upload_is_done(const struct export_run *run);
/* plan, manifest and record_bytes of a finished export: here, or where it was uploaded to. */
MUST_CHECK int export_recall(struct export_run *run, struct error *err);
MUST_CHECK int export_remove_local(struct export_run *run, struct error *err);
void export_upload_result(const struct export_run *run, json_t *result);
/* Removes the state files in dir. */
void export_upload_forget(const char *dir);
void export_upload_free(struct export_run *run);
/* Of an export that failed for good: what it streamed is removed at the target. */
void export_upload_discard(struct export_run *run);
/* The export goes on without its upload, which failed so: what is at the target goes, as far as
 * that can be, and run->upload is NULL. */
MUST_CHECK int export_upload_give_up(struct export_run *run, const struct error *cause,
                                     struct error *err);

/* Uploads have numbers: files of the plan theirs, export.json the one behind them, then streams. */
#define EXPORT_UPLOAD_STREAMS ((size_t)EXPORT_FILES_MAX + 1)
#define EXPORT_UPLOADS_MAX    (EXPORT_UPLOAD_STREAMS + VM_DISKS_MAX)
/* The open target; NULL until it answers. */
struct target *export_upload_target(const struct export_run *run);
/* What a file is called there; where the upload's state is. Callers free. */
char *export_upload_object(const struct export_run *run, const char *name);
char *export_upload_state(const char *dir, size_t index);
/* Records that upload `index` is under way as `id`; and the id of that record, NULL: none. */
MUST_CHECK int export_upload_note(struct export_run *run, size_t index, const char *id,
                                  const char *object, struct error *err);
char *export_upload_id(const struct worker_task *task, size_t index, const char **out_object);
/* Is that file of the plan at the target already, and only there? */
bool export_is_streamed(const struct export_run *run, const struct export_record_file *file);

/* export_stream.c */
struct export_stream;
/* ERR_NOT_AVAILABLE: the options cannot be had together. */
MUST_CHECK int export_stream_check(const struct export_options *options, struct error *err);
/* How much room its files take here at most, of images of that many bytes. */
uint64_t export_stream_room(const struct export_run *run, uint64_t bytes);
/* Before the disk is copied. When the upload begins anew the journal goes. Of an OVA: run->package.
 */
MUST_CHECK int export_stream_open(struct export_run *run, struct export_disk *disk,
                                  const char *journal, struct export_stream **out,
                                  struct error *err);
/* Of an OVA whose disks go out in it: before the first disk. When the upload begins anew, journals
 * and notes of all disks go. */
MUST_CHECK int export_stream_package(struct export_run *run, struct error *err);
/* The next disk's header is at that offset; all before it is complete, and noted. */
void export_stream_place(struct export_stream *stream, struct export_disk *disk);
const struct copy_follower *export_stream_follower(const struct export_stream *stream);
/* After it: the rest goes out; the image's digest is known then. */
MUST_CHECK int export_stream_finish(struct export_stream *stream, struct error *err);
/* The same of the package, as it stands on disk: sets run->ova.sha256. */
MUST_CHECK int export_stream_packed(struct export_run *run, struct error *err);
/* Bytes of the object at the target. */
MUST_CHECK int export_stream_read(const struct export_run *run, const char *name, void *buffer,
                                  size_t length, uint64_t offset, struct error *err);
void export_stream_close(struct export_stream *stream); /* NULL-safe */
DEFINE_AUTO(export_stream, struct export_stream, export_stream_close)
#define auto_export_stream CLEANUP(export_stream_auto) struct export_stream
/* Compares the image at the target with the leaves. */
MUST_CHECK int export_stream_verify(struct export_run *run, const struct export_disk *disk,
                                    void (*progress)(void *arg, uint64_t bytes_done),
                                    struct error *err);

/* Every file has its entry in run->files. */
MUST_CHECK int export_add_file(struct export_run *run, const char *name, const char *type,
                               uint64_t size, const char *sha256, struct error *err);
/* The descriptor of the images as they are. Caller frees *out. */
MUST_CHECK int export_descriptor(const struct export_run *run, bool reserve, char **out,
                                 struct error *err);
/* Does a descriptor, read as a stranger's, name our images with their sizes? */
MUST_CHECK int export_check_descriptor(const struct export_run *run, const char *text, size_t size,
                                       struct error *err);

/* export_ova.c */
bool export_is_ova(const struct export_run *run);
/* Names and reserved room; needs run->disks. */
MUST_CHECK int export_ova_plan(struct export_run *run, struct error *err);
/* Where disk `index` begins; the disks before it are complete. */
void export_ova_place(struct export_run *run, size_t index);
/* That disk is complete: its header, durable; of a package that is uploaded meanwhile only. */
MUST_CHECK int export_ova_disk_done(struct export_run *run, const struct export_disk *disk,
                                    struct error *err);
/* Headers, descriptor, digest list and end; then the whole is read back for its digest, or the rest
 * of it is uploaded. */
MUST_CHECK int export_ova_pack(struct export_run *run, struct error *err);
/* The package as it stands on disk, or at the target, read as a stranger's. */
MUST_CHECK int export_ova_verify(struct export_run *run, struct error *err);
void export_ova_free(struct export_run *run);

/* export_encrypt.c */
/* Loads or unseals the key that the task names, before anything is read. */
MUST_CHECK int export_encryption_open(struct export_run *run, struct error *err);
/* All files so far become encrypted ones; nothing without a key. */
MUST_CHECK int export_encrypt(struct export_run *run, struct error *err);

/* export_finish.c */
/* Final names by the plan, export.json last; repeatable. */
MUST_CHECK int export_commit(struct export_run *run, struct error *err);
/* After export.json: journals, marks, old generations. */
MUST_CHECK int export_tidy(struct export_run *run, struct error *err);
/* Before export.json: files that have their final name already become partial again. */
MUST_CHECK int export_retreat(const struct worker_task *task, const struct export_record *plan,
                              const char *dir, uint64_t generation, struct error *err);
/* A fresh start in the same directory is possible afterwards. */
MUST_CHECK int export_discard(struct export_run *run, struct error *err);

#endif
