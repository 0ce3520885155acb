/* What happened, to Redis: history rows in order, each once or again after a restart; the newest
 * progress, one pipeline per tick. Redis may be away: rows wait unpublished, progress is lost.
 *
 * Design notes. How far it is stands in published_position, a snapshot: what that does not show and
 * a later one does is next (job_store_events_behind), whatever the order of ids and commits. The
 * position is stored after its events were sent, and not at every look: who leads next sends the
 * last ones again, and the gateways know them by their ids. A database that was copied row by row
 * has another's position, ahead of its own transactions, which begins anew: the gateways read what
 * clients missed from the rows. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/job_store.h"
#include "common/json.h"
#include "common/redis.h"
#include "live.h"
#include "scheduler.h"

#define TICK_MS     250
#define TOGETHER_MS 20 /* between two looks: what comes meanwhile is the next one's */
#define EVENTS_MAX  500
#define UPDATES_MAX 256

static const char LOAD_POSITION[] =
    "WITH anew AS (UPDATE published_position SET position = pg_current_snapshot()"
    "  WHERE pg_snapshot_xmax(position) > pg_snapshot_xmax(pg_current_snapshot())"
    "  RETURNING position)"
    " SELECT coalesce((SELECT position FROM anew), position) FROM published_position";

/* Losing either on a crash costs nothing: events are published once more, and a final job keeps
 * what it showed last. A leader that was replaced does not set the next one back. */
static const char STORE_POSITION[] =
    "WITH off AS (SELECT set_config('synchronous_commit', 'off', true))"
    " UPDATE published_position SET position = $1::pg_snapshot FROM off"
    " WHERE pg_snapshot_xmax(position) <= pg_snapshot_xmax($1::pg_snapshot)";

static const char STORE_PROGRESS[] =
    "WITH off AS (SELECT set_config('synchronous_commit', 'off', true))"
    " UPDATE jobs SET progress = $2::jsonb FROM off WHERE id = $1";

static pthread_mutex_t wake_mutex = PTHREAD_MUTEX_INITIALIZER; /* guards woken */
static pthread_cond_t wake_changed = PTHREAD_COND_INITIALIZER;
static bool woken;

void publish_wake(void)
{
    LOCK_SCOPE(&wake_mutex);
    woken = true;
    (void)pthread_cond_signal(&wake_changed);
}

static void wait_tick(void)
{
    struct timespec until;

    (void)clock_gettime(CLOCK_REALTIME, &until); /* a jump costs one late tick */
    until.tv_nsec += TICK_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    LOCK_SCOPE(&wake_mutex);
    if (!woken)
        (void)pthread_cond_timedwait(&wake_changed, &wake_mutex, &until);
    woken = false;
}

/* The first event of a while goes out at once. */
static void wait_for_more(int64_t *looked_ms)
{
    int64_t left_ms = *looked_ms + TOGETHER_MS - clock_mono_ms();

    if (left_ms > 0)
        clock_sleep_ms(left_ms);
    *looked_ms = clock_mono_ms();
}

static int publish(struct redis *redis, const char *text, struct error *err)
{
    const char *argv[] = {"PUBLISH", REDIS_CHANNEL_EVENTS, text};

    return redis_append(redis, err, ARRAY_LEN(argv), argv);
}

/* ---- history ---- */

struct history {
    char *position; /* NULL: not read yet */
    bool moved;     /* since it was stored */
    int64_t stored_ms;
};

