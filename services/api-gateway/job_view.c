/* See job_view.h. */
#include "job_view.h"

#include <math.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"

#define COUNT_QUICK_MS    20
#define COUNT_KEEP_FACTOR 20

enum { /* of JOB_COLUMNS */
       COL_ID,
       COL_NAME,
       COL_KIND,
       COL_PROVIDER,
       COL_VM_PATH,
       COL_VM_NAME,
       COL_OUTPUT_PATH,
       COL_FORMAT,
       COL_DEFINITION,
       COL_STATUS,
       COL_PHASE,
       COL_PRIORITY,
       COL_PENDING_REASON,
       COL_CANCEL_REASON,
       COL_ATTEMPT,
       COL_MAX_ATTEMPTS,
       COL_ERROR,
       COL_ERROR_CODE,
       COL_RESULT,
       COL_PROGRESS,
       COL_SUBMITTED_BY,
       COL_TRACE_ID,
       COL_WORKER_ID,
       COL_CREATED_AT,
       COL_STARTED_AT,
       COL_COMPLETED_AT,
       COL_UPDATED_AT,
       COL_ELAPSED,
       COL_SEQ,
       COL_ARCHIVED,
       COL_SCHEDULE_ID,
       COL_POLICY_ID,
       COL_WORKFLOW_RUN_ID,
       COL_NOT_BEFORE
};
static_assert(COL_SEQ == JOB_COLUMN_SEQ, "column numbers");

static const char active_sql[] =
    "SELECT status, count(*) FROM jobs WHERE status IN ('pending','running','paused','cancelling')"
    " GROUP BY status";
static const char final_sql[] =
    "SELECT status, count(*) FROM jobs WHERE status IN ('completed','failed','cancelled')"
    " GROUP BY status";
static const char one_sql[] = "SELECT " JOB_COLUMNS " FROM jobs j WHERE j.id = $1";
static const char archived_sql[] = "SELECT " JOB_COLUMNS " FROM archived_jobs j WHERE j.id = $1";

/* One connection per thread of the pool: a struct redis belongs to one thread at a time. It is
 * not freed, the threads live as long as the process. */
static json_t *live_progress(const struct gateway *gateway, const char *job_id)
{
    static _Thread_local struct redis *redis;
    autofree char *text = NULL;
    struct error err = ERROR_NONE;

    if (redis == NULL)
        redis = redis_new(&gateway->redis);
    if (redis_progress(redis, job_id, &text, &err) < 0 || text == NULL)
        return NULL; /* Redis may lose everything: the row's copy is the answer then */
    return json_loads(text, 0, NULL);
}

const char *job_status_shown(const char *status)
{
    if (strcmp(status, "paused") == 0 || strcmp(status, "cancelling") == 0)
        return "running";
    return status;
}

/* Held by a user, it has no rate and no end in sight. */
static bool moves(const char *status)
{
    return strcmp(job_status_shown(status), "running") == 0 && strcmp(status, "paused") != 0;
}

char *duration_text(int64_t seconds)
{
    if (seconds >= 3600) {
        return xasprintf("%lldh %lldm %llds", (long long)(seconds / 3600),
                         (long long)(seconds / 60 % 60), (long long)(seconds % 60));
    }
    if (seconds >= 60)
        return xasprintf("%lldm %llds", (long long)(seconds / 60), (long long)(seconds % 60));
    return xasprintf("%llds", (long long)seconds);
}

static bool is_number(const json_t *object, const char *key)
{
    return json_is_number(json_object_get(object, key));
}

static double rounded(double value, double steps)
{
    return round(value * steps) / steps;
}

static double percentage_of(const struct progress_facts *facts, uint64_t done, uint64_t total)
{
    double value = 0;

    if (strcmp(facts->status, "completed") == 0)
        return 100;
    if (is_number(facts->live, "percentage")) {
        value = json_number_value(json_object_get(facts->live, "percentage"));
    } else if (total > 0) {
        value = 100.0 * (double)done / (double)total;
    }
    return rounded(value < 0 ? 0 : value > 100 ? 100 : value, 10);
}

