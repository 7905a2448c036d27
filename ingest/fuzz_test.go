package ingest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/postern/postern/flow"
)

// FuzzDecode feeds two datagrams of one exporter, so that the first can bring
// templates for the second. Nothing may panic, both ledger sums must close, a
// restored decoder must go on alike, and where goflow2 takes the whole datagram
// it must have read the same records.
func FuzzDecode(f *testing.F) {
	for _, b := range generated() {
		f.Add(b, b)
	}
	f.Add(generated()[1], generated()[2])
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a) > 65507 || len(b) > 65507 {
			return
		}
		names := flow.NewNames(1 << 12)
		cfg := DecoderConfig{BelieveClock: true}
		d := NewDecoder(cfg, names, nil)
		out := flow.NewBatch(64, nil)
		var ref reference
		refOK := true
		given := uint64(0)
		for i, p := range [][]byte{a, b} {
			dg := &Datagram{Position: uint64(i), Received: flow.Time(1_700_000_000_000 + i*1000), Exporter: flow.AddrFrom4(0x0a000001), Port: 2055, Payload: p}
			before := *d.Ledger().Of(dg.Exporter)
			out.Records = out.Records[:0]
			d.Decode(dg, out)
			after := d.Ledger().Of(dg.Exporter)
			if after.Datagrams.Rejected[flow.RejectPanic] > 0 {
				t.Fatal("the decoder panicked")
			}
			total := d.Ledger().Total()
			given += uint64(len(out.Records))
			total.Records.InFlight = given
			if err := total.Check(); err != nil {
				t.Fatal(err)
			}
			if n := after.Records.Decoded - before.Records.Decoded; len(p) >= 2 && binary.BigEndian.Uint16(p) == 5 && n > v5Records {
				t.Fatalf("%d records of one v5 datagram", n)
			}
			facts, ok := ref.decode(dg)
			// From the first datagram on that one of the two refuses, their templates differ.
			refOK = refOK && ok && after.Datagrams.Decoded == uint64(i+1) && after.SetsSkipped == 0
			if refOK && !(ref.variable && len(facts) > len(out.Records)) {
				if s := disagree(facts, out.Records, names); s != "" {
					t.Fatal(s)
				}
			}
			state, err := d.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			e := NewDecoder(cfg, names, nil)
			if err := e.Restore(state); err != nil {
				t.Fatal(err)
			}
			again, err := e.Snapshot()
			if err != nil || !bytes.Equal(state, again) {
				t.Fatalf("restored state differs: %v\n%s\n%s", err, state, again)
			}
			d = e
		}
		d.Tick(1_800_000_000_000)
		total := d.Ledger().Total()
		if total.Datagrams.Parked != 0 || d.parkedBytes != 0 || d.parked.Len() != 0 {
			t.Fatalf("still parked after its time: %+v", total.Datagrams)
		}
	})
}

// FuzzCapture reads arbitrary files as captures.
func FuzzCapture(f *testing.F) {
	f.Add(capture(f, "pcap"))
	f.Add(capture(f, "pcapng"))
	f.Add(gzipped(f, capture(f, "pcap")))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := NewCapture(bytes.NewReader(b), "fuzz", int64(len(b)))
		if err != nil {
			return
		}
		for range 10_000 {
			dg, err := c.Next()
			if err != nil {
				if !errors.Is(err, io.EOF) && err.Error() == "" {
					t.Fatal("an error without a text")
				}
				break
			}
			if len(dg.Payload) > 1<<18 {
				t.Fatalf("a datagram of %d bytes", len(dg.Payload))
			}
		}
		s := c.Stats()
		if s.Packets != s.Datagrams+s.Skipped+s.Fragments+s.Unreadable {
			t.Fatalf("packets do not add up: %+v", s)
		}
	})
}
