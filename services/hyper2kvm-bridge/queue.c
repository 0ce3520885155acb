/* The daemon's queue: one superset document per conversion, moved into the watch directory under a
 * name that is never used again, then followed through the daemon's directories
 * (hyper2kvm-contract.md 6.4, 6.5). The daemon handles the boot disk; data disks are copied. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/paths.h"
#include "child.h"
#include "services/exporter/targets/local.h"
#include "stage.h"

#define STOP_POLL_MS         500   /* a cancel is seen this soon, whatever poll_interval says */
#define DETAIL_MS_MAX        15000 /* the daemon writes why it failed after it moves the file */
#define GONE_LOOKS_MAX       3     /* a move between two file systems takes a moment */
#define ERROR_FILE_BYTES_MAX ((size_t)(256 * KIB))
#define NAME_BYTES_MAX       255
#define SUBMISSION_NAME      "submission"         /* in the work area: which file is ours */
#define RESTART_NAME         ".hypersdk-restarts" /* in the watch directory: a byte per restart */
#define RESTART_TIMEOUT_MS   120000 /* its stop hangs and is killed after systemd's 30 to 90 s */
#define RESTART_OUTPUT_BYTES 2000
#define RESTARTS_MAX         2 /* of one conversion; the daemon may hang again on the way to it */

enum place { PLACE_NOWHERE, PLACE_QUEUED, PLACE_RUNNING, PLACE_DONE, PLACE_FAILED };

struct queued {
    struct conversion *c;
    struct stage stage;
    char *stem;       /* <job>-<attempt>-<epoch>[-r<restart>]: the daemon's job id */
    char *name;       /* with .json */
    char *drop;       /* path in the drop directory */
    char *processing; /* path while the daemon works */
    char *ended;      /* path in processed/ or failed/ */
    char *images[CONVERT_DISKS_MAX];
    unsigned int gone_looks;
    unsigned int restarts;
    uint64_t life; /* sign of life of the daemon; changes while it lives */
    int64_t life_ms;
    off_t restarts_seen; /* of the daemon, by anyone, up to that sign of life */
};

static void forget_submission(struct queued *q)
{
    free(q->stem);
    free(q->name);
    free(q->drop);
    free(q->processing);
    q->stem = q->name = q->drop = q->processing = NULL;
}

static void queued_release(struct queued *q)
{
    for (size_t i = 0; i < q->stage.count; i++)
        free(q->images[i]);
    stage_close(&q->stage);
    forget_submission(q);
    free(q->ended);
}

static bool exists(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0;
}

static const char *watch_dir(const struct queued *q)
{
    return q->c->bridge->hyper2kvm.watch_dir;
}

/* base/<any date>/name; NULL if there is none. Caller frees. */
static char *find_dated(const char *base, const char *name)
{
    DIR *d = opendir(base);
    const struct dirent *entry;
    char *found = NULL;

    while (d != NULL && found == NULL && (entry = readdir(d)) != NULL) {
        autofree char *path = xasprintf("%s/%s/%s", base, entry->d_name, name);
        if (entry->d_name[0] != '.' && exists(path))
            found = STEAL(path);
    }
    if (d != NULL)
        (void)closedir(d);
    return found;
}

/* ---- into the queue ---- */

static void name_submission(struct queued *q, const char *stem)
{
    autofree char *inner = xasprintf("%s/to_be_processed", watch_dir(q));

    q->stem = xstrdup(stem);
    q->name = xasprintf("%s.json", stem);
    q->drop = xasprintf("%s/%s", exists(inner) ? inner : watch_dir(q), q->name);
    q->processing = xasprintf("%s/processing/%s", watch_dir(q), q->name);
}

