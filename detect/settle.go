package detect

import "github.com/postern/postern/flow"

// Settle takes in what all observers together said of sessions. A finding speaks on the first
// observation; that the client's own agent let a connection out does not say that it got
// through, and where enforcement at the other end stopped it the finding is amended: once that
// is known of each of its sessions it tells of something blocked. It is told again then, with
// the severity of what was blocked, under the same id.
//
// A finding in doubt stays as it was: one of which anybody but the client's agent said that
// something got through, a session that went both ways, whose ends are not known for certain,
// or of which observers contradict each other.
//
// index is of the sessions, of which all but those blocked are passed over.
func (d *Detector) Settle(sessions []flow.Session, index *flow.Index) {
	for _, i := range index.Blocked {
		if s := &sessions[i]; stoppedOnItsWay(s) {
			d.stopped(s)
		}
	}
}

func stoppedOnItsWay(s *flow.Session) bool {
	if s.Into != 0 || s.Verdict.Outcome != flow.OutcomeBlocked || s.Open || s.BothWays ||
		s.NAT == flow.NATUnverified || s.Contradictions&flow.ContradictVerdict != 0 {
		return false
	}
	by := false
	for i := range s.Observers[:min(int(s.ObserversTotal), len(s.Observers))] {
		o := &s.Observers[i]
		by = by || o.Observed == flow.ObservedDeny && o.Reporter != flow.ReporterSource
	}
	return by
}

// letOutOnly says whether all that speaks for a record's having got through is that the
// client's own agent let it out.
func letOutOnly(r *flow.Record) bool {
	return r.Verdict.Observed == flow.ObservedAllow && r.Reporter == flow.ReporterSource && r.Oriented == flow.Forward &&
		!r.OtherHalf && r.RevBytesRaw == 0 && r.RevPacketsRaw == 0 && r.RevTCPFlags == 0
}

// maxDays bounds the days of a session on which findings are looked for: in a replay clocks
// are believed, and a wrong one may make it last for thousands of years.
const maxDays = 366

func (d *Detector) stopped(s *flow.Session) {
	v := &s.Verdict
	typ, _ := classify(v)
	k := key{Type: typ, Client: s.Client.Addr, Server: s.Server.Addr, Proto: s.Proto, Subject: d.names.Text(v.Rule)}
	if v.Exception != flow.NoName && typ != flow.FindingDenied {
		k.Subject = d.names.Text(v.Exception)
	}
	port := uint32(s.Client.Port)
	if k.Port = s.Server.Port; s.HasICMP {
		k.Port, port = uint16(s.ICMPType)<<8|uint16(s.ICMPCode), 0
	}
	all := span{s.Start, max(s.Start, s.End)}
	for k.Day = max(dayOf(all.Start), dayOf(all.End)-maxDays); k.Day <= dayOf(all.End); k.Day++ {
		if f := d.findings[k]; f != nil {
			d.refuse(f, port, all)
		}
	}
}

// refuse notes that what began at a port within s was stopped.
func (d *Detector) refuse(f *finding, port uint32, s span) {
	if f.Firm || !f.Sessions[port].touches(s, 0) {
		return
	}
	if d.sessions >= d.cfg.MaxSessions {
		d.m.untracked.Inc()
		return
	}
	if f.Refused == nil {
		f.Refused = map[uint32]spans{}
	}
	before, known := f.covered(port), f.Refused[port]
	n := len(known)
	known.add(s, 0)
	f.Refused[port] = known
	d.sessions += len(known) - n
	grown := f.covered(port) - before
	f.Stopped += grown
	if grown != 0 && f.Told.Outcome != flow.OutcomeBlocked { // else it is told as blocked anyway
		f.Turned = max(f.Turned, uint64(f.Stopped))
		f.news()
		d.touch(f, 0, span{f.Span.Start, f.Span.Start})
	}
}

// covered is how many of the sessions of a port that are remembered were stopped: none of
// their records lies outside of what is known to have been stopped.
func (f *finding) covered(port uint32) (n int64) {
	for _, s := range f.Sessions[port] {
		for _, r := range f.Refused[port] {
			if r.Start <= s.Start && s.End <= r.End {
				n++
				break
			}
		}
	}
	return n
}

// settled is the finding as it is to be told: the same, or amended where all of it was stopped.
func (f *finding) settled() *finding {
	if f.Firm || f.Stopped == 0 || f.Stopped < f.Count {
		return f
	}
	g := *f
	g.Told.Outcome, g.Told.Observed = flow.OutcomeBlocked, flow.ObservedDeny
	g.Told.Severity = severity(&g.Told, g.Key.Type)
	return &g
}
