package detect

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"github.com/postern/postern/flow"
)

// BlockedConfig says from when on a source whose sessions enforcement stops is told of.
type BlockedConfig struct {
	// Times is how many times as many denied sessions an hour as usual for the source are told.
	Times int `yaml:"times"`
	// Least is how many denied sessions an hour are told at all.
	Least int `yaml:"least"`
}

// DefaultBlockedConfig gives the defaults.
func DefaultBlockedConfig() BlockedConfig {
	return BlockedConfig{
		Times: 4,  // of its usual busiest hour: what merely tries again more often on one day doubles
		Least: 20, // one every three minutes: a program that was forgotten tries again about as often
	}
}

func (c *BlockedConfig) validate() error {
	if c.Times < 2 || c.Times > 1000 {
		return fmt.Errorf("detect.behaviour.blocked.times is %d; write a number from 2 to 1000", c.Times)
	}
	if c.Least < 1 || c.Least > 1<<20 {
		return fmt.Errorf("detect.behaviour.blocked.least is %d; write a number from 1 to %d", c.Least, 1<<20)
	}
	return nil
}

// DeniedKey is a source in ten minutes.
type DeniedKey struct {
	At       uint32 // the first minute, since the epoch
	Addr     flow.Addr
	Segment  flow.Name
	Workload flow.Name
}

func (k DeniedKey) hash() uint64 { return hashAddr(k.Addr, uint64(k.At)) }

// Denied is how many of its sessions enforcement stopped, as it should, and over how many
// edges: those where it had stopped none before in the same hour. First and Last are when they began.
type Denied struct {
	Sessions, Edges uint32
	First, Last     flow.Time
}

func (n *Denied) add(o *Denied) {
	if n.Sessions == 0 || o.Sessions > 0 && o.First < n.First {
		n.First = o.First
	}
	n.Last = max(n.Last, o.Last)
	n.Sessions += o.Sessions
	n.Edges += o.Edges
}

const (
	// maxDenied bounds the sources counted in windows that are open at once; 6 MB.
	maxDenied = 1 << 16
	// maxDoors bounds the edges remembered where enforcement stopped somebody, doorKeeps is for how
	// many minutes they are: what is tried again later is not tried for having been stopped.
	maxDoors  = 1 << 16
	doorKeeps = 60
)

// stopped counts a session that enforcement stopped for its source. Of one that was answered it
// says whether it is one by an edge where enforcement had stopped somebody just before. What the
// policy permits and enforcement stops all the same is not the source's doing.
func (c *Contacts) stopped(s *flow.First, client flow.Addr, slot *edgeSlot, became fate, minute uint32) bool {
	edge := slot.hash
	last, known := c.doors[edge]
	if !known {
		slot.seen &^= edgeShut
	}
	recent := known && minute <= last+doorKeeps
	if became == fateAnswered && recent {
		delete(c.doors, edge)
		return true
	}
	e := &s.Client
	if e.Addr != client {
		e = &s.Server
	}
	if became != fateDenied || s.Outcome == flow.OutcomeMisblocked || s.Open || e.Segment == c.hearing.outside {
		return false
	}
	window := c.hearing.window(s.Settled)
	n := c.hearing.denied.of(&DeniedKey{At: window, Addr: e.Addr, Segment: e.Segment, Workload: e.Workload})
	if n != nil {
		one := Denied{Sessions: 1, First: s.Start, Last: s.Start}
		if !known || last/60 != window/60 {
			one.Edges = 1
		}
		n.add(&one)
	}
	if known || len(c.doors) < maxDoors {
		c.doors[edge] = minute
		slot.seen |= edgeShut
	} else {
		n = nil
	}
	if n == nil {
		c.m.undenied.Inc()
		c.press(boundDenied, prefixOf(e.Addr), 1, minute)
	}
	return false
}

// denials finds sources that enforcement stops far more often than is usual for them, and tells
// when one of them gets through in the end.
type denials struct {
	list  []deniedSource
	byKey map[deniedKey]int32
}

// deniedKey is a source: its workload, else its address.
type deniedKey struct {
	Workload flow.Name
	Addr     flow.Addr
}

