package detect

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/postern/postern/flow"
)

// What detectors of blind spots and of drift read is not in contacts: it is in what did not
// come. So Contacts also counts, over windows of event time, who told of anything, whose own
// agent told of its sessions and whose did not, and how enforcement kept to which rule. A
// window goes on once the watermark has passed it, so that cuts do not show; the counts of all
// inputs are added up.

// Tally is what was counted under a key.
type Tally[K, N any] struct {
	Key K
	N   N
}

// Observations are the counts of the windows that ended in a stretch of input.
type Observations struct {
	Heard []Tally[HeardKey, Heard]
	Hosts []Tally[HostKey, HostHeard]
	Rules []Tally[RuleKey, RuleHeard]
	// Denied are in pressure.go.
	Denied []Tally[DeniedKey, Denied]
	Bulk   []Tally[BulkKey, Bulk]
	// Reports are in unseen.go.
	Reports []Tally[ReportKey, Reported]
}

// Lengths of windows, in minutes.
const (
	heardWindow = 1
	hostWindow  = 10
	bulkWindow  = 10
	// bulkOver is when a window of what was moved in bulk is over: what is behind a translation is
	// over minutes late.
	bulkOver = bulkWindow + 10
)

// HeardKey is who told of flows in a minute. Agents of hosts come and go with their hosts, so
// all of one format are one teller; what clouds log is too.
type HeardKey struct {
	At     uint32    // the minute, since the epoch
	Domain uint32    // observation domain
	Addr   flow.Addr // exporter; zero of agents and clouds
	Name   flow.Name // of a sensor; of stale identities the segment
	Source flow.Source
	Kind   heardKind
}

type heardKind uint8

const (
	heardTeller heardKind = iota
	heardStale            // ends whose source of identities had been silent for too long
)

// Heard is how much it told.
type Heard struct {
	Records uint32
	Late    uint32 // of these, that came after their minute had passed
	Gaps    uint32 // how often sequence numbers had skipped
	Skewed  uint32 // records stamped by a clock that is off beyond tolerance
	Skew    int32  // the greatest of its errors, milliseconds
	// Rates are the sampling rates it told, ascending; 0 behind them.
	Rates [maxRates]uint32
}

const maxRates = 4

// HostKey is a host in ten minutes.
type HostKey struct {
	At       uint32 // the first minute
	Addr     flow.Addr
	Agent    flow.Name // its own agent's name; NoName where none told
	Segment  flow.Name
	Workload flow.Name
	Source   flow.Source // of the agent
}

func (k HeardKey) hash() uint64 {
	return hashAddr(k.Addr, uint64(k.At)<<32|uint64(k.Domain)) ^ flow.Mix(uint64(k.Name)<<16|uint64(k.Source)<<8|uint64(k.Kind))
}

func (k RuleKey) hash() uint64 {
	return hashAddr(k.Addr, uint64(k.At)<<32|uint64(k.Rule)) ^ flow.Mix(uint64(k.Name)<<40^uint64(k.By)<<8^uint64(k.Source))
}

func (k BulkKey) hash() uint64 {
	return hashAddr(k.Client, flow.Mix(uint64(k.At)<<32|uint64(k.Port)<<8|uint64(k.Proto))) ^ hashAddr(k.Server, 0)
}

func hashAddr(a flow.Addr, with uint64) uint64 { return flow.Mix(flow.Mix(a.Hi^with) ^ a.Lo) }

// HostHeard is of how many sessions its own agent told, and of how many that were answered it did not; as
// client, as server. Of one edge one of each counts, so that it does not matter how often somebody
// asks the same.
type HostHeard struct {
	Told, Untold [2]uint32
}

// RuleKey is a rule at a point of enforcement, in ten minutes.
type RuleKey struct {
	At     uint32
	Rule   flow.Name
	Addr   flow.Addr // the exporter that told; zero of agents and clouds
	Name   flow.Name // of a firewall or sensor
	By     flow.Name // by what the enforcement says that it decided
	Source flow.Source
}

// RuleHeard is how many flows under the rule were let through and stopped there, and how
// many of those should not have been.
type RuleHeard struct{ Allowed, Denied, Escaped, Misblocked uint32 }

