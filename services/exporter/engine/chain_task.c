/* The task kinds "check_chain", "prune" and "flatten": restore points that exist (chain_edit.h).
 *
 * Record "chain.removed": ids of points that go, written before they do, so that the catalogue
 * hears of them whoever finishes the task. */
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/chain_edit.h"
#include "services/exporter/engine/control.h"

#define KEY_REMOVED "chain.removed"
#define KEEP_MAX    CHAIN_POINTS_MAX

struct chain_job {
    struct worker_task *task;
    struct exporter *exporter;
    char *dir; /* of the point that was named */
    char *root;
    char *vm_id;
    char *id;
    int lock_fd;
};

static void chain_job_release(struct chain_job *job)
{
    free(job->dir);
    free(job->root);
    free(job->vm_id);
    free(job->id);
    if (job->lock_fd >= 0)
        (void)close(job->lock_fd);
}

static int go_on(void *arg, struct error *err)
{
    const struct chain_job *job = arg;

    return worker_task_check(job->task, err) < 0 ? -1 : worker_task_may_write(job->task, err);
}

/* Appends the id to the record, once. */
static int removing(void *arg, const char *export_id, struct error *err)
{
    struct chain_job *job = arg;
    const char *before = worker_task_record_get(job->task, KEY_REMOVED);
    autofree char *ids = NULL;

    worker_task_log(job->task, LOG_LEVEL_INFO, "merging restore point %s into the next one",
                    export_id);
    if (before != NULL && strstr(before, export_id) != NULL)
        return 0;
    ids = xasprintf("%s%s%s", before == NULL ? "" : before, before == NULL ? "" : " ", export_id);
    return worker_task_record_put(job->task, KEY_REMOVED, ids, err);
}

static struct chain_edit edit_of(struct chain_job *job)
{
    return (struct chain_edit){.root = job->root,
                               .vm_id = job->vm_id,
                               .evidence_key = job->exporter->evidence_key,
                               .go_on = go_on,
                               .removing = removing,
                               .arg = job};
}

/* ---- which chain ---- */

static int find_root(struct chain_job *job, const struct export_record *record, struct error *err)
{
    bool beside = json_object_get(record->document, "incremental") != NULL;
    autofree char *path = beside ? xasprintf("%s/..", job->dir) : xstrdup(job->dir);

    job->root = realpath(path, NULL);
    if (job->root == NULL)
        return error_set(err, ERR_NOT_FOUND, "'%.200s' cannot be found", path);
    return 0;
}

/* The point that the spec names, and its chain's lock. */
static int job_open(struct chain_job *job, struct worker_task *task, struct exporter *exporter,
                    bool exclusive, struct error *err)
{
    const json_t *spec = worker_task_spec(task);
    auto_export_record *record = NULL;
    autofree char *path = NULL;
    autofree char *dir = NULL;

    job->task = task;
    job->exporter = exporter;
    if (path_confine(&exporter->bases, json_str(spec, "path"), &dir, err) < 0)
        return error_wrap(err, "path");
    job->dir = realpath(dir, NULL);
    if (job->dir == NULL)
        return error_set(err, ERR_NOT_FOUND, "'%.200s' does not exist", dir);
    path = xasprintf("%s/%s", job->dir, EXPORT_RECORD_NAME);
    if (export_record_load(path, &record, err) < 0)
        return -1;
    if (strcmp(record->export_id, json_str(spec, "export_id")) != 0) {
        return error_set(err, ERR_NOT_FOUND, "'%.200s' holds export '%.64s', not '%.64s'", dir,
                         record->export_id, json_str(spec, "export_id"));
    }
    job->id = xstrdup(record->export_id);
    job->vm_id = xstrdup(chain_vm_id(record));
    if (find_root(job, record, err) < 0)
        return -1;
    return chain_lock(job->root, job->vm_id, exclusive, &job->lock_fd, err);
}

static int load_whole(const struct chain_job *job, struct chain **out, struct error *err)
{
    autofree char *youngest = NULL;

    if (chain_youngest(job->root, job->dir, job->id, &youngest, err) < 0)
        return -1;
    return chain_load(job->root, youngest, out, err);
}

/* ---- results ---- */

