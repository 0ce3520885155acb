/* Holding a job, letting it go on, and removing the record of one that has ended. See job_store.h.
 */
#include "common/autos.h"
#include "common/job_store_internal.h"

static const char SET_REASON[] =
    "UPDATE jobs SET pending_reason = left('paused by ' || $2 || CASE WHEN $3 = '' THEN '' ELSE"
    " ': ' || $3 END, 500) WHERE id = $1";

static const char CLEAR_REASON[] = "UPDATE jobs SET pending_reason = '' WHERE id = $1";

static const char STATUS[] = "SELECT status FROM jobs WHERE id = $1 FOR UPDATE";

static const char DELETE[] = "DELETE FROM jobs WHERE id = $1";

static int hold(struct db *db, const char *job_id, const char *actor, const char *reason,
                struct error *err)
{
    struct job_decision decision;
    char task[64];

    if (store_wish(db, job_id,
                   (struct job_store_event){.input = {.event = JOB_EVENT_PAUSE_REQUESTED},
                                            .actor = actor,
                                            .detail = reason[0] == '\0' ? NULL : reason},
                   &decision, task, err) < 0)
        return -1;
    return db_exec(db, SET_REASON, DB_PARAMS(job_id, actor, reason), NULL, err);
}

int job_store_pause(struct db *db, const char *job_id, const char *actor, const char *reason,
                    struct error *err)
{
    bool own = false;

    if (store_begin(db, &own, err) < 0)
        return -1;
    return store_end(db, own, hold(db, job_id, actor, reason, err), err);
}

static int let_go(struct db *db, const char *job_id, const char *actor, struct error *err)
{
    struct job_decision decision;
    char task[64];

    if (store_wish(db, job_id,
                   (struct job_store_event){.input = {.event = JOB_EVENT_RESUME_REQUESTED},
                                            .actor = actor},
                   &decision, task, err) < 0)
        return -1;
    return db_exec(db, CLEAR_REASON, DB_PARAMS(job_id), NULL, err);
}

int job_store_resume(struct db *db, const char *job_id, const char *actor, struct error *err)
{
    bool own = false;

    if (store_begin(db, &own, err) < 0)
        return -1;
    return store_end(db, own, let_go(db, job_id, actor, err), err);
}

static int drop(struct db *db, const char *job_id, struct error *err)
{
    auto_pgresult *rows = NULL;
    enum job_status status;

    if (db_exec(db, STATUS, DB_PARAMS(job_id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "job '%.64s' does not exist", job_id);
    if (!job_status_parse(db_text(rows, 0, 0), &status) || !job_status_is_final(status)) {
        return error_set(err, ERR_CONFLICT,
                         "job '%.64s' is %s: only a job that has ended can be deleted; cancel it "
                         "first",
                         job_id, db_text(rows, 0, 0));
    }
    return db_exec(db, DELETE, DB_PARAMS(job_id), NULL, err);
}

int job_store_delete(struct db *db, const char *job_id, struct error *err)
{
    bool own = false;

    if (store_begin(db, &own, err) < 0)
        return -1;
    return store_end(db, own, drop(db, job_id, err), err);
}
