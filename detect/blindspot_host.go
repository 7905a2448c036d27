package detect

import (
	"fmt"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
)

// agentHost is an address whose own agent tells of its sessions, or should. Times are minutes
// since the epoch. It is a value of fixed size without pointers.
type agentHost struct {
	Addr     flow.Addr
	Agent    flow.Name // what the agent calls itself; some do not say
	Segment  flow.Name
	Workload flow.Name
	Source   flow.Source // of the agent; 0 while none has told
	// First and Last are when its agent told first and last; of a host without any, when it was seen.
	First, Last uint32
	// How many of its sessions its agent told of, and of how many not, while it told of any; as
	// client, as server.
	Told, Untold [2]uint32
	// Missed are those since Last that it should have told of, and when the first of them was.
	Missed     uint32
	MissedFrom uint32
	Silent     uint32 // since when it is told to be silent; 0 while it is not
	Day        int32  // on which it was told to have no agent
}

// bareSegment is a segment that requires agents, and its hosts without one on a day.
type bareSegment struct {
	Segment flow.Name
	Day     int32
	Hosts   uint32
	Named   [maxNamed]flow.Addr
}

const (
	maxNamed = 8
	// usualTold is of how many sessions an agent must have told for its silence to mean anything, counted as
	// in [HostHeard].
	usualTold = 20
	// wholeAgents is from how many agents of one format on their common silence is that of the
	// way their logs take, not of the hosts.
	wholeAgents = 3
)

func (s *spots) adoptHosts() {
	clear(s.byHost)
	clear(s.spoke)
	for i := range s.agents {
		a := &s.agents[i]
		s.byHost[a.Addr] = int32(i)
		if a.Agent != flow.NoName {
			s.spoke[a.Agent] = max(s.spoke[a.Agent], a.Last)
		}
	}
}

// forgetHosts drops hosts that were not seen since a minute.
func (s *spots) forgetHosts(b *Behaviour, old uint32) {
	// Without an agent and not seen for a day, or for as long as anything is remembered.
	bare := uint32(max(b.until-dayMillis, 0) / minuteMillis)
	n := len(s.agents)
	for i := range s.agents {
		if a := &s.agents[i]; a.Silent != 0 && max(a.Last, a.MissedFrom) < old {
			s.note(b, s.ofHost(b, a, flow.BlindSpot{Kind: flow.FindingSilentHost, From: minuteTime(a.Silent), Until: b.until, Details: notWaitedFor}))
		}
	}
	s.agents = slices.DeleteFunc(s.agents, func(a agentHost) bool {
		return max(a.Last, a.MissedFrom) < old || a.Source == 0 && a.Last < bare
	})
	if len(s.agents) != n {
		s.adoptHosts()
	}
	day := int32(dayOf(b.until))
	s.bare = slices.DeleteFunc(s.bare, func(x bareSegment) bool { return x.Day < day-1 })
}

// host takes in what was seen of a host in ten minutes.
func (s *spots) host(b *Behaviour, k *HostKey, n *HostHeard) {
	told := n.Told[0]+n.Told[1] > 0
	i, known := s.byHost[k.Addr]
	if !known {
		if !told && !b.policy.AgentRequired(minuteTime(k.At), k.Segment) {
			return
		}
		if len(s.agents) >= b.bcfg.MaxHosts {
			s.m.unheard.Inc()
			b.pressed(boundAgents, k.Addr, 1, minuteTime(k.At))
			return
		}
		i = int32(len(s.agents))
		s.byHost[k.Addr] = i
		s.agents = append(s.agents, agentHost{Addr: k.Addr, First: k.At, Last: k.At, Day: -1})
	}
	a := &s.agents[i]
	a.Segment, a.Workload = k.Segment, k.Workload
	if told {
		s.told(b, a, k, n)
		return
	}
	if a.Source == 0 {
		a.Last = k.At
		s.unmanned(b, a, k, n)
		return
	}
	if a.Last == k.At {
		return // it told of others of these ten minutes
	}
	s.missed(b, a, k, n)
}

// told takes in that a host's own agent told of it.
func (s *spots) told(b *Behaviour, a *agentHost, k *HostKey, n *HostHeard) {
	if a.Silent != 0 {
		s.spoken(b, a, k.At)
	}
	switch {
	case a.Source == 0 || !s.sameHost(b, a.Agent, k.Agent):
		if _, elsewhere := s.spoke[k.Agent]; elsewhere {
			s.misplaced(b, k)
		}
		// Another host has the address, or its agent is new.
		*a = agentHost{Addr: a.Addr, Agent: k.Agent, Source: k.Source, Segment: k.Segment, Workload: k.Workload, First: k.At, Day: a.Day}
	case k.At > a.Last || k.Source < a.Source:
		a.Agent, a.Source = k.Agent, k.Source // of several agents on it the one whose format comes first
	}
	a.Last, a.Missed, a.MissedFrom = k.At, 0, 0
	for side := range a.Told {
		a.Told[side] += n.Told[side]
		a.Untold[side] += n.Untold[side]
		if a.Told[side]+a.Untold[side] > 1<<16 { // what was usual lately counts more
			a.Told[side] /= 2
			a.Untold[side] /= 2
		}
	}
	if k.Agent != flow.NoName {
		s.spoke[k.Agent] = max(s.spoke[k.Agent], k.At)
	}
}

