/* One table of routes (routes.c) drives routing, permissions, audit, limits and the OpenAPI check.
 *
 * A handler runs on a thread of the gateway's pool; call->db is that thread's own connection (a
 * slow handler may wait with it, no other thread lacks it). It never sees the HTTP library. It
 * answers through the call_* functions and returns 0, or returns -1 with err set: the one error
 * shape and the status are made from err->code (route.c): INVALID 400 (422 for ROUTE_SEMANTIC
 * errors, see call_fail), DENIED 403, NOT_FOUND 404, CONFLICT 409, LIMIT 413/429, TIMEOUT and
 * UNAVAILABLE 503, NOT_AVAILABLE 422 code "not_available", CANCELLED 409, else 500. */
#ifndef GATEWAY_ROUTE_H
#define GATEWAY_ROUTE_H

#include <jansson.h>

#include "common/db.h"
#include "common/id.h"
#include "gateway.h"

#define ROUTE_PARAMS_MAX 4

#define ROUTE_OPEN   1U  /* no identity needed */
#define ROUTE_SELF   2U  /* any identity */
#define ROUTE_SLOW   4U  /* may wait for a worker (30 s): runs on the slow pool */
#define ROUTE_SHORT  8U  /* answers in the short family's shape (array, 200 instead of 201 ...) */
#define ROUTE_STREAM 16U /* handler may hand the connection to the event hub; cookie accepted */
#define ROUTE_NO_DB                                                             \
    32U /* works without a database (health, openapi): call->db is NULL, and no \
           audit row: probes come every few seconds and show nothing */
#define ROUTE_PASSWORD  64U  /* hashes a password (64 MiB for 0.1 s): runs on a pool of its own */
#define ROUTE_LATE_AUTH 128U /* WebSocket: identity may come with the first message instead */

struct call;

struct route {
    const char *method;
    const char *path;       /* "/api/v1/jobs/{id}" or "/jobs/progress/{id}"; literals win over {} */
    const char *permission; /* NULL with ROUTE_OPEN, ROUTE_SELF */
    const char *action;     /* audit action: "job.create"; NULL only with ROUTE_NO_DB */
    const char *operation;  /* OpenAPI operationId of the resource path; both families share it */
    unsigned int flags;
    int (*handler)(struct call *call, struct error *err);
};

extern const struct route routes[];
extern const size_t routes_count;

struct identity {
    char user_id[64]; /* "" in dev mode and without identity */
    char username[128];
    char session_id[64]; /* "" for API keys */
    char **permissions;  /* union over the roles */
    size_t permission_count;
    char **roles;
    size_t role_count;
    bool dev; /* dev mode: all permissions */
};
bool identity_may(const struct identity *identity, const char *permission);

struct call { /* one request while it is handled */
    struct gateway *gateway;
    const struct route *route;
    struct db *db; /* NULL with ROUTE_NO_DB */
    struct identity identity;
    char request_id[ID_SIZE];
    char traceparent[TRACEPARENT_SIZE];
    char trace_id[33];
    const char *method;
    const char *path;
    const char *ip;
    json_t *body;            /* parsed and an object or array; NULL without a body */
    const uint8_t *raw_body; /* as received, for idempotency hashes */
    size_t raw_body_size;
    struct {
        const char *name;
        char *value;
    } params[ROUTE_PARAMS_MAX]; /* of the path, decoded */
    size_t param_count;
    struct call_transport *transport; /* route.c and server.c only */
    /* the answer */
    unsigned int status;
    /* for the audit row */
    char resource[256];    /* "job/job-7c1e" */
    json_t *audit_details; /* object, never secrets */
};

const char *call_param(const struct call *call, const char *name); /* path; "" when absent */
const char *call_query(const struct call *call, const char *name); /* NULL when absent */
/* All values of a repeatable query parameter, at most max; returns how many. */
size_t call_query_all(const struct call *call, const char *name, const char **out, size_t max);
const char *call_header(const struct call *call, const char *name); /* NULL when absent */
bool call_accepts(const struct call *call, const char *type);       /* Accept names it */

void call_answer_json(struct call *call, unsigned int status, json_t *json_taken);
void call_answer_text(struct call *call, unsigned int status, const char *type, char *text_taken);
void call_set_header(struct call *call, const char *name, const char *value);
/* error_set with another status than the code's: e.g. 422 with ERR_INVALID. `field` (may be NULL)
 * and `extra` (members of the error object, e.g. candidates; taken, may be NULL). */
int call_fail(struct call *call, unsigned int status, json_t *extra_taken, struct error *err,
              enum error_code code, const char *format, ...) PRINTF_LIKE(6, 7);
/* The next page's position etc.: a whole number from the query. Absent: *out stays. ERR_INVALID. */
MUST_CHECK int call_query_u64(const struct call *call, const char *name, uint64_t min, uint64_t max,
                              uint64_t *out, struct error *err);
/* ERR_INVALID naming the first query parameter that is not in names (NULL-terminated). */
MUST_CHECK int call_check_query(const struct call *call, const char *const *names,
                                struct error *err);
/* ERR_INVALID unless the body is an object whose keys are all in names (NULL-terminated). */
MUST_CHECK int call_check_body(const struct call *call, const char *const *names,
                               struct error *err);
void call_audit(struct call *call, const char *key, const char *value);
void call_resource(struct call *call, const char *kind, const char *id);

/* A running stream to this client (logs with follow): hub.h. */

#endif
