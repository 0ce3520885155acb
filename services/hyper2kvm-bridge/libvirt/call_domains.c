/* Domains as they are: list, one, console. */
#include <string.h>

#include "call.h"
#include "common/json.h"
#include "common/parse.h"
#include "domain.h"
#include "xml.h"

static int facts_of(const struct hv_call *call, void *handle, json_t **out, struct error *err)
{
    (void)call;
    return domain_facts(handle, out, err);
}

int call_domains(struct hv_call *call, json_t *answer, struct error *err)
{
    CLEANUP(hv_domain_list_release) struct hv_domain_list all = {0};
    autofree struct hv_item *items = NULL;
    struct hv_page page = {.member = "domains", .facts = facts_of};

    all.count = virConnectListAllDomains(call->connection, &all.items, 0);
    if (all.count < 0)
        return hv_error(err, "domains");
    page.items = items = xcalloc((size_t)all.count + 1, sizeof *items);
    page.count = (size_t)all.count;
    for (size_t i = 0; i < page.count; i++)
        items[i] = (struct hv_item){virDomainGetName(all.items[i]), all.items[i]};
    return call_page(call, &page, answer, err);
}

int call_domain(struct hv_call *call, json_t *answer, struct error *err)
{
    auto_domain domain = NULL;
    auto_json *facts = NULL;

    if (call_find(call, json_str(call->spec, "name"), &domain, err) < 0 ||
        domain_facts(domain, &facts, err) < 0)
        return -1;
    (void)json_object_update(answer, facts);
    return 0;
}

/* ---- console ---- */

/* null while nothing listens: the domain is off, or the port is not chosen yet. */
static json_t *port_of(xmlNode *node, const char *name)
{
    autofree char *text = hv_xml_attribute(node, name);
    struct error ignored = ERROR_NONE;
    uint32_t port = 0;

    if (parse_u32(name, text, 1, UINT16_MAX, &port, &ignored) < 0)
        return json_null();
    return json_integer((json_int_t)port);
}

static json_t *graphics_of(xmlNode *node, bool active)
{
    autofree char *type = hv_xml_attribute(node, "type");
    autofree char *host = hv_xml_attribute(node, "listen");
    json_t *port = active ? port_of(node, "port") : json_null();
    json_t *facts = json_object();

    json_set_text(facts, "type", type);
    json_set_text(facts, "host", host);
    json_put(facts, "port", port);
    json_put(facts, "tls_port", active ? port_of(node, "tlsPort") : json_null());
    json_put(facts, "websocket_port", active ? port_of(node, "websocket") : json_null());
    hv_xml_take(facts, "socket", node, "socket");
    if (json_is_integer(port) && host[0] != '\0') {
        bool ipv6 = strchr(host, ':') != NULL;
        autofree char *url = xasprintf("%s://%s%s%s:%lld", type, ipv6 ? "[" : "", host,
                                       ipv6 ? "]" : "", (long long)json_integer_value(port));
        json_set_text(facts, "url", url);
    }
    return facts;
}

static json_t *serial_of(xmlNode *node)
{
    json_t *facts = json_object();

    hv_xml_take(facts, "type", node, "type");
    hv_xml_take(facts, "path", hv_xml_child(node, "source"), "path");
    hv_xml_take(facts, "target", hv_xml_child(node, "target"), "type");
    return facts;
}

int call_console(struct hv_call *call, json_t *answer, struct error *err)
{
    auto_domain domain = NULL;
    auto_xmldoc *doc = NULL;
    json_t *graphics = json_array();
    json_t *consoles = json_array();
    bool active = false;
    const xmlNode *devices;
    char *text;

    json_put(answer, "graphics", graphics);
    json_put(answer, "consoles", consoles);
    if (call_find(call, json_str(call->spec, "name"), &domain, err) < 0 ||
        domain_is_active(domain, &active, err) < 0)
        return -1;
    text = virDomainGetXMLDesc(domain, 0); /* without passwords */
    if (text == NULL)
        return hv_error(err, "domain '%.128s'", virDomainGetName(domain));
    if (hv_xml_parse(text, &doc, err) < 0)
        return -1;
    json_set_text(answer, "domain", virDomainGetName(domain));
    json_set_text(answer, "state", domain_state(domain));
    devices = hv_xml_child(xmlDocGetRootElement(doc), "devices");
    for (xmlNode *n = devices == NULL ? NULL : devices->children; n != NULL; n = n->next) {
        if (hv_xml_is(n, "graphics"))
            (void)json_array_append_new(graphics, graphics_of(n, active));
        if (hv_xml_is(n, "console"))
            (void)json_array_append_new(consoles, serial_of(n));
    }
    return 0;
}
