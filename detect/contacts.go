package detect

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/postern/postern/flow"
	"github.com/prometheus/client_golang/prometheus"
)

// Contacts is the part of the detectors of behaviour that needs nothing but one pair of
// endpoints. It takes every session once, when it settles, and passes on what those that see
// the whole estate have to read: edges seen for the first time, remote administration, attempts
// that came to nothing, exceptions and denials. That is some thousandth of the flows, so one
// [Behaviour] can take in the contacts of many.
//
// What it decides hangs on the pair's own past alone, so it does not matter how pairs are
// divided among several. It is not safe for concurrent use. Its state is bounded.
type Contacts struct {
	cfg *BehaviourConfig
	m   *contactsMetrics

	passEvery uint32 // minutes

	edges   edgeTable
	mappers map[pair]mapping
	repeats map[uint64]uint32 // by edge: sessions under an exception not passed on
	fresh   map[pair]recently // pairs that lately began to administer
	doors   map[uint64]uint32 // by edge: the minute at which enforcement stopped somebody there last
	swept   flow.Time
	failed  failedBudget
	out     []Contact
	pressed []Pressure // since the last Collect
	untold  []flow.Untold
	hearing hearing
	beats   beats
	names   *flow.Names
}

// pair is two ends of which it is known who began.
type pair struct{ client, server flow.Addr }

func (p pair) compare(o pair) int {
	return cmp.Or(p.client.Compare(o.client), p.server.Compare(o.server))
}

// mapping is what a pair last asked an endpoint mapper.
type mapping struct{ from, until flow.Time }

// NewContacts makes a Contacts. names is the table the records' names come from; reg may be nil.
func NewContacts(cfg Config, names *flow.Names, reg prometheus.Registerer) (*Contacts, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Contacts{cfg: &cfg.Behaviour, names: names, m: newContactsMetrics(reg), passEvery: uint32(cfg.Behaviour.PassEvery / time.Minute)}
	c.hearing.tolerance = millis(cfg.ClockTolerance)
	c.reset()
	return c, nil
}

func (c *Contacts) reset() {
	c.hearing = newHearing(c.hearing.tolerance, c.names.Intern("internet"), c.cfg.MaxHosts)
	c.edges, c.mappers, c.repeats, c.swept, c.out = newEdgeTable(c.cfg.MaxEdges), map[pair]mapping{}, map[uint64]uint32{}, 0, nil
	c.failed, c.pressed, c.untold = failedBudget{}, nil, nil
	c.fresh, c.doors = map[pair]recently{}, map[uint64]uint32{}
	c.beats = newBeats(c.cfg, c.hearing.outside)
}

// Sessions takes in versions of sessions, of which only first versions count, and what the same
// input added to the roll-up of edges, of which only what is over counts. index is of both. It keeps
// nothing of them.
//
// With a million hosts what is known of an edge and what was counted of its ends lies in no
// cache, and one after the other each session would wait for memory several times. So a few
// sessions are looked at together: first their places are read, none of which waits for another,
// and then each session finds its own near.
func (c *Contacts) Sessions(rows []flow.Session, edges []flow.EdgeContribution, index *flow.Index) {
	in := intake{rows: rows, edges: edges, over: index.Over}
	var few [atOnce]asking
	n := 0
	mappers := index.Mappers
	for i := range index.First {
		s := &index.First[i]
		if len(mappers) > 0 && index.First[mappers[0]].Settled == s.Settled {
			c.answer(few[:n], &in)
			n = 0
			mappers = c.askedAt(s.Settled, index.First, mappers)
		}
		few[n].ask(s)
		if n++; n == len(few) {
			c.answer(few[:n], &in)
			n = 0
		}
	}
	c.answer(few[:n], &in)
	c.endedBefore(maxTime, &in)
	c.m.received.Add(float64(len(index.First)))
}

// intake is what Sessions takes in.
type intake struct {
	rows  []flow.Session
	edges []flow.EdgeContribution
	over  []flow.Over
	next  int // the first of over that was not taken in yet
}

// atOnce is how many sessions are looked at together: as many as keep the processor's few
// dozen outstanding reads busy, and few enough that what was read first is near still.
const atOnce = 32

