/* See snapshot.h. */
#include "snapshot.h"

#include <libvirt/virterror.h>
#include <time.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/parse.h"
#include "common/strbuf.h"
#include "xml.h"

#define XML_BYTES_MAX ((size_t)(16 * KIB))

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

/* ---- making ---- */

/* "snap-20260301-020305"; a later lease of the task finds the name in its notes. */
static char *name_of(const struct snapshot_wish *wish)
{
    time_t now = (time_t)(clock_wall_ms() / 1000);
    struct tm utc;
    char stamp[32] = "";

    if (wish->name[0] != '\0')
        return xstrdup(wish->name);
    if (gmtime_r(&now, &utc) != NULL)
        (void)strftime(stamp, sizeof stamp, "%Y%m%d-%H%M%S", &utc);
    return xasprintf("%s-%s", wish->prefix, stamp);
}

static int create(virDomainPtr domain, const char *name, const struct snapshot_wish *wish,
                  virDomainSnapshotPtr *out, struct error *err)
{
    unsigned int flags = (wish->disk_only ? VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY : 0U) |
                         (wish->quiesce ? VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE : 0U) |
                         (wish->atomic ? VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC : 0U);
    autofree char *xml = NULL;
    auto_strbuf sb;

    strbuf_init(&sb, XML_BYTES_MAX);
    strbuf_add(&sb, "<domainsnapshot><name>");
    strbuf_add_xml(&sb, name);
    strbuf_add(&sb, "</name><description>");
    strbuf_add_xml(&sb, wish->description);
    strbuf_add(&sb, "</description></domainsnapshot>");
    if (strbuf_finish(&sb, &xml, err) < 0)
        return -1;
    *out = virDomainSnapshotCreateXML(domain, xml, flags);
    if (*out != NULL)
        return 0;
    return hv_error_of(err, "snapshot '%.255s' of domain '%.128s'", name, virDomainGetName(domain));
}

int snapshot_make(struct hv_call *call, virDomainPtr domain, const struct snapshot_wish *wish,
                  json_t *answer, struct error *err)
{
    const char *noted = call_noted(call, wish->index, 0);
    autofree char *name = noted != NULL ? xstrdup(noted) : name_of(wish);
    auto_snapshot snapshot = NULL;
    json_t *facts = NULL;
    int found = snapshot_find(domain, name, &snapshot, err);

    if (found < 0)
        return -1;
    if (found == 1 && noted == NULL) {
        return error_set(err, ERR_CONFLICT, "domain '%.128s' has a snapshot '%.255s' already",
                         virDomainGetName(domain), name);
    }
    if (found == 0) {
        if (call_may_act(call, err) < 0 ||
            (noted == NULL && call_note(call, wish->index, 0, name, err) < 0) ||
            create(domain, name, wish, &snapshot, err) < 0)
            return -1;
    }
    if (snapshot_facts(snapshot, &facts, err) < 0)
        return -1;
    json_set_text(answer, "status", "success");
    json_set_text(answer, "domain", virDomainGetName(domain));
    json_put(answer, "snapshot", facts);
    return 0;
}
