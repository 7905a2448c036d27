package policy

import "github.com/postern/postern/flow"

// holds notes of each exception of the version since when it was held under the approval that
// it has now. earlier are the intervals before.
func (v *Interval) holds(earlier []Interval) {
	for i := range v.Index.excepts {
		x := &v.Index.excepts[i]
		x.heldSince = v.Since
		if x.e == nil || len(earlier) == 0 {
			continue
		}
		before := earlier[len(earlier)-1].Index
		if j, ok := before.byName[v.Index.matchers[v.Index.exceptAt<<6+i].id]; ok && before.excepts[j].approvedAt == x.approvedAt {
			x.heldSince = before.excepts[j].heldSince
		}
	}
}

// ScopeGrown says which ends of a conversation came into the scope of an exception only after
// it was approved: source, destination or both, and since when the scope has held both. Its
// own text may be the same still: a workload was given other labels, an address, another
// segment. What counts is the version in force at a time against the first that held the
// exception under the approval it has there; with a new approval the count begins anew. Who
// is in a group, and whatever else observers tell, is not looked at.
//
// It is 0 where nothing grew, where there is no such exception, and for what came in before
// the oldest version kept. It allocates nothing and is safe for concurrent use.
func (h *History) ScopeGrown(at flow.Time, exception flow.Name, client, server flow.Addr) (grown flow.Dimensions, since flow.Time) {
	line := h.line.Load()
	now := line.at(at)
	if now == nil {
		return 0, 0
	}
	i, ok := now.byName[exception]
	if !ok {
		return 0, 0
	}
	held := now.excepts[i].heldSince
	first := line.at(held)
	if first == nil { // forgotten
		first = line.intervals[0].Index
	}
	if grown, ok = first.outside(exception, client, server); !ok || grown == 0 {
		return 0, 0
	}
	for _, v := range line.intervals {
		if v.Since < held || v.Since > at {
			continue
		}
		if out, ok := v.Index.outside(exception, client, server); ok && out == 0 {
			return grown, v.Since
		}
	}
	return 0, 0 // they are outside still
}

// outside says which ends are not in the scope of an exception as far as addresses decide
// that; false if there is no such exception.
func (x *Index) outside(exception flow.Name, client, server flow.Addr) (out flow.Dimensions, ok bool) {
	i, ok := x.byName[exception]
	if !ok {
		return 0, false
	}
	bit := x.exceptAt<<6 + i
	from, to := int(x.region(client).sig)*x.words, int(x.region(server).sig)*x.words
	if !has(x.from[from:from+x.words], bit) {
		out |= flow.DimSource
	}
	if !has(x.to[to:to+x.words], bit) {
		out |= flow.DimDestination
	}
	return out, true
}
