package detect

import (
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
)

// FirstSeenConfig says how edges seen for the first time are told of.
type FirstSeenConfig struct {
	// Budget is how many of them a day and 10,000 hosts are alerts at most on a usual day. From
	// which score on one is follows from the days before. The rest is low or not told.
	Budget float64 `yaml:"budget"`
	// Low is the least score, of 100, that makes an alert whatever the days before were like.
	Low int `yaml:"low"`
	// High is the score from which on it is one in any case.
	High int `yaml:"high"`
}

// DefaultFirstSeenConfig gives the defaults.
func DefaultFirstSeenConfig() FirstSeenConfig {
	return FirstSeenConfig{
		Budget: 2.5, // of the ten a day that people look at, for all detectors
		Low:    68,  // 65 is what nobody did so far: not the source, not to this host, nobody from that part of the network
		High:   72,
	}
}

// firstSeen scores edges of remote administration that were never seen before: how unusual is
// it that this host is administered so, that that one does so, that hosts of its part of the
// network do so there, that anybody in the estate does so today.
type firstSeen struct {
	budget budget
	groups map[group]uint16 // odd edges between parts of the network, by class
	// odd is on how many occasions a day somebody reached a host that is no server of the class,
	// by class; the days before today count. What policy forbids is counted by itself, as groups
	// are: it is never normal, but of what is forbidden too it would be false that nobody does so.
	odd    [2][classes][budgetDays]uint16
	oddDay int32
	told   map[pair]*newEdges
}

// group is two parts of the network: prefixes within segments, which may be as wide as all offices.
type group struct {
	Client, Server flow.Addr
	ClientSegment  flow.Name
	ServerSegment  flow.Name
	Class          class
	Forbidden      bool // by policy
}

// newEdges is what one client first reached of one server lately.
type newEdges struct {
	Client, Server flow.Addr
	First, Last    flow.Time // when the first, the last settled
	Day            int64
	Most           int32 // of the scores of its edges, with what that one is made of
	Parts          []flow.ScorePart
	Score          int32 // of all of them together
	Classes        uint16
	Raised         bool
	Known          flow.Time // when the first of them had been seen before; 0 never
	Worked         bool      // and whether it had carried data then
	Seen           [maxNewEdges]flow.Edge
	N              int32
}

const (
	// fewAdminister is by how many clients a host may be reached by a class and still be one that
	// few administer.
	fewAdminister = 5
	maxNewEdges   = 8
	// togetherFor is how long after an edge another between the same two belongs to it: how
	// moving by WMI, services or tasks goes by several ports at once.
	togetherFor = hourMillis
	maxGroups   = 1 << 18
	// together is what a second kind of remote administration between the two adds.
	together = 20
	maxTold  = 1 << 16
	// failedOff is what it takes off that nothing came of it.
	failedOff = 5
	// seenBefore is what it takes off that the same was seen before: what policy does not allow is
	// never learned as normal, and told of by the policy.
	seenBefore = 40
)

func newFirstSeen() firstSeen {
	return firstSeen{groups: map[group]uint16{}, told: map[pair]*newEdges{}}
}

func (b *Behaviour) groupOf(v *visit) group {
	return group{Class: v.Class, ClientSegment: v.Client.Segment, Client: prefixOf(v.Client.Addr), ServerSegment: v.Server.Segment, Server: prefixOf(v.Server.Addr)}
}

// warm says whether enough was seen to tell a server of many from one that nobody uses: two
// fifths of the time to learn.
func (b *Behaviour) warm(at flow.Time) bool { return at >= b.warmFrom() }

func (b *Behaviour) warmFrom() flow.Time { return b.began + millis(b.bcfg.Learn)*2/5 }

// estate is how many hosts there are; fewer than a thousand count as a thousand, so that rates for
// 10,000 do not hang on a handful.
func (b *Behaviour) estate() int { return max(b.hosts.held(), 1000) }

// turn moves the days of odd edges on.
func (f *firstSeen) turn(at flow.Time) {
	d := int32(dayOf(at))
	if f.oddDay == 0 {
		f.oddDay = d
	}
	for f.oddDay < d {
		if d-f.oddDay > budgetDays {
			f.oddDay = d - budgetDays
		}
		f.oddDay++
		for k := range f.odd {
			for c := range f.odd[k] {
				f.odd[k][c][int(f.oddDay)%budgetDays] = 0
			}
		}
	}
}

