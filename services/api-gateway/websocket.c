/* WebSocket clients: the handshake, and one thread with an epoll loop over all of them.
 *
 * Design notes. Outgoing frames are written from the subscriber's queue, encoded once per event for
 * everybody; wslay reads what clients send and makes pongs and closes, which its send callback
 * appends to the same queue, so that frames never mix. Over the library's own TLS the socket is a
 * pair through another thread, where each frame is dear: there writes are collected for
 * TLS_FLUSH_MS. A connection ends in this thread only. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <wslay/wslay.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/log.h"
#include "handlers.h"
#include "hub_internal.h"
#include "stream.h"

#define MESSAGE_BYTES_MAX   ((size_t)64 * KIB)
#define AUTH_MS             10000 /* a client without identity says who it is, or goes */
#define CLOSE_MS            2000  /* for the other side's close frame */
#define TICK_MS             250
#define TLS_FLUSH_MS        250
#define EVENTS_MAX          64
#define PIECES_MAX          32
#define FLUSH_ROUNDS_MAX    64 /* 2048 items, then the others have their turn */
#define SOCKET_BUFFER_BYTES (128 * 1024)
#define KEY_LENGTH          24
#define ACCEPT_SIZE         29

struct websocket {
    struct websocket *previous;
    struct websocket *next;
    struct websockets *owner;
    struct subscriber *subscriber; /* a reference */
    struct MHD_UpgradeResponseHandle *urh;
    int fd;
    bool secure;
    wslay_event_context_ptr context;
    uint8_t *extra; /* came with the handshake */
    size_t extra_size;
    size_t extra_at;
    bool dirty;     /* something to send; the subscriber's lock */
    uint32_t armed; /* what epoll looks for */
    bool broken;
    bool close_sent;
    int64_t heard_ms;
    int64_t pinged_ms;
    int64_t since_ms;
    int64_t flushed_ms;
    int64_t close_at_ms;
};

struct websockets {
    struct hub *hub;
    pthread_mutex_t mutex;     /* guards arrived */
    struct websocket *arrived; /* handed over by the library's threads */
    struct websocket head;     /* ring; the thread's own */
    int epoll;
    int event;
    atomic_bool poked; /* event is readable already */
};

static void poke(struct websockets *websockets)
{
    static const uint64_t one = 1;

    if (atomic_exchange(&websockets->poked, true))
        return;
    if (write(websockets->event, &one, sizeof one) < 0)
        return; /* full: it is readable already */
}

/* ---- frames from the client ---- */

