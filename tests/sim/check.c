/* The invariants. Most are looked at with every commit, the rest when all is over. */
#include <string.h>

#include "common/job_state.h"
#include "common/json.h"
#include "common/schedule.h"
#include "tests/sim/store.h"
#include "tests/sim/world.h"

#define STOPPED_MS 65000 /* a lease, its margins, the longest step of a task */
#define RENEWED_S  15    /* a worker that lives renews every 5 s */

static bool is_held(const struct task_row *task)
{
    return is(task->state, "leased") || is(task->state, "finishing");
}

/* ---- with every commit ---- */

/* from, to: "" stands for a new row. completed is for ever. */
static const char *const job_steps[][2] = {
    {"", "pending"},
    {"pending", "running"},
    {"pending", "cancelled"},
    {"pending", "failed"},
    {"pending", "paused"},
    {"running", "pending"},
    {"running", "paused"},
    {"running", "completed"},
    {"running", "failed"},
    {"running", "cancelled"},
    {"running", "cancelling"},
    {"paused", "pending"},
    {"paused", "running"},
    {"paused", "completed"},
    {"paused", "failed"},
    {"paused", "cancelled"},
    {"paused", "cancelling"},
    {"cancelling", "completed"},
    {"cancelling", "cancelled"},
    {"cancelling", "failed"}, /* by a rule: check_rules.c */
    {"failed", "pending"},
    {"cancelled", "pending"},
};

static void check_job(const struct job_row *old, const struct job_row *job)
{
    const char *from = old == NULL ? "" : old->status;

    if (is(from, job->status))
        return;
    sim_trace("%s: %s -> %s", job->id, from, job->status);
    for (size_t i = 0; i < ARRAY_LEN(job_steps); i++) {
        if (is(job_steps[i][0], from) && is(job_steps[i][1], job->status))
            return;
    }
    sim_fail("INVARIANT %s goes from '%s' to '%s'", job->id, from, job->status);
}

static const struct job_row *job_of(const char *id)
{
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(NULL, store_row(TABLE_JOBS, i));
        if (job != NULL && is(job->id, id))
            return job;
    }
    return NULL;
}

/* So many of a policy's are worked on at a time; two leaders do not know of each other's. */
static void check_group(const struct task_row *task)
{
    int64_t count = 0;

    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *other = see(NULL, store_row(TABLE_TASKS, i));
        count += other != NULL && is_held(other) && is(other->queue_group, task->queue_group);
    }
    if (task->queue_group[0] != '\0' && task->queue_limit > 0 && count > task->queue_limit &&
        !store_two_leaders)
        sim_fail("INVARIANT %lld tasks of %s are leased, the limit is %lld", (long long)count,
                 task->queue_group, (long long)task->queue_limit);
}

/* A new lease has a new epoch and a new token; nothing else touches the epoch. */
static void check_lease(const struct task_row *old, const struct task_row *task)
{
    if (is(task->task_class, "transfer"))
        world.leased_us = sim_now_us;
    if (task->epoch != old->epoch + 1)
        sim_fail("INVARIANT %s is leased with epoch %lld after %lld", task->id,
                 (long long)task->epoch, (long long)old->epoch);
    check_rules_lease(task);
    check_group(task);
    if (task->token == NULL || (old->token != NULL && is(old->token, task->token)))
        sim_fail("INVARIANT %s is leased with an old token", task->id);
    if (task->job_id[0] != '\0' && !is(job_of(task->job_id)->status, "running"))
        sim_fail("INVARIANT %s is leased, and its job is %s", task->id,
                 job_of(task->job_id)->status);
}

static void check_done(const struct task_row *task)
{
    const struct world_task *outside = world_task(task->id);

    if (outside->done_epoch != task->epoch)
        sim_fail("INVARIANT %s is done in epoch %lld, but its work was done in epoch %lld",
                 task->id, (long long)task->epoch, (long long)outside->done_epoch);
    if (is(task->kind, "export") && !outside->marked)
        sim_fail("INVARIANT %s is done, but its export has no mark", task->id);
}

