package detect

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/postern/postern/flow"
)

// spread divides pairs of addresses among n, whichever is named first.
func spread(n int) func(a, b flow.Addr) int {
	return func(a, b flow.Addr) int { return int((a.Lo ^ b.Lo) * 0x9e3779b97f4a7c15 >> 32 % uint64(n)) }
}

// TestDivide: several Detectors that are divided into more in the middle find what one
// finds, with the same ids, revisions, counts, samples and words, and tell each change once.
func TestDivide(t *testing.T) {
	first := uint64(time.Now().UnixNano())
	t.Logf("seed %d", first)
	cfg := DefaultConfig()
	cfg.Idle = IdleConfig{TCP: 3 * time.Minute, UDP: 20 * time.Second, ICMP: time.Second, Other: time.Second}
	cfg.SessionGap = 4 * time.Minute
	cfg.UpdateEvery = 10 * time.Minute
	for seed := first; seed < first+12; seed++ {
		rng := rand.New(rand.NewPCG(seed, 9))
		names := flow.NewNames(0)
		rs := stream(seed, names)
		order := arrival(rng, rs)
		want, got := &result{}, &result{}
		one := newTestDetector(t, cfg, names)
		for _, i := range order {
			one.Observe(batchOf(rs[i]))
		}
		c, e := one.Flush()
		want.take(t, c, e)

		feed := func(ds []*Detector, r flow.Record) {
			d := ds[spread(len(ds))(r.Src, r.Dst)]
			d.Observe(batchOf(r))
			if rng.IntN(4) == 0 {
				c, e := d.Collect()
				got.take(t, c, e)
			}
		}
		before := make([]*Detector, 1+rng.IntN(4))
		cuts := make([]int, len(before))
		for i := range before {
			before[i], cuts[i] = newTestDetector(t, cfg, names), rng.IntN(len(order))
		}
		var rest []int
		for at, i := range order {
			if at < cuts[spread(len(before))(rs[i].Src, rs[i].Dst)] {
				feed(before, rs[i])
			} else {
				rest = append(rest, i)
			}
		}
		var snapshots [][]byte
		for _, d := range before {
			b, err := d.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			snapshots = append(snapshots, b)
		}
		n := len(before) + 1 + rng.IntN(10)
		divided, err := Divide(snapshots, n, spread(n))
		if err != nil {
			t.Fatal(err)
		}
		names = flow.NewNames(0)
		names.Intern("another table")
		rs = stream(seed, names)
		after := make([]*Detector, n)
		for i := range after {
			after[i] = newTestDetector(t, cfg, names)
			if err := after[i].Restore(divided[i]); err != nil {
				t.Fatal(err)
			}
		}
		for _, i := range rest {
			feed(after, rs[i])
		}
		for _, d := range after {
			c, e := d.Flush()
			got.take(t, c, e)
		}
		if a, b := text(t, want), text(t, got); a != b {
			t.Fatalf("seed %d, %d divided into %d: %s", seed, len(before), n, cmp.Diff(strings.Split(a, "\n"), strings.Split(b, "\n")))
		}
	}
}

// TestDivideRefuses: one finding in two states means that flows of a pair went two ways,
// and then neither state has counted right.
func TestDivideRefuses(t *testing.T) {
	n := theNames
	d := newTestDetector(t, DefaultConfig(), n)
	d.Observe(batchOf(judged(n, 1, "10.1.0.1", 50000, "10.2.0.1", 443, 0, 1, escaped(n))))
	b, err := d.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for want, states := range map[string][][]byte{
		"in state 0 and in state 1 of 2":             {b, b},
		"state 1 of 2: the snapshot of detect is of": {b, []byte(`{"version":99}`)},
	} {
		if _, err := Divide(states, 3, spread(3)); err == nil || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