static ssize_t on_recv(wslay_event_context_ptr context, uint8_t *buf, size_t size, int flags,
                       void *arg)
{
    struct websocket *ws = arg;
    ssize_t n;

    (void)flags;
    if (ws->extra_at < ws->extra_size) {
        size_t take = (size_t)min_u64(size, ws->extra_size - ws->extra_at);
        memcpy(buf, ws->extra + ws->extra_at, take);
        ws->extra_at += take;
        return (ssize_t)take;
    }
    do {
        n = recv(ws->fd, buf, size, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n > 0) {
        ws->heard_ms = clock_mono_ms();
        return n;
    }
    if (n < 0 && errno == EAGAIN) {
        wslay_event_set_error(context, WSLAY_ERR_WOULDBLOCK);
        return -1;
    }
    ws->broken = true;
    wslay_event_set_error(context, WSLAY_ERR_CALLBACK_FAILURE);
    return -1;
}

/* Called by wslay_event_send, which runs under the subscriber's lock. */
static ssize_t on_send(wslay_event_context_ptr context, const uint8_t *data, size_t size, int flags,
                       void *arg)
{
    struct websocket *ws = arg;

    (void)context;
    (void)flags;
    subscriber_queue_bytes(ws->subscriber, data, size);
    return (ssize_t)size;
}

static void reply_error(struct websocket *ws, const struct error *err)
{
    hub_reply(ws->subscriber, json_pack("{s:s, s:s, s:s}", "type", "error", "code",
                                        error_code_name(err->code), "error", err->message));
}

static bool is_authenticated(struct websocket *ws)
{
    LOCK_SCOPE(&ws->subscriber->mutex);
    return ws->subscriber->authenticated;
}

static int follow_logs(struct websocket *ws, const char *topic, bool on, struct error *err)
{
    struct log_feed *logs = ws->owner->hub->logs;
    const struct log_follow follow = {
        .job_id = topic + 5, .tail = LOG_TAIL_DEFAULT, .cursor = LOG_CURSOR_NONE};

    if (strncmp(topic, "logs:", 5) != 0)
        return 0;
    log_feed_remove(logs, ws->subscriber, topic + 5);
    return on ? log_feed_add(logs, ws->subscriber, &follow, err) : 0;
}

static int change_topic(struct websocket *ws, const json_t *topic, bool on, struct error *err)
{
    const char *text = json_string_value(topic);

    if (text == NULL || strlen(text) != json_string_length(topic))
        return error_set(err, ERR_INVALID, "'topics' must be a list of texts");
    {
        LOCK_SCOPE(&ws->subscriber->mutex);
        if (on && subscriber_topic_add(ws->subscriber, text, err) < 0)
            return -1;
        if (!on)
            subscriber_topic_remove(ws->subscriber, text);
    }
    return follow_logs(ws, text, on, err);
}

static int change_topics(struct websocket *ws, const json_t *topics, bool on, struct error *err)
{
    json_t *reply;
    size_t i;
    json_t *topic;

    json_array_foreach(topics, i, topic)
    {
        if (change_topic(ws, topic, on, err) < 0)
            return -1;
    }
    reply = json_pack("{s:s}", "type", on ? "subscribed" : "unsubscribed");
    {
        LOCK_SCOPE(&ws->subscriber->mutex);
        (void)json_object_set_new(reply, "topics", subscriber_topics_json(ws->subscriber));
    }
    hub_reply(ws->subscriber, reply);
    return 0;
}

static int take_subscription(struct websocket *ws, const json_t *message, bool on,
                             struct error *err)
{
    static const char *const keys[] = {"action", "topics", "resume_from", NULL};
    const json_t *topics = json_object_get(message, "topics");
    uint64_t position = UINT64_MAX;

    if (json_check_keys(message, keys, err) < 0 ||
        json_get_u64(message, "resume_from", 0, INT64_MAX, UINT64_MAX, &position, err) < 0)
        return -1;
    if (topics != NULL && !json_is_array(topics))
        return error_set(err, ERR_INVALID, "'topics' must be a list of texts");
    if (topics == NULL && position == UINT64_MAX)
        return error_set(err, ERR_INVALID, "'topics' is missing");
    if (position == UINT64_MAX)
        return change_topics(ws, topics, on, err);
    if (!hub_expect_replay(ws->subscriber))
        return error_set(err, ERR_UNAVAILABLE, "one request at a time: come again");
    if (change_topics(ws, topics, on, err) < 0) {
        hub_forget_replay(ws->subscriber);
        return -1;
    }
    if (!hub_request_replay(ws->owner->hub, ws->subscriber, (int64_t)position))
        return error_set(err, ERR_UNAVAILABLE, "too many clients come back at once: come again");
    return 0;
}

static int take_auth(struct websocket *ws, const json_t *message, struct error *err)
{
    static const char *const keys[] = {"action", "token", NULL};
    const char *token = "";

    if (json_check_keys(message, keys, err) < 0 ||
        json_get_string(message, "token", "", &token, err) < 0)
        return -1;
    if (is_authenticated(ws))
        return error_set(err, ERR_CONFLICT, "this connection is authenticated already");
    if (token[0] == '\0' || strlen(token) >= TOKEN_BYTES_MAX)
        return error_set(err, ERR_INVALID, "'token' is missing");
    if (!hub_request_auth(ws->owner->hub, ws->subscriber, token))
        return error_set(err, ERR_UNAVAILABLE, "one request at a time: come again");
    return 0;
}

static int take_message(struct websocket *ws, const struct wslay_event_on_msg_recv_arg *arg,
                        struct error *err)
{
    auto_json *message = NULL;
    const char *action;

    if (json_parse((const char *)arg->msg, arg->msg_length, MESSAGE_BYTES_MAX, &message, err) < 0)
        return -1;
    action = json_str(message, "action");
    if (strcmp(action, "ping") == 0) {
        hub_reply(ws->subscriber, json_pack("{s:s}", "type", "pong"));
        return 0;
    }
    if (strcmp(action, "auth") == 0)
        return take_auth(ws, message, err);
    if (!is_authenticated(ws))
        return error_set(err, ERR_DENIED, "say who you are first: {\"action\":\"auth\",...}");
    if (strcmp(action, "subscribe") == 0 || strcmp(action, "unsubscribe") == 0)
        return take_subscription(ws, message, action[0] == 's', err);
    return error_set(err, ERR_INVALID, "action must be subscribe, unsubscribe, auth or ping");
}

static void on_message(wslay_event_context_ptr context,
                       const struct wslay_event_on_msg_recv_arg *arg, void *user)
{
    struct websocket *ws = user;
    struct error err = ERROR_NONE;

    (void)context;
    if (wslay_is_ctrl_frame(arg->opcode))
        return;
    if (arg->opcode != WSLAY_TEXT_FRAME) {
        (void)error_set(&err, ERR_INVALID, "text frames only");
    } else if (take_message(ws, arg, &err) == 0) {
        return;
    }
    reply_error(ws, &err);
}

/* ---- one connection ---- */

static void arm(struct websocket *ws, bool writing)
{
    uint32_t wanted = (wslay_event_want_read(ws->context) != 0 ? EPOLLIN | EPOLLRDHUP : 0U) |
                      (writing ? EPOLLOUT : 0U);
    struct epoll_event event = {.events = wanted, .data.ptr = ws};

    if (wanted == ws->armed)
        return;
    ws->armed = wanted;
    if (epoll_ctl(ws->owner->epoll, EPOLL_CTL_MOD, ws->fd, &event) < 0)
        ws->broken = true;
}

/* Control frames that wslay wants to send go to the end of the queue, whole. */
static void collect_control(struct websocket *ws)
{
    LOCK_SCOPE(&ws->subscriber->mutex);

    if (wslay_event_want_write(ws->context) != 0 && wslay_event_send(ws->context) != 0)
        ws->broken = true;
    /* the hub ended it: its last frame is a close */
    if (ws->subscriber->ended && !ws->close_sent) {
        ws->close_sent = true;
        ws->close_at_ms = clock_mono_ms() + CLOSE_MS;
        (void)wslay_event_queue_close(ws->context, (uint16_t)ws->subscriber->close_code, NULL, 0);
        if (wslay_event_send(ws->context) != 0)
            ws->broken = true;
    }
}

/* *more: the socket or the turn is full. */
static ssize_t write_pieces(struct websocket *ws, bool *more)
{
    struct iovec pieces[PIECES_MAX];
    struct msghdr message = {.msg_iov = pieces};
    ssize_t n;
    LOCK_SCOPE(&ws->subscriber->mutex);

    message.msg_iovlen = subscriber_peek(ws->subscriber, pieces, PIECES_MAX);
    *more = message.msg_iovlen > 0;
    if (!*more)
        return 0;
    n = sendmsg(ws->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0)
        subscriber_taken(ws->subscriber, (size_t)n, clock_mono_ms());
    return n;
}

static void flush(struct websocket *ws)
{
    bool more = true;
    int64_t now_ms = clock_mono_ms();

    if (ws->secure && now_ms - ws->flushed_ms < TLS_FLUSH_MS)
        return; /* the tick comes back to it */
    ws->flushed_ms = now_ms;
    {
        LOCK_SCOPE(&ws->subscriber->mutex);
        ws->dirty = false;
    }
    collect_control(ws);
    for (int i = 0; more && i < FLUSH_ROUNDS_MAX && !ws->broken; i++) {
        ssize_t n = write_pieces(ws, &more);
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0 && errno != EINTR)
            ws->broken = true;
    }
    arm(ws, more);
}

