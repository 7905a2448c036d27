package goflow2

import (
	"testing"

	protoproducer "github.com/netsampler/goflow2/v2/producer/proto"
)

// TestProtocolNames: every protocol that goflow2 prints by name is known by it.
func TestProtocolNames(t *testing.T) {
	named := 0
	for i := range 256 {
		name := protoproducer.ProtoName(uint32(i))
		switch name {
		case "unknown", "unassigned", "experimental", "reserved":
			continue
		}
		named++
		if got, ok := protocols[name]; !ok || int(got) != i {
			t.Errorf("%q is %d (%v), goflow2 has %d", name, got, ok, i)
		}
	}
	if named < 140 {
		t.Errorf("goflow2 names only %d protocols", named)
	}
}
