package enrich

import (
	"slices"

	"github.com/postern/postern/flow"
)

// A host's log joins what exporters tell within Join. Where the host's clock is further off
// than that its records join nothing, and the offset has to be found first: a record that
// joined nothing and an exported session of the same five-tuple vote for the time between
// them. A five-tuple with a port of the dynamic range is nearly unique, so votes for the true
// offset agree and others are scattered. Where enough sessions agree, and they are at least
// half of those that voted, the offset holds for what still waits and for what comes (from when on,
// says inForce). Records that join vote as well, so that a host whose clock is right is not led astray.
//
// Such a record was judged by its own stamp, before anybody knew that it is off. So its verdict,
// and what was known of its addresses then, count only where nobody else told of the session.

const (
	maxVotes = 64
	// agreement is how far apart votes may be that agree: hosts stamp a connection up to some
	// seconds after it began.
	agreement = flow.Time(5000)
	// maxOffset is how far off a clock is still looked for; beyond a day stamps are of no use.
	maxOffset = flow.Time(24 * 60 * 60 * 1000)
)

// hostClock is what is known of the clock of a host's log.
type hostClock struct {
	offset flow.Time // the host's clock less the exporters'; 0 until found
	found  flow.Time // the watermark when it was found
	from   flow.Time // when it comes in force, see inForce; 0: at once
	before flow.Time // the offset in force until then
	votes  [maxVotes]vote
	n      uint32 // votes cast; the newest are kept
}

type vote struct {
	offset flow.Time
	cid    uint64
}

// inForce gives the offset that a record with the host's stamps first and last is corrected by.
//
// Where the clock is behind by more than the lateness, records were late until the offset was found
// and are in time after. One that may come before it in one order and after it in another is corrected
// in neither, and joins its session as those do that wait. That is what began until twice the
// lateness after the watermark at that time: the watermark came there with something that ended at
// the lateness after it and that came within the lateness. Whether the clock is off is not certain,
// so the record must be beyond that by the host's stamps as well, unless these make it late anyway.
//
// Any other offset is in force at once. What was not late was a session at the wrong time, and the
// fewer of these the better, though it then hangs on the order which there are.
func (h *hostClock) inForce(first, last flow.Time) flow.Time {
	if first-h.offset > h.from && (first > h.from || last < h.found) {
		return h.offset
	}
	return h.before
}

func (h *hostClock) held() []vote { return h.votes[:min(h.n, maxVotes)] }

// take takes a vote, if it is not there already.
func (h *hostClock) take(v vote) bool {
	if slices.Contains(h.held(), v) {
		return false
	}
	h.votes[h.n%maxVotes] = v
	h.n++
	return true
}

// cast takes a vote and gives the offset that enough sessions agree on around it.
func (h *hostClock) cast(v vote, enough int) (offset flow.Time, agreed bool) {
	if !h.take(v) {
		return 0, false
	}
	var cids, all [maxVotes]uint64
	var offsets [maxVotes]flow.Time
	n, total := 0, 0
	for _, o := range h.held() {
		if !slices.Contains(all[:total], o.cid) {
			all[total] = o.cid
			total++
		}
		if d := o.offset - v.offset; d < -agreement || d > agreement {
			continue
		}
		if !slices.Contains(cids[:n], o.cid) {
			cids[n], offsets[n] = o.cid, o.offset
			n++
		}
	}
	if n < enough || 2*n < total {
		return 0, false
	}
	slices.Sort(offsets[:n])
	return offsets[n/2], true
}

func (x *Sessions) hostClock(k hostKey) *hostClock {
	h := x.hosts[k]
	if h == nil {
		if len(x.hosts) >= x.cfg.MaxHosts {
			x.m.forgotten.Inc()
			return nil
		}
		h = &hostClock{}
		x.hosts[k] = h
	}
	return h
}

