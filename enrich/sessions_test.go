package enrich

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/postern/postern/flow"
)

func newTestSessions(t testing.TB, cfg SessionsConfig, names *flow.Names) *Sessions {
	t.Helper()
	x, err := NewSessions(cfg, nil, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// lastRows gives the last version of every session that stands by itself, in order.
func lastRows(rows []flow.Session) []flow.Session {
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

// through runs records through in batches of n and gives every row.
func through(x *Sessions, rs []flow.Record, n int) (rows []flow.Session, contradictions []flow.Contradiction) {
	for part := range slices.Chunk(rs, n) {
		x.Observe(batchOf(part...))
		r, c := x.Collect()
		rows, contradictions = append(rows, r...), append(contradictions, c...)
	}
	r, c := x.Flush()
	return append(rows, r...), append(contradictions, c...)
}

// told is an exported record, times in seconds.
func told(id uint64, src string, sport uint16, dst string, dport uint16, start, end float64) flow.Record {
	r := half(id, src, sport, dst, dport, start, end, flow.SYN|flow.ACK|flow.PSH)
	r.Has |= flow.HasBytes | flow.HasPackets
	r.BytesRaw, r.PacketsRaw, r.SamplingRate, r.Source = 1000*id, 10*id, 1, flow.SourceNetFlowV9
	Orient(&r, nil)
	return r
}

// hostTold is a record of a host's log.
func hostTold(names *flow.Names, id uint64, host string, at flow.Reporter, src string, sport uint16, dst string, dport uint16, start float64) flow.Record {
	r := rec(flow.ProtoTCP, src, sport, dst, dport)
	r.ID, r.Start = id, flow.Time(start*1000)+1e12
	r.End = r.Start
	r.Has |= flow.HasInitiator
	r.Source, r.Reporter, r.Observer, r.Enforced = flow.SourceWFP, at, names.Intern(host), flow.ObservedAllow
	Orient(&r, nil)
	return r
}

// chatter makes random traffic of few conversations: exported halves and biflows by several
// exporters, agents at both ends, verdicts and identities.
func chatter(rng *rand.Rand, names *flow.Names, n int) []flow.Record {
	rs := make([]flow.Record, n)
	for i := range rs {
		pair := rng.IntN(6)
		a, b := fmt.Sprintf("10.0.0.%d", pair), fmt.Sprintf("10.0.1.%d", pair%3)
		ap, bp := uint16(40000+rng.IntN(2)), uint16(445)
		if rng.IntN(2) == 0 {
			a, b, ap, bp = b, a, bp, ap
		}
		start := rng.Float64() * 900
		r := half(uint64(i+1), a, ap, b, bp, start, start+rng.Float64()*20, uint16(rng.IntN(32)))
		if rng.IntN(5) == 0 {
			r.Proto = flow.ProtoUDP
		}
		r.Exporter.Lo += uint64(rng.IntN(3))
		r.Source = flow.SourceNetFlowV9
		r.Has |= flow.HasBytes | flow.HasPackets
		r.BytesRaw, r.PacketsRaw = uint64(rng.IntN(1e6)), uint64(rng.IntN(1000))
		r.SamplingRate = uint32(rng.IntN(2) * 50)
		if rng.IntN(4) == 0 {
			r.Has |= flow.HasRevBytes | flow.HasRevPackets
			r.RevBytesRaw, r.RevPacketsRaw = uint64(rng.IntN(1e6)), uint64(rng.IntN(1000))
		}
		r.Quality = flow.Quality(1 << rng.IntN(12))
		r.Enforced = flow.Observed(rng.IntN(4))
		if rng.IntN(3) == 0 {
			r.Source, r.Exporter, r.End = flow.SourceHubble, flow.Addr{}, r.Start
			r.Reporter = flow.Reporter(1 + rng.IntN(2))
			end := a
			if r.Reporter == flow.ReporterDestination {
				end = b
			}
			r.Observer = names.Intern("agent of " + end)
			if rng.IntN(2) == 0 {
				r.SrcIdentity = names.Intern(fmt.Sprintf("user-%d", rng.IntN(3)))
				r.DstProcess = names.Intern(fmt.Sprintf("process-%d", rng.IntN(3)))
			}
		}
		Orient(&r, nil)
		r.Verdict = flow.Verdict{Reason: flow.ReasonDenied, Expected: flow.ExpectDeny, Rule: names.Intern(fmt.Sprintf("rule-%d", rng.IntN(3))),
			Observed: r.Enforced, Missing: flow.Dimensions(rng.IntN(16)), Confidence: uint8(rng.IntN(100))}
		rs[i] = r
	}
	return rs
}

// naive says what belongs together by the definition alone: it joins any two groups that
// belong together until none do.
func naive(rs []flow.Record, cfg *SessionsConfig) [][]int {
	type group struct {
		members []int
	}
	conv := func(i int) flow.Conversation {
		c, _, _ := flow.ConversationOf(&rs[i])
		return c
	}
	span := func(g group, keep func(r *flow.Record) bool) (stretch, bool) {
		s := nothing
		for _, i := range g.members {
			if keep(&rs[i]) {
				s.grow(stretch{rs[i].Start, max(rs[i].Start, rs[i].End)})
			}
		}
		return s, !s.empty()
	}
	exported := func(r *flow.Record) bool { return r.Reporter == flow.ReporterElsewhere }
	within := func(a, b group, ka, kb func(r *flow.Record) bool, d flow.Time) bool {
		s, ok := span(a, ka)
		u, ok2 := span(b, kb)
		return ok && ok2 && max(s.start-u.end, u.start-s.end) <= d
	}
	all, hosts := func(*flow.Record) bool { return true }, func(r *flow.Record) bool { return !exported(r) }
	together := func(a, b group) bool {
		c := conv(a.members[0])
		if c != conv(b.members[0]) {
			return false
		}
		idle, join := cfg.Idle.of(c.Proto), ms(cfg.Join)
		if within(a, b, all, all, 0) || within(a, b, exported, exported, idle) || within(a, b, exported, hosts, join) ||
			within(a, b, hosts, exported, join) || within(a, b, hosts, hosts, join) {
			return true
		}
		for _, i := range a.members {
			of := func(r *flow.Record) bool {
				return !exported(r) && r.Observer == rs[i].Observer && r.Source == rs[i].Source
			}
			if !exported(&rs[i]) && within(a, b, of, of, idle) {
				return true
			}
		}
		return false
	}
	var groups []group
	for i := range rs {
		groups = append(groups, group{[]int{i}})
	}
	for again := true; again; {
		again = false
		for i := range groups {
			for j := len(groups) - 1; j > i; j-- {
				if together(groups[i], groups[j]) {
					groups[i].members = append(groups[i].members, groups[j].members...)
					groups = slices.Delete(groups, j, j+1)
					again = true
				}
			}
			if again {
				break
			}
		}
	}
	var out [][]int
	for _, g := range groups {
		out = append(out, g.members)
	}
	return out
}

// TestSessionsOracle: random traffic gives the sessions that a brute-force reading of the
// definition gives, with the same records, whatever the order and the batches; and the same
// last rows, field by field.
func TestSessionsOracle(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 7))
	total := 0
	for round := range 60 {
		cfg := DefaultSessionsConfig()
		cfg.Idle = SessionIdleConfig{TCP: time.Duration(1+rng.IntN(60)) * time.Second, UDP: 15 * time.Second, ICMP: time.Second, Other: time.Second}
		cfg.UpdateEvery = time.Duration(1+rng.IntN(120)) * time.Second
		names := flow.NewNames(0)
		rs := chatter(rng, names, 150)
		type summary struct {
			conversation uint64
			start, end   flow.Time
			records      uint32
		}
		var want []summary
		for _, g := range naive(rs, &cfg) {
			s := summary{conversation: rs[g[0]].Conversation(), start: maxTime, records: uint32(len(g))}
			for _, i := range g {
				s.start, s.end = min(s.start, rs[i].Start), max(s.end, rs[i].End)
			}
			want = append(want, s)
		}
		total += len(want)
		order := func(a, b summary) int {
			return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.conversation, b.conversation))
		}
		slices.SortFunc(want, order)
		var first []flow.Session
		var settled []uint64
		for turn := range 4 {
			// Every record comes within the lateness of its start.
			arriving := arriveWithin(rng, rs, cfg.Lateness)
			rows, _ := through(newTestSessions(t, cfg, names), arriving, 1+rng.IntN(40))
			last := lastRows(rows)
			var got []summary
			for _, s := range last {
				got = append(got, summary{s.Conversation, s.Start, s.End, s.Records})
				if s.ID != flow.SessionID(s.Conversation, s.Began) {
					t.Errorf("round %d: the id of %v is not made of its conversation and beginning", round, s)
				}
			}
			slices.SortFunc(got, order)
			if !slices.Equal(got, want) {
				t.Fatalf("round %d: %s", round, gocmp.Diff(want, got, gocmp.AllowUnexported(summary{})))
			}
			var firsts []uint64
			for i := range rows {
				if rows[i].Settled != 0 {
					firsts = append(firsts, rows[i].ID)
				}
			}
			if turn == 0 {
				first, settled = last, firsts
			} else if !slices.Equal(settled, firsts) {
				t.Fatalf("round %d: another order gives other first rows, or in another order: %s", round, gocmp.Diff(settled, firsts))
			} else if !slices.Equal(first, last) {
				t.Fatalf("round %d: another order gives other rows: %s", round, gocmp.Diff(first, last))
			}
		}
	}
	t.Logf("%d sessions", total)
}

