/* Part of the reaper's round: queues the clean-up of exports when it is due. */
#ifndef SCHEDULER_CLEANUP_SCHEDULE_H
#define SCHEDULER_CLEANUP_SCHEDULE_H

#include "scheduler.h"

MUST_CHECK int cleanup_schedule_run(struct scheduler *scheduler, struct db *db, struct error *err);

#endif
