package enrich

import (
	"encoding/binary"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// groupSets holds lists of groups, each once, by number; 0 is none. A list is held as long
// as facts have it. All in it is under Identity's lock.
type groupSets struct {
	sets  []groupSet
	free  []uint32
	ids   map[string]uint32
	named map[flow.Name]bool // those that policy names
	key   []byte
}

type groupSet struct {
	names []flow.Name // ascending by text
	refs  int32
	more  bool // cut
	short shortGroups
}

// shortGroups is the part of a list that fits an answer.
type shortGroups struct {
	names [policy.MaxGroups]flow.Name
	more  bool
}

// maxGroupsOfFact bounds the groups of one fact; who is in more has a fault of its own.
const maxGroupsOfFact = 1024

func (g *groupSets) reset() {
	*g = groupSets{sets: make([]groupSet, 1), ids: map[string]uint32{}, named: g.named}
}

// intern gives the number of a list and holds it once more. names is ascending by text.
func (g *groupSets) intern(names []flow.Name, more bool) uint32 {
	if len(names) == 0 && !more {
		return 0
	}
	g.key = g.key[:0]
	for _, n := range names {
		g.key = binary.LittleEndian.AppendUint32(g.key, uint32(n))
	}
	if more {
		g.key = append(g.key, 1)
	}
	id, ok := g.ids[string(g.key)]
	if !ok {
		set := groupSet{names: slices.Clone(names), more: more}
		set.short = g.shorten(&set)
		if n := len(g.free); n > 0 {
			id, g.free = g.free[n-1], g.free[:n-1]
			g.sets[id] = set
		} else {
			id = uint32(len(g.sets))
			g.sets = append(g.sets, set)
		}
		g.ids[string(g.key)] = id
	}
	g.sets[id].refs++
	return id
}

func (g *groupSets) release(id uint32) {
	if id == 0 {
		return
	}
	s := &g.sets[id]
	if s.refs--; s.refs > 0 {
		return
	}
	g.key = g.key[:0]
	for _, n := range s.names {
		g.key = binary.LittleEndian.AppendUint32(g.key, uint32(n))
	}
	if s.more {
		g.key = append(g.key, 1)
	}
	delete(g.ids, string(g.key))
	*s = groupSet{}
	g.free = append(g.free, id)
}

// relevant adds to the groups that policy names.
func (g *groupSets) relevant(names *flow.Names, groups []string) {
	before := len(g.named)
	if g.named == nil {
		g.named = map[flow.Name]bool{}
	}
	for _, t := range groups {
		if n := names.Intern(t); n > flow.OverflowName {
			g.named[n] = true
		}
	}
	if len(g.named) == before {
		return
	}
	for i := range g.sets {
		g.sets[i].short = g.shorten(&g.sets[i])
	}
}

// shorten picks the groups that fit an answer: those that policy names, in order of their
// text; then, while there is room, the others.
func (g *groupSets) shorten(s *groupSet) (short shortGroups) {
	n := 0
	pick := func(named bool) {
		for _, name := range s.names {
			if g.named[name] != named {
				continue
			}
			if n == len(short.names) {
				short.more = short.more || named || len(g.named) == 0
				continue
			}
			short.names[n] = name
			n++
		}
	}
	pick(true)
	pick(false)
	short.more = short.more || s.more
	return short
}

// list adds the groups of a set to those of an answer.
func (g *groupSets) list(set uint32, a *Answer) {
	short := &g.sets[set].short
	if a.Groups[0] == flow.NoName {
		a.Groups = short.names
		a.MoreGroups = a.MoreGroups || short.more
		return
	}
	a.MoreGroups = a.MoreGroups || short.more
	n := 0
	for n < len(a.Groups) && a.Groups[n] != flow.NoName {
		n++
	}
	for _, name := range short.names {
		switch {
		case name == flow.NoName:
			return
		case slices.Contains(a.Groups[:n], name):
		case n == len(a.Groups):
			if !g.displace(name, a) {
				a.MoreGroups = a.MoreGroups || len(g.named) == 0
			}
		default:
			a.Groups[n] = name
			n++
		}
	}
}

// displace puts a group that policy names where one stands that it does not name; more is
// told where there is none.
func (g *groupSets) displace(name flow.Name, a *Answer) bool {
	if !g.named[name] {
		return false
	}
	for i := len(a.Groups) - 1; i >= 0; i-- {
		if !g.named[a.Groups[i]] {
			a.Groups[i] = name
			return true
		}
	}
	a.MoreGroups = true
	return true
}

// namesOfGroups interns a fact's groups, ascending by text, each once.
func (s *Identity) namesOfGroups(groups []string, buf []flow.Name) (names []flow.Name, more bool) {
	// In lower case: directories tell no two groups apart by it, and policy is read so too.
	texts := make([]string, len(groups))
	for i, g := range groups {
		texts[i] = strings.ToLower(g)
	}
	slices.Sort(texts)
	for i, t := range texts {
		if t == "" || i > 0 && t == texts[i-1] {
			continue
		}
		if len(buf) == maxGroupsOfFact {
			s.m.groupsFull.Inc()
			return buf, true
		}
		n := s.names.InternFact(t)
		if n == flow.OverflowName {
			more = true // a group that no longer has a name
			continue
		}
		if !slices.Contains(buf[max(0, len(buf)-1):], n) { // two that were cut to one
			buf = append(buf, n)
		}
	}
	return buf, more
}

// canonicalNames remembers the canonical form of names, so that what agents put in flows
// need not be taken apart each time. Safe for concurrent use.
type canonicalNames struct {
	pages [1 << 9]atomic.Pointer[[4096]atomic.Uint32] // by name: canonical name + 1
}

func (c *canonicalNames) of(s *Identity, name flow.Name) flow.Name {
	if name <= flow.OverflowName {
		return name
	}
	page := int(name >> 12)
	if page >= len(c.pages) {
		return s.canonicalName(name)
	}
	p := c.pages[page].Load()
	if p == nil {
		p = new([4096]atomic.Uint32)
		if !c.pages[page].CompareAndSwap(nil, p) {
			p = c.pages[page].Load()
		}
	}
	if known := p[name&4095].Load(); known != 0 {
		return flow.Name(known - 1)
	}
	canonical := s.canonicalName(name)
	p[name&4095].Store(uint32(canonical) + 1)
	return canonical
}

func (s *Identity) canonicalName(name flow.Name) flow.Name {
	text, kind := s.domains.Principal(s.names.Text(name))
	if kind != flow.PrincipalUser {
		return flow.NoName
	}
	return s.names.InternBytes([]byte(text))
}