// arriveWithin orders records as they might come: each within the lateness of its start, and
// not before it ended.
func arriveWithin(rng *rand.Rand, rs []flow.Record, lateness time.Duration) []flow.Record {
	type arrival struct {
		r  flow.Record
		at flow.Time
	}
	as := make([]arrival, len(rs))
	for i, r := range rs {
		as[i] = arrival{r, r.End + flow.Time(rng.Int64N(max(1, int64(r.Start+ms(lateness)-r.End))))}
	}
	slices.SortFunc(as, func(a, b arrival) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.r.ID, b.r.ID)) })
	out := make([]flow.Record, len(rs))
	for i := range as {
		out[i] = as[i].r
	}
	return out
}

// TestSessionsSnapshot: a snapshot taken anywhere, restored among other names, ends in the
// same rows; and the same state gives the same bytes.
func TestSessionsSnapshot(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 8))
	for round := range 20 {
		cfg := DefaultSessionsConfig()
		cfg.Idle.TCP = 30 * time.Second
		names := flow.NewNames(0)
		rs := arriveWithin(rng, chatter(rng, names, 200), cfg.Lateness)
		whole, _ := through(newTestSessions(t, cfg, names), rs, 10)
		cut := rng.IntN(len(rs))/10*10 + 10
		x := newTestSessions(t, cfg, names)
		var rows []flow.Session
		for part := range slices.Chunk(rs[:min(cut, len(rs))], 10) {
			x.Observe(batchOf(part...))
			r, _ := x.Collect()
			rows = append(rows, r...)
		}
		b, err := x.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		y := newTestSessions(t, cfg, names)
		if err := y.Restore(b); err != nil {
			t.Fatal(err)
		}
		if again, err := y.Snapshot(); err != nil || !bytes.Equal(b, again) {
			t.Fatalf("round %d: the snapshot of what was restored differs: %v", round, err)
		}
		r, _ := through(y, rs[min(cut, len(rs)):], 10)
		if !slices.Equal(append(rows, r...), whole) {
			t.Fatalf("round %d: after a restore the rows differ: %s", round, gocmp.Diff(whole, append(rows, r...)))
		}
	}
}

func TestSessionsRestoreRefuses(t *testing.T) {
	x := newTestSessions(t, DefaultSessionsConfig(), flow.NewNames(0))
	x.Observe(batchOf(told(1, "10.0.0.1", 40000, "10.0.0.2", 445, 0, 1)))
	good, err := x.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		b    []byte
		want string
	}{
		{"nothing", nil, "it is none"},
		{"a snapshot of the pairer", []byte(`{"version":1}`), "it is none"},
		{"another version", append([]byte(sessionsMagic), 99), "version 99; this program reads versions 1 to 8"},
		{"cut", good[:len(good)-3], "ends too early"},
		{"too long", append(slices.Clone(good), 0), "ends too early or is not"},
	} {
		if err := x.Restore(c.b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if x.live != 0 {
			t.Errorf("%s: something was restored", c.name)
		}
	}
}

func FuzzSessionsRestore(f *testing.F) {
	names := flow.NewNames(0)
	rng := rand.New(rand.NewPCG(1, 1))
	for n := range 4 {
		x := newTestSessions(f, DefaultSessionsConfig(), names)
		x.Observe(batchOf(chatter(rng, names, 3*n)...))
		x.Collect()
		b, err := x.Snapshot()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		names := flow.NewNames(0)
		x := newTestSessions(t, DefaultSessionsConfig(), names)
		if x.Restore(b) != nil {
			return
		}
		if _, err := x.Snapshot(); err != nil {
			t.Fatal(err)
		}
		x.Observe(batchOf(told(1, "10.0.0.1", 40000, "10.0.1.1", 445, 10, 11)))
		x.Collect()
		x.Flush()
		if x.live != 0 {
			t.Fatalf("%d sessions are held after the end", x.live)
		}
	})
}

// TestSessionsDivide: several Sessions that are divided into more in the middle end in the
// same last rows as one.
func TestSessionsDivide(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 9))
	for round := range 20 {
		cfg := DefaultSessionsConfig()
		names := flow.NewNames(0)
		rs := arriveWithin(rng, chatter(rng, names, 200), cfg.Lateness)
		whole, _ := through(newTestSessions(t, cfg, names), rs, 10)
		before := make([]*Sessions, 1+rng.IntN(3))
		var rows []flow.Session
		var snapshots [][]byte
		for i := range before {
			before[i] = newTestSessions(t, cfg, names)
		}
		for _, r := range rs[:100] {
			before[spread(len(before))(r.Src, r.Dst)].Observe(batchOf(r))
		}
		for _, x := range before {
			r, _ := x.Collect()
			rows = append(rows, r...)
			b, err := x.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			snapshots = append(snapshots, b)
		}
		n := len(before) + 1 + rng.IntN(5)
		divided, err := DivideSessions(snapshots, n, spread(n))
		if err != nil {
			t.Fatal(err)
		}
		after := make([]*Sessions, n)
		for i := range after {
			after[i] = newTestSessions(t, cfg, names)
			if err := after[i].Restore(divided[i]); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range rs[100:] {
			after[spread(n)(r.Src, r.Dst)].Observe(batchOf(r))
		}
		for _, x := range after {
			r, _ := x.Flush()
			rows = append(rows, r...)
		}
		want, got := lastRows(whole), lastRows(rows)
		if !slices.Equal(want, got) {
			t.Fatalf("round %d: %s", round, gocmp.Diff(want, got))
		}
	}
	if _, err := DivideSessions([][]byte{[]byte("x")}, 2, spread(2)); err == nil || !strings.Contains(err.Error(), "state 0 of 1") {
		t.Errorf("a snapshot that is none: %v", err)
	}
}

