package detect

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/postern/postern/flow"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

const ways0 = flow.Time(1_790_000_000_000)

// newWays makes a Behaviour that has learned for as long as the configuration says.
func newWays(t testing.TB, inputs int, change func(*Config)) (*Behaviour, *flow.Names) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Behaviour.Learn = 0
	if change != nil {
		change(&cfg)
	}
	names := flow.NewNames(0)
	b, err := NewBehaviour(cfg, inputs, fakePolicy{names}, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range fewHosts { // so that there is somebody to be unlike
		c := meets(0, 60_000+n, 61_000+n, 443, ways0-dayMillis)
		b.contact(&c)
	}
	return b, names
}

// collected adds the newest state of each finding about a way to last.
func collected(last map[string]*flow.Finding, contributions []flow.Contribution, events []*flow.Finding) {
	for i := range contributions {
		events = append(events, contributions[i].Finding)
	}
	for _, f := range events {
		if f.Type == flow.FindingChain || f.Type == flow.FindingPivot || f.Type == flow.FindingSwitch {
			if o := last[f.ID]; o == nil || o.Revision <= f.Revision {
				last[f.ID] = f
			}
		}
	}
}

func wayAddr(n int) flow.Addr { return flow.AddrFrom4(10<<24 | 50<<16 | uint32(n)) }

// meets is a contact of the nth session: an edge seen for the first time.
func meets(n int, client, server int, port uint16, at flow.Time) Contact {
	c := Contact{Class: classOf(flow.ProtoTCP, port), Fate: fateAnswered, New: true, NewPair: true}
	c.ID, c.Conversation, c.Start, c.End, c.Settled = uint64(n)+1, uint64(n)+1, at, at+5000, at+20_001
	c.Client, c.Server = flow.SessionEnd{Addr: wayAddr(client), Port: uint16(50000 + n%10000)}, flow.SessionEnd{Addr: wayAddr(server), Port: port}
	c.Proto, c.HasPorts = flow.ProtoTCP, true
	return c
}

// randomWays is contacts among a few hosts, so that no host is reached by more than a ring holds.
func randomWays(rng *rand.Rand, n, hosts int) []Contact {
	var out []Contact
	at := ways0
	ports := []uint16{22, 3389, 445, 5985, 135}
	seen := map[[3]int]flow.Time{}
	for i := range n {
		at += flow.Time(rng.Int64N(40 * minuteMillis))
		if rng.IntN(6) == 0 {
			at += flow.Time(rng.Int64N(20 * hourMillis))
		}
		a, z := rng.IntN(hosts), rng.IntN(hosts)
		if a == z {
			continue
		}
		p := rng.IntN(len(ports))
		c := meets(i, a, z, ports[p], at)
		c.Known = seen[[3]int{a, z, p}]
		c.New = c.Known == 0
		seen[[3]int{a, z, p}] = at
		out = append(out, c)
	}
	return out
}

// take shows contacts one by one and gives the last state of each finding.
func take(t testing.TB, b *Behaviour, list []Contact, each func(i int) *Behaviour) map[string]*flow.Finding {
	t.Helper()
	last := map[string]*flow.Finding{}
	for i := range list {
		b.Take(0, &Digest{Until: list[i].Settled, Contacts: list[i : i+1]})
		contributions, events := b.Collect()
		collected(last, contributions, events)
		if each != nil {
			b = each(i)
		}
	}
	contributions, events := b.Flush()
	collected(last, contributions, events)
	return last
}

func edgeNamed(f *flow.Finding, c *Contact) bool { return slices.Contains(f.Edges, edgeOf(c)) }

// open says whether somebody may still have been there who came in by a session: it began within
// a day, or another of the same two within half an hour of being seen last.
func open(list []Contact, in *Contact, at flow.Time) bool {
	return slices.ContainsFunc(list, func(c Contact) bool {
		return c.Client.Addr == in.Client.Addr && c.Server.Addr == in.Server.Addr && c.Start >= in.Start && c.Start <= at &&
			(c.ID == in.ID && at <= c.Start+dayMillis || c.New && at <= c.Start+dayMillis || at <= c.until()+30*minuteMillis)
	})
}

