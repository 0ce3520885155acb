/* Times of day with a bandwidth of their own: lines of export.bandwidth_profiles.
 *
 *   "mon-fri 08:00-18:00 20"     days, from-until in local time, MB/s (0: no limit)
 *
 * Days are mon ... sun, ranges of them, lists with commas, or daily. A window over midnight
 * (22:00-06:00) belongs to the day it begins on. The first line that fits holds. */
#ifndef EXPORTER_RATE_PROFILE_H
#define EXPORTER_RATE_PROFILE_H

#include <time.h>

#include "common/error.h"

#define RATE_PROFILES_MAX      64
#define RATE_PROFILE_BYTES_MAX 128
#define RATE_PROFILE_MB_MAX    1000000 /* 1 TB/s */

struct rate_profile {
    uint8_t days;   /* bit 0 = Monday ... bit 6 = Sunday */
    uint16_t from;  /* minutes since midnight */
    uint16_t until; /* not that minute any more; below from: over midnight */
    uint64_t mb;    /* per second */
};

/* ERR_INVALID says what is wrong with the line. */
MUST_CHECK int rate_profile_parse(const char *text, struct rate_profile *out, struct error *err);
/* The one that holds at this local time, or NULL. */
const struct rate_profile *rate_profile_find(const struct rate_profile *profiles, size_t count,
                                             const struct tm *local);

#endif