const (
	// maxDeniedSources bounds the sources followed; about 600 bytes each: 20 MB.
	maxDeniedSources = 1 << 15
	// deniedDays is how many days back the usual looks, and for how long what was told is usual.
	deniedDays = 14
	// deniedGoesOn is for how long after it was told what gets through adds to it.
	deniedGoesOn = 24 * hourMillis
	// deniedFlows is how many sessions of a source are kept to be named.
	deniedFlows = 4
)

// deniedSource is how often a source was denied. It is a value of fixed size without pointers.
type deniedSource struct {
	Key     deniedKey
	Addr    flow.Addr // the one it was seen by last
	Segment flow.Name

	// Hour is counted from the epoch, N is of it; Peaks the most of an hour by day of the last 16,
	// Day the newest, kept by its remainder.
	Hour  int64
	N     Denied
	Peaks [16]uint32
	Day   int64
	// Level is the most that was told, on LevelDay an hour last came near it.
	Level    uint32
	LevelDay int64

	// What is told: on which day it began and when it last grew, the hour with most and what was
	// usual then; Counted is what of the present hour it has.
	ToldDay int64
	ToldAt  flow.Time
	Most    Denied
	MostOf  int64
	Usual   uint32
	Counted uint32

	Jewel deniedFlow // denied at a crown jewel last
	Flows [deniedFlows]deniedFlow
	// Passed is the first session that got through where others had been stopped, of PassedN; the
	// last of them at PassedAt.
	Passed   deniedFlow
	PassedN  uint32
	PassedAt flow.Time
}

// deniedFlow is as much of a contact as a finding names.
type deniedFlow struct {
	ID                        uint64
	Start, At                 flow.Time // At is when it settled; 0: there is none
	Client, Server            flow.Addr
	SrcSegment, DstSegment    flow.Name
	SrcWorkload, DstWorkload  flow.Name
	Identity, Process, Host   flow.Name
	IdentityFrom              flow.Name
	IdentityHeard             flow.Time
	Certain                   uint8 // of the identity, percent
	ServerProcess, ServerHost flow.Name
	Rule, Exception, Policy   flow.Name
	Exporter                  flow.Addr
	Observer                  flow.Name
	ClientPort, Port          uint16
	Proto, ICMPType, ICMPCode uint8
	HasPorts, HasICMP         bool
	Class                     class
	Fate                      fate
	Reason                    flow.Reason
	Expected                  flow.Expected
	Observed                  flow.Observed
	Outcome                   flow.Outcome
	Confidence                uint8
}

func deniedFlowOf(c *Contact) deniedFlow {
	a, z, v := &c.Client, &c.Server, &c.Verdict
	f := deniedFlow{ID: c.ID, Start: c.Start, At: c.Settled, Client: a.Addr, Server: z.Addr, SrcSegment: a.Segment, DstSegment: z.Segment,
		SrcWorkload: a.Workload, DstWorkload: z.Workload, Identity: a.Identity, Process: a.Process, Host: a.Host,
		IdentityFrom: a.IdentityFrom, IdentityHeard: a.IdentityHeard, Certain: a.IdentityCertain, ServerProcess: z.Process, ServerHost: z.Host,
		Rule: v.Rule, Exception: v.Exception, Policy: v.PolicyVersion, ClientPort: a.Port, Port: z.Port, Proto: c.Proto, ICMPType: c.ICMPType, ICMPCode: c.ICMPCode,
		HasPorts: c.HasPorts, HasICMP: c.HasICMP, Class: c.Class, Fate: c.Fate,
		Reason: v.Reason, Expected: v.Expected, Observed: v.Observed, Outcome: v.Outcome, Confidence: v.Confidence}
	if c.ObserversTotal > 0 {
		f.Exporter, f.Observer = c.Observers[0].Exporter, c.Observers[0].Observer
	}
	return f
}

