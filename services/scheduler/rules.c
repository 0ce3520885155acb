/* Rules that end or release jobs without a worker: deadlines, dependencies. What they decide goes
 * through the state machine as everything does. */
#include "common/autos.h"
#include "common/job_store.h"
#include "common/log.h"
#include "park.h"
#include "scheduler.h"

#define ROWS_MAX "200" /* of one look: the next one takes more */

/* Of each job the task that its state is about: the first that is not over. */
#define CURRENT_TASK                                                             \
    "(SELECT t.id FROM tasks t WHERE t.job_id = j.id ORDER BY (t.state = 'done'" \
    " OR (t.state = 'failed' AND t.may_fail)), t.ordinal LIMIT 1)"

static const char LATE[] =
    "SELECT " CURRENT_TASK ", 'deadline', 'it was not done by its deadline, ' ||"
    " to_char(j.deadline AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC' FROM jobs j"
    " WHERE j.deadline < now() AND j.completed_at IS NULL"
    " AND j.status IN ('pending', 'running', 'paused') ORDER BY j.deadline LIMIT " ROWS_MAX;

/* What a dependency is now; the archive answers for jobs that ended long ago. */
#define DEPENDENCIES                                                            \
    "SELECT d.*, coalesce((SELECT o.status FROM jobs o WHERE o.id = d.on_job)," \
    "  (SELECT o.status FROM archived_jobs o WHERE o.id = d.on_job)) AS status" \
    " FROM tasks w JOIN job_dependencies d ON d.job_id = w.job_id"              \
    " WHERE w.state = 'queued' AND w.hold = 'depends'"
#define IS_MET                                                                         \
    "(required = status OR (required = 'final' AND status IN ('completed', 'failed', " \
    "'cancelled')))"

static const char HOPELESS[] =
    "WITH d AS (" DEPENDENCIES "), bad AS (SELECT DISTINCT ON (job_id) job_id, CASE"
    "  WHEN status IS NULL THEN 'job ' || on_job || ', which it waits for, was deleted'"
    "  WHEN status IN ('completed', 'failed', 'cancelled') THEN 'it waits for job ' || on_job ||"
    "   ' to end as ' || required || ', but that is ' || status"
    "  ELSE 'job ' || on_job || ' was not ' || required || ' in time: it is ' || status END AS why"
    "  FROM d WHERE NOT coalesce(" IS_MET ", false) AND (status IS NULL"
    "   OR status IN ('completed', 'failed', 'cancelled') OR timeout_at < now())"
    "  ORDER BY job_id, on_job)"
    " SELECT " CURRENT_TASK ", 'dependency', bad.why FROM bad JOIN jobs j ON j.id = bad.job_id"
    " WHERE j.status = 'pending' LIMIT " ROWS_MAX;

static const char RELEASE[] =
    "WITH d AS (" DEPENDENCIES ")"
    " UPDATE tasks SET hold = '', updated_at = now() WHERE id IN (SELECT t.id FROM tasks t WHERE"
    "  t.state = 'queued' AND t.hold = 'depends' AND NOT EXISTS (SELECT 1 FROM d"
    "   WHERE d.job_id = t.job_id AND NOT coalesce(" IS_MET ", false)) LIMIT 1000"
    "  FOR UPDATE SKIP LOCKED)";

static int doom(struct db *db, const PGresult *rows, int row, struct error *err)
{
    struct job_store_event event = {
        .task_id = db_text(rows, row, 0),
        .actor = "scheduler",
        .error_code = db_text(rows, row, 1),
        .error_message = db_text(rows, row, 2),
        .input = {.event = JOB_EVENT_DOOMED},
    };
    struct job_decision decision;

    if (job_store_apply(db, &event, &decision, err) < 0)
        return -1;
    if (decision.allowed) {
        LOG(INFO, "job_doomed", F_STR("task_id", event.task_id), F_STR("rule", event.error_code),
            F_STR("reason", event.error_message));
    }
    return 0;
}

static int doom_all(struct db *db, const char *sql, int *out_count, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++) {
        if (doom(db, rows, i, err) < 0)
            return -1;
    }
    *out_count += PQntuples(rows);
    return 0;
}

int scheduler_apply_rules(struct scheduler *scheduler, struct db *db, struct error *err)
{
    auto_pgresult *released = NULL;
    int doomed = 0;

    if (doom_all(db, LATE, &doomed, err) < 0 || doom_all(db, HOPELESS, &doomed, err) < 0 ||
        db_exec(db, RELEASE, DB_NO_PARAMS, &released, err) < 0)
        return -1;
    if (doomed > 0)
        publish_wake();
    if (doomed > 0 || db_affected(released) > 0)
        park_wake(scheduler->park);
    return 0;
}
