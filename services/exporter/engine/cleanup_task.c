/* The task kind "cleanup": exports go by rules (cleanup.h). */
#include <errno.h>
#include <string.h>
#include <sys/statvfs.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/cleanup.h"
#include "services/exporter/engine/control.h"
#include "services/exporter/engine/export_record.h"

#define PRESERVED_LISTED 200
#define KEY_INTENT       "cleanup.removing" /* with a number: the export ids of one record */
#define INTENT_BYTES_MAX 3900               /* a record's value has 4096 */

struct cleanup_run {
    struct worker_task *task;
    struct cleanup_policy policy;
    bool dry_run;
    char *base;
    char *dir;
    struct cleanup_list list;
    uint64_t free_bytes;
    json_t *deleted; /* borrowed from the result */
    uint64_t deleted_bytes;
    struct strbuf intent; /* ids in the record that is being filled */
    unsigned int intent_number;
};

static void run_release(struct cleanup_run *run)
{
    free(run->base);
    free(run->dir);
    cleanup_list_release(&run->list);
    strbuf_release(&run->intent);
}

static int read_policy(struct cleanup_run *run, struct error *err)
{
    const json_t *spec = worker_task_spec(run->task);
    struct cleanup_policy *policy = &run->policy;
    uint64_t age = 0;

    if (json_get_u64(spec, "max_age_ms", 0, INT64_MAX, 0, &age, err) < 0 ||
        json_get_u64(spec, "max_count", 0, INT64_MAX, 0, &policy->max_count, err) < 0 ||
        json_get_u64(spec, "max_size", 0, INT64_MAX, 0, &policy->max_size, err) < 0 ||
        json_get_u64(spec, "min_free", 0, INT64_MAX, 0, &policy->min_free, err) < 0 ||
        json_get_bool(spec, "per_vm", true, &policy->per_vm, err) < 0 ||
        json_get_bool(spec, "dry_run", false, &run->dry_run, err) < 0)
        return -1;
    policy->max_age_ms = (int64_t)age;
    policy->preserve = json_object_get(spec, "preserve");
    if (age == 0 && policy->max_count == 0 && policy->max_size == 0 && policy->min_free == 0)
        policy->max_age_ms = CLEANUP_AGE_DEFAULT;
    return 0;
}

/* The whole base is looked at: who uses an export may stand anywhere on it. */
static int find_base(struct cleanup_run *run, const struct config_list *bases, struct error *err)
{
    const char *wanted = json_str(worker_task_spec(run->task), "dir");
    struct statvfs fs;

    if (path_confine(bases, wanted[0] == '\0' ? bases->items[0] : wanted, &run->dir, err) < 0)
        return -1;
    for (size_t i = 0; i < bases->count && run->base == NULL; i++) {
        autofree char *real = NULL;
        size_t length;
        if (path_confine(bases, bases->items[i], &real, err) < 0)
            return -1;
        length = strlen(real);
        if (strncmp(run->dir, real, length) == 0 &&
            (run->dir[length] == '\0' || run->dir[length] == '/'))
            run->base = STEAL(real);
    }
    if (run->base == NULL)
        return error_set(err, ERR_DENIED, "'%.200s' lies in no base directory", run->dir);
    if (statvfs(run->base, &fs) < 0)
        return error_set_errno(err, errno, "free space of '%.200s' is unknown", run->base);
    if (!checked_mul_u64(fs.f_bavail, fs.f_frsize, &run->free_bytes))
        run->free_bytes = UINT64_MAX;
    return 0;
}

/* ---- the lists ---- */

static void add_row(json_t *list, const struct cleanup_item *item)
{
    char time[CLOCK_RFC3339_SIZE];
    json_t *row = export_append(list);

    clock_rfc3339(item->completed_ms, time);
    json_set_text(row, "export_id", item->export_id);
    json_set_text(row, "path", item->dir);
    json_set_text(row, "vm_name", item->vm_name);
    json_set_text(row, "created_at", item->completed_ms == 0 ? "" : time);
    export_set_u64(row, "bytes", item->bytes);
    json_set_text(row, "reason", item->reason);
}

static bool is_found(const struct cleanup_run *run, const char *id, size_t length)
{
    for (size_t i = 0; i < run->list.count; i++) {
        if (strlen(run->list.items[i].export_id) == length &&
            memcmp(run->list.items[i].export_id, id, length) == 0)
            return true;
    }
    return false;
}

/* What an earlier lease of this task removed without living to tell: it stands in the records,
 * and nowhere on the volume. */
