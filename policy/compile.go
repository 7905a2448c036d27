package policy

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gaissmai/bart"

	"github.com/postern/postern/flow"
)

// Config is what judging may be told.
type Config struct {
	// ImplicateFor is how long after its end an exception is still named when
	// traffic uses it.
	ImplicateFor time.Duration `yaml:"implicateFor"`
	// Domains says which spellings of an account's name are the same. It may be nil.
	Domains *flow.Domains `yaml:"-"`
}

// DefaultConfig gives the defaults.
func DefaultConfig() Config {
	return Config{
		// Half a year: the longest certification cycle in common use is six months,
		// so a use after expiry is still told as such until the next one.
		ImplicateFor: 180 * 24 * time.Hour,
	}
}

// Validate says what is wrong with c.
func (c Config) Validate() error {
	if c.ImplicateFor < 0 {
		return fmt.Errorf("implicateFor is %v; write a duration of zero or more, such as 4320h", c.ImplicateFor)
	}
	return nil
}

// Removed is an exception that an earlier version held and the present one does
// not, and when the first version without it came into force.
type Removed struct {
	Exception *Exception
	At        flow.Time
}

// Index is a policy compiled for judging: immutable, and safe for any number of
// readers at once.
//
// Every rule and exception is one bit. What an address may match is known for each
// elementary region of the address space (between the prefixes the policy speaks
// of), so a bit row a region and side, and one a service, are made beforehand;
// judging is the AND of three rows. Only matchers with keys of the open world
// (identity, group, process, posture) that survive it are looked at one by one.
//
// Bits stand in the order in which they decide: override-denies, denies, allows,
// each by id, then exceptions from the narrowest to the widest. Each kind begins at
// a word of its own.
type Index struct {
	policy  *Policy
	names   *flow.Names
	version flow.Name
	cfg     Config

	suppressions map[string]map[FindingKey][]*Suppression // by detector

	table     addressTable
	endpoints []Endpoint // by region.endpoint

	words     int // of a row
	denyAt    int // first word of the denies; override-denies begin at 0
	allowAt   int
	exceptAt  int
	from, to  []uint64 // a row each signature; signatures that match alike share one
	services  serviceTable
	matchers  []matcher // by bit; padding has no id
	open      []uint64  // row: matchers with open keys
	places    []uint64  // row: those with a not: of both worlds, which may fail an address that the rows let through
	mask      [2][]uint64
	anyStaged bool         // some rule is staged
	excepts   []exceptInfo // by bit from exceptAt*64 on
	validity  []validity   // of excepts, by itself since nearly always it is all that is asked
	instants  []flow.Time  // every instant at which an exception's state changes, sorted

	internet flow.Name
	byName   map[flow.Name]int // place in excepts
	rules    map[flow.Name]*Rule
}

// mode says what is judged: what is enforced, or what would be if all that is
// staged were.
type mode int

const (
	enforced mode = iota
	staged
)

// modes is a set of them, so that most questions are asked once for both.
type modes uint8

const (
	inEnforced modes = 1 << enforced
	inStaged   modes = 1 << staged
	inBoth           = inEnforced | inStaged
)

func (s modes) has(m mode) bool { return s>>m&1 != 0 }

// region is a set of addresses that all match alike: those of one prefix without
// the longer ones inside it. It holds what judging looks at and no more: 32 bytes,
// two a cache line. The rest is its Endpoint.
type region struct {
	sig int32 // which row

	// What coverage and the defaults come to, worked out beforehand.
	counted         modes     // its segment is under policy
	barred          modes     // nothing with this end is covered: it is special and not held
	denyIn, denyOut modes     // its segment's defaults count and deny
	nameIn, nameOut flow.Name // "default:in:SEGMENT", "default:out:SEGMENT"

	segment, workload flow.Name
	endpoint          int32 // place in endpoints
	_                 int32
}

// area is what a region is made of.
type area struct {
	segment  int32 // place in the policy, -1: none
	workload int32 // place in the policy, -1: none
	special  bool  // multicast, broadcast, link-local, unspecified
	internet bool
	held     modes // a rule's cidr holds it
}

