package enrich

import (
	"cmp"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
)

// sessionStep is the next step of a session: to be written, or to be closed.
type sessionStep struct {
	at    flow.Time // taken when the watermark has passed it
	cid   uint64
	start flow.Time
	index int32
	gen   uint32
}

func (a *sessionStep) before(b *sessionStep) bool {
	switch {
	case a.at != b.at:
		return a.at < b.at
	case a.cid != b.cid:
		return a.cid < b.cid
	case a.start != b.start:
		return a.start < b.start
	}
	return a.index < b.index
}

// sessionDue is a binary heap, the earliest step first. A step counts if its session is still
// held (by gen) and it is the session's latest (by dueAt). It is written out beside dueHeap: one
// generic heap for both calls before through a dictionary, and made merging 9 % dearer.
type sessionDue []sessionStep

func (h *sessionDue) push(d sessionStep) {
	s := append(*h, d)
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if !s[i].before(&s[up]) {
			break
		}
		s[i], s[up] = s[up], s[i]
		i = up
	}
	*h = s
}

func (h *sessionDue) pop() sessionStep {
	s := *h
	first, n := s[0], len(s)-1
	s[0] = s[n]
	s = s[:n]
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < n; c++ {
			if s[c].before(&s[least]) {
				least = c
			}
		}
		if least == i {
			break
		}
		s[i], s[least] = s[least], s[i]
		i = least
	}
	*h = s
	return first
}

func (x *Sessions) queue(i int32, at flow.Time) {
	s := &x.list[i]
	s.dueAt, s.dueStart = at, s.all.start
	x.due.push(sessionStep{at: at, cid: s.cid, start: s.dueStart, index: i, gen: s.gen})
}

// ready is what the watermark must have passed for a session to be written first: its id is
// made of its start, and nothing in time may come that begins before; what came of it just
// after, the other half above all, is in that row already. Whoever told of it, it is as long,
// since somebody else may tell of it in between and which of them came first must not show. What
// is told when it is over only, after longer than the lateness, waits as long from then on.
func (x *Sessions) ready(s *sess) flow.Time {
	if s.told == maxTime {
		return s.all.start + x.settle
	}
	return x.settle + max(s.all.start, s.told-x.lateness)
}

// hold is how long after its end a session is held: until then something in time may belong to it,
// a further record within the idle time or what a host's log tells within Join.
func (x *Sessions) hold(proto uint8) flow.Time { return max(x.cfg.Idle.of(proto), x.join) }

// Tick moves event time on to now, which comes from an injected clock.
func (x *Sessions) Tick(now flow.Time) { x.clock = max(x.clock, now) }

// Collect gives the sessions that are now to be written, each as of now, and what their
// observers contradict each other in. Call it once for each input segment, after its last
// batch. What it gives belongs to the caller.
func (x *Sessions) Collect() ([]flow.Session, []flow.Contradiction) {

	x.passed = x.watermark()
	return x.collect(x.passed)
}

// Flush is Collect at the end of a replay: nothing more will come.
func (x *Sessions) Flush() ([]flow.Session, []flow.Contradiction) { return x.collect(maxTime) }

// Watermark is the time before which no session settles any more: the watermark of the last
// Collect.
func (x *Sessions) Watermark() flow.Time { return x.passed }

// advance takes the steps that the watermark has passed. Each is taken as if the watermark had just
// come to it, so that it does not matter how far it has moved since the last time.
func (x *Sessions) advance(watermark flow.Time) {
	for len(x.due) > 0 && x.due[0].at < watermark {
		d := x.due.pop()
		if s := &x.list[d.index]; s.gen == d.gen && s.dueAt == d.at {
			x.step(d.index, d.at+1, false)
		}
	}
}

func (x *Sessions) collect(watermark flow.Time) ([]flow.Session, []flow.Contradiction) {
	x.advance(watermark)
	x.usual = len(x.rows)
	rows, contradictions := x.rows, x.contradictions
	x.index, x.indexed = x.indexed, x.index
	x.index.Reset()
	x.rows, x.contradictions = nil, nil
	x.m.strangers.Add(float64(x.strangers))
	x.strangers = 0
	x.m.held.Set(float64(x.live))
	x.m.unjoined.Set(float64(x.strays.live))
	x.m.hosts.Set(float64(len(x.hosts)))
	x.m.agents.Set(float64(len(x.agents)))
	x.m.uncounted.Set(float64(x.uncounted))
	return rows, contradictions
}

