package kafka

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"time"

	"github.com/postern/postern/flow"
)

// Config is how Kafka is reached, and what our topics there are called.
type Config struct {
	// Brokers are addresses (host:port) to find the cluster by; the others are learned from whichever answers. Without any, Kafka is not used.
	Brokers []string `yaml:"brokers"`
	// Prefix begins the names of all topics of ours: postern.flows, postern.findings and so on.
	Prefix string `yaml:"prefix"`
	// Group is the consumer group of the detectors. Two groups read all flows independently of each other.
	Group string `yaml:"group"`
	// ClientID is what brokers call this process in their logs, metrics and quotas.
	ClientID string `yaml:"clientID"`
	// TLS is how to trust the brokers and how to show who we are.
	TLS TLSConfig `yaml:"tls"`
	// SASL is how to log in.
	SASL SASLConfig `yaml:"sasl"`
	// Timeout bounds one request, from finding the broker to its answer; a request that has none of its own is also cut after it.
	Timeout time.Duration `yaml:"timeout"`
	// Partitions is how many partitions `postern kafka init` gives to topics that are divided by endpoints.
	Partitions int `yaml:"partitions"`
	// Replication is how many brokers hold each partition of a topic that `postern kafka init` creates.
	Replication int `yaml:"replication"`
	// Retention is how long the flows and edges topics keep what was read already, and thereby how long detectors may be away.
	Retention time.Duration `yaml:"retention"`
	// MaxMessage is the largest message that is produced, and what `postern kafka init` allows in our topics.
	MaxMessage flow.Size `yaml:"maxMessage"`
}

// TLSConfig is how to trust the brokers and how to show who we are.
type TLSConfig struct {
	// Enabled turns TLS on.
	Enabled bool `yaml:"enabled"`
	// CA is a PEM file of the authorities that may sign a broker's certificate; the system's if empty.
	CA string `yaml:"ca"`
	// Cert is a PEM file of our own certificate, for brokers that ask for one.
	Cert string `yaml:"cert"`
	// Key is the PEM file of Cert's private key.
	Key string `yaml:"key"`
	// ServerName is the name every broker's certificate must be for, if not the broker's own host.
	ServerName string `yaml:"serverName"`
	// Insecure accepts any certificate: anyone on the path may then read and alter everything, the password included.
	Insecure bool `yaml:"insecure"`
}

// SASLConfig is how to log in.
type SASLConfig struct {
	// Mechanism is plain, scram-sha-256 or scram-sha-512; empty for no log-in. plain sends the password as it is and needs tls.enabled, except to a broker on this machine.
	Mechanism string `yaml:"mechanism"`
	// Username is who logs in.
	Username string `yaml:"username"`
	// Password is a reference to a secret (env:NAME or file:PATH), never the secret itself. It is read once, at the start.
	Password string `yaml:"password"`
}

const day = 24 * time.Hour

// MaxPartitions is the most partitions that flows can be divided into.
const MaxPartitions = 1000

// maxTopicName is the longest name Kafka takes for a topic.
const maxTopicName = 249

// DefaultConfig is the configuration of somebody who named brokers and nothing else.
func DefaultConfig() Config {
	return Config{
		Prefix:   "postern",
		Group:    "postern",
		ClientID: "postern",
		// A broker answers within milliseconds. The client allows it half of this to
		// have all replicas write a batch; a replica that hangs is given up by the
		// leader after replica.lag.time.max.ms, 30 s, and until then each attempt ends
		// as timed out and is made again.
		Timeout: 10 * time.Second,
		// One partition is one detector's work on one core, some 100,000 flows/s: 12
		// divide evenly among 1, 2, 3, 4, 6 and 12 detectors. Changing it later is a
		// drained switch-over.
		Partitions: 12,
		// Three replicas outlive one broker while one is in maintenance; a cluster of
		// fewer brokers says so when the topics are created.
		Replication: 3,
		// Friday evening to Monday noon, with a margin: 3 days of 10,000 flows/s at 40
		// bytes are some 100 GB.
		Retention: 3 * day,
		// A value of 1,024 flows takes 10 to 60 KB. Kafka's own default for a batch is
		// 1 MiB and 12 bytes, so ours passes brokers nobody changed.
		MaxMessage: flow.MiB,
	}
}

// Enabled says whether Kafka is used at all.
func (c Config) Enabled() bool { return len(c.Brokers) > 0 }

