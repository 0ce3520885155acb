/* Hooks of a job: what is done before and after it (rest-api.md section 6, docs/hooks.md).
 *
 * shutdown, snapshot, convert, upload, import and cleanup are steps that the job has anyway: such a
 * hook sets the job's own fields. script and webhook become tasks of the job, wait keeps the task
 * behind it back. What cannot be done in the order that was asked for is refused. */
#ifndef COMMON_HOOKS_H
#define COMMON_HOOKS_H

#include "common/config_schema.h"
#include "common/fields.h"
#include "common/job_store.h"

#define HOOKS_MAX               20 /* in each of the two lists */
#define HOOK_ARGS_MAX           64
#define HOOK_WEBHOOK_TIMEOUT_MS 30000
#define HOOK_BODY_BYTES_MAX     (64 * KIB) /* travels in the lease */

/* pre_hooks and post_hooks of a job whose names are canonical: checked, made canonical and done by
 * the job's own fields where these do it, in place. config: NULL, or without a scripts_dir: there
 * are no scripts. */
MUST_CHECK int hooks_apply(const struct hooks_config *config, json_t *job,
                           struct field_problem *problem, struct error *err);

struct hook_facts {    /* borrowed */
    const json_t *job; /* after hooks_apply */
    const char *job_id;
    const char *vm_name;
    const char *output_path;
    const struct retry_config *retry;
    const json_t *export_spec;
    const json_t *convert_spec; /* NULL: no conversion */
    const json_t *import_spec;  /* NULL: no import */
};
struct hook_plan { /* all tasks of the job in their order; specs of hooks are owned */
    struct job_task tasks[JOB_TASKS_MAX];
    size_t count; /* 0: the job has no hooks */
    json_t *owned;
};
/* After hooks_apply there is nothing left that could be wrong. */
void hooks_plan(const struct hook_facts *facts, struct hook_plan *out);
void hook_plan_release(struct hook_plan *plan);

/* A script or webhook that is no part of another job, as a step of a workflow: hook has its type
 * and is under the rules of hooks. *out_spec: the task's for the bridge, without facts
 * (docs/tasks.md); new reference. *out: the same spec, borrowed, and how often it is tried. config
 * as in hooks_apply. ERR_DENIED when a command is not inside the directory. */
MUST_CHECK int hook_step_task(const struct hooks_config *config, const json_t *hook,
                              json_t **out_spec, struct job_task *out,
                              struct field_problem *problem, struct error *err);
/* The first hook of that type in the list ("pre_hooks", "post_hooks"); NULL: none. Borrowed. */
const json_t *hook_find(const json_t *job, const char *list, const char *type);

#endif
