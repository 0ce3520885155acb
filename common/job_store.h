/* Jobs in PostgreSQL: what both the gateway and the scheduler do to them. Every function runs in
 * one transaction of its own (or in the caller's, if one is open on db) and writes state, history,
 * outbox and metric totals (common/metric_totals.h) together. */
#ifndef COMMON_JOB_STORE_H
#define COMMON_JOB_STORE_H

#include <jansson.h>

#include "common/db.h"
#include "common/job_state.h"

#define JOB_TASKS_MAX        64  /* a job's own three, and its hooks */
#define JOB_STORE_SUBMIT_MAX 500 /* jobs per statement: others wait for their locks so long */

struct job_task { /* one of a job, in their order; borrowed */
    const char *kind;
    const json_t *spec;
    bool bridge;           /* else the exporter's, as the submission says */
    const char *hook;      /* "pre" | "post"; NULL: none, and then */
    bool may_fail;         /* the job goes on without it */
    uint32_t max_attempts; /* 0: the job's retries, else these */
    int64_t retry_initial_ms;
    int64_t retry_max_ms;
    const json_t *wait; /* done one after the other before it is queued: [{"ms": n} |
                           {"until_ms": wall}]; NULL: nothing */
};

struct job_submission {
    const char *id; /* NULL: generated */
    const char *name;
    const char *kind;     /* "export" | "verify" | "cleanup" | "import" ... */
    const char *provider; /* instance */
    const char *provider_kind;
    const char *vm_path;
    const char *output_path; /* absolute, confined */
    /* The task works on files that exist and needs no source: any exporter that reaches the volume
     * may have it, and its lease carries no provider. */
    bool any_exporter;
    bool bridge;        /* like that, but the first task is the bridge's */
    const char *volume; /* that must be reached; NULL: any */
    const char *format;
    const json_t *definition;     /* canonical, secrets removed */
    const json_t *export_spec;    /* of the first task, whose kind is the job's (docs/tasks.md) */
    const json_t *convert_spec;   /* NULL: no conversion task */
    const json_t *import_spec;    /* NULL: no import behind the conversion */
    const struct job_task *tasks; /* all of them, with hooks, instead of the three specs */
    size_t task_count;            /* 0: no hooks */
    uint32_t priority;
    const char *queue_group; /* its first task shares queue_limit with others; NULL: with none */
    uint32_t queue_limit;    /* tasks of the group at a time; 0: any */
    uint32_t max_attempts;
    int64_t retry_initial_ms; /* back-off after errors; doubles up to retry_max_ms */
    int64_t retry_max_ms;
    const char *submitted_by;
    const char *trace_id;
    const char *schedule_id; /* what started it besides a user; NULL: nothing */
    const char *policy_id;
    const char *workflow_run_id;
    const char *deadline;            /* RFC 3339; NULL: none */
    const json_t *depends_on;        /* [{job_id, required_state, timeout_ms}]; NULL: nothing */
    const json_t *time_windows;      /* as time_windows_read() makes it; NULL: starts at any time */
    const char *on_window_end;       /* "continue" | "pause" | "cancel"; NULL: the first */
    const char *idempotency_key;     /* NULL: none */
    const uint8_t *idempotency_hash; /* 32 bytes: SHA-256 of the canonical body */
};

struct job_store_submitted { /* what became of a submission */
    char id[64];
    bool existing;      /* its idempotency key and hash are known: id is the old job's */
    struct error error; /* why it was refused; ERR_NONE: it was not */
};
/* Up to JOB_STORE_SUBMIT_MAX jobs, durable on return, with as many statements as one takes. Each is
 * decided alone, in their order, and none keeps the others out. ERR_CONFLICT: its id is taken, or
 * its idempotency key by another hash. ERR_INVALID: it depends on a job that does not exist and is
 * not among those before it. After an error of the whole nothing is stored. */
MUST_CHECK int job_store_submit_all(struct db *db, const struct job_submission *submissions,
                                    size_t count, struct job_store_submitted *out,
                                    struct error *err);
/* One; its own error is the error. */
MUST_CHECK int job_store_submit(struct db *db, const struct job_submission *submission,
                                char out_id[64], bool *out_existing, struct error *err);
/* ERR_NOT_FOUND; ERR_CONFLICT when final. A pending job is cancelled at once (its records, if any,
 * are released by a worker), a running one becomes cancelling. */
