package detect

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/postern/postern/flow"
)

// hosts are the hosts that detectors of behaviour follow, each by its place: a number that stays
// as long as the host is held. A host is a workload where one is known, else an address. One
// that became known by its address stays what it is when its workload is learned.
type hosts struct {
	byAddr map[flow.Addr]int32
	byName map[flow.Name]int32 // workloads
	list   []host
	free   []int32
	most   int
	// faint is how many are held that were never seen to reach or to answer anybody.
	faint int
	// kept is one that must not go now; -1: any may.
	kept int32
	// forgotten is how many had to go for others.
	forgotten uint64
}

// host is what is known of one host. It is a value of fixed size without pointers.
type host struct {
	Addr     flow.Addr // the one it was seen by first
	Workload flow.Name // by which findings name it; NoName: by its address
	Alias    flow.Name // its workload, where that was learned later
	Segment  flow.Name
	Held     bool
	Indexed  bool // found by Addr
	Kind     hostKind

	First, Last flow.Time

	// By class: how many servers it reached and how many clients reached it, each counted when
	// the edge was new, holding at 65,535; on which of the last 32 days it reached any; and of the
	// servers it reached how many were none that others use, and on which days.
	Reached, Served [classes]uint16
	Odd             [classes]uint16
	Days, OddDays   [classes]uint32
	Day             int32 // that bit 0 of days stands for

	// Asks is on how many hosts it newly reached which services, Serves by how many its own were
	// newly reached; Regular is to how many hosts, and by how many, it was found to be by a clock.
	Asks, Serves services
	Regular      [2]uint16

	// Told is when an alert about what it newly administers was raised last, and Score how
	// unusual that was.
	Told  flow.Time
	Score int32
}

// hostKind is what a host was seen to do. Sources of attempts that came to nothing, and their
// targets, need not exist; so they are held on trial, an eighth of all at most, and go first.
type hostKind uint8

const (
	hostTarget hostKind = iota // somebody tried to reach it
	hostTried                  // it tried to reach others
	hostReal                   // it reached another or answered
	hostKinds
)

// lostHosts is how many of each kind had to go.
type lostHosts [hostKinds]int

// of gives the place of the host at an end, a new one if need be.
// kind is what it is seen to do now.
func (h *hosts) of(e *flow.SessionEnd, kind hostKind, at flow.Time, forget func(int32)) (i int32, lost lostHosts) {
	var known bool
	if e.Workload != flow.NoName && e.Workload != flow.OverflowName {
		if i, known = h.byName[e.Workload]; !known {
			if j, ok := h.byAddr[e.Addr]; ok && h.list[j].Workload == flow.NoName && h.list[j].Alias == flow.NoName {
				i, known = j, true
				h.list[j].Alias = e.Workload
				h.byName[e.Workload] = j
			}
		}
	} else {
		i, known = h.byAddr[e.Addr]
	}
	if !known {
		i, lost = h.add(e, kind, at, forget)
	}
	s := &h.list[i]
	if kind > s.Kind {
		if kind == hostReal {
			h.faint--
		}
		s.Kind = kind
	}
	s.Last = max(s.Last, at)
	if e.Segment != flow.NoName {
		s.Segment = e.Segment
	}
	return i, lost
}

// find gives the place of a host that is held.
func (h *hosts) find(addr flow.Addr, workload flow.Name) (i int32, held bool) {
	if workload != flow.NoName && workload != flow.OverflowName {
		if i, held = h.byName[workload]; held {
			return i, true
		}
		if i, held = h.byAddr[addr]; held {
			s := &h.list[i]
			held = s.Workload == flow.NoName && s.Alias == flow.NoName
		}
		return i, held
	}
	i, held = h.byAddr[addr]
	return i, held
}

func (h *hosts) add(e *flow.SessionEnd, kind hostKind, at flow.Time, forget func(int32)) (_ int32, lost lostHosts) {
	if h.held() >= h.most || kind != hostReal && h.faint >= h.most/8 {
		lost = h.makeRoom(kind, at, forget)
	}
	if kind != hostReal {
		h.faint++
	}
	var i int32
	if n := len(h.free); n > 0 {
		i = h.free[n-1]
		h.free = h.free[:n-1]
	} else {
		i = int32(len(h.list))
		h.list = append(h.list, host{})
	}
	s := host{Addr: e.Addr, Held: true, Kind: kind, First: at, Last: at, Day: int32(dayOf(at))}
	if e.Workload != flow.NoName && e.Workload != flow.OverflowName {
		s.Workload = e.Workload
		h.byName[e.Workload] = i
	}
	if _, taken := h.byAddr[e.Addr]; !taken {
		h.byAddr[e.Addr] = i
		s.Indexed = true
	}
	h.list[i] = s
	return i, lost
}

