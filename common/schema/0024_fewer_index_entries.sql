-- Each change of a job's state writes into all indexes of its row: when it was made is in its order on
-- disk, so the span of each few pages is enough.
DROP INDEX jobs_created;
CREATE INDEX jobs_created ON jobs USING brin (created_at) WITH (pages_per_range = 16, autosummarize = on);
-- Exports wait in tasks_export_queue.
DROP INDEX tasks_queue;
CREATE INDEX tasks_queue ON tasks (role, provider_kind, class, rank, seq)
  WHERE state = 'queued' AND hold = '' AND (class = 'control' OR role = 'bridge');
