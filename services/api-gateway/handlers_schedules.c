/* Schedules (rest-api.md section 5): kept here, fired by the scheduler. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/schedule_depends.h"
#include "common/schedule_run.h"
#include "handler_util.h"
#include "handlers.h"
#include "schedule_view.h"

#define TEMPLATE "job_template"

static const struct field schedule_fields[] = {
    SCHEDULE_FIELDS, {TEMPLATE, {"job_definition"}, FIELD_OBJECT, 0, 0, NULL}, {0}};

/* ---- what is asked for ---- */

static int refuse_secret(const char *name, struct field_problem *problem, struct error *err)
{
    if (strcmp(name, "passphrase") == 0) {
        return field_fail(problem, 422, TEMPLATE ".encrypt.passphrase", err, ERR_INVALID,
                          "a schedule keeps no passphrase: put a key into "
                          "export.encryption_key_dir on the workers and name it by "
                          "'encrypt.key_ref'");
    }
    return field_fail(problem, 422, TEMPLATE, err, ERR_INVALID,
                      "'%.64s' in '" TEMPLATE "': a schedule keeps no secrets, credentials belong "
                      "to a configured provider (POST /api/v1/providers) or the server's "
                      "configuration",
                      name);
}

/* Members of a schedule that are checked with its job, because they become the job's. */
static bool is_own(const struct schedule *schedule, const char *field)
{
    static const char *const names[] = {"retention", "time_windows", "on_window_end"};

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        size_t length = strlen(names[i]);
        if (strncmp(field, names[i], length) == 0 &&
            (field[length] == '\0' || field[length] == '.'))
            return json_object_get(schedule->fields, names[i]) != NULL;
    }
    return false;
}

/* Exactly what a submit would check, and what only makes sense for a job that comes again. */
static int check_template(struct call *call, const struct schedule *schedule,
                          struct field_problem *problem, struct error *err)
{
    struct submit_settings settings = submit_settings_of(call->gateway, NULL);
    const json_t *element = json_object_get(schedule->fields, TEMPLATE);
    const char *secret = json_find_secret(element);
    const struct schedule_source source = {call->db, &settings, schedule, SCHEDULE_SAMPLE_RUN_DIR,
                                           NULL};
    auto_submit_request *request = NULL;

    if (element == NULL)
        return field_fail(problem, 400, TEMPLATE, err, ERR_INVALID, "'" TEMPLATE "' is missing");
    if (secret != NULL)
        return refuse_secret(secret, problem, err);
    if (json_object_get(element, "id") != NULL) {
        return field_fail(
            problem, 422, TEMPLATE ".id", err, ERR_INVALID,
            "an 'id' belongs to one job: leave it out, each run's jobs get their own");
    }
    if (schedule_run_prepare(&source, element, &request, problem, err) < 0 ||
        schedule_check_retention(schedule, request, problem, err) < 0 ||
        submit_may(call, request, problem, err) < 0) {
        char field[FIELD_NAME_MAX];
        if (problem->field[0] != '\0' && !is_own(schedule, problem->field)) {
            (void)snprintf(field, sizeof field, TEMPLATE ".%.80s", problem->field);
            memcpy(problem->field, field, sizeof field);
        }
        return -1;
    }
    return 0;
}

static int check_all(struct call *call, struct schedule *schedule, struct error *err)
{
    struct field_problem problem = {0};

    if (!identity_may(&call->identity, "vm.export"))
        return error_set(err, ERR_DENIED, "permission 'vm.export' is missing");
    if (schedule_check(schedule, &problem, err) < 0 ||
        schedule_depends_known(call->db, schedule, &problem, err) < 0 ||
        check_template(call, schedule, &problem, err) < 0)
        return problem.status == 0 ? -1 : call_fail_field(call, &problem, err);
    return 0;
}

/* ---- create, change, delete ---- */