static void recall_intents(struct cleanup_run *run, json_t *recalled)
{
    for (;; run->intent_number++) {
        autofree char *key = xasprintf(KEY_INTENT ".%u", run->intent_number);
        const char *text = worker_task_record_get(run->task, key);
        if (text == NULL)
            return;
        for (const char *p = text; *p != '\0'; p += *p == ',' ? 1 : 0) {
            size_t length = strcspn(p, ",");
            if (!is_found(run, p, length) &&
                json_array_append_new(recalled, json_stringn(p, length)) < 0)
                abort(); /* out of memory */
            p += length;
        }
    }
}

static int store_intent(struct cleanup_run *run, const char *id, struct error *err)
{
    autofree char *key = NULL;

    if (run->intent.length + strlen(id) + 1 > INTENT_BYTES_MAX) {
        strbuf_release(&run->intent);
        strbuf_init(&run->intent, INTENT_BYTES_MAX + 1);
        run->intent_number++;
    }
    strbuf_addf(&run->intent, "%s%s", run->intent.length == 0 ? "" : ",", id);
    key = xasprintf(KEY_INTENT ".%u", run->intent_number);
    return worker_task_record_put(run->task, key, run->intent.data, err);
}

static int remove_one(struct cleanup_run *run, struct cleanup_item *item, struct error *err)
{
    autoclose int lock = -1;
    const char *why = NULL;

    if (!run->dry_run) {
        if (cleanup_lock(item, &lock, &why, err) < 0)
            return -1;
        if (why != NULL) { /* since the scan */
            item->deleted = false;
            item->reason = why;
            return 0;
        }
        if (worker_task_check(run->task, err) < 0 || store_intent(run, item->export_id, err) < 0 ||
            worker_task_may_write(run->task, err) < 0 || cleanup_remove(item, run->base, err) < 0)
            return -1;
        worker_task_log(run->task, LOG_LEVEL_INFO, "removed export %s of '%s' in '%s' (%s)",
                        item->export_id, item->vm_name, item->dir, item->reason);
    }
    add_row(run->deleted, item);
    run->deleted_bytes += item->bytes;
    return 0;
}

/* Newest first: a base goes after those that use it, so a cut never breaks a chain. */
static int remove_all(struct cleanup_run *run, struct error *err)
{
    for (size_t i = 0; i < run->list.count; i++) {
        struct cleanup_item *item = &run->list.items[i];
        if (!item->deleted || item->outside)
            continue;
        if (json_array_size(run->deleted) == CLEANUP_DELETE_MAX) {
            worker_task_log(run->task, LOG_LEVEL_WARN,
                            "more than %d exports are to go: the next run goes on",
                            CLEANUP_DELETE_MAX);
            return 0;
        }
        if (remove_one(run, item, err) < 0)
            return -1;
    }
    return 0;
}

static void set_facts(const struct cleanup_run *run, json_t *result)
{
    json_t *preserved = json_array();
    uint64_t kept = 0;

    for (size_t i = 0; i < run->list.count; i++) {
        const struct cleanup_item *item = &run->list.items[i];
        if (item->deleted || item->outside)
            continue;
        kept++;
        if (item->reason != NULL && json_array_size(preserved) < PRESERVED_LISTED)
            add_row(preserved, item);
    }
    json_put(result, "dry_run", json_boolean(run->dry_run));
    json_set_text(result, "path", run->dir);
    json_put(result, "preserved", preserved);
    export_set_u64(result, "kept_count", kept);
    export_set_u64(result, "deleted_count", json_array_size(run->deleted));
    export_set_u64(result, "deleted_bytes", run->deleted_bytes);
}

static int clean(struct cleanup_run *run, const struct config_list *bases, json_t *result,
                 struct error *err)
{
    json_t *recalled = json_array();
    int rc;

    json_put(result, "recalled", recalled);
    if (read_policy(run, err) < 0 || find_base(run, bases, err) < 0 ||
        cleanup_scan(run->base, run->dir, json_object_get(worker_task_spec(run->task), "busy"),
                     worker_task_stopped(run->task), &run->list, err) < 0)
        return -1;
    recall_intents(run, recalled);
    cleanup_decide(&run->list, &run->policy, clock_wall_ms(), run->free_bytes);
    rc = remove_all(run, err);
    set_facts(run, result);
    return rc;
}

int exporter_run_cleanup(struct worker_task *task, void *arg, json_t **out_result,
                         struct error *err)
{
    const struct exporter *exporter = arg;
    CLEANUP(run_release) struct cleanup_run run = {.task = task};
    json_t *result = json_object();

    strbuf_init(&run.intent, INTENT_BYTES_MAX + 1);
    run.deleted = json_array();
    json_put(result, "deleted", run.deleted);
    *out_result = result;
    worker_task_phase(task, "cleanup");
    return clean(&run, &exporter->bases, result, err);
}
