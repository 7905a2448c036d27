package enrich

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
)

// A snapshot of sessions is binary: there may be hundreds of thousands of them. It begins with
// sessionsMagic and the version; then come the texts of the names, since a Name means nothing
// outside its table, and the state in a fixed order, so that the same state gives the same
// bytes. Numbers are varints.
const (
	sessionsMagic = "postern sessions\n"
	// sessionsVersion rises whenever what a snapshot holds changes its layout or its meaning.
	// Version 1, which said whether an end had sent and not when, version 2, which did not
	// say what of a session is in the roll-up, version 3, which did not say by what a session
	// opened, version 4, which did not say which source an identity is from, version 5, which said
	// of agents when they told of what, version 6, which did not say from when on a clock's offset
	// is in force, and version 7, which did not say who was behind what is in the roll-up, are read as well.
	sessionsVersion = 8
)

// coder writes or reads the state, by the same code, so that the two cannot differ.
type coder struct {
	b       []byte // written, or still to be read
	reading bool
	version uint64 // of the layout, when reading
	err     error

	names *flow.Names
	ids   []uint32    // writing: where a name stands in texts; 0 for one that does not yet
	texts []string    // writing
	read  []flow.Name // reading
}

var errSnapshotShort = errors.New("it ends too early or is not what a snapshot holds")

func (c *coder) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.b = nil
}

func (c *coder) u64(v *uint64) {
	if !c.reading {
		c.b = binary.AppendUvarint(c.b, *v)
		return
	}
	n, k := binary.Uvarint(c.b)
	if k <= 0 {
		c.fail(errSnapshotShort)
		n, k = 0, 0
	}
	*v, c.b = n, c.b[k:]
}

func coded[T ~uint8 | ~uint16 | ~uint32 | ~int32 | ~int64 | ~int](c *coder, v *T) {
	if !c.reading {
		c.b = binary.AppendVarint(c.b, int64(*v))
		return
	}
	var n uint64
	c.u64(&n)
	back := int64(n>>1) ^ -int64(n&1)
	if *v = T(back); int64(*v) != back {
		c.fail(errSnapshotShort)
		*v = 0
	}
}

func (c *coder) bool(v *bool) {
	n := uint64(0)
	if *v {
		n = 1
	}
	c.u64(&n)
	*v = n != 0
}

// fixed is for numbers that are hashes: eight bytes.
func (c *coder) fixed(v *uint64) {
	if !c.reading {
		c.b = binary.LittleEndian.AppendUint64(c.b, *v)
		return
	}
	if *v = 0; len(c.b) < 8 {
		c.fail(errSnapshotShort)
		return
	}
	*v, c.b = binary.LittleEndian.Uint64(c.b), c.b[8:]
}

func (c *coder) addr(a *flow.Addr) {
	c.u64(&a.Hi)
	c.u64(&a.Lo)
}

func (c *coder) name(n *flow.Name) {
	if c.reading {
		var i uint64
		if c.u64(&i); i >= uint64(len(c.read)) {
			c.fail(errSnapshotShort)
			i = 0
		}
		*n = flow.NoName
		if len(c.read) > 0 {
			*n = c.read[i]
		}
		return
	}
	if *n == flow.NoName {
		c.b = append(c.b, 0)
		return
	}
	if int(*n) >= len(c.ids) {
		c.ids = append(c.ids, make([]uint32, max(int(*n)+1, 2*len(c.ids))-len(c.ids))...)
	}
	if c.ids[*n] == 0 {
		c.ids[*n] = uint32(len(c.texts))
		c.texts = append(c.texts, c.names.Text(*n))
	}
	c.b = binary.AppendUvarint(c.b, uint64(c.ids[*n]))
}

// count codes a number of things of at least size bytes each, at most limit.
func (c *coder) count(n, limit, size int) int {
	v := uint64(n)
	c.u64(&v)
	if c.reading && (v > uint64(limit) || v > uint64(len(c.b)/size)) {
		c.fail(errSnapshotShort)
		return 0
	}
	return int(v)
}

