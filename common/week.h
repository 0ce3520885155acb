/* Days of the week and times of the day, as texts of settings and requests have them. */
#ifndef COMMON_WEEK_H
#define COMMON_WEEK_H

#include "common/base.h"

#define WEEK_DAYS        7
#define WEEK_DAY_MINUTES 1440

extern const char week_day_names[WEEK_DAYS][4]; /* "mon" ... "sun" */

/* "mon", "mon-fri,sun", "fri-mon" (over the end of the week), "daily"; bit 0 is Monday. */
MUST_CHECK bool week_parse_days(const char *text, uint8_t *out);
/* "08:00-18:00", "22:00-06:00"; 24:00 is the end of the day. from is in the day, and not until. */
MUST_CHECK bool week_parse_times(const char *text, uint16_t *from, uint16_t *until);
/* Minutes of "08:00"; 24:00 is the end of the day. */
MUST_CHECK bool week_parse_minute(const char *text, uint16_t *out);

#endif
