package detect

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
	"github.com/prometheus/client_golang/prometheus"
)

// ChainConfig says which ways from host to host are told of: chains, pivots through exceptions
// and identities that change on the way.
type ChainConfig struct {
	// Score is from which score on a chain is told, 0 to 100.
	Score int `yaml:"score"`
	// Linger is for how long after a session was seen last whoever came in by it may go on.
	Linger time.Duration `yaml:"linger"`
	// Within is for how long after it began an unusual session, or one by an exception, may be how
	// somebody came in: the session may still be open, or has left something behind.
	Within time.Duration `yaml:"within"`
	// MaxHops bounds the sessions that are remembered as possible steps of a way.
	MaxHops int `yaml:"maxHops"`
}

// DefaultChainConfig gives the defaults.
func DefaultChainConfig() ChainConfig {
	return ChainConfig{
		Score:  50, // two unusual steps, one right after the other
		Linger: 30 * time.Minute,
		Within: 24 * time.Hour,
		// About 250 bytes each: 64 MB at the cap. A company of 10,000 hosts has some thousand.
		MaxHops: 256 << 10,
	}
}

func (c *ChainConfig) validate() error {
	switch {
	case c.Score < 20 || c.Score > 100:
		return fmt.Errorf("detect.behaviour.chain.score is %d; write a number from 20 to 100", c.Score)
	case c.Linger < time.Minute || c.Linger > 24*time.Hour:
		return fmt.Errorf("detect.behaviour.chain.linger is %v; write a duration from 1m to 24h", c.Linger)
	case c.Within < c.Linger || c.Within > 7*24*time.Hour:
		return fmt.Errorf("detect.behaviour.chain.within is %v; write a duration from linger (%v) to 168h", c.Within, c.Linger)
	case c.MaxHops < 1024 || c.MaxHops > 1<<24:
		return fmt.Errorf("detect.behaviour.chain.maxHops is %d; write a number from 1024 to %d", c.MaxHops, 1<<24)
	}
	return nil
}

const (
	ringSize = 8 // sessions that came in, by host
	maxDepth = 5 // steps of a way that are told
	maxPorts = 8 // services by which one step was made
)

// hop is a session as a step of a way. It is a value of fixed size without pointers.
type hop struct {
	Session    uint64
	Start, End flow.Time
	Until      flow.Time // whoever came in by it may go on until then
	Known      flow.Time // when its edge was seen last before; 0 never
	Client     hopEnd
	Server     hopEnd
	Exception  flow.Name
	Through    flow.Name // the exception that the way came in by
	Ports      [maxPorts]uint16
	Proto      uint8
	Class      class
	Points     uint8 // how unusual it is by itself, 0 to 100
	Score      uint8 // of the way up to here
	Link       uint8 // percent: how sure it is that it goes on from Up
	Odd        uint8 // unusual steps up to here
	Depth      uint8 // steps up to here, this one among them; holds at 255
	Way        bool  // in through an exception that leads to few
	Pivot      bool  // beyond such a way in
	Told       bool  // the way is in a finding
	Switched   bool  // another identity than the one that came in
	Up         int32 // the step it goes on from; -1: none
	Refs       int32 // by a ring, by steps that go on from it

	// The way's first step, by which it goes: those that grow out of it are one finding.
	First [2]origin
	Began flow.Time
}

// hopEnd is one side of a step.
type hopEnd struct {
	Addr                                               flow.Addr
	Translated                                         flow.Addr // behind a translation; zero: there is none
	Workload, Segment, Identity, IdentityFrom, Process flow.Name
	Host                                               flow.Name
	Age                                                int32 // of who says the identity, in seconds; -1 not known
	Certain                                            uint8
}

// origin is a host as the key of a finding has it: its workload, else its address.
type origin struct {
	Addr     flow.Addr
	Workload flow.Name
}

// ring is the last notable sessions that came in to a host, as places of hops.
type ring struct {
	In [ringSize]int32
	N  int32
}

