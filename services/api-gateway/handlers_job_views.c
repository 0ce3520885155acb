/* What a job looks like: object, progress, ETA, history, artifacts, totals. */
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/parse.h"
#include "handlers.h"
#include "job_eta.h"
#include "job_view.h"

#define HISTORY_MAX 1000

static const char history_sql[] = "SELECT e.id, " SQL_TIME(
    "e.at") ", e.event, e.status, e.phase, e.actor, e.detail"
            " FROM (SELECT * FROM job_events WHERE job_id = $1 UNION ALL"
            "  SELECT (jsonb_populate_recordset(NULL::job_events, a.history)).* FROM"
            "  archived_jobs a WHERE a.id = $1) e WHERE e.id > $2 ORDER BY e.id LIMIT $3";
static const char exports_sql[] =
    "SELECT e.id, e.volume, e.path, e.format, e.total_size, " SQL_TIME(
        "e.created_at") ", (SELECT coalesce(jsonb_agg(jsonb_build_object('disk_id', d.disk_id, "
                        "'file', d.file,"
                        " 'size', d.size_bytes, 'capacity_bytes', d.capacity_bytes, 'sha256', "
                        "d.sha256, 'root', d.root)"
                        " ORDER BY d.disk_id), '[]') FROM export_disks d WHERE d.export_id = e.id)"
                        " FROM exports e WHERE e.job_id = $1 ORDER BY e.created_at DESC, e.id "
                        "LIMIT 1";
static const char hooks_sql[] =
    "SELECT jsonb_strip_nulls(jsonb_build_object('when', t.hook, 'type', t.kind, 'command',"
    " t.spec->'command', 'url', t.spec->'url', 'on_error', CASE WHEN t.may_fail THEN 'continue'"
    " ELSE 'fail' END, 'state', t.state, 'attempt', t.attempt, 'exit_status',"
    " t.result->'script'->'exit_status', 'starts', t.result->'script'->'starts', 'http_status',"
    " t.result->'webhook'->'http_status', 'error', nullif(t.error, ''), 'worker',"
    " nullif(t.worker, '')))"
    " FROM (SELECT * FROM tasks WHERE job_id = $1 UNION ALL SELECT r.* FROM archived_jobs a,"
    " jsonb_populate_recordset(NULL::tasks, a.tasks) r WHERE a.id = $1) t WHERE t.hook <> ''"
    " ORDER BY t.ordinal";
static const char totals_sql[] =
    "SELECT name, sum(value) FROM metric_totals WHERE name IN"
    " ('hypersdk_vms_exported_total', 'hypersdk_bytes_exported_total') AND labels = '{}'"
    " GROUP BY name";

/* The export's own steps that it went on without. */
static void add_failed_steps(const json_t *job, json_t *list)
{
    static const char *const keys[] = {"when", "type", "error"};
    const json_t *step;
    size_t i;

    json_array_foreach(json_object_get(json_object_get(job, "result"), "hooks_failed"), i, step)
    {
        json_t *hook = json_object();
        for (size_t k = 0; k < ARRAY_LEN(keys); k++)
            json_set_text(hook, keys[k], json_str(step, keys[k]));
        json_set_text(hook, "on_error", "continue");
        json_set_text(hook, "state", "failed");
        (void)json_array_append_new(list, hook);
    }
}

/* What became of the hooks that are tasks, and of steps of the export that failed; a job with
 * neither has no such member. */
