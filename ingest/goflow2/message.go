package goflow2

import (
	"time"

	"github.com/postern/postern/flow"
)

// Message is what one message tells, as far as a [flow.Record] holds it. The zero value is a
// message without fields. It keeps nothing of the bytes that its fields are read from.
type Message struct {
	receivedNs, startNs, endNs     uint64 // 2.x
	receivedSec, startSec, endSec  uint64 // 1.x
	startMilli, endMilli           uint64 // 1.x
	kind, rate, bytes, packets     uint64
	proto, srcPort, dstPort        uint64
	inIf, outIf, flags, fragment   uint64
	icmpType, icmpCode, forwarding uint64
	domain, direction, biflow      uint64
	sampler, src, dst              flow.Addr
	layers                         uint32 // a bit for each number of layer_stack below 32
	hasSrc, hasDst                 bool
	hasReceivedNs                  bool
	hasDirection, hasBiflow, known bool // known: any field at all that is known
}

// The numbers of enum FlowType.
const (
	SFlow5    = 1
	NetFlowV5 = 2
	NetFlowV9 = 3
	IPFIX     = 4
)

// The numbers of enum LayerStack that matter.
const (
	layerIPv4 = 1
	layerIPv6 = 2
	layerTCP  = 3
	layerUDP  = 4
)

const (
	// MaxAge and MaxAhead bound what is believed: a flow that began more than a year before
	// its receipt, or ends more than a day after it, tells no time but a mistake, as in
	// package ingest. So does a receipt that is that far from the caller's.
	MaxAge   = flow.Time(366 * 24 * time.Hour / time.Millisecond)
	MaxAhead = flow.Time(24 * time.Hour / time.Millisecond)

	// goflow2 writes the export time where a template has no times. Exports are
	// received within moments.
	maxExportDelay = flow.Time(5 * time.Second / time.Millisecond)

	// Times beyond the year 4000 are none.
	maxMilli = 1 << 46
)

// Known says whether the message had any field that this package knows. One without is
// somebody else's.
func (m *Message) Known() bool { return m.known }

var sources = [...]flow.Source{SFlow5: flow.SourceSFlowV5, NetFlowV5: flow.SourceNetFlowV5,
	NetFlowV9: flow.SourceNetFlowV9, IPFIX: flow.SourceIPFIX}

// Record writes what m tells into r, which is zeroed or has what the way in knows. received
// stands in for the time of receipt where the message does not say it, or says it more than
// [MaxAge] before or [MaxAhead] after received; 0 is not known, then every time is believed.
// Source, Received, Start, End, Exporter, Domain and SamplingRate are set in any case.
func (m *Message) Record(r *flow.Record, received flow.Time) {
	r.Source = flow.SourceUnknown
	if m.kind < uint64(len(sources)) {
		r.Source = sources[m.kind]
	}
	v5, sflow := r.Source == flow.SourceNetFlowV5, r.Source == flow.SourceSFlowV5
	r.Exporter = m.sampler
	if m.sampler == flow.AddrFrom4(0) {
		r.Exporter = flow.Addr{}
	}
	r.Domain = uint32(m.domain)
	r.SamplingRate = uint32(min(m.rate, 1<<32-1))

	if m.hasSrc {
		r.Src, r.Has = m.src, r.Has|flow.HasSrc
	}
	if m.hasDst {
		r.Dst, r.Has = m.dst, r.Has|flow.HasDst
	}
	if !m.hasSrc || !m.hasDst {
		r.Quality |= flow.QualityAddressMissing
	}
	if m.proto <= 0xff && (m.proto != 0 || v5) {
		r.Proto, r.Has = uint8(m.proto), r.Has|flow.HasProto
	}
	m.transport(r, v5, sflow)

	if m.bytes != 0 || v5 {
		r.BytesRaw, r.Has = m.bytes, r.Has|flow.HasBytes
	}
	if m.packets != 0 || v5 {
		r.PacketsRaw, r.Has = m.packets, r.Has|flow.HasPackets
	}
	if !r.Any(flow.HasBytes) && (sflow || !r.Any(flow.HasPackets)) {
		r.Quality |= flow.QualityCounterMissing // every sFlow sample is one packet, that says nothing
	}
	// goflow2 leaves the format in the upper two bits of sFlow's interfaces: those
	// say "none" or "several" (sFlow version 5, section 5, interface).
	limit := uint64(1<<32 - 1)
	if sflow {
		limit = 1<<30 - 1
	}
	if m.inIf <= limit && (m.inIf != 0 || v5) {
		r.InIf, r.Has = uint32(m.inIf), r.Has|flow.HasInIf
	}
	if m.outIf <= limit && (m.outIf != 0 || v5) {
		r.OutIf, r.Has = uint32(m.outIf), r.Has|flow.HasOutIf
	}
	if m.forwarding != 0 && !v5 {
		r.ForwardingStatus, r.Has = uint8(m.forwarding), r.Has|flow.HasForwardingStatus
	}
	// 1.x prints a direction always, so that only its other values say something.
	if m.hasDirection && m.direction <= 1 && (m.direction != 0 || m.hasReceivedNs) {
		r.Direction, r.Has = uint8(m.direction), r.Has|flow.HasDirection
	}
	if m.hasBiflow && m.biflow <= 3 && (m.biflow != 0 || m.hasReceivedNs) {
		r.BiflowDirection, r.Has = uint8(m.biflow), r.Has|flow.HasBiflowDirection
	}
	m.times(r, received, sflow)
}

