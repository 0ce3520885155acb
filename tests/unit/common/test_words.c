/* How far words are apart. */
#include "common/words.h"
#include "tests/unit/common/unit.h"

static void equal_words_are_not_apart(void **state)
{
    (void)state;
    assert_int_equal(word_distance("format", "format"), 0);
    assert_int_equal(word_distance("", ""), 0);
}

static void each_letter_changed_added_or_left_out_counts_one(void **state)
{
    (void)state;
    assert_int_equal(word_distance("adress", "address"), 1);
    assert_int_equal(word_distance("fromat", "format"), 2);
    assert_int_equal(word_distance("kitten", "sitting"), 3);
    assert_int_equal(word_distance("", "abc"), 3);
    assert_int_equal(word_distance("abc", ""), 3);
}

static void long_words_are_cut_and_not_read_beyond(void **state)
{
    char a[3 * WORD_BYTES_MAX + 1];
    char b[3 * WORD_BYTES_MAX + 1];

    (void)state;
    memset(a, 'a', sizeof a - 1);
    memset(b, 'a', sizeof b - 1);
    a[sizeof a - 1] = b[sizeof b - 1] = '\0';
    b[WORD_BYTES_MAX] = 'x'; /* beyond the cut */
    assert_int_equal(word_distance(a, b), 0);
    assert_int_equal(word_distance(a, "a"), WORD_BYTES_MAX - 1);
    assert_int_equal(word_distance("a", a), WORD_BYTES_MAX - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equal_words_are_not_apart),
        cmocka_unit_test(each_letter_changed_added_or_left_out_counts_one),
        cmocka_unit_test(long_words_are_cut_and_not_read_beyond),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
