-- Stretches of time in which something was not seen: what did not come then says nothing.
CREATE TABLE IF NOT EXISTS {{.Database}}.blind_spot_versions
(
    id String COMMENT 'the same in all versions of a blind spot' CODEC(ZSTD(1)),
    version UInt64 COMMENT 'rises as more becomes known of it; the highest counts' CODEC(ZSTD(1)),
    kind LowCardinality(String) COMMENT 'why nothing is seen: a type of finding' CODEC(ZSTD(1)),
    subject Enum8('everything' = 0, 'exporter' = 1, 'feed' = 2, 'host' = 3, 'segment' = 4, 'state' = 5) COMMENT 'what is not seen, or does not see: an exporter or sensor; a feed, which is all logs of a format; a host; hosts of a segment; what detectors remember' CODEC(ZSTD(1)),
    about String COMMENT 'that in words' CODEC(ZSTD(1)),
    address Nullable(IPv6) COMMENT 'the exporter''s or the host''s; of state the prefix that presses most' CODEC(ZSTD(1)),
    source LowCardinality(String) COMMENT 'the format it tells in, empty where there is no single one' CODEC(ZSTD(1)),
    domain UInt32 COMMENT 'its observation domain' CODEC(ZSTD(1)),
    name LowCardinality(String) COMMENT 'the sensor''s or the agent''s own name' CODEC(ZSTD(1)),
    segment LowCardinality(String) COMMENT 'the segment, or that of the host' CODEC(ZSTD(1)),
    time_from DateTime64(3, 'UTC') COMMENT 'since when' CODEC(Delta, ZSTD(1)),
    time_until Nullable(DateTime64(3, 'UTC')) COMMENT 'to when; NULL while it is not over' CODEC(ZSTD(1)),
    details String COMMENT 'what else is known of it, in words' CODEC(ZSTD(1)),
    finding String COMMENT 'id of the finding that tells of it; empty where it is too little to tell anybody of' CODEC(ZSTD(1)),
    input LowCardinality(String) COMMENT 'what it was found in' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'when the range of input it was written with was sealed; retention counts from here' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(inserted_at, 'UTC')
ORDER BY (time_from, id, input)
{{ttl "blind_spot_versions"}}
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'blind spots, a row a version';

CREATE VIEW IF NOT EXISTS {{.Database}}.blind_spots AS
SELECT
    id,
    max(b.version) AS version,
    argMax(b.kind, (b.version, b.inserted_at)) AS kind,
    argMax(b.subject, (b.version, b.inserted_at)) AS subject,
    argMax(b.about, (b.version, b.inserted_at)) AS about,
    tupleElement(argMax(tuple(b.address), (b.version, b.inserted_at)), 1) AS address,
    argMax(b.source, (b.version, b.inserted_at)) AS source,
    argMax(b.domain, (b.version, b.inserted_at)) AS domain,
    argMax(b.name, (b.version, b.inserted_at)) AS name,
    argMax(b.segment, (b.version, b.inserted_at)) AS segment,
    argMax(b.time_from, (b.version, b.inserted_at)) AS time_from,
    tupleElement(argMax(tuple(b.time_until), (b.version, b.inserted_at)), 1) AS time_until,
    argMax(b.details, (b.version, b.inserted_at)) AS details,
    argMax(b.finding, (b.version, b.inserted_at)) AS finding
FROM {{.Database}}.blind_spot_versions AS b
GROUP BY id
COMMENT 'one row a stretch of time in which something was not seen; its newest version';
