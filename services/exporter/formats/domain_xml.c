/* See domain_xml.h.
 *
 * Design notes
 * - A guest that nobody fixed boots only with a driver it already loads at boot. So it gets the
 *   kind of controller it had (VMware paravirtual SCSI, LSI, AHCI, IDE all exist in QEMU), not the
 *   fastest one; virtio is for fixed guests. What QEMU or the machine lacks (NVMe, BusLogic, IDE on
 *   q35) becomes SATA: AHCI is in the initramfs of every distribution kernel and in Windows.
 * - The firmware must read the boot disk as well. Builds of OVMF, Debian's among them, have no
 * driver for VMware's and LSI's controllers, so under UEFI it goes to SATA; the others stay.
 * - Machine: pc for BIOS (closest to VMware's chipset), q35 for UEFI, which libvirt's firmware
 *   selection wants. No PCI addresses: libvirt assigns them.
 * - SCSI addresses are explicit, for libvirt's automatic ones put everything on target 0, which
 *   only lsilogic understands as it is meant. */
#include "services/exporter/formats/domain_xml.h"

#include <inttypes.h>
#include <string.h>

#include "common/json.h"
#include "common/strbuf.h"
#include "services/exporter/formats/manifest.h"

#define HINT_ABSENT     999 /* as hyper2kvm reads a missing boot_order_hint */
#define MEMORY_MB_MIN   1
#define IDE_DISKS_MAX   4
#define SATA_PORTS      6
#define CONTROLLERS_MAX DOMAIN_DISKS_MAX
#define NAME_BYTES_MAX  200

enum bus { BUS_VIRTIO, BUS_SCSI, BUS_SATA, BUS_IDE };

struct scsi_model {
    const char *source; /* controller_model in the manifest */
    const char *libvirt;
    unsigned int targets; /* devices that QEMU's emulation takes */
};

static const struct scsi_model scsi_models[] = {
    {"pvscsi", "vmpvscsi", 15},
    {"lsilogic", "lsilogic", 7},
    {"lsisas1068", "lsisas1068", 8},
};

struct scsi_controller {
    const struct scsi_model *model;
    unsigned int used;
};

struct builder {
    struct strbuf sb;
    const json_t *manifest;
    const struct domain_options *options;
    json_t *warnings;
    bool uefi;
    struct scsi_controller controllers[CONTROLLERS_MAX];
    size_t controller_count;
    unsigned int counts[BUS_IDE + 1]; /* disks per bus */
};

static void warn(struct builder *b, const char *text)
{
    json_t *holder;

    if (b->warnings == NULL)
        return;
    holder = json_object(); /* json_set_text repairs a name that was cut inside a character */
    json_set_text(holder, "t", text);
    if (json_array_append(b->warnings, json_object_get(holder, "t")) < 0)
        abort(); /* out of memory */
    json_decref(holder);
}

static const json_t *vm_of(const struct builder *b)
{
    return json_object_get(b->manifest, "vm");
}

static bool is_true(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

char *domain_xml_name(const json_t *manifest, const char *wanted)
{
    const char *name = wanted;
    char *copy;

    if (name == NULL || name[0] == '\0')
        name = json_str(json_object_get(manifest, "source"), "vm_name");
    copy = utf8_clean(name, NAME_BYTES_MAX);
    for (char *p = copy; *p != '\0'; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f || *p == '/')
            *p = '_';
    }
    if (copy[strspn(copy, " ")] != '\0')
        return copy;
    free(copy); /* libvirt wants more than spaces */
    return xstrdup("vm");
}

static bool is_kvm(const struct builder *b)
{
    return b->options->type == NULL || strcmp(b->options->type, "kvm") == 0;
}

static bool is_windows(const struct builder *b)
{
    return strcmp(json_str(vm_of(b), "os_hint"), "windows") == 0;
}

bool domain_xml_is_uuid(const char *text)
{
    uint8_t raw[16];
    char hex[33];
    size_t n = 0;

    for (const char *p = text; *p != '\0'; p++) {
        if (*p == '-')
            continue;
        if (n == 32)
            return false;
        hex[n++] = *p;
    }
    hex[n] = '\0';
    return hex_decode(hex, raw, sizeof raw);
}

