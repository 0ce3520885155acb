/* See rate_limit.h.
 *
 * Design notes
 * - One mutex for the limiter and all its transfers: a take is 64 KiB and more, and threads that
 *   are limited sleep most of the time. Without any limit nothing is locked.
 * - Each transfer has a queue of waiting threads, oldest first. Whoever holds the mutex hands out
 *   what the buckets have: among the transfers whose own bucket has enough, the one that got least.
 *   A transfer that begins to wait starts level with the last one served, so that it neither has
 *   to catch up nor may it take what it did not use before.
 * - A thread sleeps until the earliest time at which something can be handed out, at most 100 ms,
 *   and looks then for all. So no thread of its own is needed, and a changed limit is noticed. */
#include "services/exporter/engine/rate_limit.h"

#include <pthread.h>
#include <time.h>

#include "common/clock.h"
#include "services/exporter/engine/rate_adapt.h"

#define LOOK_NS   INT64_C(100000000) /* a stop is noticed so soon */
#define SECOND_NS INT64_C(1000000000)

static_assert(RATE_SLICE_BYTES <= RATE_BURST_MIN, "a full bucket has room for a slice");

struct bucket {
    uint64_t rate; /* 0: no limit */
    uint64_t burst;
    double tokens;
    int64_t filled_ns;
};

struct waiter {
    struct waiter *next;
    uint64_t bytes;
    bool granted;
    pthread_cond_t cond;
};

struct rate_limiter {
    atomic_bool limited;
    pthread_mutex_t mutex; /* guards all below, and the transfers */
    struct bucket bucket;
    struct rate_transfer *transfers;
    uint64_t served; /* of the transfer that was served last, before it was */
};

struct rate_transfer {
    struct rate_transfer *next;
    struct rate_limiter *limiter;
    atomic_bool limited;
    struct bucket bucket;
    bool adaptive;
    struct rate_adapt adapt;
    struct waiter *first;
    struct waiter **last;
    uint64_t served; /* bytes, for the order only */
};

/* ---- one bucket ---- */

static void bucket_fill(struct bucket *bucket, int64_t now_ns)
{
    double seconds = (double)(now_ns - bucket->filled_ns) / (double)SECOND_NS;

    bucket->tokens += seconds * (double)bucket->rate;
    if (bucket->tokens > (double)bucket->burst)
        bucket->tokens = (double)bucket->burst;
    bucket->filled_ns = now_ns;
}

/* A bucket that had no limit is full; another one keeps what it has, but no more than fits. */
static void bucket_set(struct bucket *bucket, uint64_t rate, uint64_t burst, int64_t now_ns)
{
    bool was_limited = bucket->rate > 0;

    bucket_fill(bucket, now_ns);
    bucket->rate = min_u64(rate, RATE_BYTES_MAX);
    bucket->burst = burst == 0 ? 2 * bucket->rate : min_u64(burst, RATE_BYTES_MAX);
    bucket->burst = max_u64(bucket->burst, RATE_BURST_MIN);
    if (!was_limited || bucket->tokens > (double)bucket->burst)
        bucket->tokens = (double)bucket->burst;
}

/* 0: enough for so many bytes; else how long until then. */
static int64_t bucket_wait_ns(const struct bucket *bucket, uint64_t bytes)
{
    double missing = (double)bytes - bucket->tokens;

    if (bucket->rate == 0 || missing <= 0)
        return 0;
    return (int64_t)(missing * (double)SECOND_NS / (double)bucket->rate) + 1;
}

static void bucket_take(struct bucket *bucket, uint64_t bytes)
{
    if (bucket->rate > 0)
        bucket->tokens -= (double)bytes;
}

/* ---- handing out; the mutex is held ---- */

static void transfer_fill(struct rate_transfer *transfer, int64_t now_ns)
{
    if (transfer->adaptive)
        transfer->bucket.rate = rate_adapt_rate(&transfer->adapt, now_ns / 1000000);
    bucket_fill(&transfer->bucket, now_ns);
}

static void grant(struct rate_limiter *limiter, struct rate_transfer *transfer)
{
    struct waiter *waiter = transfer->first;

    bucket_take(&transfer->bucket, waiter->bytes);
    bucket_take(&limiter->bucket, waiter->bytes);
    limiter->served = transfer->served;
    transfer->served += waiter->bytes;
    transfer->first = waiter->next;
    if (transfer->first == NULL)
        transfer->last = &transfer->first;
    waiter->granted = true;
    (void)pthread_cond_signal(&waiter->cond);
}

/* Hands out what there is; how long until there is more for somebody. */
static int64_t hand_out(struct rate_limiter *limiter)
{
    int64_t now_ns = clock_mono_ns();

    bucket_fill(&limiter->bucket, now_ns);
    for (struct rate_transfer *t = limiter->transfers; t != NULL; t = t->next)
        transfer_fill(t, now_ns);
    for (;;) {
        struct rate_transfer *best = NULL;
        int64_t wait_ns = LOOK_NS;
        for (struct rate_transfer *t = limiter->transfers; t != NULL; t = t->next) {
            int64_t own_ns =
                t->first == NULL ? LOOK_NS : bucket_wait_ns(&t->bucket, t->first->bytes);
            if (own_ns > 0) {
                wait_ns = own_ns < wait_ns ? own_ns : wait_ns;
            } else if (best == NULL || t->served < best->served) {
                best = t;
            }
        }
        if (best == NULL)
            return wait_ns;
        int64_t shared_ns = bucket_wait_ns(&limiter->bucket, best->first->bytes);
        if (shared_ns > 0) /* its turn: nobody with a smaller piece gets in between */
            return shared_ns < wait_ns ? shared_ns : wait_ns;
        grant(limiter, best);
    }
}

