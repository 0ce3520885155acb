#include "services/exporter/providers/vsphere/soap.h"

#include <stdio.h>
#include <string.h>

#include "common/parse.h"
#include "common/xml.h"

#define XSI_URI  "http://www.w3.org/2001/XMLSchema-instance"
#define SOAP_URI "http://schemas.xmlsoap.org/soap/envelope/"

static void copy_text(char *out, size_t size, const char *text)
{
    (void)snprintf(out, size, "%s", text);
}

void soap_reply_release(struct soap_reply *reply)
{
    if (reply->doc != NULL)
        xmlFreeDoc(reply->doc);
    *reply = (struct soap_reply){0};
}

/* ---- requests ---- */

void soap_begin(struct strbuf *sb, const char *method, const char *this_type, const char *this_id)
{
    strbuf_add(sb, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>"
                   "<soapenv:Envelope xmlns:soapenv=\"" SOAP_URI "\" xmlns:xsi=\"" XSI_URI
                   "\" xmlns:xsd=\"http://www.w3.org/2001/XMLSchema\"><soapenv:Body>");
    strbuf_addf(sb, "<%s xmlns=\"urn:vim25\">", method);
    soap_add_ref(sb, "_this", this_type, this_id);
}

void soap_end(struct strbuf *sb, const char *method)
{
    strbuf_addf(sb, "</%s></soapenv:Body></soapenv:Envelope>", method);
}

void soap_add(struct strbuf *sb, const char *name, const char *text)
{
    strbuf_addf(sb, "<%s>", name);
    strbuf_add_xml(sb, text);
    strbuf_addf(sb, "</%s>", name);
}

void soap_add_ref(struct strbuf *sb, const char *name, const char *type, const char *id)
{
    strbuf_addf(sb, "<%s type=\"%s\">", name, type);
    strbuf_add_xml(sb, id);
    strbuf_addf(sb, "</%s>", name);
}

/* ---- reading a tree ---- */

bool soap_is(const xmlNode *node, const char *name)
{
    return node != NULL && node->type == XML_ELEMENT_NODE &&
           strcmp((const char *)node->name, name) == 0;
}

static const xmlNode *first_named(const xmlNode *node, const char *name)
{
    for (; node != NULL; node = node->next) {
        if (soap_is(node, name))
            return node;
    }
    return NULL;
}

const xmlNode *soap_child(const xmlNode *parent, const char *name)
{
    return parent == NULL ? NULL : first_named(parent->children, name);
}

const xmlNode *soap_next(const xmlNode *node)
{
    return node == NULL ? NULL : first_named(node->next, (const char *)node->name);
}

const char *soap_content(const xmlNode *node)
{
    if (node == NULL)
        return "";
    for (const xmlNode *child = node->children; child != NULL; child = child->next) {
        if (child->type == XML_TEXT_NODE && child->content != NULL)
            return (const char *)child->content;
    }
    return "";
}

const char *soap_text(const xmlNode *parent, const char *name)
{
    return soap_content(soap_child(parent, name));
}

bool soap_bool(const xmlNode *parent, const char *name)
{
    const char *text = soap_text(parent, name);

    return strcmp(text, "true") == 0 || strcmp(text, "1") == 0;
}

uint64_t soap_u64(const xmlNode *parent, const char *name, uint64_t fallback)
{
    struct error ignored = ERROR_NONE;
    uint64_t value = 0;

    if (parse_u64(name, soap_text(parent, name), 0, UINT64_MAX, &value, &ignored) < 0)
        return fallback;
    return value;
}

static void attribute_copy(const xmlNode *node, const char *uri, char *out, size_t size)
{
    out[0] = '\0';
    if (node == NULL)
        return;
    for (const xmlAttr *attr = node->properties; attr != NULL; attr = attr->next) {
        const char *text = attr->children == NULL ? "" : (const char *)attr->children->content;
        const char *ns = attr->ns == NULL ? "" : (const char *)attr->ns->href;
        const char *colon;

        if (strcmp((const char *)attr->name, "type") != 0 || strcmp(ns, uri) != 0 || text == NULL)
            continue;
        colon = strrchr(text, ':');
        copy_text(out, size, colon == NULL ? text : colon + 1);
        return;
    }
}

