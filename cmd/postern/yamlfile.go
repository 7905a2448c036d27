package main

import (
	"errors"
	"fmt"
	"reflect"
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
	err := yaml.UnmarshalWithOptions(raw, v, yaml.Strict())
	if err == nil {
		return nil
	}
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		// A type of ours refused a value; the library does not say where it stood.
		line, column := findQuoted(raw, err.Error())
		return fmt.Errorf("%s:%d:%d: %w", path, line, column, err)
	}
	tok := at.GetToken()
	message := at.GetMessage()
	if _, ok := errors.AsType[*yaml.UnknownFieldError](err); ok {
		message = fmt.Sprintf("unknown key %q; %s", tok.Value, nearestKey(tok.Value, reflect.TypeOf(v)))
	}
	return fmt.Errorf("%s:%d:%d: %s", path, tok.Position.Line, tok.Position.Column, message)
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

// nearestKey suggests the known key closest to what was written.
func nearestKey(got string, t reflect.Type) string {
	best, distance := "", 4
	for key := range yamlKeys(t, map[reflect.Type]bool{}) {
		if d := levenshtein.ComputeDistance(strings.ToLower(got), strings.ToLower(key)); d < distance || d == distance && key < best {
			best, distance = key, d
		}
	}
	if best == "" {
		return "see docs/configuration.md for the keys there are"
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// yamlKeys is every key that t or a struct below it knows.
func yamlKeys(t reflect.Type, seen map[reflect.Type]bool) map[string]bool {
	keys := map[string]bool{}
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || seen[t] {
		return keys
	}
	seen[t] = true
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			keys[name] = true
		}
		for k := range yamlKeys(f.Type, seen) {
			keys[k] = true
		}
	}
	return keys
}
