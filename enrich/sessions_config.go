package enrich

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/postern/postern/flow"
)

// SessionsConfig says how observations become sessions.
type SessionsConfig struct {
	// Lateness is how long after it began an observation may still arrive: the longest active
	// time-out of the exporters plus a minute. A session is written once event time has passed
	// its start by this. What ended before that is late: stored as a flow, kept out of sessions.
	// It is at least enrich.window, for which a record waits for its other half.
	Lateness time.Duration `yaml:"lateness"`
	// CloudLateness is Lateness while logs of clouds come in (AWS, Azure, Google), which gather
	// them for minutes. It holds for all observations then: they are of the same sessions.
	CloudLateness time.Duration `yaml:"cloudLateness"`
	// Settle is how long after it began a session is written first, and seen by the detectors
	// of behaviour: what came of it until then, an answer above all, decides what they take it for.
	// It is at least join.
	Settle time.Duration `yaml:"settle"`
	// Idle is the silence that ends a session, by protocol.
	Idle SessionIdleConfig `yaml:"idle"`
	// Join is how far apart a host's log and an exported flow of one five-tuple may be, after
	// the host's clock offset is taken off, and still be one session.
	Join time.Duration `yaml:"join"`
	// AgreeingSessions is how many sessions must agree on how far a host's clock is off.
	AgreeingSessions int `yaml:"agreeingSessions"`
	// UpdateEvery is how often a session that goes on is written again at most.
	UpdateEvery time.Duration `yaml:"updateEvery"`
	// NATPools are the addresses that translation hands out. Who is behind one is known only
	// where an observer tells both sides; otherwise the session is unverified and no exception
	// is credited to it.
	NATPools []netip.Prefix `yaml:"natPools"`
	// MaxSessions bounds the sessions held. Beyond it those that would end next are written
	// and forgotten before their time, and counted.
	MaxSessions int `yaml:"maxSessions"`
	// MaxUnjoined bounds the observations of hosts that no exported flow was found for yet and
	// that wait for the host's clock offset. Beyond it the oldest is no longer looked for.
	MaxUnjoined int `yaml:"maxUnjoined"`
	// MaxHosts bounds the hosts whose clocks and whose agents' reports are followed.
	MaxHosts int `yaml:"maxHosts"`
	// ClockTolerance caps event time at receipt plus this; zero believes the observers, as
	// replay does. Set by the caller from ingest's setting.
	ClockTolerance time.Duration `yaml:"-"`
}

// SessionIdleConfig is the silence that ends a session, by protocol.
type SessionIdleConfig struct {
	// TCP: ten minutes. Exporters tell a connection that is in use every minute or so.
	TCP time.Duration `yaml:"tcp"`
	// UDP: two minutes, the least RFC 4787 (REQ-5) lets a NAT keep a mapping.
	UDP time.Duration `yaml:"udp"`
	// ICMP: a minute, the least RFC 5508 (REQ-2) lets a NAT keep a query.
	ICMP time.Duration `yaml:"icmp"`
	// Other protocols, SCTP among them.
	Other time.Duration `yaml:"other"`
}

// DefaultSessionsConfig gives the defaults.
func DefaultSessionsConfig() SessionsConfig {
	return SessionsConfig{
		Lateness:      2 * time.Minute,  // an active time-out of 60 s, as exporters are usually told, and a minute
		CloudLateness: 15 * time.Minute, // SEMANTICS, "Event time in motion"
		// As join. A connection that is answered at all is answered at once; this leaves room for
		// retransmitted SYNs (1 + 2 + 4 + 8 s, RFC 6298) and for exporters' clocks that differ.
		Settle: 20 * time.Second,
		// A session stays in memory for its idle time, so TCP's is not the hour for which
		// firewalls keep connections: at 300 connections a second that would be a million.
		Idle:             SessionIdleConfig{TCP: 10 * time.Minute, UDP: 2 * time.Minute, ICMP: time.Minute, Other: 10 * time.Minute},
		Join:             20 * time.Second, // SEMANTICS, "Sessions and observers"
		AgreeingSessions: 5,                // there too
		// A connection of a day is written 144 times instead of once a minute.
		UpdateEvery: 10 * time.Minute,
		// A session of one observer takes about 800 bytes: 160 MB at the cap.
		MaxSessions: 200_000,
		// About 350 bytes each: 11 MB. An hour of a host that logs ten connections a second.
		MaxUnjoined: 32_768,
		MaxHosts:    65_536, // about 1.2 kB each that is off or agrees, 100 bytes each that reports
	}
}

