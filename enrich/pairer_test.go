package enrich

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// oddDenied is a policy for tests: a client whose address is odd may not reach
// anyone, every other may. It follows the contract of Policy for open records.
type oddDenied struct{ names *flow.Names }

func (p *oddDenied) JudgeRecordAs(r *flow.Record, _ *policy.Who) bool {
	deny := func(client flow.Addr) bool { return client.Lo&1 == 1 }
	src, dst := deny(r.Src), deny(r.Dst)
	var denied bool
	settled := true
	switch r.Oriented {
	case flow.Forward:
		denied = src
	case flow.Reverse:
		denied = dst
	default:
		denied, settled = src && dst, src == dst
	}
	v := &r.Verdict
	*v = flow.Verdict{Reason: flow.ReasonPermitted, Expected: flow.ExpectAllow, Outcome: flow.OutcomePermitted, Rule: p.names.Intern("allow")}
	if denied {
		*v = flow.Verdict{Reason: flow.ReasonDenied, Expected: flow.ExpectDeny, Outcome: flow.OutcomeAttempted, Rule: p.names.Intern("deny")}
		if r.OtherHalf || r.Biflow() || r.Oriented == flow.Reverse { // an answer shows that it got through
			v.Outcome = flow.OutcomeEscaped
		}
	}
	r.SrcSegment = p.names.Intern([]string{"even", "odd"}[r.Src.Lo&1])
	return settled
}

func newTestPairer(t testing.TB, cfg Config) (*Pairer, *oddDenied) {
	t.Helper()
	names := flow.NewNames(0)
	j := &oddDenied{names: names}
	p, err := NewPairer(cfg, j, nil, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p, j
}

// half makes one direction of a TCP conversation, times in seconds.
func half(id uint64, src string, sport uint16, dst string, dport uint16, start, end float64, f uint16) flow.Record {
	r := rec(flow.ProtoTCP, src, sport, dst, dport)
	r.ID, r.Start, r.End = id, flow.Time(start*1000)+1e12, flow.Time(end*1000)+1e12
	r.Has |= flow.HasTCPFlags
	r.TCPFlags = f
	r.Exporter = flow.MustParseAddr("192.0.2.1")
	return r
}

func batchOf(rs ...flow.Record) *flow.Batch {
	b := flow.NewBatch(len(rs), nil)
	b.Records = append(b.Records, rs...)
	return b
}

// run processes one batch and flushes.
func run(p *Pairer, rs ...flow.Record) []flow.Record {
	out := flow.NewBatch(4, nil)
	p.Process(batchOf(rs...), out)
	p.Flush(out)
	return out.Records
}

// TestPairing: 10.0.0.1 (odd) may not reach 10.0.0.2; the other way is allowed.
func TestPairing(t *testing.T) {
	const odd, even = "10.0.0.1", "10.0.0.2"
	for _, c := range []struct {
		name   string
		rs     []flow.Record
		client string // of every record; "" for open
		want   flow.Outcome
		other  bool
	}{
		{"the earlier half is the client's", []flow.Record{half(1, odd, 51000, even, 52000, 0, 2, all), half(2, even, 52000, odd, 51000, 0.01, 2, all)}, odd, flow.OutcomeEscaped, true},
		{"also when the reply is seen first", []flow.Record{half(1, even, 52000, odd, 51000, 0.01, 2, all), half(2, odd, 51000, even, 52000, 0, 2, all)}, odd, flow.OutcomeEscaped, true},
		{"and when it is the other's", []flow.Record{half(1, odd, 51000, even, 52000, 0.01, 2, all), half(2, even, 52000, odd, 51000, 0, 2, all)}, even, flow.OutcomePermitted, true},
		{"equal starts stay open", []flow.Record{half(1, odd, 51000, even, 52000, 0, 2, all), half(2, even, 52000, odd, 51000, 0, 2, all)}, "", flow.OutcomePermitted, true},
		{"a cut conversation stays open", []flow.Record{half(1, odd, 51000, even, 52000, 0, 2, flow.ACK), half(2, even, 52000, odd, 51000, 0.5, 2, flow.ACK)}, "", flow.OutcomePermitted, true},
		{"no other half", []flow.Record{half(1, odd, 51000, even, 52000, 0, 2, all)}, "", flow.OutcomePermitted, false},
		{"other exporter's half is not ours", []flow.Record{half(1, odd, 51000, even, 52000, 0, 2, all),
			with(half(2, even, 52000, odd, 51000, 0.01, 2, all), func(r *flow.Record) { r.Exporter.Lo++ })}, "", flow.OutcomePermitted, false},
		{"too far apart", []flow.Record{half(1, odd, 51000, even, 52000, 0, 2, all), half(2, even, 52000, odd, 51000, 0.01, 13, all)}, "", flow.OutcomePermitted, false},
		{"denied and only attempted", []flow.Record{half(1, odd, 51000, even, 445, 0, 2, flow.SYN)}, odd, flow.OutcomeAttempted, false},
		{"denied and answered", []flow.Record{half(1, odd, 51000, even, 445, 0, 2, flow.SYN), half(2, even, 445, odd, 51000, 0.01, 2, flow.SYN|flow.ACK)}, odd, flow.OutcomeEscaped, true},
		{"a lone syn decides over the start", []flow.Record{half(1, odd, 51000, even, 52000, 1, 2, flow.SYN), half(2, even, 52000, odd, 51000, 0.5, 2, flow.RST|flow.ACK)}, odd, flow.OutcomeEscaped, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, _ := newTestPairer(t, DefaultConfig())
			got := run(p, c.rs...)
			if len(got) != len(c.rs) {
				t.Fatalf("%d records came out of %d", len(got), len(c.rs))
			}
			for _, r := range got {
				client, _ := r.Ends()
				if r.Oriented == flow.Open && c.client != "" || r.Oriented != flow.Open && client.String() != c.client {
					t.Errorf("record %d: client %v (orientation %d), want %q", r.ID, client, r.Oriented, c.client)
				}
				if (r.Quality&flow.QualityDirectionOpen != 0) != (c.client == "") {
					t.Errorf("record %d: quality %v", r.ID, r.Quality.Texts())
				}
				if r.Verdict.Outcome != c.want || r.OtherHalf != c.other {
					t.Errorf("record %d: %v, other half %v; want %v, %v", r.ID, r.Verdict.Outcome, r.OtherHalf, c.want, c.other)
				}
			}
		})
	}
}

