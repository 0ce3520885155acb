/* How often a look from the beginning of an index is worth it. What a transaction left open by
 * someone else still sees stays in the indexes, before what counts, and each such look passes over
 * all of it. While that is quick, every look is whole. Else it may take a twentieth of the time,
 * and others start from what it found. One thread's own. */
#ifndef SCHEDULER_WHOLE_LOOK_H
#define SCHEDULER_WHOLE_LOOK_H

#include <stdbool.h>
#include <stdint.h>

#define WHOLE_LOOK_QUICK_MS 50 /* more than a busy machine takes for a quick one */
#define WHOLE_LOOK_PART     20

struct whole_look {
    int64_t took_ms;  /* the last one */
    int64_t ended_ms; /* monotonic */
};

static inline bool whole_look_is_quick(const struct whole_look *look)
{
    return look->took_ms <= WHOLE_LOOK_QUICK_MS;
}

/* At the latest most_ms after the last one. */
static inline bool whole_look_is_due(const struct whole_look *look, int64_t now_ms, int64_t most_ms)
{
    int64_t wait_ms = look->took_ms * WHOLE_LOOK_PART;

    return whole_look_is_quick(look) ||
           now_ms - look->ended_ms >= (wait_ms < most_ms ? wait_ms : most_ms);
}

static inline void whole_look_done(struct whole_look *look, int64_t began_ms, int64_t now_ms)
{
    look->took_ms = now_ms - began_ms;
    look->ended_ms = now_ms;
}

#endif
