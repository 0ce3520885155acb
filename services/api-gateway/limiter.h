/* How often a key (client address, or user and address) may do something: token buckets in a
 * bounded table. A full table forgets who was seen longest ago. Thread-safe. */
#ifndef GATEWAY_LIMITER_H
#define GATEWAY_LIMITER_H

#include "common/base.h"

#define LIMITER_KEY_MAX     256
#define LIMITER_ENTRIES_MAX 4096 /* 1.2 MiB */

struct limiter;

/* per_min tokens a minute, at most as many at once; 0: no limit. */
struct limiter *limiter_new(uint32_t per_min);
void limiter_free(struct limiter *limiter);
/* Takes a token: 0. None left: how many seconds until there is one (at least 1). Longer keys are
 * cut. now_ms: monotonic. */
uint32_t limiter_take(struct limiter *limiter, const char *key, int64_t now_ms);

#endif
