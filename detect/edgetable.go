package detect

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"
	"sort"

	"github.com/postern/postern/flow"
)

// edgeTable remembers which edges were seen and when, 16 bytes each, by open addressing. An
// edge is held by 64 bits of its hash: with 30 million edges one in 10^11 new ones is taken for
// a known one.
//
// When no more may be held, an eighth goes: first edges that were never answered, then those
// within a segment, and only when there are no others those between segments. Within a rank the
// prefixes of sources with most edges give, down to one common level, each those it saw longest
// ago: whoever makes up sources pushes out what it made up itself (THREATS 34).
type edgeTable struct {
	slots []edgeSlot
	n     int
	most  int // slots in use at most
	// forgotten is how many edges had to go for others.
	forgotten uint64
	votes     []homeVote // by home
}

// homeVote is which prefix most of a home's edges came from, by majority of those that came:
// prefixes share a home.
type homeVote struct {
	Prefix flow.Addr
	N      uint32
}

// edgeSlot is one edge; the hash 0 is an empty place.
type edgeSlot struct {
	hash   uint64
	seen   uint32 // minutes since the epoch, and above that what there is of it elsewhere
	passed uint16 // the low bits of the minute at which it was last passed on
	flags  uint16 // what is known of it, and above that its home: a hash of the source's prefix
}

// What is known of an edge.
const (
	edgeAnswered uint16 = 1 << iota // it carried data both ways
	edgeLearned                     // by traffic that nothing speaks against: it is normal
	edgeFailed                      // an attempt came to nothing
	edgePassed                      // passed says when
	edgeCross                       // its ends are in different segments
	homeShift    = iota
)

const homes = 1 << (16 - homeShift)

// In seen: the minute, as it is until 2097; in which ways its ends were counted in the window of that minute;
// and whether it is worth looking whether there is more of it.
const (
	minuteBits          = 26
	waysShift           = minuteBits
	edgeFollowed uint32 = 1 << 30 // its times are followed, or were: see beats
	edgeShut     uint32 = 1 << 31 // enforcement stopped somebody there: see Contacts.doors
	edgeKeeps           = edgeFollowed | edgeShut
)

// minute is when the edge was seen last.
func (s *edgeSlot) minute() uint32 { return s.seen & (1<<minuteBits - 1) }

// touch notes that the edge was seen in a minute.
func (s *edgeSlot) touch(minute uint32) {
	minute = min(minute, 1<<minuteBits-1)
	switch last := s.minute(); {
	case minute <= last:
	case minute/hostWindow == last/hostWindow:
		s.seen += minute - last
	default:
		s.seen = s.seen&edgeKeeps | minute
	}
}

// uncounted is how ends of the edge were not counted yet in the window of a minute, of so many ways.
func (s *edgeSlot) uncounted(ways uint8, minute uint32) uint8 {
	if minute/hostWindow != s.minute()/hostWindow {
		return ways
	}
	return ways &^ uint8(s.seen>>waysShift)
}

// counted notes how ends were counted in the window of a minute, unless the edge was seen in a later one.
func (s *edgeSlot) counted(ways uint8, minute uint32) {
	if minute/hostWindow == s.minute()/hostWindow {
		s.seen |= uint32(ways) << waysShift
	}
}

// prefixOf is the prefix that a source's address counts for, as its first address: who holds one
// address of it may hold them all. /24, and of IPv6 /56, what a site is usually given (RFC 6177).
func prefixOf(a flow.Addr) flow.Addr {
	if a.Is4() {
		a.Lo &^= 0xff
		return a
	}
	return flow.Addr{Hi: a.Hi &^ 0xff}
}

func homeOf(prefix flow.Addr) uint16 {
	return uint16(flow.Mix(flow.Mix(prefix.Hi^0x9e3779b97f4a7c15)^prefix.Lo) >> (64 - 16 + homeShift))
}

