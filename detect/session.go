package detect

import (
	"slices"

	"github.com/postern/postern/flow"
)

// span is an interval of time, ends included.
type span struct {
	Start flow.Time `json:"s"`
	End   flow.Time `json:"e"`
}

// spans are disjoint intervals in ascending order, further than the idle time
// apart: the sessions of one five-tuple.
type spans []span

// add merges s into the spans and gives the session it became part of, and by how
// many the sessions grew: 1 for a new one, 0 for one that goes on, less where s
// joined sessions that had been apart. The spans are the connected parts of all
// that was added, so the order of adding does not show.
func (p *spans) add(s span, idle flow.Time) (merged span, grown int) {
	lo := 0
	for lo < len(*p) && (*p)[lo].End+idle < s.Start {
		lo++
	}
	hi := lo
	for hi < len(*p) && (*p)[hi].Start <= s.End+idle {
		s.Start, s.End = min(s.Start, (*p)[hi].Start), max(s.End, (*p)[hi].End)
		hi++
	}
	*p = slices.Replace(*p, lo, hi, s)
	return s, 1 - (hi - lo)
}

// drop forgets the spans that ended before t and says how many.
func (p *spans) drop(t flow.Time) int {
	n := 0
	for n < len(*p) && (*p)[n].End < t {
		n++
	}
	*p = slices.Delete(*p, 0, n)
	return n
}

// touches says whether a session lies within idle of s.
func (p spans) touches(s span, idle flow.Time) bool {
	for _, q := range p {
		if q.Start <= s.End+idle && s.Start <= q.End+idle {
			return true
		}
	}
	return false
}
