package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The rules of the house, as tests: what may import what and why, where the clock
// is forbidden, and what must never be committed.

const modulePath = "github.com/postern/postern"

// listed is what `go list -json` says of a package.
type listed struct {
	ImportPath, Dir, Name        string
	Standard                     bool
	GoFiles, TestGoFiles         []string
	XTestGoFiles, IgnoredGoFiles []string
	Imports                      []string
}

func goList(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json"}, args...)...)
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// room is the first folder of a package of ours: flow, policy, ingest …
func room(importPath string) (string, bool) {
	rest, ok := strings.CutPrefix(importPath, modulePath+"/")
	name, _, _ := strings.Cut(rest, "/")
	return name, ok
}

// arrows says which rooms a room may import beside itself.
var arrows = map[string]struct {
	may []string
	why string
}{
	"flow":       {nil, "flow is the leaf that everything stands on; what it imported, everything would"},
	"policy":     {[]string{"flow"}, "judging is a pure function of a flow and a policy"},
	"enrich":     {[]string{"flow", "policy"}, "stages never import each other: they meet in cmd, so that each can be read, tested and replaced alone"},
	"detect":     {[]string{"flow", "policy"}, "stages never import each other: they meet in cmd, so that each can be read, tested and replaced alone"},
	"ingest":     {[]string{"flow"}, "stages never import each other; bytes become records without knowing of policy"},
	"sink":       {[]string{"flow"}, "stages never import each other; rows and findings are stored as they are, by whoever judged them"},
	"dashboards": {nil, "dashboards know the tables and the metrics by name, as whoever looks at them does, and nothing of the code"},
	"cmd":        {[]string{"flow", "policy", "enrich", "detect", "ingest", "sink"}, "cmd wires everything, and nothing imports cmd"},
	"test":       {[]string{"flow", "policy", "enrich", "detect", "ingest", "sink"}, "tests of the whole use the real binary, not the code of cmd"},
}

func TestArrows(t *testing.T) {
	for _, p := range goList(t, "./...") {
		from, ok := room(p.ImportPath)
		if !ok {
			continue
		}
		rule, known := arrows[from]
		if !known {
			t.Errorf("%s: a new room at the top of the tree; give it its arrows here and its place in docs/design.md", p.ImportPath)
			continue
		}
		for _, i := range p.Imports {
			if from == "cmd" && i == modulePath+"/test/scenario" {
				continue // the language of `postern test` is that of our own tests, so that both mean the same
			}
			if to, ours := room(i); ours && to != from && !slices.Contains(rule.may, to) {
				t.Errorf("%s imports %s: %s", p.ImportPath, i, rule.why)
			}
		}
	}
}

// doors are the standard packages through which code reaches the world.
var doors = map[string]string{
	"os": "files and environment", "os/exec": "processes", "os/signal": "signals", "os/user": "users", "path/filepath": "files (package path is pure)",
	"net": "sockets (net/netip is pure)", "net/http": "HTTP", "net/rpc": "sockets", "net/smtp": "sockets", "crypto/tls": "sockets",
	"crypto/rand": "randomness", "math/rand": "randomness", "math/rand/v2": "randomness", "log": "output", "log/slog": "output",
	"syscall": "the kernel", "unsafe": "memory", "plugin": "code", "database/sql": "a database", "runtime/debug": "the process", "embed": "files at build time",
}

// TestNoIO: flow and policy do no I/O, and the two stages that hold state over
// event time reach the world by nothing but what is handed to them.
func TestNoIO(t *testing.T) {
	for _, p := range goList(t, "./flow/...", "./policy/...", "./enrich/...", "./detect/...") {
		for _, i := range p.Imports {
			if what, ok := doors[i]; ok {
				t.Errorf("%s imports %s (%s): what it says must depend on its input alone, so that a replay says the same", p.ImportPath, i, what)
			}
		}
	}
	for _, p := range goList(t, "-deps", "./flow") {
		if !p.Standard && !strings.HasPrefix(p.ImportPath, modulePath) {
			t.Errorf("flow depends on %s: it stands on the standard library alone", p.ImportPath)
		}
	}
	for _, p := range goList(t, "-deps", "./policy") {
		if p.ImportPath == "net" || p.ImportPath == "net/http" || p.ImportPath == "os/exec" {
			t.Errorf("policy depends on %s, by some import of an import: it reads through an fs.FS and nothing else", p.ImportPath)
		}
	}
}

// sourceFiles parses the files of every package of ours.
func sourceFiles(t *testing.T, tests bool, visit func(p listed, name string, fset *token.FileSet, f *ast.File)) {
	t.Helper()
	for _, p := range goList(t, "./...") {
		files := slices.Concat(p.GoFiles, p.IgnoredGoFiles) // files for other platforms too
		if tests {
			files = slices.Concat(p.TestGoFiles, p.XTestGoFiles)
		}
		for _, name := range files {
			fset := token.NewFileSet()
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			visit(p, name, fset, f)
		}
	}
}

func TestPackageComments(t *testing.T) {
	comments := map[string][]string{}
	sourceFiles(t, false, func(p listed, name string, _ *token.FileSet, f *ast.File) {
		if _, ok := comments[p.ImportPath]; !ok {
			comments[p.ImportPath] = nil
		}
		if f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != "" {
			comments[p.ImportPath] = append(comments[p.ImportPath], name)
		}
	})
	for pkg, files := range comments {
		if len(files) != 1 {
			t.Errorf("%s has %d package comments %v: one, in doc.go, says what the package is for and what it is not", pkg, len(files), files)
		}
	}
}

// clockFunctions of package time look at the wall clock or wait for it.
var clockFunctions = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}

