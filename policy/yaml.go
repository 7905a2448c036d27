package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/postern/postern/flow"
)

// Bounds of what a policy may be. They are far above what people write and far
// below what would hurt.
const (
	maxFileSize   = 8 << 20  // bytes of one file; 50,000 workloads are about 7 MB
	maxPolicySize = 64 << 20 // bytes of all files
	maxFiles      = 4096
	maxDepth      = 24 // nesting; the language needs 7
	maxText       = 4096
	maxName       = 256 // what flow.Names holds of a name
	maxItems      = 1 << 20
)

// textAt is a piece of text and where it stands.
type textAt struct {
	text string
	pos  Pos
}

// reader reads one file's YAML nodes and notes what is wrong with them.
type reader struct {
	file  string
	diags *Diagnostics
}

func (r *reader) at(t *token.Token) Pos {
	if t == nil || t.Position == nil {
		return Pos{File: r.file}
	}
	return Pos{r.file, max(1, t.Position.Line), max(1, t.Position.Column)}
}

func (r *reader) pos(n ast.Node) Pos {
	if n == nil {
		return Pos{File: r.file}
	}
	// A mapping's own token is the colon of its first pair; people look for the key.
	switch n := n.(type) {
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return r.at(n.Values[0].Key.GetToken())
		}
	case *ast.MappingValueNode:
		return r.at(n.Key.GetToken())
	}
	return r.at(n.GetToken())
}

// parse turns bytes into documents. Whatever the bytes are, it neither panics nor
// nests deeper than maxDepth: tokens are screened before the parser recurses.
func (r *reader) parse(src []byte) (docs []*ast.DocumentNode) {
	defer func() {
		if p := recover(); p != nil {
			r.diags.errorf(Pos{File: r.file}, "write plain YAML", "the YAML reader failed on this file (%v)", p)
			docs = nil
		}
	}()
	if !utf8.Valid(src) {
		r.diags.errorf(Pos{File: r.file}, "save the file as UTF-8", "the file is not UTF-8")
		return nil
	}
	tokens := lexer.Tokenize(string(src))
	if !r.screen(tokens) {
		return nil
	}
	f, err := parser.Parse(tokens, 0)
	if err != nil {
		if syntax, ok := errors.AsType[yaml.Error](err); ok {
			r.diags.errorf(r.at(syntax.GetToken()), "write plain YAML", "this is no YAML: %s", oneLine(syntax.GetMessage()))
		} else {
			r.diags.errorf(Pos{File: r.file}, "write plain YAML", "this is no YAML: %s", oneLine(err.Error()))
		}
		return nil
	}
	return f.Docs
}

func oneLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// screen refuses what the language has no use for and what could hurt the parser:
// anchors, aliases and merges (which multiply), tags, complex keys, deep nesting.
func (r *reader) screen(tokens token.Tokens) bool {
	flowDepth, line, dashes := 0, -1, 0
	var columns []int // of the block structures open here
	for _, t := range tokens {
		var what, right string
		switch t.Type {
		case token.AnchorType:
			what, right = "an anchor is not part of the language", "write the value out where it is needed"
		case token.AliasType:
			what, right = "an alias is not part of the language", "write the value out"
		case token.MergeKeyType:
			what, right = "a merge key is not part of the language", "write the keys out"
		case token.TagType:
			what, right = "a tag is not part of the language", "write the plain value"
		case token.DirectiveType:
			what, right = "a YAML directive is not part of the language", "remove the line"
		case token.MappingKeyType:
			what, right = "a complex key is not part of the language", "write key: value"
		case token.SequenceStartType, token.MappingStartType:
			flowDepth++
		case token.SequenceEndType, token.MappingEndType:
			flowDepth = max(0, flowDepth-1)
		case token.SequenceEntryType, token.MappingValueType:
			if flowDepth == 0 && t.Position != nil {
				c := t.Position.Column
				if t.Type == token.MappingValueType && t.Prev != nil && t.Prev.Position != nil {
					c = t.Prev.Position.Column
				}
				for len(columns) > 0 && columns[len(columns)-1] >= c {
					columns = columns[:len(columns)-1]
				}
				columns = append(columns, c)
			}
			if t.Type == token.SequenceEntryType && t.Position != nil {
				if t.Position.Line != line {
					line, dashes = t.Position.Line, 0
				}
				dashes++
			}
		}
		if flowDepth+len(columns) > maxDepth || dashes > maxDepth {
			what, right = fmt.Sprintf("nested deeper than %d", maxDepth), "nothing in the language needs that"
		}
		if what != "" {
			r.diags.errorf(r.at(t), right, "%s", what)
			return false
		}
	}
	return true
}

