package enrich

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/postern/postern/flow"
)

// Divide makes of the states of several Pairers those of n others that go on in their
// place, each a snapshot. partition says which of the n, from 0, the flows between a
// and b come to from now on, whichever of the two is named first; they must have come
// to one Pairer before as well. What then comes of all flows is what would have come of
// them before, as long as they come in time.
//
// Records that wait, and those remembered as the half of one that waits, go where
// their pair goes. All Pairers begin with the earliest of the clocks: none ends a wait
// before its time, and the first record or tick takes the clock on.
func Divide(snapshots [][]byte, n int, partition func(a, b flow.Addr) int) ([][]byte, error) {
	type placed struct {
		dueItem
		memberSnapshot
	}
	out := make([]snapshot, n)
	members := make([][]placed, n)
	names := make([]map[string]flow.Name, n) // a Name means nothing outside its snapshot
	for i := range out {
		out[i] = snapshot{Version: snapshotVersion, Layout: layout, Names: map[uint32]string{}}
		names[i] = map[string]flow.Name{"": flow.NoName}
	}
	var clock flow.Time
	for i, b := range snapshots {
		s, err := read(b)
		if err != nil {
			return nil, fmt.Errorf("state %d of %d: %w", i, len(snapshots), err)
		}
		if i == 0 || s.Clock < clock {
			clock = s.Clock
		}
		for j, m := range s.Members {
			var texts []string
			r, err := s.record(j, func(text string) flow.Name {
				texts = append(texts, text)
				return flow.NoName
			})
			if err != nil {
				return nil, fmt.Errorf("state %d of %d: %w", i, len(snapshots), err)
			}
			p := partition(r.Src, r.Dst)
			for k, name := range namesOf(&r) {
				id, known := names[p][texts[k]]
				if !known {
					id = flow.Name(len(names[p]))
					names[p][texts[k]], out[p].Names[uint32(id)] = id, texts[k]
				}
				*name = id
			}
			if m.Record, err = binary.Append(nil, binary.LittleEndian, &r); err != nil {
				return nil, fmt.Errorf("encoding a waiting record: %w", err)
			}
			members[p] = append(members[p], placed{dueItem{at: flow.Time(m.At), id: r.ID, forget: m.Decided}, m})
		}
	}
	divided := make([][]byte, n)
	for i := range out {
		slices.SortStableFunc(members[i], func(a, b placed) int {
			switch {
			case a.before(b.dueItem):
				return -1
			case b.before(a.dueItem):
				return 1
			}
			return 0
		})
		out[i].Clock, out[i].Members = clock, make([]memberSnapshot, len(members[i]))
		for j := range members[i] {
			out[i].Members[j] = members[i][j].memberSnapshot
		}
		var err error
		if divided[i], err = json.Marshal(&out[i]); err != nil {
			return nil, err
		}
	}
	return divided, nil
}
