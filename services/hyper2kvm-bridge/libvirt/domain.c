/* See domain.h. */
#include "domain.h"

#include <libvirt/virterror.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "services/exporter/formats/domain_xml.h"
#include "xml.h"

static int found(virDomainPtr domain, virDomainPtr *out, const char *what, struct error *err)
{
    if (domain != NULL) {
        *out = domain;
        return 1;
    }
    if (hv_error_number() == VIR_ERR_NO_DOMAIN)
        return 0;
    return hv_error(err, "domain '%.128s'", what);
}

int domain_by_name(virConnectPtr connection, const char *name, virDomainPtr *out, struct error *err)
{
    return found(virDomainLookupByName(connection, name), out, name, err);
}

int domain_by_uuid(virConnectPtr connection, const char *uuid, virDomainPtr *out, struct error *err)
{
    return found(virDomainLookupByUUIDString(connection, uuid), out, uuid, err);
}

int domain_is_active(virDomainPtr domain, bool *out, struct error *err)
{
    int active = virDomainIsActive(domain);

    if (active < 0)
        return hv_error(err, "domain '%.128s'", virDomainGetName(domain));
    *out = active == 1;
    return 0;
}

/* ---- facts ---- */

int domain_origin_job(virDomainPtr domain, char **out, struct error *err)
{
    char *text = virDomainGetMetadata(domain, VIR_DOMAIN_METADATA_ELEMENT, DOMAIN_ORIGIN_URI,
                                      VIR_DOMAIN_AFFECT_CURRENT);
    auto_xmldoc *doc = NULL;

    if (text == NULL) {
        if (hv_error_number() != VIR_ERR_NO_DOMAIN_METADATA)
            return hv_error(err, "metadata of domain '%.128s'", virDomainGetName(domain));
        *out = xstrdup("");
        return 0;
    }
    if (hv_xml_parse(text, &doc, err) < 0)
        return -1;
    *out = hv_xml_attribute(xmlDocGetRootElement(doc), "job");
    return 0;
}

/* A block device is named like a file; a disk of another kind has none here. */
static json_t *disk_facts(xmlNode *disk)
{
    xmlNode *source = hv_xml_child(disk, "source");
    autofree char *device = hv_xml_attribute(disk, "device");
    autofree char *file = hv_xml_attribute(source, "file");
    json_t *facts = json_object();

    if (file[0] == '\0') {
        hv_xml_take(facts, "file", source, "dev");
    } else {
        json_set_text(facts, "file", file);
    }
    json_set_text(facts, "device", device[0] == '\0' ? "disk" : device);
    hv_xml_take(facts, "target", hv_xml_child(disk, "target"), "dev");
    hv_xml_take(facts, "bus", hv_xml_child(disk, "target"), "bus");
    hv_xml_take(facts, "format", hv_xml_child(disk, "driver"), "type");
    return facts;
}

static json_t *nic_facts(xmlNode *nic)
{
    json_t *facts = json_object();
    autofree char *type = hv_xml_attribute(nic, "type");

    hv_xml_take(facts, "mac", hv_xml_child(nic, "mac"), "address");
    hv_xml_take(facts, "model", hv_xml_child(nic, "model"), "type");
    json_set_text(facts, "type", type);
    hv_xml_take(facts, "source", hv_xml_child(nic, "source"), type);
    return facts;
}

const char *domain_state(virDomainPtr domain)
{
    static const char *const words[] = {"nostate",  "running", "blocked", "paused",
                                        "shutdown", "shutoff", "crashed", "pmsuspended"};
    int state = 0;

    if (virDomainGetState(domain, &state, NULL, 0) < 0)
        return hv_error_number() == VIR_ERR_NO_DOMAIN ? "shutoff" : "nostate";
    return state >= 0 && (size_t)state < ARRAY_LEN(words) ? words[state] : "nostate";
}

static int add_numbers(virDomainPtr domain, json_t *facts, struct error *err)
{
    virDomainInfo info;
    int autostart = 0;
    unsigned int id = virDomainGetID(domain);

    if (virDomainGetInfo(domain, &info) < 0 || virDomainGetAutostart(domain, &autostart) < 0)
        return hv_error(err, "domain '%.128s'", virDomainGetName(domain));
    json_put(facts, "id", id == (unsigned int)-1 ? json_null() : json_integer(id));
    json_put(facts, "cpus", json_integer(info.nrVirtCpu));
    json_put(facts, "memory_mb", json_integer((json_int_t)(info.maxMem / 1024)));
    json_put(facts, "autostart", json_boolean(autostart != 0));
    json_put(facts, "persistent", json_boolean(virDomainIsPersistent(domain) == 1));
    return 0;
}

int domain_facts(virDomainPtr domain, json_t **out, struct error *err)
{
    char uuid[VIR_UUID_STRING_BUFLEN] = "";
    char *text = virDomainGetXMLDesc(domain, 0);
    auto_json *facts = json_object();
    json_t *disks = json_array();
    json_t *nics = json_array();
    auto_xmldoc *doc = NULL;
    const xmlNode *devices;

    json_put(facts, "disks", disks);
    json_put(facts, "nics", nics);
    if (text == NULL || virDomainGetUUIDString(domain, uuid) < 0) {
        free(text);
        return hv_error(err, "domain '%.128s'", virDomainGetName(domain));
    }
    if (hv_xml_parse(text, &doc, err) < 0)
        return -1;
    json_set_text(facts, "name", virDomainGetName(domain));
    json_set_text(facts, "uuid", uuid);
    json_set_text(facts, "state", domain_state(domain));
    if (add_numbers(domain, facts, err) < 0)
        return -1;
    devices = hv_xml_child(xmlDocGetRootElement(doc), "devices");
    for (xmlNode *n = devices == NULL ? NULL : devices->children; n != NULL; n = n->next) {
        if (hv_xml_is(n, "disk"))
            (void)json_array_append_new(disks, disk_facts(n));
        if (hv_xml_is(n, "interface"))
            (void)json_array_append_new(nics, nic_facts(n));
    }
    *out = STEAL(facts);
    return 0;
}

/* ---- taking back ---- */

int domain_undefine(virDomainPtr domain, struct error *err)
{
    const unsigned int all = VIR_DOMAIN_UNDEFINE_MANAGED_SAVE |
                             VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA |
                             VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | VIR_DOMAIN_UNDEFINE_NVRAM;

    if (virDomainUndefineFlags(domain, all) == 0)
        return 0;
    if (hv_error_number() == VIR_ERR_NO_DOMAIN) /* it was transient, or someone was quicker */
        return 0;
    if (hv_error_number() != VIR_ERR_INVALID_ARG && hv_error_number() != VIR_ERR_NO_SUPPORT)
        return hv_error(err, "removing domain '%.128s'", virDomainGetName(domain));
    if (virDomainUndefine(domain) < 0) /* a driver that knows no such flags */
        return hv_error(err, "removing domain '%.128s'", virDomainGetName(domain));
    return 0;
}

int domain_remove(virDomainPtr domain, struct error *err)
{
    bool active = false;

    if (domain_is_active(domain, &active, err) < 0)
        return -1;
    if (active && virDomainDestroy(domain) < 0 && hv_error_number() != VIR_ERR_OPERATION_INVALID)
        return hv_error(err, "stopping domain '%.128s'", virDomainGetName(domain));
    return domain_undefine(domain, err);
}
