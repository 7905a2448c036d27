package policy

import (
	"math"
	"sort"
	"strings"

	"github.com/postern/postern/flow"
)

// Exception gives the exception of an id, also one that was removed from the files
// and is still implicated. ends is the first moment at which it no longer held:
// expiry, revocation or removal. It is for findings, not for judging.
func (x *Index) Exception(id flow.Name) (e *Exception, ends flow.Time, ok bool) {
	if i, known := x.byName[id]; known {
		return x.excepts[i].e, x.excepts[i].end, true
	}
	return nil, 0, false
}

// Granted says how much an exception lets through as far as prefixes and inventory tell it, whatever
// the identity: source addresses × destination addresses, at most the greatest uint64, and ports,
// 65,536 a protocol where none is named. It is 0 for what is not in this version.
func (x *Index) Granted(id flow.Name) (pairs, ports uint64) {
	i, ok := x.byName[id]
	if !ok || x.excepts[i].pairs == nil {
		return 0, 0
	}
	pairs = math.MaxUint64
	if n := x.excepts[i].pairs; n.IsUint64() {
		pairs = n.Uint64()
	}
	return pairs, uint64(portCount(x.excepts[i].e.Services))
}

// Segment gives the segment of a name, nil if there is none.
func (x *Index) Segment(name flow.Name) *Segment {
	segments, text := x.policy.Segments, x.names.Text(name)
	i := sort.Search(len(segments), func(i int) bool { return segments[i].Name >= text })
	if i < len(segments) && segments[i].Name == text {
		return &segments[i]
	}
	return nil
}

// SegmentNames lists the segments, in the order of their names.
func (x *Index) SegmentNames() []flow.Name {
	out := make([]flow.Name, len(x.policy.Segments))
	for i := range out {
		out[i] = x.names.Intern(x.policy.Segments[i].Name)
	}
	return out
}

// ServiceRanges lists every protocol and port that the policy speaks of: its services
// section, and what rules and exceptions name themselves.
func (p *Policy) ServiceRanges() (out []Range) {
	for _, s := range p.Services {
		out = append(out, s.Ranges...)
	}
	for i := range p.Rules {
		out = append(out, p.Rules[i].Services...)
	}
	for i := range p.Exceptions {
		out = append(out, p.Exceptions[i].Services...)
	}
	return out
}

// Approvers lists who approved the exception, in the order of the files.
func (e *Exception) Approvers() string {
	by := make([]string, len(e.Approved))
	for i, a := range e.Approved {
		by[i] = a.By
	}
	return strings.Join(by, ", ")
}
