/* Writing of OVF descriptors; see ovf.h.
 *
 * Design notes
 * - Children of an Item stand in alphabetical order: the 1.x schema is a sequence, strict importers
 *   refuse anything else.
 * - InstanceIDs are counted: 1 processor, 2 memory, then controllers, disks, NICs. Only controllers
 *   that carry an exported disk are written. */
#include <inttypes.h>
#include <string.h>

#include "common/json.h"
#include "common/strbuf.h"
#include "services/exporter/formats/guest_os.h"
#include "services/exporter/formats/mf.h"
#include "services/exporter/formats/ovf.h"

#define NS_OVF     "http://schemas.dmtf.org/ovf/envelope/1"
#define NS_CIM     "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
#define NS_VMW     "http://www.vmware.com/schema/ovf"
#define NS_XSI     "http://www.w3.org/2001/XMLSchema-instance"
#define FORMAT_URI "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
/* For sources without a VMware hardware version: the first that knows SATA, NVMe and UEFI. */
#define SYSTEM_TYPE_DEFAULT "vmx-13"
#define UNITS_MAX           64 /* units of one controller that are told apart */
#define NIC_ADDRESS_FIRST   7 /* PCI slots below are taken by the chipset, as VMware numbers them */

struct controller {
    const char *type; /* scsi, sata, nvme, ide */
    const char *model;
    uint32_t bus;
    uint32_t instance;
    uint64_t units_used; /* bit per unit */
};

struct writer {
    struct strbuf sb;
    const struct vm *vm;
    const struct ovf_disk *disks;
    size_t disk_count;
    struct controller controllers[VM_DISKS_MAX];
    size_t controller_count;
    size_t disk_controller[VM_DISKS_MAX];
    uint32_t disk_unit[VM_DISKS_MAX];
};

/* Text of a provider may be no UTF-8; XML must be. */
static void add_text(struct strbuf *sb, const char *text)
{
    json_t *holder = json_object();

    json_set_text(holder, "t", text);
    strbuf_add_xml(sb, json_str(holder, "t"));
    json_decref(holder);
}

/* <rasd:name>text</rasd:name> */
static void add_element(struct strbuf *sb, const char *name, const char *text)
{
    strbuf_addf(sb, "        <rasd:%s>", name);
    add_text(sb, text);
    strbuf_addf(sb, "</rasd:%s>\n", name);
}

static void add_number(struct strbuf *sb, const char *name, uint64_t value)
{
    strbuf_addf(sb, "        <rasd:%s>%" PRIu64 "</rasd:%s>\n", name, value, name);
}

static void item_begin(struct strbuf *sb)
{
    strbuf_add(sb, "      <Item>\n");
}

static void item_end(struct strbuf *sb)
{
    strbuf_add(sb, "      </Item>\n");
}

static const struct vm_disk *vm_disk_of(const struct writer *w, size_t i)
{
    return &w->vm->disks[w->disks[i].vm_disk_index];
}

/* The four kinds that OVF has words for; anything else (virtio ...) becomes SCSI. */
static const char *controller_type(const struct vm_disk *disk)
{
    static const char *const known[] = {"sata", "nvme", "ide"};

    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        if (strcmp(disk->controller_type, known[i]) == 0)
            return known[i];
    }
    return "scsi";
}

static size_t controller_of(struct writer *w, const struct vm_disk *disk)
{
    const char *type = controller_type(disk);

    for (size_t i = 0; i < w->controller_count; i++) {
        if (w->controllers[i].type == type && w->controllers[i].bus == disk->controller_bus)
            return i;
    }
    w->controllers[w->controller_count] = (struct controller){
        .type = type, .model = disk->controller_model, .bus = disk->controller_bus};
    return w->controller_count++;
}

/* The disk's own unit, or the next free one where a provider gives the same twice. */
static int take_unit(struct controller *c, uint32_t wanted, uint32_t *out, struct error *err)
{
    if (wanted < UNITS_MAX && (c->units_used >> wanted & 1) == 0) {
        *out = wanted;
        c->units_used |= UINT64_C(1) << wanted;
        return 0;
    }
    for (uint32_t unit = 0; unit < UNITS_MAX; unit++) {
        if ((c->units_used >> unit & 1) == 0) {
            *out = unit;
            c->units_used |= UINT64_C(1) << unit;
            return 0;
        }
    }
    return error_set(err, ERR_LIMIT, "more than %d disks on %s controller %" PRIu32, UNITS_MAX,
                     c->type, c->bus);
}

