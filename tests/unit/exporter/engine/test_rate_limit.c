/* Token buckets: their arithmetic holds, waiting ends, and the worker's rate is shared fairly. */
#include "services/exporter/engine/rate_limit.h"

#include <pthread.h>

#include "common/clock.h"
#include "services/exporter/engine/rate_adapt.h"
#include "tests/unit/common/unit.h"

struct rates {
    struct rate_limiter *limiter;
    struct rate_transfer *a, *b;
};

static void make(struct rates *rates, struct rate_settings worker, struct rate_settings a,
                 struct rate_settings b)
{
    rates->limiter = rate_limiter_new();
    rate_limiter_set(rates->limiter, &worker);
    rates->a = rate_transfer_new(rates->limiter, &a);
    rates->b = rate_transfer_new(rates->limiter, &b);
}

static void release(struct rates *rates)
{
    rate_transfer_free(rates->a);
    rate_transfer_free(rates->b);
    rate_limiter_free(rates->limiter);
}

static const struct rate_settings none = {0};

static void without_a_limit_nothing_waits(void **state)
{
    (void)state;
    struct error err = ERROR_NONE;
    struct rates rates;

    make(&rates, none, none, none);
    assert_ok(rate_take(rates.a, UINT64_C(1) << 60, NULL, &err), err);
    assert_ok(rate_take(NULL, UINT64_C(1) << 60, NULL, &err), err);
    assert_int_equal(rate_transfer_rate(rates.a), 0);
    release(&rates);
}

/* Never more than burst + rate x time, by whichever bucket. */
static void a_bucket_lets_through_no_more_than_burst_and_rate(void **state)
{
    static const struct {
        struct rate_settings worker, job;
        uint64_t rate, burst;
    } cases[] = {
        {{0}, {.rate = 8 * MIB, .burst = MIB}, 8 * MIB, MIB},
        {{.rate = 8 * MIB, .burst = MIB}, {0}, 8 * MIB, MIB},
        {{.rate = 64 * MIB}, {.rate = 8 * MIB, .burst = 1}, 8 * MIB, MIB}, /* one buffer at least */
        {{0}, {.rate = 4 * MIB}, 4 * MIB, 8 * MIB},                        /* 2 x the rate */
    };
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct error err = ERROR_NONE;
        struct rates rates;
        uint64_t bytes = cases[i].burst + 3 * MIB;
        int64_t start_ns;

        make(&rates, cases[i].worker, cases[i].job, none);
        start_ns = clock_mono_ns();
        for (uint64_t at = 0; at < bytes; at += 96 * KIB)
            assert_ok(rate_take(rates.a, min_u64(96 * KIB, bytes - at), NULL, &err), err);
        double seconds = (double)(clock_mono_ns() - start_ns) / 1e9;
        print_message("%ju bytes in %.3f s\n", (uintmax_t)bytes, seconds);
        assert_true(seconds >= (double)(bytes - cases[i].burst) / (double)cases[i].rate);
        release(&rates);
    }
}

struct taker {
    struct rate_transfer *transfer;
    atomic_bool *stopped;
    atomic_uint_fast64_t *taken;
    uint64_t piece;
    enum error_code code;
};

static void *take_until_stopped(void *arg)
{
    struct taker *taker = arg;
    struct error err = ERROR_NONE;

    while (rate_take(taker->transfer, taker->piece, taker->stopped, &err) == 0)
        atomic_fetch_add(taker->taken, taker->piece);
    taker->code = err.code;
    return NULL;
}

/* One thread with small pieces against six with large ones. */
static void the_workers_rate_is_shared_fairly_by_jobs_not_by_threads(void **state)
{
    (void)state;
    struct rates rates;
    atomic_bool stopped = false;
    atomic_uint_fast64_t taken[2] = {0, 0};
    struct taker takers[7];
    pthread_t threads[ARRAY_LEN(takers)];

    /* slow enough that a busy machine wakes the one thread in time for its share */
    make(&rates, (struct rate_settings){.rate = 2 * MIB, .burst = MIB}, none, none);
    for (size_t i = 0; i < ARRAY_LEN(takers); i++) {
        takers[i] = (struct taker){.transfer = i == 0 ? rates.a : rates.b,
                                   .stopped = &stopped,
                                   .taken = &taken[i > 0],
                                   .piece = i == 0 ? 64 * KIB : 512 * KIB};
        assert_int_equal(pthread_create(&threads[i], NULL, take_until_stopped, &takers[i]), 0);
    }
    while (atomic_load(&taken[0]) + atomic_load(&taken[1]) < 6 * MIB)
        clock_sleep_ms(5);
    atomic_store(&stopped, true);
    for (size_t i = 0; i < ARRAY_LEN(takers); i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(takers[i].code, ERR_CANCELLED);
    }
    print_message("one thread %ju, six threads %ju bytes\n", (uintmax_t)taken[0],
                  (uintmax_t)taken[1]);
    assert_true(taken[0] > (taken[0] + taken[1]) / 4); /* by threads it would be a seventh */
    release(&rates);
}

