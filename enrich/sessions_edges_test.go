package enrich

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern/postern/flow"
)

// edgeHour is a row of the roll-up as somebody reads it.
type edgeHour struct {
	Hour flow.Time
	flow.EdgeKey
}

type edgeSums struct {
	Sessions, Answered, Live                               int64
	ClientBytes, ClientPackets, ServerBytes, ServerPackets uint64
	First, Last                                            flow.Time // of what is over
}

// rolledUp adds contributions up as the table does.
func rolledUp(t testing.TB, edges []flow.EdgeContribution) map[edgeHour]edgeSums {
	t.Helper()
	out := map[edgeHour]edgeSums{}
	for i := range edges {
		e := &edges[i]
		k := edgeHour{e.Hour, e.EdgeKey}
		s := out[k]
		s.Sessions, s.Answered, s.Live = s.Sessions+int64(e.Sessions), s.Answered+int64(e.Answered), s.Live+int64(e.Live)
		s.ClientBytes, s.ClientPackets = s.ClientBytes+uint64(e.ClientBytes), s.ClientPackets+uint64(e.ClientPackets)
		s.ServerBytes, s.ServerPackets = s.ServerBytes+uint64(e.ServerBytes), s.ServerPackets+uint64(e.ServerPackets)
		if e.Over {
			if s.First == 0 || e.First < s.First {
				s.First = e.First
			}
			s.Last = max(s.Last, e.Last)
		}
		out[k] = s
	}
	for k, s := range out {
		if s.Sessions == 0 {
			s.First, s.Last = 0, 0
			if s != (edgeSums{}) {
				t.Errorf("of an edge without sessions is left %+v: %+v", s, k)
			}
			delete(out, k)
		}
	}
	return out
}

// countedOf counts the last rows of sessions by what they show, without what Sessions makes
// contributions of.
func countedOf(last []flow.Session) map[edgeHour]edgeSums {
	out := map[edgeHour]edgeSums{}
	for i := range last {
		r := &last[i]
		v := &r.Verdict
		k := edgeHour{flow.TimeOf(r.Began.Std().Truncate(time.Hour)), flow.EdgeKey{Client: r.Client.Addr, Server: r.Server.Addr, Proto: r.Proto,
			ICMPType: r.ICMPType, ICMPCode: r.ICMPCode, HasPorts: r.HasPorts, HasICMP: r.HasICMP, Open: r.Open,
			ClientSegment: r.Client.Segment, ServerSegment: r.Server.Segment, ClientWorkload: r.Client.Workload, ServerWorkload: r.Server.Workload,
			ClientIdentity: r.Client.Identity, ServerIdentity: r.Server.Identity,
			Rule: v.Rule, Exception: v.Exception, Expected: v.Expected, Staged: v.Staged, Reason: v.Reason, Observed: v.Observed, Outcome: v.Outcome}}
		if !r.Open {
			k.ServerPort = r.Server.Port
		}
		s := out[k]
		s.Sessions++
		if r.BothWays {
			s.Answered++
		}
		s.ClientBytes, s.ClientPackets = s.ClientBytes+r.Client.Bytes, s.ClientPackets+r.Client.Packets
		s.ServerBytes, s.ServerPackets = s.ServerBytes+r.Server.Bytes, s.ServerPackets+r.Server.Packets
		if s.First == 0 || r.Start < s.First {
			s.First = r.Start
		}
		s.Last = max(s.Last, r.End)
		out[k] = s
	}
	return out
}

// counting runs records through and takes what comes of them, as a service does.
type counting struct {
	testing.TB
	x     *Sessions
	rows  []flow.Session
	edges []flow.EdgeContribution
}

func (c *counting) collect() {
	rows, _ := c.x.Collect()
	c.take(rows)
}

// lists are those of an index, whose memory is used again.
func lists(x *flow.Index) [4]string {
	return [...]string{fmt.Sprint(x.First), fmt.Sprint(x.Mappers), fmt.Sprint(x.Blocked), fmt.Sprint(x.Over)}
}