// watermark is what event time has certainly passed; it never goes back.
func (x *Sessions) watermark() flow.Time { return max(x.passed, x.clock-x.latenessNow()) }

// latenessNow is how long records are waited for.
func (x *Sessions) latenessNow() flow.Time {
	if x.clouds != 0 && x.clock-x.clouds <= cloudsIdle {
		return max(x.lateness, x.cloudLateness)
	}
	return x.lateness
}

// cloudsIdle is after how much silence of clouds' logs they are not waited for any more.
const cloudsIdle = flow.Time(60 * 60 * 1000)

func cloud(s flow.Source) bool { return s >= flow.SourceAWSVPC && s <= flow.SourceGCPFirewall }

// evict writes and forgets the session that would end next, to make room.
func (x *Sessions) evict() {
	for len(x.due) > 0 {
		d := x.due.pop()
		if s := &x.list[d.index]; s.gen == d.gen && s.dueAt == d.at {
			x.m.evicted.Inc()
			x.step(d.index, d.at+1, true)
			return
		}
	}
}

// step takes the next step of session i; over ends it whatever the time.
func (x *Sessions) step(i int32, watermark flow.Time, over bool) {
	x.at = watermark
	s := &x.list[i]
	hold := x.hold(s.conv.Proto)
	if s.beforeID != 0 {
		// It is written as part of the session before the translation, and lasts as long.
		if p := x.waitsFor(s); p >= 0 && !over {
			x.queue(i, max(watermark+minute, max(s.all.end, x.list[p].all.end)+hold+1))
			return
		}
		if s.drawnInto != 0 || s.first < 0 {
			if s.stored {
				was := s.tally
				x.count(i, &was, true)
			}
			x.drop(i)
			return
		}
	}
	if s.id == 0 {
		if at := x.ready(s); at >= watermark && !over {
			x.queue(i, at)
			return
		}
		s.began = s.all.start
		s.id = flow.SessionID(s.cid, s.began)
		gen := s.gen
		if s.exported.empty() {
			x.unjoinedSession(i)
		} else {
			x.exportedSession(i)
		}
		if s = &x.list[i]; s.gen != gen {
			return // it is part of another now
		}
		s.wroteAt = watermark
		was := s.tally
		x.write(i, false)
		if was.counted { // it has become one that was written before
			x.count(i, &was, false)
		}
	}
	end := s.all.end
	if s.nPeers > 0 {
		x.gather(i)
		end = x.gathered.all.end
		s.dirty = s.dirty || x.gathered.dirty
	}
	if close := end + hold; close < watermark || over {
		was := s.tally
		if s.dirty {
			x.write(i, true)
		} else if s.toldOf != s.said {
			x.gather(i)
			var row flow.Session
			x.render(s, &row)
			x.contradict(s, &row, true)
			x.finish(s, &row)
		}
		x.count(i, &was, true)
		x.untold(i, watermark)
		x.leaveBehind(s)
		x.drop(i)
		return
	}
	next := end + hold
	if s.dirty {
		if watermark > s.wroteAt+x.updateEvery {
			s.wroteAt = watermark
			was := s.tally
			x.write(i, true)
			x.count(i, &was, false)
		} else {
			next = min(next, s.wroteAt+x.updateEvery)
		}
	}
	x.queue(i, next)
}

// waitsFor is the session before the translation that s is written as part of; -1 if there is
// none, as where translations go round in a circle.
func (x *Sessions) waitsFor(s *sess) int32 {
	p := x.sessionBefore(s)
	for q, depth := p, 0; q >= 0 && x.list[q].beforeID != 0; q, depth = x.sessionBefore(&x.list[q]), depth+1 {
		if depth == maxTranslations {
			return -1
		}
	}
	return p
}

