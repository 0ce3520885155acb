/* See subscriber.h. */
#include "subscriber.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/metrics.h"

#define DEFERRED_MAX 1024

struct subscriber_item {
    struct live_event *event; /* or */
    uint8_t *bytes;
    size_t size;
};

struct subscriber *subscriber_new(enum subscriber_format format)
{
    struct subscriber *subscriber = xcalloc(1, sizeof *subscriber);

    atomic_init(&subscriber->refs, 1);
    subscriber->format = format;
    (void)pthread_mutex_init(&subscriber->mutex, NULL);
    return subscriber;
}

struct subscriber *subscriber_ref(struct subscriber *subscriber)
{
    (void)atomic_fetch_add(&subscriber->refs, 1);
    return subscriber;
}

static void item_release(struct subscriber_item *item)
{
    live_event_unref(item->event);
    free(item->bytes);
    *item = (struct subscriber_item){0};
}

static struct subscriber_item *item_at(const struct subscriber *subscriber, size_t i)
{
    return &subscriber->items[(subscriber->item_first + i) % subscriber->item_capacity];
}

static void drop_deferred(struct subscriber *subscriber)
{
    for (size_t i = 0; i < subscriber->deferred_count; i++)
        live_event_unref(subscriber->deferred[i]);
    free(subscriber->deferred);
    subscriber->deferred = NULL;
    subscriber->deferred_count = 0;
}

void subscriber_unref(struct subscriber *subscriber)
{
    if (atomic_fetch_sub(&subscriber->refs, 1) != 1)
        return;
    for (size_t i = 0; i < subscriber->item_count; i++)
        item_release(item_at(subscriber, i));
    free(subscriber->items);
    drop_deferred(subscriber);
    (void)pthread_mutex_destroy(&subscriber->mutex);
    free(subscriber);
}

/* ---- the queue ---- */

static const void *item_data(const struct subscriber *subscriber,
                             const struct subscriber_item *item, size_t *size)
{
    if (item->event == NULL) {
        *size = item->size;
        return item->bytes;
    }
    return subscriber->format == SUBSCRIBER_WEBSOCKET ? live_event_frame(item->event, size)
                                                      : live_event_sse(item->event, size);
}

static size_t item_size(const struct subscriber *subscriber, const struct subscriber_item *item)
{
    size_t size;

    (void)item_data(subscriber, item, &size);
    return size;
}

static void grow(struct subscriber *subscriber)
{
    size_t capacity = subscriber->item_capacity == 0 ? 16 : subscriber->item_capacity * 2;
    struct subscriber_item *items = xcalloc(capacity, sizeof *items);

    for (size_t i = 0; i < subscriber->item_count; i++)
        items[i] = *item_at(subscriber, i);
    free(subscriber->items);
    subscriber->items = items;
    subscriber->item_first = 0;
    subscriber->item_capacity = capacity;
}

static void push(struct subscriber *subscriber, struct subscriber_item item)
{
    if (subscriber->item_count == subscriber->item_capacity)
        grow(subscriber);
    *item_at(subscriber, subscriber->item_count++) = item;
    subscriber->bytes += item_size(subscriber, &item);
}

static void wake(struct subscriber *subscriber)
{
    if (subscriber->wake != NULL)
        subscriber->wake(subscriber);
}

void subscriber_queue_bytes(struct subscriber *subscriber, const void *data, size_t size)
{
    if (size > 0)
        push(subscriber, (struct subscriber_item){.bytes = xmemdup(data, size), .size = size});
}

size_t subscriber_peek(const struct subscriber *subscriber, struct iovec *out, size_t max)
{
    size_t n = 0;

    for (; n < max && n < subscriber->item_count; n++) {
        size_t size;
        const uint8_t *data = item_data(subscriber, item_at(subscriber, n), &size);
        size_t skip = n == 0 ? subscriber->sent_of_first : 0;
        data += skip;
        memcpy(&out[n].iov_base, &data, sizeof data); /* iovec has no const form */
        out[n].iov_len = size - skip;
    }
    return n;
}

