package policy

import (
	"math/bits"
	"slices"

	"github.com/postern/postern/flow"
)

// MaxGroups is how many groups of an end are looked at by name; an end in more of
// them says so, and a group not among them is then unknown.
const MaxGroups = 8

// Known says which parts of a conversation are known.
type Known uint8

// The parts that may be unknown.
const (
	KnownClient Known = 1 << iota // the client's address
	KnownServer                   // the server's address
	KnownProto
	KnownPort // the responder's port
	KnownICMP // type and code

	// KnownTuple is all of them but the ICMP type and code.
	KnownTuple = KnownClient | KnownServer | KnownProto | KnownPort
)

// Evidence is what a conversation shows about whether it got through, where
// enforcement did not say.
type Evidence uint8

// The evidence.
const (
	EvidenceNone     Evidence = iota // a lone attempt
	EvidenceBothWays                 // traffic both ways or a completed handshake
)

// Party is what is known of one end of a conversation. NoName is not known, never
// "nobody"; so is OverflowName, which stands for many.
type Party struct {
	Addr       flow.Addr
	Identity   flow.Name
	Process    flow.Name
	Posture    flow.Name
	Groups     [MaxGroups]flow.Name // NoName ends them; none at all is not known
	MoreGroups bool                 // there are groups beyond these
}

// Conversation is what is judged: initiator to responder, over one record's
// interval. A value of fixed size without pointers.
type Conversation struct {
	Client, Server     Party
	Start, End         flow.Time
	Port               uint16 // the responder's
	Proto              uint8
	ICMPType, ICMPCode uint8
	Known              Known
	Observed           flow.Observed
	Evidence           Evidence
}

// truth is the outcome of a match: unknown is neither.
type truth uint8

const (
	no truth = iota
	unknown
	yes
)

func oneName(want []flow.Name, got flow.Name) truth {
	if got == flow.NoName || got == flow.OverflowName {
		return unknown
	}
	if slices.Contains(want, got) {
		return yes
	}
	return no
}

func oneGroup(want []flow.Name, p *Party) truth {
	if p.Groups[0] == flow.NoName {
		return unknown
	}
	result := no
	if p.MoreGroups {
		result = unknown
	}
	for _, g := range p.Groups {
		if g == flow.NoName {
			break
		}
		if g == flow.OverflowName {
			result = unknown
			continue
		}
		if slices.Contains(want, g) {
			return yes
		}
	}
	return result
}

// keys evaluates the open keys of one selector: no if any fails, and the
// dimensions that failed and that were unknown.
func (o *openSelector) keys(p *Party) (t truth, failed, missing flow.Dimensions) {
	// By truth: what failed, what is unknown, what held.
	var d [3]flow.Dimensions
	if len(o.identity) > 0 {
		d[oneName(o.identity, p.Identity)] |= flow.DimIdentity
	}
	if len(o.group) > 0 {
		d[oneGroup(o.group, p)] |= flow.DimIdentity
	}
	if len(o.process) > 0 {
		d[oneName(o.process, p.Process)] |= flow.DimProcess
	}
	if len(o.posture) > 0 {
		d[oneName(o.posture, p.Posture)] |= flow.DimPosture
	}
	switch {
	case d[no] != 0:
		return no, d[no], d[unknown]
	case d[unknown] != 0:
		return unknown, 0, d[unknown]
	}
	return yes, 0, 0
}

func (o *openSelector) dimensions() (d flow.Dimensions) {
	if len(o.identity)+len(o.group) > 0 {
		d |= flow.DimIdentity
	}
	if len(o.process) > 0 {
		d |= flow.DimProcess
	}
	if len(o.posture) > 0 {
		d |= flow.DimPosture
	}
	return d
}

// match evaluates the open part of one side. place is the dimension of the side's
// address: DimSource or DimDestination.
func (o *openSelector) match(p *Party, sig int32, place flow.Dimensions) (failed, missing flow.Dimensions) {
	_, failed, missing = o.keys(p)
	for i := range o.nots {
		n := &o.nots[i]
		if n.closed && !has(n.static, int(sig)) {
			continue
		}
		t, _, m := n.open.keys(p)
		switch t {
		case yes:
			failed |= n.open.dimensions()
			if n.closed {
				failed |= place
			}
		case unknown:
			missing |= m
		}
	}
	return failed, missing
}

