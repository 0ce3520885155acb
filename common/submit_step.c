/* Scripts and webhooks as steps of workflows. See submit_bridge.h. */
#include "common/autos.h"
#include "common/id.h"
#include "common/json.h"
#include "common/submit_bridge.h"

static void complete(const struct submit_step_facts *facts, struct bridge_request *request)
{
    struct job_submission *s = &request->submission;

    id_new("job", request->id);
    json_set_text(request->spec, "job_id", request->id);
    json_set_text(request->spec, "workflow", facts->workflow);
    json_set_text(request->spec, "run_id", facts->run_id == NULL ? "" : facts->run_id);
    json_set_text(request->spec, "step", facts->step);
    s->id = request->id;
    s->kind = request->task.kind;
    s->name = facts->step;
    s->provider = "";
    s->format = "";
    s->vm_path = "";
    s->output_path = "";
    s->bridge = true;
    s->definition = request->definition;
    s->export_spec = request->spec;
    s->priority = SUBMIT_PRIORITY;
    s->max_attempts = request->task.max_attempts;
    s->retry_initial_ms = request->task.retry_initial_ms;
    s->retry_max_ms = request->task.retry_max_ms;
}

int submit_step_prepare(const struct submit_settings *settings,
                        const struct submit_step_facts *facts, const json_t *element,
                        struct bridge_request **out, struct field_problem *problem,
                        struct error *err)
{
    auto_bridge_request *request = xcalloc(1, sizeof *request);

    if (hook_step_task(settings->hooks, element, &request->spec, &request->task, problem, err) < 0)
        return -1;
    request->definition = json_deep_copy(element);
    complete(facts, request);
    *out = STEAL(request);
    return 0;
}
