package siem

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/postern/postern/flow"
)

var update = flag.Bool("update", false, "write the published schema instead of comparing it")

var schemaPath = filepath.Join("..", "..", "docs", "schema", "finding.schema.json")

// memberDocs are what members say whose fields have no comment; the others say what theirs says.
var memberDocs = map[string]string{
	"Finding.id": "The finding, the same in all its revisions; with the revision it names one event.", "Finding.schema_version": "The version of this form. Later ones add members; none changes its meaning.",
	"Finding.revision": "Rises with everything that is added.", "Finding.type": "Of which kind it is.", "Finding.title": "What happened, in a few words.",
	"Finding.severity": "How grave it is.", "Finding.confidence": "How certain it is, 0 to 1.", "Finding.first_seen": "When the first of it began, by the flows' own clock.",
	"Finding.last_seen": "When the last of it ended, by the flows' own clock.", "Finding.client": "The address of who began; empty where the finding is about something else.",
	"Finding.server": "The address of who was reached.", "Finding.service": "Protocol and port, or ICMP type and code.", "Finding.src_segment": "The segment of the client.",
	"Finding.dst_segment": "The segment of the server.", "Finding.observed": "What enforcement did, as far as somebody told.", "Finding.expected": "What the policy in force said.",
	"Finding.reason": "Why it said so; empty where nothing was judged.", "Finding.outcome": "Observed against expected.", "Finding.failed": "The dimensions in which an exception did not fit.",
	"Finding.missing": "What was not known and would have been needed.", "Finding.rule": "The rule or default that decided.", "Finding.exception": "The exception that it is about.",
	"Finding.ticket": "Its ticket.", "Finding.owner": "Who owns it, else the segment.", "Finding.requester": "Who asked for it.", "Finding.approver": "Who approved it.",
	"Finding.policy_version": "The policy version that judged.", "Finding.policy_since": "From when on that version was in force; absent if always.", "Finding.edges_total": "How many edges there are, listed or not.",
	"Detail.score_parts": "What the score is made of.", "Detail.exporters": "The exporters that told of it, by their addresses.",
	"Finding.sentence": "What happened.", "Finding.next": "What to do about it.",
	"ScorePart.name": "What it is called.", "ScorePart.says": "Why.", "End.address": "Its address.", "End.workload": "What the policy calls it.", "End.segment": "The segment it is in.",
	"End.identity": "Who was behind it.", "End.identity_age": "For how many seconds whoever says so had been silent.", "End.process": "The program there.",
	"Hop.client": "From where.", "Hop.server": "To where.", "Hop.service": "Protocol and port.", "Hop.start": "When it began.", "Hop.end": "When it ended.",
	"Edge.source": "Where it began.", "Edge.destination": "What it reached.", "Edge.port": "The port there.", "Edge.protocol": "The protocol.",
}

// findingSchema is the JSON Schema of a finding, made of its Go types.
func findingSchema(t *testing.T) []byte {
	comments := map[string]string{}
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", "..", "flow", "finding.go"), nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.TypeSpec); ok {
			if st, ok := s.Type.(*ast.StructType); ok {
				for _, f := range st.Fields.List {
					text := f.Doc.Text()
					if text == "" {
						text = f.Comment.Text()
					}
					for _, name := range f.Names {
						comments[s.Name.Name+"."+name.Name] = strings.Join(strings.Fields(text), " ")
					}
				}
			}
		}
		return true
	})
	defs := object{}
	var of func(typ reflect.Type, name string, may bool) object
	structure := func(typ reflect.Type) object {
		properties, required := object{}, []string{}
		var add func(typ reflect.Type)
		add = func(typ reflect.Type) {
			for f := range typ.Fields() {
				if f.Anonymous {
					add(f.Type)
					continue
				}
				name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
				p := of(f.Type, f.Name, options != "")
				doc := memberDocs[typ.Name()+"."+name]
				if doc == "" {
					doc = comments[typ.Name()+"."+f.Name]
				}
				if doc == "" {
					t.Errorf("%s.%s has neither a comment nor an entry in memberDocs", typ.Name(), f.Name)
				}
				p["description"] = doc
				properties[name] = p
				if options == "" {
					required = append(required, name)
				}
			}
		}
		add(typ)
		return filled(object{"type": "object", "properties": properties, "required": required, "additionalProperties": false})
	}
	of = func(typ reflect.Type, name string, may bool) object {
		words := vocabulary[name]
		switch typ {
		case reflect.TypeFor[flow.Time]():
			pattern := `\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z`
			if !may { // unknown is the empty text
				pattern = "(" + pattern + ")?"
			}
			return object{"type": "string", "pattern": "^" + pattern + "$"}
		case reflect.TypeFor[flow.Severity]():
			return object{"enum": wordsOf(func(i int) string { return flow.Severity(i).String() })}
		case reflect.TypeFor[json.RawMessage]():
			return object{"type": "object"}
		}
		switch typ.Kind() {
		case reflect.String:
			if words != nil {
				return object{"enum": words}
			}
			return object{"type": "string"}
		case reflect.Float64:
			return object{"type": "number", "minimum": 0, "maximum": 1}
		case reflect.Uint16:
			return object{"type": "integer", "minimum": 0, "maximum": 65535}
		case reflect.Uint64:
			return object{"type": "integer", "minimum": 0}
		case reflect.Int, reflect.Int32, reflect.Int64:
			if name == "SchemaVersion" {
				return object{"const": flow.FindingSchema}
			}
			return object{"type": "integer"}
		case reflect.Pointer:
			return of(typ.Elem(), name, may)
		case reflect.Slice:
			o := object{"type": "array", "items": of(typ.Elem(), name, false)}
			if name == "Edges" {
				o["maxItems"] = flow.MaxEdges
			}
			return o
		case reflect.Struct:
			if defs[typ.Name()] == nil {
				defs[typ.Name()] = object{} // while it is made
				defs[typ.Name()] = structure(typ)
			}
			return object{"$ref": "#/$defs/" + typ.Name()}
		}
		t.Fatalf("no schema for %s", typ)
		return nil
	}
	root := structure(reflect.TypeFor[flow.Finding]())
	root["$schema"], root["$id"] = "https://json-schema.org/draft/2020-12/schema", fmt.Sprintf("urn:postern:finding:%d", flow.FindingSchema)
	root["title"] = "Finding"
	root["description"] = "One revision of a finding, as webhooks, ClickHouse and postern replay --findings tell it. Generated by `make docs`. " +
		"Texts may hold what hosts on the network chose to say: whoever shows one escapes it."
	root["$defs"] = defs
	b, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// TestFindingSchema holds the published schema to the Go types; `make docs` writes it anew.
