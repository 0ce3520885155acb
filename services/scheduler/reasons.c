/* Why jobs wait: for users, in the job's row and in /status. What is true of many is asked once. */
#include <stdio.h>

#include "scheduler.h"

static const char REASONS[] =
    "WITH waiting AS (SELECT j.id, j.seq, t.role, t.provider_kind, t.provider, t.volume,"
    "  t.not_before, t.error FROM jobs j JOIN tasks t ON t.job_id = j.id AND t.state = 'queued'"
    "  WHERE j.status = 'pending' ORDER BY j.seq LIMIT 1000),"
    " busy AS MATERIALIZED (SELECT b.worker, b.provider, b.role FROM tasks b WHERE b.class = "
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
    " full_providers AS MATERIALIZED (SELECT provider FROM busy WHERE role = 'exporter'"
    "  AND provider <> '' GROUP BY "
    "provider"
    "  HAVING count(*) >= $1::int),"
    " pause AS MATERIALIZED (SELECT value FROM settings WHERE key = 'queue.paused'),"
    " reasons AS (SELECT a.id, CASE"
    "  WHEN EXISTS (SELECT 1 FROM pause) THEN (SELECT left('the queue is paused by ' ||"
    "   (value->>'by') || ' since ' || to_char((value->>'since')::timestamptz AT TIME ZONE 'UTC',"
    "   'YYYY-MM-DD HH24:MI:SS') || ' UTC' || coalesce(nullif(': ' || (value->>'reason'), ': '),"
    "   ''), 500) FROM pause)"
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
    "  WHEN a.role = 'exporter' AND a.provider IN (SELECT provider FROM full_providers)"
    "   THEN 'the limit of ' || $1 || ' exports at a time for provider ' || a.provider ||"
    "   ' is reached (export.provider_limit)'"
    "  WHEN w.used >= w.slots THEN 'all ' || w.slots ||"
    "   ' transfer slots of the connected workers are busy' ELSE '' END AS reason"
    "  FROM waiting a JOIN wishes w USING (role, provider_kind, volume))"
    " UPDATE jobs j SET pending_reason = r.reason FROM reasons r WHERE j.id = r.id"
    " AND j.status = 'pending' AND j.pending_reason <> r.reason";

int scheduler_explain(struct scheduler *scheduler, struct db *db, struct error *err)
{
    char limit[24];

    (void)snprintf(limit, sizeof limit, "%u", scheduler->export.provider_limit);
    return db_exec(db, REASONS, DB_PARAMS(limit), NULL, err);
}
