package identity

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/postern/postern/flow"
)

// Config is where it is found out who is behind addresses.
type Config struct {
	// Inventory are files of addresses and who holds them.
	Inventory []InventoryConfig `yaml:"inventory"`
	// DHCP are the leases of DHCP servers.
	DHCP []DHCPConfig `yaml:"dhcp"`
	// HTTP are APIs, mapped with jq.
	HTTP []HTTPConfig `yaml:"http"`
	// LDAP are directories: who users and service accounts are, which groups they are in, and who may not log on.
	LDAP []LDAPConfig `yaml:"ldap"`
	// Sessions are logs of who logs on and off: Windows, RADIUS, VPNs.
	Sessions []SessionsConfig `yaml:"sessions"`
	// Kubernetes are clusters whose pods are watched.
	Kubernetes []KubernetesConfig `yaml:"kubernetes"`
}

// InventoryConfig is a file, or a folder of files, of addresses and who holds them.
type InventoryConfig struct {
	// Name is what this source is called in metrics, in stored flows and by `postern explain`.
	Name string `yaml:"name"`
	// Path is a file that ends in .csv, .yaml or .yml, or a folder of such files.
	Path string `yaml:"path"`
	// Every is the time from one read to the next; changes are seen at once where the system tells of them, else within seconds.
	Every time.Duration `yaml:"every"`
	// StaleAfter is how long after the last read what it said still counts; 0 is for ever.
	StaleAfter time.Duration `yaml:"staleAfter"`
}

// DHCPConfig is a DHCP server's leases.
type DHCPConfig struct {
	// Name is what this source is called in metrics, in stored flows and by `postern explain`.
	Name string `yaml:"name"`
	// Server is kea or isc.
	Server string `yaml:"server"`
	// Leases is the lease file that is followed: kea-leases4.csv or kea-leases6.csv of Kea's memfile, dhcpd.leases or dhcpd6.leases of ISC dhcpd.
	Leases string `yaml:"leases"`
	// Socket is, instead of a file, the control socket of a Kea server that has loaded libdhcp_lease_cmds.so.
	Socket string `yaml:"socket"`
	// URL is, instead of a file, that of Kea's control agent, or of a server that answers by HTTP itself.
	URL string `yaml:"url"`
	// AllowInsecure lets the URL of another machine be http://.
	AllowInsecure bool `yaml:"allowInsecure"`
	// Family is which addresses are asked for by socket or url: 4 or 6.
	Family int `yaml:"family"`
	// User logs in at url (HTTP basic authentication).
	User string `yaml:"user"`
	// Password is a reference to a secret (env:NAME or file:PATH), never the secret itself.
	Password string `yaml:"password"`
	// TLS is how to trust the server at url and how to show who we are.
	TLS TLSConfig `yaml:"tls"`
	// Timeout bounds one command by socket or url.
	Timeout time.Duration `yaml:"timeout"`
	// Every is the time between two heartbeats of a file, whose lines are read within a second; by socket and url the time from one whole read to the next.
	Every time.Duration `yaml:"every"`
	// StaleAfter is how long after the last look what leases said still counts; 0 is for ever.
	StaleAfter time.Duration `yaml:"staleAfter"`
}

// DefaultInventoryConfig is the configuration of somebody who named a file.
func DefaultInventoryConfig() InventoryConfig {
	return InventoryConfig{
		// A file is read again from time to time even if nothing says that it changed;
		// 20 MB take some milliseconds.
		Every: time.Minute,
		// An inventory is kept by people. What goes stale here is only the reading of it:
		// a disk or a share that is away.
		StaleAfter: time.Hour,
	}
}

// DefaultDHCPConfig is the configuration of somebody who said where leases are.
func DefaultDHCPConfig() DHCPConfig {
	return DHCPConfig{
		Server: "kea", Family: 4,
		// Kea answers a page of 1,024 leases within milliseconds.
		Timeout: 10 * time.Second,
		// Addresses change hands within minutes, and inside a poll nothing is certain.
		Every: 15 * time.Second,
		// Twenty looks that failed.
		StaleAfter: 5 * time.Minute,
	}
}

// UnmarshalYAML begins with the defaults, so that 0s can mean what it says.
func (c *InventoryConfig) UnmarshalYAML(unmarshal func(any) error) error {
	type plain InventoryConfig
	*c = DefaultInventoryConfig()
	return unmarshal((*plain)(c))
}

// UnmarshalYAML begins with the defaults, so that 0s can mean what it says.
func (c *DHCPConfig) UnmarshalYAML(unmarshal func(any) error) error {
	type plain DHCPConfig
	*c = DefaultDHCPConfig()
	return unmarshal((*plain)(c))
}

// UnmarshalYAML begins with the defaults, so that 0s can mean what it says.
func (c *HTTPConfig) UnmarshalYAML(unmarshal func(any) error) error {
	type plain HTTPConfig
	*c = DefaultHTTPConfig()
	return unmarshal((*plain)(c))
}

// UnmarshalYAML begins with the defaults, so that 0s can mean what it says.
func (c *LDAPConfig) UnmarshalYAML(unmarshal func(any) error) error {
	type plain LDAPConfig
	*c = DefaultLDAPConfig()
	return unmarshal((*plain)(c))
}