// contact makes of it a contact again.
func (f *deniedFlow) contact() *Contact {
	c := &Contact{Class: f.Class, Fate: f.Fate, Session: flow.Session{ID: f.ID, Start: f.Start, End: f.Start, Settled: f.At,
		Client: flow.SessionEnd{Addr: f.Client, Port: f.ClientPort, Segment: f.SrcSegment, Workload: f.SrcWorkload, Identity: f.Identity, Process: f.Process, Host: f.Host,
			IdentityFrom: f.IdentityFrom, IdentityHeard: f.IdentityHeard, IdentityCertain: f.Certain},
		Server: flow.SessionEnd{Addr: f.Server, Port: f.Port, Segment: f.DstSegment, Workload: f.DstWorkload, Process: f.ServerProcess, Host: f.ServerHost},
		Proto:  f.Proto, ICMPType: f.ICMPType, ICMPCode: f.ICMPCode, HasPorts: f.HasPorts, HasICMP: f.HasICMP,
		Verdict: flow.Verdict{PolicyVersion: f.Policy, Rule: f.Rule, Exception: f.Exception, Reason: f.Reason, Expected: f.Expected, Observed: f.Observed,
			Outcome: f.Outcome, Confidence: f.Confidence}}}
	c.ObserversTotal, c.Observers[0] = 1, flow.SessionObserver{Exporter: f.Exporter, Observer: f.Observer}
	return c
}

// over says whether both are of one edge.
func (f *deniedFlow) over(o *deniedFlow) bool {
	return f.Server == o.Server && f.Port == o.Port && f.Proto == o.Proto && f.ICMPType == o.ICMPType && f.ICMPCode == o.ICMPCode
}

func newDenials() denials { return denials{byKey: map[deniedKey]int32{}} }

// of gives the state of a source, new if need be.
func (d *denials) of(b *Behaviour, addr flow.Addr, segment, workload flow.Name, at flow.Time) *deniedSource {
	// As the host is followed, so that learning its name later does not make it another.
	k := deniedKey{Addr: addr}
	if i, held := b.hosts.find(addr, workload); held {
		h := &b.hosts.list[i]
		if k.Addr = h.Addr; h.Workload != flow.NoName {
			k = deniedKey{Workload: h.Workload}
		}
	} else if workload != flow.NoName && workload != flow.OverflowName {
		k = deniedKey{Workload: workload}
	}
	i, known := d.byKey[k]
	if !known {
		if len(d.list) >= maxDeniedSources {
			d.makeRoom(b, addr, at)
		}
		i = int32(len(d.list))
		d.byKey[k] = i
		d.list = append(d.list, deniedSource{Key: k, Hour: int64(max(at, 0) / hourMillis), Day: max(dayOf(at), 0)})
	}
	s := &d.list[i]
	s.Addr, s.Segment = addr, segment
	return s
}

// makeRoom forgets a sixteenth of the sources: those that nothing was told of first, then those
// that were never denied much.
func (d *denials) makeRoom(b *Behaviour, addr flow.Addr, at flow.Time) {
	order := d.sorted(b.names)
	slices.SortStableFunc(order, func(x, y deniedSource) int {
		told := func(s *deniedSource) int { return min(int(s.Level), 1) }
		return cmp.Or(cmp.Compare(told(&x), told(&y)), cmp.Compare(slices.Max(x.Peaks[:]), slices.Max(y.Peaks[:])), cmp.Compare(x.Hour, y.Hour))
	})
	n := maxDeniedSources / 16
	d.list = slices.Delete(order, 0, n)
	d.adopt()
	b.bm.undenied.Add(float64(n))
	b.pressed(boundDenied, addr, n, at)
}

func (d *denials) adopt() {
	clear(d.byKey)
	for i := range d.list {
		d.byKey[d.list[i].Key] = int32(i)
	}
}

func (d *denials) sorted(names *flow.Names) []deniedSource {
	return slices.SortedFunc(slices.Values(d.list), func(x, y deniedSource) int {
		return cmp.Or(cmp.Compare(names.Text(x.Key.Workload), names.Text(y.Key.Workload)), x.Key.Addr.Compare(y.Key.Addr))
	})
}

