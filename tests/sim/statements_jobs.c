/* Models of the statements of common/job_store*.c. Columns and conditions as in the SQL there;
 * what only shows (phases, names of workers, metrics' labels) is left out. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "tests/sim/store.h"

#define TASK_MS 1000 /* of a microsecond stamp */

static bool is(const char *a, const char *b)
{
    return strcmp(a, b) == 0;
}

static void put(char *out, size_t size, const char *text)
{
    (void)snprintf(out, size, "%s", text == NULL ? "" : text);
}
#define PUT(field, text) put((field), sizeof(field), (text))

static const char *cell(const char *text)
{
    return text == NULL ? "" : text;
}

static const char *cell_bool(bool value)
{
    return value ? "t" : "f";
}

struct row *find_job(const struct statement *s, const char *id);
struct row *find_job(const struct statement *s, const char *id)
{
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(s, store_row(TABLE_JOBS, i));
        if (job != NULL && is(job->id, id))
            return store_row(TABLE_JOBS, i);
    }
    return NULL;
}

struct row *find_task(const struct statement *s, const char *id);
struct row *find_task(const struct statement *s, const char *id)
{
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        if (task != NULL && is(task->id, id))
            return store_row(TABLE_TASKS, i);
    }
    return NULL;
}

/* ---- submit ---- */

/* Who has the same id or key but has not committed yet is waited for, as a unique index does. */
static bool is_taken(struct statement *s, const char *id, const char *user, const char *key)
{
    for (size_t i = 0; i < store_count(TABLE_JOBS) && !s->failed; i++) {
        struct row *row = store_row(TABLE_JOBS, i);
        const struct job_row *job = row->uncommitted != NULL ? row->uncommitted : row->committed;
        if (job == NULL || !(is(job->id, id) || (key != NULL && job->key != NULL &&
                                                 is(job->key, key) && is(job->submitted_by, user))))
            continue;
        if (row->committed != NULL || hold(s, row) != NULL)
            return true;
    }
    return s->failed;
}

static void insert_job(struct statement *s)
{
    static int64_t seq;
    struct job_row *job;

    result_columns(s, 1);
    if (is_taken(s, s->params[0], s->params[13], s->params[15]))
        return;
    job = insert(s, TABLE_JOBS);
    PUT(job->id, s->params[0]);
    PUT(job->kind, s->params[2]);
    PUT(job->provider, s->params[3]);
    job->seq = ++seq;
    job->vm_path = keep(s->params[4]);
    job->vm_name = keep(s->params[5]);
    job->output_path = keep(s->params[6]);
    job->priority = param_i64(s, 10);
    job->max_attempts = param_i64(s, 11);
    job->retry_initial_ms = param_i64(s, 12);
    job->retry_max_ms = param_i64(s, 13);
    job->submitted_by = keep(s->params[13]);
    job->trace_id = keep(s->params[14]);
    job->key = keep(s->params[15]);
    job->hash = keep(s->params[16]);
    job->schedule_id = keep(s->params[17]);
    job->error = job->error_code = "";
    PUT(job->status, "pending");
    RESULT_ROW(s, s->params[0]);
}

static struct task_row *new_task(struct statement *s)
{
    static int64_t seq;
    struct task_row *task = insert(s, TABLE_TASKS);

    task->seq = ++seq;
    task->error = task->error_code = "";
    task->not_before_ms = task->updated_ms = s->now_ms;
    PUT(task->state, "queued");
    return task;
}

