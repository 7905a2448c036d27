-- Which capture files were replayed, and under which policy: the same file under
-- the same policy changes nothing, under another one its rows are replaced.
CREATE TABLE IF NOT EXISTS {{.Database}}.replays
(
    input String COMMENT 'the file''s content hash, as in flows.input',
    policy String COMMENT 'the policy it was judged by',
    rows UInt64 COMMENT 'flows it gave; 0 until it was read to the end',
    started_at DateTime64(3, 'UTC') COMMENT 'inserted_at of its flows',
    inserted_at DateTime64(3, 'UTC') COMMENT 'when this was noted; the newest counts'
)
ENGINE = ReplacingMergeTree(inserted_at)
ORDER BY input
SETTINGS non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'which files were replayed';
