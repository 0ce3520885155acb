/* Changed block tracking: what of a disk changed between a change id ("<uuid>/<sequence>") and a
 * snapshot. */
#ifndef VSPHERE_CHANGES_H
#define VSPHERE_CHANGES_H

#include "services/exporter/providers/vsphere/session.h"

struct changes_place {
    const char *vm_id;
    const char *snapshot; /* "": the VM is powered off */
    const char *device_key;
    const char *now; /* the disk's change id; "": tracking is off */
    uint64_t size_bytes;
};

/* One answer to provider.h's disk_changes, from query->offset on. ERR_NOT_AVAILABLE: the ids are
 * not of one series, or the server does not know `since` any more. */
MUST_CHECK int changes_query(struct provider_session *session, const struct changes_place *place,
                             const struct changes_query *query, struct extent_list *out,
                             struct error *err);

/* ERR_NOT_AVAILABLE: the VM's hardware or host cannot track changes. */
MUST_CHECK int changes_check_supported(struct provider_session *session, const char *vm_id,
                                       struct error *err);
/* Sets the VM's changeTrackingEnabled. It takes effect on its disks with the next snapshot. */
MUST_CHECK int changes_set_tracking(struct provider_session *session, const char *vm_id, bool on,
                                    struct error *err);

/* Parts, for tests and fuzzing. */
/* Can `now` tell what changed since `since`? ERR_NOT_AVAILABLE says why not. */
MUST_CHECK int changes_compare_ids(const char *since, const char *now, struct error *err);
/* The DiskChangeInfo of a response: it must begin at `offset` and lie inside a disk of `size`
 * bytes, its areas in rising order inside of it. ERR_PROTOCOL. An answer with more areas than out
 * has room for is cut: out->end. */
MUST_CHECK int changes_read(const xmlNode *info, uint64_t offset, uint64_t size,
                            struct extent_list *out, struct error *err);

#endif
