/* See workflow_store.h. */
#include "common/workflow_store.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/id.h"
#include "common/json.h"
#include "common/workflow_start.h"

#define NUMBER_SIZE 24

static const char COUNT_ACTIVE[] = "SELECT count(*) FROM workflow_runs WHERE status IN"
                                   " ('running', 'paused', 'cancelling')";

static const char INSERT_RUN[] =
    "INSERT INTO workflow_runs (id, workflow_id, name, definition, submitted_by, trace_id)"
    " VALUES ($1, $2, $3, $4::jsonb, $5, $6)";

static const char INSERT_STEP[] =
    "INSERT INTO workflow_steps (run_id, ordinal, id, kind, depends, run_when, wait_ms,"
    " parallel_max, item_count) VALUES ($1, $2::int, $3, $4, $5::bigint, $6, $7::bigint, $8::int,"
    " $9::int)";

static const char LOCK_RUN[] = "SELECT status, submitted_by, trace_id, definition,"
                               " (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
                               " FROM workflow_runs WHERE id = $1 FOR UPDATE";

static const char LOCK_RUN_FREE[] = "SELECT status, submitted_by, trace_id, definition,"
                                    " (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
                                    " FROM workflow_runs WHERE id = $1 FOR UPDATE SKIP LOCKED";

/* Only the record of a job that has ended can be deleted. */
static const char SETTLE_ITEMS[] =
    "UPDATE workflow_items i SET state = CASE WHEN s.status = 'completed' THEN 'done'"
    "  ELSE 'failed' END, error = CASE WHEN s.status IS NULL THEN 'its job was deleted'"
    "  WHEN s.status = 'cancelled' THEN 'the job was cancelled' WHEN s.status = 'failed'"
    "  THEN s.error ELSE '' END"
    " FROM (SELECT a.step, a.item, j.status, j.error FROM workflow_items a"
    "  LEFT JOIN jobs j ON j.id = a.job_id WHERE a.run_id = $1 AND a.state = 'active') s"
    " WHERE i.run_id = $1 AND i.step = s.step AND i.item = s.item"
    " AND coalesce(s.status, 'failed') IN ('completed', 'failed', 'cancelled')";

static const char LOAD_STEPS[] =
    "SELECT s.depends, s.run_when, s.status, s.attempt,"
    " coalesce((extract(epoch FROM s.started_at) * 1000)::bigint, 0),"
    " coalesce((extract(epoch FROM s.completed_at) * 1000)::bigint, 0), s.kind = 'wait',"
    " s.wait_ms, s.parallel_max, s.item_count,"
    " count(*) FILTER (WHERE i.state = 'active'),"
    " count(*) FILTER (WHERE i.state = 'failed' AND i.attempt = s.attempt),"
    " count(*) FILTER (WHERE i.state = 'done')"
    " FROM workflow_steps s LEFT JOIN workflow_items i ON i.run_id = s.run_id"
    "  AND i.step = s.ordinal WHERE s.run_id = $1 GROUP BY s.run_id, s.ordinal ORDER BY s.ordinal";

static const char STORE_RUN[] =
    "UPDATE workflow_runs SET status = $2, completed_at = CASE WHEN $3::boolean THEN now() END"
    " WHERE id = $1";

static const char STORE_STEP[] =
    "UPDATE workflow_steps SET status = $3, attempt = $4::int,"
    " started_at = CASE WHEN $5::bigint = 0 THEN NULL ELSE to_timestamp($5::bigint / 1000.0) END,"
    " completed_at = CASE WHEN $6::bigint = 0 THEN NULL ELSE to_timestamp($6::bigint / 1000.0) END"
    " WHERE run_id = $1 AND ordinal = $2::int";

static const char ACTIVE_JOBS[] =
    "SELECT job_id FROM workflow_items WHERE run_id = $1 AND step = $2::int AND state = 'active'"
    " ORDER BY item";

/* ---- start of a run ---- */

