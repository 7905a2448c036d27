-- What the judgement rests on: policies, exporters, and what was and was not seen.
CREATE TABLE IF NOT EXISTS {{.Database}}.policy_versions
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
{{ttl "policy_versions"}}
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'policies that came into force';

CREATE TABLE IF NOT EXISTS {{.Database}}.exporters
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
{{ttl "exporters"}}
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'who exports, as of each snapshot';

CREATE TABLE IF NOT EXISTS {{.Database}}.ledger
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
{{ttl "ledger"}}
SETTINGS ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1,
    non_replicated_deduplication_window = {{.DedupWindow}}, replicated_deduplication_window = {{.DedupWindow}}
COMMENT 'both ledgers by exporter, as of each snapshot';
