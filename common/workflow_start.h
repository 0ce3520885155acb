/* What a step of a workflow run starts: its items become jobs, inside the transaction of
 * common/workflow_store.c. */
#ifndef COMMON_WORKFLOW_START_H
#define COMMON_WORKFLOW_START_H

#include "common/submit_job.h"
#include "common/workflow.h"

struct workflow_starter;

struct workflow_starter_options { /* borrowed until the starter is freed */
    const struct submit_settings *settings;
    const char *definition;
    const char *submitted_by;
    const char *trace_id;
};
MUST_CHECK int workflow_starter_new(struct db *db, const struct workflow_starter_options *options,
                                    struct workflow_starter **out, struct error *err);
void workflow_starter_free(struct workflow_starter *starter);
DEFINE_AUTO(workflow_starter, struct workflow_starter, workflow_starter_free)
#define auto_workflow_starter CLEANUP(workflow_starter_auto) struct workflow_starter

struct workflow_start {
    const char *run_id;
    uint32_t step;
    uint32_t attempt;
    uint32_t count; /* of items that are not started in this attempt */
};
/* A job that failed before goes on from its checkpoint; one that a worker still cleans up after is
 * left for the next look. An item whose request is refused now counts as failed. */
MUST_CHECK int workflow_starter_run(struct workflow_starter *starter,
                                    const struct workflow_start *start, bool *out_started,
                                    struct error *err);

#endif
