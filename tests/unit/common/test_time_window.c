/* Windows of time: how they are written, and when they open and close. */
#include "tests/unit/common/unit.h"

#include <string.h>

#include "common/autos.h"
#include "common/civil.h"
#include "common/json.h"
#include "common/time_window.h"

static char nightly[] = "nightly mon-fri 22:00-06:00 Europe/Berlin";
static char weekend[] = "nightly sat,sun 00:00-24:00 Europe/Berlin";
static char lunch[] = "lunch daily 12:00-13:00 UTC";
static char *lines[] = {nightly, weekend, lunch};
static const struct config_list named = {lines, ARRAY_LEN(lines)};

static json_t *read_all(const char *text)
{
    auto_json *given = json_loads(text, JSON_DECODE_ANY, NULL);
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    json_t *list = NULL;

    assert_non_null(given);
    if (time_windows_read(given, &named, &list, &problem, &err) < 0)
        fail_msg("%s: %s", text, err.message);
    return list;
}

static void refused(const char *text, const char *why)
{
    auto_json *given = json_loads(text, JSON_DECODE_ANY, NULL);
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    json_t *list = NULL;

    assert_int_equal(time_windows_read(given, &named, &list, &problem, &err), -1);
    assert_int_equal(problem.status, 400);
    if (strstr(err.message, why) == NULL)
        fail_msg("%s: %s", text, err.message);
}

/* "2026-03-29T01:30:00Z" */
static int64_t at(const char *text)
{
    int v[6];

    assert_int_equal(sscanf(text, "%d-%d-%dT%d:%d:%dZ", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5]),
                     6);
    return civil_days(v[0], v[1], v[2]) * DAY_SECONDS + v[3] * 3600 + v[4] * 60 + v[5];
}

static void check(const char *windows, const char *now, bool open, const char *change)
{
    auto_json *list = read_all(windows);
    struct time_windows_state state = {.open = !open};
    struct error err = ERROR_NONE;

    assert_int_equal(time_windows_at(list, at(now), &state, &err), 0);
    if (state.open != open || state.change_s != at(change)) {
        fail_msg("%s at %s: %s until %lld, not %lld", windows, now, state.open ? "open" : "shut",
                 (long long)state.change_s, (long long)at(change));
    }
}

static void all_ways_of_writing_become_one(void **state)
{
    auto_json *by_name = read_all("\"nightly\"");
    auto_json *by_text = read_all("[\"mon-fri 22:00-06:00 Europe/Berlin\","
                                  " \"sun,sat 00:00-24:00 Europe/Berlin\"]");
    auto_json *objects =
        read_all("[{\"start_time\": \"22:00\", \"end_time\": \"06:00\", \"timezone\":"
                 " \"Europe/Berlin\", \"days\": [\"Monday\", \"TUE\", \"wed-fri\"]},"
                 " {\"start\": \"00:00\", \"end\": \"24:00\", \"timezone\": \"Europe/Berlin\","
                 "  \"days\": [\"saturday\", \"sunday\"]}]");
    auto_json *again = NULL;
    auto_json *none = read_all("[]");
    auto_json *every = read_all("{\"start_time\": \"01:00\", \"end_time\": \"02:00\"}");
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;

    (void)state;
    assert_int_equal(json_array_size(by_name), 2);
    assert_true(json_equal(by_name, by_text));
    assert_true(json_equal(by_name, objects));
    assert_int_equal(time_windows_read(by_name, NULL, &again, &problem, &err), 0);
    assert_true(json_equal(by_name, again));
    assert_int_equal(json_array_size(json_object_get(json_array_get(every, 0), "days")), 7);
    assert_string_not_equal(json_str(json_array_get(every, 0), "timezone"), "");
    assert_int_equal(json_array_size(none), 0);
}

static void what_is_no_window_is_refused_with_the_reason(void **state)
{
    (void)state;
    refused("\"weekly\"", "'weekly' is no window of scheduler.maintenance_windows");
    refused("\"mon-fry 22:00-06:00\"", "'mon-fry': days are mon tue");
    refused("\"mon 22:00-25:00\"", "times are written like 22:00-06:00");
    refused("\"mon 24:00-06:00\"", "times are written like");
    refused("\"mon 22:00\"", "times are written like");
    refused("\"mon 22:00-06:00 Europe/Nowhere\"", "Europe/Nowhere");
    refused("\"mon 22:00-06:00 UTC more\"", "a window is written like");
    refused("{\"start_time\": \"22:00\", \"end_time\": \"22:00\"}", "two times like");
    refused("{\"start_time\": \"22:00\"}", "two times like");
    refused("{\"start_time\": \"22:00\", \"end_time\": \"23:00\", \"days\": []}", "empty");
    refused("{\"start_time\": \"22:00\", \"end_time\": \"23:00\", \"days\": [\"funday\"]}",
            "'funday' is no day");
    refused("{\"begin\": \"22:00\"}", "begin");
    refused("5", "it is a list of names");
    refused("[[]]", "it is a list of names");
}

static void a_line_of_the_configuration_is_checked(void **state)
{
    char good[] = "night_1 mon-fri 22:00-06:00";
    char bad[] = "night: mon 22:00-06:00";
    char worse[] = "night mon";
    char *items[] = {good, bad, worse};
    auto_strbuf problems;

    (void)state;
    strbuf_init(&problems, 4096);
    time_windows_check(&(const struct config_list){items, 3}, &problems);
    assert_null(strstr(problems.data, "[0]"));
    assert_non_null(strstr(problems.data, "maintenance_windows[1]: 'night:': a name has"));
    assert_non_null(strstr(problems.data, "maintenance_windows[2]: a window is written like"));
}

