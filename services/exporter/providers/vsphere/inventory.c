#include "services/exporter/providers/vsphere/inventory.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/clock.h"
#include "common/log.h"
#include "services/exporter/providers/vsphere/property.h"

static const char *const vm_paths[] = {
    "name",
    "parent",
    "parentVApp",
    "config.template",
    "config.guestId",
    "config.guestFullName",
    "config.uuid",
    "config.instanceUuid",
    "config.version",
    "config.firmware",
    "config.bootOptions",
    "config.keyId",
    "config.changeTrackingEnabled",
    "config.hardware.numCPU",
    "config.hardware.numCoresPerSocket",
    "config.hardware.memoryMB",
    "config.hardware.device",
    "runtime.host",
    "runtime.powerState",
    "runtime.connectionState",
    "runtime.consolidationNeeded",
    "runtime.question",
    "guest.ipAddress",
    "guest.net",
    "snapshot",
    "layoutEx",
    "summary.storage",
    NULL,
};
static const struct property_set vm_set = {"VirtualMachine", vm_paths};

static const char *const tree_paths[] = {"name", "parent", NULL};
static const char *const vapp_paths[] = {"name", "parentFolder", "parentVApp", NULL};
static const char *const network_paths[] = {"name", NULL};
static const struct property_set name_sets[] = {
    {"Folder", tree_paths},     {"Datacenter", tree_paths}, {"VirtualApp", vapp_paths},
    {"Network", network_paths}, {"HostSystem", tree_paths}, {"ClusterComputeResource", tree_paths},
};

/* ---- names ---- */

struct inventory_name {
    char *id;
    char *name;
    char *parent;
    bool datacenter;
    bool cluster;
};

struct inventory_names {
    struct inventory_name *items; /* by id after inventory_names_sort */
    size_t count;
    size_t capacity;
    int64_t loaded_ms;
};

DEFINE_AUTO(inventory_names, struct inventory_names, inventory_names_free)
#define auto_inventory_names CLEANUP(inventory_names_auto) struct inventory_names

struct inventory_names *inventory_names_new(void)
{
    return xcalloc(1, sizeof(struct inventory_names));
}

void inventory_names_free(struct inventory_names *names)
{
    if (names == NULL)
        return;
    for (size_t i = 0; i < names->count; i++) {
        free(names->items[i].id);
        free(names->items[i].name);
        free(names->items[i].parent);
    }
    free(names->items);
    free(names);
}

