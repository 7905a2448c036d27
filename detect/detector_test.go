package detect

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// fakePolicy knows three exceptions, which end at the times their names say.
type fakePolicy struct{ names *flow.Names }

const base = flow.Time(1_760_000_000_000) / dayMillis * dayMillis // a midnight

func (p fakePolicy) ExceptionFacts(_ flow.Time, e flow.Name) (Facts, bool) {
	var minutes int
	if n, _ := fmt.Sscanf(p.names.Text(e), "EX-%d", &minutes); n != 1 {
		return Facts{}, false
	}
	return Facts{Class: "vendor", Ticket: "CHG-1", Owner: "team", Requester: "ana", Approver: "raj", Ends: base.Add(time.Duration(minutes) * time.Minute)}, true
}

func (p fakePolicy) SegmentFacts(_ flow.Time, s flow.Name) (string, string) {
	if p.names.Text(s) == "vault" {
		return crownJewel, "vault-team"
	}
	return "normal", ""
}

func (p fakePolicy) ScopeGrown(flow.Time, flow.Name, flow.Addr, flow.Addr) (flow.Dimensions, flow.Time) {
	return 0, 0
}

func (p fakePolicy) Stamp(flow.Time) (version, commit string, since flow.Time) { return "", "", 0 }

func (p fakePolicy) AgentRequired(flow.Time, flow.Name) bool { return false }

func (p fakePolicy) Segments(flow.Time) []flow.Name { return nil }

func (p fakePolicy) Suppresses(flow.Time, string) bool { return false }

func (p fakePolicy) Suppressed(flow.Time, string, policy.FindingKey, flow.Severity) (string, flow.Time) {
	return "", 0
}

// at is a time in seconds after the midnight of the tests.
func at(seconds float64) flow.Time { return base + flow.Time(seconds*1000) }

// judged makes a judged TCP record from a client to a server.
func judged(n *flow.Names, id uint64, client string, cport uint16, server string, sport uint16, start, end float64, v flow.Verdict) flow.Record {
	v.Confidence = 90
	return flow.Record{ID: id, Start: at(start), End: at(end), Src: flow.MustParseAddr(client), Dst: flow.MustParseAddr(server),
		SrcPort: cport, DstPort: sport, Proto: flow.ProtoTCP, Oriented: flow.Forward, Has: flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto,
		SrcSegment: n.Intern("office"), DstSegment: n.Intern("vault"), Verdict: v}
}

func escaped(n *flow.Names) flow.Verdict {
	return flow.Verdict{Reason: flow.ReasonDenied, Expected: flow.ExpectDeny, Outcome: flow.OutcomeEscaped, Rule: n.Intern("no-way"), PolicyVersion: n.Intern("abc")}
}

func waived(n *flow.Names, minutes int) flow.Verdict {
	return flow.Verdict{Reason: flow.ReasonWaived, Expected: flow.ExpectAllow, Outcome: flow.OutcomePermitted, Rule: n.Intern("no-way"),
		Exception: n.Intern(fmt.Sprintf("EX-%d", minutes)), ValidUntil: base.Add(time.Duration(minutes) * time.Minute)}
}

func expired(n *flow.Names, minutes int) flow.Verdict {
	return flow.Verdict{Reason: flow.ReasonExpired, Expected: flow.ExpectDeny, Outcome: flow.OutcomeEscaped, Rule: n.Intern("no-way"),
		Exception: n.Intern(fmt.Sprintf("EX-%d", minutes))}
}

