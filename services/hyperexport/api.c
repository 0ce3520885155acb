/* Requests to the gateway; see api.h. */
#include "api.h"

#include <string.h>
#include <strings.h>

#include "common/http_client.h"
#include "common/json.h"
#include "settings.h"

#define LIST_PAGE 1000 /* the gateway's largest */

struct api {
    CURL *handle;
    char *url;   /* without trailing slash */
    char *token; /* NULL: none */
    char *ca_file;
    bool plain; /* http, not https */
    bool loopback;
    bool insecure;
    bool login;                  /* asks for a token */
    struct http_options options; /* the handle's cancel flag is the one below */
    const atomic_bool *cancelled;
};

int exit_status_of(const struct error *err)
{
    switch (err->code) {
    case ERR_NONE:
        return EXIT_DONE;
    case ERR_DENIED:
    case ERR_UNAVAILABLE:
    case ERR_TIMEOUT:
    case ERR_PROTOCOL:
        return EXIT_CONNECTION;
    case ERR_INVALID:
        return EXIT_USAGE;
    case ERR_NOT_AVAILABLE:
        return EXIT_UNSUPPORTED;
    case ERR_CORRUPT:
        return EXIT_VERIFICATION;
    case ERR_NOT_FOUND:
    case ERR_CONFLICT:
    case ERR_LIMIT:
    case ERR_CANCELLED:
    case ERR_SOURCE_CHANGED:
    case ERR_INTERNAL:
        return EXIT_EXPORT;
    }
    return EXIT_EXPORT;
}

/* The host of "scheme://host[:port]"; *out is for the caller to free. */
static int url_host(const char *url, bool *out_plain, char **out, struct error *err)
{
    CURLU *parts = curl_url();
    char *scheme = NULL;
    char *host = NULL;
    char *user = NULL;
    int result = -1;

    if (curl_url_set(parts, CURLUPART_URL, url, 0) != CURLUE_OK ||
        curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK ||
        curl_url_get(parts, CURLUPART_HOST, &host, 0) != CURLUE_OK ||
        (strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0)) {
        (void)error_set(err, ERR_INVALID, "--daemon-url: must be http://host:port or https://...");
    } else if (curl_url_get(parts, CURLUPART_USER, &user, 0) == CURLUE_OK) {
        (void)error_set(err, ERR_INVALID,
                        "--daemon-url: must not carry a user name or password; use "
                        "'hyperexport login' or --daemon-token-file");
    } else {
        *out_plain = strcmp(scheme, "http") == 0;
        *out = xstrdup(host);
        result = 0;
    }
    curl_free(scheme);
    curl_free(host);
    curl_free(user);
    curl_url_cleanup(parts);
    return result;
}

static bool host_is_loopback(const char *host)
{
    size_t length = strlen(host);

    return strcasecmp(host, "localhost") == 0 || strcmp(host, "[::1]") == 0 ||
           strcmp(host, "::1") == 0 ||
           (length >= strlen("127.0.0.1") && strncmp(host, "127.", 4) == 0 &&
            strspn(host, "0123456789.") == length);
}

/* There --insecure is a setting of the provider. */
static bool adds_provider(const struct command *command)
{
    return command->id == COMMAND_PROVIDERS && strcmp(command->action, "add") == 0;
}

int api_open(const struct command_line *line, struct api **out, struct error *err)
{
    auto_api *api = xcalloc(1, sizeof *api);
    const char *url = flag_text(line, FLAG_DAEMON_URL);
    size_t length = strlen(url);
    autofree char *host = NULL;

    while (length > 0 && url[length - 1] == '/')
        length--;
    api->url = xstrndup(url, length);
    if (url_host(api->url, &api->plain, &host, err) < 0)
        return -1;
    api->loopback = host_is_loopback(host);
    api->insecure = flag_on(line, FLAG_DAEMON_INSECURE) ||
                    (!adds_provider(line->command) && flag_on(line, FLAG_INSECURE));
    if (flag_text(line, FLAG_DAEMON_CA_FILE) != NULL)
        api->ca_file = xstrdup(flag_text(line, FLAG_DAEMON_CA_FILE));
    api->login = line->command->id == COMMAND_LOGIN;
    if (!api->login &&
        settings_token(flag_text(line, FLAG_DAEMON_TOKEN_FILE), api->url, &api->token, err) < 0)
        return -1;
    if (api->token != NULL && api_check_secret_allowed(api, err) < 0)
        return -1;
    *out = STEAL(api);
    return 0;
}