static void on_wake(struct subscriber *subscriber)
{
    struct websocket *ws = subscriber->transport;

    if (ws->dirty)
        return;
    ws->dirty = true;
    poke(ws->owner);
}

static void websocket_free(struct websocket *ws)
{
    {
        LOCK_SCOPE(&ws->subscriber->mutex);
        ws->subscriber->wake = NULL;
        ws->subscriber->transport = NULL;
    }
    hub_remove(ws->owner->hub, ws->subscriber);
    ws->previous->next = ws->next;
    ws->next->previous = ws->previous;
    (void)epoll_ctl(ws->owner->epoll, EPOLL_CTL_DEL, ws->fd, NULL);
    (void)MHD_upgrade_action(ws->urh, MHD_UPGRADE_ACTION_CLOSE);
    if (ws->context != NULL)
        wslay_event_context_free(ws->context);
    subscriber_unref(ws->subscriber);
    free(ws->extra);
    free(ws);
}

/* Nothing is left to read or to write: both sides have said good-bye, or one is gone. */
static bool is_over(struct websocket *ws)
{
    bool empty;

    if (ws->broken)
        return true;
    if (ws->close_at_ms != 0 && clock_mono_ms() >= ws->close_at_ms)
        return true;
    {
        LOCK_SCOPE(&ws->subscriber->mutex);
        empty = ws->subscriber->item_count == 0;
    }
    return empty && wslay_event_get_close_received(ws->context) != 0 &&
           wslay_event_want_write(ws->context) == 0;
}