/* 2026-11-26 is a Thursday. */
static void a_window_over_midnight_belongs_to_the_day_it_begins_on(void **state)
{
    static const char fri[] = "\"fri 22:00-06:00 UTC\"";

    (void)state;
    check(fri, "2026-11-26T23:00:00Z", false, "2026-11-27T22:00:00Z");
    check(fri, "2026-11-27T05:59:59Z", false, "2026-11-27T22:00:00Z");
    check(fri, "2026-11-27T22:00:00Z", true, "2026-11-28T06:00:00Z");
    check(fri, "2026-11-28T05:59:59Z", true, "2026-11-28T06:00:00Z");
    check(fri, "2026-11-28T06:00:00Z", false, "2026-12-04T22:00:00Z");
    check("\"mon-fri 22:00-00:00 UTC\"", "2026-11-26T23:59:59Z", true, "2026-11-27T00:00:00Z");
}

static void days_are_those_of_its_zone(void **state)
{
    (void)state;
    /* Friday in Auckland begins on Thursday at 11:00 UTC */
    check("\"fri 00:00-24:00 Pacific/Auckland\"", "2026-11-26T10:59:59Z", false,
          "2026-11-26T11:00:00Z");
    check("\"fri 00:00-24:00 Pacific/Auckland\"", "2026-11-26T11:00:00Z", true,
          "2026-11-27T11:00:00Z");
    check("\"thu 20:00-23:00 America/New_York\"", "2026-11-27T00:59:59Z", false,
          "2026-11-27T01:00:00Z");
}

static void windows_that_touch_are_one(void **state)
{
    (void)state;
    check("[\"thu 10:00-12:00 UTC\", \"thu 12:00-14:00 UTC\", \"thu 13:00-13:30 UTC\"]",
          "2026-11-26T11:00:00Z", true, "2026-11-26T14:00:00Z");
    check("\"nightly\"", "2026-11-27T22:00:00Z", true, "2026-11-29T23:00:00Z");
    check("\"daily 00:00-24:00 UTC\"", "2026-11-26T11:00:00Z", true, "2026-12-12T11:00:00Z");
}

/* Berlin, 2026-03-29: 02:00 becomes 03:00, at 01:00 UTC. */
static void a_window_in_the_gap_is_left_out_that_day(void **state)
{
    (void)state;
    check("\"daily 02:15-02:45 Europe/Berlin\"", "2026-03-28T22:00:00Z", false,
          "2026-03-30T00:15:00Z");
    check("\"sun 02:15-02:45 Europe/Berlin\"", "2026-03-28T22:00:00Z", false,
          "2026-04-05T00:15:00Z");
    /* one that begins in the gap begins behind it; one that ends in it ends with it */
    check("\"daily 02:30-04:00 Europe/Berlin\"", "2026-03-29T00:30:00Z", false,
          "2026-03-29T01:00:00Z");
    check("\"daily 01:30-02:30 Europe/Berlin\"", "2026-03-29T00:45:00Z", true,
          "2026-03-29T01:00:00Z");
    /* over the whole of it: an hour shorter */
    check("\"daily 22:00-06:00 Europe/Berlin\"", "2026-03-28T21:00:00Z", true,
          "2026-03-29T04:00:00Z");
}

/* Berlin, 2026-10-25: 03:00 becomes 02:00, at 01:00 UTC. */
static void a_window_in_the_hour_that_comes_twice_is_open_twice(void **state)
{
    static const char twice[] = "\"daily 02:15-02:45 Europe/Berlin\"";

    (void)state;
    check(twice, "2026-10-25T00:00:00Z", false, "2026-10-25T00:15:00Z");
    check(twice, "2026-10-25T00:15:00Z", true, "2026-10-25T00:45:00Z");
    check(twice, "2026-10-25T00:45:00Z", false, "2026-10-25T01:15:00Z");
    check(twice, "2026-10-25T01:15:00Z", true, "2026-10-25T01:45:00Z");
    check(twice, "2026-10-25T01:45:00Z", false, "2026-10-26T01:15:00Z");
    check("\"daily 22:00-06:00 Europe/Berlin\"", "2026-10-24T20:00:00Z", true,
          "2026-10-25T05:00:00Z");
}

/* The same as asking every minute. */
static void the_next_change_is_the_first_one(void **state)
{
    static const char *const cases[] = {
        "\"nightly\"", "[\"mon,thu 01:30-02:30 Europe/Berlin\", \"lunch\"]",
        "[\"sun 23:30-00:30 America/New_York\", \"sun 01:00-03:00 Europe/Berlin\"]"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        auto_json *list = read_all(cases[i]);
        struct time_windows_state state_before = {.change_s = 0};
        int64_t now_s = at("2026-10-20T00:00:00Z");
        for (int minute = 0; minute < 14 * 1440; minute++, now_s += 60) {
            struct time_windows_state now = {.open = false};
            struct error err = ERROR_NONE;
            assert_int_equal(time_windows_at(list, now_s, &now, &err), 0);
            if (minute > 0)
                assert_int_equal(now.open != state_before.open, now_s == state_before.change_s);
            state_before = now;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_ways_of_writing_become_one),
        cmocka_unit_test(what_is_no_window_is_refused_with_the_reason),
        cmocka_unit_test(a_line_of_the_configuration_is_checked),
        cmocka_unit_test(a_window_over_midnight_belongs_to_the_day_it_begins_on),
        cmocka_unit_test(days_are_those_of_its_zone),
        cmocka_unit_test(windows_that_touch_are_one),
        cmocka_unit_test(a_window_in_the_gap_is_left_out_that_day),
        cmocka_unit_test(a_window_in_the_hour_that_comes_twice_is_open_twice),
        cmocka_unit_test(the_next_change_is_the_first_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
