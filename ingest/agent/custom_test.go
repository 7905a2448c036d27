package agent

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/postern/postern/flow"
)

// customConfig reads the formats of testdata/custom.yaml.
func customConfig(t testing.TB) Config {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "custom.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var c Config
	if err := yaml.UnmarshalWithOptions(raw, &c, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	c.BelieveClock = true
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCustomSamples(t *testing.T) {
	cfg := customConfig(t)
	if err := cfg.Compile(); err != nil {
		t.Fatal(err)
	}
	for _, c := range cfg.Custom {
		t.Run(c.Name, func(t *testing.T) {
			file := filepath.Join("testdata", "custom-"+c.Name)
			raw, err := os.ReadFile(file + ".log")
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(decodeWith(t, c.Name, cfg, raw).text, "\n") + "\n"
			if *update {
				if err := os.WriteFile(file+".golden", []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestCustomErrors are configurations that are wrong: what they are told.
func TestCustomErrors(t *testing.T) {
	for _, c := range []struct{ name, yaml, want string }{
		{"a name of ours", "{name: hubble, time: s, fields: {src_addr: a, dst_addr: b}}",
			`custom format "hubble": name: hubble is a format of Postern's own; choose another`},
		{"a name for no URL", "{name: My Format, fields: {src_addr: a, dst_addr: b}}",
			`custom format "My Format": name is "My Format"; want 1 to 32 lower-case letters, digits and hyphens`},
		{"no address", "{name: x, fields: {src_addr: a}}", `custom format "x": fields.dst_addr is missing; want the path of that address`},
		{"no such field", "{name: x, fields: {src_addr: a, dst_addr: b, dst_prt: c}}",
			`custom format "x": fields.dst_prt is no field of a flow; did you mean dst_port?`},
		{"no jq", "{name: x, fields: {src_addr: a, dst_addr: b, app: '.a | '}}",
			`custom format "x": fields.app: no jq program, at its line 1, column 5: unexpected EOF; want a path such as src.ip, a text in quotes or a jq program`},
		{"no such function", "{name: x, fields: {src_addr: a, dst_addr: b, app: '.a | frobnicate'}}",
			`custom format "x": fields.app: no jq program: function not defined: frobnicate/0`},
		{"a clock", "{name: x, time: s, fields: {src_addr: a, dst_addr: b, time_start: 'if .t then .t else (1 | [now][0]) end'}}",
			`custom format "x": fields.time_start: the jq program uses now, which needs a clock; want one that depends on the line alone`},
		{"the environment", "{name: x, fields: {src_addr: a, dst_addr: b, app: '\"\\(env.HOME)\"'}}",
			`custom format "x": fields.app: the jq program uses env, which needs the environment; want one that depends on the line alone`},
		{"$ENV", "{name: x, fields: {src_addr: a, dst_addr: b, app: '$ENV.HOME'}}",
			`custom format "x": fields.app: the jq program uses $ENV, which needs the environment; want one that depends on the line alone`},
		{"input", "{name: x, flowIf: '[inputs] | length > 0', fields: {src_addr: a, dst_addr: b}}",
			`custom format "x": flowIf: the jq program uses inputs, which needs another input; want one that depends on the line alone`},
		{"a module", "{name: x, fields: {src_addr: a, dst_addr: b, app: 'import \"m\" as m; m::f'}}",
			`custom format "x": fields.app: the jq program imports a module; want one that stands by itself`},
		{"a verdict that is none", "{name: x, fields: {src_addr: a, dst_addr: b, observed: c}, values: {observed: {pass: alow}}}",
			`custom format "x": values.observed["pass"] is "alow"; want one of unknown, allow, deny, audit`},
		{"a constant that is none", "{name: x, fields: {src_addr: a, dst_addr: b, proto: '\"quic\"'}}",
			`custom format "x": fields.proto is "quic"; want a protocol by number or name`},
		{"values of nothing", "{name: x, fields: {src_addr: a, dst_addr: b}, values: {observed: {pass: allow}}}",
			`custom format "x": values.observed has no fields.observed to go with; add that, or leave it out`},
		{"no time", "{name: x, fields: {src_addr: a, dst_addr: b, time_start: t}}",
			`custom format "x": time is missing; want rfc3339, s, ms, us, ns or a layout of Go with a zone, such as 2006-01-02 15:04:05 -0700`},
		{"a time without a zone", "{name: x, time: '2006-01-02 15:04:05', fields: {src_addr: a, dst_addr: b, time_start: t}}",
			`custom format "x": time: the layout "2006-01-02 15:04:05" has no zone; want one such as -0700, Z07:00 or a literal UTC with a program that adds it`},
		{"no layout", "{name: x, time: 'YYYY-MM-DD', fields: {src_addr: a, dst_addr: b, time_start: t}}",
			`custom format "x": time is "YYYY-MM-DD"; want rfc3339, s, ms, us, ns or a layout of Go with date, time and zone, such as 2006-01-02 15:04:05 -0700`},
		{"a type", "{name: x, type: xml, fields: {src_addr: a, dst_addr: b}}", `custom format "x": type is "xml"; want json, delimited or keyvalue`},
		{"a separator", "{name: x, type: delimited, separator: '; ', fields: {src_addr: a, dst_addr: b}}",
			`custom format "x": separator is "; "; want one character, or the word tab or space`},
		{"a tab", `{name: x, type: delimited, separator: "\t", fields: {src_addr: a, dst_addr: b}}`,
			`custom format "x": separator is "\t"; want one character, or the word tab or space`},
		{"a separator of pairs", "{name: x, type: keyvalue, separator: '=', fields: {src_addr: a, dst_addr: b}}",
			`custom format "x": separator cannot be "=", which has a meaning of its own; want another`},
		{"a column", "{name: x, type: delimited, columns: [a, b], fields: {src_addr: a, dst_addr: c}}",
			`custom format "x": fields.dst_addr: there is no column "c"; want one of a, b`},
		{"columns of JSON", "{name: x, columns: [a, b], fields: {src_addr: a, dst_addr: b}}",
			`custom format "x": separator and columns are for type delimited or keyvalue, this one is json; leave them out or set type`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var cfg CustomConfig
			if err := yaml.Unmarshal([]byte(c.yaml), &cfg); err != nil {
				t.Fatal(err)
			}
			if err := cfg.Validate(); err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if _, err := NewDecoder(cfg.Name, Config{Custom: []CustomConfig{cfg}}, flow.NewNames(0)); err == nil {
				t.Error("a decoder is made all the same")
			}
		})
	}
	ok := CustomConfig{Name: "x", Fields: map[string]string{"src_addr": "a", "dst_addr": "b"}}
	c := Config{Custom: []CustomConfig{ok, ok}}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "two of that name") {
		t.Error(err)
	}
	c.Custom = c.Custom[:1]
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if _, err := NewDecoder("y", c, flow.NewNames(0)); err == nil || !strings.Contains(err.Error(), "did you mean x?") {
		t.Error(err)
	}
}

// TestCustomBounds are lines that a program does too much about.
func TestCustomBounds(t *testing.T) {
	cfg := Config{BelieveClock: true, Custom: []CustomConfig{{Name: "x", Fields: map[string]string{
		"src_addr": "s", "dst_addr": "d", "app": `reduce range(.n) as $i (0; . + 1) | tostring`}}}}
	got := decodeWith(t, "x", cfg, []byte(`{"s":"10.0.0.1","d":"10.0.0.2","n":10}
{"s":"10.0.0.1","d":"10.0.0.2","n":1000000000}
{"s":"10.0.0.1","d":"10.0.0.2","n":11}
`)).text
	if len(got) != 3 || !strings.Contains(got[0], `"app":"10"`) || got[1] != "rejected: app: "+errSteps.Error() || !strings.Contains(got[2], `"app":"11"`) {
		t.Errorf("%q", got)
	}
}

// TestCustomFieldsDocumented holds the page of this format to the fields there are.
func TestCustomFieldsDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "agents", "custom.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range customFields() {
		if !strings.Contains(string(page), "`"+f.name+"`") {
			t.Errorf("docs/agents/custom.md does not name %s", f.name)
		}
	}
	for name := range jqRefused {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/agents/custom.md does not say that %s is refused", name)
		}
	}
}

// TestCustomYAML holds that configurations are written in one order: what is written decides
// whether the settings of a spool have changed.
func TestCustomYAML(t *testing.T) {
	cfg := customConfig(t)
	first, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		again, err := yaml.Marshal(cfg)
		if err != nil || string(again) != string(first) {
			t.Fatalf("%v\n%s", err, cmp.Diff(string(first), string(again)))
		}
	}
	var back Config
	if err := yaml.Unmarshal(first, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(cfg.Custom, back.Custom, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
}

// TestCustomPlaces are plain paths of every kind, found by place and not by name.
func TestCustomPlaces(t *testing.T) {
	deep := strings.Repeat("a.", maxDots+2) + "b"
	cfg := Config{BelieveClock: true, Custom: []CustomConfig{{Name: "x", FlowIf: "src.ip", Fields: map[string]string{
		"src_addr": "src.ip", "dst_addr": `.""`, "observer": "src.ip", "app": deep, "policy": "list.1.name", "src_host": `."a b.c"`, "dst_host": `"src.ip"`}}}}
	got := decodeWith(t, "x", cfg, []byte(`{"":"10.0.0.2","src.ip":null,"src":{"ip":"10.0.0.1"},"a":{"a.a":{"a.a.a":{"a":{"a":{"b":"deep"}}}}},"list":[0,{"name":"second"}],"a b":{"c":"spaced"}}
{"":"10.0.0.2","src":{"ip":null}}
`))
	if len(got.text) != 2 || got.text[1] != "no flow: a line that flowIf leaves out" {
		t.Fatalf("%q", got.text)
	}
	spot(t, got, 0, `{"src_addr":"10.0.0.1","dst_addr":"10.0.0.2","observer":"10.0.0.1","app":"deep","policy":"second","src_host":"spaced","dst_host":"src.ip"}`)
}

func TestPlainPaths(t *testing.T) {
	for in, want := range map[string]string{"src.ip": "src.ip", ".src.ip": "src.ip", "@timestamp": "@timestamp", "a-b.0.c": "a-b.0.c", `."Source IP"`: "Source IP",
		".": "", "a..b": "", ".a | .b": "", `"text"`: "", ".a[0]": "", "a b": "", ".a + 1": ""} {
		got, ok := plainPath(in)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%s is %q, %v; want %q", in, got, ok, want)
		}
	}
}

func FuzzCustom(f *testing.F) {
	cfg := customConfig(f)
	if err := cfg.Compile(); err != nil {
		f.Fatal(err)
	}
	for i, c := range cfg.Custom {
		raw, err := os.ReadFile(filepath.Join("testdata", "custom-"+c.Name+".log"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), raw)
	}
	f.Fuzz(func(t *testing.T, which uint8, raw []byte) {
		if len(raw) > 1<<16 {
			return
		}
		name := cfg.Custom[int(which)%len(cfg.Custom)].Name
		a, b := decodeWith(t, name, cfg, raw), decodeWith(t, name, cfg, raw)
		if !slices.Equal(a.text, b.text) {
			t.Errorf("the same bytes give something else: %s", cmp.Diff(a.text, b.text))
		}
		for i := range a.batch.Records {
			if r := &a.batch.Records[i]; r.Start <= 0 || r.End < r.Start || !r.All(flow.HasSrc|flow.HasDst) {
				t.Errorf("a flow from %v to %v, has %b", r.Start, r.End, r.Has)
			}
		}
	})
}

// BenchmarkCustom measures formats of plain paths only, with programs that need no gojq, and
// with one that does.
func BenchmarkCustom(b *testing.B) {
	plain := map[string]string{"src_addr": "src.ip", "dst_addr": "dst.ip", "src_port": "src.port", "dst_port": "dst.port", "proto": "proto",
		"time_start": "begin", "bytes": "sent", "rev_bytes": "received", "observed": "verdict", "policy": "rule", "app": "app"}
	programs := maps.Clone(plain)
	programs["policy"], programs["app"] = `.rule // "none"`, `.app | ascii_downcase`
	interpreted := maps.Clone(programs)
	interpreted["app"] = `.app | ltrimstr("x-")`
	var json, csv, pairs strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&json, `{"event":{"kind":"session"},"src":{"ip":"10.1.0.%d","port":%d},"dst":{"ip":"10.2.0.9","port":443},"proto":"tcp","begin":%d,"sent":1800,"received":9000,"verdict":"pass","rule":"web-out","app":"https","device":{"name":"edge","serial":"0123456789"}}`+"\n",
			i%256, 40000+i, 1790953445123+i)
		fmt.Fprintf(&csv, "10.1.0.%d,%d,10.2.0.9,443,tcp,%d,1800,9000,pass,web-out,https\n", i%256, 40000+i, 1790953445123+i)
		fmt.Fprintf(&pairs, "src.ip=10.1.0.%d src.port=%d dst.ip=10.2.0.9 dst.port=443 proto=tcp begin=%d sent=1800 received=9000 verdict=\"pass\" rule=\"web-out\" app=https\n",
			i%256, 40000+i, 1790953445123+i)
	}
	values := map[string]map[string]string{"observed": {"pass": "allow", "block": "deny"}}
	columns := []string{"src.ip", "src.port", "dst.ip", "dst.port", "proto", "begin", "sent", "received", "verdict", "rule", "app"}
	for _, c := range []struct {
		name string
		cfg  CustomConfig
		raw  string
	}{
		{"json", CustomConfig{Name: "x", Time: "ms", FlowIf: `event.kind == "session"`, Fields: plain, Values: values}, json.String()},
		{"json-jq", CustomConfig{Name: "x", Time: "ms", FlowIf: `event.kind == "session"`, Fields: programs, Values: values}, json.String()},
		{"json-gojq", CustomConfig{Name: "x", Time: "ms", FlowIf: `event.kind == "session"`, Fields: interpreted, Values: values}, json.String()},
		{"delimited", CustomConfig{Name: "x", Type: "delimited", Columns: columns, Time: "ms", Fields: plain, Values: values}, csv.String()},
		{"keyvalue", CustomConfig{Name: "x", Type: "keyvalue", Time: "ms", Fields: plain, Values: values}, pairs.String()},
	} {
		b.Run(c.name, func(b *testing.B) {
			d, err := NewDecoder("x", Config{BelieveClock: true, Custom: []CustomConfig{c.cfg}}, flow.NewNames(0))
			if err != nil {
				b.Fatal(err)
			}
			o := Origin{Received: 1_700_000_000_000}
			batch := flow.NewBatch(1024, nil)
			lines := strings.Split(strings.TrimSpace(c.raw), "\n")
			raw := make([][]byte, len(lines))
			for i, l := range lines {
				raw[i] = []byte(l)
			}
			b.SetBytes(int64(len(c.raw)))
			b.ReportAllocs()
			for b.Loop() {
				batch.Reset()
				for i, l := range raw {
					if err := d.Decode(l, uint64(i), &o, batch); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(len(lines))*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}
