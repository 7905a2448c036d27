package agent

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/postern/postern/flow"
)

// directLines are lines that have everything in them that programs tell apart.
var directLines = []string{
	`{"a":"Text","b":{"a":1,"b":[{"a":"In A List","c":null},2,"x"],"c":{"a":{"a":{"a":true}}}},"c":false,"d":null,"e":-17,"f":1.5,"g":[],"":"unnamed","a.b":"dotted","A":"ÄÖ"}`,
	`{"a":"","b":null,"c":[1,2,3],"d":"x","e":0,"f":1e3,"g":{"a":"g"}}`,
	`{"a":7,"b":"b","c":{"a":"1"},"d":true,"e":12345678901234567890,"a":"last","a b":"\u0041\ud800"}`,
	`{"a":[["x"]],"b":{"b":{"b":"deep"}},"c":"C","f":-0,"g":null}`,
	`{"a":"A","b":"B","c":{"c":["C"]},"e":3,"d":false,"g":true,"f":12345678901234567890}`,
	`{}`,
}

// ran is what a program gives on a line, as a value and as a condition. whole is to read the
// line whole and to give gojq all of it.
func ran(t *testing.T, p customPath, line string, columns []string, whole bool) (out string) {
	t.Helper()
	d := &Decoder{names: flow.NewNames(0)}
	f := &customFormat{json: columns == nil, columns: columns, separator: ',', kind: &flowMapping}
	if len(columns) > 0 && columns[0] == "=" {
		f.columns, f.pairs, f.separator = nil, true, ' '
	}
	f.placePath(&p)
	f.reads.all = f.reads.all || whole
	f.placeReads()
	read := f.reader(d, func(l *customLine, _ *entry) error {
		b, err := l.get(&p)
		holds, failed := l.holds(&p)
		out = fmt.Sprintf("%q %v %v, %v %v", b, b == nil, err, holds, failed)
		return nil
	})
	if err := read([]byte(line), &entry{d: d}); err != nil {
		t.Fatal(line, err)
	}
	return out
}

// directly runs a program over a line in every way there is, and holds them to what gojq makes
// of the whole line.
func directly(t *testing.T, program, line string, columns []string) (known bool) {
	t.Helper()
	p, err := compileJQ(program)
	if err != nil {
		return false
	}
	jq := *p
	jq.direct = nil
	want := ran(t, jq, line, columns, true)
	for _, way := range []struct {
		name  string
		p     customPath
		whole bool
	}{{"directly", *p, false}, {"directly on a tree", *p, true}, {"by gojq on what it reads", jq, false}} {
		if got := ran(t, way.p, line, columns, way.whole); got != want {
			t.Errorf("%s on %s\n%s gives %s\n want %s", program, line, way.name, got, want)
		}
	}
	return p.direct != nil
}

