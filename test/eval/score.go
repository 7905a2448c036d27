package main

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/postern/postern/flow"
)

// maxCredited is how many edges an alert may name and still be of use to whoever reads it.
const maxCredited = 32

// byRule are the types of finding that a rule, an exception or an observer gives rise to, not
// a detector of behaviour: they neither earn recall nor count as false.
var byRule = map[string]bool{
	flow.FindingExpired: true, flow.FindingNotYetValid: true, flow.FindingUnapproved: true, flow.FindingOutOfScope: true,
	flow.FindingOutlived: true, flow.FindingGrown: true, flow.FindingDenied: true, flow.FindingMisblocked: true,
	flow.FindingIdentity: true, flow.FindingUnseen: true, flow.FindingVerdict: true,
	flow.FindingFlood: true, // so many of these that they are told as one
}

// label is what is true of an edge.
type label struct {
	of   *attack
	edge edge
	as   class
}

// wrong is an alert on what was ordinary.
type wrong struct {
	of   *told
	edge string
	src  flow.Addr // of the edge, zero where the alert names none
	dst  flow.Addr
}

// ratio is how many of how many.
type ratio struct{ hit, n int }

func (r *ratio) add(o ratio) { r.hit, r.n = r.hit+o.hit, r.n+o.n }

func (r ratio) value() float64 {
	if r.n == 0 {
		return math.NaN()
	}
	return float64(r.hit) / float64(r.n)
}

// wilson is the 95 % interval of a ratio (Wilson, 1927).
func (r ratio) wilson() (low, high float64) {
	if r.n == 0 {
		return math.NaN(), math.NaN()
	}
	const z = 1.959964
	n, p := float64(r.n), r.value()
	mid := (p + z*z/(2*n)) / (1 + z*z/n)
	half := z / (1 + z*z/n) * math.Sqrt(p*(1-p)/n+z*z/(4*n*n))
	return max(0, mid-half), min(1, mid+half)
}

func (r ratio) String() string {
	if r.n == 0 {
		return "–"
	}
	low, high := r.wilson()
	return fmt.Sprintf("%d/%d %.0f %% (%.0f–%.0f)", r.hit, r.n, 100*r.value(), 100*low, 100*high)
}

// score is what a run was worth.
type score struct {
	labelled ratio // decidable labelled malicious edges
	hidden   ratio // those that flows do not tell from ordinary ones
	chains   ratio // chains of which alerts name at least half of the hops, and two
	paths    ratio // chains of which one alert names two hops in a row
	scans    ratio
	pivots   ratio

	alerts     int // of detectors, after learning
	right      int // that name a malicious edge
	aside      int // that name nothing but neutral edges
	byRule     int // findings of rules that would be alerts
	learning   int // alerts before anything was put in
	absent     int // malicious edges that this format tells nothing of
	wrong      []wrong
	missed     []string
	chainsBy   map[string]*ratio // by speed
	scansBy    map[string]*ratio
	falseTypes map[string]int
}

// precision is alerts with a malicious edge of all that are not about neutral edges alone.
func (s *score) precision() ratio { return ratio{s.right, s.alerts - s.aside} }

// alert says whether somebody is called for a finding: it was told at medium or above.
func (t *told) alert() bool { return t.highest >= flow.Medium }

// cut is another line between alerts and the rest than the configuration draws.
type cut struct {
	says  string
	alert func(*told) bool
}

// cuts are those of the frontier, from few alerts to many.
var cuts = []cut{
	{"high and critical", func(t *told) bool { return t.highest >= flow.High }},
	{"medium, score 90", func(t *told) bool { return t.alert() && t.last.Score >= 0.895 }},
	{"medium, score 80", func(t *told) bool { return t.alert() && t.last.Score >= 0.795 }},
	{"medium, score 70", func(t *told) bool { return t.alert() && t.last.Score >= 0.695 }},
	{"medium, score 60", func(t *told) bool { return t.alert() && t.last.Score >= 0.595 }},
	{"medium: as it is", (*told).alert},
	{"low too, score 65", func(t *told) bool { return t.alert() || t.last.Score >= 0.645 }},
	{"low too, score 60", func(t *told) bool { return t.alert() || t.last.Score >= 0.595 }},
	{"low too", func(*told) bool { return true }},
}

