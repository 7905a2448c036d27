package test

import (
	"bytes"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/exporter"
)

// TestSessions has a router and the agents of both ends tell of the same conversations: each is
// one session, with the counters of the one and the identities of the others, and where the
// agents contradict each other somebody is told (THREATS 27, 28).
func TestSessions(t *testing.T) {
	r := newLogRig(t)
	r.amend("netflow: {listen: \"\"}", fmt.Sprintf("netflow: {listen: %q}", r.udp))
	r.amend("policy: {", "sessions: {lateness: 2s, settle: 2s, join: 2s, idle: {tcp: 3s}}\nenrich: {window: 2s}\npolicy: {")
	r.start()
	at := time.Now().UTC().Truncate(time.Millisecond)
	d := newDevice(t, "127.0.0.2", r.udp, exporter.Config{Protocol: flow.SourceIPFIX, Domain: 1, Biflow: true, BiflowDirection: true})
	var records []flow.Record
	var lines bytes.Buffer
	const sessions = 20
	for i := range sessions {
		port := uint16(50_000 + i)
		client := fmt.Sprintf("10.50.0.%d", 1+i)
		records = append(records, session(at, client, "10.20.0.1", port, 443))
		said := "web"
		if i == 7 { // the agent at the server's end has another opinion
			said = "mallory"
		}
		for _, agent := range []struct{ node, direction, account string }{{"node-a", "EGRESS", "web"}, {"node-b", "INGRESS", said}} {
			fmt.Fprintf(&lines, `{"flow":{"time":%q,"verdict":"FORWARDED","IP":{"source":%q,"destination":"10.20.0.1"},"l4":{"TCP":{"source_port":%d,"destination_port":443,"flags":{"SYN":true}}},`+
				`"source":{"namespace":"shop","labels":["k8s:io.cilium.k8s.policy.serviceaccount=%s"],"pod_name":"web-1"},"destination":{"namespace":"data","pod_name":"db-0"},"node_name":%q,"traffic_direction":%q,"is_reply":false}}`+"\n",
				at.Format(time.RFC3339Nano), client, port, agent.account, agent.node, agent.direction)
		}
	}
	// The client's agent lets out what the server's then stops.
	for _, agent := range []struct{ node, direction, verdict string }{{"node-a", "EGRESS", "FORWARDED"}, {"node-b", "INGRESS", "DROPPED"}} {
		fmt.Fprintf(&lines, `{"flow":{"time":%q,"verdict":%q,"IP":{"source":"10.50.0.99","destination":"10.20.0.1"},"l4":{"TCP":{"source_port":50099,"destination_port":22,"flags":{"SYN":true}}},`+
			`"source":{},"destination":{},"node_name":%q,"traffic_direction":%q,"is_reply":false}}`+"\n", at.Format(time.RFC3339Nano), agent.verdict, agent.node, agent.direction)
	}
	d.export(records...)
	if code, answer := r.post("hubble", "", lines.Bytes()); code != 200 || answer["flows"] != float64(2*sessions+2) {
		t.Fatalf("%d %v", code, answer)
	}
	r.until("the sessions to be written", 60*time.Second, func() bool {
		return r.number("SELECT count() AS n FROM sessions WHERE observers_total = 3") == sessions
	})
	if n := r.number("SELECT count() AS n FROM flows"); n != 3*sessions+2 {
		t.Errorf("%d observations are stored, want %d", n, 3*sessions+2)
	}
	r.until("what was stopped to be told as stopped", 30*time.Second, func() bool {
		return r.number("SELECT count() AS n FROM findings WHERE outcome = 'blocked'") > 0
	})
	if n := r.number("SELECT count() AS n FROM sessions"); n != sessions+1 {
		t.Errorf("%d sessions, want %d", n, sessions+1)
	}
	said := r.query("SELECT outcome, severity FROM finding_contributions WHERE type = 'policy-violation' AND client = '10.50.0.99' ORDER BY revision")
	if got := fmt.Sprint(said); got != "[map[outcome:escaped severity:medium] map[outcome:blocked severity:low]]" {
		t.Errorf("of a connection that was let out and stopped is said %s", got)
	}
	if n := r.number("SELECT uniqExact(f.conversation) AS n FROM flows AS f INNER JOIN sessions AS s ON f.conversation = s.conversation"); n != sessions+1 {
		t.Errorf("%d conversations of flows and sessions meet, want %d", n, sessions+1)
	}
	row := r.query("SELECT src_identity, src_host, client_bytes, server_bytes, observed, both_ways, src_agent, dst_agent FROM sessions WHERE client = '10.50.0.3'")[0]
	if got := fmt.Sprint(row["src_identity"], " ", row["src_host"], " ", row["client_bytes"], " ", row["server_bytes"], " ", row["observed"], " ", row["both_ways"], " ", row["src_agent"], " ", row["dst_agent"]); got != "shop/web shop/web-1 900 7000 allow true true true" {
		t.Errorf("merged as %s", got)
	}
	r.until("the contradiction to be told", 30*time.Second, func() bool {
		return r.number("SELECT count() AS n FROM findings WHERE type = 'identity-mismatch'") > 0
	})
	found := r.query("SELECT client, sentence FROM findings WHERE type = 'identity-mismatch'")
	if len(found) != 1 || found[0]["client"] != "10.50.0.8" {
		t.Errorf("contradictions %v", found)
	}
	t.Log(found[0]["sentence"])
	if n := r.edgesAgree(4*time.Second, sessions+1); n != sessions+1 {
		t.Errorf("%d sessions are counted in the roll-up, want %d", n, sessions+1)
	}
	r.stop()
}

