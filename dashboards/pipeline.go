package dashboards

import "strconv"

// pipeline is for those who run Postern: is anything lost, late or full. It is the one on Prometheus.
func pipeline() *Dashboard {
	d := dashboard("pipeline", "Pipeline", "For those who run Postern: whether anything is lost, late or full. Kafka's panels fill where the roles are split by Kafka.", "now-6h", choosePrometheus,
		Variable{Name: "instance", Label: "Instance", Type: "query", Source: &prometheus, Query: "label_values(up{job=~\".*postern.*\"}, instance)", Definition: "label_values(up{job=~\".*postern.*\"}, instance)", Refresh: 2, Multi: true, IncludeAll: true, AllValue: ".*",
			Current: &choice{[]string{"All"}, []string{"$__all"}}})
	d.Refresh = "30s"
	d.row(4,
		gauge(4, "The ledger adds up", "1: every datagram and record is accounted for. 0: something was lost without being counted.", "none", "min(postern_ledger_closes"+of+")", first(bad), from(1, good)).mapped("0", "no", "1", "yes"),
		gauge(4, "Oldest entry waiting in a spool", "How far judging is behind receiving.", "s", "max(postern_ingest_spool_oldest_seconds"+of+")", first(good), from(60, fair), from(600, bad)),
		gauge(4, "Spool filled", "At 100 % datagrams are refused.", "percentunit", "max(postern_ingest_spool_bytes"+of+" / postern_ingest_spool_limit_bytes"+of+")", first(good), from(.5, fair), from(.8, bad)),
		gauge(4, "Datagrams lost a second", "By the kernel, by the spool or by the decoder.", "pps", "sum(instance:postern_datagrams_lost:rate5m"+of+")", first(good), from(.001, bad)),
		gauge(4, "Findings waiting to be delivered", "Over all receivers.", "short", "sum(postern_outbox_events"+of+")", first(good), from(100, fair), from(10000, bad)),
		gauge(4, "Receivers that take nothing", "Every attempt has failed for five minutes or more.", "short", "count(postern_outbox_failing_seconds"+of+" > 300) or vector(0)", zeroIsGood(bad)...),
	)
	d.row(8,
		rates(8, "Datagrams received", "By instance.", "pps", "normal", q("sum by (instance) (rate(postern_ingest_spool_datagrams_total"+of+"[$__rate_interval]))", "{{instance}}")),
		rates(8, "Flows judged, by why", "", "ops", "normal", q("sum by (reason) (rate(postern_flows_total"+of+"[$__rate_interval]))", "{{reason}}")),
		rates(8, "What was not taken, by why", "Anything here is traffic that nobody judged.", "pps", "none",
			q("sum by (reason) (rate(postern_ingest_spool_refused_datagrams_total"+of+"[$__rate_interval]))", "refused: {{reason}}"),
			q("sum(rate(postern_ingest_udp_refused_datagrams_total"+of+"[$__rate_interval]))", "refused at the socket"),
			q("sum(rate(postern_ingest_udp_kernel_drops_total"+of+"[$__rate_interval]))", "dropped by the kernel").optional(),
			q("sum by (reason) (rate(postern_ingest_decode_rejected_datagrams_total"+of+"[$__rate_interval]))", "rejected: {{reason}}").optional()),
	)
	d.row(8,
		rates(8, "The ledger: where records are", "Decoded is the sum of the others; in flight should come and go.", "short", "none", q("sum by (term) (postern_ledger_records"+of+")", "{{term}}")),
		rates(8, "How far behind: age of the oldest, and Kafka's lag", "", "s", "none",
			q("max by (instance) (postern_ingest_spool_oldest_seconds"+of+")", "spool {{instance}}"),
			q("max by (target) (postern_outbox_oldest_seconds"+of+")", "finding for {{target}}"),
			q("max(postern_behaviour_lag"+of+")", "partitions, event time").optional(), q("sum(postern_kafka_lag"+of+")", "Kafka, values").optional()).set("Kafka, values", property{"unit", "short"}),
		rates(8, "Time to store a block, 50th and 99th of 100", "", "s", "none",
			q("histogram_quantile(0.5, sum by (le) (rate(postern_sink_insert_seconds_bucket"+of+"[$__rate_interval])))", "half"),
			q("histogram_quantile(0.99, sum by (le) (rate(postern_sink_insert_seconds_bucket"+of+"[$__rate_interval])))", "99 of 100")),
	)
	d.row(8,
		rates(8, "Memory: the process, Go's heap, the embedded engine", "", "bytes", "none",
			q("sum by (instance) (process_resident_memory_bytes"+ofJob+")", "process {{instance}}"),
			q("sum by (instance) (go_memstats_heap_alloc_bytes"+ofJob+")", "heap {{instance}}"), q("sum by (instance) (postern_embedded_memory_bytes"+of+")", "engine {{instance}}").optional()),
		rates(8, "What is remembered, against its caps", "What is forgotten for want of room is counted on the right.", "short", "none",
			q("sum(postern_enrich_sessions_held"+of+")", "sessions"), q("sum(postern_behaviour_hosts"+of+")", "hosts"), q("sum(postern_contacts_edges"+of+")", "edges"), q("sum(postern_detect_findings"+of+") + sum(postern_behaviour_findings"+of+")", "findings")),
		rates(8, "Forgotten before its time", "State that detectors lost: findings may be missing.", "ops", "none",
			q("sum(rate(postern_enrich_sessions_evicted_total"+of+"[$__rate_interval]))", "sessions"), q("sum(rate(postern_detect_findings_evicted_total"+of+"[$__rate_interval]))", "findings"),
			q("sum(rate(postern_behaviour_hops_dropped_total"+of+"[$__rate_interval]))", "steps of ways"), q("sum(rate(postern_enrich_sessions_late_records_total"+of+"[$__rate_interval]))", "too late for their session")),
	)
	d.row(8,
		rates(12, "Findings told, by severity", "", "ops", "normal", q("sum by (severity) (rate(postern_detect_events_total"+of+"[$__rate_interval])) + on(severity) sum by (severity) (rate(postern_behaviour_events_total"+of+"[$__rate_interval]))", "{{severity}}")).colour(severities...),
		rates(12, "Delivery by receiver: waiting, and dead letters", "Dead letters wait for `postern outbox replay`.", "short", "none", q("sum by (target) (postern_outbox_events"+of+")", "waiting {{target}}"), q("sum by (target) (postern_outbox_dead_letters"+of+")", "dead letters {{target}}")),
	)
	return d
}

// of chooses the instances, of what other processes have as well those of Postern's jobs.
const (
	of    = `{instance=~"$instance"}`
	ofJob = `{instance=~"$instance",job=~".*postern.*"}`
)

func q(expr, legend string) Target {
	return Target{Source: prometheus, Expr: expr, Legend: legend, Range: true, Format: "time_series"}
}

// optional marks an expression that has series only in some roles or on some systems.
func (t Target) optional() Target { t.may = true; return t }

func gauge(w int, title, about, unit, expr string, steps ...step) Panel {
	return statOf(w, title, about, unit, Target{RefID: "A", Source: prometheus, Expr: expr, Instant: true, Format: "time_series"}, steps...)
}

func rates(w int, title, about, unit, stack string, targets ...Target) Panel {
	for i := range targets {
		targets[i].RefID = strconv.QuoteRune(rune('A' + i))[1:2]
	}
	return over(w, title, about, unit, "line", stack, targets...)
}

// mapped shows words for values.
func (p Panel) mapped(pairs ...string) Panel {
	options := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		options[pairs[i]] = map[string]any{"text": pairs[i+1], "index": i / 2}
	}
	p.Fields.Defaults.Mappings = []mapping{{"value", options}}
	return p
}