static void insert_task(struct statement *s)
{
    struct task_row *task = new_task(s);

    PUT(task->id, s->params[0]);
    PUT(task->job_id, s->params[1]);
    task->ordinal = param_i64(s, 3);
    PUT(task->kind, s->params[3]);
    PUT(task->task_class, "transfer");
    PUT(task->role, s->params[4]);
    PUT(task->provider_kind, s->params[5]);
    PUT(task->provider, s->params[6]);
    task->spec = keep(s->params[7]);
    task->priority = param_i64(s, 9);
    PUT(task->state, s->params[9]);
    PUT(task->volume, s->params[10]);
    PUT(task->hook, s->params[11]);
    task->may_fail = param_bool(s, 13);
    task->max_attempts = keep(s->params[13]);
    task->retry_initial_ms = keep(s->params[14]);
    task->retry_max_ms = keep(s->params[15]);
    task->wait = keep(s->params[16]);
    if (s->params[17] != NULL)
        task->not_before_ms = param_i64(s, 18);
}

static void find_key(struct statement *s)
{
    result_columns(s, 2);
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(s, store_row(TABLE_JOBS, i));
        if (job != NULL && job->key != NULL && is(job->key, s->params[1]) &&
            is(job->submitted_by, s->params[0]))
            RESULT_ROW(s, job->id, cell_bool(is(cell(job->hash), cell(s->params[2]))));
    }
}

/* ---- wishes of users ---- */

static bool is_over(const struct task_row *task)
{
    return is(task->state, "done") || (is(task->state, "failed") && task->may_fail);
}

static void current_task(struct statement *s)
{
    const struct task_row *best = NULL;

    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        if (task == NULL || !is(task->job_id, s->params[0]))
            continue;
        bool done = is_over(task);
        bool best_done = best != NULL && is_over(best);
        if (best == NULL || (best_done && !done) ||
            (best_done == done && task->ordinal < best->ordinal))
            best = task;
    }
    result_columns(s, 1);
    if (best != NULL)
        RESULT_ROW(s, best->id);
}

static void job_exists(struct statement *s)
{
    result_columns(s, 1);
    if (find_job(s, s->params[0]) != NULL)
        RESULT_ROW(s, "1");
}

static void set_cancel(struct statement *s)
{
    struct row *row = find_job(s, s->params[0]);
    struct job_row *job = row == NULL ? NULL : hold(s, row);

    if (job != NULL)
        job->cancel_discard = param_bool(s, 3);
}

static bool releases(const struct task_row *task, const char *task_id)
{
    auto_json *spec = NULL;

    if (!is(task->kind, "release"))
        return false;
    spec = json_loads(task->spec, 0, NULL);
    return is(json_str(spec, "task_id"), task_id);
}

static bool is_held_state(const struct task_row *task)
{
    return is(task->state, "leased") || is(task->state, "finishing");
}

static void drop_releases(struct statement *s)
{
    for (size_t i = 0; i < store_count(TABLE_TASKS) && !s->failed; i++) {
        const struct task_row *seen = see(s, store_row(TABLE_TASKS, i));
        if (seen == NULL || !is(seen->state, "queued") || !releases(seen, s->params[0]))
            continue;
        struct task_row *task = hold(s, store_row(TABLE_TASKS, i));
        if (task != NULL && is(task->state, "queued"))
            PUT(task->state, "cancelled");
    }
}

static void release_runs(struct statement *s)
{
    result_columns(s, 1);
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        if (task != NULL && is_held_state(task) && releases(task, s->params[0])) {
            RESULT_ROW(s, "1");
            return;
        }
    }
}

static void block_later(struct statement *s)
{
    const struct row *from_row = find_task(s, s->params[1]);
    const struct task_row *from = from_row == NULL ? NULL : see(s, from_row);

    for (size_t i = 0; i < store_count(TABLE_TASKS) && from != NULL && !s->failed; i++) {
        const struct task_row *seen = see(s, store_row(TABLE_TASKS, i));
        if (seen == NULL || !is(seen->job_id, s->params[0]) || seen->ordinal <= from->ordinal ||
            !(is(seen->state, "cancelled") || is(seen->state, "failed")))
            continue;
        struct task_row *task = hold(s, store_row(TABLE_TASKS, i));
        if (task == NULL)
            continue;
        PUT(task->state, "blocked");
        task->cancel = false;
    }
}