static void check_task(const struct task_row *old, const struct task_row *task)
{
    bool other_state = old == NULL || !is(old->state, task->state);

    if (other_state)
        sim_trace("%s (%s of %s): %s -> %s, epoch %lld, attempt %lld, losses %lld", task->id,
                  task->kind, task->job_id, old == NULL ? "" : old->state, task->state,
                  (long long)task->epoch, (long long)task->attempt, (long long)task->losses);
    if (old == NULL)
        return;
    if (task->lease_until_ms != old->lease_until_ms)
        world_task(task->id)->renewed_us = sim_now_us;
    if (other_state && is(task->state, "leased")) {
        check_lease(old, task);
    } else if (task->epoch != old->epoch) {
        sim_fail("INVARIANT %s changes its epoch without a lease", task->id);
    }
    if (other_state && is(old->state, "done"))
        sim_fail("INVARIANT %s was done and is '%s'", task->id, task->state);
    if (other_state && is(task->state, "done"))
        check_done(task);
    if (task->losses > (int64_t)world.losses_max && !is(task->kind, "release"))
        sim_fail("INVARIANT %s has lost %lld leases", task->id, (long long)task->losses);
    if (task->lines_stored < old->lines_stored && task->epoch == old->epoch)
        sim_fail("INVARIANT %s forgets log lines", task->id);
}

void check_commit(enum store_table table, const void *old, const void *new_row)
{
    if (new_row == NULL)
        return;
    if (table == TABLE_JOBS) {
        check_job(old, new_row);
        check_rules_job(old, new_row);
    } else if (table == TABLE_TASKS) {
        check_task(old, new_row);
    } else if (table == TABLE_DEPENDENCIES) {
        check_dependency(new_row);
    } else if (table == TABLE_WORKFLOWS) {
        check_workflow(old, new_row);
    } else if (table == TABLE_STEPS) {
        check_step(old, new_row);
    } else if (table == TABLE_ITEMS) {
        check_item(old, new_row);
    }
}

/* ---- when all is over ---- */

static bool is_open(const struct task_row *task)
{
    return is_held(task) || is(task->state, "queued");
}

static bool runs_are_over(void)
{
    for (size_t i = 0; i < store_count(TABLE_RUNS); i++) {
        const struct run_row *run = see(NULL, store_row(TABLE_RUNS, i));
        if (run != NULL && (is(run->status, "running") || is(run->status, "queued")))
            return false;
    }
    return true;
}

bool check_is_quiet(void)
{
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(NULL, store_row(TABLE_JOBS, i));
        if (job != NULL && !status_is_final(job->status))
            return false;
    }
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(NULL, store_row(TABLE_TASKS, i));
        if (task != NULL && is_open(task))
            return false;
    }
    return runs_are_over() && check_workflows_are_over();
}

void check_stuck(void)
{
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(NULL, store_row(TABLE_TASKS, i));
        if (task != NULL && is_open(task))
            sim_fail("INVARIANT every job ends: %s (%s of '%s') is still %s, epoch %lld, attempt "
                     "%lld, losses %lld",
                     task->id, task->kind, task->job_id, task->state, (long long)task->epoch,
                     (long long)task->attempt, (long long)task->losses);
    }
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(NULL, store_row(TABLE_JOBS, i));
        if (job != NULL && !status_is_final(job->status))
            sim_fail("INVARIANT every job ends: %s is %s and has nothing to do", job->id,
                     job->status);
    }
    if (!runs_are_over())
        sim_fail("INVARIANT every run of a schedule ends");
    if (!check_workflows_are_over())
        sim_fail("INVARIANT every run of a workflow ends");
    sim_fail("INVARIANT every submission gets its answer");
}

static bool ends(const char *event)
{
    return is(event, "job.completed") || is(event, "job.failed") || is(event, "job.cancelled");
}

/* Events of one job in their order; what it ended with, how often, and the last wish for an end. */
struct story {
    size_t ends, retries, outbox;
    const char *last_end;
    bool wants_end; /* cancelled after the last retry */
};

static struct story story_of(const char *job_id)
{
    struct story story = {.last_end = ""};

