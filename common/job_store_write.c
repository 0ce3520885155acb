/* The writing half of job_store_apply.c: what was decided of several jobs goes into the tables with
 * one statement for each kind of row. What few changes need (the next task, a clean-up) is written
 * one by one. Totals come last: all who end jobs wait for the same rows. What nobody waits for goes
 * to the server with what comes behind it. */
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/id.h"
#include "common/job_store_internal.h"
#include "common/json.h"
#include "common/webhook_event.h"

static const char STORE_TASKS[] =
    "UPDATE tasks t SET state = x.state, epoch = x.epoch, attempt = x.attempt, losses = x.losses,"
    " progress_mark = x.progress_mark, bytes_done = x.bytes_done,"
    " lease_until = to_timestamp(x.lease_until / 1000.0),"
    " not_before = to_timestamp(x.not_before / 1000.0), cancel = x.cancel,"
    " token = CASE WHEN x.drop_token THEN NULL ELSE coalesce(x.token, t.token) END,"
    " worker = coalesce(x.worker, t.worker),"
    " lines_stored = CASE WHEN t.epoch = x.epoch THEN greatest(t.lines_stored, x.lines_stored)"
    "  ELSE 0 END,"
    " result = coalesce(x.result, t.result), error = coalesce(x.error, t.error),"
    " error_code = coalesce(x.error_code, t.error_code), updated_at = now(),"
    " hold = CASE WHEN x.paused THEN 'paused' WHEN t.hold = 'paused' THEN CASE WHEN t.ordinal = 0"
    "  AND t.epoch = 0 AND EXISTS (SELECT 1 FROM job_dependencies d WHERE d.job_id = t.job_id)"
    "  THEN 'depends' ELSE '' END ELSE t.hold END"
    " FROM jsonb_to_recordset($1::jsonb) AS x(id text, old_epoch bigint, state text, epoch bigint,"
    " attempt int, losses int, progress_mark bigint, bytes_done bigint, lease_until bigint,"
    " not_before bigint, cancel boolean, drop_token boolean, token bytea, worker text,"
    " result jsonb, error text, error_code text, paused boolean,"
    " lines_stored bigint)"
    " WHERE t.id = x.id AND t.epoch = x.old_epoch";

static const char STORE_JOBS[] =
    "UPDATE jobs j SET status = x.status, phase = coalesce(x.phase, j.phase), attempt = x.attempt,"
    " started_at = CASE WHEN x.started THEN coalesce(j.started_at, now()) ELSE j.started_at END,"
    " completed_at = CASE WHEN x.final THEN now() ELSE j.completed_at END,"
    " worker_id = coalesce(x.worker, j.worker_id), error = coalesce(x.error, j.error),"
    " error_code = coalesce(x.error_code, j.error_code),"
    " result = CASE WHEN x.result IS NULL THEN j.result"
    "          ELSE coalesce(j.result, '{}'::jsonb) || x.result END,"
    " vm_name = coalesce(x.vm_name, j.vm_name), doomed = x.doomed,"
    /* what has begun goes on to its end */
    " window_at = CASE WHEN x.status = 'running' AND j.on_window_end = 'continue' THEN NULL"
    "             ELSE j.window_at END,"
    " pending_reason = CASE WHEN x.status IN ('pending', 'paused') THEN j.pending_reason"
    "                  ELSE '' END, updated_at = now()"
    " FROM jsonb_to_recordset($1::jsonb) AS x(id text, status text, phase text, attempt int,"
    " started boolean, final boolean, worker text, error text, error_code text, result jsonb,"
    " vm_name text, doomed boolean, tells text) WHERE j.id = x.id"
    " RETURNING j.id, j.vm_name, j.vm_path, j.provider, j.error, coalesce(j.result, '{}'::jsonb),"
    " extract(epoch FROM now() - j.started_at)::float8, CASE WHEN x.final THEN coalesce("
    "  (SELECT e.manifest->'vm'->>'os_hint' FROM exports e WHERE e.job_id = j.id"
    "   ORDER BY e.created_at DESC LIMIT 1), 'unknown') ELSE '' END,"
    " coalesce(j.schedule_id, ''), EXISTS (SELECT 1 FROM webhooks w WHERE " WEBHOOK_WANTS(
        "x.tells") ")";

