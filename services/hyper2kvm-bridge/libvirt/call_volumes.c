/* Volumes of storage pools: shown, made, made larger, removed. */
#include <inttypes.h>
#include <string.h>

#include "call.h"
#include "common/json.h"
#include "common/strbuf.h"
#include "delete.h"
#include "usage.h"
#include "volume.h"
#include "xml.h"

#define XML_BYTES_MAX ((size_t)(16 * KIB))

static void put_bytes(json_t *facts, const char *key, unsigned long long bytes)
{
    json_put(facts, key, json_integer((json_int_t)bytes));
}

static const char *volume_type(int type)
{
    static const char *const words[] = {"file", "block", "dir", "network", "netdir", "ploop"};

    return type >= 0 && (size_t)type < ARRAY_LEN(words) ? words[type] : "file";
}

static int volume_facts(const struct hv_call *call, void *handle, json_t **out, struct error *err)
{
    virStorageVolPtr volume = handle;
    char *text = virStorageVolGetXMLDesc(volume, 0);
    auto_json *facts = json_object();
    auto_xmldoc *doc = NULL;
    virStorageVolInfo info;
    xmlNode *root;

    (void)call;
    if (text == NULL)
        return hv_error(err, "volume '%.128s'", virStorageVolGetName(volume));
    if (hv_xml_parse(text, &doc, err) < 0)
        return -1;
    if (virStorageVolGetInfo(volume, &info) < 0)
        return hv_error(err, "volume '%.128s'", virStorageVolGetName(volume));
    root = xmlDocGetRootElement(doc);
    json_set_text(facts, "name", virStorageVolGetName(volume));
    hv_xml_take_text(facts, "path", hv_xml_child(hv_xml_child(root, "target"), "path"));
    json_set_text(facts, "type", volume_type(info.type));
    hv_xml_take(facts, "format", hv_xml_child(hv_xml_child(root, "target"), "format"), "type");
    hv_xml_take_text(facts, "backing_file",
                     hv_xml_child(hv_xml_child(root, "backingStore"), "path"));
    put_bytes(facts, "capacity_bytes", info.capacity);
    put_bytes(facts, "allocation_bytes", info.allocation);
    *out = STEAL(facts);
    return 0;
}

int call_volumes(struct hv_call *call, json_t *answer, struct error *err)
{
    CLEANUP(hv_volume_list_release) struct hv_volume_list all = {0};
    autofree struct hv_item *items = NULL;
    struct hv_page page = {.member = "volumes", .facts = volume_facts};
    const char *name = json_str(call->spec, "pool");
    auto_pool pool = NULL;

    if (volume_pool(call->connection, name, &pool, err) < 0)
        return -1;
    /* else what was put there behind libvirt's back is missing */
    if (json_is_true(json_object_get(call->spec, "refresh")) && virStoragePoolRefresh(pool, 0) < 0)
        return hv_error_of(err, "looking at storage pool '%.128s' again", name);
    all.count = virStoragePoolListAllVolumes(pool, &all.items, 0);
    if (all.count < 0)
        return hv_error(err, "volumes of storage pool '%.128s'", name);
    json_set_text(answer, "pool", virStoragePoolGetName(pool));
    page.items = items = xcalloc((size_t)all.count + 1, sizeof *items);
    page.count = (size_t)all.count;
    for (size_t i = 0; i < page.count; i++)
        items[i] = (struct hv_item){virStorageVolGetName(all.items[i]), all.items[i]};
    return call_page(call, &page, answer, err);
}

/* ---- one volume ---- */

/* The pool that the call names, and the volume. 1: there is one. 0: there is none. */
static int find(struct hv_call *call, virStoragePoolPtr *out_pool, virStorageVolPtr *out,
                struct error *err)
{
    if (volume_pool(call->connection, json_str(call->spec, "pool"), out_pool, err) < 0)
        return -1;
    return volume_find(*out_pool, json_str(call->spec, "volume"), out, err);
}

static int missing(const struct hv_call *call, struct error *err)
{
    return error_set(err, ERR_NOT_FOUND, "storage pool '%.128s' has no volume '%.255s'",
                     json_str(call->spec, "pool"), json_str(call->spec, "volume"));
}

static int answer_volume(const struct hv_call *call, virStorageVolPtr volume, json_t *answer,
                         struct error *err)
{
    json_t *facts = NULL;

    if (volume_facts(call, volume, &facts, err) < 0)
        return -1;
    json_set_text(answer, "status", "success");
    json_set_text(answer, "pool", json_str(call->spec, "pool"));
    json_put(answer, "volume", facts);
    return 0;
}

static int create(struct hv_call *call, virStoragePoolPtr pool, virStorageVolPtr *out,
                  struct error *err)
{
    const char *name = json_str(call->spec, "volume");
    const char *format = json_str(call->spec, "format");
    autofree char *xml = NULL;
    auto_strbuf sb;

