package agent

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"unsafe"

	"github.com/valyala/fastjson"
	"github.com/valyala/fastjson/fastfloat"

	"github.com/postern/postern/flow"
)

// What formats read fields with. Each gives ok false where the field is not there or is not
// what it should be; a format decides whether it can do without.

// text reads bytes as a string without a copy, for calls that do not keep it.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// at walks down objects by key; nil if there is no such member or it is null.
func at(v *fastjson.Value, keys ...string) *fastjson.Value {
	if v = v.Get(keys...); v == nil || v.Type() == fastjson.TypeNull {
		return nil
	}
	return v
}

// str is the text of a member; nil if it is none.
func str(v *fastjson.Value, keys ...string) []byte { return v.GetStringBytes(keys...) }

// num is a member that is a whole number, written as a number or as text. Fractions are cut.
func num(v *fastjson.Value, keys ...string) (uint64, bool) {
	v = v.Get(keys...)
	if v == nil {
		return 0, false
	}
	switch v.Type() {
	case fastjson.TypeNumber:
		if n, err := v.Uint64(); err == nil {
			return n, true
		}
		f, err := v.Float64()
		if err != nil || !(f >= 0 && f < math.MaxUint64) {
			return 0, false
		}
		return uint64(f), true
	case fastjson.TypeString:
		return atou(v.GetStringBytes())
	}
	return 0, false
}

// whole64 is [num] of a number as it is written.
func whole64(b []byte) (uint64, bool) {
	if n, err := fastfloat.ParseUint64(text(b)); err == nil {
		return n, true
	}
	f, err := fastfloat.Parse(text(b))
	if err != nil || !(f >= 0 && f < math.MaxUint64) {
		return 0, false
	}
	return uint64(f), true
}

// atou reads a whole number in decimal.
func atou(b []byte) (n uint64, ok bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	for _, c := range b[:min(len(b), 19)] { // 19 digits always fit
		d := uint64(c - '0')
		if d > 9 {
			return 0, false
		}
		n = n*10 + d
	}
	if len(b) == 20 {
		d := uint64(b[19] - '0')
		if d > 9 || n > (math.MaxUint64-d)/10 {
			return 0, false
		}
		n = n*10 + d
	}
	return n, true
}

// port16 is n as a port.
func port16(n uint64, ok bool) (uint16, bool) { return uint16(n), ok && n <= math.MaxUint16 }

// octet is n as a protocol number, a type or a code.
func octet(n uint64, ok bool) (uint8, bool) { return uint8(n), ok && n <= math.MaxUint8 }

// addr reads an address; a zone is dropped, ports and brackets are not allowed.
func addr(b []byte) (flow.Addr, bool) {
	if v, ok := addr4(b); ok {
		return v, true
	}
	if len(b) == 0 || len(b) > 64 || bytes.IndexByte(b, ':') < 0 {
		return flow.Addr{}, false
	}
	ip, err := netip.ParseAddr(text(b))
	if err != nil {
		return flow.Addr{}, false
	}
	return flow.AddrFromNetip(ip.WithZone("")), true
}

// addr4 reads a.b.c.d, each part decimal without leading zeros.
func addr4(b []byte) (flow.Addr, bool) {
	if len(b) < 7 || len(b) > 15 {
		return flow.Addr{}, false
	}
	var v uint32
	part, digits, dots := uint32(0), 0, 0
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			if digits > 0 && part == 0 {
				return flow.Addr{}, false
			}
			part = part*10 + uint32(c-'0')
			if digits++; digits > 3 || part > 255 {
				return flow.Addr{}, false
			}
		case c == '.' && digits > 0 && dots < 3:
			v, part, digits = v<<8|part, 0, 0
			dots++
		default:
			return flow.Addr{}, false
		}
	}
	if dots != 3 || digits == 0 {
		return flow.Addr{}, false
	}
	return flow.AddrFrom4(v<<8 | part), true
}

