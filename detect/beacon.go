package detect

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/postern/postern/flow"
)

// BeaconConfig says what is a beacon: a host that reaches another by a clock, as whoever waits
// for orders does.
type BeaconConfig struct {
	// Span is for how long the times must be regular.
	Span time.Duration `yaml:"span"`
	// Beats is how many times it must have happened, 24 at least.
	Beats int `yaml:"beats"`
	// Clients is by how many hosts a service may newly be reached and still be one that nobody
	// shares: a server of many is asked by clocks all day.
	Clients int `yaml:"clients"`
	// Peers is from how many regular peers on, or hosts reached by the same service, a host is
	// held to be monitoring, or a server that clocks ask.
	Peers int `yaml:"peers"`
	// Low is the least score, of 100, that is told at all.
	Low int `yaml:"low"`
	// Medium is the least score that makes an alert.
	Medium int `yaml:"medium"`
}

// DefaultBeaconConfig gives the defaults.
func DefaultBeaconConfig() BeaconConfig {
	return BeaconConfig{
		Span:    6 * time.Hour, // longer than a meeting, a download or a page left open over lunch
		Beats:   24,
		Clients: 3,
		Peers:   8,  // a relay of an intruder has a handful of children; monitoring has hundreds
		Low:     50, // a clock and nobody else on the service
		Medium:  75, // that, sizes alike, and a host that serves nobody else
	}
}

func (c *BeaconConfig) validate() error {
	if c.Span < time.Hour || c.Span > 30*24*time.Hour {
		return fmt.Errorf("detect.behaviour.beacon.span is %v; write a duration from 1h to %v", c.Span, 30*24*time.Hour)
	}
	for _, n := range []struct {
		key            string
		v, least, most int
	}{{"beats", c.Beats, blockGaps, 10_000}, {"clients", c.Clients, 1, 1000}, {"peers", c.Peers, 1, 1000}, {"low", c.Low, 1, 100}, {"medium", c.Medium, c.Low, 100}} {
		if n.v < n.least || n.v > n.most {
			return fmt.Errorf("detect.behaviour.beacon.%s is %d; write a number from %d to %d", n.key, n.v, n.least, n.most)
		}
	}
	return nil
}

// beacons tells regular edges that nothing explains from the many that monitoring, agents and
// servers make.
type beacons struct {
	told map[beaconEdge]*toldBeacon
}

type beaconEdge struct {
	Client, Server flow.Addr
	Service        uint32
}

func (e beaconEdge) compare(o beaconEdge) int {
	return cmp.Or(e.Client.Compare(o.Client), e.Server.Compare(o.Server), cmp.Compare(e.Service, o.Service))
}

// toldBeacon is an edge that was told of. It is of fixed size.
type toldBeacon struct {
	Edge     beaconEdge
	At       flow.Time
	Day      int64     // of the finding
	Since    flow.Time // the run that was told of, and how many of its beats
	Beats    uint32
	Severity uint8
}

const (
	// beaconAgain is after how long a beacon that goes on is told again.
	beaconAgain = 7 * dayMillis
	maxBeacons  = 1 << 14
	// knownFor is for how long a host must have been there before it is anything but newly set up:
	// what is installed brings clocks with it.
	knownFor = 3 * dayMillis
	// workday is for how many hours a clock may run because somebody left something open while at
	// work; only what runs longer is an alert.
	workday = 12
)

func newBeacons() beacons { return beacons{told: map[beaconEdge]*toldBeacon{}} }

// serviceOf is the service of a contact as edges tell services apart.
func serviceOf(c *Contact) uint32 {
	switch {
	case c.HasICMP:
		return uint32(c.ICMPType)<<16 | uint32(c.ICMPCode)<<8 | uint32(c.Proto)
	case c.Mapped, c.Open, c.Server.Port >= portDynamicLow:
		return serviceDynamic | uint32(c.Proto)
	}
	return uint32(c.Server.Port)<<8 | uint32(c.Proto)
}

// used is a service and by how many hosts it was newly reached, or on how many.
type used struct {
	Service uint32
	N       uint16
}