func TestWaitingIsBounded(t *testing.T) {
	cfg := DefaultConfig()
	cfg.MaxHeld = 10
	p, _ := newTestPairer(t, cfg)
	out := flow.NewBatch(4, nil)
	for i := range 50 {
		p.Process(batchOf(half(uint64(i), "10.0.0.1", uint16(50000+i), "10.0.0.2", 52000, 0, 1, all)), out)
	}
	if p.Len() != 10 || len(out.Records) != 40 {
		t.Fatalf("%d wait and %d were passed on, want 10 and 40", p.Len(), len(out.Records))
	}
	var held uint64
	p.Held(func(e flow.Addr, n uint64) { held += n })
	if held != 10 {
		t.Errorf("the ledger is told of %d held records, want 10", held)
	}
	// One conversation alone may not fill the table either.
	p, _ = newTestPairer(t, DefaultConfig())
	for i := range 1000 {
		p.Process(batchOf(half(uint64(i), "10.0.0.1", 51000, "10.0.0.2", 52000, 0, 1, all)), out)
	}
	if p.Len() != maxGroup {
		t.Errorf("%d records of one conversation wait, want %d", p.Len(), maxGroup)
	}
	p.Flush(out)
	if p.Len() != 0 || len(p.groups) != 0 || len(p.free) != len(p.members) {
		t.Errorf("after the flush %d wait, %d groups and %d of %d places are left", p.Len(), len(p.groups), len(p.members)-len(p.free), len(p.members))
	}
}

// TestTickEndsTheWait: without traffic the injected clock moves event time on.
func TestTickEndsTheWait(t *testing.T) {
	p, _ := newTestPairer(t, DefaultConfig())
	out := flow.NewBatch(4, nil)
	r := half(1, "10.0.0.1", 51000, "10.0.0.2", 52000, 0, 1, all)
	p.Process(batchOf(r), out)
	p.Tick(r.End.Add(15*time.Second), out)
	if len(out.Records) != 0 {
		t.Fatal("released before the window was over")
	}
	p.Tick(r.End.Add(15*time.Second+time.Millisecond), out)
	if len(out.Records) != 1 || p.Len() != 0 {
		t.Fatalf("%d released, %d wait; want 1 and 0", len(out.Records), p.Len())
	}
}

// TestClockTolerance: an exporter with a clock far ahead ends nobody's wait.
func TestClockTolerance(t *testing.T) {
	cfg := DefaultConfig()
	cfg.ClockTolerance = 30 * time.Second
	p, _ := newTestPairer(t, cfg)
	out := flow.NewBatch(4, nil)
	a := half(1, "10.0.0.1", 51000, "10.0.0.2", 52000, 0, 1, all)
	a.Received = a.End
	forged := half(2, "10.0.0.4", 51000, "10.0.0.6", 443, 86400, 86400, all)
	forged.Received = a.End
	p.Process(batchOf(a, forged), out)
	if p.clock != a.End+30_000 {
		t.Errorf("event time ran to %v, want %v", p.clock, a.End+30_000)
	}
}

