/* One live client: what it wants, and what is waiting to be sent to it. The hub puts events in,
 * the transport (websocket.c or stream.c) takes bytes out.
 *
 * Slow readers: a newer progress of a job replaces the one that still waits. Over
 * SUBSCRIBER_BYTES_HIGH no further progress is queued; whoever stays above it for
 * SUBSCRIBER_SLOW_MS, or passes SUBSCRIBER_BYTES_MAX, is closed ("try again later") and can come
 * back with resume_from. State events are never dropped from a connection that goes on. */
#ifndef GATEWAY_SUBSCRIBER_H
#define GATEWAY_SUBSCRIBER_H

#include <sys/uio.h>

#include "auth.h"
#include "live_event.h"

#define SUBSCRIBER_BYTES_HIGH ((size_t)256 * KIB)
#define SUBSCRIBER_BYTES_MAX  ((size_t)2 * MIB)
#define SUBSCRIBER_SLOW_MS    10000
#define SUBSCRIBER_TOPICS_MAX 64

enum subscriber_format { SUBSCRIBER_WEBSOCKET, SUBSCRIBER_SSE, SUBSCRIBER_NDJSON, SUBSCRIBER_TEXT };

enum subscriber_close { /* also the WebSocket close code */
                        CLOSE_NORMAL = 1000,
                        CLOSE_GOING_AWAY = 1001,
                        CLOSE_POLICY = 1008,
                        CLOSE_TRY_LATER = 1013,
};

struct subscriber_topics {
    bool jobs;
    bool status;
    bool schedules;
    char jobs_of[SUBSCRIBER_TOPICS_MAX][LIVE_JOB_ID_SIZE]; /* "job:<id>" */
    size_t jobs_of_count;
    char logs_of[SUBSCRIBER_TOPICS_MAX][LIVE_JOB_ID_SIZE]; /* "logs:<id>" */
    size_t logs_of_count;
};

struct subscriber_item; /* one thing that waits */

struct subscriber {
    atomic_uint refs;
    enum subscriber_format format;
    struct subscriber *previous; /* hub's list; hub's lock */
    struct subscriber *next;
    char ip[46]; /* of its request; set before it is shared */
    char request_id[ID_SIZE];
    pthread_mutex_t mutex; /* guards everything below */
    struct subscriber_topics topics;
    /* who it is, looked at again while the connection lives */
    bool authenticated;
    bool dev;
    bool may_jobs;
    bool may_status;
    bool may_schedules;
    bool by_session;
    uint8_t token[TOKEN_HASH_BYTES];
    /* what waits */
    struct subscriber_item *items; /* ring */
    size_t item_first;
    size_t item_count;
    size_t item_capacity;
    size_t sent_of_first;
    size_t bytes;
    int64_t high_since_ms; /* 0: not above SUBSCRIBER_BYTES_HIGH */
    /* replay of missed events: live ones wait aside until it is done */
    bool replaying;
    struct live_event **deferred;
    size_t deferred_count;
    bool deferred_overflow;
    bool request_pending; /* auth or replay on its way */
    bool ended;           /* nothing more comes; close when all is sent */
    enum subscriber_close close_code;
    bool attached; /* the connection has taken it over */
    /* Called with the mutex held when there is something to send; cheap, takes no other lock of
     * ours. NULL until attached. */
    void (*wake)(struct subscriber *subscriber);
    void *transport; /* of wake */
};

/* One reference, the caller's. */
struct subscriber *subscriber_new(enum subscriber_format format);
struct subscriber *subscriber_ref(struct subscriber *subscriber);
void subscriber_unref(struct subscriber *subscriber);
DEFINE_AUTO(subscriber, struct subscriber, subscriber_unref)
#define auto_subscriber CLEANUP(subscriber_auto) struct subscriber

/* ---- these take the lock ---- */

/* Queues the event if it is wanted. */
void subscriber_offer(struct subscriber *subscriber, struct live_event *event, int64_t now_ms);
/* A state event out of the past, if wanted, while live ones wait aside. */
void subscriber_replay(struct subscriber *subscriber, struct live_event *event, int64_t now_ms);
/* Lets the live events through that came meanwhile and are not among the replayed ids (rising).
 * false: some were not kept; replay once more from a little before the newest id. */
MUST_CHECK bool subscriber_replay_done(struct subscriber *subscriber, const int64_t *ids,
                                       size_t count, int64_t now_ms);
/* Queues the event whatever the topics say. */
void subscriber_send(struct subscriber *subscriber, struct live_event *event, int64_t now_ms);
/* Queues bytes in the client's own format; never dropped. */
void subscriber_send_bytes(struct subscriber *subscriber, const void *data, size_t size,
                           int64_t now_ms);
/* Ends it: what waits is dropped unless `flush`, what was begun is sent to its end. */
void subscriber_end(struct subscriber *subscriber, enum subscriber_close code, bool flush);
/* Is it to be fed: neither ended nor too far behind? */
bool subscriber_has_room(struct subscriber *subscriber);
bool subscriber_has_ended(struct subscriber *subscriber);
/* Closes the one that has been slow for too long. */
void subscriber_check_slow(struct subscriber *subscriber, int64_t now_ms);

/* ---- these are called with the lock held ---- */

void subscriber_queue_bytes(struct subscriber *subscriber, const void *data, size_t size);
/* The next bytes to send, without taking them; how many vectors. */
size_t subscriber_peek(const struct subscriber *subscriber, struct iovec *out, size_t max);
void subscriber_taken(struct subscriber *subscriber, size_t size, int64_t now_ms);

/* ---- topics ---- */

/* "jobs", "status", "job:<id>", "logs:<id>". ERR_INVALID; ERR_LIMIT: too many; ERR_DENIED: the
 * subscriber's permissions do not cover it. The lock is held. */
MUST_CHECK int subscriber_topic_add(struct subscriber *subscriber, const char *topic,
                                    struct error *err);
void subscriber_topic_remove(struct subscriber *subscriber, const char *topic);
/* Array of the topics as texts. The lock is held. */
json_t *subscriber_topics_json(const struct subscriber *subscriber);
/* Jobs and, if permitted, status. The lock is held. */
void subscriber_topics_default(struct subscriber *subscriber);
/* Takes what an identity may see. The lock is held. */
void subscriber_permit(struct subscriber *subscriber, const struct identity *identity);

#endif
