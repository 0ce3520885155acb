/* See http_client.h.
 *
 * Design notes. A handle carries no memory of ours, because its users free it with
 * curl_easy_cleanup: options become libcurl options, the body limit is a number in
 * CURLOPT_PRIVATE, and what the callbacks find out (the certificate that was presented, an address
 * that was refused) is kept per thread. Callbacks run on the thread that performs the transfer. */
#include "common/http_client.h"

#include <errno.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <stdio.h>
#include <ctype.h>
#include <string.h>

#include "common/address.h"
#include "common/autos.h"

#define CONNECT_TIMEOUT_MS 10000
#define STALL_SECONDS      30L
#define STALL_BYTES_PER_S  1024L
#define BODY_BYTES_MAX     ((size_t)MIB)
#define BODY_START_BYTES   4096
#define THUMBPRINT_SIZE    (3 * 32) /* SHA-256 as AA:BB:.. and the NUL */

/* What the last transfer of this thread met. */
struct peer {
    char sha256[THUMBPRINT_SIZE];
    bool address_refused;
};
static _Thread_local struct peer peer;

struct collector { /* a body being received */
    char *data;
    size_t size;
    size_t capacity;
    size_t size_max;
    bool over;
};

void http_response_release(struct http_response *response)
{
    free(response->body);
    free(response->content_type);
    *response = (struct http_response){0};
}

static void global_init(void)
{
    const curl_version_info_data *version;

    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        abort(); /* out of memory, or a libcurl that cannot work at all */
    version = curl_version_info(CURLVERSION_NOW);
    /* the certificate callback below speaks OpenSSL */
    assert(version->ssl_version != NULL && strncmp(version->ssl_version, "OpenSSL", 7) == 0);
}

void http_global_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    (void)pthread_once(&once, global_init);
}

/* ---- certificates ---- */

/* "AA:BB:.." of the digest into out; false when it cannot be made. */
static bool thumbprint(const X509 *certificate, const EVP_MD *digest, char out[THUMBPRINT_SIZE])
{
    unsigned char raw[EVP_MAX_MD_SIZE];
    unsigned int size = 0;

    out[0] = '\0';
    if (certificate == NULL || X509_digest(certificate, digest, raw, &size) != 1 ||
        size * 3 > THUMBPRINT_SIZE)
        return false;
    for (unsigned int i = 0; i < size; i++)
        (void)snprintf(out + (size_t)i * 3, 4, "%02X%s", raw[i], i + 1 < size ? ":" : "");
    return true;
}

/* Compares hex digits only: colons and case are the user's taste. */
static bool same_thumbprint(const char *a, const char *b)
{
    static const char hex[] = "0123456789ABCDEF";

    for (;;) {
        a += *a == ':';
        b += *b == ':';
        if (*a == '\0' || *b == '\0')
            return *a == *b;
        if (strchr(hex, *a & ~0x20) == NULL && strchr(hex, *a) == NULL)
            return false;
        if (*a != *b && (*a | 0x20) != (*b | 0x20))
            return false;
        a++;
        b++;
    }
}

/* Replaces OpenSSL's chain check: notes who is there, then asks the pin or the chain. */
static int on_certificate(X509_STORE_CTX *store, void *arg)
{
    const char *wanted = arg;
    const X509 *leaf = X509_STORE_CTX_get0_cert(store);
    char sha1[THUMBPRINT_SIZE];

    if (!thumbprint(leaf, EVP_sha256(), peer.sha256) || !thumbprint(leaf, EVP_sha1(), sha1)) {
        X509_STORE_CTX_set_error(store, X509_V_ERR_UNSPECIFIED);
        return 0;
    }
    if (wanted == NULL)
        return X509_verify_cert(store);
    if (same_thumbprint(wanted, peer.sha256) || same_thumbprint(wanted, sha1)) {
        X509_STORE_CTX_set_error(store, X509_V_OK);
        return 1;
    }
    X509_STORE_CTX_set_error(store, X509_V_ERR_APPLICATION_VERIFICATION);
    return 0;
}

