/* A worker process's side of the bus: slots that ask for tasks, renewal, job log lines, progress,
 * records, finish permits, drain. Exporters and the bridge are tables of task kinds around it.
 *
 * Threads: one per slot runs tasks one after the other; one per running task renews its lease; one
 * subscribes to control messages. A task's functions below may be called from any thread that works
 * for it.
 *
 * A task's authority is its lease. `worker_task_stopped` turns true when it was cancelled or
 * paused, its lease is lost, or the process drains; run() then returns as soon as it can. Before
 * every write outside the process `worker_task_may_write` is asked: it refuses after the write
 * deadline (send time of the last acknowledged renewal + lease - 5 s, monotonic). */
#ifndef COMMON_WORKER_H
#define COMMON_WORKER_H

#include <jansson.h>
#include <stdatomic.h>

#include "common/bus.h"
#include "common/log.h"
#include "common/service.h"

#define WORKER_SLOTS_MAX 64
#define WORKER_KINDS_MAX 16
#define WORKER_LEASE_MARGIN_MS \
    5000 /* deadline of writes before lease_until; scheduler waits as long after it */
#define WORKER_RENEW_MS          5000
#define WORKER_RENEW_LINES_MS    1000 /* with log lines waiting */
#define WORKER_PROGRESS_MS       250
#define WORKER_LINES_PENDING_MAX 2000 /* unacknowledged; then worker_task_log waits */

struct worker_task;

enum worker_stop { WORKER_RUNS, WORKER_CANCELLED, WORKER_LOST, WORKER_DRAINS, WORKER_PAUSED };

struct worker_kind {
    const char *kind; /* "export" */
    bool control;     /* class control, else transfer */
    /* 0: *out_result (may stay NULL) is the task's result, owned by the caller of run.
     * -1: TaskFail with err's code, retryable by error_is_retryable; TaskYield when draining or
     * paused; nothing when the lease is lost. *out_result may carry facts on failure too. */
    int (*run)(struct worker_task *task, void *arg, json_t **out_result, struct error *err);
};

struct worker_rate { /* bandwidth of a task (spec member "bandwidth", then what users set later) or
                        process */
    uint64_t rate;   /* bytes per second (adaptive: at most); 0: no limit */
    uint64_t burst;  /* bytes; 0: 2 x rate */
    uint64_t floor;  /* > 0: adaptive, bytes per second at least */
};

struct worker_description { /* texts, kinds, bases and arg live as long as the process: slots with
                               a parked request still look at them when it ends */
    const char *role;       /* "exporter" | "bridge" */
    const char *provider;   /* kind; "" for the bridge */
    const struct worker_kind *kinds;
    size_t kind_count;
    uint32_t transfer_slots;
    uint32_t control_slots;
    const struct config_list *bases; /* announced as volumes: .hypersdk-volume is made if missing */
    json_t *capabilities;            /* capability record; read by worker_run only */
    /* Or one that changes: asked before every lease request, from slot threads, quick. New
     * reference. */
    json_t *(*capabilities_now)(void *arg);
    void (*tick)(void *arg); /* every WORKER_PROGRESS_MS, quick; may be NULL */
    /* What holds for all transfers of this process together, with every lease and renewal; NULL:
     * its configuration. Any thread, quick; may be NULL. */
    void (*limit)(void *arg, const struct worker_rate *rate);
    void *arg; /* for run() and tick() */
};

/* Returns after service_stopping() and the drain: running tasks are asked to stop, yielded or
 * finished, all log lines acknowledged or service_drain_ms over. Sets the readiness condition
 * "scheduler". */
MUST_CHECK int worker_run(struct service *service, const struct bus_config *bus,
                          const struct worker_description *description, struct error *err);

