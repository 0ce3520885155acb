/* See stage.h. */
#include "stage.h"

#include <fcntl.h>
#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "child.h"
#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"

#define QEMU_IMG_TIMEOUT_MS   (48 * INT64_C(3600000)) /* a copy of a large data disk */
#define QEMU_IMG_OUTPUT_BYTES 4096
#define REMOVE_FDS            16

static void set_new(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) < 0)
        abort(); /* out of memory */
}

struct words {
    struct strbuf sb;
};

static void on_line(void *arg, const char *line)
{
    struct words *words = arg;

    strbuf_addf(&words->sb, "%s%s", words->sb.length > 0 ? "; " : "", line);
}

int stage_qemu_img(const struct conversion *c, const char *const *argv, struct error *err)
{
    struct words words;
    struct child_options options = {
        .argv = argv,
        .stopped = worker_task_stopped(c->task),
        .timeout_ms = QEMU_IMG_TIMEOUT_MS,
        .line = on_line,
        .arg = &words,
    };
    int status = 0;
    int rc;

    strbuf_init(&words.sb, QEMU_IMG_OUTPUT_BYTES);
    rc = child_run(&options, &status, err);
    if (rc == 0 && status != 0)
        rc = error_set(err, ERR_INTERNAL, "qemu-img %s failed (%d): %.300s", argv[1], status,
                       words.sb.data);
    strbuf_release(&words.sb);
    return rc;
}

static int make_overlay(const struct conversion *c, struct stage *stage, size_t i,
                        struct error *err)
{
    const json_t *disk = convert_disk(c, i);
    const char *base = json_str(disk, "local_path");

    stage->overlays[i] = xasprintf("%s/%s.qcow2", stage->dir, json_str(disk, "id"));
    stage->links[i] = xasprintf("%s/%s.vmdk", stage->dir, json_str(disk, "id"));
    const char *argv[] = {"qemu-img", "create",           "-q", "-f", "qcow2", "-F", "qcow2", "-b",
                          base,       stage->overlays[i], NULL};
    if (stage_qemu_img(c, argv, err) < 0)
        return -1;
    if (link(stage->overlays[i], stage->links[i]) < 0)
        return error_set_errno(err, errno, "link '%s'", stage->links[i]);
    return 0;
}

int stage_open(const struct conversion *c, struct stage *out, struct error *err)
{
    struct stage stage = {0};
    size_t count = convert_disk_count(c);

    if (count > CONVERT_DISKS_MAX)
        return error_set(err, ERR_LIMIT, "%zu disks, at most %d", count, CONVERT_DISKS_MAX);
    stage.dir = xasprintf("%s/" STAGE_DIR "/%s-%" PRIu64, c->bridge->hyper2kvm.output_dir,
                          c->job_id, worker_task_epoch(c->task));
    stage.out = xasprintf("%s/out", stage.dir);
    stage.count = count;
    *out = stage; /* from here on the caller's auto cleans up */
    if (path_make_dirs(out->out, err) < 0)
        return error_wrap(err, "work area of the conversion (hyper2kvm.output_dir)");
    for (size_t i = 0; i < count; i++) {
        if (make_overlay(c, out, i, err) < 0)
            return -1;
    }
    return 0;
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void stage_close(struct stage *stage)
{
    if (stage->dir != NULL)
        (void)nftw(stage->dir, remove_entry, REMOVE_FDS, FTW_DEPTH | FTW_PHYS);
    free(stage->dir);
    free(stage->out);
    for (size_t i = 0; i < stage->count; i++) {
        free(stage->overlays[i]);
        free(stage->links[i]);
    }
    *stage = (struct stage){0};
}

static json_t *stages_object(const struct conversion *c, const struct stage *stage)
{
    static const char *const names[] = {"inspect", "fix", "convert", "validate"};
    json_t *pipeline = json_deep_copy(json_object_get(c->manifest, "pipeline"));

    if (!json_is_object(pipeline)) {
        json_decref(pipeline);
        pipeline = json_object();
    }
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        json_t *one = json_object_get(pipeline, names[i]);
        if (!json_is_object(one)) {
            set_new(pipeline, names[i], json_object());
            one = json_object_get(pipeline, names[i]);
        }
        set_new(one, "enabled", json_boolean(convert_stage(c, names[i])));
    }
    set_new(pipeline, "load",
            json_pack("{s:s, s:s}", "source_type", "vmdk", "source_path", stage->links[0]));
    return pipeline;
}