func (c *coder) conversation(v *flow.Conversation) {
	c.addr(&v.Low)
	c.addr(&v.High)
	coded(c, &v.LowPort)
	coded(c, &v.HighPort)
	coded(c, &v.Proto)
}

// stretch codes an interval; an empty one is a byte.
func (c *coder) stretch(v *stretch) {
	none := v.empty()
	if c.bool(&none); none {
		*v = nothing
		return
	}
	coded(c, &v.start)
	coded(c, &v.end)
	if c.reading && v.start > v.end {
		c.fail(errSnapshotShort)
	}
}

func (c *coder) obs(o *obs) {
	c.addr(&o.exporter)
	coded(c, &o.domain)
	c.name(&o.observer)
	coded(c, &o.source)
	coded(c, &o.at)
	coded(c, &o.dir)
	coded(c, &o.first)
	coded(c, &o.last)
	for k := range 2 {
		c.u64(&o.bytes[k])
		c.u64(&o.packets[k])
		coded(c, &o.flags[k])
		c.name(&o.identity[k])
		c.name(&o.process[k])
		c.name(&o.hostName[k])
		if !c.reading || c.version >= 5 {
			c.name(&o.from[k])
			coded(c, &o.heard[k])
		}
	}
	coded(c, &o.records)
	coded(c, &o.skew)
	coded(c, &o.has)
	coded(c, &o.enforced)
	c.bool(&o.sampled)
	c.bool(&o.biflow)
	c.name(&o.enforcedBy)
	if o.at > 2 || o.dir > 2 || o.first > o.last {
		c.fail(errSnapshotShort)
	}
	if c.reading {
		o.next = -1
	}
}

func (c *coder) verdict(v *flow.Verdict) {
	c.name(&v.PolicyVersion)
	c.name(&v.Rule)
	c.name(&v.Exception)
	coded(c, &v.OthersTotal)
	for k := range min(int(v.OthersTotal), flow.MaxOthers) {
		c.name(&v.Others[k])
	}
	coded(c, &v.Failed)
	coded(c, &v.Missing)
	coded(c, &v.Expected)
	coded(c, &v.Reason)
	coded(c, &v.Staged)
	coded(c, &v.StagedReason)
	coded(c, &v.Observed)
	coded(c, &v.Outcome)
	coded(c, &v.Confidence)
	coded(c, &v.ValidUntil)
}

// sess codes a session without its observers.
func (c *coder) sess(s *sess) {
	c.conversation(&s.conv)
	c.stretch(&s.all)
	c.stretch(&s.exported)
	c.stretch(&s.hosts)
	if c.reading && c.version < 4 {
		s.told = s.all.start
	} else {
		coded(c, &s.told)
	}
	n := c.count(len(s.more), maxMore, 1)
	if c.reading {
		s.more = make([]uint32, n)
	}
	for k := range s.more {
		coded(c, &s.more[k])
	}
	coded(c, &s.extra)
	c.fixed(&s.id)
	coded(c, &s.began)
	coded(c, &s.wroteAt)
	c.bool(&s.dirty)
	c.bool(&s.stored)
	coded(c, &s.dueAt)
	coded(c, &s.dueStart)
	for k := range 2 {
		coded(c, &s.toldOf[k])
		coded(c, &s.said[k])
		c.learnedEnd(&s.learned, k, s.all.start)
	}
	c.learnedRest(&s.learned)
	links := s.natLinks != &noLinks
	if c.reading {
		s.natLinks = &noLinks
	}
	if c.bool(&links); links {
		c.links(s)
	}
	if c.reading {
		s.cid = s.conv.ID()
	}
	switch {
	case !s.stored:
	case c.reading && c.version < 3:
		s.dirty = true // it is written and counted when it is over
	default:
		c.tally(&s.tally, s.began)
	}
}

