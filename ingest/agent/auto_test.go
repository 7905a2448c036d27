package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/postern/postern/flow"
)

// TestAutoConfusesNone holds that a line which tells a flow in its own format is not taken for
// one of another, whichever line comes first. Some need the lines before them to be known.
func TestAutoConfusesNone(t *testing.T) {
	for _, f := range Formats() {
		files, err := filepath.Glob(filepath.Join("testdata", f.Name+"*.log"))
		if err != nil {
			t.Fatal(err)
		}
		lines, known := 0, 0
		for _, file := range files {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			cfg := Config{BelieveClock: true}
			own, err := NewDecoder(f.Name, cfg, flow.NewNames(0))
			if err != nil {
				t.Fatal(err)
			}
			o := Origin{Received: 1_700_000_000_000}
			for line := range bytes.Lines(raw) {
				line = bytes.TrimSpace(line)
				batch := flow.NewBatch(8, nil)
				if own.Decode(line, 0, &o, batch) != nil {
					continue
				}
				lines++
				auto, err := NewDecoder(Auto, cfg, flow.NewNames(0))
				if err != nil {
					t.Fatal(err)
				}
				if auto.recognise(line) {
					known++
					if name, why := auto.Format(); name != f.Name {
						t.Errorf("%s: a line of %s is taken for %s, because of %s: %s", file, f.Name, name, why, line)
					}
				}
			}
		}
		t.Logf("%s: %d of %d lines are known by themselves", f.Name, known, lines)
		if lines > 0 && known == 0 && f.known != nil {
			t.Errorf("%s: none of its lines is known", f.Name)
		}
	}
}
