/* What lost messages would leave undone: leases that ran out, cancels that nobody heard, workers
 * that are gone, control tasks that nobody fetched; the chain over the audit log. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "archive.h"
#include "cleanup_schedule.h"
#include "common/autos.h"
#include "common/clock.h"
#include "common/job_store.h"
#include "common/worker.h"
#include "live.h"
#include "park.h"

#define SECOND_MS         1000
#define EVER_MS           INT64_C(1000000000000) /* 31 years */
#define EXPIRED_WHOLE_MS  10000
#define EXPIRED_RECENT_MS 5000
#define EXPIRED_MAX       200
#define STOPPED_MS        1000 /* so late those are told again that must stop */
#define CONTROLS_MS       50   /* not more often: claims come before */
#define RULES_MS          2000
#define SHORT_MS          5  /* of a look: see whole_look.h */
#define RULES_SHORT_MS    20 /* those are seven statements */

/* $1: as long after lease_until as a worker stops writing before it, clocks of one machine each.
 * $2: not longer ago: from the beginning all that an old snapshot still sees is passed over.
 * What someone else holds locked is looked at in the next round: each would be waited for. */
static const char EXPIRED[] = "SELECT id FROM tasks WHERE state IN ('leased', 'finishing')"
                              " AND lease_until < now() - $1::bigint * interval '1 millisecond'"
                              " AND lease_until > now() - $2::bigint * interval '1 millisecond'"
                              " ORDER BY lease_until LIMIT $3::int FOR NO KEY UPDATE SKIP LOCKED";

static const char STOPPED[] =
    "SELECT t.id, t.cancel, coalesce(j.status = 'paused' OR " SCHEDULER_SQL_WINDOW_OVER
    ", false) FROM tasks t"
    " LEFT JOIN jobs j ON j.id = t.job_id LEFT JOIN workers w ON w.instance = t.worker"
    " WHERE t.state IN ('leased', 'finishing') AND t.lease_until > now() - interval '1 minute'"
    " AND (t.cancel OR j.status = 'paused'"
    "  OR " SCHEDULER_SQL_WINDOW_OVER
    " OR (t.class = 'transfer' AND w.drained_at IS NOT NULL)) LIMIT 500";

/* Quickly, and once or twice more; a renewal brings it anyway. */
static const char LIMITED[] =
    "SELECT t.id, " SCHEDULER_SQL_BANDWIDTH " FROM tasks t WHERE state IN ('leased', 'finishing')"
    " AND (t.spec->'bandwidth'->>'stamp_ms')::bigint"
    "     > extract(epoch FROM now() - interval '5 seconds') * 1000"
    " AND lease_until > now() - interval '1 minute' LIMIT 500";

/* A parked request comes again every 20 s, a renewal every 5 s. */
static const char WORKERS_DOWN[] = "UPDATE workers SET state = 'down' WHERE state <> 'down'"
                                   " AND seen_at < now() - interval '45 seconds'"
                                   " RETURNING instance";

static const char WORKERS_FORGET[] = "DELETE FROM workers WHERE state = 'down'"
                                     " AND seen_at < now() - interval '1 day'";

/* One that has records may have something outside that they name: it stays until it has ended. */
static const char SWEEP[] =
    "DELETE FROM tasks WHERE id IN (SELECT t.id FROM tasks t WHERE t.expires_at < now()"
    " AND (t.state IN ('done', 'cancelled', 'failed')"
    "  OR NOT EXISTS (SELECT 1 FROM task_records r WHERE r.task_id = t.id)) LIMIT 500)";

static const char SWEEP_RELEASED[] =
    "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE kind = 'release'"
    " AND state IN ('done', 'cancelled', 'failed') AND updated_at < now() - interval '1 day'"
    " LIMIT 500)";

/* A row is sealed when its transaction is older than every open one: then no further row can come
 * in before it. By transaction, not by id: ids are drawn in another order than commits come. The
 * unique `prev` keeps two leaders from forking the chain. */
