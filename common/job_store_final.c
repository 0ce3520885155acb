/* What the end of a job or of its export leaves behind: catalogue, next task, totals, outbox,
 * clean-up. All inside the transaction of the state change. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/cleanup_job.h"
#include "common/clock.h"
#include "common/id.h"
#include "common/job_store_internal.h"
#include "common/json.h"
#include "common/metric_totals.h"

const char store_insert_exports[] =
    "INSERT INTO exports (id, job_id, provider, vm_id, vm_name, path, volume, format, total_size,"
    " manifest, base_id) SELECT * FROM jsonb_to_recordset($1::jsonb) AS x(id text, job_id text,"
    " provider text, vm_id text, vm_name text, path text, volume text, format text,"
    " total_size bigint, manifest jsonb, base_id text) ON CONFLICT (id) DO NOTHING";

const char store_insert_disks[] =
    "INSERT INTO export_disks (export_id, disk_id, file, size_bytes, capacity_bytes, sha256, root,"
    " change_id) SELECT export_id, disk_id, file, size_bytes, capacity_bytes, coalesce(sha256, ''),"
    " coalesce(root, ''), coalesce(change_id, '') FROM jsonb_to_recordset($1::jsonb)"
    " AS x(export_id text, disk_id text, file text, size_bytes bigint, capacity_bytes bigint,"
    " sha256 text, root text, change_id text) ON CONFLICT DO NOTHING";

static const char REMOVE_POINTS[] =
    "DELETE FROM exports WHERE id = ANY (ARRAY(SELECT jsonb_array_elements_text($1::jsonb)))";

static const char UPDATE_POINTS[] =
    "UPDATE exports e SET base_id = p->>'base_id', total_size = (p->>'total_size')::bigint"
    " FROM jsonb_array_elements($1::jsonb) p WHERE e.id = p->>'id'";

static const char UPDATE_POINT_DISKS[] =
    "UPDATE export_disks d SET size_bytes = (k->>'size_bytes')::bigint, sha256 = k->>'sha256'"
    " FROM jsonb_array_elements($1::jsonb) p, jsonb_array_elements(p->'disks') k"
    " WHERE d.export_id = p->>'id' AND d.disk_id = k->>'disk_id'";

/* $2: where the files are that the next tasks need; '': where they were. */
static const char COMPLETE_SPEC[] =
    "UPDATE tasks SET volume = CASE WHEN kind = 'webhook' THEN '' ELSE coalesce(nullif($2, ''),"
    " volume) END, spec = spec || $3::jsonb WHERE job_id = $1 AND state = 'blocked'";

static const char NEXT_WAIT[] =
    "SELECT id, coalesce(wait, '[]'::jsonb), (extract(epoch FROM now()) * 1000)::bigint FROM tasks"
    " WHERE job_id = $1 AND state = 'blocked' ORDER BY ordinal LIMIT 1";

static const char QUEUE_NEXT[] =
    "UPDATE tasks SET state = 'queued', not_before = to_timestamp($2::bigint / 1000.0),"
    " updated_at = now(), hold = CASE (SELECT j.status FROM jobs j WHERE j.id = tasks.job_id)"
    " WHEN 'paused' THEN 'paused' ELSE '' END WHERE id = $1";

static const char CANCEL_LATER[] =
    "UPDATE tasks SET state = 'cancelled', updated_at = now() WHERE job_id = $1"
    " AND state = 'blocked'";

static const char INSERT_RELEASE[] =
    "INSERT INTO tasks (id, kind, class, role, provider_kind, provider, volume, spec, priority,"
    " rank) SELECT $2, 'release', 'control', t.role, t.provider_kind, t.provider,"
    " CASE WHEN coalesce(j.cancel_discard, false) THEN t.volume ELSE '' END,"
    " jsonb_build_object('task_id', t.id, 'keep', false, 'discard',"
    "   coalesce(j.cancel_discard, false), 'output_path', coalesce(j.output_path, '')), 90,"
    " queue_rank(now(), 90)"
    " FROM tasks t LEFT JOIN jobs j ON j.id = t.job_id WHERE t.id = $1 AND t.kind IN ('export', "
    "'import', 'incremental_info', 'tracking')"
    " AND EXISTS (SELECT 1 FROM task_records r WHERE r.task_id = t.id)";

