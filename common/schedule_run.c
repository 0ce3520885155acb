/* See schedule_run.h. */
#include "common/schedule_run.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/civil.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/policy.h"
#include "common/schedule_depends.h"
#include "common/vm_dir.h"
#include "common/webhook_event.h"

#define NUMBER_SIZE  24
#define RUN_DIR_SIZE 40

static const char ACTIVE[] =
    "SELECT count(*) FILTER (WHERE status = 'running'), count(*) FILTER (WHERE status = 'queued'),"
    " coalesce(min(id) FILTER (WHERE status = 'running'), min(id)) FROM schedule_runs"
    " WHERE schedule_id = $1 AND status IN ('queued', 'running')";

/* One row per due time, whoever comes. */
static const char INSERT_RUN[] =
    "INSERT INTO schedule_runs (id, schedule_id, due_at, status, reason, manual, completed_at)"
    " VALUES ($1, $2, coalesce(to_timestamp(nullif($3::bigint, 0)), now()), $4, $5, $6::boolean,"
    " CASE WHEN $4 IN ('failed', 'skipped') THEN now() END)"
    " ON CONFLICT (schedule_id, due_at) DO NOTHING";

static const char STARTED[] =
    "UPDATE schedule_runs SET status = $2, reason = $3, errors = $5::jsonb, started_at = now(),"
    " job_ids = ARRAY(SELECT jsonb_array_elements_text($4::jsonb)),"
    " completed_at = CASE WHEN $2 = 'failed' THEN now() END WHERE id = $1";

static const char COUNT_RUN[] = "UPDATE schedules SET run_count = run_count + 1 WHERE id = $1";

static const char FORGET[] =
    "DELETE FROM schedule_runs WHERE schedule_id = $1 AND status NOT IN ('queued', 'running')"
    " AND seq <= (SELECT seq FROM schedule_runs WHERE schedule_id = $1 ORDER BY seq DESC"
    "  OFFSET $2::int LIMIT 1)";

static const char INSERT_MISSED[] =
    "INSERT INTO schedule_runs (id, schedule_id, due_at, status, reason, completed_at)"
    " SELECT m->>'id', $1, to_timestamp((m->>'due')::bigint), 'missed', m->>'reason', now()"
    " FROM jsonb_array_elements($2::jsonb) m ORDER BY (m->>'due')::bigint"
    " ON CONFLICT (schedule_id, due_at) DO NOTHING";

static const char OLDEST_QUEUED[] =
    "SELECT id, extract(epoch FROM due_at)::bigint, reason, manual, (extract(epoch FROM"
    " now() - created_at) * 1000)::bigint FROM schedule_runs WHERE schedule_id = $1"
    " AND status = 'queued' ORDER BY seq LIMIT 1";

static const char SKIP[] = "UPDATE schedule_runs SET status = 'skipped', reason = $2,"
                           " completed_at = now() WHERE id = $1";

static const char WAITING[] =
    "SELECT coalesce(jsonb_agg(DISTINCT r.schedule_id), '[]') FROM schedule_runs r WHERE r.status ="
    " 'queued' AND (NOT EXISTS (SELECT 1 FROM schedule_runs a WHERE a.schedule_id = r.schedule_id"
    "  AND a.status = 'running') OR EXISTS (SELECT 1 FROM schedules s WHERE s.id = r.schedule_id"
    "  AND s.fields->>'overlap' = 'allow'))";

static const char INSERT_OUTBOX[] =
    "INSERT INTO outbox (event, job_id, payload) SELECT $1, $2, $3::jsonb WHERE EXISTS"
    " (SELECT 1 FROM webhooks w WHERE " WEBHOOK_WANTS("$1") ")";

/* For live clients. Nothing when the run got no row, because its due time has one. */
static const char INSERT_LIVE[] =
    "INSERT INTO job_events (run_id, event, status, detail) SELECT id, $2, $3, $4::jsonb"
    " FROM schedule_runs WHERE id = $1";