// chains finds ways from host to host: steps each of which begins while whoever came by the one
// before may still be there. Beside unusual steps it keeps ordinary ones for as long as they
// matter: the more who may have gone on, the less sure it is who did.
type chains struct {
	hops  []hop
	free  []int32
	rings []ring // by the host's place
	next  hop    // the step that is being looked at

	sweeps sweeps
	known  identities
}

// chainMetrics are those of ways from host to host.
type chainMetrics struct {
	dropped prometheus.Counter
	held    prometheus.Gauge
}

func newChainMetrics() chainMetrics {
	return chainMetrics{
		dropped: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_behaviour_hops_dropped_total",
			Help: "Notable sessions that could not be remembered as steps of a way, or made room for others while somebody might still go on from them (detect.behaviour.chain.maxHops; eight for each host)."}),
		held: prometheus.NewGauge(prometheus.GaugeOpts{Name: "postern_behaviour_hops", Help: "Sessions remembered as possible steps of a way from host to host."}),
	}
}

func newChains() chains { return chains{sweeps: newSweeps()} }

// contact looks at one contact as a step that goes on from others, and keeps it as one that
// others may go on from.
func (c *chains) contact(b *Behaviour, v *visit) {
	if v.Open || v.client == v.server || v.Fate.failed() || v.NAT == flow.NATUnverified {
		return
	}
	excepted := usedBy(v) != flow.NoName
	var in *ring
	if int(v.client) < len(c.rings) && c.rings[v.client].N > 0 {
		in = &c.rings[v.client]
	}
	notable := v.Class.administers() || excepted
	if !notable && (in == nil || !v.New) {
		c.known.learn(v)
		return
	}
	points := b.oddity(v)
	from := causes{best: -1, way: -1}
	if in != nil {
		from = c.causes(b, v, in)
	}
	if !notable && from.way < 0 {
		c.known.learn(v)
		return
	}
	h := &c.next
	*h = c.step(b, v, points, &from)
	told := c.pivot(b, v, h, &from) || c.chain(b, v, h)
	if !c.switched(b, v, h, &from, told) {
		c.known.learn(v)
	}
	if notable || h.Told {
		c.keep(b, v, h)
	}
}

// causes are the sessions a step may go on from.
type causes struct {
	best  int32 // the likeliest: by the score of the way to it, then the latest; -1: none
	way   int32 // the latest that came in through an exception, or from beyond one; -1: none
	link  int   // percent: how sure it is that it was the best
	odd   int   // how many are unusual
	plain int   // how many are ordinary
	list  [ringSize]int32
	n     int
}

// causes lists the sessions that came in to the client of a contact and may be why it began.
func (c *chains) causes(b *Behaviour, v *visit, in *ring) causes {
	out := causes{best: -1, way: -1}
	same := false // somebody came in as whom the contact goes out
	who := identityOf(&v.Client)
	for _, i := range in.In[:in.N] {
		h := &c.hops[i]
		if h.Start > v.Start || h.Until < v.Start || c.passes(i, v.Server.Addr, v.Server.Workload) {
			continue
		}
		out.list[out.n] = i
		out.n++
		if known := h.Client.identity(); known != flow.NoName && known == who {
			same = true
		}
	}
	for _, i := range out.list[:out.n] {
		h := &c.hops[i]
		if same && h.Client.identity() != who {
			continue
		}
		if h.Points > 0 || h.Way || h.Pivot {
			out.odd++
		} else {
			out.plain++
		}
		if out.best < 0 || c.likelier(h, &c.hops[out.best]) {
			out.best = i
		}
		if (h.Way || h.Pivot) && (out.way < 0 || c.laterWay(h, &c.hops[out.way])) {
			out.way = i
		}
	}
	if out.best >= 0 {
		// An ordinary session counts a quarter: it came in before, and nothing went on from there.
		out.link = min(100, 400/max(1, 4*out.odd+out.plain))
	}
	return out
}