// rank orders what may be forgotten: the lowest goes first.
func (s *edgeSlot) rank() int {
	switch {
	case s.flags&(edgeAnswered|edgeLearned) == 0:
		return 0
	case s.flags&edgeCross == 0:
		return 1
	}
	return 2
}

// edgeRanks is what the edges of each rank are called.
var edgeRanks = [...]string{"unanswered edges", "edges within segments", "edges between segments"}

const minEdgeSlots = 1 << 10

func newEdgeTable(most int) edgeTable {
	return edgeTable{slots: make([]edgeSlot, minEdgeSlots), most: most, votes: make([]homeVote, homes)}
}

// hashEdge is the hash of an edge; it is never 0. service is port and protocol, 0 for the pair.
func hashEdge(client, server flow.Addr, service uint32) uint64 {
	h := fold(fold(client.Hi^fold1, client.Lo^fold2)^uint64(service)^fold3, fold(server.Hi^fold3, server.Lo^fold4)^fold1)
	return max(h, 1)
}

// fold is the product of two words, folded: each bit of both bears on it, in a third of the time
// that [flow.Mix] takes for one of them. As in W. Yi's wyhash, and with its constants: primes of
// which each byte has four bits set, so that no address in use makes a factor 0.
func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

const (
	fold1 = 0xa0761d6478bd642f
	fold2 = 0xe7037ed1a0b428db
	fold3 = 0x8ebc6af09c88c6e3
	fold4 = 0x589965cc75374cc3
)

// at gives the slot of a hash, or the empty one where it would go.
func (t *edgeTable) at(hash uint64) *edgeSlot { return &t.slots[t.place(hash)] }

// place is where that slot is. It is looked for from the beginning of a line of memory, so that what
// is near is in that line.
func (t *edgeTable) place(hash uint64) uint64 {
	mask := uint64(len(t.slots) - 1)
	for i := hash & mask &^ (edgeLine - 1); ; i = (i + 1) & mask {
		if s := &t.slots[i]; s.hash == hash || s.hash == 0 {
			return i
		}
	}
}

// near gives the slot of a hash if it is still at a place.
func (t *edgeTable) near(place, hash uint64) *edgeSlot {
	if place < uint64(len(t.slots)) && t.slots[place].hash == hash {
		return &t.slots[place]
	}
	return nil
}

// edgeLine is how many slots are in a line of memory, 64 bytes on all that matters.
const edgeLine = 4

// ask reads the lines in which the edges of a few sessions are.
func (t *edgeTable) ask(few []asking) (sum uint64) {
	mask := uint64(len(t.slots) - 1)
	for i := range few {
		sum += t.slots[few[i].edge&mask&^(edgeLine-1)].hash
	}
	return sum
}

// use gives the slot of a hash, a new one if need be, of an edge whose client is of a prefix; now
// is in minutes since the epoch. lost says what had to go for it.
func (t *edgeTable) use(hash uint64, prefix flow.Addr, now uint32) (s *edgeSlot, known bool, lost []loss) {
	if s = t.at(hash); s.hash != 0 {
		return s, true, nil
	}
	if t.n+t.n/3 >= len(t.slots) || t.n >= t.most {
		lost = t.makeRoom(now)
		s = t.at(hash)
	}
	home := homeOf(prefix)
	*s = edgeSlot{hash: hash, flags: home << homeShift}
	s.touch(now)
	t.n++
	switch v := &t.votes[home]; {
	case v.Prefix == prefix:
		v.N++
	case v.N == 0:
		*v = homeVote{prefix, 1}
	default:
		v.N--
	}
	return s, false, lost
}

// loss is edges that had to go: of a rank, most of them of a prefix; zero: of many prefixes.
type loss struct {
	rank   int
	prefix flow.Addr
	n      int
}

// maxLosses is how many prefixes are told of at a time, of each rank.
const maxLosses = 4

