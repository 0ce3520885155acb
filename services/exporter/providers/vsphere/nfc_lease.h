/* Export leases (HttpNfcLease) of a snapshot: getting one, keeping it, giving it back. */
#ifndef VSPHERE_NFC_LEASE_H
#define VSPHERE_NFC_LEASE_H

#include "services/exporter/providers/vsphere/inventory.h"

#define NFC_READY_MS_MAX     INT64_C(300000) /* vCenter asks the host and opens the disks */
#define NFC_TIMEOUT_S        300             /* when the lease does not tell its own */
#define NFC_DEVICES_MAX      1024
#define NFC_CHECKSUM_HEX_MAX 41 /* SHA-1 */

/* A lease that is ready, and its address of one disk. */
struct nfc_lease {
    char *id;
    char *key;        /* of the disk in it: "/vm-57/VirtualLsiLogicController0:0" */
    char *url;        /* https */
    char *thumbprint; /* of the certificate there, "" if the lease does not tell */
    bool own_host;    /* the server that we are logged in to: it gets the session's cookie */
    int64_t timeout_ms;
    uint64_t capacity_bytes; /* of all disks of the lease: what its percent are of */
};
void nfc_lease_release(struct nfc_lease *lease);

/* The snapshot's new lease; *out_id (caller frees) is to be recorded before anything else. */
MUST_CHECK int nfc_lease_start(struct provider_session *session, const char *snapshot,
                               char **out_id, struct error *err);
/* Waits until it is ready, and finds the disk. out is zeroed here. */
MUST_CHECK int nfc_lease_wait(struct provider_session *session, const char *id,
                              const struct vm_disk *disk, struct nfc_lease *out, struct error *err);
/* The lease lives for another timeout_ms. */
MUST_CHECK int nfc_lease_renew(struct provider_session *session, const char *id,
                               unsigned int percent, struct error *err);

struct nfc_sent { /* the file of a disk, as we received it */
    uint64_t size_bytes;
    uint64_t capacity_bytes;
    char sha1[NFC_CHECKSUM_HEX_MAX];
};
/* Compares it with what the host says it sent, as far as it says anything. ERR_CORRUPT. */
MUST_CHECK int nfc_lease_compare(struct provider_session *session, const struct nfc_lease *lease,
                                 const struct nfc_sent *sent, struct error *err);
/* The end of the lease: complete, else aborted. Gone already is success. */
MUST_CHECK int nfc_lease_end(struct provider_session *session, const char *id, bool complete,
                             struct error *err);

/* Parts, for tests and fuzzing. */
/* The lease's "info" of a server at `origin` ("https://host:port"), all but out->id. */
MUST_CHECK int nfc_lease_read(const xmlNode *info, const char *origin, const struct vm_disk *disk,
                              struct nfc_lease *out, struct error *err);
/* The entries of the answer that speak of the disk with that key. */
MUST_CHECK int nfc_manifest_compare(const xmlNode *response, const char *key,
                                    const struct nfc_sent *sent, struct error *err);

#endif
