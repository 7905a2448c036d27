package agent

import (
	"bytes"
	"slices"
	"strconv"

	"github.com/itchyny/gojq"
	"github.com/valyala/fastjson"
	"github.com/valyala/fastjson/fastfloat"
)

// direct is a jq program that needs no jq: paths, alternatives, comparisons and the like, which
// is what most mappings are made of. It reads the line where gojq has to be given a copy of it.
// ok is false where gojq has to run after all: the program would fail, or comes upon
// something that is not worth knowing here. What it gives is what gojq gives first.
type direct func(l *customLine, in jqValue) (out jqValue, ok bool)

// jqValue is a value as a direct program sees it.
type jqValue struct {
	kind jqKind
	n    int
	text []byte
	node *fastjson.Value
}

type jqKind uint8

const (
	jqEmpty jqKind = iota // no value at all
	jqNull
	jqFalse
	jqTrue
	jqInt  // n
	jqText // text
	jqNode // node: an object, a list or a number with a fraction
	jqLine // the line, where it is no tree
)

// holds says whether jq takes a value for true.
func (v jqValue) holds() bool { return v.kind > jqFalse }

func jqBool(b bool) jqValue {
	if b {
		return jqValue{kind: jqTrue}
	}
	return jqValue{kind: jqFalse}
}

// jqOf is a member as a value: what [treeOf] makes of it.
func jqOf(v *fastjson.Value) jqValue {
	switch v.Type() {
	case fastjson.TypeNull:
		return jqValue{kind: jqNull}
	case fastjson.TypeFalse, fastjson.TypeTrue:
		return jqBool(v.Type() == fastjson.TypeTrue)
	case fastjson.TypeString:
		return jqValue{kind: jqText, text: v.GetStringBytes()}
	case fastjson.TypeNumber:
		if n, err := v.Int(); err == nil {
			return jqValue{kind: jqInt, n: n}
		}
	}
	return jqValue{kind: jqNode, node: v}
}

// inLine is a member of a line of which not more was read than programs ask for.
func (l *customLine) inLine(name string) (out jqValue, ok bool) {
	switch v := l.found.at(slices.Index(l.f.plain, name)); v.kind {
	case valueNone:
		return jqValue{kind: jqNull}, true
	case valueText:
		return jqValue{kind: jqText, text: v.text}, true
	case valueTruth:
		yes, _ := v.truth()
		return jqBool(yes), true
	case valueNode:
		return jqValue{kind: jqNode, node: v.node}, true
	case valueNumber:
		n, err := fastfloat.ParseInt64(text(v.text))
		return jqValue{kind: jqInt, n: int(n)}, err == nil && int64(int(n)) == n
	}
	return out, false
}

// input is the line as a value.
func (l *customLine) input() jqValue {
	if l.json != nil {
		return jqOf(l.json)
	}
	return jqValue{kind: jqLine}
}

// member is the value of a member. Of several of a name the last counts, as in the tree that
// gojq is given; of pairs the first.
func (v jqValue) member(l *customLine, key string) (out jqValue, ok bool) {
	out.kind = jqNull
	switch {
	case v.kind == jqNull:
		return v, true
	case v.kind == jqNode && v.node.Type() == fastjson.TypeObject:
		v.node.GetObject().Visit(func(k []byte, m *fastjson.Value) {
			if string(k) == key {
				out.node = m
			}
		})
		if out.node != nil {
			out = jqOf(out.node)
		}
		return out, true
	case v.kind == jqLine && l.f.json:
		return l.inLine(key)
	case v.kind == jqLine && l.f.pairs:
		if i := slices.IndexFunc(l.keys, func(k []byte) bool { return string(k) == key }); i >= 0 {
			out = jqValue{kind: jqText, text: l.parts[i]}
		}
		return out, true
	case v.kind == jqLine:
		for i, c := range slices.Backward(l.columns) {
			if c == key {
				return jqValue{kind: jqText, text: l.parts[i]}, true
			}
		}
		return out, true
	}
	return out, false
}

// element is the value of an element of a list, from the end where i is below zero.
func (v jqValue) element(i int) (out jqValue, ok bool) {
	switch {
	case v.kind == jqNull:
		return v, true
	case v.kind == jqNode && v.node.Type() == fastjson.TypeArray:
		list := v.node.GetArray()
		if i < 0 {
			i += len(list)
		}
		if i < 0 || i >= len(list) {
			return jqValue{kind: jqNull}, true
		}
		return jqOf(list[i]), true
	}
	return out, false
}

// appendText appends a value as tostring writes it.
func (v jqValue) appendText(b []byte) ([]byte, bool) {
	switch v.kind {
	case jqNull:
		return append(b, "null"...), true
	case jqFalse, jqTrue:
		return strconv.AppendBool(b, v.kind == jqTrue), true
	case jqInt:
		return strconv.AppendInt(b, int64(v.n), 10), true
	case jqText:
		return append(b, v.text...), true
	}
	return b, false
}

