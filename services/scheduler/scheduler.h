/* The scheduler process. PostgreSQL holds everything that counts; what is in memory here may be
 * lost at any moment: parked requests come again, leases go on by their rows.
 *
 * Threads: main (leader row), dispatcher (parked lease requests), requests (everything else that
 * workers ask), reaper (what lost messages would leave undone), schedules, workflows, publisher
 * (Redis). Each
 * has its own database connection. */
#ifndef SCHEDULER_SCHEDULER_H
#define SCHEDULER_SCHEDULER_H

#include <stdatomic.h>

#include "common/bus.h"
#include "common/config_schema.h"
#include "common/db.h"
#include "common/log.h"
#include "common/service.h"
#include "common/submit_job.h"
#include "common/worker_bandwidth.h"
#include "whole_look.h"

#define SCHEDULER_DB_ROLE "hypersdk_scheduler"

struct park;
struct requests;
struct live;

struct claim_lanes { /* claim.c */
    char *known;     /* JSON; NULL: they are found anew with every claim */
    json_t *busy;    /* what counts against their limits: it, and what was leased since */
    struct whole_look look;
};

#define CLAIM_FLOORS_MAX 32 /* roles, classes and kinds of providers are fewer */
struct claim_floor {        /* claim.c: of a queue without lanes */
    char queue[96];         /* "": not used yet */
    bool known;             /* else each look finds it itself */
    int64_t rank;           /* nothing that waited at the last look has a lower one */
    int64_t leased;         /* the highest */
    struct whole_look look;
};

struct scheduler {
    struct service *service;
    struct database_config database;
    struct redis_config redis;
    struct bus_config bus;
    struct export_config export;
    struct scheduler_config config;
    struct cleanup_config cleanup;
    struct history_config history;
    /* Of jobs that the scheduler submits. */
    struct retry_config retry;
    struct hyper2kvm_config hyper2kvm;
    struct libvirt_config libvirt;
    struct hooks_config hooks;
    struct templates_config templates;
    struct config_list bases;
    struct bus_server *server;
    struct bus_publisher *publisher;
    struct park *park;         /* park.h */
    struct requests *requests; /* requests.h */
    struct live *live;         /* live.h: who holds which lease, newest progress */
    struct claim_lanes lanes;  /* the dispatcher's, as the next two */
    struct claim_floor floors[CLAIM_FLOORS_MAX];
    struct whole_look stopped;
    struct whole_look expired; /* the reaper's, as the next two */
    struct whole_look ruled;
    struct whole_look explained;
    atomic_int_fast64_t leads_until_ms; /* monotonic: the leader's row is ours at least so long */
};

int scheduler_configure(const struct config_file *file, struct strbuf *problems, struct error *err);
int scheduler_run(struct service *service, struct error *err);
/* The same with a configuration of the caller's; the rest of *scheduler is zeroed. */
MUST_CHECK int scheduler_work(struct scheduler *scheduler, struct service *service,
                              struct error *err);

/* Jobs that the scheduler submits (common/submit_job.h): without a passphrase, it has no key to
 * seal one. */
struct submit_settings scheduler_submit_settings(const struct scheduler *scheduler);

/* A connection of this thread's own. */
struct db *scheduler_db(const struct scheduler *scheduler, const char *thread);
/* The same for leases, ends of tasks and their events (db_set_by_index). */
struct db *scheduler_queue_db(const struct scheduler *scheduler, const char *thread);
/* Until the next look at what lost messages left undone, with jitter; true: the process stops. */
bool scheduler_wait_poll(const struct scheduler *scheduler);
/* Announces to workers and others; may be lost. */
void scheduler_announce_job(struct scheduler *scheduler, const char *job_id, const char *event);
void scheduler_announce_control(struct scheduler *scheduler, Hypersdk__V1__TaskControl *control);
void scheduler_announce_worker(struct scheduler *scheduler, const char *instance,
                               const char *worker_state);

/* Bandwidth of a task as its spec has it (docs/tasks.md); stamp_ms 0: not changed since it was
 * submitted. */
struct scheduler_bandwidth {
    uint64_t rate, burst, floor, stamp_ms;
};
#define SCHEDULER_SQL_BANDWIDTH                              \
    "coalesce((t.spec->'bandwidth'->>'rate')::bigint, 0),"   \
    " coalesce((t.spec->'bandwidth'->>'burst')::bigint, 0)," \
    " coalesce((t.spec->'bandwidth'->>'floor')::bigint, 0)," \
    " coalesce((t.spec->'bandwidth'->>'stamp_ms')::bigint, 0)"
/* Of jobs j: its window is over, and it waits for the next one as if it were paused. */
#define SCHEDULER_SQL_WINDOW_OVER \
    "(j.window_at IS NOT NULL AND NOT j.window_open AND j.on_window_end = 'pause')"
/* From the four columns of SCHEDULER_SQL_BANDWIDTH (of tasks t). */
struct scheduler_bandwidth scheduler_bandwidth_of(const PGresult *rows, int row, int column);
/* Messages to a worker; out borrows task_id. */
void scheduler_control(Hypersdk__V1__TaskControl *out, Hypersdk__V1__ControlKind kind,
                       const char *task_id);
void scheduler_control_rate(Hypersdk__V1__TaskControl *out, const char *task_id,
                            const struct scheduler_bandwidth *bandwidth);

/* Into a lease or renewal; NULL when none is set. */
Hypersdk__V1__WorkerLimit *scheduler_worker_limit(Hypersdk__V1__WorkerLimit *out,
                                                  const struct worker_bandwidth *bandwidth);

/* leader.c: waits for the leader's row; renews it until the process stops; gives it back. The
 * process starts anew as a standby when the row is lost (sockets of the bus cannot be closed
 * otherwise), also when the database hangs. */
MUST_CHECK int leader_acquire(struct scheduler *scheduler, struct db *db, struct error *err);
MUST_CHECK int leader_renew(struct scheduler *scheduler, struct db *db, struct error *err);
void leader_keep(struct scheduler *scheduler, struct db *db);
void leader_release(struct scheduler *scheduler, struct db *db);
void *leader_watch_main(void *scheduler);

/* Tells workers which of their tasks were cancelled, paused, or drained, and which have a new
 * bandwidth. When it did so a moment ago it is to be called again after *out_again_ms, else
 * INT64_MAX. */
MUST_CHECK int scheduler_repeat_controls(struct scheduler *scheduler, struct db *db,
                                         int64_t *out_again_ms, struct error *err);

/* aging.c: what a point of priority weighs, from the configuration into the database; what waits is
 * put in order by it. */
MUST_CHECK int scheduler_set_aging(const struct scheduler *scheduler, struct db *db,
                                   struct error *err);

/* rules.c: deadlines and dependencies, on every look of the reaper. */
MUST_CHECK int scheduler_apply_rules(struct scheduler *scheduler, struct db *db, struct error *err);

/* windows.c: which time windows are open, on every look of the reaper: lets jobs go or holds them,
 * ends those that do not outlast their window. */
MUST_CHECK int scheduler_apply_windows(struct scheduler *scheduler, struct db *db,
                                       struct error *err);

/* reasons.c: why jobs wait, into their rows. */
MUST_CHECK int scheduler_explain(struct scheduler *scheduler, struct db *db, struct error *err);

/* reaper.c, schedule_fire.c, workflows.c, publish.c: threads for the life of the process. */
void *reaper_main(void *scheduler);
void *schedule_fire_main(void *scheduler);
void *workflows_main(void *scheduler);
void *publish_main(void *scheduler);
/* Something was written to job_events. */
void publish_wake(void);

#endif
