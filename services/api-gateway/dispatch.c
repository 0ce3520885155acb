/* See dispatch.h. */
#include "dispatch.h"

#include <stdio.h>
#include <string.h>

#include "audit.h"
#include "auth.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/log.h"
#include "common/metrics.h"
#include "headers.h"
#include "later_routes.h"
#include "stream.h"

#define METRIC_LABELS_MAX 512

/* ---- finding the route ---- */

static int take_params(struct call *call, const struct match *match, struct error *err)
{
    for (size_t i = 0; i < match->param_count; i++) {
        if (match_decode("path", match->params[i].value, match->params[i].value_length,
                         &call->params[i].value, err) < 0)
            return -1;
        call->params[i].name = match->params[i].name;
        call->param_count = i + 1;
    }
    return 0;
}

enum dispatch_pool dispatch_route(struct call *call)
{
    struct call_transport *transport = call->transport;
    struct match match;

    transport->matched = match_route(routes, routes_count, call->method, call->path, &match);
    memcpy(transport->allow, match.allow, sizeof transport->allow);
    if (transport->matched != MATCH_FOUND)
        return strcmp(call->method, "OPTIONS") == 0 ? DISPATCH_LIGHT : DISPATCH_FAST;
    call->route = match.route;
    if (transport->early.code == ERR_NONE)
        (void)take_params(call, &match, &transport->early);
    if ((call->route->flags & ROUTE_NO_DB) != 0)
        return DISPATCH_LIGHT;
    if (transport->early.code != ERR_NONE)
        return DISPATCH_FAST;
    if ((call->route->flags & ROUTE_PASSWORD) != 0)
        return DISPATCH_PASSWORD;
    return (call->route->flags & ROUTE_SLOW) != 0 ? DISPATCH_SLOW : DISPATCH_FAST;
}

/* ---- deciding ---- */

static bool is_unsafe(const char *method)
{
    return strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0 &&
           strcmp(method, "OPTIONS") != 0;
}

/* Pages of other origins must not act in a user's name: in dev mode everyone on this machine is
 * admin, and a browser runs on it. */
static int check_origin(const struct call *call, struct error *err)
{
    const char *origin = call_header(call, "Origin");
    const char *host = call_header(call, "Host");
    bool stream = call->route != NULL && (call->route->flags & ROUTE_STREAM) != 0;

    if (call->gateway->daemon.dev_mode && host != NULL && !header_host_is_loopback(host))
        return error_set(err, ERR_DENIED, "in dev mode the Host header must name this machine");
    if (origin == NULL || (!is_unsafe(call->method) && !stream) ||
        header_origin_allowed(origin, host, &call->gateway->security.allowed_origins))
        return 0;
    return error_set(err, ERR_DENIED,
                     "pages of this origin may not call here (security.allowed_origins)");
}

static int not_found(struct call *call, struct error *err)
{
    struct call_transport *transport = call->transport;

    if (transport->matched == MATCH_OTHER_METHOD) {
        call_set_header(call, "Allow", transport->allow);
        transport->error_slug = "method_not_allowed";
        return call_fail(call, 405, NULL, err, ERR_INVALID, "%.16s is not possible here; Allow: %s",
                         call->method, transport->allow);
    }
    if (later_route(call->method, call->path)) {
        return call_fail(call, 404, NULL, err, ERR_NOT_AVAILABLE,
                         "this endpoint is not available yet");
    }
    return error_set(err, ERR_NOT_FOUND, "there is no such endpoint");
}

static int unauthenticated(struct call *call, struct error *err, const char *text)
{
    call_set_header(call, "WWW-Authenticate", "Bearer realm=\"hypersdk\"");
    return call_fail(call, 401, NULL, err, ERR_DENIED, "%s", text);
}

static int authorize(struct call *call, struct db *db, struct error *err)
{
    const struct route *route = call->route;
    struct error why = ERROR_NONE;

    if ((route->flags & ROUTE_OPEN) != 0)
        return 0;
    if (auth_identify(call, db, &why) < 0) {
        if (why.code == ERR_DENIED)
            return unauthenticated(call, err, why.message);
        *err = why;
        return -1;
    }
    if (call->identity.username[0] == '\0' && (route->flags & ROUTE_LATE_AUTH) != 0)
        return 0;
    if (call->identity.username[0] == '\0')
        return unauthenticated(call, err, "log in first: Authorization: Bearer, or X-API-Key");
    if (route->permission == NULL || identity_may(&call->identity, route->permission))
        return 0;
    call_audit(call, "permission", route->permission);
    return call_fail(call, 403, json_pack("{s:s}", "permission", route->permission), err,
                     ERR_DENIED, "permission '%s' is missing", route->permission);
}

