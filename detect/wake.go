package detect

import (
	"cmp"
	"container/heap"
	"maps"
	"slices"

	"github.com/postern/postern/flow"
)

// With a million hosts tens of thousands of findings wait for the hour to be told again, and each
// segment adds to a few. So a segment looks at those it added to and at those whose time has come.

// wakes are findings that wait to be told again, by when that may be.
type wakes []wake

type wake struct {
	at flow.Time
	f  *finding
}

func (w wakes) Len() int           { return len(w) }
func (w wakes) Less(i, j int) bool { return w[i].at < w[j].at }
func (w wakes) Swap(i, j int)      { w[i], w[j] = w[j], w[i] }
func (w *wakes) Push(x any)        { *w = append(*w, x.(wake)) }
func (w *wakes) Pop() any {
	last := len(*w) - 1
	x := (*w)[last]
	(*w)[last] = wake{}
	*w = (*w)[:last]
	return x
}

// awake gives, by id, the pending findings that may have to be told now: those that were touched,
// those that are due, those that closed, and those of which a suppression may begin or end.
func (d *book) awake(touched []*finding, all bool) []*finding {
	var some []*finding
	if all {
		some = slices.Collect(maps.Keys(d.pending))
	} else {
		some = append(append(some, touched...), d.woken...)
		for len(d.waiting) > 0 && d.waiting[0].at <= d.clock {
			f := heap.Pop(&d.waiting).(wake).f
			f.waits = false
			some = append(some, f)
		}
		some = slices.DeleteFunc(some, func(f *finding) bool { _, pending := d.pending[f]; return !pending })
	}
	d.woken = nil
	slices.SortFunc(some, func(a, b *finding) int { return cmp.Compare(a.ID, b.ID) })
	return slices.Compact(some)
}

// wait has a finding that is still pending looked at again when it may be told.
func (d *book) wait(f *finding) {
	switch _, pending := d.pending[f]; {
	case !pending:
	case f.Suppressed > 0:
		d.woken = append(d.woken, f)
	case !f.waits:
		f.waits = true
		heap.Push(&d.waiting, wake{f.ToldAt + d.updateEvery, f})
	}
}

// unwait drops what was forgotten from what waits.
func (d *book) unwait() {
	d.waiting = slices.DeleteFunc(d.waiting, func(w wake) bool {
		_, pending := d.pending[w.f]
		w.f.waits = pending
		return !pending
	})
	heap.Init(&d.waiting)
}
