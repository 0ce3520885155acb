/* The thread that looks at the workflow runs under way. Everything is decided and stored by
 * common/workflow_store.c under a lock on the run's row, so a second leader does no harm, and what
 * a killed one left undone is done by the next look. */
#include "common/autos.h"
#include "common/workflow_store.h"
#include "park.h"
#include "scheduler.h"

static const char ACTIVE[] = "SELECT id FROM workflow_runs WHERE status IN"
                             " ('running', 'paused', 'cancelling') ORDER BY seq LIMIT 2000";

/* One that cannot be looked at does not keep the others from it. */
static int look_at_all(struct scheduler *scheduler, struct db *db, struct error *err)
{
    struct submit_settings settings = scheduler_submit_settings(scheduler);
    auto_pgresult *rows = NULL;
    bool any = false;

    if (db_exec(db, ACTIVE, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++) {
        struct error why = ERROR_NONE;
        bool started = false;
        if (workflow_run_look(db, &settings, db_text(rows, i, 0), &started, &why) < 0 &&
            err->code == ERR_NONE)
            *err = why;
        any = any || started;
    }
    if (any) {
        park_wake(scheduler->park);
        publish_wake();
    }
    return err->code == ERR_NONE ? 0 : -1;
}

void *workflows_main(void *arg)
{
    struct scheduler *scheduler = arg;
    auto_db *db = scheduler_db(scheduler, "scheduler workflows");
    struct log_throttle throttle = {0};

    do {
        struct error err = ERROR_NONE;
        uint64_t held = 0;
        if (look_at_all(scheduler, db, &err) < 0 &&
            log_throttle_pass(&throttle, err.message, &held))
            LOG(WARN, "workflows_failed", F_ERR(&err));
    } while (!scheduler_wait_poll(scheduler));
    return NULL;
}
