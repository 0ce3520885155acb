/* Submissions on their way into the tables: one statement for each kind of row, however many jobs
 * there are; which of them are taken is still decided one by one, in their order. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/id.h"
#include "common/job_store_internal.h"
#include "common/json.h"
#include "common/paths.h"

/* $1 of each: a JSON array of rows. They are inserted in its order: seq says who came first. */
static const char INSERT_JOBS[] =
    "INSERT INTO jobs (id, name, kind, provider, vm_path, vm_name, output_path, format, definition,"
    " priority, max_attempts, retry_initial_ms, retry_max_ms, submitted_by, trace_id,"
    " idempotency_key, idempotency_hash, schedule_id, policy_id, workflow_run_id,"
    " deadline, time_windows, on_window_end, window_open, window_at)"
    " SELECT id, name, kind, provider, vm_path, vm_name, output_path, format, definition, priority,"
    " max_attempts, retry_initial_ms, retry_max_ms, submitted_by, trace_id, key, hash, schedule_id,"
    " policy_id, workflow_run_id, deadline, time_windows, on_window_end, time_windows IS NULL,"
    " CASE WHEN time_windows IS NOT NULL THEN now() END"
    " FROM jsonb_to_recordset($1::jsonb) AS x(n int, id text, name text, kind text, provider text,"
    " vm_path text, vm_name text, output_path text, format text, definition jsonb, priority int,"
    " max_attempts int, retry_initial_ms bigint, retry_max_ms bigint, submitted_by text,"
    " trace_id text, key text, hash bytea, schedule_id text, policy_id text, workflow_run_id text,"
    " deadline timestamptz, time_windows jsonb, on_window_end text) ORDER BY n"
    " ON CONFLICT DO NOTHING RETURNING id, idempotency_key";

/* Where the VM runs, if one VM only has that path, id or name; by one index each. */
#define HOSTS                                                                               \
    "SELECT v.id, v.vm->>'host' AS host FROM inventory_vms v WHERE v.provider = s.provider" \
    " AND v.generation = s.generation AND x.vm_path = "
#define HOST_OF_VM                                                                      \
    "(SELECT min(f.host) FROM inventory_state s, LATERAL (" HOSTS "v.path UNION " HOSTS \
    "v.id UNION " HOSTS "v.name) f WHERE s.provider = x.provider HAVING count(*) = 1)"

/* queue_rank() is asked once, not for each row. */
static const char INSERT_TASKS[] =
    "INSERT INTO tasks (id, job_id, ordinal, kind, class, role, provider_kind, provider, spec,"
    " priority, state, volume, hook, may_fail, max_attempts, retry_initial_ms, retry_max_ms, wait,"
    " not_before, rank, source_host, queue_group, queue_limit, hold)"
    " SELECT id, job_id, ordinal, kind, 'transfer', role, provider_kind, provider, spec, priority,"
    " state, volume, hook, may_fail, max_attempts, retry_initial_ms, retry_max_ms, wait,"
    " coalesce(to_timestamp(not_before / 1000.0), now()),"
    " (SELECT queue_rank(now(), 0)) - priority * (SELECT queue_rank(now(), 0) - queue_rank(now(), "
    "1)),"
    " CASE WHEN kind = 'export' THEN coalesce(" HOST_OF_VM ", '') ELSE '' END,"
    " queue_group, queue_limit, hold"
    " FROM jsonb_to_recordset($1::jsonb) AS x(n int, id text, job_id text, ordinal int, kind text,"
    " role text, provider_kind text, provider text, spec jsonb, priority int, state text,"
    " volume text, hook text, may_fail boolean, max_attempts int, retry_initial_ms bigint,"
    " retry_max_ms bigint, wait jsonb, not_before bigint, vm_path text, queue_group text,"
    " queue_limit int, hold text) ORDER BY n";

static const char KNOWN_JOBS[] = "SELECT x.id FROM jsonb_array_elements_text($1::jsonb) x(id)"
                                 " WHERE EXISTS (SELECT 1 FROM jobs o WHERE o.id = x.id)"
                                 " OR EXISTS (SELECT 1 FROM archived_jobs o WHERE o.id = x.id)";

