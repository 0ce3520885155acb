/* See notifier.h. */
#include "services/notifier/notifier.h"

#include "common/clock.h"

void wake_init(struct wake *wake)
{
    pthread_condattr_t attributes;

    (void)pthread_mutex_init(&wake->mutex, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&wake->changed, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    wake->count = 0;
}

void wake_all(struct wake *wake)
{
    LOCK_SCOPE(&wake->mutex);

    wake->count++;
    (void)pthread_cond_broadcast(&wake->changed);
}

void wake_wait(struct wake *wake, uint64_t *seen, int64_t ms)
{
    int64_t deadline_ns = clock_mono_ns() + ms * 1000000;
    struct timespec deadline = {.tv_sec = deadline_ns / 1000000000,
                                .tv_nsec = deadline_ns % 1000000000};
    LOCK_SCOPE(&wake->mutex);

    while (wake->count == *seen) {
        if (pthread_cond_timedwait(&wake->changed, &wake->mutex, &deadline) != 0)
            break;
    }
    *seen = wake->count;
}
