package detect

import (
	"hash/maphash"
	"math"

	"github.com/postern/postern/flow"
)

// hostCounts are what is counted of hosts in open windows, as [counts] is of other keys; but each
// session adds to two of these, and with a million hosts each look at one is a look at memory
// that no cache holds. So a host is one slot of 16 bytes, and its key is elsewhere: it is held by
// 64 bits of its hash, under a secret of the process, as nobody is to make up hosts that share one.
// A million hosts in a window have two alike once in 30 million windows.
type hostCounts struct {
	secret uint64
	slots  []hostSlot // a power of two of them, at most three quarters in use
	keys   []HostKey  // in the order in which they came
	most   int
	// spilled is what went beyond what a slot holds, by hash.
	spilled map[uint64]HostHeard
}

// hostSlot is a host in a window; the hash 0 is an empty place. It counts what [HostHeard] counts.
type hostSlot struct {
	hash uint64
	n    [4]uint16 // told as client, as server; untold as client, as server
}

const minHostSlots = 1 << 6

func newHostCounts(most int) hostCounts {
	return hostCounts{secret: maphash.String(maphash.MakeSeed(), ""), slots: make([]hostSlot, minHostSlots), most: most, spilled: map[uint64]HostHeard{}}
}

// hash is never 0.
func (c *hostCounts) hash(k *HostKey) uint64 {
	return c.hashOf(k.Addr, k.At, k.Segment, k.Workload, uint64(k.Agent)<<8|uint64(k.Source))
}

// hashOf is hash of what makes a key; agent is its name and its source, 0 where it has none.
func (c *hostCounts) hashOf(a flow.Addr, at uint32, segment, workload flow.Name, agent uint64) uint64 {
	names := uint64(segment)<<32 | uint64(workload)
	who := fold(a.Hi^c.secret^fold1, a.Lo^c.secret^fold2)
	return max(fold(who^names^fold3, agent<<32^uint64(at)^c.secret^fold4), 1)
}

// at gives the slot of a hash, or the empty one where it would go.
func (c *hostCounts) at(hash uint64) *hostSlot {
	mask := uint64(len(c.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		if s := &c.slots[i]; s.hash == hash || s.hash == 0 {
			return s
		}
	}
}

// of gives the slot of a hash if it is counted already.
func (c *hostCounts) of(hash uint64) *hostSlot {
	if s := c.at(hash); s.hash != 0 {
		return s
	}
	return nil
}

// add begins to count a key; nil if no more may be.
func (c *hostCounts) add(k *HostKey, hash uint64) *hostSlot {
	if len(c.keys) >= c.most {
		return nil
	}
	if n := len(c.keys); n+n/3 >= len(c.slots) {
		old := c.slots
		c.slots = make([]hostSlot, 2*len(old))
		for i := range old {
			if s := &old[i]; s.hash != 0 {
				*c.at(s.hash) = *s
			}
		}
	}
	c.keys = append(c.keys, *k)
	s := c.at(hash)
	s.hash = hash
	return s
}

// count counts one session.
func (c *hostCounts) count(s *hostSlot, what int) {
	if s.n[what]++; s.n[what] == math.MaxUint16 {
		s.n[what] = 0
		h := c.spilled[s.hash]
		*h.of(what) += math.MaxUint16
		c.spilled[s.hash] = h
	}
}

// of is what is counted where in a slot.
func (n *HostHeard) of(what int) *uint32 {
	if what < 2 {
		return &n.Told[what]
	}
	return &n.Untold[what-2]
}

// tally gives what was counted of a key.
func (c *hostCounts) tally(k *HostKey) Tally[HostKey, HostHeard] {
	hash := c.hash(k)
	n := c.spilled[hash]
	for what, counted := range c.at(hash).n {
		*n.of(what) += uint32(counted)
	}
	return Tally[HostKey, HostHeard]{*k, n}
}

// list gives all that is counted, in the order in which it came.
func (c *hostCounts) list() []Tally[HostKey, HostHeard] {
	list := make([]Tally[HostKey, HostHeard], len(c.keys))
	for i := range c.keys {
		list[i] = c.tally(&c.keys[i])
	}
	return list
}

// take takes out the windows that are over.
func (c *hostCounts) take(over func(*HostKey) bool) (out []Tally[HostKey, HostHeard]) {
	n := 0
	for i := range c.keys {
		if over(&c.keys[i]) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	out = make([]Tally[HostKey, HostHeard], 0, n)
	var rest []Tally[HostKey, HostHeard]
	for i := range c.keys {
		if t := c.tally(&c.keys[i]); over(&t.Key) {
			out = append(out, t)
		} else {
			rest = append(rest, t)
		}
	}
	c.adopt(rest)
	return out
}

// adopt counts on from a list.
func (c *hostCounts) adopt(list []Tally[HostKey, HostHeard]) {
	clear(c.slots)
	clear(c.spilled)
	c.keys = c.keys[:0]
	c.addAll(list)
}

// addAll adds what was counted elsewhere, as far as there is room.
func (c *hostCounts) addAll(list []Tally[HostKey, HostHeard]) {
	for i := range list {
		t := &list[i]
		hash := c.hash(&t.Key)
		s := c.of(hash)
		if s == nil {
			if s = c.add(&t.Key, hash); s == nil {
				continue
			}
		}
		if max(t.N.Told[0], t.N.Told[1], t.N.Untold[0], t.N.Untold[1]) < math.MaxUint16/2 && max(s.n[0], s.n[1], s.n[2], s.n[3]) < math.MaxUint16/2 {
			for what := range s.n {
				s.n[what] += uint16(*t.N.of(what))
			}
			continue
		}
		n := c.spilled[hash]
		n.add(&t.N)
		c.spilled[hash] = n
	}
}
