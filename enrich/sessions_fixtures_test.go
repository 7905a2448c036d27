package enrich_test

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/agent"
)

// fixtures is the folder of real captures and logs; without it the test is skipped.
func fixtures(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("POSTERN_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "shared", "fixtures")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no fixtures in %s; set POSTERN_FIXTURES to their folder", dir)
	}
	return dir
}

// logRecords reads a log.
func logRecords(t testing.TB, format, path string, names *flow.Names) []flow.Record {
	t.Helper()
	d, err := agent.NewDecoder(format, agent.Config{BelieveClock: true}, names)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := flow.NewBatch(64, nil)
	seed := uint64(0)
	for _, c := range []byte(path) {
		seed = seed*31 + uint64(c)
	}
	o := agent.Origin{Seed: seed}
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, 1<<20)
	for n := uint64(0); sc.Scan(); n++ {
		var not agent.NotFlow
		if err := d.Decode(sc.Bytes(), n, &o, out); err != nil && !errors.As(err, &not) {
			t.Fatalf("%s line %d: %v", path, n+1, err)
		}
	}
	return oriented(out.Records)
}

// captureRecords reads a capture of exported flows.
func captureRecords(t testing.TB, path string, names *flow.Names) []flow.Record {
	t.Helper()
	capture, err := ingest.OpenCapture(path)
	if err != nil {
		t.Fatal(err)
	}
	defer capture.Close()
	cfg := ingest.DefaultDecoderConfig()
	cfg.BelieveClock = true
	d := ingest.NewDecoder(cfg, names, nil)
	out := flow.NewBatch(64, nil)
	for {
		dg, err := capture.Next()
		if errors.Is(err, io.EOF) {
			return oriented(out.Records)
		}
		if err != nil {
			t.Fatal(err)
		}
		d.Decode(dg, out)
	}
}

func oriented(rs []flow.Record) []flow.Record {
	for i := range rs {
		enrich.Orient(&rs[i], nil)
	}
	return rs
}

// merged gives the last version of every session that stands by itself.
func merged(rows []flow.Session) []flow.Session {
	last := map[uint64]flow.Session{}
	for _, r := range rows {
		if o, ok := last[r.ID]; !ok || r.Version >= o.Version {
			last[r.ID] = r
		}
	}
	var out []flow.Session
	for _, r := range last {
		if r.Into == 0 {
			r.Settled = 0 // whether it was written again is not of the session
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b flow.Session) int { return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.ID, b.ID)) })
	return out
}

