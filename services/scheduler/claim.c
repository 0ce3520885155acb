/* See claim.h. Two leaders at once do no harm: the claim locks the task and its job, passes over
 * what is locked, and looks at the states under the locks. */
#include "claim.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/job_store.h"
#include "common/json.h"
#include "common/restore_points.h"
#include "live.h"

#define NUMBER_SIZE      24
#define SEALED_BYTES_MAX ((size_t)(128 * KIB))
#define OVERHEAD_BYTES   ((size_t)(16 * KIB)) /* of a lease: tags, lengths, short fields */

static const char UPSERT_WORKER[] =
    "WITH old AS (SELECT state FROM workers WHERE instance = $1)"
    " INSERT INTO workers AS w (instance, role, provider, host, pid, version, slots_transfer,"
    " slots_control, volumes, capabilities) VALUES ($1, $2, $3, $4, $5::int, $6, $7::int, $8::int,"
    " $9::jsonb, $10::jsonb) ON CONFLICT (instance) DO UPDATE SET seen_at = now(), state = 'up',"
    " slots_transfer = greatest(w.slots_transfer, excluded.slots_transfer),"
    " slots_control = greatest(w.slots_control, excluded.slots_control),"
    " volumes = excluded.volumes, capabilities = excluded.capabilities"
    " RETURNING coalesce((SELECT state FROM old), '') <> 'up'";

/* What is asked of a task besides its place: $1 kind of provider, $2 kinds of task, $3 volumes. */
#define FITS                                                                                      \
    " AND t.kind = ANY (ARRAY(SELECT jsonb_array_elements_text($2::jsonb)))"                      \
    " AND (t.volume = '' OR t.volume = ANY (ARRAY(SELECT jsonb_array_elements_text($3::jsonb))))" \
    " AND t.not_before <= now()"
#define LIVE_JOB " AND j.status IN ('pending', 'running')"
#define WAITS    "state = 'queued' AND hold = ''"

/* Lane by lane (what has the same limits), each by its own part of the index: what waits at a limit
 * costs nothing. The first of each lane that is open, by rank; the first of those that is not
 * locked is taken. Tasks on files that exist need no source: their provider and kind are ''.
 * $4: exports per provider, unless its settings say it; $5: per host, 0 = any. */
#define EXPORT_QUEUE WAITS " AND class = 'transfer' AND role = 'exporter'"
#define LANE                                                                               \
    " t.state = 'queued' AND t.hold = '' AND t.class = 'transfer' AND t.role = 'exporter'" \
    " AND t.provider = o.provider AND t.source_host = o.source_host"                       \
    " AND t.queue_group = o.queue_group AND t.provider_kind IN ($1, '')"
static const char EXPORT_CANDIDATE[] =
    "WITH RECURSIVE lanes AS ((SELECT provider, source_host, queue_group, queue_limit FROM tasks"
    "  WHERE " EXPORT_QUEUE " ORDER BY provider, source_host, queue_group LIMIT 1)"
    " UNION ALL SELECT n.* FROM lanes w CROSS JOIN LATERAL (SELECT provider, source_host,"
    "  queue_group, queue_limit FROM tasks WHERE " EXPORT_QUEUE
    "  AND (provider, source_host, queue_group) > (w.provider, w.source_host, w.queue_group)"
    "  ORDER BY provider, source_host, queue_group LIMIT 1) n),"
    " busy AS MATERIALIZED (SELECT provider, source_host, queue_group FROM tasks WHERE"
    "  class = 'transfer' AND role = 'exporter' AND state IN ('leased', 'finishing')),"
    " o AS MATERIALIZED (SELECT l.* FROM lanes l LEFT JOIN providers p ON p.name = l.provider"
    "  WHERE coalesce(p.enabled, true)"
    "  AND (l.provider = '' OR (SELECT count(*) FROM busy b WHERE b.provider = l.provider)"
    "   < coalesce((p.settings->>'export_limit')::int, $4::int))"
    "  AND (l.source_host = '' OR $5::int = 0 OR (SELECT count(*) FROM busy b"
    "   WHERE b.provider = l.provider AND b.source_host = l.source_host) < $5::int)"
    "  AND (l.queue_group = '' OR l.queue_limit = 0 OR (SELECT count(*) FROM busy b"
    "   WHERE b.queue_group = l.queue_group) < l.queue_limit)),"
    " heads AS MATERIALIZED (SELECT o.*, h.rank, h.seq FROM o CROSS JOIN LATERAL (SELECT t.rank,"
    "  t.seq FROM tasks t WHERE" LANE FITS " ORDER BY t.rank, t.seq LIMIT 1) h"
    "  ORDER BY h.rank, h.seq)"
    " SELECT c.id FROM heads o CROSS JOIN LATERAL (SELECT t.id FROM tasks t JOIN jobs j"
    "  ON j.id = t.job_id WHERE" LANE FITS LIVE_JOB
    "  ORDER BY t.rank, t.seq LIMIT 1 FOR UPDATE OF j, t SKIP LOCKED) c LIMIT 1";

