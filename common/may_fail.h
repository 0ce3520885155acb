/* Steps of an export that a job may go on without (docs/hooks.md): its fields snapshot_on_error and
 * upload_on_error, also of a snapshot's or upload's hook. */
#ifndef COMMON_MAY_FAIL_H
#define COMMON_MAY_FAIL_H

#include "common/fields.h"

#define MAY_FAIL_FIELDS                                     \
    {"snapshot_on_error", {NULL}, FIELD_TEXT, 1, 16, NULL}, \
    {                                                       \
        "upload_on_error", {NULL}, FIELD_TEXT, 1, 16, NULL  \
    }

/* Of a canonical job. */
MUST_CHECK int may_fail_check(const json_t *job, struct field_problem *problem, struct error *err);
/* The same in the export's spec (docs/tasks.md); tries: how often the job tries at most. */
void may_fail_spec(const json_t *job, uint32_t tries, json_t *spec);

#endif