static const char SEAL[] =
    "WITH last AS (SELECT coalesce((SELECT to_xid FROM audit.audit_seal ORDER BY id DESC LIMIT 1),"
    "   '0'::xid8) AS xid, coalesce((SELECT digest FROM audit.audit_seal ORDER BY id DESC LIMIT 1),"
    "   ''::bytea) AS digest),"
    " bound AS (SELECT least(pg_snapshot_xmin(pg_current_snapshot()), (SELECT a.xid"
    "   FROM audit.audit_log a WHERE a.xid >= (SELECT xid FROM last) ORDER BY a.xid"
    "   OFFSET 20000 LIMIT 1)) AS xid),"
    " sealed AS (SELECT a.* FROM audit.audit_log a WHERE a.xid >= (SELECT xid FROM last)"
    "   AND a.xid < (SELECT xid FROM bound))"
    " INSERT INTO audit.audit_seal (from_id, to_id, to_xid, rows, digest, prev)"
    " SELECT min(s.id), max(s.id), (SELECT xid FROM bound), count(*), sha256((SELECT digest"
    "  FROM last) || convert_to(string_agg(concat_ws('|', s.id, extract(epoch FROM s.at),"
    "  s.\"user\", s.action, s.resource, s.result, s.ip, s.details::text, s.request_id, s.method,"
    "  s.path, s.status, s.duration_ms, s.user_agent), E'\\n' ORDER BY s.xid, s.id), 'UTF8')),"
    "  (SELECT digest FROM last) FROM sealed s HAVING count(*) > 0 ON CONFLICT (prev) DO NOTHING";

static int reap_one(struct scheduler *scheduler, struct db *db, const char *task_id,
                    struct error *err)
{
    struct job_store_event event = {
        .task_id = task_id,
        .actor = "scheduler",
        .losses_max = scheduler->config.losses_max,
        .input = {.event = JOB_EVENT_LEASE_LOST},
    };
    struct job_decision decision;

    if (job_store_apply(db, &event, &decision, err) < 0)
        return -1;
    if (!decision.allowed)
        return 0; /* it was renewed meanwhile */
    LOG(WARN, "lease_lost", F_STR("task_id", task_id), F_U64("epoch", decision.row.epoch),
        F_U64("losses", decision.row.losses));
    live_end(scheduler->live, task_id);
    park_wake(scheduler->park);
    publish_wake();
    return 0;
}

/* Keeps the first of several errors. */
static void note(struct error *first, int rc, const struct error *err)
{
    if (rc < 0 && first->code == ERR_NONE)
        *first = *err;
}

/* One task that cannot be taken back does not keep the others from it. */
static int reap(struct scheduler *scheduler, struct db *db, struct error *err)
{
    auto_pgresult *rows = NULL;
    int64_t began_ms = clock_mono_ms();
    bool whole = whole_look_is_due(&scheduler->expired, began_ms, EXPIRED_WHOLE_MS);
    char margin[24];
    char longest[24];
    char most[24];

    (void)snprintf(margin, sizeof margin, "%d", WORKER_LEASE_MARGIN_MS);
    (void)snprintf(most, sizeof most, "%d", EXPIRED_MAX);
    (void)snprintf(longest, sizeof longest, "%" PRId64,
                   whole ? EVER_MS : WORKER_LEASE_MARGIN_MS + EXPIRED_RECENT_MS);
    if (db_exec(db, EXPIRED, DB_PARAMS(margin, longest, most), &rows, err) < 0)
        return -1;
    if (whole && PQntuples(rows) < EXPIRED_MAX) /* else there are more: again */
        whole_look_done(&scheduler->expired, SHORT_MS, began_ms, clock_mono_ms());
    for (int i = 0; i < PQntuples(rows); i++) {
        struct error why = ERROR_NONE;
        note(err, reap_one(scheduler, db, db_text(rows, i, 0), &why), &why);
    }
    return err->code == ERR_NONE ? 0 : -1;
}

static int find_controls(struct db *db, PGresult **out_stopped, PGresult **out_limited,
                         struct error *err)
{
    if (db_begin(db, err) < 0)
        return -1;
    if (db_later(db, STOPPED, DB_NO_PARAMS, out_stopped, err) < 0 ||
        db_later(db, LIMITED, DB_NO_PARAMS, out_limited, err) < 0) {
        db_rollback(db);
        return -1;
    }
    return db_commit(db, err);
}

int scheduler_repeat_controls(struct scheduler *scheduler, struct db *db, int64_t *out_again_ms,
                              struct error *err)
{
    auto_pgresult *stopped = NULL;
    auto_pgresult *limited = NULL;
    Hypersdk__V1__TaskControl control;
    int64_t began_ms = clock_mono_ms();
    int64_t since_ms = began_ms - scheduler->stopped.ended_ms;

