package detect

import (
	"fmt"
	"time"
)

// BehaviourConfig says how the detectors that look at how hosts behave work: what they learn as
// normal, how long they remember it, and how much.
type BehaviourConfig struct {
	// Learn is how long after the first traffic nothing is held to be unusual merely for being
	// new: what was seen until then is the baseline. Findings say so meanwhile.
	Learn time.Duration `yaml:"learn"`
	// Remember is how long after it was seen last an edge is still known. What happens once a
	// month is new each time with less.
	Remember time.Duration `yaml:"remember"`
	// PassEvery is how often an edge that is known is looked at again at most, where it is remote
	// administration or an exception allows it.
	PassEvery time.Duration `yaml:"passEvery"`
	// MaxEdges bounds the edges remembered, by process and partition. Beyond it those that were
	// never answered are forgotten first, those between segments last, and told of.
	MaxEdges int `yaml:"maxEdges"`
	// MaxHosts bounds the hosts whose behaviour is followed. Beyond it those seen longest ago are
	// forgotten, counted and told of.
	MaxHosts int `yaml:"maxHosts"`
	// FirstSeen says how edges seen for the first time are told of.
	FirstSeen FirstSeenConfig `yaml:"firstSeen"`
	// FanOut says from when on reaching many is too many.
	FanOut FanOutConfig `yaml:"fanOut"`
	// Scan says what is a scan.
	Scan ScanConfig `yaml:"scan"`
	// News says when the use of an exception is told to its owner and its requester.
	News NewsConfig `yaml:"news"`
	// Chain says which ways from host to host are told of.
	Chain ChainConfig `yaml:"chain"`
	// Blocked says from when on a source that is denied is told of.
	Blocked BlockedConfig `yaml:"blocked"`
	// Beacon says what is a beacon.
	Beacon BeaconConfig `yaml:"beacon"`
	// Staging says when one that gathers from many and sends it on is told of.
	Staging StagingConfig `yaml:"staging"`
	// Blind says when it is told that something is not seen any more.
	Blind BlindConfig `yaml:"blind"`
}

// DefaultBehaviourConfig gives the defaults.
func DefaultBehaviourConfig() BehaviourConfig {
	return BehaviourConfig{
		Learn:     5 * 24 * time.Hour,  // a working week
		Remember:  45 * 24 * time.Hour, // what comes once a month, and a fortnight
		PassEvery: 10 * time.Minute,
		// At most 32 bytes each while the table grows: 128 MB at the cap; 10,000 hosts with 50
		// edges each and their pairs need a quarter of it.
		MaxEdges: 4 << 20,
		// About 1 kB each with all detectors' state: 256 MB at the cap.
		MaxHosts:  256 << 10,
		FirstSeen: DefaultFirstSeenConfig(),
		FanOut:    DefaultFanOutConfig(),
		Scan:      defaultScanConfig(),
		News:      DefaultNewsConfig(),
		Chain:     DefaultChainConfig(),
		Blocked:   DefaultBlockedConfig(),
		Beacon:    DefaultBeaconConfig(),
		Staging:   DefaultStagingConfig(),
		Blind:     DefaultBlindConfig(),
	}
}

// Validate says what is wrong with the configuration and what would be right.
func (c *BehaviourConfig) Validate() error {
	for _, d := range []struct {
		key         string
		v           time.Duration
		least, most time.Duration
	}{
		{"learn", c.Learn, 0, 90 * 24 * time.Hour}, {"remember", c.Remember, 24 * time.Hour, 400 * 24 * time.Hour},
		{"passEvery", c.PassEvery, time.Minute, 24 * time.Hour},
	} {
		if d.v < d.least || d.v > d.most {
			return fmt.Errorf("detect.behaviour.%s is %v; write a duration from %v to %v", d.key, d.v, d.least, d.most)
		}
	}
	for _, n := range []struct {
		key string
		v   int
	}{{"maxEdges", c.MaxEdges}, {"maxHosts", c.MaxHosts}} {
		if n.v < 1024 || n.v > 1<<28 {
			return fmt.Errorf("detect.behaviour.%s is %d; write a number from 1024 to %d", n.key, n.v, 1<<28)
		}
	}
	if err := c.FirstSeen.validate(); err != nil {
		return err
	}
	if err := c.FanOut.validate(); err != nil {
		return err
	}
	if err := c.Blind.validate(); err != nil {
		return err
	}
	if err := c.Beacon.validate(); err != nil {
		return err
	}
	if err := c.Staging.validate(); err != nil {
		return err
	}
	if err := c.Scan.validate(); err != nil {
		return err
	}
	if err := c.Blocked.validate(); err != nil {
		return err
	}
	if err := c.News.validate(); err != nil {
		return err
	}
	return c.Chain.validate()
}

// again is for how long what a host goes on with, once told, is no alert of its own.
func (c *BehaviourConfig) again() time.Duration {
	return time.Duration(c.FanOut.SlowDays) * 24 * time.Hour
}