// stray is what a host's log told of a conversation and no exported session was found for.
// The stamps of o are as the host wrote them.
type stray struct {
	conv  flow.Conversation
	cid   uint64
	o     obs
	sess  uint64    // the session it stands as; 0: none, it came too late for one
	began flow.Time // of that session
	late  bool
	alone bool  // that session is over, and this was all of it
	tally tally // of that session then
	older int64 // the next older one of the conversation; 0 ends them
	dead  bool
}

// strays are those that wait, in a ring: the oldest goes when there is no more room.
type strays struct {
	ring []stray
	next int64            // the number that the next one gets; numbers begin with 1
	of   map[uint64]int64 // the newest of each conversation
	live int
}

func newStrays() strays { return strays{next: 1, of: map[uint64]int64{}} }

// at is the stray of a number, nil if it is gone.
func (q *strays) at(n int64) *stray {
	if n <= 0 || n < q.next-int64(len(q.ring)) {
		return nil
	}
	return &q.ring[(n-1)%int64(cap(q.ring))]
}

// each calls f for the strays of a conversation, newest first, until it gives false.
func (q *strays) each(cid uint64, f func(s *stray) bool) {
	for n := q.of[cid]; n > 0 && n >= q.next-int64(len(q.ring)); {
		s := &q.ring[(n-1)%int64(cap(q.ring))]
		n = s.older
		if !s.dead && !f(s) {
			return
		}
	}
}

// oldest is the number of the oldest that is held.
func (q *strays) oldest() int64 { return q.next - int64(len(q.ring)) }

// add takes in a stray and says whether an older one had to go for it.
func (q *strays) add(s stray, limit int) (lost bool) {
	if cap(q.ring) != limit {
		ring := make([]stray, len(q.ring), limit)
		copy(ring, q.ring)
		q.ring = ring
	}
	s.older = q.of[s.cid]
	at := (q.next - 1) % int64(limit)
	if len(q.ring) < limit {
		q.ring = q.ring[:len(q.ring)+1]
	} else {
		old := &q.ring[at]
		if q.of[old.cid] == q.next-int64(limit) {
			delete(q.of, old.cid)
			if s.cid == old.cid {
				s.older = 0
			}
		}
		if lost = !old.dead; lost {
			q.live--
		}
	}
	q.ring[at] = s
	q.of[s.cid] = q.next
	q.next++
	q.live++
	return lost
}

func (q *strays) kill(s *stray) {
	s.dead = true
	q.live--
}

// unjoined takes in what a host told and no exported session was found for.
func (x *Sessions) unjoined(conv *flow.Conversation, cid uint64, o *obs, session uint64, began flow.Time, late bool) {
	raw := *o
	raw.shift(-flow.Time(o.skew))
	raw.next = -1
	if late {
		idle := x.cfg.Idle.of(conv.Proto)
		merged := false
		x.strays.each(cid, func(s *stray) bool {
			if s.late && s.conv == *conv && s.o.obsKey == raw.obsKey && (stretch{s.o.first, s.o.last}).gap(stretch{raw.first, raw.last}) <= idle {
				x.mergeObs(&s.o, &raw)
				merged = true
			}
			return !merged
		})
		if merged {
			return
		}
	}
	if x.strays.add(stray{conv: *conv, cid: cid, o: raw, sess: session, began: began, late: late}, x.cfg.MaxUnjoined) {
		x.m.forgotten.Inc()
	}
	st := x.strays.of[cid]
	i, ok := x.chains[cid]
	for ok && i >= 0 {
		s := &x.list[i]
		next := s.next
		if s.conv == *conv && s.id != 0 && !s.exported.empty() {
			if t := x.strays.at(st); t == nil || t.dead || x.match(t, i) {
				return
			}
		}
		i = next
	}
}

