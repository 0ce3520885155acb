/* See park.h. */
#include "park.h"

#include <string.h>
#include <time.h>

#include "claim.h"
#include "common/clock.h"
#include "gate.h"

#define NONE_AGAIN_MS 0
#define BUSY_AGAIN_MS 1000 /* too many parked, or we stop: come back a little later */
#define RETRY_MS      200  /* the database is away: no busy loop */

struct parked {
    struct bus_request *request;
    int64_t until_ms;
    bool seen;   /* its worker's row is up to date */
    bool first;  /* of a worker that was not up: it waits for a sign that we are here */
    bool passed; /* in this round: served, or nothing fits its wish */
};

#define LEFT_MAX       64  /* a request may overtake its instance's farewell by moments only */
#define LEFT_NAME_SIZE 160 /* instances are "<name>-<host>-<pid>-<4 hex>" */

struct park {
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t changed;
    bool woken;
    size_t taken; /* items that the dispatcher is looking at */
    struct parked items[PARK_REQUESTS_MAX];
    size_t count;
    char left[LEFT_MAX][LEFT_NAME_SIZE]; /* instances that said they leave; a ring */
    size_t left_next;
};

struct park *park_new(void)
{
    struct park *park = xcalloc(1, sizeof *park);
    pthread_condattr_t attributes;

    (void)pthread_mutex_init(&park->mutex, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&park->changed, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    return park;
}

static const Hypersdk__V1__LeaseRequest *body_of(const struct bus_request *request)
{
    return bus_request_envelope(request)->lease_request;
}

static void reply_none(struct bus_request *request, uint32_t again_ms)
{
    struct bus_envelope_store store;
    Hypersdk__V1__NoTask body;
    bus_envelope reply;

    hypersdk__v1__no_task__init(&body);
    body.retry_after_ms = again_ms;
    bus_envelope_init(&reply, &store, "scheduler", NULL);
    reply.body_case = HYPERSDK__V1__ENVELOPE__BODY_NO_TASK;
    reply.no_task = &body;
    bus_request_reply(request, &reply);
}

static bool same_slot(const Hypersdk__V1__LeaseRequest *a, const Hypersdk__V1__LeaseRequest *b)
{
    return a->class_ == b->class_ && a->slot == b->slot && strcmp(a->instance, b->instance) == 0;
}

/* Takes one parked request out: of this slot, or any of the instance; NULL: there is none. */
static struct bus_request *take_one(struct park *park, const Hypersdk__V1__LeaseRequest *by,
                                    bool any_slot)
{
    LOCK_SCOPE(&park->mutex);
    for (size_t i = 0; i < park->count; i++) {
        struct bus_request *request = park->items[i].request;
        const Hypersdk__V1__LeaseRequest *other = body_of(request);
        if (any_slot ? strcmp(other->instance, by->instance) == 0 : same_slot(other, by)) {
            memmove(&park->items[i], &park->items[i + 1],
                    (--park->count - i) * sizeof *park->items); /* first come, first served */
            return request;
        }
    }
    return NULL;
}

void park_dismiss(struct park *park, const Hypersdk__V1__LeaseRequest *by, bool any_slot)
{
    struct bus_request *old;

    if (any_slot) {
        LOCK_SCOPE(&park->mutex);
        (void)snprintf(park->left[park->left_next++ % LEFT_MAX], LEFT_NAME_SIZE, "%s",
                       by->instance);
    }
    while ((old = take_one(park, by, any_slot)) != NULL)
        reply_none(old, NONE_AGAIN_MS);
}

/* Has the worker of this request said that it leaves? Under the lock. */
static bool has_left(const struct park *park, const struct bus_request *request)
{
    for (size_t i = 0; i < LEFT_MAX; i++) {
        if (strcmp(park->left[i], body_of(request)->instance) == 0)
            return true;
    }
    return false;
}

void park_add(struct park *park, struct bus_request *request)
{
    bool full;
    bool left;

    park_dismiss(park, body_of(request), false);
    (void)pthread_mutex_lock(&park->mutex);
    left = has_left(park, request);
    full = park->count == PARK_REQUESTS_MAX;
    if (!full && !left) {
        park->items[park->count++] =
            (struct parked){.request = request, .until_ms = clock_mono_ms() + PARK_MS};
        park->woken = true;
        (void)pthread_cond_signal(&park->changed);
    }
    (void)pthread_mutex_unlock(&park->mutex);
    if (full || left)
        reply_none(request, BUSY_AGAIN_MS);
}

void park_wake(struct park *park)
{
    LOCK_SCOPE(&park->mutex);
    park->woken = true;
    (void)pthread_cond_signal(&park->changed);
}

/* ---- the dispatcher ---- */

/* Takes the whole list out, so that nothing is locked over I/O; what is not served goes back. */
static size_t take_all(struct park *park, struct parked *out)
{
    size_t count;

    LOCK_SCOPE(&park->mutex);
    count = park->count;
    memcpy(out, park->items, count * sizeof *out);
    park->count = 0;
    park->taken = count;
    return count;
}

static void looked(struct park *park)
{
    LOCK_SCOPE(&park->mutex);
    park->taken = 0;
}

bool park_busy(struct park *park)
{
    LOCK_SCOPE(&park->mutex);
    return park->count + park->taken > 0;
}

static void put_back(struct park *park, const struct parked *item)
{
    struct bus_request *loser = NULL;

    (void)pthread_mutex_lock(&park->mutex);
    for (size_t i = 0; i < park->count; i++) {
        if (same_slot(body_of(park->items[i].request), body_of(item->request)))
            loser = item->request; /* the worker has asked again meanwhile */
    }
    if (has_left(park, item->request)) /* while we looked */
        loser = item->request;
    if (loser == NULL && park->count < PARK_REQUESTS_MAX) {
        park->items[park->count++] = *item;
    } else {
        loser = item->request;
    }
    (void)pthread_mutex_unlock(&park->mutex);
    if (loser != NULL)
        reply_none(loser, NONE_AGAIN_MS);
}

struct round { /* one look at all parked requests */
    struct scheduler *scheduler;
    struct db *db;
    struct gate gate;
    struct parked *items; /* request NULL: answered */
    size_t count;
    size_t together; /* leases per statement; 1: one of several is at fault */
};

struct batch {
    struct claims *sets[CLAIM_BATCH_MAX]; /* one after the other, for items */
    size_t set_count;
    size_t items[CLAIM_BATCH_MAX];
    size_t count;
};

static bool is_open(const struct round *round, size_t i)
{
    const struct parked *item = &round->items[i];

    return item->request != NULL && !item->passed && !bus_request_is_orphan(item->request) &&
           gate_lets(&round->gate, body_of(item->request));
}

/* The first open request, and those behind it with the same wish. */
static size_t gather(const struct round *round, size_t most, size_t out[CLAIM_BATCH_MAX])
{
    size_t count = 0;

    for (size_t i = 0; i < round->count && count < most; i++) {
        if (is_open(round, i) &&
            (count == 0 || claim_same_wish(body_of(round->items[out[0]].request),
                                           body_of(round->items[i].request))))
            out[count++] = i;
    }
    return count;
}

static void pass_wish(struct round *round, size_t like)
{
    const Hypersdk__V1__LeaseRequest *wish = body_of(round->items[like].request);

    for (size_t i = 0; i < round->count; i++) {
        struct parked *item = &round->items[i];
        if (item->request != NULL && claim_same_wish(wish, body_of(item->request)))
            item->passed = true;
    }
}

static int fill_batch(struct round *round, struct batch *batch, char out_task[64],
                      struct error *err)
{
    size_t found[CLAIM_BATCH_MAX];
    struct claim_wish wish;