static int add_identity(struct builder *b, struct error *err)
{
    autofree char *name = domain_xml_name(b->manifest, b->options->name);
    const char *uuid = b->options->uuid;

    strbuf_add(&b->sb, "  <name>");
    strbuf_add_xml(&b->sb, name);
    strbuf_add(&b->sb, "</name>\n");
    if (uuid != NULL && uuid[0] != '\0' && !domain_xml_is_uuid(uuid))
        return error_set(err, ERR_INVALID, "'%.64s' is not a UUID", uuid);
    if (uuid == NULL) /* the source's: licences and cloud-init hang on it */
        uuid = json_str(vm_of(b), "uuid");
    if (domain_xml_is_uuid(uuid))
        strbuf_addf(&b->sb, "  <uuid>%s</uuid>\n", uuid);
    return 0;
}

/* How we know our own domains again, and people where they came from. */
static void add_origin(struct builder *b)
{
    const struct domain_origin *origin = b->options->origin;
    const struct {
        const char *name, *value;
    } attributes[] = {
        {"job", origin->job_id},  {"export", origin->export_path}, {"provider", origin->provider},
        {"vm-id", origin->vm_id}, {"vm-name", origin->vm_name},
    };

    strbuf_add(&b->sb, "  <metadata>\n    <hypersdk:import xmlns:hypersdk='" DOMAIN_ORIGIN_URI "'");
    for (size_t i = 0; i < ARRAY_LEN(attributes); i++) {
        strbuf_addf(&b->sb, "\n      %s='", attributes[i].name);
        strbuf_add_xml(&b->sb, attributes[i].value);
        strbuf_addc(&b->sb, '\'');
    }
    strbuf_add(&b->sb, "/>\n  </metadata>\n");
}

static int add_size(struct builder *b, struct error *err)
{
    uint64_t cpu = json_u64(vm_of(b), "cpu");
    uint64_t cores = json_u64(vm_of(b), "cores_per_socket");
    uint64_t memory_mb = json_u64(vm_of(b), "memory_mb");
    uint64_t memory_kib = 0;

    if (memory_mb == 0 && !checked_mul_u64(json_u64(vm_of(b), "mem_gb"), 1024, &memory_mb))
        memory_mb = UINT64_MAX;
    if (memory_mb < MEMORY_MB_MIN || cpu == 0) {
        return error_set(err, ERR_INVALID,
                         "the manifest does not say how much memory and how many CPUs the VM has");
    }
    if (!checked_mul_u64(memory_mb, 1024, &memory_kib))
        return error_set(err, ERR_INVALID, "vm.memory_mb is out of range");
    strbuf_addf(&b->sb, "  <memory unit='KiB'>%" PRIu64 "</memory>\n", memory_kib);
    strbuf_addf(&b->sb, "  <vcpu>%" PRIu64 "</vcpu>\n", cpu);
    strbuf_addf(&b->sb, "  <cpu mode='%s'>\n", is_kvm(b) ? "host-passthrough" : "maximum");
    if (cores > 1 && cpu % cores == 0) {
        strbuf_addf(&b->sb,
                    "    <topology sockets='%" PRIu64 "' cores='%" PRIu64 "' threads='1'/>\n",
                    cpu / cores, cores);
    }
    strbuf_add(&b->sb, "  </cpu>\n");
    return 0;
}

static void add_firmware(struct builder *b)
{
    bool secure = b->uefi && is_true(vm_of(b), "secureboot");

    if (!b->uefi) {
        strbuf_add(&b->sb, "  <os>\n    <type arch='x86_64' machine='pc'>hvm</type>\n  </os>\n");
    } else {
        strbuf_add(&b->sb, "  <os firmware='efi'>\n"
                           "    <type arch='x86_64' machine='q35'>hvm</type>\n    <firmware>\n");
        strbuf_addf(&b->sb, "      <feature enabled='%s' name='secure-boot'/>\n",
                    secure ? "yes" : "no");
        if (secure)
            strbuf_add(&b->sb, "      <feature enabled='yes' name='enrolled-keys'/>\n");
        strbuf_add(&b->sb, "    </firmware>\n");
        if (secure)
            strbuf_add(&b->sb, "    <loader secure='yes'/>\n");
        strbuf_add(&b->sb, "  </os>\n");
        warn(b, "UEFI boot entries of the source are not carried over: the guest starts from "
                "\\EFI\\BOOT\\BOOTX64.EFI, or needs a new boot entry");
    }
    strbuf_add(&b->sb, "  <features>\n    <acpi/>\n    <apic/>\n");
    if (is_windows(b) && is_kvm(b)) { /* what Windows would do slowly, or wait for in vain */
        strbuf_add(&b->sb, "    <hyperv>\n      <relaxed state='on'/>\n      <vapic state='on'/>\n"
                           "      <spinlocks state='on' retries='8191'/>\n    </hyperv>\n");
    }
    if (secure)
        strbuf_add(&b->sb, "    <smm state='on'/>\n");
    strbuf_add(&b->sb, "  </features>\n");
}

