/* See job_store.h: submitting, cancelling, trying again, live events. job_store_apply.c has the
 * way of a state into the tables, job_store_final.c what an end leaves behind. */
#include "common/job_store.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/id.h"
#include "common/job_store_internal.h"
#include "common/json.h"
#include "common/paths.h"

static const char INSERT_JOB[] =
    "INSERT INTO jobs (id, name, kind, provider, vm_path, vm_name, output_path, format, definition,"
    " priority, max_attempts, retry_initial_ms, retry_max_ms, submitted_by, trace_id,"
    " idempotency_key, idempotency_hash, schedule_id, policy_id, workflow_run_id,"
    " deadline, time_windows, on_window_end, window_open, window_at)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::jsonb, $10::int, $11::int, $12::bigint,"
    " $13::bigint, $14, $15, $16, $17::bytea, $18, $19, $20, $21::timestamptz, $22::jsonb, $23,"
    " $22 IS NULL, CASE WHEN $22 IS NOT NULL THEN now() END) ON CONFLICT DO NOTHING RETURNING id";

static const char INSERT_TASK[] =
    "INSERT INTO tasks (id, job_id, ordinal, kind, class, role, provider_kind, provider, spec,"
    " priority, state, volume, hook, may_fail, max_attempts, retry_initial_ms, retry_max_ms, wait,"
    " not_before, rank, source_host, queue_group, queue_limit, hold)"
    " SELECT $1, $2, $3::int, $4, 'transfer', $5, $6, $7, $8::jsonb, $9::int, $10, $11, $12,"
    " $13::boolean, $14::int, $15::bigint, $16::bigint, $17::jsonb,"
    " coalesce(to_timestamp($18::bigint / 1000.0), now()), queue_rank(now(), $9::int),"
    " coalesce((SELECT min(v.vm->>'host') FROM inventory_vms v"
    "  JOIN inventory_state s ON s.provider = v.provider AND s.generation = v.generation"
    "  WHERE v.provider = $7 AND $4 = 'export' AND (v.path = $19 OR v.id = $19 OR v.name = $19)"
    "  HAVING count(*) = 1), ''), $20, $21::int, $22";

/* Each must exist, so there are no cycles. */
static const char UNKNOWN_JOBS[] =
    "SELECT x->>'job_id' FROM jsonb_array_elements($1::jsonb) x WHERE NOT EXISTS (SELECT 1 FROM "
    "jobs"
    " o WHERE o.id = x->>'job_id' AND o.id <> $2) AND NOT EXISTS (SELECT 1 FROM archived_jobs o"
    " WHERE o.id = x->>'job_id') LIMIT 1";

static const char INSERT_DEPENDENCIES[] =
    "INSERT INTO job_dependencies (job_id, on_job, required, timeout_at)"
    " SELECT $2, x->>'job_id', x->>'required_state', now() + (x->>'timeout_ms')::bigint *"
    " interval '1 millisecond' FROM jsonb_array_elements($1::jsonb) x ON CONFLICT DO NOTHING";

static const char FIND_KEY[] = "SELECT id, idempotency_hash = $3::bytea FROM jobs"
                               " WHERE submitted_by = $1 AND idempotency_key = $2";

/* The task that a user's wish is about: the first that is not over. */
static const char CURRENT_TASK[] =
    "SELECT t.id FROM tasks t WHERE t.job_id = $1 ORDER BY (t.state = 'done' OR (t.state = 'failed'"
    " AND t.may_fail)), t.ordinal LIMIT 1";

static const char JOB_EXISTS[] = "SELECT 1 FROM jobs WHERE id = $1";

static const char SET_CANCEL[] = "UPDATE jobs SET cancel_reason = $2, cancel_discard = $3::boolean"
                                 " WHERE id = $1";

/* A release of the old attempt must not take the new attempt's snapshot away. */
static const char DROP_RELEASES[] =
    "UPDATE tasks SET state = 'cancelled', updated_at = now() WHERE kind = 'release'"
    " AND state = 'queued' AND spec->>'task_id' = $1";

static const char RELEASE_RUNS[] =
    "SELECT 1 FROM tasks WHERE kind = 'release' AND state IN ('leased', 'finishing')"
    " AND spec->>'task_id' = $1 LIMIT 1";

