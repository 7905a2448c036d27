package main

import (
	"strings"
	"testing"
)

func TestCount(t *testing.T) {
	for _, c := range []struct {
		name, in                string
		passed, failed, skipped int
		bad                     bool
	}{
		{"nothing", "", 0, 0, 0, false},
		{"each kind", `{"Action":"start","Package":"p"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"A/sub"}
{"Action":"skip","Package":"p","Test":"B"}
{"Action":"fail","Package":"p","Test":"C"}
{"Action":"fail","Package":"p"}
{"Action":"skip","Package":"empty"}
`, 2, 1, 1, false},
		{"did not build", `{"Action":"build-fail"}
{"Action":"fail","Package":"q"}
`, 0, 1, 0, false},
		{"no JSON", "panic\n", 0, 0, 0, true},
	} {
		passed, failed, skipped, err := count(strings.NewReader(c.in))
		if passed != c.passed || failed != c.failed || skipped != c.skipped || (err != nil) != c.bad {
			t.Errorf("%s: %d, %d, %d, %v", c.name, passed, failed, skipped, err)
		}
	}
}
