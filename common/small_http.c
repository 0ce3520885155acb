/* See small_http.h. */
#include "common/small_http.h"

#include <microhttpd.h>
#include <string.h>

#include "common/address.h"

#define THREADS         2U
#define CONNECTIONS_MAX 64U /* a probe, a scraper, a person */
#define TIMEOUT_S       10U
#define MEMORY_BYTES    ((size_t)16 * KIB) /* request line and headers of a connection */

struct small_http {
    small_http_handler handler;
    void *arg;
};

static enum MHD_Result queue(struct MHD_Connection *connection,
                             const struct small_http_answer *answer)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(
        answer->body.length, answer->body.data, MHD_RESPMEM_MUST_COPY);
    enum MHD_Result rv;

    if (response == NULL)
        return MHD_NO;
    (void)MHD_add_response_header(response, "Content-Type", answer->content_type);
    (void)MHD_add_response_header(response, "Cache-Control", "no-store");
    rv = MHD_queue_response(connection, answer->status, response);
    MHD_destroy_response(response);
    return rv;
}

static enum MHD_Result answer(const struct small_http *server, struct MHD_Connection *connection,
                              const char *method, const char *path)
{
    struct small_http_answer answer = {.status = MHD_HTTP_OK, .content_type = SMALL_HTTP_TEXT};
    enum MHD_Result rv;

    strbuf_init(&answer.body, SMALL_HTTP_BODY_BYTES_MAX);
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0) {
        answer.status = MHD_HTTP_METHOD_NOT_ALLOWED;
        strbuf_add(&answer.body, "GET only\n");
    } else if (!server->handler(server->arg, path, &answer)) {
        answer.status = MHD_HTTP_NOT_FOUND;
        strbuf_add(&answer.body, "not found\n");
    }
    rv = queue(connection, &answer);
    strbuf_release(&answer.body);
    return rv;
}

/* NOLINTNEXTLINE(readability-function-size): libmicrohttpd's signature */
static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_size, void **state)
{
    static int seen; /* its address marks a request whose first call was made */

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
    return answer(arg, connection, method, path);
}

int small_http_start(const char *name, const char *address, small_http_handler handler, void *arg,
                     uint16_t *out_port, struct error *err)
{
    struct small_http *server = xcalloc(1, sizeof *server); /* lives as long as the process */
    struct address where;
    struct MHD_Daemon *daemon;
    int fd = -1;

    server->handler = handler;
    server->arg = arg;
    if (address_parse(name, address, &where, err) < 0 ||
        address_listen(&where, &fd, out_port, err) < 0) {
        free(server);
        return error_wrap(err, "%s '%.255s'", name, address);
    }
    daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD, 0, NULL, NULL, on_request, server, MHD_OPTION_LISTEN_SOCKET,
        fd, MHD_OPTION_THREAD_POOL_SIZE, THREADS, MHD_OPTION_CONNECTION_LIMIT, CONNECTIONS_MAX,
        MHD_OPTION_CONNECTION_TIMEOUT, TIMEOUT_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT, MEMORY_BYTES,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
    if (daemon == NULL) {
        (void)close(fd);
        free(server);
        return error_set(err, ERR_INTERNAL, "%s '%.255s': the server does not start", name,
                         address);
    }
    return 0;
}