/* Windows keeps local time in the clock, everything else UTC. Lost ticks are made up for. */
static void add_clock(struct builder *b)
{
    strbuf_addf(&b->sb, "  <clock offset='%s'>\n", is_windows(b) ? "localtime" : "utc");
    strbuf_add(&b->sb, "    <timer name='rtc' tickpolicy='catchup'/>\n"
                       "    <timer name='pit' tickpolicy='delay'/>\n"
                       "    <timer name='hpet' present='no'/>\n");
    if (is_windows(b) && is_kvm(b))
        strbuf_add(&b->sb, "    <timer name='hypervclock' present='yes'/>\n");
    strbuf_add(&b->sb, "  </clock>\n");
}

static const struct scsi_model *scsi_model_of(const json_t *disk)
{
    const char *model = json_str(disk, "controller_model");

    for (size_t i = 0; i < ARRAY_LEN(scsi_models); i++) {
        if (strcmp(scsi_models[i].source, model) == 0)
            return &scsi_models[i];
    }
    return NULL;
}

static enum bus bus_of(struct builder *b, const json_t *disk, bool boots)
{
    const char *controller = json_str(disk, "controller");

    if (b->options->guest_fixed)
        return BUS_VIRTIO;
    if (strncmp(controller, "scsi", 4) == 0 && scsi_model_of(disk) != NULL) {
        if (!b->uefi || !boots)
            return BUS_SCSI;
        warn(b, "the boot disk is on SATA, for UEFI firmware cannot read the source's SCSI "
                "controller: a guest without an AHCI driver at boot needs the conversion's fix");
        return BUS_SATA;
    }
    if (strncmp(controller, "ide", 3) == 0 && !b->uefi && b->counts[BUS_IDE] < IDE_DISKS_MAX)
        return BUS_IDE;
    return BUS_SATA;
}

/* A controller of that model with a free target; its index. */
static size_t take_scsi(struct builder *b, const struct scsi_model *model, unsigned int *out_target)
{
    for (size_t i = 0; i < b->controller_count; i++) {
        struct scsi_controller *c = &b->controllers[i];
        if (c->model == model && c->used < model->targets) {
            *out_target = c->used++;
            return i;
        }
    }
    b->controllers[b->controller_count] = (struct scsi_controller){.model = model, .used = 1};
    *out_target = 0;
    return b->controller_count++;
}

/* "a" ... "z", "aa" ...: the last part of a device name. */
static void add_letters(struct strbuf *sb, unsigned int index)
{
    if (index >= 26)
        strbuf_addc(sb, (char)('a' + index / 26 - 1));
    strbuf_addc(sb, (char)('a' + index % 26));
}

static void add_target(struct builder *b, const char *prefix, unsigned int index, const char *bus)
{
    strbuf_addf(&b->sb, "      <target dev='%s", prefix);
    add_letters(&b->sb, index);
    strbuf_addf(&b->sb, "' bus='%s'/>\n", bus);
}

static void add_drive_address(struct builder *b, size_t controller, unsigned int bus,
                              unsigned int target, unsigned int unit)
{
    strbuf_addf(&b->sb,
                "      <address type='drive' controller='%zu' bus='%u' target='%u' unit='%u'/>\n",
                controller, bus, target, unit);
}

