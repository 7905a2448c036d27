package enrich

import (
	"cmp"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/postern/postern/flow"
)

// version is one telling of a fact, or a run of tellings that say the same: of those by
// whose time a lookup could not tell them apart. 80 bytes.
type version struct {
	since, until           flow.Time // until is latest where no end is told
	known, last            flow.Time // the first and the last telling
	sinceSlack, untilSlack uint32    // milliseconds
	session                uint64    // hash of the session's id

	workload, device, user, account, posture flow.Name

	groups     uint32 // held once by each version
	source     uint16
	kind       flow.FactKind
	confidence uint8
	disabled   bool
	middle     bool // there were tellings between the first and the last
}

// standing is how a fact stands at a time.
type standing uint8

const (
	notHeld standing = iota
	inDoubt
	held
)

func (v *version) at(t flow.Time) standing {
	switch {
	case v.until <= v.since || t >= v.until || t < v.begin():
		return notHeld
	case t < v.since || t >= v.certainEnd():
		return inDoubt
	}
	return held
}

// empty says whether the fact never held: it was taken back.
func (v *version) empty() bool { return v.until <= v.since }

// begin is the earliest time at which the fact may hold.
func (v *version) begin() flow.Time { return v.since - flow.Time(v.sinceSlack) }

// certainEnd is from when the fact may hold no longer.
func (v *version) certainEnd() flow.Time { return v.until - flow.Time(v.untilSlack) }

// same says whether two versions are about the same.
func (v *version) same(w *version) bool {
	return v.since == w.since && v.source == w.source && v.session == w.session && v.kind == w.kind
}

// says says whether two versions about the same say the same but for the end.
func (v *version) says(w *version) bool {
	return v.workload == w.workload && v.device == w.device && v.user == w.user && v.account == w.account && v.posture == w.posture &&
		v.groups == w.groups && v.confidence == w.confidence && v.disabled == w.disabled && v.sinceSlack == w.sinceSlack
}

// joins says whether w, told after v, may become one run with it: no lookup, whose time is
// never after its cut, tells them apart. That is so where they are equal, and where the
// end is put off or brought forward before either end came.
func (v *version) joins(w *version) bool {
	return v.says(w) && v.empty() == w.empty() && (v.until == w.until && v.untilSlack == w.untilSlack || w.known <= min(v.certainEnd(), w.certainEnd()))
}

// repeats says whether w, known during the run v, is part of it: something delivered again,
// or one more telling that fits. Of a run only the first and the last time are known and
// what was told last, so what was known at the first or between others is taken for one of
// them if it can be.
func (v *version) repeats(w *version) bool {
	if !v.says(w) || v.empty() != w.empty() {
		return false
	}
	return v.until == w.until && v.untilSlack == w.untilSlack || w.known == v.known && v.known < v.last ||
		w.known < v.last && (v.last <= w.certainEnd() || v.middle && w.known <= w.certainEnd())
}

// compareKey orders what facts are about: leases first; of a subject by source.
func (s *Identity) compareKey(subject bool, v, w *version) int {
	source := 0
	if v.source != w.source {
		source = cmp.Compare(s.sources[v.source].name, s.sources[w.source].name)
	}
	rest := func() int {
		return cmp.Or(source, cmp.Compare(v.session, w.session), cmp.Compare(v.kind, w.kind))
	}
	switch lv, lw := v.kind == flow.FactLease, w.kind == flow.FactLease; {
	case subject:
		return cmp.Or(source, cmp.Compare(v.since, w.since), rest())
	case lv != lw && lv:
		return -1
	case lv != lw:
		return 1
	}
	return cmp.Or(cmp.Compare(v.since, w.since), rest())
}

// compareSaid orders what two versions told at the same time say, by text, so that one of
// them counts whichever came first.
func (s *Identity) compareSaid(v, w *version) int {
	text := func(a, b flow.Name) int {
		if a == b {
			return 0
		}
		return cmp.Compare(s.names.Text(a), s.names.Text(b))
	}
	flag := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	a, b := &s.groups.sets[v.groups], &s.groups.sets[w.groups]
	return cmp.Or(cmp.Compare(v.sinceSlack, w.sinceSlack), cmp.Compare(flag(v.disabled), flag(w.disabled)), cmp.Compare(w.confidence, v.confidence),
		text(v.workload, w.workload), text(v.device, w.device), text(v.user, w.user), text(v.account, w.account), text(v.posture, w.posture),
		slices.CompareFunc(a.names, b.names, text), cmp.Compare(flag(a.more), flag(b.more)),
		cmp.Compare(w.until, v.until), cmp.Compare(v.untilSlack, w.untilSlack))
}

