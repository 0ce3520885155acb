/* Images and exports that exist, into libvirt (rest-api.md section 8): jobs of kind "import". */
#include "common/json.h"
#include "common/submit_bridge.h"
#include "handler_util.h"
#include "handlers.h"

static void answer(struct call *call, const char *job_id, const char *domain)
{
    json_t *body = json_object();
    autofree char *location = xasprintf("/api/v1/jobs/%s", job_id);

    /* without a name here the manifest says it */
    json_put(body, "domain", domain == NULL ? json_null() : json_string(domain));
    call_answer_accepted(call, job_id, location, body);
}

int handle_import(struct call *call, struct error *err)
{
    const struct submit_origin origin = {.submitted_by = call->identity.username,
                                         .trace_id = call->trace_id};
    struct submit_settings settings = submit_settings_of(call->gateway, NULL);
    auto_bridge_request *request = NULL;
    auto_json *empty = json_object();
    const json_t *body = call->body == NULL ? empty : call->body;
    struct field_problem problem = {0};
    char id[64];

    if (json_str(body, "export_id")[0] != '\0')
        call_resource(call, "export", json_str(body, "export_id"));
    if (submit_import_prepare(&settings, call->db, body, &request, &problem, err) < 0)
        return problem.status != 0 ? call_fail_field(call, &problem, err) : -1;
    if (submit_bridge_store(call->db, request, &origin, id, err) < 0)
        return -1;
    call_audit(call, "job", id);
    answer(call, id, request->domain);
    return 0;
}
