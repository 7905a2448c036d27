-- What a database on one server is made with. Written by go test ./sink -run TestDDLGolden -update.

-- database postern
CREATE DATABASE IF NOT EXISTS postern COMMENT 'Postern';

CREATE TABLE IF NOT EXISTS postern.schema_migrations
(
    version UInt32 COMMENT 'number of the migration',
    name String COMMENT 'its name',
    checksum String COMMENT 'SHA-256 of its file',
    applied_at DateTime64(3, 'UTC') COMMENT 'when it had been applied'
)
ENGINE = ReplacingMergeTree(applied_at)
ORDER BY version
COMMENT 'which migrations have been applied';

-- 0001 flows
CREATE TABLE IF NOT EXISTS postern.flows
(
    time_start DateTime64(3, 'UTC') COMMENT 'when the flow began, by the exporter''s clock' CODEC(Delta, ZSTD(1)),
    time_end DateTime64(3, 'UTC') COMMENT 'when it ended' CODEC(Delta, ZSTD(1)),
    time_received DateTime64(3, 'UTC') COMMENT 'when its datagram arrived, or the packet''s stamp in a capture' CODEC(Delta, ZSTD(1)),
    exporter IPv6 COMMENT 'who told it' CODEC(ZSTD(1)),
    domain UInt32 COMMENT 'observation domain (IPFIX), source id (v9), engine (v5), sub-agent (sFlow)' CODEC(ZSTD(1)),
    source Enum8('unknown' = 0, 'netflow_v5' = 1, 'netflow_v9' = 2, 'ipfix' = 3, 'sflow_v5' = 4) COMMENT 'the format it came in' CODEC(ZSTD(1)),
    client IPv6 COMMENT 'who began it; the lower end of the pair while oriented = open' CODEC(ZSTD(1)),
    server IPv6 COMMENT 'who answered' CODEC(ZSTD(1)),
    client_port Nullable(UInt16) COMMENT 'the client''s port' CODEC(ZSTD(1)),
    server_port Nullable(UInt16) COMMENT 'the server''s port' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'the service as policy writes it: tcp/443, icmp/8/0, 47' CODEC(ZSTD(1)),
    oriented Enum8('open' = 0, 'forward' = 1, 'reverse' = 2) COMMENT 'forward: the record''s source is the client; reverse: its destination is; open: nobody knows' CODEC(ZSTD(1)),
    orientation_certainty UInt8 COMMENT 'per cent' CODEC(ZSTD(1)),
    swapped Bool COMMENT 'client is the record''s destination' CODEC(ZSTD(1)),
    other_half Bool COMMENT 'the other direction was seen too' CODEC(ZSTD(1)),
    proto Nullable(UInt8) COMMENT 'IP protocol number' CODEC(ZSTD(1)),
    tcp_flags Nullable(UInt16) COMMENT 'TCP flags, an OR over the flow' CODEC(ZSTD(1)),
    bytes UInt64 COMMENT 'bytes, scaled by sampling' CODEC(ZSTD(1)),
    packets UInt64 COMMENT 'packets, scaled by sampling' CODEC(ZSTD(1)),
    rev_tcp_flags Nullable(UInt16) COMMENT 'TCP flags of the reverse direction, where one record tells both' CODEC(ZSTD(1)),
    rev_bytes UInt64 COMMENT 'bytes of the reverse direction, scaled' CODEC(ZSTD(1)),
    rev_packets UInt64 COMMENT 'packets of the reverse direction, scaled' CODEC(ZSTD(1)),
    sampling_rate UInt32 COMMENT 'packets seen per packet counted; 0 unknown, 1 unsampled' CODEC(ZSTD(1)),
    bytes_raw Nullable(UInt64) COMMENT 'bytes as the exporter counted them' CODEC(ZSTD(1)),
    packets_raw Nullable(UInt64) COMMENT 'packets as the exporter counted them' CODEC(ZSTD(1)),
    rev_bytes_raw Nullable(UInt64) COMMENT 'bytes of the reverse direction as counted' CODEC(ZSTD(1)),
    rev_packets_raw Nullable(UInt64) COMMENT 'packets of the reverse direction as counted' CODEC(ZSTD(1)),
    in_if Nullable(UInt32) COMMENT 'interface it came in by' CODEC(ZSTD(1)),
    out_if Nullable(UInt32) COMMENT 'interface it went out by' CODEC(ZSTD(1)),
    nat_src_addr Nullable(IPv6) COMMENT 'source after translation' CODEC(ZSTD(1)),
    nat_dst_addr Nullable(IPv6) COMMENT 'destination after translation' CODEC(ZSTD(1)),
    nat_src_port Nullable(UInt16) COMMENT 'source port after translation' CODEC(ZSTD(1)),
    nat_dst_port Nullable(UInt16) COMMENT 'destination port after translation' CODEC(ZSTD(1)),
    icmp_type Nullable(UInt8) COMMENT 'ICMP type' CODEC(ZSTD(1)),
    icmp_code Nullable(UInt8) COMMENT 'ICMP code' CODEC(ZSTD(1)),
    forwarding_status Nullable(UInt8) COMMENT 'IPFIX 89 (RFC 7270): 64–127 forwarded, 128–191 dropped' CODEC(ZSTD(1)),
    firewall_event Nullable(UInt8) COMMENT 'IPFIX 233: 1 created, 2 deleted, 3 denied, 4 alert, 5 update' CODEC(ZSTD(1)),
    direction Enum8('' = 0, 'ingress' = 1, 'egress' = 2) COMMENT 'at the observation point; empty if not told' CODEC(ZSTD(1)),
    biflow_direction Nullable(UInt8) COMMENT 'IPFIX 239 (RFC 5103): 1 initiator, 2 reverse initiator, 3 perimeter' CODEC(ZSTD(1)),
    user LowCardinality(String) COMMENT 'user the exporter named, at the record''s source' CODEC(ZSTD(1)),
    app LowCardinality(String) COMMENT 'application the exporter named' CODEC(ZSTD(1)),
    quality Array(Enum8('clock_skew' = 0, 'clock_unusable' = 1, 'time_missing' = 2, 'time_reversed' = 3, 'template_changed' = 4, 'parked' = 5, 'truncated' = 6, 'sampling_unknown' = 7, 'address_missing' = 8, 'observer_duplicate' = 9, 'direction_open' = 10, 'counter_missing' = 11, 'names_full' = 12)) COMMENT 'remarks about how far the record can be trusted' CODEC(ZSTD(1)),
    skew_ms Int32 COMMENT 'the exporter''s clock error, where beyond the tolerance' CODEC(ZSTD(1)),
    src_segment LowCardinality(String) COMMENT 'the client''s segment' CODEC(ZSTD(1)),
    dst_segment LowCardinality(String) COMMENT 'the server''s segment' CODEC(ZSTD(1)),
    src_workload LowCardinality(String) COMMENT 'the client''s workload' CODEC(ZSTD(1)),
    dst_workload LowCardinality(String) COMMENT 'the server''s workload' CODEC(ZSTD(1)),
    src_identity LowCardinality(String) COMMENT 'who was behind the client; empty is not known' CODEC(ZSTD(1)),
    dst_identity LowCardinality(String) COMMENT 'who was behind the server; empty is not known' CODEC(ZSTD(1)),
    observed Enum8('unknown' = 0, 'allow' = 1, 'deny' = 2, 'audit' = 3) COMMENT 'what enforcement did' CODEC(ZSTD(1)),
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
    record_id UInt64 COMMENT 'tells this record from every other, the same when the same input is read again' CODEC(NONE),
    input LowCardinality(String) COMMENT 'what it was read from: a spool, or a file''s hash' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'when the range of input it belongs to was sealed; retention counts from here' CODEC(ZSTD(1)),
    src_addr IPv6 ALIAS if(swapped, server, client) COMMENT 'source as on the wire',
    dst_addr IPv6 ALIAS if(swapped, client, server) COMMENT 'destination as on the wire',
    src_port Nullable(UInt16) ALIAS if(swapped, server_port, client_port) COMMENT 'source port as on the wire',
    dst_port Nullable(UInt16) ALIAS if(swapped, client_port, server_port) COMMENT 'destination port as on the wire',
    INDEX client_bloom client TYPE bloom_filter(0.01) GRANULARITY 4,
    INDEX exception_set exception TYPE set(64) GRANULARITY 4,
    INDEX rule_set rule TYPE set(64) GRANULARITY 4
)
ENGINE = MergeTree
PARTITION BY toDate(inserted_at, 'UTC')
ORDER BY (toStartOfHour(time_start), reason, server, service, client, time_start)
TTL toDateTime(inserted_at) + toIntervalSecond(2592000)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'judged flows, one row a record';

