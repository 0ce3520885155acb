/* Cron expressions: five fields (minute, hour, day of month, month, day of week) or @daily and
 * its like, and the next instant they mean in a time zone.
 *
 * Fields are lists of numbers, ranges and steps ("1,5", "9-17", "0-30/10", every n-th by a star
 * with "/n"); months and days of the week also by their English names; 0 and 7 are Sunday. When
 * neither day field begins with a star, one of them that matches is enough (as in Vixie cron);
 * otherwise both must match.
 *
 * Clock changes:
 * - A local time that does not exist fires once, at the first instant after the gap.
 * - A local time that exists twice fires once, at its first occurrence.
 * - A pattern for every hour of the day fires by the time that passes: at every instant whose
 *   local minute matches, none doubled, none lost, whatever the hour is called. */
#ifndef COMMON_CRON_H
#define COMMON_CRON_H

#include "common/error.h"
#include "common/time_zone.h"

#define CRON_BYTES_MAX 256 /* all 60 minutes listed are 169 */

struct cron {
    uint64_t minutes; /* bit n: minute n */
    uint32_t hours;
    uint32_t days;    /* bits 1-31 */
    uint16_t months;  /* bits 1-12 */
    uint8_t weekdays; /* bits 0-6, 0 = Sunday */
    bool any_day;     /* one of the day fields is enough */
};

/* ERR_INVALID: what is wrong, in which field; also for days that never come (31 February). */
MUST_CHECK int cron_parse(const char *text, struct cron *out, struct error *err);
/* The first instant after `after` (seconds since 1970 UTC, not negative).
 * ERR_LIMIT: there is none that can be counted to. */
MUST_CHECK int cron_next(const struct cron *cron, const struct time_zone *zone, int64_t after,
                         int64_t *out, struct error *err);

#endif
