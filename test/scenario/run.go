package scenario

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// Options say how a scenario is run. The zero value runs it as it is written.
type Options struct {
	// Policy is in force always where the scenario states no policy; may be nil.
	Policy *policy.Policy
	// Unit is after how many flows a unit of input ends; 0: where the file says so.
	Unit int
	// Restart restarts every stage at the end of every unit, the file's among them.
	Restart bool
	// Shuffle has flows arrive later than in order, as much as Seed draws for each: as much
	// as the file says, else as the stages promise to bear. A file that says `shuffle none`
	// is not shuffled.
	Shuffle bool
	Seed    uint64
	// Partitions divides pairs of endpoints among so many, as with Kafka: Seed draws which of
	// them are behind. 0 and 1: all are in one process.
	Partitions int
}

// Problem is something that did not come as the scenario says.
type Problem struct {
	File string // empty: the scenario's own
	Line int    // 0: none
	// Wrong is what was expected and did not come, or came and was not expected.
	Wrong string
	// Detail says more, a line each: what came instead, the nearest first.
	Detail []string
}

// Result is what came of a run.
type Result struct {
	// Findings is the last state of every finding, by first sight, then id.
	Findings []*flow.Finding
	// BlindSpots is the last version of every blind spot, by when it began, then id.
	BlindSpots []flow.BlindSpot
	// Flows is how many records there were.
	Flows    int
	Problems []Problem
}

// Flows is how many records the scenario has.
func (s *Scenario) Flows() (n int) {
	for i := range s.steps {
		if s.steps[i].kind == stepFlow {
			n++
		}
	}
	return n
}

// StatesPolicy says whether the file states a policy of its own.
func (s *Scenario) StatesPolicy() bool { return s.stated }

// Orderless says that the order in which flows arrive, within lateness, is of no account.
func (s *Scenario) Orderless() bool { return s.shuffle >= 0 }

// A record that tells of one direction may wait for its other half, which must come within a
// third of enrich.window, 5 s. Everything else may come as late as sessions wait for it,
// sessions.lateness after it began, 2 min.
const (
	halvesMay  = flow.Time(4_000)
	recordsMay = flow.Time(110_000)
)

// arrival gives the places of the steps in the order of a run.
func (s *Scenario) arrival(o Options) []int {
	places := make([]int, len(s.steps))
	when := make([]flow.Time, len(s.steps))
	rng := rand.New(rand.NewPCG(o.Seed, 2))
	for i := range s.steps {
		st := &s.steps[i]
		places[i], when[i] = i, st.arrives
		if st.kind != stepFlow || s.shuffle < 0 || s.shuffle == 0 && !o.Shuffle {
			continue
		}
		within := flow.Time(s.shuffle / time.Millisecond)
		if within == 0 {
			if within = halvesMay; st.rec.Biflow() {
				within = max(within, st.rec.Start+recordsMay-st.arrives)
			}
		}
		when[i] += flow.Time(rng.Int64N(int64(within)))
	}
	slices.SortStableFunc(places, func(a, b int) int { return cmp.Compare(when[a], when[b]) })
	return places
}

// Run runs the scenario. The error says that it could not be run; what did not come as
// expected is in the result.
func (s *Scenario) Run(o Options) (*Result, error) {
	versions := s.versions
	if !s.stated && o.Policy != nil {
		versions = []Version{{o.Policy, policy.Always}}
	}
	facts, beats := s.Identities()
	c, err := NewChain(s.Settings, versions, facts, beats)
	if err != nil {
		return nil, err
	}
	if o.Partitions > 1 {
		if err := c.divide(o.Partitions, o.Seed); err != nil {
			return nil, err
		}
	}
	res := &Result{Problems: s.placed(c.history.Latest(), c.Names())}
	wanted := map[uint64]*line{}
	for i := range s.steps {
		if st := &s.steps[i]; st.kind == stepFlow && len(st.line.want.fields) > 0 {
			wanted[st.rec.ID] = st.line
		}
	}
	told := map[*line]bool{} // of each line the first flow that is not so is enough
	c.OnFlow = func(r *flow.Record, names *flow.Names) {
		l := wanted[r.ID]
		if l == nil || told[l] {
			return
		}
		delete(wanted, r.ID)
		var m map[string]any
		if err := json.Unmarshal(r.AppendJSON(nil, names.Texts()), &m); err != nil {
			res.Problems = append(res.Problems, Problem{File: l.at.file, Line: l.at.line, Wrong: fmt.Sprintf("the flow cannot be written: %v", err)})
			return
		}
		if first, n := l.want.unmet(m); n > 0 {
			told[l] = true
			pr := Problem{File: l.at.file, Line: l.at.line, Wrong: "the flow is judged otherwise: " + first}
			if l.flows > 1 {
				pr.Wrong += fmt.Sprintf(" (the one that began %v)", r.Start)
			}
			pr.Detail = append(pr.Detail, verdictOf(m))
			res.Problems = append(res.Problems, pr)
		}
	}
	if err := s.play(c, o, res); err != nil {
		return nil, err
	}
	for id, l := range wanted {
		if !told[l] {
			res.Problems = append(res.Problems, Problem{File: l.at.file, Line: l.at.line, Wrong: fmt.Sprintf("a flow of this line was never judged (record %d)", id)})
		}
	}
	res.Findings, res.BlindSpots = c.Findings(), c.BlindSpots()
	if o.Partitions <= 1 { // else with what one process found, see [Scenario.Prove]
		s.compare(res)
	}
	for _, w := range c.Wrong() {
		res.Problems = append(res.Problems, Problem{Wrong: w})
	}
	place := func(p *Problem) int { return (p.Line - 1) & math.MaxInt } // those of no line last
	slices.SortStableFunc(res.Problems, func(a, b Problem) int { return cmp.Compare(place(&a), place(&b)) })
	return res, nil
}

