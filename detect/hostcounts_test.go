package detect

import (
	"math"
	"math/rand/v2"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// TestHostCounts: hosts' counts are those of a map, also beyond what a slot holds, after windows
// were taken out and over a snapshot, and no more are held than may be.
func TestHostCounts(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 5))
	const most = 3000
	c, want := newHostCounts(most), map[HostKey]HostHeard{}
	refused := 0
	count := func(k HostKey, what int) {
		hash := c.hash(&k)
		s := c.of(hash)
		if s == nil {
			if s = c.add(&k, hash); s == nil {
				refused++
				if _, held := want[k]; held || len(want) < most {
					t.Fatalf("%v was refused with %d held", k, len(want))
				}
				return
			}
		}
		c.count(s, what)
		n := want[k]
		*n.of(what)++
		want[k] = n
	}
	check := func(list []Tally[HostKey, HostHeard], want map[HostKey]HostHeard) {
		t.Helper()
		got := map[HostKey]HostHeard{}
		for _, x := range list {
			if _, twice := got[x.Key]; twice {
				t.Fatalf("%v twice", x.Key)
			}
			got[x.Key] = x.N
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	}
	busy := HostKey{At: 10, Addr: flow.AddrFrom4(1), Segment: 4, Agent: 9, Source: flow.SourceZeek}
	for range 3*math.MaxUint16 + 7 {
		count(busy, 0)
	}
	for range 20_000 {
		k := HostKey{At: 10 * uint32(1+rnd.IntN(2)), Addr: flow.AddrFrom4(uint32(rnd.IntN(500))), Segment: flow.Name(rnd.IntN(2)), Workload: flow.Name(rnd.IntN(2))}
		count(k, rnd.IntN(4))
	}
	check(c.list(), want)

	// Another process counts on from a snapshot, under a secret of its own.
	other := newHostCounts(most)
	other.adopt(c.list())
	if other.secret == c.secret {
		t.Error("two have one secret")
	}
	c = other
	for range 2 * math.MaxUint16 {
		count(busy, 0)
	}
	over := func(k *HostKey) bool { return k.At == 10 }
	gone := map[HostKey]HostHeard{}
	for k, n := range want {
		if over(&k) {
			gone[k] = n
			delete(want, k)
		}
	}
	check(c.take(over), gone)
	check(c.list(), want)
	if len(c.spilled) != 0 {
		t.Errorf("%d counts are left of what was taken out", len(c.spilled))
	}

	// What two counted is added up.
	twice := newHostCounts(most)
	twice.addAll(c.list())
	twice.addAll(c.list())
	double := map[HostKey]HostHeard{}
	for k, n := range want {
		n.add(&n)
		double[k] = n
	}
	check(twice.list(), double)

	room := most - len(want)
	refused = 0
	for i := range uint32(2 * most) {
		count(HostKey{At: 20, Addr: flow.AddrFrom4(1<<20 + i)}, 3)
	}
	check(c.list(), want)
	if len(c.keys) != most || refused != 2*most-room {
		t.Errorf("%d are held, %d were refused", len(c.keys), refused)
	}
}
