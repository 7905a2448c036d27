package detect

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/postern/postern/flow"
)

// Divide makes of the states of several Detectors those of n others that go on in
// their place, each a snapshot. partition says which of the n, from 0, the flows
// between a and b come to from now on, whichever of the two is named first; they must
// have come to one Detector before as well. What then comes of all flows is what would
// have come of them before, as long as they come in time.
//
// Everything a Detector remembers is of a pair of endpoints and goes where the pair
// goes. All begin with the earliest of the clocks: none closes or forgets anything
// before its time, and the first record or tick takes the clock on.
func Divide(snapshots [][]byte, n int, partition func(a, b flow.Addr) int) ([][]byte, error) {
	out := make([]snapshot, n)
	home := map[key]int{} // of each finding, the state it came from
	var clock, swept flow.Time
	for i, b := range snapshots {
		s, err := read(b)
		if err != nil {
			return nil, fmt.Errorf("state %d of %d: %w", i, len(snapshots), err)
		}
		if i == 0 {
			clock, swept = s.Clock, s.Swept
		}
		clock, swept = min(clock, s.Clock), min(swept, s.Swept)
		for _, f := range s.Findings {
			if other, twice := home[f.Key]; twice {
				return nil, fmt.Errorf("finding %s is in state %d and in state %d of %d: the flows of %s and %s did not all come to one",
					f.ID, other, i, len(snapshots), f.Key.Client, f.Key.Server)
			}
			home[f.Key] = i
			to := &out[partition(f.Key.Client, f.Key.Server)]
			to.Findings = append(to.Findings, f)
		}
		for _, f := range s.Leaving {
			to := &out[partition(f.Key.Client, f.Key.Server)]
			to.Leaving = append(to.Leaving, f)
		}
		for _, st := range s.Straddles {
			to := &out[partition(st.Tuple.Low, st.Tuple.High)]
			to.Straddles = append(to.Straddles, st)
		}
	}
	divided := make([][]byte, n)
	for i := range out {
		s := &out[i]
		s.Version, s.Clock, s.Swept = snapshotVersion, clock, swept
		slices.SortFunc(s.Findings, func(a, b *finding) int { return a.Key.compare(&b.Key) })
		slices.SortFunc(s.Straddles, func(a, b *straddle) int { return a.Tuple.compare(&b.Tuple) })
		var err error
		if divided[i], err = json.Marshal(s); err != nil {
			return nil, err
		}
	}
	return divided, nil
}

// DivideContacts is [Divide] for the states of several Contacts. What waits to be told of a pair
// goes where the pair goes. Edges are remembered by a hash that does not tell the pair, so every
// one of the n knows the edges of all: what it knows of pairs that never come to it is not asked
// for, and is forgotten with time. cfg bounds how many edges that is; beyond it they are
// left out in the order in which they are forgotten. What is counted of open windows is added up over
// all, so the first goes on with it.
func DivideContacts(snapshots [][]byte, n int, cfg Config, partition func(a, b flow.Addr) int) ([][]byte, error) {
	all := newEdgeTable(cfg.Behaviour.MaxEdges)
	names := flow.NewNames(0) // in states they are text
	out := make([]Contacts, n)
	for i := range out {
		out[i] = Contacts{cfg: &cfg.Behaviour, names: names}
		out[i].reset()
	}
	in := make([]Contacts, len(snapshots))
	var swept flow.Time
	var newest uint32
	for i, b := range snapshots {
		c := &in[i]
		c.cfg, c.names = &cfg.Behaviour, names
		if err := c.Restore(b); err != nil {
			return nil, fmt.Errorf("state %d of %d: %w", i, len(snapshots), err)
		}
		if i == 0 || c.swept < swept {
			swept = c.swept
		}
		for j := range c.edges.slots {
			newest = max(newest, c.edges.slots[j].minute())
		}
	}
	repeats, doors := map[uint64]uint32{}, map[uint64]uint32{}
	for i := range in {
		c := &in[i]
		for k, r := range c.fresh {
			if to := out[partition(k.client, k.server)].fresh; len(to) < maxFresh {
				to[k] = r
			}
		}
		for k, m := range c.doors { // whose pair it is nobody knows any more: all have it
			if _, known := doors[k]; known || len(doors) < maxDoors {
				doors[k] = max(doors[k], m)
			}
		}
		for k, m := range c.mappers {
			if to := out[partition(k.client, k.server)].mappers; len(to) < maxMappers {
				to[k] = m
			}
		}
		for j := range c.beats.list {
			if t := &c.beats.list[j]; t.Held {
				if to := &out[partition(t.Client, t.Server)].beats; len(to.at) < to.most {
					to.add(t)
				}
			}
		}
		for k, v := range c.repeats {
			if _, known := repeats[k]; known || len(repeats) < maxRepeats {
				repeats[k] = max(repeats[k], v)
			}
		}
		all.forgotten = max(all.forgotten, c.edges.forgotten)
		for j := range c.edges.slots {
			s := &c.edges.slots[j]
			if s.hash == 0 {
				continue
			}
			// The one seen last is of whom the pair came to; others are left from an earlier division.
			at, known, _ := all.use(s.hash, c.edges.votes[s.flags>>homeShift].Prefix, newest)
			keeps := (at.seen | s.seen) & edgeKeeps
			if !known || s.minute() > at.minute() {
				*at = *s
			}
			at.seen |= keeps
		}
	}
	hearings := make([]*hearing, len(in))
	for i := range in {
		hearings[i] = &in[i].hearing
	}
	divided := make([][]byte, n)
	for i := range out {
		out[i].hearing.join(hearings, i == 0)
		out[i].swept, out[i].edges, out[i].repeats = swept, all, repeats
		out[i].doors = doors
		var err error
		if divided[i], err = out[i].Snapshot(); err != nil {
			return nil, err
		}
	}
	return divided, nil
}