-- 0002 findings
CREATE TABLE IF NOT EXISTS postern.finding_contributions
(
    id String COMMENT 'the finding''s id' CODEC(ZSTD(1)),
    revision UInt64 COMMENT 'rises with content' CODEC(ZSTD(1)),
    sessions Int64 COMMENT 'sessions this batch adds; negative where a late record joined two' CODEC(ZSTD(1)),
    batch_first_seen DateTime64(3, 'UTC') COMMENT 'earliest time in this batch' CODEC(ZSTD(1)),
    batch_last_seen DateTime64(3, 'UTC') COMMENT 'latest time in this batch' CODEC(ZSTD(1)),
    schema_version UInt16 COMMENT 'version of the finding''s JSON form' CODEC(ZSTD(1)),
    type LowCardinality(String) COMMENT 'kind of finding' CODEC(ZSTD(1)),
    title String COMMENT 'what happened, in a few words' CODEC(ZSTD(1)),
    severity Enum8('informational' = 0, 'low' = 1, 'medium' = 2, 'high' = 3, 'critical' = 4) COMMENT 'how bad; compares in this order' CODEC(ZSTD(1)),
    confidence Float64 COMMENT '0 to 1' CODEC(ZSTD(1)),
    client String COMMENT 'who began it; the lower end of the pair while orientation = open' CODEC(ZSTD(1)),
    server String COMMENT 'who answered' CODEC(ZSTD(1)),
    orientation LowCardinality(String) COMMENT 'known, or open where the two could not be told apart' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'the service as policy writes it' CODEC(ZSTD(1)),
    src_segment LowCardinality(String) COMMENT 'the client''s segment' CODEC(ZSTD(1)),
    dst_segment LowCardinality(String) COMMENT 'the server''s segment' CODEC(ZSTD(1)),
    observed LowCardinality(String) COMMENT 'what enforcement did' CODEC(ZSTD(1)),
    expected LowCardinality(String) COMMENT 'what the policy in force says' CODEC(ZSTD(1)),
    reason LowCardinality(String) COMMENT 'why' CODEC(ZSTD(1)),
    outcome LowCardinality(String) COMMENT 'observed against expected' CODEC(ZSTD(1)),
    failed Array(LowCardinality(String)) COMMENT 'where the implicated exception does not match' CODEC(ZSTD(1)),
    missing Array(LowCardinality(String)) COMMENT 'what was not known and would have mattered' CODEC(ZSTD(1)),
    rule LowCardinality(String) COMMENT 'the deciding rule' CODEC(ZSTD(1)),
    exception LowCardinality(String) COMMENT 'the exception implicated' CODEC(ZSTD(1)),
    ticket String COMMENT 'its ticket' CODEC(ZSTD(1)),
    owner LowCardinality(String) COMMENT 'whose it is' CODEC(ZSTD(1)),
    requester LowCardinality(String) COMMENT 'who asked for it' CODEC(ZSTD(1)),
    approver LowCardinality(String) COMMENT 'who approved it' CODEC(ZSTD(1)),
    policy_version LowCardinality(String) COMMENT 'the policy version it was judged by' CODEC(ZSTD(1)),
    techniques Array(LowCardinality(String)) COMMENT 'MITRE ATT&CK ids' CODEC(ZSTD(1)),
    continues String COMMENT 'id of the finding of the day before that this one goes on' CODEC(ZSTD(1)),
    edges Array(Tuple(source String, destination String, port UInt16, protocol String)) COMMENT 'what it speaks of, at most 100' CODEC(ZSTD(1)),
    edges_total UInt64 COMMENT 'how many edges there are' CODEC(ZSTD(1)),
    samples Array(String) COMMENT 'judged flows as JSON' CODEC(ZSTD(1)),
    sentence String COMMENT 'who did what, in a sentence' CODEC(ZSTD(1)),
    next String COMMENT 'what to do' CODEC(ZSTD(1)),
    batch_ordinal UInt32 COMMENT 'place within its insert' CODEC(ZSTD(1)),
    input LowCardinality(String) COMMENT 'what it was read from' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'when the range of input it belongs to was sealed; retention counts from here' CODEC(ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(inserted_at, 'UTC')
ORDER BY (id, revision)
TTL toDateTime(inserted_at) + toIntervalSecond(34560000)
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'what each batch added to a finding';

CREATE VIEW IF NOT EXISTS postern.findings AS
SELECT
    id,
    tupleElement(s, 'schema_version') AS schema_version,
    revision,
    tupleElement(s, 'type') AS type,
    tupleElement(s, 'title') AS title,
    tupleElement(s, 'severity') AS severity,
    tupleElement(s, 'confidence') AS confidence,
    first_seen,
    last_seen,
    count,
    tupleElement(s, 'client') AS client,
    tupleElement(s, 'server') AS server,
    tupleElement(s, 'orientation') AS orientation,
    tupleElement(s, 'service') AS service,
    tupleElement(s, 'src_segment') AS src_segment,
    tupleElement(s, 'dst_segment') AS dst_segment,
    tupleElement(s, 'observed') AS observed,
    tupleElement(s, 'expected') AS expected,
    tupleElement(s, 'reason') AS reason,
    tupleElement(s, 'outcome') AS outcome,
    tupleElement(s, 'failed') AS failed,
    tupleElement(s, 'missing') AS missing,
    tupleElement(s, 'rule') AS rule,
    tupleElement(s, 'exception') AS exception,
    tupleElement(s, 'ticket') AS ticket,
    tupleElement(s, 'owner') AS owner,
    tupleElement(s, 'requester') AS requester,
    tupleElement(s, 'approver') AS approver,
    tupleElement(s, 'policy_version') AS policy_version,
    tupleElement(s, 'techniques') AS techniques,
    tupleElement(s, 'continues') AS continues,
    tupleElement(s, 'edges') AS edges,
    tupleElement(s, 'edges_total') AS edges_total,
    tupleElement(s, 'samples') AS samples,
    tupleElement(s, 'sentence') AS sentence,
    tupleElement(s, 'next') AS next
FROM
(
SELECT
    c.id AS id,
    max(c.revision) AS revision,
    min(c.batch_first_seen) AS first_seen,
    max(c.batch_last_seen) AS last_seen,
    sum(c.sessions) AS count,
    argMax(
        CAST(
            (c.schema_version, c.type, c.title, c.severity, c.confidence, c.client, c.server, c.orientation, c.service,
             c.src_segment, c.dst_segment, c.observed, c.expected, c.reason, c.outcome, c.failed, c.missing, c.rule, c.exception,
             c.ticket, c.owner, c.requester, c.approver, c.policy_version, c.techniques, c.continues, c.edges, c.edges_total,
             c.samples, c.sentence, c.next),
            'Tuple(schema_version UInt16, type String, title String, severity Enum8(\'informational\' = 0, \'low\' = 1, \'medium\' = 2, \'high\' = 3, \'critical\' = 4), confidence Float64, client String, server String, orientation String, service String, src_segment String, dst_segment String, observed String, expected String, reason String, outcome String, failed Array(String), missing Array(String), rule String, exception String, ticket String, owner String, requester String, approver String, policy_version String, techniques Array(String), continues String, edges Array(Tuple(source String, destination String, port UInt16, protocol String)), edges_total UInt64, samples Array(String), sentence String, next String)'),
        (c.revision, c.inserted_at, c.batch_ordinal)) AS s
FROM postern.finding_contributions AS c
GROUP BY id
)
COMMENT 'one row a finding: counts over all batches, words of the newest revision';

-- 0003 evidence
CREATE TABLE IF NOT EXISTS postern.policy_versions
(
    hash String COMMENT 'content hash of the compiled policy' CODEC(ZSTD(1)),
    since DateTime64(3, 'UTC') COMMENT 'from when on it is in force, until the next one''s since' CODEC(ZSTD(1)),
    accepted_at DateTime64(3, 'UTC') COMMENT 'when an instance accepted it; the first acceptance counts' CODEC(ZSTD(1)),
    instance LowCardinality(String) COMMENT 'which instance accepted it' CODEC(ZSTD(1)),
    source String COMMENT 'the policy itself, in full' CODEC(ZSTD(3)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'retention counts from here' CODEC(ZSTD(1))
)
ENGINE = MergeTree
ORDER BY (since, accepted_at, hash)
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'policies that came into force';

CREATE TABLE IF NOT EXISTS postern.exporters
(
    at DateTime64(3, 'UTC') COMMENT 'as of when this was so' CODEC(Delta, ZSTD(1)),
    instance LowCardinality(String) COMMENT 'which instance says so' CODEC(ZSTD(1)),
    exporter IPv6 COMMENT 'source address of its datagrams, agent address in sFlow' CODEC(ZSTD(1)),
    domain UInt32 COMMENT 'observation domain' CODEC(ZSTD(1)),
    source Enum8('unknown' = 0, 'netflow_v5' = 1, 'netflow_v9' = 2, 'ipfix' = 3, 'sflow_v5' = 4) COMMENT 'the format it exports' CODEC(ZSTD(1)),
    first_seen DateTime64(3, 'UTC') COMMENT 'when it was first heard' CODEC(ZSTD(1)),
    last_seen DateTime64(3, 'UTC') COMMENT 'when it was last heard' CODEC(ZSTD(1)),
    datagrams UInt64 COMMENT 'datagrams received' CODEC(ZSTD(1)),
    records UInt64 COMMENT 'flow records decoded' CODEC(ZSTD(1)),
    templates UInt32 COMMENT 'templates it has announced and that hold' CODEC(ZSTD(1)),
    sampling_rate UInt32 COMMENT 'last sampling rate told; 0 none' CODEC(ZSTD(1)),
    gaps UInt64 COMMENT 'estimate: units its sequence numbers skipped' CODEC(ZSTD(1)),
    skew_ms Int64 COMMENT 'its clock minus ours, smoothed' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'retention counts from here' CODEC(ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(inserted_at, 'UTC')
ORDER BY (exporter, domain, at)
TTL toDateTime(inserted_at) + toIntervalSecond(7776000)
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'who exports, as of each snapshot';

CREATE TABLE IF NOT EXISTS postern.ledger
(
    at DateTime64(3, 'UTC') COMMENT 'as of when the sums are' CODEC(Delta, ZSTD(1)),
    instance LowCardinality(String) COMMENT 'which instance says so' CODEC(ZSTD(1)),
    exporter IPv6 COMMENT 'whose account it is' CODEC(ZSTD(1)),
    datagrams_received UInt64 COMMENT '= decoded + rejected + parked + queued' CODEC(ZSTD(1)),
    datagrams_decoded UInt64 COMMENT 'decoded in full' CODEC(ZSTD(1)),
    datagrams_parked UInt64 COMMENT 'waiting for a template' CODEC(ZSTD(1)),
    datagrams_queued UInt64 COMMENT 'in the spool' CODEC(ZSTD(1)),
    datagrams_rejected UInt64 COMMENT 'refused, over all reasons' CODEC(ZSTD(1)),
    datagrams_rejected_by Map(LowCardinality(String), UInt64) COMMENT 'refused, by reason' CODEC(ZSTD(1)),
    records_decoded UInt64 COMMENT '= written + duplicate + rejected + in_flight' CODEC(ZSTD(1)),
    records_written UInt64 COMMENT 'stored' CODEC(ZSTD(1)),
    records_duplicate UInt64 COMMENT 'recognised by their token and not stored again' CODEC(ZSTD(1)),
    records_in_flight UInt64 COMMENT 'in batches and the block being written' CODEC(ZSTD(1)),
    records_rejected UInt64 COMMENT 'refused, over all reasons' CODEC(ZSTD(1)),
    records_rejected_by Map(LowCardinality(String), UInt64) COMMENT 'refused, by reason' CODEC(ZSTD(1)),
    templates UInt64 COMMENT 'template records' CODEC(ZSTD(1)),
    options UInt64 COMMENT 'options data records' CODEC(ZSTD(1)),
    counters UInt64 COMMENT 'sFlow counter samples' CODEC(ZSTD(1)),
    gaps UInt64 COMMENT 'estimate: units the sequence numbers skipped' CODEC(ZSTD(1)),
    reordered UInt64 COMMENT 'datagrams whose sequence number ran backwards' CODEC(ZSTD(1)),
    restarts UInt64 COMMENT 'times sequence or uptime started over' CODEC(ZSTD(1)),
    sets_parked UInt64 COMMENT 'sets that waited for a template' CODEC(ZSTD(1)),
    sets_skipped UInt64 COMMENT 'sets of no known kind' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'retention counts from here' CODEC(ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(inserted_at, 'UTC')
ORDER BY (exporter, instance, at)
TTL toDateTime(inserted_at) + toIntervalSecond(34560000)
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'both ledgers by exporter, as of each snapshot';

-- 0004 replays
CREATE TABLE IF NOT EXISTS postern.replays
(
    input String COMMENT 'the file''s content hash, as in flows.input',
    policy String COMMENT 'the policy it was judged by',
    rows UInt64 COMMENT 'flows it gave; 0 until it was read to the end',
    started_at DateTime64(3, 'UTC') COMMENT 'inserted_at of its flows',
    inserted_at DateTime64(3, 'UTC') COMMENT 'when this was noted; the newest counts'
)
ENGINE = ReplacingMergeTree(inserted_at)
ORDER BY input
SETTINGS non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'which files were replayed';

-- 0005 agents
ALTER TABLE postern.flows
    MODIFY COLUMN source Enum8('unknown' = 0, 'netflow_v5' = 1, 'netflow_v9' = 2, 'ipfix' = 3, 'sflow_v5' = 4, 'hubble' = 5, 'zeek' = 6, 'suricata' = 7, 'aws_vpc' = 8, 'azure_vnet' = 9, 'azure_nsg' = 10, 'gcp_vpc' = 11, 'gcp_firewall' = 12, 'calico' = 13, 'sysmon' = 14, 'wfp' = 15, 'illumio' = 16, 'guardicore' = 17, 'cef' = 18, 'conntrack' = 19, 'netfilter' = 20, 'ocsf' = 21, 'ecs' = 22, 'custom' = 23) COMMENT 'the format it came in' CODEC(ZSTD(1)),
    MODIFY COLUMN quality Array(Enum8('clock_skew' = 0, 'clock_unusable' = 1, 'time_missing' = 2, 'time_reversed' = 3, 'template_changed' = 4, 'parked' = 5, 'truncated' = 6, 'sampling_unknown' = 7, 'address_missing' = 8, 'observer_duplicate' = 9, 'direction_open' = 10, 'counter_missing' = 11, 'names_full' = 12, 'aggregated' = 13)) COMMENT 'remarks about how far the record can be trusted' CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS observer LowCardinality(String) COMMENT 'the agent, sensor or node that told it, by its own name' CODEC(ZSTD(1)) AFTER inserted_at,
    ADD COLUMN IF NOT EXISTS reporter Enum8('' = 0, 'client' = 1, 'server' = 2) COMMENT 'which end the agent sits at; empty is elsewhere, or not known' CODEC(ZSTD(1)) AFTER observer,
    ADD COLUMN IF NOT EXISTS enforced_by LowCardinality(String) COMMENT 'the policy or rule that enforcement named' CODEC(ZSTD(1)) AFTER reporter,
    ADD COLUMN IF NOT EXISTS src_host LowCardinality(String) COMMENT 'the client as an agent calls it' CODEC(ZSTD(1)) AFTER enforced_by,
    ADD COLUMN IF NOT EXISTS dst_host LowCardinality(String) COMMENT 'the server as an agent calls it' CODEC(ZSTD(1)) AFTER src_host,
    ADD COLUMN IF NOT EXISTS src_process LowCardinality(String) COMMENT 'the program at the client' CODEC(ZSTD(1)) AFTER dst_host,
    ADD COLUMN IF NOT EXISTS dst_process LowCardinality(String) COMMENT 'the program at the server' CODEC(ZSTD(1)) AFTER src_process,
    ADD COLUMN IF NOT EXISTS src_doubt Array(Enum8('unknown' = 0, 'gap' = 1, 'stale' = 2, 'border' = 3, 'ambiguous' = 4, 'disagree' = 5, 'full' = 6, 'expired' = 7)) COMMENT 'why it is not all known who is behind the client' CODEC(ZSTD(1)) AFTER dst_process,
    ADD COLUMN IF NOT EXISTS dst_doubt Array(Enum8('unknown' = 0, 'gap' = 1, 'stale' = 2, 'border' = 3, 'ambiguous' = 4, 'disagree' = 5, 'full' = 6, 'expired' = 7)) COMMENT 'why it is not all known who is behind the server' CODEC(ZSTD(1)) AFTER src_doubt,
    ADD COLUMN IF NOT EXISTS src_silence Int32 COMMENT 'seconds that the source which said who is behind the client had been silent; -1 none said so' CODEC(ZSTD(1)) AFTER dst_doubt,
    ADD COLUMN IF NOT EXISTS dst_silence Int32 COMMENT 'likewise for the server' CODEC(ZSTD(1)) AFTER src_silence;

ALTER TABLE postern.exporters
    MODIFY COLUMN source Enum8('unknown' = 0, 'netflow_v5' = 1, 'netflow_v9' = 2, 'ipfix' = 3, 'sflow_v5' = 4, 'hubble' = 5, 'zeek' = 6, 'suricata' = 7, 'aws_vpc' = 8, 'azure_vnet' = 9, 'azure_nsg' = 10, 'gcp_vpc' = 11, 'gcp_firewall' = 12, 'calico' = 13, 'sysmon' = 14, 'wfp' = 15, 'illumio' = 16, 'guardicore' = 17, 'cef' = 18, 'conntrack' = 19, 'netfilter' = 20, 'ocsf' = 21, 'ecs' = 22, 'custom' = 23) COMMENT 'the format it exports' CODEC(ZSTD(1));

ALTER TABLE postern.ledger
    ADD COLUMN IF NOT EXISTS lines_received UInt64 COMMENT '= read + not_flow + rejected + queued + lost' CODEC(ZSTD(1)) AFTER inserted_at,
    ADD COLUMN IF NOT EXISTS lines_read UInt64 COMMENT 'lines of logs that told flows' CODEC(ZSTD(1)) AFTER lines_received,
    ADD COLUMN IF NOT EXISTS lines_not_flow UInt64 COMMENT 'lines that told something else' CODEC(ZSTD(1)) AFTER lines_read,
    ADD COLUMN IF NOT EXISTS lines_rejected UInt64 COMMENT 'lines that could not be read' CODEC(ZSTD(1)) AFTER lines_not_flow,
    ADD COLUMN IF NOT EXISTS lines_queued UInt64 COMMENT 'lines in the spool' CODEC(ZSTD(1)) AFTER lines_rejected,
    ADD COLUMN IF NOT EXISTS lines_lost UInt64 COMMENT 'lines that were in the spool and could not be read back' CODEC(ZSTD(1)) AFTER lines_queued;

-- 0006 sessions
CREATE TABLE IF NOT EXISTS postern.session_versions
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
TTL toDateTime(inserted_at) + toIntervalSecond(2592000)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'sessions, a row a version';

CREATE VIEW IF NOT EXISTS postern.sessions AS
SELECT * FROM postern.session_versions FINAL WHERE part_of = 0
COMMENT 'one row a session: its newest version';

ALTER TABLE postern.flows
    ADD COLUMN IF NOT EXISTS conversation UInt64 COMMENT 'the unordered five-tuple; joins sessions whose time_start to time_end holds time_start. 0 where an address or the protocol is missing' CODEC(ZSTD(1)) AFTER dst_silence;

-- 0007 edges
CREATE TABLE IF NOT EXISTS postern.edge_hours
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
TTL toDateTime(inserted_at) + toIntervalSecond(34560000)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'what sessions add to the edges of their hour';

CREATE VIEW IF NOT EXISTS postern.edges AS
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
FROM postern.edge_hours AS e
GROUP BY hour, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload,
    expected, staged, reason, observed, outcome, rule, exception
HAVING sum(e.sessions) > 0
COMMENT 'the hourly roll-up of sessions: one row an hour, pair, service and verdict';

CREATE VIEW IF NOT EXISTS postern.edges_daily AS
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
FROM postern.edges AS e
GROUP BY day, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload,
    expected, staged, reason, observed, outcome, rule, exception
COMMENT 'the same by day';

CREATE VIEW IF NOT EXISTS postern.segment_pairs AS
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
FROM postern.edge_hours AS e
GROUP BY hour, src_segment, dst_segment
HAVING sum(e.sessions) > 0
COMMENT 'the hourly roll-up by pair of segments: how much of it was blocked and how much escaped';

-- 0008 feedback
ALTER TABLE postern.finding_contributions
    ADD COLUMN IF NOT EXISTS suppressed_by LowCardinality(String) COMMENT 'the suppression that kept it from receivers, empty if none did' CODEC(ZSTD(1)) AFTER next,
    ADD COLUMN IF NOT EXISTS suppressed Int64 COMMENT 'records of the finding that came while a suppression held' CODEC(ZSTD(1)) AFTER suppressed_by,
    ADD COLUMN IF NOT EXISTS subject String COMMENT 'what it is about where its ends and its rule or exception do not say it; with the type the same on every day' CODEC(ZSTD(1)) AFTER suppressed,
    ADD COLUMN IF NOT EXISTS score Float64 COMMENT '0 to 1; 0 where the detector has none' CODEC(ZSTD(1)) AFTER subject,
    ADD COLUMN IF NOT EXISTS score_parts String COMMENT 'what the score is made of: name, points and what it says, as JSON' CODEC(ZSTD(1)) AFTER score,
    ADD COLUMN IF NOT EXISTS ends String COMMENT 'who was at the ends, client and server: address, translated, workload, segment, identity and who says so, process, as JSON' CODEC(ZSTD(1)) AFTER score_parts,
    ADD COLUMN IF NOT EXISTS hops String COMMENT 'the way that was taken, in the order of time, as JSON' CODEC(ZSTD(1)) AFTER ends,
    ADD COLUMN IF NOT EXISTS exporters Array(LowCardinality(String)) COMMENT 'who exported what it is made of' CODEC(ZSTD(1)) AFTER hops,
    ADD COLUMN IF NOT EXISTS observers Array(LowCardinality(String)) COMMENT 'agents, sensors and nodes that told of it' CODEC(ZSTD(1)) AFTER exporters,
    ADD COLUMN IF NOT EXISTS query String COMMENT 'the SQL that finds the sessions behind it' CODEC(ZSTD(1)) AFTER observers;

CREATE OR REPLACE VIEW postern.findings AS
SELECT
    id,
    tupleElement(s, 'schema_version') AS schema_version,
    revision,
    tupleElement(s, 'type') AS type,
    tupleElement(s, 'title') AS title,
    tupleElement(s, 'severity') AS severity,
    tupleElement(s, 'confidence') AS confidence,
    first_seen,
    last_seen,
    count,
    tupleElement(s, 'client') AS client,
    tupleElement(s, 'server') AS server,
    tupleElement(s, 'orientation') AS orientation,
    tupleElement(s, 'service') AS service,
    tupleElement(s, 'src_segment') AS src_segment,
    tupleElement(s, 'dst_segment') AS dst_segment,
    tupleElement(s, 'observed') AS observed,
    tupleElement(s, 'expected') AS expected,
    tupleElement(s, 'reason') AS reason,
    tupleElement(s, 'outcome') AS outcome,
    tupleElement(s, 'failed') AS failed,
    tupleElement(s, 'missing') AS missing,
    tupleElement(s, 'rule') AS rule,
    tupleElement(s, 'exception') AS exception,
    tupleElement(s, 'ticket') AS ticket,
    tupleElement(s, 'owner') AS owner,
    tupleElement(s, 'requester') AS requester,
    tupleElement(s, 'approver') AS approver,
    tupleElement(s, 'policy_version') AS policy_version,
    tupleElement(s, 'techniques') AS techniques,
    tupleElement(s, 'continues') AS continues,
    tupleElement(s, 'edges') AS edges,
    tupleElement(s, 'edges_total') AS edges_total,
    tupleElement(s, 'samples') AS samples,
    tupleElement(s, 'sentence') AS sentence,
    tupleElement(s, 'next') AS next,
    tupleElement(s, 'suppressed_by') AS suppressed_by,
    tupleElement(s, 'suppressed') AS suppressed,
    tupleElement(s, 'subject') AS subject,
    tupleElement(s, 'score') AS score,
    tupleElement(s, 'score_parts') AS score_parts,
    tupleElement(s, 'ends') AS ends,
    tupleElement(s, 'hops') AS hops,
    tupleElement(s, 'exporters') AS exporters,
    tupleElement(s, 'observers') AS observers,
    tupleElement(s, 'query') AS query
FROM
(
SELECT
    c.id AS id,
    max(c.revision) AS revision,
    min(c.batch_first_seen) AS first_seen,
    max(c.batch_last_seen) AS last_seen,
    sum(c.sessions) AS count,
    argMax(
        CAST(
            (c.schema_version, c.type, c.title, c.severity, c.confidence, c.client, c.server, c.orientation, c.service,
             c.src_segment, c.dst_segment, c.observed, c.expected, c.reason, c.outcome, c.failed, c.missing, c.rule, c.exception,
             c.ticket, c.owner, c.requester, c.approver, c.policy_version, c.techniques, c.continues, c.edges, c.edges_total,
             c.samples, c.sentence, c.next, c.suppressed_by, c.suppressed,
             c.subject, c.score, c.score_parts, c.ends, c.hops, c.exporters, c.observers, c.query),
            'Tuple(schema_version UInt16, type String, title String, severity Enum8(\'informational\' = 0, \'low\' = 1, \'medium\' = 2, \'high\' = 3, \'critical\' = 4), confidence Float64, client String, server String, orientation String, service String, src_segment String, dst_segment String, observed String, expected String, reason String, outcome String, failed Array(String), missing Array(String), rule String, exception String, ticket String, owner String, requester String, approver String, policy_version String, techniques Array(String), continues String, edges Array(Tuple(source String, destination String, port UInt16, protocol String)), edges_total UInt64, samples Array(String), sentence String, next String, suppressed_by String, suppressed Int64, subject String, score Float64, score_parts String, ends String, hops String, exporters Array(String), observers Array(String), query String)'),
        (c.revision, c.inserted_at, c.batch_ordinal)) AS s
FROM postern.finding_contributions AS c
GROUP BY id
)
COMMENT 'one row a finding: counts over all batches, words of the newest revision';

CREATE TABLE IF NOT EXISTS postern.feedback
(
    finding String COMMENT 'id of the finding that was judged' CODEC(ZSTD(1)),
    revision UInt64 COMMENT 'its revision then' CODEC(ZSTD(1)),
    type LowCardinality(String) COMMENT 'its type, which names the detector' CODEC(ZSTD(1)),
    first_seen DateTime64(3, 'UTC') COMMENT 'when it was first seen, as far as it was known then' CODEC(ZSTD(1)),
    judgment Enum8('' = 0, 'acknowledged' = 1, 'true' = 2, 'false-positive' = 3) COMMENT 'acknowledged: somebody looks at it; true: it is so and matters; false-positive: it is not so, or nobody needs to know' CODEC(ZSTD(1)),
    judged_by String COMMENT 'who judged, as they said' CODEC(ZSTD(1)),
    judged_at DateTime64(3, 'UTC') COMMENT 'when' CODEC(ZSTD(1)),
    judgment_reason String COMMENT 'why' CODEC(ZSTD(1)),
    via LowCardinality(String) COMMENT 'command, or the admin API' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'when it was stored; retention counts from here' CODEC(ZSTD(1))
)
ENGINE = MergeTree
ORDER BY (finding, judged_at)
TTL toDateTime(inserted_at) + toIntervalSecond(34560000)
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'who judged which finding how, one row a judgment, never changed';

CREATE VIEW IF NOT EXISTS postern.judgments AS
SELECT
    finding AS id,
    argMax(f.type, (f.judged_at, f.inserted_at, f.judged_by)) AS type,
    argMax(f.judgment, (f.judged_at, f.inserted_at, f.judged_by)) AS judgment,
    argMax(f.judged_by, (f.judged_at, f.inserted_at, f.judged_by)) AS judged_by,
    max(f.judged_at) AS judged_at,
    argMax(f.judgment_reason, (f.judged_at, f.inserted_at, f.judged_by)) AS judgment_reason,
    argMax(f.revision, (f.judged_at, f.inserted_at, f.judged_by)) AS judged_revision,
    count() AS judgments
FROM postern.feedback AS f
GROUP BY finding
COMMENT 'one row a judged finding: its newest judgment, which is the one that counts';

CREATE VIEW IF NOT EXISTS postern.judged_findings AS
SELECT
    f.*,
    j.judgment AS judgment,
    j.judged_by AS judged_by,
    j.judged_at AS judged_at,
    j.judgment_reason AS judgment_reason,
    j.judged_revision AS judged_revision,
    j.judgments AS judgments
FROM postern.findings AS f
LEFT JOIN postern.judgments AS j ON j.id = f.id
COMMENT 'findings with the judgment that counts; judgment is empty where nobody judged';

CREATE VIEW IF NOT EXISTS postern.detector_judgments AS
SELECT
    toDate(first_seen, 'UTC') AS day,
    type,
    count() AS findings,
    countIf(judgment = '') AS unjudged,
    countIf(judgment = 'acknowledged') AS acknowledged,
    countIf(judgment = 'true') AS judged_true,
    countIf(judgment = 'false-positive') AS judged_false_positive,
    if(judged_true + judged_false_positive = 0, NULL, judged_true / (judged_true + judged_false_positive)) AS true_ratio,
    if(judged_true + judged_false_positive = 0, NULL, judged_false_positive / (judged_true + judged_false_positive)) AS false_ratio,
    countIf(suppressed > 0) AS suppressed
FROM postern.judged_findings
GROUP BY day, type
COMMENT 'how often each detector was right, by the day of the finding';

-- 0009 gaps
ALTER TABLE postern.flows
    MODIFY COLUMN quality Array(Enum8('clock_skew' = 0, 'clock_unusable' = 1, 'time_missing' = 2, 'time_reversed' = 3, 'template_changed' = 4, 'parked' = 5, 'truncated' = 6, 'sampling_unknown' = 7, 'address_missing' = 8, 'observer_duplicate' = 9, 'direction_open' = 10, 'counter_missing' = 11, 'names_full' = 12, 'aggregated' = 13, 'sequence_gap' = 14)) COMMENT 'remarks about how far the record can be trusted' CODEC(ZSTD(1));

ALTER TABLE postern.session_versions
    MODIFY COLUMN quality Array(Enum8('clock_skew' = 0, 'clock_unusable' = 1, 'time_missing' = 2, 'time_reversed' = 3, 'template_changed' = 4, 'parked' = 5, 'truncated' = 6, 'sampling_unknown' = 7, 'address_missing' = 8, 'observer_duplicate' = 9, 'direction_open' = 10, 'counter_missing' = 11, 'names_full' = 12, 'aggregated' = 13, 'sequence_gap' = 14)) COMMENT 'remarks about how far the observations can be trusted, of all' CODEC(ZSTD(1));

-- 0010 blindspots
CREATE TABLE IF NOT EXISTS postern.blind_spot_versions
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
TTL toDateTime(inserted_at) + toIntervalSecond(34560000)
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'blind spots, a row a version';

CREATE VIEW IF NOT EXISTS postern.blind_spots AS
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
FROM postern.blind_spot_versions AS b
GROUP BY id
COMMENT 'one row a stretch of time in which something was not seen; its newest version';

-- 0011 commits
ALTER TABLE postern.policy_versions
    ADD COLUMN IF NOT EXISTS git_commit String COMMENT 'the Git commit that the folder stood at, empty if it was no working tree' CODEC(ZSTD(1)) AFTER source;

ALTER TABLE postern.session_versions
    MODIFY COLUMN src_identity_from LowCardinality(String) COMMENT 'the agent or the source of identities whose word src_identity is; empty for an exporter or nobody' CODEC(ZSTD(1)),
    MODIFY COLUMN dst_identity_from LowCardinality(String) COMMENT 'the agent or the source of identities whose word dst_identity is' CODEC(ZSTD(1));

ALTER TABLE postern.finding_contributions
    ADD COLUMN IF NOT EXISTS policy_commit String COMMENT 'the Git commit that policy_version was taken from, empty if it was no working tree' CODEC(ZSTD(1)) AFTER query,
    ADD COLUMN IF NOT EXISTS policy_since Nullable(DateTime64(3, 'UTC')) COMMENT 'from when on policy_version was in force; NULL if always, or not known' CODEC(ZSTD(1)) AFTER policy_commit;

CREATE OR REPLACE VIEW postern.findings AS
SELECT
    id,
    tupleElement(s, 'schema_version') AS schema_version,
    revision,
    tupleElement(s, 'type') AS type,
    tupleElement(s, 'title') AS title,
    tupleElement(s, 'severity') AS severity,
    tupleElement(s, 'confidence') AS confidence,
    first_seen,
    last_seen,
    count,
    tupleElement(s, 'client') AS client,
    tupleElement(s, 'server') AS server,
    tupleElement(s, 'orientation') AS orientation,
    tupleElement(s, 'service') AS service,
    tupleElement(s, 'src_segment') AS src_segment,
    tupleElement(s, 'dst_segment') AS dst_segment,
    tupleElement(s, 'observed') AS observed,
    tupleElement(s, 'expected') AS expected,
    tupleElement(s, 'reason') AS reason,
    tupleElement(s, 'outcome') AS outcome,
    tupleElement(s, 'failed') AS failed,
    tupleElement(s, 'missing') AS missing,
    tupleElement(s, 'rule') AS rule,
    tupleElement(s, 'exception') AS exception,
    tupleElement(s, 'ticket') AS ticket,
    tupleElement(s, 'owner') AS owner,
    tupleElement(s, 'requester') AS requester,
    tupleElement(s, 'approver') AS approver,
    tupleElement(s, 'policy_version') AS policy_version,
    tupleElement(s, 'policy_commit') AS policy_commit,
    tupleElement(s, 'policy_since') AS policy_since,
    tupleElement(s, 'techniques') AS techniques,
    tupleElement(s, 'continues') AS continues,
    tupleElement(s, 'edges') AS edges,
    tupleElement(s, 'edges_total') AS edges_total,
    tupleElement(s, 'samples') AS samples,
    tupleElement(s, 'sentence') AS sentence,
    tupleElement(s, 'next') AS next,
    tupleElement(s, 'suppressed_by') AS suppressed_by,
    tupleElement(s, 'suppressed') AS suppressed,
    tupleElement(s, 'subject') AS subject,
    tupleElement(s, 'score') AS score,
    tupleElement(s, 'score_parts') AS score_parts,
    tupleElement(s, 'ends') AS ends,
    tupleElement(s, 'hops') AS hops,
    tupleElement(s, 'exporters') AS exporters,
    tupleElement(s, 'observers') AS observers,
    tupleElement(s, 'query') AS query
FROM
(
SELECT
    c.id AS id,
    max(c.revision) AS revision,
    min(c.batch_first_seen) AS first_seen,
    max(c.batch_last_seen) AS last_seen,
    sum(c.sessions) AS count,
    argMax(
        CAST(
            (c.schema_version, c.type, c.title, c.severity, c.confidence, c.client, c.server, c.orientation, c.service,
             c.src_segment, c.dst_segment, c.observed, c.expected, c.reason, c.outcome, c.failed, c.missing, c.rule, c.exception,
             c.ticket, c.owner, c.requester, c.approver, c.policy_version, c.techniques, c.continues, c.edges, c.edges_total,
             c.samples, c.sentence, c.next, c.suppressed_by, c.suppressed,
             c.subject, c.score, c.score_parts, c.ends, c.hops, c.exporters, c.observers, c.query, c.policy_commit, c.policy_since),
            'Tuple(schema_version UInt16, type String, title String, severity Enum8(\'informational\' = 0, \'low\' = 1, \'medium\' = 2, \'high\' = 3, \'critical\' = 4), confidence Float64, client String, server String, orientation String, service String, src_segment String, dst_segment String, observed String, expected String, reason String, outcome String, failed Array(String), missing Array(String), rule String, exception String, ticket String, owner String, requester String, approver String, policy_version String, techniques Array(String), continues String, edges Array(Tuple(source String, destination String, port UInt16, protocol String)), edges_total UInt64, samples Array(String), sentence String, next String, suppressed_by String, suppressed Int64, subject String, score Float64, score_parts String, ends String, hops String, exporters Array(String), observers Array(String), query String, policy_commit String, policy_since Nullable(DateTime64(3, \'UTC\')))'),
        (c.revision, c.inserted_at, c.batch_ordinal)) AS s
FROM postern.finding_contributions AS c
GROUP BY id
)
COMMENT 'one row a finding: counts over all batches, words of the newest revision';

CREATE OR REPLACE VIEW postern.judged_findings AS
SELECT
    f.*,
    j.judgment AS judgment,
    j.judged_by AS judged_by,
    j.judged_at AS judged_at,
    j.judgment_reason AS judgment_reason,
    j.judged_revision AS judged_revision,
    j.judgments AS judgments
FROM postern.findings AS f
LEFT JOIN postern.judgments AS j ON j.id = f.id
COMMENT 'findings with the judgment that counts; judgment is empty where nobody judged';

-- 0012 grouped
ALTER TABLE postern.finding_contributions
    ADD COLUMN IF NOT EXISTS grouped_by String COMMENT 'the finding that tells of it with many others, empty if it is told itself' CODEC(ZSTD(1)) AFTER suppressed;

CREATE OR REPLACE VIEW postern.findings AS
SELECT
    id,
    tupleElement(s, 'schema_version') AS schema_version,
    revision,
    tupleElement(s, 'type') AS type,
    tupleElement(s, 'title') AS title,
    tupleElement(s, 'severity') AS severity,
    tupleElement(s, 'confidence') AS confidence,
    first_seen,
    last_seen,
    count,
    tupleElement(s, 'client') AS client,
    tupleElement(s, 'server') AS server,
    tupleElement(s, 'orientation') AS orientation,
    tupleElement(s, 'service') AS service,
    tupleElement(s, 'src_segment') AS src_segment,
    tupleElement(s, 'dst_segment') AS dst_segment,
    tupleElement(s, 'observed') AS observed,
    tupleElement(s, 'expected') AS expected,
    tupleElement(s, 'reason') AS reason,
    tupleElement(s, 'outcome') AS outcome,
    tupleElement(s, 'failed') AS failed,
    tupleElement(s, 'missing') AS missing,
    tupleElement(s, 'rule') AS rule,
    tupleElement(s, 'exception') AS exception,
    tupleElement(s, 'ticket') AS ticket,
    tupleElement(s, 'owner') AS owner,
    tupleElement(s, 'requester') AS requester,
    tupleElement(s, 'approver') AS approver,
    tupleElement(s, 'policy_version') AS policy_version,
    tupleElement(s, 'policy_commit') AS policy_commit,
    tupleElement(s, 'policy_since') AS policy_since,
    tupleElement(s, 'techniques') AS techniques,
    tupleElement(s, 'continues') AS continues,
    tupleElement(s, 'edges') AS edges,
    tupleElement(s, 'edges_total') AS edges_total,
    tupleElement(s, 'samples') AS samples,
    tupleElement(s, 'sentence') AS sentence,
    tupleElement(s, 'next') AS next,
    tupleElement(s, 'suppressed_by') AS suppressed_by,
    tupleElement(s, 'suppressed') AS suppressed,
    tupleElement(s, 'grouped_by') AS grouped_by,
    tupleElement(s, 'subject') AS subject,
    tupleElement(s, 'score') AS score,
    tupleElement(s, 'score_parts') AS score_parts,
    tupleElement(s, 'ends') AS ends,
    tupleElement(s, 'hops') AS hops,
    tupleElement(s, 'exporters') AS exporters,
    tupleElement(s, 'observers') AS observers,
    tupleElement(s, 'query') AS query
FROM
(
SELECT
    c.id AS id,
    max(c.revision) AS revision,
    min(c.batch_first_seen) AS first_seen,
    max(c.batch_last_seen) AS last_seen,
    sum(c.sessions) AS count,
    argMax(
        CAST(
            (c.schema_version, c.type, c.title, c.severity, c.confidence, c.client, c.server, c.orientation, c.service,
             c.src_segment, c.dst_segment, c.observed, c.expected, c.reason, c.outcome, c.failed, c.missing, c.rule, c.exception,
             c.ticket, c.owner, c.requester, c.approver, c.policy_version, c.techniques, c.continues, c.edges, c.edges_total,
             c.samples, c.sentence, c.next, c.suppressed_by, c.suppressed,
             c.subject, c.score, c.score_parts, c.ends, c.hops, c.exporters, c.observers, c.query, c.policy_commit, c.policy_since, c.grouped_by),
            'Tuple(schema_version UInt16, type String, title String, severity Enum8(\'informational\' = 0, \'low\' = 1, \'medium\' = 2, \'high\' = 3, \'critical\' = 4), confidence Float64, client String, server String, orientation String, service String, src_segment String, dst_segment String, observed String, expected String, reason String, outcome String, failed Array(String), missing Array(String), rule String, exception String, ticket String, owner String, requester String, approver String, policy_version String, techniques Array(String), continues String, edges Array(Tuple(source String, destination String, port UInt16, protocol String)), edges_total UInt64, samples Array(String), sentence String, next String, suppressed_by String, suppressed Int64, subject String, score Float64, score_parts String, ends String, hops String, exporters Array(String), observers Array(String), query String, policy_commit String, policy_since Nullable(DateTime64(3, \'UTC\')), grouped_by String)'),
        (c.revision, c.inserted_at, c.batch_ordinal)) AS s
FROM postern.finding_contributions AS c
GROUP BY id
)
COMMENT 'one row a finding: counts over all batches, words of the newest revision';

CREATE OR REPLACE VIEW postern.judged_findings AS
SELECT
    f.*,
    j.judgment AS judgment,
    j.judged_by AS judged_by,
    j.judged_at AS judged_at,
    j.judgment_reason AS judgment_reason,
    j.judged_revision AS judged_revision,
    j.judgments AS judgments
FROM postern.findings AS f
LEFT JOIN postern.judgments AS j ON j.id = f.id
COMMENT 'findings with the judgment that counts; judgment is empty where nobody judged';

-- 0013 identities
ALTER TABLE postern.edge_hours
    ADD COLUMN IF NOT EXISTS src_identity LowCardinality(String) COMMENT 'who was behind the client; empty is not known' CODEC(ZSTD(1)) AFTER dst_workload,
    ADD COLUMN IF NOT EXISTS dst_identity LowCardinality(String) COMMENT 'who was behind the server; empty is not known' CODEC(ZSTD(1)) AFTER src_identity,
    MODIFY ORDER BY (hour, reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, expected, staged, observed, outcome, rule, exception, input, src_identity, dst_identity);

CREATE OR REPLACE VIEW postern.edges AS
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
FROM postern.edge_hours AS e
GROUP BY hour, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity,
    expected, staged, reason, observed, outcome, rule, exception
HAVING sum(e.sessions) > 0
COMMENT 'the hourly roll-up of sessions: one row an hour, pair, service, identities and verdict';

CREATE OR REPLACE VIEW postern.edges_daily AS
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
FROM postern.edges AS e
GROUP BY day, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity,
    expected, staged, reason, observed, outcome, rule, exception
COMMENT 'the same by day';

-- 0014 register
CREATE TABLE IF NOT EXISTS postern.exception_versions
(
    policy_version LowCardinality(String) COMMENT 'the version of policy that says so: the first 16 digits of its hash' CODEC(ZSTD(1)),
    id String COMMENT 'the exception''s id' CODEC(ZSTD(1)),
    class LowCardinality(String) COMMENT 'opt-out, migration, vendor, break-glass' CODEC(ZSTD(1)),
    ticket String COMMENT 'the ticket it was asked for with' CODEC(ZSTD(1)),
    owner LowCardinality(String) COMMENT 'who answers for it' CODEC(ZSTD(1)),
    reason String COMMENT 'why it is needed' CODEC(ZSTD(1)),
    requested_by LowCardinality(String) COMMENT 'who asked for it' CODEC(ZSTD(1)),
    requested_at Nullable(DateTime64(3, 'UTC')) COMMENT 'when; NULL if the files do not say' CODEC(ZSTD(1)),
    approved_at Nullable(DateTime64(3, 'UTC')) COMMENT 'the latest of its approvals, from which on it is approved; NULL if it has none' CODEC(ZSTD(1)),
    approved_by Array(LowCardinality(String)) COMMENT 'who approved it, in the order of the files' CODEC(ZSTD(1)),
    approver_roles Array(LowCardinality(String)) COMMENT 'as what each of them did' CODEC(ZSTD(1)),
    not_before Nullable(DateTime64(3, 'UTC')) COMMENT 'the first moment at which it may hold; NULL: from its approval on' CODEC(ZSTD(1)),
    expires DateTime64(3, 'UTC') COMMENT 'the first moment at which it no longer holds' CODEC(ZSTD(1)),
    revoked_at Nullable(DateTime64(3, 'UTC')) COMMENT 'when it was revoked; NULL if it was not' CODEC(ZSTD(1)),
    revoked_by LowCardinality(String) COMMENT 'who revoked it' CODEC(ZSTD(1)),
    revoked_for String COMMENT 'why' CODEC(ZSTD(1)),
    overrides Array(LowCardinality(String)) COMMENT 'the deny rules that it may beat beside defaults' CODEC(ZSTD(1)),
    source String COMMENT 'the clients it is for, as policy writes it' CODEC(ZSTD(1)),
    destination String COMMENT 'the servers it is for, as policy writes it' CODEC(ZSTD(1)),
    services Array(LowCardinality(String)) COMMENT 'the services it is for, as policy writes them; empty is any' CODEC(ZSTD(1)),
    pairs_granted UInt64 COMMENT 'source addresses × destination addresses that it may match by prefixes and inventory, whatever the identity; holds at the greatest number there is' CODEC(ZSTD(1)),
    ports_granted UInt64 COMMENT 'protocols and ports that it is for, 65,536 a protocol where none is named' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'when the version was accepted; retention counts from here' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(inserted_at)
ORDER BY (policy_version, id)
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'exceptions, a row a version of policy';

CREATE TABLE IF NOT EXISTS postern.segment_versions
(
    policy_version LowCardinality(String) COMMENT 'the version of policy that says so: the first 16 digits of its hash' CODEC(ZSTD(1)),
    name String COMMENT 'the segment''s name' CODEC(ZSTD(1)),
    zone LowCardinality(String) COMMENT 'the zone it is in' CODEC(ZSTD(1)),
    tier Enum8('none' = 0, 'low' = 1, 'normal' = 2, 'high' = 3, 'crown-jewel' = 4) COMMENT 'how dear it is; compares in this order' CODEC(ZSTD(1)),
    stage Enum8('none' = 0, 'observe' = 1, 'staged' = 2, 'enforced' = 3) COMMENT 'how far it is under policy; compares in this order' CODEC(ZSTD(1)),
    owner LowCardinality(String) COMMENT 'who answers for it' CODEC(ZSTD(1)),
    agent_required Bool COMMENT 'a host in it without an agent is a blind spot' CODEC(ZSTD(1)),
    default_in Enum8('allow' = 0, 'deny' = 1) COMMENT 'what no rule speaks of, where it answers' CODEC(ZSTD(1)),
    default_out Enum8('allow' = 0, 'deny' = 1) COMMENT 'what no rule speaks of, where it begins' CODEC(ZSTD(1)),
    prefixes Array(String) COMMENT 'its prefixes' CODEC(ZSTD(1)),
    workloads UInt32 COMMENT 'workloads with an address in it' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'when the version was accepted; retention counts from here' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(inserted_at)
ORDER BY (policy_version, name)
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'segments, a row a version of policy';

CREATE TABLE IF NOT EXISTS postern.workload_versions
(
    policy_version LowCardinality(String) COMMENT 'the version of policy that says so: the first 16 digits of its hash' CODEC(ZSTD(1)),
    name String COMMENT 'the workload''s name' CODEC(ZSTD(1)),
    app LowCardinality(String) COMMENT 'what it is part of' CODEC(ZSTD(1)),
    role LowCardinality(String) COMMENT 'what it does there' CODEC(ZSTD(1)),
    env LowCardinality(String) COMMENT 'its environment' CODEC(ZSTD(1)),
    owner LowCardinality(String) COMMENT 'who answers for it' CODEC(ZSTD(1)),
    segment LowCardinality(String) COMMENT 'the segment of its addresses, the dearest where there are several; empty if none' CODEC(ZSTD(1)),
    zone LowCardinality(String) COMMENT 'that segment''s zone' CODEC(ZSTD(1)),
    tier Enum8('none' = 0, 'low' = 1, 'normal' = 2, 'high' = 3, 'crown-jewel' = 4) COMMENT 'the highest of the segments of its addresses' CODEC(ZSTD(1)),
    stage Enum8('none' = 0, 'observe' = 1, 'staged' = 2, 'enforced' = 3) COMMENT 'the least of the segments of its addresses' CODEC(ZSTD(1)),
    addresses Array(IPv6) COMMENT 'its addresses' CODEC(ZSTD(1)),
    labels Map(LowCardinality(String), String) COMMENT 'its labels' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'when the version was accepted; retention counts from here' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(inserted_at)
ORDER BY (policy_version, name)
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'workloads, a row a version of policy';

CREATE TABLE IF NOT EXISTS postern.rule_versions
(
    policy_version LowCardinality(String) COMMENT 'the version of policy that says so: the first 16 digits of its hash' CODEC(ZSTD(1)),
    id String COMMENT 'the rule''s id' CODEC(ZSTD(1)),
    action Enum8('override-deny' = 0, 'deny' = 1, 'allow' = 2) COMMENT 'what it does; judged in this order' CODEC(ZSTD(1)),
    mode Enum8('enforce' = 0, 'staged' = 1) COMMENT 'staged: held back' CODEC(ZSTD(1)),
    source String COMMENT 'the clients it is for, as policy writes it' CODEC(ZSTD(1)),
    destination String COMMENT 'the servers it is for, as policy writes it' CODEC(ZSTD(1)),
    services Array(LowCardinality(String)) COMMENT 'the services it is for, as policy writes them; empty is any' CODEC(ZSTD(1)),
    owner LowCardinality(String) COMMENT 'who answers for it' CODEC(ZSTD(1)),
    reason String COMMENT 'why it is there' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'when the version was accepted; retention counts from here' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(inserted_at)
ORDER BY (policy_version, id)
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'rules, a row a version of policy';

CREATE TABLE IF NOT EXISTS postern.coverage_versions
(
    policy_version LowCardinality(String) COMMENT 'the version of policy that says so: the first 16 digits of its hash' CODEC(ZSTD(1)),
    stage Enum8('none' = 0, 'observe' = 1, 'staged' = 2, 'enforced' = 3) COMMENT 'how far they are under policy; none is in no segment' CODEC(ZSTD(1)),
    tier Enum8('none' = 0, 'low' = 1, 'normal' = 2, 'high' = 3, 'crown-jewel' = 4) COMMENT 'how dear they are; none is in no segment' CODEC(ZSTD(1)),
    workloads UInt32 COMMENT 'workloads there; one with addresses in several segments counts at the least of their stages and the highest of their tiers' CODEC(ZSTD(1)),
    addresses Float64 COMMENT 'IPv4 addresses of segments there, each in the segment of its longest prefix' CODEC(ZSTD(1)),
    inserted_at DateTime64(3, 'UTC') COMMENT 'when the version was accepted; retention counts from here' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree(inserted_at)
ORDER BY (policy_version, stage, tier)
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'how much of the estate stands at which stage and tier, by version of policy';

CREATE VIEW IF NOT EXISTS postern.policy_timeline AS
SELECT
    substring(hash, 1, 16) AS policy_version,
    hash,
    since,
    leadInFrame(toNullable(since)) OVER (ORDER BY since, accepted_at, hash ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS until,
    accepted_at,
    git_commit
FROM
(
    SELECT
        p.hash AS hash, p.since AS since, p.accepted_at AS accepted_at, p.git_commit AS git_commit,
        lagInFrame(p.hash) OVER (ORDER BY p.since, p.accepted_at, p.hash ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS before
    FROM postern.policy_versions AS p
    WHERE (p.instance != 'replay' OR (SELECT count() FROM postern.policy_versions WHERE instance != 'replay') = 0)
        AND substring(p.hash, 1, 16) IN (SELECT policy_version FROM postern.coverage_versions)
)
WHERE hash != before
COMMENT 'which version of policy was in force when, of those in the register';

CREATE VIEW IF NOT EXISTS postern.exceptions AS
SELECT
    id,
    class,
    multiIf(
        removed_at <= now64(3), 'removed',
        revoked_at <= now64(3), 'revoked',
        expires <= now64(3), 'expired',
        approved_at IS NULL OR approved_at > now64(3), 'unapproved',
        not_before > now64(3), 'not-yet-valid',
        expires <= now64(3) + toIntervalDay(14) OR revoked_at <= now64(3) + toIntervalDay(14), 'expiring',
        'active') AS state,
    ticket, owner, reason, requested_by, requested_at, approved_at, approved_by, approver_roles, not_before, expires,
    least(expires, ifNull(revoked_at, expires), ifNull(removed_at, expires)) AS ended,
    revoked_at, revoked_by, revoked_for, removed_at, overrides, source, destination, services, pairs_granted, ports_granted,
    policy_version, since
FROM
(
    SELECT
        e.id AS id, e.class AS class, e.ticket AS ticket, e.owner AS owner, e.reason AS reason, e.requested_by AS requested_by, e.requested_at AS requested_at, e.approved_at AS approved_at, e.approved_by AS approved_by, e.approver_roles AS approver_roles, e.not_before AS not_before, e.expires AS expires, e.revoked_at AS revoked_at, e.revoked_by AS revoked_by, e.revoked_for AS revoked_for, e.overrides AS overrides, e.source AS source, e.destination AS destination, e.services AS services, e.pairs_granted AS pairs_granted, e.ports_granted AS ports_granted,
        e.policy_version AS policy_version, v.since AS since, v.until AS removed_at
    FROM postern.exception_versions AS e
    INNER JOIN postern.policy_timeline AS v ON v.policy_version = e.policy_version
    ORDER BY e.id, v.since DESC
    LIMIT 1 BY e.id
)
COMMENT 'one row an exception, as the newest version of policy that holds it says, and its state now';

CREATE VIEW IF NOT EXISTS postern.rules AS
SELECT
    r.id AS id, r.action AS action, r.mode AS mode, r.source AS source, r.destination AS destination, r.services AS services, r.owner AS owner, r.reason AS reason,
    r.policy_version AS policy_version, v.since AS since
FROM postern.rule_versions AS r FINAL
INNER JOIN postern.policy_timeline AS v ON v.policy_version = r.policy_version
WHERE v.until IS NULL AND r.policy_version IN (SELECT policy_version FROM postern.policy_timeline WHERE until IS NULL)
COMMENT 'the rules of the version of policy in force';

CREATE VIEW IF NOT EXISTS postern.segments AS
SELECT
    r.name AS name, r.zone AS zone, r.tier AS tier, r.stage AS stage, r.owner AS owner, r.agent_required AS agent_required, r.default_in AS default_in, r.default_out AS default_out, r.prefixes AS prefixes, r.workloads AS workloads,
    r.policy_version AS policy_version, v.since AS since
FROM postern.segment_versions AS r FINAL
INNER JOIN postern.policy_timeline AS v ON v.policy_version = r.policy_version
WHERE v.until IS NULL AND r.policy_version IN (SELECT policy_version FROM postern.policy_timeline WHERE until IS NULL)
COMMENT 'the segments of the version of policy in force';

CREATE VIEW IF NOT EXISTS postern.workloads AS
SELECT
    r.name AS name, r.app AS app, r.role AS role, r.env AS env, r.owner AS owner, r.segment AS segment, r.zone AS zone, r.tier AS tier, r.stage AS stage, r.addresses AS addresses, r.labels AS labels,
    r.policy_version AS policy_version, v.since AS since
FROM postern.workload_versions AS r FINAL
INNER JOIN postern.policy_timeline AS v ON v.policy_version = r.policy_version
WHERE v.until IS NULL AND r.policy_version IN (SELECT policy_version FROM postern.policy_timeline WHERE until IS NULL)
COMMENT 'the workloads of the version of policy in force';

CREATE VIEW IF NOT EXISTS postern.coverage_history AS
SELECT
    v.since AS since, v.until AS until, c.policy_version AS policy_version, c.stage AS stage, c.tier AS tier,
    c.workloads AS workloads, c.addresses AS addresses
FROM postern.coverage_versions AS c FINAL
INNER JOIN postern.policy_timeline AS v ON v.policy_version = c.policy_version
WHERE c.workloads > 0 OR c.addresses > 0
COMMENT 'how much of the estate stood at which stage and tier, over time';

CREATE VIEW IF NOT EXISTS postern.exception_use AS
SELECT
    hour, exception, reason, outcome, client, src_identity, src_segment, src_workload, server, dst_identity, dst_segment, dst_workload, service,
    toUInt64(sum(e.sessions)) AS sessions,
    toUInt64(sum(e.answered)) AS answered,
    toUInt64(sum(e.client_bytes)) AS client_bytes,
    toUInt64(sum(e.server_bytes)) AS server_bytes,
    toDateTime(if(sum(e.live) > 0, least(min(e.first_seen), min(e.live_first_seen)), min(e.first_seen)), 'UTC') AS first_seen,
    toDateTime(if(sum(e.live) > 0, greatest(max(e.last_seen), max(e.live_last_seen)), max(e.last_seen)), 'UTC') AS last_seen
FROM postern.edge_hours AS e
WHERE exception != ''
GROUP BY hour, exception, reason, outcome, client, src_identity, src_segment, src_workload, server, dst_identity, dst_segment, dst_workload, service
HAVING sum(e.sessions) > 0
COMMENT 'the hourly roll-up of sessions that an exception waives or is implicated in';

CREATE VIEW IF NOT EXISTS postern.exception_use_daily AS
SELECT
    toDate(hour, 'UTC') AS day, exception, reason, outcome, client, src_identity, src_segment, src_workload, server, dst_identity, dst_segment, dst_workload, service,
    toUInt64(sum(e.sessions)) AS sessions,
    toUInt64(sum(e.answered)) AS answered,
    uniqExact(hour) AS hours,
    toUInt64(sum(e.client_bytes)) AS client_bytes,
    toUInt64(sum(e.server_bytes)) AS server_bytes,
    min(e.first_seen) AS first_seen,
    max(e.last_seen) AS last_seen
FROM postern.exception_use AS e
GROUP BY day, exception, reason, outcome, client, src_identity, src_segment, src_workload, server, dst_identity, dst_segment, dst_workload, service
COMMENT 'the same by day';

CREATE VIEW IF NOT EXISTS postern.finding_revisions AS
SELECT
    id, revision, at, type, severity,
    sum(added) OVER (PARTITION BY id ORDER BY revision) AS count,
    min(batch_first) OVER (PARTITION BY id ORDER BY revision) AS first_seen,
    max(batch_last) OVER (PARTITION BY id ORDER BY revision) AS last_seen,
    sentence, owner, exception, rule, suppressed_by, grouped_by, policy_version
FROM
(
    SELECT
        id, revision,
        max(c.inserted_at) AS at,
        sum(c.sessions) AS added,
        min(c.batch_first_seen) AS batch_first,
        max(c.batch_last_seen) AS batch_last,
        argMax(c.type, (c.inserted_at, c.batch_ordinal)) AS type,
        argMax(c.severity, (c.inserted_at, c.batch_ordinal)) AS severity,
        argMax(c.sentence, (c.inserted_at, c.batch_ordinal)) AS sentence,
        argMax(c.owner, (c.inserted_at, c.batch_ordinal)) AS owner,
        argMax(c.exception, (c.inserted_at, c.batch_ordinal)) AS exception,
        argMax(c.rule, (c.inserted_at, c.batch_ordinal)) AS rule,
        argMax(c.suppressed_by, (c.inserted_at, c.batch_ordinal)) AS suppressed_by,
        argMax(c.grouped_by, (c.inserted_at, c.batch_ordinal)) AS grouped_by,
        argMax(c.policy_version, (c.inserted_at, c.batch_ordinal)) AS policy_version
    FROM postern.finding_contributions AS c
    GROUP BY id, revision
)
COMMENT 'one row a revision of a finding: what was said of it when';

-- 0015 sessions_view
CREATE OR REPLACE VIEW postern.sessions AS
SELECT * FROM postern.session_versions FINAL WHERE part_of = 0
COMMENT 'one row a session: its newest version';

-- 0016 edge_days
CREATE TABLE IF NOT EXISTS postern.edge_days
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
TTL toDateTime(inserted_at) + toIntervalSecond(34560000)
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000
COMMENT 'what sessions add to the edges of their day';

INSERT INTO postern.edge_days (day, reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity, expected, staged, observed, outcome, rule, exception, sessions, answered, live, client_bytes, client_packets, server_bytes, server_packets, first_seen, last_seen, live_first_seen, live_last_seen, hours, input, inserted_at)
SELECT toDate(hour, 'UTC'), reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity, expected, staged, observed, outcome, rule, exception, sessions, answered, live, client_bytes, client_packets, server_bytes, server_packets, first_seen, last_seen, live_first_seen, live_last_seen, toUInt32(bitShiftLeft(1, toHour(hour, 'UTC'))), input, inserted_at
FROM postern.edge_hours WHERE (SELECT count() FROM postern.edge_days) = 0;

CREATE MATERIALIZED VIEW IF NOT EXISTS postern.edge_days_of_hours TO postern.edge_days AS
SELECT
    toDate(hour, 'UTC') AS day, reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity, expected, staged, observed, outcome, rule, exception,
    sum(e.sessions) AS sessions, sum(e.answered) AS answered, sum(e.live) AS live, sum(e.client_bytes) AS client_bytes, sum(e.client_packets) AS client_packets, sum(e.server_bytes) AS server_bytes, sum(e.server_packets) AS server_packets,
    min(e.first_seen) AS first_seen, max(e.last_seen) AS last_seen, min(e.live_first_seen) AS live_first_seen, max(e.live_last_seen) AS live_last_seen,
    groupBitOr(toUInt32(bitShiftLeft(1, toHour(hour, 'UTC')))) AS hours, input, max(e.inserted_at) AS inserted_at
FROM postern.edge_hours AS e
GROUP BY day, reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity, expected, staged, observed, outcome, rule, exception, input;

CREATE OR REPLACE VIEW postern.edges_daily AS
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
FROM postern.edge_days AS e
GROUP BY day, client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity,
    expected, staged, reason, observed, outcome, rule, exception
HAVING sum(e.sessions) > 0
COMMENT 'the daily roll-up of sessions';

