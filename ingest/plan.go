package ingest

import (
	"encoding/binary"
	"slices"

	"github.com/postern/postern/flow"
)

// field is one field specifier of a template (RFC 7011, 3.2). NetFlow v9 has no
// enterprise numbers: there it is 0, and the whole 16 bits are the element.
type field struct {
	pen     uint32
	element uint16
	length  uint16 // variable: 65535, IPFIX only
}

const (
	variable   = 0xffff
	penReverse = 29305 // RFC 5103, 6.1: the element in the other direction
	penYAF     = 6871  // CERT: TCP flags of the first packet and of the others
)

// opcode says where a field's value goes.
type opcode uint8

const (
	opSkip opcode = iota
	opSrc4
	opSrc6
	opDst4
	opDst6
	opSrcPort
	opDstPort
	opSrcPortAlt // 180, 182: only one of them is not zero
	opDstPortAlt
	opProto
	opFlags
	opBytes
	opBytes4
	opBytesPost // after a middlebox; only if nothing else counted
	opPackets
	opPackets4
	opPacketsPost
	opRevFlags
	opRevBytes
	opRevPackets
	opInIf
	opOutIf
	opNATSrc4
	opNATSrc6
	opNATDst4
	opNATDst6
	opNATSrcPort
	opNATDstPort
	opICMP // type and code in 16 bits
	opICMPType4
	opICMPCode4
	opICMPType6
	opICMPCode6
	opForwarding
	opFirewall
	opDirection
	opBiflow
	opUser
	opAppID
	opAppName
	opUpStart
	opUpEnd
	opStartSec
	opEndSec
	opStartMilli
	opEndMilli
	opStartNTP
	opEndNTP
	opStartDelta
	opEndDelta
	opDurationMilli
	opDurationMicro
	opInit
	opObservedSec
	opObservedMilli
	opObservedNTP
	opInterval // 34, 50: the rate itself
	opPacketInterval
	opPacketSpace
	opSamplingSize
	opSamplingPopulation
	opSampler
	numOpcodes
)

// target says what element goes where. Elements of the same rank group exclude
// each other: the one of the lowest rank in a template is used.
type target struct {
	code  opcode
	has   flow.Has
	group uint8
	rank  uint8
}

// The groups of elements that tell the same.
const (
	_ uint8 = iota
	groupBytes
	groupPackets
	groupStart
	groupEnd
	groupRevBytes
	groupRevPackets
	groupSrc4
	groupDst4
	groupSrc6
	groupDst6
	groupObserved
	groupApp
	numGroups
)