// makeRoom doubles the table, or where it may not grow forgets an eighth of it.
func (t *edgeTable) makeRoom(now uint32) (lost []loss) {
	if t.n < t.most {
		t.rebuild(2*len(t.slots), func(*edgeSlot) bool { return true })
		return nil
	}
	var held [len(edgeRanks)][homes]int
	for i := range t.slots {
		if s := &t.slots[i]; s.hash != 0 {
			held[s.rank()][s.flags>>homeShift]++
		}
	}
	going := map[uint32]*givenUp{} // by rank and home
	for rank, left := 0, t.most/8+1; rank < len(held) && left > 0; rank++ {
		gives, all := shares(&held[rank], left)
		for home, n := range gives {
			if n > 0 {
				going[uint32(rank)<<16|uint32(home)] = &givenUp{n: n}
			}
		}
		left -= all
		lost = append(lost, t.losses(rank, gives)...)
	}
	each := func(f func(*givenUp, *edgeSlot)) {
		for i := range t.slots {
			if s := &t.slots[i]; s.hash != 0 {
				if g := going[s.group()]; g != nil {
					f(g, s)
				}
			}
		}
	}
	each(func(g *givenUp, s *edgeSlot) { g.ages[s.age(now)]++ })
	for _, g := range going {
		g.settle()
	}
	each(func(g *givenUp, s *edgeSlot) {
		if s.age(now) == g.least && g.some > 0 {
			g.same = append(g.same, s.hash)
		}
	})
	for _, g := range going {
		if g.some > 0 {
			slices.Sort(g.same)
			g.below = g.same[g.some]
		}
	}
	before := t.n
	t.rebuild(len(t.slots), func(s *edgeSlot) bool {
		g := going[s.group()]
		return g == nil || !g.has(s.age(now), s.hash)
	})
	t.forgotten += uint64(before - t.n)
	return lost
}

// shares says how many edges each home gives for so many to go, of those it holds: those with
// most down to one level, some of them one below that. all is what they give together, which is
// less only where there are no more.
func shares(held *[homes]int, wanted int) (gives []int, all int) {
	most := 0
	for _, n := range held {
		most = max(most, n)
	}
	above := func(level int) (n int) {
		for _, h := range held {
			n += max(0, h-level)
		}
		return n
	}
	level := sort.Search(most, func(level int) bool { return above(level) <= wanted })
	gives = make([]int, homes)
	for home, n := range held {
		gives[home] = max(0, n-level)
		all += gives[home]
	}
	for home := 0; home < homes && all < wanted; home++ {
		if level > 0 && held[home] >= level {
			gives[home]++
			all++
		}
	}
	return gives, all
}

// losses says of which prefixes edges of a rank go.
func (t *edgeTable) losses(rank int, gives []int) (lost []loss) {
	for home, n := range gives {
		if n > 0 {
			lost = append(lost, loss{rank, t.votes[home].Prefix, n})
		}
	}
	slices.SortFunc(lost, func(a, b loss) int { return cmp.Or(-cmp.Compare(a.n, b.n), a.prefix.Compare(b.prefix)) })
	if len(lost) <= maxLosses {
		return lost
	}
	rest := loss{rank: rank}
	for _, l := range lost[maxLosses:] {
		rest.n += l.n
	}
	return append(lost[:maxLosses], rest)
}

func (s *edgeSlot) group() uint32 { return uint32(s.rank())<<16 | uint32(s.flags>>homeShift) }

// ages is how many steps ages are told apart by: eight for each doubling.
const ages = 8 * 30

// age is how long ago an edge was seen, in steps.
func (s *edgeSlot) age(now uint32) int {
	m := now - min(s.minute(), now)
	if m < 8 {
		return int(m)
	}
	e := bits.Len32(m) - 4
	return 8*(e+1) + int(m>>e&7)
}

// givenUp is which edges of one rank and home go: n, those of the highest ages, and of the least
// age that goes all or some, those of the lowest hashes.
type givenUp struct {
	n     int
	ages  [ages]int32
	least int
	some  int // of the least age; 0: all
	same  []uint64
	below uint64
}

