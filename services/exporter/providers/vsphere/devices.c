#include "services/exporter/providers/vsphere/devices.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "services/exporter/providers/vsphere/property.h"
#include "services/exporter/providers/vsphere/soap.h"

#define TYPE_BYTES_MAX 96

struct controller_kind {
    const char *xsi_type;
    const char *type;
    const char *model;
    unsigned int boot_rank; /* firmware tries SCSI before NVMe, SATA and IDE */
};

static const struct controller_kind controller_kinds[] = {
    {"ParaVirtualSCSIController", "scsi", "pvscsi", 0},
    {"VirtualLsiLogicSASController", "scsi", "lsisas1068", 0},
    {"VirtualLsiLogicController", "scsi", "lsilogic", 0},
    {"VirtualBusLogicController", "scsi", "buslogic", 0},
    {"VirtualSCSIController", "scsi", "lsilogic", 0},
    {"VirtualNVMEController", "nvme", "nvme", 1},
    {"VirtualAHCIController", "sata", "ahci", 2},
    {"VirtualSATAController", "sata", "ahci", 2},
    {"VirtualIDEController", "ide", "ide", 3},
};

static const struct {
    const char *xsi_type;
    const char *model;
} nic_models[] = {
    {"VirtualVmxnet3", "vmxnet3"}, {"VirtualVmxnet3Vrdma", "vmxnet3"},
    {"VirtualE1000e", "e1000e"},   {"VirtualE1000", "e1000"},
    {"VirtualVmxnet2", "vmxnet2"}, {"VirtualVmxnet", "vmxnet"},
    {"VirtualPCNet32", "pcnet32"}, {"VirtualSriovEthernetCard", "sriov"},
};

/* ---- controllers ---- */

/* The device element with this key, NULL if there is none. */
static const xmlNode *device_by_key(const xmlNode *devices, const char *key)
{
    for (const xmlNode *node = soap_child(devices, "VirtualDevice"); node != NULL;
         node = soap_next(node)) {
        if (strcmp(soap_text(node, "key"), key) == 0)
            return node;
    }
    return NULL;
}

static const struct controller_kind *controller_kind_of(const xmlNode *controller)
{
    char type[TYPE_BYTES_MAX];

    soap_xsi_type(controller, type, sizeof type);
    for (size_t i = 0; i < ARRAY_LEN(controller_kinds); i++) {
        if (strcmp(controller_kinds[i].xsi_type, type) == 0)
            return &controller_kinds[i];
    }
    return NULL;
}

const char *devices_controller_type(const struct vm_disk *disk)
{
    for (size_t i = 0; i < ARRAY_LEN(controller_kinds); i++) {
        if (strcmp(controller_kinds[i].type, disk->controller_type) == 0 &&
            strcmp(controller_kinds[i].model, disk->controller_model) == 0)
            return controller_kinds[i].xsi_type;
    }
    return "";
}

/* ---- disks ---- */

/* The backing's kind in one word, by its type: VirtualDiskFlatVer2BackingInfo is "flat". */
static const char *backing_format(const char *type)
{
    static const struct {
        const char *type;
        const char *format;
    } formats[] = {
        {"VirtualDiskFlatVer2BackingInfo", "flat"},
        {"VirtualDiskFlatVer1BackingInfo", "flat1"},
        {"VirtualDiskSparseVer1BackingInfo", "sparse"},
        {"VirtualDiskSparseVer2BackingInfo", "sparse"},
        {"VirtualDiskSeSparseBackingInfo", "sesparse"},
        {"VirtualDiskRawDiskMappingVer1BackingInfo", "rdm"},
        {"VirtualDiskRawDiskVer2BackingInfo", "rawdisk"},
        {"VirtualDiskPartitionedRawDiskVer2BackingInfo", "rawdisk"},
        {"VirtualDiskLocalPMemBackingInfo", "pmem"},
    };

    for (size_t i = 0; i < ARRAY_LEN(formats); i++) {
        if (strcmp(formats[i].type, type) == 0)
            return formats[i].format;
    }
    return "unknown";
}

