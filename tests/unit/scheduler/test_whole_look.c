/* When an index is looked at from its beginning again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "services/scheduler/whole_look.h"

static void every_look_is_whole_while_that_is_short(void **state)
{
    struct whole_look look = {0};

    (void)state;
    assert_true(whole_look_is_due(&look, 0, 1000));
    whole_look_done(&look, 50, 100, 150);
    assert_false(look.is_long);
    assert_true(whole_look_is_due(&look, 150, 1000));
}

static void a_long_one_waits_for_its_part_of_the_time(void **state)
{
    struct whole_look look = {0};

    (void)state;
    whole_look_done(&look, 59, 1000, 1060);
    assert_true(look.is_long);
    assert_false(whole_look_is_due(&look, 2259, 5000));
    assert_true(whole_look_is_due(&look, 2260, 5000));
    assert_true(whole_look_is_due(&look, 1110, 50)); /* the caller waits no longer */
    whole_look_done(&look, 59, 2000, 3000);
    assert_false(whole_look_is_due(&look, 3999, 1000));
    assert_true(whole_look_is_due(&look, 4000, 1000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_look_is_whole_while_that_is_short),
        cmocka_unit_test(a_long_one_waits_for_its_part_of_the_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