static const char INSERT_DEPENDENCIES[] =
    "INSERT INTO job_dependencies (job_id, on_job, required, timeout_at)"
    " SELECT x.id, x.job_id, x.required_state, now() + x.timeout_ms * interval '1 millisecond'"
    " FROM jsonb_to_recordset($1::jsonb) AS x(id text, job_id text, required_state text,"
    " timeout_ms bigint) ON CONFLICT DO NOTHING";

static const char TAKE_BACK[] =
    "DELETE FROM jobs WHERE id = ANY (ARRAY(SELECT jsonb_array_elements_text($1::jsonb)))";

static const char FIND_KEYS[] =
    "SELECT x.n, j.id, j.idempotency_hash = x.hash"
    " FROM jsonb_to_recordset($1::jsonb) AS x(n int, submitted_by text, key text, hash bytea)"
    " JOIN jobs j ON j.submitted_by = x.submitted_by AND j.idempotency_key = x.key";

enum fate { FATE_OTHER, FATE_INSERTED }; /* there already or refused; a new row */

struct submitting { /* one call */
    struct db *db;
    const struct job_submission *jobs;
    size_t count;
    struct job_store_submitted *out;
    enum fate *fates;
};

static void set_number(json_t *row, const char *key, uint64_t value)
{
    json_set_i64(row, key, (int64_t)value);
}

/* Without it the column is NULL. */
static void set_known(json_t *row, const char *key, const char *text)
{
    if (text != NULL)
        json_set_text(row, key, text);
}

static void set_shared(json_t *row, const char *key, const json_t *value)
{
    if (value != NULL)
        json_put(row, key, json_incref(json_unconst(value)));
}

static const char *or_empty(const char *text)
{
    return text == NULL ? "" : text;
}

/* ---- jobs ---- */

static void set_hash(json_t *row, const struct job_submission *s)
{
    if (s->idempotency_hash != NULL) {
        autofree char *hash = db_bytea_text(s->idempotency_hash, 32);
        json_set_text(row, "hash", hash);
    }
}

static json_t *job_row(const struct submitting *run, size_t i)
{
    const struct job_submission *s = &run->jobs[i];
    json_t *row = json_object();

    set_number(row, "n", i);
    json_set_text(row, "id", run->out[i].id);
    json_set_text(row, "name", s->name);
    json_set_text(row, "kind", s->kind);
    json_set_text(row, "provider", s->provider);
    json_set_text(row, "vm_path", s->vm_path);
    json_set_text(row, "vm_name", path_last(s->vm_path));
    json_set_text(row, "output_path", s->output_path);
    json_set_text(row, "format", s->format);
    set_shared(row, "definition", s->definition);
    set_number(row, "priority", s->priority);
    set_number(row, "max_attempts", s->max_attempts);
    json_set_i64(row, "retry_initial_ms", s->retry_initial_ms);
    json_set_i64(row, "retry_max_ms", s->retry_max_ms);
    json_set_text(row, "submitted_by", s->submitted_by);
    json_set_text(row, "trace_id", s->trace_id);
    set_known(row, "key", s->idempotency_key);
    set_hash(row, s);
    json_set_text(row, "schedule_id", or_empty(s->schedule_id));
    json_set_text(row, "policy_id", or_empty(s->policy_id));
    json_set_text(row, "workflow_run_id", or_empty(s->workflow_run_id));
    set_known(row, "deadline", s->deadline);
    set_shared(row, "time_windows", s->time_windows);
    json_set_text(row, "on_window_end", s->on_window_end == NULL ? "continue" : s->on_window_end);
    return row;
}

/* The rows that are new come back in the order of the submissions. Two of one id differ in their
 * keys, or the second is not new. */
static bool is_row_of(const struct submitting *run, size_t i, const PGresult *rows, int row)
{
    return strcmp(run->out[i].id, db_text(rows, row, 0)) == 0 &&
           strcmp(or_empty(run->jobs[i].idempotency_key), db_text(rows, row, 1)) == 0;
}

