package enrich

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// randomStarts makes where spans begin, the first at earliest: even ones, ones that lie in
// heaps, ones that follow each other by a millisecond, and a few far from all others.
func randomStarts(r *rand.Rand, n int) []flow.Time {
	starts := []flow.Time{earliest}
	scale := flow.Time(1) << r.IntN(42)
	heap := flow.Time(1_700_000_000_000)
	for len(starts) < n {
		if r.IntN(12) == 0 {
			heap = flow.Time(r.Int64N(1_800_000_000_000))
		}
		at := heap + flow.Time(r.Int64N(int64(scale)+int64(n)))
		switch r.IntN(60) {
		case 0:
			at = -flow.Time(r.IntN(1 << 32)) // a static fact's slack before 1970
		case 1:
			at = latest - 1 - flow.Time(r.IntN(1000))
		case 2:
			at = 0
		}
		starts = append(starts, at)
	}
	slices.Sort(starts)
	return slices.Compact(starts)
}

// TestHolderFindsSpan compares what leads to a span with going through all of them.
func TestHolderFindsSpan(t *testing.T) {
	c := newClasses()
	coarse, stepped := 0, 0
	for seed := range 3000 {
		r := rand.New(rand.NewPCG(uint64(seed), 8))
		n := 1 + r.IntN(80)
		if seed%50 == 0 {
			n = 1 + r.IntN(20_000)
		}
		starts := randomStarts(r, n)
		var h holder
		for i, at := range starts {
			b := body{workload: flow.Name(i + 2), settled: flow.Time(r.Int64N(1_800_000_000_000))}
			if r.IntN(3) > 0 {
				b.sources[0] = 1
			}
			h.spans = append(h.spans, c.pack(at, i == 0, &b))
		}
		h.lay(&c)
		if h.shift > 0 {
			coarse++
		}
		ask := []flow.Time{math.MinInt64, earliest, -1, 0, latest - 1, latest, math.MaxInt64}
		for range 100 {
			ask = append(ask, starts[r.IntN(len(starts))]+flow.Time(r.IntN(3)-1), flow.Time(r.Int64N(1_900_000_000_000)))
		}
		for _, at := range ask {
			want := 0
			for want+1 < len(starts) && starts[want+1] <= at {
				want++
			}
			first := h.block(at)
			if first > want {
				stepped++
			}
			// The newest span answers where it holds; what leads to the others has to be right there too.
			for _, got := range []*span{h.at(at), h.within(first, at)} {
				if got.workload != flow.Name(want+2) {
					t.Fatalf("seed %d, %d spans: at %d span %d; want %d", seed, len(starts), at, got.workload-2, want)
				}
			}
		}
		c.release(h.spans)
	}
	if coarse < 100 || stepped < 100 {
		t.Errorf("%d holders with coarse borders, %d steps back: the test looks past them", coarse, stepped)
	}
	if len(c.ids) != 0 || len(c.free) != len(c.all) {
		t.Errorf("%d classes are held, %d of %d are free, and there are no spans", len(c.ids), len(c.free), len(c.all))
	}
}

// TestSpanSettled: a span never says that an answer stands as of before it came to be.
func TestSpanSettled(t *testing.T) {
	c := newClasses()
	for _, test := range []struct {
		name           string
		start, settled flow.Time
		first, slow    bool
	}{
		{"known when it began", 1000, 1000, false, false},
		{"known before", 1000, 10, false, false},
		{"known later", 1000, 61_000, false, false},
		{"known 49 days later", 1000, 1000 + 1<<32 - 1, false, false},
		{"known later than that", 1000, 1000 + 1<<32, false, true},
		{"the first", earliest, 1_700_000_000_000, true, false},
		{"the first, nothing known", earliest, 0, true, false},
	} {
		b := c.pack(test.start, test.first, &body{settled: test.settled})
		if slow := c.all[b.class].flags&slowBody != 0; slow != test.slow {
			t.Errorf("%s: slow is %v; want %v", test.name, slow, test.slow)
		}
		for _, cut := range []flow.Time{test.start, test.settled - 1, test.settled, test.settled + 1, latest, math.MaxInt64} {
			if cut < test.start || test.slow {
				continue
			}
			if got, want := b.unsettled(cut), cut < test.settled; got != want && cut != math.MaxInt64 || want && !got {
				t.Errorf("%s: as of %d unsettled is %v; want %v", test.name, cut, got, want)
			}
		}
	}
}

// TestSourceHeard compares the index of heartbeats with going through all of them.
func TestSourceHeard(t *testing.T) {
	for seed := range 400 {
		r := rand.New(rand.NewPCG(uint64(seed), 9))
		var src source
		var beats []beat
		at := flow.Time(1 + r.IntN(1<<40))
		for range 1 + r.IntN(300) {
			switch r.IntN(40) {
			case 0:
				at += flow.Time(r.IntN(1 << 34)) // it was down
			case 1:
				at += flow.Time(r.IntN(3)) // as fast as can be
			default:
				at += 30_000 + flow.Time(r.IntN(500))
			}
			beats = append(beats, beat{at, flow.Time(r.IntN(3)) * 40_000})
		}
		order := r.Perm(len(beats))
		if seed%2 == 0 {
			slices.Sort(order) // as they come, mostly
		}
		for _, i := range order {
			src.add(beats[i])
		}
		for range 300 {
			cut := beats[r.IntN(len(beats))].at + flow.Time(r.IntN(60_000)-30_000)
			switch r.IntN(20) {
			case 0:
				cut = math.MaxInt64
			case 1:
				cut = math.MinInt64
			case 2:
				cut = flow.Time(r.Int64N(1 << 41))
			}
			at := cut - flow.Time(r.IntN(100_000))
			var want beat
			for _, b := range beats {
				if b.at <= cut && (b.at > want.at || b.at == want.at && b.limit != 0 && (want.limit == 0 || b.limit < want.limit)) {
					want = b
				}
			}
			got, known, _ := src.heard(cut)
			if known != (want.at != 0) || got != want {
				t.Fatalf("seed %d: as of %d heard %v, %v; want %v", seed, cut, got, known, want)
			}
			if got, want := src.stale(at, cut), want.limit != 0 && at-want.at > want.limit; known && got != want {
				t.Fatalf("seed %d: at %d as of %d stale is %v; want %v", seed, at, cut, got, want)
			}
		}
	}
}