/* Reasons that hold whatever the VM is doing. */
static void set_skip_reason(const xmlNode *backing, bool encrypted, struct vm_disk *disk)
{
    const char *format = disk->format;

    if (strcmp(format, "rdm") == 0 &&
        strcmp(soap_text(backing, "compatibilityMode"), "physicalMode") == 0) {
        vm_set_text(&disk->skip_reason,
                    "physical-mode RDM: its bytes are on a LUN outside vSphere");
    } else if (strcmp(format, "rdm") == 0 || strcmp(format, "rawdisk") == 0) {
        vm_set_text(&disk->skip_reason,
                    "raw device mapping: its bytes are on a LUN, not in a file");
    } else if (strcmp(soap_text(backing, "sharing"), "sharingMultiWriter") == 0) {
        vm_set_text(&disk->skip_reason, "shared (multi-writer): other VMs may write to it");
    } else if (encrypted || soap_child(backing, "keyId") != NULL) {
        vm_set_text(&disk->skip_reason, "encrypted: its file holds no readable data");
    } else if (strcmp(format, "flat") != 0) {
        free(disk->skip_reason);
        disk->skip_reason = xasprintf("%s disk: there is no flat file to read", format);
    }
}

static bool capacity_read(const xmlNode *device, uint64_t *out)
{
    uint64_t bytes = soap_u64(device, "capacityInBytes", 0);
    uint64_t kib = soap_u64(device, "capacityInKB", 0);

    if (bytes == 0 && !checked_mul_u64(kib, KIB, &bytes))
        return false;
    *out = bytes;
    return bytes != 0 && bytes <= DISK_BYTES_MAX;
}

static int disk_read_device(const xmlNode *devices, const xmlNode *device, bool encrypted,
                            struct vm_disk *disk, struct disk_backing *facts, struct error *err)
{
    const xmlNode *controller = device_by_key(devices, soap_text(device, "controllerKey"));
    const xmlNode *backing = soap_child(device, "backing");
    const struct controller_kind *kind = controller_kind_of(controller);
    char type[TYPE_BYTES_MAX];

    soap_xsi_type(backing, type, sizeof type);
    vm_set_text(&disk->id, soap_text(device, "key"));
    vm_set_text(&disk->label, soap_text(soap_child(device, "deviceInfo"), "label"));
    if (disk->label[0] == '\0') {
        free(disk->label);
        disk->label = xasprintf("disk %s", disk->id);
    }
    vm_set_text(&disk->source_path, soap_text(backing, "fileName"));
    if (disk->source_path[0] == '\0')
        vm_set_text(&disk->source_path, soap_text(backing, "descriptorFileName"));
    vm_set_text(&disk->format, backing_format(type));
    vm_set_text(&disk->change_id, soap_text(backing, "changeId"));
    vm_set_text(&disk->controller_type, kind == NULL ? "" : kind->type);
    vm_set_text(&disk->controller_model, kind == NULL ? "" : kind->model);
    disk->controller_bus = (uint32_t)min_u64(soap_u64(controller, "busNumber", 0), UINT32_MAX);
    disk->unit = (uint32_t)min_u64(soap_u64(device, "unitNumber", 0), UINT32_MAX);
    disk->thin = soap_bool(backing, "thinProvisioned");
    facts->has_parent = soap_child(backing, "parent") != NULL;
    facts->independent = strncmp(soap_text(backing, "diskMode"), "independent", 11) == 0;
    set_skip_reason(backing, encrypted, disk);
    if (disk->id[0] == '\0')
        return error_set(err, ERR_PROTOCOL, "a disk of the VM has no key");
    if (!capacity_read(device, &disk->capacity_bytes)) {
        return error_set(err, ERR_PROTOCOL, "disk '%.64s' (key %.16s) has no sane capacity",
                         disk->label, disk->id);
    }
    return 0;
}

/* ---- boot order ---- */

struct disk_order {
    unsigned int listed; /* place in the VM's own boot order */
    unsigned int rank;
};

static unsigned int boot_place(const xmlNode *boot_options, const char *key)
{
    unsigned int place = 0;

    for (const xmlNode *item = soap_child(boot_options, "bootOrder"); item != NULL;
         item = soap_next(item)) {
        if (strcmp(soap_text(item, "deviceKey"), key) == 0)
            return place;
        place++;
    }
    return UINT32_MAX;
}

static unsigned int disk_rank(const struct vm_disk *disk)
{
    for (size_t i = 0; i < ARRAY_LEN(controller_kinds); i++) {
        if (strcmp(controller_kinds[i].type, disk->controller_type) == 0)
            return controller_kinds[i].boot_rank;
    }
    return UINT32_MAX;
}

static bool boots_before(const struct vm_disk *a, const struct disk_order *order_a,
                         const struct vm_disk *b, const struct disk_order *order_b)
{
    if (order_a->listed != order_b->listed)
        return order_a->listed < order_b->listed;
    if (order_a->rank != order_b->rank)
        return order_a->rank < order_b->rank;
    if (a->controller_bus != b->controller_bus)
        return a->controller_bus < b->controller_bus;
    return a->unit < b->unit;
}