// sessionBefore is the session before the translation that s is behind; -1 if it is not held.
func (x *Sessions) sessionBefore(s *sess) int32 {
	i, ok := x.chains[s.beforeID]
	for ; ok && i >= 0; i = x.list[i].next {
		p := &x.list[i]
		if p.conv == s.before && p.all.gap(s.all) <= 0 {
			return i
		}
	}
	return -1
}

// gathering is a session with those behind its translations.
type gathering struct {
	all      stretch
	obs      []obs
	sessions []int32
	more     []uint32
	dirty    bool
	extra    uint32
	enforced uint8
	quality  flow.Quality
	sentAt   [2]flow.Time
	sure     [2]uint8
	exported bool

	root *learned // of the session itself; it lives as long as it is not gathered anew

	until  flow.Time // of an opening: records count that began before; else maxTime
	toldBy flow.Time // and that were told by then
	left   bool      // more is known
}

// maxTranslations bounds how many translations one behind the other are followed.
const maxTranslations = 3

func (x *Sessions) gather(i int32) {
	g := &x.gathered
	*g = gathering{all: nothing, obs: g.obs[:0], sessions: g.sessions[:0], more: g.more[:0], sentAt: never, until: maxTime}
	x.gatherFrom(i, false, 0)
}

// gatherOpening gathers what records told of a session that began before it settled.
func (x *Sessions) gatherOpening(i int32) {
	x.gather(i)
	g := &x.gathered
	several := false
	for _, j := range g.sessions {
		several = several || x.list[j].n > 0
	}
	if !several {
		return
	}
	until := g.all.start + x.settle
	*g = gathering{all: nothing, obs: g.obs[:0], sessions: g.sessions[:0], more: g.more[:0], sentAt: never, until: until, toldBy: x.ready(&x.list[i]) + x.lateness}
	x.gatherFrom(i, false, 0)
}

func (x *Sessions) gatherFrom(i int32, flip bool, depth int) {
	g, s := &x.gathered, &x.list[i]
	if slices.Contains(g.sessions, i) {
		return
	}
	g.sessions = append(g.sessions, i)
	g.dirty = g.dirty || s.dirty
	g.extra += s.extra
	g.exported = g.exported || !s.exported.empty()
	from, l := len(g.obs), &s.learned
	if g.until != maxTime && s.n > 0 {
		l = &x.openings[depth]
		x.gatherStatements(s, l)
	} else {
		g.all.grow(s.all)
		g.more = append(g.more, s.more...)
		for k := s.first; k >= 0; k = x.obs[k].next {
			g.obs = append(g.obs, x.obs[k])
		}
	}
	if depth == 0 {
		g.root = l
	}
	g.enforced |= l.enforced
	g.quality |= l.quality
	a, b := ends(!flip)
	g.sentAt[a], g.sentAt[b] = min(g.sentAt[a], l.sentAt[0]), min(g.sentAt[b], l.sentAt[1])
	g.sure[a], g.sure[b] = max(g.sure[a], l.sure[0]), max(g.sure[b], l.sure[1])
	if flip {
		for k := range g.obs[from:] {
			g.obs[from+k].flip()
		}
	}
	if depth == maxTranslations {
		return
	}
	for k := range s.peers[:s.nPeers] {
		p := &s.peers[k]
		j, ok := x.chains[p.cid]
		for ; ok && j >= 0; j = x.list[j].next {
			if l := &x.list[j]; l.conv == p.conv && l.beforeID == s.cid && l.before == s.conv && l.all.gap(s.all) <= 0 {
				x.gatherFrom(j, flip != p.flip, depth+1)
			}
		}
	}
}

// flip turns the ends round.
func (o *obs) flip() {
	swap := func(n *[2]flow.Name) { n[0], n[1] = n[1], n[0] }
	if o.at != 0 {
		o.at = 3 - o.at
	}
	o.bytes[0], o.bytes[1] = o.bytes[1], o.bytes[0]
	o.packets[0], o.packets[1] = o.packets[1], o.packets[0]
	o.flags[0], o.flags[1] = o.flags[1], o.flags[0]
	const low = hasBytes | hasPackets | hasNamed
	o.has = o.has&low<<1 | o.has>>1&low
	swap(&o.identity)
	swap(&o.process)
	swap(&o.hostName)
	swap(&o.from)
	o.heard[0], o.heard[1] = o.heard[1], o.heard[0]
}

