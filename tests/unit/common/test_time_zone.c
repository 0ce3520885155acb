/* Zones from tzdata, TZif files built here, and the rules at their ends. */
#include "tests/unit/common/unit.h"

#include "common/civil.h"
#include "common/time_zone.h"
#include "common/time_zone_rule.h"

#define FILE_BYTES_MAX 512

struct file {
    uint8_t bytes[FILE_BYTES_MAX];
    size_t size;
};

static void put(struct file *file, uint64_t value, size_t size)
{
    for (size_t i = size; i-- > 0;)
        file->bytes[file->size++] = (uint8_t)(i < sizeof value ? value >> 8 * i : 0);
}

static void put_header(struct file *file, char version, uint32_t leaps, uint32_t changes,
                       uint32_t types)
{
    put(file, 0x545a6966, 4); /* "TZif" */
    put(file, (uint8_t)version, 1);
    put(file, 0, 15);
    put(file, 0, 8);
    put(file, leaps, 4);
    put(file, changes, 4);
    put(file, types, 4);
    put(file, 4, 4);
}

static void put_type(struct file *file, int32_t offset)
{
    put(file, (uint32_t)offset, 4);
    put(file, 0, 2);
}

/* Two types, one change at 1000, and what comes behind. */
static struct file small_file(const char *footer)
{
    struct file file = {.size = 0};

    put_header(&file, '2', 0, 0, 1);
    put_type(&file, 0);
    put(&file, 0x41414100, 4);
    put_header(&file, '2', 0, 1, 2);
    put(&file, 1000, 8);
    put(&file, 1, 1);
    put_type(&file, 60);
    put_type(&file, 3600);
    put(&file, 0x41414100, 4);
    memcpy(file.bytes + file.size, footer, strlen(footer));
    file.size += strlen(footer);
    return file;
}

static void dates_and_days_are_inverse(void **state)
{
    struct civil date;

    (void)state;
    assert_int_equal(civil_days(1970, 1, 1), 0);
    assert_int_equal(civil_days(2000, 2, 29), 11016);
    for (int64_t day = -800000; day < 3000000; day += 17) {
        civil_date(day, &date);
        assert_int_equal(civil_days(date.year, date.month, date.day), day);
        assert_in_range(date.day, 1, civil_month_days(date.year, date.month));
    }
    civil_date(-1, &date);
    assert_int_equal(date.weekday, 3); /* 1969-12-31 was a Wednesday */
    assert_int_equal(civil_month_days(1900, 2), 28);
}

static void names_that_are_no_zone_are_refused(void **state)
{
    static const char *const bad[] = {
        "",        "/etc/passwd",    "../etc/passwd", "Europe/../UTC", "Europe/",   "Europe//Rome",
        ".hidden", "Europe/Ber lin", "localtime",     "right/UTC",     "posix/UTC", "Z\xc3\xbcrich",
        "A/./B"};
    char text[TIME_ZONE_NAME_MAX + 2];
    struct error err = ERROR_NONE;
    struct time_zone *zone = NULL;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(time_zone_load(bad[i], &zone, &err), err, ERR_INVALID, "no time zone name");
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    assert_fails(time_zone_load(text, &zone, &err), err, ERR_INVALID, "no time zone name");
    assert_fails(time_zone_load("Mars/Olympus", &zone, &err), err, ERR_NOT_FOUND,
                 "'Europe/Berlin'");
    assert_fails(time_zone_load("UTC/x", &zone, &err), err, ERR_NOT_FOUND, "unknown");
    assert_fails(time_zone_load("Europe", &zone, &err), err, ERR_NOT_FOUND, "unknown");
    assert_fails(time_zone_load("zone1970", &zone, &err), err, ERR_NOT_FOUND, "unknown");
    assert_null(zone);
}