static void clear_end(struct statement *s)
{
    struct row *row = find_job(s, s->params[0]);
    struct job_row *job = row == NULL ? NULL : hold(s, row);

    if (job == NULL)
        return;
    job->completed_us = 0;
    job->error = job->error_code = "";
    job->cancel_discard = false;
}

/* ---- job_store_apply.c ---- */

static void lock_job(struct statement *s)
{
    const struct row *task_row = find_task(s, s->params[0]);
    const struct task_row *task = task_row == NULL ? NULL : see(s, task_row);
    struct row *row = task == NULL ? NULL : find_job(s, task->job_id);
    const struct job_row *job = row == NULL ? NULL : hold(s, row);

    result_columns(s, 6); /* no rule of the simulator dooms a job */
    if (job != NULL)
        RESULT_ROW(s, job->id, job->status, number(job->max_attempts),
                   number(job->retry_initial_ms), number(job->retry_max_ms), "f");
}

/* What waits behind it is read as it is committed, without its lock. */
static bool is_last(const struct statement *s, const struct task_row *task)
{
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *other = see(s, store_row(TABLE_TASKS, i));
        if (other != NULL && task->job_id[0] != '\0' && is(other->job_id, task->job_id) &&
            other->ordinal > task->ordinal && is(other->state, "blocked"))
            return false;
    }
    return true;
}

static void lock_task(struct statement *s)
{
    struct row *row = find_task(s, s->params[0]);
    const struct task_row *t = row == NULL ? NULL : hold(s, row);

    result_columns(s, 19);
    if (t == NULL)
        return;
    RESULT_ROW(s, t->kind, t->provider, t->state, cell_bool(t->cancel), number(t->epoch),
               number(t->attempt), number(t->losses), number(t->progress_mark),
               number(t->bytes_done), number(t->lease_until_ms), number(t->not_before_ms), t->token,
               number(store_clock_ms()), cell_bool(is_last(s, t)), t->hook, cell_bool(t->may_fail),
               t->max_attempts, t->retry_initial_ms, t->retry_max_ms);
}

static void store_task(struct statement *s)
{
    struct row *row = find_task(s, s->params[0]);
    struct task_row *t = row == NULL ? NULL : hold(s, row);
    int64_t epoch = param_i64(s, 3);

    if (t == NULL || t->epoch != param_i64(s, 16)) {
        result_affected(s, 0);
        return;
    }
    PUT(t->state, s->params[1]);
    if (t->epoch != epoch)
        t->lines_stored = 0;
    t->epoch = epoch;
    t->attempt = param_i64(s, 4);
    t->losses = param_i64(s, 5);
    t->progress_mark = param_i64(s, 6);
    t->bytes_done = param_i64(s, 7);
    t->lease_until_ms = param_i64(s, 8);
    t->not_before_ms = param_i64(s, 9);
    t->cancel = param_bool(s, 10);
    if (param_bool(s, 17)) {
        t->token = NULL;
    } else if (s->params[10] != NULL) {
        t->token = keep(s->params[10]);
    }
    if (s->params[11] != NULL)
        PUT(t->worker, s->params[11]);
    if (s->params[12] != NULL)
        t->result = keep(s->params[12]);
    if (s->params[13] != NULL)
        t->error = keep(s->params[13]);
    if (s->params[14] != NULL)
        t->error_code = keep(s->params[14]);
    t->updated_ms = s->now_ms;
    result_affected(s, 1);
}

