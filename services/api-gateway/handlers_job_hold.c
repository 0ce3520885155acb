/* Pause, resume and deletion of one job. */
#include "common/job_store.h"
#include "common/json.h"
#include "handler_util.h"
#include "handlers.h"
#include "job_view.h"

#define REASON_MAX 300

static const struct field pause_fields[] = {
    {"reason", {NULL}, FIELD_TEXT, 0, REASON_MAX, NULL},
    {0},
};

static int answer_state(struct call *call, const char *job_id, struct error *err)
{
    auto_pgresult *rows = NULL;
    auto_json *job = NULL;
    json_t *answer;

    if (job_load(call, job_id, &rows, err) < 0)
        return -1;
    job = job_view(call->gateway, rows, 0);
    answer = json_object();
    json_set_text(answer, "job_id", job_id);
    json_set_text(answer, "status", json_str(job, "status"));
    if (json_object_get(job, "substatus") != NULL)
        json_set_text(answer, "substatus", json_str(job, "substatus"));
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

int handle_job_pause(struct call *call, struct error *err)
{
    const char *job_id = call_param(call, "id");
    auto_json *fields = NULL;

    call_resource(call, "job", job_id);
    if (call_fields(call, pause_fields, &fields, err) < 0)
        return -1;
    if (call_check_owner(call, job_id, err) < 0 ||
        job_store_pause(call->db, job_id, call->identity.username, field_text(fields, "reason", ""),
                        err) < 0)
        return -1;
    gateway_poke(call->gateway, job_id);
    return answer_state(call, job_id, err);
}

int handle_job_resume(struct call *call, struct error *err)
{
    static const char *const no_keys[] = {NULL};
    const char *job_id = call_param(call, "id");

    call_resource(call, "job", job_id);
    if ((call->body != NULL && json_check_keys(call->body, no_keys, err) < 0) ||
        call_check_owner(call, job_id, err) < 0 ||
        job_store_resume(call->db, job_id, call->identity.username, err) < 0)
        return -1;
    gateway_poke(call->gateway, job_id);
    return answer_state(call, job_id, err);
}

int handle_job_delete(struct call *call, struct error *err)
{
    const char *job_id = call_param(call, "id");
    json_t *answer;

    call_resource(call, "job", job_id);
    if (job_store_delete(call->db, job_id, err) < 0)
        return -1;
    answer = json_object();
    json_set_text(answer, "deleted", job_id);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}
