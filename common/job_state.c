/* See job_state.h. Pure: looks at its arguments, nothing else. */
#include "common/job_state.h"

#include <string.h>

#define BACKOFF_SHIFT_MAX 20 /* 2^20 initial delays is over any maximum */

static const char *const job_names[] = {"pending",   "running", "paused",   "cancelling",
                                        "completed", "failed",  "cancelled"};
static const char *const task_names[] = {"blocked", "queued", "leased",   "finishing",
                                         "done",    "failed", "cancelled"};

const char *job_status_name(enum job_status status)
{
    return job_names[status];
}

bool job_status_parse(const char *text, enum job_status *out)
{
    for (size_t i = 0; i < ARRAY_LEN(job_names); i++) {
        if (strcmp(job_names[i], text) == 0) {
            *out = (enum job_status)i;
            return true;
        }
    }
    return false;
}

const char *task_state_name(enum task_state state)
{
    return task_names[state];
}

bool task_state_parse(const char *text, enum task_state *out)
{
    for (size_t i = 0; i < ARRAY_LEN(task_names); i++) {
        if (strcmp(task_names[i], text) == 0) {
            *out = (enum task_state)i;
            return true;
        }
    }
    return false;
}

bool job_status_is_final(enum job_status status)
{
    return status == JOB_COMPLETED || status == JOB_FAILED || status == JOB_CANCELLED;
}

/* ---- helpers ---- */

static struct job_decision refuse(const struct job_machine *row, const char *reason)
{
    return (struct job_decision){.row = *row, .reason = reason};
}

static bool is_leased(const struct job_machine *row)
{
    return row->task == TASK_LEASED || row->task == TASK_FINISHING;
}

/* Full jitter between half and the whole of initial * 2^(attempt - 1), capped. */
static int64_t backoff(const struct job_machine *row, uint64_t random)
{
    uint32_t shift = row->attempt > 0 ? row->attempt - 1 : 0;
    int64_t delay = row->retry_initial_ms;

    for (uint32_t i = 0; i < shift && i < BACKOFF_SHIFT_MAX && delay < row->retry_max_ms; i++)
        delay *= 2;
    if (delay > row->retry_max_ms)
        delay = row->retry_max_ms;
    return delay / 2 + (int64_t)(random % (uint64_t)(delay / 2 + 1));
}

static struct job_decision end(const struct job_machine *row, enum job_status job,
                               enum task_state task, const char *event)
{
    struct job_decision d = {.row = *row, .event = event, .allowed = true};

    d.row.job = job;
    d.row.task = task;
    d.effects = JOB_EFFECT_HISTORY | JOB_EFFECT_OUTBOX | JOB_EFFECT_FINAL;
    if (job != JOB_COMPLETED)
        d.effects |= JOB_EFFECT_CLEAN;
    return d;
}

/* Cancelled by a user, or failed by a rule. */
static struct job_decision end_stopped(const struct job_machine *row, enum task_state task)
{
    if (!row->doomed)
        return end(row, JOB_CANCELLED, task, "job.cancelled");
    return end(row, JOB_FAILED, task == TASK_DONE ? TASK_DONE : TASK_FAILED, "job.failed");
}

/* Back to the queue without blame. A cancelled one does not come back. */
static struct job_decision requeue(const struct job_machine *row, const char *event)
{
    struct job_decision d = {.row = *row, .event = event, .allowed = true};

    if (row->job == JOB_CANCELLING || row->task_cancel)
        return end_stopped(row, TASK_CANCELLED);
    d.row.task = TASK_QUEUED;
    if (row->job == JOB_RUNNING)
        d.row.job = JOB_PENDING;
    d.effects = JOB_EFFECT_HISTORY;
    return d;
}

/* All tries are used up. The job goes on without a task that may fail. */
static struct job_decision give_up(const struct job_machine *row)
{
    struct job_decision d = {.row = *row, .event = "job.hook_failed", .allowed = true};

    if (!row->may_fail)
        return end(row, JOB_FAILED, TASK_FAILED, "job.failed");
    if (row->last_task)
        return end(row, JOB_COMPLETED, TASK_FAILED, "job.completed");
    d.row.task = TASK_FAILED;
    if (row->job != JOB_PAUSED)
        d.row.job = JOB_RUNNING;
    d.effects = JOB_EFFECT_HISTORY | JOB_EFFECT_RELEASE_NEXT;
    return d;
}

/* ---- events ---- */

