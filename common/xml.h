/* XML of strangers, under limits: no document type, no network, bounded depth, never recursive. */
#ifndef COMMON_XML_H
#define COMMON_XML_H

#include <libxml/tree.h>

#include "common/error.h"

/* *out has a root element; the caller frees it (auto_xmldoc). The caller bounds size. The message
 * is the reason without a subject. ERR_CORRUPT: "it has a document type, line 3", "it is not
 * well-formed, line 1". ERR_LIMIT: "nested deeper than 64". Thread-safe. */
MUST_CHECK int xml_parse(const char *data, size_t size, int depth_max, xmlDoc **out,
                         struct error *err);

#endif
