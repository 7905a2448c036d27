package detect

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/postern/postern/flow"
)

// v4 is an address of 10.0.0.0/8.
func v4(n int) flow.Addr {
	return flow.MustParseAddr(fmt.Sprintf("10.%d.%d.%d", n>>16&255, n>>8&255, n&255))
}

// reached is a session that settled n seconds after the tests' time began.
func reached(client, server flow.Addr, port uint16, n float64, answered bool) flow.Session {
	s := flow.Session{Began: at(n), Start: at(n), End: at(n + 1), Settled: at(n + 20), Proto: flow.ProtoTCP, HasPorts: true,
		Client:         flow.SessionEnd{Addr: client, Port: 50000, TCPFlags: flow.SYN, Packets: 3, HasPackets: true},
		Server:         flow.SessionEnd{Addr: server, Port: port},
		ObserversTotal: 1, Observers: [flow.MaxObservers]flow.SessionObserver{{Exporter: flow.MustParseAddr("192.0.2.1")}},
		OrientationCertainty: 98}
	if answered {
		s.Answered, s.BothWays = at(n+0.1), true
		s.Client.TCPFlags, s.Server.TCPFlags = flow.SYN|flow.ACK|flow.PSH, flow.SYN|flow.ACK|flow.PSH
	}
	c := flow.Conversation{Low: client, High: server, LowPort: 50000, HighPort: port, Proto: s.Proto}
	s.Conversation = c.ID()
	s.ID = flow.SessionID(s.Conversation, s.Began)
	return s
}

// TestEdgeTableFairness floods the table from one prefix and sees that others lose nothing, that
// edges between segments are the last to go, and that the flooder is named (THREATS 34).
func TestEdgeTableFairness(t *testing.T) {
	const most = 1 << 14
	table := newEdgeTable(most)
	type edge struct {
		hash   uint64
		prefix flow.Addr
		flags  uint16
	}
	var others []edge
	add := func(e edge, minute uint32) (lost []loss) {
		s, _, lost := table.use(e.hash, e.prefix, minute)
		s.flags |= e.flags
		s.touch(minute)
		return lost
	}
	// Old ones: 20 prefixes with 100 unanswered edges each, 2000 within a segment, 2000 between segments.
	for p := range 20 {
		for i := range 100 {
			others = append(others, edge{hashEdge(v4(p<<8), v4(i), 7), prefixOf(v4(p << 8)), edgeFailed})
		}
	}
	for i := range 2000 {
		others = append(others, edge{hashEdge(v4(1<<16), v4(i), 8), prefixOf(v4(i)), edgeAnswered},
			edge{hashEdge(v4(2<<16), v4(i), 9), prefixOf(v4(i)), edgeAnswered | edgeCross})
	}
	for _, e := range others {
		add(e, 100)
	}
	flooder := flow.MustParseAddr("10.200.1.0")
	said := map[loss]bool{}
	for i := range 10 * most {
		for _, l := range add(edge{hashEdge(v4(200<<16|1<<8|i&255), v4(i), 7), flooder, edgeFailed}, 1000+uint32(i/100)) {
			said[loss{rank: l.rank, prefix: l.prefix}] = true
		}
		if table.n > most {
			t.Fatalf("%d edges are held; at most %d may be", table.n, most)
		}
	}
	for i, e := range others {
		if s := table.at(e.hash); s.hash == 0 {
			t.Fatalf("edge %d (flags %b) of another prefix was forgotten for the flooder's", i, e.flags)
		}
	}
	if diff := cmp.Diff(map[loss]bool{{rank: 0, prefix: flooder}: true}, said, cmp.AllowUnexported(loss{})); diff != "" {
		t.Errorf("who pushed edges out (-want +got):\n%s", diff)
	}
	// Sources all over: now the unanswered of all go, and nothing that was answered.
	for i := range 10 * most {
		add(edge{hashEdge(v4(i*977), v4(3), 7), prefixOf(v4(i * 977)), edgeFailed}, 3000)
	}
	for i, e := range others {
		if s := table.at(e.hash); s.hash == 0 && e.flags&edgeAnswered != 0 {
			t.Fatalf("edge %d was answered and was forgotten for others that were not", i)
		}
	}
	// Answered ones within segments: those between segments stay.
	for i := range 10 * most {
		add(edge{hashEdge(v4(i*977), v4(4), 7), prefixOf(v4(i * 977)), edgeAnswered}, 4000)
	}
	for i, e := range others {
		if s := table.at(e.hash); s.hash == 0 && e.flags&edgeCross != 0 {
			t.Fatalf("edge %d is between segments and was forgotten for others that are not", i)
		}
	}
}

