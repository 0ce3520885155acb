/* See requests.h. */
#include "requests.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "claim.h"
#include "common/autos.h"
#include "common/clock.h"
#include "common/id.h"
#include "common/job_store.h"
#include "common/json.h"
#include "live.h"
#include "park.h"

#define NUMBER_SIZE      24
#define RESULT_BYTES_MAX ((size_t)BUS_MESSAGE_BYTES_MAX)
#define LINE_TIME_MAX_MS INT64_C(253370764800000) /* the year 9999 */
#define TRIES_MAX        3 /* of one transaction after a deadlock or a lost connection */
#define TRIES_MS         250 /* none after it waited in vain: the worker asks again, and others wait */
#define TOGETHER_MAX     50 /* ends of tasks that share a commit */

static const char INSERT_LINES[] =
    "INSERT INTO job_logs (job_id, task_id, epoch, number, at, level, phase, message)"
    " SELECT l->>0, l->>1, (l->>2)::bigint, (l->>3)::bigint,"
    " to_timestamp((l->>4)::bigint / 1000.0), l->>5, l->>6, l->>7"
    " FROM jsonb_array_elements($1::jsonb) l ON CONFLICT DO NOTHING";

static const char SET_LINES[] =
    "UPDATE tasks SET lines_stored = greatest(lines_stored, $2::bigint) WHERE id = $1"
    " RETURNING lines_stored, cancel, coalesce(job_id, '')";

static const char TASK_FACTS[] =
    "SELECT t.lines_stored, t.cancel, coalesce(t.job_id, ''), coalesce(j.vm_name, ''),"
    " coalesce(j.status = 'paused' OR " SCHEDULER_SQL_WINDOW_OVER
    ", false), t.class = 'transfer' AND EXISTS (SELECT 1 FROM workers "
    "w"
    "  WHERE w.instance = t.worker AND w.drained_at IS NOT NULL), " SCHEDULER_SQL_BANDWIDTH
    " FROM tasks t LEFT JOIN jobs j ON j.id = t.job_id WHERE t.id = $1";

/* Locked: the lease cannot be taken away while the record is stored. */
static const char HOLDS[] =
    "SELECT provider FROM tasks WHERE id = $1 AND epoch = $2::bigint"
    " AND token = $3::bytea AND state IN ('leased', 'finishing') FOR NO KEY UPDATE";

static const char PUT_RECORD[] =
    "INSERT INTO task_records (task_id, key, value, updated_at) VALUES ($1, $2, $3,"
    " clock_timestamp()) ON CONFLICT (task_id, key) DO UPDATE SET value = excluded.value,"
    " updated_at = excluded.updated_at";

/* One at a time asks who holds it. A task that nobody works on holds nothing; when it is leased
 * again and finds another there, the one that got the name last has it. */
static const char LOCK_CLAIM[] =
    "SELECT pg_advisory_xact_lock(hashtextextended($1 || '=' || $2, 0))";
static const char CLAIMED[] =
    "SELECT 1 FROM tasks t JOIN task_records r ON r.task_id = t.id WHERE r.key = $1"
    " AND r.value = $2 AND t.id <> $3 AND t.state IN ('leased', 'finishing')"
    " AND NOT EXISTS (SELECT 1 FROM task_records own WHERE own.task_id = $3 AND own.key = $1"
    "  AND own.value = $2 AND own.updated_at > r.updated_at) LIMIT 1";

/* Later leases must reach the directory that this one began to write in. */
static const char SET_VOLUME[] = "UPDATE tasks SET volume = $2 WHERE id = $1";

static const char INSERT_VMS[] =
    "INSERT INTO inventory_vms (provider, generation, id, name, path, power_state, vm)"
    " SELECT $1, $2, v->>0, v->>1, v->>2, v->>3, (v->>4)::jsonb"
    " FROM jsonb_array_elements($3::jsonb) v ON CONFLICT (provider, generation, id) DO NOTHING";

static const char FINISH_SCAN[] =
    "INSERT INTO inventory_state (provider, generation, completed_at) VALUES ($1, $2, now())"
    " ON CONFLICT (provider) DO UPDATE SET generation = $2, completed_at = now()";

static const char DROP_OLD_SCANS[] =
    "DELETE FROM inventory_vms v WHERE v.provider = $1 AND v.generation <> $2"
    " AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.id = v.generation"
    "                 AND t.state IN ('queued', 'leased'))";

