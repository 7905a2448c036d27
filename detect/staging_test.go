package detect

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/postern/postern/flow"
)

// moving is what the tests have moved: days and hours since they began.
type moving struct {
	day, hour    float64
	from, to, mb int
	pull         bool // the receiver connected
}

// movesOf are windows of ten minutes in which it was moved.
func movesOf(list []moving) (out []Tally[BulkKey, Bulk]) {
	for i, m := range list {
		start := at(m.day*86400 + m.hour*3600)
		k := BulkKey{At: uint32(start / minuteMillis / bulkWindow * bulkWindow), Client: v4(m.from), Server: v4(m.to), Port: 445, Proto: flow.ProtoTCP}
		v := Bulk{Sessions: 1, First: start}
		if m.pull {
			k.Client, k.Server = k.Server, k.Client
			v.Sent[1] = uint64(m.mb) << 20
			v.Most[1] = BulkMoved{uint64(i + 1), start, v.Sent[1]}
		} else {
			v.Sent[0] = uint64(m.mb) << 20
			v.Most[0] = BulkMoved{uint64(i + 1), start, v.Sent[0]}
		}
		out = append(out, Tally[BulkKey, Bulk]{k, v})
	}
	return out
}

// TestStagingPast: what a host did on the days before is held against what it does now; other than
// that only how much, from how many, how soon after and to whom counts.
func TestStagingPast(t *testing.T) {
	const host, out = 1, 900
	gather := func(day float64, hosts, mb, first int) (list []moving) {
		for i := range hosts {
			list = append(list, moving{day, 1 + float64(i)*0.2, first + i, host, mb, true})
		}
		return list
	}
	join := func(lists ...[]moving) (all []moving) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	send := func(day, hour float64, mb int) []moving { return []moving{{day, hour, host, out, mb, false}} }
	for _, tc := range []struct {
		name string
		list []moving
		want int
	}{
		{"gathered and sent", join(gather(9, 6, 40, 100), send(9, 6, 200)), 1},
		{"from too few", join(gather(9, 4, 60, 100), send(9, 6, 200)), 0},
		{"too little", join(gather(9, 6, 4, 100), send(9, 6, 24)), 0},
		{"sent a small part", join(gather(9, 6, 100, 100), send(9, 6, 100)), 0},
		{"too late", join(gather(9, 6, 40, 100), send(10, 6, 200)), 0},
		{"before it gathered", join(send(9, 0.1, 200), gather(9, 6, 40, 100)), 0},
		{"over midnight", join(gather(9.7, 6, 40, 100), send(10, 0, 200)), 1},
		{"back to one of them", join(gather(9, 5, 40, 100), []moving{{9, 6, host, 100, 200, false}}), 0},
		{"told once, then it is usual", join(gather(6, 6, 40, 100), send(6, 6, 200), gather(7, 6, 40, 200), send(7, 6, 200), gather(8, 6, 40, 300), send(8, 6, 200)), 1},
		{"as every day", join(gather(3, 6, 40, 100), send(3, 6, 200), gather(4, 6, 40, 200), send(4, 6, 200), gather(8, 6, 40, 300), send(8, 6, 200), gather(9, 6, 40, 400), send(9, 6, 200)), 0},
		{"as a week ago", join(gather(2, 6, 40, 100), send(2, 6, 200), gather(9, 6, 40, 200), send(9, 6, 200)), 0},
		{"far more than a week ago", join(gather(2, 2, 40, 100), send(2, 6, 80), gather(9, 8, 80, 200), send(9, 6, 500)), 1},
		{"from whom it took before", join(gather(2, 3, 5, 100), gather(3, 3, 5, 103), gather(9, 6, 40, 100), send(9, 6, 200)), 0},
		{"while it was learned", join(gather(0.2, 6, 40, 100), send(0.2, 6, 200)), 0},
	} {
		b := newTestBehaviour(t, 1, flow.NewNames(0), nil)
		// Who else is there, so that the estate is large enough to say what is unusual.
		var others []moving
		for i := range 20 {
			others = append(others, moving{0, 0.2, 300 + i, 500 + i, 1, false}, moving{0, 0.5, 700, host, 1, false})
		}
		b.began = at(0)
		b.Take(0, &Digest{Until: at(11 * 86400), Observations: Observations{Bulk: movesOf(join(others, tc.list))}})
		n := 0
		for k := range b.findings {
			if k.Type == flow.FindingStaging {
				n++
			}
		}
		// The state says the same over a restart.
		state, err := b.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		again := newTestBehaviour(t, 1, flow.NewNames(0), nil)
		if err := again.Restore(state); err != nil {
			t.Fatal(err)
		}
		if more, err := again.Snapshot(); err != nil || string(more) != string(state) {
			t.Errorf("%s: a snapshot of what was restored is another one (%v)", tc.name, err)
		}
		if n != tc.want {
			t.Errorf("%s: %d findings, not %d", tc.name, n, tc.want)
		}
	}
}