static int insert_jobs(struct submitting *run, struct error *err)
{
    auto_json *jobs = json_array();
    auto_pgresult *rows = NULL;
    size_t at = 0;

    for (size_t i = 0; i < run->count; i++)
        (void)json_array_append_new(jobs, job_row(run, i));
    if (store_rows(run->db, INSERT_JOBS, jobs, &rows, err) < 0)
        return -1;
    for (int row = 0; row < PQntuples(rows); row++) {
        while (at < run->count && !is_row_of(run, at, rows, row))
            at++;
        assert(at < run->count); /* the statement inserts nothing else */
        run->fates[at++] = FATE_INSERTED;
    }
    return 0;
}

/* ---- those that were there already ---- */

static int find_keys(const struct submitting *run, PGresult **out, struct error *err)
{
    auto_json *keys = json_array();

    for (size_t i = 0; i < run->count; i++) {
        const struct job_submission *s = &run->jobs[i];
        if (run->fates[i] == FATE_INSERTED || s->idempotency_key == NULL)
            continue;
        json_t *row = json_object();
        set_number(row, "n", i);
        json_set_text(row, "submitted_by", s->submitted_by);
        json_set_text(row, "key", s->idempotency_key);
        set_hash(row, s);
        (void)json_array_append_new(keys, row);
    }
    return store_rows(run->db, FIND_KEYS, keys, out, err);
}

/* Nothing was inserted: which of the two unique rules said no? */
static int find_existing(struct submitting *run, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (find_keys(run, &rows, err) < 0)
        return -1;
    for (int row = 0; row < PQntuples(rows); row++) {
        size_t i = (size_t)db_i64(rows, row, 0);
        struct job_store_submitted *out = &run->out[i];
        if (!db_bool(rows, row, 2)) {
            (void)error_set(&out->error, ERR_CONFLICT,
                            "Idempotency-Key '%.64s' was used with another request",
                            run->jobs[i].idempotency_key);
            continue;
        }
        out->existing = true;
        (void)snprintf(out->id, sizeof out->id, "%s", db_text(rows, row, 1));
    }
    for (size_t i = 0; i < run->count; i++) {
        struct job_store_submitted *out = &run->out[i];
        if (run->fates[i] != FATE_INSERTED && !out->existing && out->error.code == ERR_NONE) {
            (void)error_set(&out->error, ERR_CONFLICT, "a job with the id '%.64s' exists already",
                            out->id);
        }
    }
    return 0;
}

/* ---- dependencies ---- */

/* Those of the new jobs, and of them only the ids (else as rows of INSERT_DEPENDENCIES). */
static json_t *dependencies(const struct submitting *run, bool ids_only)
{
    json_t *list = json_array();

    for (size_t i = 0; i < run->count; i++) {
        const json_t *entry;
        size_t k;
        if (run->fates[i] != FATE_INSERTED)
            continue;
        json_array_foreach(run->jobs[i].depends_on, k, entry)
        {
            if (ids_only) {
                (void)json_array_append(list, json_object_get(entry, "job_id"));
                continue;
            }
            json_t *row = json_copy(json_unconst(entry));
            json_set_text(row, "id", run->out[i].id);
            (void)json_array_append_new(list, row);
        }
    }
    return list;
}

/* The jobs that were there before: of the new ones (a member of fresh) only those count that stand
 * before the one that waits for them. */
static json_t *known_before(const PGresult *rows, const json_t *fresh)
{
    json_t *known = json_object();

    for (int row = 0; row < PQntuples(rows); row++) {
        if (json_object_get(fresh, db_text(rows, row, 0)) == NULL)
            json_put(known, db_text(rows, row, 0), json_true());
    }
    return known;
}

/* Each must exist, so there are no cycles. Adds the ids of those that are refused to out_refused,
 * as a job whose dependency is refused is itself. */
