/* Adaptive bandwidth: a rate between floor and ceiling that follows the results of transfers.
 *
 * It starts halfway. Every RATE_ADAPT_MS: 20 % more when hardly any transfer fails and answers come
 * as quickly as ever; 20 % less when one in ten fails (errors, throttling), or when answers take
 * twice as long as they did at best. Pure: time comes from the caller, who also locks. */
#ifndef EXPORTER_RATE_ADAPT_H
#define EXPORTER_RATE_ADAPT_H

#include "common/base.h"

#define RATE_ADAPT_MS INT64_C(10000)

struct rate_adapt {
    uint64_t floor; /* bytes per second */
    uint64_t ceiling;
    uint64_t rate;        /* now */
    double failing;       /* moving average: 0 = all went well, 1 = none did */
    double latency_ns;    /* moving average of the time to the first byte */
    double best_ns;       /* the shortest that average has been; rises slowly */
    unsigned int results; /* since the last change */
    int64_t next_ms;
};

/* 0 < floor <= ceiling. */
void rate_adapt_init(struct rate_adapt *adapt, uint64_t floor, uint64_t ceiling, int64_t now_ms);
/* One transfer is through. latency_ns < 0: not known. */
void rate_adapt_note(struct rate_adapt *adapt, bool ok, int64_t latency_ns);
/* The rate that holds now; changes it when it is time. */
uint64_t rate_adapt_rate(struct rate_adapt *adapt, int64_t now_ms);

#endif
