/* See rate_adapt.h. */
#include "services/exporter/engine/rate_adapt.h"

#include <assert.h>

#define WEIGHT         0.05 /* of one result: some twenty count */
#define FAILING_FEW    0.05
#define FAILING_MANY   0.10
#define STEP_PERCENT   20U
#define LATENCY_FACTOR 2.0
#define LATENCY_SLACK  50e6 /* ns: what a scheduler or a busy disk adds is no congestion */
#define BEST_RISES     1.02 /* per change: the way to the source may become a longer one */

void rate_adapt_init(struct rate_adapt *adapt, uint64_t floor, uint64_t ceiling, int64_t now_ms)
{
    assert(floor > 0 && floor <= ceiling);
    *adapt = (struct rate_adapt){
        .floor = floor,
        .ceiling = ceiling,
        .rate = floor + (ceiling - floor) / 2,
        .next_ms = now_ms + RATE_ADAPT_MS,
    };
}

void rate_adapt_note(struct rate_adapt *adapt, bool ok, int64_t latency_ns)
{
    adapt->results++;
    adapt->failing += WEIGHT * ((ok ? 0.0 : 1.0) - adapt->failing);
    if (!ok || latency_ns < 0)
        return;
    if (adapt->latency_ns <= 0)
        adapt->latency_ns = (double)latency_ns;
    adapt->latency_ns += WEIGHT * ((double)latency_ns - adapt->latency_ns);
    if (adapt->best_ns <= 0 || adapt->latency_ns < adapt->best_ns)
        adapt->best_ns = adapt->latency_ns;
}

static bool is_congested(const struct rate_adapt *adapt)
{
    return adapt->failing > FAILING_MANY ||
           adapt->latency_ns > adapt->best_ns * LATENCY_FACTOR + LATENCY_SLACK;
}

uint64_t rate_adapt_rate(struct rate_adapt *adapt, int64_t now_ms)
{
    uint64_t step = adapt->rate * STEP_PERCENT / 100;

    if (now_ms < adapt->next_ms)
        return adapt->rate;
    adapt->next_ms = now_ms + RATE_ADAPT_MS;
    if (adapt->results == 0)
        return adapt->rate; /* nothing was learned */
    adapt->results = 0;
    if (is_congested(adapt)) {
        adapt->rate = max_u64(adapt->rate - step, adapt->floor);
    } else if (adapt->failing < FAILING_FEW) {
        adapt->rate = min_u64(adapt->rate + max_u64(step, 1), adapt->ceiling);
    }
    adapt->best_ns *= BEST_RISES;
    return adapt->rate;
}
