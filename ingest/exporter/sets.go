package exporter

import (
	"encoding/binary"
	"slices"

	"github.com/postern/postern/flow"
)

// The information elements used, by their numbers (IANA; v9 uses the same below
// 128, RFC 3954).
const (
	ieOctets           = 1
	iePackets          = 2
	ieProtocol         = 4
	ieTCPFlags         = 6
	ieSrcPort          = 7
	ieSrc4             = 8
	ieInIf             = 10
	ieDstPort          = 11
	ieDst4             = 12
	ieOutIf            = 14
	ieLastSwitched     = 21
	ieFirstSwitched    = 22
	ieSrc6             = 27
	ieDst6             = 28
	ieICMP4            = 32
	ieSamplingInterval = 34
	ieSamplingMethod   = 35
	ieDirection        = 61
	ieForwardingStatus = 89
	ieICMP6            = 139
	ieDomain           = 149
	ieStartMillis      = 152
	ieEndMillis        = 153
	ieNATSrc4          = 225
	ieNATDst4          = 226
	ieNATSrcPort       = 227
	ieNATDstPort       = 228
	ieFirewallEvent    = 233
	ieBiflowDirection  = 239
	ieNATSrc6          = 281
	ieNATDst6          = 282
	ieUserName         = 371

	reversePEN = 29305  // RFC 5103, 6.1
	enterprise = 0x8000 // RFC 7011, 3.2
	variable   = 0xffff // RFC 7011, 7

	userNameV9 = 32 // v9 has no variable length: names are cut and padded
	maxUser    = 254
)

// kind is which of the templates a record goes by: a set of the following.
type kind uint8

const (
	kind6 kind = 1 << iota
	kindICMP
	kindBiflow
	numKinds

	templateBase    = 256
	templateOptions = 272
)

type field struct {
	id      uint16
	length  uint16
	reverse bool
}

// layout gives the fields of a template in order.
func (x *Exporter) layout(k kind) []field {
	ipfix := x.cfg.Protocol == flow.SourceIPFIX
	fs := make([]field, 0, 32)
	add := func(id, length uint16) { fs = append(fs, field{id, length, false}) }
	if k&kind6 != 0 {
		add(ieSrc6, 16)
		add(ieDst6, 16)
	} else {
		add(ieSrc4, 4)
		add(ieDst4, 4)
	}
	switch k & (kindICMP | kind6) {
	case kindICMP:
		add(ieICMP4, 2)
	case kindICMP | kind6:
		add(ieICMP6, 2)
	default:
		add(ieSrcPort, 2)
		add(ieDstPort, 2)
		add(ieTCPFlags, 1)
	}
	add(ieProtocol, 1)
	add(ieInIf, 4)
	add(ieOutIf, 4)
	add(ieOctets, 8)
	add(iePackets, 8)
	if ipfix {
		add(ieStartMillis, 8)
		add(ieEndMillis, 8)
	} else {
		add(ieFirstSwitched, 4)
		add(ieLastSwitched, 4)
	}
	if k&kindBiflow != 0 {
		fs = append(fs, field{ieOctets, 8, true}, field{iePackets, 8, true})
		if k&kindICMP == 0 {
			fs = append(fs, field{ieTCPFlags, 1, true})
		}
		if x.cfg.BiflowDirection {
			add(ieBiflowDirection, 1)
		}
	}
	if x.cfg.Rich {
		if k&kind6 != 0 {
			add(ieNATSrc6, 16)
			add(ieNATDst6, 16)
		} else {
			add(ieNATSrc4, 4)
			add(ieNATDst4, 4)
		}
		add(ieNATSrcPort, 2)
		add(ieNATDstPort, 2)
		add(ieForwardingStatus, 1)
		add(ieFirewallEvent, 1)
		add(ieDirection, 1)
		if ipfix {
			add(ieUserName, variable)
		} else {
			add(ieUserName, userNameV9)
		}
	}
	return fs
}

func (x *Exporter) kindOf(r *flow.Record) (k kind) {
	if !r.Src.Is4() || !r.Dst.Is4() {
		k |= kind6
	}
	if r.IsICMP() {
		k |= kindICMP
	}
	if x.biflows() && r.Biflow() {
		k |= kindBiflow
	}
	return k
}

func (x *Exporter) biflows() bool { return x.cfg.Biflow && x.cfg.Protocol == flow.SourceIPFIX }

