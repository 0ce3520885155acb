/* Reading of OVF descriptors; see ovf.h. The tree is gone when ovf_read returns.
 *
 * Design notes
 * - A DOCTYPE is refused before the parser runs (it is where entities come from) and once more
 *   after it, for encodings in which the text search sees nothing.
 * - Elements are found by local name in either OVF namespace; attributes with or without prefix,
 *   since both are in the wild. */
#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <libxml/parser.h>
#include <libxml/tree.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/parse.h"
#include "services/exporter/formats/mf.h"
#include "services/exporter/formats/ovf.h"

#define NS_OVF_1        "http://schemas.dmtf.org/ovf/envelope/1"
#define NS_OVF_2        "http://schemas.dmtf.org/ovf/envelope/2"
#define TEXT_BYTES_MAX  4096 /* one attribute or element */
#define CAPACITY_MAX    (64 * 1024 * GIB)
#define MEMORY_MB_MAX   (UINT64_C(1) << 32)
#define CPU_MAX         4096
#define UNIT_POWER_MAX  60
#define ITEMS_MAX       1024
#define HEX             "[0-9a-f][0-9a-f]"
#define MAC_PATTERN     HEX ":" HEX ":" HEX ":" HEX ":" HEX ":" HEX
#define RESOURCE_CPU    3
#define RESOURCE_MEMORY 4
#define RESOURCE_IDE    5
#define RESOURCE_SCSI   6
#define RESOURCE_NIC    10
#define RESOURCE_DISK   17
#define RESOURCE_SATA   20

#define MAC_LENGTH 17 /* 00:50:56:aa:bb:01 */

struct item { /* of the virtual hardware; half-read ones have NULLs */
    char *instance;
    char *parent;
    char *sub_type;
    uint64_t type;
    uint64_t address; /* of a controller */
    uint64_t unit;    /* on its parent */
    size_t disk;      /* index into ovf->disks; SIZE_MAX: it holds none */
};

struct reader {
    struct ovf *ovf;
    struct item items[ITEMS_MAX];
    size_t item_count;
    char **networks;
    size_t network_count;
};

static bool is_named(const xmlNode *node, const char *name)
{
    return node->type == XML_ELEMENT_NODE && strcmp((const char *)node->name, name) == 0;
}

static xmlNode *next_named(xmlNode *node, const char *name)
{
    while (node != NULL && !is_named(node, name))
        node = node->next;
    return node;
}

static xmlNode *child(const xmlNode *node, const char *name)
{
    return next_named(node->children, name);
}

static int take_text(const xmlNode *at, xmlChar *text, const char *what, char **out,
                     struct error *err)
{
    size_t length = text == NULL ? 0 : strlen((const char *)text);

    if (length > TEXT_BYTES_MAX) {
        xmlFree(text);
        return error_set(err, ERR_LIMIT, "line %ld: %s is longer than %d bytes", xmlGetLineNo(at),
                         what, TEXT_BYTES_MAX);
    }
    *out = xstrdup(text == NULL ? "" : (const char *)text);
    xmlFree(text);
    return 0;
}

/* The attribute's value, "" when it is not there. Caller frees. */
static int attribute(const xmlNode *node, const char *name, char **out, struct error *err)
{
    for (const xmlAttr *a = node->properties; a != NULL; a = a->next) {
        if (strcmp((const char *)a->name, name) == 0)
            return take_text(node, xmlNodeListGetString(node->doc, a->children, 1), name, out, err);
    }
    *out = xstrdup("");
    return 0;
}

/* Text of the child element, "" when it is not there. Caller frees. */
static int child_text(const xmlNode *node, const char *name, char **out, struct error *err)
{
    const xmlNode *found = child(node, name);

    return take_text(node, found == NULL ? NULL : xmlNodeGetContent(found), name, out, err);
}

static int required(const xmlNode *node, const char *name, char **out, struct error *err)
{
    if (attribute(node, name, out, err) < 0)
        return -1;
    if ((*out)[0] == '\0') {
        return error_set(err, ERR_CORRUPT, "line %ld: %s without attribute '%s'",
                         xmlGetLineNo(node), (const char *)node->name, name);
    }
    return 0;
}

