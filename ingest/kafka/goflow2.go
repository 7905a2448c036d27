package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/goflow2"
)

// The formats of topics that others write.
const (
	formatGoflow2Protobuf = "goflow2-protobuf"
	formatGoflow2JSON     = "goflow2-json"
)

// maxForeignRecords bounds what one value becomes. A record is several hundred
// bytes and a message of three bytes is valid, so a value of 1 MiB, which is
// Kafka's default limit, could ask for more than a hundred of memory. Real
// messages have 50 bytes and more: 65,536 of them are more than 3 MiB.
const maxForeignRecords = 1 << 16

// Formats lists the formats that [NewForeign] knows.
func Formats() []string { return []string{formatGoflow2JSON, formatGoflow2Protobuf} }

// Foreign decodes the values of a topic that others write. Not safe for
// concurrent use. What the messages mean, and what a zero in them does, package
// goflow2 says.
type Foreign struct {
	json   bool
	msg    goflow2.Message
	reason error
}

// NewForeign makes a decoder of format, which is one of [Formats]:
//
//   - "goflow2-protobuf": FlowMessage of goflow2 2.x, and of 1.x where its fields
//     differ (times in seconds and milliseconds). A value is one message, or
//     messages each behind its length as a varint, as goflow2 2.x writes them; which
//     of the two is told by looking.
//   - "goflow2-json": objects with the names of 2.x (time_received_ns) or of 1.x
//     (TimeReceived); a value is one object, several behind each other, or an array.
//
// names is where names from the values are interned; goflow2 tells none.
func NewForeign(format string, names *flow.Names) (*Foreign, error) {
	if !slices.Contains(Formats(), format) {
		return nil, fmt.Errorf("kafka: no format %q; it would be one of %s", format, strings.Join(Formats(), ", "))
	}
	return &Foreign{json: format == formatGoflow2JSON}, nil
}

// Decode appends the records of one value to out and gives how many of its
// messages (of JSON: objects) were refused; [Foreign.Reason] is why the first of
// them was. Only if nothing of the value can be read is err set, to that reason;
// the value is then a dead letter.
//
// seed makes the records' ids: the message of index i gets a mix of seed + i, the
// refused ones counted. Topic, partition and offset should make the seed.
// received, usually the time of the Kafka record, stands in where a message does
// not say when its collector received it, or says so more than a year before or a
// day after received; 0 is not known, then every time is believed.
//
// A value gives at most 65,536 records; the rest of it counts as refused.
func (f *Foreign) Decode(value []byte, seed uint64, received flow.Time, out *flow.Batch) (refused int, err error) {
	f.reason = nil
	before := len(out.Records)
	switch {
	case len(value) == 0:
	case f.json:
		refused = f.decodeJSON(value, seed, received, out)
	default:
		refused = f.decodeProtobuf(value, seed, received, out)
	}
	if len(out.Records) == before {
		if f.reason == nil {
			refused, f.reason = 1, errForeignEmpty
		}
		return refused, f.reason
	}
	return refused, nil
}

// Reason is why the first message that the last Decode refused was refused; nil
// if it refused none.
func (f *Foreign) Reason() error { return f.reason }

// Reasons for refusing. They are made once, so that refusing costs no memory.
var (
	errForeignEmpty  = errors.New("the value is empty; a goflow2 message or several were expected")
	errForeignMany   = fmt.Errorf("the value holds more than %d messages", maxForeignRecords)
	errProtoFrame    = errors.New("protobuf: a message's length runs beyond the value")
	errProtoNoFlow   = errors.New("protobuf: no field of a goflow2 flow message; is the topic's format another?")
	errForeignNoFlow = errors.New("JSON: no field of a goflow2 flow message; is the topic's format another?")
)

func (f *Foreign) refuse(reason error) {
	if f.reason == nil {
		f.reason = reason
	}
}

// decodeProtobuf reads a value of one message or of messages behind their lengths.
func (f *Foreign) decodeProtobuf(value []byte, seed uint64, received flow.Time, out *flow.Batch) (refused int) {
	if !delimited(value) {
		return f.message(value, flow.Mix(seed), received, out)
	}
	before := len(out.Records)
	for i, b := uint64(0), value; len(b) > 0; i++ {
		length, n := binary.Uvarint(b)
		if n <= 0 || length > uint64(len(b)-n) {
			f.refuse(errProtoFrame)
			return refused + 1
		}
		frame := b[n : n+int(length)]
		b = b[n+int(length):]
		if len(out.Records)-before >= maxForeignRecords {
			f.refuse(errForeignMany)
			refused++
			continue
		}
		refused += f.message(frame, flow.Mix(seed+i), received, out)
	}
	return refused
}

// message reads one message; 1 if it is refused.
func (f *Foreign) message(b []byte, id uint64, received flow.Time, out *flow.Batch) int {
	m := &f.msg
	*m = goflow2.Message{}
	if err := m.Unmarshal(b); err != nil {
		f.refuse(err)
		return 1
	}
	if !m.Known() {
		f.refuse(errProtoNoFlow)
		return 1
	}
	r := out.Next()
	r.ID = id
	m.Record(r, received)
	return 0
}

// delimited says whether value is messages behind their lengths rather than one
// message.
//
// goflow2 writes the type first: a message begins with 08 (field 1, a number) and
// a type of 1 to 4. Behind a length it cannot be taken for a length: eight bytes
// whose first is that type would be a field of number 0, which there is not. Nor
// the other way round: after a length, read as a tag, 08 is the tag's value or
// length, and then again the type stands where a tag would. What begins like
// neither, as a message of another writer may, is taken for what parses to its end.
func delimited(value []byte) bool {
	if startsWithType(value) {
		return false
	}
	if length, n := binary.Uvarint(value); n > 0 && length > 0 && startsWithType(value[n:]) {
		return true
	}
	return !wellFormed(value) && tiles(value)
}

func startsWithType(b []byte) bool {
	return len(b) >= 2 && b[0] == 1<<3 && b[1] >= goflow2.SFlow5 && b[1] <= goflow2.IPFIX
}

// tiles says whether b is messages behind their lengths to its last byte.
func tiles(b []byte) bool {
	for len(b) > 0 {
		length, n := binary.Uvarint(b)
		if n <= 0 || length > uint64(len(b)-n) || !wellFormed(b[n:n+int(length)]) {
			return false
		}
		b = b[n+int(length):]
	}
	return true
}

func wellFormed(b []byte) bool {
	var m goflow2.Message
	return m.Unmarshal(b) == nil && (m.Known() || len(b) == 0)
}
