package ingest

import (
	"encoding/binary"

	"github.com/postern/postern/flow"
)

// sFlow version 5: sFlow.org, "sFlow Version 5" (July 2004) for datagrams and
// samples, "sFlow Extended NAT" and the structures of section 5 for the rest.
// Formats are an enterprise number (20 bits, 0 is sFlow.org) and a number.
const (
	sflowFlow            = 1
	sflowCounter         = 2
	sflowExpandedFlow    = 3
	sflowExpandedCounter = 4

	sflowRawHeader = 1
	sflowIPv4      = 3
	sflowIPv6      = 4
	sflowNAT       = 1007
	sflowNATPort   = 1020

	sflowHeaderEthernet = 1
	sflowHeaderIPv4     = 11
	sflowHeaderIPv6     = 12
)

// xdr reads big-endian words off the front of a slice; once it ran out, every
// further word is zero and bad is set.
type xdr struct {
	b   []byte
	bad bool
}

func (x *xdr) word() uint32 {
	if len(x.b) < 4 {
		x.b, x.bad = nil, true
		return 0
	}
	v := binary.BigEndian.Uint32(x.b)
	x.b = x.b[4:]
	return v
}

// opaque cuts n bytes and their padding to a word.
func (x *xdr) opaque(n uint32) []byte {
	padded := (uint64(n) + 3) &^ 3
	if padded > uint64(len(x.b)) {
		if uint64(n) == uint64(len(x.b)) { // the padding at the very end is missing
			b := x.b
			x.b = nil
			return b
		}
		x.b, x.bad = nil, true
		return nil
	}
	b := x.b[:n]
	x.b = x.b[padded:]
	return b
}

func (x *xdr) addr() (a flow.Addr) {
	switch x.word() {
	case 1:
		if f := x.opaque(4); f != nil {
			return flow.AddrFrom4(binary.BigEndian.Uint32(f))
		}
	case 2:
		if f := x.opaque(16); f != nil {
			return addr6(f)
		}
	default:
		x.bad = true
	}
	return a
}

// sflow decodes a datagram. Every flow sample is one record of one packet.
func (d *Decoder) sflow(m *message, b []byte, out *flow.Batch) {
	m.source = flow.SourceSFlowV5
	m.export = m.received // sFlow has no clock but uptime
	x := xdr{b: b[4:]}
	agent := x.addr()
	sub, seq, uptime, samples := x.word(), x.word(), x.word(), x.word()
	if x.bad {
		d.reject(flow.RejectTruncated)
		return
	}
	if agent == flow.AddrFrom4(0) {
		agent = flow.Addr{}
	}
	if !d.enter(m, agent, sub) {
		return
	}
	m.dom.seq.datagram(m.ex.account, seq, 1, uptime, true)
	for i := range samples {
		if len(x.b) == 0 {
			d.reject(flow.RejectTruncated)
			return
		}
		format, length := x.word(), x.word()
		sample := x.opaque(length)
		if x.bad {
			d.reject(flow.RejectTruncated)
			return
		}
		switch format {
		case sflowFlow, sflowExpandedFlow:
			if !m.flowSample(format == sflowExpandedFlow, sample, int(i), out) {
				rec := &m.ex.account.Records
				rec.Decoded++
				rec.Rejected[flow.RejectRecordMalformed]++
				d.reject(flow.RejectMalformed)
			}
		case sflowCounter, sflowExpandedCounter:
			m.ex.account.Counters++
		default:
			m.ex.account.SetsSkipped++
		}
	}
}