    for (size_t i = 0; i < store_count(TABLE_EVENTS); i++) {
        const struct event_row *event = see(NULL, store_row(TABLE_EVENTS, i));
        if (event == NULL || !is(event->job_id, job_id))
            continue;
        if (ends(event->event)) {
            story.ends++;
            story.last_end = event->event;
        }
        if (is(event->event, "job.cancelling") || is(event->event, "job.cancelled"))
            story.wants_end = true;
        if (is(event->event, "job.retried")) {
            story.retries++;
            story.wants_end = false;
        }
    }
    for (size_t i = 0; i < store_count(TABLE_OUTBOX); i++) {
        const struct outbox_row *outbox = see(NULL, store_row(TABLE_OUTBOX, i));
        if (outbox != NULL && is(outbox->job_id, job_id) && ends(outbox->event))
            story.outbox++;
    }
    return story;
}

static void check_story(const struct job_row *job)
{
    struct story story = story_of(job->id);

    if (strncmp(story.last_end, "job.", 4) != 0 || !is(story.last_end + 4, job->status))
        sim_fail("INVARIANT %s is %s, but its history ends with '%s'", job->id, job->status,
                 story.last_end);
    if (story.ends != story.retries + 1)
        sim_fail("INVARIANT %s ended %zu times and was tried again %zu times", job->id, story.ends,
                 story.retries);
    if (story.outbox != story.ends)
        sim_fail("INVARIANT %s ended %zu times and %zu ends are told to others", job->id,
                 story.ends, story.outbox);
    if (is(job->status, "failed") && is(job->error_code, "internal"))
        sim_fail("INVARIANT %s fails for the scheduler's reasons: %s", job->id, job->error);
    if (story.wants_end && is(job->status, "failed"))
        sim_fail("INVARIANT %s was cancelled and is %s", job->id, job->status);
}

static void check_user(const struct world_job *wish)
{
    const struct job_row *job = job_of(wish->id);

    if (!wish->acknowledged)
        return;
    if (job == NULL)
        sim_fail("INVARIANT no job is lost: %s was acknowledged and is not there", wish->id);
    if (wish->cancel_acknowledged && !is(job->status, "cancelled") && !is(job->status, "completed"))
        sim_fail("INVARIANT %s: its cancel was acknowledged and it is %s", job->id, job->status);
    if (wish->poison && is(job->status, "completed"))
        sim_fail("INVARIANT %s kills its workers and is completed", job->id);
}

/* Jobs that ended, as the metrics count them. */
static double total_ends(void)
{
    double sum = 0;

    for (size_t i = 0; i < store_count(TABLE_TOTALS); i++) {
        const struct total_row *total = see(NULL, store_row(TABLE_TOTALS, i));
        auto_json *batch = total == NULL ? NULL : json_loads(total->batch, 0, NULL);
        json_t *item;
        size_t n;
        json_array_foreach(batch, n, item)
        {
            if (is(json_str(item, "name"), "hypersdk_jobs_total"))
                sum += json_number_value(json_object_get(item, "value"));
        }
    }
    return sum;
}

static size_t exports_of(const char *job_id)
{
    size_t count = 0;

    for (size_t i = 0; i < store_count(TABLE_EXPORTS); i++) {
        const struct export_row *export = see(NULL, store_row(TABLE_EXPORTS, i));
        if (export != NULL && is(export->job_id, job_id))
            count++;
    }
    return count;
}

static void check_tasks_of_ended(const struct task_row *task)
{
    const struct job_row *job = task->job_id[0] == '\0' ? NULL : job_of(task->job_id);

    if (is(task->state, "blocked"))
        sim_fail("INVARIANT %s of the ended %s is blocked for ever", task->id, task->job_id);
    if (job != NULL && is(job->status, "completed") && !is(task->state, "done") &&
        !(task->may_fail && is(task->state, "failed")))
        sim_fail("INVARIANT %s is completed and its task %s is %s", job->id, task->id, task->state);
    if (is(task->kind, "release") && is(task->state, "failed"))
        sim_fail("INVARIANT the release %s gave up", task->id);
}

/* Of a task that ended well, every line that its worker had written is there, once. */
static void check_lines(const struct task_row *task)
{
    int64_t count = 0;

    for (size_t i = 0; i < store_count(TABLE_LINES); i++) {
        const struct line_row *line = see(NULL, store_row(TABLE_LINES, i));
        if (line != NULL && is(line->task_id, task->id) && line->epoch == task->epoch)
            count++;
    }
    if (task->job_id[0] != '\0' && count != task->lines_stored)
        sim_fail("INVARIANT %s: %lld log lines are acknowledged, %lld are there", task->id,
                 (long long)task->lines_stored, (long long)count);
}

