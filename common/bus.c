/* See bus.h. The traps behind each setting were measured: library notes, section 1.
 *
 * Design notes. A bus_client has one REQ socket for each address (bus_link.h), shared by all its
 * callers; each call has its own context, so calls do not wait for each other. A REP socket has a
 * fixed number of contexts, each with one aio whose callback alternates between "received" and
 * "sent"; the callback only moves the message on. Nothing is ever closed but contexts of finished
 * calls. */
#include "common/bus.h"

#include <nng/nng.h>
#include <nng/protocol/pipeline0/pull.h>
#include <nng/protocol/pipeline0/push.h>
#include <nng/protocol/pubsub0/pub.h>
#include <nng/protocol/pubsub0/sub.h>
#include <nng/protocol/reqrep0/rep.h>
#include <nng/protocol/reqrep0/req.h>
#include <nng/supplemental/tls/tls.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "common/bus_link.h"
#include "common/clock.h"
#include "common/id.h"
#include "common/log.h"
#include "common/metrics.h"

#define BUS_RECONNECT_MIN_MS  100 /* a restarted peer is back within 50 ms */
#define BUS_RECONNECT_MAX_MS  2000
#define BUS_BUFFER_MESSAGES   4096 /* PUB drops at 16 by default: a burst of 20 loses 15 % */
#define BUS_PUSH_BUFFER       128  /* some seconds of progress ticks while the scheduler restarts */
#define BUS_SOCKET_TIMEOUT_MS 30000 /* default is for ever */
#define BUS_CALL_MIN_MS       10
#define BUS_PIPES_REMEMBERED  64

static int bus_fail(struct error *err, int rv, const char *what, const char *address)
{
    enum error_code code = rv == NNG_ETIMEDOUT    ? ERR_TIMEOUT
                           : rv == NNG_EADDRINUSE ? ERR_CONFLICT
                           : rv == NNG_EADDRINVAL || rv == NNG_EINVAL || rv == NNG_ENOTSUP
                               ? ERR_INVALID
                               : ERR_UNAVAILABLE;
    return error_set(err, code, "bus: %s '%s': %s", what, address, nng_strerror(rv));
}

/* ---- messages ---- */

/* Packs straight into an nng message, with an optional topic in front. */
static int to_message(const bus_envelope *envelope, const char *topic, nng_msg **out,
                      struct error *err)
{
    size_t prefix = topic == NULL ? 0 : strlen(topic) + 1; /* topic and its NUL */
    size_t size = hypersdk__v1__envelope__get_packed_size(envelope);
    nng_msg *msg = NULL;

    if (size + prefix > BUS_MESSAGE_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "bus: message of %zu bytes is over %zu", size + prefix,
                         BUS_MESSAGE_BYTES_MAX);
    }
    if (nng_msg_alloc(&msg, size + prefix) != 0)
        abort(); /* out of memory */
    if (prefix > 0)
        memcpy(nng_msg_body(msg), topic, prefix);
    (void)hypersdk__v1__envelope__pack(envelope, (uint8_t *)nng_msg_body(msg) + prefix);
    *out = msg;
    return 0;
}

/* ---- sockets ---- */

static void set_limits(nng_socket socket)
{
    (void)nng_socket_set_size(socket, NNG_OPT_RECVMAXSZ, BUS_MESSAGE_BYTES_MAX);
    (void)nng_socket_set_ms(socket, NNG_OPT_SENDTIMEO, BUS_SOCKET_TIMEOUT_MS);
    (void)nng_socket_set_ms(socket, NNG_OPT_RECVTIMEO, NNG_DURATION_INFINITE);
    (void)nng_socket_set_ms(socket, NNG_OPT_RECONNMINT, BUS_RECONNECT_MIN_MS);
    (void)nng_socket_set_ms(socket, NNG_OPT_RECONNMAXT, BUS_RECONNECT_MAX_MS);
}

static bool is_tls(const char *address)
{
    return strncmp(address, "tls+tcp", 7) == 0;
}

/* Mutual TLS; the server name is never left out, or any certificate of the CA would do. */
static int make_tls(const struct bus_config *config, nng_tls_mode mode, nng_tls_config **out,
                    struct error *err)
{
    nng_tls_config *tls = NULL;
    int rv;

