-- Restore points: what a point stands on, and finding those of one directory.
ALTER TABLE exports ADD COLUMN base_id text NOT NULL DEFAULT '';
CREATE INDEX exports_base ON exports (base_id) WHERE base_id <> '';
-- Compared byte by byte, so that "all below a directory" is a range.
CREATE INDEX exports_place ON exports (provider, path text_pattern_ops);
