/* Priority with aging: a task's rank is the time of its submission less what its priority weighs
 * (queue_rank() in the schema). All waiting tasks age alike, so ranks never have to be updated, but
 * for a new weight. */
#include <inttypes.h>
#include <stdio.h>

#include "scheduler.h"

#define STRICT_MS INT64_C(1000000000000) /* 31 years per point: no wait outweighs one */

static const char SET[] =
    "INSERT INTO settings (key, value) VALUES ('queue.aging_ms', to_jsonb($1::bigint))"
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = now()"
    " WHERE settings.value <> excluded.value RETURNING key";

static const char RANK[] = "UPDATE tasks SET rank = queue_rank(created_at, priority)"
                           " WHERE state IN ('blocked', 'queued', 'leased', 'finishing')";

static int set(struct db *db, const char *weight, struct error *err)
{
    PGresult *rows = NULL;
    bool changed;

    if (db_exec(db, SET, DB_PARAMS(weight), &rows, err) < 0)
        return -1;
    changed = PQntuples(rows) > 0;
    PQclear(rows);
    return changed ? db_exec(db, RANK, DB_NO_PARAMS, NULL, err) : 0;
}

int scheduler_set_aging(const struct scheduler *scheduler, struct db *db, struct error *err)
{
    int64_t weight = scheduler->config.priority_aging_ms;
    char text[24];

    (void)snprintf(text, sizeof text, "%" PRId64, weight == 0 ? STRICT_MS : weight);
    if (db_begin(db, err) < 0)
        return -1;
    if (set(db, text, err) < 0) {
        db_rollback(db);
        return -1;
    }
    return db_commit(db, err);
}