    if (config->tls_ca_file[0] == '\0' || config->tls_cert_key_file[0] == '\0') {
        return error_set(err, ERR_INVALID,
                         "bus: tls+tcp needs bus.tls_ca_file and bus.tls_cert_key_file");
    }
    rv = nng_tls_config_alloc(&tls, mode);
    if (rv == 0)
        rv = nng_tls_config_ca_file(tls, config->tls_ca_file);
    if (rv != 0)
        return bus_fail(err, rv, "tls_ca_file", config->tls_ca_file);
    rv = nng_tls_config_cert_key_file(tls, config->tls_cert_key_file, NULL);
    if (rv != 0)
        return bus_fail(err, rv, "tls_cert_key_file", config->tls_cert_key_file);
    if (mode == NNG_TLS_MODE_CLIENT)
        rv = nng_tls_config_server_name(tls, config->tls_server_name);
    if (rv == 0)
        rv = nng_tls_config_auth_mode(tls, NNG_TLS_AUTH_MODE_REQUIRED);
    if (rv != 0)
        return bus_fail(err, rv, "tls", config->tls_server_name);
    *out = tls;
    return 0;
}

/* keepalive: who only receives does not notice that the other machine is gone */
static void set_keepalive(nng_dialer dialer, const char *address)
{
    if (strncmp(address, "ipc", 3) != 0)
        (void)nng_dialer_set_bool(dialer, NNG_OPT_TCP_KEEPALIVE, true);
}

static int dial(nng_socket socket, const struct bus_config *config, const char *address,
                struct error *err)
{
    nng_dialer dialer;
    nng_tls_config *tls = NULL;
    int rv = nng_dialer_create(&dialer, socket, address);

    if (rv != 0)
        return bus_fail(err, rv, "dial", address);
    if (is_tls(address)) {
        if (make_tls(config, NNG_TLS_MODE_CLIENT, &tls, err) < 0)
            return -1;
        rv = nng_dialer_set_ptr(dialer, NNG_OPT_TLS_CONFIG, tls);
    }
    set_keepalive(dialer, address);
    if (rv == 0)
        rv = nng_dialer_start(dialer, NNG_FLAG_NONBLOCK); /* no start order among services */
    return rv == 0 ? 0 : bus_fail(err, rv, "dial", address);
}

static int dial_all(nng_socket socket, const struct bus_config *config,
                    const struct config_list *addresses, struct error *err)
{
    if (addresses->count == 0)
        return error_set(err, ERR_INVALID, "bus: no address is configured");
    for (size_t i = 0; i < addresses->count; i++) {
        if (dial(socket, config, addresses->items[i], err) < 0)
            return -1;
    }
    return 0;
}

static int listen_on(nng_socket socket, const struct bus_config *config, const char *own,
                     const struct config_list *addresses, struct error *err)
{
    const char *address = own[0] != '\0' ? own : addresses->count > 0 ? addresses->items[0] : "";
    nng_listener listener;
    nng_tls_config *tls = NULL;
    int rv = nng_listener_create(&listener, socket, address);

    if (rv != 0)
        return bus_fail(err, rv, "listen on", address);
    if (is_tls(address)) {
        if (make_tls(config, NNG_TLS_MODE_SERVER, &tls, err) < 0)
            return -1;
        rv = nng_listener_set_ptr(listener, NNG_OPT_TLS_CONFIG, tls);
    }
    if (rv == 0)
        rv = nng_listener_start(listener, 0);
    return rv == 0 ? 0 : bus_fail(err, rv, "listen on", address);
}

/* ---- lease, asking ---- */

struct bus_client {
    struct bus_links *links;
};

static int dial_request(nng_socket socket, const struct bus_config *config, const char *address,
                        struct error *err)
{
    set_limits(socket);
    /* repeats are ours to decide: nng would resend by itself every minute and on reconnect */
    (void)nng_socket_set_ms(socket, NNG_OPT_REQ_RESENDTIME, NNG_DURATION_INFINITE);
    return dial(socket, config, address, err);
}

int bus_client_open(const struct bus_config *config, struct bus_client **out, struct error *err)
{
    static const struct bus_links_description requests = {nng_req0_open, dial_request, "req"};
    autofree struct bus_client *client = xcalloc(1, sizeof *client);

    if (bus_links_open(&requests, config, &config->lease, &client->links, err) < 0)
        return -1;
    *out = STEAL(client);
    return 0;
}