// BulkKey is two hosts between which much was moved in ten minutes.
type BulkKey struct {
	At                             uint32 // the first minute
	Client, Server                 flow.Addr
	ClientSegment, ServerSegment   flow.Name
	ClientWorkload, ServerWorkload flow.Name
	Port                           uint16 // of the service; 0 where there is none
	Proto                          uint8
}

// Bulk is how much: the bytes that the client and that the server sent, of sessions that were over
// then and in which that end sent bulkLeast and more.
type Bulk struct {
	Sent     [2]uint64
	Sessions uint32
	First    flow.Time    // when the first of these sessions began
	Most     [2]BulkMoved // of one session
}

// BulkMoved is what one end sent in the session in which it sent most.
type BulkMoved struct {
	Session uint64
	Start   flow.Time
	Sent    uint64
}

func (m *BulkMoved) add(o *BulkMoved) {
	if o.Sent > m.Sent || o.Sent == m.Sent && o.Session < m.Session {
		*m = *o
	}
}

// bulkLeast is from how many bytes on a session moves much: what is less is pages and mails.
const bulkLeast = 256 << 10

func (n *Bulk) add(o *Bulk) {
	for i := range n.Sent {
		n.Sent[i] += o.Sent[i]
		n.Most[i].add(&o.Most[i])
	}
	n.Sessions += o.Sessions
	if n.First == 0 || o.First < n.First {
		n.First = o.First
	}
}

func (n *Heard) add(o *Heard) {
	n.Records += o.Records
	n.Late += o.Late
	n.Gaps += o.Gaps
	n.Skewed += o.Skewed
	n.skew(o.Skew)
	for _, r := range o.Rates {
		n.rate(r)
	}
}

func (n *Heard) skew(v int32) {
	// Of two as far off the one ahead, so that their order does not matter.
	if a, b := max(v, -v), max(n.Skew, -n.Skew); a > b || a == b && v > n.Skew {
		n.Skew = v
	}
}

// rate notes a sampling rate; of more than there is room for the least stay.
func (n *Heard) rate(v uint32) {
	for i := 0; v != 0 && i < maxRates; i++ {
		switch at := n.Rates[i]; {
		case at == v:
			return
		case at == 0:
			n.Rates[i] = v
			return
		case at > v:
			n.Rates[i], v = v, at
		}
	}
}

func (n *HostHeard) add(o *HostHeard) {
	for i := range n.Told {
		n.Told[i] += o.Told[i]
		n.Untold[i] += o.Untold[i]
	}
}

func (n *RuleHeard) add(o *RuleHeard) {
	n.Allowed += o.Allowed
	n.Denied += o.Denied
	n.Escaped += o.Escaped
	n.Misblocked += o.Misblocked
}

// hearing is the windows that are open in a Contacts.
type hearing struct {
	tolerance flow.Time // of clocks; 0 believes them

	heard   counts[HeardKey, Heard]
	hosts   hostCounts
	rules   counts[RuleKey, RuleHeard]
	denied  counts[DeniedKey, Denied]
	bulk    counts[BulkKey, Bulk]
	reports counts[ReportKey, Reported]
	// past is the minute before which all windows are over.
	past uint32
	// agents: some host's own agent has told of something.
	agents bool
	// dropped is what could not be counted.
	dropped uint64
	pressed []Pressure // by it, since the last Collect
	// outside is the segment of what is in none and not private.
	outside flow.Name

	last heardLast
}

// heardLast is who told of the record before: most of the time who tells of the next as well.
type heardLast struct {
	exporter flow.Addr
	domain   uint32
	observer flow.Name
	source   flow.Source
	reporter flow.Reporter

	from, until flow.Time // of the times that count in the same minute
	late        bool
	key         HeardKey
	at          int32 // its place in heard
}

const (
	maxHeard = 1 << 16 // open at once: 65,536 exporters and domains, 6 MB
	maxRules = 1 << 14
	maxBulk  = 1 << 18 // pairs of hosts that move much within twenty minutes; 150 bytes each
)