void schedule_outcome_release(struct schedule_outcome *outcome)
{
    json_decref(outcome->job_ids);
    *outcome = (struct schedule_outcome){0};
}

struct run_event {
    const char *name;
    const char *status;
    const char *run_id;
    const json_t *job_ids; /* NULL: none */
    const char *why;
};

static int add_live(struct db *db, const struct schedule *schedule, const struct run_event *event,
                    struct error *err)
{
    auto_json *detail = json_object();
    autofree char *text = NULL;

    json_set_text(detail, "schedule_id", schedule->id);
    json_set_text(detail, "name", field_text(schedule->fields, "name", ""));
    if (schedule->policy_id[0] != '\0')
        json_set_text(detail, "policy_id", schedule->policy_id);
    json_set_text(detail, "run_id", event->run_id);
    json_put(detail, "job_ids",
             event->job_ids == NULL ? json_array() : json_deep_copy(event->job_ids));
    json_set_text(detail, "reason", event->why);
    text = json_text(detail);
    return db_exec(db, INSERT_LIVE, DB_PARAMS(event->run_id, event->name, event->status, text),
                   NULL, err);
}

/* What the seven keys of a webhook's body can say about a run (rest-api.md section 7). */
static int add_event(struct db *db, const struct schedule *schedule, const struct run_event *event,
                     struct error *err)
{
    const char *first = json_string_value(json_array_get(event->job_ids, 0));
    const char *job_id = first == NULL ? "" : first;
    auto_json *payload = json_object();
    autofree char *text = NULL;
    char now[CLOCK_RFC3339_SIZE];

    clock_rfc3339_now(now);
    json_set_text(payload, "event", event->name);
    json_set_text(payload, "timestamp", now);
    json_set_text(payload, "job_id", job_id);
    json_set_text(payload, "status", event->status);
    json_set_text(payload, "schedule_id", schedule->id);
    if (event->why[0] != '\0')
        json_set_text(payload, "error", event->why);
    text = json_text(payload);
    if (add_live(db, schedule, event, err) < 0)
        return -1;
    return db_exec(db, INSERT_OUTBOX, DB_PARAMS(event->name, job_id, text), NULL, err);
}

/* ---- jobs of a run ---- */

/* "20260301T020000Z-1a2b3c4d": when it was due, and a part of its id. */
static void run_dir_of(int64_t due_s, const char *run_id, char out[RUN_DIR_SIZE])
{
    struct civil date;
    int64_t second = floor_mod(due_s, DAY_SECONDS);
    const char *dash = strchr(run_id, '-');

    civil_date(floor_div(due_s, DAY_SECONDS), &date);
    (void)snprintf(out, RUN_DIR_SIZE, "%04d%02d%02dT%02d%02d%02dZ-%.8s", date.year % 10000,
                   date.month, date.day, (int)(second / 3600), (int)(second / 60 % 60),
                   (int)(second % 60), dash == NULL ? run_id : dash + 1);
}

static json_t *element_in(const struct schedule *schedule, const json_t *element, const char *dir)
{
    json_t *copy = json_deep_copy(element);

    (void)json_object_del(copy, "export_path");
    (void)json_object_del(copy, "output_dir");
    json_set_text(copy, "output_path", dir);
    if (json_object_get(copy, "name") == NULL)
        json_set_text(copy, "name", field_text(schedule->fields, "name", ""));
    return copy;
}

static bool has_output(const json_t *element)
{
    static const char *const names[] = {"output_path", "export_path", "output_dir"};

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (json_is_string(json_object_get(element, names[i])))
            return true;
    }
    return false;
}

/* How many of these jobs each name of a directory would have. New reference. */
static json_t *count_names(const json_t *elements)
{
    json_t *names = json_object();
    const json_t *element;
    size_t i;

    json_array_foreach(elements, i, element)
    {
        autofree char *name = vm_dir_name(json_str(element, "vm_path"), false);
        json_set_i64(names, name, (int64_t)json_u64(names, name) + 1);
    }
    return names;
}