/* Sends and receives on a fresh context; the aio is waited for. Takes the request. */
static int exchange(nng_ctx context, nng_aio *aio, nng_msg *request, int64_t deadline_ms,
                    nng_msg **out)
{
    int64_t left_ms = deadline_ms - clock_mono_ms();
    int rv;

    nng_aio_set_timeout(aio, (nng_duration)(left_ms < BUS_CALL_MIN_MS ? BUS_CALL_MIN_MS : left_ms));
    nng_aio_set_msg(aio, request);
    nng_ctx_send(context, aio);
    nng_aio_wait(aio);
    rv = nng_aio_result(aio);
    if (rv != 0) {
        nng_msg_free(request);
        return rv;
    }
    left_ms = deadline_ms - clock_mono_ms();
    nng_aio_set_timeout(aio, (nng_duration)(left_ms < BUS_CALL_MIN_MS ? BUS_CALL_MIN_MS : left_ms));
    nng_ctx_recv(context, aio);
    nng_aio_wait(aio);
    rv = nng_aio_result(aio);
    if (rv == 0)
        *out = nng_aio_get_msg(aio);
    return rv;
}

/* On the connection to the scheduler that leads. Takes the question. */
static int ask(struct bus_client *client, nng_msg *question, int64_t timeout_ms, nng_msg **out,
               struct error *err)
{
    int64_t deadline_ms = clock_mono_ms() + timeout_ms;
    struct bus_link_call call;
    nng_socket socket;
    nng_ctx context;
    nng_aio *aio = NULL;
    int rv;

    if (nng_aio_alloc(&aio, NULL, NULL) != 0)
        abort(); /* out of memory */
    if (!bus_links_begin(client->links, &call, aio, deadline_ms, &socket)) {
        nng_msg_free(question);
        nng_aio_free(aio);
        return error_set(err, ERR_TIMEOUT, "bus: no scheduler is connected");
    }
    rv = nng_ctx_open(&context, socket);
    if (rv == 0) {
        rv = exchange(context, aio, question, deadline_ms, out);
        (void)nng_ctx_close(context);
    } else {
        nng_msg_free(question);
    }
    bus_links_end(client->links, &call, rv);
    nng_aio_free(aio);
    if (rv != 0 && call.called_off)
        return error_set(err, ERR_UNAVAILABLE, "bus: another scheduler leads now");
    if (rv != 0) {
        return bus_fail(err, rv == NNG_ECONNSHUT || rv == NNG_ECRYPTO ? NNG_ECONNREFUSED : rv,
                        "the scheduler does not answer on", "lease");
    }
    return 0;
}

int bus_client_call(struct bus_client *client, const bus_envelope *request, int64_t timeout_ms,
                    bus_envelope **out, struct error *err)
{
    nng_msg *question = NULL;
    nng_msg *answer = NULL;
    int rc;

    if (to_message(request, NULL, &question, err) < 0 ||
        ask(client, question, timeout_ms, &answer, err) < 0)
        return -1;
    rc = bus_envelope_decode(nng_msg_body(answer), nng_msg_len(answer), out, err);
    nng_msg_free(answer);
    return rc;
}

/* ---- lease, answering ---- */

struct bus_request {
    struct bus_server *server;
    nng_ctx context;
    nng_aio *aio;
    bool replying;
    bus_envelope *envelope;
    atomic_int pipe; /* the connection that it came by; 0: none, or gone */
};

struct bus_server {
    nng_socket socket;
    bus_handler handler;
    void *arg;
    struct bus_request *requests;
    size_t count;
    /* Pipes that ended lately: a request may be received a moment after its pipe ended. */
    pthread_mutex_t mutex; /* guards gone, gone_next */
    int gone[BUS_PIPES_REMEMBERED];
    size_t gone_next;
};

static void receive_next(struct bus_request *request)
{
    request->replying = false;
    nng_aio_set_timeout(request->aio, NNG_DURATION_INFINITE);
    nng_ctx_recv(request->context, request->aio);
}

/* A malformed question gets an answer too, or its sender would wait for its time-out. */
static void refuse(struct bus_request *request, const struct error *why)
{
    bus_envelope reply;
    struct bus_envelope_store store;
    Hypersdk__V1__Ack ack;

    metric_add("hypersdk_bus_refused_total", "", 1);
    LOG(WARN, "bus_message_refused", F_ERR(why));
    bus_envelope_init(&reply, &store, "bus", NULL);
    hypersdk__v1__ack__init(&ack);
    ack.error = (char *)(uintptr_t)why->message;
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_ACK;
    reply.ack = &ack;
    bus_request_reply(request, &reply);
}

