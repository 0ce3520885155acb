-- Order of the queue. rank = time of submission in ms - priority * what one point of priority weighs:
-- so the effective priority rises with the time that a task waits, and nothing has to be updated,
-- because two tasks that wait keep their order. Lowest first.
CREATE FUNCTION queue_rank(at timestamptz, priority integer) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT (extract(epoch FROM $1) * 1000)::bigint - $2::bigint
    * coalesce((SELECT (value #>> '{}')::bigint FROM settings WHERE key = 'queue.aging_ms'), 60000)
$$;
ALTER TABLE tasks ADD COLUMN rank bigint NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN hold text NOT NULL DEFAULT '';         -- why it is not handed out; '' = nothing
ALTER TABLE tasks ADD COLUMN source_host text NOT NULL DEFAULT '';  -- where the VM runs; '' = not known
ALTER TABLE tasks ADD COLUMN queue_group text NOT NULL DEFAULT '';  -- what shares queue_limit
ALTER TABLE tasks ADD COLUMN queue_limit integer NOT NULL DEFAULT 0 CHECK (queue_limit >= 0); -- at a time; 0 = any
UPDATE tasks SET rank = queue_rank(created_at, priority) WHERE state IN ('blocked', 'queued', 'leased', 'finishing');
UPDATE tasks t SET hold = 'paused' FROM jobs j WHERE j.id = t.job_id AND j.status = 'paused' AND t.state = 'queued';
DROP INDEX tasks_queue;
DROP INDEX tasks_export_queue;
CREATE INDEX tasks_queue ON tasks (role, provider_kind, class, rank, seq) WHERE state = 'queued' AND hold = '';
-- A lane is what has the same limits: its first task stands for all of it.
CREATE INDEX tasks_export_queue ON tasks (provider, source_host, queue_group, rank, seq)
  WHERE state = 'queued' AND hold = '' AND class = 'transfer' AND role = 'exporter';
CREATE INDEX tasks_waiting ON tasks (class) WHERE state = 'queued';
