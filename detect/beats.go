package detect

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/postern/postern/flow"
)

// beats follows at what times edges are used that were new lately, and how much goes over them:
// who reports home does so by a clock. The times of an edge hang on its pair alone, so they are
// followed here; whether a clock is anything unusual is for whoever sees the whole estate.
//
// Times come in blocks of so many gaps. A block is regular if most of its gaps are close to
// their median: single gaps may be of any length, as where a beat was missed or a host was off
// for the night. Regular blocks of one period are a run.
type beats struct {
	cfg      *BeaconConfig
	internet flow.Name
	most     int

	at    map[uint64]int32 // by hash of the edge
	list  []beat
	free  []int32
	homes map[flow.Addr]int32 // how many are of a prefix
	// filter has bits for each edge followed, and for few others: nearly every session is of an
	// edge that is not followed, and is told by one look at it.
	filter  []uint64
	dropped uint64
}

const (
	// blockGaps is how many gaps make a block. With fewer chance is regular too often: of gaps that
	// keep to no clock one in six is close to the median.
	blockGaps = 24
	// blockRegular is how many of them must be within a quarter of the median: jitter of a fifth
	// leaves all there, and one beat in eight may be missed.
	blockRegular = 18
	// beatJoins is within how many milliseconds after a beat further sessions are part of it.
	beatJoins = 10_000
	// leastPeriod is the shortest period, in seconds: sessions that never pause for long make beats
	// of beatJoins and the next.
	leastPeriod = 30
	// badBlocks is after how many irregular blocks an edge is no longer followed.
	badBlocks = 3
	// beatsKept is for how long an edge is followed that is not used: a weekend. Of few beats it is
	// beatsKeptFew.
	beatsKept    = 3 * dayMillis
	beatsKeptFew = dayMillis
	// beatsAgain is after how long a run that goes on is passed on again.
	beatsAgain = 8 * hourMillis
	// beatsShare is which part of the edges remembered may be followed, homeShare which part of
	// these may be of one prefix.
	beatsShare, homeShare = 16, 16
	// minFilter is the least size of the filter, in bits; it has at least sixteen for each edge.
	minFilter = 1 << 15
)

// beat is an edge that is followed. It is of fixed size.
type beat struct {
	Hash           uint64
	Client, Server flow.Addr
	Service        uint32
	Held           bool
	First          flow.Time // when the edge was used first
	Last           flow.Time // when the last beat began
	Began          flow.Time // the first beat of this block
	Since          flow.Time // the first beat of the run; 0: there is none
	Told           flow.Time // the beat that was passed on last; 0: none was
	Beats          uint32    // of the run
	Period         uint32    // of its first block, in seconds
	N              uint8     // gaps of this block
	Bad            uint8     // irregular blocks while there was no run
	Missed         bool      // the last block of the run was irregular
	Sizes, Next    uint8     // how many are held, where the next goes
	Gaps           [blockGaps]uint16
	Sizeof         [2][blockGaps]uint8 // of client and server, in steps of a fifth
}

// rhythm is what the times of an edge are like, as they are passed on. It is of fixed size.
type rhythm struct {
	First  flow.Time // when the edge was used first
	Since  flow.Time // since when it is regular
	Beats  uint32    // since then; 0: nothing is passed on
	Period uint32    // seconds, of the last block
	Within uint8     // how many of its gaps are within a quarter of it, of a hundred
	Sizes  uint8     // how many sessions' sizes are known
	Alike  uint8     // how many of them are alike, of a hundred
	Again  bool      // the edge was passed on for its times before
}

func newBeats(cfg *BehaviourConfig, internet flow.Name) beats {
	return beats{cfg: &cfg.Beacon, internet: internet, most: max(cfg.MaxEdges/beatsShare, 64), at: map[uint64]int32{}, homes: map[flow.Addr]int32{},
		filter: make([]uint64, minFilter/64)}
}

// bits are the two places of an edge in a word of the filter: of edges that are not followed one in
// seventy has both at sixteen bits an edge, where one place would say so of one in sixteen.
func (x *beats) bits(client, server flow.Addr, service uint32) (word, mask uint64) {
	h := (client.Lo*0x9e3779b97f4a7c15 ^ server.Lo ^ client.Hi ^ uint64(service)<<32) * 0xd6e8feb86659fd93
	h >>= 64 - 40
	return h >> 12 & uint64(len(x.filter)-1), 1<<(h&63) | 1<<(h>>6&63)
}

// maybe says whether an edge may be followed.
func (x *beats) maybe(client, server flow.Addr, service uint32) bool {
	word, mask := x.bits(client, server, service)
	return x.filter[word]&mask == mask
}

// of gives an edge that is followed, nil if it is not or was not used for so long that it is not
// any more.
func (x *beats) of(hash uint64, now flow.Time) *beat {
	i, followed := x.at[hash]
	if !followed {
		return nil
	}
	if t := &x.list[i]; !t.stale(now) {
		return t
	}
	x.drop(i)
	return nil
}

