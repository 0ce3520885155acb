/* See usage.h. */
#include "usage.h"

#include <fcntl.h>
#include <libvirt/virterror.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "services/exporter/formats/bytes.h"
#include "xml.h"

#define CHAIN_MAX          64   /* images below each other that are followed */
#define BACKING_BYTES_MAX  1023 /* of the name, by the format's definition */
#define HEADER_BYTES       20   /* up to the name's length */
#define AT_BACKING_OFFSET  8
#define AT_BACKING_LENGTH  16
#define BACKING_OFFSET_MAX (2 * MIB) /* the name lies in the first cluster */

/* ---- files ---- */

/* The same file has one name here; what does not exist on this machine goes by libvirt's word. */
static char *canonical(const char *path)
{
    char *real = realpath(path, NULL);

    return real != NULL ? real : xstrdup(path);
}

static char *absolute(const char *image, const char *name)
{
    const char *colon = strchr(name, ':');
    const char *slash = strchr(name, '/');
    autofree char *directory = NULL;

    if (colon != NULL && (slash == NULL || colon < slash))
        return NULL; /* "nbd://...", "json:{...}": no file */
    if (name[0] == '/')
        return xstrdup(name);
    directory = path_parent(image);
    return xasprintf("%s/%s", directory, name);
}

char *usage_backing(const char *path)
{
    static const uint8_t magic[] = {'Q', 'F', 'I', 0xfb};
    autoclose int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    uint8_t header[HEADER_BYTES];
    char name[BACKING_BYTES_MAX + 1];
    uint64_t offset;
    uint32_t length;
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
        pread(fd, header, sizeof header, 0) != (ssize_t)sizeof header ||
        memcmp(header, magic, sizeof magic) != 0)
        return NULL;
    offset = get_be64(header + AT_BACKING_OFFSET);
    length = get_be32(header + AT_BACKING_LENGTH);
    if (offset == 0 || offset > BACKING_OFFSET_MAX || length == 0 || length > BACKING_BYTES_MAX ||
        pread(fd, name, length, (off_t)offset) != (ssize_t)length)
        return NULL;
    name[length] = '\0';
    return strlen(name) == length ? absolute(path, name) : NULL;
}

static void add(json_t *usage, const char *path, const char *user)
{
    autofree char *key = canonical(path);
    json_t *users = json_object_get(usage, key);

    if (users == NULL) {
        users = json_array();
        if (json_object_set_new(usage, key, users) < 0)
            return; /* no UTF-8: libvirt's XML cannot name it either */
    }
    (void)json_array_append_new(users, json_string(user));
}

static void add_chain(json_t *usage, const char *path, const char *user)
{
    autofree char *above = xstrdup(path);

    add(usage, path, user);
    for (int depth = 0; depth < CHAIN_MAX; depth++) {
        char *below = usage_backing(above);
        if (below == NULL)
            return;
        add(usage, below, user);
        free(above);
        above = below;
    }
}

const char *usage_of(const json_t *usage, const char *path)
{
    autofree char *key = canonical(path);

    return json_string_value(json_array_get(json_object_get(usage, key), 0));
}

/* ---- domains ---- */

static void add_volume(virConnectPtr connection, json_t *usage, xmlNode *source, const char *user)
{
    autofree char *pool_name = hv_xml_attribute(source, "pool");
    autofree char *name = hv_xml_attribute(source, "volume");
    auto_pool pool = NULL;
    auto_volume volume = NULL;
    char *path = NULL;

    if (pool_name[0] == '\0' || name[0] == '\0')
        return;
    pool = virStoragePoolLookupByName(connection, pool_name);
    volume = pool == NULL ? NULL : virStorageVolLookupByName(pool, name);
    path = volume == NULL ? NULL : virStorageVolGetPath(volume);
    if (path != NULL)
        add_chain(usage, path, user);
    free(path);
}

/* Every file that stands anywhere in it: disks, what is below them, snapshots, firmware, kernels.
 */
static int add_xml(virConnectPtr connection, json_t *usage, char *text_taken, const char *user,
                   struct error *err)
{
    static const char *const attributes[] = {"file", "dev"};
    static const char *const texts[] = {"loader", "nvram", "kernel", "initrd", "dtb"};
    auto_xmldoc *doc = NULL;
    xmlNode *root;

    if (hv_xml_parse(text_taken, &doc, err) < 0)
        return -1;
    root = xmlDocGetRootElement(doc);
    for (xmlNode *n = root; n != NULL; n = hv_xml_next(root, n)) {
        for (size_t i = 0; i < ARRAY_LEN(attributes) && hv_xml_is(n, "source"); i++) {
            autofree char *path = hv_xml_attribute(n, attributes[i]);
            if (path[0] == '/')
                add_chain(usage, path, user);
        }
        if (hv_xml_is(n, "source"))
            add_volume(connection, usage, n, user);
        for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
            autofree char *path = hv_xml_is(n, texts[i]) ? hv_xml_text(n) : NULL;
            if (path != NULL && path[0] == '/')
                add(usage, path, user);
        }
    }
    return 0;
}

