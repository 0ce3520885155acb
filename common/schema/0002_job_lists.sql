-- Lists and totals of jobs stay quick with a million finished ones. Progress updates touch none of
-- these columns, so they stay heap-only.
CREATE INDEX jobs_final ON jobs (status, seq) WHERE status IN ('completed','failed','cancelled');
CREATE INDEX jobs_provider ON jobs (provider, seq DESC);
CREATE INDEX jobs_vm_name ON jobs (vm_name, seq DESC);
CREATE INDEX jobs_vm_path ON jobs (vm_path, seq DESC);
