/* Running logs: one thread polls job_logs for everyone who follows a job, each with a cursor of its
 * own, at the pace at which the client reads. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/log.h"
#include "gateway.h"
#include "hub_internal.h"
#include "transport.h"

#define FOLLOWERS_MAX  512
#define POLL_MS        300
#define IDLE_MS        1000 /* nobody follows: how late a new follower may be noticed at worst */
#define PAGE_LINES     500
#define LINE_BYTES_MAX 16384 /* a message has at most 2000 bytes, escaped */

struct follower {
    struct subscriber *subscriber; /* a reference */
    char job_id[LIVE_JOB_ID_SIZE];
    char since[40]; /* "" none */
    char level[16]; /* "" all */
    int64_t cursor; /* last line seen */
    uint32_t tail;
    bool end_with_job;
    bool discarded; /* nobody wants it any more; the feed's lock */
};

struct log_feed {
    struct hub *hub;
    pthread_mutex_t mutex; /* guards the followers; not held over I/O */
    pthread_cond_t changed;
    struct follower *followers[FOLLOWERS_MAX];
    size_t count;
};

/* ---- shape of a line ---- */

static int level_rank(const char *level)
{
    if (strcmp(level, "debug") == 0)
        return 0;
    if (strncmp(level, "warn", 4) == 0)
        return 2;
    return strcmp(level, "error") == 0 ? 3 : 1;
}

bool log_level_passes(const char *level, const char *least)
{
    return least == NULL || level_rank(level) >= level_rank(least);
}

void log_line_text(struct strbuf *out, const char *at, const char *level, const char *phase,
                   const char *message)
{
    strbuf_addf(out, "%s %-5s ", at, level);
    if (phase[0] != '\0')
        strbuf_addf(out, "[%s] ", phase);
    for (; *message != '\0'; message++) {
        if (*message == '\n' || *message == '\r') { /* one line stays one line */
            strbuf_addc(out, ' ');
        } else {
            strbuf_addc(out, *message);
        }
    }
    strbuf_addc(out, '\n');
}

/* columns: id, at, level, phase, message */
static json_t *line_object(const PGresult *rows, int row)
{
    json_t *line = json_object();

    json_set_text(line, "timestamp", db_text(rows, row, 1));
    json_set_text(line, "level", db_text(rows, row, 2));
    json_set_text(line, "message", db_text(rows, row, 4));
    json_set_text(line, "phase", db_text(rows, row, 3));
    (void)json_object_set_new(line, "fields", json_object());
    return line;
}

static void send_event(const struct follower *follower, const PGresult *rows, int row)
{
    auto_json *line = line_object(rows, row);
    auto_live_event *event = NULL;
    struct error err = ERROR_NONE;

    json_set_text(line, "type", "job.log");
    json_set_text(line, "job_id", follower->job_id);
    (void)json_object_set_new(line, "log_id", json_integer(db_i64(rows, row, 0)));
    if (live_event_new(line, &event, &err) == 0)
        subscriber_send(follower->subscriber, event, clock_mono_ms());
}

static void send_line(const struct follower *follower, const PGresult *rows, int row)
{
    auto_strbuf text = {0};

    if (!log_level_passes(db_text(rows, row, 2),
                          follower->level[0] == '\0' ? NULL : follower->level))
        return;
    strbuf_init(&text, LINE_BYTES_MAX);
    switch (follower->subscriber->format) {
    case SUBSCRIBER_WEBSOCKET:
    case SUBSCRIBER_SSE:
        send_event(follower, rows, row);
        return;
    case SUBSCRIBER_NDJSON: {
        auto_json *line = line_object(rows, row);
        autofree char *json = json_text(line);
        strbuf_add(&text, json);
        strbuf_addc(&text, '\n');
        break;
    }
    case SUBSCRIBER_TEXT:
        log_line_text(&text, db_text(rows, row, 1), db_text(rows, row, 2), db_text(rows, row, 3),
                      db_text(rows, row, 4));
        break;
    }
    subscriber_send_bytes(follower->subscriber, text.data, text.length, clock_mono_ms());
}

/* ---- reading ---- */

#define LINE_COLUMNS "id, to_char(at, 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'), level, phase, message"

/* Where to begin: before the last `tail` lines that the filters let through, else at the end. The
 * lines themselves are read page by page, however many there are. */
