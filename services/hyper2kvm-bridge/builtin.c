/* The built-in path. Of an export for KVM nothing is left to do but a domain that starts the guest
 * as it is, with devices like those it had: the exporter wrote qcow2 while it downloaded, and no
 * second copy is made. Anything else is read once and written once, by the copy engine. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/image_copy.h"
#include "stage.h"

#define THREADS 2 /* inflating and hashing; more images are converted at the same time */

/* ---- no copy ---- */

static bool as_they_are(const struct conversion *c)
{
    if (c->foreign || c->output_name != NULL || c->compression != NULL ||
        strcmp(c->format, "qcow2") != 0)
        return false;
    for (size_t i = 0; i < convert_disk_count(c); i++) {
        if (strcmp(json_str(convert_disk(c, i), "source_format"), "qcow2") != 0)
            return false;
    }
    return true;
}

static int put_domain_beside(struct conversion *c, struct error *err)
{
    const char *images[CONVERT_DISKS_MAX];
    size_t count = convert_disk_count(c);
    autofree char *path = xasprintf("%s/%s.xml", c->export_dir, c->vm_file);
    autofree char *xml = NULL;

    for (size_t i = 0; i < count; i++)
        images[i] = json_str(convert_disk(c, i), "local_path");
    if (convert_domain(c, images, &(struct domain_options){0}, c->warnings, &xml, err) < 0 ||
        worker_task_permit(c->task, err) < 0 || worker_task_may_write(c->task, err) < 0)
        return -1;
    if (file_write_atomic(path, xml, strlen(xml), 0640, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++)
        convert_remark(c->output_files, "%s", images[i]);
    c->domain_xml = STEAL(path);
    return 0;
}

/* ---- one copy ---- */

struct rewrite {
    struct conversion *c;
    struct stage stage;
    uint64_t total; /* logical bytes of all disks */
    uint64_t done;  /* of those before the one that is being written */
};

static int may_write(void *arg, struct error *err)
{
    const struct rewrite *rewrite = arg;

    return worker_task_may_write(rewrite->c->task, err);
}

static void on_progress(void *arg, const struct copy_progress *progress)
{
    const struct rewrite *rewrite = arg;
    const struct worker_progress now = {
        .bytes_transferred = progress->bytes_transferred,
        .bytes_done = rewrite->done + progress->bytes_done,
        .bytes_total = rewrite->total,
        .limited_by = progress->limited_by,
    };

    worker_task_progress(rewrite->c->task, &now);
}

static int rewrite_disk(struct rewrite *rewrite, size_t i, const char *image, struct error *err)
{
    const struct conversion *c = rewrite->c;
    autofree char *journal = xasprintf("%s.journal", image);
    const struct copy_output output = {
        .format = sink_format_find(c->format),
        .path = image,
        .file_name = image,
        .compression = c->compression,
        .compression_level = c->compress_level,
    };
    const struct image_copy_options options = {
        .image = convert_part(c, i),
        .threads = THREADS,
        .journal_path = journal,
        .outputs = &output,
        .output_count = 1,
        .stopped = worker_task_stopped(c->task),
        .may_write = may_write,
        .progress = on_progress,
        .arg = rewrite,
    };
    auto_copy_result result = {0};

    if (image_copy(&options, &result, err) < 0)
        return error_wrap(err, "disk %zu", i + 1);
    if (copy_verify(&(struct copy_verify_options){.image = {.path = image, .format = c->format},
                                                  .leaves = result.leaves,
                                                  .threads = THREADS,
                                                  .stopped = options.stopped},
                    err) < 0)
        return error_wrap(err, "disk %zu, read back", i + 1);
    rewrite->done += json_u64(convert_disk(c, i), "capacity_bytes");
    return 0;
}

static int rewrite_all(struct rewrite *rewrite, struct error *err)
{
    struct conversion *c = rewrite->c;
    struct stage *stage = &rewrite->stage;
    char *images[CONVERT_DISKS_MAX] = {0};
    int rc = path_make_dirs(stage->out, err);

    for (size_t i = 0; i < stage->count; i++)
        rewrite->total += json_u64(convert_disk(c, i), "capacity_bytes");
    for (size_t i = 0; rc == 0 && i < stage->count; i++) {
        images[i] = stage_image(c, stage, i);
        rc = rewrite_disk(rewrite, i, images[i], err);
    }
    /* what was written is gone on with from its journal by whoever gets the task next */
    if (rc < 0 && worker_task_hands_back(c->task))
        stage->keep = true;
    stage->checked = true;
    if (rc == 0)
        rc = publish_images(c, stage, images, false, NULL, err);
    for (size_t i = 0; i < stage->count; i++)
        free(images[i]);
    return rc;
}

static int write_anew(struct conversion *c, struct error *err)
{
    struct rewrite rewrite = {.c = c, .stage = {.lock = -1}};
    int rc = stage_open(c, &rewrite.stage, err);

    if (rc == 0)
        rc = rewrite_all(&rewrite, err);
    stage_close(&rewrite.stage);
    return rc;
}

int builtin_convert(struct conversion *c, struct error *err)
{
    c->path_used = "builtin";
    if ((as_they_are(c) ? put_domain_beside(c, err) : write_anew(c, err)) < 0)
        return -1;
    convert_remark(c->not_done, "guest not changed: no virtio drivers installed, initramfs and "
                                "fstab as they were, guest tools of the source still there");
    return 0;
}
