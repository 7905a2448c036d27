package agent

import (
	"slices"
	"strconv"

	"github.com/valyala/fastjson"
)

// paths are places in JSON objects, put together so that one pass over an object finds what is
// at each. Looking for one place after another costs more than reading the JSON does: of the
// fields that a format may have, a line has some.
type paths struct {
	root  pathNode
	count int // of places
	edges int
}

// pathNode is an object or a list on the way to a place.
type pathNode struct {
	byLength [][]*pathEdge // members, by the length of their names
	elements []*pathEdge   // those whose name is also the number of an element of a list
}

// pathEdge is a member of an object or an element of a list.
type pathEdge struct {
	key     string
	element int
	number  int // among all edges
	place   int // what is found here; -1 if it is only on the way
	rank    int // of this way to the place: the lowest that leads to something counts
	next    *pathNode
}

// add adds a place that several ways lead to, the best first, and gives its number. A way is
// names of members, one inside the other. Each place can be added once.
func (p *paths) add(ways ...[]string) int {
	for rank, way := range ways {
		n := &p.root
		for i, key := range way {
			e := n.edge(key, p)
			if i == len(way)-1 {
				e.place, e.rank = p.count, rank
				break
			}
			if e.next == nil {
				e.next = &pathNode{}
			}
			n = e.next
		}
	}
	p.count++
	return p.count - 1
}

// edge finds or adds a member.
func (n *pathNode) edge(key string, p *paths) *pathEdge {
	if missing := len(key) + 1 - len(n.byLength); missing > 0 {
		n.byLength = append(n.byLength, make([][]*pathEdge, missing)...)
	}
	same := &n.byLength[len(key)]
	if i := slices.IndexFunc(*same, func(e *pathEdge) bool { return e.key == key }); i >= 0 {
		return (*same)[i]
	}
	e := &pathEdge{key: key, number: p.edges, place: -1}
	p.edges++
	*same = append(*same, e)
	if i, err := strconv.Atoi(key); err == nil && i >= 0 {
		e.element = i
		n.elements = append(n.elements, e)
	}
	return e
}

// maxDots bounds the dots of a path that [digWays] can tell the ways of: each doubles them.
const maxDots = 6

// digWays are the ways on which [dig] looks for a path, in its order.
func digWays(path string) [][]string {
	ways := [][]string{{path}}
	for i := range len(path) {
		if path[i] == '.' {
			for _, rest := range digWays(path[i+1:]) {
				ways = append(ways, append([]string{path[:i]}, rest...))
			}
		}
	}
	return ways
}

// found is what is at places in the object that was read last. It is not safe for concurrent use.
type found struct {
	paths *paths
	at    []*fastjson.Value // by place; nil where there is nothing or null
	ranks []int
	seen  []uint64 // the last pass that came by an edge
	pass  uint64
}

func (p *paths) new() *found {
	return &found{paths: p, at: make([]*fastjson.Value, p.count), ranks: make([]int, p.count), seen: make([]uint64, p.edges)}
}

// read looks through an object.
func (f *found) read(v *fastjson.Value) {
	f.pass++
	clear(f.at)
	f.walk(&f.paths.root, v)
}

func (f *found) walk(n *pathNode, v *fastjson.Value) {
	if o := v.GetObject(); o != nil {
		o.Visit(func(key []byte, m *fastjson.Value) {
			if len(key) >= len(n.byLength) {
				return
			}
			for _, e := range n.byLength[len(key)] {
				if string(key) == e.key {
					f.take(e, m)
					return
				}
			}
		})
		return
	}
	if len(n.elements) > 0 {
		list := v.GetArray()
		for _, e := range n.elements {
			if e.element < len(list) {
				f.take(e, list[e.element])
			}
		}
	}
}

// take is at an edge. Of several members of a name the first counts.
func (f *found) take(e *pathEdge, v *fastjson.Value) {
	if f.seen[e.number] == f.pass {
		return
	}
	f.seen[e.number] = f.pass
	if p := e.place; p >= 0 && (f.at[p] == nil || e.rank < f.ranks[p]) && v.Type() != fastjson.TypeNull {
		f.at[p], f.ranks[p] = v, e.rank
	}
	if e.next != nil {
		f.walk(e.next, v)
	}
}

// said is the text of a place; nil if it is none or stands for nothing.
func (f *found) said(place int) []byte { return said(str(f.at[place])) }

// first is the text of the first of several places that says something.
func (f *found) first(places ...int) []byte {
	for _, p := range places {
		if b := f.said(p); b != nil {
			return b
		}
	}
	return nil
}

// ofPaths makes the reader of a format whose lines are JSON objects that it reads members of.
func ofPaths(p *paths, read func(f *found, e *entry) error) func(*Decoder) parser {
	return func(d *Decoder) parser {
		f := p.new()
		return ofJSON(func(v *fastjson.Value, e *entry) error {
			f.read(v)
			return read(f, e)
		})(d)
	}
}
