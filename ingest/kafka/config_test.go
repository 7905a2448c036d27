package kafka

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// testConfig is the defaults with a broker nobody is at.
func testConfig() Config {
	c := DefaultConfig()
	c.Brokers = []string{"127.0.0.1:1"}
	return c
}

func TestConfigDefault(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	if DefaultConfig().Enabled() {
		t.Error("Kafka is used although nobody named a broker")
	}
	if c := testConfig(); !c.Enabled() || c.Topic(TopicFlows) != "postern.flows" {
		t.Errorf("%v %q", c.Enabled(), c.Topic(TopicFlows))
	}
}

func TestConfigYAML(t *testing.T) {
	c := DefaultConfig()
	err := yaml.Unmarshal([]byte(`
brokers: [kafka-1.example.net:9093, "[2001:db8::1]:9093"]
prefix: net
group: net-detect
clientID: net-1
tls: {enabled: true, ca: ca.pem, cert: us.pem, key: us.key, serverName: kafka}
sasl: {mechanism: scram-sha-512, username: postern, password: "env:KAFKA_PASSWORD"}
timeout: 5s
partitions: 24
replication: 2
retention: 48h
maxMessage: 2MiB
`), &c)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Brokers: []string{"kafka-1.example.net:9093", "[2001:db8::1]:9093"}, Prefix: "net", Group: "net-detect", ClientID: "net-1",
		TLS:     TLSConfig{Enabled: true, CA: "ca.pem", Cert: "us.pem", Key: "us.key", ServerName: "kafka"},
		SASL:    SASLConfig{Mechanism: "scram-sha-512", Username: "postern", Password: "env:KAFKA_PASSWORD"},
		Timeout: 5 * time.Second, Partitions: 24, Replication: 2, Retention: 48 * time.Hour, MaxMessage: 2 * flow.MiB,
	}
	if d := cmp.Diff(want, c); d != "" {
		t.Error(d)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func TestConfigValidate(t *testing.T) {
	key := regexp.MustCompile(`^[a-z][A-Za-z]*(\.[a-z][A-Za-z]*|\[\d+\])*: `)
	for _, tc := range []struct {
		want string
		edit func(*Config)
	}{
		{"brokers[1]: \"kafka\"", func(c *Config) { c.Brokers = []string{"a:9092", "kafka"} }},
		{"brokers[0]: \":9092\"", func(c *Config) { c.Brokers = []string{":9092"} }},
		{"brokers[0]: \"a:0\"", func(c *Config) { c.Brokers = []string{"a:0"} }},
		{"brokers[0]: \"a:http\"", func(c *Config) { c.Brokers = []string{"a:http"} }},
		{"prefix: \"\"", func(c *Config) { c.Prefix = "" }},
		{"prefix: \"a b\"", func(c *Config) { c.Prefix = "a b" }},
		{"prefix: ", func(c *Config) { c.Prefix = strings.Repeat("x", 241) }},
		{"group: ", func(c *Config) { c.Group = "" }},
		{"clientID: ", func(c *Config) { c.ClientID = "" }},
		{"timeout: 1ms", func(c *Config) { c.Timeout = time.Millisecond }},
		{"partitions: 0", func(c *Config) { c.Partitions = 0 }},
		{"replication: 0", func(c *Config) { c.Replication = 0 }},
		{"retention: 1m0s", func(c *Config) { c.Retention = time.Minute }},
		{"maxMessage: 1024", func(c *Config) { c.MaxMessage = 1024 }},
		{"tls: has settings", func(c *Config) { c.TLS.CA = "ca.pem" }},
		{"tls: has only one", func(c *Config) { c.TLS = TLSConfig{Enabled: true, Cert: "c"} }},
		{"tls.insecure: ", func(c *Config) { c.TLS = TLSConfig{Enabled: true, CA: "c", Insecure: true} }},
		{"sasl.mechanism: \"gssapi\"", func(c *Config) { c.SASL = SASLConfig{Mechanism: "gssapi", Username: "u", Password: "env:P"} }},
		{"sasl.mechanism: is empty", func(c *Config) { c.SASL.Username = "u" }},
		{"sasl.mechanism: plain sends", func(c *Config) {
			c.Brokers, c.SASL = []string{"localhost:9092", "kafka:9092"}, SASLConfig{Mechanism: "plain", Username: "u", Password: "env:P"}
		}},
		{"sasl.username: ", func(c *Config) { c.SASL = SASLConfig{Mechanism: "scram-sha-256", Password: "env:P"} }},
		{"sasl.password: ", func(c *Config) { c.SASL = SASLConfig{Mechanism: "scram-sha-256", Username: "u"} }},
	} {
		c := testConfig()
		tc.edit(&c)
		err := c.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), tc.want) || !key.MatchString(err.Error()) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v; want one error that begins with %s", err, tc.want)
		}
	}
	c := testConfig()
	c.Brokers, c.SASL = []string{"localhost:9092", "127.0.0.2:9092", "[::1]:9092"}, SASLConfig{Mechanism: "plain", Username: "u", Password: "env:P"}
	if err := c.Validate(); err != nil {
		t.Errorf("plain to this machine itself: %v", err)
	}
	c.Group, c.Timeout = "", 0
	if err := c.Validate(); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("%v does not name both things that are wrong", err)
	}
}

func TestTLSFiles(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		tls  TLSConfig
		want string
	}{
		{TLSConfig{Enabled: true, CA: filepath.Join(dir, "none.pem")}, "tls.ca: "},
		{TLSConfig{Enabled: true, CA: empty}, "tls.ca: " + empty + " holds no certificate"},
		{TLSConfig{Enabled: true, Cert: empty, Key: empty}, "tls.cert: "},
	} {
		c := testConfig()
		c.TLS = tc.tls
		if _, err := Open(c, nil, Options{}); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("got %v, want an error that begins with %s", err, tc.want)
		}
	}
}
