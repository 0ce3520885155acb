/* From the work area to the place where images are found: everything into one directory there,
 * which then gets its final name. conversion.json in it says whose it is, so that a conversion
 * whose end could not be told any more is not done twice. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/formats/manifest.h"
#include "stage.h"

#define RECORD_NAME      "conversion.json"
#define RECORD_BYTES_MAX ((size_t)MIB)
#define REPORT_NAME      "hyper2kvm-report.json"
#define REPORT_BYTES_MAX ((size_t)(4 * MIB))
#define FILE_MODE        0640U
#define DIR_MODE         0751 /* QEMU runs as another user and must get through */
#define NAMES_MAX        16   /* conversions of one job that were left lying about */

/* Candidate n: <vm>, <vm>-<job>, <vm>-<job>-2 ...; a name that was asked for is the only one.
 * Caller frees. NULL: no more. */
static char *target_dir(const struct conversion *c, size_t n)
{
    const char *base = c->bridge->hyper2kvm.output_dir;
    autofree char *job = vm_file_name(c->job_id);

    if (c->output_name != NULL)
        return n == 0 ? xasprintf("%s/%s", base, c->output_name) : NULL;
    if (n == 0)
        return xasprintf("%s/%s", base, c->vm_file);
    if (n == 1)
        return xasprintf("%s/%s-%s", base, c->vm_file, job);
    return xasprintf("%s/%s-%s-%zu", base, c->vm_file, job, n);
}

static bool exists(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0;
}

/* ---- an earlier end ---- */

static json_t *result_in(const struct conversion *c, const char *dir)
{
    autofree char *path = xasprintf("%s/" RECORD_NAME, dir);
    autofree char *text = NULL;
    auto_json *record = NULL;
    struct error ignored = ERROR_NONE;
    const json_t *file;
    json_t *all;
    size_t size = 0;
    size_t i;

    if (file_read(path, RECORD_BYTES_MAX, &text, &size, &ignored) < 0 ||
        json_parse(text, size, RECORD_BYTES_MAX, &record, &ignored) < 0 ||
        strcmp(json_str(record, "job_id"), c->job_id) != 0 ||
        !json_is_object(json_object_get(record, "conversion")))
        return NULL;
    json_array_foreach(json_object_get(json_object_get(record, "conversion"), "output_files"), i,
                       file)
    {
        if (!json_is_string(file) || !exists(json_string_value(file)))
            return NULL; /* someone took images away since */
    }
    all = json_object();
    json_put(all, "conversion", json_incref(json_object_get(record, "conversion")));
    return all;
}

json_t *publish_find(const struct conversion *c)
{
    for (size_t n = 0; n < NAMES_MAX; n++) {
        autofree char *dir = target_dir(c, n);
        json_t *result = dir != NULL && exists(dir) ? result_in(c, dir) : NULL;
        if (result != NULL || dir == NULL || (n > 0 && !exists(dir)))
            return result;
    }
    return NULL;
}

/* ---- this one ---- */

static int sync_file(const char *path, struct error *err)
{
    autoclose int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fsync(fd) < 0)
        return error_set_errno(err, errno, "'%.256s' cannot be synced", path);
    return 0;
}

static int check_image(const struct conversion *c, const struct stage *stage, const char *path,
                       struct error *err)
{
    const char *argv[] = {"qemu-img", "check", "-q", "-f", c->format, path, NULL};
    struct stat st;

    if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode))
        return error_set(err, ERR_INTERNAL, "hyper2kvm left no '%.256s'", path);
    /* there is nothing in a raw image to check */
    if (strcmp(c->format, "raw") != 0 && stage_qemu_img(c, stage, argv, err) < 0)
        return -1;
    return sync_file(path, err);
}

static int gather(struct conversion *c, const struct stage *stage, char *const *images,
                  const char *report, struct error *err)
{
    autofree char *text = NULL;
    autofree char *copy = xasprintf("%s/" REPORT_NAME, stage->final);
    struct error ignored = ERROR_NONE;
    size_t size = 0;

    if (mkdir(stage->final, DIR_MODE) < 0 && errno != EEXIST)
        return error_set_errno(err, errno, "directory '%.256s'", stage->final);
    for (size_t i = 0; i < stage->count; i++) {
        autofree char *to = publish_image(c, stage->final, i);
        if (strcmp(images[i], to) != 0 && rename(images[i], to) < 0)
            return error_set_errno(err, errno, "rename '%.200s' to '%.200s'", images[i], to);
    }
    if (report == NULL || file_read(report, REPORT_BYTES_MAX, &text, &size, &ignored) < 0)
        return 0; /* it is for people to read, nothing depends on it */
    if (file_write_atomic(copy, text, size, FILE_MODE, err) < 0)
        return -1;
    free(c->report);
    c->report = STEAL(copy);
    return 0;
}

char *publish_image(const struct conversion *c, const char *dir, size_t index)
{
    return xasprintf("%s/%s-disk%zu.%s", dir, c->vm_file, index + 1, c->format);
}

