-- The catalogue of exports is paged newest first.
CREATE INDEX exports_created ON exports (created_at DESC, id DESC);
