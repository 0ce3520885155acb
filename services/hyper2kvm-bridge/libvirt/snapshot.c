/* See snapshot.h. */
#include "snapshot.h"

#include <libvirt/virterror.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/parse.h"
#include "xml.h"

int snapshot_find(virDomainPtr domain, const char *name, virDomainSnapshotPtr *out,
                  struct error *err)
{
    virDomainSnapshotPtr snapshot = virDomainSnapshotLookupByName(domain, name, 0);

    if (snapshot != NULL) {
        *out = snapshot;
        return 1;
    }
    if (hv_error_number() == VIR_ERR_NO_DOMAIN_SNAPSHOT)
        return 0;
    return hv_error(err, "snapshot '%.255s'", name);
}

/* libvirt writes seconds since 1970. */
static json_t *time_of(xmlNode *node)
{
    autofree char *text = hv_xml_text(node);
    char shown[CLOCK_RFC3339_SIZE];
    struct error ignored = ERROR_NONE;
    uint64_t seconds = 0;

    if (parse_u64("creationTime", text, 0, UINT32_MAX, &seconds, &ignored) < 0)
        return json_null();
    clock_rfc3339((int64_t)seconds * 1000, shown);
    return json_string(shown);
}

int snapshot_facts(virDomainSnapshotPtr snapshot, json_t **out, struct error *err)
{
    const char *name = virDomainSnapshotGetName(snapshot);
    char *text = virDomainSnapshotGetXMLDesc(snapshot, 0);
    auto_json *facts = json_object();
    auto_xmldoc *doc = NULL;
    xmlNode *root;

    if (text == NULL)
        return hv_error(err, "snapshot '%.255s'", name);
    if (hv_xml_parse(text, &doc, err) < 0)
        return -1;
    root = xmlDocGetRootElement(doc);
    json_set_text(facts, "name", name);
    hv_xml_take_text(facts, "description", hv_xml_child(root, "description"));
    json_put(facts, "creation_time", time_of(hv_xml_child(root, "creationTime")));
    hv_xml_take_text(facts, "state", hv_xml_child(root, "state"));
    hv_xml_take_text(facts, "parent", hv_xml_child(hv_xml_child(root, "parent"), "name"));
    json_put(facts, "current", json_boolean(virDomainSnapshotIsCurrent(snapshot, 0) == 1));
    *out = STEAL(facts);
    return 0;
}