// tomb is what is left of a session that turned out to be part of another.
func (s *sess) tomb() flow.Session {
	t := flow.Session{ID: s.id, Conversation: s.cid, Began: s.began, Start: s.all.start, End: s.all.end, Open: true, Proto: s.conv.Proto}
	t.Client.Addr, t.Server.Addr = s.conv.Low, s.conv.High
	return t
}

// supersededVersion is beyond any version of a session that stands by itself.
const supersededVersion = 1 << 63

func (x *Sessions) supersede(t flow.Session, into uint64) {
	t.Into, t.Version = into, supersededVersion
	x.rows = append(x.rows, t)
	x.m.superseded.Inc()
}

// write writes session i as of now. What contradicts itself is said when the session is over
// or written again; at the first writing the rest of it may still be on its way.
func (x *Sessions) write(i int32, say bool) {
	s := &x.list[i]
	if s.stored {
		x.gather(i)
	} else {
		x.gatherOpening(i)
	}
	g := &x.gathered
	for _, j := range g.sessions {
		l := &x.list[j]
		l.dirty = g.left
		x.opened(l)
		if j == i {
			continue
		}
		if l.stored {
			x.supersede(l.tomb(), s.id)
			x.uncount(&l.conv, l.began, &l.tally, true)
			l.id, l.stored, l.tally = 0, false, tally{}
		}
		l.drawnInto = s.id
	}
	if x.rows == nil {
		x.rows = make([]flow.Session, 0, x.usual+x.usual/4+16)
	}
	x.rows = append(x.rows, flow.Session{})
	row := &x.rows[len(x.rows)-1]
	if !s.stored {
		row.Settled = s.wroteAt
	}
	x.render(s, row)
	x.contradict(s, row, say)
	x.finish(s, row)
	x.index.Row(len(x.rows)-1, row)
	s.tally.set(&s.conv, row)
	if !s.stored {
		s.stored = true
		x.uncounted++
		x.m.first.Inc()
	}
	x.m.written.Inc()
}

// finish gives a row its version and puts it into what was said about it.
func (x *Sessions) finish(s *sess, row *flow.Session) {
	told := s.toldOf[0] | s.toldOf[1]
	row.Contradictions = told
	row.Version = uint64(row.Records) + uint64(s.extra)
	for i := len(x.contradictions) - 1; i >= 0 && x.contradictions[i].Session.ID == row.ID; i-- {
		x.contradictions[i].Session = *row
	}
}

// render fills row, which is empty, with session s as gathered.
func (x *Sessions) render(s *sess, row *flow.Session) {
	g := &x.gathered
	// A few at most, and large ones: by insertion.
	for i := 1; i < len(g.obs); i++ {
		for k := i; k > 0 && x.standsBefore(&g.obs[k].obsKey, &g.obs[k-1].obsKey); k-- {
			g.obs[k], g.obs[k-1] = g.obs[k-1], g.obs[k]
		}
	}
	row.ID, row.Conversation, row.Began, row.Start, row.End = s.id, s.cid, s.began, g.all.start, g.all.end
	row.Proto, row.Quality, row.Verdict = s.conv.Proto, g.quality, g.root.verdict
	if both := max(g.sentAt[0], g.sentAt[1]); both != maxTime {
		row.BothWays, row.Answered = true, both
	}
	client, server := 0, 1
	switch {
	case g.sure[0] == g.sure[1]:
		row.Open = true
	case g.sure[1] > g.sure[0]:
		client, server = 1, 0
	}
	if !row.Open {
		row.OrientationCertainty = max(g.sure[0], g.sure[1])
	}
	x.fillEnd(&row.Client, s, client)
	x.fillEnd(&row.Server, s, server)
	switch s.conv.Proto {
	case flow.ProtoICMP, flow.ProtoICMPv6:
		row.HasICMP = s.conv.LowPort != 0
		row.ICMPType, row.ICMPCode = uint8(s.conv.LowPort>>8), uint8(s.conv.LowPort)
		row.Client.Port, row.Server.Port = 0, 0
	default:
		row.HasPorts = s.conv.LowPort|s.conv.HighPort != 0
	}
	seen := hardest(g.enforced)
	for i := range g.obs {
		o := &g.obs[i]
		row.Records += o.records
		if hardest(o.enforced) == seen {
			row.EnforcedBy = x.least(row.EnforcedBy, o.enforcedBy)
		}
		if i >= flow.MaxObservers {
			continue
		}
		w := &row.Observers[i]
		*w = flow.SessionObserver{Exporter: o.exporter, Domain: o.domain, Observer: o.observer, Source: o.source,
			Observed: hardest(o.enforced), Records: o.records, First: o.first, Last: o.last, Skew: o.skew}
		switch int(o.at) - 1 {
		case client:
			w.Reporter = flow.ReporterSource
		case server:
			w.Reporter = flow.ReporterDestination
		}
	}
	slices.Sort(g.more)
	row.ObserversTotal = uint16(min(64, len(g.obs)+len(slices.Compact(g.more))))
	x.translation(row, s, client == 1)
	weighSession(row, seen)
}

