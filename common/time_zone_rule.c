/* See time_zone_rule.h. */
#include "common/time_zone_rule.h"

#include <string.h>

#include "common/civil.h"

#define ABBREVIATION_MIN 3
#define OFFSET_HOURS_MAX 24
#define TIME_HOURS_MAX   167 /* RFC 9636: a change may be up to a week off its day */
#define DEFAULT_SECONDS  (2 * 3600)
#define DAYLIGHT_DEFAULT 3600
#define YEARS_BEFORE     2
#define YEARS_AFTER      2

struct cursor {
    const char *p;
    const char *text;
    struct error *err;
};

static int bad(const struct cursor *c, const char *what)
{
    return error_set(c->err, ERR_INVALID, "time zone rule '%.80s': %s at '%.20s'", c->text, what,
                     c->p);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_alpha(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int read_number(struct cursor *c, int min, int max, int *out)
{
    int value = 0;

    if (!is_digit(*c->p))
        return bad(c, "a number is missing");
    while (is_digit(*c->p)) {
        value = value * 10 + (*c->p - '0');
        if (value > max)
            return bad(c, "a number is too large");
        c->p++;
    }
    if (value < min)
        return bad(c, "a number is too small");
    *out = value;
    return 0;
}

static int read_abbreviation(struct cursor *c)
{
    const char *start = c->p;

    if (*c->p == '<') {
        while (*++c->p != '>') {
            if (!is_alpha(*c->p) && !is_digit(*c->p) && *c->p != '+' && *c->p != '-')
                return bad(c, "the abbreviation is broken");
        }
        c->p++;
        return c->p - start >= ABBREVIATION_MIN + 2 ? 0 : bad(c, "the abbreviation is too short");
    }
    while (is_alpha(*c->p))
        c->p++;
    return c->p - start >= ABBREVIATION_MIN ? 0 : bad(c, "the abbreviation is too short");
}

/* [+-]h[:m[:s]] */
static int read_time(struct cursor *c, int hours_max, int32_t *out)
{
    int sign = *c->p == '-' ? -1 : 1;
    int hours = 0;
    int minutes = 0;
    int seconds = 0;

    if (*c->p == '-' || *c->p == '+')
        c->p++;
    if (read_number(c, 0, hours_max, &hours) < 0)
        return -1;
    if (*c->p == ':') {
        c->p++;
        if (read_number(c, 0, 59, &minutes) < 0)
            return -1;
        if (*c->p == ':') {
            c->p++;
            if (read_number(c, 0, 59, &seconds) < 0)
                return -1;
        }
    }
    *out = sign * (hours * 3600 + minutes * 60 + seconds);
    return 0;
}

static int expect(struct cursor *c, char wanted, const char *what)
{
    if (*c->p != wanted)
        return bad(c, what);
    c->p++;
    return 0;
}

static int read_week_day(struct cursor *c, struct time_zone_day *out)
{
    out->kind = DAY_OF_WEEK;
    if (read_number(c, 1, 12, &out->month) < 0 || expect(c, '.', "'.' is missing") < 0 ||
        read_number(c, 1, 5, &out->week) < 0 || expect(c, '.', "'.' is missing") < 0 ||
        read_number(c, 0, 6, &out->day) < 0)
        return -1;
    return 0;
}

/* ,Mm.w.d[/time] or ,Jn[/time] or ,n[/time] */
static int read_day(struct cursor *c, struct time_zone_day *out)
{
    int failed;

    *out = (struct time_zone_day){.seconds = DEFAULT_SECONDS};
    if (expect(c, ',', "the day of a change is missing") < 0)
        return -1;
    if (*c->p == 'M') {
        c->p++;
        failed = read_week_day(c, out);
    } else if (*c->p == 'J') {
        c->p++;
        out->kind = DAY_OF_YEAR_NO_LEAP;
        failed = read_number(c, 1, 365, &out->day);
    } else {
        out->kind = DAY_OF_YEAR;
        failed = read_number(c, 0, 365, &out->day);
    }
    if (failed < 0)
        return -1;
    if (*c->p != '/')
        return 0;
    c->p++;
    return read_time(c, TIME_HOURS_MAX, &out->seconds);
}

int time_zone_rule_parse(const char *text, struct time_zone_rule *out, struct error *err)
{
    struct cursor c = {.p = text, .text = text, .err = err};
    struct time_zone_rule rule = {0};
    int32_t west = 0;

    if (read_abbreviation(&c) < 0 || read_time(&c, OFFSET_HOURS_MAX, &west) < 0)
        return -1;
    rule.standard = -west;
    rule.daylight = rule.standard;
    if (*c.p != '\0') {
        rule.has_daylight = true;
        rule.daylight = rule.standard + DAYLIGHT_DEFAULT;
        if (read_abbreviation(&c) < 0)
            return -1;
        if (*c.p != ',' && *c.p != '\0') {
            if (read_time(&c, OFFSET_HOURS_MAX, &west) < 0)
                return -1;
            rule.daylight = -west;
        }
        if (read_day(&c, &rule.start) < 0 || read_day(&c, &rule.end) < 0)
            return -1;
    }
    if (*c.p != '\0')
        return bad(&c, "unexpected text");
    *out = rule;
    return 0;
}

static int64_t day_of(const struct time_zone_day *day, int year)
{
    struct civil first;
    int64_t days;
    int offset;

    switch (day->kind) {
    case DAY_OF_YEAR:
        return civil_days(year, 1, 1) + day->day;
    case DAY_OF_YEAR_NO_LEAP:
        return civil_days(year, 1, 1) + day->day - 1 + (civil_is_leap(year) && day->day >= 60);
    case DAY_OF_WEEK:
        break;
    }
    days = civil_days(year, day->month, 1);
    civil_date(days, &first);
    offset = (day->day - first.weekday + 7) % 7 + (day->week - 1) * 7;
    if (offset >= civil_month_days(year, day->month))
        offset -= 7;
    return days + offset;
}

void time_zone_rule_changes(const struct time_zone_rule *rule, int64_t at,
                            struct time_zone_change out[TIME_ZONE_RULE_CHANGES])
{
    struct civil now;
    size_t count = 0;

    assert(rule->has_daylight);
    civil_date(floor_div(at, DAY_SECONDS), &now);
    for (int year = now.year - YEARS_BEFORE; year <= now.year + YEARS_AFTER; year++) {
        struct time_zone_change start = {.at = day_of(&rule->start, year) * DAY_SECONDS +
                                               rule->start.seconds - rule->standard,
                                         .offset = rule->daylight};
        struct time_zone_change end = {.at = day_of(&rule->end, year) * DAY_SECONDS +
                                             rule->end.seconds - rule->daylight,
                                       .offset = rule->standard};
        out[count++] = start.at <= end.at ? start : end;
        out[count++] = start.at <= end.at ? end : start;
    }
    /* A change may be a week off its day, and so of its year: neighbours may be swapped. */
    for (size_t i = 1; i < count; i++) {
        for (size_t j = i; j > 0 && out[j - 1].at > out[j].at; j--) {
            struct time_zone_change swap = out[j];
            out[j] = out[j - 1];
            out[j - 1] = swap;
        }
    }
}