// oddADay is how often a day, on the last complete days, somebody newly reached a host that is no
// server of the class, for 10,000 hosts and in tenths; forbidden: what policy forbids counts too.
func (f *firstSeen) oddADay(b *Behaviour, c class, forbidden bool, at flow.Time) int {
	f.turn(at)
	warm := int32(dayOf(b.warmFrom()))
	var days [7]int
	n := 0
	for d := max(f.oddDay-7, warm+1); d < f.oddDay; d++ {
		if days[n] = int(f.odd[0][c][int(d)%budgetDays]); forbidden {
			days[n] += int(f.odd[1][c][int(d)%budgetDays])
		}
		n++
	}
	if n == 0 {
		return 1 << 20
	}
	slices.Sort(days[:n])
	hosts := b.estate()
	return days[n/2] * 10 * 10_000 / hosts
}

// among is how often hosts of a group newly did so; forbidden: what policy forbids counts too.
func (f *firstSeen) among(g group, forbidden bool) int {
	n := int(f.groups[g])
	if g.Forbidden = true; forbidden {
		n += int(f.groups[g])
	}
	return n
}

// score says how unusual a first contact is: what it is made of is appended to parts.
func (f *firstSeen) score(b *Behaviour, v *visit, parts []flow.ScorePart) (int, []flow.ScorePart) {
	c, s := &b.hosts.list[v.client], &b.hosts.list[v.server]
	c.today(v.at)
	forbidden := violates(&v.Verdict)
	total := 0
	add := func(name string, points int, says string, n int) {
		total += points
		if parts != nil && points != 0 {
			if strings.Contains(says, "%d") {
				says = fmt.Sprintf(says, n)
			}
			parts = append(parts, flow.ScorePart{Name: name, Points: points, Says: says})
		}
	}
	switch n := int(s.Served[v.Class]); {
	case n == 0:
		add("destination", 30, "nobody had reached it by this kind of service", 0)
	case n == 1:
		add("destination", 18, "one other had reached it by this kind of service", 0)
	case n == 2:
		add("destination", 12, "%d others had reached it by this kind of service", n)
	case n <= 5:
		add("destination", 4, "%d others had reached it by this kind of service", n)
	case n < 10:
		add("destination", -8, "%d others had reached it by this kind of service", n)
	default:
		add("destination", -25, "%d others had reached it by this kind of service: it is a server", n)
	}
	switch k, other := c.oddDays(v.Class), c.administersElse(v.Class); {
	case k >= 5:
		add("source", -40, "on %d of the last 32 days it newly reached hosts in this way", k)
	case k >= 3:
		add("source", -30, "on %d of the last 32 days it newly reached hosts in this way", k)
	case k == 2:
		add("source", -18, "on %d of the last 32 days it newly reached hosts in this way", k)
	case other >= 5:
		add("source", -20, "on %d of the last 32 days it newly administered hosts in another way", other)
	case other >= 3:
		add("source", -12, "on %d of the last 32 days it newly administered hosts in another way", other)
	case k == 1:
		add("source", -4, "on one of the last 32 days it newly reached a host in this way", k)
	case other == 2:
		add("source", -4, "on %d of the last 32 days it newly administered hosts in another way", other)
	case v.at-c.First < 2*dayMillis:
		add("source", 4, "it is new, and nothing is known of it", 0)
	case c.Reached[v.Class] == 0:
		add("source", 15, "it never used this kind of service", 0)
	default:
		add("source", 10, "it only used this kind of service on servers that many use", 0)
	}
	if n := c.oddOnes(); n >= 48 {
		add("breadth", -30, "it reached %d hosts in ways that nobody else does, as scanners and inventories do", n)
	}
	switch n := f.among(b.groupOf(v), forbidden); {
	case n == 0:
		add("groups", 20, "nobody in its part of the network did so towards that part", 0)
	case n <= 2:
		add("groups", 12, "%d times somebody in its part of the network did so towards that part", n)
	case n <= 6:
		add("groups", 6, "%d times somebody in its part of the network did so towards that part", n)
	}
	switch n := f.oddADay(b, v.Class, forbidden, v.at); {
	case n < 10:
		add("estate", 18, "less than once a day for 10,000 hosts anybody does so who is no administrator", 0)
	case n < 30:
		add("estate", 12, "about %d times a day for 10,000 hosts somebody does so who is no administrator", n/10)
	case n < 100:
		add("estate", 6, "about %d times a day for 10,000 hosts somebody does so who is no administrator", n/10)
	case n < 300:
		add("estate", 3, "about %d times a day for 10,000 hosts somebody does so who is no administrator", n/10)
	}
	switch v.Class {
	case classRPC:
		add("service", 20, "whoever reaches it can run something there at once, and few but administrators do", 0)
	case classWinRM:
		add("service", 8, "whoever reaches it can run something there at once", 0)
	case classVNC, classShell, classKubernetes, classDocker:
		add("service", -8, "few intruders go by this kind of service", 0)
	case classDatabase:
		add("service", -20, "applications reach databases", 0)
	}
	if v.Known != 0 && v.bad {
		add("known", -seenBefore, "it did so before, and that is never learned as normal", 0)
	}
	if v.Fate.failed() {
		add("failed", -failedOff, "it came to nothing", 0)
	}
	switch tier, _ := b.policy.SegmentFacts(v.Start, v.Server.Segment); tier {
	case crownJewel:
		add("criticality", 10, "it is a crown jewel", 0)
	case "high":
		add("criticality", 5, "its tier is high", 0)
	case "low":
		add("criticality", -10, "its tier is low", 0)
	}
	return total, parts
}