/* Facts of the lease; strings live as long as the task. */
const char *worker_task_id(const struct worker_task *task);
const char *worker_task_job_id(const struct worker_task *task); /* "" for control tasks */
uint64_t worker_task_epoch(const struct worker_task *task);
uint32_t worker_task_attempt(const struct worker_task *task);
const json_t *worker_task_spec(const struct worker_task *task);
const char *worker_task_provider(const struct worker_task *task); /* instance name */
const json_t *worker_task_settings(const struct worker_task *task);
const void *worker_task_sealed(const struct worker_task *task, size_t *out_size);

/* Stopping. The flag is what libraries poll; the reason tells which. */
const atomic_bool *worker_task_stopped(const struct worker_task *task);
enum worker_stop worker_task_stop_reason(const struct worker_task *task);
/* Stopped, but the task goes on with another lease: what was made so far is kept for it. */
bool worker_task_hands_back(const struct worker_task *task);
/* ERR_CANCELLED naming the reason when stopped, else 0. */
MUST_CHECK int worker_task_check(const struct worker_task *task, struct error *err);
/* ERR_CANCELLED: the lease is lost or its write deadline over. Cheap: two atomic loads. A task
 * that was cancelled or drains may still write (to clean up) while its lease lives. */
MUST_CHECK int worker_task_may_write(const struct worker_task *task, struct error *err);

/* One line of the job's log; also logged by this process at the same level. Never lost while the
 * lease lives. message is cut at BUS_LOG_MESSAGE_MAX. */
void worker_task_log(struct worker_task *task, enum log_level level, const char *format, ...)
    PRINTF_LIKE(3, 4);
/* "exporting", "verifying" ...: rest-api.md 3.3. */
void worker_task_phase(struct worker_task *task, const char *phase);

struct worker_disk_progress {
    char id[64];
    char file[256];
    uint64_t bytes_done;
    uint64_t bytes_total;
    const char *state; /* literal: waiting | copying | verifying | done */
};
struct worker_progress {
    uint64_t bytes_transferred; /* read from the source */
    uint64_t bytes_done;        /* logical, zeros included */
    uint64_t bytes_total;
    const char *limited_by;                   /* literal, may be "" */
    const struct worker_disk_progress *disks; /* copied */
    size_t disk_count;
};
/* The newest values; rate and ETA are made here (10 s moving average). Sent every
 * WORKER_PROGRESS_MS, may be lost. */
void worker_task_progress(struct worker_task *task, const struct worker_progress *progress);

/* Calls changed() at once with what holds now and then whenever it is changed, from any thread and
 * never after a call with changed NULL has returned. It must not call worker_task functions. */
void worker_task_on_rate(struct worker_task *task,
                         void (*changed)(void *arg, const struct worker_rate *rate), void *arg);

/* Committed before it returns. ERR_CANCELLED: lease lost. ERR_LIMIT: key over 128 bytes, value over
 * 4096, or more than 256 keys. */
MUST_CHECK int worker_task_record_put(struct worker_task *task, const char *key, const char *value,
                                      struct error *err);
/* The same, but waits while any other task that is being worked on has that key with that value:
 * what only one may do at a time. Ends by a put of another value, or with the lease.
 * ERR_CANCELLED also when the task is to stop while it waits. */
MUST_CHECK int worker_task_record_claim(struct worker_task *task, const char *key,
                                        const char *value, struct error *err);
/* NULL if there is none; valid until the next put of that key. */
const char *worker_task_record_get(const struct worker_task *task, const char *key);
/* From now on no other worker gets the task before lease_until + 120 s. ERR_CANCELLED: refused
 * (job cancelled) or lost. */
MUST_CHECK int worker_task_permit(struct worker_task *task, struct error *err);

struct worker_inventory_vm {
    const char *id, *name, *path, *power_state;
    const char *vm_json;
};
/* Splits into pages of the bus's limits; each is acknowledged. last ends the scan and replaces
 * the old generation; count may be 0 then. */
MUST_CHECK int worker_task_inventory(struct worker_task *task,
                                     const struct worker_inventory_vm *vms, size_t count, bool last,
                                     struct error *err);

#endif
