package enrich

import (
	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// look takes the view on identities that records are judged with until lookAway.
func (p *Pairer) look() {
	if p.identity != nil {
		p.view = p.identity.View()
	}
}

func (p *Pairer) lookAway() {
	if p.identity != nil {
		p.view.Close()
	}
}

// judge judges a record with what is known of its ends.
func (p *Pairer) judge(r *flow.Record) (settled bool) {
	if p.identity == nil {
		return p.policy.JudgeRecordAs(r, nil)
	}
	cut := p.identity.Cut(r.End)
	p.end(r, &p.who.Src, r.Src, flow.HasSrc, flow.HasSrcIdentity, flow.ReporterSource, cut, &r.SrcIdentity, &r.SrcHost, &r.SrcDoubt, &r.SrcSilence)
	p.end(r, &p.who.Dst, r.Dst, flow.HasDst, flow.HasDstIdentity, flow.ReporterDestination, cut, &r.DstIdentity, &r.DstHost, &r.DstDoubt, &r.DstSilence)
	return p.policy.JudgeRecordAs(r, &p.who)
}

// end finds who is behind one end of a record. The agent that sits there goes before all other
// sources; what somebody else says of this end counts only where they are silent.
func (p *Pairer) end(r *flow.Record, party *policy.Party, addr flow.Addr, hasAddr, hasIdentity flow.Has, here flow.Reporter, cut flow.Time,
	identity, host *flow.Name, doubt *flow.Doubt, silence *int32) {
	a := &p.answer
	*a = Answer{Staleness: -1}
	if r.Any(hasAddr) {
		p.view.Lookup(addr, r.Start, cut, a)
	}
	if r.Any(hasIdentity) && (r.Reporter == here || a.User == flow.NoName && a.Why&(flow.DoubtAmbiguous|flow.DoubtDisagree) == 0) {
		p.view.Resolve(*identity, r.Start, cut, a)
	}
	*identity, *doubt, *silence = a.Identity, a.Why|a.GroupsWhy, -1
	if a.Staleness >= 0 {
		*silence = int32(min(a.Staleness/1000, 1<<31-1))
	}
	if *host == flow.NoName {
		if *host = a.Workload; *host == flow.NoName {
			*host = a.Device
		}
	}
	a.Fill(party)
}