// TestChainsOracle: whatever is told is a way of real sessions in causal order that goes in no
// circle; and looking at all pairs of sessions, every two unusual ones of which the second goes
// on from the first, with nobody else who might have, are in one finding if their points suffice.
func TestChainsOracle(t *testing.T) {
	told, pairs := 0, 0
	for seed := range uint64(120) {
		rng := rand.New(rand.NewPCG(seed, 8))
		list := randomWays(rng, 120, 9+int(seed%3)*6)
		b, _ := newWays(t, 1, nil)
		points := make([]int, len(list))
		last := map[string]*flow.Finding{}
		for i := range list {
			c := &list[i]
			v := visit{Contact: c, at: c.Settled}
			v.client = b.host(c, false)
			v.server = b.host(c, true)
			points[i] = b.oddity(&v)
			b.Take(0, &Digest{Until: c.Settled, Contacts: list[i : i+1]})
			contributions, events := b.Collect()
			for _, f := range events {
				if o := last[f.ID]; o != nil && o.Revision > f.Revision {
					t.Fatalf("seed %d: %s was at revision %d and is told at %d", seed, f.Sentence, o.Revision, f.Revision)
				}
			}
			collected(last, contributions, events)
		}
		byID := map[string]*Contact{}
		for i := range list {
			byID[fmt.Sprint(list[i].ID)] = &list[i]
		}
		for _, f := range last {
			if f.Type != flow.FindingChain {
				continue
			}
			told++
			been := map[string]bool{f.Hops[0].Client.Address: true}
			for i, h := range f.Hops {
				c := byID[h.Session]
				if c == nil || c.Client.Addr.String() != h.Client.Address || c.Server.Addr.String() != h.Server.Address || c.Start != h.Start {
					t.Fatalf("seed %d: step %d of %s is no session", seed, i, f.Sentence)
				}
				if been[h.Server.Address] {
					t.Fatalf("seed %d: %s goes in a circle", seed, f.Sentence)
				}
				been[h.Server.Address] = true
				if i > 0 && (f.Hops[i-1].Server.Address != h.Client.Address || h.Start < f.Hops[i-1].Start || !open(list, byID[f.Hops[i-1].Session], h.Start)) {
					t.Fatalf("seed %d: step %d of %s does not go on from the one before", seed, i, f.Sentence)
				}
			}
		}
		for i := range list {
			for k := range i {
				in, on := &list[k], &list[i]
				if in.Server.Addr != on.Client.Addr || in.Client.Addr == on.Server.Addr || points[i] == 0 || points[k] == 0 || points[i]+points[k] < 50 || on.Start > in.Start+30*minuteMillis {
					continue
				}
				alone := true
				for j := range i {
					o := &list[j]
					alone = alone && (j == k || o.Server.Addr != in.Server.Addr || o.Start < on.Start-dayMillis-hourMillis)
					// Nor did anything lead up to the first, nor were the same two seen before.
					alone = alone && (o.Server.Addr != in.Client.Addr || o.Start < on.Start-dayMillis-hourMillis)
					alone = alone && (o.Client.Addr != on.Client.Addr || o.Server.Addr != on.Server.Addr || o.Start < on.Start-dayMillis-hourMillis)
				}
				if !alone {
					continue
				}
				pairs++
				found := false
				for _, f := range last {
					found = found || f.Type == flow.FindingChain && edgeNamed(f, in) && edgeNamed(f, on)
				}
				if !found {
					t.Errorf("seed %d: %s > %s at %v (%d points) and on to %s at %v (%d points): not told", seed, in.Client.Addr, in.Server.Addr, in.Start, points[k], on.Server.Addr, on.Start, points[i])
				}
			}
		}
	}
	if told < 500 || pairs < 50 {
		t.Fatalf("%d chains told, %d pairs looked for: too few to say anything", told, pairs)
	}
	t.Logf("%d chains told; %d pairs that must be and are", told, pairs)
}

