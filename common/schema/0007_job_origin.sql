-- What started a job besides a user; '' = nothing.
ALTER TABLE jobs ADD COLUMN schedule_id text NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN policy_id text NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN workflow_run_id text NOT NULL DEFAULT '';
CREATE INDEX jobs_schedule ON jobs (schedule_id, seq DESC) WHERE schedule_id <> '';
CREATE INDEX jobs_policy ON jobs (policy_id, seq DESC) WHERE policy_id <> '';
CREATE INDEX jobs_workflow_run ON jobs (workflow_run_id, seq DESC) WHERE workflow_run_id <> '';
