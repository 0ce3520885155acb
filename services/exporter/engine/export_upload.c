/* The way of a finished export to a target outside (s3, sftp).
 *
 * Design notes
 * - Uploaded from the partial files, after the plan is stored and before the permit: a long upload
 *   can be cancelled, drained, and gone on with by another worker. When it fails the export gets
 *   its local names all the same: the job fails, the export is there.
 * - Objects are <prefix>/<vm>/<export id>/<file>. export.json is last, after the local commit; like
 *   on the volume it is what makes the copy count.
 * - What is begun outside is recorded before its first byte, so that a release task can abort it.
 * - Once "upload.done" is recorded the target holds everything: with keep_local false the local
 *   files go then, and what is still needed of them comes back from there. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/export_keys.h"
#include "services/exporter/engine/export_run.h"
#include "services/exporter/formats/manifest.h"
#include "services/exporter/targets/upload.h"

#define STATE_NAME        ".hypersdk-upload"
#define RECORD_KEY_SIZE   32
#define RATE_WAIT_PERCENT 30

struct export_upload {
    struct upload_url url;
    struct target_settings settings;
    bool has_settings;
    struct target *target; /* NULL until it answers */
    uint64_t total;        /* bytes of all files */
    uint64_t before;       /* of the files that are through */
    uint64_t waited_ns;    /* for bandwidth, and when that was looked at */
    int64_t looked_ns;
    size_t index; /* of the file under way, in the plan; file_count: export.json */
};

struct in_flight { /* the callbacks' argument */
    struct export_run *run;
    const char *object;
};

void export_upload_free(struct export_run *run)
{
    if (run->upload == NULL)
        return;
    target_close(run->upload->target);
    if (run->upload->has_settings)
        target_settings_release(&run->upload->settings);
    free(run->upload);
    run->upload = NULL;
}

/* ---- the target ---- */

static int connect_target(struct export_upload *upload, const atomic_bool *stopped,
                          struct rate_transfer *rate, struct error *err)
{
    const struct target_options options = {
        .url = &upload->url, .settings = &upload->settings, .stopped = stopped, .rate = rate};

    return upload->target != NULL ? 0 : target_open(&options, &upload->target, err);
}

static int read_target(const struct exporter *exporter, const char *url,
                       struct export_upload *upload, struct error *err)
{
    if (upload_url_parse(url, &upload->url, err) < 0)
        return error_wrap(err, "upload");
    if (target_settings_find(exporter->uploads, &upload->url, &upload->settings, err) < 0)
        return -1;
    upload->has_settings = true;
    return 0;
}

static void sweep_stale(struct export_run *run)
{
    struct target *target = run->upload->target;
    struct error err = ERROR_NONE;
    size_t count = 0;

    if (target->base.class->sweep(target, run->upload->settings.stale_after_ms, &count, &err) < 0) {
        worker_task_log(run->task, LOG_LEVEL_WARN,
                        "old unfinished uploads could not be looked for: %s", err.message);
    } else if (count > 0) {
        worker_task_log(run->task, LOG_LEVEL_INFO, "%zu old unfinished uploads aborted", count);
    }
}

static int look_at_target(struct export_run *run, struct error *err)
{
    if (read_target(run->exporter, run->options.upload, run->upload, err) < 0)
        return -1;
    if (connect_target(run->upload, worker_task_stopped(run->task), run->rate, err) == 0) {
        sweep_stale(run);
        return 0;
    }
    if (run->options.stream || !error_is_retryable(err))
        return error_wrap(err, "upload");
    worker_task_log(run->task, LOG_LEVEL_WARN,
                    "the upload's target does not answer yet, the export begins anyway: %s",
                    err->message);
    error_clear(err);
    return 0;
}

int export_upload_open(struct export_run *run, struct error *err)
{
    struct error cause;

    if (run->options.upload[0] == '\0')
        return 0;
    export_phase(run, "uploading");
    /* The line also brings the phase to the scheduler, however soon the task fails in it. */
    worker_task_log(run->task, LOG_LEVEL_INFO, "checking the upload's target");
    run->upload = xcalloc(1, sizeof *run->upload);
    if (look_at_target(run, err) == 0)
        return 0;
    if (!export_goes_on(run, run->options.upload_may_fail, err))
        return -1;
    cause = *err;
    error_clear(err);
    return export_upload_give_up(run, &cause, err);
}

