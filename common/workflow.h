/* Workflow definitions (rest-api.md section 6): from a body to checked steps in canonical form, and
 * from a stored definition to the requests that its steps submit. Pure; what a step submits is
 * checked by submit_prepare and its like (submit_job.h, submit_bridge.h). Fuzzed. */
#ifndef COMMON_WORKFLOW_H
#define COMMON_WORKFLOW_H

#include <jansson.h>

#include "common/fields.h"
#include "common/workflow_state.h"

#define WORKFLOW_ITEMS_MAX    1000 /* of all steps: as many jobs as one request may submit */
#define WORKFLOW_PARALLEL_MAX 1000
#define WORKFLOW_WAIT_MAX_MS  (INT64_C(30) * 24 * 3600 * 1000)
#define WORKFLOW_ID_BYTES_MAX 40 /* with "steps." and a field it fits FIELD_NAME_MAX */

enum workflow_step_type {
    WORKFLOW_BATCH,
    WORKFLOW_JOB,
    WORKFLOW_CONVERT,
    WORKFLOW_IMPORT,
    WORKFLOW_WAIT,
    WORKFLOW_SCRIPT,
    WORKFLOW_WEBHOOK,
};

struct workflow_step {
    const char *id; /* borrowed from the canonical definition */
    enum workflow_step_type type;
    enum workflow_when when;
    uint64_t depends; /* bit i: step i */
    int64_t wait_ms;
    uint32_t parallel_max;
    uint32_t item_count;
};

struct workflow {
    json_t *definition; /* canonical: {"name", "description", "steps": [...]} without secrets */
    const char *name;   /* borrowed */
    uint32_t step_count;
    struct workflow_step steps[WORKFLOW_STEPS_MAX];
};

/* Body: {"workflow": {...}} or what is in it. Problems of a step name it. */
MUST_CHECK int workflow_parse(const json_t *body, struct workflow **out,
                              struct field_problem *problem, struct error *err);
void workflow_free(struct workflow *workflow);
DEFINE_AUTO(workflow, struct workflow, workflow_free)
#define auto_workflow CLEANUP(workflow_auto) struct workflow

/* The body that item `item` of a step submits: of a job (batch, job), a conversion, an import, or a
 * hook with its type (script, webhook). New reference. */
json_t *workflow_item(const struct workflow *workflow, uint32_t step, uint32_t item);

const char *workflow_step_type_name(enum workflow_step_type type);
const char *workflow_when_name(enum workflow_when when);
MUST_CHECK bool workflow_when_parse(const char *text, enum workflow_when *out);

/* Puts the step before the field and the message that a step's request was refused with. */
void workflow_problem(const struct workflow *workflow, uint32_t step, struct field_problem *problem,
                      struct error *err);

#endif
