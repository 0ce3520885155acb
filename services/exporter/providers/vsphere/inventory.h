/* Inventory: folders, datacenters and networks by id, and VMs as struct vm. */
#ifndef VSPHERE_INVENTORY_H
#define VSPHERE_INVENTORY_H

#include "services/exporter/providers/vsphere/devices.h"
#include "services/exporter/providers/vsphere/session.h"

#define INVENTORY_NAMES_MAX    200000 /* folders, datacenters, vApps and networks of one vCenter */
#define INVENTORY_NAMES_AGE_MS INT64_C(60000)
#define INVENTORY_PAGE_VMS     500 /* the engine's page limit */
#define INVENTORY_PATH_DEPTH   64  /* nested folders; also ends a loop in what the server says */

/* A VM and the facts that only this provider needs. */
struct vsphere_vm {
    struct vm vm;
    struct disk_backing backings[VM_DISKS_MAX];
    char *datacenter_path; /* "prod/DC0": dcPath of /folder; "" if unknown */
    bool connected;        /* the host answers for it */
    bool question;         /* waits for an answer in vCenter */
    bool consolidation_needed;
    bool devices_hidden; /* the account may not read the hardware */
};

void vsphere_vm_init(struct vsphere_vm *vm);
void vsphere_vm_release(struct vsphere_vm *vm);
#define auto_vsphere_vm CLEANUP(vsphere_vm_release) struct vsphere_vm

void inventory_names_free(struct inventory_names *names); /* NULL-safe */

/* All VMs (of the configured datacenter), at most INVENTORY_PAGE_VMS per call of page(). */
MUST_CHECK int inventory_list(struct provider_session *session,
                              int (*page)(void *arg, const struct vm *vms, size_t count,
                                          struct error *err),
                              void *arg, struct error *err);
/* out is initialised here; release it in any case. ERR_NOT_FOUND. */
MUST_CHECK int inventory_get(struct provider_session *session, const char *vm_id,
                             struct vsphere_vm *out, struct error *err);
/* The VM's power state now. */
MUST_CHECK int inventory_power(struct provider_session *session, const char *vm_id,
                               enum vm_power *out, struct error *err);
/* Fills an initialised out from an ObjectContent element. names may be NULL. */
MUST_CHECK int inventory_read_vm(const xmlNode *object, const struct inventory_names *names,
                                 struct vsphere_vm *out, struct error *err);
/* Replaces vm's disks and cards by those of a snapshot's configuration (its ObjectContent). */
MUST_CHECK int inventory_replace_devices(struct provider_session *session, const xmlNode *object,
                                         struct vsphere_vm *vm, struct error *err);

/* For tests: names from ObjectContent elements, as property_scan gives them. */
struct inventory_names *inventory_names_new(void);
MUST_CHECK int inventory_names_add(void *names, const xmlNode *object, struct error *err);
void inventory_names_sort(struct inventory_names *names);

#endif