/* disks[] as it is, and what it says about files. */
static void add_disks(json_t *out, const json_t *live)
{
    json_t *disks = json_object_get(live, "disks");
    size_t done = 0;
    const char *current = NULL;
    size_t i;
    json_t *disk;

    json_array_foreach(disks, i, disk)
    {
        const char *state = json_str(disk, "state");
        if (strcmp(state, "done") == 0) {
            done++;
        } else if (current == NULL && strcmp(state, "waiting") != 0) {
            current = json_str(disk, "file");
        }
    }
    json_set_i64(out, "files_done", (int64_t)done);
    json_set_i64(out, "total_files", (int64_t)json_array_size(disks));
    if (current != NULL) {
        json_set_text(out, "current_file", current);
    } else {
        (void)json_object_set_new(out, "current_file", json_null());
    }
    (void)json_object_set_new(out, "disks",
                              json_is_array(disks) ? json_incref(disks) : json_array());
}

static void add_rate(json_t *out, const struct progress_facts *facts, bool running)
{
    uint64_t rate = running ? json_u64(facts->live, "rate_bytes_per_second") : 0;
    bool known = running && is_number(facts->live, "eta_seconds") &&
                 json_integer_value(json_object_get(facts->live, "eta_seconds")) >= 0;
    int64_t eta = (int64_t)json_u64(facts->live, "eta_seconds");

    json_set_i64(out, "rate_bytes_per_second", (int64_t)rate);
    (void)json_object_set_new(out, "transfer_rate_mbps",
                              json_real(rounded((double)rate / (double)MIB, 100)));
    if (known) {
        autofree char *text = duration_text(eta);
        json_set_i64(out, "eta_seconds", eta);
        json_set_text(out, "estimated_remaining", text);
    } else {
        (void)json_object_set_new(out, "eta_seconds", json_null());
        (void)json_object_set_new(out, "estimated_remaining", json_null());
    }
    json_set_text(out, "limited_by", running ? json_str(facts->live, "limited_by") : "");
}

static void set_text_or_null(json_t *out, const char *key, const char *text)
{
    if (text == NULL || text[0] == '\0') {
        (void)json_object_set_new(out, key, json_null());
    } else {
        json_set_text(out, key, text);
    }
}

json_t *progress_of(const struct progress_facts *facts)
{
    bool running = moves(facts->status);
    bool completed = strcmp(facts->status, "completed") == 0;
    uint64_t transferred = json_u64(facts->live, "bytes_transferred");
    uint64_t done = json_u64(facts->live, "bytes_done");
    uint64_t total = json_u64(facts->live, "total_bytes");
    const char *live_updated = json_str(facts->live, "updated_at");
    json_t *out = json_object();
    double percentage;

    if (completed && is_number(facts->result, "transferred_bytes"))
        transferred = json_u64(facts->result, "transferred_bytes");
    if (completed)
        done = total;
    percentage = percentage_of(facts, done, total);
    json_set_text(out, "job_id", facts->job_id);
    json_set_text(out, "status", job_status_shown(facts->status));
    if (strcmp(job_status_shown(facts->status), facts->status) != 0)
        json_set_text(out, "substatus", facts->status);
    json_set_text(out, "phase", facts->phase);
    (void)json_object_set_new(out, "percentage", json_real(percentage));
    (void)json_object_set_new(out, "percent_complete", json_real(percentage));
    json_set_i64(out, "bytes_transferred", (int64_t)transferred);
    json_set_i64(out, "bytes_downloaded", (int64_t)transferred);
    json_set_i64(out, "bytes_done", (int64_t)done);
    (void)json_object_set_new(out, "total_bytes",
                              total > 0 ? json_integer((json_int_t)total) : json_null());
    add_disks(out, facts->live);
    add_rate(out, facts, running);
    set_text_or_null(out, "started_at", facts->started_at);
    json_set_i64(out, "elapsed_seconds", facts->elapsed_seconds);
    set_text_or_null(out, "updated_at",
                     live_updated[0] != '\0' && running ? live_updated : facts->updated_at);
    if (facts->stale) {
        set_text_or_null(out, "stale_since",
                         live_updated[0] != '\0' ? live_updated : facts->updated_at);
    }
    return out;
}

