package detect

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// rhythmsOf makes contacts see that an edge was used at some times, in seconds, and gives what was
// passed on for its rhythm.
func rhythmsOf(c *Contacts, client, server flow.Addr, seconds []float64) (passed []rhythm) {
	for _, n := range seconds {
		takeIn(c, []flow.Session{reached(client, server, 8443, n, true)}, nil)
	}
	for _, out := range c.Collect(at(1e7)).Contacts {
		if out.Rhythm.Beats > 0 {
			passed = append(passed, out.Rhythm)
		}
	}
	return passed
}

// TestBeatsClock: jitter of a fifth and a beat missed in ten are still a clock, whatever the
// period; what comes as it comes is none, however often.
func TestBeatsClock(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 1))
	const runs = 60
	for _, period := range []float64{45, 60, 600, 3600, 4 * 3600} {
		found := 0
		for run := range runs {
			var times []float64
			n := 0.0
			for len(times) < 4*blockGaps || n < 24*3600 {
				n += period * (0.8 + 0.4*rnd.Float64())
				if rnd.IntN(10) > 0 {
					times = append(times, n)
				}
			}
			got := rhythmsOf(newTestContacts(t), v4(run), v4(1<<16), times)
			if len(got) == 0 {
				continue
			}
			found++
			r := got[0]
			if p := float64(r.Period); p < 0.85*period || p > 1.15*period {
				t.Errorf("every %v s: told as %v s", period, p)
			}
			if r.Beats < 24 || r.First > r.Since || r.Within < 75 || r.Again {
				t.Errorf("every %v s: passed on as %+v", period, r)
			}
		}
		if found < runs*95/100 {
			t.Errorf("every %v s with jitter and missed beats: %d of %d found", period, found, runs)
		}
	}
	for _, mean := range []float64{5, 20, 60, 600} {
		for run := range runs {
			var times []float64
			for n := 0.0; len(times) < 40*blockGaps; {
				n += mean * rnd.ExpFloat64()
				times = append(times, n)
			}
			if got := rhythmsOf(newTestContacts(t), v4(run), v4(1<<16), times); len(got) > 0 {
				t.Errorf("what comes every %v s on average, as it comes, was passed on as %+v", mean, got[0])
			}
		}
	}
}

// TestBeatsNight: a host that is off at night keeps its rhythm; one whose clock changes begins anew.
func TestBeatsNight(t *testing.T) {
	var times []float64
	for day := range 4 {
		for n := range 18 { // nine hours, every half
			times = append(times, float64(day)*86400+float64(n)*1800)
		}
	}
	got := rhythmsOf(newTestContacts(t), v4(1), v4(2), times)
	if len(got) < 2 || got[0].Period != 1800 || got[0].Again || !got[1].Again {
		t.Errorf("by day only: %+v", got)
	}
	times = times[:0]
	for n := range 100 {
		times = append(times, float64(n)*600)
	}
	for n := range 100 {
		times = append(times, 60_000+float64(n)*1200)
	}
	got = rhythmsOf(newTestContacts(t), v4(1), v4(2), times)
	if len(got) < 2 || got[0].Period != 600 || got[len(got)-1].Period != 1200 || got[len(got)-1].Since < at(55_000) {
		t.Errorf("a clock that changes: %+v", got)
	}
}

// TestBeatsSizes: sizes are those of sessions that are over, and alike only if both ways are.
func TestBeatsSizes(t *testing.T) {
	for _, tc := range []struct {
		name       string
		sent, back func(int) uint64
		alike      bool
	}{
		{"the same", func(int) uint64 { return 1200 }, func(int) uint64 { return 400 }, true},
		{"nearly", func(i int) uint64 { return 1200 + uint64(i%7)*20 }, func(int) uint64 { return 0 }, true},
		{"one way", func(int) uint64 { return 1200 }, func(i int) uint64 { return 100 << (i % 9) }, false},
	} {
		c := newTestContacts(t)
		for i := range 100 {
			s := reached(v4(1), v4(2), 8443, float64(i)*600, true)
			over := flow.EdgeContribution{EdgeKey: flow.EdgeKey{Client: v4(1), Server: v4(2), ServerPort: 8443, Proto: flow.ProtoTCP, HasPorts: true},
				Over: true, First: s.Start, Last: s.End, Ended: s.End + 600_001, Sent: [2]uint64{tc.sent(i), tc.back(i)}}
			takeIn(c, []flow.Session{s}, []flow.EdgeContribution{over})
		}
		var last rhythm
		for _, out := range c.Collect(at(1e7)).Contacts {
			if out.Rhythm.Beats > 0 {
				last = out.Rhythm
			}
		}
		if last.Beats == 0 || last.Sizes < blockGaps-2 || (last.Alike >= 75) != tc.alike {
			t.Errorf("%s: %+v", tc.name, last)
		}
	}
}

