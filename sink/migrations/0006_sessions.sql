-- Sessions: what all observers together say of one conversation. A later version of an id
-- replaces the earlier ones when parts are merged; the view shows the newest at any time.
CREATE TABLE IF NOT EXISTS {{.Database}}.session_versions
(
    id UInt64 COMMENT 'the session: a hash of its conversation and of began' CODEC(NONE),
    version UInt64 COMMENT 'rises with content; the highest of an id counts' CODEC(ZSTD(1)),
    part_of UInt64 COMMENT 'the session that this one turned out to be part of; 0 while it stands by itself' CODEC(ZSTD(1)),
    conversation UInt64 COMMENT 'the unordered five-tuple, as in flows' CODEC(ZSTD(1)),
    began DateTime64(3, 'UTC') COMMENT 'when it began by what was known as it was written first; never changes' CODEC(Delta, ZSTD(1)),
    time_start DateTime64(3, 'UTC') COMMENT 'earliest time of any observation' CODEC(Delta, ZSTD(1)),
    time_end DateTime64(3, 'UTC') COMMENT 'latest time of any observation' CODEC(Delta, ZSTD(1)),
    client IPv6 COMMENT 'who began it; the lower end of the pair while orientation = open' CODEC(ZSTD(1)),
    server IPv6 COMMENT 'who answered' CODEC(ZSTD(1)),
    client_port Nullable(UInt16) COMMENT 'the client''s port' CODEC(ZSTD(1)),
    server_port Nullable(UInt16) COMMENT 'the server''s port' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'the service as policy writes it' CODEC(ZSTD(1)),
    orientation Enum8('known' = 0, 'open' = 1) COMMENT 'open where client and server could not be told apart' CODEC(ZSTD(1)),
    orientation_certainty UInt8 COMMENT 'per cent' CODEC(ZSTD(1)),
    proto UInt8 COMMENT 'IP protocol number' CODEC(ZSTD(1)),
    nat Enum8('none' = 0, 'translated' = 1, 'unverified' = 2) COMMENT 'translated: an observer told both tuples; unverified: an end is translated and nobody told who it is' CODEC(ZSTD(1)),
    nat_client Nullable(IPv6) COMMENT 'the client after translation' CODEC(ZSTD(1)),
    nat_server Nullable(IPv6) COMMENT 'the server after translation' CODEC(ZSTD(1)),
    nat_client_port Nullable(UInt16) COMMENT 'the client''s port after translation' CODEC(ZSTD(1)),
    nat_server_port Nullable(UInt16) COMMENT 'the server''s port after translation' CODEC(ZSTD(1)),
    both_ways Bool COMMENT 'there was traffic in both directions' CODEC(ZSTD(1)),
    client_bytes Nullable(UInt64) COMMENT 'bytes the client sent, as the best observer told, scaled by sampling; never a sum over observers' CODEC(ZSTD(1)),
    client_packets Nullable(UInt64) COMMENT 'packets the client sent, likewise' CODEC(ZSTD(1)),
    server_bytes Nullable(UInt64) COMMENT 'bytes the server sent, likewise' CODEC(ZSTD(1)),
    server_packets Nullable(UInt64) COMMENT 'packets the server sent, likewise' CODEC(ZSTD(1)),
    client_tcp_flags UInt16 COMMENT 'TCP flags that the client sent, an OR over all observations' CODEC(ZSTD(1)),
    server_tcp_flags UInt16 COMMENT 'TCP flags that the server sent' CODEC(ZSTD(1)),
    src_segment LowCardinality(String) COMMENT 'the client''s segment' CODEC(ZSTD(1)),
    dst_segment LowCardinality(String) COMMENT 'the server''s segment' CODEC(ZSTD(1)),
    src_workload LowCardinality(String) COMMENT 'the client''s workload' CODEC(ZSTD(1)),
    dst_workload LowCardinality(String) COMMENT 'the server''s workload' CODEC(ZSTD(1)),
    src_identity LowCardinality(String) COMMENT 'who was behind the client; empty is not known' CODEC(ZSTD(1)),
    dst_identity LowCardinality(String) COMMENT 'who was behind the server; empty is not known' CODEC(ZSTD(1)),
    src_identity_from LowCardinality(String) COMMENT 'the agent whose word src_identity is; empty for an exporter, a directory or nobody' CODEC(ZSTD(1)),
    dst_identity_from LowCardinality(String) COMMENT 'the agent whose word dst_identity is' CODEC(ZSTD(1)),
    src_identity_certainty UInt8 COMMENT 'per cent: 100 by the client''s own agent, less by others' CODEC(ZSTD(1)),
    dst_identity_certainty UInt8 COMMENT 'per cent: 100 by the server''s own agent, less by others' CODEC(ZSTD(1)),
    src_host LowCardinality(String) COMMENT 'the client as an agent calls it' CODEC(ZSTD(1)),
    dst_host LowCardinality(String) COMMENT 'the server as an agent calls it' CODEC(ZSTD(1)),
    src_process LowCardinality(String) COMMENT 'the program at the client' CODEC(ZSTD(1)),
    dst_process LowCardinality(String) COMMENT 'the program at the server' CODEC(ZSTD(1)),
    src_agent Bool COMMENT 'the client''s own agent told of it' CODEC(ZSTD(1)),
    dst_agent Bool COMMENT 'the server''s own agent told of it' CODEC(ZSTD(1)),
    observed Enum8('unknown' = 0, 'allow' = 1, 'deny' = 2, 'audit' = 3) COMMENT 'what enforcement did: a denial by anybody counts, then audit, then allow' CODEC(ZSTD(1)),
    expected Enum8('unknown' = 0, 'allow' = 1, 'deny' = 2) COMMENT 'what the policy in force says' CODEC(ZSTD(1)),
    staged Enum8('unknown' = 0, 'allow' = 1, 'deny' = 2) COMMENT 'what it would say if all that is staged were enforced' CODEC(ZSTD(1)),
    staged_reason Enum8('' = 0, 'permitted' = 1, 'waived' = 2, 'expired-exception' = 3, 'not-yet-valid' = 4, 'unapproved' = 5, 'out-of-scope' = 6, 'denied' = 7, 'uncovered' = 8, 'unverified' = 9, 'expiry-uncertain' = 10) COMMENT 'why staged says so' CODEC(ZSTD(1)),
    reason Enum8('' = 0, 'permitted' = 1, 'waived' = 2, 'expired-exception' = 3, 'not-yet-valid' = 4, 'unapproved' = 5, 'out-of-scope' = 6, 'denied' = 7, 'uncovered' = 8, 'unverified' = 9, 'expiry-uncertain' = 10) COMMENT 'why expected says so; empty is not judged' CODEC(ZSTD(1)),
    outcome Enum8('none' = 0, 'permitted' = 1, 'blocked' = 2, 'escaped' = 3, 'misblocked' = 4, 'attempted' = 5) COMMENT 'observed against expected' CODEC(ZSTD(1)),
    confidence Float32 COMMENT '0 to 1' CODEC(ZSTD(1)),
    rule LowCardinality(String) COMMENT 'the deciding rule, or default:in:SEGMENT, default:out:SEGMENT' CODEC(ZSTD(1)),
    exception LowCardinality(String) COMMENT 'the exception that waives or is implicated' CODEC(ZSTD(1)),
    failed Array(Enum8('source' = 0, 'destination' = 1, 'service' = 2, 'identity' = 3, 'process' = 4, 'posture' = 5, 'schedule' = 6, 'direction' = 7, 'rule' = 8, 'limit' = 9)) COMMENT 'where the implicated exception does not match' CODEC(ZSTD(1)),
    missing Array(Enum8('source' = 0, 'destination' = 1, 'service' = 2, 'identity' = 3, 'process' = 4, 'posture' = 5, 'schedule' = 6, 'direction' = 7, 'rule' = 8, 'limit' = 9)) COMMENT 'what was not known and would have mattered' CODEC(ZSTD(1)),
    others Array(LowCardinality(String)) COMMENT 'further exceptions, redundant or implicated, at most eight' CODEC(ZSTD(1)),
    others_total UInt16 COMMENT 'how many further exceptions there are' CODEC(ZSTD(1)),
    valid_until Nullable(DateTime64(3, 'UTC')) COMMENT 'waived: the latest end among the exceptions that fit' CODEC(ZSTD(1)),
    policy_version LowCardinality(String) COMMENT 'the policy version it was judged by' CODEC(ZSTD(1)),
    enforced_by LowCardinality(String) COMMENT 'the policy or rule that enforcement named' CODEC(ZSTD(1)),
    contradictions Array(Enum8('identity' = 0, 'unseen' = 1, 'verdict' = 2)) COMMENT 'what observers told differently: two identities for one side; an end whose healthy agent never saw it; stopped at the client, and seen' CODEC(ZSTD(1)),
    quality Array(Enum8('clock_skew' = 0, 'clock_unusable' = 1, 'time_missing' = 2, 'time_reversed' = 3, 'template_changed' = 4, 'parked' = 5, 'truncated' = 6, 'sampling_unknown' = 7, 'address_missing' = 8, 'observer_duplicate' = 9, 'direction_open' = 10, 'counter_missing' = 11, 'names_full' = 12, 'aggregated' = 13)) COMMENT 'remarks about how far the observations can be trusted, of all' CODEC(ZSTD(1)),
    records UInt32 COMMENT 'observations, each a row of flows' CODEC(ZSTD(1)),
    observers_total UInt16 COMMENT 'how many observers told of it; holds at 64' CODEC(ZSTD(1)),
    `observers.exporter` Array(IPv6) COMMENT 'who told it, at most eight: the exporter or who sent the log' CODEC(ZSTD(1)),
    `observers.domain` Array(UInt32) COMMENT 'its observation domain' CODEC(ZSTD(1)),
    `observers.name` Array(LowCardinality(String)) COMMENT 'the agent, sensor or node by its own name' CODEC(ZSTD(1)),
    `observers.source` Array(Enum8('unknown' = 0, 'netflow_v5' = 1, 'netflow_v9' = 2, 'ipfix' = 3, 'sflow_v5' = 4, 'hubble' = 5, 'zeek' = 6, 'suricata' = 7, 'aws_vpc' = 8, 'azure_vnet' = 9, 'azure_nsg' = 10, 'gcp_vpc' = 11, 'gcp_firewall' = 12, 'calico' = 13, 'sysmon' = 14, 'wfp' = 15, 'illumio' = 16, 'guardicore' = 17, 'cef' = 18, 'conntrack' = 19, 'netfilter' = 20, 'ocsf' = 21, 'ecs' = 22, 'custom' = 23)) COMMENT 'the format it told it in' CODEC(ZSTD(1)),
    `observers.reporter` Array(Enum8('' = 0, 'client' = 1, 'server' = 2)) COMMENT 'which end it sits at; empty is elsewhere, or not known' CODEC(ZSTD(1)),
    `observers.observed` Array(Enum8('unknown' = 0, 'allow' = 1, 'deny' = 2, 'audit' = 3)) COMMENT 'what it says that enforcement did' CODEC(ZSTD(1)),
    `observers.records` Array(UInt32) COMMENT 'its observations' CODEC(ZSTD(1)),
    `observers.first` Array(DateTime64(3, 'UTC')) COMMENT 'its earliest time, corrected by skew_ms' CODEC(ZSTD(1)),
    `observers.last` Array(DateTime64(3, 'UTC')) COMMENT 'its latest time, corrected by skew_ms' CODEC(ZSTD(1)),
    `observers.skew_ms` Array(Int32) COMMENT 'how far its clock was found to be off, taken off its times' CODEC(ZSTD(1)),
    input LowCardinality(String) COMMENT 'what its last observation was read from' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'when the range of input it was written with was sealed; retention counts from here' CODEC(ZSTD(1)),
    INDEX client_bloom client TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX server_bloom server TYPE bloom_filter(0.01) GRANULARITY 4
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toDate(inserted_at, 'UTC')
ORDER BY (toStartOfHour(began), conversation, id)
{{ttl "session_versions"}}
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'sessions, a row a version';

CREATE VIEW IF NOT EXISTS {{.Database}}.sessions AS
SELECT * FROM {{.Database}}.session_versions FINAL WHERE part_of = 0
COMMENT 'one row a session: its newest version';

-- What joins flows to sessions.
ALTER TABLE {{.Database}}.flows
    ADD COLUMN IF NOT EXISTS conversation UInt64 COMMENT 'the unordered five-tuple; joins sessions whose time_start to time_end holds time_start. 0 where an address or the protocol is missing' CODEC(ZSTD(1)) AFTER dst_silence;