// TestSessionsOneFlowSeenByAll is THREATS 28: both ends and a router tell one connection.
func TestSessionsOneFlowSeenByAll(t *testing.T) {
	names := flow.NewNames(0)
	client := hostTold(names, 1, "laptop", flow.ReporterSource, "10.0.0.9", 50000, "10.0.0.2", 445, 1.5)
	client.SrcIdentity, client.SrcProcess = names.Intern(`CORP\alice`), names.Intern("explorer.exe")
	client.DstIdentity = names.Intern(`CORP\bob`) // not its to say
	client.Has |= flow.HasSrcIdentity | flow.HasDstIdentity
	server := hostTold(names, 2, "files", flow.ReporterDestination, "10.0.0.9", 50000, "10.0.0.2", 445, -2)
	server.DstIdentity, server.DstProcess, server.Enforced = names.Intern(`CORP\svc-files`), names.Intern("System"), flow.ObservedDeny
	server.EnforcedBy = names.Intern("block-smb")
	server.Has |= flow.HasDstIdentity
	router := told(3, "10.0.0.9", 50000, "10.0.0.2", 445, 0, 30)
	back := told(4, "10.0.0.2", 445, "10.0.0.9", 50000, 0.1, 30)
	sampled := told(5, "10.0.0.9", 50000, "10.0.0.2", 445, 0, 29)
	sampled.Exporter.Lo++
	sampled.SamplingRate = 1000
	for i, r := range []*flow.Record{&client, &server, &router, &back, &sampled} {
		r.Verdict = flow.Verdict{Reason: flow.ReasonUnverified, Expected: flow.ExpectUnknown, Missing: flow.DimIdentity, Observed: r.Enforced, Rule: names.Intern(fmt.Sprint(i))}
	}
	client.Verdict = flow.Verdict{Reason: flow.ReasonDenied, Expected: flow.ExpectDeny, Observed: flow.ObservedAllow, Rule: names.Intern("informed"), Confidence: 100, Outcome: flow.OutcomeEscaped}
	cfg := DefaultSessionsConfig()
	rows, contradictions := through(newTestSessions(t, cfg, names), []flow.Record{back, sampled, server, client, router}, 2)
	last := lastRows(rows)
	if len(last) != 1 {
		t.Fatalf("%d sessions, want one: %+v", len(last), last)
	}
	s := last[0]
	type want struct {
		client, server               string
		port                         uint16
		bytes, rev                   uint64
		id, id2, proc, proc2, policy string
		certain, certain2            uint8
		observed                     flow.Observed
		outcome                      flow.Outcome
		rule                         string
		observers, records           int
		both                         bool
	}
	got := want{s.Client.Addr.String(), s.Server.Addr.String(), s.Server.Port, s.Client.Bytes, s.Server.Bytes,
		names.Text(s.Client.Identity), names.Text(s.Server.Identity), names.Text(s.Client.Process), names.Text(s.Server.Process), names.Text(s.EnforcedBy),
		s.Client.IdentityCertain, s.Server.IdentityCertain, s.Verdict.Observed, s.Verdict.Outcome, names.Text(s.Verdict.Rule), int(s.ObserversTotal), int(s.Records), s.BothWays}
	if w := (want{"10.0.0.9", "10.0.0.2", 445, 3000, 4000, `CORP\alice`, `CORP\svc-files`, "explorer.exe", "System", "block-smb", 100, 100,
		flow.ObservedDeny, flow.OutcomeBlocked, "informed", 4, 5, true}); got != w {
		t.Errorf("got  %+v\nwant %+v", got, w)
	}
	// The client's agent names another user for the server than the server's own does.
	if len(contradictions) != 1 || contradictions[0].Kind != flow.ContradictIdentity || !contradictions[0].Server ||
		names.Text(contradictions[0].Claim[0]) != `CORP\svc-files` || names.Text(contradictions[0].Claim[1]) != `CORP\bob` || contradictions[0].Confidence != 60 {
		t.Errorf("contradictions: %+v", contradictions)
	}
	for _, o := range s.Observers[:4] {
		if o.Records == 0 || o.First == 0 {
			t.Errorf("an observer without records: %+v", o)
		}
	}
}

// TestSessionsRepeats: retransmitted SYNs and repeated blocks are one attempt.
func TestSessionsRepeats(t *testing.T) {
	names := flow.NewNames(0)
	var rs []flow.Record
	for i, at := range []float64{0, 1, 3, 7, 15} {
		r := hostTold(names, uint64(i+1), "files", flow.ReporterDestination, "10.0.0.9", 50000, "10.0.0.2", 445, at)
		r.Enforced = flow.ObservedDeny
		syn := told(uint64(i+10), "10.0.0.9", 50000, "10.0.0.2", 445, at, at)
		syn.TCPFlags = flow.SYN
		rs = append(rs, r, syn)
	}
	rows, _ := through(newTestSessions(t, DefaultSessionsConfig(), names), rs, 1)
	if last := lastRows(rows); len(last) != 1 || last[0].Records != 10 || last[0].Verdict.Observed != flow.ObservedDeny {
		t.Errorf("%d sessions: %+v", len(last), last)
	}
}

// TestSessionsNAT is THREATS 13: a firewall that tells both tuples joins what is told before
// and behind it, in any order; without it what is behind stays unverified and credits no exception.
func TestSessionsNAT(t *testing.T) {
	names := flow.NewNames(0)
	inside := told(1, "10.1.0.5", 50000, "198.51.100.7", 443, 0, 20)
	inside.Exporter = flow.MustParseAddr("192.0.2.10")
	firewall := told(2, "10.1.0.5", 50000, "198.51.100.7", 443, 0.1, 20)
	firewall.Exporter, firewall.Source = flow.MustParseAddr("192.0.2.11"), flow.SourceIPFIX
	firewall.Has |= flow.HasNATSrc | flow.HasNATSrcPort
	firewall.NATSrc, firewall.NATSrcPort = flow.MustParseAddr("203.0.113.9"), 61000
	outside := told(3, "198.51.100.7", 443, "203.0.113.9", 61000, 0.2, 20)
	outside.Exporter = flow.MustParseAddr("192.0.2.12")
	waived := flow.Verdict{Reason: flow.ReasonWaived, Expected: flow.ExpectAllow, Exception: names.Intern("EX-1"), Outcome: flow.OutcomePermitted}
	outside.Verdict, inside.Verdict, firewall.Verdict = waived, flow.Verdict{Reason: flow.ReasonPermitted, Expected: flow.ExpectAllow}, flow.Verdict{Reason: flow.ReasonPermitted, Expected: flow.ExpectAllow}
	cfg := DefaultSessionsConfig()
	cfg.NATPools = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/28")}
	all := []flow.Record{inside, firewall, outside}
	var first []flow.Session
	for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		for n := 1; n <= 3; n++ {
			rows, _ := through(newTestSessions(t, cfg, names), []flow.Record{all[order[0]], all[order[1]], all[order[2]]}, n)
			last := lastRows(rows)
			if len(last) != 1 || last[0].NAT != flow.NATTranslated || last[0].ObserversTotal != 3 || last[0].Records != 3 ||
				last[0].Client.Addr != inside.Src || last[0].NATClient != firewall.NATSrc || last[0].NATClientPort != 61000 || last[0].NATServer != inside.Dst ||
				last[0].Server.Bytes != 3000 || last[0].Verdict.Reason != flow.ReasonPermitted {
				t.Fatalf("order %v: %+v", order, last)
			}
			if first == nil {
				first = last
			} else if !slices.Equal(first, last) {
				t.Errorf("order %v gives another row: %s", order, gocmp.Diff(first, last))
			}
		}
	}
	rows, _ := through(newTestSessions(t, cfg, names), []flow.Record{inside, outside}, 1)
	last := lastRows(rows)
	if len(last) != 2 {
		t.Fatalf("without the firewall: %d sessions, want two", len(last))
	}
	for _, s := range last {
		pool := s.Client.Addr == firewall.NATSrc || s.Server.Addr == firewall.NATSrc
		if pool && (s.NAT != flow.NATUnverified || s.Verdict.Reason != flow.ReasonUnverified || s.Verdict.Exception != flow.NoName) {
			t.Errorf("behind the translation: %+v", s)
		}
		if !pool && (s.NAT != flow.NATNone || s.Verdict.Reason != flow.ReasonPermitted) {
			t.Errorf("before the translation: %+v", s)
		}
	}
	// A translated source whose port is not told joins nothing.
	firewall.Has &^= flow.HasNATSrcPort
	rows, _ = through(newTestSessions(t, cfg, names), []flow.Record{firewall, outside}, 1)
	if last = lastRows(rows); len(last) != 2 || last[0].NAT != flow.NATUnverified || last[1].NAT != flow.NATUnverified {
		t.Errorf("a translation told in part: %+v", last)
	}
}

