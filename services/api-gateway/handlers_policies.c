/* Backup policies (rest-api.md section 5): kept as schedules with a policy_id, fired by the
 * scheduler. {id} in the path is the policy's. */
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "common/policy.h"
#include "common/schedule_depends.h"
#include "common/schedule_run.h"
#include "common/vm_filter.h"
#include "control_task.h"
#include "handlers.h"

#define RUNS_SHOWN 10

static const struct field policy_fields[] = {SCHEDULE_FIELDS, POLICY_FIELDS, {0}};

static const char find_sql[] = "SELECT id FROM schedules WHERE policy_id = $1";

#define VIEW_COLUMNS                                                                  \
    "s.policy_id, s.name, s.enabled, s.fields, s.run_count, s.created_by, " SQL_TIME( \
        "s.next_run_at") ", " SQL_TIME("s.created_at") ", s.id"
static const char list_sql[] =
    "SELECT " VIEW_COLUMNS " FROM schedules s WHERE s.policy_id <> '' ORDER BY s.seq LIMIT 1000";
static const char one_sql[] = "SELECT " VIEW_COLUMNS " FROM schedules s WHERE s.policy_id = $1";

static const char runs_sql[] =
    "SELECT id, status, reason, manual, cardinality(job_ids), errors, " SQL_TIME(
        "due_at") ", " SQL_TIME("started_at") ", " SQL_TIME("completed_at") " FROM schedule_runs"
                                                                            " WHERE schedule_id = "
                                                                            "$1 ORDER BY seq DESC "
                                                                            "LIMIT $2::int";

static const char results_sql[] =
    "SELECT j.id, j.vm_path, coalesce(nullif(j.vm_name, ''), regexp_replace(j.vm_path, '.*/', '')),"
    " j.status, j.error, j.phase FROM schedule_runs r"
    " CROSS JOIN LATERAL unnest(r.job_ids) WITH ORDINALITY u(job, n) JOIN jobs j ON j.id = u.job"
    " WHERE r.id = $1 ORDER BY u.n";

static int find(struct call *call, enum schedule_lock lock, struct schedule **out,
                struct error *err)
{
    const char *id = call_param(call, "id");
    auto_pgresult *rows = NULL;

