/* vCenter's long work: a *_Task call starts it, the task is looked at until it ends. */
#ifndef VSPHERE_TASK_H
#define VSPHERE_TASK_H

#include "services/exporter/providers/vsphere/property.h"

#define TASK_RECONFIGURE_TIMEOUT_MS INT64_C(300000) /* of ReconfigVM_Task */

/* Sends a finished *_Task request, once: it is never repeated blindly. Caller frees *out_task. */
MUST_CHECK int task_start(struct provider_session *session, const char *method,
                          const struct strbuf *request, char **out_task, struct error *err);
/* Until the task ends, with growing pauses. *out_result is its result or "" (caller frees);
 * out_result may be NULL. `what` begins messages. */
MUST_CHECK int task_wait(struct provider_session *session, const char *task, const char *what,
                         int64_t timeout_ms, char **out_result, struct error *err);
/* Both, for who needs nothing but the end; messages begin with the method. */
MUST_CHECK int task_run(struct provider_session *session, const char *method,
                        const struct strbuf *request, int64_t timeout_ms, char **out_result,
                        struct error *err);
/* For who looks at tasks of others: their property "info". */
extern const struct property_set task_set;

#endif