static const char INSERT_HISTORY[] =
    "INSERT INTO job_events (job_id, event, status, phase, actor, detail)"
    " SELECT x.job_id, x.event, x.status, x.phase, x.actor, coalesce(x.detail, '{}'::jsonb)"
    " FROM jsonb_to_recordset($1::jsonb) AS x(job_id text, event text, status text, phase text,"
    " actor text, detail jsonb)";

static const char INSERT_OUTBOX[] =
    "INSERT INTO outbox (event, job_id, payload) SELECT x.event, x.job_id, x.payload"
    " FROM jsonb_to_recordset($1::jsonb) AS x(event text, job_id text, payload jsonb)";

int store_rows(struct db *db, const char *sql, const json_t *rows, PGresult **out,
               struct error *err)
{
    autofree char *text = NULL;

    if (json_array_size(rows) == 0)
        return 0;
    text = json_text(rows);
    if (out == NULL) /* nobody waits for its answer */
        return db_later(db, sql, DB_PARAMS(text), NULL, err);
    return db_exec(db, sql, DB_PARAMS(text), out, err);
}

/* *out comes with the next answer. */
static int later_written(struct db *db, const char *sql, struct json_rows *rows, PGresult **out,
                         struct error *err)
{
    const char *text = json_rows_end(rows);

    if (text == NULL)
        return error_set(err, ERR_LIMIT, "rows of over %zu bytes at a time", JSON_ROWS_BYTES_MAX);
    return rows->count == 0 ? 0 : db_later(db, sql, DB_PARAMS(text), out, err);
}

int store_written(struct db *db, const char *sql, struct json_rows *rows, PGresult **out,
                  struct error *err)
{
    if (later_written(db, sql, rows, out, err) < 0)
        return -1;
    return out == NULL || rows->count == 0 ? 0 : db_flush(db, err);
}

/* ---- tasks ---- */

/* A member that is not there: the column keeps what it has. */
static void add_task(const struct store_change *change, struct json_rows *rows)
{
    const struct job_store_event *event = &change->event;
    const struct job_machine *next = &change->decision.row;
    bool leased = next->task == TASK_LEASED || next->task == TASK_FINISHING;

    json_rows_next(rows);
    json_rows_text(rows, "id", change->row.task_id);
    json_rows_i64(rows, "old_epoch", (int64_t)change->row.machine.epoch);
    json_rows_text(rows, "state", task_state_name(next->task));
    json_rows_i64(rows, "epoch", (int64_t)next->epoch);
    json_rows_i64(rows, "attempt", next->attempt);
    json_rows_i64(rows, "losses", next->losses);
    json_rows_i64(rows, "progress_mark", (int64_t)next->progress_mark);
    json_rows_i64(rows, "bytes_done", (int64_t)next->bytes_done);
    if (leased && next->lease_until_ms != 0)
        json_rows_i64(rows, "lease_until", next->lease_until_ms);
    json_rows_i64(rows, "not_before", next->not_before_ms);
    json_rows_bool(rows, "cancel", next->task_cancel);
    json_rows_bool(rows, "drop_token", (change->decision.effects & JOB_EFFECT_DROP_TOKEN) != 0);
    if (event->new_token != NULL) {
        autofree char *token = db_bytea_text(event->new_token, TOKEN_BYTES);
        json_rows_text(rows, "token", token);
    }
    json_rows_text(rows, "worker", event->worker);
    json_rows_json(rows, "result", event->result);
    json_rows_text(rows, "error", event->error_message);
    json_rows_text(rows, "error_code", event->error_code);
    json_rows_bool(rows, "paused", next->job == JOB_PAUSED);
    json_rows_i64(rows, "lines_stored", (int64_t)event->lines_stored);
}