func newHearing(tolerance flow.Time, outside flow.Name, hosts int) hearing {
	return hearing{tolerance: tolerance, outside: outside, heard: newCounts[HeardKey, Heard](maxHeard), hosts: newHostCounts(hosts),
		rules: newCounts[RuleKey, RuleHeard](maxRules), denied: newCounts[DeniedKey, Denied](maxDenied), bulk: newCounts[BulkKey, Bulk](maxBulk), reports: newCounts[ReportKey, Reported](hosts)}
}

// Observe counts who told of the records of a judged batch. It only reads the batch and keeps
// nothing of it.
func (c *Contacts) Observe(b *flow.Batch) {
	h := &c.hearing
	for i := range b.Records {
		h.record(&b.Records[i])
	}
}

// tellerOf is who tells of flows: which of them tells the same stands for one that can fall silent.
func tellerOf(s flow.Source, exporter flow.Addr, domain uint32, observer flow.Name, at flow.Reporter) HeardKey {
	k := HeardKey{Source: s}
	switch {
	case at != flow.ReporterElsewhere, s >= flow.SourceAWSVPC && s <= flow.SourceGCPFirewall:
	case s == flow.SourceZeek, s == flow.SourceSuricata, s == flow.SourceCEF:
		k.Addr, k.Name = exporter, observer
	default:
		k.Addr, k.Domain = exporter, domain
	}
	return k
}

func (h *hearing) record(r *flow.Record) {
	t := max(r.Start, r.End)
	if h.tolerance > 0 && r.Received != 0 {
		t = min(t, r.Received+h.tolerance)
	}
	t = max(t, 0)
	l := &h.last
	if t < l.from || t >= l.until || r.Exporter != l.exporter || r.Domain != l.domain || r.Source != l.source || r.Reporter != l.reporter || r.Observer != l.observer {
		if !h.teller(r, t) {
			return
		}
	}
	n := &h.heard.list[l.at].N
	n.Records++
	if l.late {
		n.Late++
	}
	if r.SamplingRate != 0 && n.Rates[0] != r.SamplingRate {
		n.rate(r.SamplingRate)
	}
	if r.Quality&(flow.QualityClockSkew|flow.QualityClockUnusable|flow.QualitySequenceGap) != 0 {
		if r.Quality&flow.QualitySequenceGap != 0 {
			n.Gaps++
		}
		if r.Quality&(flow.QualityClockSkew|flow.QualityClockUnusable) != 0 {
			n.Skewed++
			n.skew(r.Skew)
		}
	}
	if r.Verdict.Observed != flow.ObservedUnknown && (r.Enforced != flow.ObservedUnknown || r.Any(flow.HasFirewallEvent|flow.HasForwardingStatus)) {
		h.enforced(r, l.key.At)
	}
	if (r.SrcDoubt|r.DstDoubt)&flow.DoubtStale != 0 {
		for _, e := range [...]struct {
			doubt   flow.Doubt
			segment flow.Name
		}{{r.SrcDoubt, r.SrcSegment}, {r.DstDoubt, r.DstSegment}} {
			if e.doubt&flow.DoubtStale == 0 {
				continue
			}
			if n := h.heard.of(&HeardKey{At: l.key.At, Kind: heardStale, Name: e.segment}); n != nil {
				n.Records++
			} else {
				h.drop(flow.Addr{}, l.key.At)
			}
		}
	}
}

// teller finds who tells of a record at a time; not where no more may be counted.
func (h *hearing) teller(r *flow.Record, t flow.Time) bool {
	k := tellerOf(r.Source, r.Exporter, r.Domain, r.Observer, r.Reporter)
	k.At = uint32(t / minuteMillis)
	l := heardLast{exporter: r.Exporter, domain: r.Domain, observer: r.Observer, source: r.Source, reporter: r.Reporter,
		from: minuteTime(k.At), until: minuteTime(k.At + 1), late: k.At < h.past}
	if l.late {
		k.At, l.from, l.until = h.past, 0, minuteTime(h.past)
	}
	if l.key = k; h.last.until > 0 && k == h.last.key {
		l.at = h.last.at // of agents who tells the same is many
	} else {
		hash := k.hash()
		if h.heard.ofHash(&k, hash) == nil {
			h.drop(k.Addr, k.At)
			return false
		}
		l.at = int32(h.heard.find(&k, hash).at) - 1
	}
	h.last = l
	return true
}

