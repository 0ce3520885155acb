#include "services/exporter/providers/vsphere/snapshot.h"

#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "services/exporter/providers/vsphere/task.h"

/* ---- finding ---- */

static const char *const vm_snapshot_paths[] = {"snapshot", "recentTask", NULL};
static const struct property_set vm_snapshot_set = {"VirtualMachine", vm_snapshot_paths};

static bool snapshot_matches(const xmlNode *node, const struct snapshot_spec *spec)
{
    return strcmp(soap_text(node, "name"), spec->name) == 0 &&
           strcmp(soap_text(node, "description"), spec->description) == 0;
}

/* The tree node of our snapshot below parent. */
/* NOLINTNEXTLINE(misc-no-recursion): ends at SOAP_DEPTH_MAX */
static const xmlNode *tree_find(const xmlNode *parent, const char *list,
                                const struct snapshot_spec *spec, int depth)
{
    if (depth > SOAP_DEPTH_MAX)
        return NULL;
    for (const xmlNode *node = soap_child(parent, list); node != NULL; node = soap_next(node)) {
        const xmlNode *found = snapshot_matches(node, spec)
                                   ? node
                                   : tree_find(node, "childSnapshotList", spec, depth + 1);
        if (found != NULL)
            return found;
    }
    return NULL;
}

/* What the server knows of our snapshot. */
struct sighting {
    char *id;   /* it is in the tree */
    char *task; /* else: a queued or running creation */
    bool ended; /* a creation ended well, maybe after the look at the tree */
};

static void sighting_release(struct sighting *sighting)
{
    free(sighting->id);
    free(sighting->task);
}

/* Looks for a creation among the VM's recent tasks. */
static int running_creation(struct provider_session *session, const xmlNode *recent,
                            struct sighting *out, struct error *err)
{
    for (const xmlNode *ref = soap_child(recent, "ManagedObjectReference"); ref != NULL;
         ref = soap_next(ref)) {
        auto_soap_reply reply = {0};
        const xmlNode *object = NULL, *info;
        const char *state;

        if (property_get(session, &task_set, soap_content(ref), &reply, &object, err) < 0) {
            if (err->code != ERR_NOT_FOUND)
                return -1;
            error_clear(err); /* finished long ago and forgotten */
            continue;
        }
        info = property_value(object, "info");
        state = soap_text(info, "state");
        if (strcmp(soap_text(info, "descriptionId"), "VirtualMachine.createSnapshot") != 0)
            continue;
        if (strcmp(state, "running") == 0 || strcmp(state, "queued") == 0) {
            out->task = xstrdup(soap_content(ref));
            return 0;
        }
        out->ended = out->ended || strcmp(state, "success") == 0;
    }
    return 0;
}

/* Looks at the tree; when there is nothing and a creation is under way, names its task. */
static int find_once(struct provider_session *session, const char *vm_id,
                     const struct snapshot_spec *spec, struct sighting *out, struct error *err)
{
    auto_soap_reply reply = {0};
    const xmlNode *object = NULL, *node;

    if (property_get(session, &vm_snapshot_set, vm_id, &reply, &object, err) < 0)
        return -1;
    node = tree_find(property_value(object, "snapshot"), "rootSnapshotList", spec, 0);
    if (node != NULL) {
        const char *id = soap_text(node, "snapshot");
        if (!soap_id_is_sane(id))
            return error_set(err, ERR_PROTOCOL, "a snapshot of VM '%s' has no usable id", vm_id);
        out->id = xstrdup(id);
        return 0;
    }
    return running_creation(session, property_value(object, "recentTask"), out, err);
}

int snapshot_find(struct provider_session *session, const char *vm_id,
                  const struct snapshot_spec *spec, char **out_id, struct error *err)
{
    CLEANUP(sighting_release) struct sighting seen = {0};
    CLEANUP(sighting_release) struct sighting again = {0};
    struct error failed = ERROR_NONE;

    *out_id = NULL;
    if (find_once(session, vm_id, spec, &seen, err) < 0)
        return -1;
    if (seen.id != NULL || (seen.task == NULL && !seen.ended)) {
        *out_id = STEAL(seen.id);
        return 0;
    }
    if (seen.task != NULL &&
        task_wait(session, seen.task, "a snapshot of the VM being made", spec->timeout_ms, NULL,
                  &failed) < 0 &&
        (failed.code == ERR_CANCELLED || error_is_retryable(&failed))) {
        *err = failed;
        return -1;
    }
    if (find_once(session, vm_id, spec, &again, err) < 0)
        return -1;
    *out_id = STEAL(again.id);
    return 0;
}

/* ---- making ---- */

int snapshot_create(struct provider_session *session, const char *vm_id,
                    const struct snapshot_spec *spec, char **out_id, struct error *err)
{
    auto_strbuf request = {0};
    autofree char *id = NULL;

    if (session_login(session, err) < 0)
        return -1;
    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "CreateSnapshot_Task", "VirtualMachine", vm_id);
    soap_add(&request, "name", spec->name);
    soap_add(&request, "description", spec->description);
    soap_add(&request, "memory", spec->memory ? "true" : "false");
    soap_add(&request, "quiesce", spec->quiesce ? "true" : "false");
    soap_end(&request, "CreateSnapshot_Task");
    if (task_run(session, "CreateSnapshot_Task", &request, spec->timeout_ms, &id, err) < 0)
        return -1;
    if (!soap_id_is_sane(id))
        return error_set(err, ERR_PROTOCOL, "CreateSnapshot_Task: the result names no snapshot");
    *out_id = STEAL(id);
    return 0;
}

