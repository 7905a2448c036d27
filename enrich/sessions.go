package enrich

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
	"github.com/prometheus/client_golang/prometheus"
)

// Sessions merges judged records into sessions: one conversation, however many observers
// told of it. It stands behind judging and only reads the records.
//
// # What belongs together
//
// Of one conversation two exported records are of one session if no more than the idle time
// of the protocol lies between them; so are two records of one host's log. A host's record
// and any other observer's are if no more than Join lies between them, the host's clock
// offset taken off. A session is what hangs together so, and no two sessions of one
// conversation overlap. What hangs together does not depend on the order in which it came.
// Flags do not end a session: they are an OR over a record, observers' clocks differ, and a
// host that is refused tries again. A port used anew within the idle time is the same session.
//
// The record of a translation (NAT) that tells both tuples belongs to the conversation before
// it, and draws the session of the conversation behind it into its own. Where both ends are
// translated it draws in as well what is told halfway: Linux translates the destination before
// it forwards and the source after, so a log of forwarding has the one translated only.
//
// # When it is written
//
// The watermark is event time less the lateness; event time is the latest end seen, capped at
// receipt plus the tolerance, and what Tick says. A session is written once the watermark has
// passed its start by Settle, with what records told that began within that time (in steps of a
// quarter of it): so the first row, which detectors of behaviour read, is the same in whatever
// order and units records came. It is written again at most every UpdateEvery while it changes,
// and last when the idle time has passed, or Join if that is longer. The id is made of the
// conversation and the start at the first writing, when nothing in time can come before it. What
// ended before the watermark is late: counted and kept out. While logs of clouds come in, which
// are late by minutes, the lateness is theirs. As long as records come within the lateness of
// their start, any order of arrival and any cutting into batches end in the same last versions.
// Sessions that were written apart and turn out to be one (a late record, a clock offset, a
// translation) are one from then on: the other is written once more with Into.
//
// # Who counts
//
// Counters, by direction, are those of one observer, never a sum over observers: the end's
// own agent before an exporter that tells both directions in one record, before one that does
// not sample, before one that does; among equals the one that counted more. Client and server
// are told by the best evidence of any observation (see [Orient]). An agent speaks of its own
// end with authority; what others say of that end counts only where it says nothing. A denial
// by anybody is the session's, then audit, then allow.
//
// The verdict is that of the best informed observation: judged at all, least missing, most
// identities known, client and server known; of equals the earliest. Its observed and its
// outcome are the session's.
//
// A Sessions is not safe for concurrent use. Its state is bounded.
type Sessions struct {
	cfg     SessionsConfig
	domains *flow.Domains
	names   *flow.Names
	m       *sessionsMetrics

	lateness, cloudLateness, settle, join, updateEvery flow.Time

	clock   flow.Time
	clouds  flow.Time // the newest time in clouds' logs
	passed  flow.Time // the watermark at the last Collect
	at      flow.Time // the watermark as of which steps are taken and hosts' records joined
	list    []sess
	free    []int32
	chains  map[uint64]int32 // the sessions of conversations of one id
	obs     []obs
	freeObs []int32

	statements     []statement
	freeStatements []int32
	due            sessionDue
	live           int

	hosts  map[hostKey]*hostClock
	agents map[flow.Addr]int64 // when the agent of an address told of something last, in minutes
	strays strays

	principals map[flow.Name]principal
	gathered   gathering
	openings   [maxTranslations + 1]learned // while gathering, by how many translations it is behind

	rows           []flow.Session
	index, indexed flow.Index // of rows and of edges; and of those that were collected
	usual          int        // how many rows there were the last time
	contradictions []flow.Contradiction
	untolds        []flow.Untold
	untoldRoom     untoldRoom
	strangers      uint64    // sessions of hosts not known to have an agent that were not passed on, since the last Collect
	outside        flow.Name // the segment of what is in none and not private
	edges          []flow.EdgeContribution
	usualEdges     int
	uncounted      int // sessions of which a row is written and that are not in the roll-up yet
}

const (
	maxTime = flow.Time(math.MaxInt64)
	// maxPerConversation bounds the sessions of one conversation that are held at a time. The
	// shortest idle time of a second makes 120 of them in the usual lateness.
	maxPerConversation = 256
	// maxPeers bounds the conversations behind a session's translations: of two translations
	// the tuples behind them and halfway.
	maxPeers = 4
)

