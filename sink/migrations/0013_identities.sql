-- Who was behind the two ends is part of what the hourly roll-up tells apart. The identities come
-- last in the sorting key, where columns can still be added; a binary that does not know them
-- writes empty ones, which is not known.
ALTER TABLE {{.Database}}.edge_hours
    ADD COLUMN IF NOT EXISTS src_identity LowCardinality(String) COMMENT 'who was behind the client; empty is not known' CODEC(ZSTD(1)) AFTER dst_workload,
    ADD COLUMN IF NOT EXISTS dst_identity LowCardinality(String) COMMENT 'who was behind the server; empty is not known' CODEC(ZSTD(1)) AFTER src_identity,
    MODIFY ORDER BY (hour, reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, expected, staged, observed, outcome, rule, exception, input, src_identity, dst_identity);

CREATE OR REPLACE VIEW {{.Database}}.edges AS
SELECT
    hour, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity,
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
GROUP BY hour, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity,
    expected, staged, reason, observed, outcome, rule, exception
HAVING sum(e.sessions) > 0
COMMENT 'the hourly roll-up of sessions: one row an hour, pair, service, identities and verdict';

CREATE OR REPLACE VIEW {{.Database}}.edges_daily AS
SELECT
    toDate(hour, 'UTC') AS day, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity,
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
GROUP BY day, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity,
    expected, staged, reason, observed, outcome, rule, exception
COMMENT 'the same by day';
