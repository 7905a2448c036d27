package enrich

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"sort"

	"github.com/postern/postern/flow"
)

// beat is a heartbeat.
type beat struct {
	at    flow.Time
	limit flow.Time // milliseconds of silence until stale; 0: never
}

// source is what is known of a source itself.
type source struct {
	name  string
	id    flow.Name
	order uint8
	beats []beat // ascending
	// Heartbeats before this time were dropped: what is asked as of before it finds the
	// source stale.
	forgotten flow.Time

	// Late flows ask for heartbeats long past, so these are found by slices of time of
	// 1<<shift milliseconds, about sixteen a slice: in slice k those from first[k] on begin, and
	// first has one more. Times lie apart from limits, for which least mostly stands, so that
	// caches hold more of them; after the last comes one that never is.
	ats   []flow.Time
	first []uint32
	shift uint8
	least flow.Time // the shortest limit; latest if there is none
}

// heard gives the last heartbeat by the cut. known is false if the source never gave one
// by then, which is fresh unless it is forgotten.
func (s *source) heard(cut flow.Time) (b beat, known, forgotten bool) {
	i := s.last(s.near(cut), cut)
	if i < 0 {
		return beat{}, false, cut < s.forgotten
	}
	return s.beats[i], true, false
}

// near gives about the place of the last heartbeat by the cut, -1 if there is none.
func (s *source) near(cut flow.Time) int {
	if len(s.first) == 0 || cut < s.ats[0] {
		return -1
	}
	t := uint64(min(cut, latest) - s.ats[0])
	k := min(t>>(s.shift&63), uint64(len(s.first)-2))
	lo, hi := uint64(s.first[k]), uint64(s.first[k+1])
	return int(min(lo+(t-k<<(s.shift&63))*(hi-lo)>>(s.shift&63), uint64(len(s.ats)-2)))
}

// last gives the place of the last heartbeat by the cut; near is what near gave.
func (s *source) last(near int, cut flow.Time) int {
	if near < 0 {
		return -1
	}
	// It is mostly off by one at most, and by how much no processor can guess: that is
	// reckoned, not branched on.
	i, ats, cut := near, s.ats, min(cut, latest)
	i += int(uint64(ats[i+1]-cut-1) >> 63)
	i -= int(uint64(cut-ats[i]) >> 63)
	i -= int(uint64(cut-ats[i]) >> 63)
	if ats[i] > cut || ats[i+1] <= cut {
		i = sort.Search(len(s.beats), func(k int) bool { return s.beats[k].at > cut }) - 1
	}
	return i
}

// silence says for how long a source had been silent, -1 if it was never heard, and whether
// that makes it stale; near is what near gave.
func (s *source) silence(near int, at, cut flow.Time) (silent int64, stale bool) {
	i := s.last(near, cut)
	if i < 0 {
		return -1, cut < s.forgotten
	}
	silent = int64(at - s.ats[i])
	return max(0, silent), silent > int64(s.least) && s.beats[i].silent(at)
}

func (s *source) stale(at, cut flow.Time) bool {
	_, stale := s.silence(s.near(cut), at, cut)
	return stale
}

// silent says whether the time lies too far after the heartbeat.
func (b *beat) silent(at flow.Time) bool { return b.limit != 0 && at-b.at > b.limit }

// add puts a heartbeat in its place. Of two at one time the stricter counts.
func (s *source) add(b beat) {
	n := len(s.beats)
	if n > 0 && b.at > s.beats[n-1].at {
		s.beats = append(s.beats, b)
		if k := int((b.at - s.beats[0].at) >> s.shift); k < n/4+16 {
			s.extend(n)
		} else {
			s.index()
		}
		return
	}
	i, found := slices.BinarySearchFunc(s.beats, b.at, func(b beat, t flow.Time) int { return cmp.Compare(b.at, t) })
	if !found {
		s.beats = slices.Insert(s.beats, i, b)
	} else if old := s.beats[i].limit; old == 0 || b.limit != 0 && b.limit < old {
		s.beats[i].limit = b.limit
	}
	s.index()
}

// extend adds heartbeat i, the last, to the index.
func (s *source) extend(i int) {
	b := s.beats[i]
	s.ats = append(s.ats[:i], b.at, math.MaxInt64)
	if b.limit != 0 {
		s.least = min(s.least, b.limit)
	}
	s.first = s.first[:max(0, len(s.first)-1)]
	for k := int((b.at - s.beats[0].at) >> s.shift); len(s.first) <= k; {
		s.first = append(s.first, uint32(i))
	}
	s.first = append(s.first, uint32(i+1))
}

// index makes the index anew.
func (s *source) index() {
	n := len(s.beats)
	s.ats, s.first, s.least = s.ats[:0], s.first[:0], latest
	if n == 0 {
		return
	}
	span := uint64(s.beats[n-1].at - s.beats[0].at)
	s.shift = uint8(max(0, bits.Len64(span)-bits.Len(uint(n))+4))
	for i := range s.beats {
		s.extend(i)
	}
}