/* The directory of one of a policy's VMs. Caller frees. */
static char *vm_dir_of(const json_t *names, const char *vm_path)
{
    autofree char *name = vm_dir_name(vm_path, false);

    return vm_dir_name(vm_path, json_u64(names, name) > 1);
}

/* Of a policy's many VMs all lie below one directory, so that one clean-up sees them. */
static char *output_below(const struct schedule_source *source, const json_t *element,
                          const struct submit_request *request)
{
    const struct schedule *schedule = source->schedule;
    bool shared = json_is_true(json_object_get(request->export_spec, "incremental"));
    autofree char *vm = vm_dir_of(source->names, request->submission.vm_path);
    const char *last = shared ? "" : source->run_dir;
    const char *separator = shared ? "" : "/";

    if (schedule->policy_id[0] == '\0')
        return xasprintf("%s/%s%s%s", request->output_path, schedule->id, separator, last);
    return xasprintf("%s/%s/%s%s%s",
                     has_output(element) ? request->output_path : source->settings->bases->items[0],
                     schedule->id, vm, separator, last);
}

int schedule_check_retention(const struct schedule *schedule, const struct submit_request *request,
                             struct field_problem *problem, struct error *err)
{
    if (json_object_size(json_object_get(schedule->fields, "retention")) == 0 ||
        field_bool(request->definition, "keep_local",
                   !field_bool(request->definition, "stream_upload", false)))
        return 0;
    return field_fail(problem, 422, "retention", err, ERR_NOT_AVAILABLE,
                      "'retention' removes files on the server, and these exports leave none "
                      "there: leave out 'retention', or keep the local files");
}

/* What the schedule says of its runs' jobs besides their template. */
static int add_rules(const struct schedule *schedule, json_t *element,
                     struct field_problem *problem, struct error *err)
{
    static const char *const names[] = {"time_windows", "on_window_end"};

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        json_t *value = json_object_get(schedule->fields, names[i]);
        if (value == NULL)
            continue;
        if (json_object_get(element, names[i]) != NULL) {
            return field_fail(problem, 400, names[i], err, ERR_INVALID,
                              "'%s' is given by the schedule and by its job: leave one out",
                              names[i]);
        }
        (void)json_object_set(element, names[i], value);
    }
    return 0;
}

/* The elements as the schedule gives them; NULL: refused. */
static void with_rules(const struct schedule_source *source, const json_t *const *given,
                       size_t count, json_t **out_elements, struct submit_prepared *out)
{
    for (size_t i = 0; i < count; i++) {
        auto_json *element = json_deep_copy(given[i]);
        out[i] = (struct submit_prepared){0};
        if (add_rules(source->schedule, element, &out[i].problem, &out[i].error) == 0)
            out_elements[i] = STEAL(element);
    }
}

/* The directory of each is known when its VM's is. */
static void with_directories(const struct schedule_source *source, size_t count, json_t **elements,
                             struct submit_prepared *out)
{
    for (size_t i = 0; i < count; i++) {
        auto_json *element = STEAL(elements[i]);
        if (out[i].request == NULL)
            continue;
        autofree char *dir = output_below(source, element, out[i].request);
        elements[i] = element_in(source->schedule, element, dir);
        submit_request_free(STEAL(out[i].request));
    }
}

int schedule_run_prepare_all(const struct schedule_source *source, const json_t *const *given,
                             size_t count, struct submit_prepared *out, struct error *err)
{
    autofree json_t **elements = xcalloc(count + 1, sizeof(json_t *));
    const json_t *const *read = (const json_t *const *)elements;
    int rc;

    with_rules(source, given, count, elements, out);
    rc = submit_prepare_all(source->settings, source->db, read, count, out, err);
    if (rc == 0) {
        with_directories(source, count, elements, out);
        rc = submit_prepare_all(source->settings, source->db, read, count, out, err);
    }
    for (size_t i = 0; i < count; i++)
        json_decref(elements[i]);
    return rc;
}

