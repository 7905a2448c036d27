package policy

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/postern/postern/flow"
)

// Always is the time from which a policy is in force that was always in force, as
// a bare folder given to replay or check is.
const Always = flow.Time(math.MinInt64)

// History is the versions of a policy, each with the interval [since, until) in
// which it was in force. Readers never lock: they see one immutable timeline or
// the next. Writers take turns.
//
// A version stays until [History.Forget] drops it. Beside the loaded policy it costs
// some 300 KiB for a policy of a few segments and 1.9 MiB for one of 1,000 rules, 500
// exceptions and 2,000 workloads. Tables and rows that are equal to those of the version
// before are shared: where only dates changed a version of the latter costs some 260 KiB
// (tests hold these), so a year of daily changes is 95 MiB, and 690 MiB where prefixes
// change every day.
type History struct {
	names *flow.Names
	cfg   Config

	mu   sync.Mutex // held while a timeline is made
	line atomic.Pointer[timeline]
}

// Interval is one stretch of time in which a version was in force.
type Interval struct {
	Since, Until flow.Time // [Since, Until); the last one's Until is the end of time
	Index        *Index
}

type timeline struct {
	intervals []Interval // by Since
	// forgotten are the exceptions of intervals that were forgotten and when they
	// had last been held; At is the end of the last forgotten interval with them.
	forgotten map[string]Removed
}

// NewHistory makes a history without any version: everything is unverified.
func NewHistory(names *flow.Names, cfg Config) *History {
	h := &History{names: names, cfg: cfg}
	h.line.Store(&timeline{})
	return h
}

// Add puts p in force from since until the next later version; the order of adding
// does not matter. A revert is the same policy added again. Adding what is in force
// then anyway changes nothing; two different versions from the same moment on are
// an error.
func (h *History) Add(p *Policy, since flow.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.line.Load()
	i, taken := slices.BinarySearchFunc(old.intervals, since, func(v Interval, t flow.Time) int {
		switch {
		case v.Since < t:
			return -1
		case v.Since > t:
			return 1
		}
		return 0
	})
	if taken {
		if old.intervals[i].Index.policy.hash == p.hash {
			return nil
		}
		return fmt.Errorf("policy: version %s is in force from %v on already; version %s needs another moment", old.intervals[i].Index.policy.Version(), since, p.Version())
	}
	if i > 0 && old.intervals[i-1].Index.policy.hash == p.hash {
		return nil
	}
	intervals := slices.Clone(old.intervals)
	intervals = slices.Insert(intervals, i, Interval{Since: since})
	if i > 0 {
		intervals[i-1].Until = since
	}
	intervals[i].Until = maxTime
	if i+1 < len(intervals) {
		intervals[i].Until = intervals[i+1].Since
	}
	// What was removed depends on every earlier version, so later ones are made anew.
	policies := make([]*Policy, len(intervals))
	for j := range intervals {
		if j == i {
			policies[j] = p
		} else {
			policies[j] = intervals[j].Index.policy
		}
	}
	for j := i; j < len(intervals); j++ {
		intervals[j].Index = Compile(policies[j], h.names, h.cfg, old.removed(intervals, policies, j, h.cfg)...)
		if j > 0 {
			intervals[j].Index.share(intervals[j-1].Index)
		}
		intervals[j].holds(intervals[:j])
	}
	h.line.Store(&timeline{intervals, old.forgotten})
	return nil
}

// removed lists the exceptions that versions before interval k held and k does
// not, and the moment each was removed. What was never approved while it stood in
// the files leaves nothing behind, and what ended too long ago neither.
func (l *timeline) removed(intervals []Interval, policies []*Policy, k int, cfg Config) (out []Removed) {
	last := map[string]Removed{}
	maps.Copy(last, l.forgotten)
	for j := range k {
		for i := range policies[j].Exceptions {
			e := &policies[j].Exceptions[i]
			last[e.ID] = Removed{e, intervals[j].Until}
		}
	}
	for i := range policies[k].Exceptions {
		delete(last, policies[k].Exceptions[i].ID)
	}
	for _, id := range keysOf(last) {
		r := last[id]
		at, approved := r.Exception.ApprovedAt()
		if approved && at < r.At && addTime(min(r.Exception.End(), r.At), cfg.ImplicateFor) > intervals[k].Since {
			out = append(out, r)
		}
	}
	return out
}

// Forget drops the intervals that ended at or before t, so that memory stays
// bounded; flows from before the first interval left are unverified. Exceptions of
// dropped versions stay implicated. The newest interval is never dropped.
func (h *History) Forget(t flow.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := h.line.Load()
	n := 0
	for n < len(old.intervals)-1 && old.intervals[n].Until <= t {
		n++
	}
	if n == 0 {
		return
	}
	forgotten := map[string]Removed{}
	for id, r := range old.forgotten {
		if addTime(min(r.Exception.End(), r.At), h.cfg.ImplicateFor) > t {
			forgotten[id] = r
		}
	}
	for _, v := range old.intervals[:n] {
		for i := range v.Index.policy.Exceptions {
			e := &v.Index.policy.Exceptions[i]
			forgotten[e.ID] = Removed{e, v.Until}
		}
	}
	h.line.Store(&timeline{slices.Clone(old.intervals[n:]), forgotten})
}

// Fork gives a history that holds the same versions now and goes its own way from
// here. It costs next to nothing: versions are immutable and shared.
func (h *History) Fork() *History {
	f := &History{names: h.names, cfg: h.cfg}
	f.line.Store(h.line.Load())
	return f
}

// At is the version in force at t, nil if there was none.
func (h *History) At(t flow.Time) *Index { return h.line.Load().at(t) }

func (l *timeline) at(t flow.Time) *Index {
	// Nearly every flow is of now.
	for _, v := range slices.Backward(l.intervals) {
		if t >= v.Since {
			return v.Index
		}
	}
	return nil
}

// Interval is the stretch of time around t in which one version was in force; ok is false if
// none was.
func (h *History) Interval(t flow.Time) (v Interval, ok bool) {
	for _, v := range slices.Backward(h.line.Load().intervals) {
		if t >= v.Since {
			return v, true
		}
	}
	return Interval{}, false
}

// Latest is the newest version, nil if there is none.
func (h *History) Latest() *Index { return h.At(maxTime) }

// Intervals lists the versions by the time they came into force.
func (h *History) Intervals() []Interval { return slices.Clone(h.line.Load().intervals) }