static void check_dependencies(struct submitting *run, const PGresult *rows, json_t *out_refused)
{
    auto_json *fresh = json_object();
    auto_json *known = NULL;

    for (size_t i = 0; i < run->count; i++) {
        if (run->fates[i] == FATE_INSERTED)
            json_put(fresh, run->out[i].id, json_true());
    }
    known = known_before(rows, fresh);
    for (size_t i = 0; i < run->count; i++) {
        struct job_store_submitted *out = &run->out[i];
        const json_t *entry;
        size_t k;
        if (run->fates[i] != FATE_INSERTED)
            continue;
        json_array_foreach(run->jobs[i].depends_on, k, entry)
        {
            const char *on = json_str(entry, "job_id");
            if (out->error.code != ERR_NONE || json_object_get(known, on) != NULL)
                continue;
            (void)error_set(&out->error, ERR_INVALID,
                            "'depends_on': job '%.64s' does not exist; one of the same request "
                            "must stand before those that wait for it",
                            on);
        }
        if (out->error.code == ERR_NONE) {
            json_put(known, out->id, json_true());
            continue;
        }
        run->fates[i] = FATE_OTHER;
        (void)json_array_append_new(out_refused, json_string(out->id));
    }
}

static int insert_dependencies(struct submitting *run, struct error *err)
{
    auto_json *wanted = dependencies(run, true);
    auto_json *refused = json_array();
    auto_json *added = NULL;
    auto_pgresult *rows = NULL;

    if (json_array_size(wanted) == 0)
        return 0;
    if (store_rows(run->db, KNOWN_JOBS, wanted, &rows, err) < 0)
        return -1;
    check_dependencies(run, rows, refused);
    added = dependencies(run, false);
    if (store_rows(run->db, TAKE_BACK, refused, NULL, err) < 0)
        return -1;
    return store_rows(run->db, INSERT_DEPENDENCIES, added, NULL, err);
}

/* ---- tasks ---- */

int64_t store_wait_end(const json_t *wait, int64_t now_ms)
{
    const json_t *step;
    size_t i;

    json_array_foreach(wait, i, step)
    {
        json_int_t until_ms = json_integer_value(json_object_get(step, "until_ms"));
        now_ms += json_integer_value(json_object_get(step, "ms"));
        if (until_ms > now_ms)
            now_ms = until_ms;
    }
    return now_ms;
}

/* The scheduler lets go what need not wait. */
static const char *first_hold(const struct job_submission *s)
{
    if (s->depends_on != NULL)
        return "depends";
    return s->time_windows != NULL ? "window" : "";
}

/* Who may have it, and when. */
static void set_place(json_t *row, const struct job_submission *s, const struct job_task *task,
                      size_t ordinal)
{
    bool files = !task->bridge && s->any_exporter; /* of no source */
    bool main_task = strcmp(task->kind, s->kind) == 0;
    bool grouped = main_task && s->queue_group != NULL;

    json_set_text(row, "role", task->bridge ? "bridge" : "exporter");
    json_set_text(row, "provider_kind", task->bridge || files ? "" : s->provider_kind);
    json_set_text(row, "provider", s->bridge || files ? "" : s->provider);
    json_set_text(row, "volume", !main_task ? "" : or_empty(s->volume));
    json_set_text(row, "queue_group", grouped ? s->queue_group : "");
    set_number(row, "queue_limit", grouped ? s->queue_limit : 0);
    json_set_text(row, "state", ordinal > 0 ? "blocked" : "queued");
    json_set_text(row, "hold", ordinal == 0 ? first_hold(s) : "");
    set_shared(row, "wait", task->wait);
    if (ordinal == 0 && task->wait != NULL)
        json_set_i64(row, "not_before", store_wait_end(task->wait, clock_wall_ms()));
}

