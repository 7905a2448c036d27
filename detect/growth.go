package detect

import "github.com/postern/postern/flow"

// scope looks whether what an exception allows was in its scope already when it was approved
// (THREATS 9). Approvers saw a list of hosts in the names that a scope speaks of; who can
// relabel a host, or give its address to a workload, adds to that list without asking them.
// Of an open pair it is not known which end the scope would have to hold.
func (d *Detector) scope(r *flow.Record) {
	if r.Oriented == flow.Open {
		return
	}
	client, server := r.Ends()
	grown, since := d.policy.ScopeGrown(r.Start, r.Verdict.Exception, client, server)
	if grown == 0 {
		return
	}
	s := d.sight(r, flow.FindingGrown)
	s.Told.Failed, s.Told.GrownAt = grown, since
	d.add(&s, r)
}

// newcomers says in words what came into a scope.
func newcomers(grown flow.Dimensions) string {
	switch grown {
	case flow.DimSource:
		return "the source"
	case flow.DimDestination:
		return "the destination"
	}
	return "the source and the destination"
}
