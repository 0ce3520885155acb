/* Models of the statements of services/scheduler/rules.c and windows.c, and of those that store
 * what jobs depend on. Which jobs a rule is about is decided in SQL: the same conditions stand here
 * once more. With a real PostgreSQL they are pinned by tests/service/test_queue_rules.py
 * (deadlines, dependencies) and tests/service/test_time_windows.py. What follows (the end of a job
 * by its state machine, when a window opens and closes) is the product's. */
#include "common/autos.h"
#include "common/json.h"
#include "tests/sim/store.h"

static const struct job_row *see_job(const struct statement *s, const char *id)
{
    const struct row *row = find_job(s, id);

    return row == NULL ? NULL : see(s, row);
}

/* extract(epoch FROM now())::bigint rounds. */
static int64_t now_s(const struct statement *s)
{
    return (s->now_ms + 500) / 1000;
}

bool status_is_final(const char *status)
{
    return is(status, "completed") || is(status, "failed") || is(status, "cancelled");
}

bool status_meets(const char *status, const char *required)
{
    return is(status, required) || (is(required, "final") && status_is_final(status));
}

bool is_closed(const struct job_row *job)
{
    return job->window_at_ms != 0 && !job->window_open;
}

bool waits_for_window(const struct job_row *job)
{
    return is_closed(job) && is(job->on_window_end, "pause");
}

/* ---- job_store_submit.c: dependencies ---- */

bool has_dependencies(const struct statement *s, const char *job_id)
{
    for (size_t i = 0; i < store_count(TABLE_DEPENDENCIES); i++) {
        const struct dependency_row *d = see(s, store_row(TABLE_DEPENDENCIES, i));
        if (d != NULL && is(d->job_id, job_id))
            return true;
    }
    return false;
}

static void known_jobs(struct statement *s)
{
    auto_json *ids = json_loads(s->params[0], 0, NULL);
    json_t *id;
    size_t i;

    result_columns(s, 1);
    json_array_foreach(ids, i, id)
    {
        if (find_job(s, json_string_value(id)) != NULL)
            RESULT_ROW(s, json_string_value(id));
    }
}

static void insert_dependencies(struct statement *s)
{
    auto_json *list = json_loads(s->params[0], 0, NULL);
    json_t *item;
    size_t i;

    json_array_foreach(list, i, item)
    {
        struct dependency_row *d = insert(s, TABLE_DEPENDENCIES);
        const json_t *timeout = json_object_get(item, "timeout_ms");
        PUT(d->job_id, json_str(item, "id"));
        PUT(d->on_job, json_str(item, "job_id"));
        PUT(d->required, json_str(item, "required_state"));
        d->timeout_ms = timeout == NULL ? 0 : s->now_ms + json_integer_value(timeout);
    }
}

/* ---- rules.c ---- */

static void late(struct statement *s)
{
    result_columns(s, 3);
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(s, store_row(TABLE_JOBS, i));
        if (job == NULL || job->deadline_ms == 0 || job->deadline_ms >= s->now_ms ||
            job->completed_us != 0 ||
            !(is(job->status, "pending") || is(job->status, "running") ||
              is(job->status, "paused")) ||
            sim_break == BREAK_DEADLINE)
            continue;
        RESULT_ROW(s, find_current_task(s, job->id)->id, "deadline",
                   "it was not done by its deadline");
    }
}

/* The first of a job's tasks waits for others; NULL: it does not. */
static struct row *waiting_task(const struct statement *s, const char *job_id)
{
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        if (task != NULL && is(task->job_id, job_id) && is(task->state, "queued") &&
            is(task->hold, "depends"))
            return store_row(TABLE_TASKS, i);
    }
    return NULL;
}

enum outlook { OUTLOOK_MET, OUTLOOK_WAITS, OUTLOOK_NEVER };

static enum outlook outlook_of(const struct statement *s, const struct dependency_row *d)
{
    const struct job_row *on = see_job(s, d->on_job);

    if (on != NULL && status_meets(on->status, d->required))
        return OUTLOOK_MET;
    if (on == NULL || status_is_final(on->status) ||
        (d->timeout_ms != 0 && d->timeout_ms < s->now_ms))
        return OUTLOOK_NEVER;
    return OUTLOOK_WAITS;
}

/* The worst of a job's dependencies. */
static enum outlook outlook_for(const struct statement *s, const char *job_id)
{
    enum outlook worst = OUTLOOK_MET;

    for (size_t i = 0; i < store_count(TABLE_DEPENDENCIES); i++) {
        const struct dependency_row *d = see(s, store_row(TABLE_DEPENDENCIES, i));
        enum outlook outlook;
        if (d == NULL || !is(d->job_id, job_id))
            continue;
        outlook = outlook_of(s, d);
        worst = outlook > worst ? outlook : worst;
    }
    return worst;
}