static void add_disk_place(struct builder *b, const json_t *disk, bool boots)
{
    enum bus bus = bus_of(b, disk, boots);
    unsigned int n = b->counts[bus]++;
    unsigned int letters = b->counts[BUS_SCSI] + b->counts[BUS_SATA] - 1; /* both are sdX */
    unsigned int target = 0;
    const struct scsi_model *model = scsi_model_of(disk);
    size_t controller;

    switch (bus) {
    case BUS_VIRTIO:
        add_target(b, "vd", n, "virtio");
        break;
    case BUS_SCSI:
        controller = take_scsi(b, model, &target);
        add_target(b, "sd", letters, "scsi");
        if (strcmp(model->libvirt, "lsilogic") == 0) { /* its SCSI id is libvirt's unit */
            add_drive_address(b, controller, 0, 0, target);
        } else {
            add_drive_address(b, controller, 0, target, 0);
        }
        break;
    case BUS_SATA:
        add_target(b, "sd", letters, "sata");
        add_drive_address(b, n / SATA_PORTS, 0, 0, n % SATA_PORTS);
        break;
    case BUS_IDE:
        add_target(b, "hd", n, "ide");
        add_drive_address(b, 0, n / 2, 0, n % 2);
        break;
    }
}

static int add_disk(struct builder *b, const json_t *disk, unsigned int order, struct error *err)
{
    autofree char *path = NULL;

    if (strcmp(json_str(disk, "source_format"), "ova") == 0) {
        return error_set(err, ERR_INVALID, "disk '%.64s' is inside of an OVA",
                         json_str(disk, "id"));
    }
    if (b->options->paths != NULL) {
        path = xstrdup(b->options->paths[order - 1]);
    } else if (manifest_disk_path(disk, b->options->dir, &path, err) < 0) {
        return -1;
    }
    if (b->options->paths == NULL && b->options->final_dir != NULL) {
        char *moved = xasprintf("%s%s", b->options->final_dir, strrchr(path, '/'));
        free(path);
        path = moved;
    }
    strbuf_add(&b->sb, "    <disk type='file' device='disk'>\n");
    strbuf_addf(&b->sb, "      <driver name='qemu' type='%s' discard='unmap'/>\n",
                json_str(disk, "source_format")); /* one of the validator's words */
    strbuf_add(&b->sb, "      <source file='");
    strbuf_add_xml(&b->sb, path);
    strbuf_add(&b->sb, "'/>\n");
    add_disk_place(b, disk, order == 1);
    strbuf_addf(&b->sb, "      <boot order='%u'/>\n    </disk>\n", order);
    return 0;
}

static uint64_t hint_of(const json_t *disk)
{
    const json_t *hint = json_object_get(disk, "boot_order_hint");

    return hint == NULL ? HINT_ABSENT : (uint64_t)json_integer_value(hint);
}

