package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/itchyny/gojq"
	"github.com/valyala/fastjson"
	"github.com/valyala/fastjson/fastfloat"
)

// customPath is where a value is found: at a plain path, in a program's first result, or in the
// configuration itself.
type customPath struct {
	plain    string
	place    int  // of the plain path, among those of the format
	deep     bool // it has more parts than are looked for at a time
	constant []byte
	code     *gojq.Code
	direct   direct // the program without gojq; nil if it takes that
	reads    jqReads

	// A condition may compare a plain path.
	compare  bool
	negate   bool
	compared []byte
}

// compilePath compiles a plain path, a text in quotes or a jq program.
func compilePath(s string) (*customPath, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, errors.New("it is empty; want a path such as src.ip, a text in quotes or a jq program")
	}
	if p, ok := plainPath(s); ok {
		return &customPath{plain: p}, nil
	}
	var constant string
	if s[0] == '"' && !strings.Contains(s, `\(`) && json.Unmarshal([]byte(s), &constant) == nil {
		return &customPath{constant: []byte(constant)}, nil
	}
	return compileJQ(s)
}

// plainPath takes a path of plain names, with or without the dot that jq begins them with.
func plainPath(s string) (string, bool) {
	dot := strings.HasPrefix(s, ".")
	s = strings.TrimPrefix(s, ".")
	var quoted string // ."Source IP"
	if len(s) > 1 && s[0] == '"' && json.Unmarshal([]byte(s), &quoted) == nil {
		return quoted, dot && !strings.Contains(s, `\(`)
	}
	for part := range strings.SplitSeq(s, ".") {
		if part == "" {
			return "", false
		}
		for _, c := range []byte(part) {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' && c != '@' {
				return "", false
			}
		}
	}
	return s, true
}

// compileCondition compiles a condition; that a plain path equals a text or a whole number
// needs no jq.
func compileCondition(s string) (*customPath, error) {
	for _, op := range [...]string{"==", "!="} {
		left, right, ok := strings.Cut(s, op)
		if !ok {
			continue
		}
		path, ok := plainPath(strings.TrimSpace(left))
		right = strings.TrimSpace(right)
		if !ok {
			break
		}
		c := &customPath{plain: path, compare: true, negate: op == "!="}
		var word string
		if _, err := strconv.ParseUint(right, 10, 53); err == nil {
			c.compared = []byte(right)
			return c, nil
		}
		if len(right) > 1 && right[0] == '"' && !strings.Contains(right, `\(`) && json.Unmarshal([]byte(right), &word) == nil {
			c.compared = []byte(word)
			return c, nil
		}
		break
	}
	if p, ok := plainPath(strings.TrimSpace(s)); ok {
		return &customPath{plain: p}, nil
	}
	return compileJQ(s)
}

// jqRefused are functions that depend on something other than the line.
var jqRefused = map[string]string{
	"now": "a clock", "localtime": "this machine's zone", "strflocaltime": "this machine's zone",
	"env": "the environment", "$ENV": "the environment", "input": "another input", "inputs": "another input",
	"debug": "standard error", "stderr": "standard error", "input_filename": "another input", "input_line_number": "another input",
	"halt": "the process", "halt_error": "the process", "get_search_list": "files", "modulemeta": "files",
}

// compileJQ compiles a program that sees its line and nothing else.
func compileJQ(s string) (*customPath, error) {
	q, err := gojq.Parse(s)
	if err != nil {
		if p, ok := errors.AsType[*gojq.ParseError](err); ok {
			before := s[:min(max(p.Offset-len(p.Token), 0), len(s))]
			return nil, fmt.Errorf("no jq program, at its line %d, column %d: %w; want a path such as src.ip, a text in quotes or a jq program",
				strings.Count(before, "\n")+1, len(before)-strings.LastIndexByte(before, '\n'), err)
		}
		return nil, fmt.Errorf("no jq program: %w; want a path such as src.ip, a text in quotes or a jq program", err)
	}
	if len(q.Imports) > 0 || q.Meta != nil {
		return nil, errors.New("the jq program imports a module; want one that stands by itself")
	}
	if name := refusedIn(reflect.ValueOf(q)); name != "" {
		return nil, fmt.Errorf("the jq program uses %s, which needs %s; want one that depends on the line alone", name, jqRefused[name])
	}
	p := &customPath{direct: compileDirect(q)} // before Compile, which may alter q
	p.reads.query(q)
	if p.code, err = gojq.Compile(q); err != nil {
		return nil, fmt.Errorf("no jq program: %w", err)
	}
	return p, nil
}