static struct job_decision on_leased(const struct job_machine *row,
                                     const struct job_event_input *input)
{
    struct job_decision d = {.row = *row, .allowed = true};

    if (row->task != TASK_QUEUED)
        return refuse(row, "the task is not queued");
    if (row->job != JOB_PENDING && row->job != JOB_RUNNING)
        return refuse(row, "the job does not run");
    if (input->now_ms < row->not_before_ms)
        return refuse(row, "the task waits for its back-off");
    d.row.task = TASK_LEASED;
    d.row.job = JOB_RUNNING;
    d.row.epoch++;
    d.row.lease_until_ms = input->now_ms + input->lease_ms;
    d.effects = JOB_EFFECT_NEW_TOKEN | JOB_EFFECT_HISTORY;
    if (row->epoch > 0) {
        d.event = "job.resumed";
    } else if (row->job == JOB_PENDING) {
        d.event = "job.started";
        d.effects |= JOB_EFFECT_STARTED | JOB_EFFECT_OUTBOX;
    } else {
        d.event = "job.task_started"; /* a later task of a job that runs */
    }
    return d;
}

static struct job_decision on_renewed(const struct job_machine *row,
                                      const struct job_event_input *input)
{
    struct job_decision d = {.row = *row, .allowed = true};

    if (!is_leased(row))
        return refuse(row, "the task is not leased");
    d.row.lease_until_ms = input->now_ms + input->lease_ms;
    d.row.bytes_done = max_u64(row->bytes_done, input->bytes_done);
    return d;
}

static struct job_decision on_lost(const struct job_machine *row,
                                   const struct job_event_input *input)
{
    struct job_machine next = *row;
    struct job_decision d;

    if (!is_leased(row))
        return refuse(row, "the task is not leased");
    if (input->now_ms < row->lease_until_ms)
        return refuse(row, "the lease still runs");
    next.losses = row->bytes_done > row->progress_mark ? 0 : row->losses + 1;
    next.progress_mark = row->bytes_done;
    if (row->job != JOB_CANCELLING && !row->task_cancel && next.losses >= row->losses_max) {
        d = give_up(&next);
    } else {
        d = requeue(&next, "job.lease_lost");
    }
    d.effects |= JOB_EFFECT_DROP_TOKEN;
    return d;
}

static struct job_decision on_failed(const struct job_machine *row,
                                     const struct job_event_input *input)
{
    struct job_machine next = *row;
    struct job_decision d;

    if (!is_leased(row))
        return refuse(row, "the task is not leased");
    if (row->job == JOB_CANCELLING || row->task_cancel)
        return end_stopped(row, TASK_CANCELLED);
    next.attempt++;
    if (!input->retryable || next.attempt >= next.max_attempts)
        return give_up(&next);
    next.losses = 0;
    d = requeue(&next, "job.retry_scheduled");
    d.row.not_before_ms = input->now_ms + backoff(&next, input->random);
    return d;
}

/* From here on a cancel comes too late. The lease is one like any other: what keeps two epochs from
 * writing is that a worker stops before lease_until and the reaper waits until after it, the same
 * in every state. A longer one would only hold a dead worker's task back: its finish can be
 * repeated, so whoever gets the task next goes on with it. */
static struct job_decision on_permitted(const struct job_machine *row,
                                        const struct job_event_input *input)
{
    struct job_decision d = {.row = *row, .allowed = true};

    if (!is_leased(row))
        return refuse(row, "the task is not leased");
    if (row->job == JOB_CANCELLING || row->task_cancel)
        return refuse(row, "the job was cancelled");
    d.row.task = TASK_FINISHING;
    d.row.lease_until_ms = input->now_ms + input->lease_ms;
    if (row->task != TASK_FINISHING) {
        d.effects = JOB_EFFECT_HISTORY;
        d.event = "job.finishing";
    }
    return d;
}

static struct job_decision on_done(const struct job_machine *row)
{
    struct job_decision d;

    if (!is_leased(row))
        return refuse(row, "the task is not leased");
    /* Done beats a cancel that came too late; but what waits behind it does not start. */
    if (row->last_task)
        return end(row, JOB_COMPLETED, TASK_DONE, "job.completed");
    if (row->job == JOB_CANCELLING || row->task_cancel)
        return end_stopped(row, TASK_DONE);
    d = (struct job_decision){.row = *row, .allowed = true, .event = "job.task_done"};
    d.row.task = TASK_DONE;
    if (row->job != JOB_PAUSED) /* it was done before the worker heard: what is next waits */
        d.row.job = JOB_RUNNING;
    d.effects = JOB_EFFECT_HISTORY | JOB_EFFECT_RELEASE_NEXT;
    return d;
}

static struct job_decision on_cancel(const struct job_machine *row)
{
    struct job_decision d = {.row = *row, .allowed = true, .event = "job.cancelling"};

