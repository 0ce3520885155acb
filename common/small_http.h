/* A small HTTP server for pages that machines read (admin port, metrics-exporter): GET and HEAD
 * only, answers made at once, no TLS, no login. The REST API has its own server. */
#ifndef COMMON_SMALL_HTTP_H
#define COMMON_SMALL_HTTP_H

#include "common/strbuf.h"

#define SMALL_HTTP_BODY_BYTES_MAX ((size_t)4 * MIB)
#define SMALL_HTTP_JSON           "application/json"
#define SMALL_HTTP_TEXT           "text/plain; charset=utf-8"
#define SMALL_HTTP_METRICS        "text/plain; version=0.0.4; charset=utf-8"

struct small_http_answer {
    unsigned int status;      /* 200 at the call */
    const char *content_type; /* a literal; SMALL_HTTP_TEXT at the call */
    struct strbuf body;
};

/* Fills the answer for a path; false: 404. Runs on the server's threads (two at most at a time), so
 * it may wait a little, e.g. for a statement. */
typedef bool (*small_http_handler)(void *arg, const char *path, struct small_http_answer *answer);

/* address: host:port; name: the configuration key, for messages. *out_port: the actual one. The
 * server is never stopped: it ends with the process. */
MUST_CHECK int small_http_start(const char *name, const char *address, small_http_handler handler,
                                void *arg, uint16_t *out_port, struct error *err);

#endif
