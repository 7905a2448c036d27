package enrich

import (
	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// Ports is a set of ports of TCP, UDP and SCTP. The zero value is empty. It is
// built once a policy version and then only read, by any number of goroutines.
type Ports struct {
	tcp, udp, sctp *[1024]uint64
}

// maxServiceRange is the widest run of ports that counts as a service for telling
// who serves. Wider ones are pools that clients are handed ports from as well.
const maxServiceRange = 16

// Add adds the ports low to high of proto. Other protocols and ranges of more
// than 16 ports are left out: a dynamic range says nothing about who serves.
func (s *Ports) Add(proto uint8, low, high uint16) {
	var set **[1024]uint64
	switch proto {
	case flow.ProtoTCP:
		set = &s.tcp
	case flow.ProtoUDP:
		set = &s.udp
	case flow.ProtoSCTP:
		set = &s.sctp
	default:
		return
	}
	if high < low || high-low >= maxServiceRange {
		return
	}
	if *set == nil {
		*set = new([1024]uint64)
	}
	for p := uint32(low); p <= uint32(high); p++ {
		(*set)[p>>6] |= 1 << (p & 63)
	}
}

// DeclaresPort implements [Services].
func (s *Ports) DeclaresPort(proto uint8, port uint16) bool {
	set := s.tcp
	switch proto {
	case flow.ProtoTCP:
	case flow.ProtoUDP:
		set = s.udp
	case flow.ProtoSCTP:
		set = s.sctp
	default:
		return false
	}
	return set != nil && set[port>>6]&(1<<(port&63)) != 0
}

// maxVersions is how many policy versions' ports are remembered; late flows rarely
// reach back further than a few.
const maxVersions = 16

// Versions says which version of the policy is in force at a time, nil for none:
// *policy.History.
type Versions interface {
	At(t flow.Time) *policy.Index
}

// DeclaredBy gives the services that the versions of h declare: its services
// section and what rules and exceptions name themselves. What it gives is for one
// goroutine.
func DeclaredBy(h Versions) Declared {
	type version struct {
		index *policy.Index
		ports *Ports
	}
	var known []version // the one asked for last comes first
	return func(at flow.Time) Services {
		x := h.At(at)
		if x == nil {
			return nil
		}
		for i := range known {
			if v := known[i]; v.index == x {
				if i > 0 {
					copy(known[1:], known[:i])
					known[0] = v
				}
				return v.ports
			}
		}
		v := version{x, portsOf(x.Policy())}
		if len(known) < maxVersions {
			known = append(known, version{})
		}
		copy(known[1:], known)
		known[0] = v
		return v.ports
	}
}

func portsOf(p *policy.Policy) *Ports {
	var s Ports
	for _, r := range p.ServiceRanges() {
		s.Add(r.Proto, r.Low, r.High)
	}
	return &s
}
