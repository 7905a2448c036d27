package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/flow"
)

// company sizes, and variants of behaviour.
type variant struct {
	name                    string
	administrators, changes float64
}

var (
	ordinary = variant{"ordinary", 1, 1}
	variants = []variant{{"three times the administrators", 3, 1}, {"three times the churn", 1, 3}}
)

// embedded is a run within a generated company: one seed, size, variant and policy, in several
// formats.
type embedded struct {
	seed    uint64
	size    int
	variant variant
	policy  bool
	formats []format

	results []result
	whose   func(flow.Addr) string // the role of who has an address
}

// format is what the company's network is told by.
type format struct {
	layout layout
	logs   bool
}

func (f format) String() string {
	if f.logs {
		return f.layout.String() + " + logs"
	}
	return f.layout.String()
}

var formats = []format{{netflow5, false}, {netflow9, false}, {ipfix, false}, {ipfix, true}}

type result struct {
	format format
	score  *score
	// frontier is what it would be worth with each of the cuts.
	frontier []*score
	records  uint64
	passed   uint64        // contacts that detectors of behaviour read, after learning
	took     time.Duration // of the stages alone
	state    int           // bytes of a checkpoint at the end
}

// run generates the company and scores each format. Formats with and without logs share the days
// of learning.
func (e *embedded) run(ctx context.Context, names *flow.Names, data *dataset, days int, log io.Writer) error {
	b, err := loadBehaviour(behaviourFile, e.variant.administrators, e.variant.changes)
	if err != nil {
		return err
	}
	if days > 0 {
		b.Days, b.Learning = days, days/2
	}
	c := newCompany(b, e.seed, e.size)
	e.whose = c.whose()
	text, ways := "", []way(nil)
	if e.policy {
		text, ways = c.ordinaryPolicy()
	}
	taken := map[int32]bool{}
	for _, w := range ways {
		taken[w.from], taken[w.to] = true, true
	}
	var placed []*embedding
	for k, campaign := range data.campaigns {
		placed = append(placed, embed(campaign, c, random(e.seed, streamCampaigns, k), names, k, taken))
	}
	learned := map[layout]*learning{} // who told in another format is somebody else
	for _, f := range e.formats {
		if err := ctx.Err(); err != nil {
			return err
		}
		l := learned[f.layout]
		if l == nil {
			if l, err = learn(c, names, text, f.layout); err != nil {
				return err
			}
			learned[f.layout] = l
		}
		var records [][]flow.Record
		var attacks []*attack
		agents := map[flow.Addr][]logger{}
		for _, m := range placed {
			rs, a := m.place(f.layout, f.logs)
			records, attacks = append(records, rs), append(attacks, a)
			for _, n := range m.of {
				if len(n.logs) > 0 {
					agents[n.to] = n.logs
				}
			}
		}
		made, list := madeUp(c, f.layout, maps.Clone(taken), ways)
		records, attacks = append(records, made), append(attacks, list...)
		if !f.logs {
			agents = nil
		}
		r, err := l.goOn(names, text, f, merged(records...), agents)
		if err != nil {
			return err
		}
		worth := credit(r.findings, attacks, l.until, (*told).alert)
		var frontier []*score
		if !e.policy && e.variant == ordinary {
			for _, c := range cuts {
				frontier = append(frontier, credit(r.findings, attacks, l.until, c.alert))
			}
		}
		e.results = append(e.results, result{format: f, score: worth, frontier: frontier, records: r.records, passed: r.passed, took: r.took, state: r.state})
		fmt.Fprintf(log, "seed %d, %d hosts, %s, %s, %s: labelled %s, chains %s, %d alerts, %d of them wrong; %d records in %v\n", e.seed, e.size, e.variant.name, e.by(), f,
			worth.labelled, worth.chains, worth.alerts, len(worth.wrong), r.records, r.took.Round(time.Second))
	}
	return nil
}

func (e *embedded) by() string {
	if e.policy {
		return "ordinary policy"
	}
	return "no policy"
}

