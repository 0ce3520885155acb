-- Jobs that ended long ago (section "history" of the configuration): the same columns, so that they
-- read as before, with their history, log and tasks folded in. A column that jobs gets later is added
-- here as well, in the same migration.
CREATE TABLE archived_jobs (LIKE jobs);
ALTER TABLE archived_jobs ADD PRIMARY KEY (id);
ALTER TABLE archived_jobs ADD COLUMN archived_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE archived_jobs ADD COLUMN history jsonb NOT NULL DEFAULT '[]';
ALTER TABLE archived_jobs ADD COLUMN logs jsonb NOT NULL DEFAULT '[]';
ALTER TABLE archived_jobs ADD COLUMN tasks jsonb NOT NULL DEFAULT '[]';
CREATE INDEX archived_jobs_seq ON archived_jobs (seq DESC);
CREATE INDEX archived_jobs_provider ON archived_jobs (provider, seq DESC);
CREATE INDEX archived_jobs_vm_name ON archived_jobs (vm_name, seq DESC);
CREATE INDEX archived_jobs_vm_path ON archived_jobs (vm_path, seq DESC);
CREATE INDEX archived_jobs_completed ON archived_jobs (completed_at);
CREATE INDEX jobs_completed ON jobs (completed_at) WHERE completed_at IS NOT NULL;
GRANT SELECT ON archived_jobs TO hypersdk_gateway, hypersdk_metrics;
GRANT SELECT, INSERT, DELETE ON archived_jobs TO hypersdk_scheduler;
