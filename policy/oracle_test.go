package policy

import (
	"cmp"
	"flag"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// The oracle judges slowly and obviously, straight from docs/policy.md: every rule
// and exception one by one, every unknown match tried both ways by enumeration. It
// shares the policy's data types with the index and nothing of its workings.

type oracle struct {
	p       *Policy
	removed []Removed
	keep    flow.Time // implicateFor
	widths  map[string]oracleWidth
}

type oracleWidth struct {
	anybody  bool
	size     *big.Int
	validity flow.Time
}

type oracleEnd struct {
	addr                       netip.Addr
	identity, process, posture string
	groups                     []string
	more                       bool
}

type oracleFlow struct {
	client, server oracleEnd
	start          flow.Time
	proto          uint8
	port           uint16
	typ, code      uint8
	known          Known
	observed       flow.Observed
	evidence       Evidence
}

type oracleVerdict struct {
	Expected     flow.Expected
	Reason       flow.Reason
	Rule         string
	Exception    string
	Others       []string
	Total        int
	Failed       []string
	Missing      []string
	Staged       flow.Expected
	StagedReason flow.Reason
	Outcome      flow.Outcome
	Confidence   int
	ValidUntil   flow.Time
}

var (
	oracleNAT64     = netip.MustParsePrefix("64:ff9b::/96")
	oracleShared    = netip.MustParsePrefix("100.64.0.0/10")
	oracleBroadcast = netip.MustParseAddr("255.255.255.255")
)

// equal compares every field; a test below holds it to that.
func (v *oracleVerdict) equal(w *oracleVerdict) bool {
	return v.Expected == w.Expected && v.Reason == w.Reason && v.Rule == w.Rule && v.Exception == w.Exception && slices.Equal(v.Others, w.Others) &&
		v.Total == w.Total && slices.Equal(v.Failed, w.Failed) && slices.Equal(v.Missing, w.Missing) && v.Staged == w.Staged &&
		v.StagedReason == w.StagedReason && v.Outcome == w.Outcome && v.Confidence == w.Confidence && v.ValidUntil == w.ValidUntil
}

// TestOracleComparesEveryField changes one field after the other of a verdict.
func TestOracleComparesEveryField(t *testing.T) {
	for i := range reflect.TypeFor[oracleVerdict]().NumField() {
		var a, b oracleVerdict
		switch f := reflect.ValueOf(&b).Elem().Field(i); f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{"x"}))
		case reflect.Int, reflect.Int64:
			f.SetInt(1)
		default:
			f.SetUint(1)
		}
		if a.equal(&b) {
			t.Errorf("field %s is not compared", reflect.TypeFor[oracleVerdict]().Field(i).Name)
		}
	}
}

func canon(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is6() && oracleNAT64.Contains(a) {
		b := a.As16()
		return netip.AddrFrom4([4]byte{b[12], b[13], b[14], b[15]})
	}
	return a
}

func (o *oracle) segment(a netip.Addr) *Segment {
	var best *Segment
	bits := -1
	for i := range o.p.Segments {
		for _, p := range o.p.Segments[i].Prefixes {
			if p.Contains(a) && p.Bits() > bits {
				best, bits = &o.p.Segments[i], p.Bits()
			}
		}
	}
	return best
}

func (o *oracle) workload(a netip.Addr) *Workload {
	for i := range o.p.Workloads {
		if slices.Contains(o.p.Workloads[i].Addresses, a) {
			return &o.p.Workloads[i]
		}
	}
	return nil
}

func odd(a netip.Addr) bool {
	return a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a == oracleBroadcast
}

func (o *oracle) internet(a netip.Addr) bool {
	return o.segment(a) == nil && !a.IsPrivate() && !odd(a) && !a.IsLoopback() && !oracleShared.Contains(a)
}

// term is one condition of a match: no, unknown or yes, and its dimensions.
type term struct {
	t    truth
	dims []string
}

func anyOf(want []string, got string) truth {
	if slices.Contains(want, got) && got != "" {
		return yes
	}
	return no
}

func openOf(want []string, got string) truth {
	if got == "" {
		return unknown
	}
	return anyOf(want, got)
}

func groupsOf(want []string, e *oracleEnd) truth {
	if len(e.groups) == 0 {
		return unknown
	}
	for _, g := range e.groups {
		if slices.Contains(want, g) {
			return yes
		}
	}
	if e.more {
		return unknown
	}
	return no
}

