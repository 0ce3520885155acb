/* See park.h. The dispatcher is the only one that leases, so two requests never race for a task;
 * what users and workers do to rows meanwhile is seen by job_store_apply under the row's lock. */
#include "park.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/id.h"
#include "common/job_store.h"
#include "common/json.h"
#include "live.h"

#define NUMBER_SIZE   24
#define NONE_AGAIN_MS 0
#define BUSY_AGAIN_MS 1000 /* too many parked: come back a little later */
#define QUEUES_MAX    256  /* distinct (role, provider kind, class, kind) with waiting tasks */
#define RECORDS_MAX   256

static const char UPSERT_WORKER[] =
    "INSERT INTO workers AS w (instance, role, provider, host, pid, version, slots_transfer,"
    " slots_control, volumes, capabilities) VALUES ($1, $2, $3, $4, $5::int, $6, $7::int, $8::int,"
    " $9::jsonb, $10::jsonb) ON CONFLICT (instance) DO UPDATE SET seen_at = now(), state = 'up',"
    " slots_transfer = greatest(w.slots_transfer, excluded.slots_transfer),"
    " slots_control = greatest(w.slots_control, excluded.slots_control),"
    " volumes = excluded.volumes, capabilities = excluded.capabilities"
    " RETURNING xmax = 0"; /* true: it was not there */

/* Cheap with its partial index; most wake-ups end here. */
static const char WAITING[] =
    "SELECT DISTINCT role, provider_kind, class, kind FROM tasks WHERE state = 'queued'"
    " AND not_before <= now() LIMIT 256";

static const char CANDIDATE[] =
    "SELECT t.id FROM tasks t LEFT JOIN jobs j ON j.id = t.job_id"
    " WHERE t.state = 'queued' AND t.role = $1 AND t.provider_kind = $2 AND t.class = $3"
    " AND t.kind IN (SELECT jsonb_array_elements_text($4::jsonb)) AND t.not_before <= now()"
    " AND (t.volume = '' OR t.volume IN (SELECT jsonb_array_elements_text($5::jsonb)))"
    " AND (j.id IS NULL OR j.status IN ('pending', 'running'))"
    " AND (t.class <> 'transfer' OR t.role <> 'exporter' OR $6::int > (SELECT count(*) FROM tasks b"
    "   WHERE b.provider = t.provider AND b.class = 'transfer' AND b.role = 'exporter'"
    "   AND b.state IN ('leased', 'finishing')))"
    " ORDER BY t.priority DESC, t.seq LIMIT 1";

static const char LOAD_LEASE[] =
    "SELECT coalesce(t.job_id, ''), t.kind, t.attempt, t.epoch, t.spec, t.provider,"
    " coalesce(p.settings, '{}'::jsonb), c.sealed, coalesce(c.audience, ''),"
    " coalesce(j.trace_id, '') FROM tasks t LEFT JOIN jobs j ON j.id = t.job_id"
    " LEFT JOIN providers p ON p.name = t.provider AND t.role = 'exporter'"
    " LEFT JOIN credentials c ON c.provider = p.name WHERE t.id = $1";

/* A release works on the records of the task that died. */
static const char LOAD_RECORDS[] =
    "SELECT DISTINCT ON (r.key) r.key, r.value FROM task_records r, tasks t WHERE t.id = $1"
    " AND (r.task_id = t.id OR (t.kind = 'release' AND r.task_id = t.spec->>'task_id'))"
    " ORDER BY r.key, (r.task_id = t.id) DESC LIMIT 256";

struct parked {
    struct bus_request *request;
    int64_t until_ms;
    bool seen;  /* its worker's row is up to date */
    bool first; /* of a worker that was not known: it waits for a sign that we are here */
};

struct park {
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t changed;
    bool woken;
    struct parked items[PARK_REQUESTS_MAX];
    size_t count;
};

struct park *park_new(void)
{
    struct park *park = xcalloc(1, sizeof *park);
    pthread_condattr_t attributes;

