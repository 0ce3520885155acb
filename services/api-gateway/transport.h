/* Between server.c (which speaks the HTTP library), dispatch.c (which decides) and route.c (which
 * handlers talk to): what came with a request and what goes back. No library types here, so that
 * everything above server.c can be tested without it. */
#ifndef GATEWAY_TRANSPORT_H
#define GATEWAY_TRANSPORT_H

#include "match.h"
#include "route.h"

#define CALL_HEADERS_MAX        100 /* browsers send about 20 */
#define CALL_QUERY_MAX          100 /* repeatable parameters: job_id */
#define CALL_ANSWER_HEADERS_MAX 16

struct subscriber;

struct call_pair {
    char *name;
    char *value;
};

enum answer_kind { ANSWER_BODY, ANSWER_STREAM, ANSWER_UPGRADE };

struct call_transport {
    /* in */
    struct call_pair headers[CALL_HEADERS_MAX];
    size_t header_count;
    struct call_pair query[CALL_QUERY_MAX]; /* decoded */
    size_t query_count;
    enum match_result matched;
    char allow[ALLOW_BYTES_MAX];
    struct error early;        /* refused before a handler is asked: its code is set */
    unsigned int early_status; /* 0: of the code */
    bool secure;               /* over our own TLS */
    int64_t started_ms;        /* monotonic: the header had arrived */
    /* out */
    enum answer_kind kind;
    struct subscriber *subscriber; /* STREAM, UPGRADE: owned until the connection takes it */
    struct call_pair answer_headers[CALL_ANSWER_HEADERS_MAX];
    size_t answer_header_count;
    const char *type; /* literal */
    char *body;
    size_t body_length;
    /* set by call_fail */
    unsigned int error_status;
    json_t *error_extra;
    const char *error_slug; /* literal; NULL: of the error code */
};

/* Frees what call and transport own (not the structs). */
void call_release(struct call *call);
/* Copies one pair; false when the list is full. */
MUST_CHECK bool call_pair_add(struct call_pair *pairs, size_t *count, size_t max, const char *name,
                              const char *value);
/* The status that err->code stands for. */
unsigned int error_http_status(enum error_code code);
/* Makes the one error body out of err and what call_fail left. Internal errors and the database's
 * words are not shown; the log has them under the request id. */
void call_answer_error(struct call *call, const struct error *err);

#endif
