package test

import (
	"fmt"
	"time"
)

// quickSessions makes sessions end soon, so that a test can wait until all of them are counted:
// within lateness and six seconds after they end.
func quickSessions(lateness time.Duration) string {
	return fmt.Sprintf("sessions: {lateness: %v, settle: 2s, join: 1s, idle: {tcp: 2s, udp: 2s, icmp: 2s, other: 2s}}\n", lateness)
}

// Edges as the roll-up shows them, and as they are counted from the sessions.
const (
	edgeColumns = "client, server, service, orientation, src_segment, dst_segment, src_workload, dst_workload, expected, staged, reason, observed, outcome, rule, exception"
	rolledUp    = "SELECT hour, " + edgeColumns + ", sessions, answered, client_bytes, client_packets, server_bytes, server_packets, first_seen, last_seen FROM edges"
	recounted   = "SELECT toStartOfHour(toDateTime(began, 'UTC')) AS hour, " + edgeColumns + `, count() AS sessions, countIf(both_ways) AS answered,
		sum(ifNull(s.client_bytes, 0)) AS client_bytes, sum(ifNull(s.client_packets, 0)) AS client_packets, sum(ifNull(s.server_bytes, 0)) AS server_bytes, sum(ifNull(s.server_packets, 0)) AS server_packets,
		toDateTime(min(time_start), 'UTC') AS first_seen, toDateTime(max(time_end), 'UTC') AS last_seen
		FROM sessions AS s GROUP BY hour, ` + edgeColumns
)

// edgesAgree waits until so many sessions are stored and all of them over and counted, and says whether the
// hourly roll-up is, row by row, what counting the sessions gives. It gives how many there are. Where it is not
// known how many there will be, least is 1, and nothing may have changed for as long as sessions take to be counted:
// a detector that was down may have what it read last still before it.
func (s *server) edgesAgree(lateness time.Duration, least int) (sessions int) {
	s.t.Helper()
	totals := "SELECT (SELECT count() FROM sessions) AS stored, (SELECT sum(sessions) FROM edges) AS counted, (SELECT sum(live) FROM edges) AS live, " +
		fmt.Sprintf("(SELECT max(time_end) < now64(3) - INTERVAL %.0f SECOND FROM flows) AS silent", (lateness+6*time.Second).Seconds())
	rest := time.Duration(0)
	if least <= 1 {
		rest = lateness + 6*time.Second
	}
	var row map[string]any
	var since time.Time
	for deadline, last := time.Now().Add(90*time.Second), ""; ; time.Sleep(500 * time.Millisecond) {
		row = s.query(totals)[0]
		now := fmt.Sprint(row)
		if now != last {
			last, since = now, time.Now()
		} else if row["stored"].(float64) >= float64(least) && row["stored"] == row["counted"] && row["live"] == 0.0 && row["silent"] == 1.0 && time.Since(since) >= rest {
			break
		}
		if time.Now().After(deadline) {
			s.t.Errorf("sessions that are stored and counted: %v", row)
			return 0
		}
	}
	if differ := s.query("SELECT * FROM (SELECT *, count() AS n FROM ((" + rolledUp + ") UNION ALL (" + recounted + ")) GROUP BY ALL) WHERE n != 2 LIMIT 6"); len(differ) > 0 {
		s.t.Errorf("the roll-up is not what counting the sessions gives; these are in one of the two: %v", differ)
	}
	if n := s.number("SELECT (SELECT sum(sessions) FROM edges) - (SELECT sum(sessions) FROM segment_pairs) AS n"); n != 0 {
		s.t.Errorf("segment_pairs counts %d sessions less than edges", n)
	}
	return int(row["stored"].(float64))
}
