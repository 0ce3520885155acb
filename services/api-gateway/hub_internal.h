/* Between hub.c, hub_feed.c, log_follow.c, websocket.c and stream.c only. */
#ifndef GATEWAY_HUB_INTERNAL_H
#define GATEWAY_HUB_INTERNAL_H

#include <stdatomic.h>

#include "hub.h"
#include "seen.h"
#include "subscriber.h"

#define HUB_CLIENTS_MAX   1000
#define HUB_ANONYMOUS_MAX 100
#define HUB_FINAL_MAX     256 /* jobs that ended lately: late progress of them is not shown */
#define HUB_REQUESTS_MAX  256
#define HUB_STATUS_MS     5000
#define HUB_PING_MS       25000
#define LOG_TAIL_DEFAULT  200   /* old lines that a new follower of logs:<id> gets */
#define HUB_SILENCE_MS    60000 /* two pings unanswered */

struct websockets;
struct log_feed;

enum hub_request_kind { HUB_AUTH, HUB_REPLAY };

struct hub_request { /* work for the thread with the database connection */
    enum hub_request_kind kind;
    struct subscriber *subscriber; /* a reference */
    char *token;                   /* AUTH; wiped */
    int64_t after;                 /* REPLAY */
    int64_t *replayed;             /* ids, rising */
    size_t replayed_count;
    size_t replayed_capacity;
};

struct hub {
    struct gateway *gateway;
    pthread_mutex_t mutex;  /* guards down to status; taken before a subscriber's */
    struct subscriber head; /* ring; only its links are used */
    size_t count;
    bool draining;
    struct seen seen;
    char finals[HUB_FINAL_MAX][LIVE_JOB_ID_SIZE];
    size_t final_next;
    struct live_event *status; /* the newest, for who comes now */
    int64_t status_ms;
    atomic_bool gap;               /* events may have been missed: look now */
    atomic_bool stop;              /* never set: the threads live as long as the process */
    pthread_mutex_t request_mutex; /* guards the requests */
    pthread_cond_t requested;
    struct hub_request requests[HUB_REQUESTS_MAX];
    size_t request_count;
    struct websockets *websockets;
    struct log_feed *logs;
};

/* ---- hub.c ---- */

/* Takes a reference. ERR_UNAVAILABLE: too many clients, or draining. */
MUST_CHECK int hub_add(struct hub *hub, struct subscriber *subscriber, struct error *err);
void hub_remove(struct hub *hub, struct subscriber *subscriber);
/* Gives the event to everyone who wants it, unless it was given already. */
void hub_publish(struct hub *hub, struct live_event *event);
/* Calls fn for every subscriber; they are referenced, the hub's lock is not held. */
void hub_each(struct hub *hub, void (*fn)(void *arg, struct subscriber *subscriber), void *arg);
bool hub_wants_status(struct hub *hub);
void hub_publish_status(struct hub *hub, struct live_event *status);
/* Hello, and the newest status when wanted. */
void hub_greet(struct hub *hub, struct subscriber *subscriber);
/* An answer to one client. object is taken. */
void hub_reply(struct subscriber *subscriber, json_t *object_taken);
/* Queues the work; false: too much is waiting, or this client's last request is not done yet. */
MUST_CHECK bool hub_request_auth(struct hub *hub, struct subscriber *subscriber, const char *token);
/* A replay has two steps, since a live event between its beginning and the client's first one would
 * come twice: after hub_expect_replay live events wait aside, then the client is added or takes its
 * topics, then hub_request_replay. hub_forget_replay gives up in between. */
MUST_CHECK bool hub_expect_replay(struct subscriber *subscriber);
void hub_forget_replay(struct subscriber *subscriber);
MUST_CHECK bool hub_request_replay(struct hub *hub, struct subscriber *subscriber, int64_t after);

/* ---- hub_feed.c ---- */
MUST_CHECK int hub_feed_start(struct hub *hub, struct error *err);

/* ---- log_follow.c ---- */
MUST_CHECK int log_feed_start(struct hub *hub, struct log_feed **out, struct error *err);
/* Lines of one job to one subscriber. tail old ones first; end_with_job: the subscriber ends when
 * the job is final and all was sent. ERR_UNAVAILABLE: too many. */
struct log_follow {
    const char *job_id;
    const char *since; /* NULL: none */
    const char *level; /* NULL: all */
    uint32_t tail;
    int64_t cursor; /* where to begin, by log_first_look; LOG_CURSOR_NONE: the feed looks itself */
    bool end_with_job;
};
#define LOG_CURSOR_NONE (-1)
/* The id before the last `tail` lines that since and level let through, else of the newest line. */
MUST_CHECK int log_first_look(struct db *db, const struct log_follow *follow, int64_t *out_cursor,
                              struct error *err);
MUST_CHECK int log_feed_add(struct log_feed *feed, struct subscriber *subscriber,
                            const struct log_follow *follow, struct error *err);
void log_feed_remove(struct log_feed *feed, const struct subscriber *subscriber,
                     const char *job_id);

/* ---- stream.c ---- */

/* Ends the stream whose client has left; with comment: sends it a sign of life. */
void stream_keep_alive(struct subscriber *subscriber, bool comment);

/* ---- websocket.c ---- */
MUST_CHECK int websockets_start(struct hub *hub, struct websockets **out, struct error *err);

#endif