// elements are the information elements that are read, of the IANA registry and
// of NetFlow v9 alike. docs/formats.md lists them; a test holds the two together.
var elements = map[uint16]target{
	1:   {opBytes, flow.HasBytes, groupBytes, 0},                // octetDeltaCount
	231: {opBytes, flow.HasBytes, groupBytes, 1},                // initiatorOctets
	85:  {opBytes, flow.HasBytes, groupBytes, 2},                // octetTotalCount
	352: {opBytes, flow.HasBytes, groupBytes, 3},                // layer2OctetDeltaCount
	353: {opBytes, flow.HasBytes, groupBytes, 4},                // layer2OctetTotalCount
	2:   {opPackets, flow.HasPackets, groupPackets, 0},          // packetDeltaCount
	298: {opPackets, flow.HasPackets, groupPackets, 1},          // initiatorPackets
	86:  {opPackets, flow.HasPackets, groupPackets, 2},          // packetTotalCount
	23:  {opBytesPost, flow.HasBytes, 0, 0},                     // postOctetDeltaCount
	171: {opBytesPost, flow.HasBytes, 0, 0},                     // postOctetTotalCount
	24:  {opPacketsPost, flow.HasPackets, 0, 0},                 // postPacketDeltaCount
	172: {opPacketsPost, flow.HasPackets, 0, 0},                 // postPacketTotalCount
	232: {opRevBytes, flow.HasRevBytes, groupRevBytes, 1},       // responderOctets
	299: {opRevPackets, flow.HasRevPackets, groupRevPackets, 1}, // responderPackets

	4:   {code: opProto, has: flow.HasProto},
	6:   {code: opFlags, has: flow.HasTCPFlags},
	7:   {code: opSrcPort, has: flow.HasSrcPort},
	11:  {code: opDstPort, has: flow.HasDstPort},
	180: {code: opSrcPortAlt, has: flow.HasSrcPort}, // udpSourcePort
	182: {code: opSrcPortAlt, has: flow.HasSrcPort}, // tcpSourcePort
	181: {code: opDstPortAlt, has: flow.HasDstPort}, // udpDestinationPort
	183: {code: opDstPortAlt, has: flow.HasDstPort}, // tcpDestinationPort
	8:   {opSrc4, flow.HasSrc, groupSrc4, 0},
	12:  {opDst4, flow.HasDst, groupDst4, 0},
	27:  {opSrc6, flow.HasSrc, groupSrc6, 0},
	28:  {opDst6, flow.HasDst, groupDst6, 0},
	10:  {code: opInIf, has: flow.HasInIf},
	14:  {code: opOutIf, has: flow.HasOutIf},
	61:  {code: opDirection, has: flow.HasDirection},
	239: {code: opBiflow, has: flow.HasBiflowDirection},

	225: {code: opNATSrc4, has: flow.HasNATSrc},
	226: {code: opNATDst4, has: flow.HasNATDst},
	281: {code: opNATSrc6, has: flow.HasNATSrc},
	282: {code: opNATDst6, has: flow.HasNATDst},
	227: {code: opNATSrcPort, has: flow.HasNATSrcPort},
	228: {code: opNATDstPort, has: flow.HasNATDstPort},

	32:  {code: opICMP, has: flow.HasICMP},
	139: {code: opICMP, has: flow.HasICMP},
	176: {code: opICMPType4, has: flow.HasICMP},
	177: {code: opICMPCode4, has: flow.HasICMP},
	178: {code: opICMPType6, has: flow.HasICMP},
	179: {code: opICMPCode6, has: flow.HasICMP},

	89:  {code: opForwarding, has: flow.HasForwardingStatus},
	233: {code: opFirewall, has: flow.HasFirewallEvent},
	371: {code: opUser},
	95:  {opAppID, 0, groupApp, 1},
	96:  {opAppName, 0, groupApp, 0},

	22:  {code: opUpStart},
	21:  {code: opUpEnd},
	152: {opStartMilli, 0, groupStart, 0},
	154: {opStartNTP, 0, groupStart, 1},
	156: {opStartNTP, 0, groupStart, 2},
	150: {opStartSec, 0, groupStart, 3},
	158: {opStartDelta, 0, groupStart, 4},
	153: {opEndMilli, 0, groupEnd, 0},
	155: {opEndNTP, 0, groupEnd, 1},
	157: {opEndNTP, 0, groupEnd, 2},
	151: {opEndSec, 0, groupEnd, 3},
	159: {opEndDelta, 0, groupEnd, 4},
	161: {code: opDurationMilli},
	162: {code: opDurationMicro},
	160: {code: opInit},
	323: {opObservedMilli, 0, groupObserved, 0},
	324: {opObservedNTP, 0, groupObserved, 1},
	325: {opObservedNTP, 0, groupObserved, 2},
	322: {opObservedSec, 0, groupObserved, 3},

	34:  {code: opInterval},
	50:  {code: opInterval},
	305: {code: opPacketInterval},
	306: {code: opPacketSpace},
	309: {code: opSamplingSize},
	310: {code: opSamplingPopulation},
	48:  {code: opSampler},
	302: {code: opSampler},
}

// privateElements are what vendors use in v9, where there are no enterprise
// numbers: Cisco's ASA before its elements were registered (40000 …), Palo Alto's
// PAN-OS (567..).
var privateElements = map[uint16]target{
	40000: {code: opUser},
	40001: {code: opNATSrc4, has: flow.HasNATSrc},
	40002: {code: opNATDst4, has: flow.HasNATDst},
	40003: {code: opNATSrcPort, has: flow.HasNATSrcPort},
	40004: {code: opNATDstPort, has: flow.HasNATDstPort},
	40005: {code: opFirewall, has: flow.HasFirewallEvent},
	56701: {code: opAppName, group: groupApp},
	56702: {code: opUser},
}