static int load_position(struct history *history, struct db *db, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (history->position != NULL)
        return 0;
    if (db_exec(db, LOAD_POSITION, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    history->position = xstrdup(db_text(rows, 0, 0));
    return 0;
}

static int store_position(struct history *history, struct db *db, struct error *err)
{
    int64_t now_ms = clock_mono_ms();

    if (!history->moved || now_ms - history->stored_ms < TICK_MS)
        return 0;
    if (db_exec(db, STORE_POSITION, DB_PARAMS(history->position), NULL, err) < 0)
        return -1;
    history->moved = false;
    history->stored_ms = now_ms;
    return 0;
}

/* One page; *out_more is set when there may be another, not when this one has to be sent again. */
static int publish_page(struct history *history, struct db *db, struct redis *redis, bool *out_more,
                        struct error *err)
{
    autofree char *position = NULL;
    auto_json *events = NULL;
    json_t *event;
    size_t i;

    if (job_store_events_behind(db, history->position, EVENTS_MAX, &events, &position, err) < 0)
        return -1;
    if (json_array_size(events) == 0)
        return 0;
    json_array_foreach(events, i, event)
    {
        autofree char *text = json_text(event);
        if (publish(redis, text, err) < 0)
            return -1;
    }
    if (redis_flush(redis, err) < 0)
        return -1;
    free(history->position);
    history->position = STEAL(position);
    history->moved = true;
    *out_more = json_array_size(events) >= EVENTS_MAX;
    return 0;
}

static int publish_events(struct history *history, struct db *db, struct redis *redis,
                          bool *out_more, struct error *err)
{
    if (load_position(history, db, err) < 0 || publish_page(history, db, redis, out_more, err) < 0)
        return -1;
    return store_position(history, db, err);
}

/* ---- progress ---- */

static json_t *progress_event(const struct live_update *update)
{
    json_t *event = json_copy(update->json);
    json_t *percentage = json_object_get(event, "percentage");

    json_set_text(event, "type", "job.progress");
    json_set_text(event, "status", "running");
    json_set_text(event, "vm_name", update->vm_name);
    json_set_text(event, "error", "");
    if (percentage != NULL) {
        (void)json_object_set_new(event, "progress",
                                  json_integer((json_int_t)json_number_value(percentage)));
    }
    (void)json_object_set(event, "timestamp", json_object_get(event, "updated_at"));
    return event;
}

static int append_update(struct redis *redis, const struct live_update *update, struct error *err)
{
    autofree char *key = xasprintf("%s%s", REDIS_PROGRESS_PREFIX, update->job_id);
    autofree char *text = json_text(update->json);
    auto_json *event = progress_event(update);
    autofree char *event_text = json_text(event);
    char ttl[16];
    const char *set[] = {"HSET", key, "json", text};
    const char *expire[] = {"EXPIRE", key, ttl};

    (void)snprintf(ttl, sizeof ttl, "%d", REDIS_PROGRESS_TTL_S);
    if (redis_append(redis, err, ARRAY_LEN(set), set) < 0 ||
        redis_append(redis, err, ARRAY_LEN(expire), expire) < 0)
        return -1;
    return publish(redis, event_text, err);
}

/* Redis being away must not keep the rows from their progress, nor the other way round. */
static int publish_progress(struct scheduler *scheduler, struct db *db, struct redis *redis,
                            struct error *err)
{
    struct live_update *updates = xcalloc(UPDATES_MAX, sizeof *updates);
    size_t count = live_take(scheduler->live, updates, UPDATES_MAX);
    int rc = 0;

    for (size_t i = 0; i < count && rc == 0; i++)
        rc = append_update(redis, &updates[i], err);
    if (count > 0 && rc == 0)
        rc = redis_flush(redis, err);
    for (size_t i = 0; i < count; i++) {
        struct error why = ERROR_NONE;
        autofree char *text = json_text(updates[i].json);
        if (updates[i].store &&
            db_exec(db, STORE_PROGRESS, DB_PARAMS(updates[i].job_id, text), NULL, &why) < 0 &&
            rc == 0) {
            *err = why;
            rc = -1;
        }
        json_decref(updates[i].json);
    }
    free(updates);
    return rc;
}

void *publish_main(void *arg)
{
    struct scheduler *scheduler = arg;
    auto_db *db = scheduler_queue_db(scheduler, "scheduler publish");
    struct redis *redis = redis_new(&scheduler->redis);
    struct log_throttle throttle = {0};
    struct history history = {.position = NULL};
    int64_t looked_ms = 0;
    bool more = false;

    for (;;) {
        struct error err = ERROR_NONE;
        struct error other = ERROR_NONE;
        uint64_t held = 0;
        int rc;
        if (!more) {
            wait_tick();
            wait_for_more(&looked_ms);
        }
        more = false;
        rc = publish_progress(scheduler, db, redis, &err);
        if (publish_events(&history, db, redis, &more, &other) < 0 && rc == 0) {
            err = other;
            rc = -1;
        }
        if (rc < 0 && log_throttle_pass(&throttle, err.message, &held))
            LOG(WARN, "publish_failed", F_ERR(&err));
    }
    return NULL;
}