// ends sets the addresses of r. Both have to be addresses.
func ends(r *flow.Record, src, dst []byte) error {
	a, ok := addr(src)
	if !ok {
		return fieldError("source address", src, "an IP address")
	}
	b, ok := addr(dst)
	if !ok {
		return fieldError("destination address", dst, "an IP address")
	}
	r.Src, r.Dst = a, b
	r.Has |= flow.HasSrc | flow.HasDst
	return nil
}

// fieldError is a field that is not what it should be.
func fieldError(field string, got []byte, want string) error {
	if got == nil {
		return fmt.Errorf("no %s; want %s", field, want)
	}
	if len(got) > 64 {
		got = append(bytes.Clone(got[:64]), "…"...)
	}
	return fmt.Errorf("%s is %q; want %s", field, got, want)
}

// setSrcPort and its like set a field that may be missing.
func setSrcPort(r *flow.Record, p uint16, ok bool) {
	if ok {
		r.SrcPort, r.Has = p, r.Has|flow.HasSrcPort
	}
}

func setDstPort(r *flow.Record, p uint16, ok bool) {
	if ok {
		r.DstPort, r.Has = p, r.Has|flow.HasDstPort
	}
}

func setProto(r *flow.Record, p uint8, ok bool) {
	if ok {
		r.Proto, r.Has = p, r.Has|flow.HasProto
	}
}

func setICMP(r *flow.Record, typ, code uint8, ok bool) {
	if ok {
		r.ICMPType, r.ICMPCode, r.Has = typ, code, r.Has|flow.HasICMP
	}
}

func setFlags(r *flow.Record, flags uint16, ok bool) {
	if ok {
		r.TCPFlags, r.Has = flags, r.Has|flow.HasTCPFlags
	}
}

func setBytes(r *flow.Record, n uint64, ok bool) {
	if ok {
		r.BytesRaw, r.Has = n, r.Has|flow.HasBytes
	}
}

func setPackets(r *flow.Record, n uint64, ok bool) {
	if ok {
		r.PacketsRaw, r.Has = n, r.Has|flow.HasPackets
	}
}

func setRevBytes(r *flow.Record, n uint64, ok bool) {
	if ok {
		r.RevBytesRaw, r.Has = n, r.Has|flow.HasRevBytes
	}
}

func setRevPackets(r *flow.Record, n uint64, ok bool) {
	if ok {
		r.RevPacketsRaw, r.Has = n, r.Has|flow.HasRevPackets
	}
}

// protocols are the protocols that logs write as words, in lower case.
var protocols = map[string]uint8{
	"icmp": flow.ProtoICMP, "igmp": 2, "ipip": 4, "tcp": flow.ProtoTCP, "udp": flow.ProtoUDP, "ipv6": 41, "gre": 47,
	"esp": 50, "ah": 51, "icmp6": flow.ProtoICMPv6, "icmpv6": flow.ProtoICMPv6, "ipv6-icmp": flow.ProtoICMPv6, "ospf": 89, "pim": 103,
	"vrrp": 112, "l2tp": 115, "sctp": flow.ProtoSCTP, "udplite": 136,
}

// protocol reads a protocol by number or by word, in any case.
func protocol(b []byte) (uint8, bool) {
	if n, ok := octet(atou(b)); ok {
		return n, true
	}
	var low [12]byte
	if len(b) > len(low) {
		return 0, false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		low[i] = c
	}
	p, ok := protocols[string(low[:len(b)])]
	return p, ok
}