// sess is a session that is held.
type sess struct {
	conv flow.Conversation
	cid  uint64
	next int32 // of the chain; -1 ends it
	gen  uint32

	// What it covers: all of it; what exporters told; what hosts told. Each is empty where
	// its start is maxTime.
	all, exported, hosts stretch
	told                 flow.Time // the least end of a record; maxTime while there is none

	first  int32 // of its observers; -1 ends them
	nObs   uint8
	more   []uint32               // hashes of observers that are not listed
	extra  uint32                 // adds to the version: records of observers not listed, what was taken away
	toldOf [2]flow.Contradictions // what was found when it was written last, of the lower and the higher end
	said   [2]flow.Contradictions // what was said already

	id      uint64 // 0 until written
	began   flow.Time
	wroteAt flow.Time // the watermark then
	dirty   bool
	stored  bool // a row of this id was written
	tally   tally

	// Its step among those that are due; dueAt is 0 while there is none.
	dueAt, dueStart flow.Time

	learned
	opening

	// What is known of translations; noLinks for nearly all, and never nil.
	*natLinks
}

// learned is what is kept of records beside what their observers counted. Pairs are of the lower
// and the higher end.
type learned struct {
	sentAt   [2]flow.Time // when the end first sent something; maxTime never
	sure     [2]uint8     // that it is the client
	enforced uint8        // bits by flow.Observed
	quality  flow.Quality

	informed informed
	verdict  flow.Verdict
	segment  [2]flow.Name
	workload [2]flow.Name
}

// natLinks is what is known of a session's translations.
type natLinks struct {
	natPart bool
	peers   [maxPeers]peer
	nPeers  uint8
	// before is the conversation before translation where this one is that behind it.
	before    flow.Conversation
	beforeID  uint64 // 0: none
	drawnInto uint64 // the session that was last written with this one in it
}

var noLinks natLinks // only read

// ownLinks gives a session links of its own to write to.
func (s *sess) ownLinks() {
	if s.natLinks == &noLinks {
		s.natLinks = &natLinks{}
	}
}

// peer is a conversation behind a translation.
type peer struct {
	conv flow.Conversation
	cid  uint64
	flip bool // the lower end here is the higher one there
}

// translates says how many ends of conversation c are others in p.
func (p *peer) translates(c *flow.Conversation) (n int) {
	low, lowPort, high, highPort := p.conv.Low, p.conv.LowPort, p.conv.High, p.conv.HighPort
	if p.flip {
		low, lowPort, high, highPort = high, highPort, low, lowPort
	}
	if low != c.Low || lowPort != c.LowPort {
		n++
	}
	if high != c.High || highPort != c.HighPort {
		n++
	}
	return n
}

type stretch struct{ start, end flow.Time }

var nothing = stretch{maxTime, -maxTime}

// never is when ends that sent nothing sent.
var never = [2]flow.Time{maxTime, maxTime}

func (i stretch) empty() bool { return i.start > i.end }

// gap is how much time lies between, zero or less where they touch; maxTime where one is empty.
func (i stretch) gap(j stretch) flow.Time {
	if i.empty() || j.empty() {
		return maxTime
	}
	return max(j.start-i.end, i.start-j.end)
}

func (i *stretch) grow(j stretch) { i.start, i.end = min(i.start, j.start), max(i.end, j.end) }

// informed says how well informed a judged record was.
type informed struct {
	known bool // there is one at all
	score uint16
	start flow.Time
	id    uint64
}

func (a *informed) betterThan(b *informed) bool {
	switch {
	case a.known != b.known:
		return a.known
	case a.score != b.score:
		return a.score > b.score
	case a.start != b.start:
		return a.start < b.start
	}
	return a.id < b.id
}

func informedOf(r *flow.Record) informed {
	v := &r.Verdict
	in := informed{known: true, start: r.Start, id: r.ID}
	if v.Reason != flow.ReasonNone {
		in.score |= 1 << 8
	}
	in.score |= uint16(15-min(15, bitsIn(uint16(v.Missing)))) << 4
	if r.SrcIdentity != flow.NoName {
		in.score += 2
	}
	if r.DstIdentity != flow.NoName {
		in.score += 2
	}
	if r.Oriented != flow.Open {
		in.score++
	}
	return in
}

func bitsIn(v uint16) (n int) {
	for ; v != 0; v &= v - 1 {
		n++
	}
	return n
}

