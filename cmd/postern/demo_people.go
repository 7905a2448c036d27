package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/agent"
	"github.com/postern/postern/ingest/identity"
)

// The people of the demo, who dial in through a VPN gateway, and the agents on two of its
// hosts. Both tell by HTTP, as log shippers do.

// vpnLog is the source that the gateway's log of sessions is for.
const vpnLog = "vpn"

// demoHold is for how long the demo waits for who was behind a flow; its gateway is quick.
const demoHold = 3 * time.Second

// vpnSessions reads the gateway's log, a format of its own.
func vpnSessions() identity.SessionsConfig {
	c := identity.DefaultSessionsConfig()
	c.Name, c.Format = vpnLog, "custom"
	c.Custom = &agent.CustomEventConfig{
		Type: "json", Time: "rfc3339",
		Fields: map[string]string{"kind": "event", "at": "time", "session": "tunnel", "user": "user", "address": "assigned"},
		Values: map[string]map[string]string{"kind": {"connected": "start", "disconnected": "stop", "*": ""}},
	}
	return c
}

// jsonLines is a log.
type jsonLines struct{ bytes.Buffer }

func (l *jsonLines) add(v map[string]any) {
	b, _ := json.Marshal(v) // texts and numbers
	l.Write(append(b, '\n'))
}

// people adds what dialled-in people and two hosts with agents do from now on, within a
// second, and says what of it must be found. vpn is what the gateway logs, agents what the
// agents do, in ECS.
func (c *company) people(start time.Time, now time.Duration) (vpn, agents *jsonLines, misuse []planted) {
	vpn, agents = &jsonLines{}, &jsonLines{}
	at := func(d time.Duration) string {
		return start.Add(d).UTC().Format("2006-01-02T15:04:05.000Z07:00")
	}
	// An address of the gateway's pool changes hands. The vendor's man may use the
	// database's console by EX-2110; the next one at that address may not.
	const dialled, database = "10.65.0.7", "10.30.0.20"
	changed := now + 400*time.Millisecond
	vpn.add(map[string]any{"time": at(-20 * time.Minute), "event": "connected", "tunnel": "t-81", "user": "ivo", "assigned": dialled})
	vpn.add(map[string]any{"time": at(changed), "event": "disconnected", "tunnel": "t-81", "user": "ivo", "assigned": dialled})
	vpn.add(map[string]any{"time": at(changed), "event": "connected", "tunnel": "t-82", "user": "tom", "assigned": dialled})
	c.add(conversation{start: now, end: now + 200*time.Millisecond, client: dialled, server: database, proto: tcp, sport: 9443, bytes: 9_000, replies: 41_000})
	c.add(conversation{start: now + 600*time.Millisecond, end: now + 800*time.Millisecond, client: dialled, server: database, proto: tcp, sport: 9443, bytes: 7_000, replies: 38_000})

	// The reporting host may reach the vault with one program by EX-2120. The firewall sees
	// the same conversations and does not know programs.
	const reports, vault = "10.30.0.40", "10.20.0.12"
	for i, program := range []string{"/opt/reports/export", "/usr/bin/python3.11"} {
		v := conversation{start: now + time.Duration(100+300*i)*time.Millisecond, client: reports, server: vault, proto: tcp, sport: 5432, bytes: 3_000, replies: 900_000}
		v.end = v.start + 150*time.Millisecond
		c.add(v)
		v = c.all[len(c.all)-1]
		agents.add(map[string]any{
			"@timestamp": at(v.end), "event": map[string]any{"category": "network", "type": []string{"connection", "allowed"}, "start": at(v.start), "end": at(v.end)},
			"network": map[string]any{"transport": "tcp", "direction": "egress"}, "agent": map[string]any{"name": "report-1"},
			"source": map[string]any{"ip": v.client, "port": v.cport, "bytes": v.bytes}, "destination": map[string]any{"ip": v.server, "port": v.sport, "bytes": v.replies},
			"host": map[string]any{"name": "report-1", "ip": []string{reports}}, "process": map[string]any{"executable": program},
		})
	}

	// The wiki's own enforcement is behind the policy.
	const wiki, reader = "10.10.1.30", "10.50.4.4"
	v := conversation{start: now + 200*time.Millisecond, end: now + 200*time.Millisecond, client: reader, server: wiki, proto: tcp, sport: 443, bytes: 60}
	c.add(v)
	v = c.all[len(c.all)-1]
	agents.add(map[string]any{
		"@timestamp": at(v.end), "event": map[string]any{"category": "network", "type": []string{"connection", "denied"}, "start": at(v.start), "end": at(v.end)},
		"network": map[string]any{"transport": "tcp", "direction": "ingress"}, "agent": map[string]any{"name": "wiki-1"},
		"source": map[string]any{"ip": v.client, "port": v.cport, "bytes": v.bytes}, "destination": map[string]any{"ip": v.server, "port": v.sport},
		"host": map[string]any{"name": "wiki-1", "ip": []string{wiki}}, "rule": map[string]any{"name": "web-from-office"},
	})
	return vpn, agents, []planted{
		{"an exception used by who has the address now", flow.FindingOutOfScope, dialled, database, "tcp/9443", "EX-2110"},
		{"an exception used with another program", flow.FindingOutOfScope, reports, vault, "tcp/5432", "EX-2120"},
		{"permitted traffic that an agent blocks", flow.FindingMisblocked, reader, wiki, "tcp/443", ""},
	}
}

// post sends lines to the way in at path, as a log shipper does.
func (d *demo) post(ctx context.Context, path string, lines *jsonLines) error {
	token, err := os.ReadFile(filepath.Join(d.cfg.Data, "logs.token"))
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.svc.intake.HTTPAddr()+path, lines)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10)); err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("POST %s: %s: %s", path, resp.Status, body)
	}
	return nil
}
