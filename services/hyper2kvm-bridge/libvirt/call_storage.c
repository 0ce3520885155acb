/* Storage pools and networks. */
#include <string.h>

#include "call.h"
#include "common/json.h"
#include "xml.h"

static void put_bytes(json_t *facts, const char *key, unsigned long long bytes)
{
    json_put(facts, key, json_integer((json_int_t)bytes));
}

/* ---- pools ---- */

static const char *pool_state(int state)
{
    static const char *const words[] = {"inactive", "building", "running", "degraded",
                                        "inaccessible"};

    return state >= 0 && (size_t)state < ARRAY_LEN(words) ? words[state] : "inactive";
}

static int pool_facts(const struct hv_call *call, void *handle, json_t **out, struct error *err)
{
    virStoragePoolPtr pool = handle;
    char uuid[VIR_UUID_STRING_BUFLEN] = "";
    char *text = virStoragePoolGetXMLDesc(pool, 0);
    auto_json *facts = json_object();
    auto_xmldoc *doc = NULL;
    virStoragePoolInfo info;
    int autostart = 0;
    xmlNode *root;

    (void)call;
    if (text == NULL)
        return hv_error(err, "storage pool '%.128s'", virStoragePoolGetName(pool));
    if (hv_xml_parse(text, &doc, err) < 0)
        return -1;
    if (virStoragePoolGetInfo(pool, &info) < 0 || virStoragePoolGetUUIDString(pool, uuid) < 0 ||
        virStoragePoolGetAutostart(pool, &autostart) < 0)
        return hv_error(err, "storage pool '%.128s'", virStoragePoolGetName(pool));
    root = xmlDocGetRootElement(doc);
    json_set_text(facts, "name", virStoragePoolGetName(pool));
    json_set_text(facts, "uuid", uuid);
    json_set_text(facts, "state", pool_state(info.state));
    json_put(facts, "autostart", json_boolean(autostart != 0));
    json_put(facts, "persistent", json_boolean(virStoragePoolIsPersistent(pool) == 1));
    hv_xml_take(facts, "type", root, "type");
    hv_xml_take_text(facts, "path", hv_xml_child(hv_xml_child(root, "target"), "path"));
    put_bytes(facts, "capacity_bytes", info.capacity);
    put_bytes(facts, "allocation_bytes", info.allocation);
    put_bytes(facts, "available_bytes", info.available);
    *out = STEAL(facts);
    return 0;
}

int call_pools(struct hv_call *call, json_t *answer, struct error *err)
{
    CLEANUP(hv_pool_list_release) struct hv_pool_list all = {0};
    autofree struct hv_item *items = NULL;
    struct hv_page page = {.member = "pools", .facts = pool_facts};

    all.count = virConnectListAllStoragePools(call->connection, &all.items, 0);
    if (all.count < 0)
        return hv_error(err, "storage pools");
    page.items = items = xcalloc((size_t)all.count + 1, sizeof *items);
    page.count = (size_t)all.count;
    for (size_t i = 0; i < page.count; i++)
        items[i] = (struct hv_item){virStoragePoolGetName(all.items[i]), all.items[i]};
    return call_page(call, &page, answer, err);
}

/* ---- networks ---- */

static int network_facts(const struct hv_call *call, void *handle, json_t **out, struct error *err)
{
    virNetworkPtr network = handle;
    char uuid[VIR_UUID_STRING_BUFLEN] = "";
    char *text = virNetworkGetXMLDesc(network, 0);
    auto_json *facts = json_object();
    auto_xmldoc *doc = NULL;
    autofree char *forward = NULL;
    int autostart = 0;
    xmlNode *root;

    (void)call;
    if (text == NULL)
        return hv_error(err, "network '%.128s'", virNetworkGetName(network));
    if (hv_xml_parse(text, &doc, err) < 0)
        return -1;
    if (virNetworkGetUUIDString(network, uuid) < 0 ||
        virNetworkGetAutostart(network, &autostart) < 0)
        return hv_error(err, "network '%.128s'", virNetworkGetName(network));
    root = xmlDocGetRootElement(doc);
    forward = hv_xml_attribute(hv_xml_child(root, "forward"), "mode");
    json_set_text(facts, "name", virNetworkGetName(network));
    json_set_text(facts, "uuid", uuid);
    json_put(facts, "active", json_boolean(virNetworkIsActive(network) == 1));
    json_put(facts, "autostart", json_boolean(autostart != 0));
    json_put(facts, "persistent", json_boolean(virNetworkIsPersistent(network) == 1));
    hv_xml_take(facts, "bridge", hv_xml_child(root, "bridge"), "name");
    json_set_text(facts, "forward", forward[0] == '\0' ? "isolated" : forward);
    *out = STEAL(facts);
    return 0;
}

int call_networks(struct hv_call *call, json_t *answer, struct error *err)
{
    CLEANUP(hv_network_list_release) struct hv_network_list all = {0};
    autofree struct hv_item *items = NULL;
    struct hv_page page = {.member = "networks", .facts = network_facts};

    all.count = virConnectListAllNetworks(call->connection, &all.items, 0);
    if (all.count < 0)
        return hv_error(err, "networks");
    page.items = items = xcalloc((size_t)all.count + 1, sizeof *items);
    page.count = (size_t)all.count;
    for (size_t i = 0; i < page.count; i++)
        items[i] = (struct hv_item){virNetworkGetName(all.items[i]), all.items[i]};
    return call_page(call, &page, answer, err);
}