static int insert_step(struct db *db, const char *run_id, const struct workflow *w, uint32_t i,
                       struct error *err)
{
    const struct workflow_step *step = &w->steps[i];
    char ordinal[NUMBER_SIZE];
    char depends[NUMBER_SIZE];
    char wait[NUMBER_SIZE];
    char parallel[NUMBER_SIZE];
    char items[NUMBER_SIZE];

    (void)snprintf(ordinal, sizeof ordinal, "%" PRIu32, i);
    (void)snprintf(depends, sizeof depends, "%" PRId64, (int64_t)step->depends);
    (void)snprintf(wait, sizeof wait, "%" PRId64, step->wait_ms);
    (void)snprintf(parallel, sizeof parallel, "%" PRIu32, step->parallel_max);
    (void)snprintf(items, sizeof items, "%" PRIu32, step->item_count);
    return db_exec(db, INSERT_STEP,
                   DB_PARAMS(run_id, ordinal, step->id, workflow_step_type_name(step->type),
                             depends, workflow_when_name(step->when), wait, parallel, items),
                   NULL, err);
}

static int insert_run(struct db *db, const char *run_id, const struct workflow_request *request,
                      struct error *err)
{
    const struct workflow *w = request->workflow;
    autofree char *definition = json_text(w->definition);
    auto_pgresult *active = NULL;

    if (db_exec(db, COUNT_ACTIVE, DB_NO_PARAMS, &active, err) < 0)
        return -1;
    if (db_i64(active, 0, 0) >= WORKFLOW_RUNS_MAX) {
        return error_set(err, ERR_LIMIT, "%d runs of workflows are under way: wait for one to end",
                         WORKFLOW_RUNS_MAX);
    }
    if (db_exec(db, INSERT_RUN,
                DB_PARAMS(run_id, request->workflow_id, w->name, definition, request->submitted_by,
                          request->trace_id),
                NULL, err) < 0)
        return -1;
    for (uint32_t i = 0; i < w->step_count; i++) {
        if (insert_step(db, run_id, w, i, err) < 0)
            return -1;
    }
    return 0;
}

int workflow_run_start(struct db *db, const struct workflow_request *request, char out_id[64],
                       struct error *err)
{
    char id[ID_SIZE];

    id_new("run", id);
    if (db_begin(db, err) < 0)
        return -1;
    if (insert_run(db, id, request, err) < 0) {
        db_rollback(db);
        return -1;
    }
    if (db_commit(db, err) < 0)
        return -1;
    (void)snprintf(out_id, 64, "%s", id);
    return 0;
}

/* ---- load, store ---- */

struct run { /* locked */
    PGresult *row;
    const char *id;
    struct workflow_run_state before;
    struct workflow_run_state now;
};

static void run_free(struct run *run)
{
    PQclear(run->row);
    free(run);
}
DEFINE_AUTO(run, struct run, run_free)
#define auto_run CLEANUP(run_auto) struct run

static int read_step(const PGresult *rows, int i, struct workflow_step_state *out,
                     struct error *err)
{
    uint32_t total = (uint32_t)db_i64(rows, i, 9);
    uint32_t known;

    if (!workflow_when_parse(db_text(rows, i, 1), &out->when) ||
        !workflow_step_status_parse(db_text(rows, i, 2), &out->status))
        return error_set(err, ERR_INTERNAL, "step %d has an unknown state", i);
    out->depends = (uint64_t)db_i64(rows, i, 0);
    out->attempt = (uint32_t)db_i64(rows, i, 3);
    out->started_ms = db_i64(rows, i, 4);
    out->ended_ms = db_i64(rows, i, 5);
    out->timed = db_bool(rows, i, 6);
    out->wait_ms = db_i64(rows, i, 7);
    out->parallel_max = (uint32_t)db_i64(rows, i, 8);
    out->active = (uint32_t)db_i64(rows, i, 10);
    out->failed = (uint32_t)db_i64(rows, i, 11);
    out->done = (uint32_t)db_i64(rows, i, 12);
    known = out->active + out->failed + out->done;
    out->waiting = total > known ? total - known : 0;
    return 0;
}