void api_free(struct api *api)
{
    if (api == NULL)
        return;
    if (api->handle != NULL)
        curl_easy_cleanup(api->handle);
    if (api->token != NULL)
        explicit_bzero(api->token, strlen(api->token));
    free(api->token);
    free(api->ca_file);
    free(api->url);
    free(api);
}

const char *api_url(const struct api *api)
{
    return api->url;
}

void api_set_cancelled(struct api *api, const atomic_bool *cancelled)
{
    if (api->cancelled == cancelled)
        return;
    api->cancelled = cancelled;
    if (api->handle != NULL)
        curl_easy_cleanup(api->handle); /* the flag is part of the handle's options */
    api->handle = NULL;
}

int api_check_secret_allowed(const struct api *api, struct error *err)
{
    if (!api->plain || api->loopback || api->insecure)
        return 0;
    return error_set(err, ERR_DENIED,
                     "'%.200s' is plain http to another machine: the token or password would be "
                     "readable on the way; use https, or --daemon-insecure",
                     api->url);
}

static int ensure_handle(struct api *api, struct error *err)
{
    if (api->handle != NULL)
        return 0;
    api->options = (struct http_options){.ca_file = api->ca_file,
                                         .insecure = api->insecure,
                                         .allow_http = api->plain,
                                         .timeout_ms = API_TIMEOUT_MS,
                                         .body_bytes_max = API_BODY_BYTES_MAX,
                                         .cancelled = api->cancelled};
    return http_handle_new(&api->options, &api->handle, err);
}

static struct curl_slist *add_header(struct curl_slist *list, const char *name, const char *value)
{
    auto_strbuf line;
    struct curl_slist *longer;

    strbuf_init(&line, FLAGS_VALUE_MAX + 64);
    strbuf_addf(&line, "%s: %s", name, value);
    longer = curl_slist_append(list, line.data);
    explicit_bzero(line.data, line.length);
    if (longer == NULL)
        abort(); /* out of memory */
    return longer;
}

static enum error_code code_of_status(long status, const char *slug)
{
    if (strcmp(slug, "not_available") == 0)
        return ERR_NOT_AVAILABLE;
    switch (status) {
    case 400:
        return ERR_INVALID;
    case 401:
    case 403:
        return ERR_DENIED;
    case 404:
        return ERR_NOT_FOUND;
    case 409:
        return ERR_CONFLICT;
    case 413:
        return ERR_LIMIT;
    case 422:
        return ERR_NOT_FOUND; /* understood, but e.g. no or several such VMs */
    case 429:
        return ERR_UNAVAILABLE;
    default:
        return status >= 500 ? ERR_UNAVAILABLE : ERR_PROTOCOL;
    }
}

/* The gateway's error object {error, code, request_id} as an error of ours. */
static int refused(const struct api *api, const struct http_response *response, struct error *err)
{
    struct error ignored = ERROR_NONE;
    auto_json *body = NULL;
    const char *text = "";
    enum error_code code;

    if (json_parse(response->body, response->body_size, API_BODY_BYTES_MAX, &body, &ignored) == 0)
        text = json_str(body, "error");
    code = code_of_status(response->status, body == NULL ? "" : json_str(body, "code"));
    if (response->status == 401 && !api->login) {
        return error_set(err, code, "%s: %.300s",
                         api->token == NULL ? "this gateway wants a login ('hyperexport login')"
                                            : "the token is not accepted ('hyperexport login')",
                         text);
    }
    if (text[0] == '\0') {
        return error_set(err, code, "'%.200s' answered with HTTP status %ld", api->url,
                         response->status);
    }
    return error_set(err, code, "%.480s", text);
}

