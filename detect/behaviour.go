package detect

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/postern/postern/flow"
	"github.com/prometheus/client_golang/prometheus"
)

// Behaviour is the detectors that look at how hosts behave, over the whole estate: who reaches
// how many others, by which way, where exceptions lead to. It takes what any number of
// [Contacts] passed on.
//
// What comes of it is a function of the contacts in the order in which they settled, whoever
// passed them on and however they were cut: those of several inputs wait for each other, up to
// the least of their watermarks. A restart changes nothing. It is not safe for concurrent use.
// Its state is bounded.
type Behaviour struct {
	book
	bcfg *BehaviourConfig
	bm   *behaviourMetrics

	began  flow.Time // the first contact: learning counts from here
	until  flow.Time // all that settled before it was looked at
	inputs []input
	// waiting is how many contacts wait for inputs that are behind; none of them settled before looked.
	waiting int
	looked  flow.Time
	hosts   hosts
	tended  flow.Time

	exhaustion exhaustion
	firstSeen  firstSeen
	fanOut     fanOut
	scans      scans
	news       news
	chains     chains
	denials    denials
	beacons    beacons
	staging    staging
	floods     floods
	seen       Observations // of windows that are not over everywhere
	spots      spots
	segments   segmentDrift
	unseen     unseen
}

// input is one of the Contacts whose digests are taken in.
type input struct {
	Until   flow.Time `json:"until"`
	Waiting []Contact `json:"-"`
}

// NewBehaviour makes a Behaviour that takes in the digests of so many inputs. names is the table
// the contacts' names come from; reg may be nil.
func NewBehaviour(cfg Config, inputs int, policy Policy, names *flow.Names, reg prometheus.Registerer) (*Behaviour, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if inputs < 1 {
		return nil, fmt.Errorf("%d inputs; there is at least one", inputs)
	}
	m := newBehaviourMetrics(inputs, reg)
	b := &Behaviour{book: newBook(&cfg, names, &m.bookMetrics), bcfg: &cfg.Behaviour, bm: m, inputs: make([]input, inputs)}
	b.book.policy = policy
	b.reset()
	return b, nil
}

func (b *Behaviour) reset() {
	b.book.reset()
	b.began, b.until, b.tended, b.waiting, b.looked = 0, 0, 0, 0, 0
	clear(b.inputs)
	b.hosts, b.seen = newHosts(b.bcfg.MaxHosts), Observations{}
	b.exhaustion = newExhaustion()
	b.firstSeen, b.fanOut = newFirstSeen(), newFanOut()
	b.scans = newScans(&b.bcfg.Scan, b.bcfg.MaxHosts)
	b.news = newNews()
	b.chains = newChains()
	b.denials = newDenials()
	b.beacons, b.staging = newBeacons(), newStaging()
	b.floods = newFloods()
	b.spots = newSpots(&b.bcfg.Blind, b.bm)
	b.segments = newSegmentDrift()
	b.unseen = newUnseen()
}

// maxWaiting bounds the contacts that wait for inputs that are behind: half a minute of 4,000 a
// second, 100 MB. Beyond it they are not waited for any more: see [Behaviour.Take].
const maxWaiting = 1 << 17

// Take takes in a digest of one input, counted from 0. It keeps nothing of it. Contacts wait
// until every input is as far as they are; if too many do, those that settled first are looked
// at without waiting longer, which is counted, and what an input that was behind brings later is
// looked at when it comes.
func (b *Behaviour) Take(from int, d *Digest) {
	in := &b.inputs[from]
	in.Until = max(in.Until, d.Until)
	b.exhaustion.waiting = append(b.exhaustion.waiting, d.Pressed...)
	b.seen.append(&d.Observations)
	b.unseen.take(b, d.Untold)
	b.bm.received.Add(float64(len(d.Contacts)))
	if len(b.inputs) == 1 && d.Until != 0 && len(in.Waiting) == 0 { // else it is a part of one: the rest says how far it goes
		b.look(d.Contacts, in.Until)
		return
	}
	in.Waiting = append(in.Waiting, d.Contacts...)
	b.waiting += len(d.Contacts)
	until := b.least()
	if b.waiting > maxWaiting {
		if forced := b.middle(); forced > until {
			b.bm.forced.Inc()
			b.pressed(boundWaiting, flow.Addr{}, 1, forced)
			until = forced
		}
	}
	if until > b.looked || slices.ContainsFunc(d.Contacts, func(c Contact) bool { return c.Settled <= until }) {
		b.advance(until)
	}
	b.behind()
}

