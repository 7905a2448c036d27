package kafka

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/postern/postern/flow"
)

// Position is where a group stands on a partition. It is kept with the group's
// coordinator: Offset as the committed offset, the rest as the metadata that
// travels with it. So it changes in one step, and a member that lost the partition
// cannot change it, since the coordinator refuses the commit of an old generation.
type Position struct {
	Offset int64  // the first offset that is not closed
	Ranges uint64 // ranges closed so far
	State  Place  // the checkpoint that reflects everything before Offset
	Open   *Range // what was begun at Offset; nil: nothing
}

// Range is a run of offsets out of which something is being made. Whoever finds it
// open makes the same of it under the same token, whatever batch size and linger
// are by then.
type Range struct {
	To     int64     `json:"to"`     // first offset behind it; may equal Position.Offset, where only the clock goes on
	At     flow.Time `json:"at"`     // the clock when it was opened
	Policy int64     `json:"policy"` // how far the policy log had been read
	Rows   int       `json:"rows"`   // rows of an insert
}

// Place says where a checkpoint lies on the state topic, in the partition that its own
// partition's number gives modulo those of the flows topic. The zero value is nowhere.
type Place struct {
	Offsets []int64 `json:"offsets,omitempty"` // of its parts, in order
	Sum     uint64  `json:"sum,omitempty"`     // xxHash64 of the whole
}

// Known says whether there is a checkpoint.
func (p Place) Known() bool { return len(p.Offsets) > 0 }

// maxMetadata is what a broker takes unless told otherwise (offset.metadata.max.bytes).
const maxMetadata = 4096

// metadataPrefix begins our metadata and names its version.
const metadataPrefix = "postern/1 "

type metadata struct {
	Ranges uint64 `json:"ranges"`
	State  Place  `json:"state"`
	Open   *Range `json:"open,omitempty"`
}

func (p *Position) metadata() (string, error) {
	raw, err := json.Marshal(metadata{p.Ranges, p.State, p.Open})
	if err != nil {
		return "", err
	}
	if text := metadataPrefix + string(raw); len(text) <= maxMetadata {
		return text, nil
	}
	return "", fmt.Errorf("the position takes %d bytes, more than the %d that a broker keeps with an offset: the checkpoint has %d parts", len(raw), maxMetadata, len(p.State.Offsets))
}

// errForeignMetadata is metadata that is not ours: a group that another consumer
// used, or whose offsets someone set.
var errForeignMetadata = errors.New("the group's offset has no position of ours beside it")

func parsePosition(offset int64, text string) (Position, error) {
	p := Position{Offset: offset}
	if text == "" {
		return p, errForeignMetadata
	}
	rest, ours := strings.CutPrefix(text, metadataPrefix)
	if !ours {
		if strings.HasPrefix(text, "postern/") {
			return p, fmt.Errorf("the position %.60q was written by a newer postern; finish the upgrade, or go back to the version that wrote it", text)
		}
		return p, errForeignMetadata
	}
	var m metadata
	if err := json.Unmarshal([]byte(rest), &m); err != nil {
		return p, fmt.Errorf("the position %.60q: %w", text, err)
	}
	if m.Open != nil && m.Open.To < offset {
		return p, fmt.Errorf("the position names an open range from %d to %d, which ends before it begins", offset, m.Open.To)
	}
	p.Ranges, p.State, p.Open = m.Ranges, m.State, m.Open
	return p, nil
}
