/* See match.h. */
#include "match.h"

#include <stdio.h>
#include <string.h>

#include "common/strbuf.h"

/* One segment of *at, which stands behind a slash; moves *at behind it. */
static size_t segment(const char *at)
{
    return strcspn(at, "/");
}

/* Does pattern fit the path? Parameters go to *out; *literals counts the literal segments. */
static bool fits(const char *pattern, const char *path, struct match *out, size_t *literals)
{
    size_t last = 0;

    out->param_count = 0;
    *literals = 0;
    while (*pattern == '/' && *path == '/') {
        size_t wanted = segment(++pattern);
        size_t have = segment(++path);

        if (have == 0 && wanted != 0)
            return false;
        if (pattern[0] == '{' && out->param_count < ROUTE_PARAMS_MAX) {
            out->params[out->param_count].name = pattern + 1;
            out->params[out->param_count].name_length = wanted - 2;
            out->params[out->param_count].value = path;
            out->params[out->param_count].value_length = have;
            out->param_count++;
        } else if (wanted != have || memcmp(pattern, path, wanted) != 0) {
            return false;
        } else {
            ++*literals;
        }
        pattern += wanted;
        path += have;
        last = have;
    }
    return *pattern == '\0' && (*path == '\0' || (last > 0 && strcmp(path, "/") == 0));
}

static void add_allowed(struct strbuf *allow, const char *method)
{
    if (strstr(allow->data, method) != NULL)
        return;
    if (allow->length > 0)
        strbuf_add(allow, ", ");
    strbuf_add(allow, method);
    if (strcmp(method, "GET") == 0)
        strbuf_add(allow, ", HEAD");
}

/* How many literal segments the most exact route has that fits; 0: none fits. */
static size_t most_literals(const struct route *table, size_t count, const char *path)
{
    size_t most = 0;

    for (size_t i = 0; i < count; i++) {
        struct match ignored;
        size_t literals;
        if (fits(table[i].path, path, &ignored, &literals) && literals > most)
            most = literals;
    }
    return most;
}

enum match_result match_route(const struct route *table, size_t count, const char *method,
                              const char *path, struct match *out)
{
    const char *wanted = strcmp(method, "HEAD") == 0 ? "GET" : method;
    size_t most = most_literals(table, count, path);
    auto_strbuf allow;

    *out = (struct match){0};
    strbuf_init(&allow, ALLOW_BYTES_MAX - 1);
    for (size_t i = 0; i < count && most > 0; i++) {
        struct match try = {.route = &table[i]};
        size_t literals;

        if (!fits(table[i].path, path, &try, &literals) || literals < most)
            continue;
        add_allowed(&allow, table[i].method);
        if (out->route == NULL && strcmp(table[i].method, wanted) == 0)
            *out = try;
    }
    if (most == 0)
        return MATCH_NONE;
    add_allowed(&allow, "OPTIONS");
    (void)snprintf(out->allow, sizeof out->allow, "%s", allow.data);
    return out->route != NULL ? MATCH_FOUND : MATCH_OTHER_METHOD;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

int match_decode(const char *name, const char *text, size_t length, char **out, struct error *err)
{
    autofree char *value = NULL;
    size_t n = 0;

    if (length > 3 * PARAM_BYTES_MAX)
        return error_set(err, ERR_LIMIT, "'%.64s' is longer than %d bytes", name, PARAM_BYTES_MAX);
    value = xmalloc(length + 1);
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (c == '%') {
            int high = i + 2 < length ? hex_digit(text[i + 1]) : -1;
            int low = i + 2 < length ? hex_digit(text[i + 2]) : -1;
            if (high < 0 || low < 0)
                return error_set(err, ERR_INVALID, "'%.64s' has a malformed %%-escape", name);
            c = (char)(high * 16 + low);
            i += 2;
        }
        if (c == '\0')
            return error_set(err, ERR_INVALID, "'%.64s' holds a NUL byte", name);
        value[n++] = c;
    }
    value[n] = '\0';
    if (n > PARAM_BYTES_MAX)
        return error_set(err, ERR_LIMIT, "'%.64s' is longer than %d bytes", name, PARAM_BYTES_MAX);
    if (!utf8_is_valid(value))
        return error_set(err, ERR_INVALID, "'%.64s' is not UTF-8", name);
    *out = STEAL(value);
    return 0;
}
