/* What an incremental export of a VM would do, without doing it (rest-api.md, analyze). The fields
 * are those of a submit and are read by the same code, so the answer is about the same export. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/restore_points.h"
#include "control_task.h"
#include "handlers.h"
#include "common/provider_lookup.h"
#include "common/submit.h"

/* A submit's element out of body and path. New reference. */
static json_t *element_of(struct call *call)
{
    const char *id = call_param(call, "id");
    json_t *element = json_is_object(call->body) ? json_copy(call->body) : json_object();

    if (id[0] != '\0')
        json_set_text(element, "vm_path", id);
    if (json_object_get(element, "force_full") == NULL)
        json_put(element, "incremental", json_true());
    return element;
}

/* "temporary_snapshot" is no field of a submit: taken out of the element. */
static int take_temporary_snapshot(struct call *call, json_t *element, bool *out, struct error *err)
{
    if (json_get_bool(element, "temporary_snapshot", false, out, err) < 0)
        return -1;
    (void)json_object_del(element, "temporary_snapshot");
    if (*out && !identity_may(&call->identity, "vm.operate")) {
        return error_set(
            err, ERR_DENIED,
            "'temporary_snapshot' makes a snapshot: permission 'vm.operate' is missing");
    }
    return 0;
}

/* Only what the analysis looks at. New reference. */
static json_t *spec_of(const struct submit_request *request)
{
    static const char *const keys[] = {
        "vm",         "output_path",           "format", "convert", "incremental",
        "force_full", "incremental_max_age_ms"};
    json_t *spec = json_object();

    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        json_t *value = json_object_get(request->export_spec, keys[i]);
        if (value != NULL)
            json_put(spec, keys[i], json_incref(value));
    }
    return spec;
}

int handle_incremental_analyze(struct call *call, struct error *err)
{
    auto_json *element = element_of(call);
    auto_json *spec = NULL;
    auto_submit_request *request = NULL;
    auto_control_task task = {0};
    autofree char *volume = NULL;
    struct field_problem problem = {0};
    struct control_request control = {.kind = "incremental_info", .wait_ms = CONTROL_WAIT_MS};

    bool snapshot = false;

    if (take_temporary_snapshot(call, element, &snapshot, err) < 0)
        return -1;
    if (submit_element(call, element, &request, &problem, err) < 0)
        return problem.status == 0 ? -1 : call_fail_field(call, &problem, err);
    control.provider = request->submission.provider;
    control.provider_kind = request->provider.kind;
    spec = spec_of(request);
    if (snapshot)
        json_put(spec, "temporary_snapshot", json_true());
    call_resource(call, "vm", request->submission.vm_path);
    if (restore_points_add(call->db, control.provider, spec, &volume, err) < 0)
        return -1;
    control.spec = spec;
    control.volume = volume;
    if (control_task_run(call, &control, &task, err) < 0)
        return -1;
    return control_task_answer(call, &task, "analysis", err);
}
