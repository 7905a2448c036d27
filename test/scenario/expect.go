package scenario

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/agnivade/levenshtein"

	"github.com/postern/postern/flow"
)

// expectation is what a line says that a finding, or behind => a verdict, must be.
type expectation struct {
	at     place
	text   string
	kind   expectKind
	times  int // of a finding: so many
	fields []field
}

type expectKind uint8

const (
	expectFinding expectKind = iota // it must come
	expectNone                      // it must not come
	expectAny                       // it may come
)

// field is one KEY OPERATOR VALUE.
type field struct {
	path  []string
	op    string // = != ~= >= <= > <
	value string
	addrs []flow.Addr // where the value is a host's name
}

func (f *field) String() string { return strings.Join(f.path, ".") + f.op + f.value }

// expectation reads: [N|no|any] finding[s] [KEY=VALUE …]; false if it is no such line.
func (p *parser) expectation(words []word) bool {
	e := expectation{at: p.here(), times: 1}
	rest := words
	switch first := words[0].text; first {
	case "finding", "findings":
	case "no":
		e.kind, rest = expectNone, words[1:]
	case "any":
		e.kind, rest = expectAny, words[1:]
	default:
		n, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return false
		}
		if n < 1 || n > 1000 {
			p.wrong(words[0].column, fmt.Sprintf("%q is no number of findings", first), "write a number from 1 to 1000, or: no finding …")
			return true
		}
		e.times, rest = int(n), words[1:]
	}
	if len(rest) == 0 || rest[0].text != "finding" && rest[0].text != "findings" {
		p.wrong(words[0].column, fmt.Sprintf("%q stands before the word finding", words[0].text), "write: finding KEY=VALUE …, 3 findings …, no finding …, any finding …")
		return true
	}
	got, ok := p.fields(rest[1:], true)
	if !ok {
		return true
	}
	if e.fields = got.fields; len(e.fields) == 0 && e.kind == expectFinding {
		p.wrong(words[0].column, "it is not said which finding", "write what it is, as type=policy-violation client=10.1.2.3")
		return true
	}
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(w.text)
	}
	e.text = b.String()
	p.s.expected = append(p.s.expected, e)
	return true
}

// operators, longest first.
var operators = []string{"~=", "!=", ">=", "<=", "=", ">", "<"}

// fields reads KEY=VALUE …, of a finding or else of a judged flow.
func (p *parser) fields(words []word, finding bool) (e expectation, ok bool) {
	e.at = p.here()
	for _, w := range words {
		at, op := -1, ""
		for _, o := range operators {
			if i := strings.Index(w.text, o); i > 0 && (at < 0 || i < at) {
				at, op = i, o
			}
		}
		if at < 0 {
			p.wrong(w.column, fmt.Sprintf("%q is no KEY=VALUE", w.text), "write it as client=10.1.2.3, sentence~=\"a part of it\", count>=3 or severity!=low")
			return e, false
		}
		f := field{path: strings.Split(w.text[:at], "."), op: op, value: w.text[at+len(op):]}
		what, right, known := "a finding", "", true
		if finding {
			right, known = knows(reflect.TypeFor[flow.Finding](), f.path)
		} else if what = "a flow"; len(f.path) != 1 || !slices.Contains(flowKeys(), f.path[0]) {
			right, known = nearestOf(w.text[:at], flowKeys()), false
		}
		if !known {
			p.wrong(w.column, fmt.Sprintf("%s has no %q", what, w.text[:at]), right)
			return e, false
		}
		if len(f.path) == 1 && !p.sensible(&f, w.column+utf8.RuneCountInString(w.text[:at+len(op)]), finding) {
			return e, false
		}
		if h, named := p.s.hosts[f.value]; named {
			f.addrs = h.addrs
		}
		e.fields = append(e.fields, f)
	}
	return e, true
}

