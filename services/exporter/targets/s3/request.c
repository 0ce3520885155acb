/* See request.h. */
#include "services/exporter/targets/s3/request.h"

#include <errno.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/parse.h"

#define STALL_SECONDS        120L        /* a server may think so long about a part it has */
#define RETRY_AFTER_MAX      INT64_C(60) /* seconds: longer waits are ours to choose */
#define SEND_BUFFER_BYTES    ((long)MIB)
#define HEADER_BYTES_MAX     (16 * 1024)
#define SKEW_MIN_MS          INT64_C(60000)
#define PROVIDER_ORIGIN_TEXT "https://s3.%s.amazonaws.com"

void s3_reply_release(struct s3_reply *reply)
{
    /* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): NULL after each release, in the line below */
    free(reply->body);
    memset(reply, 0, sizeof *reply);
}

/* ---- the server ---- */

static int take_endpoint(struct s3_server *server, const char *endpoint, struct error *err)
{
    bool plain = strncmp(endpoint, "http://", 7) == 0;
    const char *host = endpoint + (plain ? 7 : 8);
    const char *default_port = plain ? ":80" : ":443";
    size_t length;

    if (!plain && strncmp(endpoint, "https://", 8) != 0)
        return error_set(err, ERR_INVALID, "endpoint '%.200s' is no http or https URL", endpoint);
    length = strcspn(host, "/");
    if (length == 0 || strspn(host + length, "/") != strlen(host + length) ||
        strcspn(host, "@?# \t\r\n") < length) {
        return error_set(err, ERR_INVALID, "endpoint '%.200s' must be scheme://host[:port]",
                         endpoint);
    }
    /* libcurl leaves the default port out of the Host header, so the signature must, too. */
    if (length > strlen(default_port) &&
        strncmp(host + length - strlen(default_port), default_port, strlen(default_port)) == 0)
        length -= strlen(default_port);
    server->origin = xasprintf("%s://%.*s", plain ? "http" : "https", (int)length, host);
    server->http.allow_http = plain;
    return 0;
}

int s3_server_init(struct s3_server *server, struct target *target, struct error *err)
{
    const struct target_settings *settings = target->base.options.settings;
    const char *bucket = target->base.options.url->host;

    *server = (struct s3_server){.target = target};
    (void)pthread_mutex_init(&server->mutex, NULL);
    (void)snprintf(server->region, sizeof server->region, "%s", settings->region);
    server->http.ca_file = settings->ca_file[0] == '\0' ? NULL : settings->ca_file;
    server->http.cancelled = target->base.options.stopped;
    if (strcmp(settings->path_style, "auto") == 0) { /* a dot in the host breaks the certificate */
        server->path_style = settings->endpoint[0] != '\0' || strchr(bucket, '.') != NULL;
    } else {
        server->path_style = strcmp(settings->path_style, "true") == 0;
    }
    return settings->endpoint[0] == '\0' ? 0 : take_endpoint(server, settings->endpoint, err);
}

void s3_server_release(struct s3_server *server)
{
    for (size_t i = 0; i < server->idle_count; i++)
        curl_easy_cleanup(server->idle[i]);
    free(server->origin);
    (void)pthread_mutex_destroy(&server->mutex);
}

static int take_handle(struct s3_server *server, CURL **out, struct error *err)
{
    {
        LOCK_SCOPE(&server->mutex);
        if (server->idle_count > 0) {
            *out = server->idle[--server->idle_count];
            return 0;
        }
    }
    return http_handle_new(&server->http, out, err);
}

static void give_handle(struct s3_server *server, CURL *curl)
{
    LOCK_SCOPE(&server->mutex);
    if (server->idle_count < TARGET_PARALLEL_MAX) {
        server->idle[server->idle_count++] = curl;
    } else {
        curl_easy_cleanup(curl);
    }
}

/* ---- one exchange ---- */

struct exchange {
    struct target *target;
    const struct s3_call *call;
    struct s3_reply *reply;
    struct error stop; /* why sending was given up */
    uint64_t sent;
    size_t capacity;
    bool over; /* the answer is longer than allowed */
};

static size_t on_send(char *buffer, size_t unit, size_t count, void *arg)
{
    struct exchange *x = arg;
    size_t size = (size_t)min_u64(unit * count, x->call->size - x->sent);

    if (x->call->data != NULL) {
        memcpy(buffer, (const char *)x->call->data + x->sent, size);
    } else if (target_pay(x->target, size, &x->stop) < 0) {
        return CURL_READFUNC_ABORT;
    } else if (pread_all(x->call->fd, buffer, size, x->call->offset + x->sent) < 0) {
        (void)error_set_errno(&x->stop, errno, "the file cannot be read");
        return CURL_READFUNC_ABORT;
    }
    x->sent += size;
    return size;
}

