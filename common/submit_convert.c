/* See submit_bridge.h. */
#include "common/submit_bridge.h"

#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/id.h"
#include "common/json.h"
#include "common/libvirt_wish.h"
#include "common/paths.h"

#define MEMORY_MB_MAX      (64 * 1024 * 1024)
#define VCPUS_MAX          1024
#define COMPRESS_LEVEL_MAX 9
#define HOUR_MS            3600000
#define TIMEOUT_MAX_MS     (UINT64_C(48) * HOUR_MS)
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

void bridge_request_free(struct bridge_request *request)
{
    if (request == NULL)
        return;
    json_decref(request->definition);
    json_decref(request->spec);
    json_decref(request->import_spec);
    json_decref(request->disks);
    PQclear(request->export);
    free(request->path);
    free(request);
}

/* conversion_options.x and x at top level are the same field. */
static int merge_options(struct bridge_request *request, struct field_problem *problem,
                         struct error *err)
{
    const char *key;
    json_t *value;

    if (fields_member(request->definition, "conversion_options", "conversion_options.",
                      option_fields, problem, err) < 0)
        return -1;
    json_object_foreach(json_object_get(request->definition, "conversion_options"), key, value)
    {
        const json_t *top = json_object_get(request->definition, key);
        if (top != NULL && !json_equal(top, value)) {
            return field_fail(problem, 400, key, err, ERR_INVALID,
                              "'%s' and 'conversion_options.%s' differ", key, key);
        }
        json_put(request->definition, key, json_incref(value));
    }
    (void)json_object_del(request->definition, "conversion_options");
    return 0;
}

static int check_words(const struct bridge_request *request, struct field_problem *problem,
                       struct error *err)
{
    static const char *const formats[] = {"qcow2", "raw", NULL};
    static const char *const modes[] = {"daemon", "direct", NULL};
    const char *format = field_text(request->definition, "format", "qcow2");
    const char *mode = field_text(request->definition, "mode", "direct");

    if (!word_in(format, formats)) {
        return field_fail(problem, 422, "format", err, ERR_NOT_AVAILABLE,
                          "'format': conversions write qcow2 or raw, not '%s'", format);
    }
    if (!word_in(mode, modes)) {
        return field_fail(problem, 400, "mode", err, ERR_INVALID,
                          "'mode': '%s' is not daemon or direct", mode);
    }
    if (strcmp(format, "raw") == 0 && field_bool(request->definition, "compression", false)) {
        return field_fail(problem, 422, "compression", err, ERR_INVALID,
                          "'compression' needs format qcow2");
    }
    return 0;
}

/* A result that was given a name is a directory right below hyper2kvm.output_dir. */
static int output_name(const struct submit_settings *settings, const struct bridge_request *request,
                       const char **out, struct field_problem *problem, struct error *err)
{
    const char *path = field_text(request->definition, "output_path", NULL);
    const char *base = settings->hyper2kvm->output_dir;
    size_t n = strlen(base);
    autofree char *plain = NULL;

    *out = NULL;
    if (path == NULL)
        return 0;
    if (strncmp(path, base, n) == 0 && path[n] == '/')
        path += n + 1;
    plain = vm_file_name(path);
    if (strcmp(plain, path) != 0) {
        return field_fail(problem, 422, "output_path", err, ERR_INVALID,
                          "'output_path' must be a directory right below hyper2kvm.output_dir (%s)",
                          base);
    }
    *out = path;
    return 0;
}

static json_t *options_of(const struct submit_settings *settings,
                          const struct bridge_request *request)
{
    const struct hyper2kvm_config *config = settings->hyper2kvm;
    const json_t *stages = json_object_get(request->definition, "stages");
    const char *mode = field_text(request->definition, "mode", NULL);
    json_t *options = json_object();

    json_put(options, "daemon_mode",
             json_boolean(mode == NULL ? config->daemon_enabled : strcmp(mode, "daemon") == 0));
    json_set_text(options, "target_format",
                  field_text(request->definition, "format", config->default_format));
    if (field_bool(request->definition, "compression", false))
        json_set_text(options, "compression", SUBMIT_COMPRESSION);
    json_set_i64(options, "compress_level",
                 (int64_t)field_number(request->definition, "compress_level", 0));
    if (stages != NULL)
        json_put(options, "stages", json_deep_copy(stages));
    json_set_i64(options, "timeout_ms",
                 field_duration_ms(request->definition, "timeout", config->job_timeout_ms));
    return options;
}

