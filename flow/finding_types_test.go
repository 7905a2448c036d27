package flow

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestFindingTypes holds that the list of types has every constant of this package that
// names one: what is not in it cannot be suppressed and is missing in the docs.
func TestFindingTypes(t *testing.T) {
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var declared []string
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), ".go") || strings.HasSuffix(file.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.CONST {
				continue
			}
			for _, s := range g.Specs {
				v := s.(*ast.ValueSpec)
				for i, name := range v.Names {
					if !strings.HasPrefix(name.Name, "Finding") || i >= len(v.Values) {
						continue
					}
					if lit, ok := v.Values[i].(*ast.BasicLit); ok && lit.Kind == token.STRING {
						text, err := strconv.Unquote(lit.Value)
						if err != nil {
							t.Fatal(err)
						}
						declared = append(declared, text)
					}
				}
			}
		}
	}
	if len(declared) < 11 {
		t.Fatalf("found only %q", declared)
	}
	listed := FindingTypes()
	for _, typ := range declared {
		if !slices.Contains(listed, typ) {
			t.Errorf("findingTypes in finding_types.go lacks %q", typ)
		}
	}
	if len(listed) != len(declared) {
		t.Errorf("%d types are listed, %d declared", len(listed), len(declared))
	}
}
