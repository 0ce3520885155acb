/* See cron.h.
 *
 * Design notes: a pattern gives an endless row of local times L1 < L2 < ... The instant of L is
 * the first one at which the local clock has reached or passed L. That is the gap rule (the clock
 * passes L when it springs) and the overlap rule (it reaches L a first time) in one, and it never
 * goes down when L goes up. So the next instant after t is that of the first L that the clock had
 * not yet reached at t: its highest reading up to t. Patterns for every hour are looked up in the
 * stretches of constant offset instead. */
#include "common/cron.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "common/civil.h"

#define FIELD_COUNT 5
#define ALL_HOURS   UINT32_C(0xffffff)
/* 29 February on a given day of the week comes after 40 years at the latest (around 2100). */
#define DAYS_AHEAD_MAX (41 * 366)
#define SPANS_MAX      2000 /* of those years; 2 a year in zones with daylight time, 4 in Morocco */
/* Offsets lie within 26 h of UTC, so a clock that was ahead is caught up within twice that. */
#define CATCH_UP_SECONDS (2 * (int64_t)TIME_ZONE_OFFSET_MAX)

struct field {
    const char *name;
    unsigned int min;
    unsigned int max;
    const char *const *names; /* of min, min + 1, ... */
    unsigned int name_count;
};

static const char *const month_names[] = {"jan", "feb", "mar", "apr", "may", "jun",
                                          "jul", "aug", "sep", "oct", "nov", "dec"};
static const char *const weekday_names[] = {"sun", "mon", "tue", "wed", "thu", "fri", "sat"};

static const struct field fields[FIELD_COUNT] = {
    {"minute", 0, 59, NULL, 0},
    {"hour", 0, 23, NULL, 0},
    {"day of month", 1, 31, NULL, 0},
    {"month", 1, 12, month_names, ARRAY_LEN(month_names)},
    {"day of week", 0, 7, weekday_names, ARRAY_LEN(weekday_names)},
};

static const struct {
    const char *name;
    const char *meaning;
} shorthands[] = {{"@hourly", "0 * * * *"},  {"@daily", "0 0 * * *"},   {"@midnight", "0 0 * * *"},
                  {"@weekly", "0 0 * * 0"},  {"@monthly", "0 0 1 * *"}, {"@yearly", "0 0 1 1 *"},
                  {"@annually", "0 0 1 1 *"}};

/* The number or name that is all of text[0..length). */
static int read_value(const struct field *field, const char *text, size_t length, unsigned int *out,
                      struct error *err)
{
    unsigned int value = 0;

    for (unsigned int i = 0; i < field->name_count; i++) {
        if (length == 3 && strncasecmp(text, field->names[i], 3) == 0) {
            *out = field->min + i;
            return 0;
        }
    }
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9' || length > 4) {
            return error_set(err, ERR_INVALID, "%s: '%.*s' is no number%s", field->name,
                             (int)length, text, field->names == NULL ? "" : " or name");
        }
        value = value * 10 + (unsigned int)(text[i] - '0');
    }
    if (length == 0)
        return error_set(err, ERR_INVALID, "%s: a value is missing", field->name);
    if (value < field->min || value > field->max) {
        return error_set(err, ERR_INVALID, "%s: %u is not from %u to %u", field->name, value,
                         field->min, field->max);
    }
    *out = value;
    return 0;
}

static int read_step(const struct field *field, const char *text, size_t length, unsigned int *out,
                     struct error *err)
{
    struct field step = {.name = field->name, .min = 1, .max = field->max};

    if (read_value(&step, text, length, out, err) < 0)
        return error_wrap(err, "step after '/'");
    return 0;
}

/* One item of a list: "*", "5", "1-5", each of the first and last also with "/step". */
static int read_item(const struct field *field, const char *text, size_t length, uint64_t *bits,
                     struct error *err)
{
    const char *slash = memchr(text, '/', length);
    size_t range = slash == NULL ? length : (size_t)(slash - text);
    const char *dash = memchr(text, '-', range);
    unsigned int from = field->min;
    unsigned int to = field->max;
    unsigned int step = 1;

