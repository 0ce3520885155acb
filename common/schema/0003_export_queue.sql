-- The next export of one provider, and which providers have any: a provider at its limit does not
-- make the others' queues slow, however much waits for it.
CREATE INDEX tasks_export_queue ON tasks (provider, priority DESC, seq)
  WHERE state = 'queued' AND class = 'transfer' AND role = 'exporter';
