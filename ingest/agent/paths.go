package agent

import (
	"slices"
	"strconv"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// paths are places in JSON objects, put together so that one pass over an object finds what is
// at each. Looking for one place after another costs more than reading the JSON does: of the
// fields that a format may have, a line has some.
type paths struct {
	root  pathNode
	count int // of places
	edges int
	lists bool // some way may lead through a list
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
		p.lists = true
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

// value is what is at a place.
type value struct {
	kind valueKind
	text []byte          // of a text what it says, of a number or a truth value how it is written
	node *fastjson.Value // of a list or an object
}

type valueKind uint8

const (
	valueNone valueKind = iota // nothing, or null
	valueText
	valueNumber
	valueTruth
	valueNode
)

// noted is a value that a pass has found, on a way of that rank.
type noted struct {
	value
	rank int
	pass uint64
}

// found is what is at places in the object that was read last. It is not safe for concurrent use.
type found struct {
	paths   *paths
	values  []noted // by place
	none    value
	seen    []uint64 // the last pass that came by an edge
	pass    uint64
	written []byte            // numbers and truth values of a tree
	parsers []fastjson.Parser // by place, of what is not plain in a line that is scanned
}

func (p *paths) new() *found {
	return &found{paths: p, values: make([]noted, p.count), seen: make([]uint64, p.edges), parsers: make([]fastjson.Parser, p.count)}
}

// at is what is at a place. It holds until the next object is read, and as long as that one's line.
func (f *found) at(place int) *value {
	if n := &f.values[place]; n.pass == f.pass {
		return &n.value
	}
	return &f.none
}

// read looks through an object.
func (f *found) read(v *fastjson.Value) {
	f.begin()
	f.walk(&f.paths.root, v)
}

func (f *found) begin() {
	f.pass++
	f.written = f.written[:0]
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
	if !f.first(e) {
		return
	}
	if e.place >= 0 && f.better(e) {
		f.note(e, f.value(v))
	}
	if e.next != nil {
		f.walk(e.next, v)
	}
}

// first says whether an edge is come by for the first time.
func (f *found) first(e *pathEdge) bool {
	if f.seen[e.number] == f.pass {
		return false
	}
	f.seen[e.number] = f.pass
	return true
}

// better says whether an edge is a better way to its place than what was found there.
func (f *found) better(e *pathEdge) bool {
	n := &f.values[e.place]
	return n.pass != f.pass || e.rank < n.rank
}

func (f *found) note(e *pathEdge, v value) {
	if v.kind != valueNone {
		f.values[e.place] = noted{v, e.rank, f.pass}
	}
}

// value is a member of a tree.
func (f *found) value(v *fastjson.Value) value {
	if v == nil {
		return value{}
	}
	switch v.Type() {
	case fastjson.TypeString:
		return value{kind: valueText, text: v.GetStringBytes()}
	case fastjson.TypeNumber, fastjson.TypeTrue, fastjson.TypeFalse:
		n := len(f.written)
		f.written = v.MarshalTo(f.written)
		kind := valueNumber
		if v.Type() != fastjson.TypeNumber {
			kind = valueTruth
		}
		return value{kind: kind, text: f.written[n:len(f.written):len(f.written)]}
	case fastjson.TypeArray, fastjson.TypeObject:
		return value{kind: valueNode, node: v}
	}
	return value{}
}

// str is the text of a place; nil if it is none.
func (f *found) str(place int) []byte {
	if v := f.at(place); v.kind == valueText {
		return v.text
	}
	return nil
}

// said is the text of a place; nil if it is none or stands for nothing.
func (f *found) said(place int) []byte { return said(f.str(place)) }

// firstSaid is the text of the first of several places that says something.
func (f *found) firstSaid(places ...int) []byte {
	for _, p := range places {
		if b := f.said(p); b != nil {
			return b
		}
	}
	return nil
}

// num is [num] of a place.
func (f *found) num(place int) (uint64, bool) {
	switch v := f.at(place); v.kind {
	case valueNumber:
		return whole64(v.text)
	case valueText:
		return atou(v.text)
	}
	return 0, false
}

// moment is [moment] of a place, by the name of its member.
func (f *found) moment(place int, name string) (flow.Time, error) {
	v := f.at(place)
	if v.kind == valueNone {
		return 0, nil
	}
	t, ok := when(f.str(place))
	if !ok {
		return 0, fieldError(name, v.shown(), wantMoment)
	}
	return t, nil
}

// has says whether a place is a word or a list of words with that in it.
func (f *found) has(place int, word string) bool {
	v := f.at(place)
	if v.kind == valueText {
		return string(v.text) == word
	}
	for _, w := range v.node.GetArray() {
		if string(str(w)) == word {
			return true
		}
	}
	return false
}

// shown is a value as errors show it.
func (v *value) shown() []byte {
	if v.kind == valueNode {
		return shown(v.node)
	}
	return v.text
}

// truth is a truth value; ok is false if it is none.
func (v *value) truth() (yes, ok bool) { return string(v.text) == "true", v.kind == valueTruth }

// ofPaths makes the reader of a format whose lines are JSON objects that it reads members of.
func ofPaths(p *paths, read func(f *found, e *entry) error) func(*Decoder) parser {
	return func(d *Decoder) parser {
		f := p.new()
		return func(line []byte, e *entry) error {
			if !f.scan(line) {
				v, err := d.object(line)
				if err != nil {
					return err
				}
				f.read(v)
			}
			return read(f, e)
		}
	}
}
