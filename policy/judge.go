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
	if m.from != nil {
		failed, missing = m.from.match(client, from, flow.DimSource)
	}
	if m.to != nil {
		f, u := m.to.match(server, to, flow.DimDestination)
		failed, missing = failed|f, missing|u
	}
	return failed, missing
}

// rows are the bit rows that one conversation picks. The rows of both ends are also
// the rows of the conversation with its ends swapped: see [Index.swapped].
type rows struct {
	from, to       []uint64
	sure, perhaps  []uint64 // of the service; the same row where all is known
	known          bool     // they are the same
	client, server *region
}

func (x *Index) pick(c *Conversation, client, server *region, r *rows) {
	r.client, r.server = client, server
	w := x.words
	i, j := int(client.sig)*w, int(server.sig)*w
	r.from, r.to = x.from[i:i+w:i+w], x.to[j:j+w:j+w]
	sure, perhaps := x.services.lookup(c)
	r.sure = x.services.rows[sure : int(sure)+w : int(sure)+w]
	r.perhaps, r.known = r.sure, sure == perhaps && c.Known&KnownProto != 0
	if !r.known {
		r.perhaps = x.services.rows[perhaps : int(perhaps)+w : int(perhaps)+w]
	}
}

// swapped gives the exceptions' part of the rows with the ends swapped.
func (x *Index) swapped(r *rows) (from, to []uint64) {
	w, at := x.words, x.exceptAt
	i, j := int(r.client.sig)*w, int(r.server.sig)*w
	return x.from[j+at : j+w : j+w], x.to[i+at : i+w : i+w]
}

// Judge judges c by this version of policy and fills v, PolicyVersion included.
// It neither allocates nor keeps c or v, and gives the same for the same.
func (x *Index) Judge(c *Conversation, v *flow.Verdict) {
	x.judge(c, x.region(c.Client.Addr), x.region(c.Server.Addr), v)
}

