/* The way of a decision into the tables: lock, decide, store under the epoch, write the effects.
 *
 * Lock order: the job's row, then the task's. The claim of the scheduler locks both in one
 * statement with SKIP LOCKED and so never waits. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/id.h"
#include "common/job_store_internal.h"
#include "common/json.h"

#define LOSSES_MAX_DEFAULT   5
#define CONTROL_ATTEMPTS_MAX 1  /* someone waits for the answer and can ask again */
#define RELEASE_ATTEMPTS_MAX 30 /* nobody waits: with the delays below about two days */
#define RELEASE_INITIAL_MS   10000
#define RELEASE_MAX_MS       7200000

static const char LOCK_JOB[] =
    "SELECT j.id, j.status, j.max_attempts, j.retry_initial_ms, j.retry_max_ms,"
    " j.doomed FROM jobs j"
    " WHERE j.id = (SELECT job_id FROM tasks WHERE id = $1) FOR UPDATE";

static const char LOCK_TASK[] =
    "SELECT kind, provider, state, cancel, epoch, attempt, losses, progress_mark, bytes_done,"
    " coalesce((extract(epoch FROM lease_until) * 1000)::bigint, 0),"
    " (extract(epoch FROM not_before) * 1000)::bigint, token,"
    " (extract(epoch FROM clock_timestamp()) * 1000)::bigint,"
    " NOT EXISTS (SELECT 1 FROM tasks n WHERE n.job_id = tasks.job_id"
    "             AND n.ordinal > tasks.ordinal AND n.state = 'blocked'),"
    " hook, may_fail, max_attempts, retry_initial_ms, retry_max_ms FROM tasks WHERE id = $1 FOR "
    "UPDATE";

static const char STORE_TASK[] =
    "UPDATE tasks SET state = $2, epoch = $3::bigint, attempt = $4::int, losses = $5::int,"
    " progress_mark = $6::bigint, bytes_done = $7::bigint,"
    " lease_until = CASE WHEN $8::bigint = 0 THEN NULL ELSE to_timestamp($8::bigint / 1000.0) END,"
    " not_before = to_timestamp($9::bigint / 1000.0), cancel = $10::boolean,"
    " token = CASE WHEN $17::boolean THEN NULL ELSE coalesce($11::bytea, token) END, worker = "
    "coalesce($12, worker),"
    " lines_stored = CASE WHEN epoch = $3::bigint THEN lines_stored ELSE 0 END,"
    " result = coalesce($13::jsonb, result), error = coalesce($14, error),"
    " error_code = coalesce($15, error_code), updated_at = now(),"
    " hold = CASE WHEN $18::boolean THEN 'paused' WHEN hold = 'paused' THEN CASE WHEN ordinal = 0"
    "  AND epoch = 0 AND EXISTS (SELECT 1 FROM job_dependencies x WHERE x.job_id = tasks.job_id) "
    "THEN 'depends'"
    "  ELSE '' END ELSE hold END"
    " WHERE id = $1 AND epoch = $16::bigint";

static const char STORE_JOB[] =
    "UPDATE jobs SET status = $2, phase = coalesce($3, phase), attempt = $4::int,"
    " started_at = CASE WHEN $5::boolean THEN coalesce(started_at, now()) ELSE started_at END,"
    " completed_at = CASE WHEN $6::boolean THEN now() ELSE completed_at END,"
    " worker_id = coalesce($7, worker_id), error = coalesce($8, error),"
    " error_code = coalesce($9, error_code),"
    " result = CASE WHEN $10::jsonb IS NULL THEN result"
    "          ELSE coalesce(result, '{}'::jsonb) || $10::jsonb END,"
    " vm_name = coalesce($11, vm_name), doomed = $12::boolean,"
    " pending_reason = CASE WHEN $2 IN ('pending', 'paused') THEN pending_reason ELSE '' END,"
    " updated_at = now() WHERE id = $1";

static const char INSERT_HISTORY[] =
    "INSERT INTO job_events (job_id, event, status, phase, actor, detail)"
    " VALUES ($1, $2, $3, $4, $5, coalesce($6::jsonb, '{}'::jsonb))";

int store_history(struct db *db, const struct store_line *line, struct error *err)
{
    autofree char *text = line->detail == NULL ? NULL : json_text(line->detail);

    return db_exec(db, INSERT_HISTORY,
                   DB_PARAMS(line->job_id, line->event, line->status, line->phase,
                             line->actor == NULL ? "" : line->actor, text),
                   NULL, err);
}

/* ---- loading ---- */

