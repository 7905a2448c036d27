package detect

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/postern/postern/flow"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// denied is a session that enforcement stopped n seconds after the tests' time began.
func denied(client, server flow.Addr, port uint16, n float64) flow.Session {
	s := reached(client, server, port, n, false)
	s.Verdict = flow.Verdict{Reason: flow.ReasonDenied, Expected: flow.ExpectDeny, Observed: flow.ObservedDeny, Outcome: flow.OutcomeBlocked}
	return s
}

// deniedEstate runs sessions, which are in order, through so many Contacts, by pair, and gives the
// findings of denied sources as they end. After restart seconds all starts again, divided anew.
func deniedEstate(t *testing.T, inputs int, sessions []flow.Session, restart float64) map[string]*flow.Finding {
	t.Helper()
	names := flow.NewNames(0)
	cfg := DefaultConfig()
	cfg.Behaviour.Learn = 0
	b, err := NewBehaviour(cfg, inputs, fakePolicy{names}, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	in := make([]*Contacts, inputs)
	for i := range in {
		if in[i], err = NewContacts(cfg, names, nil); err != nil {
			t.Fatal(err)
		}
	}
	last := map[string]*flow.Finding{}
	take := func(contributions []flow.Contribution, events []*flow.Finding) {
		for i := range contributions {
			events = append(events, contributions[i].Finding)
		}
		for _, f := range events {
			if o := last[f.ID]; f.Type == flow.FindingBlocked && (o == nil || o.Revision <= f.Revision) {
				last[f.ID] = f
			}
		}
	}
	collect := func(watermark flow.Time) {
		for i := range in {
			d := in[i].Collect(watermark)
			got, err := DecodeDigest(d.Encode(names), names)
			if err != nil {
				t.Fatal(err)
			}
			b.Take(i, got)
		}
		take(b.Collect())
	}
	partition := spread(inputs)
	for i, s := range sessions {
		if i%7 == 0 {
			collect(s.Settled - 1)
		}
		if restart > 0 && s.Settled > at(restart) {
			restart = 0
			collect(s.Settled - 1)
			states := make([][]byte, inputs)
			for i := range in {
				if states[i], err = in[i].Snapshot(); err != nil {
					t.Fatal(err)
				}
			}
			divided, err := DivideContacts(states, inputs, cfg, partition)
			if err != nil {
				t.Fatal(err)
			}
			for i := range in {
				if err := in[i].Restore(divided[i]); err != nil {
					t.Fatal(err)
				}
			}
			state, err := b.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Restore(state); err != nil {
				t.Fatal(err)
			}
		}
		takeIn(in[partition(s.Client.Addr, s.Server.Addr)], []flow.Session{s}, nil)
	}
	collect(sessions[len(sessions)-1].Settled + hourMillis)
	take(b.Flush())
	return last
}

// TestDeniedAddUp: how often a source was denied, and over how many edges, is the same number
// however its pairs are divided and where it is cut, and over a restart.
func TestDeniedAddUp(t *testing.T) {
	var sessions []flow.Session
	for i := range 12 {
		sessions = append(sessions, reached(v4(1+i), v4(1<<16), 443, float64(i), true))
	}
	for i := range 300 {
		sessions = append(sessions, denied(v4(99), v4(2<<16|i%60), 22, 60+5*float64(i)))
	}
	var want map[string]*flow.Finding
	for inputs := 1; inputs <= 3; inputs++ {
		for _, restart := range []float64{0, 700} {
			got := deniedEstate(t, inputs, sessions, restart)
			if want == nil {
				want = got
				for _, f := range want {
					if f.Count != 300 || !strings.Contains(f.Sentence, "stopped 300 times") || !strings.Contains(f.Sentence, "at 60 services") ||
						f.FirstSeen != at(60) || f.LastSeen != at(60+5*299) {
						t.Errorf("%d sessions from %v to %v: %s", f.Count, f.FirstSeen, f.LastSeen, f.Sentence)
					}
				}
				if len(want) != 1 {
					t.Fatalf("%d findings, want 1", len(want))
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%d inputs, restart at %v (-want +got):\n%s", inputs, restart, diff)
			}
		}
	}
}

// TestDeniedBounds: sources that nobody has heard of push out each other, not one that was told
// of; and that they do is counted and told.
func TestDeniedBounds(t *testing.T) {
	names, reg := flow.NewNames(0), prometheus.NewRegistry()
	cfg := DefaultConfig()
	cfg.Behaviour.Learn = 0
	b, err := NewBehaviour(cfg, 1, fakePolicy{names}, names, reg)
	if err != nil {
		t.Fatal(err)
	}
	d := Digest{Until: at(60)}
	for i := range 12 {
		d.Contacts = append(d.Contacts, Contact{Session: reached(v4(1+i), v4(1<<16), 443, 0, true), Fate: fateAnswered})
	}
	b.Take(0, &d)
	minute := uint32(base / minuteMillis)
	window := func(n int, each Denied, of func(i int) flow.Addr) {
		d := Digest{Until: minuteTime(minute + hostWindow)}
		for i := range n {
			each.First, each.Last = minuteTime(minute), minuteTime(minute)
			d.Denied = append(d.Denied, Tally[DeniedKey, Denied]{DeniedKey{At: minute, Addr: of(i)}, each})
		}
		b.Take(0, &d)
		minute += hostWindow
	}
	window(1, Denied{Sessions: 30, Edges: 3}, func(int) flow.Addr { return v4(99) })
	window(2*maxDeniedSources, Denied{Sessions: 6, Edges: 1}, func(i int) flow.Addr { return v4(66<<16 | i) })
	if n := len(b.denials.list); n > maxDeniedSources {
		t.Errorf("%d sources are held; at most %d may be", n, maxDeniedSources)
	}
	if _, held := b.denials.byKey[deniedKey{Addr: v4(99)}]; !held {
		t.Error("the source that was told of was forgotten for others")
	}
	if n := testutil.ToFloat64(b.bm.undenied); n < maxDeniedSources {
		t.Errorf("%v forgotten sources were counted", n)
	}
	_, events := b.Flush()
	if !slices.ContainsFunc(events, func(f *flow.Finding) bool {
		return f.Type == flow.FindingPressure && strings.Contains(f.Title, boundDenied)
	}) {
		t.Error("nobody was told")
	}

	c := newTestContacts(t)
	for i := range maxDenied + 100 {
		takeIn(c, []flow.Session{denied(v4(66<<16|i), v4(7), 22, 1)}, nil)
	}
	pressed := c.Collect(at(3600)).Pressed
	if n := testutil.ToFloat64(c.m.undenied); n != 100 || !slices.ContainsFunc(pressed, func(p Pressure) bool { return p.What == boundDenied && p.N == 100 }) {
		t.Errorf("%v sessions of sources beyond the bound were counted; told: %v", n, pressed)
	}
}