// play sends the steps through the stages.
func (s *Scenario) play(c *Chain, o Options, res *Result) error {
	unit := 0
	end := func() error {
		unit = 0
		if o.Restart {
			return c.Restart()
		}
		return c.EndUnit()
	}
	b := flow.NewBatch(1, nil)
	for _, i := range s.arrival(o) {
		var err error
		switch st := &s.steps[i]; st.kind {
		case stepTick:
			c.Tick(st.at)
		case stepSegment:
			err = end()
		case stepRestart:
			err = c.Restart()
		default:
			b.Reset()
			st.fill(b.Next(), c.Names())
			c.Process(b)
			res.Flows++
			if unit++; o.Unit > 0 && unit >= o.Unit {
				err = end()
			}
		}
		if err != nil {
			return err
		}
	}
	return c.Flush()
}

// fill makes the step's record as it comes out of decoding.
func (st *step) fill(r *flow.Record, names *flow.Names) {
	*r = st.rec
	if st.agent != "" {
		r.Observer = names.Intern(st.agent)
	}
	user := names.Intern(st.line.user)
	switch {
	case user == flow.NoName:
	case st.agent != "" && st.answer: // the client's, whichever half tells of it
		r.DstIdentity, r.Has = user, r.Has|flow.HasDstIdentity
	case st.agent != "":
		r.SrcIdentity, r.Has = user, r.Has|flow.HasSrcIdentity
	case !st.answer: // userName belongs to the sender
		r.User = user
	}
	client, server := names.Intern(st.line.process[0]), names.Intern(st.line.process[1])
	if st.answer {
		client, server = server, client
	}
	r.SrcProcess, r.DstProcess = client, server
}

// verdictOf is how a flow was judged, in a line.
func verdictOf(m map[string]any) string {
	var b strings.Builder
	b.WriteString("judged")
	for _, k := range []string{"client", "server", "service", "reason", "outcome", "rule", "exception", "failed", "missing"} {
		if v := shown(m[k]); v != "" {
			fmt.Fprintf(&b, " %s=%s", k, v)
		}
	}
	return b.String()
}

// Brief is a finding in a line.
func Brief(f *flow.Finding) string {
	return fmt.Sprintf("%s %s client=%s server=%s service=%s count=%d: %s", f.Type, f.Severity, f.Client, f.Server, f.Service, f.Count, f.Sentence)
}

