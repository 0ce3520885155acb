/* common/job_store_events.c: a position is cut so that nothing is lost behind it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "common/job_store.h"

static void assert_cut(const char *snapshot, uint64_t last, const char *expected)
{
    char *cut = snapshot_cut(snapshot, last);

    assert_string_equal(cut, expected);
    free(cut);
}

static void a_cut_snapshot_keeps_who_is_under_way_and_shows_nothing_later(void **state)
{
    (void)state;
    assert_cut("10:20:10,14,17", 15, "10:16:10,14");
    assert_cut("10:20:10,14,17", 17, "10:18:10,14,17");
    assert_cut("10:20:10,14,17", 9, "10:10:");
    assert_cut("20:20:", 12, "13:13:");
    assert_cut("14:20:14", 13, "14:14:");
    assert_cut("4294967300:4294967310:4294967300", 4294967305, "4294967300:4294967306:4294967300");
}

static void a_snapshot_with_nothing_behind_the_cut_stays(void **state)
{
    (void)state;
    assert_cut("10:20:10,14", 19, "10:20:10,14");
    assert_cut("10:20:10,14", 18, "10:19:10,14");
    assert_cut("20:20:", 19, "20:20:");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cut_snapshot_keeps_who_is_under_way_and_shows_nothing_later),
        cmocka_unit_test(a_snapshot_with_nothing_behind_the_cut_stays),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