// when reads RFC 3339, with T or a space between date and time and any number of
// fractional digits. Without a zone it is UTC.
func when(b []byte) (flow.Time, bool) {
	if len(b) < 19 || b[4] != '-' || b[7] != '-' || b[10] != 'T' && b[10] != ' ' && b[10] != 't' || b[13] != ':' || b[16] != ':' {
		return 0, false
	}
	two := func(i int) int64 {
		x, y := b[i]-'0', b[i+1]-'0'
		if x > 9 || y > 9 {
			return -1
		}
		return int64(x)*10 + int64(y)
	}
	century, year, month, day, hour, minute, second := two(0), two(2), two(5), two(8), two(11), two(14), two(17)
	if century < 0 || year < 0 || month < 1 || month > 12 || day < 1 || day > 31 || hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60 {
		return 0, false
	}
	ms := (days(century*100+year, month, day)*86400 + hour*3600 + minute*60 + second) * 1000
	b = b[19:]
	if len(b) > 0 && (b[0] == '.' || b[0] == ',') {
		i, scale := 1, int64(100)
		for ; i < len(b) && b[i] >= '0' && b[i] <= '9'; i++ {
			ms += int64(b[i]-'0') * scale
			scale /= 10
		}
		if i == 1 {
			return 0, false
		}
		b = b[i:]
	}
	switch {
	case len(b) == 0 || len(b) == 1 && (b[0] == 'Z' || b[0] == 'z'):
		return flow.Time(ms), true
	case b[0] == '+' || b[0] == '-':
		i := 3
		if len(b) == 6 && b[3] == ':' {
			i = 4
		} else if len(b) != 5 {
			return 0, false
		}
		for _, c := range b[1:3] {
			if c < '0' || c > '9' {
				return 0, false
			}
		}
		for _, c := range b[i:] {
			if c < '0' || c > '9' {
				return 0, false
			}
		}
		off := (int64(b[1]-'0')*10+int64(b[2]-'0'))*60 + int64(b[i]-'0')*10 + int64(b[i+1]-'0')
		if b[0] == '-' {
			off = -off
		}
		return flow.Time(ms - off*60_000), true
	}
	return 0, false
}

// days is the days from 1970-01-01 to a date of the Gregorian calendar.
func days(y, m, d int64) int64 {
	if m <= 2 {
		y, m = y-1, m+12
	}
	era := y / 400
	ofEra := y - era*400
	ofYear := (153*(m-3)+2)/5 + d - 1
	return era*146097 + ofEra*365 + ofEra/4 - ofEra/100 + ofYear - 719468
}

// epoch reads seconds since 1970 with or without a fraction, as text.
func epoch(b []byte) (flow.Time, bool) {
	whole, frac, _ := bytes.Cut(b, []byte{'.'})
	n, ok := atou(whole)
	ms, scale := int64(n)*1000, int64(100)
	for _, c := range frac {
		ok = ok && c >= '0' && c <= '9'
		ms += int64(c-'0') * scale
		scale /= 10
	}
	if ok && n < maxEpoch {
		return flow.Time(ms), true
	}
	f, err := strconv.ParseFloat(text(b), 64) // 1.7e9
	if err != nil || !(f > 0 && f < maxEpoch) {
		return 0, false
	}
	return flow.Time(f * 1000), true
}

// maxEpoch is the first second that is no time any more: a number beyond it counts
// something else, such as milliseconds.
const maxEpoch = 1e11

// epochOf is [epoch] of a JSON number or text.
func epochOf(v *fastjson.Value, keys ...string) (flow.Time, bool) {
	if v = at(v, keys...); v == nil {
		return 0, false
	}
	if v.Type() == fastjson.TypeString {
		return epoch(v.GetStringBytes())
	}
	f, err := v.Float64()
	if err != nil || !(f > 0 && f < maxEpoch) {
		return 0, false
	}
	return flow.Time(math.Floor(f*1000 + 1e-3)), true
}

// seconds reads a duration in seconds with a fraction, in milliseconds.
func seconds(v *fastjson.Value, keys ...string) (flow.Time, bool) {
	if v = at(v, keys...); v == nil {
		return 0, false
	}
	f, err := v.Float64()
	if err != nil || !(f >= 0 && f < 1e10) {
		return 0, false
	}
	return flow.Time(f * 1000), true
}

// said is what a text says; nil if it is what stands for nothing.
func said(b []byte) []byte {
	switch string(b) {
	case "", "-", "N/A", "(empty)":
		return nil
	}
	return b
}

