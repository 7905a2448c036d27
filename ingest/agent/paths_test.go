package agent

import (
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
		for found := range 2 { // what the line before had is forgotten
			got := p.new()
			if found == 1 {
				got.read(fastjson.MustParse(`{"a":{"b":1,"b.c":2},"a.b.c":3}`))
			}
			got.read(v)
			for i, name := range names {
				if want := dig(v, name); want != got.at[i] {
					t.Errorf("%s of %s is %v, want %v", name, text, got.at[i], want)
				}
			}
		}
	})
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