// pairs are the key–value pairs of a mapping, or ok false after saying what stands
// there instead.
func (r *reader) pairs(n ast.Node, what, right string) (values []*ast.MappingValueNode, ok bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	r.diags.errorf(r.pos(n), right, "%s is %s, not keys with values", what, kind(n))
	return nil, false
}

// items are the items of a list.
func (r *reader) items(n ast.Node, what, right string) (items []ast.Node, ok bool) {
	if s, isSeq := n.(*ast.SequenceNode); isSeq {
		if len(s.Values) > maxItems {
			r.diags.errorf(r.pos(n), fmt.Sprintf("keep it below %d", maxItems), "%s is a list of %d items", what, len(s.Values))
			return nil, false
		}
		return s.Values, true
	}
	r.diags.errorf(r.pos(n), right, "%s is %s, not a list", what, kind(n))
	return nil, false
}

func kind(n ast.Node) string {
	switch n := n.(type) {
	case nil, *ast.NullNode:
		return "empty"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys with values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.StringNode:
		return "the text " + quote(n.Value)
	case *ast.LiteralNode:
		return "a text"
	default:
		if t := n.GetToken(); t != nil {
			return quote(t.Value)
		}
		return "something else"
	}
}

// fields calls the handler of each key of a mapping; unknown keys are errors that
// name the nearest known one.
func (r *reader) fields(n ast.Node, what, right string, handlers map[string]func(ast.Node)) (present map[string]Pos, ok bool) {
	values, ok := r.pairs(n, what, right)
	if !ok {
		return nil, false
	}
	present = make(map[string]Pos, len(values))
	for _, kv := range values {
		key, ok := r.key(kv)
		if !ok {
			continue
		}
		p := r.pos(kv)
		if before, twice := present[key]; twice {
			r.diags.errorf(p, fmt.Sprintf("keep one of them; the other is at line %d", before.Line), "%s has %s twice", what, quote(key))
			continue
		}
		present[key] = p
		handle, known := handlers[key]
		if !known {
			r.diags.errorf(p, didYouMean(key, keysOf(handlers)), "%s has no key %s", what, quote(key))
			continue
		}
		handle(kv.Value)
	}
	return present, true
}