// window is the ten minutes that a session which settled at a time counts in.
func (h *hearing) window(settled flow.Time) uint32 {
	at := max(uint32(max(settled, 0)/minuteMillis), h.past)
	return at - at%hostWindow
}

// drop notes that something could not be counted.
func (h *hearing) drop(about flow.Addr, minute uint32) {
	h.dropped++
	if !about.IsZero() {
		about = prefixOf(about)
	}
	h.pressed = press(h.pressed, boundHeard, about, 1, minute)
}

// Where in a slot of hosts' counts a session is counted, of its client; of its server one further.
const (
	countsTold   = 0
	countsUntold = 2
)

// Ways in which an end of a session counts, one bit each: those of countsTold and countsUntold, of
// clients and of servers.
const (
	waysClient uint8 = 1<<countsTold | 1<<countsUntold
	waysServer       = waysClient << 1
)

// ways is how the ends of a session count.
func (h *hearing) ways(a *asking) (ways uint8) {
	answered := a.Answered && !a.Open && a.NAT == flow.NATNone
	for side, e := range [...]*flow.FirstEnd{&a.Client, &a.Server} {
		switch {
		case e.Own:
			h.agents = true
			ways |= 1 << (countsTold + side)
		case answered && e.Segment != h.outside && (h.agents || e.Segment != flow.NoName):
			ways |= 1 << (countsUntold + side)
		}
	}
	return ways
}

// ask finds out how the ends of a few sessions count, and reads what was counted of those that were
// not counted yet on that edge in that window; of the edges what is read is near already.
func (h *hearing) ask(few []asking, edges *edgeTable, rows []flow.Session) (sum uint64) {
	mask := uint64(len(h.hosts.slots) - 1)
	for i := range few {
		a := &few[i]
		a.ends, a.ways, a.place = [2]uint64{}, h.ways(a), edges.place(a.edge)
		ways := a.ways
		if slot := &edges.slots[a.place]; slot.hash != 0 {
			ways = slot.uncounted(ways, uint32(a.Settled/minuteMillis))
		}
		for side, of := range [...]uint8{waysClient, waysServer} {
			if ways&of != 0 {
				a.ends[side] = h.hostHash(a, side, rows)
				sum += h.hosts.slots[a.ends[side]&mask].hash
			}
		}
	}
	return sum
}

// hostHash is the hash of the host that a side of a session counts as.
func (h *hearing) hostHash(a *asking, side int, rows []flow.Session) uint64 {
	e := &a.Client
	if side == 1 {
		e = &a.Server
	}
	if e.Own {
		k := h.hostOf(&rows[a.Row], side)
		return h.hosts.hash(&k)
	}
	return h.hosts.hashOf(e.Addr, h.window(a.Settled), e.Segment, e.Workload, 0)
}

// hostOf is the host that a side of a session counts as.
func (h *hearing) hostOf(s *flow.Session, side int) (k HostKey) {
	e := &s.Client
	if side == 1 {
		e = &s.Server
	}
	k = HostKey{At: h.window(s.Settled), Addr: e.Addr, Segment: e.Segment, Workload: e.Workload}
	if e.Own {
		k.Agent, k.Source = ownAgent(s, side, false)
	}
	return k
}

// ownAgent is the agent at a side of a session that told of it, of several the one whose format comes
// first; logsAll: of those alone whose log has every connection. Its source is 0 if there is none.
func ownAgent(s *flow.Session, side int, logsAll bool) (agent flow.Name, source flow.Source) {
	for i := range s.Observers[:min(int(s.ObserversTotal), len(s.Observers))] {
		o := &s.Observers[i]
		if int(o.Reporter) == side+1 && (source == 0 || o.Source < source) && (!logsAll || o.Source.LogsAll()) {
			agent, source = o.Observer, o.Source
		}
	}
	return agent, source
}

