package enrich

import (
	"fmt"
	"time"
)

// Config says how records are oriented and paired.
type Config struct {
	// Window is for how long, in event time, a record waits for its other half
	// where that would change its verdict. 15s unless said otherwise; 1s to 5m.
	Window time.Duration `yaml:"window"`
	// MaxHeld bounds the records that wait or are remembered as the half of one
	// that waits. Beyond it records are judged without their other half and counted.
	MaxHeld int `yaml:"maxHeld"`
	// ClockTolerance caps event time at receipt plus this, so that one exporter
	// with a clock ahead cannot end every wait. Zero believes the exporters, as
	// replay does. Set by the caller from ingest's setting.
	ClockTolerance time.Duration `yaml:"-"`
}

// DefaultConfig gives the defaults.
func DefaultConfig() Config {
	return Config{
		Window: 15 * time.Second, // SEMANTICS, "One record"
		// 64 Ki entries of about 450 bytes are 30 MB. Only denied or undecided
		// one-way records wait: at 2,000 of them a second for 30 s, 60,000.
		MaxHeld: 64 << 10,
	}
}

// Validate says what is wrong with the configuration and what would be right.
func (c *Config) Validate() error {
	if c.Window < time.Second || c.Window > 5*time.Minute {
		return fmt.Errorf("enrich.window is %v; write a duration from 1s to 5m, such as 15s", c.Window)
	}
	if c.MaxHeld < 1 || c.MaxHeld > 1<<24 {
		return fmt.Errorf("enrich.maxHeld is %d; write a number from 1 to %d", c.MaxHeld, 1<<24)
	}
	return nil
}