static void store_job(struct statement *s)
{
    struct row *row = find_job(s, s->params[0]);
    struct job_row *job = row == NULL ? NULL : hold(s, row);

    if (job == NULL)
        return;
    PUT(job->status, s->params[1]);
    if (s->params[2] != NULL)
        PUT(job->phase, s->params[2]);
    if (param_bool(s, 5) && job->started_us == 0)
        job->started_us = s->now_ms * TASK_MS;
    if (param_bool(s, 6))
        job->completed_us = s->now_ms * TASK_MS;
    if (s->params[7] != NULL)
        job->error = keep(s->params[7]);
    if (s->params[8] != NULL)
        job->error_code = keep(s->params[8]);
    if (s->params[9] != NULL)
        job->result = keep(s->params[9]);
}

static void insert_history(struct statement *s)
{
    struct event_row *event = insert(s, TABLE_EVENTS);

    PUT(event->job_id, s->params[0]);
    event->event = keep(s->params[1]);
    event->status = keep(s->params[2]);
}

/* ---- job_store_final.c ---- */

static void insert_export(struct statement *s)
{
    struct export_row *export;

    for (size_t i = 0; i < store_count(TABLE_EXPORTS); i++) {
        const struct export_row *old = see(s, store_row(TABLE_EXPORTS, i));
        if (old != NULL && is(old->id, s->params[0]))
            return;
    }
    export = insert(s, TABLE_EXPORTS);
    export->id = keep(s->params[0]);
    PUT(export->job_id, s->params[1]);
}

static void nothing(struct statement *s)
{
    result_columns(s, 1);
}

static void next_wait(struct statement *s)
{
    const struct task_row *best = NULL;

    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        if (task != NULL && is(task->job_id, s->params[0]) && is(task->state, "blocked") &&
            (best == NULL || task->ordinal < best->ordinal))
            best = task;
    }
    result_columns(s, 3);
    if (best != NULL)
        RESULT_ROW(s, best->id, best->wait == NULL ? "[]" : best->wait, number(s->now_ms));
}

static void queue_next(struct statement *s)
{
    struct row *row = sim_break == BREAK_NEXT ? NULL : find_task(s, s->params[0]);
    struct task_row *task = row == NULL ? NULL : hold(s, row);

    if (task == NULL)
        return;
    PUT(task->state, "queued");
    task->not_before_ms = param_i64(s, 2);
}

static void cancel_later(struct statement *s)
{
    for (size_t i = 0; i < store_count(TABLE_TASKS) && !s->failed; i++) {
        const struct task_row *seen = see(s, store_row(TABLE_TASKS, i));
        if (seen == NULL || !is(seen->job_id, s->params[0]) || !is(seen->state, "blocked"))
            continue;
        struct task_row *task = hold(s, store_row(TABLE_TASKS, i));
        if (task != NULL && is(task->state, "blocked"))
            PUT(task->state, "cancelled");
    }
}

static bool has_records(const struct statement *s, const char *task_id)
{
    for (size_t i = 0; i < store_count(TABLE_RECORDS); i++) {
        const struct record_row *record = see(s, store_row(TABLE_RECORDS, i));
        if (record != NULL && is(record->task_id, task_id))
            return true;
    }
    return false;
}

static void insert_release(struct statement *s)
{
    const struct row *old_row = find_task(s, s->params[0]);
    const struct task_row *old = old_row == NULL ? NULL : see(s, old_row);
    struct task_row copy;
    struct task_row *task;

    if (old == NULL || !is(old->kind, "export") || !has_records(s, old->id)) {
        result_affected(s, 0);
        return;
    }
    copy = *old;
    task = new_task(s);
    PUT(task->id, s->params[1]);
    PUT(task->kind, "release");
    PUT(task->task_class, "control");
    PUT(task->role, copy.role);
    PUT(task->provider_kind, copy.provider_kind);
    PUT(task->provider, copy.provider);
    task->spec = xasprintf("{\"task_id\": \"%s\", \"keep\": false}", copy.id);
    task->priority = 90;
    result_affected(s, 1);
}

