package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/postern/postern/flow"
)

// TestAllocations holds formats to decoding lines whose names are known without allocating.
func TestAllocations(t *testing.T) {
	for _, format := range []string{"aws", "azure", "cef", "conntrack", "gcp", "guardicore", "netfilter"} {
		files, err := filepath.Glob(filepath.Join("testdata", format+"*.log"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no sample of %s: %v", format, err)
		}
		for _, file := range files {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			d, err := NewDecoder(format, Config{BelieveClock: true}, flow.NewNames(0))
			if err != nil {
				t.Fatal(err)
			}
			o := Origin{Seed: 1, Received: 1_700_000_000_000}
			out := flow.NewBatch(64, nil)
			s := Splitter{MaxItem: 1 << 20}
			held := 0
			for at := 0; at < len(raw); {
				line, n, _ := s.Next(raw[at:], true)
				at += n
				// What is rare may allocate: JSON in JSON, and what is no UTF-8 in the journal.
				if bytes.Contains(line, []byte(`{\"`)) || bytes.Contains(line, []byte(`"MESSAGE":[`)) {
					continue
				}
				out.Reset()
				if len(line) == 0 || d.Decode(line, 0, &o, out) != nil {
					continue
				}
				held++
				allocs := testing.AllocsPerRun(10, func() {
					out.Reset()
					_ = d.Decode(line, 0, &o, out) // it decoded a moment ago
				})
				if allocs > 0 {
					t.Errorf("%s: %v allocations for %.120s", file, allocs, line)
				}
			}
			if held == 0 {
				t.Errorf("%s: no line was measured", file)
			}
		}
	}
}