func (g *givenUp) settle() {
	g.least = ages
	for left := g.n; left > 0 && g.least > 0; {
		g.least--
		n := int(g.ages[g.least])
		if n > left {
			g.some = left
		}
		left -= n
	}
}

func (g *givenUp) has(age int, hash uint64) bool {
	return age > g.least || age == g.least && (g.some == 0 || hash < g.below)
}

func (t *edgeTable) rebuild(size int, keep func(*edgeSlot) bool) {
	old := t.slots
	t.slots, t.n = make([]edgeSlot, size), 0
	for i := range old {
		if s := &old[i]; s.hash != 0 && keep(s) {
			*t.at(s.hash) = *s
			t.n++
		}
	}
}

// forget drops what was seen last before a minute.
func (t *edgeTable) forget(before uint32) {
	size := len(t.slots)
	n := 0
	for i := range t.slots {
		if s := &t.slots[i]; s.hash != 0 && s.minute() >= before {
			n++
		}
	}
	if n == t.n {
		return
	}
	for size > minEdgeSlots && n < size/4 {
		size /= 2
	}
	t.rebuild(size, func(s *edgeSlot) bool { return s.minute() >= before })
}

// appendTo appends the table in the order of its places, 16 bytes an edge.
func (t *edgeTable) appendTo(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, t.forgotten)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(t.slots)))
	b = binary.LittleEndian.AppendUint32(b, uint32(t.n))
	for i := range t.slots {
		if s := &t.slots[i]; s.hash != 0 {
			b = binary.LittleEndian.AppendUint64(b, s.hash)
			b = binary.LittleEndian.AppendUint32(b, s.seen)
			b = binary.LittleEndian.AppendUint16(b, s.passed)
			b = binary.LittleEndian.AppendUint16(b, s.flags)
		}
	}
	n := 0
	for i := range t.votes {
		if t.votes[i].N > 0 {
			n++
		}
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(n))
	for i := range t.votes {
		if v := &t.votes[i]; v.N > 0 {
			b = binary.LittleEndian.AppendUint16(b, uint16(i))
			b = binary.LittleEndian.AppendUint64(b, v.Prefix.Hi)
			b = binary.LittleEndian.AppendUint64(b, v.Prefix.Lo)
			b = binary.LittleEndian.AppendUint32(b, v.N)
		}
	}
	return b
}

var errEdges = errors.New("the table of edges is cut or is not what a snapshot holds")

// read reads what appendTo wrote and gives what lies behind it. Places depend on the order in
// which edges came; nothing else does.
func (t *edgeTable) read(b []byte) ([]byte, error) {
	if len(b) < 16 {
		return nil, errEdges
	}
	forgotten, size, n := binary.LittleEndian.Uint64(b), int(binary.LittleEndian.Uint32(b[8:])), int(binary.LittleEndian.Uint32(b[12:]))
	b = b[16:]
	if size < minEdgeSlots || size&(size-1) != 0 || n+n/3 > size || size > 1<<31 || len(b)/16 < n || size/64 > n+minEdgeSlots {
		return nil, errEdges
	}
	t.slots, t.n, t.forgotten = make([]edgeSlot, size), 0, forgotten
	for range n {
		s := edgeSlot{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint16(b[12:]), binary.LittleEndian.Uint16(b[14:])}
		if at := t.at(s.hash); s.hash == 0 || at.hash != 0 {
			return nil, errEdges
		} else {
			*at = s
		}
		t.n++
		b = b[16:]
	}
	if len(b) < 2 {
		return nil, errEdges
	}
	n, b = int(binary.LittleEndian.Uint16(b)), b[2:]
	if len(b) < 22*n {
		return nil, errEdges
	}
	for range n {
		home := binary.LittleEndian.Uint16(b)
		if home >= homes {
			return nil, errEdges
		}
		t.votes[home] = homeVote{flow.Addr{Hi: binary.LittleEndian.Uint64(b[2:]), Lo: binary.LittleEndian.Uint64(b[10:])}, binary.LittleEndian.Uint32(b[18:])}
		b = b[22:]
	}
	return b, nil
}
