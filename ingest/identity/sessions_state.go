package identity

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/agent"
)

const (
	// sameStart is how far apart two starts of one session may be told: one that is sent again
	// tells its delay in whole seconds.
	sameStart = 10 * time.Second
	// rememberSessions is how long after its end a session is kept, for what comes late.
	rememberSessions = 24 * time.Hour
	// maxSessions bounds the sessions that are held; one is half a kilobyte.
	maxSessions = 1 << 18
	// maxStays is how many addresses one after another, per family, make a session go on as
	// another.
	maxStays = 64
	// maxUses is how often the use of one id is remembered; the oldest are forgotten first.
	maxUses = 128
	// maxAtAddr bounds the sessions of an address that are held against each other. Beyond it
	// the address is that of a proxy: its users are told with the ends that the log tells.
	maxAtAddr = 4096
	// maxBoots is how many starts of a host are remembered, maxHosts of how many.
	maxBoots = 16
	maxHosts = 1 << 16
)

// sessionState pairs events. It is a state machine over events and learned facts, and knows
// no clock.
//
// Sessions of one host and id are a group: ids are used again. What a group tells follows
// from its sessions, from the starts of its host, from the devices that its users are on and,
// where an address has one user at a time, from the other sessions at its addresses.
type sessionState struct {
	cfg    *SessionsConfig
	shared bool // several users may hold an address at a time

	groups map[string]*sessionGroup // by the session's name, as in facts
	byHost map[string]map[*sessionGroup]bool
	byAddr map[flow.Addr]map[*sessionGroup]bool
	byOn   map[string]map[*sessionGroup]bool
	boots  map[string][]boot // of hosts, by time
	hosts  *knownHosts
	count  int // sessions
	looked flow.Time
	facts  int // told and not forgotten
}

type sessionGroup struct {
	name, host string
	sessions   []*session // by begin
	told       map[factIdentity]flow.Fact
	floor      flow.Time // what came before is forgotten
}

// session is one use of an id.
type session struct {
	Began  flow.Time `json:"began,omitempty"` // 0: not told
	Start  bool      `json:"start,omitempty"` // it was told by a start
	First  flow.Time `json:"first"`           // the first word of it
	Last   flow.Time `json:"last"`            // the last word before its stop
	Stop   flow.Time `json:"stop,omitempty"`
	User   string    `json:"user,omitempty"`
	Device string    `json:"device,omitempty"`
	On     string    `json:"on,omitempty"`
	Stays  [2][]stay `json:"stays"`         // IPv4, IPv6
	Boot   boot      `json:"boot,omitzero"` // of those that are forgotten the first that ended it
}

// stay is at an address, from its first to its last word there. The zero address is that
// the user had left.
type stay struct {
	Addr  flow.Addr `json:"addr"`
	First flow.Time `json:"first"`
	Last  flow.Time `json:"last"`
	// Left is that somebody else came there, where that session is forgotten; 0 if nobody did.
	Left      flow.Time     `json:"left,omitempty"`
	LeftSlack time.Duration `json:"leftSlack,omitempty"`
}

// boot is that a host ended all its sessions: at that time, or, where it merely began anew,
// at some time before.
type boot struct {
	At    flow.Time `json:"at"`
	Exact bool      `json:"exact,omitempty"`
}

// dirtySessions are the groups whose facts may have changed.
type dirtySessions map[*sessionGroup]bool

func newSessionState(cfg *SessionsConfig, shared bool) *sessionState {
	return &sessionState{cfg: cfg, shared: shared, groups: map[string]*sessionGroup{}, byHost: map[string]map[*sessionGroup]bool{},
		byAddr: map[flow.Addr]map[*sessionGroup]bool{}, byOn: map[string]map[*sessionGroup]bool{}, boots: map[string][]boot{}, hosts: newKnownHosts()}
}

// index puts a group under a key.
func index[K comparable](in map[K]map[*sessionGroup]bool, key K, g *sessionGroup) {
	m := in[key]
	if m == nil {
		m = map[*sessionGroup]bool{}
		in[key] = m
	}
	m[g] = true
}