static int on_seek(void *arg, curl_off_t offset, int origin)
{
    struct exchange *x = arg;

    if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > x->call->size)
        return CURL_SEEKFUNC_FAIL;
    x->sent = (uint64_t)offset;
    return CURL_SEEKFUNC_OK;
}

static size_t on_receive(char *data, size_t unit, size_t count, void *arg)
{
    struct exchange *x = arg;
    struct s3_reply *reply = x->reply;
    size_t size = unit * count;
    bool into = x->call->into != NULL && reply->status >= 200 && reply->status < 300;
    size_t limit = into ? x->call->into_size : S3_ANSWER_BYTES_MAX;

    if (size > limit - reply->body_size) {
        x->over = true;
        return 0;
    }
    if (into) {
        memcpy((char *)x->call->into + reply->body_size, data, size);
        reply->body_size += size;
        return size;
    }
    if (reply->body_size + size + 1 > x->capacity) {
        x->capacity = (reply->body_size + size + 1) * 2;
        reply->body = xrealloc(reply->body, x->capacity);
    }
    memcpy(reply->body + reply->body_size, data, size);
    reply->body_size += size;
    reply->body[reply->body_size] = '\0';
    return size;
}

static void header_take(struct s3_reply *reply, const char *name, const char *value)
{
    struct error ignored = ERROR_NONE;
    uint64_t number = 0;

    if (strcasecmp(name, "etag") == 0) {
        (void)snprintf(reply->etag, sizeof reply->etag, "%s", value);
    } else if (strcasecmp(name, "content-length") == 0) {
        reply->has_length = parse_u64(name, value, 0, INT64_MAX, &reply->length, &ignored) == 0;
    } else if (strcasecmp(name, "x-amz-bucket-region") == 0) {
        (void)snprintf(reply->region, sizeof reply->region, "%s", value);
    } else if (strcasecmp(name, "retry-after") == 0 &&
               parse_u64(name, value, 0, INT32_MAX, &number, &ignored) == 0) {
        reply->retry_after_ms = (int64_t)min_u64(number, RETRY_AFTER_MAX) * 1000;
    } else if (strcasecmp(name, "x-amz-server-side-encryption") == 0) {
        reply->encrypted = strcmp(value, "AES256") != 0;
    } else if (strcasecmp(name, "date") == 0) {
        reply->date_ms = (int64_t)curl_getdate(value, NULL) * 1000;
    }
}

static size_t on_header(char *data, size_t unit, size_t count, void *arg)
{
    struct exchange *x = arg;
    struct http_header header;

    if (!http_header_read(data, unit * count, &header))
        return unit * count;
    if (header.name == NULL) { /* a new answer: forget an interim one */
        s3_reply_release(x->reply);
        x->capacity = 0;
        x->reply->status = header.status;
    } else {
        header_take(x->reply, header.name, header.value);
    }
    return unit * count;
}

static bool set_body(CURL *curl, struct exchange *x)
{
    const struct s3_call *call = x->call;
    bool has_body = strcmp(call->method, "PUT") == 0 || strcmp(call->method, "POST") == 0;

    /* HTTPGET also undoes what the request before had */
    if (curl_easy_setopt(curl, CURLOPT_HTTPGET, 1L) != CURLE_OK ||
        curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, NULL) != CURLE_OK)
        return false;
    if (strcmp(call->method, "HEAD") == 0)
        return curl_easy_setopt(curl, CURLOPT_NOBODY, 1L) == CURLE_OK;
    if (!has_body) {
        return strcmp(call->method, "GET") == 0 ||
               curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, call->method) == CURLE_OK;
    }
    return curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, call->method) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)call->size) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_READFUNCTION, on_send) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_READDATA, x) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_SEEKFUNCTION, on_seek) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_SEEKDATA, x) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_UPLOAD_BUFFERSIZE, SEND_BUFFER_BYTES) == CURLE_OK;
}

static bool set_options(CURL *curl, const char *url, const struct curl_slist *headers,
                        struct exchange *x)
{
    return set_body(curl, x) && curl_easy_setopt(curl, CURLOPT_URL, url) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_HEADERDATA, x) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_receive) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_WRITEDATA, x) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, STALL_SECONDS) == CURLE_OK;
}

static int exchange(struct s3_server *server, const char *url, const struct curl_slist *headers,
                    struct exchange *x, struct error *err)
{
    CURL *curl = NULL;
    CURLcode code;