static void the_system_has_a_zone_that_can_be_loaded(void **state)
{
    char name[TIME_ZONE_NAME_MAX + 1];
    struct error err = ERROR_NONE;
    auto_time_zone *zone = NULL;

    (void)state;
    time_zone_system_name(name);
    assert_ok(time_zone_load(name, &zone, &err), err);
}

static void a_file_with_its_rule_covers_all_time(void **state)
{
    struct file file = small_file("\nAAA-1BBB,J60/0,J300/0\n");
    struct error err = ERROR_NONE;
    auto_time_zone *zone = NULL;
    struct time_zone_span span;

    (void)state;
    assert_ok(time_zone_parse(file.bytes, file.size, &zone, &err), err);
    time_zone_span_at(zone, 0, &span);
    assert_true(span.start == INT64_MIN && span.end == 1000 && span.offset == 60);
    time_zone_span_at(zone, 1000, &span);
    assert_true(span.start == 1000 && span.offset == 3600);
    assert_int_equal(span.end, civil_days(1970, 3, 1) * DAY_SECONDS - 3600);
    time_zone_span_at(zone, civil_days(2400, 7, 1) * DAY_SECONDS, &span);
    assert_int_equal(span.offset, 7200);
    assert_int_equal(span.start, civil_days(2400, 3, 1) * DAY_SECONDS - 3600);
    assert_int_equal(span.end, civil_days(2400, 10, 27) * DAY_SECONDS - 7200);
}

static void without_a_rule_the_last_offset_stays(void **state)
{
    struct file file = small_file("\n\n");
    struct error err = ERROR_NONE;
    auto_time_zone *zone = NULL;
    struct time_zone_span span;

    (void)state;
    assert_ok(time_zone_parse(file.bytes, file.size, &zone, &err), err);
    time_zone_span_at(zone, TIME_ZONE_AT_MAX, &span);
    assert_true(span.start == 1000 && span.end == INT64_MAX && span.offset == 3600);
}

static void version_one_has_short_times(void **state)
{
    struct file file = {.size = 0};
    struct error err = ERROR_NONE;
    auto_time_zone *zone = NULL;
    struct time_zone_span span;

    (void)state;
    put_header(&file, '\0', 0, 1, 1);
    put(&file, (uint32_t)-500, 4);
    put(&file, 0, 1);
    put_type(&file, -7200);
    put(&file, 0x41414100, 4);
    assert_ok(time_zone_parse(file.bytes, file.size, &zone, &err), err);
    time_zone_span_at(zone, 0, &span);
    assert_true(span.start == -500 && span.offset == -7200);
}

static void broken_files_are_refused(void **state)
{
    struct file whole = small_file("\nAAA-1\n");
    struct file file;
    struct error err = ERROR_NONE;
    struct time_zone *zone = NULL;

    (void)state;
    for (size_t size = 0; size < whole.size; size++)
        assert_fails(time_zone_parse(whole.bytes, size, &zone, &err), err, ERR_INVALID, "");
    file = small_file("\nAAA-1\n");
    file.bytes[0] = 'X';
    assert_fails(time_zone_parse(file.bytes, file.size, &zone, &err), err, ERR_INVALID, "TZif");
    file = small_file("no rule");
    assert_fails(time_zone_parse(file.bytes, file.size, &zone, &err), err, ERR_INVALID, "the rule");
    file = small_file("\nAAA-1\n");
    file.bytes[31] = 1;
    assert_fails(time_zone_parse(file.bytes, file.size, &zone, &err), err, ERR_INVALID,
                 "1 leap seconds, at most 0");
    file = small_file("\nAAA-1\n");
    file.bytes[54 + 44 + 8] = 2; /* the index of the change's type */
    assert_fails(time_zone_parse(file.bytes, file.size, &zone, &err), err, ERR_INVALID,
                 "a change to type 2 of 2");
    file = small_file("\nAAA-1\n");
    file.bytes[54 + 44 + 9] = 0x7f;
    assert_fails(time_zone_parse(file.bytes, file.size, &zone, &err), err, ERR_INVALID,
                 "an offset");
}