static int submit(struct queued *q, struct error *err)
{
    autofree char *job = vm_file_name(q->c->job_id);
    autofree char *again = q->restarts == 0 ? xstrdup("") : xasprintf("-r%u", q->restarts);
    autofree char *stem =
        xasprintf("%s-%" PRIu32 "-%" PRIu64 "%s", job, worker_task_attempt(q->c->task),
                  worker_task_epoch(q->c->task), again);
    autofree char *note = xasprintf("%s/" SUBMISSION_NAME, q->stage.dir);
    autofree char *partial = NULL;
    auto_json *json = NULL;
    autofree char *text = NULL;

    name_submission(q, stem);
    if (stage_fill(q->c, &q->stage, err) < 0)
        return -1;
    json = stage_document(q->c, &q->stage);
    text = json_text(json);
    /* The suffix .tmp is not taken by any daemon mode; the rename shows the file complete. */
    partial = xasprintf("%s.tmp", q->drop);
    if (worker_task_may_write(q->c->task, err) < 0 ||
        file_write_atomic(note, stem, strlen(stem), 0640, err) < 0 ||
        file_write_atomic(partial, text, strlen(text), 0640, err) < 0)
        return -1;
    if (rename(partial, q->drop) < 0) {
        (void)error_set_errno(err, errno, "rename '%.200s' to '%.200s'", partial, q->drop);
        (void)unlink(partial);
        return -1;
    }
    worker_task_log(q->c->task, LOG_LEVEL_INFO, "queued for hyper2kvm%s%s as '%s'",
                    q->c->instance[0] != '\0' ? "@" : "", q->c->instance, q->drop);
    return dir_sync_parent(q->drop, err);
}

/* ---- where is it? ---- */

/* In the order in which the daemon moves it on, so that a move meanwhile is not missed. */
static enum place locate(struct queued *q)
{
    autofree char *processed = xasprintf("%s/processed", watch_dir(q));
    autofree char *failed = xasprintf("%s/failed", watch_dir(q));

    free(q->ended);
    q->ended = NULL;
    if (exists(q->drop))
        return PLACE_QUEUED;
    if (exists(q->processing))
        return PLACE_RUNNING;
    q->ended = find_dated(processed, q->name);
    if (q->ended != NULL)
        return PLACE_DONE;
    q->ended = find_dated(failed, q->name);
    return q->ended != NULL ? PLACE_FAILED : PLACE_NOWHERE;
}

static uint64_t output_used(const struct queued *q, const char *stem)
{
    autofree char *dir = find_dated(q->c->bridge->hyper2kvm.output_dir, stem);

    return dir == NULL ? 0 : stage_used(dir);
}

/* What the daemon works on before us, and how much it has written for that. */
static uint64_t life_of_others(const struct queued *q)
{
    autofree char *path = xasprintf("%s/processing", watch_dir(q));
    DIR *d = opendir(path);
    const struct dirent *entry;
    uint64_t sum = 0;

    while (d != NULL && (entry = readdir(d)) != NULL) {
        const char *dot = strrchr(entry->d_name, '.');
        autofree char *stem = NULL;
        if (entry->d_name[0] == '.' || dot == NULL)
            continue;
        stem = xstrndup(entry->d_name, (size_t)(dot - entry->d_name));
        sum = sum * 31 + entry->d_ino + output_used(q, stem);
    }
    if (d != NULL)
        (void)closedir(d);
    return sum;
}

static off_t restarts_of(const struct queued *q)
{
    autofree char *path = xasprintf("%s/" RESTART_NAME, watch_dir(q));
    struct stat st;

    return stat(path, &st) == 0 ? st.st_size : 0;
}

static bool is_stuck(struct queued *q, enum place place)
{
    uint64_t life = place == PLACE_RUNNING ? 1 + stage_used(q->stage.dir) + output_used(q, q->stem)
                                           : life_of_others(q);
    int64_t now = clock_mono_ms();

    if (life != q->life || q->life_ms == 0) {
        q->life = life;
        q->life_ms = now;
        q->restarts_seen = restarts_of(q);
    }
    return now - q->life_ms > q->c->bridge->hyper2kvm.stuck_after_ms;
}

/* ---- following it ---- */

