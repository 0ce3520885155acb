/* Lease requests that wait for a task, and the dispatcher that serves them. */
#ifndef SCHEDULER_PARK_H
#define SCHEDULER_PARK_H

#include "scheduler.h"

#define PARK_REQUESTS_MAX 896   /* of SERVER_CONTEXTS: renewals must always find a free one */
#define PARK_MS           20000 /* then "none"; a vanished worker's request is gone by then */

struct park *park_new(void);
/* Any thread; takes the request. An older one of the same slot is answered "none". */
void park_add(struct park *park, struct bus_request *request);
/* Answers "none" to what is parked of this instance: one slot's request, or all of them. */
void park_dismiss(struct park *park, const Hypersdk__V1__LeaseRequest *by, bool any_slot);
/* There may be new tasks. */
void park_wake(struct park *park);
/* Is anything parked, or being looked at? */
bool park_busy(struct park *park);
void *park_main(void *scheduler); /* the dispatcher's thread */

#endif