int log_first_look(struct db *db, const struct log_follow *follow, int64_t *out_cursor,
                   struct error *err)
{
    static const char sql[] = "SELECT coalesce(min(id) - 1,"
                              " (SELECT coalesce(max(id), 0) FROM job_logs WHERE job_id = $1))"
                              " FROM (SELECT id FROM job_logs WHERE job_id = $1"
                              " AND ($2 = '' OR at >= nullif($2, '')::timestamptz)"
                              " AND ($3 = '' OR level = ANY (string_to_array($3, ',')))"
                              " ORDER BY id DESC LIMIT $4::bigint) newest";
    static const char *const levels[] = {"", "info,warn,warning,error", "warn,warning,error",
                                         "error"};
    const char *level = follow->level == NULL ? "" : levels[level_rank(follow->level)];
    const char *since = follow->since == NULL ? "" : follow->since;
    char limit[24];
    auto_pgresult *rows = NULL;

    (void)snprintf(limit, sizeof limit, "%" PRIu32, follow->tail);
    if (db_exec(db, sql, DB_PARAMS(follow->job_id, since, level, limit), &rows, err) < 0)
        return -1;
    *out_cursor = db_i64(rows, 0, 0);
    return 0;
}

static int next_lines(struct db *db, struct follower *follower, int *out_count, struct error *err)
{
    static const char sql[] =
        "SELECT " LINE_COLUMNS " FROM job_logs"
        " WHERE job_id = $1 AND id > $2::bigint ORDER BY id LIMIT $3::integer";
    char cursor[24];
    char limit[16];
    auto_pgresult *rows = NULL;

    (void)snprintf(cursor, sizeof cursor, "%" PRId64, follower->cursor);
    (void)snprintf(limit, sizeof limit, "%d", PAGE_LINES);
    if (db_exec(db, sql, DB_PARAMS(follower->job_id, cursor, limit), &rows, err) < 0)
        return -1;
    *out_count = PQntuples(rows);
    for (int i = 0; i < *out_count; i++) {
        send_line(follower, rows, i);
        follower->cursor = db_i64(rows, i, 0);
    }
    return 0;
}

static int read_status(struct db *db, const char *job_id, char out[24], struct error *err)
{
    static const char sql[] = "SELECT status FROM jobs WHERE id = $1";
    auto_pgresult *rows = NULL;

    if (db_exec(db, sql, DB_PARAMS(job_id), &rows, err) < 0)
        return -1;
    (void)snprintf(out, 24, "%s", PQntuples(rows) == 0 ? "deleted" : db_text(rows, 0, 0));
    return 0;
}

static bool is_final(const char *status)
{
    return strcmp(status, "completed") == 0 || strcmp(status, "failed") == 0 ||
           strcmp(status, "cancelled") == 0 || strcmp(status, "deleted") == 0;
}

static void finish(struct follower *follower, const char *status)
{
    if (follower->subscriber->format == SUBSCRIBER_SSE) {
        autofree char *text =
            xasprintf("event: end\ndata: {\"job_id\":\"%s\",\"status\":\"%s\"}\n\n",
                      follower->job_id, status);
        subscriber_send_bytes(follower->subscriber, text, strlen(text), clock_mono_ms());
    }
    subscriber_end(follower->subscriber, CLOSE_NORMAL, true);
}

/* *done: the follower is not to be looked at again. The status is read before the lines: lines are
 * stored before a job becomes final. */
static int serve(struct db *db, struct follower *follower, bool *done, struct error *err)
{
    char status[24];
    int count = 0;

    *done = subscriber_has_ended(follower->subscriber);
    if (*done || !subscriber_has_room(follower->subscriber))
        return 0;
    if (read_status(db, follower->job_id, status, err) < 0)
        return -1;
    if (follower->cursor == LOG_CURSOR_NONE) {
        const struct log_follow follow = {.job_id = follower->job_id, .tail = follower->tail};
        if (log_first_look(db, &follow, &follower->cursor, err) < 0)
            return -1;
    }
    do {
        if (next_lines(db, follower, &count, err) < 0)
            return -1;
    } while (count == PAGE_LINES && subscriber_has_room(follower->subscriber));
    *done = count < PAGE_LINES && follower->end_with_job && is_final(status);
    if (*done)
        finish(follower, status);
    return 0;
}

/* ---- the thread ---- */

static void follower_free(struct follower *follower)
{
    subscriber_unref(follower->subscriber);
    free(follower);
}