static CURLcode on_ssl_context(CURL *handle, void *context, void *arg)
{
    (void)handle;
    peer.sha256[0] = '\0';
    SSL_CTX_set_cert_verify_callback(context, on_certificate, arg);
    return CURLE_OK;
}

/* ---- options ---- */

/* Looks at the address that is about to be connected, after resolution: a name that resolves to
 * something else a moment later gains nothing. */
static curl_socket_t on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
    (void)arg;
    (void)purpose;
    if (address_is_private(&address->addr)) {
        peer.address_refused = true;
        return CURL_SOCKET_BAD;
    }
    return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

static int on_transfer_info(void *arg, curl_off_t down_total, curl_off_t down, curl_off_t up_total,
                            curl_off_t up)
{
    const atomic_bool *cancelled = arg;

    (void)down_total;
    (void)down;
    (void)up_total;
    (void)up;
    return cancelled != NULL && atomic_load(cancelled) ? 1 : 0;
}

static bool set_long(CURL *curl, CURLoption option, long value)
{
    return curl_easy_setopt(curl, option, value) == CURLE_OK;
}

static bool set_certificates(CURL *curl, const struct http_options *options)
{
    bool pinned = options->thumbprint != NULL && options->thumbprint[0] != '\0';
    bool named = !options->insecure && !pinned;

    return set_long(curl, CURLOPT_SSL_VERIFYPEER, options->insecure ? 0L : 1L) &&
           set_long(curl, CURLOPT_SSL_VERIFYHOST, named ? 2L : 0L) &&
           set_long(curl, CURLOPT_SSLVERSION, CURL_SSLVERSION_TLSv1_2) &&
           (options->insecure ||
            (curl_easy_setopt(curl, CURLOPT_SSL_CTX_FUNCTION, on_ssl_context) == CURLE_OK &&
             curl_easy_setopt(curl, CURLOPT_SSL_CTX_DATA, pinned ? options->thumbprint : NULL) ==
                 CURLE_OK)) &&
           (options->ca_file == NULL || options->ca_file[0] == '\0' ||
            (curl_easy_setopt(curl, CURLOPT_CAINFO, options->ca_file) == CURLE_OK &&
             curl_easy_setopt(curl, CURLOPT_CAPATH, NULL) == CURLE_OK)); /* that CA alone */
}

static bool set_times(CURL *curl, const struct http_options *options)
{
    int64_t connect_ms =
        options->connect_timeout_ms == 0 ? CONNECT_TIMEOUT_MS : options->connect_timeout_ms;

    if (!set_long(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)connect_ms))
        return false;
    if (options->timeout_ms != 0)
        return set_long(curl, CURLOPT_TIMEOUT_MS, (long)options->timeout_ms);
    return set_long(curl, CURLOPT_LOW_SPEED_LIMIT, STALL_BYTES_PER_S) &&
           set_long(curl, CURLOPT_LOW_SPEED_TIME, STALL_SECONDS);
}

static bool set_transfer(CURL *curl, const struct http_options *options)
{
    const char *protocols = options->allow_http ? "http,https" : "https";
    size_t body_max = options->body_bytes_max == 0 ? BODY_BYTES_MAX : options->body_bytes_max;

    return set_long(curl, CURLOPT_NOSIGNAL, 1L) && set_long(curl, CURLOPT_TCP_KEEPALIVE, 1L) &&
           set_long(curl, CURLOPT_HTTP_VERSION, CURL_HTTP_VERSION_1_1) &&
           curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, protocols) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_USERAGENT, "hypersdk") == CURLE_OK &&
           /* NOLINTNEXTLINE(performance-no-int-to-ptr): a number, see the design notes */
           curl_easy_setopt(curl, CURLOPT_PRIVATE, (void *)(uintptr_t)body_max) == CURLE_OK &&
           set_long(curl, CURLOPT_NOPROGRESS, 0L) &&
           curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_transfer_info) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_XFERINFODATA, options->cancelled) == CURLE_OK;
}

