/* Workflows: definitions and their runs (rest-api.md section 6). */
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/id.h"
#include "common/json.h"
#include "common/submit_bridge.h"
#include "common/workflow_store.h"
#include "handler_util.h"
#include "handlers.h"

#define WORKFLOWS_MAX 1000 /* stored ones; the list has them all */
#define RUNS_SHOWN    20   /* with a workflow: the newest */

static const char insert_sql[] =
    "INSERT INTO workflows (id, name, definition, created_by) SELECT $1, $2, $3::jsonb, $4"
    " WHERE (SELECT count(*) FROM workflows) < $5::bigint ON CONFLICT (name) DO NOTHING"
    " RETURNING " SQL_TIME("created_at");

static const char exists_sql[] = "SELECT id FROM workflows WHERE name = $1";

static const char find_sql[] =
    "SELECT id, name, definition, created_by, " SQL_TIME("created_at") " FROM workflows"
                                                                       " WHERE id = $1 OR name = $1"
                                                                       " ORDER BY id = $1 DESC"
                                                                       " LIMIT 1";

static const char list_sql[] = "SELECT w.id, w.name, w.definition, w.created_by, " SQL_TIME(
    "w.created_at") ", r.id, r.status,"
                    " " SQL_TIME("r.created_at") " FROM workflows w LEFT JOIN LATERAL (SELECT * "
                                                 "FROM workflow_runs x"
                                                 "  WHERE x.workflow_id = w.id ORDER BY x.seq DESC "
                                                 "LIMIT 1) r ON true ORDER BY w.seq";

static const char delete_sql[] =
    "DELETE FROM workflows w WHERE w.id = $1 AND NOT EXISTS (SELECT 1 FROM workflow_runs r"
    " WHERE r.workflow_id = w.id AND r.status IN ('running', 'paused', 'cancelling'))";

static const char runs_sql[] = "SELECT id, status, submitted_by, " SQL_TIME(
    "created_at") ", " SQL_TIME("completed_at") " FROM workflow_runs WHERE workflow_id = $1 ORDER "
                                                "BY seq DESC LIMIT $2::int";

static const char run_sql[] = "SELECT id, workflow_id, name, status, submitted_by, " SQL_TIME(
    "created_at") ", " SQL_TIME("completed_at") " FROM workflow_runs WHERE id = $1";

/* Errors of items: the first one, and how many more there are. */
static const char run_steps_sql[] =
    "SELECT s.id, s.kind, s.status, s.attempt, " SQL_TIME("s.started_at") ", " SQL_TIME(
        "s.completed_at") ", s.item_count, coalesce(i.jobs, '[]'::jsonb), i.done, i.failed,"
                          " i.first_error, s.run_when, (SELECT coalesce(jsonb_agg(d.id ORDER BY "
                          "d.ordinal), '[]'::jsonb)"
                          "  FROM workflow_steps d WHERE d.run_id = s.run_id AND (s.depends >> "
                          "d.ordinal) & 1 = 1)"
                          " FROM workflow_steps s LEFT JOIN LATERAL (SELECT"
                          "  jsonb_agg(w.job_id ORDER BY w.item) FILTER (WHERE w.job_id <> '') AS "
                          "jobs,"
                          "  count(*) FILTER (WHERE w.state = 'done') AS done,"
                          "  count(*) FILTER (WHERE w.state = 'failed') AS failed,"
                          "  (array_agg(w.error ORDER BY w.item) FILTER (WHERE w.state = "
                          "'failed'))[1] AS first_error"
                          "  FROM workflow_items w WHERE w.run_id = s.run_id AND w.step = "
                          "s.ordinal) i ON true"
                          " WHERE s.run_id = $1 ORDER BY s.ordinal";

static const char run_owner_sql[] = "SELECT submitted_by FROM workflow_runs WHERE id = $1";

/* ---- checks ---- */

/* What the routes of jobs, conversions and imports ask for, and what those check. Scripts and
 * webhooks are for those who may have them as hooks of a job. */
