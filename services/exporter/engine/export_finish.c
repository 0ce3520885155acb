/* Final names, given by the plan; and taking everything back. All of it may be repeated. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/parse.h"
#include "common/paths.h"
#include "services/exporter/engine/export_keys.h"
#include "services/exporter/engine/export_run.h"
#include "services/exporter/formats/manifest.h"

/* Who still writes for a dead task stops soon, and the release task comes again. */
#define DISCARD_WAIT_MS 1000

static bool exists(const char *path)
{
    struct stat st;

    return lstat(path, &st) == 0;
}

/* Is the file at path the one that the plan means? Reads it all, so only asked when it has its
 * final name already: after a crash in the middle. */
static bool is_planned(const struct export_record_file *file, const char *path,
                       const atomic_bool *stopped)
{
    struct error none = ERROR_NONE;
    char hex[DIGEST_HEX_SIZE];
    struct stat st;

    return lstat(path, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size == file->size &&
           file_sha256_until(path, stopped, hex, &none) == 0 && strcmp(hex, file->sha256) == 0;
}

static int settle_file(struct export_run *run, const struct export_record_file *file,
                       struct error *err)
{
    autofree char *partial = export_pending_path(run->dir, file, run->generation);
    autofree char *final_path = export_path(run, file->name);

    if (export_may_write(run, err) < 0)
        return -1;
    if (exists(partial))
        return local_rename_new(partial, final_path, err);
    if (!exists(final_path))
        return error_set(err, ERR_CORRUPT, "'%.200s' vanished before it was finished", partial);
    if (!is_planned(file, final_path, NULL)) {
        return error_set(err, ERR_CONFLICT, "'%.200s' is not of this export and is not replaced",
                         final_path);
    }
    return 0;
}

/* The manifest, read back under its final name: do its disks stand where it says? */
static int check_manifest(struct export_run *run, struct error *err)
{
    autofree char *path = export_path(run, MANIFEST_JSON_NAME);
    struct manifest_check check = {.dir = run->dir, .files = true, .bases = &run->exporter->bases};
    auto_json *manifest = NULL;

    if (json_object_get(run->plan->document, "encryption") != NULL)
        return 0; /* it was read before it was encrypted */
    if (manifest_load(path, &manifest, err) < 0 || manifest_validate(manifest, &check, err) < 0)
        return error_wrap(err, "finished export");
    return 0;
}

static int commit_record(struct export_run *run, struct error *err)
{
    autofree char *partial = export_plan_path(run);
    autofree char *final_path = export_path(run, EXPORT_RECORD_NAME);

    if (export_may_write(run, err) < 0 || local_rename_new(partial, final_path, err) < 0 ||
        local_sync_dir(run->dir, err) < 0)
        return -1;
    run->committed = true;
    return 0;
}

int export_commit(struct export_run *run, struct error *err)
{
    for (size_t i = 0; i < run->plan->file_count; i++) {
        if (settle_file(run, &run->plan->files[i], err) < 0)
            return -1;
    }
    if (local_sync_dir(run->dir, err) < 0 || check_manifest(run, err) < 0)
        return -1;
    return commit_record(run, err);
}

int export_tidy(struct export_run *run, struct error *err)
{
    if (export_may_write(run, err) < 0 || local_sweep(run->dir, run->stem, NULL, err) < 0)
        return -1;
    if (run->uploaded)
        export_upload_forget(run->dir);
    return local_unclaim(run->dir, false, err);
}

int export_retreat(const struct worker_task *task, const struct export_record *plan,
                   const char *dir, uint64_t generation, struct error *err)
{
    for (size_t i = 0; i < plan->file_count; i++) {
        const struct export_record_file *file = &plan->files[i];
        autofree char *partial = export_pending_path(dir, file, generation);
        autofree char *final_path = xasprintf("%s/%s", dir, file->name);
        if (exists(partial) || !is_planned(file, final_path, NULL))
            continue;
        /* asked each time: is_planned read the whole file, and took as long as that takes */
        if (worker_task_may_write(task, err) < 0 || local_rename_new(final_path, partial, err) < 0)
            return -1;
    }
    return local_sync_dir(dir, err);
}

int export_discard(struct export_run *run, struct error *err)
{
    if (export_may_write(run, err) < 0 || local_sweep(run->dir, run->stem, NULL, err) < 0)
        return -1;
    return local_unclaim(run->dir, true, err);
}

/* ---- of a dead task ---- */

static bool is_finished(const char *dir, const char *export_id)
{
    autofree char *path = xasprintf("%s/%s", dir, EXPORT_RECORD_NAME);
    auto_export_record *found = NULL;
    struct error none = ERROR_NONE;

    return export_record_load(path, &found, &none) == 0 && strcmp(found->export_id, export_id) == 0;
}

static int generation_of(const struct worker_task *task, uint64_t *out, struct error *err)
{
    const char *text = worker_task_record_get(task, EXPORT_KEY_GENERATION);

    *out = 0;
    return text == NULL ? 0
                        : parse_u64(EXPORT_KEY_GENERATION, text, 0, (uint64_t)INT64_MAX, out, err);
}

static int discard_dir(struct worker_task *task, const char *dir, const char *export_id,
                       const char *stem, struct error *err)
{
    autofree char *lock_path = NULL;
    autofree char *plan_path = NULL;
    auto_export_record *plan = NULL;
    struct error none = ERROR_NONE;
    autoclose int lock = -1;
    uint64_t generation = 0;

    if (generation_of(task, &generation, err) < 0)
        return -1;
    lock_path = local_lock_path(dir, generation);
    if (local_lock(lock_path, DISCARD_WAIT_MS, worker_task_stopped(task), &lock, err) < 0) {
        if (err->code == ERR_TIMEOUT)
            return error_wrap(err, "partial files of '%.128s' are still being written", stem);
        if (err->code != ERR_NOT_AVAILABLE)
            return -1;
        error_clear(err);
    }
    plan_path = local_partial_path(dir, EXPORT_RECORD_NAME, generation);
    if (export_record_load(plan_path, &plan, &none) == 0 &&
        strcmp(plan->export_id, export_id) == 0 &&
        export_retreat(task, plan, dir, generation, err) < 0)
        return -1;
    if (worker_task_may_write(task, err) < 0 || local_sweep(dir, stem, NULL, err) < 0)
        return -1;
    export_upload_forget(dir);
    return local_unclaim(dir, true, err);
}

int exporter_discard_output(struct worker_task *task, struct exporter *exporter, struct error *err)
{
    const char *recorded = worker_task_record_get(task, EXPORT_KEY_DIR);
    const char *export_id = worker_task_record_get(task, EXPORT_KEY_ID);
    const char *stem = worker_task_record_get(task, EXPORT_KEY_STEM);
    autofree char *dir = NULL;

    if (recorded == NULL || export_id == NULL || stem == NULL)
        return 0; /* it died before it had a directory */
    if (path_confine(&exporter->bases, recorded, &dir, err) < 0)
        return -1;
    if (!local_is_claimed_by(dir, export_id) || is_finished(dir, export_id))
        return 0;
    return discard_dir(task, dir, export_id, stem, err);
}
