package enrich

import (
	"github.com/postern/postern/flow"
)

// That the agent of a host hides a session shows in what it told of others just before and just
// after, and those may be merged elsewhere: pairs of endpoints are divided among several Sessions.
// So Sessions only says, when a session is over, which of its ends did not tell of it although
// others saw it take part; who sees the whole estate knows which ends have an agent, and whether
// it was telling then.
//
// Where few hosts have an agent nearly every session is such a one. Passed on are those of
// hosts whose agent told of something here, within a day; and in each ten minutes a few of
// others, since an agent may have told elsewhere only. So it costs an estate without agents nothing.

const (
	minute = flow.Time(60 * 1000)
	// untoldWindow is the time that the bounds are of.
	untoldWindow = 10 * minute
	// maxUntold bounds the sessions passed on in it, about a kilobyte each: 27 kB a second. It bites
	// where the agents of whole data centres fall silent.
	maxUntold = 1 << 14
	// maxStrangers bounds those of hosts that are not known here to have an agent: half a kilobyte a second.
	maxStrangers = 1 << 8
	// agentKeeps is for how many minutes after its agent told of something a host has one.
	agentKeeps = 24 * 60
)

// untoldRoom is how much of the bounds the present window has taken.
type untoldRoom struct {
	at                flow.Time // when it began
	passed, strangers uint32
}

// reported notes that an agent reported something.
func (x *Sessions) reported(conv *flow.Conversation, o *obs) {
	if !o.source.LogsAll() {
		return
	}
	addr := conv.Low
	if o.at == 2 {
		addr = conv.High
	}
	at := int64(o.first / minute)
	last, known := x.agents[addr]
	if known && last >= at {
		return
	}
	if !known && len(x.agents) >= x.cfg.MaxHosts {
		x.forgetAgents()
		if len(x.agents) >= x.cfg.MaxHosts {
			x.m.forgotten.Inc()
			return
		}
	}
	x.agents[addr] = at
}

// forgetAgents forgets agents that have been silent for longer than they are asked for.
func (x *Sessions) forgetAgents() {
	now := int64(x.watermark() / minute)
	for addr, last := range x.agents {
		if last < now-agentKeeps {
			delete(x.agents, addr)
		}
	}
}

// untold says of session i, which is over at a time, which of its ends should have told of it if
// they have an agent that tells of every connection: others saw this end take part. Of TCP the
// beginning must have been seen: agents tell a connection as it begins, and one that is older than
// their logs is never told. What was denied on the way may never have come to an agent, and of
// what is translated it is not known whose it was.
func (x *Sessions) untold(i int32, over flow.Time) {
	s := &x.list[i]
	if window := over - over%untoldWindow; window != x.untoldRoom.at {
		x.untoldRoom = untoldRoom{at: window}
	}
	room := &x.untoldRoom
	if len(x.agents) == 0 && room.strangers >= maxStrangers {
		x.strangers++
		return
	}
	if s.id == 0 || s.beforeID != 0 || s.nPeers > 0 || s.natPart || len(s.more) > 0 || hardest(s.enforced) == flow.ObservedDeny {
		return
	}
	own := [2]bool{}
	for k := s.first; k >= 0; k = x.obs[k].next {
		if at := x.obs[k].at; at != 0 {
			own[at-1] = true
		}
	}
	asked, known, left := [2]bool{}, false, false
	for k, addr := range [...]flow.Addr{s.conv.Low, s.conv.High} {
		if own[k] || s.segment[k] == x.outside {
			continue
		}
		last, has := x.agents[addr]
		has = has && last >= int64(over/minute)-agentKeeps
		if !has && addr.Netip().IsMulticast() {
			continue
		}
		if !has && room.strangers >= maxStrangers {
			left = true
			continue
		}
		asked[k], known = true, known || has
	}
	if left {
		x.strangers++
	}
	if !asked[0] && !asked[1] {
		return
	}
	x.gather(i)
	var witness [2]*obs
	begun := s.conv.Proto != flow.ProtoTCP
	for j := range x.gathered.obs {
		o := &x.gathered.obs[j]
		begun = begun || o.at != 0 || (o.flags[0]|o.flags[1])&flow.SYN != 0
		for k := range witness {
			// The other end's agent saw it come; what it only sent may never have arrived.
			if o.packets[k] == 0 && (o.at == 0 || x.gathered.sentAt[k] == maxTime) {
				continue
			}
			if w := witness[k]; w == nil || o.at != 0 && w.at == 0 || (o.at != 0) == (w.at != 0) && x.standsBefore(&o.obsKey, &w.obsKey) {
				witness[k] = o
			}
		}
	}
	u := flow.Untold{Over: over}
	for k, w := range witness {
		if u.Side[k] = begun && asked[k] && w != nil; u.Side[k] {
			u.Witness[k], u.Source[k] = w.observer, w.source
		}
	}
	if u.Side == [2]bool{} {
		return
	}
	if room.passed >= maxUntold {
		x.m.unasked.Inc()
		if n := len(x.untolds); n > 0 && x.untolds[n-1].Left > 0 && x.untolds[n-1].Over/minute == over/minute {
			x.untolds[n-1].Left++
		} else {
			x.untolds = append(x.untolds, flow.Untold{Over: over, Left: 1})
		}
		return
	}
	if room.passed++; !known {
		room.strangers++
	}
	row := &u.Session
	x.render(s, row)
	x.contradict(s, row, false)
	x.finish(s, row)
	row.Settled = x.ready(s) + 1
	if s.clientOf(row) == 1 { // so far of the lower and the higher end
		u.Side[0], u.Side[1] = u.Side[1], u.Side[0]
		u.Witness[0], u.Witness[1] = u.Witness[1], u.Witness[0]
		u.Source[0], u.Source[1] = u.Source[1], u.Source[0]
	}
	x.untolds = append(x.untolds, u)
}

// Untold gives the sessions collected since the last call that an end's own agent may have hidden,
// in the order of Over. Call it after Collect or Flush, for it belongs to the same input. What it
// gives belongs to the caller.
func (x *Sessions) Untold() []flow.Untold {
	list := x.untolds
	x.untolds = nil
	return list
}
