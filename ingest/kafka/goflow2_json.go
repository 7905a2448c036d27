package kafka

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/postern/postern/flow"
)

// maxJSONDepth bounds how deep values that are stepped over may nest; goflow2's
// own are one array deep.
const maxJSONDepth = 32

var (
	errJSONObject = errors.New("an object is missing; a goflow2 message begins with {")
	errJSONSyntax = errors.New("this is no JSON")
	errJSONArray  = errors.New("the array does not end")
	errJSONDeep   = fmt.Errorf("values nest deeper than %d", maxJSONDepth)
)

// What may stand where in a value.
const (
	jsonElement  = iota // an object, or the beginning or end of an array
	jsonNext            // in an array behind an object: a comma or the end
	jsonAnother         // behind the comma: an object
	jsonRecovery        // behind a line that was given up: any of them
)

// decodeJSON reads a value of objects: one, several behind each other, or arrays of
// them. What is no JSON costs its line.
func (f *Foreign) decodeJSON(value []byte, seed uint64, received flow.Time, out *flow.Batch) (refused int) {
	s := jsonScanner{b: value}
	before := len(out.Records)
	inArray, want := false, jsonElement
	for i := uint64(0); ; i++ {
		var c byte
		var more bool
		for punctuation := true; punctuation; {
			s.space()
			c, more = s.peek()
			switch {
			case !more:
				if inArray {
					f.refuseJSON(s.i, errJSONArray)
					refused++
				}
				return refused
			case c == '[' && !inArray && want != jsonNext:
				inArray, want = true, jsonElement
			case c == ']' && inArray && want != jsonAnother:
				inArray, want = false, jsonElement
			case c == ',' && inArray && (want == jsonNext || want == jsonRecovery):
				want = jsonAnother
			default:
				punctuation = false
				continue
			}
			s.i++
		}
		start, err := s.i, errJSONObject
		switch {
		case want == jsonNext:
			err = errJSONSyntax
		case c == '{':
			f.msg = goflowMessage{}
			err = s.object(&f.msg)
		}
		want = jsonElement
		if inArray {
			want = jsonNext
		}
		switch {
		case err != nil:
			f.refuseJSON(s.i, err)
			refused++
			// An object that ends early takes what follows for its own: its line is given
			// up, and no more.
			s.i, want = len(value), jsonRecovery
			if n := bytes.IndexByte(value[start:], '\n'); n >= 0 {
				s.i = start + n
			}
		case !f.msg.hasFlow:
			f.refuse(errForeignNoFlow)
			refused++
		case len(out.Records)-before >= maxForeignRecords:
			f.refuse(errForeignMany)
			refused++
		default:
			r := out.Next()
			r.ID = foreignID(seed, i)
			f.msg.record(r, received)
		}
	}
}

// refuseJSON is refuse with the place, which only the first reason needs.
func (f *Foreign) refuseJSON(at int, reason error) {
	if f.reason == nil {
		f.reason = fmt.Errorf("JSON, byte %d: %w", at, reason)
	}
}

// jsonScanner reads JSON (RFC 8259) from the front to the back without copying.
type jsonScanner struct {
	b []byte
	i int
}

func (s *jsonScanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return
		}
	}
}

func (s *jsonScanner) peek() (c byte, ok bool) {
	if s.i >= len(s.b) {
		return 0, false
	}
	return s.b[s.i], true
}

