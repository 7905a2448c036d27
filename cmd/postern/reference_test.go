package main

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink"
	"github.com/postern/postern/sink/embedded/embeddedtest"
	"github.com/postern/postern/sink/siem"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write the reference pages instead of comparing them")

const docsDir = "../../docs"

// TestReferencePages holds the generated pages to the code: what a reader of the
// docs sees is what the binary does. `make docs` writes them anew.
func TestReferencePages(t *testing.T) {
	pages := map[string]func(*testing.T) string{
		"configuration.md": configurationPage,
		"cli.md":           cliPage,
		"metrics.md":       metricsPage,
		"vocabulary.md":    vocabularyPage,
		"queries.md":       queriesPage,
	}
	for name, page := range pages {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(docsDir, name)
			want := page(t)
			if *update {
				if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != want {
				t.Errorf("docs/%s is not what the code says; run `make docs` and commit the result", name)
			}
		})
	}
}

const generated = "<!-- Generated from the code by `make docs`. Do not edit. -->\n\n"

func configurationPage(t *testing.T) string {
	var b strings.Builder
	b.WriteString(generated + `# Configuration

One YAML file, given to ` + "`postern serve -c postern.yaml`" + ` and to the other commands. Every key has a default; an
empty file runs everything on this machine. Unknown keys are errors. Durations are written as 30s, 5m, 24h, sizes as
512KiB, 4MiB, 2GiB. Secrets are references: env:NAME or file:PATH. Check a file with ` + "`postern check -c postern.yaml`" + `.

| key | default | meaning |
|---|---|---|
`)
	writeFields(t, &b, "", reflect.ValueOf(defaultConfig()), fieldDocs(t))
	return b.String()
}

func queriesPage(*testing.T) string {
	var b strings.Builder
	b.WriteString(generated + `# Questions with a name

What people ask again and again, as SQL that comes with the binary:

    postern query --list
    postern query exception-use --param exception=EX-2041 --param days=30 --format csv

Each runs on the embedded engine and on a server alike, for a running service or without one. Parameters are
ClickHouse's own, so the SQL below can be taken as it is into clickhouse-client (` + "`--param_days=7`" + `), a Grafana panel or a
script. A time is written as 2026-10-01T09:00:00Z or 2026-10-01, in UTC, and ` + "`now`" + ` by postern alone. Answers end at
the limit in the SQL. What stands in the tables: tables.md; how to ask beyond these: clickhouse.md.
`)
	for _, q := range sink.NamedQueries() {
		fmt.Fprintf(&b, "\n## %s\n\n%s", q.Name, q.Question)
		if q.Notes != "" {
			b.WriteString("\n\n" + q.Notes)
		}
		b.WriteString("\n\n| parameter | type | default | meaning |\n|---|---|---|---|\n")
		example := "postern query " + q.Name
		for _, p := range q.Params {
			def := "required"
			if !p.Required {
				def = "`" + p.Default + "`"
			} else {
				example += " --param " + p.Name + "=" + p.Example
			}
			fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", p.Name, p.Type, def, p.Meaning)
		}
		fmt.Fprintf(&b, "\n    %s\n\n```sql\n%s\n```\n", example, q.SQL)
	}
	return b.String()
}

func writeFields(t *testing.T, b *strings.Builder, prefix string, v reflect.Value, docs map[string]string) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		tag, opts, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if opts == "inline" {
			writeFields(t, b, prefix, v.Field(i), docs)
			continue
		}
		if tag == "" || tag == "-" {
			continue
		}
		key := prefix + tag
		doc := docs[v.Type().PkgPath()+"."+v.Type().Name()+"."+f.Name]
		if doc == "" {
			t.Errorf("configuration key %s (%s.%s) has no doc comment", key, v.Type(), f.Name)
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", key, defaultText(v.Field(i)), strings.ReplaceAll(doc, "|", `\|`))
		switch elem := f.Type; {
		case structWithTags(elem):
			writeFields(t, b, key+".", v.Field(i), docs)
		case elem.Kind() == reflect.Pointer && structWithTags(elem.Elem()):
			writeFields(t, b, key+".", filled(elem.Elem()), docs)
		case elem.Kind() == reflect.Slice && structWithTags(elem.Elem()):
			writeFields(t, b, key+"[].", filled(elem.Elem()), docs)
		}
	}
}

