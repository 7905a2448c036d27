package sink

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"time"
)

// ClickHouseConfig says where rows go and how long they stay.
type ClickHouseConfig struct {
	// URL is `embedded` for the engine inside this process, or a server:
	// clickhouse://user@host:9000 (native protocol; 9440 with tls.enabled),
	// http://user@host:8123 or https://user@host:8443. It holds no password.
	URL string `yaml:"url"`
	// Database is where all tables live; it is created if missing.
	Database string `yaml:"database"`
	// User overrides the user in the URL.
	User string `yaml:"user"`
	// Password is a reference to a secret (env:NAME or file:PATH), never the secret itself.
	Password string `yaml:"password"`
	// TLS is used with clickhouse:// if enabled and always with https://.
	TLS ClickHouseTLSConfig `yaml:"tls"`
	// Compression of inserts on the wire: none, lz4 or zstd.
	Compression string `yaml:"compression"`
	// Cluster puts the tables on a cluster of servers.
	Cluster ClusterConfig `yaml:"cluster"`
	// Timeouts bound every exchange with the server.
	Timeouts ClickHouseTimeouts `yaml:"timeouts"`
	// Retention says how long rows of each table stay, counted from when they were inserted.
	Retention RetentionConfig `yaml:"retention"`
	// Rollup is when the hourly roll-up is compared with the sessions it was made of.
	Rollup RollupConfig `yaml:"rollup"`
}

// RollupConfig says when the hourly roll-up is compared with the sessions it was made of. Where an
// hour differs that nothing can change any more, it is made anew.
type RollupConfig struct {
	// CheckAt is the time of day in UTC, such as 03:10; empty never checks.
	CheckAt string `yaml:"checkAt"`
	// Days is how many days back hours are compared, 1 to 400.
	Days int `yaml:"days"`
}

// At is CheckAt since midnight; ok is false if there is no check.
func (c *RollupConfig) At() (at time.Duration, ok bool, err error) {
	if c.CheckAt == "" {
		return 0, false, nil
	}
	t, err := time.Parse("15:04", c.CheckAt)
	if err != nil {
		return 0, false, fmt.Errorf("clickhouse.rollup.checkAt %q is no time of day; write hours and minutes, such as 03:10", c.CheckAt)
	}
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, true, nil
}

func (c *RollupConfig) validate() (errs []error) {
	if _, _, err := c.At(); err != nil {
		errs = append(errs, err)
	}
	if c.Days < 1 || c.Days > 400 {
		errs = append(errs, fmt.Errorf("clickhouse.rollup.days is %d; it must be from 1 to 400", c.Days))
	}
	return errs
}

// ClickHouseTLSConfig is how to trust the server and how to show who we are.
type ClickHouseTLSConfig struct {
	// Enabled turns TLS on for clickhouse:// URLs; https:// always has it.
	Enabled bool `yaml:"enabled"`
	// CA is a PEM file of the authorities that may sign the server's certificate; the system's if empty.
	CA string `yaml:"ca"`
	// Cert is a PEM file of our own certificate, for servers that ask for one.
	Cert string `yaml:"cert"`
	// Key is the PEM file of Cert's private key.
	Key string `yaml:"key"`
	// ServerName is the name the certificate must be for, if not the URL's host.
	ServerName string `yaml:"serverName"`
	// InsecureSkipVerify accepts any certificate: anyone on the path may then read and alter everything.
	InsecureSkipVerify bool `yaml:"insecureSkipVerify"`
}

// ClickHouseTimeouts bound every exchange with the server.
type ClickHouseTimeouts struct {
	// Dial is for making a connection.
	Dial time.Duration `yaml:"dial"`
	// Insert is for one insert, from sending to the server's answer.
	Insert time.Duration `yaml:"insert"`
	// Query is for one question Postern asks on its own behalf.
	Query time.Duration `yaml:"query"`
	// Migration is for one statement of a migration.
	Migration time.Duration `yaml:"migration"`
}

