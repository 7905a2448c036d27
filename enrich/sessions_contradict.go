package enrich

import (
	"strings"

	"github.com/postern/postern/flow"
)

// principal is an identity as accounts are compared.
type principal struct {
	canonical string
	kind      flow.PrincipalKind
	workload  bool // a name of a workload, not of an account: the two are not compared
}

// maxPrincipals bounds the identities whose canonical form is remembered.
const maxPrincipals = 1 << 16

func (x *Sessions) principal(n flow.Name) principal {
	p, ok := x.principals[n]
	if !ok {
		p.canonical, p.kind = x.domains.Principal(x.names.Text(n))
		p.workload = strings.ContainsAny(p.canonical, "/:")
		if len(x.principals) >= maxPrincipals {
			clear(x.principals)
		}
		x.principals[n] = p
	}
	return p
}

// contradict finds what the observers of a session tell differently, as of now, and says what
// was not said yet, if it is time to.
func (x *Sessions) contradict(s *sess, row *flow.Session, now bool) {
	found := func(kind flow.Contradictions, k int, a, b *obs, claims [2]flow.Name, confidence uint8) {
		s.toldOf[k] |= kind
		if now && s.said[k]&kind == 0 {
			x.say(s, row, kind, k, a, b, claims, confidence)
		}
	}
	for k := range 2 {
		s.toldOf[k] &= flow.ContradictUnseen // that is found at the end
		x.contradictIdentity(k, found)
	}
	x.contradictVerdict(s, row, found)
}

type foundContradiction func(kind flow.Contradictions, k int, a, b *obs, claims [2]flow.Name, confidence uint8)

func (x *Sessions) say(s *sess, row *flow.Session, kind flow.Contradictions, k int, a, b *obs, claims [2]flow.Name, confidence uint8) {
	s.said[k] |= kind
	server := k != s.clientOf(row)
	c := flow.Contradiction{ID: flow.ContradictionID(s.id, kind, server), Kind: kind, Session: *row, Server: server,
		Claim: claims, Confidence: confidence}
	for i, o := range [2]*obs{a, b} {
		if o != nil {
			c.Claimant[i], c.Source[i] = o.observer, o.source
		}
	}
	x.contradictions = append(x.contradictions, c)
	for _, t := range kind.Texts() {
		x.m.contradictions.WithLabelValues(t).Inc()
	}
}

// clientOf is the end of s that a row has as its client.
func (s *sess) clientOf(row *flow.Session) int {
	if row.Client.Addr != s.conv.Low || row.HasPorts && row.Client.Port != s.conv.LowPort {
		return 1
	}
	return 0
}

// contradictIdentity says where two observers name two users, or two workloads, at one end.
// An account of the system or of a machine contradicts nobody: it acts for somebody.
func (x *Sessions) contradictIdentity(k int, found foundContradiction) {
	g := &x.gathered
	first := x.claim(k)
	if first == nil {
		return
	}
	p := x.principal(first.identity[k])
	if p.kind != flow.PrincipalUser {
		return
	}
	var second *obs
	for i := range g.obs {
		o := &g.obs[i]
		if o.identity[k] == flow.NoName || o.identity[k] == first.identity[k] {
			continue
		}
		if q := x.principal(o.identity[k]); q.kind != flow.PrincipalUser || q.workload != p.workload || q.canonical == p.canonical {
			continue
		}
		if second == nil || x.claimBefore(o, second, k) {
			second = o
		}
	}
	if second != nil {
		confidence := uint8(uint(certaintyOf(first, k)) * uint(certaintyOf(second, k)) / 100)
		found(flow.ContradictIdentity, k, first, second, [2]flow.Name{first.identity[k], second.identity[k]}, confidence)
	}
}

// How sure it is that an agent is wrong about what it stopped.
const (
	certainSeenByAgent    = 80 // the other end's agent saw it
	certainSeenByExporter = 60 // an exporter saw packets; it may sit before the enforcement
)

