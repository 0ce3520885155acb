/* The property collector: properties of one object, or of all objects of some types below a
 * container, page by page. */
#ifndef VSPHERE_PROPERTY_H
#define VSPHERE_PROPERTY_H

#include "services/exporter/providers/vsphere/session.h"

#define PROPERTY_PAGE_OBJECTS 200   /* 200 VMs with their devices are 4 MiB of XML */
#define PROPERTY_PAGES_MAX    10000 /* 2 million objects: a server that pages for ever */

/* Properties wanted of objects of one type (and types derived from it). */
struct property_set {
    const char *type;
    const char *const *paths; /* NULL-terminated */
};

/* `object` is an ObjectContent element, valid during the call. */
typedef int property_each_fn(void *arg, const xmlNode *object, struct error *err);
/* Called after each page's objects. NULL: not wanted. */
typedef int property_page_fn(void *arg, struct error *err);

struct property_scan {
    const char *container_type; /* Folder or Datacenter */
    const char *container;
    const struct property_set *sets;
    size_t set_count;
    property_each_fn *each;
    property_page_fn *page_end;
    void *arg;
};

/* Everything of scan->sets' types below the container. */
MUST_CHECK int property_scan_run(struct provider_session *session, const struct property_scan *scan,
                                 struct error *err);
/* One object; *out_object is its ObjectContent inside *out_reply. ERR_NOT_FOUND: it is gone. */
MUST_CHECK int property_get(struct provider_session *session, const struct property_set *set,
                            const char *id, struct soap_reply *out_reply,
                            const xmlNode **out_object, struct error *err);

/* The <val> of a property, NULL when it was not sent (unset, or not readable for this account). */
const xmlNode *property_value(const xmlNode *object, const char *path);
const char *property_text(const xmlNode *object, const char *path);
bool property_bool(const xmlNode *object, const char *path);
uint64_t property_u64(const xmlNode *object, const char *path, uint64_t fallback);

#endif
