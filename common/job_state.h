/* The job and task life cycle as one pure function: (row, event, now) -> (row', effects).
 * No I/O, no clock, no randomness: the caller passes now_ms and a random number for jitter.
 * Nothing else writes a state; common/job_store.c carries the result out inside a transaction. */
#ifndef COMMON_JOB_STATE_H
#define COMMON_JOB_STATE_H

#include "common/error.h"

enum job_status {
    JOB_PENDING,
    JOB_RUNNING,
    JOB_PAUSED,
    JOB_CANCELLING,
    JOB_COMPLETED,
    JOB_FAILED,
    JOB_CANCELLED
};
enum task_state {
    TASK_BLOCKED,
    TASK_QUEUED,
    TASK_LEASED,
    TASK_FINISHING,
    TASK_DONE,
    TASK_FAILED,
    TASK_CANCELLED
};
enum job_event {
    JOB_EVENT_LEASED,      /* a worker took the task: epoch + 1 */
    JOB_EVENT_RENEWED,     /* lease goes on; bytes_done may have risen */
    JOB_EVENT_LEASE_LOST,  /* reaper: lease_until + grace passed */
    JOB_EVENT_YIELDED,     /* paused or drained: handed back without blame */
    JOB_EVENT_TASK_FAILED, /* worker says so; retryable or not */
    JOB_EVENT_PERMITTED,   /* finish permit */
    JOB_EVENT_TASK_DONE,
    JOB_EVENT_CANCEL_REQUESTED,
    JOB_EVENT_PAUSE_REQUESTED,
    JOB_EVENT_RESUME_REQUESTED,
    JOB_EVENT_DOOMED,          /* a rule ends it: deadline, dependency */
    JOB_EVENT_RETRY_REQUESTED, /* user: failed or cancelled job again, from its journal */
};

struct job_machine { /* what the decision depends on */
    enum job_status job;
    enum task_state task;
    bool task_cancel;
    bool doomed;    /* what stops it makes it fail: a rule did that, no user */
    bool last_task; /* no further task of the job waits behind it */
    bool may_fail;  /* a hook with on_error: continue: the job goes on without it */
    uint64_t epoch;
    uint32_t attempt, max_attempts;
    uint32_t losses, losses_max;
    uint64_t bytes_done, progress_mark;
    int64_t lease_until_ms;
    int64_t not_before_ms;
    int64_t retry_initial_ms, retry_max_ms;
};

struct job_event_input {
    enum job_event event;
    int64_t now_ms;
    uint64_t random; /* for jitter */
    int64_t lease_ms;
    uint64_t bytes_done; /* RENEWED */
    bool retryable;      /* TASK_FAILED */
};

/* Bits. */
enum job_effect {
    JOB_EFFECT_HISTORY = 1,      /* append a job_events row named by job_decision.event */
    JOB_EFFECT_OUTBOX = 2,       /* the same event for the notifier */
    JOB_EFFECT_FINAL = 4,        /* completed_at, metric totals */
    JOB_EFFECT_RELEASE_NEXT = 8, /* the next blocked task becomes queued */
    JOB_EFFECT_NEW_TOKEN = 16,
    JOB_EFFECT_CLEAN = 32,       /* job is dead: a worker must release what its records name */
    JOB_EFFECT_STARTED = 64,     /* first start: started_at */
    JOB_EFFECT_DROP_TOKEN = 128, /* the lease is lost: whoever held it gets "lost" from now on */
};

struct job_decision {
    struct job_machine row; /* the new row */
    unsigned int effects;
    const char *event;  /* "job.started", "job.lease_lost", "job.retry_scheduled" ... or NULL */
    bool allowed;       /* false: the event does not apply in this state, row unchanged */
    const char *reason; /* why not allowed */
};

struct job_decision job_decide(const struct job_machine *row, const struct job_event_input *input);

const char *job_status_name(enum job_status status);
MUST_CHECK bool job_status_parse(const char *text, enum job_status *out);
const char *task_state_name(enum task_state state);
MUST_CHECK bool task_state_parse(const char *text, enum task_state *out);
bool job_status_is_final(enum job_status status);

#endif