func (c *chains) likelier(a, o *hop) bool {
	return cmp.Or(cmp.Compare(a.Score, o.Score), cmp.Compare(a.Start, o.Start), cmp.Compare(a.Session, o.Session)) > 0
}

func (c *chains) laterWay(a, o *hop) bool {
	return cmp.Or(cmp.Compare(a.Start, o.Start), cmp.Compare(a.Session, o.Session)) > 0
}

// passes says whether a host is on the way to a step already: ways do not go in circles.
func (c *chains) passes(i int32, a flow.Addr, workload flow.Name) bool {
	for n := 0; i >= 0 && n < maxDepth; n++ {
		h := &c.hops[i]
		if h.Client.Addr == a || workload != flow.NoName && h.Client.Workload == workload {
			return true
		}
		i = h.Up
	}
	return false
}

// step makes the step that a contact is, at the end of the likeliest way.
func (c *chains) step(b *Behaviour, v *visit, points int, from *causes) hop {
	h := hop{Session: v.ID, Start: v.Start, End: v.until(), Client: hopEndOf(&v.Session, false), Server: hopEndOf(&v.Session, true),
		Exception: usedBy(v), Proto: v.Proto, Class: v.Class, Known: v.Known, Points: uint8(points), Score: uint8(points), Depth: 1, Up: -1, Link: 100}
	h.Ports[0] = v.Server.Port
	if points > 0 {
		h.Odd = 1
	}
	h.Way = h.Exception != flow.NoName && c.sweeps.way(b, v)
	if h.Way {
		h.Through = h.Exception
	}
	h.Until = b.goesOn(&h)
	h.First, h.Began = [2]origin{b.origin(v.client), b.origin(v.server)}, v.Start
	up := from.best
	if up < 0 {
		return h
	}
	u := &c.hops[up]
	h.Switched = switchedOn(u, &h) && !c.known.usual(b, v)
	score := int(u.Score) * from.link / 100
	switch gap := v.Start - max(u.End, u.Start); {
	case gap > 4*hourMillis:
		score = score * 70 / 100
	case gap > millis(b.bcfg.Chain.Linger):
		score = score * 85 / 100
	}
	if points == 0 || score == 0 {
		return h
	}
	if !u.Told && v.Start-u.Began > maxDepth*millis(b.bcfg.Chain.Within) {
		return h // so old that what was told of it may be forgotten: another way begins
	}
	h.Up, h.Link = up, uint8(from.link)
	h.First, h.Began = u.First, u.Began
	h.Odd, h.Depth = u.Odd+1, u.Depth+1
	if h.Depth == 0 {
		h.Depth = 255
	}
	score += points + c.climb(b, v, u)
	if h.Switched {
		score += creditSwitched
	}
	h.Score = uint8(min(100, score))
	return h
}

const (
	creditSwitched = 15
	creditTier     = 5 // for each tier that a way climbs
	creditJewel    = 10
)

var tiers = map[string]int{"low": 0, "none": 1, "normal": 1, "high": 2, crownJewel: 3}

// climb is what it counts for that a step leads to what matters more than where the way was.
func (c *chains) climb(b *Behaviour, v *visit, u *hop) int {
	if b.policy == nil {
		return 0
	}
	tier := func(n flow.Name) int {
		t, _ := b.policy.SegmentFacts(v.Start, n)
		if r, ok := tiers[t]; ok {
			return r
		}
		return 1
	}
	to, from := tier(v.Server.Segment), tier(u.Server.Segment)
	if to <= from {
		return 0
	}
	n := (to - from) * creditTier
	if to == 3 {
		n += creditJewel
	}
	return n
}

func hopEndOf(s *flow.Session, server bool) hopEnd {
	e := &s.Client
	if server {
		e = &s.Server
	}
	return hopEnd{Addr: e.Addr, Translated: s.Translated(server), Workload: e.Workload, Segment: e.Segment, Identity: e.Identity, IdentityFrom: e.IdentityFrom, Process: e.Process, Host: e.Host,
		Age: ageOf(s.Start, e), Certain: e.IdentityCertain}
}

