/* A tiny HTTP and HTTPS server in a thread, with answers by path; for test_http_client.c.
 *   /hello  200 "hello" as text/plain      /echo   method, headers and body of the request
 *   /empty  204                            /status 503 "busy"
 *   /redirect 302 to /hello                /big    2 MiB
 *   /cut    promises 100 bytes, sends 10   /garbage  no HTTP at all
 *   /silent no answer                      /drip   one byte each 100 ms, without end */
#ifndef TESTS_UNIT_COMMON_HTTP_FIXTURE_H
#define TESTS_UNIT_COMMON_HTTP_FIXTURE_H

#include "tests/unit/common/unit.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "common/clock.h"
#include "common/strbuf.h"

#define REQUEST_BYTES_MAX 65536

struct http_server {
    int fd;
    uint16_t port;
    SSL_CTX *tls; /* NULL: plain */
    pthread_t thread;
    atomic_bool stop;
    atomic_int connections;
};

struct peer_io { /* one connection */
    int fd;
    SSL *ssl;
};

static ssize_t io_read(struct peer_io *io, char *out, size_t size)
{
    return io->ssl != NULL ? SSL_read(io->ssl, out, (int)size) : read(io->fd, out, size);
}

static bool io_write(struct peer_io *io, const char *data, size_t size)
{
    if (io->ssl != NULL)
        return SSL_write(io->ssl, data, (int)size) > 0;
    return send(io->fd, data, size, MSG_NOSIGNAL) == (ssize_t)size;
}

static void io_answer(struct peer_io *io, const char *status, const char *type, const char *body)
{
    autofree char *text =
        xasprintf("HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n%s", status, type,
                  strlen(body), body);
    (void)io_write(io, text, strlen(text));
}

/* Reads one request (head and Content-Length body) into request; false at the end. */
static bool io_request(struct peer_io *io, char *request)
{
    size_t size = 0;

    for (;;) {
        const char *end;
        const char *length;
        ssize_t n;
        request[size] = '\0';
        end = strstr(request, "\r\n\r\n");
        length = end == NULL ? NULL : strcasestr(request, "content-length: ");
        if (end != NULL && size - (size_t)(end + 4 - request) >=
                               (length == NULL ? 0 : (size_t)strtoul(length + 16, NULL, 10)))
            return true;
        n = io_read(io, request + size, REQUEST_BYTES_MAX - 1 - size);
        if (n <= 0)
            return false;
        size += (size_t)n;
    }
}

static void answer_big(struct peer_io *io)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Length: 2097152\r\n\r\n";
    autofree char *block = xcalloc(1, 65536);
    bool ok = io_write(io, head, sizeof head - 1);

    for (int i = 0; i < 32 && ok; i++)
        ok = io_write(io, block, 65536);
}

