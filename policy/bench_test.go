package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

// estate makes a policy the size of a large company's: 200 segments, 2,000
// workloads of 100 applications, so many rules and exceptions, a third of them
// with identities.
func estate(rules, exceptions int) *Policy {
	g := gen{rand.New(rand.NewPCG(1, 2))}
	p := &Policy{}
	for i := range 200 {
		s := Segment{Name: fmt.Sprintf("seg-%d", i), Zone: fmt.Sprintf("zone-%d", i%10), Tier: TierNormal, Stage: StageEnforced, DenyIn: true}
		if i%10 == 0 {
			s.Stage = StageStaged
		}
		s.Prefixes = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", i))}
		p.Segments = append(p.Segments, s)
	}
	for i := range 2000 {
		p.Workloads = append(p.Workloads, Workload{Name: fmt.Sprintf("w-%d", i), App: fmt.Sprintf("app-%d", i%100), Role: fmt.Sprintf("role-%d", i%7),
			Env: pick(g, []string{"prod", "test"}), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i % 200), byte(i / 200), 9})}})
	}
	selector := func() (s Selector) {
		switch g.IntN(5) {
		case 0:
			s.Segment = []string{fmt.Sprintf("seg-%d", g.IntN(200))}
		case 1:
			s.Zone = []string{fmt.Sprintf("zone-%d", g.IntN(10))}
		case 2:
			s.CIDR = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", g.IntN(200), g.IntN(12)))}
		default:
			s.App, s.Env = []string{fmt.Sprintf("app-%d", g.IntN(100))}, []string{"prod"}
		}
		return s
	}
	services := func() []Range {
		ports := []uint16{22, 53, 80, 88, 135, 389, 443, 445, 636, 1433, 3306, 3389, 5432, 5985, 6443, 8080, 8443, 9092, 9200, 27017}
		var out []Range
		for range 1 + g.IntN(3) {
			p := pick(g, ports)
			out = append(out, Range{6, p, p})
		}
		return mergeRanges(out)
	}
	identity := func(s Selector) Selector {
		if g.chance(33) {
			s.Identity = []string{fmt.Sprintf("user-%d", g.IntN(500))}
		}
		return s
	}
	var denies []string
	for i := range rules {
		r := Rule{ID: fmt.Sprintf("rule-%04d", i), Action: Allow, From: identity(selector()), To: selector(), Services: services()}
		switch {
		case i%50 == 0:
			r.Action = OverrideDeny
		case i%5 == 0:
			r.Action = Deny
			denies = append(denies, r.ID)
		}
		p.Rules = append(p.Rules, r)
	}
	for i := range exceptions {
		p.Exceptions = append(p.Exceptions, Exception{ID: fmt.Sprintf("EX-%04d", i), From: identity(selector()), To: selector(), Services: services(),
			Overrides: []string{pick(g, denies)}, RequestedBy: "ana", RequestedAt: 1, Approved: []Approval{{By: "raj", At: 2}},
			NotBefore: 10, Expires: flow.Time(1000 + g.IntN(2000))})
	}
	p.sort()
	p.computeHash()
	return p
}

// traffic makes conversations: from workload to workload mostly, on the usual ports.
func traffic(names *flow.Names, n int) []Conversation {
	g := gen{rand.New(rand.NewPCG(3, 4))}
	out := make([]Conversation, n)
	for i := range out {
		end := func() flow.Addr {
			if g.chance(70) {
				return flow.AddrFrom4(10<<24 | uint32(g.IntN(200))<<16 | uint32(g.IntN(10))<<8 | 9)
			}
			return flow.AddrFrom4(10<<24 | uint32(g.IntN(256*65536)))
		}
		out[i] = Conversation{Start: flow.Time(500 + g.IntN(1500)), Proto: 6, Port: pick(g, []uint16{22, 53, 80, 88, 389, 443, 445, 3389, 5432, 8080, 50123}), Known: KnownTuple}
		out[i].Client.Addr, out[i].Server.Addr = end(), end()
		if g.chance(50) {
			out[i].Client.Identity = names.Intern(fmt.Sprintf("user-%d", g.IntN(500)))
		}
	}
	return out
}

// usualShares is what usual traffic is made of, in thousandths: what cmd/postern's
// benchmark of the chain has (docs/performance.md). What is left of 1,000 is denied,
// misuse or unverified, as random traffic has it.
var usualShares = map[flow.Reason]int{flow.ReasonPermitted: 965, flow.ReasonWaived: 10, flow.ReasonUncovered: 10}