// contact looks at one contact and sets how unusual it is.
func (f *firstSeen) contact(b *Behaviour, v *visit) {
	k := pair{v.Client.Addr, v.Server.Addr}
	e := f.told[k]
	if e != nil && v.at-e.Last > togetherFor {
		delete(f.told, k)
		e = nil
	}
	switch {
	case e != nil && v.Mapped: // the port mapper's own session was looked at
		f.add(b, e, v, 0)
		return
	case v.New && v.Class.administers() && !v.allowedAgain() && (!v.Fate.failed() || f.attempted(b, v)):
	case e != nil: // what else the two do meanwhile is part of it
		f.add(b, e, v, 0)
		return
	default:
		return
	}
	if b.hosts.list[v.server].Served[v.Class] > fewAdminister {
		// A host that many reach so is no way from host to host: it is where everybody goes. What
		// is new there is of no weight by itself, but part of what else the two newly do.
		if e != nil {
			f.add(b, e, v, 0)
		}
		return
	}
	if v.unwatched {
		return // new to who tells of it, who is new here himself
	}
	v.unusual, _ = f.score(b, v, nil)
	v.unusual = max(v.unusual, 0)
	if v.unusual < 25 || !b.warm(v.at) {
		return
	}
	if e == nil {
		if len(f.told) >= maxTold {
			b.bm.untold.Inc()
			return
		}
		e = &newEdges{Client: k.client, Server: k.server, First: v.at, Day: dayOf(v.Start), Known: v.Known, Worked: v.Worked}
		f.told[k] = e
	}
	f.add(b, e, v, v.unusual)
}

// attempted says whether a contact that came to nothing is of weight: somebody tried to get into
// a host that is there. What policy denies and nothing came of went as it should, and what it allows
// and is stopped has a finding of its own. Of what it does not speak it is no less that a host's
// firewall says whom it stopped than that nobody answered.
func (f *firstSeen) attempted(b *Behaviour, v *visit) bool {
	if !v.Fate.failed() || violates(&v.Verdict) && v.Fate != fateDenied || v.Fate == fateDenied && v.Verdict.Expected != flow.ExpectUnknown {
		return false
	}
	return !v.Worked && v.Proto == flow.ProtoTCP && b.hosts.list[v.server].met() && !b.hosts.list[v.client].administers(v.Class) && !b.unwatched(v.Contact)
}

// add adds a contact to what the two newly do, and tells of it where that is unusual enough.
func (f *firstSeen) add(b *Behaviour, e *newEdges, v *visit, score int) {
	if at := edgeOf(v.Contact); int(e.N) < maxNewEdges && !slices.Contains(e.Seen[:e.N], at) {
		e.Seen[e.N] = at
		e.N++
	}
	e.Last = v.at
	before := e.Score
	if v.Class.administers() && score > 0 {
		e.Classes |= 1 << v.Class
		if int32(score) > e.Most {
			e.Most = int32(score)
			_, e.Parts = f.score(b, v, []flow.ScorePart{})
		}
		if e.Score = e.Most; bits.OnesCount16(e.Classes) > 1 {
			e.Score += together
			v.unusual = int(e.Score)
		}
	}
	if e.Score != before {
		if before > 0 {
			f.budget.unnote(e.First, int(before))
		}
		f.budget.note(e.First, int(e.Score))
	}
	if b.learning(v.at) || e.Score == before && !e.Raised {
		return
	}
	cfg := &b.bcfg.FirstSeen
	hosts := b.estate()
	limit := f.budget.threshold(v.at, b.warmFrom(), int(cfg.Budget*1000)*hosts/10_000, cfg.Low, cfg.High)
	severity := flow.Low
	switch {
	case int(e.Score) >= limit+25:
		severity = flow.High
	case int(e.Score) >= limit:
		severity = flow.Medium
	case int(e.Score) < cfg.Low-15:
		return
	}
	h, k := &b.hosts.list[v.client], f.key(b, e, v)
	again := false
	old := b.findings[k]
	switch alert := old != nil && old.Told.Severity >= flow.Medium; {
	case alert && severity < flow.Medium:
		return // of less weight than what the finding tells: it would only blur that
	case !alert && severity >= flow.Medium && h.toldOf(v.at, millis(b.bcfg.again()), int(e.Score)):
		severity, again = flow.Low, true
	}
	if severity >= flow.Medium {
		h.tellOf(v.at, millis(b.bcfg.again()), int(e.Score))
	}
	if e.Raised && e.Score == before && old != nil && old.Told.Story != nil {
		t, story := old.Told, *old.Told.Story // another edge, and nothing new to say of it
		story.Edges = e.Seen[:e.N]
		t.Story = &story
		b.raise(k, t, 1, v.Contact)
		return
	}
	e.Raised = true
	f.raise(b, e, v, severity, again)
}

