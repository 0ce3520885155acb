/* See time_window.h. */
#include "common/time_window.h"

#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/civil.h"
#include "common/json.h"
#include "common/time_zone.h"
#include "common/week.h"

/* A window that falls into a gap once comes after two weeks. */
#define HORIZON_S (16 * DAY_SECONDS)
#define MONDAY    3 /* what 1970-01-01, a Thursday, is behind */
#define TIME_SIZE 8
#define WORDS_MAX 4

struct window {
    uint8_t days;
    int64_t from_s;
    int64_t until_s;
    struct time_zone *zone;
};

struct windows {
    struct window items[TIME_WINDOWS_MAX];
    size_t count;
};

static void windows_release(struct windows *windows)
{
    for (size_t i = 0; i < windows->count; i++)
        time_zone_free(windows->items[i].zone);
}

/* ---- reading ---- */

struct parts { /* of one window; borrowed */
    uint8_t days;
    uint16_t from;
    uint16_t until;
    const char *zone; /* NULL: the system's */
};

static int add_window(const struct parts *parts, json_t *list, struct error *err)
{
    char system[TIME_ZONE_NAME_MAX + 1];
    auto_time_zone *zone = NULL;
    json_t *days = json_array();
    json_t *window = json_object();
    char time[TIME_SIZE];

    (void)json_array_append_new(list, window);
    (void)snprintf(time, sizeof time, "%02d:%02d", parts->from / 60, parts->from % 60);
    json_set_text(window, "start_time", time);
    (void)snprintf(time, sizeof time, "%02d:%02d", parts->until / 60, parts->until % 60);
    json_set_text(window, "end_time", time);
    for (unsigned int i = 0; i < WEEK_DAYS; i++) {
        if ((parts->days >> i & 1U) != 0)
            (void)json_array_append_new(days, json_string(week_day_names[i]));
    }
    (void)json_object_set_new(window, "days", days);
    if (parts->zone == NULL)
        time_zone_system_name(system);
    json_set_text(window, "timezone", parts->zone == NULL ? system : parts->zone);
    return parts->zone == NULL ? 0 : time_zone_load(parts->zone, &zone, err);
}

/* Cuts text at its spaces. */
static size_t split(char *text, char *words[WORDS_MAX + 1])
{
    size_t count = 0;

    for (char *at = text; at != NULL && count <= WORDS_MAX;) {
        char *space = strchr(at, ' ');
        words[count++] = at;
        if (space != NULL)
            *space++ = '\0';
        at = space;
    }
    return count;
}

static int read_words(char *const *words, size_t count, json_t *list, struct error *err)
{
    struct parts parts = {.zone = count == 3 ? words[2] : NULL};

    if (count < 2 || count > 3) {
        return error_set(err, ERR_INVALID,
                         "a window is written like 'mon-fri 22:00-06:00 Europe/Berlin'");
    }
    if (!week_parse_days(words[0], &parts.days)) {
        return error_set(err, ERR_INVALID,
                         "'%.40s': days are mon tue wed thu fri sat sun, ranges and lists of them, "
                         "or daily",
                         words[0]);
    }
    if (!week_parse_times(words[1], &parts.from, &parts.until)) {
        return error_set(err, ERR_INVALID,
                         "'%.40s': times are written like 22:00-06:00, 00:00-24:00 is a whole day",
                         words[1]);
    }
    return add_window(&parts, list, err);
}

static int read_text(const char *text, json_t *list, struct error *err)
{
    autofree char *copy = xstrdup(text);
    char *words[WORDS_MAX + 1] = {NULL};
    size_t count = split(copy, words);

    return read_words(words, count, list, err);
}

/* "NAME DAYS TIMES [ZONE]"; *out_name is copy's. */
static int read_named(char *copy, const char **out_name, json_t *list, struct error *err)
{
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                  "_-";
    char *words[WORDS_MAX + 1] = {NULL};
    size_t count = split(copy, words);

    *out_name = copy; /* its first word */
    if (copy[0] == '\0' || strspn(copy, allowed) != strlen(copy)) {
        return error_set(err, ERR_INVALID,
                         "'%.40s': a name has letters, digits, '_' and '-', and the window stands "
                         "behind it: 'nightly mon-fri 22:00-06:00 Europe/Berlin'",
                         copy);
    }
    return read_words(words + 1, count - 1, list, err);
}

static int read_by_name(const struct config_list *named, const char *name, json_t *list,
                        struct error *err)
{
    size_t before = json_array_size(list);

