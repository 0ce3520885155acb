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

/* $1: ids of tasks, a JSON array. Jobs are locked in the order of their ids, so two that lock
 * several do not wait for each other in a circle. */
#define IDS "ANY (ARRAY(SELECT jsonb_array_elements_text($1::jsonb)))"

static const char LOCK_JOBS[] =
    "SELECT t.id, j.id, j.status, j.max_attempts, j.retry_initial_ms, j.retry_max_ms, j.doomed"
    " FROM jobs j JOIN tasks t ON t.job_id = j.id WHERE t.id = " IDS
    " ORDER BY j.id FOR UPDATE OF j";

static const char LOCK_TASKS[] =
    "SELECT kind, provider, state, cancel, epoch, attempt, losses, progress_mark, bytes_done,"
    " coalesce((extract(epoch FROM lease_until) * 1000)::bigint, 0),"
    " (extract(epoch FROM not_before) * 1000)::bigint, token,"
    " (extract(epoch FROM clock_timestamp()) * 1000)::bigint,"
    " NOT EXISTS (SELECT 1 FROM tasks n WHERE n.job_id = tasks.job_id"
    "             AND n.ordinal > tasks.ordinal AND n.state = 'blocked'),"
    " hook, may_fail, max_attempts, retry_initial_ms, retry_max_ms, id,"
    " EXISTS (SELECT 1 FROM tasks c WHERE c.job_id = tasks.job_id AND c.kind = 'export'"
    "         AND c.spec->'cleanup' IS NOT NULL)"
    " FROM tasks WHERE id = " IDS " ORDER BY id FOR UPDATE";

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

/* Whose task has this id; the events are few. */
static struct store_row *row_of(struct store_change *changes, size_t count, const char *task_id)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(changes[i].event.task_id, task_id) == 0)
            return &changes[i].row;
    }
    abort(); /* the statement was asked for these ids */
}

static int read_jobs(const PGresult *rows, struct store_change *changes, size_t count,
                     struct error *err)
{
    for (int i = 0; i < PQntuples(rows); i++) { /* none of a task without a job */
        struct store_row *row = row_of(changes, count, db_text(rows, i, 0));
        (void)snprintf(row->job_id, sizeof row->job_id, "%s", db_text(rows, i, 1));
        if (!job_status_parse(db_text(rows, i, 2), &row->machine.job)) {
            return error_set(err, ERR_INTERNAL, "job '%.64s' has an unknown status", row->job_id);
        }
        row->machine.max_attempts = (uint32_t)db_i64(rows, i, 3);
        row->machine.retry_initial_ms = db_i64(rows, i, 4);
        row->machine.retry_max_ms = db_i64(rows, i, 5);
        row->machine.doomed = db_bool(rows, i, 6);
    }
    return 0;
}

static int read_task(const PGresult *rows, int i, struct store_row *row, struct error *err)
{
    struct job_machine *m = &row->machine;

    (void)snprintf(row->task_id, sizeof row->task_id, "%s", db_text(rows, i, 19));
    (void)snprintf(row->task_kind, sizeof row->task_kind, "%s", db_text(rows, i, 0));
    (void)snprintf(row->provider, sizeof row->provider, "%s", db_text(rows, i, 1));
    if (!task_state_parse(db_text(rows, i, 2), &m->task))
        return error_set(err, ERR_INTERNAL, "task '%.64s' has an unknown state", row->task_id);
    m->task_cancel = db_bool(rows, i, 3);
    m->epoch = (uint64_t)db_i64(rows, i, 4);
    m->attempt = (uint32_t)db_i64(rows, i, 5);
    m->losses = (uint32_t)db_i64(rows, i, 6);
    m->progress_mark = (uint64_t)db_i64(rows, i, 7);
    m->bytes_done = (uint64_t)db_i64(rows, i, 8);
    m->lease_until_ms = db_i64(rows, i, 9);
    m->not_before_ms = db_i64(rows, i, 10);
    row->now_ms = db_i64(rows, i, 12);
    m->last_task = db_bool(rows, i, 13);
    (void)snprintf(row->hook, sizeof row->hook, "%s", db_text(rows, i, 14));
    m->may_fail = db_bool(rows, i, 15);
    if (!db_is_null(rows, i, 16)) {
        m->max_attempts = (uint32_t)db_i64(rows, i, 16);
        m->retry_initial_ms = db_i64(rows, i, 17);
        m->retry_max_ms = db_i64(rows, i, 18);
    }
    row->cleans_up = db_bool(rows, i, 20);
    if (row->job_id[0] == '\0')
        control_machine(row);
    return 0;
}