json_t *stage_document(const struct conversion *c, const struct stage *stage)
{
    json_t *document = json_deep_copy(c->manifest);
    json_t *disk;
    size_t i;

    json_array_foreach(json_object_get(document, "disks"), i, disk)
    {
        struct stat st;
        json_set_text(disk, "local_path", stage->overlays[i]);
        set_new(disk, "bytes", json_integer(stat(stage->overlays[i], &st) == 0 ? st.st_size : 0));
    }
    set_new(document, "pipeline", stages_object(c, stage));
    set_new(document, "output",
            json_pack("{s:s, s:s}", "directory", stage->out, "format", c->format));
    /* D3, read by the daemon's job mode */
    json_set_text(document, "input", stage->links[0]);
    json_set_text(document, "output_format", c->format);
    set_new(document, "compress", json_false());
    set_new(document, "flatten", json_true());
    return document;
}

/* A directory of its own below output_dir: an earlier import of the same VM stays as it is. */
static int final_dir(const struct conversion *c, char **out, struct error *err)
{
    const char *base = c->bridge->hyper2kvm.output_dir;
    autofree char *dir = xasprintf("%s/%s", base, c->vm_file);

    if (mkdir(dir, 0750) < 0) {
        if (errno != EEXIST)
            return error_set_errno(err, errno, "directory '%s'", dir);
        free(dir);
        dir = xasprintf("%s/%s-%s", base, c->vm_file, c->job_id);
        if (mkdir(dir, 0750) < 0 && errno != EEXIST)
            return error_set_errno(err, errno, "directory '%s'", dir);
    }
    *out = STEAL(dir);
    return 0;
}

static int check_image(const struct conversion *c, const char *path, struct error *err)
{
    const char *argv[] = {"qemu-img", "check", "-q", "-f", c->format, path, NULL};

    if (strcmp(c->format, "raw") == 0)
        return 0; /* nothing in it to check */
    return stage_qemu_img(c, argv, err);
}

static int move_image(const struct conversion *c, const char *from, const char *to,
                      struct error *err)
{
    if (worker_task_may_write(c->task, err) < 0)
        return -1;
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0)
        return dir_sync_parent(to, err);
    if (errno == EEXIST)
        return error_set(err, ERR_CONFLICT, "'%s' exists already and is not replaced", to);
    return error_set_errno(err, errno, "rename '%s' to '%s'", from, to);
}

int stage_publish(struct conversion *c, char *const *images, bool guest_fixed, struct error *err)
{
    const char *final[CONVERT_DISKS_MAX] = {0};
    size_t count = convert_disk_count(c);
    autofree char *dir = NULL;

    for (size_t i = 0; i < count; i++) {
        if (check_image(c, images[i], err) < 0)
            return error_wrap(err, "converted image of disk %zu", i + 1);
    }
    if (worker_task_permit(c->task, err) < 0 || final_dir(c, &dir, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        autofree char *path = xasprintf("%s/%s-disk%zu.%s", dir, c->vm_file, i + 1, c->format);
        if (move_image(c, images[i], path, err) < 0)
            return -1;
        convert_remark(c->output_files, "%s", path);
        final[i] = json_string_value(json_array_get(c->output_files, i));
    }
    return convert_write_domain(c, dir, final, guest_fixed, err);
}