func (t *beat) stale(now flow.Time) bool {
	kept := flow.Time(beatsKept)
	if t.N < 3 && t.Since == 0 && t.Bad == 0 {
		kept = beatsKeptFew
	}
	return now-t.Last > kept
}

// beat takes in that an edge was used. fresh says that it was not known before: then it is
// followed from now on.
func (c *Contacts) beat(slot *edgeSlot, client, server flow.Addr, service uint32, fresh bool, s *flow.First) (r rhythm) {
	x, hash := &c.beats, slot.hash
	t := x.of(hash, s.Start)
	slot.seen &^= edgeFollowed
	switch {
	case t != nil:
		slot.seen |= edgeFollowed
		return x.again(t, s.Start)
	case !fresh || outside(s.Client.Addr, s.Client.Segment, s.Client.Segment == x.internet) || outside(s.Server.Addr, s.Server.Segment, s.Server.Segment == x.internet) || server.Netip().IsMulticast():
		return r
	}
	prefix := prefixOf(client)
	minute := uint32(s.Settled / minuteMillis)
	if len(x.at) >= x.most {
		c.pressBeats(prefix, x.makeRoom(x.most/8+1, func(*beat) bool { return true }), minute)
	}
	if quota := x.most/homeShare + 1; int(x.homes[prefix]) >= quota {
		c.pressBeats(prefix, x.makeRoom(quota/8+1, func(t *beat) bool { return prefixOf(t.Client) == prefix }), minute)
	}
	slot.seen |= edgeFollowed
	x.add(&beat{Hash: hash, Client: client, Server: server, Service: service, Held: true, First: s.Start, Last: s.Start, Began: s.Start})
	return r
}

func (c *Contacts) pressBeats(prefix flow.Addr, n int, minute uint32) {
	c.beats.dropped += uint64(n)
	c.press(boundBeats, prefix, n, minute)
}

func (x *beats) add(t *beat) {
	var i int32
	if n := len(x.free); n > 0 {
		i = x.free[n-1]
		x.free = x.free[:n-1]
	} else {
		i = int32(len(x.list))
		x.list = append(x.list, beat{})
	}
	x.list[i] = *t
	x.at[t.Hash] = i
	x.homes[prefixOf(t.Client)]++
	if 16*len(x.at) > 64*len(x.filter) {
		x.filterAll(2 * len(x.filter))
		return
	}
	word, mask := x.bits(t.Client, t.Server, t.Service)
	x.filter[word] |= mask
}

// filterAll makes the filter anew, of so many words.
func (x *beats) filterAll(words int) {
	x.filter = make([]uint64, words)
	for _, i := range x.at {
		t := &x.list[i]
		word, mask := x.bits(t.Client, t.Server, t.Service)
		x.filter[word] |= mask
	}
}

// drop stops following an edge. Its bit in the filter stays until that is made anew.
func (x *beats) drop(i int32) {
	t := &x.list[i]
	delete(x.at, t.Hash)
	if p := prefixOf(t.Client); x.homes[p] <= 1 {
		delete(x.homes, p)
	} else {
		x.homes[p]--
	}
	*t = beat{}
	x.free = append(x.free, i)
}

// makeRoom stops following n of some edges: those with the fewest beats, of equals those used
// longest ago. It gives how many they were.
func (x *beats) makeRoom(n int, of func(*beat) bool) int {
	type place struct {
		worth uint64
		hash  uint64
		i     int32
	}
	var all []place
	for i := range x.list {
		t := &x.list[i]
		if !t.Held || !of(t) {
			continue
		}
		worth := uint64(max(t.Last, 0)) & (1<<48 - 1)
		worth |= uint64(min(int(t.N)+blockGaps*int(t.Bad), 127)) << 48
		if t.Since != 0 {
			worth |= 1 << 63
		}
		all = append(all, place{worth, t.Hash, int32(i)})
	}
	slices.SortFunc(all, func(a, b place) int { return cmp.Or(cmp.Compare(a.worth, b.worth), cmp.Compare(a.hash, b.hash)) })
	n = min(n, len(all))
	for _, p := range all[:n] {
		x.drop(p.i)
	}
	return n
}