/* *out NULL: not there, or (wait false) locked by someone else. */
static int load(struct db *db, const char *run_id, bool wait, struct run **out, struct error *err)
{
    auto_run *run = xcalloc(1, sizeof *run);
    auto_pgresult *steps = NULL;

    *out = NULL;
    if (db_exec(db, wait ? LOCK_RUN : LOCK_RUN_FREE, DB_PARAMS(run_id), &run->row, err) < 0)
        return -1;
    if (PQntuples(run->row) == 0)
        return 0;
    if (!workflow_run_status_parse(db_text(run->row, 0, 0), &run->now.status))
        return error_set(err, ERR_INTERNAL, "workflow run '%.64s' has an unknown state", run_id);
    if (db_exec(db, SETTLE_ITEMS, DB_PARAMS(run_id), NULL, err) < 0 ||
        db_exec(db, LOAD_STEPS, DB_PARAMS(run_id), &steps, err) < 0)
        return -1;
    if (PQntuples(steps) < 1 || PQntuples(steps) > WORKFLOW_STEPS_MAX)
        return error_set(err, ERR_INTERNAL, "workflow run '%.64s' has no steps", run_id);
    for (int i = 0; i < PQntuples(steps); i++) {
        if (read_step(steps, i, &run->now.steps[i], err) < 0)
            return -1;
    }
    run->now.step_count = (uint32_t)PQntuples(steps);
    run->before = run->now;
    run->id = run_id;
    *out = STEAL(run);
    return 0;
}

static int store_step(struct db *db, const char *run_id, uint32_t i,
                      const struct workflow_step_state *step, struct error *err)
{
    char ordinal[NUMBER_SIZE];
    char attempt[NUMBER_SIZE];
    char started[NUMBER_SIZE];
    char ended[NUMBER_SIZE];

    (void)snprintf(ordinal, sizeof ordinal, "%" PRIu32, i);
    (void)snprintf(attempt, sizeof attempt, "%" PRIu32, step->attempt);
    (void)snprintf(started, sizeof started, "%" PRId64, step->started_ms);
    (void)snprintf(ended, sizeof ended, "%" PRId64, step->ended_ms);
    return db_exec(db, STORE_STEP,
                   DB_PARAMS(run_id, ordinal, workflow_step_status_name(step->status), attempt,
                             started, ended),
                   NULL, err);
}

static int store(struct db *db, const struct run *run, struct error *err)
{
    const struct workflow_run_state *now = &run->now;

    for (uint32_t i = 0; i < now->step_count; i++) {
        const struct workflow_step_state *old = &run->before.steps[i];
        const struct workflow_step_state *step = &now->steps[i];
        bool same = old->status == step->status && old->attempt == step->attempt;
        if (!same && store_step(db, run->id, i, step, err) < 0)
            return -1;
    }
    if (now->status == run->before.status)
        return 0;
    return db_exec(db, STORE_RUN,
                   DB_PARAMS(run->id, workflow_run_status_name(now->status),
                             workflow_run_is_final(now->status) ? "true" : "false"),
                   NULL, err);
}

/* ---- jobs of a step that are under way ---- */

static int steer_job(struct db *db, const char *job_id, unsigned int what, const char *actor,
                     struct error *err)
{
    struct error why = ERROR_NONE;
    int rc = 0;

    if ((what & WORKFLOW_JOBS_CANCEL) != 0) {
        rc = job_store_cancel(db, job_id, actor, "its workflow was cancelled", false, &why);
    } else if ((what & WORKFLOW_JOBS_PAUSE) != 0) {
        rc = job_store_pause(db, job_id, actor, "its workflow was paused", &why);
    } else if ((what & WORKFLOW_JOBS_RESUME) != 0) {
        rc = job_store_resume(db, job_id, actor, &why);
    }
    /* it has ended meanwhile, or somebody steered it already */
    if (rc == 0 || why.code == ERR_CONFLICT || why.code == ERR_NOT_FOUND)
        return 0;
    *err = why;
    return -1;
}