static int check_item(struct call *call, const struct workflow *w, uint32_t step,
                      const json_t *element, struct field_problem *problem, struct error *err)
{
    struct submit_settings settings = submit_settings_of(call->gateway, NULL);
    const struct submit_step_facts facts = {w->name, NULL, w->steps[step].id};
    enum workflow_step_type type = w->steps[step].type;
    bool bridges = type == WORKFLOW_CONVERT || type == WORKFLOW_IMPORT;
    const char *permission = bridges ? "convert.run" : "vm.export";
    auto_submit_request *request = NULL;
    auto_bridge_request *bridge = NULL;

    if (!identity_may(&call->identity, permission)) {
        return field_fail(problem, 403, "type", err, ERR_DENIED, "permission '%s' is missing",
                          permission);
    }
    if (type == WORKFLOW_BATCH || type == WORKFLOW_JOB)
        return submit_element(call, element, &request, problem, err);
    if (!bridges)
        return submit_step_prepare(&settings, &facts, element, &bridge, problem, err);
    if (type == WORKFLOW_CONVERT)
        return submit_convert_prepare(&settings, element, &bridge, problem, err);
    return submit_import_prepare(&settings, call->db, element, &bridge, problem, err);
}

static int check_items(struct call *call, const struct workflow *w, struct error *err)
{
    for (uint32_t step = 0; step < w->step_count; step++) {
        for (uint32_t item = 0; item < w->steps[step].item_count; item++) {
            auto_json *element = workflow_item(w, step, item);
            struct field_problem problem = {0};
            if (check_item(call, w, step, element, &problem, err) == 0)
                continue;
            if (problem.status == 0)
                return -1;
            workflow_problem(w, step, &problem, err);
            return call_fail_field(call, &problem, err);
        }
    }
    return 0;
}

/* ---- definitions ---- */

static json_t *workflow_view(const PGresult *rows, int row)
{
    json_t *view = json_object();
    json_t *definition = cell_json(rows, row, 2);

    json_put(view, "id", cell_text(rows, row, 0));
    json_put(view, "name", cell_text(rows, row, 1));
    if (json_object_get(definition, "description") != NULL)
        json_put(view, "description", json_incref(json_object_get(definition, "description")));
    json_put(view, "steps", json_incref(json_object_get(definition, "steps")));
    json_put(view, "created_by", cell_text(rows, row, 3));
    json_put(view, "created_at", cell_text(rows, row, 4));
    json_decref(definition);
    return view;
}

/* By id or name. */
static int find(struct call *call, PGresult **out, struct error *err)
{
    const char *id = call_param(call, "id");

    if (db_exec(call->db, find_sql, DB_PARAMS(id), out, err) < 0)
        return -1;
    if (PQntuples(*out) == 0)
        return error_set(err, ERR_NOT_FOUND, "workflow '%.64s' does not exist", id);
    call_resource(call, "workflow", db_text(*out, 0, 0));
    return 0;
}

