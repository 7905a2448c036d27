package enrich

import (
	"math/bits"
	"slices"
	"sort"

	"github.com/postern/postern/flow"
)

// class is the part of a body that many share. 16 bytes.
type class struct {
	posture    flow.Name
	groups     uint32
	sources    [2]uint16
	why        Why
	confidence uint8
	flags      uint8
}

// span is a stretch of event time and what holds there, a body in 32 bytes: half a line of
// memory. It ends where the next one begins.
type span struct {
	start   flow.Time // of the first span of a holder, which begins at earliest, when it was settled
	settled uint32    // milliseconds after start
	class   uint32    // a place in classes

	workload, device, user, account flow.Name
}

// unsettled says whether another answer may have been known at the cut, which is not before the span.
func (b *span) unsettled(cut flow.Time) bool { return cut-b.start < flow.Time(b.settled) }

// classes holds the classes of all spans, each once, as long as spans have it.
type classes struct {
	all  []class
	refs []uint32
	free []uint32
	ids  map[class]uint32
}

func newClasses() classes { return classes{ids: map[class]uint32{}} }

// pack makes a span of a body, which begins at start and is the first of its holder or not.
func (c *classes) pack(start flow.Time, first bool, b *body) span {
	k := class{b.posture, b.groups, b.sources, b.why, b.confidence, b.flags}
	// To call a body settled later than it is does no harm: what is asked as of before goes the long way.
	settled := max(start, b.settled)
	if first {
		start = settled
	}
	if settled-start > 1<<32-1 {
		settled, k.flags = start, k.flags|slowBody
	}
	return span{start: start, settled: uint32(settled - start), class: c.intern(k), workload: b.workload, device: b.device, user: b.user, account: b.account}
}

func (c *classes) intern(k class) uint32 {
	i, ok := c.ids[k]
	if !ok {
		if n := len(c.free); n > 0 {
			i, c.free = c.free[n-1], c.free[:n-1]
			c.all[i] = k
		} else {
			i = uint32(len(c.all))
			c.all, c.refs = append(c.all, k), append(c.refs, 0)
		}
		c.ids[k] = i
	}
	c.refs[i]++
	return i
}

func (c *classes) release(spans []span) {
	for i := range spans {
		k := spans[i].class
		if c.refs[k]--; c.refs[k] == 0 {
			delete(c.ids, c.all[k])
			c.free = append(c.free, k)
		}
	}
}

// blocks is into how many blocks the spans of a holder are divided.
const blocks = 17

// holder is what is known of one address, or of one subject of directories: two lines of
// memory. The first has what most lookups want, the second tells the block of spans where the
// others find it; with up to 34 spans a block is one line too.
type holder struct {
	key    flow.Addr // of a subject: the name in Lo
	newest span      // one of spans again
	to     flow.Time // where it ends
	base   uint32    // of borders: seconds
	stride uint16    // spans in a block
	shift  uint8     // of borders

	// Where the blocks but the first begin, as unit gives it, four to a word, the first in the
	// lowest bits; noBorder where there is none.
	borders [(blocks - 1) / 4]uint64
	spans   []span // ascending, one at least but before the first rebuild
	past    *past
}

const noBorder = 1<<15 - 1

// unit gives a time in units of 1<<shift milliseconds since base, rounded down, + 1, in 15
// bits. Before base it is 0 and far after it the same for all times, so that times which
// differ may have one unit, but none has more than a later one.
func (h *holder) unit(t flow.Time) uint64 {
	base := flow.Time(h.base) * 1000
	if t < base {
		return 0
	}
	return min(uint64(t-base)>>(h.shift&63), noBorder-2) + 1
}