/* The job may be deleted before a worker comes: the release has records of its own. */
static const char COPY_RECORDS[] = "INSERT INTO task_records (task_id, key, value)"
                                   " SELECT $2, key, value FROM task_records WHERE task_id = $1";

static const char DELETE_EXPORTS[] =
    "DELETE FROM exports WHERE id IN (SELECT d->>'export_id' FROM jsonb_array_elements($1::jsonb) d"
    " UNION ALL SELECT jsonb_array_elements_text($2::jsonb))";

/* The rules may be for another volume than the export's. */
static const char FIND_CLEANUP[] =
    "SELECT t.spec->'cleanup', CASE WHEN starts_with(j.output_path || '/',"
    "  (t.spec->'cleanup'->>'dir') || '/') THEN t.volume ELSE '' END,"
    " j.submitted_by, coalesce(j.trace_id, ''), j.max_attempts, j.retry_initial_ms, j.retry_max_ms"
    " FROM tasks t JOIN jobs j ON j.id = t.job_id"
    " WHERE t.job_id = $1 AND t.kind = 'export' AND t.spec->'cleanup' IS NOT NULL";

static const char NAME_CLEANUP[] = "UPDATE jobs SET result = coalesce(result, '{}'::jsonb) ||"
                                   " jsonb_build_object('cleanup_job_id', $2::text) WHERE id = $1";

static void add_disk(const char *export_id, const json_t *disk, struct json_rows *rows)
{
    static const char *const members[] = {"disk_id", "file", "size_bytes", "capacity_bytes",
                                          "sha256",  "root", "change_id"};

    json_rows_next(rows);
    json_rows_text(rows, "export_id", export_id);
    for (size_t i = 0; i < ARRAY_LEN(members); i++)
        json_rows_json(rows, members[i], json_object_get(disk, members[i]));
}

int store_export_rows(const struct store_change *change, struct json_rows *exports,
                      struct json_rows *disks, struct metric_batch *totals, struct error *err)
{
    static const char *const texts[] = {"id",     "vm_id",  "vm_name", "path",
                                        "volume", "format", "base_id"};
    const json_t *export = json_object_get(change->event.result, "export");
    json_t *disk;
    size_t i;

    if (json_str(export, "id")[0] == '\0')
        return error_set(err, ERR_PROTOCOL, "the result of an export has no export id");
    json_rows_next(exports);
    for (i = 0; i < ARRAY_LEN(texts); i++)
        json_rows_text(exports, texts[i], json_str(export, texts[i]));
    json_rows_text(exports, "job_id", change->row.job_id);
    json_rows_text(exports, "provider", change->row.provider);
    json_rows_i64(exports, "total_size", (int64_t)json_u64(export, "total_size"));
    json_rows_json(exports, "manifest", json_object_get(export, "manifest"));
    json_array_foreach(json_object_get(export, "disks"), i, disk)
    {
        add_disk(json_str(export, "id"), disk, disks);
    }
    metric_batch_add(totals, "hypersdk_vms_exported_total", NULL, 1);
    metric_batch_add(totals, "hypersdk_bytes_exported_total", NULL,
                     (double)json_u64(export, "total_size"));
    return 0;
}

int store_cleanup(struct db *db, const json_t *result, struct error *err)
{
    const json_t *deleted = json_object_get(result, "deleted");
    const json_t *recalled = json_object_get(result, "recalled");
    autofree char *deleted_text = NULL;
    autofree char *recalled_text = NULL;

    if (!json_is_array(deleted) || !json_is_array(recalled) ||
        json_is_true(json_object_get(result, "dry_run")))
        return 0;
    deleted_text = json_text(deleted);
    recalled_text = json_text(recalled);
    return db_exec(db, DELETE_EXPORTS, DB_PARAMS(deleted_text, recalled_text), NULL, err);
}