int schedule_run_prepare(const struct schedule_source *source, const json_t *given,
                         struct submit_request **out, struct field_problem *problem,
                         struct error *err)
{
    struct submit_prepared one;
    int rc = schedule_run_prepare_all(source, &given, 1, &one, err);

    return submit_prepared_take(&one, rc, out, problem, err);
}

struct making { /* a run whose jobs are being made */
    struct schedule_source source;
    char trace_id[33];
    json_t *errors;
    json_t *job_ids;
};

static void add_failure(const struct making *making, const json_t *element,
                        const struct field_problem *problem, const struct error *why)
{
    json_t *item = json_object();

    json_set_text(item, "vm_path", field_text(element, "vm_path", ""));
    json_set_text(item, "field", problem->field);
    json_set_text(item, "error", why->message);
    if (json_array_size(making->errors) < SCHEDULE_ERRORS_LISTED) {
        (void)json_array_append_new(making->errors, item);
    } else {
        json_decref(item);
    }
}

/* As far as it was not refused; else what is wrong is noted, or ends the run. */
static int add_item(const struct making *making, const json_t *element,
                    const struct submit_prepared *prepared, struct submit_item *items,
                    size_t *count, struct error *err)
{
    const struct schedule *schedule = making->source.schedule;
    bool of_policy = schedule->policy_id[0] != '\0';
    const struct error *why = &prepared->error;

    if (prepared->request == NULL && (error_is_retryable(why) || why->code == ERR_INTERNAL)) {
        *err = *why;
        return -1;
    }
    if (prepared->request == NULL) {
        add_failure(making, element, &prepared->problem, why);
        return 0;
    }
    if (of_policy) {
        prepared->request->submission.queue_group = schedule->policy_id;
        prepared->request->submission.queue_limit =
            (uint32_t)field_number(schedule->fields, "max_parallel", 0);
    }
    items[(*count)++] =
        (struct submit_item){.request = prepared->request,
                             .origin = {.submitted_by = schedule->created_by,
                                        .trace_id = making->trace_id,
                                        .schedule_id = schedule->id,
                                        .policy_id = of_policy ? schedule->policy_id : NULL}};
    return 0;
}

static int store_items(const struct making *making, const struct submit_item *items, size_t count,
                       struct error *err)
{
    autofree struct job_store_submitted *stored = xcalloc(count + 1, sizeof *stored);

