/* Everything that workers ask but leases: renewals, records, permits, ends, inventory pages. Each
 * is one transaction and is answered after its commit; a repeated one changes nothing again. */
#ifndef SCHEDULER_REQUESTS_H
#define SCHEDULER_REQUESTS_H

#include "scheduler.h"

#define SERVER_CONTEXTS 1024 /* open questions at a time, parked ones included */
#define REQUEST_THREADS 3    /* commits in parallel; PostgreSQL groups them */

struct requests *requests_new(void);
/* Any thread; takes the request. */
void requests_add(struct requests *requests, struct bus_request *request);
/* Is anything waiting or being worked on? */
bool requests_busy(struct requests *requests);
void *requests_main(void *scheduler); /* one of REQUEST_THREADS */

#endif
