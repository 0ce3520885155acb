/* See hub.h. The list of clients and the way of an event to them.
 *
 * Design notes. Threads: "redis" (hub_feed.c: blocks in redis_subscribe), "feed" (hub_feed.c: all
 * that needs the database), "logs" (log_follow.c), "websocket" (websocket.c: epoll over all
 * sockets), and the HTTP library's for streams. Lock order: hub, subscriber. */
#include "hub.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/log.h"
#include "common/metrics.h"
#include "hub_internal.h"

int hub_start(struct gateway *gateway, struct hub **out, struct error *err)
{
    struct hub *hub = xcalloc(1, sizeof *hub);
    pthread_condattr_t attributes;

    *out = hub;
    hub->gateway = gateway;
    (void)pthread_mutex_init(&hub->mutex, NULL);
    (void)pthread_mutex_init(&hub->request_mutex, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&hub->requested, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    hub->head.next = hub->head.previous = &hub->head;
    metric_describe("hypersdk_live_clients", "Connected WebSocket and event-stream clients");
    metric_describe("hypersdk_live_clients_closed_total",
                    "Live clients that were closed, by reason");
    if (websockets_start(hub, &hub->websockets, err) < 0 ||
        log_feed_start(hub, &hub->logs, err) < 0)
        return -1;
    return hub_feed_start(hub, err);
}

/* ---- clients ---- */

static bool is_anonymous(struct subscriber *subscriber)
{
    LOCK_SCOPE(&subscriber->mutex);
    return !subscriber->authenticated;
}

/* Strangers have ten seconds to say who they are; they do not fill the house meanwhile. */
static bool too_many_anonymous(const struct hub *hub)
{
    size_t count = 0;

    for (struct subscriber *s = hub->head.next; s != &hub->head; s = s->next)
        count += is_anonymous(s) ? 1 : 0;
    return count >= HUB_ANONYMOUS_MAX;
}

int hub_add(struct hub *hub, struct subscriber *subscriber, struct error *err)
{
    bool anonymous = is_anonymous(subscriber);
    LOCK_SCOPE(&hub->mutex);

    if (hub->draining)
        return error_set(err, ERR_UNAVAILABLE, "the gateway is shutting down");
    if (!hub->seen.started)
        return error_set(err, ERR_UNAVAILABLE, "no live events yet: the database does not answer");
    if (anonymous && too_many_anonymous(hub))
        return error_set(err, ERR_UNAVAILABLE, "too many clients without identity");
    if (hub->count >= HUB_CLIENTS_MAX)
        return error_set(err, ERR_UNAVAILABLE, "%d live clients are the limit", HUB_CLIENTS_MAX);
    (void)subscriber_ref(subscriber);
    subscriber->next = &hub->head;
    subscriber->previous = hub->head.previous;
    subscriber->previous->next = subscriber;
    hub->head.previous = subscriber;
    hub->count++;
    metric_set("hypersdk_live_clients", "", (double)hub->count);
    return 0;
}

void hub_remove(struct hub *hub, struct subscriber *subscriber)
{
    {
        LOCK_SCOPE(&hub->mutex);
        if (subscriber->next == NULL)
            return;
        subscriber->previous->next = subscriber->next;
        subscriber->next->previous = subscriber->previous;
        subscriber->next = subscriber->previous = NULL;
        hub->count--;
        metric_set("hypersdk_live_clients", "", (double)hub->count);
    }
    subscriber_end(subscriber, CLOSE_NORMAL, false);
    subscriber_unref(subscriber);
}

void hub_each(struct hub *hub, void (*fn)(void *arg, struct subscriber *subscriber), void *arg)
{
    struct subscriber *all[HUB_CLIENTS_MAX];
    size_t count = 0;

    {
        LOCK_SCOPE(&hub->mutex);
        for (struct subscriber *s = hub->head.next; s != &hub->head; s = s->next)
            all[count++] = subscriber_ref(s);
    }
    for (size_t i = 0; i < count; i++) {
        fn(arg, all[i]);
        subscriber_unref(all[i]);
    }
}

static void say_goodbye(void *arg, struct subscriber *subscriber)
{
    (void)arg;
    subscriber_end(subscriber, CLOSE_GOING_AWAY, true);
}

void hub_drain(struct hub *hub)
{
    {
        LOCK_SCOPE(&hub->mutex);
        hub->draining = true;
    }
    hub_each(hub, say_goodbye, NULL);
}

/* ---- events ---- */

/* Progress and state travel on different ways: a value from before the end must not be shown after
 * it. A job that is retried is alive again with its next state event. */
static bool is_late(struct hub *hub, const struct live_event *event)
{
    const char *job = live_event_job(event);
    size_t i = 0;

    while (i < HUB_FINAL_MAX && strcmp(hub->finals[i], job) != 0)
        i++;
    if (live_event_kind(event) == LIVE_PROGRESS)
        return i < HUB_FINAL_MAX && job[0] != '\0';
    if (live_event_is_final(event) && i == HUB_FINAL_MAX) {
        (void)snprintf(hub->finals[hub->final_next], LIVE_JOB_ID_SIZE, "%s", job);
        hub->final_next = (hub->final_next + 1) % HUB_FINAL_MAX;
    } else if (!live_event_is_final(event) && i < HUB_FINAL_MAX) {
        hub->finals[i][0] = '\0';
    }
    return false;
}

void hub_publish(struct hub *hub, struct live_event *event)
{
    int64_t now_ms = clock_mono_ms();
    enum live_kind kind = live_event_kind(event);
    LOCK_SCOPE(&hub->mutex);

    if (kind == LIVE_STATE && !seen_add(&hub->seen, live_event_seq(event), now_ms))
        return;
    if (kind != LIVE_OTHER && is_late(hub, event))
        return;
    for (struct subscriber *s = hub->head.next; s != &hub->head; s = s->next)
        subscriber_offer(s, event, now_ms);
}

static bool wants_status(struct subscriber *subscriber)
{
    LOCK_SCOPE(&subscriber->mutex);
    return subscriber->topics.status && !subscriber->ended;
}

bool hub_wants_status(struct hub *hub)
{
    bool wanted = false;
    LOCK_SCOPE(&hub->mutex);

    for (struct subscriber *s = hub->head.next; s != &hub->head && !wanted; s = s->next)
        wanted = wants_status(s);
    return wanted;
}

void hub_publish_status(struct hub *hub, struct live_event *status)
{
    { /* before it is published: a client that comes in between gets it twice, not never */
        LOCK_SCOPE(&hub->mutex);
        live_event_unref(hub->status);
        hub->status = live_event_ref(status);
        hub->status_ms = clock_mono_ms();
    }
    hub_publish(hub, status);
}

/* ---- to one client ---- */

void hub_reply(struct subscriber *subscriber, json_t *object_taken)
{
    auto_json *object = object_taken;
    auto_live_event *event = NULL;
    struct error err = ERROR_NONE;
    char now[CLOCK_RFC3339_SIZE];

    clock_rfc3339_now(now);
    json_set_text(object, "timestamp", now);
    if (live_event_new(object, &event, &err) < 0) {
        LOG(WARN, "live_reply_failed", F_ERR(&err));
    } else {
        subscriber_send(subscriber, event, clock_mono_ms());
    }
}

static struct live_event *fresh_status(struct hub *hub)
{
    LOCK_SCOPE(&hub->mutex);

    if (hub->status == NULL || clock_mono_ms() - hub->status_ms > 2 * HUB_STATUS_MS)
        return NULL;
    return live_event_ref(hub->status);
}

static int64_t newest_seq(struct hub *hub)
{
    LOCK_SCOPE(&hub->mutex);
    return hub->seen.newest;
}

void hub_greet(struct hub *hub, struct subscriber *subscriber)
{
    auto_live_event *status = fresh_status(hub);
    bool authenticated;
    json_t *hello =
        json_pack("{s:s, s:s, s:I, s:b}", "type", "hello", "version", HYPERSDK_VERSION, "seq",
                  (json_int_t)newest_seq(hub), "dev_mode", hub->gateway->daemon.dev_mode ? 1 : 0);

    {
        LOCK_SCOPE(&subscriber->mutex);
        authenticated = subscriber->authenticated;
        (void)json_object_set_new(hello, "subscription", subscriber_topics_json(subscriber));
    }
    (void)json_object_set_new(hello, "authenticated", json_boolean(authenticated));
    hub_reply(subscriber, hello);
    if (status != NULL)
        subscriber_offer(subscriber, status, clock_mono_ms());
}

/* ---- work for the database thread ---- */

static bool request(struct hub *hub, const struct hub_request *wanted)
{
    LOCK_SCOPE(&hub->request_mutex);

    if (hub->request_count == HUB_REQUESTS_MAX)
        return false;
    hub->requests[hub->request_count++] = *wanted;
    (void)pthread_cond_signal(&hub->requested);
    return true;
}

static bool claim(struct subscriber *subscriber, bool replaying)
{
    LOCK_SCOPE(&subscriber->mutex);

    if (subscriber->request_pending)
        return false;
    subscriber->request_pending = true;
    subscriber->replaying = replaying;
    return true;
}

static void unclaim(struct subscriber *subscriber)
{
    LOCK_SCOPE(&subscriber->mutex);
    subscriber->request_pending = false;
    subscriber->replaying = false;
}

bool hub_request_auth(struct hub *hub, struct subscriber *subscriber, const char *token)
{
    struct hub_request wanted = {.kind = HUB_AUTH, .subscriber = subscriber};

    if (!claim(subscriber, false))
        return false;
    wanted.token = xstrdup(token);
    (void)subscriber_ref(subscriber);
    if (request(hub, &wanted))
        return true;
    secret_free(wanted.token);
    unclaim(subscriber);
    subscriber_unref(subscriber);
    return false;
}

bool hub_expect_replay(struct subscriber *subscriber)
{
    return claim(subscriber, true);
}

void hub_forget_replay(struct subscriber *subscriber)
{
    if (!subscriber_replay_done(subscriber, NULL, 0, clock_mono_ms())) /* more than it could keep */
        subscriber_end(subscriber, CLOSE_TRY_LATER, true);
    unclaim(subscriber);
}

bool hub_request_replay(struct hub *hub, struct subscriber *subscriber, int64_t after)
{
    struct hub_request wanted = {.kind = HUB_REPLAY, .subscriber = subscriber, .after = after};

    (void)subscriber_ref(subscriber);
    if (request(hub, &wanted))
        return true;
    hub_forget_replay(subscriber);
    subscriber_unref(subscriber);
    return false;
}