static const char SEEN[] = "UPDATE workers SET seen_at = now(), state = CASE WHEN state ="
                           " 'draining' THEN state ELSE 'up' END WHERE instance = $1"
                           " AND seen_at < now() - interval '3 seconds'";

static const char LEAVES[] =
    "UPDATE workers SET state = 'draining', seen_at = now() WHERE instance = $1";

static const char RECORDS_OF[] = "SELECT count(*), coalesce(sum(octet_length(key) +"
                                 " octet_length(value)), 0) FROM task_records"
                                 " WHERE task_id = $1 AND key <> $2";

struct requests {
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t changed;
    struct bus_request *items[SERVER_CONTEXTS]; /* a ring; the bus has no more contexts */
    size_t first;
    size_t count;
    size_t working;
    bool ending; /* a thread works on ends of tasks; what comes meanwhile is the next batch */
};

struct requests *requests_new(void)
{
    struct requests *requests = xcalloc(1, sizeof *requests);

    (void)pthread_mutex_init(&requests->mutex, NULL);
    (void)pthread_cond_init(&requests->changed, NULL);
    return requests;
}

static bool is_end(const struct bus_request *request)
{
    return bus_request_envelope(request)->body_case == HYPERSDK__V1__ENVELOPE__BODY_TASK_FINISH;
}

void requests_add(struct requests *requests, struct bus_request *request)
{
    LOCK_SCOPE(&requests->mutex);
    assert(requests->count < SERVER_CONTEXTS);
    requests->items[(requests->first + requests->count++) % SERVER_CONTEXTS] = request;
    if (!requests->ending || !is_end(request)) /* else it waits for worked() */
        (void)pthread_cond_signal(&requests->changed);
}

/* Moves out of the ring: the oldest request that may be worked on, and when that is the end of a
 * task, every other end that waits. Under the lock. */
static size_t pick(struct requests *requests, struct bus_request *out[TOGETHER_MAX])
{
    size_t kept = 0;
    size_t picked = 0;

    for (size_t i = 0; i < requests->count; i++) {
        struct bus_request *request = requests->items[(requests->first + i) % SERVER_CONTEXTS];
        bool may = !is_end(request) || !requests->ending;
        if (may && (picked == 0 || (picked < TOGETHER_MAX && is_end(out[0]) && is_end(request)))) {
            out[picked++] = request;
        } else {
            requests->items[(requests->first + kept++) % SERVER_CONTEXTS] = request;
        }
    }
    requests->count = kept;
    return picked;
}

/* Ends of tasks all change the same totals, so threads would wait for each other's commits: one
 * thread has them, as many as have come, in one transaction. */
static size_t take(struct requests *requests, struct bus_request *out[TOGETHER_MAX])
{
    size_t count;

    LOCK_SCOPE(&requests->mutex);
    while ((count = pick(requests, out)) == 0)
        (void)pthread_cond_wait(&requests->changed, &requests->mutex);
    requests->working += count;
    requests->ending = requests->ending || is_end(out[0]);
    return count;
}

static void worked(struct requests *requests, size_t count, bool ends)
{
    LOCK_SCOPE(&requests->mutex);
    requests->working -= count;
    if (!ends)
        return;
    requests->ending = false;
    (void)pthread_cond_signal(&requests->changed);
}

bool requests_busy(struct requests *requests)
{
    LOCK_SCOPE(&requests->mutex);
    return requests->count + requests->working > 0;
}

/* ---- one request ---- */

struct work {
    struct scheduler *scheduler;
    struct db *db;
    const bus_envelope *envelope;
    const Hypersdk__V1__TaskRef *ref;
    /* the answer */
    bool lost;
    bool claimed; /* what a record claims is another task's */
    bool granted;
    bool ended;        /* a state change that others want to know of */
    const char *event; /* what history calls it; NULL: nothing new */
    char reason[256];
    uint64_t lines_stored;
    bool cancel;
    bool pause;
    bool drain;
    struct scheduler_bandwidth bandwidth;
    struct worker_bandwidth worker_limit;
    char job_id[65];
    char vm_name[256];
};

static bool is_lost(const struct error *err)
{
    return (err->code == ERR_CONFLICT && strncmp(err->message, "lost", 4) == 0) ||
           err->code == ERR_NOT_FOUND;
}

