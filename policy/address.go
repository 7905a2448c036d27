package policy

import (
	"math/bits"
	"net/netip"

	"github.com/gaissmai/bart"

	"github.com/postern/postern/flow"
)

// addressTable finds the region of an address: IPv4 in at most three steps of
// 16, 8 and 8 bits (see BenchmarkEndpoint), IPv6 by bart.
//
// Neighbouring slots of a step mostly hold the same, so only the first of each run
// is kept: 64 slots are one node of 16 bytes, and the number of runs begun up to a
// slot is its place among the values (as in Poptrie: Asai and Ohara, SIGCOMM 2015).
// The first step is 16 KiB a version instead of 256, a /24 with one host in it some
// 80 bytes instead of 1,024, and what traffic touches stays in cache.
type addressTable struct {
	nodes  []addressNode // the first step's 1,024, then four a block
	values []int32       // a region, or where negative, ^block
	six    *bart.Table[int32]
}

// addressNode is 64 slots.
type addressNode struct {
	starts uint64 // slots where another value begins than the one before; the first always
	base   uint32 // place in values of the first one's
}

const rootNodes = 1 << 16 / 64

// at is the value of a slot, counted from the given node on.
func (t *addressTable) at(node int32, slot uint32) int32 {
	n := &t.nodes[uint32(node)+slot>>6]
	return t.values[n.base+uint32(bits.OnesCount64(n.starts<<(63-slot&63)))-1]
}

func (t *addressTable) lookup(a flow.Addr) int32 {
	if a.Is4() {
		v := a.V4()
		i := t.at(0, v>>16)
		if i < 0 {
			if i = t.at(rootNodes+4*^i, v>>8&0xff); i < 0 {
				i = t.at(rootNodes+4*^i, v&0xff)
			}
		}
		return i
	}
	i, _ := t.six.Lookup(netip.AddrFrom16(a.As16()))
	return i
}

// addressBuilder is an addressTable with every slot written out.
type addressBuilder struct {
	root   []int32 // by the upper 16 bits: a region, or where negative, ^block
	blocks [][256]int32
	six    *bart.Table[int32]
}

// add puts a prefix in; shorter prefixes come before longer ones.
func (t *addressBuilder) add(p netip.Prefix, region int32) {
	if p.Addr().Is6() {
		if t.six == nil {
			t.six = new(bart.Table[int32])
		}
		t.six.Insert(p, region)
		return
	}
	if t.root == nil {
		t.root = make([]int32, 1<<16)
	}
	v := flow.AddrFromNetip(p.Addr()).V4()
	fill := func(slots []int32, at uint32, bits int) {
		for i := range 1 << bits {
			slots[int(at)+i] = region
		}
	}
	if p.Bits() <= 16 {
		fill(t.root, v>>16, 16-p.Bits())
		return
	}
	block := t.descend(&t.root[v>>16])
	if p.Bits() <= 24 {
		fill(t.blocks[block][:], v>>8&0xff, 24-p.Bits())
		return
	}
	slot := t.blocks[block][v>>8&0xff]
	last := t.descend(&slot)
	t.blocks[block][v>>8&0xff] = slot
	fill(t.blocks[last][:], v&0xff, 32-p.Bits())
}

// descend gives the block under a slot, made of the slot's region if need be.
func (t *addressBuilder) descend(slot *int32) int {
	if *slot < 0 {
		return int(^*slot)
	}
	var b [256]int32
	for i := range b {
		b[i] = *slot
	}
	t.blocks = append(t.blocks, b)
	*slot = ^int32(len(t.blocks) - 1)
	return len(t.blocks) - 1
}

// pack gives the table that judging uses.
func (t *addressBuilder) pack() addressTable {
	out := addressTable{nodes: make([]addressNode, 0, rootNodes+4*len(t.blocks)), six: t.six}
	add := func(slots []int32) {
		for i := 0; i < len(slots); i += 64 {
			n := addressNode{base: uint32(len(out.values))}
			for j, v := range slots[i : i+64] {
				if j == 0 || v != slots[i+j-1] {
					n.starts |= 1 << j
					out.values = append(out.values, v)
				}
			}
			out.nodes = append(out.nodes, n)
		}
	}
	add(t.root)
	for i := range t.blocks {
		add(t.blocks[i][:])
	}
	return out
}