// contradictVerdict says where the client's agent stopped all of what the other end or the
// network saw coming from there. That the other end stops what the client let go is ordinary.
func (x *Sessions) contradictVerdict(s *sess, row *flow.Session, found foundContradiction) {
	if row.Open {
		return
	}
	k := s.clientOf(row)
	var denies, saw *obs
	confidence := uint8(0)
	for i := range x.gathered.obs {
		o := &x.gathered.obs[i]
		switch {
		case int(o.at) == k+1:
			if o.enforced&(1<<flow.ObservedAllow|1<<flow.ObservedAudit) != 0 {
				return // it let some of it go
			}
			if o.enforced&(1<<flow.ObservedDeny) != 0 && denies == nil {
				denies = o
			}
		case o.at != 0:
			if confidence < certainSeenByAgent {
				saw, confidence = o, certainSeenByAgent
			}
		case confidence == 0 && o.packets[k] > 0 && o.enforced&(1<<flow.ObservedDeny) == 0:
			saw, confidence = o, certainSeenByExporter
		}
	}
	if denies != nil && saw != nil {
		found(flow.ContradictVerdict, k, denies, saw, [2]flow.Name{}, confidence)
	}
}

// agentReports is when an agent at an address reported anything, by the minute, as far as two
// hours back.
type agentReports struct {
	observer flow.Name
	source   flow.Source
	top      int64     // the newest minute
	minutes  [2]uint64 // bit 0 of the first is top, the higher the longer ago
	// since is when it reported something of TCP, UDP, ICMP, other protocols first.
	since [4]flow.Time
}

const (
	minute      = flow.Time(60 * 1000)
	reportSpan  = 128 // minutes that are remembered
	minReports  = 3   // minutes with a report in the hour before, for an agent to count as healthy
	maxInterval = 15  // minutes between reports beyond which nothing is said
	// unseenWait is how long after a session's end its agents' next reports are waited for.
	unseenWait = 5 * minute
	// certainUnseen is how sure it is that an agent that reports around a session should have
	// reported it, in percent: what it is told to leave out is not known.
	certainUnseen = 60
)

func protoClass(proto uint8) int {
	switch proto {
	case flow.ProtoTCP:
		return 0
	case flow.ProtoUDP:
		return 1
	case flow.ProtoICMP, flow.ProtoICMPv6:
		return 2
	}
	return 3
}

// tellsAll says whether an agent's log has every connection. Sysmon's is filtered by its
// configuration on nearly every host, and of the open formats nobody knows.
func tellsAll(s flow.Source) bool {
	switch s {
	case flow.SourceHubble, flow.SourceWFP, flow.SourceCalico, flow.SourceIllumio, flow.SourceGuardicore:
		return true
	}
	return false
}

// reported notes that an agent reported something.
func (x *Sessions) reported(conv *flow.Conversation, o *obs) {
	if !tellsAll(o.source) {
		return
	}
	addr := conv.Low
	if o.at == 2 {
		addr = conv.High
	}
	a := x.agents[addr]
	if a == nil {
		if len(x.agents) >= x.cfg.MaxHosts {
			x.forgetAgents()
			if len(x.agents) >= x.cfg.MaxHosts {
				x.m.forgotten.Inc()
				return
			}
		}
		a = &agentReports{top: int64(o.first / minute), observer: o.observer, source: o.source, since: [4]flow.Time{maxTime, maxTime, maxTime, maxTime}}
		x.agents[addr] = a
	}
	a.note(int64(o.first / minute))
	class := protoClass(conv.Proto)
	a.since[class] = min(a.since[class], o.first)
	a.observer = x.least(a.observer, o.observer)
	a.source = min(a.source, o.source)
}

func (a *agentReports) note(m int64) {
	if m > a.top {
		switch by := m - a.top; {
		case by >= reportSpan:
			a.minutes = [2]uint64{}
		case by >= 64:
			a.minutes[1], a.minutes[0] = a.minutes[0]<<(by-64), 0
		default:
			a.minutes[1] = a.minutes[1]<<by | a.minutes[0]>>(64-by)
			a.minutes[0] <<= by
		}
		a.top = m
	}
	if back := a.top - m; back < reportSpan {
		a.minutes[back>>6] |= 1 << (back & 63)
	}
}

