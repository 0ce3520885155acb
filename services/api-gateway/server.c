/* See server.h.
 *
 * Design notes. One request passes: on_request (first call: checks of the header) -> on_request
 * (body pieces) -> on_request (last call: route found, connection suspended, work queued) -> a pool
 * thread runs dispatch_run and resumes the connection -> on_request (answer queued). A request that
 * is refused by its header skips the body: the library answers and closes. While a connection is
 * suspended the library does not touch it, so the pool thread owns the request alone. */
#include "server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "common/address.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/metrics.h"
#include "common/paths.h"
#include "deadlines.h"
#include "dispatch.h"
#include "headers.h"
#include "limiter.h"
#include "stream.h"
#include "workers.h"

#define THREADS_MAX         8U
#define IDLE_TIMEOUT_S      60U              /* silence in the middle of an answer */
#define ANSWER_TIMEOUT_MS   (10 * 60 * 1000) /* a client that reads 10 MB drop by drop */
#define LIGHT_THREADS       2
#define SLOW_THREADS        16 /* listings that wait for a worker at the same time */
#define PASSWORD_THREADS    2  /* 64 MiB each */
#define QUEUE_MAX           256
#define BODY_FIRST_BYTES    ((size_t)16 * KIB)
#define BODY_OPEN_BYTES_MAX (64 * KIB)  /* of a request without any credential */
#define BODY_ALL_BYTES_MAX  (256 * MIB) /* of all requests together */
#define PEM_BYTES_MAX       ((size_t)MIB)

/* not const: the library's option list takes char * */
static char tls_priorities[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2";

struct server {
    struct gateway *gateway;
    struct MHD_Daemon *daemon;
    struct deadlines *deadlines;
    struct limiter *rate;
    struct workers *pools[DISPATCH_PASSWORD + 1];
    atomic_size_t body_bytes; /* held by all requests */
    atomic_size_t open;       /* requests whose answer is not out yet; without live ones */
    char *tls_certificate;
    char *tls_key;
};

enum request_state { REQUEST_NEW, REQUEST_READING, REQUEST_WORKING, REQUEST_DONE };

struct request {
    struct work work; /* first: work_run casts back */
    struct server *server;
    struct MHD_Connection *connection;
    enum request_state state;
    struct call call;
    struct call_transport transport;
    char *method;
    char *path;
    char ip[INET6_ADDRSTRLEN];
    uint8_t *body;
    size_t body_size;
    size_t body_capacity;
    size_t body_max;
    bool live;    /* its answer goes on for ever: no longer counted as open */
    bool crowded; /* no room in the pool: answered without it */
};

/* ---- one request's life ---- */

static void peer_text(struct MHD_Connection *connection, char out[INET6_ADDRSTRLEN])
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *address = info->client_addr;
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)(const void *)address;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)(const void *)address;

    out[0] = '\0';
    if (address->sa_family == AF_INET) {
        (void)inet_ntop(AF_INET, &v4->sin_addr, out, INET6_ADDRSTRLEN);
    } else if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr)) {
        (void)inet_ntop(AF_INET, v6->sin6_addr.s6_addr + 12, out, INET6_ADDRSTRLEN);
    } else {
        (void)inet_ntop(AF_INET6, &v6->sin6_addr, out, INET6_ADDRSTRLEN);
    }
}

static struct deadline *deadline_of(struct MHD_Connection *connection)
{
    return MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
}

static struct request *request_new(struct server *server, struct MHD_Connection *connection,
                                   const char *method, const char *path)
{
    struct request *request = xcalloc(1, sizeof *request);
    struct call *call = &request->call;

    request->server = server;
    request->connection = connection;
    request->method = xstrndup(method, 16);
    request->path = xstrndup(path, PATH_TEXT_MAX + 1);
    peer_text(connection, request->ip);
    call->gateway = server->gateway;
    call->transport = &request->transport;
    call->method = request->method;
    call->path = request->path;
    call->ip = request->ip;
    id_new("req", call->request_id);
    request->transport.started_ms = clock_mono_ms();
    request->transport.secure = server->tls_key != NULL;
    (void)atomic_fetch_add(&server->open, 1);
    return request;
}

