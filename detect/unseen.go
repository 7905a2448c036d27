package detect

import (
	"cmp"
	"container/heap"
	"maps"
	"slices"

	"github.com/postern/postern/flow"
)

// An agent that tells of every connection, told of others just before and just after, and did not tell
// of one that others saw its host take part in, was made to look away, or it lies (THREATS 26, 27).
// What it told of comes to wherever the other ends' flows come, so it is looked at here: Contacts
// counts for each host and ten minutes in which minutes its agent told of something, and passes on
// the sessions that an end did not tell of. A session waits until it is known what the agents of its
// ends told after it.
//
// Time is that at which sessions settled, of both: so it is known when all of a minute has come.

// unseen finds sessions that the healthy agent of an end never told of.
type unseen struct {
	by      map[flow.Addr]*agentReports
	waiting suspects
	found   []flow.Session
}

// suspect is a session that waits. It is a value of fixed size without pointers.
type suspect struct {
	flow.Untold
	Due    flow.Time
	Likely bool // the agent of an end was healthy just before
}

// agentReports is when the agent at an address told of anything, by the minute, as far as two
// hours back. It is a value of fixed size without pointers.
type agentReports struct {
	Addr   flow.Addr
	Agent  flow.Name
	Source flow.Source
	Named  uint32    // the window in which it was called so
	Top    uint32    // the newest minute
	Bits   [2]uint64 // bit 0 of the first is Top, the higher the longer ago
	// Since is when it told of something of TCP, UDP, ICMP, other protocols first; 0 never.
	Since [protoClasses]uint32
}

const (
	protoClasses = 4
	reportSpan   = 128 // minutes that are remembered
	minReports   = 3   // minutes with a report in the hour before, for an agent to count as healthy
	maxInterval  = 15  // minutes between reports beyond which nothing is said
	// unseenWait is for how many minutes after a session's end its agents' next reports are waited for.
	unseenWait = 5
	// reportsKeep is for how many minutes an agent that is silent is remembered.
	reportsKeep = 24 * 60
	// certainUnseen is how sure it is that an agent that tells of others around a session should have
	// told of it, in percent: what it is told to leave out is not known.
	certainUnseen = 60
	// maxUntold bounds the sessions that wait, about a kilobyte each: 18 MB.
	maxUntold = 1 << 14
)

func newUnseen() unseen { return unseen{by: map[flow.Addr]*agentReports{}} }

// suspects are sessions that wait, a heap by when they are due.
type suspects []*suspect

func (w suspects) Len() int           { return len(w) }
func (w suspects) Less(i, j int) bool { return w[i].compare(w[j]) < 0 }
func (w suspects) Swap(i, j int)      { w[i], w[j] = w[j], w[i] }
func (w *suspects) Push(u any)        { *w = append(*w, u.(*suspect)) }
func (w *suspects) Pop() any {
	last := len(*w) - 1
	u := (*w)[last]
	(*w)[last] = nil
	*w = (*w)[:last]
	return u
}

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

// Untold takes in sessions that are over and that an end's own agent may have hidden.
func (c *Contacts) Untold(list []flow.Untold) {
	for i := range list {
		if u := &list[i]; u.Left > 0 {
			c.press(boundUntold, flow.Addr{}, int(u.Left), uint32(u.Over/minuteMillis))
		} else {
			c.untold = append(c.untold, *u)
		}
	}
}

// Unseen gives a version of each session that the healthy agent of an end was found not to have told
// of since the last call, which says so: its contradictions are stored like those that show in the
// session itself. What it gives belongs to the caller.
func (b *Behaviour) Unseen() []flow.Session {
	list := b.unseen.found
	b.unseen.found = nil
	return list
}

// ReportKey is a host's agent that logs all, in ten minutes.
type ReportKey struct {
	At     uint32 // the first minute
	Addr   flow.Addr
	Agent  flow.Name
	Source flow.Source
}

func (k ReportKey) hash() uint64 { return hashAddr(k.Addr, uint64(k.At)<<32|uint64(k.Agent)) }

// Reported is in which of these minutes it told of something of TCP, UDP, ICMP and other protocols;
// the lowest bit is the first.
type Reported struct{ Minutes [protoClasses]uint16 }

