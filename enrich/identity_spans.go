package enrich

import (
	"cmp"
	"slices"
	"sort"

	"github.com/postern/postern/flow"
)

// leaseWindow is how long after a session that began under no lease the one that it is
// under may begin: a logon or an accounting record can be stamped before the lease that
// came with it.
const leaseWindow flow.Time = 2 * 60 * 1000

// query is one question put to all facts about an address or subject. It is the long way,
// which spans shorten.
type query struct {
	s       *Identity
	at, cut flow.Time
	beats   bool // whether silence of sources counts
}

// said is what facts say together.
type said struct {
	body
	identity                flow.Name
	placeSource, userSource uint16 // + 1; of a subject the first source is the place's
	disabled, more          bool
}

// effective gives, of the versions about the same that begin at i, the one that counts at
// the cut, nil if none was known; and where the next ones begin.
func effective(vs []version, i int, cut flow.Time) (v *version, next int) {
	first := &vs[i]
	for next = i; next < len(vs) && vs[next].same(first); next++ {
		if vs[next].known <= cut {
			v = &vs[next]
		}
	}
	return v, next
}

// standing says how a fact stands at the time asked for, and if it is in doubt, why.
func (q *query) standing(p *past, v *version) (st standing, doubt Why) {
	if st = v.at(q.at); st == notHeld {
		return notHeld, 0
	}
	if v.kind == flow.FactSession && !p.subject {
		if st = min(st, q.underLease(p, v)); st == notHeld {
			return notHeld, 0
		}
	}
	if st == inDoubt {
		doubt = WhyBorder
	}
	if q.beats && q.s.sources[v.source].stale(q.at, q.cut) {
		st, doubt = inDoubt, doubt|WhyStale
	}
	return st, doubt
}

// underLease says how the lease stands that a session began under: whoever held the
// address then may have given it back without logging off. That is the lease which held
// when the session began, else one that may have, else the first that began soon after it.
// The session goes on in any other lease of the same device or workload; of several
// leases that differ it may have been any. Without a lease at its beginning a session
// holds until one begins. Silence of the leases' source ends nothing.
func (q *query) underLease(p *past, v *version) standing {
	leases := p.versions[:p.leases]
	began, other := notHeld, notHeld
	soon := v.since + leaseWindow
	for i := 0; i < len(leases); {
		l, next := effective(leases, i, q.cut)
		if i = next; l == nil || l.empty() {
			continue
		}
		began, other = max(began, l.at(v.since)), max(other, l.at(q.at))
		if l.begin() > v.since {
			soon = min(soon, l.begin())
		}
	}
	if began == notHeld && soon == v.since+leaseWindow {
		return held - other
	}
	least, most := held, notHeld
	for i := 0; i < len(leases); {
		l, next := effective(leases, i, q.cut)
		if i = next; l == nil || l.empty() || l.at(v.since) != began || began == notHeld && l.begin() != soon {
			continue
		}
		best := l.at(q.at)
		for k := 0; k < len(leases) && best < held; {
			m, next := effective(leases, k, q.cut)
			if k = next; m != nil && l.sameHolder(m) {
				best = max(best, m.at(q.at))
			}
		}
		least, most = min(least, best), max(most, best)
	}
	if least != most {
		return inDoubt
	}
	return least
}

// sameHolder says whether two leases are of the same device, or where that is not told, of
// the same workload.
func (v *version) sameHolder(w *version) bool {
	if v.device != flow.NoName && w.device != flow.NoName {
		return v.device == w.device && v.device != flow.OverflowName
	}
	return v.workload == w.workload && v.workload > flow.OverflowName
}

// choice decides one attribute.
type choice struct {
	value      flow.Name // of the best rank among facts that hold
	rank       uint16    // 0: none
	source     uint16
	confidence uint8
	many       bool // several of that rank

	any                  flow.Name // a value at whatever rank
	anySource            uint16
	otherValue, otherSrc bool

	// Of the facts in doubt the value of the best rank, and the best rank of another value.
	maybe     [2]flow.Name
	maybeRank [2]uint16
	doubt     Why
}

