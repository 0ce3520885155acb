/* XML that libvirt writes: parsed under our limits, and read without surprises about NULL. */
#ifndef BRIDGE_LIBVIRT_XML_H
#define BRIDGE_LIBVIRT_XML_H

#include <jansson.h>

#include "common/autos.h"
#include "common/error.h"
#include "common/xml.h"

/* Takes the text. Wants auto_xmldoc. */
MUST_CHECK int hv_xml_parse(char *text_taken, xmlDoc **out, struct error *err);
bool hv_xml_is(const xmlNode *node, const char *name);
/* First child element of that name; NULL: none, also of NULL. */
xmlNode *hv_xml_child(xmlNode *node, const char *name);
/* The element after `node` in document order below root; NULL: that was the last. */
xmlNode *hv_xml_next(const xmlNode *root, xmlNode *node);
/* Never NULL; the caller frees. "" also when node is NULL. */
char *hv_xml_attribute(xmlNode *node, const char *name);
char *hv_xml_text(xmlNode *node);
/* to[key] = attribute or text. */
void hv_xml_take(json_t *to, const char *key, xmlNode *node, const char *name);
void hv_xml_take_text(json_t *to, const char *key, xmlNode *node);

#endif