func (n *Reported) add(o *Reported) {
	for class := range n.Minutes {
		n.Minutes[class] |= o.Minutes[class]
	}
}

// reported counts that agents told of a session that settled.
func (h *hearing) reported(s *flow.Session) {
	at := h.window(s.Settled)
	minute := uint32(max(s.Settled, 0) / minuteMillis)
	for side, e := range [...]*flow.SessionEnd{&s.Client, &s.Server} {
		if !e.Own {
			continue
		}
		k := ReportKey{At: at, Addr: e.Addr}
		if k.Agent, k.Source = ownAgent(s, side, true); k.Source == 0 {
			continue
		}
		if n := h.reports.of(&k); n != nil {
			n.Minutes[protoClass(s.Proto)] |= 1 << ((minute - at) % hostWindow)
		} else {
			h.drop(k.Addr, at)
		}
	}
}

// look takes in the windows that end at a time, and decides what was due then.
func (x *unseen) look(b *Behaviour, o *Observations, at flow.Time) {
	for len(o.Reports) > 0 && minuteTime(o.Reports[0].Key.At+hostWindow) == at {
		x.told(b, &o.Reports[0].Key, &o.Reports[0].N)
		o.Reports = o.Reports[1:]
	}
	x.decide(b, at+1)
}

// told takes in in which of ten minutes a host's agent told of anything.
func (x *unseen) told(b *Behaviour, k *ReportKey, n *Reported) {
	a := x.by[k.Addr]
	if a == nil {
		if len(x.by) >= b.bcfg.MaxHosts {
			b.bm.unheard.Inc()
			b.pressed(boundAgents, k.Addr, 1, minuteTime(k.At))
			return
		}
		a = &agentReports{Addr: k.Addr, Top: k.At}
		x.by[k.Addr] = a
	}
	if a.Named != k.At { // of several the one that comes first by format and name
		a.Named, a.Agent, a.Source = k.At, k.Agent, k.Source
	}
	for class, minutes := range n.Minutes {
		for m := range uint32(hostWindow) {
			if minutes&(1<<m) == 0 {
				continue
			}
			a.note(k.At + m)
			if a.Since[class] == 0 {
				a.Since[class] = k.At + m
			}
		}
	}
}

func (a *agentReports) note(m uint32) {
	if m > a.Top {
		switch by := m - a.Top; {
		case by >= reportSpan:
			a.Bits = [2]uint64{}
		case by >= 64:
			a.Bits[1], a.Bits[0] = a.Bits[0]<<(by-64), 0
		default:
			a.Bits[1] = a.Bits[1]<<by | a.Bits[0]>>(64-by)
			a.Bits[0] <<= by
		}
		a.Top = m
	}
	if back := a.Top - m; back < reportSpan {
		a.Bits[back>>6] |= 1 << (back & 63)
	}
}

func (a *agentReports) at(m uint32) bool {
	back := a.Top - m
	return m <= a.Top && back < reportSpan && a.Bits[back>>6]&(1<<(back&63)) != 0
}

// before says whether the agent told of something of a sort earlier than a minute, just before it
// and never silent for longer than three times its usual interval of the hour before, which it gives;
// silent is for how long it had been.
func (a *agentReports) before(from uint32, class int) (interval, silent uint32, healthy bool) {
	if since := a.Since[class]; since == 0 || since >= from || from < 2*reportSpan || a.Top+60 >= from+reportSpan {
		return 0, 0, false // the last: longer ago than is remembered
	}
	n := uint32(0)
	for m := from - 60; m < from; m++ {
		if a.at(m) {
			n++
		}
	}
	if n < minReports {
		return 0, 0, false
	}
	interval = min(max(3*60/n, 2), maxInterval)
	silent = interval + 1
	for m := from - interval; m < from; m++ {
		if silent++; a.at(m) {
			silent = 0
		}
	}
	return interval, silent, silent <= interval
}