static struct curl_slist *request_headers(const struct api *api, const struct api_request *request)
{
    struct curl_slist *headers = NULL;

    headers = add_header(headers, "Accept",
                         request->accept == NULL ? "application/json" : request->accept);
    headers = add_header(headers, "User-Agent", "hyperexport");
    if (request->body != NULL)
        headers = add_header(headers, "Content-Type", "application/json");
    if (request->idempotency_key != NULL)
        headers = add_header(headers, "Idempotency-Key", request->idempotency_key);
    if (api->token != NULL && settings_token_is_session(api->token)) {
        autofree char *bearer = xasprintf("Bearer %s", api->token);
        headers = add_header(headers, "Authorization", bearer);
        explicit_bzero(bearer, strlen(bearer));
    } else if (api->token != NULL) {
        headers = add_header(headers, "X-API-Key", api->token);
    }
    return headers;
}

static int request_url(const struct api *api, const char *path, struct strbuf *out,
                       struct error *err)
{
    strbuf_init(out, API_URL_BYTES_MAX);
    strbuf_addf(out, "%s%s", api->url, path);
    if (out->overflowed)
        return error_set(err, ERR_LIMIT, "URL is longer than %d bytes", API_URL_BYTES_MAX);
    return 0;
}

static int send_request(struct api *api, const struct api_request *request,
                        struct http_response *out, struct error *err)
{
    auto_curl_slist *headers = request_headers(api, request);
    auto_strbuf url = {0};
    autofree char *body = request->body == NULL ? NULL : json_text(request->body);
    int result = -1;

    if (request_url(api, request->path, &url, err) == 0 && ensure_handle(api, err) == 0) {
        result = http_request(api->handle,
                              &(struct http_call){request->method, url.data, headers, body,
                                                  body == NULL ? 0 : strlen(body)},
                              out, err);
    }
    if (body != NULL)
        explicit_bzero(body, strlen(body)); /* a new provider's password may be in it */
    if (result < 0)
        return -1;
    return out->status >= 200 && out->status < 300 ? 0 : refused(api, out, err);
}

int api_call(struct api *api, const struct api_request *request, json_t **out, struct error *err)
{
    auto_http_response response = {0};

    if (send_request(api, request, &response, err) < 0)
        return -1;
    if (out == NULL)
        return 0;
    if (response.body_size == 0) {
        *out = json_null();
        return 0;
    }
    if (json_parse(response.body, response.body_size, API_BODY_BYTES_MAX, out, err) < 0) {
        err->code = ERR_PROTOCOL;
        return error_wrap(err, "answer of '%.200s'", api->url);
    }
    return 0;
}

int api_get(struct api *api, const char *path, json_t **out, struct error *err)
{
    return api_call(api, &(struct api_request){.method = "GET", .path = path}, out, err);
}

struct stream {
    CURL *handle;
    bool (*fn)(void *arg, const char *data, size_t size);
    void *arg;
    bool ended;            /* by fn */
    struct strbuf refusal; /* the body of an answer that is no success */
};

static size_t on_piece(char *data, size_t unit, size_t count, void *arg)
{
    struct stream *stream = arg;
    long status = 0;

    (void)curl_easy_getinfo(stream->handle, CURLINFO_RESPONSE_CODE, &status);
    if (status < 200 || status >= 300) {
        strbuf_add_bytes(&stream->refusal, data, unit * count);
        return unit * count;
    }
    if (stream->fn(stream->arg, data, unit * count))
        return unit * count;
    stream->ended = true;
    return 0;
}

