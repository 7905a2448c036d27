-- The hourly roll-up of sessions: what each adds to its edge, added up as parts are merged.
-- What is taken back is added with a minus, so the sums are exact at any time; the views show them.
CREATE TABLE IF NOT EXISTS {{.Database}}.edge_hours
(
    hour DateTime('UTC') COMMENT 'the hour that the sessions began in' CODEC(Delta, ZSTD(1)),
    reason Enum8('' = 0, 'permitted' = 1, 'waived' = 2, 'expired-exception' = 3, 'not-yet-valid' = 4, 'unapproved' = 5, 'out-of-scope' = 6, 'denied' = 7, 'uncovered' = 8, 'unverified' = 9, 'expiry-uncertain' = 10) COMMENT 'why expected says so; empty is not judged' CODEC(ZSTD(1)),
    server IPv6 COMMENT 'who answered' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'the service as policy writes it; the protocol alone while orientation = open' CODEC(ZSTD(1)),
    client IPv6 COMMENT 'who began it; the lower end of the pair while orientation = open' CODEC(ZSTD(1)),
    orientation Enum8('known' = 0, 'open' = 1) COMMENT 'open where client and server could not be told apart' CODEC(ZSTD(1)),
    src_segment LowCardinality(String) COMMENT 'the client''s segment' CODEC(ZSTD(1)),
    dst_segment LowCardinality(String) COMMENT 'the server''s segment' CODEC(ZSTD(1)),
    src_workload LowCardinality(String) COMMENT 'the client''s workload' CODEC(ZSTD(1)),
    dst_workload LowCardinality(String) COMMENT 'the server''s workload' CODEC(ZSTD(1)),
    expected Enum8('unknown' = 0, 'allow' = 1, 'deny' = 2) COMMENT 'what the policy in force says' CODEC(ZSTD(1)),
    staged Enum8('unknown' = 0, 'allow' = 1, 'deny' = 2) COMMENT 'what it would say if all that is staged were enforced' CODEC(ZSTD(1)),
    observed Enum8('unknown' = 0, 'allow' = 1, 'deny' = 2, 'audit' = 3) COMMENT 'what enforcement did' CODEC(ZSTD(1)),
    outcome Enum8('none' = 0, 'permitted' = 1, 'blocked' = 2, 'escaped' = 3, 'misblocked' = 4, 'attempted' = 5) COMMENT 'observed against expected' CODEC(ZSTD(1)),
    rule LowCardinality(String) COMMENT 'the deciding rule, or default:in:SEGMENT, default:out:SEGMENT' CODEC(ZSTD(1)),
    exception LowCardinality(String) COMMENT 'the exception that waives or is implicated' CODEC(ZSTD(1)),
    sessions SimpleAggregateFunction(sum, Int64) COMMENT 'sessions that began in the hour' CODEC(ZSTD(1)),
    answered SimpleAggregateFunction(sum, Int64) COMMENT 'of these, with traffic in both directions' CODEC(ZSTD(1)),
    live SimpleAggregateFunction(sum, Int64) COMMENT 'of these, not over yet: what they add may still change' CODEC(ZSTD(1)),
    client_bytes SimpleAggregateFunction(sum, Int64) COMMENT 'bytes the clients sent, of the whole of the sessions, however long they last' CODEC(ZSTD(1)),
    client_packets SimpleAggregateFunction(sum, Int64) COMMENT 'packets the clients sent, likewise' CODEC(ZSTD(1)),
    server_bytes SimpleAggregateFunction(sum, Int64) COMMENT 'bytes the servers sent, likewise' CODEC(ZSTD(1)),
    server_packets SimpleAggregateFunction(sum, Int64) COMMENT 'packets the servers sent, likewise' CODEC(ZSTD(1)),
    first_seen SimpleAggregateFunction(min, DateTime('UTC')) COMMENT 'when the first of the sessions that are over began, to the second; the greatest time there is for none' CODEC(ZSTD(1)),
    last_seen SimpleAggregateFunction(max, DateTime('UTC')) COMMENT 'when the last of the sessions that are over ended; 1970 for none' CODEC(ZSTD(1)),
    live_first_seen SimpleAggregateFunction(min, DateTime('UTC')) COMMENT 'first_seen of sessions as they were when they were not over; counts while some are live' CODEC(ZSTD(1)),
    live_last_seen SimpleAggregateFunction(max, DateTime('UTC')) COMMENT 'last_seen of those' CODEC(ZSTD(1)),
    input LowCardinality(String) COMMENT 'what the sessions were read from' CODEC(ZSTD(1)),
    inserted_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')) COMMENT 'when the newest range of input in it was sealed; retention counts from here' CODEC(ZSTD(1)),
    INDEX client_bloom client TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX exception_set exception TYPE set(64) GRANULARITY 4,
    INDEX rule_set rule TYPE set(64) GRANULARITY 4
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(inserted_at, 'UTC')
PRIMARY KEY (hour, reason, server, service, client)
ORDER BY (hour, reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, expected, staged, observed, outcome, rule, exception, input)
{{ttl "edge_hours"}}
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'what sessions add to the edges of their hour';

CREATE VIEW IF NOT EXISTS {{.Database}}.edges AS
SELECT
    hour, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload,
    expected, staged, reason, observed, outcome, rule, exception,
    toUInt64(sum(e.sessions)) AS sessions,
    toUInt64(sum(e.answered)) AS answered,
    toUInt64(sum(e.live)) AS live,
    toUInt64(sum(e.client_bytes)) AS client_bytes,
    toUInt64(sum(e.client_packets)) AS client_packets,
    toUInt64(sum(e.server_bytes)) AS server_bytes,
    toUInt64(sum(e.server_packets)) AS server_packets,
    toDateTime(if(sum(e.live) > 0, least(min(e.first_seen), min(e.live_first_seen)), min(e.first_seen)), 'UTC') AS first_seen,
    toDateTime(if(sum(e.live) > 0, greatest(max(e.last_seen), max(e.live_last_seen)), max(e.last_seen)), 'UTC') AS last_seen
FROM {{.Database}}.edge_hours AS e
GROUP BY hour, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload,
    expected, staged, reason, observed, outcome, rule, exception
HAVING sum(e.sessions) > 0
COMMENT 'the hourly roll-up of sessions: one row an hour, pair, service and verdict';

CREATE VIEW IF NOT EXISTS {{.Database}}.edges_daily AS
SELECT
    toDate(hour, 'UTC') AS day, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload,
    expected, staged, reason, observed, outcome, rule, exception,
    toUInt64(sum(e.sessions)) AS sessions,
    toUInt64(sum(e.answered)) AS answered,
    toUInt64(sum(e.live)) AS live,
    uniqExact(hour) AS hours,
    toUInt64(sum(e.client_bytes)) AS client_bytes,
    toUInt64(sum(e.client_packets)) AS client_packets,
    toUInt64(sum(e.server_bytes)) AS server_bytes,
    toUInt64(sum(e.server_packets)) AS server_packets,
    min(e.first_seen) AS first_seen,
    max(e.last_seen) AS last_seen
FROM {{.Database}}.edges AS e
GROUP BY day, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload,
    expected, staged, reason, observed, outcome, rule, exception
COMMENT 'the same by day';

CREATE VIEW IF NOT EXISTS {{.Database}}.segment_pairs AS
SELECT
    hour, src_segment, dst_segment,
    toUInt64(sum(e.sessions)) AS sessions,
    toUInt64(sumIf(e.sessions, outcome = 'permitted')) AS permitted,
    toUInt64(sumIf(e.sessions, outcome = 'blocked')) AS blocked,
    toUInt64(sumIf(e.sessions, outcome = 'escaped')) AS escaped,
    toUInt64(sumIf(e.sessions, outcome = 'misblocked')) AS misblocked,
    toUInt64(sumIf(e.sessions, outcome = 'attempted')) AS attempted,
    toUInt64(sumIf(e.sessions, outcome = 'none')) AS undecided,
    blocked / sum(e.sessions) AS blocked_rate,
    escaped / sum(e.sessions) AS escaped_rate,
    toUInt64(sum(e.client_bytes) + sum(e.server_bytes)) AS bytes
FROM {{.Database}}.edge_hours AS e
GROUP BY hour, src_segment, dst_segment
HAVING sum(e.sessions) > 0
COMMENT 'the hourly roll-up by pair of segments: how much of it was blocked and how much escaped';
