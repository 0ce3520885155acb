/* See submit.h. */
#include "common/submit.h"

#include <stdio.h>
#include <string.h>

#include "common/bandwidth.h"
#include "common/cleanup_policy.h"
#include "common/autos.h"
#include "common/crypt_file.h"
#include "common/id.h"
#include "common/json.h"
#include "common/parse.h"
#include "common/paths.h"
#include "common/shutdown_wish.h"
#include "common/submit_check.h"
#include "common/upload_url.h"
#include "common/may_fail.h"
#include "common/time_window.h"
#include "common/libvirt_wish.h"

#define SUBMIT_WAIT_MAX_MS      INT64_C(31536000000) /* a year */
#define SUBMIT_DEPENDENCIES_MAX 100
#define HOUR_MS                 3600000
#define DAY_MS                  (UINT64_C(24) * HOUR_MS)
#define JOB_ID_BYTES_MAX        63 /* fits char[64] of the store */
#define RETRY_ATTEMPTS_MAX      100

#define TEXT(name, max)                        \
    {                                          \
        name, {NULL}, FIELD_TEXT, 1, max, NULL \
    }
#define BOOL(name)                           \
    {                                        \
        name, {NULL}, FIELD_BOOL, 0, 0, NULL \
    }
#define NUMBER(name, min, max)                     \
    {                                              \
        name, {NULL}, FIELD_NUMBER, min, max, NULL \
    }
#define OBJECT(name)                           \
    {                                          \
        name, {NULL}, FIELD_OBJECT, 0, 0, NULL \
    }
#define DURATION(name, min, max)                     \
    {                                                \
        name, {NULL}, FIELD_DURATION, min, max, NULL \
    }
#define LATER(name, neutral)                   \
    {                                          \
        name, {NULL}, FIELD_ANY, 0, 0, neutral \
    }