// contact notes sessions that a finding may name, and those that got through.
func (d *denials) contact(b *Behaviour, v *visit) {
	denied := v.Fate == fateDenied && v.Verdict.Outcome != flow.OutcomeMisblocked
	if !denied && !v.Stopped || v.Open || b.outside(&v.Client) {
		return
	}
	s := d.of(b, v.Client.Addr, v.Client.Segment, v.Client.Workload, v.at)
	f := deniedFlowOf(v.Contact)
	goesOn := s.ToldAt != 0 && v.at-s.ToldAt <= deniedGoesOn
	if !denied {
		if !s.broke(&f) {
			return
		}
		if s.PassedN == 0 || v.at-s.PassedAt > hourMillis && !goesOn {
			s.Passed, s.PassedN = f, 0
		}
		s.PassedN++
		s.PassedAt = v.at
		if goesOn {
			d.tell(b, s, 0, v.Contact)
		}
		return
	}
	s.note(&f)
	if tier, _ := b.policy.SegmentFacts(v.Start, v.Server.Segment); tier == crownJewel {
		first := v.at-s.Jewel.At > hourMillis
		s.Jewel = f
		if first && goesOn {
			d.tell(b, s, 0, v.Contact)
		}
	}
}

// note keeps a denied session, one of each edge, the newest.
func (s *deniedSource) note(f *deniedFlow) {
	at := 0
	for i := range s.Flows {
		o := &s.Flows[i]
		if o.At != 0 && o.over(f) {
			at = i
			break
		}
		if o.At < s.Flows[at].At {
			at = i
		}
	}
	s.Flows[at] = *f
}

// broke says whether a session that got through where others were stopped is worth telling. That a
// rule or an exception was made meanwhile is ordinary; that another user or another program is let
// through is not.
func (s *deniedSource) broke(f *deniedFlow) bool {
	if f.Expected != flow.ExpectAllow {
		return true
	}
	for i := range s.Flows {
		if o := &s.Flows[i]; o.At != 0 && o.over(f) {
			other := func(a, b flow.Name) bool { return a != b && a != flow.NoName && b != flow.NoName }
			return o.Policy == f.Policy && (other(o.Identity, f.Identity) || other(o.Process, f.Process))
		}
	}
	return false
}

// look takes in the windows that end at a time.
func (d *denials) look(b *Behaviour, o *Observations, at flow.Time) {
	minute := uint32(at / minuteMillis)
	for len(o.Denied) > 0 && o.Denied[0].Key.At+hostWindow == minute {
		d.window(b, &o.Denied[0].Key, &o.Denied[0].N, at)
		o.Denied = o.Denied[1:]
	}
}

// window takes in how often a source was denied in ten minutes, which end at a time.
func (d *denials) window(b *Behaviour, k *DeniedKey, n *Denied, at flow.Time) {
	began := minuteTime(k.At)
	if b.outside(&flow.SessionEnd{Addr: k.Addr, Segment: k.Segment}) {
		return
	}
	s := d.of(b, k.Addr, k.Segment, k.Workload, began)
	s.turn(began)
	s.N.add(n)
	day := dayOf(began)
	peak := &s.Peaks[day%int64(len(s.Peaks))]
	*peak = max(*peak, s.N.Sessions)
	if b.learning(began) {
		return
	}
	cfg := &b.bcfg.Blocked
	usual := s.usual(day, min(day-max(dayOf(b.began), 0), deniedDays))
	if day-s.LevelDay > deniedDays {
		s.Level = 0
	} else if s.N.Sessions >= s.Level/2 {
		s.LevelDay = day
	}
	far := func(of uint32) bool {
		return s.N.Sessions >= uint32(cfg.Least) && uint64(s.N.Sessions) >= uint64(cfg.Times)*uint64(of)
	}
	goesOn := s.ToldAt != 0 && s.ToldDay == day
	switch {
	case !far(usual):
		return
	case far(s.Level) && !goesOn:
		s.ToldDay, s.Most, s.Counted = day, Denied{}, 0
		if s.PassedAt <= at-hourMillis-hostWindow*minuteMillis {
			s.Passed, s.PassedN = deniedFlow{}, 0
		}
	case !goesOn:
		return // it is as it was told on a day before
	}
	s.ToldAt = at
	if s.N.Sessions > s.Most.Sessions {
		s.Most, s.MostOf, s.Usual = s.N, s.Hour, usual
	}
	s.Level, s.LevelDay = max(s.Level, s.N.Sessions), day
	grown := s.N.Sessions - s.Counted
	s.Counted = s.N.Sessions
	d.tell(b, s, int64(grown), nil)
}