// least is how far all inputs are.
func (b *Behaviour) least() flow.Time {
	least := b.inputs[0].Until
	for i := range b.inputs {
		least = min(least, b.inputs[i].Until)
	}
	return least
}

// middle is when half of those that wait had settled.
func (b *Behaviour) middle() flow.Time {
	at := make([]flow.Time, 0, b.waiting)
	for i := range b.inputs {
		for j := range b.inputs[i].Waiting {
			at = append(at, b.inputs[i].Waiting[j].Settled)
		}
	}
	slices.Sort(at)
	return at[len(at)/2]
}

// behind tells how far the inputs are behind the foremost of them.
func (b *Behaviour) behind() {
	var first flow.Time
	for i := range b.inputs {
		first = max(first, b.inputs[i].Until)
	}
	for i := range b.bm.behind {
		b.bm.behind[i].Set(float64(first-b.inputs[i].Until) / 1000)
	}
	b.bm.waiting.Set(float64(b.waiting))
}

// advance looks at everything that settled up to a time.
func (b *Behaviour) advance(until flow.Time) {
	b.looked = max(b.looked, until)
	var due []Contact
	for i := range b.inputs {
		in := &b.inputs[i]
		n := 0
		for j := range in.Waiting {
			c := &in.Waiting[j]
			if c.Settled <= until {
				due = append(due, *c)
				continue
			}
			if n < j {
				in.Waiting[n] = *c
			}
			n++
		}
		in.Waiting = in.Waiting[:n]
	}
	b.waiting -= len(due)
	slices.SortStableFunc(due, func(x, y Contact) int {
		return cmp.Or(cmp.Compare(x.Settled, y.Settled), cmp.Compare(x.Conversation, y.Conversation), cmp.Compare(x.Start, y.Start), cmp.Compare(x.ID, y.ID))
	})
	b.look(due, until)
}

// look looks at contacts, in their order, and at the windows that were over by a time, each
// when it was over.
func (b *Behaviour) look(due []Contact, until flow.Time) {
	seen := b.seen.due(until, b.names)
	var bulk []Tally[BulkKey, Bulk]
	if until == maxTime {
		bulk, seen.Bulk = seen.Bulk, nil // those windows are over later than anything was heard: time does not go on with them
	}
	for i := 0; ; {
		at, more := seen.next()
		for ; i < len(due) && (!more || due[i].Settled < at); i++ {
			b.contact(&due[i])
		}
		if !more {
			break
		}
		b.time(at)
		b.spots.look(b, &seen, at)
		b.denials.look(b, &seen, at)
		b.unseen.look(b, &seen, at)
		seen.Bulk = b.staging.look(b, seen.Bulk, at)
	}
	b.staging.look(b, bulk, until)
	if until == maxTime {
		b.unseen.decide(b, until)
	}
	if until != maxTime && until > b.until {
		b.time(until)
	}
}

// time moves event time on.
func (b *Behaviour) time(t flow.Time) {
	b.until = max(b.until, t)
	b.clock = max(b.clock, t)
	if len(b.exhaustion.waiting) > 0 {
		b.relieve(b.until)
	}
	b.segments.time(b, t)
	b.spots.time(b, t)
	b.unseen.decide(b, t)
	if b.until >= b.tended+hourMillis {
		b.tend()
	}
}

// tend forgets what is too old to matter. It runs once an hour of event time.
func (b *Behaviour) tend() {
	b.tended = b.until - b.until%hourMillis
	b.hosts.forget(b.tended-millis(b.bcfg.Remember), b.forgetHost)
	b.exhaustion.tend(b.tended)
	b.firstSeen.tend(b)
	b.fanOut.tend(b)
	b.scans.tend(b.tended)
	b.news.tend(b.tended)
	b.chains.tend(b)
	b.denials.tend(b)
	b.beacons.tend(b.tended)
	b.staging.tend(b)
	b.floods.tend(b.tended)
	b.spots.forget(b)
	b.unseen.tend(b.tended)
}