/* ---- names, records ---- */

char *export_upload_object(const struct export_run *run, const char *name)
{
    return xasprintf("%s/%s/%s", run->stem, run->export_id, name);
}

char *export_upload_state(const char *dir, size_t index)
{
    return xasprintf("%s/" STATE_NAME ".%zu", dir, index);
}

static void record_key(size_t index, char out[RECORD_KEY_SIZE])
{
    (void)snprintf(out, RECORD_KEY_SIZE, EXPORT_KEY_UPLOAD "%zu", index);
}

/* "<upload id> <object>"; ids have no blanks, objects may. */
int export_upload_note(struct export_run *run, size_t index, const char *id, const char *object,
                       struct error *err)
{
    autofree char *value = xasprintf("%s %s", id, object);
    char key[RECORD_KEY_SIZE];

    record_key(index, key);
    if (worker_task_record_put(run->task, EXPORT_KEY_UPLOAD_URL, run->options.upload, err) < 0)
        return -1;
    return worker_task_record_put(run->task, key, value, err);
}

static int note_id(void *arg, const char *id, struct error *err)
{
    const struct in_flight *flight = arg;

    return export_upload_note(flight->run, flight->run->upload->index, id, flight->object, err);
}

char *export_upload_id(const struct worker_task *task, size_t index, const char **out_object)
{
    char key[RECORD_KEY_SIZE];
    const char *value;
    const char *blank;

    record_key(index, key);
    value = worker_task_record_get(task, key);
    blank = value == NULL ? NULL : strchr(value, ' ');
    if (blank == NULL)
        return NULL;
    *out_object = blank + 1;
    return xstrndup(value, (size_t)(blank - value));
}

static int may_write(void *arg, struct error *err)
{
    const struct in_flight *flight = arg;

    return export_may_write(flight->run, err);
}

/* "rate_limit" when threads spent a good part of the time since the last look waiting for it. */
static const char *what_limits(struct export_upload *upload)
{
    uint64_t waited_ns = atomic_load(&upload->target->base.rate_wait_ns);
    int64_t now_ns = clock_mono_ns();
    uint64_t grown = waited_ns - upload->waited_ns;
    bool limited = grown * 100 > (uint64_t)(now_ns - upload->looked_ns) * RATE_WAIT_PERCENT;

    upload->waited_ns = waited_ns;
    upload->looked_ns = now_ns;
    return limited ? "rate_limit" : "target";
}

static void on_progress(void *arg, uint64_t bytes)
{
    const struct in_flight *flight = arg;
    struct export_upload *upload = flight->run->upload;
    struct worker_progress progress = {.bytes_transferred = upload->before + bytes,
                                       .bytes_done = upload->before + bytes,
                                       .bytes_total = upload->total,
                                       .limited_by = what_limits(upload)};

    export_rate_tell(flight->run);
    worker_task_progress(flight->run->task, &progress);
}

struct target *export_upload_target(const struct export_run *run)
{
    return run->upload->target;
}

/* ---- sending ---- */

static int send_file(struct export_run *run, size_t index, const char *path,
                     const struct export_record_file *file, struct error *err)
{
    autofree char *object = export_upload_object(run, file->name);
    autofree char *state = export_upload_state(run->dir, index);
    struct in_flight flight = {run, object};
    const char *recorded_object = "";
    autofree char *old_id = export_upload_id(run->task, index, &recorded_object);
    const struct upload_file upload = {
        .path = path,
        .object = {.name = object, .size = file->size},
        .sha256 = file->sha256,
        .state_path = state,
        .old_id = strcmp(recorded_object, object) == 0 ? old_id : NULL,
        .may_write = may_write,
        .note_id = note_id,
        .progress = on_progress,
        .arg = &flight,
    };

    run->upload->index = index;
    if (upload_file(run->upload->target, &upload, err) < 0)
        return -1;
    run->upload->before += file->size;
    return 0;
}

/* Lists and manifests speak of the others and come after them. */
bool export_is_streamed(const struct export_run *run, const struct export_record_file *file)
{
    return run->options.stream &&
           (strcmp(file->type, "disk") == 0 || strcmp(file->type, "ova") == 0);
}