static void on_pipe_gone(nng_pipe pipe, nng_pipe_ev event, void *arg)
{
    struct bus_server *server = arg;
    int id = nng_pipe_id(pipe);
    LOCK_SCOPE(&server->mutex);

    (void)event;
    server->gone[server->gone_next++ % BUS_PIPES_REMEMBERED] = id;
    for (size_t i = 0; i < server->count; i++) {
        int expected = id;
        (void)atomic_compare_exchange_strong(&server->requests[i].pipe, &expected, 0);
    }
}

static void note_pipe(struct bus_request *request, nng_msg *msg)
{
    struct bus_server *server = request->server;
    int id = nng_pipe_id(nng_msg_get_pipe(msg));
    LOCK_SCOPE(&server->mutex);

    for (size_t i = 0; i < BUS_PIPES_REMEMBERED; i++) {
        if (server->gone[i] == id)
            id = 0;
    }
    atomic_store(&request->pipe, id < 0 ? 0 : id);
}

bool bus_request_is_orphan(const struct bus_request *request)
{
    return atomic_load(&request->pipe) == 0;
}

static void on_request_aio(void *arg)
{
    struct bus_request *request = arg;
    struct error err = ERROR_NONE;
    int rv = nng_aio_result(request->aio);
    nng_msg *msg;

    if (rv == NNG_ECLOSED)
        return;
    if (request->replying) { /* sent, or the asker is gone: either way the next one */
        if (rv != 0)
            nng_msg_free(nng_aio_get_msg(request->aio));
        receive_next(request);
        return;
    }
    if (rv != 0) {
        receive_next(request);
        return;
    }
    msg = nng_aio_get_msg(request->aio);
    note_pipe(request, msg);
    rv = bus_envelope_decode(nng_msg_body(msg), nng_msg_len(msg), &request->envelope, &err);
    nng_msg_free(msg);
    if (rv < 0) {
        refuse(request, &err);
    } else {
        request->server->handler(request->server->arg, request);
    }
}

int bus_server_open(const struct bus_config *config, size_t contexts, bus_handler handler,
                    void *arg, struct bus_server **out, struct error *err)
{
    struct bus_server *server = xcalloc(1, sizeof *server); /* lives as long as the process */
    int rv = nng_rep0_open(&server->socket);

    if (rv != 0)
        return bus_fail(err, rv, "open", "rep");
    set_limits(server->socket);
    metric_describe("hypersdk_bus_refused_total", "Malformed messages that were received");
    (void)pthread_mutex_init(&server->mutex, NULL);
    server->handler = handler;
    server->arg = arg;
    server->count = contexts;
    server->requests = xcalloc(contexts, sizeof *server->requests);
    for (size_t i = 0; i < contexts; i++) {
        struct bus_request *request = &server->requests[i];
        request->server = server;
        rv = nng_ctx_open(&request->context, server->socket);
        if (rv == 0)
            rv = nng_aio_alloc(&request->aio, on_request_aio, request);
        if (rv != 0)
            return bus_fail(err, rv, "context", "lease");
        receive_next(request);
    }
    rv = nng_pipe_notify(server->socket, NNG_PIPE_EV_REM_POST, on_pipe_gone, server);
    if (rv != 0)
        return bus_fail(err, rv, "watch", "lease");
    if (listen_on(server->socket, config, config->listen_lease, &config->lease, err) < 0)
        return -1;
    *out = server;
    return 0;
}

const bus_envelope *bus_request_envelope(const struct bus_request *request)
{
    return request->envelope;
}

void bus_request_reply(struct bus_request *request, const bus_envelope *reply)
{
    struct error err = ERROR_NONE;
    nng_msg *msg = NULL;

    int rc = to_message(reply, NULL, &msg, &err);

    bus_envelope_free(STEAL(request->envelope)); /* after packing: the reply may point into it */
    if (rc < 0) {
        LOG(ERROR, "bus_reply_failed", F_ERR(&err));
        receive_next(request); /* the asker times out and repeats */
        return;
    }
    request->replying = true;
    nng_aio_set_timeout(request->aio, BUS_SOCKET_TIMEOUT_MS);
    nng_aio_set_msg(request->aio, msg);
    nng_ctx_send(request->context, request->aio);
}

