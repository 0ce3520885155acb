/* A pool of threads that handle calls, each with a database connection of its own. The queue is
 * bounded: when it is full the caller sheds load. */
#ifndef GATEWAY_WORKERS_H
#define GATEWAY_WORKERS_H

#include "common/db.h"

struct gateway;
struct workers;

struct work { /* embedded in what is to be done */
    struct work *next;
    void (*run)(struct work *work, struct db *db);
};

struct workers_options {
    const char *name; /* literal, shown in pg_stat_activity */
    size_t threads;
    size_t queue_max;
    bool with_db; /* false: run gets NULL */
};
MUST_CHECK int workers_start(const struct gateway *gateway, const struct workers_options *options,
                             struct workers **out, struct error *err);
/* false: the queue is full. Any thread. */
MUST_CHECK bool workers_submit(struct workers *workers, struct work *work);
#endif
