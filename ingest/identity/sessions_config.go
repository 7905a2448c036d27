package identity

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/postern/postern/ingest/agent"
)

// SessionsConfig is a log of who logs on and off. Its lines come by ingest.logs: http (at
// /v1/events/NAME), files or syslog, which name it.
type SessionsConfig struct {
	// Name is what this source is called in metrics, in stored flows, in URLs and by `postern explain`.
	Name string `yaml:"name"`
	// Format is what wrote the log: windows-logon, radius or custom.
	Format string `yaml:"format"`
	// Hosts are the names of sources that say at which addresses a host is, for logs that name the host and not its address. Whoever may write there may move a user to an address.
	Hosts []string `yaml:"hosts"`
	// Idle is how long after the last word of a session it is taken to go on; 0 is until its end is told.
	Idle time.Duration `yaml:"idle"`
	// MaxLength is how long a session lasts at most whose end is not told; 0 is for ever.
	MaxLength time.Duration `yaml:"maxLength"`
	// StaleAfter is how long after the newest event what the log said still counts; 0 is for ever.
	StaleAfter time.Duration `yaml:"staleAfter"`

	agent.EventConfig `yaml:",inline"`
}

// DefaultSessionsConfig is the configuration of somebody who named a log.
func DefaultSessionsConfig() SessionsConfig {
	return SessionsConfig{
		// Nobody stays logged on for longer than a working day and a night without the log
		// saying so; an end that was lost costs no more.
		MaxLength:   24 * time.Hour,
		EventConfig: agent.EventConfig{LogonTypes: agent.DefaultLogonTypes()},
	}
}

// UnmarshalYAML begins with the defaults, so that 0s can mean what it says.
func (c *SessionsConfig) UnmarshalYAML(unmarshal func(any) error) error {
	type plain SessionsConfig
	*c = DefaultSessionsConfig()
	return unmarshal((*plain)(c))
}

// Validate says what is wrong and what would be right; each error begins with its key.
func (c SessionsConfig) Validate() error {
	errs := []error{validSourceName(c.Name)}
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if _, err := agent.EventFormatOf(c.Format); err != nil {
		bad("format: %w", err)
	} else if _, err := agent.NewEventDecoder(c.Format, c.EventConfig, 1); err != nil {
		errs = append(errs, err)
	}
	switch {
	case c.Format == "custom":
	case c.Custom != nil:
		bad("custom: is for format custom, this one is %s; take it out", c.Format)
	}
	if c.Format == "windows-logon" {
		if len(c.Hosts) == 0 && !c.Clients {
			bad("hosts: is empty, and Windows names hosts without their addresses; name a source that knows them, such as dhcp")
		}
		if slices.Contains(c.LogonTypes, 3) && !c.Clients {
			bad("logonTypes: 3 is a logon over the network, which says something of the client only; set clients, or take it out")
		}
	} else if c.Clients {
		bad("clients: is for format windows-logon, this one is %s; take it out", c.Format)
	}
	if slices.Contains(c.Hosts, c.Name) {
		bad("hosts: has %s itself; name other sources", c.Name)
	}
	for _, d := range []struct {
		key   string
		value time.Duration
		most  time.Duration
	}{{"idle", c.Idle, 366 * 24 * time.Hour}, {"maxLength", c.MaxLength, 366 * 24 * time.Hour}, {"staleAfter", c.StaleAfter, 366 * 24 * time.Hour}} {
		if d.value < 0 || d.value > d.most || d.value > 0 && d.value < time.Second {
			bad("%s: %v is out of range; it must be 0, or lie between 1s and %v", d.key, d.value, d.most)
		}
	}
	if c.MaxLength > 0 && c.Idle > c.MaxLength {
		bad("idle: %v is longer than maxLength (%v), so that it has no use; make it shorter or 0", c.Idle, c.MaxLength)
	}
	if c.ZoneOffset < -14*time.Hour || c.ZoneOffset > 14*time.Hour {
		bad("zoneOffset: %v is out of range; it must lie between -14h and 14h", c.ZoneOffset)
	}
	return errors.Join(errs...)
}