    *out_again_ms = since_ms < CONTROLS_MS ? CONTROLS_MS - since_ms : INT64_MAX;
    if (since_ms < CONTROLS_MS || !whole_look_is_due(&scheduler->stopped, began_ms, STOPPED_MS))
        return 0;
    if (find_controls(db, &stopped, &limited, err) < 0)
        return -1;
    whole_look_done(&scheduler->stopped, SHORT_MS, began_ms, clock_mono_ms());
    for (int i = 0; i < PQntuples(stopped); i++) {
        scheduler_control(&control,
                          db_bool(stopped, i, 1)   ? HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_CANCEL
                          : db_bool(stopped, i, 2) ? HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_PAUSE
                                                   : HYPERSDK__V1__CONTROL_KIND__CONTROL_KIND_DRAIN,
                          db_text(stopped, i, 0));
        scheduler_announce_control(scheduler, &control);
    }
    for (int i = 0; i < PQntuples(limited); i++) {
        struct scheduler_bandwidth bandwidth = scheduler_bandwidth_of(limited, i, 1);
        scheduler_control_rate(&control, db_text(limited, i, 0), &bandwidth);
        scheduler_announce_control(scheduler, &control);
    }
    return 0;
}

static int watch_workers(struct scheduler *scheduler, struct db *db, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, WORKERS_DOWN, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++) {
        LOG(WARN, "worker_down", F_STR("worker", db_text(rows, i, 0)));
        scheduler_announce_worker(scheduler, db_text(rows, i, 0), "down");
    }
    return db_exec(db, WORKERS_FORGET, DB_NO_PARAMS, NULL, err);
}

static int sweep(struct scheduler *scheduler, struct db *db, struct error *err)
{
    (void)scheduler;
    if (db_exec(db, SWEEP, DB_NO_PARAMS, NULL, err) < 0)
        return -1;
    return db_exec(db, SWEEP_RELEASED, DB_NO_PARAMS, NULL, err);
}

static int seal_audit(struct scheduler *scheduler, struct db *db, struct error *err)
{
    (void)scheduler;
    return db_exec(db, SEAL, DB_NO_PARAMS, NULL, err);
}

static int apply_rules(struct scheduler *scheduler, struct db *db, struct error *err)
{
    struct error why = ERROR_NONE;
    int64_t began_ms = clock_mono_ms();

    if (!whole_look_is_due(&scheduler->ruled, began_ms, RULES_MS))
        return 0;
    note(err, scheduler_apply_rules(scheduler, db, &why), &why);
    why = (struct error)ERROR_NONE;
    note(err, scheduler_apply_windows(scheduler, db, &why), &why);
    whole_look_done(&scheduler->ruled, RULES_SHORT_MS, began_ms, clock_mono_ms());
    return err->code == ERR_NONE ? 0 : -1;
}

/* Every step is tried: none may starve another. */
static int tidy(struct scheduler *scheduler, struct db *db, bool each_second, struct error *err)
{
    int (*const steps[])(struct scheduler *, struct db *,
                         struct error *) = {reap,
                                            watch_workers,
                                            apply_rules,
                                            archive_run,
                                            each_second ? cleanup_schedule_run : NULL,
                                            each_second ? sweep : NULL,
                                            each_second ? scheduler_explain : NULL,
                                            each_second ? seal_audit : NULL};

    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        struct error why = ERROR_NONE;
        if (steps[i] != NULL)
            note(err, steps[i](scheduler, db, &why), &why);
    }
    return err->code == ERR_NONE ? 0 : -1;
}

void *reaper_main(void *arg)
{
    struct scheduler *scheduler = arg;
    auto_db *db = scheduler_db(scheduler, "scheduler reaper");
    struct log_throttle throttle = {0};
    int64_t second_ms = 0;

    do {
        struct error err = ERROR_NONE;
        uint64_t held = 0;
        int64_t now = clock_mono_ms();
        bool each_second = now - second_ms >= SECOND_MS;
        if (each_second)
            second_ms = now;
        if (tidy(scheduler, db, each_second, &err) < 0 &&
            log_throttle_pass(&throttle, err.message, &held))
            LOG(WARN, "reaper_failed", F_ERR(&err));
    } while (!scheduler_wait_poll(scheduler));
    return NULL;
}
