package agent

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"strconv"
	"time"

	"github.com/valyala/fastjson"

	"github.com/postern/postern/flow"
)

// goflow2's JSON: its FlowMessage, of 2.x (time_received_ns) and of 1.x (TimeReceived), or as
// protocol buffers are printed (timeReceivedNs). Fields: pb/flow.proto and format/json of
// github.com/netsampler/goflow2.
//
// goflow2 tells what an exporter told it, so the source is the protocol of that. It does not
// tell a number that is zero from one that was never sent: what zero means is decided by who
// sent it, as package kafka does for the same messages in topics, where a table of it stands.

// goflowMessage is what one message tells, as far as a [flow.Record] holds it.
type goflowMessage struct {
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
	hasDirection, hasBiflow        bool
	known                          bool // any field at all that is known
	srcPod, dstPod                 []byte
	srcNamespace, dstNamespace     []byte
	number                         []byte // scratch
}

// The numbers of enum FlowType and of enum LayerStack.
const (
	goflowSFlow5    = 1
	goflowNetFlowV5 = 2
	goflowNetFlowV9 = 3
	goflowIPFIX     = 4

	goflowLayerTCP = 3
	goflowLayerUDP = 4
)

const (
	// A flow that began more than a year before its receipt, or ends more than a day
	// after it, tells no time but a mistake.
	goflowAge   = flow.Time(366 * 24 * time.Hour / time.Millisecond)
	goflowAhead = flow.Time(24 * time.Hour / time.Millisecond)
	// goflow2 writes the export time where a template has no times. Exports are
	// received within moments.
	goflowExportDelay = flow.Time(5 * time.Second / time.Millisecond)
	// goflowMilli and beyond, after the year 4000, is no time.
	goflowMilli = 1 << 46
)

var errGoflowFields = errors.New("no field of a goflow2 flow message, such as time_received_ns or TimeReceived")

func newGoflow2(d *Decoder) parser {
	m := &goflowMessage{}
	return ofJSON(func(v *fastjson.Value, e *entry) error {
		*m = goflowMessage{number: m.number[:0]}
		v.GetObject().Visit(m.set)
		if !m.known {
			return errGoflowFields
		}
		e.timed = true
		r := e.flow(flow.SourceUnknown)
		received := e.o.Received
		if d.cfg.BelieveClock {
			received = 0
		}
		m.record(r, received)
		if r.Received == 0 {
			r.Received = e.o.Received
		}
		if r.Start == 0 {
			r.Start, r.End = r.Received, r.Received
		}
		r.SrcHost, r.DstHost = e.path(m.srcNamespace, m.srcPod), e.path(m.dstNamespace, m.dstPod)
		return nil
	})(d)
}