// terms are the conditions of the keys of s (not its not:).
func (o *oracle) terms(s *Selector, e *oracleEnd, place string) (out []term) {
	a := canon(e.addr)
	seg, w := o.segment(a), o.workload(a)
	closed := func(ok bool) {
		t := no
		if ok {
			t = yes
		}
		out = append(out, term{t, []string{place}})
	}
	if s.Any {
		closed(true)
	}
	if s.Segment != nil {
		closed(seg != nil && slices.Contains(s.Segment, seg.Name) || o.internet(a) && slices.Contains(s.Segment, "internet"))
	}
	if s.Zone != nil {
		closed(seg != nil && anyOf(s.Zone, seg.Zone) == yes)
	}
	if s.Tier != nil {
		closed(seg != nil && slices.Contains(s.Tier, seg.Tier))
	}
	if s.App != nil {
		closed(w != nil && anyOf(s.App, w.App) == yes)
	}
	if s.Role != nil {
		closed(w != nil && anyOf(s.Role, w.Role) == yes)
	}
	if s.Env != nil {
		closed(w != nil && anyOf(s.Env, w.Env) == yes)
	}
	if s.Workload != nil {
		closed(w != nil && anyOf(s.Workload, w.Name) == yes)
	}
	if s.CIDR != nil {
		closed(slices.ContainsFunc(s.CIDR, func(p netip.Prefix) bool { return p.Contains(a) }))
	}
	for _, l := range s.Labels {
		got := ""
		if w != nil {
			for _, have := range w.Labels {
				if have.Key == l.Key {
					got = have.Values[0]
				}
			}
		}
		closed(anyOf(l.Values, got) == yes)
	}
	if s.Identity != nil {
		out = append(out, term{openOf(s.Identity, e.identity), []string{"identity"}})
	}
	if s.Group != nil {
		out = append(out, term{groupsOf(s.Group, e), []string{"identity"}})
	}
	if s.Process != nil {
		out = append(out, term{openOf(s.Process, e.process), []string{"process"}})
	}
	if s.Posture != nil {
		out = append(out, term{openOf(s.Posture, e.posture), []string{"posture"}})
	}
	return out
}

func (o *oracle) end(s *Selector, e *oracleEnd, place string) (out []term) {
	out = o.terms(s, e, place)
	if odd(canon(e.addr)) && s.CIDR == nil {
		out = append(out, term{no, []string{place}})
	}
	for i := range s.Not {
		inner := o.terms(&s.Not[i], e, place)
		all := term{t: no}
		var unknownDims []string
		for _, t := range inner {
			all.dims = append(all.dims, t.dims...)
			if t.t == unknown {
				unknownDims = append(unknownDims, t.dims...)
			}
		}
		switch {
		case slices.ContainsFunc(inner, func(t term) bool { return t.t == no }):
			all.t = yes // not taken away
		case len(unknownDims) > 0:
			all.t, all.dims = unknown, unknownDims
		}
		out = append(out, all)
	}
	return out
}

func (o *oracle) service(ranges []Range, f *oracleFlow) term {
	t := term{no, []string{"service"}}
	if ranges == nil {
		t.t = yes
		return t
	}
	if f.known&KnownProto == 0 {
		t.t = unknown
		return t
	}
	for _, r := range ranges {
		if r.Proto != f.proto {
			continue
		}
		if r.Low == 0 && r.High == 65535 {
			t.t = yes
			return t
		}
		switch f.proto {
		case 6, 17, 132:
			if f.known&KnownPort == 0 {
				t.t = max(t.t, unknown)
			} else if r.Low <= f.port && f.port <= r.High {
				t.t = yes
			}
		case 1, 58:
			n := uint16(f.typ)<<8 | uint16(f.code)
			if f.known&KnownICMP == 0 {
				t.t = max(t.t, unknown)
			} else if r.Low <= n && n <= r.High {
				t.t = yes
			}
		}
	}
	return t
}

type oracleMatch struct {
	t               truth
	failed, missing []string
}

func sortDims(in []string) []string {
	order := []string{"source", "destination", "service", "identity", "process", "posture", "schedule", "direction", "rule", "limit"}
	var out []string
	for _, d := range order {
		if slices.Contains(in, d) {
			out = append(out, d)
		}
	}
	return out
}

func (o *oracle) match(from, to *Selector, ranges []Range, f *oracleFlow) (m oracleMatch) {
	terms := append(o.end(from, &f.client, "source"), o.end(to, &f.server, "destination")...)
	terms = append(terms, o.service(ranges, f))
	m.t = yes
	for _, t := range terms {
		switch t.t {
		case no:
			m.failed = append(m.failed, t.dims...)
		case unknown:
			m.missing = append(m.missing, t.dims...)
		}
	}
	m.failed = sortDims(m.failed)
	m.missing = slices.DeleteFunc(sortDims(m.missing), func(d string) bool { return slices.Contains(m.failed, d) })
	if len(m.failed) > 0 {
		m.t = no
	} else if len(m.missing) > 0 {
		m.t = unknown
	}
	return m
}

// candidate is an exception as it stands at the flow's time.
type candidate struct {
	e     *Exception
	state string
	end   flow.Time
	m     oracleMatch
}

