package ingest

import (
	"encoding/binary"

	"github.com/postern/postern/flow"
)

// NetFlow v9: RFC 3954. The header is 20 bytes (5.1), then flow sets.
const (
	v9Header          = 20
	v9Template        = 0   // 5.2
	v9OptionsTemplate = 1   // 6.1
	firstDataSet      = 256 // 5.3; IPFIX alike
	setHeader         = 4
)

// netflow9 decodes a v9 datagram. The count in its header is not used: exporters
// disagree whether it counts records or sets, and the lengths say it all.
func (d *Decoder) netflow9(m *message, b []byte, out *flow.Batch) {
	if len(b) < v9Header {
		d.reject(flow.RejectTruncated)
		return
	}
	be := binary.BigEndian
	m.source = flow.SourceNetFlowV9
	m.uptime, m.hasUptime = be.Uint32(b[4:]), true
	m.export = flow.Time(be.Uint32(b[8:])) * 1000
	if !d.enter(m, flow.Addr{}, be.Uint32(b[16:])) {
		return
	}
	m.dom.seq.datagram(m.ex.account, be.Uint32(b[12:]), 1, m.uptime, true)
	if sets, _ := d.sets(m, b[v9Header:], 0, out); sets == 0 {
		d.reject(flow.RejectMalformed) // a header and nothing behind it
	}
}

// sets walks the sets of a v9 or IPFIX message, the first of them being number
// first of its datagram. It gives how many sets it met and how many data records
// they held; -1 if that is not known, since some wait for their template.
func (d *Decoder) sets(m *message, b []byte, first int, out *flow.Batch) (sets, records int) {
	be := binary.BigEndian
	for len(b) >= setHeader {
		id, length := be.Uint16(b), int(be.Uint16(b[2:]))
		if length < setHeader {
			if !zero(b) {
				d.reject(flow.RejectMalformed)
			}
			return sets, records
		}
		if length > len(b) {
			d.reject(flow.RejectTruncated)
			length = len(b)
		}
		set := b[setHeader:length]
		b = b[length:]
		ordinal := first + sets
		sets++
		n := 0
		switch {
		case id >= firstDataSet:
			n = d.data(m, id, set, ordinal, out)
		case m.source == flow.SourceNetFlowV9 && id == v9Template, m.source == flow.SourceIPFIX && id == ipfixTemplate:
			d.templates(m, set, out)
		case m.source == flow.SourceNetFlowV9 && id == v9OptionsTemplate:
			d.optionsTemplates9(m, set, out)
		case m.source == flow.SourceIPFIX && id == ipfixOptionsTemplate:
			d.optionsTemplatesIPFIX(m, set, out)
		default:
			m.ex.account.SetsSkipped++
		}
		if n < 0 || records < 0 {
			records = -1
		} else {
			records += n
		}
	}
	return sets, records
}

// zero says whether b is nothing but zeros, as padding is.
func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
