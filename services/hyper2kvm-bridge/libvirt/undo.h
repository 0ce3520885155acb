/* Taking an import back, from its records. */
#ifndef BRIDGE_LIBVIRT_UNDO_H
#define BRIDGE_LIBVIRT_UNDO_H

#include "records.h"

/* Neither domain nor volume nor mark is left; what it replaced is back. What is not the job's is
 * not touched. May be repeated. */
MUST_CHECK int import_undo(struct worker_task *task, virConnectPtr connection, const char *job_id,
                           struct error *err);

#endif