    for (size_t i = 0; named != NULL && i < named->count; i++) {
        autofree char *copy = xstrdup(named->items[i]);
        auto_json *window = json_array();
        const char *own = NULL;
        if (read_named(copy, &own, window, err) < 0)
            return error_wrap(err, "scheduler.maintenance_windows[%zu]", i);
        if (strcmp(own, name) == 0)
            (void)json_array_extend(list, window);
    }
    if (json_array_size(list) > before)
        return 0;
    return error_set(err, ERR_INVALID,
                     "'%.64s' is no window of scheduler.maintenance_windows, nor written like "
                     "'mon-fri 22:00-06:00 Europe/Berlin'",
                     name);
}

static int read_days(const json_t *days, uint8_t *out, struct error *err)
{
    static const char *const whole[] = {"monday", "tuesday",  "wednesday", "thursday",
                                        "friday", "saturday", "sunday",    NULL};
    const json_t *day;
    size_t i;

    *out = days == NULL ? 0x7f : 0;
    json_array_foreach(days, i, day)
    {
        autofree char *name = xstrdup(json_string_value(day));
        uint8_t mask = 0;
        for (char *c = name; *c != '\0'; c++)
            *c = (char)(*c >= 'A' && *c <= 'Z' ? *c - 'A' + 'a' : *c);
        if (word_in(name, whole))
            name[sizeof week_day_names[0] - 1] = '\0';
        if (!week_parse_days(name, &mask)) {
            return error_set(err, ERR_INVALID, "'%.32s' is no day: mon tue wed thu fri sat sun",
                             json_string_value(day));
        }
        *out |= mask;
    }
    return *out != 0 ? 0 : error_set(err, ERR_INVALID, "'days' is empty");
}

static int read_object(const json_t *item, json_t *list, struct field_problem *problem,
                       struct error *err)
{
    static const struct field fields[] = {
        {"start_time", {"start"}, FIELD_TEXT, 5, 5, NULL},
        {"end_time", {"end"}, FIELD_TEXT, 5, 5, NULL},
        {"days", {NULL}, FIELD_TEXT_LIST, 0, WEEK_DAYS, NULL},
        {"timezone", {NULL}, FIELD_TEXT, 1, TIME_ZONE_NAME_MAX, NULL},
        {0},
    };
    auto_json *read = NULL;
    struct parts parts = {0};

    if (fields_canonical(fields, "time_windows.", item, &read, problem, err) < 0)
        return -1;
    parts.zone = field_text(read, "timezone", NULL);
    if (!week_parse_minute(field_text(read, "start_time", ""), &parts.from) ||
        !week_parse_minute(field_text(read, "end_time", ""), &parts.until) ||
        parts.from == parts.until || parts.from == WEEK_DAY_MINUTES) {
        return error_set(err, ERR_INVALID,
                         "'start_time' and 'end_time' are two times like 22:00 and 06:00; 00:00 "
                         "and 24:00 are a whole day");
    }
    if (read_days(json_object_get(read, "days"), &parts.days, err) < 0)
        return -1;
    return add_window(&parts, list, err);
}

static int read_item(const json_t *item, const struct config_list *named, json_t *list,
                     struct field_problem *problem, struct error *err)
{
    const char *text = json_string_value(item);

    if (json_is_object(item))
        return read_object(item, list, problem, err);
    if (text == NULL || strlen(text) > TIME_WINDOW_TEXT_MAX || text[0] == '\0') {
        return error_set(err, ERR_INVALID,
                         "it is a list of names, of texts like 'mon-fri 22:00-06:00 "
                         "Europe/Berlin', or of objects with start_time and end_time");
    }
    return strchr(text, ' ') == NULL ? read_by_name(named, text, list, err)
                                     : read_text(text, list, err);
}

int time_windows_read(const json_t *given, const struct config_list *named, json_t **out,
                      struct field_problem *problem, struct error *err)
{
    auto_json *items = json_is_array(given) ? json_incref(json_unconst(given))
                                            : json_pack("[O]", json_unconst(given));
    auto_json *list = json_array();
    struct error why = ERROR_NONE;
    const json_t *item;
    size_t i;

    json_array_foreach(items, i, item)
    {
        problem->status = 0;
        if (read_item(item, named, list, problem, &why) < 0) {
            if (problem->status == 0 && !error_is_retryable(&why)) {
                return field_fail(problem, 400, "time_windows", err, ERR_INVALID,
                                  "'time_windows': %.400s", why.message);
            }
            *err = why;
            return -1;
        }
    }
    if (json_array_size(list) > TIME_WINDOWS_MAX) {
        return field_fail(problem, 400, "time_windows", err, ERR_INVALID,
                          "'time_windows': at most %d windows", TIME_WINDOWS_MAX);
    }
    *out = STEAL(list);
    return 0;
}

