package ingest

import (
	"encoding/binary"
	"testing"

	"github.com/postern/postern/flow"
)

// TestSequenceGapMarked: the first record behind a gap carries the mark, no other does, and it
// outlives a restart between the gap and that record.
func TestSequenceGapMarked(t *testing.T) {
	datagram := func(seq uint32, records int) []byte {
		b := make([]byte, 24+48*records)
		binary.BigEndian.PutUint16(b, 5)
		binary.BigEndian.PutUint16(b[2:], uint16(records))
		binary.BigEndian.PutUint32(b[4:], 3_600_000)
		binary.BigEndian.PutUint32(b[8:], 1_790_000_000)
		binary.BigEndian.PutUint32(b[16:], seq)
		return b
	}
	names := flow.NewNames(0)
	d := NewDecoder(DecoderConfig{BelieveClock: true}, names, nil)
	decode := func(seq uint32, records int) (marks []bool) {
		out := flow.NewBatch(8, nil)
		d.Decode(&Datagram{Exporter: flow.MustParseAddr("192.0.2.1"), Received: 1_790_000_000_000, Payload: datagram(seq, records)}, out)
		for i := range out.Records {
			marks = append(marks, out.Records[i].Quality&flow.QualitySequenceGap != 0)
		}
		return marks
	}
	count := func(marks []bool) (n int) {
		for _, m := range marks {
			if m {
				n++
			}
		}
		return n
	}
	if m := decode(100, 2); count(m) != 0 {
		t.Errorf("the first datagram: %v, want no mark", m)
	}
	if m := decode(102, 2); count(m) != 0 {
		t.Errorf("the next in order: %v, want no mark", m)
	}
	if m := decode(110, 2); len(m) != 2 || !m[0] || m[1] {
		t.Errorf("behind a gap: %v, want the first record marked", m)
	}
	if m := decode(112, 2); count(m) != 0 {
		t.Errorf("the one after: %v, want no mark", m)
	}
	ex := d.exporter(flow.MustParseAddr("192.0.2.1"))
	ex.domains[domainKey{flow.SourceNetFlowV5, 0}].seq.Skipped = true // as behind a gap before a datagram without records
	b, err := d.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	d = NewDecoder(DecoderConfig{BelieveClock: true}, names, nil)
	if err := d.Restore(b); err != nil {
		t.Fatal(err)
	}
	if m := decode(114, 2); len(m) != 2 || !m[0] {
		t.Errorf("after a restart: %v, want the first record marked", m)
	}
}

// TestSequenceGapMarkedIPFIX: so does the first record of an IPFIX message, whose records are counted only
// once it has been read.
func TestSequenceGapMarkedIPFIX(t *testing.T) {
	message := func(seq uint32, records int) []byte {
		b := []byte{0, 10, 0, 0, 0x6a, 0xb1, 0x3b, 0x80, 0, 0, 0, 0, 0, 0, 0, 0}
		b = append(b, 0, 2, 0, 16, 1, 0, 0, 2, 0, 8, 0, 4, 0, 12, 0, 4) // template 256: both addresses
		b = append(b, 1, 0, 0, byte(4+8*records))
		for range records {
			b = append(b, 10, 0, 0, 1, 10, 0, 0, 2)
		}
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint32(b[8:], seq)
		return b
	}
	d := NewDecoder(DecoderConfig{BelieveClock: true}, flow.NewNames(0), nil)
	for _, c := range []struct {
		seq     uint32
		records int
		first   bool
		gaps    uint64
	}{
		{100, 2, false, 0},
		{102, 3, false, 0},
		{115, 2, true, 10},
		{117, 1, false, 10},
		{105, 4, false, 6}, // late: it was taken for lost
		{118, 1, false, 6},
	} {
		out := flow.NewBatch(8, nil)
		d.Decode(&Datagram{Exporter: flow.MustParseAddr("192.0.2.1"), Received: 1_790_000_000_000, Payload: message(c.seq, c.records)}, out)
		if len(out.Records) != c.records {
			t.Fatalf("message %d has %d records, want %d", c.seq, len(out.Records), c.records)
		}
		for i := range out.Records {
			if marked := out.Records[i].Quality&flow.QualitySequenceGap != 0; marked != (c.first && i == 0) {
				t.Errorf("message %d, record %d is marked: %v", c.seq, i, marked)
			}
		}
		if got := d.exporter(flow.MustParseAddr("192.0.2.1")).domains[domainKey{flow.SourceIPFIX, 0}].seq.Gaps; got != c.gaps {
			t.Errorf("after message %d: %d records are missing, want %d", c.seq, got, c.gaps)
		}
	}
}
