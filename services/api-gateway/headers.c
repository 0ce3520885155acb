/* See headers.h. */
#include "headers.h"

#include <string.h>
#include <strings.h>

#include "common/error.h"
#include "common/parse.h"

const char *header_bearer(const char *authorization)
{
    static const char scheme[] = "Bearer ";

    if (authorization == NULL || strncasecmp(authorization, scheme, sizeof scheme - 1) != 0)
        return NULL;
    authorization += sizeof scheme - 1;
    authorization += strspn(authorization, " ");
    return *authorization == '\0' ? NULL : authorization;
}

bool header_cookie(const char *cookies, const char *name, char out[TOKEN_BYTES_MAX])
{
    size_t name_length = strlen(name);

    while (cookies != NULL && *cookies != '\0') {
        size_t length;
        cookies += strspn(cookies, "; ");
        length = strcspn(cookies, ";");
        if (length > name_length && strncmp(cookies, name, name_length) == 0 &&
            cookies[name_length] == '=') {
            size_t size = length - name_length - 1;
            if (size == 0 || size >= TOKEN_BYTES_MAX)
                return false;
            memcpy(out, cookies + name_length + 1, size);
            out[size] = '\0';
            return true;
        }
        cookies += length;
    }
    return false;
}

bool header_accepts(const char *accept, const char *type)
{
    size_t wanted = strlen(type);

    while (accept != NULL && *accept != '\0') {
        size_t length;
        accept += strspn(accept, ", \t");
        length = strcspn(accept, ",; \t");
        if (length == wanted && strncasecmp(accept, type, wanted) == 0)
            return true;
        accept += strcspn(accept, ",");
    }
    return false;
}

bool header_origin_allowed(const char *origin, const char *host, const struct config_list *allowed)
{
    const char *authority = strstr(origin, "://");

    /* the scheme is not compared: TLS may end in front of us */
    if (authority != NULL && host != NULL && strcasecmp(authority + 3, host) == 0 &&
        (strncmp(origin, "http://", 7) == 0 || strncmp(origin, "https://", 8) == 0))
        return true;
    for (size_t i = 0; i < allowed->count; i++) {
        if (strcmp(allowed->items[i], origin) == 0)
            return true;
    }
    return false;
}

/* 127.a.b.c and nothing else */
static bool is_loopback_v4(const char *text, size_t length)
{
    size_t dots = 0;

    if (length < 9 || strncmp(text, "127.", 4) != 0)
        return false;
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '.') {
            dots++;
        } else if (text[i] < '0' || text[i] > '9') {
            return false;
        }
    }
    return dots == 3;
}

bool header_host_is_loopback(const char *host)
{
    size_t length;

    if (host == NULL)
        return false;
    if (strncmp(host, "[::1]", 5) == 0)
        return host[5] == '\0' || host[5] == ':';
    length = strcspn(host, ":");
    return (length == 9 && strncasecmp(host, "localhost", 9) == 0) || is_loopback_v4(host, length);
}

bool header_is_json(const char *content_type)
{
    static const char json[] = "application/json";
    static const char suffix[] = "+json";
    size_t length;

    if (content_type == NULL)
        return false;
    length = strcspn(content_type, "; \t");
    if (length == sizeof json - 1 && strncasecmp(content_type, json, length) == 0)
        return true;
    return length > sizeof suffix - 1 &&
           strncasecmp(content_type + length - (sizeof suffix - 1), suffix, sizeof suffix - 1) == 0;
}

bool header_length(const char *text, uint64_t *out)
{
    struct error ignored = ERROR_NONE;

    return parse_u64("Content-Length", text, 0, UINT64_MAX, out, &ignored) == 0;
}
