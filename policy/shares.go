package policy

import (
	"cmp"
	"math/big"
	"net/netip"
	"slices"

	"github.com/postern/postern/flow"
)

// Share is how much of the estate stands at one stage and tier.
type Share struct {
	Stage     Stage
	Tier      Tier
	Workloads int
	// Addresses counts the IPv4 addresses of segments, each in the segment of its
	// longest prefix. IPv6 is left out: one /64 would outweigh all the rest.
	Addresses float64
}

// Shares counts workloads and addresses by stage and tier, sorted by both. A
// workload with addresses in several segments counts at the least of their stages
// and the highest of their tiers; StageNone and TierNone are workloads in no
// segment. The shares of management's metric are these counts over their sums.
func (x *Index) Shares() []Share {
	type key struct {
		stage Stage
		tier  Tier
	}
	counts := map[key]*Share{}
	at := func(k key) *Share {
		if counts[k] == nil {
			counts[k] = &Share{Stage: k.stage, Tier: k.tier}
		}
		return counts[k]
	}
	for i := range x.policy.Workloads {
		w := &x.policy.Workloads[i]
		k := key{StageEnforced, TierNone}
		if len(w.Addresses) == 0 {
			k.stage = StageNone
		}
		for _, a := range w.Addresses {
			e := x.Endpoint(flow.AddrFromNetip(a))
			k = key{min(k.stage, e.Stage), max(k.tier, e.Tier)}
		}
		at(k).Workloads++
	}
	for i := range x.policy.Segments {
		s := &x.policy.Segments[i]
		n, _ := x.ownAddresses(s).Float64()
		at(key{s.Stage, s.Tier}).Addresses += n
	}
	out := make([]Share, 0, len(counts))
	for _, s := range counts {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b Share) int { return cmp.Or(cmp.Compare(a.Stage, b.Stage), cmp.Compare(a.Tier, b.Tier)) })
	return out
}

// ownAddresses counts the IPv4 addresses of a segment's prefixes without the
// prefixes inside them that belong to another segment or stand by themselves.
func (x *Index) ownAddresses(s *Segment) *big.Int {
	total := new(big.Int)
	for _, p := range s.Prefixes {
		if p.Addr().Is6() {
			continue
		}
		total.Add(total, prefixSize(p))
		var inner []netip.Prefix
		for i := range x.policy.Segments {
			for _, q := range x.policy.Segments[i].Prefixes {
				if q.Bits() > p.Bits() && p.Contains(q.Addr()) {
					inner = append(inner, q)
				}
			}
		}
		// Only the outermost inside p: what is inside those is theirs to count.
		for _, q := range inner {
			if !slices.ContainsFunc(inner, func(o netip.Prefix) bool { return o.Bits() < q.Bits() && o.Contains(q.Addr()) }) {
				total.Sub(total, prefixSize(q))
			}
		}
	}
	return total
}
