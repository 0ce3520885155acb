/* The tasks of an exporter besides the export (docs/tasks.md); arg is the struct exporter. */
#ifndef EXPORTER_CONTROL_H
#define EXPORTER_CONTROL_H

#include "services/exporter/engine/session.h"

int exporter_run_inventory(struct worker_task *task, void *arg, json_t **out_result,
                           struct error *err);
int exporter_run_vm_info(struct worker_task *task, void *arg, json_t **out_result,
                         struct error *err);
int exporter_run_validate(struct worker_task *task, void *arg, json_t **out_result,
                          struct error *err);
/* Change tracking of a VM: looked at, switched on, or off. */
int exporter_run_tracking(struct worker_task *task, void *arg, json_t **out_result,
                          struct error *err);
int exporter_run_incremental_info(struct worker_task *task, void *arg, json_t **out_result,
                                  struct error *err);
/* chain_task.c */
int exporter_run_check_chain(struct worker_task *task, void *arg, json_t **out_result,
                             struct error *err);
int exporter_run_prune(struct worker_task *task, void *arg, json_t **out_result, struct error *err);
int exporter_run_flatten(struct worker_task *task, void *arg, json_t **out_result,
                         struct error *err);
int exporter_run_release(struct worker_task *task, void *arg, json_t **out_result,
                         struct error *err);
/* verify_task.c: class transfer, it reads whole exports. */
int exporter_run_verify(struct worker_task *task, void *arg, json_t **out_result,
                        struct error *err);
/* cleanup_task.c: class transfer, its job is followed like an export. */
int exporter_run_cleanup(struct worker_task *task, void *arg, json_t **out_result,
                         struct error *err);
/* Session of the task's own provider instance. */
MUST_CHECK int exporter_task_session(struct worker_task *task, struct exporter *exporter,
                                     struct exporter_session *out, struct error *err);

#endif