    if (range == 1 && text[0] == '*') {
        if (field->max == 7)
            to = 6; /* Sunday once */
    } else if (dash == NULL) {
        if (slash != NULL) {
            return error_set(err, ERR_INVALID, "%s: a step needs a range or '*' before the '/'",
                             field->name);
        }
        if (read_value(field, text, range, &from, err) < 0)
            return -1;
        to = from;
    } else {
        size_t first = (size_t)(dash - text);
        if (read_value(field, text, first, &from, err) < 0 ||
            read_value(field, dash + 1, range - first - 1, &to, err) < 0)
            return -1;
        if (to == 0 && field->max == 7 && from > 0)
            to = 7; /* "fri-sun" */
        if (from > to) {
            return error_set(err, ERR_INVALID, "%s: the range '%.*s' runs backwards", field->name,
                             (int)range, text);
        }
    }
    if (slash != NULL && read_step(field, slash + 1, length - range - 1, &step, err) < 0)
        return -1;
    for (unsigned int i = from; i <= to; i += step)
        *bits |= UINT64_C(1) << i;
    return 0;
}

static int read_field(const struct field *field, const char *text, size_t length, uint64_t *out,
                      struct error *err)
{
    size_t start = 0;

    *out = 0;
    for (size_t i = 0; i <= length; i++) {
        if (i < length && text[i] != ',')
            continue;
        if (read_item(field, text + start, i - start, out, err) < 0)
            return -1;
        start = i + 1;
    }
    return 0;
}

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

/* The words of text: where they start and how long they are; the count may be over the maximum. */
static size_t split(const char *text, const char *starts[FIELD_COUNT], size_t lengths[FIELD_COUNT])
{
    size_t count = 0;

    while (true) {
        const char *start;
        while (is_blank(*text))
            text++;
        if (*text == '\0')
            return count;
        start = text;
        while (*text != '\0' && !is_blank(*text))
            text++;
        if (count < FIELD_COUNT) {
            starts[count] = start;
            lengths[count] = (size_t)(text - start);
        }
        count++;
    }
}

/* Both fields count unless a day of the week alone is enough: then a month with such a day? */
static int check_days(const struct cron *cron, struct error *err)
{
    if (cron->any_day)
        return 0;
    for (int month = 1; month <= 12; month++) {
        int days = month == 2 ? 29 : civil_month_days(2000, month);
        if ((cron->months >> month & 1) != 0 && (cron->days & ((UINT64_C(2) << days) - 1)) != 0)
            return 0;
    }
    return error_set(err, ERR_INVALID, "never fires: none of its months has such a day");
}

static int parse_fields(const char *text, struct cron *out, struct error *err)
{
    const char *starts[FIELD_COUNT] = {NULL};
    size_t lengths[FIELD_COUNT] = {0};
    uint64_t bits[FIELD_COUNT];
    size_t count = split(text, starts, lengths);

    if (count != FIELD_COUNT) {
        return error_set(err, ERR_INVALID,
                         "%zu fields instead of 5 (minute, hour, day of month, month, day of week)",
                         count);
    }
    for (size_t i = 0; i < FIELD_COUNT; i++) {
        if (read_field(&fields[i], starts[i], lengths[i], &bits[i], err) < 0)
            return -1;
    }
    if ((bits[4] >> 7 & 1) != 0)
        bits[4] |= 1;
    *out = (struct cron){.minutes = bits[0],
                         .hours = (uint32_t)bits[1],
                         .days = (uint32_t)bits[2],
                         .months = (uint16_t)bits[3],
                         .weekdays = (uint8_t)(bits[4] & 0x7f),
                         .any_day = starts[2][0] != '*' && starts[4][0] != '*'};
    return check_days(out, err);
}

static int parse_shorthand(const char *text, struct cron *out, struct error *err)
{
    for (size_t i = 0; i < ARRAY_LEN(shorthands); i++) {
        if (strcasecmp(text, shorthands[i].name) == 0)
            return parse_fields(shorthands[i].meaning, out, err);
    }
    return error_set(err, ERR_INVALID,
                     "unknown: known are @hourly, @daily, @midnight, @weekly, @monthly, @yearly "
                     "and @annually");
}

int cron_parse(const char *text, struct cron *out, struct error *err)
{
    struct cron cron = {0};
    int failed;

    if (strnlen(text, CRON_BYTES_MAX + 1) > CRON_BYTES_MAX)
        return error_set(err, ERR_INVALID, "a cron expression of over %d bytes", CRON_BYTES_MAX);
    failed = text[0] == '@' ? parse_shorthand(text, &cron, err) : parse_fields(text, &cron, err);
    if (failed < 0)
        return error_wrap(err, "cron expression '%.80s'", text);
    *out = cron;
    return 0;
}

