/* See schedule_view.h; and the handlers that only show: list, one, runs, totals. */
#include "schedule_view.h"

#include <inttypes.h>
#include <stdio.h>

#include "common/json.h"
#include "common/parse.h"
#include "handler_util.h"
#include "handlers.h"

#define NUMBER_TEXT 24

/* What was not given is shown as what holds. Durations are shown as they may be sent. */
#define SHOWN                                                                                   \
    "jsonb_build_object('id', s.id, 'name', s.name, 'description',"                             \
    " coalesce(s.fields->>'description', ''), 'schedule', s.fields->>'schedule', 'timezone',"   \
    " s.fields->>'timezone', 'job_template', s.fields->'job_template', 'enabled', s.enabled,"   \
    " 'retention', s.fields->'retention', 'tags', coalesce(s.fields->'tags', '[]'), 'overlap'," \
    " coalesce(s.fields->>'overlap', 'skip'), 'misfire', coalesce(s.fields->>'misfire',"        \
    " 'run_once'), 'jitter', coalesce((s.fields->>'jitter')::bigint, 0) / 1000) ||"             \
    " (SELECT coalesce(jsonb_object_agg(f.key, f.value), '{}') FROM jsonb_each(s.fields) f"     \
    "  WHERE f.key IN ('misfire_limit', 'time_windows', 'on_window_end', 'depends_on')) ||"     \
    " jsonb_build_object('next_run', " SQL_TIME("s.next_run_at") ", 'last_run', " SQL_TIME(     \
        "l.at") ", 'last_status', l.status, 'run_count', s.run_count, 'created_by',"            \
                " s.created_by, 'created_at', " SQL_TIME(                                       \
                    "s.created_at") ", 'updated_at', " SQL_TIME("s.updated_at") ")"
#define FROM_SCHEDULES                                                                        \
    " FROM schedules s LEFT JOIN LATERAL (SELECT coalesce(r.started_at, r.created_at) AS at," \
    "  r.status FROM schedule_runs r WHERE r.schedule_id = s.id AND r.status NOT IN"          \
    "  ('missed', 'queued') ORDER BY r.seq DESC LIMIT 1) l ON true"
#define FILTERS                                                     \
    " WHERE s.policy_id = '' AND ($1::text IS NULL OR s.name = $1)" \
    " AND ($2::boolean IS NULL OR s.enabled = $2::boolean)"         \
    " AND ($3::text IS NULL OR s.fields->'tags' ? $3)"

static const char ONE[] = "SELECT " SHOWN FROM_SCHEDULES " WHERE s.id = $1";
static const char LIST[] = "SELECT " SHOWN ", s.seq" FROM_SCHEDULES FILTERS
                           " AND ($4::bigint IS NULL OR s.seq > $4::bigint) ORDER BY s.seq"
                           " LIMIT $5::int OFFSET $6::int";
static const char COUNT[] = "SELECT count(*) FROM schedules s" FILTERS;
static const char RUNS[] =
    "SELECT jsonb_build_object('run_id', r.id, 'schedule_id', r.schedule_id, 'job_ids',"
    " to_jsonb(r.job_ids), 'due_at', " SQL_TIME("r.due_at") ", 'started_at', " SQL_TIME(
        "r.started_at") ", 'completed_at', " SQL_TIME("r.completed_at") ", 'status',"
                                                                        " r.status, 'reason', "
                                                                        "r.reason, 'manual', "
                                                                        "r.manual, 'errors', "
                                                                        "r.errors, "
                                                                        "'cleanup_job_ids',"
                                                                        " to_jsonb(r.cleanup_job_"
                                                                        "ids)), r.seq FROM "
                                                                        "schedule_runs r WHERE "
                                                                        "r.schedule_id = $1"
                                                                        " AND ($2::text IS NULL OR "
                                                                        "r.status = $2) AND "
                                                                        "($3::bigint IS NULL OR "
                                                                        "r.seq < $3::bigint)"
                                                                        " ORDER BY r.seq DESC "
                                                                        "LIMIT $4::int OFFSET "
                                                                        "$5::int";
static const char RUN_COUNT[] = "SELECT count(*) FROM schedule_runs r WHERE r.schedule_id = $1"
                                " AND ($2::text IS NULL OR r.status = $2)";
static const char EXISTS[] = "SELECT 1 FROM schedules WHERE id = $1";
static const char STATS[] =
    "SELECT jsonb_build_object('total', count(*), 'enabled', count(*) FILTER (WHERE enabled),"
    " 'disabled', count(*) FILTER (WHERE NOT enabled), 'next_run', " SQL_TIME(
        "min(next_run_at)") ", 'runs', (SELECT jsonb_build_object('ok', count(*) FILTER (WHERE "
                            "r.status = 'ok'), 'failed',"
                            " count(*) FILTER (WHERE r.status = 'failed'), 'skipped', count(*) "
                            "FILTER (WHERE r.status ="
                            " 'skipped'), 'missed', count(*) FILTER (WHERE r.status = 'missed'), "
                            "'running', count(*)"
                            " FILTER (WHERE r.status = 'running'), 'queued', count(*) FILTER "
                            "(WHERE r.status = 'queued'))"
                            " FROM schedule_runs r JOIN schedules o ON o.id = r.schedule_id WHERE "
                            "o.policy_id = ''))"
                            " FROM schedules WHERE policy_id = ''";

