package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/valyala/fastjson"
)

// FuzzPaths holds that one pass finds what looking for one path after another does.
func FuzzPaths(f *testing.F) {
	for _, seed := range [][2]string{
		{`{"a":{"b":1,"b.c":2},"a.b.c":3,"d":[{"e":4},5]}`, "a.b a.b.c d.0.e d.1 d.01 d.+1 d a.b.c.d"},
		{`{"a":null,"a":{"b":1},"a.b":null,"c":{"a.b":2}}`, "a.b a c.a.b"},
		{`{"a.b":null,"a":{"b":2}}`, "a.b"},
		{`{"a":{"b.c":{"d":1},"b":{"c.d":2}}}`, "a.b.c.d"},
		{`{"":{"":1},".":2,"a":{"":3}}`, ". .. a."},
		{`{"a\u0062":1,"c\td":{"e":2}}`, "ab c\td.e"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, text, asked string) {
		if len(text) > 1<<12 || len(asked) > 1<<8 {
			return
		}
		var parser fastjson.Parser
		v, err := parser.Parse(text)
		if (err != nil || v.Type() != fastjson.TypeObject) && (&paths{}).new().scan([]byte(text)) {
			t.Errorf("%q is scanned; %v", text, err)
		}
		if err != nil || v.Type() != fastjson.TypeObject || doubled(v) {
			return
		}
		p := &paths{}
		var names []string
		for name := range strings.FieldsSeq(asked) {
			if strings.Count(name, ".") <= maxDots && !slices.Contains(names, name) {
				names = append(names, name)
				p.add(digWays(name)...)
			}
		}
		const before = `{"a":{"b":1,"b.c":2},"a.b.c":3}` // what the line before had is forgotten
		got := p.new()
		got.read(fastjson.MustParse(before))
		got.read(v)
		for i, name := range names {
			if want := shownAs(got.value(dig(v, name))); want != shownAs(*got.at(i)) {
				t.Errorf("%s of %s is %s, want %s", name, text, shownAs(*got.at(i)), want)
			}
		}
		if got.scan([]byte(before)); !got.scan([]byte(text)) {
			return
		}
		for i, name := range names {
			if want := shownAs(got.value(dig(v, name))); want != shownAs(*got.at(i)) {
				t.Errorf("%s of %s is scanned as %s, want %s", name, text, shownAs(*got.at(i)), want)
			}
		}
	})
}

// shownAs is all there is about a value.
func shownAs(v value) string {
	if v.kind == valueNode {
		return string(v.node.MarshalTo(nil))
	}
	return fmt.Sprintf("%d %q", v.kind, v.text)
}

// TestScan holds that lines as they come are scanned, so that what is measured is what runs.
func TestScan(t *testing.T) {
	p := &paths{}
	for _, name := range []string{"a", "b.c", "d"} {
		p.add(digWays(name)...)
	}
	for line, want := range map[string]bool{
		`{"a":"x","b":{"c":-1.5e+3,"x":[1,"2",{"y":null},[]]},"z":{},"d":"a \"quoted\\\\"}`: true,
		" {\t\"a\" : true , \"b.c\" : false\r\n } ":                                         true, `{}`: true, `{"a":[1,{"b":"c"}]}`: true,
		`{"a\u0020":1}`: false, `{"a":1,}`: false, `{"a":1}x`: false, `[1]`: false, ``: false, `{"a":nan}`: false, `{"a":.5}`: false, `{"a":"`: false, `{"a":tru}`: false,
		`{"a":"` + strings.Repeat("x", maxScanValue) + `"}`: true, `{"a":"\\n` + strings.Repeat("x", maxScanValue) + `"}`: false, `{"x":"\\n` + strings.Repeat("x", maxScanValue) + `"}`: true,
		`{"x":` + strings.Repeat("[", maxScanDepth+1) + strings.Repeat("]", maxScanDepth+1) + `}`: false,
	} {
		if got := p.new().scan([]byte(line)); got != want {
			t.Errorf("%s: scanned is %v, want %v", line, got, want)
		}
	}
	p.add([]string{"list", "0"})
	if p.new().scan([]byte(`{"list":[1]}`)) {
		t.Error("a path through a list is scanned")
	}
}

// doubled says whether an object has two members of a name, of which one is written with an
// escape: which of the two is found first is the parser's affair.
func doubled(v *fastjson.Value) (twice bool) {
	names := map[string]bool{}
	v.GetObject().Visit(func(key []byte, m *fastjson.Value) {
		twice = twice || names[string(key)] || doubled(m)
		names[string(key)] = true
	})
	for _, m := range v.GetArray() {
		twice = twice || doubled(m)
	}
	return twice
}
