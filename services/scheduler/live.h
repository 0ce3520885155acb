/* What only lives while a lease does: its authority (so that progress of a lost lease is not
 * believed) and the newest progress. Rebuilt from renewals after a restart. Thread-safe. */
#ifndef SCHEDULER_LIVE_H
#define SCHEDULER_LIVE_H

#include <jansson.h>

#include "common/bus.h"

#define LIVE_TASKS_MAX 2048 /* twice the contexts of the bus */

struct live;
struct live *live_new(void);
/* A lease was given or renewed. */
void live_lease(struct live *live, const Hypersdk__V1__TaskRef *ref, const char *job_id,
                const char *vm_name);
/* The lease ended; its last progress is still handed out once. */
void live_end(struct live *live, const char *task_id);
/* Progress counts only under the live lease. */
void live_progress(struct live *live, const Hypersdk__V1__TaskProgress *progress);
/* Logical bytes done, 0 when unknown. */
uint64_t live_bytes_done(struct live *live, const char *task_id);

struct live_update {
    char job_id[65];
    char vm_name[256];
    json_t *json; /* rest-api.md 3.5 */
    bool store;   /* time for the job's row, too */
};
/* What changed since the last call, at most max; *out json are new references. */
size_t live_take(struct live *live, struct live_update *out, size_t max);

#endif
