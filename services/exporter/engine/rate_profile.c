/* See rate_profile.h. */
#include "services/exporter/engine/rate_profile.h"

#include <string.h>

#include "common/parse.h"

#define DAYS      7
#define EVERY_DAY 0x7fU

static bool find_day(const char *text, size_t length, unsigned int *out)
{
    static const char names[DAYS][4] = {"mon", "tue", "wed", "thu", "fri", "sat", "sun"};

    for (unsigned int i = 0; i < DAYS; i++) {
        if (length == 3 && memcmp(text, names[i], 3) == 0) {
            *out = i;
            return true;
        }
    }
    return false;
}

/* "fri-mon" goes over the end of the week. */
static bool add_days(const char *text, size_t length, uint8_t *days)
{
    const char *dash = memchr(text, '-', length);
    size_t first_length = dash == NULL ? length : (size_t)(dash - text);
    unsigned int first = 0;
    unsigned int last = 0;

    if (length == 5 && memcmp(text, "daily", 5) == 0) {
        *days = EVERY_DAY;
        return true;
    }
    if (!find_day(text, first_length, &first))
        return false;
    last = first;
    if (dash != NULL && !find_day(dash + 1, length - first_length - 1, &last))
        return false;
    for (unsigned int i = first;; i = (i + 1) % DAYS) {
        *days = (uint8_t)(*days | 1U << i);
        if (i == last)
            return true;
    }
}

static bool parse_days(const char *text, uint8_t *out)
{
    for (;;) {
        size_t length = strcspn(text, ",");
        if (!add_days(text, length, out))
            return false;
        text += length;
        if (*text == '\0')
            return true;
        text++;
    }
}

static bool two_digits(const char *text, unsigned int *out)
{
    if (text[0] < '0' || text[0] > '9' || text[1] < '0' || text[1] > '9')
        return false;
    *out = (unsigned int)(text[0] - '0') * 10 + (unsigned int)(text[1] - '0');
    return true;
}

/* "08:00"; 24:00 is the end of the day. */
static bool parse_minute(const char *text, uint16_t *out)
{
    unsigned int hour = 0;
    unsigned int minute = 0;

    if (!two_digits(text, &hour) || text[2] != ':' || !two_digits(text + 3, &minute) ||
        minute > 59 || hour * 60 + minute > RATE_PROFILE_DAY_MINUTES)
        return false;
    *out = (uint16_t)(hour * 60 + minute);
    return true;
}

static bool parse_window(const char *text, struct rate_profile *out)
{
    return strlen(text) == 11 && text[5] == '-' && parse_minute(text, &out->from) &&
           parse_minute(text + 6, &out->until) && out->from != out->until &&
           out->from < RATE_PROFILE_DAY_MINUTES;
}

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
    if (!parse_days(copy, &profile.days)) {
        return error_set(err, ERR_INVALID,
                         "'%.60s': days are mon tue wed thu fri sat sun, ranges and lists of them, "
                         "or daily",
                         text);
    }
    if (!parse_window(window, &profile)) {
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
    bool yesterday = (profile->days >> (day + DAYS - 1) % DAYS & 1U) != 0;

    if (profile->from < profile->until)
        return today && minute >= profile->from && minute < profile->until;
    return (today && minute >= profile->from) || (yesterday && minute < profile->until);
}

const struct rate_profile *rate_profile_find(const struct rate_profile *profiles, size_t count,
                                             const struct tm *local)
{
    unsigned int day = (unsigned int)(local->tm_wday + DAYS - 1) % DAYS; /* Sunday is 0 there */
    unsigned int minute = (unsigned int)(local->tm_hour * 60 + local->tm_min);

    for (size_t i = 0; i < count; i++) {
        if (holds(&profiles[i], day, minute))
            return &profiles[i];
    }
    return NULL;
}