static bool is_drained(const char *instance)
{
    for (size_t i = 0; i < store_count(TABLE_WORKERS); i++) {
        const struct worker_row *worker = see(NULL, store_row(TABLE_WORKERS, i));
        if (worker != NULL && is(worker->instance, instance))
            return worker->drained;
    }
    return false;
}

/* By a rule or by the end of a window it may be stopped at any time. */
static bool was_stopped_lately(const char *job_id)
{
    for (size_t i = store_count(TABLE_EVENTS); i-- > 0;) {
        const struct event_row *event = see(NULL, store_row(TABLE_EVENTS, i));
        if (event != NULL && is(event->job_id, job_id) &&
            (is(event->event, "job.cancelling") || is(event->event, "job.stopping") ||
             is(event->event, "job.pausing")))
            return event->at_ms > store_clock_ms() - STOPPED_MS;
    }
    return false;
}

/* Finishing steps are not stopped. A lease that nobody renews is only waited for: after a jump of
 * the database's clock back it lasts so much longer. */
static void check_stopped_task(const struct task_row *task)
{
    const struct job_row *job = task->job_id[0] == '\0' ? NULL : job_of(task->job_id);

    if (job == NULL || !is(task->state, "leased") ||
        sim_now_us - world_task(task->id)->renewed_us >= RENEWED_S * SIM_S)
        return;
    if ((is(job->status, "cancelling") || is(job->status, "paused")) &&
        !was_stopped_lately(job->id))
        sim_fail("INVARIANT %s is %s, and %s (%s) is still worked on", job->id, job->status,
                 task->id, task->kind);
    if (is_drained(task->worker))
        sim_fail("INVARIANT %s is drained, and still works on %s", task->worker, task->id);
}

void check_stops(void)
{
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(NULL, store_row(TABLE_TASKS, i));
        if (task != NULL)
            check_stopped_task(task);
    }
    for (size_t i = 0; i < store_count(TABLE_SETTINGS); i++) {
        if (see(NULL, store_row(TABLE_SETTINGS, i)) != NULL &&
            sim_now_us - world.leased_us < RENEWED_S * SIM_S)
            sim_fail("INVARIANT the queue is paused, and a transfer was leased");
    }
}

/* ---- schedules ---- */

static size_t runs_at(const char *schedule_id, int64_t due_s)
{
    size_t count = 0;

    for (size_t i = 0; i < store_count(TABLE_RUNS); i++) {
        const struct run_row *run = see(NULL, store_row(TABLE_RUNS, i));
        if (run != NULL && is(run->schedule_id, schedule_id) &&
            (due_s < 0 || run->due_ms == due_s * 1000))
            count++;
    }
    return count;
}

/* Every time that has come has one run, whatever became of it, and no other time has any. */
static void check_dues(const struct schedule_row *row)
{
    auto_schedule *schedule = xcalloc(1, sizeof *schedule);
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    size_t count = 0;

    schedule->fields = json_loads(row->fields, 0, NULL);
    if (schedule_check(schedule, &problem, &err) < 0)
        sim_fail("schedule: %s", err.message);
    for (int64_t at = row->first_s; at < row->next_s; count++) {
        if (runs_at(row->id, at) != 1)
            sim_fail("INVARIANT %s has %zu runs for %lld", row->id, runs_at(row->id, at),
                     (long long)at);
        if (cron_next(&schedule->cron, schedule->zone, at, &at, &err) < 0)
            sim_fail("schedule: %s", err.message);
    }
    if (runs_at(row->id, -1) != count)
        sim_fail("INVARIANT %s has %zu runs, and was due %zu times", row->id, runs_at(row->id, -1),
                 count);
}