static int place_disks(struct writer *w, struct error *err)
{
    for (size_t i = 0; i < w->disk_count; i++) {
        const struct ovf_disk *disk = &w->disks[i];
        if (!file_name_is_plain(disk->file_name))
            return error_set(err, ERR_INVALID, "'%.255s' is no plain file name", disk->file_name);
        if (disk->vm_disk_index >= w->vm->disk_count) {
            return error_set(err, ERR_INVALID, "'%.255s' is disk %zu of a VM with %zu disks",
                             disk->file_name, disk->vm_disk_index, w->vm->disk_count);
        }
        w->disk_controller[i] = controller_of(w, vm_disk_of(w, i));
        if (take_unit(&w->controllers[w->disk_controller[i]], vm_disk_of(w, i)->unit,
                      &w->disk_unit[i], err) < 0)
            return -1;
    }
    return 0;
}

static void add_references(struct writer *w)
{
    strbuf_add(&w->sb, "  <References>\n");
    for (size_t i = 0; i < w->disk_count; i++) {
        strbuf_add(&w->sb, "    <File ovf:href=\"");
        add_text(&w->sb, w->disks[i].file_name);
        strbuf_addf(&w->sb, "\" ovf:id=\"file%zu\" ovf:size=\"%" PRIu64 "\"/>\n", i + 1,
                    w->disks[i].file_bytes);
    }
    strbuf_add(&w->sb, "  </References>\n");
}

static void add_disk_section(struct writer *w)
{
    strbuf_add(&w->sb, "  <DiskSection>\n    <Info>Virtual disks</Info>\n");
    for (size_t i = 0; i < w->disk_count; i++) {
        strbuf_addf(&w->sb,
                    "    <Disk ovf:capacity=\"%" PRIu64
                    "\" ovf:capacityAllocationUnits=\"byte\" ovf:diskId=\"vmdisk%zu\""
                    " ovf:fileRef=\"file%zu\" ovf:format=\"" FORMAT_URI "\"",
                    w->disks[i].capacity_bytes, i + 1, i + 1);
        if (w->disks[i].populated_bytes > 0)
            strbuf_addf(&w->sb, " ovf:populatedSize=\"%" PRIu64 "\"", w->disks[i].populated_bytes);
        strbuf_add(&w->sb, "/>\n");
    }
    strbuf_add(&w->sb, "  </DiskSection>\n");
}

static bool network_is_new(const struct vm *vm, size_t index)
{
    if (vm->nics[index].network[0] == '\0')
        return false;
    for (size_t i = 0; i < index; i++) {
        if (strcmp(vm->nics[i].network, vm->nics[index].network) == 0)
            return false;
    }
    return true;
}

static void add_network_section(struct writer *w)
{
    strbuf_add(&w->sb, "  <NetworkSection>\n    <Info>Logical networks</Info>\n");
    for (size_t i = 0; i < w->vm->nic_count; i++) {
        if (!network_is_new(w->vm, i))
            continue;
        strbuf_add(&w->sb, "    <Network ovf:name=\"");
        add_text(&w->sb, w->vm->nics[i].network);
        strbuf_add(&w->sb, "\">\n      <Description>");
        add_text(&w->sb, w->vm->nics[i].network);
        strbuf_add(&w->sb, "</Description>\n    </Network>\n");
    }
    strbuf_add(&w->sb, "  </NetworkSection>\n");
}

static void add_operating_system(struct writer *w)
{
    strbuf_addf(&w->sb, "    <OperatingSystemSection ovf:id=\"%u\"",
                guest_os_cim_type(w->vm->guest_id));
    if (w->vm->guest_id[0] != '\0') {
        strbuf_add(&w->sb, " vmw:osType=\"");
        add_text(&w->sb, w->vm->guest_id);
        strbuf_addc(&w->sb, '"');
    }
    strbuf_add(&w->sb, ">\n      <Info>The operating system installed</Info>\n");
    if (w->vm->guest_os[0] != '\0') {
        strbuf_add(&w->sb, "      <Description>");
        add_text(&w->sb, w->vm->guest_os);
        strbuf_add(&w->sb, "</Description>\n");
    }
    strbuf_add(&w->sb, "    </OperatingSystemSection>\n");
}

static void add_system(struct writer *w)
{
    bool vmware = strncmp(w->vm->hardware_version, "vmx-", 4) == 0;

    strbuf_add(&w->sb, "      <System>\n"
                       "        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n"
                       "        <vssd:InstanceID>0</vssd:InstanceID>\n"
                       "        <vssd:VirtualSystemIdentifier>");
    add_text(&w->sb, w->vm->name);
    strbuf_add(&w->sb, "</vssd:VirtualSystemIdentifier>\n        <vssd:VirtualSystemType>");
    add_text(&w->sb, vmware ? w->vm->hardware_version : SYSTEM_TYPE_DEFAULT);
    strbuf_add(&w->sb, "</vssd:VirtualSystemType>\n      </System>\n");
}