// flowSample reads one flow sample; false if it does not parse.
func (m *message) flowSample(expanded bool, b []byte, i int, out *flow.Batch) bool {
	x := xdr{b: b}
	x.word() // sequence number of the sample
	x.word() // source id
	if expanded {
		x.word()
	}
	rate := x.word()
	x.word() // pool
	x.word() // drops
	var inFormat, in, outFormat, outIf uint32
	if expanded {
		inFormat, in, outFormat, outIf = x.word(), x.word(), x.word(), x.word()
	} else {
		in, outIf = x.word(), x.word()
		inFormat, in = in>>30, in&(1<<30-1)
		outFormat, outIf = outIf>>30, outIf&(1<<30-1)
	}
	records := x.word()
	if x.bad {
		return false
	}
	r := m.record(out, i, 0)
	r.Start, r.End = m.received, m.received
	r.Quality |= flow.QualityAddressMissing
	r.PacketsRaw, r.Has = 1, flow.HasPackets
	if r.SamplingRate = rate; rate == 0 {
		r.SamplingRate = m.dom.rate(in, inFormat == 0)
	}
	if inFormat == 0 { // 0 is an interface; the rest say "none" or "several"
		r.InIf, r.Has = in, r.Has|flow.HasInIf
	}
	if outFormat == 0 {
		r.OutIf, r.Has = outIf, r.Has|flow.HasOutIf
	}
	for range records {
		if len(x.b) == 0 {
			break
		}
		format, length := x.word(), x.word()
		f := xdr{b: x.opaque(length)}
		if x.bad {
			m.drop(out)
			return false
		}
		switch format {
		case sflowRawHeader:
			proto, frame := f.word(), f.word()
			f.word() // stripped
			header := f.opaque(f.word())
			if f.bad {
				m.drop(out)
				return false
			}
			r.BytesRaw, r.Has = uint64(frame), r.Has|flow.HasBytes
			sampledHeader(r, proto, header)
		case sflowIPv4, sflowIPv6:
			if r.Any(flow.HasSrc) {
				break // the header itself was sampled and says more
			}
			length, proto := f.word(), f.word()
			size := uint32(4)
			if format == sflowIPv6 {
				size = 16
			}
			src, dst := f.opaque(size), f.opaque(size)
			sport, dport, flags := f.word(), f.word(), f.word()
			if f.bad {
				m.drop(out)
				return false
			}
			if size == 4 {
				r.Src, r.Dst = flow.AddrFrom4(binary.BigEndian.Uint32(src)), flow.AddrFrom4(binary.BigEndian.Uint32(dst))
			} else {
				r.Src, r.Dst = addr6(src), addr6(dst)
			}
			r.Proto, r.Has = uint8(proto), r.Has|flow.HasSrc|flow.HasDst|flow.HasProto
			r.Quality &^= flow.QualityAddressMissing
			if !r.Any(flow.HasBytes) {
				r.BytesRaw, r.Has = uint64(length), r.Has|flow.HasBytes
			}
			if hasPorts(r.Proto) {
				r.SrcPort, r.DstPort, r.Has = uint16(sport), uint16(dport), r.Has|flow.HasSrcPort|flow.HasDstPort
			}
			if r.Proto == flow.ProtoTCP {
				r.TCPFlags, r.Has = uint16(flags), r.Has|flow.HasTCPFlags
			}
		case sflowNAT:
			src, dst := f.addr(), f.addr()
			if !f.bad {
				r.NATSrc, r.NATDst, r.Has = src, dst, r.Has|flow.HasNATSrc|flow.HasNATDst
			}
		case sflowNATPort:
			src, dst := f.word(), f.word()
			if !f.bad {
				r.NATSrcPort, r.NATDstPort, r.Has = uint16(src), uint16(dst), r.Has|flow.HasNATSrcPort|flow.HasNATDstPort
			}
		}
	}
	if !r.Any(flow.HasBytes) {
		r.Quality |= flow.QualityCounterMissing
	}
	return true
}

func hasPorts(proto uint8) bool {
	return proto == flow.ProtoTCP || proto == flow.ProtoUDP || proto == flow.ProtoSCTP
}

// sampledHeader reads what it can of the first bytes of a packet.
func sampledHeader(r *flow.Record, proto uint32, b []byte) {
	var p packet
	ok := false
	switch proto {
	case sflowHeaderEthernet:
		if etherType, rest, whole := ethernet(b); whole {
			p, ok = network(etherType, rest)
		}
	case sflowHeaderIPv4, sflowHeaderIPv6:
		p, ok = ip(b)
	}
	if !ok {
		return // no IP, or cut before it
	}
	r.Src, r.Dst, r.Proto = p.src, p.dst, p.proto
	r.Has |= flow.HasSrc | flow.HasDst | flow.HasProto
	r.Quality &^= flow.QualityAddressMissing
	if p.offset > 0 {
		return // the ports are in the first fragment only
	}
	l4 := p.payload
	be := binary.BigEndian
	switch {
	case r.IsICMP() && len(l4) >= 2:
		r.ICMPType, r.ICMPCode, r.Has = l4[0], l4[1], r.Has|flow.HasICMP
	case hasPorts(p.proto) && len(l4) >= 4:
		r.SrcPort, r.DstPort, r.Has = be.Uint16(l4), be.Uint16(l4[2:]), r.Has|flow.HasSrcPort|flow.HasDstPort
		switch {
		case p.proto != flow.ProtoTCP:
		case len(l4) >= 14:
			r.TCPFlags, r.Has = be.Uint16(l4[12:])&0x0fff, r.Has|flow.HasTCPFlags
		default:
			r.Quality |= flow.QualityTruncated
		}
	case r.IsICMP() || hasPorts(p.proto) || p.truncated && p.payload == nil:
		r.Quality |= flow.QualityTruncated
	}
}
