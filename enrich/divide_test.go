package enrich

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
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

// TestDivide: several Pairers that are divided into more in the middle, each at a place
// of its own in what it reads, make the same of every record as one Pairer.
func TestDivide(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	waited := 0
	for round := range 40 {
		rs := arrive(rng, traffic(rng, 400), 4900*time.Millisecond)
		one, _ := newTestPairer(t, DefaultConfig())
		want := run(one, rs...)
		textual(want, one.names)

		var got []flow.Record
		feed := func(ps []*Pairer, r flow.Record) {
			p, out := ps[spread(len(ps))(r.Src, r.Dst)], flow.NewBatch(1, nil)
			p.Process(batchOf(r), out)
			textual(out.Records, p.names)
			got = append(got, out.Records...)
		}
		before := pairers(t, 1+rng.IntN(4), nil)
		cuts := make([]int, len(before))
		for i := range cuts {
			cuts[i] = rng.IntN(len(rs))
		}
		var rest []flow.Record
		for i := range rs {
			if i < cuts[spread(len(before))(rs[i].Src, rs[i].Dst)] {
				feed(before, rs[i])
			} else {
				rest = append(rest, rs[i])
			}
		}
		var snapshots [][]byte
		waiting := 0
		for _, p := range before {
			b, err := p.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			snapshots, waiting = append(snapshots, b), waiting+p.Len()
		}
		n := len(before) + 1 + rng.IntN(10)
		divided, err := Divide(snapshots, n, spread(n))
		if err != nil {
			t.Fatal(err)
		}
		after := pairers(t, n, divided)
		for _, p := range after {
			waiting -= p.Len()
			waited += p.Len()
		}
		if waiting != 0 {
			t.Fatalf("round %d: %d more records waited before dividing than after", round, waiting)
		}
		for _, r := range rest {
			feed(after, r)
		}
		for _, p := range after {
			out := flow.NewBatch(1, nil)
			p.Flush(out)
			textual(out.Records, p.names)
			got = append(got, out.Records...)
		}
		for _, all := range [][]flow.Record{want, got} {
			slices.SortFunc(all, func(a, b flow.Record) int { return int(a.ID) - int(b.ID) })
		}
		if !slices.Equal(want, got) {
			t.Fatalf("round %d, %d divided into %d: %s", round, len(before), n, cmp.Diff(want, got))
		}
	}
	if waited == 0 {
		t.Error("no record waited while it was divided")
	}
}

// pairers are n Pairers of processes of their own, put back to snapshots if there are any.
func pairers(t *testing.T, n int, snapshots [][]byte) []*Pairer {
	t.Helper()
	ps := make([]*Pairer, n)
	for i := range ps {
		ps[i], _ = newTestPairer(t, DefaultConfig())
		ps[i].names.Intern(strings.Repeat("x", i+1))
		if snapshots != nil {
			if err := ps[i].Restore(snapshots[i]); err != nil {
				t.Fatal(err)
			}
		}
	}
	return ps
}

func TestDivideRefuses(t *testing.T) {
	if _, err := Divide([][]byte{[]byte(`{"version":99}`)}, 2, spread(2)); err == nil || !strings.Contains(err.Error(), "state 0 of 1") {
		t.Errorf("a snapshot of another version: %v", err)
	}
}

// TestSnapshotOfAnotherLayout reads what a program wrote whose records had other fields.
func TestSnapshotOfAnotherLayout(t *testing.T) {
	p, _ := newTestPairer(t, DefaultConfig())
	for _, r := range traffic(rand.New(rand.NewPCG(7, 7)), 400) {
		p.Process(batchOf(r), flow.NewBatch(1, nil))
		if p.Len() > 3 {
			break
		}
	}
	if p.Len() == 0 {
		t.Fatal("nothing waits")
	}
	b, err := p.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var s snapshot
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	// The other program knew nothing of observers, and a field that is gone since.
	for i := range s.Members {
		var rec []byte
		rest := s.Members[i].Record
		for _, f := range layout {
			if !strings.HasPrefix(f, "Observer:") {
				rec = append(rec, rest[:fieldSize(f)]...)
			}
			rest = rest[fieldSize(f):]
		}
		s.Members[i].Record = append([]byte{1, 2}, rec...)
	}
	s.Layout = slices.DeleteFunc(slices.Clone(layout), func(f string) bool { return strings.HasPrefix(f, "Observer:") })
	s.Layout = append([]string{"Forgotten:2"}, s.Layout...)
	b, err = json.Marshal(&s)
	if err != nil {
		t.Fatal(err)
	}
	q, _ := newTestPairer(t, DefaultConfig())
	if err := q.Restore(b); err != nil {
		t.Fatal(err)
	}
	want, got := flow.NewBatch(8, nil), flow.NewBatch(8, nil)
	p.Flush(want)
	q.Flush(got)
	textual(want.Records, p.names)
	textual(got.Records, q.names)
	if diff := cmp.Diff(want.Records, got.Records); diff != "" || len(got.Records) == 0 {
		t.Error(diff)
	}
	s.Members[0].Record = s.Members[0].Record[1:]
	b, _ = json.Marshal(&s)
	if err := q.Restore(b); err == nil || !strings.Contains(err.Error(), "its layout says") {
		t.Error(err)
	}
}