func unindex[K comparable](in map[K]map[*sessionGroup]bool, key K, g *sessionGroup) {
	delete(in[key], g)
	if len(in[key]) == 0 {
		delete(in, key)
	}
}

// begin is from when the session is known to have been.
func (s *session) begin() flow.Time {
	if s.Began != 0 {
		return s.Began
	}
	return s.First
}

// apply takes in an event and notes which groups it bears on.
func (st *sessionState) apply(ev *agent.SessionEvent, dirty dirtySessions) sessionOutcome {
	if ev.At <= 0 {
		return sessionInvalid
	}
	if ev.Kind == agent.SessionOn || ev.Kind == agent.SessionOff {
		return st.boot(ev, dirty)
	}
	name := ev.Host + "/" + ev.Session
	g, s := st.find(name, ev)
	if g != nil && ev.At.Add(sameStart) < g.floor {
		return sessionTaken // told when it was new
	}
	if (s == nil || s.full(ev)) && st.count >= maxSessions {
		if !st.makeRoom(ev.At, dirty) {
			return sessionFull
		}
		g, s = st.find(name, ev)
	}
	if g == nil {
		g = &sessionGroup{name: name, host: ev.Host, told: map[factIdentity]flow.Fact{}}
		st.groups[name] = g
		index(st.byHost, ev.Host, g)
	}
	outcome := sessionTaken
	if s != nil && s.full(ev) {
		// It goes on as one of its own, and the one before ends where that begins.
		s = &session{Began: ev.At, First: ev.At, Last: ev.At, User: s.User, Device: s.Device, On: s.On}
		g.sessions = append(g.sessions, s)
		st.count++
	}
	if s == nil {
		s = &session{First: ev.At, Last: ev.At}
		g.sessions = append(g.sessions, s)
		st.count++
		if ev.Kind == agent.SessionStop && ev.Began == 0 {
			outcome = sessionUnpaired
		}
	}
	st.merge(g, s, ev)
	slices.SortStableFunc(g.sessions, func(a, b *session) int { return cmp.Compare(a.begin(), b.begin()) })
	st.spread(g, dirty)
	return outcome
}

// find finds the group and the session that an event is about; nil where they are new.
func (st *sessionState) find(name string, ev *agent.SessionEvent) (*sessionGroup, *session) {
	g := st.groups[name]
	if g == nil {
		return nil, nil
	}
	return g, st.of(g, ev)
}

// of finds the session of a group that an event is about; nil if it is a new one.
func (st *sessionState) of(g *sessionGroup, ev *agent.SessionEvent) *session {
	start := ev.Kind == agent.SessionStart
	var before, after *session
	for _, s := range g.sessions {
		if s.begin() <= ev.At.Add(sameStart) {
			before = s
		} else if after == nil {
			after = s
		}
	}
	if before != nil {
		over := st.over(g, before)
		switch {
		case start && before.Start && ev.At.Sub(before.Began) <= sameStart: // told twice
			return before
		case start && !before.Start && ev.At.Sub(before.begin()) <= sameStart:
			return before
		case start:
		case over == 0 || ev.At <= over.Add(sameStart):
			return before
		case ev.Kind == agent.SessionStop && before.Stop != 0 && (ev.Began == 0 || ev.Began <= before.begin().Add(sameStart)):
			return before // a second word of its end
		}
	}
	// What came before its start: an end, or a word in between.
	if after != nil && after.Began == 0 || after != nil && !after.Start && after.Began <= ev.At.Add(sameStart) {
		return after
	}
	return nil
}

// over is when a session ended as far as was told; 0 if it goes on.
func (st *sessionState) over(g *sessionGroup, s *session) flow.Time {
	end := s.Stop
	ends := func(b boot) {
		if s.endedBy(b) && (end == 0 || b.At < end) {
			end = b.At
		}
	}
	ends(s.Boot)
	for _, b := range st.boots[g.host] {
		ends(b)
	}
	return end
}

// endedBy says whether a session was there at a boot, and not heard after it.
func (s *session) endedBy(b boot) bool { return b.At > s.begin() && b.At >= s.Last }

