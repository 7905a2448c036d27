package detect_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/postern/postern/test/scenario"
)

// TestScenarios: what every file in testdata says comes of it, as it is written, over
// restarts, in other cuts and in other orders of arrival.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			s, err := scenario.Read(path, scenario.DefaultSettings())
			if err != nil {
				t.Fatal(err)
			}
			res, err := s.Prove(scenario.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range res.Problems {
				t.Error(p.In(path))
			}
		})
	}
}
