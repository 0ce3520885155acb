/* Between worker*.c only. */
#ifndef COMMON_WORKER_INTERNAL_H
#define COMMON_WORKER_INTERNAL_H

#include "common/worker.h"

#define WORKER_CALL_MS          5000 /* one request that is repeated until answered */
#define WORKER_RENEW_CALL_MS    3000 /* shorter: several tries fit into a lease */
#define WORKER_RECORDS_MAX      256  /* as bus_check.c allows, so are the next three */
#define WORKER_RECORD_KEY_MAX   128
#define WORKER_RECORD_VALUE_MAX 4096
#define WORKER_PHASE_MAX        32
#define WORKER_RATE_MS          10000
#define WORKER_RATE_SAMPLES     (WORKER_RATE_MS / WORKER_PROGRESS_MS)
#define WORKER_AGAIN_MS         500 /* after "not now" */

struct worker {
    struct service *service;
    struct worker_description description; /* a copy; capabilities are below */
    char *capabilities;                    /* JSON text */
    struct bus_client *client;
    struct bus_pusher *pusher;
    const char *instance;
    char host[256];
    atomic_bool draining;
    atomic_int_fast64_t contact_ms; /* last answer of the scheduler, monotonic */
    atomic_size_t slots_alive;

    pthread_mutex_t tasks_mutex; /* guards tasks */
    struct worker_task *tasks[2 * WORKER_SLOTS_MAX];
};

struct worker_line {
    uint64_t number;
    int64_t at_ms;
    enum log_level level;
    char *phase;
    char *message;
};

struct worker_record {
    char *key;
    char *value;
};

struct worker_sample {
    int64_t at_ms;
    uint64_t transferred;
    uint64_t done;
};

struct worker_task {
    struct worker *worker;
    const struct worker_kind *kind;
    Hypersdk__V1__TaskRef ref; /* task_id and token point into lease */
    bus_envelope *lease;       /* as received; owns the texts */
    const Hypersdk__V1__TaskLease *facts;
    json_t *spec;
    json_t *settings;
    char trace_id[33];

    atomic_bool stopped;
    atomic_int reason;                     /* enum worker_stop */
    atomic_int_fast64_t lease_deadline_ms; /* of writes, monotonic, by the last renewal */
    atomic_bool permitted;                 /* asked for once */
    atomic_bool expired; /* lost by our own clock; the scheduler has not said so */

    pthread_mutex_t mutex;  /* guards all below; never held over I/O */
    pthread_cond_t changed; /* lines taken, renewal wanted, end */
    bool kicked;            /* renew now */
    bool ended;
    char *phase;
    struct worker_line *lines; /* unacknowledged, rising numbers */
    size_t line_count;
    uint64_t line_number; /* of the newest */
    uint64_t sent_number; /* highest ever sent: only newer lines hasten a renewal */
    struct worker_record *records;
    size_t record_count;
    bool progress_dirty;
    int64_t progress_sent_ms;        /* 0: nothing was reported yet */
    struct worker_progress progress; /* disks point to progress_disks */
    struct worker_disk_progress *progress_disks;
    struct worker_sample samples[WORKER_RATE_SAMPLES];
    size_t sample_count;

    uint32_t page; /* of the inventory; its task thread only */

    pthread_mutex_t rate_mutex; /* guards the next four; held over on_rate */
    struct worker_rate rate;
    uint64_t rate_stamp_ms;
    void (*on_rate)(void *arg, const struct worker_rate *rate);
    void *on_rate_arg;

    pthread_mutex_t renew_mutex; /* one renewal at a time; taken before mutex */
    pthread_t renewer;
};

/* worker_task.c */
MUST_CHECK int worker_task_new(struct worker *worker, bus_envelope *lease_taken,
                               struct worker_task **out, struct error *err);
void worker_task_free(struct worker_task *task);
DEFINE_AUTO(worker_task, struct worker_task, worker_task_free)
#define auto_worker_task CLEANUP(worker_task_auto) struct worker_task
void worker_task_stop(struct worker_task *task, enum worker_stop reason);
void worker_task_kick(struct worker_task *task);
/* Does what a message of the scheduler to this task asks for. */
void worker_task_control(struct worker_task *task, const Hypersdk__V1__TaskControl *control);
/* The limit of the whole process, as a lease or a renewal tells it; NULL: none is set. */
void worker_take_limit(const struct worker_task *task, const Hypersdk__V1__WorkerLimit *limit);
/* Monotonic time after which nothing may be written. */
int64_t worker_task_deadline_ms(const struct worker_task *task);
/* Sends one body and repeats it (same message id) until an answer comes, the task is lost, or the
 * process has no time left. expected: body case of the answer. */
MUST_CHECK int worker_task_ask(struct worker_task *task, bus_envelope *request,
                               Hypersdk__V1__Envelope__BodyCase expected, bus_envelope **out,
                               struct error *err);
void worker_task_envelope(const struct worker_task *task, bus_envelope *out,
                          struct bus_envelope_store *store);

/* worker_renew.c */
/* 0 also when the answer is that the lease is lost: look at the stop reason. */
MUST_CHECK int worker_renew_once(struct worker_task *task, struct error *err);
MUST_CHECK int worker_renew_start(struct worker_task *task, struct error *err);
void worker_renew_stop(struct worker_task *task);
/* Reports the end of run() and waits for the acknowledgement. */
void worker_report(struct worker_task *task, int rc, json_t *result, const struct error *failure);

/* worker_progress.c: pushes what changed, for all tasks. */
void worker_progress_tick(struct worker *worker);

/* worker_volume.c: volumes as LeaseRequest names them; release with worker_volumes_release. */
struct worker_volumes {
    Hypersdk__V1__Volume **items;
    size_t count;
};
void worker_volumes_probe(const struct config_list *bases, struct worker_volumes *out);
void worker_volumes_release(struct worker_volumes *volumes);

#endif
