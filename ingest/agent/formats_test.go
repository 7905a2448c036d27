package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

var update = flag.Bool("update", false, "write what was decoded as what is expected")

// decoded is what a file gave.
type decoded struct {
	names    *flow.Names
	batch    *flow.Batch
	lines    int
	notFlow  map[string]int
	rejected map[string]int
	text     []string // what each line gave, for goldens
}

// decodeAll decodes a whole input.
func decodeAll(t testing.TB, format string, raw []byte) *decoded {
	t.Helper()
	return decodeWith(t, format, Config{BelieveClock: true}, raw)
}

func decodeWith(t testing.TB, format string, cfg Config, raw []byte) *decoded {
	t.Helper()
	out := &decoded{names: flow.NewNames(0), batch: flow.NewBatch(64, nil), notFlow: map[string]int{}, rejected: map[string]int{}}
	d, err := NewDecoder(format, cfg, out.names)
	if err != nil {
		t.Fatal(err)
	}
	o := Origin{Seed: 1, Received: flow.TimeOf(flow.Time(1_700_000_000_000).Std())}
	s := Splitter{MaxItem: 1 << 20}
	var at int
	for len(raw) > at {
		item, n, err := s.Next(raw[at:], true)
		if n == 0 {
			t.Fatalf("the splitter stands still at byte %d", at)
		}
		if err == nil && len(item) > 0 {
			out.lines++
			from := len(out.batch.Records)
			err = d.Decode(item, uint64(at), &o, out.batch)
			for i := from; i < len(out.batch.Records); i++ {
				out.text = append(out.text, string(out.batch.Records[i].AppendJSON(nil, out.names.Texts())))
			}
		}
		var not NotFlow
		switch {
		case errors.As(err, &not):
			out.notFlow[string(not)]++
			out.text = append(out.text, "no flow: "+string(not))
		case err != nil:
			out.rejected[err.Error()]++
			out.text = append(out.text, "rejected: "+err.Error())
		}
		at += n
	}
	return out
}

// TestSamples decodes the sample of each format and compares with what is expected, field
// by field. A format without a sample fails.
func TestSamples(t *testing.T) {
	for _, f := range Formats() {
		files, err := filepath.Glob(filepath.Join("testdata", f.Name+"*.log"))
		if err != nil || len(files) == 0 {
			t.Errorf("%s has no sample testdata/%s*.log (%v)", f.Name, f.Name, err)
		}
		for _, file := range files {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".log"), func(t *testing.T) {
				raw, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				got := strings.Join(decodeAll(t, f.Name, raw).text, "\n") + "\n"
				golden := strings.TrimSuffix(file, ".log") + ".golden"
				if *update {
					if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
					t.Error(d)
				}
				// auto comes to the same.
				if auto := strings.Join(decodeAll(t, Auto, raw).text, "\n") + "\n"; f.known != nil && auto != got {
					t.Errorf("auto reads it otherwise: %s", cmp.Diff(strings.Split(got, "\n"), strings.Split(auto, "\n")))
				}
			})
		}
	}
}

// fixtures is the folder of logs that nobody of this project wrote.
func fixtures(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("POSTERN_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "fixtures")
	}
	dir = filepath.Join(dir, "agent")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no fixtures: %v", err)
	}
	return dir
}

// tally is what a fixture is expected to give.
type tally struct {
	lines, flows int
	observed     map[string]int
	notFlow      map[string]int
	rejected     map[string]int
}

// checkTally reads fixture files whole and compares the counts.
func checkTally(t *testing.T, format, pattern string, want tally) *decoded {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(fixtures(t), pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixture %s: %v", pattern, err)
	}
	slices.Sort(files)
	var raw []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		raw = append(append(raw, bytes.TrimRight(b, "\n")...), '\n')
	}
	d := decodeAll(t, format, raw)
	got := tally{lines: d.lines, flows: len(d.batch.Records), observed: map[string]int{}, notFlow: d.notFlow, rejected: d.rejected}
	for i := range d.batch.Records {
		got.observed[d.batch.Records[i].Enforced.String()]++
	}
	t.Logf("%s: %d lines, %d flows, observed %v, no flows %v, rejected %v", pattern, got.lines, got.flows, got.observed, got.notFlow, got.rejected)
	if want.notFlow == nil {
		want.notFlow = map[string]int{}
	}
	if want.rejected == nil {
		want.rejected = map[string]int{}
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(tally{})); diff != "" {
		t.Error(diff)
	}
	return d
}

