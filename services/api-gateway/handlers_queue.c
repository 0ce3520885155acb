/* The queue as a whole: what waits, and for whom; pause and resume. Draining one worker. */
#include <string.h>

#include "common/json.h"
#include "handler_util.h"
#include "handlers.h"

#define REASON_MAX 300

static const char pause_sql[] =
    "INSERT INTO settings (key, value) VALUES ('queue.paused', jsonb_build_object('by', $1::text,"
    " 'reason', $2::text, 'since', now())) ON CONFLICT DO NOTHING RETURNING key";
static const char resume_sql[] = "DELETE FROM settings WHERE key = 'queue.paused' RETURNING key";
static const char state_sql[] =
    "SELECT p.by, p.reason, " SQL_TIME("p.since") " FROM settings s, jsonb_to_record(s.value)"
                                                  " AS p(by text, reason text, since timestamptz)"
                                                  " WHERE s.key = 'queue.paused'";
/* Jobs that are not over, by provider and what they do. */
static const char depth_sql[] =
    "SELECT provider, status, count(*) FROM jobs"
    " WHERE status IN ('pending', 'running', 'paused', 'cancelling') GROUP BY 1, 2 ORDER BY 1, 2";
static const char tasks_sql[] =
    "SELECT count(*) FILTER (WHERE class = 'transfer'), count(*) FILTER (WHERE class = 'control')"
    " FROM tasks WHERE state = 'queued'";

static const char drain_sql[] =
    "UPDATE workers SET drained_at = now(), drained_by = $2 WHERE instance = $1"
    " AND state <> 'down' AND drained_at IS NULL RETURNING instance";
static const char undrain_sql[] =
    "UPDATE workers SET drained_at = NULL, drained_by = '' WHERE instance = $1"
    " AND drained_at IS NOT NULL RETURNING instance";
static const char worker_sql[] =
    "SELECT w.state, w.drained_by, (SELECT count(*) FROM tasks t WHERE t.worker = w.instance"
    "  AND t.state IN ('leased', 'finishing')) FROM workers w WHERE w.instance = $1";

static const struct field reason_fields[] = {
    {"reason", {NULL}, FIELD_TEXT, 0, REASON_MAX, NULL},
    {0},
};

/* ---- the queue ---- */

int queue_state(struct db *db, json_t **out, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, state_sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    *out = json_object();
    json_put(*out, "paused", json_boolean(PQntuples(rows) == 1));
    if (PQntuples(rows) == 1) {
        json_set_text(*out, "paused_by", db_text(rows, 0, 0));
        json_set_text(*out, "reason", db_text(rows, 0, 1));
        json_put(*out, "paused_since", cell_text(rows, 0, 2));
    }
    return 0;
}

/* One entry per provider; *totals: the same of all. */
static json_t *depth_of(const PGresult *rows, json_t *totals)
{
    static const char *const keys[] = {"pending", "running", "paused", "cancelling"};
    json_t *list = json_array();
    json_t *entry = NULL;

    for (size_t k = 0; k < ARRAY_LEN(keys); k++)
        json_set_i64(totals, keys[k], 0);
    for (int i = 0; i < PQntuples(rows); i++) {
        const char *status = db_text(rows, i, 1);
        int64_t count = db_i64(rows, i, 2);
        if (i == 0 || strcmp(db_text(rows, i, 0), db_text(rows, i - 1, 0)) != 0) {
            entry = json_object();
            json_set_text(entry, "provider", db_text(rows, i, 0));
            for (size_t k = 0; k < ARRAY_LEN(keys); k++)
                json_set_i64(entry, keys[k], 0);
            (void)json_array_append_new(list, entry);
        }
        json_set_i64(entry, status, count);
        json_set_i64(totals, status, (int64_t)json_u64(totals, status) + count);
    }
    return list;
}

