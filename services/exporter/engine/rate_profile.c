/* See rate_profile.h. */
#include "services/exporter/engine/rate_profile.h"

#include <string.h>

#include "common/parse.h"
#include "common/week.h"

int rate_profile_parse(const char *text, struct rate_profile *out, struct error *err)
{
    struct rate_profile profile = {0};
    autofree char *copy = xstrndup(text, RATE_PROFILE_BYTES_MAX + 1);
    char *window = strchr(copy, ' ');
    char *rate = window == NULL ? NULL : strchr(window + 1, ' ');

    if (rate == NULL || strlen(copy) > RATE_PROFILE_BYTES_MAX) {
        return error_set(err, ERR_INVALID,
                         "'%.60s' is not written like 'mon-fri 08:00-18:00 20' (MB/s)", text);
    }
    *window++ = '\0';
    *rate++ = '\0';
    if (!week_parse_days(copy, &profile.days)) {
        return error_set(err, ERR_INVALID,
                         "'%.60s': days are mon tue wed thu fri sat sun, ranges and lists of them, "
                         "or daily",
                         text);
    }
    if (!week_parse_times(window, &profile.from, &profile.until)) {
        return error_set(err, ERR_INVALID, "'%.60s': the time is not written like 08:00-18:00",
                         text);
    }
    if (parse_u64("MB/s", rate, 0, RATE_PROFILE_MB_MAX, &profile.mb, err) < 0)
        return error_wrap(err, "'%.60s'", text);
    *out = profile;
    return 0;
}

static bool holds(const struct rate_profile *profile, unsigned int day, unsigned int minute)
{
    bool today = (profile->days >> day & 1U) != 0;
    bool yesterday = (profile->days >> (day + WEEK_DAYS - 1) % WEEK_DAYS & 1U) != 0;

    if (profile->from < profile->until)
        return today && minute >= profile->from && minute < profile->until;
    return (today && minute >= profile->from) || (yesterday && minute < profile->until);
}

const struct rate_profile *rate_profile_find(const struct rate_profile *profiles, size_t count,
                                             const struct tm *local)
{
    unsigned int day =
        (unsigned int)(local->tm_wday + WEEK_DAYS - 1) % WEEK_DAYS; /* Sunday is 0 there */
    unsigned int minute = (unsigned int)(local->tm_hour * 60 + local->tm_min);

    for (size_t i = 0; i < count; i++) {
        if (holds(&profiles[i], day, minute))
            return &profiles[i];
    }
    return NULL;
}