// TestSessionsClockOffsetBetween: what a host told of a conversation lies within reach of two
// exported sessions of it. They are one, whether the host's clock is right or has to be found.
func TestSessionsClockOffsetBetween(t *testing.T) {
	udp := func(r flow.Record) flow.Record {
		r.Proto, r.TCPFlags, r.Has = flow.ProtoUDP, 0, r.Has&^flow.HasTCPFlags
		return r
	}
	for _, off := range []float64{0, -3600} {
		names := flow.NewNames(0)
		var rs, late []flow.Record
		for i := range 5 {
			port := uint16(50001 + i)
			rs = append(rs, told(uint64(10+i), "10.0.0.9", port, "10.0.0.2", 445, 0, 1))
			late = append(late, hostTold(names, uint64(20+i), "h", flow.ReporterSource, "10.0.0.9", port, "10.0.0.2", 445, off))
		}
		between := hostTold(names, 3, "h", flow.ReporterSource, "10.0.0.9", 50000, "10.0.0.2", 53, 3+off)
		between.End = between.Start + 125_000
		rs = append(rs, udp(told(1, "10.0.0.9", 50000, "10.0.0.2", 53, 0, 5)), told(9, "10.0.0.8", 50000, "10.0.0.7", 445, 124, 125),
			udp(told(2, "10.0.0.9", 50000, "10.0.0.2", 53, 126, 131)), udp(between))
		rows, _ := through(newTestSessions(t, DefaultSessionsConfig(), names), append(rs, late...), 1)
		n := 0
		for _, s := range lastRows(rows) {
			if s.Proto == flow.ProtoUDP {
				n++
				if s.Records != 3 || s.ObserversTotal != 2 {
					t.Errorf("off by %v s: %+v", off, s)
				}
			}
		}
		if n != 1 {
			t.Errorf("off by %v s: %d sessions; want one", off, n)
		}
	}
}

// TestSessionsNATHalfway: conntrack tells both tuples of a connection whose destination and
// source are translated; what exporters saw before and behind it and what the firewall logged
// as it forwarded, the destination translated already and the source not yet, is of the same
// session, in any order.
func TestSessionsNATHalfway(t *testing.T) {
	names := flow.NewNames(0)
	before := told(1, "10.1.0.5", 50000, "203.0.113.80", 443, 0, 20)
	before.Exporter = flow.MustParseAddr("192.0.2.10")
	conntrack := told(2, "10.1.0.5", 50000, "203.0.113.80", 443, 0.1, 20)
	conntrack.Exporter, conntrack.Source = flow.MustParseAddr("192.0.2.11"), flow.SourceConntrack
	conntrack.Has |= flow.HasNATSrc | flow.HasNATSrcPort | flow.HasNATDst | flow.HasNATDstPort
	conntrack.NATSrc, conntrack.NATSrcPort = flow.MustParseAddr("10.2.0.1"), 61000
	conntrack.NATDst, conntrack.NATDstPort = flow.MustParseAddr("10.2.0.10"), 8443
	forward := told(3, "10.1.0.5", 50000, "10.2.0.10", 8443, 0.1, 0.1)
	forward.Exporter, forward.Source = flow.MustParseAddr("192.0.2.11"), flow.SourceNetfilter
	behind := told(4, "10.2.0.10", 8443, "10.2.0.1", 61000, 0.2, 20)
	behind.Exporter = flow.MustParseAddr("192.0.2.12")
	all := []flow.Record{before, conntrack, forward, behind}
	rng := rand.New(rand.NewPCG(13, 13))
	var first []flow.Session
	for range 24 {
		rs := slices.Clone(all)
		rng.Shuffle(len(rs), func(i, j int) { rs[i], rs[j] = rs[j], rs[i] })
		rows, _ := through(newTestSessions(t, DefaultSessionsConfig(), names), rs, 1+rng.IntN(4))
		last := lastRows(rows)
		if len(last) != 1 || last[0].NAT != flow.NATTranslated || last[0].ObserversTotal != 4 || last[0].Records != 4 ||
			last[0].Client.Addr != before.Src || last[0].Server.Addr != before.Dst || last[0].NATClient != conntrack.NATSrc ||
			last[0].NATClientPort != 61000 || last[0].NATServer != conntrack.NATDst || last[0].NATServerPort != 8443 {
			t.Fatalf("%d sessions: %+v", len(last), last)
		}
		if first == nil {
			first = last
		} else if !slices.Equal(first, last) {
			t.Errorf("another order gives another row: %s", gocmp.Diff(first, last))
		}
	}
	// Without conntrack nobody knows that they are one.
	rows, _ := through(newTestSessions(t, DefaultSessionsConfig(), names), []flow.Record{before, forward, behind}, 1)
	if last := lastRows(rows); len(last) != 3 {
		t.Errorf("without both tuples: %d sessions, want three", len(last))
	}
	// Where only the destination is translated what is forwarded is what is behind.
	conntrack.Has &^= flow.HasNATSrc | flow.HasNATSrcPort
	rows, _ = through(newTestSessions(t, DefaultSessionsConfig(), names), []flow.Record{before, conntrack, forward}, 1)
	if last := lastRows(rows); len(last) != 1 || last[0].Records != 3 || last[0].NATClient != before.Src || last[0].NATServer != forward.Dst {
		t.Errorf("only the destination translated: %d sessions: %+v", len(last), last)
	}
}

// TestSessionsOutsideFirst: what is behind a translation was written as a session of its own
// before the translation was told, late; it becomes part of the other.
func TestSessionsOutsideFirst(t *testing.T) {
	names := flow.NewNames(0)
	outside := told(3, "198.51.100.7", 443, "203.0.113.9", 61000, 0.2, 100)
	clock := told(4, "10.9.9.9", 50000, "10.9.9.8", 443, 145, 145)
	firewall := told(2, "10.1.0.5", 50000, "198.51.100.7", 443, 0.1, 100)
	firewall.Has |= flow.HasNATSrc | flow.HasNATSrcPort
	firewall.NATSrc, firewall.NATSrcPort = flow.MustParseAddr("203.0.113.9"), 61000
	rows, _ := through(newTestSessions(t, DefaultSessionsConfig(), names), []flow.Record{outside, clock, firewall}, 1)
	if !slices.ContainsFunc(rows, func(s flow.Session) bool { return s.Into != 0 && s.Version == supersededVersion }) {
		t.Error("the session that became part of another was not written off")
	}
	if last := lastRows(rows); len(last) != 2 || last[0].Records != 2 || last[0].NAT != flow.NATTranslated {
		t.Errorf("%+v", last)
	}
}