    if (job_status_is_final(row->job))
        return refuse(row, "the job has ended");
    if (row->job == JOB_CANCELLING)
        return refuse(row, "the job is being cancelled already");
    if (!is_leased(row))
        return end_stopped(row, TASK_CANCELLED);
    d.row.job = JOB_CANCELLING;
    d.row.task_cancel = true;
    d.effects = JOB_EFFECT_HISTORY;
    return d;
}

/* A worker that has the task is told as of a cancel; the job fails when it has stopped. A task that
 * ended since the rule chose it has handed the job on: the rule looks again, at the next one. */
static struct job_decision on_doomed(const struct job_machine *row)
{
    struct job_machine next = *row;
    struct job_decision d = {.allowed = true, .event = "job.stopping"};

    if (job_status_is_final(row->job))
        return refuse(row, "the job has ended");
    if (row->job == JOB_CANCELLING)
        return refuse(row, "the job is being cancelled already");
    if (row->task != TASK_QUEUED && !is_leased(row))
        return refuse(row, "the task has ended, another one follows");
    next.doomed = true;
    if (!is_leased(row))
        return end_stopped(&next, TASK_CANCELLED);
    d.row = next;
    d.row.job = JOB_CANCELLING;
    d.row.task_cancel = true;
    d.effects = JOB_EFFECT_HISTORY;
    return d;
}

/* A worker that has the task is told, and hands it back (YIELDED) with its journal kept. */
static struct job_decision on_pause(const struct job_machine *row)
{
    struct job_decision d = {.row = *row, .allowed = true, .event = "job.paused"};

    if (job_status_is_final(row->job))
        return refuse(row, "the job has ended");
    if (row->job == JOB_CANCELLING)
        return refuse(row, "the job is being cancelled");
    if (row->job == JOB_PAUSED)
        return refuse(row, "the job is paused already");
    if (is_leased(row))
        d.event = "job.pausing";
    d.row.job = JOB_PAUSED;
    d.effects = JOB_EFFECT_HISTORY;
    return d;
}

static struct job_decision on_resume(const struct job_machine *row)
{
    struct job_decision d = {.row = *row, .allowed = true, .event = "job.continued"};

    if (row->job != JOB_PAUSED)
        return refuse(row, "the job is not paused");
    d.row.job =
        is_leased(row) ? JOB_RUNNING : JOB_PENDING; /* the worker may not have heard of it */
    d.effects = JOB_EFFECT_HISTORY;
    return d;
}

/* Without blame: a pause was carried out, or the worker drains. */
static struct job_decision on_yielded(const struct job_machine *row)
{
    if (!is_leased(row))
        return refuse(row, "the task is not leased");
    return requeue(row, row->job == JOB_PAUSED ? "job.paused" : "job.yielded");
}

static struct job_decision on_retry(const struct job_machine *row,
                                    const struct job_event_input *input)
{
    struct job_decision d = {.row = *row, .allowed = true, .event = "job.retried"};

    if (row->job != JOB_FAILED && row->job != JOB_CANCELLED)
        return refuse(row, "only failed and cancelled jobs can be tried again");
    if (row->task == TASK_DONE)
        return refuse(row, "the task is done");
    d.row.job = JOB_PENDING;
    d.row.task = TASK_QUEUED;
    d.row.task_cancel = false;
    d.row.doomed = false;
    d.row.attempt = 0;
    d.row.losses = 0;
    d.row.progress_mark = row->bytes_done;
    d.row.not_before_ms = input->now_ms;
    d.effects = JOB_EFFECT_HISTORY;
    return d;
}

struct job_decision job_decide(const struct job_machine *row, const struct job_event_input *input)
{
    switch (input->event) {
    case JOB_EVENT_LEASED:
        return on_leased(row, input);
    case JOB_EVENT_RENEWED:
        return on_renewed(row, input);
    case JOB_EVENT_LEASE_LOST:
        return on_lost(row, input);
    case JOB_EVENT_YIELDED:
        return on_yielded(row);
    case JOB_EVENT_TASK_FAILED:
        return on_failed(row, input);
    case JOB_EVENT_PERMITTED:
        return on_permitted(row, input);
    case JOB_EVENT_TASK_DONE:
        return on_done(row);
    case JOB_EVENT_CANCEL_REQUESTED:
        return on_cancel(row);
    case JOB_EVENT_PAUSE_REQUESTED:
        return on_pause(row);
    case JOB_EVENT_RESUME_REQUESTED:
        return on_resume(row);
    case JOB_EVENT_DOOMED:
        return on_doomed(row);
    case JOB_EVENT_RETRY_REQUESTED:
        return on_retry(row, input);
    }
    return refuse(row, "unknown event");
}
