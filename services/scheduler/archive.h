/* Jobs that ended long ago go out of the tables that work goes through, and at last for good. */
#ifndef SCHEDULER_ARCHIVE_H
#define SCHEDULER_ARCHIVE_H

#include "scheduler.h"

/* A step of the reaper: moves and removes some, more at the next one. */
MUST_CHECK int archive_run(struct scheduler *scheduler, struct db *db, struct error *err);

#endif