// TestSessionsContradictions is THREATS 27.
func TestSessionsContradictions(t *testing.T) {
	names := flow.NewNames(0)
	const c, s = "10.0.0.9", "10.0.0.2"
	identity := func(r flow.Record, src, dst string) flow.Record {
		r.SrcIdentity, r.DstIdentity = names.Intern(src), names.Intern(dst)
		r.Has |= flow.HasSrcIdentity
		return r
	}
	denied := func(r flow.Record) flow.Record {
		r.Enforced = flow.ObservedDeny
		return r
	}
	at := func(id uint64, host string, rep flow.Reporter) flow.Record {
		return hostTold(names, id, host, rep, c, 50000, s, 445, float64(id)/10)
	}
	known := func(r flow.Record, src string) flow.Record { // by way of its address
		r.SrcIdentity = names.Intern(src)
		return r
	}
	domains := flow.NewDomains("", map[string]string{"CORP": "corp.example"})
	for _, k := range []struct {
		name string
		rs   []flow.Record
		want string // kind, side
	}{
		{"both agents agree", []flow.Record{identity(at(1, "a", flow.ReporterSource), `CORP\alice`, ""), identity(at(2, "b", flow.ReporterDestination), "Alice@corp.example", "")}, ""},
		{"an agent lies about its user", []flow.Record{identity(at(1, "a", flow.ReporterSource), `CORP\alice`, ""), identity(at(2, "b", flow.ReporterDestination), `CORP\mallory`, "")}, "identity client"},
		{"the directory knows another user", []flow.Record{identity(at(1, "a", flow.ReporterSource), `CORP\alice`, ""), known(told(3, c, 50000, s, 445, 0, 1), `CORP\bob`)}, "identity client"},
		{"the far end says system", []flow.Record{identity(at(1, "a", flow.ReporterSource), `CORP\alice`, ""), identity(at(2, "b", flow.ReporterDestination), `NT AUTHORITY\SYSTEM`, "")}, ""},
		{"a workload is no account", []flow.Record{identity(at(1, "a", flow.ReporterSource), `CORP\alice`, ""), identity(at(2, "b", flow.ReporterDestination), `shop/cart`, "")}, ""},
		{"allowed there, denied here", []flow.Record{at(1, "a", flow.ReporterSource), denied(at(2, "b", flow.ReporterDestination))}, ""},
		{"said to be stopped, and came", []flow.Record{denied(at(1, "a", flow.ReporterSource)), at(2, "b", flow.ReporterDestination)}, "verdict client"},
		{"said to be stopped, and seen on the way", []flow.Record{denied(at(1, "a", flow.ReporterSource)), told(3, c, 50000, s, 445, 0, 1)}, "verdict client"},
		{"stopped first, let go then", []flow.Record{denied(at(1, "a", flow.ReporterSource)), at(3, "a", flow.ReporterSource), at(2, "b", flow.ReporterDestination)}, ""},
	} {
		for range 2 {
			x, err := NewSessions(DefaultSessionsConfig(), domains, names, nil)
			if err != nil {
				t.Fatal(err)
			}
			rows, cs := through(x, k.rs, 1)
			var got []string
			for _, c := range cs {
				side := "client"
				if c.Server {
					side = "server"
				}
				got = append(got, strings.Join(c.Kind.Texts(), "")+" "+side)
				if c.ID != flow.ContradictionID(c.Session.ID, c.Kind, c.Server) || c.Confidence == 0 || c.Session.Contradictions != c.Kind {
					t.Errorf("%s: %+v", k.name, c)
				}
			}
			if strings.Join(got, ", ") != k.want {
				t.Errorf("%s: %q, want %q", k.name, got, k.want)
			}
			if last := lastRows(rows); len(last) != 1 || (last[0].Contradictions != 0) != (k.want != "") {
				t.Errorf("%s: rows %+v", k.name, last)
			}
			slices.Reverse(k.rs)
		}
	}
}

// TestSessionsClockOffset: a host's clock is an hour slow; five sessions agree, and what
// still waits joins, as does what comes.
func TestSessionsClockOffset(t *testing.T) {
	names := flow.NewNames(0)
	cfg := DefaultSessionsConfig()
	joined := func(n int, offset float64) (joined, alone, late int) {
		var rs []flow.Record
		for i := range n {
			at := float64(i * 30)
			rs = append(rs, told(uint64(i+1), "10.0.0.9", uint16(50000+i), "10.0.0.2", 445, at, at+1))
			r := hostTold(names, uint64(i+1000), "slow", flow.ReporterSource, "10.0.0.9", uint16(50000+i), "10.0.0.2", 445, at+offset+0.3*float64(i%3))
			r.SrcProcess = names.Intern("x.exe")
			rs = append(rs, r)
		}
		rows, _ := through(newTestSessions(t, cfg, names), rs, 1)
		for _, s := range lastRows(rows) {
			switch {
			case s.ObserversTotal == 2:
				joined++
				if s.Client.Process == 0 || s.Observers[0].Skew > int32(offset*1000)+1000 || s.Observers[0].Skew < int32(offset*1000)-1000 {
					t.Errorf("joined without process or with skew %d: %+v", s.Observers[0].Skew, s)
				}
			case s.Client.Own:
				alone++
			}
		}
		return joined, alone, late
	}
	for _, offset := range []float64{-3600, -18000, -25} {
		if j, alone, _ := joined(4, offset); j != 0 {
			t.Errorf("offset %v s: %d of 4 sessions joined; four are not enough (%d alone)", offset, j, alone)
		}
		if j, alone, _ := joined(40, offset); j != 40 || alone != 0 {
			t.Errorf("offset %v s: %d of 40 joined, %d hosts' sessions stand alone", offset, j, alone)
		}
	}
	// Without an offset, just inside and outside of 20 s.
	for _, c := range []struct {
		at   float64
		want bool
	}{{-19.9, true}, {20.9, true}, {-20.1, false}, {21.1, false}} {
		rs := []flow.Record{told(1, "10.0.0.9", 50000, "10.0.0.2", 445, 0, 1), hostTold(names, 2, "h", flow.ReporterSource, "10.0.0.9", 50000, "10.0.0.2", 445, c.at)}
		rows, _ := through(newTestSessions(t, cfg, names), rs, 2)
		if got := len(lastRows(rows)) == 1; got != c.want {
			t.Errorf("%v s from the flow: joined %v, want %v", c.at, got, c.want)
		}
	}
}

// TestSessionsClockOrder: that a host's clock is behind is found on the way, and which sessions there
// are in the end does not depend on the order in which records came.
func TestSessionsClockOrder(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 15))
	for _, offset := range []float64{-3600, -1800, -300} {
		for round := range 3 {
			names := flow.NewNames(0)
			var rs []flow.Record
			off := map[uint64]bool{}
			for i := range 400 {
				at, port := rng.Float64()*1800, uint16(40000+i)
				if rng.IntN(10) > 0 {
					rs = append(rs, told(uint64(len(rs)+1), "10.0.0.9", port, "10.0.0.2", 445, at, at+rng.Float64()*30))
				}
				if rng.IntN(5) > 0 {
					r := hostTold(names, uint64(len(rs)+1), "off", flow.ReporterSource, "10.0.0.9", port, "10.0.0.2", 445, at+rng.Float64())
					off[r.ID] = true
					rs = append(rs, r)
				}
			}
			var first []flow.Session
			for turn := range 4 {
				cfg := DefaultSessionsConfig()
				arrived := arriveWithin(rng, rs, cfg.Lateness) // by the time it was
				for i := range arrived {
					if r := &arrived[i]; off[r.ID] {
						r.Start += flow.Time(offset * 1000)
						r.End = r.Start
					}
				}
				// Event time is known before the first of them comes.
				arrived = slices.Insert(arrived, 0, told(9999, "10.0.0.8", 40000, "10.0.0.2", 445, -10, 0))
				rows, _ := through(newTestSessions(t, cfg, names), arrived, 1+rng.IntN(20))
				last := lastRows(rows)
				if turn == 0 {
					first = last
				} else if diff := gocmp.Diff(first, last); diff != "" {
					t.Fatalf("a clock that is off by %v s, round %d: another order gives other sessions:\n%s", offset, round, diff)
				}
			}
		}
	}
}

