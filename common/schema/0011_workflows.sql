-- Definitions. A run keeps a copy of its own: what is deleted or made anew later changes no run.
CREATE TABLE workflows (
  id          text PRIMARY KEY,
  seq         bigint GENERATED ALWAYS AS IDENTITY,
  name        text NOT NULL UNIQUE,
  definition  jsonb NOT NULL,                 -- canonical, secrets removed
  created_by  text NOT NULL DEFAULT '',
  created_at  timestamptz NOT NULL DEFAULT now()
);

-- States are written through common/workflow_state.h only, under a lock on the run's row.
CREATE TABLE workflow_runs (
  id           text PRIMARY KEY,
  seq          bigint GENERATED ALWAYS AS IDENTITY,
  workflow_id  text NOT NULL,
  name         text NOT NULL,                 -- of the workflow
  definition   jsonb NOT NULL,
  status       text NOT NULL DEFAULT 'running'
               CHECK (status IN ('running','paused','cancelling','completed','failed','cancelled')),
  submitted_by text NOT NULL DEFAULT '',
  trace_id     text NOT NULL DEFAULT '',
  created_at   timestamptz NOT NULL DEFAULT now(),
  completed_at timestamptz
);
CREATE INDEX workflow_runs_active ON workflow_runs (seq)
  WHERE status IN ('running','paused','cancelling');
CREATE INDEX workflow_runs_workflow ON workflow_runs (workflow_id, seq DESC);

CREATE TABLE workflow_steps (
  run_id       text NOT NULL REFERENCES workflow_runs(id) ON DELETE CASCADE,
  ordinal      integer NOT NULL,
  id           text NOT NULL,
  kind         text NOT NULL,                 -- batch | job | convert | import | wait
  depends      bigint NOT NULL,               -- bit i: the step of ordinal i
  run_when     text NOT NULL CHECK (run_when IN ('success','failure','always')),
  wait_ms      bigint NOT NULL,
  parallel_max integer NOT NULL,              -- 0 = no limit
  item_count   integer NOT NULL,
  status       text NOT NULL DEFAULT 'waiting'
               CHECK (status IN ('waiting','running','completed','failed','skipped','cancelled')),
  attempt      integer NOT NULL DEFAULT 1,    -- +1 by a retry of the run
  started_at   timestamptz,
  completed_at timestamptz,
  PRIMARY KEY (run_id, ordinal),
  UNIQUE (run_id, id)
);

-- What a step has started: one row per VM or request, so nothing is started twice.
CREATE TABLE workflow_items (
  run_id  text NOT NULL,
  step    integer NOT NULL,
  item    integer NOT NULL,
  attempt integer NOT NULL,                   -- of the step, when it was started last
  job_id  text NOT NULL DEFAULT '',           -- '' = no job could be made, error says why
  state   text NOT NULL CHECK (state IN ('active','done','failed')),
  error   text NOT NULL DEFAULT '',
  PRIMARY KEY (run_id, step, item),
  FOREIGN KEY (run_id, step) REFERENCES workflow_steps(run_id, ordinal) ON DELETE CASCADE
);
CREATE INDEX workflow_items_active ON workflow_items (run_id) WHERE state = 'active';

GRANT SELECT, INSERT, UPDATE, DELETE ON workflows, workflow_runs, workflow_steps, workflow_items
  TO hypersdk_gateway;
GRANT SELECT, INSERT, UPDATE, DELETE ON workflow_runs, workflow_steps, workflow_items
  TO hypersdk_scheduler;