// Endpoint is what a policy knows of an address. The names are NoName where there
// is none; Segment is "internet" for an address in no segment that is not private.
type Endpoint struct {
	Segment, Zone  flow.Name
	Workload       flow.Name
	App, Role, Env flow.Name
	Stage          Stage
	Tier           Tier
	AgentRequired  bool
	Internet       bool
	Special        bool      // multicast, broadcast, link-local or unspecified
	Owner          flow.Name // of the segment
}

// matcher is a rule's or an exception's bit.
type matcher struct {
	id       flow.Name
	from, to *openSelector // nil: the address decides alone
}

// openSelector is the part of a selector that an address alone does not decide.
type openSelector struct {
	identity, group, process, posture []flow.Name
	nots                              []openNot
}

func (o *openSelector) empty() bool {
	return len(o.identity)+len(o.group)+len(o.process)+len(o.posture)+len(o.nots) == 0
}

// openNot is a not: that has at least one open key.
type openNot struct {
	static []uint64 // by signature: where its keys of the closed world hold; nil: it has none
	open   openSelector
	closed bool // it has keys of the closed world
}

// exceptInfo is what decides the state of an exception.
type exceptInfo struct {
	approvedAt   flow.Time // maxTime: never
	notBefore    flow.Time
	end          flow.Time // expiry, revocation or removal, whichever is first
	implicateEnd flow.Time
	heldSince    flow.Time // when the first version came into force that held it under this approval
	overrides    []uint64  // over the words of the denies
	pairs        *big.Int  // source addresses × destination addresses that it may match
	e            *Exception
	removed      bool
}

const maxTime = flow.Time(math.MaxInt64)

// state of an exception at a time.
type state uint8

const (
	active state = iota
	expired
	notYetValid
	unapproved
	over // ended so long ago that it is no longer implicated
)

var stateTexts = []string{"valid", "expired", "not yet valid", "unapproved", "over"}

func (x *exceptInfo) state(t flow.Time) state {
	switch {
	case t < x.approvedAt:
		return unapproved
	case t >= x.implicateEnd:
		return over
	case t >= x.end:
		return expired
	case t < x.notBefore:
		return notYetValid
	}
	return active
}

// validity is when an exception is active: from its approval and notBefore on until
// its end.
type validity struct{ since, until flow.Time }

func (v *validity) holds(t flow.Time) bool { return t >= v.since && t < v.until }

func addTime(t flow.Time, d time.Duration) flow.Time {
	if u := t.Add(d); u >= t {
		return u
	}
	return maxTime
}

// Compile makes an index of p. Names of segments, rules, exceptions and of all that
// selectors speak of are interned in names, which must be the table that flows
// use. Exceptions in removed are implicated after their end as if p still held them.
func Compile(p *Policy, names *flow.Names, cfg Config, removed ...Removed) *Index {
	x := &Index{byName: map[flow.Name]int{}, rules: map[flow.Name]*Rule{}, policy: p, names: names, cfg: cfg, version: names.Intern(p.Version()), internet: names.Intern(InternetSegment),
		suppressions: p.suppressions()}
	c := &compiler{Index: x}
	c.layOut(removed)
	c.divide()
	c.fillRows()
	c.rankExceptions()
	c.shareRows()
	c.services.build(c.words, c.ranges)
	c.times()
	return x
}

// share makes x, of which nobody else knows yet, use what an older version holds
// already: from day to day mostly a rule or a date changes, and no prefix does.
func (x *Index) share(old *Index) {
	x.table.share(&old.table)
	if slices.Equal(x.endpoints, old.endpoints) {
		x.endpoints = old.endpoints
	}
	if slices.Equal(x.from, old.from) {
		x.from = old.from
	}
	if slices.Equal(x.to, old.to) {
		x.to = old.to
	}
	if slices.Equal(x.services.rows, old.services.rows) {
		x.services.rows = old.services.rows
	}
}

// Version is the name of a policy's content in findings and rows: the first 16
// digits of its hash.
func (p *Policy) Version() string { return p.hash[:min(16, len(p.hash))] }

// Rule is the rule of that name in this version, nil for a default's or none. The
// caller must not write to it.
func (x *Index) Rule(name flow.Name) *Rule { return x.rules[name] }

// Policy is what the index was made of.
func (x *Index) Policy() *Policy { return x.policy }

// Version is the name of the policy's content.
func (x *Index) Version() flow.Name { return x.version }

