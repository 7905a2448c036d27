-- What agents, clouds and firewalls say in their logs.
ALTER TABLE {{.Database}}.flows
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

ALTER TABLE {{.Database}}.exporters
    MODIFY COLUMN source Enum8('unknown' = 0, 'netflow_v5' = 1, 'netflow_v9' = 2, 'ipfix' = 3, 'sflow_v5' = 4, 'hubble' = 5, 'zeek' = 6, 'suricata' = 7, 'aws_vpc' = 8, 'azure_vnet' = 9, 'azure_nsg' = 10, 'gcp_vpc' = 11, 'gcp_firewall' = 12, 'calico' = 13, 'sysmon' = 14, 'wfp' = 15, 'illumio' = 16, 'guardicore' = 17, 'cef' = 18, 'conntrack' = 19, 'netfilter' = 20, 'ocsf' = 21, 'ecs' = 22, 'custom' = 23) COMMENT 'the format it exports' CODEC(ZSTD(1));

ALTER TABLE {{.Database}}.ledger
    ADD COLUMN IF NOT EXISTS lines_received UInt64 COMMENT '= read + not_flow + rejected + queued + lost' CODEC(ZSTD(1)) AFTER inserted_at,
    ADD COLUMN IF NOT EXISTS lines_read UInt64 COMMENT 'lines of logs that told flows' CODEC(ZSTD(1)) AFTER lines_received,
    ADD COLUMN IF NOT EXISTS lines_not_flow UInt64 COMMENT 'lines that told something else' CODEC(ZSTD(1)) AFTER lines_read,
    ADD COLUMN IF NOT EXISTS lines_rejected UInt64 COMMENT 'lines that could not be read' CODEC(ZSTD(1)) AFTER lines_not_flow,
    ADD COLUMN IF NOT EXISTS lines_queued UInt64 COMMENT 'lines in the spool' CODEC(ZSTD(1)) AFTER lines_rejected,
    ADD COLUMN IF NOT EXISTS lines_lost UInt64 COMMENT 'lines that were in the spool and could not be read back' CODEC(ZSTD(1)) AFTER lines_queued;