static void fill_event(const struct work *work, struct job_store_event *event, enum job_event kind)
{
    *event = (struct job_store_event){
        .task_id = work->ref->task_id,
        .expect_epoch = &work->ref->epoch,
        .expect_token = work->ref->token.data,
        .actor = work->envelope->sender,
        .losses_max = work->scheduler->config.losses_max,
    };
    event->input.event = kind;
    event->input.lease_ms = work->scheduler->config.lease_ms;
    event->input.bytes_done = live_bytes_done(work->scheduler->live, work->ref->task_id);
}

/* A worker's clock may be anything; a time stamp of PostgreSQL may not. */
static json_int_t line_time(int64_t at_ms)
{
    return at_ms < 0 || at_ms > LINE_TIME_MAX_MS ? (json_int_t)clock_wall_ms() : at_ms;
}

/* To rows of INSERT_LINES; control tasks have no log. */
static void add_lines(const struct work *work, Hypersdk__V1__LogLine *const *lines, size_t count,
                      json_t *rows)
{
    for (size_t i = 0; i < count && work->job_id[0] != '\0'; i++) {
        const Hypersdk__V1__LogLine *line = lines[i];
        json_t *row = json_pack("[s,s,I,I,I,s,s,s]", work->job_id, work->ref->task_id,
                                (json_int_t)work->ref->epoch, (json_int_t)line->number,
                                line_time(line->at_ms), line->level, line->phase, line->message);
        (void)json_array_append_new(rows, row);
    }
}

static uint64_t last_line(Hypersdk__V1__LogLine *const *lines, size_t count)
{
    return count == 0 ? 0 : lines[count - 1]->number;
}

static int insert_lines(struct db *db, const json_t *rows, struct error *err)
{
    autofree char *text = NULL;

    if (json_array_size(rows) == 0)
        return 0;
    text = json_text(rows);
    return db_exec(db, INSERT_LINES, DB_PARAMS(text), NULL, err);
}

static int store_lines(struct work *work, Hypersdk__V1__LogLine *const *lines, size_t count,
                       struct error *err)
{
    auto_json *array = json_array();
    auto_pgresult *rows = NULL;
    char last[NUMBER_SIZE];

    if (db_exec(work->db, TASK_FACTS, DB_PARAMS(work->ref->task_id), &rows, err) < 0)
        return -1;
    work->lines_stored = (uint64_t)db_i64(rows, 0, 0);
    work->cancel = db_bool(rows, 0, 1);
    (void)snprintf(work->job_id, sizeof work->job_id, "%s", db_text(rows, 0, 2));
    (void)snprintf(work->vm_name, sizeof work->vm_name, "%s", db_text(rows, 0, 3));
    work->bandwidth = scheduler_bandwidth_of(rows, 0, 6);
    work->pause = db_bool(rows, 0, 4);
    work->drain = db_bool(rows, 0, 5);
    if (count == 0)
        return 0;
    add_lines(work, lines, count, array);
    if (insert_lines(work->db, array, err) < 0)
        return -1;
    (void)snprintf(last, sizeof last, "%" PRIu64, last_line(lines, count));
    work->lines_stored = max_u64(work->lines_stored, last_line(lines, count));
    return db_exec(work->db, SET_LINES, DB_PARAMS(work->ref->task_id, last), NULL, err);
}

static int renew(struct work *work, struct error *err)
{
    const Hypersdk__V1__TaskRenew *body = work->envelope->task_renew;
    struct job_store_event event;
    struct job_decision decision;

    fill_event(work, &event, JOB_EVENT_RENEWED);
    event.phase = body->phase[0] == '\0' ? NULL : body->phase;
    if (job_store_apply(work->db, &event, &decision, err) < 0)
        return -1;
    work->lost = !decision.allowed;
    if (work->lost)
        return 0;
    if (db_exec(work->db, SEEN, DB_PARAMS(work->envelope->sender), NULL, err) < 0 ||
        worker_bandwidth_of(work->db, work->envelope->sender, &work->worker_limit, err) < 0)
        return -1;
    return store_lines(work, body->lines, body->n_lines, err);
}