static int number(const xmlNode *node, const char *name, const char *text, uint64_t max,
                  uint64_t *out, struct error *err)
{
    struct error cause = ERROR_NONE;

    *out = 0;
    if (text[0] == '\0')
        return 0;
    if (parse_u64(name, text, 0, max, out, &cause) < 0)
        return error_set(err, ERR_CORRUPT, "line %ld: %s", xmlGetLineNo(node), cause.message);
    return 0;
}

static const char *skip_blanks(const char *p)
{
    while (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n')
        p++;
    return p;
}

/* "byte", "byte * 2^20", "byte * 10^9", and the words of OVF 0.9. 0 = not understood. */
static uint64_t unit_bytes(const char *text)
{
    static const struct {
        const char *name;
        uint64_t bytes;
    } words[] = {{"", 1}, {"byte", 1}, {"KiloBytes", KIB}, {"MegaBytes", MIB}, {"GigaBytes", GIB}};
    uint64_t base;
    uint64_t power = 0;
    uint64_t result = 1;

    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        if (strcmp(text, words[i].name) == 0)
            return words[i].bytes;
    }
    if (strncmp(text, "byte", 4) != 0)
        return 0;
    text = skip_blanks(text + 4);
    if (*text != '*')
        return 0;
    text = skip_blanks(text + 1);
    base = strncmp(text, "2^", 2) == 0 ? 2 : strncmp(text, "10^", 3) == 0 ? 10 : 0;
    if (base == 0)
        return 0;
    for (text = strchr(text, '^') + 1; *text >= '0' && *text <= '9' && power <= UNIT_POWER_MAX;
         text++)
        power = power * 10 + (uint64_t)(*text - '0');
    if (*skip_blanks(text) != '\0' || power > UNIT_POWER_MAX)
        return 0;
    for (uint64_t i = 0; i < power; i++) {
        if (!checked_mul_u64(result, base, &result))
            return 0;
    }
    return result;
}

static int read_file_entry(struct ovf *ovf, const xmlNode *node, struct error *err)
{
    struct ovf_file_entry *file;
    autofree char *size = NULL;
    autofree char *compression = NULL;
    autofree char *chunk = NULL;

    if (ovf->file_count == OVF_FILES_MAX)
        return error_set(err, ERR_LIMIT, "more than %d files", OVF_FILES_MAX);
    ovf->files = xreallocarray(ovf->files, ovf->file_count + 1, sizeof *ovf->files);
    file = &ovf->files[ovf->file_count++];
    *file = (struct ovf_file_entry){0};
    if (required(node, "id", &file->id, err) < 0 || required(node, "href", &file->href, err) < 0 ||
        attribute(node, "size", &size, err) < 0 ||
        attribute(node, "compression", &compression, err) < 0 ||
        attribute(node, "chunkSize", &chunk, err) < 0 ||
        number(node, "size", size, UINT64_MAX, &file->bytes, err) < 0)
        return -1;
    if (!file_name_is_plain(file->href)) {
        return error_set(err, ERR_CORRUPT, "line %ld: href '%.255s' is no plain file name",
                         xmlGetLineNo(node), file->href);
    }
    if (compression[0] != '\0' || chunk[0] != '\0') {
        return error_set(err, ERR_NOT_AVAILABLE, "file '%.255s' is compressed or in chunks",
                         file->href);
    }
    for (size_t i = 0; i + 1 < ovf->file_count; i++) {
        if (strcmp(ovf->files[i].id, file->id) == 0 ||
            strcmp(ovf->files[i].href, file->href) == 0) {
            return error_set(err, ERR_CORRUPT, "line %ld: file '%.255s' stands there twice",
                             xmlGetLineNo(node), file->href);
        }
    }
    return 0;
}

static int find_file(const struct ovf *ovf, const xmlNode *node, const char *id, size_t *out,
                     struct error *err)
{
    *out = SIZE_MAX;
    if (id[0] == '\0')
        return 0;
    for (size_t i = 0; i < ovf->file_count; i++) {
        if (strcmp(ovf->files[i].id, id) == 0) {
            *out = i;
            return 0;
        }
    }
    return error_set(err, ERR_CORRUPT,
                     "line %ld: disk refers to file '%.255s', which is not listed",
                     xmlGetLineNo(node), id);
}