// hold takes in what a fact that holds says.
func (c *choice) hold(s *Identity, value flow.Name, rank uint16, v *version) {
	if value == flow.NoName {
		return
	}
	if c.any == flow.NoName {
		c.any, c.anySource = value, v.source
	}
	c.otherValue = c.otherValue || value != c.any
	c.otherSrc = c.otherSrc || v.source != c.anySource
	switch {
	case c.rank == 0 || rank < c.rank:
		c.value, c.rank, c.source, c.confidence, c.many = value, rank, v.source, v.confidence, false
	case rank > c.rank:
	case value != c.value:
		c.many = true
	case v.confidence > c.confidence || v.confidence == c.confidence && s.sources[v.source].name < s.sources[c.source].name:
		c.source, c.confidence = v.source, v.confidence
	}
}

// weigh takes in what a fact in doubt says.
func (c *choice) weigh(value flow.Name, rank uint16, doubt Why) {
	if value == flow.NoName {
		return
	}
	c.doubt |= doubt
	switch {
	case c.maybeRank[0] == 0:
		c.maybe[0], c.maybeRank[0] = value, rank
	case value == c.maybe[0]:
		c.maybeRank[0] = min(c.maybeRank[0], rank)
	case rank < c.maybeRank[0]:
		c.maybe[1], c.maybeRank[1] = c.maybe[0], c.maybeRank[0]
		c.maybe[0], c.maybeRank[0] = value, rank
	case c.maybeRank[1] == 0 || rank < c.maybeRank[1]:
		c.maybe[1], c.maybeRank[1] = value, rank
	}
}

// decide gives the value, NoName if it is not known for certain, and adds the reasons.
func (c *choice) decide(why *Why) flow.Name {
	if c.otherValue && c.otherSrc {
		*why |= WhyDisagree
	}
	if c.rank == 0 {
		*why |= c.doubt
		return flow.NoName
	}
	if c.many {
		*why |= WhyAmbiguous
		return flow.NoName
	}
	for i, rank := range c.maybeRank {
		if rank != 0 && rank <= c.rank && c.maybe[i] != c.value {
			*why |= c.doubt
			return flow.NoName
		}
	}
	if c.value == flow.OverflowName {
		*why |= WhyFull
		return flow.NoName
	}
	return c.value
}

// involve notes a source whose silence would change what is said.
func (f *said) involve(source uint16) {
	for i, id := range f.sources {
		if id == source+1 {
			return
		}
		if id == 0 {
			f.sources[i] = source + 1
			return
		}
	}
	f.flags |= slowBody
}

// involved gives the place of a source, + 1, among those involved, + 1; 0 if it is not there.
func (f *said) involved(source uint16) uint8 {
	return uint8(slices.Index(f.sources[:], source) + 1)
}

// place decides who was behind an address.
func (q *query) place(p *past, f *said) {
	*f = said{}
	if p.lost.known != 0 && q.at >= p.lost.from && q.at < p.lost.to {
		f.why = WhyFull
		return
	}
	var workload, device, user, account, posture choice
	var any, holds bool
	var doubts Why
	for i := 0; i < len(p.versions); {
		v, next := effective(p.versions, i, q.cut)
		if i = next; v == nil {
			continue
		}
		any = true
		st, doubt := q.standing(p, v)
		if st == notHeld {
			continue
		}
		f.involve(v.source)
		kind := uint16(v.kind) << 8
		rank := kind | uint16(q.s.sources[v.source].order)
		if st == held {
			holds = true
			workload.hold(q.s, v.workload, rank, v)
			device.hold(q.s, v.device, rank, v)
			user.hold(q.s, v.user, kind, v)
			account.hold(q.s, v.account, rank, v)
			posture.hold(q.s, v.posture, rank, v)
			continue
		}
		f.flags |= doubtBody
		doubts |= doubt
		workload.weigh(v.workload, rank, doubt)
		device.weigh(v.device, rank, doubt)
		user.weigh(v.user, kind, doubt)
		account.weigh(v.account, rank, doubt)
		posture.weigh(v.posture, rank, doubt)
	}
	switch {
	case holds:
	case doubts != 0:
		f.why = doubts
	case any:
		f.why = WhyGap
	default:
		f.why = WhyUnknown
	}
	decide := func(c *choice, source *uint16) flow.Name {
		name := c.decide(&f.why)
		if name != flow.NoName {
			if *source == 0 {
				*source = c.source + 1
			}
			if f.confidence == 0 || c.confidence < f.confidence {
				f.confidence = c.confidence
			}
		}
		return name
	}
	f.workload = decide(&workload, &f.placeSource)
	f.device = decide(&device, &f.placeSource)
	f.account = decide(&account, &f.placeSource)
	f.posture = decide(&posture, &f.placeSource)
	f.user = decide(&user, &f.userSource)
	switch {
	case f.user != flow.NoName:
		f.identity = f.user
	case user.rank != 0 || user.doubt != 0:
		f.flags |= noIdentity
	default:
		f.identity = f.account
	}
	if f.placeSource != 0 {
		f.flags |= f.involved(f.placeSource) << placeShift
	}
	if f.userSource != 0 {
		f.flags |= f.involved(f.userSource) << userShift
	}
}

