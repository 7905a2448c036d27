package policy

import (
	"math/bits"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/postern/postern/flow"
)

// addressTable finds the region of an address: IPv4 in at most three steps of
// 16, 8 and 8 bits (see BenchmarkEndpoint), IPv6 by bart.
//
// The first two steps are plain tables, since speed counts for more than memory
// there: 256 KiB and 1 KiB for each /16 with something longer in it. Equal versions
// share them ([Index.share]). In the last step there are many blocks, mostly a /24 with
// one host in it, so of its slots only the first of each run is kept and the number of
// runs begun up to a slot is its place (as in Poptrie: Asai and Ohara, SIGCOMM 2015).
// The places there are regions themselves, written out once a run, so that the last
// step costs one cache line more and not two: a lookup is four dependent loads, the
// region's own included.
type addressTable struct {
	root    []int32 // by the upper 16 bits: a region, or where negative, ^block
	blocks  [][256]int32
	leaves  []addressLeaf
	regions []region // first each region once, then the runs of the leaves
	six     *bart.Table[int32]
}

// addressLeaf is the 256 slots of the last step.
type addressLeaf struct {
	starts [4]uint64 // slots where another region begins than the one before; the first always
	base   [4]uint32 // place in regions of the last run begun before each 64
	_      [4]uint32 // to a cache line
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
	i := t.root[v>>16]
	if i < 0 {
		if i = t.blocks[^i][v>>8&0xff]; i < 0 {
			l := &t.leaves[^i]
			w := v >> 6 & 3
			i = int32(l.base[w]) + int32(bits.OnesCount64(l.starts[w]<<(63-v&63)))
		}
	}
	return &t.regions[i]
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

// pack gives the table that judging uses. Blocks of the second step keep their order,
// so that versions with the same prefixes have the same table.
func (t *addressBuilder) pack(regions []region) addressTable {
	out := addressTable{root: t.root, regions: slices.Clip(regions), six: t.six}
	place := make([]int32, len(t.blocks)) // in out.blocks
	for i, slot := range t.root {
		if slot < 0 {
			place[^slot] = int32(len(out.blocks))
			t.root[i] = ^place[^slot]
			out.blocks = append(out.blocks, t.blocks[^slot])
		}
	}
	for i := range out.blocks {
		for j, slot := range out.blocks[i] {
			if slot < 0 {
				out.blocks[i][j] = ^int32(len(out.leaves))
				out.leaf(&t.blocks[^slot])
			}
		}
	}
	out.blocks, out.leaves, out.regions = slices.Clip(out.blocks), slices.Clip(out.leaves), slices.Clip(out.regions)
	return out
}

// leaf adds a block of the last step.
func (t *addressTable) leaf(slots *[256]int32) {
	var l addressLeaf
	for i, v := range slots {
		if i&63 == 0 {
			l.base[i>>6] = uint32(len(t.regions)) - 1
		}
		if i == 0 || v != slots[i-1] {
			l.starts[i>>6] |= 1 << (i & 63)
			t.regions = append(t.regions, t.regions[v])
		}
	}
	t.leaves = append(t.leaves, l)
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