static void rules_are_read_as_written(void **state)
{
    static const char *const bad[] = {"",
                                      "A0",
                                      "AAA",
                                      "AAA25",
                                      "AAA0BBB",
                                      "AAA0BBB,0",
                                      "AAA0BBB,J0,1",
                                      "AAA0BBB,366,1",
                                      "<A0",
                                      "<A>0",
                                      "AAA0 ",
                                      "AAA0BBB,M13.1.0,1",
                                      "AAA0:60",
                                      "AAA1:2:60",
                                      "AAA0BBB,0/168,1",
                                      "AAA0BBB,M1.6.0,1",
                                      "AAA0BBB,M1.1.7,1",
                                      "AAA0BBB,0,1,2",
                                      "<A!B>0"};
    struct error err = ERROR_NONE;
    struct time_zone_rule rule;

    (void)state;
    assert_ok(time_zone_rule_parse("<+0330>-3:30", &rule, &err), err);
    assert_true(rule.standard == 12600 && !rule.has_daylight);
    assert_ok(time_zone_rule_parse("NST3:30:15NDT,M3.2.0,M11.1.0/-167", &rule, &err), err);
    assert_true(rule.standard == -12615 && rule.daylight == -9015 && rule.has_daylight);
    assert_true(rule.start.seconds == 7200 && rule.end.seconds == -167 * 3600);
    assert_ok(time_zone_rule_parse("IST-1GMT0,M10.5.0,M3.5.0/1", &rule, &err), err);
    assert_true(rule.standard == 3600 && rule.daylight == 0);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(time_zone_rule_parse(bad[i], &rule, &err), err, ERR_INVALID, "time zone rule");
}

static void days_of_a_rule_are_found(void **state)
{
    struct time_zone_change out[TIME_ZONE_RULE_CHANGES];
    struct error err = ERROR_NONE;
    struct time_zone_rule rule;

    (void)state;
    /* The day 59 is 29 February in a leap year, J60 is 1 March in every year. */
    assert_ok(time_zone_rule_parse("AAA0BBB,59/0,J60/0", &rule, &err), err);
    time_zone_rule_changes(&rule, civil_days(2024, 6, 1) * DAY_SECONDS, out);
    assert_int_equal(out[4].at, civil_days(2024, 2, 29) * DAY_SECONDS);
    assert_int_equal(out[5].at, civil_days(2024, 3, 1) * DAY_SECONDS - 3600);
    assert_ok(time_zone_rule_parse("AAA0BBB,M3.5.0/0,M5.1.1/0", &rule, &err), err);
    time_zone_rule_changes(&rule, civil_days(2026, 6, 1) * DAY_SECONDS, out);
    assert_int_equal(out[4].at, civil_days(2026, 3, 29) * DAY_SECONDS);
    assert_int_equal(out[5].at, civil_days(2026, 5, 4) * DAY_SECONDS - 3600);
    /* Daylight time all year: each year's end is the next one's start. */
    assert_ok(time_zone_rule_parse("XXX3EDT4,0/0,J365/23", &rule, &err), err);
    time_zone_rule_changes(&rule, civil_days(2026, 6, 1) * DAY_SECONDS, out);
    for (size_t i = 1; i < ARRAY_LEN(out); i++)
        assert_true(out[i - 1].at <= out[i].at);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dates_and_days_are_inverse),
        cmocka_unit_test(names_that_are_no_zone_are_refused),
        cmocka_unit_test(the_system_has_a_zone_that_can_be_loaded),
        cmocka_unit_test(a_file_with_its_rule_covers_all_time),
        cmocka_unit_test(without_a_rule_the_last_offset_stays),
        cmocka_unit_test(version_one_has_short_times),
        cmocka_unit_test(broken_files_are_refused),
        cmocka_unit_test(rules_are_read_as_written),
        cmocka_unit_test(days_of_a_rule_are_found),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