// compiler holds what is needed only while an index is made.
type compiler struct {
	*Index
	selectors [][2]*Selector // from and to, by bit
	ranges    [][]Range      // by bit; nil: any service
	used      []bool         // by bit
	sigs      []signature
	sizes     []*big.Int // addresses of a signature
	cidrSets  [][]netip.Prefix
}

// signature is all that a selector's closed-world keys can tell apart.
type signature struct {
	segment  int32
	workload int32 // one workload that stands for all alike; -1: none
	cidrs    int32 // which of cidrSets
	special  bool
	internet bool
}

// layOut gives each rule and exception its bit. Exceptions come in the order of
// their ids first; rankExceptions moves them once their width is known.
func (c *compiler) layOut(removed []Removed) {
	p := c.policy
	byAction := [3][]*Rule{}
	for i := range p.Rules { // sorted by id
		r := &p.Rules[i]
		byAction[r.Action] = append(byAction[r.Action], r)
	}
	words := func(n int) int { return (n + 63) / 64 }
	c.denyAt = words(len(byAction[OverrideDeny]))
	c.allowAt = c.denyAt + words(len(byAction[Deny]))
	c.exceptAt = c.allowAt + words(len(byAction[Allow]))
	c.words = max(1, c.exceptAt+words(len(p.Exceptions)+len(removed)))
	n := c.words * 64
	c.matchers = make([]matcher, n)
	c.selectors = make([][2]*Selector, n)
	c.ranges = make([][]Range, n)
	c.used = make([]bool, n)
	c.mask[enforced] = make([]uint64, c.exceptAt)
	c.mask[staged] = make([]uint64, c.exceptAt)
	denyBit := map[string]int{}
	for action, at := range []int{0, c.denyAt, c.allowAt} {
		for i, r := range byAction[action] {
			bit := at*64 + i
			c.matchers[bit].id = c.names.Intern(r.ID)
			c.rules[c.matchers[bit].id] = r
			c.selectors[bit] = [2]*Selector{&r.From, &r.To}
			c.ranges[bit], c.used[bit] = r.Services, true
			set(c.mask[staged], bit)
			if !r.Staged {
				set(c.mask[enforced], bit)
			}
			c.anyStaged = c.anyStaged || r.Staged
			if Action(action) == Deny {
				denyBit[r.ID] = bit - c.denyAt*64
			}
		}
	}
	c.excepts = make([]exceptInfo, (c.words-c.exceptAt)*64)
	add := func(i int, e *Exception, removedAt flow.Time) {
		bit := c.exceptAt*64 + i
		c.matchers[bit].id = c.names.Intern(e.ID)
		c.selectors[bit] = [2]*Selector{&e.From, &e.To}
		c.ranges[bit], c.used[bit] = e.Services, true
		info := exceptInfo{e: e, approvedAt: maxTime, notBefore: e.NotBefore, end: min(e.End(), removedAt),
			removed: removedAt != maxTime, overrides: make([]uint64, c.allowAt-c.denyAt)}
		if at, ok := e.ApprovedAt(); ok {
			info.approvedAt = at
		}
		info.implicateEnd = addTime(info.end, c.cfg.ImplicateFor)
		for _, id := range e.Overrides {
			if bit, ok := denyBit[id]; ok { // a removed exception may name a rule that is gone
				set(info.overrides, bit)
			}
		}
		c.excepts[i] = info
	}
	for i := range p.Exceptions {
		add(i, &p.Exceptions[i], maxTime)
	}
	removed = slices.Clone(removed)
	slices.SortFunc(removed, func(a, b Removed) int { return strings.Compare(a.Exception.ID, b.Exception.ID) })
	for i, r := range removed {
		add(len(p.Exceptions)+i, r.Exception, r.At)
	}
}

func set(row []uint64, bit int)      { row[bit>>6] |= 1 << (bit & 63) }
func has(row []uint64, bit int) bool { return row[bit>>6]>>(bit&63)&1 != 0 }

