package enrich

import (
	"cmp"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
	"github.com/prometheus/client_golang/prometheus"
)

// Policy is what enrich asks of the policy: *policy.History.
type Policy interface {
	// JudgeRecordAs fills the record's segments, workloads and verdict by the
	// version in force at its start and what is known of its ends. While r.Oriented is
	// flow.Open it judges both
	// readings; settled is false where they come out differently, and r.Oriented may
	// then be the reading that is permitted. Judging again gives the same.
	JudgeRecordAs(r *flow.Record, who *policy.Who) (settled bool)
}

// Declared gives the services that the policy in force at a time declares; nil
// for none. It is asked once a record and should be cheap.
type Declared func(at flow.Time) Services

// Pairer orients and judges records, and lets the few wait whose verdict hangs on
// their other half:
//
//   - client and server are open, and the two readings are judged differently or
//     both denied: the finding would name a pair where the other half names the client;
//   - the record tells one direction, enforcement said nothing, and the flow is
//     denied and so far only attempted: with traffic both ways it got through;
//   - the record is an answer to such a one, which it changes.
//
// Everything else passes straight on: for what is permitted, uncovered or known
// to be blocked the other half would change nothing, and it is nearly all traffic.
//
// Halves are records of one exporter and domain with the same endpoints and
// protocol and opposite direction, whose ends lie within two thirds of the window.
// A waiting record is decided when event time has moved on by the window since it
// came, from the set of halves that came by then. The set does not depend on the
// order in which they came as long as records come no later than a third of the
// window after their own end; nor does the client:
//
//  1. what a record itself carries counts most, the better evidence first, also
//     that of its other half (a lone SYN);
//  2. else the half that began first is the client's — but not if it is TCP with
//     known flags and no SYN among them: such halves go on with an older
//     conversation and their start is where the exporter cut it;
//  3. else, and where the starts are equal, it stays open.
//
// Event time is the latest end seen, capped at receipt plus the tolerance, and
// what Tick says. A Pairer is not safe for concurrent use. Its state is bounded.
type Pairer struct {
	cfg      Config
	policy   Policy
	declared Declared
	identity identities
	natPools *SessionsConfig // names the addresses that translation hands out
	names    *flow.Names
	m        *metrics

	window, near flow.Time // milliseconds

	clock   flow.Time
	members []member
	free    []int32
	groups  map[pairKey]group
	due     dueHeap
	held    map[flow.Addr]uint64
	waiting int
}

// maxGroup bounds the records of one five-tuple that are held at a time, so that
// a flood of one conversation cannot make looking through its group dear. A
// conversation exported every second from both ends stays below it.
const maxGroup = 64

// group is the records of one key.
type group struct {
	first int32 // a member; the others by its next
	size  int32
}

// member is a record that waits or, once decided, is remembered for others of
// its group that still wait.
type member struct {
	rec     flow.Record
	key     pairKey
	at      flow.Time // decided when event time has passed it; forgotten a window later
	next    int32     // in its group; -1 ends it
	low     bool      // the record's Src is the lower endpoint
	decided bool
	own     flow.Orientation // what the record itself carried
	ownSure uint8
}

// pairKey is an exporter's unordered five-tuple.
type pairKey struct {
	exporter, low, high flow.Addr
	domain              uint32
	lowPort, highPort   uint16 // ICMP: request's type and code, and 0
	proto               uint8
}

// NewPairer makes a Pairer. names is the table the records' names come from; reg
// may be nil.
func NewPairer(cfg Config, policy Policy, declared Declared, names *flow.Names, reg prometheus.Registerer) (*Pairer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	p := &Pairer{cfg: cfg, policy: policy, declared: declared, names: names, m: newMetrics(reg), natPools: &SessionsConfig{},
		window: flow.Time(cfg.Window / time.Millisecond)}
	p.near = p.window * 2 / 3
	p.reset()
	return p, nil
}

// Identify has records carry who is behind their ends, as of their own time, and judges them
// by that. The facts of that time must have been taken in before, see [Identity.Cut].
func (p *Pairer) Identify(s *Identity) { p.identity.store = s }

// Translated has no exception credited to addresses that cfg names as pools of translation.
func (p *Pairer) Translated(cfg *SessionsConfig) { p.natPools = cfg }

func (p *Pairer) reset() {
	p.members, p.free, p.due, p.waiting = nil, nil, nil, 0
	p.groups, p.held = map[pairKey]group{}, map[flow.Addr]uint64{}
}