static void request_free(struct request *request)
{
    if (!request->live)
        (void)atomic_fetch_sub(&request->server->open, 1);
    live_answer_drop(request->server->gateway, request->transport.subscriber);
    call_release(&request->call);
    (void)atomic_fetch_sub(&request->server->body_bytes, request->body_capacity);
    if (request->body != NULL)
        explicit_bzero(request->body, request->body_size); /* passwords travel in bodies */
    free(request->body);
    free(request->method);
    free(request->path);
    free(request);
}

static int refuse(struct request *request, unsigned int status, enum error_code code,
                  const char *text)
{
    if (request->transport.early.code == ERR_NONE) {
        (void)error_set(&request->transport.early, code, "%s", text);
        request->transport.early_status = status;
    }
    return -1;
}

/* ---- the header ---- */

static enum MHD_Result take_header(void *arg, enum MHD_ValueKind kind, const char *name,
                                   const char *value)
{
    struct request *request = arg;
    struct call_transport *transport = &request->transport;

    (void)kind;
    if (!call_pair_add(transport->headers, &transport->header_count, CALL_HEADERS_MAX, name,
                       value == NULL ? "" : value))
        (void)refuse(request, 431, ERR_LIMIT, "too many header fields");
    return MHD_YES;
}

static enum MHD_Result take_query(void *arg, enum MHD_ValueKind kind, const char *name,
                                  const char *value)
{
    struct request *request = arg;
    struct call_transport *transport = &request->transport;
    autofree char *clean_name = NULL;
    autofree char *clean_value = NULL;
    struct error err = ERROR_NONE;

    (void)kind;
    if (value == NULL)
        value = "";
    if (match_decode("query", name, strlen(name), &clean_name, &err) < 0 ||
        match_decode(clean_name, value, strlen(value), &clean_value, &err) < 0) {
        (void)refuse(request, 400, ERR_INVALID, err.message);
    } else if (!call_pair_add(transport->query, &transport->query_count, CALL_QUERY_MAX, clean_name,
                              clean_value)) {
        (void)refuse(request, 400, ERR_LIMIT, "too many query parameters");
    }
    return MHD_YES;
}

static size_t count_header(const struct request *request, const char *name)
{
    size_t n = 0;

    for (size_t i = 0; i < request->transport.header_count; i++)
        n += strcasecmp(request->transport.headers[i].name, name) == 0;
    return n;
}

/* A proxy before us may take the other of two lengths, and the rest of the body for the next
 * request: such requests are not guessed at. */
static int check_framing(struct request *request)
{
    size_t lengths = count_header(request, "Content-Length");
    size_t encodings = count_header(request, "Transfer-Encoding");
    const char *encoding = call_header(&request->call, "Transfer-Encoding");

    if (lengths > 1 || encodings > 1 || (lengths > 0 && encodings > 0)) {
        return refuse(request, 400, ERR_INVALID,
                      "contradictory Content-Length and Transfer-Encoding");
    }
    if (encoding != NULL && strcasecmp(encoding, "chunked") != 0)
        return refuse(request, 400, ERR_INVALID, "Transfer-Encoding can only be chunked");
    if (count_header(request, "Host") > 1)
        return refuse(request, 400, ERR_INVALID, "several Host headers");
    return 0;
}

static int check_length(struct request *request)
{
    const char *text = call_header(&request->call, "Content-Length");
    uint64_t length = 0;

    if (text == NULL)
        return 0;
    if (!header_length(text, &length))
        return refuse(request, 400, ERR_INVALID, "malformed Content-Length");
    if (length > request->body_max)
        return refuse(request, 413, ERR_LIMIT, "the request body is too big");
    return 0;
}

static bool has_credential(const struct call *call)
{
    return call->gateway->daemon.dev_mode || call_header(call, "Authorization") != NULL ||
           call_header(call, "X-API-Key") != NULL;
}

static void take_trace(struct call *call)
{
    const char *received = call_header(call, "traceparent");

    if (received == NULL || !traceparent_trace_id(received, call->trace_id)) {
        traceparent_new(NULL, call->traceparent);
        (void)traceparent_trace_id(call->traceparent, call->trace_id);
    } else {
        traceparent_new(call->trace_id, call->traceparent);
    }
}

