/* Tags of VMs: vCenter's REST API (com/vmware/cis), which has a login of its own. */
#ifndef VSPHERE_TAGS_H
#define VSPHERE_TAGS_H

#include <jansson.h>

#include "services/exporter/providers/vsphere/session.h"

#define TAGS_KNOWN_MAX        20000 /* names kept of one vCenter */
#define TAGS_ANSWER_BYTES_MAX (8 * MIB)
#define TAGS_TIMEOUT_MS_MAX   INT64_C(15000) /* a listing waits for it, and goes on without */
#define TAGS_TEXT_BYTES_MAX   512

struct vsphere_tags;

/* provider.h's vm_tags. ERR_NOT_AVAILABLE: an ESXi host, or no REST API. */
MUST_CHECK int tags_read(struct provider_session *session, const char *const *vm_ids, size_t count,
                         struct vm_tags *out, struct error *err);
/* Ends the login. NULL-safe. */
void vsphere_tags_free(struct vsphere_tags *tags);

/* ---- answers; for tests ---- */

/* wrapped: {"value": ...}, as below /rest; below /api the value stands alone. New reference. */
MUST_CHECK int tags_answer_value(const char *body, size_t size, bool wrapped, json_t **out,
                                 struct error *err);
/* Calls each() with every pair of list-attached-tags-on-objects. */
MUST_CHECK int tags_answer_attached(const json_t *value,
                                    int (*each)(void *arg, const char *vm_id, const char *tag_id,
                                                struct error *err),
                                    void *arg, struct error *err);
/* The name of a tag or category, and the tag's category id (NULL: not asked for); borrowed. */
MUST_CHECK int tags_answer_item(const json_t *value, const char **out_name,
                                const char **out_category_id, struct error *err);

#endif
