/* Clean-up of exports: once, and its schedule (rest-api.md 2.8). */
#include <string.h>

#include "common/cleanup_job.h"
#include "common/cleanup_policy.h"
#include "common/json.h"
#include "handler_util.h"
#include "handlers.h"

#define INTERVAL_MIN_MS 1000

static const struct field cleanup_fields[] = {CLEANUP_POLICY_FIELDS, {0}};
static const struct field schedule_fields[] = {
    {"interval", {NULL}, FIELD_DURATION, 0, CLEANUP_AGE_MAX_MS, NULL}, CLEANUP_POLICY_FIELDS, {0}};

static const char get_sql[] = "SELECT value, (SELECT (value->>'at')::bigint FROM settings"
                              " WHERE key = '" CLEANUP_LAST_KEY "') FROM settings"
                              " WHERE key = '" CLEANUP_SCHEDULE_KEY "'";
static const char put_sql[] =
    "INSERT INTO settings (key, value) VALUES ('" CLEANUP_SCHEDULE_KEY "', $1::jsonb)"
    " ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = now()";
static const char forget_last_sql[] =
    "DELETE FROM settings WHERE key = '" CLEANUP_LAST_KEY "'"; /* the first run comes at once */
static const char delete_sql[] =
    "DELETE FROM settings WHERE key = '" CLEANUP_SCHEDULE_KEY "' RETURNING 1";

static void copy_member(json_t *to, const json_t *from, const char *name)
{
    json_t *value = json_object_get(from, name);

    if (value != NULL)
        (void)json_object_set(to, name, value);
}

static int read_policy(struct call *call, const json_t *body, json_t **out_spec, struct error *err)
{
    const struct config_list *bases = &call->gateway->bases;
    struct error why = ERROR_NONE;

    if (cleanup_policy_spec(bases, body, bases->items[0], out_spec, &why) == 0)
        return 0;
    return call_fail(call, why.code == ERR_INVALID ? 400 : 422, json_pack("{s:s}", "field", "dir"),
                     err, why.code, "%s", why.message);
}

int handle_export_cleanup(struct call *call, struct error *err)
{
    auto_json *body = NULL;
    auto_json *spec = NULL;
    char id[64];

    if (call_fields(call, cleanup_fields, &body, err) < 0 ||
        read_policy(call, body, &spec, err) < 0 ||
        cleanup_submit(call->db,
                       &(struct cleanup_request){.spec = spec,
                                                 .submitted_by = call->identity.username,
                                                 .trace_id = call->trace_id,
                                                 .retry = &call->gateway->retry},
                       id, err) < 0)
        return -1;
    call_resource(call, "job", id);
    call_answer_job(call, id, json_str(spec, "dir"));
    return 0;
}

/* ---- the schedule ---- */

/* As it was put: durations as milliseconds. */
static int answer_schedule(struct call *call, struct error *err)
{
    auto_pgresult *rows = NULL;
    auto_json *value = NULL;
    json_t *answer;

    if (db_exec(call->db, get_sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0) {
        return error_set(err, ERR_NOT_FOUND,
                         "no schedule was put here (the section 'cleanup' of the configuration "
                         "may have one)");
    }
    value = cell_json(rows, 0, 0);
    answer = json_deep_copy(json_object_get(value, "spec"));
    copy_member(answer, value, "interval_ms");
    if (!db_is_null(rows, 0, 1))
        json_set_i64(answer, "last_run_ms", db_i64(rows, 0, 1));
    call_answer_json(call, 200, answer);
    return 0;
}

int handle_cleanup_schedule_get(struct call *call, struct error *err)
{
    return answer_schedule(call, err);
}

int handle_cleanup_schedule_put(struct call *call, struct error *err)
{
    auto_json *body = NULL;
    auto_json *spec = NULL;
    auto_json *schedule = json_object();
    autofree char *text = NULL;
    int64_t interval;

    if (call_fields(call, schedule_fields, &body, err) < 0)
        return -1;
    if (json_object_get(body, "interval") == NULL)
        return call_bad_field(call, "interval", err, "'interval' is missing");
    interval = field_duration_ms(body, "interval", 0);
    if (interval != 0 && interval < INTERVAL_MIN_MS)
        return call_bad_field(call, "interval", err, "'interval' must be 0 (off) or at least 1s");
    if (read_policy(call, body, &spec, err) < 0)
        return -1;
    json_set_i64(schedule, "interval_ms", interval);
    (void)json_object_set(schedule, "spec", spec);
    text = json_text(schedule);
    if (db_begin(call->db, err) < 0 || db_exec(call->db, put_sql, DB_PARAMS(text), NULL, err) < 0 ||
        db_exec(call->db, forget_last_sql, DB_NO_PARAMS, NULL, err) < 0 ||
        db_commit(call->db, err) < 0)
        return -1;
    return answer_schedule(call, err);
}

int handle_cleanup_schedule_delete(struct call *call, struct error *err)
{
    auto_pgresult *rows = NULL;
    json_t *answer;

    if (db_exec(call->db, delete_sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "no schedule was put here");
    answer = json_object();
    json_set_text(answer, "deleted", "cleanup");
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}