static void take_head(struct request *request)
{
    struct call *call = &request->call;
    const struct security_config *security = &call->gateway->security;

    (void)MHD_get_connection_values(request->connection, MHD_HEADER_KIND, take_header, request);
    (void)MHD_get_connection_values(request->connection, MHD_GET_ARGUMENT_KIND, take_query,
                                    request);
    take_trace(call);
    request->body_max = has_credential(call) ? (size_t)security->max_request_size_mb * MIB
                                             : (size_t)BODY_OPEN_BYTES_MAX;
    if (strlen(request->path) > PATH_TEXT_MAX || request->path[0] != '/')
        (void)refuse(request, 414, ERR_LIMIT, "the path is too long or not a path");
    if (check_framing(request) == 0)
        (void)check_length(request);
}

/* ---- answers ---- */

static struct MHD_Response *make_response(struct request *request)
{
    struct call_transport *transport = &request->transport;
    struct gateway *gateway = request->server->gateway;
    struct MHD_Response *response = NULL;

    switch (transport->kind) {
    case ANSWER_BODY:
        response = MHD_create_response_from_buffer(transport->body_length, transport->body,
                                                   MHD_RESPMEM_MUST_FREE);
        if (response != NULL)
            transport->body = NULL; /* the response's */
        break;
    case ANSWER_STREAM:
        response = stream_response(gateway, transport->subscriber, request->connection);
        break;
    case ANSWER_UPGRADE:
        response = websocket_response(gateway, transport->subscriber, request->connection);
        break;
    }
    return response;
}

static void add_headers(struct MHD_Response *response, const struct request *request)
{
    const struct call *call = &request->call;
    const struct call_transport *transport = &request->transport;

    if (transport->type != NULL)
        (void)MHD_add_response_header(response, "Content-Type", transport->type);
    (void)MHD_add_response_header(response, "X-Request-Id", call->request_id);
    (void)MHD_add_response_header(response, "traceparent", call->traceparent);
    (void)MHD_add_response_header(response, "Cache-Control", "no-store");
    (void)MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    for (size_t i = 0; i < transport->answer_header_count; i++) {
        (void)MHD_add_response_header(response, transport->answer_headers[i].name,
                                      transport->answer_headers[i].value);
    }
    if (transport->early.code != ERR_NONE) /* what follows on this connection is not trusted */
        (void)MHD_add_response_header(response, "Connection", "close");
}

static enum MHD_Result send_answer(struct request *request)
{
    struct MHD_Response *response = make_response(request);
    int64_t limit_ms = request->transport.kind == ANSWER_BODY ? ANSWER_TIMEOUT_MS : 0;
    enum MHD_Result result;

    if (response == NULL)
        return MHD_NO;
    add_headers(response, request);
    if (request->transport.kind != ANSWER_BODY) {
        request->live = true;
        (void)atomic_fetch_sub(&request->server->open, 1);
    }
    deadline_set(request->server->deadlines, deadline_of(request->connection), limit_ms);
    result = MHD_queue_response(request->connection, request->call.status, response);
    MHD_destroy_response(response);
    return result;
}

/* Answers by ourselves, without pool and row: a flood must not become a flood of rows. */
static enum MHD_Result shed(struct request *request, unsigned int status, uint32_t retry_s,
                            const char *text)
{
    struct error err = ERROR_NONE;
    char seconds[16];

    metric_add("hypersdk_api_requests_shed_total",
               status == 429 ? "reason=\"rate\"" : "reason=\"load\"", 1);
    (void)error_set(&err, status == 429 ? ERR_LIMIT : ERR_UNAVAILABLE, "%s", text);
    request->transport.early = err;
    request->transport.error_status = status;
    request->state = REQUEST_DONE;
    (void)snprintf(seconds, sizeof seconds, "%u", retry_s);
    if (status == 429)
        call_set_header(&request->call, "Retry-After", seconds);
    call_answer_error(&request->call, &err);
    return send_answer(request);
}

/* ---- handing over ---- */

static void work_run(struct work *work, struct db *db)
{
    struct request *request = (struct request *)(void *)work;

    dispatch_run(&request->call, db);
    request->state = REQUEST_DONE;
    MHD_resume_connection(request->connection); /* from here on the request may be gone */
}

static enum MHD_Result hand_over(struct request *request)
{
    enum dispatch_pool pool = dispatch_route(&request->call);

    request->call.raw_body = request->body;
    request->call.raw_body_size = request->body_size;
    request->work.run = work_run;
    request->state = REQUEST_WORKING;
    deadline_set(request->server->deadlines, deadline_of(request->connection), 0);
    MHD_suspend_connection(request->connection);
    if (workers_submit(request->server->pools[pool], &request->work))
        return MHD_YES;
    request->crowded = true; /* suspended for nothing: answered when we are called again */
    request->state = REQUEST_READING;
    MHD_resume_connection(request->connection);
    return MHD_YES;
}

