/* Clocks, stamps, back-off. */
#include "tests/unit/common/unit.h"

#include "common/clock.h"

static void stamps_are_rfc3339_with_milliseconds(void **state)
{
    char out[CLOCK_RFC3339_SIZE];

    (void)state;
    clock_rfc3339(0, out);
    assert_string_equal(out, "1970-01-01T00:00:00.000Z");
    clock_rfc3339(INT64_C(1772330523123), out);
    assert_string_equal(out, "2026-03-01T02:02:03.123Z");
    clock_rfc3339_now(out);
    assert_int_equal(strlen(out), 24);
}

static void monotonic_time_never_goes_back(void **state)
{
    int64_t before_ns = clock_mono_ns();
    int64_t before_ms = clock_mono_ms();

    (void)state;
    clock_sleep_ms(0);
    clock_sleep_ms(-5);
    clock_sleep_ms(2);
    assert_true(clock_mono_ns() - before_ns >= 2000000);
    assert_true(clock_mono_ms() - before_ms >= 1);
    assert_true(clock_wall_ms() > INT64_C(1700000000000));
}

static void back_off_doubles_up_to_its_cap_with_full_jitter(void **state)
{
    int64_t largest = 0;

    (void)state;
    for (int i = 0; i < 2000; i++) {
        int64_t first = clock_backoff_ms(0, 100, 1000);
        int64_t third = clock_backoff_ms(2, 100, 1000);
        int64_t late = clock_backoff_ms(UINT32_MAX, 100, 1000);
        assert_true(first >= 0 && first <= 100);
        assert_true(third >= 0 && third <= 400);
        assert_true(late >= 0 && late <= 1000);
        largest = late > largest ? late : largest;
    }
    assert_true(largest > 800); /* not always small: 2000 draws */
    assert_true(clock_backoff_ms(3, 5000, 1000) <= 1000);
    assert_true(clock_backoff_ms(60, INT64_C(1) << 40, INT64_MAX / 4) >= 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stamps_are_rfc3339_with_milliseconds),
        cmocka_unit_test(monotonic_time_never_goes_back),
        cmocka_unit_test(back_off_doubles_up_to_its_cap_with_full_jitter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
