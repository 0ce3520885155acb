/* A source of virtual machines: what a provider implements, and what the engine promises it.
 *
 * Life cycle, all calls on worker threads; one session belongs to one thread at a time:
 *
 *   open -> check | vm_list | vm_get | vm_tags | set_tracking
 *        -> shut_down -> remove_cdroms -> prepare -> disk_changes ... ->
 *           N x (disk_open -> disk_read ... -> disk_close)
 *        -> disk_mark -> release
 *        -> close
 *
 * or, of a frozen VM that is forward_only, instead of N x (...):
 *
 *        stream_open -> (stream_next | stream_fetch, N x stream_decode) ... -> stream_close
 *
 * The engine owns: range checks, retries (error_is_retryable), deadlines, rate limit, progress,
 * checksums. A provider does its transport and says which kind of failure it had:
 *   ERR_DENIED credentials or privilege, ERR_NOT_FOUND gone, ERR_UNAVAILABLE/ERR_TIMEOUT try again,
 *   ERR_PROTOCOL the peer's answer is not what its API says, ERR_SOURCE_CHANGED not the same bytes,
 *   ERR_NOT_AVAILABLE it cannot do that, ERR_CANCELLED `cancelled` became true.
 * A NULL optional callback is an absent capability, shown as such by API, CLI and UI. */
#ifndef EXPORTER_PROVIDER_H
#define EXPORTER_PROVIDER_H

#include <jansson.h>
#include <stdatomic.h>

#include "common/config.h"
#include "services/exporter/engine/vm.h"

#define PROVIDER_PARALLEL_READS_MAX                                                         \
    16                            /* connections per disk; option parallel_downloads' limit \
                                   */
#define PROVIDER_PARCEL_BYTES MIB /* of the disk, from a multiple of it on: what a reader takes */

struct provider_session; /* each provider defines its own */
struct provider_disk;

/* Facts about things created outside (snapshots ...). Kept in PostgreSQL (task_records), handed to
 * every later lease of the task. put() returns after the record is committed: call it with the
 * intent before, and with the result after, creating anything. Values are short text. */
struct task_records {
    int (*put)(struct task_records *records, const char *key, const char *value, struct error *err);
    /* NULL if there is none; valid until the next put of that key. */
    const char *(*get)(struct task_records *records, const char *key);
};

struct provider_check { /* answer of check(); strings owned by the struct */
    bool reachable;
    bool authenticated;
    char version[64];
    char message[ERROR_MESSAGE_MAX]; /* empty when all is well */
};

struct prepare_options {
    const char *job_id;
    const char *method;        /* one of provider_method.asked; NULL: the provider chooses */
    bool snapshot;             /* asked for by the user; a running VM gets one anyway */
    bool never_snapshot;       /* rather ERR_NOT_AVAILABLE: somebody only asks a question */
    const char *snapshot_name; /* NULL: hypersdk-<job> */
    bool snapshot_memory;
    bool snapshot_quiesce;
    bool delete_snapshot; /* false: release() leaves it */
    bool consolidate;
    int64_t timeout_ms; /* for the snapshot */
};

/* Of a VM whose guest is asked to shut down. */
struct shutdown_options {
    int64_t timeout_ms;  /* for the guest */
    bool hard;           /* then it is powered off; else that is ERR_CONFLICT */
    bool power_on_after; /* release() starts it again, if it ran before */
};
enum shutdown_end { SHUTDOWN_WAS_OFF, SHUTDOWN_BY_GUEST, SHUTDOWN_HARD };
/* Record of a VM's id that release() starts again; "": none. Committed before it is stopped. */
#define PROVIDER_KEY_POWER_ON "power_on"

/* One disk, frozen: its bytes do not change while the freeze mark stays the same. */
struct frozen_disk {
    size_t vm_disk_index; /* into vm.disks */
    uint64_t size_bytes;
    char *mark; /* identity: provider VM id, disk id, size, snapshot id or last-modified */
};

struct frozen_vm {
    /* As it was frozen; a disk's change_id names that state to a later disk_changes, "" when the
     * source will not be able to tell what changed since. */
    struct vm vm;
    struct frozen_disk *disks;
    size_t disk_count;
    char *method;        /* "folder", "snapshot-folder": goes into the manifest; begins with
                             "snapshot" when there is one */
    bool forward_only;   /* the disks come as streams: stream_* instead of disk_open, disk_read */
    void *provider_data; /* provider's own, freed by frozen_free of the provider */
};

