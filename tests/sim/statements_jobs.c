/* Models of the statements of common/job_store*.c. Columns and conditions as in the SQL there;
 * what only shows (phases, names of workers, metrics' labels) is left out. */
#include <string.h>
#include <time.h>

#include "common/autos.h"
#include "common/json.h"
#include "tests/sim/store.h"

#define TASK_MS 1000 /* of a microsecond stamp */

static const char *cell(const char *text)
{
    return text == NULL ? "" : text;
}

static const char *cell_bool(bool value)
{
    return value ? "t" : "f";
}

struct row *find_job(const struct statement *s, const char *id)
{
    for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
        const struct job_row *job = see(s, store_row(TABLE_JOBS, i));
        if (job != NULL && is(job->id, id))
            return store_row(TABLE_JOBS, i);
    }
    return NULL;
}

struct row *find_task(const struct statement *s, const char *id)
{
    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        if (task != NULL && is(task->id, id))
            return store_row(TABLE_TASKS, i);
    }
    return NULL;
}

/* ---- rows of JSON ---- */

/* NULL: it is not there; a column that is changed then keeps what it has. */
static const char *text_of(const json_t *row, const char *key)
{
    return json_string_value(json_object_get(row, key));
}

static int64_t int_of(const json_t *row, const char *key)
{
    return json_integer_value(json_object_get(row, key));
}

static bool bool_of(const json_t *row, const char *key)
{
    return json_is_true(json_object_get(row, key));
}