// compare holds the findings against what is expected.
func (s *Scenario) compare(res *Result) {
	found := make([]map[string]any, len(res.Findings))
	for i, f := range res.Findings {
		b, err := json.Marshal(f)
		if err == nil {
			err = json.Unmarshal(b, &found[i])
		}
		if err != nil {
			res.Problems = append(res.Problems, Problem{Wrong: fmt.Sprintf("finding %s cannot be written: %v", f.ID, err)})
			return
		}
	}
	fits := func(e *expectation, i int) bool { _, n := e.unmet(found[i]); return n == 0 }

	// Each finding that must come is given one that came, so that as many as can be have one.
	var seats []*expectation
	for i := range s.expected {
		if e := &s.expected[i]; e.kind == expectFinding {
			for range e.times {
				seats = append(seats, e)
			}
		}
	}
	of := make([]int, len(found)) // the seat of each finding; -1: none
	for i := range of {
		of[i] = -1
	}
	var place func(k int, tried []bool) bool
	place = func(k int, tried []bool) bool {
		for i := range found {
			if tried[i] || !fits(seats[k], i) {
				continue
			}
			tried[i] = true
			if of[i] < 0 || place(of[i], tried) {
				of[i] = k
				return true
			}
		}
		return false
	}
	missing := map[*expectation]int{}
	for k := range seats {
		if !place(k, make([]bool, len(found))) {
			missing[seats[k]]++
		}
	}
	for i := range s.expected {
		e := &s.expected[i]
		n := missing[e]
		if n == 0 {
			continue
		}
		wrong := "no finding came that is so: "
		if e.times > 1 {
			wrong = fmt.Sprintf("%d of %d findings came that are so: ", e.times-n, e.times)
		}
		res.Problems = append(res.Problems, Problem{File: e.at.file, Line: e.at.line, Wrong: wrong + e.text, Detail: nearest(e, res.Findings, found, of)})
	}
	for i := range s.expected {
		e := &s.expected[i]
		for j, f := range res.Findings {
			if e.kind == expectNone && fits(e, j) {
				res.Problems = append(res.Problems, Problem{File: e.at.file, Line: e.at.line, Wrong: "a finding came that must not: " + Brief(f)})
				of[j] = len(seats) // told
			}
		}
	}
	for j, f := range res.Findings {
		if of[j] >= 0 || slices.ContainsFunc(s.expected, func(e expectation) bool { return e.kind == expectAny && fits(&e, j) }) {
			continue
		}
		res.Problems = append(res.Problems, Problem{Wrong: "a finding came that no line names: " + Brief(f)})
	}
}

// nearest lists the findings that no line took, those first that differ least.
func nearest(e *expectation, findings []*flow.Finding, found []map[string]any, of []int) []string {
	type near struct {
		n    int
		text string
	}
	var all []near
	for i, f := range findings {
		if of[i] < 0 {
			first, n := e.unmet(found[i])
			all = append(all, near{n, fmt.Sprintf("%s; it is: %s", first, Brief(f))})
		}
	}
	slices.SortStableFunc(all, func(a, b near) int { return cmp.Compare(a.n, b.n) })
	if len(all) == 0 {
		return []string{"no other finding came"}
	}
	var out []string
	for _, n := range all[:min(3, len(all))] {
		out = append(out, n.text)
	}
	return out
}

// Told is a record as it reaches the program.
type Told struct {
	flow.Record
	At flow.Time // when
}

// Told gives every record in the order of arrival, with the names of a table, for whoever
// tells the program of them.
func (s *Scenario) Told(names *flow.Names) (told []Told) {
	var last flow.Time
	for _, i := range s.arrival(Options{}) {
		if st := &s.steps[i]; st.kind == stepFlow {
			last = max(last, st.arrives)
			t := Told{At: last}
			st.fill(&t.Record, names)
			told = append(told, t)
		}
	}
	return told
}

// Identities are what the source of identities says, each at its time, and when it was heard: it
// is all the while, but where it is silent. Before a silence it says for how long what it said
// holds.
func (s *Scenario) Identities() (facts []flow.Fact, beats []flow.Heartbeat) {
	for _, f := range s.facts {
		if slices.ContainsFunc(s.hushed, func(x hush) bool { return f.Known >= x.from && f.Known < x.until }) {
			continue // nobody is told
		}
		facts = append(facts, f)
		beats = append(beats, flow.Heartbeat{Source: identitySource, At: f.Known})
	}
	for _, x := range s.hushed {
		beats = append(beats, flow.Heartbeat{Source: identitySource, At: x.from - 1, StaleAfter: x.limit})
		if x.until != math.MaxInt64 {
			beats = append(beats, flow.Heartbeat{Source: identitySource, At: x.until})
		}
	}
	return facts, beats
}

// Exported says what of the scenario's flows exporters cannot tell the program; empty if they
// can tell all of it.
func (s *Scenario) Exported() string {
	for i := range s.steps {
		switch st := &s.steps[i]; {
		case st.kind != stepFlow:
		case st.agent != "" || st.line.process != [2]string{}:
			return "agents tell of its flows"
		case st.rec.Source == flow.SourceAWSVPC:
			return "a cloud tells of its flows"
		case st.rec.Skew != 0:
			return "a clock of it is off, and captures are read with clocks believed"
		}
	}
	return ""
}

// Versions are the policies that the file states.
func (s *Scenario) Versions() []Version { return slices.Clone(s.versions) }

// Begin is when the first flow begins.
func (s *Scenario) Begin() flow.Time {
	first := flow.Time(math.MaxInt64)
	for i := range s.steps {
		if s.steps[i].kind == stepFlow {
			first = min(first, s.steps[i].rec.Start)
		}
	}
	return first
}

// End is when the last flow arrives.
func (s *Scenario) End() (last flow.Time) {
	for i := range s.steps {
		if s.steps[i].kind == stepFlow {
			last = max(last, s.steps[i].arrives)
		}
	}
	return last
}