int handle_schedule_create(struct call *call, struct error *err)
{
    auto_schedule *schedule = xcalloc(1, sizeof *schedule);
    autofree char *location = NULL;

    if (call_fields(call, schedule_fields, &schedule->fields, err) < 0)
        return -1;
    id_new("sch", schedule->id);
    (void)snprintf(schedule->created_by, sizeof schedule->created_by, "%s",
                   call->identity.username);
    if (check_all(call, schedule, err) < 0 || schedule_store_insert(call->db, schedule, err) < 0)
        return -1;
    location = xasprintf("/api/v1/schedules/%s", schedule->id);
    call_set_header(call, "Location", location);
    return schedule_answer(call, 201, "schedule created", schedule->id, err);
}

/* One of a policy is that policy's business. */
static int load_own(struct call *call, enum schedule_lock lock, struct schedule **out,
                    struct error *err)
{
    const char *id = call_param(call, "id");

    if (schedule_store_load(call->db, id, lock, out, err) < 0)
        return -1;
    call_resource(call, "schedule", id);
    if ((*out)->policy_id[0] == '\0')
        return 0;
    return error_set(err, ERR_CONFLICT,
                     "schedule '%.64s' belongs to the policy '%.64s': change that", id,
                     (*out)->policy_id);
}

static int update_locked(struct call *call, const json_t *changes, struct schedule **out,
                         struct error *err)
{
    auto_schedule *schedule = NULL;
    struct field_problem problem = {0};

    if (load_own(call, SCHEDULE_LOCK, &schedule, err) < 0)
        return -1;
    schedule_change(schedule, changes);
    if (json_object_size(changes) == 1 && json_object_get(changes, "enabled") != NULL) {
        /* only switched: the template was checked when it came */
        if (schedule_check(schedule, &problem, err) < 0)
            return problem.status == 0 ? -1 : call_fail_field(call, &problem, err);
    } else if (check_all(call, schedule, err) < 0) {
        return -1;
    }
    if (schedule_store_update(call->db, schedule, err) < 0)
        return -1;
    *out = STEAL(schedule);
    return 0;
}

static int update(struct call *call, const json_t *changes, struct error *err)
{
    auto_schedule *schedule = NULL;

    if (db_begin(call->db, err) < 0)
        return -1;
    if (update_locked(call, changes, &schedule, err) < 0) {
        db_rollback(call->db);
        return -1;
    }
    return db_commit(call->db, err);
}

int handle_schedule_put(struct call *call, struct error *err)
{
    auto_json *changes = NULL;

    if (call_fields(call, schedule_fields, &changes, err) < 0)
        return -1;
    if (json_object_size(changes) == 0)
        return call_bad_field(call, "schedule", err, "the request changes nothing");
    if (update(call, changes, err) < 0)
        return -1;
    return schedule_answer(call, 200, "schedule updated", call_param(call, "id"), err);
}

static int set_enabled(struct call *call, bool enabled, struct error *err)
{
    auto_json *changes = json_pack("{s:b}", "enabled", enabled);

    if (update(call, changes, err) < 0)
        return -1;
    return schedule_answer(call, 200, enabled ? "schedule enabled" : "schedule disabled",
                           call_param(call, "id"), err);
}

int handle_schedule_enable(struct call *call, struct error *err)
{
    return set_enabled(call, true, err);
}

int handle_schedule_disable(struct call *call, struct error *err)
{
    return set_enabled(call, false, err);
}

