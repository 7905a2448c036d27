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
