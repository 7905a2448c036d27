package ingest

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/postern/postern/flow"
)

// Heard is what is known of one observation domain of an exporter.
type Heard struct {
	Exporter flow.Addr // as in records: the agent's address in sFlow
	Domain   uint32
	Source   flow.Source
	First    flow.Time // receipt of its first message since its state was made
	Last     flow.Time // receipt of its newest message
	Messages uint64    // an IPFIX datagram may hold several
	Records  uint64
	// Templates are those of flow and options data that hold at present.
	Templates    int
	SamplingRate uint32        // of its newest record; 0 unknown
	Gaps         uint64        // estimate: units its sequence numbers skipped
	Skew         time.Duration // the exporter's clock minus ours, smoothed; 0 if not known
}

type domainTotals struct {
	First        flow.Time `json:"first"`
	Last         flow.Time `json:"last"`
	Messages     uint64    `json:"messages"`
	Records      uint64    `json:"records"`
	SamplingRate uint32    `json:"sampling_rate,omitempty"`
}

func (t *domainTotals) message(at flow.Time) {
	if t.Messages == 0 {
		t.First = at
	}
	t.Last = max(t.Last, at)
	t.Messages++
}

// Heard lists every domain of every exporter, by address, source and domain.
func (d *Decoder) Heard() []Heard {
	var out []Heard
	for _, a := range slices.SortedFunc(maps.Keys(d.exporters), flow.Addr.Compare) {
		ex := d.exporters[a]
		for _, k := range slices.SortedFunc(maps.Keys(ex.domains), func(a, b domainKey) int {
			return cmp.Or(cmp.Compare(a.source, b.source), cmp.Compare(a.domain, b.domain))
		}) {
			dom := ex.domains[k]
			h := Heard{Exporter: a, Domain: k.domain, Source: k.source, First: dom.heard.First, Last: dom.heard.Last,
				Messages: dom.heard.Messages, Records: dom.heard.Records, SamplingRate: dom.heard.SamplingRate, Gaps: dom.seq.Gaps,
				Skew: ex.skew.Sub(0)}
			for _, s := range dom.slots {
				h.Templates += s.count()
			}
			out = append(out, h)
		}
	}
	return out
}
