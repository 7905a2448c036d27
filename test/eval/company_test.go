package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// testSeed is none of the table's.
const testSeed = 7

func testCompany(t testing.TB, seed uint64, size, days int) *company {
	t.Helper()
	b, err := loadBehaviour(behaviourFile, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if days > 0 {
		b.Days, b.Learning = days, days/2
	}
	return newCompany(b, seed, size)
}

func everything(c *company, l layout) (out []flow.Record) {
	t := newTraffic(c, l)
	for rs := t.next(); rs != nil; rs = t.next() {
		out = append(out, rs...)
	}
	return out
}

func TestSeedsAreApart(t *testing.T) {
	if slices.Contains(evalSeeds, testSeed) {
		t.Error("tests use a seed of the table")
	}
}

func TestBehaviourErrors(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"services: {dns: 1}", "services: {dms: 1}", `no service is called "dms"`},
		{"who: [hypervisor], to: [hypervisor]", "who: [hypervisors], to: [hypervisor]", `no role is called "hypervisors"`},
		{"when: patching", "when: patchday", `no times are called "patchday"`},
		{"port: udp/53,", "port: dns,", `port "dns" is none`},
		{"learning: 7", "lerning: 7", "lerning"},
	} {
		_, err := loadBehaviour([]byte(strings.Replace(string(behaviourFile), c.from, c.to, 1)), 1, 1)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s in the place of %s: %v, want %s", c.to, c.from, err, c.want)
		}
	}
}

// TestDeterminism: a seed gives one company and one traffic, another seed another.
func TestDeterminism(t *testing.T) {
	a, b := everything(testCompany(t, testSeed, 250, 2), ipfix), everything(testCompany(t, testSeed, 250, 2), ipfix)
	if len(a) < 10_000 || !slices.Equal(a, b) {
		t.Fatalf("the same seed gave %d and %d records, or others", len(a), len(b))
	}
	if other := everything(testCompany(t, testSeed+1, 250, 2), ipfix); slices.Equal(a, other) {
		t.Error("another seed gave the same records")
	}
	seen := map[uint64]bool{}
	for i := range a {
		r := &a[i]
		if seen[r.ID] || r.Start > r.End || i > 0 && r.End < a[i-1].End {
			t.Fatalf("record %d: id %d is there twice, or it is out of order", i, r.ID)
		}
		seen[r.ID] = true
	}
}

// TestLayouts: v5, v9 and IPFIX tell the same conversations, IPFIX one record for two.
func TestLayouts(t *testing.T) {
	c := testCompany(t, testSeed, 250, 2)
	conversations := func(l layout) map[uint64][2]uint64 {
		out := map[uint64][2]uint64{}
		for _, r := range everything(c, l) {
			if r.IsICMP() {
				continue // of a request that nobody answers the types differ
			}
			v := out[r.Conversation()]
			out[r.Conversation()] = [2]uint64{v[0] + r.BytesRaw + r.RevBytesRaw, v[1] + r.PacketsRaw + r.RevPacketsRaw}
		}
		return out
	}
	five := conversations(netflow5)
	if d := cmp.Diff(five, conversations(netflow9)); d != "" {
		t.Error("v5 and v9 differ")
	}
	if d := cmp.Diff(five, conversations(ipfix)); d != "" {
		t.Errorf("v5 and IPFIX differ: %.400s", d)
	}
}

// TestForkGoesOn: what goes on from the middle is what would have come.
func TestForkGoesOn(t *testing.T) {
	c := testCompany(t, testSeed, 250, 2)
	whole := everything(c, netflow5)
	first := newTraffic(c, netflow5)
	n := 0
	for first.day < 1 {
		n += len(first.next())
	}
	second := first.fork(netflow9)
	for rs := second.next(); rs != nil; rs = second.next() {
		for i := range rs {
			if rs[i].ID != whole[n].ID || rs[i].BytesRaw != whole[n].BytesRaw {
				t.Fatalf("record %d differs", n)
			}
			n++
		}
	}
	if n != len(whole) {
		t.Errorf("%d records, want %d", n, len(whole))
	}
}

// TestOrdinaryDays: what makes the traffic hard is in it.
func TestOrdinaryDays(t *testing.T) {
	c := testCompany(t, testSeed, 1000, 7)
	refused, alone, between, remote := 0, 0, 0, 0
	office := map[uint32]bool{}
	for i := range c.hosts {
		if c.hosts[i].office {
			for day := range c.b.Days {
				office[c.addr(int32(i), day)] = true
			}
		}
	}
	byDay := map[string]int{}
	for _, r := range everything(c, ipfix) {
		byDay[r.Start.Std().Weekday().String()]++
		switch {
		case r.Proto != flow.ProtoTCP:
			continue
		case r.PacketsRaw == 0 || r.RevPacketsRaw == 0:
			alone++
		case (r.TCPFlags|r.RevTCPFlags)&(flow.RST|flow.PSH) == flow.RST:
			refused++
		}
		if office[r.Src.V4()] && office[r.Dst.V4()] {
			between++
			if r.DstPort == 3389 || r.SrcPort == 3389 || r.DstPort == 135 || r.SrcPort == 135 {
				remote++
			}
		}
	}
	if alone < 1000 || refused < 1000 || between < 1000 || remote < 100 {
		t.Errorf("%d without an answer, %d refused, %d between offices, %d of them remote administration: too few", alone, refused, between, remote)
	}
	if byDay["Sunday"]*2 > byDay["Tuesday"] {
		t.Errorf("Sundays are like Tuesdays: %v", byDay)
	}
}

// TestAddresses: no two hosts hold an address at once, and leases change.
func TestAddresses(t *testing.T) {
	c := testCompany(t, testSeed, 1000, 0)
	moved := 0
	for day := range c.b.Days {
		held := map[uint32]int32{}
		for i := range c.hosts {
			a := c.addr(int32(i), day)
			if other, ok := held[a]; ok {
				t.Fatalf("day %d: hosts %d and %d both have %s", day, other, i, flow.AddrFrom4(a))
			}
			held[a] = int32(i)
			if day > 0 && a != c.addr(int32(i), day-1) {
				moved++
			}
		}
	}
	if moved < 100 {
		t.Errorf("%d leases changed in %d days", moved, c.b.Days)
	}
}

// TestOrdinaryPolicy: the policy of a generated company loads, and has ways to misuse.
func TestOrdinaryPolicy(t *testing.T) {
	text, ways := testCompany(t, testSeed, 1000, 0).ordinaryPolicy()
	if _, err := newStages(flow.NewNames(0), text); err != nil {
		t.Error(err)
	}
	if len(ways) != pivots {
		t.Errorf("%d ways", len(ways))
	}
}
