/* Sources and their wrappers, as a copy uses them: faults of any source, the rate limit, and how
 * many readers a copy comes to. */
#include "services/exporter/engine/source.h"

#include "common/log.h"
#include "services/exporter/engine/journal.h"

#include "tests/unit/exporter/engine/copy_fixture.h"
#include "tests/unit/exporter/engine/fault_source.h"

struct one {
    struct test_disk disk;
    struct provider_session session;
    struct setup setup;
    struct faults faults;
    unsigned int readers_most, readers_last;
    unsigned int rate_limited; /* how often progress said so */
    bool stop_when_limited;
    atomic_bool stopped;
};

static const struct provider *const providers[] = {&file_provider, &stream_provider};

static void see(void *arg, const struct copy_progress *progress)
{
    struct one *one = arg;

    one->readers_last = progress->readers;
    if (progress->readers > one->readers_most)
        one->readers_most = progress->readers;
    one->rate_limited += strcmp(progress->limited_by, "rate_limit") == 0;
    if (one->stop_when_limited && one->rate_limited > 0)
        atomic_store(&one->stopped, true);
}

static struct one *one_new(const struct provider *provider, size_t size)
{
    struct one *one = xcalloc(1, sizeof *one);

    one->disk = test_disk_make(PATTERN_RANDOM, size);
    one->session = (struct provider_session){.data = one->disk.data, .size_bytes = size};
    setup_make(&one->setup, provider, &one->session, "raw");
    one->setup.options.wrap = fault_wrap;
    one->setup.options.wrap_arg = &one->faults;
    one->setup.options.progress = see;
    one->setup.options.arg = one;
    return one;
}

static void one_free(struct one *one)
{
    setup_remove(&one->setup);
    test_disk_free(&one->disk);
    free(one);
}

static void one_fails(struct one *one, enum error_code code, const char *part)
{
    struct error err = ERROR_NONE;
    auto_copy_result result = {0};

    assert_int_equal(copy_disk(&one->setup.options, &result, &err), -1);
    print_message("%s\n", err.message);
    assert_int_equal(err.code, code);
    assert_non_null(strstr(err.message, part));
}

static void one_works(struct one *one)
{
    struct error err = ERROR_NONE;
    auto_copy_result result = {0};

    assert_ok(copy_disk(&one->setup.options, &result, &err));
    setup_compare(&one->setup, &one->disk, &result);
}

static void passing_errors_of_any_source_are_retried_over_new_connections(void **state)
{
    (void)state;
    for (size_t p = 0; p < ARRAY_LEN(providers); p++) {
        struct one *one = one_new(providers[p], 9 * MIB + 3 * SECTOR);
        one->faults.errors = 3;
        one->faults.code = ERR_UNAVAILABLE;
        one_works(one);
        assert_int_equal(atomic_load(&one->faults.resets), 3);
        one_free(one);
    }
}

static void a_read_error_after_some_bytes_is_named_and_ends_the_copy(void **state)
{
    (void)state;
    for (size_t p = 0; p < ARRAY_LEN(providers); p++) {
        struct one *one = one_new(providers[p], 20 * MIB);
        one->faults.eio_after = 7 * MIB + 12345;
        one_fails(one, ERR_INTERNAL, "injected");
        one->faults.eio_after = 0; /* what came before is not read again, or read well */
        one_works(one);
        one_free(one);
    }
}

static void a_short_answer_is_no_success(void **state)
{
    (void)state;
    struct one *one = one_new(&stream_provider, 20 * MIB);
    one->faults.short_at = 8 * MIB + 777;
    one->setup.options.readers = 1; /* others might meet the end before */
    one_fails(one, ERR_SOURCE_CHANGED, "the disk ends at 8389385 of 20971520 bytes");
    one_free(one);
}