// asking is a session, what is read of it and where to look for what is known of it.
type asking struct {
	*flow.First
	fate fate
	bad  bool // never learned as normal
	// The class, the service and the hash of its edge, unless an endpoint mapper turns it into another.
	kind    class
	service uint32
	edge    uint64
	place   uint64 // where its edge was when it was asked for
	// ways is how its ends count among the hosts that are heard, and ends are their hashes there; 0 where
	// that was not asked for.
	ways uint8
	ends [2]uint64
}

func (a *asking) ask(s *flow.First) {
	a.First, a.fate, a.bad = s, fateOf(s), misuse(s.Reason, s.Exception, s.Observed)
	a.kind, a.service = edgeServiceOf(s, s.Server.Port, false)
	a.edge = hashEdge(s.Client.Addr, s.Server.Addr, a.service)
}

// answer takes in a few sessions, and what was over before. Loops that wait for memory do little
// else, for a processor looks ahead by a number of instructions. What they read is summed up and
// given back so that it is not read for nothing.
func (c *Contacts) answer(few []asking, in *intake) (sum uint64) {
	sum = c.edges.ask(few)
	sum += c.hearing.ask(few, &c.edges, in.rows)
	for i := range few {
		a := &few[i]
		c.endedBefore(a.Settled, in)
		if a.Client.Own || a.Server.Own {
			c.hearing.reported(&in.rows[a.Row])
		}
		c.settled(a, in.rows)
	}
	return sum
}

// endedBefore takes in the sessions that were over before a time.
func (c *Contacts) endedBefore(at flow.Time, in *intake) {
	for ; in.next < len(in.over); in.next++ {
		o := &in.over[in.next]
		if o.Ended >= at {
			return
		}
		if o.Open {
			continue
		}
		if o.Sent >= bulkLeast {
			c.hearing.ended(&in.edges[o.Place])
		}
		c.beats.ended(o, in.edges)
	}
}

// serviceDynamic stands for every dynamic port: which one it is says nothing and is new each time.
const serviceDynamic = 1 << 24

// edgeServiceOf is the class of a session whose server's port is port, and its service within the
// table of edges.
func edgeServiceOf(s *flow.First, port uint16, mapped bool) (kind class, service uint32) {
	kind = classOf(s.Proto, port)
	if mapped {
		kind = classRPC
	}
	return kind, edgeService(s.Proto, port, mapped || s.Open, s.HasICMP, s.ICMPType, s.ICMPCode)
}

// edgeService is a service within the table of edges; dynamic: its port says nothing.
func edgeService(proto uint8, port uint16, dynamic, icmp bool, icmpType, icmpCode uint8) uint32 {
	switch {
	case icmp:
		return uint32(icmpType)<<16 | uint32(icmpCode)<<8 | uint32(proto)
	case dynamic || port >= portDynamicLow:
		return serviceDynamic | uint32(proto)
	}
	return uint32(port)<<8 | uint32(proto)
}