func (c *counting) take(rows []flow.Session) {
	c.Helper()
	edges := c.x.Edges()
	if got, want := c.x.Index(), flow.IndexOf(rows, edges); lists(got) != lists(&want) {
		c.Errorf("the index of %d rows and %d contributions is\n%+v, want\n%+v", len(rows), len(edges), *got, want)
	}
	c.rows, c.edges = append(c.rows, rows...), append(c.edges, edges...)
	waiting := 0
	for _, i := range c.x.chains {
		for ; i >= 0; i = c.x.list[i].next {
			if s := &c.x.list[i]; s.stored && !s.tally.counted {
				waiting++
			}
		}
	}
	m := c.x.m
	if first, back := testutil.ToFloat64(m.first), testutil.ToFloat64(m.takenBack); first+back !=
		testutil.ToFloat64(m.counted)+testutil.ToFloat64(m.superseded)+float64(waiting) || c.x.uncounted != waiting {
		c.Fatalf("%v sessions written first, %v taken back; %v counted, %v part of others, %d of %d wait: that is no sum",
			first, back, testutil.ToFloat64(m.counted), testutil.ToFloat64(m.superseded), c.x.uncounted, waiting)
	}
}

// restarted is the state read again from a snapshot.
func (c *counting) restarted() {
	c.Helper()
	b, err := c.x.Snapshot()
	if err != nil {
		c.Fatal(err)
	}
	cfg := c.x.cfg
	c.x = newTestSessions(c, cfg, c.x.names)
	if err := c.x.Restore(b); err != nil {
		c.Fatal(err)
	}
}

// TestEdges: whatever the order of arrival, the batches and the restarts, the contributions add
// up to the same roll-up, which is the one that the last rows of the sessions give; on the way
// there it holds all that was written but for what is not over.
func TestEdges(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 12))
	total, moved, longest := 0, 0, 0
	for round := range 20 {
		cfg := DefaultSessionsConfig()
		cfg.Idle = SessionIdleConfig{TCP: time.Duration(1+rng.IntN(200)) * time.Second, UDP: 15 * time.Second, ICMP: time.Second, Other: time.Second}
		cfg.UpdateEvery = time.Duration(1+rng.IntN(120)) * time.Second
		cfg.AgreeingSessions = maxVotes / 2 // clocks are right here; where chance finds another, the order decides when
		names := flow.NewNames(0)
		rs := chatter(rng, names, 300)
		var first map[edgeHour]edgeSums
		for turn := range 4 {
			c := &counting{TB: t, x: newTestSessions(t, cfg, names)}
			for part := range slices.Chunk(arriveWithin(rng, rs, cfg.Lateness), 1+rng.IntN(40)) {
				c.x.Observe(batchOf(part...))
				c.collect()
				if rng.IntN(5) == 0 {
					c.restarted()
				}
			}
			rows, _ := c.x.Flush()
			c.take(rows)
			last := lastRows(c.rows)
			got, want := rolledUp(t, c.edges), countedOf(last)
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Fatalf("round %d, turn %d: the roll-up is not that of the sessions (-sessions +roll-up):\n%s", round, turn, diff)
			}
			if turn == 0 {
				first = got
			} else if diff := gocmp.Diff(first, got); diff != "" {
				t.Fatalf("round %d: another order gives another roll-up:\n%s", round, diff)
			}
			total += len(last)
			longest = max(longest, len(c.edges)-len(last))
			for i := range c.edges {
				if c.edges[i].Sessions < 0 {
					moved++
				}
			}
		}
	}
	t.Logf("%d sessions counted, %d moved or taken back", total, moved)
	if moved == 0 || longest == 0 {
		t.Error("no session was counted before it was over and moved; the test would not show that it can be")
	}
}

