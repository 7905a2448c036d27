package main

import (
	"github.com/postern/postern/detect"
	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// policyFacts tells detection what a finding says of an exception and a segment:
// what the files in force at that time said.
type policyFacts struct{ history *policy.History }

// ExceptionFacts implements detect.Policy.
func (f policyFacts) ExceptionFacts(at flow.Time, id flow.Name) (detect.Facts, bool) {
	idx := f.history.At(at)
	if idx == nil {
		return detect.Facts{}, false
	}
	e, ends, ok := idx.Exception(id)
	if !ok {
		return detect.Facts{}, false
	}
	return detect.Facts{
		Class: e.Class, Ticket: e.Ticket, Owner: e.Owner, Requester: e.RequestedBy, Approver: e.Approvers(),
		NotBefore: e.NotBefore, Ends: ends,
	}, true
}

// SegmentFacts implements detect.Policy.
func (f policyFacts) SegmentFacts(at flow.Time, name flow.Name) (tier, owner string) {
	if idx := f.history.At(at); idx != nil {
		if s := idx.Segment(name); s != nil {
			return s.Tier.String(), s.Owner
		}
	}
	return policy.TierNone.String(), ""
}

// declaredBy gives the services that each version declares, for telling which end
// of a flow serves. It makes the set of a version once. Not safe for concurrent use.
func declaredBy(history *policy.History) enrich.Declared {
	sets := map[*policy.Index]*enrich.Ports{}
	var lastIndex *policy.Index
	var last *enrich.Ports
	return func(at flow.Time) enrich.Services {
		idx := history.At(at)
		if idx == nil {
			return nil
		}
		if idx == lastIndex {
			return last
		}
		set := sets[idx]
		if set == nil {
			set = &enrich.Ports{}
			for _, r := range idx.Policy().ServiceRanges() {
				set.Add(r.Proto, r.Low, r.High)
			}
			if len(sets) > 1024 { // versions come and go; those in use are made again
				clear(sets)
			}
			sets[idx] = set
		}
		lastIndex, last = idx, set
		return set
	}
}
