-- The daily roll-up: the hourly one without the hour. The engine adds to it whatever is added to that, in the
-- same insert and under the same token, so that it is right whenever the hourly one is.
CREATE TABLE IF NOT EXISTS {{.Database}}.edge_days
(
    day Date COMMENT 'the UTC day that the sessions began on' CODEC(Delta, ZSTD(1)),
    reason Enum8('' = 0, 'permitted' = 1, 'waived' = 2, 'expired-exception' = 3, 'not-yet-valid' = 4, 'unapproved' = 5, 'out-of-scope' = 6, 'denied' = 7, 'uncovered' = 8, 'unverified' = 9, 'expiry-uncertain' = 10) COMMENT 'why expected says so; empty is not judged' CODEC(ZSTD(1)),
    server IPv6 COMMENT 'who answered' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'the service as policy writes it; the protocol alone while orientation = open' CODEC(ZSTD(1)),
    client IPv6 COMMENT 'who began it; the lower end of the pair while orientation = open' CODEC(ZSTD(1)),
    orientation Enum8('known' = 0, 'open' = 1) COMMENT 'open where client and server could not be told apart' CODEC(ZSTD(1)),
    src_segment LowCardinality(String) COMMENT 'the client''s segment' CODEC(ZSTD(1)),
    dst_segment LowCardinality(String) COMMENT 'the server''s segment' CODEC(ZSTD(1)),
    src_workload LowCardinality(String) COMMENT 'the client''s workload' CODEC(ZSTD(1)),
    dst_workload LowCardinality(String) COMMENT 'the server''s workload' CODEC(ZSTD(1)),
    src_identity LowCardinality(String) COMMENT 'who was behind the client; empty is not known' CODEC(ZSTD(1)),
    dst_identity LowCardinality(String) COMMENT 'who was behind the server; empty is not known' CODEC(ZSTD(1)),
    expected Enum8('unknown' = 0, 'allow' = 1, 'deny' = 2) COMMENT 'what the policy in force says' CODEC(ZSTD(1)),
    staged Enum8('unknown' = 0, 'allow' = 1, 'deny' = 2) COMMENT 'what it would say if all that is staged were enforced' CODEC(ZSTD(1)),
    observed Enum8('unknown' = 0, 'allow' = 1, 'deny' = 2, 'audit' = 3) COMMENT 'what enforcement did' CODEC(ZSTD(1)),
    outcome Enum8('none' = 0, 'permitted' = 1, 'blocked' = 2, 'escaped' = 3, 'misblocked' = 4, 'attempted' = 5) COMMENT 'observed against expected' CODEC(ZSTD(1)),
    rule LowCardinality(String) COMMENT 'the deciding rule, or default:in:SEGMENT, default:out:SEGMENT' CODEC(ZSTD(1)),
    exception LowCardinality(String) COMMENT 'the exception that waives or is implicated' CODEC(ZSTD(1)),
    sessions SimpleAggregateFunction(sum, Int64) COMMENT 'sessions that began on the day' CODEC(ZSTD(1)),
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
    hours SimpleAggregateFunction(groupBitOr, UInt32) COMMENT 'the hours of the day that anything was added in, a bit each' CODEC(ZSTD(1)),
    input LowCardinality(String) COMMENT 'what the sessions were read from' CODEC(ZSTD(1)),
    inserted_at SimpleAggregateFunction(max, DateTime64(3, 'UTC')) COMMENT 'when the newest range of input in it was sealed; retention counts from here' CODEC(ZSTD(1)),
    INDEX client_bloom client TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX exception_set exception TYPE set(64) GRANULARITY 4,
    INDEX rule_set rule TYPE set(64) GRANULARITY 4
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(inserted_at, 'UTC')
PRIMARY KEY (day, reason, server, service, client)
ORDER BY (day, reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, expected, staged, observed, outcome, rule, exception, input, src_identity, dst_identity)
{{ttl "edge_days"}}
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'what sessions add to the edges of their day';

-- What is there already, once.
INSERT INTO {{.Database}}.edge_days (day, reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity, expected, staged, observed, outcome, rule, exception, sessions, answered, live, client_bytes, client_packets, server_bytes, server_packets, first_seen, last_seen, live_first_seen, live_last_seen, hours, input, inserted_at)
SELECT toDate(hour, 'UTC'), reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity, expected, staged, observed, outcome, rule, exception, sessions, answered, live, client_bytes, client_packets, server_bytes, server_packets, first_seen, last_seen, live_first_seen, live_last_seen, toUInt32(bitShiftLeft(1, toHour(hour, 'UTC'))), input, inserted_at
FROM {{.Database}}.edge_hours WHERE (SELECT count() FROM {{.Database}}.edge_days) = 0;

CREATE MATERIALIZED VIEW IF NOT EXISTS {{.Database}}.edge_days_of_hours TO {{.Database}}.edge_days AS
SELECT
    toDate(hour, 'UTC') AS day, reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity, expected, staged, observed, outcome, rule, exception,
    sum(e.sessions) AS sessions, sum(e.answered) AS answered, sum(e.live) AS live, sum(e.client_bytes) AS client_bytes, sum(e.client_packets) AS client_packets, sum(e.server_bytes) AS server_bytes, sum(e.server_packets) AS server_packets,
    min(e.first_seen) AS first_seen, max(e.last_seen) AS last_seen, min(e.live_first_seen) AS live_first_seen, max(e.live_last_seen) AS live_last_seen,
    groupBitOr(toUInt32(bitShiftLeft(1, toHour(hour, 'UTC')))) AS hours, input, max(e.inserted_at) AS inserted_at
FROM {{.Database}}.edge_hours AS e
GROUP BY day, reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity, expected, staged, observed, outcome, rule, exception, input;

CREATE OR REPLACE VIEW {{.Database}}.edges_daily AS
SELECT
    day, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity,
    expected, staged, reason, observed, outcome, rule, exception,
    toUInt64(sum(e.sessions)) AS sessions,
    toUInt64(sum(e.answered)) AS answered,
    toUInt64(sum(e.live)) AS live,
    toUInt64(bitCount(groupBitOr(e.hours))) AS hours,
    toUInt64(sum(e.client_bytes)) AS client_bytes,
    toUInt64(sum(e.client_packets)) AS client_packets,
    toUInt64(sum(e.server_bytes)) AS server_bytes,
    toUInt64(sum(e.server_packets)) AS server_packets,
    toDateTime(if(sum(e.live) > 0, least(min(e.first_seen), min(e.live_first_seen)), min(e.first_seen)), 'UTC') AS first_seen,
    toDateTime(if(sum(e.live) > 0, greatest(max(e.last_seen), max(e.live_last_seen)), max(e.last_seen)), 'UTC') AS last_seen
FROM {{.Database}}.edge_days AS e
GROUP BY day, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity,
    expected, staged, reason, observed, outcome, rule, exception
HAVING sum(e.sessions) > 0
COMMENT 'the daily roll-up of sessions';
