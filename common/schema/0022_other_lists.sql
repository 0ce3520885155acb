-- Lists of what is rare: jobs of other kinds among a million exports, which these indexes do not touch,
-- and the archived jobs of one state.
CREATE INDEX jobs_other_kinds ON jobs (kind, seq) WHERE kind <> 'export';
CREATE INDEX archived_jobs_other_kinds ON archived_jobs (kind, seq) WHERE kind <> 'export';
CREATE INDEX archived_jobs_status ON archived_jobs (status, seq);