// reverseElements are read under the reverse enterprise number.
var reverseElements = map[uint16]target{
	6:  {code: opRevFlags, has: flow.HasRevTCPFlags},
	1:  {opRevBytes, flow.HasRevBytes, groupRevBytes, 0},
	85: {opRevBytes, flow.HasRevBytes, groupRevBytes, 2},
	2:  {opRevPackets, flow.HasRevPackets, groupRevPackets, 0},
	86: {opRevPackets, flow.HasRevPackets, groupRevPackets, 2},
}

// yafElements: YAF tells the flags of the first packet and of all others apart,
// 0x4000 marks the reverse direction.
var yafElements = map[uint16]target{
	14:    {code: opFlags, has: flow.HasTCPFlags},
	15:    {code: opFlags, has: flow.HasTCPFlags},
	16398: {code: opRevFlags, has: flow.HasRevTCPFlags},
	16399: {code: opRevFlags, has: flow.HasRevTCPFlags},
}

func lookup(f field, v9 bool) target {
	switch f.pen {
	case 0:
		if t, ok := elements[f.element]; ok {
			return t
		}
		if v9 {
			return privateElements[f.element]
		}
	case penReverse:
		return reverseElements[f.element]
	case penYAF:
		return yafElements[f.element]
	}
	return target{}
}

// fits says whether a field of that length can hold what code reads; IPFIX
// allows numbers in fewer bytes than their type has (RFC 7011, 6.2).
func (code opcode) fits(length uint16) bool {
	if length == variable {
		switch code {
		case opUser, opAppID, opAppName:
			return true
		}
		return false
	}
	switch code {
	case opSrc4, opDst4, opNATSrc4, opNATDst4:
		return length == 4
	case opSrc6, opDst6, opNATSrc6, opNATDst6:
		return length == 16
	case opStartNTP, opEndNTP, opObservedNTP:
		return length == 8
	case opUser, opAppName:
		return length > 0
	}
	return length >= 1 && length <= 8
}

// op is one step of a plan: a field of interest, or in a plan of variable length
// a stretch to step over.
type op struct {
	code   opcode
	length uint16 // variable: with its length in front
	offset uint16 // in a plan of fixed length
}

// What a plan's records need done after their fields were read.
const (
	needUptime uint16 = 1 << iota
	needInit          // system start in the record
	needAbsolute
	needDelta
	needDuration
	needObserved
	needSamplingField
	needICMPPort // v9: the convention of the destination port
	needICMP     // separate elements of both families
	needInitiator
)

// plan is what a template compiles to: which bytes of a record go where.
type plan struct {
	ops     []op
	size    int // bytes of a record; of the shortest, if its length varies
	varies  bool
	has     flow.Has
	quality flow.Quality
	need    uint16
}

// compile makes the plan of a data template. ok is false where a record would be
// empty, which no set can hold a number of.
func compile(fields []field, v9 bool) (p *plan, ok bool) {
	p = &plan{}
	var best [numGroups]uint8
	targets := make([]target, len(fields))
	for i := range best {
		best[i] = 0xff
	}
	for i, f := range fields {
		t := lookup(f, v9)
		if !t.code.fits(f.length) {
			t = target{}
		}
		targets[i] = t
		best[t.group] = min(best[t.group], t.rank)
		if f.length == variable {
			p.varies = true
			p.size++
		} else {
			p.size += int(f.length)
		}
	}
	if p.size == 0 || p.size > 0xffff {
		return nil, false
	}
	offset := 0
	icmpElements, initiator := false, false
	for i, f := range fields {
		t := targets[i]
		if f.pen == 0 && (f.element == 231 || f.element == 298) {
			initiator = true
		}
		if t.group != 0 && t.rank != best[t.group] {
			t = target{}
		}
		if t.code != opSkip {
			p.has |= t.has
			p.need |= t.code.needs()
			switch t.code {
			case opICMPType4, opICMPType6:
				icmpElements = true
			case opBytes:
				if f.length == 4 {
					t.code = opBytes4
				}
			case opPackets:
				if f.length == 4 {
					t.code = opPackets4
				}
			}
		}
		if t.code != opSkip || p.varies {
			p.step(op{t.code, f.length, uint16(offset)})
		}
		if f.length != variable {
			offset += int(f.length)
		}
	}
	if v9 && !icmpElements {
		p.need |= needICMPPort
	}
	if initiator {
		p.need |= needInitiator
	}
	if p.has&(flow.HasSrc|flow.HasDst) != flow.HasSrc|flow.HasDst {
		p.quality |= flow.QualityAddressMissing
	}
	if p.has&(flow.HasBytes|flow.HasPackets) == 0 {
		p.quality |= flow.QualityCounterMissing
	}
	p.ops = slices.Clip(p.ops)
	return p, true
}

