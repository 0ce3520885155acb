/* See delete.h.
 *
 * What is removed is settled first and noted, then the definition goes, then the volumes: as long
 * as libvirt refuses to let go of the domain no byte is lost, and a later lease goes on with the
 * noted volumes, after another look at who uses them. */
#include <libvirt/virterror.h>
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "common/paths.h"
#include "delete.h"
#include "domain.h"
#include "plan.h"
#include "usage.h"
#include "volume.h"
#include "xml.h"

#define VOLUMES_MAX 64 /* of one domain */

struct deletion {
    struct hv_call *call;
    const struct delete_wish *wish;
    json_t *usage;   /* NULL: storage stays */
    json_t *volumes; /* to remove: [{pool, name, path}] */
    json_t *kept;    /* of the answer, as all below */
    json_t *failed;
    json_t *removed;
    json_t *removed_volumes;
};

static void deletion_release(struct deletion *d)
{
    json_decref(d->usage);
    json_decref(d->volumes);
    json_decref(d->kept);
    json_decref(d->failed);
    json_decref(d->removed);
    json_decref(d->removed_volumes);
}

static void keep(struct deletion *d, const char *path, const char *reason)
{
    json_t *entry = json_object();

    json_set_text(entry, "path", path);
    json_set_text(entry, "reason", reason);
    (void)json_array_append_new(d->kept, entry);
}

char *delete_export_reason(const char *path)
{
    autofree char *directory = path_parent(path);
    struct error why = ERROR_NONE;
    bool is_export = false;

    if (plan_is_export(directory, &is_export, &why) == 0 && !is_export)
        return xstrdup("");
    return xasprintf("it belongs to the export in '%s'", directory);
}

/* ---- what goes ---- */

static virStorageVolPtr find_volume(virConnectPtr connection, xmlNode *source)
{
    autofree char *file = hv_xml_attribute(source, "file");
    autofree char *dev = hv_xml_attribute(source, "dev");
    autofree char *pool_name = hv_xml_attribute(source, "pool");
    autofree char *name = hv_xml_attribute(source, "volume");
    auto_pool pool = NULL;

    if (file[0] != '\0' || dev[0] != '\0')
        return virStorageVolLookupByPath(connection, file[0] != '\0' ? file : dev);
    pool = pool_name[0] == '\0' ? NULL : virStoragePoolLookupByName(connection, pool_name);
    return pool == NULL ? NULL : virStorageVolLookupByName(pool, name);
}

/* As a person would name it. */
static char *source_name(xmlNode *source)
{
    static const char *const attributes[] = {"file", "dev", "volume", "name", "dir"};

    for (size_t i = 0; i < ARRAY_LEN(attributes); i++) {
        char *name = hv_xml_attribute(source, attributes[i]);
        if (name[0] != '\0')
            return name;
        free(name);
    }
    return xstrdup("");
}

/* *out: why it stays, "": it goes. Caller frees. */
static int reason_to_keep(const struct deletion *d, xmlNode *disk, virStorageVolPtr volume,
                          const char *path, char **out, struct error *err)
{
    const char *user = volume == NULL ? NULL : usage_of(d->usage, path);
    auto_pool pool = NULL;

    if (volume == NULL) {
        *out = xstrdup("it is no volume of a storage pool that runs");
    } else if (user != NULL) {
        *out = xasprintf("%s uses it", user);
    } else if (hv_xml_child(disk, "shareable") != NULL || hv_xml_child(disk, "readonly") != NULL) {
        *out = xstrdup("the domain has it shared or read-only");
    } else {
        *out = delete_export_reason(path);
    }
    if (**out != '\0')
        return 0;
    pool = virStoragePoolLookupByVolume(volume);
    if (pool == NULL)
        return hv_error(err, "pool of '%.255s'", path);
    (void)json_array_append_new(d->volumes,
                                json_pack("{s:s, s:s, s:s}", "pool", virStoragePoolGetName(pool),
                                          "name", virStorageVolGetName(volume), "path", path));
    return 0;
}

static bool is_listed(const json_t *volumes, const char *path)
{
    const json_t *volume;
    size_t i;

    json_array_foreach(volumes, i, volume)
    {
        if (strcmp(json_str(volume, "path"), path) == 0)
            return true;
    }
    return false;
}

static int settle_disk(struct deletion *d, xmlNode *disk, struct error *err)
{
    xmlNode *source = hv_xml_child(disk, "source");
    autofree char *device = hv_xml_attribute(disk, "device");
    autofree char *named = source_name(source);
    autofree char *path = NULL;
    autofree char *below = NULL;
    autofree char *reason = NULL;
    auto_volume volume = NULL;

    /* a CD or floppy in a drive is not the domain's own */
    if ((device[0] != '\0' && strcmp(device, "disk") != 0) || named[0] == '\0')
        return 0;
    volume = find_volume(d->call->connection, source);
    if (volume != NULL && volume_path(volume, &path, err) < 0)
        return -1;
    if (path != NULL && is_listed(d->volumes, path))
        return 0;
    if (reason_to_keep(d, disk, volume, path, &reason, err) < 0)
        return -1;
    if (*reason != '\0') {
        keep(d, path != NULL ? path : named, reason);
        return 0;
    }
    below = usage_backing(path);
    if (below != NULL)
        keep(d, below, "an image of the domain stands on it, others may as well");
    return 0;
}

