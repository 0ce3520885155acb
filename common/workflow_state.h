/* The life cycle of a workflow run as one pure function: (run, event) -> (run', effects), like
 * common/job_state.h. No I/O, no clock. common/workflow_store.c loads run, steps and what became of
 * their items (the jobs), and carries the decision out inside one transaction.
 *
 * A step waits until all that it depends on has ended, then it runs or is skipped. "failure" in
 * what follows: a step that failed, was cancelled, or was skipped because of one. */
#ifndef COMMON_WORKFLOW_STATE_H
#define COMMON_WORKFLOW_STATE_H

#include "common/error.h"

#define WORKFLOW_STEPS_MAX  64  /* bits of a dependency mask */
#define WORKFLOW_STARTS_MAX 100 /* items per decision: keeps the transaction short */

enum workflow_run_status {
    WORKFLOW_RUNNING,
    WORKFLOW_PAUSED,
    WORKFLOW_CANCELLING,
    WORKFLOW_COMPLETED,
    WORKFLOW_FAILED,
    WORKFLOW_CANCELLED,
};
enum workflow_step_status {
    WORKFLOW_STEP_WAITING,
    WORKFLOW_STEP_RUNNING,
    WORKFLOW_STEP_COMPLETED,
    WORKFLOW_STEP_FAILED,
    WORKFLOW_STEP_SKIPPED,
    WORKFLOW_STEP_CANCELLED,
};
enum workflow_when {
    WORKFLOW_WHEN_SUCCESS, /* everything it depends on is completed */
    WORKFLOW_WHEN_FAILURE, /* at least one of them is a failure */
    WORKFLOW_WHEN_ALWAYS,
};
enum workflow_event {
    WORKFLOW_EVENT_LOOK, /* time has passed, jobs may have ended */
    WORKFLOW_EVENT_CANCEL,
    WORKFLOW_EVENT_PAUSE,
    WORKFLOW_EVENT_RESUME,
    WORKFLOW_EVENT_RETRY, /* from what failed or was cancelled on */
};

/* What is to be done with the jobs of a step. Bits. */
#define WORKFLOW_JOBS_CANCEL 1U
#define WORKFLOW_JOBS_PAUSE  2U
#define WORKFLOW_JOBS_RESUME 4U

struct workflow_step_state {
    uint64_t depends; /* bit i: step i of the run */
    enum workflow_when when;
    enum workflow_step_status status;
    uint32_t attempt;   /* of the step; raised by a retry */
    int64_t started_ms; /* 0: not started */
    int64_t ended_ms;   /* 0: not ended */
    bool timed;         /* a wait: no items, ends wait_ms after its start */
    int64_t wait_ms;
    uint32_t parallel_max; /* items under way at a time; 0: no limit */
    /* Items, of the present attempt. */
    uint32_t waiting; /* not started yet */
    uint32_t active;
    uint32_t failed; /* or cancelled */
    uint32_t done;
    /* Out. */
    uint32_t start; /* so many of the waiting ones are started now */
    unsigned int jobs;
};

struct workflow_run_state {
    enum workflow_run_status status;
    uint32_t step_count; /* 1..WORKFLOW_STEPS_MAX */
    struct workflow_step_state steps[WORKFLOW_STEPS_MAX];
    /* Out. */
    bool allowed; /* false: the event does not apply in this state, nothing was changed */
    const char *reason;
};

/* run is changed in place. */
void workflow_decide(struct workflow_run_state *run, enum workflow_event event, int64_t now_ms);

/* A step on a circle of dependencies, or -1. */
int workflow_find_cycle(const uint64_t *depends, uint32_t count);

bool workflow_run_is_final(enum workflow_run_status status);
bool workflow_step_is_final(enum workflow_step_status status);
const char *workflow_run_status_name(enum workflow_run_status status);
MUST_CHECK bool workflow_run_status_parse(const char *text, enum workflow_run_status *out);
const char *workflow_step_status_name(enum workflow_step_status status);
MUST_CHECK bool workflow_step_status_parse(const char *text, enum workflow_step_status *out);

#endif