static int read_disk_entry(struct ovf *ovf, const xmlNode *node, struct error *err)
{
    struct ovf_disk_entry *disk;
    autofree char *file = NULL;
    autofree char *capacity = NULL;
    autofree char *units = NULL;
    autofree char *populated = NULL;
    autofree char *parent = NULL;

    if (ovf->disk_count == OVF_FILES_MAX)
        return error_set(err, ERR_LIMIT, "more than %d disks", OVF_FILES_MAX);
    ovf->disks = xreallocarray(ovf->disks, ovf->disk_count + 1, sizeof *ovf->disks);
    disk = &ovf->disks[ovf->disk_count++];
    *disk =
        (struct ovf_disk_entry){.file = SIZE_MAX, .controller_type = "", .controller_model = ""};
    if (required(node, "diskId", &disk->id, err) < 0 ||
        attribute(node, "fileRef", &file, err) < 0 ||
        required(node, "capacity", &capacity, err) < 0 ||
        attribute(node, "capacityAllocationUnits", &units, err) < 0 ||
        attribute(node, "populatedSize", &populated, err) < 0 ||
        attribute(node, "parentRef", &parent, err) < 0 ||
        number(node, "capacity", capacity, UINT64_MAX, &disk->capacity_bytes, err) < 0 ||
        number(node, "populatedSize", populated, UINT64_MAX, &disk->populated_bytes, err) < 0 ||
        find_file(ovf, node, file, &disk->file, err) < 0)
        return -1;
    if (parent[0] != '\0')
        return error_set(err, ERR_NOT_AVAILABLE, "disk '%.255s' is a delta of another", disk->id);
    if (!checked_mul_u64(disk->capacity_bytes, unit_bytes(units), &disk->capacity_bytes) ||
        disk->capacity_bytes == 0 || disk->capacity_bytes > CAPACITY_MAX) {
        return error_set(err, ERR_CORRUPT, "line %ld: capacity '%.64s' of '%.64s' is not a disk's",
                         xmlGetLineNo(node), capacity, units);
    }
    for (size_t i = 0; i + 1 < ovf->disk_count; i++) {
        if (strcmp(ovf->disks[i].id, disk->id) == 0) {
            return error_set(err, ERR_CORRUPT, "line %ld: disk '%.255s' stands there twice",
                             xmlGetLineNo(node), disk->id);
        }
    }
    return 0;
}

static int read_network(struct reader *r, const xmlNode *node, struct error *err)
{
    char *name = NULL;

    if (r->network_count == ITEMS_MAX)
        return error_set(err, ERR_LIMIT, "more than %d networks", ITEMS_MAX);
    if (required(node, "name", &name, err) < 0) {
        free(name);
        return -1;
    }
    r->networks = xreallocarray(r->networks, r->network_count + 1, sizeof *r->networks);
    r->networks[r->network_count++] = name;
    return 0;
}

/* Calls read for each `item` below each `section` of the envelope. */
static int read_sections(struct reader *r, const xmlNode *envelope, const char *section,
                         const char *item,
                         int (*read)(struct reader *r, const xmlNode *node, struct error *err),
                         struct error *err)
{
    for (xmlNode *s = child(envelope, section); s != NULL; s = next_named(s->next, section)) {
        for (xmlNode *n = child(s, item); n != NULL; n = next_named(n->next, item)) {
            if (read(r, n, err) < 0)
                return -1;
        }
    }
    return 0;
}

static int read_file_node(struct reader *r, const xmlNode *node, struct error *err)
{
    return read_file_entry(r->ovf, node, err);
}

static int read_disk_node(struct reader *r, const xmlNode *node, struct error *err)
{
    return read_disk_entry(r->ovf, node, err);
}

static int read_host_resource(struct reader *r, struct item *item, const xmlNode *node,
                              struct error *err)
{
    const struct ovf *ovf = r->ovf;
    autofree char *resource = NULL;
    const char *id;