static const char BRIDGE_CANDIDATE[] =
    "SELECT t.id FROM tasks t JOIN jobs j ON j.id = t.job_id WHERE t.state = 'queued'"
    " AND t.hold = '' AND t.class = 'transfer' AND t.role = 'bridge' AND t.provider_kind = $1" FITS
        LIVE_JOB " ORDER BY t.rank, t.seq LIMIT 1 FOR UPDATE OF j, t SKIP LOCKED";

/* Control tasks have no job. */
static const char CONTROL_CANDIDATE[] =
    "SELECT t.id FROM tasks t WHERE t.state = 'queued' AND t.class = 'control'"
    " AND t.hold = '' AND t.provider_kind = $1 AND t.role = $4" FITS
    " ORDER BY t.rank, t.seq LIMIT 1 FOR UPDATE OF t SKIP LOCKED";

/* A clean-up keeps off where jobs work now. */
static const char LOAD_LEASE[] =
    "SELECT coalesce(t.job_id, ''), t.kind, t.attempt, t.epoch, CASE WHEN t.kind = 'cleanup'"
    "  THEN t.spec || jsonb_build_object('busy', (SELECT coalesce(jsonb_agg(b.output_path), '[]')"
    "   FROM jobs b WHERE b.status IN ('running', 'paused', 'cancelling') AND b.kind <> 'cleanup'"
    "   AND b.output_path <> '')) ELSE t.spec END, t.provider,"
    " coalesce(p.settings - 'export_limit', '{}'::jsonb), c.sealed, coalesce(c.audience, ''),"
    " coalesce(j.trace_id, ''), coalesce(j.vm_name, ''),"
    " t.job_id IS NOT NULL AND t.role = 'exporter' AND t.provider <> '' AND p.name IS NULL"
    " FROM tasks t"
    " LEFT JOIN jobs j ON j.id = t.job_id"
    " LEFT JOIN providers p ON p.name = t.provider AND t.role = 'exporter'"
    " LEFT JOIN credentials c ON c.provider = p.name WHERE t.id = $1";

static const char LOAD_RECORDS[] =
    "SELECT key, value FROM task_records WHERE task_id = $1 ORDER BY key LIMIT 256";

struct claim { /* rows own the texts */
    PGresult *rows;
    PGresult *records;
    const char *event; /* what history calls it */
    char task_id[64];
    uint8_t token[TOKEN_BYTES];
    char *spec; /* the task's, with what the catalogue knows */
    uint8_t *sealed;
    size_t sealed_size;
    uint64_t epoch;
    struct worker_bandwidth worker_limit;
};

void claim_free(struct claim *claim)
{
    if (claim == NULL)
        return;
    PQclear(claim->rows);
    PQclear(claim->records);
    free(claim->spec);
    free(claim->sealed);
    free(claim);
}

static bool is_transfer(const Hypersdk__V1__LeaseRequest *request)
{
    return request->class_ == HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER;
}

/* ---- what a worker says of itself ---- */

static char *kinds_json(const Hypersdk__V1__LeaseRequest *request)
{
    auto_json *array = json_array();

    for (size_t i = 0; i < request->n_task_kinds; i++)
        (void)json_array_append_new(array, json_string(request->task_kinds[i]));
    return json_text(array);
}

