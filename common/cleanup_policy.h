/* The rules of a clean-up of exports as request bodies have them, once and as the member "cleanup"
 * of a job. */
#ifndef COMMON_CLEANUP_POLICY_H
#define COMMON_CLEANUP_POLICY_H

#include "common/config.h"
#include "common/fields.h"

#define CLEANUP_AGE_MAX_MS UINT64_C(315360000000) /* ten years */

#define CLEANUP_POLICY_FIELDS                                           \
    {"max_age", {NULL}, FIELD_DURATION, 1, CLEANUP_AGE_MAX_MS, NULL},   \
        {"max_count", {NULL}, FIELD_NUMBER, 0, 1000000, NULL},          \
        {"max_size", {NULL}, FIELD_NUMBER, 0, INT64_MAX, NULL},         \
        {"min_free", {NULL}, FIELD_NUMBER, 0, INT64_MAX, NULL},         \
        {"per_vm", {NULL}, FIELD_BOOL, 0, 0, NULL},                     \
        {"preserve", {NULL}, FIELD_TEXT_LIST, 1, FIELD_LIST_MAX, NULL}, \
        {"dir", {"path", NULL}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},   \
    {                                                                   \
        "dry_run", {NULL}, FIELD_BOOL, 0, 0, NULL                       \
    }

/* The task's spec (docs/tasks.md) of canonical fields, its "dir" confined; fallback: without a
 * "dir". ERR_INVALID, ERR_DENIED: the directory. New reference. */
MUST_CHECK int cleanup_policy_spec(const struct config_list *bases, const json_t *fields,
                                   const char *fallback, json_t **out, struct error *err);

#endif
