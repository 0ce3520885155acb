/* Token buckets: one for the whole worker process, one for each job. Everything that moves disk
 * bytes over the network (downloads, uploads) takes its bytes from both.
 *
 *   rate_take(transfer, n, stopped, &err)    before or while n bytes move; blocks
 *
 * A bucket holds at most `burst` bytes and gains `rate` a second, so in any time t no more than
 * burst + rate * t bytes pass. The worker's bucket is shared fairly: whatever the number of threads
 * and the size of their pieces, the transfers that wait get the same share of it.
 *
 * All functions are thread-safe; settings may change while transfers wait. */
#ifndef EXPORTER_RATE_LIMIT_H
#define EXPORTER_RATE_LIMIT_H

#include <stdatomic.h>

#include "common/error.h"

#define RATE_SLICE_BYTES (256 * KIB) /* taken at a time: so long is a turn */
#define RATE_BURST_MIN   MIB         /* one buffer; a smaller burst is raised to it */
#define RATE_BYTES_MAX   (UINT64_C(1) << 50)

struct rate_settings {
    uint64_t rate;  /* bytes per second; 0: no limit */
    uint64_t burst; /* bytes; 0: 2 x rate */
    uint64_t floor; /* bytes per second; > 0: adaptive between floor and rate (rate_adapt.h) */
};

struct rate_limiter;  /* one per process */
struct rate_transfer; /* one per job that runs in it */

struct rate_limiter *rate_limiter_new(void);          /* without limit */
void rate_limiter_free(struct rate_limiter *limiter); /* NULL-safe; all transfers are gone */
/* The worker's own limit; floor is ignored. */
void rate_limiter_set(struct rate_limiter *limiter, const struct rate_settings *settings);

struct rate_transfer *rate_transfer_new(struct rate_limiter *limiter,
                                        const struct rate_settings *settings);
void rate_transfer_free(struct rate_transfer *transfer); /* NULL-safe */
void rate_transfer_set(struct rate_transfer *transfer, const struct rate_settings *settings);
/* Bytes per second that hold for this transfer now, the worker's limit not counted; 0: none. */
uint64_t rate_transfer_rate(struct rate_transfer *transfer);

/* Waits until `bytes` may move. transfer may be NULL: no limit. ERR_CANCELLED: *stopped became
 * true (looked at every 100 ms; may be NULL). */
MUST_CHECK int rate_take(struct rate_transfer *transfer, uint64_t bytes, const atomic_bool *stopped,
                         struct error *err);
/* How a request went, for adaptive limits: ok, and the time to its first byte (-1: not known). */
void rate_note(struct rate_transfer *transfer, bool ok, int64_t latency_ns);

#endif