// heard counts whose agent told of a session that settled: of each edge once a window, so that who
// asks a host every second counts as who asks it now and then. turned: the edge is that of the session
// turned round.
func (c *Contacts) heard(a *asking, slot *edgeSlot, turned bool, minute uint32, rows []flow.Session) {
	ways := a.ways
	if turned {
		ways = otherSide(ways)
	}
	if ways = slot.uncounted(ways, minute); ways == 0 {
		return
	}
	slot.counted(ways, minute)
	if turned {
		ways = otherSide(ways)
	}
	h := &c.hearing
	for side, of := range [...]uint8{waysClient, waysServer} {
		if ways&of == 0 {
			continue
		}
		hash := a.ends[side]
		if hash == 0 { // it looked as if it were counted already
			hash = h.hostHash(a, side, rows)
		}
		n := h.hosts.of(hash)
		if n == nil {
			k := h.hostOf(&rows[a.Row], side)
			if n = h.hosts.add(&k, hash); n == nil {
				h.drop(k.Addr, k.At)
				continue
			}
		}
		h.hosts.count(n, bits.TrailingZeros8(ways&of))
	}
}

// otherSide is what counts as client as server, and the other way round.
func otherSide(ways uint8) uint8 { return ways&waysClient<<1 | ways&waysServer>>1 }

// ended counts what was moved in a session that is over. What goes on between strangers, and what
// is fetched from them, is nothing that is gathered here. e is of ends that are told apart, of which one
// sent bulkLeast or more.
func (h *hearing) ended(e *flow.EdgeContribution) {
	out := [2]bool{outside(e.Client, e.ClientSegment, e.ClientSegment == h.outside), outside(e.Server, e.ServerSegment, e.ServerSegment == h.outside)}
	moved := Bulk{First: e.First, Sessions: 1}
	for i, sent := range e.Sent {
		if sent >= bulkLeast && !out[i] {
			moved.Sent[i], moved.Most[i] = sent, BulkMoved{e.Session, e.First, sent}
		}
	}
	if moved.Sent == [2]uint64{} {
		return
	}
	at := uint32(max(e.Ended, 0) / minuteMillis)
	at = max(at-at%bulkWindow, h.bulkFrom())
	if n := h.bulk.of(&BulkKey{at, e.Client, e.Server, e.ClientSegment, e.ServerSegment, e.ClientWorkload, e.ServerWorkload, e.ServerPort, e.Proto}); n != nil {
		n.add(&moved)
	} else {
		h.drop(e.Client, at)
	}
}

// bulkFrom is the first window of what was moved that is not over.
func (h *hearing) bulkFrom() uint32 {
	if h.past < bulkOver {
		return 0
	}
	from := h.past - bulkOver + 1
	return from + (bulkWindow-from%bulkWindow)%bulkWindow
}

// enforced counts what enforcement did with a flow, by what the record itself says of it.
func (h *hearing) enforced(r *flow.Record, at uint32) {
	v := &r.Verdict
	if v.Rule == flow.NoName || r.Oriented == flow.Open || v.Expected == flow.ExpectUnknown || v.Reason == flow.ReasonWaived || letOutOnly(r) {
		return // let out by the client's agent and stopped by the next is ordinary
	}
	w := tellerOf(r.Source, r.Exporter, 0, r.Observer, r.Reporter)
	n := h.rules.of(&RuleKey{At: at - at%hostWindow, Rule: v.Rule, Addr: w.Addr, Name: w.Name, Source: r.Source, By: r.EnforcedBy})
	switch {
	case n == nil:
		h.drop(w.Addr, at)
	case v.Observed == flow.ObservedDeny:
		n.Denied++
		if v.Expected == flow.ExpectAllow {
			n.Misblocked++
		}
	default:
		n.Allowed++
		if v.Expected == flow.ExpectDeny {
			n.Escaped++
		}
	}
}

