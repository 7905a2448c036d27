package detect

import (
	"fmt"
	"time"

	"github.com/postern/postern/flow"
)

// Config says how findings are made and told.
type Config struct {
	// Lateness is how long after it began a record may still arrive: the longest
	// active time-out of the exporters plus a minute. What comes later is judged,
	// stored and found all the same, but its session may be counted apart.
	Lateness time.Duration `yaml:"lateness"`
	// Grace is how long a session may outlive its exception unremarked.
	Grace time.Duration `yaml:"grace"`
	// SessionGap is the longest silence after which a five-tuple still goes on with
	// the session that its exception allowed.
	SessionGap time.Duration `yaml:"sessionGap"`
	// UpdateEvery is how often a finding that goes on is told again at most.
	UpdateEvery time.Duration `yaml:"updateEvery"`
	// Idle is the silence that ends a session, by protocol, where sessions are counted.
	Idle IdleConfig `yaml:"idle"`
	// TellEach is how many findings that single flows give rise to are told one by one, of one
	// type and source in a day. Beyond it they are stored, and told of together; but for critical
	// ones, which are always told.
	TellEach int `yaml:"tellEach"`
	// MaxFindings bounds the findings held. Beyond it those seen longest ago are
	// forgotten, closed ones first, and counted.
	MaxFindings int `yaml:"maxFindings"`
	// MaxSessions bounds the sessions remembered for counting. Beyond it a session
	// is counted once a record.
	MaxSessions int `yaml:"maxSessions"`
	// MaxStraddles bounds the five-tuples watched across the end of their exception.
	MaxStraddles int `yaml:"maxStraddles"`
	// Behaviour says how the detectors that look at how hosts behave work.
	Behaviour BehaviourConfig `yaml:"behaviour"`
	// ClockTolerance caps event time at receipt plus this; zero believes the
	// exporters, as replay does. Set by the caller from ingest's setting.
	ClockTolerance time.Duration `yaml:"-"`
	// SessionLateness is how long after a session began it may be settled; what its finding
	// needs for that is remembered as long. Set by the caller from the sessions' setting.
	SessionLateness time.Duration `yaml:"-"`
}

// IdleConfig is the silence that ends a session, by protocol.
type IdleConfig struct {
	// TCP: an hour, what firewalls usually keep an idle connection for.
	TCP time.Duration `yaml:"tcp"`
	// UDP: two minutes, the least RFC 4787 (REQ-5) lets a NAT keep a mapping.
	UDP time.Duration `yaml:"udp"`
	// ICMP: a minute, the least RFC 5508 (REQ-2) lets a NAT keep a query.
	ICMP time.Duration `yaml:"icmp"`
	// Other protocols, SCTP among them.
	Other time.Duration `yaml:"other"`
}

// DefaultConfig gives the defaults.
func DefaultConfig() Config {
	return Config{
		Lateness:    2 * time.Minute, // an active time-out of 60 s, as exporters are usually told, and a minute
		Grace:       time.Minute,     // POLICY.md, 6
		SessionGap:  30 * time.Minute,
		UpdateEvery: time.Hour,
		Idle:        IdleConfig{TCP: time.Hour, UDP: 2 * time.Minute, ICMP: time.Minute, Other: 10 * time.Minute},
		// More of one kind by one source nobody looks at one by one; two programs against the same rule
		// on fifty servers are as many.
		TellEach: 100,
		// A finding with its samples is about 5 kB: 250 MB at the cap.
		MaxFindings: 50_000,
		// A session is about 80 bytes: 40 MB at the cap.
		MaxSessions: 500_000,
		// A watched five-tuple is about 1 kB, with a held record 3 kB.
		MaxStraddles: 20_000,
		Behaviour:    DefaultBehaviourConfig(),
	}
}

// Validate says what is wrong with the configuration and what would be right.
func (c *Config) Validate() error {
	for _, d := range []struct {
		key         string
		v           time.Duration
		least, most time.Duration
	}{
		{"lateness", c.Lateness, 0, 24 * time.Hour}, {"grace", c.Grace, 0, time.Hour},
		{"sessionGap", c.SessionGap, 0, 24 * time.Hour}, {"updateEvery", c.UpdateEvery, time.Second, 24 * time.Hour},
		{"idle.tcp", c.Idle.TCP, time.Second, 24 * time.Hour}, {"idle.udp", c.Idle.UDP, time.Second, 24 * time.Hour},
		{"idle.icmp", c.Idle.ICMP, time.Second, 24 * time.Hour}, {"idle.other", c.Idle.Other, time.Second, 24 * time.Hour},
	} {
		if d.v < d.least || d.v > d.most {
			return fmt.Errorf("detect.%s is %v; write a duration from %v to %v", d.key, d.v, d.least, d.most)
		}
	}
	for _, n := range []struct {
		key string
		v   int
	}{{"tellEach", c.TellEach}, {"maxFindings", c.MaxFindings}, {"maxSessions", c.MaxSessions}, {"maxStraddles", c.MaxStraddles}} {
		if n.v < 1 || n.v > 1<<24 {
			return fmt.Errorf("detect.%s is %d; write a number from 1 to %d", n.key, n.v, 1<<24)
		}
	}
	return c.Behaviour.Validate()
}

func millis(d time.Duration) flow.Time { return flow.Time(d / time.Millisecond) }

func (c *IdleConfig) of(proto uint8) flow.Time {
	switch proto {
	case flow.ProtoTCP:
		return millis(c.TCP)
	case flow.ProtoUDP:
		return millis(c.UDP)
	case flow.ProtoICMP, flow.ProtoICMPv6:
		return millis(c.ICMP)
	}
	return millis(c.Other)
}

func (c *IdleConfig) longest() flow.Time {
	return millis(max(c.TCP, c.UDP, c.ICMP, c.Other))
}
