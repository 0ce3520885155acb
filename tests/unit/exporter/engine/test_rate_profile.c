/* Bandwidth by time of day: what a line says, and which line holds when. */
#include "services/exporter/engine/rate_profile.h"

#include "tests/unit/common/unit.h"

static struct rate_profile parsed(const char *text)
{
    struct rate_profile profile = {0};
    struct error err = ERROR_NONE;

    assert_ok(rate_profile_parse(text, &profile, &err), err);
    return profile;
}

static void a_line_names_days_a_window_and_a_rate(void **state)
{
    static const struct {
        const char *text;
        struct rate_profile expected;
    } cases[] = {
        {"mon-fri 08:00-18:00 20", {0x1f, 480, 1080, 20}},
        {"sat,sun 00:00-24:00 0", {0x60, 0, 1440, 0}},
        {"daily 22:30-06:05 1000000", {0x7f, 1350, 365, 1000000}},
        {"fri-mon 01:00-02:00 1", {0x71, 60, 120, 1}}, /* over the end of the week */
        {"wed 01:00-02:00 1", {0x04, 60, 120, 1}},
        {"mon-tue,thu 01:00-02:00 1", {0x0b, 60, 120, 1}},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct rate_profile profile = parsed(cases[i].text);
        assert_int_equal(profile.days, cases[i].expected.days);
        assert_int_equal(profile.from, cases[i].expected.from);
        assert_int_equal(profile.until, cases[i].expected.until);
        assert_int_equal(profile.mb, cases[i].expected.mb);
    }
}

static void a_wrong_line_says_what_is_wrong(void **state)
{
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"", "is not written like"},           {"mon-fri 08:00-18:00", "is not written like"},
        {"monday 08:00-18:00 20", "days are"}, {"mon- 08:00-18:00 20", "days are"},
        {"mon,, 08:00-18:00 20", "days are"},  {"mon 8:00-18:00 20", "the time"},
        {"mon 08:00-24:01 20", "the time"},    {"mon 08:60-18:00 20", "the time"},
        {"mon 08:00-08:00 20", "the time"},    {"mon 24:00-08:00 20", "the time"},
        {"mon 08:00-18:00  20", "MB/s"},       {"mon 08:00-18:00 20MB", "MB/s"},
        {"mon 08:00-18:00 -1", "MB/s"},        {"mon 08:00-18:00 1000001", "MB/s"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct rate_profile profile;
        struct error err = ERROR_NONE;
        assert_fails(rate_profile_parse(cases[i].text, &profile, &err), err, ERR_INVALID,
                     cases[i].part);
    }
}

/* weekday: 0 = Sunday, as in struct tm */
static long long rate_at(const struct rate_profile *profiles, size_t count, int weekday, int hour,
                         int minute)
{
    struct tm local = {.tm_wday = weekday, .tm_hour = hour, .tm_min = minute};
    const struct rate_profile *profile = rate_profile_find(profiles, count, &local);

    return profile == NULL ? -1 : (long long)profile->mb;
}

static void the_first_line_that_fits_holds(void **state)
{
    struct rate_profile profiles[] = {
        parsed("wed 12:00-13:00 5"),
        parsed("mon-fri 08:00-18:00 20"),
        parsed("sun 22:00-06:00 40"),
        parsed("sat 00:00-24:00 0"),
    };
    size_t count = ARRAY_LEN(profiles);

    (void)state;
    assert_int_equal(rate_at(profiles, count, 3, 12, 30), 5);
    assert_int_equal(rate_at(profiles, count, 3, 13, 0), 20);
    assert_int_equal(rate_at(profiles, count, 1, 7, 59), -1);
    assert_int_equal(rate_at(profiles, count, 1, 8, 0), 20);
    assert_int_equal(rate_at(profiles, count, 5, 17, 59), 20);
    assert_int_equal(rate_at(profiles, count, 5, 18, 0), -1);
    assert_int_equal(rate_at(profiles, count, 0, 21, 59), -1);
    assert_int_equal(rate_at(profiles, count, 0, 23, 0), 40);
    assert_int_equal(rate_at(profiles, count, 1, 5, 59), 40); /* Sunday's night */
    assert_int_equal(rate_at(profiles, count, 1, 6, 0), -1);
    assert_int_equal(rate_at(profiles, count, 0, 5, 0), -1); /* Saturday's is another */
    assert_int_equal(rate_at(profiles, count, 6, 23, 59), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_names_days_a_window_and_a_rate),
        cmocka_unit_test(a_wrong_line_says_what_is_wrong),
        cmocka_unit_test(the_first_line_that_fits_holds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
