/* The rule at the end of a TZif file, a POSIX TZ string with the extensions of RFC 9636:
 * "CET-1CEST,M3.5.0,M10.5.0/3", "<+0330>-3:30", "IST-1GMT0,M10.5.0,M3.5.0/1". */
#ifndef COMMON_TIME_ZONE_RULE_H
#define COMMON_TIME_ZONE_RULE_H

#include "common/error.h"

#define TIME_ZONE_RULE_CHANGES 10 /* the two of this year, two before and two after */

enum time_zone_day_kind { DAY_OF_YEAR, DAY_OF_YEAR_NO_LEAP, DAY_OF_WEEK };

struct time_zone_day {
    enum time_zone_day_kind kind;
    int day;         /* 0-365; 1-365 without counting 29 February; weekday 0-6 */
    int month;       /* DAY_OF_WEEK: 1-12 */
    int week;        /* DAY_OF_WEEK: 1-5, 5 = the last */
    int32_t seconds; /* local time of the change, may be negative or over a day */
};

struct time_zone_rule {
    int32_t standard; /* seconds east of UTC */
    int32_t daylight;
    bool has_daylight;
    struct time_zone_day start; /* of daylight, in standard time */
    struct time_zone_day end;   /* in daylight time */
};

struct time_zone_change {
    int64_t at;     /* seconds since 1970 UTC */
    int32_t offset; /* from then on */
};

/* ERR_INVALID: not such a string. */
MUST_CHECK int time_zone_rule_parse(const char *text, struct time_zone_rule *out,
                                    struct error *err);
/* The changes of the years around `at`, oldest first; the first is before, the last behind it.
 * Only for rules with daylight time. */
void time_zone_rule_changes(const struct time_zone_rule *rule, int64_t at,
                            struct time_zone_change out[TIME_ZONE_RULE_CHANGES]);

#endif