// spot compares fields of the flow that line number (from 0) gave, as JSON.
func spot(t *testing.T, d *decoded, number int, want string) {
	t.Helper()
	var all, expected map[string]any
	if err := json.Unmarshal([]byte(d.text[number]), &all); err != nil {
		t.Fatalf("line %d gave %s: %v", number, d.text[number], err)
	}
	if err := json.Unmarshal([]byte(want), &expected); err != nil {
		t.Fatal(err)
	}
	got := maps.Clone(all)
	maps.DeleteFunc(got, func(k string, _ any) bool { _, asked := expected[k]; return !asked })
	for k, v := range expected {
		if v == nil { // must not be there
			delete(expected, k)
			if _, there := all[k]; there {
				t.Errorf("line %d has %s, which its log does not say", number, k)
			}
		}
	}
	if diff := cmp.Diff(expected, got); diff != "" {
		t.Errorf("line %d: %s", number, diff)
	}
}

// fuzzFormat checks what holds for every input of a format: no panic, flows only with
// addresses and times, ids that differ, and the same again from the same bytes.
func fuzzFormat(f *testing.F, format string) {
	files, err := filepath.Glob(filepath.Join("testdata", format+"*.log"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		for line := range bytes.Lines(raw) {
			f.Add(line)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<16 {
			return
		}
		a, b := decodeAll(t, format, raw), decodeAll(t, format, raw)
		if diff := cmp.Diff(a.text, b.text); diff != "" {
			t.Errorf("the same bytes give something else: %s", diff)
		}
		ids := map[uint64]bool{}
		for i := range a.batch.Records {
			r := &a.batch.Records[i]
			if r.Start <= 0 || r.End < r.Start {
				t.Errorf("a flow from %v to %v", r.Start, r.End)
			}
			if ids[r.ID] {
				t.Errorf("two flows with id %d", r.ID)
			}
			ids[r.ID] = true
		}
	})
}

func FuzzHubble(f *testing.F) { fuzzFormat(f, "hubble") }
func FuzzZeek(f *testing.F)   { fuzzFormat(f, "zeek") }

// benchFormat measures a format on its fixture, or on its sample where there is none.
func benchFormat(b *testing.B, format, pattern string) {
	var files []string
	if pattern == "" {
		files, _ = filepath.Glob(filepath.Join("testdata", format+"*.log"))
	} else {
		files, _ = filepath.Glob(filepath.Join(fixtures(b), pattern))
	}
	var raw []byte
	for _, f := range files {
		t, err := os.ReadFile(f)
		if err != nil {
			b.Fatal(err)
		}
		raw = append(append(raw, bytes.TrimRight(t, "\n")...), '\n')
	}
	benchRaw(b, format, raw)
}

// benchRaw measures a format on an input.
func benchRaw(b *testing.B, format string, raw []byte) {
	if len(raw) == 0 {
		b.Fatal("nothing to measure with")
	}
	names := flow.NewNames(0)
	d, err := NewDecoder(format, Config{BelieveClock: true}, names)
	if err != nil {
		b.Fatal(err)
	}
	o := Origin{Seed: 1, Received: 1_700_000_000_000}
	batch := flow.NewBatch(flow.BatchSize, nil)
	lines, flows := 0, 0
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		s := Splitter{MaxItem: 1 << 20}
		lines, flows = 0, 0
		for at := 0; at < len(raw); {
			item, n, err := s.Next(raw[at:], true)
			if err == nil && len(item) > 0 {
				lines++
				_ = d.Decode(item, uint64(at), &o, batch)
				if len(batch.Records) >= flow.BatchSize-64 {
					flows += len(batch.Records)
					batch.Reset()
				}
			}
			at += n
		}
		flows += len(batch.Records)
		batch.Reset()
	}
	b.ReportMetric(float64(lines)*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
	b.ReportMetric(float64(flows), "flows")
}

func BenchmarkHubble(b *testing.B) { benchFormat(b, "hubble", "hubble/*.json") }
func BenchmarkZeek(b *testing.B)   { benchFormat(b, "zeek", "zeek/conn.log") }

// benchLines measures a format on those lines of a sample that are numbered (from 0).
func benchLines(b *testing.B, format, file string, numbers ...int) {
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		b.Fatal(err)
	}
	lines := bytes.Split(text, []byte{'\n'})
	var raw []byte
	for range 50 {
		for _, n := range numbers {
			raw = append(append(raw, lines[n]...), '\n')
		}
	}
	benchRaw(b, format, raw)
}