struct extent {
    uint64_t offset;
    uint64_t length;
};

struct extent_list {      /* the answer to a question about [offset, ...) of a disk */
    struct extent *items; /* room for count_max; in rising order, behind offset, up to end */
    size_t count_max;
    size_t count;
    uint64_t end; /* how far the answer reaches: over offset, at most the disk's size */
};

struct changes_query {
    size_t disk_index; /* into frozen_vm.disks */
    const char *since; /* change_id of the same disk in an earlier frozen_vm */
    uint64_t offset;   /* the answer begins here */
};

struct tracking_options {
    bool on;
    const char *job_id; /* as in prepare_options: names what is made on the way */
};

struct provider_method {
    const char *name;  /* as in frozen_vm.method */
    uint32_t priority; /* higher is preferred */
    const char *asked; /* the word by which jobs ask for it; NULL: they cannot */
};

/* What stream_fetch brought of one range of a disk, as it came over the wire. The memory belongs to
 * one reader, who uses it again and frees data. */
struct provider_parcel {
    uint8_t *data;
    size_t room;
    size_t size;
};

struct provider_stream; /* each provider defines its own */

struct provider {
    const char *name;  /* kind: "vsphere"; in config, logs, metrics, binary name */
    const char *title; /* "VMware vSphere (vCenter, ESXi)" */
    const struct provider_method *methods; /* ends with {0} */
    bool snapshots;                        /* prepare() freezes running VMs by one */
    unsigned int parallel_reads_max;       /* useful connections per disk */
    bool local; /* reading is work for this machine, not waiting for another one */
    size_t config_size;
    const struct config_key *config_keys; /* settings of one instance; secrets marked */

    /* Required. `config` points at config_size bytes filled from config_keys; it outlives the
     * session. `cancelled` may become true at any time; long calls look at it. */
    int (*open)(const void *config, const atomic_bool *cancelled, struct provider_session **out,
                struct error *err);
    void (*close)(struct provider_session *session); /* NULL-safe, also after a failed call */
    /* Log in and look around. Fills *out also when it fails; returns -1 only for our own faults. */
    int (*check)(struct provider_session *session, struct provider_check *out, struct error *err);
    /* Calls page() with up to 500 VMs at a time, without disks' change ids; page returning -1 (its
     * err set) ends the listing with that error. VMs are valid during the call only. */
    int (*vm_list)(struct provider_session *session,
                   int (*page)(void *arg, const struct vm *vms, size_t count, struct error *err),
                   void *arg, struct error *err);
    /* Everything about one VM by provider id. out was initialised. ERR_NOT_FOUND. */
    int (*vm_get)(struct provider_session *session, const char *vm_id, struct vm *out,
                  struct error *err);
    /* Make the disks stand still. Repeatable: reuses what the records name. On failure nothing new
     * is left behind that the records do not name. `records` outlive *out; puts come from the
     * thread that calls this, also in stream_open and stream_close. */
    int (*prepare)(struct provider_session *session, const char *vm_id,
                   const struct prepare_options *options, struct task_records *records,
                   struct frozen_vm **out, struct error *err);
    void (*frozen_free)(struct frozen_vm *frozen); /* NULL-safe */
    /* Own connection for one reader; may be called from several threads, each with its own session
     * NOT required: must not touch the session but for immutable or locked facts. */
    int (*disk_open)(struct provider_session *session, const struct frozen_vm *frozen, size_t index,
                     struct provider_disk **out, struct error *err);
    /* All of length, or an error. Offset and length are inside the disk. */
    int (*disk_read)(struct provider_disk *disk, void *buffer, size_t length, uint64_t offset,
                     struct error *err);
    void (*disk_close)(struct provider_disk *disk); /* NULL-safe */
    /* The disk's identity now; the engine compares it with frozen_disk.mark after the last byte.
     * Caller frees. */
    int (*disk_mark)(struct provider_session *session, const struct frozen_vm *frozen, size_t index,
                     char **out, struct error *err);
    /* Undo what prepare (and shut_down) made, by records alone (also after a crash, in another
     * process). Repeatable: gone already is success. keep = leave snapshots that the user wants
     * kept. */
    int (*release)(struct provider_session *session, struct task_records *records, bool keep,
                   struct error *err);

