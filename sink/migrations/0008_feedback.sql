-- What people say of findings, what suppressions hold back, and what detectors tell beside
-- what every finding has.
ALTER TABLE {{.Database}}.finding_contributions
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

CREATE OR REPLACE VIEW {{.Database}}.findings AS
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
FROM {{.Database}}.finding_contributions AS c
GROUP BY id
)
COMMENT 'one row a finding: counts over all batches, words of the newest revision';

CREATE TABLE IF NOT EXISTS {{.Database}}.feedback
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
{{ttl "feedback"}}
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'who judged which finding how, one row a judgment, never changed';

CREATE VIEW IF NOT EXISTS {{.Database}}.judgments AS
SELECT
    finding AS id,
    argMax(f.type, (f.judged_at, f.inserted_at, f.judged_by)) AS type,
    argMax(f.judgment, (f.judged_at, f.inserted_at, f.judged_by)) AS judgment,
    argMax(f.judged_by, (f.judged_at, f.inserted_at, f.judged_by)) AS judged_by,
    max(f.judged_at) AS judged_at,
    argMax(f.judgment_reason, (f.judged_at, f.inserted_at, f.judged_by)) AS judgment_reason,
    argMax(f.revision, (f.judged_at, f.inserted_at, f.judged_by)) AS judged_revision,
    count() AS judgments
FROM {{.Database}}.feedback AS f
GROUP BY finding
COMMENT 'one row a judged finding: its newest judgment, which is the one that counts';

CREATE VIEW IF NOT EXISTS {{.Database}}.judged_findings AS
SELECT
    f.*,
    j.judgment AS judgment,
    j.judged_by AS judged_by,
    j.judged_at AS judged_at,
    j.judgment_reason AS judgment_reason,
    j.judged_revision AS judged_revision,
    j.judgments AS judgments
FROM {{.Database}}.findings AS f
LEFT JOIN {{.Database}}.judgments AS j ON j.id = f.id
COMMENT 'findings with the judgment that counts; judgment is empty where nobody judged';

CREATE VIEW IF NOT EXISTS {{.Database}}.detector_judgments AS
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
FROM {{.Database}}.judged_findings
GROUP BY day, type
COMMENT 'how often each detector was right, by the day of the finding';