/* manifest: that was sent in; NULL: the request has a path. */
static int make_spec(const struct submit_settings *settings, struct bridge_request *request,
                     json_t *manifest, struct field_problem *problem, struct error *err)
{
    static const char *const copied[] = {"vm_name", "memory_mb", "vcpus"};
    const char *name = NULL;

    if (output_name(settings, request, &name, problem, err) < 0)
        return -1;
    request->spec = json_object();
    json_set_text(request->spec, "job_id", request->id);
    if (manifest != NULL) {
        json_put(request->spec, "manifest", json_incref(manifest));
    } else {
        json_set_text(request->spec, "source_path", request->path);
    }
    if (name != NULL)
        json_set_text(request->spec, "output_name", name);
    for (size_t i = 0; i < ARRAY_LEN(copied); i++) {
        json_t *value = json_object_get(request->definition, copied[i]);
        if (value != NULL)
            json_put(request->spec, copied[i], json_incref(value));
    }
    json_put(request->spec, "hyper2kvm", options_of(settings, request));
    if (!field_bool(request->definition, "import", false))
        return 0;
    request->import_spec = json_object();
    json_set_text(request->import_spec, "job_id", request->id);
    json_put(request->import_spec, "libvirt",
             libvirt_wish_spec(settings->libvirt, request->definition));
    return 0;
}

static int complete(const struct submit_settings *settings, struct bridge_request *request,
                    json_t *manifest, struct field_problem *problem, struct error *err)
{
    struct job_submission *s = &request->submission;
    const char *from =
        manifest == NULL ? request->path : json_str(json_object_get(manifest, "source"), "vm_name");

    id_new("job", request->id);
    s->id = request->id;
    s->kind = "convert";
    s->name = "";
    s->provider = "";
    s->vm_path = field_text(request->definition, "vm_name", from);
    s->output_path = settings->hyper2kvm->output_dir;
    s->format = field_text(request->definition, "format", settings->hyper2kvm->default_format);
    s->bridge = true;
    s->definition = request->definition;
    s->priority = SUBMIT_PRIORITY;
    s->max_attempts = settings->retry->max_attempts;
    s->retry_initial_ms = settings->retry->initial_delay_ms;
    s->retry_max_ms = settings->retry->max_delay_ms;
    if (make_spec(settings, request, manifest, problem, err) < 0)
        return -1;
    s->export_spec = request->spec;
    s->import_spec = request->import_spec;
    return 0;
}

int submit_convert_prepare(const struct submit_settings *settings, const json_t *element,
                           struct bridge_request **out, struct field_problem *problem,
                           struct error *err)
{
    auto_bridge_request *request = xcalloc(1, sizeof *request);

    if (fields_canonical(convert_fields, "", element, &request->definition, problem, err) < 0 ||
        merge_options(request, problem, err) < 0 || check_words(request, problem, err) < 0 ||
        fields_member(request->definition, "stages", "stages.", submit_stage_fields, problem, err) <
            0 ||
        libvirt_wish_check(settings->libvirt, request->definition, "", problem, err) < 0)
        return -1;
    if (json_object_get(request->definition, "source_path") == NULL) {
        return field_fail(problem, 400, "source_path", err, ERR_INVALID,
                          "'source_path' is missing");
    }
    if (path_confine(settings->bases, field_text(request->definition, "source_path", ""),
                     &request->path, err) < 0) {
        (void)snprintf(problem->field, sizeof problem->field, "source_path");
        problem->status = err->code == ERR_INVALID ? 400 : 422;
        return -1;
    }
    if (complete(settings, request, NULL, problem, err) < 0)
        return -1;
    *out = STEAL(request);
    return 0;
}

int submit_convert_manifest(const struct submit_settings *settings, json_t *manifest,
                            struct bridge_request **out, struct field_problem *problem,
                            struct error *err)
{
    auto_bridge_request *request = xcalloc(1, sizeof *request);

    request->definition = json_object();
    if (complete(settings, request, manifest, problem, err) < 0)
        return -1;
    *out = STEAL(request);
    return 0;
}

int submit_bridge_store(struct db *db, struct bridge_request *request,
                        const struct submit_origin *origin, char out_id[64], struct error *err)
{
    struct job_submission *s = &request->submission;
    bool existing = false;

    s->submitted_by = origin->submitted_by;
    s->trace_id = origin->trace_id;
    s->schedule_id = origin->schedule_id;
    s->policy_id = origin->policy_id;
    s->workflow_run_id = origin->workflow_run_id;
    return job_store_submit(db, s, out_id, &existing, err);
}