// openMatch evaluates the open parts of both sides of a bit.
func (x *Index) openMatch(bit int, client, server *Party, from, to int32) (failed, missing flow.Dimensions) {
	m := &x.matchers[bit]
	f1, m1 := m.from.match(client, from, flow.DimSource)
	f2, m2 := m.to.match(server, to, flow.DimDestination)
	return f1 | f2, m1 | m2
}

// rows are the bit rows that one conversation picks.
type rows struct {
	from, to         []uint64 // straight
	swapFrom, swapTo []uint64 // with the ends swapped
	sure, perhaps    []uint64 // of the service; the same row where all is known
	client, server   *region
}

func (x *Index) pick(c *Conversation, client, server *region) (r rows) {
	r.client, r.server = client, server
	w := x.words
	i, j := int(r.client.sig)*w, int(r.server.sig)*w
	r.from, r.to = x.from[i:i+w:i+w], x.to[j:j+w:j+w]
	r.swapFrom, r.swapTo = x.from[j:j+w:j+w], x.to[i:i+w:i+w]
	sure, perhaps := x.services.lookup(c)
	r.sure, r.perhaps = x.services.rows[sure:int(sure)+w:int(sure)+w], x.services.rows[perhaps:int(perhaps)+w:int(perhaps)+w]
	return r
}

// ruling is what one judgement gave, before it is set against what was observed.
type ruling struct {
	expected   flow.Expected
	reason     flow.Reason
	rule       flow.Name
	exception  flow.Name
	others     [flow.MaxOthers]flow.Name
	total      int // of others
	failed     flow.Dimensions
	missing    flow.Dimensions
	validUntil flow.Time
}

// Judge judges c by this version of policy and fills v, PolicyVersion included.
// It neither allocates nor keeps c or v, and gives the same for the same.
func (x *Index) Judge(c *Conversation, v *flow.Verdict) {
	x.judge(c, x.region(c.Client.Addr), x.region(c.Server.Addr), v)
}

func (x *Index) region(a flow.Addr) *region { return &x.regions[x.table.lookup(a.Canonical())] }

// judge is Judge with the regions of both ends at hand; they are not looked at
// where the address is not known.
func (x *Index) judge(c *Conversation, client, server *region, v *flow.Verdict) {
	*v = flow.Verdict{PolicyVersion: x.version, Observed: c.Observed}
	if c.Known&(KnownClient|KnownServer) != KnownClient|KnownServer {
		v.Reason, v.StagedReason = flow.ReasonUnverified, flow.ReasonUnverified
		if c.Known&KnownClient == 0 {
			v.Missing |= flow.DimSource
		}
		if c.Known&KnownServer == 0 {
			v.Missing |= flow.DimDestination
		}
		return
	}
	if isICMPError(c) {
		// The conversation it quotes decides, and that is not known here.
		v.Reason, v.StagedReason = flow.ReasonUnverified, flow.ReasonUnverified
		v.Missing = flow.DimService
		return
	}
	r := x.pick(c, client, server)
	var g ruling
	x.rule(c, &r, enforced, &g)
	v.Expected, v.Reason, v.Rule, v.Exception = g.expected, g.reason, g.rule, g.exception
	v.Others, v.OthersTotal = g.others, uint16(min(g.total, 0xffff))
	v.Failed, v.Missing, v.ValidUntil = g.failed, g.missing, g.validUntil
	v.Staged, v.StagedReason = g.expected, g.reason
	if x.stagingMatters(&r) {
		var s ruling
		x.rule(c, &r, staged, &s)
		v.Staged, v.StagedReason = s.expected, s.reason
	}
	weigh(c, v)
}

// isICMPError says whether c is an ICMP error, which speaks of another
// conversation (RFC 792, RFC 4443).
func isICMPError(c *Conversation) bool {
	if c.Known&KnownICMP == 0 || c.Known&KnownProto == 0 {
		return false
	}
	switch c.Proto {
	case flow.ProtoICMP:
		switch c.ICMPType {
		case 3, 4, 5, 11, 12:
			return true
		}
	case flow.ProtoICMPv6:
		return c.ICMPType >= 1 && c.ICMPType <= 4
	}
	return false
}