// refusedIn looks through a program for a function that is refused.
func refusedIn(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return ""
		}
		if f, ok := reflect.TypeAssert[*gojq.Func](v); ok && jqRefused[f.Name] != "" {
			return f.Name
		}
		return refusedIn(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				if name := refusedIn(v.Field(i)); name != "" {
					return name
				}
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if name := refusedIn(v.Index(i)); name != "" {
				return name
			}
		}
	}
	return ""
}

// jqReads says which members of a line programs read: the others need not be copied for gojq.
type jqReads struct {
	names []string
	all   bool // any member
}

func (r *jqReads) add(o *jqReads) { r.names, r.all = append(r.names, o.names...), r.all || o.all }

// query looks through a program whose input is the line. What stands behind a pipe does not
// get the line: nothing gives it on that does not count as reading all.
func (r *jqReads) query(q *gojq.Query) {
	switch {
	case q == nil:
	case len(q.FuncDefs) > 0 || len(q.Patterns) > 0:
		r.all = true
	case q.Term != nil:
		r.term(q.Term)
	case q.Op == gojq.OpPipe:
		r.query(q.Left)
	case q.Op < gojq.OpAssign:
		r.query(q.Left)
		r.query(q.Right)
	default:
		r.all = true
	}
}

func (r *jqReads) term(t *gojq.Term) {
	for _, s := range t.SuffixList {
		if s.Index != nil {
			r.index(s.Index)
		}
	}
	switch t.Type {
	case gojq.TermTypeNull, gojq.TermTypeTrue, gojq.TermTypeFalse, gojq.TermTypeNumber:
	case gojq.TermTypeIdentity:
		if len(t.SuffixList) > 0 && t.SuffixList[0].Index != nil {
			r.member(t.SuffixList[0].Index)
		} else {
			r.all = true
		}
	case gojq.TermTypeIndex:
		r.index(t.Index)
		r.member(t.Index)
	case gojq.TermTypeUnary:
		r.term(t.Unary.Term)
	case gojq.TermTypeString, gojq.TermTypeFormat:
		if t.Str == nil {
			r.all = true
			break
		}
		r.text(t.Str)
	case gojq.TermTypeArray:
		r.query(t.Array.Query)
	case gojq.TermTypeQuery:
		r.query(t.Query)
	case gojq.TermTypeTry:
		r.query(t.Try.Body)
	case gojq.TermTypeIf:
		r.query(t.If.Cond)
		r.query(t.If.Then)
		for _, e := range t.If.Elif {
			r.query(e.Cond)
			r.query(e.Then)
		}
		r.query(t.If.Else)
		r.all = r.all || t.If.Else == nil
	case gojq.TermTypeFunc:
		r.all = r.all || t.Func.Name != "empty"
	default:
		r.all = true
	}
}

// index looks through what an index is worked out from, which is the line too.
func (r *jqReads) index(x *gojq.Index) {
	r.query(x.Start)
	r.query(x.End)
	if x.Str != nil {
		r.text(x.Str)
	}
}

func (r *jqReads) text(s *gojq.String) {
	for _, q := range s.Queries {
		r.query(q)
	}
}

// member is the member of the line that an index names.
func (r *jqReads) member(x *gojq.Index) {
	switch {
	case x.Name != "":
		r.names = append(r.names, x.Name)
	case x.Str != nil && x.Str.Queries == nil:
		r.names = append(r.names, x.Str.Str)
	default:
		r.all = true
	}
}

// maxSteps is how many instructions a program may take on one line. Reading a member takes
// about five, matching a regular expression some hundred. A limit by the clock would make
// what comes out depend on the machine.
const maxSteps = 100_000

var errSteps = fmt.Errorf("the jq program takes more than %d steps; want one that does less", maxSteps)

// jqSteps is a context that ends after so many steps: gojq asks it at each.
type jqSteps struct {
	left int
	done chan struct{}
}

func (s *jqSteps) Done() <-chan struct{} {
	if s.left--; s.left < 0 {
		if s.done == nil {
			s.done = make(chan struct{})
			close(s.done)
		}
		return s.done
	}
	return nil
}

func (s *jqSteps) Err() error {
	if s.left < 0 {
		return errSteps
	}
	return nil
}

func (s *jqSteps) Deadline() (time.Time, bool) { return time.Time{}, false }
func (s *jqSteps) Value(any) any               { return nil }

var _ context.Context = (*jqSteps)(nil)

