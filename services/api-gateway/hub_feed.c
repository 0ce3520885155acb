/* Where live events come from: Redis, as long as it is there, and PostgreSQL, which has every state
 * event for good. Two threads.
 *
 * Design notes. Redis may lose messages whenever a connection breaks, so after every (re)connect
 * the rows that are not settled yet are read and what was not published before is published
 * (seen.h). The same look is taken every HEAL_MS, for events whose publisher died, and every
 * POLL_MS while Redis does not answer; then progress comes from the jobs' rows as well. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "audit.h"
#include "common/clock.h"
#include "common/job_store.h"
#include "common/json.h"
#include "common/log.h"
#include "common/service_heartbeat.h"
#include "gateway.h"
#include "handlers.h"
#include "hub_internal.h"

#define HEAL_MS           3000
#define POLL_MS           1000
#define RECENT_MS         10000
#define DEEP_MS           30000
#define TURN_MS           200 /* a replay that waits for its slow client is looked at again */
#define CARE_MS           1000
#define RECHECK_MS        10000 /* how long an ended session may go on listening */
#define PAGE_ROWS         500
#define PAGE_IDS          5000
#define REPLAY_ROWS_MAX   20000 /* who missed more reads the lists instead */
#define REPLAY_OVERLAP    1000
#define PROGRESS_JOBS_MAX 200
#define FIRST_LOOK_MS     2000 /* the start waits so long for the first look at the rows */

struct feed {
    struct hub *hub;
    struct db *db;
    struct redis *redis;
    int64_t looked_ms;
    int64_t deep_ms;
    int64_t redis_ms;
    int64_t status_ms;
    int64_t recheck_ms;
    int64_t cared_ms;
    int64_t pinged_ms;
    bool comment; /* this time with a sign of life to each stream */
    bool redis_up;
    bool started; /* hub->seen is */
    struct log_throttle throttle;
};

/* ---- Redis ---- */

static void on_message(void *arg, const char *message, size_t size)
{
    struct hub *hub = arg;
    auto_json *object = NULL;
    auto_live_event *event = NULL;
    struct error err = ERROR_NONE;

    if (json_parse(message, size, LIVE_EVENT_BYTES_MAX, &object, &err) == 0 &&
        json_is_object(object) && json_object_get(object, "seq") == NULL) {
        LOCK_SCOPE(&hub->mutex); /* progress: it stands after the newest row */
        (void)json_object_set_new(object, "seq", json_integer(hub->seen.newest));
    }
    if (err.code != ERR_NONE || live_event_new(object, &event, &err) < 0) {
        LOG(WARN, "live_event_refused", F_ERR(&err));
        return;
    }
    if (live_event_kind(event) == LIVE_STATE) {
        bool far;
        {
            LOCK_SCOPE(&hub->mutex);
            far = seen_is_far(&hub->seen, live_event_seq(event));
        }
        if (far) { /* before our first look, or nonsense: the rows decide */
            atomic_store(&hub->gap, true);
            return;
        }
    }
    hub_publish(hub, event);
}

static void on_gap(void *arg)
{
    struct hub *hub = arg;

    atomic_store(&hub->gap, true);
    LOCK_SCOPE(&hub->request_mutex);
    (void)pthread_cond_signal(&hub->requested);
}

static void *on_redis_thread(void *arg)
{
    struct hub *hub = arg;

    redis_subscribe(&hub->gateway->redis, &hub->stop, on_message, on_gap, hub);
    return NULL;
}

/* ---- rows ---- */

static int publish_rows(struct hub *hub, const json_t *rows, int64_t *last)
{
    size_t i;
    json_t *row;

    json_array_foreach(rows, i, row)
    {
        auto_live_event *event = NULL;
        struct error err = ERROR_NONE;

        *last = json_integer_value(json_object_get(row, "seq"));
        if (live_event_new(row, &event, &err) < 0) {
            LOG(WARN, "live_event_refused", F_ERR(&err));
        } else {
            hub_publish(hub, event);
        }
    }
    return (int)json_array_size(rows);
}

static bool hub_has_started(struct hub *hub)
{
    LOCK_SCOPE(&hub->mutex);
    return hub->seen.started;
}

