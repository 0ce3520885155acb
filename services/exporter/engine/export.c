/* The task kind "export": the flow, and what is kept when it fails. See export_run.h. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/crypt_file.h"
#include "common/json.h"
#include "services/exporter/engine/control.h"
#include "services/exporter/engine/export_keys.h"
#include "services/exporter/engine/export_run.h"

#define RELEASE_TRIES       3
#define RELEASE_BACKOFF_MS  1000
#define RELEASE_BACKOFF_MAX 5000
#define WARNING_BYTES_MAX   500

/* ---- small things for all files of the task ---- */

void export_phase(struct export_run *run, const char *phase)
{
    if (run->phase_count < EXPORT_PHASES_MAX) {
        run->phases[run->phase_count].name = phase;
        run->phases[run->phase_count++].start_ms = clock_mono_ms();
    }
    worker_task_phase(run->task, phase);
}

void export_warn(struct export_run *run, const char *stage, const char *format, ...)
{
    char text[WARNING_BYTES_MAX];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    worker_task_log(run->task, LOG_LEVEL_WARN, "%s", text);
    if (run->warning_count < EXPORT_WARNINGS_MAX) {
        run->warnings[run->warning_count++] =
            (struct export_warning){stage, xstrdup(text), clock_wall_ms()};
    }
}

const char *export_size_text(uint64_t bytes, char out[EXPORT_SIZE_TEXT])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    size_t unit = 0;

    while (value >= 1024 && unit + 1 < ARRAY_LEN(units)) {
        value /= 1024;
        unit++;
    }
    (void)snprintf(out, EXPORT_SIZE_TEXT, "%.*f %s", unit == 0 ? 0 : 1, value, units[unit]);
    return out;
}

char *export_path(const struct export_run *run, const char *name)
{
    return xasprintf("%s/%s", run->dir, name);
}

int export_may_write(void *arg, struct error *err)
{
    const struct export_run *run = arg;

    return worker_task_may_write(run->task, err);
}

/* ---- giving the source back ---- */

/* Waits, but not for longer than it takes to see a stop; with tidying nothing stops it. */
static void back_off(uint32_t attempt, const atomic_bool *stopped)
{
    int64_t until_ms =
        clock_mono_ms() + clock_backoff_ms(attempt, RELEASE_BACKOFF_MS, RELEASE_BACKOFF_MAX);

    while (clock_mono_ms() < until_ms && !atomic_load(stopped))
        clock_sleep_ms(50);
}

static int release_once(struct export_run *run, const atomic_bool *stopped, struct error *err)
{
    const struct provider *provider = run->exporter->provider;
    struct exporter_settings settings = {.plain = worker_task_settings(run->task)};

    settings.sealed = worker_task_sealed(run->task, &settings.sealed_size);
    if (run->session.session == NULL &&
        exporter_session_open(run->exporter, &settings, stopped, &run->session, err) < 0)
        return -1;
    return provider->release(run->session.session, &run->records.base,
                             !run->options.prepare.delete_snapshot, err);
}

static int release_source(struct export_run *run, const atomic_bool *stopped, struct error *err)
{
    for (uint32_t attempt = 0;; attempt++) {
        if (release_once(run, stopped, err) == 0)
            return 0;
        if (!error_is_retryable(err) || attempt + 1 == RELEASE_TRIES || atomic_load(stopped))
            return -1;
        error_clear(err);
        back_off(attempt, stopped);
    }
}

static void log_released(struct export_run *run, bool snapshot)
{
    const char *text = "source released";

    if (snapshot) {
        text =
            run->options.prepare.delete_snapshot ? "snapshot removed" : "snapshot kept, as asked";
    }
    worker_task_log(run->task, LOG_LEVEL_INFO, "%s", text);
}

static bool record_is_set(const struct export_run *run, const char *key)
{
    const char *value = worker_task_record_get(run->task, key);

    return value != NULL && value[0] != '\0';
}

/* Everything is verified and planned: a source that cannot be tidied up now does not spoil the
 * export, but it is said, and done later by a release task. */
static int release_after_plan(struct export_run *run, struct error *err)
{
    struct error release_error = ERROR_NONE;
    bool starts = record_is_set(run, PROVIDER_KEY_POWER_ON);

    if (worker_task_record_get(run->task, EXPORT_KEY_RELEASED) != NULL)
        return 0; /* by an attempt whose upload failed */
    export_phase(run, "cleanup");
    if (release_source(run, worker_task_stopped(run->task), &release_error) == 0) {
        log_released(run, export_uses_snapshot(run));
        if (starts)
            worker_task_log(run->task, LOG_LEVEL_INFO, "the VM is powered on again, as asked");
        return run->upload == NULL
                   ? 0
                   : worker_task_record_put(run->task, EXPORT_KEY_RELEASED, "yes", err);
    }
    if (worker_task_check(run->task, err) < 0)
        return -1;
    worker_task_log(run->task, LOG_LEVEL_WARN,
                    "the source could not be released, it is tried again later: %s",
                    release_error.message);
    run->release_pending = true;
    return 0;
}

