package detect

import (
	"cmp"
	"slices"
	"testing"

	"github.com/postern/postern/flow"
)

// TestUnseen: an end whose agent told of others before, after and between, and did not tell of what
// others saw; and when nothing is said. With one input and with several it is the same, also where
// the agent told of nothing to the one that brings what it hid, and over a restart.
func TestUnseen(t *testing.T) {
	const start = flow.Time(1_700_000_400_000) // on the minute
	for _, k := range []struct {
		name       string
		quietFrom  int // minutes, in which the agent reports nothing
		quietTo    int
		every      int
		source     flow.Source
		proto      uint8
		lasts      flow.Time // minutes
		server     bool
		wantSilent bool
	}{
		{name: "never told", every: 1},
		{name: "never told by one that seldom reports", every: 4},
		{name: "of something long", every: 1, lasts: 30},
		{name: "at the server's end", every: 1, server: true},
		{name: "a gap around it", quietFrom: 65, quietTo: 80, every: 1, wantSilent: true},
		{name: "a gap in something long", quietFrom: 75, quietTo: 85, every: 1, lasts: 30, wantSilent: true},
		{name: "silent since", quietFrom: 70, quietTo: 1000, every: 1, wantSilent: true},
		{name: "new", quietTo: 68, every: 1, wantSilent: true},
		{name: "its log is filtered", every: 1, source: flow.SourceSysmon, wantSilent: true},
		{name: "another protocol than it tells", every: 1, proto: flow.ProtoUDP, wantSilent: true},
	} {
		for inputs := 1; inputs <= 3; inputs += 2 {
			names := flow.NewNames(0)
			host := flow.AddrFrom4(0x0a000009)
			other := func(n int) flow.Addr { return flow.AddrFrom4(0x0a000100 + uint32(n)) }
			var rows []flow.Session
			for m := 0; m < 150; m += k.every {
				if m >= k.quietFrom && m < k.quietTo {
					continue
				}
				at := start + flow.Time(m)*minuteMillis
				s := flow.Session{ID: uint64(m) + 1, Conversation: uint64(m) + 1, Proto: flow.ProtoTCP, HasPorts: true, Start: at, End: at, Settled: at + 20_001, ObserversTotal: 1}
				s.Client.Addr, s.Client.Own, s.Server.Addr, s.Server.Port = host, true, other(m), 443
				s.Observers[0] = flow.SessionObserver{Source: cmp.Or(k.source, flow.SourceWFP), Observer: names.Intern("laptop"), Reporter: flow.ReporterSource}
				rows = append(rows, s)
			}
			at := start + 70*minuteMillis
			hidden := flow.Session{ID: 9000, Conversation: 9000, Version: 5, Proto: cmp.Or(k.proto, flow.ProtoTCP), HasPorts: true, Start: at, End: at + k.lasts*minuteMillis, Settled: at + 20_001}
			hidden.Client.Addr, hidden.Server.Addr, hidden.Server.Port = host, other(1000), 22
			side := 0
			if k.server {
				side, hidden.Client.Addr, hidden.Server.Addr = 1, hidden.Server.Addr, hidden.Client.Addr
			}
			u := flow.Untold{Session: hidden, Over: hidden.End + 10*minuteMillis, Source: [2]flow.Source{flow.SourceIPFIX, flow.SourceIPFIX}}
			u.Side[side] = true

			parts := make([]*Contacts, inputs)
			b := newTestBehaviour(t, inputs, names, nil)
			for i := range parts {
				parts[i] = newTestContacts(t)
				parts[i].names = names
			}
			var found []flow.Session
			events := map[string]*flow.Finding{}
			keep := func(_ []flow.Contribution, list []*flow.Finding) {
				found = append(found, b.Unseen()...)
				for _, f := range list {
					events[f.ID] = f
				}
			}
			for m := range 200 {
				until := start + flow.Time(m)*minuteMillis
				for i, p := range parts {
					for _, s := range rows {
						if s.Settled >= until-minuteMillis && s.Settled < until && (inputs == 1 || int(s.ID)%2 == i) {
							takeIn(p, []flow.Session{s}, nil)
						}
					}
					if u.Over >= until-minuteMillis && u.Over < until && i == inputs-1 { // of several none of whose agent it knows
						p.Untold([]flow.Untold{u})
					}
					d := p.Collect(until)
					read, err := DecodeDigest(d.Encode(names), names)
					if err != nil {
						t.Fatal(err)
					}
					b.Take(i, read)
				}
				keep(b.Collect())
				if m%10 == 7 {
					b = restarted(t, b, inputs, names)
				}
			}
			keep(b.Flush())
			if k.wantSilent {
				if len(found)+len(events) > 0 {
					t.Errorf("%s, %d inputs: %d versions, %d findings", k.name, inputs, len(found), len(events))
				}
				continue
			}
			if len(found) != 1 || found[0].ID != 9000 || found[0].Version != 6 || found[0].Contradictions != flow.ContradictUnseen || found[0].Settled != 0 {
				t.Errorf("%s, %d inputs: versions %+v", k.name, inputs, found)
			}
			id := key{Type: flow.FindingUnseen, Client: hidden.Client.Addr, Server: hidden.Server.Addr, Port: 22, Proto: flow.ProtoTCP, Subject: [...]string{"client", "server"}[side], Day: dayOf(hidden.Began)}
			f := events[id.id()]
			if len(events) != 1 || f == nil || f.Count != 1 || !slices.Contains([]string{"10.0.0.9"}, [...]string{f.Client, f.Server}[side]) {
				t.Errorf("%s, %d inputs: findings %+v", k.name, inputs, events)
			}
		}
	}
}

// TestUnseenBounds: what waits for what agents tell later is bounded, and what is left out is told of.
func TestUnseenBounds(t *testing.T) {
	names := flow.NewNames(0)
	b := newTestBehaviour(t, 2, names, nil)
	list := make([]flow.Untold, maxUntold+10)
	for i := range list {
		list[i].Session.ID, list[i].Over = uint64(i), 1_700_000_000_000
		list[i].Session.Client.Addr = flow.AddrFrom4(0x0a000009)
	}
	b.Take(0, &Digest{Untold: list})
	if len(b.unseen.waiting) != maxUntold || len(b.exhaustion.waiting) != 1 || b.exhaustion.waiting[0].N != 10 || b.exhaustion.waiting[0].What != boundUntold {
		t.Errorf("%d wait; pressed %+v", len(b.unseen.waiting), b.exhaustion.waiting)
	}
	for i := range 2 {
		b.Take(i, &Digest{Until: 1_700_000_900_000})
	}
	if len(b.unseen.waiting) != 0 || len(b.unseen.found) != 0 {
		t.Errorf("%d still wait, %d were found", len(b.unseen.waiting), len(b.unseen.found))
	}
}

// TestDigestCutsUntold: sessions that an agent may have hidden are cut like all that a digest holds.
func TestDigestCutsUntold(t *testing.T) {
	d := Digest{Until: 7, Pressed: make([]Pressure, 3), Untold: make([]flow.Untold, 4), Contacts: make([]Contact, 2)}
	d.Denied = make([]Tally[DeniedKey, Denied], 2)
	first, rest := d.Cut(1, 5)
	if len(first.Contacts) != 1 || len(first.Pressed) != 3 || len(first.Untold) != 2 || first.Until != 0 || first.Counts() != 5 {
		t.Errorf("first %+v", first)
	}
	if len(rest.Contacts) != 1 || len(rest.Untold) != 2 || len(rest.Denied) != 2 || rest.Until != 7 || rest.Counts() != 4 {
		t.Errorf("rest %+v", rest)
	}
}