// scalar is the text of a member that may be a string, a number or a truth value; nil if it is
// none. Numbers are written to the end of *to, which has to live as long as the text.
func scalar(v *fastjson.Value, to *[]byte) []byte {
	if v == nil {
		return nil
	}
	switch v.Type() {
	case fastjson.TypeString:
		return v.GetStringBytes()
	case fastjson.TypeNumber, fastjson.TypeTrue, fastjson.TypeFalse:
		n := len(*to)
		*to = v.MarshalTo(*to)
		return (*to)[n:len(*to):len(*to)]
	}
	return nil
}

// setPorts sets both ports where the protocol has ports; logs write zeros for the others.
func setPorts(r *flow.Record, src, dst []byte) {
	if r.Any(flow.HasProto) && !hasPorts(r.Proto) {
		return
	}
	p, ok := port16(atou(src))
	setSrcPort(r, p, ok)
	p, ok = port16(atou(dst))
	setDstPort(r, p, ok)
}

// hasPorts says whether a protocol has ports.
func hasPorts(proto uint8) bool {
	switch proto {
	case flow.ProtoTCP, flow.ProtoUDP, flow.ProtoSCTP, 33, 136: // DCCP, UDP-Lite
		return true
	}
	return false
}

// lastOf is what stands behind the last slash, for resources that are named by a path.
func lastOf(path []byte) []byte { return path[bytes.LastIndexByte(path, '/')+1:] }

// moment is the time of a member as RFC 3339, 0 if there is none.
func moment(v *fastjson.Value, keys ...string) (flow.Time, error) {
	if v = at(v, keys...); v == nil {
		return 0, nil
	}
	b := v.GetStringBytes()
	t, ok := when(b)
	if !ok {
		name := "time"
		if len(keys) > 0 {
			name = keys[len(keys)-1]
		}
		return 0, fieldError(name, shown(v), wantMoment)
	}
	return t, nil
}

const wantMoment = "a time such as 2026-10-02T15:04:05.123Z"

// setRevFlags and setDirection set a field that may be missing.
func setRevFlags(r *flow.Record, flags uint16, ok bool) {
	if ok {
		r.RevTCPFlags, r.Has = flags, r.Has|flow.HasRevTCPFlags
	}
}

func setDirection(r *flow.Record, egress bool) {
	r.Direction, r.Has = 0, r.Has|flow.HasDirection
	if egress {
		r.Direction = 1
	}
}

// hex16 reads a number in hexadecimal, with or without 0x.
func hex16(b []byte) (n uint16, ok bool) {
	if len(b) > 2 && b[0] == '0' && (b[1] == 'x' || b[1] == 'X') {
		b = b[2:]
	}
	if len(b) == 0 || len(b) > 4 {
		return 0, false
	}
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		n = n<<4 | uint16(c)
	}
	return n, true
}

// appendNumber appends n in decimal.
func appendNumber(b []byte, n uint64) []byte { return strconv.AppendUint(b, n, 10) }

// shown is a member as errors show it.
func shown(v *fastjson.Value) []byte {
	if v.Type() == fastjson.TypeString {
		return v.GetStringBytes()
	}
	return v.MarshalTo(nil)
}

// dig finds a member by a path whose parts are separated by dots, nested, or under a name that
// has dots itself: "source.ip" is {"source":{"ip":…}} and {"source.ip":…}. A part that is a
// number is an element of a list. It is nil if there is none or it is null.
func dig(v *fastjson.Value, path string) *fastjson.Value {
	if v == nil || v.Type() != fastjson.TypeObject && v.Type() != fastjson.TypeArray {
		return nil
	}
	if m := at(v, path); m != nil {
		return m
	}
	for i := range len(path) {
		if path[i] != '.' {
			continue
		}
		if m := dig(v.Get(path[:i]), path[i+1:]); m != nil {
			return m
		}
	}
	return nil
}

// account interns a user as domain\user where the domain is told beside it.
func (e *entry) account(domain, user []byte) flow.Name {
	if user == nil || domain == nil {
		return e.name(user)
	}
	e.d.text = append(append(append(e.d.text[:0], domain...), '\\'), user...)
	return e.d.names.InternBytes(e.d.text)
}
