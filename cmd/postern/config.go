package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/postern/postern/detect"
	"github.com/postern/postern/enrich"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/intake"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/sink"
	"github.com/postern/postern/sink/embedded"
	"github.com/postern/postern/sink/siem"
)

// config is postern.yaml: each package's own configuration under one roof.
type config struct {
	// Data is the directory for everything that must last: spool, checkpoints, outbox, tokens, the embedded database.
	Data string `yaml:"data"`
	// Log says how much is logged, and how.
	Log logConfig `yaml:"log"`
	// Ingest is how flows come in.
	Ingest ingestConfig `yaml:"ingest"`
	// Kafka carries flows and findings between the roles collect, detect and forward.
	Kafka kafka.Config `yaml:"kafka"`
	// Policy is where the policy is.
	Policy policyConfig `yaml:"policy"`
	// Identity is who is behind addresses: where that is found out, and how it is joined.
	Identity identityConfig `yaml:"identity"`
	// Enrich bounds the wait for the other half of a conversation.
	Enrich enrich.Config `yaml:"enrich"`
	// Sessions is how observations of one conversation are merged.
	Sessions enrich.SessionsConfig `yaml:"sessions"`
	// Detect is how findings are made and told.
	Detect detect.Config `yaml:"detect"`
	// ClickHouse is where rows go.
	ClickHouse sink.ClickHouseConfig `yaml:"clickhouse"`
	// Embedded is the ClickHouse engine inside this process, used while clickhouse.url is `embedded`.
	Embedded embedded.Config `yaml:"embedded"`
	// Targets are who is told of findings.
	Targets []siem.TargetConfig `yaml:"targets"`
	// Outbox bounds what waits for each target.
	Outbox siem.OutboxConfig `yaml:"outbox"`
	// Admin is the address for operators.
	Admin adminConfig `yaml:"admin"`
	// Shutdown is how long a stop may take to work through what was received already.
	Shutdown time.Duration `yaml:"shutdown"`
}

// ingestConfig is how flows come in.
type ingestConfig struct {
	// NetFlow receives NetFlow v5, v9 and IPFIX; an empty address turns it off.
	NetFlow ingest.ListenerConfig `yaml:"netflow"`
	// SFlow receives sFlow v5; an empty address turns it off.
	SFlow ingest.ListenerConfig `yaml:"sflow"`
	// Logs is how logs of agents, clouds and firewalls come in.
	Logs intake.Config `yaml:"logs"`
	// Kafka is how detectors read from Kafka, and what topics of others they read.
	Kafka kafkaIngestConfig `yaml:"kafka"`
	// Decode is how datagrams become records.
	Decode ingest.DecoderConfig `yaml:"decode"`
	// Spool is the local log that datagrams are appended to before anything else happens.
	Spool ingest.SpoolConfig `yaml:"spool"`
}

// logConfig says how much is logged, and how.
type logConfig struct {
	// Level is the least that is logged: debug, info, warn or error.
	Level slog.Level `yaml:"level"`
	// Format is text or json.
	Format string `yaml:"format"`
}

func defaultConfig() config {
	return config{
		Data: "postern-data",
		Log:  logConfig{Level: slog.LevelInfo, Format: "text"},
		Ingest: ingestConfig{
			NetFlow: ingest.DefaultListenerConfig("127.0.0.1:2055"),
			SFlow:   ingest.DefaultListenerConfig("127.0.0.1:6343"),
			Logs:    intake.DefaultConfig(),
			Kafka:   defaultKafkaIngest(),
			Decode:  ingest.DefaultDecoderConfig(),
			Spool:   ingest.DefaultSpoolConfig(),
		},
		Kafka:      kafka.DefaultConfig(),
		Policy:     policyConfig{Dir: "policy", Judge: policy.DefaultConfig()},
		Identity:   identityConfig{IdentityConfig: enrich.DefaultIdentityConfig()},
		Enrich:     enrich.DefaultConfig(),
		Sessions:   enrich.DefaultSessionsConfig(),
		Detect:     detect.DefaultConfig(),
		ClickHouse: sink.DefaultClickHouseConfig(),
		Embedded:   embedded.DefaultConfig(),
		Outbox:     siem.DefaultOutboxConfig(),
		Admin:      adminConfig{Listen: "127.0.0.1:9464"},
		// Working through a second of spool takes well below a second; the rest is
		// for a ClickHouse that is slow. What is left stays in the spool.
		Shutdown: 20 * time.Second,
	}
}