// origin is by what keys name the host at a place.
func (b *Behaviour) origin(i int32) origin {
	h := &b.hosts.list[i]
	if h.Workload != flow.NoName {
		return origin{Workload: h.Workload}
	}
	return origin{Addr: h.Addr}
}

// goesOn is until when whoever came in by a step may go on.
func (b *Behaviour) goesOn(h *hop) flow.Time {
	if h.Points > 0 || h.Way || h.Pivot {
		return h.Start + millis(b.bcfg.Chain.Within)
	}
	return min(h.End+millis(b.bcfg.Chain.Linger), h.Start+millis(b.bcfg.Chain.Within))
}

// oddity says how unusual it is that a contact's client administers its server so, 0 to 100: by
// what the client does else, and by who else does that to the server.
func (b *Behaviour) oddity(v *visit) int {
	if !v.New || !v.Class.administers() {
		return 0
	}
	if (b.early(v.at) || v.unwatched) && !violates(&v.Verdict) {
		return 0
	}
	c, s := &b.hosts.list[v.client], &b.hosts.list[v.server]
	c.today(v.at)
	others := 0
	for k := class(1); k < classes; k++ {
		if k != v.Class && k != classDatabase {
			others += int(c.Odd[k])
		}
	}
	var points int
	switch n := int(c.Odd[v.Class]) + others/4; {
	case n == 0:
		points = 25
	case n <= 2:
		points = 20
	case n <= 5:
		points = 10
	case n <= 9:
		points = 5
	default:
		return 0 // it administers; where next says little
	}
	switch n := s.Served[v.Class]; {
	case n == 0:
		points += 15
	case n <= 3:
		points += 10
	case n <= 9:
		points += 5
	case n > 31:
		points -= 15 // what everybody uses
	}
	if !v.NewPair {
		points -= 5
	}
	if c.administersElse(v.Class) >= 2 {
		points /= 2 // it administers, by other ways so far
	}
	switch v.Class {
	case classDatabase, classKubernetes, classDocker:
		points /= 2 // applications and the nodes of a cluster reach each other so, and are moved about
	}
	if v.Known != 0 && v.bad {
		// Never learned as normal, and yet seen before. What an exception allows is no news at all:
		// where it leads together with others is the pivot's matter.
		if points /= 4; !violates(&v.Verdict) {
			points = 0
		}
	}
	return max(0, points)
}

// early says whether it is too soon to call anything unusual. Where there are few hosts chains are
// not told either; a way through an exception is, also among three.
func (b *Behaviour) early(at flow.Time) bool { return at < b.began+millis(b.bcfg.Learn) }

// violates says whether a verdict speaks of what policy does not allow.
func violates(v *flow.Verdict) bool {
	return v.Reason != flow.ReasonWaived && v.Reason != flow.ReasonUnverified && v.Reason != flow.ReasonExpiryUncertain && misuse(v.Reason, v.Exception, v.Observed)
}

// chain tells of a way with enough unusual steps.
func (c *chains) chain(b *Behaviour, v *visit, h *hop) bool {
	if h.Up < 0 || h.Odd < 2 || h.Pivot || b.learning(v.at) && !b.early(v.at) {
		return false
	}
	if int(h.Score) < b.bcfg.Chain.Score && !c.hops[h.Up].Told {
		return false
	}
	if int(h.Score) < b.bcfg.Chain.Score && h.Points < 20 {
		return false
	}
	severity := flow.Medium
	if h.Score >= 75 {
		severity = flow.High
	}
	t := b.toldOf(v.Contact, severity, max(30, h.Score))
	path := c.path(h)
	steps := times(len(path), "step", "steps")
	title := "A way from host to host that is not usual, in " + steps
	if h.Switched {
		title += ", under another identity"
	}
	t.Story = c.story(b, v, path, title)
	t.Story.Sentence += " " + c.why(path)
	t.Story.Next = "Ask whoever uses " + b.placeOf(&path[0].Client) + " whether they went this way. If nobody did, take the hosts of the way off the network, the last one first, " +
		"and change the passwords of whoever was logged on to them."
	t.Story.Score, t.Story.Parts = int(h.Score), c.parts(b, path)
	c.tell(b, v, t, keyOfWay(b, flow.FindingChain, h, ""), path)
	return true
}