static int parse_body(struct call *call, struct error *err)
{
    struct error why = ERROR_NONE;
    size_t size_max = (size_t)call->gateway->security.max_request_size_mb * MIB;

    if (call->raw_body_size == 0)
        return 0;
    if (!is_unsafe(call->method))
        return error_set(err, ERR_INVALID, "a %.8s request takes no body", call->method);
    if (body_parse((const char *)call->raw_body, call->raw_body_size, size_max,
                   header_is_json(call_header(call, "Content-Type")), &call->body, &why) < 0)
        return call_fail(call, 400, NULL, err, ERR_INVALID, "body: %s", why.message);
    if (!json_is_object(call->body) && !json_is_array(call->body))
        return error_set(err, ERR_INVALID, "body: an object or a list is expected");
    return 0;
}

static int decide(struct call *call, struct db *db, struct error *err)
{
    struct call_transport *transport = call->transport;

    if (transport->early.code != ERR_NONE) {
        *err = transport->early;
        transport->error_status = transport->early_status;
        return -1;
    }
    if (check_origin(call, err) < 0)
        return -1;
    if (transport->matched != MATCH_FOUND)
        return not_found(call, err);
    call->db = db;
    if (authorize(call, db, err) < 0 || parse_body(call, err) < 0)
        return -1;
    return call->route->handler(call, err);
}

/* ---- browsers ---- */

static void add_cors(struct call *call)
{
    const char *origin = call_header(call, "Origin");

    if (origin == NULL)
        return;
    call_set_header(call, "Vary", "Origin");
    if (!header_origin_allowed(origin, call_header(call, "Host"),
                               &call->gateway->security.allowed_origins))
        return;
    call_set_header(call, "Access-Control-Allow-Origin", origin);
    call_set_header(call, "Access-Control-Expose-Headers",
                    "Location, Retry-After, X-Request-Id, traceparent");
    if (strcmp(call->method, "OPTIONS") == 0) {
        call_set_header(call, "Access-Control-Allow-Methods", call->transport->allow);
        call_set_header(call, "Access-Control-Allow-Headers",
                        "Authorization, Content-Type, Idempotency-Key, X-API-Key, traceparent");
        call_set_header(call, "Access-Control-Max-Age", "600");
    }
}

/* A question about the path, not a call: needs no identity, leaves no row. */
static void answer_options(struct call *call)
{
    if (call->transport->matched == MATCH_NONE) {
        struct error err = ERROR_NONE;
        (void)error_set(&err, ERR_NOT_FOUND, "there is no such endpoint");
        call_answer_error(call, &err);
        return;
    }
    call_set_header(call, "Allow", call->transport->allow);
    call_answer_text(call, 204, NULL, xstrdup(""));
}

/* ---- around it ---- */

static void measure(const struct call *call)
{
    auto_strbuf labels;
    auto_strbuf with_status;
    char status[16];
    double seconds = (double)(clock_mono_ms() - call->transport->started_ms) / 1000.0;

    (void)snprintf(status, sizeof status, "%u", call->status);
    strbuf_init(&labels, METRIC_LABELS_MAX);
    metric_label(&labels, "method", call->route != NULL ? call->route->method : "other");
    metric_label(&labels, "endpoint", call->route != NULL ? call->route->path : "other");
    strbuf_init(&with_status, METRIC_LABELS_MAX);
    strbuf_add(&with_status, labels.data);
    metric_label(&with_status, "status_code", status);
    metric_add("hypersdk_api_requests_total", with_status.data, 1);
    metric_observe("hypersdk_api_request_duration_seconds", labels.data, seconds);
}

static void drop_stream(struct call *call)
{
    live_answer_drop(call->gateway, call->transport->subscriber);
    call->transport->subscriber = NULL;
}

/* The row and the answer belong together: without the row the call is not acknowledged. */
static void store_audit(struct call *call, struct db *db)
{
    struct error err = ERROR_NONE;

    if (db_in_transaction(db))
        db_rollback(db); /* of a handler that failed */
    if (audit_write(call, db, &err) == 0)
        return;
    drop_stream(call);
    call->transport->error_status = 0;
    call->transport->error_slug = NULL;
    if (call->status != 503)
        call_answer_error(call, &err);
}

void dispatch_run(struct call *call, struct db *db)
{
    struct error err = ERROR_NONE;
    LOG_SCOPE(NULL, call->trace_id);

    if (strcmp(call->method, "OPTIONS") == 0) {
        answer_options(call);
        add_cors(call);
        return;
    }
    if (decide(call, db, &err) < 0) {
        drop_stream(call);
        call_answer_error(call, &err);
        call_audit(call, "error", error_code_name(err.code));
    }
    assert(call->status != 0); /* a handler that succeeds has answered */
    if (db != NULL)
        store_audit(call, db);
    add_cors(call);
    measure(call);
}