// exportSets writes NetFlow v9 (RFC 3954) or IPFIX (RFC 7011). The sequence counts
// datagrams in v9 and data records, options included, in IPFIX.
func (x *Exporter) exportSets(now flow.Time, records []flow.Record, emit func([]byte) error) error {
	ipfix := x.cfg.Protocol == flow.SourceIPFIX
	header := 20
	if ipfix {
		header = 16
	}
	var (
		set     = -1 // where the open set begins in buf
		setKind kind
		data    uint32 // data records in buf
		all     uint16 // records of every kind in buf: v9 counts templates too
	)
	closeSet := func() {
		if set < 0 {
			return
		}
		for len(x.buf)%4 != 0 {
			x.buf = append(x.buf, 0)
		}
		binary.BigEndian.PutUint16(x.buf[set+2:], uint16(len(x.buf)-set))
		set = -1
	}
	begin := func() {
		x.buf = append(x.buf[:0], make([]byte, header)...)
		data, all = 0, 0
		if x.due(now) {
			all, data = x.appendTemplates()
			x.told, x.tmplAt, x.tmplTime = true, x.packets, now
		}
	}
	send := func() error {
		closeSet()
		b := x.buf
		if ipfix {
			binary.BigEndian.PutUint16(b[0:], 10)
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
			binary.BigEndian.PutUint32(b[4:], uint32(now/1000))
			binary.BigEndian.PutUint32(b[8:], x.sequence)
			binary.BigEndian.PutUint32(b[12:], x.cfg.Domain)
			x.sequence += data
		} else {
			// The header has whole seconds: uptime is told as of that second, so that
			// switched times come out to the millisecond.
			binary.BigEndian.PutUint16(b[0:], 9)
			binary.BigEndian.PutUint16(b[2:], all)
			binary.BigEndian.PutUint32(b[4:], x.uptime(now/1000*1000))
			binary.BigEndian.PutUint32(b[8:], uint32(now/1000))
			binary.BigEndian.PutUint32(b[12:], x.sequence)
			binary.BigEndian.PutUint32(b[16:], x.cfg.Domain)
			x.sequence++
		}
		x.packets++
		x.buf = b[:0]
		return emit(b)
	}
	x.buf = x.buf[:0]
	for i := range records {
		halves := records[i : i+1]
		if !x.biflows() {
			halves = x.split(&records[i])
		}
		for j := range halves {
			r := &halves[j]
			k := x.kindOf(r)
			if len(x.buf) == 0 {
				begin()
			}
			// Room for a set header and padding with every record: some bytes are given
			// away, and nothing is ever too long.
			if len(x.buf)+4+x.recordLen(r, k)+3 > x.cfg.MaxPayload {
				if err := send(); err != nil {
					return err
				}
				begin()
			}
			if set >= 0 && setKind != k {
				closeSet()
			}
			if set < 0 {
				set, setKind = len(x.buf), k
				x.buf = binary.BigEndian.AppendUint16(x.buf, templateBase+uint16(k))
				x.buf = binary.BigEndian.AppendUint16(x.buf, 0)
			}
			x.buf = x.appendRecord(x.buf, r, k)
			data++
			all++
		}
	}
	if len(x.buf) == 0 {
		return nil
	}
	return send()
}

// due says whether the datagram about to be filled carries the templates.
func (x *Exporter) due(now flow.Time) bool {
	if x.packets < x.cfg.HoldTemplates {
		return false
	}
	return !x.told || x.packets-x.tmplAt >= x.cfg.TemplatePackets || now.Sub(x.tmplTime) >= x.cfg.TemplateInterval
}

// appendTemplates writes every template this exporter uses and, if it samples, the
// options that say so. It gives the number of records and of data records.
func (x *Exporter) appendTemplates() (all uint16, data uint32) {
	ipfix := x.cfg.Protocol == flow.SourceIPFIX
	begin := func(id uint16) (at int) {
		at = len(x.buf)
		x.buf = binary.BigEndian.AppendUint16(x.buf, id)
		x.buf = binary.BigEndian.AppendUint16(x.buf, 0)
		return at
	}
	end := func(at int) {
		for len(x.buf)%4 != 0 {
			x.buf = append(x.buf, 0)
		}
		binary.BigEndian.PutUint16(x.buf[at+2:], uint16(len(x.buf)-at))
	}
	u16 := func(vs ...uint16) {
		for _, v := range vs {
			x.buf = binary.BigEndian.AppendUint16(x.buf, v)
		}
	}
	templates, options := uint16(0), uint16(1)
	if ipfix {
		templates, options = 2, 3
	}
	at := begin(templates)
	for k := range numKinds {
		if k >= kindBiflow && !x.biflows() {
			break
		}
		fs := x.layout(k)
		u16(templateBase+uint16(k), uint16(len(fs)))
		for _, f := range fs {
			if f.reverse {
				u16(f.id|enterprise, f.length)
				x.buf = binary.BigEndian.AppendUint32(x.buf, reversePEN)
			} else {
				u16(f.id, f.length)
			}
		}
		all++
	}
	end(at)
	if x.cfg.SamplingRate <= 1 {
		return all, 0
	}
	at = begin(options)
	if ipfix {
		// Scope: the observation domain.
		u16(templateOptions, 3, 1, ieDomain, 4, ieSamplingInterval, 4, ieSamplingMethod, 1)
	} else {
		// Lengths in bytes of the scope and option parts; scope 1 is the system.
		u16(templateOptions, 4, 8, 1, 4, ieSamplingInterval, 4, ieSamplingMethod, 1)
	}
	end(at)
	at = begin(templateOptions)
	x.buf = binary.BigEndian.AppendUint32(x.buf, x.cfg.Domain)
	x.buf = binary.BigEndian.AppendUint32(x.buf, x.cfg.SamplingRate)
	x.buf = append(x.buf, 2) // random
	end(at)
	return all + 2, 1
}