// keyOfWay is the key of a finding about a way: by its first step's two hosts and the day that
// began. Whatever grows out of that step is the same finding, over midnight too.
func keyOfWay(b *Behaviour, typ string, h *hop, subject string) key {
	k := key{Type: typ, Subject: subject, Day: dayOf(h.Began), Client: h.First[0].Addr, Server: h.First[1].Addr}
	for _, o := range h.First {
		if o.Workload != flow.NoName {
			k.Subject += "|" + b.names.Text(o.Workload)
		}
	}
	return k
}

// tell adds to the finding of a way. Of several ways that grew out of one step the one with the
// most to it is told, and the edges of all of them.
func (c *chains) tell(b *Behaviour, v *visit, t told, k key, path []*hop) {
	if f := b.findings[k]; f != nil && f.Told.Story != nil && (f.Told.Story.Score > t.Story.Score || len(f.Told.Story.Hops) > len(t.Story.Hops)) {
		edges := t.Story.Edges
		t = f.Told
		again := *t.Story
		again.Edges = edges
		t.Story = &again
	}
	n := int64(0)
	for _, h := range path {
		if !h.Told {
			h.Told = true
			n++
		}
	}
	f := b.raise(k, t, n, v.Contact)
	// It began with the first step, which was no finding then.
	f.Span.Start = min(f.Span.Start, path[0].Start)
	b.touch(f, 0, span{path[0].Start, v.Start})
}

// path is the last steps of a way that ends in h, in the order of time.
func (c *chains) path(h *hop) []*hop {
	out := []*hop{h}
	for i := h.Up; i >= 0 && len(out) < maxDepth; i = c.hops[i].Up {
		out = append(out, &c.hops[i])
	}
	slices.Reverse(out)
	return out
}

func (c *chains) story(b *Behaviour, v *visit, path []*hop, title string) *story {
	s := &story{Title: title, Sentence: c.sentence(b, path), Client: path[0].Client.Addr, Server: v.Server.Addr}
	for _, h := range path {
		s.Hops = append(s.Hops, flow.Hop{Client: b.endOfHop(&h.Client), Server: b.endOfHop(&h.Server), Service: serviceOfHop(h), Start: h.Start, End: h.End,
			Exception: b.names.Text(h.Exception), Session: fmt.Sprint(h.Session)})
		for _, p := range h.Ports {
			if p != 0 {
				s.Edges = append(s.Edges, flow.Edge{Source: h.Client.Addr.String(), Destination: h.Server.Addr.String(), Port: p, Protocol: string(flow.AppendProto(nil, h.Proto))})
			}
		}
		if k := h.Class.technique(); k != "" && !slices.Contains(s.Techniques, k) {
			s.Techniques = append(s.Techniques, k)
		}
	}
	for _, h := range path[1:] {
		if h.Switched {
			s.Techniques = append(s.Techniques, "T1078", "T1550")
			break
		}
	}
	slices.Sort(s.Techniques)
	s.Ends = []flow.End{s.Hops[0].Client, b.endOf(&v.Session, true)}
	return s
}

func (b *Behaviour) endOfHop(e *hopEnd) flow.End {
	out := b.endFrom(e.Addr, e.Workload, e.Segment, e.Host, e.Process)
	b.identify(&out, e.Identity, e.IdentityFrom, e.Age, e.Certain)
	out.Translated = translated(e.Translated)
	return out
}