// TestSplitter cuts inputs of every shape, also byte by byte as they trickle in.
func TestSplitter(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"lines", "a b\r\nc\n\nd", []string{"a b", "c", "d"}},
		{"objects a line", "{\"a\":1}\n{\"b\":\"}{\"}\n", []string{`{"a":1}`, `{"b":"}{"}`}},
		{"no newline between", `{"a":1}{"b":2}` + "\n", []string{`{"a":1}`, `{"b":2}`}},
		{"an array", `[{"a":1}, {"b":[{"c":2}]},{"d":"]}\""}]`, []string{`{"a":1}`, `{"b":[{"c":2}]}`, `{"d":"]}\""}`}},
		{"an array over lines", "[\n  {\"a\": 1},\n  {\n \"b\": 2\n  }\n]\n", []string{`{"a": 1}`, "{\n \"b\": 2\n  }"}},
		{"records", `{"records":[{"a":1},{"b":2}]}` + "\n", []string{`{"a":1}`, `{"b":2}`}},
		{"pretty", "{\n  \"a\": {\n  }\n}\n{\"b\":1}\n", []string{"{\n  \"a\": {\n  }\n}", `{"b":1}`}},
		{"broken among good", "{\"a\":1}\n{\"b\n{\"c\":1}\n", []string{`{"a":1}`, `{"b`, `{"c":1}`}},
		{"cut off behind a comma", "{\"a\":1,\n{\"b\":1}\n", []string{`{"a":1`, `{"b":1}`}},
		{"cut off behind a colon", "{\"a\":\n{\"b\":1}\n{\"c\":1}\n", []string{`{"a":`, `{"b":1}`, `{"c":1}`}},
		{"cut off behind a word", "{\"a\":[tru\n{\"b\":[]}\n", []string{`{"a":[tru`, `{"b":[]}`}},
		{"closed by another bracket", "{\"a\":1]\n{\"b\":1}\n", []string{`{"a":1`, `{"b":1}`}},
		{"cut in two in a string", "{\"a\":\"x\ny\"}\n{\"b\":1}\n", []string{"{\"a\":\"x\ny\"}", `{"b":1}`}},
		{"over lines, loosely", "{\"a\":[1,-2.5e3,\n null,],\n\"b\":{ },\n}{\"b\":1}\n", []string{"{\"a\":[1,-2.5e3,\n null,],\n\"b\":{ },\n}", `{"b":1}`}},
		{"broken in an array", `[{"a":1},{"b":"x},{"c":1}]`, []string{`{"a":1}`, `{"b":"x}`, `{"c":1}`}},
		{"empty columns", ",a,\r\n\tb\t\n  c \n \t \n,,\n\n d,\n\t\te", []string{",a,", "\tb\t", "c", "d,", "\t\te"}},
		{"objects with commas between", "{\n},\n\t{\"b\":1},\n", []string{"{\n}", `{"b":1}`}},
		{"empty array", "[]\n[ ]\n", nil},
		{"too long", strings.Repeat("x", 200) + "\ny\n", []string{"ErrItemTooLong", "y"}},
		{"a header in brackets", "[UFW BLOCK] IN=eth0\nx", []string{"[UFW BLOCK] IN=eth0", "x"}},
	} {
		for _, step := range []int{1, 3, 1 << 20} {
			t.Run(fmt.Sprintf("%s by %d", c.name, step), func(t *testing.T) {
				s := Splitter{MaxItem: 100}
				var got []string
				var buf []byte
				rest := c.in
				for {
					k := min(step, len(rest))
					buf, rest = append(buf, rest[:k]...), rest[k:]
					for {
						item, n, err := s.Next(buf, rest == "")
						if err != nil {
							got = append(got, "ErrItemTooLong")
						} else if len(item) > 0 {
							got = append(got, string(item))
						}
						buf = buf[n:]
						if n == 0 || len(buf) == 0 {
							break
						}
					}
					if rest == "" && len(buf) == 0 {
						break
					}
					if rest == "" && k == 0 {
						t.Fatalf("%q is left over", buf)
					}
				}
				if d := cmp.Diff(c.want, got); d != "" {
					t.Error(d)
				}
			})
		}
	}
}

// TestSplitterCutOff: a line that was cut off holds up those behind it no longer than it takes
// to see that they are others, however much more an item might have.
func TestSplitterCutOff(t *testing.T) {
	for _, cut := range []string{`{"a":"x`, `{"a":1`, `{"a":1,`, `{"a":`, `{`, `{"a":{"b":[`} {
		in := cut + "\n" + `{"b":{"c":"d"}}` + "\n" + `{"e":1}` + "\n"
		s := Splitter{MaxItem: 16 << 20}
		var got []string
		for at := 0; at < len(in); {
			item, n, err := s.Next([]byte(in[at:]), false)
			if n == 0 {
				t.Fatalf("%s: more bytes are waited for behind %q", cut, got)
			}
			if len(item) > 0 {
				got = append(got, string(item))
			}
			if err != nil {
				t.Fatal(err)
			}
			at += n
		}
		if d := cmp.Diff([]string{strings.TrimRight(cut, ","), `{"b":{"c":"d"}}`, `{"e":1}`}, got); d != "" {
			t.Errorf("%s: %s", cut, d)
		}
	}
}

