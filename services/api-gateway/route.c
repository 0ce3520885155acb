/* What handlers see of a request, and the shape of answers; see route.h and transport.h. */
#include "route.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/log.h"
#include "common/parse.h"
#include "headers.h"
#include "transport.h"

bool identity_may(const struct identity *identity, const char *permission)
{
    size_t length = strlen(permission);

    if (identity->dev)
        return true;
    /* who may do it to all jobs may do it to his own */
    if (length > 4 && strcmp(permission + length - 4, ".own") == 0)
        length -= 4;
    for (size_t i = 0; i < identity->permission_count; i++) {
        const char *have = identity->permissions[i];
        if (strcmp(have, permission) == 0 ||
            (strlen(have) == length && strncmp(have, permission, length) == 0))
            return true;
    }
    return false;
}

bool call_pair_add(struct call_pair *pairs, size_t *count, size_t max, const char *name,
                   const char *value)
{
    if (*count == max)
        return false;
    pairs[*count].name = xstrdup(name);
    pairs[*count].value = xstrdup(value);
    ++*count;
    return true;
}

static void release_pairs(struct call_pair *pairs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(pairs[i].name);
        explicit_bzero(pairs[i].value, strlen(pairs[i].value)); /* tokens travel in headers */
        free(pairs[i].value);
    }
}

void call_release(struct call *call)
{
    struct call_transport *transport = call->transport;

    for (size_t i = 0; i < call->param_count; i++)
        free(call->params[i].value);
    json_decref(call->body);
    json_decref(call->audit_details);
    for (size_t i = 0; i < call->identity.permission_count; i++)
        free(call->identity.permissions[i]);
    free(call->identity.permissions);
    for (size_t i = 0; i < call->identity.role_count; i++)
        free(call->identity.roles[i]);
    free(call->identity.roles);
    release_pairs(transport->headers, transport->header_count);
    release_pairs(transport->query, transport->query_count);
    release_pairs(transport->answer_headers, transport->answer_header_count);
    free(transport->body);
    json_decref(transport->error_extra);
}

const char *call_param(const struct call *call, const char *name)
{
    for (size_t i = 0; i < call->param_count; i++) {
        const char *have = call->params[i].name; /* ends with '}' in the route's path */
        size_t length = strlen(name);
        if (strncmp(have, name, length) == 0 && have[length] == '}')
            return call->params[i].value;
    }
    return "";
}

const char *call_query(const struct call *call, const char *name)
{
    const char *value = NULL;

    return call_query_all(call, name, &value, 1) == 0 ? NULL : value;
}

size_t call_query_all(const struct call *call, const char *name, const char **out, size_t max)
{
    size_t n = 0;

    for (size_t i = 0; i < call->transport->query_count && n < max; i++) {
        if (strcmp(call->transport->query[i].name, name) == 0)
            out[n++] = call->transport->query[i].value;
    }
    return n;
}

const char *call_header(const struct call *call, const char *name)
{
    for (size_t i = 0; i < call->transport->header_count; i++) {
        if (strcasecmp(call->transport->headers[i].name, name) == 0)
            return call->transport->headers[i].value;
    }
    return NULL;
}

bool call_accepts(const struct call *call, const char *type)
{
    return header_accepts(call_header(call, "Accept"), type);
}

static void set_body(struct call *call, unsigned int status, const char *type, char *body_taken)
{
    struct call_transport *transport = call->transport;

    free(transport->body);
    transport->kind = ANSWER_BODY;
    transport->type = type;
    transport->body = body_taken;
    transport->body_length = strlen(body_taken);
    call->status = status;
}

void call_answer_json(struct call *call, unsigned int status, json_t *json_taken)
{
    set_body(call, status, "application/json", json_text(json_taken));
    json_decref(json_taken);
}

void call_answer_text(struct call *call, unsigned int status, const char *type, char *text_taken)
{
    set_body(call, status, type, text_taken);
}

void call_set_header(struct call *call, const char *name, const char *value)
{
    struct call_transport *transport = call->transport;
    bool added = call_pair_add(transport->answer_headers, &transport->answer_header_count,
                               CALL_ANSWER_HEADERS_MAX, name, value);

    assert(added);
}