// TestSessionEvents judges flows by who was logged on when they began: a VPN's accounting is
// posted as it is written.
func TestSessionEvents(t *testing.T) {
	r := newLogRig(t)
	r.writePolicy(identityPolicy)
	r.amend("netflow: {listen: \"\"}", fmt.Sprintf("netflow: {listen: %q}", r.udp))
	r.amend("policy: {", `identity:
  hold: 2s
  defaultDomain: corp
  sessions:
    - {name: vpn, format: custom, custom: {type: json, time: ms, fields: {kind: event, at: ts, session: id, user: user, address: ip}, values: {kind: {up: start, down: stop}}}}
policy: {`)
	r.start()
	at := time.Now().UTC().Truncate(time.Millisecond)
	line := func(event, user string, after time.Duration) string {
		return fmt.Sprintf(`{"event":%q,"ts":%d,"id":"s-%s","user":%q,"ip":"10.50.0.7"}`+"\n", event, at.Add(after).UnixMilli(), user, user)
	}
	body := line("up", "alice", -10*time.Second) + line("down", "alice", -6*time.Second) + line("up", "mallory", -4*time.Second)
	req, err := http.NewRequest(http.MethodPost, "http://"+r.http+"/v1/events/vpn", bytes.NewReader([]byte(body)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer s3cret")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 {
		t.Fatalf("answered with %s", res.Status)
	}
	d := newDevice(t, "127.0.0.2", r.udp, exporter.Config{Protocol: flow.SourceIPFIX, Domain: 1, Biflow: true, BiflowDirection: true})
	now := time.Now()
	d.export(session(now.Add(-8*time.Second), "10.50.0.7", "10.20.0.1", 50_001, 443), session(now, "10.50.0.7", "10.20.0.1", 50_002, 443))
	// The first ended before anybody said who was there: a later word rewrites nothing.
	want := map[float64]string{50_001: "unverified ", 50_002: "denied mallory"}
	r.until("the flows to be judged", 30*time.Second, func() bool { return r.number("SELECT count() AS n FROM flows") == 2 })
	for _, row := range r.query("SELECT client_port, reason, src_identity FROM flows") {
		if got := fmt.Sprintf("%v %v", row["reason"], row["src_identity"]); got != want[row["client_port"].(float64)] {
			t.Errorf("port %v: %s, want %s", row["client_port"], got, want[row["client_port"].(float64)])
		}
	}
	r.stop()
}