    (void)pthread_mutex_init(&park->mutex, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&park->changed, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    return park;
}

static const Hypersdk__V1__LeaseRequest *body_of(const struct bus_request *request)
{
    return bus_request_envelope(request)->lease_request;
}

static void reply_none(struct bus_request *request, uint32_t again_ms)
{
    struct bus_envelope_store store;
    Hypersdk__V1__NoTask body;
    bus_envelope reply;

    hypersdk__v1__no_task__init(&body);
    body.retry_after_ms = again_ms;
    bus_envelope_init(&reply, &store, "scheduler", NULL);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_NO_TASK;
    reply.no_task = &body;
    bus_request_reply(request, &reply);
}

static bool same_slot(const Hypersdk__V1__LeaseRequest *a, const Hypersdk__V1__LeaseRequest *b)
{
    return a->class_ == b->class_ && a->slot == b->slot && strcmp(a->instance, b->instance) == 0;
}

/* Answers "none" to what is parked of this instance: one slot's request, or all when it leaves. */
static void dismiss(struct park *park, const Hypersdk__V1__LeaseRequest *by, bool all)
{
    for (;;) {
        struct bus_request *old = NULL;
        (void)pthread_mutex_lock(&park->mutex);
        for (size_t i = 0; i < park->count && old == NULL; i++) {
            const Hypersdk__V1__LeaseRequest *other = body_of(park->items[i].request);
            if (all ? strcmp(other->instance, by->instance) == 0 : same_slot(other, by)) {
                old = park->items[i].request;
                park->items[i] = park->items[--park->count];
            }
        }
        (void)pthread_mutex_unlock(&park->mutex);
        if (old == NULL)
            return;
        reply_none(old, NONE_AGAIN_MS);
    }
}

void park_add(struct park *park, struct bus_request *request)
{
    bool leaving = body_of(request)->leaving;
    bool full;

    dismiss(park, body_of(request), leaving);
    if (leaving) {
        reply_none(request, NONE_AGAIN_MS);
        return;
    }
    (void)pthread_mutex_lock(&park->mutex);
    full = park->count == PARK_REQUESTS_MAX;
    if (!full) {
        park->items[park->count++] =
            (struct parked){.request = request, .until_ms = clock_mono_ms() + PARK_MS};
        park->woken = true;
        (void)pthread_cond_signal(&park->changed);
    }
    (void)pthread_mutex_unlock(&park->mutex);
    if (full)
        reply_none(request, BUSY_AGAIN_MS);
}

void park_wake(struct park *park)
{
    LOCK_SCOPE(&park->mutex);
    park->woken = true;
    (void)pthread_cond_signal(&park->changed);
}

/* ---- the dispatcher ---- */

static const char *class_name(const Hypersdk__V1__LeaseRequest *request)
{
    return request->class_ == HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER ? "transfer"
                                                                            : "control";
}

static char *kinds_json(const Hypersdk__V1__LeaseRequest *request)
{
    auto_json *array = json_array();

    for (size_t i = 0; i < request->n_task_kinds; i++)
        (void)json_array_append_new(array, json_string(request->task_kinds[i]));
    return json_text(array);
}

/* ids: as an array of ids for the claim, else as objects for the worker's row. */
static char *volumes_json(const Hypersdk__V1__LeaseRequest *request, bool ids)
{
    auto_json *array = json_array();

    for (size_t i = 0; i < request->n_volumes; i++) {
        const Hypersdk__V1__Volume *v = request->volumes[i];
        json_t *item = json_string(v->id);
        if (!ids) {
            json_t *object = json_object();
            (void)json_object_set_new(object, "id", item);
            json_set_text(object, "path", v->path);
            (void)json_object_set_new(object, "free_bytes",
                                      json_integer((json_int_t)min_u64(v->free_bytes, INT64_MAX)));
            item = object;
        }
        (void)json_array_append_new(array, item);
    }
    return json_text(array);
}

static int upsert_worker(struct db *db, const Hypersdk__V1__LeaseRequest *r, bool *out_new,
                         struct error *err)
{
    auto_pgresult *rows = NULL;
    bool transfer = r->class_ == HYPERSDK__V1__TASK_CLASS__TASK_CLASS_TRANSFER;
    autofree char *volumes = volumes_json(r, false);
    char pid[NUMBER_SIZE];
    char slots[NUMBER_SIZE];