int call_fail(struct call *call, unsigned int status, json_t *extra_taken, struct error *err,
              enum error_code code, const char *format, ...)
{
    char message[ERROR_MESSAGE_MAX];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(message, sizeof message, format, args);
    va_end(args);
    call->transport->error_status = status;
    json_decref(call->transport->error_extra);
    call->transport->error_extra = extra_taken;
    return error_set(err, code, "%s", message);
}

void call_audit(struct call *call, const char *key, const char *value)
{
    if (call->audit_details == NULL)
        call->audit_details = json_object();
    json_set_text(call->audit_details, key, value);
}

void call_resource(struct call *call, const char *kind, const char *id)
{
    (void)snprintf(call->resource, sizeof call->resource, "%s/%.200s", kind, id);
}

int call_query_u64(const struct call *call, const char *name, uint64_t min, uint64_t max,
                   uint64_t *out, struct error *err)
{
    const char *text = call_query(call, name);

    return text == NULL ? 0 : parse_u64(name, text, min, max, out, err);
}

static bool is_one_of(const char *name, const char *const *names)
{
    for (size_t i = 0; names[i] != NULL; i++) {
        if (strcmp(names[i], name) == 0)
            return true;
    }
    return false;
}

int call_check_query(const struct call *call, const char *const *names, struct error *err)
{
    for (size_t i = 0; i < call->transport->query_count; i++) {
        const char *name = call->transport->query[i].name;
        if (!is_one_of(name, names))
            return error_set(err, ERR_INVALID, "unknown query parameter '%.64s'", name);
    }
    return 0;
}

int call_check_body(const struct call *call, const char *const *names, struct error *err)
{
    if (call->body == NULL)
        return error_set(err, ERR_INVALID, "the request has no body");
    return json_check_keys(call->body, names, err);
}

unsigned int error_http_status(enum error_code code)
{
    switch (code) {
    case ERR_INVALID:
        return 400;
    case ERR_DENIED:
        return 403;
    case ERR_NOT_FOUND:
        return 404;
    case ERR_CONFLICT:
    case ERR_CANCELLED:
    case ERR_SOURCE_CHANGED:
        return 409;
    case ERR_LIMIT:
        return 413;
    case ERR_NOT_AVAILABLE:
        return 422;
    case ERR_TIMEOUT:
    case ERR_UNAVAILABLE:
        return 503;
    case ERR_NONE:
    case ERR_PROTOCOL:
    case ERR_CORRUPT:
    case ERR_INTERNAL:
        break;
    }
    return 500;
}

static const char *slug_of(const struct call *call, const struct error *err)
{
    if (call->transport->error_slug != NULL)
        return call->transport->error_slug;
    switch (call->status) {
    case 401:
        return "unauthenticated";
    case 413:
        return "too_large";
    case 429:
        return "rate_limited";
    default:
        return error_code_name(err->code);
    }
}

/* What the client may read of it: details of our own troubles stay in the log. */
static const char *shown_message(const struct call *call, const struct error *err)
{
    if (call->status >= 500 && strstr(err->message, "database") != NULL)
        return "the database is not available";
    return call->status == 500 ? "internal error; the log has it under this request id"
                               : err->message;
}

void call_answer_error(struct call *call, const struct error *err)
{
    struct call_transport *transport = call->transport;
    char now[CLOCK_RFC3339_SIZE];
    json_t *body = json_object();

    call->status =
        transport->error_status != 0 ? transport->error_status : error_http_status(err->code);
    if (call->status >= 500) {
        LOG(ERROR, "request_failed", F_STR("request_id", call->request_id),
            F_STR("path", call->path), F_U64("status", call->status), F_ERR(err));
    }
    clock_rfc3339_now(now);
    json_set_text(body, "error", shown_message(call, err));
    json_set_text(body, "code", slug_of(call, err));
    json_set_text(body, "timestamp", now);
    json_set_text(body, "request_id", call->request_id);
    if (transport->error_extra != NULL)
        (void)json_object_update_missing(body, transport->error_extra);
    if (call->status == 503)
        call_set_header(call, "Retry-After", "2");
    call_answer_json(call, call->status, body);
}
