/* Disks as streams of an export lease (NFC): provider.h's stream_* for frozen VMs of method
 * "snapshot-nfc".
 *
 * Each stream has a lease of its own: ExportSnapshot, the one disk's file, and HttpNfcLeaseComplete
 * when it came whole, or HttpNfcLeaseAbort. A thread renews it, whatever readers and outputs do. */
#ifndef VSPHERE_NFC_H
#define VSPHERE_NFC_H

#include "services/exporter/providers/vsphere/nfc_lease.h"

struct nfc_place {
    struct task_records *records;
    const char *snapshot;
    const struct vm_disk *disk;
    uint64_t size_bytes;
};

MUST_CHECK int nfc_stream_open(struct provider_session *session, const struct nfc_place *place,
                               struct provider_stream **out, struct error *err);
MUST_CHECK int nfc_stream_next(struct provider_stream *stream, uint64_t *out_offset,
                               struct error *err);
MUST_CHECK int nfc_stream_fetch(struct provider_stream *stream, uint64_t end,
                                struct provider_parcel *out, struct error *err);
MUST_CHECK int nfc_stream_decode(struct provider_stream *stream,
                                 const struct provider_parcel *parcel, uint64_t offset,
                                 uint8_t *buffer, size_t length, struct error *err);
void nfc_stream_close(struct provider_stream *stream);
/* Ends the lease that an earlier stream of the task left behind, if any. */
MUST_CHECK int nfc_abort_recorded(struct provider_session *session, struct task_records *records,
                                  struct error *err);

#endif