// compileDirect makes a direct program; nil if it takes gojq. No function of the program's own
// gets here, so that names mean what jq gave them.
func compileDirect(q *gojq.Query) direct {
	if q == nil || len(q.FuncDefs) > 0 || len(q.Patterns) > 0 {
		return nil
	}
	if q.Term != nil {
		return directTerm(q.Term)
	}
	a, b := compileDirect(q.Left), compileDirect(q.Right)
	if a == nil || b == nil {
		return nil
	}
	switch q.Op {
	case gojq.OpPipe:
		return func(l *customLine, in jqValue) (jqValue, bool) {
			v, ok := a(l, in)
			if !ok || v.kind == jqEmpty {
				return v, ok
			}
			return b(l, v)
		}
	case gojq.OpAlt:
		return func(l *customLine, in jqValue) (jqValue, bool) {
			v, ok := a(l, in)
			if !ok || v.holds() {
				return v, ok
			}
			return b(l, in)
		}
	case gojq.OpAnd, gojq.OpOr:
		return func(l *customLine, in jqValue) (jqValue, bool) {
			v, ok := a(l, in)
			if !ok || v.kind == jqEmpty {
				return v, ok
			}
			if v.holds() == (q.Op == gojq.OpOr) {
				return jqBool(v.holds()), true
			}
			v, ok = b(l, in)
			if !ok || v.kind == jqEmpty {
				return v, ok
			}
			return jqBool(v.holds()), true
		}
	case gojq.OpEq, gojq.OpNe:
		return directOperator(a, b, func(_ *customLine, v, w jqValue) (jqValue, bool) {
			if max(v.kind, w.kind) >= jqNode && min(v.kind, w.kind) >= jqInt && min(v.kind, w.kind) != jqText {
				return v, false // two objects or lists, or two numbers
			}
			equal := v.kind == w.kind && v.n == w.n && bytes.Equal(v.text, w.text)
			return jqBool(equal == (q.Op == gojq.OpEq)), true
		})
	case gojq.OpAdd:
		return directOperator(a, b, directAdd)
	}
	return nil
}

// directOperator takes the values of both its sides.
func directOperator(a, b direct, of func(l *customLine, v, w jqValue) (jqValue, bool)) direct {
	return func(l *customLine, in jqValue) (jqValue, bool) {
		v, ok := a(l, in)
		w, right := b(l, in)
		switch {
		case !ok || !right:
			return v, false
		case v.kind == jqEmpty || w.kind == jqEmpty:
			return jqValue{}, true
		}
		return of(l, v, w)
	}
}

func directAdd(l *customLine, v, w jqValue) (jqValue, bool) {
	switch {
	case v.kind == jqNull:
		return w, true
	case w.kind == jqNull:
		return v, true
	case v.kind != jqText || w.kind != jqText:
		return v, false
	}
	from := len(l.text)
	l.text = append(append(l.text, v.text...), w.text...)
	return jqValue{kind: jqText, text: l.text[from:len(l.text):len(l.text)]}, true
}

// directTerm makes a direct program of a term and what follows it.
func directTerm(t *gojq.Term) direct {
	d := directHead(t)
	for _, s := range t.SuffixList {
		switch {
		case d == nil || s.Iter:
			return nil
		case s.Index != nil:
			d = directIndex(d, s.Index)
		} // a question mark bears on errors only
	}
	return d
}

func directHead(t *gojq.Term) direct {
	switch t.Type {
	case gojq.TermTypeIdentity:
		return func(_ *customLine, in jqValue) (jqValue, bool) { return in, true }
	case gojq.TermTypeIndex:
		return directIndex(func(_ *customLine, in jqValue) (jqValue, bool) { return in, true }, t.Index)
	case gojq.TermTypeNull:
		return directConstant(jqValue{kind: jqNull})
	case gojq.TermTypeFalse, gojq.TermTypeTrue:
		return directConstant(jqBool(t.Type == gojq.TermTypeTrue))
	case gojq.TermTypeNumber, gojq.TermTypeUnary:
		if n, ok := wholeNumber(&gojq.Term{Type: t.Type, Number: t.Number, Unary: t.Unary}); ok {
			return directConstant(jqValue{kind: jqInt, n: n})
		}
	case gojq.TermTypeString:
		return directString(t.Str)
	case gojq.TermTypeQuery:
		return compileDirect(t.Query)
	case gojq.TermTypeTry:
		return compileDirect(t.Try.Body)
	case gojq.TermTypeIf:
		return directIf(t.If.Cond, t.If.Then, t.If.Elif, t.If.Else)
	case gojq.TermTypeFunc:
		return directFunc(t.Func)
	}
	return nil
}

func directConstant(v jqValue) direct {
	return func(*customLine, jqValue) (jqValue, bool) { return v, true }
}

