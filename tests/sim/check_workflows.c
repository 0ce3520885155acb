/* Invariants about runs of workflows, read from the rows that commits leave behind. */
#include "tests/sim/store.h"
#include "tests/sim/world.h"

struct change {
    const char *from, *to;
};

static bool is_allowed(const struct change *changes, const char *from, const char *to)
{
    for (size_t i = 0; changes[i].from != NULL; i++) {
        if (is(changes[i].from, from) && is(changes[i].to, to))
            return true;
    }
    return false;
}

static bool step_is_final(const char *status)
{
    return !is(status, "waiting") && !is(status, "running");
}

static const struct workflow_row *run_of(const char *id)
{
    for (size_t i = 0; i < store_count(TABLE_WORKFLOWS); i++) {
        const struct workflow_row *run = see(NULL, store_row(TABLE_WORKFLOWS, i));
        if (run != NULL && is(run->id, id))
            return run;
    }
    return NULL;
}

static const struct step_row *step_of(const char *run_id, int64_t ordinal)
{
    for (size_t i = 0; i < store_count(TABLE_STEPS); i++) {
        const struct step_row *step = see(NULL, store_row(TABLE_STEPS, i));
        if (step != NULL && step->ordinal == ordinal && is(step->run_id, run_id))
            return step;
    }
    return NULL;
}

static int64_t items_of(const struct step_row *step, const char *state)
{
    int64_t count = 0;

    for (size_t i = 0; i < store_count(TABLE_ITEMS); i++) {
        const struct item_row *item = see(NULL, store_row(TABLE_ITEMS, i));
        count += item != NULL && item->step == step->ordinal && is(item->run_id, step->run_id) &&
                 is(item->state, state);
    }
    return count;
}

/* ---- steps ---- */

/* Failed, cancelled, or left out because of such a one. */
static bool counts_as_failure(const struct step_row *step)
{
    if (is(step->status, "failed") || is(step->status, "cancelled"))
        return true;
    for (int64_t on = 0; is(step->status, "skipped") && on < step->ordinal; on++) {
        if ((step->depends >> on & 1) != 0 && counts_as_failure(step_of(step->run_id, on)))
            return true;
    }
    return false;
}

/* What it depends on has ended, and as the step wants it (the simulator's steps depend on earlier
 * ones only). */
static bool may_run(const struct step_row *step)
{
    bool all_completed = true;
    bool any_failed = false;

    for (int64_t on = 0; on < step->ordinal; on++) {
        const struct step_row *other = step_of(step->run_id, on);
        if ((step->depends >> on & 1) == 0)
            continue;
        if (!step_is_final(other->status))
            return false;
        all_completed = all_completed && is(other->status, "completed");
        any_failed = any_failed || counts_as_failure(other);
    }
    return is(step->when, "always") || (is(step->when, "success") && all_completed) ||
           (is(step->when, "failure") && any_failed);
}

static void check_end_of_step(const struct step_row *step)
{
    if (items_of(step, "active") > 0)
        sim_fail("INVARIANT step %lld of %s is %s, and jobs of it are under way",
                 (long long)step->ordinal, step->run_id, step->status);
    if (is(step->status, "completed") && !is(step->kind, "wait") &&
        items_of(step, "done") != step->item_count)
        sim_fail("INVARIANT step %lld of %s is completed with %lld of %lld jobs",
                 (long long)step->ordinal, step->run_id, (long long)items_of(step, "done"),
                 (long long)step->item_count);
    if (is(step->status, "failed") && items_of(step, "failed") == 0)
        sim_fail("INVARIANT step %lld of %s failed, and none of its jobs did",
                 (long long)step->ordinal, step->run_id);
}

static void check_start_of_step(const struct step_row *step)
{
    if (!is(run_of(step->run_id)->status, "running"))
        sim_fail("INVARIANT step %lld of %s starts, and the run is %s", (long long)step->ordinal,
                 step->run_id, run_of(step->run_id)->status);
    if (!may_run(step))
        sim_fail("INVARIANT step %lld of %s starts on '%s' against what it depends on",
                 (long long)step->ordinal, step->run_id, step->when);
}

