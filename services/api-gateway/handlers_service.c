/* The suite itself: is it alive, ready, busy, and what can it do (rest-api.md section 10). */
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/service_heartbeat.h"
#include "handlers.h"
#include "job_view.h"
#include "openapi.h"
#include "provider_settings.h"
#include "common/submit.h"

#define PENDING_SHOWN    20
#define SERVICE_TEXT2(x) #x
#define SERVICE_TEXT(x)  SERVICE_TEXT2(x)
static_assert(SERVICE_HEARTBEAT_MS == 5000, "three missed heartbeats in services_sql");

static const char services_sql[] =
    "SELECT name, max(seen_at) > now() - interval '15 seconds' FROM services GROUP BY name"
    " ORDER BY name";
static const char leader_sql[] = "SELECT holder, until > now() FROM leader";
static const char workers_sql[] =
    "SELECT w.instance, w.role, w.provider, w.host, w.version, CASE WHEN w.drained_at IS NULL THEN"
    "  w.state WHEN t.transfer > 0 OR t.control > 0 THEN 'draining' ELSE 'drained' END, "
    "w.slots_transfer,"
    " w.slots_control, coalesce(t.transfer, 0), coalesce(t.control, 0), w.capabilities,"
    " w.drained_by, " SQL_TIME("w.drained_at") ", " SQL_TIME(
        "w.seen_at") " FROM workers w LEFT JOIN (SELECT worker,"
                     " count(*) FILTER (WHERE class = 'transfer') AS transfer,"
                     " count(*) FILTER (WHERE class = 'control') AS control"
                     " FROM tasks WHERE state IN ('leased', 'finishing') GROUP BY worker) "
                     "t ON t.worker = w.instance"
                     " WHERE w.state IN ('up', 'draining') ORDER BY w.instance";
enum {
    W_INSTANCE,
    W_ROLE,
    W_PROVIDER,
    W_HOST,
    W_VERSION,
    W_STATE,
    W_SLOTS_TRANSFER,
    W_SLOTS_CONTROL,
    W_BUSY_TRANSFER,
    W_BUSY_CONTROL,
    W_CAPABILITIES,
    W_DRAINED_BY,
    W_DRAINED_AT,
    W_SEEN
};
static const char queue_sql[] =
    "SELECT count(*) FILTER (WHERE class = 'transfer'), count(*) FILTER (WHERE class = 'control')"
    " FROM tasks WHERE state = 'queued'";
static const char pending_sql[] = "SELECT j.id, j.provider, j.pending_reason, " SQL_TIME(
    "j.created_at") " FROM jobs j WHERE j.status = 'pending' ORDER BY j.priority DESC, j.seq"
                    " LIMIT " SERVICE_TEXT(PENDING_SHOWN);
static const char providers_sql[] = "SELECT name, kind, enabled FROM providers ORDER BY name";

/* ---- health ---- */

int handle_health(struct call *call, struct error *err)
{
    bool stopping = service_stopping(call->gateway->service);
    json_t *answer = json_object();

    (void)err;
    json_set_text(answer, "status", stopping ? "unhealthy" : "healthy");
    json_set_text(answer, "version", HYPERSDK_VERSION);
    json_set_now(answer, "timestamp");
    call_answer_json(call, stopping ? 503 : 200, answer);
    return 0;
}

static void add_check(json_t *checks, const char *name, const struct error *err)
{
    json_set_text(checks, name, err->code == ERR_NONE ? "up" : "down");
}

/* Ready = it can serve: that needs the database. Redis and the scheduler may be away for a while
 * and nothing is lost, so they only show. Own connections, because the route has none and must
 * answer quickly when the database is away; one per thread, never freed. */