// NewSessions makes a Sessions. domains says which spellings of an account are the same and
// may be nil; names is the table the records' names come from; reg may be nil.
func NewSessions(cfg SessionsConfig, domains *flow.Domains, names *flow.Names, reg prometheus.Registerer) (*Sessions, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	x := &Sessions{cfg: cfg, domains: domains, names: names, m: newSessionsMetrics(reg),
		lateness: ms(cfg.Lateness), cloudLateness: ms(cfg.CloudLateness), settle: ms(cfg.Settle), join: ms(cfg.Join), updateEvery: ms(cfg.UpdateEvery)}
	x.reset()
	return x, nil
}

func (x *Sessions) reset() {
	x.clouds, x.passed, x.at = 0, 0, 0
	x.clock, x.list, x.free, x.obs, x.freeObs, x.due, x.live = 0, nil, nil, nil, nil, nil, 0
	x.statements, x.freeStatements = nil, nil
	x.chains, x.hosts, x.agents = map[uint64]int32{}, map[hostKey]*hostClock{}, map[flow.Addr]int64{}
	x.strays = newStrays()
	x.principals = map[flow.Name]principal{}
	x.rows, x.contradictions, x.edges, x.uncounted = nil, nil, nil, 0
	x.index.Reset()
	x.untolds, x.untoldRoom, x.strangers, x.outside = nil, untoldRoom{}, 0, x.names.Intern("internet")
}

// Observe takes in every record of a judged batch. It only reads the batch and keeps nothing
// of it.
func (x *Sessions) Observe(b *flow.Batch) {
	x.m.received.Add(float64(len(b.Records)))
	for i := range b.Records {
		x.observe(&b.Records[i])
		// Now, and not when the unit ends: which hosts have an agent is asked for as of then, and a unit
		// may hold days.
		x.passed = x.watermark()
		x.advance(x.passed)
	}
}

func (x *Sessions) observe(r *flow.Record) {
	conv, low, ok := flow.ConversationOf(r)
	if !ok {
		x.m.apart.Inc()
		return
	}
	x.at = x.passed
	var o obs
	o.fill(r, low)
	if o.at != 0 && len(x.hosts) > 0 {
		if h := x.hosts[o.host()]; h != nil {
			if offset := h.inForce(o.first, o.last); offset != 0 {
				o.correct(offset)
			}
		}
	}
	t := o.last
	if x.cfg.ClockTolerance > 0 && r.Received != 0 {
		t = min(t, r.Received.Add(x.cfg.ClockTolerance))
	}
	x.clock = max(x.clock, t)
	cid := conv.ID()
	ahead := o.at != 0 && x.cfg.ClockTolerance > 0 && o.first > x.clock+x.join
	if cloud(r.Source) {
		x.clouds = max(x.clouds, o.last)
	}
	if ahead || o.last < x.watermark() {
		x.m.late.Inc()
		if o.at != 0 {
			x.unjoined(&conv, cid, &o, 0, 0, true)
		}
		return
	}
	l := learnedOf(r, low, o.skew != 0)
	i := x.insert(&conv, cid, &o, &l, stretch{o.first, o.last}, o.at != 0)
	if i < 0 {
		x.m.tooMany.Inc()
		return
	}
	if o.at != 0 {
		x.reported(&conv, &o)
	}
	if r.Any(flow.HasNATSrc | flow.HasNATDst) {
		x.translated(i, r, low, stretch{o.first, o.last})
	}
}

// learnedOf is what is kept of one record; corrected, where its stamps were off.
func learnedOf(r *flow.Record, low, corrected bool) learned {
	seen := r.Verdict.Observed
	if r.Verdict.Reason == flow.ReasonNone {
		seen = r.Enforced
	}
	src, dst := ends(low)
	l := learned{sentAt: never, enforced: 1 << (seen & 3), quality: r.Quality, informed: informedOf(r), verdict: r.Verdict}
	switch r.Oriented {
	case flow.Forward:
		l.sure[src] = r.OrientationCertainty
	case flow.Reverse:
		l.sure[dst] = r.OrientationCertainty
	}
	switch {
	case r.OtherHalf:
		l.sentAt = [2]flow.Time{r.Start, r.Start}
	case r.Reporter == flow.ReporterSource && !r.Any(flow.HasPackets|flow.HasBytes):
		// It let something go; whether that went is not said.
	default:
		if !r.Any(flow.HasPackets) || r.PacketsRaw > 0 {
			l.sentAt[src] = r.Start
		}
		if r.RevPacketsRaw > 0 || r.RevBytesRaw > 0 {
			l.sentAt[dst] = r.Start
		}
	}
	if corrected {
		l.informed.score = 0
	}
	l.segment[src], l.segment[dst] = r.SrcSegment, r.DstSegment
	l.workload[src], l.workload[dst] = r.SrcWorkload, r.DstWorkload
	return l
}