static const struct change step_changes[] = {
    {"waiting", "running"},
    {"waiting", "skipped"},
    {"waiting", "cancelled"},
    {"running", "completed"},
    {"running", "failed"},
    {"running", "cancelled"},
    {NULL, NULL},
};

void check_step(const struct step_row *old, const struct step_row *step)
{
    bool again;

    if (old == NULL)
        return;
    again = step_is_final(old->status) && is(step->status, "waiting");
    if (step->attempt != old->attempt + (again ? 1 : 0))
        sim_fail("INVARIANT step %lld of %s goes from attempt %lld to %lld",
                 (long long)step->ordinal, step->run_id, (long long)old->attempt,
                 (long long)step->attempt);
    if (is(old->status, step->status))
        return;
    sim_trace("step %lld of %s: %s -> %s, attempt %lld", (long long)step->ordinal, step->run_id,
              old->status, step->status, (long long)step->attempt);
    if (!again && !is_allowed(step_changes, old->status, step->status))
        sim_fail("INVARIANT step %lld of %s goes from '%s' to '%s'", (long long)step->ordinal,
                 step->run_id, old->status, step->status);
    if (is(step->status, "running")) {
        check_start_of_step(step);
    } else if (is(step->status, "skipped")) {
        if (may_run(step))
            sim_fail("INVARIANT step %lld of %s is left out, and it may run",
                     (long long)step->ordinal, step->run_id);
    } else if (!again) {
        check_end_of_step(step);
    }
}

/* ---- items ---- */

/* A job begins, for the first time or once more. */
static void check_start_of_item(const struct item_row *old, const struct item_row *item)
{
    const struct step_row *step = step_of(item->run_id, item->step);

    if (!is(run_of(item->run_id)->status, "running"))
        sim_fail("INVARIANT %s starts %s, and it is %s", item->run_id, item->job_id,
                 run_of(item->run_id)->status);
    if (!is(step->status, "running"))
        sim_fail("INVARIANT step %lld of %s starts %s, and it is %s", (long long)item->step,
                 item->run_id, item->job_id, step->status);
    if (old != NULL && (!is(old->state, "failed") || item->attempt <= old->attempt))
        sim_fail("INVARIANT item %lld of step %lld of %s starts twice in attempt %lld",
                 (long long)item->item, (long long)item->step, item->run_id,
                 (long long)item->attempt);
    if (step->parallel_max > 0 && items_of(step, "active") > step->parallel_max)
        sim_fail("INVARIANT step %lld of %s has %lld jobs at a time", (long long)item->step,
                 item->run_id, (long long)items_of(step, "active"));
}

static void check_alone(const struct item_row *item)
{
    int count = 0;

    for (size_t i = 0; i < store_count(TABLE_ITEMS); i++) {
        const struct item_row *other = see(NULL, store_row(TABLE_ITEMS, i));
        count += other != NULL && is(other->run_id, item->run_id) && other->step == item->step &&
                 other->item == item->item;
    }
    if (count != 1)
        sim_fail("INVARIANT item %lld of step %lld of %s starts %d times", (long long)item->item,
                 (long long)item->step, item->run_id, count);
}

void check_item(const struct item_row *old, const struct item_row *item)
{
    if (old == NULL)
        check_alone(item);
    if (is(item->state, "active") && (old == NULL || !is(old->state, "active")))
        check_start_of_item(old, item);
}

/* ---- runs ---- */

static const struct change run_changes[] = {
    {"running", "paused"},       {"paused", "running"},
    {"running", "completed"},    {"running", "failed"},
    {"paused", "completed"},     {"paused", "failed"},
    {"running", "cancelling"},   {"paused", "cancelling"},
    {"running", "cancelled"},    {"paused", "cancelled"},
    {"failed", "running"},       {"cancelled", "running"},
    {"cancelling", "cancelled"}, {NULL, NULL},
};