static const char BLOCK_LATER[] =
    "UPDATE tasks SET state = 'blocked', cancel = false, updated_at = now()"
    " WHERE job_id = $1 AND state IN ('cancelled', 'failed')"
    " AND ordinal > (SELECT ordinal FROM tasks WHERE id = $2)";

static const char CLEAR_END[] =
    "UPDATE jobs SET completed_at = NULL, error = '', error_code = '', cancel_reason = '',"
    " cancel_discard = false, pending_reason = '', window_open = time_windows IS NULL, window_at ="
    " CASE WHEN time_windows IS NOT NULL THEN now() END WHERE id = $1";

static const char EVENTS[] =
    "SELECT e.id, e.event, e.status, e.phase, j.id, j.vm_name, j.provider, j.error, j.progress,"
    " to_char(e.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), e.actor, e.detail"
    " FROM job_events e JOIN jobs j ON j.id = e.job_id WHERE e.id > $1::bigint"
    " ORDER BY e.id LIMIT $2::int";

static const char EVENTS_UNPUBLISHED[] =
    "SELECT e.id, e.event, e.status, e.phase, j.id, j.vm_name, j.provider, j.error, j.progress,"
    " to_char(e.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), e.actor, e.detail"
    " FROM job_events e JOIN jobs j ON j.id = e.job_id WHERE NOT e.published AND e.id > $1::bigint"
    " ORDER BY e.id LIMIT $2::int";

int store_begin(struct db *db, bool *out_own, struct error *err)
{
    *out_own = !db_in_transaction(db);
    return *out_own ? db_begin(db, err) : 0;
}

int store_end(struct db *db, bool own, int rc, struct error *err)
{
    if (!own)
        return rc;
    if (rc == 0)
        return db_commit(db, err);
    db_rollback(db);
    return rc;
}

/* ---- submit ---- */

int64_t store_wait_end(const json_t *wait, int64_t now_ms)
{
    const json_t *step;
    size_t i;

    json_array_foreach(wait, i, step)
    {
        json_int_t until_ms = json_integer_value(json_object_get(step, "until_ms"));
        now_ms += json_integer_value(json_object_get(step, "ms"));
        if (until_ms > now_ms)
            now_ms = until_ms;
    }
    return now_ms;
}

/* The scheduler lets go what need not wait. */
static const char *first_hold(const struct job_submission *s)
{
    if (s->depends_on != NULL)
        return "depends";
    return s->time_windows != NULL ? "window" : "";
}

static int insert_task(struct db *db, const struct job_submission *s, const char *job_id,
                       const struct job_task *task, size_t ordinal, struct error *err)
{
    bool files = !task->bridge && s->any_exporter; /* of no source */
    autofree char *spec = json_text(task->spec);
    autofree char *wait = task->wait == NULL ? NULL : json_text(task->wait);
    bool own_retries = task->max_attempts > 0;
    char id[ID_SIZE];
    char number[NUMBER_SIZE], priority[NUMBER_SIZE], attempts[NUMBER_SIZE], initial[NUMBER_SIZE],
        max[NUMBER_SIZE], until[NUMBER_SIZE], limit[NUMBER_SIZE];
    bool main_task = strcmp(task->kind, s->kind) == 0;
    bool grouped = main_task && s->queue_group != NULL;

    id_new("task", id);
    (void)snprintf(number, sizeof number, "%zu", ordinal);
    (void)snprintf(priority, sizeof priority, "%" PRIu32, s->priority);
    (void)snprintf(attempts, sizeof attempts, "%" PRIu32, task->max_attempts);
    (void)snprintf(initial, sizeof initial, "%" PRId64, task->retry_initial_ms);
    (void)snprintf(max, sizeof max, "%" PRId64, task->retry_max_ms);
    (void)snprintf(until, sizeof until, "%" PRId64, store_wait_end(task->wait, clock_wall_ms()));
    (void)snprintf(limit, sizeof limit, "%" PRIu32, s->queue_limit);
    return db_exec(
        db, INSERT_TASK,
        DB_PARAMS(
            id, job_id, number, task->kind, task->bridge ? "bridge" : "exporter",
            task->bridge || files ? "" : s->provider_kind, s->bridge || files ? "" : s->provider,
            spec, priority, ordinal > 0 ? "blocked" : "queued",
            !main_task || s->volume == NULL ? "" : s->volume, task->hook == NULL ? "" : task->hook,
            task->may_fail ? "true" : "false", own_retries ? attempts : NULL,
            own_retries ? initial : NULL, own_retries ? max : NULL, wait,
            ordinal == 0 && wait != NULL ? until : NULL, s->vm_path, grouped ? s->queue_group : "",
            grouped ? limit : "0", ordinal == 0 ? first_hold(s) : ""),
        NULL, err);
}