    strbuf_init(&sb, XML_BYTES_MAX);
    strbuf_add(&sb, "<volume><name>");
    strbuf_add_xml(&sb, name);
    strbuf_addf(&sb,
                "</name><capacity unit='bytes'>%" PRIu64
                "</capacity><allocation unit='bytes'>0</allocation><target><format type='",
                json_u64(call->spec, "capacity_bytes"));
    strbuf_add_xml(&sb, format[0] == '\0' ? "qcow2" : format);
    strbuf_add(&sb, "'/></target></volume>");
    if (strbuf_finish(&sb, &xml, err) < 0)
        return -1;
    *out = virStorageVolCreateXML(pool, xml, 0);
    return *out != NULL ? 0 : hv_error_of(err, "making volume '%.255s'", name);
}

int call_volume_create(struct hv_call *call, json_t *answer, struct error *err)
{
    bool noted = call_noted(call, 0, 0) != NULL;
    auto_pool pool = NULL;
    auto_volume volume = NULL;
    int found = find(call, &pool, &volume, err);

    if (found < 0)
        return -1;
    if (found == 1 && !noted) {
        return error_set(err, ERR_CONFLICT, "storage pool '%.128s' has a volume '%.255s' already",
                         json_str(call->spec, "pool"), json_str(call->spec, "volume"));
    }
    if (found == 0 && (call_may_act(call, err) < 0 || call_note(call, 0, 0, "", err) < 0 ||
                       create(call, pool, &volume, err) < 0))
        return -1;
    return answer_volume(call, volume, answer, err);
}

/* ERR_CONFLICT: somebody needs it as it is. */
static int check_unused(struct hv_call *call, enum usage_scope scope, const char *path,
                        struct error *err)
{
    autofree char *reason = delete_export_reason(path);
    auto_json *usage = NULL;
    const char *user;

    if (reason[0] != '\0')
        return error_set(err, ERR_CONFLICT, "'%.255s': %s", path, reason);
    if (usage_read(call->connection, scope, NULL, &usage, err) < 0)
        return -1;
    user = usage_of(usage, path);
    return user == NULL ? 0 : error_set(err, ERR_CONFLICT, "'%.255s': %s uses it", path, user);
}

int call_volume_delete(struct hv_call *call, json_t *answer, struct error *err)
{
    const char *noted = call_noted(call, 0, 0); /* the path */
    autofree char *path = NULL;
    auto_pool pool = NULL;
    auto_volume volume = NULL;
    int found = find(call, &pool, &volume, err);

    if (found < 0)
        return -1;
    if (found == 0 && noted == NULL)
        return missing(call, err);
    if (found == 0) {
        path = xstrdup(noted); /* an earlier lease removed it */
    } else if (volume_path(volume, &path, err) < 0 ||
               check_unused(call, USAGE_ALL, path, err) < 0 || call_may_act(call, err) < 0 ||
               call_note(call, 0, 0, path, err) < 0) {
        return -1;
    } else if (virStorageVolDelete(volume, 0) < 0) {
        return hv_error_of(err, "removing volume '%.255s'", json_str(call->spec, "volume"));
    }
    worker_task_log(call->task, LOG_LEVEL_INFO, "volume '%s' of pool '%s' is removed",
                    json_str(call->spec, "volume"), json_str(call->spec, "pool"));
    json_set_text(answer, "status", "success");
    json_set_text(answer, "pool", json_str(call->spec, "pool"));
    json_put(answer, "removed",
             json_pack("{s:s, s:s}", "name", json_str(call->spec, "volume"), "path", path));
    return 0;
}

static int grow(struct hv_call *call, virStorageVolPtr volume, bool *out_changed, struct error *err)
{
    const char *name = json_str(call->spec, "volume");
    uint64_t wanted = json_u64(call->spec, "capacity_bytes");
    autofree char *path = NULL;
    virStorageVolInfo info;

    if (virStorageVolGetInfo(volume, &info) < 0)
        return hv_error(err, "volume '%.255s'", name);
    *out_changed = info.capacity != wanted;
    if (!*out_changed)
        return 0;
    if (wanted < info.capacity) {
        return error_set(err, ERR_CONFLICT,
                         "volume '%.255s' has %llu bytes: it is only made larger, never smaller",
                         name, info.capacity);
    }
    if (volume_path(volume, &path, err) < 0 || check_unused(call, USAGE_RUNNING, path, err) < 0 ||
        call_may_act(call, err) < 0)
        return -1;
    if (virStorageVolResize(volume, wanted, 0) < 0)
        return hv_error_of(err, "making volume '%.255s' larger", name);
    return 0;
}

int call_volume_resize(struct hv_call *call, json_t *answer, struct error *err)
{
    auto_pool pool = NULL;
    auto_volume volume = NULL;
    bool changed = false;
    int found = find(call, &pool, &volume, err);

    if (found == 0)
        return missing(call, err);
    if (found < 0 || grow(call, volume, &changed, err) < 0)
        return -1;
    json_put(answer, "changed", json_boolean(changed));
    return answer_volume(call, volume, answer, err);
}
