/* See stream.h; also the handlers of GET /events and of followed logs. */
#include "stream.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/parse.h"
#include "handlers.h"
#include "hub_internal.h"

#define BLOCK_BYTES 4096
#define PIECES_MAX  16

struct stream { /* transport of a subscriber */
    struct gateway *gateway;
    struct subscriber *subscriber; /* a reference */
    struct MHD_Connection *connection;
    int fd;
    bool parked; /* the connection is suspended; the subscriber's lock */
};

/* ---- between library and subscriber ---- */

static void on_wake(struct subscriber *subscriber)
{
    struct stream *stream = subscriber->transport;

    if (!stream->parked)
        return;
    stream->parked = false;
    MHD_resume_connection(stream->connection);
}

/* Looking for bytes and going to sleep are one step under the lock, or a wake-up would be lost. */
static ssize_t on_read(void *cls, uint64_t position, char *out, size_t max)
{
    struct stream *stream = cls;
    struct subscriber *subscriber = stream->subscriber;
    struct iovec pieces[PIECES_MAX];
    size_t filled = 0;
    LOCK_SCOPE(&subscriber->mutex);

    (void)position;
    for (size_t i = 0, n = subscriber_peek(subscriber, pieces, PIECES_MAX); i < n && filled < max;
         i++) {
        size_t size = (size_t)min_u64(pieces[i].iov_len, max - filled);
        memcpy(out + filled, pieces[i].iov_base, size);
        filled += size;
    }
    if (filled > 0) {
        subscriber_taken(subscriber, filled, clock_mono_ms());
        return (ssize_t)filled;
    }
    if (subscriber->ended)
        return MHD_CONTENT_READER_END_OF_STREAM;
    stream->parked = true;
    MHD_suspend_connection(stream->connection);
    return 0;
}

static void on_free(void *cls)
{
    struct stream *stream = cls;

    {
        LOCK_SCOPE(&stream->subscriber->mutex);
        stream->subscriber->wake = NULL;
        stream->subscriber->transport = NULL;
    }
    hub_remove(stream->gateway->hub, stream->subscriber);
    subscriber_unref(stream->subscriber);
    free(stream);
}

struct MHD_Response *stream_response(struct gateway *gateway, struct subscriber *subscriber,
                                     struct MHD_Connection *connection)
{
    struct stream *stream = xcalloc(1, sizeof *stream);
    struct MHD_Response *response;

    stream->gateway = gateway;
    stream->subscriber = subscriber_ref(subscriber);
    stream->connection = connection;
    stream->fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    {
        LOCK_SCOPE(&subscriber->mutex);
        subscriber->attached = true;
        subscriber->transport = stream;
        subscriber->wake = on_wake;
    }
    response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES, on_read, stream, on_free);
    if (response == NULL)
        on_free(stream);
    return response;
}

void live_answer_drop(struct gateway *gateway, struct subscriber *subscriber)
{
    bool attached;

    if (subscriber == NULL)
        return;
    {
        LOCK_SCOPE(&subscriber->mutex);
        attached = subscriber->attached;
    }
    if (!attached)
        hub_remove(gateway->hub, subscriber);
    subscriber_unref(subscriber);
}

/* ---- keeping streams alive, and noticing dead ones ---- */

