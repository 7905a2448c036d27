package main

import (
	"path/filepath"
	"strings"
	"testing"
)

const testedPolicy = `postern: v1
segments:
  - {name: vault, prefixes: [10.20.0.0/24], stage: enforced, default: deny}
`

// TestTest: scenarios hold or do not, by the policy they are given, and both are said.
func TestTest(t *testing.T) {
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy")
	writeFile(t, filepath.Join(policy, "p.yaml"), testedPolicy)
	const happens = "session 2026-10-03T09:00:00Z 1m 10.50.0.1 > 10.20.0.1 tcp/22\n"
	good := writeFile(t, filepath.Join(dir, "scenarios", "a", "good.txt"), happens+"finding type=policy-violation client=10.50.0.1\nany finding\n")
	bad := writeFile(t, filepath.Join(dir, "scenarios", "bad.txt"), happens+"finding type=policy-violation client=10.50.0.2\nany finding\n")
	broken := writeFile(t, filepath.Join(dir, "broken.txt"), "session now 1m 10.50.0.1 > 10.20.0.1 tcp/22\n")
	writeFile(t, filepath.Join(dir, "scenarios", "README.md"), "no scenario")
	writeFile(t, filepath.Join(dir, "mixed", "good.txt"), happens+"any finding\n")
	writeFile(t, filepath.Join(dir, "mixed", "data", "columns.txt"), "of ClickHouse")
	writeFile(t, filepath.Join(dir, "mixed", ".git", "notes.txt"), "of Git")
	config := writeFile(t, filepath.Join(dir, "postern.yaml"), "data: "+filepath.Join(dir, "mixed", "data")+"\npolicy: {dir: "+policy+"}\ndetect: {updateEvery: 2h}\n")
	for _, c := range []struct {
		name   string
		args   []string
		fails  bool
		want   []string
		absent string
	}{
		{"one that holds", []string{"--policy", policy, good}, false, []string{"ok    " + good + "  flows: 1, findings: ", "1 of 1 scenarios hold"}, "came:"},
		{"in every way", []string{"--policy", policy, "--thorough", good}, false, []string{"1 of 1 scenarios hold"}, ""},
		{"verbose", []string{"--policy", policy, "-v", good}, false, []string{"came: policy-violation medium client=10.50.0.1"}, ""},
		{"by the configuration", []string{"-c", config, good}, false, []string{"1 of 1 scenarios hold"}, ""},
		{"a folder", []string{"--policy", policy, filepath.Join(dir, "scenarios")}, true,
			[]string{"ok    " + good, "FAIL  " + bad, bad + ":2: no finding came that is so: finding type=policy-violation client=10.50.0.2", `client is "10.50.0.1", want "10.50.0.2"; it is: `, "1 of 2 scenarios hold"}, "README"},
		{"without a policy", []string{good}, true, []string{"no finding came that is so", "It was judged by no policy: it states none, and none was named (--policy)."}, ""},
		{"a folder with what is no scenario", []string{"-c", config, filepath.Join(dir, "mixed")}, false, []string{"1 of 1 scenarios hold"}, ""},
		{"one that cannot be read", []string{"--policy", policy, broken}, true, []string{"FAIL  " + broken, broken + `:1:9: "now" is no time; write it as`}, ""},
		{"no policy there", []string{"--policy", filepath.Join(dir, "nowhere"), good}, true, []string{"it is no folder"}, ""},
		{"no scenario there", []string{policy}, true, nil, ""},
		{"no such file", []string{filepath.Join(dir, "none.txt")}, true, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, _, err := command(t, append([]string{"test"}, c.args...)...)
			if (err != nil) != c.fails {
				t.Errorf("the error is %v", err)
			}
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("it does not say %q:\n%s", w, out)
				}
			}
			if c.absent != "" && strings.Contains(out, c.absent) {
				t.Errorf("it says %q:\n%s", c.absent, out)
			}
		})
	}
}