// set takes a field in. The spellings of its name differ in case and underscores only. A value
// that is not of the field's kind tells nothing.
func (m *goflowMessage) set(key []byte, v *fastjson.Value) {
	var plain [24]byte
	n := 0
	for _, c := range key {
		if c == '_' {
			continue
		}
		if n == len(plain) {
			return
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		plain[n] = c
		n++
	}
	wide := func(to *uint64) { *to, _ = m.uint(v) }
	// Protocol buffers' 32-bit fields are not cut: a larger number is not theirs.
	narrow := func(to *uint64) {
		if *to, _ = m.uint(v); *to > math.MaxUint32 {
			*to = 0
		}
	}
	switch string(plain[:n]) {
	case "type":
		narrow(&m.kind)
		if b := v.GetStringBytes(); b != nil && m.kind == 0 {
			m.kind = goflowTypes[string(b)]
		}
	case "timereceivedns":
		m.receivedNs, m.hasReceivedNs = m.nanoseconds(v)
	case "timeflowstartns":
		m.startNs, _ = m.nanoseconds(v)
	case "timeflowendns":
		m.endNs, _ = m.nanoseconds(v)
	case "timereceived":
		wide(&m.receivedSec)
	case "timeflowstart":
		wide(&m.startSec)
	case "timeflowend":
		wide(&m.endSec)
	case "timeflowstartms":
		wide(&m.startMilli)
	case "timeflowendms":
		wide(&m.endMilli)
	case "sampleraddress":
		m.sampler, _ = goflowAddr(v)
	case "srcaddr":
		m.src, m.hasSrc = goflowAddr(v)
	case "dstaddr":
		m.dst, m.hasDst = goflowAddr(v)
	case "samplingrate":
		wide(&m.rate)
	case "bytes":
		wide(&m.bytes)
	case "packets":
		wide(&m.packets)
	case "proto":
		narrow(&m.proto)
		if b := v.GetStringBytes(); b != nil && m.proto == 0 {
			m.proto = uint64(goflowProtocols[string(b)])
		}
	case "srcport":
		narrow(&m.srcPort)
	case "dstport":
		narrow(&m.dstPort)
	case "inif":
		narrow(&m.inIf)
	case "outif":
		narrow(&m.outIf)
	case "tcpflags":
		narrow(&m.flags)
	case "fragmentoffset":
		narrow(&m.fragment)
	case "icmptype":
		narrow(&m.icmpType)
	case "icmpcode":
		narrow(&m.icmpCode)
	case "forwardingstatus":
		narrow(&m.forwarding)
	case "observationdomainid":
		narrow(&m.domain)
	case "flowdirection":
		m.direction, m.hasDirection = m.uint(v)
	case "biflowdirection":
		m.biflow, m.hasBiflow = m.uint(v)
	case "layerstack":
		for _, l := range v.GetArray() {
			if n, ok := m.uint(l); ok && n < 32 {
				m.layers |= 1 << n
			}
			switch string(l.GetStringBytes()) {
			case "TCP":
				m.layers |= 1 << goflowLayerTCP
			case "UDP":
				m.layers |= 1 << goflowLayerUDP
			}
		}
	// What enriches flows in Kubernetes adds:
	case "srcpod":
		m.srcPod = said(v.GetStringBytes())
	case "dstpod":
		m.dstPod = said(v.GetStringBytes())
	case "srcnamespace":
		m.srcNamespace = said(v.GetStringBytes())
	case "dstnamespace":
		m.dstNamespace = said(v.GetStringBytes())
	default:
		return
	}
	m.known = true
}

// uint is a number, or a text that is one; not what is negative or beyond 64 bits.
func (m *goflowMessage) uint(v *fastjson.Value) (uint64, bool) {
	var b []byte
	switch v.Type() {
	case fastjson.TypeNumber:
		m.number = v.MarshalTo(m.number[:0])
		b = m.number
	case fastjson.TypeString:
		b = v.GetStringBytes()
	}
	if n, ok := atou(b); ok {
		return n, true
	}
	if len(b) == 0 || len(b) > 32 || b[0] < '0' || b[0] > '9' {
		return 0, false
	}
	for _, c := range b {
		if (c < '0' || c > '9') && c != '.' && c != 'e' && c != 'E' && c != '+' && c != '-' {
			return 0, false // a time, or a name that begins with a digit
		}
	}
	x, err := strconv.ParseFloat(text(b), 64)
	if err != nil || !(x >= 0 && x < 1<<64) {
		return 0, false
	}
	return uint64(x), true
}

// nanoseconds is a time: a number of nanoseconds, or RFC 3339 as the renderer datetimenano
// prints it, which is read to the millisecond.
func (m *goflowMessage) nanoseconds(v *fastjson.Value) (uint64, bool) {
	if n, ok := m.uint(v); ok || v.Type() != fastjson.TypeString {
		return n, ok
	}
	t, ok := when(v.GetStringBytes())
	if !ok || t < 0 || t > goflowMilli/2 {
		return 0, false
	}
	return uint64(t) * 1e6, true
}

// goflowAddr is an address, as text or as its bytes in base 64.
func goflowAddr(v *fastjson.Value) (flow.Addr, bool) {
	b := v.GetStringBytes()
	if a, ok := addr(b); ok {
		return a, true
	}
	var raw [18]byte
	if len(b) != 8 && len(b) != 24 {
		return flow.Addr{}, false
	}
	switch n, err := base64.StdEncoding.Decode(raw[:], b); {
	case err == nil && n == 4:
		return flow.AddrFrom4(binary.BigEndian.Uint32(raw[:])), true
	case err == nil && n == 16:
		return flow.AddrFrom16([16]byte(raw[:16])), true
	}
	return flow.Addr{}, false
}

var goflowSources = [...]flow.Source{goflowSFlow5: flow.SourceSFlowV5, goflowNetFlowV5: flow.SourceNetFlowV5,
	goflowNetFlowV9: flow.SourceNetFlowV9, goflowIPFIX: flow.SourceIPFIX}

// record writes what m tells into r, which is zeroed. received stands in for the
// time of receipt.
func (m *goflowMessage) record(r *flow.Record, received flow.Time) {
	if m.kind < uint64(len(goflowSources)) {
		r.Source = goflowSources[m.kind]
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
func (m *goflowMessage) transport(r *flow.Record, v5, sflow bool) {
	sampled := sflow || m.layers != 0 // layers: IPFIX that carries frames (dataLinkFrameSection)
	if sampled && m.fragment != 0 {
		return
	}
	ports, flags := v5, v5
	switch r.Proto {
	case flow.ProtoTCP:
		ports = ports || m.layers>>goflowLayerTCP&1 != 0
		flags = ports
	case flow.ProtoUDP:
		ports = ports || m.layers>>goflowLayerUDP&1 != 0
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
func (m *goflowMessage) times(r *flow.Record, received flow.Time, sflow bool) {
	at, start, end := goflowMilliseconds(m.receivedNs/1e6), goflowMilliseconds(m.startNs/1e6), goflowMilliseconds(m.endNs/1e6)
	bare := m.startNs == m.endNs && m.startNs%1e9 == 0
	if !m.hasReceivedNs && m.receivedSec != 0 { // 1.x; field 38, its start, is ip_flags in 2.x
		at, bare = goflowSeconds(m.receivedSec), false
		if start = goflowMilliseconds(m.startMilli); start == 0 {
			start = goflowSeconds(m.startSec)
		}
		if end = goflowMilliseconds(m.endMilli); end == 0 {
			end = goflowSeconds(m.endSec)
		}
	}
	if at == 0 || received > 0 && (at < received-goflowAge || at > received+goflowAhead) {
		at = received
	}
	r.Received = at
	if sflow {
		r.Start, r.End = at, at
		return
	}
	if at > 0 {
		if r.Source == flow.SourceNetFlowV5 || r.Source == flow.SourceNetFlowV9 {
			start, end = goflowUnwrapped(start, at), goflowUnwrapped(end, at)
		}
		if start < max(at-goflowAge, 0) || start > at+goflowAhead {
			start = 0
		}
		if end < max(at-goflowAge, 0) || end > at+goflowAhead {
			end = 0
		}
	}
	switch {
	case start == 0 && end == 0:
		r.Quality |= flow.QualityTimeMissing
		start, end = at, at
	case bare && start-at <= goflowExportDelay && at-start <= goflowExportDelay &&
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

// goflowUnwrapped mends t, a time that NetFlow told by the exporter's uptime. That counts
// milliseconds in 32 bits, and goflow2 takes the difference to the header's uptime
// for positive (v5), or does not see the counter wrap in between (v9): t is then
// 49.7 days off. As in package ingest the nearer of the two is meant.
func goflowUnwrapped(t, at flow.Time) flow.Time {
	switch {
	case t == 0:
	case t < at-1<<31:
		return t + 1<<32
	case t > at+1<<31:
		return t - 1<<32
	}
	return t
}

func goflowMilliseconds(v uint64) flow.Time {
	if v > goflowMilli {
		return 0
	}
	return flow.Time(v)
}

func goflowSeconds(v uint64) flow.Time {
	if v > goflowMilli/1000 {
		return 0
	}
	return flow.Time(v * 1000)
}

func knownGoflow2(_ []byte, v *fastjson.Value) string {
	for _, pair := range [...][2]string{{"time_received_ns", "sampler_address"}, {"TimeReceived", "SamplerAddress"}, {"timeReceivedNs", "samplerAddress"}} {
		if v != nil && v.Exists(pair[0]) && v.Exists(pair[1]) {
			return "a JSON object with " + pair[0] + " and " + pair[1]
		}
	}
	return ""
}

var goflowTypes = map[string]uint64{"SFLOW_5": goflowSFlow5, "NETFLOW_V5": goflowNetFlowV5,
	"NETFLOW_V9": goflowNetFlowV9, "IPFIX": goflowIPFIX}

// goflowProtocols are the names goflow2 prints for protocol numbers (IANA's
// keywords, some respelled). "unknown" and the like are not here: they tell no
// number.
var goflowProtocols = map[string]uint8{
	"HOPOPT": 0, "ICMP": 1, "IGMP": 2, "GGP": 3, "IPv4": 4, "ST": 5, "TCP": 6, "CBT": 7, "EGP": 8, "IGP": 9,
	"BBN-RCC-MON": 10, "NVP-II": 11, "PUP": 12, "ARGUS": 13, "EMCON": 14, "XNET": 15, "CHAOS": 16, "UDP": 17, "MUX": 18,
	"DCN-MEAS": 19, "HMP": 20, "PRM": 21, "XNS-IDP": 22, "TRUNK-1": 23, "TRUNK-2": 24, "LEAF-1": 25, "LEAF-2": 26,
	"RDP": 27, "IRTP": 28, "ISO-TP4": 29, "NETBLT": 30, "MFE-NSP": 31, "MERIT-INP": 32, "DCCP": 33, "3PC": 34,
	"IDPR": 35, "XTP": 36, "DDP": 37, "IDPR-CMTP": 38, "TP++": 39, "IL": 40, "IPv6": 41, "SDRP": 42, "IPv6-Route": 43,
	"IPv6-Frag": 44, "IDRP": 45, "RSVP": 46, "GRE": 47, "DSR": 48, "BNA": 49, "ESP": 50, "AH": 51, "I-NLSP": 52,
	"SWIPE": 53, "NARP": 54, "Min-IPv4": 55, "TLSP": 56, "SKIP": 57, "IPv6-ICMP": 58, "IPv6-NoNxt": 59, "IPv6-Opts": 60,
	"any-host-internal-protocol": 61, "CFTP": 62, "any-local-network": 63, "SAT-EXPAK": 64, "KRYPTOLAN": 65, "RVD": 66,
	"IPPC": 67, "any-distributed-file-system": 68, "SAT-MON": 69, "VISA": 70, "IPCV": 71, "CPNX": 72, "CPHB": 73,
	"WSN": 74, "PVP": 75, "BR-SAT-MON": 76, "SUN-ND": 77, "WB-MON": 78, "WB-EXPAK": 79, "ISO-IP": 80, "VMTP": 81,
	"SECURE-VMTP": 82, "VINES": 83, "IPTM": 84, "NSFNET-IGP": 85, "DGP": 86, "TCF": 87, "EIGRP": 88, "OSPFIGP": 89,
	"Sprite-RPC": 90, "LARP": 91, "MTP": 92, "AX.25": 93, "IPIP": 94, "MICP": 95, "SCC-SP": 96, "ETHERIP": 97,
	"ENCAP": 98, "any-private-encryption-scheme": 99, "GMTP": 100, "IFMP": 101, "PNNI": 102, "PIM": 103, "ARIS": 104,
	"SCPS": 105, "QNX": 106, "A/N": 107, "IPComp": 108, "SNP": 109, "Compaq-Peer": 110, "IPX-in-IP": 111, "VRRP": 112,
	"PGM": 113, "any-0-hop-protocol": 114, "L2TP": 115, "DDX": 116, "IATP": 117, "STP": 118, "SRP": 119, "UTI": 120,
	"SMP": 121, "SM": 122, "PTP": 123, "ISIS over IPv4": 124, "FIRE": 125, "CRTP": 126, "CRUDP": 127, "SSCOPMCE": 128,
	"IPLT": 129, "SPS": 130, "PIPE": 131, "SCTP": 132, "FC": 133, "RSVP-E2E-IGNORE": 134, "Mobility Header": 135,
	"UDPLite": 136, "MPLS-in-IP": 137, "manet": 138, "HIP": 139, "Shim6": 140, "WESP": 141, "ROHC": 142,
	"Ethernet": 143, "AGGFRAG": 144, "NSH": 145,
	"ICMPv6": 58, // 1.x
}