int handle_ready(struct call *call, struct error *err)
{
    static _Thread_local struct db *db;
    static _Thread_local struct redis *redis;
    struct error db_err = ERROR_NONE;
    struct error redis_err = ERROR_NONE;
    struct error scheduler_err = ERROR_NONE;
    auto_pgresult *rows = NULL;
    json_t *answer = json_object();
    json_t *checks = json_object();
    bool all = true;

    (void)err;
    if (db == NULL)
        db = gateway_db_new(call->gateway, "ready");
    if (redis == NULL)
        redis = redis_new(&call->gateway->redis);
    if (redis_check(redis, &redis_err) < 0)
        all = false;
    if (db_check(db, &db_err) < 0 || db_exec(db, leader_sql, DB_NO_PARAMS, &rows, &db_err) < 0 ||
        PQntuples(rows) == 0 || !db_bool(rows, 0, 1))
        scheduler_err.code = ERR_UNAVAILABLE;
    if (scheduler_err.code != ERR_NONE)
        all = false;
    add_check(checks, "database", &db_err);
    add_check(checks, "redis", &redis_err);
    add_check(checks, "scheduler", &scheduler_err);
    json_set_text(answer, "status",
                  db_err.code != ERR_NONE ? "unready"
                  : all                   ? "ready"
                                          : "degraded");
    (void)json_object_set_new(answer, "checks", checks);
    json_set_now(answer, "timestamp");
    call_answer_json(call, db_err.code == ERR_NONE ? 200 : 503, answer);
    return 0;
}

int handle_openapi(struct call *call, struct error *err)
{
    (void)err;
    call_answer_text(call, 200, "application/json", xstrdup(openapi_json));
    return 0;
}

/* ---- status ---- */

/* Totals and one entry per worker; *exporters: kinds with a worker that is up. */
static void add_workers(const PGresult *rows, json_t *answer, json_t *services)
{
    json_t *list = json_array();
    int64_t active = 0;
    int64_t slots[2] = {0};
    int64_t busy[2] = {0};
    int total = PQntuples(rows);

    for (int i = 0; i < total; i++) {
        static const struct {
            const char *key;
            int column;
        } texts[] = {{"instance", W_INSTANCE}, {"role", W_ROLE},       {"provider", W_PROVIDER},
                     {"host", W_HOST},         {"version", W_VERSION}, {"state", W_STATE},
                     {"seen_at", W_SEEN}};
        json_t *worker = json_object();
        bool exporter = strcmp(db_text(rows, i, W_ROLE), "exporter") == 0;
        autofree char *service = exporter ? xasprintf("exporter-%s", db_text(rows, i, W_PROVIDER))
                                          : xstrdup("hyper2kvm-bridge");
        for (size_t k = 0; k < ARRAY_LEN(texts); k++)
            (void)json_object_set_new(worker, texts[k].key, cell_text(rows, i, texts[k].column));
        if (!db_is_null(rows, i, W_DRAINED_AT)) {
            (void)json_object_set_new(worker, "drained_by", cell_text(rows, i, W_DRAINED_BY));
            (void)json_object_set_new(worker, "drained_since", cell_text(rows, i, W_DRAINED_AT));
        }
        json_set_i64(worker, "slots_transfer", db_i64(rows, i, W_SLOTS_TRANSFER));
        json_set_i64(worker, "slots_control", db_i64(rows, i, W_SLOTS_CONTROL));
        json_set_i64(worker, "busy_transfer", db_i64(rows, i, W_BUSY_TRANSFER));
        json_set_i64(worker, "busy_control", db_i64(rows, i, W_BUSY_CONTROL));
        (void)json_array_append_new(list, worker);
        for (int c = 0; c < 2; c++) {
            slots[c] += db_i64(rows, i, W_SLOTS_TRANSFER + c);
            busy[c] += db_i64(rows, i, W_BUSY_TRANSFER + c);
        }
        active += db_i64(rows, i, W_BUSY_TRANSFER) + db_i64(rows, i, W_BUSY_CONTROL) > 0 ? 1 : 0;
        json_set_text(services, service, "up");
    }
    (void)json_object_set_new(answer, "workers",
                              json_pack("{s:i, s:I, s:I, s:o}", "total", total, "active", active,
                                        "idle", total - active, "list", list));
    (void)json_object_set_new(answer, "slots",
                              json_pack("{s:{s:I, s:I}, s:{s:I, s:I}}", "transfer", "total",
                                        slots[0], "busy", busy[0], "control", "total", slots[1],
                                        "busy", busy[1]));
    json_set_i64(answer, "active_workers", active);
}