static int add_snapshots(virConnectPtr connection, json_t *usage, virDomainPtr domain,
                         const char *user, struct error *err)
{
    CLEANUP(hv_snapshot_list_release) struct hv_snapshot_list all = {0};

    all.count = virDomainListAllSnapshots(domain, &all.items, 0);
    if (all.count < 0) {
        if (hv_error_number() == VIR_ERR_NO_DOMAIN || hv_error_number() == VIR_ERR_NO_SUPPORT)
            return 0;
        return hv_error(err, "snapshots of %.255s", user);
    }
    for (int i = 0; i < all.count; i++) {
        char *text = virDomainSnapshotGetXMLDesc(all.items[i], 0);
        if (text == NULL && hv_error_number() != VIR_ERR_NO_DOMAIN_SNAPSHOT)
            return hv_error(err, "a snapshot of %.255s", user);
        if (text != NULL && add_xml(connection, usage, text, user, err) < 0)
            return -1;
    }
    return 0;
}

static int add_domain(virConnectPtr connection, json_t *usage, virDomainPtr domain,
                      enum usage_scope scope, struct error *err)
{
    const unsigned int flags[] = {0, VIR_DOMAIN_XML_INACTIVE};
    autofree char *user = xasprintf("domain '%s'", virDomainGetName(domain));

    for (size_t i = 0; i < ARRAY_LEN(flags); i++) {
        char *text = virDomainGetXMLDesc(domain, flags[i]);
        if (text == NULL && hv_error_number() != VIR_ERR_NO_DOMAIN) /* it has just gone */
            return hv_error(err, "%.255s", user);
        if (text != NULL && add_xml(connection, usage, text, user, err) < 0)
            return -1;
    }
    return scope == USAGE_ALL ? add_snapshots(connection, usage, domain, user, err) : 0;
}

static int add_domains(virConnectPtr connection, json_t *usage, enum usage_scope scope,
                       const char *except, struct error *err)
{
    CLEANUP(hv_domain_list_release) struct hv_domain_list all = {0};

    all.count = virConnectListAllDomains(
        connection, &all.items, scope == USAGE_RUNNING ? VIR_CONNECT_LIST_DOMAINS_ACTIVE : 0);
    if (all.count < 0)
        return hv_error(err, "domains");
    for (int i = 0; i < all.count; i++) {
        char uuid[VIR_UUID_STRING_BUFLEN] = "";
        if (virDomainGetUUIDString(all.items[i], uuid) < 0)
            return hv_error(err, "domains");
        if (except != NULL && strcmp(uuid, except) == 0)
            continue;
        if (add_domain(connection, usage, all.items[i], scope, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- volumes that stand on others ---- */

static int add_backing(json_t *usage, virStoragePoolPtr pool, virStorageVolPtr volume,
                       struct error *err)
{
    autofree char *user = xasprintf("volume '%s' of pool '%s'", virStorageVolGetName(volume),
                                    virStoragePoolGetName(pool));
    char *text = virStorageVolGetXMLDesc(volume, 0);
    autofree char *below = NULL;
    auto_xmldoc *doc = NULL;

    if (text == NULL && hv_error_number() == VIR_ERR_NO_STORAGE_VOL)
        return 0;
    if (text == NULL)
        return hv_error(err, "%.255s", user);
    if (hv_xml_parse(text, &doc, err) < 0)
        return -1;
    below =
        hv_xml_text(hv_xml_child(hv_xml_child(xmlDocGetRootElement(doc), "backingStore"), "path"));
    if (below[0] == '/')
        add_chain(usage, below, user);
    return 0;
}

static int add_pool(json_t *usage, virStoragePoolPtr pool, struct error *err)
{
    CLEANUP(hv_volume_list_release) struct hv_volume_list all = {0};

    /* what appeared since libvirt looked counts as well; a pool that cannot be read holds nothing
     * that could be */
    (void)virStoragePoolRefresh(pool, 0);
    all.count = virStoragePoolListAllVolumes(pool, &all.items, 0);
    for (int i = 0; i < all.count; i++) {
        if (add_backing(usage, pool, all.items[i], err) < 0)
            return -1;
    }
    return 0;
}

static int add_pools(virConnectPtr connection, json_t *usage, struct error *err)
{
    CLEANUP(hv_pool_list_release) struct hv_pool_list all = {0};

    all.count = virConnectListAllStoragePools(connection, &all.items,
                                              VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE);
    if (all.count < 0)
        return hv_error(err, "storage pools");
    for (int i = 0; i < all.count; i++) {
        if (add_pool(usage, all.items[i], err) < 0)
            return -1;
    }
    return 0;
}

int usage_read(virConnectPtr connection, enum usage_scope scope, const char *except, json_t **out,
               struct error *err)
{
    auto_json *usage = json_object();

    if (scope == USAGE_ALL && add_pools(connection, usage, err) < 0)
        return -1;
    if (add_domains(connection, usage, scope, except, err) < 0)
        return -1;
    *out = STEAL(usage);
    return 0;
}