// learning is a company's stages and traffic after the days of learning.
type learning struct {
	traffic  *traffic
	state    []byte
	findings map[string]*told
	until    flow.Time
	took     time.Duration
}

func learn(c *company, names *flow.Names, policy string, l layout) (*learning, error) {
	s, err := newStages(names, policy)
	if err != nil {
		return nil, err
	}
	out := &learning{traffic: newTraffic(c, l), until: c.start + flow.Time(c.b.Learning)*24*hour}
	for out.traffic.day < c.b.Learning {
		rs := out.traffic.next()
		began := time.Now()
		s.feed(rs)
		out.took += time.Since(began)
	}
	out.state, err = s.snapshot()
	out.findings = s.findings
	return out, err
}

type outcome struct {
	findings map[string]*told
	records  uint64
	passed   uint64
	took     time.Duration
	state    int
}

// goOn is the days after learning, with what was put in.
func (l *learning) goOn(names *flow.Names, policy string, f format, inserted []flow.Record, agents map[flow.Addr][]logger) (*outcome, error) {
	s, err := newStages(names, policy)
	if err != nil {
		return nil, err
	}
	if err := s.restore(l.state); err != nil {
		return nil, err
	}
	for id, t := range l.findings {
		again := *t
		s.findings[id] = &again
	}
	t := l.traffic.fork(f.layout)
	t.inserted, t.agents = inserted, agents
	out := &outcome{took: l.took}
	for rs := t.next(); rs != nil; rs = t.next() {
		began := time.Now()
		s.feed(rs)
		out.took += time.Since(began)
	}
	state, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	s.finish(t.c.start + flow.Time(t.c.b.Days)*24*hour)
	out.findings, out.records, out.passed, out.state = s.findings, t.records, s.passed, len(state)
	return out, nil
}

// fork is the same traffic from here on, told in a layout that makes as many records.
func (t *traffic) fork(l layout) *traffic {
	n := *t
	n.layout, n.buckets, n.habits = l, map[int][]flow.Record{}, make([][]habitOf, len(t.habits))
	for k, rs := range t.buckets {
		n.buckets[k] = slices.Clone(rs)
	}
	for i := range t.habits {
		n.habits[i] = slices.Clone(t.habits[i])
		for j := range n.habits[i] {
			n.habits[i][j].peers = slices.Clone(n.habits[i][j].peers)
		}
	}
	return &n
}

// runAll runs what is embedded, two at a time, the longest first.
func runAll(ctx context.Context, runs []*embedded, names *flow.Names, data *dataset, days int, log io.Writer) error {
	byCost := slices.Clone(runs)
	slices.SortStableFunc(byCost, func(a, b *embedded) int { return cmp.Compare(b.size*len(b.formats), a.size*len(a.formats)) })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for _, e := range byCost {
		g.Go(func() error { return e.run(ctx, names, data, days, log) })
	}
	return g.Wait()
}

// runCold is every campaign alone, in one format.
func runCold(names *flow.Names, data *dataset, f format) (total *score, err error) {
	total = &score{falseTypes: map[string]int{}}
	for _, c := range data.campaigns {
		rs, a := c.cold(f.layout, f.logs)
		total.absent += a.absent
		if len(rs) == 0 {
			continue
		}
		s, err := alone(names, rs)
		if err != nil {
			return nil, err
		}
		got := credit(s.findings, []*attack{a}, 0, (*told).alert)
		total.labelled.add(got.labelled)
		total.hidden.add(got.hidden)
		total.alerts += got.alerts
		total.right += got.right
		total.aside += got.aside
		total.missed = append(total.missed, got.missed...)
		total.wrong = append(total.wrong, got.wrong...)
	}
	return total, nil
}

// alone sends records through stages without a past and without a policy.
func alone(names *flow.Names, rs []flow.Record) (*stages, error) {
	s, err := newStages(names, "")
	if err != nil || len(rs) == 0 {
		return s, err
	}
	s.feed(rs)
	s.finish(rs[len(rs)-1].Received)
	return s, nil
}
