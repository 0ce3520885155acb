-- What is asked every second costs the same however long the queue and the history are: the first of
-- the tasks that wait, and whether a clean-up is under way.
DROP INDEX tasks_waiting;
CREATE INDEX tasks_waiting ON tasks (class, seq) WHERE state = 'queued';
CREATE INDEX jobs_cleanups ON jobs (status) WHERE kind = 'cleanup';