/* 0 with *out_provider NULL: the lease is not theirs any more. */
static int holds(struct work *work, PGresult **out_rows, struct error *err)
{
    autofree char *token = db_bytea_text(work->ref->token.data, work->ref->token.len);
    char epoch[NUMBER_SIZE];

    (void)snprintf(epoch, sizeof epoch, "%" PRIu64, work->ref->epoch);
    if (db_exec(work->db, HOLDS, DB_PARAMS(work->ref->task_id, epoch, token), out_rows, err) < 0)
        return -1;
    work->lost = PQntuples(*out_rows) == 0;
    return 0;
}

/* Every lease carries all of them. */
static int check_records(struct work *work, const Hypersdk__V1__Record *more, struct error *err)
{
    auto_pgresult *rows = NULL;
    size_t bytes;

    if (db_exec(work->db, RECORDS_OF, DB_PARAMS(work->ref->task_id, more->key), &rows, err) < 0)
        return -1;
    bytes = (size_t)db_i64(rows, 0, 1) + strlen(more->key) + strlen(more->value);
    if (db_i64(rows, 0, 0) >= CLAIM_RECORDS_MAX || bytes > CLAIM_RECORDS_BYTES) {
        return error_set(err, ERR_LIMIT, "a task has at most %d records of %zu bytes together",
                         CLAIM_RECORDS_MAX, CLAIM_RECORDS_BYTES);
    }
    return 0;
}

static int claim(struct work *work, const Hypersdk__V1__Record *wanted, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(work->db, LOCK_CLAIM, DB_PARAMS(wanted->key, wanted->value), NULL, err) < 0 ||
        db_exec(work->db, CLAIMED, DB_PARAMS(wanted->key, wanted->value, work->ref->task_id), &rows,
                err) < 0)
        return -1;
    work->claimed = PQntuples(rows) > 0;
    return 0;
}

static int record(struct work *work, struct error *err)
{
    const Hypersdk__V1__Record *body = work->envelope->task_record->record;
    auto_pgresult *rows = NULL;

    if (holds(work, &rows, err) < 0 || work->lost)
        return err->code == ERR_NONE ? 0 : -1;
    if (check_records(work, body, err) < 0)
        return -1;
    if (work->envelope->task_record->exclusive && claim(work, body, err) < 0)
        return -1;
    if (work->claimed)
        return 0;
    if (strcmp(body->key, "export.volume") == 0 &&
        db_exec(work->db, SET_VOLUME, DB_PARAMS(work->ref->task_id, body->value), NULL, err) < 0)
        return -1;
    return db_exec(work->db, PUT_RECORD, DB_PARAMS(work->ref->task_id, body->key, body->value),
                   NULL, err);
}

static int permit(struct work *work, struct error *err)
{
    struct job_store_event event;
    struct job_decision decision;

    fill_event(work, &event, JOB_EVENT_PERMITTED);
    if (job_store_apply(work->db, &event, &decision, err) < 0)
        return -1;
    work->granted = decision.allowed;
    if (!decision.allowed)
        (void)snprintf(work->reason, sizeof work->reason, "%s", decision.reason);
    return 0;
}

static int parse_result(const char *text, json_t **out, struct error *err)
{
    if (text[0] == '\0')
        return 0;
    return json_parse(text, strlen(text), RESULT_BYTES_MAX, out, err);
}

static void note_end(struct work *work, const struct job_store_outcome *outcome)
{
    (void)snprintf(work->job_id, sizeof work->job_id, "%s", outcome->job_id);
    work->ended = outcome->decision.allowed; /* else it had ended before: the answer was lost */
    work->event = outcome->decision.event;
}

/* The first end only: a repeated one brings the same lines. */
static int end_task(struct work *work, struct job_store_event *event,
                    Hypersdk__V1__LogLine *const *lines, size_t count, struct error *err)
{
    struct job_store_outcome outcome = {0};
    auto_json *rows = json_array();

    event->lines_stored = last_line(lines, count);
    if (job_store_apply_all(work->db, event, 1, &outcome, err) < 0)
        return -1;
    note_end(work, &outcome);
    add_lines(work, lines, work->ended ? count : 0, rows);
    return insert_lines(work->db, rows, err);
}

/* The result is the caller's. */
static int fill_finish(const struct work *work, struct job_store_event *event, json_t **out_result,
                       struct error *err)
{
    fill_event(work, event, JOB_EVENT_TASK_DONE);
    if (parse_result(work->envelope->task_finish->result_json, out_result, err) < 0)
        return error_wrap(err, "result");
    event->result = *out_result;
    return 0;
}

