/* See job_store.h: cancelling and trying again. job_store_submit.c has the way of new
 * jobs into the tables, job_store_apply.c that of a state, job_store_final.c what an end leaves
 * behind. */
#include "common/job_store.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/job_store_internal.h"
#include "common/json.h"

/* The task that a user's wish is about: the first that is not over. */
static const char CURRENT_TASK[] =
    "SELECT t.id FROM tasks t WHERE t.job_id = $1 ORDER BY (t.state = 'done' OR (t.state = 'failed'"
    " AND t.may_fail)), t.ordinal LIMIT 1";

static const char JOB_EXISTS[] = "SELECT 1 FROM jobs WHERE id = $1";

/* Not of a job that refuses it: the transaction may be a workflow's, which goes on. */
static const char SET_CANCEL[] = "UPDATE jobs SET cancel_reason = $2, cancel_discard = $3::boolean"
                                 " WHERE id = $1 AND status IN ('pending', 'running', 'paused')";

static const char LOCK_JOB[] = "SELECT coalesce(deadline < now(), false) FROM jobs WHERE id = $1"
                               " FOR UPDATE";

/* A release of the old attempt must not take the new attempt's snapshot away. */
static const char DROP_RELEASES[] =
    "UPDATE tasks SET state = 'cancelled', updated_at = now() WHERE kind = 'release'"
    " AND state = 'queued' AND spec->>'task_id' = $1";

/* Locked: one that waits is not begun meanwhile. */
static const char LOCK_RELEASES[] =
    "SELECT state FROM tasks WHERE kind = 'release' AND state IN ('queued', 'leased', 'finishing')"
    " AND spec->>'task_id' = $1 FOR UPDATE";

static const char BLOCK_LATER[] =
    "UPDATE tasks SET state = 'blocked', cancel = false, updated_at = now()"
    " WHERE job_id = $1 AND state IN ('cancelled', 'failed')"
    " AND ordinal > (SELECT ordinal FROM tasks WHERE id = $2)";

static const char CLEAR_END[] =
    "UPDATE jobs SET completed_at = NULL, error = '', error_code = '', cancel_reason = '',"
    " cancel_discard = false, pending_reason = '', window_open = time_windows IS NULL, window_at ="
    " CASE WHEN time_windows IS NOT NULL THEN now() END WHERE id = $1";

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

/* Those that wait are the caller's then. */
static int lock_releases(struct db *db, const char *job_id, const char *task, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, LOCK_RELEASES, DB_PARAMS(task), &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++) {
        if (strcmp(db_text(rows, i, 0), "queued") != 0) {
            return error_set(err, ERR_CONFLICT,
                             "job '%.64s': a worker still removes what the last attempt left; try "
                             "again in a moment",
                             job_id);
        }
    }
    return 0;
}

/* All that can be refused is, before anything is changed: a run of a workflow goes on in the same
 * transaction. The job's row is locked first, so its end leaves no further release behind. */
static int check_retry(struct db *db, const char *job_id, char out_task[64], struct error *err)
{
    auto_pgresult *late = NULL;

    if (db_exec(db, LOCK_JOB, DB_PARAMS(job_id), &late, err) < 0)
        return -1;
    if (PQntuples(late) > 0 && db_bool(late, 0, 0)) {
        return error_set(err, ERR_CONFLICT,
                         "job '%.64s': its deadline has passed; submit it anew with another one",
                         job_id);
    }
    if (current_task(db, job_id, out_task, err) < 0)
        return -1;
    return lock_releases(db, job_id, out_task, err);
}

static int retry(struct db *db, const char *job_id, const char *actor, struct error *err)
{
    struct job_decision decision;
    char task[64];

    if (check_retry(db, job_id, task, err) < 0 ||
        store_wish(
            db, job_id,
            (struct job_store_event){.input = {.event = JOB_EVENT_RETRY_REQUESTED}, .actor = actor},
            &decision, task, err) < 0 ||
        db_exec(db, DROP_RELEASES, DB_PARAMS(task), NULL, err) < 0 ||
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
