package enrich

import (
	"cmp"
	"math/bits"
	"slices"

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
	// 1<<shift milliseconds, about one a heartbeat: slice k begins at beats[first[k]].
	shift uint8
	first []uint32
}

// heard gives the last heartbeat by the cut. known is false if the source never gave one
// by then, which is fresh unless it is forgotten.
func (s *source) heard(cut flow.Time) (b beat, known, forgotten bool) {
	n := len(s.beats)
	if n == 0 || cut < s.beats[0].at {
		return beat{}, false, cut < s.forgotten
	}
	if last := &s.beats[n-1]; last.at <= cut {
		return *last, true, false
	}
	// The first heartbeat after the cut is there and not before lo. Mostly it is one of the
	// first three, and which of them no processor can guess: that is added up, not branched on.
	k := int((cut - s.beats[0].at) >> s.shift)
	lo := int(s.first[k])
	if k+1 < len(s.first) && int(s.first[k+1])-lo > 16 {
		lo, _ = slices.BinarySearchFunc(s.beats, cut+1, func(b beat, t flow.Time) int { return cmp.Compare(b.at, t) })
	}
	for range 2 {
		next := 0
		if s.beats[lo].at <= cut {
			next = 1
		}
		lo += next
	}
	for s.beats[lo].at <= cut {
		lo++
	}
	return s.beats[lo-1], true, false
}

// near gives the place of a heartbeat that heard will look at, 0 if it need not look.
func (s *source) near(cut flow.Time) uint32 {
	if n := len(s.beats); n == 0 || cut < s.beats[0].at || cut >= s.beats[n-1].at {
		return 0
	}
	return s.first[(cut-s.beats[0].at)>>s.shift]
}

func (s *source) stale(at, cut flow.Time) bool {
	b, known, forgotten := s.heard(cut)
	return forgotten || known && b.silent(at)
}

// silent says whether the time lies too far after the heartbeat.
func (b *beat) silent(at flow.Time) bool { return b.limit != 0 && at-b.at > b.limit }

// add puts a heartbeat in its place. Of two at one time the stricter counts.
func (s *source) add(b beat) {
	n := len(s.beats)
	if n > 0 && b.at > s.beats[n-1].at {
		s.beats = append(s.beats, b)
		if k := int((b.at - s.beats[0].at) >> s.shift); k < 4*(n+1) {
			s.extend(n)
		} else {
			s.index()
		}
		return
	}
	i, found := slices.BinarySearchFunc(s.beats, b.at, func(b beat, t flow.Time) int { return cmp.Compare(b.at, t) })
	if found {
		if old := s.beats[i].limit; old == 0 || b.limit != 0 && b.limit < old {
			s.beats[i].limit = b.limit
		}
		return
	}
	s.beats = slices.Insert(s.beats, i, b)
	s.index()
}

// extend adds heartbeat i, the last, to the index.
func (s *source) extend(i int) {
	for k := int((s.beats[i].at - s.beats[0].at) >> s.shift); len(s.first) <= k; {
		s.first = append(s.first, uint32(i))
	}
}

// index makes the index anew.
func (s *source) index() {
	n := len(s.beats)
	s.first = s.first[:0]
	if n == 0 {
		return
	}
	span := uint64(s.beats[n-1].at - s.beats[0].at)
	s.shift = uint8(max(0, bits.Len64(span)-bits.Len(uint(n))))
	for i := range s.beats {
		s.extend(i)
	}
}