// sensible says whether a value is one that a key can have: else a slip of the pen would be
// silence that nothing can break.
func (p *parser) sensible(f *field, column int, finding bool) bool {
	k, exact := f.path[0], f.op != "~=" && f.value != ""
	wrong := ""
	list := vocabulary()[k]
	switch {
	case !exact:
	case k == "type" && finding:
		list, wrong = flow.FindingTypes(), "there is no finding of type %q"
		fallthrough
	case list != nil:
		for v := range strings.SplitSeq(f.value, ",") { // some keys have several
			if !slices.Contains(list, v) {
				p.wrong(column, fmt.Sprintf(cmp.Or(wrong, "%q is no "+k), v), nearestOf(v, list))
				return false
			}
		}
	case (k == "client" || k == "server") && (f.op == "=" || f.op == "!="):
		if _, named := p.s.hosts[f.value]; named {
			return true
		}
		if _, err := flow.ParseAddr(f.value); err != nil {
			p.noHost(column, f.value, "write an address, or the name of a host line above; a part of one with ~=")
			return false
		}
	}
	if _, ordered := compare(f.value, f.value); strings.ContainsAny(f.op, "<>") && !ordered {
		p.wrong(column, fmt.Sprintf("%q has no order", f.value), "compare with a number, a time as 2026-10-03T09:00:00Z or a severity; else write = or !=")
		return false
	}
	return true
}

// vocabulary are the words that a key of a finding or a judged flow can have.
var vocabulary = sync.OnceValue(func() map[string][]string {
	dimensions := (^flow.Dimensions(0)).Texts()
	return map[string][]string{
		"severity": severities, "observed": wordsOf[flow.Observed](), "expected": wordsOf[flow.Expected](), "reason": wordsOf[flow.Reason](),
		"outcome": wordsOf[flow.Outcome](), "failed": dimensions, "missing": dimensions,
	}
})

func wordsOf[T interface {
	~uint8
	String() string
}]() (words []string) {
	for i := range T(math.MaxUint8) {
		if w := i.String(); w != "?" && w != "" {
			words = append(words, w)
		}
	}
	return words
}

// knows says whether a path leads somewhere in a type's JSON; else what would be right.
func knows(t reflect.Type, path []string) (right string, ok bool) {
	for i, key := range path {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch {
		case t == reflect.TypeFor[json.RawMessage]() || t.Kind() == reflect.Map:
			return "", true // whatever is in it
		case t.Kind() == reflect.Slice || t.Kind() == reflect.Array:
			if _, err := strconv.ParseUint(key, 10, 16); err != nil && key != "*" {
				return fmt.Sprintf("%s is a list: write its number or * for any, as %s.0.…", strings.Join(path[:i], "."), strings.Join(path[:i], ".")), false
			}
			t = t.Elem()
		case t.Kind() == reflect.Struct && t != reflect.TypeFor[flow.Time]():
			names, found := jsonFields(t)
			sub, has := found[key]
			if !has {
				return nearestOf(key, names), false
			}
			t = sub
		default:
			return fmt.Sprintf("%s is one value; nothing is inside it", strings.Join(path[:i], ".")), false
		}
	}
	return "", true
}

// nearestOf is advice for who wrote a key that is none of names.
func nearestOf(key string, names []string) string {
	right, best := "write one of "+strings.Join(names, ", "), min(len(key)/3, 2)+1
	if len(key) == 2 {
		best = 2
	}
	for _, n := range names {
		if d := levenshtein.ComputeDistance(n, key); len(key) < 64 && d < best {
			best, right = d, fmt.Sprintf("did you mean %s?", n)
		}
	}
	return right
}

// flowKeys are the names of what a judged flow tells in JSON: those of one that has everything.
var flowKeys = sync.OnceValue(func() []string {
	names := flow.NewNames(0)
	n := names.Intern("x")
	keys := map[string]bool{}
	for _, proto := range []uint8{flow.ProtoTCP, flow.ProtoICMP} {
		r := flow.Record{ID: 1}
		fillAll(reflect.ValueOf(&r).Elem(), n)
		r.Proto, r.Has, r.Oriented, r.Reporter, r.Quality = proto, ^flow.Has(0), flow.Forward, flow.ReporterSource, ^flow.Quality(0)
		var m map[string]any
		if err := json.Unmarshal(r.AppendJSON(nil, names.Texts()), &m); err == nil {
			for k := range m {
				keys[k] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(keys))
})

// fillAll gives every number of a value a one, every name the given one.
func fillAll(v reflect.Value, name flow.Name) {
	switch {
	case v.Type() == reflect.TypeFor[flow.Name]():
		v.Set(reflect.ValueOf(name))
	case v.Kind() == reflect.Struct:
		for _, f := range v.Fields() {
			fillAll(f, name)
		}
	case v.Kind() == reflect.Array:
		for i := range v.Len() {
			fillAll(v.Index(i), name)
		}
	case v.CanInt():
		v.SetInt(1)
	case v.CanUint():
		v.SetUint(1)
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	}
}

// jsonFields are the names of a struct's fields in JSON, in their order, and their types.
func jsonFields(t reflect.Type) (names []string, types map[string]reflect.Type) {
	types = map[string]reflect.Type{}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			inner, more := jsonFields(f.Type)
			names = append(names, inner...)
			maps.Copy(types, more)
			continue
		}
		if name != "" && name != "-" {
			names = append(names, name)
			types[name] = f.Type
		}
	}
	return names, types
}