// TestIdentityLayout compares with the oracle where the layout comes to its edges: hundreds
// of intervals of one address, borders at the same time, facts that become known months
// late, a snapshot in between, what has expired; and a batch with lookups one by one.
func TestIdentityLayout(t *testing.T) {
	const day = 24 * 3600 * 1000
	months := 0
	for seed := range 6 {
		r := rand.New(rand.NewPCG(uint64(seed), 10))
		change := func(c *IdentityConfig) { c.Retention = 300 * 24 * time.Hour }
		s, names := newTestIdentity(t, change)
		o := &identityOracle{domains: flow.NewDomains("", nil), dropped: true}
		now := flow.Time(1_700_000_000_000)
		begin := now
		var facts []flow.Fact
		for i := range 30 + r.IntN(50) {
			f := flow.Fact{Source: "dhcp", Kind: flow.FactLease, Addr: tenFive, Since: now, Known: now + flow.Time(r.IntN(4000)), Device: fmt.Sprint("d", r.IntN(9))}
			now += flow.Time(r.IntN(2) * r.IntN(3*day))
			f.Until = now - flow.Time(r.IntN(2)*1000)
			if r.IntN(6) == 0 {
				f.Known += flow.Time(r.Int64N(80 * day))
				months++
			}
			facts = append(facts, f)
			if i%3 == 0 {
				facts = append(facts, flow.Fact{Source: "vpn", Kind: flow.FactSession, Addr: tenFive, Since: f.Since, Until: f.Until, Known: f.Since + 1000,
					User: fmt.Sprint("u", r.IntN(5)), Session: fmt.Sprint(i)})
			}
		}
		facts = append(facts, flow.Fact{Source: "inventory", Kind: flow.FactStatic, Addr: tenFive, Known: begin, Posture: "managed"},
			flow.Fact{Source: "ad", Kind: flow.FactDirectory, Subject: "u1", Known: begin, Groups: []string{"payroll"}})
		for _, f := range facts {
			o.facts = append(o.facts, canonicalFact(o.domains, f))
		}
		r.Shuffle(len(facts), func(i, j int) { facts[i], facts[j] = facts[j], facts[i] })
		s.Take(facts, flow.Heartbeat{})
		check := func(when string) {
			t.Helper()
			qs := make([]Question, 40)
			for i := range qs {
				f := &facts[r.IntN(len(facts))]
				at := f.Since + flow.Time(r.IntN(3)-1)
				switch r.IntN(3) {
				case 0:
					at = max(f.Until, begin) + flow.Time(r.IntN(3)-1)
				case 1:
					at = begin - day + flow.Time(r.Int64N(int64(now-begin+2*day)))
				}
				qs[i] = Question{tenFive, at, at + flow.Time(r.IntN(2))*flow.Time(r.Int64N(90*day))}
			}
			as := make([]Answer, len(qs))
			v := s.View()
			defer v.Close()
			v.LookupAll(qs, as)
			for i, q := range qs {
				var one Answer
				v.Lookup(q.Addr, q.At, q.Cut, &one)
				if d := gocmp.Diff(one, as[i], gocmp.AllowUnexported(Answer{})); d != "" {
					t.Fatalf("seed %d, %s, at %d as of %d (-one +batch):\n%s", seed, when, q.At, q.Cut, d)
				}
				if d := gocmp.Diff(o.lookup(q.Addr, q.At, q.Cut), texts(names, &one, true)); d != "" {
					t.Fatalf("seed %d, %s, at %d as of %d (-oracle +store):\n%s", seed, when, q.At, q.Cut, d)
				}
			}
			holds := make([]uint32, len(s.classes.all))
			for _, hs := range [][]holder{s.places.holders, s.subjects} {
				for i := range hs {
					for _, b := range hs[i].spans {
						holds[b.class]++
					}
				}
			}
			if !slices.Equal(holds, s.classes.refs) {
				t.Fatalf("seed %d, %s: classes are held %v times; counted are %v", seed, when, holds, s.classes.refs)
			}
		}
		check("told")
		b, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		s, names = newTestIdentity(t, change)
		if err := s.Restore(b); err != nil {
			t.Fatal(err)
		}
		check("restored")
		if again, err := s.Snapshot(); err != nil || !bytes.Equal(b, again) {
			t.Fatalf("seed %d: restored, the snapshot is another (%v)", seed, err)
		}
		s.Tick(now + 200*day)
		o.horizon = now - 100*day
		check("after half of it expired")
		s.Tick(now + 1000*day)
		s.Tick(now + 2000*day)
		if n := len(s.places.holders); n != 1 { // the inventory's fact has no end
			t.Errorf("seed %d: %d addresses are held", seed, n)
		}
	}
	if months < 20 {
		t.Errorf("only %d facts became known late", months)
	}
}