static uint64_t record_bytes(const struct chain_point *point)
{
    autofree char *path = xasprintf("%s/%s", point->dir, EXPORT_RECORD_NAME);
    struct stat st;

    return stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

static json_t *point_json(const struct chain_point *point)
{
    static const char *const keys[] = {"disk_id", "file", "size_bytes", "sha256"};
    const struct export_record *record = point->record;
    json_t *object = json_object();
    json_t *disks = json_array();
    uint64_t total = record_bytes(point);
    const json_t *disk;
    size_t i;

    for (i = 0; i < record->file_count; i++)
        total += record->files[i].size;
    json_set_text(object, "id", record->export_id);
    json_set_text(object, "base_id", chain_base_id(record));
    json_set_text(object, "path", point->dir);
    export_set_u64(object, "total_size", total);
    json_array_foreach(json_object_get(record->document, "disks"), i, disk)
    {
        json_t *item = export_append(disks);
        for (size_t k = 0; k < ARRAY_LEN(keys); k++)
            json_put(item, keys[k], json_incref(json_object_get(disk, keys[k])));
    }
    json_put(object, "disks", disks);
    return object;
}

static json_t *removed_json(const struct chain_job *job)
{
    const char *ids = worker_task_record_get(job->task, KEY_REMOVED);
    autofree char *copy = xstrdup(ids == NULL ? "" : ids);
    json_t *list = json_array();
    char *rest = NULL;

    for (char *id = strtok_r(copy, " ", &rest); id != NULL; id = strtok_r(NULL, " ", &rest)) {
        if (json_array_append_new(list, json_string(id)) < 0)
            abort(); /* out of memory */
    }
    return list;
}

/* Oldest first. */
static json_t *result_of(const struct chain_job *job, const struct chain *chain)
{
    json_t *result = json_object();
    json_t *points = json_array();

    for (size_t i = chain->count; i > 0; i--) {
        if (json_array_append_new(points, point_json(&chain->points[i - 1])) < 0)
            abort();
    }
    json_put(result, "points", points);
    json_put(result, "removed", removed_json(job));
    return result;
}

/* ---- the tasks ---- */

int exporter_run_check_chain(struct worker_task *task, void *arg, json_t **out_result,
                             struct error *err)
{
    CLEANUP(chain_job_release) struct chain_job job = {.lock_fd = -1};
    auto_chain *chain = NULL;

    worker_task_phase(task, "verifying");
    if (job_open(&job, task, arg, false, err) < 0 || load_whole(&job, &chain, err) < 0 ||
        chain_check(chain, true, worker_task_stopped(task), err) < 0)
        return -1;
    worker_task_log(task, LOG_LEVEL_INFO, "all %zu restore points are intact", chain->count);
    *out_result = result_of(&job, chain);
    return 0;
}

/* The point that the job names may be one that is merged away: it is looked for no more then. */
static int load_from(const struct chain_job *job, const char *youngest, struct chain **out,
                     struct error *err)
{
    chain_free(STEAL(*out));
    return chain_load(job->root, youngest, out, err);
}

int exporter_run_prune(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    CLEANUP(chain_job_release) struct chain_job job = {.lock_fd = -1};
    auto_chain *chain = NULL;
    autofree char *youngest = NULL;
    struct chain_edit edit;
    uint64_t keep = 0;

    worker_task_phase(task, "pruning");
    if (json_get_u64(worker_task_spec(task), "keep", 1, KEEP_MAX, 0, &keep, err) < 0 ||
        job_open(&job, task, arg, true, err) < 0)
        return -1;
    if (keep == 0)
        return error_set(err, ERR_INVALID, "keep is missing");
    edit = edit_of(&job);
    if (chain_recover(&edit, err) < 0 || load_whole(&job, &chain, err) < 0)
        return -1;
    youngest = xstrdup(chain->points[0].dir);
    while (chain->count > keep) {
        if (go_on(&job, err) < 0 || chain_prune_oldest(&edit, chain, err) < 0 ||
            load_from(&job, youngest, &chain, err) < 0)
            return -1;
    }
    *out_result = result_of(&job, chain);
    return 0;
}

int exporter_run_flatten(struct worker_task *task, void *arg, json_t **out_result,
                         struct error *err)
{
    CLEANUP(chain_job_release) struct chain_job job = {.lock_fd = -1};
    auto_chain *chain = NULL;
    auto_chain *after = NULL;
    struct chain_edit edit;

    worker_task_phase(task, "flattening");
    if (job_open(&job, task, arg, true, err) < 0)
        return -1;
    edit = edit_of(&job);
    if (chain_recover(&edit, err) < 0 || chain_load(job.root, job.dir, &chain, err) < 0 ||
        chain_flatten(&edit, chain, err) < 0 || chain_load(job.root, job.dir, &after, err) < 0)
        return -1;
    *out_result = result_of(&job, after);
    return 0;
}