// credit counts what alerts are worth. from is when learning was over; alert says which findings
// are alerts.
func credit(findings map[string]*told, attacks []*attack, from flow.Time, alert func(*told) bool) *score {
	s := &score{chainsBy: map[string]*ratio{}, scansBy: map[string]*ratio{}, falseTypes: map[string]int{}}
	truth := map[edge][]label{}
	for _, a := range attacks {
		for e, k := range a.truth {
			truth[e] = append(truth[e], label{a, e, k})
		}
		for e, to := range a.alias {
			if _, direct := a.truth[e]; !direct {
				truth[e] = append(truth[e], label{a, to, a.truth[to]})
			}
		}
	}
	type named struct {
		of *attack
		e  edge
	}
	credited := map[named]bool{}
	// What is named of whom towards whom: a way in by the port mapper is two edges.
	pairs := map[*attack]map[[2]flow.Addr]bool{}
	path := map[*attack]bool{}
	scanned := map[*attack]bool{}
	for _, id := range slices.Sorted(maps.Keys(findings)) {
		t := findings[id]
		f := t.last
		switch {
		case !alert(t):
			continue
		case byRule[f.Type]:
			if t.first >= from {
				s.byRule++
			}
			continue
		case t.first < from && f.LastSeen < from:
			s.learning++
			continue
		}
		s.alerts++
		counts := [3]int{}
		var hits []label
		var example edge
		for _, fe := range f.Edges {
			e, ok := edgeOf(fe)
			if !ok {
				continue
			}
			best, found := label{as: neutral}, false
			for _, l := range truth[e] {
				if f.LastSeen >= l.of.start && (!found || l.as > best.as) {
					best, found = l, true
				}
			}
			if !found { // ordinary, by the generator
				best.as = benign
				if example.src.IsZero() {
					example = e
				}
			}
			counts[best.as]++
			if best.as == malicious {
				for _, l := range truth[e] {
					if l.as == malicious && f.LastSeen >= l.of.start {
						hits = append(hits, l)
					}
				}
			}
		}
		half := counts[malicious] >= counts[benign] && counts[malicious] > 0
		switch {
		case counts[malicious] > 0:
			s.right++
		case counts[benign] == 0 && counts[neutral] > 0:
			s.aside++
		default:
			if example.src.IsZero() && len(f.Edges) > 0 {
				example, _ = edgeOf(f.Edges[0])
			}
			w := wrong{of: t, src: example.src, dst: example.dst}
			if !example.src.IsZero() {
				w.edge = example.String()
			}
			s.wrong = append(s.wrong, w)
			s.falseTypes[f.Type]++
		}
		if !half {
			continue
		}
		for _, l := range hits {
			if l.of.kind == "scan" {
				scanned[l.of] = true // a scan is one thing, however many it asked
			}
			if f.EdgesTotal <= maxCredited {
				credited[named{l.of, l.edge}] = true
			}
		}
		if f.EdgesTotal <= maxCredited {
			has := map[*attack]map[[2]flow.Addr]bool{}
			for _, l := range hits {
				for _, m := range []map[*attack]map[[2]flow.Addr]bool{has, pairs} {
					if m[l.of] == nil {
						m[l.of] = map[[2]flow.Addr]bool{}
					}
					m[l.of][[2]flow.Addr{l.edge.src, l.edge.dst}] = true
				}
			}
			for a, named := range has {
				for i := 1; i < len(a.hops); i++ {
					path[a] = path[a] || named[a.hops[i-1].pair()] && named[a.hops[i].pair()]
				}
			}
		}
	}
	one := func(hit bool) ratio {
		if hit {
			return ratio{1, 1}
		}
		return ratio{0, 1}
	}
	for _, a := range attacks {
		switch a.kind {
		case "captured":
			for _, e := range slices.SortedFunc(maps.Keys(a.truth), edge.compare) {
				if a.truth[e] != malicious {
					continue
				}
				hit := one(credited[named{a, e}])
				if a.hidden[e] {
					s.hidden.add(hit)
					continue
				}
				s.labelled.add(hit)
				if hit.hit == 0 {
					s.missed = append(s.missed, a.name+": "+e.String())
				}
			}
		case "chain", "pivot":
			n := 0
			for _, e := range a.hops {
				n += one(pairs[a][e.pair()]).hit
			}
			hit := one(n >= 2 && 2*n >= len(a.hops))
			if a.kind == "chain" {
				s.chains.add(hit)
				s.paths.add(one(path[a]))
				add(s.chainsBy, a.speed, hit)
			} else {
				s.pivots.add(hit)
			}
			if hit.hit == 0 {
				s.missed = append(s.missed, fmt.Sprintf("%s: %d of %d hops named; begins %s, %s", a.name, n, len(a.hops), a.start, a.hops[0]))
			}
		case "scan":
			hit := one(scanned[a])
			s.scans.add(hit)
			add(s.scansBy, a.speed, hit)
			if hit.hit == 0 {
				s.missed = append(s.missed, fmt.Sprintf("%s: by %s from %s on", a.name, a.source, a.start))
			}
		}
	}
	return s
}

func add(m map[string]*ratio, key string, r ratio) {
	if m[key] == nil {
		m[key] = &ratio{}
	}
	m[key].add(r)
}

func edgeOf(f flow.Edge) (edge, bool) {
	src, err := flow.ParseAddr(f.Source)
	if err != nil {
		return edge{}, false
	}
	dst, err := flow.ParseAddr(f.Destination)
	if err != nil {
		return edge{}, false
	}
	return edge{src, dst, f.Port, protoOf(f.Protocol)}, true
}

func (e edge) pair() [2]flow.Addr { return [2]flow.Addr{e.src, e.dst} }

// protos are the numbers of protocols by the names that findings give them.
var protos = func() map[string]uint8 {
	m := map[string]uint8{}
	for p := range 256 {
		m[string(flow.AppendProto(nil, uint8(p)))] = uint8(p)
	}
	return m
}()

func protoOf(name string) uint8 { return protos[name] }
