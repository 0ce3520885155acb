-- Templates of jobs: a job's fields with placeholders (common/job_template.h).
CREATE TABLE templates (
  name        text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$'),
  template    jsonb NOT NULL,
  origin      text NOT NULL DEFAULT 'api' CHECK (origin IN ('api','config')),
  created_by  text NOT NULL DEFAULT '',
  created_at  timestamptz NOT NULL DEFAULT now(),
  updated_at  timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT, INSERT, UPDATE, DELETE ON templates TO hypersdk_gateway;
GRANT SELECT ON templates TO hypersdk_scheduler;