// learnedEnd codes what is kept of one end; start is that of its session.
func (c *coder) learnedEnd(l *learned, k int, start flow.Time) {
	if c.reading && c.version == 1 { // it did not say when
		sent := l.sentAt[k] != maxTime
		c.bool(&sent)
		if l.sentAt[k] = maxTime; sent {
			l.sentAt[k] = start
		}
	} else {
		coded(c, &l.sentAt[k])
	}
	coded(c, &l.sure[k])
	c.name(&l.segment[k])
	c.name(&l.workload[k])
}

// learnedRest codes what is kept of both ends together.
func (c *coder) learnedRest(l *learned) {
	coded(c, &l.enforced)
	coded(c, &l.quality)
	c.bool(&l.informed.known)
	coded(c, &l.informed.score)
	coded(c, &l.informed.start)
	c.fixed(&l.informed.id)
	c.verdict(&l.verdict)
}

// opening codes how a session opened; its statements are beside it.
func (c *coder) opening(o *opening, statements *[]statement) {
	if c.reading && c.version < 4 {
		o.over = true // it is not known which of it was told first
		return
	}
	c.bool(&o.over)
	c.bool(&o.left)
	c.bool(&o.lone)
	n := c.count(len(*statements), maxStatements, 60)
	if c.reading && n > 0 {
		*statements = make([]statement, n)
	}
	for i := range *statements {
		t := &(*statements)[i]
		c.obs(&t.obs)
		c.bool(&t.late)
		for k := range 2 {
			c.learnedEnd(&t.learned, k, t.first)
		}
		c.learnedRest(&t.learned)
	}
}

func (c *coder) links(s *sess) {
	s.ownLinks()
	c.bool(&s.natPart)
	s.nPeers = uint8(c.count(int(s.nPeers), maxPeers, 1))
	for k := range s.peers[:s.nPeers] {
		p := &s.peers[k]
		c.conversation(&p.conv)
		c.bool(&p.flip)
		p.cid = p.conv.ID()
	}
	behind := s.beforeID != 0
	if c.bool(&behind); behind {
		c.conversation(&s.before)
		s.beforeID = s.before.ID()
		c.fixed(&s.drawnInto)
	}
}

func (c *coder) hostKey(k *hostKey) {
	c.name(&k.observer)
	c.addr(&k.exporter)
	coded(c, &k.source)
}

func (c *coder) hostClock(h *hostClock) {
	coded(c, &h.offset)
	if !c.reading || c.version >= 7 {
		coded(c, &h.found)
		coded(c, &h.from)
		coded(c, &h.before)
	}
	coded(c, &h.n)
	for k := range h.held() {
		coded(c, &h.votes[k].offset)
		c.fixed(&h.votes[k].cid)
	}
}

func (c *coder) agent(a *agentOf) {
	c.addr(&a.addr)
	if c.reading && c.version < 6 {
		var was struct {
			name    flow.Name
			source  flow.Source
			minutes [2]uint64
			since   [4]flow.Time
		}
		c.name(&was.name)
		coded(c, &was.source)
		coded(c, &a.last)
		c.fixed(&was.minutes[0])
		c.fixed(&was.minutes[1])
		for k := range was.since {
			coded(c, &was.since[k])
		}
		return
	}
	coded(c, &a.last)
}

func (c *coder) stray(s *stray) {
	c.conversation(&s.conv)
	c.obs(&s.o)
	c.fixed(&s.sess)
	coded(c, &s.began)
	c.bool(&s.alone)
	c.bool(&s.late)
	if counted := s.tally.counted; !c.reading || c.version >= 3 {
		if c.bool(&counted); counted {
			c.tally(&s.tally, s.began)
		}
	}
	if c.reading {
		s.cid = s.conv.ID()
	}
}

// sessionsState is what a snapshot holds, apart from how it is held.
type sessionsState struct {
	clock    flow.Time
	clouds   flow.Time
	passed   flow.Time
	sessions []*sess // with their observers in told, and how they opened in opened
	told     [][]obs
	opened   [][]statement
	hosts    []hostOf
	agents   []agentOf
	room     untoldRoom
	strays   []stray
}

type hostOf struct {
	key   hostKey
	clock hostClock
}

type agentOf struct {
	addr flow.Addr
	last int64
}