func TestFindingSchema(t *testing.T) {
	want := findingSchema(t)
	if *update {
		if err := os.WriteFile(schemaPath, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(schemaPath)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/schema/finding.schema.json is not what the code says; run `make docs` and commit the result")
	}
}

// publishedSchema is the schema as whoever downloads it has it.
var publishedSchema = sync.OnceValues(func() (*jsonschema.Schema, error) { return jsonschema.NewCompiler().Compile(schemaPath) })

// checkJSON says whether a finding's JSON is what the published schema says.
func checkJSON(f *flow.Finding) error {
	schema, err := publishedSchema()
	if err != nil {
		return err
	}
	b, err := encodeJSON(f)
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		return err
	}
	if err := schema.Validate(doc); err != nil {
		return fmt.Errorf("JSON: %w", err)
	}
	for name, want := range map[string]string{"id": f.ID, "type": f.Type, "title": f.Title, "sentence": f.Sentence, "next": f.Next, "exception": f.Exception, "ticket": f.Ticket,
		"owner": f.Owner, "requester": f.Requester, "approver": f.Approver, "rule": f.Rule, "subject": f.Subject} {
		if got := at(doc, name); !says(got, want) {
			return fmt.Errorf("JSON: %s is %q, want %q", name, got, want)
		}
	}
	if got := at(doc, "query"); !saysQuery(got, f.Query) {
		return fmt.Errorf("JSON: the query is %q, want %q", got, f.Query)
	}
	return nil
}

// TestJSON: findings of every type are what the published schema says, and a message stays the
// message that it is.
func TestJSON(t *testing.T) {
	n := 0
	for _, f := range everyFinding() {
		full := f.SchemaVersion == flow.FindingSchema && f.Observed != "" && f.Expected != "" && f.Outcome != ""
		if err := checkJSON(f); full && err != nil {
			t.Fatalf("%s: %v", f.Type, err)
		} else if full {
			n++
		}
		sent, err := asTold(f)
		if err != nil {
			t.Fatal(err)
		}
		message, err := MarshalFinding(sent)
		if err != nil {
			continue // lists longer than detectors make them
		}
		sent = new(flow.Finding)
		if err := json.Unmarshal(message, sent); err != nil {
			t.Fatal(err)
		}
		if got, err := encodeJSON(sent); err != nil || !bytes.Equal(got, message) {
			t.Fatalf("a message became another (%v):\n%s\n%s", err, message, got)
		}
	}
	if n < 100 {
		t.Errorf("only %d findings were held to the schema", n)
	}
}

// TestDemoSchema: what the demo finds is what the published schema says.
func TestDemoSchema(t *testing.T) {
	schema, err := publishedSchema()
	if err != nil {
		t.Fatal(err)
	}
	found, err := os.ReadFile(filepath.Join("..", "..", "docs", "examples", "findings.json"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range bytes.Lines(found) {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(doc); err != nil {
			t.Errorf("%v\nof %s", err, line)
		}
		n++
	}
	if n != 22 {
		t.Errorf("%d findings", n)
	}
}

// TestSchemaFails: the schema refuses what is no finding.
func TestSchemaFails(t *testing.T) {
	schema, err := publishedSchema()
	if err != nil {
		t.Fatal(err)
	}
	whole := toJSON(t, &flow.Finding{ID: "1", SchemaVersion: 1, Type: flow.FindingDenied, Orientation: "known", Observed: "allow", Expected: "deny", Reason: "denied", Outcome: "escaped", Edges: []flow.Edge{}})
	for name, breaks := range map[string]func(m map[string]any){
		"":                      func(map[string]any) {},
		"a member is missing":   func(m map[string]any) { delete(m, "sentence") },
		"a member too many":     func(m map[string]any) { m["colour"] = "red" },
		"a type there is not":   func(m map[string]any) { m["type"] = "bad-weather" },
		"a severity in numbers": func(m map[string]any) { m["severity"] = 3 },
		"a time that is none":   func(m map[string]any) { m["last_seen"] = "yesterday" },
		"a port beyond all": func(m map[string]any) {
			m["edges"] = []any{map[string]any{"source": "a", "destination": "b", "port": 70000, "protocol": "tcp"}}
		},
		"more edges than may be": func(m map[string]any) { m["edges"] = make([]any, flow.MaxEdges+1) },
		"a later form":           func(m map[string]any) { m["schema_version"] = 2 },
	} {
		m := map[string]any{}
		if err := json.Unmarshal(whole, &m); err != nil {
			t.Fatal(err)
		}
		breaks(m)
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(toJSON(t, m)))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(doc); (err == nil) != (name == "") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