// TestSplitterEffort: the rest of the input is not looked through for each of its lines or
// elements, which would take hours for what one request may bring.
func TestSplitterEffort(t *testing.T) {
	for _, line := range []string{"{\n", "{\"\n", "{\"a\":\n", "{\"a\":[\n", `{"a":1},`, `{"a":1}`, `{"a"},`} {
		in := bytes.Repeat([]byte(line), (1<<20)/len(line))
		if strings.HasSuffix(line, ",") {
			in = slices.Concat([]byte("["), bytes.Repeat(in, 4))
		} else if !strings.HasSuffix(line, "\n") {
			in = bytes.Repeat(in, 4)
		}
		s := Splitter{MaxItem: 16 << 20}
		began, items := time.Now(), 0
		for at := 0; at < len(in); {
			item, n, _ := s.Next(in[at:], true)
			if len(item) > 0 {
				items++
			}
			at += n
			if time.Since(began) > 20*time.Second {
				t.Fatalf("%q: only %d of %d bytes in 20 s", line, at, len(in))
			}
		}
		if want := len(in) / len(line); items != want { // a bracket does not count
			t.Errorf("%q: %d items, want %d", line, items, want)
		}
	}
}

func FuzzSplitter(f *testing.F) {
	f.Add([]byte("[{\"a\":1},{}]\n{\"records\":[{}]}"))
	f.Add([]byte("{\"a\": [1, -2.5e3, null, \"\\\"\\\\\", []], \"b\":{\"c\" :true}, \"\":{}}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := Splitter{MaxItem: 64}
		steps := 0
		for at := 0; at < len(raw); steps++ {
			item, n, _ := s.Next(raw[at:], true)
			if n <= 0 || n > len(raw)-at || len(item) > n {
				t.Fatalf("%d bytes done with, item of %d, of %d", n, len(item), len(raw)-at)
			}
			at += n
		}
		if b := bytes.Trim(raw, " \t\r\n"); len(b) > 0 && b[0] == '{' && json.Valid(b) && strings.Count(string(b), "{")+strings.Count(string(b), "[") <= maxNesting {
			if n, broken := object(b); n != len(b) || broken {
				t.Fatalf("%q: an object of %d bytes, broken %v; encoding/json reads it whole", b, n, broken)
			}
		}
	})
}

func TestUnknownFormat(t *testing.T) {
	_, err := NewDecoder("huble", Config{}, flow.NewNames(0))
	if err == nil || !strings.Contains(err.Error(), "did you mean hubble?") {
		t.Error(err)
	}
}

func TestTimes(t *testing.T) {
	for in, want := range map[string]string{
		"2026-10-02T15:04:05.123456789Z": "2026-10-02T15:04:05.123Z",
		"2026-10-02 15:04:05":            "2026-10-02T15:04:05.000Z",
		"2026-10-02T15:04:05+02:00":      "2026-10-02T13:04:05.000Z",
		"2026-10-02T15:04:05.5-0130":     "2026-10-02T16:34:05.500Z",
		"2000-02-29T00:00:00Z":           "2000-02-29T00:00:00.000Z",
		"1969-12-31T23:59:59Z":           "1969-12-31T23:59:59.000Z",
		"2026-13-02T15:04:05Z":           "",
		"2026-10-02T15:04:05.Z":          "",
		"2026-10-02T15:04:05+2:00":       "",
		"2026-10-02":                     "",
	} {
		if got, ok := when([]byte(in)); got.String() != want || ok != (want != "") {
			t.Errorf("%s is read as %v, want %s", in, got, want)
		}
	}
	for in, want := range map[string]flow.Time{"1637501832": 1637501832000, "629503200.0": 629503200000, "1193369795.014346": 1193369795014,
		"1.7e9": 1700000000000, "-1": 0, "": 0, "1.2.3": 0} {
		if got, ok := epoch([]byte(in)); got != want || ok != (want != 0) {
			t.Errorf("%s is read as %d, want %d", in, got, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string]string{"10.0.0.1": "10.0.0.1", "::ffff:10.0.0.1": "10.0.0.1", "fe80::1%eth0": "fe80::1",
		"10.0.0.256": "", "10.0.0.01": "", "10.0.0": "", "10.0.0.1:80": "", "host": "", "": ""} {
		got, ok := addr([]byte(in))
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%s is read as %v, want %s", in, got, want)
		}
	}
}