/* Tasks without a job: a machine of their own, that nobody pauses or retries. */
static void control_machine(struct store_row *row)
{
    bool release = strcmp(row->task_kind, "release") == 0;

    row->machine.job = row->machine.task == TASK_QUEUED ? JOB_PENDING : JOB_RUNNING;
    row->machine.max_attempts = release ? RELEASE_ATTEMPTS_MAX : CONTROL_ATTEMPTS_MAX;
    row->machine.retry_initial_ms = RELEASE_INITIAL_MS;
    row->machine.retry_max_ms = RELEASE_MAX_MS;
}

static int lock_job(struct db *db, const char *task_id, struct store_row *row, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, LOCK_JOB, DB_PARAMS(task_id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return 0; /* a task without a job, or no task at all */
    (void)snprintf(row->job_id, sizeof row->job_id, "%s", db_text(rows, 0, 0));
    if (!job_status_parse(db_text(rows, 0, 1), &row->machine.job))
        return error_set(err, ERR_INTERNAL, "job '%.64s' has an unknown status", row->job_id);
    row->machine.max_attempts = (uint32_t)db_i64(rows, 0, 2);
    row->machine.retry_initial_ms = db_i64(rows, 0, 3);
    row->machine.retry_max_ms = db_i64(rows, 0, 4);
    row->machine.doomed = db_bool(rows, 0, 5);
    return 0;
}

static int read_token(const PGresult *rows, struct store_row *row, struct error *err)
{
    size_t size = 0;

    if (db_is_null(rows, 0, 11))
        return 0;
    if (db_bytea(rows, 11, row->token, sizeof row->token, &size, err) < 0)
        return -1;
    row->has_token = size == sizeof row->token;
    return 0;
}

static int lock_task(struct db *db, const char *task_id, struct store_row *row, struct error *err)
{
    struct job_machine *m = &row->machine;
    auto_pgresult *rows = NULL;

    if (db_exec(db, LOCK_TASK, DB_PARAMS(task_id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "no task has the id '%.64s'", task_id);
    (void)snprintf(row->task_id, sizeof row->task_id, "%s", task_id);
    (void)snprintf(row->task_kind, sizeof row->task_kind, "%s", db_text(rows, 0, 0));
    (void)snprintf(row->provider, sizeof row->provider, "%s", db_text(rows, 0, 1));
    if (!task_state_parse(db_text(rows, 0, 2), &m->task))
        return error_set(err, ERR_INTERNAL, "task '%.64s' has an unknown state", task_id);
    m->task_cancel = db_bool(rows, 0, 3);
    m->epoch = (uint64_t)db_i64(rows, 0, 4);
    m->attempt = (uint32_t)db_i64(rows, 0, 5);
    m->losses = (uint32_t)db_i64(rows, 0, 6);
    m->progress_mark = (uint64_t)db_i64(rows, 0, 7);
    m->bytes_done = (uint64_t)db_i64(rows, 0, 8);
    m->lease_until_ms = db_i64(rows, 0, 9);
    m->not_before_ms = db_i64(rows, 0, 10);
    row->now_ms = db_i64(rows, 0, 12);
    m->last_task = db_bool(rows, 0, 13);
    (void)snprintf(row->hook, sizeof row->hook, "%s", db_text(rows, 0, 14));
    m->may_fail = db_bool(rows, 0, 15);
    if (!db_is_null(rows, 0, 16)) {
        m->max_attempts = (uint32_t)db_i64(rows, 0, 16);
        m->retry_initial_ms = db_i64(rows, 0, 17);
        m->retry_max_ms = db_i64(rows, 0, 18);
    }
    if (row->job_id[0] == '\0')
        control_machine(row);
    return read_token(rows, row, err);
}

static int check_authority(const struct store_row *row, const struct job_store_event *event,
                           struct error *err)
{
    if (event->expect_epoch != NULL && *event->expect_epoch != row->machine.epoch)
        return error_set(err, ERR_CONFLICT, "lost: the task has another epoch");
    if (event->expect_token != NULL &&
        (!row->has_token || memcmp(event->expect_token, row->token, sizeof row->token) != 0))
        return error_set(err, ERR_CONFLICT, "lost: the lease has another token");
    return 0;
}

/* ---- storing ---- */

static int store_task(struct db *db, const struct store_row *row,
                      const struct job_store_event *event, const struct job_decision *d,
                      struct error *err)
{
    const struct job_machine *next = &d->row;
    autofree char *token =
        event->new_token == NULL ? NULL : db_bytea_text(event->new_token, TOKEN_BYTES);
    autofree char *result = event->result == NULL ? NULL : json_text(event->result);
    auto_pgresult *rows = NULL;
    char epoch[NUMBER_SIZE], attempt[NUMBER_SIZE], losses[NUMBER_SIZE], mark[NUMBER_SIZE];
    char bytes[NUMBER_SIZE], until[NUMBER_SIZE], before[NUMBER_SIZE], old[NUMBER_SIZE];
    bool leased = next->task == TASK_LEASED || next->task == TASK_FINISHING;

    (void)snprintf(epoch, sizeof epoch, "%" PRIu64, next->epoch);
    (void)snprintf(attempt, sizeof attempt, "%" PRIu32, next->attempt);
    (void)snprintf(losses, sizeof losses, "%" PRIu32, next->losses);
    (void)snprintf(mark, sizeof mark, "%" PRIu64, next->progress_mark);
    (void)snprintf(bytes, sizeof bytes, "%" PRIu64, next->bytes_done);
    (void)snprintf(until, sizeof until, "%" PRId64, leased ? next->lease_until_ms : 0);
    (void)snprintf(before, sizeof before, "%" PRId64, next->not_before_ms);
    (void)snprintf(old, sizeof old, "%" PRIu64, row->machine.epoch);
    if (db_exec(db, STORE_TASK,
                DB_PARAMS(row->task_id, task_state_name(next->task), epoch, attempt, losses, mark,
                          bytes, until, before, next->task_cancel ? "true" : "false", token,
                          event->worker, result, event->error_message, event->error_code, old,
                          d->effects & JOB_EFFECT_DROP_TOKEN ? "true" : "false",
                          next->job == JOB_PAUSED ? "true" : "false"),
                &rows, err) < 0)
        return -1;
    if (db_affected(rows) != 1)
        return error_set(err, ERR_CONFLICT, "lost: the task changed meanwhile");
    return 0;
}

/* What the job shows of a task's result: not what it carries for the catalogue's tables. */
static char *shown_result(const json_t *result)
{
    auto_json *shown = json_copy((json_t *)(uintptr_t)result);

    (void)json_object_del(shown, "export");
    (void)json_object_del(shown, "recalled");
    return json_text(shown);
}

/* Phases belong to running tasks. A failed job keeps the one that it died in. */
static const char *next_phase(const struct job_store_event *event, const struct job_decision *d)
{
    return d->row.job == JOB_RUNNING || d->row.job == JOB_CANCELLING || d->row.job == JOB_FAILED
               ? event->phase
               : "";
}

/* A verification that finds damage fails, and its result says what was found; a clean-up that
 * failed has removed what it names. */
static bool shows_result(const struct store_row *row, const struct job_store_event *event,
                         const struct job_decision *d)
{
    if (event->result == NULL || row->hook[0] != '\0') /* hooks are shown one by one */
        return false;
    return d->row.task == TASK_DONE ||
           (d->row.task == TASK_FAILED &&
            (strcmp(row->task_kind, "verify") == 0 || strcmp(row->task_kind, "cleanup") == 0));
}

/* An error is shown only while it counts: not that of a hook which the job goes on without. */
static int store_job(struct db *db, const struct store_row *row,
                     const struct job_store_event *event, const struct job_decision *d,
                     struct error *err)
{
    bool shown = shows_result(row, event, d);
    autofree char *result = shown ? shown_result(event->result) : NULL;
    const char *vm_name = shown ? json_str(event->result, "vm_name") : "";
    bool failed = event->error_message != NULL && d->row.job != JOB_CANCELLED &&
                  (d->row.task != TASK_FAILED || d->row.job == JOB_FAILED);
    bool clean = d->row.job == JOB_COMPLETED;
    char attempt[NUMBER_SIZE];

    (void)snprintf(attempt, sizeof attempt, "%" PRIu32, d->row.attempt);
    return db_exec(db, STORE_JOB,
                   DB_PARAMS(row->job_id, job_status_name(d->row.job), next_phase(event, d),
                             attempt, d->effects & JOB_EFFECT_STARTED ? "true" : "false",
                             d->effects & JOB_EFFECT_FINAL ? "true" : "false", event->worker,
                             clean ? "" : (failed ? event->error_message : NULL),
                             clean ? "" : (failed ? event->error_code : NULL), result,
                             vm_name[0] == '\0' ? NULL : vm_name, d->row.doomed ? "true" : "false"),
                   NULL, err);
}

/* Whose end or start it is, when that is a hook's. */
static void add_hook(const struct store_row *row, const struct job_store_event *event,
                     json_t *detail)
{
    json_t *script = json_object_get(event->result, "script");

    if (row->hook[0] == '\0')
        return;
    json_set_text(detail, "hook", row->hook);
    json_set_text(detail, "task", row->task_kind);
    if (json_object_get(script, "exit_status") != NULL)
        (void)json_object_set(detail, "exit_status", json_object_get(script, "exit_status"));
}

static int store_event(struct db *db, const struct store_row *row,
                       const struct job_store_event *event, const struct job_decision *d,
                       struct error *err)
{
    auto_json *detail = json_object();

    if ((d->effects & JOB_EFFECT_HISTORY) == 0)
        return 0;
    if (event->error_message != NULL) {
        json_set_text(detail, "error", event->error_message);
        json_set_text(detail, "error_code", event->error_code);
    }
    if (event->worker != NULL)
        json_set_text(detail, "worker", event->worker);
    if (event->detail != NULL)
        json_set_text(detail, "reason", event->detail);
    add_hook(row, event, detail);
    return store_history(db,
                         &(struct store_line){.job_id = row->job_id,
                                              .event = d->event,
                                              .status = job_status_name(d->row.job),
                                              .phase = event->phase == NULL ? "" : event->phase,
                                              .actor = event->actor,
                                              .detail = detail},
                         err);
}

static bool changes_points(const struct store_row *row)
{
    return strcmp(row->task_kind, "prune") == 0 || strcmp(row->task_kind, "flatten") == 0;
}

static int store_effects(struct db *db, const struct store_row *row,
                         const struct job_store_event *event, const struct job_decision *d,
                         struct error *err)
{
    bool exported = strcmp(row->task_kind, "export") == 0 && d->row.task == TASK_DONE;

    if (store_event(db, row, event, d, err) < 0)
        return -1;
    if (exported && (store_export(db, row, event->result, err) < 0 ||
                     store_next_spec(db, row, event->result, err) < 0))
        return -1;
    if (strcmp(row->task_kind, "convert") == 0 && d->row.task == TASK_DONE &&
        store_converted(db, row, event->result, err) < 0)
        return -1;
    if (strcmp(row->task_kind, "cleanup") == 0 && event->result != NULL &&
        store_cleanup(db, event->result, err) < 0)
        return -1;
    if (d->row.task == TASK_DONE && changes_points(row) && store_points(db, event->result, err) < 0)
        return -1;
    if ((d->effects & JOB_EFFECT_RELEASE_NEXT) != 0 && store_release_next(db, row, err) < 0)
        return -1;
    if (((d->effects & JOB_EFFECT_CLEAN) != 0 ||
         json_is_true(json_object_get(event->result, "release_pending"))) &&
        store_release_task(db, row, err) < 0)
        return -1;
    return store_end_effects(db, row, event, d, err);
}

int store_decision(struct db *db, const struct store_row *row, const struct job_store_event *event,
                   const struct job_decision *decision, struct error *err)
{
    if (store_task(db, row, event, decision, err) < 0)
        return -1;
    if (row->job_id[0] == '\0') /* of a control task only what it left outside matters */
        return (decision->effects & JOB_EFFECT_CLEAN) != 0 ? store_release_task(db, row, err) : 0;
    if (store_job(db, row, event, decision, err) < 0)
        return -1;
    return store_effects(db, row, event, decision, err);
}

/* A release has no progress to show, and what it leaves undone is a snapshot that stays for ever:
 * workers that others kill must not use up its patience. */
static uint32_t losses_max_of(const struct store_row *row, const struct job_store_event *event)
{
    if (strcmp(row->task_kind, "release") == 0)
        return RELEASE_ATTEMPTS_MAX;
    return event->losses_max == 0 ? LOSSES_MAX_DEFAULT : event->losses_max;
}

static int apply(struct db *db, const struct job_store_event *event, struct job_decision *out,
                 struct error *err)
{
    struct store_row row = {0};
    struct job_store_event complete = *event;
    struct job_decision decision;

    if (lock_job(db, event->task_id, &row, err) < 0 ||
        lock_task(db, event->task_id, &row, err) < 0 || check_authority(&row, event, err) < 0)
        return -1;
    row.machine.losses_max = losses_max_of(&row, event);
    if (complete.input.now_ms == 0)
        complete.input.now_ms = row.now_ms;
    if (complete.input.random == 0)
        random_bytes(&complete.input.random, sizeof complete.input.random);
    decision = job_decide(&row.machine, &complete.input);
    if (decision.allowed && complete.input.event == JOB_EVENT_LEASE_LOST &&
        decision.row.task == TASK_FAILED) {
        complete.error_code = "timeout";
        complete.error_message = "the workers of the task died again and again without progress; "
                                 "see the logs of the exporters and bridges";
    }
    if (row.machine.doomed) { /* the rule's words stay */
        complete.error_code = NULL;
        complete.error_message = NULL;
    }
    if (decision.allowed && store_decision(db, &row, &complete, &decision, err) < 0)
        return -1;
    *out = decision;
    return 0;
}

int job_store_apply(struct db *db, const struct job_store_event *event, struct job_decision *out,
                    struct error *err)
{
    bool own = false;

    if (store_begin(db, &own, err) < 0)
        return -1;
    return store_end(db, own, apply(db, event, out, err), err);
}
