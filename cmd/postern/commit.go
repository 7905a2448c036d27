package main

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// objectName is the name of a commit: SHA-1 or SHA-256.
var objectName = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// commitOf is the Git commit that a folder stands at: HEAD of the working tree that it is, or is
// part of. It is empty where there is none or Git's files say something that is not understood: it is
// a remark for people, and nothing hangs on it. Changes that are not committed do not show; the
// version's own hash is what tells two policies apart.
func commitOf(dir string) string {
	root, err := filepath.EvalSymlinks(dir) // as with git-sync, where the folder is a link into a working tree
	if err == nil {
		root, err = filepath.Abs(root)
	}
	if err != nil {
		return ""
	}
	for {
		git := filepath.Join(root, ".git")
		if st, err := os.Stat(git); err == nil {
			if !st.IsDir() { // a linked working tree or a submodule
				to, ok := strings.CutPrefix(gitText(git), "gitdir: ")
				if !ok {
					return ""
				}
				if git = to; !filepath.IsAbs(git) {
					git = filepath.Join(root, git)
				}
			}
			return headOf(git)
		}
		above := filepath.Dir(root)
		if above == root {
			return ""
		}
		root = above
	}
}

// headOf is the commit that HEAD names; see gitrepository-layout(5).
func headOf(git string) string {
	head := gitText(filepath.Join(git, "HEAD"))
	ref, symbolic := strings.CutPrefix(head, "ref: ")
	if !symbolic {
		return objectNameOr(head)
	}
	if !filepath.IsLocal(ref) || !strings.HasPrefix(ref, "refs/") {
		return ""
	}
	dirs := []string{git}
	if common := gitText(filepath.Join(git, "commondir")); common != "" { // of a linked working tree: where the branches are
		if !filepath.IsAbs(common) {
			common = filepath.Join(git, common)
		}
		dirs = append(dirs, common)
	}
	for _, d := range dirs {
		if at := objectNameOr(gitText(filepath.Join(d, filepath.FromSlash(ref)))); at != "" {
			return at
		}
	}
	for _, d := range dirs {
		if at := packedRef(filepath.Join(d, "packed-refs"), ref); at != "" {
			return at
		}
	}
	return ""
}

func objectNameOr(s string) string {
	if objectName.MatchString(s) {
		return s
	}
	return ""
}

// gitText reads one of Git's small files; empty if it cannot be read or is not small.
func gitText(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 4096
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil || len(b) > most {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// packedRef finds a branch among those that Git keeps in one file, at most the first 16 MiB of it.
func packedRef(path, ref string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(io.LimitReader(f, 16<<20)); lines.Scan(); {
		if at, name, ok := strings.Cut(lines.Text(), " "); ok && name == ref {
			return objectNameOr(at)
		}
	}
	return ""
}
