/* The VM as every provider describes it: hardware facts, no provider types.
 * All strings are owned by the struct, never NULL (empty = unknown). Sizes in bytes. */
#ifndef EXPORTER_VM_H
#define EXPORTER_VM_H

#include <jansson.h>

#include "common/error.h"
#include "common/paths.h" /* vm_file_name */

#define VM_DISKS_MAX      64 /* vSphere allows 256 by PVSCSI x 64; our tested limit */
#define VM_NICS_MAX       32
#define VM_ADDRESSES_MAX  32
#define VM_NAME_BYTES_MAX 512
#define VM_TAGS_MAX       256 /* VMware's advice is to stay below 15 per object */

enum vm_power { VM_POWER_UNKNOWN, VM_POWER_ON, VM_POWER_OFF, VM_POWER_SUSPENDED };
enum vm_firmware { VM_FIRMWARE_UNKNOWN, VM_FIRMWARE_BIOS, VM_FIRMWARE_UEFI };

struct vm_disk {
    char *id;          /* stable within the VM; vSphere: device key as text */
    char *label;       /* "Hard disk 1" */
    char *source_path; /* where the provider keeps it; vSphere: "[ds] dir/x.vmdk" */
    char *format;      /* the provider's word: flat, sparse, rdm ... */
    char *change_id;   /* CBT position, empty if none */
    uint64_t capacity_bytes;
    char *controller_type;  /* scsi, sata, nvme, ide */
    char *controller_model; /* pvscsi, lsilogic, lsisas1068, buslogic, ahci, nvme, ide */
    uint32_t controller_bus;
    uint32_t unit;
    bool thin;
    char *skip_reason; /* non-empty: cannot be exported (independent, physical RDM ...) */
};

struct vm_nic {
    char *id;
    char *mac; /* lower case, colons */
    char *network;
    char *model; /* vmxnet3, e1000, e1000e ... */
};

struct vm {
    char *id; /* provider's own: "vm-57" */
    char *name;
    char *path; /* "/DC0/vm/prod/web-01" */
    char *datacenter;
    char *host;    /* that it runs on, its name if that is known */
    char *cluster; /* that the host belongs to; "": to none, or unknown */
    enum vm_power power;
    char *guest_id; /* vSphere: debian10_64Guest */
    char *guest_os; /* full name */
    char *bios_uuid;
    char *instance_uuid;
    char *hardware_version;
    uint32_t num_cpu;
    uint32_t cores_per_socket;
    uint64_t memory_mb;
    uint64_t storage_bytes; /* sum of the disks' capacities */
    uint64_t used_bytes;    /* what the provider says is allocated; 0 = unknown */
    enum vm_firmware firmware;
    bool secure_boot;
    bool tpm;
    bool template_vm;
    bool cbt_enabled;
    uint32_t snapshot_count;
    struct vm_disk *disks; /* in boot order: controller bus, unit */
    size_t disk_count;
    struct vm_nic *nics;
    size_t nic_count;
    char **ip_addresses;
    size_t ip_address_count;
};

struct vm_tag {
    char *category;
    char *name;
};

struct vm_tags { /* of one VM */
    struct vm_tag *items;
    size_t count;
};

/* All strings "", all counts 0. */
void vm_init(struct vm *vm);
void vm_release(struct vm *vm);
/* A new last disk or NIC, all strings ""; the pointer is valid until the next one is added. The
 * caller keeps to VM_DISKS_MAX, VM_NICS_MAX and VM_ADDRESSES_MAX. */
struct vm_disk *vm_add_disk(struct vm *vm);
struct vm_nic *vm_add_nic(struct vm *vm);
void vm_add_address(struct vm *vm, const char *address);
/* Replaces one of the owned strings. */
void vm_set_text(char **field, const char *text);
#define auto_vm CLEANUP(vm_release) struct vm
const char *vm_power_name(enum vm_power power);          /* "poweredOn" ... "unknown" */
const char *vm_firmware_name(enum vm_firmware firmware); /* "bios", "uefi", "unknown" */
/* rest-api.md 4.1 object; provider = instance name. New reference. */
json_t *vm_to_json(const struct vm *vm, const char *provider);

void vm_tags_release(struct vm_tags *tags); /* NULL-safe items */
/* ERR_LIMIT: over VM_TAGS_MAX. */
MUST_CHECK int vm_tags_add(struct vm_tags *tags, const char *category, const char *name,
                           struct error *err);
/* Adds to vm_to_json's object: "tags" {category: [names]}. unknown: NULL, or why they are not
 * known; then "tags" is null and "tags_unknown" tells it: no tags and not knowing must differ. */
void vm_tags_to_json(const struct vm_tags *tags, const char *unknown, json_t *vm);

#endif
