/* SOAP 1.1 texts of urn:vim25: building requests, parsing replies and faults.
 *
 * Nothing here opens a socket; session.h sends what this module builds. Replies come from outside:
 * size and depth are bounded, a document type is refused, nothing is fetched, attributes are
 * matched by namespace URI because servers bind prefixes as they like. */
#ifndef VSPHERE_SOAP_H
#define VSPHERE_SOAP_H

#include <libxml/tree.h>

#include "common/strbuf.h"

#define SOAP_REPLY_BYTES_MAX   ((size_t)(32 * MIB)) /* 200 VMs with devices are 4 MiB */
#define SOAP_REQUEST_BYTES_MAX ((size_t)(256 * KIB))
#define SOAP_DEPTH_MAX         128 /* 32 nested snapshots or disk parents, plus the envelope */
#define SOAP_ID_BYTES_MAX      256 /* managed object ids; the longest seen has 60 */

struct soap_fault {
    char type[96];     /* "NotAuthenticated"; empty: no fault */
    char message[256]; /* the server's words */
    char detail[128];  /* privilege of NoPermission, name of InvalidArgument ... */
};

struct soap_reply {
    xmlDoc *doc;
    const xmlNode *response; /* <XxxResponse>, NULL when fault.type is set */
    struct soap_fault fault;
};

void soap_reply_release(struct soap_reply *reply);
#define auto_soap_reply CLEANUP(soap_reply_release) struct soap_reply

/* Opening and closing of an envelope around <method>; between them go the method's parameters in
 * schema order. `this_type`/`this_id` name the managed object the call is for. */
void soap_begin(struct strbuf *sb, const char *method, const char *this_type, const char *this_id);
void soap_end(struct strbuf *sb, const char *method);
/* <name>text</name>, escaped. */
void soap_add(struct strbuf *sb, const char *name, const char *text);
/* <name type="type">id</name> */
void soap_add_ref(struct strbuf *sb, const char *name, const char *type, const char *id);

/* A fault is a success here: look at out->fault.type. ERR_PROTOCOL: not a SOAP reply.
 * ERR_LIMIT: too long or too deep. */
MUST_CHECK int soap_parse(const char *data, size_t size, struct soap_reply *out, struct error *err);
/* Reads a fault element (its xsi:type and facts); text is the message that came with it. */
void soap_fault_read(const xmlNode *node, const char *text, struct soap_fault *out);
/* Which kind of failure a fault type is. */
enum error_code soap_fault_code(const char *type);
/* Sets err from a fault; `what` is the call as people know it. Always -1. */
int soap_fault_error(const struct soap_fault *fault, const char *what, struct error *err);

/* Reading a tree. Names are local names. Nodes may be NULL; then the answer is NULL or "". */
const xmlNode *soap_child(const xmlNode *parent, const char *name);
/* Next sibling element of the same name. */
const xmlNode *soap_next(const xmlNode *node);
bool soap_is(const xmlNode *node, const char *name);
/* Text of a leaf, borrowed. */
const char *soap_content(const xmlNode *node);
const char *soap_text(const xmlNode *parent, const char *name);
bool soap_bool(const xmlNode *parent, const char *name);
/* fallback when absent or not an unsigned number. */
uint64_t soap_u64(const xmlNode *parent, const char *name, uint64_t fallback);
/* The xsi:type without its prefix; "" when absent. Copied, at most size - 1 bytes. */
void soap_xsi_type(const xmlNode *node, char *out, size_t size);
/* Type of a managed object reference (its plain attribute "type"). */
void soap_ref_type(const xmlNode *node, char *out, size_t size);
/* A reference's id: letters, digits, and -_.:/[]%+ up to SOAP_ID_BYTES_MAX; else false. */
bool soap_id_is_sane(const char *id);

#endif
