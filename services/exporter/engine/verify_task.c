/* The task kind "verify": an export that exists is read back (export_check.h). */
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/engine/control.h"
#include "services/exporter/engine/export_check.h"
#include "services/exporter/engine/export_key.h"

#define VERIFY_THREADS  4  /* readers of one image, as an export's own verification */
#define PROBLEMS_LOGGED 50 /* the result has more */

static void on_progress(void *arg, uint64_t done, uint64_t total, const char *file)
{
    struct worker_disk_progress disk = {
        .bytes_done = done, .bytes_total = total, .state = "verifying"};
    struct worker_progress progress = {.bytes_done = done,
                                       .bytes_total = total,
                                       .limited_by = "",
                                       .disks = &disk,
                                       .disk_count = 1};

    (void)snprintf(disk.id, sizeof disk.id, "export");
    (void)snprintf(disk.file, sizeof disk.file, "%s", file);
    worker_task_progress(arg, &progress);
}

static void tell(struct worker_task *task, const json_t *result)
{
    const json_t *problems = json_object_get(result, "problems");
    const json_t *extra = json_object_get(result, "extra_files");

    for (size_t i = 0; i < json_array_size(problems) && i < PROBLEMS_LOGGED; i++) {
        worker_task_log(task, LOG_LEVEL_ERROR, "%s",
                        json_str(json_array_get(problems, i), "message"));
    }
    for (size_t i = 0; i < json_array_size(extra) && i < PROBLEMS_LOGGED; i++) {
        worker_task_log(task, LOG_LEVEL_WARN, "'%s' is not of this export",
                        json_string_value(json_array_get(extra, i)));
    }
    if (json_is_true(json_object_get(result, "intact")))
        worker_task_log(task, LOG_LEVEL_INFO, "'%s' is intact", json_str(result, "path"));
    if (json_is_false(json_object_get(result, "content_checked"))) {
        worker_task_log(task, LOG_LEVEL_WARN,
                        "only the encrypted files were checked, not what they hold: %s",
                        json_str(result, "content_note"));
    }
}

/* The catalogue may remember an export whose directory was given to another one since. */
static int check_identity(const struct worker_task *task, const json_t *result, struct error *err)
{
    const char *wanted = json_str(worker_task_spec(task), "export_id");
    const char *found = json_str(result, "export_id");

    if (wanted[0] == '\0' || strcmp(wanted, found) == 0)
        return 0;
    return error_set(err, ERR_NOT_FOUND, "'%.200s' holds export '%.64s', not '%.64s'",
                     json_str(result, "path"), found, wanted);
}

int exporter_run_verify(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    struct exporter *exporter = arg;
    const char *sealed = json_str(worker_task_spec(task), EXPORT_SPEC_PASSPHRASE);
    auto_crypt_key *passphrase = NULL;
    autofree char *dir = NULL;
    struct export_check_options options = {.threads = VERIFY_THREADS,
                                           .stopped = worker_task_stopped(task),
                                           .progress = on_progress,
                                           .arg = task};
    json_t *result = NULL;
    uint64_t count;

    if (path_confine(&exporter->bases, json_str(worker_task_spec(task), "path"), &dir, err) < 0)
        return -1;
    if (sealed[0] != '\0' && export_key_unseal(exporter, sealed, &passphrase, err) < 0)
        return -1;
    options.dir = dir;
    options.exporter = exporter;
    options.passphrase = passphrase;
    worker_task_phase(task, "verifying");
    if (export_check(&options, &result, err) < 0)
        return -1;
    *out_result = result;
    if (check_identity(task, result, err) < 0)
        return -1;
    tell(task, result);
    count = json_u64(result, "problem_count");
    if (count == 0)
        return 0;
    return error_set(err, ERR_CORRUPT, "%.400s%s", export_check_summary(result),
                     count == 1 ? "" : " (and more: see the job's log and result)");
}