// TestStagingSamples: of each host that a finding speaks of there is the session in which most was
// moved, and who sent that; of equal ones the one of the lower id, in whatever order they come.
func TestStagingSamples(t *testing.T) {
	const host, out = 1, 900
	list := []moving{{9, 6, host, out, 200, false}, {9, 5.2, 105, host, 30, true}, {9, 5, 105, host, 30, true}, {9, 5.3, 105, host, 10, true}}
	for i := range 5 {
		list = append(list, moving{9, 1 + float64(i)*0.2, 100 + i, host, 40, i%2 == 0})
	}
	for i := range 20 {
		list = append(list, moving{0, 0.2, 300 + i, 500 + i, 1, false})
	}
	want := []string{"5 10.0.0.1 10.0.0.100 tcp/445 server 41943040", "6 10.0.0.101 10.0.0.1 tcp/445 client 41943040", "7 10.0.0.1 10.0.0.102 tcp/445 server 41943040",
		"8 10.0.0.103 10.0.0.1 tcp/445 client 41943040", "9 10.0.0.1 10.0.0.104 tcp/445 server 41943040", "2 10.0.0.1 10.0.0.105 tcp/445 server 31457280",
		"1 10.0.0.1 10.0.3.132 tcp/445 client 209715200"}
	b := newTestBehaviour(t, 1, flow.NewNames(0), nil)
	b.began = at(0)
	moves := movesOf(list)
	slices.SortStableFunc(moves, func(x, y Tally[BulkKey, Bulk]) int { return cmp.Compare(x.Key.At, y.Key.At) })
	b.Take(0, &Digest{Until: at(11 * 86400), Observations: Observations{Bulk: moves}})
	_, events := b.Flush()
	for _, f := range events {
		if f.Type != flow.FindingStaging {
			continue
		}
		var got []string
		for _, s := range f.Samples {
			var v struct {
				Session, Client, Server, Service, Sender string
				Bytes                                    uint64
			}
			if err := json.Unmarshal(s, &v); err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprint(v.Session, " ", v.Client, " ", v.Server, " ", v.Service, " ", v.Sender, " ", v.Bytes))
		}
		if !slices.Equal(got, want) {
			t.Errorf("the samples are\n%q, want\n%q", got, want)
		}
		return
	}
	t.Error("nothing is told")
}

// TestStagingBounds: what is kept of a host is bounded, however many send to it and it sends to.
func TestStagingBounds(t *testing.T) {
	b := newTestBehaviour(t, 1, flow.NewNames(0), nil)
	var list []moving
	for i := range 3000 {
		list = append(list, moving{9, float64(i) * 0.001, 1000 + i, 1, 1, i%2 == 0}, moving{9, float64(i) * 0.001, 1, 5000 + i, 1, false})
	}
	b.Take(0, &Digest{Until: at(11 * 86400), Observations: Observations{Bulk: movesOf(list)}})
	i, known := b.hosts.find(v4(1), flow.NoName)
	s := b.staging.by[i]
	if !known || s == nil {
		t.Fatal("the host is not followed")
	}
	if len(s.taken) != maxTaken || len(s.sent) != maxSent || len(s.known) != maxKnown {
		t.Errorf("of it %d sources, %d receivers and %d known ones are kept; %d, %d and %d may be", len(s.taken), len(s.sent), len(s.known), maxTaken, maxSent, maxKnown)
	}
	b.tended = at(40 * 86400)
	b.staging.tend(b)
	if len(b.staging.by) != 0 {
		t.Errorf("%d hosts that moved nothing for a month are followed", len(b.staging.by))
	}
}

// TestBulkWindows: what is cut out of counts is all of them, once.
func TestBulkWindows(t *testing.T) {
	var o Observations
	for i := range 700 {
		o.Bulk = append(o.Bulk, Tally[BulkKey, Bulk]{Key: BulkKey{At: uint32(i)}})
		o.Heard = append(o.Heard, Tally[HeardKey, Heard]{Key: HeardKey{At: uint32(i)}})
	}
	seen, pieces := [2]int{}, 0
	for o.Len() > 0 {
		d := o.Cut(256)
		if d.Len() == 0 || d.Len() > 256 {
			t.Fatalf("a piece of %d", d.Len())
		}
		for _, h := range d.Heard {
			if int(h.Key.At) != seen[0] {
				t.Fatalf("count %d comes as number %d", h.Key.At, seen[0])
			}
			seen[0]++
		}
		seen[1] += len(d.Bulk)
		pieces++
	}
	if seen != [2]int{700, 700} || pieces != 6 {
		t.Errorf("%v of 700 counts each, in %d pieces", seen, pieces)
	}
}