static int add_disks(struct builder *b, struct error *err)
{
    const json_t *disks = json_object_get(b->manifest, "disks");
    size_t count = json_array_size(disks);
    const json_t *sorted[DOMAIN_DISKS_MAX];

    if (count > DOMAIN_DISKS_MAX) {
        return error_set(err, ERR_LIMIT, "%zu disks, a domain gets at most %d", count,
                         DOMAIN_DISKS_MAX);
    }
    for (size_t i = 0; i < count; i++) { /* insertion keeps equal hints in list order */
        const json_t *disk = json_array_get(disks, i);
        size_t at = i;
        for (; at > 0 && hint_of(sorted[at - 1]) > hint_of(disk); at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = disk;
    }
    for (size_t i = 0; i < count; i++) {
        if (add_disk(b, sorted[i], (unsigned int)i + 1, err) < 0)
            return -1;
    }
    for (size_t i = 0; i < b->controller_count; i++) {
        strbuf_addf(&b->sb, "    <controller type='scsi' index='%zu' model='%s'/>\n", i,
                    b->controllers[i].model->libvirt);
    }
    return 0;
}

static const char *nic_model(const struct builder *b, const char *source)
{
    static const char *const kept[] = {"vmxnet3", "e1000", "e1000e"};

    if (b->options->guest_fixed)
        return "virtio";
    for (size_t i = 0; i < ARRAY_LEN(kept); i++) {
        if (strcmp(kept[i], source) == 0)
            return kept[i];
    }
    return "e1000"; /* the oldest, in every guest */
}

static const struct domain_network *network_of(const struct builder *b, const char *name)
{
    for (size_t i = 0; i < b->options->network_count; i++) {
        if (strcmp(b->options->networks[i].source, name) == 0)
            return &b->options->networks[i];
    }
    return NULL;
}

static void add_nic_source(struct builder *b, const char *network)
{
    static const struct domain_network nat = {NULL, DOMAIN_NET_NETWORK, "default"};
    static const char *const words[] = {"network", "bridge", "user"};
    const struct domain_network *to = network_of(b, network);
    auto_strbuf text;

    strbuf_init(&text, ERROR_MESSAGE_MAX);
    if (to == NULL)
        to = b->options->network_default == NULL ? &nat : b->options->network_default;
    if (to->source == NULL && network[0] != '\0') {
        strbuf_addf(&text, "network '%.128s' of the source is not mapped, %s%s%.128s%s is used",
                    network, words[to->kind], to->kind == DOMAIN_NET_USER ? "" : " '",
                    to->kind == DOMAIN_NET_USER ? "" : to->target,
                    to->kind == DOMAIN_NET_USER ? "" : "'");
        warn(b, text.data);
    }
    strbuf_addf(&b->sb, "    <interface type='%s'>\n", words[to->kind]);
    if (to->kind == DOMAIN_NET_USER)
        return;
    strbuf_addf(&b->sb, "      <source %s='", words[to->kind]);
    strbuf_add_xml(&b->sb, to->target);
    strbuf_add(&b->sb, "'/>\n");
}

static void add_nics(struct builder *b)
{
    const json_t *nics = json_object_get(b->manifest, "nics");
    const json_t *nic;
    size_t i;

    json_array_foreach(nics, i, nic)
    {
        const char *mac = json_str(nic, "mac");
        add_nic_source(b, json_str(nic, "network"));
        if (mac[0] != '\0') { /* validated; libvirt wants colons */
            strbuf_add(&b->sb, "      <mac address='");
            for (const char *p = mac; *p != '\0'; p++)
                strbuf_addc(&b->sb, (char)(*p == '-' ? ':' : *p));
            strbuf_add(&b->sb, "'/>\n");
        }
        strbuf_addf(&b->sb, "      <model type='%s'/>\n    </interface>\n",
                    nic_model(b, json_str(nic, "model")));
    }
}

static void add_other_devices(struct builder *b)
{
    strbuf_add(&b->sb, "    <serial type='pty'>\n      <target port='0'/>\n    </serial>\n"
                       "    <console type='pty'>\n      <target type='serial' port='0'/>\n"
                       "    </console>\n"
                       "    <input type='tablet' bus='usb'/>\n"
                       "    <graphics type='vnc' autoport='yes' listen='127.0.0.1'/>\n"
                       "    <video>\n      <model type='vga'/>\n    </video>\n");
    if (b->options->guest_fixed) {
        strbuf_add(&b->sb, "    <channel type='unix'>\n"
                           "      <target type='virtio' name='org.qemu.guest_agent.0'/>\n"
                           "    </channel>\n    <rng model='virtio'>\n"
                           "      <backend model='random'>/dev/urandom</backend>\n    </rng>\n");
    }
    if (is_true(vm_of(b), "tpm")) {
        strbuf_addf(&b->sb,
                    "    <tpm model='%s'>\n      <backend type='emulator' version='2.0'/>\n"
                    "    </tpm>\n",
                    b->uefi ? "tpm-crb" : "tpm-tis");
        warn(b,
             "the TPM starts empty: keys sealed in the source's TPM are gone (BitLocker asks for "
             "its recovery key)");
    }
}

static int build(struct builder *b, struct error *err)
{
    b->uefi = strcmp(json_str(vm_of(b), "firmware"), "uefi") == 0;
    strbuf_addf(&b->sb, "<domain type='%s'>\n",
                b->options->type == NULL ? "kvm" : b->options->type);
    if (add_identity(b, err) < 0)
        return -1;
    if (b->options->origin != NULL)
        add_origin(b);
    if (add_size(b, err) < 0)
        return -1;
    add_firmware(b);
    add_clock(b);
    strbuf_add(&b->sb, "  <devices>\n");
    if (add_disks(b, err) < 0)
        return -1;
    add_nics(b);
    add_other_devices(b);
    strbuf_add(&b->sb, "  </devices>\n</domain>\n");
    return 0;
}

int domain_xml_build(const json_t *manifest, const struct domain_options *options, json_t *warnings,
                     char **out, struct error *err)
{
    static const struct manifest_check shape_only = {0};
    struct builder b = {.manifest = manifest, .options = options, .warnings = warnings};
    int result;

    if (manifest_validate(manifest, &shape_only, err) < 0)
        return -1;
    strbuf_init(&b.sb, DOMAIN_XML_BYTES_MAX);
    result = build(&b, err);
    if (result == 0)
        result = strbuf_finish(&b.sb, out, err);
    strbuf_release(&b.sb);
    return result;
}
