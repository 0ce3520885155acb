/* Schedules in PostgreSQL: what the gateway and the scheduler share. Inside the caller's
 * transaction where one is open. */
#ifndef COMMON_SCHEDULE_STORE_H
#define COMMON_SCHEDULE_STORE_H

#include "common/db.h"
#include "common/schedule.h"

enum schedule_lock {
    SCHEDULE_READ,
    SCHEDULE_LOCK, /* until the end of the transaction */
    SCHEDULE_TAKE, /* the same, if it is due and nobody else has it; else ERR_NOT_FOUND */
};
/* ERR_NOT_FOUND. Call schedule_check() before anything that needs cron or zone. */
MUST_CHECK int schedule_store_load(struct db *db, const char *id, enum schedule_lock lock,
                                   struct schedule **out, struct error *err);
/* A checked schedule as a new row; fills id, now_s, next_s. ERR_CONFLICT: the name is taken. */
MUST_CHECK int schedule_store_insert(struct db *db, struct schedule *schedule, struct error *err);
/* A loaded and checked one with changed fields; the next run is counted anew from now. */
MUST_CHECK int schedule_store_update(struct db *db, struct schedule *schedule, struct error *err);
/* Draws the jitter of that run as well. */
MUST_CHECK int schedule_store_set_next(struct db *db, struct schedule *schedule, int64_t next_s,
                                       struct error *err);
/* With its runs; jobs stay. ERR_NOT_FOUND. */
MUST_CHECK int schedule_store_delete(struct db *db, const char *id, struct error *err);
/* Ids of those that are due, at most `limit`, the longest overdue first. New reference. */
MUST_CHECK int schedule_store_due(struct db *db, uint32_t limit, json_t **out, struct error *err);

#endif