MUST_CHECK int job_store_cancel(struct db *db, const char *job_id, const char *actor,
                                const char *reason, bool discard, struct error *err);
/* failed or cancelled -> pending, from the checkpoint. ERR_CONFLICT otherwise, and while a worker
 * still removes what the last attempt left. */
MUST_CHECK int job_store_retry(struct db *db, const char *job_id, const char *actor,
                               struct error *err);
/* Holds a job: a pending one is not handed out, a running one's worker is told and hands its task
 * back with the journal kept. ERR_CONFLICT when it is paused, being cancelled, or final. */
MUST_CHECK int job_store_pause(struct db *db, const char *job_id, const char *actor,
                               const char *reason, struct error *err);
/* Pending again, or running when its worker has not heard of the pause. ERR_CONFLICT when it is not
 * paused. */
MUST_CHECK int job_store_resume(struct db *db, const char *job_id, const char *actor,
                                struct error *err);
/* The record of a final job, with its history and log; its exports stay in the catalogue.
 * ERR_CONFLICT when it is not final. */
MUST_CHECK int job_store_delete(struct db *db, const char *job_id, struct error *err);

/* fields: the job's bandwidth_... fields from now on; bandwidth: the same as spec of its transfer
 * tasks (docs/tasks.md). ERR_NOT_FOUND; ERR_CONFLICT when there is nothing left to transfer. */
MUST_CHECK int job_store_set_bandwidth(struct db *db, const char *job_id, const char *actor,
                                       const json_t *fields, const json_t *bandwidth,
                                       struct error *err);

/* Loads job and task under row locks, decides, stores under WHERE epoch, writes the effects.
 * expect_epoch/token NULL for events of users and the reaper. ERR_CONFLICT with code "lost" text
 * when epoch or token are stale: nothing was changed. */
struct job_store_event {
    const char *task_id;
    const uint64_t *expect_epoch;
    const uint8_t *expect_token;  /* TOKEN_BYTES */
    struct job_event_input input; /* now_ms 0: the database's clock; random 0: made here */
    uint32_t losses_max;          /* LEASE_LOST; 0: 5 */
    const char *worker;
    const char *actor;
    const char *phase;
    const json_t *result;   /* TASK_DONE; TASK_FAILED: facts */
    const char *error_code; /* TASK_FAILED */
    const char *error_message;
    const char *detail;       /* text for the history row, e.g. why a user cancelled; may be NULL */
    const uint8_t *new_token; /* LEASED */
    uint64_t lines_stored;    /* of the log, up to this number with this event; 0: as before */
};
MUST_CHECK int job_store_apply(struct db *db, const struct job_store_event *event,
                               struct job_decision *out, struct error *err);

struct job_store_outcome {
    struct job_decision decision;
    char job_id[64]; /* "": a task without a job */
};
/* Several events of different jobs, each as job_store_apply would, with as many statements as one
 * takes: all of them or, after an error, none. ERR_CONFLICT also when a job is there twice. */
MUST_CHECK int job_store_apply_all(struct db *db, const struct job_store_event *events,
                                   size_t count, struct job_store_outcome *out, struct error *err);

/* Live events, as WebSocket and SSE clients get them (rest-api.md section 11): one JSON object per
 * job_events row, "type" = its event, "seq" = its id, with job_id, status, phase, vm_name,
 * provider, error, progress and percentage at top level; of a schedule's run schedule_id, name,
 * run_id, job_ids, status and reason. Rows with id > after_id in rising order, at most limit.
 * *out: array, new reference. */
MUST_CHECK int job_store_events(struct db *db, int64_t after_id, uint32_t limit, json_t **out,
                                struct error *err);
/* Only the ids of the same, one per row. */
MUST_CHECK int job_store_event_ids(struct db *db, int64_t after_id, uint32_t limit, PGresult **out,
                                   struct error *err);
/* The same as job_store_events, of what was committed after position, a pg_snapshot as text; those
 * of about `limit` rows when there are more. Each event is in one such answer, in whatever order
 * the transactions end, when the next position is *out_position. The caller frees both. */
MUST_CHECK int job_store_events_behind(struct db *db, const char *position, uint32_t limit,
                                       json_t **out, char **out_position, struct error *err);
/* The part of a pg_snapshot up to and with the transaction last: what it shows of those, and
 * nothing of the later ones. Caller frees. */
char *snapshot_cut(const char *snapshot, uint64_t last);

#endif
