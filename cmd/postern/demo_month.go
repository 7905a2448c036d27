package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink"
)

// The month before the demo. Dashboards look at thirty days and the demo sends seven; what is older is
// made up from these: the week's hours told again for the weeks before, straight into the tables.
// Nothing judges it and no finding comes of it, and its input says that it is generated.

const demoMonth = 30

// monthOfEdges repeats the hours of the week before the demo, which begins at the first parameter in
// seconds since 1970, 7, 14, 21 and 28 days earlier. An exception is used there only from when it holds.
const monthOfEdges = `INSERT INTO edge_hours (hour, reason, server, service, client, orientation, src_segment, dst_segment, src_workload, dst_workload, src_identity, dst_identity,
	expected, staged, observed, outcome, rule, exception, sessions, answered, client_bytes, client_packets, server_bytes, server_packets,
	first_seen, last_seen, live_first_seen, live_last_seen, input, inserted_at)
SELECT e.hour - toIntervalDay(earlier), e.reason, e.server, e.service, e.client, e.orientation, e.src_segment, e.dst_segment, e.src_workload, e.dst_workload, e.src_identity, e.dst_identity,
	e.expected, e.staged, e.observed, e.outcome, e.rule, e.exception, e.sessions, e.answered, e.client_bytes, e.client_packets, e.server_bytes, e.server_packets,
	e.first_seen - toIntervalDay(earlier), e.last_seen - toIntervalDay(earlier), toDateTime(4294967295, 'UTC'), toDateTime(0, 'UTC'), '` + sink.InputGenerated + `', now64(3)
FROM (SELECT *, arrayJoin([7, 14, 21, 28]) AS earlier FROM edges WHERE live = 0 AND hour >= toDateTime(%[1]d) - INTERVAL 7 DAY AND hour < toDateTime(%[1]d) - INTERVAL 1 HOUR) AS e
LEFT JOIN (SELECT id, ifNull(not_before, approved_at) AS holds FROM exceptions) AS x ON x.id = e.exception
WHERE e.hour - toIntervalDay(earlier) >= toDateTime(%[1]d) - INTERVAL %[2]d DAY AND (e.exception = '' OR e.hour - toIntervalDay(earlier) >= x.holds)
	AND (SELECT count() FROM edge_hours WHERE input = '` + sink.InputGenerated + `') = 0`

// dayOfDialling is the day before of somebody who dials in while the gateway's log does not say who it is.
const dayOfDialling = `INSERT INTO edge_hours (hour, reason, server, service, client, orientation, src_segment, dst_segment, dst_workload, expected, staged, observed, outcome, exception, sessions, answered,
	client_bytes, client_packets, server_bytes, server_packets, first_seen, last_seen, live_first_seen, live_last_seen, input, inserted_at)
SELECT toStartOfHour(toDateTime(%[1]d, 'UTC') - toIntervalHour(3 + number * 5)) AS began, 'unverified', toIPv6('10.30.0.20'), 'tcp/9443', toIPv6('10.65.0.9'), 'known', 'dial-in', 'payments', 'pay-db-1', 'unknown', 'unknown', 'unknown', 'none', 'EX-2110', 2, 2,
	16000, 40, 79000, 90, began + 600, began + 900, toDateTime(4294967295, 'UTC'), toDateTime(0, 'UTC'), '` + sink.InputGenerated + `', now64(3)
FROM numbers(5) WHERE (SELECT count() FROM edge_hours WHERE input = '` + sink.InputGenerated + `' AND reason = 'unverified') = 0`

// month fills the days before the week that was sent. It comes last: what the demo finds owes nothing to it.
func (d *demo) month(ctx context.Context) error {
	db := d.svc.store.(*durableStore).db
	d.svc.store.report(ctx, d.svc.reportNow()) // the register, which a minute later would know it too
	for _, sql := range []string{fmt.Sprintf(monthOfEdges, d.start.Unix(), demoMonth), fmt.Sprintf(dayOfDialling, d.start.Unix())} {
		if err := db.Query(ctx, sql, sink.FormatJSON, io.Discard); err != nil {
			return fmt.Errorf("the month before: %w", err)
		}
	}
	ago := func(t time.Duration) flow.Time { return flow.TimeOf(d.start.Add(-t)) }
	spots := []flow.BlindSpot{
		{Kind: flow.FindingSilentExporter, About: "the exporter 127.0.0.3", Source: "ipfix", Domain: 7, From: ago(60 * time.Hour), Until: ago(57 * time.Hour), Details: "nothing came for 3 hours"},
		{Kind: flow.FindingLoss, About: "the exporter 127.0.0.2", Source: "netflow_v9", Domain: 1, From: ago(100 * time.Hour), Until: ago(99 * time.Hour), Details: "an estimated 310 flows were skipped"},
	}
	var told []flow.Contribution
	for i := range spots {
		s := &spots[i]
		s.ID, s.Version, s.Subject = sink.InputGenerated+"-"+s.Kind, 1, flow.BlindExporter
		s.Finding = s.ID
		told = append(told, flow.Contribution{Sessions: 1, FirstSeen: s.From, LastSeen: s.Until, Finding: &flow.Finding{ID: s.Finding, SchemaVersion: flow.FindingSchema, Revision: 1, Type: s.Kind,
			Title: "Not seen (generated)", Severity: flow.Low, Confidence: 1, Sentence: "Generated, to show how it looks: of " + s.About + " " + s.Details + ".", Next: "Nothing: it did not happen."}})
	}
	ins := sink.Insert{Token: "demo-month", Input: sink.InputGenerated, At: flow.TimeOf(d.start)}
	_, err := db.InsertBlindSpots(ctx, ins, spots)
	if err == nil {
		_, err = db.InsertContributions(ctx, ins, told)
	}
	return err
}