static void check_end_of_run(const struct workflow_row *run)
{
    bool failed = false;

    for (size_t i = 0; i < store_count(TABLE_STEPS); i++) {
        const struct step_row *step = see(NULL, store_row(TABLE_STEPS, i));
        if (step == NULL || !is(step->run_id, run->id))
            continue;
        failed = failed || is(step->status, "failed");
        if (!step_is_final(step->status) || items_of(step, "active") > 0)
            sim_fail("INVARIANT %s is %s, and its step %lld is %s", run->id, run->status,
                     (long long)step->ordinal, step->status);
    }
    if (!is(run->status, "cancelled") && failed != is(run->status, "failed"))
        sim_fail("INVARIANT %s is %s, its steps say the opposite", run->id, run->status);
}

void check_workflow(const struct workflow_row *old, const struct workflow_row *run)
{
    if (old == NULL || is(old->status, run->status))
        return;
    sim_trace("%s: %s -> %s", run->id, old->status, run->status);
    if (!is_allowed(run_changes, old->status, run->status))
        sim_fail("INVARIANT %s goes from '%s' to '%s'", run->id, old->status, run->status);
    if (status_is_final(run->status))
        check_end_of_run(run);
}

/* ---- when all is over ---- */

bool check_workflows_are_over(void)
{
    for (size_t i = 0; i < store_count(TABLE_WORKFLOWS); i++) {
        const struct workflow_row *run = see(NULL, store_row(TABLE_WORKFLOWS, i));
        if (run != NULL && !status_is_final(run->status))
            return false;
    }
    return true;
}

static int64_t retries_of(const char *job_id)
{
    int64_t count = 0;

    for (size_t i = 0; i < store_count(TABLE_EVENTS); i++) {
        const struct event_row *event = see(NULL, store_row(TABLE_EVENTS, i));
        count += event != NULL && is(event->job_id, job_id) && is(event->event, "job.retried");
    }
    return count;
}

static void check_item_at_end(const struct item_row *item)
{
    const struct row *row = item->job_id[0] == '\0' ? NULL : find_job(NULL, item->job_id);
    const struct job_row *job = row == NULL ? NULL : see(NULL, row);

    if (job == NULL)
        sim_fail("INVARIANT step %lld of %s could not start a job: %s", (long long)item->step,
                 item->run_id, item->error);
    if (is(item->state, "done") != is(job->status, "completed"))
        sim_fail("INVARIANT %s of %s is %s, its item is %s", job->id, item->run_id, job->status,
                 item->state);
    if (retries_of(job->id) > item->attempt - 1)
        sim_fail("INVARIANT %s was started %lld times in attempt %lld of its step", job->id,
                 (long long)retries_of(job->id) + 1, (long long)item->attempt);
}

void check_workflows_end(void)
{
    int64_t jobs = 0;
    int64_t items = 0;

    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(NULL, store_row(TABLE_JOBS, i));
        jobs += job != NULL && job->workflow_run_id[0] != '\0';
    }
    for (size_t i = 0; i < store_count(TABLE_ITEMS); i++) {
        const struct item_row *item = see(NULL, store_row(TABLE_ITEMS, i));
        if (item == NULL)
            continue;
        items++;
        check_item_at_end(item);
    }
    if (jobs != items)
        sim_fail("INVARIANT %lld jobs come from workflows, which know of %lld", (long long)jobs,
                 (long long)items);
    for (size_t i = 0; i < store_count(TABLE_STEPS); i++) {
        const struct step_row *step = see(NULL, store_row(TABLE_STEPS, i));
        if (step != NULL && (is(step->status, "completed") || is(step->status, "failed")) &&
            !may_run(step))
            sim_fail("INVARIANT step %lld of %s ran on '%s' against what it depends on",
                     (long long)step->ordinal, step->run_id, step->when);
    }
}
