/* Repeats the clean-up of exports. The settings row that the API writes wins over the section
 * "cleanup" of the configuration. */
#include "cleanup_schedule.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/cleanup_job.h"
#include "common/json.h"
#include "common/paths.h"

/* Not while one is under way. */
static const char FIND_DUE[] =
    "SELECT s.value->>'interval_ms', s.value->'spec' FROM (SELECT coalesce((SELECT value"
    "  FROM settings WHERE key = '" CLEANUP_SCHEDULE_KEY "'), $1::jsonb) AS value) s"
    " WHERE (s.value->>'interval_ms')::bigint > 0"
    " AND coalesce((SELECT (value->>'at')::bigint FROM settings WHERE key = '" CLEANUP_LAST_KEY
    "'), 0) + (s.value->>'interval_ms')::bigint <= (extract(epoch FROM now()) * 1000)::bigint"
    " AND NOT EXISTS (SELECT 1 FROM jobs WHERE kind = 'cleanup'"
    "  AND status IN ('pending', 'running', 'paused', 'cancelling'))";

/* Of two leaders one gets the row. */
static const char TAKE_TURN[] =
    "INSERT INTO settings AS s (key, value) VALUES ('" CLEANUP_LAST_KEY "',"
    " jsonb_build_object('at', (extract(epoch FROM now()) * 1000)::bigint))"
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = now()"
    " WHERE (s.value->>'at')::bigint + $1::bigint <= (excluded.value->>'at')::bigint RETURNING 1";

static json_t *configured(const struct cleanup_config *config)
{
    json_t *preserve = json_array();
    json_t *spec = json_object();
    json_t *schedule = json_object();

    for (size_t i = 0; i < config->preserve.count; i++)
        (void)json_array_append_new(preserve, json_string(config->preserve.items[i]));
    json_put(spec, "max_age_ms", json_integer(config->max_age_ms));
    json_put(spec, "max_count", json_integer((json_int_t)config->max_count));
    json_put(spec, "max_size", json_integer((json_int_t)config->max_size));
    json_put(spec, "min_free", json_integer((json_int_t)config->min_free));
    json_put(spec, "per_vm", json_boolean(config->per_vm));
    json_put(spec, "preserve", preserve);
    json_put(schedule, "interval_ms", json_integer(config->schedule_ms));
    json_put(schedule, "spec", spec);
    return schedule;
}

static int submit(struct scheduler *scheduler, struct db *db, const char *spec_text,
                  struct error *err)
{
    struct config_list bases = {.items = &scheduler->export.base_path, .count = 1};
    auto_json *spec = NULL;
    autofree char *dir = NULL;
    char id[64];

    if (json_parse(spec_text, strlen(spec_text), MIB, &spec, err) < 0)
        return error_wrap(err, "settings row '" CLEANUP_SCHEDULE_KEY "'");
    if (json_str(spec, "dir")[0] == '\0') { /* the configuration's */
        if (path_confine(&bases, bases.items[0], &dir, err) < 0)
            return -1;
        json_set_text(spec, "dir", dir);
    }
    if (cleanup_submit(db,
                       &(struct cleanup_request){.spec = spec,
                                                 .submitted_by = "scheduler",
                                                 .trace_id = "",
                                                 .retry = &scheduler->retry},
                       id, err) < 0)
        return -1;
    LOG(INFO, "cleanup_due", F_STR("job_id", id));
    return 0;
}

int cleanup_schedule_run(struct scheduler *scheduler, struct db *db, struct error *err)
{
    auto_json *schedule = configured(&scheduler->cleanup);
    autofree char *text = json_text(schedule);
    auto_pgresult *due = NULL;
    auto_pgresult *turn = NULL;

    if (db_exec(db, FIND_DUE, DB_PARAMS(text), &due, err) < 0)
        return -1;
    if (PQntuples(due) == 0)
        return 0;
    if (db_begin(db, err) < 0)
        return -1;
    if (db_exec(db, TAKE_TURN, DB_PARAMS(db_text(due, 0, 0)), &turn, err) < 0 ||
        (PQntuples(turn) == 1 && submit(scheduler, db, db_text(due, 0, 1), err) < 0)) {
        db_rollback(db);
        return -1;
    }
    return db_commit(db, err);
}