/* All of them or none, inside the caller's transaction. */
static int finish_all(struct work *works, size_t count, struct error *err)
{
    struct job_store_event events[TOGETHER_MAX];
    struct job_store_outcome outcomes[TOGETHER_MAX] = {0};
    json_t *results[TOGETHER_MAX] = {0};
    auto_json *lines = json_array();
    int rc = 0;

    for (size_t i = 0; i < count && rc == 0; i++) {
        const Hypersdk__V1__TaskFinish *body = works[i].envelope->task_finish;
        rc = fill_finish(&works[i], &events[i], &results[i], err);
        events[i].lines_stored = last_line(body->lines, body->n_lines);
    }
    if (rc == 0)
        rc = job_store_apply_all(works->db, events, count, outcomes, err);
    for (size_t i = 0; i < count; i++) {
        const Hypersdk__V1__TaskFinish *body = works[i].envelope->task_finish;
        json_decref(results[i]);
        if (rc < 0)
            continue;
        note_end(&works[i], &outcomes[i]);
        add_lines(&works[i], body->lines, works[i].ended ? body->n_lines : 0, lines);
    }
    return rc < 0 ? rc : insert_lines(works->db, lines, err);
}

static int finish(struct work *work, struct error *err)
{
    return finish_all(work, 1, err);
}

static int fail(struct work *work, struct error *err)
{
    const Hypersdk__V1__TaskFail *body = work->envelope->task_fail;
    auto_json *result = NULL;
    struct job_store_event event;

    fill_event(work, &event, JOB_EVENT_TASK_FAILED);
    if (parse_result(body->result_json, &result, err) < 0)
        return error_wrap(err, "result");
    event.result = result;
    event.error_code = body->error_code;
    event.error_message = body->message;
    event.input.retryable = body->retryable;
    event.phase = body->phase[0] == '\0' ? NULL : body->phase;
    return end_task(work, &event, body->lines, body->n_lines, err);
}

static int yield(struct work *work, struct error *err)
{
    const Hypersdk__V1__TaskYield *body = work->envelope->task_yield;
    struct job_store_event event;

    fill_event(work, &event, JOB_EVENT_YIELDED);
    return end_task(work, &event, body->lines, body->n_lines, err);
}

static int page(struct work *work, struct error *err)
{
    const Hypersdk__V1__InventoryPage *body = work->envelope->inventory_page;
    const char *generation = work->ref->task_id;
    auto_json *array = json_array();
    auto_pgresult *rows = NULL;
    autofree char *text = NULL;
    const char *provider;

    if (holds(work, &rows, err) < 0 || work->lost)
        return err->code == ERR_NONE ? 0 : -1;
    provider = db_text(rows, 0, 0);
    for (size_t i = 0; i < body->n_vms; i++) {
        const Hypersdk__V1__InventoryVm *vm = body->vms[i];
        json_t *row =
            json_pack("[s,s,s,s,s]", vm->id, vm->name, vm->path, vm->power_state, vm->vm_json);
        (void)json_array_append_new(array, row);
    }
    text = json_text(array);
    if (body->n_vms > 0 &&
        db_exec(work->db, INSERT_VMS, DB_PARAMS(provider, generation, text), NULL, err) < 0)
        return -1;
    if (!body->last)
        return 0;
    if (db_exec(work->db, FINISH_SCAN, DB_PARAMS(provider, generation), NULL, err) < 0)
        return -1;
    return db_exec(work->db, DROP_OLD_SCANS, DB_PARAMS(provider, generation), NULL, err);
}

/* ---- from body to reference and function ---- */

typedef int (*work_fn)(struct work *work, struct error *err);

static work_fn function_of(const bus_envelope *e, const Hypersdk__V1__TaskRef **out_ref)
{
    if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_TASK_RENEW) {
        *out_ref = e->task_renew->ref;
        return renew;
    }
    if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_TASK_RECORD) {
        *out_ref = e->task_record->ref;
        return record;
    }
    if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_FINISH_PERMIT) {
        *out_ref = e->finish_permit->ref;
        return permit;
    }
    if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_TASK_FINISH) {
        *out_ref = e->task_finish->ref;
        return finish;
    }
    if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_TASK_FAIL) {
        *out_ref = e->task_fail->ref;
        return fail;
    }
    if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_TASK_YIELD) {
        *out_ref = e->task_yield->ref;
        return yield;
    }
    if (e->body_case == HYPERSDK__V1__ENVELOPE__BODY_INVENTORY_PAGE) {
        *out_ref = e->inventory_page->ref;
        return page;
    }
    return NULL;
}

