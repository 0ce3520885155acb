/* What happened, to Redis: history rows in order, each once or again after a restart; the newest
 * progress, one pipeline per tick. Redis may be away: rows wait unpublished, progress is lost. */
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
#include "whole_look.h"

#define TICK_MS       250
#define WHOLE_MS      5000 /* so late a row is found that was committed long after its id was drawn */
#define EVENTS_MAX    500
#define UPDATES_MAX   256
#define ID_DIGITS_MAX 24 /* with what stands around it */

/* Losing either on a crash costs nothing: events are published once more, and a final job keeps
 * what it showed last. */
static const char PUBLISHED[] =
    "WITH off AS (SELECT set_config('synchronous_commit', 'off', true))"
    " UPDATE job_events SET published = true FROM off WHERE NOT published"
    " AND id = ANY ($1::bigint[])";

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

static int publish(struct redis *redis, const char *text, struct error *err)
{
    const char *argv[] = {"PUBLISH", REDIS_CHANNEL_EVENTS, text};

    return redis_append(redis, err, ARRAY_LEN(argv), argv);
}

/* ---- history ---- */

/* Published rows that an old snapshot still sees stay in the index of the unpublished. Most looks
 * start behind them; ids are drawn in another order than commits come, so not right behind, and
 * what is later still is found by the next whole look. */
struct history {
    struct whole_look look;
    int64_t floor;  /* `newest` as it was one or two ticks ago */
    int64_t before; /* as it was at moved_ms */
    int64_t newest; /* that was published */
    int64_t moved_ms;
};

static void published(struct history *history, int64_t newest, int64_t now_ms)
{
    if (newest > history->newest)
        history->newest = newest;
    if (now_ms - history->moved_ms < TICK_MS)
        return;
    history->floor = history->before;
    history->before = history->newest;
    history->moved_ms = now_ms;
}

static int read_events(struct history *history, struct db *db, json_t **out, struct error *err)
{
    int64_t began_ms = clock_mono_ms();
    bool whole = whole_look_is_due(&history->look, began_ms, WHOLE_MS);

    if (job_store_events(db, whole ? 0 : history->floor, true, EVENTS_MAX, out, err) < 0)
        return -1;
    if (whole)
        whole_look_done(&history->look, began_ms, clock_mono_ms());
    return 0;
}

static int publish_events(struct history *history, struct db *db, struct redis *redis,
                          struct error *err)
{
    int64_t newest = 0;
    auto_json *events = NULL;
    auto_strbuf ids;
    json_t *event;
    size_t i;

    strbuf_init(&ids, EVENTS_MAX * ID_DIGITS_MAX);
    if (read_events(history, db, &events, err) < 0)
        return -1;
    if (json_array_size(events) == 0)
        return 0;
    json_array_foreach(events, i, event)
    {
        autofree char *text = json_text(event);
        if (publish(redis, text, err) < 0)
            return -1;
        newest = json_integer_value(json_object_get(event, "seq"));
        strbuf_addf(&ids, "%s%" PRId64, i == 0 ? "{" : ",", newest);
    }
    strbuf_addf(&ids, "}");
    if (redis_flush(redis, err) < 0)
        return -1;
    if (db_exec(db, PUBLISHED, DB_PARAMS(ids.data), NULL, err) < 0)
        return -1;
    published(history, newest, clock_mono_ms());
    return 0;
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
    struct history history = {.floor = 0};

    for (;;) {
        struct error err = ERROR_NONE;
        struct error other = ERROR_NONE;
        uint64_t held = 0;
        int rc;
        wait_tick();
        rc = publish_progress(scheduler, db, redis, &err);
        if (publish_events(&history, db, redis, &other) < 0 && rc == 0) {
            err = other;
            rc = -1;
        }
        if (rc < 0 && log_throttle_pass(&throttle, err.message, &held))
            LOG(WARN, "publish_failed", F_ERR(&err));
    }
    return NULL;
}