void time_windows_check(const struct config_list *named, struct strbuf *problems)
{
    for (size_t i = 0; i < named->count; i++) {
        autofree char *copy = xstrdup(named->items[i]);
        auto_json *list = json_array();
        struct error err = ERROR_NONE;
        const char *name = NULL;
        if (read_named(copy, &name, list, &err) < 0)
            strbuf_addf(problems, "scheduler.maintenance_windows[%zu]: %s\n", i, err.message);
    }
}

/* ---- arithmetic ---- */

static bool holds(const struct window *window, int64_t local_s)
{
    int64_t day = floor_mod(floor_div(local_s, DAY_SECONDS) + MONDAY, WEEK_DAYS);
    int64_t second = floor_mod(local_s, DAY_SECONDS);
    bool today = (window->days >> day & 1) != 0;
    bool yesterday = (window->days >> (day + WEEK_DAYS - 1) % WEEK_DAYS & 1) != 0;

    if (window->from_s < window->until_s)
        return today && second >= window->from_s && second < window->until_s;
    return (today && second >= window->from_s) || (yesterday && second < window->until_s);
}

static bool any_holds(const struct windows *windows, int64_t at_s)
{
    struct time_zone_span span;

    for (size_t i = 0; i < windows->count; i++) {
        time_zone_span_at(windows->items[i].zone, at_s, &span);
        if (holds(&windows->items[i], at_s + span.offset))
            return true;
    }
    return false;
}

/* The next time that the wall clock shows the window's start or end, or is set. */
static int64_t next_edge(const struct window *window, int64_t at_s)
{
    struct time_zone_span span;
    int64_t local_s;
    int64_t day_s;
    int64_t next_s;

    time_zone_span_at(window->zone, at_s, &span);
    local_s = at_s + span.offset;
    day_s = floor_div(local_s, DAY_SECONDS) * DAY_SECONDS;
    const int64_t edges[] = {day_s + window->from_s, day_s + window->until_s,
                             day_s + DAY_SECONDS + window->from_s,
                             day_s + DAY_SECONDS + window->until_s};
    next_s = INT64_MAX;
    for (size_t i = 0; i < ARRAY_LEN(edges); i++) {
        if (edges[i] > local_s && edges[i] < next_s)
            next_s = edges[i];
    }
    next_s -= span.offset;
    return next_s < span.end ? next_s : span.end;
}

static bool minute_of(const json_t *window, const char *name, int64_t *out_s)
{
    uint16_t minute = 0;

    if (!week_parse_minute(json_str(window, name), &minute))
        return false;
    *out_s = INT64_C(60) * minute;
    return true;
}

static int load(const json_t *list, struct windows *out, struct error *err)
{
    const json_t *item;
    size_t i;

    if (!json_is_array(list) || json_array_size(list) == 0 ||
        json_array_size(list) > TIME_WINDOWS_MAX)
        return error_set(err, ERR_INTERNAL, "time windows are no list of 1 to 32");
    json_array_foreach(list, i, item)
    {
        struct window *window = &out->items[i];
        if (!minute_of(item, "start_time", &window->from_s) ||
            !minute_of(item, "end_time", &window->until_s) ||
            read_days(json_object_get(item, "days"), &window->days, err) < 0) {
            return err->code != ERR_NONE
                       ? -1
                       : error_set(err, ERR_INTERNAL, "a time window has no times");
        }
        if (time_zone_load(json_str(item, "timezone"), &window->zone, err) < 0)
            return -1;
        out->count++;
    }
    return 0;
}

int time_windows_at(const json_t *list, int64_t now_s, struct time_windows_state *out,
                    struct error *err)
{
    CLEANUP(windows_release) struct windows windows = {.count = 0};
    int64_t at_s = now_s;
    bool open;

    if (load(list, &windows, err) < 0)
        return -1;
    open = any_holds(&windows, now_s);
    do {
        int64_t next_s = now_s + HORIZON_S;
        for (size_t i = 0; i < windows.count; i++) {
            int64_t edge_s = next_edge(&windows.items[i], at_s);
            if (edge_s < next_s)
                next_s = edge_s;
        }
        at_s = next_s;
    } while (at_s < now_s + HORIZON_S && any_holds(&windows, at_s) == open);
    *out = (struct time_windows_state){.open = open, .change_s = at_s};
    return 0;
}