// fillEnd fills one side of a session.
func (x *Sessions) fillEnd(e *flow.SessionEnd, s *sess, k int) {
	g := &x.gathered
	e.Addr, e.Port = s.conv.Low, s.conv.LowPort
	if k == 1 {
		e.Addr, e.Port = s.conv.High, s.conv.HighPort
	}
	e.Segment, e.Workload = g.root.segment[k], g.root.workload[k]
	bytes, packets := -1, -1
	better := func(i, than int, count func(*obs) uint64) bool {
		if than < 0 {
			return true
		}
		a, b := &g.obs[i], &g.obs[than]
		return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(count(a), count(b))) > 0
	}
	for i := range g.obs {
		o := &g.obs[i]
		own := int(o.at) == k+1
		e.Own = e.Own || own
		e.TCPFlags |= o.flags[k]
		if o.has&(hasBytes<<k) != 0 && better(i, bytes, func(o *obs) uint64 { return o.bytes[k] }) {
			bytes = i
		}
		if o.has&(hasPackets<<k) != 0 && better(i, packets, func(o *obs) uint64 { return o.packets[k] }) {
			packets = i
		}
	}
	if e.HasBytes = bytes >= 0; e.HasBytes {
		e.Bytes = g.obs[bytes].bytes[k]
	}
	if e.HasPackets = packets >= 0; e.HasPackets {
		e.Packets = g.obs[packets].packets[k]
	}
	if c := x.claim(k); c != nil {
		e.Identity, e.IdentityCertain, e.IdentityHeard = c.identity[k], certaintyOf(c, k), g.all.start
		if e.IdentityCertain != certainByExporter {
			e.IdentityFrom = c.observer
		} else if c.has&(hasNamed<<k) == 0 {
			e.IdentityFrom, e.IdentityHeard = c.from[k], c.heard[k]
		}
	}
	e.Process = x.ownFirst(k, func(o *obs) flow.Name { return o.process[k] })
	e.Host = x.ownFirst(k, func(o *obs) flow.Name { return o.hostName[k] })
}

// ownFirst is what the end's own agent says, else what others say; of several the least text.
func (x *Sessions) ownFirst(k int, of func(*obs) flow.Name) (own flow.Name) {
	other := flow.NoName
	for i := range x.gathered.obs {
		o := &x.gathered.obs[i]
		if int(o.at) == k+1 {
			own = x.least(own, of(o))
		} else {
			other = x.least(other, of(o))
		}
	}
	if own == flow.NoName {
		return other
	}
	return own
}

// How sure an identity is, in percent, by whose word it is. The figures rank; they are not
// measured frequencies.
const (
	certainByAgent    = 100 // the end's own agent
	certainByExporter = 70  // an exporter, or what is known of the address (logons, leases, directories)
	certainByFarAgent = 60  // the other end's agent
)

