package flow

import (
	"bytes"
	"encoding/json"
	"testing"
)

// TestEscapeDEL: whatever a host calls itself, a terminal that shows the finding obeys none of it.
func TestEscapeDEL(t *testing.T) {
	var every []byte
	for c := range byte(0x80) {
		every = append(every, c)
	}
	f := Finding{ID: "f", Sentence: string(every), Detail: Detail{Ends: []End{{Identity: "\x7f"}}}}
	b, err := json.Marshal(&f)
	if err != nil {
		t.Fatal(err)
	}
	b = EscapeDEL(b)
	if i := bytes.IndexFunc(b, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
		t.Errorf("control character %#x at %d", b[i], i)
	}
	var back Finding
	if err := json.Unmarshal(b, &back); err != nil || back.Sentence != f.Sentence || back.Ends[0].Identity != "\x7f" {
		t.Errorf("%v: came back as %q", err, back.Sentence)
	}
}