// add adds what is kept of others; in which order does not matter.
func (l *learned) add(o *learned) {
	for k := range 2 {
		l.sentAt[k] = min(l.sentAt[k], o.sentAt[k])
		l.sure[k] = max(l.sure[k], o.sure[k])
	}
	l.enforced |= o.enforced
	l.quality |= o.quality
	if o.informed.betterThan(&l.informed) {
		l.informed, l.verdict, l.segment, l.workload = o.informed, o.verdict, o.segment, o.workload
	}
}

// ends gives the places of a record's Src and Dst: 0 the lower end, 1 the higher one.
func ends(low bool) (src, dst int) {
	if low {
		return 0, 1
	}
	return 1, 0
}

// translated takes in that the record of session i tells of a translation.
func (x *Sessions) translated(i int32, r *flow.Record, low bool, span stretch) {
	behind, behindLow, ok, partly := flow.TranslatedOf(r)
	s := &x.list[i]
	s.ownLinks()
	s.natPart = s.natPart || partly
	if !ok {
		return
	}
	peers := [2]peer{{behind, behind.ID(), low != behindLow}}
	n := 1
	if r.Any(flow.HasNATSrc|flow.HasNATSrcPort) && r.Any(flow.HasNATDst|flow.HasNATDstPort) {
		half := *r
		half.Has &^= flow.HasNATSrc | flow.HasNATSrcPort
		if c, cLow, ok, _ := flow.TranslatedOf(&half); ok && c != behind {
			peers[n] = peer{c, c.ID(), low != cLow}
			n++
		}
	}
	for k := range peers[:n] {
		s.addPeer(&peers[k])
	}
	before, beforeID := s.conv, s.cid
	for k := range peers[:n] {
		p := &peers[k]
		j := x.insert(&p.conv, p.cid, nil, nil, span, false)
		if j < 0 {
			x.m.tooMany.Inc()
			continue
		}
		l := &x.list[j]
		l.ownLinks()
		if l.beforeID == 0 || beforeID < l.beforeID {
			l.before, l.beforeID = before, beforeID
		}
	}
}

func (s *sess) addPeer(p *peer) {
	for k := range s.peers[:s.nPeers] {
		if s.peers[k].conv == p.conv {
			return
		}
	}
	if int(s.nPeers) < maxPeers {
		s.peers[s.nPeers] = *p
		s.nPeers++
		return
	}
	// The ones with the lowest ids stay, so that the order of arrival does not show.
	worst := 0
	for k := range s.peers {
		if s.peers[k].cid > s.peers[worst].cid {
			worst = k
		}
	}
	if p.cid < s.peers[worst].cid {
		s.peers[worst] = *p
	}
}

// insert makes an observation part of its session, a new one if need be, and gives it; -1
// where no more sessions of the conversation may be held. Without an observer it only
// covers time. l is what is kept of the record beside it.
func (x *Sessions) insert(conv *flow.Conversation, cid uint64, o *obs, l *learned, span stretch, host bool) int32 {
	idle := x.cfg.Idle.of(conv.Proto)
	at, n, several := int32(-1), 0, false
	first, known := x.chains[cid]
	if known {
		for i := first; i >= 0; i = x.list[i].next {
			n++
			s := &x.list[i]
			if s.conv != *conv {
				continue
			}
			if (at < 0 || s.all.start < x.list[at].all.start) && x.touches(s, o, span, host, idle) {
				at = i
			}
		}
		several = n > 1
	}
	if at < 0 {
		if n >= maxPerConversation {
			return -1
		}
		if x.live >= x.cfg.MaxSessions {
			x.evict()
			first, known = x.chains[cid]
		}
		at = x.create(conv, cid, first, known)
	}
	s := &x.list[at]
	if !host && s.exported.empty() {
		x.settled(s)
	}
	s.all.grow(span)
	if host {
		s.hosts.grow(span)
	} else {
		s.exported.grow(span)
	}
	if o != nil {
		x.take(s, o, l)
	}
	dirty := s.dirty
	s.dirty = true
	switch {
	case s.id == 0:
		if ready := x.ready(s); s.dueAt == 0 || ready < s.dueAt {
			x.queue(at, ready)
		}
	case s.stored && !dirty && s.dueAt > s.wroteAt+x.updateEvery:
		x.queue(at, s.wroteAt+x.updateEvery)
	}
	if several {
		x.unite(at)
	}
	return at
}

