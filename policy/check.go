package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"

	"github.com/postern/postern/flow"
)

// check looks at the whole once every file is read: references, doubles, what
// overlaps, what is too wide.
func (b *builder) check() {
	b.checkSegments()
	b.checkWorkloads()
	b.resolveServices()
	b.checkRefs()
	b.checkOverrides()
	for i := range b.p.Exceptions {
		b.checkWidth(&b.p.Exceptions[i])
	}
	b.checkSuppressions()
}

func (b *builder) checkSegments() {
	names := map[string]Pos{}
	prefixes := map[netip.Prefix]textAt{}
	for i := range b.p.Segments {
		s := &b.p.Segments[i]
		if before, twice := names[s.Name]; twice {
			b.diags.errorf(s.Pos, "put its prefixes together there: "+before.String(), "the segment %s is declared twice", quote(s.Name))
			continue
		}
		names[s.Name] = s.Pos
		for j, p := range s.Prefixes {
			if before, twice := prefixes[p]; twice {
				b.diags.errorf(s.prefixPos[j], "keep it in one; the other is at "+before.pos.String(), "the prefix %s is in segment %s and in segment %s", p, quote(before.text), quote(s.Name))
				continue
			}
			prefixes[p] = textAt{s.Name, s.prefixPos[j]}
			if wholly(p, specialPrefixes) {
				b.diags.warnf(s.prefixPos[j], "leave it out; a rule's cidr can speak of such addresses", "%s is multicast, broadcast, link-local or unspecified and stays uncovered", p)
			}
		}
	}
}

