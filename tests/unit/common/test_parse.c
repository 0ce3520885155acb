/* Numbers, durations, sizes from foreign text. */
#include "tests/unit/common/unit.h"

#include "common/parse.h"

static void numbers_take_digits_and_nothing_else(void **state)
{
    static const char *const bad[] = {"",     " 1",  "1 ",  "+1", "-1",
                                      "0x10", "1.0", "1e3", "a",  "18446744073709551616"};
    struct error err = ERROR_NONE;
    uint64_t out = 0;

    (void)state;
    assert_ok(parse_u64("n", "18446744073709551615", 0, UINT64_MAX, &out, &err), err);
    assert_true(out == UINT64_MAX);
    assert_ok(parse_u64("n", "007", 0, 10, &out, &err), err);
    assert_int_equal(out, 7);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(parse_u64("port", bad[i], 0, UINT64_MAX, &out, &err), err, ERR_INVALID,
                     "port: '");
    assert_int_equal(out, 7); /* written on success only */
}

static void bounds_are_inclusive_and_named(void **state)
{
    struct error err = ERROR_NONE;
    uint32_t out = 0;

    (void)state;
    assert_ok(parse_u32("n", "1", 1, 5, &out, &err), err);
    assert_ok(parse_u32("n", "5", 1, 5, &out, &err), err);
    assert_fails(parse_u32("n", "0", 1, 5, &out, &err), err, ERR_INVALID, "from 1 to 5");
    assert_fails(parse_u32("n", "6", 1, 5, &out, &err), err, ERR_INVALID, "from 1 to 5");
    assert_fails(parse_u32("n", "4294967296", 0, UINT32_MAX, &out, &err), err, ERR_INVALID, "n:");
}

static void truth_has_eight_words(void **state)
{
    static const char *const words[] = {"true", "YES", "on", "1", "False", "no", "OFF", "0"};
    struct error err = ERROR_NONE;
    bool out = false;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        assert_ok(parse_bool("b", words[i], &out, &err), err);
        assert_int_equal(out, i < 4);
    }
    assert_fails(parse_bool("b", "maybe", &out, &err), err, ERR_INVALID, "not true or false");
    assert_fails(parse_bool("b", "", &out, &err), err, ERR_INVALID, "b: ''");
}

static void durations_add_up_their_units(void **state)
{
    static const struct {
        const char *text;
        int64_t ms;
    } good[] = {{"10s", 10000}, {"1h30m", 5400000}, {"250ms", 250},     {"30d", 2592000000},
                {"5", 5000},    {"0", 0},           {"1m500ms", 60500}, {"1h1m1s1ms", 3661001}};
    static const char *const bad[] = {
        "", "s", "10x", "1h30", "-1s", "1.5h", "1 s", "1S", "99999999999999999999s", "10sm"};
    struct error err = ERROR_NONE;
    int64_t out = -1;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        assert_ok(parse_duration_ms("d", good[i].text, 0, INT64_MAX, &out, &err), err);
        assert_true(out == good[i].ms);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(parse_duration_ms("d", bad[i], 0, INT64_MAX, &out, &err), err, ERR_INVALID,
                     "not a duration");
    assert_fails(parse_duration_ms("d", "1s", 2000, 3000, &out, &err), err, ERR_INVALID, "2000 ms");
    assert_fails(parse_duration_ms("d", "4s", 2000, 3000, &out, &err), err, ERR_INVALID, "3000 ms");
    assert_fails(parse_duration_ms("d", "213503982335d", 0, INT64_MAX, &out, &err), err,
                 ERR_INVALID, "not a duration");
}

static void sizes_are_binary(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},     {"1048576", MIB}, {"64M", 64 * MIB},    {"10g", 10 * GIB},
                {"1KB", KIB}, {"1KiB", KIB},    {"2TiB", 2048 * GIB}, {"3mb", 3 * MIB}};
    static const char *const bad[] = {"",    "M",   "1X",        "1KiX", "1 M",
                                      "-1M", "1Mi", "16777216T", "1.5G"};
    struct error err = ERROR_NONE;
    uint64_t out = 0;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        assert_ok(parse_size_bytes("s", good[i].text, 0, UINT64_MAX, &out, &err), err);
        assert_true(out == good[i].bytes);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_fails(parse_size_bytes("s", bad[i], 0, UINT64_MAX, &out, &err), err, ERR_INVALID,
                     "not a size");
    assert_fails(parse_size_bytes("s", "1K", 2048, 4096, &out, &err), err, ERR_INVALID, "s: '1K'");
    assert_fails(parse_size_bytes("s", "1M", 2048, 4096, &out, &err), err, ERR_INVALID, "s: '1M'");
}

static void times_are_days_that_exist(void **state)
{
    static const char *const times[] = {"2026-03-01T02:00:00Z", "2024-02-29T23:59:59Z",
                                        "2000-02-29T00:00:00.5Z", "2026-03-01T02:00:00+14:00",
                                        "2026-12-31T23:59:59.123456789-03:30"};
    static const char *const bad[] = {"",
                                      "now",
                                      "2026-3-1",
                                      "2026-02-29",
                                      "1900-02-29T00:00:00Z",
                                      "2026-04-31T00:00:00Z",
                                      "2026-13-01T00:00:00Z",
                                      "2026-00-01T00:00:00Z",
                                      "2026-01-00T00:00:00Z",
                                      "2026-03-01 02:00:00Z",
                                      "2026-03-01T24:00:00Z",
                                      "2026-03-01T02:60:00Z",
                                      "2026-03-01T02:00:61Z",
                                      "2026-03-01T02:00:00",
                                      "2026-03-01T02:00:00z",
                                      "2026-03-01T02:00:00.Z",
                                      "2026-03-01T02:00:00.1234567890Z",
                                      "2026-03-01T02:00:00+15:00",
                                      "2026-03-01T02:00:00+02:60",
                                      "2026-03-01T02:00:00+0200",
                                      "2026-03-01T02:00:00Z ",
                                      " 2026-03-01T02:00:00Z",
                                      "2026-03-01T",
                                      "2026-03-01Z",
                                      "02026-03-01T02:00:00Z",
                                      "infinity"};

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(times); i++) {
        assert_true(parse_is_time(times[i], false));
        assert_true(parse_is_time(times[i], true));
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        if (parse_is_time(bad[i], false) || parse_is_time(bad[i], true))
            fail_msg("'%s' is taken for a time", bad[i]);
    }
    assert_true(parse_is_time("2026-03-01", true));
    assert_false(parse_is_time("2026-03-01", false));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_take_digits_and_nothing_else),
        cmocka_unit_test(bounds_are_inclusive_and_named),
        cmocka_unit_test(truth_has_eight_words),
        cmocka_unit_test(durations_add_up_their_units),
        cmocka_unit_test(sizes_are_binary),
        cmocka_unit_test(times_are_days_that_exist),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