static bool day_matches(const struct cron *cron, int64_t days)
{
    struct civil date;
    bool day;
    bool weekday;

    civil_date(days, &date);
    if ((cron->months >> date.month & 1) == 0)
        return false;
    day = (cron->days >> date.day & 1) != 0;
    weekday = (cron->weekdays >> date.weekday & 1) != 0;
    return cron->any_day ? day || weekday : day && weekday;
}

/* The first matching minute of a day at or after that minute; -1: none. */
static int minute_of_day(const struct cron *cron, int from)
{
    for (int hour = from / 60; hour < 24; hour++) {
        uint64_t minutes = cron->minutes;
        if ((cron->hours >> hour & 1) == 0)
            continue;
        if (hour == from / 60)
            minutes &= ~UINT64_C(0) << from % 60;
        if (minutes != 0)
            return hour * 60 + __builtin_ctzll(minutes);
    }
    return -1;
}

/* The first matching local time >= from, before `end`; false: none. *days_left is used up. */
static bool next_local(const struct cron *cron, int64_t from, int64_t end, int *days_left,
                       int64_t *out)
{
    int64_t minute = floor_div(from + 59, 60); /* only whole minutes match */
    int64_t day = floor_div(minute, 24 * 60);
    int start = (int)floor_mod(minute, 24 * 60);

    for (; day * DAY_SECONDS<end && * days_left> 0; day++, start = 0) {
        int found = day_matches(cron, day) ? minute_of_day(cron, start) : -1;
        if (found >= 0) {
            *out = day * DAY_SECONDS + (int64_t)found * 60;
            return *out < end;
        }
        (*days_left)--;
    }
    return false;
}

/* The highest reading of the local clock up to and including t. */
static int64_t highest_reading(const struct time_zone *zone, int64_t t)
{
    struct time_zone_span span;
    int64_t highest;

    time_zone_span_at(zone, t, &span);
    highest = t + span.offset;
    while (span.start > t - CATCH_UP_SECONDS) {
        int64_t last = span.start - 1;
        time_zone_span_at(zone, last, &span);
        if (last + span.offset > highest)
            highest = last + span.offset;
    }
    return highest;
}

/* The first instant at which the local clock shows `local` or later. */
static int64_t first_instant(const struct time_zone *zone, int64_t local)
{
    struct time_zone_span span;
    int64_t at = local - TIME_ZONE_OFFSET_MAX - 1;

    time_zone_span_at(zone, at, &span);
    while (span.end != INT64_MAX && span.end + span.offset <= local) {
        at = span.end;
        time_zone_span_at(zone, at, &span);
    }
    return local - span.offset > at ? local - span.offset : at;
}

static bool next_by_elapsed(const struct cron *cron, const struct time_zone *zone, int64_t after,
                            int64_t *out)
{
    int days_left = DAYS_AHEAD_MAX;
    int64_t from = after + 1;

    for (int i = 0; i < SPANS_MAX && from <= TIME_ZONE_AT_MAX && days_left > 0; i++) {
        struct time_zone_span span;
        int64_t local = 0;
        time_zone_span_at(zone, from, &span);
        if (next_local(cron, from + span.offset,
                       span.end == INT64_MAX ? INT64_MAX : span.end + span.offset, &days_left,
                       &local)) {
            *out = local - span.offset;
            return true;
        }
        from = span.end;
    }
    return false;
}

static bool next_by_clock(const struct cron *cron, const struct time_zone *zone, int64_t after,
                          int64_t *out)
{
    int days_left = DAYS_AHEAD_MAX;
    int64_t local = 0;

    if (!next_local(cron, highest_reading(zone, after) + 1, INT64_MAX, &days_left, &local) ||
        local > TIME_ZONE_AT_MAX - TIME_ZONE_OFFSET_MAX)
        return false;
    *out = first_instant(zone, local);
    return true;
}

int cron_next(const struct cron *cron, const struct time_zone *zone, int64_t after, int64_t *out,
              struct error *err)
{
    bool found = false;

    assert(after >= 0);
    if (after < TIME_ZONE_AT_MAX - 2 * CATCH_UP_SECONDS) {
        found = cron->hours == ALL_HOURS ? next_by_elapsed(cron, zone, after, out)
                                         : next_by_clock(cron, zone, after, out);
    }
    if (!found)
        return error_set(err, ERR_LIMIT, "the cron expression has no next time that can be told");
    return 0;
}