// take takes out the windows that the watermark has passed.
func (h *hearing) take(watermark flow.Time) (o Observations) {
	past := uint32(1<<32 - 1)
	if watermark != maxTime {
		past = uint32(max(watermark, 0) / minuteMillis)
	}
	if past <= h.past {
		return o
	}
	o.Heard = h.heard.take(func(k *HeardKey) bool { return k.At+heardWindow <= past })
	o.Hosts = h.hosts.take(func(k *HostKey) bool { return k.At+hostWindow <= past })
	o.Rules = h.rules.take(func(k *RuleKey) bool { return k.At+hostWindow <= past })
	o.Denied = h.denied.take(func(k *DeniedKey) bool { return k.At+hostWindow <= past })
	o.Reports = h.reports.take(func(k *ReportKey) bool { return k.At+hostWindow <= past })
	o.Bulk = h.bulk.take(func(k *BulkKey) bool { return k.At+bulkOver <= past })
	h.last = heardLast{}
	if watermark != maxTime {
		h.past = past
	}
	return o
}

// join makes of several an empty one that goes on from where the last of them is; theirs says that it has their counts too.
func (h *hearing) join(from []*hearing, theirs bool) {
	for i, o := range from {
		if h.past = min(h.past, o.past); i == 0 {
			h.past = o.past
		}
		h.agents = h.agents || o.agents
		if theirs {
			h.dropped += o.dropped
			addAll(&h.heard, &o.heard, (*Heard).add)
			h.hosts.addAll(o.hosts.list())
			addAll(&h.rules, &o.rules, (*RuleHeard).add)
			addAll(&h.denied, &o.denied, (*Denied).add)
			addAll(&h.bulk, &o.bulk, (*Bulk).add)
			addAll(&h.reports, &o.reports, (*Reported).add)
		}
	}
}

func addAll[K counted, N any](to, from *counts[K, N], add func(to, from *N)) {
	for i := range from.list {
		if n := to.of(&from.list[i].Key); n != nil {
			add(n, &from.list[i].N)
		}
	}
}

func (h *hearing) save(w *stateWriter) {
	w.u64(uint64(h.past))
	w.u64(h.dropped)
	agents := uint64(0)
	if h.agents {
		agents = 1
	}
	w.u64(agents)
	(&Observations{h.heard.list, h.hosts.list(), h.rules.list, h.denied.list, h.bulk.list, h.reports.list}).save(w)
}

func (h *hearing) load(r *stateReader) {
	h.past, h.dropped, h.agents = uint32(r.u64()), r.u64(), r.u64() != 0
	var o Observations
	o.load(r)
	h.heard.adopt(o.Heard)
	h.hosts.adopt(o.Hosts)
	h.rules.adopt(o.Rules)
	h.denied.adopt(o.Denied)
	h.bulk.adopt(o.Bulk)
	h.reports.adopt(o.Reports)
}

func (o *Observations) save(w *stateWriter) {
	saveAll(w, o.Heard)
	saveAll(w, o.Hosts)
	saveAll(w, o.Rules)
	saveAll(w, o.Denied)
	saveAll(w, o.Bulk)
	saveAll(w, o.Reports)
}

func (o *Observations) load(r *stateReader) {
	o.Heard, o.Hosts, o.Rules = loadAll[Tally[HeardKey, Heard]](r), loadAll[Tally[HostKey, HostHeard]](r), loadAll[Tally[RuleKey, RuleHeard]](r)
	o.Denied = loadAll[Tally[DeniedKey, Denied]](r)
	o.Bulk = loadAll[Tally[BulkKey, Bulk]](r)
	o.Reports = loadAll[Tally[ReportKey, Reported]](r)
}

// Len is how many counts there are.
func (o *Observations) Len() int {
	return len(o.Heard) + len(o.Hosts) + len(o.Rules) + len(o.Denied) + len(o.Bulk) + len(o.Reports)
}

// Cut takes out n of the counts, or all of them.
func (o *Observations) Cut(n int) (d Observations) {
	d.Heard, o.Heard = cut(o.Heard, &n)
	d.Hosts, o.Hosts = cut(o.Hosts, &n)
	d.Rules, o.Rules = cut(o.Rules, &n)
	d.Denied, o.Denied = cut(o.Denied, &n)
	d.Bulk, o.Bulk = cut(o.Bulk, &n)
	d.Reports, o.Reports = cut(o.Reports, &n)
	return d
}

func cut[K, N any](list []Tally[K, N], n *int) (first, rest []Tally[K, N]) {
	k := min(*n, len(list))
	*n -= k
	return list[:k:k], list[k:]
}