void subscriber_taken(struct subscriber *subscriber, size_t size, int64_t now_ms)
{
    assert(size <= subscriber->bytes);
    subscriber->bytes -= size;
    while (size > 0) {
        struct subscriber_item *first = item_at(subscriber, 0);
        size_t left = item_size(subscriber, first) - subscriber->sent_of_first;
        if (size < left) {
            subscriber->sent_of_first += size;
            break;
        }
        size -= left;
        item_release(first);
        subscriber->sent_of_first = 0;
        subscriber->item_first = (subscriber->item_first + 1) % subscriber->item_capacity;
        subscriber->item_count--;
    }
    if (subscriber->bytes <= SUBSCRIBER_BYTES_HIGH) {
        subscriber->high_since_ms = 0;
    } else if (subscriber->high_since_ms == 0) {
        subscriber->high_since_ms = now_ms;
    }
}

/* Everything but what was begun. */
static void drop_waiting(struct subscriber *subscriber)
{
    size_t keep = subscriber->sent_of_first > 0 ? 1 : 0;

    while (subscriber->item_count > keep) {
        struct subscriber_item *last = item_at(subscriber, --subscriber->item_count);
        subscriber->bytes -= item_size(subscriber, last);
        item_release(last);
    }
    drop_deferred(subscriber);
}

static void end(struct subscriber *subscriber, enum subscriber_close code, bool flush)
{
    if (subscriber->ended)
        return;
    if (!flush)
        drop_waiting(subscriber);
    subscriber->ended = true;
    subscriber->close_code = code;
    wake(subscriber);
}

/* ---- the slow reader rule ---- */

static void after_push(struct subscriber *subscriber, int64_t now_ms)
{
    if (subscriber->bytes > SUBSCRIBER_BYTES_HIGH && subscriber->high_since_ms == 0)
        subscriber->high_since_ms = now_ms;
    if (subscriber->bytes > SUBSCRIBER_BYTES_MAX) {
        metric_add("hypersdk_live_clients_closed_total", "reason=\"slow\"", 1);
        end(subscriber, CLOSE_TRY_LATER, false);
        return;
    }
    wake(subscriber);
}

/* Puts a newer value in the place of the waiting older one of the same kind and job. */
static bool replace(struct subscriber *subscriber, struct live_event *event)
{
    for (size_t i = subscriber->item_count; i-- > 0;) {
        struct subscriber_item *item = item_at(subscriber, i);
        if (item->event == NULL || live_event_kind(item->event) != live_event_kind(event) ||
            strcmp(live_event_job(item->event), live_event_job(event)) != 0)
            continue;
        if (i == 0 && subscriber->sent_of_first > 0)
            return false; /* half of it is out already */
        subscriber->bytes -= item_size(subscriber, item);
        live_event_unref(item->event);
        item->event = live_event_ref(event);
        subscriber->bytes += item_size(subscriber, item);
        return true;
    }
    return false;
}

static void queue(struct subscriber *subscriber, struct live_event *event, int64_t now_ms)
{
    enum live_kind kind = live_event_kind(event);
    bool replaceable = kind == LIVE_PROGRESS || kind == LIVE_STATUS;

    if (replaceable && (replace(subscriber, event) || subscriber->bytes > SUBSCRIBER_BYTES_HIGH))
        return;
    push(subscriber, (struct subscriber_item){.event = live_event_ref(event)});
    after_push(subscriber, now_ms);
}

static void defer(struct subscriber *subscriber, struct live_event *event)
{
    if (subscriber->deferred_count == DEFERRED_MAX) {
        subscriber->deferred_overflow = true; /* the replay reads them from the database */
        return;
    }
    if (subscriber->deferred == NULL)
        subscriber->deferred = xcalloc(DEFERRED_MAX, sizeof(struct live_event *));
    subscriber->deferred[subscriber->deferred_count++] = live_event_ref(event);
}

static bool wants(const struct subscriber *subscriber, const struct live_event *event)
{
    const struct subscriber_topics *topics = &subscriber->topics;

    if (!subscriber->authenticated || subscriber->ended)
        return false;
    if (live_event_kind(event) == LIVE_STATUS)
        return topics->status;
    if (live_event_is_schedule(event))
        return topics->schedules;
    if (topics->jobs)
        return true;
    for (size_t i = 0; i < topics->jobs_of_count; i++) {
        if (strcmp(topics->jobs_of[i], live_event_job(event)) == 0)
            return true;
    }
    return false;
}

