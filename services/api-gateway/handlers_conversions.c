/* Conversions of what exists already (rest-api.md section 8): jobs of kind "convert", and looking
 * at images and manifests by control tasks of the bridge. The gateway touches no disk bytes. */
#include <string.h>

#include "common/autos.h"
#include "common/job_store.h"
#include "common/json.h"
#include "common/paths.h"
#include "control_task.h"
#include "handlers.h"
#include "job_view.h"
#include "common/libvirt_wish.h"
#include "common/submit.h"

#define MEMORY_MB_MAX      (64 * 1024 * 1024)
#define VCPUS_MAX          1024
#define COMPRESS_LEVEL_MAX 9
#define HOUR_MS            3600000
#define TIMEOUT_MAX_MS     (UINT64_C(48) * HOUR_MS)
#define MANIFEST_TEXT_MAX  ((size_t)(512 * KIB)) /* travels in a lease */

#define FORMAT_FIELDS                                                       \
    {"format", {NULL}, FIELD_TEXT, 1, 16, NULL},                            \
        {"compression", {"compress"}, FIELD_BOOL, 0, 0, NULL},              \
    {                                                                       \
        "compress_level", {NULL}, FIELD_NUMBER, 0, COMPRESS_LEVEL_MAX, NULL \
    }

static const struct field convert_fields[] = {
    {"source_path", {"input", "path"}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    {"output_path", {"dest_path"}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    {"conversion_options", {NULL}, FIELD_OBJECT, 0, 0, NULL},
    FORMAT_FIELDS,
    {"mode", {NULL}, FIELD_TEXT, 1, 16, NULL},
    {"stages", {NULL}, FIELD_OBJECT, 0, 0, NULL},
    {"timeout", {NULL}, FIELD_DURATION, 1000, TIMEOUT_MAX_MS, NULL},
    {"import", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"vm_name", {"name"}, FIELD_TEXT, 1, 200, NULL},
    {"memory_mb", {"memory"}, FIELD_NUMBER, 1, MEMORY_MB_MAX, NULL},
    {"vcpus", {"cpus"}, FIELD_NUMBER, 1, VCPUS_MAX, NULL},
    LIBVIRT_WISH_FIELDS,
    {0},
};
static const struct field option_fields[] = {FORMAT_FIELDS, {0}};

struct convert_request {
    json_t *body;     /* canonical */
    json_t *manifest; /* that was sent in; borrowed. NULL: a path */
    json_t *spec;
    json_t *import_spec;
    char *source; /* confined; "" with a manifest */
};

static void convert_request_release(struct convert_request *request)
{
    json_decref(request->body);
    json_decref(request->spec);
    json_decref(request->import_spec);
    free(request->source);
}

/* ---- the request ---- */

/* conversion_options.x and x at top level are the same field. */
static int merge_options(struct convert_request *request, struct field_problem *problem,
                         struct error *err)
{
    const char *key;
    json_t *value;

    if (fields_member(request->body, "conversion_options", "conversion_options.", option_fields,
                      problem, err) < 0)
        return -1;
    json_object_foreach(json_object_get(request->body, "conversion_options"), key, value)
    {
        const json_t *top = json_object_get(request->body, key);
        if (top != NULL && !json_equal(top, value)) {
            return field_fail(problem, 400, key, err, ERR_INVALID,
                              "'%s' and 'conversion_options.%s' differ", key, key);
        }
        json_put(request->body, key, json_incref(value));
    }
    (void)json_object_del(request->body, "conversion_options");
    return 0;
}

static int check_words(const struct convert_request *request, struct field_problem *problem,
                       struct error *err)
{
    static const char *const formats[] = {"qcow2", "raw", NULL};
    static const char *const modes[] = {"daemon", "direct", NULL};
    const char *format = field_text(request->body, "format", "qcow2");
    const char *mode = field_text(request->body, "mode", "direct");

    if (!word_in(format, formats)) {
        return field_fail(problem, 422, "format", err, ERR_NOT_AVAILABLE,
                          "'format': conversions write qcow2 or raw, not '%s'", format);
    }
    if (!word_in(mode, modes)) {
        return field_fail(problem, 400, "mode", err, ERR_INVALID,
                          "'mode': '%s' is not daemon or direct", mode);
    }
    if (strcmp(format, "raw") == 0 && field_bool(request->body, "compression", false)) {
        return field_fail(problem, 422, "compression", err, ERR_INVALID,
                          "'compression' needs format qcow2");
    }
    return 0;
}

/* A result that was given a name is a directory right below hyper2kvm.output_dir. */
static int output_name(struct call *call, const struct convert_request *request, const char **out,
                       struct error *err)
{
    const char *path = field_text(request->body, "output_path", NULL);
    const char *base = call->gateway->hyper2kvm.output_dir;
    size_t n = strlen(base);
    autofree char *plain = NULL;

    *out = NULL;
    if (path == NULL)
        return 0;
    if (strncmp(path, base, n) == 0 && path[n] == '/')
        path += n + 1;
    plain = vm_file_name(path);
    if (strcmp(plain, path) != 0) {
        return call_fail(call, 422, json_pack("{s:s}", "field", "output_path"), err, ERR_INVALID,
                         "'output_path' must be a directory right below hyper2kvm.output_dir (%s)",
                         base);
    }
    *out = path;
    return 0;
}

static json_t *options_of(struct call *call, const struct convert_request *request)
{
    const struct hyper2kvm_config *config = &call->gateway->hyper2kvm;
    const json_t *stages = json_object_get(request->body, "stages");
    const char *mode = field_text(request->body, "mode", NULL);
    json_t *options = json_object();

    json_put(options, "daemon_mode",
             json_boolean(mode == NULL ? config->daemon_enabled : strcmp(mode, "daemon") == 0));
    json_set_text(options, "target_format",
                  field_text(request->body, "format", config->default_format));
    if (field_bool(request->body, "compression", false))
        json_set_text(options, "compression", SUBMIT_COMPRESSION);
    json_set_i64(options, "compress_level",
                 (int64_t)field_number(request->body, "compress_level", 0));
    if (stages != NULL)
        json_put(options, "stages", json_deep_copy(stages));
    json_set_i64(options, "timeout_ms",
                 field_duration_ms(request->body, "timeout", config->job_timeout_ms));
    return options;
}

static int make_spec(struct call *call, struct convert_request *request, const char *job_id,
                     struct error *err)
{
    static const char *const copied[] = {"vm_name", "memory_mb", "vcpus"};
    const char *name = NULL;

    if (output_name(call, request, &name, err) < 0)
        return -1;
    request->spec = json_object();
    json_set_text(request->spec, "job_id", job_id);
    if (request->manifest != NULL) {
        json_put(request->spec, "manifest", json_incref(request->manifest));
    } else {
        json_set_text(request->spec, "source_path", request->source);
    }
    if (name != NULL)
        json_set_text(request->spec, "output_name", name);
    for (size_t i = 0; i < ARRAY_LEN(copied); i++) {
        json_t *value = json_object_get(request->body, copied[i]);
        if (value != NULL)
            json_put(request->spec, copied[i], json_incref(value));
    }
    json_put(request->spec, "hyper2kvm", options_of(call, request));
    if (!field_bool(request->body, "import", false))
        return 0;
    request->import_spec = json_object();
    json_set_text(request->import_spec, "job_id", job_id);
    json_put(request->import_spec, "libvirt",
             libvirt_wish_spec(&call->gateway->libvirt, request->body));
    return 0;
}

static void answer(struct call *call, const char *job_id)
{
    json_t *body = json_object();
    autofree char *id = conversion_id(job_id);
    autofree char *location = xasprintf("/api/v1/conversions/%s", id);

    json_set_text(body, "conversion_id", id);
    call_answer_accepted(call, job_id, location, body);
}

static int submit(struct call *call, struct convert_request *request, struct error *err)
{
    const char *from = request->manifest == NULL
                           ? request->source
                           : json_str(json_object_get(request->manifest, "source"), "vm_name");
    char made[ID_SIZE];
    char id[64];
    bool existing = false;
    struct job_submission submission = call_submission(call, "convert");

    submission.id = made;
    submission.vm_path = field_text(request->body, "vm_name", from);
    submission.output_path = call->gateway->hyper2kvm.output_dir;
    submission.format =
        field_text(request->body, "format", call->gateway->hyper2kvm.default_format);
    submission.bridge = true;
    submission.definition = request->body;
    id_new("job", made);
    if (make_spec(call, request, made, err) < 0)
        return -1;
    submission.export_spec = request->spec;
    submission.import_spec = request->import_spec;
    if (job_store_submit(call->db, &submission, id, &existing, err) < 0)
        return -1;
    call_audit(call, "job", id);
    answer(call, id);
    return 0;
}

int handle_convert(struct call *call, struct error *err)
{
    CLEANUP(convert_request_release) struct convert_request request = {0};
    auto_json *empty = json_object();
    struct field_problem problem = {0};
    struct error why = ERROR_NONE;

    if (fields_canonical(convert_fields, "", call->body == NULL ? empty : call->body, &request.body,
                         &problem, err) < 0 ||
        merge_options(&request, &problem, err) < 0 || check_words(&request, &problem, err) < 0 ||
        fields_member(request.body, "stages", "stages.", submit_stage_fields, &problem, err) < 0 ||
        libvirt_wish_check(&call->gateway->libvirt, request.body, "", &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    if (json_object_get(request.body, "source_path") == NULL)
        return call_bad_field(call, "source_path", err, "'source_path' is missing");
    if (path_confine(&call->gateway->bases, field_text(request.body, "source_path", ""),
                     &request.source, &why) < 0) {
        return call_fail(call, why.code == ERR_INVALID ? 400 : 422,
                         json_pack("{s:s}", "field", "source_path"), err, why.code, "%s",
                         why.message);
    }
    return submit(call, &request, err);
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
    CLEANUP(convert_request_release) struct convert_request request = {.body = json_object()};

    request.manifest = manifest_of(call, err);
    return request.manifest == NULL ? -1 : submit(call, &request, err);
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