// get is the text of a value; nil if there is none.
func (l *customLine) get(p *customPath) ([]byte, error) {
	switch {
	case p.constant != nil:
		return p.constant, nil
	case p.code == nil:
		return l.plain(p), nil
	}
	n := len(l.numbers)
	if p.direct != nil {
		switch v, ok := p.direct(l, l.input()); {
		case !ok || v.kind >= jqNode:
		case v.kind <= jqNull:
			return nil, nil
		case v.kind == jqText && len(v.text) == 0:
			return []byte{}, nil // not nil, which is no text
		case v.kind == jqText:
			return v.text, nil
		default:
			l.numbers, _ = v.appendText(l.numbers)
			return l.numbers[n:len(l.numbers):len(l.numbers)], nil
		}
	}
	v, err := l.run(p)
	if err != nil {
		return nil, err
	}
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []byte(v), nil
	case bool:
		l.numbers = strconv.AppendBool(l.numbers, v)
	case int:
		l.numbers = strconv.AppendInt(l.numbers, int64(v), 10)
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<63 {
			l.numbers = strconv.AppendInt(l.numbers, int64(v), 10)
		} else {
			l.numbers = strconv.AppendFloat(l.numbers, v, 'f', -1, 64)
		}
	case interface{ String() string }: // a number beyond int
		l.numbers = append(l.numbers, v.String()...)
	default:
		return nil, fmt.Errorf("the jq program gives %s; want a text or a number", gojq.TypeOf(v))
	}
	return l.numbers[n:len(l.numbers):len(l.numbers)], nil
}

// holds says whether a condition holds, as jq takes values: null and false do not.
func (l *customLine) holds(p *customPath) (bool, error) {
	switch {
	case p.compare:
		return (string(l.plain(p)) == string(p.compared)) != p.negate, nil
	case p.code != nil:
		if p.direct != nil {
			if v, ok := p.direct(l, l.input()); ok {
				return v.holds(), nil
			}
		}
		v, err := l.run(p)
		return v != nil && v != false, err
	case l.f.json:
		v := l.member(p)
		yes, ok := v.truth()
		return v.kind != valueNone && (yes || !ok), nil
	}
	return l.plain(p) != nil, nil
}

// run gives a program's first result; nil if it has none.
func (l *customLine) run(p *customPath) (any, error) {
	l.steps.left = maxSteps
	v, ok := p.code.RunWithContext(&l.steps, l.asked(p)).Next()
	if !ok {
		return nil, nil
	}
	if err, failed := v.(error); failed {
		if errors.Is(err, errSteps) {
			return nil, errSteps
		}
		what := err.Error()
		if len(what) > 200 {
			what = what[:200] + "…"
		}
		return nil, fmt.Errorf("the jq program fails: %q; want one that holds for every line, or a flowIf", what)
	}
	return v, nil
}

// asked is the line as a program is given it: at least the members that it reads.
func (l *customLine) asked(p *customPath) any {
	if !l.f.json || l.f.reads.all {
		if l.tree == nil {
			l.tree = l.whole()
		}
		return l.tree
	}
	if l.some == nil {
		l.some = map[string]any{}
	}
	for _, name := range p.reads.names {
		if _, ok := l.some[name]; ok {
			continue
		}
		if l.json == nil {
			l.some[name] = l.found.at(slices.Index(l.f.plain, name)).tree()
			continue
		}
		l.some[name] = nil // to jq the same as if it were not there
		l.json.GetObject().Visit(func(key []byte, v *fastjson.Value) {
			if string(key) == name {
				l.some[name] = treeOf(v)
			}
		})
	}
	return l.some
}

// whole is the line as jq sees it.
func (l *customLine) whole() any {
	if l.f.json {
		return treeOf(l.json)
	}
	m := make(map[string]any, len(l.parts))
	for i, p := range l.parts {
		switch {
		case !l.f.pairs:
			m[l.columns[i]] = string(p)
		default:
			if _, ok := m[string(l.keys[i])]; !ok { // of two pairs the first counts, as of a plain path
				m[string(l.keys[i])] = string(p)
			}
		}
	}
	return m
}

func treeOf(v *fastjson.Value) any {
	switch v.Type() {
	case fastjson.TypeObject:
		m := map[string]any{}
		v.GetObject().Visit(func(key []byte, v *fastjson.Value) { m[string(key)] = treeOf(v) })
		return m
	case fastjson.TypeArray:
		a := make([]any, 0, len(v.GetArray()))
		for _, e := range v.GetArray() {
			a = append(a, treeOf(e))
		}
		return a
	case fastjson.TypeString:
		return string(v.GetStringBytes())
	case fastjson.TypeNumber:
		if n, err := v.Int(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	case fastjson.TypeTrue:
		return true
	case fastjson.TypeFalse:
		return false
	}
	return nil
}

// tree is a value as jq sees it: what [treeOf] makes of it.
func (v *value) tree() any {
	switch v.kind {
	case valueText:
		return string(v.text)
	case valueNumber:
		if n, err := fastfloat.ParseInt64(text(v.text)); err == nil && int64(int(n)) == n {
			return int(n)
		}
		f, _ := fastfloat.Parse(text(v.text))
		return f
	case valueTruth:
		yes, _ := v.truth()
		return yes
	case valueNode:
		return treeOf(v.node)
	}
	return nil
}