static int insert_tasks(struct db *db, const struct job_submission *s, const char *job_id,
                        struct error *err)
{
    const struct job_task own[] = {
        {.kind = s->kind, .spec = s->export_spec, .bridge = s->bridge},
        {.kind = "convert", .spec = s->convert_spec, .bridge = true},
        {.kind = "import", .spec = s->import_spec, .bridge = true},
    };
    const struct job_task *tasks = s->task_count > 0 ? s->tasks : own;
    size_t count = s->task_count > 0 ? s->task_count : ARRAY_LEN(own);
    size_t ordinal = 0;

    assert(count <= JOB_TASKS_MAX);
    for (size_t i = 0; i < count; i++) {
        if (tasks[i].spec != NULL && insert_task(db, s, job_id, &tasks[i], ordinal++, err) < 0)
            return -1;
    }
    return 0;
}

/* Nothing was inserted: which of the two unique rules said no? */
static int find_existing(struct db *db, const struct job_submission *s, const char *id,
                         const char *hash, char out_id[64], struct error *err)
{
    auto_pgresult *rows = NULL;

    if (s->idempotency_key != NULL) {
        if (db_exec(db, FIND_KEY, DB_PARAMS(s->submitted_by, s->idempotency_key, hash), &rows,
                    err) < 0)
            return -1;
        if (PQntuples(rows) == 1 && !db_bool(rows, 0, 1)) {
            return error_set(err, ERR_CONFLICT,
                             "Idempotency-Key '%.64s' was used with another request",
                             s->idempotency_key);
        }
        if (PQntuples(rows) == 1) {
            (void)snprintf(out_id, 64, "%s", db_text(rows, 0, 0));
            return 0;
        }
    }
    return error_set(err, ERR_CONFLICT, "a job with the id '%.64s' exists already", id);
}

static const char *or_empty(const char *text)
{
    return text == NULL ? "" : text;
}

static int insert_job(struct db *db, const struct job_submission *s, const char *id,
                      const char *hash, bool *out_inserted, struct error *err)
{
    autofree char *definition = json_text(s->definition);
    autofree char *windows = s->time_windows == NULL ? NULL : json_text(s->time_windows);
    auto_pgresult *rows = NULL;
    char priority[NUMBER_SIZE];
    char attempts[NUMBER_SIZE];
    char initial[NUMBER_SIZE];
    char max[NUMBER_SIZE];

    (void)snprintf(priority, sizeof priority, "%" PRIu32, s->priority);
    (void)snprintf(attempts, sizeof attempts, "%" PRIu32, s->max_attempts);
    (void)snprintf(initial, sizeof initial, "%" PRId64, s->retry_initial_ms);
    (void)snprintf(max, sizeof max, "%" PRId64, s->retry_max_ms);
    if (db_exec(db, INSERT_JOB,
                DB_PARAMS(id, s->name, s->kind, s->provider, s->vm_path, path_last(s->vm_path),
                          s->output_path, s->format, definition, priority, attempts, initial, max,
                          s->submitted_by, s->trace_id, s->idempotency_key, hash,
                          or_empty(s->schedule_id), or_empty(s->policy_id),
                          or_empty(s->workflow_run_id), s->deadline, windows,
                          s->on_window_end == NULL ? "continue" : s->on_window_end),
                &rows, err) < 0)
        return -1;
    *out_inserted = PQntuples(rows) == 1;
    return 0;
}

