-- A worker that is drained by a user gets no task until it is resumed; its process goes on.
ALTER TABLE workers ADD COLUMN drained_at timestamptz;
ALTER TABLE workers ADD COLUMN drained_by text NOT NULL DEFAULT '';
GRANT UPDATE (drained_at, drained_by) ON workers TO hypersdk_gateway;