// usual is the traffic of an estate that works: a pool of 8,192 conversations (fewer
// where random traffic gives no more of a kind), and a sequence of 65,536 places in
// it. Each turn draws the kind by [usualShares], then one of that kind by Zipf's law
// with exponent 1.1, since a few conversations make up most of the flows. The caches
// hold what recurs, as they do in service.
func usual(x *Index, names *flow.Names) (pool []Conversation, sequence []uint16) {
	const size, rest = 8192, flow.Reason(0)
	kinds := map[flow.Reason][]Conversation{}
	left := map[flow.Reason]int{rest: size * 15 / 1000}
	for reason, share := range usualShares {
		left[reason] = size * share / 1000
	}
	for _, c := range traffic(names, 40*size) {
		var v flow.Verdict
		x.Judge(&c, &v)
		kind := v.Reason
		if usualShares[kind] == 0 {
			kind = rest
		}
		if left[kind] > 0 {
			left[kind]--
			kinds[kind] = append(kinds[kind], c)
		}
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	first, zipf := map[flow.Reason]int{}, map[flow.Reason]*rand.Zipf{}
	for _, kind := range []flow.Reason{flow.ReasonPermitted, flow.ReasonWaived, flow.ReasonUncovered, rest} {
		if len(kinds[kind]) == 0 {
			panic(fmt.Sprintf("random traffic has nothing of kind %v", kind))
		}
		first[kind] = len(pool)
		zipf[kind] = rand.NewZipf(rnd, 1.1, 1, uint64(len(kinds[kind])-1))
		pool = append(pool, kinds[kind]...)
	}
	for range 1 << 16 {
		kind, at := rest, rnd.IntN(1000)
		for _, k := range []flow.Reason{flow.ReasonPermitted, flow.ReasonWaived, flow.ReasonUncovered} {
			if at -= usualShares[k]; at < 0 {
				kind = k
				break
			}
		}
		sequence = append(sequence, uint16(first[kind]+int(zipf[kind].Uint64())))
	}
	return pool, sequence
}

// cpu is the processor time this process has used: on a busy machine the ratio to
// the clock says more than the clock.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkJudge judges two mixes: usual is what [usual] says; random is uniformly
// random pairs and ports of [traffic], four in five denied or misuse and next to none
// recurring soon, as a scan of the whole estate would be.
func BenchmarkJudge(b *testing.B) {
	for _, size := range []struct{ rules, exceptions int }{{100, 50}, {1000, 500}, {5000, 2000}} {
		names := flow.NewNames(0)
		x := Compile(estate(size.rules, size.exceptions), names, DefaultConfig())
		run := func(what string, pool []Conversation, sequence []uint16) {
			b.Run(fmt.Sprintf("rules=%d/exceptions=%d/%s", size.rules, size.exceptions, what), func(b *testing.B) {
				var v flow.Verdict
				b.ReportAllocs()
				i, began := 0, cpu()
				for b.Loop() {
					x.Judge(&pool[sequence[i&0xffff]], &v)
					i++
				}
				b.ReportMetric(float64(cpu()-began)/float64(i), "cpu-ns/op")
			})
		}
		pool, sequence := usual(x, names)
		run("usual", pool, sequence)
		random := make([]uint16, 1<<16)
		for i := range random {
			random[i] = uint16(i & 8191)
		}
		run("random", traffic(names, 8192), random)
	}
}

func BenchmarkJudgeRecord(b *testing.B) {
	names := flow.NewNames(0)
	h := NewHistory(names, DefaultConfig())
	if err := h.Add(estate(1000, 500), Always); err != nil {
		b.Fatal(err)
	}
	flows := traffic(names, 8192)
	for _, o := range []flow.Orientation{flow.Forward, flow.Open} {
		b.Run([]string{"open", "oriented"}[o], func(b *testing.B) {
			records := make([]flow.Record, len(flows))
			for i, c := range flows {
				records[i] = flow.Record{Start: c.Start, Src: c.Client.Addr, Dst: c.Server.Addr, SrcPort: 40000, DstPort: c.Port, Proto: 6, SrcIdentity: c.Client.Identity,
					Has: flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto}
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				r := &records[i&8191]
				r.Oriented = o
				h.JudgeRecord(r)
				i++
			}
		})
	}
}

func BenchmarkEndpoint(b *testing.B) {
	names := flow.NewNames(0)
	x := Compile(estate(1000, 500), names, DefaultConfig())
	flows := traffic(names, 8192)
	b.Run("v4", func(b *testing.B) {
		i := 0
		for b.Loop() {
			x.Endpoint(flows[i&8191].Client.Addr)
			i++
		}
	})
	v6 := make([]flow.Addr, 8192)
	for i := range v6 {
		v6[i] = flow.Addr{Hi: 0x20010db8_00000000 | uint64(i), Lo: uint64(i)}
	}
	b.Run("v6", func(b *testing.B) {
		i := 0
		for b.Loop() {
			x.Endpoint(v6[i&8191])
			i++
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	p := estate(1000, 500)
	for b.Loop() {
		Compile(p, flow.NewNames(0), DefaultConfig())
	}
}
