/* What a job wants of its VM before it is read (rest-api.md section 3, docs/hooks.md): members of
 * "options", also of a shutdown hook. */
#ifndef COMMON_SHUTDOWN_WISH_H
#define COMMON_SHUTDOWN_WISH_H

#include "common/fields.h"

#define SHUTDOWN_TIMEOUT_MS     300000
#define SHUTDOWN_TIMEOUT_MS_MAX (UINT64_C(4) * 3600000)

#define SHUTDOWN_FIELDS                                                                    \
    {"shutdown_vm", {NULL}, FIELD_BOOL, 0, 0, NULL},                                       \
        {"shutdown_timeout", {NULL}, FIELD_DURATION, 1000, SHUTDOWN_TIMEOUT_MS_MAX, NULL}, \
        {"shutdown_on_error", {NULL}, FIELD_TEXT, 1, 16, NULL},                            \
    {                                                                                      \
        "power_on_after", {NULL}, FIELD_BOOL, 0, 0, NULL                                   \
    }

extern const char *const shutdown_policies[]; /* of shutdown_on_error */
/* Of canonical options; NULL is fine. */
MUST_CHECK int shutdown_wish_check(const json_t *options, struct field_problem *problem,
                                   struct error *err);
/* "shutdown" of an export's spec (docs/tasks.md); NULL: none is wanted. New reference. */
json_t *shutdown_wish_spec(const json_t *options);

#endif