// sameHost says whether two agents call themselves as one host: agents of two formats on one host may
// spell its name with the domain and without.
func (s *spots) sameHost(b *Behaviour, x, y flow.Name) bool {
	return x == y || strings.EqualFold(flow.HostLabel(b.names.Text(x)), flow.HostLabel(b.names.Text(y)))
}

// missed takes in sessions that others saw a host answer and its own agent did not tell of.
func (s *spots) missed(b *Behaviour, a *agentHost, k *HostKey, n *HostHeard) {
	if a.Silent != 0 || a.Agent == flow.NoName { // without a name it could speak from elsewhere
		return
	}
	for side := range n.Untold {
		// Only of the sort that its agent tells of. An address that only ever asks is some
		// other host's by tomorrow; where its workload is known it is not.
		if a.Told[side] < usualTold || a.Told[side] < 9*a.Untold[side] || side == 0 && a.Workload == flow.NoName {
			continue
		}
		if a.Missed += n.Untold[side]; a.MissedFrom == 0 && n.Untold[side] > 0 {
			a.MissedFrom = k.At
		}
	}
	end := k.At + hostWindow
	if a.Missed < uint32(s.cfg.Sessions) || minuteTime(end-a.Last-hostWindow) < millis(s.cfg.Host) ||
		minuteTime(a.Last-a.First) < millis(s.cfg.History) {
		return
	}
	if s.spoke[a.Agent] > a.Last {
		// Its agent speaks from elsewhere: the address is another host's now.
		*a = agentHost{Addr: a.Addr, First: k.At, Last: k.At, Segment: k.Segment, Workload: k.Workload, Day: -1}
		return
	}
	feed := a.Source.String()
	if s.wayIsSilent(a) || s.during(minuteTime(a.Last), minuteTime(end), func(n *spot) bool {
		return n.Subject == flow.BlindEverything || n.Subject == flow.BlindFeed && n.Source == feed
	}) > 0 {
		return
	}
	a.Silent = a.Last + hostWindow
	since := minuteTime(a.Silent)
	what := s.nameOf(b, a)
	severity := flow.Low
	tier, owner := b.policy.SegmentFacts(since, a.Segment)
	required := b.policy.AgentRequired(since, a.Segment)
	if tier == crownJewel || required {
		severity = flow.Medium
	}
	k2 := s.keyOfHost(b, a, since)
	out := blindTold(severity, 70, since, minuteTime(end), "The agent of "+what+" is silent",
		fmt.Sprintf("The agent of %s (%v) has told nothing since %s, while others saw the host answer in at least %s. It used to tell of such sessions.",
			what, a.Source, moment(since), times(int(a.Missed), "session", "sessions")),
		"Find out whether the agent was stopped, and by whom: whoever takes over a host stops it first. What the host does meanwhile is known from others only.", "T1562.001")
	s.about(b, a, &out)
	if owner != "" {
		out.SegmentOwner = owner
	}
	b.raise(k2, out, int64(a.Missed))
	s.note(b, s.ofHost(b, a, flow.BlindSpot{Kind: flow.FindingSilentHost, From: since, Finding: k2.id()}))
}

// spoken tells that a host's agent is heard again.
func (s *spots) spoken(b *Behaviour, a *agentHost, at uint32) {
	since, until, what := minuteTime(a.Silent), minuteTime(at), s.nameOf(b, a)
	a.Silent = 0
	k := s.keyOfHost(b, a, since)
	if f := b.findings[k]; f != nil && until < since+dayMillis {
		out := blindTold(f.Told.Severity, 70, since, until, "The agent of "+what+" was silent",
			fmt.Sprintf("The agent of %s (%v) told nothing from %s to %s, while others saw the host answer; it is heard again.", what, a.Source, moment(since), moment(until)),
			"Find out whether the agent was stopped, and by whom. What the host did meanwhile is known from others only.", "T1562.001")
		s.about(b, a, &out)
		out.SegmentOwner = f.Told.SegmentOwner
		b.raise(k, out, 0)
	}
	s.note(b, s.ofHost(b, a, flow.BlindSpot{Kind: flow.FindingSilentHost, From: since, Until: until, Finding: k.id()}))
}

// ofHost fills in which host a blind spot is about.
func (s *spots) ofHost(b *Behaviour, a *agentHost, n flow.BlindSpot) flow.BlindSpot {
	n.Subject, n.About, n.Address, n.Segment, n.Name = flow.BlindHost, a.Addr.String(), a.Addr, b.names.Text(a.Segment), b.names.Text(a.Agent)
	if a.Source != 0 {
		n.Source = a.Source.String()
	}
	return n
}