static int steer_jobs(struct db *db, const struct run *run, const char *actor, struct error *err)
{
    for (uint32_t i = 0; i < run->now.step_count; i++) {
        auto_pgresult *jobs = NULL;
        char ordinal[NUMBER_SIZE];
        if (run->now.steps[i].jobs == 0)
            continue;
        (void)snprintf(ordinal, sizeof ordinal, "%" PRIu32, i);
        if (db_exec(db, ACTIVE_JOBS, DB_PARAMS(run->id, ordinal), &jobs, err) < 0)
            return -1;
        for (int k = 0; k < PQntuples(jobs); k++) {
            if (steer_job(db, db_text(jobs, k, 0), run->now.steps[i].jobs, actor, err) < 0)
                return -1;
        }
    }
    return 0;
}

/* ---- events ---- */

static int user_event(struct db *db, const char *run_id, enum workflow_event event,
                      const char *actor, struct error *err)
{
    auto_run *run = NULL;

    if (load(db, run_id, true, &run, err) < 0)
        return -1;
    if (run == NULL)
        return error_set(err, ERR_NOT_FOUND, "workflow run '%.64s' does not exist", run_id);
    workflow_decide(&run->now, event, db_i64(run->row, 0, 4));
    if (!run->now.allowed) {
        return error_set(err, ERR_CONFLICT, "workflow run '%.64s' is %s: %s", run_id,
                         db_text(run->row, 0, 0), run->now.reason);
    }
    return steer_jobs(db, run, actor, err) < 0 ? -1 : store(db, run, err);
}

int workflow_run_event(struct db *db, const char *run_id, enum workflow_event event,
                       const char *actor, struct error *err)
{
    if (db_begin(db, err) < 0)
        return -1;
    if (user_event(db, run_id, event, actor, err) < 0) {
        db_rollback(db);
        return -1;
    }
    return db_commit(db, err);
}

static int start_items(struct db *db, const struct submit_settings *settings, const struct run *run,
                       bool *out_started, struct error *err)
{
    const struct workflow_starter_options options = {
        settings, db_text(run->row, 0, 3), db_text(run->row, 0, 1), db_text(run->row, 0, 2)};
    auto_workflow_starter *starter = NULL;

    for (uint32_t i = 0; i < run->now.step_count; i++) {
        const struct workflow_step_state *step = &run->now.steps[i];
        const struct workflow_start start = {run->id, i, step->attempt, step->start};
        if (step->start == 0)
            continue;
        if (starter == NULL && workflow_starter_new(db, &options, &starter, err) < 0)
            return error_wrap(err, "workflow run '%.64s'", run->id);
        if (workflow_starter_run(starter, &start, out_started, err) < 0)
            return error_wrap(err, "workflow run '%.64s'", run->id);
    }
    return 0;
}

static int look(struct db *db, const struct submit_settings *settings, const char *run_id,
                bool *out_started, struct error *err)
{
    auto_run *run = NULL;

    if (load(db, run_id, false, &run, err) < 0)
        return -1;
    if (run == NULL)
        return 0;
    workflow_decide(&run->now, WORKFLOW_EVENT_LOOK, db_i64(run->row, 0, 4));
    if (!run->now.allowed)
        return 0; /* it ended before we had the lock */
    return store(db, run, err) < 0 ? -1 : start_items(db, settings, run, out_started, err);
}

int workflow_run_look(struct db *db, const struct submit_settings *settings, const char *run_id,
                      bool *out_started, struct error *err)
{
    *out_started = false;
    if (db_begin(db, err) < 0)
        return -1;
    if (look(db, settings, run_id, out_started, err) < 0) {
        db_rollback(db);
        *out_started = false;
        return -1;
    }
    return db_commit(db, err);
}
