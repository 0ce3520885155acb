/* Webhooks as steps of a job. See hook.h. */
#include "hook.h"

#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/http_client.h"
#include "common/json.h"
#include "common/webhook_post.h"

#define TIMEOUT_MS 30000

/* What was asked for, else what an event's receiver would get as far as it is known. */
static char *body_of(const json_t *spec)
{
    static const char *const members[] = {"job_id", "vm_name",     "vm_path",       "provider",
                                          "hook",   "export_path", "manifest_path", "workflow",
                                          "run_id", "step"};
    const json_t *given = json_object_get(spec, "body");
    auto_json *body = json_object();
    char now[CLOCK_RFC3339_SIZE];

    if (given != NULL)
        return json_text(given);
    clock_rfc3339_now(now);
    json_set_text(body, "event",
                  json_str(spec, "run_id")[0] == '\0' ? "job.hook" : "workflow.step");
    json_set_text(body, "timestamp", now);
    json_set_text(body, "status", "running");
    for (size_t i = 0; i < ARRAY_LEN(members); i++) {
        if (json_str(spec, members[i])[0] != '\0')
            json_set_text(body, members[i], json_str(spec, members[i]));
    }
    return json_text(body);
}

static int judge(const char *url, long status, struct error *err)
{
    if (status >= 200 && status < 300)
        return 0;
    return error_set(err, ERR_UNAVAILABLE, "the receiver '%.200s' answered %ld", url, status);
}

int hook_webhook_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    const struct bridge *bridge = arg;
    const json_t *spec = worker_task_spec(task);
    uint64_t timeout_ms = json_u64(spec, "timeout_ms");
    autofree char *body = body_of(spec);
    autofree char *shown = webhook_url_shown(json_str(spec, "url"));
    struct curl_slist *headers = NULL;
    struct webhook_post post = {
        .url = json_str(spec, "url"),
        .body = body,
        .timeout_ms = timeout_ms > 0 ? (int64_t)timeout_ms : TIMEOUT_MS,
        .allow_private = bridge->webhooks.allow_private,
        .cancelled = worker_task_stopped(task),
    };
    long status = 0;
    int rc;

    worker_task_phase(task, "hook");
    if (!bridge->webhooks.enabled)
        return error_set(err, ERR_NOT_AVAILABLE, "webhooks.enabled is false in the configuration");
    if (webhook_url_check(post.url, err) < 0 || worker_task_may_write(task, err) < 0)
        return -1;
    headers = curl_slist_append(headers, "Content-Type: application/json");
    headers = curl_slist_append(headers, "User-Agent: hypersdk-hook");
    post.headers = headers;
    rc = webhook_post(&post, &status, err);
    curl_slist_free_all(headers);
    if (rc < 0)
        return -1;
    *out_result = json_pack("{s:{s:I}}", "webhook", "http_status", (json_int_t)status);
    worker_task_log(task, LOG_LEVEL_INFO, "webhook %.300s answered %ld", shown, status);
    return judge(shown, status, err);
}