/* ---- taking away ---- */

static int remove_once(struct provider_session *session, const char *id, struct error *err)
{
    auto_strbuf request;

    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "RemoveSnapshot_Task", "VirtualMachineSnapshot", id);
    soap_add(&request, "removeChildren", "false");
    soap_add(&request, "consolidate", "true");
    soap_end(&request, "RemoveSnapshot_Task");
    return task_run(session, "RemoveSnapshot_Task", &request, SNAPSHOT_REMOVE_TIMEOUT_MS, NULL,
                    err);
}

static const char *const snapshot_vm_paths[] = {"vm", NULL};
static const struct property_set snapshot_vm_set = {"VirtualMachineSnapshot", snapshot_vm_paths};

int snapshot_check(struct provider_session *session, const char *id, struct error *err)
{
    auto_soap_reply reply = {0};
    const xmlNode *object = NULL;

    return property_get(session, &snapshot_vm_set, id, &reply, &object, err);
}

/* Another task works on the VM, or a file is still open: worth waiting for. */
static bool is_busy(const struct error *err)
{
    return err->code == ERR_UNAVAILABLE;
}

int snapshot_remove(struct provider_session *session, const char *id, struct error *err)
{
    int64_t deadline = clock_mono_ms() + SNAPSHOT_LOCKED_MS_MAX;

    for (uint32_t attempt = 0;; attempt++) {
        /* Asking first also answers whether a removal whose answer was lost has worked. */
        if (snapshot_check(session, id, err) == 0 && remove_once(session, id, err) == 0)
            return 0;
        if (err->code == ERR_NOT_FOUND) {
            error_clear(err);
            return 0;
        }
        if (!is_busy(err) || clock_mono_ms() >= deadline)
            return error_wrap(err, "removing snapshot '%s'", id);
        LOG(DEBUG, "vsphere_snapshot_busy", F_STR("snapshot", id), F_ERR(err));
        error_clear(err);
        if (session_nap(session, clock_backoff_ms(attempt, 500, 30000), err) < 0)
            return -1;
    }
}

static const char *const consolidation_paths[] = {"runtime.consolidationNeeded", NULL};
static const struct property_set consolidation_set = {"VirtualMachine", consolidation_paths};

static int consolidation_needed(struct provider_session *session, const char *vm_id, bool *out,
                                struct error *err)
{
    auto_soap_reply reply = {0};
    const xmlNode *object = NULL;

    *out = false;
    if (property_get(session, &consolidation_set, vm_id, &reply, &object, err) < 0) {
        if (err->code != ERR_NOT_FOUND)
            return -1;
        error_clear(err); /* the VM is gone, and its deltas with it */
        return 0;
    }
    *out = property_bool(object, "runtime.consolidationNeeded");
    return 0;
}

static int consolidate_once(struct provider_session *session, const char *vm_id, struct error *err)
{
    auto_strbuf request;

    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "ConsolidateVMDisks_Task", "VirtualMachine", vm_id);
    soap_end(&request, "ConsolidateVMDisks_Task");
    return task_run(session, "ConsolidateVMDisks_Task", &request, SNAPSHOT_REMOVE_TIMEOUT_MS, NULL,
                    err);
}

int snapshot_consolidate(struct provider_session *session, const char *vm_id, struct error *err)
{
    int64_t deadline = clock_mono_ms() + SNAPSHOT_LOCKED_MS_MAX;
    bool needed = false;

    for (uint32_t attempt = 0;; attempt++) {
        if (consolidation_needed(session, vm_id, &needed, err) < 0)
            return error_wrap(err, "consolidating VM '%s'", vm_id);
        if (!needed || consolidate_once(session, vm_id, err) == 0)
            return 0;
        if (!is_busy(err) || clock_mono_ms() >= deadline)
            return error_wrap(err, "consolidating VM '%s'", vm_id);
        error_clear(err);
        if (session_nap(session, clock_backoff_ms(attempt, 500, 30000), err) < 0)
            return -1;
    }
}

/* ---- the frozen configuration ---- */

static const char *const snapshot_config_paths[] = {"config.hardware.device", "config.bootOptions",
                                                    "config.keyId", NULL};
static const struct property_set snapshot_config_set = {"VirtualMachineSnapshot",
                                                        snapshot_config_paths};

int snapshot_read_disks(struct provider_session *session, const char *id, struct vsphere_vm *vm,
                        struct error *err)
{
    auto_soap_reply reply = {0};
    const xmlNode *object = NULL, *devices;

    if (property_get(session, &snapshot_config_set, id, &reply, &object, err) < 0)
        return error_wrap(err, "reading snapshot '%s'", id);
    devices = property_value(object, "config.hardware.device");
    if (devices == NULL)
        return error_set(err, ERR_DENIED, "the configuration of snapshot '%s' is not readable", id);
    return inventory_replace_devices(session, object, vm, err);
}
