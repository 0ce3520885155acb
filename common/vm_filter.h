/* The tags and the cluster that a VM filter asks for: of a backup policy's vm_filter and of a list
 * of VMs (rest-api.md 4.1, 5). Tags are what the source tells: when it told none, a filter for them
 * is an error and never an empty list. */
#ifndef COMMON_VM_FILTER_H
#define COMMON_VM_FILTER_H

#include "common/db.h"
#include "common/fields.h"

#define VM_FILTER_TAGS_MAX 100
#define VM_FILTER_TAG_MAX  512 /* bytes; vCenter's own limit is 256 characters */

#define VM_FILTER_FIELDS                                      \
    {"cluster", {NULL}, FIELD_TEXT, 1, 512, NULL},            \
    {                                                         \
        "tags", {NULL}, FIELD_ANY, 0, VM_FILTER_TAG_MAX, NULL \
    }

/* Checks filter.tags: a list of names or "category:name", all of which a VM must have; an object of
 * category to name, or to names of which one is enough; one text, with commas between. Tags that
 * ask for nothing are removed. */
MUST_CHECK int vm_filter_check(json_t *filter, const char *prefix, struct field_problem *problem,
                               struct error *err);
/* What VM_FILTER_SQL takes, as JSON; NULL: no tags are asked for. Of a checked filter. Caller
 * frees.
 */
char *vm_filter_tags(const json_t *filter);
/* Does the provider's inventory know what the filter asks for? ERR_NOT_AVAILABLE tells why not. */
MUST_CHECK int vm_filter_known(struct db *db, const char *provider, const json_t *filter,
                               const char *prefix, struct field_problem *problem,
                               struct error *err);

/* Condition on v, a row of inventory_vms; parameters "$n": the cluster's name, vm_filter_tags. */
#define VM_FILTER_SQL(cluster, tags)                                                             \
    " AND (" cluster "::text IS NULL OR v.vm->>'cluster' = " cluster ")"                         \
    " AND NOT EXISTS (SELECT 1 FROM jsonb_array_elements(" tags "::jsonb) w WHERE NOT EXISTS ("  \
    "  SELECT 1 FROM jsonb_each(CASE jsonb_typeof(v.vm->'tags') WHEN 'object' THEN v.vm->'tags'" \
    "   END) t, jsonb_array_elements_text(t.value) n WHERE CASE WHEN w->>'category' IS NULL"     \
    "   THEN jsonb_exists(w->'names', n) OR jsonb_exists(w->'names', t.key || ':' || n)"         \
    "   ELSE w->>'category' = t.key AND jsonb_exists(w->'names', n) END))"

#endif
