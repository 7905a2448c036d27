package enrich

import (
	"math/bits"
	"slices"

	"github.com/postern/postern/flow"
)

// Event time as the store cuts it up: facts lie strictly inside.
const (
	earliest flow.Time = -1 << 56
	latest   flow.Time = 1 << 56 // as an end: not told
)

// body is what holds for one span of event time, worked out when a fact comes: what a
// lookup there answers as long as its cut is not before settled and none of the sources
// has gone stale. 40 bytes.
type body struct {
	settled flow.Time

	workload, device, user, account, posture flow.Name

	groups     uint32    // a set of [groupSets]
	sources    [2]uint16 // those of the facts that hold here, + 1; 0 ends them
	why        Why
	confidence uint8
	flags      uint8
}

// The flags of a body.
const (
	slowBody     = 1 << iota // more than it can hold: to be worked out anew each time
	doubtBody                // a fact is in doubt here, by its slack
	noIdentity               // a user is in doubt, so the account is no identity
	disabledBody             // of a subject

	placeShift = 4 // which of the sources, + 1, said who holds the address; of a subject: the first
	userShift  = 6 // which said who the user is

	moreBody = 1 << userShift // of a subject, which has no users
)

// past is what the spans were made of.
type past struct {
	versions []version // in order of compareKey, then known
	leases   int       // the first of them are leases
	subject  bool
	first    flow.Time // the first time at which anything was known
	lost     lost
}

// table finds the holder of an address: open addressing with linear probing over 32-bit
// slots, at most half full, so that a miss mostly touches one of them.
type table struct {
	slots   []uint32 // tag in the upper 8 bits, index in holders + 1 in the lower 24
	shift   uint     // of the hash, to a slot
	holders []holder
}

const firstSlots = 1 << 10

func newTable() table { return table{slots: make([]uint32, firstSlots), shift: 64 - 10} }

func hashAddr(a flow.Addr) uint64 {
	hi, lo := bits.Mul64(a.Hi^0x9e3779b97f4a7c15, a.Lo^0xd1b54a32d192ed03)
	return (hi ^ lo) * 0x9fb21c651e98df25
}

// find gives the holder of an address, nil if there is none; until the next add.
func (t *table) find(a flow.Addr) *holder {
	return t.findHashed(a, hashAddr(a))
}

func (t *table) findHashed(a flow.Addr, x uint64) *holder {
	mask := uint64(len(t.slots) - 1)
	tag := uint32(x) >> 24
	for i := x >> t.shift; ; i++ {
		v := t.slots[i&mask]
		if v == 0 {
			return nil
		}
		if v>>24 == tag {
			if h := &t.holders[v&(1<<24-1)-1]; h.key == a {
				return h
			}
		}
	}
}

// likely gives the place in holders, + 1, of the first whose hash looks like x; 0 if none does.
func (t *table) likely(x uint64) uint32 {
	mask := uint64(len(t.slots) - 1)
	tag := uint32(x) >> 24
	for i := x >> t.shift; ; i++ {
		if v := t.slots[i&mask]; v == 0 || v>>24 == tag {
			return v & (1<<24 - 1)
		}
	}
}

// index gives the place of an address that is there in holders.
func (t *table) index(a flow.Addr) int {
	mask := uint64(len(t.slots) - 1)
	for i := hashAddr(a) >> t.shift; ; i++ {
		if n := int(t.slots[i&mask]&(1<<24-1)) - 1; t.holders[n].key == a {
			return n
		}
	}
}

// add adds an address that is not there.
func (t *table) add(a flow.Addr) int {
	n := len(t.holders)
	t.holders = append(t.holders, holder{key: a, past: &past{}})
	if 2*(n+1) > len(t.slots) {
		t.grow(2 * (n + 1))
	} else {
		t.slot(n)
	}
	return n
}

func (t *table) slot(n int) {
	x := hashAddr(t.holders[n].key)
	mask := uint64(len(t.slots) - 1)
	i := x >> t.shift
	for t.slots[i&mask] != 0 {
		i++
	}
	t.slots[i&mask] = uint32(x)>>24<<24 | uint32(n+1)
}

// grow makes slots for at least n and fills them.
func (t *table) grow(n int) {
	size := max(firstSlots, 1<<bits.Len(uint(n-1)))
	t.slots, t.shift = make([]uint32, size), uint(64-bits.TrailingZeros(uint(size)))
	for i := range t.holders {
		t.slot(i)
	}
}

// compact drops the holders without facts.
func (t *table) compact() {
	t.holders = slices.DeleteFunc(t.holders, func(h holder) bool { return len(h.past.versions) == 0 })
	t.grow(2 * (len(t.holders) + 1))
}
