/* PUT /api/v1/jobs/{id}/bandwidth: into the job's row, from where the scheduler tells the worker.
 */
#include "common/bandwidth.h"
#include "common/job_store.h"
#include "common/json.h"
#include "handler_util.h"
#include "handlers.h"

static const struct field bandwidth_fields[] = {BANDWIDTH_FIELDS, {0}};

/* The whole setting: what is not given has its default. A body without any would lift a limit by
 * mistake, so one of the two that make a limit must be there. */
int handle_job_bandwidth(struct call *call, struct error *err)
{
    const char *job_id = call_param(call, "id");
    struct field_problem problem = {0};
    auto_json *fields = NULL;
    auto_json *spec = NULL;
    auto_json *answer = NULL;

    call_resource(call, "job", job_id);
    if (call->body == NULL) {
        return call_bad_field(call, "bandwidth_limit_mbps", err,
                              "'bandwidth_limit_mbps' is missing (0: no limit)");
    }
    if (fields_canonical(bandwidth_fields, "", call->body, &fields, &problem, err) < 0 ||
        bandwidth_check(fields, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    if (json_object_get(fields, "bandwidth_limit_mbps") == NULL &&
        !field_bool(fields, "adaptive_bandwidth", false)) {
        return call_bad_field(call, "bandwidth_limit_mbps", err,
                              "'bandwidth_limit_mbps' is missing (0: no limit)");
    }
    spec = bandwidth_spec(fields);
    if (job_store_set_bandwidth(call->db, job_id, call->identity.username, fields, spec, err) < 0)
        return -1;
    gateway_poke(call->gateway, job_id);
    answer = json_copy(fields);
    json_set_text(answer, "job_id", job_id);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, STEAL(answer));
    return 0;
}