// TestChainsRestart: a restart after each contact changes nothing, and the same state gives the
// same bytes.
func TestChainsRestart(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	list := randomWays(rng, 200, 9)
	b, _ := newWays(t, 1, nil)
	want := take(t, b, list, nil)
	b, names := newWays(t, 1, nil)
	got := take(t, b, list, func(int) *Behaviour {
		state, err := b.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		cfg := *b.cfg
		again, err := NewBehaviour(cfg, 1, fakePolicy{names}, names, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Restore(state); err != nil {
			t.Fatal(err)
		}
		second, err := again.Snapshot()
		if err != nil || string(second) != string(state) {
			t.Fatalf("the snapshot of what was restored is another: %v", err)
		}
		b = again
		return b
	})
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("with restarts (-without, +with):\n%s", d)
	}
	if len(want) < 5 {
		t.Fatalf("%d findings: too few to say anything", len(want))
	}
}

// TestChainsInputs: contacts that come by two inputs, cut anyhow, one of them behind, give what
// they give by one.
func TestChainsInputs(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 4))
		list := randomWays(rng, 200, 9)
		b, _ := newWays(t, 1, nil)
		want := take(t, b, list, nil)
		b, _ = newWays(t, 2, nil)
		var from [2][]Contact
		for i := range list {
			k := int(list[i].Client.Addr.Lo+list[i].Server.Addr.Lo) % 2 // both directions of a pair by one input
			from[k] = append(from[k], list[i])
		}
		got := map[string]*flow.Finding{}
		for len(from[0])+len(from[1]) > 0 {
			k := rng.IntN(2)
			n := min(rng.IntN(5), len(from[k]))
			d := Digest{Until: maxTime, Contacts: from[k][:n]}
			if n < len(from[k]) {
				d.Until = from[k][n].Settled - 1
			}
			from[k] = from[k][n:]
			b.Take(k, &d)
			contributions, events := b.Collect()
			collected(got, contributions, events)
		}
		contributions, events := b.Flush()
		collected(got, contributions, events)
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("seed %d: by two inputs (-one, +two):\n%s", seed, d)
		}
	}
}

// TestChainsBounded: a flood of unusual sessions holds no more than it may, is counted, and what
// comes after it is found.
func TestChainsBounded(t *testing.T) {
	b, _ := newWays(t, 1, func(c *Config) { c.Behaviour.Chain.MaxHops = 1024 })
	at := ways0
	var list []Contact
	for i := range 20_000 {
		at += 1000
		list = append(list, meets(i, 1000+i%5000, 10_000+(i*7)%6000, 445, at))
	}
	list = append(list, meets(30_000, 1, 2, 3389, at+1000), meets(30_001, 2, 3, 445, at+60_000))
	var found *flow.Finding
	for i := range list {
		b.Take(0, &Digest{Until: list[i].Settled, Contacts: list[i : i+1]})
		if n := len(b.chains.hops) - len(b.chains.free); n > 1024 {
			t.Fatalf("%d steps are held after %d contacts", n, i+1)
		}
		contributions, _ := b.Collect()
		for k := range contributions {
			if f := contributions[k].Finding; f.Type == flow.FindingChain && f.Client == wayAddr(1).String() {
				found = f
			}
		}
	}
	if found == nil || found.Type != flow.FindingChain || found.EdgesTotal != 2 {
		t.Errorf("after the flood: %v", found)
	}
	if n := testutil.ToFloat64(b.bm.chain.dropped); n < 1000 {
		t.Errorf("%v steps were counted as dropped", n)
	}
}

// TestChainGrows: a way that grows by a step a night, over midnights, and by a branch, is one
// finding; what its steps do by other ports is in it.
func TestChainGrows(t *testing.T) {
	b, _ := newWays(t, 1, nil)
	at := ways0
	list := []Contact{meets(1, 1, 2, 3389, at), meets(2, 2, 3, 135, at+20*hourMillis), meets(3, 2, 3, 445, at+20*hourMillis+1000), meets(4, 3, 4, 22, at+40*hourMillis),
		meets(5, 3, 5, 5985, at+41*hourMillis), meets(6, 4, 6, 22, at+60*hourMillis), meets(7, 6, 7, 22, at+62*hourMillis), meets(8, 7, 8, 22, at+63*hourMillis)}
	found := take(t, b, list, nil)
	if len(found) != 1 {
		t.Fatalf("%d findings: %v", len(found), found)
	}
	for _, f := range found {
		var way []string
		for _, h := range f.Hops {
			way = append(way, h.Server.Address)
		}
		if f.EdgesTotal != 8 || f.FirstSeen != at || len(f.Hops) != maxDepth || strings.Join(way, " ") != "10.50.0.3 10.50.0.4 10.50.0.6 10.50.0.7 10.50.0.8" || f.Severity != flow.High {
			t.Errorf("%d edges, %d hops (%v), %v, %s", f.EdgesTotal, len(f.Hops), way, f.Severity, f.Sentence)
		}
	}
}