// step adds o, joining stretches to step over.
func (p *plan) step(o op) {
	if n := len(p.ops); n > 0 && o.code == opSkip && o.length != variable {
		if last := &p.ops[n-1]; last.code == opSkip && last.length != variable && int(last.length)+int(o.length) < variable {
			last.length += o.length
			return
		}
	}
	p.ops = append(p.ops, o)
}

func (code opcode) needs() uint16 {
	switch code {
	case opUpStart, opUpEnd:
		return needUptime
	case opInit:
		return needInit
	case opStartSec, opStartMilli, opStartNTP, opEndSec, opEndMilli, opEndNTP:
		return needAbsolute
	case opStartDelta, opEndDelta:
		return needDelta
	case opDurationMilli, opDurationMicro:
		return needDuration
	case opObservedSec, opObservedMilli, opObservedNTP:
		return needObserved
	case opInterval, opPacketInterval, opPacketSpace, opSamplingSize, opSamplingPopulation:
		return needSamplingField
	case opICMPType4, opICMPCode4, opICMPType6, opICMPCode6:
		return needICMP
	}
	return 0
}

// scratch holds the values of a record that only together mean something.
type scratch struct {
	upStart, upEnd                           uint32
	seen                                     uint8 // seenUpStart …
	icmpType4, icmpCode4                     uint8
	icmpType6, icmpCode6                     uint8
	start, end, observed, init               flow.Time
	duration                                 flow.Time
	interval, packets, space, size, from, id uint64
}

const (
	seenUpStart = 1 << iota
	seenUpEnd
	seenSpace
)

func number(b []byte) uint64 {
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.BigEndian.Uint16(b))
	case 4:
		return uint64(binary.BigEndian.Uint32(b))
	case 8:
		return binary.BigEndian.Uint64(b)
	}
	var v uint64
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}

// bounded is v as a number of at most limit.
func bounded(v, limit uint64) uint64 { return min(v, limit) }

func addr6(b []byte) flow.Addr {
	return flow.Addr{Hi: binary.BigEndian.Uint64(b), Lo: binary.BigEndian.Uint64(b[8:])}
}

// Where a template has both families, one of them is zero: it does not overwrite
// the other.
func either(old, v flow.Addr) flow.Addr {
	if (v.IsZero() || v == flow.AddrFrom4(0)) && !old.IsZero() {
		return old
	}
	return v
}

const (
	maxTime  = 1 << 46         // milliseconds; beyond the year 4000, further checks are against the export time
	ntpEpoch = 2_208_988_800   // seconds from 1900 to 1970 (RFC 7011, 6.1.9)
	maxMilli = uint64(maxTime) // as a field's value
	maxSec   = uint64(maxTime / 1000)
)

func ntp(v uint64) flow.Time {
	sec, frac := v>>32, v&0xffffffff
	if sec < ntpEpoch {
		return 0
	}
	return flow.Time((sec-ntpEpoch)*1000 + frac*1000>>32)
}

