-- Lists of conversions go by this, however many other tasks there are.
CREATE INDEX tasks_conversions ON tasks (seq) WHERE kind = 'convert';