// The most that a snapshot may hold of each; configuration allows no more.
const (
	mostSessions = 1 << 24
	mostHosts    = 1 << 22
)

func (c *coder) state(st *sessionsState) {
	coded(c, &st.clock)
	coded(c, &st.clouds)
	coded(c, &st.passed)
	if !c.reading || c.version >= 6 {
		coded(c, &st.room.at)
		coded(c, &st.room.passed)
		coded(c, &st.room.strangers)
	}
	n := c.count(len(st.sessions), mostSessions, 60)
	if c.reading {
		st.sessions, st.told = make([]*sess, 0, min(n, 1<<16)), make([][]obs, 0, min(n, 1<<16))
	}
	for i := 0; i < n && c.err == nil; i++ {
		if c.reading {
			st.sessions, st.told, st.opened = append(st.sessions, &sess{}), append(st.told, nil), append(st.opened, nil)
		}
		c.sess(st.sessions[i])
		told := &st.told[i]
		k := c.count(len(*told), flow.MaxObservers, 30)
		if c.reading {
			*told = make([]obs, k)
		}
		for k := range *told {
			c.obs(&(*told)[k])
		}
		c.opening(&st.sessions[i].opening, &st.opened[i])
	}
	n = c.count(len(st.hosts), mostHosts, 6)
	for i := 0; i < n && c.err == nil; i++ {
		if c.reading {
			st.hosts = append(st.hosts, hostOf{})
		}
		c.hostKey(&st.hosts[i].key)
		c.hostClock(&st.hosts[i].clock)
	}
	n = c.count(len(st.agents), mostHosts, 3)
	for i := 0; i < n && c.err == nil; i++ {
		if c.reading {
			st.agents = append(st.agents, agentOf{})
		}
		c.agent(&st.agents[i])
	}
	n = c.count(len(st.strays), mostHosts, 40)
	for i := 0; i < n && c.err == nil; i++ {
		if c.reading {
			st.strays = append(st.strays, stray{})
		}
		c.stray(&st.strays[i])
	}
}

// encodeSessions writes a state whose names are in names.
func encodeSessions(st *sessionsState, names *flow.Names) ([]byte, error) {
	c := coder{names: names, texts: []string{""}, b: make([]byte, 0, 200*len(st.sessions))}
	c.state(st)
	if c.err != nil {
		return nil, fmt.Errorf("writing the snapshot of sessions: %w", c.err)
	}
	b := binary.AppendUvarint([]byte(sessionsMagic), sessionsVersion)
	b = binary.AppendUvarint(b, uint64(len(c.texts)))
	for _, t := range c.texts {
		b = binary.AppendUvarint(b, uint64(len(t)))
		b = append(b, t...)
	}
	return append(b, c.b...), nil
}

// decodeSessions reads what encodeSessions wrote.
func decodeSessions(b []byte, names *flow.Names) (*sessionsState, error) {
	rest, ok := bytes.CutPrefix(b, []byte(sessionsMagic))
	if !ok {
		return nil, errors.New("reading the snapshot of sessions: it is none")
	}
	c := coder{b: rest, reading: true, names: names}
	if c.u64(&c.version); c.version < 1 || c.version > sessionsVersion {
		return nil, fmt.Errorf("the snapshot of sessions is of version %d; this program reads versions 1 to %d", c.version, sessionsVersion)
	}
	n := c.count(0, 1<<26, 1)
	for range n {
		l := c.count(0, flow.MaxPrincipal, 1)
		if c.err != nil {
			break
		}
		c.read = append(c.read, names.Intern(string(c.b[:l])))
		c.b = c.b[l:]
	}
	if len(c.read) == 0 || c.read[0] != flow.NoName {
		c.fail(errSnapshotShort)
	}
	st := &sessionsState{}
	if c.err == nil {
		c.state(st)
	}
	if c.err == nil && len(c.b) > 0 {
		c.fail(errSnapshotShort)
	}
	if c.err != nil {
		return nil, fmt.Errorf("reading the snapshot of sessions: %w", c.err)
	}
	return st, nil
}

