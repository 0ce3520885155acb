/* See xml.h. */
#include "common/xml.h"

#include <libxml/parser.h>
#include <libxml/parserInternals.h>

#include "common/autos.h"

/* A document type can only be an attack here: no answer of a server has one. */
static void refuse_doctype(void *context, const xmlChar *name, const xmlChar *external,
                           const xmlChar *system)
{
    (void)name;
    (void)external;
    (void)system;
    xmlStopParser(context);
}

static void ignore_message(void *context, const char *format, ...)
{
    (void)context;
    (void)format;
}

static bool depth_is_sane(const xmlNode *root, int depth_max)
{
    const xmlNode *node = root;
    int depth = 1;

    while (node != NULL) {
        if (node->children != NULL && node->type == XML_ELEMENT_NODE) {
            if (++depth > depth_max)
                return false;
            node = node->children;
            continue;
        }
        while (node != root && node->next == NULL) {
            node = node->parent;
            depth--;
        }
        if (node == root)
            return true;
        node = node->next;
    }
    return true;
}

static int read_document(xmlParserCtxt *context, const char *data, size_t size, xmlDoc **out,
                         struct error *err)
{
    auto_xmldoc *doc = NULL;
    bool refused;

    context->sax->internalSubset = refuse_doctype;
    context->sax->error = ignore_message;
    context->sax->warning = ignore_message;
    context->sax->serror = NULL;
    doc = xmlCtxtReadMemory(context, data, (int)size, NULL, NULL,
                            XML_PARSE_NONET | XML_PARSE_NOBLANKS | XML_PARSE_NOCDATA |
                                XML_PARSE_NOERROR | XML_PARSE_NOWARNING);
    refused = context->errNo == XML_ERR_USER_STOP;
    if (doc == NULL || refused || xmlDocGetRootElement(doc) == NULL) {
        return error_set(err, ERR_CORRUPT, "%s, line %d",
                         refused ? "it has a document type" : "it is not well-formed",
                         context->input == NULL ? 0 : context->input->line);
    }
    *out = STEAL(doc);
    return 0;
}

int xml_parse(const char *data, size_t size, int depth_max, xmlDoc **out, struct error *err)
{
    xmlParserCtxt *context = xmlNewParserCtxt();
    auto_xmldoc *doc = NULL;
    int rc;

    if (context == NULL)
        abort(); /* out of memory */
    rc = read_document(context, data, size, &doc, err);
    xmlFreeParserCtxt(context);
    if (rc < 0)
        return -1;
    if (!depth_is_sane(xmlDocGetRootElement(doc), depth_max))
        return error_set(err, ERR_LIMIT, "nested deeper than %d", depth_max);
    *out = STEAL(doc);
    return 0;
}