// forgetHost is called before a host is forgotten: its place goes to another.
func (b *Behaviour) forgetHost(i int32) {
	b.fanOut.forget(i)
	b.scans.forgetHost(i)
	b.chains.forget(i)
	b.staging.forget(i)
}

// visit is a contact with the hosts at its ends.
type visit struct {
	*Contact
	client, server int32
	at             flow.Time // when it settled
	bad            bool      // never learned as normal
	unusual        int       // how unusual it is that these two meet so, 0 to 100; 0 where they did before
	unwatched      bool      // it is new, and who told of it has not been telling for long enough to know
}

// allowedAgain says whether an exception allows what was seen before. It is never learned as
// normal, and yet it is no news.
func (v *visit) allowedAgain() bool {
	return v.Verdict.Reason == flow.ReasonWaived && v.Known != 0
}

// contact shows one contact to every detector, in a fixed order, and learns from it after.
func (b *Behaviour) contact(c *Contact) {
	b.time(c.Settled)
	if b.began == 0 {
		b.began = c.Start
	}
	t := visit{Contact: c, at: c.Settled, bad: misuse(c.Verdict.Reason, c.Verdict.Exception, c.Verdict.Observed) || c.Verdict.Exception != flow.NoName}
	t.unwatched = c.New && c.Class.administers() && !c.Fate.failed() && !b.early(c.Settled) && b.unwatched(c)
	t.client = b.host(c, false)
	b.hosts.kept = t.client
	t.server = b.host(c, true)
	b.hosts.kept = -1
	if c.Aside {
		b.beacons.contact(b, &t)
		return
	}
	if t.client != t.server && !c.Open {
		b.firstSeen.contact(b, &t)
		b.fanOut.contact(b, &t)
		b.chains.contact(b, &t)
	}
	b.scans.contact(b, &t)
	b.news.contact(b, &t)
	b.segments.contact(b, &t)
	b.denials.contact(b, &t)
	b.beacons.contact(b, &t)
	b.floods.contact(b, &t)
	b.learn(&t)
}

// host gives the place of the host at one end of a contact, and notes what had to go for it.
func (b *Behaviour) host(c *Contact, server bool) int32 {
	e, kind := &c.Client, hostReal
	if server {
		e = &c.Server
	}
	if c.Fate.failed() {
		kind = hostTried
		if server {
			kind = hostTarget
		}
	}
	i, lost := b.hosts.of(e, kind, c.Settled, b.forgetHost)
	if lost[hostReal] > 0 {
		b.pressed(boundHosts, c.Client.Addr, lost[hostReal], c.Settled)
	}
	if lost[hostTried] > 0 {
		b.pressed(boundTried, c.Client.Addr, lost[hostTried], c.Settled)
	}
	return i
}

// servedBy is from how many clients on a host counts as a server of a class.
const servedBy = 3

// learn makes a contact part of what is normal.
func (b *Behaviour) learn(t *visit) {
	if t.Fate.failed() || t.client == t.server {
		return
	}
	// What policy forbids is never normal. How often it is done all the same is counted by itself, and
	// asked for where the next does so: else it would be told of it that nobody does.
	if !t.bad || violates(&t.Verdict) && t.Known == 0 {
		b.firstSeen.learn(b, t)
	}
	if t.bad {
		return
	}
	b.beacons.learn(b, t)
	c, s := &b.hosts.list[t.client], &b.hosts.list[t.server]
	c.today(t.at)
	s.today(t.at)
	c.Days[t.Class] |= 1
	if t.New && !t.Mapped { // the port mapper's own session was counted
		administers := c.administers(t.Class)
		if s.Served[t.Class] < servedBy {
			count(&c.Odd[t.Class])
			c.OddDays[t.Class] |= 1
		}
		count(&c.Reached[t.Class])
		if !administers {
			count(&s.Served[t.Class])
		}
	}
}

// fewHosts is how many hosts are too few to call what one of them does unusual.
const fewHosts = 8

// learning says whether it is too early to call anything unusual.
func (b *Behaviour) learning(at flow.Time) bool {
	return at < b.began+millis(b.bcfg.Learn) || b.hosts.held() < fewHosts
}

