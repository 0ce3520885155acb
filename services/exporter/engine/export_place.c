/* Where an export is written: its directory, claim, lock, and generation of partial files. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/parse.h"
#include "common/paths.h"
#include "services/exporter/engine/export_keys.h"
#include "services/exporter/engine/export_run.h"

char *export_plan_path(const struct export_run *run)
{
    return local_partial_path(run->dir, EXPORT_RECORD_NAME, run->generation);
}

static const char *record(const struct export_run *run, const char *key)
{
    const char *value = worker_task_record_get(run->task, key);

    return value != NULL && value[0] != '\0' ? value : NULL;
}

static int record_number(const struct export_run *run, const char *key, uint64_t *out,
                         struct error *err)
{
    const char *text = record(run, key);

    return text == NULL ? 0 : parse_u64(key, text, 0, (uint64_t)INT64_MAX, out, err);
}

static int put_number(struct export_run *run, const char *key, uint64_t value, struct error *err)
{
    char text[32];

    (void)snprintf(text, sizeof text, "%" PRIu64, value);
    return worker_task_record_put(run->task, key, text, err);
}

/* The first attempt's facts, now or from the records. */
static int recall_identity(struct export_run *run, struct error *err)
{
    uint64_t started_ms = 0;
    char id[ID_SIZE];

    if (record_number(run, EXPORT_KEY_STARTED, &started_ms, err) < 0 ||
        record_number(run, EXPORT_KEY_GENERATION, &run->generation, err) < 0)
        return -1;
    if (started_ms == 0) {
        started_ms = (uint64_t)clock_wall_ms();
        if (put_number(run, EXPORT_KEY_STARTED, started_ms, err) < 0)
            return -1;
    }
    run->started_wall_ms = (int64_t)started_ms;
    if (record(run, EXPORT_KEY_STEM) != NULL)
        run->stem = xstrdup(record(run, EXPORT_KEY_STEM));
    if (record(run, EXPORT_KEY_ID) != NULL) {
        run->export_id = xstrdup(record(run, EXPORT_KEY_ID));
        return 0;
    }
    id_new("exp", id);
    run->export_id = xstrdup(id);
    return worker_task_record_put(run->task, EXPORT_KEY_ID, id, err);
}

/* ---- generation and lock ---- */

/* What an older generation had finished by half becomes partial again: its files would stand in
 * the way of ours, and look finished. */
static int retreat_old(struct export_run *run, struct error *err)
{
    auto_export_record *plan = NULL;
    autofree char *path = export_plan_path(run);
    struct error load_error = ERROR_NONE;

    if (export_record_load(path, &plan, &load_error) < 0 ||
        strcmp(plan->export_id, run->export_id) != 0)
        return 0;
    return export_retreat(run->task, plan, run->dir, run->generation, err);
}

static int take_lock(struct export_run *run, int64_t wait_ms, struct error *err)
{
    autofree char *path = local_lock_path(run->dir, run->generation);

    return local_lock(path, wait_ms, worker_task_stopped(run->task), &run->lock_fd, err);
}

/* Partial files of their own, begun by this lease; the lock on them is new, so nobody has it. */
static int new_generation(struct export_run *run, bool locks, struct error *err)
{
    if (run->generation_is_new)
        return 0; /* nothing was written to it yet */
    if (retreat_old(run, err) < 0)
        return -1;
    if (run->lock_fd >= 0)
        (void)close(fd_steal(&run->lock_fd));
    run->generation = worker_task_epoch(run->task);
    if (put_number(run, EXPORT_KEY_GENERATION, run->generation, err) < 0)
        return -1;
    run->generation_is_new = true;
    return locks ? take_lock(run, 0, err) : 0;
}

/* The right to write this directory's partial files, or another set of them. */
static int lock_generation(struct export_run *run, struct error *err)
{
    struct error lock_error = ERROR_NONE;
    bool begun = record(run, EXPORT_KEY_BASE) != NULL;

    if (take_lock(run, LOCAL_LOCK_WAIT_MS, &lock_error) == 0)
        return 0;
    if (lock_error.code == ERR_TIMEOUT) {
        worker_task_log(run->task, LOG_LEVEL_WARN,
                        "another process still holds the partial files: starting with new ones");
        return new_generation(run, true, err);
    }
    if (lock_error.code != ERR_NOT_AVAILABLE) {
        *err = lock_error;
        return -1;
    }
    if (!begun)
        return 0;
    worker_task_log(run->task, LOG_LEVEL_WARN, "%s: starting with new partial files",
                    lock_error.message);
    return new_generation(run, false, err);
}

/* ---- directory ---- */

/* Takes dir for this export. false in *out: it is not free. */
static int try_dir(struct export_run *run, const char *dir, bool *out, struct error *err)
{
    struct error claim_error = ERROR_NONE;
    bool ours = local_is_claimed_by(dir, run->export_id);

    *out = ours;
    if (!ours && local_dir_is_free(dir, run->export_id, out, err) < 0)
        return -1;
    if (!*out)
        return 0;
    if (worker_task_record_put(run->task, EXPORT_KEY_VOLUME, run->volume, err) < 0 ||
        worker_task_record_put(run->task, EXPORT_KEY_DIR, dir, err) < 0 ||
        export_may_write(run, err) < 0)
        return -1;
    if (local_claim(dir, run->export_id, &claim_error) < 0) {
        *out = false;
        if (claim_error.code == ERR_CONFLICT)
            return 0; /* another export was quicker */
        *err = claim_error;
        return -1;
    }
    if (ours)
        return 0;
    /* What came in between the look and the claim. */
    if (local_dir_is_free(dir, run->export_id, out, err) < 0)
        return -1;
    return *out ? 0 : local_unclaim(dir, false, err);
}

