-- A job starts only inside its time windows. window_at NULL: it has none, or has begun and goes on to
-- its end (on_window_end 'continue'). Behind window_at nobody knows yet what window_open is next.
ALTER TABLE jobs ADD COLUMN time_windows jsonb;
ALTER TABLE jobs ADD COLUMN on_window_end text NOT NULL DEFAULT 'continue' CHECK (on_window_end IN ('continue','pause','cancel'));
ALTER TABLE jobs ADD COLUMN window_open boolean NOT NULL DEFAULT true;
ALTER TABLE jobs ADD COLUMN window_at timestamptz;
ALTER TABLE archived_jobs ADD COLUMN time_windows jsonb;
ALTER TABLE archived_jobs ADD COLUMN on_window_end text NOT NULL DEFAULT 'continue';
ALTER TABLE archived_jobs ADD COLUMN window_open boolean NOT NULL DEFAULT true;
ALTER TABLE archived_jobs ADD COLUMN window_at timestamptz;
CREATE INDEX jobs_window ON jobs (window_at) WHERE window_at IS NOT NULL AND completed_at IS NULL;
CREATE INDEX tasks_windowed ON tasks (job_id) WHERE state = 'queued' AND hold = 'window';
