-- Each change of a job's state writes into all indexes of its row; 0026 has one for lists of a time.
DROP INDEX jobs_created;
-- Exports wait in tasks_export_queue.
DROP INDEX tasks_queue;
CREATE INDEX tasks_queue ON tasks (role, provider_kind, class, rank, seq)
  WHERE state = 'queued' AND hold = '' AND (class = 'control' OR role = 'bridge');