void soap_xsi_type(const xmlNode *node, char *out, size_t size)
{
    attribute_copy(node, XSI_URI, out, size);
}

void soap_ref_type(const xmlNode *node, char *out, size_t size)
{
    attribute_copy(node, "", out, size);
}

bool soap_id_is_sane(const char *id)
{
    size_t length = strlen(id);

    if (length == 0 || length > SOAP_ID_BYTES_MAX)
        return false;
    for (const char *p = id; *p != '\0'; p++) {
        bool plain = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
                     (*p >= '0' && *p <= '9') || strchr("-_.:/[]%+@ ", *p) != NULL;
        if (!plain)
            return false;
    }
    return true;
}

/* ---- faults ---- */

void soap_fault_read(const xmlNode *node, const char *text, struct soap_fault *out)
{
    static const char *const facts[] = {"privilegeId", "invalidProperty", "name", "file"};
    size_t length;

    *out = (struct soap_fault){0};
    soap_xsi_type(node, out->type, sizeof out->type);
    if (out->type[0] == '\0' && node != NULL) {
        /* <InvalidLoginFault> without a type attribute still says what it is. */
        copy_text(out->type, sizeof out->type, (const char *)node->name);
        length = strlen(out->type);
        if (length > 5 && strcmp(out->type + length - 5, "Fault") == 0)
            out->type[length - 5] = '\0';
    }
    if (out->type[0] == '\0')
        copy_text(out->type, sizeof out->type, "UnknownFault");
    copy_text(out->message, sizeof out->message, text);
    for (size_t i = 0; i < ARRAY_LEN(facts); i++) {
        const char *fact = soap_text(node, facts[i]);
        if (fact[0] != '\0') {
            copy_text(out->detail, sizeof out->detail, fact);
            return;
        }
    }
}

struct fault_kind {
    const char *type;
    enum error_code code;
    const char *advice; /* what a person can do; NULL: the server's words suffice */
};

static const struct fault_kind fault_kinds[] = {
    {"NotAuthenticated", ERR_DENIED, NULL},
    {"InvalidLogin", ERR_DENIED, "check username and password of this provider"},
    {"PasswordExpired", ERR_DENIED, "set a new password for this account"},
    {"NoPermission", ERR_DENIED, "give the account's role this privilege"},
    {"RestrictedVersion", ERR_NOT_AVAILABLE,
     "the host's licence forbids changes by API; use a licensed host or vCenter"},
    {"ManagedObjectNotFound", ERR_NOT_FOUND, NULL},
    {"NotFound", ERR_NOT_FOUND, NULL},
    {"FileNotFound", ERR_NOT_FOUND, NULL},
    {"TaskInProgress", ERR_UNAVAILABLE, NULL},
    {"ConcurrentAccess", ERR_UNAVAILABLE, NULL},
    {"FileLocked", ERR_UNAVAILABLE, NULL},
    {"FileFault", ERR_UNAVAILABLE, NULL},
    {"HostNotConnected", ERR_UNAVAILABLE, NULL},
    {"HostCommunication", ERR_UNAVAILABLE, NULL},
    {"HostNotReachable", ERR_UNAVAILABLE, NULL},
    {"HostConnectFault", ERR_UNAVAILABLE, NULL},
    {"SystemError", ERR_UNAVAILABLE, NULL},
    {"Timedout", ERR_TIMEOUT, NULL},
    {"InvalidState", ERR_CONFLICT, NULL},
    {"InvalidPowerState", ERR_CONFLICT, NULL},
    {"VmConfigFault", ERR_CONFLICT, NULL},
    {"GenericVmConfigFault", ERR_CONFLICT, NULL},
    {"RequestCanceled", ERR_CONFLICT, "someone cancelled the task in vCenter"},
    {"QuestionPending", ERR_CONFLICT, "answer the question that the VM shows in vCenter"},
    {"SnapshotFault", ERR_CONFLICT, NULL},
    {"SnapshotDisabled", ERR_CONFLICT, NULL},
    {"SnapshotLocked", ERR_CONFLICT, NULL},
    {"FilesystemQuiesceFault", ERR_CONFLICT,
     "the guest could not be frozen: check VMware Tools, or export without quiescing"},
    {"ApplicationQuiesceFault", ERR_CONFLICT,
     "the guest's applications could not be frozen: check VSS, or export without quiescing"},
    {"MemorySnapshotOnIndependentDisk", ERR_CONFLICT, "export without the memory snapshot"},
    {"TooManySnapshotLevels", ERR_LIMIT, "delete or consolidate old snapshots of the VM"},
    {"NoDiskSpace", ERR_LIMIT, "free space on the VM's datastore"},
    {"InsufficientResourcesFault", ERR_LIMIT, NULL},
    {"NotSupported", ERR_NOT_AVAILABLE, NULL},
    {"MethodNotFound", ERR_NOT_AVAILABLE, NULL},
    {"NotImplemented", ERR_NOT_AVAILABLE, NULL},
    {"InvalidName", ERR_INVALID, "choose another snapshot name"},
    {"InvalidArgument", ERR_PROTOCOL, NULL},
    {"InvalidRequest", ERR_PROTOCOL, NULL},
    {"InvalidProperty", ERR_PROTOCOL, NULL},
    {"InvalidType", ERR_PROTOCOL, NULL},
};