/* first: as recorded, or the output_path itself, which restore points leave to their chain. */
static int settle(struct export_run *run, const char *first, struct error *err)
{
    autofree char *below = xasprintf("%s/%s", run->output, run->export_id);
    const char *const candidates[] = {first, below};

    for (size_t i = run->options.incremental ? 1 : 0; i < ARRAY_LEN(candidates); i++) {
        bool taken = false;
        if (try_dir(run, candidates[i], &taken, err) < 0)
            return -1;
        if (!taken)
            continue;
        run->dir = xstrdup(candidates[i]);
        if (i > 0 && !run->options.incremental) {
            worker_task_log(run->task, LOG_LEVEL_INFO,
                            "'%s' is not empty: this export goes to '%s'", first, run->dir);
        }
        return 0;
    }
    return error_set(err, ERR_CONFLICT, "'%.200s' is in use: choose another output_path", below);
}

static int check_volume(struct export_run *run, const char *path, struct error *err)
{
    const char *recorded = record(run, EXPORT_KEY_VOLUME);

    if (local_volume(&run->exporter->bases, path, run->volume, err) < 0)
        return -1;
    if (recorded != NULL && strcmp(recorded, run->volume) != 0) {
        return error_set(err, ERR_UNAVAILABLE,
                         "the export began on volume %.40s, '%.200s' is volume %.40s here",
                         recorded, path, run->volume);
    }
    return 0;
}

/* How far an earlier lease got in run->dir. */
static void look(struct export_run *run)
{
    autofree char *final_path = export_path(run, EXPORT_RECORD_NAME);
    autofree char *plan_path = export_plan_path(run);
    struct error none = ERROR_NONE;

    if (export_record_load(final_path, &run->plan, &none) == 0) {
        run->committed = strcmp(run->plan->export_id, run->export_id) == 0;
        if (run->committed)
            return;
        export_record_free(STEAL(run->plan));
    }
    error_clear(&none);
    if (!run->generation_is_new && export_record_load(plan_path, &run->plan, &none) == 0 &&
        strcmp(run->plan->export_id, run->export_id) != 0)
        export_record_free(STEAL(run->plan));
}

static int confine(struct export_run *run, const char *path, char **out, struct error *err)
{
    if (path_confine(&run->exporter->bases, path, out, err) < 0)
        return error_wrap(err, "output_path");
    return check_volume(run, *out, err);
}

int export_place_recall(struct export_run *run, struct error *err)
{
    autofree char *dir = NULL;

    if (confine(run, run->options.output_path, &run->output, err) < 0 ||
        recall_identity(run, err) < 0)
        return -1;
    if (record(run, EXPORT_KEY_DIR) == NULL || run->stem == NULL)
        return 0;
    if (confine(run, record(run, EXPORT_KEY_DIR), &dir, err) < 0)
        return -1;
    run->dir = xstrdup(dir);
    look(run);
    if (run->committed)
        return 0;
    free(run->dir);
    run->dir = NULL;
    export_record_free(STEAL(run->plan));
    if (settle(run, dir, err) < 0 || lock_generation(run, err) < 0)
        return -1;
    look(run); /* only now: nobody else writes there any more */
    return 0;
}

static int fit_generation(struct export_run *run, struct error *err)
{
    const char *recorded = record(run, EXPORT_KEY_BASE);
    char base[DIGEST_HEX_SIZE];
    bool locks = run->lock_fd >= 0;

    export_base_digest(run, base);
    if (recorded != NULL && strcmp(recorded, base) == 0)
        return 0;
    if (recorded != NULL) {
        worker_task_log(run->task, LOG_LEVEL_INFO,
                        "the disks were frozen anew: copying starts from the first byte");
        if (new_generation(run, locks, err) < 0)
            return -1;
        /* With the lock held before, nobody writes to the old files: their space is ours. */
        if (locks && local_sweep(run->dir, run->stem, &run->generation, err) < 0)
            return -1;
    }
    return worker_task_record_put(run->task, EXPORT_KEY_BASE, base, err);
}

int export_place_open(struct export_run *run, struct error *err)
{
    if (run->stem == NULL) {
        run->stem = vm_file_name(run->frozen->vm.name);
        if (worker_task_record_put(run->task, EXPORT_KEY_STEM, run->stem, err) < 0)
            return -1;
    }
    if (run->dir == NULL && (settle(run, run->output, err) < 0 || lock_generation(run, err) < 0))
        return -1;
    if (fit_generation(run, err) < 0)
        return -1;
    if (export_disks_plan(run, err) < 0)
        return -1;
    worker_task_log(run->task, LOG_LEVEL_INFO, "writing to '%s'", run->dir);
    return 0;
}