static void serve(struct websocket *ws, bool readable)
{
    if (!ws->broken && readable && wslay_event_want_read(ws->context) != 0 &&
        wslay_event_recv(ws->context) != 0)
        ws->broken = true;
    if (!ws->broken)
        flush(ws);
    if (ws->close_at_ms == 0 && wslay_event_get_close_received(ws->context) != 0)
        ws->close_at_ms = clock_mono_ms() + CLOSE_MS;
    if (is_over(ws))
        websocket_free(ws);
}

/* ---- the thread ---- */

static void adopt(struct websockets *websockets, struct websocket *ws)
{
    static const struct wslay_event_callbacks callbacks = {
        .recv_callback = on_recv,
        .send_callback = on_send,
        .on_msg_recv_callback = on_message,
    };
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = ws};

    ws->armed = event.events;
    ws->next = &websockets->head;
    ws->previous = websockets->head.previous;
    ws->previous->next = ws;
    websockets->head.previous = ws;
    ws->since_ms = ws->heard_ms = ws->pinged_ms = clock_mono_ms();
    ws->broken = wslay_event_context_server_init(&ws->context, &callbacks, ws) != 0 ||
                 epoll_ctl(websockets->epoll, EPOLL_CTL_ADD, ws->fd, &event) < 0;
    if (!ws->broken)
        wslay_event_config_set_max_recv_msg_length(ws->context, MESSAGE_BYTES_MAX);
    {
        LOCK_SCOPE(&ws->subscriber->mutex);
        ws->subscriber->transport = ws;
        ws->subscriber->wake = on_wake;
    }
    if (ws->context == NULL) {
        websocket_free(ws);
    } else {
        serve(ws, ws->extra_size > 0);
    }
}

static void adopt_arrived(struct websockets *websockets)
{
    struct websocket *arrived;

    {
        LOCK_SCOPE(&websockets->mutex);
        arrived = websockets->arrived;
        websockets->arrived = NULL;
    }
    while (arrived != NULL) {
        struct websocket *next = arrived->next;
        adopt(websockets, arrived);
        arrived = next;
    }
}

static bool is_dirty(struct websocket *ws)
{
    LOCK_SCOPE(&ws->subscriber->mutex);
    return ws->dirty;
}

