package test

import (
	"regexp"
	"strings"
	"testing"
)

// TestDemoOnce: the demo by itself finds exactly what it planted, and says so. That it
// fails where something is missed or made up is TestDemoCompares of the command.
func TestDemoOnce(t *testing.T) {
	postern(t) // built before, or it would be gone with this test's folder
	t.Setenv("TMPDIR", t.TempDir())
	out, diag, err := try(t, "demo", "--once")
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, diag)
	}
	if !strings.Contains(out, "All 22 planted misuses were found, and nothing else.") || !strings.Contains(out, "It closes.") {
		t.Errorf("the demo ended well, but says\n%s", out)
	}
	// A finding reads as a sentence with exception, ticket and owner beside it.
	for _, want := range []string{"EX-2041", "CHG-88123", "team-payments", "EX-2100", "CHG-87002", "10.50.1.23", "by SSH, which it never did", "from there vault-1 over", "from there pay-db-1 over", "history-1 and no further", "as tom", "/usr/bin/python3.11", "6 lines received = 3 flows + 3 others"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	for _, reason := range []string{"permitted", "waived", "denied", "uncovered", "out-of-scope", "expired-exception", "unverified"} {
		if !regexp.MustCompile(`│ +` + reason + ` +│`).MatchString(out) {
			t.Errorf("no flow is %s in\n%s", reason, out)
		}
	}
	if strings.ContainsAny(out+diag, "\r\x1b") {
		t.Error("piped output shows more than text")
	}
}
