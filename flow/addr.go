package flow

import (
	"encoding/binary"
	"net/netip"
)

// Addr is an IP address of either family in 16 bytes: IPv6 as it is, IPv4 as the
// IPv4-mapped address ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). Both spellings of one
// IPv4 address are therefore one Addr. The zero value is "no address" and also
// the IPv6 unspecified address; a [Record] says with [Has] which is meant.
//
// Addr is comparable and may be a map key.
type Addr struct {
	Hi, Lo uint64 // network byte order: Hi holds the first eight bytes
}

const v4Mapped = 0xffff << 32

// AddrFrom4 makes an Addr of an IPv4 address given as a big-endian integer.
func AddrFrom4(v uint32) Addr { return Addr{0, v4Mapped | uint64(v)} }

// AddrFrom16 makes an Addr of 16 bytes in network byte order.
func AddrFrom16(b [16]byte) Addr {
	return Addr{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// AddrFromNetip makes an Addr of ip; a zone is dropped, an invalid ip gives the zero Addr.
func AddrFromNetip(ip netip.Addr) Addr {
	if !ip.IsValid() {
		return Addr{}
	}
	return AddrFrom16(ip.As16())
}

// ParseAddr reads an address in text form.
func ParseAddr(s string) (Addr, error) {
	ip, err := netip.ParseAddr(s)
	if err != nil {
		return Addr{}, err
	}
	return AddrFromNetip(ip), nil
}

// MustParseAddr is ParseAddr for constants and tests; it panics on bad text.
func MustParseAddr(s string) Addr { return AddrFromNetip(netip.MustParseAddr(s)) }

// Is4 says whether a is an IPv4 address.
func (a Addr) Is4() bool { return a.Hi == 0 && a.Lo>>32 == 0xffff }

// IsZero says whether a is the zero value.
func (a Addr) IsZero() bool { return a == Addr{} }

// V4 is the IPv4 address as a big-endian integer; only meaningful if Is4.
func (a Addr) V4() uint32 { return uint32(a.Lo) }

// As16 is the address in network byte order.
func (a Addr) As16() (b [16]byte) {
	binary.BigEndian.PutUint64(b[:8], a.Hi)
	binary.BigEndian.PutUint64(b[8:], a.Lo)
	return b
}

// Netip is the address as the standard library has it; IPv4 comes out as IPv4.
func (a Addr) Netip() netip.Addr { return netip.AddrFrom16(a.As16()).Unmap() }

// Compare orders addresses as numbers, IPv4 by its mapped form.
func (a Addr) Compare(b Addr) int {
	switch {
	case a.Hi != b.Hi && a.Hi < b.Hi, a.Hi == b.Hi && a.Lo < b.Lo:
		return -1
	case a == b:
		return 0
	}
	return 1
}

// Canonical is the address that policy speaks about: an address behind the NAT64
// well-known prefix 64:ff9b::/96 (RFC 6052) is the IPv4 address inside it, every
// other address is itself.
func (a Addr) Canonical() Addr {
	if a.Hi == 0x0064_ff9b_0000_0000 && a.Lo>>32 == 0 {
		return AddrFrom4(uint32(a.Lo))
	}
	return a
}

// String is the address in text form, IPv4 dotted, IPv6 as RFC 5952 writes it.
func (a Addr) String() string { return a.Netip().String() }

// AppendTo appends the text form of a to b without allocating.
func (a Addr) AppendTo(b []byte) []byte { return a.Netip().AppendTo(b) }

// MarshalText implements encoding.TextMarshaler.
func (a Addr) MarshalText() ([]byte, error) { return a.AppendTo(nil), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Addr) UnmarshalText(b []byte) (err error) {
	*a, err = ParseAddr(string(b))
	return err
}