// Kinds of our topics, as [Config.Topic] takes them.
const (
	TopicFlows = "flows" // batches of records, divided by endpoints
	// TopicEdges holds what the detectors that look at the whole estate read: digests of the
	// contacts of each partition of TopicFlows, all in partition 0.
	TopicEdges    = "edges"
	TopicFindings = "findings" // events of findings
	TopicState    = "state"    // detectors' checkpoints
	TopicPolicy   = "policy"   // policies, in the order they came into force
	TopicFacts    = "facts"    // who is behind addresses, as sources say
	TopicDead     = "dead"     // values that could not be decoded
)

// Topic is the name of our topic of one kind, such as postern.flows.
func (c Config) Topic(kind string) string { return c.Prefix + "." + kind }

var topicName = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// Validate says what is wrong and what would be right, all of it at once; each
// error begins with its key. It reads no file and connects to nothing.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	for i, b := range c.Brokers {
		host, port, err := net.SplitHostPort(b)
		if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 || host == "" {
			bad("brokers[%d]: %q is no address; write host:port, such as kafka-1.example.net:9092", i, b)
		}
	}
	if !topicName.MatchString(c.Prefix) || len(c.Prefix) > maxTopicName-len(".findings") || c.Prefix == "." || c.Prefix == ".." {
		bad("prefix: %q cannot begin a topic's name; use letters, digits, dots, - and _, such as postern", c.Prefix)
	}
	if c.Group == "" || len(c.Group) > maxTopicName {
		bad("group: must be a name of 1 to %d bytes, such as postern", maxTopicName)
	}
	if c.ClientID == "" || len(c.ClientID) > maxTopicName {
		bad("clientID: must be a name of 1 to %d bytes, such as postern", maxTopicName)
	}
	if c.Timeout < time.Second || c.Timeout > 5*time.Minute {
		bad("timeout: %v is out of range; it must lie between 1s and 5m", c.Timeout)
	}
	if c.Partitions < 1 || c.Partitions > MaxPartitions {
		bad("partitions: %d is out of range; it must lie between 1 and %d", c.Partitions, MaxPartitions)
	}
	if c.Replication < 1 || c.Replication > 15 {
		bad("replication: %d is out of range; it must lie between 1 and 15", c.Replication)
	}
	if c.Retention < time.Hour {
		bad("retention: %v is too short for a detector to be restarted in; use at least 1h", c.Retention)
	}
	if c.MaxMessage < 64*flow.KiB || c.MaxMessage > 64*flow.MiB {
		bad("maxMessage: %d bytes is out of range; it must lie between 64KiB and 64MiB", int64(c.MaxMessage))
	}
	errs = append(errs, c.TLS.validate()...)
	errs = append(errs, c.validateSASL()...)
	return errors.Join(errs...)
}

func (t TLSConfig) validate() []error {
	var errs []error
	bad := func(message string) { errs = append(errs, errors.New(message)) }
	if !t.Enabled {
		if (t != TLSConfig{}) {
			bad("tls: has settings but is not enabled; set tls.enabled, or take them out")
		}
		return errs
	}
	if (t.Cert == "") != (t.Key == "") {
		bad("tls: has only one of cert and key; give both or neither")
	}
	if t.Insecure && (t.CA != "" || t.ServerName != "") {
		bad("tls.insecure: accepts any certificate, so ca and serverName would have no effect; take insecure out, or them")
	}
	return errs
}

func (c Config) validateSASL() []error {
	s := c.SASL
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	switch s.Mechanism {
	case "":
		if s.Username != "" || s.Password != "" {
			bad("sasl.mechanism: is empty while a username or password is given; use scram-sha-512, scram-sha-256 or plain")
		}
		return errs
	case "plain":
		// The password itself goes over the wire.
		for _, b := range c.Brokers {
			if host, _, err := net.SplitHostPort(b); err == nil && !c.TLS.Enabled && !isLoopback(host) {
				bad("sasl.mechanism: plain sends the password unencrypted; set tls.enabled, or use scram-sha-512")
				break
			}
		}
	case "scram-sha-256", "scram-sha-512":
	default:
		bad("sasl.mechanism: %q is not known; use scram-sha-512, scram-sha-256 or plain", s.Mechanism)
	}
	if s.Username == "" {
		bad("sasl.username: is empty; name who logs in")
	}
	if s.Password == "" {
		bad("sasl.password: is empty; refer to the secret by env:NAME or file:PATH")
	}
	return errs
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// config is nil without TLS. The server's name is left to whoever dials, who knows
// which broker it is.
func (t TLSConfig) config() (*tls.Config, error) {
	if !t.Enabled {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName, InsecureSkipVerify: t.Insecure} //nolint:gosec // only where the configuration says so
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("tls.ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.ca: %s holds no certificate; it must be a PEM file", t.CA)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("tls.cert: cannot be used together with tls.key: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