static const struct field list_fields[] = {
    {"name", {NULL}, FIELD_TEXT, 1, 128, NULL},
    {"enabled", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"tag", {NULL}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    PAGE_FIELDS,
    {0},
};
static const struct field run_fields[] = {
    {"status", {NULL}, FIELD_TEXT, 1, 16, NULL},
    PAGE_FIELDS,
    {0},
};

static int load_view(struct call *call, const char *id, json_t **out, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(call->db, ONE, DB_PARAMS(id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "schedule '%.64s' does not exist", id);
    *out = cell_json(rows, 0, 0);
    return 0;
}

int schedule_answer(struct call *call, unsigned int status, const char *message, const char *id,
                    struct error *err)
{
    json_t *schedule = NULL;
    json_t *answer;

    if (load_view(call, id, &schedule, err) < 0)
        return -1;
    call_resource(call, "schedule", id);
    answer = json_object();
    json_set_text(answer, "message", message);
    json_put(answer, "schedule", schedule);
    json_set_now(answer, "timestamp");
    call_answer_json(call, status, answer);
    return 0;
}

int handle_schedule_get(struct call *call, struct error *err)
{
    json_t *schedule = NULL;

    if (load_view(call, call_param(call, "id"), &schedule, err) < 0)
        return -1;
    call_answer_json(call, 200, schedule);
    return 0;
}

struct list {      /* one page of rows with a JSON object and a sequence number */
    json_t *query; /* canonical parameters */
    struct page page;
    char cursor[NUMBER_TEXT];
    char limit[NUMBER_TEXT];
    char offset[NUMBER_TEXT];
};

static void list_release(struct list *list)
{
    json_decref(list->query);
}

static int read_list(struct call *call, const struct field *fields, struct list *list,
                     struct error *err)
{
    auto_json *parameters = NULL;
    struct field_problem problem = {0};
    struct error why = ERROR_NONE;
    uint64_t seq = 0;

    if (query_as_body(call, fields, &parameters, err) < 0)
        return -1;
    if (fields_canonical(fields, "", parameters, &list->query, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    page_from(list->query, PAGE_LIMIT_DEFAULT, &list->page);
    if (list->page.cursor != NULL) {
        if (parse_u64("cursor", list->page.cursor, 0, INT64_MAX, &seq, &why) < 0)
            return call_bad_field(call, "cursor", err, "'cursor' is not one of this list");
        (void)snprintf(list->cursor, sizeof list->cursor, "%" PRIu64, seq);
    }
    (void)snprintf(list->limit, sizeof list->limit, "%" PRIu32, list->page.limit + 1);
    (void)snprintf(list->offset, sizeof list->offset, "%" PRIu32, list->page.offset);
    return 0;
}

static void answer_list(struct call *call, const struct list *list, const char *name,
                        const PGresult *rows, const PGresult *total)
{
    json_t *answer = json_object();
    json_t *items = json_array();
    int count = PQntuples(rows);

    if (count > (int)list->page.limit) { /* one more than asked for: there is a next page */
        autofree char *cursor = NULL;
        count = (int)list->page.limit;
        cursor = xasprintf("%" PRId64, db_i64(rows, count - 1, 1));
        json_set_text(answer, "next_cursor", cursor);
    }
    for (int i = 0; i < count; i++)
        (void)json_array_append_new(items, cell_json(rows, i, 0));
    json_put(answer, name, items);
    json_set_i64(answer, "total", db_i64(total, 0, 0));
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
}

int handle_schedule_list(struct call *call, struct error *err)
{
    CLEANUP(list_release) struct list list = {0};
    auto_pgresult *rows = NULL;
    auto_pgresult *total = NULL;

    if (read_list(call, list_fields, &list, err) < 0)
        return -1;
    const char *params[] = {
        field_text(list.query, "name", NULL),
        json_object_get(list.query, "enabled") == NULL ? NULL
        : field_bool(list.query, "enabled", false)     ? "true"
                                                       : "false",
        field_text(list.query, "tag", NULL),
        list.cursor[0] == '\0' ? NULL : list.cursor,
        list.limit,
        list.offset,
    };
    if (db_exec(call->db, LIST, params, ARRAY_LEN(params), &rows, err) < 0 ||
        db_exec(call->db, COUNT, params, 3, &total, err) < 0)
        return -1;
    answer_list(call, &list, "schedules", rows, total);
    return 0;
}

int handle_schedule_runs(struct call *call, struct error *err)
{
    static const char *const statuses[] = {"queued",  "running", "ok", "failed",
                                           "skipped", "missed",  NULL};
    CLEANUP(list_release) struct list list = {0};
    const char *id = call_param(call, "id");
    auto_pgresult *exists = NULL;
    auto_pgresult *rows = NULL;
    auto_pgresult *total = NULL;

    if (read_list(call, run_fields, &list, err) < 0)
        return -1;
    if (!word_in(field_text(list.query, "status", statuses[0]), statuses)) {
        return call_bad_field(call, "status", err,
                              "'status' must be queued, running, ok, failed, skipped or missed");
    }
    const char *params[] = {id, field_text(list.query, "status", NULL),
                            list.cursor[0] == '\0' ? NULL : list.cursor, list.limit, list.offset};
    if (db_exec(call->db, EXISTS, DB_PARAMS(id), &exists, err) < 0)
        return -1;
    if (PQntuples(exists) == 0)
        return error_set(err, ERR_NOT_FOUND, "schedule '%.64s' does not exist", id);
    if (db_exec(call->db, RUNS, params, ARRAY_LEN(params), &rows, err) < 0 ||
        db_exec(call->db, RUN_COUNT, params, 2, &total, err) < 0)
        return -1;
    answer_list(call, &list, "runs", rows, total);
    return 0;
}

int handle_schedule_stats(struct call *call, struct error *err)
{
    auto_pgresult *rows = NULL;
    json_t *answer;

    if (db_exec(call->db, STATS, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    answer = cell_json(rows, 0, 0);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}