    if (child_text(node, "HostResource", &resource, err) < 0)
        return -1;
    id = strncmp(resource, "ovf:", 4) == 0 ? resource + 4 : resource;
    if (strncmp(id, "/disk/", 6) == 0) {
        for (size_t i = 0; i < ovf->disk_count; i++) {
            if (strcmp(ovf->disks[i].id, id + 6) == 0) {
                item->disk = i;
                return 0;
            }
        }
    } else if (strncmp(id, "/file/", 6) == 0) {
        for (size_t i = 0; i < ovf->file_count; i++) {
            if (strcmp(ovf->files[i].id, id + 6) == 0)
                return 0;
        }
    }
    return error_set(err, ERR_CORRUPT, "line %ld: disk item points at '%.255s', which is not there",
                     xmlGetLineNo(node), resource);
}

/* ---- network cards ---- */

static int check_network(const struct reader *r, const xmlNode *node, const char *name,
                         struct error *err)
{
    if (name[0] == '\0')
        return 0;
    for (size_t i = 0; i < r->network_count; i++) {
        if (strcmp(r->networks[i], name) == 0)
            return 0;
    }
    return error_set(err, ERR_CORRUPT, "line %ld: network '%.255s' is not listed",
                     xmlGetLineNo(node), name);
}

/* In place: lower case with colons, or "" when it is no MAC address. */
static void tidy_mac(char *mac)
{
    for (char *p = mac; *p != '\0'; p++) {
        if (*p == '-')
            *p = ':';
        if (*p >= 'A' && *p <= 'F')
            *p = (char)(*p - 'A' + 'a');
    }
    if (fnmatch(MAC_PATTERN, mac, 0) != 0)
        mac[0] = '\0';
}

static const char *nic_model(const char *sub_type)
{
    static const char *const models[] = {"vmxnet3", "vmxnet2", "e1000e", "e1000", "pcnet32"};

    for (size_t i = 0; i < ARRAY_LEN(models); i++) {
        if (strcasecmp(sub_type, models[i]) == 0)
            return models[i];
    }
    return "";
}

static int read_nic(struct reader *r, const struct item *item, const xmlNode *node,
                    struct error *err)
{
    struct ovf *ovf = r->ovf;
    struct ovf_nic_entry *nic;

    if (ovf->nic_count == OVF_NICS_MAX)
        return error_set(err, ERR_LIMIT, "more than %d network cards", OVF_NICS_MAX);
    ovf->nics = xreallocarray(ovf->nics, ovf->nic_count + 1, sizeof *ovf->nics);
    nic = &ovf->nics[ovf->nic_count++];
    *nic = (struct ovf_nic_entry){.model = nic_model(item->sub_type)};
    if (child_text(node, "Connection", &nic->network, err) < 0 ||
        child_text(node, "Address", &nic->mac, err) < 0 ||
        check_network(r, node, nic->network, err) < 0)
        return -1;
    tidy_mac(nic->mac);
    return 0;
}

/* ---- hardware items ---- */

static int read_quantity(struct reader *r, const xmlNode *node, uint64_t type, struct error *err)
{
    autofree char *text = NULL;
    autofree char *units = NULL;
    uint64_t quantity = 0;
    uint64_t bytes = 0;

    if (child_text(node, "VirtualQuantity", &text, err) < 0 ||
        child_text(node, "AllocationUnits", &units, err) < 0)
        return -1;
    if (type == RESOURCE_CPU) {
        if (number(node, "VirtualQuantity", text, CPU_MAX, &quantity, err) < 0)
            return -1;
        r->ovf->cpu_count = (uint32_t)quantity;
        return 0;
    }
    if (number(node, "VirtualQuantity", text, UINT64_MAX, &quantity, err) < 0)
        return -1;
    if (!checked_mul_u64(quantity, units[0] == '\0' ? MIB : unit_bytes(units), &bytes) ||
        bytes / MIB > MEMORY_MB_MAX) {
        return error_set(err, ERR_CORRUPT, "line %ld: memory '%.64s' of '%.64s' is out of range",
                         xmlGetLineNo(node), text, units);
    }
    r->ovf->memory_mb = bytes / MIB;
    return 0;
}

