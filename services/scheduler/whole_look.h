/* How often a look from the beginning of an index is worth it. What a transaction left open by
 * someone else still sees stays in the indexes, before what counts, and each such look passes over
 * all of it. While it is short, every look is whole. Else it may take a twentieth of the time, and
 * others start from what it found, or wait. Short is told by its time where it does not matter that
 * a busy machine's takes longer, else by what it passed over. One thread's own. */
#ifndef SCHEDULER_WHOLE_LOOK_H
#define SCHEDULER_WHOLE_LOOK_H

#include <stdbool.h>
#include <stdint.h>

#define WHOLE_LOOK_PART 20

struct whole_look {
    bool is_long;
    int64_t took_ms;  /* the last one */
    int64_t ended_ms; /* monotonic */
};

/* At the latest most_ms after the last one. */
static inline bool whole_look_is_due(const struct whole_look *look, int64_t now_ms, int64_t most_ms)
{
    int64_t wait_ms = look->took_ms * WHOLE_LOOK_PART;

    return !look->is_long || now_ms - look->ended_ms >= (wait_ms < most_ms ? wait_ms : most_ms);
}

static inline void whole_look_ended(struct whole_look *look, bool is_long, int64_t began_ms,
                                    int64_t now_ms)
{
    look->is_long = is_long;
    look->took_ms = now_ms - began_ms;
    look->ended_ms = now_ms;
}

/* Short: not longer than short_ms. */
static inline void whole_look_done(struct whole_look *look, int64_t short_ms, int64_t began_ms,
                                   int64_t now_ms)
{
    whole_look_ended(look, now_ms - began_ms > short_ms, began_ms, now_ms);
}

#endif
