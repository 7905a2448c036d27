package goflow2

import (
	"strconv"

	"github.com/postern/postern/flow"
)

// Field is a field of a message as JSON has it; see [FieldOf].
type Field uint8

// The fields, in the order of their kinds.
const (
	fieldLayerStack Field = iota
	fieldSampler
	fieldSrc
	fieldDst
	fieldReceivedNs
	fieldStartNs
	fieldEndNs
	// What enriches flows in Kubernetes adds. goflow2 itself tells no names, and a [Message]
	// has no room for them.
	SrcPod
	DstPod
	SrcNamespace
	DstNamespace
	fieldType
	fieldReceivedSec
	fieldStartSec
	fieldEndSec
	fieldStartMilli
	fieldEndMilli
	fieldRate
	fieldBytes
	fieldPackets
	fieldProto
	fieldSrcPort
	fieldDstPort
	fieldInIf
	fieldOutIf
	fieldFlags
	fieldFragment
	fieldICMPType
	fieldICMPCode
	fieldForwarding
	fieldDomain
	fieldDirection
	fieldBiflow
)

// Kind is what the value of a field is, and so how a [Message] takes it.
type Kind uint8

// The kinds.
const (
	Number  Kind = iota // for [Message.Set]
	Layers              // an array, each element of which is for [Message.Set]
	Address             // for [Message.SetAddr]
	Time                // for [Message.SetTime]
	Name                // for none
)

// Kind is the kind of f.
func (f Field) Kind() Kind {
	switch {
	case f >= fieldType:
		return Number
	case f >= SrcPod:
		return Name
	case f >= fieldReceivedNs:
		return Time
	case f >= fieldSampler:
		return Address
	}
	return Layers
}

// FieldOf finds a field by its name in JSON, in the spelling of 2.x (time_received_ns) or of
// 1.x (TimeReceived), or as protocol buffers are printed (timeReceivedNs): they differ in case
// and underscores only. ok is false for a name that is nothing to us.
func FieldOf(key []byte) (f Field, ok bool) {
	var plain [24]byte
	n := 0
	for _, c := range key {
		if c == '_' {
			continue
		}
		if n == len(plain) {
			return 0, false
		}
		plain[n] = c | 0x20 // letters to lower case; nothing else becomes a letter
		n++
	}
	switch string(plain[:n]) {
	case "type":
		return fieldType, true
	case "timereceivedns":
		return fieldReceivedNs, true
	case "timeflowstartns":
		return fieldStartNs, true
	case "timeflowendns":
		return fieldEndNs, true
	case "timereceived":
		return fieldReceivedSec, true
	case "timeflowstart":
		return fieldStartSec, true
	case "timeflowend":
		return fieldEndSec, true
	case "timeflowstartms":
		return fieldStartMilli, true
	case "timeflowendms":
		return fieldEndMilli, true
	case "sampleraddress":
		return fieldSampler, true
	case "srcaddr":
		return fieldSrc, true
	case "dstaddr":
		return fieldDst, true
	case "samplingrate":
		return fieldRate, true
	case "bytes":
		return fieldBytes, true
	case "packets":
		return fieldPackets, true
	case "proto":
		return fieldProto, true
	case "srcport":
		return fieldSrcPort, true
	case "dstport":
		return fieldDstPort, true
	case "inif":
		return fieldInIf, true
	case "outif":
		return fieldOutIf, true
	case "tcpflags":
		return fieldFlags, true
	case "fragmentoffset":
		return fieldFragment, true
	case "icmptype":
		return fieldICMPType, true
	case "icmpcode":
		return fieldICMPCode, true
	case "forwardingstatus":
		return fieldForwarding, true
	case "observationdomainid":
		return fieldDomain, true
	case "flowdirection":
		return fieldDirection, true
	case "biflowdirection":
		return fieldBiflow, true
	case "layerstack":
		return fieldLayerStack, true
	case "srcpod":
		return SrcPod, true
	case "dstpod":
		return DstPod, true
	case "srcnamespace":
		return SrcNamespace, true
	case "dstnamespace":
		return DstNamespace, true
	}
	return 0, false
}

