package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// The formats of topics that others write.
const (
	formatGoflow2Protobuf = "goflow2-protobuf"
	formatGoflow2JSON     = "goflow2-json"
)

const (
	// maxForeignRecords bounds what one value becomes. A record is several hundred
	// bytes and a message of three bytes is valid, so a value of 1 MiB, which is
	// Kafka's default limit, could ask for more than a hundred of memory. Real
	// messages have 50 bytes and more: 65,536 of them are more than 3 MiB.
	maxForeignRecords = 1 << 16

	// A flow that began more than a year before its receipt, or ends more than a day
	// after it, tells no time but a mistake, as in package ingest.
	maxForeignAge   = flow.Time(366 * 24 * time.Hour / time.Millisecond)
	maxForeignAhead = flow.Time(24 * time.Hour / time.Millisecond)

	// goflow2 writes the export time where a template has no times. Exports are
	// received within moments.
	maxExportDelay = flow.Time(5 * time.Second / time.Millisecond)
)

// Formats lists the formats that [NewForeign] knows.
func Formats() []string { return []string{formatGoflow2JSON, formatGoflow2Protobuf} }

// Foreign decodes the values of a topic that others write. Not safe for
// concurrent use.
//
// goflow2 tells a flow as a message of protocol buffers, version 3, or prints
// that message as JSON. Neither tells a number that is zero from one that its
// exporter never sent. What zero means is therefore decided by who sent it:
//
//	field                  NetFlow v5   NetFlow v9, IPFIX   sFlow
//	bytes                  zero         unknown             unknown
//	packets                zero         unknown             is always 1
//	proto                  zero         unknown             unknown
//	src_port, dst_port     zero         unknown             zero if the header was sampled
//	tcp_flags              zero         unknown             zero if the header was sampled
//	icmp_type, icmp_code   zero         unknown             unknown
//	in_if, out_if          zero         unknown             unknown
//	forwarding_status      not told     unknown             not told
//	sampling_rate          unknown      unknown             unknown
//	observation_domain_id  not told     0                   not told
//
// since a v5 record has all its fields always, and layer_stack names the headers
// that goflow2 read of a sampled packet. Of a sampled ICMP packet goflow2 2.2.6
// notes that it read the header, but never its type. Of a later fragment, which has no such
// header though goflow2 reads one, ports, flags and ICMP type stay unknown.
// NetFlow's ICMP types in the destination port (v5 and v9) are read as package
// ingest reads them. flow_direction and bi_flow_direction (fields 42 and 41 in
// goflow2's own mapping) are taken where they are there, zero included.
//
// Times are goflow2's, but for the 49.7 days that it is off where an exporter's
// uptime wrapped; sFlow's are the receipt. v9 and IPFIX flows without times
// carry the export time; they are recognised by start and end being the same whole
// second within five seconds of the receipt, and marked as having none.
//
// The remarks on clock skew, changed templates and parked data are package
// ingest's own: goflow2 does not tell what they are made of.
type Foreign struct {
	json   bool
	msg    goflowMessage
	reason error
}

// NewForeign makes a decoder of format, which is one of [Formats]:
//
//   - "goflow2-protobuf": FlowMessage of goflow2 2.x, and of 1.x where its fields
//     differ (times in seconds and milliseconds). A value is one message, or
//     messages each behind its length as a varint, as goflow2 2.x writes them; which
//     of the two is told by looking.
//   - "goflow2-json": objects with the names of 2.x (time_received_ns) or of 1.x
//     (TimeReceived); a value is one object, several behind each other, or an array.
//
// names is where names from the values are interned; goflow2 tells none.
func NewForeign(format string, names *flow.Names) (*Foreign, error) {
	if !slices.Contains(Formats(), format) {
		return nil, fmt.Errorf("kafka: no format %q; it would be one of %s", format, strings.Join(Formats(), ", "))
	}
	return &Foreign{json: format == formatGoflow2JSON}, nil
}

// Decode appends the records of one value to out and gives how many of its
// messages (of JSON: objects) were refused; [Foreign.Reason] is why the first of
// them was. Only if nothing of the value can be read is err set, to that reason;
// the value is then a dead letter.
//
// seed makes the records' ids: the message of index i gets a mix of seed + i, the
// refused ones counted. Topic, partition and offset should make the seed.
// received, usually the time of the Kafka record, stands in where a message does
// not say when its collector received it, or says so more than a year before or a
// day after received; 0 is not known, then every time is believed.
//
// A value gives at most 65,536 records; the rest of it counts as refused.
func (f *Foreign) Decode(value []byte, seed uint64, received flow.Time, out *flow.Batch) (refused int, err error) {
	f.reason = nil
	before := len(out.Records)
	switch {
	case len(value) == 0:
	case f.json:
		refused = f.decodeJSON(value, seed, received, out)
	default:
		refused = f.decodeProtobuf(value, seed, received, out)
	}
	if len(out.Records) == before {
		if f.reason == nil {
			refused, f.reason = 1, errForeignEmpty
		}
		return refused, f.reason
	}
	return refused, nil
}