static int once(struct work *work, work_fn fn, struct error *err)
{
    if (db_begin(work->db, err) < 0)
        return -1;
    if (fn(work, err) < 0) {
        db_rollback(work->db);
        return -1;
    }
    if (work->lost || work->claimed) {
        db_rollback(work->db);
        return 0;
    }
    return db_commit(work->db, err);
}

/* After a commit whose outcome is unknown the repetition finds what it did and changes nothing. */
static int perform(struct work *work, work_fn fn, struct error *err)
{
    int64_t until_ms = clock_mono_ms() + TRIES_MS;

    for (int i = 0; i < TRIES_MAX && (i == 0 || clock_mono_ms() < until_ms); i++) {
        error_clear(err);
        if (once(work, fn, err) == 0)
            return 0;
        if (is_lost(err)) {
            error_clear(err);
            work->lost = true;
            return 0;
        }
        if (!error_is_retryable(err))
            return -1;
    }
    return -1;
}

/* ---- answers ---- */

static Hypersdk__V1__ControlKind stop_kind(const struct work *work)
{
    if (work->cancel)
        return HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL;
    return work->pause ? HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_PAUSE
                       : HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_DRAIN;
}

static void reply_renew(struct bus_request *request, const struct work *work)
{
    Hypersdk__V1__TaskControl stop, rate;
    Hypersdk__V1__TaskControl *controls[2];
    Hypersdk__V1__RenewReply body;
    Hypersdk__V1__WorkerLimit limit;
    struct bus_envelope_store store;
    bus_envelope reply;

    hypersdk__v1__renew_reply__init(&body);
    scheduler_control_rate(&rate, work->ref->task_id, &work->bandwidth);
    if (work->cancel || work->pause || work->drain) {
        scheduler_control(&stop, stop_kind(work), work->ref->task_id);
        controls[body.n_controls++] = &stop;
    }
    if (work->bandwidth.stamp_ms > 0)
        controls[body.n_controls++] = &rate;
    body.lost = work->lost;
    body.lease_ms = work->scheduler->config.lease_ms;
    body.lines_stored = work->lines_stored;
    body.controls = controls;
    body.worker_limit = scheduler_worker_limit(&limit, &work->worker_limit);
    bus_envelope_init(&reply, &store, service_instance(work->scheduler->service), NULL);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_RENEW_REPLY;
    reply.renew_reply = &body;
    bus_request_reply(request, &reply);
}

static void reply_permit(struct bus_request *request, const struct work *work)
{
    Hypersdk__V1__PermitReply body;
    struct bus_envelope_store store;
    bus_envelope reply;

    hypersdk__v1__permit_reply__init(&body);
    body.lost = work->lost;
    body.granted = work->granted && !work->lost;
    body.reason = (char *)(uintptr_t)work->reason;
    bus_envelope_init(&reply, &store, service_instance(work->scheduler->service), NULL);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_PERMIT_REPLY;
    reply.permit_reply = &body;
    bus_request_reply(request, &reply);
}

static void reply_ack(struct bus_request *request, const struct scheduler *scheduler, bool lost,
                      const char *text, bool again)
{
    Hypersdk__V1__Ack body;
    struct bus_envelope_store store;
    bus_envelope reply;

    hypersdk__v1__ack__init(&body);
    body.lost = lost;
    body.error = (char *)(uintptr_t)text;
    body.again = again;
    bus_envelope_init(&reply, &store, service_instance(scheduler->service), NULL);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_ACK;
    reply.ack = &body;
    bus_request_reply(request, &reply);
}

/* What failed for a passing reason (the database is away) is asked again by the worker. */
static void answer(struct work *work, struct bus_request *request, work_fn fn,
                   const struct error *err)
{
    if (fn == renew && err->code == ERR_NONE) {
        reply_renew(request, work);
    } else if (fn == permit && err->code == ERR_NONE) {
        reply_permit(request, work);
    } else if (work->claimed) {
        reply_ack(request, work->scheduler, false, "another task holds it", true);
    } else {
        reply_ack(request, work->scheduler, work->lost, err->message, error_is_retryable(err));
    }
}