static size_t snapshot(struct log_feed *feed, struct follower **out)
{
    LOCK_SCOPE(&feed->mutex);

    for (size_t i = 0; i < feed->count; i++)
        out[i] = feed->followers[i];
    return feed->count;
}

/* Only this thread frees followers. */
static void discard(struct log_feed *feed, struct follower *follower)
{
    {
        LOCK_SCOPE(&feed->mutex);
        size_t i = 0;
        while (feed->followers[i] != follower)
            i++;
        feed->followers[i] = feed->followers[--feed->count];
    }
    follower_free(follower);
}

static bool is_discarded(struct log_feed *feed, const struct follower *follower)
{
    LOCK_SCOPE(&feed->mutex);
    return follower->discarded;
}

static void wait_for_followers(struct log_feed *feed)
{
    int64_t until_ns = clock_mono_ns();
    struct timespec until;
    LOCK_SCOPE(&feed->mutex);

    until_ns += (feed->count == 0 ? IDLE_MS : POLL_MS) * INT64_C(1000000);
    until.tv_sec = until_ns / 1000000000;
    until.tv_nsec = until_ns % 1000000000;
    (void)pthread_cond_timedwait(&feed->changed, &feed->mutex, &until);
}

/* false: the database is not there, all of them wait. */
static bool serve_one(struct log_feed *feed, struct db *db, struct follower *follower,
                      struct log_throttle *throttle)
{
    struct error err = ERROR_NONE;
    uint64_t suppressed = 0;
    bool done = is_discarded(feed, follower);

    if (!done && serve(db, follower, &done, &err) < 0) {
        if (log_throttle_pass(throttle, err.message, &suppressed))
            LOG(WARN, "live_logs_failed", F_ERR(&err), F_U64("suppressed", suppressed));
        if (error_is_retryable(&err))
            return false;
        done = true; /* this one's fault, not to be repeated for ever */
        subscriber_end(follower->subscriber, CLOSE_TRY_LATER, true);
    }
    if (done)
        discard(feed, follower);
    return true;
}

static void *on_log_thread(void *arg)
{
    struct log_feed *feed = arg;
    struct db *db = gateway_db_new(feed->hub->gateway, "live logs");
    struct follower *followers[FOLLOWERS_MAX];
    struct log_throttle throttle = {0};

    while (!atomic_load(&feed->hub->stop)) {
        size_t count;
        wait_for_followers(feed);
        count = snapshot(feed, followers);
        for (size_t i = 0; i < count && serve_one(feed, db, followers[i], &throttle); i++) {
        }
    }
    return NULL;
}

int log_feed_start(struct hub *hub, struct log_feed **out, struct error *err)
{
    struct log_feed *feed = xcalloc(1, sizeof *feed);
    pthread_condattr_t attributes;
    pthread_t thread;
    int rv;

    *out = feed;
    feed->hub = hub;
    (void)pthread_mutex_init(&feed->mutex, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&feed->changed, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    rv = pthread_create(&thread, NULL, on_log_thread, feed);
    if (rv != 0)
        return error_set_errno(err, rv, "thread of the live logs cannot be started");
    (void)pthread_detach(thread);
    return 0;
}

int log_feed_add(struct log_feed *feed, struct subscriber *subscriber,
                 const struct log_follow *follow, struct error *err)
{
    struct follower *follower;
    LOCK_SCOPE(&feed->mutex);

    if (feed->count == FOLLOWERS_MAX)
        return error_set(err, ERR_UNAVAILABLE, "%d followed logs are the limit", FOLLOWERS_MAX);
    follower = xcalloc(1, sizeof *follower);
    follower->subscriber = subscriber_ref(subscriber);
    follower->cursor = follow->cursor;
    follower->tail = follow->tail;
    follower->end_with_job = follow->end_with_job;
    (void)snprintf(follower->job_id, sizeof follower->job_id, "%s", follow->job_id);
    (void)snprintf(follower->level, sizeof follower->level, "%s",
                   follow->level == NULL ? "" : follow->level);
    feed->followers[feed->count++] = follower;
    (void)pthread_cond_signal(&feed->changed);
    return 0;
}

void log_feed_remove(struct log_feed *feed, const struct subscriber *subscriber, const char *job_id)
{
    LOCK_SCOPE(&feed->mutex);

    for (size_t i = 0; i < feed->count; i++) {
        if (feed->followers[i]->subscriber == subscriber &&
            strcmp(feed->followers[i]->job_id, job_id) == 0)
            feed->followers[i]->discarded = true;
    }
}