// unmet is the first field that is not as expected, in words; empty if all are. n is how many
// are not.
func (e *expectation) unmet(m map[string]any) (first string, n int) {
	for i := range e.fields {
		f := &e.fields[i]
		got := reach(m, f.path)
		if slices.ContainsFunc(got, f.holds) {
			continue
		}
		if n++; n == 1 {
			first = fmt.Sprintf("%s is %s, want %s", strings.Join(f.path, "."), strings.Join(quoted(got), " or "), f.want())
		}
	}
	return first, n
}

func (f *field) want() string {
	switch f.op {
	case "=":
		return strconv.Quote(f.value)
	case "~=":
		return "a part that is " + strconv.Quote(f.value)
	case "!=":
		return "anything but " + strconv.Quote(f.value)
	}
	return f.op + " " + f.value
}

func quoted(texts []string) []string {
	const most = 4
	var out []string
	for i, s := range texts {
		if i == most {
			out = append(out, fmt.Sprintf("%d more", len(texts)-most))
			break
		}
		out = append(out, strconv.Quote(s))
	}
	return out
}

// reach gives what stands at a path, as text; * is each of a list. Nothing there is "".
func reach(v any, path []string) []string {
	if len(path) == 0 {
		return []string{shown(v)}
	}
	switch v := v.(type) {
	case map[string]any:
		return reach(v[path[0]], path[1:])
	case []any:
		if path[0] == "*" {
			var out []string
			for _, x := range v {
				out = append(out, reach(x, path[1:])...)
			}
			return out
		}
		if i, err := strconv.Atoi(path[0]); err == nil && i >= 0 && i < len(v) {
			return reach(v[i], path[1:])
		}
	}
	return []string{""}
}

// shown is a JSON value as scenarios write it: a list's members with commas, an object as
// JSON, nothing as "".
func shown(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case []any:
		parts := make([]string, len(v))
		for i := range v {
			parts[i] = shown(v[i])
		}
		return strings.Join(parts, ",")
	case map[string]any:
		b, err := json.Marshal(v)
		if err == nil {
			return string(b)
		}
	}
	return fmt.Sprint(v)
}

var severities = []string{"informational", "low", "medium", "high", "critical"}

// holds compares what is there with what is wanted.
func (f *field) holds(got string) bool {
	equal := got == f.value
	if c, ok := compare(got, f.value); ok && c == 0 {
		equal = true // a time may be written without its milliseconds
	}
	if !equal && len(f.addrs) > 0 {
		a, err := flow.ParseAddr(got)
		equal = err == nil && slices.Contains(f.addrs, a)
	}
	switch f.op {
	case "=":
		return equal
	case "!=":
		return !equal
	case "~=":
		return equal || strings.Contains(got, f.value) || slices.ContainsFunc(f.addrs, func(a flow.Addr) bool { return strings.Contains(got, a.String()) })
	}
	c, ok := compare(got, f.value)
	if !ok {
		return false
	}
	switch f.op {
	case ">=":
		return c >= 0
	case "<=":
		return c <= 0
	case ">":
		return c > 0
	}
	return c < 0
}

// compare orders numbers, severities and times.
func compare(a, b string) (int, bool) {
	x, errX := strconv.ParseFloat(a, 64)
	y, errY := strconv.ParseFloat(b, 64)
	if errX == nil && errY == nil {
		return cmp.Compare(x, y), true
	}
	if i, j := slices.Index(severities, a), slices.Index(severities, b); i >= 0 && j >= 0 {
		return cmp.Compare(i, j), true
	}
	s, errS := time.Parse(time.RFC3339Nano, a)
	t, errT := time.Parse(time.RFC3339Nano, b)
	return s.Compare(t), errS == nil && errT == nil
}