// TestSessionsClockOffsetGrown: what a host told of a session after it was written, and after it was
// over, goes with the rest once its clock is found to be off.
func TestSessionsClockOffsetGrown(t *testing.T) {
	for _, over := range []bool{false, true} {
		names := flow.NewNames(0)
		cfg := DefaultSessionsConfig()
		if over {
			cfg.Idle.TCP = time.Minute
		}
		x := newTestSessions(t, cfg, names)
		var rows []flow.Session
		id := uint64(0)
		observe := func(r flow.Record) {
			x.Observe(batchOf(r))
			got, _ := x.Collect()
			rows = append(rows, got...)
		}
		const n = 5
		host := func(i int, at float64) { // 400 s behind, and nothing else to be late by
			id++
			observe(hostTold(names, id, "slow", flow.ReporterSource, "10.0.0.9", uint16(50000+i), "10.0.0.2", 445, at-400))
		}
		for i := range n {
			host(i, float64(i))
		}
		observe(told(100, "10.0.0.7", 50000, "10.0.0.8", 443, -400+150, -400+150)) // the first are written
		for i := range n {
			host(i, 45+float64(i))
		}
		for i := range n {
			observe(told(uint64(200+i), "10.0.0.9", uint16(50000+i), "10.0.0.2", 445, float64(i), float64(i)+60))
		}
		observe(told(101, "10.0.0.7", 50001, "10.0.0.8", 443, 200, 200))
		got, _ := x.Flush()
		joined := 0
		for _, s := range lastRows(append(rows, got...)) {
			if s.Server.Addr == flow.AddrFromNetip(netip.MustParseAddr("10.0.0.2")) {
				if s.ObserversTotal != 2 || s.Records != 3 {
					t.Errorf("over %v: a session of %d observers and %d records, want 2 and 3: %+v", over, s.ObserversTotal, s.Records, s)
				}
				joined++
			}
		}
		if joined != n {
			t.Errorf("over %v: %d sessions, want %d", over, joined, n)
		}
	}
}

// TestSessionsChanceOffset: votes that agree by chance lead no clock astray: a host whose
// records join, and a host of another run.
func TestSessionsChanceOffset(t *testing.T) {
	names := flow.NewNames(0)
	var rs []flow.Record
	for i := range 40 {
		at := float64(i * 20)
		rs = append(rs, told(uint64(i+1), "10.0.0.9", uint16(50000+i), "10.0.0.2", 445, at, at+1),
			hostTold(names, uint64(i+1000), "good", flow.ReporterSource, "10.0.0.9", uint16(50000+i), "10.0.0.2", 445, at))
		if i%5 == 0 { // the port is used anew, which no exporter tells; always after the same time
			rs = append(rs, hostTold(names, uint64(i+2000), "good", flow.ReporterSource, "10.0.0.9", uint16(50000+i), "10.0.0.2", 445, at+700))
		}
		// Other tuples coincide now and then, at other distances.
		rs = append(rs, hostTold(names, uint64(i+3000), "other run", flow.ReporterDestination, "10.0.0.9", uint16(50000+i), "10.0.0.2", 445, at-100-float64(i*i*7)))
	}
	slices.SortFunc(rs, func(a, b flow.Record) int { return cmp.Compare(a.Start, b.Start) })
	x := newTestSessions(t, DefaultSessionsConfig(), names)
	through(x, rs, 10)
	for k, h := range x.hosts {
		if h.offset != 0 {
			t.Errorf("the clock of %q was taken to be off by %v ms", names.Text(k.observer), h.offset)
		}
	}
}

// TestSessionsBounds: at every bound the state stays bounded.
func TestSessionsBounds(t *testing.T) {
	names := flow.NewNames(0)
	cfg := DefaultSessionsConfig()
	cfg.MaxSessions, cfg.MaxUnjoined, cfg.MaxHosts = 100, 50, 10
	x := newTestSessions(t, cfg, names)
	written := map[uint64]bool{}
	take := func(rows []flow.Session, _ []flow.Contradiction) {
		for _, r := range rows {
			written[r.ID] = true
		}
	}
	for i := range 5000 {
		at := float64(i) / 100
		x.Observe(batchOf(told(uint64(i+1), fmt.Sprintf("10.0.%d.%d", i/250, i%250), 50000, "10.1.0.2", 445, at, at)))
		r := hostTold(names, uint64(i+9000), fmt.Sprint("host", i), flow.ReporterSource, fmt.Sprintf("10.2.%d.%d", i/250, i%250), 50000, "10.1.0.2", 445, at-1e5)
		x.Observe(batchOf(r))
		if x.live > cfg.MaxSessions || x.strays.live > cfg.MaxUnjoined || len(x.strays.of) > cfg.MaxUnjoined || len(x.hosts) > cfg.MaxHosts || len(x.agents) > cfg.MaxHosts {
			t.Fatalf("%d sessions, %d strays, %d hosts, %d agents", x.live, x.strays.live, len(x.hosts), len(x.agents))
		}
	}
	take(x.Collect())
	take(x.Flush())
	if len(written) != 5000 {
		t.Errorf("%d of 5000 sessions were written", len(written))
	}
	// A hundred observers of one session: eight are listed, 64 told apart.
	var rs []flow.Record
	for i := range 100 {
		r := told(uint64(i+1), "10.0.0.9", 50000, "10.0.0.2", 445, 0, 1)
		r.Exporter.Lo += uint64(i)
		rs = append(rs, r)
	}
	var first []flow.Session
	for range 5 {
		rand.Shuffle(len(rs), func(i, j int) { rs[i], rs[j] = rs[j], rs[i] })
		rows, _ := through(newTestSessions(t, DefaultSessionsConfig(), names), rs, 10)
		last := lastRows(rows)
		if len(last) != 1 || last[0].ObserversTotal != 64 || last[0].Version != 100 {
			t.Fatalf("%+v", last)
		}
		if first == nil {
			first = last
		} else if !slices.Equal(first, last) {
			t.Errorf("another order lists others: %s", gocmp.Diff(first, last))
		}
	}
}

// TestSessionsLate: what comes after its time is kept out and counted.
func TestSessionsLate(t *testing.T) {
	names := flow.NewNames(0)
	x := newTestSessions(t, DefaultSessionsConfig(), names)
	rows, _ := through(x, []flow.Record{told(1, "10.0.0.9", 50000, "10.0.0.2", 445, 1000, 1001), told(2, "10.0.0.9", 50001, "10.0.0.2", 445, 0, 1),
		told(3, "10.0.0.9", 50000, "10.0.0.2", 445, 0, 995)}, 1)
	if last := lastRows(rows); len(last) != 1 || last[0].Records != 2 {
		t.Errorf("%+v", last)
	}
}