// block gives the first span of the block in which lies what holds at t. Where several spans
// begin in one unit of time it may be a later one.
func (h *holder) block(t flow.Time) int {
	const ones, tops = 0x0001_0001_0001_0001, 0x8000_8000_8000_8000
	// Sixteen comparisons at once: the top bit of a field stays where the border in it is not
	// after t. Nothing is branched on, for no processor can guess which block it will be.
	u, b := h.unit(t)*ones|tops, &h.borders
	n := bits.OnesCount64((u-b[0])&tops | (u-b[1])&tops>>1 | (u-b[2])&tops>>2 | (u-b[3])&tops>>3)
	return n * int(h.stride)
}

// within gives the span that holds at t; first is what block gave.
func (h *holder) within(first int, t flow.Time) *span {
	spans, i := h.spans, first
	end := min(first+int(h.stride), len(spans))
	if spans[i].start > t && i > 0 {
		if i--; spans[i].start > t && i > 0 {
			i = sort.Search(i-1, func(k int) bool { return spans[k+1].start > t })
		}
		return &spans[i]
	}
	if end-first > 8 {
		i += sort.Search(end-first-1, func(k int) bool { return spans[first+1+k].start > t })
		return &spans[i]
	}
	for k := first + 1; k < end; k++ {
		next := 0
		if spans[k].start <= t {
			next = 1
		}
		i += next
	}
	return &spans[i]
}

// current says whether newest is what holds at t.
func (h *holder) current(t flow.Time) bool { return t >= h.newest.start && t < h.to }

// at gives what holds at t.
func (h *holder) at(t flow.Time) *span {
	if h.current(t) {
		return &h.newest
	}
	return h.within(h.block(t), t)
}

// lay works out what leads to the spans.
func (h *holder) lay(c *classes) {
	n := len(h.spans)
	h.stride, h.base, h.shift = uint16((n+blocks-1)/blocks), 0, 0
	if n > 1 {
		// A fact of all times among short ones would make units long, so a border that is far
		// from all others is left out: before base it has unit 0, beyond the last unit the last.
		near := h.spans[1:]
		for len(near) > 2 {
			n := len(near)
			whole := near[n-1].start - near[0].start
			if (near[n-1].start - near[1].start) < whole/8 {
				near = near[1:]
			} else if (near[n-2].start - near[0].start) < whole/8 {
				near = near[:n-1]
			} else {
				break
			}
		}
		h.base = uint32(min(max(near[0].start/1000, 0), 1<<32-1))
		h.shift = uint8(max(0, bits.Len64(uint64(max(0, near[len(near)-1].start-flow.Time(h.base)*1000)))-15))
	}
	for k := range blocks - 1 {
		border := uint64(noBorder)
		if i := (k + 1) * int(h.stride); i < n {
			border = h.unit(h.spans[i].start)
		}
		at := k % 4 * 16
		h.borders[k/4] = h.borders[k/4]&^(0xffff<<at) | border<<at
	}
	// Most lookups want the last span in which anybody held it. After a lease that says when it
	// will end comes a span in which nobody does, mostly in the future.
	held := func(i int) bool { return c.all[h.spans[i].class].sources[0] != 0 }
	i := n - 1
	for i > 0 && i > n-4 && !held(i) {
		i--
	}
	if !held(i) {
		i = n - 1
	}
	h.newest, h.to = h.spans[i], latest
	if i+1 < n {
		h.to = h.spans[i+1].start
	}
}

// starts gives where span i begins.
func (h *holder) starts(i int) flow.Time {
	if i == 0 {
		return earliest
	}
	return h.spans[i].start
}

// search gives the first span that begins at t or later, their number if there is none.
func (h *holder) search(t flow.Time) int {
	return sort.Search(len(h.spans), func(i int) bool { return h.starts(i) >= t })
}

// replace puts others in the place of spans [i, j).
func (h *holder) replace(i, j int, spans []span) {
	if n := len(h.spans) - (j - i) + len(spans); n > cap(h.spans) {
		// An even number of them takes whole lines of memory, and so Go places it.
		h.spans = append(make([]span, 0, (n+n/8+1)&^1), h.spans...)
	}
	h.spans = slices.Replace(h.spans, i, j, spans...)
}