// sessionsOf runs records through, in batches of at most n.
func sessionsOf(t testing.TB, cfg enrich.SessionsConfig, names *flow.Names, rs []flow.Record, n int) ([]flow.Session, []flow.Contradiction) {
	t.Helper()
	x, err := enrich.NewSessions(cfg, nil, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	var rows []flow.Session
	var contradictions []flow.Contradiction
	for part := range slices.Chunk(rs, n) {
		x.Observe(&flow.Batch{Records: part})
		r, c := x.Collect()
		rows, contradictions = append(rows, r...), append(contradictions, c...)
	}
	r, c := x.Flush()
	return merged(append(rows, r...)), append(contradictions, c...)
}

// TestAPT29: the logs of both hosts tell many sessions twice; they are one each, with any idle
// time from 10 s to 10 min and in any order.
func TestAPT29(t *testing.T) {
	dir := filepath.Join(fixtures(t), "lateral", "apt29-day1")
	names := flow.NewNames(0)
	var rs []flow.Record
	for _, host := range []string{"NASHUA", "SCRANTON"} {
		part := logRecords(t, "zeek", filepath.Join(dir, host+"_conn.log"), names)
		for i := range part {
			part[i].Observer = names.Intern(host)
		}
		rs = append(rs, part...)
	}
	conversations := map[uint64]bool{}
	for i := range rs {
		conversations[rs[i].Conversation()] = true
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, idle := range []time.Duration{10 * time.Second, time.Minute, 2 * time.Minute, 10 * time.Minute} {
		cfg := enrich.DefaultSessionsConfig()
		cfg.Idle = enrich.SessionIdleConfig{TCP: idle, UDP: idle, ICMP: idle, Other: idle}
		cfg.Lateness = 24 * time.Hour
		var want []flow.Session
		for round := range 5 {
			if round > 0 {
				rng.Shuffle(len(rs), func(i, j int) { rs[i], rs[j] = rs[j], rs[i] })
			}
			got, _ := sessionsOf(t, cfg, names, rs, 1+rng.IntN(200))
			twice := 0
			for i := range got {
				if got[i].ObserversTotal > 1 {
					twice++
				}
			}
			if round == 0 {
				want = got
				t.Logf("idle %v: %d lines, %d five-tuples, %d sessions, %d of them told by both hosts", idle, len(rs), len(conversations), len(got), twice)
			} else if !slices.Equal(got, want) {
				t.Errorf("idle %v, round %d: another order gives other sessions", idle, round)
			}
			if len(rs) != 613 || len(conversations) != 537 || len(got) != 547 {
				t.Errorf("idle %v: %d lines of %d five-tuples became %d sessions, want 613, 537, 547", idle, len(rs), len(conversations), len(got))
			}
		}
	}
}

// campaign is a host log with a capture of the same campaign.
type campaign struct{ name, capture, log string }

func campaigns(t testing.TB, dir string) (out []campaign) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(dir, "agent", "windows", "*.jsonl"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no logs: %v", err)
	}
	for _, log := range logs {
		name := strings.TrimSuffix(filepath.Base(log), ".netconn.jsonl")
		captures, _ := filepath.Glob(filepath.Join(dir, "lateral", "export", name+"_*.nf9.pcap"))
		for _, c := range captures {
			out = append(out, campaign{strings.TrimSuffix(filepath.Base(c), ".nf9.pcap"), c, log})
		}
	}
	return out
}

func TestCampaigns(t *testing.T) {
	dir := fixtures(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	var table strings.Builder
	total, joined, byOffset, anonymous, anonymousByOffset := 0, 0, 0, 0, 0
	said := map[string]int{}
	malicious := maliciousEdges(t, dir)
	fmt.Fprintf(&table, "%-80s %5s %6s %6s %7s %5s %5s  %s\n", "campaign", "conv.", "joined", "offset", "process", "user", "both", "not joined because")
	for _, c := range campaigns(t, dir) {
		names := flow.NewNames(0)
		flows, hosts := captureRecords(t, c.capture, names), logRecords(t, "windows", c.log, names)
		all := append(slices.Clone(flows), hosts...)
		byTime := func(a, b flow.Record) int { return cmp.Or(cmp.Compare(a.End, b.End), cmp.Compare(a.ID, b.ID)) }
		slices.SortFunc(all, byTime)
		got, contradictions := sessionsOf(t, enrich.DefaultSessionsConfig(), names, all, 7)
		for _, c := range contradictions {
			said[strings.Join(c.Kind.Texts(), "")]++
		}
		if other, _ := sessionsOf(t, enrich.DefaultSessionsConfig(), names, shuffled(rng, all), 50); !slices.Equal(got, other) && !strings.HasPrefix(c.name, "schtask") {
			t.Errorf("%s: another order gives other sessions", c.name)
		}
		told := map[flow.Conversation][]flow.Time{}
		for i := range hosts {
			conv, _, _ := flow.ConversationOf(&hosts[i])
			told[conv] = append(told[conv], hosts[i].Start)
		}
		conv, yes, off, process, user, both := map[uint64]bool{}, map[uint64]bool{}, map[uint64]bool{}, 0, 0, 0
		why := map[string]int{}
		for i := range flows {
			k, _, _ := flow.ConversationOf(&flows[i])
			id := k.ID()
			if conv[id] {
				continue
			}
			conv[id] = true
			for j := range got {
				s := &got[j]
				if s.Conversation != id {
					continue
				}
				exported, host, skew := false, false, false
				for _, o := range s.Observers {
					exported = exported || o.Source == flow.SourceNetFlowV9
					if o.Source == flow.SourceWFP || o.Source == flow.SourceSysmon {
						host, skew = true, skew || o.Skew != 0
					}
				}
				if !exported || !host {
					continue
				}
				yes[id] = true
				if skew {
					off[id] = true
				}
				if s.Client.Process != 0 || s.Server.Process != 0 {
					process++
				}
				if s.Client.Identity != 0 || s.Server.Identity != 0 {
					user++
				} else if malicious[c.name][edge(s.Client.Addr, s.Server.Addr, s.Server.Port)] {
					if anonymous++; skew {
						anonymousByOffset++
					}
				}
				if s.Client.Own && s.Server.Own {
					both++
				}
			}
			if !yes[id] {
				switch near := nearest(told[k], &flows[i]); {
				case len(told[k]) == 0:
					why["no host tells of it"]++
				case near > 1000:
					why["another run, or a clock that too few sessions tell"]++
				default:
					why[fmt.Sprintf("%.0f s away, fewer than 5 sessions agree", near)]++
				}
			}
		}
		total, joined, byOffset = total+len(conv), joined+len(yes), byOffset+len(off)
		var reasons []string
		for w, n := range why {
			reasons = append(reasons, fmt.Sprintf("%d %s", n, w))
		}
		slices.Sort(reasons)
		fmt.Fprintf(&table, "%-80s %5d %6d %6d %7d %5d %5d  %s\n", c.name, len(conv), len(yes), len(off), process, user, both, strings.Join(reasons, "; "))
		if strings.HasPrefix(c.name, "covenant_wmi_remote_event") && len(yes) > 0 {
			t.Errorf("%s is of another run, but %d conversations joined", c.name, len(yes))
		}
		if strings.HasPrefix(c.name, "schtask") && len(off) == 0 {
			t.Errorf("%s: the offset was not found", c.name)
		}
	}
	t.Logf("\n%s%d of %d conversations joined (%.0f %%), %d of them by a clock offset that was found", table.String(), joined, total, 100*float64(joined)/float64(total), byOffset)
	t.Logf("%d joined sessions labelled malicious carry no user, %d of them by an offset; contradictions: %v", anonymous, anonymousByOffset, said)
	if anonymous-anonymousByOffset != 6 {
		t.Errorf("%d malicious sessions that joined without an offset carry no user, want 6", anonymous-anonymousByOffset)
	}
	if joined-byOffset != 107 || total != 162 {
		t.Errorf("%d of %d joined without an offset, want 107 of 162", joined-byOffset, total)
	}
}

// nearest is how many seconds lie between a flow and the nearest of some times.
func nearest(ts []flow.Time, r *flow.Record) float64 {
	best := flow.Time(1 << 50)
	for _, t := range ts {
		best = min(best, max(r.Start-t, t-r.End, 0))
	}
	return float64(best) / 1000
}

func shuffled(rng *rand.Rand, rs []flow.Record) []flow.Record {
	type late struct {
		r  flow.Record
		at flow.Time
	}
	var ls []late
	for _, r := range rs {
		ls = append(ls, late{r, r.End + flow.Time(rng.IntN(60_000))})
	}
	slices.SortFunc(ls, func(a, b late) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.r.ID, b.r.ID)) })
	out := make([]flow.Record, len(ls))
	for i := range ls {
		out[i] = ls[i].r
	}
	return out
}

func edge(src, dst flow.Addr, port uint16) string { return fmt.Sprintf("%v %v %d", src, dst, port) }

// maliciousEdges gives, for each capture, the edges labelled malicious.
func maliciousEdges(t testing.TB, dir string) map[string]map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "lateral", "labels.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]bool{}
	for line := range strings.Lines(string(text)) {
		w := strings.Split(line, "\t")
		if len(w) < 9 || w[8] != "malicious_lateral" {
			continue
		}
		base := strings.TrimSuffix(filepath.Base(w[2]), filepath.Ext(w[2]))
		if out[base] == nil {
			out[base] = map[string]bool{}
		}
		out[base][w[3]+" "+w[4]+" "+w[5]] = true
	}
	return out
}
