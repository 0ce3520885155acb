/* A clean-up of exports as a job (docs/tasks.md, kind "cleanup"), and the schedule that repeats it:
 * what the gateway and the scheduler share. */
#ifndef COMMON_CLEANUP_JOB_H
#define COMMON_CLEANUP_JOB_H

#include <jansson.h>

#include "common/config_schema.h"
#include "common/db.h"

#define CLEANUP_SCHEDULE_KEY "cleanup.schedule" /* settings: {"interval_ms", "spec"} */
#define CLEANUP_LAST_KEY     "cleanup.last"     /* settings: {"at": milliseconds} */

struct cleanup_request {
    const json_t *spec; /* the policy (docs/tasks.md), with "dir" absolute and confined */
    const char *volume; /* that holds it; NULL or "": the one that a worker announces for it */
    const char *submitted_by;
    const char *trace_id;
    const char *schedule_id; /* whose retention it is; NULL: nobody's */
    const struct retry_config *retry;
};
/* Queues the job for an exporter that reaches dir. Durable on return. */
MUST_CHECK int cleanup_submit(struct db *db, const struct cleanup_request *request, char out_id[64],
                              struct error *err);

#endif