static int read_number(const xmlNode *node, const char *name, uint64_t max, uint64_t *out,
                       struct error *err)
{
    autofree char *text = NULL;

    return child_text(node, name, &text, err) < 0 ? -1 : number(node, name, text, max, out, err);
}

static int check_instance(const struct reader *r, const struct item *item, const xmlNode *node,
                          struct error *err)
{
    if (item->instance[0] == '\0')
        return error_set(err, ERR_CORRUPT, "line %ld: item without InstanceID", xmlGetLineNo(node));
    for (const struct item *other = r->items; other < item; other++) {
        if (strcmp(item->instance, other->instance) == 0) {
            return error_set(err, ERR_CORRUPT, "line %ld: InstanceID '%.64s' stands there twice",
                             xmlGetLineNo(node), item->instance);
        }
    }
    return 0;
}

/* Where a device sits is a help, not a promise: what is no number is as if it were not there. */
static uint64_t place(const xmlNode *node, const char *name)
{
    struct error ignored = ERROR_NONE;
    uint64_t value = 0;

    (void)!read_number(node, name, UINT16_MAX, &value, &ignored);
    return value;
}

static int read_item(struct reader *r, const xmlNode *node, struct error *err)
{
    struct item *item = &r->items[r->item_count];

    if (r->item_count == ITEMS_MAX)
        return error_set(err, ERR_LIMIT, "more than %d hardware items", ITEMS_MAX);
    r->item_count++;
    *item = (struct item){.disk = SIZE_MAX,
                          .address = place(node, "Address"),
                          .unit = place(node, "AddressOnParent")};
    if (child_text(node, "InstanceID", &item->instance, err) < 0 ||
        child_text(node, "Parent", &item->parent, err) < 0 ||
        child_text(node, "ResourceSubType", &item->sub_type, err) < 0 ||
        read_number(node, "ResourceType", UINT16_MAX, &item->type, err) < 0 ||
        check_instance(r, item, node, err) < 0)
        return -1;
    switch (item->type) {
    case RESOURCE_CPU:
    case RESOURCE_MEMORY:
        return read_quantity(r, node, item->type, err);
    case RESOURCE_DISK:
        return read_host_resource(r, item, node, err);
    case RESOURCE_NIC:
        return read_nic(r, item, node, err);
    default:
        return 0;
    }
}

/* Sub types are free text; these are what VMware and VirtualBox write. */
static void place_disk(struct ovf_disk_entry *disk, const struct item *item,
                       const struct item *controller)
{
    static const struct {
        uint64_t type;
        const char *sub_type; /* NULL: any */
        const char *bus;
        const char *model;
    } known[] = {
        {RESOURCE_IDE, NULL, "ide", "ide"},
        {RESOURCE_SCSI, "lsilogicsas", "scsi", "lsisas1068"},
        {RESOURCE_SCSI, "VirtualSCSI", "scsi", "pvscsi"},
        {RESOURCE_SCSI, "buslogic", "scsi", "buslogic"},
        {RESOURCE_SCSI, NULL, "scsi", "lsilogic"},
        {RESOURCE_SATA, "vmware.nvme.controller", "nvme", "nvme"},
        {RESOURCE_SATA, NULL, "sata", "ahci"},
    };

    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        if (known[i].type != controller->type ||
            (known[i].sub_type != NULL && strcasecmp(known[i].sub_type, controller->sub_type) != 0))
            continue;
        disk->controller_type = known[i].bus;
        disk->controller_model = known[i].model;
        disk->controller_bus = (uint32_t)controller->address;
        disk->unit = (uint32_t)item->unit;
        return;
    }
}