// makeRoom forgets about a sixteenth of the hosts: targets first, then who only tried, then the
// others, each seen longest ago first. For one on trial no other than those on trial goes.
func (h *hosts) makeRoom(kind hostKind, now flow.Time, forget func(int32)) (lost lostHosts) {
	age := func(s *host) int { return bits.Len64(uint64(max(0, now-s.Last) / minuteMillis)) }
	var held [hostKinds][65]int
	for i := range h.list {
		if s := &h.list[i]; s.Held {
			held[s.Kind][age(s)]++
		}
	}
	left := h.most/16 + 1
	if kind != hostReal && h.faint > 0 {
		left = min(left, h.faint/2+1)
	}
	for k := hostTarget; k < hostKinds && left > 0; k++ {
		// Those above the age go, and as many of that age as are still needed.
		above, here := 64, 0
		for ; above >= 0; above-- {
			if n := held[k][above]; n >= left {
				here = left
				break
			}
			left -= held[k][above]
			lost[k] += held[k][above]
		}
		if lost[k] += here; lost[k] == 0 {
			continue
		}
		left -= here
		var last []int32 // of that age
		for i := int32(0); int(i) < len(h.list); i++ {
			s := &h.list[i]
			if !s.Held || s.Kind != k || i == h.kept {
				continue
			}
			if a := age(s); a > above {
				h.drop(i, forget)
			} else if a == above && here > 0 {
				last = append(last, i)
			}
		}
		// Of one age by their last sight and address: places say nothing.
		slices.SortFunc(last, func(x, y int32) int {
			a, b := &h.list[x], &h.list[y]
			return cmp.Or(cmp.Compare(a.Last, b.Last), a.Addr.Compare(b.Addr))
		})
		for _, i := range last[:min(here, len(last))] {
			h.drop(i, forget)
		}
		h.forgotten += uint64(lost[k])
	}
	return lost
}

func (h *hosts) drop(i int32, forget func(int32)) {
	forget(i)
	s := &h.list[i]
	if s.Kind != hostReal {
		h.faint--
	}
	if s.Indexed {
		delete(h.byAddr, s.Addr)
	}
	for _, n := range [...]flow.Name{s.Workload, s.Alias} {
		if j, ok := h.byName[n]; ok && n != flow.NoName && j == i {
			delete(h.byName, n)
		}
	}
	*s = host{}
	h.free = append(h.free, i)
}

// forget drops the hosts seen last before a time.
func (h *hosts) forget(before flow.Time, forget func(int32)) {
	for i := range h.list {
		if s := &h.list[i]; s.Held && s.Last < before {
			h.drop(int32(i), forget)
		}
	}
}

// today makes bit 0 of a host's days stand for the day of at.
func (s *host) today(at flow.Time) {
	d := int32(dayOf(at))
	if n := d - s.Day; n > 0 {
		for c := range s.Days {
			if n < 32 {
				s.Days[c] <<= n
				s.OddDays[c] <<= n
			} else {
				s.Days[c], s.OddDays[c] = 0, 0
			}
		}
		s.Day = d
	}
}

// met says whether it was seen to reach or to answer anybody.
func (s *host) met() bool { return s.Reached != [classes]uint16{} || s.Served != [classes]uint16{} }

// toldOf says whether an alert of the time before told of what the host newly administers, of
// nothing less unusual than a score. What it goes on with is no alert of its own.
func (s *host) toldOf(at, within flow.Time, score int) bool {
	return s.Told != 0 && at-s.Told < within && score <= int(s.Score)
}

// tellOf notes that an alert told of what the host newly administers.
func (s *host) tellOf(at, within flow.Time, score int) {
	if at-s.Told >= within {
		s.Score = 0
	}
	s.Told, s.Score = at, max(s.Score, int32(score))
}

// administers says whether reaching hosts that are no servers is what a host does: it did on
// more days than one, or with many.
func (s *host) administers(c class) bool { return s.oddDays(c) >= 2 || s.Odd[c] >= 12 }

// oddDays is on how many days before today it newly reached hosts that are no servers of a class.
func (s *host) oddDays(c class) int { return bits.OnesCount32(s.OddDays[c] &^ 1) }

// administersElse is the same for the class other than c on which it did most.
func (s *host) administersElse(c class) (days int) {
	for o := range classes {
		if o != c && o != classOther && o != classDatabase {
			days = max(days, s.oddDays(o))
		}
	}
	return days
}

// oddOnes is how many hosts it reached in all that are no servers of the class.
func (s *host) oddOnes() (n int) {
	for o := classOther + 1; o < classes; o++ {
		n += int(s.Odd[o])
	}
	return n
}

func count(v *uint16) {
	if *v < 1<<16-1 {
		*v++
	}
}

func (h *hosts) save(w *stateWriter) {
	w.u64(h.forgotten)
	saveAll(w, h.list)
	saveAll(w, h.free)
}

func (h *hosts) load(r *stateReader) {
	h.forgotten = r.u64()
	h.list = loadAll[host](r)
	for i := range h.list {
		s := &h.list[i]
		if s.Indexed {
			h.byAddr[s.Addr] = int32(i)
		}
		if s.Held && s.Kind != hostReal {
			h.faint++
		}
		for _, n := range [...]flow.Name{s.Workload, s.Alias} {
			if n != flow.NoName {
				h.byName[n] = int32(i)
			}
		}
	}
	h.free = loadAll[int32](r)
	for _, i := range h.free {
		if int(i) >= len(h.list) || i < 0 || h.list[i].Held {
			r.fail(errState)
			return
		}
	}
}

// held is how many hosts are held.
func (h *hosts) held() int { return len(h.list) - len(h.free) }

func newHosts(most int) hosts {
	return hosts{byAddr: map[flow.Addr]int32{}, byName: map[flow.Name]int32{}, most: most, kept: -1}
}