/* ---- the body ---- */

static bool body_grow(struct request *request, size_t wanted)
{
    size_t capacity = request->body_capacity == 0 ? BODY_FIRST_BYTES : request->body_capacity;
    size_t more;

    while (capacity < wanted)
        capacity *= 2;
    more = capacity - request->body_capacity;
    if (more == 0)
        return true;
    if (atomic_fetch_add(&request->server->body_bytes, more) + more > BODY_ALL_BYTES_MAX) {
        (void)atomic_fetch_sub(&request->server->body_bytes, more);
        return false;
    }
    request->body = xrealloc(request->body, capacity);
    request->body_capacity = capacity;
    return true;
}

static void body_take(struct request *request, const char *data, size_t size)
{
    if (request->transport.early.code != ERR_NONE)
        return; /* refused: the rest is not kept */
    if (size > request->body_max - request->body_size) {
        (void)refuse(request, 413, ERR_LIMIT, "the request body is too big");
    } else if (!body_grow(request, request->body_size + size)) {
        (void)refuse(request, 503, ERR_UNAVAILABLE, "too many big requests at once");
    } else {
        memcpy(request->body + request->body_size, data, size);
        request->body_size += size;
    }
}

/* ---- called by the library ---- */

static enum MHD_Result first_call(struct request *request)
{
    uint32_t wait_s = limiter_take(request->server->rate, request->ip, clock_mono_ms());

    take_head(request);
    if (wait_s > 0)
        return shed(request, 429, wait_s, "too many requests from this address");
    if (request->transport.early.code != ERR_NONE)
        return hand_over(request); /* answered before the body is read */
    request->state = REQUEST_READING;
    return MHD_YES;
}

/* NOLINTNEXTLINE(readability-function-size): libmicrohttpd's signature */
static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *data_size, void **con_cls)
{
    struct request *request = *con_cls;

    (void)version;
    if (request == NULL) {
        request = request_new(cls, connection, method, url);
        *con_cls = request;
        return first_call(request);
    }
    if (request->state == REQUEST_DONE)
        return send_answer(request);
    if (*data_size > 0 && !request->crowded) {
        body_take(request, data, *data_size);
        *data_size = 0;
        return MHD_YES;
    }
    if (request->crowded)
        return shed(request, 503, 0, "too many requests are waiting");
    return hand_over(request);
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **con_cls,
                         enum MHD_RequestTerminationCode why)
{
    struct server *server = cls;
    struct deadline *deadline = deadline_of(connection);

    (void)why;
    if (*con_cls != NULL)
        request_free(*con_cls);
    *con_cls = NULL;
    if (deadline != NULL) /* for the next request of this connection */
        deadline_set(server->deadlines, deadline, server->gateway->security.header_timeout_ms);
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct server *server = cls;

    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        int fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        *context = deadline_add(server->deadlines, fd, server->gateway->security.header_timeout_ms);
    } else if (*context != NULL) {
        deadline_remove(server->deadlines, *context);
        *context = NULL;
    }
}

/* Escapes stay as they are until the path is split: %2F inside a segment is no separator. */
static size_t keep_escapes(void *cls, struct MHD_Connection *connection, char *text)
{
    (void)cls;
    (void)connection;
    return strlen(text);
}

static void on_library_log(void *cls, const char *format, va_list args)
{
    static struct log_throttle throttle;
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards throttle */
    char text[256];
    uint64_t suppressed = 0;

    (void)cls;
    (void)vsnprintf(text, sizeof text, format, args);
    text[strcspn(text, "\n")] = '\0';
    LOCK_SCOPE(&mutex);
    if (log_throttle_pass(&throttle, text, &suppressed))
        LOG(DEBUG, "http_library", F_STR("message", text), F_U64("suppressed", suppressed));
}

/* ---- start ---- */

static int load_tls(struct server *server, struct error *err)
{
    const struct daemon_config *config = &server->gateway->daemon;
    size_t size;

    if (config->tls_cert_file[0] == '\0')
        return 0;
    if (file_read(config->tls_cert_file, PEM_BYTES_MAX, &server->tls_certificate, &size, err) < 0 ||
        file_read(config->tls_key_file, PEM_BYTES_MAX, &server->tls_key, &size, err) < 0)
        return error_wrap(err, "daemon.tls_cert_file and tls_key_file");
    return 0;
}