func certaintyOf(o *obs, k int) uint8 {
	switch {
	case o.at == 0 || o.has&(hasNamed<<k) == 0:
		return certainByExporter
	case int(o.at) == k+1:
		return certainByAgent
	}
	return certainByFarAgent
}

// claim is the observation whose word counts for who is at end k; nil if nobody says.
func (x *Sessions) claim(k int) *obs {
	var best *obs
	for i := range x.gathered.obs {
		o := &x.gathered.obs[i]
		if o.identity[k] == flow.NoName {
			continue
		}
		if best == nil || x.claimBefore(o, best, k) {
			best = o
		}
	}
	return best
}

func (x *Sessions) claimBefore(a, b *obs, k int) bool {
	user := func(o *obs) int {
		if x.principal(o.identity[k]).kind == flow.PrincipalUser {
			return 1
		}
		return 0
	}
	c := cmp.Or(-cmp.Compare(certaintyOf(a, k), certaintyOf(b, k)), -cmp.Compare(user(a), user(b)), cmp.Compare(a.source, b.source))
	if c == 0 && a.identity[k] != b.identity[k] {
		c = strings.Compare(x.names.Text(a.identity[k]), x.names.Text(b.identity[k]))
	}
	return c < 0
}

// translation fills what is known of NAT.
func (x *Sessions) translation(row *flow.Session, s *sess, flip bool) {
	if s.nPeers > 0 {
		best := &s.peers[0]
		for k := range s.peers[1:s.nPeers] {
			// What is halfway through two translations is not what they end in.
			p := &s.peers[k+1]
			if c := cmp.Compare(p.translates(&s.conv), best.translates(&s.conv)); c > 0 || c == 0 && p.cid < best.cid {
				best = p
			}
		}
		row.NAT = flow.NATTranslated
		row.NATClient, row.NATServer, row.NATClientPort, row.NATServerPort = best.conv.Low, best.conv.High, best.conv.LowPort, best.conv.HighPort
		if best.flip != flip {
			row.NATClient, row.NATServer, row.NATClientPort, row.NATServerPort = row.NATServer, row.NATClient, row.NATServerPort, row.NATClientPort
		}
		return
	}
	if s.natPart || x.cfg.NATPool(s.conv.Low) || x.cfg.NATPool(s.conv.High) {
		row.NAT = flow.NATUnverified
	}
}

// Confidence where it has to be told anew; docs/policy.md, "Confidence".
const (
	factorBothWays = 90
	factorAttempt  = 80
	factorMissing  = 80
)

// weighSession sets what is expected against what all observers saw, as policy does for a
// record (POLICY.md, "Outcome").
func weighSession(row *flow.Session, seen flow.Observed) {
	v := &row.Verdict
	v.Observed = seen
	if row.NAT == flow.NATUnverified {
		Discredit(v)
	}
	switch v.Reason {
	case flow.ReasonNone, flow.ReasonUnverified, flow.ReasonExpiryUncertain:
		v.Outcome, v.Confidence = flow.OutcomeNone, 0
		return
	case flow.ReasonUncovered:
		v.Outcome, v.Confidence = flow.OutcomeNone, 100
		return
	}
	allowed := v.Expected == flow.ExpectAllow
	var outcome flow.Outcome
	confidence := 100
	switch {
	case seen == flow.ObservedDeny && allowed:
		outcome = flow.OutcomeMisblocked
	case seen == flow.ObservedDeny:
		outcome = flow.OutcomeBlocked
	case seen == flow.ObservedUnknown && !row.BothWays:
		outcome, confidence = flow.OutcomeAttempted, factorAttempt
	case allowed:
		outcome = flow.OutcomePermitted
	default:
		outcome = flow.OutcomeEscaped
	}
	if seen == flow.ObservedUnknown && outcome != flow.OutcomeAttempted {
		confidence = factorBothWays
	}
	if outcome == v.Outcome {
		return // the record's own confidence knows more
	}
	for range bitsIn(uint16(v.Missing)) {
		confidence = confidence * factorMissing / 100
	}
	v.Outcome, v.Confidence = outcome, uint8(confidence)
}