static bool comes_late(const struct export_record_file *file)
{
    return strcmp(file->type, "mf") == 0 || strcmp(file->type, "manifest") == 0 ||
           strcmp(file->type, "checksums") == 0;
}

/* A streamed image was complete before the plan was made; somebody may have removed it since. */
static int check_streamed(struct export_run *run, const struct export_record_file *file,
                          struct error *err)
{
    autofree char *name = export_upload_object(run, file->name);
    const struct target_object object = {.name = name, .size = file->size};
    struct target *target = run->upload->target;
    bool exists = false;

    if (target->base.class->exists(target, &object, &exists, err) < 0)
        return -1;
    return exists ? 0
                  : error_set(err, ERR_NOT_FOUND,
                              "'%.200s' is gone from the target, and there is no copy here: export "
                              "again, as a new job",
                              name);
}

static int send_planned(struct export_run *run, bool late, struct error *err)
{
    for (size_t i = 0; i < run->plan->file_count; i++) {
        const struct export_record_file *file = &run->plan->files[i];
        autofree char *partial = export_pending_path(run->dir, file, run->generation);
        autofree char *final_path = export_path(run, file->name);
        if (comes_late(file) != late)
            continue;
        if (export_is_streamed(run, file)) {
            if (check_streamed(run, file, err) < 0)
                return -1;
            continue;
        }
        if (send_file(run, i, access(final_path, F_OK) == 0 ? final_path : partial, file, err) < 0)
            return -1;
    }
    return 0;
}

static void log_begin(struct export_run *run, size_t count)
{
    autofree char *object = export_upload_object(run, "");
    autofree char *url = upload_url_text(&run->upload->url, object);
    char size[EXPORT_SIZE_TEXT];

    worker_task_log(run->task, LOG_LEVEL_INFO, "uploading %zu files, %s, to '%s'", count,
                    export_size_text(run->upload->total, size), url);
}

int export_upload_files(struct export_run *run, struct error *err)
{
    size_t count = 1; /* export.json */

    if (run->upload == NULL)
        return 0;
    export_phase(run, "uploading");
    run->upload->total = 0;
    run->upload->before = 0;
    for (size_t i = 0; i < run->plan->file_count; i++) {
        if (export_is_streamed(run, &run->plan->files[i]))
            continue;
        run->upload->total += run->plan->files[i].size;
        count++;
    }
    log_begin(run, count);
    if (connect_target(run->upload, worker_task_stopped(run->task), run->rate, err) < 0 ||
        send_planned(run, false, err) < 0)
        return -1;
    return send_planned(run, true, err);
}

int export_upload_record(struct export_run *run, struct error *err)
{
    autofree char *path =
        run->options.stream ? export_plan_path(run) : export_path(run, EXPORT_RECORD_NAME);
    char sha256[DIGEST_HEX_SIZE];
    struct export_record_file file = {.name = EXPORT_RECORD_NAME, .sha256 = sha256};
    struct stat st;

    if (run->upload == NULL)
        return 0;
    if (stat(path, &st) < 0)
        return error_set_errno(err, errno, "'%.200s'", path);
    file.size = (uint64_t)st.st_size;
    if (file_sha256(path, sha256, err) < 0 ||
        send_file(run, run->plan->file_count, path, &file, err) < 0 ||
        worker_task_record_put(run->task, EXPORT_KEY_UPLOAD_DONE, run->options.upload, err) < 0)
        return -1;
    run->uploaded = true;
    worker_task_log(run->task, LOG_LEVEL_INFO, "upload complete and verified");
    return export_step_done(run, EXPORT_STEP_UPLOAD, err);
}

/* ---- afterwards ---- */

void export_upload_forget(const char *dir)
{
    for (size_t i = 0; i < EXPORT_UPLOADS_MAX; i++) {
        autofree char *path = export_upload_state(dir, i);
        (void)unlink(path);
    }
}

bool export_upload_is_done(const struct export_run *run)
{
    const char *done = worker_task_record_get(run->task, EXPORT_KEY_UPLOAD_DONE);

    return run->upload != NULL && done != NULL && strcmp(done, run->options.upload) == 0;
}