func (a *agentReports) at(m int64) bool {
	back := a.top - m
	return back >= 0 && back < reportSpan && a.minutes[back>>6]&(1<<(back&63)) != 0
}

// healthy says whether the agent reported just before and just after a span and in between,
// never silent for longer than three times its usual interval of the hour before.
func (a *agentReports) healthy(span stretch) bool {
	from, to := int64(span.start/minute), int64(span.end/minute)
	if a.top-from+60 >= reportSpan {
		return false // longer ago than is remembered
	}
	n := int64(0)
	for m := from - 60; m < from; m++ {
		if a.at(m) {
			n++
		}
	}
	if n < minReports {
		return false
	}
	interval := min(max(3*60/n, 2), maxInterval)
	silent := interval + 1
	for m := from - interval; m < from; m++ {
		if silent++; a.at(m) {
			silent = 0
		}
	}
	if silent > interval {
		return false
	}
	// What ends before the wait does is known whole by now.
	for m := from; m <= min(to+interval, int64((span.end+unseenWait)/minute)-1); m++ {
		if a.at(m) {
			if m > to {
				return true
			}
			silent = 0
		} else if silent++; silent > interval {
			return false
		}
	}
	return false
}

// forgetAgents forgets agents that have been silent for longer than is remembered.
func (x *Sessions) forgetAgents() {
	now := int64(x.watermark() / minute)
	for addr, a := range x.agents {
		if a.top < now-reportSpan {
			delete(x.agents, addr)
		}
	}
}

// suspectsUnseen says whether an end of s has an agent that did not tell of it.
func (x *Sessions) suspectsUnseen(s *sess) bool {
	if len(x.agents) == 0 {
		return false
	}
	a, b := x.agents[s.conv.Low], x.agents[s.conv.High]
	if a == nil && b == nil {
		return false
	}
	for k := s.first; k >= 0; k = x.obs[k].next {
		switch x.obs[k].at {
		case 1:
			a = nil
		case 2:
			b = nil
		}
	}
	return a != nil || b != nil
}

// unseen says, when session i is over, which of its ends has a healthy agent that never saw
// it: one that tells all connections and reported others before, after and between, while
// others saw this end send. Of TCP the beginning must have been seen: agents tell a
// connection as it begins, and one that is older than their logs is never told.
func (x *Sessions) unseen(i int32) {
	s := &x.list[i]
	if s.id == 0 || s.beforeID != 0 || len(s.more) > 0 || !x.suspectsUnseen(s) {
		return
	}
	x.gather(i)
	g := &x.gathered
	if hardest(g.enforced) == flow.ObservedDeny || s.nPeers > 0 || s.natPart {
		return
	}
	for k := range 2 {
		addr := s.conv.Low
		if k == 1 {
			addr = s.conv.High
		}
		a := x.agents[addr]
		if a == nil || s.said[k]&flow.ContradictUnseen != 0 || a.since[protoClass(s.conv.Proto)] >= g.all.start {
			continue
		}
		var witness *obs
		own, begun := false, s.conv.Proto != flow.ProtoTCP
		for j := range g.obs {
			o := &g.obs[j]
			own = own || int(o.at) == k+1
			begun = begun || o.at != 0 || (o.flags[0]|o.flags[1])&flow.SYN != 0
			// The other end's agent saw it come; what it only sent may never have arrived.
			if o.packets[k] > 0 || o.at != 0 && int(o.at) != k+1 && g.sent[k] {
				if witness == nil || o.at != 0 && witness.at == 0 {
					witness = o
				}
			}
		}
		if own || !begun || witness == nil || !a.healthy(g.all) {
			continue
		}
		saw := *witness // rendering puts the observers in order
		var row flow.Session
		x.render(s, &row)
		s.toldOf[k] |= flow.ContradictUnseen
		x.say(s, &row, flow.ContradictUnseen, k, &obs{obsKey: obsKey{observer: a.observer, source: a.source}}, &saw, [2]flow.Name{}, certainUnseen)
		s.dirty = true
	}
}