static void serve_dirty(struct websockets *websockets)
{
    struct websocket *next;

    for (struct websocket *ws = websockets->head.next; ws != &websockets->head; ws = next) {
        next = ws->next;
        if (is_dirty(ws))
            serve(ws, false);
    }
}

static void keep_alive(struct websocket *ws, int64_t now_ms)
{
    if (now_ms - ws->heard_ms > HUB_SILENCE_MS) {
        ws->broken = true;
        return;
    }
    if (now_ms - ws->since_ms > AUTH_MS && !is_authenticated(ws))
        subscriber_end(ws->subscriber, CLOSE_POLICY, true);
    if (now_ms - ws->pinged_ms >= HUB_PING_MS && !ws->close_sent) {
        const struct wslay_event_msg ping = {.opcode = WSLAY_PING};
        ws->pinged_ms = now_ms;
        if (wslay_event_queue_msg(ws->context, &ping) != 0)
            ws->broken = true;
    }
}

static void tick(struct websockets *websockets, int64_t now_ms)
{
    struct websocket *next;

    for (struct websocket *ws = websockets->head.next; ws != &websockets->head; ws = next) {
        /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): who was freed is out of the ring */
        next = ws->next;
        keep_alive(ws, now_ms);
        if (ws->broken || ws->close_at_ms != 0 || is_dirty(ws) ||
            wslay_event_want_write(ws->context) != 0)
            serve(ws, false);
    }
}

static void *on_thread(void *arg)
{
    struct websockets *websockets = arg;
    struct epoll_event events[EVENTS_MAX];
    int64_t ticked_ms = clock_mono_ms();

    for (;;) {
        int count = epoll_wait(websockets->epoll, events, EVENTS_MAX, TICK_MS);
        for (int i = 0; i < count; i++) {
            uint64_t ignored;
            if (events[i].data.ptr != NULL) {
                serve(events[i].data.ptr, (events[i].events & ~(uint32_t)EPOLLOUT) != 0);
            } else if (read(websockets->event, &ignored, sizeof ignored) > 0) {
                atomic_store(&websockets->poked, false); /* before anything is looked at */
            }
        }
        adopt_arrived(websockets);
        serve_dirty(websockets);
        if (clock_mono_ms() - ticked_ms >= TICK_MS) {
            ticked_ms = clock_mono_ms();
            tick(websockets, ticked_ms);
        }
    }
    return NULL;
}

int websockets_start(struct hub *hub, struct websockets **out, struct error *err)
{
    struct websockets *websockets = xcalloc(1, sizeof *websockets);
    struct epoll_event event = {.events = EPOLLIN};
    pthread_t thread;
    int rv;

    *out = websockets;
    websockets->hub = hub;
    (void)pthread_mutex_init(&websockets->mutex, NULL);
    websockets->head.next = websockets->head.previous = &websockets->head;
    websockets->epoll = epoll_create1(EPOLL_CLOEXEC);
    websockets->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (websockets->epoll < 0 || websockets->event < 0 ||
        epoll_ctl(websockets->epoll, EPOLL_CTL_ADD, websockets->event, &event) < 0)
        return error_set_errno(err, errno, "epoll of the WebSocket clients");
    rv = pthread_create(&thread, NULL, on_thread, websockets);
    if (rv != 0)
        return error_set_errno(err, rv, "WebSocket thread cannot be started");
    (void)pthread_detach(thread);
    return 0;
}

/* ---- the handshake ---- */

static bool has_token(const char *list, const char *token)
{
    size_t length = strlen(token);

    while (list != NULL && *list != '\0') {
        size_t n;
        list += strspn(list, ", \t");
        n = strcspn(list, ", \t");
        if (n == length && strncasecmp(list, token, length) == 0)
            return true;
        list += n;
    }
    return false;
}

