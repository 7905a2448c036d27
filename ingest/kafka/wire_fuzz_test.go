package kafka

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// FuzzWire takes its input first as a value, which is either refused or comes back
// when it is encoded and read again; then as the seed of records, which come back too.
func FuzzWire(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "wire", "*.bin"))
	if err != nil || len(files) == 0 {
		f.Fatalf("%d golden files, %v", len(files), err)
	}
	for _, file := range files {
		value, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(value, uint64(len(value)))
	}
	names := flow.NewNames(0)
	enc, dec := NewEncoder(names), NewDecoder(names)
	out, again := flow.NewBatch(BatchRows, nil), flow.NewBatch(BatchRows, nil)
	f.Fuzz(func(t *testing.T, value []byte, seed uint64) {
		out.Records, again.Records = out.Records[:0], again.Records[:0]
		h, err := dec.Decode(value, out)
		switch {
		case err != nil && len(out.Records) > 0:
			t.Fatalf("%d records beside the error %v", len(out.Records), err)
		case err == nil:
			if len(out.Records) > BatchRows {
				t.Fatalf("%d records", len(out.Records))
			}
			if g, err := dec.Decode(enc.Append(nil, h, out.Records), again); err != nil || g != h {
				t.Fatalf("what was decoded does not come back: %+v, %v", g, err)
			}
			if diff := cmp.Diff(out.Records, again.Records); diff != "" {
				t.Fatalf("what was decoded comes back differently:\n%s", diff)
			}
		}
		rnd := rand.New(rand.NewPCG(seed, uint64(len(value))))
		in := withIDs(testHeader, randomRecords(rnd, names, 1+rnd.IntN(64)))
		again.Records = again.Records[:0]
		first := enc.Append(nil, testHeader, in)
		if _, err := dec.Decode(first, again); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(in, again.Records); diff != "" {
			t.Fatalf("seed %d:\n%s", seed, diff)
		}
		if !bytes.Equal(first, enc.Append(nil, testHeader, again.Records)) {
			t.Fatalf("seed %d: other bytes the second time", seed)
		}
	})
}