// take steps over white space and c.
func (s *jsonScanner) take(c byte) bool {
	s.space()
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// scalar is a string or number, or anything else that is stepped over.
type scalar struct {
	kind byte   // '"' a string without escapes, '0' a number, 0 anything else
	text []byte // of the string between its quotes
}

// object reads an object that begins at s.i into m.
func (s *jsonScanner) object(m *goflowMessage) error {
	if !s.take('{') {
		return errJSONObject
	}
	if s.take('}') {
		return nil
	}
	for {
		s.space()
		key, _, ok := s.str()
		if !ok || !s.take(':') {
			return errJSONSyntax
		}
		s.space()
		f := goflowKey(key)
		if c, _ := s.peek(); f == keyLayerStack && c == '[' {
			m.hasFlow = true
			if err := s.layers(m); err != nil {
				return err
			}
		} else {
			v, err := s.value(0)
			if err != nil {
				return err
			}
			if f != keyNone {
				m.hasFlow = true
				m.put(f, v)
			}
		}
		switch {
		case s.take(','):
		case s.take('}'):
			return nil
		default:
			return errJSONSyntax
		}
	}
}

// layers reads the array of layer_stack.
func (s *jsonScanner) layers(m *goflowMessage) error {
	s.i++
	if s.take(']') {
		return nil
	}
	for {
		s.space()
		v, err := s.value(1)
		if err != nil {
			return err
		}
		switch v.kind {
		case '0':
			if n, ok := v.number(); ok {
				m.layer(n)
			}
		case '"':
			switch string(v.text) {
			case "TCP":
				m.layer(goflowLayerTCP)
			case "UDP":
				m.layer(goflowLayerUDP)
			case "IPv4":
				m.layer(goflowLayerIPv4)
			case "IPv6":
				m.layer(goflowLayerIPv6)
			}
		}
		switch {
		case s.take(','):
		case s.take(']'):
			return nil
		default:
			return errJSONSyntax
		}
	}
}

// str reads a string that begins at s.i, its quotes excluded; escaped says that
// it holds escapes, which are left as they stand.
func (s *jsonScanner) str() (text []byte, escaped, ok bool) {
	if s.i >= len(s.b) || s.b[s.i] != '"' {
		return nil, false, false
	}
	start := s.i + 1
	for i := start; i < len(s.b); i++ {
		switch c := s.b[i]; {
		case c == '"':
			s.i = i + 1
			return s.b[start:i], escaped, true
		case c < ' ':
			s.i = i
			return nil, escaped, false
		case c == '\\':
			escaped = true
			i++
			if i >= len(s.b) {
				break
			}
			switch s.b[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				for range 4 {
					i++
					if i >= len(s.b) || !hexDigit(s.b[i]) {
						s.i = min(i, len(s.b))
						return nil, true, false
					}
				}
			default:
				s.i = i
				return nil, true, false
			}
		}
	}
	s.i = len(s.b)
	return nil, escaped, false
}

func hexDigit(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// value reads any value that begins at s.i; arrays and objects are stepped over.
func (s *jsonScanner) value(depth int) (v scalar, err error) {
	c, ok := s.peek()
	switch {
	case !ok:
		return v, errJSONSyntax
	case c == '"':
		text, escaped, ok := s.str()
		if !ok {
			return v, errJSONSyntax
		}
		if !escaped {
			v = scalar{'"', text}
		}
		return v, nil
	case c == '-' || '0' <= c && c <= '9':
		start := s.i
		if !s.num() {
			return v, errJSONSyntax
		}
		return scalar{'0', s.b[start:s.i]}, nil
	case c == 't':
		return v, s.literal("true")
	case c == 'f':
		return v, s.literal("false")
	case c == 'n':
		return v, s.literal("null")
	case c == '[' || c == '{':
		return v, s.skip(c, depth)
	}
	return v, errJSONSyntax
}

// skip steps over an array or object that begins at s.i.
func (s *jsonScanner) skip(open byte, depth int) error {
	if depth >= maxJSONDepth {
		return errJSONDeep
	}
	end := byte(']')
	if open == '{' {
		end = '}'
	}
	s.i++
	if s.take(end) {
		return nil
	}
	for {
		s.space()
		if open == '{' {
			if _, _, ok := s.str(); !ok || !s.take(':') {
				return errJSONSyntax
			}
			s.space()
		}
		if _, err := s.value(depth + 1); err != nil {
			return err
		}
		switch {
		case s.take(','):
		case s.take(end):
			return nil
		default:
			return errJSONSyntax
		}
	}
}

func (s *jsonScanner) literal(word string) error {
	if !bytes.HasPrefix(s.b[s.i:], []byte(word)) {
		return errJSONSyntax
	}
	s.i += len(word)
	return nil
}

// num steps over a number (RFC 8259, 6).
func (s *jsonScanner) num() bool {
	digits := func() bool {
		start := s.i
		for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
			s.i++
		}
		return s.i > start
	}
	if s.b[s.i] == '-' {
		s.i++
	}
	zero := s.i < len(s.b) && s.b[s.i] == '0'
	start := s.i
	if !digits() || zero && s.i > start+1 {
		return false
	}
	if c, _ := s.peek(); c == '.' {
		s.i++
		if !digits() {
			return false
		}
	}
	if c, _ := s.peek(); c == 'e' || c == 'E' {
		s.i++
		if c, _ := s.peek(); c == '+' || c == '-' {
			s.i++
		}
		return digits()
	}
	return true
}

// number is v as a number; a string of digits is one too. ok is false for what is
// negative or beyond 64 bits.
func (v scalar) number() (n uint64, ok bool) {
	if v.kind == 0 || len(v.text) == 0 || len(v.text) > 32 {
		return 0, false
	}
	for i, c := range v.text {
		if c < '0' || c > '9' || i >= 19 {
			return v.real()
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}

// real is number for what has a fraction, an exponent or twenty digits.
func (v scalar) real() (uint64, bool) {
	if c := v.text[0]; c < '0' || c > '9' {
		return 0, false // a name, or negative
	}
	if n, err := strconv.ParseUint(string(v.text), 10, 64); err == nil {
		return n, true
	}
	x, err := strconv.ParseFloat(string(v.text), 64)
	if err != nil || !(x >= 0 && x < 1<<64) {
		return 0, false
	}
	return uint64(x), true
}

// nanoseconds is v as a time, a number of nanoseconds or in the form of RFC 3339,
// as goflow2's renderer datetimenano prints it.
func (v scalar) nanoseconds() (uint64, bool) {
	if n, ok := v.number(); ok || v.kind != '"' {
		return n, ok
	}
	var t time.Time
	if t.UnmarshalText(v.text) != nil || t.Year() < 1970 || t.Year() > 2261 {
		return 0, false
	}
	return uint64(t.UnixNano()), true
}

// address is v as an address in text form.
func (v scalar) address() (a flow.Addr, ok bool) {
	if v.kind != '"' {
		return a, false
	}
	if ip, ok := dotted(v.text); ok {
		return flow.AddrFrom4(ip), true
	}
	if len(v.text) == 0 || len(v.text) > 64 {
		return a, false
	}
	ip, err := netip.ParseAddr(string(v.text))
	return flow.AddrFromNetip(ip), err == nil
}

// dotted reads an IPv4 address in text form.
func dotted(b []byte) (ip uint32, ok bool) {
	for part := range 4 {
		n, digits := uint32(0), 0
		for digits < len(b) && digits < 3 && '0' <= b[digits] && b[digits] <= '9' {
			n = n*10 + uint32(b[digits]-'0')
			digits++
		}
		if digits == 0 || n > 255 || digits > 1 && b[0] == '0' {
			return 0, false
		}
		ip, b = ip<<8|n, b[digits:]
		if part < 3 {
			if len(b) == 0 || b[0] != '.' {
				return 0, false
			}
			b = b[1:]
		}
	}
	return ip, len(b) == 0
}

// goflowField is a field of a message.
type goflowField uint8

const (
	keyNone goflowField = iota
	keyType
	keyReceivedNs
	keyStartNs
	keyEndNs
	keyReceivedSec
	keyStartSec
	keyEndSec
	keyStartMilli
	keyEndMilli
	keySampler
	keySrc
	keyDst
	keyRate
	keyBytes
	keyPackets
	keyProto
	keySrcPort
	keyDstPort
	keyInIf
	keyOutIf
	keyFlags
	keyFragment
	keyICMPType
	keyICMPCode
	keyForwarding
	keyDomain
	keyDirection
	keyBiflow
	keyLayerStack
)

// goflowKey finds a field by its name, in the spelling of 2.x (time_received_ns)
// or 1.x (TimeReceived), or as protocol buffers are printed (timeReceivedNs): they
// differ in case and underscores only.
func goflowKey(key []byte) goflowField {
	var plain [24]byte
	n := 0
	for _, c := range key {
		if c == '_' {
			continue
		}
		if n == len(plain) {
			return keyNone
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		plain[n] = c
		n++
	}
	switch string(plain[:n]) {
	case "type":
		return keyType
	case "timereceivedns":
		return keyReceivedNs
	case "timeflowstartns":
		return keyStartNs
	case "timeflowendns":
		return keyEndNs
	case "timereceived":
		return keyReceivedSec
	case "timeflowstart":
		return keyStartSec
	case "timeflowend":
		return keyEndSec
	case "timeflowstartms":
		return keyStartMilli
	case "timeflowendms":
		return keyEndMilli
	case "sampleraddress":
		return keySampler
	case "srcaddr":
		return keySrc
	case "dstaddr":
		return keyDst
	case "samplingrate":
		return keyRate
	case "bytes":
		return keyBytes
	case "packets":
		return keyPackets
	case "proto":
		return keyProto
	case "srcport":
		return keySrcPort
	case "dstport":
		return keyDstPort
	case "inif":
		return keyInIf
	case "outif":
		return keyOutIf
	case "tcpflags":
		return keyFlags
	case "fragmentoffset":
		return keyFragment
	case "icmptype":
		return keyICMPType
	case "icmpcode":
		return keyICMPCode
	case "forwardingstatus":
		return keyForwarding
	case "observationdomainid":
		return keyDomain
	case "flowdirection":
		return keyDirection
	case "biflowdirection":
		return keyBiflow
	case "layerstack":
		return keyLayerStack
	}
	return keyNone
}

// put takes a field's value; one that is not of the field's kind tells nothing.
// Protocol buffers' 32-bit fields are not cut: a larger number is not theirs.
func (m *goflowMessage) put(f goflowField, v scalar) {
	switch f {
	case keySampler:
		m.sampler, _ = v.address()
		return
	case keySrc:
		m.src, m.hasSrc = v.address()
		return
	case keyDst:
		m.dst, m.hasDst = v.address()
		return
	case keyReceivedNs:
		m.receivedNs, m.hasReceivedNs = v.nanoseconds()
		return
	case keyStartNs:
		m.startNs, _ = v.nanoseconds()
		return
	case keyEndNs:
		m.endNs, _ = v.nanoseconds()
		return
	}
	n, ok := v.number()
	if !ok && v.kind == '"' {
		switch f {
		case keyType:
			n, ok = goflowTypes[string(v.text)], true
		case keyProto:
			p := goflowProtocols[string(v.text)]
			n, ok = uint64(p), true
		}
	}
	if !ok {
		n = 0
	}
	switch f {
	case keyReceivedSec:
		m.receivedSec = n
	case keyStartSec:
		m.startSec = n
	case keyEndSec:
		m.endSec = n
	case keyStartMilli:
		m.startMilli = n
	case keyEndMilli:
		m.endMilli = n
	case keyRate:
		m.rate = n
	case keyBytes:
		m.bytes = n
	case keyPackets:
		m.packets = n
	case keyDirection:
		m.direction, m.hasDirection = n, ok
	case keyBiflow:
		m.biflow, m.hasBiflow = n, ok
	default:
		if n > 1<<32-1 {
			n = 0
		}
		switch f {
		case keyType:
			m.kind = n
		case keyProto:
			m.proto = n
		case keySrcPort:
			m.srcPort = n
		case keyDstPort:
			m.dstPort = n
		case keyInIf:
			m.inIf = n
		case keyOutIf:
			m.outIf = n
		case keyFlags:
			m.flags = n
		case keyFragment:
			m.fragment = n
		case keyICMPType:
			m.icmpType = n
		case keyICMPCode:
			m.icmpCode = n
		case keyForwarding:
			m.forwarding = n
		case keyDomain:
			m.domain = n
		}
	}
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