static int accept_text(const char *key, char out[ACCEPT_SIZE], struct error *err)
{
    static const char magic[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; /* RFC 6455 section 1.3 */
    char both[KEY_LENGTH + sizeof magic];
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int size = 0;

    (void)snprintf(both, sizeof both, "%s%s", key, magic);
    if (EVP_Digest(both, strlen(both), digest, &size, EVP_sha1(), NULL) != 1 || size != 20)
        return error_set(err, ERR_INTERNAL, "SHA-1 of the WebSocket key failed");
    (void)EVP_EncodeBlock((unsigned char *)out, digest, 20);
    return 0;
}

static int check_handshake(struct call *call, struct error *err)
{
    const char *key = call_header(call, "Sec-WebSocket-Key");
    const char *version = call_header(call, "Sec-WebSocket-Version");

    if (strcmp(call->method, "GET") != 0 || !has_token(call_header(call, "Upgrade"), "websocket") ||
        !has_token(call_header(call, "Connection"), "upgrade")) {
        call_set_header(call, "Upgrade", "websocket");
        return call_fail(call, 426, NULL, err, ERR_INVALID, "this endpoint speaks WebSocket only");
    }
    if (version == NULL || strcmp(version, "13") != 0) {
        call_set_header(call, "Sec-WebSocket-Version", "13");
        return call_fail(call, 426, NULL, err, ERR_INVALID, "WebSocket version 13 is wanted");
    }
    if (key == NULL || strlen(key) != KEY_LENGTH)
        return error_set(err, ERR_INVALID, "Sec-WebSocket-Key must have %d characters", KEY_LENGTH);
    return 0;
}

int handle_websocket(struct call *call, struct error *err)
{
    char accept[ACCEPT_SIZE];
    struct subscriber *subscriber = NULL;

    if (check_handshake(call, err) < 0 ||
        accept_text(call_header(call, "Sec-WebSocket-Key"), accept, err) < 0 ||
        live_answer_start(call, SUBSCRIBER_WEBSOCKET, &subscriber, err) < 0)
        return -1;
    call_set_header(call, "Sec-WebSocket-Accept", accept);
    call->transport->kind = ANSWER_UPGRADE;
    call->transport->subscriber = subscriber;
    call->status = 101;
    return 0;
}

/* Runs on the library's thread: hands the socket over, nothing else. */
/* NOLINTNEXTLINE(readability-function-size): libmicrohttpd's signature */
static void on_upgrade(void *cls, struct MHD_Connection *connection, void *con_cls,
                       const char *extra, size_t extra_size, MHD_socket fd,
                       struct MHD_UpgradeResponseHandle *urh)
{
    struct subscriber *subscriber = cls; /* the request's; it lives as long as the connection */
    struct websocket *ws = xcalloc(1, sizeof *ws);

    (void)connection;
    (void)con_cls;
    {
        LOCK_SCOPE(&subscriber->mutex);
        subscriber->attached = true;
        ws->owner = subscriber->transport;
    }
    ws->subscriber = subscriber_ref(subscriber);
    ws->secure = ws->owner->hub->gateway->daemon.tls_cert_file[0] != '\0';
    ws->fd = fd;
    ws->urh = urh;
    ws->extra_size = extra_size;
    if (extra_size > 0)
        ws->extra = xmemdup(extra, extra_size);
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    {
        LOCK_SCOPE(&ws->owner->mutex);
        ws->next = ws->owner->arrived;
        ws->owner->arrived = ws;
    }
    poke(ws->owner);
}

struct MHD_Response *websocket_response(struct gateway *gateway, struct subscriber *subscriber,
                                        struct MHD_Connection *connection)
{
    int fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    struct MHD_Response *response = MHD_create_response_for_upgrade(on_upgrade, subscriber);
    int one = 1;
    int buffer = SOCKET_BUFFER_BYTES;

    {
        LOCK_SCOPE(&subscriber->mutex);
        subscriber->transport = gateway->hub->websockets;
    }
    /* small frames would wait 40 ms for the other side's acknowledgement */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    /* or megabytes of old news wait in the kernel, where nothing can be merged */
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    if (response != NULL)
        (void)MHD_add_response_header(response, "Upgrade", "websocket");
    return response;
}