    if (id[0] == '\0' || db_exec(call->db, find_sql, DB_PARAMS(id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "backup policy '%.64s' does not exist", id);
    call_resource(call, "policy", id);
    return schedule_store_load(call->db, db_text(rows, 0, 0), lock, out, err);
}

/* ---- checks ---- */

/* What would be one VM's job is checked as a submit would check it. */
static int check_options(struct call *call, const struct schedule *schedule,
                         struct field_problem *problem, struct error *err)
{
    static const char *const own[] = {"id", "vm_path", "vm_identifier", "vm", "vm_id", "provider"};
    const json_t *options = json_object_get(schedule->fields, "export_options");
    struct submit_settings settings = submit_settings_of(call->gateway, NULL);
    const struct schedule_source source = {call->db, &settings, schedule, SCHEDULE_SAMPLE_RUN_DIR,
                                           NULL};
    auto_json *element = policy_element(schedule->fields, "/sample");
    auto_submit_request *request = NULL;

    for (size_t i = 0; i < ARRAY_LEN(own); i++) {
        if (json_object_get(options, own[i]) != NULL) {
            return field_fail(problem, 422, "export_options", err, ERR_INVALID,
                              "'export_options.%s': the VMs are named by 'vm_filter'", own[i]);
        }
    }
    if (json_find_secret(element) != NULL) {
        return field_fail(problem, 422, "export_options", err, ERR_INVALID,
                          "'export_options': a policy keeps no secrets; of an encryption key name "
                          "it by 'encrypt.key_ref'");
    }
    if (schedule_run_prepare(&source, element, &request, problem, err) < 0 ||
        schedule_check_retention(schedule, request, problem, err) < 0)
        return -1;
    return submit_may(call, request, problem, err);
}

static int check_all(struct call *call, struct schedule *schedule, struct error *err)
{
    struct field_problem problem = {0};

    if (!identity_may(&call->identity, "vm.export"))
        return error_set(err, ERR_DENIED, "permission 'vm.export' is missing");
    if (schedule_check(schedule, &problem, err) < 0 ||
        schedule_depends_known(call->db, schedule, &problem, err) < 0 ||
        policy_check(schedule->fields, &problem, err) < 0 ||
        check_options(call, schedule, &problem, err) < 0)
        return problem.status == 0 ? -1 : call_fail_field(call, &problem, err);
    return 0;
}

/* What cannot be read again is shown as it was. */
static int refresh(struct call *call, const json_t *fields, struct error *err)
{
    const char *provider = policy_provider(fields);
    auto_json *spec = json_object();
    auto_control_task task = {0};
    struct field_problem problem = {0};
    struct provider_row row;
    bool ready = false;

    if (provider_lookup(call->db, provider, true, &row, &problem, err) < 0)
        return problem.status == 0 ? -1 : call_fail_field(call, &problem, err);
    if (policy_inventory_ready(call->db, fields, &ready, err) < 0 || ready)
        return ready ? 0 : -1;
    return control_task_run(call,
                            &(struct control_request){.kind = "inventory",
                                                      .provider = provider,
                                                      .provider_kind = row.kind,
                                                      .spec = spec,
                                                      .wait_ms = CONTROL_WAIT_MS,
                                                      .share = true},
                            &task, err);
}

/* A filter that no run could follow now is refused. */
static int check_known(struct call *call, const json_t *fields, struct error *err)
{
    struct field_problem problem = {0};

    if (vm_filter_known(call->db, policy_provider(fields), json_object_get(fields, "vm_filter"),
                        "vm_filter.", &problem, err) < 0)
        return problem.status == 0 ? -1 : call_fail_field(call, &problem, err);
    return 0;
}

/* ---- views ---- */

static json_t *policy_view(const PGresult *rows, int row)
{
    static const char *const shown[] = {"description",   "schedule",       "timezone",
                                        "vm_filter",     "retention",      "overlap",
                                        "misfire",       "export_options", "hyper2kvm_integration",
                                        "tags",          "max_parallel",   "time_windows",
                                        "on_window_end", "depends_on"};
    auto_json *fields = cell_json(rows, row, 3);
    json_t *view = json_object();

    json_put(view, "id", cell_text(rows, row, 0));
    json_put(view, "name", cell_text(rows, row, 1));
    json_put(view, "enabled", json_boolean(db_bool(rows, row, 2)));
    for (size_t i = 0; i < ARRAY_LEN(shown); i++) {
        json_t *value = json_object_get(fields, shown[i]);
        if (value != NULL)
            json_put(view, shown[i], json_incref(value));
    }
    json_set_i64(view, "run_count", db_i64(rows, row, 4));
    json_put(view, "created_by", cell_text(rows, row, 5));
    json_put(view, "next_run", cell_text(rows, row, 6));
    json_put(view, "created_at", cell_text(rows, row, 7));
    return view;
}

static int add_results(struct call *call, const char *run_id, json_t *run, struct error *err)
{
    static const char *const keys[] = {"job_id", "vm_path", "vm_name", "status", "error", "phase"};
    auto_pgresult *rows = NULL;
    json_t *list;

    if (db_exec(call->db, results_sql, DB_PARAMS(run_id), &rows, err) < 0)
        return -1;
    list = json_array();
    for (int i = 0; i < PQntuples(rows); i++) {
        json_t *item = json_object();
        for (int k = 0; k < (int)ARRAY_LEN(keys); k++)
            json_put(item, keys[k], cell_text_or_null(rows, i, k));
        (void)json_array_append_new(list, item);
    }
    json_put(run, "results", list);
    return 0;
}

/* The newest runs; what became of each VM in the newest of them. */
static int add_runs(struct call *call, const char *schedule_id, json_t *view, struct error *err)
{
    static const char *const times[] = {"due_at", "started_at", "completed_at"};
    autofree char *most = xasprintf("%d", RUNS_SHOWN);
    auto_pgresult *rows = NULL;
    json_t *list = json_array();

    json_put(view, "runs", list);
    if (db_exec(call->db, runs_sql, DB_PARAMS(schedule_id, most), &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++) {
        json_t *run = json_object();
        (void)json_array_append_new(list, run);
        json_put(run, "run_id", cell_text(rows, i, 0));
        json_put(run, "status", cell_text(rows, i, 1));
        json_put(run, "reason", cell_text(rows, i, 2));
        json_put(run, "manual", json_boolean(db_bool(rows, i, 3)));
        json_set_i64(run, "jobs", db_i64(rows, i, 4));
        json_put(run, "errors", cell_json(rows, i, 5));
        for (int k = 0; k < (int)ARRAY_LEN(times); k++)
            json_put(run, times[k], cell_text(rows, i, 6 + k));
        if (i == 0 && add_results(call, db_text(rows, 0, 0), run, err) < 0)
            return -1;
    }
    return 0;
}

static int answer_policy(struct call *call, unsigned int status, const char *id, struct error *err)
{
    auto_pgresult *rows = NULL;
    auto_pgresult *vms = NULL;
    auto_json *fields = NULL;
    auto_json *view = NULL;

    if (db_exec(call->db, one_sql, DB_PARAMS(id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "backup policy '%.64s' does not exist", id);
    fields = cell_json(rows, 0, 3);
    view = policy_view(rows, 0);
    if (policy_vms(call->db, fields, &vms, err) == 0) {
        json_set_i64(view, "matching_vms", PQntuples(vms));
    } else if (err->code == ERR_NOT_AVAILABLE || err->code == ERR_LIMIT) {
        json_put(view, "matching_vms", json_null()); /* the policy itself can be looked at */
        json_set_text(view, "matching_error", err->message);
        error_clear(err);
    } else {
        return -1;
    }
    if (add_runs(call, db_text(rows, 0, 8), view, err) < 0)
        return -1;
    json_set_now(view, "timestamp");
    call_resource(call, "policy", id);
    call_answer_json(call, status, STEAL(view));
    return 0;
}

/* ---- create, list, change, delete ---- */

int handle_policy_create(struct call *call, struct error *err)
{
    auto_schedule *schedule = xcalloc(1, sizeof *schedule);
    autofree char *location = NULL;

    if (call_fields(call, policy_fields, &schedule->fields, err) < 0)
        return -1;
    id_new("sch", schedule->id);
    id_new("pol", schedule->policy_id);
    (void)snprintf(schedule->created_by, sizeof schedule->created_by, "%s",
                   call->identity.username);
    if (check_all(call, schedule, err) < 0 || refresh(call, schedule->fields, err) < 0 ||
        check_known(call, schedule->fields, err) < 0 ||
        schedule_store_insert(call->db, schedule, err) < 0)
        return -1;
    location = xasprintf("/api/v1/backup-policies/%s", schedule->policy_id);
    call_set_header(call, "Location", location);
    return answer_policy(call, 201, schedule->policy_id, err);
}

int handle_policy_list(struct call *call, struct error *err)
{
    static const char *const no_names[] = {NULL};
    auto_pgresult *rows = NULL;
    json_t *answer;
    json_t *list;

    if (call_check_query(call, no_names, err) < 0 ||
        db_exec(call->db, list_sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    list = json_array();
    for (int i = 0; i < PQntuples(rows); i++)
        (void)json_array_append_new(list, policy_view(rows, i));
    answer = json_object();
    json_put(answer, "policies", list);
    json_set_i64(answer, "total", PQntuples(rows));
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

int handle_policy_get(struct call *call, struct error *err)
{
    return answer_policy(call, 200, call_param(call, "id"), err);
}

static int update_locked(struct call *call, const json_t *changes, struct error *err)
{
    auto_schedule *schedule = NULL;

    if (find(call, SCHEDULE_LOCK, &schedule, err) < 0)
        return -1;
    schedule_change(schedule, changes);
    if (check_all(call, schedule, err) < 0 || (json_object_get(changes, "vm_filter") != NULL &&
                                               check_known(call, schedule->fields, err) < 0))
        return -1;
    return schedule_store_update(call->db, schedule, err);
}

int handle_policy_put(struct call *call, struct error *err)
{
    auto_json *changes = NULL;

    if (call_fields(call, policy_fields, &changes, err) < 0)
        return -1;
    if (json_object_size(changes) == 0)
        return call_bad_field(call, "schedule", err, "the request changes nothing");
    if (db_begin(call->db, err) < 0)
        return -1;
    if (update_locked(call, changes, err) < 0) {
        db_rollback(call->db);
        return -1;
    }
    if (db_commit(call->db, err) < 0)
        return -1;
    return answer_policy(call, 200, call_param(call, "id"), err);
}

int handle_policy_delete(struct call *call, struct error *err)
{
    auto_schedule *schedule = NULL;
    json_t *answer;

    if (find(call, SCHEDULE_READ, &schedule, err) < 0 ||
        schedule_store_delete(call->db, schedule->id, err) < 0)
        return -1;
    answer = json_object();
    json_set_text(answer, "deleted", call_param(call, "id"));
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

/* ---- preview, run now ---- */

int handle_policy_preview(struct call *call, struct error *err)
{
    static const char *const keys[] = {"id", "name", "path", "power_state"};
    auto_schedule *schedule = NULL;
    auto_pgresult *rows = NULL;
    json_t *answer;
    json_t *list;

    if (find(call, SCHEDULE_READ, &schedule, err) < 0 || refresh(call, schedule->fields, err) < 0 ||
        policy_vms(call->db, schedule->fields, &rows, err) < 0)
        return -1;
    list = json_array();
    for (int i = 0; i < PQntuples(rows); i++) {
        json_t *vm = json_object();
        for (int k = 0; k < (int)ARRAY_LEN(keys); k++)
            json_put(vm, keys[k], cell_text(rows, i, k));
        (void)json_array_append_new(list, vm);
    }
    answer = json_object();
    json_put(answer, "vms", list);
    json_set_i64(answer, "matching_vms", PQntuples(rows));
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

static int run_locked(struct call *call, struct schedule_outcome *out, struct error *err)
{
    struct submit_settings settings = submit_settings_of(call->gateway, NULL);
    struct schedule_wish wish = {.manual = true, .reason = ""};
    auto_schedule *schedule = NULL;

    if (find(call, SCHEDULE_LOCK, &schedule, err) < 0 || check_all(call, schedule, err) < 0 ||
        schedule_run_begin(call->db, &settings, schedule, &wish, out, err) < 0)
        return -1;
    if (out->run_id[0] == '\0')
        return error_set(err, ERR_CONFLICT, "a run was just started: try again");
    if (strcmp(out->status, "skipped") == 0)
        return error_set(err, ERR_CONFLICT, "%s: wait for its end", out->reason);
    if (strcmp(out->status, "failed") == 0)
        return call_fail(call, 422, NULL, err, ERR_INVALID, "%s", out->reason);
    return 0;
}

int handle_policy_run(struct call *call, struct error *err)
{
    auto_schedule *schedule = NULL;
    auto_schedule_outcome outcome = {0};
    json_t *answer;

    if (find(call, SCHEDULE_READ, &schedule, err) < 0 || refresh(call, schedule->fields, err) < 0 ||
        db_begin(call->db, err) < 0)
        return -1;
    if (run_locked(call, &outcome, err) < 0) {
        db_rollback(call->db);
        return -1;
    }
    if (db_commit(call->db, err) < 0)
        return -1;
    gateway_poke(call->gateway, NULL);
    answer = json_object();
    json_set_text(answer, "run_id", outcome.run_id);
    json_set_text(answer, "status", outcome.status);
    (void)json_object_set(answer, "job_ids", outcome.job_ids);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 202, answer);
    return 0;
}
