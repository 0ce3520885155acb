/* One POST to an address that a user named: never to a private one unless that is allowed, bounded
 * in time and size. */
#ifndef COMMON_WEBHOOK_POST_H
#define COMMON_WEBHOOK_POST_H

#include "common/http_client.h"

#define WEBHOOK_URL_BYTES_MAX 2048

struct webhook_post { /* borrowed */
    const char *url;
    const struct curl_slist *headers;
    const char *body;
    int64_t timeout_ms;
    bool allow_private;           /* webhooks.allow_private */
    const atomic_bool *cancelled; /* may be NULL */
};
/* http(s) with a host and without a user name or password. ERR_INVALID. */
MUST_CHECK int webhook_url_check(const char *url, struct error *err);
/* What logs and errors say of the url: scheme, host and port. User info, path and query are left
 * out, all of them carry tokens of receivers. Caller frees. */
char *webhook_url_shown(const char *url);
/* *out_status: of any answer. Errors as those of http_request; ERR_DENIED and ERR_INVALID do not
 * pass. */
MUST_CHECK int webhook_post(const struct webhook_post *post, long *out_status, struct error *err);

#endif
