package enrich

import (
	"cmp"

	"github.com/postern/postern/flow"
)

// opening is what the first row of a session is made of: what its first records told, apart from
// each other, until it settles. While all its records began within one step of time and were told
// soon, as those of most sessions are, they count together and nothing is kept beside the session.
type opening struct {
	statement int32 // the first, in Sessions.statements; they are chained by next
	n         uint8 // how many; none while its records count together, and after the first row
	lone      bool  // it has one record, which was told late
	left      bool  // there were more statements than are held
	over      bool  // the first row was written, with this session in it
}

// statement is what an observer told by records that began within one step, or by one that was
// told late.
type statement struct {
	obs
	learned
	late bool
}

// maxStatements bounds the statements of a session; the first ones stay, whatever order they came
// in: two observers in each of four steps.
const maxStatements = 8

// openingSteps is into how many steps the time to settle is divided: records of one step, counted
// from the epoch, belong to the opening together or not at all.
const openingSteps = 4

// stepOf is the step in which a record began.
func (x *Sessions) stepOf(o *obs) flow.Time { return o.first / x.openingStep() }

func (x *Sessions) openingStep() flow.Time { return max(1, x.settle/openingSteps) }

// opens says whether records of a step that ends before until, by when the session settles, belong
// to the opening. The step in which the session began ends before.
func (x *Sessions) opens(o *obs, until flow.Time) bool {
	return (x.stepOf(o)+1)*x.openingStep() <= until
}

// toldLate says whether a record was told so long after it began that it may come after the
// session settled, though it is in time by its own.
func (x *Sessions) toldLate(o *obs) bool { return o.last > o.first+x.lateness }

func (x *Sessions) compareStatements(a, b *statement) int {
	if c := cmp.Or(cmp.Compare(x.stepOf(&a.obs), x.stepOf(&b.obs)), compareBools(a.late, b.late)); c != 0 {
		return c
	}
	switch {
	case a.late:
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.informed.id, b.informed.id))
	case a.obsKey == b.obsKey:
		return 0
	case x.standsBefore(&a.obsKey, &b.obsKey):
		return -1
	}
	return 1
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// take makes what a record told part of a session.
func (x *Sessions) take(s *sess, o *obs, l *learned) {
	if !s.stored && !s.over {
		late := x.toldLate(o)
		switch {
		case s.first < 0:
			s.lone = late
		case s.n == 0 && !s.lone && !late && x.stepOf(o) == x.stepOf(&x.obs[s.first]):
		default:
			x.apart(s)
			x.declare(s, &statement{*o, *l, late})
		}
	}
	x.addObs(s, o)
	s.learned.add(l)
	s.told = min(s.told, o.last)
}

// apart has what records of a session told, that counted together so far, stand as statements.
func (x *Sessions) apart(s *sess) {
	if s.n > 0 {
		return
	}
	l := s.learned
	for k := s.first; k >= 0; k = x.obs[k].next {
		x.declare(s, &statement{x.obs[k], l, s.lone})
		l = learned{sentAt: never} // it is all of one step
	}
	s.lone = false
}

// declare adds a statement to an opening.
func (x *Sessions) declare(s *sess, t *statement) {
	before, at := int32(-1), int32(-1)
	last, beforeLast := int32(-1), int32(-1)
	k := s.statement
	for n := s.n; n > 0; n, k = n-1, x.statements[k].next {
		switch c := x.compareStatements(&x.statements[k], t); {
		case c == 0 && !t.late:
			x.mergeObs(&x.statements[k].obs, &t.obs)
			x.statements[k].learned.add(&t.learned)
			return
		case c <= 0:
			before = k
		case at < 0:
			at = k
		}
		last, beforeLast = k, last
	}
	if s.n == maxStatements {
		if s.left = true; at < 0 {
			return
		}
		x.freeStatements = append(x.freeStatements, last)
		if beforeLast >= 0 {
			x.statements[beforeLast].next = -1
		}
		if at == last {
			at = -1
		}
		s.n--
	}
	if n := len(x.freeStatements); n > 0 {
		k, x.freeStatements = x.freeStatements[n-1], x.freeStatements[:n-1]
		x.statements[k] = *t
	} else {
		k = int32(len(x.statements))
		x.statements = append(x.statements, *t)
	}
	x.statements[k].next = at
	if s.n++; before < 0 {
		s.statement = k
	} else {
		x.statements[before].next = k
	}
}

// eachStatement calls f for the statements of a session in their order.
func (x *Sessions) eachStatement(s *sess, f func(*statement)) {
	for n, k := s.n, s.statement; n > 0; n, k = n-1, x.statements[k].next {
		f(&x.statements[k])
	}
}

// mergeOpenings makes the opening of o part of that of s, of which o is about to be part.
func (x *Sessions) mergeOpenings(s, o *sess) {
	if s.stored || s.over || o.stored || o.over {
		x.opened(s)
		return
	}
	x.apart(s)
	x.apart(o)
	for n, k := o.n, o.statement; n > 0; n, k = n-1, x.statements[k].next {
		t := x.statements[k] // adding one may move them
		x.declare(s, &t)
	}
	s.left = s.left || o.left
}

// opened ends a session's opening.
func (x *Sessions) opened(s *sess) {
	for n, k := s.n, s.statement; n > 0; n, k = n-1, x.statements[k].next {
		x.freeStatements = append(x.freeStatements, k)
	}
	s.opening = opening{over: true}
}

// gatherStatements gathers what was told of a session before the opening ends: by records that began
// before, and of which it is certain that they came before the watermark passed it. At least what
// was told first is, where a translation is older than anything told of the session itself.
func (x *Sessions) gatherStatements(s *sess, l *learned) {
	g := &x.gathered
	*l = learned{sentAt: never}
	from := len(g.obs)
	g.left = g.left || s.left
	g.all.start = min(g.all.start, s.all.start)
	k := s.statement
	for n := range s.n {
		t := &x.statements[k]
		k = t.next
		if n > 0 && (!x.opens(&t.obs, g.until) || t.late && t.last > g.toldBy) {
			g.left = true
			continue
		}
		g.all.end = max(g.all.end, t.last)
		l.add(&t.learned)
		at := from
		for at < len(g.obs) && g.obs[at].obsKey != t.obsKey {
			at++
		}
		if at == len(g.obs) {
			g.obs = append(g.obs, t.obs)
			g.obs[at].next = -1
		} else {
			x.mergeObs(&g.obs[at], &t.obs)
		}
	}
}
