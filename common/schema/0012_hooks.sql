-- Hooks are tasks of their job, in order before and behind its own: which they are, whether the job
-- goes on without them, their own retries (NULL: the job's), and what is waited for before the task
-- is queued (common/job_store.h).
ALTER TABLE tasks ADD COLUMN hook text NOT NULL DEFAULT '' CHECK (hook IN ('', 'pre', 'post'));
ALTER TABLE tasks ADD COLUMN may_fail boolean NOT NULL DEFAULT false;
ALTER TABLE tasks ADD COLUMN max_attempts integer;
ALTER TABLE tasks ADD COLUMN retry_initial_ms bigint;
ALTER TABLE tasks ADD COLUMN retry_max_ms bigint;
ALTER TABLE tasks ADD COLUMN wait jsonb;