// TestSessionsShortIdle: an idle time shorter than Join does not have a session forgotten that what
// a host tells may still belong to.
func TestSessionsShortIdle(t *testing.T) {
	for late, name := range []string{"the host's log comes at once", "the host's log comes late"} {
		t.Run(name, func(t *testing.T) {
			names := flow.NewNames(0)
			cfg := DefaultSessionsConfig()
			cfg.Idle.TCP = 7 * time.Second
			rs := []flow.Record{
				told(1, "10.0.0.1", 40000, "10.0.1.1", 445, 0, 10),
				hostTold(names, 2, "b", flow.ReporterDestination, "10.0.0.1", 40000, "10.0.1.1", 445, 29),
				told(3, "10.0.0.9", 40000, "10.0.1.1", 445, 140, 147), // meanwhile, elsewhere
			}
			if late == 1 {
				rs[1], rs[2] = rs[2], rs[1]
			}
			rows, _ := through(newTestSessions(t, cfg, names), rs, 1)
			if got := lastRows(rows); len(got) != 2 || got[0].ObserversTotal != 2 || got[0].Records != 2 {
				t.Errorf("%+v, want one session of two observers and another", got)
			}
		})
	}
}

// TestSessionsCloud: while logs of clouds come in, what is as late as they are is not.
func TestSessionsCloud(t *testing.T) {
	names := flow.NewNames(0)
	aws := func(id uint64, at float64) flow.Record {
		r := told(id, "10.3.0.1", uint16(40000+id), "10.3.0.2", 443, at, at)
		r.Source = flow.SourceAWSVPC
		return r
	}
	rs := []flow.Record{aws(1, 0), told(2, "10.0.0.9", 50000, "10.0.0.2", 445, 800, 801), aws(3, 10), aws(4, 700),
		told(5, "10.0.0.9", 50001, "10.0.0.2", 445, 6000, 6001), told(6, "10.0.0.9", 50002, "10.0.0.2", 445, 5800, 5801)}
	rows, _ := through(newTestSessions(t, DefaultSessionsConfig(), names), rs, 1)
	if last := lastRows(rows); len(last) != 5 { // all but the last, long after the last line of AWS
		t.Errorf("%d sessions, want 5", len(last))
	}
}

func TestDiscredit(t *testing.T) {
	names := flow.NewNames(0)
	v := flow.Verdict{Reason: flow.ReasonWaived, Expected: flow.ExpectAllow, Exception: names.Intern("EX-1"), OthersTotal: 1, Outcome: flow.OutcomePermitted, ValidUntil: 5, Rule: names.Intern("r")}
	Discredit(&v)
	if want := (flow.Verdict{Reason: flow.ReasonUnverified, Missing: flow.DimSource, Rule: names.Intern("r")}); v != want {
		t.Errorf("%+v", v)
	}
	v = flow.Verdict{Reason: flow.ReasonExpired, Expected: flow.ExpectDeny, Exception: names.Intern("EX-1"), Failed: flow.DimService, Outcome: flow.OutcomeEscaped, Confidence: 90}
	Discredit(&v)
	if want := (flow.Verdict{Reason: flow.ReasonDenied, Expected: flow.ExpectDeny, Outcome: flow.OutcomeEscaped, Confidence: 90}); v != want {
		t.Errorf("%+v", v)
	}
}

func TestSessionsConfig(t *testing.T) {
	cfg := DefaultSessionsConfig()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(*SessionsConfig)
		want   string
	}{
		{func(c *SessionsConfig) { c.Idle.UDP = 0 }, "sessions.idle.udp is 0s; write a duration from 1s to 24h0m0s"},
		{func(c *SessionsConfig) { c.Join = time.Hour }, "sessions.join"},
		{func(c *SessionsConfig) { c.AgreeingSessions = 1 }, "sessions.agreeingSessions is 1; write a number from 2 to 32"},
		{func(c *SessionsConfig) { c.NATPools = make([]netip.Prefix, 1) }, "sessions.natPools[0] is no prefix"},
	} {
		cfg := DefaultSessionsConfig()
		c.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
}

// BenchmarkSessions is what an observation costs in a steady state: connections of 30 s of
// many hosts, exported in both directions, by one or three exporters.
func BenchmarkSessions(b *testing.B) {
	for _, observers := range []int{1, 3} {
		b.Run(fmt.Sprintf("observers=%d", observers), func(b *testing.B) {
			names := flow.NewNames(0)
			cfg := DefaultSessionsConfig()
			cfg.MaxSessions = 1 << 20
			x := newTestSessions(b, cfg, names)
			rng := rand.New(rand.NewPCG(1, 1))
			// 1,000 observations a second of event time.
			batch := flow.NewBatch(1000, nil)
			second, n := 0, 0
			fill := func() {
				batch.Reset()
				for len(batch.Records) < 1000 {
					start := float64(second) + rng.Float64()
					client, server := flow.AddrFrom4(0x0a000000|rng.Uint32N(5000)), flow.AddrFrom4(0x0a010000|rng.Uint32N(50))
					cport := uint16(32768 + n%28000)
					n++
					for o := range observers {
						for dir := range 2 {
							r := batch.Next()
							*r = flow.Record{ID: uint64(n*8 + o*2 + dir), Start: flow.Time(start*1000) + 1e12, Src: client, Dst: server, SrcPort: cport, DstPort: 443,
								Proto: flow.ProtoTCP, Has: flow.HasStart | flow.HasEnd | flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto | flow.HasBytes | flow.HasPackets | flow.HasTCPFlags,
								BytesRaw: 1000, PacketsRaw: 10, TCPFlags: flow.SYN | flow.ACK, Source: flow.SourceNetFlowV9, SamplingRate: 1, Oriented: flow.Forward, OrientationCertainty: 90}
							r.End = r.Start + 1000
							r.Exporter.Lo = uint64(o)
							if dir == 1 {
								r.Src, r.Dst, r.SrcPort, r.DstPort, r.Oriented = r.Dst, r.Src, r.DstPort, r.SrcPort, flow.Reverse
							}
							r.Verdict = flow.Verdict{Reason: flow.ReasonPermitted, Expected: flow.ExpectAllow}
						}
					}
				}
				second++
			}
			rows := 0
			run := func() {
				x.Observe(batch)
				r, _ := x.Collect()
				rows += len(r)
				x.Edges()
			}
			for range 900 { // until as many sessions end as begin
				fill()
				run()
			}
			rows = 0
			b.ReportAllocs()
			b.ResetTimer()
			done := 0
			for b.Loop() {
				b.StopTimer()
				fill()
				b.StartTimer()
				run()
				done += len(batch.Records)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(done), "ns/observation")
			b.ReportMetric(float64(rows)/float64(done), "rows/observation")
			b.ReportMetric(float64(x.live), "sessions")
			s, err := x.Snapshot()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(len(s))/float64(x.live), "snapshot-B/session")
		})
	}
}

// TestSessionsAllocs: an observation of a session that is held allocates nothing.
func TestSessionsAllocs(t *testing.T) {
	x := newTestSessions(t, DefaultSessionsConfig(), flow.NewNames(0))
	b := batchOf(told(1, "10.0.0.9", 50000, "10.0.0.2", 445, 0, 1), told(2, "10.0.0.2", 445, "10.0.0.9", 50000, 0, 1))
	x.Observe(b)
	if n := testing.AllocsPerRun(100, func() { x.Observe(b) }); n > 0 {
		t.Errorf("%v allocations for two observations of one session", n)
	}
}