// healthy says whether the agent told of something just before and just after a stretch of minutes,
// and in between was never silent for longer than is usual.
func (a *agentReports) healthy(from, to uint32, class int) bool {
	interval, silent, well := a.before(from, class)
	if !well {
		return false
	}
	for m := from; m <= to+min(interval, unseenWait-1); m++ {
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

// minutes are those in which a session counts, by when it settled.
func (u *suspect) minutes() (from, to uint32) {
	s := &u.Session
	from = uint32(max(s.Settled, 0) / minuteMillis)
	return from, uint32(max(s.Settled+max(s.End-s.Start, 0), 0) / minuteMillis)
}

// windowEnd is when the window ends that a minute is in.
func windowEnd(minute uint32) flow.Time { return minuteTime(minute - minute%hostWindow + hostWindow) }

// take takes in sessions that an end did not tell of.
func (x *unseen) take(b *Behaviour, list []flow.Untold) {
	for i := range list {
		u := &suspect{Untold: list[i]}
		b.bm.unseen.Inc()
		if len(x.waiting) >= maxUntold {
			b.bm.unseenDropped.Inc()
			b.pressed(boundUntold, u.Session.Client.Addr, 1, u.Over)
			continue
		}
		from, _ := u.minutes()
		u.Due = max(u.Over, windowEnd(from))
		heap.Push(&x.waiting, u)
	}
}

// decide looks at those that were due before a time. All windows that were over when they were due
// have been looked at, and none that is over later.
func (x *unseen) decide(b *Behaviour, before flow.Time) {
	for len(x.waiting) > 0 && x.waiting[0].Due < before {
		x.judge(b, heap.Pop(&x.waiting).(*suspect))
	}
}

func (u *suspect) compare(v *suspect) int {
	return cmp.Or(cmp.Compare(u.Due, v.Due), cmp.Compare(u.Session.ID, v.Session.ID), cmp.Compare(u.Over, v.Over))
}

// judge looks at one session: first whether the agent of an end was healthy before it, for of nearly
// all none was, and of those that are left again when it is known what it told after it.
func (x *unseen) judge(b *Behaviour, u *suspect) {
	from, to := u.minutes()
	class := protoClass(u.Session.Proto)
	var by [2]*agentReports
	for side, e := range [...]*flow.SessionEnd{&u.Session.Client, &u.Session.Server} {
		if a := x.by[e.Addr]; a != nil && u.Side[side] {
			by[side] = a
		}
	}
	if !u.Likely {
		for _, a := range by {
			if a != nil {
				_, _, well := a.before(from, class)
				u.Likely = u.Likely || well
			}
		}
		if !u.Likely {
			return
		}
		if known := windowEnd(to + unseenWait - 1); known > u.Due {
			u.Due = known
			heap.Push(&x.waiting, u)
			return
		}
	}
	row := u.Session
	row.Settled = 0
	for side, a := range by {
		if by[side] != nil && !a.healthy(from, to, class) {
			by[side] = nil
		}
	}
	if by[0] == nil && by[1] == nil {
		return
	}
	row.Contradictions |= flow.ContradictUnseen
	row.Version++ // found after it was over, without a further record
	for side, a := range by {
		if a == nil {
			continue
		}
		b.contradict(&flow.Contradiction{ID: flow.ContradictionID(row.ID, flow.ContradictUnseen, side == 1), Kind: flow.ContradictUnseen,
			Session: row, Server: side == 1, Claimant: [2]flow.Name{a.Agent, u.Witness[side]}, Source: [2]flow.Source{a.Source, u.Source[side]},
			Confidence: certainUnseen})
	}
	x.found = append(x.found, row)
}

// tend forgets agents that have been silent for long.
func (x *unseen) tend(now flow.Time) {
	old := uint32(max(now-reportsKeep*minuteMillis, 0) / minuteMillis)
	maps.DeleteFunc(x.by, func(_ flow.Addr, a *agentReports) bool { return a.Top < old })
}

func (x *unseen) save(w *stateWriter) {
	list := make([]agentReports, 0, len(x.by))
	for _, addr := range slices.SortedFunc(maps.Keys(x.by), flow.Addr.Compare) {
		list = append(list, *x.by[addr])
	}
	saveAll(w, list)
	waiting := make([]suspect, 0, len(x.waiting))
	for _, u := range slices.SortedFunc(slices.Values(x.waiting), (*suspect).compare) {
		waiting = append(waiting, *u)
	}
	saveAll(w, waiting)
}

func (x *unseen) load(r *stateReader) {
	for _, a := range loadAll[agentReports](r) {
		x.by[a.Addr] = &a
	}
	for _, u := range loadAll[suspect](r) {
		heap.Push(&x.waiting, &u)
	}
}