/* Only while it is still in the drop directory can it be taken back. */
static void take_back(const struct queued *q)
{
    struct error lost = ERROR_NONE;

    if (worker_task_may_write(q->c->task, &lost) < 0)
        return;
    if (unlink(q->drop) < 0 && exists(q->processing)) {
        worker_task_log(q->c->task, LOG_LEVEL_WARN,
                        "the hyper2kvm daemon works on '%s' and cannot be stopped", q->name);
    }
}

/* A drain, a pause or a lost lease leaves everything to the next lease of the job. */
static int check_stop(struct queued *q, struct error *err)
{
    if (worker_task_check(q->c->task, err) == 0)
        return 0;
    if (worker_task_stop_reason(q->c->task) == WORKER_CANCELLED) {
        take_back(q);
    } else {
        q->stage.keep = true;
    }
    return -1;
}

static int wait_a_while(struct queued *q, struct error *err)
{
    int64_t until = clock_mono_ms() + q->c->bridge->hyper2kvm.poll_interval_ms;

    for (int64_t left; (left = until - clock_mono_ms()) > 0;) {
        if (check_stop(q, err) < 0)
            return -1;
        clock_sleep_ms(left < STOP_POLL_MS ? left : STOP_POLL_MS);
    }
    return check_stop(q, err);
}

/* ---- a daemon that hangs ---- */

static int call_restart(const struct queued *q, struct error *err)
{
    const struct config_list *command = &q->c->bridge->hyper2kvm.restart_command;
    const char *argv[HYPER2KVM_RESTART_WORDS_MAX + 1] = {0};
    const struct child_options options = {
        .argv = argv, .stopped = worker_task_stopped(q->c->task), .timeout_ms = RESTART_TIMEOUT_MS};
    autofree char *output = NULL;
    int status = 0;

    for (size_t i = 0; i < command->count; i++)
        argv[i] = command->items[i];
    worker_task_log(q->c->task, LOG_LEVEL_WARN, "the hyper2kvm daemon hangs: calling %s", argv[0]);
    if (child_output(&options, RESTART_OUTPUT_BYTES, &output, &status, err) < 0)
        return -1;
    if (status != 0)
        return error_set(err, ERR_INTERNAL, "'%s' ended with %d: %.300s", argv[0], status, output);
    return 0;
}

/* After its first minute a real one blocks for ever at the end of a job
 * (hyper2kvm-contract.md 6.6): whoever finds it so restarts it, once for all conversions that wait
 * for it. */
static int restart(const struct queued *q, struct error *err)
{
    autofree char *record = xasprintf("%s/" RESTART_NAME, watch_dir(q));
    autoclose int fd = -1;

    if (local_lock(record, RESTART_TIMEOUT_MS, worker_task_stopped(q->c->task), &fd, err) < 0)
        return -1;
    if (restarts_of(q) > q->restarts_seen)
        return 0; /* by another conversion, meanwhile */
    if (call_restart(q, err) < 0)
        return -1;
    if (lseek(fd, 0, SEEK_END) < 0 || write(fd, "\n", 1) != 1)
        return error_set_errno(err, errno, "'%.256s'", record);
    return 0;
}

/* What it had begun it never takes up again: that goes to it under a new name, from the export. */
static int submit_again(struct queued *q, struct error *err)
{
    autofree char *remains = find_dated(q->c->bridge->hyper2kvm.output_dir, q->stem);

    if (worker_task_may_write(q->c->task, err) < 0)
        return -1;
    (void)unlink(q->processing);
    if (remains != NULL)
        stage_remove(remains);
    forget_submission(q);
    return submit(q, err);
}