// key is that of the finding: all that one host newly does on a day is one.
func (f *firstSeen) key(b *Behaviour, e *newEdges, v *visit) key {
	k := b.keyOf(flow.FindingFirstSeen, v.client, "", v.Start)
	k.Day = e.Day
	return k
}

func (f *firstSeen) raise(b *Behaviour, e *newEdges, v *visit, severity flow.Severity, again bool) {
	k := f.key(b, e, v)
	caveat, certain := b.caveat(v.Contact)
	t := b.toldOf(v.Contact, severity, less(uint8(min(95, 40+e.Score/2)), certain))
	parts := e.Parts
	if bits.OnesCount16(e.Classes) > 1 {
		parts = append(slices.Clip(parts), flow.ScorePart{Name: "together", Points: together, Says: "several kinds of remote administration began between the two at once"})
	}
	ways := []string{}
	techniques := []string{}
	for c := range classes {
		if e.Classes&(1<<c) != 0 {
			ways = append(ways, c.String())
			if s := c.technique(); s != "" {
				techniques = append(techniques, s)
			}
		}
	}
	techniques = append(techniques, "T1210")
	a, z := b.endOf(&v.Session, false), b.endOf(&v.Session, true)
	how := strings.Join(ways, ", ")
	score, others := int(e.Score), 0
	if old := b.findings[k]; old != nil && old.Told.Story != nil {
		score = max(score, old.Told.Story.Score)
		others = old.servers(e.Server.String())
	}
	also := ""
	if others > 0 {
		also = " On the same day it newly reached " + times(others, "other host", "other hosts") + "."
	}
	if again {
		also += " It was told of before, on " + b.hosts.list[v.client].Told.Std().Format("2006-01-02") + ", for what was as unusual."
	}
	did := " reached "
	if v.Fate.failed() {
		did = " tried to reach "
	}
	title := "Remote administration between two hosts for the first time"
	if e.Worked {
		title = "Remote administration between two hosts that was never usual"
	}
	t.Story = &story{
		Title: title + " (" + how + ")",
		Sentence: who(v.Client.Addr, a.Workload, a.Segment, a.Identity, a.Process) + did + who(v.Server.Addr, z.Workload, z.Segment, "", z.Process) +
			" by " + how + ", " + e.before(b, v) + "." + caveat + " " + because(parts) + also,
		Next: "Ask whoever uses " + v.Client.Addr.String() + " whether this was meant, and look at what ran on " + v.Server.Addr.String() +
			" just after. If it is to go on, have a rule say so.",
		Techniques: techniques, Score: min(100, score), Parts: parts, Ends: []flow.End{a, z}, Edges: e.Seen[:e.N],
		Client: v.Client.Addr, Server: v.Server.Addr,
	}
	b.raise(k, t, 1, v.Contact)
}

// before says in words what was known of it before. What breaks the policy or goes by an
// exception is never learned, so it is new each time and yet not the first time.
func (e *newEdges) before(b *Behaviour, v *visit) string {
	switch {
	case e.Known == 0:
		return "which it never did in the " + since(b, v.at) + " before"
	case e.Worked:
		return "which it had done before (last on " + moment(e.Known) + "), but only by an exception or against the policy, and such is never taken for usual"
	}
	return "which it had tried before (last on " + moment(e.Known) + "), but never got through"
}

// servers is how many servers a finding speaks of beside one.
func (f *finding) servers(but string) (n int) {
	seen := map[string]bool{but: true}
	for i := range f.Edges {
		if d := f.Edges[i].Destination; !seen[d] {
			seen[d] = true
			n++
		}
	}
	return n
}