// divide cuts the address space into regions at every prefix that the policy
// speaks of, and says for each what matches there.
func (c *compiler) divide() {
	p := c.policy
	type origin struct {
		segment, workload int32
		special, private  bool
		cidr              bool
		held              modes
	}
	origins := map[netip.Prefix]*origin{}
	at := func(q netip.Prefix) *origin {
		o := origins[q]
		if o == nil {
			o = &origin{segment: -1, workload: -1}
			origins[q] = o
		}
		return o
	}
	at(netip.MustParsePrefix("0.0.0.0/0"))
	at(netip.MustParsePrefix("::/0"))
	for i, s := range p.Segments {
		for _, q := range s.Prefixes {
			at(q).segment = int32(i)
		}
	}
	for i, w := range p.Workloads {
		for _, a := range w.Addresses {
			at(netip.PrefixFrom(a, a.BitLen())).workload = int32(i)
		}
	}
	for _, q := range privatePrefixes {
		at(q).private = true
	}
	for _, q := range specialPrefixes {
		at(q).special = true
	}
	for bit, sel := range c.selectors {
		for _, s := range sel {
			if s == nil {
				continue
			}
			for _, q := range s.CIDR {
				o := at(q)
				o.cidr = true
				if bit < c.exceptAt*64 {
					o.held |= inStaged
					if has(c.mask[enforced], bit) {
						o.held |= inEnforced
					}
				}
			}
			for _, n := range s.Not {
				for _, q := range n.CIDR {
					at(q).cidr = true
				}
			}
		}
	}
	prefixes := make([]netip.Prefix, 0, len(origins))
	for q := range origins {
		prefixes = append(prefixes, q)
	}
	// Shorter prefixes first, so that a prefix finds the one around it in the table.
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), a.Addr().Compare(b.Addr()))
	})

	standsFor := c.alikeWorkloads()
	c.cidrSets = [][]netip.Prefix{nil}
	sigOf := map[signature]int32{}
	var table bart.Table[int32]
	var addresses addressBuilder
	regions := make([]region, 0, len(prefixes))
	areas := make([]area, 0, len(prefixes))
	private := make([]bool, 0, len(prefixes))
	cidrSet := make([]int32, 0, len(prefixes))
	sizes := make([]*big.Int, len(prefixes))
	for i, q := range prefixes {
		o := origins[q]
		r := area{segment: -1, workload: -1}
		priv, set := false, int32(0)
		if j, ok := table.LookupPrefix(q); ok {
			around := &areas[j]
			r.segment, r.special, r.held = around.segment, around.special, around.held
			priv, set = private[j], cidrSet[j]
			sizes[j].Sub(sizes[j], prefixSize(q))
		}
		sizes[i] = prefixSize(q)
		if o.segment >= 0 {
			r.segment = o.segment
		}
		r.workload = o.workload
		r.special = r.special || o.special
		priv = priv || o.private
		r.held |= o.held
		if o.cidr {
			c.cidrSets = append(c.cidrSets, append(slices.Clone(c.cidrSets[set]), q))
			set = int32(len(c.cidrSets) - 1)
		}
		r.internet = r.segment < 0 && !priv
		sig := signature{segment: r.segment, workload: -1, cidrs: set, special: r.special, internet: r.internet}
		if r.workload >= 0 {
			sig.workload = standsFor[r.workload]
		}
		s, ok := sigOf[sig]
		if !ok {
			s = int32(len(c.sigs))
			sigOf[sig] = s
			c.sigs = append(c.sigs, sig)
		}
		private, cidrSet = append(private, priv), append(cidrSet, set)
		areas, regions = append(areas, r), append(regions, c.region(&r, s))
		table.Insert(q, int32(i))
		addresses.add(q, int32(i))
	}
	c.sizes = make([]*big.Int, len(c.sigs))
	for i := range c.sizes {
		c.sizes[i] = new(big.Int)
	}
	for i, r := range regions {
		c.sizes[r.sig].Add(c.sizes[r.sig], sizes[i])
	}
	c.table = addresses.pack(regions)
}

// region makes the region of an area, and its endpoint.
func (c *compiler) region(a *area, sig int32) region {
	e := c.endpoint(a)
	r := region{sig: sig, segment: e.Segment, workload: e.Workload, endpoint: int32(len(c.endpoints))}
	c.endpoints = append(c.endpoints, e)
	c.defaults(&r, a)
	return r
}

// defaults works out what coverage and the defaults of the area's segment come to.
func (c *compiler) defaults(r *region, a *area) {
	if a.special {
		r.barred = inBoth &^ a.held
	}
	if a.segment < 0 {
		return
	}
	s := &c.policy.Segments[a.segment]
	switch s.Stage {
	case StageEnforced:
		r.counted = inBoth
	case StageStaged:
		r.counted = inStaged
	}
	r.nameIn, r.nameOut = c.names.Intern("default:in:"+s.Name), c.names.Intern("default:out:"+s.Name)
	if s.DenyIn {
		r.denyIn = r.counted
	}
	if s.DenyOut {
		r.denyOut = r.counted
	}
}