/* *out comes with the next answer. */
static int store_tasks(struct db *db, const struct store_change *changes, size_t count,
                       PGresult **out, struct error *err)
{
    auto_json_rows tasks;

    json_rows_init(&tasks);
    for (size_t i = 0; i < count; i++) {
        if (changes[i].decision.allowed)
            add_task(&changes[i], &tasks);
    }
    return later_written(db, STORE_TASKS, &tasks, out, err);
}

static int check_tasks(const struct store_change *changes, size_t count, const PGresult *stored,
                       struct error *err)
{
    size_t allowed = 0;

    for (size_t i = 0; i < count; i++)
        allowed += changes[i].decision.allowed;
    if (allowed > 0 && db_affected(stored) != allowed)
        return error_set(err, ERR_CONFLICT, "lost: the task changed meanwhile");
    return 0;
}

/* ---- jobs ---- */

/* What the job shows of a task's result: not what it carries for the catalogue's tables. */
static json_t *shown_result(const json_t *result)
{
    json_t *shown = json_copy(json_unconst(result));

    (void)json_object_del(shown, "export");
    (void)json_object_del(shown, "recalled");
    return shown;
}

/* Phases belong to running tasks. A failed job keeps the one that it died in. */
static const char *next_phase(const struct store_change *change)
{
    enum job_status next = change->decision.row.job;

    return next == JOB_RUNNING || next == JOB_CANCELLING || next == JOB_FAILED ? change->event.phase
                                                                               : "";
}

/* A verification that finds damage fails, and its result says what was found; a clean-up that
 * failed has removed what it names. */
static bool shows_result(const struct store_change *change)
{
    const char *kind = change->row.task_kind;

    if (change->event.result == NULL || change->row.hook[0] != '\0') /* hooks: one by one */
        return false;
    return change->decision.row.task == TASK_DONE ||
           (change->decision.row.task == TASK_FAILED &&
            (strcmp(kind, "verify") == 0 || strcmp(kind, "cleanup") == 0));
}

/* An error is shown only while it counts: not that of a hook which the job goes on without. */
static void add_job(const struct store_change *change, struct json_rows *rows)
{
    const struct job_store_event *event = &change->event;
    const struct job_decision *d = &change->decision;
    bool failed = event->error_message != NULL && d->row.job != JOB_CANCELLED &&
                  (d->row.task != TASK_FAILED || d->row.job == JOB_FAILED);
    bool clean = d->row.job == JOB_COMPLETED;

    json_rows_next(rows);
    json_rows_text(rows, "id", change->row.job_id);
    json_rows_text(rows, "status", job_status_name(d->row.job));
    json_rows_text(rows, "phase", next_phase(change));
    json_rows_i64(rows, "attempt", d->row.attempt);
    json_rows_bool(rows, "started", (d->effects & JOB_EFFECT_STARTED) != 0);
    json_rows_bool(rows, "final", (d->effects & JOB_EFFECT_FINAL) != 0);
    json_rows_text(rows, "worker", event->worker);
    json_rows_text(rows, "error", clean ? "" : (failed ? event->error_message : NULL));
    json_rows_text(rows, "error_code", clean ? "" : (failed ? event->error_code : NULL));
    if (shows_result(change)) {
        const char *vm_name = json_str(event->result, "vm_name");
        auto_json *shown = shown_result(event->result);
        json_rows_json(rows, "result", shown);
        json_rows_text(rows, "vm_name", vm_name[0] == '\0' ? NULL : vm_name);
    }
    json_rows_bool(rows, "doomed", d->row.doomed);
    json_rows_text(rows, "tells", (d->effects & JOB_EFFECT_OUTBOX) != 0 ? d->event : NULL);
}

/* Has the change anything to do with a job? */
static bool is_of_job(const struct store_change *change)
{
    return change->decision.allowed && change->row.job_id[0] != '\0';
}

static bool is_done(const struct store_change *change, const char *kind)
{
    return change->decision.row.task == TASK_DONE && strcmp(change->row.task_kind, kind) == 0;
}

static int store_jobs(struct db *db, const struct store_change *changes, size_t count,
                      PGresult **out, struct error *err)
{
    auto_json_rows jobs;

    json_rows_init(&jobs);
    for (size_t i = 0; i < count; i++) {
        if (is_of_job(&changes[i]))
            add_job(&changes[i], &jobs);
    }
    return store_written(db, STORE_JOBS, &jobs, out, err);
}

