/* The foreign text of a request head: path, parameters, query value, headers. The input is lines:
 * method, path, then header values that each reader gets. */
#include <assert.h>
#include <string.h>

#include "services/api-gateway/headers.h"
#include "services/api-gateway/later_routes.h"
#include "services/api-gateway/match.h"

#define LINES_MAX 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void match_path(const char *method, const char *path)
{
    struct match match;
    enum match_result result = match_route(routes, routes_count, method, path, &match);

    assert((result == MATCH_FOUND) == (match.route != NULL));
    assert(result == MATCH_NONE || match.allow[0] != '\0');
    for (size_t i = 0; i < match.param_count; i++) {
        autofree char *value = NULL;
        struct error err = ERROR_NONE;
        assert(match.params[i].value_length > 0);
        if (match_decode("p", match.params[i].value, match.params[i].value_length, &value, &err) <
            0)
            continue;
        assert(strlen(value) <= PARAM_BYTES_MAX);
    }
    (void)later_route(method, path);
}

static void read_headers(const char *text, const char *other)
{
    static const struct config_list none = {0};
    char token[TOKEN_BYTES_MAX];
    uint64_t length;

    (void)header_bearer(text);
    if (header_cookie(text, SESSION_COOKIE, token))
        assert(strlen(token) < TOKEN_BYTES_MAX);
    (void)header_accepts(text, "text/event-stream");
    (void)header_origin_allowed(text, other, &none);
    (void)header_host_is_loopback(text);
    (void)header_is_json(text);
    (void)header_length(text, &length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    autofree char *text = xstrndup((const char *)data, size);
    const char *lines[LINES_MAX] = {"GET", "/"};
    size_t count = 0;

    for (char *at = text; at != NULL && count < LINES_MAX; count++) {
        char *end = strchr(at, '\n');
        lines[count] = at;
        if (end != NULL)
            *end++ = '\0';
        at = end;
    }
    match_path(lines[0], lines[1]);
    for (size_t i = 2; i < count; i++)
        read_headers(lines[i], lines[i - 1]);
    return 0;
}