// TestBeatsBounds: whoever makes up edges pushes out those of its own prefix and those that are
// hardly used, never a run; what has to go is counted and told. What is followed is found again.
func TestBeatsBounds(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Behaviour.MaxEdges = 1 << 16
	c, err := NewContacts(cfg, flow.NewNames(0), nil)
	if err != nil {
		t.Fatal(err)
	}
	most := c.beats.most
	good := reached(v4(9<<16|1), v4(9<<16|2), 8443, 0, true)
	n := 0
	passed := 0
	for i := range 60 {
		good.Start, good.Settled = at(float64(i)*600), at(float64(i)*600+20)
		takeIn(c, []flow.Session{good}, nil)
		for range most / 4 {
			n++
			takeIn(c, []flow.Session{reached(v4(n&0xffff), v4(8<<16|n&0xfff), uint16(1000+n>>12), float64(i)*600+21, true)}, nil)
		}
		d := c.Collect(at(float64(i) * 600))
		for j := range d.Contacts {
			if d.Contacts[j].Rhythm.Beats > 0 {
				passed++
			}
		}
		if len(c.beats.at) > most {
			t.Fatalf("%d edges are followed, more than %d", len(c.beats.at), most)
		}
		for hash, k := range c.beats.at {
			if b := &c.beats.list[k]; b.Hash != hash || !c.beats.maybe(b.Client, b.Server, b.Service) {
				t.Fatal("an edge that is followed is not found")
			}
		}
	}
	if passed == 0 {
		t.Error("a beacon was pushed out by edges that are used once")
	}
	if c.beats.dropped < uint64(n-most)/2 {
		t.Errorf("%d edges had to go; %d are counted", n-most, c.beats.dropped)
	}
	homes := 0
	for _, n := range c.beats.homes {
		homes += int(n)
	}
	if homes != len(c.beats.at) {
		t.Errorf("prefixes have %d edges, there are %d", homes, len(c.beats.at))
	}
	// One prefix alone.
	d := newTestContacts(t)
	quota := d.beats.most/homeShare + 1
	for i := range 2 * quota {
		takeIn(d, []flow.Session{reached(v4(i&0xff), v4(8<<16|i>>8), 8443, 1, true)}, nil)
	}
	if len(d.beats.at) > quota || d.beats.dropped == 0 || len(d.Collect(at(100)).Pressed) == 0 {
		t.Errorf("one prefix has %d edges of at most %d; %d had to go", len(d.beats.at), quota, d.beats.dropped)
	}
	d.beats.sweep(at(100) + 2*beatsKept)
	if len(d.beats.at) != 0 || d.beats.maybe(v4(1), v4(8<<16), 8443<<8|6) {
		t.Error("what was not used for long is still followed")
	}
}