// stagingMatters says whether anything staged could make the second judgement
// differ from the first.
func (x *Index) stagingMatters(r *rows) bool {
	if r.client.stage == StageStaged || r.server.stage == StageStaged ||
		r.client.held[enforced] != r.client.held[staged] || r.server.held[enforced] != r.server.held[staged] {
		return true
	}
	if !x.anyStaged {
		return false
	}
	for w, all := range x.mask[staged] {
		if r.from[w]&r.to[w]&r.perhaps[w]&(all&^x.mask[enforced][w]) != 0 {
			return true
		}
	}
	return false
}

// counts says whether a segment of this stage counts as enforced.
func (m mode) counts(s Stage) bool { return s == StageEnforced || m == staged && s == StageStaged }

// covered says whether either end is under policy.
func (x *Index) covered(r *rows, m mode) bool {
	if r.client.special && !r.client.held[m] || r.server.special && !r.server.held[m] {
		return false
	}
	return m.counts(r.client.stage) || m.counts(r.server.stage)
}

// byDefault is what the defaults say, and which one says it: a denial before an
// allowance, the responder's side before the initiator's.
func (x *Index) byDefault(r *rows, m mode) (deny bool, name flow.Name) {
	if m.counts(r.server.stage) {
		s := &x.segments[r.server.segment]
		name = s.nameIn
		if s.denyIn {
			return true, name
		}
	}
	if m.counts(r.client.stage) {
		s := &x.segments[r.client.segment]
		if s.denyOut {
			return true, s.nameOut
		}
		if name == flow.NoName {
			name = s.nameOut
		}
	}
	return false, name
}

// rule gives the ruling of one mode. Most conversations meet no rule with open
// keys and no exception and are settled here; the rest go to weighAll.
func (x *Index) rule(c *Conversation, r *rows, m mode, g *ruling) {
	if !x.covered(r, m) {
		g.reason = flow.ReasonUncovered
		return
	}
	if c.Known&KnownProto == 0 || &r.sure[0] != &r.perhaps[0] {
		x.ruleExactly(c, r, m, g)
		return
	}
	mask := x.mask[m]
	first := -1
	for w := range x.allowAt {
		for b := r.from[w] & r.to[w] & r.sure[w] & mask[w]; b != 0; b &= b - 1 {
			bit := w<<6 + bits.TrailingZeros64(b)
			if x.open[w]&(b&-b) != 0 {
				failed, missing := x.openMatch(bit, &c.Client, &c.Server, r.client.sig, r.server.sig)
				if failed != 0 {
					continue
				}
				if missing != 0 {
					x.ruleExactly(c, r, m, g)
					return
				}
			}
			if first < 0 {
				first = bit
			}
		}
	}
	deny, name := first >= 0, flow.NoName
	if first < 0 {
		var perhaps bool
		if first, perhaps = x.firstAllow(c, r, mask); first < 0 {
			if deny, name = x.byDefault(r, m); deny && perhaps {
				x.ruleExactly(c, r, m, g)
				return
			}
		}
	}
	if first >= 0 {
		name = x.matchers[first].id
	}
	var near uint64 // exceptions that two or three of source, destination and service match
	var fits uint64 // all three
	for w := x.exceptAt; w < x.words; w++ {
		s, d, v := r.from[w], r.to[w], r.sure[w]
		fits |= s & d & v
		if deny {
			near |= s&d | v&(s|d) | r.swapFrom[w]&r.swapTo[w]&v
		}
	}
	if fits != 0 && deny {
		x.ruleExactly(c, r, m, g)
		return
	}
	g.rule = name
	if !deny {
		g.expected, g.reason = flow.ExpectAllow, flow.ReasonPermitted
		if fits != 0 {
			x.redundant(c, r, g)
		}
		return
	}
	g.expected, g.reason = flow.ExpectDeny, flow.ReasonDenied
	if near == 0 {
		return
	}
	// No exception fits, so the denial is certain, and what is left is whom it
	// implicates.
	if first < 0 {
		x.misuse(c, r, false, nil, g)
		return
	}
	x.misuseOfRules(c, r, m, first, g)
}