// TestEdgeTableRestart: what is forgotten does not hang on where in the table it lies, nor on a
// restart in between.
func TestEdgeTableRestart(t *testing.T) {
	held := func(restart int) (list map[uint64]uint32, forgotten uint64) {
		table := newEdgeTable(1024)
		rnd := rand.New(rand.NewPCG(1, 2))
		for i := range 6000 {
			client := v4(rnd.IntN(40) << 8)
			s, _, _ := table.use(hashEdge(client, v4(rnd.IntN(3000)), 1), prefixOf(client), uint32(1000+i))
			s.flags |= [...]uint16{edgeFailed, edgeAnswered, edgeAnswered | edgeCross}[rnd.IntN(3)]
			s.touch(uint32(1000 + i))
			if restart > 0 && i%restart == 0 {
				again := newEdgeTable(1024)
				if rest, err := again.read(table.appendTo(nil)); err != nil || len(rest) != 0 {
					t.Fatalf("reading the table: %v, %d bytes left", err, len(rest))
				}
				table = again
			}
		}
		list = map[uint64]uint32{}
		for _, s := range table.slots {
			if s.hash != 0 {
				list[s.hash] = s.minute()
			}
		}
		return list, table.forgotten
	}
	want, forgotten := held(0)
	if forgotten == 0 {
		t.Fatal("nothing was forgotten")
	}
	for _, restart := range []int{1, 7, 500} {
		got, n := held(restart)
		if diff := cmp.Diff(want, got); diff != "" || n != forgotten {
			t.Fatalf("with a restart every %d edges %d were forgotten, without %d (-want +got):\n%s", restart, n, forgotten, diff)
		}
	}
}

// TestHostsOnTrial: sources and targets of what came to nothing take no place from hosts that
// exist, and become hosts like others once they reach somebody.
func TestHostsOnTrial(t *testing.T) {
	h := newHosts(1024)
	end := func(n int) *flow.SessionEnd { return &flow.SessionEnd{Addr: v4(n)} }
	gone := 0
	forget := func(int32) { gone++ }
	for i := range 900 {
		h.of(end(i), hostReal, at(float64(i)), forget)
	}
	var lost lostHosts
	take := func(i int, kind hostKind, n float64) {
		_, l := h.of(end(i), kind, at(n), forget)
		for k := range l {
			lost[k] += l[k]
		}
		if len(h.list)-len(h.free) > 1024 {
			t.Fatalf("%d hosts held", len(h.list)-len(h.free))
		}
	}
	for i := range 5000 {
		take(1<<16|i, hostTried, 1000+float64(i))
		take(2<<16|i, hostTarget, 1000+float64(i))
	}
	for i := range 900 {
		if _, known := h.byAddr[v4(i)]; !known {
			t.Fatalf("host %d exists and was forgotten for one that does not", i)
		}
	}
	if lost[hostReal] != 0 || lost[hostTarget] < 4800 || gone != lost[hostTarget]+lost[hostTried] {
		t.Errorf("forgotten: %v, told of %d", lost, gone)
	}
	if h.faint > 128 || h.faint < 16 {
		t.Errorf("%d hosts are on trial; at most 128 may be", h.faint)
	}
	// The newest that tried was kept; it reaches somebody now and stays, whatever else is tried.
	take(1<<16|4999, hostReal, 7000)
	for i := range 5000 {
		take(3<<16|i, hostTried, 8000+float64(i))
	}
	if _, known := h.byAddr[v4(1<<16|4999)]; !known {
		t.Error("a host that reached another was forgotten as if it were on trial")
	}
	n := 0
	for i := range h.list {
		if h.list[i].Held && h.list[i].Kind != hostReal {
			n++
		}
	}
	if n != h.faint {
		t.Errorf("%d are on trial and %d counted", n, h.faint)
	}
}

