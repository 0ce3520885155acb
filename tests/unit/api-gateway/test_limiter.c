/* Token buckets, connection deadlines, and which event ids were seen. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <sys/socket.h>

#include "services/api-gateway/deadlines.h"
#include "services/api-gateway/limiter.h"
#include "services/api-gateway/seen.h"

static void a_bucket_empties_and_fills_again(void **state)
{
    struct limiter *limiter = limiter_new(60);
    int64_t now_ms = 1000;

    (void)state;
    for (int i = 0; i < 60; i++)
        assert_int_equal(limiter_take(limiter, "a", now_ms), 0);
    assert_int_equal(limiter_take(limiter, "a", now_ms), 2);
    assert_int_equal(limiter_take(limiter, "b", now_ms), 0); /* another one's */
    assert_int_equal(limiter_take(limiter, "a", now_ms + 999), 1);
    assert_int_equal(limiter_take(limiter, "a", now_ms + 1000), 0);
    assert_int_not_equal(limiter_take(limiter, "a", now_ms + 1000), 0);
    assert_int_equal(limiter_take(limiter, "a", now_ms + 3600000), 0);
    assert_int_equal(limiter_take(limiter, "a", 0), 0); /* a clock that went back */
    limiter_free(limiter);
}

static void zero_means_no_limit(void **state)
{
    struct limiter *limiter = limiter_new(0);

    (void)state;
    for (int i = 0; i < 10000; i++)
        assert_int_equal(limiter_take(limiter, "a", 0), 0);
    limiter_free(limiter);
}

static void a_full_table_forgets_the_oldest(void **state)
{
    struct limiter *limiter = limiter_new(1);
    char key[32];

    (void)state;
    assert_int_equal(limiter_take(limiter, "first", 1), 0);
    for (int i = 0; i < LIMITER_ENTRIES_MAX - 1; i++) {
        (void)snprintf(key, sizeof key, "key %d", i);
        assert_int_equal(limiter_take(limiter, key, 1), 0);
    }
    assert_int_not_equal(limiter_take(limiter, "first", 1), 0); /* known, and used just now */
    assert_int_equal(limiter_take(limiter, "one more", 1), 0);  /* pushes "key 0" out */
    assert_int_not_equal(limiter_take(limiter, "first", 1), 0);
    assert_int_equal(limiter_take(limiter, "key 0", 1), 0);
    assert_int_not_equal(limiter_take(limiter, "key 4000", 1), 0);
    limiter_free(limiter);
}

static void a_late_connection_is_shut_down_and_others_are_not(void **state)
{
    struct deadlines *deadlines = deadlines_new();
    int late[2];
    int fine[2];
    char byte;
    struct deadline *a;
    struct deadline *b;

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, late), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fine), 0);
    a = deadline_add(deadlines, late[0], 60000);
    b = deadline_add(deadlines, fine[0], 60000);
    assert_int_equal(deadlines_enforce(deadlines), 0);
    deadline_set(deadlines, a, -1);
    deadline_set(deadlines, b, 0); /* none */
    assert_int_equal(deadlines_enforce(deadlines), 1);
    assert_int_equal(deadlines_enforce(deadlines), 0); /* once */
    assert_int_equal(recv(late[1], &byte, 1, MSG_DONTWAIT), 0);
    assert_int_equal(recv(fine[1], &byte, 1, MSG_DONTWAIT), -1);
    deadline_remove(deadlines, a);
    deadline_remove(deadlines, b);
    for (int i = 0; i < 2; i++) {
        (void)close(late[i]);
        (void)close(fine[i]);
    }
    free(deadlines);
}

static struct seen the_seen;

static void each_id_is_new_once(void **state)
{
    struct seen *seen = &the_seen;

    (void)state;
    seen_start(seen, 100);
    assert_false(seen_add(seen, 100, 0));
    assert_false(seen_add(seen, 7, 0));
    assert_true(seen_add(seen, 103, 0));
    assert_true(seen_add(seen, 101, 0)); /* committed later than 103 */
    assert_false(seen_add(seen, 103, 0));
    assert_int_equal(seen_settle(seen, 1), 100);
}

static void old_ids_settle_after_a_minute(void **state)
{
    struct seen *seen = &the_seen;
    int64_t base = 0;

    (void)state;
    seen_start(seen, 0);
    for (int64_t second = 0; second <= 300; second++) {
        int64_t id = second + 1;
        assert_true(seen_add(seen, id, second * 1000));
        base = seen_settle(seen, second * 1000);
        /* what is younger than the settling time is looked at again */
        assert_true(base <= id && (second < 61 || base >= id - 66));
        assert_true(id - base >= 59 || second < 61);
    }
    assert_false(seen_add(seen, base, 300000));
    assert_false(seen_add(seen, base + 1, 300000));
    assert_true(seen_recent(seen, 10000, 300000) >= 285);
    assert_true(seen_recent(seen, 10000, 300000) <= 291);
    assert_true(seen_recent(seen, SEEN_SETTLE_MS, 300000) >= base);
}

static void more_ids_than_the_window_move_it(void **state)
{
    struct seen *seen = &the_seen;

    (void)state;
    seen_start(seen, 0);
    for (int64_t id = 1; id <= 3 * SEEN_WINDOW; id++)
        assert_true(seen_add(seen, id, 0));
    for (int64_t id = 1; id <= 3 * SEEN_WINDOW; id++)
        assert_false(seen_add(seen, id, 0));
    assert_false(seen_is_far(seen, 3 * SEEN_WINDOW + 1 - 1));
    assert_true(seen_is_far(seen, INT64_MAX));
    assert_true(seen_add(seen, 10 * SEEN_WINDOW, 0));
    assert_false(seen_add(seen, 5 * SEEN_WINDOW, 0));
    assert_true(seen_add(seen, 10 * SEEN_WINDOW - 1, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bucket_empties_and_fills_again),
        cmocka_unit_test(zero_means_no_limit),
        cmocka_unit_test(a_full_table_forgets_the_oldest),
        cmocka_unit_test(a_late_connection_is_shut_down_and_others_are_not),
        cmocka_unit_test(each_id_is_new_once),
        cmocka_unit_test(old_ids_settle_after_a_minute),
        cmocka_unit_test(more_ids_than_the_window_move_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
