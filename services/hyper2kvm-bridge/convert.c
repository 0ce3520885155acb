/* See convert.h. */
#include "convert.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/parse.h"
#include "common/paths.h"
#include "common/strbuf.h"
#include "services/exporter/engine/vm.h"
#include "services/exporter/formats/domain_xml.h"
#include "services/exporter/formats/manifest.h"

#define REMARK_BYTES_MAX 512

static void set_new(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) < 0)
        abort(); /* out of memory */
}

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

int convert_write_domain(struct conversion *c, const char *dir, const char *const *images,
                         bool guest_fixed, struct error *err)
{
    auto_json *manifest = json_deep_copy(c->manifest);
    struct domain_options options = {.kvm = true, .guest_fixed = guest_fixed, .dir = dir};
    autofree char *path = xasprintf("%s/%s.xml", dir, c->vm_file);
    autofree char *xml = NULL;
    json_t *disk;
    size_t i;

    json_array_foreach(json_object_get(manifest, "disks"), i, disk)
    {
        struct stat st;
        if (stat(images[i], &st) < 0)
            return error_set(err, ERR_NOT_FOUND, "image '%s' is gone", images[i]);
        json_set_text(disk, "local_path", images[i]);
        json_set_text(disk, "source_format", c->format);
        set_new(disk, "bytes", json_integer(st.st_size));
        (void)json_object_del(disk, "relative_path");
        (void)json_object_del(disk, "checksum");
    }
    if (domain_xml_build(manifest, &options, c->warnings, &xml, err) < 0)
        return error_wrap(err, "domain of '%s'", c->vm_file);
    if (worker_task_may_write(c->task, err) < 0 ||
        file_write_atomic(path, xml, strlen(xml), 0640, err) < 0)
        return error_wrap(err, "'%s'", path);
    free(c->domain_xml);
    c->domain_xml = STEAL(path);
    return 0;
}

/* The qcow2 file of a disk: the disk itself, or the one that the exporter wrote beside it. */
static int qcow2_of(const json_t *disk, const char *dir, char **out, struct error *err)
{
    autofree char *path = NULL;
    autofree char *beside = NULL;
    const char *dot;
    struct stat st;

    if (manifest_disk_path(disk, dir, &path, err) < 0)
        return -1;
    if (strcmp(json_str(disk, "source_format"), "qcow2") == 0) {
        *out = STEAL(path);
        return 0;
    }
    dot = strrchr(path, '.');
    beside = dot == NULL ? xasprintf("%s.qcow2", path)
                         : xasprintf("%.*s.qcow2", (int)(dot - path), path);
    if (stat(beside, &st) < 0 || !S_ISREG(st.st_mode))
        return error_set(err, ERR_NOT_FOUND,
                         "export has no '%s': export again with conversion or format qcow2",
                         beside);
    *out = STEAL(beside);
    return 0;
}

/* hyper2kvm fixes images in place and cannot do that with a streamOptimized VMDK: everything
 * after this works with the qcow2 form. */
static int use_qcow2(json_t *manifest, const char *dir, struct error *err)
{
    json_t *disk;
    size_t i;

    json_array_foreach(json_object_get(manifest, "disks"), i, disk)
    {
        autofree char *path = NULL;
        struct stat st;
        if (qcow2_of(disk, dir, &path, err) < 0 || stat(path, &st) < 0)
            return err->code != ERR_NONE ? -1 : error_set(err, ERR_NOT_FOUND, "'%s' is gone", path);
        json_set_text(disk, "local_path", path);
        json_set_text(disk, "source_format", "qcow2");
        set_new(disk, "bytes", json_integer(st.st_size));
        (void)json_object_del(disk, "relative_path");
        (void)json_object_del(disk, "checksum"); /* it was the other file's */
    }
    return 0;
}

static int load_manifest(struct conversion *c, const char *path, struct error *err)
{
    struct manifest_check where = {.dir = c->export_dir, .bases = &c->bridge->bases};
    autofree char *confined = NULL;

    if (path_confine(&c->bridge->bases, path, &confined, err) < 0 ||
        manifest_load(confined, &c->manifest, err) < 0 ||
        use_qcow2(c->manifest, c->export_dir, err) < 0)
        return -1;
    where.files = true;
    return manifest_validate(c->manifest, &where, err);
}