void subscriber_offer(struct subscriber *subscriber, struct live_event *event, int64_t now_ms)
{
    LOCK_SCOPE(&subscriber->mutex);

    if (!wants(subscriber, event))
        return;
    if (subscriber->replaying && live_event_kind(event) == LIVE_STATE) {
        defer(subscriber, event);
    } else {
        queue(subscriber, event, now_ms);
    }
}

void subscriber_replay(struct subscriber *subscriber, struct live_event *event, int64_t now_ms)
{
    LOCK_SCOPE(&subscriber->mutex);

    if (wants(subscriber, event))
        queue(subscriber, event, now_ms);
}

static int compare_ids(const void *a, const void *b)
{
    const int64_t *x = a;
    const int64_t *y = b;

    return (*x > *y) - (*x < *y);
}

bool subscriber_replay_done(struct subscriber *subscriber, const int64_t *ids, size_t count,
                            int64_t now_ms)
{
    LOCK_SCOPE(&subscriber->mutex);

    if (subscriber->deferred_overflow) {
        drop_deferred(subscriber);
        subscriber->deferred_overflow = false;
        return false;
    }
    for (size_t i = 0; i < subscriber->deferred_count; i++) {
        int64_t seq = live_event_seq(subscriber->deferred[i]);
        if (count == 0 || bsearch(&seq, ids, count, sizeof *ids, compare_ids) == NULL)
            queue(subscriber, subscriber->deferred[i], now_ms);
    }
    drop_deferred(subscriber);
    subscriber->replaying = false;
    return true;
}

void subscriber_send(struct subscriber *subscriber, struct live_event *event, int64_t now_ms)
{
    LOCK_SCOPE(&subscriber->mutex);

    if (!subscriber->ended)
        queue(subscriber, event, now_ms);
}

void subscriber_send_bytes(struct subscriber *subscriber, const void *data, size_t size,
                           int64_t now_ms)
{
    LOCK_SCOPE(&subscriber->mutex);

    if (subscriber->ended || size == 0)
        return;
    subscriber_queue_bytes(subscriber, data, size);
    after_push(subscriber, now_ms);
}

void subscriber_end(struct subscriber *subscriber, enum subscriber_close code, bool flush)
{
    LOCK_SCOPE(&subscriber->mutex);
    end(subscriber, code, flush);
}

bool subscriber_has_room(struct subscriber *subscriber)
{
    LOCK_SCOPE(&subscriber->mutex);
    return !subscriber->ended && subscriber->bytes < SUBSCRIBER_BYTES_HIGH / 4;
}

bool subscriber_has_ended(struct subscriber *subscriber)
{
    LOCK_SCOPE(&subscriber->mutex);
    return subscriber->ended;
}

void subscriber_check_slow(struct subscriber *subscriber, int64_t now_ms)
{
    LOCK_SCOPE(&subscriber->mutex);

    if (subscriber->ended || subscriber->high_since_ms == 0 ||
        now_ms - subscriber->high_since_ms < SUBSCRIBER_SLOW_MS)
        return;
    metric_add("hypersdk_live_clients_closed_total", "reason=\"slow\"", 1);
    end(subscriber, CLOSE_TRY_LATER, false);
}

/* ---- topics ---- */

static bool is_job_id(const char *text)
{
    size_t length = strlen(text);

    return length > 0 && length < LIVE_JOB_ID_SIZE &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-") ==
               length;
}

static int add_id(char (*ids)[LIVE_JOB_ID_SIZE], size_t *count, const char *id, struct error *err)
{
    if (!is_job_id(id))
        return error_set(err, ERR_INVALID, "topic with a malformed job id");
    for (size_t i = 0; i < *count; i++) {
        if (strcmp(ids[i], id) == 0)
            return 0;
    }
    if (*count == SUBSCRIBER_TOPICS_MAX)
        return error_set(err, ERR_LIMIT, "more than %d topics", SUBSCRIBER_TOPICS_MAX);
    (void)snprintf(ids[(*count)++], LIVE_JOB_ID_SIZE, "%s", id);
    return 0;
}