// BenchmarkSessionsMerge is an observation of a session that is held, and whose memory is near.
func BenchmarkSessionsMerge(b *testing.B) {
	x := newTestSessions(b, DefaultSessionsConfig(), flow.NewNames(0))
	batch := flow.NewBatch(100, nil)
	for i := range 100 {
		batch.Records = append(batch.Records, told(uint64(i+1), "10.0.0.9", uint16(50000+i%50), "10.0.0.2", 445, 0, 1))
	}
	b.ReportAllocs()
	for b.Loop() {
		x.Observe(batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*100), "ns/observation")
}

// TestSessionsSnapshotKnowsAll: whoever adds a field to what a snapshot holds comes by here.
func TestSessionsSnapshotKnowsAll(t *testing.T) {
	for _, c := range []struct {
		v      any
		fields int
	}{
		// Each counts what coder codes, and what is made anew when it is read: indexes of memory, hashes.
		{sess{}, 25}, {learned{}, 8}, {opening{}, 5}, {statement{}, 3}, {obs{}, 19}, {obsKey{}, 6}, {natLinks{}, 6}, {flow.Verdict{}, 15}, {hostClock{}, 6}, {untoldRoom{}, 3}, {stray{}, 10},
		{informed{}, 4}, {tally{}, 8}, {tallied{}, 12},
	} {
		if n := reflect.TypeOf(c.v).NumField(); n != c.fields {
			t.Errorf("%T has %d fields instead of %d; see that coder writes and reads it whole, and raise sessionsVersion", c.v, n, c.fields)
		}
	}
	rng := rand.New(rand.NewPCG(3, 3))
	names := flow.NewNames(0)
	var v flow.Verdict
	for f, value := range reflect.ValueOf(&v).Elem().Fields() {
		switch value.Kind() {
		case reflect.Array:
			for i := range value.Len() {
				value.Index(i).SetUint(uint64(names.Intern(fmt.Sprint("other", i))))
			}
		case reflect.Int64:
			value.SetInt(rng.Int64())
		default:
			value.SetUint(uint64(1 + rng.IntN(100)))
		}
		if f.Type == reflect.TypeFor[flow.Name]() {
			value.SetUint(uint64(names.Intern(f.Name)))
		}
	}
	x := newTestSessions(t, DefaultSessionsConfig(), names)
	r := told(1, "10.0.0.9", 50000, "10.0.0.2", 445, 0, 1)
	r.Verdict = v
	x.Observe(batchOf(r))
	b, err := x.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	st, err := decodeSessions(b, names)
	if err != nil || st.sessions[0].verdict != v {
		t.Errorf("%v: the verdict comes back as\n%+v, was\n%+v", err, st.sessions[0].verdict, v)
	}
}

// TestSessionsSampling is THREATS 25 as far as sessions go: an exporter whose sampling rate
// changes counts as one that samples, and its counts are scaled by each record's own rate.
func TestSessionsSampling(t *testing.T) {
	changing := []flow.Record{told(1, "10.0.0.9", 50000, "10.0.0.2", 445, 0, 1), told(2, "10.0.0.9", 50000, "10.0.0.2", 445, 1, 2)}
	changing[1].SamplingRate = 100
	alone, _ := through(newTestSessions(t, DefaultSessionsConfig(), flow.NewNames(0)), changing, 1)
	if last := lastRows(alone); len(last) != 1 || last[0].Client.Bytes != 1000+2000*100 {
		t.Errorf("%+v", last)
	}
	steady := told(3, "10.0.0.9", 50000, "10.0.0.2", 445, 0, 2)
	steady.Exporter.Lo++
	both, _ := through(newTestSessions(t, DefaultSessionsConfig(), flow.NewNames(0)), append(changing, steady), 1)
	if last := lastRows(both); len(last) != 1 || last[0].Client.Bytes != 3000 {
		t.Errorf("with one that does not sample: %+v", last)
	}
}

// TestSessionsSoak: hostile traffic (translations that chain and circle, clocks that are off,
// records that are late or long) under tiny bounds loses no memory, and what is written ends
// in one last version each.
func TestSessionsSoak(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 11))
	for range 30 {
		names := flow.NewNames(0)
		cfg := DefaultSessionsConfig()
		cfg.MaxSessions, cfg.MaxUnjoined, cfg.MaxHosts = 1+rng.IntN(60), 1+rng.IntN(30), 1+rng.IntN(4)
		cfg.NATPools = []netip.Prefix{netip.MustParsePrefix("10.0.0.3/32")}
		cfg.UpdateEvery = time.Duration(1+rng.IntN(60)) * time.Second
		if rng.IntN(2) == 0 {
			cfg.ClockTolerance = 30 * time.Second
		}
		rs := chatter(rng, names, 600)
		for i := range rs {
			r := &rs[i]
			r.Received = r.End + 1
			switch rng.IntN(8) {
			case 0:
				r.Has |= flow.HasNATSrc | flow.HasNATSrcPort
				r.NATSrc, r.NATSrcPort = flow.AddrFrom4(0x0a000000+rng.Uint32N(6)), uint16(40000+rng.IntN(2))
			case 1:
				r.Has |= flow.HasNATDst
				r.NATDst = flow.AddrFrom4(0x0a000100 + rng.Uint32N(6))
			case 2:
				if r.Reporter != flow.ReporterElsewhere {
					off := flow.Time(rng.IntN(3)-1) * 3_600_000
					r.Start, r.End = r.Start+off, r.End+off
				}
			case 3:
				r.Start -= flow.Time(rng.IntN(1_000_000))
			case 4:
				r.Has &^= flow.HasProto
			case 5:
				r.Has |= flow.HasNATSrc | flow.HasNATSrcPort | flow.HasNATDst | flow.HasNATDstPort
				r.NATSrc, r.NATSrcPort = flow.AddrFrom4(0x0a000000+rng.Uint32N(6)), uint16(40000+rng.IntN(2))
				r.NATDst, r.NATDstPort = flow.AddrFrom4(0x0a000100+rng.Uint32N(6)), uint16(443+rng.IntN(2))
			}
		}
		x := newTestSessions(t, cfg, names)
		var rows []flow.Session
		for part := range slices.Chunk(arriveWithin(rng, rs, cfg.Lateness), 1+rng.IntN(50)) {
			x.Observe(batchOf(part...))
			r, _ := x.Collect()
			rows = append(rows, r...)
			if rng.IntN(10) == 0 {
				b, err := x.Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				x = newTestSessions(t, cfg, names)
				if err := x.Restore(b); err != nil {
					t.Fatal(err)
				}
			}
			if x.live > cfg.MaxSessions || x.strays.live > cfg.MaxUnjoined || len(x.hosts) > cfg.MaxHosts || len(x.agents) > cfg.MaxHosts {
				t.Fatalf("%d sessions, %d strays, %d hosts, %d agents", x.live, x.strays.live, len(x.hosts), len(x.agents))
			}
		}
		r, _ := x.Flush()
		rows = append(rows, r...)
		if x.live != 0 || len(x.chains) != 0 || len(x.freeObs) != len(x.obs) || len(x.free) != len(x.list) {
			t.Fatalf("after the end: %d sessions, %d chains, %d of %d observers free, %d of %d places free", x.live, len(x.chains), len(x.freeObs), len(x.obs), len(x.free), len(x.list))
		}
		written := map[uint64]bool{}
		for i := range rows {
			s := &rows[i]
			written[s.ID] = true
			if s.Into == s.ID {
				t.Errorf("a session is part of itself: %+v", s)
			}
			if s.Into == 0 && (s.Start > s.End || s.Records == 0 || s.ObserversTotal == 0) {
				t.Errorf("an odd row: %+v", s)
			}
		}
		for i := range rows {
			if into := rows[i].Into; into != 0 && !written[into] {
				t.Errorf("a session is part of one that was never written: %+v", rows[i])
			}
		}
	}
}