// RetentionConfig says how long rows stay after they were inserted. Zero keeps
// them for ever. Whole parts are dropped, so rows may stay up to a day (flows,
// sessions, exporters, ledger) or a month (edges, findings) longer.
type RetentionConfig struct {
	// Flows are raw judged flows, by far the largest table.
	Flows time.Duration `yaml:"flows"`
	// Sessions are what all observers together say of a conversation, one row a version.
	Sessions time.Duration `yaml:"sessions"`
	// Edges are the hourly roll-up of sessions: who talks to whom by which service, and its verdict.
	Edges time.Duration `yaml:"edges"`
	// Findings are findings and what each batch added to them.
	Findings time.Duration `yaml:"findings"`
	// BlindSpots are the stretches of time in which something was not seen.
	BlindSpots time.Duration `yaml:"blindSpots"`
	// Feedback is who judged which finding how.
	Feedback time.Duration `yaml:"feedback"`
	// PolicyVersions are the policies that were in force, in full and taken apart.
	PolicyVersions time.Duration `yaml:"policyVersions"`
	// Exporters are snapshots of who exports.
	Exporters time.Duration `yaml:"exporters"`
	// Ledger are snapshots of the loss ledgers.
	Ledger time.Duration `yaml:"ledger"`
}

// URLEmbedded is the URL that means the engine inside this process.
const URLEmbedded = "embedded"

const day = 24 * time.Hour

// DefaultClickHouseConfig is the configuration of somebody who said nothing.
func DefaultClickHouseConfig() ClickHouseConfig {
	return ClickHouseConfig{
		URL:         URLEmbedded,
		Database:    "postern",
		Cluster:     ClusterConfig{Quorum: "auto"}, // most replicas of a shard: one may be lost
		Compression: "none",                        // embedded and in one data centre bytes are cheaper than LZ4's time
		Timeouts: ClickHouseTimeouts{
			Dial: 5 * time.Second,
			// The largest block is some 30 MB; at 10 MB/s that is 3 s, and a server
			// busy with merges may take ten times that.
			Insert:    30 * time.Second,
			Query:     30 * time.Second,
			Migration: 10 * time.Minute, // an ALTER waits for the parts it rewrites
		},
		// At night, when little else asks; a week, so that an hour that had to wait comes again.
		Rollup: RollupConfig{CheckAt: "03:10", Days: 7},
		Retention: RetentionConfig{
			// 30 days of 1,000 flows/s at some 50 bytes a row are 130 GB.
			Flows: 30 * day,
			// As long as the flows they were made of.
			Sessions: 30 * day,
			// A year to compare with, and as long as the findings: 100,000 edges an hour
			// at some 14 bytes a row are 14 GB.
			Edges: 400 * day,
			// A year's audit asked for a month late.
			Findings:   400 * day,
			BlindSpots: 400 * day, // as long as the edges and findings that are not to be believed without them
			Feedback:   400 * day, // as long as what it speaks of
			// An exception's use is recognised up to 180 days after its end, and a
			// finding that is still kept names its policy: never shorter than findings.
			// Policies are small (some kilobytes a version), so for ever is cheap.
			PolicyVersions: 0,
			Exporters:      90 * day,  // long enough to see a quarter's changes
			Ledger:         400 * day, // evidence of what was and was not seen, as long as the findings
		},
	}
}

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)

// Validate says what is wrong and what would be right; all of it at once.
func (c *ClickHouseConfig) Validate() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if _, err := c.target(); err != nil {
		errs = append(errs, err)
	}
	if !identifier.MatchString(c.Database) {
		bad("clickhouse.database %q is no plain name; use letters, digits and underscores, such as postern", c.Database)
	} else if c.Database == "default" || c.Database == "system" {
		bad("clickhouse.database must not be %s; use a database of its own, such as postern", c.Database)
	}
	if _, ok := compressions[c.Compression]; !ok {
		bad("clickhouse.compression %q is not known; use none, lz4 or zstd", c.Compression)
	}
	if (c.TLS.Cert == "") != (c.TLS.Key == "") {
		bad("clickhouse.tls has only one of cert and key; give both or neither")
	}
	errs = append(errs, c.Cluster.validate(c.URL == URLEmbedded)...)
	errs = append(errs, c.Rollup.validate()...)
	for _, t := range []struct {
		name string
		d    time.Duration
	}{{"dial", c.Timeouts.Dial}, {"insert", c.Timeouts.Insert}, {"query", c.Timeouts.Query}, {"migration", c.Timeouts.Migration}} {
		if t.d <= 0 {
			bad("clickhouse.timeouts.%s is %v; it must be above zero, such as 30s", t.name, t.d)
		}
	}
	for i, r := range c.Retention.byTable() {
		if i > 0 && r.key == c.Retention.byTable()[i-1].key {
			continue // several tables, one key
		}
		if r.keep < 0 || r.keep > 0 && r.keep < time.Hour {
			bad("clickhouse.retention.%s is %v; use 0 for ever or at least 1h", r.key, r.keep)
		}
	}
	if p := c.Retention.PolicyVersions; p != 0 && (p < c.Retention.Findings || c.Retention.Findings == 0) {
		bad("clickhouse.retention.policyVersions (%v) is shorter than findings (%v), which name the policy they were judged by; use 0 or more",
			p, c.Retention.Findings)
	}
	return errors.Join(errs...)
}

