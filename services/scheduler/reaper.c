/* What lost messages would leave undone: leases that ran out, cancels that nobody heard, workers
 * that are gone, control tasks that nobody fetched; why jobs wait; the chain over the audit log. */
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/job_store.h"
#include "live.h"
#include "park.h"

#define SEAL_MS 1000

/* 5 s after lease_until: a worker stops writing 5 s before it, clocks of one machine each. */
static const char EXPIRED[] = "SELECT id FROM tasks WHERE state IN ('leased', 'finishing')"
                              " AND lease_until < now() - interval '5 seconds'"
                              " ORDER BY lease_until LIMIT 200";

static const char CANCELLED[] = "SELECT id FROM tasks WHERE state IN ('leased', 'finishing')"
                                " AND cancel LIMIT 500";

static const char WORKERS_DOWN[] = "UPDATE workers SET state = 'down' WHERE state <> 'down'"
                                   " AND seen_at < now() - interval '45 seconds'";

static const char WORKERS_FORGET[] = "DELETE FROM workers WHERE state = 'down'"
                                     " AND seen_at < now() - interval '1 day'";

static const char SWEEP[] = "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks"
                            " WHERE expires_at < now() LIMIT 500)";

static const char SWEEP_RELEASED[] =
    "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks WHERE kind = 'release'"
    " AND state IN ('done', 'cancelled', 'failed') AND updated_at < now() - interval '1 day'"
    " LIMIT 500)";

static const char REASONS[] =
    "UPDATE jobs j SET pending_reason = r.reason FROM (SELECT j.id, CASE"
    " WHEN t.not_before > now() THEN 'waits until ' || to_char(t.not_before AT TIME ZONE 'UTC',"
    "  'HH24:MI:SS') || ' UTC after an error: ' || left(t.error, 300)"
    " WHEN NOT EXISTS (SELECT 1 FROM workers w WHERE w.state = 'up' AND w.role = t.role"
    "  AND w.provider = t.provider_kind) THEN CASE WHEN t.role = 'bridge'"
    "  THEN 'no hyper2kvm-bridge is connected' ELSE 'no worker exporter-' || t.provider_kind ||"
    "  ' is connected' END"
    " WHEN t.volume <> '' AND NOT EXISTS (SELECT 1 FROM workers w WHERE w.state = 'up'"
    "  AND w.role = t.role AND w.provider = t.provider_kind AND w.volumes @> jsonb_build_array("
    "  jsonb_build_object('id', t.volume))) THEN 'no connected worker reaches the volume ' ||"
    "  t.volume || ' that holds its files'"
    " WHEN t.role = 'exporter' AND (SELECT count(*) FROM tasks b WHERE b.provider = t.provider"
    "  AND b.class = 'transfer' AND b.role = 'exporter' AND b.state IN ('leased', 'finishing'))"
    "  >= $1::int THEN 'the limit of ' || $1 || ' exports at a time for provider ' || t.provider ||"
    "  ' is reached (export.provider_limit)'"
    " ELSE 'all ' || (SELECT coalesce(sum(w.slots_transfer), 0) FROM workers w"
    "  WHERE w.state = 'up' AND w.role = t.role AND w.provider = t.provider_kind) ||"
    "  ' transfer slots of the connected workers are busy' END AS reason"
    " FROM jobs j JOIN tasks t ON t.job_id = j.id AND t.state = 'queued'"
    " WHERE j.status = 'pending' ORDER BY j.seq LIMIT 1000) r"
    " WHERE j.id = r.id AND j.status = 'pending' AND j.pending_reason IS DISTINCT FROM r.reason";

/* Rows of transactions that still run, and the youngest ones (an id is drawn a moment before its
 * transaction number), are left for the next seal. */
static const char SEAL[] =
    "WITH last AS (SELECT coalesce((SELECT to_id FROM audit.audit_seal ORDER BY id DESC LIMIT 1),"
    "  0) AS id, coalesce((SELECT digest FROM audit.audit_seal ORDER BY id DESC LIMIT 1),"
    "  '\\x'::bytea) AS digest), rows AS (SELECT a.* FROM audit.audit_log a, last"
    "  WHERE a.id > last.id AND a.xid < pg_snapshot_xmin(pg_current_snapshot())"
    "  AND a.at < now() - interval '2 seconds' ORDER BY a.id LIMIT 10000)"
    " INSERT INTO audit.audit_seal (from_id, to_id, rows, digest, prev)"
    " SELECT min(rows.id), max(rows.id), count(*), sha256(last.digest || convert_to("
    "  string_agg(concat_ws('|', rows.id, extract(epoch FROM rows.at), rows.\"user\", rows.action,"
    "  rows.resource, rows.result, rows.ip, rows.details::text, rows.request_id, rows.method,"
    "  rows.path, rows.status), E'\\n' ORDER BY rows.id), 'UTF8')), last.digest"
    " FROM rows, last GROUP BY last.digest HAVING count(*) > 0";

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

static int reap(struct scheduler *scheduler, struct db *db, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, EXPIRED, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++) {
        if (reap_one(scheduler, db, db_text(rows, i, 0), err) < 0)
            return -1;
    }
    return 0;
}

int scheduler_repeat_cancels(struct scheduler *scheduler, struct db *db, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, CANCELLED, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++)
        scheduler_announce_cancel(scheduler, db_text(rows, i, 0));
    return 0;
}

static int explain(struct scheduler *scheduler, struct db *db, struct error *err)
{
    char limit[24];

    (void)snprintf(limit, sizeof limit, "%u", scheduler->export.provider_limit);
    return db_exec(db, REASONS, DB_PARAMS(limit), NULL, err);
}

static int tidy(struct scheduler *scheduler, struct db *db, struct error *err)
{
    if (reap(scheduler, db, err) < 0 || db_exec(db, WORKERS_DOWN, DB_NO_PARAMS, NULL, err) < 0 ||
        explain(scheduler, db, err) < 0)
        return -1;
    if (db_exec(db, SWEEP, DB_NO_PARAMS, NULL, err) < 0 ||
        db_exec(db, SWEEP_RELEASED, DB_NO_PARAMS, NULL, err) < 0)
        return -1;
    return db_exec(db, WORKERS_FORGET, DB_NO_PARAMS, NULL, err);
}

void *reaper_main(void *arg)
{
    struct scheduler *scheduler = arg;
    auto_db *db = scheduler_db(scheduler, "scheduler reaper");
    struct log_throttle throttle = {0};
    int64_t sealed_ms = 0;

    do {
        struct error err = ERROR_NONE;
        uint64_t held = 0;
        int rc = tidy(scheduler, db, &err);
        if (rc == 0 && clock_mono_ms() - sealed_ms >= SEAL_MS) {
            rc = db_exec(db, SEAL, DB_NO_PARAMS, NULL, &err);
            sealed_ms = clock_mono_ms();
        }
        if (rc < 0 && log_throttle_pass(&throttle, err.message, &held))
            LOG(WARN, "reaper_failed", F_ERR(&err));
    } while (!service_wait(scheduler->service,
                           scheduler->config.poll_interval_ms / 2 +
                               clock_backoff_ms(0, scheduler->config.poll_interval_ms / 2,
                                                scheduler->config.poll_interval_ms / 2)));
    return NULL;
}
