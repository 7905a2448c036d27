package detect

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/postern/postern/flow"
)

// snapshotVersion rises whenever what a snapshot holds changes its meaning.
const snapshotVersion = 1

type snapshot struct {
	Version   int         `json:"version"`
	Clock     flow.Time   `json:"clock"`
	Swept     flow.Time   `json:"swept"`
	Findings  []*finding  `json:"findings"`
	Leaving   []*finding  `json:"leaving,omitempty"`
	Straddles []*straddle `json:"straddles,omitempty"`
}

// Snapshot is the whole state, names as text; the same state gives the same bytes.
func (d *Detector) Snapshot() ([]byte, error) {
	s := snapshot{Version: snapshotVersion, Clock: d.clock, Swept: d.swept, Leaving: d.leaving,
		Findings:  slices.SortedFunc(maps.Values(d.findings), func(a, b *finding) int { return a.Key.compare(&b.Key) }),
		Straddles: slices.SortedFunc(maps.Values(d.straddles), func(a, b *straddle) int { return a.Tuple.compare(&b.Tuple) })}
	return json.Marshal(&s)
}

// read reads what Snapshot wrote.
func read(b []byte) (s snapshot, err error) {
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("reading the snapshot of detect: %w", err)
	}
	if s.Version != snapshotVersion {
		return s, fmt.Errorf("the snapshot of detect is of version %d; this program reads version %d", s.Version, snapshotVersion)
	}
	for i, f := range slices.Concat(s.Findings, s.Leaving) {
		if f == nil || f.ID != f.Key.id() {
			return s, fmt.Errorf("finding %d of the snapshot of detect does not have the id of what it is about", i)
		}
	}
	for i, st := range s.Straddles {
		if st == nil {
			return s, fmt.Errorf("five-tuple %d of the snapshot of detect is empty", i)
		}
	}
	return s, nil
}

// Restore replaces the state by that of a snapshot. After an error the Detector is empty.
func (d *Detector) Restore(b []byte) error {
	d.reset()
	s, err := read(b)
	if err != nil {
		return err
	}
	d.adopt(s.Findings)
	for _, st := range s.Straddles {
		d.straddles[st.Tuple] = st
		d.held += len(st.Held)
		for j := range st.Held {
			d.nextHeld = min(d.nextHeld, st.Held[j].Span.Start)
		}
	}
	d.clock, d.swept, d.leaving = s.Clock, s.Swept, s.Leaving
	return nil
}