// placeGroups gives the lists of groups that facts about the address give the identity,
// until add returns false.
func (q *query) placeGroups(p *past, f *said, add func(set uint32) bool) {
	if f.identity == flow.NoName {
		return
	}
	for i := 0; i < len(p.versions); {
		v, next := effective(p.versions, i, q.cut)
		if i = next; v == nil || v.groups == 0 || v.user != f.identity && (f.user != flow.NoName || v.account != f.identity) {
			continue
		}
		if st, _ := q.standing(p, v); st == held && !add(v.groups) {
			return
		}
	}
}

// subject decides what directories say of a user or account and gives its lists of groups,
// the directories in order of their names.
func (q *query) subject(p *past, f *said, add func(set uint32)) {
	*f = said{}
	if p.lost.known != 0 && q.at >= p.lost.from && q.at < p.lost.to {
		f.why = WhyFull
		return
	}
	var posture choice
	var any, holds bool
	var doubts Why
	for i := 0; i < len(p.versions); {
		source := p.versions[i].source
		var last *version // the directory's word of that time: what began last
		for i < len(p.versions) && p.versions[i].source == source {
			v, next := effective(p.versions, i, q.cut)
			if i = next; v != nil {
				any = true
				if v.begin() <= q.at {
					last = v
				}
			}
		}
		if last == nil {
			continue
		}
		st, doubt := q.standing(p, last)
		if st == notHeld {
			continue
		}
		f.involve(source)
		rank := uint16(q.s.sources[source].order) + 1
		if st == inDoubt {
			f.flags |= doubtBody
			doubts |= doubt
			posture.weigh(last.posture, rank, doubt)
			continue
		}
		if !holds {
			holds, f.placeSource = true, source+1
		}
		f.disabled = f.disabled || last.disabled
		posture.hold(q.s, last.posture, rank, last)
		if last.groups != 0 {
			add(last.groups)
		}
	}
	switch {
	case holds:
		f.why, f.more = doubts, doubts != 0
	case doubts != 0:
		f.why = doubts
	case any:
		f.why = WhyGap
	default:
		f.why = WhyUnknown
	}
	f.posture = posture.decide(&f.why)
	if f.placeSource != 0 {
		f.flags |= f.involved(f.placeSource) << placeShift
	}
	if f.disabled {
		f.flags |= disabledBody
	}
	if f.more {
		f.flags |= moreBody
	}
}

// scratch is reused from one fact to the next.
type scratch struct {
	groups   []flow.Name
	spans    []span
	cuts     []flow.Time
	knowns   []flow.Time
	versions []version
}

// spanChunk is how many spans are made from one selection of versions.
const spanChunk = 64