/* A proxy would connect for us, out of sight of the address check. */
static bool set_block(CURL *curl, const struct http_options *options)
{
    return !options->block_private ||
           (curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, on_open_socket) == CURLE_OK &&
            curl_easy_setopt(curl, CURLOPT_PROXY, "") == CURLE_OK);
}

int http_handle_new(const struct http_options *options, CURL **out, struct error *err)
{
    auto_curl *curl = NULL;

    http_global_init();
    curl = curl_easy_init();
    if (curl == NULL)
        abort(); /* out of memory */
    if (!set_certificates(curl, options) || !set_times(curl, options) ||
        !set_transfer(curl, options) || !set_block(curl, options))
        return error_set(err, ERR_INTERNAL, "this libcurl lacks an option that is needed");
    *out = STEAL(curl);
    return 0;
}

/* ---- one request ---- */

static size_t on_body(char *data, size_t unit, size_t count, void *arg)
{
    struct collector *body = arg;
    size_t size = unit * count;

    if (size > body->size_max - body->size) {
        body->over = true;
        return 0;
    }
    if (body->size + size + 1 > body->capacity) {
        size_t wanted = (body->size + size + 1) * 2;
        body->data = xrealloc(body->data, wanted);
        body->capacity = wanted;
    }
    memcpy(body->data + body->size, data, size);
    body->size += size;
    body->data[body->size] = '\0';
    return size;
}

static bool set_method(CURL *curl, const struct http_call *call)
{
    const char *method = call->method;
    const void *body = call->body;
    bool get = strcmp(method, "GET") == 0;
    bool head = strcmp(method, "HEAD") == 0;

    /* HTTPGET also undoes the POST or HEAD of the request before */
    if (!set_long(curl, CURLOPT_HTTPGET, 1L))
        return false;
    if (head) {
        return set_long(curl, CURLOPT_NOBODY, 1L) &&
               curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, NULL) == CURLE_OK;
    }
    if (body != NULL || strcmp(method, "POST") == 0) {
        if (!set_long(curl, CURLOPT_POST, 1L) ||
            curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)call->body_size) !=
                CURLE_OK ||
            curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body == NULL ? "" : body) != CURLE_OK)
            return false;
    }
    return curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, get && body == NULL ? NULL : method) ==
           CURLE_OK;
}

static bool set_request(CURL *curl, const struct http_call *call, struct collector *body,
                        char *error_text)
{
    return set_method(curl, call) && curl_easy_setopt(curl, CURLOPT_URL, call->url) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_HTTPHEADER, call->headers) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_WRITEDATA, body) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, error_text) == CURLE_OK;
}

/* Nothing of ours may stay behind in the handle: these pointers die with the call. */
static void clear_request(CURL *curl)
{
    (void)curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, NULL);
    (void)curl_easy_setopt(curl, CURLOPT_HTTPHEADER, NULL);
    (void)curl_easy_setopt(curl, CURLOPT_WRITEDATA, NULL);
    (void)curl_easy_setopt(curl, CURLOPT_POSTFIELDS, NULL);
}

int http_request(CURL *handle, const struct http_call *call, struct http_response *out,
                 struct error *err)
{
    char error_text[CURL_ERROR_SIZE] = "";
    char *limit = NULL;
    char *type = NULL;
    autofree char *data = NULL;
    struct collector received = {0};
    CURLcode code;

    (void)curl_easy_getinfo(handle, CURLINFO_PRIVATE, &limit);
    received.size_max = (size_t)(uintptr_t)limit;
    received.capacity = BODY_START_BYTES;
    received.data = xcalloc(1, received.capacity);
    peer.address_refused = false;
    code = set_request(handle, call, &received, error_text) ? curl_easy_perform(handle)
                                                            : CURLE_URL_MALFORMAT;
    clear_request(handle);
    data = received.data;
    if (received.over)
        return error_set(err, ERR_LIMIT, "the answer is over %zu bytes", received.size_max);
    if (code != CURLE_OK) {
        return http_error_set(err, handle, code,
                              error_text[0] == '\0' ? curl_easy_strerror(code) : error_text);
    }
    (void)curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &out->status);
    (void)curl_easy_getinfo(handle, CURLINFO_CONTENT_TYPE, &type);
    out->content_type = xstrdup(type == NULL ? "" : type);
    out->body_size = received.size;
    out->body = STEAL(data);
    return 0;
}