static int insert_dependencies(struct db *db, const struct job_submission *s, const char *job_id,
                               struct error *err)
{
    autofree char *list = s->depends_on == NULL ? NULL : json_text(s->depends_on);
    auto_pgresult *unknown = NULL;

    if (list == NULL)
        return 0;
    if (db_exec(db, UNKNOWN_JOBS, DB_PARAMS(list, job_id), &unknown, err) < 0)
        return -1;
    if (PQntuples(unknown) > 0) {
        return error_set(err, ERR_INVALID,
                         "'depends_on': job '%.64s' does not exist; one of the same request must "
                         "stand before those that wait for it",
                         db_text(unknown, 0, 0));
    }
    return db_exec(db, INSERT_DEPENDENCIES, DB_PARAMS(list, job_id), NULL, err);
}

static int submit(struct db *db, const struct job_submission *s, const char *id, char out_id[64],
                  bool *out_existing, struct error *err)
{
    autofree char *hash =
        s->idempotency_hash == NULL ? NULL : db_bytea_text(s->idempotency_hash, 32);
    struct store_row row = {0};
    bool inserted = false;

    *out_existing = false;
    if (insert_job(db, s, id, hash, &inserted, err) < 0)
        return -1;
    if (!inserted) {
        if (find_existing(db, s, id, hash, out_id, err) < 0)
            return -1;
        *out_existing = true;
        return 0;
    }
    (void)snprintf(row.job_id, sizeof row.job_id, "%s", id);
    (void)snprintf(out_id, 64, "%s", id);
    if (insert_dependencies(db, s, id, err) < 0 || insert_tasks(db, s, id, err) < 0)
        return -1;
    return store_history(db,
                         &(struct store_line){.job_id = row.job_id,
                                              .event = "job.created",
                                              .status = "pending",
                                              .phase = "",
                                              .actor = s->submitted_by},
                         err);
}

int job_store_submit(struct db *db, const struct job_submission *submission, char out_id[64],
                     bool *out_existing, struct error *err)
{
    char made[ID_SIZE];
    bool own = false;

    id_new("job", made);
    if (store_begin(db, &own, err) < 0)
        return -1;
    return store_end(db, own,
                     submit(db, submission, submission->id == NULL ? made : submission->id, out_id,
                            out_existing, err),
                     err);
}

/* ---- wishes of users ---- */

static int current_task(struct db *db, const char *job_id, char out[64], struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, CURRENT_TASK, DB_PARAMS(job_id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0) {
        auto_pgresult *job = NULL;
        if (db_exec(db, JOB_EXISTS, DB_PARAMS(job_id), &job, err) < 0)
            return -1;
        return error_set(
            err, PQntuples(job) == 0 ? ERR_NOT_FOUND : ERR_CONFLICT,
            PQntuples(job) == 0 ? "no job has the id '%.64s'" : "job '%.64s' has no task", job_id);
    }
    (void)snprintf(out, 64, "%s", db_text(rows, 0, 0));
    return 0;
}

int store_wish(struct db *db, const char *job_id, struct job_store_event event,
               struct job_decision *out, char out_task[64], struct error *err)
{
    if (current_task(db, job_id, out_task, err) < 0)
        return -1;
    event.task_id = out_task;
    if (job_store_apply(db, &event, out, err) < 0)
        return -1;
    if (!out->allowed)
        return error_set(err, ERR_CONFLICT, "job '%.64s': %s", job_id, out->reason);
    return 0;
}

static int cancel(struct db *db, const char *job_id, const char *actor, const char *reason,
                  bool discard, struct error *err)
{
    struct job_decision decision;
    char task[64];

    /* Before the decision: a release task made by it wants to know. */
    if (db_exec(db, SET_CANCEL,
                DB_PARAMS(job_id, reason == NULL ? "" : reason, discard ? "true" : "false"), NULL,
                err) < 0)
        return -1;
    return store_wish(
        db, job_id,
        (struct job_store_event){.input = {.event = JOB_EVENT_CANCEL_REQUESTED},
                                 .actor = actor,
                                 .detail = reason != NULL && reason[0] != '\0' ? reason : NULL},
        &decision, task, err);
}