// wholeNumber is what a term is that is written as a whole number.
func wholeNumber(t *gojq.Term) (n int, ok bool) {
	if t == nil || len(t.SuffixList) > 0 {
		return 0, false
	}
	if t.Type == gojq.TermTypeUnary && t.Unary.Op == gojq.OpSub {
		n, ok = wholeNumber(t.Unary.Term)
		return -n, ok
	}
	if t.Type != gojq.TermTypeNumber || len(t.Number) > 9 {
		return 0, false
	}
	n, err := strconv.Atoi(t.Number)
	return n, err == nil
}

// directIndex goes on to a member or an element that the program names.
func directIndex(of direct, x *gojq.Index) direct {
	key, named := x.Name, x.Name != ""
	switch {
	case named || x.IsSlice:
	case x.Str != nil:
		key, named = x.Str.Str, x.Str.Queries == nil
	case x.Start != nil && x.Start.Term != nil && x.Start.Term.Type == gojq.TermTypeString:
		t := x.Start.Term
		key, named = t.Str.Str, t.Str.Queries == nil && len(t.SuffixList) == 0
	case x.Start != nil:
		i, ok := wholeNumber(x.Start.Term)
		if !ok {
			return nil
		}
		return func(l *customLine, in jqValue) (jqValue, bool) {
			v, ok := of(l, in)
			if !ok || v.kind == jqEmpty {
				return v, ok
			}
			return v.element(i)
		}
	}
	if !named {
		return nil
	}
	return func(l *customLine, in jqValue) (jqValue, bool) {
		v, ok := of(l, in)
		if !ok || v.kind == jqEmpty {
			return v, ok
		}
		return v.member(l, key)
	}
}

// directString is a text, with what is put into it.
func directString(s *gojq.String) direct {
	if s.Queries == nil {
		return directConstant(jqValue{kind: jqText, text: []byte(s.Str)})
	}
	parts := make([]direct, len(s.Queries))
	for i, q := range s.Queries {
		if parts[i] = compileDirect(q); parts[i] == nil {
			return nil
		}
	}
	return func(l *customLine, in jqValue) (jqValue, bool) {
		values := make([]jqValue, 0, 8)
		empty := false
		for _, p := range parts {
			v, ok := p(l, in)
			if !ok {
				return v, false
			}
			empty = empty || v.kind == jqEmpty
			values = append(values, v)
		}
		if empty {
			return jqValue{}, true
		}
		from := len(l.text)
		for _, v := range values {
			var ok bool
			if l.text, ok = v.appendText(l.text); !ok {
				return v, false
			}
		}
		return jqValue{kind: jqText, text: l.text[from:len(l.text):len(l.text)]}, true
	}
}

func directIf(cond, then *gojq.Query, elif []*gojq.IfElif, otherwise *gojq.Query) direct {
	c, a := compileDirect(cond), compileDirect(then)
	var b direct
	switch {
	case len(elif) > 0:
		b = directIf(elif[0].Cond, elif[0].Then, elif[1:], otherwise)
	case otherwise != nil:
		b = compileDirect(otherwise)
	default:
		b = func(_ *customLine, in jqValue) (jqValue, bool) { return in, true }
	}
	if c == nil || a == nil || b == nil {
		return nil
	}
	return func(l *customLine, in jqValue) (jqValue, bool) {
		v, ok := c(l, in)
		switch {
		case !ok || v.kind == jqEmpty:
			return v, ok
		case v.holds():
			return a(l, in)
		}
		return b(l, in)
	}
}

func directFunc(f *gojq.Func) direct {
	if f.Name == "select" && len(f.Args) == 1 {
		empty := &gojq.Query{Term: &gojq.Term{Type: gojq.TermTypeFunc, Func: &gojq.Func{Name: "empty"}}}
		identity := &gojq.Query{Term: &gojq.Term{Type: gojq.TermTypeIdentity}}
		return directIf(f.Args[0], identity, nil, empty)
	}
	if len(f.Args) > 0 {
		return nil
	}
	switch f.Name {
	case "empty":
		return directConstant(jqValue{})
	case "not":
		return func(_ *customLine, in jqValue) (jqValue, bool) { return jqBool(!in.holds()), true }
	case "tostring":
		return func(l *customLine, in jqValue) (jqValue, bool) {
			from := len(l.text)
			var ok bool
			l.text, ok = in.appendText(l.text)
			return jqValue{kind: jqText, text: l.text[from:len(l.text):len(l.text)]}, ok
		}
	case "ascii_downcase":
		return directCase('A', 'Z')
	case "ascii_upcase":
		return directCase('a', 'z')
	}
	return nil
}

// directCase turns the letters of a range into those of the other case. Of what is not ASCII
// gojq mends what is no UTF-8; that is left to it.
func directCase(first, last byte) direct {
	return func(l *customLine, in jqValue) (jqValue, bool) {
		if in.kind != jqText {
			return in, false
		}
		from := len(l.text)
		for _, c := range in.text {
			switch {
			case c >= 0x80:
				return in, false
			case c >= first && c <= last:
				c ^= 'a' - 'A'
			}
			l.text = append(l.text, c)
		}
		return jqValue{kind: jqText, text: l.text[from:len(l.text):len(l.text)]}, true
	}
}
