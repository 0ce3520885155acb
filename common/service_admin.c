/* See service_admin.h. One libmicrohttpd thread; every answer is made from memory at once. */
#include "common/service_admin.h"

#include <microhttpd.h>
#include <string.h>

#include "common/address.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/metrics.h"

#define ADMIN_CONNECTIONS_MAX 64U /* a probe, a scraper, a person */
#define ADMIN_TIMEOUT_S       10U
#define ADMIN_MEMORY_BYTES    ((size_t)16 * KIB) /* request line and headers of a connection */
#define ADMIN_TEXT_BYTES_MAX  ((size_t)16 * KIB)

struct service_admin {
    struct service *service;
    int64_t started_ms;
    uint16_t port;
};

static enum MHD_Result answer(struct MHD_Connection *connection, unsigned int status,
                              const char *content_type, struct strbuf *body)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(body->length, body->data, MHD_RESPMEM_MUST_COPY);
    enum MHD_Result rv;

    if (response == NULL)
        return MHD_NO;
    (void)MHD_add_response_header(response, "Content-Type", content_type);
    (void)MHD_add_response_header(response, "Cache-Control", "no-store");
    rv = MHD_queue_response(connection, status, response);
    MHD_destroy_response(response);
    return rv;
}

static enum MHD_Result answer_health(struct service_admin *admin, struct MHD_Connection *connection)
{
    auto_strbuf body;

    strbuf_init(&body, ADMIN_TEXT_BYTES_MAX);
    strbuf_addf(&body, "{\"status\":\"ok\",\"service\":\"%s\",\"version\":\"%s\",\"instance\":\"",
                service_name(admin->service), HYPERSDK_VERSION);
    strbuf_add_json(&body, service_instance(admin->service));
    strbuf_addf(&body, "\",\"uptime_seconds\":%lld}\n",
                (long long)((clock_mono_ms() - admin->started_ms) / 1000));
    return answer(connection, MHD_HTTP_OK, "application/json", &body);
}

static enum MHD_Result answer_ready(struct service_admin *admin, struct MHD_Connection *connection)
{
    auto_strbuf body;
    bool ready = false;

    strbuf_init(&body, ADMIN_TEXT_BYTES_MAX);
    readiness_render(service_readiness(admin->service), service_stopping(admin->service), &body,
                     &ready);
    return answer(connection, ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE,
                  "application/json", &body);
}

static enum MHD_Result answer_metrics(struct MHD_Connection *connection)
{
    auto_strbuf body;

    strbuf_init(&body, SERVICE_METRICS_BYTES_MAX);
    metrics_render(&body);
    return answer(connection, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", &body);
}

static enum MHD_Result answer_text(struct MHD_Connection *connection, unsigned int status,
                                   const char *text)
{
    auto_strbuf body;

    strbuf_init(&body, ADMIN_TEXT_BYTES_MAX);
    strbuf_add(&body, text);
    return answer(connection, status, "text/plain; charset=utf-8", &body);
}

static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_size, void **state)
{
    static int seen; /* its address marks a request whose first call was made */
    struct service_admin *admin = arg;

    (void)version;
    (void)upload;
    if (*state == NULL) {
        *state = &seen;
        return MHD_YES;
    }
    if (*upload_size != 0) {
        *upload_size = 0; /* nothing here reads a body */
        return MHD_YES;
    }
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        return answer_text(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "GET only\n");
    if (strcmp(path, "/healthz") == 0)
        return answer_health(admin, connection);
    if (strcmp(path, "/readyz") == 0)
        return answer_ready(admin, connection);
    if (strcmp(path, "/metrics") == 0)
        return answer_metrics(connection);
    return answer_text(connection, MHD_HTTP_NOT_FOUND, "/healthz /readyz /metrics\n");
}

int service_admin_start(struct service *service, const char *admin_address,
                        struct service_admin **out, struct error *err)
{
    struct service_admin *admin = xcalloc(1, sizeof *admin);
    struct address address;
    struct MHD_Daemon *daemon;
    int fd = -1;

    admin->service = service;
    admin->started_ms = clock_mono_ms();
    if (address_parse("admin", admin_address, &address, err) < 0 ||
        address_listen(&address, &fd, &admin->port, err) < 0) {
        free(admin);
        return error_wrap(err, "admin address '%.255s'", admin_address);
    }
    daemon = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD, 0, NULL, NULL, on_request, admin,
                              MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
                              ADMIN_CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT, ADMIN_TIMEOUT_S,
                              MHD_OPTION_CONNECTION_MEMORY_LIMIT, ADMIN_MEMORY_BYTES,
                              MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
    if (daemon == NULL) {
        (void)close(fd);
        free(admin);
        return error_set(err, ERR_INTERNAL, "admin address '%.255s': the server does not start",
                         admin_address);
    }
    LOG(INFO, "admin_listening", F_STR("address", admin_address), F_U64("port", admin->port));
    *out = admin;
    return 0;
}

uint16_t service_admin_listening_port(const struct service_admin *admin)
{
    return admin->port;
}