static const struct schedule_row *schedule_of(const struct run_row *run)
{
    for (size_t i = 0; i < store_count(TABLE_SCHEDULES); i++) {
        const struct schedule_row *schedule = see(NULL, store_row(TABLE_SCHEDULES, i));
        if (schedule != NULL && is(schedule->id, run->schedule_id))
            return schedule;
    }
    sim_fail("INVARIANT %s is of no schedule", run->id);
}

static size_t jobs_of_vm(const struct run_row *run, const char *vm_path)
{
    size_t jobs = 0;

    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(NULL, store_row(TABLE_JOBS, i));
        jobs += job != NULL && (vm_path == NULL || is(job->vm_path, vm_path)) &&
                json_has(run->job_ids, job->id);
    }
    return jobs;
}

static bool all_completed(const struct run_row *run)
{
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(NULL, store_row(TABLE_JOBS, i));
        if (job != NULL && json_has(run->job_ids, job->id) && !is(job->status, "completed"))
            return false;
    }
    return true;
}

/* A run that began has its one job, or one of each VM, and says what became of them. */
static void check_run(const struct run_row *run)
{
    bool began = is(run->status, "ok") || (is(run->status, "failed") && !is(run->job_ids, "[]"));
    bool policy = schedule_of(run)->policy_id[0] != '\0';
    size_t wanted = !began ? 0 : policy ? world.vm_count : 1;

    if (jobs_of_vm(run, NULL) != wanted)
        sim_fail("INVARIANT %s is %s and has %zu jobs", run->id, run->status,
                 jobs_of_vm(run, NULL));
    for (size_t i = 0; began && policy && i < world.vm_count; i++) {
        if (jobs_of_vm(run, world.vms[i]) != 1)
            sim_fail("INVARIANT %s has %zu jobs of %s", run->id, jobs_of_vm(run, world.vms[i]),
                     world.vms[i]);
    }
    if (began && is(run->status, "ok") != all_completed(run))
        sim_fail("INVARIANT %s is %s, its jobs say the opposite", run->id, run->status);
}

static void check_scheduled_jobs(void)
{
    int64_t jobs = 0;
    int64_t known = 0;
    int64_t begun = 0;
    int64_t counted = 0;

    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(NULL, store_row(TABLE_JOBS, i));
        jobs += job != NULL && job->schedule_id != NULL && job->schedule_id[0] != '\0';
    }
    for (size_t i = 0; i < store_count(TABLE_SCHEDULES); i++) {
        const struct schedule_row *schedule = see(NULL, store_row(TABLE_SCHEDULES, i));
        if (schedule == NULL)
            continue;
        check_dues(schedule);
        counted += schedule->run_count;
    }
    for (size_t i = 0; i < store_count(TABLE_RUNS); i++) {
        const struct run_row *run = see(NULL, store_row(TABLE_RUNS, i));
        if (run == NULL)
            continue;
        check_run(run);
        known += (int64_t)jobs_of_vm(run, NULL);
        begun += !is(run->job_ids, "[]");
    }
    if (jobs != known || begun != counted)
        sim_fail("INVARIANT %lld runs have begun, %lld are counted; they have %lld jobs, and %lld "
                 "come from schedules",
                 (long long)begun, (long long)counted, (long long)known, (long long)jobs);
}

void check_end(void)
{
    double end_count = 0;

    check_scheduled_jobs();
    check_rules_end();
    check_workflows_end();
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(NULL, store_row(TABLE_JOBS, i));
        if (job == NULL)
            continue;
        check_story(job);
        end_count += (double)story_of(job->id).ends;
        if (is(job->status, "completed") && is(job->kind, "export") && exports_of(job->id) != 1)
            sim_fail("INVARIANT %s is completed with %zu exports", job->id, exports_of(job->id));
    }
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(NULL, store_row(TABLE_TASKS, i));
        if (task == NULL)
            continue;
        check_tasks_of_ended(task);
        check_lines(task);
    }
    for (size_t i = 0; i < world.job_count; i++)
        check_user(&world.jobs[i]);
    for (size_t i = 0; i < world.task_count; i++) {
        if (world.tasks[i].snapshot)
            sim_fail("INVARIANT nothing is left outside: the snapshot of %s", world.tasks[i].id);
    }
    if (total_ends() != end_count)
        sim_fail("INVARIANT %.0f ends are counted, %.0f happened", total_ends(), end_count);
}
