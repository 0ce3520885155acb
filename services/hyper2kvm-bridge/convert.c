/* See convert.h. */
#include "convert.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/formats/domain_xml.h"
#include "services/exporter/targets/local.h"

#define COMPRESS_LEVEL_MAX 22                     /* zstd's */
#define REMARK_BYTES_MAX   (PATH_BYTES_MAX + 512) /* a path and words */

void convert_remark(json_t *array, const char *format, ...)
{
    char text[REMARK_BYTES_MAX];
    json_t *holder = json_object();
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    json_set_text(holder, "t", text); /* names from outside may be cut inside a character */
    if (json_array_append(array, json_object_get(holder, "t")) < 0)
        abort(); /* out of memory */
    json_decref(holder);
}

bool convert_stage(const struct conversion *c, const char *name)
{
    const json_t *value = json_object_get(c->stages, name);

    return value == NULL || json_is_true(value);
}

size_t convert_disk_count(const struct conversion *c)
{
    return json_array_size(json_object_get(c->manifest, "disks"));
}

const json_t *convert_disk(const struct conversion *c, size_t index)
{
    return json_array_get(json_object_get(c->manifest, "disks"), index);
}

int convert_domain(const struct conversion *c, const char *const *images,
                   const struct domain_options *options, json_t *warnings, char **out,
                   struct error *err)
{
    auto_json *manifest = json_deep_copy(c->manifest);
    json_t *disk;
    size_t i;

    json_array_foreach(json_object_get(manifest, "disks"), i, disk)
    {
        struct stat st;
        if (stat(images[i], &st) < 0)
            return error_set(err, ERR_NOT_FOUND, "image '%.256s' is gone", images[i]);
        json_set_text(disk, "local_path", images[i]);
        json_set_text(disk, "source_format", c->format);
        json_put(disk, "bytes", json_integer(st.st_size));
    }
    if (domain_xml_build(manifest, options, warnings, out, err) < 0)
        return error_wrap(err, "domain of '%.128s'", c->vm_file);
    return 0;
}

/* An import goes to a bridge that reaches the images; an absent volume means any. */
static void name_volume(const struct conversion *c, json_t *conversion)
{
    const char *image = json_string_value(json_array_get(c->output_files, 0));
    struct error ignored = ERROR_NONE;
    char volume[UUID_SIZE];

    if (image != NULL && local_volume(&c->bridge->reach, image, volume, &ignored) == 0)
        json_set_text(conversion, "volume", volume);
}

json_t *convert_result(const struct conversion *c)
{
    json_t *conversion = json_object();
    json_t *all = json_object();

    json_set_text(conversion, "path_used", c->path_used);
    json_set_text(conversion, "format", c->format);
    json_put(conversion, "guest_fixed", json_boolean(c->guest_fixed));
    json_put(conversion, "output_files", json_incref(c->output_files));
    name_volume(c, conversion);
    json_set_text(conversion, "domain_xml", c->domain_xml == NULL ? "" : c->domain_xml);
    json_set_text(conversion, "manifest_path", c->manifest_path == NULL ? "" : c->manifest_path);
    json_set_text(conversion, "report", c->report == NULL ? "" : c->report);
    json_put(conversion, "not_done", json_incref(c->not_done));
    json_put(conversion, "warnings", json_incref(c->warnings));
    json_put(all, "conversion", conversion);
    return all;
}

/* ---- the task ---- */

static int take_options(struct conversion *c, const json_t *spec, struct error *err)
{
    json_t *options = NULL;
    json_t *stages = NULL;
    uint64_t timeout = 0;
    uint64_t level = 0;

    if (json_get_object(spec, "hyper2kvm", &options, err) < 0 ||
        json_get_bool(options, "daemon_mode", true, &c->queue, err) < 0 ||
        json_get_string(options, "instance", "", &c->instance, err) < 0 ||
        json_get_string(options, "target_format", c->bridge->hyper2kvm.default_format, &c->format,
                        err) < 0 ||
        json_get_object(options, "stages", &stages, err) < 0 ||
        json_get_u64(options, "timeout_ms", 0, INT32_MAX, 0, &timeout, err) < 0 ||
        json_get_string(options, "compression", NULL, &c->compression, err) < 0 ||
        json_get_u64(options, "compress_level", 0, COMPRESS_LEVEL_MAX, 0, &level, err) < 0 ||
        json_get_string(spec, "output_name", NULL, &c->output_name, err) < 0)
        return -1;
    c->compress_level = (int)level;
    if (strcmp(c->format, "qcow2") != 0 && strcmp(c->format, "raw") != 0)
        return error_set(err, ERR_INVALID, "target_format '%.16s' is not qcow2 or raw", c->format);
    c->stages = stages;
    c->timeout_ms = timeout > 0 ? (int64_t)timeout : c->bridge->hyper2kvm.job_timeout_ms;
    return 0;
}

/* An export of ours (the scheduler says where), a manifest that was sent in, or what stands at
 * source_path. */
