package detect

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/postern/postern/flow"
)

func scanBehaviour(t testing.TB, cfg Config) *Behaviour {
	t.Helper()
	b, err := NewBehaviour(cfg, 1, nil, flow.NewNames(0), nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// failedContact is a first contact that nobody answered.
func failedContact(client, server flow.Addr, port uint16, n float64) Contact {
	return Contact{Session: reached(client, server, port, n, false), Fate: fateUnanswered, New: true, NewPair: true}
}

// TestScanWalk holds the detector against the sequential test written down plainly: a source is
// told of exactly when the failures on a service that no success outweighs reach nine.
func TestScanWalk(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	fired := 0
	for run := range 200 {
		cfg := DefaultConfig()
		cfg.Behaviour.Learn = 0
		b := scanBehaviour(t, cfg)
		client, walk, want := v4(1), 0, false
		odds := 0.3 + rnd.Float64()*0.6 // of a failure
		for i := range 60 {
			c := failedContact(client, v4(1<<16|i), 445, float64(i))
			if rnd.Float64() >= odds {
				c.Session, c.Fate = reached(client, v4(1<<16|i), 445, float64(i), true), fateAnswered
				walk = max(0, walk-1)
			} else {
				walk++
			}
			b.Take(0, &Digest{Until: c.Settled, Contacts: []Contact{c}})
			if want = want || walk >= 9; want != (len(b.findings) == 1) {
				t.Fatalf("run %d, contact %d: the walk is at %d, %d findings", run, i, walk, len(b.findings))
			}
		}
		if want {
			fired++
		}
	}
	if fired < 20 || fired > 180 {
		t.Errorf("%d of 200 walks crossed; the test shows little", fired)
	}
}

// TestScanCounts: what a finding says of a large scan is near to the truth, its count exact.
func TestScanCounts(t *testing.T) {
	b := scanBehaviour(t, DefaultConfig())
	const n = 20_000
	for i := range n {
		c := failedContact(v4(1), v4(1<<16|i), 445, float64(i)/100)
		b.Take(0, &Digest{Until: c.Settled, Contacts: []Contact{c}})
	}
	c, _ := b.Flush()
	for _, x := range c {
		if x.Finding.Type != flow.FindingScan {
			continue
		}
		st := b.scans.sources[b.hosts.byAddr[v4(1)]].told[scanHosts]
		if x.Finding.Count != n || st.Targets < n*9/10 || st.Targets > n*11/10 {
			t.Errorf("%d sessions, about %d targets; there were %d of each", x.Finding.Count, st.Targets, n)
		}
		return
	}
	t.Error("no scan was told of")
}

// TestScanOutage: what many fail to reach is down, and nobody scans it.
func TestScanOutage(t *testing.T) {
	b := scanBehaviour(t, DefaultConfig())
	for client := range 50 {
		for server := range 12 {
			c := failedContact(v4(client), v4(1<<16|(server+client)%12), 445, float64(client*12+server))
			b.Take(0, &Digest{Until: c.Settled, Contacts: []Contact{c}})
		}
	}
	if n := len(b.findings); n > 3 {
		t.Errorf("%d sources are said to scan twelve hosts that are down; three at most tried them first", n)
	}
}

// TestScanBounds floods the detector with sources and sees that what it remembers stays bounded
// and in step with its count.
func TestScanBounds(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Behaviour.MaxHosts = 1024
	b := scanBehaviour(t, cfg)
	for i := range 120 { // as many as may be on trial
		for j := range 40 {
			c := failedContact(v4(i<<8), v4(1<<16|i*40+j), uint16(1000+j), float64(i*40+j))
			b.Take(0, &Digest{Until: c.Settled, Contacts: []Contact{c}})
		}
	}
	n := 0
	for _, s := range b.scans.sources {
		n += len(s.attempts)
	}
	if n != b.scans.attempts || n > b.scans.most {
		t.Errorf("%d attempts are remembered, %d counted, %d may be", n, b.scans.attempts, b.scans.most)
	}
	state, err := b.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	again := scanBehaviour(t, cfg)
	if err := again.Restore(state); err != nil || again.scans.attempts != n {
		t.Errorf("after a restart %d attempts are remembered: %v", again.scans.attempts, err)
	}
}

// FuzzBehaviourRestore reads snapshots that are none.
func FuzzBehaviourRestore(f *testing.F) {
	b := scanBehaviour(f, DefaultConfig())
	for i := range 12 {
		c := failedContact(v4(1), v4(1<<16|i), 445, float64(i))
		b.Take(0, &Digest{Until: c.Settled, Contacts: []Contact{c}})
	}
	state, err := b.Snapshot()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(state)
	f.Fuzz(func(t *testing.T, state []byte) {
		b := scanBehaviour(t, DefaultConfig())
		if b.Restore(state) == nil {
			c := failedContact(v4(1), v4(2<<16), 445, 1000)
			b.Take(0, &Digest{Until: c.Settled, Contacts: []Contact{c}})
		}
	})
}

// BenchmarkScanContact is a failed first contact of one of many ordinary sources, and prints the
// memory of a host with three such.
func BenchmarkScanContact(b *testing.B) {
	x := scanBehaviour(b, DefaultConfig())
	const hosts = 10_000
	contacts := make([]Contact, 3*hosts)
	for i := range contacts {
		contacts[i] = failedContact(v4(i/3), v4(1<<20|i), uint16(1+i%3), float64(i))
	}
	visits := make([]visit, len(contacts))
	for i := range contacts {
		c := &contacts[i]
		visits[i] = visit{Contact: c, at: c.Settled}
		visits[i].client, visits[i].server = x.host(c, false), x.host(c, true)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range visits {
		x.scans.contact(x, &visits[i])
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	perHost := float64(after.HeapAlloc-before.HeapAlloc) / hosts
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		x.scans.contact(x, &visits[i%len(visits)])
	}
	b.ReportMetric(perHost, "B/host")
}