static void a_slow_job_does_not_hold_the_others(void **state)
{
    (void)state;
    struct error err = ERROR_NONE;
    struct rates rates;
    atomic_bool stopped = false;
    atomic_uint_fast64_t taken = 0;
    struct taker slow = {.stopped = &stopped, .taken = &taken, .piece = MIB};
    pthread_t thread;

    make(&rates, (struct rate_settings){.rate = 64 * MIB, .burst = MIB},
         (struct rate_settings){.rate = 1000, .burst = MIB}, none);
    slow.transfer = rates.a;
    assert_int_equal(pthread_create(&thread, NULL, take_until_stopped, &slow), 0);
    assert_ok(rate_take(rates.b, 8 * MIB, NULL, &err),
              err); /* would take hours behind the slow one */
    assert_true(atomic_load(&taken) <= MIB);
    atomic_store(&stopped, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    release(&rates);
}

static void a_changed_limit_reaches_those_who_wait(void **state)
{
    (void)state;
    for (int job = 0; job < 2; job++) {
        struct rates rates;
        struct rate_settings slow = {.rate = 1000, .burst = MIB};
        atomic_bool stopped = false;
        atomic_uint_fast64_t taken = 0;
        struct taker taker = {.stopped = &stopped, .taken = &taken, .piece = 512 * KIB};
        pthread_t thread;

        make(&rates, job ? none : slow, job ? slow : none, none);
        taker.transfer = rates.a;
        assert_int_equal(pthread_create(&thread, NULL, take_until_stopped, &taker), 0);
        while (atomic_load(&taken) < MIB)
            clock_sleep_ms(2);
        if (job)
            rate_transfer_set(rates.a, &none);
        else
            rate_limiter_set(rates.limiter, &none);
        while (atomic_load(&taken) < 64 * MIB) /* 18 hours at the old rate */
            clock_sleep_ms(2);
        atomic_store(&stopped, true);
        rate_transfer_set(rates.a, &slow); /* so that it waits, and sees the stop */
        assert_int_equal(pthread_join(thread, NULL), 0);
        release(&rates);
    }
}

/* ---- adaptive ---- */

static void adaptive_limits_start_halfway(void **state)
{
    (void)state;
    struct rates rates;

    make(&rates, none, (struct rate_settings){.rate = 9 * MIB, .floor = MIB}, none);
    assert_int_equal(rate_transfer_rate(rates.a), 5 * MIB);
    release(&rates);
}

static void note_many(struct rate_adapt *adapt, int count, int fails_every, int64_t latency_ms)
{
    for (int i = 1; i <= count; i++)
        rate_adapt_note(adapt, fails_every == 0 || i % fails_every != 0, latency_ms * 1000000);
}

static void adaptive_limits_follow_errors_between_floor_and_ceiling(void **state)
{
    (void)state;
    struct rate_adapt adapt;
    int64_t now = 5000;

    rate_adapt_init(&adapt, 2000, 10000, now);
    note_many(&adapt, 50, 0, 10);
    assert_int_equal(rate_adapt_rate(&adapt, now + RATE_ADAPT_MS - 1), 6000); /* not yet */
    now += RATE_ADAPT_MS;
    assert_int_equal(rate_adapt_rate(&adapt, now), 7200); /* 20 % more */
    note_many(&adapt, 60, 4, 10);
    now += RATE_ADAPT_MS;
    assert_int_equal(rate_adapt_rate(&adapt, now), 5760);                 /* 20 % less */
    assert_int_equal(rate_adapt_rate(&adapt, now + RATE_ADAPT_MS), 5760); /* no news */
    now += RATE_ADAPT_MS;
    for (int i = 0; i < 20; i++) {
        note_many(&adapt, 10, 1, 10);
        now += RATE_ADAPT_MS;
        (void)rate_adapt_rate(&adapt, now);
    }
    assert_int_equal(adapt.rate, 2000);
    for (int i = 0; i < 30; i++) {
        note_many(&adapt, 50, 0, 10);
        now += RATE_ADAPT_MS;
        (void)rate_adapt_rate(&adapt, now);
    }
    assert_int_equal(adapt.rate, 10000);
}

static void adaptive_limits_fall_when_answers_take_much_longer(void **state)
{
    (void)state;
    struct rate_adapt adapt;
    int64_t now = 0;

    rate_adapt_init(&adapt, 1000, 10000, now);
    note_many(&adapt, 50, 0, 100);
    now += RATE_ADAPT_MS;
    assert_int_equal(rate_adapt_rate(&adapt, now), 6600);
    note_many(&adapt, 100, 0, 900);
    now += RATE_ADAPT_MS;
    assert_int_equal(rate_adapt_rate(&adapt, now), 5280);
    note_many(&adapt, 100, 0, 110); /* back to normal */
    now += RATE_ADAPT_MS;
    assert_int_equal(rate_adapt_rate(&adapt, now), 6336);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_limit_nothing_waits),
        cmocka_unit_test(a_bucket_lets_through_no_more_than_burst_and_rate),
        cmocka_unit_test(the_workers_rate_is_shared_fairly_by_jobs_not_by_threads),
        cmocka_unit_test(a_slow_job_does_not_hold_the_others),
        cmocka_unit_test(a_changed_limit_reaches_those_who_wait),
        cmocka_unit_test(adaptive_limits_start_halfway),
        cmocka_unit_test(adaptive_limits_follow_errors_between_floor_and_ceiling),
        cmocka_unit_test(adaptive_limits_fall_when_answers_take_much_longer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
