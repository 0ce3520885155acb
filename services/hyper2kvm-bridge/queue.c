/* The daemon's queue: one superset document per conversion, moved into the watch directory under a
 * name that is never used again, then followed through the daemon's directories
 * (hyper2kvm-contract.md 6.4, 6.5). The daemon handles the boot disk; data disks are copied. */
#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/paths.h"
#include "stage.h"

#define STOP_POLL_MS         1000 /* a cancel is seen this soon, whatever poll_interval says */
#define ERROR_FILE_BYTES_MAX ((size_t)(256 * KIB))

struct queued {
    struct conversion *c;
    char *name;       /* <job>-<attempt>-<epoch>.json */
    char *stem;       /* without the suffix: the daemon's job id */
    char *drop;       /* path in the drop directory */
    char *processing; /* path while the daemon works */
    struct stage stage;
    char *images[CONVERT_DISKS_MAX];
};

static void queued_release(struct queued *q)
{
    for (size_t i = 0; i < q->stage.count; i++)
        free(q->images[i]);
    stage_close(&q->stage);
    free(q->name);
    free(q->stem);
    free(q->drop);
    free(q->processing);
}

static bool exists(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0;
}

/* First match of <watch_dir>/<where>/<any date>/<name><suffix>; NULL if none. Caller frees. */
static char *find(const char *base, const char *where, const char *name)
{
    autofree char *pattern = xasprintf("%s/%s*/%s", base, where, name);
    char *found = NULL;
    glob_t matches;

    if (glob(pattern, 0, NULL, &matches) == 0) {
        found = xstrdup(matches.gl_pathv[0]);
        globfree(&matches);
    }
    return found;
}

static int submit(struct queued *q, struct error *err)
{
    const char *watch = q->c->bridge->hyper2kvm.watch_dir;
    autofree char *inner = xasprintf("%s/to_be_processed", watch);
    const char *dir = exists(inner) ? inner : watch;
    auto_json *json = NULL;
    autofree char *text = NULL;
    autofree char *partial = NULL;

    if (!exists(watch))
        return error_set(err, ERR_NOT_FOUND, "hyper2kvm.watch_dir '%s' does not exist", watch);
    q->stem = xasprintf("%s-%" PRIu32 "-%" PRIu64, q->c->job_id, worker_task_attempt(q->c->task),
                        worker_task_epoch(q->c->task));
    q->name = xasprintf("%s.json", q->stem);
    q->drop = xasprintf("%s/%s", dir, q->name);
    q->processing = xasprintf("%s/processing/%s", watch, q->name);
    if (stage_open(q->c, &q->stage, err) < 0)
        return -1;
    json = stage_document(q->c, &q->stage);
    text = json_text(json);
    /* The suffix .tmp is not taken by any daemon mode; the rename shows the file complete. */
    partial = xasprintf("%s.tmp", q->drop);
    if (file_write_atomic(partial, text, strlen(text), 0640, err) < 0)
        return -1;
    if (rename(partial, q->drop) < 0)
        return error_set_errno(err, errno, "rename '%s' to '%s'", partial, q->drop);
    worker_task_log(q->c->task, LOG_LEVEL_INFO, "queued for hyper2kvm%s%s as '%s'",
                    q->c->instance[0] != '\0' ? "@" : "", q->c->instance, q->drop);
    return dir_sync_parent(q->drop, err);
}

/* Only while it is still in the drop directory can it be taken back. */
static bool take_back(const struct queued *q)
{
    return unlink(q->drop) == 0;
}