// unite makes what is linked to session i part of it.
func (x *Sessions) unite(i int32) {
	cid, idle := x.list[i].cid, x.cfg.Idle.of(x.list[i].conv.Proto)
	for several := true; several; {
		several = false
		for j := x.chains[cid]; j >= 0; j = x.list[j].next {
			if j != i && x.list[j].conv == x.list[i].conv && x.linked(&x.list[i], &x.list[j], idle) {
				x.merge(i, j)
				several = true
				break
			}
		}
	}
}

// touches says whether an observation belongs to a session.
func (x *Sessions) touches(s *sess, o *obs, span stretch, host bool, idle flow.Time) bool {
	gap := s.all.gap(span)
	switch {
	case gap <= 0:
		return true
	case !host:
		return s.exported.gap(span) <= idle || s.hosts.gap(span) <= x.join
	case gap <= x.join:
		return true
	}
	for k := s.first; k >= 0; k = x.obs[k].next {
		if n := &x.obs[k]; n.at != 0 && n.host() == o.host() && (stretch{n.first, n.last}).gap(span) <= idle {
			return true
		}
	}
	return false
}

// linked says whether two sessions of one conversation are one.
func (x *Sessions) linked(a, b *sess, idle flow.Time) bool {
	if a.all.gap(b.all) <= 0 || a.exported.gap(b.exported) <= idle || a.exported.gap(b.hosts) <= x.join ||
		a.hosts.gap(b.exported) <= x.join || a.hosts.gap(b.hosts) <= x.join {
		return true
	}
	for i := a.first; i >= 0; i = x.obs[i].next {
		m := &x.obs[i]
		if m.at == 0 {
			continue
		}
		for k := b.first; k >= 0; k = x.obs[k].next {
			n := &x.obs[k]
			if n.at != 0 && n.host() == m.host() && (stretch{n.first, n.last}).gap(stretch{m.first, m.last}) <= idle {
				return true
			}
		}
	}
	return false
}

func (x *Sessions) create(conv *flow.Conversation, cid uint64, first int32, known bool) int32 {
	if !known {
		first = -1
	}
	var i int32
	if n := len(x.free); n > 0 {
		i = x.free[n-1]
		x.free = x.free[:n-1]
	} else {
		i = int32(len(x.list))
		x.list = append(x.list, sess{})
	}
	s := &x.list[i]
	*s = sess{conv: *conv, cid: cid, next: first, gen: s.gen + 1, all: nothing, exported: nothing, hosts: nothing, told: maxTime, first: -1, learned: learned{sentAt: never}, natLinks: &noLinks}
	x.chains[cid] = i
	x.live++
	return i
}

// drop forgets a session.
func (x *Sessions) drop(i int32) {
	s := &x.list[i]
	x.opened(s)
	for k := s.first; k >= 0; {
		next := x.obs[k].next
		x.freeObs = append(x.freeObs, k)
		k = next
	}
	if first := x.chains[s.cid]; first == i {
		if s.next < 0 {
			delete(x.chains, s.cid)
		} else {
			x.chains[s.cid] = s.next
		}
	} else {
		for j := first; ; j = x.list[j].next {
			if x.list[j].next == i {
				x.list[j].next = s.next
				break
			}
		}
	}
	*s = sess{gen: s.gen + 1, next: -1, first: -1, natLinks: &noLinks}
	x.free = append(x.free, i)
	x.live--
}