// Process takes every record of in and appends to out those that are decided:
// records that need not wait, in their order, and between them those whose wait
// ends as event time moves on. What it appends for a run of records does not
// depend on how the run is cut into batches. in stays its owner's.
func (p *Pairer) Process(in, out *flow.Batch) {
	p.m.received.Add(float64(len(in.Records)))
	before := len(out.Records)
	p.look()
	defer p.lookAway()
	for i := range in.Records {
		r := &in.Records[i]
		if i%lookEach == 0 {
			p.identity.ask(in.Records[i:min(i+lookEach, len(in.Records))])
		}
		p.advance(p.eventTime(r), out)
		if r.User != flow.NoName && !r.Any(flow.HasSrcIdentity) {
			r.SrcIdentity, r.Has = r.User, r.Has|flow.HasSrcIdentity // userName belongs to the Src end
		}
		p.orient(r)
		own, sure := r.Oriented, r.OrientationCertainty // judging may choose a reading
		settled := p.judge(r, i%lookEach)
		if key, low, ok := keyOf(r); ok && waits(r, own, settled) {
			if p.hold(member{rec: *r, key: key, low: low, own: own, ownSure: sure}) {
				continue
			}
			p.m.overflow.Inc()
		}
		emit(r, out)
	}
	p.count(out.Records[before:])
}

// Tick moves event time on to now, which comes from an injected clock, and
// appends what need not wait any longer.
func (p *Pairer) Tick(now flow.Time, out *flow.Batch) {
	before := len(out.Records)
	p.look()
	defer p.lookAway()
	p.advance(now, out)
	p.count(out.Records[before:])
}

// Flush decides everything that waits, as at the end of a replay.
func (p *Pairer) Flush(out *flow.Batch) {
	before := len(out.Records)
	p.look()
	defer p.lookAway()
	for len(p.due) > 0 {
		p.step(p.due.pop(), out)
	}
	p.count(out.Records[before:])
}

// Len is how many records wait.
func (p *Pairer) Len() int { return p.waiting }

// Held gives, for each exporter that has any, how many of its records wait; in no
// particular order. It is the ledger's "in flight" of this stage.
func (p *Pairer) Held(f func(exporter flow.Addr, n uint64)) {
	for e, n := range p.held {
		f(e, n)
	}
}

func (p *Pairer) orient(r *flow.Record) {
	var s Services
	if p.declared != nil {
		s = p.declared(r.Start)
	}
	Orient(r, s)
}

// waits says whether the other half could change the verdict or who it is about; or
// whether this one, an answer to what is denied, changes that of the other.
func waits(r *flow.Record, own flow.Orientation, settled bool) bool {
	return !settled || r.Verdict.Expected == flow.ExpectDeny && (own == flow.Open || r.Verdict.Outcome == flow.OutcomeAttempted ||
		own == flow.Reverse && r.Verdict.Outcome == flow.OutcomeEscaped && r.Verdict.Observed == flow.ObservedUnknown)
}

// keyOf gives the key under which the halves of a conversation meet, and whether
// Src is its lower endpoint; ok is false for a record that can have no other half.
func keyOf(r *flow.Record) (key pairKey, low, ok bool) {
	if r.Biflow() || !r.All(flow.HasSrc|flow.HasDst|flow.HasProto) || multicast(r.Dst) {
		return key, false, false
	}
	key = pairKey{exporter: r.Exporter, domain: r.Domain, proto: r.Proto}
	var sp, dp uint16
	switch {
	case r.IsICMP():
		if !r.Any(flow.HasICMP) {
			return key, false, false
		}
	case r.Any(flow.HasSrcPort | flow.HasDstPort):
		sp, dp = r.SrcPort, r.DstPort
	}
	c := cmp.Or(r.Src.Compare(r.Dst), cmp.Compare(sp, dp))
	low = c < 0
	if low {
		key.low, key.high, key.lowPort, key.highPort = r.Src, r.Dst, sp, dp
	} else {
		key.low, key.high, key.lowPort, key.highPort = r.Dst, r.Src, dp, sp
	}
	if r.IsICMP() {
		t, _ := icmpRequest(r.Proto, r.ICMPType)
		key.lowPort = uint16(t)<<8 | uint16(r.ICMPCode)
	}
	return key, low, c != 0
}

func (p *Pairer) eventTime(r *flow.Record) flow.Time {
	t := r.End
	if p.cfg.ClockTolerance > 0 && r.Received != 0 {
		t = min(t, r.Received.Add(p.cfg.ClockTolerance))
	}
	return t
}

// advance moves event time on and takes the steps that fall due by it.
func (p *Pairer) advance(t flow.Time, out *flow.Batch) {
	if t <= p.clock {
		return
	}
	p.clock = t
	for len(p.due) > 0 && p.due[0].at < t {
		p.step(p.due.pop(), out)
	}
}