func prefixSize(p netip.Prefix) *big.Int {
	return new(big.Int).Lsh(big.NewInt(1), uint(p.Addr().BitLen()-p.Bits()))
}

// alikeWorkloads gives for each workload the first one that no selector tells from
// it, so that fifty thousand workloads of a hundred kinds need a hundred rows.
func (c *compiler) alikeWorkloads() []int32 {
	named := map[string]bool{}
	for _, sel := range c.selectors {
		for _, s := range sel {
			if s == nil {
				continue
			}
			for _, w := range s.Workload {
				named[w] = true
			}
			for _, n := range s.Not {
				for _, w := range n.Workload {
					named[w] = true
				}
			}
		}
	}
	first := map[string]int32{}
	out := make([]int32, len(c.policy.Workloads))
	for i := range c.policy.Workloads {
		w := &c.policy.Workloads[i]
		key := fmt.Sprintf("%q %q %q %q", w.App, w.Role, w.Env, w.Labels)
		if named[w.Name] {
			key += fmt.Sprintf(" %q", w.Name)
		}
		if _, ok := first[key]; !ok {
			first[key] = int32(i)
		}
		out[i] = first[key]
	}
	return out
}

func (c *compiler) endpoint(r *area) (e Endpoint) {
	e.Internet, e.Special = r.internet, r.special
	if r.internet {
		e.Segment = c.internet
	}
	if r.segment >= 0 {
		s := &c.policy.Segments[r.segment]
		e.Segment, e.Zone, e.Owner = c.names.Intern(s.Name), c.names.Intern(s.Zone), c.names.Intern(s.Owner)
		e.Stage, e.Tier, e.AgentRequired = s.Stage, s.Tier, s.AgentRequired
	}
	if r.workload >= 0 {
		w := &c.policy.Workloads[r.workload]
		e.Workload, e.App, e.Role, e.Env = c.names.Intern(w.Name), c.names.Intern(w.App), c.names.Intern(w.Role), c.names.Intern(w.Env)
	}
	return e
}

// closedMatch says whether the keys of s that the policy alone decides hold for
// addresses of a signature; not: is left out.
func (c *compiler) closedMatch(s *Selector, g *signature) bool {
	if g.special && len(s.CIDR) == 0 {
		return false // only a cidr speaks of such addresses
	}
	var seg *Segment
	if g.segment >= 0 {
		seg = &c.policy.Segments[g.segment]
	}
	in := func(want []string, got string) bool { return len(want) == 0 || got != "" && slices.Contains(want, got) }
	if len(s.Segment) > 0 {
		ok := seg != nil && slices.Contains(s.Segment, seg.Name) || g.internet && slices.Contains(s.Segment, InternetSegment)
		if !ok {
			return false
		}
	}
	if len(s.Zone) > 0 && (seg == nil || !in(s.Zone, seg.Zone)) || len(s.Tier) > 0 && (seg == nil || !slices.Contains(s.Tier, seg.Tier)) {
		return false
	}
	if len(s.App)+len(s.Role)+len(s.Env)+len(s.Workload)+len(s.Labels) > 0 {
		if g.workload < 0 {
			return false
		}
		w := &c.policy.Workloads[g.workload]
		if !in(s.App, w.App) || !in(s.Role, w.Role) || !in(s.Env, w.Env) || !in(s.Workload, w.Name) {
			return false
		}
		for _, l := range s.Labels {
			i := slices.IndexFunc(w.Labels, func(have Label) bool { return have.Key == l.Key })
			if i < 0 || !slices.Contains(l.Values, w.Labels[i].Values[0]) {
				return false
			}
		}
	}
	if len(s.CIDR) > 0 && !slices.ContainsFunc(c.cidrSets[g.cidrs], func(q netip.Prefix) bool { return slices.Contains(s.CIDR, q) }) {
		return false
	}
	return true
}

// closedKeys says whether s has keys that the policy alone decides.
func (s *Selector) closedKeys() bool {
	return s.Any || len(s.Segment)+len(s.Zone)+len(s.Tier)+len(s.App)+len(s.Role)+len(s.Env)+len(s.Workload)+len(s.CIDR)+len(s.Labels) > 0
}