// Reason is why the first message that the last Decode refused was refused; nil
// if it refused none.
func (f *Foreign) Reason() error { return f.reason }

// Reasons for refusing. They are made once, so that refusing costs no memory.
var (
	errForeignEmpty  = errors.New("the value is empty; a goflow2 message or several were expected")
	errForeignMany   = fmt.Errorf("the value holds more than %d messages", maxForeignRecords)
	errProtoVarint   = errors.New("protobuf: a number runs beyond the message or 64 bits")
	errProtoCut      = errors.New("protobuf: a field runs beyond its message")
	errProtoTag      = errors.New("protobuf: no such field number or wire type; is the topic's format another?")
	errProtoFrame    = errors.New("protobuf: a message's length runs beyond the value")
	errProtoNoFlow   = errors.New("protobuf: no field of a goflow2 flow message; is the topic's format another?")
	errForeignNoFlow = errors.New("JSON: no field of a goflow2 flow message; is the topic's format another?")
)

func (f *Foreign) refuse(reason error) {
	if f.reason == nil {
		f.reason = reason
	}
}

// foreignID is the id of message i: the finalizer of splitmix64, as package
// ingest makes ids.
func foreignID(seed, i uint64) uint64 {
	v := seed + i + 0x9e3779b97f4a7c15
	v = (v ^ v>>30) * 0xbf58476d1ce4e5b9
	v = (v ^ v>>27) * 0x94d049bb133111eb
	return v ^ v>>31
}

// goflowMessage is what one message tells, as far as a [flow.Record] holds it.
type goflowMessage struct {
	receivedNs, startNs, endNs       uint64 // 2.x
	receivedSec, startSec, endSec    uint64 // 1.x
	startMilli, endMilli             uint64 // 1.x
	kind, rate, bytes, packets       uint64
	proto, srcPort, dstPort          uint64
	inIf, outIf, flags, fragment     uint64
	icmpType, icmpCode, forwarding   uint64
	domain, direction, biflow        uint64
	sampler, src, dst                flow.Addr
	layers                           uint32 // a bit for each number of layer_stack below 32
	hasSrc, hasDst                   bool
	hasReceivedNs                    bool
	hasDirection, hasBiflow, hasFlow bool // hasFlow: any field at all that is known
}

// The numbers of enum FlowType.
const (
	goflowSFlow5    = 1
	goflowNetFlowV5 = 2
	goflowNetFlowV9 = 3
	goflowIPFIX     = 4
)