static void after(struct work *work, work_fn fn)
{
    if (fn == renew && !work->lost)
        live_lease(work->scheduler->live, work->ref, work->job_id, work->vm_name);
    if (!work->ended)
        return;
    live_end(work->scheduler->live, work->ref->task_id);
    park_wake(work->scheduler->park);
    if (work->job_id[0] != '\0' && work->event != NULL)
        scheduler_announce_job(work->scheduler, work->job_id, work->event);
    publish_wake();
}

static void log_failure(const struct work *work, const struct error *err)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards throttle */
    static struct log_throttle throttle;
    uint64_t held = 0;

    if (!error_is_retryable(err)) {
        LOG(ERROR, "request_refused", F_STR("task_id", work->ref->task_id), F_ERR(err));
        return;
    }
    LOCK_SCOPE(&mutex);
    if (log_throttle_pass(&throttle, err->message, &held))
        LOG(WARN, "request_failed", F_ERR(err));
}

/* A worker that drains: it runs what it has, and takes nothing new. */
static void leave(struct scheduler *scheduler, struct db *db, struct bus_request *request)
{
    const char *instance = bus_request_envelope(request)->lease_request->instance;
    Hypersdk__V1__NoTask body;
    struct bus_envelope_store store;
    struct error err = ERROR_NONE;
    bus_envelope reply;

    if (db_exec(db, LEAVES, DB_PARAMS(instance), NULL, &err) < 0)
        LOG(INFO, "worker_leave_not_stored", F_STR("worker", instance), F_ERR(&err));
    scheduler_announce_worker(scheduler, instance, "draining");
    hypersdk__v1__no_task__init(&body);
    bus_envelope_init(&reply, &store, service_instance(scheduler->service), NULL);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_NO_TASK;
    reply.no_task = &body;
    bus_request_reply(request, &reply);
}

static void handle(struct scheduler *scheduler, struct db *db, struct bus_request *request)
{
    struct work work = {
        .scheduler = scheduler, .db = db, .envelope = bus_request_envelope(request)};
    struct error err = ERROR_NONE;
    work_fn fn = function_of(work.envelope, &work.ref);

    if (work.envelope->body_case == HYPERSDK__V1__ENVELOPE__BODY_LEASE_REQUEST) {
        leave(scheduler, db, request);
        return;
    }
    if (fn == NULL) {
        reply_ack(request, scheduler, false, "this message is nothing that the scheduler does",
                  false);
        return;
    }
    if (perform(&work, fn, &err) == 0) {
        after(&work, fn);
    } else {
        log_failure(&work, &err);
    }
    answer(&work, request, fn, &err);
}

/* The ends of several tasks in one transaction. False: nothing was done, or nobody knows: then each
 * is handled alone, and finds out what it is. */
static bool end_together(struct scheduler *scheduler, struct db *db,
                         struct bus_request *const *requests, size_t count)
{
    autofree struct work *works = xcalloc(count, sizeof *works);
    struct error err = ERROR_NONE;

    for (size_t i = 0; i < count; i++) {
        works[i] = (struct work){
            .scheduler = scheduler, .db = db, .envelope = bus_request_envelope(requests[i])};
        works[i].ref = works[i].envelope->task_finish->ref;
    }
    if (db_begin(db, &err) < 0)
        return false;
    if (finish_all(works, count, &err) < 0) {
        db_rollback(db);
        return false;
    }
    if (db_commit(db, &err) < 0)
        return false;
    for (size_t i = 0; i < count; i++) {
        after(&works[i], finish);
        answer(&works[i], requests[i], finish, &err);
    }
    return true;
}

void *requests_main(void *arg)
{
    struct scheduler *scheduler = arg;
    auto_db *db = scheduler_queue_db(scheduler, "scheduler requests");

    for (;;) {
        struct bus_request *requests[TOGETHER_MAX];
        size_t count = take(scheduler->requests, requests);
        bool ends = is_end(requests[0]); /* an answered one is gone */
        if (count == 1 || !end_together(scheduler, db, requests, count)) {
            for (size_t i = 0; i < count; i++)
                handle(scheduler, db, requests[i]);
        }
        worked(scheduler->requests, count, ends);
    }
    return NULL;
}