// fixed reads a record of fixed length.
func (d *Decoder) fixed(m *message, p *plan, b []byte, r *flow.Record, s *scratch) {
	be := binary.BigEndian
	for i := range p.ops {
		o := &p.ops[i]
		f := b[o.offset:][:o.length]
		// What nearly every record has is done here, the rest by set: a call a field
		// is a quarter of the time.
		switch o.code {
		case opSrc4:
			r.Src = either(r.Src, flow.AddrFrom4(be.Uint32(f)))
		case opDst4:
			r.Dst = either(r.Dst, flow.AddrFrom4(be.Uint32(f)))
		case opSrcPort:
			r.SrcPort = uint16(number(f))
		case opDstPort:
			r.DstPort = uint16(number(f))
		case opProto:
			r.Proto = uint8(number(f))
		case opFlags:
			r.TCPFlags |= uint16(number(f))
		case opBytes4:
			r.BytesRaw = uint64(be.Uint32(f))
		case opPackets4:
			r.PacketsRaw = uint64(be.Uint32(f))
		case opInIf:
			r.InIf = uint32(number(f))
		case opOutIf:
			r.OutIf = uint32(number(f))
		case opUpStart:
			s.upStart, s.seen = uint32(number(f)), s.seen|seenUpStart
		case opUpEnd:
			s.upEnd, s.seen = uint32(number(f)), s.seen|seenUpEnd
		default:
			d.set(m, o.code, f, r, s)
		}
	}
}

// varying reads a record with fields of variable length from the front of b and
// gives how many bytes it had; ok is false if it runs beyond b.
func (d *Decoder) varying(m *message, p *plan, b []byte, r *flow.Record, s *scratch) (n int, ok bool) {
	for i := range p.ops {
		o := &p.ops[i]
		length := int(o.length)
		if length == variable {
			var ok bool
			if length, n, ok = variableLength(b, n); !ok {
				return n, false
			}
		}
		if n+length > len(b) {
			return n, false
		}
		if o.code != opSkip {
			d.set(m, o.code, b[n:n+length], r, s)
		}
		n += length
	}
	return n, true
}

// variableLength reads the length of a variable-length field at n (RFC 7011, 7):
// one byte, or 255 and two bytes. next is where its content begins.
func variableLength(b []byte, n int) (length, next int, ok bool) {
	if n >= len(b) {
		return 0, n, false
	}
	length, next = int(b[n]), n+1
	if length == 0xff {
		if next+2 > len(b) {
			return 0, next, false
		}
		length, next = int(binary.BigEndian.Uint16(b[next:])), next+2
	}
	return length, next, true
}