int handle_workflow_list(struct call *call, struct error *err)
{
    static const char *const no_names[] = {NULL};
    auto_pgresult *rows = NULL;
    json_t *list;
    json_t *answer;

    if (call_check_query(call, no_names, err) < 0 ||
        db_exec(call->db, list_sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    list = json_array();
    for (int i = 0; i < PQntuples(rows); i++) {
        json_t *view = workflow_view(rows, i);
        if (!db_is_null(rows, i, 5)) {
            json_put(view, "last_run",
                     json_pack("{s:o, s:o, s:o}", "run_id", cell_text(rows, i, 5), "status",
                               cell_text(rows, i, 6), "created_at", cell_text(rows, i, 7)));
        }
        (void)json_array_append_new(list, view);
    }
    answer = json_object();
    json_put(answer, "workflows", list);
    json_set_i64(answer, "total", PQntuples(rows));
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

static int store(struct call *call, const struct workflow *w, const char *id, struct error *err)
{
    auto_json *masked = json_mask_secrets(w->definition);
    autofree char *text = json_text(masked);
    auto_pgresult *rows = NULL;
    auto_pgresult *same = NULL;
    char most[24];

    (void)snprintf(most, sizeof most, "%d", WORKFLOWS_MAX);
    if (db_exec(call->db, insert_sql, DB_PARAMS(id, w->name, text, call->identity.username, most),
                &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 1)
        return 0;
    if (db_exec(call->db, exists_sql, DB_PARAMS(w->name), &same, err) < 0)
        return -1;
    if (PQntuples(same) == 0) {
        return call_fail(call, 409, NULL, err, ERR_CONFLICT,
                         "%d workflows are stored: delete one before you make another",
                         WORKFLOWS_MAX);
    }
    return call_fail(call, 409, json_pack("{s:s}", "field", "name"), err, ERR_CONFLICT,
                     "a workflow '%s' exists already: delete it, or choose another name", w->name);
}

int handle_workflow_create(struct call *call, struct error *err)
{
    auto_workflow *w = NULL;
    auto_json *empty = json_object();
    autofree char *location = NULL;
    struct field_problem problem = {0};
    char id[ID_SIZE];
    json_t *answer;

    if (workflow_parse(call->body == NULL ? empty : call->body, &w, &problem, err) < 0)
        return problem.status != 0 ? call_fail_field(call, &problem, err) : -1;
    id_new("wf", id);
    if (check_items(call, w, err) < 0 || store(call, w, id, err) < 0)
        return -1;
    call_resource(call, "workflow", id);
    location = xasprintf("/api/v1/workflows/%s", id);
    call_set_header(call, "Location", location);
    answer = json_object();
    json_set_text(answer, "id", id);
    json_set_text(answer, "name", w->name);
    json_set_i64(answer, "steps", w->step_count);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 201, answer);
    return 0;
}

int handle_workflow_get(struct call *call, struct error *err)
{
    auto_pgresult *rows = NULL;
    auto_pgresult *runs = NULL;
    char most[24];
    json_t *view;
    json_t *list;

    (void)snprintf(most, sizeof most, "%d", RUNS_SHOWN);
    if (find(call, &rows, err) < 0 ||
        db_exec(call->db, runs_sql, DB_PARAMS(db_text(rows, 0, 0), most), &runs, err) < 0)
        return -1;
    view = workflow_view(rows, 0);
    list = json_array();
    for (int i = 0; i < PQntuples(runs); i++) {
        (void)json_array_append_new(
            list,
            json_pack("{s:o, s:o, s:o, s:o, s:o}", "run_id", cell_text(runs, i, 0), "status",
                      cell_text(runs, i, 1), "submitted_by", cell_text(runs, i, 2), "created_at",
                      cell_text(runs, i, 3), "completed_at", cell_text(runs, i, 4)));
    }
    json_put(view, "runs", list);
    json_set_now(view, "timestamp");
    call_answer_json(call, 200, view);
    return 0;
}

int handle_workflow_delete(struct call *call, struct error *err)
{
    auto_pgresult *rows = NULL;
    auto_pgresult *done = NULL;
    json_t *answer;

    if (find(call, &rows, err) < 0 ||
        db_exec(call->db, delete_sql, DB_PARAMS(db_text(rows, 0, 0)), &done, err) < 0)
        return -1;
    if (db_affected(done) == 0) {
        return error_set(err, ERR_CONFLICT,
                         "a run of workflow '%.64s' is under way: cancel it, or wait for its end",
                         db_text(rows, 0, 1));
    }
    answer = json_object();
    json_set_text(answer, "deleted", db_text(rows, 0, 0));
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

/* ---- runs ---- */

/* NULL: the step is fine. */
static json_t *step_error(const PGresult *rows, int i)
{
    int64_t failed = db_i64(rows, i, 9);
    int64_t items = db_i64(rows, i, 6);
    const char *first = db_text(rows, i, 10);
    autofree char *text = NULL;

    if (strcmp(db_text(rows, i, 2), "skipped") == 0)
        return json_string("what it depends on did not end as 'when' asks for");
    if (failed == 0)
        return NULL;
    text = items == 1 ? xstrdup(first)
                      : xasprintf("%lld of %lld failed, the first with: %s", (long long)failed,
                                  (long long)items, first);
    return json_string(text);
}

static json_t *step_view(const PGresult *rows, int i)
{
    json_t *view = json_object();
    json_t *error = step_error(rows, i);

    json_put(view, "id", cell_text(rows, i, 0));
    json_put(view, "type", cell_text(rows, i, 1));
    json_put(view, "status", cell_text(rows, i, 2));
    json_put(view, "depends_on", cell_json(rows, i, 12));
    json_put(view, "when", cell_text(rows, i, 11));
    json_set_i64(view, "attempt", db_i64(rows, i, 3));
    json_put(view, "started_at", cell_text(rows, i, 4));
    json_put(view, "completed_at", cell_text(rows, i, 5));
    json_set_i64(view, "items", db_i64(rows, i, 6));
    json_set_i64(view, "items_completed", db_i64(rows, i, 8));
    json_set_i64(view, "items_failed", db_i64(rows, i, 9));
    json_put(view, "job_ids", cell_json(rows, i, 7));
    json_put(view, "error", error == NULL ? json_null() : error);
    return view;
}

/* *out: new reference. */
static int run_view(struct call *call, const char *run_id, json_t **out, struct error *err)
{
    static const char *const keys[] = {"run_id",       "workflow_id", "workflow",    "status",
                                       "submitted_by", "created_at",  "completed_at"};
    auto_pgresult *run = NULL;
    auto_pgresult *steps = NULL;
    json_t *list;

    if (db_exec(call->db, run_sql, DB_PARAMS(run_id), &run, err) < 0 ||
        db_exec(call->db, run_steps_sql, DB_PARAMS(run_id), &steps, err) < 0)
        return -1;
    if (PQntuples(run) == 0)
        return error_set(err, ERR_NOT_FOUND, "workflow run '%.64s' does not exist", run_id);
    *out = json_object();
    for (int i = 0; i < (int)ARRAY_LEN(keys); i++)
        json_put(*out, keys[i], cell_text(run, 0, i));
    list = json_array();
    for (int i = 0; i < PQntuples(steps); i++)
        (void)json_array_append_new(list, step_view(steps, i));
    json_put(*out, "steps", list);
    json_set_now(*out, "timestamp");
    return 0;
}

int handle_workflow_run(struct call *call, struct error *err)
{
    static const char *const no_keys[] = {NULL};
    auto_pgresult *rows = NULL;
    auto_json *definition = NULL;
    auto_workflow *w = NULL;
    autofree char *location = NULL;
    struct field_problem problem = {0};
    json_t *view = NULL;
    char run_id[64];

    if ((call->body != NULL && call_check_body(call, no_keys, err) < 0) ||
        find(call, &rows, err) < 0)
        return -1;
    definition = cell_json(rows, 0, 2);
    if (workflow_parse(definition, &w, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    if (check_items(call, w, err) < 0 ||
        workflow_run_start(call->db,
                           &(struct workflow_request){db_text(rows, 0, 0), w,
                                                      call->identity.username, call->trace_id},
                           run_id, err) < 0 ||
        run_view(call, run_id, &view, err) < 0)
        return -1;
    call_audit(call, "run", run_id);
    location = xasprintf("/api/v1/workflows/runs/%s", run_id);
    call_set_header(call, "Location", location);
    call_answer_json(call, 202, view);
    return 0;
}

int handle_workflow_run_get(struct call *call, struct error *err)
{
    const char *run_id = call_param(call, "run");
    json_t *view = NULL;

    call_resource(call, "workflow_run", run_id);
    if (run_view(call, run_id, &view, err) < 0)
        return -1;
    call_answer_json(call, 200, view);
    return 0;
}

static int check_run_owner(struct call *call, const char *run_id, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(call->db, run_owner_sql, DB_PARAMS(run_id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "workflow run '%.64s' does not exist", run_id);
    if (identity_may(&call->identity, "job.cancel") ||
        strcmp(db_text(rows, 0, 0), call->identity.username) == 0)
        return 0;
    return error_set(err, ERR_DENIED,
                     "permission 'job.cancel' is missing: run '%.64s' was started by another user",
                     run_id);
}

static int steer(struct call *call, enum workflow_event event, struct error *err)
{
    static const char *const no_keys[] = {NULL};
    const char *run_id = call_param(call, "run");
    json_t *view = NULL;

    call_resource(call, "workflow_run", run_id);
    if ((call->body != NULL && call_check_body(call, no_keys, err) < 0) ||
        check_run_owner(call, run_id, err) < 0 ||
        workflow_run_event(call->db, run_id, event, call->identity.username, err) < 0 ||
        run_view(call, run_id, &view, err) < 0)
        return -1;
    gateway_poke(call->gateway, NULL);
    call_answer_json(call, 200, view);
    return 0;
}

int handle_workflow_run_cancel(struct call *call, struct error *err)
{
    return steer(call, WORKFLOW_EVENT_CANCEL, err);
}

int handle_workflow_run_pause(struct call *call, struct error *err)
{
    return steer(call, WORKFLOW_EVENT_PAUSE, err);
}

int handle_workflow_run_resume(struct call *call, struct error *err)
{
    return steer(call, WORKFLOW_EVENT_RESUME, err);
}

int handle_workflow_run_retry(struct call *call, struct error *err)
{
    return steer(call, WORKFLOW_EVENT_RETRY, err);
}