int handle_schedule_delete(struct call *call, struct error *err)
{
    auto_schedule *schedule = NULL;
    json_t *answer;

    if (load_own(call, SCHEDULE_READ, &schedule, err) < 0 ||
        schedule_store_delete(call->db, schedule->id, err) < 0)
        return -1;
    answer = json_object();
    json_set_text(answer, "message", "schedule deleted; jobs and exports of it stay");
    json_set_text(answer, "id", schedule->id);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

/* ---- run now ---- */

static int trigger_locked(struct call *call, struct schedule_outcome *out, struct error *err)
{
    struct submit_settings settings = submit_settings_of(call->gateway, NULL);
    struct schedule_wish wish = {.manual = true, .reason = ""};
    auto_schedule *schedule = NULL;
    struct field_problem problem = {0};

    if (load_own(call, SCHEDULE_LOCK, &schedule, err) < 0 ||
        schedule_check(schedule, &problem, err) < 0 ||
        schedule_run_begin(call->db, &settings, schedule, &wish, out, err) < 0)
        return -1;
    if (out->run_id[0] == '\0')
        return error_set(err, ERR_CONFLICT, "a run was just started: try again");
    if (strcmp(out->status, "skipped") == 0) {
        return error_set(err, ERR_CONFLICT,
                         "%s: wait for its end, or set 'overlap' to 'queue' or "
                         "'allow'",
                         out->reason);
    }
    if (strcmp(out->status, "failed") == 0)
        return call_fail(call, 422, NULL, err, ERR_INVALID, "%s", out->reason);
    return 0;
}

int handle_schedule_trigger(struct call *call, struct error *err)
{
    auto_schedule_outcome outcome = {0};
    json_t *answer;
    const char *first;

    if (db_begin(call->db, err) < 0)
        return -1;
    if (trigger_locked(call, &outcome, err) < 0) {
        db_rollback(call->db);
        return -1;
    }
    if (db_commit(call->db, err) < 0)
        return -1;
    first = json_string_value(json_array_get(outcome.job_ids, 0));
    answer = json_object();
    json_set_text(answer, "message",
                  first != NULL ? "schedule triggered"
                                : "queued: it starts when the run before has ended");
    json_set_text(answer, "run_id", outcome.run_id);
    json_set_text(answer, "status", outcome.status);
    if (first != NULL) {
        json_set_text(answer, "job_id", first);
        gateway_poke(call->gateway, first);
    }
    (void)json_object_set(answer, "job_ids", outcome.job_ids);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

/* ---- validate ---- */

static int next_runs(const struct schedule *schedule, json_t *answer, struct error *err)
{
    json_t *list = json_array();
    int64_t at = clock_wall_ms() / 1000;

    json_put(answer, "next_runs", list);
    for (int i = 0; i < SCHEDULE_NEXT_COUNT; i++) {
        char text[CLOCK_RFC3339_SIZE];
        if (cron_next(&schedule->cron, schedule->zone, at, &at, err) < 0)
            return -1;
        clock_rfc3339(at * 1000, text);
        (void)json_array_append_new(list, json_string(text));
    }
    return 0;
}

/* A name is not needed here, and a template is looked at only when there is one. */
static int look(struct call *call, struct schedule *schedule, json_t *answer,
                struct field_problem *problem, struct error *err)
{
    if (json_object_get(schedule->fields, "name") == NULL)
        json_set_text(schedule->fields, "name", "-");
    if (schedule_check(schedule, problem, err) < 0 ||
        schedule_depends_known(call->db, schedule, problem, err) < 0 ||
        next_runs(schedule, answer, err) < 0)
        return -1;
    if (json_object_get(schedule->fields, TEMPLATE) == NULL)
        return 0;
    id_new("sch", schedule->id);
    return check_template(call, schedule, problem, err);
}

int handle_schedule_validate(struct call *call, struct error *err)
{
    auto_schedule *schedule = xcalloc(1, sizeof *schedule);
    struct field_problem problem = {0};
    struct error why = ERROR_NONE;
    auto_json *answer = json_object();
    bool valid;

    if (call_fields(call, schedule_fields, &schedule->fields, err) < 0)
        return -1;
    valid = look(call, schedule, answer, &problem, &why) == 0;
    if (!valid && problem.status == 0) {
        *err = why;
        return -1;
    }
    json_put(answer, "valid", json_boolean(valid));
    json_set_text(answer, "schedule", field_text(schedule->fields, "schedule", ""));
    json_set_text(answer, "timezone", field_text(schedule->fields, "timezone", ""));
    if (!valid) {
        (void)json_object_del(answer, "next_runs");
        json_set_text(answer, "error", why.message);
        json_set_text(answer, "field", problem.field);
    }
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, STEAL(answer));
    return 0;
}
