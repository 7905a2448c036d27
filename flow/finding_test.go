package flow

import (
	"bytes"
	"encoding/json"
	"testing"
)

// TestFindingControlCharacters: whatever a host calls itself, a terminal that shows the finding obeys none of it.
func TestFindingControlCharacters(t *testing.T) {
	var every []byte
	for c := range byte(0x80) {
		every = append(every, c)
	}
	f := Finding{ID: "f", Sentence: string(every), Detail: Detail{Ends: []End{{Identity: "\x7f"}}}}
	for _, v := range []any{f, &f, []Finding{f}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.IndexFunc(b, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
			t.Errorf("%T: control character %#x at %d", v, b[i], i)
		}
	}
	b, _ := json.Marshal(&f)
	var back Finding
	if err := json.Unmarshal(b, &back); err != nil || back.Sentence != f.Sentence || back.Ends[0].Identity != "\x7f" {
		t.Errorf("%v: came back as %q", err, back.Sentence)
	}
}