/* ---- events ---- */

struct bus_pusher {
    struct bus_links *links;
};

static int dial_push(nng_socket socket, const struct bus_config *config, const char *address,
                     struct error *err)
{
    set_limits(socket);
    (void)nng_socket_set_int(socket, NNG_OPT_SENDBUF, BUS_PUSH_BUFFER);
    return dial(socket, config, address, err);
}

int bus_pusher_open(const struct bus_config *config, struct bus_pusher **out, struct error *err)
{
    static const struct bus_links_description pushes = {nng_push0_open, dial_push, "push"};
    autofree struct bus_pusher *pusher = xcalloc(1, sizeof *pusher);

    metric_describe("hypersdk_bus_dropped_total", "Messages that had no place in the queue");
    if (bus_links_open(&pushes, config, &config->events, &pusher->links, err) < 0)
        return -1;
    *out = STEAL(pusher);
    return 0;
}

void bus_push(struct bus_pusher *pusher, const bus_envelope *envelope)
{
    struct error err = ERROR_NONE;
    nng_msg *msg = NULL;

    if (to_message(envelope, NULL, &msg, &err) < 0) {
        LOG(ERROR, "bus_push_failed", F_ERR(&err));
        return;
    }
    if (nng_sendmsg(bus_links_current(pusher->links), msg, NNG_FLAG_NONBLOCK) != 0) {
        nng_msg_free(msg);
        metric_add("hypersdk_bus_dropped_total", "", 1);
    }
}

struct bus_puller {
    nng_socket socket;
    void (*fn)(void *arg, const bus_envelope *envelope);
    void *arg;
};

static void log_refused(struct log_throttle *throttle, const struct error *err)
{
    uint64_t suppressed = 0;

    if (log_throttle_pass(throttle, err->message, &suppressed))
        LOG(WARN, "bus_message_refused", F_ERR(err), F_U64("suppressed", suppressed));
}

static void *pull_loop(void *raw)
{
    struct bus_puller *puller = raw;
    struct log_throttle throttle = {0};

    for (;;) {
        struct error err = ERROR_NONE;
        auto_bus_envelope *envelope = NULL;
        nng_msg *msg = NULL;

        if (nng_recvmsg(puller->socket, &msg, 0) != 0)
            continue;
        if (bus_envelope_decode(nng_msg_body(msg), nng_msg_len(msg), &envelope, &err) == 0) {
            puller->fn(puller->arg, envelope);
        } else {
            metric_add("hypersdk_bus_refused_total", "", 1);
            log_refused(&throttle, &err);
        }
        nng_msg_free(msg);
    }
    return NULL;
}

static int start_thread(void *(*fn)(void *), void *arg, struct error *err)
{
    pthread_t thread;
    int rv = pthread_create(&thread, NULL, fn, arg);

    if (rv != 0)
        return error_set_errno(err, rv, "bus: thread");
    (void)pthread_detach(thread);
    return 0;
}

int bus_puller_start(const struct bus_config *config,
                     void (*fn)(void *arg, const bus_envelope *envelope), void *arg,
                     struct error *err)
{
    struct bus_puller *puller = xcalloc(1, sizeof *puller);
    int rv = nng_pull0_open(&puller->socket);

    if (rv != 0)
        return bus_fail(err, rv, "open", "pull");
    set_limits(puller->socket);
    metric_describe("hypersdk_bus_refused_total", "Malformed messages that were received");
    puller->fn = fn;
    puller->arg = arg;
    if (listen_on(puller->socket, config, config->listen_events, &config->events, err) < 0)
        return -1;
    return start_thread(pull_loop, puller, err);
}

/* ---- announcements ---- */

struct bus_publisher {
    nng_socket socket;
    pthread_mutex_t mutex; /* guards sequence, and the order of sends */
    uint64_t sequence;
    char epoch[ID_SIZE];
};

int bus_publisher_open(const struct bus_config *config, struct bus_publisher **out,
                       struct error *err)
{
    struct bus_publisher *publisher = xcalloc(1, sizeof *publisher);
    int rv = nng_pub0_open(&publisher->socket);