// redundant lists the exceptions that fit a conversation which the rules permit
// anyway.
func (x *Index) redundant(c *Conversation, r *rows, g *ruling) {
	var l list
	for w := x.exceptAt; w < x.words; w++ {
		for b := r.from[w] & r.to[w] & r.sure[w]; b != 0; b &= b - 1 {
			i := (w-x.exceptAt)<<6 + bits.TrailingZeros64(b)
			if x.excepts[i].state(c.Start) != active {
				continue
			}
			if x.open[w]&(b&-b) != 0 {
				if failed, missing := x.openMatch(x.exceptAt<<6+i, &c.Client, &c.Server, r.client.sig, r.server.sig); failed|missing != 0 {
					continue
				}
			}
			l.add(0, 0, i, 0, 0)
		}
	}
	l.give(x, g, false)
}

// firstAllow is the lowest allow that matches for certain, -1 if there is none;
// perhaps then says whether one may.
func (x *Index) firstAllow(c *Conversation, r *rows, mask []uint64) (first int, perhaps bool) {
	for w := x.allowAt; w < x.exceptAt; w++ {
		for b := r.from[w] & r.to[w] & r.sure[w] & mask[w]; b != 0; b &= b - 1 {
			bit := w<<6 + bits.TrailingZeros64(b)
			if x.open[w]&(b&-b) == 0 {
				return bit, false
			}
			switch failed, missing := x.openMatch(bit, &c.Client, &c.Server, r.client.sig, r.server.sig); {
			case failed != 0:
			case missing != 0:
				perhaps = true
			default:
				return bit, false
			}
		}
	}
	return -1, perhaps
}

// fewDenies is how many words of denies are gathered without a detour: 1,024 rules.
const fewDenies = 16

func (x *Index) misuseOfRules(c *Conversation, r *rows, m mode, first int, g *ruling) {
	n := x.allowAt - x.denyAt
	if n > fewDenies {
		x.ruleExactly(c, r, m, g)
		return
	}
	var denies [fewDenies]uint64
	for i := range n {
		w := x.denyAt + i
		denies[i] = r.from[w] & r.to[w] & r.sure[w] & x.mask[m][w]
		for b := denies[i] & x.open[w]; b != 0; b &= b - 1 {
			// None is unknown, or the exact way would have been taken.
			if failed, _ := x.openMatch(w<<6+bits.TrailingZeros64(b), &c.Client, &c.Server, r.client.sig, r.server.sig); failed != 0 {
				denies[i] &^= b & -b
			}
		}
	}
	x.misuse(c, r, first>>6 < x.denyAt, denies[:n], g)
}

// stackWords is how many words of matchers are judged without the heap: 8,192
// rules and exceptions. Up to fewWords (2,048) a smaller piece of stack does, which
// is cheaper to clear.
const (
	stackWords = 128
	fewWords   = 32
)

// sets are the matchers of one judgement: those that match for certain and those
// that may, over the words of rules and exceptions. Exceptions are in them only
// while valid and approved.
type sets struct {
	sure, perhaps []uint64
	denies        bool // the defaults deny
}

// ruleExactly judges with every open key and exception looked at.
func (x *Index) ruleExactly(c *Conversation, r *rows, m mode, g *ruling) {
	switch {
	case x.words <= fewWords:
		var stack [2 * fewWords]uint64
		x.ruleWith(c, r, m, g, stack[:2*x.words])
	case x.words <= stackWords:
		var stack [2 * stackWords]uint64
		x.ruleWith(c, r, m, g, stack[:2*x.words])
	default:
		x.ruleWith(c, r, m, g, make([]uint64, 2*x.words))
	}
}

