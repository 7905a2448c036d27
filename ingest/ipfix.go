package ingest

import (
	"encoding/binary"

	"github.com/postern/postern/flow"
)

// IPFIX: RFC 7011. The message header is 16 bytes (3.1), then sets (3.3).
const (
	ipfixHeader          = 16
	ipfixTemplate        = 2
	ipfixOptionsTemplate = 3
)

// ipfix decodes the messages of an IPFIX datagram; there may be several.
func (d *Decoder) ipfix(m *message, b []byte, out *flow.Batch) {
	be := binary.BigEndian
	first := 0
	for more := false; ; more = true {
		if len(b) < ipfixHeader {
			switch {
			case !more:
				d.reject(flow.RejectTruncated)
			case !zero(b):
				d.reject(flow.RejectMalformed)
			}
			return
		}
		length := int(be.Uint16(b[2:]))
		if be.Uint16(b) != 10 || length < ipfixHeader {
			if !more || !zero(b) {
				d.reject(flow.RejectMalformed)
			}
			return
		}
		if length > len(b) {
			d.reject(flow.RejectTruncated)
			length = len(b)
		}
		m.source = flow.SourceIPFIX
		m.export = flow.Time(be.Uint32(b[4:])) * 1000
		if !d.enter(m, flow.Addr{}, be.Uint32(b[12:])) {
			return
		}
		late := m.dom.seq.begins(m.ex.account, be.Uint32(b[8:]), 0, false)
		sets, records := d.sets(m, b[ipfixHeader:length], first, out)
		m.dom.seq.held(m.ex.account, uint32(max(records, 0)), late)
		if records < 0 {
			m.dom.seq.lost()
		}
		first += sets
		if b = b[length:]; len(b) == 0 {
			return
		}
	}
}