static int write_domain(struct conversion *c, const struct stage *stage, const char *target,
                        bool guest_fixed, json_t *warnings, struct error *err)
{
    autofree char *path = xasprintf("%s/%s.xml", stage->final, c->vm_file);
    autofree char *xml = NULL;
    char *images[CONVERT_DISKS_MAX] = {0};
    const struct domain_options domain = {.guest_fixed = guest_fixed, .final_dir = target};
    int rc;

    for (size_t i = 0; i < stage->count; i++)
        images[i] = publish_image(c, stage->final, i);
    rc = convert_domain(c, (const char *const *)images, &domain, warnings, &xml, err);
    for (size_t i = 0; i < stage->count; i++)
        free(images[i]);
    return rc < 0 ? -1 : file_write_atomic(path, xml, strlen(xml), FILE_MODE, err);
}

/* For whoever imports the images, now or later: the machine as the source described it. */
static int write_manifest(struct conversion *c, const struct stage *stage, const char *target,
                          struct error *err)
{
    autofree char *path = xasprintf("%s/" MANIFEST_JSON_NAME, stage->final);
    auto_json *manifest = json_deep_copy(c->manifest);
    autofree char *text = NULL;
    json_t *disk;
    size_t i;

    json_array_foreach(json_object_get(manifest, "disks"), i, disk)
    {
        static const char *const of_the_source[] = {"member",       "part_offset",    "part_bytes",
                                                    "checksum",     "content_digest", "change_id",
                                                    "relative_path"};
        autofree char *now = publish_image(c, stage->final, i);
        autofree char *later = publish_image(c, target, i);
        struct stat st;
        if (stat(now, &st) < 0)
            return error_set_errno(err, errno, "'%.256s'", now);
        for (size_t k = 0; k < ARRAY_LEN(of_the_source); k++)
            (void)json_object_del(disk, of_the_source[k]);
        json_set_text(disk, "local_path", later);
        json_set_text(disk, "source_format", c->format);
        json_put(disk, "bytes", json_integer(st.st_size));
    }
    (void)json_object_del(manifest, "pipeline");
    (void)json_object_del(manifest, "output");
    text = json_text(manifest);
    free(c->manifest_path);
    c->manifest_path = xasprintf("%s/" MANIFEST_JSON_NAME, target);
    return file_write_atomic(path, text, strlen(text), FILE_MODE, err);
}

/* The result speaks of files below target. */
static void name_result(struct conversion *c, const struct stage *stage, const char *target)
{
    (void)json_array_clear(c->output_files);
    for (size_t i = 0; i < stage->count; i++) {
        autofree char *path = publish_image(c, target, i);
        convert_remark(c->output_files, "%s", path);
    }
    free(c->domain_xml);
    c->domain_xml = xasprintf("%s/%s.xml", target, c->vm_file);
    if (c->report != NULL) {
        free(c->report);
        c->report = xasprintf("%s/" REPORT_NAME, target);
    }
}

static int write_record(const struct conversion *c, const struct stage *stage, struct error *err)
{
    autofree char *path = xasprintf("%s/" RECORD_NAME, stage->final);
    auto_json *record = convert_result(c);
    autofree char *text = NULL;

    json_set_text(record, "job_id", c->job_id);
    text = json_text(record);
    return file_write_atomic(path, text, strlen(text), FILE_MODE, err);
}

/* 1: it has its name. 0: the name is taken. */
static int give_name(const struct conversion *c, const struct stage *stage, const char *target,
                     struct error *err)
{
    if (worker_task_may_write(c->task, err) < 0)
        return -1;
    if (renameat2(AT_FDCWD, stage->final, AT_FDCWD, target, RENAME_NOREPLACE) == 0)
        return dir_sync_parent(target, err) < 0 ? -1 : 1;
    /* Some file systems do not know that flag: an empty directory of our own may be replaced. */
    if (errno == EINVAL && mkdir(target, DIR_MODE) == 0 && rename(stage->final, target) == 0)
        return dir_sync_parent(target, err) < 0 ? -1 : 1;
    if (errno == EEXIST || errno == ENOTEMPTY)
        return 0;
    return error_set_errno(err, errno, "rename '%.200s' to '%.200s'", stage->final, target);
}

int publish_images(struct conversion *c, const struct stage *stage, char *const *images,
                   bool guest_fixed, const char *report, struct error *err)
{
    json_t *warnings = c->warnings;

    c->guest_fixed = guest_fixed;
    for (size_t i = 0; !stage->checked && i < stage->count; i++) {
        if (check_image(c, stage, images[i], err) < 0)
            return error_wrap(err, "converted image of disk %zu", i + 1);
    }
    if (worker_task_permit(c->task, err) < 0 || worker_task_may_write(c->task, err) < 0 ||
        gather(c, stage, images, report, err) < 0)
        return -1;
    for (size_t n = 0; n < NAMES_MAX; n++) {
        autofree char *target = target_dir(c, n);
        int named;
        if (target == NULL) {
            return error_set(err, ERR_CONFLICT, "output_path '%.200s' exists already",
                             c->output_name);
        }
        if (exists(target))
            continue;
        if (write_domain(c, stage, target, guest_fixed, warnings, err) < 0 ||
            write_manifest(c, stage, target, err) < 0)
            return -1;
        warnings = NULL; /* once is enough */
        name_result(c, stage, target);
        if (write_record(c, stage, err) < 0)
            return -1;
        named = give_name(c, stage, target, err);
        if (named != 0)
            return named < 0 ? -1 : 0;
    }
    return error_set(err, ERR_CONFLICT, "'%.200s' and all its other names are taken below '%.200s'",
                     c->vm_file, c->bridge->hyper2kvm.output_dir);
}
