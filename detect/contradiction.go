package detect

import (
	"encoding/json"
	"strconv"

	"github.com/postern/postern/flow"
)

// Contradict takes in what observers of sessions tell differently. Each is a finding about
// the session's ends: somebody's word on who was there, or on what was seen, is wrong.
func (d *Detector) Contradict(list []flow.Contradiction) {
	for i := range list {
		d.contradict(&list[i])
	}
}

// contradict makes a finding of something that is told differently.
func (d *book) contradict(c *flow.Contradiction) {
	s := d.contradicted(c)
	d.add(&s, nil)
	if f := d.findings[s.Key]; f != nil {
		f.observersOf(&c.Session, d.names)
	}
}

var contradictionTypes = map[flow.Contradictions]string{
	flow.ContradictIdentity: flow.FindingIdentity,
	flow.ContradictUnseen:   flow.FindingUnseen,
	flow.ContradictVerdict:  flow.FindingVerdict,
}

func (d *book) contradicted(c *flow.Contradiction) sighting {
	n, s := d.names, &c.Session
	v := &s.Verdict
	side := "client"
	if c.Server {
		side = "server"
	}
	out := sighting{
		Key:  key{Type: contradictionTypes[c.Kind], Client: s.Client.Addr, Server: s.Server.Addr, Proto: s.Proto, Subject: side, Day: dayOf(s.Began)},
		Span: span{s.Start, max(s.Start, s.End)},
		Told: told{Outcome: v.Outcome, Observed: v.Observed, Expected: v.Expected, Reason: v.Reason, Confidence: c.Confidence, Open: s.Open,
			Service: string(s.AppendService(nil)), SrcSegment: n.Text(s.Client.Segment), DstSegment: n.Text(s.Server.Segment),
			SrcWorkload: n.Text(s.Client.Workload), DstWorkload: n.Text(s.Server.Workload),
			Rule: n.Text(v.Rule), PolicyVersion: n.Text(v.PolicyVersion), Start: s.Start, Record: c.ID, Side: side},
	}
	out.Told.Ends = [2]flow.End{d.endOf(s, false), d.endOf(s, true)}
	for i := range c.Claim {
		who := n.Text(c.Claimant[i])
		if who == "" {
			who = c.Source[i].String()
		}
		out.Told.Claims = append(out.Told.Claims, claim{n.Text(c.Claim[i]), who})
	}
	out.Whole = c.Kind == flow.ContradictUnseen // told long after it is over, when the times of others are forgotten
	switch {
	case s.HasICMP:
		out.Key.Port = uint16(s.ICMPType)<<8 | uint16(s.ICMPCode)
	case s.Open:
		out.Session = uint32(s.Client.Port)<<16 | uint32(s.Server.Port)
	default:
		out.Key.Port, out.Session = s.Server.Port, uint32(s.Client.Port)
		out.Told.Identity = n.Text(s.Client.Identity)
	}
	out.Told.Tier, out.Told.SegmentOwner = d.policy.SegmentFacts(s.Start, c.About().Segment)
	out.Told.Severity = severity(&out.Told, out.Key.Type)
	out.Sample, _ = json.Marshal(struct { // texts and numbers: it cannot fail
		Session      string    `json:"session"`
		Conversation string    `json:"conversation"`
		Start        flow.Time `json:"time_start"`
		End          flow.Time `json:"time_end"`
		Client       string    `json:"client"`
		ClientPort   uint16    `json:"client_port"`
		Server       string    `json:"server"`
		Service      string    `json:"service"`
		Observers    uint16    `json:"observers"`
		Claims       []claim   `json:"claims"`
	}{strconv.FormatUint(s.ID, 10), strconv.FormatUint(s.Conversation, 10), s.Start, s.End, s.Client.Addr.String(), s.Client.Port, s.Server.Addr.String(),
		out.Told.Service, s.ObserversTotal, out.Told.Claims})
	return out
}

// claim is what one observer says.
type claim struct {
	Says string `json:"says,omitempty"`
	By   string `json:"by"`
}

// end is the end of a finding that a contradiction is about, in words.
func (f *finding) end() string {
	t, k := &f.Told, &f.Key
	if t.Side == "server" {
		return who(k.Server, t.DstWorkload, t.DstSegment, "", "")
	}
	return who(k.Client, t.SrcWorkload, t.SrcSegment, "", "")
}

// contradiction says in words what observers tell differently; empty for findings of another
// kind.
func (f *finding) contradiction() string {
	c := f.Told.Claims
	if len(c) < 2 {
		return ""
	}
	ends := f.Key.Client.String() + " and " + f.Key.Server.String() + " (" + f.Told.Service + ")"
	switch f.Key.Type {
	case flow.FindingIdentity:
		return "Of a session between " + ends + " " + word(c[0].By) + " says that " + f.end() + " was " + word(c[0].Says) + ", and " +
			word(c[1].By) + " that it was " + word(c[1].Says) + "."
	case flow.FindingUnseen:
		return "The agent of " + f.end() + ", which told of other sessions just before and after, never told of one between " + ends + " that " + word(c[1].By) + " saw."
	case flow.FindingVerdict:
		return word(c[0].By) + " says that it stopped a session between " + ends + " at " + f.end() + ", and " + word(c[1].By) + " saw it."
	}
	return ""
}