// TestChainsOrdinary: an administrator who goes everywhere, by a jump host and straight, makes no
// chain; nor do many who come in to a host from which somebody goes on.
func TestChainsOrdinary(t *testing.T) {
	b, _ := newWays(t, 1, nil)
	at, n := ways0, 0
	var list []Contact
	meet := func(client, server int, port uint16, after flow.Time) {
		at += after
		n++
		list = append(list, meets(n, client, server, port, at))
	}
	for k := range 20 { // how they got to be administrators
		meet(900, 100+k, 3389, 26*hourMillis)
		meet(901, 100+k, 3389, 26*hourMillis)
	}
	quiet := len(list)
	for k := range 30 {
		meet(900, 901, 3389, minuteMillis)
		list[len(list)-1].New = k == 0
		meet(901, 200+k, 3389, minuteMillis)
		meet(901, 200+k, 22, minuteMillis)
	}
	for k := range 8 { // eight strangers come in, and one goes on
		meet(300+k, 400, 445, 30*1000)
	}
	meet(400, 401, 445, 30*1000)
	for _, f := range take(t, b, list, nil) {
		if f.FirstSeen >= list[quiet].Start {
			t.Errorf("%s", f.Sentence)
		}
	}
}

// TestChainsAllocate: a contact that is no step costs no memory, nor does a known one that comes
// again.
func TestChainsAllocate(t *testing.T) {
	b, _ := newWays(t, 1, nil)
	at := ways0
	web := meets(1, 1, 2, 443, at)
	known := meets(2, 1, 3, 22, at)
	known.New = false
	for _, c := range []*Contact{&web, &known} {
		b.contact(c)
		b.contact(c)
		if n := testing.AllocsPerRun(100, func() { b.contact(c) }); n > 0 {
			t.Errorf("%s: %v allocations", c.Class, n)
		}
	}
}

func BenchmarkChains(b *testing.B) {
	d, _ := newWays(b, 1, nil)
	rng := rand.New(rand.NewPCG(1, 1))
	var list []visit
	for i := range 1 << 16 {
		c := meets(i, 1+rng.IntN(9000), 10_000+rng.IntN(1000), []uint16{22, 445, 443}[rng.IntN(3)], ways0+flow.Time(i)*1000)
		c.New = rng.IntN(20) == 0
		d.contact(&c)
		list = append(list, visit{Contact: &c, client: d.hosts.byAddr[c.Client.Addr], server: d.hosts.byAddr[c.Server.Addr], at: c.Settled})
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		d.chains.contact(d, &list[i&(len(list)-1)])
		i++
	}
}

// TestTranslatedHops: each step of a way says which address was behind a translation, also where
// its ends were turned round.
func TestTranslatedHops(t *testing.T) {
	b, _ := newWays(t, 1, nil)
	var list []Contact
	for i := range 3 {
		c := meets(i, i+1, i+2, 3389, ways0+flow.Time(i)*minuteMillis)
		c.NAT, c.NATClient, c.NATServer = flow.NATTranslated, c.Client.Addr, wayAddr(900+i)
		list = append(list, c)
	}
	for _, f := range take(t, b, list, nil) {
		if f.Type != flow.FindingChain {
			continue
		}
		var got, want []string
		for i, h := range f.Hops {
			got = append(got, h.Client.Translated+" "+h.Server.Translated)
			want = append(want, " "+wayAddr(900+i).String())
		}
		if len(got) < 2 || !slices.Equal(got, want) {
			t.Errorf("behind the steps' ends are %q, want %q", got, want)
		}
		s := list[0].Session
		turned(&s)
		if got, want := s.Translated(false), wayAddr(900); got != want || !s.Translated(true).IsZero() {
			t.Errorf("turned round, behind the client is %v and behind the server %v, want %v and nobody", got, s.Translated(true), want)
		}
		return
	}
	t.Error("there is no way")
}
