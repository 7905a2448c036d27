-- What each batch added to a finding, and the state of the finding after it.
-- Sums over it never double, since every batch is written once (see docs/clickhouse.md).
CREATE TABLE IF NOT EXISTS {{.Database}}.finding_contributions
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
{{ttl "finding_contributions"}}
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'what each batch added to a finding';

CREATE VIEW IF NOT EXISTS {{.Database}}.findings AS
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
FROM {{.Database}}.finding_contributions AS c
GROUP BY id
)
COMMENT 'one row a finding: counts over all batches, words of the newest revision';