// set puts one field where it belongs.
func (d *Decoder) set(m *message, code opcode, f []byte, r *flow.Record, s *scratch) {
	be := binary.BigEndian
	switch code {
	case opSrc4:
		r.Src = either(r.Src, flow.AddrFrom4(be.Uint32(f)))
	case opDst4:
		r.Dst = either(r.Dst, flow.AddrFrom4(be.Uint32(f)))
	case opSrc6:
		r.Src = either(r.Src, addr6(f))
	case opDst6:
		r.Dst = either(r.Dst, addr6(f))
	case opSrcPort:
		r.SrcPort = uint16(number(f))
	case opDstPort:
		r.DstPort = uint16(number(f))
	case opSrcPortAlt:
		if v := uint16(number(f)); v != 0 {
			r.SrcPort = v
		}
	case opDstPortAlt:
		if v := uint16(number(f)); v != 0 {
			r.DstPort = v
		}
	case opProto:
		r.Proto = uint8(number(f))
	case opFlags:
		r.TCPFlags |= uint16(number(f))
	case opBytes4:
		r.BytesRaw = uint64(be.Uint32(f))
	case opPackets4:
		r.PacketsRaw = uint64(be.Uint32(f))
	case opBytes:
		r.BytesRaw = number(f)
	case opPackets:
		r.PacketsRaw = number(f)
	case opBytesPost:
		if r.BytesRaw == 0 {
			r.BytesRaw = number(f)
		}
	case opPacketsPost:
		if r.PacketsRaw == 0 {
			r.PacketsRaw = number(f)
		}
	case opRevFlags:
		r.RevTCPFlags |= uint16(number(f))
	case opRevBytes:
		r.RevBytesRaw = number(f)
	case opRevPackets:
		r.RevPacketsRaw = number(f)
	case opInIf:
		r.InIf = uint32(number(f))
	case opOutIf:
		r.OutIf = uint32(number(f))
	case opNATSrc4:
		r.NATSrc = either(r.NATSrc, flow.AddrFrom4(be.Uint32(f)))
	case opNATDst4:
		r.NATDst = either(r.NATDst, flow.AddrFrom4(be.Uint32(f)))
	case opNATSrc6:
		r.NATSrc = either(r.NATSrc, addr6(f))
	case opNATDst6:
		r.NATDst = either(r.NATDst, addr6(f))
	case opNATSrcPort:
		r.NATSrcPort = uint16(number(f))
	case opNATDstPort:
		r.NATDstPort = uint16(number(f))
	case opICMP:
		if v := number(f); v != 0 {
			r.ICMPType, r.ICMPCode = uint8(v>>8), uint8(v)
		}
	case opICMPType4:
		s.icmpType4 = uint8(number(f))
	case opICMPCode4:
		s.icmpCode4 = uint8(number(f))
	case opICMPType6:
		s.icmpType6 = uint8(number(f))
	case opICMPCode6:
		s.icmpCode6 = uint8(number(f))
	case opForwarding:
		r.ForwardingStatus = uint8(number(f)) // in 4 bytes the value is in the lowest (RFC 7270, 4.12)
	case opFirewall:
		r.FirewallEvent = uint8(bounded(number(f), 0xff))
	case opDirection:
		r.Direction = uint8(bounded(number(f), 0xff))
	case opBiflow:
		r.BiflowDirection = uint8(bounded(number(f), 0xff))
	case opUser:
		r.User = d.text(f, r)
	case opAppName:
		r.App = d.text(f, r)
	case opAppID:
		r.App = d.application(m.dom, f, r)
	case opUpStart:
		s.upStart, s.seen = uint32(number(f)), s.seen|seenUpStart
	case opUpEnd:
		s.upEnd, s.seen = uint32(number(f)), s.seen|seenUpEnd
	case opStartSec:
		s.start = flow.Time(bounded(number(f), maxSec)) * 1000
	case opEndSec:
		s.end = flow.Time(bounded(number(f), maxSec)) * 1000
	case opStartMilli:
		s.start = flow.Time(bounded(number(f), maxMilli))
	case opEndMilli:
		s.end = flow.Time(bounded(number(f), maxMilli))
	case opStartNTP:
		s.start = ntp(be.Uint64(f))
	case opEndNTP:
		s.end = ntp(be.Uint64(f))
	case opStartDelta:
		s.start = m.export - flow.Time(bounded(number(f), 1<<32)/1000)
	case opEndDelta:
		s.end = m.export - flow.Time(bounded(number(f), 1<<32)/1000)
	case opDurationMilli:
		s.duration = flow.Time(bounded(number(f), maxMilli))
	case opDurationMicro:
		s.duration = flow.Time(bounded(number(f), maxMilli) / 1000)
	case opInit:
		s.init = flow.Time(bounded(number(f), maxMilli))
	case opObservedSec:
		s.observed = flow.Time(bounded(number(f), maxSec)) * 1000
	case opObservedMilli:
		s.observed = flow.Time(bounded(number(f), maxMilli))
	case opObservedNTP:
		s.observed = ntp(be.Uint64(f))
	case opInterval:
		s.interval = number(f)
	case opPacketInterval:
		s.packets = number(f)
	case opPacketSpace:
		s.space, s.seen = number(f), s.seen|seenSpace
	case opSamplingSize:
		s.size = number(f)
	case opSamplingPopulation:
		s.from = number(f)
	case opSampler:
		s.id = number(f)
	}
}

// rate is the sampling rate that the values tell, 0 if none: packets seen per
// packet counted, rounded.
func (s *scratch) rate() uint32 {
	const limit = 1 << 31
	var v uint64
	switch {
	case s.size > 0 && s.from > 0: // samplingSize of samplingPopulation (RFC 5477, 8.2.6)
		v = (bounded(s.from, limit) + bounded(s.size, limit)/2) / bounded(s.size, limit)
	case s.packets > 0: // samplingPacketInterval taken, samplingPacketSpace left out (8.2.2)
		n, space := bounded(s.packets, limit), bounded(s.space, limit)
		if s.seen&seenSpace == 0 {
			v = n // exporters that never tell the space mean "one in interval"
		} else {
			v = (n + space + n/2) / n
		}
	case s.interval > 0:
		v = bounded(s.interval, limit)
	default:
		return 0
	}
	return uint32(max(v, 1))
}
