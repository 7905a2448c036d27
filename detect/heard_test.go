package detect

import (
	"math/rand/v2"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// someRecords are records of a thousand exporters, some of each in a row as datagrams bring them.
func someRecords(n int) *flow.Batch {
	b := flow.NewBatch(n, nil)
	for i := range n {
		r := b.Next()
		r.Start = base + flow.Time(i)
		r.End = r.Start
		r.Exporter = flow.Addr{Hi: 0, Lo: 0xffff_c0000000 + uint64(i/24%1000)}
		r.Source, r.SamplingRate = flow.SourceIPFIX, 100
	}
	return b
}

// countOf is how many of some findings are of a type.
func countOf(events []*flow.Finding, typ string) (n int) {
	for _, f := range events {
		if f.Type == typ {
			n++
		}
	}
	return n
}

// TestObserveAllocates: counting who is heard costs no allocation a record once it is known.
func TestObserveAllocates(t *testing.T) {
	c := newTestContacts(t)
	b := someRecords(4096)
	c.Observe(b)
	if n := testing.AllocsPerRun(10, func() { c.Observe(b) }); n > 0 {
		t.Errorf("%v allocations a batch, want none", n)
	}
}

// TestSplit: a rule that a cloud enforces and a firewall on premises does not is told of once,
// and points that lean the same way, or are all in clouds, are not.
func TestSplit(t *testing.T) {
	for _, c := range []struct {
		name           string
		a, b           flow.Source
		allowed, wants int
	}{
		{"a cloud stops, the firewall lets through", flow.SourceAWSVPC, flow.SourceIPFIX, 20, 1},
		{"both clouds", flow.SourceAWSVPC, flow.SourceGCPVPC, 20, 0},
		{"both stop", flow.SourceAWSVPC, flow.SourceIPFIX, 0, 0},
	} {
		names := flow.NewNames(0)
		b, err := NewBehaviour(DefaultConfig(), 1, fakePolicy{names: names}, names, nil)
		if err != nil {
			t.Fatal(err)
		}
		minute := uint32(base / minuteMillis)
		minute -= minute % hostWindow
		rule := names.Intern("no-rdp")
		other := RuleHeard{Allowed: uint32(c.allowed), Escaped: uint32(c.allowed)}
		if c.allowed == 0 {
			other = RuleHeard{Denied: 20}
		}
		b.Take(0, &Digest{Until: minuteTime(minute + 2*hostWindow), Observations: Observations{Rules: []Tally[RuleKey, RuleHeard]{
			{RuleKey{At: minute, Rule: rule, Source: c.a}, RuleHeard{Denied: 20}},
			{RuleKey{At: minute, Rule: rule, Source: c.b, Addr: flow.MustParseAddr("192.0.2.1")}, other},
		}}})
		_, events := b.Flush()
		if n := countOf(events, flow.FindingSplit); n != c.wants {
			t.Errorf("%s: %d findings of a split, want %d: %v", c.name, n, c.wants, events)
		}
	}
}

// TestStale: flows of a segment whose source of identities is silent in three minutes of a day are told of once,
// by the segment; twice is nothing, nor is an identity that is unknown for another reason.
func TestStale(t *testing.T) {
	for _, c := range []struct {
		name  string
		n     int
		doubt flow.Doubt
		wants int64 // ends that were not known
	}{
		{"three minutes", 3, flow.DoubtStale, 6},
		{"an hour", 60, flow.DoubtStale, 120},
		{"two minutes", 2, flow.DoubtStale, 0},
		{"nobody says who it is", 60, flow.DoubtGap, 0},
	} {
		names := flow.NewNames(0)
		b, err := NewBehaviour(DefaultConfig(), 1, fakePolicy{names: names}, names, nil)
		if err != nil {
			t.Fatal(err)
		}
		contacts, err := NewContacts(DefaultConfig(), names, nil)
		if err != nil {
			t.Fatal(err)
		}
		batch := flow.NewBatch(1, nil)
		for i := range c.n {
			batch.Reset()
			for range 2 {
				r := batch.Next()
				r.Start = base + flow.Time(i)*minuteMillis
				r.End, r.Source, r.Exporter = r.Start, flow.SourceIPFIX, flow.MustParseAddr("192.0.2.1")
				r.SrcDoubt, r.SrcSegment = c.doubt, names.Intern("office")
			}
			contacts.Observe(batch)
			d := contacts.Collect(base + flow.Time(i)*minuteMillis)
			b.Take(0, &d)
		}
		d := contacts.Collect(maxTime)
		b.Take(0, &d)
		_, events := b.Flush()
		var got int64
		for _, f := range events {
			if f.Type == flow.FindingStale {
				if got += f.Count; f.SrcSegment != "office" || f.Sentence == "" {
					t.Errorf("%s: %+v", c.name, f)
				}
			}
		}
		if got != c.wants {
			t.Errorf("%s: findings of stale identities count %d, want %d", c.name, got, c.wants)
		}
		if spots := b.BlindSpots(true); len(spots) != 1 && c.doubt == flow.DoubtStale || len(spots) != 0 && c.doubt != flow.DoubtStale {
			t.Errorf("%s: blind spots %+v", c.name, spots)
		} else if len(spots) == 1 && (spots[0].Segment != "office" || spots[0].Subject != flow.BlindSegment || spots[0].Until-spots[0].From != flow.Time(c.n)*minuteMillis) {
			t.Errorf("%s: blind spot %+v", c.name, spots[0])
		}
	}
}

// TestBlind: what a finding says is not seen is a blind spot for whoever asks, and no other time is.
func TestBlind(t *testing.T) {
	names := flow.NewNames(0)
	b, err := NewBehaviour(DefaultConfig(), 1, fakePolicy{names: names}, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	exporter, minute := flow.MustParseAddr("192.0.2.1"), uint32(base/minuteMillis)
	var heard []Tally[HeardKey, Heard]
	last := uint32(30 * 60)
	for m := range last {
		heard = append(heard, Tally[HeardKey, Heard]{HeardKey{At: minute + m, Addr: exporter, Source: flow.SourceIPFIX}, Heard{Records: 1}})
	}
	b.Take(0, &Digest{Until: minuteTime(minute + last + 60), Observations: Observations{Heard: heard}})
	silent := minuteTime(minute + last)
	for _, c := range []struct {
		about       flow.Addr
		from, until flow.Time
		want        bool
	}{
		{exporter, silent + minuteMillis, silent + 2*minuteMillis, true},
		{exporter, silent - hourMillis, silent, false},
		{exporter, silent - hourMillis, silent + 1, true},
		{flow.MustParseAddr("192.0.2.2"), silent, silent + hourMillis, false},
	} {
		if got := b.spots.during(c.from, c.until, func(n *spot) bool { return n.Address == c.about }) > 0; got != c.want {
			t.Errorf("blind of %v from %v to %v is %v, want %v", c.about, c.from, c.until, got, c.want)
		}
	}
	spots := b.BlindSpots(false)
	if len(spots) != 1 || spots[0].From != silent || spots[0].Until != 0 || spots[0].Finding == "" {
		t.Errorf("blind spots %+v, want one that began at %v and is not over", spots, silent)
	}
	if again := b.BlindSpots(false); len(again) != 0 {
		t.Errorf("told again: %+v", again)
	}
}

func BenchmarkContactsObserve(b *testing.B) {
	c := newTestContacts(b)
	batch := someRecords(4096)
	c.Observe(batch)
	b.ReportAllocs()
	for b.Loop() {
		c.Observe(batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/4096, "ns/record")
}

// TestHeardOnceAWindow: an end is counted once for each edge and ten minutes, as told of by its own
// agent and as not told of, whatever comes between, and a restart does not count it again.
func TestHeardOnceAWindow(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	type edge struct {
		client, server flow.Addr
		port           uint16
	}
	for _, restarts := range []bool{false, true} {
		c := newTestContacts(t)
		agent, segment := c.names.Intern("agent"), c.names.Intern("hosts")
		want := map[HostKey]HostHeard{}
		counted := map[edge]map[HostKey][2]bool{} // told, untold
		took := 0
		for i := range 4000 {
			at := base + flow.Time(i)*2500
			s := flow.Session{ID: uint64(i) + 1, Proto: flow.ProtoTCP, HasPorts: true, Start: at - 20_000, End: at - 19_000, Settled: at, Answered: at - 19_999,
				OrientationCertainty: 100, Records: 1, ObserversTotal: 2}
			e := edge{v4(1 + rng.IntN(3)), v4(256 + rng.IntN(3)), uint16(8000 + rng.IntN(3))}
			s.Client, s.Server = flow.SessionEnd{Addr: e.client, Port: 40_000, Segment: segment}, flow.SessionEnd{Addr: e.server, Port: e.port, Segment: segment}
			for side, end := range [...]*flow.SessionEnd{&s.Client, &s.Server} {
				k := HostKey{At: uint32(at/minuteMillis) / hostWindow * hostWindow, Addr: end.Addr, Segment: segment}
				if end.Own = rng.IntN(20) == 0; end.Own {
					s.Observers[side] = flow.SessionObserver{Observer: agent, Source: flow.SourceSysmon, Reporter: flow.Reporter(side + 1)}
					k.Agent, k.Source = agent, flow.SourceSysmon
				}
				if counted[e] == nil {
					counted[e] = map[HostKey][2]bool{}
				}
				way := 1
				if end.Own {
					way = 0
				}
				ways := counted[e][k]
				if ways[way] {
					continue
				}
				ways[way] = true
				counted[e][k] = ways
				took++
				n := want[k]
				if end.Own {
					n.Told[side]++
				} else {
					n.Untold[side]++
				}
				want[k] = n
			}
			takeIn(c, []flow.Session{s}, nil)
			if restarts && i%97 == 0 {
				b, err := c.Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				names := c.names
				c = newTestContacts(t)
				c.names = names
				c.reset()
				if err := c.Restore(b); err != nil {
					t.Fatal(err)
				}
			}
		}
		got := map[HostKey]HostHeard{}
		for _, h := range c.hearing.hosts.list() {
			got[h.Key] = h.N
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("restarts %v: (-want +got)\n%s", restarts, diff)
		}
		if took > 4000 {
			t.Errorf("%d of 8,000 ends counted: it would not show that most are not", took)
		}
	}
}

// TestEdgeSlotSeen: what is beside the minute of an edge stays as long as it is true.
func TestEdgeSlotSeen(t *testing.T) {
	var s edgeSlot
	s.touch(1007)
	s.counted(5, 1007)
	s.seen |= edgeFollowed | edgeShut
	s.touch(1009)
	if s.minute() != 1009 || s.uncounted(15, 1009) != 10 {
		t.Errorf("in the same window: minute %d, %b uncounted", s.minute(), s.uncounted(15, 1009))
	}
	if s.uncounted(15, 1010) != 15 || s.uncounted(15, 999) != 15 {
		t.Error("in other windows all is uncounted")
	}
	s.counted(8, 999) // late: of a window that is not the edge's any more
	s.touch(1003)
	if s.minute() != 1009 || s.uncounted(15, 1009) != 10 {
		t.Errorf("by what is late: minute %d, %b uncounted", s.minute(), s.uncounted(15, 1009))
	}
	s.touch(1010)
	if s.minute() != 1010 || s.uncounted(15, 1010) != 15 || s.seen&edgeKeeps != edgeKeeps {
		t.Errorf("in the next window: minute %d, %b uncounted, %x", s.minute(), s.uncounted(15, 1010), s.seen)
	}
	s.touch(1<<32 - 1)
	if s.minute() != 1<<minuteBits-1 || s.seen&edgeKeeps != edgeKeeps {
		t.Errorf("at the end of time: %x", s.seen)
	}
}

// TestSilentOfTwoAgents: a host with agents of two formats, which spell its name in two ways, is
// silent once both are, and not before.
func TestSilentOfTwoAgents(t *testing.T) {
	for _, c := range []struct {
		name   string
		spelt  [2]string
		second bool // the second goes on
		wants  int
	}{
		{"both", [2]string{"ws1", "WS1.corp.example"}, false, 1},
		{"both, of one name", [2]string{"ws1", "ws1"}, false, 1},
		{"one", [2]string{"ws1", "WS1.corp.example"}, true, 0},
		{"two hosts in turn", [2]string{"ws1", "ws2"}, false, 0},
	} {
		names := flow.NewNames(0)
		cfg := DefaultConfig()
		cfg.Behaviour.Blind.History = 6 * time.Hour
		b, err := NewBehaviour(cfg, 1, fakePolicy{names: names}, names, nil)
		if err != nil {
			t.Fatal(err)
		}
		first := uint32(base/minuteMillis) / hostWindow * hostWindow
		key := func(i, k int) HostKey {
			return HostKey{At: first + uint32(i)*hostWindow, Addr: flow.MustParseAddr("10.0.0.9"), Agent: names.Intern(c.spelt[k]),
				Source: [...]flow.Source{flow.SourceSysmon, flow.SourceWFP}[k], Segment: names.Intern("farm")}
		}
		const day, silent = 6 * 24, 6 * 12 // windows
		for i := range day + silent {
			var hosts []Tally[HostKey, HostHeard]
			for k := range 2 {
				if i < day && (k == 0 || i%2 == 0) || k == 1 && c.second {
					hosts = append(hosts, Tally[HostKey, HostHeard]{key(i, k), HostHeard{Told: [2]uint32{0, 5}}})
				}
			}
			if i >= day {
				k := key(i, 0)
				k.Agent, k.Source = flow.NoName, 0
				hosts = append(hosts, Tally[HostKey, HostHeard]{k, HostHeard{Untold: [2]uint32{0, 5}}})
			}
			b.Take(0, &Digest{Until: minuteTime(first + uint32(i+2)*hostWindow), Observations: Observations{Hosts: hosts}})
		}
		_, events := b.Flush()
		if told := countOf(events, flow.FindingSilentHost); told != c.wants {
			t.Errorf("%s: %d findings that the host is silent, want %d", c.name, told, c.wants)
		}
	}
}

// requiring is a policy that asks for an agent everywhere.
type requiring struct{ fakePolicy }

func (requiring) AgentRequired(flow.Time, flow.Name) bool { return true }

// TestAgentWithoutName: a host whose agent does not say what it calls itself has one, though others
// see sessions that it does not tell of; one of which none tells has none.
func TestAgentWithoutName(t *testing.T) {
	for source, want := range map[flow.Source]int{flow.SourceOCSF: 0, 0: 1} {
		names := flow.NewNames(0)
		b, err := NewBehaviour(DefaultConfig(), 1, requiring{fakePolicy{names: names}}, names, nil)
		if err != nil {
			t.Fatal(err)
		}
		first := uint32(base/minuteMillis) / hostWindow * hostWindow
		for i := range uint32(12) {
			k := HostKey{At: first + i*hostWindow, Addr: flow.MustParseAddr("10.0.0.9"), Segment: names.Intern("farm")}
			hosts := []Tally[HostKey, HostHeard]{{k, HostHeard{Untold: [2]uint32{0, 5}}}}
			if source != 0 && i == 0 {
				k.Source = source
				hosts = append(hosts, Tally[HostKey, HostHeard]{k, HostHeard{Told: [2]uint32{0, 5}}})
			}
			b.Take(0, &Digest{Until: minuteTime(k.At + 2*hostWindow), Observations: Observations{Hosts: hosts}})
		}
		_, events := b.Flush()
		if missing := countOf(events, flow.FindingAgentMissing); missing != want {
			t.Errorf("an agent of source %v: %d findings that agents are missing, want %d", source, missing, want)
		}
	}
}