/* 0: go on following. What waited in the drop directory the new daemon takes by itself. */
static int cure(struct queued *q, enum place place, bool *out_next, struct error *err)
{
    long long seconds = (long long)(q->c->bridge->hyper2kvm.stuck_after_ms / 1000);
    struct error why = ERROR_NONE;

    if (q->c->bridge->hyper2kvm.restart_command.count > 0 && q->restarts < RESTARTS_MAX) {
        q->restarts++;
        if (restart(q, &why) == 0) {
            q->life_ms = 0;
            return place == PLACE_RUNNING ? submit_again(q, err) : 0;
        }
        convert_remark(q->c->warnings, "hyper2kvm.restart_command: %s", why.message);
    }
    take_back(q);
    *out_next = true;
    return error_set(err, ERR_TIMEOUT,
                     "the hyper2kvm daemon has shown no sign of life for %lld s; restart it",
                     seconds);
}

static void report_progress(const struct queued *q)
{
    uint64_t total = json_u64(convert_disk(q->c, 0), "bytes");
    struct worker_progress progress = {.limited_by = "", .bytes_total = total};

    progress.bytes_done = min_u64(output_used(q, q->stem), total);
    worker_task_progress(q->c->task, &progress);
}

/* NULL while it is not there, or is being written. */
static json_t *read_details(const char *path)
{
    autofree char *text = NULL;
    json_t *json = NULL;
    struct error why = ERROR_NONE;
    size_t size = 0;

    if (file_read(path, ERROR_FILE_BYTES_MAX, &text, &size, &why) < 0 ||
        json_parse(text, size, ERROR_FILE_BYTES_MAX, &json, &why) < 0)
        return NULL;
    return json;
}

static int failed(struct queued *q, struct error *err)
{
    autofree char *facts = xasprintf("%s.error.json", q->ended);
    int64_t until = clock_mono_ms() + DETAIL_MS_MAX;
    auto_json *json = read_details(facts);

    while (json == NULL && clock_mono_ms() < until) {
        if (wait_a_while(q, err) < 0)
            return -1;
        json = read_details(facts);
    }
    if (json == NULL) {
        return error_set(err, ERR_INTERNAL, "hyper2kvm failed; no details beside '%.200s'",
                         q->ended);
    }
    return error_set(err, ERR_INTERNAL, "hyper2kvm failed: %.300s", json_str(json, "error"));
}

/* One look. 1: done. 0: not yet. */
static int look(struct queued *q, enum place *last, bool *out_next, struct error *err)
{
    enum place place = locate(q);

    if (place == PLACE_DONE)
        return 1;
    if (place == PLACE_FAILED)
        return failed(q, err);
    if (place != *last && place == PLACE_RUNNING)
        worker_task_log(q->c->task, LOG_LEVEL_INFO, "hyper2kvm works on '%s'", q->name);
    *last = place;
    q->gone_looks = place == PLACE_NOWHERE ? q->gone_looks + 1 : 0;
    if (q->gone_looks >= GONE_LOOKS_MAX) {
        *out_next = true;
        return error_set(err, ERR_UNAVAILABLE, "'%.200s' is gone from hyper2kvm.watch_dir '%.200s'",
                         q->name, watch_dir(q));
    }
    if (is_stuck(q, place))
        return cure(q, place, out_next, err);
    report_progress(q);
    return 0;
}

static int follow(struct queued *q, bool *out_next, struct error *err)
{
    int64_t until = clock_mono_ms() + q->c->timeout_ms;
    enum place last = PLACE_NOWHERE;
    int state;

    while ((state = look(q, &last, out_next, err)) == 0) {
        if (clock_mono_ms() > until) {
            take_back(q);
            return error_set(err, ERR_TIMEOUT, "the hyper2kvm daemon did not finish '%s' in %lld s",
                             q->name, (long long)(q->c->timeout_ms / 1000));
        }
        if (wait_a_while(q, err) < 0)
            return -1;
    }
    return state < 0 ? -1 : 0;
}

/* ---- what it left ---- */

/* A file dir/<any>.<format>; NULL if there is none. Caller frees. */
static char *find_image(const char *dir, const char *format)
{
    autofree char *suffix = xasprintf(".%s", format);
    DIR *d = opendir(dir);
    const struct dirent *entry;
    char *found = NULL;

    while (d != NULL && found == NULL && (entry = readdir(d)) != NULL) {
        if (entry->d_name[0] != '.' && path_has_suffix(entry->d_name, suffix))
            found = xasprintf("%s/%s", dir, entry->d_name);
    }
    if (d != NULL)
        (void)closedir(d);
    return found;
}

