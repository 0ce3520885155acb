/* Snapshots of one VM: make one once, find it again after a lost reply, take it away.
 *
 * A *_Task call is never sent again blindly. Before creating, the VM's snapshot tree and its recent
 * tasks are looked at, so that a repeated prepare() finds what an earlier one made. */
#ifndef VSPHERE_SNAPSHOT_H
#define VSPHERE_SNAPSHOT_H

#include "services/exporter/providers/vsphere/inventory.h"

#define SNAPSHOT_TIMEOUT_MS        INT64_C(600000) /* when the job sets none: memory dumps are slow */
#define SNAPSHOT_REMOVE_TIMEOUT_MS INT64_C(3600000) /* merging a large delta takes its time */
#define SNAPSHOT_LOCKED_MS_MAX     INT64_C(300000)  /* a reader may hold a file for minutes */

struct snapshot_spec {
    const char *name;
    const char *description; /* names the job; with the name it identifies the snapshot */
    bool memory;
    bool quiesce;
    int64_t timeout_ms;
};

/* Id of the VM's snapshot with this name and description (caller frees), NULL if there is none.
 * Waits for a snapshot that is just being made. */
MUST_CHECK int snapshot_find(struct provider_session *session, const char *vm_id,
                             const struct snapshot_spec *spec, char **out_id, struct error *err);
/* Makes it and returns its id. */
MUST_CHECK int snapshot_create(struct provider_session *session, const char *vm_id,
                               const struct snapshot_spec *spec, char **out_id, struct error *err);
/* Gone already is success. */
MUST_CHECK int snapshot_remove(struct provider_session *session, const char *id, struct error *err);
/* Merges leftover deltas when the VM says that it has some. */
MUST_CHECK int snapshot_consolidate(struct provider_session *session, const char *vm_id,
                                    struct error *err);
/* Disks of the snapshot's own configuration, into vm (which gets new disks and cards): the file
 * names that are frozen. ERR_NOT_FOUND: the snapshot is gone. */
MUST_CHECK int snapshot_read_disks(struct provider_session *session, const char *id,
                                   struct vsphere_vm *vm, struct error *err);
/* ERR_NOT_FOUND when it is gone. */
MUST_CHECK int snapshot_check(struct provider_session *session, const char *id, struct error *err);

#endif
