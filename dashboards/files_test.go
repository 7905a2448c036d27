package dashboards

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// TestFiles holds the JSON files to the code; with POSTERN_WRITE_DASHBOARDS=1 it writes them.
func TestFiles(t *testing.T) {
	for _, f := range Catalog() {
		want, err := f.JSON()
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join("grafana", f.Name)
		if os.Getenv("POSTERN_WRITE_DASHBOARDS") != "" {
			if err := os.WriteFile(name, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the code says (%v); run go generate ./dashboards", name, err)
		}
	}
	have, err := filepath.Glob("grafana/*.json")
	if err != nil || len(have) != len(Catalog()) {
		t.Errorf("%d files for %d dashboards (%v): %v", len(have), len(Catalog()), err, have)
	}
}

const schemas = "../../shared/fixtures/golden/grafana"

// compile gives a definition of one of Grafana's schemas.
func compile(t *testing.T, file, definition string) *jsonschema.Schema {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(schemas, file+".jsonschema.json"))
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("no schemas: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	// Where Grafana's types say "anything", the schemas say "object"; an override of a unit, which is
	// text, would be wrong. And what tells table cells apart is a default there, not a constant.
	for _, open := range []string{`"options":{"type":"object","additionalProperties":{},"description":"The matcher options.`, `"value":{"type":"object","additionalProperties":{}`} {
		raw = bytes.ReplaceAll(compact(t, raw), []byte(open), []byte(strings.ReplaceAll(open, `"type":"object",`, "")))
	}
	raw = bytes.ReplaceAll(raw, []byte(`"TableCellOptions":{"oneOf"`), []byte(`"TableCellOptions":{"anyOf"`))
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(file+".json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(file + ".json#/definitions/" + definition)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func compact(t *testing.T, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestSchemas validates each dashboard, and each panel's options, against Grafana's own schemas.
func TestSchemas(t *testing.T) {
	whole := compile(t, "dashboard", "Dashboard")
	options := map[string]*jsonschema.Schema{"timeseries": compile(t, "timeseries", "Options"), "stat": compile(t, "stat", "Options"), "table": compile(t, "table", "Options"), "nodeGraph": compile(t, "nodegraph", "Options")}
	custom := map[string]*jsonschema.Schema{"timeseries": compile(t, "timeseries", "GraphFieldConfig"), "table": compile(t, "table", "TableFieldOptions")}
	cell := compile(t, "table", "TableCellOptions")
	for _, f := range Catalog() {
		text, err := f.JSON()
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := whole.Validate(doc); err != nil {
			t.Errorf("%s: %v", f.Name, err)
		}
		for _, p := range f.Panels {
			valid(t, f.Name+": "+p.Title, options[p.Type], p.Options)
			if s := custom[p.Type]; s != nil {
				valid(t, f.Name+": "+p.Title, s, p.Fields.Defaults.Custom)
			}
			for _, o := range p.Fields.Overrides {
				for _, set := range o.Properties {
					if set.ID == "custom.cellOptions" {
						valid(t, f.Name+": "+p.Title, cell, set.Value)
					}
				}
			}
		}
	}
}

func valid(t *testing.T, what string, s *jsonschema.Schema, v any) {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(doc); err != nil {
		t.Errorf("%s: %v\n%s", what, err, raw)
	}
}

// TestLayout: what people see first answers, nothing lies over another, and every link leads somewhere.
func TestLayout(t *testing.T) {
	uids, variables := map[string]bool{}, map[string]map[string]bool{}
	for _, f := range Catalog() {
		if uids[f.UID] {
			t.Errorf("%s: a uid twice", f.UID)
		}
		uids[f.UID], variables[f.UID] = true, map[string]bool{}
		for _, v := range f.Templating.List {
			variables[f.UID][v.Name] = true
		}
	}
	for _, f := range Catalog() {
		titles := map[string]bool{}
		var taken [200][24]bool
		for _, p := range f.Panels {
			if titles[p.Title] || len(p.Title) < 8 && p.Title != "Owner" || strings.HasSuffix(p.Title, ".") {
				t.Errorf("%s: the title %q is there twice, or says little", f.Name, p.Title)
			}
			titles[p.Title] = true
			if len(p.Title) > 9*p.Grid.W { // at 1600 pixels a column is 66 wide, and a letter of a title 7
				t.Errorf("%s: the title %q is cut off", f.Name, p.Title)
			}
			if p.Type == "stat" && p.Grid.Y != 0 {
				t.Errorf("%s: %s: a single number below the first row", f.Name, p.Title)
			}
			for y := p.Grid.Y; y < p.Grid.Y+p.Grid.H; y++ {
				for x := p.Grid.X; x < p.Grid.X+p.Grid.W; x++ {
					if taken[y][x] {
						t.Fatalf("%s: %s lies over another", f.Name, p.Title)
					}
					taken[y][x] = true
				}
			}
			if p.Fields.Defaults.Unit == "" && p.Type != "table" && p.Type != "nodeGraph" {
				t.Errorf("%s: %s has no unit", f.Name, p.Title)
			}
			for _, o := range p.Fields.Overrides {
				for _, set := range o.Properties {
					links, _ := set.Value.([]dataLink)
					for _, l := range links {
						uid, rest, _ := strings.Cut(strings.TrimPrefix(l.URL, "/d/"), "?var-")
						name, _, _ := strings.Cut(rest, "=")
						if !uids[uid] || !variables[uid][name] {
							t.Errorf("%s: %s: %s leads nowhere", f.Name, p.Title, l.URL)
						}
					}
				}
			}
		}
		if n := len(f.Panels); n < 6 || n > 20 {
			t.Errorf("%s: %d panels", f.Name, n)
		}
	}
}