func keysOf[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func (r *reader) key(kv *ast.MappingValueNode) (string, bool) {
	switch k := kv.Key.(type) {
	case *ast.StringNode:
		return k.Value, true
	case *ast.MappingKeyNode, *ast.MergeKeyNode:
		r.diags.errorf(r.pos(kv), "write key: value", "this is no plain key")
		return "", false
	default:
		return k.GetToken().Value, true
	}
}

// text is a scalar as it was written.
func (r *reader) text(n ast.Node, what string) (string, bool) {
	var s string
	switch n := n.(type) {
	case *ast.StringNode:
		s = n.Value
	case *ast.LiteralNode:
		s = n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		s = n.GetToken().Value
	default:
		r.diags.errorf(r.pos(n), "write one value", "%s is %s", what, kind(n))
		return "", false
	}
	s = strings.TrimSpace(s)
	if s == "" {
		r.diags.errorf(r.pos(n), "give it a value or leave the key out", "%s is empty", what)
		return "", false
	}
	if len(s) > maxText {
		r.diags.errorf(r.pos(n), fmt.Sprintf("keep it below %d", maxText), "%s is %d bytes long", what, len(s))
		return "", false
	}
	return s, true
}

// name is a scalar that names something: no control characters, of bounded length.
func (r *reader) name(n ast.Node, what string) (string, bool) {
	s, ok := r.text(n, what)
	if !ok {
		return "", false
	}
	if len(s) > maxName {
		r.diags.errorf(r.pos(n), fmt.Sprintf("keep names within %d", maxName), "%s is %d bytes long", what, len(s))
		return "", false
	}
	if strings.ContainsFunc(s, unicode.IsControl) {
		r.diags.errorf(r.pos(n), "write it on one line without them", "%s %s has control characters", what, quote(s))
		return "", false
	}
	return s, true
}

// id is a name without blanks, which findings, metrics and commands carry around.
func (r *reader) id(n ast.Node, what string) (string, bool) {
	s, ok := r.name(n, what)
	if !ok {
		return "", false
	}
	if strings.ContainsFunc(s, unicode.IsSpace) {
		r.diags.errorf(r.pos(n), "write it with hyphens", "%s %s has blanks in it", what, quote(s))
		return "", false
	}
	if strings.HasPrefix(s, "default:") {
		r.diags.errorf(r.pos(n), "choose another name", "%s %s is reserved for what a segment's default decides", what, quote(s))
		return "", false
	}
	return s, true
}

// list is one scalar or a list of them; an empty list is an error.
func (r *reader) list(n ast.Node, what string, read func(ast.Node, string) (string, bool)) (out []textAt) {
	if s, isSeq := n.(*ast.SequenceNode); isSeq {
		if len(s.Values) == 0 {
			r.diags.errorf(r.pos(n), "name at least one, or leave the key out", "%s is an empty list", what)
		}
		items, _ := r.items(n, what, "")
		for _, v := range items {
			if t, ok := read(v, what); ok {
				out = append(out, textAt{t, r.pos(v)})
			}
		}
		return out
	}
	if t, ok := read(n, what); ok {
		out = append(out, textAt{t, r.pos(n)})
	}
	return out
}

// oneOf is one of the words; the index says which.
func (r *reader) oneOf(n ast.Node, what string, words ...string) (int, bool) {
	s, ok := r.text(n, what)
	if !ok {
		return 0, false
	}
	if i := slices.Index(words, s); i >= 0 {
		return i, true
	}
	right := "write " + strings.Join(words, ", ")
	if near := nearest(s, words); near != "" {
		right = "did you mean " + quote(near) + "? It is one of " + strings.Join(words, ", ")
	}
	r.diags.errorf(r.pos(n), right, "%s cannot be %s", what, quote(s))
	return 0, false
}

// earliest and latest bound the times of the language: zero means unknown in
// flow.Time, and far-off ends are typing errors.
const earliest, latestYear = flow.Time(1), 9999

func (r *reader) time(n ast.Node, what string) (flow.Time, bool) {
	s, ok := r.text(n, what)
	if !ok {
		return 0, false
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		right := "write it as 2026-10-01T09:00:00Z"
		for layout, suffix := range map[string]string{"2006-01-02T15:04:05": "Z", "2006-01-02 15:04:05": "Z", "2006-01-02": "T00:00:00Z", "2006-01-02T15:04": ":00Z"} {
			if _, err := time.Parse(layout, s); err == nil {
				right = "times carry a zone: write " + strings.Replace(s, " ", "T", 1) + suffix
			}
		}
		r.diags.errorf(r.pos(n), right, "%s %s is no time", what, quote(s))
		return 0, false
	}
	if ft := flow.TimeOf(t); t.Year() <= latestYear && ft >= earliest {
		return ft, true
	}
	r.diags.errorf(r.pos(n), "write a year from 1970 to 9999", "%s %s is out of range", what, quote(s))
	return 0, false
}

// prefix reads a CIDR or, where bare is set, also a lone address, and gives it in
// the form flows are matched in: IPv4 in ::ffff:0:0/96 or behind 64:ff9b::/96 is
// IPv4, bits beyond the length are cleared (with a warning).
func (r *reader) prefix(v textAt, what string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(v.text)
	if err != nil {
		if a, aerr := netip.ParseAddr(v.text); aerr == nil && a.Zone() == "" {
			return canonicalPrefix(netip.PrefixFrom(a, a.BitLen())), true
		}
		r.diags.errorf(v.pos, "write 10.20.0.0/24 or 2001:db8::/32", "%s %s is no prefix", what, quote(v.text))
		return netip.Prefix{}, false
	}
	if m := p.Masked(); m != p {
		r.diags.warnf(v.pos, fmt.Sprintf("it is read as %s; write that, or %s/%d for the one address", canonicalPrefix(m), p.Addr(), p.Addr().BitLen()),
			"%s %s has bits set beyond its length", what, quote(v.text))
		p = m
	}
	return canonicalPrefix(p), true
}

var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// canonicalPrefix is [flow.Addr.Canonical] for prefixes.
func canonicalPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4() || p.Bits() < 96 {
		return p
	}
	if p.Addr().Is4In6() {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if nat64.Contains(p.Addr()) {
		b := p.Addr().As16()
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(b[12:])), p.Bits()-96)
	}
	return p
}

func canonicalAddr(a netip.Addr) netip.Addr {
	return flow.AddrFromNetip(a).Canonical().Netip()
}
