-- The register: what each version of policy says, taken apart, so that it can be joined with what
-- was seen. Rows belong to a version of policy and never change; the views show the version in
-- force. A version is in the register once coverage_versions has it, which is written last.
CREATE TABLE IF NOT EXISTS {{.Database}}.exception_versions
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
{{ttl "exception_versions"}}
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'exceptions, a row a version of policy';

CREATE TABLE IF NOT EXISTS {{.Database}}.segment_versions
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
{{ttl "segment_versions"}}
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'segments, a row a version of policy';

CREATE TABLE IF NOT EXISTS {{.Database}}.workload_versions
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
{{ttl "workload_versions"}}
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'workloads, a row a version of policy';

CREATE TABLE IF NOT EXISTS {{.Database}}.rule_versions
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
{{ttl "rule_versions"}}
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'rules, a row a version of policy';

CREATE TABLE IF NOT EXISTS {{.Database}}.coverage_versions
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
{{ttl "coverage_versions"}}
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'how much of the estate stands at which stage and tier, by version of policy';

-- What replays bring counts only where no service has accepted any policy: whoever tries a policy
-- out on a capture does not change the register.
CREATE VIEW IF NOT EXISTS {{.Database}}.policy_timeline AS
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
    FROM {{.Database}}.policy_versions AS p
    WHERE (p.instance != 'replay' OR (SELECT count() FROM {{.Database}}.policy_versions WHERE instance != 'replay') = 0)
        AND substring(p.hash, 1, 16) IN (SELECT policy_version FROM {{.Database}}.coverage_versions)
)
WHERE hash != before
COMMENT 'which version of policy was in force when, of those in the register';

CREATE VIEW IF NOT EXISTS {{.Database}}.exceptions AS
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
    FROM {{.Database}}.exception_versions AS e
    INNER JOIN {{.Database}}.policy_timeline AS v ON v.policy_version = e.policy_version
    ORDER BY e.id, v.since DESC
    LIMIT 1 BY e.id
)
COMMENT 'one row an exception, as the newest version of policy that holds it says, and its state now';

CREATE VIEW IF NOT EXISTS {{.Database}}.rules AS
SELECT
    r.id AS id, r.action AS action, r.mode AS mode, r.source AS source, r.destination AS destination, r.services AS services, r.owner AS owner, r.reason AS reason,
    r.policy_version AS policy_version, v.since AS since
FROM {{.Database}}.rule_versions AS r FINAL
INNER JOIN {{.Database}}.policy_timeline AS v ON v.policy_version = r.policy_version
WHERE v.until IS NULL AND r.policy_version IN (SELECT policy_version FROM {{.Database}}.policy_timeline WHERE until IS NULL)
COMMENT 'the rules of the version of policy in force';

CREATE VIEW IF NOT EXISTS {{.Database}}.segments AS
SELECT
    r.name AS name, r.zone AS zone, r.tier AS tier, r.stage AS stage, r.owner AS owner, r.agent_required AS agent_required, r.default_in AS default_in, r.default_out AS default_out, r.prefixes AS prefixes, r.workloads AS workloads,
    r.policy_version AS policy_version, v.since AS since
FROM {{.Database}}.segment_versions AS r FINAL
INNER JOIN {{.Database}}.policy_timeline AS v ON v.policy_version = r.policy_version
WHERE v.until IS NULL AND r.policy_version IN (SELECT policy_version FROM {{.Database}}.policy_timeline WHERE until IS NULL)
COMMENT 'the segments of the version of policy in force';

CREATE VIEW IF NOT EXISTS {{.Database}}.workloads AS
SELECT
    r.name AS name, r.app AS app, r.role AS role, r.env AS env, r.owner AS owner, r.segment AS segment, r.zone AS zone, r.tier AS tier, r.stage AS stage, r.addresses AS addresses, r.labels AS labels,
    r.policy_version AS policy_version, v.since AS since
FROM {{.Database}}.workload_versions AS r FINAL
INNER JOIN {{.Database}}.policy_timeline AS v ON v.policy_version = r.policy_version
WHERE v.until IS NULL AND r.policy_version IN (SELECT policy_version FROM {{.Database}}.policy_timeline WHERE until IS NULL)
COMMENT 'the workloads of the version of policy in force';

CREATE VIEW IF NOT EXISTS {{.Database}}.coverage_history AS
SELECT
    v.since AS since, v.until AS until, c.policy_version AS policy_version, c.stage AS stage, c.tier AS tier,
    c.workloads AS workloads, c.addresses AS addresses
FROM {{.Database}}.coverage_versions AS c FINAL
INNER JOIN {{.Database}}.policy_timeline AS v ON v.policy_version = c.policy_version
WHERE c.workloads > 0 OR c.addresses > 0
COMMENT 'how much of the estate stood at which stage and tier, over time';

CREATE VIEW IF NOT EXISTS {{.Database}}.exception_use AS
SELECT
    hour, exception, reason, outcome, client, src_identity, src_segment, src_workload, server, dst_identity, dst_segment, dst_workload, service,
    toUInt64(sum(e.sessions)) AS sessions,
    toUInt64(sum(e.answered)) AS answered,
    toUInt64(sum(e.client_bytes)) AS client_bytes,
    toUInt64(sum(e.server_bytes)) AS server_bytes,
    toDateTime(if(sum(e.live) > 0, least(min(e.first_seen), min(e.live_first_seen)), min(e.first_seen)), 'UTC') AS first_seen,
    toDateTime(if(sum(e.live) > 0, greatest(max(e.last_seen), max(e.live_last_seen)), max(e.last_seen)), 'UTC') AS last_seen
FROM {{.Database}}.edge_hours AS e
WHERE exception != ''
GROUP BY hour, exception, reason, outcome, client, src_identity, src_segment, src_workload, server, dst_identity, dst_segment, dst_workload, service
HAVING sum(e.sessions) > 0
COMMENT 'the hourly roll-up of sessions that an exception waives or is implicated in';

CREATE VIEW IF NOT EXISTS {{.Database}}.exception_use_daily AS
SELECT
    toDate(hour, 'UTC') AS day, exception, reason, outcome, client, src_identity, src_segment, src_workload, server, dst_identity, dst_segment, dst_workload, service,
    toUInt64(sum(e.sessions)) AS sessions,
    toUInt64(sum(e.answered)) AS answered,
    uniqExact(hour) AS hours,
    toUInt64(sum(e.client_bytes)) AS client_bytes,
    toUInt64(sum(e.server_bytes)) AS server_bytes,
    min(e.first_seen) AS first_seen,
    max(e.last_seen) AS last_seen
FROM {{.Database}}.exception_use AS e
GROUP BY day, exception, reason, outcome, client, src_identity, src_segment, src_workload, server, dst_identity, dst_segment, dst_workload, service
COMMENT 'the same by day';

CREATE VIEW IF NOT EXISTS {{.Database}}.finding_revisions AS
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
    FROM {{.Database}}.finding_contributions AS c
    GROUP BY id, revision
)
COMMENT 'one row a revision of a finding: what was said of it when';