// full says whether an event brings a session that was at too many addresses to another.
func (s *session) full(ev *agent.SessionEvent) bool {
	stays := s.Stays[family(ev.Addr)]
	n := len(stays)
	return n >= maxStays && !ev.Addr.IsZero() && stays[n-1].Addr != ev.Addr.Canonical() && ev.At > stays[n-1].Last && ev.Kind == agent.SessionUpdate
}

// merge takes an event into its session.
func (st *sessionState) merge(g *sessionGroup, s *session, ev *agent.SessionEvent) {
	s.First = min(s.First, ev.At)
	start := ev.Kind == agent.SessionStart
	switch {
	case start && !s.Start:
		s.Began, s.Start = ev.At, true
	case ev.Began != 0 && s.Began == 0:
		s.Began = ev.Began
	}
	if ev.Kind == agent.SessionStop {
		if s.Stop == 0 || ev.At < s.Stop {
			s.Stop = ev.At
		}
	} else {
		s.Last = max(s.Last, ev.At)
	}
	if ev.User != "" && (start || s.User == "") {
		s.User = ev.User
	}
	if ev.Device != "" && (start || s.Device == "") {
		s.Device = ev.Device
	}
	if ev.On != "" && s.On == "" {
		s.On = ev.On
		index(st.byOn, s.On, g)
		index(st.byOn, flow.HostLabel(s.On), g)
	}
	switch {
	case ev.Kind == agent.SessionAway:
		for f := range s.Stays {
			s.observe(f, flow.Addr{}, ev.At)
		}
	case !ev.Addr.IsZero():
		addr := ev.Addr.Canonical()
		s.observe(family(addr), addr, ev.At)
		index(st.byAddr, addr, g)
	}
}

