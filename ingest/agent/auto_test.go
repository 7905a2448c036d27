package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/postern/postern/flow"
)

// TestAutoTakesNoneForAnother shows `auto` each line of each sample as the first of a stream: it
// is taken for the format it is of, or for none.
func TestAutoTakesNoneForAnother(t *testing.T) {
	for _, f := range Formats() {
		files, err := filepath.Glob(filepath.Join("testdata", f.Name+"*.log"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := Splitter{MaxItem: 1 << 20}
			known := 0
			for at := 0; at < len(raw); {
				line, n, err := s.Next(raw[at:], true)
				at += n
				if err != nil || len(line) == 0 {
					continue
				}
				d, err := NewDecoder(Auto, Config{}, flow.NewNames(0))
				if err != nil {
					t.Fatal(err)
				}
				_ = d.Decode(line, 0, &Origin{}, flow.NewBatch(8, nil)) // what it gives is TestSamples' matter
				switch name, why := d.Format(); name {
				case f.Name:
					known++
				case "":
				default:
					t.Errorf("%s: %s is taken for it: %s: %.200s", file, name, why, line)
				}
			}
			if known == 0 {
				t.Errorf("%s: no line is recognised by itself", file)
			}
		}
	}
}