    (void)snprintf(pid, sizeof pid, "%" PRIu32, r->pid);
    (void)snprintf(slots, sizeof slots, "%" PRIu32, r->slots_total);
    if (db_exec(db, UPSERT_WORKER,
                DB_PARAMS(r->instance, r->role, r->provider, r->host, pid, r->version,
                          transfer ? slots : "0", transfer ? "0" : slots, volumes,
                          r->capabilities_json[0] == '\0' ? "{}" : r->capabilities_json),
                &rows, err) < 0)
        return -1;
    *out_new = db_bool(rows, 0, 0);
    return 0;
}

struct lease { /* what a TaskLease is made of; rows own the texts */
    PGresult *rows;
    PGresult *records;
    char task_id[64];
    uint8_t token[TOKEN_BYTES];
    uint8_t sealed[128 * 1024];
    size_t sealed_size;
    uint64_t epoch;
};

static void lease_free(struct lease *lease)
{
    PQclear(lease->rows);
    PQclear(lease->records);
    free(lease);
}
DEFINE_AUTO(lease, struct lease, lease_free)
#define auto_lease CLEANUP(lease_auto) struct lease

static int load_lease(struct db *db, struct lease *lease, struct error *err)
{
    if (db_exec(db, LOAD_LEASE, DB_PARAMS(lease->task_id), &lease->rows, err) < 0 ||
        db_exec(db, LOAD_RECORDS, DB_PARAMS(lease->task_id), &lease->records, err) < 0)
        return -1;
    if (PQntuples(lease->rows) != 1)
        return error_set(err, ERR_NOT_FOUND, "task '%.64s' is gone", lease->task_id);
    if (!db_is_null(lease->rows, 0, 7) &&
        db_bytea(lease->rows, 0, 7, lease->sealed, sizeof lease->sealed, &lease->sealed_size, err) <
            0)
        return -1;
    lease->epoch = (uint64_t)db_i64(lease->rows, 0, 3);
    return 0;
}

/* 1: leased and committed; 0: nothing for this request. */
static int claim(struct scheduler *scheduler, struct db *db,
                 const Hypersdk__V1__LeaseRequest *request, struct lease *lease, struct error *err)
{
    autofree char *kinds = kinds_json(request);
    autofree char *volumes = volumes_json(request, true);
    auto_pgresult *rows = NULL;
    struct job_store_event event = {.worker = request->instance, .actor = request->instance};
    struct job_decision decision;
    char limit[NUMBER_SIZE];

    (void)snprintf(limit, sizeof limit, "%" PRIu32, scheduler->export.provider_limit);
    if (db_exec(
            db, CANDIDATE,
            DB_PARAMS(request->role, request->provider, class_name(request), kinds, volumes, limit),
            &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return 0;
    (void)snprintf(lease->task_id, sizeof lease->task_id, "%s", db_text(rows, 0, 0));
    random_bytes(lease->token, sizeof lease->token);
    event.task_id = lease->task_id;
    event.new_token = lease->token;
    event.input.event = JOB_EVENT_LEASED;
    event.input.lease_ms = scheduler->config.lease_ms;
    if (db_begin(db, err) < 0)
        return -1;
    if (job_store_apply(db, &event, &decision, err) < 0 || load_lease(db, lease, err) < 0) {
        db_rollback(db);
        return -1;
    }
    if (!decision.allowed) { /* a user was faster; the next round looks again */
        db_rollback(db);
        return 0;
    }
    if (db_commit(db, err) < 0)
        return -1;
    return 1;
}

static void reply_lease(struct scheduler *scheduler, struct bus_request *request,
                        struct lease *lease)
{
    Hypersdk__V1__Record records[RECORDS_MAX];
    Hypersdk__V1__Record *pointers[RECORDS_MAX];
    Hypersdk__V1__TaskRef ref;
    Hypersdk__V1__TaskLease body;
    struct bus_envelope_store store;
    char traceparent[TRACEPARENT_SIZE];
    const char *trace_id = db_text(lease->rows, 0, 9);
    bus_envelope reply;

    hypersdk__v1__task_ref__init(&ref);
    hypersdk__v1__task_lease__init(&body);
    ref.task_id = lease->task_id;
    ref.epoch = lease->epoch;
    ref.token = (ProtobufCBinaryData){sizeof lease->token, lease->token};
    for (int i = 0; i < PQntuples(lease->records) && i < RECORDS_MAX; i++) {
        hypersdk__v1__record__init(&records[i]);
        records[i].key = (char *)(uintptr_t)db_text(lease->records, i, 0);
        records[i].value = (char *)(uintptr_t)db_text(lease->records, i, 1);
        pointers[body.n_records++] = &records[i];
    }
    body.ref = &ref;
    body.records = pointers;
    body.job_id = (char *)(uintptr_t)db_text(lease->rows, 0, 0);
    body.kind = (char *)(uintptr_t)db_text(lease->rows, 0, 1);
    body.attempt = (uint32_t)db_i64(lease->rows, 0, 2);
    body.lease_ms = scheduler->config.lease_ms;
    body.spec_json = (char *)(uintptr_t)db_text(lease->rows, 0, 4);
    body.provider_name = (char *)(uintptr_t)db_text(lease->rows, 0, 5);
    body.settings_json = (char *)(uintptr_t)db_text(lease->rows, 0, 6);
    body.sealed_secrets = (ProtobufCBinaryData){lease->sealed_size, lease->sealed};
    body.audience = (char *)(uintptr_t)db_text(lease->rows, 0, 8);
    traceparent_new(trace_id[0] == '\0' ? NULL : trace_id, traceparent);
    bus_envelope_init(&reply, &store, service_instance(scheduler->service), traceparent);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_TASK_LEASE;
    reply.task_lease = &body;
    live_lease(scheduler->live, &ref, body.job_id);
    if (body.job_id[0] != '\0')
        scheduler_announce_job(scheduler, body.job_id, "job.started");
    LOG(INFO, "task_leased", F_STR("task_id", lease->task_id), F_STR("kind", body.kind),
        F_STR("job_id", body.job_id), F_U64("epoch", lease->epoch),
        F_STR("worker", body_of(request)->instance));
    bus_request_reply(request, &reply);
}

/* One parked request; true: it was answered. */
static bool serve(struct scheduler *scheduler, struct db *db, struct bus_request *request,
                  struct error *err)
{
    auto_lease *lease = xcalloc(1, sizeof *lease);
    int rc = claim(scheduler, db, body_of(request), lease, err);

    if (rc == 1)
        reply_lease(scheduler, request, lease);
    return rc == 1;
}

static bool wants(const Hypersdk__V1__LeaseRequest *request, const PGresult *waiting)
{
    for (int i = 0; i < PQntuples(waiting); i++) {
        if (strcmp(db_text(waiting, i, 0), request->role) != 0 ||
            strcmp(db_text(waiting, i, 1), request->provider) != 0 ||
            strcmp(db_text(waiting, i, 2), class_name(request)) != 0)
            continue;
        for (size_t k = 0; k < request->n_task_kinds; k++) {
            if (strcmp(db_text(waiting, i, 3), request->task_kinds[k]) == 0)
                return true;
        }
    }
    return false;
}

/* Takes the whole list out, so that nothing is locked over I/O; what is not served goes back. */
static size_t take_all(struct park *park, struct parked *out)
{
    size_t count;

    LOCK_SCOPE(&park->mutex);
    count = park->count;
    memcpy(out, park->items, count * sizeof *out);
    park->count = 0;
    return count;
}

static void put_back(struct park *park, const struct parked *item)
{
    struct bus_request *loser = NULL;

    (void)pthread_mutex_lock(&park->mutex);
    for (size_t i = 0; i < park->count; i++) {
        if (same_slot(body_of(park->items[i].request), body_of(item->request)))
            loser = item->request; /* the worker has asked again meanwhile */
    }
    if (loser == NULL && park->count < PARK_REQUESTS_MAX)
        park->items[park->count++] = *item;
    else
        loser = item->request;
    (void)pthread_mutex_unlock(&park->mutex);
    if (loser != NULL)
        reply_none(loser, NONE_AGAIN_MS);
}

static int round_of(struct scheduler *scheduler, struct db *db, struct parked *items, size_t count,
                    struct error *err)
{
    auto_pgresult *waiting = NULL;
    int rc = db_exec(db, WAITING, DB_NO_PARAMS, &waiting, err);
    int64_t now = clock_mono_ms();

    for (size_t i = 0; i < count; i++) {
        struct bus_request *request = items[i].request;
        if (rc == 0 && !items[i].seen) {
            rc = upsert_worker(db, body_of(request), &items[i].first, err);
            items[i].seen = rc == 0;
        }
        if (rc == 0 && wants(body_of(request), waiting)) {
            if (serve(scheduler, db, request, err))
                continue;
            rc = err->code == ERR_NONE ? 0 : -1;
        }
        if (now >= items[i].until_ms || items[i].first)
            reply_none(request, NONE_AGAIN_MS);
        else
            put_back(scheduler->park, &items[i]);
    }
    return rc;
}

static void wait_for_work(struct park *park, int64_t ms)
{
    int64_t until_ms = clock_mono_ms() + ms;
    struct timespec until = {until_ms / 1000, until_ms % 1000 * 1000000};

    LOCK_SCOPE(&park->mutex);
    while (!park->woken && pthread_cond_timedwait(&park->changed, &park->mutex, &until) == 0)
        continue;
    park->woken = false;
}

void *park_main(void *arg)
{
    struct scheduler *scheduler = arg;
    auto_db *db = scheduler_db(scheduler, "scheduler dispatch");
    struct parked *items = xcalloc(PARK_REQUESTS_MAX, sizeof *items);
    struct log_throttle throttle = {0};

    for (;;) {
        struct error err = ERROR_NONE;
        uint64_t held = 0;
        int64_t poll_ms = scheduler->config.poll_interval_ms;
        size_t count;
        wait_for_work(scheduler->park, poll_ms / 2 + clock_backoff_ms(0, poll_ms / 2, poll_ms / 2));
        count = take_all(scheduler->park, items);
        if (round_of(scheduler, db, items, count, &err) < 0 ||
            scheduler_repeat_cancels(scheduler, db, &err) < 0) {
            if (log_throttle_pass(&throttle, err.message, &held))
                LOG(WARN, "dispatch_failed", F_ERR(&err));
            clock_sleep_ms(200); /* the database is away: no busy loop */
        }
    }
    return NULL;
}