// Validate says what is wrong with the configuration and what would be right.
func (c *SessionsConfig) Validate() error {
	for _, d := range []struct {
		key         string
		v           time.Duration
		least, most time.Duration
	}{
		{"lateness", c.Lateness, 0, 24 * time.Hour}, {"cloudLateness", c.CloudLateness, 0, 24 * time.Hour}, {"settle", c.Settle, 0, 10 * time.Minute}, {"join", c.Join, 0, time.Minute}, {"updateEvery", c.UpdateEvery, time.Second, 24 * time.Hour},
		{"idle.tcp", c.Idle.TCP, time.Second, 24 * time.Hour}, {"idle.udp", c.Idle.UDP, time.Second, 24 * time.Hour},
		{"idle.icmp", c.Idle.ICMP, time.Second, 24 * time.Hour}, {"idle.other", c.Idle.Other, time.Second, 24 * time.Hour},
	} {
		if d.v < d.least || d.v > d.most {
			return fmt.Errorf("sessions.%s is %v; write a duration from %v to %v", d.key, d.v, d.least, d.most)
		}
	}
	for _, n := range []struct {
		key            string
		v, least, most int
	}{
		{"agreeingSessions", c.AgreeingSessions, 2, maxVotes / 2}, {"maxSessions", c.MaxSessions, 1, 1 << 24},
		{"maxUnjoined", c.MaxUnjoined, 1, 1 << 22}, {"maxHosts", c.MaxHosts, 1, 1 << 22},
	} {
		if n.v < n.least || n.v > n.most {
			return fmt.Errorf("sessions.%s is %d; write a number from %d to %d", n.key, n.v, n.least, n.most)
		}
	}
	if c.Settle < c.Join {
		return fmt.Errorf("sessions.settle is %v and sessions.join %v; settle may not be less, or a session would be written before the host's log of it can have come", c.Settle, c.Join)
	}
	for i, p := range c.NATPools {
		if !p.IsValid() {
			return fmt.Errorf("sessions.natPools[%d] is no prefix; write it as 203.0.113.0/28", i)
		}
	}
	return nil
}

// NATPool says whether an address is one that translation hands out: who is behind it is not
// known, and no exception may be credited to it.
func (c *SessionsConfig) NATPool(a flow.Addr) bool {
	if len(c.NATPools) == 0 {
		return false
	}
	ip := a.Canonical().Netip()
	for _, p := range c.NATPools {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// Discredit takes from a verdict whatever an exception did to it, for a conversation one end of
// which is translated and not known: nothing is credited to an exception there, and nobody is
// told that theirs was misused. What the rules deny stays denied.
func Discredit(v *flow.Verdict) {
	if v.Exception == flow.NoName {
		return
	}
	if v.Reason == flow.ReasonWaived {
		v.Reason, v.Expected, v.Outcome, v.Confidence = flow.ReasonUnverified, flow.ExpectUnknown, flow.OutcomeNone, 0
		v.Missing |= flow.DimSource
	} else if v.Expected == flow.ExpectDeny {
		v.Reason = flow.ReasonDenied
	}
	v.Exception, v.Others, v.OthersTotal, v.Failed, v.ValidUntil = flow.NoName, [flow.MaxOthers]flow.Name{}, 0, 0, 0
}

func (c *SessionIdleConfig) of(proto uint8) flow.Time {
	d := c.Other
	switch proto {
	case flow.ProtoTCP:
		d = c.TCP
	case flow.ProtoUDP:
		d = c.UDP
	case flow.ProtoICMP, flow.ProtoICMPv6:
		d = c.ICMP
	}
	return flow.Time(d / time.Millisecond)
}