json_t *progress_view(const struct gateway *gateway, const PGresult *rows, int row)
{
    const char *status = db_text(rows, row, COL_STATUS);
    bool running = moves(status);
    auto_json *live = running ? live_progress(gateway, db_text(rows, row, COL_ID)) : NULL;
    auto_json *result = cell_json(rows, row, COL_RESULT);
    bool stale = running && live == NULL;
    const char *phase;

    if (live == NULL)
        live = cell_json(rows, row, COL_PROGRESS);
    phase = running && json_str(live, "phase")[0] != '\0' && !stale ? json_str(live, "phase")
                                                                    : db_text(rows, row, COL_PHASE);
    const struct progress_facts facts = {
        .job_id = db_text(rows, row, COL_ID),
        .status = status,
        .phase = phase,
        .live = live,
        .result = result,
        .started_at = db_text(rows, row, COL_STARTED_AT),
        .updated_at = db_text(rows, row, COL_UPDATED_AT),
        .elapsed_seconds = db_i64(rows, row, COL_ELAPSED),
        .stale = stale,
    };
    return progress_of(&facts);
}

static void add_names(json_t *job, const PGresult *rows, int row)
{
    static const struct {
        const char *key;
        int column;
    } texts[] = {
        {"job_id", COL_ID},
        {"name", COL_NAME},
        {"kind", COL_KIND},
        {"provider", COL_PROVIDER},
        {"vm_path", COL_VM_PATH},
        {"output_path", COL_OUTPUT_PATH},
        {"format", COL_FORMAT},
        {"phase", COL_PHASE},
        {"submitted_by", COL_SUBMITTED_BY},
        {"trace_id", COL_TRACE_ID},
        {"worker_id", COL_WORKER_ID},
    };
    const char *vm_path = db_text(rows, row, COL_VM_PATH);
    const char *vm_name = db_text(rows, row, COL_VM_NAME);

    for (size_t i = 0; i < ARRAY_LEN(texts); i++)
        (void)json_object_set_new(job, texts[i].key, cell_text(rows, row, texts[i].column));
    /* an inventory path ends with the name; an id says nothing about it */
    if (vm_name[0] == '\0' && vm_path[0] == '/')
        vm_name = strrchr(vm_path, '/') + 1;
    json_set_text(job, "vm_name", vm_name);
    (void)json_object_set_new(job, "schedule_id", cell_text_or_null(rows, row, COL_SCHEDULE_ID));
    (void)json_object_set_new(job, "policy_id", cell_text_or_null(rows, row, COL_POLICY_ID));
    (void)json_object_set_new(job, "workflow_run_id",
                              cell_text_or_null(rows, row, COL_WORKFLOW_RUN_ID));
}

static void add_state(json_t *job, const PGresult *rows, int row)
{
    const char *status = db_text(rows, row, COL_STATUS);

    json_set_text(job, "status", job_status_shown(status));
    if (strcmp(job_status_shown(status), status) != 0)
        json_set_text(job, "substatus", status);
    json_set_i64(job, "priority", db_i64(rows, row, COL_PRIORITY));
    json_set_i64(job, "attempt", db_i64(rows, row, COL_ATTEMPT));
    json_set_i64(job, "max_attempts", db_i64(rows, row, COL_MAX_ATTEMPTS));
    (void)json_object_set_new(job, "pending_reason",
                              cell_text_or_null(rows, row, COL_PENDING_REASON));
    (void)json_object_set_new(job, "not_before", cell_text_or_null(rows, row, COL_NOT_BEFORE));
    (void)json_object_set_new(job, "cancel_reason",
                              cell_text_or_null(rows, row, COL_CANCEL_REASON));
    (void)json_object_set_new(job, "error", cell_text_or_null(rows, row, COL_ERROR));
    (void)json_object_set_new(job, "error_code", cell_text_or_null(rows, row, COL_ERROR_CODE));
    (void)json_object_set_new(job, "created_at", cell_text(rows, row, COL_CREATED_AT));
    (void)json_object_set_new(job, "started_at", cell_text(rows, row, COL_STARTED_AT));
    (void)json_object_set_new(job, "completed_at", cell_text(rows, row, COL_COMPLETED_AT));
    (void)json_object_set_new(job, "updated_at", cell_text(rows, row, COL_UPDATED_AT));
}

