package siem

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern/postern/test/part"
)

// docBlock is the first block of a language in docs/webhooks.md.
func docBlock(t *testing.T, language string) string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "webhooks.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "\n```"+language+"\n")
	block, _, end := strings.Cut(rest, "```")
	if !ok || !end {
		t.Fatalf("docs/webhooks.md has no example in %s", language)
	}
	return block
}

// TestWebhookDocs runs the examples of docs/webhooks.md on the standard's own vector.
func TestWebhookDocs(t *testing.T) {
	t.Run("go", func(t *testing.T) {
		code, err := os.ReadFile("webhook_example_test.go")
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(code, []byte(docBlock(t, "go"))) {
			t.Error("the example in docs/webhooks.md is not the one in webhook_example_test.go, which is what compiles")
		}
	})
	t.Run("python", func(t *testing.T) {
		part.Need(t, "python3", "python3")
		program := docBlock(t, "python") + fmt.Sprintf(`
h = {"webhook-id": %q, "webhook-timestamp": %q, "webhook-signature": "v1,AAAA v1a,x " + %q}
now = int(h["webhook-timestamp"])
assert verify(%[4]q, h, b'%[5]s', now=now)
assert verify(%[4]q, h, b'%[5]s', now=now + 300)
assert not verify(%[4]q, h, b'%[5]s', now=now + 301)
assert not verify(%[4]q, h, b'%[5]s ', now=now)
assert not verify("whsec_AAAA", h, b'%[5]s', now=now)
assert not verify(%[4]q, h, b'%[5]s')
`, vectorID, vectorStamp, vectorSign, vectorSecret, vectorBody)
		if out, err := exec.Command("python3", "-c", program).CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("sh", func(t *testing.T) {
		part.Need(t, "openssl", "openssl")
		cmd := exec.Command("sh", "-c", docBlock(t, "sh"))
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "ID="+vectorID, "STAMP="+vectorStamp, "SECRET="+vectorSecret)
		if err := os.WriteFile(filepath.Join(cmd.Dir, "body.json"), []byte(vectorBody), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := cmd.CombinedOutput()
		if err != nil || "v1,"+strings.TrimSpace(string(out)) != vectorSign {
			t.Errorf("printed %q, %v; want %s", out, err, vectorSign)
		}
	})
}
