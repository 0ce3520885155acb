/* Cron expressions: what is read, what is refused and why, and the stated rules for clock changes.
 * tests/service/test_cron.py compares fire times with Python's zoneinfo. */
#include "tests/unit/common/unit.h"

#include "common/civil.h"
#include "common/cron.h"

static int64_t utc(int year, int month, int day, int hour, int minute)
{
    return civil_days(year, month, day) * DAY_SECONDS + hour * 3600 + minute * 60;
}

static int64_t next_in(const char *zone_name, const char *text, int64_t after)
{
    struct error err = ERROR_NONE;
    auto_time_zone *zone = NULL;
    struct cron cron;
    int64_t out = 0;

    assert_ok(time_zone_load(zone_name, &zone, &err), err);
    assert_ok(cron_parse(text, &cron, &err), err);
    assert_ok(cron_next(&cron, zone, after, &out, &err), err);
    return out;
}

static void fields_are_lists_ranges_steps_and_names(void **state)
{
    struct error err = ERROR_NONE;
    struct cron cron;

    (void)state;
    assert_ok(cron_parse(" 1,5-7,*/30\t9-17/4 1,31 JAN,mar-May Mon-fri ", &cron, &err), err);
    assert_true(cron.minutes ==
                (1ULL << 1 | 1ULL << 5 | 1ULL << 6 | 1ULL << 7 | 1ULL << 0 | 1ULL << 30));
    assert_int_equal(cron.hours, 1U << 9 | 1U << 13 | 1U << 17);
    assert_true(cron.days == (1U << 1 | 1U << 31));
    assert_int_equal(cron.months, 1U << 1 | 1U << 3 | 1U << 4 | 1U << 5);
    assert_int_equal(cron.weekdays, 0x3e);
    assert_true(cron.any_day);
    assert_ok(cron_parse("0 0 * * 7", &cron, &err), err);
    assert_int_equal(cron.weekdays, 1);
    assert_false(cron.any_day);
    assert_ok(cron_parse("0 0 * * fri-sun", &cron, &err), err);
    assert_int_equal(cron.weekdays, 0x61);
}

static void shorthands_are_what_they_stand_for(void **state)
{
    static const char *const pairs[][2] = {
        {"@hourly", "0 * * * *"},   {"@Daily", "0 0 * * *"},   {"@midnight", "0 0 * * *"},
        {"@weekly", "0 0 * * 0"},   {"@monthly", "0 0 1 * *"}, {"@yearly", "0 0 1 1 *"},
        {"@annually", "0 0 1 1 *"},
    };
    struct error err = ERROR_NONE;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(pairs); i++) {
        struct cron a = {0};
        struct cron b = {0};
        assert_ok(cron_parse(pairs[i][0], &a, &err), err);
        assert_ok(cron_parse(pairs[i][1], &b, &err), err);
        assert_true(a.minutes == b.minutes && a.hours == b.hours && a.days == b.days &&
                    a.months == b.months && a.weekdays == b.weekdays && a.any_day == b.any_day);
    }
}

