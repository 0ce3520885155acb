/* See webhook_post.h. */
#include "common/webhook_post.h"

#include <string.h>
#include <strings.h>

#include "common/autos.h"

#define ANSWER_BYTES_MAX   (64 * KIB)
#define CONNECT_TIMEOUT_MS 10000

int webhook_url_check(const char *url, struct error *err)
{
    const char *rest = strncasecmp(url, "https://", 8) == 0  ? url + 8
                       : strncasecmp(url, "http://", 7) == 0 ? url + 7
                                                             : NULL;

    if (rest == NULL || strcspn(rest, "/?#") == 0)
        return error_set(err, ERR_INVALID, "'url' must begin with http:// or https:// and a host");
    if (memchr(rest, '@', strcspn(rest, "/?#")) != NULL) {
        return error_set(err, ERR_INVALID,
                         "'url' must not carry a user name or password: use 'headers'");
    }
    return 0;
}

char *webhook_url_shown(const char *url)
{
    const char *host = strstr(url, "://");
    const char *end;
    const char *user;

    if (host == NULL)
        return xstrdup("(no url)"); /* nothing that could be told apart from a secret */
    host += 3;
    end = host + strcspn(host, "/?#\\");
    user = memrchr(host, '@', (size_t)(end - host));
    return xasprintf("%.*s%.*s", (int)(host - url), url,
                     (int)(end - (user == NULL ? host : user + 1)), user == NULL ? host : user + 1);
}

int webhook_post(const struct webhook_post *post, long *out_status, struct error *err)
{
    const struct http_options options = {
        .allow_http = true,
        .connect_timeout_ms = CONNECT_TIMEOUT_MS,
        .timeout_ms = post->timeout_ms,
        .body_bytes_max = ANSWER_BYTES_MAX,
        .cancelled = post->cancelled,
        .block_private = !post->allow_private,
    };
    auto_http_response response = {0};
    auto_curl *curl = NULL;

    if (http_handle_new(&options, &curl, err) < 0 ||
        http_request(
            curl,
            &(struct http_call){"POST", post->url, post->headers, post->body, strlen(post->body)},
            &response, err) < 0)
        return -1;
    *out_status = response.status;
    return 0;
}