// services is the services of a host that most have to do with: of more than there is room for
// the one that fewest have gives way.
type services [8]used

func (l *services) count(service uint32) {
	least := 0
	for i := range l {
		if l[i].N > 0 && l[i].Service == service {
			count(&l[i].N)
			return
		}
		if l[i].N < l[least].N {
			least = i
		}
	}
	l[least] = used{service, 1}
}

// of is how many have to do with a service, most how many with the one that most have.
func (l *services) of(service uint32) (n, most int) {
	for i := range l {
		most = max(most, int(l[i].N))
		if l[i].N > 0 && l[i].Service == service {
			n = int(l[i].N)
		}
	}
	return n, most
}

// learn counts who reaches whom by what.
func (x *beacons) learn(b *Behaviour, v *visit) {
	if v.New {
		service := serviceOf(v.Contact)
		b.hosts.list[v.client].Asks.count(service)
		b.hosts.list[v.server].Serves.count(service)
	}
}

// contact looks at the rhythm of an edge.
func (x *beacons) contact(b *Behaviour, v *visit) {
	r := &v.Rhythm
	if r.Beats == 0 || v.client == v.server {
		return
	}
	c, s := &b.hosts.list[v.client], &b.hosts.list[v.server]
	if !r.Again {
		count(&c.Regular[0])
		count(&s.Regular[1])
	}
	cfg := &b.bcfg.Beacon
	service := serviceOf(v.Contact)
	clients, serves := s.Serves.of(service)
	servers, _ := c.Asks.of(service)
	switch {
	case b.learning(v.at), r.First < b.began+millis(b.bcfg.Learn):
		return // it was always there
	case v.Verdict.Reason == flow.ReasonWaived:
		return // somebody asked for it
	case clients > cfg.Clients, servers > cfg.Peers, int(c.Regular[0]) > cfg.Peers, int(s.Regular[1]) > cfg.Peers:
		return
	}
	story := &story{Techniques: []string{"T1071"}}
	hours := int((v.Start - r.Since) / hourMillis)
	story.part("clock", 10+(int(r.Within)-75)*20/25, fmt.Sprintf("%d of 100 gaps are within a quarter of %s", r.Within, period(r.Period)))
	if hours >= workday {
		story.part("duration", 5, times(hours, "hour", "hours")+" long, beyond a day of work")
	}
	if r.Sizes >= blockGaps/2 && r.Alike >= 75 {
		story.part("sizes", 20, fmt.Sprintf("%d of 100 sessions moved as much both ways", r.Alike))
	}
	if clients <= 1 {
		story.part("destination", 20, "nobody else reaches it by this service")
	}
	if serves <= 2 {
		story.part("no server", 15, "hardly anybody reaches it by any service")
	}
	if c.Regular[0] <= 1 {
		story.part("source", 5, "it reaches no other host by a clock")
	}
	if v.Class.administers() && v.Class != classDatabase {
		story.part("service", 10, "whoever reaches "+v.Class.String()+" can run something there")
		if t := v.Class.technique(); t != "" {
			story.Techniques = append(story.Techniques, t)
		}
	}
	if asked(v.Proto, v.Server.Port, v.HasICMP) {
		story.part("service", -25, "drivers and scripts ask devices so")
	}
	switch {
	case violates(&v.Verdict):
		story.part("policy", 15, "policy does not allow it")
	case v.Verdict.Reason == flow.ReasonPermitted && v.Verdict.Rule != flow.NoName:
		if _, byDefault := defaultOf(b.names.Text(v.Verdict.Rule)); !byDefault {
			story.part("policy", -25, "a rule permits it by name")
		}
	}
	if r.First-c.First < knownFor || r.First-s.First < knownFor {
		story.part("new host", -30, "one of the two was new then, and what is installed brings clocks with it")
	}
	severity := flow.Low
	switch {
	case story.Score >= cfg.Medium && hours >= workday:
		severity = flow.Medium
	case story.Score < cfg.Low:
		return
	}
	if t := x.news(b, v, service, severity); t != nil {
		x.tell(b, v, t, story, hours)
	}
}