// traffic makes a random run of conversations in order of their end, many with
// the same endpoints, and gives each record an order of arrival no later than
// jitter after its end.
func traffic(rng *rand.Rand, n int) []flow.Record {
	var rs []flow.Record
	id := uint64(0)
	for len(rs) < n {
		a, b := fmt.Sprintf("10.0.0.%d", 1+rng.IntN(6)), fmt.Sprintf("10.0.1.%d", 1+rng.IntN(6))
		if rng.IntN(2) == 0 {
			a, b = b, a
		}
		sp, dp := uint16(50000+rng.IntN(3)), uint16(52000+rng.IntN(3))
		if rng.IntN(3) == 0 {
			dp = 445
		}
		at := rng.Float64() * 120
		d := rng.Float64() * 4
		f := []uint16{all, all, flow.ACK, flow.SYN, flow.SYN | flow.ACK}
		lag := float64(rng.IntN(3)) * 0.02
		id++
		rs = append(rs, half(id, a, sp, b, dp, at, at+d, f[rng.IntN(5)]))
		if rng.IntN(4) > 0 {
			id++
			rs = append(rs, half(id, b, dp, a, sp, at+lag, at+d+lag*float64(rng.IntN(100)), f[rng.IntN(5)]))
		}
		if rng.IntN(8) == 0 {
			rs[len(rs)-1].Has |= flow.HasRevPackets
		}
	}
	return rs
}

// arrive orders records by their end moved back by up to jitter.
func arrive(rng *rand.Rand, rs []flow.Record, jitter time.Duration) []flow.Record {
	key := map[uint64]flow.Time{}
	for i := range rs {
		key[rs[i].ID] = rs[i].End.Add(time.Duration(rng.Int64N(int64(jitter) + 1)))
	}
	out := slices.Clone(rs)
	slices.SortFunc(out, func(a, b flow.Record) int {
		return byTime(key[a.ID], key[b.ID], a.ID, b.ID)
	})
	return out
}

func byTime(a, b flow.Time, x, y uint64) int {
	if a != b {
		return int(a - b)
	}
	return int(x) - int(y)
}

// TestArrivalOrderAndCuts: whatever the order of arrival within the window, the
// cut into batches and the restarts in between, every record comes out once and
// the same; and for one order of arrival the output is the same to the byte.
func TestArrivalOrderAndCuts(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for round := range 40 {
		rs := traffic(rng, 400)
		var want []flow.Record
		for variant := range 4 {
			order := arrive(rng, rs, 4900*time.Millisecond)
			whole, _ := newTestPairer(t, DefaultConfig())
			ref := run(whole, order...)
			textual(ref, whole.names)

			p, _ := newTestPairer(t, DefaultConfig())
			var got []flow.Record
			for rest := order; len(rest) > 0; {
				n := min(len(rest), 1+rng.IntN(60))
				out := flow.NewBatch(1, nil)
				p.Process(batchOf(rest[:n]...), out)
				textual(out.Records, p.names) // names mean nothing after a restart
				got, rest = append(got, out.Records...), rest[n:]
				var held uint64
				p.Held(func(_ flow.Addr, n uint64) { held += n })
				if int(held) != len(order)-len(rest)-len(got) || p.Len() != int(held) {
					t.Fatalf("round %d: %d came in, %d out, but %d are held", round, len(order)-len(rest), len(got), held)
				}
				if rng.IntN(3) == 0 {
					p = restarted(t, p)
				}
			}
			out := flow.NewBatch(1, nil)
			p.Flush(out)
			textual(out.Records, p.names)
			got = append(got, out.Records...)
			if !slices.Equal(ref, got) {
				t.Fatalf("round %d, variant %d: cutting and restarting changed the output: %s", round, variant, cmp.Diff(ref, got))
			}
			byID := slices.Clone(got)
			slices.SortFunc(byID, func(a, b flow.Record) int { return int(a.ID) - int(b.ID) })
			if want == nil {
				want = byID
			} else if !slices.Equal(want, byID) {
				t.Fatalf("round %d, variant %d: the order of arrival shows: %s", round, variant, cmp.Diff(want, byID))
			}
		}
	}
}

// textual replaces names by numbers that depend on their text alone.
func textual(rs []flow.Record, names *flow.Names) {
	for i := range rs {
		for _, n := range namesOf(&rs[i]) {
			h := uint32(2166136261)
			for _, c := range []byte(names.Text(*n)) {
				h = (h ^ uint32(c)) * 16777619
			}
			*n = flow.Name(h)
		}
	}
}