// settled takes in one session.
func (c *Contacts) settled(a *asking, rows []flow.Session) {
	s, edge := a.First, a.edge
	client, server, port := s.Client.Addr, s.Server.Addr, s.Server.Port
	kind, service := a.kind, a.service
	mapped, turn := c.mapped(s)
	if turn {
		client, server, port = server, client, s.Client.Port
	}
	if mapped {
		kind, service = edgeServiceOf(s, port, mapped)
		edge = hashEdge(client, server, service)
	}
	became, bad := a.fate, a.bad
	if kind == classRPC && !mapped && !s.Open && !became.failed() {
		c.asked(client, server, s)
	}

	minute := uint32(s.Settled / minuteMillis)
	prefix := prefixOf(client)
	slot, held := c.edges.near(a.place, edge), true
	if slot == nil {
		slot, held = c.edge(edge, prefix, minute)
	}
	known := flow.Time(0)
	if held {
		known = minuteTime(slot.minute())
	}
	var pass, fresh bool
	if became.failed() {
		// One attempt an hour; and none where the edge is known to work.
		fresh = slot.flags&(edgeLearned|edgeFailed|edgeAnswered) == 0
		pass = slot.flags&edgeFailed == 0 || minute-slot.minute() >= 60 || kind.administers() && c.passable(slot, minute)
	} else {
		fresh = slot.flags&edgeLearned == 0
		pass = fresh && (slot.flags&edgePassed == 0 || c.passable(slot, minute)) || kind.administers() && c.passable(slot, minute)
	}
	if kind.administers() && !became.failed() {
		pass = c.together(client, server, s.Settled, fresh) || pass
	}
	if !held {
		if _, shut := c.doors[edge]; shut { // it was forgotten meanwhile
			slot.seen |= edgeShut
		}
	}
	stopped := (became == fateDenied || slot.seen&edgeShut != 0) && c.stopped(s, client, slot, became, minute)
	pass = pass || stopped
	if !pass && (bad || s.Exception != flow.NoName) {
		if pass = c.passable(slot, minute); !pass && s.Exception != flow.NoName {
			c.repeated(slot.hash, prefix, minute)
		}
	}
	cross, newPair := uint16(0), false
	if s.Client.Segment != s.Server.Segment {
		cross = edgeCross
	}
	if fresh && !became.failed() {
		at, again := c.edge(hashEdge(client, server, 0), prefix, minute)
		newPair = !again || at.flags&edgeLearned == 0
		at.touch(minute)
		at.flags |= edgeAnswered | cross
		if !bad {
			at.flags |= edgeLearned
		}
		if slot = c.edges.at(edge); slot.hash == 0 { // the table may have been made anew
			slot, _ = c.edge(edge, prefix, minute)
		}
	}
	worked := slot.flags&(edgeAnswered|edgeLearned) != 0
	slot.touch(minute)
	c.heard(a, slot, turn, minute, rows)
	slot.flags |= cross
	switch {
	case became.failed():
		slot.flags |= edgeFailed
	case bad:
		slot.flags |= edgeAnswered
	default:
		slot.flags |= edgeAnswered | edgeLearned
		slot.flags &^= edgeFailed
	}
	times := rhythm{}
	if !became.failed() && !mapped && !s.Open && (fresh || slot.seen&edgeFollowed != 0) {
		times = c.beat(slot, client, server, service, fresh, s)
	}
	if !pass {
		if times.Beats > 0 {
			c.out = append(c.out, Contact{Session: rows[s.Row], Class: kind, Fate: became, Worked: true, Known: known, Rhythm: times, Aside: true})
		}
		return
	}
	if became.failed() && !c.failed.spend(minute, homeOf(prefix)) {
		c.m.unfollowed.Inc()
		c.press(boundAttempts, prefix, 1, minute)
		return
	}
	slot.passed = uint16(minute)
	slot.flags |= edgePassed
	c.out = append(c.out, Contact{Session: rows[s.Row], Class: kind, Fate: became, New: fresh, NewPair: newPair,
		Unsure: fresh && c.edges.forgotten > 0 && kind.administers() && !s.Open && !became.failed(), Worked: worked, Mapped: mapped, Known: known, Stopped: stopped, Repeats: c.repeats[slot.hash], Rhythm: times})
	delete(c.repeats, slot.hash)
	out := &c.out[len(c.out)-1].Session
	if turn {
		turned(out)
	} else if mapped && out.Open {
		out.Open, out.OrientationCertainty = false, certainByMapper
	}
}

// certainByMapper is how sure it is who began on a dynamic port, in percent: whoever asked the
// endpoint mapper just before.
const certainByMapper = 70

// passable says whether an edge was not passed on for as long as it takes to be again.
func (c *Contacts) passable(s *edgeSlot, minute uint32) bool {
	return s.flags&edgePassed == 0 || uint32(uint16(minute)-s.passed) >= c.passEvery
}

// recently is that a pair lately had its first remote administration: what else of it comes
// within the hour is passed on, up to a number of sessions.
type recently struct {
	until flow.Time
	n     uint32
}

const (
	maxFresh    = 1 << 16
	maxTogether = 32
)

// together says whether a session of remote administration belongs to the first of its pair.
func (c *Contacts) together(client, server flow.Addr, at flow.Time, first bool) bool {
	k := pair{client, server}
	r, known := c.fresh[k]
	switch {
	case known && at <= r.until && r.n < maxTogether:
		r.n++
		c.fresh[k] = r
		return true
	case !first:
	case known || len(c.fresh) < maxFresh:
		c.fresh[k] = recently{until: at + togetherFor}
	default:
		c.m.unjoined.Inc()
		c.press(boundFresh, prefixOf(client), 1, uint32(at/minuteMillis))
	}
	return false
}