static char *volume_ids_json(const Hypersdk__V1__LeaseRequest *request)
{
    auto_json *array = json_array();

    for (size_t i = 0; i < request->n_volumes; i++)
        (void)json_array_append_new(array, json_string(request->volumes[i]->id));
    return json_text(array);
}

static char *volumes_json(const Hypersdk__V1__LeaseRequest *request)
{
    auto_json *array = json_array();

    for (size_t i = 0; i < request->n_volumes; i++) {
        const Hypersdk__V1__Volume *v = request->volumes[i];
        json_t *object = json_object();
        json_set_text(object, "id", v->id);
        json_set_text(object, "path", v->path);
        (void)json_object_set_new(object, "free_bytes",
                                  json_integer((json_int_t)min_u64(v->free_bytes, INT64_MAX)));
        (void)json_array_append_new(array, object);
    }
    return json_text(array);
}

/* Capabilities that are no JSON object would make the whole row fail. */
static const char *capabilities_of(const Hypersdk__V1__LeaseRequest *request)
{
    auto_json *json = json_loads(request->capabilities_json, JSON_REJECT_DUPLICATES, NULL);

    return json_is_object(json) ? request->capabilities_json : "{}";
}

int claim_worker(struct db *db, const Hypersdk__V1__LeaseRequest *request, bool *out_changed,
                 struct error *err)
{
    autofree char *volumes = volumes_json(request);
    auto_pgresult *rows = NULL;
    char pid[NUMBER_SIZE];
    char slots[NUMBER_SIZE];

    (void)snprintf(pid, sizeof pid, "%" PRIu32, request->pid & INT32_MAX);
    (void)snprintf(slots, sizeof slots, "%" PRIu32, request->slots_total);
    if (db_exec(db, UPSERT_WORKER,
                DB_PARAMS(request->instance, request->role, request->provider, request->host, pid,
                          request->version, is_transfer(request) ? slots : "0",
                          is_transfer(request) ? "0" : slots, volumes, capabilities_of(request)),
                &rows, err) < 0)
        return -1;
    *out_changed = db_bool(rows, 0, 0);
    return 0;
}

static bool same_texts(char *const *a, size_t a_count, char *const *b, size_t b_count)
{
    if (a_count != b_count)
        return false;
    for (size_t i = 0; i < a_count; i++) {
        if (strcmp(a[i], b[i]) != 0)
            return false;
    }
    return true;
}

bool claim_same_wish(const Hypersdk__V1__LeaseRequest *a, const Hypersdk__V1__LeaseRequest *b)
{
    if (a->class_ != b->class_ || strcmp(a->role, b->role) != 0 ||
        strcmp(a->provider, b->provider) != 0 || a->n_volumes != b->n_volumes)
        return false;
    for (size_t i = 0; i < a->n_volumes; i++) {
        if (strcmp(a->volumes[i]->id, b->volumes[i]->id) != 0)
            return false;
    }
    return same_texts(a->task_kinds, a->n_task_kinds, b->task_kinds, b->n_task_kinds);
}

/* ---- the claim ---- */

static int check_size(const struct claim *claim, struct error *err)
{
    size_t size = claim->sealed_size + OVERHEAD_BYTES + strlen(claim->spec);

    for (int i = 5; i <= 6; i++)
        size += strlen(db_text(claim->rows, 0, i));
    for (int i = 0; i < PQntuples(claim->records); i++)
        size += strlen(db_text(claim->records, i, 0)) + strlen(db_text(claim->records, i, 1));
    if (size > BUS_MESSAGE_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "task and settings of %zu bytes are too long for the bus",
                         size);
    }
    return 0;
}

/* What an increment may stand on is looked up at every lease: another job may have added a restore
 * point meanwhile. */
static int load_spec(struct db *db, struct claim *claim, struct error *err)
{
    auto_json *spec = NULL;

    claim->spec = xstrdup(db_text(claim->rows, 0, 4));
    if (strcmp(db_text(claim->rows, 0, 1), "export") != 0)
        return 0;
    spec = json_loads(claim->spec, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(spec))
        return error_set(err, ERR_INTERNAL, "the task's spec is no object");
    if (restore_points_add(db, db_text(claim->rows, 0, 5), spec, NULL, err) < 0)
        return -1;
    free(claim->spec);
    claim->spec = json_text(spec);
    return 0;
}

