package ingest

import (
	"path/filepath"
	"testing"

	"github.com/postern/postern/flow"
)

// Every datagram of every fixture that goflow2 takes as a whole must give the
// records that goflow2 gives. Datagrams that free parked data, or hold sets that
// wait, are left out: goflow2 knows no parking.
func TestFixturesAgainstGoflow2(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(fixtureDir(t), "*.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	compared, records, fields := 0, 0, 0
	for _, f := range files {
		c, err := OpenCapture(f)
		if err != nil {
			t.Fatal(err)
		}
		names := flow.NewNames(0)
		d := NewDecoder(DecoderConfig{BelieveClock: true}, names, nil)
		out := flow.NewBatch(flow.BatchSize, nil)
		var ref reference
		for dg, err := c.Next(); err == nil; dg, err = c.Next() {
			waited := d.parked.Len()
			out.Records = out.Records[:0]
			d.Decode(dg, out)
			facts, ok := ref.decode(dg)
			if !ok || waited > 0 && d.parked.Len() != waited || d.parked.Len() > waited {
				continue
			}
			compared++
			records += len(facts)
			for _, f := range facts {
				fields += len(f)
			}
			if s := disagree(facts, out.Records, names); s != "" {
				t.Errorf("%s, datagram %d:\n%s", filepath.Base(f), dg.Position, s)
			}
		}
		c.Close()
	}
	t.Logf("%d datagrams, %d records, %d fields compared in %d captures", compared, records, fields, len(files))
	if compared < 1000 {
		t.Errorf("only %d datagrams were compared", compared)
	}
}