const maxRepeats = 1 << 16

func (c *Contacts) repeated(hash uint64, prefix flow.Addr, minute uint32) {
	if _, known := c.repeats[hash]; !known && len(c.repeats) >= maxRepeats {
		c.m.uncounted.Inc()
		c.press(boundRepeats, prefix, 1, minute)
		return
	}
	c.repeats[hash]++
}

// turned makes of a session whose ends were not told apart one whose higher end is the client.
func turned(s *flow.Session) {
	s.Client, s.Server = s.Server, s.Client
	s.NATClient, s.NATServer, s.NATClientPort, s.NATServerPort = s.NATServer, s.NATClient, s.NATServerPort, s.NATClientPort
	s.Open, s.OrientationCertainty = false, certainByMapper
	for i := range s.Observers {
		switch o := &s.Observers[i]; o.Reporter {
		case flow.ReporterSource:
			o.Reporter = flow.ReporterDestination
		case flow.ReporterDestination:
			o.Reporter = flow.ReporterSource
		}
	}
}

// mapperKeeps is for how long after an endpoint mapper was asked a dynamic port belongs to it.
// Windows closes an idle binding after two minutes; what it handed out is used at once.
const mapperKeeps = 2 * minuteMillis

const maxMappers = 1 << 16

// asked notes that a client asked a server's endpoint mapper.
func (c *Contacts) asked(client, server flow.Addr, s *flow.First) {
	k := pair{client, server}
	m, known := c.mappers[k]
	if !known {
		if len(c.mappers) >= maxMappers {
			c.m.unmapped.Inc()
			c.press(boundMappers, prefixOf(client), 1, uint32(s.Settled/minuteMillis))
			return
		}
		m.from = s.Start
	}
	if s.Start > m.until+mapperKeeps {
		m.from = s.Start
	}
	m.until = max(m.until, s.Start, s.End)
	c.mappers[k] = m
}

// askedAt notes the endpoint mappers that were asked in the sessions that settled at a time, of which
// mappers are the first, and gives the places of the others. A log that is stamped in whole seconds
// has the mapper and what it handed out begin at the same time, and which of them comes first says
// nothing.
func (c *Contacts) askedAt(at flow.Time, settled []flow.First, mappers []int32) []int32 {
	for ; len(mappers) > 0 && settled[mappers[0]].Settled == at; mappers = mappers[1:] {
		if s := &settled[mappers[0]]; !s.Open && !fateOf(s).failed() {
			c.asked(s.Client.Addr, s.Server.Addr, s)
		}
	}
	return mappers
}

// mapped says whether a session on dynamic ports belongs to an endpoint-mapper session of its
// pair just before, and whether that turns its ends round.
func (c *Contacts) mapped(s *flow.First) (mapped, turn bool) {
	if s.Proto != flow.ProtoTCP || !s.HasPorts || len(c.mappers) == 0 || s.Server.Port < 1024 || s.Client.Port < 1024 {
		return false, false
	}
	within := func(client, server flow.Addr) bool {
		m, ok := c.mappers[pair{client, server}]
		return ok && s.Start+1000 >= m.from && s.Start <= m.until+mapperKeeps // a second for exporters' clocks
	}
	if classOf(s.Proto, s.Server.Port) != classOther {
		return false, false
	}
	if within(s.Client.Addr, s.Server.Addr) {
		return true, false
	}
	if (s.Open || s.OrientationCertainty <= 80) && within(s.Server.Addr, s.Client.Addr) {
		return true, true
	}
	return false, false
}

// Collect gives what was passed on since the last Collect; watermark is what no session settles
// before any more. What it gives belongs to the caller.
func (c *Contacts) Collect(watermark flow.Time) Digest {
	if watermark != maxTime && watermark > c.swept+hourMillis {
		c.sweep(watermark)
	}
	d := Digest{Until: watermark, Contacts: c.out, Pressed: append(c.pressed, c.hearing.pressed...), Untold: c.untold, Observations: c.hearing.take(watermark)}
	c.out, c.pressed, c.untold, c.hearing.pressed = nil, nil, nil, nil
	c.m.passed.Add(float64(len(d.Contacts)))
	c.m.edges.Set(float64(c.edges.n))
	c.m.forgotten.Set(float64(c.edges.forgotten))
	c.m.unheard.Set(float64(c.hearing.dropped))
	c.m.beats.Set(float64(len(c.beats.at)))
	c.m.unbeaten.Set(float64(c.beats.dropped))
	return d
}