    if (take_handle(server, &curl, err) < 0)
        return -1;
    if (!set_options(curl, url, headers, x)) {
        curl_easy_cleanup(curl);
        return error_set(err, ERR_INTERNAL, "this libcurl lacks an option that is needed");
    }
    code = curl_easy_perform(curl);
    if (code == CURLE_OK) {
        give_handle(server, curl);
        return 0;
    }
    if (x->over) {
        (void)error_set(err, ERR_PROTOCOL, "the server's answer is longer than allowed");
    } else if (x->stop.code != ERR_NONE) {
        *err = x->stop;
    } else {
        (void)http_error_set(err, curl, code, server->target->base.options.url->host);
    }
    curl_easy_cleanup(curl); /* its connection is of no use any more */
    return -1;
}

/* ---- signing ---- */

struct prepared {
    char *url;
    struct curl_slist *headers;
};

static void prepared_release(struct prepared *prepared)
{
    free(prepared->url);
    curl_slist_free_all(prepared->headers);
}

static void add_header(struct prepared *prepared, const char *name, const char *value)
{
    autofree char *line = xasprintf("%s: %s", name, value);
    struct curl_slist *longer = curl_slist_append(prepared->headers, line);

    if (longer == NULL)
        abort(); /* out of memory */
    prepared->headers = longer;
}

static void sign_header(struct s3_to_sign *request, const char *name, const char *value)
{
    assert(request->header_count < S3_PAIRS_MAX);
    request->headers[request->header_count++] = (struct s3_pair){name, value};
}

static char *origin_of(const struct s3_server *server, const char *region)
{
    const char *bucket = server->target->base.options.url->host;
    autofree char *origin =
        server->origin != NULL ? xstrdup(server->origin) : xasprintf(PROVIDER_ORIGIN_TEXT, region);
    const char *host = strstr(origin, "://") + 3;

    if (server->path_style)
        return xstrdup(origin);
    return xasprintf("%.*s%s.%s", (int)(host - origin), origin, bucket, host);
}

static char *path_of(const struct s3_server *server, const char *key)
{
    autofree char *encoded = s3_encode_key(key == NULL ? "" : key);

    if (!server->path_style)
        return xasprintf("/%s", encoded);
    return xasprintf("/%s%s%s", server->target->base.options.url->host, key == NULL ? "" : "/",
                     encoded);
}

static void payload_hash(const struct s3_call *call, char out[65])
{
    uint8_t raw[32];

    if (call->payload_sha256 != NULL) {
        (void)snprintf(out, 65, "%s", call->payload_sha256);
        return;
    }
    assert(call->data != NULL || call->size == 0);
    if (EVP_Digest(call->data == NULL ? "" : call->data, call->size, raw, NULL, EVP_sha256(),
                   NULL) != 1)
        abort();
    hex_encode(raw, sizeof raw, out);
}

static int prepare(struct s3_server *server, const struct s3_call *call, const char *region,
                   struct prepared *out, struct error *err)
{
    const struct target_settings *settings = server->target->base.options.settings;
    const struct s3_credentials credentials = {settings->access_key_id, settings->secret_access_key,
                                               region};
    autofree char *origin = origin_of(server, region);
    autofree char *path = path_of(server, call->key);
    autofree char *query = s3_query_text(call->query, call->query_count);
    autofree char *authorization = NULL;
    struct s3_to_sign request = {.method = call->method, .path = path};
    char date[S3_DATE_SIZE];
    char hash[65];

    s3_date(clock_wall_ms() + atomic_load(&server->skew_ms), date);
    payload_hash(call, hash);
    memcpy(request.query, call->query, sizeof call->query);
    request.query_count = call->query_count;
    request.payload_sha256 = hash;
    sign_header(&request, "host", strstr(origin, "://") + 3);
    sign_header(&request, "x-amz-content-sha256", hash);
    sign_header(&request, "x-amz-date", date);
    if (settings->session_token[0] != '\0')
        sign_header(&request, "x-amz-security-token", settings->session_token);
    for (size_t i = 0; i < call->header_count; i++)
        sign_header(&request, call->headers[i].name, call->headers[i].value);
    if (s3_sign(&request, &credentials, date, &authorization, err) < 0)
        return -1;
    for (size_t i = 1; i < request.header_count; i++) /* host is libcurl's */
        add_header(out, request.headers[i].name, request.headers[i].value);
    add_header(out, "Authorization", authorization);
    add_header(out, "Expect", "");
    out->url = xasprintf("%s%s%s%s", origin, path, query[0] == '\0' ? "" : "?", query);
    return 0;
}

/* ---- what an answer means ---- */

static bool is_code(const struct s3_error *refusal, const char *code)
{
    return strcmp(refusal->code, code) == 0;
}

static enum error_code code_of(long status, const struct s3_error *refusal)
{
    static const char *const again[] = {"SlowDown", "InternalError", "ServiceUnavailable",
                                        "RequestTimeout", "OperationAborted"};