static void wait_for_stop_or_hang_up(const struct http_server *server, struct peer_io *io,
                                     bool drip)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n";
    char byte;

    if (drip && !io_write(io, head, sizeof head - 1))
        return;
    while (!atomic_load(&server->stop)) {
        if (drip && !io_write(io, "x", 1))
            return;
        if (recv(io->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
            return;
        clock_sleep_ms(drip ? 100 : 10);
    }
}

static bool path_is(const char *request, const char *path)
{
    const char *space = strchr(request, ' ');
    size_t n = strlen(path);

    return space != NULL && strncmp(space + 1, path, n) == 0 && space[1 + n] == ' ';
}

/* false: the connection is over. */
static bool serve(const struct http_server *server, struct peer_io *io, const char *request)
{
    static const char cut[] = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789";

    if (path_is(request, "/hello"))
        io_answer(io, "200 OK", "text/plain", strncmp(request, "HEAD", 4) == 0 ? "" : "hello");
    else if (path_is(request, "/echo"))
        io_answer(io, "200 OK", "text/plain", request);
    else if (path_is(request, "/empty"))
        (void)io_write(io, "HTTP/1.1 204 No Content\r\n\r\n", 27);
    else if (path_is(request, "/status"))
        io_answer(io, "503 Service Unavailable", "application/json", "busy");
    else if (path_is(request, "/redirect"))
        (void)io_write(io, "HTTP/1.1 302 Found\r\nLocation: /hello\r\nContent-Length: 0\r\n\r\n",
                       59);
    else if (path_is(request, "/big"))
        answer_big(io);
    else if (path_is(request, "/cut"))
        return io_write(io, cut, sizeof cut - 1) && false;
    else if (path_is(request, "/garbage"))
        return io_write(io, "what?\n\n", 7) && false;
    else
        wait_for_stop_or_hang_up(server, io, path_is(request, "/drip"));
    return true;
}

struct connection {
    struct http_server *server;
    int fd;
};

static void *on_connection(void *arg)
{
    autofree struct connection *connection = arg;
    struct http_server *server = connection->server;
    struct peer_io io = {.fd = connection->fd};
    autofree char *request = xmalloc(REQUEST_BYTES_MAX);

    if (server->tls != NULL) {
        io.ssl = SSL_new(server->tls);
        (void)SSL_set_fd(io.ssl, io.fd);
    }
    if (io.ssl == NULL || SSL_accept(io.ssl) == 1) {
        while (io_request(&io, request) && serve(server, &io, request)) {
        }
    }
    SSL_free(io.ssl);
    (void)close(io.fd);
    (void)atomic_fetch_sub(&server->connections, 1);
    return NULL;
}

static void *on_accept(void *arg)
{
    struct http_server *server = arg;

    for (;;) {
        struct connection *connection;
        pthread_t thread;
        int fd = accept4(server->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            return NULL; /* shut down */
        connection = xcalloc(1, sizeof *connection);
        *connection = (struct connection){server, fd};
        (void)atomic_fetch_add(&server->connections, 1);
        if (pthread_create(&thread, NULL, on_connection, connection) != 0)
            abort();
        (void)pthread_detach(thread);
    }
}

/* A self-signed certificate for `names` ("DNS:localhost,IP:127.0.0.1"), also written to pem_path.
 */
static SSL_CTX *server_tls(const char *names, const char *pem_path)
{
    SSL_CTX *tls = SSL_CTX_new(TLS_server_method());
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    X509_EXTENSION *names_ext = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, names);
    X509_EXTENSION *ca_ext =
        X509V3_EXT_conf_nid(NULL, NULL, NID_basic_constraints, "critical,CA:TRUE");
    FILE *file = fopen(pem_path, "we");

    (void)X509_set_version(cert, 2);
    (void)ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    (void)X509_gmtime_adj(X509_getm_notBefore(cert), -60);
    (void)X509_gmtime_adj(X509_getm_notAfter(cert), 86400);
    (void)X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                                     (const unsigned char *)"unit", -1, -1, 0);
    (void)X509_set_issuer_name(cert, X509_get_subject_name(cert));
    (void)X509_set_pubkey(cert, key);
    (void)X509_add_ext(cert, names_ext, -1);
    (void)X509_add_ext(cert, ca_ext, -1);
    if (X509_sign(cert, key, EVP_sha256()) == 0 || file == NULL ||
        PEM_write_X509(file, cert) != 1 || SSL_CTX_use_certificate(tls, cert) != 1 ||
        SSL_CTX_use_PrivateKey(tls, key) != 1)
        abort();
    (void)fclose(file);
    X509_EXTENSION_free(names_ext);
    X509_EXTENSION_free(ca_ext);
    X509_free(cert);
    EVP_PKEY_free(key);
    return tls;
}

/* tls: taken over; NULL for plain HTTP. */
static struct http_server *server_start(SSL_CTX *tls)
{
    struct http_server *server = xcalloc(1, sizeof *server);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;

    server->tls = tls;
    server->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(server->fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(server->fd, 16) < 0 ||
        getsockname(server->fd, (struct sockaddr *)&address, &size) < 0 ||
        pthread_create(&server->thread, NULL, on_accept, server) != 0)
        abort();
    server->port = ntohs(address.sin_port);
    return server;
}

/* Clients must be gone or about to go: their connections are waited for. */
static void server_stop(struct http_server *server)
{
    atomic_store(&server->stop, true);
    (void)shutdown(server->fd, SHUT_RDWR);
    (void)pthread_join(server->thread, NULL);
    (void)close(server->fd);
    while (atomic_load(&server->connections) > 0)
        clock_sleep_ms(1);
    SSL_CTX_free(server->tls);
    free(server);
}

static char *server_url(const struct http_server *server, const char *host, const char *path)
{
    return xasprintf("%s://%s:%u%s", server->tls == NULL ? "http" : "https", host,
                     (unsigned int)server->port, path);
}

#endif
