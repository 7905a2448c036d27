-- Which finding tells of a finding and of many others like it, where it is not told itself.
ALTER TABLE {{.Database}}.finding_contributions
    ADD COLUMN IF NOT EXISTS grouped_by String COMMENT 'the finding that tells of it with many others, empty if it is told itself' CODEC(ZSTD(1)) AFTER suppressed;

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
FROM {{.Database}}.finding_contributions AS c
GROUP BY id
)
COMMENT 'one row a finding: counts over all batches, words of the newest revision';

CREATE OR REPLACE VIEW {{.Database}}.judged_findings AS
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
