package enrich

import "github.com/postern/postern/flow"

// dueItem is the next step of a member: to be decided, or once decided to be forgotten.
type dueItem struct {
	at     flow.Time
	id     uint64
	index  int32
	forget bool
}

// before orders the steps: by time; decisions before forgetting, so that whoever
// is decided still sees the halves of its time; then by record, so that the order
// of arrival does not show.
func (a dueItem) before(b dueItem) bool {
	switch {
	case a.at != b.at:
		return a.at < b.at
	case a.forget != b.forget:
		return b.forget
	}
	return a.id < b.id
}

// dueHeap is a binary heap, the earliest step first. container/heap would
// allocate for each step.
type dueHeap []dueItem

func (h *dueHeap) push(d dueItem) {
	s := append(*h, d)
	i := len(s) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !s[i].before(s[up]) {
			break
		}
		s[i], s[up] = s[up], s[i]
		i = up
	}
	*h = s
}

func (h *dueHeap) pop() dueItem {
	s := *h
	first, n := s[0], len(s)-1
	s[0] = s[n]
	s = s[:n]
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < n; c++ {
			if s[c].before(s[least]) {
				least = c
			}
		}
		if least == i {
			break
		}
		s[i], s[least] = s[least], s[i]
		i = least
	}
	*h = s
	return first
}