    if (submit_store_all(making->source.db, items, count, stored, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (stored[i].error.code != ERR_NONE) {
            *err = stored[i].error;
            return -1;
        }
        (void)json_array_append_new(making->job_ids, json_string(stored[i].id));
    }
    return 0;
}

/* Of elements[first .. first + count). */
static int make_some(const struct making *making, const json_t *elements, size_t first,
                     size_t count, struct submit_prepared *prepared, struct error *err)
{
    autofree struct submit_item *items = xcalloc(count, sizeof *items);
    autofree const json_t **given = xcalloc(count, sizeof(json_t *));
    size_t good = 0;

    for (size_t i = 0; i < count; i++)
        given[i] = json_array_get(elements, first + i);
    if (schedule_run_prepare_all(&making->source, given, count, prepared, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        if (add_item(making, given[i], &prepared[i], items, &good, err) < 0)
            return -1;
    }
    return store_items(making, items, good, err);
}

static int make_jobs(const struct making *making, const json_t *elements, struct error *err)
{
    size_t all = json_array_size(elements);
    int rc = 0;

    for (size_t first = 0; first < all && rc == 0; first += JOB_STORE_SUBMIT_MAX) {
        size_t count = (size_t)min_u64(all - first, JOB_STORE_SUBMIT_MAX);
        autofree struct submit_prepared *prepared = xcalloc(count, sizeof *prepared);
        rc = make_some(making, elements, first, count, prepared, err);
        for (size_t i = 0; i < count; i++)
            submit_request_free(prepared[i].request);
    }
    return rc;
}

/* What the run does: a list of jobs as a submit takes them. */
static int elements_of(struct db *db, const struct schedule *schedule, json_t **out,
                       struct error *err)
{
    json_t *element = json_object_get(schedule->fields, "job_template");

    if (schedule->policy_id[0] != '\0')
        return policy_elements(db, schedule->fields, out, err);
    if (element == NULL) {
        return error_set(err, ERR_INVALID, "schedule '%.64s' has no 'job_template'", schedule->id);
    }
    *out = json_pack("[O]", element);
    return 0;
}

static int store_started(const struct making *making, struct schedule_outcome *out,
                         struct error *err)
{
    autofree char *job_ids = json_text(making->job_ids);
    autofree char *errors = json_text(making->errors);
    const char *first = json_string_value(json_array_get(making->job_ids, 0));

    out->status = first == NULL ? "failed" : "running";
    if (first == NULL) {
        (void)snprintf(out->reason, sizeof out->reason, "%s",
                       json_array_size(making->errors) == 0
                           ? "nothing to do"
                           : json_str(json_array_get(making->errors, 0), "error"));
    }
    if (db_exec(making->source.db, STARTED,
                DB_PARAMS(out->run_id, out->status, out->reason, job_ids, errors), NULL, err) < 0)
        return -1;
    if (first != NULL && db_exec(making->source.db, COUNT_RUN,
                                 DB_PARAMS(making->source.schedule->id), NULL, err) < 0)
        return -1;
    return add_event(making->source.db, making->source.schedule,
                     &(struct run_event){"schedule.triggered", out->status, out->run_id,
                                         making->job_ids, first == NULL ? out->reason : ""},
                     err);
}

static int start_jobs(struct db *db, const struct submit_settings *settings,
                      const struct schedule *schedule, int64_t due_s, struct schedule_outcome *out,
                      struct error *err)
{
    auto_json *elements = NULL;
    auto_json *names = NULL;
    auto_json *errors = json_array();
    char run_dir[RUN_DIR_SIZE];
    struct making making = {.source = {db, settings, schedule, run_dir, NULL},
                            .errors = errors,
                            .job_ids = out->job_ids};
    char parent[TRACEPARENT_SIZE];

    traceparent_new(NULL, parent);
    (void)traceparent_trace_id(parent, making.trace_id);
    run_dir_of(due_s == 0 ? schedule->now_s : due_s, out->run_id, run_dir);
    if (elements_of(db, schedule, &elements, err) < 0)
        return -1;
    names = count_names(elements);
    making.source.names = names;
    if (make_jobs(&making, elements, err) < 0)
        return -1;
    return store_started(&making, out, err);
}

/* ---- begin ---- */

/* Of a run that nothing else holds back. */
static int decide_by_dependencies(struct db *db, const struct schedule *schedule,
                                  const struct schedule_wish *wish, struct schedule_outcome *out,
                                  struct error *err)
{
    enum schedule_wait wait = SCHEDULE_READY;
    char why[ERROR_MESSAGE_MAX];

    if (wish->manual) /* somebody wants it now */
        return 0;
    if (schedule_depends_look(db, schedule, 0, &wait, why, err) < 0)
        return -1;
    if (wait == SCHEDULE_READY)
        return 0;
    out->status = wait == SCHEDULE_WAITS ? "queued" : "skipped";
    memcpy(out->reason, why, sizeof out->reason);
    return 0;
}

/* Which status the row gets at first, and why. */
static int decide(struct db *db, const struct schedule *schedule, const struct schedule_wish *wish,
                  struct schedule_outcome *out, struct error *err)
{
    auto_pgresult *rows = NULL;
    int64_t running;
    int64_t queued;

    (void)snprintf(out->reason, sizeof out->reason, "%s",
                   wish->refused != NULL ? wish->refused : wish->reason);
    out->status = wish->refused != NULL ? "failed" : "running";
    if (wish->refused != NULL)
        return 0;
    if (schedule->overlap == OVERLAP_ALLOW)
        return decide_by_dependencies(db, schedule, wish, out, err);
    if (db_exec(db, ACTIVE, DB_PARAMS(schedule->id), &rows, err) < 0)
        return -1;
    running = db_i64(rows, 0, 0);
    queued = db_i64(rows, 0, 1);
    if (running == 0 && queued == 0)
        return decide_by_dependencies(db, schedule, wish, out, err);
    if (schedule->overlap == OVERLAP_QUEUE && queued < SCHEDULE_RUNS_QUEUED) {
        out->status = "queued";
        return 0;
    }
    out->status = "skipped";
    (void)snprintf(out->reason, sizeof out->reason, "run %s is still under way%s",
                   db_text(rows, 0, 2),
                   schedule->overlap == OVERLAP_QUEUE ? ", and too many wait already" : "");
    return 0;
}

static int insert_run(struct db *db, const struct schedule *schedule,
                      const struct schedule_wish *wish, const struct schedule_outcome *out,
                      bool *inserted, struct error *err)
{
    auto_pgresult *rows = NULL;
    char due[NUMBER_SIZE];
    char kept[NUMBER_SIZE];

    (void)snprintf(due, sizeof due, "%" PRId64, wish->due_s);
    (void)snprintf(kept, sizeof kept, "%d", SCHEDULE_RUNS_KEPT);
    if (db_exec(db, INSERT_RUN,
                DB_PARAMS(out->run_id, schedule->id, due, out->status, out->reason,
                          wish->manual ? "true" : "false"),
                &rows, err) < 0)
        return -1;
    *inserted = db_affected(rows) == 1;
    return db_exec(db, FORGET, DB_PARAMS(schedule->id, kept), NULL, err);
}

int schedule_run_begin(struct db *db, const struct submit_settings *settings,
                       const struct schedule *schedule, const struct schedule_wish *wish,
                       struct schedule_outcome *out, struct error *err)
{
    bool inserted = false;

    assert(db_in_transaction(db));
    *out = (struct schedule_outcome){.job_ids = json_array()};
    id_new("run", out->run_id);
    if (schedule_runs_settle(db, settings->retry, schedule->id, err) < 0 ||
        decide(db, schedule, wish, out, err) < 0 ||
        insert_run(db, schedule, wish, out, &inserted, err) < 0)
        return -1;
    if (!inserted) {
        out->run_id[0] = '\0';
        return 0;
    }
    if (strcmp(out->status, "running") == 0)
        return start_jobs(db, settings, schedule, wish->due_s, out, err);
    if (strcmp(out->status, "queued") == 0)
        return 0;
    return add_event(
        db, schedule,
        &(struct run_event){wish->refused != NULL ? "schedule.triggered" : "schedule.missed",
                            out->status, out->run_id, NULL, out->reason},
        err);
}

/* The row of OLDEST_QUEUED: may it start? *out: not now, or not any more. */
static int hold_back(struct db *db, const struct schedule *schedule, const PGresult *row,
                     struct schedule_outcome *out, bool *out_held, struct error *err)
{
    enum schedule_wait wait = SCHEDULE_READY;
    char why[ERROR_MESSAGE_MAX] = "";
    bool ready = true;

    *out_held = false;
    if (!db_bool(row, 0, 3) &&
        schedule_depends_look(db, schedule, db_i64(row, 0, 4), &wait, why, err) < 0)
        return -1;
    if (wait == SCHEDULE_READY && schedule->policy_id[0] != '\0' &&
        policy_inventory_ready(db, schedule->fields, &ready, err) < 0)
        return -1;
    out->needs_inventory = !ready;
    *out_held = wait != SCHEDULE_READY || !ready;
    if (wait != SCHEDULE_HOPELESS)
        return 0;
    (void)snprintf(out->run_id, sizeof out->run_id, "%s", db_text(row, 0, 0));
    memcpy(out->reason, why, sizeof out->reason);
    out->status = "skipped";
    if (db_exec(db, SKIP, DB_PARAMS(out->run_id, why), NULL, err) < 0)
        return -1;
    return add_event(db, schedule,
                     &(struct run_event){"schedule.missed", "skipped", out->run_id, NULL, why},
                     err);
}

int schedule_run_dequeue(struct db *db, const struct submit_settings *settings,
                         const struct schedule *schedule, const char *refused,
                         struct schedule_outcome *out, struct error *err)
{
    auto_pgresult *active = NULL;
    auto_pgresult *rows = NULL;
    bool held = false;

    assert(db_in_transaction(db));
    *out = (struct schedule_outcome){.job_ids = json_array()};
    if (db_exec(db, ACTIVE, DB_PARAMS(schedule->id), &active, err) < 0 ||
        db_exec(db, OLDEST_QUEUED, DB_PARAMS(schedule->id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0 || (db_i64(active, 0, 0) > 0 && schedule->overlap != OVERLAP_ALLOW))
        return 0;
    if (refused == NULL && hold_back(db, schedule, rows, out, &held, err) < 0)
        return -1;
    if (held)
        return 0;
    (void)snprintf(out->run_id, sizeof out->run_id, "%s", db_text(rows, 0, 0));
    (void)snprintf(out->reason, sizeof out->reason, "%s",
                   refused != NULL ? refused : db_text(rows, 0, 2));
    if (refused != NULL) {
        out->status = "failed";
        if (db_exec(db, STARTED, DB_PARAMS(out->run_id, out->status, out->reason, "[]", "[]"), NULL,
                    err) < 0)
            return -1;
        return add_event(
            db, schedule,
            &(struct run_event){"schedule.triggered", out->status, out->run_id, NULL, out->reason},
            err);
    }
    if (json_object_get(schedule->fields, "depends_on") != NULL) {
        (void)snprintf(out->reason, sizeof out->reason, "waited for %" PRId64 " s",
                       db_i64(rows, 0, 4) / 1000);
    }
    return start_jobs(db, settings, schedule, db_i64(rows, 0, 1), out, err);
}

/* ---- missed ---- */

static const char *missed_reason(const struct schedule *schedule)
{
    switch (schedule->misfire) {
    case MISFIRE_SKIP:
        return "no scheduler was running; 'misfire' is 'skip'";
    case MISFIRE_RUN_ONCE:
        return "no scheduler was running; one later run stands for it";
    case MISFIRE_RUN_ALL:
        return "no scheduler was running, and more runs were missed than 'misfire_limit' allows";
    }
    return "";
}

int schedule_runs_missed(struct db *db, const struct schedule *schedule,
                         const struct schedule_plan *plan, struct error *err)
{
    auto_json *list = json_array();
    autofree char *text = NULL;
    autofree char *why = NULL;
    uint64_t unlisted = plan->missed_total - plan->missed_count;
    const char *newest;

    if (plan->missed_count == 0)
        return 0;
    for (size_t i = 0; i < plan->missed_count; i++) {
        json_t *item = json_object();
        autofree char *more = NULL;
        char id[ID_SIZE];
        id_new("run", id);
        if (i == 0 && unlisted > 0) {
            more = xasprintf("%s (%" PRIu64 " earlier ones are not listed)",
                             missed_reason(schedule), unlisted);
        }
        json_set_text(item, "id", id);
        json_set_i64(item, "due", plan->missed[i]);
        json_set_text(item, "reason", more == NULL ? missed_reason(schedule) : more);
        (void)json_array_append_new(list, item);
    }
    text = json_text(list);
    if (db_exec(db, INSERT_MISSED, DB_PARAMS(schedule->id, text), NULL, err) < 0)
        return -1;
    why = xasprintf("%" PRIu64 " times: %s", plan->missed_total, missed_reason(schedule));
    newest = json_str(json_array_get(list, plan->missed_count - 1), "id");
    return add_event(db, schedule,
                     &(struct run_event){"schedule.missed", "missed", newest, NULL, why}, err);
}

int schedule_runs_waiting(struct db *db, json_t **out, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, WAITING, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    return json_parse(db_text(rows, 0, 0), strlen(db_text(rows, 0, 0)), MIB, out, err);
}
