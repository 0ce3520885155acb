/* See week.h. */
#include "common/week.h"

#include <string.h>

#define EVERY_DAY 0x7fU

const char week_day_names[WEEK_DAYS][4] = {"mon", "tue", "wed", "thu", "fri", "sat", "sun"};

static bool find_day(const char *text, size_t length, unsigned int *out)
{
    for (unsigned int i = 0; i < WEEK_DAYS; i++) {
        if (length == 3 && memcmp(text, week_day_names[i], 3) == 0) {
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
    for (unsigned int i = first;; i = (i + 1) % WEEK_DAYS) {
        *days = (uint8_t)(*days | 1U << i);
        if (i == last)
            return true;
    }
}

bool week_parse_days(const char *text, uint8_t *out)
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
static bool read_minute(const char *text, uint16_t *out)
{
    unsigned int hour = 0;
    unsigned int minute = 0;

    if (!two_digits(text, &hour) || text[2] != ':' || !two_digits(text + 3, &minute) ||
        minute > 59 || hour * 60 + minute > WEEK_DAY_MINUTES)
        return false;
    *out = (uint16_t)(hour * 60 + minute);
    return true;
}

bool week_parse_minute(const char *text, uint16_t *out)
{
    return strlen(text) == 5 && read_minute(text, out);
}

bool week_parse_times(const char *text, uint16_t *from, uint16_t *until)
{
    return strlen(text) == 11 && text[5] == '-' && read_minute(text, from) &&
           read_minute(text + 6, until) && *from != *until && *from < WEEK_DAY_MINUTES;
}
