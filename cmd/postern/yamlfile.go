package main

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// parseYAML reads raw, the content of path, into v (a pointer to a struct that
// already holds the defaults). Unknown keys are errors. Every error reads
// file:line:column: what is wrong; what would be right.
func parseYAML(path string, raw []byte, v any) error {
	if f, err := parser.ParseBytes(raw, 0); err == nil && !slices.ContainsFunc(f.Docs, func(d *ast.DocumentNode) bool {
		return d.Body != nil && d.Body.Type() != ast.NullType && d.Body.Type() != ast.CommentType
	}) {
		return nil // nothing is said, and reading it would take the defaults away
	}
	err := yaml.UnmarshalWithOptions(raw, v, yaml.Strict())
	if err == nil {
		return nil
	}
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		// A type refused a value; the library does not say where it stood.
		if text := err.Error(); strings.HasPrefix(text, "time: ") { // its last word is the value
			if _, value, ok := strings.Cut(text, "duration "); ok {
				err = noDuration(strings.Trim(value, `"`))
			}
		}
		line, column := findQuoted(raw, err.Error())
		return fmt.Errorf("%s:%d:%d: %w", path, line, column, err)
	}
	tok := at.GetToken()
	message := at.GetMessage()
	if _, ok := errors.AsType[*yaml.UnknownFieldError](err); ok {
		level := levelOf(raw, tok.Position.Line, tok.Position.Column, reflect.TypeOf(v))
		message = fmt.Sprintf("unknown key %q; %s", tok.Value, nearestKey(tok.Value, level))
	}
	if strings.HasPrefix(message, "cannot unmarshal map") && strings.HasSuffix(message, "of type string") {
		// How the library reads {brokers: [kafka-1:9092]}.
		message = "a text is expected here, and a group of keys was read; put a text that holds a colon in quotes where it stands within {} or []"
	}
	if strings.HasPrefix(message, "cannot unmarshal ") && strings.HasSuffix(message, "of type time.Duration") {
		message = noDuration(tok.Value).Error()
	}
	return fmt.Errorf("%s:%d:%d: %s", path, tok.Position.Line, tok.Position.Column, message)
}

func noDuration(value string) error {
	return fmt.Errorf("%q is no length of time; write it with its unit, such as 30s, 5m or 24h; zero is 0s", value)
}

// positionOf says where the value at a dotted path stands in a YAML text, for
// errors that validating found after reading. 1:1 where the file does not say it.
func positionOf(raw []byte, dotted string) (line, column int) {
	for dotted != "" {
		if p, err := yaml.PathString("$." + dotted); err == nil {
			if f, err := parser.ParseBytes(raw, 0); err == nil {
				if n, err := p.FilterFile(f); err == nil && n.GetToken() != nil {
					pos := n.GetToken().Position
					return pos.Line, pos.Column
				}
			}
		}
		cut := strings.LastIndexAny(dotted, ".[")
		if cut < 0 {
			break
		}
		dotted = dotted[:cut]
	}
	return 1, 1
}

// findQuoted finds the scalar that a message quotes first.
func findQuoted(raw []byte, message string) (line, column int) {
	_, rest, _ := strings.Cut(message, `"`)
	want, _, ok := strings.Cut(rest, `"`)
	f, err := parser.ParseBytes(raw, 0)
	if !ok || err != nil {
		return 1, 1
	}
	v := &scalarFinder{want: want, line: 1, column: 1}
	for _, doc := range f.Docs {
		ast.Walk(v, doc)
	}
	return v.line, v.column
}

type scalarFinder struct {
	want         string
	found        bool
	line, column int
}

func (s *scalarFinder) Visit(n ast.Node) ast.Visitor {
	if t := n.GetToken(); !s.found && t != nil && t.Value == s.want {
		s.found, s.line, s.column = true, t.Position.Line, t.Position.Column
	}
	return s
}

// levelOf is the type that the mapping around the key at a place is read into.
func levelOf(raw []byte, line, column int, t reflect.Type) reflect.Type {
	f, err := parser.ParseBytes(raw, 0)
	if err != nil {
		return t
	}
	v := &keyFinder{line: line, column: column}
	for _, doc := range f.Docs {
		ast.Walk(v, doc)
	}
	keys := strings.FieldsFunc(strings.TrimPrefix(v.path, "$"), func(r rune) bool { return r == '.' || r == '[' || r == ']' })
	for _, key := range keys[:max(len(keys)-1, 0)] {
		if next := fieldOf(t, key); next != nil {
			t = next
		}
	}
	return t
}

type keyFinder struct {
	line, column int
	path         string
}

func (k *keyFinder) Visit(n ast.Node) ast.Visitor {
	if t := n.GetToken(); t != nil && t.Position.Line == k.line && t.Position.Column == k.column {
		k.path = n.GetPath()
	}
	return k
}

// fieldOf is the type of the field that a key is read into; nil for an index of a
// list, which is of the list's own type here, and for a key that is not known.
func fieldOf(t reflect.Type, key string) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == key {
			return f.Type
		}
		if opts == "inline" {
			if in := fieldOf(f.Type, key); in != nil {
				return in
			}
		}
	}
	return nil
}

// nearestKey suggests the key of a level closest to what was written.
func nearestKey(got string, t reflect.Type) string {
	best, distance := "", 4
	for key := range yamlKeys(t) {
		if d := levenshtein.ComputeDistance(strings.ToLower(got), strings.ToLower(key)); d < distance || d == distance && key < best {
			best, distance = key, d
		}
	}
	if best == "" {
		return "see docs/configuration.md for the keys there are"
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// yamlKeys is every key that t knows.
func yamlKeys(t reflect.Type) map[string]bool {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	keys := map[string]bool{}
	if t.Kind() != reflect.Struct {
		return keys
	}
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			keys[name] = true
		}
		if opts == "inline" {
			maps.Copy(keys, yamlKeys(f.Type))
		}
	}
	return keys
}
