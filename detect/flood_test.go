package detect

import (
	"fmt"
	"slices"
	"testing"

	"github.com/postern/postern/flow"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestFloodHidesNothing floods a Detector that may hold a hundred findings with ten thousand. A
// critical finding from before is held through it and goes on to be counted, one from its midst is
// told at once, others are told as often as allowed, and a restart changes none of it (THREATS 33).
func TestFloodHidesNothing(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxFindings, cfg.TellEach = 100, 30
	for _, restart := range []bool{false, true} {
		names, reg := flow.NewNames(0), prometheus.NewRegistry()
		d, err := New(cfg, fakePolicy{names}, names, reg)
		if err != nil {
			t.Fatal(err)
		}
		var id uint64
		told := map[string][]uint64{} // revisions by finding
		severities := map[flow.Severity]int{}
		hand := func(rs ...flow.Record) (now []*flow.Finding) {
			d.Observe(batchOf(rs...))
			_, now = d.Collect()
			for _, f := range now {
				if len(told[f.ID]) == 0 {
					severities[f.Severity]++
				}
				told[f.ID] = append(told[f.ID], f.Revision)
			}
			return now
		}
		record := func(client string, n int, seconds float64) flow.Record {
			id++
			r := judged(names, id, client, 40000+uint16(n%20000), fmt.Sprintf("10.9.%d.%d", n>>8, n&255), 443, seconds, seconds+1, escaped(names))
			r.DstSegment, r.Verdict.Rule = names.Intern("plant"), names.Intern("default:in:plant")
			return r
		}
		critical := func(client string, port uint16, seconds float64) flow.Record {
			id++
			return judged(names, id, client, port, "10.20.0.11", 22, seconds, seconds+1, escaped(names))
		}
		first := hand(critical("10.50.0.1", 50001, 0))
		if len(first) != 1 || first[0].Severity != flow.Critical {
			t.Fatalf("the first finding is %v", first)
		}
		for n := range 10_000 {
			at := 10 + float64(n)/10
			now := hand(record("10.50.0.66", n, at))
			if n == 5000 {
				for _, client := range []string{"10.50.0.2", "10.50.0.66"} {
					if now := hand(critical(client, 50002, at)); len(now) != 1 || now[0].Severity != flow.Critical || now[0].GroupedBy != "" {
						t.Errorf("a critical finding of %s in the flood's midst was not told at once, but %v", client, now)
					}
				}
			}
			if len(now) > 1 || n >= cfg.TellEach && len(now) > 0 && now[0].Severity != flow.Critical {
				t.Fatalf("after %d findings %d more were told by themselves", n, len(now))
			}
			if restart && n%1999 == 0 {
				state, err := d.Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				if err := d.Restore(state); err != nil {
					t.Fatal(err)
				}
			}
		}
		if len(d.findings) > cfg.MaxFindings+1 {
			t.Errorf("%d findings are held; at most %d may be", len(d.findings), cfg.MaxFindings)
		}
		hand(critical("10.50.0.1", 50003, 1500))
		_, events := d.Flush()
		i := slices.IndexFunc(events, func(f *flow.Finding) bool { return f.ID == first[0].ID })
		if i < 0 || events[i].Count != 2 || events[i].Revision != 2 {
			t.Errorf("the first critical finding was displaced: at the end it is told as %v", events)
		}
		if n := severities[flow.Critical]; n != 3 {
			t.Errorf("%d critical findings were told, want 3", n)
		}
		if n := severities[flow.Medium]; n != cfg.TellEach {
			t.Errorf("%d findings of the flood were told by themselves, want %d", n, cfg.TellEach)
		}
		if n := testutil.ToFloat64(d.m.grouped.WithLabelValues(flow.FindingDenied)); n != 10_000-float64(cfg.TellEach) {
			t.Errorf("%v findings were counted as grouped", n)
		}
		for f, revisions := range told {
			if !slices.IsSorted(revisions) || len(slices.Compact(slices.Clone(revisions))) != len(revisions) {
				t.Errorf("finding %s was told at revisions %v", f, revisions)
			}
		}
	}
}