/* The daemon writes below <output_dir>/<date>/<stem>/, a manifest reader into the work area; what
 * an earlier lease had gathered already lies in its final directory. */
static int boot_image(struct queued *q, const char *output, struct error *err)
{
    struct conversion *c = q->c;
    autofree char *gathered = publish_image(c, q->stage.final, 0);
    autofree char *own = stage_image(c, &q->stage, 0);

    if (exists(gathered)) {
        q->images[0] = STEAL(gathered);
    } else if (exists(own)) {
        q->images[0] = STEAL(own);
    } else if (output != NULL) {
        q->images[0] = find_image(output, c->format);
    }
    if (q->images[0] != NULL)
        return 0;
    return error_set(err, ERR_INTERNAL,
                     "hyper2kvm says it is done but left no .%s below '%.200s/*/%.100s' (its "
                     "configuration needs to_output)",
                     c->format, c->bridge->hyper2kvm.output_dir, q->stem);
}

static int collect(struct queued *q, const char *output, struct error *err)
{
    if (boot_image(q, output, err) < 0)
        return -1;
    for (size_t i = 1; i < q->stage.count; i++) {
        autofree char *gathered = publish_image(q->c, q->stage.final, i);
        q->images[i] = exists(gathered) ? STEAL(gathered) : stage_image(q->c, &q->stage, i);
        if (!exists(q->images[i]) && stage_copy_disk(q->c, &q->stage, i, err) < 0)
            return -1;
    }
    return 0;
}

static int finish(struct queued *q, struct error *err)
{
    struct conversion *c = q->c;
    autofree char *output = find_dated(c->bridge->hyper2kvm.output_dir, q->stem);
    autofree char *report = xasprintf("%s.report.json", q->ended);

    if (collect(q, output, err) < 0)
        return -1;
    /* The daemon fixes every guest that it converts; it cannot be told otherwise. */
    if (!convert_stage(c, "fix"))
        convert_remark(c->warnings, "the hyper2kvm daemon fixes guests although stage fix is off");
    if (publish_images(c, &q->stage, q->images, true, report, err) < 0)
        return -1;
    if (output != NULL)
        stage_remove(output); /* its report and work files */
    return 0;
}

/* ---- the path ---- */

/* The lease before this one has submitted already, and the daemon still knows. */
static bool adopt(struct queued *q)
{
    autofree char *note = xasprintf("%s/" SUBMISSION_NAME, q->stage.dir);
    autofree char *stem = NULL;
    struct error none = ERROR_NONE;
    size_t size = 0;

    if (!q->stage.found || file_read(note, NAME_BYTES_MAX, &stem, &size, &none) < 0 || size == 0 ||
        strchr(stem, '/') != NULL)
        return false;
    name_submission(q, stem);
    if (locate(q) != PLACE_NOWHERE) {
        worker_task_log(q->c->task, LOG_LEVEL_INFO, "going on with '%s', queued before", q->name);
        return true;
    }
    forget_submission(q);
    return false;
}

int queue_convert(struct conversion *c, bool *out_next, struct error *err)
{
    CLEANUP(queued_release) struct queued q = {.c = c, .stage = {.lock = -1}};

    if (!exists(c->bridge->hyper2kvm.watch_dir)) {
        *out_next = true;
        return error_set(err, ERR_NOT_FOUND, "hyper2kvm.watch_dir '%.200s' does not exist",
                         c->bridge->hyper2kvm.watch_dir);
    }
    c->path_used = "queue";
    if (stage_open(c, &q.stage, err) < 0)
        return -1;
    if (!adopt(&q) && submit(&q, err) < 0)
        return -1;
    if (follow(&q, out_next, err) < 0)
        return -1;
    return finish(&q, err);
}
