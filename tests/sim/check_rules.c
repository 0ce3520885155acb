/* Invariants about rules: deadlines, dependencies, time windows. */
#include "common/json.h"
#include "common/time_window.h"
#include "tests/sim/store.h"
#include "tests/sim/world.h"

#define DEPENDENCIES_MAX 256
#define BACK_MS          5000 /* the database's clock was set back by more: windows are not judged */
#define LATE_MS          40000 /* when all is well a rule is applied at once */
#define OUTSIDE_S        70    /* a lease, its margins, the longest step of a task */
#define RENEWED_S        15    /* a worker that lives renews every 5 s */

static bool met[DEPENDENCIES_MAX]; /* by row: it was in the required state at some time */

static const struct job_row *job_of(const char *id)
{
    const struct row *row = find_job(NULL, id);

    return row == NULL ? NULL : see(NULL, row);
}

/* ---- dependencies ---- */

static void note_state(const char *on_job, const char *status)
{
    for (size_t i = 0; i < store_count(TABLE_DEPENDENCIES); i++) {
        const struct dependency_row *d = see(NULL, store_row(TABLE_DEPENDENCIES, i));
        assert(i < ARRAY_LEN(met));
        if (d != NULL && is(d->on_job, on_job) && status_meets(status, d->required))
            met[i] = true;
    }
}

void check_dependency(const struct dependency_row *d)
{
    const struct job_row *on = job_of(d->on_job);

    if (on == NULL)
        sim_fail("INVARIANT %s waits for %s, which is not there", d->job_id, d->on_job);
    note_state(on->id, on->status);
}

static void check_first_lease(const struct job_row *job)
{
    for (size_t i = 0; i < store_count(TABLE_DEPENDENCIES); i++) {
        const struct dependency_row *d = see(NULL, store_row(TABLE_DEPENDENCIES, i));
        if (d != NULL && is(d->job_id, job->id) && !met[i])
            sim_fail("INVARIANT %s starts, and %s, which it waits for, was never %s", job->id,
                     d->on_job, d->required);
    }
}

/* ---- windows ---- */

/* Open at that time; *out_change_s: until then it stays as it is. */
static bool is_open_at(const struct job_row *job, int64_t at_s, int64_t *out_change_s)
{
    auto_json *windows = json_loads(job->windows, 0, NULL);
    struct time_windows_state state;
    struct error err = ERROR_NONE;

    if (time_windows_at(windows, at_s, &state, &err) < 0)
        sim_fail("windows: %s", err.message);
    *out_change_s = state.change_s;
    return state.open;
}

/* Open when the lease's transaction began, or when it was committed, by the clock before it was set
 * back. The product looks at whole
 * seconds, so a window that begins counts from half a second before. After the database's clock was
 * set back nothing is said: what was open then has not happened yet. */
static void check_window(const struct task_row *task, const struct job_row *job)
{
    int64_t at_ms = task->updated_ms; /* now() of the transaction */
    int64_t change_s;

    if (is(job->on_window_end, "continue") && (task->ordinal > 0 || task->epoch > 1))
        return;
    if (at_ms < store_newest_ms - BACK_MS || is_open_at(job, at_ms / 1000, &change_s) ||
        is_open_at(job, (store_newest_ms + 1000) / 1000, &change_s))
        return;
    sim_fail("INVARIANT %s of %s is leased at %lld outside of its time windows %s ('%s')", task->id,
             job->id, (long long)at_ms, job->windows, job->on_window_end);
}

void check_rules_lease(const struct task_row *task)
{
    const struct job_row *job = task->job_id[0] == '\0' ? NULL : job_of(task->job_id);

    if (job == NULL)
        return;
    if (task->ordinal == 0 && task->epoch == 1)
        check_first_lease(job);
    if (job->windows != NULL)
        check_window(task, job);
}

static bool is_long_closed(const struct job_row *job, int64_t seconds)
{
    int64_t now_s = store_clock_ms() / 1000;
    int64_t change_s = 0;

    return job->windows != NULL && world.calm_us > 0 &&
           sim_now_us > world.calm_us + seconds * SIM_S &&
           store_clock_ms() >= store_newest_ms - BACK_MS &&
           !is_open_at(job, now_s - seconds, &change_s) && change_s > now_s;
}

