/* The virtual devices of a VM or of a snapshot's configuration: disks with their controllers and
 * backings, network cards, TPM. Reads XML, opens no connection. */
#ifndef VSPHERE_DEVICES_H
#define VSPHERE_DEVICES_H

#include <libxml/tree.h>

#include "services/exporter/engine/vm.h"

#define DEVICES_MAX    1024                /* vSphere's maxima add up to about 400 */
#define DISK_BYTES_MAX (UINT64_C(1) << 50) /* vSphere's own limit is 62 TiB */

/* Why a disk can't be read as the flat file that its backing names; facts that struct vm_disk has
 * no place for. */
struct disk_backing {
    bool has_parent;  /* a delta: an older snapshot lies below it */
    bool independent; /* not part of snapshots */
};

/* Name of a network by id (managed object or opaque network), NULL if unknown. */
typedef const char *network_name_fn(const void *arg, const char *id);

/* Adds disks (boot order) and cards to vm, which has none yet; backings[i] belongs to disk i.
 * `object`: the VM's ObjectContent with config.hardware.device, .bootOptions and .keyId.
 * ERR_LIMIT: more disks or cards than we can take. ERR_PROTOCOL: a disk without its facts. */
MUST_CHECK int devices_read(const xmlNode *object, network_name_fn *network_name, const void *arg,
                            struct vm *vm, struct disk_backing backings[VM_DISKS_MAX],
                            struct error *err);

/* The xsi:type of the controller of a disk that was read here; "" if it is unknown. */
const char *devices_controller_type(const struct vm_disk *disk);

#endif
