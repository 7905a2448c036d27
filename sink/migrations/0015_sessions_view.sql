-- A view keeps the types that its table had when it was made: what 0009 added to quality showed as
-- an empty word.
CREATE OR REPLACE VIEW {{.Database}}.sessions AS
SELECT * FROM {{.Database}}.session_versions FINAL WHERE part_of = 0
COMMENT 'one row a session: its newest version';
