-- What becomes of schedules is told to live clients as well: rows of job_events about a run instead
-- of a job, which go with it.
ALTER TABLE job_events ALTER COLUMN job_id DROP NOT NULL;
ALTER TABLE job_events ADD COLUMN run_id text REFERENCES schedule_runs(id) ON DELETE CASCADE;
ALTER TABLE job_events ADD CONSTRAINT job_events_of_one CHECK (num_nonnulls(job_id, run_id) = 1);
CREATE INDEX job_events_run ON job_events (run_id) WHERE run_id IS NOT NULL;