/* Insertion sort: at most VM_DISKS_MAX disks, and disks and backings move together. */
static void sort_disks(struct vm *vm, struct disk_backing *backings, const xmlNode *boot_options)
{
    struct disk_order order[VM_DISKS_MAX];

    for (size_t i = 0; i < vm->disk_count; i++) {
        struct vm_disk disk = vm->disks[i];
        struct disk_backing backing = backings[i];
        struct disk_order mine = {boot_place(boot_options, disk.id), disk_rank(&disk)};
        size_t at = i;

        while (at > 0 && boots_before(&disk, &mine, &vm->disks[at - 1], &order[at - 1])) {
            vm->disks[at] = vm->disks[at - 1];
            backings[at] = backings[at - 1];
            order[at] = order[at - 1];
            at--;
        }
        vm->disks[at] = disk;
        backings[at] = backing;
        order[at] = mine;
    }
}

/* ---- network cards ---- */

static char *nic_model(const char *xsi_type)
{
    char *model;

    for (size_t i = 0; i < ARRAY_LEN(nic_models); i++) {
        if (strcmp(nic_models[i].xsi_type, xsi_type) == 0)
            return xstrdup(nic_models[i].model);
    }
    model = xstrdup(strncmp(xsi_type, "Virtual", 7) == 0 ? xsi_type + 7 : xsi_type);
    for (char *p = model; *p != '\0'; p++)
        *p = (char)tolower((unsigned char)*p);
    return model;
}

static char *nic_network(const xmlNode *backing, network_name_fn *network_name, const void *arg)
{
    const char *key = soap_text(soap_child(backing, "port"), "portgroupKey");
    const char *name;

    if (key[0] == '\0')
        key = soap_text(backing, "opaqueNetworkId");
    if (key[0] == '\0')
        key = soap_text(backing, "network");
    name = key[0] == '\0' || network_name == NULL ? NULL : network_name(arg, key);
    if (name != NULL)
        return xstrdup(name);
    name = soap_text(backing, "deviceName");
    return xstrdup(name[0] == '\0' ? key : name);
}

static void nic_read_device(const xmlNode *device, const char *xsi_type,
                            network_name_fn *network_name, const void *arg, struct vm_nic *nic)
{
    vm_set_text(&nic->id, soap_text(device, "key"));
    vm_set_text(&nic->mac, soap_text(device, "macAddress"));
    for (char *p = nic->mac; *p != '\0'; p++)
        *p = (char)(*p == '-' ? ':' : tolower((unsigned char)*p));
    free(nic->network);
    nic->network = nic_network(soap_child(device, "backing"), network_name, arg);
    free(nic->model);
    nic->model = nic_model(xsi_type);
}

/* ---- all of them ---- */

int devices_read(const xmlNode *object, network_name_fn *network_name, const void *arg,
                 struct vm *vm, struct disk_backing backings[VM_DISKS_MAX], struct error *err)
{
    const xmlNode *devices = property_value(object, "config.hardware.device");
    const bool encrypted = property_value(object, "config.keyId") != NULL;
    size_t count = 0;

    assert(vm->disk_count == 0 && vm->nic_count == 0);
    for (const xmlNode *node = soap_child(devices, "VirtualDevice"); node != NULL;
         node = soap_next(node)) {
        char type[TYPE_BYTES_MAX];

        if (++count > DEVICES_MAX)
            return error_set(err, ERR_LIMIT, "the VM has more than %d devices", DEVICES_MAX);
        soap_xsi_type(node, type, sizeof type);
        if (strcmp(type, "VirtualDisk") == 0) {
            if (vm->disk_count == VM_DISKS_MAX)
                return error_set(err, ERR_LIMIT, "the VM has more than %d disks", VM_DISKS_MAX);
            struct disk_backing *backing = &backings[vm->disk_count];
            if (disk_read_device(devices, node, encrypted, vm_add_disk(vm), backing, err) < 0)
                return -1;
        } else if (strcmp(type, "VirtualTPM") == 0) {
            vm->tpm = true;
        } else if (soap_child(node, "macAddress") != NULL) {
            if (vm->nic_count == VM_NICS_MAX) {
                return error_set(err, ERR_LIMIT, "the VM has more than %d network cards",
                                 VM_NICS_MAX);
            }
            nic_read_device(node, type, network_name, arg, vm_add_nic(vm));
        }
    }
    sort_disks(vm, backings, property_value(object, "config.bootOptions"));
    return 0;
}