static int start_seen(struct feed *feed, struct error *err)
{
    static const char sql[] = "SELECT coalesce(max(id), 0) FROM job_events";
    auto_pgresult *rows = NULL;

    if (db_exec(feed->db, sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    LOCK_SCOPE(&feed->hub->mutex);
    seen_start(&feed->hub->seen, db_i64(rows, 0, 0));
    feed->started = true;
    return 0;
}

/* The first id of a page that was not published yet; 0: all were. */
static int64_t first_missing(struct hub *hub, const PGresult *ids)
{
    LOCK_SCOPE(&hub->mutex);
    for (int i = 0; i < PQntuples(ids); i++) {
        if (!seen_has(&hub->seen, db_i64(ids, i, 0)))
            return db_i64(ids, i, 0);
    }
    return 0;
}

/* Of rows that came over Redis, which are nearly all, only the ids are read. */
static int publish_missing(struct feed *feed, int64_t after, struct error *err)
{
    int count = PAGE_IDS;

    while (count == PAGE_IDS) {
        auto_pgresult *ids = NULL;
        auto_json *rows = NULL;
        int64_t missing;
        if (job_store_event_ids(feed->db, after, PAGE_IDS, &ids, err) < 0)
            return -1;
        count = PQntuples(ids);
        missing = first_missing(feed->hub, ids);
        if (missing == 0) {
            after = count == 0 ? after : db_i64(ids, count - 1, 0);
            continue;
        }
        if (job_store_events(feed->db, missing - 1, PAGE_ROWS, &rows, err) < 0)
            return -1;
        (void)publish_rows(feed->hub, rows, &after);
        count = PAGE_IDS; /* what stands behind them is looked at as well */
    }
    return 0;
}

/* Mostly only what came lately is read again; after a gap, and now and then, all that is not
 * settled: a burst of events must not be read again every three seconds for a minute. */
static int look(struct feed *feed, bool deep, struct error *err)
{
    struct hub *hub = feed->hub;
    int64_t now_ms = clock_mono_ms();
    int64_t after;

    if (!feed->started && start_seen(feed, err) < 0)
        return -1;
    {
        LOCK_SCOPE(&hub->mutex);
        after = seen_settle(&hub->seen, now_ms);
        if (!deep)
            after = seen_recent(&hub->seen, RECENT_MS, now_ms);
    }
    return publish_missing(feed, after, err);
}

static void publish_progress_row(struct hub *hub, const PGresult *rows, int row, int64_t seq)
{
    auto_json *object = NULL;
    auto_live_event *event = NULL;
    struct error err = ERROR_NONE;
    char now[CLOCK_RFC3339_SIZE];

    if (json_parse(db_text(rows, row, 3), strlen(db_text(rows, row, 3)), LIVE_EVENT_BYTES_MAX,
                   &object, &err) < 0 ||
        !json_is_object(object))
        return;
    clock_rfc3339_now(now);
    json_set_text(object, "type", "job.progress");
    json_set_text(object, "job_id", db_text(rows, row, 0));
    json_set_text(object, "status", db_text(rows, row, 1));
    json_set_text(object, "phase", db_text(rows, row, 2));
    json_set_text(object, "timestamp", now);
    (void)json_object_set_new(object, "seq", json_integer(seq));
    if (live_event_new(object, &event, &err) == 0)
        hub_publish(hub, event);
}

/* Without Redis: what the jobs' rows know, which is a few seconds old. */
static int look_at_progress(struct feed *feed, struct error *err)
{
    static const char sql[] =
        "SELECT id, CASE WHEN status IN ('paused', 'cancelling') THEN 'running' ELSE status END,"
        " phase, progress FROM jobs"
        " WHERE status IN ('running', 'paused', 'cancelling') AND progress IS NOT NULL"
        " ORDER BY seq LIMIT $1::integer";
    auto_pgresult *rows = NULL;
    char limit[16];
    int64_t seq;

    (void)snprintf(limit, sizeof limit, "%d", PROGRESS_JOBS_MAX);
    if (db_exec(feed->db, sql, DB_PARAMS(limit), &rows, err) < 0)
        return -1;
    {
        LOCK_SCOPE(&feed->hub->mutex);
        seq = feed->hub->seen.newest;
    }
    for (int i = 0; i < PQntuples(rows); i++)
        publish_progress_row(feed->hub, rows, i, seq);
    return 0;
}

static void check_redis(struct feed *feed, int64_t now_ms)
{
    struct error err = ERROR_NONE;

    if (feed->redis_ms != 0 && now_ms - feed->redis_ms < POLL_MS)
        return;
    feed->redis_ms = now_ms;
    feed->redis_up = redis_check(feed->redis, &err) == 0;
}

static int look_when_due(struct feed *feed, int64_t now_ms, struct error *err)
{
    bool gap;
    bool deep;

    check_redis(feed, now_ms);
    gap = atomic_exchange(&feed->hub->gap, false);
    if (!gap && feed->started && now_ms - feed->looked_ms < (feed->redis_up ? HEAL_MS : POLL_MS))
        return 0;
    feed->looked_ms = now_ms;
    deep = gap || now_ms - feed->deep_ms >= DEEP_MS;
    if (deep)
        feed->deep_ms = now_ms;
    if (look(feed, deep, err) < 0 || (!feed->redis_up && look_at_progress(feed, err) < 0)) {
        if (gap)
            atomic_store(&feed->hub->gap, true);
        return -1;
    }
    return 0;
}

/* ---- status ---- */

static int status_when_due(struct feed *feed, int64_t now_ms, struct error *err)
{
    auto_json *status = NULL;
    auto_live_event *event = NULL;

    if (now_ms - feed->status_ms < HUB_STATUS_MS || !hub_wants_status(feed->hub))
        return 0;
    feed->status_ms = now_ms;
    if (status_build(feed->hub->gateway, feed->db, &status, err) < 0)
        return -1;
    json_set_text(status, "type", "status");
    if (live_event_new(status, &event, err) < 0)
        return -1;
    hub_publish_status(feed->hub, event);
    return 0;
}

/* ---- clients' requests ---- */

static void request_done(struct hub_request *request)
{
    {
        LOCK_SCOPE(&request->subscriber->mutex);
        request->subscriber->request_pending = false;
        request->subscriber->replaying = false;
    }
    secret_free(request->token);
    free(request->replayed);
    subscriber_unref(request->subscriber);
}

static void refuse_client(struct subscriber *subscriber, const char *text)
{
    hub_reply(subscriber, json_pack("{s:s, s:s, s:s}", "type", "error", "code", "unauthenticated",
                                    "error", text));
    subscriber_end(subscriber, CLOSE_POLICY, true);
}

/* The handshake's row has no name in it: this one says who came. */
static int audit_late(struct feed *feed, struct subscriber *subscriber,
                      const struct identity *identity, unsigned int status, struct error *err)
{
    static const struct route route = {.action = "websocket.auth"};
    struct call_transport transport = {.started_ms = clock_mono_ms()};
    struct call call = {.gateway = feed->hub->gateway,
                        .route = &route,
                        .transport = &transport,
                        .method = "WS",
                        .path = "",
                        .ip = subscriber->ip,
                        .status = status};

    (void)snprintf(call.request_id, sizeof call.request_id, "%s", subscriber->request_id);
    (void)snprintf(call.identity.username, sizeof call.identity.username, "%s", identity->username);
    return audit_write(&call, feed->db, err);
}

static void authenticate(struct feed *feed, struct hub_request *request)
{
    struct subscriber *subscriber = request->subscriber;
    struct identity identity = {0};
    struct error err = ERROR_NONE;
    struct error why = ERROR_NONE;
    bool known = auth_token(feed->hub->gateway, feed->db, request->token, &identity, &err) == 0;
    bool may = known && identity_may(&identity, "job.view");

    if (audit_late(feed, subscriber, &identity, known ? (may ? 101 : 403) : 401, &why) < 0)
        known = false;
    if (!known) {
        refuse_client(subscriber, err.code == ERR_DENIED ? err.message : "try again later");
        identity_release(&identity);
        return;
    }
    {
        LOCK_SCOPE(&subscriber->mutex);
        subscriber->by_session = strncmp(request->token, SESSION_PREFIX, 2) == 0;
        token_hash(request->token, subscriber->token);
        subscriber_permit(subscriber, &identity);
        subscriber_topics_default(subscriber);
    }
    if (!may) {
        refuse_client(subscriber, "permission 'job.view' is missing");
    } else {
        hub_greet(feed->hub, subscriber);
    }
    identity_release(&identity);
}

/* Keeps the ids rising; false: it is there already. */
static bool remember(struct hub_request *request, int64_t id)
{
    size_t at = request->replayed_count;

    while (at > 0 && request->replayed[at - 1] > id)
        at--; /* rows come rising: only a second pass walks */
    if (at > 0 && request->replayed[at - 1] == id)
        return false;
    if (request->replayed_count == request->replayed_capacity) {
        request->replayed_capacity =
            request->replayed_capacity == 0 ? PAGE_ROWS : 2 * request->replayed_capacity;
        request->replayed =
            xreallocarray(request->replayed, request->replayed_capacity, sizeof *request->replayed);
    }
    memmove(request->replayed + at + 1, request->replayed + at,
            (request->replayed_count - at) * sizeof *request->replayed);
    request->replayed[at] = id;
    request->replayed_count++;
    return true;
}

/* What the live feed has not seen yet is published here: it would come again right after. */
static void replay_rows(struct hub *hub, struct hub_request *request, const json_t *rows)
{
    size_t i;
    json_t *row;

    json_array_foreach(rows, i, row)
    {
        auto_live_event *event = NULL;
        struct error err = ERROR_NONE;
        int64_t id = json_integer_value(json_object_get(row, "seq"));

        request->after = id;
        if (!remember(request, id) || live_event_new(row, &event, &err) < 0)
            continue;
        subscriber_replay(request->subscriber, event, clock_mono_ms());
        hub_publish(hub, event); /* to this client, too: it waits aside, and is known by its id */
    }
}

/* One page. true: the request is done. */
static bool replay(struct feed *feed, struct hub_request *request)
{
    struct subscriber *subscriber = request->subscriber;
    auto_json *rows = NULL;
    struct error err = ERROR_NONE;

    if (subscriber_has_ended(subscriber))
        return true;
    if (!subscriber_has_room(subscriber))
        return false;
    if (job_store_events(feed->db, request->after, PAGE_ROWS, &rows, &err) < 0)
        return false; /* again when the database is back */
    replay_rows(feed->hub, request, rows);
    if (request->replayed_count > REPLAY_ROWS_MAX) {
        hub_reply(subscriber, json_pack("{s:s, s:s}", "type", "resync", "message",
                                        "too many events were missed: read the lists again"));
        return true;
    }
    if (json_array_size(rows) == PAGE_ROWS)
        return false;
    if (subscriber_replay_done(subscriber, request->replayed, request->replayed_count,
                               clock_mono_ms()))
        return true;
    request->after = request->after > REPLAY_OVERLAP ? request->after - REPLAY_OVERLAP : 0;
    return false;
}

/* Each waiting request once; those that are not done wait for the next turn. */
static bool serve_requests(struct feed *feed)
{
    struct hub *hub = feed->hub;
    struct hub_request requests[HUB_REQUESTS_MAX];
    size_t count;
    bool waiting = false;

    {
        LOCK_SCOPE(&hub->request_mutex);
        count = hub->request_count;
        memcpy(requests, hub->requests, count * sizeof *requests);
        hub->request_count = 0;
    }
    for (size_t i = 0; i < count; i++) {
        bool done = true;
        if (requests[i].kind == HUB_AUTH) {
            authenticate(feed, &requests[i]);
        } else {
            done = replay(feed, &requests[i]);
        }
        if (!done) {
            LOCK_SCOPE(&hub->request_mutex);
            done = hub->request_count == HUB_REQUESTS_MAX;
            if (!done)
                hub->requests[hub->request_count++] = requests[i];
            waiting = waiting || !done;
        }
        if (done)
            request_done(&requests[i]);
    }
    return waiting;
}

/* ---- who is still allowed ---- */

static void recheck(void *arg, struct subscriber *subscriber)
{
    struct feed *feed = arg;
    struct identity identity = {0};
    struct error err = ERROR_NONE;
    uint8_t hash[TOKEN_HASH_BYTES];
    bool by_session;

    {
        LOCK_SCOPE(&subscriber->mutex);
        if (!subscriber->authenticated || subscriber->dev || subscriber->ended)
            return;
        memcpy(hash, subscriber->token, sizeof hash);
        by_session = subscriber->by_session;
    }
    if (auth_token_again(feed->hub->gateway, feed->db, by_session, hash, &identity, &err) < 0) {
        if (err.code == ERR_DENIED)
            refuse_client(subscriber, "the session has ended");
        return;
    }
    {
        LOCK_SCOPE(&subscriber->mutex);
        subscriber_permit(subscriber, &identity);
    }
    identity_release(&identity);
}

static void look_after(void *arg, struct subscriber *subscriber)
{
    const struct feed *feed = arg;

    subscriber_check_slow(subscriber, feed->cared_ms);
    stream_keep_alive(subscriber, feed->comment);
}

/* Slow and dead clients, every second. */
static void care(struct feed *feed, int64_t now_ms)
{
    if (now_ms - feed->cared_ms < CARE_MS)
        return;
    feed->cared_ms = now_ms;
    feed->comment = now_ms - feed->pinged_ms >= HUB_PING_MS;
    if (feed->comment)
        feed->pinged_ms = now_ms;
    hub_each(feed->hub, look_after, feed);
}

/* ---- the thread ---- */

static void wait_for_work(struct hub *hub, bool soon)
{
    int64_t until_ns = clock_mono_ns() + (soon ? 20 : TURN_MS) * INT64_C(1000000);
    struct timespec until = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000};
    LOCK_SCOPE(&hub->request_mutex);

    if (!atomic_load(&hub->gap) && (soon || hub->request_count == 0))
        (void)pthread_cond_timedwait(&hub->requested, &hub->request_mutex, &until);
}

static void turn(struct feed *feed, bool *waiting)
{
    int64_t now_ms = clock_mono_ms();
    struct error err = ERROR_NONE;
    uint64_t suppressed = 0;

    *waiting = serve_requests(feed);
    if (look_when_due(feed, now_ms, &err) < 0 || status_when_due(feed, now_ms, &err) < 0) {
        if (log_throttle_pass(&feed->throttle, err.message, &suppressed))
            LOG(WARN, "live_feed_failed", F_ERR(&err), F_U64("suppressed", suppressed));
        *waiting = true;
        clock_sleep_ms(TURN_MS);
    }
    care(feed, now_ms);
    if (now_ms - feed->recheck_ms >= RECHECK_MS) {
        feed->recheck_ms = now_ms;
        hub_each(feed->hub, recheck, feed);
    }
}

static void *on_feed_thread(void *arg)
{
    struct hub *hub = arg;
    struct feed feed = {.hub = hub,
                        .db = gateway_db_new(hub->gateway, "live events"),
                        .redis = redis_new(&hub->gateway->redis)};
    bool waiting = false;

    db_set_by_index(feed.db); /* the newest events, all the time */
    if (!service_wait_schema(hub->gateway->service, feed.db))
        return NULL; /* nobody was let in before the first look */
    while (!atomic_load(&hub->stop)) {
        wait_for_work(hub, waiting);
        turn(&feed, &waiting);
    }
    return NULL;
}

static int start_thread(void *(*fn)(void *), struct hub *hub, struct error *err)
{
    pthread_t thread;
    int rv = pthread_create(&thread, NULL, fn, hub);

    if (rv != 0)
        return error_set_errno(err, rv, "thread of the event hub cannot be started");
    (void)pthread_detach(thread);
    return 0;
}

/* What happened before the first look is no event: no client may be there before it. Without the
 * database the gateway starts all the same, and hub_add refuses. */
static void wait_for_first_look(struct hub *hub)
{
    int64_t until_ms = clock_mono_ms() + FIRST_LOOK_MS;

    while (!hub_has_started(hub) && clock_mono_ms() < until_ms)
        clock_sleep_ms(5);
}

int hub_feed_start(struct hub *hub, struct error *err)
{
    atomic_store(&hub->gap, true);
    if (start_thread(on_feed_thread, hub, err) < 0 || start_thread(on_redis_thread, hub, err) < 0)
        return -1;
    wait_for_first_look(hub);
    return 0;
}