    while ((wish.count = gather(round, min_u64(CLAIM_BATCH_MAX - batch->count, round->together),
                                found)) > 0) {
        auto_claims *claims = NULL;
        for (size_t i = 0; i < wish.count; i++)
            wish.requests[i] = body_of(round->items[found[i]].request);
        if (claim_tasks(round->scheduler, round->db, &wish, &claims, out_task, err) < 0)
            return -1;
        for (size_t i = 0; i < claims_count(claims); i++) {
            batch->items[batch->count++] = found[i];
            round->items[found[i]].passed = true;
        }
        if (claims_are_last(claims))
            pass_wish(round, found[0]);
        if (claims_count(claims) == 0)
            continue;
        batch->sets[batch->set_count++] = STEAL(claims);
    }
    return 0;
}

static void answer_batch(struct round *round, const struct batch *batch)
{
    size_t next = 0;

    for (size_t s = 0; s < batch->set_count; s++) {
        for (size_t i = 0; i < claims_count(batch->sets[s]); i++) {
            struct parked *item = &round->items[batch->items[next++]];
            claim_reply(round->scheduler, batch->sets[s], i, STEAL(item->request));
        }
    }
    for (size_t s = 0; s < batch->set_count; s++)
        claims_tell(round->scheduler, batch->sets[s]);
}

static int commit_batch(struct round *round, struct batch *batch, char out_task[64],
                        struct error *err)
{
    int rc = db_begin(round->db, err);