// restarted is p after a restart: another process with a name table of its own.
func restarted(t testing.TB, p *Pairer) *Pairer {
	t.Helper()
	b, err := p.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	q, _ := newTestPairer(t, p.cfg)
	q.names.Intern("something else comes first")
	if err := q.Restore(b); err != nil {
		t.Fatal(err)
	}
	return q
}

func TestRestoreRefuses(t *testing.T) {
	for _, s := range []string{"", "{}", `{"version":1,"record":1}`, `{"version":99}`, "null"} {
		p, _ := newTestPairer(t, DefaultConfig())
		if err := p.Restore([]byte(s)); err == nil {
			t.Errorf("restored from %q", s)
		}
	}
}

// TestNamesOf: the list of a record's names is complete.
func TestNamesOf(t *testing.T) {
	var count func(reflect.Type) int
	count = func(ty reflect.Type) (n int) {
		switch {
		case ty == reflect.TypeFor[flow.Name]():
			return 1
		case ty.Kind() == reflect.Struct:
			for field := range ty.Fields() {
				n += count(field.Type)
			}
		case ty.Kind() == reflect.Array:
			return ty.Len() * count(ty.Elem())
		}
		return n
	}
	var r flow.Record
	seen := map[*flow.Name]bool{}
	for _, n := range namesOf(&r) {
		seen[n] = true
	}
	if n := count(reflect.TypeFor[flow.Record]()); n != len(seen) {
		t.Errorf("a record holds %d names, the list has %d", n, len(seen))
	}
}

func TestConfig(t *testing.T) {
	for _, f := range []func(*Config){
		func(c *Config) { c.Window = 0 }, func(c *Config) { c.Window = time.Hour },
		func(c *Config) { c.MaxHeld = 0 },
	} {
		c := DefaultConfig()
		f(&c)
		if c.Validate() == nil {
			t.Errorf("accepted %+v", c)
		}
	}
}

// BenchmarkPairerIdentity is what it costs a flow to find out who is behind both ends of it, by
// what is held: nothing, or 200,000 addresses of which the flow's are some.
func BenchmarkPairerIdentity(b *testing.B) {
	for _, held := range []int{-1, 0, 200_000} {
		name := fmt.Sprint(held, " addresses")
		if held < 0 {
			name = "no store"
		}
		b.Run(name, func(b *testing.B) {
			p, _ := newTestPairer(b, DefaultConfig())
			if held >= 0 {
				s, err := NewIdentity(DefaultIdentityConfig(), p.names, nil)
				if err != nil {
					b.Fatal(err)
				}
				for i := range held {
					s.Take([]flow.Fact{{Source: "dhcp", Kind: flow.FactLease, Addr: flow.AddrFrom4(0x0a000000 + 2*uint32(i)), Since: 1, Known: 1, Workload: fmt.Sprint("host-", i), User: fmt.Sprint("user-", i%5000)}}, flow.Heartbeat{})
				}
				p.Identify(s)
			}
			rng := rand.New(rand.NewPCG(1, 1))
			in, out := flow.NewBatch(4096, nil), flow.NewBatch(8192, nil)
			for i := range 4096 {
				r := half(uint64(i), "10.0.0.2", uint16(40000+i), "10.0.0.4", 445, 0, 0, flow.SYN)
				r.Src, r.Dst = flow.AddrFrom4(0x0a000000+2*rng.Uint32N(200_000)), flow.AddrFrom4(0x0a000000+2*rng.Uint32N(200_000))
				in.Records = append(in.Records, r)
			}
			b.ReportAllocs()
			at := flow.Time(1e9)
			for b.Loop() {
				for i := range in.Records {
					in.Records[i].Start, in.Records[i].End = at, at
				}
				at++
				out.Records = out.Records[:0]
				p.Process(in, out)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/4096, "ns/flow")
		})
	}
}

func BenchmarkPairer(b *testing.B) {
	for _, bb := range []struct{ name, src, dst string }{{"passes", "10.0.0.2", "10.0.0.4"}, {"waits", "10.0.0.1", "10.0.0.4"}} {
		b.Run(bb.name, func(b *testing.B) {
			p, _ := newTestPairer(b, DefaultConfig())
			in, out := flow.NewBatch(4096, nil), flow.NewBatch(8192, nil)
			for i := range 4096 {
				in.Records = append(in.Records, half(uint64(i), bb.src, uint16(40000+i), bb.dst, 445, 0, 0, flow.SYN))
			}
			b.ReportAllocs()
			at := flow.Time(1e12)
			for b.Loop() {
				for i := range in.Records {
					in.Records[i].Start, in.Records[i].End = at, at
					at++
				}
				out.Records = out.Records[:0]
				p.Process(in, out)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/4096, "ns/flow")
		})
	}
}