// state is the whole state in a fixed order.
func (x *Sessions) state() *sessionsState {
	st := &sessionsState{clock: x.clock, clouds: x.clouds, passed: x.passed, room: x.untoldRoom}
	type held struct {
		s    *sess
		told []obs
	}
	all := make([]held, 0, x.live)
	arena := make([]obs, 0, len(x.obs)-len(x.freeObs))
	for _, i := range x.chains {
		for ; i >= 0; i = x.list[i].next {
			s := &x.list[i]
			from := len(arena)
			for k := s.first; k >= 0; k = x.obs[k].next {
				arena = append(arena, x.obs[k])
			}
			told := arena[from:len(arena):len(arena)]
			slices.SortFunc(told, func(a, b obs) int {
				if x.standsBefore(&a.obsKey, &b.obsKey) {
					return -1
				}
				return 1
			})
			all = append(all, held{s, told})
		}
	}
	slices.SortFunc(all, func(a, b held) int {
		return cmp.Or(cmp.Compare(a.s.cid, b.s.cid), cmp.Compare(a.s.all.start, b.s.all.start), compareConversations(&a.s.conv, &b.s.conv))
	})
	for _, h := range all {
		st.sessions, st.told = append(st.sessions, h.s), append(st.told, h.told)
		var opened []statement
		x.eachStatement(h.s, func(t *statement) { opened = append(opened, *t) })
		st.opened = append(st.opened, opened)
	}
	for k, h := range x.hosts {
		st.hosts = append(st.hosts, hostOf{k, *h})
	}
	slices.SortFunc(st.hosts, func(a, b hostOf) int {
		return cmp.Or(strings.Compare(x.names.Text(a.key.observer), x.names.Text(b.key.observer)), a.key.exporter.Compare(b.key.exporter), cmp.Compare(a.key.source, b.key.source))
	})
	for _, a := range slices.SortedFunc(maps.Keys(x.agents), flow.Addr.Compare) {
		st.agents = append(st.agents, agentOf{a, x.agents[a]})
	}
	for n := x.strays.oldest(); n < x.strays.next; n++ {
		if s := x.strays.at(n); s != nil && !s.dead {
			st.strays = append(st.strays, *s)
		}
	}
	return st
}

func compareConversations(a, b *flow.Conversation) int {
	return cmp.Or(a.Low.Compare(b.Low), a.High.Compare(b.High), cmp.Compare(a.LowPort, b.LowPort), cmp.Compare(a.HighPort, b.HighPort), cmp.Compare(a.Proto, b.Proto))
}

// Snapshot is the whole state; the same state gives the same bytes. It comes after Collect:
// rows that were not taken are not in it.
func (x *Sessions) Snapshot() ([]byte, error) { return encodeSessions(x.state(), x.names) }

// Restore replaces the state by that of a snapshot. After an error the Sessions is empty.
func (x *Sessions) Restore(b []byte) error {
	x.reset()
	st, err := decodeSessions(b, x.names)
	if err != nil {
		return err
	}
	x.use(st)
	return nil
}

// use takes over a state; what exceeds the configured bounds is left out, sessions after they
// were written.
func (x *Sessions) use(st *sessionsState) {
	x.clock, x.clouds, x.passed, x.untoldRoom = st.clock, st.clouds, st.passed, st.room
	for i := range st.sessions {
		from := st.sessions[i]
		first, known := x.chains[from.cid]
		at := x.create(&from.conv, from.cid, first, known)
		s := &x.list[at]
		next, gen := s.next, s.gen
		*s = *from
		s.next, s.gen, s.first, s.nObs, s.n = next, gen, -1, 0, 0
		for k := range st.told[i] {
			x.addObs(s, &st.told[i][k])
		}
		for k := range st.opened[i] {
			x.declare(s, &st.opened[i][k])
		}
		dueAt, dueStart := s.dueAt, s.dueStart
		x.due.push(sessionStep{at: dueAt, cid: s.cid, start: dueStart, index: at, gen: s.gen})
		if s.stored && !s.tally.counted {
			x.uncounted++
			x.m.first.Inc()
		}
	}
	for i := range st.hosts {
		if h := x.hostClock(st.hosts[i].key); h != nil {
			*h = st.hosts[i].clock
		}
	}
	for i := range st.agents {
		if len(x.agents) < x.cfg.MaxHosts {
			x.agents[st.agents[i].addr] = st.agents[i].last
		}
	}
	for i := range st.strays {
		if x.strays.add(st.strays[i], x.cfg.MaxUnjoined) {
			x.m.forgotten.Inc()
		}
	}
	for n := x.live; x.live > x.cfg.MaxSessions; n = x.live {
		if x.evict(); x.live == n {
			break
		}
	}
	x.m.held.Set(float64(x.live))
	x.m.uncounted.Set(float64(x.uncounted))
}