func (s *Selector) openKeys() bool {
	return len(s.Identity)+len(s.Group)+len(s.Process)+len(s.Posture) > 0
}

// fillRows makes the rows of every signature and the open parts of every matcher.
func (c *compiler) fillRows() {
	c.from = make([]uint64, c.words*len(c.sigs))
	c.to = make([]uint64, c.words*len(c.sigs))
	c.open, c.places = make([]uint64, c.words), make([]uint64, c.words)
	for bit, sel := range c.selectors {
		if !c.used[bit] {
			continue
		}
		m := &c.matchers[bit]
		m.from = c.side(bit, sel[0], c.from)
		m.to = c.side(bit, sel[1], c.to)
		if m.from != nil || m.to != nil {
			set(c.open, bit)
		}
		for _, o := range []*openSelector{m.from, m.to} {
			if o != nil && slices.ContainsFunc(o.nots, func(n openNot) bool { return n.closed }) {
				set(c.places, bit)
			}
		}
	}
}

// side sets the bit of a selector in the row of every signature it may match and
// gives its open part, nil if it has none.
func (c *compiler) side(bit int, s *Selector, rows []uint64) *openSelector {
	o := c.openPart(s)
	for _, n := range s.Not {
		if n.openKeys() {
			on := openNot{open: c.openPart(&n), closed: n.closedKeys()}
			if on.closed {
				on.static = make([]uint64, (len(c.sigs)+63)/64)
			}
			o.nots = append(o.nots, on)
		}
	}
	for i := range c.sigs {
		g := &c.sigs[i]
		ok := c.closedMatch(s, g)
		k := 0
		for j := range s.Not {
			n := &s.Not[j]
			switch {
			case !n.openKeys():
				// A special address that a cidr brought in is taken away by what
				// holds of it, not by the lack of a cidr in the not.
				ok = ok && !c.closedMatchOrdinary(n, g)
			default:
				if o.nots[k].closed && c.closedMatchOrdinary(n, g) {
					set(o.nots[k].static, i)
				}
				k++
			}
		}
		if ok {
			set(rows[i*c.words:(i+1)*c.words], bit)
		}
	}
	if o.empty() {
		return nil
	}
	return &o
}

// closedMatchOrdinary is closedMatch for what stands under not:, where a special
// address is an address like any other.
func (c *compiler) closedMatchOrdinary(s *Selector, g *signature) bool {
	ordinary := *g
	ordinary.special = false
	return c.closedMatch(s, &ordinary)
}

func (c *compiler) openPart(s *Selector) openSelector {
	intern := func(texts []string) (out []flow.Name) {
		for _, t := range texts {
			out = append(out, c.names.Intern(t))
		}
		return out
	}
	// Accounts in the one spelling that identities are looked up in; groups in lower case,
	// since the directories that they come from tell no two apart by it.
	var accounts, groups []string
	for _, t := range s.Identity {
		if one, kind := c.cfg.Domains.Principal(t); kind != flow.PrincipalNone {
			t = one
		}
		accounts = append(accounts, t)
	}
	for _, g := range s.Group {
		groups = append(groups, strings.ToLower(g))
	}
	return openSelector{identity: intern(accounts), group: intern(groups), process: intern(s.Process), posture: intern(s.Posture)}
}

