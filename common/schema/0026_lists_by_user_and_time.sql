-- Lists of a user or a time among a million jobs that have ended: each is entered once, at its end. Those under
-- way are few and in jobs_status.
CREATE INDEX jobs_ended_user ON jobs (submitted_by, seq DESC) WHERE status IN ('completed', 'failed', 'cancelled');
CREATE INDEX jobs_ended_created ON jobs (created_at DESC, seq DESC) WHERE status IN ('completed', 'failed', 'cancelled');
CREATE INDEX archived_jobs_user ON archived_jobs (submitted_by, seq DESC);
CREATE INDEX archived_jobs_created ON archived_jobs (created_at DESC, seq DESC);
