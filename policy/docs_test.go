package policy

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

// TestDocs loads every YAML block of docs/policy.md: the first by itself, the
// others beside it, without an error or a warning, so that what users copy works.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(b), -1)
	if len(blocks) < 3 {
		t.Fatalf("docs/policy.md has %d YAML blocks", len(blocks))
	}
	for i, block := range blocks {
		files := fstest.MapFS{"first.yaml": {Data: []byte(blocks[0][1])}}
		if i > 0 {
			files["block.yaml"] = &fstest.MapFile{Data: []byte(block[1])}
		}
		if _, diags := Load(files); len(diags) > 0 {
			t.Errorf("block %d:\n%v", i+1, diags)
		}
	}
	for name, factor := range map[string]int{"bothWays": factorBothWays, "attempt": factorAttempt, "missing": factorMissing, "open": factorOpen,
		"clockSkew": factorClockSkew, "clockBroken": factorClockBroken} {
		if row := fmt.Sprintf("| × 0.%d (%s) |", factor, name); !strings.Contains(string(b), row) {
			t.Errorf("docs/policy.md lacks %q", row)
		}
	}
	// Every key of the language is in the reference.
	for _, key := range []string{"name", "prefixes", "zone", "tier", "stage", "default", "agent", "owner", "app", "role", "env", "labels", "addresses",
		"id", "action", "from", "to", "services", "mode", "reason", "expires", "notBefore", "overrides", "class", "ticket", "requested", "approved", "revoked",
		"any", "segment", "workload", "cidr", "identity", "group", "process", "posture", "not", "suppressions", "detector", "key", "client", "server", "service", "rule", "exception", "subject", "upTo"} {
		if !strings.Contains(string(b), "`"+key) {
			t.Errorf("docs/policy.md does not speak of %s", key)
		}
	}
}
