/* What the runs of a schedule wait for (docs/schedules.md): its member depends_on, a list of
 * {"schedule_id" or "job_id", "required_state", "timeout"}. */
#ifndef COMMON_SCHEDULE_DEPENDS_H
#define COMMON_SCHEDULE_DEPENDS_H

#include "common/db.h"
#include "common/schedule.h"

#define SCHEDULE_DEPENDS_MAX         20
#define SCHEDULE_DEPENDS_WAIT_MS     86400000
#define SCHEDULE_DEPENDS_WAIT_MAX_MS (UINT64_C(30) * 86400000)

/* Makes the list canonical, in place; an empty one goes. Repeatable. Pure. */
MUST_CHECK int schedule_depends_check(json_t *fields, struct field_problem *problem,
                                      struct error *err);
/* 422 when something of it does not exist, or waits for this schedule itself. */
MUST_CHECK int schedule_depends_known(struct db *db, const struct schedule *schedule,
                                      struct field_problem *problem, struct error *err);

enum schedule_wait { SCHEDULE_READY, SCHEDULE_WAITS, SCHEDULE_HOPELESS };
/* What a run of the schedule that waits for waited_ms is to do now. why: the first reason, "" when
 * it is ready. */
MUST_CHECK int schedule_depends_look(struct db *db, const struct schedule *schedule,
                                     int64_t waited_ms, enum schedule_wait *out,
                                     char why[ERROR_MESSAGE_MAX], struct error *err);

#endif