/* The engine cannot know that a byte is wrong; whoever has the right digests finds its MiB. */
static void a_wrong_byte_is_found_by_the_digests(void **state)
{
    (void)state;
    for (size_t p = 0; p < ARRAY_LEN(providers); p++) {
        struct one *one = one_new(providers[p], 12 * MIB);
        struct error err = ERROR_NONE;
        auto_copy_result result = {0};
        auto_copy_result truth = {0};

        assert_ok(copy_disk(&one->setup.options, &truth, &err));
        journal_close(STEAL(truth.journal));
        (void)unlink(one->setup.journal);
        one->faults.wrong_at = 5 * MIB + 4321;
        assert_ok(copy_disk(&one->setup.options, &result, &err));
        for (size_t i = 0; i < 12; i++)
            assert_int_equal(memcmp(leaves_get(result.leaves, i), leaves_get(truth.leaves, i),
                                    DIGEST_BYTES) == 0,
                             i != 5);
        assert_int_equal(verify_image(one->setup.paths[0], "raw", truth.leaves, 2, NULL, &err), -1);
        assert_int_equal(err.code, ERR_CORRUPT);
        one_free(one);
    }
}

static void a_limited_copy_takes_its_time_and_says_so(void **state)
{
    (void)state;
    for (size_t p = 0; p < ARRAY_LEN(providers); p++) {
        struct one *one = one_new(providers[p], 15 * MIB);
        struct rate_limiter *limiter = rate_limiter_new();
        struct rate_settings settings = {.rate = 8 * MIB, .burst = MIB};
        struct rate_transfer *transfer = rate_transfer_new(limiter, &settings);
        int64_t start_ns = clock_mono_ns();

        one->setup.options.rate = transfer;
        one_works(one);
        assert_true((double)(clock_mono_ns() - start_ns) / 1e9 >= 14.0 / 8.0);
        assert_true(one->rate_limited > 0);
        assert_true(one->readers_last < 4); /* who only waits is not needed */
        rate_transfer_free(transfer);
        rate_limiter_free(limiter);
        one_free(one);
    }
}

static void a_copy_that_waits_for_bandwidth_can_be_stopped(void **state)
{
    (void)state;
    struct one *one = one_new(&stream_provider, 15 * MIB);
    struct rate_limiter *limiter = rate_limiter_new();
    struct rate_settings settings = {.rate = 1000, .burst = MIB};
    struct rate_transfer *transfer = rate_transfer_new(limiter, &settings);

    one->stop_when_limited = true;
    one->setup.options.rate = transfer;
    one->setup.options.stopped = &one->stopped;
    one_fails(one, ERR_CANCELLED, "stopped");
    rate_transfer_free(transfer);
    rate_limiter_free(limiter);
    one_free(one);
}

/* All readers together get no more than one: most of them are not used. */
static void readers_that_bring_nothing_are_not_kept(void **state)
{
    (void)state;
    pthread_mutex_t serial = PTHREAD_MUTEX_INITIALIZER;
    struct one *one = one_new(&file_provider, 100 * MIB);

    one->setup.options.readers = 16;
    one->setup.options.hash = false;
    one->faults.serial = &serial;
    one->faults.delay_ms = 40;
    one_works(one);
    print_message("at most %u readers\n", one->readers_most);
    assert_in_range(one->readers_most, 5, 15); /* it was tried */
    assert_true(one->readers_last < one->readers_most);
    one_free(one);
}

static void a_source_that_throttles_is_asked_by_half_of_the_readers(void **state)
{
    (void)state;
    struct one *one = one_new(&file_provider, 60 * MIB);

    one->faults.delay_ms = 50;
    one->faults.errors = 4;
    one->faults.code = ERR_UNAVAILABLE; /* 429, 503 */
    one_works(one);
    assert_in_range(one->readers_last, 1, 2);
    one_free(one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(passing_errors_of_any_source_are_retried_over_new_connections),
        cmocka_unit_test(a_read_error_after_some_bytes_is_named_and_ends_the_copy),
        cmocka_unit_test(a_short_answer_is_no_success),
        cmocka_unit_test(a_wrong_byte_is_found_by_the_digests),
        cmocka_unit_test(a_limited_copy_takes_its_time_and_says_so),
        cmocka_unit_test(a_copy_that_waits_for_bandwidth_can_be_stopped),
        cmocka_unit_test(readers_that_bring_nothing_are_not_kept),
        cmocka_unit_test(a_source_that_throttles_is_asked_by_half_of_the_readers),
    };
    log_init("test", LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, test_dir_make, test_dir_remove);
}