static void remove_id(char (*ids)[LIVE_JOB_ID_SIZE], size_t *count, const char *id)
{
    for (size_t i = 0; i < *count; i++) {
        if (strcmp(ids[i], id) == 0) {
            --*count;
            memmove(ids[i], ids[*count], LIVE_JOB_ID_SIZE);
            return;
        }
    }
}

int subscriber_topic_add(struct subscriber *subscriber, const char *topic, struct error *err)
{
    struct subscriber_topics *topics = &subscriber->topics;

    if (strcmp(topic, "status") == 0) {
        if (!subscriber->may_status)
            return error_set(err, ERR_DENIED, "permission 'status.view' is missing");
        topics->status = true;
        return 0;
    }
    if (strcmp(topic, "schedules") == 0) {
        if (!subscriber->may_schedules)
            return error_set(err, ERR_DENIED, "permission 'schedule.view' is missing");
        topics->schedules = true;
        return 0;
    }
    if (!subscriber->may_jobs)
        return error_set(err, ERR_DENIED, "permission 'job.view' is missing");
    if (strcmp(topic, "jobs") == 0) {
        topics->jobs = true;
    } else if (strncmp(topic, "job:", 4) == 0) {
        return add_id(topics->jobs_of, &topics->jobs_of_count, topic + 4, err);
    } else if (strncmp(topic, "logs:", 5) == 0) {
        return add_id(topics->logs_of, &topics->logs_of_count, topic + 5, err);
    } else {
        return error_set(err, ERR_INVALID,
                         "topic '%.64s' is not jobs, schedules, status, job:<id> or logs:<id>",
                         topic);
    }
    return 0;
}

void subscriber_topic_remove(struct subscriber *subscriber, const char *topic)
{
    struct subscriber_topics *topics = &subscriber->topics;

    if (strcmp(topic, "status") == 0) {
        topics->status = false;
    } else if (strcmp(topic, "schedules") == 0) {
        topics->schedules = false;
    } else if (strcmp(topic, "jobs") == 0) {
        topics->jobs = false;
    } else if (strncmp(topic, "job:", 4) == 0) {
        remove_id(topics->jobs_of, &topics->jobs_of_count, topic + 4);
    } else if (strncmp(topic, "logs:", 5) == 0) {
        remove_id(topics->logs_of, &topics->logs_of_count, topic + 5);
    }
}

static void add_topics(json_t *list, const char *prefix, const char (*ids)[LIVE_JOB_ID_SIZE],
                       size_t count)
{
    for (size_t i = 0; i < count; i++) {
        autofree char *topic = xasprintf("%s%s", prefix, ids[i]);
        (void)json_array_append_new(list, json_string(topic));
    }
}

json_t *subscriber_topics_json(const struct subscriber *subscriber)
{
    const struct subscriber_topics *topics = &subscriber->topics;
    json_t *list = json_array();

    if (topics->jobs)
        (void)json_array_append_new(list, json_string("jobs"));
    if (topics->status)
        (void)json_array_append_new(list, json_string("status"));
    if (topics->schedules)
        (void)json_array_append_new(list, json_string("schedules"));
    add_topics(list, "job:", topics->jobs_of, topics->jobs_of_count);
    add_topics(list, "logs:", topics->logs_of, topics->logs_of_count);
    return list;
}

void subscriber_topics_default(struct subscriber *subscriber)
{
    subscriber->topics.jobs = subscriber->may_jobs;
    subscriber->topics.status = subscriber->may_status;
}

void subscriber_permit(struct subscriber *subscriber, const struct identity *identity)
{
    subscriber->authenticated = true;
    subscriber->dev = identity->dev;
    subscriber->may_jobs = identity_may(identity, "job.view");
    subscriber->may_status = identity_may(identity, "status.view");
    subscriber->may_schedules = identity_may(identity, "schedule.view");
    if (!subscriber->may_status)
        subscriber->topics.status = false;
    if (!subscriber->may_schedules)
        subscriber->topics.schedules = false;
    if (!subscriber->may_jobs) {
        subscriber->topics = (struct subscriber_topics){.status = subscriber->topics.status,
                                                        .schedules = subscriber->topics.schedules};
    }
}