/* The job's row among those that STORE_JOBS gave. */
static int stored_row(const PGresult *stored, const struct store_change *change)
{
    int i = 0;

    while (i < PQntuples(stored) && strcmp(db_text(stored, i, 0), change->row.job_id) != 0)
        i++;
    assert(i < PQntuples(stored)); /* its lock is ours */
    return i;
}

/* ---- history ---- */

/* Whose end or start it is, when that is a hook's. */
static void add_hook(const struct store_change *change, json_t *detail)
{
    json_t *script = json_object_get(change->event.result, "script");

    if (change->row.hook[0] == '\0')
        return;
    json_set_text(detail, "hook", change->row.hook);
    json_set_text(detail, "task", change->row.task_kind);
    if (json_object_get(script, "exit_status") != NULL)
        (void)json_object_set(detail, "exit_status", json_object_get(script, "exit_status"));
}

void store_add_history(const struct store_line *line, struct json_rows *rows)
{
    json_rows_next(rows);
    json_rows_text(rows, "job_id", line->job_id);
    json_rows_text(rows, "event", line->event);
    json_rows_text(rows, "status", line->status);
    json_rows_text(rows, "phase", line->phase);
    json_rows_text(rows, "actor", line->actor == NULL ? "" : line->actor);
    json_rows_json(rows, "detail", line->detail);
}

int store_history_rows(struct db *db, struct json_rows *rows, struct error *err)
{
    return store_written(db, INSERT_HISTORY, rows, NULL, err);
}

int store_history(struct db *db, const struct store_line *line, struct error *err)
{
    auto_json_rows rows;

    json_rows_init(&rows);
    store_add_history(line, &rows);
    return store_history_rows(db, &rows, err);
}

static void set_known(json_t *detail, const char *key, const char *text)
{
    if (text != NULL)
        json_set_text(detail, key, text);
}

static void add_event(const struct store_change *change, struct json_rows *rows)
{
    const struct job_store_event *event = &change->event;
    auto_json *detail = json_object();

    set_known(detail, "error", event->error_message);
    if (event->error_message != NULL)
        set_known(detail, "error_code", event->error_code);
    set_known(detail, "worker", event->worker);
    set_known(detail, "reason", event->detail);
    add_hook(change, detail);
    store_add_history(&(struct store_line){.job_id = change->row.job_id,
                                           .event = change->decision.event,
                                           .status = job_status_name(change->decision.row.job),
                                           .phase = event->phase == NULL ? "" : event->phase,
                                           .actor = event->actor,
                                           .detail = detail},
                      rows);
}

/* Steps of an export that it went on without are hooks that failed, though they are no tasks. */
static void add_failed_steps(const struct store_change *change, struct json_rows *events)
{
    const json_t *step;
    size_t i;

    if (!is_done(change, "export"))
        return;
    json_array_foreach(json_object_get(change->event.result, "hooks_failed"), i, step)
    {
        auto_json *detail = json_object();
        json_set_text(detail, "hook", json_str(step, "when"));
        json_set_text(detail, "task", json_str(step, "type"));
        json_set_text(detail, "error", json_str(step, "error"));
        json_set_text(detail, "error_code", json_str(step, "error_code"));
        store_add_history(&(struct store_line){.job_id = change->row.job_id,
                                               .event = "job.hook_failed",
                                               .status = job_status_name(JOB_RUNNING),
                                               .phase = "",
                                               .detail = detail},
                          events);
    }
}

static int store_events(struct db *db, const struct store_change *changes, size_t count,
                        struct error *err)
{
    auto_json_rows events;

    json_rows_init(&events);
    for (size_t i = 0; i < count; i++) {
        if (is_of_job(&changes[i]))
            add_failed_steps(&changes[i], &events);
        if (is_of_job(&changes[i]) && (changes[i].decision.effects & JOB_EFFECT_HISTORY) != 0)
            add_event(&changes[i], &events);
    }
    return store_history_rows(db, &events, err);
}