func serviceOfHop(h *hop) string {
	s := flow.Session{Proto: h.Proto, HasPorts: true, Server: flow.SessionEnd{Port: h.Ports[0]}}
	return string(s.AppendService(nil))
}

// placeOf is a host in words: its workload, else its address.
func (b *Behaviour) placeOf(e *hopEnd) string {
	if w := b.names.Text(e.Workload); w != "" {
		return word(w)
	}
	return e.Addr.String()
}

// way is a step's service in words.
func (h *hop) way() string {
	if h.Class != classOther {
		return h.Class.String()
	}
	return serviceOfHop(h)
}

// sentence tells a way: "10.1.4.7 (as ana) reached jump-3 over RDP on 2026-10-03 at 10:02 UTC,
// from there vault-1 over SMB at 10:09 (as svc-backup)".
func (c *chains) sentence(b *Behaviour, path []*hop) string {
	var s strings.Builder
	day := int64(-1)
	who := flow.NoName
	for i, h := range path {
		as := ""
		if id := h.Client.Identity; id != flow.NoName && id != who {
			as = " (as " + word(b.names.Text(id)) + ")"
			who = id
		}
		if i == 0 {
			s.WriteString(b.placeOf(&h.Client) + as + " reached ")
			as = ""
		} else {
			s.WriteString(", from there ")
		}
		s.WriteString(b.placeOf(&h.Server) + " over " + h.way())
		if h.Exception != flow.NoName {
			s.WriteString(" by exception " + word(b.names.Text(h.Exception)))
		}
		if d := dayOf(h.Start); d != day {
			s.WriteString(h.Start.Std().Format(" on 2006-01-02"))
			day = d
		}
		s.WriteString(h.Start.Std().Format(" at 15:04"))
		if i == 0 {
			s.WriteString(" UTC")
		}
		s.WriteString(as)
	}
	s.WriteString(".")
	return s.String()
}

// why says what is unusual about a way.
func (c *chains) why(path []*hop) string {
	n := 0
	for _, h := range path {
		if h.Points > 0 {
			n++
		}
	}
	s := "No such session was seen before between these hosts, and such hosts are seldom administered from there."
	if n < len(path) {
		s = fmt.Sprintf("%d of these %d steps were never seen before, and such hosts are seldom administered from there.", n, len(path))
	}
	return s
}

func (c *chains) parts(b *Behaviour, path []*hop) (parts []flow.ScorePart) {
	for i, h := range path {
		name := fmt.Sprintf("step %d", i+1)
		parts = append(parts, flow.ScorePart{Name: name, Points: int(h.Points), Says: "how unusual it is that " + b.placeOf(&h.Client) + " administers " + b.placeOf(&h.Server) + " over " + h.way()})
		if i == 0 {
			continue
		}
		if h.Switched {
			parts = append(parts, flow.ScorePart{Name: name + ": identity", Points: creditSwitched, Says: "another identity than the one that came in"})
		}
		if h.Link < 100 {
			parts = append(parts, flow.ScorePart{Name: name + ": cause", Points: int(h.Link) - 100, Says: "percent off what led up to it: others came in to " + b.placeOf(&h.Client) + " as well"})
		}
	}
	return parts
}

// keep makes a step one that others may go on from.
func (c *chains) keep(b *Behaviour, v *visit, h *hop) {
	for int(v.server) >= len(c.rings) {
		c.rings = append(c.rings, ring{})
	}
	r := &c.rings[v.server]
	for _, i := range r.In[:r.N] {
		if o := &c.hops[i]; o.Client.Addr == h.Client.Addr && o.Proto == h.Proto && o.Until >= h.Start {
			if c.join(b, o, h) {
				return
			}
			c.drop(r, i)
			break
		}
	}
	if r.N == ringSize {
		worst := r.In[0]
		for _, i := range r.In[1:r.N] {
			if c.lessNotable(&c.hops[i], &c.hops[worst], h.Start) {
				worst = i
			}
		}
		w := &c.hops[worst]
		if w.Until >= h.Start && (w.Points > 0 || w.Way) {
			b.bm.chain.dropped.Inc()
		}
		if c.lessNotable(h, w, h.Start) {
			return
		}
		c.drop(r, worst)
	}
	i, ok := c.place(b, v, h)
	if !ok {
		lost(b, 1, v.Client.Addr, v.at)
		return
	}
	r.In[r.N] = i
	r.N++
}