const (
	minuteMillis = 60 * 1000
	hourMillis   = 60 * minuteMillis
)

func (c *Contacts) sweep(now flow.Time) {
	c.swept = now
	maps.DeleteFunc(c.fresh, func(_ pair, r recently) bool { return r.until < now })
	maps.DeleteFunc(c.doors, func(_ uint64, minute uint32) bool { return minute+doorKeeps < uint32(max(now, 0)/minuteMillis) })
	maps.DeleteFunc(c.mappers, func(_ pair, m mapping) bool { return m.until+mapperKeeps+hourMillis < now })
	c.beats.sweep(now - hourMillis)                                   // what settles from now on began before
	if day := flow.Time(dayMillis); now/day != (now-hourMillis)/day { // once a day
		c.edges.forget(uint32((now - millis(c.cfg.Remember)) / minuteMillis))
	}
}

const (
	contactsMagic   = "postern contacts\n"
	contactsVersion = 5
)

// Snapshot is the whole state: what was collected is not part of it.
func (c *Contacts) Snapshot() ([]byte, error) {
	b := make([]byte, 0, len(contactsMagic)+64+16*c.edges.n)
	b = append(b, contactsMagic...)
	b = append(b, contactsVersion)
	b = binary.LittleEndian.AppendUint64(b, uint64(c.swept))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(c.mappers)))
	addr := func(a flow.Addr) {
		b = binary.LittleEndian.AppendUint64(b, a.Hi)
		b = binary.LittleEndian.AppendUint64(b, a.Lo)
	}
	for _, k := range slices.SortedFunc(maps.Keys(c.mappers), pair.compare) {
		addr(k.client)
		addr(k.server)
		b = binary.LittleEndian.AppendUint64(b, uint64(c.mappers[k].from))
		b = binary.LittleEndian.AppendUint64(b, uint64(c.mappers[k].until))
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(c.fresh)))
	for _, k := range slices.SortedFunc(maps.Keys(c.fresh), pair.compare) {
		addr(k.client)
		addr(k.server)
		b = binary.LittleEndian.AppendUint64(b, uint64(c.fresh[k].until))
		b = binary.LittleEndian.AppendUint32(b, c.fresh[k].n)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(c.repeats)))
	for _, k := range slices.Sorted(maps.Keys(c.repeats)) {
		b = binary.LittleEndian.AppendUint64(b, k)
		b = binary.LittleEndian.AppendUint32(b, c.repeats[k])
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(c.doors)))
	for _, k := range slices.Sorted(maps.Keys(c.doors)) {
		b = binary.LittleEndian.AppendUint64(b, k)
		b = binary.LittleEndian.AppendUint32(b, c.doors[k])
	}
	w := newStateWriter(c.names)
	c.hearing.save(w)
	c.beats.save(w)
	heard := w.bytes(hearingMagic, hearingVersion)
	b = append(binary.LittleEndian.AppendUint32(b, uint32(len(heard))), heard...)
	b = c.failed.appendTo(b)
	return c.edges.appendTo(b), nil
}

const (
	hearingMagic   = "postern hearing\n"
	hearingVersion = 5
)

var errContacts = errors.New("it ends too early or is not what a snapshot of contacts holds")

// Restore replaces the state by that of a snapshot. After an error the Contacts is empty.
func (c *Contacts) Restore(b []byte) error {
	c.reset()
	if err := c.read(b); err != nil {
		c.reset()
		return fmt.Errorf("reading the snapshot of contacts: %w", err)
	}
	return nil
}

