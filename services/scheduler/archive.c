/* See archive.h. One statement per step, so a job is always in exactly one of the two tables; of
 * two leaders one passes over what the other has locked. */
#include "archive.h"

#include <inttypes.h>
#include <stdio.h>

#include "common/autos.h"
#include "common/clock.h"

#define ARCHIVE_MS 10000 /* between two looks; each moves up to 200 jobs */

/* Not before the notifier and the publisher are done with it, nor while a worker still has to
 * remove something that its records name. The newest 10,000 lines of its log stay. */
static const char MOVE[] =
    "WITH old AS MATERIALIZED (SELECT j.id FROM jobs j WHERE j.completed_at <"
    "   now() - $1::bigint * interval '1 millisecond'"
    "   AND j.status IN ('completed', 'failed', 'cancelled')"
    "   AND NOT EXISTS (SELECT 1 FROM job_events e, published_position p WHERE e.job_id = j.id"
    "    AND NOT pg_visible_in_snapshot(e.xid, p.position)"
    "    AND pg_visible_in_snapshot(e.xid, pg_current_snapshot()))"
    "   AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.job_id = j.id"
    "    AND t.state IN ('queued', 'leased', 'finishing'))"
    "   AND NOT EXISTS (SELECT 1 FROM tasks r WHERE r.kind = 'release'"
    "    AND r.state IN ('queued', 'leased', 'finishing') AND r.spec->>'task_id' IN"
    "     (SELECT t.id FROM tasks t WHERE t.job_id = j.id))"
    "   AND NOT EXISTS (SELECT 1 FROM schedule_runs s WHERE s.schedule_id = j.schedule_id"
    "    AND s.status = 'running')"
    "   AND NOT EXISTS (SELECT 1 FROM workflow_runs w WHERE w.id = j.workflow_run_id"
    "    AND w.completed_at IS NULL)"
    "   ORDER BY j.completed_at LIMIT 200 FOR UPDATE OF j SKIP LOCKED),"
    /* a function in FROM is called once for each row, (f(x)).* once for each column */
    " moved AS (INSERT INTO archived_jobs SELECT r.* FROM jobs j JOIN old ON old.id = j.id"
    "   CROSS JOIN LATERAL jsonb_populate_record(NULL::archived_jobs,"
    "    to_jsonb(j) || jsonb_build_object('archived_at', now(),"
    "    'history', coalesce((SELECT jsonb_agg(to_jsonb(e) ORDER BY e.id) FROM job_events e"
    "     WHERE e.job_id = j.id), '[]'),"
    "    'logs', coalesce((SELECT jsonb_agg(to_jsonb(l) ORDER BY l.id) FROM (SELECT * FROM job_logs"
    "     WHERE job_id = j.id ORDER BY id DESC LIMIT 10000) l), '[]'),"
    "    'tasks', coalesce((SELECT jsonb_agg(to_jsonb(t) - 'token' ORDER BY t.ordinal) FROM tasks t"
    "     WHERE t.job_id = j.id), '[]'))) r RETURNING id)"
    " DELETE FROM jobs j USING moved WHERE j.id = moved.id";

static const char FORGET[] =
    "DELETE FROM archived_jobs WHERE id IN (SELECT id FROM archived_jobs WHERE completed_at <"
    " now() - $1::bigint * interval '1 millisecond' ORDER BY completed_at LIMIT 1000)";

static int run(struct db *db, const char *sql, int64_t age_ms, struct error *err)
{
    char age[24];

    if (age_ms == 0)
        return 0;
    (void)snprintf(age, sizeof age, "%" PRId64, age_ms);
    return db_exec(db, sql, DB_PARAMS(age), NULL, err);
}

int archive_run(struct scheduler *scheduler, struct db *db, struct error *err)
{
    static int64_t next_ms; /* of the reaper's thread */

    if (clock_mono_ms() < next_ms)
        return 0;
    next_ms = clock_mono_ms() + ARCHIVE_MS;
    if (run(db, MOVE, scheduler->history.archive_after_ms, err) < 0)
        return error_wrap(err, "archive of jobs");
    return run(db, FORGET, scheduler->history.delete_after_ms, err);
}