// again takes in a further session of an edge that is followed.
func (x *beats) again(t *beat, at flow.Time) (r rhythm) {
	gap := at - t.Last
	if gap < beatJoins {
		return r
	}
	t.Last = at
	t.Gaps[t.N] = uint16(min(gap/1000, 1<<16-1))
	if t.N++; t.N < blockGaps {
		return r
	}
	gaps := t.Gaps
	slices.Sort(gaps[:])
	median := (uint32(gaps[blockGaps/2-1]) + uint32(gaps[blockGaps/2])) / 2
	within := 0
	for _, g := range gaps {
		if near(uint32(g), median) {
			within++
		}
	}
	began := t.Began
	t.N, t.Began = 0, at
	if within < blockRegular || median < leastPeriod {
		x.irregular(t)
		return r
	}
	if t.Since == 0 || !near(median, t.Period) { // or by another clock from here on
		t.Since, t.Beats, t.Period = began, 0, median
	}
	t.Beats += blockGaps
	t.Missed, t.Bad = false, 0
	if int(t.Beats) < x.cfg.Beats || at-t.Since < millis(x.cfg.Span) || t.Told != 0 && at-t.Told < beatsAgain {
		return r
	}
	r = rhythm{First: t.First, Since: t.Since, Beats: t.Beats, Period: median, Within: uint8(within * 100 / blockGaps), Sizes: t.Sizes, Alike: t.alike(), Again: t.Told != 0}
	t.Told = at
	return r
}

// irregular takes in a block that keeps to no clock. One in a run is forgiven.
func (x *beats) irregular(t *beat) {
	if t.Since != 0 && !t.Missed {
		t.Missed = true
		return
	}
	t.Since, t.Beats, t.Missed = 0, 0, false
	if t.Bad++; t.Bad >= badBlocks && t.Told == 0 {
		x.drop(x.at[t.Hash])
	}
}

// near says whether a gap is within a quarter of a median.
func near(gap, median uint32) bool { return 4*gap >= 3*median && 4*gap <= 5*median }

// ended takes in how much went over an edge that is followed in a session that is over.
func (x *beats) ended(e *flow.Over, edges []flow.EdgeContribution) {
	service := edgeService(e.Proto, e.ServerPort, e.Open, e.HasICMP, e.ICMPType, e.ICMPCode)
	if !x.maybe(e.Client, e.Server, service) {
		return
	}
	if t := x.of(hashEdge(e.Client, e.Server, service), e.First); t != nil {
		for k, n := range edges[e.Place].Sent {
			t.Sizeof[k][t.Next] = sizeStep(n)
		}
		t.Next = (t.Next + 1) % blockGaps
		t.Sizes = min(t.Sizes+1, blockGaps)
	}
}

// sizeStep is a size in steps of about a fifth: four for each doubling.
func sizeStep(n uint64) uint8 {
	if n < 4 {
		return uint8(n)
	}
	e := bits.Len64(n) - 3
	return uint8(min(4*e+int(n>>e), 255))
}

// alike is how many of the sizes are at most a step from the median in both directions, of a hundred.
func (t *beat) alike() uint8 {
	if t.Sizes == 0 {
		return 0
	}
	n := int(t.Sizes)
	least := n
	for _, all := range t.Sizeof {
		sorted := all
		slices.Sort(sorted[:n])
		m, near := sorted[n/2], 0
		for _, v := range sorted[:n] {
			if v+1 >= m && v <= m+1 {
				near++
			}
		}
		least = min(least, near)
	}
	return uint8(least * 100 / n)
}

// sweep stops following what was not used for long.
func (x *beats) sweep(now flow.Time) {
	n := len(x.at)
	for i := range x.list {
		if t := &x.list[i]; t.Held && t.stale(now) {
			x.drop(int32(i))
		}
	}
	if len(x.at) == n {
		return
	}
	words := minFilter / 64
	for 16*len(x.at) > 64*words {
		words *= 2
	}
	x.filterAll(words)
	if 4*len(x.at) < len(x.list) {
		x.adopt(x.held())
	}
}

// held gives the edges that are followed, by hash.
func (x *beats) held() []beat {
	list := make([]beat, 0, len(x.at))
	for i := range x.list {
		if x.list[i].Held {
			list = append(list, x.list[i])
		}
	}
	slices.SortFunc(list, func(a, b beat) int { return cmp.Compare(a.Hash, b.Hash) })
	return list
}

// adopt follows the edges of a list instead of its own.
func (x *beats) adopt(list []beat) {
	x.list, x.free = make([]beat, 0, len(list)), nil
	clear(x.at)
	clear(x.homes)
	clear(x.filter)
	for i := range list {
		x.add(&list[i])
	}
}

func (x *beats) save(w *stateWriter) {
	w.u64(x.dropped)
	list := x.held()
	w.u64(uint64(len(list)))
	for i := range list {
		w.b, _ = binary.Append(w.b, binary.LittleEndian, &list[i]) // of fixed size: it cannot fail
	}
}

func (x *beats) load(r *stateReader) {
	x.dropped = r.u64()
	size := binary.Size(beat{})
	list := make([]beat, r.count(size))
	for i := range list {
		t := &list[i]
		if _, err := binary.Decode(r.b, binary.LittleEndian, t); err != nil {
			r.fail(err)
			return
		}
		r.b = r.b[size:]
		if !t.Held || t.N >= blockGaps || t.Next >= blockGaps || t.Sizes > blockGaps || i > 0 && t.Hash <= list[i-1].Hash {
			r.fail(errState)
			return
		}
	}
	x.adopt(list)
}