static void hopeless(struct statement *s)
{
    result_columns(s, 3);
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(s, store_row(TABLE_JOBS, i));
        if (job == NULL || !is(job->status, "pending") || waiting_task(s, job->id) == NULL ||
            outlook_for(s, job->id) != OUTLOOK_NEVER)
            continue;
        RESULT_ROW(s, find_current_task(s, job->id)->id, "dependency",
                   "what it waits for does not come");
    }
}

static void release_dependants(struct statement *s)
{
    int count = 0;

    for (size_t i = 0; i < store_count(TABLE_JOBS) && !s->failed; i++) {
        const struct job_row *job = see(s, store_row(TABLE_JOBS, i));
        struct row *row = job == NULL ? NULL : waiting_task(s, job->id);
        struct task_row *task;
        if (row == NULL || !is_free(s, row) ||
            (outlook_for(s, job->id) != OUTLOOK_MET && sim_break != BREAK_DEPENDS))
            continue;
        task = hold(s, row);
        if (task == NULL)
            continue;
        task->hold[0] = '\0';
        task->updated_ms = s->now_ms;
        count++;
    }
    result_affected(s, count);
}

/* ---- windows.c ---- */

static bool is_due(const struct statement *s, const struct job_row *job)
{
    return job != NULL && job->windows != NULL && job->window_at_ms != 0 &&
           job->window_at_ms <= s->now_ms && job->completed_us == 0;
}

static void due_windows(struct statement *s)
{
    auto_json *seen = json_object();

    result_columns(s, 2);
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(s, store_row(TABLE_JOBS, i));
        if (!is_due(s, job) || json_object_get(seen, job->windows) != NULL)
            continue;
        json_put(seen, job->windows, json_true());
        RESULT_ROW(s, job->windows, number(now_s(s)));
    }
}

static void turn_windows(struct statement *s)
{
    for (size_t i = 0; i < store_count(TABLE_JOBS) && !s->failed; i++) {
        struct row *row = store_row(TABLE_JOBS, i);
        const struct job_row *seen = see(s, row);
        struct job_row *job;
        if (!is_due(s, seen) || !is(seen->windows, s->params[0]) || !is_free(s, row))
            continue;
        job = hold(s, row);
        if (job == NULL || !is_due(s, job))
            continue;
        job->window_open = param_bool(s, 2);
        job->window_at_ms = param_i64(s, 3) * 1000;
    }
}

/* Tasks in the queue with this hold, of jobs that are (not) closed. */
static int move_holds(struct statement *s, const char *from, const char *to, bool closed)
{
    int count = 0;

    for (size_t i = 0; i < store_count(TABLE_TASKS) && !s->failed; i++) {
        struct row *row = store_row(TABLE_TASKS, i);
        const struct task_row *seen = see(s, row);
        const struct job_row *job;
        struct task_row *task;
        if (seen == NULL || !is(seen->state, "queued") || !is(seen->hold, from) ||
            seen->job_id[0] == '\0' || !is_free(s, row))
            continue;
        job = see_job(s, seen->job_id);
        if (job == NULL || is_closed(job) != closed || (closed && job->completed_us != 0))
            continue;
        task = hold(s, row);
        if (task == NULL)
            continue;
        PUT(task->hold, to);
        task->updated_ms = s->now_ms;
        count++;
    }
    return count;
}

static void hold_closed(struct statement *s)
{
    (void)move_holds(s, "", "window", true);
}

static void let_go(struct statement *s)
{
    result_affected(s, move_holds(s, "window", "", false));
}

static void overdue(struct statement *s)
{
    result_columns(s, 1);
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(s, store_row(TABLE_JOBS, i));
        if (job != NULL && is_closed(job) && job->window_at_ms > s->now_ms &&
            job->completed_us == 0 && is(job->on_window_end, "cancel") &&
            is(job->status, "running") && sim_break != BREAK_WINDOW_END)
            RESULT_ROW(s, job->id);
    }
}

const struct statement_model statements_rules[] = {
    {"SELECT x.id FROM jsonb_array_elements_text($1::jsonb) x(id)", known_jobs},
    {"INSERT INTO job_dependencies", insert_dependencies},
    {"AND j.status IN ('pending', 'running', 'paused') ORDER BY j.deadline", late},
    {"bad AS (SELECT DISTINCT ON (job_id)", hopeless},
    {"t.state = 'queued' AND t.hold = 'depends' AND NOT EXISTS", release_dependants},
    {"SELECT DISTINCT time_windows", due_windows},
    {"UPDATE jobs SET window_open", turn_windows},
    {"UPDATE tasks SET hold = 'window'", hold_closed},
    {"AND t.hold = 'window'", let_go},
    {"AND j.on_window_end = 'cancel'", overdue},
    {0},
};