// filled is an entry that says nothing, with the defaults that it gets.
func filled(t reflect.Type) reflect.Value {
	v := reflect.New(t)
	if f, ok := reflect.TypeAssert[interface{ Fill() }](v); ok {
		f.Fill()
	}
	return v.Elem()
}

func structWithTags(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t.NumField() > 0 && t.Field(0).Tag.Get("yaml") != ""
}

func defaultText(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case flow.Size:
		if x == 0 {
			return ""
		}
		return "`" + x.String() + "`"
	case time.Duration:
		if x == 0 {
			return ""
		}
		raw, _ := yaml.Marshal(x)
		return "`" + strings.TrimSpace(string(raw)) + "`"
	}
	if structWithTags(v.Type()) || v.IsZero() {
		return ""
	}
	return "`" + fmt.Sprint(v.Interface()) + "`"
}

// fieldDocs reads the doc comment of every struct field in the project.
func fieldDocs(t *testing.T) map[string]string {
	docs := map[string]string{}
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg := "github.com/postern/postern/" + filepath.ToSlash(rel)
		if f.Name.Name == "main" {
			pkg = "main"
			if flag.Lookup("test.v") != nil { // a test binary of package main carries its full path
				pkg = reflect.TypeFor[config]().PkgPath()
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			ts, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			st, ok := ts.Type.(*ast.StructType)
			if !ok {
				return true
			}
			for _, field := range st.Fields.List {
				text := field.Doc.Text()
				if text == "" {
					text = field.Comment.Text()
				}
				for _, name := range field.Names {
					docs[pkg+"."+ts.Name.Name+"."+name.Name] = withoutName(name.Name, strings.Join(strings.Fields(text), " "))
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

// withoutName takes the field's name, which Go's comments begin with and users do
// not know, off a sentence: "Listen is the address" becomes "The address".
func withoutName(name, doc string) string {
	for _, verb := range []string{" is ", " are ", " says ", " lists ", " bounds "} {
		rest, ok := strings.CutPrefix(doc, name+verb)
		if !ok || rest == "" {
			continue
		}
		switch verb {
		case " lists ", " bounds ":
			rest = verb[1:] + rest
		}
		return strings.ToUpper(rest[:1]) + rest[1:]
	}
	return doc
}

func cliPage(t *testing.T) string {
	var b strings.Builder
	b.WriteString(generated + "# Commands\n\n")
	for _, cmd := range rootCommand().Commands() {
		if cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion" {
			continue
		}
		writeCommand(&b, cmd)
	}
	b.WriteString("## postern completion\n\nPrints a completion script for bash, zsh, fish or PowerShell; `postern completion bash --help` says how to load it.\n")
	return b.String()
}

func writeCommand(b *strings.Builder, cmd *cobra.Command) {
	text := cmd.Long
	if text == "" {
		text = cmd.Short + "."
	}
	fmt.Fprintf(b, "## %s\n\n    %s\n\n%s\n\n", cmd.CommandPath(), cmd.UseLine(), text)
	if flags := cmd.LocalFlags(); flags.HasAvailableFlags() {
		fmt.Fprintf(b, "```\n%s```\n\n", flags.FlagUsages())
	}
	for _, sub := range cmd.Commands() {
		writeCommand(b, sub)
	}
}

func metricsPage(t *testing.T) string {
	var b strings.Builder
	b.WriteString(generated + "# Metrics\n\nServed on the admin address at `/metrics`. Counters are totals since the process started unless said otherwise;\nthe ledger's terms live as long as the data directory.\n\n| metric | type | meaning |\n|---|---|---|\n")
	for _, m := range everyMetric(t) {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", m.name, m.kind, strings.ReplaceAll(m.help, "|", `\|`))
	}
	return b.String()
}

func vocabularyPage(t *testing.T) string {
	var b bytes.Buffer
	b.WriteString(generated + "# Vocabulary\n\nThe words that verdicts and findings use, in every output alike. What they mean: [semantics](semantics.md) and\n[the policy reference](policy.md).\n\n| field | words |\n|---|---|\n")
	row := func(field string, words []string) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", field, strings.Join(words, ", "))
	}
	row("source", words(func(i int) string { return flow.Source(i).String() }))
	row("expected, staged", words(func(i int) string { return flow.Expected(i).String() }))
	row("observed", words(func(i int) string { return flow.Observed(i).String() }))
	row("reason", words(func(i int) string { return flow.Reason(i).String() }))
	row("outcome", words(func(i int) string { return flow.Outcome(i).String() }))
	row("severity", words(func(i int) string { return flow.Severity(i).String() }))
	row("failed, missing", flow.Dimensions(0xffff).Texts())
	row("quality", flow.Quality(0xffffffff).Texts())
	row("rejected (ledger)", words(func(i int) string { return flow.Reject(i).String() }))
	row("finding type", flow.FindingTypes())
	return b.String()
}

// words lists an enumeration until its texts run out.
func words(text func(int) string) (out []string) {
	for i := 0; text(i) != "?"; i++ {
		if text(i) != "" {
			out = append(out, text(i))
		}
	}
	return out
}

type metricDoc struct{ name, kind, help string }

var descText = regexp.MustCompile(`^Desc\{fqName: "([^"]+)", help: ("(?:[^"\\]|\\.)*"), `)

// everyMetric lists what a service with a webhook and the roles around Kafka register,
// by name. The Go runtime's and the process's own are left out.
func everyMetric(t *testing.T) []metricDoc {
	cfg := defaultConfig()
	cfg.Data = t.TempDir()
	cfg.Ingest.NetFlow.Listen, cfg.Ingest.SFlow.Listen, cfg.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	t.Setenv("POSTERN_TEST_SECRET", siem.NewWebhookSecret())
	cfg.Targets = []siem.TargetConfig{testTarget("https://siem.example.net/")}
	s, err := newService(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer s.spool.Close()
	defer s.store.close()
	defer s.answering.listener.Close()
	cfg.Kafka.Brokers = []string{"127.0.0.1:9092"}
	collector, err := newCollector(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	detection, err := newDetection(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	forwarder, err := newForwarder(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	stored := prometheus.NewRegistry() // the store's own are there once it answers
	endpoint, token := embeddedtest.Start(t)
	db, err := sink.Open(t.Context(), sink.DefaultClickHouseConfig(), sink.Options{Endpoint: endpoint, Token: token, Metrics: stored})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	descs := make(chan *prometheus.Desc)
	go func() {
		for _, r := range []*prometheus.Registry{s.registry, collector.registry, detection.registry, forwarder.registry, stored} {
			r.Describe(descs)
		}
		close(descs)
	}()
	for _, r := range []*prometheus.Registry{s.registry, collector.registry, detection.registry, forwarder.registry, stored} {
		families, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if kind := strings.ToLower(f.GetType().String()); strings.HasPrefix(f.GetName(), "postern_") && kind != metricKind(f.GetName()) {
				t.Errorf("%s is a %s, and by its name a %s", f.GetName(), kind, metricKind(f.GetName()))
			}
		}
	}
	seen := map[string]metricDoc{}
	for d := range descs {
		m := descText.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("cannot read %s", d)
		}
		help, err := strconv.Unquote(m[2])
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(m[1], "postern_") {
			seen[m[1]] = metricDoc{m[1], metricKind(m[1]), help}
		}
	}
	return slices.SortedFunc(maps.Values(seen), func(a, b metricDoc) int { return strings.Compare(a.name, b.name) })
}

// metricKind tells the type from the name, which follows the Prometheus conventions.
func metricKind(name string) string {
	switch {
	case strings.HasSuffix(name, "_total"):
		return "counter"
	case strings.HasSuffix(name, "_size"):
		return "histogram"
	}
	for _, what := range []string{"duration", "request", "sync", "insert"} { // of which there is one each time
		if strings.HasSuffix(name, "_"+what+"_seconds") {
			return "histogram"
		}
	}
	return "gauge"
}
