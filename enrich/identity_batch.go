package enrich

import "github.com/postern/postern/flow"

// Question is what [View.LookupAll] looks up: as for [View.Lookup].
type Question struct {
	Addr    flow.Addr
	At, Cut flow.Time
}

// lookAhead is how many lookups are under way at a time: enough to have memory busy all
// the time, few enough that what was fetched for the first is still there for the last.
const lookAhead = 32

// LookupAll is Lookup for each question; as has room for as many answers. Memory decides
// what a lookup costs when addresses are many: one lookup waits for four or five lines of
// memory one after the other, so many lookups wait for the same line of theirs together.
// It is several times faster than one at a time where what is held does not fit the
// processor's caches, and a little slower where it does.
func (v View) LookupAll(qs []Question, as []Answer) {
	as = as[:len(qs)]
	for len(qs) > 0 {
		n := min(len(qs), lookAhead)
		v.lookupSome(qs[:n], as[:n])
		qs, as = qs[n:], as[n:]
	}
}

// lookupSome answers up to lookAhead questions. Each loop asks memory for the next line of
// every question and needs only what the loops before it have brought. What the loads give
// is summed up and given back so that they are not for nothing.
func (v View) lookupSome(qs []Question, as []Answer) (sum uint64) {
	var (
		s       = v.s
		t       = &s.places
		hashes  [lookAhead]uint64
		places  [lookAhead]uint32
		holders [lookAhead]*holder
		bodies  [lookAhead]*body
		names   [lookAhead]flow.Name
		beats   [lookAhead][2]uint32
	)
	mask := uint64(len(t.slots) - 1)
	for i := range qs {
		x := hashAddr(qs[i].Addr.Canonical())
		hashes[i] = x
		sum += uint64(t.slots[x>>t.shift&mask])
	}
	for i := range qs {
		places[i] = t.likely(hashes[i])
	}
	for i := range qs {
		if p := places[i]; p != 0 {
			h := &t.holders[p-1]
			sum += h.key.Lo + uint64(len(h.bodies))
		}
	}
	for i := range qs {
		holders[i] = nil
		if places[i] == 0 {
			continue
		}
		h, a := &t.holders[places[i]-1], qs[i].Addr.Canonical()
		if h.key != a {
			if h = t.findHashed(a, hashes[i]); h == nil {
				continue
			}
		}
		holders[i] = h
		if at := qs[i].At; at < h.from || at >= h.to {
			sum += uint64(h.starts[0]) + uint64(h.starts[len(h.starts)/2]) + uint64(h.starts[len(h.starts)-1])
		}
	}
	for i := range qs {
		if h := holders[i]; h != nil {
			b := h.at(qs[i].At)
			bodies[i] = b
			sum += uint64(b.settled) + uint64(b.flags)
		}
	}
	for i := range qs {
		names[i] = flow.NoName
		if b := bodies[i]; holders[i] != nil {
			if names[i] = b.user; b.user == flow.NoName {
				names[i] = b.account
			}
			if n := int(names[i]); n != 0 && n < len(s.subjectAt) {
				sum += uint64(s.subjectAt[n])
			}
		}
	}
	for i := range qs {
		beats[i] = [2]uint32{}
		if b := bodies[i]; holders[i] != nil {
			for n, source := range b.sources {
				if source != 0 {
					beats[i][n] = s.sources[source-1].near(max(qs[i].At, qs[i].Cut))
				}
			}
		}
	}
	for i := range qs {
		for n, k := range beats[i] {
			if k != 0 {
				sum += uint64(s.sources[bodies[i].sources[n]-1].beats[k].at)
			}
		}
	}
	for i := range qs {
		if names[i] != flow.NoName {
			if h := s.subject(names[i]); h != nil {
				sum += uint64(h.from) + uint64(len(h.bodies))
			}
		}
	}
	for i := range qs {
		if names[i] != flow.NoName {
			if h := s.subject(names[i]); h != nil && qs[i].At >= h.from && qs[i].At < h.to {
				short := &s.groups.sets[h.newest.groups].short
				sum += uint64(short.names[0]) + uint64(short.names[len(short.names)-1])
			}
		}
	}
	for i := range qs {
		if h := holders[i]; h != nil {
			s.answer(h, bodies[i], qs[i].At, qs[i].Cut, &as[i])
		} else {
			s.miss(qs[i].At, qs[i].Cut, &as[i])
		}
	}
	return sum
}
