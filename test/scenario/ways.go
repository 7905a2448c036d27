package scenario

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
)

// Ways are the ways in which a scenario is run that must all give the same findings, with
// the same ids and counts: in other units, over restarts, in other orders of arrival.
func (s *Scenario) Ways() map[string]Options {
	n := s.Flows()
	// Restarts after every record of a long scenario take long; two hundred say as much.
	every := max(1, n/200)
	ways := map[string]Options{
		"a restart after every segment":                                  {Restart: true},
		"cut into units of one record":                                   {Unit: 1},
		fmt.Sprintf("cut into units of %d, a restart after each", every): {Unit: every, Restart: true},
	}
	for seed := range uint64(2) {
		o := Options{Seed: seed + 1, Partitions: 2 + int(seed)*3, Unit: max(1, n/100), Restart: seed == 1}
		ways[fmt.Sprintf("over %d partitions", o.Partitions)] = o
	}
	if s.Orderless() {
		for seed := range uint64(3) {
			o := Options{Seed: seed + 1, Shuffle: true, Unit: max(1, n/40) + int(seed)*7, Restart: seed == 2}
			ways[fmt.Sprintf("arriving in order %d", seed+1)] = o
		}
	}
	return ways
}

// Prove runs a scenario as o says and, if what came is as the file says, in every other way:
// that it comes each time is part of the result, which is that of the first run. The error
// says that it could not be run.
func (s *Scenario) Prove(o Options) (*Result, error) {
	want, err := s.Run(o)
	if err != nil || len(want.Problems) > 0 {
		return want, err
	}
	ways := s.Ways()
	for _, name := range slices.Sorted(maps.Keys(ways)) {
		way := ways[name]
		way.Policy = o.Policy
		got, err := s.Run(way)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, p := range got.Problems {
			p.Wrong = name + ": " + p.Wrong
			want.Problems = append(want.Problems, p)
		}
		findings, spots := want.Findings, want.BlindSpots
		if way.Partitions > 1 {
			findings, got.Findings = unbounded(findings), unbounded(got.Findings)
			spots = unpressed(spots)
			got.BlindSpots = unpressed(got.BlindSpots)
		}
		if a, b := blindText(spots), blindText(got.BlindSpots); a != b {
			want.Problems = append(want.Problems, Problem{Wrong: name + ": other blind spots than as written", Detail: []string{b, "instead of", a}})
		}
		if way.Shuffle { // of records that are alike and overlap, which one tells of both ways hangs on the order
			findings, got.Findings = unnumbered(findings), unnumbered(got.Findings)
		}
		if d := Differ(findings, got.Findings); d != "" {
			want.Problems = append(want.Problems, Problem{Wrong: name + ": other findings than as written", Detail: strings.Split(d, "\n")})
		}
	}
	return want, nil
}

// unbounded leaves out which bounds bite: each partition has its own.
func unbounded(findings []*flow.Finding) []*flow.Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f *flow.Finding) bool { return f.Type == flow.FindingPressure })
}

// unpressed leaves out blind spots that come of bounds.
func unpressed(list []flow.BlindSpot) []flow.BlindSpot {
	return slices.DeleteFunc(slices.Clone(list), func(n flow.BlindSpot) bool { return n.Kind == flow.FindingPressure })
}

// blindText is blind spots as text, but for how often they changed.
func blindText(list []flow.BlindSpot) string {
	list = slices.Clone(list)
	for i := range list {
		list[i].Version = 0
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// unnumbered are findings without how often they changed.
func unnumbered(findings []*flow.Finding) []*flow.Finding {
	out := make([]*flow.Finding, len(findings))
	for i, f := range findings {
		g := *f
		g.Revision = 0
		out[i] = &g
	}
	return out
}

// In is the problem as people read it: where in the file, what is wrong, and indented below
// it what came instead.
func (p *Problem) In(file string) string {
	if p.File != "" {
		file = p.File
	}
	if p.Line != 0 {
		file = fmt.Sprintf("%s:%d", file, p.Line)
	}
	return strings.Join(append([]string{file + ": " + p.Wrong}, p.Detail...), "\n      ")
}

// Differ says how two lists of findings differ, but for how often they were told; empty if
// they are the same.
func Differ(want, got []*flow.Finding) string {
	fields := func(list []*flow.Finding) map[string]map[string]json.RawMessage {
		out := map[string]map[string]json.RawMessage{}
		for _, f := range list {
			m := map[string]json.RawMessage{}
			b, err := json.Marshal(f)
			if err == nil {
				err = json.Unmarshal(b, &m)
			}
			if err != nil {
				m["error"] = json.RawMessage(err.Error())
			}
			delete(m, "grouped_by") // which of many are told by themselves
			out[f.ID] = m
		}
		return out
	}
	a, b := fields(want), fields(got)
	var out []string
	for _, f := range want {
		other, has := b[f.ID]
		if !has {
			out = append(out, "did not come: "+Brief(f))
			continue
		}
		all := maps.Clone(a[f.ID])
		maps.Copy(all, other)
		for _, k := range slices.Sorted(maps.Keys(all)) {
			if !bytes.Equal(a[f.ID][k], other[k]) {
				out = append(out, fmt.Sprintf("%s: %s is %.400s instead of %.400s", Brief(f), k, other[k], a[f.ID][k]))
			}
		}
	}
	for _, f := range got {
		if _, has := a[f.ID]; !has {
			out = append(out, "came as well: "+Brief(f))
		}
	}
	return strings.Join(out, "\n")
}
