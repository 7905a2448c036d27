package ingest

import (
	"path/filepath"
	"testing"

	"github.com/postern/postern/flow"
)

// The same conversations as softflowd exports them in three formats: each must
// decode without a rejection, and v5 and v9 must tell the same counters.
func TestLateralExports(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(fixtureDir(t), "..", "lateral", "export", "*.nf9.pcap"))
	if err != nil || len(files) == 0 {
		t.Skip("no lateral captures")
	}
	type key struct {
		src, dst     flow.Addr
		sport, dport uint16
		proto        uint8
	}
	for _, f := range files {
		base := f[:len(f)-len(".nf9.pcap")]
		sums := map[string]map[key]uint64{}
		for _, format := range []string{"nf5", "nf9", "ipfix"} {
			d := decodeFiles(t, DecoderConfig{}, base+"."+format+".pcap")
			if n := d.total.Datagrams.Rejected.Sum() + d.total.Datagrams.Parked + d.total.Gaps; n > 0 || len(d.records) == 0 {
				t.Errorf("%s.%s: %d records, %+v, %d gaps", filepath.Base(base), format, len(d.records), d.total.Datagrams, d.total.Gaps)
			}
			m := map[key]uint64{}
			for i := range d.records {
				r := &d.records[i]
				if r.Src.Is4() {
					m[key{r.Src, r.Dst, r.SrcPort, r.DstPort, r.Proto}] += r.BytesRaw
					if r.Any(flow.HasRevBytes) {
						m[key{r.Dst, r.Src, r.DstPort, r.SrcPort, r.Proto}] += r.RevBytesRaw
					}
				}
			}
			sums[format] = m
		}
		for k, v := range sums["nf5"] {
			if k.proto == flow.ProtoTCP && (sums["nf9"][k] != v || sums["ipfix"][k] != v) {
				t.Errorf("%s: %v has %d bytes in v5, %d in v9, %d in IPFIX", filepath.Base(base), k, v, sums["nf9"][k], sums["ipfix"][k])
			}
		}
	}
}
