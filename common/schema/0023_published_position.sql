-- Up to where the leader has put job_events on Redis: a snapshot, so that an event is told apart by its
-- transaction. Ids are drawn in another order than commits come; what a snapshot did not show yet, the
-- next look finds by the transaction, and no row is written again to mark it.
ALTER TABLE job_events ADD COLUMN xid xid8 NOT NULL DEFAULT '0';  -- what is there already is published,
UPDATE job_events SET xid = pg_current_xact_id() WHERE NOT published; -- but for these
ALTER TABLE job_events ALTER COLUMN xid SET DEFAULT pg_current_xact_id();
ALTER TABLE job_events DROP COLUMN published; -- its index goes with it
CREATE INDEX job_events_xid ON job_events (xid);
CREATE TABLE published_position (
  id       integer PRIMARY KEY DEFAULT 1 CHECK (id = 1),
  position pg_snapshot NOT NULL
) WITH (fillfactor = 10);
INSERT INTO published_position (position) VALUES ('1:1:');
GRANT SELECT, UPDATE ON published_position TO hypersdk_scheduler;
