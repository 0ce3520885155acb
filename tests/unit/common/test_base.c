/* Allocation, exact I/O, arithmetic, hex. */
#include "tests/unit/common/unit.h"

#include <errno.h>

static void arithmetic_never_wraps(void **state)
{
    uint64_t out = 7;

    (void)state;
    assert_true(checked_add_u64(UINT64_MAX - 1, 1, &out));
    assert_int_equal(out, UINT64_MAX);
    assert_false(checked_add_u64(UINT64_MAX, 1, &out));
    assert_true(checked_mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 31, &out));
    assert_false(checked_mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 32, &out));
}

static void a_range_that_would_wrap_is_outside(void **state)
{
    (void)state;
    assert_true(range_is_inside(0, 10, 10));
    assert_true(range_is_inside(10, 0, 10));
    assert_false(range_is_inside(10, 1, 10));
    assert_false(range_is_inside(11, 0, 10));
    assert_false(range_is_inside(5, UINT64_MAX, 10));
    assert_false(range_is_inside(UINT64_MAX, UINT64_MAX, 10));
}

static void rounding_goes_up_to_the_step(void **state)
{
    (void)state;
    assert_int_equal(round_up_u64(0, 512), 0);
    assert_int_equal(round_up_u64(1, 512), 512);
    assert_int_equal(round_up_u64(512, 512), 512);
    assert_int_equal(min_u64(3, 2), 2);
    assert_int_equal(max_u64(3, 2), 3);
}

static void stolen_pointers_are_not_freed(void **state)
{
    char *kept;

    (void)state;
    {
        autofree char *text = xstrdup("kept");
        kept = STEAL(text);
        assert_null(text);
    }
    assert_string_equal(kept, "kept");
    free(kept);
}

static void zero_test_finds_a_single_bit_anywhere(void **state)
{
    uint8_t data[4097] = {0};

    (void)state;
    assert_true(mem_is_zero(data, 0));
    assert_true(mem_is_zero(data, sizeof data));
    for (size_t i = 0; i < sizeof data; i += 512) {
        data[i] = 1;
        assert_false(mem_is_zero(data, sizeof data));
        data[i] = 0;
    }
}

static void hex_goes_there_and_back(void **state)
{
    const uint8_t data[] = {0x00, 0x0f, 0xa5, 0xff};
    uint8_t back[4];
    char text[9];

    (void)state;
    hex_encode(data, sizeof data, text);
    assert_string_equal(text, "000fa5ff");
    assert_true(hex_decode("000FA5ff", back, sizeof back));
    assert_memory_equal(back, data, sizeof data);
    assert_false(hex_decode("000fa5f", back, sizeof back));
    assert_false(hex_decode("000fa5fff", back, sizeof back));
    assert_false(hex_decode("000fa5fg", back, sizeof back));
}

static void exact_io_reads_back_what_it_wrote(void **state)
{
    auto_scratch *dir = scratch_make();
    autofree char *path = scratch_file(dir, "f", "");
    autoclose int fd = open(path, O_RDWR | O_CLOEXEC);
    char back[6] = "";

    (void)state;
    assert_int_equal(pwrite_all(fd, "hello", 5, 100), 0);
    assert_int_equal(pread_all(fd, back, 5, 100), 0);
    assert_string_equal(back, "hello");
    assert_int_equal(pread_all(fd, back, 5, 101), -1);
    assert_int_equal(errno, EIO);
    assert_int_equal(write_all(-1, "x", 1), -1);
    assert_int_equal(errno, EBADF);
    assert_int_equal(pwrite_all(-1, "x", 1, 0), -1);
    assert_int_equal(pread_all(-1, back, 1, 0), -1);
    assert_int_equal(errno, EBADF);
}

static void allocations_of_nothing_are_valid(void **state)
{
    autofree void *a = xmalloc(0);
    autofree void *b = xcalloc(0, 8);
    autofree void *c = xrealloc(NULL, 0);
    autofree void *d = xreallocarray(NULL, 0, 0);
    autofree void *e = xmemdup("", 0);
    autofree void *f = xalloc_aligned(1);
    autofree char *g = xstrndup("abcdef", 3);
    autofree char *h = xasprintf("%s-%d", "x", 7);

    (void)state;
    assert_non_null(a);
    assert_non_null(b);
    assert_non_null(c);
    assert_non_null(d);
    assert_non_null(e);
    assert_int_equal((uintptr_t)f % 4096, 0);
    assert_string_equal(g, "abc");
    assert_string_equal(h, "x-7");
}

static void a_closed_scope_unlocks_its_mutex(void **state)
{
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    int fd = 5;

    (void)state;
    {
        LOCK_SCOPE(&mutex);
        assert_int_equal(pthread_mutex_trylock(&mutex), EBUSY);
    }
    assert_int_equal(pthread_mutex_trylock(&mutex), 0);
    assert_int_equal(pthread_mutex_unlock(&mutex), 0);
    assert_int_equal(fd_steal(&fd), 5);
    assert_int_equal(fd, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arithmetic_never_wraps),
        cmocka_unit_test(a_range_that_would_wrap_is_outside),
        cmocka_unit_test(rounding_goes_up_to_the_step),
        cmocka_unit_test(stolen_pointers_are_not_freed),
        cmocka_unit_test(zero_test_finds_a_single_bit_anywhere),
        cmocka_unit_test(hex_goes_there_and_back),
        cmocka_unit_test(exact_io_reads_back_what_it_wrote),
        cmocka_unit_test(allocations_of_nothing_are_valid),
        cmocka_unit_test(a_closed_scope_unlocks_its_mutex),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