static int read_tasks(const PGresult *rows, struct store_change *changes, size_t count,
                      struct error *err)
{
    for (int i = 0; i < PQntuples(rows); i++) {
        struct store_row *row = row_of(changes, count, db_text(rows, i, 19));
        size_t size = 0;
        if (read_task(rows, i, row, err) < 0)
            return -1;
        if (db_is_null(rows, i, 11))
            continue;
        if (db_bytea(rows, i, 11, row->token, sizeof row->token, &size, err) < 0)
            return -1;
        row->has_token = size == sizeof row->token;
    }
    return 0;
}

/* What is decided of one must not depend on what the same call does to another. */
static int lock_all(struct db *db, struct store_change *changes, size_t count, struct error *err)
{
    auto_json *ids = json_array();
    auto_pgresult *jobs = NULL;
    auto_pgresult *tasks = NULL;
    autofree char *text = NULL;

    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < i; k++) {
            if (strcmp(changes[i].event.task_id, changes[k].event.task_id) == 0)
                return error_set(err, ERR_CONFLICT, "task '%.64s' twice", changes[i].event.task_id);
        }
        (void)json_array_append_new(ids, json_string(changes[i].event.task_id));
    }
    text = json_text(ids);
    if (db_later(db, LOCK_JOBS, DB_PARAMS(text), &jobs, err) < 0 ||
        db_exec(db, LOCK_TASKS, DB_PARAMS(text), &tasks, err) < 0 ||
        read_jobs(jobs, changes, count, err) < 0 || read_tasks(tasks, changes, count, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        const char *job_id = changes[i].row.job_id;
        for (size_t k = 0; k < i && job_id[0] != '\0'; k++) {
            if (strcmp(job_id, changes[k].row.job_id) == 0)
                return error_set(err, ERR_CONFLICT, "two tasks of job '%.64s'", job_id);
        }
    }
    return 0;
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

/* A release has no progress to show, and what it leaves undone is a snapshot that stays for ever:
 * workers that others kill must not use up its patience. */
static uint32_t losses_max_of(const struct store_row *row, const struct job_store_event *event)
{
    if (strcmp(row->task_kind, "release") == 0)
        return RELEASE_ATTEMPTS_MAX;
    return event->losses_max == 0 ? LOSSES_MAX_DEFAULT : event->losses_max;
}

static int decide(struct store_change *change, struct error *err)
{
    struct job_store_event *event = &change->event;
    struct store_row *row = &change->row;

    if (row->task_id[0] == '\0')
        return error_set(err, ERR_NOT_FOUND, "no task has the id '%.64s'", event->task_id);
    if (check_authority(row, event, err) < 0)
        return -1;
    row->machine.losses_max = losses_max_of(row, event);
    if (event->input.now_ms == 0)
        event->input.now_ms = row->now_ms;
    if (event->input.random == 0)
        random_bytes(&event->input.random, sizeof event->input.random);
    change->decision = job_decide(&row->machine, &event->input);
    if (change->decision.allowed && event->input.event == JOB_EVENT_LEASE_LOST &&
        change->decision.row.task == TASK_FAILED) {
        event->error_code = "timeout";
        event->error_message = "the workers of the task died again and again without progress; "
                               "see the logs of the exporters and bridges";
    }
    if (row->machine.doomed) { /* the rule's words stay */
        event->error_code = NULL;
        event->error_message = NULL;
    }
    return 0;
}

static int apply_all(struct db *db, struct store_change *changes, size_t count, struct error *err)
{
    if (lock_all(db, changes, count, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (decide(&changes[i], err) < 0)
            return -1;
    }
    return store_changes(db, changes, count, err);
}

int job_store_apply_all(struct db *db, const struct job_store_event *events, size_t count,
                        struct job_store_outcome *out, struct error *err)
{
    autofree struct store_change *changes = xcalloc(count, sizeof *changes);
    bool own = false;

    for (size_t i = 0; i < count; i++)
        changes[i].event = events[i];
    if (store_begin(db, &own, err) < 0 ||
        store_end(db, own, apply_all(db, changes, count, err), err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        out[i].decision = changes[i].decision;
        (void)snprintf(out[i].job_id, sizeof out[i].job_id, "%s", changes[i].row.job_id);
    }
    return 0;
}

int job_store_apply(struct db *db, const struct job_store_event *event, struct job_decision *out,
                    struct error *err)
{
    struct job_store_outcome outcome = {0};

    if (job_store_apply_all(db, event, 1, &outcome, err) < 0)
        return -1;
    *out = outcome.decision;
    return 0;
}