// since says how far back is known, in words.
func since(b *Behaviour, at flow.Time) string {
	days := int(min(at-b.began, millis(b.bcfg.Remember)) / dayMillis)
	return times(max(days, 1), "day", "days")
}

// because says in words what speaks most for a score.
func because(parts []flow.ScorePart) string {
	parts = slices.Clone(parts)
	slices.SortStableFunc(parts, func(x, y flow.ScorePart) int { return y.Points - x.Points })
	var says []string
	for _, p := range parts[:min(3, len(parts))] {
		if p.Points > 0 {
			says = append(says, p.Says)
		}
	}
	if len(says) == 0 {
		return ""
	}
	s := strings.Join(says, "; ") + "."
	return strings.ToUpper(s[:1]) + s[1:]
}

// learn counts what is odd: reaching a host that is no server of the class.
func (f *firstSeen) learn(b *Behaviour, v *visit) {
	if !v.New || v.unwatched || v.Mapped || !v.Class.administers() || !b.warm(v.at) || b.hosts.list[v.server].Served[v.Class] >= servedBy || b.hosts.list[v.client].administers(v.Class) {
		return
	}
	f.turn(v.at)
	g := b.groupOf(v)
	k := 0
	if g.Forbidden = v.bad; v.bad {
		k = 1
	}
	count(&f.odd[k][v.Class][int(f.oddDay)%budgetDays])
	n, known := f.groups[g]
	if !known && len(f.groups) >= maxGroups {
		b.bm.ungrouped.Inc()
		return
	}
	count(&n)
	f.groups[g] = n
}

func (f *firstSeen) tend(b *Behaviour) {
	maps.DeleteFunc(f.told, func(_ pair, e *newEdges) bool { return b.tended-e.Last > togetherFor })
}

func (f *firstSeen) save(w *stateWriter) error {
	saveAll(w, []budget{f.budget})
	saveAll(w, f.odd[:])
	w.u64(uint64(f.oddDay))
	type counted struct {
		Group group
		N     uint16
	}
	list := make([]counted, 0, len(f.groups))
	for g, n := range f.groups {
		list = append(list, counted{g, n})
	}
	slices.SortFunc(list, func(x, y counted) int { return x.Group.compare(&y.Group, w.names) })
	saveAll(w, list)
	told := slices.SortedFunc(maps.Values(f.told), func(x, y *newEdges) int {
		if c := x.Client.Compare(y.Client); c != 0 {
			return c
		}
		return x.Server.Compare(y.Server)
	})
	return w.json(told)
}

func (g *group) compare(o *group, names *flow.Names) int {
	for _, c := range [...]int{g.Client.Compare(o.Client), g.Server.Compare(o.Server), int(g.Class) - int(o.Class),
		strings.Compare(names.Text(g.ClientSegment), names.Text(o.ClientSegment)), strings.Compare(names.Text(g.ServerSegment), names.Text(o.ServerSegment)),
		later(g.Forbidden, o.Forbidden)} {
		if c != 0 {
			return c
		}
	}
	return 0
}

func (f *firstSeen) load(r *stateReader) {
	one := func(n int) bool {
		if r.err == nil && n != 1 {
			r.fail(errState)
		}
		return r.err == nil
	}
	budgets := loadAll[budget](r)
	if !one(len(budgets)) {
		return
	}
	f.budget = budgets[0]
	odd := loadAll[[classes][budgetDays]uint16](r)
	f.oddDay = int32(r.u64())
	if len(odd) != len(f.odd) {
		r.fail(errState)
		return
	}
	copy(f.odd[:], odd)
	type counted struct {
		Group group
		N     uint16
	}
	for _, c := range loadAll[counted](r) {
		f.groups[c.Group] = c.N
	}
	var told []*newEdges
	r.json(&told)
	for _, e := range told {
		if e == nil || e.N < 0 || e.N > maxNewEdges {
			r.fail(errState)
			return
		}
		f.told[pair{e.Client, e.Server}] = e
	}
}

func (c *FirstSeenConfig) validate() error {
	if c.Budget < 0 || c.Budget > 10_000 {
		return fmt.Errorf("detect.behaviour.firstSeen.budget is %v; write a number of findings a day from 0 to 10000", c.Budget)
	}
	if c.Low < 20 || c.High > 120 || c.Low > c.High {
		return fmt.Errorf("detect.behaviour.firstSeen.low is %d and high %d; write scores from 20 to 120, low first", c.Low, c.High)
	}
	return nil
}