static int take_options(struct conversion *c, const json_t *spec, struct error *err)
{
    json_t *options = NULL;
    json_t *stages = NULL;
    uint64_t timeout = 0;

    if (json_get_object(spec, "hyper2kvm", &options, err) < 0 ||
        json_get_bool(options, "daemon_mode", true, &c->queue, err) < 0 ||
        json_get_string(options, "instance", "", &c->instance, err) < 0 ||
        json_get_string(options, "target_format", c->bridge->hyper2kvm.default_format, &c->format,
                        err) < 0 ||
        json_get_object(options, "stages", &stages, err) < 0 ||
        json_get_u64(options, "timeout_ms", 0, INT32_MAX, 0, &timeout, err) < 0)
        return -1;
    if (strcmp(c->format, "qcow2") != 0 && strcmp(c->format, "raw") != 0)
        return error_set(err, ERR_INVALID, "target_format '%.16s' is not qcow2 or raw", c->format);
    c->stages = stages;
    c->timeout_ms = timeout > 0 ? (int64_t)timeout : c->bridge->hyper2kvm.job_timeout_ms;
    return 0;
}

static int prepare(struct conversion *c, struct error *err)
{
    const json_t *spec = worker_task_spec(c->task);
    const char *dir = NULL;
    const char *manifest = NULL;
    const char *name = NULL;

    if (json_get_string(spec, "export_path", "", &dir, err) < 0 ||
        json_get_string(spec, "manifest_path", "", &manifest, err) < 0 ||
        json_get_string(spec, "vm_name", "vm", &name, err) < 0 || take_options(c, spec, err) < 0 ||
        path_confine(&c->bridge->bases, dir, &c->export_dir, err) < 0)
        return -1;
    c->vm_file = vm_file_name(name);
    if (manifest[0] == '\0')
        return error_set(err, ERR_INVALID, "task names no manifest of the export");
    return load_manifest(c, manifest, err);
}

static int fall_back(struct conversion *c, struct error *err)
{
    if (strcmp(c->bridge->hyper2kvm.fallback, "fail") == 0)
        return error_wrap(err, "hyper2kvm.fallback is 'fail'");
    worker_task_log(c->task, LOG_LEVEL_WARN, "%s: taking the built-in path", err->message);
    convert_remark(c->warnings, "%s", err->message);
    error_clear(err);
    return builtin_convert(c, err);
}

static int choose(struct conversion *c, struct error *err)
{
    int rc;

    if (c->queue && c->bridge->hyper2kvm.daemon_enabled) {
        rc = queue_convert(c, err);
        if (rc == 0 || err->code != ERR_NOT_FOUND)
            return rc;
        worker_task_log(c->task, LOG_LEVEL_WARN, "%s: trying a direct call", err->message);
        convert_remark(c->warnings, "%s", err->message);
        error_clear(err);
    }
    rc = direct_convert(c, err);
    if (rc == 0 || err->code != ERR_NOT_FOUND)
        return rc;
    return fall_back(c, err);
}

static json_t *result(const struct conversion *c)
{
    json_t *conversion = json_object();
    json_t *all = json_object();

    json_set_text(conversion, "path_used", c->path_used);
    json_set_text(conversion, "format", c->format);
    set_new(conversion, "output_files", json_incref(c->output_files));
    json_set_text(conversion, "domain_xml", c->domain_xml == NULL ? "" : c->domain_xml);
    json_set_text(conversion, "report", c->report == NULL ? "" : c->report);
    set_new(conversion, "not_done", json_incref(c->not_done));
    set_new(conversion, "warnings", json_incref(c->warnings));
    set_new(all, "conversion", conversion);
    return all;
}

static void conversion_release(struct conversion *c)
{
    free(c->export_dir);
    free(c->vm_file);
    free(c->report);
    free(c->domain_xml);
    json_decref(c->manifest);
    json_decref(c->output_files);
    json_decref(c->not_done);
    json_decref(c->warnings);
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

    worker_task_phase(task, "converting");
    if (prepare(&c, err) < 0 || choose(&c, err) < 0)
        return -1;
    worker_task_log(task, LOG_LEVEL_INFO, "converted by the %s path, domain in '%s'", c.path_used,
                    c.domain_xml);
    for (size_t i = 0; i < json_array_size(c.warnings); i++)
        worker_task_log(task, LOG_LEVEL_WARN, "%s",
                        json_string_value(json_array_get(c.warnings, i)));
    *out_result = result(&c);
    return 0;
}