/* vSphere writes / \ and % of a name as %2f %5c %25, and nothing else. */
static char *name_unescape(const char *text)
{
    char *out = utf8_clean(text, VM_NAME_BYTES_MAX);
    char *to = out;

    for (const char *from = out; *from != '\0'; to++) {
        if (strncasecmp(from, "%2f", 3) == 0 || strncasecmp(from, "%5c", 3) == 0 ||
            strncmp(from, "%25", 3) == 0) {
            *to = (char)(from[1] == '5' ? '\\' : from[2] == '5' ? '%' : '/');
            from += 3;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
    return out;
}

int inventory_names_add(void *arg, const xmlNode *object, struct error *err)
{
    struct inventory_names *names = arg;
    const xmlNode *obj = soap_child(object, "obj");
    const char *parent = property_text(object, "parent");
    struct inventory_name *item;
    char type[64];

    if (names->count == INVENTORY_NAMES_MAX) {
        return error_set(err, ERR_LIMIT,
                         "the inventory has more than %d folders, networks, hosts and clusters",
                         INVENTORY_NAMES_MAX);
    }
    if (names->count == names->capacity) {
        names->capacity = names->capacity == 0 ? 256 : names->capacity * 2;
        names->items = xreallocarray(names->items, names->capacity, sizeof *names->items);
    }
    if (parent[0] == '\0')
        parent = property_text(object, "parentVApp");
    if (parent[0] == '\0')
        parent = property_text(object, "parentFolder");
    soap_ref_type(obj, type, sizeof type);
    item = &names->items[names->count++];
    item->id = xstrdup(soap_content(obj));
    item->name = name_unescape(property_text(object, "name"));
    item->parent = xstrdup(parent);
    item->datacenter = strcmp(type, "Datacenter") == 0;
    item->cluster = strcmp(type, "ClusterComputeResource") == 0;
    return 0;
}

static int name_compare(const void *a, const void *b)
{
    const struct inventory_name *left = a, *right = b;

    return strcmp(left->id, right->id);
}

void inventory_names_sort(struct inventory_names *names)
{
    if (names->count > 1)
        qsort(names->items, names->count, sizeof *names->items, name_compare);
}

static const struct inventory_name *name_find(const struct inventory_names *names, const char *id)
{
    size_t low = 0, high = names == NULL ? 0 : names->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(id, names->items[middle].id);
        if (order == 0)
            return &names->items[middle];
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

static const char *network_name(const void *arg, const char *id)
{
    const struct inventory_name *item = name_find(arg, id);

    return item == NULL || item->name[0] == '\0' ? NULL : item->name;
}

static int names_load(struct provider_session *session, struct error *err)
{
    auto_inventory_names *names = NULL;
    struct property_scan scan = {
        .container_type = "Folder",
        .sets = name_sets,
        .set_count = ARRAY_LEN(name_sets),
        .each = inventory_names_add,
    };

    if (session->names != NULL &&
        clock_mono_ms() - session->names->loaded_ms < INVENTORY_NAMES_AGE_MS)
        return 0;
    if (session_login(session, err) < 0)
        return -1;
    names = inventory_names_new();
    scan.container = session->content.root_folder;
    scan.arg = names;
    if (property_scan_run(session, &scan, err) < 0)
        return error_wrap(err, "reading folders, networks, hosts and clusters");
    inventory_names_sort(names);
    names->loaded_ms = clock_mono_ms();
    inventory_names_free(session->names);
    session->names = STEAL(names);
    return 0;
}

/* ---- paths ---- */

/* "/a/b" of the ancestors of `id`, itself included; datacenter and its path on the way. The root
 * folder is not in the view, so the climb ends below it. */
static void path_build(const struct inventory_names *names, const char *id, struct strbuf *path,
                       const struct inventory_name **out_datacenter)
{
    const struct inventory_name *chain[INVENTORY_PATH_DEPTH];
    size_t depth = 0;

    *out_datacenter = NULL;
    for (const struct inventory_name *item = name_find(names, id);
         item != NULL && depth < INVENTORY_PATH_DEPTH; item = name_find(names, item->parent)) {
        if (item->datacenter)
            *out_datacenter = item;
        chain[depth++] = item;
    }
    while (depth > 0)
        strbuf_addf(path, "/%s", chain[--depth]->name);
}

/* The host's name, and the cluster's when its parent is one: a host may stand alone. */
static void set_host(const struct inventory_names *names, const xmlNode *object, struct vm *vm)
{
    const char *id = property_text(object, "runtime.host");
    const struct inventory_name *host = name_find(names, id);
    const struct inventory_name *parent = host == NULL ? NULL : name_find(names, host->parent);

    vm_set_text(&vm->host, host == NULL ? id : host->name);
    if (parent != NULL && parent->cluster)
        vm_set_text(&vm->cluster, parent->name);
}

static void set_path(const struct inventory_names *names, const xmlNode *object,
                     struct vsphere_vm *out)
{
    const char *parent = property_text(object, "parent");
    const struct inventory_name *datacenter = NULL, *ignored = NULL;
    auto_strbuf path, datacenter_path;

    strbuf_init(&path, INVENTORY_PATH_DEPTH * VM_NAME_BYTES_MAX);
    strbuf_init(&datacenter_path, INVENTORY_PATH_DEPTH * VM_NAME_BYTES_MAX);
    if (parent[0] == '\0')
        parent = property_text(object, "parentVApp");
    path_build(names, parent, &path, &datacenter);
    strbuf_addf(&path, "/%s", out->vm.name);
    vm_set_text(&out->vm.path, path.data);
    if (datacenter == NULL)
        return;
    vm_set_text(&out->vm.datacenter, datacenter->name);
    path_build(names, datacenter->id, &datacenter_path, &ignored);
    vm_set_text(&out->datacenter_path, datacenter_path.data + 1);
}

/* ---- one VM ---- */

void vsphere_vm_init(struct vsphere_vm *vm)
{
    *vm = (struct vsphere_vm){0};
    vm_init(&vm->vm);
    vm->datacenter_path = xstrdup("");
}

void vsphere_vm_release(struct vsphere_vm *vm)
{
    vm_release(&vm->vm);
    free(vm->datacenter_path);
    vm->datacenter_path = NULL;
}

static enum vm_power power_of(const char *text)
{
    if (strcmp(text, "poweredOn") == 0)
        return VM_POWER_ON;
    if (strcmp(text, "poweredOff") == 0)
        return VM_POWER_OFF;
    return strcmp(text, "suspended") == 0 ? VM_POWER_SUSPENDED : VM_POWER_UNKNOWN;
}

static enum vm_firmware firmware_of(const char *text)
{
    if (strcmp(text, "bios") == 0)
        return VM_FIRMWARE_BIOS;
    return strcmp(text, "efi") == 0 ? VM_FIRMWARE_UEFI : VM_FIRMWARE_UNKNOWN;
}

/* Snapshots in the tree below, the deepest chain vSphere allows is 32. */
/* NOLINTNEXTLINE(misc-no-recursion): ends at SOAP_DEPTH_MAX */
static uint32_t snapshot_count(const xmlNode *parent, const char *list, int depth)
{
    uint32_t count = 0;

    if (depth > SOAP_DEPTH_MAX)
        return 0;
    for (const xmlNode *node = soap_child(parent, list); node != NULL; node = soap_next(node))
        count += 1 + snapshot_count(node, "childSnapshotList", depth + 1);
    return count;
}

static void add_address(struct vm *vm, const char *address)
{
    if (address[0] == '\0' || vm->ip_address_count == VM_ADDRESSES_MAX)
        return;
    for (size_t i = 0; i < vm->ip_address_count; i++) {
        if (strcmp(vm->ip_addresses[i], address) == 0)
            return;
    }
    vm_add_address(vm, address);
}

static void read_addresses(const xmlNode *object, struct vm *vm)
{
    add_address(vm, property_text(object, "guest.ipAddress"));
    for (const xmlNode *nic = soap_child(property_value(object, "guest.net"), "GuestNicInfo");
         nic != NULL; nic = soap_next(nic)) {
        for (const xmlNode *ip = soap_child(nic, "ipAddress"); ip != NULL; ip = soap_next(ip))
            add_address(vm, soap_content(ip));
    }
}

/* Size of the file with this key in layoutEx. */
static uint64_t layout_file_size(const xmlNode *layout, const char *key)
{
    for (const xmlNode *file = soap_child(layout, "file"); file != NULL; file = soap_next(file)) {
        if (strcmp(soap_text(file, "key"), key) == 0)
            return soap_u64(file, "size", 0);
    }
    return 0;
}

/* What the disks' files take on the datastore; the storage summary also counts swap and logs and
 * is only the second choice. Never more than the disks hold. */
static uint64_t used_bytes(const xmlNode *object, uint64_t storage_bytes)
{
    const xmlNode *layout = property_value(object, "layoutEx");
    uint64_t sum = 0;

    for (const xmlNode *disk = soap_child(layout, "disk"); disk != NULL; disk = soap_next(disk)) {
        for (const xmlNode *unit = soap_child(disk, "chain"); unit != NULL;
             unit = soap_next(unit)) {
            for (const xmlNode *key = soap_child(unit, "fileKey"); key != NULL;
                 key = soap_next(key)) {
                if (!checked_add_u64(sum, layout_file_size(layout, soap_content(key)), &sum))
                    return storage_bytes;
            }
        }
    }
    if (sum == 0)
        sum = soap_u64(property_value(object, "summary.storage"), "committed", 0);
    return min_u64(sum, storage_bytes);
}

static void read_facts(const xmlNode *object, struct vsphere_vm *out)
{
    struct vm *vm = &out->vm;

    vm_set_text(&vm->guest_id, property_text(object, "config.guestId"));
    vm_set_text(&vm->guest_os, property_text(object, "config.guestFullName"));
    vm_set_text(&vm->bios_uuid, property_text(object, "config.uuid"));
    vm_set_text(&vm->instance_uuid, property_text(object, "config.instanceUuid"));
    vm_set_text(&vm->hardware_version, property_text(object, "config.version"));
    vm->template_vm = property_bool(object, "config.template");
    vm->cbt_enabled = property_bool(object, "config.changeTrackingEnabled");
    vm->firmware = firmware_of(property_text(object, "config.firmware"));
    vm->secure_boot =
        soap_bool(property_value(object, "config.bootOptions"), "efiSecureBootEnabled");
    vm->num_cpu = (uint32_t)min_u64(property_u64(object, "config.hardware.numCPU", 0), UINT32_MAX);
    vm->cores_per_socket =
        (uint32_t)min_u64(property_u64(object, "config.hardware.numCoresPerSocket", 0), UINT32_MAX);
    vm->memory_mb = min_u64(property_u64(object, "config.hardware.memoryMB", 0), UINT32_MAX);
    vm->power = power_of(property_text(object, "runtime.powerState"));
    vm->snapshot_count = snapshot_count(property_value(object, "snapshot"), "rootSnapshotList", 0);
    out->connected = strcmp(property_text(object, "runtime.connectionState"), "connected") == 0;
    out->question = property_value(object, "runtime.question") != NULL;
    out->consolidation_needed = property_bool(object, "runtime.consolidationNeeded");
    out->devices_hidden = property_value(object, "config.hardware.device") == NULL;
    read_addresses(object, vm);
}

/* While a VM runs, a disk outside of snapshots can't be frozen; stopped, it stands still anyway. */
static void mark_independent(struct vsphere_vm *out)
{
    for (size_t i = 0; i < out->vm.disk_count; i++) {
        struct vm_disk *disk = &out->vm.disks[i];
        if (out->backings[i].independent && out->vm.power != VM_POWER_OFF &&
            disk->skip_reason[0] == '\0') {
            vm_set_text(&disk->skip_reason,
                        "independent disk: snapshots leave it out, so it can only be read while "
                        "the VM is powered off");
        }
    }
}

int inventory_read_vm(const xmlNode *object, const struct inventory_names *names,
                      struct vsphere_vm *out, struct error *err)
{
    const char *id = soap_text(object, "obj");
    struct vm *vm = &out->vm;

    if (!soap_id_is_sane(id))
        return error_set(err, ERR_PROTOCOL, "the listing has a VM without a usable id");
    vm_set_text(&vm->id, id);
    free(vm->name);
    vm->name = name_unescape(property_text(object, "name"));
    read_facts(object, out);
    set_host(names, object, vm);
    set_path(names, object, out);
    if (devices_read(object, network_name, names, vm, out->backings, err) < 0)
        return error_wrap(err, "VM '%.128s' (%s)", vm->name, id);
    mark_independent(out);
    for (size_t i = 0; i < vm->disk_count; i++)
        vm->storage_bytes += vm->disks[i].capacity_bytes; /* 64 disks of 2^50 cannot wrap */
    vm->used_bytes = used_bytes(object, vm->storage_bytes);
    return 0;
}

int inventory_replace_devices(struct provider_session *session, const xmlNode *object,
                              struct vsphere_vm *vm, struct error *err)
{
    auto_vm fresh;
    struct vm *old = &vm->vm;

    vm_init(&fresh);
    if (names_load(session, err) < 0 ||
        devices_read(object, network_name, session->names, &fresh, vm->backings, err) < 0)
        return -1;
    struct vm swapped = *old;
    old->disks = fresh.disks;
    old->disk_count = fresh.disk_count;
    old->nics = fresh.nics;
    old->nic_count = fresh.nic_count;
    fresh.disks = swapped.disks;
    fresh.disk_count = swapped.disk_count;
    fresh.nics = swapped.nics;
    fresh.nic_count = swapped.nic_count;
    old->storage_bytes = 0;
    for (size_t i = 0; i < old->disk_count; i++)
        old->storage_bytes += old->disks[i].capacity_bytes;
    mark_independent(vm);
    return 0;
}

int inventory_get(struct provider_session *session, const char *vm_id, struct vsphere_vm *out,
                  struct error *err)
{
    auto_soap_reply reply = {0};
    const xmlNode *object = NULL;
    const char *wanted = session->config->datacenter;

    vsphere_vm_init(out);
    if (property_get(session, &vm_set, vm_id, &reply, &object, err) < 0 ||
        names_load(session, err) < 0 || inventory_read_vm(object, session->names, out, err) < 0)
        return -1;
    if (wanted[0] != '\0' && strcmp(out->vm.datacenter, wanted) != 0 &&
        strcmp(out->datacenter_path, wanted[0] == '/' ? wanted + 1 : wanted) != 0) {
        return error_set(err, ERR_NOT_FOUND,
                         "VM '%s' is in datacenter '%.64s', this provider is limited to '%.64s'",
                         vm_id, out->vm.datacenter, wanted);
    }
    return 0;
}

static const char *const power_paths[] = {"runtime.powerState", NULL};
static const struct property_set power_set = {"VirtualMachine", power_paths};

int inventory_power(struct provider_session *session, const char *vm_id, enum vm_power *out,
                    struct error *err)
{
    auto_soap_reply reply = {0};
    const xmlNode *object = NULL;

    if (property_get(session, &power_set, vm_id, &reply, &object, err) < 0)
        return -1;
    *out = power_of(property_text(object, "runtime.powerState"));
    return 0;
}

/* ---- all VMs ---- */

struct listing {
    const struct inventory_names *names;
    struct vm *vms;
    size_t count;
    int (*page)(void *arg, const struct vm *vms, size_t count, struct error *err);
    void *arg;
};

static int listing_flush(void *arg, struct error *err)
{
    struct listing *listing = arg;
    int rc =
        listing->count == 0 ? 0 : listing->page(listing->arg, listing->vms, listing->count, err);

    for (size_t i = 0; i < listing->count; i++)
        vm_release(&listing->vms[i]);
    listing->count = 0;
    return rc;
}

static int listing_add(void *arg, const xmlNode *object, struct error *err)
{
    struct listing *listing = arg;
    auto_vsphere_vm vm;

    if (listing->count == INVENTORY_PAGE_VMS && listing_flush(listing, err) < 0)
        return -1;
    vsphere_vm_init(&vm);
    if (inventory_read_vm(object, listing->names, &vm, err) < 0) {
        if (vm.vm.id[0] == '\0')
            return -1;
        /* One odd VM must not hide the others: it is listed with what could be read. */
        LOG(WARN, "vsphere_vm_not_fully_read", F_STR("vm", vm.vm.id), F_ERR(err));
        error_clear(err);
    }
    for (size_t i = 0; i < vm.vm.disk_count; i++)
        vm_set_text(&vm.vm.disks[i].change_id, "");
    listing->vms[listing->count++] = vm.vm;
    vm_init(&vm.vm);
    return 0;
}

static void listing_release(struct listing *listing)
{
    for (size_t i = 0; i < listing->count; i++)
        vm_release(&listing->vms[i]);
    free(listing->vms);
}

/* Id of the configured datacenter, by name or path. */
static int datacenter_find(const struct inventory_names *names, const char *wanted,
                           const char **out_id, struct error *err)
{
    auto_strbuf known;

    strbuf_init(&known, 200);
    for (size_t i = 0; i < names->count; i++) {
        const struct inventory_name *item = &names->items[i], *ignored = NULL;
        auto_strbuf path;

        if (!item->datacenter)
            continue;
        strbuf_init(&path, INVENTORY_PATH_DEPTH * VM_NAME_BYTES_MAX);
        path_build(names, item->id, &path, &ignored);
        if (strcmp(item->name, wanted) == 0 || strcmp(path.data, wanted) == 0 ||
            strcmp(path.data + 1, wanted) == 0) {
            *out_id = item->id;
            return 0;
        }
        strbuf_addf(&known, "%s%s", known.length == 0 ? "" : ", ", path.data + 1);
    }
    return error_set(err, ERR_NOT_FOUND, "datacenter '%.64s' does not exist; there is: %s", wanted,
                     known.length == 0 ? "none that this account can see" : known.data);
}

int inventory_list(struct provider_session *session,
                   int (*page)(void *arg, const struct vm *vms, size_t count, struct error *err),
                   void *arg, struct error *err)
{
    CLEANUP(listing_release) struct listing listing = {.page = page, .arg = arg};
    struct property_scan scan = {
        .container_type = "Folder",
        .sets = &vm_set,
        .set_count = 1,
        .each = listing_add,
        .page_end = listing_flush,
        .arg = &listing,
    };

    if (names_load(session, err) < 0)
        return -1;
    scan.container = session->content.root_folder;
    if (session->config->datacenter[0] != '\0') {
        scan.container_type = "Datacenter";
        if (datacenter_find(session->names, session->config->datacenter, &scan.container, err) < 0)
            return -1;
    }
    listing.names = session->names;
    listing.vms = xcalloc(INVENTORY_PAGE_VMS, sizeof *listing.vms);
    return property_scan_run(session, &scan, err);
}
