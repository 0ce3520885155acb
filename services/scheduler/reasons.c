/* Why jobs wait: for users, in the job's row and in /status. What is true of many is asked once. */
#include <stdio.h>

#include "common/clock.h"
#include "scheduler.h"

#define EXPLAIN_MS       10000 /* so old a reason may be that takes long to find */
#define EXPLAIN_SHORT_MS 50

static const char REASONS[] =
    "WITH waiting AS (SELECT j.id, t.role, t.provider_kind, t.provider, t.volume,"
    "  t.source_host, t.queue_group, t.queue_limit, t.hold,"
    "  t.not_before, t.error, j.window_at, j.window_open, j.pending_reason"
    "  FROM tasks t CROSS JOIN LATERAL"
    /* Task by task, in the order of tasks_waiting: not all that waits, nor all that is finished.
     * Behind OFFSET 0 the status is no way to the row: with few pending jobs when the table was
     * analyzed, all that were pending were read for each task. */
    "  (SELECT x.* FROM jobs x WHERE x.id = t.job_id OFFSET 0) j WHERE j.status = 'pending'"
    "  AND t.state = 'queued' AND t.class = 'transfer' ORDER BY t.seq LIMIT 1000),"
    " busy AS MATERIALIZED (SELECT b.worker, b.provider, b.role, b.source_host, b.queue_group FROM "
    "tasks b WHERE b.class = "
    "'transfer'"
    "  AND b.state IN ('leased', 'finishing')),"
    /* once per kind of wish, not per job */
    " wishes AS MATERIALIZED (SELECT v.*, coalesce(w.slots, 0) AS slots, coalesce(w.used, 0) AS "
    "used,"
    "   EXISTS (SELECT 1 FROM workers x WHERE x.state = 'up' AND x.role = v.role"
    "    AND v.provider_kind IN ('', x.provider)) AS connected,"
    "   EXISTS (SELECT 1 FROM workers x WHERE x.state = 'up' AND x.role = v.role"
    "    AND x.drained_at IS NULL AND v.provider_kind IN ('', x.provider)) AS serving"
    "  FROM (SELECT DISTINCT role, provider_kind, volume FROM waiting) v"
    "  LEFT JOIN LATERAL (SELECT sum(x.slots_transfer) AS slots, sum((SELECT count(*) FROM busy b"
    "    WHERE b.worker = x.instance)) AS used FROM workers x WHERE x.state = 'up'"
    "    AND x.drained_at IS NULL AND x.role = v.role AND v.provider_kind IN ('', x.provider)"
    "    AND (v.volume = ''"
    "    OR x.volumes @> jsonb_build_array(jsonb_build_object('id', v.volume)))) w ON true),"
    " full_providers AS MATERIALIZED (SELECT b.provider, "
    "coalesce((p.settings->>'export_limit')::int,"
    "  $1::int) AS most, p.settings->>'export_limit' IS NOT NULL AS own FROM busy b"
    "  LEFT JOIN providers p ON p.name = b.provider WHERE b.role = 'exporter' AND b.provider <> ''"
    "  GROUP BY b.provider, p.settings HAVING count(*)"
    "   >= coalesce((p.settings->>'export_limit')::int, $1::int)),"
    " full_hosts AS MATERIALIZED (SELECT provider, source_host FROM busy WHERE role = 'exporter'"
    "  AND source_host <> '' AND $2::int > 0 GROUP BY 1, 2 HAVING count(*) >= $2::int),"
    " full_groups AS MATERIALIZED (SELECT queue_group, count(*) AS used FROM busy"
    "  WHERE queue_group <> '' GROUP BY 1),"
    " pause AS MATERIALIZED (SELECT value FROM settings WHERE key = 'queue.paused'),"
    " reasons AS MATERIALIZED (SELECT a.id, a.pending_reason AS told, CASE"
    "  WHEN EXISTS (SELECT 1 FROM pause) THEN (SELECT left('the queue is paused by ' ||"
    "   (value->>'by') || ' since ' || to_char((value->>'since')::timestamptz AT TIME ZONE 'UTC',"
    "   'YYYY-MM-DD HH24:MI:SS') || ' UTC' || coalesce(nullif(': ' || (value->>'reason'), ': '),"
    "   ''), 500) FROM pause)"
    "  WHEN a.hold = 'depends' THEN coalesce((SELECT 'waits for job ' || d.on_job || ' to be ' ||"
    "   d.required || ', it is ' || o.status || CASE WHEN count(*) OVER () > 1 THEN ' (and ' ||"
    "   count(*) OVER () - 1 || ' more)' ELSE '' END FROM job_dependencies d JOIN jobs o"
    "   ON o.id = d.on_job WHERE d.job_id = a.id AND o.status IN ('pending', 'running', 'paused',"
    "   'cancelling') ORDER BY d.on_job LIMIT 1), '')"
    "  WHEN NOT a.window_open AND a.window_at > now() THEN 'outside its time windows: waits until '"
    "   || to_char(a.window_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC'"
    "  WHEN a.not_before > now() THEN 'waits until ' || to_char(a.not_before AT TIME ZONE 'UTC',"
    "   'HH24:MI:SS') || ' UTC after an error: ' || left(a.error, 300)"
    "  WHEN a.role = 'exporter' AND EXISTS (SELECT 1 FROM providers p WHERE p.name = a.provider"
    "   AND NOT p.enabled) THEN 'provider ' || a.provider || ' is disabled'"
    "  WHEN NOT w.connected AND a.role = 'bridge' THEN 'no hyper2kvm-bridge is connected'"
    "  WHEN NOT w.connected THEN 'no worker exporter-' ||"
    "   coalesce(nullif(a.provider_kind, ''), '*') || ' is connected'"
    "  WHEN NOT w.serving THEN 'all connected workers that could take it are drained by users'"
    "  WHEN w.slots = 0 AND a.volume <> '' THEN 'no connected worker reaches the volume ' ||"
    "   a.volume || ' that holds its files'"
    "  WHEN a.role = 'exporter' AND f.most IS NOT NULL"
    "   THEN 'the limit of ' || f.most || ' exports at a time for provider ' || a.provider ||"
    "   ' is reached (' || CASE WHEN f.own THEN 'its export_limit' ELSE 'export.provider_limit' END"
    "   || ')'"
    "  WHEN a.role = 'exporter' AND (a.provider, a.source_host) IN (SELECT * FROM full_hosts)"
    "   THEN 'the limit of ' || $2 || ' exports at a time from host ' || a.source_host ||"
    "   ' is reached (export.host_limit)'"
    "  WHEN a.queue_limit > 0 AND coalesce(g.used, 0) >= a.queue_limit THEN 'the limit of ' ||"
    "   a.queue_limit || ' exports at a time of ' || a.queue_group || ' is reached'"
    "  WHEN w.used >= w.slots THEN 'all ' || w.slots ||"
    "   ' transfer slots of the connected workers are busy' ELSE '' END AS reason"
    "  FROM waiting a JOIN wishes w USING (role, provider_kind, volume)"
    "  LEFT JOIN full_providers f ON f.provider = a.provider"
    "  LEFT JOIN full_groups g ON g.queue_group = a.queue_group AND a.queue_group <> ''),"
    /* who holds a job's row is about to lease it */
    " changed AS (SELECT j.id, j.status, r.reason FROM jobs j JOIN reasons r ON r.id = j.id"
    "  WHERE r.told <> r.reason AND j.pending_reason <> r.reason FOR UPDATE OF j SKIP LOCKED)"
    " UPDATE jobs j SET pending_reason = c.reason FROM changed c WHERE j.id = c.id"
    "  AND c.status = 'pending'";

int scheduler_explain(struct scheduler *scheduler, struct db *db, struct error *err)
{
    char limit[24];
    char host_limit[24];
    int64_t began_ms = clock_mono_ms();

    if (!whole_look_is_due(&scheduler->explained, began_ms, EXPLAIN_MS))
        return 0;
    (void)snprintf(limit, sizeof limit, "%u", scheduler->export.provider_limit);
    (void)snprintf(host_limit, sizeof host_limit, "%u", scheduler->export.host_limit);
    if (db_exec(db, REASONS, DB_PARAMS(limit, host_limit), NULL, err) < 0)
        return -1;
    whole_look_done(&scheduler->explained, EXPLAIN_SHORT_MS, began_ms, clock_mono_ms());
    return 0;
}