/* A suspended connection is not watched by the library. */
static bool peer_has_left(const struct stream *stream)
{
    char byte;

    return recv(stream->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

void stream_keep_alive(struct subscriber *subscriber, bool comment)
{
    static const char ping[] = ": ping\n\n";
    bool left = false;

    if (subscriber->format == SUBSCRIBER_WEBSOCKET)
        return;
    {
        LOCK_SCOPE(&subscriber->mutex);
        const struct stream *stream = subscriber->transport;
        left = stream != NULL && stream->parked && peer_has_left(stream);
    }
    if (left) {
        subscriber_end(subscriber, CLOSE_NORMAL, false);
    } else if (comment && subscriber->format == SUBSCRIBER_SSE) {
        subscriber_send_bytes(subscriber, ping, sizeof ping - 1, clock_mono_ms());
    }
}

/* ---- starting ---- */

static int take_topics(struct call *call, struct subscriber *subscriber, struct error *err)
{
    const char *text = call_query(call, "topics");
    LOCK_SCOPE(&subscriber->mutex);

    subscriber_permit(subscriber, &call->identity);
    if (text == NULL) {
        subscriber_topics_default(subscriber);
        return 0;
    }
    while (*text != '\0') {
        size_t length = strcspn(text, ",");
        autofree char *topic = xstrndup(text, length);
        if (subscriber_topic_add(subscriber, topic, err) < 0)
            return -1;
        text += length + strspn(text + length, ",");
    }
    return 0;
}

static void take_token(struct call *call, struct subscriber *subscriber)
{
    char cookie[TOKEN_BYTES_MAX];
    const char *token = auth_credential(call, cookie);
    LOCK_SCOPE(&subscriber->mutex);

    if (call->identity.dev || token == NULL)
        return;
    subscriber->by_session = strncmp(token, SESSION_PREFIX, 2) == 0;
    token_hash(token, subscriber->token);
}

/* resume_from of the query, or Last-Event-ID: what an EventSource sends when it comes back. */
static int take_position(const struct call *call, uint64_t *out, struct error *err)
{
    const char *last = call_header(call, "Last-Event-ID");

    *out = UINT64_MAX;
    if (call_query(call, "resume_from") != NULL)
        return call_query_u64(call, "resume_from", 0, INT64_MAX, out, err);
    if (last != NULL && last[0] != '\0')
        return parse_u64("Last-Event-ID", last, 0, INT64_MAX, out, err);
    return 0;
}

static struct subscriber *subscriber_for(const struct call *call, enum subscriber_format format)
{
    struct subscriber *subscriber = subscriber_new(format);

    (void)snprintf(subscriber->ip, sizeof subscriber->ip, "%s", call->ip);
    (void)snprintf(subscriber->request_id, sizeof subscriber->request_id, "%s", call->request_id);
    return subscriber;
}

/* The logs among the topics of the URL. */
static int follow_topics(struct hub *hub, struct subscriber *subscriber, struct error *err)
{
    struct subscriber_topics topics;

    {
        LOCK_SCOPE(&subscriber->mutex);
        topics = subscriber->topics;
    }
    for (size_t i = 0; i < topics.logs_of_count; i++) {
        const struct log_follow follow = {
            .job_id = topics.logs_of[i], .tail = LOG_TAIL_DEFAULT, .cursor = LOG_CURSOR_NONE};
        if (log_feed_add(hub->logs, subscriber, &follow, err) < 0)
            return -1;
    }
    return 0;
}

int live_answer_start(struct call *call, enum subscriber_format format, struct subscriber **out,
                      struct error *err)
{
    static const char *const names[] = {"topics", "resume_from", NULL};
    struct hub *hub = call->gateway->hub;
    auto_subscriber *subscriber = subscriber_for(call, format);
    uint64_t position = UINT64_MAX;

    if (call_check_query(call, names, err) < 0 || take_position(call, &position, err) < 0)
        return -1;
    if (call->identity.username[0] != '\0') {
        if (take_topics(call, subscriber, err) < 0)
            return -1;
        take_token(call, subscriber);
    } else if (call_query(call, "topics") != NULL || position != UINT64_MAX) {
        return error_set(err, ERR_INVALID,
                         "without credentials subscribe after the auth message, not in the URL");
    }
    if (position != UINT64_MAX && !hub_expect_replay(subscriber))
        return error_set(err, ERR_INTERNAL, "a new client has a request under way");
    if (hub_add(hub, subscriber, err) < 0)
        return -1;
    hub_greet(hub, subscriber);
    if (follow_topics(hub, subscriber, err) < 0) {
        hub_remove(hub, subscriber);
        return -1;
    }
    if (position != UINT64_MAX && !hub_request_replay(hub, subscriber, (int64_t)position)) {
        hub_remove(hub, subscriber);
        return error_set(err, ERR_UNAVAILABLE, "too many clients come back at once");
    }
    *out = STEAL(subscriber);
    return 0;
}

static void answer_stream(struct call *call, struct subscriber *subscriber_taken_over)
{
    static const char *const types[] = {
        [SUBSCRIBER_WEBSOCKET] = NULL,
        [SUBSCRIBER_SSE] = "text/event-stream",
        [SUBSCRIBER_NDJSON] = "application/x-ndjson",
        [SUBSCRIBER_TEXT] = "text/plain; charset=utf-8",
    };
    struct call_transport *transport = call->transport;

    assert(subscriber_taken_over != NULL);
    transport->kind = ANSWER_STREAM;
    transport->type = types[subscriber_taken_over->format];
    transport->subscriber = subscriber_taken_over;
    call->status = 200;
    call_set_header(call, "X-Accel-Buffering", "no"); /* proxies must not collect it */
}

static int refuse_head(const struct call *call, struct error *err)
{
    if (strcmp(call->method, "HEAD") == 0)
        return error_set(err, ERR_INVALID, "a stream has no HEAD");
    return 0;
}

int handle_events(struct call *call, struct error *err)
{
    struct subscriber *subscriber = NULL;

    if (refuse_head(call, err) < 0 || live_answer_start(call, SUBSCRIBER_SSE, &subscriber, err) < 0)
        return -1;
    answer_stream(call, subscriber);
    return 0;
}

/* A text that PostgreSQL reads as a time; what it says otherwise is the client's error. */
static int check_since(struct call *call, const char *since, struct error *err)
{
    static const char sql[] = "SELECT $1::timestamptz";
    struct error why = ERROR_NONE;

    if (since == NULL || db_exec(call->db, sql, DB_PARAMS(since), NULL, &why) == 0)
        return 0;
    if (error_is_retryable(&why)) {
        *err = why;
        return -1;
    }
    return error_set(err, ERR_INVALID, "'since' must be an RFC 3339 time");
}

int hub_follow_logs(struct call *call, const struct log_follow_options *options, struct error *err)
{
    static const enum subscriber_format formats[] = {
        [LOG_STREAM_SSE] = SUBSCRIBER_SSE,
        [LOG_STREAM_NDJSON] = SUBSCRIBER_NDJSON,
        [LOG_STREAM_TEXT] = SUBSCRIBER_TEXT,
    };
    struct log_follow follow = {.job_id = options->job_id,
                                .since = options->since,
                                .level = options->level,
                                .tail = options->tail,
                                .end_with_job = true};
    struct hub *hub = call->gateway->hub;
    auto_subscriber *subscriber = subscriber_for(call, formats[options->format]);

    if (refuse_head(call, err) < 0 || check_since(call, options->since, err) < 0 ||
        log_first_look(call->db, &follow, &follow.cursor, err) < 0)
        return -1;
    {
        LOCK_SCOPE(&subscriber->mutex);
        subscriber_permit(subscriber, &call->identity);
    }
    take_token(call, subscriber);
    if (hub_add(hub, subscriber, err) < 0)
        return -1;
    if (log_feed_add(hub->logs, subscriber, &follow, err) < 0) {
        hub_remove(hub, subscriber);
        return -1;
    }
    answer_stream(call, STEAL(subscriber));
    return 0;
}