static int failed(const char *path, struct error *err)
{
    autofree char *facts =
        xasprintf("%.*s.error.json", (int)(strlen(path) - strlen(".json")), path);
    autofree char *other = xasprintf("%s.error.json", path);
    autofree char *text = NULL;
    auto_json *json = NULL;
    struct error why = ERROR_NONE;
    size_t size = 0;

    if (file_read(exists(facts) ? facts : other, ERROR_FILE_BYTES_MAX, &text, &size, &why) < 0 ||
        json_parse(text, size, ERROR_FILE_BYTES_MAX, &json, &why) < 0)
        return error_set(err, ERR_INTERNAL, "hyper2kvm failed; no details beside '%s'", path);
    return error_set(err, ERR_INTERNAL, "hyper2kvm failed: %.300s", json_str(json, "error"));
}

/* 1: finished well, 0: not yet, -1: failed. */
static int look(const struct queued *q, struct error *err)
{
    const char *watch = q->c->bridge->hyper2kvm.watch_dir;
    autofree char *good = find(watch, "processed/", q->name);
    autofree char *bad = find(watch, "failed/", q->name);

    if (bad != NULL)
        return failed(bad, err);
    return good != NULL ? 1 : 0;
}

static int follow(struct queued *q, struct error *err)
{
    int64_t until = clock_mono_ms() + q->c->timeout_ms;
    uint64_t poll_ms = (uint64_t)q->c->bridge->hyper2kvm.poll_interval_ms;
    bool running = false;
    int state = 0;

    while (state == 0) {
        if (worker_task_check(q->c->task, err) < 0) {
            if (!take_back(q))
                worker_task_log(q->c->task, LOG_LEVEL_WARN,
                                "the hyper2kvm daemon works on '%s' and cannot be stopped",
                                q->name);
            return -1;
        }
        if (clock_mono_ms() > until)
            return error_set(err, take_back(q) ? ERR_NOT_FOUND : ERR_TIMEOUT,
                             "the hyper2kvm daemon did not finish '%s' in time; is it stuck?",
                             q->name);
        if (!running && exists(q->processing)) {
            running = true;
            worker_task_log(q->c->task, LOG_LEVEL_INFO, "hyper2kvm works on '%s'", q->name);
        }
        state = look(q, err);
        if (state == 0)
            clock_sleep_ms((int64_t)min_u64(poll_ms, STOP_POLL_MS));
    }
    return state < 0 ? -1 : 0;
}

/* The daemon writes below <output_dir>/<date>/<stem>/, a manifest reader into the work area. */
static int collect(struct queued *q, struct error *err)
{
    struct conversion *c = q->c;
    autofree char *any = xasprintf("%s/*.%s", q->stem, c->format);
    const char *id = json_str(convert_disk(c, 0), "id");
    autofree char *own = xasprintf("%s/%s.%s", q->stage.out, id, c->format);

    q->images[0] = exists(own) ? STEAL(own) : find(c->bridge->hyper2kvm.output_dir, "", any);
    if (q->images[0] == NULL)
        return error_set(err, ERR_INTERNAL,
                         "hyper2kvm says it is done but left no .%s below '%s/*/%s' (its "
                         "configuration needs to_output)",
                         c->format, c->bridge->hyper2kvm.output_dir, q->stem);
    for (size_t i = 1; i < q->stage.count; i++) {
        const json_t *disk = convert_disk(c, i);
        q->images[i] = xasprintf("%s/%s.%s", q->stage.out, json_str(disk, "id"), c->format);
        if (exists(q->images[i]))
            continue;
        const char *argv[] = {"qemu-img",   "convert", "-f",
                              "qcow2",      "-O",      c->format,
                              "-t",         "none",    json_str(disk, "local_path"),
                              q->images[i], NULL};
        if (stage_qemu_img(c, argv, err) < 0)
            return error_wrap(err, "copy of disk %zu", i + 1);
    }
    return 0;
}

int queue_convert(struct conversion *c, struct error *err)
{
    CLEANUP(queued_release) struct queued q = {.c = c};

    if (submit(&q, err) < 0 || follow(&q, err) < 0 || collect(&q, err) < 0 ||
        stage_publish(c, q.images, convert_stage(c, "fix"), err) < 0)
        return -1;
    c->path_used = "queue";
    return 0;
}