func (o *oracle) candidates(f *oracleFlow) (out []candidate) {
	add := func(e *Exception, removed flow.Time) {
		c := candidate{e: e, state: "valid", end: e.Expires}
		if e.RevokedAt != 0 && e.RevokedAt < c.end {
			c.end = e.RevokedAt
		}
		if removed != 0 && removed < c.end {
			c.end = removed
		}
		approved := len(e.Approved) > 0
		for _, a := range e.Approved {
			approved = approved && f.start >= a.At
		}
		switch {
		case !approved:
			c.state = "unapproved"
		case f.start >= c.end+o.keep:
			c.state = "over"
		case f.start >= c.end:
			c.state = "expired"
		case f.start < e.NotBefore:
			c.state = "early"
		}
		c.m = o.match(&e.From, &e.To, e.Services, f)
		out = append(out, c)
	}
	for i := range o.p.Exceptions {
		add(&o.p.Exceptions[i], 0)
	}
	for _, r := range o.removed {
		add(r.Exception, r.At)
	}
	sort.SliceStable(out, func(i, j int) bool { return o.narrower(out[i].e, out[j].e) })
	return out
}

func (o *oracle) narrower(a, b *Exception) bool {
	x, y := o.width(a), o.width(b)
	if x.anybody != y.anybody {
		return !x.anybody
	}
	if c := x.size.Cmp(y.size); c != 0 {
		return c < 0
	}
	if x.validity != y.validity {
		return x.validity < y.validity
	}
	return a.ID < b.ID
}

func (o *oracle) width(e *Exception) oracleWidth {
	if w, ok := o.widths[e.ID]; ok {
		return w
	}
	w := oracleWidth{anybody: e.From.Identity == nil && e.To.Identity == nil, size: big.NewInt(1)}
	w.size.Mul(o.count(&e.From), o.count(&e.To))
	ports := int64(0)
	for _, r := range e.Services {
		for range int(r.High) - int(r.Low) + 1 {
			ports++
		}
	}
	if e.Services == nil {
		ports = 65536 * 256
	}
	w.size.Mul(w.size, big.NewInt(ports*int64(max(1, len(e.From.Identity)))*int64(max(1, len(e.To.Identity)))))
	begin := e.NotBefore
	if begin == 0 {
		begin = e.RequestedAt
	}
	w.validity = maxTime
	if begin != 0 {
		w.validity = e.Expires - begin
	}
	o.widths[e.ID] = w
	return w
}