static json_t *task_row(const struct job_submission *s, const char *job_id,
                        const struct job_task *task, size_t ordinal)
{
    json_t *row = json_object();
    char id[ID_SIZE];

    id_new("task", id);
    json_set_text(row, "id", id);
    json_set_text(row, "job_id", job_id);
    set_number(row, "ordinal", ordinal);
    json_set_text(row, "kind", task->kind);
    set_shared(row, "spec", task->spec);
    set_number(row, "priority", s->priority);
    json_set_text(row, "vm_path", s->vm_path);
    json_set_text(row, "hook", or_empty(task->hook));
    json_put(row, "may_fail", json_boolean(task->may_fail));
    if (task->max_attempts > 0) { /* else the job's */
        set_number(row, "max_attempts", task->max_attempts);
        json_set_i64(row, "retry_initial_ms", task->retry_initial_ms);
        json_set_i64(row, "retry_max_ms", task->retry_max_ms);
    }
    set_place(row, s, task, ordinal);
    return row;
}

static void add_tasks(const struct job_submission *s, const char *job_id, json_t *out)
{
    const struct job_task own[] = {
        {.kind = s->kind, .spec = s->export_spec, .bridge = s->bridge},
        {.kind = "convert", .spec = s->convert_spec, .bridge = true},
        {.kind = "import", .spec = s->import_spec, .bridge = true},
    };
    const struct job_task *tasks = s->task_count > 0 ? s->tasks : own;
    size_t count = s->task_count > 0 ? s->task_count : ARRAY_LEN(own);
    size_t ordinal = 0;

    assert(count <= JOB_TASKS_MAX);
    for (size_t i = 0; i < count; i++) {
        if (tasks[i].spec == NULL)
            continue;
        json_t *row = task_row(s, job_id, &tasks[i], ordinal++);
        set_number(row, "n", json_array_size(out));
        (void)json_array_append_new(out, row);
    }
}

/* Tasks and the first event of each new job. */
static int insert_rest(const struct submitting *run, struct error *err)
{
    auto_json *tasks = json_array();
    auto_json_rows events;

    json_rows_init(&events);
    for (size_t i = 0; i < run->count; i++) {
        const struct job_submission *s = &run->jobs[i];
        if (run->fates[i] != FATE_INSERTED)
            continue;
        add_tasks(s, run->out[i].id, tasks);
        store_add_history(&(struct store_line){.job_id = run->out[i].id,
                                               .event = "job.created",
                                               .status = "pending",
                                               .phase = "",
                                               .actor = s->submitted_by},
                          &events);
    }
    if (store_rows(run->db, INSERT_TASKS, tasks, NULL, err) < 0)
        return -1;
    return store_history_rows(run->db, &events, err);
}

/* ---- all of it ---- */

static int submit_all(struct submitting *run, struct error *err)
{
    for (size_t i = 0; i < run->count; i++) {
        struct job_store_submitted *out = &run->out[i];
        *out = (struct job_store_submitted){0};
        if (run->jobs[i].id == NULL) {
            id_new("job", out->id);
        } else {
            (void)snprintf(out->id, sizeof out->id, "%s", run->jobs[i].id);
        }
    }
    if (insert_jobs(run, err) < 0 || find_existing(run, err) < 0 ||
        insert_dependencies(run, err) < 0)
        return -1;
    return insert_rest(run, err);
}

int job_store_submit_all(struct db *db, const struct job_submission *submissions, size_t count,
                         struct job_store_submitted *out, struct error *err)
{
    autofree enum fate *fates = xcalloc(count + 1, sizeof *fates);
    struct submitting run = {db, submissions, count, out, fates};
    bool own = !db_in_transaction(db);

    assert(count <= JOB_STORE_SUBMIT_MAX);
    if (own && db_begin_by_index(db, err) < 0)
        return -1;
    return store_end(db, own, submit_all(&run, err), err);
}

int job_store_submit(struct db *db, const struct job_submission *submission, char out_id[64],
                     bool *out_existing, struct error *err)
{
    struct job_store_submitted one;

    if (job_store_submit_all(db, submission, 1, &one, err) < 0)
        return -1;
    if (one.error.code != ERR_NONE) {
        *err = one.error;
        return -1;
    }
    (void)snprintf(out_id, sizeof one.id, "%s", one.id);
    *out_existing = one.existing;
    return 0;
}