    if (rc == 0) {
        rc = fill_batch(round, batch, out_task, err);
        if (rc == 0 && batch->count > 0) {
            rc = db_commit(round->db, err);
        } else {
            db_rollback(round->db);
        }
    }
    if (rc == 0)
        answer_batch(round, batch);
    for (size_t i = 0; rc < 0 && i < batch->count; i++)
        round->items[batch->items[i]].passed = false;
    for (size_t s = 0; s < batch->set_count; s++)
        claims_free(batch->sets[s]);
    return rc;
}

/* Leases in batches until every request was looked at. A task that cannot be handed out fails, and
 * its batch is tried again without it. */
static int claim_all(struct round *round, struct error *err)
{
    size_t first[CLAIM_BATCH_MAX];

    while (gather(round, 1, first) > 0) {
        struct batch batch = {.count = 0};
        struct error why = ERROR_NONE;
        char task[64] = "";
        if (commit_batch(round, &batch, task, &why) == 0)
            continue;
        if (error_is_retryable(&why) || (task[0] == '\0' && round->together == 1)) {
            *err = why;
            return -1;
        }
        round->together = 1;
        if (task[0] != '\0' && claim_give_up(round->scheduler, round->db, task, &why, err) < 0)
            return -1;
    }
    return 0;
}

struct new_ones { /* requests whose workers' rows are to be written */
    const Hypersdk__V1__LeaseRequest *requests[PARK_REQUESTS_MAX];
    size_t which[PARK_REQUESTS_MAX];
    size_t count;
};

static void find_new_ones(const struct round *round, struct new_ones *out)
{
    out->count = 0;
    for (size_t i = 0; i < round->count; i++) {
        if (round->items[i].seen)
            continue;
        out->which[out->count] = i;
        out->requests[out->count++] = body_of(round->items[i].request);
    }
}

static void note_workers(struct round *round, const struct new_ones *ones, const PGresult *workers)
{
    bool first[PARK_REQUESTS_MAX];

    claim_first_ones(workers, ones->requests, ones->count, first);
    for (size_t i = 0; i < ones->count; i++) {
        struct parked *item = &round->items[ones->which[i]];
        item->seen = true;
        item->first = first[i];
        if (first[i])
            scheduler_announce_worker(round->scheduler, ones->requests[i]->instance, "up");
    }
}

/* Who asks, and who gets nothing now: one round trip for all of it. */
static int prepare(struct round *round, struct error *err)
{
    struct new_ones ones;
    auto_pgresult *workers = NULL;

    find_new_ones(round, &ones);
    if (db_begin(round->db, err) < 0)
        return -1;
    if ((ones.count > 0 &&
         claim_workers(round->db, ones.requests, ones.count, &workers, err) < 0) ||
        gate_load(round->db, &round->gate, err) < 0) {
        db_rollback(round->db);
        return -1;
    }
    if (db_commit(round->db, err) < 0)
        return -1;
    if (workers != NULL)
        note_workers(round, &ones, workers);
    return 0;
}

static int look(struct scheduler *scheduler, struct db *db, struct parked *items, size_t count,
                struct error *err)
{
    struct round round = {.scheduler = scheduler,
                          .db = db,
                          .items = items,
                          .count = count,
                          .together = CLAIM_BATCH_MAX};
    bool stops = service_stopping(scheduler->service);
    int rc = stops || count == 0 ? 0 : prepare(&round, err);
    int64_t now = clock_mono_ms();

    if (rc == 0 && !stops)
        rc = claim_all(&round, err);
    gate_release(&round.gate);
    for (size_t i = 0; i < count; i++) {
        items[i].passed = false;
        if (items[i].request == NULL)
            continue;
        if (stops || items[i].first || now >= items[i].until_ms ||
            bus_request_is_orphan(items[i].request)) {
            reply_none(items[i].request, stops ? BUSY_AGAIN_MS : NONE_AGAIN_MS);
        } else {
            put_back(scheduler->park, &items[i]);
        }
    }
    return rc;
}

static void wait_for_work(struct park *park, int64_t ms)
{
    int64_t until_ms = clock_mono_ms() + ms;
    struct timespec until = {until_ms / 1000, until_ms % 1000 * 1000000};

    LOCK_SCOPE(&park->mutex);
    while (!park->woken && pthread_cond_timedwait(&park->changed, &park->mutex, &until) == 0)
        continue;
    park->woken = false;
}

static int work(struct scheduler *scheduler, struct db *db, struct parked *items,
                int64_t *out_again_ms, struct error *err)
{
    size_t count = take_all(scheduler->park, items);
    int rc = look(scheduler, db, items, count, err);

    looked(scheduler->park);
    return rc < 0 ? rc : scheduler_repeat_controls(scheduler, db, out_again_ms, err);
}

void *park_main(void *arg)
{
    struct scheduler *scheduler = arg;
    auto_db *db = scheduler_queue_db(scheduler, "scheduler dispatch");
    struct parked *items = xcalloc(PARK_REQUESTS_MAX, sizeof *items);
    struct log_throttle throttle = {0};
    int64_t again_ms = INT64_MAX;

    for (;;) {
        struct error err = ERROR_NONE;
        uint64_t held = 0;
        int64_t half_ms = scheduler->config.poll_interval_ms / 2;
        int64_t poll_ms = half_ms + clock_backoff_ms(0, half_ms, half_ms);
        wait_for_work(scheduler->park, again_ms < poll_ms ? again_ms : poll_ms);
        if (work(scheduler, db, items, &again_ms, &err) == 0)
            continue;
        if (log_throttle_pass(&throttle, err.message, &held))
            LOG(WARN, "dispatch_failed", F_ERR(&err));
        clock_sleep_ms(RETRY_MS);
    }
    return NULL;
}