    /* Optional. */
    /* Before prepare(). Repeatable; a VM that does not run is left alone. ERR_CONFLICT: the guest
     * does not do it. */
    int (*shut_down)(struct provider_session *session, const char *vm_id,
                     const struct shutdown_options *options, struct task_records *records,
                     enum shutdown_end *out, struct error *err);
    /* The tags of `count` VMs, at most 500; out: as many, zeroed, released by the caller also after
     * a failure. ERR_NOT_AVAILABLE: this source has none to read. Not part of vm_get, because it
     * may be another API with another login, which only listings are worth. */
    int (*vm_tags)(struct provider_session *session, const char *const *vm_ids, size_t count,
                   struct vm_tags *out, struct error *err);
    /* Allocated extents inside [offset, offset+length). */
    int (*disk_extents)(struct provider_disk *disk, uint64_t offset, uint64_t length,
                        struct extent_list *out, struct error *err);
    /* What may differ, from query->offset on, between the frozen disk and what it was at
     * query->since; bytes outside the extents are the same for sure. The answer may end early, then
     * it is asked for the rest. ERR_NOT_AVAILABLE: the source cannot tell (another series of ids,
     * tracking was interrupted): all has to be compared. */
    int (*disk_changes)(struct provider_session *session, const struct frozen_vm *frozen,
                        const struct changes_query *query, struct extent_list *out,
                        struct error *err);
    /* Switches the VM's change tracking on or off, so that it holds for all its disks that can have
     * it; on the way a snapshot may be made and removed. Repeatable by the records, release()
     * undoes what is left. *out_changed: it was not so already. ERR_NOT_AVAILABLE: not for this VM.
     */
    int (*set_tracking)(struct provider_session *session, const char *vm_id,
                        const struct tracking_options *options, struct task_records *records,
                        bool *out_changed, struct error *err);
    /* Takes all virtual CD-ROM drives from the VM, before prepare(). tell(): each one that is gone
     * through this task, with all that a user needs to put it back. Repeatable by the records, also
     * after a crash; release() puts nothing back. ERR_CONFLICT: not as the VM is now; the message
     * says what to do. */
    int (*remove_cdroms)(struct provider_session *session, const char *vm_id,
                         struct task_records *records, void (*tell)(void *arg, const char *drive),
                         void *arg, struct error *err);
    /* The bytes of disk_read, handed to take() as they come, in order and without gaps: for
     * transports where one request for a chunk is cheaper than several. take() may block (that is
     * the back-pressure); -1 (its err set) ends the call with that error. After a retryable error
     * the engine goes on behind the last byte that take() got. */
    int (*disk_stream)(struct provider_disk *disk, uint64_t length, uint64_t offset,
                       int (*take)(void *arg, const void *data, size_t length, struct error *err),
                       void *arg, struct error *err);

    /* Together: disks that come as one stream each, which can be read once, from its beginning to
     * its end, and not in ranges. All readers of a disk share its stream: the engine calls
     * stream_next and stream_fetch under a lock, stream_decode from many threads at once. A stream
     * that broke is closed; the next stream_open begins at the beginning. Open and close come from
     * the session's thread. */
    int (*stream_open)(struct provider_session *session, const struct frozen_vm *frozen,
                       size_t index, struct provider_stream **out, struct error *err);
    /* Where the next bytes are that stream_fetch did not bring yet: all in front of it is zeros.
     * The disk's size: nothing comes any more, and the stream was complete and right; nothing that
     * was cut or is wrong in any way may end so. */
    int (*stream_next)(struct provider_stream *stream, uint64_t *out_offset, struct error *err);
    /* Everything in front of `end`, at most PROVIDER_PARCEL_BYTES of the disk. With the disk's size
     * as end it promises what stream_next does at the end. */
    int (*stream_fetch)(struct provider_stream *stream, uint64_t end, struct provider_parcel *out,
                        struct error *err);
    /* The bytes of the disk from offset on that the parcel holds; buffer is zeros. */
    int (*stream_decode)(struct provider_stream *stream, const struct provider_parcel *parcel,
                         uint64_t offset, uint8_t *buffer, size_t length, struct error *err);
    void (*stream_close)(struct provider_stream *stream); /* NULL-safe */
};

#endif