// TestDirect holds direct programs to what gojq makes of them, over programs of every kind put
// together at random.
func TestDirect(t *testing.T) {
	for _, program := range []string{`.a`, `.b.b[0].a`, `.b.b[-1]`, `.a // .b`, `.d // .g // "none"`, `.a?`, `.b.a.c?`, `.["a"]`, `."a.b"`, `.b["b"][1]`,
		`.a | ascii_downcase`, `(.a // "x") | ascii_upcase`, `"\(.a)-\(.e)"`, `.a + ":" + .b`, `if .c then .a else .b end`, `if .c then .a elif .d == null then "n" else .b end`,
		`select(.a == "Text") | .e`, `.c == false and .d == null`, `.a != "x" or .b`, `.c | not`, `empty`, `try .a.b`, `.e | tostring`, `.["A"] | ascii_downcase`} {
		for _, line := range directLines {
			if !directly(t, program, line, nil) {
				t.Errorf("%s takes gojq", program)
			}
		}
		directly(t, program, `Text,"in ""quotes""",,x,1`, []string{"a", "b", "c", "d", "a"})
		directly(t, program, `a=Text b="x" a=second c= =`, []string{"="})
	}
	for _, program := range []string{`.a[]`, `.[.a]`, `def f: 1; f`, `. as $x | $x`, `.a[0:1]`, `.a, .b`, `[.a]`, `{a}`, `.a |= 1`, `.a | test("x")`, `reduce .a as $i (0; 1)`, `..`} {
		p, err := compileJQ(program)
		if err != nil || p.direct != nil {
			t.Errorf("%s does not take gojq (%v)", program, err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	known := 0
	const programs = 4000
	for range programs {
		program := directProgram(rng, 3)
		line := directLines[rng.IntN(len(directLines))]
		if directly(t, program, line, nil) {
			known++
		}
		directly(t, program, `Text,"in ""quotes""",,x,1`, []string{"a", "b", "c", "d", "a"})
		directly(t, program, `a=Text b="x" a=second c= =`, []string{"="})
	}
	if known < programs*9/10 {
		t.Errorf("of %d programs %d are direct", programs, known)
	}
}

// directProgram makes up a program.
func directProgram(rng *rand.Rand, depth int) string {
	if depth == 0 || rng.IntN(4) == 0 {
		var b strings.Builder
		b.WriteString([]string{".a", ".b", ".c", ".d", ".e", ".f", ".g", ".", `.""`, `.["a"]`}[rng.IntN(10)])
		for range rng.IntN(4) {
			b.WriteString([]string{".a", ".b", ".c", "[0]", "[1]", "[-1]", "[5]", "?", `["c"]`}[rng.IntN(9)])
		}
		return b.String()
	}
	sub := func() string { return directProgram(rng, depth-1) }
	switch rng.IntN(14) {
	case 0, 1:
		return "(" + sub() + " // " + sub() + ")"
	case 2:
		return "(" + sub() + " | " + sub() + ")"
	case 3:
		return "(" + sub() + []string{" == ", " != "}[rng.IntN(2)] + sub() + ")"
	case 4:
		return "(" + sub() + []string{" and ", " or "}[rng.IntN(2)] + sub() + ")"
	case 5:
		return "(" + sub() + " + " + sub() + ")"
	case 6:
		return "if " + sub() + " then " + sub() + " elif " + sub() + " then " + sub() + " else " + sub() + " end"
	case 7:
		return "if " + sub() + " then " + sub() + " end"
	case 8:
		return "(" + sub() + " | " + []string{"ascii_downcase", "ascii_upcase", "tostring", "not", "empty"}[rng.IntN(5)] + ")"
	case 9:
		return `"x\(` + sub() + `)y\(` + sub() + `)"`
	case 10:
		return "select(" + sub() + ")"
	case 11:
		return "(try " + sub() + ")"
	case 12:
		return []string{`"Text"`, `""`, "1", "-17", "null", "true", "false", "empty"}[rng.IntN(8)]
	}
	return "(" + sub() + ")" + []string{".a", "[0]", "?"}[rng.IntN(3)]
}

// TestReads holds programs to the same on the members they read as on the whole line.
func TestReads(t *testing.T) {
	for program, some := range map[string]bool{
		`.a | test("x")`: true, `[.a, .b.b[.e]] | length`: true, `.b[.a]?`: true, `.a as $x | .b`: false, `if .a then .b end`: false, `.`: false, `.[]`: false,
		`.["a"]`: false, `."a" + "\(.e)"`: true, `@base64 "\(.a)"`: true, `@json`: false, `keys`: false, `select(.a)`: false, `.a, .`: false, `try .a.b catch .`: true,
		`.a = 1`: false, `.a | keys`: true, `-.e`: true, `.b["\(.a)"]`: true, `first(.a)`: false, `{a}`: false, `def f: .; f`: false, `..`: false, `(.a // .b) | tojson`: true,
		`. | .a`: false, `empty`: true, `.b | .b as $x | $x | length`: true, `.a[.c:]`: true, `reduce .c as $i (0; 1)`: false,
	} {
		p, err := compileJQ(program)
		if err != nil || p.reads.all == some {
			t.Errorf("%s: reads only some members: %v, want %v (%v)", program, !some, some, err)
		}
		for _, line := range directLines {
			directly(t, program, line, nil)
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		directly(t, "["+directProgram(rng, 3)+", .e] | tojson", directLines[rng.IntN(len(directLines))], nil)
	}
}

// FuzzDirect is [TestDirect] on programs and lines from outside.
func FuzzDirect(f *testing.F) {
	for i, program := range []string{`.a.b[0].c`, `.a // .b`, `"\(.a)\(.b)"`, `if .a then .b else empty end`, `select(.a == 1)`, `.a?.b | ascii_downcase`, `-1 + -.a`, `.[-1]`, `."x"["y"]`} {
		f.Add(program, directLines[i%len(directLines)])
	}
	f.Fuzz(func(t *testing.T, program, line string) {
		d := &Decoder{}
		if v, err := d.json.Parse(line); err != nil || v.GetObject() == nil || len(line) > 1<<12 || len(program) > 1<<8 {
			return
		}
		directly(t, program, line, nil)
	})
}

// TestDirectAllocates holds that direct programs cost no memory of their own.
func TestDirectAllocates(t *testing.T) {
	cfg := Config{BelieveClock: true, Custom: []CustomConfig{{Name: "x", FlowIf: `.a == "A" and (.c | not)`, Fields: map[string]string{
		"src_addr": ".s[0]", "dst_addr": `.none // .d`, "app": `.a | ascii_downcase`, "policy": `"\(.a)/\(.n)"`, "observer": `if .c then .a else .a + ":" + .a end`}}}}
	d, err := NewDecoder("x", cfg, flow.NewNames(0))
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(`{"s":["10.0.0.1"],"d":"10.0.0.2","a":"A","n":5,"c":false}`)
	batch := flow.NewBatch(4, nil)
	var o Origin
	decode := func() {
		batch.Reset()
		if err := d.Decode(line, 0, &o, batch); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(20, decode); n != 0 {
		t.Errorf("%v allocations", n)
	}
	r := &batch.Records[0]
	got := []string{d.names.Text(r.App), d.names.Text(r.EnforcedBy), d.names.Text(r.Observer)}
	if !slices.Equal(got, []string{"a", "A/5", "A:A"}) {
		t.Errorf("%q", got)
	}
}
