/* Conversions of what exists already (rest-api.md section 8): jobs of kind "convert", and looking
 * at images and manifests by control tasks of the bridge. The gateway touches no disk bytes. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/submit_bridge.h"
#include "control_task.h"
#include "handler_util.h"
#include "handlers.h"
#include "job_view.h"

#define MANIFEST_TEXT_MAX ((size_t)(512 * KIB)) /* travels in a lease */

static void answer(struct call *call, const char *job_id)
{
    json_t *body = json_object();
    autofree char *id = conversion_id(job_id);
    autofree char *location = xasprintf("/api/v1/conversions/%s", id);

    json_set_text(body, "conversion_id", id);
    call_answer_accepted(call, job_id, location, body);
}

/* problem: of the preparation, when request is NULL. */
static int submit(struct call *call, struct bridge_request *request,
                  const struct field_problem *problem, struct error *err)
{
    const struct submit_origin origin = {.submitted_by = call->identity.username,
                                         .trace_id = call->trace_id};
    char id[64];

    if (request == NULL)
        return problem->status != 0 ? call_fail_field(call, problem, err) : -1;
    if (submit_bridge_store(call->db, request, &origin, id, err) < 0)
        return -1;
    call_audit(call, "job", id);
    answer(call, id);
    return 0;
}

int handle_convert(struct call *call, struct error *err)
{
    struct submit_settings settings = submit_settings_of(call->gateway, NULL);
    auto_bridge_request *request = NULL;
    auto_json *empty = json_object();
    struct field_problem problem = {0};

    if (submit_convert_prepare(&settings, call->body == NULL ? empty : call->body, &request,
                               &problem, err) < 0)
        request = NULL;
    return submit(call, request, &problem, err);
}

/* ---- manifests ---- */

/* The body is the manifest, or {"manifest": {...}}. Borrowed. NULL: refused, err is set. */
static json_t *manifest_of(struct call *call, struct error *err)
{
    json_t *wrapped = json_object_get(call->body, "manifest");
    json_t *manifest = wrapped != NULL ? wrapped : call->body;
    autofree char *text = NULL;

    if (!json_is_object(manifest)) {
        (void)call_bad_field(call, "manifest", err, "the body must be a manifest (an object)");
        return NULL;
    }
    text = json_text(manifest);
    if (strlen(text) > MANIFEST_TEXT_MAX) {
        (void)call_fail(call, 413, NULL, err, ERR_LIMIT, "a manifest has at most %zu KiB",
                        MANIFEST_TEXT_MAX / KIB);
        return NULL;
    }
    return manifest;
}

int handle_manifest_submit(struct call *call, struct error *err)
{
    struct submit_settings settings = submit_settings_of(call->gateway, NULL);
    auto_bridge_request *request = NULL;
    struct field_problem problem = {0};
    json_t *manifest = manifest_of(call, err);

    if (manifest == NULL)
        return -1;
    if (submit_convert_manifest(&settings, manifest, &request, &problem, err) < 0)
        request = NULL;
    return submit(call, request, &problem, err);
}

/* Waits for a control task of the bridge; the member `name` of its result is the answer. */
static int ask_bridge(struct call *call, const char *kind, json_t *spec, const char *name,
                      struct error *err)
{
    const struct control_request request = {.kind = kind,
                                            .provider = "",
                                            .provider_kind = "",
                                            .spec = spec,
                                            .wait_ms = CONTROL_WAIT_MS,
                                            .bridge = true};
    auto_control_task task = {0};

    if (control_task_run(call, &request, &task, err) < 0)
        return -1;
    return control_task_answer(call, &task, name, err);
}

int handle_manifest_validate(struct call *call, struct error *err)
{
    json_t *manifest = manifest_of(call, err);
    auto_json *spec = NULL;

    if (manifest == NULL)
        return -1;
    spec = json_object();
    json_put(spec, "manifest", json_incref(manifest));
    if (manifest != call->body) {
        json_put(spec, "checksums",
                 json_boolean(json_is_true(json_object_get(call->body, "checksums"))));
    }
    return ask_bridge(call, "validate_manifest", spec, "validation", err);
}

int handle_disk_inspect(struct call *call, struct error *err)
{
    static const char *const names[] = {"path", NULL};
    const char *path = call_query(call, "path");
    auto_json *spec = json_object();

    if (call_check_query(call, names, err) < 0)
        return -1;
    if (path == NULL || path[0] == '\0')
        return call_bad_field(call, "path", err, "'path' is missing");
    json_set_text(spec, "path", path);
    return ask_bridge(call, "inspect_image", spec, "image", err);
}