static const char *json_kept(const json_t *value)
{
    autofree char *text = json_text(value);

    return keep(text);
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

/* "2026-03-01T02:00:00Z"; NULL: 0. */
static int64_t time_ms(const char *text)
{
    struct tm tm = {0};

    if (text == NULL)
        return 0;
    if (strptime(text, "%Y-%m-%dT%H:%M:%S", &tm) == NULL)
        sim_fail("no time: %s", text);
    return (int64_t)timegm(&tm) * 1000;
}

static void insert_job(struct statement *s, const json_t *x)
{
    static int64_t seq;
    struct job_row *job = insert(s, TABLE_JOBS);

    PUT(job->id, text_of(x, "id"));
    PUT(job->kind, text_of(x, "kind"));
    PUT(job->provider, text_of(x, "provider"));
    job->seq = ++seq;
    job->vm_path = keep(text_of(x, "vm_path"));
    job->vm_name = keep(text_of(x, "vm_name"));
    job->output_path = keep(text_of(x, "output_path"));
    job->priority = int_of(x, "priority");
    job->max_attempts = int_of(x, "max_attempts");
    job->retry_initial_ms = int_of(x, "retry_initial_ms");
    job->retry_max_ms = int_of(x, "retry_max_ms");
    job->submitted_by = keep(text_of(x, "submitted_by"));
    job->trace_id = keep(text_of(x, "trace_id"));
    job->key = keep(text_of(x, "key"));
    job->hash = keep(text_of(x, "hash"));
    job->schedule_id = keep(text_of(x, "schedule_id"));
    job->workflow_run_id = keep(text_of(x, "workflow_run_id"));
    job->deadline_ms = time_ms(text_of(x, "deadline"));
    if (json_object_get(x, "time_windows") != NULL)
        job->windows = json_kept(json_object_get(x, "time_windows"));
    PUT(job->on_window_end, text_of(x, "on_window_end"));
    job->window_open = job->windows == NULL;
    job->window_at_ms = job->windows == NULL ? 0 : s->now_ms;
    job->error = job->error_code = "";
    PUT(job->status, "pending");
    RESULT_ROW(s, text_of(x, "id"), text_of(x, "key"));
}

static void insert_jobs(struct statement *s)
{
    auto_json *rows = json_loads(s->params[0], 0, NULL);
    json_t *x;
    size_t i;

    result_columns(s, 2);
    json_array_foreach(rows, i, x)
    {
        if (!is_taken(s, text_of(x, "id"), text_of(x, "submitted_by"), text_of(x, "key")))
            insert_job(s, x);
    }
}

struct task_row *new_task(struct statement *s)
{
    static int64_t seq;
    struct task_row *task = insert(s, TABLE_TASKS);

    task->seq = ++seq;
    task->error = task->error_code = "";
    task->not_before_ms = task->updated_ms = task->created_ms = s->now_ms;
    PUT(task->state, "queued");
    return task;
}

static const char *number_of(const json_t *x, const char *key)
{
    return json_object_get(x, key) == NULL ? NULL : keep(number(int_of(x, key)));
}

static void insert_tasks(struct statement *s)
{
    auto_json *rows = json_loads(s->params[0], 0, NULL);
    json_t *x;
    size_t i;

    json_array_foreach(rows, i, x)
    {
        struct task_row *task = new_task(s);
        PUT(task->id, text_of(x, "id"));
        PUT(task->job_id, text_of(x, "job_id"));
        task->ordinal = int_of(x, "ordinal");
        PUT(task->kind, text_of(x, "kind"));
        PUT(task->task_class, "transfer");
        PUT(task->role, text_of(x, "role"));
        PUT(task->provider_kind, text_of(x, "provider_kind"));
        PUT(task->provider, text_of(x, "provider"));
        task->spec = json_kept(json_object_get(x, "spec"));
        task->priority = int_of(x, "priority");
        PUT(task->state, text_of(x, "state"));
        PUT(task->volume, text_of(x, "volume"));
        PUT(task->hook, text_of(x, "hook"));
        task->may_fail = bool_of(x, "may_fail");
        task->max_attempts = number_of(x, "max_attempts");
        task->retry_initial_ms = number_of(x, "retry_initial_ms");
        task->retry_max_ms = number_of(x, "retry_max_ms");
        if (json_object_get(x, "wait") != NULL)
            task->wait = json_kept(json_object_get(x, "wait"));
        if (json_object_get(x, "not_before") != NULL)
            task->not_before_ms = int_of(x, "not_before");
        PUT(task->queue_group, text_of(x, "queue_group"));
        task->queue_limit = int_of(x, "queue_limit");
        PUT(task->hold, text_of(x, "hold"));
    }
}

static void find_keys(struct statement *s)
{
    auto_json *rows = json_loads(s->params[0], 0, NULL);
    json_t *x;
    size_t n;

    result_columns(s, 3);
    json_array_foreach(rows, n, x)
    {
        for (size_t i = 0; i < store_count(TABLE_JOBS); i++) {
            const struct job_row *job = see(s, store_row(TABLE_JOBS, i));
            if (job != NULL && job->key != NULL && is(job->key, text_of(x, "key")) &&
                is(job->submitted_by, text_of(x, "submitted_by")))
                RESULT_ROW(s, number(int_of(x, "n")), job->id,
                           cell_bool(is(cell(job->hash), cell(text_of(x, "hash")))));
        }
    }
}

/* ---- wishes of users ---- */

static bool is_over(const struct task_row *task)
{
    return is(task->state, "done") || (is(task->state, "failed") && task->may_fail);
}

const struct task_row *find_current_task(const struct statement *s, const char *job_id)
{
    const struct task_row *best = NULL;

    for (size_t i = 0; i < store_count(TABLE_TASKS); i++) {
        const struct task_row *task = see(s, store_row(TABLE_TASKS, i));
        if (task == NULL || !is(task->job_id, job_id))
            continue;
        bool done = is_over(task);
        bool best_done = best != NULL && is_over(best);
        if (best == NULL || (best_done && !done) ||
            (best_done == done && task->ordinal < best->ordinal))
            best = task;
    }
    return best;
}

static void current_task(struct statement *s)
{
    const struct task_row *task = find_current_task(s, s->params[0]);

    result_columns(s, 1);
    if (task != NULL)
        RESULT_ROW(s, task->id);
}

static void lock_job(struct statement *s)
{
    struct row *row = find_job(s, s->params[0]);
    const struct job_row *job = row == NULL ? NULL : hold(s, row);

    result_columns(s, 1);
    if (job != NULL)
        RESULT_ROW(s, cell_bool(job->deadline_ms != 0 && job->deadline_ms < s->now_ms));
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

    if (job != NULL &&
        (is(job->status, "pending") || is(job->status, "running") || is(job->status, "paused")))
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

static void lock_releases(struct statement *s)
{
    result_columns(s, 1);
    for (size_t i = 0; i < store_count(TABLE_TASKS) && !s->failed; i++) {
        const struct task_row *seen = see(s, store_row(TABLE_TASKS, i));
        if (seen == NULL || !(is(seen->state, "queued") || is_held_state(seen)) ||
            !releases(seen, s->params[0]))
            continue;
        const struct task_row *task = hold(s, store_row(TABLE_TASKS, i));
        if (task != NULL && (is(task->state, "queued") || is_held_state(task)))
            RESULT_ROW(s, task->state);
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
    job->window_open = job->windows == NULL;
    job->window_at_ms = job->windows == NULL ? 0 : s->now_ms;
}

/* ---- job_store_apply.c ---- */

/* In the order of the jobs' ids, as the product locks them. */
static void lock_jobs(struct statement *s)
{
    auto_json *ids = json_loads(s->params[0], 0, NULL);
    const char *after = "";

    result_columns(s, 7);
    for (;;) {
        const struct task_row *next = NULL;
        for (size_t i = 0; i < json_array_size(ids); i++) {
            const struct row *row = find_task(s, json_string_value(json_array_get(ids, i)));
            const struct task_row *task = row == NULL ? NULL : see(s, row);
            if (task != NULL && strcmp(task->job_id, after) > 0 &&
                (next == NULL || strcmp(task->job_id, next->job_id) < 0))
                next = task;
        }
        if (next == NULL)
            return;
        after = keep(next->job_id);
        const char *task_id = keep(next->id);
        struct row *row = find_job(s, after);
        const struct job_row *job = row == NULL ? NULL : hold(s, row);
        if (s->failed)
            return;
        if (job != NULL)
            RESULT_ROW(s, task_id, job->id, job->status, number(job->max_attempts),
                       number(job->retry_initial_ms), number(job->retry_max_ms),
                       cell_bool(job->doomed));
    }
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

static void lock_tasks(struct statement *s)
{
    auto_json *ids = json_loads(s->params[0], 0, NULL);
    json_t *id;
    size_t i;

    result_columns(s, 21);
    json_array_foreach(ids, i, id)
    {
        struct row *row = find_task(s, json_string_value(id));
        const struct task_row *t = row == NULL ? NULL : hold(s, row);
        if (s->failed)
            return;
        if (t == NULL)
            continue;
        RESULT_ROW(s, t->kind, t->provider, t->state, cell_bool(t->cancel), number(t->epoch),
                   number(t->attempt), number(t->losses), number(t->progress_mark),
                   number(t->bytes_done), number(t->lease_until_ms), number(t->not_before_ms),
                   t->token, number(store_clock_ms()), cell_bool(is_last(s, t)), t->hook,
                   cell_bool(t->may_fail), t->max_attempts, t->retry_initial_ms, t->retry_max_ms,
                   t->id, "f"); /* no clean-up is wished */
    }
}

/* Looks at the epoch that it had. */
static void change_hold(const struct statement *s, struct task_row *t, bool paused)
{
    if (paused) {
        PUT(t->hold, "paused");
    } else if (is(t->hold, "paused")) {
        PUT(t->hold,
            t->ordinal == 0 && t->epoch == 0 && has_dependencies(s, t->job_id) ? "depends" : "");
    }
}

static void change_task(struct task_row *t, const json_t *x, int64_t now_ms)
{
    PUT(t->state, text_of(x, "state"));
    if (t->epoch != int_of(x, "epoch"))
        t->lines_stored = 0;
    if (t->epoch == int_of(x, "epoch") && int_of(x, "lines_stored") > t->lines_stored)
        t->lines_stored = int_of(x, "lines_stored");
    t->epoch = int_of(x, "epoch");
    t->attempt = int_of(x, "attempt");
    t->losses = int_of(x, "losses");
    t->progress_mark = int_of(x, "progress_mark");
    t->bytes_done = int_of(x, "bytes_done");
    t->lease_until_ms = int_of(x, "lease_until");
    t->not_before_ms = int_of(x, "not_before");
    t->cancel = bool_of(x, "cancel");
    if (bool_of(x, "drop_token")) {
        t->token = NULL;
    } else if (text_of(x, "token") != NULL) {
        t->token = keep(text_of(x, "token"));
    }
    if (text_of(x, "worker") != NULL)
        PUT(t->worker, text_of(x, "worker"));
    if (json_object_get(x, "result") != NULL)
        t->result = json_kept(json_object_get(x, "result"));
    if (text_of(x, "error") != NULL)
        t->error = keep(text_of(x, "error"));
    if (text_of(x, "error_code") != NULL)
        t->error_code = keep(text_of(x, "error_code"));
    t->updated_ms = now_ms;
}

static void store_tasks(struct statement *s)
{
    auto_json *rows = json_loads(s->params[0], 0, NULL);
    int stored = 0;
    json_t *x;
    size_t i;

    json_array_foreach(rows, i, x)
    {
        struct row *row = find_task(s, text_of(x, "id"));
        struct task_row *t = row == NULL ? NULL : hold(s, row);
        if (t == NULL || t->epoch != int_of(x, "old_epoch"))
            continue;
        change_hold(s, t, bool_of(x, "paused"));
        change_task(t, x, s->now_ms);
        stored++;
    }
    result_affected(s, stored);
}

static void change_job(struct job_row *job, const json_t *x, int64_t now_ms)
{
    PUT(job->status, text_of(x, "status"));
    if (text_of(x, "phase") != NULL)
        PUT(job->phase, text_of(x, "phase"));
    if (bool_of(x, "started") && job->started_us == 0)
        job->started_us = now_ms * TASK_MS;
    if (bool_of(x, "final"))
        job->completed_us = now_ms * TASK_MS;
    if (text_of(x, "error") != NULL)
        job->error = keep(text_of(x, "error"));
    if (text_of(x, "error_code") != NULL)
        job->error_code = keep(text_of(x, "error_code"));
    if (json_object_get(x, "result") != NULL)
        job->result = json_kept(json_object_get(x, "result"));
    job->doomed = bool_of(x, "doomed");
    if (is(job->status, "running") && is(job->on_window_end, "continue"))
        job->window_at_ms = 0;
}

static void store_jobs(struct statement *s)
{
    auto_json *rows = json_loads(s->params[0], 0, NULL);
    json_t *x;
    size_t i;

    result_columns(s, 10);
    json_array_foreach(rows, i, x)
    {
        struct row *row = find_job(s, text_of(x, "id"));
        struct job_row *job = row == NULL ? NULL : hold(s, row);
        if (job == NULL)
            continue;
        change_job(job, x, s->now_ms);
        RESULT_ROW(s, job->id, job->vm_name, job->vm_path, job->provider, job->error,
                   job->result == NULL ? "{}" : job->result,
                   job->started_us == 0
                       ? NULL
                       : number(s->now_ms / TASK_MS - job->started_us / (TASK_MS * TASK_MS)),
                   "unknown", job->schedule_id == NULL ? "" : job->schedule_id,
                   text_of(x, "tells") == NULL ? "f" : "t"); /* a webhook wants all */
    }
}

static void insert_history(struct statement *s)
{
    auto_json *rows = json_loads(s->params[0], 0, NULL);
    json_t *x;
    size_t i;

    json_array_foreach(rows, i, x)
    {
        struct event_row *event = insert(s, TABLE_EVENTS);
        PUT(event->job_id, text_of(x, "job_id"));
        event->event = keep(text_of(x, "event"));
        event->status = keep(text_of(x, "status"));
        event->at_ms = s->now_ms;
    }
}

/* ---- job_store_final.c ---- */

static bool has_export(const struct statement *s, const char *id)
{
    for (size_t i = 0; i < store_count(TABLE_EXPORTS); i++) {
        const struct export_row *old = see(s, store_row(TABLE_EXPORTS, i));
        if (old != NULL && is(old->id, id))
            return true;
    }
    return false;
}

static void insert_exports(struct statement *s)
{
    auto_json *rows = json_loads(s->params[0], 0, NULL);
    json_t *x;
    size_t i;

    json_array_foreach(rows, i, x)
    {
        struct export_row *export;
        if (has_export(s, text_of(x, "id")))
            continue;
        export = insert(s, TABLE_EXPORTS);
        export->id = keep(text_of(x, "id"));
        PUT(export->job_id, text_of(x, "job_id"));
    }
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
    const struct row *job_row = find_job(s, task->job_id);
    const struct job_row *job = job_row == NULL ? NULL : see(s, job_row);
    PUT(task->state, "queued");
    PUT(task->hold, job != NULL && is(job->status, "paused") ? "paused" : "");
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

static void insert_outbox(struct statement *s)
{
    auto_json *rows = json_loads(s->params[0], 0, NULL);
    json_t *x;
    size_t i;

    json_array_foreach(rows, i, x)
    {
        struct outbox_row *outbox = insert(s, TABLE_OUTBOX);
        outbox->event = keep(text_of(x, "event"));
        PUT(outbox->job_id, text_of(x, "job_id"));
    }
}

static void add_totals(struct statement *s)
{
    struct total_row *total = insert(s, TABLE_TOTALS);

    total->batch = keep(s->params[0]);
}

const struct statement_model statements_jobs[] = {
    {"INSERT INTO jobs (id, name, kind", insert_jobs},
    {"INSERT INTO tasks (id, job_id, ordinal", insert_tasks},
    {"SELECT x.n, j.id, j.idempotency_hash = x.hash", find_keys},
    {"SELECT t.id FROM tasks t WHERE t.job_id = $1 ORDER BY (t.state", current_task},
    {"SELECT coalesce(deadline < now(), false) FROM jobs", lock_job},
    {"SELECT 1 FROM jobs WHERE id = $1", job_exists},
    {"UPDATE jobs SET cancel_reason = $2", set_cancel},
    {"UPDATE tasks SET state = 'cancelled', updated_at = now() WHERE kind = 'release'",
     drop_releases},
    {"SELECT state FROM tasks WHERE kind = 'release' AND state IN", lock_releases},
    {"UPDATE tasks SET state = 'blocked'", block_later},
    {"UPDATE jobs SET completed_at = NULL", clear_end},
    {"UPDATE jobs SET pending_reason = ", nothing}, /* only shows why it waits */
    {"FROM jobs j JOIN tasks t ON t.job_id = j.id WHERE t.id = ANY", lock_jobs},
    {"SELECT kind, provider, state, cancel, epoch", lock_tasks},
    {"UPDATE tasks t SET state = x.state, epoch", store_tasks},
    {"UPDATE jobs j SET status = x.status, phase", store_jobs},
    {"INSERT INTO job_events (job_id, event", insert_history},
    {"INSERT INTO exports (id, job_id", insert_exports},
    {"INSERT INTO export_disks", nothing},
    {"UPDATE tasks SET volume = CASE WHEN kind = 'webhook'", nothing}, /* facts for the next */
    {"SELECT id, coalesce(wait, '[]'::jsonb)", next_wait},
    {"UPDATE tasks SET state = 'queued', not_before = to_timestamp($2", queue_next},
    {"UPDATE tasks SET state = 'cancelled', updated_at = now() WHERE job_id = $1", cancel_later},
    {"INSERT INTO tasks (id, kind, class, role, provider_kind, provider, volume, spec, priority, "
     "rank)",
     insert_release},
    {"INSERT INTO task_records (task_id, key, value) SELECT $2", copy_records},
    {"INSERT INTO outbox (event, job_id, payload)", insert_outbox},
    {"t.kind = 'export' AND t.spec->'cleanup' IS NOT NULL", nothing}, /* none is wished */
    {"INSERT INTO metric_totals AS m", add_totals},
    {0},
};