static int check_parents(struct reader *r, struct error *err)
{
    for (size_t i = 0; i < r->item_count; i++) {
        const struct item *item = &r->items[i];
        const struct item *parent = NULL;
        for (size_t j = 0; j < r->item_count && parent == NULL; j++) {
            if (i != j && strcmp(item->parent, r->items[j].instance) == 0)
                parent = &r->items[j];
        }
        if (parent == NULL && item->parent[0] != '\0') {
            return error_set(err, ERR_CORRUPT,
                             "item '%.64s' has parent '%.64s', which is not there", item->instance,
                             item->parent);
        }
        if (parent != NULL && item->disk != SIZE_MAX)
            place_disk(&r->ovf->disks[item->disk], item, parent);
    }
    return 0;
}

static int read_config(struct ovf *ovf, const xmlNode *node, struct error *err)
{
    autofree char *key = NULL;
    autofree char *value = NULL;

    if (attribute(node, "key", &key, err) < 0 || attribute(node, "value", &value, err) < 0)
        return -1;
    if (strcmp(key, "firmware") == 0)
        ovf->firmware = strcmp(value, "efi") == 0 ? VM_FIRMWARE_UEFI : VM_FIRMWARE_BIOS;
    if (strcmp(key, "bootOptions.efiSecureBootEnabled") == 0)
        ovf->secure_boot = strcmp(value, "true") == 0;
    return 0;
}

/* Only ours and VMware's say which guest it is; the number of the standard names no version. */
static int read_guest(struct ovf *ovf, const xmlNode *system, struct error *err)
{
    const xmlNode *guest = child(system, "OperatingSystemSection");

    if (guest == NULL) {
        ovf->os_type = xstrdup("");
        ovf->os_name = xstrdup("");
        return 0;
    }
    if (attribute(guest, "osType", &ovf->os_type, err) < 0)
        return -1;
    return child_text(guest, "Description", &ovf->os_name, err);
}

static int read_system(struct reader *r, const xmlNode *system, struct error *err)
{
    const xmlNode *hardware = child(system, "VirtualHardwareSection");

    if (child_text(system, "Name", &r->ovf->name, err) < 0)
        return -1;
    if (r->ovf->name[0] == '\0') {
        free(STEAL(r->ovf->name));
        if (attribute(system, "id", &r->ovf->name, err) < 0)
            return -1;
    }
    if (hardware == NULL)
        return error_set(err, ERR_CORRUPT, "no VirtualHardwareSection");
    if (read_guest(r->ovf, system, err) < 0)
        return -1;
    for (xmlNode *n = hardware->children; n != NULL; n = n->next) {
        if (is_named(n, "Item") && read_item(r, n, err) < 0)
            return -1;
        if (is_named(n, "Config") && read_config(r->ovf, n, err) < 0)
            return -1;
    }
    return check_parents(r, err);
}

static int read_envelope(struct reader *r, const xmlNode *envelope, struct error *err)
{
    const xmlNode *system;

    if (envelope == NULL || !is_named(envelope, "Envelope") || envelope->ns == NULL ||
        (strcmp((const char *)envelope->ns->href, NS_OVF_1) != 0 &&
         strcmp((const char *)envelope->ns->href, NS_OVF_2) != 0))
        return error_set(err, ERR_CORRUPT, "the root is no OVF Envelope");
    if (read_sections(r, envelope, "References", "File", read_file_node, err) < 0 ||
        read_sections(r, envelope, "DiskSection", "Disk", read_disk_node, err) < 0 ||
        read_sections(r, envelope, "NetworkSection", "Network", read_network, err) < 0)
        return -1;
    system = child(envelope, "VirtualSystem");
    if (system == NULL)
        return error_set(err, ERR_NOT_AVAILABLE, "no VirtualSystem (collections are not read)");
    return read_system(r, system, err);
}

/* Walks the whole tree without recursion. */
static int check_shape(const xmlNode *root, struct error *err)
{
    const xmlNode *node = root;
    size_t depth = 1;
    size_t count = 0;

    while (node != NULL) {
        if (++count > OVF_NODES_MAX || depth > OVF_DEPTH_MAX) {
            return error_set(err, ERR_LIMIT, "descriptor has over %d nodes or %d levels",
                             OVF_NODES_MAX, OVF_DEPTH_MAX);
        }
        if (node->type == XML_ENTITY_REF_NODE)
            return error_set(err, ERR_CORRUPT, "line %ld: entity reference", xmlGetLineNo(node));
        if (node->type == XML_ELEMENT_NODE && node->children != NULL) {
            node = node->children;
            depth++;
            continue;
        }
        while (node != root && node->next == NULL) {
            node = node->parent;
            depth--;
        }
        node = node == root ? NULL : node->next;
    }
    return 0;
}

