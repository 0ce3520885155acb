/* See audit.h. */
#include "audit.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/log.h"

#define AUDIT_PATH_MAX       512
#define AUDIT_USER_AGENT_MAX 256

/* Printable ASCII of text, cut: what strangers send must fit PostgreSQL's text. */
static void clean(const char *text, char *out, size_t size)
{
    size_t n = 0;

    for (; text != NULL && text[n] != '\0' && n + 1 < size; n++) {
        out[n] = text[n];
        if (text[n] < 0x20 || text[n] >= 0x7f)
            out[n] = '?';
    }
    out[n] = '\0';
}

static const char *result_of(unsigned int status)
{
    if (status < 400)
        return "success";
    return status == 401 || status == 403 || status == 429 ? "denied" : "failure";
}

static const char *action_of(const struct call *call)
{
    return call->route != NULL && call->route->action != NULL ? call->route->action
                                                              : "request.refused";
}

int audit_write(struct call *call, struct db *db, struct error *err)
{
    static const char sql[] =
        "INSERT INTO audit.audit_log (\"user\", action, resource, result, ip, details, request_id,"
        " method, path, status, duration_ms, user_agent)"
        " VALUES ($1, $2, $3, $4, $5, $6::jsonb, $7, $8, $9, $10, $11, $12)";
    char path[AUDIT_PATH_MAX];
    char method[16];
    char user_agent[AUDIT_USER_AGENT_MAX];
    char status[16];
    char duration[24];
    int64_t took_ms = clock_mono_ms() - call->transport->started_ms;
    auto_json *masked = json_mask_secrets(call->audit_details);
    autofree char *details = masked == NULL ? xstrdup("{}") : json_text(masked);
    const char *user = call->identity.username;

    clean(call->path, path, sizeof path);
    clean(call->method, method, sizeof method);
    clean(call_header(call, "User-Agent"), user_agent, sizeof user_agent);
    (void)snprintf(status, sizeof status, "%u", call->status);
    (void)snprintf(duration, sizeof duration, "%" PRId64, took_ms);
    if (db_exec(db, sql,
                DB_PARAMS(user, action_of(call), call->resource, result_of(call->status), call->ip,
                          details, call->request_id, method, path, status, duration, user_agent),
                NULL, err) == 0)
        return 0;
    LOG(ERROR, "audit_not_stored", F_ERR(err), F_STR("user", user),
        F_STR("action", action_of(call)), F_STR("resource", call->resource),
        F_STR("result", result_of(call->status)), F_STR("ip", call->ip),
        F_STR("request_id", call->request_id), F_STR("method", method), F_STR("path", path),
        F_U64("status", call->status));
    return -1;
}