func (x *Index) region(a flow.Addr) *region { return x.table.lookup(a) }

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
	covered := coverage(client, server)
	if covered == 0 {
		v.Reason, v.StagedReason, v.Confidence = flow.ReasonUncovered, flow.ReasonUncovered, 100
		return
	}
	var r rows
	x.pick(c, client, server, &r)
	var d decision
	x.decide(c, &r, covered, &d)
	fits := x.anyFitting(&r)

	// What is enforced: the whole verdict.
	switch {
	case !covered.has(enforced):
		v.Reason = flow.ReasonUncovered
	case d.unsure.has(enforced) || d.deny.has(enforced) && fits:
		x.ruleExactly(c, &r, enforced, v)
	case d.deny.has(enforced):
		v.Expected, v.Reason, v.Rule = flow.ExpectDeny, flow.ReasonDenied, x.decider(&r, &d, enforced)
		x.misuseOfRules(c, &r, &d, enforced, v)
	default:
		v.Expected, v.Reason, v.Rule = flow.ExpectAllow, flow.ReasonPermitted, x.decider(&r, &d, enforced)
		if fits {
			x.redundant(c, &r, v)
		}
	}

	// As if all that is staged were enforced: only what is expected and why. Mostly
	// it is the same, or nothing an exception could change.
	switch {
	case !d.unsure.has(staged) && !d.deny.has(staged):
		v.Staged, v.StagedReason = flow.ExpectAllow, flow.ReasonPermitted
	case covered == inBoth && !d.differs && x.alike(&r, &d):
		v.Staged, v.StagedReason = v.Expected, v.Reason
	case !d.unsure.has(staged) && !fits && d.bit[staged] < 0:
		// A default denies, which every exception beats that matches, and none does.
		v.Staged, v.StagedReason = flow.ExpectDeny, flow.ReasonDenied
		if x.anyInScope(c, &r) {
			v.StagedReason = flow.ReasonOutOfScope
		}
	default:
		var s flow.Verdict
		x.ruleExactly(c, &r, staged, &s)
		v.Staged, v.StagedReason = s.Expected, s.Reason
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

// coverage gives the modes in which either end is under policy.
func coverage(client, server *region) modes {
	return (client.counted | server.counted) &^ (client.barred | server.barred)
}

// byDefault is what the defaults say of a covered conversation, and which one says
// it: a denial before an allowance, the responder's side before the initiator's.
func (r *rows) byDefault(m mode) (deny bool, name flow.Name) {
	in, out := r.server.denyIn.has(m), r.client.denyOut.has(m)
	name = r.client.nameOut
	if in || !out && r.server.counted.has(m) {
		name = r.server.nameIn
	}
	return in || out, name
}

// decision is what the rules and defaults say, without exceptions, of both modes.
type decision struct {
	bit     [2]int // the lowest rule that matches for certain and decides; -1: the defaults do
	deny    modes  // modes that deny
	unsure  modes  // modes in which something unknown could matter: only the exact way tells
	differs bool   // a staged rule matches, or may
}

// decide looks at the rules in the order in which they decide and stops at the first
// that does. A conversation mostly meets few rules or none, whatever their number,
// so almost every word is zero and the bits that are left are looked at one by one.
func (x *Index) decide(c *Conversation, r *rows, covered modes, d *decision) {
	d.bit = [2]int{-1, -1}
	if !r.known {
		d.unsure = covered
		return
	}
	open := covered // modes that nothing has decided yet
	n := x.allowAt
	from, to, service := r.from[:n], r.to[:n], r.sure[:n]
	for w := range from {
		// Every deny is looked at, the decided modes' too: an exception must name all.
		for b := from[w] & to[w] & service[w]; b != 0; b &= b - 1 {
			bit := w<<6 + bits.TrailingZeros64(b)
			in := x.counts(bit) & covered
			failed, missing := x.openMatchIfAny(c, r, bit)
			if failed != 0 {
				continue
			}
			d.differs = d.differs || in != covered
			if missing != 0 {
				d.unsure |= in
				continue
			}
			d.take(in&open, bit)
			open &^= in
		}
	}
	d.deny = covered &^ open
	if open == 0 {
		return
	}
	var maybe modes // an allow may match
	n = x.exceptAt - x.allowAt
	from, to, service = r.from[x.allowAt:][:n], r.to[x.allowAt:][:n], r.sure[x.allowAt:][:n]
	for w := range from {
		for b := from[w] & to[w] & service[w]; b != 0; b &= b - 1 {
			bit := (x.allowAt+w)<<6 + bits.TrailingZeros64(b)
			in := x.counts(bit) & open
			failed, missing := x.openMatchIfAny(c, r, bit)
			if failed != 0 {
				continue
			}
			d.differs = d.differs || in != open
			if missing != 0 {
				maybe |= in
				continue
			}
			d.take(in, bit)
			if open &^= in; open == 0 {
				return
			}
		}
	}
	// What is still open is up to the defaults.
	denied := open & (r.server.denyIn | r.client.denyOut)
	d.deny |= denied
	d.unsure |= maybe & denied
}

// counts gives the modes in which a rule counts.
func (x *Index) counts(bit int) modes {
	if has(x.mask[enforced], bit) {
		return inBoth
	}
	return inStaged
}

// openMatchIfAny is openMatch for the bit of a rule, which seldom has open keys.
func (x *Index) openMatchIfAny(c *Conversation, r *rows, bit int) (failed, missing flow.Dimensions) {
	if !has(x.open, bit) {
		return 0, 0
	}
	return x.openMatch(bit, &c.Client, &c.Server, r.client.sig, r.server.sig)
}

func (d *decision) take(in modes, bit int) {
	for m := range d.bit {
		if in.has(mode(m)) {
			d.bit[m] = bit
		}
	}
}

// decider names what decides: a rule or a default.
func (x *Index) decider(r *rows, d *decision, m mode) flow.Name {
	if d.bit[m] >= 0 {
		return x.matchers[d.bit[m]].id
	}
	_, name := r.byDefault(m)
	return name
}

// alike says whether the judgement of a conversation covered in both modes, in which
// decide met nothing staged, is the same in both.
func (x *Index) alike(r *rows, d *decision) bool {
	differ := r.server.denyIn | r.client.denyOut
	if differ == inStaged && (d.unsure != 0 || d.bit[enforced] < 0) {
		return false // the defaults differ and may decide
	}
	if d.unsure == 0 {
		return true
	}
	// Not every rule was looked at.
	for w, all := range x.mask[staged] {
		if r.from[w]&r.to[w]&r.perhaps[w]&(all&^x.mask[enforced][w]) != 0 {
			return false
		}
	}
	return true
}

// anyFitting says whether source, destination and service of an exception match for
// certain, whatever its state and its open keys.
func (x *Index) anyFitting(r *rows) bool {
	n := x.words - x.exceptAt
	from, to, service := r.from[x.exceptAt:][:n], r.to[x.exceptAt:][:n], r.sure[x.exceptAt:][:n]
	fits := uint64(0)
	for w := range from {
		fits |= from[w] & to[w] & service[w]
	}
	return fits != 0
}

// redundant lists the exceptions that fit a conversation which the rules permit
// anyway.
func (x *Index) redundant(c *Conversation, r *rows, v *flow.Verdict) {
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
	l.give(x, v, false)
}

// fewDenies is how many words of denies are gathered without a detour: 1,024 rules.
const fewDenies = 16

// misuseOfRules is misuse where decide was sure and no exception fits, so that the
// denial is certain and what is left is whom it implicates.
func (x *Index) misuseOfRules(c *Conversation, r *rows, d *decision, m mode, v *flow.Verdict) {
	if d.bit[m] < 0 {
		x.misuse(c, r, false, nil, v)
		return
	}
	n := x.allowAt - x.denyAt
	if n > fewDenies {
		x.ruleExactly(c, r, m, v)
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
	x.misuse(c, r, d.bit[m]>>6 < x.denyAt, denies[:n], v)
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
func (x *Index) ruleExactly(c *Conversation, r *rows, m mode, v *flow.Verdict) {
	switch {
	case x.words <= fewWords:
		var stack [2 * fewWords]uint64
		x.ruleWith(c, r, m, v, stack[:2*x.words])
	case x.words <= stackWords:
		var stack [2 * stackWords]uint64
		x.ruleWith(c, r, m, v, stack[:2*x.words])
	default:
		x.ruleWith(c, r, m, v, make([]uint64, 2*x.words))
	}
}

// ruleWith is ruleExactly with room for the sets.
func (x *Index) ruleWith(c *Conversation, r *rows, m mode, v *flow.Verdict, room []uint64) {
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
	s.denies, name = r.byDefault(m)

	could := x.could(&s)
	if could&(could-1) != 0 {
		v.Reason = flow.ReasonUnverified
		v.Missing = x.pivotal(c, r, &s, could)
		return
	}
	switch could {
	case couldPermit:
		v.Expected, v.Reason = flow.ExpectAllow, flow.ReasonPermitted
		if bit := first(s.sure, x.allowAt, x.exceptAt); bit >= 0 {
			name = x.matchers[bit].id
		}
		v.Rule = name
		var l list
		x.eachException(s.sure, func(i int) { l.add(0, 0, i, 0, 0) })
		l.give(x, v, false)
	case couldWaive:
		v.Expected, v.Reason = flow.ExpectAllow, flow.ReasonWaived
		if bit := first(s.sure, x.denyAt, x.allowAt); bit >= 0 {
			name = x.matchers[bit].id
		}
		v.Rule = name
		x.waived(c, r, &s, v)
	default:
		v.Expected, v.Reason = flow.ExpectDeny, flow.ReasonDenied
		if bit := first(s.sure, 0, x.allowAt); bit >= 0 {
			name = x.matchers[bit].id
		}
		v.Rule = name
		overridden := first(s.sure, 0, x.denyAt) >= 0
		var denies []uint64
		if first(s.sure, x.denyAt, x.allowAt) >= 0 {
			denies = s.sure[x.denyAt:x.allowAt]
		}
		x.misuse(c, r, overridden, denies, v)
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

// entry is an exception to be named. Its key holds, from the top, the class, the
// number of failing dimensions and the rank: the lower is named first.
type entry struct {
	key             uint64
	failed, missing flow.Dimensions
}

func (e *entry) class() uint8 { return uint8(e.key >> 56) }
func (e *entry) rank() int    { return int(uint32(e.key)) }

func (l *list) add(class, failing uint8, rank int, failed, missing flow.Dimensions) {
	l.total++
	e := entry{uint64(class)<<56 | uint64(failing)<<48 | uint64(uint32(rank)), failed, missing}
	i := l.n
	if l.n < len(l.entries) {
		l.n++
	} else if i--; e.key >= l.entries[i].key {
		return
	}
	for ; i > 0 && e.key < l.entries[i-1].key; i-- {
		l.entries[i] = l.entries[i-1]
	}
	l.entries[i] = e
}

// give writes the list into a verdict: with named the first is the exception and
// the others follow, else all are others.
func (l *list) give(x *Index, v *flow.Verdict, named bool) {
	from := 0
	if named && l.n > 0 {
		v.Exception = x.matchers[x.exceptAt<<6+l.entries[0].rank()].id
		v.Failed, v.Missing = l.entries[0].failed, l.entries[0].missing
		from = 1
	}
	v.OthersTotal = uint16(min(l.total-from, 0xffff))
	for i := from; i < l.n && i-from < flow.MaxOthers; i++ {
		v.Others[i-from] = x.matchers[x.exceptAt<<6+l.entries[i].rank()].id
	}
}

// waived names the exceptions that waive a denial, the narrowest first, then those
// that would have before they ended.
func (x *Index) waived(c *Conversation, r *rows, s *sets, v *flow.Verdict) {
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
					v.ValidUntil = max(v.ValidUntil, e.end)
				}
			case expired:
				if failed, missing := x.openMatch(x.exceptAt<<6+i, &c.Client, &c.Server, r.client.sig, r.server.sig); failed|missing == 0 {
					l.add(1, 0, i, 0, 0)
				}
			}
		}
	}
	l.give(x, v, true)
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
func (x *Index) misuse(c *Conversation, r *rows, overridden bool, denies []uint64, v *flow.Verdict) {
	var l list
	x.eachNear(c, r, func(n near) bool {
		if class, failed, missing, ok := x.implicated(c, r, n, overridden, denies); ok {
			l.add(class, uint8(bits.OnesCount16(uint16(failed))), n.place, failed, missing)
		}
		return true
	})
	if l.n > 0 {
		v.Reason = misuseReasons[l.entries[0].class()]
	}
	l.give(x, v, true)
}

// anyInScope says whether a conversation that a default denies, and of which every
// part is known and no exception fits, implicates one as out of scope.
func (x *Index) anyInScope(c *Conversation, r *rows) (found bool) {
	n := x.words - x.exceptAt
	from, to, service := r.from[x.exceptAt:][:n], r.to[x.exceptAt:][:n], r.sure[x.exceptAt:][:n]
	places := x.places[x.exceptAt:][:n]
	rest := uint64(0) // what only the long way tells
	for w := range from {
		// Two of the three and active is enough, whatever the open keys, unless a not:
		// takes an address away again.
		b := from[w]&to[w] | service[w]&(from[w]|to[w])
		rest |= b & places[w]
		for b &^= places[w]; b != 0; b &= b - 1 {
			if x.validity[w<<6+bits.TrailingZeros64(b)].holds(c.Start) {
				return true
			}
		}
	}
	swapFrom, swapTo := x.swapped(r)
	swapFrom, swapTo = swapFrom[:n], swapTo[:n]
	for w := range service {
		rest |= swapFrom[w] & swapTo[w] & service[w]
	}
	if rest == 0 {
		return false
	}
	x.eachNear(c, r, func(n near) bool {
		_, _, _, found = x.implicated(c, r, n, false, nil)
		return !found
	})
	return found
}

const addressesAndService = flow.DimSource | flow.DimDestination | flow.DimService

// near is an exception that a denied conversation comes near to.
type near struct {
	place   int             // in excepts
	failed  flow.Dimensions // of source, destination and service: which do not match
	missing flow.Dimensions // the service, if it only may match
	swapped bool            // addresses and service match with the ends swapped
	active  bool
}

// eachNear gives the exceptions of which at least two of source, destination and
// service match, or all three with the ends swapped, until do says stop. Those that
// are not active are given only if all three match, for nothing less implicates them.
func (x *Index) eachNear(c *Conversation, r *rows, do func(n near) bool) {
	swapFrom, swapTo := x.swapped(r)
	for i := range swapFrom {
		w := x.exceptAt + i
		from, to, service := r.from[w], r.to[w], r.perhaps[w]
		swapped := swapFrom[i] & swapTo[i] & service
		for b := from&to | service&(from|to) | swapped; b != 0; b &= b - 1 {
			k := bits.TrailingZeros64(b)
			n := near{place: i<<6 + k}
			// The complement's bits make the set without a branch for each dimension.
			n.failed = flow.Dimensions(^from>>k&1)*flow.DimSource | flow.Dimensions(^to>>k&1)*flow.DimDestination | flow.Dimensions(^service>>k&1)*flow.DimService
			n.active = x.validity[n.place].holds(c.Start)
			if !n.active && n.failed != 0 {
				continue
			}
			n.missing = flow.Dimensions((service&^r.sure[w])>>k&1) * flow.DimService
			n.swapped = swapped>>k&1 != 0
			if !do(n) {
				return
			}
		}
	}
}

// implicated says whether a denied conversation implicates an exception it comes near
// to, in which class, and where it fails.
func (x *Index) implicated(c *Conversation, r *rows, n near, overridden bool, denies []uint64) (class uint8, failed, missing flow.Dimensions, ok bool) {
	bit := x.exceptAt<<6 + n.place
	failed, missing = n.failed, n.missing
	open := has(x.open, bit)
	if open {
		f, u := x.openMatch(bit, &c.Client, &c.Server, r.client.sig, r.server.sig)
		failed, missing = failed|f, missing|u
	}
	if overridden || denies != nil && !namesAll(x.excepts[n.place].overrides, denies) {
		failed |= flow.DimRule
	}
	if !n.active {
		switch x.excepts[n.place].state(c.Start) {
		case expired:
			class = misuseExpired
		case notYetValid:
			class = misuseNotYet
		case unapproved:
			class = misuseUnapproved
		default: // over
			return 0, 0, 0, false
		}
		return class, 0, missing, failed == 0
	}
	if bits.OnesCount16(uint16(failed&addressesAndService)) <= 1 {
		return misuseScope, failed, missing &^ failed, true
	}
	if !n.swapped || failed&flow.DimRule != 0 {
		return 0, 0, 0, false
	}
	failed, missing = 0, n.missing
	if open {
		f, u := x.openMatch(bit, &c.Server, &c.Client, r.server.sig, r.client.sig)
		failed, missing = f, missing|u
	}
	return misuseScope, flow.DimDirection, missing, failed == 0
}
