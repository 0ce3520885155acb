/* Stopping a VM before it is read, and starting it again afterwards.
 *
 * That it is to be started stands in the task's records before the guest is asked to stop, so a
 * worker that dies in between leaves that to whoever releases the task. */
#ifndef VSPHERE_POWER_H
#define VSPHERE_POWER_H

#include "services/exporter/providers/vsphere/inventory.h"

#define POWER_TASK_TIMEOUT_MS INT64_C(300000) /* a host that is busy takes minutes */

/* provider.shut_down. */
MUST_CHECK int power_shut_down(struct provider_session *session, const char *vm_id,
                               const struct shutdown_options *options, struct task_records *records,
                               enum shutdown_end *out, struct error *err);
/* Starts what the records say, if it is off. Repeatable. */
MUST_CHECK int power_restore(struct provider_session *session, struct task_records *records,
                             struct error *err);

#endif
