/* Schedules and their runs as answers show them. */
#ifndef GATEWAY_SCHEDULE_VIEW_H
#define GATEWAY_SCHEDULE_VIEW_H

#include "route.h"

/* {"message", "schedule", "timestamp"}. */
MUST_CHECK int schedule_answer(struct call *call, unsigned int status, const char *message,
                               const char *id, struct error *err);

#endif
