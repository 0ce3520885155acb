/* What jobs do before and after themselves outside of the suite (docs/hooks.md): task kinds
 * "script" and "webhook". */
#ifndef BRIDGE_HOOK_H
#define BRIDGE_HOOK_H

#include "bridge.h"

/* A script of hooks.scripts_dir as a child. At least once: a bridge that dies takes its script with
 * it or leaves it to the next one on the host, which ends it first and begins anew. */
MUST_CHECK int hook_script_run(struct worker_task *task, void *arg, json_t **out_result,
                               struct error *err);
/* One POST, under the same rules as those of webhooks that are told of events. */
MUST_CHECK int hook_webhook_run(struct worker_task *task, void *arg, json_t **out_result,
                                struct error *err);

/* The file that `command` names, if it may be run: inside dir, a regular file that only root or we
 * can change, as the directories on the way to it. Caller frees. ERR_DENIED, ERR_NOT_FOUND. */
MUST_CHECK int hook_script_file(const char *dir, const char *command, char **out,
                                struct error *err);

#endif
