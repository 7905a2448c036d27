package policy

import (
	"math/bits"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/postern/postern/flow"
)

// addressTable finds the region of an address: IPv4 in three steps of 16, 8 and 8 bits
// (see BenchmarkEndpoint), IPv6 by bart.
//
// Every IPv4 address takes all three steps, also where a shorter prefix says all there
// is to say: which addresses follow one another nobody can foretell, a processor's
// branch predictor neither, and a branch foretold wrongly costs more than two loads
// from cache. What a shorter prefix covers shares one block and one leaf.
//
// The first two steps are plain tables, since speed counts for more than memory
// there: 256 KiB, 1 KiB for each /16 with something longer in it, and 1 KiB for each
// region of /16s without. Equal versions share them ([Index.share]). In the last step
// there are many blocks, mostly a /24 with one host in it, so of its slots only the
// first of each run is kept and the number of runs begun up to a slot is its place (as
// in Poptrie: Asai and Ohara, SIGCOMM 2015). The places there are regions themselves,
// written out once a run, so that the last step costs one cache line more and not two:
// a lookup is four dependent loads, the region's own included.
type addressTable struct {
	root    []int32      // place in blocks, by the upper 16 bits
	blocks  [][256]int32 // place in leaves
	leaves  []addressLeaf
	regions []region // first each region once, then the runs of the leaves
	six     *bart.Table[int32]
}

// addressLeaf is the 256 slots of the last step.
type addressLeaf struct {
	starts [4]uint64 // slots where another region begins than the one before; the first always
	base   [4]int32  // place in regions of the last run begun before each 64
	_      [4]int32  // to a cache line
}

// lookup gives the region of an address.
func (t *addressTable) lookup(a flow.Addr) *region {
	if !a.Is4() {
		if a = a.Canonical(); !a.Is4() {
			i, _ := t.six.Lookup(netip.AddrFrom16(a.As16()))
			return &t.regions[i]
		}
	}
	v := a.V4()
	l := &t.leaves[t.blocks[t.root[v>>16]][v>>8&0xff]]
	w := v >> 6 & 3
	return &t.regions[int(l.base[w])+bits.OnesCount64(l.starts[w]<<(63-v&63))]
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

// pack gives the table that judging uses. Blocks and leaves come in the order of their
// addresses, so that versions with the same prefixes have the same table.
func (t *addressBuilder) pack(regions []region) addressTable {
	out := addressTable{root: make([]int32, len(t.root)), regions: slices.Clip(regions), six: t.six}
	wholeBlocks, wholeLeaves := map[int32]int32{}, map[int32]int32{} // by region
	leaf := func(slot int32) int32 {
		if slot < 0 {
			return out.leaf(&t.blocks[^slot])
		}
		i, ok := wholeLeaves[slot]
		if !ok {
			i = out.wholeLeaf(slot)
			wholeLeaves[slot] = i
		}
		return i
	}
	for i, slot := range t.root {
		j, ok := wholeBlocks[slot]
		if !ok {
			j = int32(len(out.blocks))
			var block [256]int32
			for k := range block {
				if slot < 0 {
					block[k] = leaf(t.blocks[^slot][k])
				} else {
					block[k] = leaf(slot)
				}
			}
			out.blocks = append(out.blocks, block)
			if slot >= 0 {
				wholeBlocks[slot] = j
			}
		}
		out.root[i] = j
	}
	out.blocks, out.leaves, out.regions = slices.Clip(out.blocks), slices.Clip(out.leaves), slices.Clip(out.regions)
	return out
}

// leaf adds a leaf for a block of the last step and gives its place.
func (t *addressTable) leaf(slots *[256]int32) int32 {
	var l addressLeaf
	for i, v := range slots {
		if i&63 == 0 {
			l.base[i>>6] = int32(len(t.regions)) - 1
		}
		if i == 0 || v != slots[i-1] {
			l.starts[i>>6] |= 1 << (i & 63)
			t.regions = append(t.regions, t.regions[v])
		}
	}
	t.leaves = append(t.leaves, l)
	return int32(len(t.leaves) - 1)
}

// wholeLeaf adds a leaf of one region only and gives its place.
func (t *addressTable) wholeLeaf(region int32) int32 {
	// One run begins in the first 64 slots and none later.
	t.leaves = append(t.leaves, addressLeaf{starts: [4]uint64{1}, base: [4]int32{region - 1, region, region, region}})
	return int32(len(t.leaves) - 1)
}

// share makes t use the tables of an equal older one.
func (t *addressTable) share(old *addressTable) {
	if slices.Equal(t.root, old.root) {
		t.root = old.root
	}
	if slices.Equal(t.blocks, old.blocks) {
		t.blocks = old.blocks
	}
	if slices.Equal(t.leaves, old.leaves) {
		t.leaves = old.leaves
	}
	if slices.Equal(t.regions, old.regions) {
		t.regions = old.regions
	}
}
