/* The end of runs, and the retention that follows a good one (schedule_run.h). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/cleanup_job.h"
#include "common/json.h"
#include "common/schedule_run.h"

#define DAY_MS UINT64_C(86400000)

static const char ENDED[] =
    "SELECT r.id FROM schedule_runs r WHERE r.status = 'running'"
    " AND ($1::text IS NULL OR r.schedule_id = $1) AND NOT EXISTS (SELECT 1 FROM jobs j WHERE"
    "  j.id = ANY (r.job_ids) AND j.status IN ('pending', 'running', 'paused', 'cancelling'))"
    " ORDER BY r.seq LIMIT 200";

static const char FACTS[] =
    "SELECT r.schedule_id, cardinality(r.job_ids), jsonb_array_length(r.errors),"
    " (SELECT count(*) FROM jobs j WHERE j.id = ANY (r.job_ids) AND j.status = 'completed'),"
    " coalesce((SELECT j.id || ' ' || j.status || CASE WHEN j.error = '' THEN '' ELSE"
    "   ': ' || left(j.error, 300) END FROM jobs j WHERE j.id = ANY (r.job_ids)"
    "   AND j.status <> 'completed' ORDER BY j.seq LIMIT 1),"
    "  r.errors->0->>'error', 'a job of it was deleted'), r.reason, s.fields->'retention',"
    " s.created_by FROM schedule_runs r JOIN schedules s ON s.id = r.schedule_id"
    " WHERE r.id = $1 AND r.status = 'running' FOR UPDATE OF r SKIP LOCKED";

static const char END[] =
    "UPDATE schedule_runs SET status = $2, reason = $3, completed_at = now(), cleanup_job_ids ="
    " ARRAY(SELECT jsonb_array_elements_text($4::jsonb)) WHERE id = $1";

/* Up to the schedule's own directory; an export is told apart by standing below it. */
static const char PLACES[] =
    "SELECT DISTINCT left(p.path, strpos(p.path || '/', '/' || $2 || '/') + length($2)), p.volume"
    " FROM (SELECT t.spec->>'output_path' AS path, t.volume FROM tasks t"
    "  WHERE t.job_id = ANY (ARRAY(SELECT unnest(r.job_ids) FROM schedule_runs r WHERE r.id = $1))"
    "  AND t.kind = 'export') p WHERE strpos(p.path || '/', '/' || $2 || '/') > 0";

/* NULL: nothing is limited. */
static json_t *cleanup_spec(const json_t *retention)
{
    uint64_t count = json_u64(retention, "count");
    uint64_t days = json_u64(retention, "age_days");
    uint64_t size = json_u64(retention, "size_bytes");
    json_t *spec;

    if (count == 0 && days == 0 && size == 0)
        return NULL;
    spec = json_object();
    json_set_i64(spec, "max_count", (int64_t)count);
    json_set_i64(spec, "max_age_ms", (int64_t)(days * DAY_MS));
    json_set_i64(spec, "max_size", (int64_t)size);
    json_put(spec, "per_vm", json_true());
    return spec;
}

static int add_cleanups(struct db *db, const char *run_id, const PGresult *facts,
                        const struct retry_config *retry, json_t *out_ids, struct error *err)
{
    const char *schedule_id = db_text(facts, 0, 0);
    auto_json *retention = json_loads(db_text(facts, 0, 6), 0, NULL);
    auto_json *spec = cleanup_spec(retention);
    auto_pgresult *places = NULL;

    if (spec == NULL)
        return 0;
    if (db_exec(db, PLACES, DB_PARAMS(run_id, schedule_id), &places, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(places); i++) {
        char id[64];
        json_set_text(spec, "dir", db_text(places, i, 0));
        if (cleanup_submit(db,
                           &(struct cleanup_request){.spec = spec,
                                                     .volume = db_text(places, i, 1),
                                                     .submitted_by = db_text(facts, 0, 7),
                                                     .trace_id = "",
                                                     .schedule_id = schedule_id,
                                                     .retry = retry},
                           id, err) < 0)
            return -1;
        (void)json_array_append_new(out_ids, json_string(id));
    }
    return 0;
}

static int end_run(struct db *db, const char *run_id, const PGresult *facts,
                   const struct retry_config *retry, struct error *err)
{
    int64_t jobs = db_i64(facts, 0, 1);
    int64_t errors = db_i64(facts, 0, 2);
    int64_t completed = db_i64(facts, 0, 3);
    bool ok = completed == jobs && errors == 0;
    auto_json *cleanups = json_array();
    autofree char *reason = NULL;
    autofree char *text = NULL;

    if (ok && add_cleanups(db, run_id, facts, retry, cleanups, err) < 0)
        return -1;
    if (ok) {
        reason = xstrdup(db_text(facts, 0, 5));
    } else {
        reason = xasprintf("%" PRId64 " of %" PRId64 " jobs completed; %s", completed,
                           jobs + errors, db_text(facts, 0, 4));
    }
    text = json_text(cleanups);
    return db_exec(db, END, DB_PARAMS(run_id, ok ? "ok" : "failed", reason, text), NULL, err);
}

static int settle_one(struct db *db, const char *run_id, const struct retry_config *retry,
                      struct error *err)
{
    auto_pgresult *facts = NULL;
    bool own = !db_in_transaction(db);

    if (own && db_begin(db, err) < 0)
        return -1;
    if (db_exec(db, FACTS, DB_PARAMS(run_id), &facts, err) < 0 ||
        (PQntuples(facts) == 1 && end_run(db, run_id, facts, retry, err) < 0)) {
        if (own)
            db_rollback(db);
        return -1;
    }
    return own ? db_commit(db, err) : 0;
}

int schedule_runs_settle(struct db *db, const struct retry_config *retry, const char *schedule_id,
                         struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, ENDED, DB_PARAMS(schedule_id), &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++) {
        if (settle_one(db, db_text(rows, i, 0), retry, err) < 0)
            return -1;
    }
    return 0;
}
