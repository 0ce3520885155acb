/* Reading of OVF descriptors; see ovf.h. The tree is gone when ovf_read returns.
 *
 * Design notes
 * - A DOCTYPE is refused before the parser runs (it is where entities come from) and once more
 *   after it, for encodings in which the text search sees nothing.
 * - Elements are found by local name in either OVF namespace; attributes with or without prefix,
 *   since both are in the wild. */
#include <errno.h>
#include <inttypes.h>
#include <libxml/parser.h>
#include <libxml/tree.h>
#include <string.h>
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
#define RESOURCE_CPU    3
#define RESOURCE_MEMORY 4
#define RESOURCE_NIC    10
#define RESOURCE_DISK   17

struct reader {
    struct ovf *ovf;
    char *instances[ITEMS_MAX];
    char *parents[ITEMS_MAX];
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
    *disk = (struct ovf_disk_entry){.file = SIZE_MAX};
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

static int check_host_resource(const struct ovf *ovf, const xmlNode *node, struct error *err)
{
    autofree char *resource = NULL;
    const char *id;

    if (child_text(node, "HostResource", &resource, err) < 0)
        return -1;
    id = strncmp(resource, "ovf:", 4) == 0 ? resource + 4 : resource;
    if (strncmp(id, "/disk/", 6) == 0) {
        for (size_t i = 0; i < ovf->disk_count; i++) {
            if (strcmp(ovf->disks[i].id, id + 6) == 0)
                return 0;
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

static int check_connection(const struct reader *r, const xmlNode *node, struct error *err)
{
    autofree char *name = NULL;

    if (child_text(node, "Connection", &name, err) < 0)
        return -1;
    if (name[0] == '\0')
        return 0;
    for (size_t i = 0; i < r->network_count; i++) {
        if (strcmp(r->networks[i], name) == 0)
            return 0;
    }
    return error_set(err, ERR_CORRUPT, "line %ld: network '%.255s' is not listed",
                     xmlGetLineNo(node), name);
}

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

static int read_item(struct reader *r, const xmlNode *node, struct error *err)
{
    autofree char *type_text = NULL;
    uint64_t type = 0;
    size_t i = r->item_count;

    if (i == ITEMS_MAX)
        return error_set(err, ERR_LIMIT, "more than %d hardware items", ITEMS_MAX);
    r->item_count++; /* half-read entries are NULL and freed as such */
    if (child_text(node, "InstanceID", &r->instances[i], err) < 0 ||
        child_text(node, "Parent", &r->parents[i], err) < 0 ||
        child_text(node, "ResourceType", &type_text, err) < 0 ||
        number(node, "ResourceType", type_text, UINT16_MAX, &type, err) < 0)
        return -1;
    if (r->instances[i][0] == '\0')
        return error_set(err, ERR_CORRUPT, "line %ld: item without InstanceID", xmlGetLineNo(node));
    for (size_t j = 0; j < i; j++) {
        if (strcmp(r->instances[i], r->instances[j]) == 0) {
            return error_set(err, ERR_CORRUPT, "line %ld: InstanceID '%.64s' stands there twice",
                             xmlGetLineNo(node), r->instances[i]);
        }
    }
    if (type == RESOURCE_CPU || type == RESOURCE_MEMORY)
        return read_quantity(r, node, type, err);
    if (type == RESOURCE_DISK)
        return check_host_resource(r->ovf, node, err);
    if (type == RESOURCE_NIC) {
        r->ovf->nic_count++;
        return check_connection(r, node, err);
    }
    return 0;
}

static int check_parents(const struct reader *r, struct error *err)
{
    for (size_t i = 0; i < r->item_count; i++) {
        bool found = r->parents[i][0] == '\0';
        for (size_t j = 0; j < r->item_count && !found; j++)
            found = i != j && strcmp(r->parents[i], r->instances[j]) == 0;
        if (!found) {
            return error_set(err, ERR_CORRUPT,
                             "item '%.64s' has parent '%.64s', which is not there", r->instances[i],
                             r->parents[i]);
        }
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
        free(r->instances[i]);
        free(r->parents[i]);
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
