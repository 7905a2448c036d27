package enrich

import (
	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// lookEach is how many records are looked up at a time, both ends of each: their lookups wait
// for memory together, see [View.LookupAll].
const lookEach = lookAhead / 2

// identities is what a Pairer looks up who is behind records with.
type identities struct {
	store *Identity // nil: who is behind an address is what records say
	view  View      // while a batch is worked on
	known bool      // store holds anything

	questions [2 * lookEach]Question
	answers   [2 * lookEach]Answer // of the records that are next, source and destination in turn
	alone     [2]Answer            // of one that was held and is judged again
	who       policy.Who
}

// look takes the view on identities that records are judged with until lookAway.
func (p *Pairer) look() {
	if id := &p.identity; id.store != nil {
		id.view = id.store.View()
		id.known = len(id.store.places.holders)+len(id.store.subjects) > 0 || id.store.lost != (lost{})
	}
}

func (p *Pairer) lookAway() {
	if p.identity.store != nil {
		p.identity.view.Close()
	}
}

// ask looks up who is behind the next records, at most lookEach of them.
func (id *identities) ask(rs []flow.Record) {
	if id.store == nil || !id.known {
		return
	}
	for i := range rs {
		id.question(&rs[i], id.questions[2*i:])
	}
	id.view.LookupAll(id.questions[:2*len(rs)], id.answers[:])
}

// question writes what is asked about a record.
func (id *identities) question(r *flow.Record, q []Question) {
	cut := id.store.Cut(r.End)
	q[0], q[1] = Question{r.Src, r.Start, cut}, Question{r.Dst, r.Start, cut}
}

// judge judges a record that was asked about as number i.
func (p *Pairer) judge(r *flow.Record, i int) (settled bool) {
	settled = p.judgeAsked(r, i)
	p.discredit(r)
	return settled
}

// discredit takes from a verdict what an exception did to it where an end is what translation
// hands out to many and the record does not say who is behind it.
func (p *Pairer) discredit(r *flow.Record) {
	if r.Verdict.Exception != flow.NoName && (p.natPools.NATPool(r.Src) || p.natPools.NATPool(r.Dst)) {
		Discredit(&r.Verdict)
	}
}

func (p *Pairer) judgeAsked(r *flow.Record, i int) (settled bool) {
	id := &p.identity
	if id.store == nil {
		return p.policy.JudgeRecordAs(r, nil)
	}
	return p.judgeBy(r, &id.answers[2*i], &id.answers[2*i+1])
}

// judgeAgain judges a record that was held.
func (p *Pairer) judgeAgain(r *flow.Record) {
	defer p.discredit(r)
	id := &p.identity
	if id.store == nil {
		p.policy.JudgeRecordAs(r, nil)
		return
	}
	if id.known {
		var q [2]Question
		id.question(r, q[:])
		id.view.LookupAll(q[:], id.alone[:])
	}
	p.judgeBy(r, &id.alone[0], &id.alone[1])
}

// judgeBy judges a record by what was found about its ends.
func (p *Pairer) judgeBy(r *flow.Record, src, dst *Answer) (settled bool) {
	id := &p.identity
	if !id.known && !r.Any(flow.HasSrcIdentity|flow.HasDstIdentity) {
		r.SrcDoubt, r.DstDoubt, r.SrcSilence, r.DstSilence = 0, 0, -1, -1
		r.SrcIdentityFrom, r.DstIdentityFrom = flow.NoName, flow.NoName
		return p.policy.JudgeRecordAs(r, nil)
	}
	r.SrcIdentityFrom = id.end(r, &id.who.Src, src, flow.HasSrc, flow.HasSrcIdentity, flow.ReporterSource, &r.SrcIdentity, &r.SrcHost, &r.SrcDoubt, &r.SrcSilence)
	r.DstIdentityFrom = id.end(r, &id.who.Dst, dst, flow.HasDst, flow.HasDstIdentity, flow.ReporterDestination, &r.DstIdentity, &r.DstHost, &r.DstDoubt, &r.DstSilence)
	return p.policy.JudgeRecordAs(r, &id.who)
}

// end puts who is behind one end into a record and says which source's word that is. The agent that sits there goes before all other
// sources; what somebody else says of this end counts only where they are silent.
func (id *identities) end(r *flow.Record, party *policy.Party, a *Answer, hasAddr, hasIdentity flow.Has, here flow.Reporter,
	identity, host *flow.Name, doubt *flow.Doubt, silence *int32) (from flow.Name) {
	if !id.known || !r.Any(hasAddr) {
		*a = Answer{Staleness: -1}
	}
	if r.Any(hasIdentity) && (r.Reporter == here || a.User == flow.NoName && a.Why&(flow.DoubtAmbiguous|flow.DoubtDisagree) == 0) {
		id.view.Resolve(*identity, r.Start, id.store.Cut(r.End), a)
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
	switch a.Identity {
	case flow.NoName:
		return flow.NoName
	case a.User:
		return a.UserSource
	}
	return a.Source
}