/* ---- the flow ---- */

/* From the source to a verified plan. */
static int read_source(struct export_run *run, struct error *err)
{
    if (export_find_vm(run, err) < 0 || worker_task_check(run->task, err) < 0 ||
        export_track(run, err) < 0 || export_shut_down(run, err) < 0 ||
        export_remove_cdroms(run, err) < 0 || export_freeze(run, err) < 0 ||
        worker_task_check(run->task, err) < 0 || export_base_fit(run, err) < 0 ||
        export_place_open(run, err) < 0 || export_copy_disks(run, err) < 0 ||
        export_check_marks(run, err) < 0 || export_package(run, err) < 0 ||
        export_verify(run, err) < 0 || worker_task_check(run->task, err) < 0)
        return -1;
    return export_plan_store(run, err);
}

/* A file that is not ours under one of our names: said before the permit, while nothing has its
 * final name yet. */
static int check_targets(struct export_run *run, struct error *err)
{
    for (size_t i = 0; i < run->plan->file_count; i++) {
        const struct export_record_file *file = &run->plan->files[i];
        autofree char *partial = export_pending_path(run->dir, file, run->generation);
        autofree char *final_path = export_path(run, file->name);
        if (access(partial, F_OK) == 0 && access(final_path, F_OK) == 0) {
            return error_set(err, ERR_CONFLICT,
                             "'%.200s' appeared meanwhile and is not replaced: move it away and "
                             "retry the job",
                             final_path);
        }
    }
    return 0;
}

static int finish(struct export_run *run, struct error *err)
{
    if (run->committed)
        return 0;
    if (check_targets(run, err) < 0 || worker_task_permit(run->task, err) < 0)
        return -1;
    return export_commit(run, err);
}

/* The upload failed, the export did not: it gets its names, and the job tells both. */
static int keep_local_export(struct export_run *run, struct error *err)
{
    struct error cause = *err;
    struct error local = ERROR_NONE;

    if (worker_task_stop_reason(run->task) != WORKER_RUNS)
        return -1;
    if (finish(run, &local) < 0 || export_tidy(run, &local) < 0) {
        worker_task_log(run->task, LOG_LEVEL_ERROR, "the local export could not be finished: %s",
                        local.message);
        return -1;
    }
    *err = cause;
    return error_wrap(err, "the export is complete in '%.200s', its upload failed", run->dir);
}

/* The export goes on without its upload when the job says so. */
static int without_upload(struct export_run *run, struct error *err)
{
    struct error cause = *err;

    if (!export_goes_on(run, run->options.upload_may_fail, err))
        return keep_local_export(run, err);
    error_clear(err);
    return export_upload_give_up(run, &cause, err) < 0 ? -1 : finish(run, err);
}

/* From a verified plan to an export that is complete, here and at the target. */
static int publish(struct export_run *run, struct error *err)
{
    if (release_after_plan(run, err) < 0)
        return -1;
    if (run->options.stream) { /* it is complete there, or nowhere */
        return export_upload_files(run, err) < 0 || worker_task_permit(run->task, err) < 0 ||
                       export_upload_record(run, err) < 0
                   ? -1
                   : 0;
    }
    if (export_upload_files(run, err) < 0)
        return without_upload(run, err);
    if (finish(run, err) < 0)
        return -1;
    return export_upload_record(run, err) < 0 ? without_upload(run, err) : 0;
}

static int make_result(struct export_run *run, json_t **out_result)
{
    const struct export_place place = {run->dir, run->volume, run->record_bytes, run->manifest};
    char size[EXPORT_SIZE_TEXT];

    export_record_result(run->plan, &place, out_result);
    if (run->release_pending)
        json_put(*out_result, "release_pending", json_true());
    if (run->uploaded)
        export_upload_result(run, *out_result);
    export_steps_result(run, *out_result);
    worker_task_log(run->task, LOG_LEVEL_INFO, "export %s is complete: %zu files, %s in '%s'",
                    run->export_id, run->plan->file_count + 1,
                    export_size_text(json_u64(*out_result, "total_size"), size),
                    json_str(json_object_get(*out_result, "export"), "path"));
    return 0;
}