/* Processes with a heartbeat, the leader, and what ought to be there. */
static int add_services(struct db *db, json_t *services, bool *out_scheduler, struct error *err)
{
    static const char *const expected[] = {"scheduler", "notifier", "metrics-exporter",
                                           "hyper2kvm-bridge"};
    auto_pgresult *rows = NULL;
    auto_pgresult *leader = NULL;
    auto_pgresult *providers = NULL;

    if (db_exec(db, services_sql, DB_NO_PARAMS, &rows, err) < 0 ||
        db_exec(db, leader_sql, DB_NO_PARAMS, &leader, err) < 0 ||
        db_exec(db, providers_sql, DB_NO_PARAMS, &providers, err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(expected); i++)
        json_set_text(services, expected[i], "down");
    for (int i = 0; i < PQntuples(providers); i++) {
        autofree char *name = xasprintf("exporter-%s", db_text(providers, i, 1));
        json_set_text(services, name, "down");
    }
    for (int i = 0; i < PQntuples(rows); i++)
        json_set_text(services, db_text(rows, i, 0), db_bool(rows, i, 1) ? "up" : "down");
    /* standing by is not leading: jobs move only with a leader */
    *out_scheduler = PQntuples(leader) == 1 && db_bool(leader, 0, 1);
    json_set_text(services, "scheduler", *out_scheduler ? "up" : "down");
    return 0;
}

/* The scheduler's own word, else what keeps it from having one. */
static int add_pending(struct db *db, bool scheduler, json_t *answer, struct error *err)
{
    auto_pgresult *rows = NULL;
    json_t *list = json_array();

    if (db_exec(db, pending_sql, DB_NO_PARAMS, &rows, err) < 0) {
        json_decref(list);
        return -1;
    }
    for (int i = 0; i < PQntuples(rows); i++) {
        json_t *job = json_object();
        const char *reason = db_text(rows, i, 2);
        if (!scheduler) {
            reason = "no scheduler is running";
        } else if (reason[0] == '\0') {
            reason = "the scheduler has not looked at it yet";
        }
        (void)json_object_set_new(job, "job_id", cell_text(rows, i, 0));
        (void)json_object_set_new(job, "provider", cell_text(rows, i, 1));
        json_set_text(job, "reason", reason);
        (void)json_object_set_new(job, "created_at", cell_text(rows, i, 3));
        (void)json_array_append_new(list, job);
    }
    (void)json_object_set_new(answer, "pending", list);
    return 0;
}

int status_build(struct gateway *gateway, struct db *db, json_t **out, struct error *err)
{
    auto_json *answer = json_object();
    auto_pgresult *workers = NULL;
    auto_pgresult *queue = NULL;
    json_t *services = json_object();
    json_t *state = NULL;
    bool scheduler = false;

    json_set_text(answer, "version", HYPERSDK_VERSION);
    json_set_i64(answer, "uptime_seconds", (clock_mono_ms() - gateway->started_ms) / 1000);
    (void)json_object_set_new(answer, "services", services); /* owned by answer, filled below */
    if (add_services(db, services, &scheduler, err) < 0 ||
        db_exec(db, workers_sql, DB_NO_PARAMS, &workers, err) < 0 ||
        db_exec(db, queue_sql, DB_NO_PARAMS, &queue, err) < 0)
        return -1;
    add_workers(workers, answer, services);
    json_set_i64(answer, "queue_depth", db_i64(queue, 0, 0));
    json_set_i64(answer, "control_queue_depth", db_i64(queue, 0, 1));
    if (queue_state(db, &state, err) < 0)
        return -1;
    (void)json_object_set_new(answer, "queue", state);
    if (job_counts(db, answer, err) < 0 || add_pending(db, scheduler, answer, err) < 0)
        return -1;
    (void)json_object_set_new(answer, "dev_mode", json_boolean(gateway->daemon.dev_mode));
    json_set_now(answer, "timestamp");
    *out = STEAL(answer);
    return 0;
}

int handle_status(struct call *call, struct error *err)
{
    json_t *answer = NULL;

    if (status_build(call->gateway, call->db, &answer, err) < 0)
        return -1;
    call_answer_json(call, 200, answer);
    return 0;
}

/* ---- capabilities ---- */

/* What this build cannot do yet is said, not left out: clients show it as such. */
static json_t *features_of_build(void)
{
    static const char *const later[] = {"vddk",       "cbt",   "incremental",   "bandwidth_limit",
                                        "encryption", "email", "libvirt_import"};
    static const char *const ours[] = {"schedules", "templates", "workflows"}; /* need no worker */
    json_t *features = json_object();

    for (size_t i = 0; i < ARRAY_LEN(later); i++)
        (void)json_object_set_new(features, later[i], json_false());
    for (size_t i = 0; i < ARRAY_LEN(ours); i++)
        (void)json_object_set_new(features, ours[i], json_true());
    (void)json_object_set_new(features, "snapshot", json_false());
    (void)json_object_set_new(features, "resume", json_false());
    (void)json_object_set_new(features, "verify", json_false());
    (void)json_object_set_new(features, "upload", json_false());
    (void)json_object_set_new(features, "conversion", json_false());
    return features;
}

static void add_features(const json_t *record, json_t *features)
{
    const char *name;
    json_t *value;

    json_object_foreach(json_object_get(record, "features"), name, value)
    {
        if (json_is_true(value))
            (void)json_object_set(features, name, value);
    }
}

/* One worker's record (docs/tasks.md, "Capability record") into the sums. */
static void add_record(const json_t *record, json_t *methods, json_t *formats, json_t *features)
{
    json_t *value;
    size_t i;

    add_features(record, features);
    json_array_foreach(json_object_get(record, "formats"), i, value)
    {
        if (json_is_string(value) && word_in(json_string_value(value), submit_formats))
            (void)json_object_set(formats, json_string_value(value), json_true());
    }
    json_array_foreach(json_object_get(record, "methods"), i, value)
    {
        if (json_str(value, "name")[0] == '\0')
            continue;
        (void)json_object_set_new(methods, json_str(value, "name"),
                                  json_pack("{s:b, s:s, s:I}", "available", 1, "version",
                                            json_str(value, "version"), "priority",
                                            (json_int_t)json_u64(value, "priority")));
    }
}

static json_t *kinds_of(const PGresult *workers, const PGresult *providers)
{
    json_t *list = json_array();

    for (const char *const *kind = provider_kinds_known; *kind != NULL; kind++) {
        json_t *names = json_array();
        int64_t connected = 0;
        for (int i = 0; i < PQntuples(workers); i++) {
            if (strcmp(db_text(workers, i, W_ROLE), "exporter") == 0 &&
                strcmp(db_text(workers, i, W_PROVIDER), *kind) == 0)
                connected++;
        }
        for (int i = 0; i < PQntuples(providers); i++) {
            if (strcmp(db_text(providers, i, 1), *kind) == 0)
                (void)json_array_append_new(names, cell_text(providers, i, 0));
        }
        (void)json_array_append_new(list,
                                    json_pack("{s:s, s:b, s:I, s:o}", "kind", *kind, "available",
                                              word_in(*kind, provider_kinds) ? 1 : 0, "workers",
                                              connected, "configured", names));
    }
    return list;
}

static json_t *keys_in_order(const json_t *set, const char *const *order)
{
    json_t *list = json_array();

    for (; *order != NULL; order++) {
        if (json_object_get(set, *order) != NULL)
            (void)json_array_append_new(list, json_string(*order));
    }
    return list;
}

int handle_capabilities(struct call *call, struct error *err)
{
    auto_pgresult *workers = NULL;
    auto_pgresult *providers = NULL;
    auto_json *formats = NULL;
    json_t *features;
    json_t *methods;
    json_t *conversion;
    json_t *answer;

    if (db_exec(call->db, workers_sql, DB_NO_PARAMS, &workers, err) < 0 ||
        db_exec(call->db, providers_sql, DB_NO_PARAMS, &providers, err) < 0)
        return -1;
    formats = json_object();
    features = features_of_build();
    methods = json_object();
    conversion = json_array();
    for (int i = 0; i < PQntuples(workers); i++) {
        auto_json *record = cell_json(workers, i, W_CAPABILITIES);
        if (strcmp(db_text(workers, i, W_ROLE), "exporter") == 0) {
            add_record(record, methods, formats, features);
            continue;
        }
        (void)json_object_set_new(features, "conversion", json_true());
        add_features(record, features);
        (void)json_array_append_new(conversion, json_incref(record));
    }
    (void)json_object_set_new(methods, "auto",
                              json_pack("{s:b, s:s, s:i}", "available",
                                        json_object_size(methods) > 0 ? 1 : 0, "version",
                                        HYPERSDK_VERSION, "priority", 0));
    answer = json_object();
    (void)json_object_set_new(answer, "capabilities", methods);
    json_set_text(answer, "default_method", "auto");
    (void)json_object_set_new(answer, "formats", keys_in_order(formats, submit_formats));
    (void)json_object_set_new(answer, "providers", kinds_of(workers, providers));
    (void)json_object_set_new(answer, "features", features);
    (void)json_object_set_new(answer, "conversion", conversion);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}