// turn makes the hour of a time the present one.
func (s *deniedSource) turn(at flow.Time) {
	if hour := int64(at / hourMillis); hour > s.Hour {
		s.Hour, s.N, s.Counted = hour, Denied{}, 0
	}
	day := dayOf(at)
	for n := max(s.Day+1, day-int64(len(s.Peaks))+1); n <= day; n++ {
		s.Peaks[n%int64(len(s.Peaks))] = 0
	}
	s.Day = max(s.Day, day)
}

// usual is the median of the busiest hours of so many days before one: what it did on a few days
// does not make it usual.
func (s *deniedSource) usual(day, days int64) uint32 {
	if days <= 0 {
		return 0
	}
	var peaks [deniedDays]uint32
	for i := range days {
		peaks[i] = s.Peaks[(day-1-i)%int64(len(s.Peaks))]
	}
	slices.Sort(peaks[:days])
	return peaks[days/2]
}

// tell makes the finding, or tells it anew; n is how many denied sessions it adds, c a contact
// that gives rise to it.
func (d *denials) tell(b *Behaviour, s *deniedSource, n int64, c *Contact) {
	since := flow.Time(s.MostOf) * hourMillis
	recent := func(f *deniedFlow) bool { return f.At >= since }
	var flows []*deniedFlow
	for i := range s.Flows {
		if f := &s.Flows[i]; f.At != 0 && recent(f) {
			flows = append(flows, f)
		}
	}
	slices.SortFunc(flows, func(x, y *deniedFlow) int { return cmp.Or(cmp.Compare(x.At, y.At), cmp.Compare(x.ID, y.ID)) })
	jewel := s.Jewel.At != 0 && recent(&s.Jewel)

	t := told{Severity: flow.Low, Confidence: 80, Start: since, Observed: flow.ObservedDeny}
	var contacts []*Contact
	if s.PassedN > 0 {
		contacts = append(contacts, s.Passed.contact())
	}
	for _, f := range flows {
		contacts = append(contacts, f.contact())
	}
	if jewel && !slices.ContainsFunc(flows, func(f *deniedFlow) bool { return f.ID == s.Jewel.ID }) {
		contacts = append(contacts, s.Jewel.contact())
	}
	if c != nil && !slices.ContainsFunc(contacts, func(o *Contact) bool { return o.ID == c.ID }) {
		contacts = append(contacts, c)
	}
	says := &story{Client: s.Addr}
	a := flow.End{Address: s.Addr.String(), Segment: b.names.Text(s.Segment), Workload: b.names.Text(s.Key.Workload)}
	if len(contacts) > 0 {
		t = b.toldOf(contacts[0], t.Severity, t.Confidence)
		if s.PassedN > 0 {
			says.Server = contacts[0].Server.Addr
			says.Ends = []flow.End{b.endOf(&contacts[0].Session, false), b.endOf(&contacts[0].Session, true)}
		}
		a = b.endOf(&contacts[0].Session, false)
	}
	if says.Ends == nil {
		says.Ends = []flow.End{a}
		t.Service, t.DstSegment, t.DstWorkload = "", "", ""
	}
	name := who(s.Addr, a.Workload, a.Segment, a.Identity, a.Process)
	says.Title = cmp.Or(word(a.Workload), a.Address) + " is denied far more often than usual"
	says.Sentence = fmt.Sprintf("%s was stopped %s in the hour from %s on, at %s; ", name, times(int(s.Most.Sessions), "time", "times"), moment(since),
		times(int(max(s.Most.Edges, 1)), "service of a host", "services of hosts"))
	if s.Usual == 0 {
		says.Sentence += "usually it is hardly ever."
	} else {
		says.Sentence += fmt.Sprintf("in its busiest hour of a usual day it is %s.", times(int(s.Usual), "time", "times"))
	}
	rise := 30 + 10*bits.Len32(s.Most.Sessions/max(s.Usual, uint32(b.bcfg.Blocked.Least)))
	says.part("rise", min(rise, 60), fmt.Sprintf("%d denied sessions in an hour, usually %d", s.Most.Sessions, s.Usual))
	if s.Most.Edges >= manyDoors {
		says.part("breadth", 10, fmt.Sprintf("over %d edges", s.Most.Edges))
		says.technique("T1046")
	}
	for _, f := range flows {
		says.technique(f.Class.technique())
	}
	if jewel {
		t.Severity++
		segment := word(b.names.Text(s.Jewel.DstSegment))
		says.part("crown jewel", 20, segment)
		says.Sentence += " Among them were ones at the crown jewels in " + segment + "."
	}
	says.Next = "Find out what on " + s.Addr.String() + " makes these attempts. If a program goes on with what a rule no longer lets through, stop it or ask for a rule; " +
		"if nobody knows of it, look at the host: somebody may be trying doors from there."
	if p := &s.Passed; s.PassedN > 0 {
		t.Severity = flow.High
		tier, _ := b.policy.SegmentFacts(p.Start, p.DstSegment)
		if tier == crownJewel {
			t.Severity = flow.Critical
		}
		z := b.endOf(&contacts[0].Session, true)
		says.part("got through", 30, "where it had been stopped within the hour before")
		says.Title += ", and got through"
		says.Sentence += " Then it got through, at " + moment(p.Start) + ": it reached " + who(p.Server, z.Workload, z.Segment, "", z.Process) + " on " + t.Service +
			", where it had been stopped within the hour before"
		if p.Expected == flow.ExpectAllow {
			says.Sentence += ", as another user or by another program"
		}
		if s.PassedN > 1 {
			says.Sentence += "; and so " + times(int(s.PassedN-1), "time", "times") + " more"
		}
		says.Sentence += "."
		says.technique(p.Class.technique())
		if p.Class.administers() && s.Most.Edges < manyDoors {
			says.technique("T1110")
		}
		says.Next = "See why enforcement let it through on " + t.Service + " after it had stopped it, and what " + s.Addr.String() + " did there. Stop it until somebody knows."
	}
	for _, c := range contacts {
		says.Edges = append(says.Edges, edgeOf(c))
	}
	t.Story, t.Open, t.Start = says, false, s.Most.First
	says.Until = s.N.Last
	k := key{Type: flow.FindingBlocked, Client: s.Key.Addr, Subject: "denied", Day: s.ToldDay}
	if s.Key.Workload != flow.NoName {
		k.Subject += "|" + b.names.Text(s.Key.Workload)
	}
	b.raise(k, t, n, contacts...)
}