static int load_lease(struct db *db, struct claim *claim, struct error *err)
{
    if (db_exec(db, LOAD_LEASE, DB_PARAMS(claim->task_id), &claim->rows, err) < 0 ||
        db_exec(db, LOAD_RECORDS, DB_PARAMS(claim->task_id), &claim->records, err) < 0)
        return -1;
    assert(PQntuples(claim->rows) == 1); /* the claim holds its lock */
    if (db_bool(claim->rows, 0, 11)) {
        return error_set(err, ERR_NOT_FOUND, "provider '%.63s' does not exist any more",
                         db_text(claim->rows, 0, 5));
    }
    if (!db_is_null(claim->rows, 0, 7)) {
        claim->sealed = xmalloc(SEALED_BYTES_MAX);
        if (db_bytea(claim->rows, 7, claim->sealed, SEALED_BYTES_MAX, &claim->sealed_size, err) < 0)
            return error_wrap(err, "credentials of provider '%.63s'", db_text(claim->rows, 0, 5));
    }
    claim->epoch = (uint64_t)db_i64(claim->rows, 0, 3);
    if (load_spec(db, claim, err) < 0)
        return -1;
    return check_size(claim, err);
}

static int find(const struct scheduler *scheduler, struct db *db,
                const Hypersdk__V1__LeaseRequest *request, char out_task[64], struct error *err)
{
    autofree char *kinds = kinds_json(request);
    autofree char *volumes = volume_ids_json(request);
    auto_pgresult *rows = NULL;
    char limit[NUMBER_SIZE];
    char host_limit[NUMBER_SIZE];
    int rc;

    (void)snprintf(limit, sizeof limit, "%" PRIu32, scheduler->export.provider_limit);
    (void)snprintf(host_limit, sizeof host_limit, "%" PRIu32, scheduler->export.host_limit);
    if (!is_transfer(request)) {
        rc = db_exec(db, CONTROL_CANDIDATE,
                     DB_PARAMS(request->provider, kinds, volumes, request->role), &rows, err);
    } else if (strcmp(request->role, "bridge") == 0) {
        rc =
            db_exec(db, BRIDGE_CANDIDATE, DB_PARAMS(request->provider, kinds, volumes), &rows, err);
    } else {
        rc = db_exec(db, EXPORT_CANDIDATE,
                     DB_PARAMS(request->provider, kinds, volumes, limit, host_limit), &rows, err);
    }
    if (rc < 0)
        return -1;
    (void)snprintf(out_task, 64, "%s", PQntuples(rows) == 0 ? "" : db_text(rows, 0, 0));
    return 0;
}

int claim_task(struct scheduler *scheduler, struct db *db,
               const Hypersdk__V1__LeaseRequest *request, struct claim **out, char out_task[64],
               struct error *err)
{
    struct job_store_event event = {.worker = request->instance, .actor = request->instance};
    struct job_decision decision;

    if (find(scheduler, db, request, out_task, err) < 0)
        return -1;
    if (out_task[0] == '\0')
        return 0;
    auto_claim *claim = xcalloc(1, sizeof *claim);
    (void)snprintf(claim->task_id, sizeof claim->task_id, "%s", out_task);
    random_bytes(claim->token, sizeof claim->token);
    event.task_id = claim->task_id;
    event.new_token = claim->token;
    event.input.event = JOB_EVENT_LEASED;
    event.input.lease_ms = scheduler->config.lease_ms;
    if (job_store_apply(db, &event, &decision, err) < 0 || load_lease(db, claim, err) < 0 ||
        worker_bandwidth_of(db, request->instance, &claim->worker_limit, err) < 0)
        return -1;
    if (!decision.allowed) {
        return error_set(err, ERR_INTERNAL, "task '%.63s' was chosen but %s", out_task,
                         decision.reason);
    }
    claim->event = decision.event;
    *out = STEAL(claim);
    return 0;
}