static void what_is_wrong_is_named_with_its_field(void **state)
{
    static const struct {
        const char *text;
        const char *says;
    } bad[] = {
        {"", "0 fields instead of 5"},
        {"* * * *", "4 fields instead of 5"},
        {"0 * * * * *", "6 fields instead of 5"},
        {"60 * * * *", "minute: 60 is not from 0 to 59"},
        {"* 24 * * *", "hour: 24 is not"},
        {"* * 0 * *", "day of month: 0 is not from 1 to 31"},
        {"* * * 13 *", "month: 13 is not"},
        {"* * * * 8", "day of week: 8 is not from 0 to 7"},
        {"* * * foo *", "month: 'foo' is no number or name"},
        {"mon * * * *", "minute: 'mon' is no number"},
        {"*/0 * * * *", "step after '/': minute: 0 is not from 1"},
        {"*/90 * * * *", "step after '/': minute: 90 is not"},
        {"5/10 * * * *", "a step needs a range or '*'"},
        {"*/ * * * *", "a value is missing"},
        {"1,,2 * * * *", "a value is missing"},
        {", * * * *", "a value is missing"},
        {"- * * * *", "a value is missing"},
        {"* 22-4 * * *", "hour: the range '22-4' runs backwards"},
        {"* * L * *", "day of month: 'L' is no number"},
        {"99999999999999999999 * * * *", "is no number"},
        {"-1 * * * *", "a value is missing"},
        {"@reboot", "known are @hourly"},
        {"@every 5m", "known are @hourly"},
        {"0 0 31 2 *", "never fires"},
        {"0 0 30,31 feb */2", "never fires"},
        {"0 0 31 4,6,9,11 *", "never fires"},
    };
    char text[CRON_BYTES_MAX + 2];
    struct error err = ERROR_NONE;
    struct cron cron;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(cron_parse(bad[i].text, &cron, &err), err, ERR_INVALID, bad[i].says);
    memset(text, '1', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    assert_fails(cron_parse(text, &cron, &err), err, ERR_INVALID, "over 256 bytes");
    /* A day of the week alone is enough here. */
    assert_ok(cron_parse("0 0 31 2 1", &cron, &err), err);
}

static void either_day_is_enough_unless_one_has_a_star(void **state)
{
    int64_t start = utc(2026, 3, 1, 0, 0); /* a Sunday */

    (void)state;
    assert_int_equal(next_in("UTC", "0 0 13 * fri", start), utc(2026, 3, 6, 0, 0));
    assert_int_equal(next_in("UTC", "0 0 13 * fri", utc(2026, 4, 10, 0, 0)),
                     utc(2026, 4, 13, 0, 0));
    assert_int_equal(next_in("UTC", "0 0 */2 * mon", start), utc(2026, 3, 9, 0, 0));
    assert_int_equal(next_in("UTC", "0 0 29 2 *", start), utc(2028, 2, 29, 0, 0));
    /* 1900 and 2100 have no 29 February: the longest wait of all. */
    assert_int_equal(next_in("UTC", "0 0 29 2 */7", utc(2088, 3, 1, 0, 0)), utc(2128, 2, 29, 0, 0));
}

static void a_time_in_the_gap_fires_once_right_after_it(void **state)
{
    int64_t gap = utc(2026, 3, 29, 1, 0); /* Berlin: 02:00 becomes 03:00 */

    (void)state;
    assert_int_equal(next_in("Europe/Berlin", "30 2 * * *", gap - 3600), gap);
    assert_int_equal(next_in("Europe/Berlin", "*/15 2 * * *", gap - 3600), gap);
    assert_int_equal(next_in("Europe/Berlin", "*/15 2 * * *", gap), utc(2026, 3, 30, 0, 0));
    assert_int_equal(next_in("Europe/Berlin", "30 2,3 * * *", gap), utc(2026, 3, 29, 1, 30));
    /* Samoa had no 30 December 2011. */
    assert_int_equal(next_in("Pacific/Apia", "0 9 30 12 *", utc(2011, 12, 1, 0, 0)),
                     utc(2011, 12, 30, 10, 0));
}

static void a_time_that_comes_twice_fires_at_the_first(void **state)
{
    int64_t first = utc(2026, 10, 25, 0, 30); /* Berlin: 02:30, again an hour later */

    (void)state;
    assert_int_equal(next_in("Europe/Berlin", "30 2 * * *", first - 60), first);
    assert_int_equal(next_in("Europe/Berlin", "30 2 * * *", first), utc(2026, 10, 26, 1, 30));
    assert_int_equal(next_in("Europe/Berlin", "*/30 1-2 * * *", first), utc(2026, 10, 26, 0, 0));
}

static void patterns_for_every_hour_go_by_the_time_that_passes(void **state)
{
    int64_t spring = utc(2026, 3, 28, 22, 30);
    int64_t autumn = utc(2026, 10, 24, 21, 30);

    (void)state;
    for (int64_t i = 0; i < 8; i++) {
        assert_int_equal(next_in("Europe/Berlin", "30 * * * *", spring + i * 3600),
                         spring + (i + 1) * 3600);
        assert_int_equal(next_in("Europe/Berlin", "30 0-23 * * *", autumn + i * 3600),
                         autumn + (i + 1) * 3600);
    }
}

static void the_end_of_countable_time_is_an_error(void **state)
{
    struct error err = ERROR_NONE;
    auto_time_zone *zone = NULL;
    struct cron cron;
    int64_t out = 7;

    (void)state;
    assert_ok(time_zone_load("UTC", &zone, &err), err);
    assert_ok(cron_parse("@yearly", &cron, &err), err);
    assert_fails(cron_next(&cron, zone, TIME_ZONE_AT_MAX, &out, &err), err, ERR_LIMIT, "no next");
    assert_fails(cron_next(&cron, zone, INT64_MAX, &out, &err), err, ERR_LIMIT, "no next");
    assert_int_equal(out, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_are_lists_ranges_steps_and_names),
        cmocka_unit_test(shorthands_are_what_they_stand_for),
        cmocka_unit_test(what_is_wrong_is_named_with_its_field),
        cmocka_unit_test(either_day_is_enough_unless_one_has_a_star),
        cmocka_unit_test(a_time_in_the_gap_fires_once_right_after_it),
        cmocka_unit_test(a_time_that_comes_twice_fires_at_the_first),
        cmocka_unit_test(patterns_for_every_hour_go_by_the_time_that_passes),
        cmocka_unit_test(the_end_of_countable_time_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