/* ---- failures ---- */

static int certificate_error(struct error *err, const char *what)
{
    if (peer.sha256[0] == '\0')
        return error_set(err, ERR_DENIED, "%s: the certificate is not trusted", what);
    return error_set(err, ERR_DENIED,
                     "%s: the certificate is not trusted; the peer presented thumbprint %s", what,
                     peer.sha256);
}

bool http_header_read(const char *data, size_t size, struct http_header *out)
{
    char *colon;

    if (size >= sizeof out->line)
        return false;
    memcpy(out->line, data, size);
    out->line[size] = '\0';
    while (size > 0 && isspace((unsigned char)out->line[size - 1]))
        out->line[--size] = '\0';
    out->name = NULL;
    if (strncmp(out->line, "HTTP/", 5) == 0) {
        const char *space = strchr(out->line, ' ');
        out->status = space == NULL ? 0 : strtol(space + 1, NULL, 10);
        return true;
    }
    colon = strchr(out->line, ':');
    if (colon == NULL)
        return false;
    *colon = '\0';
    out->name = out->line;
    out->value = colon + 1 + strspn(colon + 1, " \t");
    return true;
}

int http_error_set(struct error *err, CURL *handle, CURLcode code, const char *what)
{
    long sys_errno = 0;
    curl_off_t sent_us = 0; /* 0: no request went out */
    const char *text = curl_easy_strerror(code);
    bool repeated = strcmp(what, text) == 0;

    (void)curl_easy_getinfo(handle, CURLINFO_OS_ERRNO, &sys_errno);
    (void)curl_easy_getinfo(handle, CURLINFO_PRETRANSFER_TIME_T, &sent_us);
    if (code == CURLE_UNSUPPORTED_PROTOCOL && sent_us > 0) /* the peer's, not ours: "HTTP/0.9" */
        code = CURLE_WEIRD_SERVER_REPLY;
    if (peer.address_refused && code == CURLE_COULDNT_CONNECT) {
        peer.address_refused = false;
        return error_set(err, ERR_DENIED,
                         "the target has a loopback, private or link-local address");
    }
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wswitch-enum" /* a hundred codes; the rest is 'unavailable' */
    switch (code) {
    case CURLE_OPERATION_TIMEDOUT:
        return error_set(err, ERR_TIMEOUT, "%s: no answer in time", what);
    case CURLE_ABORTED_BY_CALLBACK:
        return error_set(err, ERR_CANCELLED, "%s: cancelled", what);
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_ISSUER_ERROR:
        return certificate_error(err, what);
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
        return error_set(err, ERR_INVALID, "%s%s%s", what, repeated ? "" : ": ",
                         repeated ? "" : text);
    case CURLE_FAILED_INIT:
    case CURLE_NOT_BUILT_IN:
    case CURLE_BAD_FUNCTION_ARGUMENT:
    case CURLE_UNKNOWN_OPTION:
        return error_set(err, ERR_INTERNAL, "%s%s%s", what, repeated ? "" : ": ",
                         repeated ? "" : text);
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_BAD_CONTENT_ENCODING:
        return error_set(err, ERR_PROTOCOL, "%s%s%s", what, repeated ? "" : ": ",
                         repeated ? "" : text);
    default:
        break;
    }
#pragma GCC diagnostic pop
    if (sys_errno != 0 && code == CURLE_COULDNT_CONNECT) {
        (void)error_set_errno(err, (int)sys_errno, "%s", what);
    } else {
        (void)error_set(err, ERR_UNAVAILABLE, "%s%s%s", what, repeated ? "" : ": ",
                        repeated ? "" : text);
    }
    err->code = ERR_UNAVAILABLE;
    return -1;
}
