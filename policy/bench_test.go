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

// mix picks from random traffic so that nine in ten conversations are as they
// should be, as in an estate that works, and one in ten is misuse or unverified.
func mix(x *Index, names *flow.Names, n int) []Conversation {
	var good, bad, out []Conversation
	for _, c := range traffic(names, 20*n) {
		var v flow.Verdict
		x.Judge(&c, &v)
		switch v.Reason {
		case flow.ReasonPermitted, flow.ReasonWaived, flow.ReasonUncovered:
			good = append(good, c)
		default:
			bad = append(bad, c)
		}
	}
	for i := range n {
		if i%10 == 0 {
			out = append(out, bad[i%len(bad)])
		} else {
			out = append(out, good[i%len(good)])
		}
	}
	return out
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

func BenchmarkJudge(b *testing.B) {
	for _, size := range []struct{ rules, exceptions int }{{100, 50}, {1000, 500}, {5000, 2000}} {
		names := flow.NewNames(0)
		x := Compile(estate(size.rules, size.exceptions), names, DefaultConfig())
		for what, flows := range map[string][]Conversation{"usual": mix(x, names, 8192), "random": traffic(names, 8192)} {
			b.Run(fmt.Sprintf("rules=%d/exceptions=%d/%s", size.rules, size.exceptions, what), func(b *testing.B) {
				var v flow.Verdict
				b.ReportAllocs()
				i, began := 0, cpu()
				for b.Loop() {
					x.Judge(&flows[i&8191], &v)
					i++
				}
				b.ReportMetric(float64(cpu()-began)/float64(i), "cpu-ns/op")
			})
		}
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