int store_points(struct db *db, const json_t *result, struct error *err)
{
    const json_t *removed_list = json_object_get(result, "removed");
    const json_t *point_list = json_object_get(result, "points");
    autofree char *removed = NULL;
    autofree char *points = NULL;

    if (!json_is_array(removed_list) || !json_is_array(point_list))
        return error_set(err, ERR_PROTOCOL, "the result names no restore points");
    removed = json_text(removed_list);
    points = json_text(point_list);
    if (db_exec(db, REMOVE_POINTS, DB_PARAMS(removed), NULL, err) < 0 ||
        db_exec(db, UPDATE_POINTS, DB_PARAMS(points), NULL, err) < 0)
        return -1;
    return db_exec(db, UPDATE_POINT_DISKS, DB_PARAMS(points), NULL, err);
}

int store_next_spec(struct db *db, const struct store_row *row, const json_t *result,
                    struct error *err)
{
    auto_json *more = json_object();
    autofree char *text = NULL;

    json_set_text(more, "vm_name", json_str(result, "vm_name"));
    json_set_text(more, "export_path", json_str(result, "output_path"));
    json_set_text(more, "manifest_path", json_str(result, "manifest_path"));
    text = json_text(more);
    return db_exec(
        db, COMPLETE_SPEC,
        DB_PARAMS(row->job_id, json_str(json_object_get(result, "export"), "volume"), text), NULL,
        err);
}

int store_converted(struct db *db, const struct store_row *row, const json_t *result,
                    struct error *err)
{
    const json_t *conversion = json_object_get(result, "conversion");
    auto_json *more = json_object();
    autofree char *text = NULL;

    json_set_text(more, "disk_format", json_str(conversion, "format"));
    json_put(more, "guest_fixed",
             json_boolean(json_is_true(json_object_get(conversion, "guest_fixed"))));
    if (json_str(conversion, "manifest_path")[0] != '\0')
        json_set_text(more, "manifest_path", json_str(conversion, "manifest_path"));
    if (json_is_array(json_object_get(conversion, "output_files")))
        json_put(more, "disks", json_incref(json_object_get(conversion, "output_files")));
    text = json_text(more);
    return db_exec(db, COMPLETE_SPEC, DB_PARAMS(row->job_id, json_str(conversion, "volume"), text),
                   NULL, err);
}

