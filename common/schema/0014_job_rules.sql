-- A job that is not done by its deadline fails; one that depends on others waits for them.
ALTER TABLE jobs ADD COLUMN deadline timestamptz;
ALTER TABLE jobs ADD COLUMN doomed boolean NOT NULL DEFAULT false; -- a rule ends it: it fails when its worker has stopped
ALTER TABLE archived_jobs ADD COLUMN deadline timestamptz;
ALTER TABLE archived_jobs ADD COLUMN doomed boolean NOT NULL DEFAULT false;
CREATE INDEX jobs_deadline ON jobs (deadline) WHERE deadline IS NOT NULL AND completed_at IS NULL;
CREATE TABLE job_dependencies (
  job_id     text NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  on_job     text NOT NULL,            -- no reference: it may be deleted, then this can never be met
  required   text NOT NULL CHECK (required IN ('completed','failed','final')),
  timeout_at timestamptz,
  PRIMARY KEY (job_id, on_job)
);
CREATE INDEX tasks_depending ON tasks (job_id) WHERE state = 'queued' AND hold = 'depends';
GRANT SELECT, INSERT ON job_dependencies TO hypersdk_gateway;
GRANT SELECT, INSERT ON job_dependencies TO hypersdk_scheduler;