// rankExceptions brings the exceptions into the order in which the narrowest is
// named: by how much they let through, then the shorter validity, then the id.
func (c *compiler) rankExceptions() {
	n := 0
	for n < len(c.excepts) && c.excepts[n].e != nil {
		n++
	}
	type width struct {
		open     bool // no identity named: more than any number
		size     *big.Int
		validity flow.Time
	}
	widths := make([]width, n)
	order := make([]int, n)
	for i := range n {
		e := c.excepts[i].e
		size := c.addresses(c.from, c.exceptAt*64+i)
		size.Mul(size, c.addresses(c.to, c.exceptAt*64+i))
		c.excepts[i].pairs = new(big.Int).Set(size)
		size.Mul(size, big.NewInt(portCount(e.Services)))
		for _, l := range []int{len(e.From.Identity), len(e.To.Identity)} {
			if l > 0 {
				size.Mul(size, big.NewInt(int64(l)))
			}
		}
		validity := maxTime
		if begin := cmp.Or(e.NotBefore, e.RequestedAt); begin != 0 {
			validity = e.Expires - begin
		}
		widths[i] = width{len(e.From.Identity)+len(e.To.Identity) == 0, size, validity}
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := widths[i], widths[j]
		openFirst := 0
		if a.open != b.open {
			openFirst = -1
			if a.open {
				openFirst = 1
			}
		}
		return cmp.Or(openFirst, a.size.Cmp(b.size), cmp.Compare(a.validity, b.validity), strings.Compare(c.excepts[i].e.ID, c.excepts[j].e.ID))
	})
	base := c.exceptAt * 64
	excepts, matchers, ranges := slices.Clone(c.excepts), slices.Clone(c.matchers[base:]), slices.Clone(c.ranges[base:])
	for to, from := range order {
		c.excepts[to], c.matchers[base+to], c.ranges[base+to] = excepts[from], matchers[from], ranges[from]
		c.byName[matchers[from].id] = to
	}
	move := func(row []uint64) {
		old := slices.Clone(row[c.exceptAt:c.words])
		clear(row[c.exceptAt:c.words])
		for to, from := range order {
			if has(old, from) {
				set(row[c.exceptAt:c.words], to)
			}
		}
	}
	move(c.open)
	move(c.places)
	for i := range c.sigs {
		move(c.from[i*c.words : (i+1)*c.words])
		move(c.to[i*c.words : (i+1)*c.words])
	}
}

// shareRows gives signatures that match alike one row: workloads of many kinds
// differ in what no rule asks for. The fewer rows, the more of them stay in cache.
func (c *compiler) shareRows() {
	var nots [][]uint64 // what tells signatures apart beside their rows
	for i := range c.matchers {
		for _, o := range []*openSelector{c.matchers[i].from, c.matchers[i].to} {
			if o == nil {
				continue
			}
			for j := range o.nots {
				if o.nots[j].closed {
					nots = append(nots, o.nots[j].static)
				}
			}
		}
	}
	w := c.words
	first := map[string]int32{}
	shared := make([]int32, len(c.sigs))
	var from, to []uint64
	var kept []int
	var key []byte
	for i := range c.sigs {
		key = key[:0]
		for _, row := range [][]uint64{c.from[i*w : (i+1)*w], c.to[i*w : (i+1)*w]} {
			for _, word := range row {
				key = binary.LittleEndian.AppendUint64(key, word)
			}
		}
		for _, n := range nots {
			if has(n, i) {
				key = append(key, 1)
			} else {
				key = append(key, 0)
			}
		}
		j, ok := first[string(key)]
		if !ok {
			j = int32(len(kept))
			first[string(key)] = j
			kept = append(kept, i)
			from, to = append(from, c.from[i*w:(i+1)*w]...), append(to, c.to[i*w:(i+1)*w]...)
		}
		shared[i] = j
	}
	c.from, c.to = slices.Clip(from), slices.Clip(to)
	for _, n := range nots {
		old := slices.Clone(n)
		clear(n)
		for j, i := range kept {
			if has(old, i) {
				set(n, j)
			}
		}
	}
	for i := range c.table.regions {
		r := &c.table.regions[i]
		r.sig = shared[r.sig]
	}
}

// addresses counts the addresses that a bit's side may match.
func (c *compiler) addresses(rows []uint64, bit int) *big.Int {
	n := new(big.Int)
	for i, size := range c.sizes {
		if has(rows[i*c.words:(i+1)*c.words], bit) {
			n.Add(n, size)
		}
	}
	return n
}

// portCount counts protocols and ports: 65,536 a protocol where none is named.
func portCount(ranges []Range) int64 {
	if ranges == nil {
		return 256 * 65536
	}
	n := int64(0)
	for _, r := range ranges {
		n += int64(r.High) - int64(r.Low) + 1
	}
	return n
}

// times notes when each exception is active and every instant at which its state
// changes.
func (c *compiler) times() {
	c.validity = make([]validity, len(c.excepts))
	for i := range c.excepts {
		if x := &c.excepts[i]; x.e != nil {
			c.validity[i] = validity{max(x.approvedAt, x.notBefore), min(x.end, x.implicateEnd)}
			c.instants = append(c.instants, x.approvedAt, x.notBefore, x.end, x.implicateEnd)
		}
	}
	c.instants = sortedSet(c.instants)
}