static int answer_queue(struct call *call, struct error *err)
{
    auto_pgresult *depth = NULL;
    auto_pgresult *tasks = NULL;
    auto_json *answer = NULL;
    json_t *totals;

    if (queue_state(call->db, &answer, err) < 0 ||
        db_exec(call->db, depth_sql, DB_NO_PARAMS, &depth, err) < 0 ||
        db_exec(call->db, tasks_sql, DB_NO_PARAMS, &tasks, err) < 0)
        return -1;
    totals = json_object();
    json_put(answer, "jobs", totals);
    json_put(answer, "providers", depth_of(depth, totals));
    json_set_i64(answer, "queue_depth", db_i64(tasks, 0, 0));
    json_set_i64(answer, "control_queue_depth", db_i64(tasks, 0, 1));
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, STEAL(answer));
    return 0;
}

int handle_queue_get(struct call *call, struct error *err)
{
    return answer_queue(call, err);
}

int handle_queue_pause(struct call *call, struct error *err)
{
    auto_json *fields = NULL;
    auto_pgresult *rows = NULL;

    call_resource(call, "queue", "queue");
    if (call_fields(call, reason_fields, &fields, err) < 0)
        return -1;
    if (db_exec(call->db, pause_sql,
                DB_PARAMS(call->identity.username, field_text(fields, "reason", "")), &rows,
                err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_CONFLICT, "the queue is paused already");
    gateway_poke(call->gateway, NULL);
    return answer_queue(call, err);
}

static int no_body(struct call *call, struct error *err)
{
    static const char *const no_keys[] = {NULL};

    return call->body == NULL ? 0 : json_check_keys(call->body, no_keys, err);
}

int handle_queue_resume(struct call *call, struct error *err)
{
    auto_pgresult *rows = NULL;

    call_resource(call, "queue", "queue");
    if (no_body(call, err) < 0 || db_exec(call->db, resume_sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_CONFLICT, "the queue is not paused");
    gateway_poke(call->gateway, NULL);
    return answer_queue(call, err);
}

/* ---- one worker ---- */

/* taken: did the wish change its row? */
static int answer_worker(struct call *call, const char *instance, bool taken, struct error *err)
{
    auto_pgresult *rows = NULL;
    json_t *answer;
    bool drained;

    if (db_exec(call->db, worker_sql, DB_PARAMS(instance), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0) {
        return error_set(err, ERR_NOT_FOUND,
                         "no worker is called '%.100s' (/status lists those that are connected)",
                         instance);
    }
    drained = db_text(rows, 0, 1)[0] != '\0';
    if (!taken) {
        return error_set(err, ERR_CONFLICT, "worker '%.100s' is %s", instance,
                         drained                                    ? "drained already"
                         : strcmp(db_text(rows, 0, 0), "down") == 0 ? "down"
                                                                    : "not drained");
    }
    gateway_poke(call->gateway, NULL);
    answer = json_object();
    json_set_text(answer, "instance", instance);
    json_put(answer, "drained", json_boolean(drained));
    json_set_i64(answer, "running", db_i64(rows, 0, 2));
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

int handle_worker_drain(struct call *call, struct error *err)
{
    const char *instance = call_param(call, "instance");
    auto_pgresult *rows = NULL;

    call_resource(call, "worker", instance);
    if (no_body(call, err) < 0 ||
        db_exec(call->db, drain_sql, DB_PARAMS(instance, call->identity.username), &rows, err) < 0)
        return -1;
    return answer_worker(call, instance, PQntuples(rows) == 1, err);
}

int handle_worker_resume(struct call *call, struct error *err)
{
    const char *instance = call_param(call, "instance");
    auto_pgresult *rows = NULL;

    call_resource(call, "worker", instance);
    if (no_body(call, err) < 0 ||
        db_exec(call->db, undrain_sql, DB_PARAMS(instance), &rows, err) < 0)
        return -1;
    return answer_worker(call, instance, PQntuples(rows) == 1, err);
}
