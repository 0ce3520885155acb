/* Changing the bandwidth of a job that is not over. See job_store.h. */
#include "common/autos.h"
#include "common/job_store_internal.h"
#include "common/json.h"

static const char SET_JOB[] =
    "UPDATE jobs SET definition = (definition - ARRAY['bandwidth_limit_mbps', 'bandwidth_burst_mb',"
    " 'adaptive_bandwidth', 'bandwidth_min_mbps', 'bandwidth_max_mbps']) || $2::jsonb,"
    " updated_at = now() WHERE id = $1 AND status IN ('pending', 'running', 'paused')"
    " RETURNING status, phase";

/* stamp_ms rises with every change: the worker tells news by it. */
static const char SET_TASKS[] =
    "UPDATE tasks SET spec = jsonb_set(spec, '{bandwidth}', $2::jsonb || jsonb_build_object("
    " 'stamp_ms', greatest((extract(epoch FROM clock_timestamp()) * 1000)::bigint,"
    "   coalesce((spec->'bandwidth'->>'stamp_ms')::bigint, 0) + 1))), updated_at = now()"
    " WHERE job_id = $1 AND role = 'exporter' AND class = 'transfer'"
    " AND state NOT IN ('done', 'failed', 'cancelled')";

static const char STATUS_OF[] = "SELECT status FROM jobs WHERE id = $1";

static int refuse(struct db *db, const char *job_id, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, STATUS_OF, DB_PARAMS(job_id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "job '%.64s' does not exist", job_id);
    return error_set(err, ERR_CONFLICT, "job '%.64s' is %s: its bandwidth cannot be changed",
                     job_id, db_text(rows, 0, 0));
}

static int set_bandwidth(struct db *db, const char *job_id, const char *actor, const json_t *fields,
                         const json_t *bandwidth, struct error *err)
{
    autofree char *definition = json_text(fields);
    autofree char *spec = json_text(bandwidth);
    auto_pgresult *job = NULL;
    auto_pgresult *tasks = NULL;

    if (db_exec(db, SET_JOB, DB_PARAMS(job_id, definition), &job, err) < 0)
        return -1;
    if (PQntuples(job) == 0)
        return refuse(db, job_id, err);
    if (db_exec(db, SET_TASKS, DB_PARAMS(job_id, spec), &tasks, err) < 0)
        return -1;
    if (db_affected(tasks) == 0)
        return error_set(err, ERR_CONFLICT, "job '%.64s' has nothing left to transfer", job_id);
    return store_history(db,
                         &(struct store_line){.job_id = job_id,
                                              .event = "job.bandwidth_changed",
                                              .status = db_text(job, 0, 0),
                                              .phase = db_text(job, 0, 1),
                                              .actor = actor,
                                              .detail = fields},
                         err);
}

int job_store_set_bandwidth(struct db *db, const char *job_id, const char *actor,
                            const json_t *fields, const json_t *bandwidth, struct error *err)
{
    bool own = false;

    if (store_begin(db, &own, err) < 0)
        return -1;
    return store_end(db, own, set_bandwidth(db, job_id, actor, fields, bandwidth, err), err);
}
