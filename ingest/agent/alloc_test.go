package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/postern/postern/flow"
)

// TestAllocations holds that lines which tell flows cost no memory of their own once their
// names are known.
func TestAllocations(t *testing.T) {
	for _, format := range []string{"windows", "suricata", "calico", "illumio", "ocsf", "ecs", "goflow2"} {
		raw, err := os.ReadFile(filepath.Join("testdata", format+".log"))
		if err != nil {
			t.Fatal(err)
		}
		d, err := NewDecoder(format, Config{BelieveClock: true}, flow.NewNames(0))
		if err != nil {
			t.Fatal(err)
		}
		o := Origin{Seed: 1, Received: 1_700_000_000_000}
		batch := flow.NewBatch(64, nil)
		for line := range bytes.Lines(raw) {
			line = bytes.TrimSpace(line)
			decode := func() error {
				batch.Reset()
				return d.Decode(line, 0, &o, batch)
			}
			if decode() != nil {
				continue
			}
			if n := testing.AllocsPerRun(20, func() { _ = decode() }); n != 0 {
				t.Errorf("%s: %v allocations by %s", format, n, line)
			}
		}
	}
}