static const struct fault_kind *fault_kind_find(const char *type)
{
    for (size_t i = 0; i < ARRAY_LEN(fault_kinds); i++) {
        if (strcmp(fault_kinds[i].type, type) == 0)
            return &fault_kinds[i];
    }
    return NULL;
}

enum error_code soap_fault_code(const char *type)
{
    const struct fault_kind *kind = fault_kind_find(type);

    return kind == NULL ? ERR_INTERNAL : kind->code;
}

int soap_fault_error(const struct soap_fault *fault, const char *what, struct error *err)
{
    const struct fault_kind *kind = fault_kind_find(fault->type);
    /* A fault that is not in the table is the server's refusal, neither our bug nor retryable. */
    enum error_code code = kind == NULL ? ERR_CONFLICT : kind->code;
    const char *advice = kind == NULL || kind->advice == NULL ? "" : kind->advice;

    return error_set(err, code, "%s: vSphere answers %s%s%s%s: %s%s%s%s", what, fault->type,
                     fault->detail[0] == '\0' ? "" : " (", fault->detail,
                     fault->detail[0] == '\0' ? "" : ")", fault->message,
                     advice[0] == '\0' ? "" : " (", advice, advice[0] == '\0' ? "" : ")");
}

/* ---- replies ---- */

static int document_read(const char *data, size_t size, xmlDoc **out, struct error *err)
{
    struct error why = ERROR_NONE;

    if (xml_parse(data, size, SOAP_DEPTH_MAX, out, &why) == 0)
        return 0;
    if (why.code == ERR_LIMIT)
        return error_set(err, ERR_LIMIT, "the answer is %s", why.message);
    return error_set(err, ERR_PROTOCOL, "the answer is not the XML of a vSphere API (%s)",
                     why.message);
}

static const xmlNode *first_element(const xmlNode *parent)
{
    const xmlNode *node = parent == NULL ? NULL : parent->children;

    while (node != NULL && node->type != XML_ELEMENT_NODE)
        node = node->next;
    return node;
}

int soap_parse(const char *data, size_t size, struct soap_reply *out, struct error *err)
{
    auto_soap_reply reply = {0};
    const xmlNode *root, *body, *first;

    if (size > SOAP_REPLY_BYTES_MAX) {
        return error_set(err, ERR_LIMIT, "the answer of %zu bytes is over %zu", size,
                         SOAP_REPLY_BYTES_MAX);
    }
    if (document_read(data, size, &reply.doc, err) < 0)
        return -1;
    root = xmlDocGetRootElement(reply.doc);
    if (!soap_is(root, "Envelope") || root->ns == NULL ||
        strcmp((const char *)root->ns->href, SOAP_URI) != 0)
        return error_set(err, ERR_PROTOCOL, "the answer is not a SOAP envelope");
    body = soap_child(root, "Body");
    first = first_element(body);
    if (first == NULL)
        return error_set(err, ERR_PROTOCOL, "the answer's SOAP body is empty");
    if (soap_is(first, "Fault")) {
        soap_fault_read(first_element(soap_child(first, "detail")), soap_text(first, "faultstring"),
                        &reply.fault);
    } else {
        reply.response = first;
    }
    *out = reply;
    memset(&reply, 0, sizeof reply);
    return 0;
}
