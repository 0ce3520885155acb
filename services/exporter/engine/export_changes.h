/* What of a frozen disk may differ from the earlier export that it goes on from, as the source
 * tells it (provider.h, disk_changes). */
#ifndef EXPORTER_EXPORT_CHANGES_H
#define EXPORTER_EXPORT_CHANGES_H

#include "services/exporter/engine/provider.h"

struct changes_request {
    const struct provider *provider;
    struct provider_session *session;
    const struct frozen_vm *frozen;
    size_t disk_index; /* into frozen->disks */
    const char *since; /* "": the earlier export knows no change id */
    uint32_t retries_max;
    const atomic_bool *stopped;
};

/* One bit per MiB of the disk. Caller frees *out. *out_bytes: of the MiB whose bit is set. Any
 * failure but ERR_CANCELLED means: not known, everything has to be compared; its message says why.
 * Nothing of what the source says is believed that does not fit the disk: ERR_PROTOCOL. */
MUST_CHECK int changes_ask(const struct changes_request *request, uint8_t **out,
                           uint64_t *out_bytes, struct error *err);

#endif