func (s *spots) keyOfHost(b *Behaviour, a *agentHost, at flow.Time) key {
	return key{Type: flow.FindingSilentHost, Client: a.Addr, Subject: b.names.Text(a.Agent), Day: dayOf(at)}
}

func (s *spots) about(b *Behaviour, a *agentHost, t *told) {
	t.SrcSegment, t.SrcWorkload = b.names.Text(a.Segment), b.names.Text(a.Workload)
	t.Story.Where = "client = " + sqlAddr(a.Addr) + " OR server = " + sqlAddr(a.Addr)
	t.Story.Observers = []flow.Name{a.Agent}
	t.Story.Ends = []flow.End{{Address: a.Addr.String(), Workload: t.SrcWorkload, Segment: t.SrcSegment, Host: b.names.Text(a.Agent)}}
}

// nameOf is a host in words.
func (s *spots) nameOf(b *Behaviour, a *agentHost) string {
	if a.Workload != flow.NoName {
		return fmt.Sprintf("%s (%v)", word(b.names.Text(a.Workload)), a.Addr)
	}
	return a.Addr.String()
}

// wayIsSilent says whether no agent of the format has told of anything since a host's did,
// though there are several: then it is not about that host.
func (s *spots) wayIsSilent(a *agentHost) bool {
	n := 0
	for i := range s.agents {
		o := &s.agents[i]
		if o.Source != a.Source {
			continue
		}
		if o.Last > a.Last {
			return false
		}
		if o.Last+24*60 > a.Last {
			n++
		}
	}
	return n >= wholeAgents
}

// ofFewAgents says whether a teller is the logs of so few agents that their common silence is
// told of the hosts.
func (s *spots) ofFewAgents(t *teller) bool {
	if !t.Key.Addr.IsZero() || t.Key.Name != flow.NoName || t.Key.Source >= flow.SourceAWSVPC && t.Key.Source <= flow.SourceGCPFirewall {
		return false
	}
	n := 0
	for i := range s.agents {
		if o := &s.agents[i]; o.Source == t.Key.Source && o.Last+24*60 > t.Last {
			n++
		}
	}
	return n < wholeAgents
}

// unmanned takes in sessions of a host in a segment that requires an agent and that has none.
func (s *spots) unmanned(b *Behaviour, a *agentHost, k *HostKey, n *HostHeard) {
	at := minuteTime(k.At)
	day := int32(dayOf(at))
	if !b.policy.AgentRequired(at, k.Segment) || a.Day == day {
		return
	}
	if s.hushed(minuteTime(k.At+hostWindow)).agents || s.during(at, minuteTime(k.At+hostWindow), func(n *spot) bool {
		return n.Subject == flow.BlindEverything || n.Subject == flow.BlindFeed
	}) > 0 {
		return // it may have an agent whose log does not arrive
	}
	if a.Missed += n.Untold[0] + n.Untold[1]; a.MissedFrom == 0 {
		a.MissedFrom = k.At
	}
	if a.Missed < uint32(s.cfg.Sessions) || minuteTime(k.At+hostWindow-a.MissedFrom) < millis(s.cfg.Host) {
		return
	}
	a.Day = day
	i := slices.IndexFunc(s.bare, func(x bareSegment) bool { return x.Segment == k.Segment && x.Day == day })
	if i < 0 {
		i = len(s.bare)
		s.bare = append(s.bare, bareSegment{Segment: k.Segment, Day: day})
	}
	x := &s.bare[i]
	if x.Hosts < maxNamed {
		x.Named[x.Hosts] = a.Addr
	}
	x.Hosts++
	segment := b.names.Text(k.Segment)
	var named []string
	var ends []flow.End
	var these []string
	for _, h := range x.Named[:min(int(x.Hosts), maxNamed)] {
		named = append(named, h.String())
		ends = append(ends, flow.End{Address: h.String(), Segment: segment})
		these = append(these, sqlAddr(h))
	}
	if x.Hosts > maxNamed {
		named = append(named, "and others")
	}
	tier, owner := b.policy.SegmentFacts(at, k.Segment)
	severity := flow.Low
	if tier == crownJewel {
		severity = flow.Medium
	}
	since := at
	key := key{Type: flow.FindingAgentMissing, Subject: "segment|" + segment, Day: int64(day)}
	out := blindTold(severity, 80, since, since+hostWindow*minuteMillis, "Hosts without an agent in "+word(segment),
		fmt.Sprintf("In segment %s every host must have an agent. %s that answered others had none that told of it: %s.", word(segment),
			capital(times(int(x.Hosts), "host", "hosts")), strings.Join(named, ", ")),
		"Install the agent, or find out why its log does not arrive. What these hosts do among themselves is not seen.")
	out.SrcSegment, out.SegmentOwner, out.Story.Ends = segment, owner, ends
	in := " IN (" + strings.Join(these, ", ") + ")"
	out.Story.Where = "client" + in + " OR server" + in
	b.raise(key, out, 1)
	s.note(b, s.ofHost(b, a, flow.BlindSpot{Kind: flow.FindingAgentMissing, From: since, Until: since + hostWindow*minuteMillis, Finding: key.id()}))
}
