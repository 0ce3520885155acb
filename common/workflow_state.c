/* See workflow_state.h. */
#include "common/workflow_state.h"

#include <assert.h>
#include <string.h>

#include "common/base.h"

static const char *const run_names[] = {"running",   "paused", "cancelling",
                                        "completed", "failed", "cancelled"};
static const char *const step_names[] = {"waiting", "running", "completed",
                                         "failed",  "skipped", "cancelled"};

const char *workflow_run_status_name(enum workflow_run_status status)
{
    return run_names[status];
}

const char *workflow_step_status_name(enum workflow_step_status status)
{
    return step_names[status];
}

static bool find_name(const char *const *names, size_t count, const char *text, size_t *out)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(names[i], text) == 0) {
            *out = i;
            return true;
        }
    }
    return false;
}

bool workflow_run_status_parse(const char *text, enum workflow_run_status *out)
{
    size_t i = 0;

    if (!find_name(run_names, ARRAY_LEN(run_names), text, &i))
        return false;
    *out = (enum workflow_run_status)i;
    return true;
}

bool workflow_step_status_parse(const char *text, enum workflow_step_status *out)
{
    size_t i = 0;

    if (!find_name(step_names, ARRAY_LEN(step_names), text, &i))
        return false;
    *out = (enum workflow_step_status)i;
    return true;
}

bool workflow_run_is_final(enum workflow_run_status status)
{
    return status == WORKFLOW_COMPLETED || status == WORKFLOW_FAILED ||
           status == WORKFLOW_CANCELLED;
}

bool workflow_step_is_final(enum workflow_step_status status)
{
    return status != WORKFLOW_STEP_WAITING && status != WORKFLOW_STEP_RUNNING;
}

static bool has(uint64_t mask, uint32_t bit)
{
    return (mask >> bit & 1) != 0;
}

int workflow_find_cycle(const uint64_t *depends, uint32_t count)
{
    uint64_t open = 0; /* not yet known to be on no circle */
    bool changed = true;

    assert(count <= WORKFLOW_STEPS_MAX);
    for (uint32_t i = 0; i < count; i++)
        open |= UINT64_C(1) << i;
    while (changed) {
        changed = false;
        for (uint32_t i = 0; i < count; i++) {
            if (has(open, i) && (depends[i] & open) == 0) {
                open &= ~(UINT64_C(1) << i);
                changed = true;
            }
        }
    }
    /* What is left is on a circle or hangs on one: going back as often as there are steps ends on
     * the circle itself. */
    if (open == 0)
        return -1;
    {
        uint32_t at = (uint32_t)__builtin_ctzll(open);
        for (uint32_t i = 0; i < count; i++)
            at = (uint32_t)__builtin_ctzll(depends[at] & open);
        return (int)at;
    }
}

/* Steps that count as failures (see the header). */
static uint64_t failures_of(const struct workflow_run_state *run)
{
    uint64_t failures = 0;
    uint64_t before;

    do {
        before = failures;
        for (uint32_t i = 0; i < run->step_count; i++) {
            const struct workflow_step_state *step = &run->steps[i];
            if (step->status == WORKFLOW_STEP_FAILED || step->status == WORKFLOW_STEP_CANCELLED ||
                (step->status == WORKFLOW_STEP_SKIPPED && (step->depends & failures) != 0))
                failures |= UINT64_C(1) << i;
        }
    } while (failures != before);
    return failures;
}

/* Steps in this status. */
static uint64_t in_status(const struct workflow_run_state *run, enum workflow_step_status status)
{
    uint64_t mask = 0;

    for (uint32_t i = 0; i < run->step_count; i++) {
        if (run->steps[i].status == status)
            mask |= UINT64_C(1) << i;
    }
    return mask;
}

static void end_step(struct workflow_step_state *step, enum workflow_step_status status,
                     int64_t now_ms)
{
    step->status = status;
    step->ended_ms = now_ms;
}

/* What became of the steps that run. */
static void look_at_running(struct workflow_run_state *run, int64_t now_ms)
{
    for (uint32_t i = 0; i < run->step_count; i++) {
        struct workflow_step_state *step = &run->steps[i];
        if (step->status != WORKFLOW_STEP_RUNNING)
            continue;
        if (run->status == WORKFLOW_CANCELLING) {
            if (step->timed || step->active == 0)
                end_step(step, WORKFLOW_STEP_CANCELLED, now_ms);
        } else if (step->timed) {
            if (now_ms - step->started_ms >= step->wait_ms)
                end_step(step, WORKFLOW_STEP_COMPLETED, now_ms);
        } else if (step->waiting == 0 && step->active == 0) {
            end_step(step, step->failed > 0 ? WORKFLOW_STEP_FAILED : WORKFLOW_STEP_COMPLETED,
                     now_ms);
        }
    }
}

/* Starts or skips one step whose dependencies have all ended. */
static void enter_step(const struct workflow_run_state *run, struct workflow_step_state *step,
                       int64_t now_ms)
{
    uint64_t completed = in_status(run, WORKFLOW_STEP_COMPLETED);
    bool go = false;

    switch (step->when) {
    case WORKFLOW_WHEN_SUCCESS:
        go = (step->depends & ~completed) == 0;
        break;
    case WORKFLOW_WHEN_FAILURE:
        go = (step->depends & failures_of(run)) != 0;
        break;
    case WORKFLOW_WHEN_ALWAYS:
        go = true;
        break;
    }
    if (!go) {
        end_step(step, WORKFLOW_STEP_SKIPPED, now_ms);
        return;
    }
    step->status = WORKFLOW_STEP_RUNNING;
    step->started_ms = now_ms;
}