/* A file of the export as text: under its final name, as partial, or from the target. */
static int recall_text(struct export_run *run, const char *name, char **out, size_t *out_size,
                       struct error *err)
{
    autofree char *final_path = export_path(run, name);
    autofree char *partial = local_partial_path(run->dir, name, run->generation);
    autofree char *object = export_upload_object(run, name);
    struct error none = ERROR_NONE;

    if (file_read(final_path, EXPORT_RECORD_BYTES_MAX, out, out_size, &none) == 0)
        return 0;
    error_clear(&none);
    if (file_read(partial, EXPORT_RECORD_BYTES_MAX, out, out_size, &none) == 0)
        return 0;
    if (run->upload == NULL)
        return error_set(err, ERR_NOT_FOUND, "'%.200s' does not exist", final_path);
    if (connect_target(run->upload, worker_task_stopped(run->task), run->rate, err) < 0)
        return -1;
    return upload_fetch(run->upload->target, object, EXPORT_RECORD_BYTES_MAX, out, out_size, err);
}

int export_recall(struct export_run *run, struct error *err)
{
    autofree char *record = NULL;
    autofree char *manifest = NULL;
    size_t record_size = 0;
    size_t manifest_size = 0;

    if (recall_text(run, EXPORT_RECORD_NAME, &record, &record_size, err) < 0)
        return error_wrap(err, "finished export");
    if (run->plan == NULL && export_record_parse(record, record_size, &run->plan, err) < 0)
        return -1;
    run->record_bytes = record_size;
    if (json_object_get(run->plan->document, "encryption") != NULL) {
        run->manifest = json_deep_copy(json_object_get(run->plan->document, "manifest"));
        return 0;
    }
    if (recall_text(run, MANIFEST_JSON_NAME, &manifest, &manifest_size, err) < 0)
        return error_wrap(err, "finished export");
    return json_parse(manifest, manifest_size, EXPORT_RECORD_BYTES_MAX, &run->manifest, err);
}

static int remove_one(const char *path, struct error *err)
{
    return unlink(path) == 0 || errno == ENOENT
               ? 0
               : error_set_errno(err, errno, "'%.200s' cannot be removed", path);
}

/* export.json goes first: what is left looks unfinished at any moment. */
int export_remove_local(struct export_run *run, struct error *err)
{
    autofree char *record = export_path(run, EXPORT_RECORD_NAME);

    if (export_may_write(run, err) < 0 || remove_one(record, err) < 0)
        return -1;
    if (local_sync_dir(run->dir, err) < 0)
        return -1;
    for (size_t i = 0; i < run->plan->file_count; i++) {
        autofree char *path = export_path(run, run->plan->files[i].name);
        if (remove_one(path, err) < 0)
            return -1;
    }
    export_upload_forget(run->dir);
    if (local_sweep(run->dir, run->stem, NULL, err) < 0)
        return -1;
    worker_task_log(run->task, LOG_LEVEL_INFO, "local files removed: the target has them");
    return local_unclaim(run->dir, true, err);
}

/* The result's keys: docs/tasks.md. */
void export_upload_result(const struct export_run *run, json_t *result)
{
    autofree char *top_object = xasprintf("%s/%s", run->stem, run->export_id);
    autofree char *top = upload_url_text(&run->upload->url, top_object);
    json_t *export = json_object_get(result, "export");
    json_t *urls = json_array();

    for (size_t i = 0; i <= run->plan->file_count; i++) {
        const char *name =
            i < run->plan->file_count ? run->plan->files[i].name : EXPORT_RECORD_NAME;
        autofree char *url = xasprintf("%s/%s", top, name);
        if (json_array_append_new(urls, json_string(url)) < 0)
            abort(); /* names were checked to be UTF-8 when the plan was read */
    }
    json_set_text(result, "uploaded_to", top);
    json_put(result, "uploaded", urls);
    json_put(result, "local_kept", json_boolean(run->options.keep_local));
    if (run->options.keep_local)
        return;
    json_set_text(export, "path", top);
    json_set_text(export, "volume", "");
    (void)json_object_del(result, "manifest_path");
    (void)json_object_del(result, "ovf_path");
    json_put(result, "exported_files", json_array());
}

/* ---- of a dead task ---- */

