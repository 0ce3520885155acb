/* See seen.h. */
#include "seen.h"

#include <string.h>

#define MARK_EVERY_MS (SEEN_SETTLE_MS / (SEEN_MARKS / 2))

void seen_start(struct seen *seen, int64_t id)
{
    memset(seen, 0, sizeof *seen);
    seen->started = true;
    seen->base = seen->newest = id;
}

static size_t slot(int64_t id)
{
    return (size_t)(id % SEEN_WINDOW);
}

static void move_base(struct seen *seen, int64_t base)
{
    if (base - seen->base >= SEEN_WINDOW) {
        memset(seen->bits, 0, sizeof seen->bits);
    } else {
        for (int64_t id = seen->base + 1; id <= base; id++)
            seen->bits[slot(id) / 8] &= (uint8_t) ~(1U << (slot(id) % 8));
    }
    seen->base = base;
}

bool seen_is_far(const struct seen *seen, int64_t id)
{
    return !seen->started || id > seen->base + SEEN_WINDOW;
}

bool seen_has(const struct seen *seen, int64_t id)
{
    return id <= seen->base ||
           (!seen_is_far(seen, id) && (seen->bits[slot(id) / 8] & (1U << (slot(id) % 8))) != 0);
}

bool seen_add(struct seen *seen, int64_t id, int64_t now_ms)
{
    assert(seen->started);
    if (id <= seen->base)
        return false;
    if (seen_is_far(seen, id))
        move_base(seen, id - SEEN_WINDOW);
    if (seen_has(seen, id))
        return false;
    seen->bits[slot(id) / 8] |= (uint8_t)(1U << (slot(id) % 8));
    if (id > seen->newest)
        seen->newest = id;
    (void)seen_settle(seen, now_ms);
    return true;
}

int64_t seen_settle(struct seen *seen, int64_t now_ms)
{
    size_t old = 0;

    if (seen->mark_count == 0 ||
        (now_ms - seen->marks[seen->mark_count - 1].at_ms >= MARK_EVERY_MS &&
         seen->mark_count < SEEN_MARKS)) {
        seen->marks[seen->mark_count].at_ms = now_ms;
        seen->marks[seen->mark_count].newest = seen->newest;
        seen->mark_count++;
    }
    while (old < seen->mark_count && now_ms - seen->marks[old].at_ms >= SEEN_SETTLE_MS)
        old++;
    if (old > 0) {
        if (seen->marks[old - 1].newest > seen->base)
            move_base(seen, seen->marks[old - 1].newest);
        seen->mark_count -= old;
        memmove(seen->marks, seen->marks + old, seen->mark_count * sizeof seen->marks[0]);
    }
    return seen->base;
}

int64_t seen_recent(const struct seen *seen, int64_t age_ms, int64_t now_ms)
{
    size_t i = seen->mark_count;

    while (i > 0 && now_ms - seen->marks[i - 1].at_ms < age_ms)
        i--;
    return i > 0 && seen->marks[i - 1].newest > seen->base ? seen->marks[i - 1].newest : seen->base;
}