// ruleWith is ruleExactly with room for the sets.
func (x *Index) ruleWith(c *Conversation, r *rows, m mode, g *ruling, room []uint64) {
	s := sets{sure: room[:x.words:x.words], perhaps: room[x.words:]}
	for w := range x.words {
		perhaps := r.from[w] & r.to[w] & r.perhaps[w]
		if w < x.exceptAt {
			perhaps &= x.mask[m][w]
		}
		sure := perhaps & r.sure[w]
		look := perhaps & x.open[w]
		if w >= x.exceptAt {
			look = perhaps // each for its state
		}
		for ; look != 0; look &= look - 1 {
			bit := w<<6 + bits.TrailingZeros64(look)
			flag := look & -look
			if w >= x.exceptAt && x.excepts[bit-x.exceptAt<<6].state(c.Start) != active {
				perhaps, sure = perhaps&^flag, sure&^flag
				continue
			}
			if x.open[w]&flag == 0 {
				continue
			}
			failed, missing := x.openMatch(bit, &c.Client, &c.Server, r.client.sig, r.server.sig)
			if failed != 0 {
				perhaps, sure = perhaps&^flag, sure&^flag
			} else if missing != 0 {
				sure &^= flag
			}
		}
		s.sure[w], s.perhaps[w] = sure, perhaps
	}
	var name flow.Name
	s.denies, name = x.byDefault(r, m)

	could := x.could(&s)
	if could&(could-1) != 0 {
		g.reason = flow.ReasonUnverified
		g.missing = x.pivotal(c, r, &s, could)
		return
	}
	switch could {
	case couldPermit:
		g.expected, g.reason = flow.ExpectAllow, flow.ReasonPermitted
		if bit := first(s.sure, x.allowAt, x.exceptAt); bit >= 0 {
			name = x.matchers[bit].id
		}
		g.rule = name
		var l list
		x.eachException(s.sure, func(i int) { l.add(0, 0, i, 0, 0) })
		l.give(x, g, false)
	case couldWaive:
		g.expected, g.reason = flow.ExpectAllow, flow.ReasonWaived
		if bit := first(s.sure, x.denyAt, x.allowAt); bit >= 0 {
			name = x.matchers[bit].id
		}
		g.rule = name
		x.waived(c, r, &s, g)
	default:
		g.expected, g.reason = flow.ExpectDeny, flow.ReasonDenied
		if bit := first(s.sure, 0, x.allowAt); bit >= 0 {
			name = x.matchers[bit].id
		}
		g.rule = name
		overridden := first(s.sure, 0, x.denyAt) >= 0
		var denies []uint64
		if first(s.sure, x.denyAt, x.allowAt) >= 0 {
			denies = s.sure[x.denyAt:x.allowAt]
		}
		x.misuse(c, r, overridden, denies, g)
	}
}

// first is the lowest bit in words [from, to) of a row, -1 if there is none.
func first(row []uint64, from, to int) int {
	for w := from; w < to; w++ {
		if row[w] != 0 {
			return w<<6 + bits.TrailingZeros64(row[w])
		}
	}
	return -1
}

// could says which reasons are possible when every match that hangs on something
// unknown is tried both ways, each by itself: a set of the three below.
type could uint8

const (
	couldPermit could = 1 << iota
	couldWaive
	couldDeny
)

func (x *Index) could(s *sets) (out could) {
	overrideSure := first(s.sure, 0, x.denyAt) >= 0
	overridePerhaps := first(s.perhaps, 0, x.denyAt) >= 0
	denySure := first(s.sure, x.denyAt, x.allowAt) >= 0
	denyPerhaps := first(s.perhaps, x.denyAt, x.allowAt) >= 0
	allowSure := first(s.sure, x.allowAt, x.exceptAt) >= 0
	allowPerhaps := first(s.perhaps, x.allowAt, x.exceptAt) >= 0

	// Permitted: no deny need match, and an allow may or the defaults do.
	if !overrideSure && !denySure && (allowPerhaps || !s.denies) {
		out |= couldPermit
	}
	// Waived: the rules can deny in such a way that some exception names every deny
	// that matches. The fewest denies are the easiest to name: those that are sure,
	// or the defaults alone, or a single unknown one.
	if !overrideSure && x.canWaive(s, denySure, s.denies && !allowSure) {
		out |= couldWaive
	}
	// Denied: an override-deny can match; or, with as many denies as can be, no
	// exception that fits for certain names them all.
	switch {
	case overridePerhaps:
		out |= couldDeny
	case denyPerhaps:
		if !x.anyFits(s.sure, s.perhaps) {
			out |= couldDeny
		}
	default:
		if s.denies && !allowSure && first(s.sure, x.exceptAt, x.words) < 0 {
			out |= couldDeny
		}
	}
	return out
}