var sourceNameForm = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$`)

// validSourceName says what is wrong with a source's name, which is also that of files.
func validSourceName(name string) error {
	if !sourceNameForm.MatchString(name) {
		return fmt.Errorf("name: %q cannot name a source; use 1 to 64 letters, digits, dots, - and _, such as office", name)
	}
	return nil
}

func validPoll(every, staleAfter time.Duration) (errs []error) {
	if every < time.Second || every > 24*time.Hour {
		errs = append(errs, fmt.Errorf("every: %v is out of range; it must lie between 1s and 24h", every))
	}
	if staleAfter != 0 && staleAfter < every {
		errs = append(errs, fmt.Errorf("staleAfter: %v is shorter than every (%v), so that all would be stale before it is read again; use at least twice as long", staleAfter, every))
	}
	return errs
}

func validTimeout(timeout time.Duration) error {
	if timeout < time.Second || timeout > 10*time.Minute {
		return fmt.Errorf("timeout: %v is out of range; it must lie between 1s and 10m", timeout)
	}
	return nil
}

// readSecret reads what the value of a key refers to.
func readSecret(resolve func(ref string) (string, error), key, ref string) (string, error) {
	if resolve == nil {
		return "", fmt.Errorf("%s: nobody is here to read the secret it refers to", key)
	}
	v, err := resolve(ref)
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	return v, nil
}

// Validate says what is wrong and what would be right, all of it at once; each error
// begins with its key. It reads no file and connects to nothing.
func (c Config) Validate() error {
	var errs []error
	names := map[string]string{}
	check := func(kind string, i int, name string, err error) {
		key := fmt.Sprintf("%s[%d]", kind, i)
		if err != nil {
			errs = append(errs, prefixed(key+".", err)...)
		}
		if other, twice := names[name]; twice && name != "" {
			errs = append(errs, fmt.Errorf("%s.name: %q is also that of %s; give each source a name of its own", key, name, other))
		}
		names[name] = key
	}
	for i, s := range c.Inventory {
		check("inventory", i, s.Name, s.Validate())
	}
	for i, s := range c.DHCP {
		check("dhcp", i, s.Name, s.Validate())
	}
	for i, s := range c.HTTP {
		check("http", i, s.Name, s.Validate())
	}
	for i, s := range c.LDAP {
		check("ldap", i, s.Name, s.Validate())
	}
	for i, s := range c.Sessions {
		check("sessions", i, s.Name, s.Validate())
	}
	for i, s := range c.Kubernetes {
		check("kubernetes", i, s.Name, s.Validate())
	}
	return errors.Join(errs...)
}

// Has says whether there is a source of that name.
func (c Config) Has(name string) bool {
	return slices.ContainsFunc(c.Inventory, func(s InventoryConfig) bool { return s.Name == name }) ||
		slices.ContainsFunc(c.DHCP, func(s DHCPConfig) bool { return s.Name == name }) ||
		slices.ContainsFunc(c.HTTP, func(s HTTPConfig) bool { return s.Name == name }) ||
		slices.ContainsFunc(c.LDAP, func(s LDAPConfig) bool { return s.Name == name }) ||
		slices.ContainsFunc(c.Sessions, func(s SessionsConfig) bool { return s.Name == name }) ||
		slices.ContainsFunc(c.Kubernetes, func(s KubernetesConfig) bool { return s.Name == name })
}

// prefixed puts a key before each of the errors that were joined.
func prefixed(key string, err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{fmt.Errorf("%s%w", key, err)}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, prefixed(key, e)...)
	}
	return out
}

// Validate says what is wrong and what would be right; each error begins with its key.
func (c InventoryConfig) Validate() error {
	errs := []error{validSourceName(c.Name)}
	if c.Path == "" {
		errs = append(errs, errors.New("path: is empty; name a file such as /etc/postern/inventory.csv, or a folder"))
	} else if ext := filepath.Ext(c.Path); ext != "" && !isInventoryFile(c.Path) {
		errs = append(errs, fmt.Errorf("path: files that end in %s are not known; use .csv, .yaml or .yml, or a folder of them", ext))
	}
	return errors.Join(append(errs, validPoll(c.Every, c.StaleAfter)...)...)
}

// Validate says what is wrong and what would be right; each error begins with its key.
func (c DHCPConfig) Validate() error {
	errs := []error{validSourceName(c.Name)}
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	ways := 0
	for _, way := range []string{c.Leases, c.Socket, c.URL} {
		if way != "" {
			ways++
		}
	}
	switch {
	case c.Server != "kea" && c.Server != "isc":
		bad("server: %q is not known; use kea or isc", c.Server)
	case ways != 1:
		bad("leases: name one of leases (a file), socket and url")
	case c.Server == "isc" && c.Leases == "":
		bad("leases: is empty; ISC dhcpd has a lease file only, such as /var/lib/dhcp/dhcpd.leases")
	}
	if c.URL != "" {
		u, err := url.Parse(c.URL)
		switch {
		case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "":
			bad("url: must read https://host:port/")
		case u.User != nil:
			bad("url: holds user information, which ends up in logs; use user and password")
		case u.Scheme == "http" && !c.AllowInsecure && !thisMachine(u.Hostname()):
			bad("url: has no TLS: anyone on the path could say who has which address; use https://, or set allowInsecure")
		}
	} else if c.User != "" || c.Password != "" || c.TLS != (TLSConfig{}) {
		bad("url: is empty, so user, password and tls have no use; take them out")
	}
	if (c.User == "") != (c.Password == "") {
		bad("user: goes with password; give both or neither")
	}
	if c.Family != 4 && c.Family != 6 {
		bad("family: %d is none; write 4 or 6", c.Family)
	}
	errs = append(errs, c.TLS.validate()...)
	errs = append(errs, validTimeout(c.Timeout))
	return errors.Join(append(errs, validPoll(c.Every, c.StaleAfter)...)...)
}

// newDHCP makes a source of a DHCP server's leases.
func newDHCP(cfg DHCPConfig, resolve func(ref string) (string, error), stateDir string, clock func() flow.Time, log *slog.Logger, met *metrics) (Source, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	l := newLeases(cfg.Name, cfg.Every, cfg.StaleAfter, stateDir, clock, log, met)
	switch {
	case cfg.Leases != "" && cfg.Server == "isc":
		return newISCFile(l, cfg.Leases), nil
	case cfg.Leases != "":
		return newKeaFile(l, cfg.Leases), nil
	}
	k := &keaCommands{leases: l, v6: cfg.Family == 6, page: keaPage}
	k.snapshots = true
	if cfg.Socket != "" {
		k.ask = keaSocket(cfg.Socket, cfg.Timeout)
		return k, nil
	}
	client, err := boundedHTTPClient(cfg.TLS, "", cfg.Timeout)
	if err != nil {
		return nil, err
	}
	header := func() (http.Header, error) {
		h := http.Header{"Content-Type": {"application/json"}, "User-Agent": {"postern"}}
		if cfg.Password == "" {
			return h, nil
		}
		secret, err := readSecret(resolve, "password", cfg.Password)
		if err != nil {
			return nil, err
		}
		h.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(cfg.User+":"+secret)))
		return h, nil
	}
	if _, err := header(); err != nil {
		return nil, err
	}
	k.ask = keaHTTP(client, cfg.URL, header)
	return k, nil
}

// Options are what sources work with besides their configuration.
type Options struct {
	// Resolve turns a reference to a secret (env:NAME, file:PATH) into the secret; it may
	// be nil where the configuration has none.
	Resolve func(ref string) (string, error)
	// StateDir is where sources keep what they told, so that a restart tells differences
	// only. It belongs to what they tell to: where that begins anew, so must this.
	StateDir string
	// Domains says which spellings of a user's domain are the same; it may be nil.
	Domains *flow.Domains
	// Clock gives the time of reading.
	Clock func() flow.Time
	// Logger may be nil.
	Logger *slog.Logger
	// Metrics is where metrics are registered; it may be nil.
	Metrics prometheus.Registerer
}

// New makes every source of a configuration. It reads certificates and whether there are
// secrets, and does no other I/O.
func New(cfg Config, opts Options) ([]Source, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if opts.Clock == nil {
		opts.Clock = func() flow.Time { return flow.TimeOf(time.Now()) }
	}
	met, err := newMetrics(opts.Metrics)
	if err != nil {
		return nil, err
	}
	var out []Source
	add := func(kind string, i int, s Source, err error) error {
		if err != nil {
			met.unregister()
			return fmt.Errorf("%s[%d]: %w", kind, i, err)
		}
		out = append(out, s)
		return nil
	}
	for i, c := range cfg.Inventory {
		s, err := newInventory(c, opts.StateDir, opts.Clock, opts.Logger, met)
		if err := add("inventory", i, s, err); err != nil {
			return nil, err
		}
	}
	for i, c := range cfg.DHCP {
		s, err := newDHCP(c, opts.Resolve, opts.StateDir, opts.Clock, opts.Logger, met)
		if err := add("dhcp", i, s, err); err != nil {
			return nil, err
		}
	}
	for i, c := range cfg.HTTP {
		s, err := newHTTP(c, opts.Resolve, opts.StateDir, opts.Clock, opts.Logger, met)
		if err := add("http", i, s, err); err != nil {
			return nil, err
		}
	}
	for i, c := range cfg.LDAP {
		s, err := newLDAP(c, opts.Resolve, opts.Domains, opts.StateDir, opts.Clock, opts.Logger, met)
		if err := add("ldap", i, s, err); err != nil {
			return nil, err
		}
	}
	for i, c := range cfg.Sessions {
		s, err := newSessions(c, opts.StateDir, opts.Clock, opts.Logger, met)
		if err := add("sessions", i, s, err); err != nil {
			return nil, err
		}
	}
	for i, c := range cfg.Kubernetes {
		s, err := newKubernetes(c, opts.Resolve, opts.StateDir, opts.Clock, opts.Logger, met)
		if err := add("kubernetes", i, s, err); err != nil {
			return nil, err
		}
	}
	return out, nil
}