// asked says whether a service is one that devices are asked for their state by.
func asked(proto uint8, port uint16, icmp bool) bool {
	switch {
	case icmp:
		return true
	case proto == flow.ProtoUDP:
		return port == 53 || port == 123 || port == 161
	}
	return port == 631 || port == 9100
}

// news gives what is told of a beacon, nil if it was told lately as severely. What becomes more
// severe within a day is the same finding.
func (x *beacons) news(b *Behaviour, v *visit, service uint32, severity flow.Severity) *toldBeacon {
	e := beaconEdge{v.Client.Addr, v.Server.Addr, service}
	t := x.told[e]
	if t != nil && v.at-t.At < beaconAgain && uint8(severity) <= t.Severity {
		return nil
	}
	if t == nil {
		if len(x.told) >= maxBeacons {
			b.bm.untold.Inc()
			return nil
		}
		t = &toldBeacon{Edge: e}
		x.told[e] = t
	}
	if v.at-t.At > dayMillis {
		t.Day = dayOf(v.Start)
	}
	t.At, t.Severity = v.at, uint8(severity)
	return t
}

func (x *beacons) tell(b *Behaviour, v *visit, as *toldBeacon, story *story, hours int) {
	r := &v.Rhythm
	n := int64(r.Beats)
	if as.Since == r.Since {
		n -= int64(as.Beats)
	}
	as.Since, as.Beats = r.Since, r.Beats
	service := string(v.AppendService(nil))
	t := b.toldOf(v.Contact, flow.Severity(as.Severity), uint8(min(90, story.Score)))
	a, z := b.endOf(&v.Session, false), b.endOf(&v.Session, true)
	client := who(v.Client.Addr, a.Workload, a.Segment, a.Identity, a.Process)
	server := who(v.Server.Addr, z.Workload, z.Segment, "", z.Process)
	story.Title = "Beacon: " + v.Client.Addr.String() + " reaches " + v.Server.Addr.String() + " on " + service + " every " + period(r.Period)
	story.Sentence = fmt.Sprintf("%s reached %s on %s every %s or so, %s in %s since %s, which it did not before %s. %s", client, server, service, period(r.Period),
		times(int(r.Beats), "time", "times"), times(hours, "hour", "hours"), moment(r.Since), moment(r.First), because(story.Parts))
	story.Next = "Find out which program on " + v.Client.Addr.String() + " does so, and what answers on " + v.Server.Addr.String() +
		". If both were meant, have a rule name them; if nobody knows them, cut off both and look at who else reaches them."
	story.Ends, story.Edges = []flow.End{a, z}, []flow.Edge{edgeOf(v.Contact)}
	story.Client, story.Server = v.Client.Addr, v.Server.Addr
	t.Story = story
	k := b.keyOf(flow.FindingBeacon, v.client, v.Server.Addr.String()+"|"+service, v.Start)
	k.Day = as.Day
	f := b.raise(k, t, n, v.Contact)
	f.Span.Start, f.Added.Start = min(f.Span.Start, r.Since), min(f.Added.Start, r.Since)
}

// period is a number of seconds in words.
func period(s uint32) string {
	switch {
	case s < 100:
		return times(int(s), "second", "seconds")
	case s < 2*3600:
		return times(int(s+30)/60, "minute", "minutes")
	}
	return times(int(s+1800)/3600, "hour", "hours")
}

// tend forgets what was told so long ago that it may be told again.
func (x *beacons) tend(now flow.Time) {
	for e, t := range x.told {
		if now-t.At > beaconAgain {
			delete(x.told, e)
		}
	}
}

func (x *beacons) save(w *stateWriter) {
	list := make([]toldBeacon, 0, len(x.told))
	for _, t := range x.told {
		list = append(list, *t)
	}
	slices.SortFunc(list, func(a, b toldBeacon) int { return a.Edge.compare(b.Edge) })
	saveAll(w, list)
}

func (x *beacons) load(r *stateReader) {
	list := loadAll[toldBeacon](r)
	if len(list) > maxBeacons {
		r.fail(errState)
		return
	}
	for i := range list {
		x.told[list[i].Edge] = &list[i]
	}
}