// serviceTable gives the rows of a service.
type serviceTable struct {
	words  int
	rows   []uint64
	protos [256]*portTable // nil: only what names no service matches
	any    uint32          // row of what names no service
	all    uint32          // row of everything: neither protocol nor port is known
}

// portTable finds the row of one protocol's port in two steps, since most of the
// 256 pages of 256 ports are alike.
type portTable struct {
	page    [256]uint16
	pages   [][256]uint32
	sure    uint32 // the port is not known: what matches every port
	perhaps uint32 // the port is not known: what matches some port
}

func (t *serviceTable) build(words int, ranges [][]Range) {
	t.words = words
	rowOf := map[string]uint32{}
	intern := func(row []uint64) uint32 {
		key := fmt.Sprint(row)
		i, ok := rowOf[key]
		if !ok {
			i = uint32(len(t.rows) / max(1, words))
			rowOf[key] = i
			t.rows = append(t.rows, row...)
		}
		return i * uint32(words)
	}
	anyRow, allRow := make([]uint64, words), make([]uint64, words)
	type part struct {
		bit int
		r   Range
	}
	byProto := map[uint8][]part{}
	for bit, rs := range ranges {
		set(allRow, bit)
		if rs == nil {
			set(anyRow, bit)
		}
		for _, r := range rs {
			byProto[r.Proto] = append(byProto[r.Proto], part{bit, r})
		}
	}
	t.any, t.all = intern(anyRow), intern(allRow)
	for proto := range 256 {
		parts := byProto[uint8(proto)]
		if parts == nil {
			continue
		}
		pt := &portTable{}
		cuts := []int{0, 65536}
		sure, perhaps := slices.Clone(anyRow), slices.Clone(anyRow)
		for _, p := range parts {
			cuts = append(cuts, int(p.r.Low), int(p.r.High)+1)
			set(perhaps, p.bit)
			if p.r.Low == 0 && p.r.High == 0xffff {
				set(sure, p.bit)
			}
		}
		pt.sure, pt.perhaps = intern(sure), intern(perhaps)
		cuts = sortedSet(cuts)
		// Sweep over the cuts, ranges switching on and off.
		on, off := map[int][]int{}, map[int][]int{}
		for _, p := range parts {
			on[int(p.r.Low)] = append(on[int(p.r.Low)], p.bit)
			off[int(p.r.High)+1] = append(off[int(p.r.High)+1], p.bit)
		}
		row := slices.Clone(anyRow)
		var flat [65536]uint32
		for i, cut := range cuts[:len(cuts)-1] {
			for _, bit := range off[cut] {
				row[bit>>6] &^= 1 << (bit & 63)
			}
			for _, bit := range on[cut] {
				set(row, bit)
			}
			id := intern(row)
			for port := cut; port < cuts[i+1]; port++ {
				flat[port] = id
			}
		}
		pageOf := map[[256]uint32]uint16{}
		for i := range 256 {
			page := [256]uint32(flat[i*256 : (i+1)*256])
			j, ok := pageOf[page]
			if !ok {
				j = uint16(len(pt.pages))
				pageOf[page] = j
				pt.pages = append(pt.pages, page)
			}
			pt.page[i] = j
		}
		t.protos[proto] = pt
	}
}

// lookup gives the row of what matches for certain and the row of what may match;
// they are the same row where all is known. What the protocol lacks may match.
func (t *serviceTable) lookup(c *Conversation) (sure, perhaps uint32) {
	if c.Known&KnownProto == 0 {
		return t.any, t.all
	}
	pt := t.protos[c.Proto]
	if pt == nil {
		return t.any, t.any
	}
	var port uint16
	switch {
	case isICMP(c.Proto):
		if c.Known&KnownICMP == 0 {
			return pt.sure, pt.perhaps
		}
		port = uint16(c.ICMPType)<<8 | uint16(c.ICMPCode)
	case hasPorts(c.Proto):
		if c.Known&KnownPort == 0 {
			return pt.sure, pt.perhaps
		}
		port = c.Port
	}
	row := pt.pages[pt.page[port>>8]][port&0xff]
	return row, row
}

// Endpoint is what the policy knows of an address.
func (x *Index) Endpoint(a flow.Addr) *Endpoint {
	return &x.endpoints[x.table.lookup(a).endpoint]
}