// unjoinedSession takes in a session that only hosts told of.
func (x *Sessions) unjoinedSession(i int32) {
	s := &x.list[i]
	conv, cid, id, began := s.conv, s.cid, s.id, s.began
	var told [flow.MaxObservers]obs
	n := 0
	for k := s.first; k >= 0; k = x.obs[k].next {
		told[n] = x.obs[k]
		n++
	}
	slices.SortFunc(told[:n], func(a, b obs) int {
		if x.standsBefore(&a.obsKey, &b.obsKey) {
			return -1
		}
		return 1
	})
	for k := range told[:n] {
		if o := &told[k]; o.at != 0 && o.first < x.at { // else it may be known already or not
			x.unjoined(&conv, cid, o, id, began, false)
		}
	}
}

// exportedSession takes in a session that exporters told of, when it is written first: its
// hosts vote that their clocks are right, and those that wait may join it.
func (x *Sessions) exportedSession(i int32) {
	s := &x.list[i]
	start, cid, conv := s.exported.start, s.cid, s.conv
	votes := telling(&conv)
	for k := s.first; k >= 0 && votes; k = x.obs[k].next {
		if o := &x.obs[k]; o.at != 0 && o.first < x.at {
			if h := x.hostClock(o.host()); h != nil {
				h.take(vote{o.first + flow.Time(o.skew) - start, cid})
			}
		}
	}
	if x.strays.live == 0 {
		return
	}
	var waiting [maxWaiting]*stray
	n := 0
	x.strays.each(cid, func(st *stray) bool {
		if st.conv == conv {
			waiting[n] = st
			n++
		}
		return n < maxWaiting
	})
	gen := s.gen
	for _, st := range waiting[:n] {
		if !st.dead && x.list[i].gen == gen { // else it became part of another
			x.match(st, i)
		}
	}
}

// maxWaiting bounds the strays of one conversation that are looked at for a session.
const maxWaiting = 32

// telling says whether a conversation tells of one session in a day: one end has a port of
// the range that clients are handed ports from, and the other has another.
func telling(c *flow.Conversation) bool {
	return (c.Proto == flow.ProtoTCP || c.Proto == flow.ProtoUDP) && c.LowPort != c.HighPort && max(c.LowPort, c.HighPort) >= 1024
}

// match joins a stray to an exported session if it is of it by the host's clock, else lets
// the two vote. It says whether they joined.
func (x *Sessions) match(st *stray, i int32) bool {
	h := x.hostClock(st.o.host())
	if h == nil {
		return false
	}
	x.refresh(st)
	if x.within(st, i, h.offset) {
		x.adopt(st, i, h.offset)
		return true
	}
	d := st.o.first - x.list[i].exported.start
	if !telling(&st.conv) || d < -maxOffset || d > maxOffset || x.severalSessions(i) {
		return false
	}
	offset, agreed := h.cast(vote{d, st.cid}, x.cfg.AgreeingSessions)
	if !agreed {
		return false
	}
	if near := offset - h.offset; near >= -agreement && near <= agreement {
		return false // it is the one in force
	}
	h.before, h.offset = h.inForce(x.at, x.at), offset
	h.found, h.from = x.at, 0
	if lateness := x.latenessNow(); offset < -lateness {
		h.from = x.at + 2*lateness
	}
	x.m.offsets.Inc()
	host, id, gen := st.o.host(), x.list[i].id, x.list[i].gen
	for n := x.strays.oldest(); n < x.strays.next; n++ {
		if t := x.strays.at(n); t != nil && !t.dead && t.o.host() == host {
			x.findSession(t, offset)
		}
	}
	return st.dead && x.list[i].gen == gen && x.list[i].id == id
}

// findSession joins a stray to an exported session that is held, if there is one.
func (x *Sessions) findSession(st *stray, offset flow.Time) {
	x.refresh(st)
	i, ok := x.chains[st.cid]
	for ; ok && i >= 0; i = x.list[i].next {
		if s := &x.list[i]; s.conv == st.conv && s.id != 0 && s.exported.start < x.at && x.within(st, i, offset) {
			x.adopt(st, i, offset)
			return
		}
	}
}

