/* The virtual CD-ROM drives of a VM, and taking them away. */
#ifndef VSPHERE_CDROM_H
#define VSPHERE_CDROM_H

#include "services/exporter/engine/provider.h"
#include "services/exporter/providers/vsphere/session.h"

#define CDROMS_MAX            16   /* each has a record; nobody has more than the four of IDE */
#define CDROM_TEXT_BYTES_MAX  1024 /* label and path of an ISO; a record's value has 4096 */
#define CDROM_LABEL_BYTES_MAX 128

/* Key of the task record while drives are being removed: how many; "": none. What they are say
 * CDROM_RECORD ".0" ... */
#define CDROM_RECORD "cdrom"

struct cdrom {
    char *key;
    char *text; /* "CD/DVD drive 1: ISO file '[ds] iso/debian.iso'" */
};

struct cdroms {
    struct cdrom items[CDROMS_MAX];
    size_t count;
};

void cdroms_release(struct cdroms *list);
#define auto_cdroms CLEANUP(cdroms_release) struct cdroms

/* Adds the drives among the devices (value of config.hardware.device) to an empty list.
 * ERR_LIMIT: too many. ERR_PROTOCOL: one that has no key. */
MUST_CHECK int cdroms_read(const xmlNode *devices, struct cdroms *out, struct error *err);
/* ReconfigVM_Task that removes them. */
void cdroms_request(struct strbuf *sb, const char *vm_id, const struct cdroms *list);
/* provider.remove_cdroms, for a VM that can be exported. */
MUST_CHECK int cdrom_remove_all(struct provider_session *session, const char *vm_id,
                                struct task_records *records,
                                void (*tell)(void *arg, const char *drive), void *arg,
                                struct error *err);

#endif
