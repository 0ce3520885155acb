/* Looking without doing: the control tasks "inspect_image" and "validate_manifest" (docs/tasks.md).
 */
#ifndef BRIDGE_INSPECT_H
#define BRIDGE_INSPECT_H

#include "bridge.h"

/* What the header of an image says; arg is the struct bridge. */
int inspect_image_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err);
/* Would a conversion take this manifest? An answer, not an error, when it would not. */
int validate_manifest_run(struct worker_task *task, void *arg, json_t **out_result,
                          struct error *err);

#endif
