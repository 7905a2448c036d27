package enrich

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/postern/postern/flow"

	gocmp "github.com/google/go-cmp/cmp"
)

// openings are the first rows of sessions, in their order; versions count records that are not in them.
func openings(rows []flow.Session) (out []flow.Session) {
	for _, r := range rows {
		if r.Settled != 0 && r.Into == 0 {
			r.Version = 0
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b flow.Session) int {
		return cmp.Or(cmp.Compare(a.Settled, b.Settled), cmp.Compare(a.Conversation, b.Conversation), cmp.Compare(a.Start, b.Start))
	})
	return out
}

// TestSessionsOpening: what a session settles with is the same however records came and were cut,
// over restarts too, and nothing of it was told by records that began later.
func TestSessionsOpening(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 21))
	differ, more := 0, 0
	for round := range 30 {
		cfg := DefaultSessionsConfig()
		names := flow.NewNames(0)
		var rs []flow.Record
		for i := range 60 {
			start := float64(rng.IntN(3600))
			exporters := 1 + rng.IntN(3)
			over := 0.0 // one in four is told only when it is over
			if rng.IntN(4) == 0 {
				over = start + 100 + float64(rng.IntN(400))
			}
			for k := range 1 + rng.IntN(12) {
				at := start + float64(k/exporters)*float64(rng.IntN(30))
				end := at + float64(rng.IntN(60))
				if over > 0 {
					at, end = start, over+float64(rng.IntN(10))
				}
				r := told(uint64(len(rs)+1), "10.0.0.9", uint16(50000+i), "10.0.0.2", 445, at, end)
				r.Exporter.Lo += uint64(k % exporters)
				r.TCPFlags = uint16(rng.IntN(64))
				r.Verdict.Observed = flow.Observed(rng.IntN(3))
				r.Verdict.Missing = flow.Dimensions(rng.IntN(4))
				if rng.IntN(2) == 0 {
					r.Src, r.Dst, r.SrcPort, r.DstPort = r.Dst, r.Src, r.DstPort, r.SrcPort
				}
				rs = append(rs, r)
			}
		}
		slices.SortFunc(rs, func(a, b flow.Record) int { return cmp.Or(cmp.Compare(a.End, b.End), cmp.Compare(a.ID, b.ID)) })
		rows, _ := through(newTestSessions(t, cfg, names), rs, len(rs))
		want := openings(rows)
		for _, r := range rows {
			if r.Settled == 0 {
				more++
			}
		}
		for n, order := range [][]flow.Record{rs, arriveWithin(rng, rs, cfg.Lateness), arriveWithin(rng, rs, cfg.Lateness)} {
			x := newTestSessions(t, cfg, names)
			var got []flow.Session
			for part := range slices.Chunk(order, 1+rng.IntN(40)) {
				x.Observe(batchOf(part...))
				r, _ := x.Collect()
				got = append(got, r...)
				b, err := x.Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				if n > 0 { // the first goes on as it is
					x = newTestSessions(t, cfg, names)
					if err := x.Restore(b); err != nil {
						t.Fatal(err)
					}
				}
			}
			r, _ := x.Flush()
			if diff := gocmp.Diff(want, openings(append(got, r...))); diff != "" {
				t.Fatalf("round %d, order %d: %s", round, n, diff)
			}
			differ++
		}
	}
	if differ == 0 || more == 0 {
		t.Errorf("%d orders, %d sessions that went on; the test tests little", differ, more)
	}
}