static int parse_tree(const char *text, size_t size, xmlDoc **out, struct error *err)
{
    const xmlError *cause;

    if (size > OVF_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "descriptor of %zu bytes is over %zu", size,
                         OVF_BYTES_MAX);
    }
    if (memmem(text, size, "<!DOCTYPE", 9) != NULL || memmem(text, size, "<!ENTITY", 8) != NULL)
        return error_set(err, ERR_CORRUPT, "descriptor has a DOCTYPE");
    xmlResetLastError();
    *out = xmlReadMemory(text, (int)size, "descriptor.ovf", NULL,
                         XML_PARSE_NONET | XML_PARSE_NOBLANKS | XML_PARSE_NOERROR |
                             XML_PARSE_NOWARNING | XML_PARSE_NOCDATA);
    if (*out == NULL) {
        cause = xmlGetLastError();
        if (cause == NULL || cause->message == NULL)
            return error_set(err, ERR_CORRUPT, "descriptor is no XML");
        return error_set(err, ERR_CORRUPT, "descriptor is no XML: line %d: %.*s", cause->line,
                         (int)strcspn(cause->message, "\n"), cause->message);
    }
    if (xmlGetIntSubset(*out) != NULL)
        return error_set(err, ERR_CORRUPT, "descriptor has a DOCTYPE");
    return 0;
}

static void reader_release(struct reader *r)
{
    for (size_t i = 0; i < r->item_count; i++) {
        free(r->items[i].instance);
        free(r->items[i].parent);
        free(r->items[i].sub_type);
    }
    for (size_t i = 0; i < r->network_count; i++)
        free(r->networks[i]);
    free(r->networks);
}

int ovf_read(const char *text, size_t size, struct ovf **out, struct error *err)
{
    auto_xmldoc *doc = NULL;
    auto_ovf *ovf = xcalloc(1, sizeof *ovf);
    CLEANUP(reader_release) struct reader r = {.ovf = ovf};

    if (parse_tree(text, size, &doc, err) < 0)
        return -1;
    const xmlNode *root = xmlDocGetRootElement(doc);
    if (root == NULL)
        return error_set(err, ERR_CORRUPT, "descriptor is empty");
    if (check_shape(root, err) < 0 || read_envelope(&r, root, err) < 0)
        return -1;
    *out = STEAL(ovf);
    return 0;
}

void ovf_free(struct ovf *ovf)
{
    if (ovf == NULL)
        return;
    for (size_t i = 0; i < ovf->file_count; i++) {
        free(ovf->files[i].id);
        free(ovf->files[i].href);
    }
    for (size_t i = 0; i < ovf->disk_count; i++)
        free(ovf->disks[i].id);
    for (size_t i = 0; i < ovf->nic_count; i++) {
        free(ovf->nics[i].mac);
        free(ovf->nics[i].network);
    }
    free(ovf->nics);
    free(ovf->os_type);
    free(ovf->os_name);
    free(ovf->files);
    free(ovf->disks);
    free(ovf->name);
    free(ovf);
}

int ovf_check_files(const struct ovf *ovf, const char *dir, struct error *err)
{
    for (size_t i = 0; i < ovf->file_count; i++) {
        const struct ovf_file_entry *file = &ovf->files[i];
        autofree char *path = xasprintf("%s/%s", dir, file->href);
        struct stat st;
        if (stat(path, &st) < 0)
            return error_set_errno(err, errno, "the descriptor's file '%.255s'", file->href);
        if (!S_ISREG(st.st_mode) || (file->bytes != 0 && (uint64_t)st.st_size != file->bytes)) {
            return error_set(err, ERR_CORRUPT,
                             "'%.255s' has %jd bytes, the descriptor says %" PRIu64, file->href,
                             (intmax_t)st.st_size, file->bytes);
        }
    }
    return 0;
}