static int settle_disks(struct deletion *d, xmlNode *root, struct error *err)
{
    const xmlNode *devices = hv_xml_child(root, "devices");

    for (xmlNode *n = devices == NULL ? NULL : devices->children; n != NULL; n = n->next) {
        if (hv_xml_is(n, "disk") && settle_disk(d, n, err) < 0)
            return -1;
    }
    if (json_array_size(d->volumes) > VOLUMES_MAX)
        return error_set(err, ERR_LIMIT, "the domain has more than %d volumes", VOLUMES_MAX);
    return 0;
}

static int list_snapshots(virDomainPtr domain, json_t *out, struct error *err)
{
    CLEANUP(hv_snapshot_list_release) struct hv_snapshot_list all = {0};

    all.count = virDomainListAllSnapshots(domain, &all.items, 0);
    if (all.count < 0)
        return hv_error(err, "snapshots of domain '%.255s'", virDomainGetName(domain));
    for (int i = 0; i < all.count; i++)
        (void)json_array_append_new(out, json_string(virDomainSnapshotGetName(all.items[i])));
    return 0;
}

static int settle(struct deletion *d, virDomainPtr domain, const char *uuid, struct error *err)
{
    bool persistent = virDomainIsPersistent(domain) == 1;
    char *text = virDomainGetXMLDesc(domain, persistent ? VIR_DOMAIN_XML_INACTIVE : 0);
    json_t *snapshots = json_array();
    auto_xmldoc *doc = NULL;
    xmlNode *root;

    json_put(d->removed, "snapshots", snapshots);
    if (text == NULL)
        return hv_error(err, "domain '%.255s'", virDomainGetName(domain));
    if (hv_xml_parse(text, &doc, err) < 0)
        return -1;
    root = xmlDocGetRootElement(doc);
    json_set_text(d->removed, "domain", virDomainGetName(domain));
    json_set_text(d->removed, "uuid", uuid);
    json_put(d->removed, "managed_save",
             json_boolean(virDomainHasManagedSaveImage(domain, 0) == 1));
    hv_xml_take_text(d->removed, "nvram", hv_xml_child(hv_xml_child(root, "os"), "nvram"));
    if (list_snapshots(domain, snapshots, err) < 0)
        return -1;
    if (!d->wish->remove_storage)
        return 0;
    if (usage_read(d->call->connection, USAGE_ALL, uuid, &d->usage, err) < 0)
        return -1;
    return settle_disks(d, root, err);
}

/* ---- notes ---- */

/* Part 0, "<UUID> <volumes>", is the last: without it nothing was begun. */
static int note(struct deletion *d, const char *uuid, struct error *err)
{
    size_t count = json_array_size(d->volumes);
    autofree char *head = xasprintf("%s %zu", uuid, count);

    for (size_t i = 0; i < count; i++) {
        autofree char *text = json_text(json_array_get(d->volumes, i));
        if (call_note(d->call, d->wish->index, i + 1, text, err) < 0)
            return -1;
    }
    return call_note(d->call, d->wish->index, 0, head, err);
}

static int read_notes(struct deletion *d, const char *head, struct error *err)
{
    size_t count = strtoul(head + VIR_UUID_STRING_BUFLEN, NULL, 10);

    for (size_t i = 0; i < count && i < VOLUMES_MAX; i++) {
        const char *text = call_noted(d->call, d->wish->index, i + 1);
        json_t *volume = text == NULL ? NULL : json_loads(text, 0, NULL);
        if (volume == NULL)
            return error_set(err, ERR_INTERNAL, "a note about the volumes is missing");
        (void)json_array_append_new(d->volumes, volume);
    }
    json_set_text(d->removed, "domain", d->wish->name);
    json_put(d->removed, "uuid", json_stringn(head, VIR_UUID_STRING_BUFLEN - 1));
    json_put(d->removed, "snapshots", json_array());
    json_put(d->removed, "managed_save", json_false());
    json_set_text(d->removed, "nvram", "");
    return usage_read(d->call->connection, USAGE_ALL, NULL, &d->usage, err);
}

/* ---- doing it ---- */

static int check_state(const struct deletion *d, virDomainPtr domain, struct error *err)
{
    bool active = false;

    if (domain_is_active(domain, &active, err) < 0)
        return -1;
    if (!active || d->wish->force)
        return 0;
    return error_set(err, ERR_CONFLICT, "domain '%.255s' is '%s': shut it down first, or say force",
                     virDomainGetName(domain), domain_state(domain));
}

static int remove_definition(struct deletion *d, virDomainPtr domain, struct error *err)
{
    if (call_may_act(d->call, err) < 0)
        return -1;
    return d->wish->force ? domain_remove(domain, err) : domain_undefine(domain, err);
}