func (o *Observations) append(p *Observations) {
	o.Heard, o.Hosts, o.Rules = append(o.Heard, p.Heard...), append(o.Hosts, p.Hosts...), append(o.Rules, p.Rules...)
	o.Denied = append(o.Denied, p.Denied...)
	o.Bulk = append(o.Bulk, p.Bulk...)
	o.Reports = append(o.Reports, p.Reports...)
}

// due takes out what ended by a time, in an order that hangs on nothing but what it is, each
// key once.
func (o *Observations) due(until flow.Time, names *flow.Names) (d Observations) {
	text := func(a, b flow.Name) int {
		if a == b {
			return 0
		}
		return cmp.Compare(names.Text(a), names.Text(b))
	}
	over := func(at uint32, window flow.Time) bool { return (flow.Time(at)+window)*minuteMillis <= until }
	o.Heard, d.Heard = part(o.Heard, func(k *HeardKey) bool { return over(k.At, heardWindow) }, func(a, b *HeardKey) int {
		return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Source, b.Source), a.Addr.Compare(b.Addr), cmp.Compare(a.Domain, b.Domain), text(a.Name, b.Name))
	}, (*Heard).add)
	o.Hosts, d.Hosts = part(o.Hosts, func(k *HostKey) bool { return over(k.At, hostWindow) }, func(a, b *HostKey) int {
		if n := cmp.Or(cmp.Compare(a.At, b.At), a.Addr.Compare(b.Addr)); n != 0 {
			return n // nearly always: there may be millions
		}
		return cmp.Or(text(a.Agent, b.Agent), cmp.Compare(a.Source, b.Source), text(a.Segment, b.Segment), text(a.Workload, b.Workload))
	}, (*HostHeard).add)
	o.Rules, d.Rules = part(o.Rules, func(k *RuleKey) bool { return over(k.At, hostWindow) }, func(a, b *RuleKey) int {
		return cmp.Or(cmp.Compare(a.At, b.At), text(a.Rule, b.Rule), cmp.Compare(a.Source, b.Source), a.Addr.Compare(b.Addr), text(a.Name, b.Name), text(a.By, b.By))
	}, (*RuleHeard).add)
	o.Denied, d.Denied = part(o.Denied, func(k *DeniedKey) bool { return over(k.At, hostWindow) }, func(a, b *DeniedKey) int {
		return cmp.Or(cmp.Compare(a.At, b.At), a.Addr.Compare(b.Addr), text(a.Segment, b.Segment), text(a.Workload, b.Workload))
	}, (*Denied).add)
	o.Bulk, d.Bulk = part(o.Bulk, func(k *BulkKey) bool { return over(k.At, bulkOver) }, func(a, b *BulkKey) int {
		return cmp.Or(cmp.Compare(a.At, b.At), a.Client.Compare(b.Client), a.Server.Compare(b.Server), text(a.ClientSegment, b.ClientSegment),
			text(a.ServerSegment, b.ServerSegment), text(a.ClientWorkload, b.ClientWorkload), text(a.ServerWorkload, b.ServerWorkload),
			cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto))
	}, (*Bulk).add)
	o.Reports, d.Reports = part(o.Reports, func(k *ReportKey) bool { return over(k.At, hostWindow) }, func(a, b *ReportKey) int {
		return cmp.Or(cmp.Compare(a.At, b.At), a.Addr.Compare(b.Addr), cmp.Compare(a.Source, b.Source), text(a.Agent, b.Agent))
	}, (*Reported).add)
	return d
}

// part takes out of a list what is over, in order, and adds up what has the same key.
func part[K comparable, N any](list []Tally[K, N], over func(*K) bool, order func(a, b *K) int, add func(to, from *N)) (rest, out []Tally[K, N]) {
	rest, out = split(list, over)
	if len(out) == 0 {
		return list, nil
	}
	slices.SortFunc(out, func(a, b Tally[K, N]) int { return order(&a.Key, &b.Key) })
	n := 0
	for i := 1; i < len(out); i++ {
		if out[i].Key == out[n].Key {
			add(&out[n].N, &out[i].N)
		} else {
			n++
			out[n] = out[i]
		}
	}
	return rest, out[:n+1]
}