static void check_outside(const struct task_row *task)
{
    const struct job_row *job = task->job_id[0] == '\0' ? NULL : job_of(task->job_id);

    if (job == NULL || !is(task->state, "leased") || is(job->on_window_end, "continue") ||
        !is_long_closed(job, OUTSIDE_S) ||
        sim_now_us - world_task(task->id)->renewed_us >= RENEWED_S * SIM_S)
        return;
    sim_fail("INVARIANT %s is outside of its windows ('%s' then), and %s is still worked on",
             job->id, job->on_window_end, task->id);
}

/* Nobody can be outside for so long and still run, once all is well. */
static void check_overdue(const struct job_row *job)
{
    if (is(job->on_window_end, "cancel") && is(job->status, "running") &&
        is_long_closed(job, LATE_MS / 1000))
        sim_fail("INVARIANT %s is to be cancelled when its time window ends, and runs", job->id);
}

void check_windows(void)
{
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(NULL, store_row(TABLE_JOBS, i));
        if (job != NULL && job->windows != NULL && !status_is_final(job->status))
            check_overdue(job);
    }
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(NULL, store_row(TABLE_TASKS, i));
        if (task != NULL)
            check_outside(task);
    }
}

/* ---- deadlines ---- */

/* Why it is doomed is said with the commit that dooms it. */
static void check_doom(const struct job_row *job)
{
    if (is(job->error_code, "deadline")) {
        if (job->deadline_ms == 0 || job->deadline_ms >= store_newest_ms)
            sim_fail("INVARIANT %s fails by a deadline that has not passed", job->id);
    } else if (!is(job->error_code, "dependency") || !has_dependencies(NULL, job->id)) {
        sim_fail("INVARIANT %s fails by a rule, and there is none: '%s'", job->id, job->error_code);
    }
}

void check_rules_job(const struct job_row *old, const struct job_row *job)
{
    const char *from = old == NULL ? "" : old->status;

    if (!is(from, job->status))
        note_state(job->id, job->status);
    if (is(from, "cancelling") && is(job->status, "failed") && !job->doomed)
        sim_fail("INVARIANT %s was cancelled and fails", job->id);
    if (job->doomed && is(job->status, "cancelled"))
        sim_fail("INVARIANT %s fails by a rule and is cancelled", job->id);
    if (job->doomed && (old == NULL || !old->doomed))
        check_doom(job);
    if (job->doomed && is(job->status, "failed") && !is(job->error_code, "deadline") &&
        !is(job->error_code, "dependency"))
        sim_fail("INVARIANT %s failed by a rule and says '%s'", job->id, job->error_code);
}

static bool was_cancelled(const char *job_id)
{
    for (size_t i = 0; i < store_count(TABLE_EVENTS); i++) {
        const struct event_row *event = see(NULL, store_row(TABLE_EVENTS, i));
        if (event != NULL && is(event->job_id, job_id) && is(event->event, "job.cancelling"))
            return true;
    }
    return false;
}

static void check_deadline(const struct job_row *job)
{
    int64_t latest_ms = job->deadline_ms > world.calm_ms ? job->deadline_ms : world.calm_ms;

    for (size_t i = 0; i < store_count(TABLE_EVENTS); i++) {
        const struct event_row *event = see(NULL, store_row(TABLE_EVENTS, i));
        if (event != NULL && is(event->job_id, job->id) && is(event->event, "job.retried") &&
            event->at_ms > job->deadline_ms)
            sim_fail("INVARIANT %s is tried again after its deadline", job->id);
    }
    if (!job->doomed && job->completed_us / 1000 > latest_ms + LATE_MS && !was_cancelled(job->id))
        sim_fail("INVARIANT %s is %s long after its deadline, which nobody minded", job->id,
                 job->status);
}

void check_rules_end(void)
{
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(NULL, store_row(TABLE_JOBS, i));
        if (job == NULL)
            continue;
        if (job->deadline_ms != 0)
            check_deadline(job);
        if (is(job->error_code, "deadline") && !job->doomed)
            sim_fail("INVARIANT %s failed by a deadline without a rule", job->id);
    }
}