/* Between the look and the end somebody may have started it: then it goes on, and needs its disks.
 */
static bool goes_on(virDomainPtr domain)
{
    return virDomainIsActive(domain) == 1;
}

static int delete_volume(virStoragePoolPtr pool, const json_t *volume, struct error *err)
{
    const char *name = json_str(volume, "name");
    autofree char *path = NULL;
    auto_volume found = NULL;
    int rc = volume_find(pool, name, &found, err);

    if (rc <= 0) /* gone already */
        return rc;
    if (volume_path(found, &path, err) < 0)
        return -1;
    if (strcmp(path, json_str(volume, "path")) != 0)
        return error_set(err, ERR_CONFLICT, "volume '%.255s' is at '%.255s' now", name, path);
    if (virStorageVolDelete(found, 0) < 0 && hv_error_number() != VIR_ERR_NO_STORAGE_VOL)
        return hv_error_of(err, "removing volume '%.255s'", name);
    return 0;
}

static void remove_volume(struct deletion *d, json_t *volume)
{
    const char *path = json_str(volume, "path");
    const char *user = usage_of(d->usage, path);
    struct error why = ERROR_NONE;
    auto_pool pool = NULL;
    json_t *entry;

    if (user != NULL) {
        autofree char *reason = xasprintf("%s uses it", user);
        keep(d, path, reason);
        return;
    }
    if (volume_pool(d->call->connection, json_str(volume, "pool"), &pool, &why) == 0 &&
        delete_volume(pool, volume, &why) == 0) {
        (void)json_array_append(d->removed_volumes, volume);
        worker_task_log(d->call->task, LOG_LEVEL_INFO, "volume '%s' of pool '%s' is removed",
                        json_str(volume, "name"), json_str(volume, "pool"));
        return;
    }
    entry = json_object();
    json_set_text(entry, "path", path);
    json_set_text(entry, "error", why.message);
    (void)json_array_append_new(d->failed, entry);
}

static int remove_volumes(struct deletion *d, struct error *err)
{
    json_t *volume;
    size_t i;

    json_array_foreach(d->volumes, i, volume)
    {
        if (call_may_act(d->call, err) < 0)
            return -1;
        remove_volume(d, volume);
    }
    return 0;
}

static int remove_all(struct deletion *d, virDomainPtr domain, const char *uuid, struct error *err)
{
    json_t *volume;
    size_t i;

    if (check_state(d, domain, err) < 0 || settle(d, domain, uuid, err) < 0 ||
        note(d, uuid, err) < 0 || remove_definition(d, domain, err) < 0)
        return -1;
    worker_task_log(d->call->task, LOG_LEVEL_INFO, "domain '%s' (%s) is removed",
                    json_str(d->removed, "domain"), uuid);
    if (!goes_on(domain))
        return remove_volumes(d, err);
    json_array_foreach(d->volumes, i, volume)
    {
        keep(d, json_str(volume, "path"), "the domain was started meanwhile and goes on");
    }
    return 0;
}

static void say(const struct deletion *d, json_t *answer)
{
    json_put(d->removed, "volumes", json_incref(d->removed_volumes));
    json_set_text(answer, "status", json_array_size(d->failed) > 0 ? "partial" : "success");
    json_set_text(answer, "domain", json_str(d->removed, "domain"));
    json_put(answer, "removed", json_incref(d->removed));
    json_put(answer, "kept", json_incref(d->kept));
    json_put(answer, "failed", json_incref(d->failed));
}

int delete_domain(struct hv_call *call, const struct delete_wish *wish, json_t *answer,
                  struct error *err)
{
    CLEANUP(deletion_release)
    struct deletion d = {.call = call,
                         .wish = wish,
                         .volumes = json_array(),
                         .kept = json_array(),
                         .failed = json_array(),
                         .removed = json_object(),
                         .removed_volumes = json_array()};
    const char *noted = call_noted(call, wish->index, 0);
    char uuid[VIR_UUID_STRING_BUFLEN] = "";
    auto_domain domain = NULL;
    int rc = call_find(call, wish->name, &domain, err);

    if (rc < 0 && (err->code != ERR_NOT_FOUND || noted == NULL))
        return -1;
    if (rc == 0 && virDomainGetUUIDString(domain, uuid) < 0)
        return hv_error(err, "domain '%.255s'", wish->name);
    if (noted != NULL && strncmp(noted, uuid, sizeof uuid - 1) != 0) {
        error_clear(err); /* an earlier lease removed it; what has its name now is another */
        rc = read_notes(&d, noted, err) < 0 ? -1 : remove_volumes(&d, err);
    } else {
        rc = remove_all(&d, domain, uuid, err);
    }
    if (rc == 0)
        say(&d, answer);
    return rc;
}

int call_delete(struct hv_call *call, json_t *answer, struct error *err)
{
    const struct delete_wish wish = {
        .name = json_str(call->spec, "name"),
        .force = json_is_true(json_object_get(call->spec, "force")),
        .remove_storage = json_is_true(json_object_get(call->spec, "remove_storage")),
    };

    return delete_domain(call, &wish, answer, err);
}
