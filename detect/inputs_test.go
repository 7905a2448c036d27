package detect

import (
	"bytes"

	"cmp"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/postern/postern/flow"
)

// takeIn has contacts take in sessions and what they added to the roll-up, as of one input.
func takeIn(c *Contacts, rows []flow.Session, edges []flow.EdgeContribution) {
	index := flow.IndexOf(rows, edges)
	c.Sessions(rows, edges, &index)
}

// settled has a detector take in sessions, as of one input.
func settled(d *Detector, rows []flow.Session) {
	index := flow.IndexOf(rows, nil)
	d.Settle(rows, &index)
}

// settledSessions is some days of sessions of a small network, in the order in which they settle.
func settledSessions(rng *rand.Rand, names *flow.Names, n int) []flow.Session {
	var out []flow.Session
	workloads := []flow.Name{flow.NoName, names.Intern("web-1"), names.Intern("db-1"), names.Intern("jump-1")}
	var at flow.Time = 1_700_000_000_000
	for i := range n {
		at += flow.Time(rng.IntN(120_000)) / 2
		s := flow.Session{ID: uint64(i) + 1, Conversation: rng.Uint64(), Proto: flow.ProtoTCP, HasPorts: true, Start: at, End: at + 1000,
			Settled: at + 20_001, Answered: at + 10, OrientationCertainty: 100, Records: 1, ObserversTotal: 1}
		client, server := 1+rng.IntN(12), 1+rng.IntN(12)
		s.Client.Addr, s.Server.Addr = flow.AddrFrom4(0x0a000000+uint32(client)), flow.AddrFrom4(0x0a000100+uint32(server))
		s.Client.Workload, s.Server.Workload = workloads[client%len(workloads)], workloads[server%3]
		s.Client.Port, s.Server.Port = 40000+uint16(i%1000), []uint16{22, 443, 445, 3389, 135, 49700}[rng.IntN(6)]
		s.Server.TCPFlags, s.Client.TCPFlags = flow.SYN|flow.PSH, flow.SYN|flow.PSH
		if rng.IntN(5) == 0 {
			s.Answered, s.Server.TCPFlags, s.Client.TCPFlags, s.Observers[0].Reporter = 0, 0, flow.SYN, flow.ReporterDestination
		}
		if rng.IntN(8) == 0 {
			s.Verdict = flow.Verdict{Reason: flow.ReasonWaived, Exception: names.Intern("EX-1")}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b flow.Session) int {
		return cmp.Or(cmp.Compare(a.Settled, b.Settled), cmp.Compare(a.Conversation, b.Conversation), cmp.Compare(a.Start, b.Start))
	})
	return out
}