// keyOf begins the key of a finding about a host: by its workload, else by its address.
func (b *Behaviour) keyOf(typ string, i int32, subject string, at flow.Time) key {
	h := &b.hosts.list[i]
	k := key{Type: typ, Subject: subject, Day: dayOf(at)}
	if h.Workload == flow.NoName {
		k.Client = h.Addr
	} else {
		k.Subject += "|" + b.names.Text(h.Workload)
	}
	return k
}

// Collect gives what was added to each finding since the last Collect, and what is to be told;
// see [Detector.Collect].
func (b *Behaviour) Collect() (contributions []flow.Contribution, events []*flow.Finding) {
	if b.clock >= b.swept+minuteMillis {
		b.sweep()
	}
	b.bm.hosts.Set(float64(b.hosts.held()))
	b.bm.forgotten.Set(float64(b.hosts.forgotten))
	return b.collect(false)
}

// Flush is Collect at the end of a replay.
func (b *Behaviour) Flush() (contributions []flow.Contribution, events []*flow.Finding) {
	b.advance(maxTime)
	b.relieve(maxTime)
	return b.collect(true)
}

const (
	behaviourMagic   = "postern behaviour\n"
	behaviourVersion = 8
)

// Snapshot is the whole state; the same state gives the same bytes.
func (b *Behaviour) Snapshot() ([]byte, error) {
	w := newStateWriter(b.names)
	for _, t := range [...]flow.Time{b.began, b.until, b.tended} {
		w.time(t)
	}
	w.u64(uint64(len(b.inputs)))
	for i := range b.inputs {
		w.time(b.inputs[i].Until)
		saveAll(w, b.inputs[i].Waiting)
	}
	if err := b.book.save(w); err != nil {
		return nil, err
	}
	b.hosts.save(w)
	b.seen = b.seen.due(maxTime, b.names) // in order, whoever told first
	b.seen.save(w)
	if err := b.exhaustion.save(w); err != nil {
		return nil, err
	}
	if err := b.firstSeen.save(w); err != nil {
		return nil, err
	}
	b.fanOut.save(w)
	if err := b.spots.save(w); err != nil {
		return nil, err
	}
	if err := b.scans.save(w); err != nil {
		return nil, err
	}
	b.news.save(w)
	b.chains.save(w)
	b.denials.save(w)
	b.beacons.save(w)
	b.staging.save(w)
	b.floods.save(w)
	b.segments.save(w)
	b.unseen.save(w)
	return w.bytes(behaviourMagic, behaviourVersion), nil
}

// Restore replaces the state by that of a snapshot. After an error the Behaviour is empty.
//
// The snapshot may be of another number of inputs, as where pairs are divided among more: then
// each begins at the least of the watermarks there were, since nobody knows which of them told of
// what it tells of, and what waited goes on waiting.
func (b *Behaviour) Restore(state []byte) error {
	b.reset()
	r := newStateReader(state, behaviourMagic, behaviourVersion, b.names)
	for _, t := range [...]*flow.Time{&b.began, &b.until, &b.tended} {
		*t = r.time()
	}
	b.loadInputs(r)
	b.book.load(r)
	b.hosts.load(r)
	b.seen.load(r)
	b.exhaustion.load(r)
	b.firstSeen.load(r)
	b.fanOut.load(r, &b.hosts)
	b.spots.load(r)
	b.scans.load(r, len(b.hosts.list))
	b.news.load(r)
	b.chains.load(r, len(b.hosts.list))
	b.denials.load(r)
	b.beacons.load(r)
	b.staging.load(r, len(b.hosts.list))
	b.floods.load(r, b.names)
	b.segments.load(r)
	b.unseen.load(r)
	if err := r.end(); err != nil {
		b.reset()
		return fmt.Errorf("reading the snapshot of behaviour: %w", err)
	}
	return nil
}

func (b *Behaviour) loadInputs(r *stateReader) {
	n := r.count(2)
	if r.err == nil && n == 0 {
		r.fail(errState)
	}
	least := maxTime
	for i := range n {
		until, waiting := r.time(), loadAll[Contact](r)
		if r.err != nil {
			return
		}
		to := &b.inputs[0]
		if n == len(b.inputs) {
			to = &b.inputs[i]
		}
		to.Until, to.Waiting = until, append(to.Waiting, waiting...)
		b.waiting += len(waiting)
		least = min(least, until)
	}
	if n != len(b.inputs) {
		for i := range b.inputs {
			b.inputs[i].Until = least
		}
	}
}