// loadConfig reads and checks a file; an empty path is the defaults. The error
// lists everything that is wrong, a line each.
func loadConfig(path string) (config, error) {
	c := defaultConfig()
	if path == "" {
		err := c.validate()
		return c, err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := parseYAML(path, raw, &c); err != nil {
		return c, err
	}
	for i := range c.Targets {
		c.Targets[i].Fill()
	}
	if err := c.validate(); err != nil {
		return c, locate(path, raw, err)
	}
	if err := c.Ingest.Logs.Decode.Compile(); err != nil {
		return c, locate(path, raw, keyError{"ingest.logs.decode", err})
	}
	return c, nil
}

// keyError is something wrong below a key of the configuration.
type keyError struct {
	key string
	err error
}

func (e keyError) Error() string { return e.key + ": " + e.err.Error() }
func (e keyError) Unwrap() error { return e.err }

func (c *config) validate() error {
	var errs []error
	check := func(key string, err error) {
		if err != nil {
			errs = append(errs, keyError{key, err})
		}
	}
	if c.Data == "" {
		check("data", errors.New("is empty; name a directory"))
	}
	if c.Log.Format != "text" && c.Log.Format != "json" {
		check("log.format", fmt.Errorf("%q is not known; use text or json", c.Log.Format))
	}
	if c.Ingest.NetFlow.Listen != "" {
		check("ingest.netflow", c.Ingest.NetFlow.Validate())
	}
	if c.Ingest.SFlow.Listen != "" {
		check("ingest.sflow", c.Ingest.SFlow.Validate())
	}
	check("ingest.logs", c.Ingest.Logs.Validate())
	check("ingest.decode", c.Ingest.Decode.Validate())
	check("ingest.spool", c.Ingest.Spool.Validate())
	if n := c.Ingest.Spool.ChunkRows; n > sink.MaxFlowRows { // it would be recorded with what waits, and refused for ever
		check("ingest.spool", fmt.Errorf("chunkRows is %d; an insert may have %d rows at most", n, sink.MaxFlowRows))
	}
	check("ingest.kafka", c.Ingest.Kafka.Validate(c.Ingest.Logs.Decode))
	check("kafka", c.Kafka.Validate())
	check("policy.judge", c.Policy.Judge.Validate())
	check("identity", c.Identity.IdentityConfig.Validate())
	check("identity", c.Identity.Sources.Validate())
	sessions := map[string]bool{}
	for i, s := range c.Identity.Sources.Sessions {
		sessions[s.Name] = true
		for j, host := range s.Hosts { // with Kafka it may be another process's
			if len(c.Kafka.Brokers) == 0 && !c.Identity.Sources.Has(host) {
				check(fmt.Sprintf("identity.sessions[%d].hosts[%d]", i, j), fmt.Errorf("%q is no source; name one of those under identity that say who has an address", host))
			}
		}
	}
	for i := range c.Ingest.Logs.Files {
		check(fmt.Sprintf("ingest.logs.files[%d].events", i), intake.KnownEvents(c.Ingest.Logs.Files[i].Events, sessions))
	}
	for i := range c.Ingest.Logs.Syslog {
		check(fmt.Sprintf("ingest.logs.syslog[%d].events", i), intake.KnownEvents(c.Ingest.Logs.Syslog[i].Events, sessions))
	}
	check("enrich", c.Enrich.Validate())
	check("sessions", c.Sessions.Validate())
	if c.Sessions.Lateness < c.Enrich.Window { // what waited for its other half would be late for its session
		check("sessions", fmt.Errorf("lateness is %v, shorter than enrich.window (%v), for which a record waits for its other half; write at least that",
			c.Sessions.Lateness, c.Enrich.Window))
	}
	check("detect", c.Detect.Validate())
	check("clickhouse", c.ClickHouse.Validate())
	if c.ClickHouse.URL == sink.URLEmbedded {
		e := c.Embedded
		if e.DataDir == "" {
			e.DataDir = filepath.Join(c.Data, "clickhouse") // as embeddedConfig completes it
		}
		check("embedded", e.Validate())
	}
	check("outbox", c.Outbox.Validate())
	secret := func(key, ref string) {
		if ref != "" {
			check(key, checkReference(ref))
		}
	}
	secret("clickhouse.password", c.ClickHouse.Password)
	secret("embedded.token", c.Embedded.Token)
	secret("embedded.readOnlyToken", c.Embedded.ReadOnlyToken)
	secret("admin.token", c.Admin.Token)
	secret("ingest.logs.http.token", c.Ingest.Logs.HTTP.Token)
	secret("kafka.sasl.password", c.Kafka.SASL.Password)
	names := map[string]bool{}
	for i := range c.Targets {
		t := &c.Targets[i]
		key := fmt.Sprintf("targets[%d]", i)
		check(key, t.Validate())
		refs := t.References()
		for _, k := range slices.Sorted(maps.Keys(refs)) {
			check(key+"."+k, checkReference(refs[k]))
		}
		if names[t.Name] {
			check(key+".name", fmt.Errorf("%q is used twice; each target has an outbox of its own", t.Name))
		}
		names[t.Name] = true
	}
	if c.Shutdown <= 0 {
		check("shutdown", errors.New("must be above zero, such as 20s"))
	}
	return errors.Join(errs...)
}

var leadingKey = regexp.MustCompile(`^[a-z][A-Za-z]*(\.[a-z][A-Za-z]*|\[\d+\])*`)

// locate puts file:line:column before each error that validating found.
func locate(path string, raw []byte, err error) error {
	var out []error
	list := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		list = joined.Unwrap()
	}
	for _, e := range list {
		key, message := "", e.Error()
		if k, ok := errors.AsType[keyError](e); ok {
			key = k.key
			if sub := leadingKey.FindString(k.err.Error()); sub != "" {
				if line, col := positionOf(raw, key+"."+sub); line > 1 || col > 1 {
					out = append(out, fmt.Errorf("%s:%d:%d: %s", path, line, col, message))
					continue
				}
			}
		}
		line, column := positionOf(raw, key)
		out = append(out, fmt.Errorf("%s:%d:%d: %s", path, line, column, message))
	}
	return errors.Join(out...)
}

// logger makes the process's logger.
func (c *config) logger() *slog.Logger {
	opts := &slog.HandlerOptions{Level: c.Log.Level}
	if c.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}
