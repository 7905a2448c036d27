-- Records behind a gap in their exporter's sequence numbers.
ALTER TABLE {{.Database}}.flows
    MODIFY COLUMN quality Array(Enum8('clock_skew' = 0, 'clock_unusable' = 1, 'time_missing' = 2, 'time_reversed' = 3, 'template_changed' = 4, 'parked' = 5, 'truncated' = 6, 'sampling_unknown' = 7, 'address_missing' = 8, 'observer_duplicate' = 9, 'direction_open' = 10, 'counter_missing' = 11, 'names_full' = 12, 'aggregated' = 13, 'sequence_gap' = 14)) COMMENT 'remarks about how far the record can be trusted' CODEC(ZSTD(1));

ALTER TABLE {{.Database}}.session_versions
    MODIFY COLUMN quality Array(Enum8('clock_skew' = 0, 'clock_unusable' = 1, 'time_missing' = 2, 'time_reversed' = 3, 'template_changed' = 4, 'parked' = 5, 'truncated' = 6, 'sampling_unknown' = 7, 'address_missing' = 8, 'observer_duplicate' = 9, 'direction_open' = 10, 'counter_missing' = 11, 'names_full' = 12, 'aggregated' = 13, 'sequence_gap' = 14)) COMMENT 'remarks about how far the observations can be trusted, of all' CODEC(ZSTD(1));