static void describe_metrics(void)
{
    metric_describe("hypersdk_api_requests_total", "Answered requests");
    metric_describe("hypersdk_api_request_duration_seconds", "From the request to its answer");
    metric_describe("hypersdk_api_requests_shed_total", "Requests refused by rate or load");
    metric_describe("hypersdk_api_connections_late_total",
                    "Connections that did not send a whole request in time");
}

static int start_pools(struct server *server, struct error *err)
{
    struct gateway *gateway = server->gateway;
    const struct workers_options pools[] = {
        [DISPATCH_LIGHT] = {"light", LIGHT_THREADS, QUEUE_MAX, false},
        [DISPATCH_FAST] = {"requests", gateway->database.pool_size, QUEUE_MAX, true},
        [DISPATCH_SLOW] = {"listings", SLOW_THREADS, QUEUE_MAX, true},
        [DISPATCH_PASSWORD] = {"passwords", PASSWORD_THREADS, QUEUE_MAX / 4, true},
    };

    for (size_t i = 0; i < ARRAY_LEN(pools); i++) {
        if (workers_start(gateway, &pools[i], &server->pools[i], err) < 0)
            return -1;
    }
    return 0;
}

static int start_daemon(struct server *server, int fd, struct error *err)
{
    const struct security_config *security = &server->gateway->security;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned int threads = cpus < 2 ? 2U : (unsigned int)cpus;
    unsigned int flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME |
                         MHD_ALLOW_UPGRADE | MHD_USE_ERROR_LOG;
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_MEM_CERT, 0, server->tls_certificate},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, server->tls_key},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, tls_priorities},
        {MHD_OPTION_END, 0, NULL},
    };
    struct MHD_OptionItem none[] = {{MHD_OPTION_END, 0, NULL}};

    if (server->tls_key != NULL)
        flags |= MHD_USE_TLS;
    server->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, server, MHD_OPTION_EXTERNAL_LOGGER, on_library_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_THREAD_POOL_SIZE,
        threads > THREADS_MAX ? THREADS_MAX : threads, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned int)security->connections_max, MHD_OPTION_PER_IP_CONNECTION_LIMIT,
        (unsigned int)security->connections_per_ip_max, MHD_OPTION_CONNECTION_TIMEOUT,
        IDLE_TIMEOUT_S, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes,
        NULL, MHD_OPTION_NOTIFY_COMPLETED, on_completed, server, MHD_OPTION_NOTIFY_CONNECTION,
        on_connection, server, MHD_OPTION_ARRAY, server->tls_key != NULL ? tls : none,
        MHD_OPTION_END);
    if (server->daemon == NULL) {
        return error_set(err, ERR_INVALID, "the HTTP server cannot start: %s",
                         server->tls_key != NULL ? "is certificate and key a PEM pair?"
                                                 : "see the log");
    }
    return 0;
}

int server_start(struct gateway *gateway, struct server **out, struct error *err)
{
    struct server *server = xcalloc(1, sizeof *server);
    struct address address;
    uint16_t port = 0;
    int fd = -1;

    *out = server; /* for the process's life, also when the start fails */
    server->gateway = gateway;
    server->deadlines = deadlines_new();
    server->rate = limiter_new(gateway->security.rate_limit_per_min);
    describe_metrics();
    if (load_tls(server, err) < 0 ||
        address_parse("daemon.address", gateway->daemon.address, &address, err) < 0 ||
        start_pools(server, err) < 0 || address_listen(&address, &fd, &port, err) < 0 ||
        start_daemon(server, fd, err) < 0)
        return -1;
    LOG(INFO, "listening", F_STR("address", gateway->daemon.address), F_U64("port", port),
        F_BOOL("tls", server->tls_key != NULL));
    return 0;
}

void server_tick(struct server *server)
{
    size_t late = deadlines_enforce(server->deadlines);

    if (late > 0)
        metric_add("hypersdk_api_connections_late_total", "", (double)late);
}

void server_quiesce(struct server *server)
{
    MHD_socket fd = MHD_quiesce_daemon(server->daemon);

    if (fd != MHD_INVALID_SOCKET)
        (void)close(fd);
}

size_t server_busy(struct server *server)
{
    return atomic_load(&server->open);
}
