package agent

import (
	"errors"
	"testing"

	"github.com/postern/postern/flow"
)

func FuzzAzure(f *testing.F) { fuzzFormat(f, "azure") }

func BenchmarkAzure(b *testing.B) { benchLines(b, "azure", "azure.log", 0) }

// TestPartial says that the good parts of a line are flows though others are not.
func TestPartial(t *testing.T) {
	d, err := NewDecoder("azure", Config{BelieveClock: true}, flow.NewNames(0))
	if err != nil {
		t.Fatal(err)
	}
	line := `{"flowRecords":{"flows":[{"flowGroups":[{"flowTuples":["1,2,3","1700000000000,10.0.0.6,10.0.0.9,1,2,6,O,B,NX,0,0,0,0",
		"1700000000000,10.0.0.6,10.0.0.9,1,2,6,O,?,NX,0,0,0,0","1700000000001,10.0.0.6,10.0.0.9,1,2,6,O,E,NX,1,2,3,4"]}]}]}}`
	out := flow.NewBatch(4, nil)
	err = d.Decode([]byte(line), 0, &Origin{}, out)
	partial, ok := errors.AsType[*Partial](err)
	if !ok || partial.Bad != 2 || partial.Parts != 4 {
		t.Errorf("gave %v; want 2 of 4 parts to be bad", err)
	}
	if len(out.Records) != 2 || out.Records[1].BytesRaw != 2 || out.Records[0].ID == out.Records[1].ID {
		t.Errorf("gave %d flows; want the two good ones", len(out.Records))
	}
	// Of a line all of whose parts are bad nothing is left.
	err = d.Decode([]byte(`{"flowRecords":{"flows":[{"flowGroups":[{"flowTuples":["1","2"]}]}]}}`), 0, &Origin{}, out)
	if err == nil || len(out.Records) != 2 {
		t.Errorf("gave %v and %d flows; want an error and none more", err, len(out.Records))
	}
}