static int run_export(struct export_run *run, json_t **out_result, struct error *err)
{
    if (export_spec_read(run, err) < 0 || export_place_recall(run, err) < 0 ||
        export_upload_open(run, err) < 0)
        return -1;
    run->uploaded = export_upload_is_done(run);
    if (run->plan != NULL) {
        worker_task_log(run->task, LOG_LEVEL_INFO,
                        "an earlier attempt read and verified everything: finishing it");
        if (export_base_recall(run, err) < 0)
            return -1;
    } else if (!run->uploaded && read_source(run, err) < 0) {
        return -1;
    }
    if ((!run->uploaded && publish(run, err) < 0) || export_recall(run, err) < 0)
        return -1;
    if ((run->uploaded && !run->options.keep_local ? export_remove_local(run, err)
                                                   : export_tidy(run, err)) < 0)
        return -1;
    return make_result(run, out_result);
}

/* ---- failure ---- */

/* The phase stays the one that the job fails in. */
static void tidy_source(struct export_run *run)
{
    bool snapshot = run->frozen != NULL && export_uses_snapshot(run);
    struct error err = ERROR_NONE;

    /* The session was opened with a flag that may be true by now. */
    if (run->frozen != NULL)
        run->exporter->provider->frozen_free(STEAL(run->frozen));
    exporter_session_close(&run->session);
    if (release_source(run, &run->never, &err) == 0) {
        log_released(run, snapshot);
    } else {
        worker_task_log(run->task, LOG_LEVEL_ERROR,
                        "the source could not be released, it is tried again later: %s",
                        err.message);
    }
}

/* Nothing may look finished, and what a retry cannot use goes. true: partial files stay. */
static bool tidy_files(struct export_run *run, bool worthless)
{
    struct error err = ERROR_NONE;

    if (run->dir == NULL)
        return false;
    if (export_may_write(run, &err) < 0)
        return true;
    if (run->plan != NULL &&
        export_retreat(run->task, run->plan, run->dir, run->generation, &err) < 0) {
        worker_task_log(run->task, LOG_LEVEL_ERROR, "files of the failed export remain: %s",
                        err.message);
        return true;
    }
    if (!worthless || run->plan != NULL)
        return true;
    export_upload_discard(run);
    if (export_discard(run, &err) < 0)
        worker_task_log(run->task, LOG_LEVEL_ERROR, "partial files remain: %s", err.message);
    return false;
}

/*                         source     partial files
 *   lease lost            -          -              (another worker may have both already)
 *   drain, pause          kept       kept
 *   cancelled             released   kept           (a discard is the release task's)
 *   retryable error       kept       kept
 *   any other error       released   removed        (but for a verified plan: kept) */
static void give_up(struct export_run *run, const struct error *cause, json_t **out_result)
{
    enum worker_stop stop = worker_task_stop_reason(run->task);
    bool kept = run->dir != NULL;

    if (stop == WORKER_LOST)
        return;
    if (run->committed) {
        /* only what comes after the export failed: it stays, for good */
    } else if (stop == WORKER_CANCELLED) {
        tidy_source(run);
        kept = tidy_files(run, false);
        if (kept) {
            worker_task_log(run->task, LOG_LEVEL_INFO,
                            "cancelled; partial files stay in '%s' for a retry", run->dir);
        }
    } else if (stop == WORKER_RUNS && error_is_retryable(cause)) {
        kept = tidy_files(run, false);
    } else if (stop == WORKER_RUNS) {
        tidy_source(run);
        kept = tidy_files(run, true);
    }
    *out_result = json_object();
    json_set_text(*out_result, "output_path", run->dir != NULL ? run->dir : "");
    json_put(*out_result, "kept", json_boolean(kept));
}

static void run_release(struct export_run *run)
{
    export_rate_stop(run);
    if (run->frozen != NULL)
        run->exporter->provider->frozen_free(run->frozen);
    exporter_session_close(&run->session);
    export_disks_free(run);
    export_record_free(run->plan);
    json_decref(run->manifest);
    export_upload_free(run);
    for (size_t i = 0; i < run->file_count; i++) {
        free(run->files[i].name);
        free(run->files[i].plain_name);
    }
    crypt_key_free(run->encrypt_key);
    json_decref(run->plain_manifest);
    for (size_t i = 0; i < run->warning_count; i++)
        free(run->warnings[i].message);
    if (run->lock_fd >= 0)
        (void)close(run->lock_fd);
    export_base_release(&run->base);
    free(run->vm_id);
    free(run->export_id);
    free(run->output);
    free(run->dir);
    free(run->stem);
    free(run);
}

int exporter_run_export(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    struct export_run *run = xcalloc(1, sizeof *run);
    int result;

    run->task = task;
    run->exporter = arg;
    run->lock_fd = -1;
    run->base.lock_fd = -1;
    atomic_init(&run->never, false);
    exporter_records_init(&run->records, task);
    export_rate_start(run);
    result = run_export(run, out_result, err);
    export_stream_close(STEAL(run->package)); /* before what it sent is removed */
    if (result < 0)
        give_up(run, err, out_result);
    run_release(run);
    return result;
}