// TestEdgesHostile: under bounds that bite, translations that circle and clocks that are off,
// the roll-up is still that of the rows.
func TestEdgesHostile(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 13))
	anew := 0
	for round := range 60 {
		names := flow.NewNames(0)
		cfg := DefaultSessionsConfig()
		cfg.MaxSessions, cfg.MaxUnjoined, cfg.MaxHosts = 10+rng.IntN(60), 1+rng.IntN(30), 1+rng.IntN(4)
		cfg.NATPools = []netip.Prefix{netip.MustParsePrefix("10.0.0.3/32")}
		cfg.UpdateEvery = time.Duration(1+rng.IntN(60)) * time.Second
		cfg.AgreeingSessions = 2
		rs := chatter(rng, names, 600)
		for i := range rs {
			r := &rs[i]
			switch rng.IntN(6) {
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
			}
		}
		c := &counting{TB: t, x: newTestSessions(t, cfg, names)}
		for part := range slices.Chunk(arriveWithin(rng, rs, cfg.Lateness), 1+rng.IntN(50)) {
			c.x.Observe(batchOf(part...))
			c.collect()
			if rng.IntN(10) == 0 {
				c.restarted()
			}
			if rng.IntN(20) == 0 { // with fewer places than there are sessions
				c.x.cfg.MaxSessions = max(1, c.x.live/2)
				c.restarted()
				if c.x.live > c.x.cfg.MaxSessions {
					t.Fatalf("%d sessions held after a restart, at most %d may be", c.x.live, c.x.cfg.MaxSessions)
				}
				c.x.cfg.MaxSessions = cfg.MaxSessions
			}
		}
		rows, _ := c.x.Flush()
		c.take(rows)
		if begunAnew(c.rows) {
			anew++
			continue
		}
		got, want := rolledUp(t, c.edges), countedOf(lastRows(c.rows))
		for _, m := range []map[edgeHour]edgeSums{got, want} {
			for k, s := range m { // a clock found to be off after the end leaves its times behind
				s.First, s.Last = 0, 0
				m[k] = s
			}
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Fatalf("round %d: the roll-up is not that of the sessions (-sessions +roll-up):\n%s", round, diff)
		}
	}
	if t.Logf("%d of 60 rounds had a session that was begun anew", anew); anew > 20 {
		t.Errorf("%d of 60 rounds show nothing", anew)
	}
}

// begunAnew says whether a session was forgotten before its time and another took its id: two
// that began at one millisecond. The rows of the one then replace those of the other, and the
// roll-up counts both.
func begunAnew(rows []flow.Session) bool {
	first := map[uint64]bool{}
	for i := range rows {
		if r := &rows[i]; r.Settled != 0 {
			if first[r.ID] {
				return true
			}
			first[r.ID] = true
		}
	}
	return false
}