// DivideSessions makes of the states of several Sessions those of n others that go on in
// their place, each a snapshot. partition says which of the n, from 0, the flows between a
// and b come to from now on, whichever of the two is named first; they must have come to one
// Sessions before as well. Sessions, and what waits for a host's clock, go where their pair
// goes. What is known of clocks and agents goes to all.
func DivideSessions(snapshots [][]byte, n int, partition func(a, b flow.Addr) int) ([][]byte, error) {
	out := make([]sessionsState, n)
	names := flow.NewNames(0)
	hosts, agents := map[hostKey]hostClock{}, map[flow.Addr]int64{}
	var clock, clouds, passed flow.Time
	for i, b := range snapshots {
		st, err := decodeSessions(b, names)
		if err != nil {
			return nil, fmt.Errorf("state %d of %d: %w", i, len(snapshots), err)
		}
		if i == 0 || st.clock < clock {
			clock = st.clock
		}
		if i == 0 || st.passed < passed {
			passed = st.passed
		}
		clouds = max(clouds, st.clouds)
		for j := range st.sessions {
			o := &out[partition(st.sessions[j].conv.Low, st.sessions[j].conv.High)]
			o.sessions, o.told, o.opened = append(o.sessions, st.sessions[j]), append(o.told, st.told[j]), append(o.opened, st.opened[j])
		}
		for j := range st.strays {
			o := &out[partition(st.strays[j].conv.Low, st.strays[j].conv.High)]
			o.strays = append(o.strays, st.strays[j])
		}
		for _, h := range st.hosts {
			o := hosts[h.key]
			for _, v := range h.clock.held() {
				o.votes[o.n%maxVotes] = v
				o.n++
			}
			if o.offset == 0 && o.before == 0 {
				o.offset, o.found, o.from, o.before = h.clock.offset, h.clock.found, h.clock.from, h.clock.before
			}
			hosts[h.key] = o
		}
		for _, a := range st.agents {
			agents[a.addr] = max(agents[a.addr], a.last)
		}
	}
	x := Sessions{names: names, hosts: map[hostKey]*hostClock{}, agents: agents, chains: map[uint64]int32{}, strays: newStrays()}
	for k, h := range hosts {
		x.hosts[k] = &h
	}
	all := x.state()
	divided := make([][]byte, n)
	for i := range out {
		o := &out[i]
		o.hosts, o.agents = all.hosts, all.agents
		order := make([]int, len(o.sessions))
		for j := range order {
			order[j] = j
		}
		slices.SortFunc(order, func(a, b int) int {
			s, t := o.sessions[a], o.sessions[b]
			return cmp.Or(cmp.Compare(s.cid, t.cid), cmp.Compare(s.all.start, t.all.start), compareConversations(&s.conv, &t.conv))
		})
		sorted := sessionsState{clock: clock, clouds: clouds, passed: passed, hosts: o.hosts, agents: o.agents, strays: o.strays}
		for _, j := range order {
			sorted.sessions, sorted.told = append(sorted.sessions, o.sessions[j]), append(sorted.told, o.told[j])
			sorted.opened = append(sorted.opened, o.opened[j])
		}
		var err error
		if divided[i], err = encodeSessions(&sorted, names); err != nil {
			return nil, err
		}
	}
	return divided, nil
}
