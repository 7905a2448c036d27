package ingest

import (
	"encoding/binary"

	"github.com/postern/postern/flow"
)

// NetFlow v5 as Cisco documents it ("NetFlow Export Datagram Format", tables B-3
// and B-4): a header of 24 bytes, then up to 30 records of 48.
const (
	v5Header  = 24
	v5Record  = 48
	v5Records = 30
)

// netflow5 decodes a v5 datagram. The header's count is believed only as far as
// the datagram reaches and the protocol allows.
func (d *Decoder) netflow5(m *message, b []byte, out *flow.Batch) {
	if len(b) < v5Header {
		d.reject(flow.RejectTruncated)
		return
	}
	be := binary.BigEndian
	count := int(be.Uint16(b[2:]))
	holds := min((len(b)-v5Header)/v5Record, v5Records)
	if count > holds || count == 0 {
		d.reject(flow.RejectCount)
	}
	n := min(count, holds)
	m.source = flow.SourceNetFlowV5
	m.uptime, m.hasUptime = be.Uint32(b[4:]), true
	m.export = flow.Time(be.Uint32(b[8:]))*1000 + flow.Time(min(be.Uint32(b[12:]), 999_999_999)/1_000_000)
	if !d.enter(m, flow.Addr{}, uint32(be.Uint16(b[20:]))) {
		return
	}
	if count <= holds {
		m.dom.seq.datagram(m.ex.account, be.Uint32(b[16:]), uint32(n), m.uptime, true)
	} else {
		m.dom.seq.lost()
	}
	rate := uint32(be.Uint16(b[22:]) & 0x3fff) // the upper two bits are the mode
	for i := range n {
		f := b[v5Header+i*v5Record:][:v5Record]
		r := m.record(out, 0, i)
		r.Src, r.Dst = flow.AddrFrom4(be.Uint32(f)), flow.AddrFrom4(be.Uint32(f[4:]))
		r.InIf, r.OutIf = uint32(be.Uint16(f[12:])), uint32(be.Uint16(f[14:]))
		r.PacketsRaw, r.BytesRaw = uint64(be.Uint32(f[16:])), uint64(be.Uint32(f[20:]))
		r.SrcPort, r.DstPort = be.Uint16(f[32:]), be.Uint16(f[34:])
		r.TCPFlags, r.Proto = uint16(f[37]), f[38]
		r.Has = flow.HasSrc | flow.HasDst | flow.HasInIf | flow.HasOutIf | flow.HasPackets | flow.HasBytes |
			flow.HasSrcPort | flow.HasDstPort | flow.HasTCPFlags | flow.HasProto | flow.HasStart | flow.HasEnd
		icmpFromPort(r)
		r.SamplingRate = rate
		if rate == 0 {
			r.SamplingRate = m.dom.rate(r.InIf, true)
		}
		m.settle(r, m.atUptime(be.Uint32(f[24:])), m.atUptime(be.Uint32(f[28:])))
	}
}

// icmpFromPort reads the type and code that Cisco's v5 and v9 put where the
// destination port would be: 256 × type + code.
func icmpFromPort(r *flow.Record) {
	if r.IsICMP() {
		r.ICMPType, r.ICMPCode = uint8(r.DstPort>>8), uint8(r.DstPort)
		r.Has |= flow.HasICMP
	}
}
