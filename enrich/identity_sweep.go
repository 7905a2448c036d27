package enrich

import (
	"cmp"
	"slices"

	"github.com/postern/postern/flow"
)

// sweep drops what can count for no lookup at or after the horizon.
func (s *Identity) sweep() {
	s.swept = s.horizon
	horizon := s.horizon
	n := s.drop(dropping{horizon: horizon, gone: func(v *version) bool { return expired(v, horizon) }})
	s.m.expired.Add(float64(n))
	for i := range s.sources {
		src := &s.sources[i]
		// The last heartbeat before the horizon is still asked for.
		k, _ := slices.BinarySearchFunc(src.beats, horizon+1, func(b beat, t flow.Time) int { return cmp.Compare(b.at, t) })
		if k > 1 {
			src.beats = slices.Clone(src.beats[k-1:])
			src.index()
		}
	}
	if s.lost.known != 0 && s.lost.to <= horizon && s.lost.known <= horizon {
		s.lost = lost{}
	}
}

// end is when a fact ended, and how many versions it has.
type end struct {
	at flow.Time
	n  int
}

// endsOf adds the ends of what one holder knows to have ended.
func endsOf(vs []version, ends []end) []end {
	for i := 0; i < len(vs); {
		v, next := effective(vs, i, latest)
		if v.until != latest {
			ends = append(ends, end{v.until, next - i})
		}
		i = next
	}
	return ends
}

// threshold gives the time of which those that ended by then make room for need versions.
func threshold(ends []end, need int) flow.Time {
	slices.SortFunc(ends, func(a, b end) int { return cmp.Compare(a.at, b.at) })
	for _, e := range ends {
		if need -= e.n; need <= 0 {
			return e.at
		}
	}
	return ends[len(ends)-1].at
}

// evict makes room for a sixteenth of all facts by dropping those that ended longest ago;
// false if there are none. Indexes of holders change.
func (s *Identity) evict() bool {
	if s.noneEnded {
		return false
	}
	s.rebuildDirty()
	var ends []end
	for _, hs := range [][]holder{s.places.holders, s.subjects} {
		for i := range hs {
			ends = endsOf(hs[i].past.versions, ends)
		}
	}
	n := 0
	if len(ends) > 0 {
		until := threshold(ends, s.facts-s.cfg.MaxFacts+max(1, s.cfg.MaxFacts/16))
		n = s.drop(dropping{horizon: earliest, mark: true, gone: func(v *version) bool { return v.until <= until }})
		s.m.evicted.Add(float64(n))
	}
	s.noneEnded = n == 0
	return n > 0
}

// makeRoom drops a quarter of what is held about one address, what ended longest ago first.
func (s *Identity) makeRoom(h *holder) {
	s.rebuildDirty()
	ends := endsOf(h.past.versions, nil)
	if len(ends) == 0 {
		return
	}
	until := threshold(ends, len(h.past.versions)/4+1)
	n := s.dropFrom(h, dropping{horizon: earliest, mark: true, gone: func(v *version) bool { return v.until <= until }})
	s.m.evicted.Add(float64(n))
	s.rebuild(h, earliest, latest)
}

// dropping says what to drop.
type dropping struct {
	gone    func(last *version) bool // by the last version of a fact
	horizon flow.Time                // versions replaced by then count for nobody
	mark    bool                     // they are dropped before their time
}

// drop drops facts and then the addresses and subjects of which none are left, and gives
// how many versions that were.
func (s *Identity) drop(d dropping) (n int) {
	for _, hs := range [][]holder{s.places.holders, s.subjects} {
		for i := range hs {
			h := &hs[i]
			k := s.dropFrom(h, d)
			l := &h.past.lost
			cleared := l.known != 0 && l.to <= d.horizon && l.known <= d.horizon
			if cleared {
				*l = lost{}
			}
			if len(h.past.versions) == 0 {
				s.classes.release(h.spans)
				if l.known != 0 {
					s.lost.add(l.from, l.to, l.known)
				}
			} else if k > 0 || cleared {
				s.rebuild(h, earliest, latest)
			}
			n += k
		}
	}
	s.places.compact()
	for i := range s.subjects {
		s.subjectAt[s.subjects[i].key.Lo] = 0
	}
	s.subjects = slices.DeleteFunc(s.subjects, func(h holder) bool { return len(h.past.versions) == 0 })
	for i := range s.subjects {
		s.setSubject(i)
	}
	return n
}

// dropFrom drops facts of one holder and gives how many versions that were. A lease stays
// while a session is held that may have begun under it: without it the session would not
// end. With what a directory said last goes all that it said before, which would count
// again otherwise; and that goes also once what follows it has counted since the horizon.
func (s *Identity) dropFrom(h *holder, d dropping) (n int) {
	p := h.past
	vs := p.versions
	drop := make([]bool, len(vs)) // versions
	for j := len(vs); j > 0; {
		i := j - 1
		for i > 0 && vs[i-1].same(&vs[j-1]) {
			i--
		}
		last := &vs[j-1]
		gone := d.gone(last)
		if p.subject && j < len(vs) && vs[j].source == last.source {
			// vs[j:] is what the directory said next.
			gone = gone || nextGone(vs, drop, j) || vs[j].since <= d.horizon && vs[j].known <= d.horizon
		}
		if gone && i < p.leases {
			gone = !pinned(vs, drop, i, j, p.leases)
		}
		for k := i; k < j; k++ {
			drop[k] = gone || k+1 < j && vs[k+1].known <= d.horizon
		}
		if gone && d.mark {
			lo, hi := last.begin(), last.until
			if p.subject && j < len(vs) && vs[j].source == last.source {
				hi = min(hi, vs[j].since)
			}
			for k := i; k < j; k++ {
				p.lost.add(lo, max(lo, hi), vs[k].known)
			}
		}
		j = i
	}
	kept := vs[:0]
	for k := range vs {
		if drop[k] {
			s.groups.release(vs[k].groups)
			n++
			continue
		}
		kept = append(kept, vs[k])
	}
	if n == 0 {
		return 0
	}
	p.versions = slices.Clone(kept)
	s.facts -= n
	return n
}

// nextGone says whether all versions of the fact that begins at j are dropped.
func nextGone(vs []version, drop []bool, j int) bool {
	for k := j; k < len(vs) && vs[k].same(&vs[j]); k++ {
		if !drop[k] {
			return false
		}
	}
	return true
}

// pinned says whether a session that stays may have begun under the lease [i, j).
func pinned(vs []version, drop []bool, i, j, leases int) bool {
	for k := leases; k < len(vs); k++ {
		if vs[k].kind != flow.FactSession || drop[k] {
			continue
		}
		for _, l := range vs[i:j] {
			if l.begin() < vs[k].since+leaseWindow && l.until > vs[k].since {
				return true
			}
		}
	}
	return false
}
