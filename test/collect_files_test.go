package test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/test/broker"
)

// TestCollectFiles hands captures on through Kafka, one of them twice, and holds what a
// detector makes of them against what replay does.
func TestCollectFiles(t *testing.T) {
	b := broker.Shared(t)
	d := newDeployment(t, []string{b.Addr()}, b.Topic(t, "files"), livePolicy(true))
	collector, detector := d.role("collect", settings{}), d.role("detect", settings{})
	alone := d.role("serve", settings{database: d.database + "_alone"})
	files := []string{
		captured(t, exporter.Config{Protocol: flow.SourceNetFlowV9, Domain: 4}, workday()),
		captured(t, biflows, workday()),
	}
	run(t, "kafka", "init", "-c", collector.config)
	run(t, append([]string{"collect", "-c", collector.config}, files...)...)
	run(t, "collect", "-c", collector.config, files[0])
	all, distinct := d.topicFlows(d.client())
	run(t, append([]string{"replay", "-c", alone.config, "--policy", d.policy}, files...)...)
	if rows := uint64(alone.number("SELECT count() FROM flows")); distinct != rows || all <= distinct {
		t.Errorf("%d records on the flows topic, %d without repetitions; replay has %d", all, distinct, rows)
	}
	detector.start()
	detector.until("everything to be stored", 60*time.Second, func() bool {
		r := detector.ledger().Records
		return r.Written == distinct && r.Duplicate == all-distinct
	})
	for _, sql := range []string{
		"SELECT client, server, client_port, server_port, time_start, oriented, other_half, reason, outcome, exception, rule, count() AS n, sum(bytes) AS bytes FROM flows GROUP BY ALL ORDER BY ALL",
		"SELECT id, type, client, server, service, count, first_seen, last_seen, severity FROM findings ORDER BY id",
	} {
		want := alone.query(sql)
		if diff := cmp.Diff(want, detector.query(sql)); diff != "" || len(want) == 0 {
			t.Errorf("%s: %d rows; (-replay +detect)\n%s", sql, len(want), tail(diff, 3000))
		}
	}
	detector.stop()
}
