/* See undo.h. */
#include "undo.h"

#include <string.h>
#include <unistd.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "domain.h"
#include "services/exporter/targets/local.h"
#include "services/hyper2kvm-bridge/convert.h"
#include "volume.h"

#define MARK_BYTES_MAX 256

static int restore(struct worker_task *task, virDomainPtr domain, const char *xml,
                   struct error *err)
{
    virDomainPtr before;
    bool active = false;

    if (domain_is_active(domain, &active, err) < 0)
        return -1;
    if (active && virDomainDestroy(domain) < 0)
        return hv_error(err, "stopping domain '%.128s'", virDomainGetName(domain));
    before = virDomainDefineXML(virDomainGetConnect(domain), xml);
    if (before == NULL)
        return hv_error(err, "restoring domain '%.128s'", virDomainGetName(domain));
    worker_task_log(task, LOG_LEVEL_INFO, "domain '%s' is again what it was before",
                    virDomainGetName(before));
    (void)virDomainFree(before);
    return 0;
}

static int undo_domain(struct worker_task *task, virConnectPtr connection, const char *job_id,
                       struct error *err)
{
    const char *uuid = record_uuid(task);
    autofree char *origin = NULL;
    autofree char *replaced = record_replaced(task);
    auto_domain domain = NULL;
    int found = uuid[0] == '\0' ? 0 : domain_by_uuid(connection, uuid, &domain, err);

    if (found <= 0)
        return found;
    if (domain_origin_job(domain, &origin, err) < 0)
        return -1;
    if (strcmp(origin, job_id) != 0)
        return 0; /* it came to no definition of ours */
    if (worker_task_may_write(task, err) < 0)
        return -1;
    if (replaced != NULL)
        return restore(task, domain, replaced, err);
    worker_task_log(task, LOG_LEVEL_INFO, "removing domain '%s'", virDomainGetName(domain));
    return domain_remove(domain, err);
}

static int undo_volumes(struct worker_task *task, virConnectPtr connection, struct error *err)
{
    for (size_t i = 0; i < CONVERT_DISKS_MAX; i++) {
        struct made_volume volume;
        bool made = record_volume(task, i, &volume);
        auto_json *owned = volume.json;
        int removed;
        if (!made)
            continue;
        if (worker_task_may_write(task, err) < 0)
            return -1;
        removed = volume_delete(connection, volume.pool, volume.name, err);
        if (removed < 0)
            return -1;
        if (removed == 0)
            continue;
        worker_task_log(task, LOG_LEVEL_INFO, "volume '%s' of pool '%s' is removed", volume.name,
                        volume.pool);
    }
    return 0;
}

static void undo_marks(const struct worker_task *task, const char *job_id)
{
    for (size_t i = 0; i < CONVERT_DISKS_MAX; i++) {
        const char *dir = record_mark(task, i);
        autofree char *path = xasprintf("%s/" LOCAL_DOMAIN_MARK, dir);
        autofree char *text = NULL;
        struct error ignored = ERROR_NONE;
        size_t size = 0;
        if (dir[0] == '\0' || file_read(path, MARK_BYTES_MAX, &text, &size, &ignored) < 0)
            continue;
        text[strcspn(text, "\n")] = '\0';
        if (strcmp(text, job_id) == 0)
            (void)unlink(path);
    }
}

int import_undo(struct worker_task *task, virConnectPtr connection, const char *job_id,
                struct error *err)
{
    if (undo_domain(task, connection, job_id, err) < 0 || undo_volumes(task, connection, err) < 0)
        return -1;
    undo_marks(task, job_id);
    return 0;
}