// count counts addresses by cutting both families into the runs between the ends
// of all prefixes there are and asking for the first address of each.
func (o *oracle) count(s *Selector) *big.Int {
	var prefixes []netip.Prefix
	for _, x := range o.p.Segments {
		prefixes = append(prefixes, x.Prefixes...)
	}
	for _, w := range o.p.Workloads {
		for _, a := range w.Addresses {
			prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	prefixes = append(prefixes, s.CIDR...)
	for _, n := range s.Not {
		prefixes = append(prefixes, n.CIDR...)
	}
	for _, t := range []string{"0.0.0.0/0", "::/0", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "fc00::/7", "::1/128",
		"0.0.0.0/32", "255.255.255.255/32", "169.254.0.0/16", "224.0.0.0/4", "::/128", "fe80::/10", "ff00::/8"} {
		prefixes = append(prefixes, netip.MustParsePrefix(t))
	}
	total := new(big.Int)
	for _, size := range []int{4, 16} {
		var cuts []*big.Int
		for _, p := range prefixes {
			if p.Addr().BitLen() != size*8 {
				continue
			}
			low := new(big.Int).SetBytes(p.Addr().AsSlice())
			cuts = append(cuts, low, new(big.Int).Add(low, new(big.Int).Lsh(big.NewInt(1), uint(size*8-p.Bits()))))
		}
		sort.Slice(cuts, func(i, j int) bool { return cuts[i].Cmp(cuts[j]) < 0 })
		for i := 0; i+1 < len(cuts); i++ {
			if cuts[i].Cmp(cuts[i+1]) == 0 {
				continue
			}
			a, _ := netip.AddrFromSlice(cuts[i].FillBytes(make([]byte, size)))
			holds := true
			for _, t := range o.end(s, &oracleEnd{addr: a}, "source") {
				holds = holds && (t.t != no || !slices.Contains(t.dims, "source"))
			}
			if holds {
				total.Add(total, new(big.Int).Sub(cuts[i+1], cuts[i]))
			}
		}
	}
	return total
}

func (o *oracle) counts(s *Segment, stagedToo bool) bool {
	return s != nil && (s.Stage == StageEnforced || stagedToo && s.Stage == StageStaged)
}

type oracleRuling struct {
	Expected                flow.Expected
	Reason                  flow.Reason
	Rule, Exception         string
	Others, Failed, Missing []string
	ValidUntil              flow.Time
}

func (o *oracle) ruling(f *oracleFlow, stagedToo bool) (g oracleRuling) {
	client, server := canon(f.client.addr), canon(f.server.addr)
	cs, ss := o.segment(client), o.segment(server)
	covered := o.counts(cs, stagedToo) || o.counts(ss, stagedToo)
	for _, a := range []netip.Addr{client, server} {
		if odd(a) {
			held := false
			for _, r := range o.p.Rules {
				if r.Staged && !stagedToo {
					continue
				}
				for _, p := range append(slices.Clone(r.From.CIDR), r.To.CIDR...) {
					held = held || p.Contains(a)
				}
			}
			covered = covered && held
		}
	}
	if !covered {
		g.Reason = flow.ReasonUncovered
		return g
	}

	defaultDeny, defaultName := false, ""
	if o.counts(ss, stagedToo) {
		defaultName = "default:in:" + ss.Name
		defaultDeny = ss.DenyIn
	}
	if o.counts(cs, stagedToo) && !defaultDeny && (cs.DenyOut || defaultName == "") {
		defaultName = "default:out:" + cs.Name
		defaultDeny = cs.DenyOut
	}

	type ruleMatch struct {
		r *Rule
		m oracleMatch
	}
	var rules []ruleMatch
	for i := range o.p.Rules {
		r := &o.p.Rules[i]
		if r.Staged && !stagedToo {
			continue
		}
		if m := o.match(&r.From, &r.To, r.Services, f); m.t != no {
			rules = append(rules, ruleMatch{r, m})
		}
	}
	cands := o.candidates(f)

	// Every unknown match, each by itself, both ways.
	var unknowns []*truth
	var missing [][]string
	for i := range rules {
		if rules[i].m.t == unknown {
			unknowns, missing = append(unknowns, &rules[i].m.t), append(missing, rules[i].m.missing)
		}
	}
	for i := range cands {
		if cands[i].state == "valid" && cands[i].m.t == unknown {
			unknowns, missing = append(unknowns, &cands[i].m.t), append(missing, cands[i].m.missing)
		}
	}
	reason := func() flow.Reason {
		var denies []string
		override, allow := false, false
		for _, r := range rules {
			if r.m.t != yes {
				continue
			}
			switch r.r.Action {
			case OverrideDeny:
				override = true
			case Deny:
				denies = append(denies, r.r.ID)
			case Allow:
				allow = true
			}
		}
		if override {
			return flow.ReasonDenied
		}
		if len(denies) == 0 && (allow || !defaultDeny) {
			return flow.ReasonPermitted
		}
		for _, c := range cands {
			if c.state == "valid" && c.m.t == yes && subset(denies, c.e.Overrides) {
				return flow.ReasonWaived
			}
		}
		return flow.ReasonDenied
	}
	reasons := make([]flow.Reason, 1<<len(unknowns))
	for n := range reasons {
		for i, u := range unknowns {
			*u = no
			if n>>i&1 == 1 {
				*u = yes
			}
		}
		reasons[n] = reason()
	}
	for _, u := range unknowns {
		*u = unknown
	}
	possible := map[flow.Reason]bool{}
	for _, r := range reasons {
		possible[r] = true
	}
	if len(possible) > 1 {
		g.Reason = flow.ReasonUnverified
		for i := range unknowns {
			var with, without [16]bool
			for n, r := range reasons {
				if n>>i&1 == 1 {
					with[r] = true
				} else {
					without[r] = true
				}
			}
			if with != without {
				g.Missing = append(g.Missing, missing[i]...)
			}
		}
		g.Missing = sortDims(g.Missing)
		return g
	}
	g.Reason = reasons[0]

	lowest := func(a Action) string {
		for _, r := range rules { // the policy's rules are sorted by id
			if r.r.Action == a && r.m.t == yes {
				return r.r.ID
			}
		}
		return ""
	}
	var denies, maybeDenies []string
	for _, r := range rules {
		if r.r.Action == Deny {
			maybeDenies = append(maybeDenies, r.r.ID)
			if r.m.t == yes {
				denies = append(denies, r.r.ID)
			}
		}
	}
	switch g.Reason {
	case flow.ReasonPermitted:
		g.Expected = flow.ExpectAllow
		g.Rule = cmp.Or(lowest(Allow), defaultName)
		for _, c := range cands {
			if c.state == "valid" && c.m.t == yes {
				g.Others = append(g.Others, c.e.ID)
			}
		}
	case flow.ReasonWaived:
		g.Expected = flow.ExpectAllow
		g.Rule = cmp.Or(lowest(Deny), defaultName)
		var named []string
		for _, want := range []string{"valid", "expired"} {
			for _, c := range cands {
				if c.state == want && c.m.t == yes && subset(maybeDenies, c.e.Overrides) {
					named = append(named, c.e.ID)
					if want == "valid" {
						g.ValidUntil = max(g.ValidUntil, c.end)
					}
				}
			}
		}
		g.Exception, g.Others = named[0], named[1:]
	case flow.ReasonDenied:
		g.Expected = flow.ExpectDeny
		g.Rule = cmp.Or(lowest(OverrideDeny), lowest(Deny), defaultName)
		o.misuse(f, cands, denies, lowest(OverrideDeny) != "", &g)
	}
	return g
}

func subset(a, b []string) bool {
	for _, x := range a {
		if !slices.Contains(b, x) {
			return false
		}
	}
	return true
}

func (o *oracle) misuse(f *oracleFlow, cands []candidate, denies []string, overridden bool, g *oracleRuling) {
	type implicated struct {
		id              string
		reason          flow.Reason
		failed, missing []string
	}
	var found []implicated
	wholeStates := []struct {
		state  string
		reason flow.Reason
	}{{"expired", flow.ReasonExpired}, {"early", flow.ReasonNotYetValid}, {"unapproved", flow.ReasonUnapproved}}
	for _, s := range wholeStates {
		for _, c := range cands {
			if c.state == s.state && c.m.t != no && !overridden && subset(denies, c.e.Overrides) {
				found = append(found, implicated{c.e.ID, s.reason, nil, c.m.missing})
			}
		}
	}
	var scope []implicated
	for _, c := range cands {
		if c.state != "valid" {
			continue
		}
		straight := 0
		for _, d := range []string{"source", "destination", "service"} {
			if !slices.Contains(c.m.failed, d) {
				straight++
			}
		}
		ruleFails := overridden || !subset(denies, c.e.Overrides)
		if straight >= 2 {
			failed := slices.Clone(c.m.failed)
			if ruleFails {
				failed = append(failed, "rule")
			}
			scope = append(scope, implicated{c.e.ID, flow.ReasonOutOfScope, sortDims(failed), c.m.missing})
			continue
		}
		back := *f
		back.client, back.server = f.server, f.client
		if m := o.match(&c.e.From, &c.e.To, c.e.Services, &back); m.t != no && !ruleFails {
			scope = append(scope, implicated{c.e.ID, flow.ReasonOutOfScope, []string{"direction"}, m.missing})
		}
	}
	sort.SliceStable(scope, func(i, j int) bool { return len(scope[i].failed) < len(scope[j].failed) })
	found = append(found, scope...)
	if len(found) == 0 {
		return
	}
	g.Reason, g.Exception, g.Failed, g.Missing = found[0].reason, found[0].id, found[0].failed, found[0].missing
	for _, x := range found[1:] {
		g.Others = append(g.Others, x.id)
	}
}

func (o *oracle) judge(f *oracleFlow) (v oracleVerdict) {
	if f.known&KnownClient == 0 || f.known&KnownServer == 0 {
		v.Reason, v.StagedReason = flow.ReasonUnverified, flow.ReasonUnverified
		if f.known&KnownClient == 0 {
			v.Missing = append(v.Missing, "source")
		}
		if f.known&KnownServer == 0 {
			v.Missing = append(v.Missing, "destination")
		}
		return v
	}
	if f.known&KnownProto != 0 && f.known&KnownICMP != 0 &&
		(f.proto == 1 && slices.Contains([]uint8{3, 4, 5, 11, 12}, f.typ) || f.proto == 58 && slices.Contains([]uint8{1, 2, 3, 4}, f.typ)) {
		v.Reason, v.StagedReason, v.Missing = flow.ReasonUnverified, flow.ReasonUnverified, []string{"service"}
		return v
	}
	g, s := o.ruling(f, false), o.ruling(f, true)
	v = oracleVerdict{Expected: g.Expected, Reason: g.Reason, Rule: g.Rule, Exception: g.Exception, Total: len(g.Others), Failed: g.Failed,
		Missing: g.Missing, Staged: s.Expected, StagedReason: s.Reason, ValidUntil: g.ValidUntil}
	v.Others = g.Others[:min(len(g.Others), flow.MaxOthers)]
	if g.Reason == flow.ReasonUnverified {
		return v
	}
	if g.Reason == flow.ReasonUncovered {
		v.Confidence = 100
		return v
	}
	// Outcome, as the table has it.
	got := f.observed
	v.Confidence = 100
	if got == flow.ObservedUnknown {
		v.Confidence = 80
		if f.evidence == EvidenceBothWays {
			got, v.Confidence = flow.ObservedAllow, 90
		}
	}
	if got == flow.ObservedAudit {
		got = flow.ObservedAllow
	}
	for range v.Missing {
		v.Confidence = v.Confidence * 80 / 100
	}
	v.Outcome = map[[2]int]flow.Outcome{
		{int(flow.ObservedAllow), int(flow.ExpectAllow)}:   flow.OutcomePermitted,
		{int(flow.ObservedDeny), int(flow.ExpectDeny)}:     flow.OutcomeBlocked,
		{int(flow.ObservedAllow), int(flow.ExpectDeny)}:    flow.OutcomeEscaped,
		{int(flow.ObservedDeny), int(flow.ExpectAllow)}:    flow.OutcomeMisblocked,
		{int(flow.ObservedUnknown), int(flow.ExpectAllow)}: flow.OutcomeAttempted,
		{int(flow.ObservedUnknown), int(flow.ExpectDeny)}:  flow.OutcomeAttempted,
	}[[2]int{int(got), int(v.Expected)}]
	return v
}

// ---- random policies and flows ----

type gen struct{ *rand.Rand }

func (g gen) chance(percent int) bool { return g.IntN(100) < percent }
func pick[T any](g gen, from []T) T   { return from[g.IntN(len(from))] }
func some(g gen, from ...string) []string { // one or two, sorted
	out := []string{pick(g, from)}
	if g.chance(30) {
		out = append(out, pick(g, from))
	}
	return sortedSet(out)
}

var (
	genPrefixes = []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.4/30", "10.2.0.0/16", "10.2.7.0/24", "192.168.0.0/24", "203.0.113.0/24",
		"2001:db8:1::/48", "2001:db8:1:2::/64", "fd00:1::/32", "169.254.0.0/16", "::/0", "0.0.0.0/0", "224.0.0.0/4", "10.1.1.5/32", "8.8.8.0/24"}
	genAddrs = []string{"10.1.1.5", "10.1.1.6", "10.1.1.77", "10.1.9.9", "10.2.7.1", "10.2.7.2", "10.9.9.9", "192.168.0.3", "192.168.1.3", "203.0.113.9", "8.8.8.8",
		"1.2.3.4", "2001:db8:1::5", "2001:db8:1:2::5", "2001:db8:9::1", "fd00:1::1", "fe80::1", "ff02::1", "224.0.0.251", "169.254.1.1", "255.255.255.255", "0.0.0.0",
		"::ffff:10.1.1.5", "64:ff9b::10.1.1.6", "100.64.1.1", "127.0.0.1", "::1", "::"}
	genWorkloadAddrs = []string{"10.1.1.5", "10.1.1.6", "10.2.7.1", "192.168.0.3", "203.0.113.9", "2001:db8:1::5", "fd00:1::1", "8.8.8.8"}
)

func (g gen) selector(exception bool) (s Selector) {
	for s.keys() == 0 && !s.Any && s.Not == nil {
		g.keys(&s)
		if g.chance(15) {
			s.Any = true
		}
		for g.chance(20) && len(s.Not) < 2 {
			var n Selector
			for n.keys() == 0 {
				g.keys(&n)
			}
			s.Not = append(s.Not, n)
		}
	}
	return s
}

func (g gen) keys(s *Selector) {
	if g.chance(20) {
		s.Segment = some(g, "s0", "s1", "s2", "s3", "internet")
	}
	if g.chance(12) {
		s.Zone = some(g, "z0", "z1")
	}
	if g.chance(8) {
		s.Tier = []Tier{pick(g, []Tier{TierLow, TierNormal, TierHigh, TierCrownJewel})}
	}
	if g.chance(8) {
		s.App = some(g, "a0", "a1")
	}
	if g.chance(6) {
		s.Role = some(g, "r0", "r1")
	}
	if g.chance(6) {
		s.Env = some(g, "prod", "test")
	}
	if g.chance(6) {
		s.Workload = some(g, "w0", "w1", "w2")
	}
	if g.chance(6) {
		s.Labels = []Label{{"site", some(g, "fra", "muc")}}
	}
	if g.chance(14) {
		for range 1 + g.IntN(2) {
			s.CIDR = append(s.CIDR, netip.MustParsePrefix(pick(g, genPrefixes)))
		}
		slices.SortFunc(s.CIDR, comparePrefix)
		s.CIDR = slices.Compact(s.CIDR)
	}
	if g.chance(14) {
		s.Identity = some(g, "i0", "i1", "i2")
	}
	if g.chance(6) {
		s.Group = some(g, "g0", "g1")
	}
	if g.chance(5) {
		s.Process = some(g, "p0", "p1")
	}
	if g.chance(5) {
		s.Posture = some(g, "ok", "bad")
	}
}

func (g gen) services() []Range {
	if g.chance(30) {
		return nil
	}
	var out []Range
	for range 1 + g.IntN(3) {
		out = append(out, pick(g, []Range{{6, 443, 443}, {6, 22, 22}, {6, 20, 30}, {6, 0, 65535}, {17, 53, 53}, {17, 0, 65535}, {1, 8 << 8, 8<<8 | 255},
			{1, 8 << 8, 8 << 8}, {58, 128 << 8, 128<<8 | 255}, {47, 0, 65535}, {6, 31, 65535}, {6, 0, 21}, {132, 5, 6}}))
	}
	return mergeRanges(out)
}

// policy makes a random policy and exceptions removed from it; times lie around
// 1,000,000 so that a handful of instants covers every state.
func (g gen) policy(rules, exceptions int) (*Policy, []Removed) {
	p := &Policy{}
	prefixes := slices.Clone(genPrefixes[:11])
	g.Shuffle(len(prefixes), func(i, j int) { prefixes[i], prefixes[j] = prefixes[j], prefixes[i] })
	for i := range 4 {
		s := Segment{Name: "s" + strconv.Itoa(i), Tier: pick(g, []Tier{TierLow, TierNormal, TierHigh, TierCrownJewel}),
			Stage: pick(g, []Stage{StageObserve, StageStaged, StageEnforced, StageEnforced, StageEnforced, StageEnforced}), DenyIn: g.chance(60), DenyOut: g.chance(40)}
		if g.chance(80) {
			s.Zone = pick(g, []string{"z0", "z1"})
		}
		n := 1 + g.IntN(2)
		for _, q := range prefixes[:n] {
			s.Prefixes = append(s.Prefixes, netip.MustParsePrefix(q))
		}
		prefixes = prefixes[n:]
		p.Segments = append(p.Segments, s)
	}
	addrs := slices.Clone(genWorkloadAddrs)
	g.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	for i := range 6 {
		w := Workload{Name: "w" + strconv.Itoa(i), Addresses: []netip.Addr{netip.MustParseAddr(addrs[i])}}
		for _, f := range []struct {
			into *string
			from []string
		}{{&w.App, []string{"a0", "a1"}}, {&w.Role, []string{"r0", "r1"}}, {&w.Env, []string{"prod", "test"}}} {
			if g.chance(70) {
				*f.into = pick(g, f.from)
			}
		}
		if g.chance(50) {
			w.Labels = []Label{{"site", []string{pick(g, []string{"fra", "muc"})}}}
		}
		p.Workloads = append(p.Workloads, w)
	}
	var denies []string
	for i := range rules {
		r := Rule{ID: fmt.Sprintf("R%d", i), Action: pick(g, []Action{OverrideDeny, Deny, Deny, Deny, Allow, Allow, Allow, Allow}), Staged: g.chance(25),
			From: g.selector(false), To: g.selector(false), Services: g.services()}
		if r.Action == OverrideDeny && g.chance(60) {
			r.Action = Deny
		}
		if r.Action == Deny {
			denies = append(denies, r.ID)
		}
		p.Rules = append(p.Rules, r)
	}
	one := func(id string) Exception {
		e := Exception{ID: id, From: g.selector(true), To: g.selector(true), Services: g.services(), RequestedBy: "ana",
			NotBefore: flow.Time(1_000_000 + g.IntN(6)), Expires: flow.Time(1_000_006 + g.IntN(8))}
		if g.chance(15) {
			e.NotBefore = 0
		}
		if g.chance(50) {
			e.RequestedAt = flow.Time(999_000 + g.IntN(5))
		}
		for range g.IntN(3) {
			e.Approved = append(e.Approved, Approval{By: "raj", At: flow.Time(999_998 + g.IntN(6))})
		}
		if len(e.Approved) == 0 && g.chance(60) {
			e.Approved = []Approval{{By: "raj", At: 999_999}}
		}
		if g.chance(15) {
			e.RevokedAt = flow.Time(1_000_000 + g.IntN(12))
		}
		for _, d := range denies {
			if g.chance(50) {
				e.Overrides = append(e.Overrides, d)
			}
		}
		return e
	}
	for i := range exceptions {
		p.Exceptions = append(p.Exceptions, one(fmt.Sprintf("E%d", i)))
	}
	var removed []Removed
	for i := range g.IntN(3) {
		e := one(fmt.Sprintf("G%d", i))
		e.Approved = []Approval{{By: "raj", At: 1}}
		removed = append(removed, Removed{&e, flow.Time(1_000_000 + g.IntN(10))})
	}
	p.sort()
	p.computeHash()
	return p, removed
}

func (g gen) flow() (f oracleFlow) {
	end := func() (e oracleEnd) {
		e.addr = netip.MustParseAddr(pick(g, genAddrs))
		if g.chance(75) { // most in the densest part of the policies
			e.addr = netip.MustParseAddr(pick(g, genAddrs[:11]))
		}
		if g.chance(60) {
			e.identity = pick(g, []string{"i0", "i1", "i2", "i9"})
		}
		if g.chance(60) {
			e.groups = some(g, "g0", "g1", "g2")
			e.more = g.chance(20)
		}
		if g.chance(60) {
			e.process = pick(g, []string{"p0", "p1", "p2"})
		}
		if g.chance(60) {
			e.posture = pick(g, []string{"ok", "bad"})
		}
		return e
	}
	f.client, f.server = end(), end()
	f.start = flow.Time(999_997 + g.IntN(30))
	f.proto = pick(g, []uint8{6, 6, 6, 6, 17, 17, 1, 58, 47, 132, 99})
	f.port = pick(g, []uint16{443, 22, 21, 25, 53, 31, 5, 8080, 65535, 0})
	f.typ, f.code = pick(g, []uint8{8, 8, 8, 0, 128, 128, 3, 1, 11}), uint8(g.IntN(2))
	f.known = KnownClient | KnownServer | KnownProto | KnownPort | KnownICMP
	for _, k := range []struct {
		k       Known
		percent int
	}{{KnownClient, 1}, {KnownServer, 1}, {KnownProto, 3}, {KnownPort, 8}, {KnownICMP, 20}} {
		if g.chance(k.percent) {
			f.known &^= k.k
		}
	}
	f.observed = pick(g, []flow.Observed{flow.ObservedUnknown, flow.ObservedUnknown, flow.ObservedAllow, flow.ObservedDeny, flow.ObservedAudit})
	f.evidence = pick(g, []Evidence{EvidenceNone, EvidenceBothWays})
	return f
}

func (f *oracleFlow) conversation(names *flow.Names) (c Conversation) {
	party := func(e *oracleEnd) (p Party) {
		p.Addr = flow.AddrFromNetip(e.addr)
		p.Identity, p.Process, p.Posture = names.Intern(e.identity), names.Intern(e.process), names.Intern(e.posture)
		for i, g := range e.groups {
			p.Groups[i] = names.Intern(g)
		}
		p.MoreGroups = e.more
		return p
	}
	return Conversation{Client: party(&f.client), Server: party(&f.server), Start: f.start, Port: f.port, Proto: f.proto, ICMPType: f.typ, ICMPCode: f.code,
		Known: f.known, Observed: f.observed, Evidence: f.evidence}
}

func asOracle(v *flow.Verdict, names *flow.Names) oracleVerdict {
	o := oracleVerdict{Expected: v.Expected, Reason: v.Reason, Rule: names.Text(v.Rule), Exception: names.Text(v.Exception), Total: int(v.OthersTotal),
		Failed: v.Failed.Texts(), Missing: v.Missing.Texts(), Staged: v.Staged, StagedReason: v.StagedReason, Outcome: v.Outcome,
		Confidence: int(v.Confidence), ValidUntil: v.ValidUntil}
	for _, n := range v.Others {
		if n != flow.NoName {
			o.Others = append(o.Others, names.Text(n))
		}
	}
	return o
}

var oracleFlows = flag.Int("oracle", 300_000, "random flows to compare with the oracle")

// TestOracle compares the index with the oracle on random policies and flows,
// every field. -oracle=N or POSTERN_ORACLE=N set how many.
func TestOracle(t *testing.T) {
	total := *oracleFlows
	if s := os.Getenv("POSTERN_ORACLE"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("POSTERN_ORACLE=%q: %v", s, err)
		}
		total = n
	}
	if testing.Short() {
		total = min(total, 20_000)
	}
	const perPolicy = 400
	seen := map[flow.Reason]int{}
	dims := map[string]int{}
	compared := 0
	for seed := uint64(1); compared < total; seed++ {
		g := gen{rand.New(rand.NewPCG(seed, 7))}
		rules, exceptions := g.IntN(9), g.IntN(8)
		if seed%20 == 0 { // more than a word of each kind
			rules, exceptions = 100+g.IntN(500), 70+g.IntN(80)
		}
		p, removed := g.policy(rules, exceptions)
		names := flow.NewNames(0)
		cfg := Config{ImplicateFor: 8 * 1e6}
		x := Compile(p, names, cfg, removed...)
		o := &oracle{p: p, removed: removed, keep: 8, widths: map[string]oracleWidth{}}
		for range perPolicy / max(1, (rules+exceptions)/20) {
			f := g.flow()
			if rules > 64 { // few unknowns, since the oracle tries them all
				g.know(&f)
			}
			c := f.conversation(names)
			var v flow.Verdict
			x.Judge(&c, &v)
			want, got := o.judge(&f), asOracle(&v, names)
			if !want.equal(&got) {
				d := gocmp.Diff(want, got, gocmp.Comparer(func(a, b []string) bool { return slices.Equal(a, b) }))
				t.Fatalf("seed %d: %+v\n(-oracle +index)\n%s\n%s", seed, f, d, x.Explain(&c).String())
			}
			seen[v.Reason]++
			for _, d := range got.Failed {
				dims[d]++
			}
			compared++
		}
	}
	t.Logf("%d flows, by reason %v, failed dimensions %v", compared, seen, dims)
	for r := flow.ReasonPermitted; r < flow.ReasonExpiryUncertain; r++ {
		if seen[r] < total/2000 {
			t.Errorf("only %d flows were %v; the generator does not try it", seen[r], r)
		}
	}
	for _, d := range []string{"source", "destination", "service", "identity", "process", "posture", "direction", "rule"} {
		if dims[d] < total/20000 {
			t.Errorf("only %d flows failed in %s; the generator does not try it", dims[d], d)
		}
	}
}

// know fills in what the flow does not know.
func (g gen) know(f *oracleFlow) {
	f.known = KnownClient | KnownServer | KnownProto | KnownPort | KnownICMP
	for _, e := range []*oracleEnd{&f.client, &f.server} {
		e.identity, e.process, e.posture = cmp.Or(e.identity, "i1"), cmp.Or(e.process, "p1"), cmp.Or(e.posture, "bad")
		if e.more = false; e.groups == nil {
			e.groups = []string{"g1"}
		}
	}
}
