/* The one place that makes libcurl handles. Checks certificates, limits protocols and sizes,
 * never follows redirects by itself, never logs headers. One handle per thread. */
#ifndef COMMON_HTTP_CLIENT_H
#define COMMON_HTTP_CLIENT_H

#include <curl/curl.h>
#include <stdatomic.h>

#include "common/error.h"

struct http_options {
    const char *ca_file;    /* NULL: system's */
    const char *thumbprint; /* NULL, or SHA-1 ("AA:BB:..") or SHA-256 of the leaf certificate; then
                               the chain and name need not verify */
    bool insecure;          /* no verification at all */
    bool allow_http;        /* else https only */
    int64_t connect_timeout_ms;   /* 0: 10 s */
    int64_t timeout_ms;           /* whole transfer; 0: only stall detection (30 s below 1 KiB/s) */
    size_t body_bytes_max;        /* 0: 1 MiB */
    const atomic_bool *cancelled; /* may be NULL */
    bool block_private; /* refuse loopback, private, link-local peers (checked on the connected
                           address) */
};

/* libcurl's global set-up; idempotent, thread-safe. service_main calls it before threads start,
 * http_handle_new for programs without one. */
void http_global_init(void);

/* A handle set up by options, to be used for many requests; options' strings must outlive it.
 * CURLOPT_PRIVATE is taken. With timeout_ms there is no stall detection (long polls are silent). */
MUST_CHECK int http_handle_new(const struct http_options *options, CURL **out, struct error *err);

struct http_response {
    long status;
    char *body; /* NUL-terminated, never NULL after success */
    size_t body_size;
    char *content_type; /* "" when absent */
};
void http_response_release(struct http_response *response);
#define auto_http_response CLEANUP(http_response_release) struct http_response

struct http_call {
    const char *method;
    const char *url;
    const struct curl_slist *headers; /* "Name: value" items, or NULL */
    const void *body;                 /* NULL for GET */
    size_t body_size;
};

/* One request. Any HTTP status is success here: look at response->status. Transport failures:
 * ERR_UNAVAILABLE, ERR_TIMEOUT, ERR_DENIED (certificate; the message tells the presented
 * thumbprint), ERR_CANCELLED, ERR_LIMIT (body too big). */
MUST_CHECK int http_request(CURL *handle, const struct http_call *call, struct http_response *out,
                            struct error *err);
/* A line of an answer's head, for callers with a CURLOPT_HEADERFUNCTION of their own. */
#define HTTP_HEADER_BYTES_MAX 1024 /* none that we look at is that long */
struct http_header {
    char line[HTTP_HEADER_BYTES_MAX]; /* holds name and value */
    long status;       /* of a status line, which begins a new answer; 0: none in it */
    const char *name;  /* NULL: a status line */
    const char *value; /* without white space around it */
};
/* false: a line to pass over. */
bool http_header_read(const char *data, size_t size, struct http_header *out);

/* Maps a CURLcode to an error, for callers with their own callbacks. */
int http_error_set(struct error *err, CURL *handle, CURLcode code, const char *what);

#endif
