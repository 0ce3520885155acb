/* Workflow runs in PostgreSQL: what the gateway and the scheduler do to them. Every function runs
 * in one transaction of its own, with the run's row locked; common/workflow_state.h decides.
 * Lock order: the run's row, then jobs. */
#ifndef COMMON_WORKFLOW_STORE_H
#define COMMON_WORKFLOW_STORE_H

#include "common/submit_job.h"
#include "common/workflow.h"

#define WORKFLOW_RUNS_MAX 1000 /* under way at a time: each is looked at every second */

struct workflow_request { /* borrowed */
    const char *workflow_id;
    const struct workflow *workflow;
    const char *submitted_by;
    const char *trace_id;
};
/* ERR_LIMIT: too many runs are under way. */
MUST_CHECK int workflow_run_start(struct db *db, const struct workflow_request *request,
                                  char out_id[64], struct error *err);

/* What a user wants of a run (all events but LOOK). ERR_NOT_FOUND, ERR_CONFLICT. */
MUST_CHECK int workflow_run_event(struct db *db, const char *run_id, enum workflow_event event,
                                  const char *actor, struct error *err);

/* What follows from time and from jobs that ended: steps end, begin, and submit their jobs; nothing
 * when another scheduler is at it. *out_started: jobs were queued. */
MUST_CHECK int workflow_run_look(struct db *db, const struct submit_settings *settings,
                                 const char *run_id, bool *out_started, struct error *err);

#endif