// TestBeatsDivide: what is followed goes where its pair goes, over snapshots too.
func TestBeatsDivide(t *testing.T) {
	partition := func(a, b flow.Addr) int { return int(a.Lo^b.Lo) % 3 }
	rows := func(from, to int) (out []flow.Session) {
		for i := from; i < to; i++ {
			for edge := range 20 {
				out = append(out, reached(v4(edge), v4(1<<16|edge), 8443, float64(i)*900+float64(edge), true))
			}
		}
		return out
	}
	rhythms := func(all ...*Contacts) (out []rhythm) {
		for _, c := range all {
			for _, each := range c.Collect(at(1e6)).Contacts {
				if each.Rhythm.Beats > 0 {
					out = append(out, each.Rhythm)
				}
			}
		}
		slices.SortFunc(out, func(a, b rhythm) int { return int(a.First - b.First) })
		return out
	}
	one, first := newTestContacts(t), newTestContacts(t)
	takeIn(one, rows(0, 30), nil)
	takeIn(first, rows(0, 20), nil)
	state, err := first.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	states, err := DivideContacts([][]byte{state}, 3, DefaultConfig(), partition)
	if err != nil {
		t.Fatal(err)
	}
	parts := make([]*Contacts, 3)
	for i := range parts {
		parts[i] = newTestContacts(t)
		if err := parts[i].Restore(states[i]); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range rows(20, 30) {
		takeIn(parts[partition(s.Client.Addr, s.Server.Addr)], []flow.Session{s}, nil)
	}
	want := rhythms(one)
	if len(want) != 20 {
		t.Fatalf("%d edges have a rhythm, not 20", len(want))
	}
	if d := cmp.Diff(want, rhythms(parts...)); d != "" {
		t.Error(d)
	}
}

// TestSizeStep: steps rise with sizes, four for each doubling.
func TestSizeStep(t *testing.T) {
	last := uint8(0)
	for n := range uint64(1 << 20) {
		s := sizeStep(n)
		if s < last {
			t.Fatalf("%d is of step %d, less than that of %d", n, s, n-1)
		}
		if n >= 8 && s-sizeStep(n/2) != 4 {
			t.Fatalf("%d is %d steps above its half", n, s-sizeStep(n/2))
		}
		last = s
	}
	if sizeStep(1<<64-1) != 251 {
		t.Errorf("the greatest size is of step %d", sizeStep(1<<64-1))
	}
}

// TestServices: the services that most have to do with stay, the others give way.
func TestServices(t *testing.T) {
	var l services
	for range 40 {
		l.count(443<<8 | 6)
	}
	for i := range uint32(100) {
		l.count(i<<8 | 6)
		l.count(i<<8 | 6)
	}
	n, most := l.of(443<<8 | 6)
	if n != 40 || most != 40 {
		t.Errorf("443 is counted %d times, the most is %d", n, most)
	}
	if n, _ := l.of(99<<8 | 6); n != 2 {
		t.Errorf("the newest is counted %d times", n)
	}
}

// TestBeaconOrdinary: a network full of clocks, many of which begin after learning, and nobody is
// told of as an alert but the few that beacon.
func TestBeaconOrdinary(t *testing.T) {
	const (
		days, learned        = 12, 6
		desks, apps, servers = 1 << 16, 2 << 16, 3 << 16
		printers, rooms      = 4 << 16, 5 << 16
		nDesks, nApps        = 150, 30
		hour, day            = 3600.0, 86400.0
	)
	rnd := rand.New(rand.NewPCG(11, 5))
	type use struct {
		client, server flow.Addr
		port           uint16
		proto          uint8
		at             float64
		sent, back     uint64
	}
	var all []use
	every := func(client, server int, proto uint8, port uint16, from, until, period, jitter float64, vary float64) {
		sent, back := 500+uint64(rnd.IntN(3000)), 500+uint64(rnd.IntN(9000))
		for n := from; n < until; n += period * (1 + jitter*(2*rnd.Float64()-1)) {
			f := 1 + vary*rnd.Float64()
			all = append(all, use{v4(client), v4(server), port, proto, n, uint64(float64(sent) * f), uint64(float64(back) * f)})
		}
	}
	tcp, udp := uint8(flow.ProtoTCP), uint8(flow.ProtoUDP)
	end := days * day
	for i := range nDesks {
		began := rnd.Float64() * 2 * day
		every(desks|i, servers|1, tcp, 443, began, end, 3600, 0.3, 1)    // management
		every(desks|i, servers|2, udp, 123, began, end, 8*3600, 0.01, 0) // time
		every(desks|i, servers|3, tcp, 445, began, end, 5*hour, 0.9, 3)  // files
		every(desks|i, servers|4, tcp, 443, began, end, 6*hour, 0.9, 3)  // the intranet
	}
	for i := range nApps {
		every(servers|9, apps|i, tcp, 9100, 0, end, 600, 0.01, 0.1) // monitoring, from the beginning
		every(servers|10, apps|i, tcp, 10050, 8*day, end, 600, 0.01, 0.1)
		every(apps|i, servers|20|i%5, tcp, 5432, 0, end, 900, 0.2, 0.3)
		if i < 8 { // a release: an application asks another's database, and a queue nobody used
			every(apps|i, servers|20|(i+1)%5, tcp, 5432, (learned+float64(i)/2)*day, end, 300, 0.1, 0.2)
		}
	}
	for i := range 25 { // new every day: pages left open at work, printers' states, calls between two
		from := (learned+float64(i)/5)*day + 9*hour
		every(desks|i*3, servers|4, tcp, 443, from, from+8*hour, 60, 0.1, 0)
		every(desks|i*2, printers|i%12, udp, 161, from, end, 600, 0.1, 0.05)
		every(desks|i, printers|i%7, tcp, 9100, from, from+5*hour, 900, 0.9, 5)
		every(desks|i*5, desks|i*5+2, tcp, 8080, from, from+8*hour, 400, 0.9, 2)
		every(desks|i*4+1, desks|i*4+3, tcp, 3000, from, from+7*hour, 120, 0.05, 0.1) // a page of a colleague's machine: a clock for a day of work
	}
	for i := range 6 { // new servers, with all that comes with them
		from := (learned+float64(i)/2)*day + 3*hour
		every(rooms|i, servers|30+i, tcp, 6379, from, end, 60, 0.05, 0.1)
		every(rooms|i, servers|1, tcp, 443, from, end, 900, 0.1, 0.1)
	}
	want := map[string]bool{}
	beacon := func(client, server int, port uint16, period, jitter, vary float64) {
		want[v4(client).String()+" "+v4(server).String()] = true
		every(client, server, tcp, port, 7.5*day, 9.5*day, period, jitter, vary)
	}
	beacon(desks|100, desks|140, 445, 600, 0.2, 0.1)
	beacon(desks|101, desks|141, 5985, 60, 0.2, 0)
	beacon(desks|102, desks|142, 4444, 3600, 0.1, 0.1)
	beacon(desks|103, desks|143, 50123, 1800, 0.15, 0.1)
	slices.SortStableFunc(all, func(a, b use) int { return int(a.at*1000) - int(b.at*1000) })

	c, b := newTestContacts(t), newTestBehaviour(t, 1, flow.NewNames(0), nil)
	var over []flow.EdgeContribution
	last := map[string]*flow.Finding{}
	ended := 0
	for i, u := range all {
		s := reached(u.client, u.server, u.port, u.at, true)
		s.Proto = u.proto
		over = append(over, flow.EdgeContribution{EdgeKey: flow.EdgeKey{Client: u.client, Server: u.server, ServerPort: u.port, Proto: u.proto, HasPorts: true},
			Over: true, First: s.Start, Last: s.End, Ended: s.End + 600_001, Sent: [2]uint64{u.sent, u.back}})
		n := ended
		for n < len(over) && over[n].Ended < s.Settled {
			n++
		}
		takeIn(c, []flow.Session{s}, over[ended:n])
		ended = n
		if i%5000 == 0 || i == len(all)-1 {
			d := c.Collect(s.Settled)
			b.Take(0, &d)
			_, events := b.Collect()
			for _, f := range events {
				if f.Type == flow.FindingBeacon {
					last[f.ID] = f
				}
			}
		}
	}
	low, got := 0, map[string]bool{}
	for _, f := range last {
		switch {
		case f.Severity < flow.Medium:
			low++
		case !want[f.Client+" "+f.Server]:
			t.Errorf("an alert about what is ordinary: %s %v", f.Sentence, f.ScoreParts)
		default:
			got[f.Client+" "+f.Server] = true
		}
	}
	t.Logf("%d sessions, %d edges followed, %d low findings", len(all), len(c.beats.at), low)
	for pair := range want {
		if !got[pair] {
			t.Errorf("no alert about the beacon %s", pair)
		}
	}
	if low > 40 {
		t.Errorf("%d low findings", low)
	}
}
