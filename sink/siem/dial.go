package siem

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/postern/postern/flow"
)

// addressClass is what kind of destination an address is.
type addressClass uint8

const (
	addressPublic addressClass = iota
	// addressPrivate is what `allowPrivate` opens: private use and loopback.
	addressPrivate
	// addressSpecial opens only where `allowCIDRs` lists it: link-local, where
	// clouds keep their metadata services, and whatever no receiver lives at.
	addressSpecial
)

// specialPrefixes are the destinations that are not plain public unicast (IANA
// special-purpose address registries, RFC 6890 and its updates). Translation and
// tunnel prefixes stand here because they reach addresses of another class. The
// first that holds an address counts.
var specialPrefixes = []struct {
	prefix netip.Prefix
	class  addressClass
	what   string
}{
	{netip.MustParsePrefix("127.0.0.0/8"), addressPrivate, "loopback"},
	{netip.MustParsePrefix("::1/128"), addressPrivate, "loopback"},
	{netip.MustParsePrefix("10.0.0.0/8"), addressPrivate, "private"},
	{netip.MustParsePrefix("172.16.0.0/12"), addressPrivate, "private"},
	{netip.MustParsePrefix("192.168.0.0/16"), addressPrivate, "private"},
	{netip.MustParsePrefix("100.64.0.0/10"), addressPrivate, "shared address space"},
	{netip.MustParsePrefix("fc00::/7"), addressPrivate, "unique local"},
	{netip.MustParsePrefix("169.254.0.0/16"), addressSpecial, "link-local"},
	{netip.MustParsePrefix("fe80::/10"), addressSpecial, "link-local"},
	{netip.MustParsePrefix("0.0.0.0/8"), addressSpecial, "this host"},
	{netip.MustParsePrefix("192.0.0.0/24"), addressSpecial, "protocol assignments"},
	{netip.MustParsePrefix("192.0.2.0/24"), addressSpecial, "documentation"},
	{netip.MustParsePrefix("192.88.99.0/24"), addressSpecial, "6to4 relay"},
	{netip.MustParsePrefix("198.18.0.0/15"), addressSpecial, "benchmarking"},
	{netip.MustParsePrefix("198.51.100.0/24"), addressSpecial, "documentation"},
	{netip.MustParsePrefix("203.0.113.0/24"), addressSpecial, "documentation"},
	{netip.MustParsePrefix("224.0.0.0/4"), addressSpecial, "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), addressSpecial, "reserved or broadcast"},
	{netip.MustParsePrefix("::/96"), addressSpecial, "unspecified or IPv4-compatible"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), addressSpecial, "local NAT64"},
	{netip.MustParsePrefix("100::/64"), addressSpecial, "discard"},
	{netip.MustParsePrefix("2001::/23"), addressSpecial, "protocol assignments or Teredo"},
	{netip.MustParsePrefix("2001:db8::/32"), addressSpecial, "documentation"},
	{netip.MustParsePrefix("3fff::/20"), addressSpecial, "documentation"},
	{netip.MustParsePrefix("2002::/16"), addressSpecial, "6to4"},
	{netip.MustParsePrefix("5f00::/16"), addressSpecial, "segment routing"},
	{netip.MustParsePrefix("fec0::/10"), addressSpecial, "site-local"},
	{netip.MustParsePrefix("ff00::/8"), addressSpecial, "multicast"},
}

// classifyAddress says what kind of destination ip is, seen as what it reaches: ::ffff:a.b.c.d
// and 64:ff9b::a.b.c.d are a.b.c.d.
func classifyAddress(ip netip.Addr) (netip.Addr, addressClass, string) {
	ip = flow.AddrFromNetip(ip.WithZone("")).Canonical().Netip()
	for _, s := range specialPrefixes {
		if s.prefix.Contains(ip) {
			return ip, s.class, s.what
		}
	}
	return ip, addressPublic, "public"
}

// refusedError says why a destination is not spoken to.
type refusedError struct {
	address netip.Addr
	what    string // "loopback", "link-local" …
	why     string
}

func (e *refusedError) Error() string {
	return fmt.Sprintf("destination %s (%s) refused: %s", e.address, e.what, e.why)
}

// doorkeeper decides, after name resolution and for the very address that is
// about to be connected to, whether a message may go there.
type doorkeeper struct {
	allowPrivate bool
	allow        []netip.Prefix
	plain        bool // unencrypted: private destinations only
}

func (d *doorkeeper) check(ip netip.Addr) error {
	ip, class, what := classifyAddress(ip)
	for _, p := range d.allow {
		if p.Contains(ip) {
			return nil
		}
	}
	switch {
	case class == addressSpecial:
		return &refusedError{ip, what, "list it under allowCIDRs if it is meant"}
	case class == addressPrivate && !d.allowPrivate:
		return &refusedError{ip, what, "set allowPrivate or list it under allowCIDRs if it is meant"}
	case class == addressPublic && d.plain:
		return &refusedError{ip, what, "findings would go unencrypted; use TLS (https://) beyond the own network"}
	}
	return nil
}

// control is a dialer's: it sees the address of each connection after resolution and before
// connecting, so a name that is rebound between a check and its use gains nothing.
func (d *doorkeeper) control(at *place, host string) func(network, address string, c syscall.RawConn) error {
	return func(_, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("destination %q refused: it is no address", address)
		}
		err = d.check(ap.Addr())
		if refused, ok := errors.AsType[*refusedError](err); ok {
			at.met.refused.WithLabelValues(refused.what).Inc()
			at.log.Warn("destination refused", "audit", true, "host", host, "address", refused.address.String(),
				"kind", refused.what, "reason", refused.why)
		}
		return err
	}
}

// canonicalPrefix is p with an IPv4-mapped prefix as the IPv4 prefix it is.
func canonicalPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked()
	}
	return p.Masked()
}
