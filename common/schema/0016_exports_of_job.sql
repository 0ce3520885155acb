-- The exports of one job, without reading the whole catalogue at every end of a job.
CREATE INDEX exports_job ON exports (job_id);