// hold keeps a record to wait; false if no more may.
func (p *Pairer) hold(m member) bool {
	if len(p.members)-len(p.free) >= p.cfg.MaxHeld || p.groups[m.key].size >= maxGroup {
		return false
	}
	m.at = p.clock + p.window
	p.insert(m)
	return true
}

func (p *Pairer) insert(m member) {
	g, ok := p.groups[m.key]
	if !ok {
		g.first = -1
	}
	m.next = g.first
	var i int32
	if n := len(p.free); n > 0 {
		i = p.free[n-1]
		p.free = p.free[:n-1]
		p.members[i] = m
	} else {
		i = int32(len(p.members))
		p.members = append(p.members, m)
	}
	p.groups[m.key] = group{first: i, size: g.size + 1}
	p.due.push(dueItem{at: m.at, id: m.rec.ID, index: i, forget: m.decided})
	if !m.decided {
		p.held[m.rec.Exporter]++
		p.waiting++
	}
}

// step takes one due step: decide a member, or forget one that was decided.
func (p *Pairer) step(d dueItem, out *flow.Batch) {
	m := &p.members[d.index]
	if d.forget {
		p.forget(d.index)
		return
	}
	r := m.rec // the group goes on looking at what the record itself carried
	p.decide(m, &r)
	emit(&r, out)
	m.decided = true
	m.at += p.window
	p.due.push(dueItem{at: m.at, id: r.ID, index: d.index, forget: true})
	if p.held[r.Exporter]--; p.held[r.Exporter] == 0 {
		delete(p.held, r.Exporter)
	}
	p.waiting--
}

// decide looks for the other half of m and judges r, m's record, again if it was
// found or the client became known.
func (p *Pairer) decide(m *member, r *flow.Record) {
	var (
		sure  [2]uint8     // best evidence that the client is the higher, the lower endpoint
		start [2]flow.Time // earliest start of a record of the higher, the lower endpoint
		other bool
		flags = true // every half told its flags
		syn   bool
	)
	for i := p.groups[m.key].first; i >= 0; i = p.members[i].next {
		n := &p.members[i]
		if d := n.rec.End - r.End; d > p.near || d < -p.near {
			continue
		}
		s := side(n.low)
		if start[s] == 0 || n.rec.Start < start[s] {
			start[s] = n.rec.Start
		}
		other = other || n.low != m.low
		if n.own != flow.Open {
			client := side(n.low == (n.own == flow.Forward))
			sure[client] = max(sure[client], n.ownSure)
		}
		flags = flags && n.rec.Any(flow.HasTCPFlags)
		syn = syn || n.rec.TCPFlags&flow.SYN != 0
	}
	if other {
		p.m.paired.Inc()
	} else {
		p.m.alone.Inc()
	}
	oriented, certainty := m.own, m.ownSure
	if oriented == flow.Open {
		low, known := false, false
		switch {
		case sure[0] != sure[1]:
			low, known, certainty = sure[1] > sure[0], true, max(sure[0], sure[1])
		case sure[0] == 0 && other && start[0] != start[1] && (r.Proto != flow.ProtoTCP || !flags || syn):
			low, known, certainty = start[1] < start[0], true, certainByStart
		}
		switch {
		case known && low == m.low:
			oriented = flow.Forward
		case known:
			oriented = flow.Reverse
		}
	}
	if other || oriented != m.own {
		r.OtherHalf, r.Oriented, r.OrientationCertainty = other, oriented, certainty
		p.judgeAgain(r)
	}
}

// side is an endpoint's place in a group: 0 the higher, 1 the lower.
func side(low bool) int {
	if low {
		return 1
	}
	return 0
}

func (p *Pairer) forget(i int32) {
	m := &p.members[i]
	g := p.groups[m.key]
	if g.size--; g.size == 0 {
		delete(p.groups, m.key)
	} else if g.first == i {
		p.groups[m.key] = group{first: m.next, size: g.size}
	} else {
		p.groups[m.key] = g
		for j := g.first; ; j = p.members[j].next {
			if p.members[j].next == i {
				p.members[j].next = m.next
				break
			}
		}
	}
	*m = member{}
	p.free = append(p.free, i)
}

// emit hands a decided record on.
func emit(r *flow.Record, out *flow.Batch) {
	if r.Oriented == flow.Open {
		r.Quality |= flow.QualityDirectionOpen
	}
	*out.Next() = *r
}

// count counts what left, a batch at a time.
func (p *Pairer) count(left []flow.Record) {
	var n [3]int
	for i := range left {
		n[left[i].Oriented]++
	}
	p.m.sent.Add(float64(len(left)))
	p.m.open.Add(float64(n[flow.Open]))
	p.m.forward.Add(float64(n[flow.Forward]))
	p.m.reverse.Add(float64(n[flow.Reverse]))
	p.m.held.Set(float64(p.waiting))
}