// TestEdgesDivide: what was counted goes with the session that it was counted of.
func TestEdgesDivide(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 14))
	cfg := DefaultSessionsConfig()
	cfg.UpdateEvery = 5 * time.Second
	for round := range 20 {
		names := flow.NewNames(0)
		rs := arriveWithin(rng, chatter(rng, names, 200), cfg.Lateness)
		before, after := make([]*counting, 1+rng.IntN(3)), make([]*counting, 2+rng.IntN(4))
		var snapshots [][]byte
		for i := range before {
			before[i] = &counting{TB: t, x: newTestSessions(t, cfg, names)}
		}
		for _, r := range rs[:100] {
			before[spread(len(before))(r.Src, r.Dst)].x.Observe(batchOf(r))
		}
		var rows []flow.Session
		var edges []flow.EdgeContribution
		for _, c := range before {
			c.collect()
			rows, edges = append(rows, c.rows...), append(edges, c.edges...)
			b, err := c.x.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			snapshots = append(snapshots, b)
		}
		divided, err := DivideSessions(snapshots, len(after), spread(len(after)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range after {
			after[i] = &counting{TB: t, x: newTestSessions(t, cfg, names)}
			if err := after[i].x.Restore(divided[i]); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range rs[100:] {
			after[spread(len(after))(r.Src, r.Dst)].x.Observe(batchOf(r))
		}
		for _, c := range after {
			r, _ := c.x.Flush()
			c.take(r)
			rows, edges = append(rows, c.rows...), append(edges, c.edges...)
		}
		if diff := gocmp.Diff(countedOf(lastRows(rows)), rolledUp(t, edges)); diff != "" {
			t.Fatalf("round %d: the roll-up is not that of the sessions (-sessions +roll-up):\n%s", round, diff)
		}
	}
}

// TestEdgesOfOne follows one long connection: it is counted with its second row, what comes
// later is a difference, and what decides otherwise moves it.
func TestEdgesOfOne(t *testing.T) {
	names := flow.NewNames(0)
	c := &counting{TB: t, x: newTestSessions(t, DefaultSessionsConfig(), names)}
	record := func(minute float64, observed flow.Observed) {
		r := told(uint64(minute)+1, "10.0.0.9", 50000, "10.0.0.2", 445, minute*60, minute*60+50)
		r.BytesRaw = 1000
		r.Verdict = flow.Verdict{Reason: flow.ReasonDenied, Expected: flow.ExpectDeny, Observed: observed}
		r.Enforced = observed
		c.x.Observe(batchOf(r))
		c.collect()
	}
	var said []string
	say := func() {
		for _, e := range c.edges {
			said = append(said, fmt.Sprintf("%d %d %d %s %v", e.Sessions, e.Live, e.ClientBytes, e.Outcome, e.Over))
		}
		c.edges = nil
	}
	for minute := range 40 {
		observed := flow.ObservedAllow
		if minute >= 20 {
			observed = flow.ObservedDeny
		}
		record(float64(minute), observed)
		say()
	}
	rows, _ := c.x.Flush()
	c.take(rows)
	say()
	want := []string{"1 1 13000 escaped false", "-1 -1 -13000 escaped false", "1 1 23000 blocked false", "0 0 10000 blocked false", "0 0 7000 blocked false", "0 -1 0 blocked true"}
	if !slices.Equal(said, want) {
		t.Errorf("%q, want %q", said, want)
	}
}

// TestEdgesClockOffset: a host's clock is found to be off after its sessions are over and
// counted. They are part of others then, and no longer counted.
func TestEdgesClockOffset(t *testing.T) {
	names := flow.NewNames(0)
	cfg := DefaultSessionsConfig()
	cfg.Idle.TCP = 5 * time.Minute // until five sessions agree
	c := &counting{TB: t, x: newTestSessions(t, cfg, names)}
	const n = 40
	for i := range n { // the host's clock is an hour behind, the exporter's records follow
		at := float64(i * 30)
		c.x.Observe(batchOf(hostTold(names, uint64(i+1000), "slow", flow.ReporterSource, "10.0.0.9", uint16(50000+i), "10.0.0.2", 445, at)))
		c.collect()
	}
	c.x.Tick(1e12 + 3_500_000)
	c.collect()
	if got := rolledUp(t, c.edges); len(got) == 0 {
		t.Fatal("the host's sessions are not counted before; the test shows nothing")
	}
	c.restarted()
	for i := range n {
		at := 3600 + float64(i*30)
		c.x.Observe(batchOf(told(uint64(i+1), "10.0.0.9", uint16(50000+i), "10.0.0.2", 445, at, at+1)))
		c.collect()
	}
	rows, _ := c.x.Flush()
	c.take(rows)
	sessions := int64(0)
	for _, s := range rolledUp(t, c.edges) {
		sessions += s.Sessions
	}
	if last := lastRows(c.rows); len(last) != n || sessions != n {
		t.Errorf("%d sessions are told twice; %d stand, %d are counted", n, len(last), sessions)
	}
}
