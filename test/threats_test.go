package test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestThreats holds docs/threats.md to the code: the scenarios that this release
// must show are there, and every test that the page names exists.
func TestThreats(t *testing.T) {
	page, err := os.ReadFile("../docs/threats.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| (\d+) \|.*$`).FindAllStringSubmatch(string(page), -1)
	shown := map[string]string{}
	for _, r := range rows {
		cells := strings.Split(strings.Trim(r[0], "| "), " | ")
		if len(cells) != 4 {
			t.Errorf("the row of scenario %s has %d cells", r[1], len(cells))
			continue
		}
		shown[r[1]] = cells[3]
	}
	// Those about what detectors find are scenario files that anybody can read.
	for n := range strings.FieldsSeq("8 15 22 25 26 27 29 31 32 33 34 35") {
		if !strings.Contains(shown[n], "`detect: TestScenarios/") {
			t.Errorf("scenario %s is not shown by a scenario file", n)
		}
	}
	for n := range strings.FieldsSeq("1 2 3 5 6 7 11 12 15 22 23 24 29 30 33 35 36 37 38 39 41") {
		if shown[n] == "" {
			t.Errorf("scenario %s is not in docs/threats.md", n)
		}
	}
	named := regexp.MustCompile("`([a-z/]+): ((?:Test|Fuzz)\\w+)(?:/([\\w-]+))?`")
	sources := map[string]string{}
	for n, cell := range shown {
		tests := named.FindAllStringSubmatch(cell, -1)
		if len(tests) == 0 || len(tests) != strings.Count(cell, "`")/2 {
			t.Errorf("scenario %s: not every entry reads `folder: Test`: %s", n, cell)
		}
		for _, m := range tests {
			folder, name, sub := m[1], m[2], m[3]
			if _, ok := sources[folder]; !ok {
				files, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(folder), "*_test.go"))
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range files {
					b, err := os.ReadFile(f)
					if err != nil {
						t.Fatal(err)
					}
					sources[folder] += string(b)
				}
			}
			if !strings.Contains(sources[folder], "\nfunc "+name+"(") {
				t.Errorf("scenario %s: %s has no %s", n, folder, name)
			}
			if sub == "" {
				continue
			}
			files, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(folder), "testdata", "*", sub+".txt"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join("..", filepath.FromSlash(folder), "testdata", sub+".txt")); err != nil && len(files) == 0 {
				t.Errorf("scenario %s: %s has no cases %s", n, name, sub)
			}
		}
	}
}
