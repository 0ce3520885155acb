/* Time: monotonic for durations, wall clock for display and stored stamps. */
#ifndef COMMON_CLOCK_H
#define COMMON_CLOCK_H

#include "common/base.h"

#define CLOCK_RFC3339_SIZE 25 /* 2026-03-01T02:03:05.123Z and the NUL */

int64_t clock_mono_ms(void);
int64_t clock_mono_ns(void);
/* Milliseconds since 1970 UTC. */
int64_t clock_wall_ms(void);
void clock_rfc3339(int64_t wall_ms, char out[CLOCK_RFC3339_SIZE]);
void clock_rfc3339_now(char out[CLOCK_RFC3339_SIZE]);
/* Sleeps, restarting after signals; for back-off in worker threads only. */
void clock_sleep_ms(int64_t ms);
/* Full-jitter exponential back-off: random in [0, min(max_ms, base_ms * 2^attempt)]. */
int64_t clock_backoff_ms(uint32_t attempt, int64_t base_ms, int64_t max_ms);

#endif