// ParseNumber reads a number as JSON writes it, or a text that is one. ok is false for what is
// negative or beyond 64 bits; a fraction is cut.
func ParseNumber(text []byte) (n uint64, ok bool) {
	if len(text) == 0 || len(text) > 32 {
		return 0, false
	}
	for i, c := range text {
		if c < '0' || c > '9' || i >= 19 {
			return parseReal(text)
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}

// parseReal is ParseNumber for what has a fraction, an exponent or twenty digits.
func parseReal(text []byte) (uint64, bool) {
	if c := text[0]; c < '0' || c > '9' {
		return 0, false // a name, or negative
	}
	for _, c := range text {
		if (c < '0' || c > '9') && c != '.' && c != 'e' && c != 'E' && c != '+' && c != '-' {
			return 0, false // a time, or a name that begins with a digit
		}
	}
	if n, err := strconv.ParseUint(string(text), 10, 64); err == nil {
		return n, true
	}
	x, err := strconv.ParseFloat(string(text), 64)
	if err != nil || !(x >= 0 && x < 1<<64) {
		return 0, false
	}
	return uint64(x), true
}

// word is the number that a field's word stands for.
func (f Field) word(text []byte) (n uint64, ok bool) {
	switch f {
	case fieldType:
		n, ok = types[string(text)]
	case fieldProto:
		n, ok = protocols[string(text)]
	case fieldLayerStack:
		switch string(text) {
		case "TCP":
			return layerTCP, true
		case "UDP":
			return layerUDP, true
		case "IPv4":
			return layerIPv4, true
		case "IPv6":
			return layerIPv6, true
		}
	}
	return n, ok
}

// Set takes the value of a number, or an element of layer_stack: value is a number as JSON
// writes it or, if it is text, what stands between the quotes, a number or goflow2's word for
// one. Any other value, nil among them, tells that the field is there and nothing else. Protocol
// buffers' 32-bit fields are not cut: a larger number is not theirs.
func (m *Message) Set(f Field, value []byte, text bool) {
	m.known = true
	n, ok := ParseNumber(value)
	if !ok && text {
		n, ok = f.word(value)
	}
	if !ok {
		n = 0
	}
	narrow := n // of a 32-bit field
	if n > 1<<32-1 {
		narrow = 0
	}
	switch f {
	case fieldLayerStack:
		if ok {
			m.layer(n)
		}
	case fieldReceivedSec:
		m.receivedSec = n
	case fieldStartSec:
		m.startSec = n
	case fieldEndSec:
		m.endSec = n
	case fieldStartMilli:
		m.startMilli = n
	case fieldEndMilli:
		m.endMilli = n
	case fieldRate:
		m.rate = n
	case fieldBytes:
		m.bytes = n
	case fieldPackets:
		m.packets = n
	case fieldDirection:
		m.direction, m.hasDirection = n, ok
	case fieldBiflow:
		m.biflow, m.hasBiflow = n, ok
	case fieldType:
		m.kind = narrow
	case fieldProto:
		m.proto = narrow
	case fieldSrcPort:
		m.srcPort = narrow
	case fieldDstPort:
		m.dstPort = narrow
	case fieldInIf:
		m.inIf = narrow
	case fieldOutIf:
		m.outIf = narrow
	case fieldFlags:
		m.flags = narrow
	case fieldFragment:
		m.fragment = narrow
	case fieldICMPType:
		m.icmpType = narrow
	case fieldICMPCode:
		m.icmpCode = narrow
	case fieldForwarding:
		m.forwarding = narrow
	case fieldDomain:
		m.domain = narrow
	}
}

// SetAddr takes an address; ok is false if the value was none.
func (m *Message) SetAddr(f Field, a flow.Addr, ok bool) {
	m.known = true
	switch f {
	case fieldSampler:
		m.sampler = a
	case fieldSrc:
		m.src, m.hasSrc = a, ok
	case fieldDst:
		m.dst, m.hasDst = a, ok
	}
}

// SetTime takes a time in nanoseconds since 1970, UTC; ok is false if the value was none.
func (m *Message) SetTime(f Field, ns uint64, ok bool) {
	m.known = true
	switch f {
	case fieldReceivedNs:
		m.receivedNs, m.hasReceivedNs = ns, ok
	case fieldStartNs:
		m.startNs = ns
	case fieldEndNs:
		m.endNs = ns
	}
}

var types = map[string]uint64{"SFLOW_5": SFlow5, "NETFLOW_V5": NetFlowV5,
	"NETFLOW_V9": NetFlowV9, "IPFIX": IPFIX}

// protocols are the names goflow2 prints for protocol numbers (IANA's
// keywords, some respelled). "unknown" and the like are not here: they tell no
// number.
var protocols = map[string]uint64{
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
