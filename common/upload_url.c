/* See upload_url.h. */
#include "common/upload_url.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "common/parse.h"

#define BUCKET_BYTES_MIN 3
#define BUCKET_BYTES_MAX 63

static const char *const schemes[] = {"s3", "sftp"};
static const char *const schemes_later[] = {"azure", "gs", "gcs", "swift", "oss", "oci"};

static const char *find_scheme(const char *const *list, size_t count, const char *text,
                               size_t length)
{
    for (size_t i = 0; i < count; i++) {
        if (strlen(list[i]) == length && strncmp(list[i], text, length) == 0)
            return list[i];
    }
    return NULL;
}

static int parse_scheme(const char *text, struct upload_url *out, const char **out_rest,
                        struct error *err)
{
    const char *end = strstr(text, "://");
    const char *later;

    if (end == NULL) {
        return error_set(err, ERR_INVALID,
                         "upload is no URL like s3://bucket/prefix or sftp://user@host/path");
    }
    out->scheme = find_scheme(schemes, ARRAY_LEN(schemes), text, (size_t)(end - text));
    if (out->scheme != NULL) {
        *out_rest = end + 3;
        return 0;
    }
    later = find_scheme(schemes_later, ARRAY_LEN(schemes_later), text, (size_t)(end - text));
    if (later != NULL) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "upload to %s:// is not available in this version: use s3:// or sftp://",
                         later);
    }
    return error_set(err, ERR_INVALID, "unknown kind of URL: use s3:// or sftp://");
}

/* Control bytes would end up in requests and logs; the others mean something else in URLs. */
static int check_characters(const char *text, struct error *err)
{
    for (const char *p = text; *p != '\0'; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f || strchr("?#\\%", *p) != NULL) {
            return error_set(err, ERR_INVALID,
                             "control characters, '?', '#', '%%' and '\\' have no place in "
                             "the URL");
        }
    }
    return 0;
}

/* "/a/b/" -> "a/b"; no empty, "." or ".." segment. */
static int parse_path(const char *text, struct upload_url *out, struct error *err)
{
    size_t length;

    while (*text == '/')
        text++;
    length = strlen(text);
    while (length > 0 && text[length - 1] == '/')
        length--;
    (void)snprintf(out->path, sizeof out->path, "%.*s", (int)length, text);
    for (const char *p = out->path; *p != '\0';) {
        size_t n = strcspn(p, "/");
        if (n == 0 || (n == 1 && p[0] == '.') || (n == 2 && p[0] == '.' && p[1] == '.')) {
            return error_set(err, ERR_INVALID,
                             "empty, '.' and '..' parts have no place in the path");
        }
        p += n + (p[n] == '/');
    }
    return 0;
}

static int copy_name(const char *what, const char *text, size_t length, char *out,
                     struct error *err)
{
    if (length == 0 || length > UPLOAD_NAME_BYTES_MAX) {
        return error_set(err, ERR_INVALID, "%s is missing or over %d bytes", what,
                         UPLOAD_NAME_BYTES_MAX);
    }
    memcpy(out, text, length);
    out[length] = '\0';
    return 0;
}

static int parse_bucket(const char *text, size_t length, struct upload_url *out, struct error *err)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                  "._-";

    if (copy_name("the bucket", text, length, out->host, err) < 0)
        return -1;
    if (length < BUCKET_BYTES_MIN || length > BUCKET_BYTES_MAX ||
        strspn(out->host, allowed) != length || !isalnum((unsigned char)out->host[0])) {
        return error_set(err, ERR_INVALID,
                         "a bucket has %d to %d letters, digits, '.', '_' and '-'",
                         BUCKET_BYTES_MIN, BUCKET_BYTES_MAX);
    }
    return 0;
}

/* "host", "host:22", "[::1]:22" */
static int parse_host(const char *text, size_t length, struct upload_url *out, struct error *err)
{
    const char *port = NULL;
    size_t host_length = length;
    const char *host = text;

    if (length > 0 && text[0] == '[') {
        const char *end = memchr(text, ']', length);
        if (end == NULL)
            return error_set(err, ERR_INVALID, "'[' of an IPv6 address is not closed");
        host = text + 1;
        host_length = (size_t)(end - host);
        if ((size_t)(end + 1 - text) < length)
            port = end + 1;
    } else if ((port = memchr(text, ':', length)) != NULL) {
        host_length = (size_t)(port - text);
    }
    if (copy_name("the host", host, host_length, out->host, err) < 0)
        return -1;
    for (const char *p = out->host; *p != '\0'; p++) {
        if (!isalnum((unsigned char)*p) && strchr(".-_:", *p) == NULL)
            return error_set(err, ERR_INVALID, "the host is no name or address");
    }
    if (out->host[0] == '-')
        return error_set(err, ERR_INVALID, "the host is no name or address");
    if (port != NULL) {
        autofree char *digits = xstrndup(port + 1, length - (size_t)(port + 1 - text));
        if (*port != ':' || parse_u32("port", digits, 1, 65535, &out->port, err) < 0) {
            error_clear(err);
            return error_set(err, ERR_INVALID, "the port is no number from 1 to 65535");
        }
    }
    return 0;
}

static int parse_authority(const char *text, size_t length, struct upload_url *out,
                           struct error *err)
{
    const char *at = memchr(text, '@', length);

    if (strcmp(out->scheme, "s3") == 0) {
        if (at != NULL) {
            return error_set(err, ERR_INVALID,
                             "credentials have no place in the URL, they belong into "
                             "uploads.<name> of the exporter's configuration");
        }
        return parse_bucket(text, length, out, err);
    }
    if (at != NULL) {
        if (memchr(text, ':', (size_t)(at - text)) != NULL) {
            return error_set(err, ERR_INVALID,
                             "a password has no place in the URL, it belongs into "
                             "uploads.<name> of the exporter's configuration");
        }
        if (copy_name("the user", text, (size_t)(at - text), out->user, err) < 0)
            return -1;
        length -= (size_t)(at + 1 - text);
        text = at + 1;
    }
    return parse_host(text, length, out, err);
}

int upload_url_parse(const char *text, struct upload_url *out, struct error *err)
{
    struct upload_url url = {0};
    const char *rest = text;
    size_t length;

    if (strlen(text) > UPLOAD_URL_BYTES_MAX) {
        return error_set(err, ERR_INVALID, "the URL is over %d bytes", UPLOAD_URL_BYTES_MAX);
    }
    if (!utf8_is_valid(text))
        return error_set(err, ERR_INVALID, "the URL is not UTF-8");
    if (parse_scheme(text, &url, &rest, err) < 0 || check_characters(rest, err) < 0)
        return -1;
    length = strcspn(rest, "/");
    if (parse_authority(rest, length, &url, err) < 0 || parse_path(rest + length, &url, err) < 0)
        return -1;
    *out = url;
    return 0;
}

char *upload_url_text(const struct upload_url *url, const char *object)
{
    bool v6 = strchr(url->host, ':') != NULL;
    autofree char *port = url->port == 0 ? xstrdup("") : xasprintf(":%u", url->port);

    return xasprintf("%s://%s%s%s%s%s%s/%s%s%s", url->scheme, url->user,
                     url->user[0] == '\0' ? "" : "@", v6 ? "[" : "", url->host, v6 ? "]" : "", port,
                     url->path, url->path[0] == '\0' || object[0] == '\0' ? "" : "/", object);
}