func (c *Contacts) read(b []byte) error {
	if len(b) < len(contactsMagic)+13 || string(b[:len(contactsMagic)]) != contactsMagic {
		return errContacts
	}
	if v := b[len(contactsMagic)]; v != contactsVersion {
		return fmt.Errorf("it is of version %d; this program reads version %d", v, contactsVersion)
	}
	b = b[len(contactsMagic)+1:]
	u64 := func() uint64 {
		v := binary.LittleEndian.Uint64(b)
		b = b[8:]
		return v
	}
	count := func(each int) (int, bool) {
		if len(b) < 4 {
			return 0, false
		}
		n := int(binary.LittleEndian.Uint32(b))
		b = b[4:]
		return n, n <= len(b)/each
	}
	c.swept = flow.Time(u64())
	n, ok := count(48)
	if !ok || n > maxMappers {
		return errContacts
	}
	for range n {
		k := pair{flow.Addr{Hi: u64(), Lo: u64()}, flow.Addr{Hi: u64(), Lo: u64()}}
		c.mappers[k] = mapping{flow.Time(u64()), flow.Time(u64())}
	}
	if n, ok = count(44); !ok || n > maxFresh {
		return errContacts
	}
	for range n {
		k := pair{flow.Addr{Hi: u64(), Lo: u64()}, flow.Addr{Hi: u64(), Lo: u64()}}
		until := flow.Time(u64())
		c.fresh[k] = recently{until, binary.LittleEndian.Uint32(b)}
		b = b[4:]
	}
	if n, ok = count(12); !ok || n > maxRepeats {
		return errContacts
	}
	for range n {
		k := u64()
		c.repeats[k] = binary.LittleEndian.Uint32(b)
		b = b[4:]
	}
	if n, ok = count(12); !ok || n > maxDoors {
		return errContacts
	}
	for range n {
		k := u64()
		c.doors[k] = binary.LittleEndian.Uint32(b)
		b = b[4:]
	}
	if n, ok = count(1); !ok {
		return errContacts
	}
	r := newStateReader(b[:n], hearingMagic, hearingVersion, c.names)
	c.hearing.load(r)
	c.beats.load(r)
	if err := r.end(); err != nil {
		return err
	}
	b, err := c.failed.read(b[n:])
	if err == nil {
		b, err = c.edges.read(b)
	}
	if err == nil && len(b) > 0 {
		err = errContacts
	}
	return err
}

// contactsMetrics are those of the stage.
type contactsMetrics struct {
	received, passed, uncounted, unmapped, unfollowed, undenied, unjoined prometheus.Counter
	edges, forgotten, unheard, beats, unbeaten                            prometheus.Gauge
}

func newContactsMetrics(reg prometheus.Registerer) *contactsMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_contacts_" + name, Help: help})
	}
	m := &contactsMetrics{
		received:   counter("received_sessions_total", "Sessions that settled."),
		passed:     counter("passed_sessions_total", "Sessions passed on to the detectors of behaviour."),
		uncounted:  counter("repeats_uncounted_total", "Sessions under an exception that were not passed on and could not be counted."),
		unmapped:   counter("mappers_dropped_total", "Endpoint-mapper sessions whose dynamic ports could not be watched for."),
		unfollowed: counter("failed_unfollowed_total", "Attempts that came to nothing and were not passed on because their source's prefix, or all, had too many that minute."),
		undenied:   counter("denied_uncounted_total", "Denied sessions that could not be counted for their source, or whose edge could not be remembered, because too many were denied at once."),
		unjoined:   counter("firsts_dropped_total", "First remote administrations of a pair whose next sessions are not passed on with them because too many pairs began within the hour."),
		edges:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_contacts_edges", Help: "Edges (client, server, service) remembered."}),
		forgotten:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_contacts_edges_forgotten", Help: "Edges forgotten before their time because no more may be remembered (detect.behaviour.maxEdges)."}),
		unheard:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_contacts_unheard", Help: "Records and sessions that detectors of blind spots and drift did not hear of because no more may be counted at once."}),
		beats:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_contacts_beats", Help: "Edges whose times are followed to find beacons."}),
		unbeaten:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_contacts_beats_dropped", Help: "Edges whose times are no longer followed because no more may be (a sixteenth of detect.behaviour.maxEdges)."}),
	}
	if reg != nil {
		reg.MustRegister(m.received, m.passed, m.uncounted, m.unmapped, m.unfollowed, m.undenied, m.unjoined, m.edges, m.forgotten, m.unheard, m.beats, m.unbeaten)
	}
	return m
}