// transport fills ports, flags and ICMP.
func (m *Message) transport(r *flow.Record, v5, sflow bool) {
	sampled := sflow || m.layers != 0 // layers: IPFIX that carries frames (dataLinkFrameSection)
	if sampled && m.fragment != 0 {
		return
	}
	ports, flags := v5, v5
	switch r.Proto {
	case flow.ProtoTCP:
		ports = ports || m.layers>>layerTCP&1 != 0
		flags = ports
	case flow.ProtoUDP:
		ports = ports || m.layers>>layerUDP&1 != 0
	}
	if m.srcPort <= 0xffff && (m.srcPort != 0 || ports) {
		r.SrcPort, r.Has = uint16(m.srcPort), r.Has|flow.HasSrcPort
	}
	if m.dstPort <= 0xffff && (m.dstPort != 0 || ports) {
		r.DstPort, r.Has = uint16(m.dstPort), r.Has|flow.HasDstPort
	}
	if m.flags <= 0xffff && (m.flags != 0 || flags) {
		r.TCPFlags, r.Has = uint16(m.flags), r.Has|flow.HasTCPFlags
	}
	switch {
	case !r.IsICMP() || m.icmpType > 0xff || m.icmpCode > 0xff:
	case m.icmpType|m.icmpCode != 0:
		r.ICMPType, r.ICMPCode, r.Has = uint8(m.icmpType), uint8(m.icmpCode), r.Has|flow.HasICMP
	case r.Any(flow.HasDstPort) && (v5 || r.Source == flow.SourceNetFlowV9):
		r.ICMPType, r.ICMPCode, r.Has = uint8(r.DstPort>>8), uint8(r.DstPort), r.Has|flow.HasICMP
	}
}

// times fills Received, Start and End, in milliseconds.
func (m *Message) times(r *flow.Record, received flow.Time, sflow bool) {
	at, start, end := milli(m.receivedNs/1e6), milli(m.startNs/1e6), milli(m.endNs/1e6)
	bare := m.startNs == m.endNs && m.startNs%1e9 == 0
	if !m.hasReceivedNs && m.receivedSec != 0 { // 1.x; field 38, its start, is ip_flags in 2.x
		at, bare = seconds(m.receivedSec), false
		if start = milli(m.startMilli); start == 0 {
			start = seconds(m.startSec)
		}
		if end = milli(m.endMilli); end == 0 {
			end = seconds(m.endSec)
		}
	}
	if at == 0 || received > 0 && (at < received-MaxAge || at > received+MaxAhead) {
		at = received
	}
	r.Received = at
	if sflow {
		r.Start, r.End = at, at
		return
	}
	if at > 0 {
		if r.Source == flow.SourceNetFlowV5 || r.Source == flow.SourceNetFlowV9 {
			start, end = unwrapped(start, at), unwrapped(end, at)
		}
		if start < max(at-MaxAge, 0) || start > at+MaxAhead {
			start = 0
		}
		if end < max(at-MaxAge, 0) || end > at+MaxAhead {
			end = 0
		}
	}
	switch {
	case start == 0 && end == 0:
		r.Quality |= flow.QualityTimeMissing
		start, end = at, at
	case bare && start-at <= maxExportDelay && at-start <= maxExportDelay &&
		(r.Source == flow.SourceNetFlowV9 || r.Source == flow.SourceIPFIX):
		r.Quality |= flow.QualityTimeMissing
	case start == 0:
		r.Has |= flow.HasEnd
		start = end
	case end == 0:
		r.Has |= flow.HasStart
		end = start
	default:
		r.Has |= flow.HasStart | flow.HasEnd
	}
	if end < start {
		r.Quality |= flow.QualityTimeReversed
		end = start
	}
	r.Start, r.End = start, end
}

// unwrapped mends t, a time that NetFlow told by the exporter's uptime. That counts
// milliseconds in 32 bits, and goflow2 takes the difference to the header's uptime
// for positive (v5), or does not see the counter wrap in between (v9): t is then
// 49.7 days off. As in package ingest the nearer of the two is meant.
func unwrapped(t, at flow.Time) flow.Time {
	switch {
	case t == 0:
	case t < at-1<<31:
		return t + 1<<32
	case t > at+1<<31:
		return t - 1<<32
	}
	return t
}

func milli(v uint64) flow.Time {
	if v > maxMilli {
		return 0
	}
	return flow.Time(v)
}

func seconds(v uint64) flow.Time {
	if v > maxMilli/1000 {
		return 0
	}
	return flow.Time(v * 1000)
}