static int perform_stream(struct api *api, struct stream *stream, const char *url,
                          const struct curl_slist *headers, struct error *err)
{
    struct http_response answer = {0};
    CURLcode code = CURLE_FAILED_INIT;

    if (curl_easy_setopt(stream->handle, CURLOPT_URL, url) == CURLE_OK &&
        curl_easy_setopt(stream->handle, CURLOPT_HTTPHEADER, headers) == CURLE_OK &&
        /* a job may be silent for long */
        curl_easy_setopt(stream->handle, CURLOPT_LOW_SPEED_TIME, 0L) == CURLE_OK &&
        curl_easy_setopt(stream->handle, CURLOPT_WRITEFUNCTION, on_piece) == CURLE_OK &&
        curl_easy_setopt(stream->handle, CURLOPT_WRITEDATA, stream) == CURLE_OK)
        code = curl_easy_perform(stream->handle);
    if (stream->ended)
        return 0;
    if (code != CURLE_OK)
        return http_error_set(err, stream->handle, code, api->url);
    (void)curl_easy_getinfo(stream->handle, CURLINFO_RESPONSE_CODE, &answer.status);
    if (answer.status >= 200 && answer.status < 300)
        return 0;
    answer.body = stream->refusal.data;
    answer.body_size = stream->refusal.length;
    return refused(api, &answer, err);
}

void api_path_add(struct strbuf *path, const char *key, const char *value)
{
    if (value == NULL)
        return;
    strbuf_addf(path, "%c%s=", strchr(path->data, '?') == NULL ? '?' : '&', key);
    strbuf_add_url(path, value);
}

int api_list(struct api *api, const struct strbuf *path, const char *key, size_t limit, json_t *out,
             struct error *err)
{
    autofree char *cursor = NULL;

    while (json_array_size(out) < limit) {
        autofree char *count =
            xasprintf("%zu", (size_t)min_u64(LIST_PAGE, limit - json_array_size(out)));
        auto_json *page = NULL;
        auto_strbuf url;
        strbuf_init(&url, API_URL_BYTES_MAX);
        strbuf_add(&url, path->data);
        api_path_add(&url, "limit", count);
        api_path_add(&url, "cursor", cursor);
        if (api_get(api, url.data, &page, err) < 0)
            return -1;
        (void)json_array_extend(out, json_object_get(page, key));
        free(cursor);
        cursor = NULL;
        if (json_str(page, "next_cursor")[0] == '\0')
            return 0;
        cursor = xstrdup(json_str(page, "next_cursor"));
    }
    return 0;
}

int api_stream(struct api *api, const char *path, const char *accept,
               bool (*fn)(void *arg, const char *data, size_t size), void *arg, struct error *err)
{
    const struct api_request request = {.method = "GET", .path = path, .accept = accept};
    const struct http_options options = {.ca_file = api->ca_file,
                                         .insecure = api->insecure,
                                         .allow_http = api->plain,
                                         .cancelled = api->cancelled};
    auto_curl_slist *headers = request_headers(api, &request);
    struct stream stream = {.fn = fn, .arg = arg};
    auto_strbuf url = {0};
    auto_curl *handle = NULL;
    int result;

    if (request_url(api, path, &url, err) < 0 || http_handle_new(&options, &handle, err) < 0)
        return -1;
    stream.handle = handle;
    strbuf_init(&stream.refusal, ERROR_MESSAGE_MAX * 8);
    result = perform_stream(api, &stream, url.data, headers, err);
    strbuf_release(&stream.refusal);
    return result;
}

int api_check(struct api *api, struct error *err)
{
    auto_json *health = NULL;

    if (api_get(api, "/health", &health, err) == 0)
        return 0;
    if (err->code != ERR_UNAVAILABLE && err->code != ERR_TIMEOUT)
        return -1;
    return error_wrap(err,
                      "no gateway answers at '%.200s' (start one with 'make run' in the source "
                      "folder or 'systemctl start hypersdk.target', or name another with "
                      "--daemon-url)",
                      api->url);
}