/* Until nothing more follows from what has ended. */
static void enter_steps(struct workflow_run_state *run, int64_t now_ms)
{
    bool changed = true;

    while (changed) {
        uint64_t open =
            in_status(run, WORKFLOW_STEP_WAITING) | in_status(run, WORKFLOW_STEP_RUNNING);
        changed = false;
        for (uint32_t i = 0; i < run->step_count; i++) {
            struct workflow_step_state *step = &run->steps[i];
            if (step->status == WORKFLOW_STEP_WAITING && (step->depends & open) == 0) {
                enter_step(run, step, now_ms);
                changed = true;
                break; /* `open` is no longer true */
            }
        }
    }
}

static void start_items(struct workflow_run_state *run)
{
    uint32_t room = WORKFLOW_STARTS_MAX;

    for (uint32_t i = 0; i < run->step_count; i++) {
        struct workflow_step_state *step = &run->steps[i];
        uint32_t most = step->waiting;
        if (step->status != WORKFLOW_STEP_RUNNING || step->timed)
            continue;
        if (step->parallel_max > 0) {
            uint32_t busy = step->active < step->parallel_max ? step->active : step->parallel_max;
            most = most < step->parallel_max - busy ? most : step->parallel_max - busy;
        }
        step->start = most < room ? most : room;
        room -= step->start;
    }
}

static void look(struct workflow_run_state *run, int64_t now_ms)
{
    uint64_t open;

    look_at_running(run, now_ms);
    if (run->status == WORKFLOW_RUNNING) {
        enter_steps(run, now_ms);
        start_items(run);
    }
    open = in_status(run, WORKFLOW_STEP_WAITING) | in_status(run, WORKFLOW_STEP_RUNNING);
    if (open != 0)
        return;
    if (run->status == WORKFLOW_CANCELLING) {
        run->status = WORKFLOW_CANCELLED;
    } else {
        run->status =
            in_status(run, WORKFLOW_STEP_FAILED) != 0 ? WORKFLOW_FAILED : WORKFLOW_COMPLETED;
    }
}

static void for_jobs(struct workflow_run_state *run, unsigned int what)
{
    for (uint32_t i = 0; i < run->step_count; i++) {
        if (run->steps[i].active > 0)
            run->steps[i].jobs |= what;
    }
}

static void cancel(struct workflow_run_state *run, int64_t now_ms)
{
    for (uint32_t i = 0; i < run->step_count; i++) {
        if (run->steps[i].status == WORKFLOW_STEP_WAITING)
            end_step(&run->steps[i], WORKFLOW_STEP_CANCELLED, now_ms);
    }
    run->status = WORKFLOW_CANCELLING;
    for_jobs(run, WORKFLOW_JOBS_CANCEL);
    look(run, now_ms);
}

/* What failed or was cancelled, and everything behind it, whatever became of that. */
static void retry(struct workflow_run_state *run)
{
    uint64_t again = in_status(run, WORKFLOW_STEP_FAILED) | in_status(run, WORKFLOW_STEP_CANCELLED);
    uint64_t before;

    do {
        before = again;
        for (uint32_t i = 0; i < run->step_count; i++) {
            if ((run->steps[i].depends & again) != 0)
                again |= UINT64_C(1) << i;
        }
    } while (again != before);
    for (uint32_t i = 0; i < run->step_count; i++) {
        struct workflow_step_state *step = &run->steps[i];
        if (!has(again, i))
            continue;
        step->status = WORKFLOW_STEP_WAITING;
        step->attempt++;
        step->started_ms = 0;
        step->ended_ms = 0;
    }
    run->status = WORKFLOW_RUNNING;
}

static const char *refusal(const struct workflow_run_state *run, enum workflow_event event)
{
    bool final = workflow_run_is_final(run->status);

    switch (event) {
    case WORKFLOW_EVENT_LOOK:
        return final ? "it has ended" : NULL;
    case WORKFLOW_EVENT_CANCEL:
        if (run->status == WORKFLOW_CANCELLING)
            return "it is being cancelled already";
        return final ? "it has ended" : NULL;
    case WORKFLOW_EVENT_PAUSE:
        if (run->status == WORKFLOW_PAUSED)
            return "it is paused already";
        return run->status == WORKFLOW_RUNNING ? NULL : "it has ended or is being cancelled";
    case WORKFLOW_EVENT_RESUME:
        return run->status == WORKFLOW_PAUSED ? NULL : "it is not paused";
    case WORKFLOW_EVENT_RETRY:
        if (run->status == WORKFLOW_COMPLETED)
            return "nothing in it failed";
        return final ? NULL : "it has not ended yet";
    }
    return NULL;
}

void workflow_decide(struct workflow_run_state *run, enum workflow_event event, int64_t now_ms)
{
    assert(run->step_count > 0 && run->step_count <= WORKFLOW_STEPS_MAX);
    run->reason = refusal(run, event);
    run->allowed = run->reason == NULL;
    for (uint32_t i = 0; i < run->step_count; i++) {
        run->steps[i].start = 0;
        run->steps[i].jobs = 0;
    }
    if (!run->allowed)
        return;
    switch (event) {
    case WORKFLOW_EVENT_LOOK:
        look(run, now_ms);
        break;
    case WORKFLOW_EVENT_CANCEL:
        cancel(run, now_ms);
        break;
    case WORKFLOW_EVENT_PAUSE:
        run->status = WORKFLOW_PAUSED;
        for_jobs(run, WORKFLOW_JOBS_PAUSE);
        break;
    case WORKFLOW_EVENT_RESUME:
        run->status = WORKFLOW_RUNNING;
        for_jobs(run, WORKFLOW_JOBS_RESUME);
        break;
    case WORKFLOW_EVENT_RETRY:
        retry(run);
        break;
    }
}