// put takes in one fact.
func (s *Identity) put(f *flow.Fact) took {
	subject := f.Kind == flow.FactDirectory
	v := version{since: f.Since, until: f.Until, known: f.Known, last: f.Known, kind: f.Kind, confidence: f.Confidence, disabled: f.Disabled}
	if f.Until == 0 {
		v.until = latest
	}
	if f.Kind < flow.FactSession || f.Kind > flow.FactStatic || f.Known <= 0 || f.Known >= latest || f.Since < 0 || f.Since >= latest || v.until < 0 || v.until > latest {
		return tookInvalid
	}
	var key flow.Addr
	if subject {
		name, kind := s.domains.Principal(f.Subject)
		if kind != flow.PrincipalUser && kind != flow.PrincipalMachine {
			return tookInvalid
		}
		key.Lo = uint64(s.names.InternFact(name))
		if flow.Name(key.Lo) == flow.OverflowName {
			return tookFull
		}
	} else if key = f.Addr.Canonical(); key.IsZero() {
		return tookInvalid
	}
	var ok bool
	if v.source, ok = s.sourceOf(f.Source); !ok {
		return tookInvalid
	}
	v.sinceSlack = slack(f.SinceSlack)
	if v.until != latest {
		v.untilSlack = slack(f.UntilSlack)
	}
	if v.confidence == 0 || v.confidence > 100 {
		v.confidence = 100
	}
	if f.Session != "" {
		v.session = xxhash.Sum64String(f.Session)
	}
	v.workload, v.device, v.posture = s.name(f.Workload), s.name(f.Device), s.name(f.Posture)
	if name, kind := s.domains.Principal(f.User); kind == flow.PrincipalUser {
		v.user = s.name(name)
	}
	if name, kind := s.domains.Principal(f.Account); kind == flow.PrincipalUser || kind == flow.PrincipalMachine {
		v.account = s.name(name)
	}
	var more bool
	s.scratch.groups, more = s.namesOfGroups(f.Groups, s.scratch.groups[:0])
	v.groups = s.groups.intern(s.scratch.groups, more)
	return s.insert(subject, key, v)
}

func (s *Identity) name(text string) flow.Name { return s.names.InternFact(text) }

func slack(d time.Duration) uint32 {
	return uint32(min(max(d/time.Millisecond, 0), 1<<32-1))
}

// expired says whether a fact can count for no lookup at or after the horizon.
func expired(v *version, horizon flow.Time) bool { return v.until <= horizon && v.known <= horizon }

// insert puts a version, which holds its groups, in its place.
func (s *Identity) insert(subject bool, key flow.Addr, v version) took {
	h, index := s.holder(subject, key)
	var i, j int // those about the same
	if h != nil {
		i, j = s.about(h.past, &v)
	}
	if i == j && expired(&v, s.horizon) {
		s.groups.release(v.groups)
		return tookExpired
	}
	if s.facts >= s.cfg.MaxFacts || h != nil && len(h.past.versions) >= s.perHolder {
		if h != nil && len(h.past.versions) >= s.perHolder {
			s.makeRoom(h)
		} else if s.evict() {
			h, index = s.holder(subject, key)
		}
		if s.facts >= s.cfg.MaxFacts || h != nil && len(h.past.versions) >= s.perHolder {
			l := &s.lost
			lo, hi := v.begin(), v.until
			if h != nil {
				l = &h.past.lost
				// What it would have replaced counts no more either.
				i, j = s.about(h.past, &v)
				lo, hi = extent(h.past.versions[i:j], lo, hi)
				s.touch(subject, index, earliest, latest)
			}
			l.add(lo, hi, v.known)
			s.groups.release(v.groups)
			return tookFull
		}
	}
	if h == nil {
		h, index = s.newHolder(subject, key)
	}
	p := h.past
	if p.first == 0 || v.known < p.first {
		p.first = v.known
		s.touch(subject, index, earliest, latest) // "unknown" and "gap" change places
	}
	vs := p.versions
	i, j = s.about(p, &v)
	at := i // v goes before at
	for at < j && vs[at].known <= v.known {
		at++
	}
	lo, hi := v.begin(), v.until
	simple := at == j && at > i && vs[at-1].says(&v) && !vs[at-1].empty() && !v.empty()
	if at > i {
		r := &vs[at-1] // the run before v or around it
		switch {
		case v.known > r.last:
		case r.repeats(&v):
			r.middle = r.middle || v.known > r.known && v.known < r.last
			s.groups.release(v.groups)
			return tookAgain
		case v.known == r.known || v.known == r.last:
			if s.compareSaid(&v, r) <= 0 {
				s.groups.release(v.groups)
				return tookAgain
			}
			simple = false
			switch {
			case r.known == r.last: // it takes the other's place
				lo, hi = min(lo, r.begin()), max(hi, r.until)
				s.groups.release(r.groups)
				vs = slices.Delete(vs, at-1, at)
				s.facts--
				at--
				j--
			case v.known == r.known:
				r.known, r.middle = r.last, false
				at--
			default:
				r.last, r.middle = r.known, false
			}
		default: // inside a run: split it
			simple = false
			tail := *r
			tail.known, tail.middle = tail.last, false
			r.last, r.middle = r.known, false
			s.hold(&tail)
			vs = slices.Insert(vs, at, tail)
			j++
		}
	}
	if simple {
		r := &vs[at-1]
		lo, hi = min(r.certainEnd(), v.certainEnd()), max(r.until, v.until)
	} else {
		lo, hi = extent(vs[i:j], lo, hi)
	}
	was := s.facts
	vs = slices.Insert(vs, at, v)
	s.facts++
	if v.until != latest {
		s.noneEnded = false
	}
	for k := min(at+1, len(vs)-1); k >= max(at, 1); k-- { // first with the one after, then with the one before
		if a, b := &vs[k-1], &vs[k]; a.same(b) && a.joins(b) {
			b.middle = a.known < a.last || b.known < b.last
			b.known = a.known
			s.groups.release(a.groups)
			vs = slices.Delete(vs, k-1, k)
			s.facts--
		}
	}
	p.versions = vs
	switch {
	case subject: // it counts until the next begins, also when it has ended
		hi = latest
	case v.kind == flow.FactLease:
		lo, hi = p.sessionsUnder(lo, hi)
	}
	if lo < hi {
		s.touch(subject, index, lo, hi)
	}
	if s.facts <= was {
		return tookAgain
	}
	return tookNew
}

