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
// what a lookup costs when addresses are many: one lookup waits for a slot, its holder, a
// span and a heartbeat one after the other, so many lookups wait for the same of theirs
// together. It is several times faster than one at a time where what is held does not fit the
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
// every question and needs only what the loops before it have brought. Those that wait do
// little else, for a processor looks ahead by a number of instructions, and so by the more
// lines the fewer instructions lie between. What the loads give is summed up and given back
// so that they are not for nothing.
func (v View) lookupSome(qs []Question, as []Answer) (sum uint64) {
	var (
		s      = v.s
		t      = &s.places
		hashes [lookAhead]uint64
		blocks [lookAhead]int   // where the span is to be looked for; -1: it is the newest
		lines  [lookAhead]*span // the first of that block
		founds [lookAhead]found
		joined [lookAhead]uint8 // which questions lead to an identity
	)
	mask := uint64(len(t.slots) - 1)
	for i := range qs {
		hashes[i] = hashAddr(qs[i].Addr.Canonical())
	}
	for _, x := range hashes[:len(qs)] {
		sum += uint64(t.slots[x>>t.shift&mask])
	}
	for i := range qs {
		if p := t.likely(hashes[i]); p != 0 {
			founds[i].h = &t.holders[p-1]
		}
	}
	for i := range qs {
		if h := founds[i].h; h != nil {
			sum += h.key.Lo + h.borders[0]
		}
	}
	for i := range qs {
		h, a := founds[i].h, qs[i].Addr.Canonical()
		if h == nil {
			continue
		}
		if h.key != a {
			if h = t.findHashed(a, hashes[i]); h == nil {
				founds[i].h = nil
				continue
			}
			founds[i].h = h
		}
		blocks[i], lines[i] = -1, &h.newest
		if at := qs[i].At; !h.current(at) {
			k := h.block(at)
			blocks[i], lines[i] = k, &h.spans[k]
		}
	}
	for _, b := range lines[:len(qs)] {
		if b != nil {
			sum += uint64(b.class)
		}
	}
	n := 0
	for i := range qs {
		f := &founds[i]
		if f.h == nil {
			continue
		}
		b := lines[i]
		if blocks[i] >= 0 {
			b = f.h.within(blocks[i], qs[i].At)
		}
		f.b = b
		if name := int(s.identity(b)); name != 0 && name < len(s.subjectAt) {
			joined[n&(lookAhead-1)] = uint8(i)
			n++
			sum += uint64(s.subjectAt[name])
		}
		sum += s.near(&s.classes.all[b.class], max(qs[i].At, qs[i].Cut), &f.near)
	}
	for _, i := range joined[:n] {
		f := &founds[i]
		if f.subject = s.subject(s.identity(f.b)); f.subject != nil {
			sum += f.subject.key.Lo + f.subject.borders[0]
		}
	}
	for _, i := range joined[:n] {
		if f := &founds[i]; f.subject != nil {
			f.said = f.subject.at(qs[i].At)
			sum += uint64(f.said.class)
		}
	}
	for _, i := range joined[:n] {
		if f := &founds[i]; f.subject != nil {
			sum += uint64(s.groups.sets[s.classes.all[f.said.class].groups].short.names[0])
		}
	}
	for i := range qs {
		if founds[i].h != nil {
			s.answer(&founds[i], qs[i].At, qs[i].Cut, &as[i])
		} else {
			s.miss(qs[i].At, qs[i].Cut, &as[i])
		}
	}
	return sum
}