func wholly(p netip.Prefix, in []netip.Prefix) bool {
	return slices.ContainsFunc(in, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
}

func (b *builder) checkWorkloads() {
	names := map[string]Pos{}
	addresses := map[netip.Addr]textAt{}
	var known bart.Table[string]
	for i := range b.p.Workloads {
		w := &b.p.Workloads[i]
		if before, twice := names[w.Name]; twice {
			b.diags.errorf(w.Pos, "put its addresses together there: "+before.String(), "the workload %s is declared twice", quote(w.Name))
			continue
		}
		names[w.Name] = w.Pos
		for j, a := range w.Addresses {
			if before, twice := addresses[a]; twice {
				if before.text == w.Name {
					b.diags.warnf(w.addressPos[j], "keep it once", "the address %s stands twice in workload %s", a, quote(w.Name))
				} else {
					b.diags.errorf(w.addressPos[j], "an address is in one workload; the other is at "+before.pos.String(), "the address %s is in workload %s and in workload %s", a, quote(before.text), quote(w.Name))
				}
				continue
			}
			addresses[a] = textAt{w.Name, w.addressPos[j]}
			known.Insert(netip.PrefixFrom(a, a.BitLen()), w.Name)
		}
	}
	for _, c := range b.cidrs {
		if !c.prefix.IsSingleIP() {
			continue
		}
		if name, ok := known.Lookup(c.prefix.Addr()); ok {
			b.diags.warnf(c.pos, "name the workload, or its app and role: they outlive an address", "cidr %s is the workload %s", c.prefix, quote(name))
		}
	}
}

// resolveServices turns the services of rules and exceptions into ranges.
func (b *builder) resolveServices() {
	named := make(map[string][]Range, len(b.p.Services))
	for _, s := range b.p.Services {
		named[s.Name] = s.Ranges
	}
	names := keysOf(named)
	resolve := func(refs []textAt) (out []Range) {
		for _, v := range refs {
			if ranges, ok := named[v.text]; ok {
				out = append(out, ranges...)
				continue
			}
			r, err := ParseService(v.text)
			if err == nil {
				out = append(out, r)
				continue
			}
			if near := nearest(v.text, names); near != "" && !strings.Contains(v.text, "/") {
				b.diags.errorf(v.pos, "did you mean "+quote(near)+"? Otherwise "+serviceForms, "no service %s is declared", quote(v.text))
				continue
			}
			b.wrong(v.pos, err)
		}
		return mergeRanges(out)
	}
	for i := range b.p.Rules {
		r := &b.p.Rules[i]
		r.Services = resolve(b.ruleServices[r.ID])
	}
	for i := range b.p.Exceptions {
		e := &b.p.Exceptions[i]
		e.Services = resolve(b.exceptServices[e.ID])
	}
}

// checkRefs holds selectors against what is declared. Segments and zones are
// declared here alone, so a name that is not is a mistake; workloads and what they
// run may come from an inventory, so there it is only odd.
func (b *builder) checkRefs() {
	var known [refEnv + 1]map[string]bool
	for i := range known {
		known[i] = map[string]bool{}
	}
	known[refSegment][InternetSegment] = true
	for _, s := range b.p.Segments {
		known[refSegment][s.Name], known[refZone][s.Zone] = true, true
	}
	for _, w := range b.p.Workloads {
		known[refWorkload][w.Name], known[refApp][w.App], known[refRole][w.Role], known[refEnv][w.Env] = true, true, true, true
	}
	for _, m := range known {
		delete(m, "")
	}
	for _, r := range b.refs {
		if known[r.kind][r.at.text] {
			continue
		}
		what := refTexts[r.kind]
		if r.kind == refSegment || r.kind == refZone {
			b.diags.errorf(r.at.pos, didYouMean(r.at.text, keysOf(known[r.kind])), "no %s %s is declared", what, quote(r.at.text))
			continue
		}
		right := "it matches nothing until an inventory names one"
		if near := nearest(r.at.text, keysOf(known[r.kind])); near != "" {
			right = "did you mean " + quote(near) + "? Otherwise " + right
		}
		b.diags.warnf(r.at.pos, right, "no workload here has %s %s", what, quote(r.at.text))
	}
}

func (b *builder) checkOverrides() {
	rules := make(map[string]*Rule, len(b.p.Rules))
	var denies []string
	for i := range b.p.Rules {
		r := &b.p.Rules[i]
		rules[r.ID] = r
		if r.Action == Deny {
			denies = append(denies, r.ID)
		}
	}
	for i := range b.p.Exceptions {
		e := &b.p.Exceptions[i]
		for _, v := range b.overrides[e.ID] {
			switch r := rules[v.text]; {
			case r == nil:
				b.diags.errorf(v.pos, didYouMean(v.text, denies), "no rule %s is declared", quote(v.text))
			case r.Action == OverrideDeny:
				b.diags.errorf(v.pos, "no exception beats an override-deny; name deny rules only", "the rule %s is an override-deny", quote(v.text))
			case r.Action == Allow:
				b.diags.errorf(v.pos, "name the deny rules that stand in the way", "the rule %s allows; there is nothing to override", quote(v.text))
			default:
				e.Overrides = append(e.Overrides, v.text)
			}
		}
		e.Overrides = sortedSet(e.Overrides)
	}
}

// Narrowest lengths an exception's cidr may have: a shorter prefix holds whole
// registries' worth of addresses and is a wildcard by another name.
const (
	minExceptionBits4 = 8
	minExceptionBits6 = 16
)

// checkWidth refuses wildcards in exceptions: an end that is everything, and any
// port for anybody. Any port for somebody is odd.
func (b *builder) checkWidth(e *Exception) {
	for _, end := range []struct {
		what string
		s    *Selector
	}{{"from", &e.From}, {"to", &e.To}} {
		if end.s.keys() == 0 && (end.s.Any || len(end.s.Not) > 0) {
			b.diags.errorf(end.s.Pos, "name a segment, an application, a workload or a prefix", "%s of exception %s is everything", end.what, quote(e.ID))
		}
		for _, p := range end.s.CIDR {
			least := minExceptionBits4
			if p.Addr().Is6() {
				least = minExceptionBits6
			}
			if p.Bits() < least {
				b.diags.errorf(end.s.Pos, fmt.Sprintf("name prefixes of /%d or longer", least), "%s of exception %s holds all of %s", end.what, quote(e.ID), p)
			}
		}
	}
	anyPort := len(b.exceptServices[e.ID]) == 0
	for _, r := range e.Services {
		anyPort = anyPort || hasPorts(r.Proto) && r.Low <= 1 && r.High == 0xffff
	}
	anybody := len(e.From.Identity) == 0 && len(e.From.Group) == 0
	switch {
	case anyPort && anybody:
		b.diags.errorf(e.Pos, "name its services, or who may use it (identity, group)", "exception %s is for any port and anybody", quote(e.ID))
	case anyPort:
		b.diags.warnf(e.Pos, "name its services", "exception %s is for any port", quote(e.ID))
	}
}

// sort brings everything into an order that files cannot show through.
func (p *Policy) sort() {
	slices.SortFunc(p.Services, func(a, b Service) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(p.Segments, func(a, b Segment) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(p.Workloads, func(a, b Workload) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(p.Rules, func(a, b Rule) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(p.Exceptions, func(a, b Exception) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(p.Suppressions, func(a, b Suppression) int { return strings.Compare(a.ID, b.ID) })
	for i := range p.Segments {
		s := &p.Segments[i]
		slices.SortFunc(s.Prefixes, comparePrefix)
	}
	for i := range p.Workloads {
		w := &p.Workloads[i]
		slices.SortFunc(w.Addresses, netip.Addr.Compare)
		w.Addresses = slices.Compact(w.Addresses)
	}
}

// The addresses that are uncovered unless a rule's cidr holds them: multicast,
// broadcast, link-local, unspecified. A directed broadcast such as 10.20.0.255 is
// not among them: a prefix does not say where subnets end, and guessing would
// leave a host unwatched.
var specialPrefixes = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/32"), netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("::/128"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
}

// The addresses that are never "internet": private (RFC 1918, RFC 4193), shared
// (RFC 6598), loopback, and the special ones.
var privatePrefixes = append([]netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("::1/128"),
}, specialPrefixes...)

// isSpecial says whether a (canonical) is multicast, broadcast, link-local or
// unspecified.
func isSpecial(a flow.Addr) bool {
	if a.Is4() {
		v := a.V4()
		return v>>28 == 0xe || v == 0xffffffff || v>>16 == 0xa9fe || v == 0
	}
	return a.Hi>>56 == 0xff || a.Hi>>54 == 0xfe80>>6 || a.IsZero()
}