// rebuild makes a holder's spans anew where they touch [lo, hi).
func (s *Identity) rebuild(h *holder, lo, hi flow.Time) {
	p := h.past
	p.leases = 0
	if !p.subject {
		p.leases = sort.Search(len(p.versions), func(i int) bool { return p.versions[i].kind != flow.FactLease })
	}
	i, j := h.search(lo), h.search(hi)
	if i > 0 && (i == len(h.spans) || h.starts(i) > lo) {
		i--
	}
	from, to := earliest, latest
	if len(h.spans) > 0 {
		from, j = h.starts(i), max(j, i+1)
	}
	if j < len(h.spans) {
		to = h.starts(j)
	}
	x := &s.scratch
	x.cuts = append(x.cuts[:0], from)
	cut := func(t flow.Time) {
		if t > from && t < to {
			x.cuts = append(x.cuts, t)
		}
	}
	for k := range p.versions {
		if v := &p.versions[k]; !v.empty() {
			cut(v.begin())
			cut(v.since)
			cut(v.certainEnd())
			cut(v.until)
		} else if p.subject {
			cut(v.begin()) // it still puts an end to what began before
		}
	}
	if p.lost.known != 0 {
		cut(p.lost.from)
		cut(p.lost.to)
	}
	slices.Sort(x.cuts)
	x.cuts = slices.Compact(x.cuts)
	x.spans = x.spans[:0]
	var last body
	for c := 0; c < len(x.cuts); c += spanChunk {
		chunk := x.cuts[c:min(c+spanChunk, len(x.cuts))]
		end := to
		if c+spanChunk < len(x.cuts) {
			end = x.cuts[c+spanChunk]
		}
		some := s.selection(p, chunk[0], end)
		for _, at := range chunk {
			b := s.span(&some, at)
			if n := len(x.spans); n > 0 && last == b {
				continue
			}
			x.spans, last = append(x.spans, s.classes.pack(at, at == earliest, &b)), b
		}
	}
	s.classes.release(h.spans[i:j])
	h.replace(i, j, x.spans)
	h.lay(&s.classes)
}

// selection gives p with only the versions that can matter in [from, to).
func (s *Identity) selection(p *past, from, to flow.Time) past {
	if len(p.versions) <= 32 || p.subject {
		return *p
	}
	vs := s.scratch.versions[:0]
	some := *p
	for i := 0; i < len(p.versions); {
		j, near := i, i < p.leases
		for ; j < len(p.versions) && p.versions[j].same(&p.versions[i]); j++ {
			near = near || p.versions[j].begin() < to && p.versions[j].until > from
		}
		if near {
			vs = append(vs, p.versions[i:j]...)
		}
		i = j
	}
	s.scratch.versions, some.versions = vs, vs
	return some
}

// span works out what holds from a border on.
func (s *Identity) span(p *past, at flow.Time) body {
	b := s.body(p, at, latest)
	b.settled = s.settled(p, at, &b)
	return b
}

func (s *Identity) body(p *past, at, cut flow.Time) body {
	var f said
	q := query{s: s, at: at, cut: cut}
	add := func(set uint32) bool {
		if f.groups != 0 && f.groups != set {
			f.flags |= slowBody
		}
		f.groups = set
		return true
	}
	if p.subject {
		var set uint32
		q.subject(p, &f, func(one uint32) {
			if set != 0 && set != one {
				f.flags |= slowBody
			}
			set = one
		})
		f.groups = set
	} else {
		q.place(p, &f)
		q.placeGroups(p, &f, add)
	}
	return f.body
}

// settleSteps bounds how far back it is looked for when an answer came to be. What is
// asked as of before goes the long way.
const settleSteps = 12

// settled gives the time of knowing from which on b is what holds at a time.
func (s *Identity) settled(p *past, at flow.Time, b *body) flow.Time {
	settled := max(p.first, p.lost.known)
	vs := p.versions
	knowns := s.scratch.knowns[:0]
	for i := 0; i < len(vs); {
		j, near := i, false
		for ; j < len(vs) && vs[j].same(&vs[i]); j++ {
			near = near || vs[j].at(at) != notHeld || p.subject && vs[j].begin() <= at
		}
		if near {
			for k := i; k < j; k++ {
				knowns = append(knowns, vs[k].known)
			}
			if vs[i].kind == flow.FactSession && !p.subject {
				knowns = leasesUnder(vs[:p.leases], vs[i].since, knowns)
			}
		}
		i = j
	}
	slices.SortFunc(knowns, func(a, b flow.Time) int { return cmp.Compare(b, a) })
	knowns = slices.Compact(knowns)
	s.scratch.knowns = knowns
	for n, known := range knowns {
		if n == settleSteps || known <= settled {
			return max(settled, known)
		}
		if s.body(p, at, known-1) != *b {
			return known
		}
	}
	return settled
}

// leasesUnder adds when the leases became known that a session may have begun under.
func leasesUnder(leases []version, since flow.Time, knowns []flow.Time) []flow.Time {
	for i := 0; i < len(leases); {
		j, under := i, false
		for ; j < len(leases) && leases[j].same(&leases[i]); j++ {
			under = under || leases[j].begin() < since+leaseWindow && leases[j].until > since
		}
		for ; under && i < j; i++ {
			knowns = append(knowns, leases[i].known)
		}
		i = j
	}
	return knowns
}