// merge makes session b part of a.
func (x *Sessions) merge(a, b int32) {
	s, o := &x.list[a], &x.list[b]
	s.all.grow(o.all)
	s.exported.grow(o.exported)
	s.hosts.grow(o.hosts)
	s.told = min(s.told, o.told)
	x.mergeOpenings(s, o)
	for k := o.first; k >= 0; k = x.obs[k].next {
		n := x.obs[k]
		x.addObs(s, &n)
	}
	for _, h := range o.more {
		x.addMore(s, h)
	}
	s.extra += o.extra
	s.dirty = true
	for k := range 2 {
		s.said[k] |= o.said[k]
	}
	s.learned.add(&o.learned)
	if o.natLinks != &noLinks {
		s.ownLinks()
	}
	if o.natPart {
		s.natPart = true
	}
	for k := range o.peers[:o.nPeers] {
		s.addPeer(&o.peers[k])
	}
	if o.beforeID != 0 && (s.beforeID == 0 || o.beforeID < s.beforeID) {
		s.before, s.beforeID, s.drawnInto = o.before, o.beforeID, o.drawnInto
	}
	x.settled(s)
	x.settled(o)
	if o.dueAt < s.dueAt {
		x.queue(a, o.dueAt)
	}
	switch {
	case o.id == 0:
	case s.id == 0:
		s.id, s.began, s.wroteAt, s.stored, s.tally = o.id, o.began, o.wroteAt, o.stored, o.tally
	default:
		from, into, stored, was := o.tomb(), s.id, o.stored, o.tally
		if o.began < s.began {
			from, into, stored, was = s.tomb(), o.id, s.stored, s.tally
			s.id, s.began, s.stored, s.tally = o.id, o.began, o.stored, o.tally
		}
		// One that was not written yet may have been named by others that became part of it.
		x.supersede(from, into)
		if stored {
			x.uncount(&s.conv, from.Began, &was, true)
		} else {
			x.m.first.Inc()
		}
	}
	x.drop(b)
}

// settled forgets that what hosts told of s waits for exporters: it is about to find some.
func (x *Sessions) settled(s *sess) {
	if s.id == 0 || x.strays.live == 0 {
		return
	}
	x.strays.each(s.cid, func(st *stray) bool {
		if st.sess == s.id {
			x.strays.kill(st)
		}
		return true
	})
}

// addObs makes an observer's records part of a session.
func (x *Sessions) addObs(s *sess, o *obs) {
	worst := int32(-1)
	for k := s.first; k >= 0; k = x.obs[k].next {
		n := &x.obs[k]
		if n.obsKey == o.obsKey {
			x.mergeObs(n, o)
			return
		}
		if worst < 0 || x.standsBefore(&x.obs[worst].obsKey, &n.obsKey) {
			worst = k
		}
	}
	if int(s.nObs) < flow.MaxObservers {
		var k int32
		if n := len(x.freeObs); n > 0 {
			k = x.freeObs[n-1]
			x.freeObs = x.freeObs[:n-1]
			x.obs[k] = *o
		} else {
			k = int32(len(x.obs))
			x.obs = append(x.obs, *o)
		}
		x.obs[k].next = s.first
		s.first = k
		s.nObs++
		return
	}
	x.m.more.Inc()
	out := o
	if w := &x.obs[worst]; x.standsBefore(&o.obsKey, &w.obsKey) {
		old, next := *w, w.next
		*w, out = *o, &old
		w.next = next
	}
	s.extra += out.records
	x.addMore(s, x.hashObs(&out.obsKey))
}

// maxMore is how many observers beyond those listed are told apart.
const maxMore = 64 - flow.MaxObservers

func (x *Sessions) addMore(s *sess, hash uint32) {
	i, known := slices.BinarySearch(s.more, hash)
	if !known && len(s.more) < maxMore {
		s.more = slices.Insert(s.more, i, hash)
	}
}

func (x *Sessions) hashObs(k *obsKey) uint32 {
	h := k.exporter.Hi*0x9e3779b97f4a7c15 ^ k.exporter.Lo
	for _, b := range []byte(x.names.Text(k.observer)) {
		h = (h ^ uint64(b)) * 0x100000001b3
	}
	h = (h ^ uint64(k.domain)<<32 ^ uint64(k.source)<<16 ^ uint64(k.at)<<8 ^ uint64(k.dir)) * 0x9e3779b97f4a7c15
	return uint32(h >> 32)
}

// standsBefore orders observers: those at an end first. The order is total and of what they
// are alone, so an observer that is not listed never would be again.
func (x *Sessions) standsBefore(a, b *obsKey) bool {
	c := cmp.Or(-cmp.Compare(min(a.at, 1), min(b.at, 1)), a.exporter.Compare(b.exporter), cmp.Compare(a.domain, b.domain),
		cmp.Compare(a.source, b.source), cmp.Compare(a.at, b.at), cmp.Compare(a.dir, b.dir))
	if c == 0 && a.observer != b.observer {
		c = strings.Compare(x.names.Text(a.observer), x.names.Text(b.observer))
	}
	return c < 0
}

// least gives the name that stands for two: of texts the lesser one, of nothing the other.
func (x *Sessions) least(a, b flow.Name) flow.Name {
	switch {
	case a == b || b == flow.NoName:
		return a
	case a == flow.NoName || x.names.Text(b) < x.names.Text(a):
		return b
	}
	return a
}
