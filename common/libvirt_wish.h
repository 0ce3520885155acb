/* Where an import goes and how: the object "libvirt" of a job and the same fields of
 * POST /api/v1/imports. */
#ifndef COMMON_LIBVIRT_WISH_H
#define COMMON_LIBVIRT_WISH_H

#include "common/config_schema.h"
#include "common/fields.h"

#define LIBVIRT_NAME_MAX 255 /* of pools, networks, bridges */
/* Lines of a struct field table. */
#define LIBVIRT_WISH_FIELDS                                                                       \
    {"uri", {NULL}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},                                         \
        {"pool", {NULL}, FIELD_TEXT, 0, LIBVIRT_NAME_MAX, NULL},                                  \
        {"network", {NULL}, FIELD_TEXT, 1, LIBVIRT_NAME_MAX, NULL},                               \
        {"bridge", {NULL}, FIELD_TEXT, 1, LIBVIRT_NAME_MAX, NULL},                                \
        {"autostart", {NULL}, FIELD_BOOL, 0, 0, NULL}, {"start", {NULL}, FIELD_BOOL, 0, 0, NULL}, \
    {                                                                                             \
        "if_exists", {NULL}, FIELD_TEXT, 1, 16, NULL                                              \
    }

/* wish: canonical under a table with these lines; prefix as in fields_canonical. */
MUST_CHECK int libvirt_wish_check(const struct libvirt_config *config, const json_t *wish,
                                  const char *prefix, struct field_problem *problem,
                                  struct error *err);
/* The member "libvirt" of an import task's spec (docs/tasks.md): what was asked for, and what the
 * configuration says now. New reference. */
json_t *libvirt_wish_spec(const struct libvirt_config *config, const json_t *wish);

#endif
