-- Releases are few among the tasks: what looks for them does not read the others.
CREATE INDEX tasks_releases ON tasks (state, updated_at) WHERE kind = 'release';