int store_release_next(struct db *db, const struct store_row *row, struct error *err)
{
    auto_pgresult *rows = NULL;
    auto_json *wait = NULL;
    char until[NUMBER_SIZE];

    if (db_exec(db, NEXT_WAIT, DB_PARAMS(row->job_id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return 0;
    wait = json_loads(db_text(rows, 0, 1), 0, NULL);
    (void)snprintf(until, sizeof until, "%" PRId64, store_wait_end(wait, db_i64(rows, 0, 2)));
    return db_exec(db, QUEUE_NEXT, DB_PARAMS(db_text(rows, 0, 0), until), NULL, err);
}

int store_release_task(struct db *db, const struct store_row *row, struct error *err)
{
    auto_pgresult *rows = NULL;
    char id[ID_SIZE];

    id_new("task", id);
    if (db_exec(db, INSERT_RELEASE, DB_PARAMS(row->task_id, id), &rows, err) < 0)
        return -1;
    if (db_affected(rows) == 0)
        return 0; /* no records: nothing was made */
    return db_exec(db, COPY_RECORDS, DB_PARAMS(row->task_id, id), NULL, err);
}

int store_cancel_later(struct db *db, const struct store_row *row, struct error *err)
{
    return db_exec(db, CANCEL_LATER, DB_PARAMS(row->job_id), NULL, err);
}

/* A job of its own: the export is good, whatever becomes of the clean-up. */
int store_submit_cleanup(struct db *db, const struct store_row *row, struct error *err)
{
    struct retry_config retry = {0};
    auto_pgresult *rows = NULL;
    auto_json *spec = NULL;
    char id[64];

    if (db_exec(db, FIND_CLEANUP, DB_PARAMS(row->job_id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return 0;
    spec = json_loads(db_text(rows, 0, 0), 0, NULL);
    retry.max_attempts = (uint32_t)db_i64(rows, 0, 4);
    retry.initial_delay_ms = db_i64(rows, 0, 5);
    retry.max_delay_ms = db_i64(rows, 0, 6);
    if (cleanup_submit(db,
                       &(struct cleanup_request){.spec = spec,
                                                 .volume = db_text(rows, 0, 1),
                                                 .submitted_by = db_text(rows, 0, 2),
                                                 .trace_id = db_text(rows, 0, 3),
                                                 .retry = &retry},
                       id, err) < 0)
        return -1;
    return db_exec(db, NAME_CLEANUP, DB_PARAMS(row->job_id, id), NULL, err);
}

/* ---- totals ---- */

static json_t *labels_of(const char *first, const char *value, const char *provider)
{
    json_t *labels = json_object();

    json_set_text(labels, first, value);
    json_set_text(labels, "provider", provider);
    return labels;
}

void store_add_totals(const struct store_change *change, const PGresult *end, int end_row,
                      struct metric_batch *totals)
{
    const struct job_store_event *event = &change->event;
    const struct job_decision *d = &change->decision;
    const char *provider = change->row.provider;

    if (event->input.event == JOB_EVENT_TASK_FAILED && event->error_code != NULL &&
        d->row.job != JOB_CANCELLED) {
        auto_json *labels = labels_of("type", event->error_code, provider);
        metric_batch_add(totals, "hypersdk_errors_total", labels, 1);
        if (d->row.task == TASK_QUEUED) {
            auto_json *retry = labels_of("operation", change->row.task_kind, provider);
            metric_batch_add(totals, "hypersdk_retry_attempts_total", retry, 1);
        }
    }
    if ((d->effects & JOB_EFFECT_FINAL) != 0) {
        auto_json *by_status = labels_of("status", job_status_name(d->row.job), provider);
        auto_json *by_type = labels_of("vm_type", db_text(end, end_row, 7), provider);
        metric_batch_add(totals, "hypersdk_jobs_total", by_status, 1);
        if (!db_is_null(end, end_row, 6)) { /* else it never ran */
            metric_batch_observe(totals, "hypersdk_job_duration_seconds", by_type,
                                 strtod(db_text(end, end_row, 6), NULL));
        }
    }
}

/* ---- outbox: the seed's seven flat keys, then ours ---- */

static json_t *payload(const struct store_change *change, const PGresult *end, int end_row,
                       const json_t *result)
{
    json_t *json = json_object();
    json_t *files = json_object_get(result, "exported_files");
    char now[CLOCK_RFC3339_SIZE];

    clock_rfc3339_now(now);
    json_set_text(json, "event", change->decision.event);
    json_set_text(json, "timestamp", now);
    json_set_text(json, "job_id", change->row.job_id);
    json_set_text(json, "vm_name", db_text(end, end_row, 1));
    json_set_text(json, "status", job_status_name(change->decision.row.job));
    (void)json_object_set_new(json, "duration_seconds",
                              json_real(strtod(db_text(end, end_row, 6), NULL)));
    (void)json_object_set_new(json, "exported_files",
                              files == NULL ? json_array() : json_incref(files));
    json_set_text(json, "vm_path", db_text(end, end_row, 2));
    json_set_text(json, "provider", db_text(end, end_row, 3));
    if (db_text(end, end_row, 4)[0] != '\0')
        json_set_text(json, "error", db_text(end, end_row, 4));
    if (db_text(end, end_row, 8)[0] != '\0')
        json_set_text(json, "schedule_id", db_text(end, end_row, 8));
    if (json_object_get(result, "total_size") != NULL)
        (void)json_object_set(json, "total_size", json_object_get(result, "total_size"));
    if (json_object_get(result, "manifest_path") != NULL)
        (void)json_object_set(json, "manifest_path", json_object_get(result, "manifest_path"));
    return json;
}

json_t *store_outbox_row(const struct store_change *change, const PGresult *end, int end_row)
{
    auto_json *result = json_loads(db_text(end, end_row, 5), 0, NULL);
    json_t *row = json_object();

    json_set_text(row, "event", change->decision.event);
    json_set_text(row, "job_id", change->row.job_id);
    json_put(row, "payload", payload(change, end, end_row, result));
    return row;
}