static void add_cpu_and_memory(struct writer *w)
{
    auto_strbuf name;

    strbuf_init(&name, 128);
    item_begin(&w->sb);
    add_element(&w->sb, "AllocationUnits", "hertz * 10^6");
    add_element(&w->sb, "Description", "Number of virtual CPUs");
    strbuf_addf(&name, "%" PRIu32 " virtual CPU(s)", w->vm->num_cpu);
    add_element(&w->sb, "ElementName", name.data);
    add_number(&w->sb, "InstanceID", 1);
    add_number(&w->sb, "ResourceType", 3);
    add_number(&w->sb, "VirtualQuantity", w->vm->num_cpu);
    if (w->vm->cores_per_socket > 0) {
        strbuf_addf(&w->sb,
                    "        <vmw:CoresPerSocket ovf:required=\"false\">%" PRIu32
                    "</vmw:CoresPerSocket>\n",
                    w->vm->cores_per_socket);
    }
    item_end(&w->sb);
    item_begin(&w->sb);
    add_element(&w->sb, "AllocationUnits", "byte * 2^20");
    add_element(&w->sb, "Description", "Memory size");
    strbuf_reset(&name);
    strbuf_addf(&name, "%" PRIu64 " MB of memory", w->vm->memory_mb);
    add_element(&w->sb, "ElementName", name.data);
    add_number(&w->sb, "InstanceID", 2);
    add_number(&w->sb, "ResourceType", 4);
    add_number(&w->sb, "VirtualQuantity", w->vm->memory_mb);
    item_end(&w->sb);
}

static const char *scsi_sub_type(const char *model)
{
    static const char *const names[][2] = {{"pvscsi", "VirtualSCSI"},
                                           {"lsilogic", "lsilogic"},
                                           {"lsisas1068", "lsilogicsas"},
                                           {"buslogic", "buslogic"}};

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(model, names[i][0]) == 0)
            return names[i][1];
    }
    return "lsilogic"; /* every importer has it */
}

static void add_controller(struct writer *w, const struct controller *c)
{
    const char *sub_type = scsi_sub_type(c->model);
    const char *description = "SCSI controller";
    unsigned int resource_type = 6;
    auto_strbuf name;

    if (strcmp(c->type, "sata") == 0) {
        sub_type = "vmware.sata.ahci";
        description = "SATA controller";
        resource_type = 20;
    } else if (strcmp(c->type, "nvme") == 0) {
        sub_type = "vmware.nvme.controller";
        description = "NVMe controller";
        resource_type = 20;
    } else if (strcmp(c->type, "ide") == 0) {
        sub_type = NULL;
        description = "IDE controller";
        resource_type = 5;
    }
    strbuf_init(&name, 64);
    strbuf_addf(&name, "%s %" PRIu32, description, c->bus);
    item_begin(&w->sb);
    add_number(&w->sb, "Address", c->bus);
    add_element(&w->sb, "Description", description);
    add_element(&w->sb, "ElementName", name.data);
    add_number(&w->sb, "InstanceID", c->instance);
    if (sub_type != NULL)
        add_element(&w->sb, "ResourceSubType", sub_type);
    add_number(&w->sb, "ResourceType", resource_type);
    item_end(&w->sb);
}

static void add_disk(struct writer *w, size_t i, uint32_t instance)
{
    const struct vm_disk *disk = vm_disk_of(w, i);
    auto_strbuf text;

    strbuf_init(&text, 64);
    item_begin(&w->sb);
    add_number(&w->sb, "AddressOnParent", w->disk_unit[i]);
    strbuf_addf(&text, "Hard disk %zu", i + 1);
    add_element(&w->sb, "ElementName", disk->label[0] != '\0' ? disk->label : text.data);
    strbuf_reset(&text);
    strbuf_addf(&text, "ovf:/disk/vmdisk%zu", i + 1);
    add_element(&w->sb, "HostResource", text.data);
    add_number(&w->sb, "InstanceID", instance);
    add_number(&w->sb, "Parent", w->controllers[w->disk_controller[i]].instance);
    add_number(&w->sb, "ResourceType", 17);
    item_end(&w->sb);
}