// canWaive says whether an exception that may match can waive a denial.
func (x *Index) canWaive(s *sets, denySure, defaultsCanDeny bool) bool {
	for w := x.exceptAt; w < x.words; w++ {
		for b := s.perhaps[w]; b != 0; b &= b - 1 {
			overrides := x.excepts[(w-x.exceptAt)<<6+bits.TrailingZeros64(b)].overrides
			if denySure {
				if namesAll(overrides, s.sure[x.denyAt:x.allowAt]) {
					return true
				}
				continue
			}
			if defaultsCanDeny {
				return true
			}
			for i, o := range overrides {
				if o&s.perhaps[x.denyAt+i] != 0 {
					return true
				}
			}
		}
	}
	return false
}

// namesAll says whether overrides names every deny in denies; nil is none.
func namesAll(overrides, denies []uint64) bool {
	for i, d := range denies {
		if d&^overrides[i] != 0 {
			return false
		}
	}
	return true
}

// anyFits says whether an exception in row names every deny in denies.
func (x *Index) anyFits(row, denies []uint64) bool {
	for w := x.exceptAt; w < x.words; w++ {
		for b := row[w]; b != 0; b &= b - 1 {
			if namesAll(x.excepts[(w-x.exceptAt)<<6+bits.TrailingZeros64(b)].overrides, denies[x.denyAt:x.allowAt]) {
				return true
			}
		}
	}
	return false
}

// pivotal gathers what was missing where it mattered: the unknown dimensions of
// every unknown match that, were it decided one way or the other, would leave
// different reasons possible.
func (x *Index) pivotal(c *Conversation, r *rows, s *sets, now could) (missing flow.Dimensions) {
	for w := range x.words {
		for b := s.perhaps[w] &^ s.sure[w]; b != 0; b &= b - 1 {
			flag := b & -b
			bit := w<<6 + bits.TrailingZeros64(b)
			_, m := x.openMatch(bit, &c.Client, &c.Server, r.client.sig, r.server.sig)
			if r.sure[w]&flag == 0 {
				m |= flow.DimService
			}
			if m&^missing == 0 {
				continue
			}
			s.sure[w] |= flag
			with := x.could(s)
			s.sure[w] &^= flag
			s.perhaps[w] &^= flag
			without := x.could(s)
			s.perhaps[w] |= flag
			if with != without {
				missing |= m
			}
		}
	}
	return missing
}

func (x *Index) eachException(row []uint64, do func(i int)) {
	for w := x.exceptAt; w < x.words; w++ {
		for b := row[w]; b != 0; b &= b - 1 {
			do((w-x.exceptAt)<<6 + bits.TrailingZeros64(b))
		}
	}
}

// list keeps the best of the exceptions to be named, in order, and counts them all.
type list struct {
	entries [flow.MaxOthers + 1]entry
	n       int // of entries
	total   int
}

type entry struct {
	class           uint8 // lower is named first
	failing         uint8
	rank            int32
	failed, missing flow.Dimensions
}

func (e *entry) before(o *entry) bool {
	if e.class != o.class {
		return e.class < o.class
	}
	if e.failing != o.failing {
		return e.failing < o.failing
	}
	return e.rank < o.rank
}

func (l *list) add(class, failing uint8, rank int, failed, missing flow.Dimensions) {
	l.total++
	e := entry{class, failing, int32(rank), failed, missing}
	i := l.n
	if l.n < len(l.entries) {
		l.n++
	} else if i--; !e.before(&l.entries[i]) {
		return
	}
	for ; i > 0 && e.before(&l.entries[i-1]); i-- {
		l.entries[i] = l.entries[i-1]
	}
	l.entries[i] = e
}

// give writes the list into a ruling: with named the first is the exception and
// the others follow, else all are others.
func (l *list) give(x *Index, g *ruling, named bool) {
	from := 0
	if named && l.n > 0 {
		g.exception = x.matchers[x.exceptAt<<6+int(l.entries[0].rank)].id
		g.failed, g.missing = l.entries[0].failed, l.entries[0].missing
		from = 1
	}
	g.total = l.total - from
	for i := from; i < l.n && i-from < flow.MaxOthers; i++ {
		g.others[i-from] = x.matchers[x.exceptAt<<6+int(l.entries[i].rank)].id
	}
}