static void copy_records(struct statement *s)
{
    size_t count = store_count(TABLE_RECORDS);

    for (size_t i = 0; i < count; i++) {
        const struct record_row *record = see(s, store_row(TABLE_RECORDS, i));
        if (record == NULL || !is(record->task_id, s->params[0]))
            continue;
        struct record_row *copy = insert(s, TABLE_RECORDS);
        PUT(copy->task_id, s->params[1]);
        copy->key = record->key;
        copy->value = record->value;
    }
}

static void load_end(struct statement *s)
{
    const struct row *row = find_job(s, s->params[0]);
    const struct job_row *job = row == NULL ? NULL : see(s, row);

    result_columns(s, 7);
    if (job == NULL)
        return;
    RESULT_ROW(s, job->vm_name, job->vm_path, job->provider, job->error,
               job->result == NULL ? "{}" : job->result,
               job->started_us == 0
                   ? NULL
                   : number(s->now_ms / TASK_MS - job->started_us / (TASK_MS * TASK_MS)),
               "unknown");
}

static void insert_outbox(struct statement *s)
{
    struct outbox_row *outbox = insert(s, TABLE_OUTBOX);

    outbox->event = keep(s->params[0]);
    PUT(outbox->job_id, s->params[1]);
}

static void add_totals(struct statement *s)
{
    struct total_row *total = insert(s, TABLE_TOTALS);

    total->batch = keep(s->params[0]);
}

const struct statement_model statements_jobs[] = {
    {"INSERT INTO jobs (id, name, kind", insert_job},
    {"INSERT INTO tasks (id, job_id, ordinal", insert_task},
    {"SELECT id, idempotency_hash = $3", find_key},
    {"SELECT t.id FROM tasks t WHERE t.job_id = $1 ORDER BY (t.state", current_task},
    {"SELECT 1 FROM jobs WHERE id = $1 AND deadline", nothing}, /* there are none */
    {"SELECT 1 FROM jobs WHERE id = $1", job_exists},
    {"UPDATE jobs SET cancel_reason = $2", set_cancel},
    {"UPDATE tasks SET state = 'cancelled', updated_at = now() WHERE kind = 'release'",
     drop_releases},
    {"SELECT 1 FROM tasks WHERE kind = 'release' AND state IN", release_runs},
    {"UPDATE tasks SET state = 'blocked'", block_later},
    {"UPDATE jobs SET completed_at = NULL", clear_end},
    {"UPDATE jobs SET pending_reason = ", nothing}, /* only shows why it waits */
    {"FROM jobs j WHERE j.id = (SELECT job_id FROM tasks", lock_job},
    {"SELECT kind, provider, state, cancel, epoch", lock_task},
    {"UPDATE tasks SET state = $2, epoch = $3", store_task},
    {"UPDATE jobs SET status = $2, phase", store_job},
    {"INSERT INTO job_events (job_id, event", insert_history},
    {"INSERT INTO exports (id, job_id", insert_export},
    {"INSERT INTO export_disks", nothing},
    {"UPDATE tasks SET volume = CASE WHEN kind = 'webhook'", nothing}, /* facts for the next */
    {"SELECT id, coalesce(wait, '[]'::jsonb)", next_wait},
    {"UPDATE tasks SET state = 'queued', not_before = to_timestamp($2", queue_next},
    {"UPDATE tasks SET state = 'cancelled', updated_at = now() WHERE job_id = $1", cancel_later},
    {"INSERT INTO tasks (id, kind, class, role, provider_kind, provider, volume, spec, priority, "
     "rank)",
     insert_release},
    {"INSERT INTO task_records (task_id, key, value) SELECT $2", copy_records},
    {"SELECT j.vm_name, j.vm_path, j.provider, j.error, coalesce(j.result", load_end},
    {"INSERT INTO outbox (event, job_id, payload)", insert_outbox},
    {"t.kind = 'export' AND t.spec->'cleanup' IS NOT NULL", nothing}, /* none is wished */
    {"INSERT INTO metric_totals AS m", add_totals},
    {0},
};