func family(a flow.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// observe notes that the session was at an address then.
func (s *session) observe(f int, addr flow.Addr, at flow.Time) {
	stays := s.Stays[f]
	i := len(stays)
	for i > 0 && stays[i-1].First > at {
		i--
	}
	if i < len(stays) && len(stays) >= 2*maxStays {
		return // ever more in between: what is known stays as it is
	}
	switch {
	case i > 0 && stays[i-1].Addr == addr:
		last := &stays[i-1]
		if last.Last = max(last.Last, at); at > last.Left {
			last.Left, last.LeftSlack = 0, 0
		}
		return
	case i > 0 && stays[i-1].Last > at:
		// Elsewhere in between: what is certain of that stay is its ends.
		whole := stays[i-1]
		stays[i-1] = stay{Addr: whole.Addr, First: whole.First, Last: whole.First}
		whole.First = whole.Last
		stays = slices.Insert(stays, i, stay{Addr: addr, First: at, Last: at}, whole)
	case i < len(stays) && stays[i].Addr == addr:
		stays[i].First = at
		return
	default:
		stays = slices.Insert(stays, i, stay{Addr: addr, First: at, Last: at})
	}
	s.Stays[f] = stays
}

// boot takes in that a host ended all its sessions.
func (st *sessionState) boot(ev *agent.SessionEvent, dirty dirtySessions) sessionOutcome {
	b := boot{At: ev.At, Exact: ev.Kind == agent.SessionOff}
	boots := st.boots[ev.Host]
	if boots == nil && len(st.boots) >= maxHosts {
		return sessionFull
	}
	i, found := slices.BinarySearchFunc(boots, b, func(a, b boot) int { return cmp.Compare(a.At, b.At) })
	if found {
		boots[i].Exact = boots[i].Exact || b.Exact
	} else {
		boots = slices.Insert(boots, i, b)
	}
	if len(boots) > maxBoots {
		for g := range st.byHost[ev.Host] {
			for _, s := range g.sessions {
				if s.endedBy(boots[0]) && (boots[0].At < s.Boot.At || !s.endedBy(s.Boot)) {
					s.Boot = boots[0]
				}
			}
		}
		boots = slices.Delete(boots, 0, 1)
	}
	st.boots[ev.Host] = boots
	for g := range st.byHost[ev.Host] {
		st.spread(g, dirty)
	}
	return sessionTaken
}

// spread notes a group and, where an address has one user at a time, those that share one
// and had not left it before the group came there.
func (st *sessionState) spread(g *sessionGroup, dirty dirtySessions) {
	dirty[g] = true
	if st.shared {
		return
	}
	since := map[flow.Addr]flow.Time{}
	came := func(addr flow.Addr, at flow.Time) {
		if t, ok := since[addr]; !addr.IsZero() && (!ok || at < t) {
			since[addr] = at
		}
	}
	for _, s := range g.sessions {
		for f := range s.Stays {
			for i := range s.Stays[f] {
				came(s.Stays[f][i].Addr, s.Stays[f][i].First)
			}
		}
	}
	for id := range g.told {
		came(id.addr, id.since)
	}
	for addr, from := range since {
		if len(st.byAddr[addr]) > maxAtAddr {
			continue
		}
		for other := range st.byAddr[addr] {
			if dirty[other] {
				continue
			}
			for id, f := range other.told {
				if id.addr == addr && (f.Until == 0 || f.Until >= from) {
					dirty[other] = true
					break
				}
			}
		}
	}
}

// all are all groups.
func (st *sessionState) all() dirtySessions {
	out := make(dirtySessions, len(st.groups))
	for _, g := range st.groups {
		out[g] = true
	}
	return out
}

// changes is what to tell so that whoever was told so far knows what the state says, and
// notes it as told.
func (st *sessionState) changes(dirty dirtySessions) (out []flow.Fact) {
	groups := slices.SortedFunc(maps.Keys(dirty), func(a, b *sessionGroup) int { return strings.Compare(a.name, b.name) })
	for _, g := range groups {
		now := st.derive(g)
		from := len(out)
		for _, f := range now {
			if before, told := g.told[identityOf(&f)]; !told || !sameFact(&before, &f) {
				out = append(out, f)
			}
		}
		said := make(map[factIdentity]bool, len(now))
		for i := range now {
			said[identityOf(&now[i])] = true
		}
		for id, f := range g.told {
			if !said[id] && f.Until != f.Since {
				f.Until, f.SinceSlack, f.UntilSlack = f.Since, 0, 0 // taken back
				out = append(out, f)
			}
		}
		slices.SortFunc(out[from:], compareFacts)
		for i := range out[from:] {
			st.noteIn(g, &out[from+i])
		}
	}
	st.trim(groups)
	return out
}

func sameFact(a, b *flow.Fact) bool {
	return a.Until == b.Until && a.SinceSlack == b.SinceSlack && a.UntilSlack == b.UntilSlack && a.User == b.User && a.Device == b.Device
}

func (st *sessionState) noteIn(g *sessionGroup, f *flow.Fact) {
	if _, told := g.told[identityOf(f)]; !told {
		st.facts++
	}
	g.told[identityOf(f)] = *f
}

// note takes in that a fact was told.
func (st *sessionState) note(f *flow.Fact) {
	if g := st.groups[f.Session]; g != nil {
		st.noteIn(g, f)
	}
}

// derive is what a group says, a fact once.
func (st *sessionState) derive(g *sessionGroup) (out []flow.Fact) {
	seen := map[factIdentity]bool{}
	add := func(f flow.Fact) {
		f.SinceSlack = max(f.SinceSlack, 0)
		if f.Until != 0 {
			if f.Until <= f.Since {
				return
			}
			f.UntilSlack = min(max(f.UntilSlack, 0), f.Until.Sub(f.Since))
		}
		if id := identityOf(&f); !seen[id] {
			seen[id] = true
			out = append(out, f)
		}
	}
	for i, s := range g.sessions {
		if s.User == "" {
			continue
		}
		end, slack := st.end(g, i)
		for f := range s.Stays {
			for k := range s.Stays[f] {
				if s.Stays[f][k].Addr.IsZero() {
					continue
				}
				fact := flow.Fact{Addr: s.Stays[f][k].Addr, Session: g.name, User: s.User, Device: s.Device}
				s.place(&fact, f, k, end, slack)
				if !st.shared {
					st.evict(g, s, s.Stays[f][k].Last, &fact)
				}
				add(fact)
			}
		}
		begin := s.begin()
		for _, h := range st.hosts.of(s.On) {
			if h.Until != 0 && h.Until <= begin {
				continue
			}
			fact := flow.Fact{Addr: h.Addr, Session: g.name, User: s.User, Device: s.Device, Since: begin}
			if h.Since > begin {
				fact.Since, fact.SinceSlack = h.Since, h.SinceSlack
			}
			fact.Until, fact.UntilSlack = earlier(end, slack, h.Until, h.UntilSlack)
			add(fact)
		}
	}
	return out
}

// place says when the stay k of a family was.
func (s *session) place(fact *flow.Fact, f, k int, end flow.Time, slack time.Duration) {
	at := &s.Stays[f][k]
	fact.Since = at.First
	switch {
	case k > 0 && s.Stays[f][k-1].Addr.IsZero():
	case k > 0:
		fact.SinceSlack = at.First.Sub(s.Stays[f][k-1].Last)
	default:
		// It may have had the address since it began.
		fact.SinceSlack = max(at.First.Sub(s.begin()), 0)
	}
	fact.Until, fact.UntilSlack = end, slack
	if k+1 < len(s.Stays[f]) {
		if next := &s.Stays[f][k+1]; end == 0 || next.First < end {
			fact.Until, fact.UntilSlack = next.First, 0
			if !next.Addr.IsZero() {
				fact.UntilSlack = next.First.Sub(at.Last)
			}
		}
	}
	if at.Left != 0 && (fact.Until == 0 || at.Left < fact.Until) {
		fact.Until, fact.UntilSlack = at.Left, at.LeftSlack
	}
}

// earlier is when something ended that two things end, each at a time or up to its slack
// before: 0 if neither does. Nothing is certain from when either may have.
func earlier(a flow.Time, slackA time.Duration, b flow.Time, slackB time.Duration) (flow.Time, time.Duration) {
	switch {
	case a == 0:
		return b, slackB
	case b == 0:
		return a, slackA
	}
	end := min(a, b)
	return end, max(end.Sub(min(a.Add(-slackA), b.Add(-slackB))), 0)
}

// end is when the session i of a group ends as it looks now, and how far before it may have
// ended already; 0 if nothing says so.
func (st *sessionState) end(g *sessionGroup, i int) (end flow.Time, slack time.Duration) {
	s := g.sessions[i]
	by := func(at flow.Time, uncertain time.Duration) {
		if at > 0 && (end == 0 || at < end) {
			end, slack = at, uncertain
		}
	}
	by(s.Stop, 0)
	if i+1 < len(g.sessions) {
		next := g.sessions[i+1].begin()
		by(next, max(next.Sub(s.Last), 0))
	}
	ends := func(b boot) {
		switch {
		case !s.endedBy(b):
		case b.Exact:
			by(b.At, 0)
		default:
			by(b.At, b.At.Sub(s.Last))
		}
	}
	ends(s.Boot)
	for _, b := range st.boots[g.host] {
		ends(b)
	}
	if st.cfg.Idle > 0 {
		end, slack = earlier(end, slack, s.Last.Add(st.cfg.Idle), 0)
	}
	if st.cfg.MaxLength > 0 {
		end, slack = earlier(end, slack, s.begin().Add(st.cfg.MaxLength), 0)
	}
	return end, slack
}

// evict ends a fact where another session began to use its address: the stop of the one
// before has been lost, or is on its way.
func (st *sessionState) evict(g *sessionGroup, s *session, last flow.Time, fact *flow.Fact) {
	if len(st.byAddr[fact.Addr]) > maxAtAddr {
		return
	}
	for other := range st.byAddr[fact.Addr] {
		for _, o := range other.sessions {
			if o == s {
				continue
			}
			stays := o.Stays[family(fact.Addr)]
			for k := range stays {
				since := stays[k].First
				if stays[k].Addr != fact.Addr || since <= fact.Since || fact.Until != 0 && since >= fact.Until {
					continue
				}
				if o.Stop != 0 && o.Stop <= since {
					continue // an end alone says nothing of a beginning
				}
				if last > since {
					continue // both were heard there: it is not known who has it
				}
				fact.Until, fact.UntilSlack = since, max(since.Sub(last), 0)
			}
		}
	}
}

// makeRoom drops sessions that have ended and of which all is told, looking through them once
// a minute of the events' time at most.
func (st *sessionState) makeRoom(now flow.Time, dirty dirtySessions) bool {
	if now >= st.looked && now.Sub(st.looked) < time.Minute {
		return false
	}
	st.looked = now
	return st.forgetTo(now, 0, dirty) < maxSessions
}

// forget drops what ended longer ago than late events come.
func (st *sessionState) forget(now flow.Time) {
	st.forgetTo(now, rememberSessions, nil)
	bears := dirtySessions{}
	old := st.hosts.old(now)
	for i := range old {
		for _, name := range hostNames(&old[i]) {
			st.on(name, func(g *sessionGroup) { bears[g] = true })
		}
	}
	st.keeping(bears, func() {
		for i := range old {
			st.hosts.remove(&old[i])
		}
	})
	for host, boots := range st.boots {
		boots = slices.DeleteFunc(boots, func(b boot) bool { return b.At.Add(rememberSessions) < now && len(st.byHost[host]) == 0 })
		if st.boots[host] = boots; len(boots) == 0 {
			delete(st.boots, host)
		}
	}
}

// on gives the groups whose users are on a host, some of them twice.
func (st *sessionState) on(host string, each func(*sessionGroup)) {
	for _, name := range [...]string{host, flow.HostLabel(host)} {
		for g := range st.byOn[name] {
			each(g)
		}
	}
}

// forgetTo drops sessions that ended so long before now, and says how many are left. Of a
// group they are dropped from the first on, of one that is dirty none.
func (st *sessionState) forgetTo(now flow.Time, keep time.Duration, dirty dirtySessions) int {
	old := map[*sessionGroup]int{}
	for _, g := range st.groups {
		if dirty[g] {
			continue
		}
		n := 0
		for i, s := range g.sessions {
			end, _ := st.end(g, i)
			if end == 0 && s.User == "" {
				end = s.Last
			}
			if end == 0 || end.Add(keep) >= now {
				break
			}
			n++
		}
		if n > 0 {
			old[g] = n
		}
	}
	st.drop(old, dirty)
	return st.count
}

// trim forgets the oldest sessions of groups that have more than are remembered.
func (st *sessionState) trim(groups []*sessionGroup) {
	old := map[*sessionGroup]int{}
	for _, g := range groups {
		if n := len(g.sessions) - maxUses; n > 0 {
			old[g] = n
		}
	}
	st.drop(old, nil)
}

// drop forgets the first sessions of groups, and groups that have no others. Of groups that
// are dirty not all is told.
func (st *sessionState) drop(old map[*sessionGroup]int, dirty dirtySessions) {
	if len(old) == 0 {
		return
	}
	bears, came := dirtySessions{}, map[flow.Addr]map[flow.Time]bool{}
	for g, n := range old {
		if n < len(g.sessions) {
			bears[g] = true
		}
		for _, s := range g.sessions[:n] {
			for f := range s.Stays {
				for _, at := range s.Stays[f] {
					if came[at.Addr] == nil {
						came[at.Addr] = map[flow.Time]bool{}
					}
					came[at.Addr][at.First] = true
				}
			}
		}
	}
	if !st.shared {
		for addr := range came { // who lost it to one of them lost it when that came
			for g := range st.byAddr[addr] {
				lost := dirty[g]
				for id, f := range g.told {
					lost = lost || id.addr == addr && came[addr][f.Until]
				}
				if lost && old[g] < len(g.sessions) {
					bears[g] = true
				}
			}
		}
	}
	st.keeping(bears, func() {
		for g, n := range old {
			st.count -= n
			for _, s := range g.sessions[:n] {
				st.unindexSession(g, s)
			}
			if g.sessions = slices.Delete(g.sessions, 0, n); len(g.sessions) == 0 {
				st.facts -= len(g.told)
				delete(st.groups, g.name)
				unindex(st.byHost, g.host, g)
				continue
			}
			g.floor = g.sessions[0].begin()
			for _, s := range g.sessions { // what they have in common with those that are gone
				st.indexSession(g, s)
			}
		}
	})
}

// keeping forgets something and sees to it that what the groups that it bears on told stays
// as it was: a fact that nothing tells any more is history, and one that ended because of
// what is forgotten has ended all the same.
func (st *sessionState) keeping(groups dirtySessions, forget func()) {
	before := make(map[*sessionGroup][]flow.Fact, len(groups))
	for g := range groups {
		before[g] = st.derive(g)
	}
	forget()
	for g, facts := range before {
		now := map[factIdentity]flow.Fact{}
		for _, f := range st.derive(g) {
			now[identityOf(&f)] = f
		}
		for i := range facts {
			f := &facts[i]
			after, still := now[identityOf(f)]
			switch {
			case still && (after.Until != f.Until || after.UntilSlack != f.UntilSlack):
				g.left(f)
			case !still:
				if _, told := g.told[identityOf(f)]; told {
					delete(g.told, identityOf(f))
					st.facts--
				}
			}
		}
	}
}

// left notes when a stay ended that a fact tells of.
func (g *sessionGroup) left(fact *flow.Fact) {
	for _, s := range g.sessions {
		stays := s.Stays[family(fact.Addr)]
		for k := range stays {
			if stays[k].Addr == fact.Addr && stays[k].First == fact.Since {
				stays[k].Left, stays[k].LeftSlack = fact.Until, fact.UntilSlack
			}
		}
	}
}

// indexSession puts a group where its session is looked for.
func (st *sessionState) indexSession(g *sessionGroup, s *session) {
	if s.On != "" {
		index(st.byOn, s.On, g)
		index(st.byOn, flow.HostLabel(s.On), g)
	}
	for f := range s.Stays {
		for k := range s.Stays[f] {
			if a := s.Stays[f][k].Addr; !a.IsZero() {
				index(st.byAddr, a, g)
			}
		}
	}
}

func (st *sessionState) unindexSession(g *sessionGroup, s *session) {
	if s.On != "" {
		unindex(st.byOn, s.On, g)
		unindex(st.byOn, flow.HostLabel(s.On), g)
	}
	for f := range s.Stays {
		for k := range s.Stays[f] {
			unindex(st.byAddr, s.Stays[f][k].Addr, g)
		}
	}
}

// savedSessions is the state in a file.
type savedSessions struct {
	Groups []savedGroup      `json:"groups,omitempty"`
	Boots  map[string][]boot `json:"boots,omitempty"`
	Hosts  []flow.Fact       `json:"hosts,omitempty"`
}

type savedGroup struct {
	Name     string      `json:"name"`
	Host     string      `json:"host"`
	Sessions []*session  `json:"sessions"`
	Told     []flow.Fact `json:"told,omitempty"`
	Floor    flow.Time   `json:"floor,omitempty"`
}

func (st *sessionState) save() (out savedSessions) {
	for _, name := range slices.Sorted(maps.Keys(st.groups)) {
		g := st.groups[name]
		saved := savedGroup{Name: name, Host: g.host, Sessions: g.sessions, Floor: g.floor}
		for _, f := range g.told {
			saved.Told = append(saved.Told, f)
		}
		slices.SortFunc(saved.Told, compareFacts)
		out.Groups = append(out.Groups, saved)
	}
	out.Boots, out.Hosts = st.boots, st.hosts.save()
	return out
}

func (st *sessionState) restore(in *savedSessions) {
	for i := range in.Groups {
		saved := &in.Groups[i]
		g := &sessionGroup{name: saved.Name, host: saved.Host, sessions: saved.Sessions, told: map[factIdentity]flow.Fact{}, floor: saved.Floor}
		st.groups[g.name] = g
		st.count += len(g.sessions)
		index(st.byHost, g.host, g)
		for k := range saved.Told {
			st.noteIn(g, &saved.Told[k])
		}
		for _, s := range g.sessions {
			st.indexSession(g, s)
		}
	}
	if in.Boots != nil {
		st.boots = in.Boots
	}
	for i := range in.Hosts {
		st.hosts.put(&in.Hosts[i])
	}
}