// about gives the versions about the same as v: [i, j), or where they would stand.
func (s *Identity) about(p *past, v *version) (i, j int) {
	vs := p.versions
	i, _ = slices.BinarySearchFunc(vs, v, func(a version, b *version) int { return s.compareKey(p.subject, &a, b) })
	for j = i; j < len(vs) && vs[j].same(v); j++ {
	}
	return i, j
}

// extent widens [lo, hi) by all that versions may hold in.
func extent(vs []version, lo, hi flow.Time) (flow.Time, flow.Time) {
	for k := range vs {
		lo, hi = min(lo, vs[k].begin()), max(hi, vs[k].until)
	}
	return lo, hi
}

// sessionsUnder widens [lo, hi), in which a lease changed, by the sessions that began then.
func (p *past) sessionsUnder(lo, hi flow.Time) (flow.Time, flow.Time) {
	from, to := lo, hi
	for k := range p.versions {
		if v := &p.versions[k]; v.kind == flow.FactSession && v.since > lo-leaseWindow && v.since < hi {
			from, to = min(from, v.begin()), max(to, v.until)
		}
	}
	return from, to
}

// hold adds a copy of a version that is there.
func (s *Identity) hold(v *version) {
	if v.groups != 0 {
		s.groups.sets[v.groups].refs++
	}
	s.facts++
}

func (s *Identity) holder(subject bool, key flow.Addr) (*holder, int) {
	if !subject {
		if h := s.places.find(key); h != nil {
			return h, s.places.index(key)
		}
		return nil, 0
	}
	if h := s.subject(flow.Name(key.Lo)); h != nil {
		return h, int(s.subjectAt[key.Lo] - 1)
	}
	return nil, 0
}

func (s *Identity) newHolder(subject bool, key flow.Addr) (*holder, int) {
	if !subject {
		i := s.places.add(key)
		return &s.places.holders[i], i
	}
	s.subjects = append(s.subjects, holder{key: key, past: &past{subject: true}})
	s.setSubject(len(s.subjects) - 1)
	i := len(s.subjects) - 1
	return &s.subjects[i], i
}

func (s *Identity) setSubject(i int) {
	name := int(s.subjects[i].key.Lo)
	if name >= len(s.subjectAt) {
		s.subjectAt = slices.Grow(s.subjectAt, name+1-len(s.subjectAt))[:name+1]
	}
	s.subjectAt[name] = uint32(i + 1)
}

// dirty is a stretch of event time in which a holder's spans are to be made anew.
type dirty struct {
	subject bool
	index   int
	lo, hi  flow.Time
}

// touch notes that what holds in [lo, hi) has changed.
func (s *Identity) touch(subject bool, index int, lo, hi flow.Time) {
	s.dirty = append(s.dirty, dirty{subject, index, lo, hi})
}

func (s *Identity) rebuildDirty() {
	slices.SortFunc(s.dirty, func(a, b dirty) int {
		switch {
		case a.subject != b.subject && b.subject:
			return -1
		case a.subject != b.subject:
			return 1
		}
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(a.lo, b.lo))
	})
	for i := 0; i < len(s.dirty); {
		d := s.dirty[i]
		for i++; i < len(s.dirty) && s.dirty[i].subject == d.subject && s.dirty[i].index == d.index; i++ {
			d.lo, d.hi = min(d.lo, s.dirty[i].lo), max(d.hi, s.dirty[i].hi)
		}
		h := &s.places.holders
		if d.subject {
			h = &s.subjects
		}
		s.rebuild(&(*h)[d.index], d.lo, d.hi)
	}
	s.dirty = s.dirty[:0]
}