// manyDoors is from how many edges an hour on a source tries doors.
const manyDoors = 8

func (s *story) technique(t string) {
	if t != "" && !slices.Contains(s.Techniques, t) {
		s.Techniques = append(s.Techniques, t)
		slices.Sort(s.Techniques)
	}
}

// tend forgets sources of which nothing is left that could matter: what is below a quarter of the
// least that is told makes no difference to what is usual.
func (d *denials) tend(b *Behaviour) {
	hour, day := int64(b.tended/hourMillis), dayOf(b.tended)
	cfg := &b.bcfg.Blocked
	n := len(d.list)
	d.list = slices.DeleteFunc(d.list, func(s deniedSource) bool {
		if s.Hour >= hour-1 || s.Level > 0 && day-s.LevelDay <= deniedDays || b.tended-max(s.ToldAt, s.PassedAt) <= deniedGoesOn {
			return false
		}
		for i := range int64(deniedDays) + 1 {
			if at := day - i; at <= s.Day && at > s.Day-int64(len(s.Peaks)) && int(s.Peaks[at%int64(len(s.Peaks))])*cfg.Times >= cfg.Least {
				return false
			}
		}
		return true
	})
	if len(d.list) != n {
		d.adopt()
	}
}

func (d *denials) save(w *stateWriter) { saveAll(w, d.sorted(w.names)) }

func (d *denials) load(r *stateReader) {
	d.list = loadAll[deniedSource](r)
	for i := range d.list {
		s := &d.list[i]
		wrong := s.Hour < 0 || s.Day < 0
		for _, f := range append(s.Flows[:], s.Jewel, s.Passed) {
			wrong = wrong || f.Fate > fateDenied || f.Class >= classes
		}
		if wrong {
			r.fail(errState)
			d.list = nil
			break
		}
	}
	d.adopt()
}