int job_store_cancel(struct db *db, const char *job_id, const char *actor, const char *reason,
                     bool discard, struct error *err)
{
    bool own = false;

    if (store_begin(db, &own, err) < 0)
        return -1;
    return store_end(db, own, cancel(db, job_id, actor, reason, discard, err), err);
}

/* The release's row is locked by its own update, so it is either dropped or seen as leased. */
static int stop_releases(struct db *db, const char *job_id, const char *task, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, DROP_RELEASES, DB_PARAMS(task), NULL, err) < 0 ||
        db_exec(db, RELEASE_RUNS, DB_PARAMS(task), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) > 0) {
        return error_set(err, ERR_CONFLICT,
                         "job '%.64s': a worker still removes what the last attempt left; try "
                         "again in a moment",
                         job_id);
    }
    return 0;
}

static int retry(struct db *db, const char *job_id, const char *actor, struct error *err)
{
    static const char late_sql[] = "SELECT 1 FROM jobs WHERE id = $1 AND deadline < now()";
    auto_pgresult *late = NULL;
    struct job_decision decision;
    char task[64];

    if (db_exec(db, late_sql, DB_PARAMS(job_id), &late, err) < 0)
        return -1;
    if (PQntuples(late) > 0) {
        return error_set(err, ERR_CONFLICT,
                         "job '%.64s': its deadline has passed; submit it anew with another one",
                         job_id);
    }
    if (store_wish(
            db, job_id,
            (struct job_store_event){.input = {.event = JOB_EVENT_RETRY_REQUESTED}, .actor = actor},
            &decision, task, err) < 0 ||
        stop_releases(db, job_id, task, err) < 0 ||
        db_exec(db, BLOCK_LATER, DB_PARAMS(job_id, task), NULL, err) < 0)
        return -1;
    return db_exec(db, CLEAR_END, DB_PARAMS(job_id), NULL, err);
}

int job_store_retry(struct db *db, const char *job_id, const char *actor, struct error *err)
{
    bool own = false;

    if (store_begin(db, &own, err) < 0)
        return -1;
    return store_end(db, own, retry(db, job_id, actor, err), err);
}

/* ---- live events ---- */

static json_t *event_json(const PGresult *rows, int row)
{
    json_t *event = json_object();
    json_t *progress = json_loads(db_text(rows, row, 8), 0, NULL);
    json_t *percentage = json_object_get(progress, "percentage");
    double percent = json_number_value(percentage);

    if (strcmp(db_text(rows, row, 2), "completed") == 0)
        percent = 100.0;
    json_set_text(event, "type", db_text(rows, row, 1));
    (void)json_object_set_new(event, "seq", json_integer(db_i64(rows, row, 0)));
    json_set_text(event, "timestamp", db_text(rows, row, 9));
    json_set_text(event, "job_id", db_text(rows, row, 4));
    json_set_text(event, "status", db_text(rows, row, 2));
    json_set_text(event, "phase", db_text(rows, row, 3));
    json_set_text(event, "vm_name", db_text(rows, row, 5));
    json_set_text(event, "provider", db_text(rows, row, 6));
    json_set_text(event, "error", db_text(rows, row, 7));
    (void)json_object_set_new(event, "progress", json_integer((json_int_t)percent));
    (void)json_object_set_new(event, "percentage", json_real(percent));
    json_decref(progress);
    return event;
}

int job_store_events(struct db *db, int64_t after_id, bool unpublished_only, uint32_t limit,
                     json_t **out, struct error *err)
{
    auto_pgresult *rows = NULL;
    char after[NUMBER_SIZE];
    char most[NUMBER_SIZE];
    json_t *events;

    (void)snprintf(after, sizeof after, "%" PRId64, after_id);
    (void)snprintf(most, sizeof most, "%" PRIu32, limit);
    if (db_exec(db, unpublished_only ? EVENTS_UNPUBLISHED : EVENTS, DB_PARAMS(after, most), &rows,
                err) < 0)
        return -1;
    events = json_array();
    for (int i = 0; i < PQntuples(rows); i++)
        (void)json_array_append_new(events, event_json(rows, i));
    *out = events;
    return 0;
}