static int take_source(struct conversion *c, const json_t *spec, struct error *err)
{
    const struct config_list *bases = &c->bridge->bases;
    const char *source = json_str(spec, "source_path");
    struct convert_source found = {json_incref(json_object_get(spec, "manifest")), NULL};
    autofree char *path = NULL;

    if (found.manifest == NULL && source[0] == '\0') {
        found.manifest_path = xstrdup(json_str(spec, "manifest_path"));
    } else if (found.manifest == NULL && convert_find_source(source, bases, &found, err) < 0) {
        return error_wrap(err, "source_path");
    }
    path = found.manifest_path;
    if (path == NULL) {
        c->foreign = true;
        c->export_dir = xstrdup("");
        c->manifest = json_deep_copy(found.manifest);
        json_decref(found.manifest);
        if (convert_check_manifest(c->manifest, err) < 0)
            return -1;
        return convert_take_disks(c->manifest, NULL, bases, err);
    }
    if (path[0] == '\0')
        return error_set(err, ERR_INVALID, "task names no manifest of the export");
    if (convert_read_manifest(path, bases, &c->manifest, err) < 0)
        return -1;
    c->manifest_path = xstrdup(path);
    c->export_dir = path_parent(path);
    return convert_take_disks(c->manifest, c->export_dir, bases, err);
}

/* What the user knows better than the manifest. */
static int take_machine(struct conversion *c, const json_t *spec, struct error *err)
{
    json_t *source = json_object_get(c->manifest, "source");
    const json_t *vm;
    const char *name = NULL;

    if (json_get_string(spec, "vm_name", json_str(source, "vm_name"), &name, err) < 0 ||
        convert_override_machine(spec, c->manifest, err) < 0)
        return -1;
    c->vm_file = vm_file_name(name[0] == '\0' ? "vm" : name);
    if (name[0] != '\0' && json_is_object(source))
        json_set_text(source, "vm_name", name);
    vm = json_object_get(c->manifest, "vm");
    if (json_u64(vm, "cpu") == 0 || json_u64(vm, "memory_mb") == 0) {
        return error_set(err, ERR_INVALID,
                         "how many CPUs and how much memory the machine has is not known: say "
                         "'vcpus' and 'memory_mb'");
    }
    return 0;
}

static int prepare(struct conversion *c, struct error *err)
{
    const json_t *spec = worker_task_spec(c->task);

    if (take_options(c, spec, err) < 0 || take_source(c, spec, err) < 0)
        return -1;
    return take_machine(c, spec, err);
}

/* Without hyper2kvm: virt-v2v mends the guest where it is installed and knows it, else the guest
 * stays as it is. That virt-v2v is not there is only worth a word to who has named it. */
static int without_hyper2kvm(struct conversion *c, struct error *err)
{
    const char *v2v = c->bridge->hyper2kvm.virt_v2v;
    bool next = false;

    if (strcmp(v2v, "never") != 0 && convert_stage(c, "fix")) {
        if (v2v_convert(c, &next, err) == 0)
            return 0;
        if (!next)
            return -1;
        if (strcmp(v2v, "auto") != 0 || c->path_used != NULL)
            convert_remark(c->warnings, "%s", err->message);
        error_clear(err);
    }
    return builtin_convert(c, err);
}

/* Why the path before was left is a warning of the result. */
static void go_on(struct conversion *c, const char *next, struct error *err)
{
    convert_remark(c->warnings, "%s: %s", err->message, next);
    error_clear(err);
}

static int choose(struct conversion *c, struct error *err)
{
    bool next = false;

    if (c->queue && c->bridge->hyper2kvm.daemon_enabled) {
        if (queue_convert(c, &next, err) == 0)
            return 0;
        if (!next)
            return -1;
        go_on(c, "trying a direct call", err);
    }
    next = false;
    if (direct_convert(c, &next, err) == 0)
        return 0;
    if (!next)
        return -1;
    if (strcmp(c->bridge->hyper2kvm.fallback, "fail") == 0)
        return error_wrap(err, "hyper2kvm.fallback is 'fail'");
    go_on(c, "taking the built-in path", err);
    return without_hyper2kvm(c, err);
}

static void conversion_release(struct conversion *c)
{
    free(c->export_dir);
    free(c->vm_file);
    free(c->report);
    free(c->domain_xml);
    free(c->manifest_path);
    json_decref(c->manifest);
    json_decref(c->output_files);
    json_decref(c->not_done);
    json_decref(c->warnings);
}

static void log_warnings(const struct conversion *c)
{
    const json_t *warning;
    size_t i;

    json_array_foreach(c->warnings, i, warning)
    {
        worker_task_log(c->task, LOG_LEVEL_WARN, "%s", json_string_value(warning));
    }
}

int convert_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    CLEANUP(conversion_release)
    struct conversion c = {
        .task = task,
        .bridge = arg,
        .job_id = worker_task_job_id(task),
        .output_files = json_array(),
        .not_done = json_array(),
        .warnings = json_array(),
    };
    int rc;

    worker_task_phase(task, "converting");
    if (prepare(&c, err) < 0)
        return -1;
    *out_result = publish_find(&c);
    if (*out_result != NULL) {
        worker_task_log(task, LOG_LEVEL_INFO, "was converted already by an earlier lease");
        return 0;
    }
    rc = choose(&c, err);
    log_warnings(&c);
    if (rc < 0)
        return -1;
    worker_task_log(task, LOG_LEVEL_INFO, "converted by the %s path, domain in '%s'", c.path_used,
                    c.domain_xml);
    *out_result = convert_result(&c);
    return 0;
}
