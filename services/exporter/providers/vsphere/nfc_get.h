/* The GET of a lease's file, pulled: whoever reads drives the transfer, and when nobody reads, the
 * peer is held back. Bounded memory. Belongs to one thread at a time. */
#ifndef VSPHERE_NFC_GET_H
#define VSPHERE_NFC_GET_H

#include "services/exporter/providers/vsphere/nfc_lease.h"

/* Without a byte, while somebody waits for one. A host that reads zeros, which it leaves out, is
 * silent: a TB of them takes it half an hour. That it lives is known by the renewals of the lease,
 * and by TCP's own keep-alive. */
#define NFC_STALL_MS_MAX INT64_C(3600000)

struct nfc_get;

/* Nothing is sent yet. lease and *over must outlive it; when that becomes true, reading ends with
 * ERR_UNAVAILABLE: nothing will come any more. */
MUST_CHECK int nfc_get_new(struct provider_session *session, const struct nfc_lease *lease,
                           const atomic_bool *over, struct nfc_get **out, struct error *err);
void nfc_get_free(struct nfc_get *get); /* NULL-safe */
/* vmdk_stream_input.read. An end is one that the protocol marks; a transfer that breaks off is
 * ERR_UNAVAILABLE or ERR_TIMEOUT. */
MUST_CHECK int nfc_get_read(void *get, void *buffer, size_t length, size_t *out_got,
                            struct error *err);
/* Of everything that came. Once. */
MUST_CHECK int nfc_get_digest(struct nfc_get *get, struct nfc_sent *out, struct error *err);

#endif