// waived names the exceptions that waive a denial, the narrowest first, then those
// that would have before they ended.
func (x *Index) waived(c *Conversation, r *rows, s *sets, g *ruling) {
	var l list
	for w := x.exceptAt; w < x.words; w++ {
		for b := r.from[w] & r.to[w] & r.sure[w]; b != 0; b &= b - 1 {
			i := (w-x.exceptAt)<<6 + bits.TrailingZeros64(b)
			e := &x.excepts[i]
			if !namesAll(e.overrides, s.perhaps[x.denyAt:x.allowAt]) {
				continue
			}
			switch e.state(c.Start) {
			case active:
				if has(s.sure, x.exceptAt<<6+i) {
					l.add(0, 0, i, 0, 0)
					g.validUntil = max(g.validUntil, e.end)
				}
			case expired:
				if failed, missing := x.openMatch(x.exceptAt<<6+i, &c.Client, &c.Server, r.client.sig, r.server.sig); failed|missing == 0 {
					l.add(1, 0, i, 0, 0)
				}
			}
		}
	}
	l.give(x, g, true)
}

// The classes of misuse, in the order in which they are named.
const (
	misuseExpired = iota
	misuseNotYet
	misuseUnapproved
	misuseScope
)

var misuseReasons = [...]flow.Reason{flow.ReasonExpired, flow.ReasonNotYetValid, flow.ReasonUnapproved, flow.ReasonOutOfScope}

// misuse names the exceptions that a denied conversation implicates. denies are the
// words of the denies that match for certain, nil if none does.
func (x *Index) misuse(c *Conversation, r *rows, overridden bool, denies []uint64, g *ruling) {
	var l list
	for w := x.exceptAt; w < x.words; w++ {
		from, to, service := r.from[w], r.to[w], r.perhaps[w]
		straight, swapped := from&to|service&(from|to), r.swapFrom[w]&r.swapTo[w]&service
		for b := straight | swapped; b != 0; b &= b - 1 {
			flag := b & -b
			i := (w-x.exceptAt)<<6 + bits.TrailingZeros64(b)
			bit := x.exceptAt<<6 + i
			e := &x.excepts[i]
			state := e.state(c.Start)
			if state == over {
				continue
			}
			var failed, missing flow.Dimensions
			open := x.open[w]&flag != 0
			if open {
				failed, missing = x.openMatch(bit, &c.Client, &c.Server, r.client.sig, r.server.sig)
			}
			if from&flag == 0 {
				failed |= flow.DimSource
			}
			if to&flag == 0 {
				failed |= flow.DimDestination
			}
			if service&flag == 0 {
				failed |= flow.DimService
			} else if r.sure[w]&flag == 0 {
				missing |= flow.DimService
			}
			if overridden || !namesAll(e.overrides, denies) {
				failed |= flow.DimRule
			}
			if state != active {
				if failed == 0 {
					class := [...]uint8{expired: misuseExpired, notYetValid: misuseNotYet, unapproved: misuseUnapproved}[state]
					l.add(class, 0, i, 0, missing)
				}
				continue
			}
			if bits.OnesCount16(uint16(failed&(flow.DimSource|flow.DimDestination|flow.DimService))) <= 1 {
				l.add(misuseScope, uint8(bits.OnesCount16(uint16(failed))), i, failed, missing&^failed)
				continue
			}
			if swapped&flag == 0 || failed&flow.DimRule != 0 {
				continue
			}
			failed, missing = 0, 0
			if open {
				failed, missing = x.openMatch(bit, &c.Server, &c.Client, r.server.sig, r.client.sig)
			}
			if r.sure[w]&flag == 0 {
				missing |= flow.DimService
			}
			if failed == 0 {
				l.add(misuseScope, 1, i, flow.DimDirection, missing)
			}
		}
	}
	if l.n > 0 {
		g.reason = misuseReasons[l.entries[0].class]
	}
	l.give(x, g, true)
}