func newTestDetector(t testing.TB, cfg Config, names *flow.Names) *Detector {
	t.Helper()
	d, err := New(cfg, fakePolicy{names}, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func batchOf(rs ...flow.Record) *flow.Batch {
	b := flow.NewBatch(len(rs), nil)
	b.Records = append(b.Records, rs...)
	return b
}

// result is what came of a run: the last told state of each finding and the sum
// of its contributions.
type result struct {
	Last   map[string]*flow.Finding
	Counts map[string]int64
	events int
}

func (r *result) take(t testing.TB, contributions []flow.Contribution, events []*flow.Finding) {
	t.Helper()
	if r.Last == nil {
		r.Last, r.Counts = map[string]*flow.Finding{}, map[string]int64{}
	}
	for _, c := range contributions {
		r.Counts[c.Finding.ID] += c.Sessions
		if r.Counts[c.Finding.ID] != c.Finding.Count {
			t.Errorf("finding %s: contributions add up to %d, its state says %d", c.Finding.ID, r.Counts[c.Finding.ID], c.Finding.Count)
		}
	}
	for _, e := range events {
		if old := r.Last[e.ID]; old != nil && old.Revision >= e.Revision {
			t.Errorf("finding %s is told at revision %d after %d", e.ID, e.Revision, old.Revision)
		}
		r.Last[e.ID] = e
		r.events++
	}
}

func observe(t testing.TB, rs ...flow.Record) *result {
	t.Helper()
	d := newTestDetector(t, DefaultConfig(), theNames)
	r := &result{}
	for i := range rs {
		d.Observe(batchOf(rs[i]))
		c, e := d.Collect()
		r.take(t, c, e)
	}
	c, e := d.Flush()
	r.take(t, c, e)
	return r
}

// theNames is the table of the tests that need no other.
var theNames = flow.NewNames(0)

// brief is type, count and exception or rule of each finding, sorted.
func (r *result) brief() (out []string) {
	for _, f := range r.Last {
		out = append(out, fmt.Sprintf("%s %s ×%d", f.Type, cmpOr(f.Exception, f.Rule), f.Count))
	}
	slices.Sort(out)
	return out
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func TestStraddling(t *testing.T) {
	n := theNames
	rec := func(id uint64, start, end float64, v flow.Verdict) flow.Record {
		return judged(n, id, "10.1.0.1", 50000, "10.2.0.1", 443, start*60, end*60, v)
	}
	reply := func(r flow.Record) flow.Record {
		r.Src, r.Dst, r.SrcPort, r.DstPort, r.Oriented = r.Dst, r.Src, r.DstPort, r.SrcPort, flow.Reverse
		r.SrcSegment, r.DstSegment = r.DstSegment, r.SrcSegment
		return r
	}
	const end = 600 // minutes
	for _, c := range []struct {
		name string
		rs   []flow.Record
		want []string
	}{
		{"ends in time", []flow.Record{rec(1, 590, 600, waived(n, end))}, nil},
		{"ends within the grace", []flow.Record{rec(1, 590, 601, waived(n, end))}, nil},
		{"ends past the grace", []flow.Record{rec(1, 590, 601.1, waived(n, end))}, []string{"outlived-exception EX-600 ×1"}},
		{"expired alone", []flow.Record{rec(1, 605, 606, expired(n, end))}, []string{"expired-exception EX-600 ×1"}},
		{"later records join", []flow.Record{rec(1, 590, 602, waived(n, end)), rec(2, 602, 610, expired(n, end)), rec(3, 635, 640, expired(n, end))},
			[]string{"outlived-exception EX-600 ×1"}},
		{"no single record straddles", []flow.Record{rec(1, 590, 599, waived(n, end)), rec(2, 601, 610, expired(n, end))}, []string{"outlived-exception EX-600 ×1"}},
		{"wound down within the grace", []flow.Record{rec(1, 590, 599, waived(n, end)), rec(2, 600, 600.9, expired(n, end))}, nil},
		{"the reply joins too", []flow.Record{rec(1, 590, 599, waived(n, end)), reply(rec(2, 601, 610, expired(n, end)))}, []string{"outlived-exception EX-600 ×1"}},
		{"after a gap", []flow.Record{rec(1, 590, 599, waived(n, end)), rec(2, 629.1, 640, expired(n, end))}, []string{"expired-exception EX-600 ×1"}},
		{"at the gap", []flow.Record{rec(1, 590, 599, waived(n, end)), rec(2, 629, 640, expired(n, end))}, []string{"outlived-exception EX-600 ×1"}},
		{"a chain", []flow.Record{rec(1, 590, 599, waived(n, end)), rec(2, 620, 621, expired(n, end)), rec(3, 650, 651, expired(n, end)), rec(4, 682, 683, expired(n, end))},
			[]string{"expired-exception EX-600 ×1", "outlived-exception EX-600 ×1"}},
		{"another five-tuple", []flow.Record{rec(1, 590, 599, waived(n, end)), judged(n, 2, "10.1.0.1", 50001, "10.2.0.1", 443, 601*60, 602*60, expired(n, end))},
			[]string{"expired-exception EX-600 ×1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.want, observe(t, c.rs...).brief()); d != "" {
				t.Error(d)
			}
			d := newTestDetector(t, Config{Lateness: 4 * time.Hour, Grace: time.Minute, SessionGap: 30 * time.Minute, UpdateEvery: time.Hour,
				Idle: DefaultConfig().Idle, TellEach: 10, MaxFindings: 10, MaxSessions: 10, MaxStraddles: 10, Behaviour: DefaultBehaviourConfig()}, theNames)
			rs := slices.Clone(c.rs)
			slices.Reverse(rs)
			d.Observe(batchOf(rs...))
			r := &result{}
			k, e := d.Flush()
			r.take(t, k, e)
			if d := cmp.Diff(c.want, r.brief()); d != "" {
				t.Errorf("in the reverse order: %s", d)
			}
		})
	}
}

func TestSessions(t *testing.T) {
	n := theNames
	rec := func(id uint64, cport uint16, start, end float64) flow.Record {
		return judged(n, id, "10.1.0.1", cport, "10.2.0.1", 443, start, end, escaped(n))
	}
	r := observe(t, rec(1, 50000, 0, 60), rec(2, 50000, 60, 120), rec(3, 50001, 0, 1), rec(4, 50000, 120+3600, 4000), rec(5, 50000, 4000+3601, 9000))
	if len(r.Last) != 1 {
		t.Fatalf("%d findings, want 1", len(r.Last))
	}
	for _, f := range r.Last {
		if f.Count != 3 || f.FirstSeen != at(0) || f.LastSeen != at(9000) || f.EdgesTotal != 1 || len(f.Samples) != 5 {
			t.Errorf("count %d from %v to %v, %d edges, %d samples", f.Count, f.FirstSeen, f.LastSeen, f.EdgesTotal, len(f.Samples))
		}
	}
	// A late record that joins two sessions takes one away.
	cfg := DefaultConfig()
	cfg.Lateness = 2 * time.Hour
	d := newTestDetector(t, cfg, n)
	var got []int64
	for _, x := range []flow.Record{rec(1, 50000, 0, 60), rec(2, 50000, 7000, 7060), rec(3, 50000, 3600, 3660)} {
		d.Observe(batchOf(x))
		c, _ := d.Collect()
		got = append(got, c[0].Sessions)
	}
	if !slices.Equal(got, []int64{1, 1, -1}) {
		t.Errorf("contributions are %v, want 1, 1, -1", got)
	}
}

// TestMidnight: what crosses midnight is two findings, the later linked to the
// earlier, in whichever order they come.
func TestMidnight(t *testing.T) {
	n := theNames
	a := judged(n, 1, "10.1.0.1", 50000, "10.2.0.1", 443, -60, 10, escaped(n))
	b := judged(n, 2, "10.1.0.1", 50000, "10.2.0.1", 443, 10, 70, escaped(n))
	other := judged(n, 3, "10.1.0.1", 50001, "10.2.0.1", 443, 3*3600, 3*3600+1, escaped(n))
	for _, rs := range [][]flow.Record{{a, b, other}, {b, a, other}} {
		r := observe(t, rs...)
		if len(r.Last) != 2 {
			t.Fatalf("%d findings, want 2", len(r.Last))
		}
		for _, f := range r.Last {
			if (f.Continues != "") != (f.FirstSeen == b.Start) {
				t.Errorf("the finding first seen %v continues %q", f.FirstSeen, f.Continues)
			}
			if f.Continues != "" && (r.Last[f.Continues] == nil || r.Last[f.Continues].FirstSeen != a.Start) {
				t.Errorf("it continues %s, which is not the finding of the day before", f.Continues)
			}
		}
	}
	r := observe(t, a, other)
	if len(r.Last) != 2 {
		t.Fatalf("%d findings, want 2", len(r.Last))
	}
	for _, f := range r.Last {
		if f.Continues != "" {
			t.Error("two sessions hours apart are linked")
		}
	}
}

func TestTelling(t *testing.T) {
	n := theNames
	d := newTestDetector(t, DefaultConfig(), n)
	told := func(r *flow.Record) (revisions []uint64) {
		if r != nil {
			d.Observe(batchOf(*r))
		}
		_, events := d.Collect()
		for _, e := range events {
			revisions = append(revisions, e.Revision)
		}
		return revisions
	}
	rec := func(id uint64, start float64) *flow.Record {
		r := judged(n, id, "10.1.0.1", uint16(50000+id), "10.2.0.1", 443, start, start+1, escaped(n))
		return &r
	}
	for _, s := range []struct {
		r    *flow.Record
		tick float64
		want []uint64
	}{
		{r: rec(1, 0), want: []uint64{1}},    // at creation
		{r: rec(2, 60), want: nil},           // not again within the hour
		{r: rec(3, 120), want: nil},          //
		{tick: 3600, want: nil},              //
		{tick: 3602, want: []uint64{3}},      // what came since
		{tick: 9000, want: nil},              // nothing came
		{r: rec(4, 9010), want: []uint64{4}}, // more than an hour ago
		{r: rec(5, 9020), want: nil},         //
		{tick: 86400 + 3600 + 121, want: []uint64{5}},
	} {
		if s.tick != 0 {
			d.Tick(at(s.tick))
		}
		if got := told(s.r); !slices.Equal(got, s.want) {
			t.Errorf("after %+v revisions %v were told, want %v", s.r, got, s.want)
		}
	}
	for _, f := range d.findings {
		if !f.Closed {
			t.Error("the finding is not closed after its day")
		}
	}
	d.Tick(at(3 * 86400))
	d.Collect()
	if len(d.findings) != 0 || d.sessions != 0 {
		t.Errorf("%d findings and %d sessions are held days later", len(d.findings), d.sessions)
	}
}

func TestOpenPair(t *testing.T) {
	n := theNames
	open := func(id uint64, src string, sp uint16, dst string, dp uint16) flow.Record {
		r := judged(n, id, src, sp, dst, dp, 0, 1, escaped(n))
		r.Oriented = flow.Open
		return r
	}
	r := observe(t, open(1, "10.2.0.1", 65077, "10.1.0.1", 51712), open(2, "10.1.0.1", 51712, "10.2.0.1", 65077), open(3, "10.1.0.1", 51713, "10.2.0.1", 65077))
	if len(r.Last) != 1 {
		t.Fatalf("%d findings, want 1: %v", len(r.Last), r.brief())
	}
	for _, f := range r.Last {
		if f.Client != "10.1.0.1" || f.Server != "10.2.0.1" || f.Orientation != "open" || f.Count != 2 || f.Service != "tcp" || f.EdgesTotal != 3 || len(f.Edges) != 3 {
			t.Errorf("got %+v", f)
		}
		if strings.Contains(f.Sentence, "reached") || !strings.Contains(f.Sentence, "which of them began is not known") {
			t.Errorf("the sentence names a culprit: %s", f.Sentence)
		}
	}
	// Many ports: the message lists a hundred, the total is exact.
	var rs []flow.Record
	for i := range 300 {
		rs = append(rs, open(uint64(10+i), "10.1.0.1", uint16(50000+i), "10.2.0.1", uint16(60000+i%7)))
	}
	for _, f := range observe(t, rs...).Last {
		if f.EdgesTotal != 307 || len(f.Edges) != flow.MaxEdges {
			t.Errorf("%d of %d edges, want 100 of 307", len(f.Edges), f.EdgesTotal)
		}
	}
}

// stream makes random judged records in order of their start: a few five-tuples,
// long sessions in pieces, exceptions that end in the middle, a midnight.
func stream(seed uint64, n *flow.Names) []flow.Record {
	rng := rand.New(rand.NewPCG(seed, 7))
	var rs []flow.Record
	for i := range 600 {
		start := -3600 + rng.Float64()*7200
		end := start + rng.Float64()*50
		client, server := fmt.Sprintf("10.1.0.%d", 1+rng.IntN(3)), fmt.Sprintf("10.2.0.%d", 1+rng.IntN(2))
		var v flow.Verdict
		ends := []int{-20, 0, 15}[rng.IntN(3)]
		switch k := rng.IntN(10); {
		case k < 5 && at(start) < base.Add(time.Duration(ends)*time.Minute):
			v = waived(n, ends)
		case k < 8:
			if at(start) < base.Add(time.Duration(ends)*time.Minute) {
				v = flow.Verdict{Reason: flow.ReasonPermitted, Expected: flow.ExpectAllow, Outcome: flow.OutcomePermitted}
			} else {
				v = expired(n, ends)
				for _, o := range []int{-20, 0, 15} { // whatever else has ended fits as well
					if o != ends && at(start) >= base.Add(time.Duration(o)*time.Minute) {
						v.Others[v.OthersTotal] = n.Intern(fmt.Sprintf("EX-%d", o))
						v.OthersTotal++
					}
				}
			}
		default:
			v = escaped(n)
		}
		if v.Expected == flow.ExpectDeny && rng.IntN(4) == 0 {
			v.Outcome = flow.OutcomeAttempted
		}
		r := judged(n, uint64(i+1), client, uint16(50000+rng.IntN(3)), server, 443, start, end, v)
		r.Verdict.Confidence = uint8(70 + rng.IntN(30))
		switch rng.IntN(6) {
		case 0:
			r.Oriented = flow.Open
		case 1:
			r.Src, r.Dst, r.SrcPort, r.DstPort, r.Oriented = r.Dst, r.Src, r.DstPort, r.SrcPort, flow.Reverse
		}
		if rng.IntN(5) == 0 {
			r.Proto = flow.ProtoUDP
		}
		rs = append(rs, r)
	}
	return rs
}

// arrival is an order in which records come no later than the lateness after
// they began: by their end moved back by up to a minute.
func arrival(rng *rand.Rand, rs []flow.Record) []int {
	key := make([]flow.Time, len(rs))
	order := make([]int, len(rs))
	for i := range rs {
		key[i], order[i] = rs[i].End+flow.Time(rng.Int64N(60_000)), i
	}
	slices.SortFunc(order, func(a, b int) int { return int(key[a] - key[b]) })
	return order
}

// TestArrivalOrder: whatever the order of arrival within the lateness, the cuts
// into batches and segments and the restarts, the same findings come of the same
// records, with the same ids, counts, samples and words.
func TestArrivalOrder(t *testing.T) {
	first := uint64(time.Now().UnixNano())
	t.Logf("seed %d", first)
	cfg := DefaultConfig()
	cfg.Idle = IdleConfig{TCP: 3 * time.Minute, UDP: 20 * time.Second, ICMP: time.Second, Other: time.Second}
	cfg.SessionGap = 4 * time.Minute
	cfg.UpdateEvery = 10 * time.Minute
	for round := range uint64(12) {
		seed := first + round
		rng := rand.New(rand.NewPCG(seed, 8))
		var want *result
		for variant := range 5 {
			names := flow.NewNames(0)
			rs := stream(seed, names)
			order := arrival(rng, rs)
			d := newTestDetector(t, cfg, names)
			got := &result{}
			for rest := order; len(rest) > 0; {
				k := len(rest)
				if variant > 0 {
					k = min(k, 1+rng.IntN(40))
				}
				b := flow.NewBatch(k, nil)
				for _, i := range rest[:k] {
					b.Records = append(b.Records, rs[i])
				}
				rest = rest[k:]
				d.Observe(b)
				if rng.IntN(3) > 0 {
					c, e := d.Collect()
					got.take(t, c, e)
				}
				if variant > 1 && rng.IntN(4) == 0 { // another process, another table of names
					snap, err := d.Snapshot()
					if err != nil {
						t.Fatal(err)
					}
					names = flow.NewNames(0)
					names.Intern(fmt.Sprint("another table ", len(rest)))
					rs = stream(seed, names)
					d = newTestDetector(t, cfg, names)
					if err := d.Restore(snap); err != nil {
						t.Fatal(err)
					}
					again, err := d.Snapshot()
					if err != nil || string(again) != string(snap) {
						t.Fatalf("a snapshot restored gives another: %v", err)
					}
				}
			}
			c, e := d.Flush()
			got.take(t, c, e)
			if want == nil {
				want = got
				if len(want.Last) < 10 {
					t.Fatalf("only %d findings come of the stream", len(want.Last))
				}
			} else if a, b := text(t, want), text(t, got); a != b { // comparing byte by byte would take a minute
				t.Fatalf("seed %d, variant %d: %s", seed, variant, cmp.Diff(strings.Split(a, "\n"), strings.Split(b, "\n")))
			}
		}
	}
}

func text(t testing.TB, r *result) string {
	t.Helper()
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestCaps: a flood grows nothing beyond its cap, and what is forgotten was told.
func TestCaps(t *testing.T) {
	n := flow.NewNames(0)
	cfg := DefaultConfig()
	cfg.MaxFindings, cfg.MaxSessions, cfg.MaxStraddles = 100, 50, 20
	d := newTestDetector(t, cfg, n)
	r := &result{}
	id := uint64(0)
	for s := range 100 {
		b := flow.NewBatch(0, nil)
		for range 50 {
			id++
			server := fmt.Sprintf("10.2.%d.%d", id>>8&255, id&255)
			b.Records = append(b.Records, judged(n, id, "10.1.0.1", uint16(id), server, 443, float64(s), float64(s)+1, escaped(n)),
				judged(n, id+1e6, "10.1.0.2", uint16(id), server, 443, float64(s), float64(s)+100, waived(n, 1)),
				judged(n, id+2e6, "10.1.0.3", uint16(id), server, 443, 61+float64(s), 62+float64(s), expired(n, 1)))
		}
		d.Observe(b)
		c, e := d.Collect()
		r.take(t, c, e)
		if len(d.findings) > cfg.MaxFindings+150 || d.sessions > cfg.MaxSessions || len(d.straddles) > cfg.MaxStraddles {
			t.Fatalf("%d findings, %d sessions, %d five-tuples are held", len(d.findings), d.sessions, len(d.straddles))
		}
	}
	c, e := d.Flush()
	r.take(t, c, e)
	escapes := 0
	for _, f := range r.Last {
		if f.Type == flow.FindingDenied {
			escapes++
		}
	}
	if escapes != 5000 {
		t.Errorf("%d of 5000 violations were told", escapes)
	}
}

func TestHostileNames(t *testing.T) {
	n := flow.NewNames(0)
	r := judged(n, 1, "10.1.0.1", 50000, "10.2.0.1", 443, 0, 1, escaped(n))
	evil := "%s%d\n<script>\x00\u202e\u2066 " + strings.Repeat("ä\xff", 200)
	r.SrcIdentity, r.SrcWorkload, r.SrcSegment, r.Verdict.Rule = n.Intern(evil), n.Intern(evil), n.Intern(evil), n.Intern(evil)
	r.User = n.Intern(evil)
	d := newTestDetector(t, DefaultConfig(), n)
	d.Observe(batchOf(r))
	_, events := d.Flush()
	f := events[0]
	for _, s := range []string{f.Sentence, f.Title, f.Next} {
		if !utf8.ValidString(s) || strings.ContainsAny(s, "\n\x00\u202e\u2066") || len(s) > 1200 || strings.Contains(s, "MISSING") {
			t.Errorf("%d bytes: %q", len(s), s)
		}
	}
}

// TestMessageSize: a finding at its largest fits into a message.
func TestMessageSize(t *testing.T) {
	n := flow.NewNames(0)
	evil := strings.Repeat("\x01", 256)
	d := newTestDetector(t, DefaultConfig(), n)
	for i := range 200 {
		r := judged(n, uint64(i), "2001:db8:1111:2222:3333:4444:5555:6666", uint16(50000+i), "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff", uint16(60000+i), 0, 1, escaped(n))
		r.Oriented = flow.Open
		r.SrcSegment, r.DstSegment, r.SrcWorkload, r.SrcIdentity = n.Intern(evil), n.Intern("b"+evil), n.Intern("c"+evil), n.Intern("d"+evil)
		r.Verdict.Rule, r.Verdict.PolicyVersion, r.User = n.Intern("e"+evil), n.Intern("f"+evil), n.Intern("g"+evil)
		d.Observe(batchOf(r))
	}
	_, events := d.Flush()
	b, err := json.Marshal(events[0])
	if err != nil || len(b) > maxMessage {
		t.Errorf("%d bytes, want at most %d (%v)", len(b), maxMessage, err)
	}
	if events[0].EdgesTotal != 400 || len(events[0].Edges) == 0 {
		t.Errorf("%d of %d edges, want some of 400", len(events[0].Edges), events[0].EdgesTotal)
	}
}

func TestRestoreRefuses(t *testing.T) {
	d := newTestDetector(t, DefaultConfig(), flow.NewNames(0))
	for _, s := range []string{"", "{}", `{"version":2}`, `{"version":1,"findings":[null]}`, `{"version":1,"findings":[{"id":"x"}]}`, `{"version":1,"straddles":[null]}`} {
		if err := d.Restore([]byte(s)); err == nil {
			t.Errorf("restored from %q", s)
		}
	}
}

func TestConfig(t *testing.T) {
	c := DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func(*Config){func(c *Config) { c.Lateness = -1 }, func(c *Config) { c.UpdateEvery = 0 },
		func(c *Config) { c.Idle.UDP = 0 }, func(c *Config) { c.MaxFindings = 0 }} {
		c := DefaultConfig()
		f(&c)
		if c.Validate() == nil {
			t.Errorf("accepted %+v", c)
		}
	}
}

// TestQuietFlowsDoNotAllocate: what raises nothing costs no memory.
func TestQuietFlowsDoNotAllocate(t *testing.T) {
	d, b := quiet(t)
	if n := testing.AllocsPerRun(10, func() { d.Observe(b) }); n != 0 {
		t.Errorf("%v allocations for %d quiet flows, want 0", n, len(b.Records))
	}
}

func quiet(t testing.TB) (*Detector, *flow.Batch) {
	n := flow.NewNames(0)
	b := flow.NewBatch(4096, nil)
	vs := []flow.Verdict{{Reason: flow.ReasonPermitted, Expected: flow.ExpectAllow, Outcome: flow.OutcomePermitted}, {Reason: flow.ReasonUncovered},
		{Reason: flow.ReasonDenied, Expected: flow.ExpectDeny, Outcome: flow.OutcomeAttempted}, waived(n, 1e6)}
	for i := range 4096 {
		b.Records = append(b.Records, judged(n, uint64(i), "10.1.0.1", uint16(i), "10.2.0.1", 443, 0, 1, vs[i%4]))
	}
	return newTestDetector(t, DefaultConfig(), n), b
}

func BenchmarkObserve(b *testing.B) {
	b.Run("quiet", func(b *testing.B) {
		d, batch := quiet(b)
		b.ReportAllocs()
		for b.Loop() {
			d.Observe(batch)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/4096, "ns/flow")
	})
	b.Run("violations", func(b *testing.B) {
		n := flow.NewNames(0)
		d := newTestDetector(b, DefaultConfig(), n)
		batch := flow.NewBatch(4096, nil)
		for i := range 4096 {
			batch.Records = append(batch.Records, judged(n, uint64(i), "10.1.0.1", uint16(i), fmt.Sprintf("10.2.0.%d", i%64), 443, 0, 1, escaped(n)))
		}
		b.ReportAllocs()
		for b.Loop() {
			d.Observe(batch)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/4096, "ns/flow")
	})
}

// TestTranslatedEnds: the address behind a translation stands at the end that was translated,
// whichever way the record was told.
func TestTranslatedEnds(t *testing.T) {
	n := flow.NewNames(0)
	r := judged(n, 1, "10.2.0.1", 443, "10.1.0.1", 50000, 0, 1, escaped(n)) // the reply
	r.Oriented = flow.Reverse
	r.NATSrc, r.NATDst, r.Has = flow.MustParseAddr("192.0.2.80"), flow.MustParseAddr("10.1.0.1"), r.Has|flow.HasNATSrc|flow.HasNATDst
	d := newTestDetector(t, DefaultConfig(), n)
	d.Observe(batchOf(r))
	_, events := d.Flush()
	if len(events) != 1 || len(events[0].Ends) != 2 {
		t.Fatalf("%d events", len(events))
	}
	a, z := events[0].Ends[0], events[0].Ends[1]
	if a.Address != "10.1.0.1" || a.Translated != "" || z.Address != "10.2.0.1" || z.Translated != "192.0.2.80" {
		t.Errorf("ends %+v and %+v", a, z)
	}
}
