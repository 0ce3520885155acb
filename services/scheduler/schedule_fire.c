/* Fires schedules: a thread that looks every half second for those that are due, for queued runs
 * whose turn has come, and for runs whose jobs have ended.
 *
 * Exactly once, however many schedulers think that they lead: the schedule's row is locked, and the
 * row of the run (unique by schedule and due time), its jobs and the next due time are one
 * transaction. What dies in between has done nothing. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/policy.h"
#include "common/schedule_run.h"
#include "park.h"
#include "scheduler.h"

#define TICK_MS 500
#define DUE_MAX 200 /* of one round */

/* After the commit: all of this may be lost. */
static void announce(struct scheduler *scheduler, const struct schedule *schedule,
                     const struct schedule_outcome *outcome)
{
    size_t i;
    const json_t *id;

    if (outcome->run_id[0] == '\0')
        return;
    LOG(INFO, "schedule_fired", F_STR("schedule_id", schedule->id),
        F_STR("run_id", outcome->run_id), F_STR("status", outcome->status),
        F_U64("jobs", json_array_size(outcome->job_ids)), F_STR("reason", outcome->reason));
    publish_wake(); /* live clients are told */
    json_array_foreach(outcome->job_ids, i, id)
    {
        scheduler_announce_job(scheduler, json_string_value(id), "job.created");
    }
    if (json_array_size(outcome->job_ids) > 0)
        park_wake(scheduler->park);
}

struct firing {
    struct scheduler *scheduler;
    struct db *db;
    const char *id;
    const char *refused; /* second attempt: why the first one could not make its jobs */
    bool waits;          /* for an inventory that a worker reads now */
    struct schedule *schedule;
    struct schedule_outcome outcome;
};

static int check(struct schedule *schedule, struct error *err)
{
    struct field_problem problem = {0};

    return schedule_check(schedule, &problem, err);
}

static int begin_run(struct firing *firing, const struct schedule_plan *plan, struct error *err)
{
    struct submit_settings settings = scheduler_submit_settings(firing->scheduler);
    struct schedule_wish wish = {.due_s = plan->due_s, .reason = "", .refused = firing->refused};
    autofree char *late = NULL;

    if (plan->late_s > 0) {
        late = xasprintf("%lld s late: no scheduler was running", (long long)plan->late_s);
        wish.reason = late;
    }
    return schedule_run_begin(firing->db, &settings, firing->schedule, &wish, &firing->outcome,
                              err);
}

/* A policy takes the VMs that there are now. */
static int inventory_ready(const struct firing *firing, bool *out, struct error *err)
{
    *out = true;
    if (firing->schedule->policy_id[0] == '\0' || firing->refused != NULL)
        return 0;
    return policy_inventory_ready(firing->db, firing->schedule->fields, out, err);
}

/* In a transaction. */
static int fire_due(struct firing *firing, struct error *err)
{
    struct schedule_plan plan = {0};
    bool ready = true;

    if (schedule_store_load(firing->db, firing->id, SCHEDULE_TAKE, &firing->schedule, err) < 0) {
        if (err->code == ERR_NOT_FOUND)
            error_clear(err); /* another has fired it, or it was switched off */
        return err->code == ERR_NONE ? 0 : -1;
    }
    if (inventory_ready(firing, &ready, err) < 0)
        return -1;
    if (!ready) {
        firing->waits = true;
        return 0; /* the next round comes again */
    }
    if (check(firing->schedule, err) < 0 || schedule_plan(firing->schedule, &plan, err) < 0 ||
        schedule_runs_missed(firing->db, firing->schedule, &plan, err) < 0 ||
        (plan.fires && begin_run(firing, &plan, err) < 0))
        return -1;
    return schedule_store_set_next(firing->db, firing->schedule, plan.next_s, err);
}

/* In a transaction. */
static int fire_queued(struct firing *firing, struct error *err)
{
    struct submit_settings settings = scheduler_submit_settings(firing->scheduler);

    if (schedule_store_load(firing->db, firing->id, SCHEDULE_LOCK, &firing->schedule, err) < 0)
        return -1;
    if (check(firing->schedule, err) < 0)
        return -1;
    if (schedule_run_dequeue(firing->db, &settings, firing->schedule, firing->refused,
                             &firing->outcome, err) < 0)
        return -1;
    firing->waits = firing->outcome.needs_inventory;
    return 0;
}

static int in_transaction(struct firing *firing, int (*step)(struct firing *, struct error *),
                          struct error *err)
{
    int rc = -1;

    if (db_begin(firing->db, err) < 0)
        return -1;
    if (step(firing, err) < 0) {
        db_rollback(firing->db);
    } else {
        rc = db_commit(firing->db, err);
    }
    if (rc == 0 && firing->schedule != NULL)
        announce(firing->scheduler, firing->schedule, &firing->outcome);
    if (rc == 0 && firing->waits)
        park_wake(firing->scheduler->park);
    schedule_free(STEAL(firing->schedule));
    schedule_outcome_release(&firing->outcome);
    return rc;
}

/* Jobs that the database refuses must not keep the schedule from its next run: the second attempt
 * only says why. */
static int try_twice(struct scheduler *scheduler, struct db *db, const char *id,
                     int (*step)(struct firing *, struct error *), struct error *err)
{
    struct firing firing = {.scheduler = scheduler, .db = db, .id = id};
    struct firing again = {.scheduler = scheduler, .db = db, .id = id};
    struct error first = ERROR_NONE;

    if (in_transaction(&firing, step, &first) == 0)
        return 0;
    if (error_is_retryable(&first)) {
        *err = first;
        return -1;
    }
    again.refused = first.message;
    return in_transaction(&again, step, err);
}

/* One schedule that fails does not keep the others from theirs. The first error is kept. */
static int each(struct scheduler *scheduler, struct db *db, const json_t *ids,
                int (*step)(struct firing *, struct error *), struct error *err)
{
    const json_t *id;
    size_t i;

    json_array_foreach(ids, i, id)
    {
        struct error why = ERROR_NONE;
        if (try_twice(scheduler, db, json_string_value(id), step, &why) < 0 &&
            err->code == ERR_NONE) {
            *err = why;
            (void)error_wrap(err, "schedule '%s'", json_string_value(id));
        }
    }
    return err->code == ERR_NONE ? 0 : -1;
}

static int round_of_all(struct scheduler *scheduler, struct db *db, struct error *err)
{
    auto_json *due = NULL;
    auto_json *waiting = NULL;

    if (schedule_runs_settle(db, &scheduler->retry, NULL, err) < 0 ||
        schedule_runs_waiting(db, &waiting, err) < 0 ||
        each(scheduler, db, waiting, fire_queued, err) < 0)
        return -1;
    if (schedule_store_due(db, DUE_MAX, &due, err) < 0)
        return -1;
    return each(scheduler, db, due, fire_due, err);
}

void *schedule_fire_main(void *arg)
{
    struct scheduler *scheduler = arg;
    auto_db *db = scheduler_db(scheduler, "scheduler schedules");
    struct log_throttle throttle = {0};

    do {
        struct error err = ERROR_NONE;
        uint64_t held = 0;
        if (round_of_all(scheduler, db, &err) < 0 &&
            log_throttle_pass(&throttle, err.message, &held))
            LOG(WARN, "schedules_failed", F_ERR(&err));
    } while (!service_wait(scheduler->service, TICK_MS));
    return NULL;
}