    for (size_t i = 0; i < ARRAY_LEN(again); i++) {
        if (is_code(refusal, again[i]))
            return ERR_UNAVAILABLE;
    }
    switch (status) {
    case 401:
    case 403:
        return ERR_DENIED;
    case 404:
        return ERR_NOT_FOUND;
    case 408:
    case 429:
    case 500:
    case 502:
    case 503:
    case 504:
        return ERR_UNAVAILABLE;
    case 409:
    case 412:
        return ERR_CONFLICT;
    case 413:
    case 507:
        return ERR_LIMIT;
    default:
        return is_code(refusal, "BadDigest") ? ERR_UNAVAILABLE : ERR_PROTOCOL;
    }
}

static const char *advice_of(const struct s3_error *refusal, long status)
{
    if (is_code(refusal, "SignatureDoesNotMatch"))
        return " (check secret_access_key)";
    if (is_code(refusal, "InvalidAccessKeyId"))
        return " (check access_key_id)";
    if (is_code(refusal, "ExpiredToken"))
        return " (the session token has expired)";
    if (is_code(refusal, "AccessDenied") || status == 403)
        return " (check access_key_id, secret_access_key and the rights of that account)";
    if (is_code(refusal, "NoSuchBucket"))
        return " (create the bucket first)";
    return "";
}

int s3_refusal(const struct s3_call *call, long status, const struct s3_error *refusal,
               struct error *err)
{
    if (refusal->code[0] == '\0') {
        return error_set(err, code_of(status, refusal), "%.200s: the server answers HTTP %ld%s",
                         call->what, status, advice_of(refusal, status));
    }
    return error_set(err, code_of(status, refusal), "%.200s: the server answers %s (HTTP %ld)%s",
                     call->what, refusal->code, status, advice_of(refusal, status));
}

/* Signed for the wrong region: the right one stands in a header or in the error. */
static bool learn_region(struct s3_server *server, const struct s3_reply *reply)
{
    const char *region = reply->region[0] != '\0' ? reply->region : reply->error.region;

    if (region[0] == '\0' || (reply->status != 301 && reply->status != 307 &&
                              !is_code(&reply->error, "AuthorizationHeaderMalformed")))
        return false;
    if (strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(region))
        return false; /* it becomes part of a host name */
    LOCK_SCOPE(&server->mutex);
    if (strcmp(server->region, region) == 0)
        return false;
    (void)snprintf(server->region, sizeof server->region, "%s", region);
    return true;
}

static bool learn_clock(struct s3_server *server, const struct s3_reply *reply)
{
    int64_t skew = reply->date_ms - clock_wall_ms();
    int64_t known = atomic_load(&server->skew_ms);

    if (!is_code(&reply->error, "RequestTimeTooSkewed") || reply->date_ms <= 0 ||
        (skew - known < SKEW_MIN_MS && known - skew < SKEW_MIN_MS))
        return false;
    atomic_store(&server->skew_ms, skew);
    return true;
}

static void note_slow_down(struct s3_server *server, const struct s3_reply *reply)
{
    if (reply->status == 503 || reply->status == 429 || is_code(&reply->error, "SlowDown"))
        (void)atomic_fetch_add(&server->target->base.slow_downs, 1);
}

static int perform_once(struct s3_server *server, const struct s3_call *call,
                        struct s3_reply *reply, struct error *err)
{
    CLEANUP(prepared_release) struct prepared prepared = {0};
    struct exchange x = {.target = server->target, .call = call, .reply = reply};
    char region[S3_REGION_BYTES_MAX + 1];

    {
        LOCK_SCOPE(&server->mutex);
        memcpy(region, server->region, sizeof region);
    }
    if (target_check(server->target, err) < 0 || prepare(server, call, region, &prepared, err) < 0)
        return -1;
    if (exchange(server, prepared.url, prepared.headers, &x, err) < 0)
        return error_wrap(err, "%.200s", call->what);
    if (reply->status >= 200 && reply->status < 300)
        return 0;
    (void)s3_error_read(reply->body == NULL ? "" : reply->body, reply->body_size, &reply->error);
    note_slow_down(server, reply);
    return s3_refusal(call, reply->status, &reply->error, err);
}

int s3_perform(struct s3_server *server, const struct s3_call *call, struct s3_reply *reply,
               struct error *err)
{
    bool region_learnt = false;
    bool clock_learnt = false;

    for (uint32_t attempt = 0;; attempt++) {
        s3_reply_release(reply);
        if (perform_once(server, call, reply, err) == 0)
            return 0;
        if (!region_learnt && learn_region(server, reply)) {
            region_learnt = true;
            error_clear(err);
        } else if (!clock_learnt && learn_clock(server, reply)) {
            clock_learnt = true;
            error_clear(err);
        } else if (!target_retry(server->target, attempt, reply->retry_after_ms, err)) {
            return -1;
        }
    }
}