static const char *nic_sub_type(const char *model)
{
    static const char *const names[][2] = {
        {"vmxnet3", "VmxNet3"}, {"vmxnet2", "VmxNet2"}, {"e1000", "E1000"},
        {"e1000e", "E1000e"},   {"pcnet32", "PCNet32"},
    };

    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(model, names[i][0]) == 0)
            return names[i][1];
    }
    return "E1000"; /* every importer and every guest has it */
}

static void add_nic(struct writer *w, size_t i, uint32_t instance)
{
    const struct vm_nic *nic = &w->vm->nics[i];
    auto_strbuf name;

    strbuf_init(&name, 64);
    strbuf_addf(&name, "Network adapter %zu", i + 1);
    item_begin(&w->sb);
    if (nic->mac[0] != '\0')
        add_element(&w->sb, "Address", nic->mac);
    add_number(&w->sb, "AddressOnParent", NIC_ADDRESS_FIRST + i);
    add_element(&w->sb, "AutomaticAllocation", "true");
    if (nic->network[0] != '\0')
        add_element(&w->sb, "Connection", nic->network);
    add_element(&w->sb, "ElementName", name.data);
    add_number(&w->sb, "InstanceID", instance);
    add_element(&w->sb, "ResourceSubType", nic_sub_type(nic->model));
    add_number(&w->sb, "ResourceType", 10);
    item_end(&w->sb);
}

static void add_config(struct strbuf *sb, const char *key, const char *value)
{
    strbuf_addf(sb, "      <vmw:Config ovf:required=\"false\" vmw:key=\"%s\" vmw:value=\"%s\"/>\n",
                key, value);
}

static void add_hardware(struct writer *w)
{
    uint32_t instance = 3;

    strbuf_add(&w->sb, "    <VirtualHardwareSection>\n"
                       "      <Info>Virtual hardware requirements</Info>\n");
    add_system(w);
    add_cpu_and_memory(w);
    for (size_t i = 0; i < w->controller_count; i++) {
        w->controllers[i].instance = instance++;
        add_controller(w, &w->controllers[i]);
    }
    for (size_t i = 0; i < w->disk_count; i++)
        add_disk(w, i, instance++);
    for (size_t i = 0; i < w->vm->nic_count; i++)
        add_nic(w, i, instance++);
    if (w->vm->firmware != VM_FIRMWARE_UNKNOWN)
        add_config(&w->sb, "firmware", w->vm->firmware == VM_FIRMWARE_UEFI ? "efi" : "bios");
    if (w->vm->firmware == VM_FIRMWARE_UEFI) {
        add_config(&w->sb, "bootOptions.efiSecureBootEnabled",
                   w->vm->secure_boot ? "true" : "false");
    }
    strbuf_add(&w->sb, "    </VirtualHardwareSection>\n");
}

static void add_envelope(struct writer *w)
{
    strbuf_add(&w->sb, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                       "<Envelope xmlns=\"" NS_OVF "\" xmlns:ovf=\"" NS_OVF "\"\n"
                       "    xmlns:rasd=\"" NS_CIM "CIM_ResourceAllocationSettingData\"\n"
                       "    xmlns:vssd=\"" NS_CIM "CIM_VirtualSystemSettingData\"\n"
                       "    xmlns:vmw=\"" NS_VMW "\" xmlns:xsi=\"" NS_XSI "\">\n");
    add_references(w);
    add_disk_section(w);
    for (size_t i = 0; i < w->vm->nic_count; i++) {
        if (w->vm->nics[i].network[0] != '\0') {
            add_network_section(w);
            break;
        }
    }
    strbuf_add(&w->sb, "  <VirtualSystem ovf:id=\"");
    add_text(&w->sb, w->vm->name);
    strbuf_add(&w->sb, "\">\n    <Info>A virtual machine</Info>\n    <Name>");
    add_text(&w->sb, w->vm->name);
    strbuf_add(&w->sb, "</Name>\n");
    add_operating_system(w);
    add_hardware(w);
    strbuf_add(&w->sb, "  </VirtualSystem>\n</Envelope>\n");
}

int ovf_write(const struct vm *vm, const struct ovf_disk *disks, size_t disk_count, char **out,
              struct error *err)
{
    struct writer w = {.vm = vm, .disks = disks, .disk_count = disk_count};
    int result;

    if (disk_count == 0 || disk_count > VM_DISKS_MAX) {
        return error_set(err, ERR_INVALID, "a descriptor of %zu disks, expected 1 to %d",
                         disk_count, VM_DISKS_MAX);
    }
    if (place_disks(&w, err) < 0)
        return -1;
    strbuf_init(&w.sb, OVF_BYTES_MAX);
    add_envelope(&w);
    result = strbuf_finish(&w.sb, out, err);
    strbuf_release(&w.sb);
    return result;
}
