/* Files of an earlier export that stay as they are.
 *
 * Design notes
 * - An incremental export of whole disks writes every disk as a full one does. If none of its MiB
 *   differs from the base's leaves, what was written goes and the base's file gets a second name, a
 *   hard link, in the new export. A disk that did not change by the source's own account
 *   (export_changes.h) is not written at all. Marks of the source (Last-Modified ...) are not
 * believed: they have seconds, and tools that copy images keep them.
 * - A link and no name in another directory: the export is complete wherever it is copied, its
 *   descriptor and digest lists name files beside them as OVF wants, and removing the base harms
 *   nobody.
 * - The link is called "<name>.earlier.partial" until it gets its final name, never what a copy is
 *   written to: an attempt that begins anew must not write into the base. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "services/exporter/engine/export_run.h"

static char *shared_path(const char *dir, const char *name, uint64_t generation)
{
    autofree char *earlier = xasprintf("%s.earlier", name);

    return local_partial_path(dir, earlier, generation);
}

char *export_pending_path(const char *dir, const struct export_record_file *file,
                          uint64_t generation)
{
    return file->shared ? shared_path(dir, file->name, generation)
                        : local_partial_path(dir, file->name, generation);
}

const char *export_shared_with(const struct export_run *run, const char *name)
{
    for (size_t i = 0; i < run->disk_count; i++) {
        const struct export_disk *disk = &run->disks[i];
        for (size_t k = 0; disk->shared && k < disk->image_count; k++) {
            if (strcmp(disk->images[k].name, name) == 0)
                return disk->images[k].earlier;
        }
    }
    return NULL;
}

void export_share_use(const struct export_run *run, struct export_disk *disk, bool shared)
{
    if (!run->options.by_disk)
        return;
    disk->shared = shared;
    for (size_t i = 0; i < disk->image_count; i++) {
        struct export_image *image = &disk->images[i];
        free(image->path);
        image->path = shared ? shared_path(run->dir, image->name, run->generation)
                             : local_partial_path(run->dir, image->name, run->generation);
    }
}

void export_share_drop(const struct export_run *run, const struct export_disk *disk)
{
    for (size_t i = 0; disk->shared && i < disk->image_count; i++) {
        autofree char *copy = local_partial_path(run->dir, disk->images[i].name, run->generation);
        (void)unlink(copy); /* what stays is swept at the end */
    }
}

char *export_earlier_path(const struct export_run *run, const struct export_image *image)
{
    if (image->earlier == NULL)
        return NULL;
    return xasprintf("%s/%s", run->base.chain->points[0].dir, strrchr(image->earlier, '/') + 1);
}

static bool is_unchanged(const struct export_run *run, const struct export_disk *disk)
{
    if (!run->options.by_disk || disk->base_leaves == NULL ||
        leaves_count(disk->leaves) != leaves_count(disk->base_leaves))
        return false;
    for (size_t i = 0; i < disk->image_count; i++) {
        if (disk->images[i].earlier == NULL)
            return false;
    }
    for (size_t i = 0; i < leaves_count(disk->leaves); i++) {
        if (memcmp(leaves_get(disk->leaves, i), leaves_get(disk->base_leaves, i), DIGEST_BYTES) !=
            0)
            return false;
    }
    return true;
}

/* Digest and size of the base's file, from its record: those of its bytes were compared when the
 * base was chosen, if the export is to be verified. */
static int take_facts(const struct export_run *run, struct export_image *image, struct error *err)
{
    const struct export_record *record = run->base.chain->points[0].record;
    const char *name = strrchr(image->earlier, '/') + 1;
    struct stat st;

    for (size_t i = 0; i < record->file_count; i++) {
        const struct export_record_file *file = &record->files[i];
        if (strcmp(file->name, name) != 0)
            continue;
        if (lstat(image->path, &st) < 0 || !S_ISREG(st.st_mode) ||
            (uint64_t)st.st_size != file->size)
            return error_set(err, ERR_CORRUPT, "'%.200s' has another size", image->earlier);
        image->bytes = file->size;
        (void)snprintf(image->sha256, sizeof image->sha256, "%s", file->sha256);
        image->read_back = run->options.verify;
        return 0;
    }
    return error_set(err, ERR_CORRUPT, "export.json of the base does not name '%.200s'",
                     image->earlier);
}

static int link_image(const struct export_run *run, struct export_image *image, struct error *err)
{
    autofree char *from = export_earlier_path(run, image);

    if (from == NULL)
        return error_set(err, ERR_INTERNAL, "'%.200s' has no earlier image", image->path);
    if (unlink(image->path) < 0 && errno != ENOENT)
        return error_set_errno(err, errno, "'%.200s' cannot be removed", image->path);
    if (link(from, image->path) < 0)
        return error_set_errno(err, errno, "'%.200s' cannot be linked", from);
    return take_facts(run, image, err);
}

/* A domain that uses the base's images changes them (task kind import, which marks, then looks for
 * links). */
static int check_unused(const struct export_run *run, struct error *err)
{
    return local_is_used_by_domain(run->base.chain->points[0].dir)
               ? error_set(err, ERR_CONFLICT, "a domain uses them")
               : 0;
}

static int link_all(const struct export_run *run, struct export_disk *disk, struct error *err)
{
    for (size_t i = 0; i < disk->image_count; i++) {
        if (link_image(run, &disk->images[i], err) < 0)
            return -1;
    }
    return check_unused(run, err) < 0 ? -1 : local_sync_dir(run->dir, err);
}

static void unlink_all(const struct export_disk *disk)
{
    for (size_t i = 0; i < disk->image_count; i++)
        (void)unlink(disk->images[i].path);
}

int export_share(struct export_run *run, struct export_disk *disk, struct error *err)
{
    struct export_image before[COPY_OUTPUTS_MAX];
    struct error why = ERROR_NONE;
    const char *base_id;

    if (!is_unchanged(run, disk))
        return 0;
    base_id = run->base.chain->points[0].record->export_id;
    if (export_may_write(run, err) < 0)
        return -1;
    memcpy(before, disk->images, sizeof before);
    export_share_use(run, disk, true);
    if (link_all(run, disk, &why) == 0) {
        worker_task_log(run->task, LOG_LEVEL_INFO, "%s: unchanged since export %s, its files stay",
                        disk->name, base_id);
        return 0;
    }
    unlink_all(disk);
    export_share_use(run, disk, false);
    for (size_t i = 0; i < disk->image_count; i++) {
        disk->images[i].bytes = before[i].bytes;
        disk->images[i].read_back = before[i].read_back;
        memcpy(disk->images[i].sha256, before[i].sha256, sizeof before[i].sha256);
    }
    export_warn(run, "exporting",
                "%s: unchanged since export %s, but written once more, as its files cannot be "
                "shared: %.200s",
                disk->name, base_id, why.message);
    return 0;
}