func (x *Exporter) user(r *flow.Record) string {
	if x.cfg.Names == nil {
		return ""
	}
	return x.cfg.Names.Text(r.User)
}

func (x *Exporter) recordLen(r *flow.Record, k kind) (n int) {
	addr := 4
	if k&kind6 != 0 {
		addr = 16
	}
	n = 2*addr + 1 + 8 + 16
	if k&kindICMP != 0 {
		n += 2
	} else {
		n += 5
	}
	ipfix := x.cfg.Protocol == flow.SourceIPFIX
	if ipfix {
		n += 16
	} else {
		n += 8
	}
	if k&kindBiflow != 0 {
		n += 16
		if k&kindICMP == 0 {
			n++
		}
		if x.cfg.BiflowDirection {
			n++
		}
	}
	if x.cfg.Rich {
		n += 2*addr + 4 + 3
		if ipfix {
			n += 1 + min(len(x.user(r)), maxUser)
		} else {
			n += userNameV9
		}
	}
	return n
}

// appendRecord writes r as layout says.
func (x *Exporter) appendRecord(b []byte, r *flow.Record, k kind) []byte {
	ipfix := x.cfg.Protocol == flow.SourceIPFIX
	addr := func(a flow.Addr) {
		if k&kind6 == 0 {
			b = binary.BigEndian.AppendUint32(b, a.V4())
			return
		}
		b = binary.BigEndian.AppendUint64(b, a.Hi)
		b = binary.BigEndian.AppendUint64(b, a.Lo)
	}
	addr(r.Src)
	addr(r.Dst)
	if k&kindICMP != 0 {
		b = append(b, r.ICMPType, r.ICMPCode)
	} else {
		b = binary.BigEndian.AppendUint16(b, r.SrcPort)
		b = binary.BigEndian.AppendUint16(b, r.DstPort)
		b = append(b, byte(r.TCPFlags))
	}
	b = append(b, r.Proto)
	b = binary.BigEndian.AppendUint32(b, r.InIf)
	b = binary.BigEndian.AppendUint32(b, r.OutIf)
	b = binary.BigEndian.AppendUint64(b, r.BytesRaw)
	b = binary.BigEndian.AppendUint64(b, r.PacketsRaw)
	if ipfix {
		b = binary.BigEndian.AppendUint64(b, uint64(r.Start))
		b = binary.BigEndian.AppendUint64(b, uint64(r.End))
	} else {
		b = binary.BigEndian.AppendUint32(b, x.uptime(r.Start))
		b = binary.BigEndian.AppendUint32(b, x.uptime(r.End))
	}
	if k&kindBiflow != 0 {
		b = binary.BigEndian.AppendUint64(b, r.RevBytesRaw)
		b = binary.BigEndian.AppendUint64(b, r.RevPacketsRaw)
		if k&kindICMP == 0 {
			b = append(b, byte(r.RevTCPFlags))
		}
		if x.cfg.BiflowDirection {
			b = append(b, r.BiflowDirection)
		}
	}
	if !x.cfg.Rich {
		return b
	}
	// What was not translated is told as it is: a template has no empty fields.
	nat := *r
	if !r.Any(flow.HasNATSrc) {
		nat.NATSrc = r.Src
	}
	if !r.Any(flow.HasNATDst) {
		nat.NATDst = r.Dst
	}
	if !r.Any(flow.HasNATSrcPort) {
		nat.NATSrcPort = r.SrcPort
	}
	if !r.Any(flow.HasNATDstPort) {
		nat.NATDstPort = r.DstPort
	}
	addr(nat.NATSrc)
	addr(nat.NATDst)
	b = binary.BigEndian.AppendUint16(b, nat.NATSrcPort)
	b = binary.BigEndian.AppendUint16(b, nat.NATDstPort)
	b = append(b, r.ForwardingStatus, r.FirewallEvent, r.Direction)
	user := x.user(r)
	if ipfix {
		user = user[:min(len(user), maxUser)]
		b = append(b, byte(len(user)))
		return append(b, user...)
	}
	user = user[:min(len(user), userNameV9)]
	b = append(b, user...)
	return append(b, slices.Repeat([]byte{0}, userNameV9-len(user))...)
}
