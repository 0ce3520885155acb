/* A job's bandwidth as users ask for it: the fields of a submission and of
 * PUT /api/v1/jobs/{id}/bandwidth, and what the worker gets. 1 MB = 1 048 576 B. */
#ifndef COMMON_BANDWIDTH_H
#define COMMON_BANDWIDTH_H

#include "common/fields.h"

#define BANDWIDTH_MB_MAX          1000000 /* 1 TB/s */
#define BANDWIDTH_ADAPTIVE_MB_MAX 100     /* ceiling when neither it nor a limit is given */

/* Rows of a field table. */
#define BANDWIDTH_FIELDS                                                                      \
    {"bandwidth_limit_mbps", {"bandwidth_limit"}, FIELD_NUMBER, 0, BANDWIDTH_MB_MAX, NULL},   \
        {"bandwidth_burst_mb", {"bandwidth_burst"}, FIELD_NUMBER, 0, BANDWIDTH_MB_MAX, NULL}, \
        {"adaptive_bandwidth", {NULL}, FIELD_BOOL, 0, 0, NULL},                               \
        {"bandwidth_min_mbps", {"bandwidth_min"}, FIELD_NUMBER, 1, BANDWIDTH_MB_MAX, NULL},   \
    {                                                                                         \
        "bandwidth_max_mbps", {"bandwidth_max"}, FIELD_NUMBER, 1, BANDWIDTH_MB_MAX, NULL      \
    }

/* Do the fields of a canonical object fit together? */
MUST_CHECK int bandwidth_check(const json_t *job, struct field_problem *problem, struct error *err);
/* Spec member "bandwidth" of transfer tasks (docs/tasks.md): {"rate", "burst", "floor"}. */
json_t *bandwidth_spec(const json_t *job);
bool bandwidth_is_given(const json_t *job);

#endif