static void enqueue(struct rate_transfer *transfer, struct waiter *waiter)
{
    if (transfer->first == NULL)
        transfer->served = max_u64(transfer->served, transfer->limiter->served);
    *transfer->last = waiter;
    transfer->last = &waiter->next;
}

static void dequeue(struct rate_transfer *transfer, const struct waiter *waiter)
{
    struct waiter **link = &transfer->first;

    while (*link != waiter)
        link = &(*link)->next;
    *link = waiter->next;
    if (*link == NULL)
        transfer->last = link;
}

static void sleep_ns(struct waiter *waiter, pthread_mutex_t *mutex, int64_t ns)
{
    int64_t until_ns = clock_mono_ns() + ns;
    struct timespec until = {.tv_sec = until_ns / SECOND_NS, .tv_nsec = until_ns % SECOND_NS};

    (void)pthread_cond_timedwait(&waiter->cond, mutex, &until);
}

static void cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attributes;

    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(cond, &attributes);
    (void)pthread_condattr_destroy(&attributes);
}

/* false: stopped. */
static bool wait_granted(struct rate_transfer *transfer, struct waiter *waiter,
                         const atomic_bool *stopped)
{
    struct rate_limiter *limiter = transfer->limiter;

    LOCK_SCOPE(&limiter->mutex);
    enqueue(transfer, waiter);
    for (;;) {
        int64_t ns = hand_out(limiter);
        if (waiter->granted)
            return true;
        if (stopped != NULL && atomic_load(stopped)) {
            dequeue(transfer, waiter);
            return false;
        }
        sleep_ns(waiter, &limiter->mutex, ns);
        if (waiter->granted)
            return true;
    }
}

int rate_take(struct rate_transfer *transfer, uint64_t bytes, const atomic_bool *stopped,
              struct error *err)
{
    bool granted = true;

    if (transfer == NULL ||
        (!atomic_load(&transfer->limited) && !atomic_load(&transfer->limiter->limited)))
        return 0;
    while (bytes > 0 && granted) {
        struct waiter waiter = {.bytes = min_u64(bytes, RATE_SLICE_BYTES)};
        cond_init(&waiter.cond);
        granted = wait_granted(transfer, &waiter, stopped);
        (void)pthread_cond_destroy(&waiter.cond);
        bytes -= waiter.bytes;
    }
    return granted ? 0 : error_set(err, ERR_CANCELLED, "stopped while waiting for bandwidth");
}

void rate_note(struct rate_transfer *transfer, bool ok, int64_t latency_ns)
{
    if (transfer == NULL || !atomic_load(&transfer->limited))
        return;
    LOCK_SCOPE(&transfer->limiter->mutex);
    if (transfer->adaptive)
        rate_adapt_note(&transfer->adapt, ok, latency_ns);
}

/* ---- settings ---- */

struct rate_limiter *rate_limiter_new(void)
{
    struct rate_limiter *limiter = xcalloc(1, sizeof *limiter);

    (void)pthread_mutex_init(&limiter->mutex, NULL);
    limiter->bucket.filled_ns = clock_mono_ns();
    return limiter;
}

void rate_limiter_free(struct rate_limiter *limiter)
{
    if (limiter == NULL)
        return;
    assert(limiter->transfers == NULL);
    (void)pthread_mutex_destroy(&limiter->mutex);
    free(limiter);
}

void rate_limiter_set(struct rate_limiter *limiter, const struct rate_settings *settings)
{
    LOCK_SCOPE(&limiter->mutex);
    bucket_set(&limiter->bucket, settings->rate, settings->burst, clock_mono_ns());
    atomic_store(&limiter->limited, settings->rate > 0);
}

struct rate_transfer *rate_transfer_new(struct rate_limiter *limiter,
                                        const struct rate_settings *settings)
{
    struct rate_transfer *transfer = xcalloc(1, sizeof *transfer);

    transfer->limiter = limiter;
    transfer->last = &transfer->first;
    transfer->bucket.filled_ns = clock_mono_ns();
    rate_transfer_set(transfer, settings);
    LOCK_SCOPE(&limiter->mutex);
    transfer->next = limiter->transfers;
    limiter->transfers = transfer;
    return transfer;
}

void rate_transfer_free(struct rate_transfer *transfer)
{
    if (transfer == NULL)
        return;
    {
        struct rate_transfer **link = &transfer->limiter->transfers;
        LOCK_SCOPE(&transfer->limiter->mutex);
        assert(transfer->first == NULL);
        while (*link != transfer)
            link = &(*link)->next;
        *link = transfer->next;
    }
    free(transfer);
}

void rate_transfer_set(struct rate_transfer *transfer, const struct rate_settings *settings)
{
    int64_t now_ns = clock_mono_ns();
    uint64_t rate = min_u64(settings->rate, RATE_BYTES_MAX);

    LOCK_SCOPE(&transfer->limiter->mutex);
    transfer->adaptive = rate > 0 && settings->floor > 0;
    if (transfer->adaptive) {
        uint64_t floor = min_u64(settings->floor, rate);
        rate_adapt_init(&transfer->adapt, floor, rate, now_ns / 1000000);
        rate = transfer->adapt.rate;
    }
    bucket_set(&transfer->bucket, rate, settings->burst, now_ns);
    atomic_store(&transfer->limited, rate > 0);
}

uint64_t rate_transfer_rate(struct rate_transfer *transfer)
{
    LOCK_SCOPE(&transfer->limiter->mutex);
    return transfer->bucket.rate;
}
