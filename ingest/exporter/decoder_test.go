package exporter_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/exporter"
)

// TestByOurDecoder sends records through Postern's own decoder: what it
// understands is what was exported, sampling included, and both its ledgers close.
func TestByOurDecoder(t *testing.T) {
	for _, protocol := range []flow.Source{flow.SourceNetFlowV9, flow.SourceIPFIX} {
		for shape := range 4 {
			rich, biflow := shape&1 != 0, shape&2 != 0
			t.Run(fmt.Sprintf("%v/rich=%v/biflow=%v", protocol, rich, biflow), func(t *testing.T) {
				names := flow.NewNames(0)
				cfg := exporter.Config{Protocol: protocol, Domain: 42, SamplingRate: 100, Rich: rich, Biflow: biflow,
					BiflowDirection: biflow, Names: names}
				rs := records(1000, names)
				datagrams, _ := export(t, cfg, rs)
				dc := ingest.DefaultDecoderConfig()
				dc.BelieveClock = true
				d := ingest.NewDecoder(dc, names, nil)
				batch := flow.NewBatch(2*len(rs), nil)
				from := flow.MustParseAddr("192.0.2.1")
				for i, b := range datagrams {
					d.Decode(&ingest.Datagram{Position: uint64(i), Received: now, Exporter: from, Port: 4000, Payload: b}, batch)
				}
				var got []told
				for i := range batch.Records {
					r := &batch.Records[i]
					w := tell(r, rich, names.Text(r.User))
					w.Biflow = r.BiflowDirection
					if r.IsICMP() {
						w.SrcPort, w.DstPort = 0, 0
					}
					got = append(got, w)
					if r.SamplingRate != 100 || r.Exporter != from || r.Domain != 42 || r.Source != protocol || r.Quality != 0 {
						t.Fatalf("record %d: rate %d, exporter %v, domain %d, %v, quality %v", i, r.SamplingRate, r.Exporter, r.Domain, r.Source, r.Quality.Texts())
					}
				}
				if diff := cmp.Diff(expect(rs, cfg, names), got); diff != "" {
					t.Error(diff)
				}
				a := d.Ledger().Of(from)
				if a.Datagrams.Decoded != uint64(len(datagrams)) || a.Datagrams.Rejected.Sum() != 0 || a.Gaps != 0 || a.Restarts != 0 {
					t.Errorf("%d datagrams give the ledger %+v", len(datagrams), a)
				}
			})
		}
	}
}
