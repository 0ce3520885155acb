/* Time windows of jobs: the database says which ones are due for a look, time_window.h what they
 * are, and everything waits with a hold. A window that ends between two looks is guarded by the
 * claim, which takes no job behind its window_at. */
#include <inttypes.h>
#include <stdio.h>

#include "common/autos.h"
#include "common/job_store.h"
#include "common/json.h"
#include "common/log.h"
#include "common/time_window.h"
#include "park.h"
#include "scheduler.h"

#define NUMBER_SIZE 24
#define TURN_MAX    "1000" /* jobs of one statement: the next look takes more */

/* Jobs have few different windows: a schedule's or a policy's are all the same. */
static const char DUE[] =
    "SELECT DISTINCT time_windows, extract(epoch FROM now())::bigint FROM jobs"
    " WHERE window_at <= now() AND completed_at IS NULL AND time_windows IS NOT NULL LIMIT 200";

static const char TURN[] =
    "UPDATE jobs SET window_open = $2::boolean, window_at = to_timestamp($3::bigint)"
    " WHERE id IN (SELECT id FROM jobs WHERE window_at <= now() AND completed_at IS NULL"
    "  AND time_windows = $1::jsonb ORDER BY window_at LIMIT " TURN_MAX " FOR UPDATE SKIP LOCKED)";

/* Also of tasks that came back to the queue, or were let go by something else. */
#define CLOSED "(j.window_at IS NOT NULL AND NOT j.window_open)"
static const char HOLD[] =
    "UPDATE tasks SET hold = 'window', updated_at = now() WHERE id IN (SELECT t.id FROM jobs j"
    "  JOIN tasks t ON t.job_id = j.id AND t.state = 'queued' AND t.hold = '' WHERE " CLOSED
    "  AND j.completed_at IS NULL LIMIT " TURN_MAX " FOR UPDATE OF t SKIP LOCKED)";

static const char LET_GO[] =
    "UPDATE tasks SET hold = '', updated_at = now() WHERE id IN (SELECT t.id FROM tasks t"
    "  JOIN jobs j ON j.id = t.job_id WHERE t.state = 'queued' AND t.hold = 'window'"
    "  AND NOT " CLOSED " LIMIT " TURN_MAX " FOR UPDATE OF t SKIP LOCKED)";

static const char OVERDUE[] =
    "SELECT j.id FROM jobs j WHERE " CLOSED " AND j.window_at > now() AND j.completed_at IS NULL"
    " AND j.on_window_end = 'cancel' AND j.status = 'running' LIMIT 200";

static int turn(struct db *db, const PGresult *due, int row, struct error *err)
{
    const char *text = db_text(due, row, 0);
    auto_json *windows = json_loads(text, 0, NULL);
    struct time_windows_state at = {.open = false};
    char change[NUMBER_SIZE];

    if (time_windows_at(windows, db_i64(due, row, 1), &at, err) < 0)
        return -1;
    (void)snprintf(change, sizeof change, "%" PRId64, at.change_s);
    return db_exec(db, TURN, DB_PARAMS(text, at.open ? "true" : "false", change), NULL, err);
}

/* Windows that cannot be read (a zone is gone) do not keep others shut. The first error is kept. */
static int turn_all(struct db *db, struct error *err)
{
    auto_pgresult *due = NULL;

    if (db_exec(db, DUE, DB_NO_PARAMS, &due, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(due); i++) {
        struct error why = ERROR_NONE;
        if (turn(db, due, i, &why) < 0 && err->code == ERR_NONE)
            *err = why;
    }
    return err->code == ERR_NONE ? 0 : -1;
}

static int end_overdue(struct scheduler *scheduler, struct db *db, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, OVERDUE, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++) {
        const char *id = db_text(rows, i, 0);
        struct error why = ERROR_NONE;
        if (job_store_cancel(db, id, "scheduler", "its time window ended", false, &why) == 0) {
            LOG(INFO, "job_out_of_window", F_STR("job_id", id));
            scheduler_announce_job(scheduler, id, "job.cancelling");
        } else if (why.code != ERR_CONFLICT && err->code == ERR_NONE) {
            *err = why; /* in conflict: it has just ended by itself */
        }
    }
    return err->code == ERR_NONE ? 0 : -1;
}

int scheduler_apply_windows(struct scheduler *scheduler, struct db *db, struct error *err)
{
    auto_pgresult *let_go = NULL;
    struct error unread = ERROR_NONE;

    if (turn_all(db, &unread) < 0 && error_is_retryable(&unread)) {
        *err = unread;
        return -1;
    }
    if (db_exec(db, HOLD, DB_NO_PARAMS, NULL, err) < 0 ||
        db_exec(db, LET_GO, DB_NO_PARAMS, &let_go, err) < 0 || end_overdue(scheduler, db, err) < 0)
        return -1;
    if (db_affected(let_go) > 0)
        park_wake(scheduler->park);
    if (unread.code != ERR_NONE)
        *err = unread;
    return err->code == ERR_NONE ? 0 : -1;
}