// target is where a URL leads.
type target struct {
	embedded, http, tls bool
	addr, user          string
}

func (c *ClickHouseConfig) target() (target, error) {
	if c.URL == URLEmbedded {
		return target{embedded: true, http: true, user: c.User}, nil
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		// url.Error repeats its input, which may hold a password.
		return target{}, errors.New("clickhouse.url is no URL; use embedded, clickhouse://user@host:9000, http://host:8123 or https://host:8443")
	}
	t := target{user: c.User, tls: c.TLS.Enabled}
	var port int
	switch u.Scheme {
	case "clickhouse":
		if port = 9000; t.tls {
			port = 9440
		}
	case "http":
		if port, t.http = 8123, true; t.tls {
			return target{}, errors.New("clickhouse.url is http:// while clickhouse.tls.enabled is true; use https://")
		}
	case "https":
		port, t.http, t.tls = 8443, true, true
	default:
		return target{}, fmt.Errorf("clickhouse.url has the scheme %q; use embedded, clickhouse://, http:// or https://", u.Scheme)
	}
	if _, has := u.User.Password(); has {
		return target{}, errors.New("clickhouse.url holds a password; take it out and set clickhouse.password to env:NAME or file:PATH")
	}
	if u.Hostname() == "" {
		return target{}, errors.New("clickhouse.url names no host; write it as clickhouse://user@host:9000")
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return target{}, errors.New("clickhouse.url has parameters; set them under clickhouse: in the configuration")
	}
	if p := u.Path; p != "" && p != "/" && p != "/"+c.Database {
		return target{}, fmt.Errorf("clickhouse.url names the database %q, clickhouse.database %q; say it once, as clickhouse.database", p[1:], c.Database)
	}
	if t.user == "" {
		t.user = u.User.Username()
	}
	if p := u.Port(); p != "" {
		if port, err = strconv.Atoi(p); err != nil {
			return target{}, fmt.Errorf("clickhouse.url has the port %q; use a number", p)
		}
	}
	t.addr = net.JoinHostPort(u.Hostname(), strconv.Itoa(port))
	return t, nil
}

func (c *ClickHouseTLSConfig) config(host string) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.ServerName, InsecureSkipVerify: c.InsecureSkipVerify} //nolint:gosec // only where the configuration says so
	if t.ServerName == "" {
		t.ServerName = host
	}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("clickhouse.tls.ca: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("clickhouse.tls.ca: %s holds no certificate; it must be a PEM file", c.CA)
		}
	}
	if c.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
		if err != nil {
			return nil, fmt.Errorf("clickhouse.tls.cert and key: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

type tableRetention struct {
	key, table string
	keep       time.Duration
}

func (r *RetentionConfig) byTable() []tableRetention {
	return []tableRetention{
		{"flows", "flows", r.Flows},
		{"sessions", "session_versions", r.Sessions},
		{"edges", "edge_hours", r.Edges},
		{"edges", "edge_days", r.Edges},
		{"findings", "finding_contributions", r.Findings},
		{"blindSpots", "blind_spot_versions", r.BlindSpots},
		{"feedback", "feedback", r.Feedback},
		{"policyVersions", "policy_versions", r.PolicyVersions},
		{"policyVersions", "exception_versions", r.PolicyVersions},
		{"policyVersions", "segment_versions", r.PolicyVersions},
		{"policyVersions", "workload_versions", r.PolicyVersions},
		{"policyVersions", "rule_versions", r.PolicyVersions},
		{"policyVersions", "coverage_versions", r.PolicyVersions},
		{"exporters", "exporters", r.Exporters},
		{"ledger", "ledger", r.Ledger},
	}
}
