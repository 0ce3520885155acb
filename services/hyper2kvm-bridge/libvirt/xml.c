/* See xml.h. */
#include "xml.h"

#include <string.h>

#include "common/json.h"

#define XML_DEPTH_MAX 64

int hv_xml_parse(char *text_taken, xmlDoc **out, struct error *err)
{
    autofree char *text = text_taken;

    if (xml_parse(text, strlen(text), XML_DEPTH_MAX, out, err) < 0)
        return error_wrap(err, "XML of libvirt");
    return 0;
}

bool hv_xml_is(const xmlNode *node, const char *name)
{
    return node->type == XML_ELEMENT_NODE && strcmp((const char *)node->name, name) == 0;
}

xmlNode *hv_xml_child(xmlNode *node, const char *name)
{
    for (xmlNode *c = node == NULL ? NULL : node->children; c != NULL; c = c->next) {
        if (hv_xml_is(c, name))
            return c;
    }
    return NULL;
}

xmlNode *hv_xml_next(const xmlNode *root, xmlNode *node)
{
    do {
        if (node->children != NULL && node->type == XML_ELEMENT_NODE) {
            node = node->children;
        } else {
            while (node != root && node->next == NULL)
                node = node->parent;
            if (node == root)
                return NULL;
            node = node->next;
        }
    } while (node->type != XML_ELEMENT_NODE);
    return node;
}

/* libxml2's text as one of ours. */
static char *take_over(xmlChar *value)
{
    char *copy = xstrdup(value == NULL ? "" : (const char *)value);

    xmlFree(value);
    return copy;
}

char *hv_xml_attribute(xmlNode *node, const char *name)
{
    return take_over(node == NULL ? NULL : xmlGetProp(node, (const xmlChar *)name));
}

char *hv_xml_text(xmlNode *node)
{
    return take_over(node == NULL ? NULL : xmlNodeGetContent(node));
}

void hv_xml_take(json_t *to, const char *key, xmlNode *node, const char *name)
{
    autofree char *value = hv_xml_attribute(node, name);

    json_set_text(to, key, value);
}

void hv_xml_take_text(json_t *to, const char *key, xmlNode *node)
{
    autofree char *value = hv_xml_text(node);

    json_set_text(to, key, value);
}