/* The result without what it carries for the catalogue's tables (docs/tasks.md, "export"). */
static json_t *result_shown(const PGresult *rows, int row)
{
    json_t *result = cell_json(rows, row, COL_RESULT);

    if (json_is_object(result))
        (void)json_object_del(result, "export");
    return result;
}

json_t *job_view(const struct gateway *gateway, const PGresult *rows, int row)
{
    auto_json *definition = cell_json(rows, row, COL_DEFINITION);
    json_t *job = json_object();
    const char *method = json_str(definition, "method");
    json_t *result = result_shown(rows, row);

    add_names(job, rows, row);
    add_state(job, rows, row);
    if (json_str(result, "method")[0] != '\0')
        method = json_str(result, "method");
    json_set_text(job, "method", method[0] == '\0' ? "auto" : method);
    (void)json_object_set_new(job, "definition", json_mask_secrets(definition));
    (void)json_object_set_new(job, "progress", progress_view(gateway, rows, row));
    (void)json_object_set_new(job, "result", result);
    if (db_bool(rows, row, COL_ARCHIVED))
        json_put(job, "archived", json_true());
    return job;
}

int job_load(struct call *call, const char *job_id, PGresult **out, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(call->db, one_sql, DB_PARAMS(job_id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0) {
        PQclear(STEAL(rows));
        if (db_exec(call->db, archived_sql, DB_PARAMS(job_id), &rows, err) < 0)
            return -1;
    }
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "job '%.64s' does not exist", job_id);
    *out = STEAL(rows);
    return 0;
}

static const char *const shown_statuses[] = {"pending", "running", "completed", "failed",
                                             "cancelled"};

static int count_by(struct db *db, const char *sql, int64_t counts[ARRAY_LEN(shown_statuses)],
                    struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++) {
        const char *status = job_status_shown(db_text(rows, i, 0));
        for (size_t k = 0; k < ARRAY_LEN(shown_statuses); k++)
            counts[k] += strcmp(shown_statuses[k], status) == 0 ? db_i64(rows, i, 1) : 0;
    }
    return 0;
}

/* Finished jobs may be a million, and status is asked for all the time: when counting them takes
 * long, the result serves for twenty times as long. */
static int count_finished(struct db *db, int64_t counts[ARRAY_LEN(shown_statuses)],
                          struct error *err)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards known, good_until_ms */
    static int64_t known[ARRAY_LEN(shown_statuses)];
    static int64_t good_until_ms;
    int64_t start_ms = clock_mono_ms();
    int64_t fresh[ARRAY_LEN(shown_statuses)] = {0};
    int64_t took_ms;

    {
        LOCK_SCOPE(&mutex);
        if (start_ms < good_until_ms) {
            memcpy(counts, known, sizeof known);
            return 0;
        }
    }
    if (count_by(db, final_sql, fresh, err) < 0)
        return -1;
    memcpy(counts, fresh, sizeof fresh);
    took_ms = clock_mono_ms() - start_ms;
    if (took_ms < COUNT_QUICK_MS)
        return 0;
    LOCK_SCOPE(&mutex);
    memcpy(known, fresh, sizeof known);
    good_until_ms = clock_mono_ms() + took_ms * COUNT_KEEP_FACTOR;
    return 0;
}

int job_counts(struct db *db, json_t *answer, struct error *err)
{
    int64_t counts[ARRAY_LEN(shown_statuses)] = {0};
    int64_t total = 0;

    if (count_finished(db, counts, err) < 0 || count_by(db, active_sql, counts, err) < 0)
        return -1;
    for (size_t k = 0; k < ARRAY_LEN(shown_statuses); k++)
        total += counts[k];
    json_set_i64(answer, "total_jobs", total);
    for (size_t k = 0; k < ARRAY_LEN(shown_statuses); k++) {
        autofree char *key = xasprintf("%s_jobs", shown_statuses[k]);
        json_set_i64(answer, key, counts[k]);
    }
    return 0;
}
