/* The VM's CD-ROM drives are taken away before it is frozen, when that is asked for. */
#include "common/json.h"
#include "services/exporter/engine/export_keys.h"
#include "services/exporter/engine/export_run.h"

int export_cdroms_read(struct export_run *run, const json_t *spec, struct error *err)
{
    const struct provider *provider = run->exporter->provider;

    if (json_get_bool(spec, "remove_cdrom", false, &run->options.remove_cdrom, err) < 0)
        return -1;
    if (!run->options.remove_cdrom || provider->remove_cdroms != NULL)
        return 0;
    return error_set(err, ERR_NOT_AVAILABLE,
                     "%s cannot remove CD-ROM drives: leave remove_cdrom out and do it yourself",
                     provider->title);
}

struct telling {
    struct export_run *run;
    size_t count;
};

static void tell(void *arg, const char *drive)
{
    struct telling *telling = arg;

    telling->count++;
    worker_task_log(telling->run->task, LOG_LEVEL_INFO, "removed from the VM, as asked: %s", drive);
}

int export_remove_cdroms(struct export_run *run, struct error *err)
{
    const struct provider *provider = run->exporter->provider;
    struct telling telling = {.run = run};

    if (!run->options.remove_cdrom)
        return 0;
    if (worker_task_record_get(run->task, EXPORT_KEY_CDROMS) != NULL) {
        worker_task_log(run->task, LOG_LEVEL_INFO,
                        "an earlier attempt has looked after the CD-ROM drives");
        return 0;
    }
    export_phase(run, "snapshotting");
    if (provider->remove_cdroms(run->session.session, run->vm_id, &run->records.base, tell,
                                &telling, err) < 0)
        return -1;
    if (telling.count == 0)
        worker_task_log(run->task, LOG_LEVEL_INFO, "the VM has no CD-ROM drive to remove");
    return worker_task_record_put(run->task, EXPORT_KEY_CDROMS, "removed", err);
}