func TestNoClock(t *testing.T) {
	sourceFiles(t, false, func(p listed, _ string, fset *token.FileSet, f *ast.File) {
		if in, _ := room(p.ImportPath); !slices.Contains([]string{"flow", "policy", "enrich", "detect"}, in) {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clockFunctions, s.Sel.Name) {
				t.Errorf("%s: time.%s: time comes from the data or is handed in, or late and replayed flows are judged differently", fset.Position(n.Pos()), s.Sel.Name)
			}
			return true
		})
	})
}

func TestFolderNames(t *testing.T) {
	for _, name := range tracked(t) {
		for part := range strings.SplitSeq(path.Dir(name), "/") {
			if slices.Contains([]string{"pkg", "utils", "util", "common", "helpers", "misc", "shared"}, part) {
				t.Errorf("%s: a folder called %q says nothing about what is in it", name, part)
			}
		}
	}
}

// tracked lists the files of the project, those about to be added included.
func tracked(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	files := strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 })
	return slices.DeleteFunc(files, func(name string) bool { // a link to a folder, whose files are listed themselves
		info, err := os.Stat(filepath.Join("..", name))
		return err == nil && info.IsDir()
	})
}

// TestNoMachineTraces: nothing of the machine it was written on is committed.
func TestNoMachineTraces(t *testing.T) {
	traces := regexp.MustCompile(`/(work|farm|root)/[a-z]|/home/[a-z]|/Users/[a-z]|` +
		`registry\.npmjs` + `|proxy\.golang` + `|goproxy\.`)
	for _, name := range tracked(t) {
		b, err := os.ReadFile(filepath.Join("..", name))
		if errors.Is(err, os.ErrNotExist) || bytes.IndexByte(b[:min(len(b), 8000)], 0) >= 0 {
			continue // removed and not yet committed, or not text
		}
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for line := range strings.Lines(string(b)) {
			n++
			if at := traces.FindString(line); at != "" {
				t.Errorf("%s:%d: %q: paths and registries of one machine do not work on another", name, n, at)
			}
		}
	}
}

// TestFuzzTargets: `make fuzz` finds its targets by their spelling; each must be
// found, and each parser of outside bytes is expected to have one.
func TestFuzzTargets(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	const spelling = `^func Fuzz[A-Za-z0-9_]+`
	if !bytes.Contains(makefile, []byte("'"+spelling+"'")) {
		t.Fatalf("make fuzz no longer looks for %s", spelling)
	}
	found, fuzzed := regexp.MustCompile(`(?m)`+spelling), map[string]bool{}
	sourceFiles(t, true, func(p listed, name string, fset *token.FileSet, f *ast.File) {
		src, err := os.ReadFile(filepath.Join(p.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		spelt := found.FindAllString(string(src), -1)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Fuzz") {
				in, _ := room(p.ImportPath)
				fuzzed[in] = true
				if !slices.Contains(spelt, "func "+fn.Name.Name) {
					t.Errorf("%s: make fuzz does not find %s", fset.Position(fn.Pos()), fn.Name.Name)
				}
			}
		}
	})
	for _, in := range []string{"ingest", "policy", "sink"} {
		if !fuzzed[in] {
			t.Errorf("%s reads outside bytes and has no fuzz target", in)
		}
	}
}

var (
	linkForm    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headingForm = regexp.MustCompile(`^#+ +(.+?)\s*$`)
	slugDrops   = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
)

// anchors are the names that a Markdown page's headings can be linked by.
func anchors(page string) []string {
	var out []string
	times, fenced := map[string]int{}, false
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "```") {
			fenced = !fenced
		}
		if m := headingForm.FindStringSubmatch(line); m != nil && !fenced {
			slug := strings.ReplaceAll(slugDrops.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")
			if n := times[slug]; n > 0 {
				out = append(out, slug+"-"+strconv.Itoa(n))
			} else {
				out = append(out, slug)
			}
			times[slug]++
		}
	}
	return out
}

func TestDocLinks(t *testing.T) {
	pages, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "../README.md", "../CHANGELOG.md") {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, m := range linkForm.FindAllStringSubmatch(string(b), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			text, err := os.ReadFile(target)
			if info, statErr := os.Stat(target); statErr == nil && info.IsDir() {
				continue
			}
			if err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			} else if anchor != "" && !slices.Contains(anchors(string(text)), anchor) {
				t.Errorf("%s links to %s, and %s has no such heading", page, m[1], file)
			}
		}
	}
}