static int abort_recorded(struct worker_task *task, struct export_upload *upload, size_t index,
                          struct error *err)
{
    const char *object = "";
    autofree char *id = export_upload_id(task, index, &object);
    const struct target_object what = {.name = object};
    const struct target_class *class;

    if (id == NULL)
        return 0;
    class = upload->target->base.class;
    if (class->abort(upload->target, &what, id, err) < 0)
        return -1;
    /* Images that were sent while they were written are there before the export is complete. */
    return index < EXPORT_UPLOAD_STREAMS ? 0 : class->remove(upload->target, object, err);
}

static int abort_all(struct worker_task *task, struct export_upload *upload, struct error *err)
{
    for (size_t i = 0; i < EXPORT_UPLOADS_MAX; i++) {
        if (abort_recorded(task, upload, i, err) < 0)
            return -1;
    }
    return 0;
}

/* Whether this works changes nothing about the failure. */
void export_upload_discard(struct export_run *run)
{
    struct error err = ERROR_NONE;

    if (!run->options.stream || run->upload == NULL || run->upload->target == NULL)
        return;
    if (abort_all(run->task, run->upload, &err) < 0) {
        worker_task_log(run->task, LOG_LEVEL_WARN, "unfinished uploads remain at the target: %s",
                        err.message);
    }
    if (run->dir != NULL)
        export_upload_forget(run->dir);
}

/* Objects that are complete already. export.json goes first: with it the copy would count. */
static int remove_sent(struct export_run *run, struct error *err)
{
    struct target *target = run->upload->target;
    autofree char *record = export_upload_object(run, EXPORT_RECORD_NAME);

    if (run->plan == NULL)
        return 0;
    if (target->base.class->remove(target, record, err) < 0)
        return -1;
    for (size_t i = 0; i < run->plan->file_count; i++) {
        autofree char *object = export_upload_object(run, run->plan->files[i].name);
        if (target->base.class->remove(target, object, err) < 0)
            return -1;
    }
    return 0;
}

static int take_back(struct export_run *run, struct error *err)
{
    if (worker_task_record_get(run->task, EXPORT_KEY_UPLOAD_URL) == NULL)
        return 0; /* nothing was begun */
    if (connect_target(run->upload, worker_task_stopped(run->task), run->rate, err) < 0 ||
        abort_all(run->task, run->upload, err) < 0)
        return -1;
    return remove_sent(run, err);
}

int export_upload_give_up(struct export_run *run, const struct error *cause, struct error *err)
{
    struct error left = ERROR_NONE;

    worker_task_log(run->task, LOG_LEVEL_WARN,
                    "the upload failed, the export goes on without it, as asked: %s",
                    cause->message);
    if (take_back(run, &left) < 0) {
        worker_task_log(run->task, LOG_LEVEL_WARN,
                        "parts of the upload may remain at the target: %s", left.message);
    }
    if (run->dir != NULL)
        export_upload_forget(run->dir);
    export_upload_free(run);
    if (worker_task_check(run->task, err) < 0) /* it may go on elsewhere, and upload there */
        return -1;
    return export_step_failed(run, EXPORT_STEP_UPLOAD, cause, err);
}

/* A target that cannot be used any more (account gone) must not keep the release from ending. */
static int give_up_abort(struct worker_task *task, struct error *err)
{
    if (error_is_retryable(err) || err->code == ERR_CANCELLED)
        return -1;
    worker_task_log(task, LOG_LEVEL_WARN, "unfinished uploads remain at the target: %s",
                    err->message);
    error_clear(err);
    return 0;
}

int exporter_abort_uploads(struct worker_task *task, struct exporter *exporter, struct error *err)
{
    const char *url = worker_task_record_get(task, EXPORT_KEY_UPLOAD_URL);
    struct export_upload upload = {0};
    int rc = 0;

    if (url == NULL || worker_task_record_get(task, EXPORT_KEY_UPLOAD_DONE) != NULL)
        return 0;
    if (read_target(exporter, url, &upload, err) < 0 ||
        connect_target(&upload, worker_task_stopped(task), NULL, err) < 0)
        rc = -1;
    if (rc == 0)
        rc = abort_all(task, &upload, err);
    target_close(upload.target);
    if (upload.has_settings)
        target_settings_release(&upload.settings);
    return rc < 0 ? give_up_abort(task, err) : 0;
}