int claim_give_up(struct scheduler *scheduler, struct db *db, const char *task_id,
                  const struct error *why, struct error *err)
{
    struct job_store_event lease = {
        .task_id = task_id,
        .actor = service_instance(scheduler->service),
        .input = {.event = JOB_EVENT_LEASED, .lease_ms = scheduler->config.lease_ms},
    };
    struct job_store_event fail = {
        .task_id = task_id,
        .actor = service_instance(scheduler->service),
        .error_code = error_code_name(why->code),
        .error_message = why->message,
        .input = {.event = JOB_EVENT_TASK_FAILED},
    };
    struct job_decision decision;

    LOG(ERROR, "task_not_leasable", F_STR("task_id", task_id), F_ERR(why));
    if (db_begin(db, err) < 0)
        return -1;
    if (job_store_apply(db, &lease, &decision, err) < 0 ||
        job_store_apply(db, &fail, &decision, err) < 0) {
        db_rollback(db);
        return -1;
    }
    return db_commit(db, err);
}

/* ---- the answer ---- */

static void fill_records(const struct claim *claim, Hypersdk__V1__Record *records,
                         Hypersdk__V1__Record **pointers, size_t *out_count)
{
    for (int i = 0; i < PQntuples(claim->records) && i < CLAIM_RECORDS_MAX; i++) {
        hypersdk__v1__record__init(&records[i]);
        records[i].key = (char *)(uintptr_t)db_text(claim->records, i, 0);
        records[i].value = (char *)(uintptr_t)db_text(claim->records, i, 1);
        pointers[i] = &records[i];
        (*out_count)++;
    }
}

static void tell(struct scheduler *scheduler, const struct claim *claim, const char *worker)
{
    const char *job_id = db_text(claim->rows, 0, 0);

    if (job_id[0] != '\0' && claim->event != NULL)
        scheduler_announce_job(scheduler, job_id, claim->event);
    LOG(INFO, "task_leased", F_STR("task_id", claim->task_id),
        F_STR("kind", db_text(claim->rows, 0, 1)), F_STR("job_id", job_id),
        F_U64("epoch", claim->epoch), F_STR("worker", worker));
}

void claim_reply(struct scheduler *scheduler, struct claim *claim, struct bus_request *request)
{
    Hypersdk__V1__Record records[CLAIM_RECORDS_MAX];
    Hypersdk__V1__Record *pointers[CLAIM_RECORDS_MAX];
    Hypersdk__V1__TaskRef ref;
    Hypersdk__V1__TaskLease body;
    Hypersdk__V1__WorkerLimit limit;
    struct bus_envelope_store store;
    char traceparent[TRACEPARENT_SIZE];
    const char *trace_id = db_text(claim->rows, 0, 9);
    bus_envelope reply;

    hypersdk__v1__task_ref__init(&ref);
    hypersdk__v1__task_lease__init(&body);
    ref.task_id = claim->task_id;
    ref.epoch = claim->epoch;
    ref.token = (ProtobufCBinaryData){sizeof claim->token, claim->token};
    fill_records(claim, records, pointers, &body.n_records);
    body.ref = &ref;
    body.records = pointers;
    body.job_id = (char *)(uintptr_t)db_text(claim->rows, 0, 0);
    body.kind = (char *)(uintptr_t)db_text(claim->rows, 0, 1);
    body.attempt = (uint32_t)db_i64(claim->rows, 0, 2);
    body.lease_ms = scheduler->config.lease_ms;
    body.spec_json = claim->spec;
    body.provider_name = (char *)(uintptr_t)db_text(claim->rows, 0, 5);
    body.settings_json = (char *)(uintptr_t)db_text(claim->rows, 0, 6);
    body.sealed_secrets = (ProtobufCBinaryData){claim->sealed_size, claim->sealed};
    body.audience = (char *)(uintptr_t)db_text(claim->rows, 0, 8);
    body.worker_limit = scheduler_worker_limit(&limit, &claim->worker_limit);
    traceparent_new(trace_id[0] == '\0' ? NULL : trace_id, traceparent);
    bus_envelope_init(&reply, &store, service_instance(scheduler->service), traceparent);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_LEASE;
    reply.task_lease = &body;
    live_lease(scheduler->live, &ref, body.job_id, db_text(claim->rows, 0, 10));
    tell(scheduler, claim, bus_request_envelope(request)->lease_request->instance);
    bus_request_reply(request, &reply);
}