func newTestContacts(t testing.TB) *Contacts {
	c, err := NewContacts(DefaultConfig(), flow.NewNames(0), nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func newTestBehaviour(t testing.TB, inputs int, names *flow.Names, reg prometheus.Registerer) *Behaviour {
	b, err := NewBehaviour(DefaultConfig(), inputs, fakePolicy{names}, names, reg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBehaviourInputs: what the contacts of several inputs come to is what those of one come
// to, whichever of the inputs is ahead, over restarts and another division in the middle.
func TestBehaviourInputs(t *testing.T) {
	first := uint64(time.Now().UnixNano())
	t.Logf("seed %d", first)
	for seed := first; seed < first+10; seed++ {
		rng := rand.New(rand.NewPCG(seed, 5))
		names := flow.NewNames(0)
		sessions := settledSessions(rng, names, 1500)
		last := sessions[len(sessions)-1].Settled

		one, alone := newTestContacts(t), newTestBehaviour(t, 1, names, nil)
		takeIn(one, sessions, nil)
		d := one.Collect(last)
		all := len(d.Contacts)
		alone.Take(0, &d)
		alone.Collect()
		untold(alone)
		want, err := alone.Snapshot()
		if err != nil {
			t.Fatal(err)
		}

		n := 2 + rng.IntN(4)
		parts := make([]*Contacts, n)
		for i := range parts {
			parts[i] = newTestContacts(t)
		}
		b := newTestBehaviour(t, n, names, nil)
		at, got := make([]int, n), 0
		// until takes each input up to a session, each in steps of its own.
		until := func(end int) {
			for open := n; open > 0; {
				p := rng.IntN(n)
				if at[p] >= end {
					continue
				}
				to := min(end, at[p]+1+rng.IntN(300))
				for _, s := range sessions[at[p]:to] {
					if spread(n)(s.Client.Addr, s.Server.Addr) == p {
						takeIn(parts[p], []flow.Session{s}, nil)
					}
				}
				if at[p] = to; to == end {
					open--
				}
				// Between this one and the next the watermark may stand anywhere.
				passed := sessions[to-1].Settled
				if to < len(sessions) {
					passed += flow.Time(rng.Int64N(int64(sessions[to].Settled-passed) + 1))
					if passed == sessions[to].Settled {
						passed = max(passed-1, sessions[to-1].Settled-1)
					}
				}
				d := parts[p].Collect(passed)
				got += len(d.Contacts)
				read, err := DecodeDigest(d.Encode(names), names)
				if err != nil {
					t.Fatal(err)
				}
				b.Take(p, read)
				if rng.IntN(3) == 0 {
					b.Collect()
				}
				if rng.IntN(8) == 0 {
					b = restarted(t, b, n, names)
				}
			}
		}
		until(len(sessions) / 2)
		// They are divided among more, while what settled last waits for who is behind.
		m := n + 1 + rng.IntN(3)
		b = restarted(t, b, m, names)
		var snapshots [][]byte
		for _, c := range parts {
			state, err := c.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			snapshots = append(snapshots, state)
		}
		divided, err := DivideContacts(snapshots, m, DefaultConfig(), spread(m))
		if err != nil {
			t.Fatal(err)
		}
		n, at, parts = m, make([]int, m), make([]*Contacts, m)
		for i := range parts {
			at[i], parts[i] = len(sessions)/2, newTestContacts(t)
			if err := parts[i].Restore(divided[i]); err != nil {
				t.Fatal(err)
			}
		}
		until(len(sessions))
		for i := range n {
			b.Take(i, &Digest{Until: last})
		}
		b.Collect()
		if got != all || all < 100 || all > len(sessions)*9/10 {
			t.Fatalf("seed %d: %d contacts of %d sessions came from %d inputs and %d from one", seed, got, len(sessions), n, all)
		}
		b = restarted(t, b, 1, names)
		untold(b)
		have, err := b.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want, have) {
			t.Fatalf("seed %d: %d inputs come to another state than one (%d and %d bytes)\n%s", seed, n, len(have), len(want), gocmp.Diff(alone.hosts.list, b.hosts.list))
		}
	}
}

// untold forgets when findings were told: that hangs on how input is cut, and nothing else does.
func untold(b *Behaviour) {
	for _, f := range b.findings {
		f.ToldAt, f.ToldRevision, f.Touched, f.Grown, f.Added, f.Fresh, f.HeldAt = 0, 0, false, 0, span{}, false, 0
	}
	b.touched, b.swept = nil, 0
}

// restarted is a Behaviour of n inputs that goes on from where b stands.
func restarted(t testing.TB, b *Behaviour, n int, names *flow.Names) *Behaviour {
	t.Helper()
	state, err := b.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	next := newTestBehaviour(t, n, names, nil)
	if err := next.Restore(state); err != nil {
		t.Fatal(err)
	}
	return next
}

// TestBehaviourUnwaited: an input that says nothing any more does not make what waits for it
// grow without bound, and what it brings in the end is looked at as well.
func TestBehaviourUnwaited(t *testing.T) {
	names, reg := flow.NewNames(0), prometheus.NewRegistry()
	b := newTestBehaviour(t, 2, names, reg)
	c := Contact{Session: settledSessions(rand.New(rand.NewPCG(1, 1)), names, 1)[0], Class: classSSH, Fate: fateAnswered}
	began := c.Settled
	b.Take(1, &Digest{Until: began})
	const n = 2*maxWaiting + 1000
	for i := range flow.Time(n / 1000) {
		d := Digest{Until: began + i*1000 + 999}
		for j := range flow.Time(1000) {
			c.ID++
			c.Settled = began + i*1000 + j
			d.Contacts = append(d.Contacts, c)
		}
		b.Take(0, &d)
		if b.waiting > maxWaiting {
			t.Fatalf("%d contacts wait, more than %d", b.waiting, maxWaiting)
		}
	}
	if forced := testutil.ToFloat64(b.bm.forced); forced < 2 || forced > 4 {
		t.Errorf("%v times it was not waited any longer; want two or three", forced)
	}
	if lag := testutil.ToFloat64(b.bm.behind[1]); lag < 200 {
		t.Errorf("the input that says nothing is %v s behind", lag)
	}
	until := b.until
	c.ID, c.Settled, c.Client.Workload, c.Client.Addr = 1<<40, began+5, flow.NoName, flow.AddrFrom4(0x0a090909)
	b.Take(1, &Digest{Until: began + n, Contacts: []Contact{c}})
	if _, known := b.hosts.byAddr[c.Client.Addr]; !known || b.waiting != 0 || b.until <= until {
		t.Errorf("what came late was looked at: %v; %d wait, time went from %v to %v", known, b.waiting, until, b.until)
	}
}

// FuzzDecodeDigest: whatever lies on the topic, reading it ends with an error or with a digest
// that says the same when it is written again, and takes memory in proportion.
func FuzzDecodeDigest(f *testing.F) {
	names := flow.NewNames(0)
	c := newTestContacts(f)
	takeIn(c, settledSessions(rand.New(rand.NewPCG(1, 2)), names, 3), nil)
	d := c.Collect(1_700_000_100_000)
	f.Add(d.Encode(names))
	f.Add((&Digest{Until: -5}).Encode(names))
	f.Add([]byte(digestMagic + "\x01\x01\x00\x00\x00\xff\xff\xff\xff\x0f\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		names := flow.NewNames(0)
		d, err := DecodeDigest(b, names)
		if err != nil {
			if d != nil {
				t.Error("an error and a digest")
			}
			return
		}
		if got := len(d.Contacts) * binary.Size(Contact{}); got > len(b) {
			t.Errorf("%d bytes of contacts out of %d", got, len(b))
		}
		again, err := DecodeDigest(d.Encode(names), names)
		if err != nil {
			t.Fatal(err)
		}
		if again.Until != d.Until || !slices.Equal(again.Contacts, d.Contacts) {
			t.Error("read again it says something else")
		}
	})
}

// FuzzContactsRestore: no bytes make restoring panic, and what it takes is a state that can be stored again.
func FuzzContactsRestore(f *testing.F) {
	names := flow.NewNames(0)
	c, err := NewContacts(DefaultConfig(), names, nil)
	if err != nil {
		f.Fatal(err)
	}
	rows := settledSessions(rand.New(rand.NewPCG(5, 5)), names, 300)
	takeIn(c, rows, nil)
	b, err := c.Snapshot()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	f.Fuzz(func(t *testing.T, b []byte) {
		names := flow.NewNames(0)
		c, err := NewContacts(DefaultConfig(), names, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.Restore(b) != nil {
			return
		}
		again, err := c.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Restore(again); err != nil {
			t.Errorf("what was restored and stored is not read again: %v", err)
		}
	})
}