// join makes a further session of one client with one server part of the step that they made
// already; not if it tells more by itself.
func (c *chains) join(b *Behaviour, o, h *hop) bool {
	if h.Score > o.Score || h.Way && !o.Way || h.Pivot && !o.Pivot || h.Start > o.Start+millis(b.bcfg.Chain.Within) {
		for _, p := range o.Ports {
			addPortOf(h, p)
		}
		return false
	}
	for _, p := range h.Ports {
		addPortOf(o, p)
	}
	o.End, o.Until = max(o.End, h.End), max(o.Until, h.Until)
	if o.Client.Identity == flow.NoName {
		o.Client = h.Client
	}
	o.Told = o.Told || h.Told
	return true
}

func addPortOf(h *hop, p uint16) {
	for i, q := range h.Ports {
		if q == p || p == 0 {
			return
		}
		if q == 0 {
			h.Ports[i] = p
			return
		}
	}
}

// lessNotable orders the steps of a full ring: what is over goes first, then what is ordinary,
// then what is older.
func (c *chains) lessNotable(a, o *hop, now flow.Time) bool {
	over := func(h *hop) int {
		if h.Until < now {
			return 0
		}
		return 1
	}
	way := func(h *hop) int {
		if h.Way || h.Pivot {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(over(a), over(o)), cmp.Compare(way(a), way(o)), cmp.Compare(a.Score, o.Score), cmp.Compare(a.Start, o.Start), cmp.Compare(a.Session, o.Session)) < 0
}

// place finds room for a step and counts that it holds on to the one before.
func (c *chains) place(b *Behaviour, v *visit, h *hop) (int32, bool) {
	if len(c.hops)-len(c.free) >= b.bcfg.Chain.MaxHops {
		c.makeRoom(b, v)
		if len(c.hops)-len(c.free) >= b.bcfg.Chain.MaxHops {
			return 0, false
		}
	}
	h.Refs = 1
	if h.Up >= 0 {
		c.hops[h.Up].Refs++
	}
	if n := len(c.free); n > 0 {
		i := c.free[n-1]
		c.free = c.free[:n-1]
		c.hops[i] = *h
		return i, true
	}
	c.hops = append(c.hops, *h)
	return int32(len(c.hops) - 1), true
}

// drop takes a step out of a ring.
func (c *chains) drop(r *ring, i int32) {
	for k := range r.In[:r.N] {
		if r.In[k] == i {
			copy(r.In[k:], r.In[k+1:r.N])
			r.N--
			r.In[r.N] = 0
			break
		}
	}
	c.release(i)
}

// release lets go of a step, and of those before it that nothing else goes on from.
func (c *chains) release(i int32) {
	for i >= 0 {
		h := &c.hops[i]
		if h.Refs--; h.Refs > 0 {
			return
		}
		up := h.Up
		*h = hop{}
		c.free = append(c.free, i)
		i = up
	}
}

// makeRoom lets go of what is over and, if that is not enough, of a sixteenth of what is held, the
// oldest first.
func (c *chains) makeRoom(b *Behaviour, v *visit) {
	c.forgetOver(v.Start)
	least := b.bcfg.Chain.MaxHops - b.bcfg.Chain.MaxHops/16
	if len(c.hops)-len(c.free) <= least {
		return
	}
	type held struct {
		start   flow.Time
		session uint64
		place   int32
		i       int32
	}
	var all []held
	for p := range c.rings {
		for _, i := range c.rings[p].In[:c.rings[p].N] {
			all = append(all, held{c.hops[i].Start, c.hops[i].Session, int32(p), i})
		}
	}
	slices.SortFunc(all, func(x, y held) int { return cmp.Or(cmp.Compare(x.start, y.start), cmp.Compare(x.session, y.session)) })
	n := 0
	for _, x := range all {
		if len(c.hops)-len(c.free) <= least {
			break
		}
		n++
		c.drop(&c.rings[x.place], x.i)
	}
	lost(b, n, v.Client.Addr, v.at)
}

// lost notes that something could not be remembered, and who was there when it had to go.
func lost(b *Behaviour, n int, who flow.Addr, at flow.Time) {
	b.bm.chain.dropped.Add(float64(n))
	b.pressed(boundWays, who, n, at)
}

func (c *chains) forgetOver(before flow.Time) {
	for p := range c.rings {
		r := &c.rings[p]
		for k := r.N - 1; k >= 0; k-- {
			if i := r.In[k]; c.hops[i].Until < before {
				c.drop(r, i)
			}
		}
	}
}

// tend forgets what nobody can go on from any more.
func (c *chains) tend(b *Behaviour) {
	c.forgetOver(b.tended - hourMillis)
	c.sweeps.tend(b)
	b.bm.chain.held.Set(float64(len(c.hops) - len(c.free)))
}

// forget drops what is kept for a host.
func (c *chains) forget(i int32) {
	if int(i) < len(c.rings) {
		r := &c.rings[i]
		for r.N > 0 {
			c.drop(r, r.In[r.N-1])
		}
	}
	c.known.forget(i)
}

// save writes the steps in the order in which hosts hold on to them, so that it does not show
// where they were.
func (c *chains) save(w *stateWriter) {
	at := make([]int32, len(c.hops)) // where each comes, and one
	var hops []hop
	var add func(i int32) int32
	add = func(i int32) int32 {
		if at[i] == 0 {
			h := c.hops[i]
			at[i] = -1 // those before it come first
			if h.Up >= 0 {
				h.Up = add(h.Up)
			}
			hops = append(hops, h)
			at[i] = int32(len(hops))
		}
		return at[i] - 1
	}
	rings := slices.Clone(c.rings)
	for p := range rings {
		r := &rings[p]
		for k := range r.In[:r.N] {
			r.In[k] = add(r.In[k])
		}
	}
	for len(rings) > 0 && rings[len(rings)-1].N == 0 {
		rings = rings[:len(rings)-1]
	}
	saveAll(w, hops)
	saveAll(w, rings)
	c.sweeps.save(w)
	c.known.save(w)
}

func (c *chains) load(r *stateReader, hosts int) {
	c.hops, c.rings = loadAll[hop](r), loadAll[ring](r)
	c.sweeps.load(r)
	c.known.load(r, hosts)
	if r.err == nil && !c.whole(hosts) {
		r.fail(errState)
	}
}

// whole says whether everything that is held is held by what it says, and every way goes back in
// time.
func (c *chains) whole(hosts int) bool {
	refs := make([]int32, len(c.hops))
	if len(c.rings) > hosts {
		return false
	}
	for p := range c.rings {
		r := &c.rings[p]
		if r.N < 0 || r.N > ringSize {
			return false
		}
		for _, i := range r.In[:r.N] {
			if i < 0 || int(i) >= len(c.hops) {
				return false
			}
			refs[i]++
		}
	}
	for i := range c.hops {
		h := &c.hops[i]
		if h.Class >= classes || h.Up < -1 || int(h.Up) >= i { // those before it come first
			return false
		}
		if h.Up >= 0 {
			refs[h.Up]++
		}
	}
	for i := range c.hops {
		if c.hops[i].Refs != refs[i] || refs[i] == 0 {
			return false
		}
	}
	return true
}
