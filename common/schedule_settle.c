/* The end of runs, and the retention that follows a good one (schedule_run.h). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/cleanup_job.h"
#include "common/json.h"
#include "common/paths.h"
#include "common/schedule_run.h"
#include "common/strbuf.h"

#define DAY_MS         UINT64_C(86400000)
#define GLOB_BYTES_MAX ((size_t)(4 * KIB))

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
    " FROM (SELECT t.spec->>'output_path' AS path, t.volume FROM tasks t JOIN jobs j"
    "  ON j.id = t.job_id WHERE j.status = 'completed' AND t.kind = 'export' AND"
    "  j.id = ANY (ARRAY(SELECT unnest(r.job_ids) FROM schedule_runs r WHERE r.id = $1))) p"
    " WHERE strpos(p.path || '/', '/' || $2 || '/') > 0";

/* What retention must not touch: where the VMs that failed have their exports, and VMs that no job
 * could be made for; and how many jobs are not there any more, about whose VMs nothing is known. */
#define AT_SCHEDULE "strpos(p.path || '/', '/' || $2 || '/') + length($2)"
static const char KEEP[] =
    "SELECT (SELECT coalesce(jsonb_agg(DISTINCT left(p.path, " AT_SCHEDULE ") || '/' ||"
    "  split_part(substr(p.path, " AT_SCHEDULE " + 2), '/', 1)), '[]') FROM (SELECT"
    "   t.spec->>'output_path' AS path FROM tasks t JOIN jobs j ON j.id = t.job_id WHERE"
    "   j.id = ANY (r.job_ids) AND j.status <> 'completed' AND t.kind = 'export') p"
    "  WHERE strpos(p.path || '/', '/' || $2 || '/') > 0),"
    " r.errors, cardinality(r.job_ids) - (SELECT count(*) FROM jobs j WHERE j.id = ANY (r.job_ids))"
    " FROM schedule_runs r WHERE r.id = $1";

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

/* Appends text as a glob that matches nothing else, and what is below it. */
static void add_glob(json_t *globs, const char *text, const char *below)
{
    auto_strbuf glob;

    strbuf_init(&glob, GLOB_BYTES_MAX);
    for (const char *p = text; *p != '\0'; p++) {
        if (strchr("*?[\\", *p) != NULL)
            strbuf_addc(&glob, '\\');
        strbuf_addc(&glob, *p);
    }
    strbuf_add(&glob, below);
    (void)json_array_append_new(globs, json_string(glob.data));
}

/* Retention is a matter of each VM: those that have no new export keep what they have. *out false:
 * it is not known any more which those are. */
static int keep_failed(struct db *db, const char *run_id, const char *schedule_id, json_t *spec,
                       bool *out, struct error *err)
{
    auto_pgresult *rows = NULL;
    auto_json *dirs = NULL;
    auto_json *errors = NULL;
    json_t *globs = json_array();
    const json_t *item;
    size_t i;

    json_put(spec, "preserve", globs);
    if (db_exec(db, KEEP, DB_PARAMS(run_id, schedule_id), &rows, err) < 0)
        return -1;
    dirs = json_loads(db_text(rows, 0, 0), 0, NULL);
    errors = json_loads(db_text(rows, 0, 1), 0, NULL);
    json_array_foreach(dirs, i, item)
    {
        add_glob(globs, json_string_value(item), "");
        add_glob(globs, json_string_value(item), "/*");
    }
    json_array_foreach(errors, i, item)
    {
        add_glob(globs, path_last(json_str(item, "vm_path")), "");
    }
    *out = db_i64(rows, 0, 2) == 0 && json_array_size(errors) < SCHEDULE_ERRORS_LISTED;
    return 0;
}

static bool all_completed(const PGresult *facts)
{
    return db_i64(facts, 0, 3) == db_i64(facts, 0, 1) && db_i64(facts, 0, 2) == 0;
}

static int add_cleanups(struct db *db, const char *run_id, const PGresult *facts,
                        const struct retry_config *retry, json_t *out_ids, struct error *err)
{
    const char *schedule_id = db_text(facts, 0, 0);
    auto_json *retention = json_loads(db_text(facts, 0, 6), 0, NULL);
    auto_json *spec = cleanup_spec(retention);
    auto_pgresult *places = NULL;
    bool known = true;

    if (spec == NULL)
        return 0;
    if (!all_completed(facts) && keep_failed(db, run_id, schedule_id, spec, &known, err) < 0)
        return -1;
    if (!known)
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
    bool ok = all_completed(facts);
    auto_json *cleanups = json_array();
    autofree char *reason = NULL;
    autofree char *text = NULL;

    if (completed > 0 && add_cleanups(db, run_id, facts, retry, cleanups, err) < 0)
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
