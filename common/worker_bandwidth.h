/* The bandwidth of the workers of a provider kind as the API sets it, over the configuration of
 * each: a row of settings, which the scheduler hands out with every lease and renewal. */
#ifndef COMMON_WORKER_BANDWIDTH_H
#define COMMON_WORKER_BANDWIDTH_H

#include "common/db.h"

#define WORKER_BANDWIDTH_KEY "worker.bandwidth." /* of settings; the kind of provider follows */

struct worker_bandwidth {
    bool set;       /* false: the configuration holds */
    uint64_t rate;  /* bytes per second; 0: no limit */
    uint64_t burst; /* bytes; 0: 2 x rate */
};

/* Of one kind ("vsphere"). */
MUST_CHECK int worker_bandwidth_get(struct db *db, const char *kind, struct worker_bandwidth *out,
                                    struct error *err);
/* Of the kind that a worker process serves. */
MUST_CHECK int worker_bandwidth_of(struct db *db, const char *instance,
                                   struct worker_bandwidth *out, struct error *err);
/* With set false the row goes. */
MUST_CHECK int worker_bandwidth_put(struct db *db, const char *kind,
                                    const struct worker_bandwidth *value, struct error *err);

#endif
