-- The truth of the suite. States are written only through the transition function of
-- services/scheduler (submit and cancel requests: common/job_state.h), each under
-- `WHERE epoch = ...` or a row lock, together with history, outbox and metric totals.

-- One group role per service; login users are members and SET ROLE after connecting.
DO $$
DECLARE r text;
BEGIN
  FOREACH r IN ARRAY ARRAY['hypersdk_gateway','hypersdk_scheduler','hypersdk_notifier','hypersdk_metrics'] LOOP
    BEGIN
      EXECUTE format('CREATE ROLE %I NOLOGIN', r);
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
    END;
  END LOOP;
END $$;

CREATE TABLE providers (
  name        text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
  kind        text NOT NULL,
  enabled     boolean NOT NULL DEFAULT true,
  settings    jsonb NOT NULL DEFAULT '{}',   -- without secrets
  origin      text NOT NULL DEFAULT 'api' CHECK (origin IN ('api','config')),
  created_at  timestamptz NOT NULL DEFAULT now(),
  updated_at  timestamptz NOT NULL DEFAULT now()
);

-- Sealed by the gateway (common/seal.h); opened only by the process that uses it.
CREATE TABLE credentials (
  provider    text PRIMARY KEY REFERENCES providers(name) ON DELETE CASCADE,
  audience    text NOT NULL,                 -- provider:<kind>
  key_id      text NOT NULL,
  sealed      bytea NOT NULL,
  updated_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE jobs (
  id             text PRIMARY KEY,
  seq            bigint GENERATED ALWAYS AS IDENTITY,
  name           text NOT NULL DEFAULT '',
  kind           text NOT NULL DEFAULT 'export',      -- export | convert | import
  provider       text NOT NULL,                       -- instance name
  vm_path        text NOT NULL,
  vm_name        text NOT NULL DEFAULT '',
  output_path    text NOT NULL DEFAULT '',
  format         text NOT NULL DEFAULT 'ovf',
  definition     jsonb NOT NULL,                      -- canonical request, secrets removed
  status         text NOT NULL DEFAULT 'pending'
                 CHECK (status IN ('pending','running','paused','cancelling','completed','failed','cancelled')),
  phase          text NOT NULL DEFAULT '',
  priority       integer NOT NULL DEFAULT 50 CHECK (priority BETWEEN 0 AND 100),
  pending_reason text NOT NULL DEFAULT '',
  cancel_reason  text NOT NULL DEFAULT '',
  cancel_discard boolean NOT NULL DEFAULT false,
  attempt        integer NOT NULL DEFAULT 0,
  max_attempts   integer NOT NULL DEFAULT 3,
  retry_initial_ms bigint NOT NULL DEFAULT 60000,
  retry_max_ms   bigint NOT NULL DEFAULT 1800000,
  error          text NOT NULL DEFAULT '',
  error_code     text NOT NULL DEFAULT '',
  result         jsonb,
  progress       jsonb,                               -- newest known, written at most every 5 s
  submitted_by   text NOT NULL DEFAULT '',
  trace_id       text NOT NULL DEFAULT '',
  worker_id      text NOT NULL DEFAULT '',
  idempotency_key  text,                              -- with submitted_by unique
  idempotency_hash bytea,
  created_at     timestamptz NOT NULL DEFAULT now(),
  started_at     timestamptz,
  completed_at   timestamptz,
  updated_at     timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01);
CREATE UNIQUE INDEX jobs_idempotency ON jobs (submitted_by, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_status ON jobs (status, seq) WHERE status IN ('pending','running','paused','cancelling');
CREATE INDEX jobs_created ON jobs (created_at DESC, seq DESC);
CREATE INDEX jobs_seq ON jobs (seq DESC);

-- Work to be leased. Export jobs have one export task, then one convert task when asked for;
-- control tasks (inventory, vm_info, validate) have no job.
CREATE TABLE tasks (
  id           text PRIMARY KEY,
  seq          bigint GENERATED ALWAYS AS IDENTITY,
  job_id       text REFERENCES jobs(id) ON DELETE CASCADE,
  ordinal      integer NOT NULL DEFAULT 0,             -- order inside the job
  kind         text NOT NULL,                          -- export | convert | import | inventory | vm_info | validate
  class        text NOT NULL CHECK (class IN ('transfer','control')),
  role         text NOT NULL CHECK (role IN ('exporter','bridge')),
  provider_kind text NOT NULL DEFAULT '',              -- exporters: which binary
  provider     text NOT NULL DEFAULT '',               -- instance name
  volume       text NOT NULL DEFAULT '',               -- required volume uuid, '' = any
  spec         jsonb NOT NULL,
  priority     integer NOT NULL DEFAULT 50,
  state        text NOT NULL DEFAULT 'queued'
               CHECK (state IN ('blocked','queued','leased','finishing','done','failed','cancelled')),
  epoch        bigint NOT NULL DEFAULT 0,              -- fencing: +1 at every lease
  token        bytea,
  attempt      integer NOT NULL DEFAULT 0,             -- +1 only after an error
  losses       integer NOT NULL DEFAULT 0,             -- leases lost in a row without progress
  progress_mark bigint NOT NULL DEFAULT 0,             -- bytes done when the last lease was lost
  bytes_done   bigint NOT NULL DEFAULT 0,
  worker       text NOT NULL DEFAULT '',
  lease_until  timestamptz,
  not_before   timestamptz NOT NULL DEFAULT now(),     -- back-off
  cancel       boolean NOT NULL DEFAULT false,
  lines_stored bigint NOT NULL DEFAULT 0,              -- of the current epoch
  result       jsonb,
  error        text NOT NULL DEFAULT '',
  error_code   text NOT NULL DEFAULT '',
  created_at   timestamptz NOT NULL DEFAULT now(),
  updated_at   timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz                             -- control tasks: swept after
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01);
CREATE INDEX tasks_queue ON tasks (role, provider_kind, class, priority DESC, seq) WHERE state = 'queued';
CREATE INDEX tasks_leased ON tasks (lease_until) WHERE state IN ('leased','finishing');
CREATE INDEX tasks_job ON tasks (job_id, ordinal);
CREATE INDEX tasks_expiry ON tasks (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE task_records (
  task_id    text NOT NULL REFERENCES tasks(id) ON DELETE CASCADE,
  key        text NOT NULL,
  value      text NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (task_id, key)
);

CREATE TABLE job_events (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  job_id     text NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  at         timestamptz NOT NULL DEFAULT now(),
  event      text NOT NULL,             -- job.created, job.started, lease_lost, retry_scheduled ...
  status     text NOT NULL,
  phase      text NOT NULL DEFAULT '',
  actor      text NOT NULL DEFAULT '',  -- user, worker or scheduler
  detail     jsonb NOT NULL DEFAULT '{}',
  published  boolean NOT NULL DEFAULT false  -- the leader has put it on Redis
);
CREATE INDEX job_events_job ON job_events (job_id, id);
CREATE INDEX job_events_unpublished ON job_events (id) WHERE NOT published;

CREATE TABLE job_logs (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  job_id     text NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
  task_id    text NOT NULL DEFAULT '',
  epoch      bigint NOT NULL DEFAULT 0,
  number     bigint NOT NULL DEFAULT 0,
  at         timestamptz NOT NULL,
  level      text NOT NULL,
  phase      text NOT NULL DEFAULT '',
  message    text NOT NULL
);
CREATE INDEX job_logs_job ON job_logs (job_id, id);
CREATE UNIQUE INDEX job_logs_once ON job_logs (task_id, epoch, number) WHERE number > 0;

CREATE TABLE inventory_vms (
  provider   text NOT NULL REFERENCES providers(name) ON DELETE CASCADE,
  id         text NOT NULL,
  generation text NOT NULL,             -- id of the inventory task that wrote it
  name       text NOT NULL,
  path       text NOT NULL,
  power_state text NOT NULL DEFAULT '',
  vm         jsonb NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (provider, generation, id)
);
CREATE INDEX inventory_name ON inventory_vms (provider, generation, name);
CREATE INDEX inventory_path ON inventory_vms (provider, generation, path);
CREATE TABLE inventory_state (
  provider   text PRIMARY KEY REFERENCES providers(name) ON DELETE CASCADE,
  generation text NOT NULL,             -- the complete one
  completed_at timestamptz NOT NULL
);

-- Exports that exist: written when export.json is (the commit mark on the volume).
CREATE TABLE exports (
  id          text PRIMARY KEY,
  job_id      text NOT NULL,
  provider    text NOT NULL,
  vm_id       text NOT NULL,
  vm_name     text NOT NULL,
  path        text NOT NULL,
  volume      text NOT NULL DEFAULT '',
  format      text NOT NULL,
  total_size  bigint NOT NULL DEFAULT 0,
  manifest    jsonb NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX exports_vm ON exports (provider, vm_id, created_at DESC);
CREATE TABLE export_disks (
  export_id   text NOT NULL REFERENCES exports(id) ON DELETE CASCADE,
  disk_id     text NOT NULL,
  file        text NOT NULL,
  size_bytes  bigint NOT NULL,
  capacity_bytes bigint NOT NULL,
  sha256      text NOT NULL DEFAULT '',
  root        text NOT NULL DEFAULT '',  -- sha256-tree-1m:<hex>
  change_id   text NOT NULL DEFAULT '',
  PRIMARY KEY (export_id, disk_id)
);

CREATE TABLE webhooks (
  id         text PRIMARY KEY,
  url        text NOT NULL,
  events     text[] NOT NULL,
  headers    jsonb NOT NULL DEFAULT '{}',    -- names only; values sealed
  sealed     bytea,                          -- header values and secret, audience notify
  retry      integer NOT NULL DEFAULT 3,
  timeout_ms bigint NOT NULL DEFAULT 10000,
  enabled    boolean NOT NULL DEFAULT true,
  origin     text NOT NULL DEFAULT 'config',
  created_at timestamptz NOT NULL DEFAULT now()
);
-- The outbox: rows are born in the transaction of the state change, one per job event; the
-- notifier fans out to the webhooks that want it.
CREATE TABLE outbox (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  event      text NOT NULL,
  job_id     text NOT NULL,
  payload    jsonb NOT NULL,                 -- the seed's seven flat keys and more
  created_at timestamptz NOT NULL DEFAULT now(),
  expanded_at timestamptz                    -- deliveries made
);
CREATE INDEX outbox_open ON outbox (id) WHERE expanded_at IS NULL;
CREATE TABLE deliveries (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  outbox_id   bigint NOT NULL REFERENCES outbox(id) ON DELETE CASCADE,
  webhook_id  text NOT NULL REFERENCES webhooks(id) ON DELETE CASCADE,
  state       text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending','delivered','failed')),
  attempt     integer NOT NULL DEFAULT 0,
  not_before  timestamptz NOT NULL DEFAULT now(),
  claimed_until timestamptz,
  http_status integer,
  error       text NOT NULL DEFAULT '',
  updated_at  timestamptz NOT NULL DEFAULT now(),
  UNIQUE (outbox_id, webhook_id)
);
CREATE INDEX deliveries_open ON deliveries (not_before, id) WHERE state = 'pending';

-- Counters that survive restarts: name + labels -> value. Histograms as le buckets, sum, count.
CREATE TABLE metric_totals (
  name   text NOT NULL,
  labels jsonb NOT NULL DEFAULT '{}',
  value  double precision NOT NULL DEFAULT 0,
  PRIMARY KEY (name, labels)
);

CREATE TABLE roles (
  name        text PRIMARY KEY,
  permissions text[] NOT NULL,
  builtin     boolean NOT NULL DEFAULT false
);
INSERT INTO roles (name, permissions, builtin) VALUES
  ('admin', ARRAY['job.create','job.view','job.cancel','job.delete','vm.list','vm.export','settings.manage',
     'vm.operate','convert.run','schedule.manage','libvirt.manage','schedule.view','libvirt.view','status.view',
     'webhook.manage','user.manage','audit.view'], true),
  ('operator', ARRAY['job.create','job.view','job.cancel.own','vm.list','vm.export','vm.operate','convert.run',
     'schedule.manage','libvirt.manage','schedule.view','libvirt.view','status.view'], true),
  ('viewer', ARRAY['job.view','vm.list','schedule.view','libvirt.view','status.view'], true);

CREATE TABLE users (
  id         text PRIMARY KEY,
  username   text NOT NULL UNIQUE,
  email      text NOT NULL DEFAULT '',
  password   text NOT NULL,                  -- argon2id string
  roles      text[] NOT NULL,
  status     text NOT NULL DEFAULT 'active' CHECK (status IN ('active','disabled')),
  created_at timestamptz NOT NULL DEFAULT now(),
  last_login timestamptz
);
CREATE TABLE sessions (
  id         text PRIMARY KEY,
  user_id    text NOT NULL REFERENCES users(id) ON DELETE CASCADE,
  token_hash bytea NOT NULL UNIQUE,          -- SHA-256 of the token
  ip         text NOT NULL DEFAULT '',
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL
);
CREATE TABLE api_keys (
  id         text PRIMARY KEY,
  user_id    text NOT NULL REFERENCES users(id) ON DELETE CASCADE,
  name       text NOT NULL,
  prefix     text NOT NULL,
  key_hash   bytea NOT NULL UNIQUE,
  roles      text[] NOT NULL,                -- at most the user's
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz,
  last_used  timestamptz
);

CREATE TABLE workers (
  instance   text PRIMARY KEY,
  role       text NOT NULL,
  provider   text NOT NULL DEFAULT '',
  host       text NOT NULL DEFAULT '',
  pid        integer NOT NULL DEFAULT 0,
  version    text NOT NULL DEFAULT '',
  slots_transfer integer NOT NULL DEFAULT 0,
  slots_control  integer NOT NULL DEFAULT 0,
  volumes    jsonb NOT NULL DEFAULT '[]',
  capabilities jsonb NOT NULL DEFAULT '{}',
  state      text NOT NULL DEFAULT 'up' CHECK (state IN ('up','draining','down')),
  started_at timestamptz NOT NULL DEFAULT now(),
  seen_at    timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE leader (
  id     integer PRIMARY KEY DEFAULT 1 CHECK (id = 1),
  epoch  bigint NOT NULL,
  holder text NOT NULL,
  until  timestamptz NOT NULL
);

CREATE TABLE settings (
  key        text PRIMARY KEY,
  value      jsonb NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now()
);

-- Heartbeats of the processes without a lease, for /status.
CREATE TABLE services (
  name    text NOT NULL,
  instance text PRIMARY KEY,
  seen_at timestamptz NOT NULL DEFAULT now()
);

-- Audit: own schema, insert only. A sealer chains it (seal of everything older than every open
-- transaction) without serialising the calls.
CREATE SCHEMA audit;
CREATE TABLE audit.audit_log (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  xid        xid8 NOT NULL DEFAULT pg_current_xact_id(),
  at         timestamptz NOT NULL DEFAULT now(),
  "user"     text NOT NULL DEFAULT '',
  action     text NOT NULL,
  resource   text NOT NULL DEFAULT '',
  result     text NOT NULL CHECK (result IN ('success','failure','denied')),
  ip         text NOT NULL DEFAULT '',
  details    jsonb NOT NULL DEFAULT '{}',
  request_id text NOT NULL DEFAULT '',
  method     text NOT NULL DEFAULT '',
  path       text NOT NULL DEFAULT '',
  status     integer NOT NULL DEFAULT 0,
  duration_ms integer NOT NULL DEFAULT 0,
  user_agent text NOT NULL DEFAULT ''
);
CREATE INDEX audit_log_xid ON audit.audit_log (xid);
-- One seal holds all rows of the transactions from the seal before it up to (not including) to_xid.
CREATE TABLE audit.audit_seal (
  id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  from_id bigint NOT NULL,
  to_id   bigint NOT NULL,
  to_xid  xid8 NOT NULL,
  rows    bigint NOT NULL,
  digest  bytea NOT NULL,
  prev    bytea NOT NULL UNIQUE,
  at      timestamptz NOT NULL DEFAULT now()
);

GRANT USAGE ON SCHEMA public, audit TO hypersdk_gateway, hypersdk_scheduler, hypersdk_notifier, hypersdk_metrics;
GRANT SELECT, INSERT, UPDATE, DELETE ON providers, credentials, users, sessions, api_keys, webhooks, settings, roles TO hypersdk_gateway;
GRANT SELECT, INSERT, UPDATE ON jobs, tasks TO hypersdk_gateway;
GRANT DELETE ON jobs TO hypersdk_gateway;
GRANT SELECT, INSERT ON task_records TO hypersdk_gateway; -- copies for a release
GRANT SELECT ON job_logs, inventory_vms, inventory_state, exports, export_disks, workers, leader, deliveries, metric_totals TO hypersdk_gateway;
GRANT SELECT, INSERT ON job_events, outbox TO hypersdk_gateway;
GRANT SELECT, INSERT, UPDATE ON metric_totals, services TO hypersdk_gateway;
GRANT INSERT, SELECT ON audit.audit_log TO hypersdk_gateway;
GRANT SELECT ON audit.audit_seal TO hypersdk_gateway;
GRANT SELECT, INSERT, UPDATE, DELETE ON jobs, tasks, task_records, inventory_vms, inventory_state, exports, export_disks, workers, leader, settings, services TO hypersdk_scheduler;
GRANT SELECT, INSERT ON job_events, job_logs, outbox TO hypersdk_scheduler;
GRANT UPDATE (published) ON job_events TO hypersdk_scheduler;
GRANT SELECT, INSERT, UPDATE ON metric_totals TO hypersdk_scheduler;
GRANT SELECT ON providers, credentials, webhooks, roles TO hypersdk_scheduler;
GRANT SELECT, INSERT ON audit.audit_seal TO hypersdk_scheduler;
GRANT SELECT ON audit.audit_log TO hypersdk_scheduler;
GRANT SELECT, UPDATE, DELETE ON outbox TO hypersdk_notifier;
GRANT SELECT, INSERT, UPDATE, DELETE ON deliveries TO hypersdk_notifier;
GRANT SELECT, UPDATE ON webhooks TO hypersdk_notifier;
GRANT SELECT ON jobs TO hypersdk_notifier;
GRANT SELECT, INSERT, UPDATE ON metric_totals, services TO hypersdk_notifier;
GRANT SELECT ON metric_totals, jobs, tasks, workers, inventory_vms, inventory_state, services, leader, deliveries TO hypersdk_metrics;
GRANT INSERT, UPDATE ON services TO hypersdk_metrics;
