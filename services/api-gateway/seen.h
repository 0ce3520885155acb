/* Which rows of job_events were published already. Ids rise, but transactions commit out of order:
 * a lower id may turn up after a higher one. So the newest ids are remembered one by one, and only
 * what is older than SEEN_SETTLE_MS counts as settled. One owner, no locking. */
#ifndef GATEWAY_SEEN_H
#define GATEWAY_SEEN_H

#include "common/base.h"

#define SEEN_WINDOW    1048576 /* ids remembered one by one: 17,000 a second until they settle */
#define SEEN_SETTLE_MS 60000   /* no transaction stays open longer (statement timeout 30 s) */
#define SEEN_MARKS     64

struct seen {
    bool started;
    int64_t base; /* ids up to here are settled */
    int64_t newest;
    uint8_t bits[SEEN_WINDOW / 8]; /* of base + 1 ... base + SEEN_WINDOW, at id % SEEN_WINDOW */
    struct {
        int64_t at_ms;
        int64_t newest;
    } marks[SEEN_MARKS]; /* how far we were when */
    size_t mark_count;
};

/* Everything up to id was before our time. */
void seen_start(struct seen *seen, int64_t id);
/* true: it is new, and now seen. An id further ahead than the window moves the window. */
bool seen_add(struct seen *seen, int64_t id, int64_t now_ms);
/* Was it added, or is it settled? */
bool seen_has(const struct seen *seen, int64_t id);
/* Would the id be beyond the window? Then it is not believed without the database. */
bool seen_is_far(const struct seen *seen, int64_t id);
/* To be called regularly: lets old ids settle. Rows with id > the result are to be looked at. */
int64_t seen_settle(struct seen *seen, int64_t now_ms);
/* The newest id of at least age_ms ago (at most SEEN_SETTLE_MS): rows with id > the result are
 * enough for a look that a look at everything not settled follows later. */
int64_t seen_recent(const struct seen *seen, int64_t age_ms, int64_t now_ms);

#endif
