package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/postern/postern/flow"
)

// Range is a protocol and a run of its ports. For ICMP of both families the
// 16 bits are type × 256 + code; protocols without either use the whole run.
type Range struct {
	Proto uint8  `json:"proto"`
	Low   uint16 `json:"low"`
	High  uint16 `json:"high"`
}

// protocols are the protocol names of the language (IANA); every other protocol
// is written as its number.
var protocols = map[string]uint8{
	"icmp": flow.ProtoICMP, "igmp": 2, "tcp": flow.ProtoTCP, "udp": flow.ProtoUDP, "gre": 47, "esp": 50, "ah": 51,
	"icmpv6": flow.ProtoICMPv6, "ospf": 89, "pim": 103, "vrrp": 112, "sctp": flow.ProtoSCTP,
}

// icmpTypes are the names of ICMP types (IANA, icmp-parameters).
var icmpTypes = map[string]uint8{
	"echo-reply": 0, "unreachable": 3, "source-quench": 4, "redirect": 5, "echo": 8, "router-advertisement": 9,
	"router-solicitation": 10, "time-exceeded": 11, "parameter-problem": 12, "timestamp": 13, "timestamp-reply": 14,
}

// icmpv6Types are the names of ICMPv6 types (IANA, icmpv6-parameters).
var icmpv6Types = map[string]uint8{
	"unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4, "echo": 128, "echo-reply": 129,
	"router-solicitation": 133, "router-advertisement": 134, "neighbor-solicitation": 135, "neighbor-advertisement": 136,
	"redirect": 137,
}

func hasPorts(proto uint8) bool {
	return proto == flow.ProtoTCP || proto == flow.ProtoUDP || proto == flow.ProtoSCTP
}

func isICMP(proto uint8) bool { return proto == flow.ProtoICMP || proto == flow.ProtoICMPv6 }

const serviceForms = "write tcp/443, udp/5000-5100, icmp/echo, icmp/3/1, or a protocol number such as 47"

// ParseService reads one service as the language writes it: tcp/443,
// udp/5000-5100, tcp (any port), icmp/echo, icmp/8, icmp/3/1, gre, 47. Names of
// the services section are not known here.
func ParseService(s string) (Range, error) {
	name, rest, more := strings.Cut(s, "/")
	proto, ok := protocols[name]
	if !ok {
		n, err := parseNumber(name, 255)
		if err != nil {
			return Range{}, fmt.Errorf("%s is no service; %s", quote(s), serviceForms)
		}
		proto = uint8(n)
	}
	full := Range{proto, 0, 0xffff}
	switch {
	case !more:
		return full, nil
	case hasPorts(proto):
		low, high, isRange := strings.Cut(rest, "-")
		l, err := parseNumber(low, 0xffff)
		if err != nil {
			return Range{}, fmt.Errorf("%s is no port of %s; ports are 0 to 65535, %s", quote(rest), quote(s), serviceForms)
		}
		h := l
		if isRange {
			if h, err = parseNumber(high, 0xffff); err != nil {
				return Range{}, fmt.Errorf("%s is no port of %s; ports are 0 to 65535, %s", quote(high), quote(s), serviceForms)
			}
		}
		if h < l {
			return Range{}, fmt.Errorf("the range in %s runs backwards; write %s/%d-%d", quote(s), name, h, l)
		}
		return Range{proto, l, h}, nil
	case isICMP(proto):
		types := icmpTypes
		if proto == flow.ProtoICMPv6 {
			types = icmpv6Types
		}
		typ, code, hasCode := strings.Cut(rest, "/")
		t, known := types[typ]
		if !known {
			n, err := parseNumber(typ, 255)
			if err != nil {
				names := make([]string, 0, len(types))
				for k := range types {
					names = append(names, k)
				}
				slices.Sort(names)
				return Range{}, fmt.Errorf("%s is no type of %s; %s, or a number from 0 to 255", quote(typ), name, didYouMean(typ, names))
			}
			t = uint8(n)
		}
		low := uint16(t) << 8
		if !hasCode {
			return Range{proto, low, low | 0xff}, nil
		}
		c, err := parseNumber(code, 255)
		if err != nil {
			return Range{}, fmt.Errorf("%s is no code of %s; codes are 0 to 255", quote(code), quote(s))
		}
		return Range{proto, low | c, low | c}, nil
	}
	return Range{}, fmt.Errorf("%s has a port, but protocol %d has none; write %d", quote(s), proto, proto)
}

// parseNumber reads a plain decimal number: no sign, no blanks, no leading zeros,
// which other readers of the same file may take for octal.
func parseNumber(s string, most uint64) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n > most || len(s) > 1 && s[0] == '0' || s[0] == '+' {
		return 0, strconv.ErrSyntax
	}
	return uint16(n), nil
}

// String is the range as the language writes it.
func (r Range) String() string {
	b := flow.AppendProto(nil, r.Proto)
	switch {
	case r.Low == 0 && r.High == 0xffff:
	case isICMP(r.Proto) && r.Low == r.High:
		b = fmt.Appendf(b, "/%d/%d", r.Low>>8, r.Low&0xff)
	case isICMP(r.Proto) && r.Low&0xff == 0 && r.High == r.Low|0xff:
		b = fmt.Appendf(b, "/%d", r.Low>>8)
	case r.Low == r.High:
		b = fmt.Appendf(b, "/%d", r.Low)
	default:
		b = fmt.Appendf(b, "/%d-%d", r.Low, r.High)
	}
	return string(b)
}

// mergeRanges sorts ranges and joins what overlaps or touches, so that the same
// set of services always reads the same.
func mergeRanges(in []Range) []Range {
	slices.SortFunc(in, func(a, b Range) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Low, b.Low), cmp.Compare(a.High, b.High))
	})
	out := in[:0]
	for _, r := range in {
		if n := len(out); n > 0 && out[n-1].Proto == r.Proto && int(r.Low) <= int(out[n-1].High)+1 {
			out[n-1].High = max(out[n-1].High, r.High)
			continue
		}
		out = append(out, r)
	}
	return out
}
