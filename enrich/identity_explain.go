package enrich

import (
	"cmp"
	"slices"
	"time"

	"github.com/postern/postern/flow"
)

// Considered is a fact that [Identity.Explain] looked at.
type Considered struct {
	flow.Fact // as told; Session is not kept, names are in canonical form
	// LastTold is when the same was told last.
	LastTold flow.Time
	// Counts says what came of it: "counts", or why it does not: "known later", "replaced", "never held",
	// "not yet", "ended", "border", "stale", "border, stale", "its lease ended",
	// "followed by a later one" of the same directory.
	Counts string
	// Heard is the source's last heartbeat by the cut, zero if there was none; Age is how
	// far before the time asked for it lies, zero if after it.
	Heard flow.Time
	Age   time.Duration
	// StaleAfter is after which silence the source's word counts no more; zero for never.
	StaleAfter time.Duration
}

// Explanation is what is known of an address at a time, and of what.
type Explanation struct {
	Addr    flow.Addr
	At, Cut flow.Time
	Answer  Answer
	Facts   []Considered // about the address
	Subject []Considered // of directories, about the identity
}

// Explain gives what Lookup gives and every fact held about the address and its identity,
// each with its source, how old its word is, and why it counts or does not. It allocates.
func (s *Identity) Explain(addr flow.Addr, at, cut flow.Time) Explanation {
	v := s.View()
	defer v.Close()
	cut = max(at, cut)
	e := Explanation{Addr: addr.Canonical(), At: at, Cut: cut}
	v.Lookup(addr, at, cut, &e.Answer)
	q := query{s: s, at: at, cut: cut, beats: true}
	if h := s.places.find(e.Addr); h != nil {
		e.Facts = q.consider(h.past, e.Addr, "")
	}
	if h := s.subject(e.Answer.Identity); h != nil {
		e.Subject = q.consider(h.past, flow.Addr{}, s.names.Text(e.Answer.Identity))
	}
	return e
}

func (q *query) consider(p *past, addr flow.Addr, subject string) []Considered {
	all := make([]Considered, 0, len(p.versions))
	for i := 0; i < len(p.versions); {
		counts, next := effective(p.versions, i, q.cut)
		for k := i; k < next; k++ {
			v := &p.versions[k]
			c := q.considered(v)
			c.Addr, c.Subject = addr, subject
			switch {
			case v == counts && p.subject && q.followed(p, next, v):
				c.Counts = "followed by a later one"
			case v == counts:
				c.Counts = q.counts(p, v)
			case v.known > q.cut:
				c.Counts = "known later"
			default:
				c.Counts = "replaced"
			}
			all = append(all, c)
		}
		i = next
	}
	slices.SortStableFunc(all, func(a, b Considered) int {
		return cmp.Or(cmp.Compare(a.Since, b.Since), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Known, b.Known))
	})
	return all
}

// followed says whether another fact of the directory, from next on, has begun.
func (q *query) followed(p *past, next int, v *version) bool {
	for i := next; i < len(p.versions) && p.versions[i].source == v.source; {
		var w *version
		if w, i = effective(p.versions, i, q.cut); w != nil && w.begin() <= q.at {
			return true
		}
	}
	return false
}

func (q *query) counts(p *past, v *version) string {
	switch st := v.at(q.at); {
	case v.empty():
		return "never held"
	case st == notHeld && q.at < v.since:
		return "not yet"
	case st == notHeld:
		return "ended"
	}
	switch st, doubt := q.standing(p, v); {
	case st == notHeld:
		return "its lease ended"
	case doubt == WhyBorder|WhyStale:
		return "border, stale"
	case doubt == WhyBorder:
		return "border"
	case doubt == WhyStale:
		return "stale"
	}
	return "counts"
}

func (q *query) considered(v *version) Considered {
	src, name := &q.s.sources[v.source], q.s.names.Text
	c := Considered{Fact: flow.Fact{Source: src.name, Kind: v.kind, Since: v.since, Known: v.known,
		SinceSlack: time.Duration(v.sinceSlack) * time.Millisecond, UntilSlack: time.Duration(v.untilSlack) * time.Millisecond,
		Workload: name(v.workload), Device: name(v.device), User: name(v.user), Account: name(v.account), Posture: name(v.posture),
		Disabled: v.disabled, Confidence: v.confidence}, LastTold: v.last}
	if v.until != latest {
		c.Until = v.until
	}
	for _, g := range q.s.groups.sets[v.groups].names {
		c.Groups = append(c.Groups, name(g))
	}
	if b, known, _ := src.heard(q.cut); known {
		c.Heard, c.Age, c.StaleAfter = b.at, max(0, q.at.Sub(b.at)), time.Duration(b.limit)*time.Millisecond
	}
	return c
}