    if (rv != 0)
        return bus_fail(err, rv, "open", "pub");
    set_limits(publisher->socket);
    (void)nng_socket_set_int(publisher->socket, NNG_OPT_SENDBUF, BUS_BUFFER_MESSAGES);
    (void)pthread_mutex_init(&publisher->mutex, NULL);
    id_new("pub", publisher->epoch);
    if (listen_on(publisher->socket, config, config->listen_announce, &config->announce, err) < 0)
        return -1;
    *out = publisher;
    return 0;
}

void bus_publish(struct bus_publisher *publisher, const char *topic, bus_envelope *envelope)
{
    struct error err = ERROR_NONE;
    nng_msg *msg = NULL;
    LOCK_SCOPE(&publisher->mutex);

    envelope->sequence = ++publisher->sequence;
    envelope->epoch = publisher->epoch;
    if (to_message(envelope, topic, &msg, &err) < 0) {
        LOG(ERROR, "bus_publish_failed", F_ERR(&err));
        return;
    }
    if (nng_sendmsg(publisher->socket, msg, NNG_FLAG_NONBLOCK) != 0)
        nng_msg_free(msg);
}

struct bus_subscriber {
    nng_socket socket;
    void (*fn)(void *arg, const bus_envelope *envelope);
    void (*gap)(void *arg);
    void *arg;
    char **topics;
    uint64_t sequence; /* of the newest message; 0 = none yet */
    char epoch[ID_SIZE];
};

static bool topic_wanted(const struct bus_subscriber *subscriber, const char *topic)
{
    for (char **t = subscriber->topics; *t != NULL; t++) {
        if (strcmp(*t, topic) == 0)
            return true;
    }
    return false;
}

/* All topics are received, so that every sequence number is seen and a hole is a loss. */
static void take_announcement(struct bus_subscriber *subscriber, const char *body, size_t size,
                              struct error *err)
{
    auto_bus_envelope *envelope = NULL;
    const char *nul = memchr(body, '\0', size);
    bool same_epoch;

    if (nul == NULL) {
        (void)error_set(err, ERR_PROTOCOL, "bus: announcement without topic");
        return;
    }
    if (bus_envelope_decode(nul + 1, size - (size_t)(nul + 1 - body), &envelope, err) < 0)
        return;
    same_epoch = strncmp(subscriber->epoch, envelope->epoch, sizeof subscriber->epoch - 1) == 0;
    if (!same_epoch || envelope->sequence != subscriber->sequence + 1)
        subscriber->gap(subscriber->arg);
    (void)snprintf(subscriber->epoch, sizeof subscriber->epoch, "%s", envelope->epoch);
    subscriber->sequence = envelope->sequence;
    if (topic_wanted(subscriber, body))
        subscriber->fn(subscriber->arg, envelope);
}

static void *subscribe_loop(void *raw)
{
    struct bus_subscriber *subscriber = raw;
    struct log_throttle throttle = {0};

    for (;;) {
        struct error err = ERROR_NONE;
        nng_msg *msg = NULL;

        if (nng_recvmsg(subscriber->socket, &msg, 0) != 0)
            continue;
        take_announcement(subscriber, nng_msg_body(msg), nng_msg_len(msg), &err);
        nng_msg_free(msg);
        if (err.code != ERR_NONE)
            log_refused(&throttle, &err);
    }
    return NULL;
}

int bus_subscriber_start(const struct bus_config *config, const char *const *topics,
                         void (*fn)(void *arg, const bus_envelope *envelope),
                         void (*gap)(void *arg), void *arg, struct error *err)
{
    struct bus_subscriber *subscriber = xcalloc(1, sizeof *subscriber);
    size_t count = 0;
    int rv = nng_sub0_open(&subscriber->socket);

    if (rv != 0)
        return bus_fail(err, rv, "open", "sub");
    set_limits(subscriber->socket);
    (void)nng_socket_set_int(subscriber->socket, NNG_OPT_RECVBUF, BUS_BUFFER_MESSAGES);
    (void)nng_socket_set(subscriber->socket, NNG_OPT_SUB_SUBSCRIBE, "", 0);
    subscriber->fn = fn;
    subscriber->gap = gap;
    subscriber->arg = arg;
    while (topics[count] != NULL)
        count++;
    subscriber->topics = xcalloc(count + 1, sizeof *subscriber->topics);
    for (size_t i = 0; i < count; i++)
        subscriber->topics[i] = xstrdup(topics[i]);
    if (dial_all(subscriber->socket, config, &config->announce, err) < 0)
        return -1;
    return start_thread(subscribe_loop, subscriber, err);
}