static const struct field job_fields[] = {
    {"vm_path", {"vm_identifier", "vm", "vm_id"}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    TEXT("provider", 63),
    {"output_path", {"export_path", "output_dir"}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    TEXT("name", 255),
    TEXT("id", JOB_ID_BYTES_MAX),
    TEXT("format", 16),
    TEXT("method", 16),
    TEXT("export_method", 16), /* becomes format or method */
    BOOL("incremental"),
    BOOL("force_full"),
    BOOL("enable_cbt"),
    DURATION("incremental_max_age", 0, SUBMIT_FULL_DAYS_MAX *DAY_MS),
    NUMBER("max_full_age_days", 1, SUBMIT_FULL_DAYS_MAX),
    BOOL("compress"),
    TEXT("compression", 8),
    NUMBER("compression_level", 1, 9),
    BOOL("verify"),
    BOOL("snapshot"),
    TEXT("snapshot_name", 80), /* vSphere's limit */
    BOOL("snapshot_memory"),
    BOOL("snapshot_quiesce"),
    BOOL("delete_snapshot"),
    BOOL("consolidate_snapshots"),
    OBJECT("options"),
    OBJECT("hyper2kvm_integration"),
    NUMBER("priority", 0, 100),
    TEXT("deadline", 40),
    {"depends_on", {NULL}, FIELD_ANY, 0, 0, NULL},
    {"time_windows", {NULL}, FIELD_ANY, 0, 0, NULL},
    TEXT("on_window_end", 16),
    OBJECT("retry"),
    OBJECT("metadata"),
    OBJECT("tags"),
    LATER("keep_snapshots", "0"),
    BANDWIDTH_FIELDS,
    LATER("email_notify", "false"),
    LATER("email", ""),
    TEXT("upload", UPLOAD_URL_BYTES_MAX),
    MAY_FAIL_FIELDS,
    BOOL("keep_local"),
    BOOL("stream_upload"),
    OBJECT("encrypt"),
    OBJECT("cleanup"),
    OBJECT("libvirt"),
    {"pre_hooks", {NULL}, FIELD_ANY, 0, 0, NULL},
    {"post_hooks", {NULL}, FIELD_ANY, 0, 0, NULL},
    LATER("template", ""),
    {"vcenter", {"vcenter_url", "host", "endpoint"}, FIELD_ANY, 0, 0, ""},
    LATER("datacenter", ""),
    {0},
};

static const struct field option_fields[] = {
    NUMBER("parallel_downloads", 1, 16),
    BOOL("remove_cdrom"),
    SHUTDOWN_FIELDS,
    {0},
};

static const struct field conversion_fields[] = {
    BOOL("enabled"),
    BOOL("daemon_mode"),
    BOOL("auto_convert"),
    TEXT("instance", 63),
    OBJECT("stages"),
    TEXT("target_format", 16),
    DURATION("timeout", 1000, UINT64_C(48) * HOUR_MS),
    {0},
};

static const struct field libvirt_fields[] = {
    BOOL("define"),
    LIBVIRT_WISH_FIELDS,
    {0},
};

static const struct field encrypt_fields[] = {
    TEXT("method", 32),
    TEXT("key_ref", 64),
    TEXT("passphrase", CRYPT_PASSPHRASE_BYTES_MAX),
    LATER("recipient", ""),
    {0},
};

static const struct field cleanup_fields[] = {CLEANUP_POLICY_FIELDS, {0}};

const struct field submit_stage_fields[] = {
    BOOL("inspect"), BOOL("fix"), BOOL("convert"), BOOL("validate"), {0},
};

static const struct field retry_fields[] = {
    NUMBER("max_attempts", 1, RETRY_ATTEMPTS_MAX),
    DURATION("initial_delay", 100, UINT64_C(24) * HOUR_MS),
    DURATION("max_delay", 100, UINT64_C(24) * HOUR_MS),
    LATER("backoff", "\"exponential\""),
    {0},
};

static const struct field batch_fields[] = {
    {"jobs", {NULL}, FIELD_ANY, 0, 0, NULL},
    BOOL("atomic"),
    {0},
};

static int split_list(const json_t *list, struct submit_batch *out, struct field_problem *problem,
                      struct error *err)
{
    size_t count = json_array_size(list);

    if (!json_is_array(list) || count == 0) {
        return field_fail(problem, 400, "jobs", err, ERR_INVALID,
                          "'jobs' must be a list with at least one job");
    }
    if (count > SUBMIT_JOBS_MAX) {
        return field_fail(problem, 400, "jobs", err, ERR_INVALID,
                          "%zu jobs in one request, at most %d are allowed", count,
                          SUBMIT_JOBS_MAX);
    }
    for (size_t i = 0; i < count; i++)
        out->elements[i] = json_array_get(list, i);
    out->count = count;
    return 0;
}

int submit_split(const json_t *body, struct submit_batch *out, struct field_problem *problem,
                 struct error *err)
{
    auto_json *canonical = NULL;

    *out = (struct submit_batch){0};
    if (json_is_array(body))
        return split_list(body, out, problem, err);
    if (json_object_get(body, "jobs") == NULL) {
        out->elements[0] = body;
        out->count = 1;
        out->single = true;
        return 0;
    }
    if (fields_canonical(batch_fields, "", body, &canonical, problem, err) < 0)
        return -1;
    out->atomic = field_bool(canonical, "atomic", false);
    return split_list(json_object_get(body, "jobs"), out, problem, err);
}

int submit_seal_passphrase(const struct seal_key *key, const json_t *object, const char *field,
                           json_t *spec, struct field_problem *problem, struct error *err)
{
    const char *passphrase = field_text(object, "passphrase", NULL);
    autofree uint8_t *sealed = NULL;
    autofree char *hex = NULL;
    size_t size = 0;

    if (passphrase == NULL)
        return 0;
    if (strlen(passphrase) < CRYPT_PASSPHRASE_BYTES_MIN) {
        return field_fail(problem, 400, field, err, ERR_INVALID, "'%s' must have %d to %d bytes",
                          field, CRYPT_PASSPHRASE_BYTES_MIN, CRYPT_PASSPHRASE_BYTES_MAX);
    }
    if (key == NULL) {
        return field_fail(problem, 422, field, err, ERR_NOT_AVAILABLE,
                          "'%s' cannot be sealed: secrets.master_key is not set in the "
                          "configuration",
                          field);
    }
    seal(key, passphrase, strlen(passphrase), &sealed, &size);
    hex = xmalloc(2 * size + 1);
    hex_encode(sealed, size, hex);
    json_set_text(spec, "sealed_passphrase", hex);
    return 0;
}

/* The whole element in canonical form, every member checked. */
static int canonical_job(const struct submit_settings *settings, const json_t *element,
                         json_t **out, struct field_problem *problem, struct error *err)
{
    auto_json *job = NULL;
    json_t *conversion;

    if (fields_canonical(job_fields, "", element, &job, problem, err) < 0 ||
        submit_split_export_method(job, problem, err) < 0 ||
        hooks_apply(settings->hooks, job, problem, err) < 0 ||
        fields_member(job, "options", "options.", option_fields, problem, err) < 0 ||
        shutdown_wish_check(json_object_get(job, "options"), problem, err) < 0 ||
        fields_member(job, "hyper2kvm_integration", "hyper2kvm_integration.", conversion_fields,
                      problem, err) < 0 ||
        fields_member(job, "encrypt", "encrypt.", encrypt_fields, problem, err) < 0 ||
        fields_member(job, "libvirt", "libvirt.", libvirt_fields, problem, err) < 0 ||
        fields_member(job, "cleanup", "cleanup.", cleanup_fields, problem, err) < 0 ||
        fields_member(job, "retry", "retry.", retry_fields, problem, err) < 0)
        return -1;
    conversion = json_object_get(job, "hyper2kvm_integration");
    if (conversion != NULL && fields_member(conversion, "stages", "hyper2kvm_integration.stages.",
                                            submit_stage_fields, problem, err) < 0)
        return -1;
    if (json_object_get(job, "vm_path") == NULL)
        return field_fail(problem, 400, "vm_path", err, ERR_INVALID, "'vm_path' is missing");
    if (submit_check_rules(settings, job, problem, err) < 0)
        return -1;
    *out = STEAL(job);
    return 0;
}

/* What was asked for or, by default, <base_path>/<VM name as file name>. */
static int output_of(const struct submit_settings *settings, const json_t *job, const char *vm_name,
                     char **out, struct field_problem *problem, struct error *err)
{
    const char *vm_path = field_text(job, "vm_path", "");
    const char *slash = strrchr(vm_path, '/');
    const char *wanted = field_text(job, "output_path", NULL);
    autofree char *name = NULL;

    if (wanted == NULL) {
        name = vm_file_name(vm_name != NULL ? vm_name : slash != NULL ? slash + 1 : vm_path);
        wanted = name;
    }
    if (path_confine(settings->bases, wanted, out, err) < 0) {
        (void)snprintf(problem->field, sizeof problem->field, "output_path");
        problem->status = err->code == ERR_INVALID ? 400 : 422;
        return -1;
    }
    if (strlen(*out) > FIELD_TEXT_MAX) {
        return field_fail(problem, 400, "output_path", err, ERR_INVALID,
                          "'output_path' is over %d bytes", FIELD_TEXT_MAX);
    }
    return 0;
}

/* The base that the export is on. Borrowed or, if all fails, the path itself. */
static const char *base_of(const struct submit_settings *settings, const char *path)
{
    for (size_t i = 0; i < settings->bases->count; i++) {
        autofree char *real = NULL;
        struct error none = ERROR_NONE;
        size_t length;
        if (path_confine(settings->bases, settings->bases->items[i], &real, &none) < 0)
            continue;
        length = strlen(real);
        if (strncmp(path, real, length) == 0 && (path[length] == '/' || path[length] == '\0'))
            return settings->bases->items[i];
    }
    return path;
}

int submit_names(const json_t *element, json_t **out, struct field_problem *problem,
                 struct error *err)
{
    auto_json *job = NULL;

    if (fields_canonical(job_fields, "", element, &job, problem, err) < 0)
        return -1;
    /* two names of one field would not win over each other */
    if (strstr(field_text(job, "export_method", ""), "{{") == NULL &&
        submit_split_export_method(job, problem, err) < 0)
        return -1;
    *out = STEAL(job);
    return 0;
}

/* Done by the scheduler when the job is complete. */
static int add_cleanup(const struct submit_settings *settings, struct submit_request *request,
                       struct field_problem *problem, struct error *err)
{
    const json_t *fields = json_object_get(request->definition, "cleanup");
    json_t *spec = NULL;

    if (fields == NULL)
        return 0;
    if (cleanup_policy_spec(settings->bases, fields, base_of(settings, request->output_path), &spec,
                            err) < 0) {
        (void)snprintf(problem->field, sizeof problem->field, "cleanup.dir");
        problem->status = err->code == ERR_INVALID ? 400 : 422;
        return -1;
    }
    (void)json_object_set_new(request->export_spec, "cleanup", spec);
    return 0;
}

static void set_bool(json_t *object, const char *key, bool value)
{
    (void)json_object_set_new(object, key, json_boolean(value));
}

static void copy_member(json_t *to, const char *key, const json_t *from, const char *name)
{
    json_t *value = json_object_get(from, name);

    if (value != NULL)
        (void)json_object_set(to, key, value);
}

static json_t *export_spec_of(const struct submit_request *request, bool convert)
{
    const json_t *job = request->definition;
    const json_t *options = json_object_get(job, "options");
    const char *format = field_text(job, "format", "ovf");
    json_t *shutdown = shutdown_wish_spec(options);
    json_t *spec = json_object();

    json_set_text(spec, "job_id", request->id);
    copy_member(spec, "vm", job, "vm_path");
    json_set_text(spec, "output_path", request->output_path);
    json_set_text(spec, "format", format);
    if (strcmp(field_text(job, "method", "auto"), "auto") != 0)
        copy_member(spec, "method", job, "method");
    set_bool(spec, "convert", convert && strcmp(format, "qcow2") != 0);
    set_bool(spec, "verify", field_bool(job, "verify", true));
    set_bool(spec, "snapshot", field_bool(job, "snapshot", false));
    copy_member(spec, "snapshot_name", job, "snapshot_name");
    set_bool(spec, "snapshot_memory", field_bool(job, "snapshot_memory", false));
    set_bool(spec, "snapshot_quiesce", field_bool(job, "snapshot_quiesce", true));
    set_bool(spec, "delete_snapshot", field_bool(job, "delete_snapshot", true));
    set_bool(spec, "consolidate_snapshots", field_bool(job, "consolidate_snapshots", false));
    (void)json_object_set_new(
        spec, "parallel",
        json_integer((json_int_t)field_number(options, "parallel_downloads", SUBMIT_PARALLEL)));
    (void)json_object_set_new(
        spec, "compress_level",
        json_integer((json_int_t)field_number(job, "compression_level", SUBMIT_COMPRESS_LEVEL)));
    if (field_bool(job, "enable_cbt", false))
        set_bool(spec, "enable_cbt", true);
    if (shutdown != NULL)
        json_put(spec, "shutdown", shutdown);
    if (field_bool(options, "remove_cdrom", false))
        set_bool(spec, "remove_cdrom", true);
    set_bool(spec, "incremental", submit_wants_restore_point(job));
    if (submit_wants_restore_point(job)) {
        int64_t days = (int64_t)field_number(job, "max_full_age_days", SUBMIT_FULL_DAYS);
        int64_t age_ms = field_duration_ms(job, "incremental_max_age", days * (int64_t)DAY_MS);
        set_bool(spec, "force_full", field_bool(job, "force_full", false));
        (void)json_object_set_new(spec, "incremental_max_age_ms", json_integer(age_ms));
    }
    if (submit_wants_compression(job))
        json_set_text(spec, "compress", field_text(job, "compression", SUBMIT_COMPRESSION));
    if (json_object_get(job, "encrypt") != NULL &&
        json_object_get(json_object_get(job, "encrypt"), "passphrase") == NULL) {
        json_set_text(spec, "encrypt_key",
                      field_text(json_object_get(job, "encrypt"), "key_ref", SUBMIT_KEY_REF));
    }
    copy_member(spec, "upload", job, "upload");
    copy_member(spec, "keep_local", job, "keep_local");
    copy_member(spec, "stream_upload", job, "stream_upload");
    may_fail_spec(job, request->submission.max_attempts, spec);
    if (bandwidth_is_given(job))
        (void)json_object_set_new(spec, "bandwidth", bandwidth_spec(job));
    copy_member(spec, "tags", job, "tags");
    copy_member(spec, "metadata", job, "metadata");
    return spec;
}

/* export_path, manifest_path and vm_name are known when the export is done: the scheduler puts
 * them in from its result. */
static json_t *convert_spec_of(const struct submit_settings *settings,
                               const struct submit_request *request)
{
    const json_t *conversion = json_object_get(request->definition, "hyper2kvm_integration");
    json_t *options = json_object();
    json_t *spec = json_object();

    set_bool(options, "daemon_mode", field_bool(conversion, "daemon_mode", true));
    json_set_text(options, "instance",
                  field_text(conversion, "instance", request->submission.provider));
    set_bool(options, "auto_convert", true);
    copy_member(options, "stages", conversion, "stages");
    json_set_text(options, "target_format",
                  field_text(conversion, "target_format", settings->hyper2kvm->default_format));
    (void)json_object_set_new(options, "timeout_ms",
                              json_integer((json_int_t)field_duration_ms(
                                  conversion, "timeout", settings->hyper2kvm->job_timeout_ms)));
    json_set_text(spec, "job_id", request->id);
    json_set_text(spec, "export_path", request->output_path);
    (void)json_object_set_new(spec, "hyper2kvm", options);
    return spec;
}

/* The scheduler adds what export and conversion made. */
static json_t *import_spec_of(const struct submit_settings *settings,
                              const struct submit_request *request)
{
    json_t *spec = json_object();

    json_set_text(spec, "job_id", request->id);
    (void)json_object_set_new(
        spec, "libvirt",
        libvirt_wish_spec(settings->libvirt, json_object_get(request->definition, "libvirt")));
    return spec;
}

static int check_deadline(const json_t *job, struct field_problem *problem, struct error *err)
{
    const char *text = field_text(job, "deadline", NULL);

    if (text == NULL || parse_is_time(text, false))
        return 0;
    return field_fail(problem, 400, "deadline", err, ERR_INVALID,
                      "'deadline' must be a time like 2026-03-01T02:00:00Z");
}

/* "job-1" or {"job_id", "required_state", "timeout"}, one or a list, becomes a list of objects. */
static int take_dependency(const json_t *item, json_t *list, struct field_problem *problem,
                           struct error *err)
{
    static const struct field fields[] = {
        {"job_id", {"id"}, FIELD_TEXT, 1, 63, NULL},
        {"required_state", {"state"}, FIELD_TEXT, 1, 16, NULL},
        {"timeout", {NULL}, FIELD_DURATION, 1000, SUBMIT_WAIT_MAX_MS, NULL},
        {0},
    };
    static const char *const states[] = {"completed", "failed", "final", NULL};
    static const char *const none[] = {NULL};
    auto_json *named = json_is_string(item) ? json_pack("{s:O}", "job_id", item) : NULL;
    auto_json *read = NULL;
    json_t *entry;
    int64_t timeout_ms;

    if (!json_is_string(item) && !json_is_object(item)) {
        return field_fail(problem, 400, "depends_on", err, ERR_INVALID,
                          "'depends_on' must be a list of job ids, or of objects with job_id");
    }
    if (fields_canonical(fields, "depends_on.", named != NULL ? named : item, &read, problem, err) <
            0 ||
        submit_check_word("depends_on.required_state",
                          field_text(read, "required_state", states[0]), states, none, problem,
                          err) < 0)
        return -1;
    if (json_object_get(read, "job_id") == NULL) {
        return field_fail(problem, 400, "depends_on.job_id", err, ERR_INVALID,
                          "'depends_on.job_id' is missing");
    }
    timeout_ms = field_duration_ms(read, "timeout", 0);
    entry = json_object();
    json_set_text(entry, "job_id", field_text(read, "job_id", ""));
    json_set_text(entry, "required_state", field_text(read, "required_state", states[0]));
    if (timeout_ms > 0)
        (void)json_object_set_new(entry, "timeout_ms", json_integer(timeout_ms));
    (void)json_array_append_new(list, entry);
    return 0;
}

static int read_dependencies(json_t *job, struct field_problem *problem, struct error *err)
{
    const json_t *given = json_object_get(job, "depends_on");
    auto_json *list = json_array();
    const json_t *item;
    size_t i;

    if (given == NULL)
        return 0;
    if (!json_is_array(given) && take_dependency(given, list, problem, err) < 0)
        return -1;
    json_array_foreach(given, i, item)
    {
        if (take_dependency(item, list, problem, err) < 0)
            return -1;
    }
    if (json_array_size(list) > SUBMIT_DEPENDENCIES_MAX) {
        return field_fail(problem, 400, "depends_on", err, ERR_INVALID,
                          "'depends_on' may name at most %d jobs", SUBMIT_DEPENDENCIES_MAX);
    }
    if (json_array_size(list) == 0) {
        (void)json_object_del(job, "depends_on");
    } else {
        (void)json_object_set(job, "depends_on", list);
    }
    return 0;
}

static int read_windows(const struct submit_settings *settings, json_t *job,
                        struct field_problem *problem, struct error *err)
{
    static const char *const ends[] = {"continue", "pause", "cancel", NULL};
    const json_t *given = json_object_get(job, "time_windows");
    const char *end = field_text(job, "on_window_end", ends[0]);
    auto_json *list = NULL;

    if (given != NULL && time_windows_read(given, settings->windows, &list, problem, err) < 0)
        return -1;
    if (json_array_size(list) > 0) {
        (void)json_object_set(job, "time_windows", list);
        if (word_in(end, ends))
            return 0;
        return field_fail(problem, 400, "on_window_end", err, ERR_INVALID,
                          "'on_window_end': '%.32s' is not known, it is continue, pause or cancel",
                          end);
    }
    (void)json_object_del(job, "time_windows");
    if (json_object_get(job, "on_window_end") == NULL)
        return 0;
    return field_fail(problem, 400, "on_window_end", err, ERR_INVALID,
                      "'on_window_end' means nothing without 'time_windows'");
}

static void fill_submission(const struct submit_settings *settings, struct submit_request *request)
{
    struct job_submission *s = &request->submission;
    const json_t *job = request->definition;
    const json_t *retry = json_object_get(job, "retry");

    s->id = request->id;
    s->name = field_text(job, "name", "");
    s->kind = "export";
    s->provider = field_text(job, "provider", PROVIDER_DEFAULT);
    s->vm_path = field_text(job, "vm_path", "");
    s->output_path = request->output_path;
    s->format = field_text(job, "format", "ovf");
    s->definition = request->definition;
    s->priority = (uint32_t)field_number(job, "priority", SUBMIT_PRIORITY);
    s->deadline = field_text(job, "deadline", NULL);
    s->depends_on = json_object_get(job, "depends_on");
    s->time_windows = json_object_get(job, "time_windows");
    s->on_window_end = field_text(job, "on_window_end", "continue");
    s->max_attempts = (uint32_t)field_number(retry, "max_attempts", settings->retry->max_attempts);
    submit_retry_delays(settings, retry, &s->retry_initial_ms, &s->retry_max_ms);
}

/* The tasks, when there are hooks among them. */
static void plan_hooks(const struct submit_settings *settings, struct submit_request *request,
                       const char *vm_name)
{
    const char *vm_path = field_text(request->definition, "vm_path", "");
    const char *slash = strrchr(vm_path, '/');

    hooks_plan(&(struct hook_facts){.job = request->definition,
                                    .job_id = request->id,
                                    .vm_name = vm_name != NULL ? vm_name
                                               : slash != NULL ? slash + 1
                                                               : vm_path,
                                    .output_path = request->output_path,
                                    .retry = settings->retry,
                                    .export_spec = request->export_spec,
                                    .convert_spec = request->convert_spec,
                                    .import_spec = request->import_spec},
               &request->plan);
    request->submission.tasks = request->plan.tasks;
    request->submission.task_count = request->plan.count;
}

int submit_parse(const struct submit_settings *settings, const json_t *element, const char *vm_name,
                 struct submit_request **out, struct field_problem *problem, struct error *err)
{
    auto_submit_request *request = xcalloc(1, sizeof *request);
    auto_json *job = NULL;
    const json_t *conversion;
    bool enabled;

    if (canonical_job(settings, element, &job, problem, err) < 0 ||
        check_deadline(job, problem, err) < 0 || read_dependencies(job, problem, err) < 0 ||
        read_windows(settings, job, problem, err) < 0 ||
        output_of(settings, job, vm_name, &request->output_path, problem, err) < 0)
        return -1;
    /* what people put into metadata may be a secret by its name: it is stored nowhere */
    request->definition = json_mask_secrets(job);
    json_set_text(request->definition, "output_path", request->output_path);
    if (field_text(job, "id", NULL) != NULL) {
        (void)snprintf(request->id, sizeof request->id, "%s", field_text(job, "id", ""));
    } else {
        id_new("job", request->id);
    }
    fill_submission(settings, request);
    conversion = json_object_get(job, "hyper2kvm_integration");
    enabled = field_bool(conversion, "enabled", false);
    request->export_spec = export_spec_of(request, enabled);
    if (submit_seal_passphrase(settings->exports_key, json_object_get(job, "encrypt"),
                               "encrypt.passphrase", request->export_spec, problem, err) < 0)
        return -1;
    request->submission.export_spec = request->export_spec;
    if (add_cleanup(settings, request, problem, err) < 0)
        return -1;
    if (enabled && field_bool(conversion, "auto_convert", true)) {
        request->convert_spec = convert_spec_of(settings, request);
        request->submission.convert_spec = request->convert_spec;
    }
    if (submit_wants_import(job)) {
        request->import_spec = import_spec_of(settings, request);
        request->submission.import_spec = request->import_spec;
    }
    plan_hooks(settings, request, vm_name);
    *out = STEAL(request);
    return 0;
}

void submit_request_free(struct submit_request *request)
{
    if (request == NULL)
        return;
    json_decref(request->definition);
    json_decref(request->export_spec);
    json_decref(request->convert_spec);
    json_decref(request->import_spec);
    hook_plan_release(&request->plan);
    free(request->output_path);
    free(request->volume);
    free(request);
}
