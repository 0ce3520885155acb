-- Schedules, and what became of each time they were due. One with a policy_id belongs to a backup
-- policy and makes a job per VM of that.
CREATE TABLE schedules (
  id            text PRIMARY KEY,
  seq           bigint GENERATED ALWAYS AS IDENTITY,
  name          text NOT NULL UNIQUE,
  fields        jsonb NOT NULL,                        -- canonical: schedule, timezone, job_template ...
  policy_id     text NOT NULL DEFAULT '',
  created_by    text NOT NULL DEFAULT '',
  enabled       boolean NOT NULL DEFAULT true,
  next_run_at   timestamptz,                           -- NULL: disabled
  delay_ms      bigint NOT NULL DEFAULT 0,             -- jitter drawn for that run
  run_count     bigint NOT NULL DEFAULT 0,             -- runs that made jobs
  created_at    timestamptz NOT NULL DEFAULT now(),
  updated_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX schedules_due ON schedules (next_run_at) WHERE enabled;
CREATE INDEX schedules_policy ON schedules (policy_id) WHERE policy_id <> '';

CREATE TABLE schedule_runs (
  id            text PRIMARY KEY,
  seq           bigint GENERATED ALWAYS AS IDENTITY,
  schedule_id   text NOT NULL REFERENCES schedules(id) ON DELETE CASCADE,
  due_at        timestamptz NOT NULL,
  status        text NOT NULL CHECK (status IN ('queued','running','ok','failed','skipped','missed')),
  reason        text NOT NULL DEFAULT '',
  manual        boolean NOT NULL DEFAULT false,
  job_ids       text[] NOT NULL DEFAULT '{}',
  errors        jsonb NOT NULL DEFAULT '[]',           -- jobs that could not be submitted
  cleanup_job_ids text[] NOT NULL DEFAULT '{}',        -- retention after it
  created_at    timestamptz NOT NULL DEFAULT now(),
  started_at    timestamptz,
  completed_at  timestamptz,
  UNIQUE (schedule_id, due_at)                         -- fires once, whoever fires it
);
CREATE INDEX schedule_runs_list ON schedule_runs (schedule_id, seq DESC);
CREATE INDEX schedule_runs_open ON schedule_runs (schedule_id, seq) WHERE status IN ('queued','running');

CREATE INDEX archived_jobs_schedule ON archived_jobs (schedule_id, seq DESC) WHERE schedule_id <> '';

GRANT SELECT, INSERT, UPDATE, DELETE ON schedules, schedule_runs TO hypersdk_gateway, hypersdk_scheduler;
GRANT SELECT ON schedules, schedule_runs TO hypersdk_metrics;