static int add_hooks(struct call *call, json_t *job, struct error *err)
{
    auto_pgresult *rows = NULL;
    auto_json *list = json_array();

    if (db_exec(call->db, hooks_sql, DB_PARAMS(json_str(job, "job_id")), &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++)
        (void)json_array_append_new(list, cell_json(rows, i, 0));
    add_failed_steps(job, list);
    if (json_array_size(list) > 0)
        json_put(job, "hooks", STEAL(list));
    return 0;
}

int handle_job_get(struct call *call, struct error *err)
{
    auto_pgresult *rows = NULL;
    auto_json *job = NULL;

    if (job_load(call, call_param(call, "id"), &rows, err) < 0)
        return -1;
    job = job_view(call->gateway, rows, 0);
    if (add_hooks(call, job, err) < 0)
        return -1;
    call_answer_json(call, 200, STEAL(job));
    return 0;
}

int handle_job_progress(struct call *call, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (job_load(call, call_param(call, "id"), &rows, err) < 0)
        return -1;
    call_answer_json(call, 200, progress_view(call->gateway, rows, 0));
    return 0;
}

int handle_job_eta(struct call *call, struct error *err)
{
    auto_pgresult *rows = NULL;
    auto_json *progress = NULL;
    json_t *eta = NULL;
    json_t *answer;

    if (job_load(call, call_param(call, "id"), &rows, err) < 0)
        return -1;
    progress = progress_view(call->gateway, rows, 0);
    if (job_eta(call->db, call_param(call, "id"), progress, &eta, err) < 0)
        return -1;
    answer = json_object();
    (void)json_object_set(answer, "job_id", json_object_get(progress, "job_id"));
    (void)json_object_set(answer, "status", json_object_get(progress, "status"));
    (void)json_object_set_new(answer, "eta", eta);
    call_answer_json(call, 200, answer);
    return 0;
}

/* after=<id of the last one seen> goes on where a page ended. */
int handle_job_history(struct call *call, struct error *err)
{
    const char *job_id = call_param(call, "id");
    const char *cursor = call_query(call, "cursor");
    auto_pgresult *job = NULL;
    auto_pgresult *rows = NULL;
    struct error why = ERROR_NONE;
    uint64_t after = 0;
    json_t *answer;
    json_t *list;

    if (cursor != NULL && parse_u64("cursor", cursor, 0, INT64_MAX, &after, &why) < 0)
        return call_bad_field(call, "cursor", err, "%s", why.message);
    if (job_load(call, job_id, &job, err) < 0 ||
        db_exec(call->db, history_sql, DB_PARAMS(job_id, cursor == NULL ? "0" : cursor, "1001"),
                &rows, err) < 0)
        return -1;
    answer = json_object();
    list = json_array();
    for (int i = 0; i < PQntuples(rows) && i < HISTORY_MAX; i++) {
        static const char *const keys[] = {"timestamp", "event", "status", "phase", "actor"};
        json_t *event = json_object();
        json_set_i64(event, "id", db_i64(rows, i, 0));
        for (int k = 0; k < (int)ARRAY_LEN(keys); k++)
            (void)json_object_set_new(event, keys[k], cell_text(rows, i, k + 1));
        (void)json_object_set_new(event, "detail", cell_json(rows, i, 6));
        (void)json_array_append_new(list, event);
    }
    json_set_text(answer, "job_id", job_id);
    if (PQntuples(rows) > HISTORY_MAX)
        json_set_text(answer, "next_cursor", db_text(rows, HISTORY_MAX - 1, 0));
    json_set_i64(answer, "total", (int64_t)json_array_size(list));
    (void)json_object_set_new(answer, "history", list);
    call_answer_json(call, 200, answer);
    return 0;
}

/* Every file of the result with its path, size and SHA-256. */
static json_t *files_of(const json_t *result)
{
    const json_t *files = json_object_get(result, "files");
    const char *dir = json_str(result, "output_path");
    bool kept = !json_is_false(json_object_get(result, "local_kept"));
    json_t *list = json_array();
    json_t *file;
    size_t i;

    json_array_foreach(files, i, file)
    {
        json_t *item = json_copy(file);
        autofree char *path = xasprintf("%s/%s", dir, json_str(file, "name"));
        if (kept) {
            json_set_text(item, "path", path);
        } else {
            (void)json_object_set_new(item, "path", json_null());
        }
        if (json_object_get(item, "sha256") == NULL)
            (void)json_object_set_new(item, "sha256", json_null());
        (void)json_array_append_new(list, item);
    }
    return list;
}

int handle_job_artifacts(struct call *call, struct error *err)
{
    static const char *const keys[] = {"id", "volume", "path", "format"};
    const char *job_id = call_param(call, "id");
    auto_pgresult *rows = NULL;
    auto_pgresult *export = NULL;
    auto_json *job = NULL;
    const json_t *result;
    json_t *answer;
    json_t *about = json_null();

    if (job_load(call, job_id, &rows, err) < 0 ||
        db_exec(call->db, exports_sql, DB_PARAMS(job_id), &export, err) < 0)
        return -1;
    job = job_view(call->gateway, rows, 0);
    result = json_object_get(job, "result");
    answer = json_object();
    json_set_text(answer, "job_id", job_id);
    (void)json_object_set(answer, "status", json_object_get(job, "status"));
    (void)json_object_set_new(answer, "artifacts", files_of(result));
    json_set_i64(answer, "total", (int64_t)json_array_size(json_object_get(answer, "artifacts")));
    json_set_i64(answer, "total_size", (int64_t)json_u64(result, "total_size"));
    if (PQntuples(export) == 1) {
        about = json_object();
        for (int k = 0; k < (int)ARRAY_LEN(keys); k++)
            (void)json_object_set_new(about, keys[k], cell_text(export, 0, k));
        json_set_i64(about, "total_size", db_i64(export, 0, 4));
        (void)json_object_set_new(about, "created_at", cell_text(export, 0, 5));
        (void)json_object_set_new(about, "disks", cell_json(export, 0, 6));
    }
    (void)json_object_set_new(answer, "export", about);
    if (json_object_get(result, "uploaded") != NULL) {
        (void)json_object_set(answer, "uploaded_to", json_object_get(result, "uploaded_to"));
        (void)json_object_set(answer, "uploaded", json_object_get(result, "uploaded"));
    }
    if (json_object_get(result, "conversion") != NULL)
        (void)json_object_set(answer, "conversion", json_object_get(result, "conversion"));
    call_answer_json(call, 200, answer);
    return 0;
}

int handle_job_stats(struct call *call, struct error *err)
{
    auto_json *answer = json_object();
    auto_pgresult *rows = NULL;

    if (job_counts(call->db, answer, err) < 0 ||
        db_exec(call->db, totals_sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    json_set_i64(answer, "vms_exported", 0);
    json_set_i64(answer, "bytes_exported", 0);
    for (int i = 0; i < PQntuples(rows); i++) {
        json_set_i64(answer,
                     strstr(db_text(rows, i, 0), "bytes") != NULL ? "bytes_exported"
                                                                  : "vms_exported",
                     db_i64(rows, i, 1));
    }
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, STEAL(answer));
    return 0;
}