// The numbers of enum LayerStack that matter.
const (
	goflowLayerIPv4 = 1
	goflowLayerIPv6 = 2
	goflowLayerTCP  = 3
	goflowLayerUDP  = 4
)

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
	if at == 0 || received > 0 && (at < received-maxForeignAge || at > received+maxForeignAhead) {
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
		if start < at-maxForeignAge || start > at+maxForeignAhead {
			start = 0
		}
		if end < at-maxForeignAge || end > at+maxForeignAhead {
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

// Times beyond the year 4000 are none.
const maxForeignMilli = 1 << 46

func milli(v uint64) flow.Time {
	if v > maxForeignMilli {
		return 0
	}
	return flow.Time(v)
}

func seconds(v uint64) flow.Time {
	if v > maxForeignMilli/1000 {
		return 0
	}
	return flow.Time(v * 1000)
}

// address reads an address of four or sixteen bytes; ok is false for any other
// length.
func address(b []byte) (a flow.Addr, ok bool) {
	switch len(b) {
	case 4:
		return flow.AddrFrom4(binary.BigEndian.Uint32(b)), true
	case 16:
		return flow.Addr{Hi: binary.BigEndian.Uint64(b), Lo: binary.BigEndian.Uint64(b[8:])}, true
	}
	return a, false
}

// decodeProtobuf reads a value of one message or of messages behind their lengths.
func (f *Foreign) decodeProtobuf(value []byte, seed uint64, received flow.Time, out *flow.Batch) (refused int) {
	if !delimited(value) {
		return f.message(value, foreignID(seed, 0), received, out)
	}
	before := len(out.Records)
	for i, b := uint64(0), value; len(b) > 0; i++ {
		length, n := goflowVarint(b)
		if n == 0 || length > uint64(len(b)-n) {
			f.refuse(errProtoFrame)
			return refused + 1
		}
		frame := b[n : n+int(length)]
		b = b[n+int(length):]
		if len(out.Records)-before >= maxForeignRecords {
			f.refuse(errForeignMany)
			refused++
			continue
		}
		refused += f.message(frame, foreignID(seed, i), received, out)
	}
	return refused
}

// message reads one message; 1 if it is refused.
func (f *Foreign) message(b []byte, id uint64, received flow.Time, out *flow.Batch) int {
	m := &f.msg
	*m = goflowMessage{}
	if err := m.unmarshal(b); err != nil {
		f.refuse(err)
		return 1
	}
	if !m.hasFlow {
		f.refuse(errProtoNoFlow)
		return 1
	}
	r := out.Next()
	r.ID = id
	m.record(r, received)
	return 0
}

// delimited says whether value is messages behind their lengths rather than one
// message.
//
// goflow2 writes the type first: a message begins with 08 (field 1, a number) and
// a type of 1 to 4. Behind a length it cannot be taken for a length: eight bytes
// whose first is that type would be a field of number 0, which there is not. Nor
// the other way round: after a length, read as a tag, 08 is the tag's value or
// length, and then again the type stands where a tag would. What begins like
// neither, as a message of another writer may, is taken for what parses to its end.
func delimited(value []byte) bool {
	if startsWithType(value) {
		return false
	}
	if length, n := goflowVarint(value); n > 0 && length > 0 && startsWithType(value[n:]) {
		return true
	}
	return !wellFormed(value) && tiles(value)
}

func startsWithType(b []byte) bool {
	return len(b) >= 2 && b[0] == 1<<3 && b[1] >= goflowSFlow5 && b[1] <= goflowIPFIX
}

// tiles says whether b is messages behind their lengths to its last byte.
func tiles(b []byte) bool {
	for len(b) > 0 {
		length, n := goflowVarint(b)
		if n == 0 || length > uint64(len(b)-n) || !wellFormed(b[n:n+int(length)]) {
			return false
		}
		b = b[n+int(length):]
	}
	return true
}

func wellFormed(b []byte) bool {
	var m goflowMessage
	return m.unmarshal(b) == nil && (m.hasFlow || len(b) == 0)
}

// goflowVarint reads a number of seven bits a byte from the front of b; n is how many
// bytes it had, 0 if it does not end or exceeds 64 bits.
func goflowVarint(b []byte) (v uint64, n int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	v, n = binary.Uvarint(b)
	return v, max(n, 0)
}

// unmarshal reads the wire format of protocol buffers as far as FlowMessage uses
// it: numbers, lengths and what is skipped. Of a field that is there twice the
// last counts; a field of another wire type than its own is skipped. Groups, which
// version 3 does not have, are refused.
func (m *goflowMessage) unmarshal(b []byte) error {
	for len(b) > 0 {
		tag, n := goflowVarint(b)
		if n == 0 {
			return errProtoVarint
		}
		b = b[n:]
		num := tag >> 3
		if num == 0 || num > 1<<29-1 {
			return errProtoTag
		}
		switch tag & 7 {
		case 0:
			v, n := goflowVarint(b)
			if n == 0 {
				return errProtoVarint
			}
			b = b[n:]
			m.number(num, v)
		case 1:
			if len(b) < 8 {
				return errProtoCut
			}
			b = b[8:]
		case 2:
			length, n := goflowVarint(b)
			if n == 0 {
				return errProtoVarint
			}
			if length > uint64(len(b)-n) {
				return errProtoCut
			}
			if err := m.text(num, b[n:n+int(length)]); err != nil {
				return err
			}
			b = b[n+int(length):]
		case 5:
			if len(b) < 4 {
				return errProtoCut
			}
			b = b[4:]
		default:
			return errProtoTag
		}
	}
	return nil
}

// number takes field num, a number. 32-bit fields are cut to their 32 bits as
// protocol buffers have it.
func (m *goflowMessage) number(num, v uint64) {
	v32 := uint64(uint32(v))
	switch num {
	case 1:
		m.kind = v32
	case 3:
		m.rate = v
	case 9:
		m.bytes = v
	case 10:
		m.packets = v
	case 18:
		m.inIf = v32
	case 19:
		m.outIf = v32
	case 20:
		m.proto = v32
	case 21:
		m.srcPort = v32
	case 22:
		m.dstPort = v32
	case 24:
		m.forwarding = v32
	case 26:
		m.flags = v32
	case 31:
		m.icmpType = v32
	case 32:
		m.icmpCode = v32
	case 36:
		m.fragment = v32
	case 41: // as goflow2's mapping.yaml has it, and 1.x
		m.biflow, m.hasBiflow = v32, true
	case 42: // likewise
		m.direction, m.hasDirection = v32, true
	case 70:
		m.domain = v32
	case 103: // layer_stack, not packed
		m.layer(v)
	case 110:
		m.receivedNs, m.hasReceivedNs = v, true
	case 111:
		m.startNs = v
	case 112:
		m.endNs = v
	case 2: // from here on 1.x
		m.receivedSec = v
	case 5:
		m.endSec = v
	case 38:
		m.startSec = v
	case 63:
		m.startMilli = v
	case 64:
		m.endMilli = v
	default:
		return
	}
	m.hasFlow = true
}

func (m *goflowMessage) layer(v uint64) {
	if v < 32 {
		m.layers |= 1 << v
	}
}

// text takes field num, a string of bytes.
func (m *goflowMessage) text(num uint64, b []byte) error {
	switch num {
	case 6:
		m.src, m.hasSrc = address(b)
	case 7:
		m.dst, m.hasDst = address(b)
	case 11:
		m.sampler, _ = address(b)
	case 103: // layer_stack, packed
		for len(b) > 0 {
			v, n := goflowVarint(b)
			if n == 0 {
				return errProtoVarint
			}
			m.layer(v)
			b = b[n:]
		}
	default:
		return nil
	}
	m.hasFlow = true
	return nil
}