// severalSessions says whether the conversation of session i has another exported session. One
// that begins only now may be known already or not.
func (x *Sessions) severalSessions(i int32) bool {
	s := &x.list[i]
	for j := x.chains[s.cid]; j >= 0; j = x.list[j].next {
		if t := &x.list[j]; j != i && t.conv == s.conv && t.exported.start < x.at {
			return true
		}
	}
	return false
}

// within says whether a stray is of session i by its host's clock: whether it would have become part
// of it, had it come with its stamps right.
func (x *Sessions) within(st *stray, i int32, offset flow.Time) bool {
	s := &x.list[i]
	return x.touches(s, &st.o, stretch{st.o.first - offset, st.o.last - offset}, true, x.cfg.Idle.of(s.conv.Proto))
}

// refresh takes in what the host told since of the session that a stray stands as.
func (x *Sessions) refresh(st *stray) {
	if st.sess == 0 {
		return
	}
	i, ok := x.chains[st.cid]
	for ; ok && i >= 0; i = x.list[i].next {
		if s := &x.list[i]; s.id == st.sess {
			x.refreshFrom(st, s)
			return
		}
	}
}

func (x *Sessions) refreshFrom(st *stray, s *sess) {
	for k := s.first; k >= 0; k = x.obs[k].next {
		if o := &x.obs[k]; o.obsKey == st.o.obsKey {
			st.o = *o
			st.o.shift(-flow.Time(o.skew))
			st.o.next = -1
			return
		}
	}
}

// adopt makes a stray part of exported session i, and then what the same host told of the
// conversation before or after and that is within reach of it only now.
func (x *Sessions) adopt(st *stray, i int32, offset flow.Time) {
	host := st.o.host()
	for range maxWaiting {
		x.adoptOne(st, i, offset)
		conv := st.conv
		st = nil
		x.strays.each(x.list[i].cid, func(t *stray) bool {
			if t.conv == conv && t.o.host() == host {
				if x.refresh(t); x.within(t, i, offset) {
					st = t
				}
			}
			return st == nil
		})
		if st == nil {
			return
		}
	}
}

func (x *Sessions) adoptOne(st *stray, i int32, offset flow.Time) {
	x.strays.kill(st)
	x.m.joined.Inc()
	id := x.list[i].id
	if st.sess != 0 && st.sess != id {
		x.leave(st, id)
	}
	o := st.o
	o.correct(offset)
	o.next = -1
	s := &x.list[i]
	span := stretch{o.first, o.last}
	s.all.grow(span)
	s.hosts.grow(span)
	x.take(s, &o, &learned{sentAt: never, enforced: o.enforced})
	s.dirty = true
	x.unite(i) // it may lie within reach of another as well
}

// leave takes a stray out of the session that only hosts told of and that it stood as.
func (x *Sessions) leave(st *stray, into uint64) {
	i, ok := x.chains[st.cid]
	for ; ok && i >= 0; i = x.list[i].next {
		s := &x.list[i]
		if s.id != st.sess {
			continue
		}
		if !s.exported.empty() {
			return // it has found exporters meanwhile
		}
		if s.nObs == 1 {
			if s.stored {
				x.supersede(s.tomb(), into)
				x.uncount(&s.conv, s.began, &s.tally, true)
			}
			x.drop(i)
			return
		}
		for at := &s.first; *at >= 0; at = &x.obs[*at].next {
			k := *at
			if o := &x.obs[k]; o.obsKey == st.o.obsKey {
				s.extra += 2 * o.records
				*at = o.next
				x.freeObs = append(x.freeObs, k)
				s.nObs--
				s.dirty = true
				return
			}
		}
		return
	}
	if st.alone {
		t := flow.Session{ID: st.sess, Conversation: st.cid, Began: st.began, Start: st.o.first, End: st.o.last, Open: true, Proto: st.conv.Proto}
		t.Client.Addr, t.Server.Addr = st.conv.Low, st.conv.High
		x.supersede(t, into)
		if st.tally.counted { // else a snapshot of a version that did not count
			x.uncount(&st.conv, st.began, &st.tally, false)
		}
	}
}
