package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/postern/postern/detect"
	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/ingest/identity"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/sink/siem"
)

// demoFindings are what the demo finds when it is started at a certain time: its week, half hour
// and misuse as real NetFlow v9, IPFIX and agents' lines through decoder, enrich, policy and detect,
// without the sockets, the clock and the engine around them. What its gateway logs is put as the
// facts that come of it.
func demoFindings(t *testing.T, start time.Time) []*flow.Finding {
	t.Helper()
	cfg := defaultConfig()
	cfg.Policy.Dir = t.TempDir()
	cfg.Identity.Hold = demoHold
	cfg.Identity.Sources.Sessions = []identity.SessionsConfig{vpnSessions()}
	cfg.Detect.Lateness = 5 * time.Second
	names := flow.NewNames(0)
	who, err := enrich.NewIdentity(cfg.Identity.IdentityConfig, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	const deleted = 2 * time.Second // from then on EX-2100 is not in the files
	history := policy.NewHistory(names, cfg.judging(who.Domains()))
	for _, v := range []struct {
		withBackup bool
		since      time.Time
	}{{true, start.Add(-(demoDays + 1) * 24 * time.Hour)}, {false, start.Add(deleted)}} {
		if err := writeDemoPolicy(cfg.Policy.Dir, start, v.withBackup); err != nil {
			t.Fatal(err)
		}
		p, diags := loadPolicy(cfg.Policy.Dir)
		if p == nil {
			t.Fatal(diags.String())
		}
		p.Commit = "" // whatever the folder for temporary files is in
		if err := history.Add(p, flow.TimeOf(v.since)); err != nil {
			t.Fatal(err)
		}
		who.NameGroups(p.Groups())
	}
	stages, err := judges(stageSettings{Enrich: cfg.Enrich, Detect: cfg.Detect, Sessions: cfg.Sessions}, history, who, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	if stages.behaviour, err = detect.NewBehaviour(cfg.Detect, 1, detect.Versions{History: history}, names, nil); err != nil {
		t.Fatal(err)
	}
	dcfg := cfg.Ingest.Decode
	dcfg.SourceID, dcfg.BelieveClock = 1, true
	p := newPipeline(pipelineConfig{names: names, decoder: ingest.NewDecoder(dcfg, names, nil), judging: stages,
		store: nowhere{}, log: slog.New(slog.DiscardHandler), chunkRows: cfg.Ingest.Spool.ChunkRows})
	received := &demoReceiver{findings: map[string]*flow.Finding{}}
	p.onEvents = func(events []*flow.Finding) error {
		for _, f := range events {
			if old := received.findings[f.ID]; f.Severity >= flow.Low && (old == nil || old.Revision < f.Revision) {
				received.findings[f.ID] = f
			}
		}
		return nil
	}
	stored := make(chan error, 1)
	go func() { stored <- p.runStore(t.Context(), checkpoints{}) }()

	var devices []*exporter.Exporter
	for _, cfg := range demoExporters(start, names) {
		x, err := exporter.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		devices = append(devices, x)
	}
	lcfg := cfg.Ingest.Logs.Decode
	lcfg.BelieveClock = true
	log, err := newLogValues("ecs", lcfg, cfg.Ingest.Logs.MaxLine, names)
	if err != nil {
		t.Fatal(err)
	}
	position, input := uint64(0), 0
	export := func(c *company, lines []byte) {
		input++
		p.begin(unit{number: uint64(input)})
		for i, records := range byMinute(c.records(start)) {
			now := records[len(records)-1].End
			if _, err := devices[i].Export(now, records, func(payload []byte) error {
				position++
				return p.datagram(t.Context(), &ingest.Datagram{Position: position, Received: now, Exporter: flow.AddrFromNetip(demoAddress(i)), Payload: payload})
			}); err != nil {
				t.Fatal(err)
			}
		}
		if len(lines) > 0 {
			if err := p.records(t.Context(), func(b *flow.Batch) {
				if refused, err := log.Decode(lines, 1, flow.TimeOf(start), b); refused > 0 || err != nil {
					t.Errorf("%d of the agents' lines are refused: %v", refused, err)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		for now := start; input == 3 && now.Before(start.Add(25*time.Second)); now = now.Add(time.Second) { // as long as the demo takes for it
			if err := p.tick(t.Context(), flow.TimeOf(now)); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.end(t.Context(), nil, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	c := newCompany(1)
	c.week(start)
	export(c, nil)
	c.all = nil
	c.everyday()
	misuse := c.misuse()
	export(c, nil)
	c.all = nil
	const soon = 3 * time.Second
	misuse = append(misuse, c.afterDeletion(soon)...)
	_, agents, byPeople := c.people(start, soon)
	misuse = append(misuse, byPeople...)
	changed := flow.TimeOf(start.Add(soon + 400*time.Millisecond))
	who.Take([]flow.Fact{
		{Source: vpnLog, Kind: flow.FactSession, Addr: flow.MustParseAddr("10.65.0.7"), Session: "t-81", User: "ivo", Since: flow.TimeOf(start.Add(-20 * time.Minute)), Until: changed, Known: changed},
		{Source: vpnLog, Kind: flow.FactSession, Addr: flow.MustParseAddr("10.65.0.7"), Session: "t-82", User: "tom", Since: changed, Known: changed},
	}, flow.Heartbeat{Source: vpnLog, At: changed})
	export(c, agents.Bytes())
	close(p.out)
	if err := <-stored; err != nil {
		t.Fatal(err)
	}
	missing, extra := received.missing(misuse), received.extra(misuse)
	for _, m := range missing {
		t.Errorf("missed: %s (%s)", m.what, m.key())
	}
	for _, f := range extra {
		t.Errorf("not planted: %s (%s)", f.Sentence, foundKey(f))
	}
	return received.list()
}

// TestDemoExamples holds docs/examples to the code: what the demo finds, started at a certain time, in
// each encoding, one finding a line. `make docs` writes them anew.
func TestDemoExamples(t *testing.T) {
	findings := demoFindings(t, time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC))
	if len(findings) != 22 {
		t.Fatalf("%d findings", len(findings))
	}
	for _, e := range siem.Encodings {
		name := "findings." + e.Name
		switch e.Name {
		case "ocsf", "ecs":
			name += ".json"
		}
		var want bytes.Buffer
		for _, f := range findings {
			b, err := e.Encode(f)
			if err != nil {
				t.Fatal(err)
			}
			want.Write(append(b, '\n'))
		}
		path := filepath.Join(docsDir, "examples", name)
		if *update {
			if err := os.WriteFile(path, want.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want.Bytes()) {
			t.Errorf("docs/examples/%s is not what the demo finds; run `make docs` and commit the result", name)
		}
	}
}
