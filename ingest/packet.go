package ingest

import (
	"encoding/binary"

	"github.com/postern/postern/flow"
)

// packet is what the headers of an IP packet say. sFlow's sampled headers and
// capture files are read with it.
type packet struct {
	src, dst  flow.Addr
	proto     uint8
	payload   []byte // behind the IP headers, as far as it was captured
	truncated bool   // less was captured than the IP header says

	fragment   bool // a part of a packet
	more       bool // not the last part
	fragmentID uint32
	offset     int // of payload in the whole packet's
}

const (
	etherIPv4   = 0x0800
	etherIPv6   = 0x86dd
	etherMPLS   = 0x8847
	etherMPLSMC = 0x8848
)

// ethernet steps over an Ethernet header with its VLAN tags; ok is false if b
// ends within them.
func ethernet(b []byte) (etherType uint16, rest []byte, ok bool) {
	if len(b) < 14 {
		return 0, nil, false
	}
	return tagged(binary.BigEndian.Uint16(b[12:]), b[14:])
}

// tagged steps over VLAN tags: IEEE 802.1Q, 802.1ad, and the 0x9100 of old.
func tagged(etherType uint16, b []byte) (uint16, []byte, bool) {
	for etherType == 0x8100 || etherType == 0x88a8 || etherType == 0x9100 {
		if len(b) < 4 {
			return 0, nil, false
		}
		etherType, b = binary.BigEndian.Uint16(b[2:]), b[4:]
	}
	return etherType, b, true
}

// network reads the packet behind an EtherType; ok is false if it is no IP packet
// or ends within its header.
func network(etherType uint16, b []byte) (p packet, ok bool) {
	switch etherType {
	case etherMPLS, etherMPLSMC:
		for { // RFC 3032, 2.1: the lowest label has the bottom bit
			if len(b) < 4 {
				return p, false
			}
			bottom := b[2]&1 != 0
			b = b[4:]
			if bottom {
				return ip(b)
			}
		}
	case etherIPv4, etherIPv6:
		return ip(b)
	}
	return p, false
}

// ip reads an IP packet of either version.
func ip(b []byte) (p packet, ok bool) {
	if len(b) == 0 {
		return p, false
	}
	switch b[0] >> 4 {
	case 4:
		return ip4(b)
	case 6:
		return ip6(b)
	}
	return p, false
}

func ip4(b []byte) (p packet, ok bool) {
	be := binary.BigEndian
	if len(b) < 20 {
		return p, false
	}
	header, total := int(b[0]&15)*4, int(be.Uint16(b[2:]))
	if header < 20 || header > len(b) {
		return p, false
	}
	if total == 0 {
		total = len(b) // segmentation offload: the length did not fit
	}
	if total < header {
		return p, false
	}
	p.src, p.dst, p.proto = flow.AddrFrom4(be.Uint32(b[12:])), flow.AddrFrom4(be.Uint32(b[16:])), b[9]
	p.truncated = total > len(b)
	p.payload = b[header:min(total, len(b))]
	fragment := be.Uint16(b[6:])
	p.offset, p.more = int(fragment&0x1fff)*8, fragment&0x2000 != 0
	p.fragment = p.more || p.offset > 0
	p.fragmentID = uint32(be.Uint16(b[4:]))
	return p, true
}

const maxExtensions = 16 // IPv6 extension headers that are followed

func ip6(b []byte) (p packet, ok bool) {
	be := binary.BigEndian
	if len(b) < 40 {
		return p, false
	}
	length := int(be.Uint16(b[4:]))
	p.src, p.dst, p.proto = addr6(b[8:]), addr6(b[24:]), b[6]
	p.payload = b[40:]
	if length > 0 { // else a jumbogram or segmentation offload
		p.truncated = length > len(p.payload)
		p.payload = p.payload[:min(length, len(p.payload))]
	}
	for range maxExtensions {
		n := 0
		h := p.payload
		if p.fragment && p.offset > 0 {
			return p, true // what follows is the middle of something
		}
		switch p.proto {
		case 0, 43, 60, 135: // hop-by-hop, routing, destination options, mobility
			if len(h) >= 8 {
				n = 8 + int(h[1])*8
			}
		case 51: // authentication
			if len(h) >= 8 {
				n = 8 + int(h[1])*4
			}
		case 44: // fragment
			if len(h) >= 8 {
				n = 8
				v := be.Uint16(h[2:])
				p.offset, p.more = int(v&^7), v&1 != 0
				p.fragment = p.more || p.offset > 0
				p.fragmentID = be.Uint32(h[4:])
			}
		default:
			return p, true
		}
		if n == 0 || n > len(h) {
			p.truncated, p.payload = true, nil
			return p, true
		}
		p.proto, p.payload = h[0], h[n:]
	}
	return p, true
}
