package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCommitOf: what Git itself says of its working trees, and nothing of other folders.
func TestCommitOf(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("there is no git here to compare with")
	}
	top := t.TempDir()
	repo := filepath.Join(top, "repo")
	git := func(dir string, args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=ana", "-c", "user.email=ana@example.com"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_SYSTEM="+os.DevNull, "GIT_CEILING_DIRECTORIES="+top)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	policy := filepath.Join(repo, "policy")
	if err := os.MkdirAll(policy, 0o700); err != nil {
		t.Fatal(err)
	}
	git(repo, "init", "-q", "-b", "main")
	if at := commitOf(policy); at != "" {
		t.Errorf("before the first commit it is %q", at)
	}
	commit := func() {
		t.Helper()
		git(repo, "commit", "-q", "--allow-empty", "-m", "policy")
	}
	same := func(what, dir string) {
		t.Helper()
		if got, want := commitOf(dir), git(dir, "rev-parse", "HEAD"); got != want {
			t.Errorf("%s: %q, Git says %q", what, got, want)
		}
	}
	commit()
	same("a folder of a working tree", policy)
	same("the working tree", repo)
	git(repo, "pack-refs", "--all")
	same("a packed branch", policy)
	commit()
	same("a branch that was packed and went on", policy)
	linked := filepath.Join(top, "linked")
	git(repo, "worktree", "add", "-q", "-b", "other", linked)
	commit()
	same("a linked working tree", linked)
	git(repo, "checkout", "-q", "--detach")
	same("no branch", policy)
	link := filepath.Join(top, "current")
	if err := os.Symlink(linked, link); err != nil {
		t.Fatal(err)
	}
	same("a link to a working tree", link)

	for name, head := range map[string]string{"out": "ref: ../../secret", "word": "ref: refs/heads/none", "long": strings.Repeat("a", 5000), "bad": "hello", "empty": ""} {
		dir := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Join(dir, ".git"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, ".git", "HEAD"), []byte(head), 0o600); err != nil {
			t.Fatal(err)
		}
		if at := commitOf(dir); at != "" {
			t.Errorf("HEAD %.30q gives %q", head, at)
		}
	}
	if at := commitOf(filepath.Join(top, "absent")); at != "" {
		t.Errorf("a folder that is not there gives %q", at)
	}
}