/* ---- effects ---- */

static int store_exports(struct db *db, const struct store_change *changes, size_t count,
                         struct metric_batch *totals, struct error *err)
{
    auto_json_rows exports;
    auto_json_rows disks;

    json_rows_init(&exports);
    json_rows_init(&disks);
    for (size_t i = 0; i < count; i++) {
        if (is_of_job(&changes[i]) && is_done(&changes[i], "export") &&
            store_export_rows(&changes[i], &exports, &disks, totals, err) < 0)
            return -1;
    }
    if (store_written(db, store_insert_exports, &exports, NULL, err) < 0)
        return -1;
    return store_written(db, store_insert_disks, &disks, NULL, err);
}

/* The tasks behind this one. */
static int store_later(struct db *db, const struct store_change *change, struct error *err)
{
    const struct store_row *row = &change->row;
    const json_t *result = change->event.result;
    unsigned int effects = change->decision.effects;

    if (row->machine.last_task)
        return 0;
    if (is_done(change, "export") && store_next_spec(db, row, result, err) < 0)
        return -1;
    if (is_done(change, "convert") && store_converted(db, row, result, err) < 0)
        return -1;
    if ((effects & JOB_EFFECT_RELEASE_NEXT) != 0 && store_release_next(db, row, err) < 0)
        return -1;
    return (effects & JOB_EFFECT_FINAL) != 0 ? store_cancel_later(db, row, err) : 0;
}

/* What only some changes have. */
static int store_own_effects(struct db *db, const struct store_change *change, struct error *err)
{
    const struct store_row *row = &change->row;
    const json_t *result = change->event.result;
    unsigned int effects = change->decision.effects;
    bool pending = json_is_true(json_object_get(result, "release_pending"));

    if (row->job_id[0] == '\0') /* of a control task only what it left outside matters */
        return (effects & JOB_EFFECT_CLEAN) != 0 ? store_release_task(db, row, err) : 0;
    if (strcmp(row->task_kind, "cleanup") == 0 && result != NULL &&
        store_cleanup(db, result, err) < 0)
        return -1;
    if ((is_done(change, "prune") || is_done(change, "flatten")) &&
        store_points(db, result, err) < 0)
        return -1;
    if (((effects & JOB_EFFECT_CLEAN) != 0 || pending) && store_release_task(db, row, err) < 0)
        return -1;
    if (row->cleans_up && (effects & JOB_EFFECT_FINAL) != 0 &&
        change->decision.row.job == JOB_COMPLETED && store_submit_cleanup(db, row, err) < 0)
        return -1;
    return store_later(db, change, err);
}

static int store_outbox(struct db *db, const struct store_change *changes, size_t count,
                        const PGresult *stored, struct metric_batch *totals, struct error *err)
{
    auto_json *outbox = json_array();

    for (size_t i = 0; i < count; i++) {
        if (!is_of_job(&changes[i]))
            continue;
        int at = stored_row(stored, &changes[i]);
        store_add_totals(&changes[i], stored, at, totals);
        if (db_bool(stored, at, 9)) /* else no webhook wants it */
            (void)json_array_append_new(outbox, store_outbox_row(&changes[i], stored, at));
    }
    return store_rows(db, INSERT_OUTBOX, outbox, NULL, err);
}

int store_changes(struct db *db, const struct store_change *changes, size_t count,
                  struct error *err)
{
    auto_metric_batch totals = {0};
    auto_pgresult *tasks = NULL;
    auto_pgresult *stored = NULL;

    metric_batch_init(&totals);
    if (store_tasks(db, changes, count, &tasks, err) < 0 ||
        store_exports(db, changes, count, &totals, err) < 0 ||
        store_events(db, changes, count, err) < 0 ||
        store_jobs(db, changes, count, &stored, err) < 0 || db_flush(db, err) < 0 ||
        check_tasks(changes, count, tasks, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (changes[i].decision.allowed && store_own_effects(db, &changes[i], err) < 0)
            return -1;
    }
    if (store_outbox(db, changes, count, stored, &totals, err) < 0)
        return -1;
    return metric_batch_store(db, &totals, err);
}