// TestStatePressure drives real bounds until they bite, and sees what is told: once a bound and day, by
// any cuts and over restarts the same, through digests as they travel.
func TestStatePressure(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Behaviour.MaxEdges, cfg.Behaviour.MaxHosts = 1024, 1024
	names := flow.NewNames(0)
	run := func(cut int, restart bool) []string {
		c, err := NewContacts(cfg, flow.NewNames(0), nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := NewBehaviour(cfg, 1, nil, names, nil)
		if err != nil {
			t.Fatal(err)
		}
		last := map[string]*flow.Finding{}
		take := func(contributions []flow.Contribution, _ []*flow.Finding) {
			for _, x := range contributions {
				last[x.Finding.ID] = x.Finding
			}
		}
		var batch []flow.Session
		hand := func(until flow.Time) {
			takeIn(c, batch, nil)
			batch = nil
			d := c.Collect(until)
			d2, err := DecodeDigest(d.Encode(names), names)
			if err != nil {
				t.Fatal(err)
			}
			b.Take(0, d2)
			take(b.Collect())
			if !restart {
				return
			}
			for _, s := range []interface {
				Snapshot() ([]byte, error)
				Restore([]byte) error
			}{c, b} {
				state, err := s.Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Restore(state); err != nil {
					t.Fatal(err)
				}
			}
		}
		for i := range 30_000 {
			// One prefix of made-up sources, each trying another host, four hundred a second.
			batch = append(batch, reached(v4(66<<16|5<<8|i%250), v4(100<<16|i), 445, float64(i)/400, false))
			if len(batch) == cut {
				hand(batch[len(batch)-1].Settled - 1)
			}
		}
		hand(at(7200))
		take(b.Flush())
		var out []string
		for _, f := range last {
			if f.Type != flow.FindingPressure {
				continue
			}
			if len(f.Samples) > 0 || f.Sentence == "" || !strings.Contains(f.Sentence, "10.66.5.0/24") {
				t.Errorf("%s: %s", f.Title, f.Sentence)
			}
			j, err := json.Marshal(f)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(j))
		}
		slices.Sort(out)
		return out
	}
	want := run(1, false)
	if all := strings.Join(want, "\n"); len(want) != 3 || !strings.Contains(all, "State pressure: unanswered edges") ||
		!strings.Contains(all, "State pressure: failed attempts") || !strings.Contains(all, "State pressure: hosts that only tried") {
		t.Fatalf("told of %d bounds:\n%s", len(want), all)
	}
	for _, cut := range []int{7, 1000} {
		for _, restart := range []bool{false, true} {
			if cut == 7 && restart {
				cut = 101
			}
			if diff := cmp.Diff(want, run(cut, restart)); diff != "" {
				t.Errorf("cut after %d sessions, restarts %v (-whole +cut):\n%s", cut, restart, diff)
			}
		}
	}
}

// TestPressed: what any detector notes of its own bounds is told, also of one that has no words.
func TestPressed(t *testing.T) {
	names := flow.NewNames(0)
	b, err := NewBehaviour(DefaultConfig(), 1, nil, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.pressed("some rings", flow.MustParseAddr("2001:db8:1:2345::9"), 3, at(10))
	b.pressed("some rings", flow.MustParseAddr("2001:db8:1:23ff::1"), 2, at(30))
	b.pressed("some rings", flow.Addr{}, 5, at(100))
	b.Take(0, &Digest{Until: at(59)})
	if c, _ := b.Collect(); len(c) != 0 {
		t.Fatalf("told before the minute was over: %v", c[0].Finding.Sentence)
	}
	b.Take(0, &Digest{Until: at(61)})
	c, _ := b.Collect()
	if len(c) != 1 || c[0].Sessions != 5 || c[0].Finding.Severity != flow.Medium || !strings.Contains(c[0].Finding.Sentence, "2001:db8:1:2300::/56 (100 of 100)") {
		t.Fatalf("told: %+v", c)
	}
	if c, _ := b.Flush(); len(c) != 1 || c[0].Sessions != 5 || c[0].Finding.Count != 10 || !strings.Contains(c[0].Finding.Sentence, "(50 of 100)") {
		t.Fatalf("told at the end: %+v", c)
	}
}
