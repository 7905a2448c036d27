package broker

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	kgo "github.com/segmentio/kafka-go"

	"github.com/postern/postern/test/part"
)

// User and Password are the credentials that every SASL listener knows, by PLAIN,
// SCRAM-SHA-256 and SCRAM-SHA-512.
const (
	User     = "postern-test"
	Password = "correct.horse.battery"
)

const startLimit = 60 * time.Second // a loaded machine takes ten times as long as a quiet one

// Option changes how a broker is set up.
type Option func(*options)

type options struct {
	tls, sasl  bool
	advertised []string
	properties map[string]string
}

// WithTLS adds two listeners: [Broker.TLSAddr] asks for no client certificate,
// [Broker.MTLSAddr] accepts only one that [Broker.TLS] holds. With [WithSASL] there
// is [Broker.SASLTLSAddr] too.
func WithTLS() Option { return func(o *options) { o.tls = true } }

// WithSASL adds a listener, [Broker.SASLAddr], at which [User] must log in.
func WithSASL() Option { return func(o *options) { o.sasl = true } }

// WithAdvertised adds a plain listener to each node, [Broker.BehindAddr], which tells
// clients to come to another address (host:port) instead, one a node: that of a proxy
// which the test runs and which forwards to BehindAddr. All that such a client says
// passes through the proxies.
func WithAdvertised(addresses ...string) Option {
	return func(o *options) { o.advertised = addresses }
}

// With sets a property of the broker's configuration, over what this package chose.
func With(key, value string) Option {
	return func(o *options) {
		if o.properties == nil {
			o.properties = map[string]string{}
		}
		o.properties[key] = value
	}
}

// listener names, as the configuration spells them.
const (
	plain      = "PLAINTEXT"
	controller = "CONTROLLER"
	tlsOnly    = "TLS"
	mutualTLS  = "MTLS"
	sasl       = "SASL"
	saslTLS    = "SASLTLS"
	behind     = "BEHIND"
)

// protocols says what is spoken at each listener.
var protocols = map[string]string{
	plain: "PLAINTEXT", controller: "PLAINTEXT", behind: "PLAINTEXT",
	tlsOnly: "SSL", mutualTLS: "SSL", sasl: "SASL_PLAINTEXT", saslTLS: "SASL_SSL",
}

// Broker is one running node. Its methods may be called from any goroutine.
type Broker struct {
	t      testing.TB
	id     int
	dir    string
	remove string // what the process removes when the test process is gone
	config string
	script string
	addrs  map[string]string // by listener
	tls    Identity

	mu  sync.Mutex
	run *part.Program // nil: it does not run
}

// Addr is where plain clients connect: "127.0.0.1:port". It stays across restarts.
func (b *Broker) Addr() string { return b.addrs[plain] }

// TLSAddr is where TLS clients connect. It is empty without [WithTLS].
func (b *Broker) TLSAddr() string { return b.addrs[tlsOnly] }

// MTLSAddr is where TLS clients with a certificate connect. It is empty without
// [WithTLS].
func (b *Broker) MTLSAddr() string { return b.addrs[mutualTLS] }

// SASLAddr is where clients that log in connect, without TLS. It is empty without
// [WithSASL].
func (b *Broker) SASLAddr() string { return b.addrs[sasl] }

// SASLTLSAddr is where clients that log in connect, with TLS. It is empty without
// both [WithTLS] and [WithSASL].
func (b *Broker) SASLTLSAddr() string { return b.addrs[saslTLS] }

// BehindAddr is what a proxy forwards to. It is empty without [WithAdvertised].
func (b *Broker) BehindAddr() string { return b.addrs[behind] }

// TLS is what a client needs to trust the broker and to be trusted. It is empty
// without [WithTLS].
func (b *Broker) TLS() Identity { return b.tls }

// Pid is the process that runs now, or 0.
func (b *Broker) Pid() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.run == nil {
		return 0
	}
	return b.run.Pid()
}

// Start runs a broker of its own for t, waits until it answers, and ends it when t
// is over. Its log is shown if t failed.
func Start(t testing.TB, opts ...Option) *Broker {
	t.Helper()
	need(t)
	nodes, err := prepare(t.TempDir(), 1, opts)
	if err != nil {
		t.Fatalf("preparing a Kafka broker: %v", err)
	}
	b := nodes[0]
	b.own(t)
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	if err := ready(b.Addr(), 1); err != nil {
		t.Fatal(err)
	}
	return b
}

// own ties the node to t.
func (b *Broker) own(t testing.TB) {
	b.t = t
	t.Cleanup(func() {
		b.end(syscall.SIGKILL)
		b.showLog(t)
	})
}

// shared is the broker of this test process. It ends with the process, and removes
// its folder then.
var shared = sync.OnceValues(func() (*Broker, error) {
	dir, err := os.MkdirTemp("", "postern-kafka-")
	if err != nil {
		return nil, err
	}
	nodes, err := prepare(dir, 1, nil)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	b := nodes[0]
	b.remove = dir
	if err := b.start(); err != nil {
		return nil, err
	}
	if err := ready(b.Addr(), 1); err != nil {
		log := part.Tail(b.logName())
		b.end(syscall.SIGKILL)
		os.RemoveAll(dir)
		return nil, fmt.Errorf("%w\n%s", err, log)
	}
	return b, nil
})

// Shared is the one broker of this test process, started for the first who asks. It
// has a plain listener and must not be stopped: what other tests wrote is in it, so
// names of topics and groups are taken from [Broker.Topic].
func Shared(t testing.TB) *Broker {
	t.Helper()
	need(t)
	b, err := shared()
	if err != nil {
		t.Fatalf("the shared Kafka broker: %v", err)
	}
	t.Cleanup(func() { b.showLog(t) })
	return b
}

// Topic is a name, beginning with prefix, that no other test has: for a topic or a
// group. Nothing is created.
func (b *Broker) Topic(t testing.TB, prefix string) string {
	t.Helper()
	return prefix + "." + strings.ToLower(rand.Text()[:10])
}

// CreateTopic creates a topic named by [Broker.Topic] and waits until each of its
// partitions has a leader. Each has one replica; [Cluster.CreateTopic] makes more.
func (b *Broker) CreateTopic(t testing.TB, prefix string, partitions int, config ...kgo.ConfigEntry) string {
	t.Helper()
	name := b.Topic(t, prefix)
	if err := createTopic(b.Addr(), name, partitions, 1, config); err != nil {
		t.Fatalf("creating topic %s: %v", name, err)
	}
	return name
}

func createTopic(addr, name string, partitions, replicas int, config []kgo.ConfigEntry) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client := newClient(addr)
	defer closeClient(client)
	for again := false; ; again = true {
		res, err := client.CreateTopics(ctx, &kgo.CreateTopicsRequest{Topics: []kgo.TopicConfig{{
			Topic: name, NumPartitions: partitions, ReplicationFactor: replicas, ConfigEntries: config,
		}}})
		if err == nil {
			err = res.Errors[name]
		}
		if err == nil || again && errors.Is(err, kgo.TopicAlreadyExists) {
			break
		}
		// A controller that has only just been elected may take its time.
		if !errors.Is(err, kgo.RequestTimedOut) || ctx.Err() != nil {
			return err
		}
	}
	for {
		meta, err := client.Metadata(ctx, &kgo.MetadataRequest{Topics: []string{name}})
		if err == nil && len(meta.Topics) == 1 && meta.Topics[0].Error == nil && len(meta.Topics[0].Partitions) == partitions &&
			!slices.ContainsFunc(meta.Topics[0].Partitions, func(p kgo.Partition) bool { return p.Error != nil || p.Leader.Port == 0 }) {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("no leader for each of its partitions: %v, %w", meta, errors.Join(err, ctx.Err()))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// newClient is a client that keeps no stale view of the cluster.
func newClient(addr string) *kgo.Client {
	return &kgo.Client{Addr: kgo.TCP(addr), Transport: &kgo.Transport{MetadataTTL: 100 * time.Millisecond}}
}

func closeClient(c *kgo.Client) { c.Transport.(*kgo.Transport).CloseIdleConnections() }

// Stop asks the broker to end in order and waits until it has.
func (b *Broker) Stop() { b.stop(syscall.SIGTERM) }

// Kill ends the broker as a power cut would, and waits until it is gone.
func (b *Broker) Kill() { b.stop(syscall.SIGKILL) }

func (b *Broker) stop(sig syscall.Signal) {
	if b.remove != "" {
		panic("the shared broker must not be stopped: other tests use it")
	}
	b.end(sig)
}

// Restart runs the broker again at the same addresses, with the same data, and waits
// until it answers. One that still runs is stopped first.
func (b *Broker) Restart() {
	b.Stop()
	err := b.start()
	if err == nil {
		err = ready(b.Addr(), 1)
	}
	if err != nil {
		b.t.Errorf("restarting the Kafka broker: %v", err)
	}
}

// start runs the process. It does not wait until it answers.
func (b *Broker) start() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.run != nil {
		return fmt.Errorf("Kafka node %d runs already", b.id)
	}
	cmd := exec.Command(b.script, "run", b.config, b.remove)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	b.run, err = part.Start(cmd, b.logName())
	return err
}

// end signals the process and waits until it is gone.
func (b *Broker) end(sig syscall.Signal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.run == nil {
		return
	}
	if err := b.run.End(sig); err != nil && b.t != nil {
		b.t.Errorf("Kafka node %d, sent %v: %v", b.id, sig, err)
	}
	b.run = nil
}

// ready waits until a plain client of addr sees that many brokers.
func ready(addr string, brokers int) error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	client := newClient(addr)
	defer closeClient(client)
	for {
		try, done := context.WithTimeout(ctx, 2*time.Second)
		meta, err := client.Metadata(try, &kgo.MetadataRequest{})
		done()
		if err == nil && len(meta.Brokers) >= brokers {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("Kafka at %s did not answer for %d brokers within %v: %v, %w", addr, brokers, startLimit, meta, errors.Join(err, ctx.Err()))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (b *Broker) logName() string { return filepath.Join(b.dir, "log") }

func (b *Broker) showLog(t testing.TB) {
	if t.Failed() {
		t.Logf("the end of the log of Kafka node %d:\n%s", b.id, part.Tail(b.logName()))
	}
}

// need skips t where Kafka or Java is not there, and fails it in CI.
func need(t testing.TB) {
	t.Helper()
	if missing := missing(); missing != "" {
		part.Missing(t, missing+": make kafka")
	}
}

func missing() string {
	dir, err := part.Root()
	if err != nil {
		return err.Error()
	}
	want, err := os.ReadFile(filepath.Join(dir, "test", "kafka", "pom.xml"))
	if err != nil {
		return err.Error()
	}
	have, err := os.ReadFile(filepath.Join(dir, ".cache", "kafka", "pom.xml"))
	if err != nil || !bytes.Equal(have, want) {
		return "Apache Kafka has not been fetched"
	}
	if _, err := exec.LookPath("java"); err != nil {
		return "Java is not installed"
	}
	return ""
}

// prepare writes the configuration of n nodes that are one cluster into folders of
// dir, and formats their storage. Nothing runs yet.
func prepare(dir string, n int, opts []Option) ([]*Broker, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	if len(o.advertised) != 0 && len(o.advertised) != n {
		return nil, fmt.Errorf("WithAdvertised has %d addresses for %d nodes: a client must tell them apart", len(o.advertised), n)
	}
	home, err := part.Root()
	if err != nil {
		return nil, err
	}
	var id Identity
	serverPEM, caPEM := filepath.Join(dir, "server.pem"), filepath.Join(dir, "ca.pem")
	if o.tls {
		var server []byte
		if id, server, err = certificates(dir); err != nil {
			return nil, err
		}
		if err := os.WriteFile(serverPEM, server, 0o600); err != nil {
			return nil, err
		}
	}
	var names []string
	for _, l := range []struct {
		name string
		use  bool
	}{
		{plain, true}, {tlsOnly, o.tls}, {mutualTLS, o.tls}, {sasl, o.sasl}, {saslTLS, o.sasl && o.tls},
		{behind, len(o.advertised) > 0}, {controller, true},
	} {
		if l.use {
			names = append(names, l.name)
		}
	}
	ports, err := part.FreePorts(n * len(names))
	if err != nil {
		return nil, err
	}
	nodes := make([]*Broker, n)
	var voters []string
	for i := range nodes {
		b := &Broker{
			id: i + 1, dir: filepath.Join(dir, fmt.Sprintf("node-%d", i+1)), script: filepath.Join(home, "test", "kafka", "broker"),
			addrs: map[string]string{}, tls: id,
		}
		if err := os.MkdirAll(b.dir, 0o700); err != nil {
			return nil, err
		}
		for j, name := range names {
			b.addrs[name] = net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i*len(names)+j]))
		}
		voters = append(voters, fmt.Sprintf("%d@%s", b.id, b.addrs[controller]))
		nodes[i] = b
	}
	cluster := make([]byte, 16)
	if _, err := rand.Read(cluster); err != nil {
		return nil, err
	}
	format := []string{"--cluster-id=" + base64.RawURLEncoding.EncodeToString(cluster)} // one word: an id may begin with a dash
	if o.sasl {
		for _, mechanism := range []string{"SCRAM-SHA-256", "SCRAM-SHA-512"} {
			format = append(format, "--add-scram", fmt.Sprintf("%s=[name=%s,password=%s]", mechanism, User, Password))
		}
	}
	for _, b := range nodes {
		p := b.properties(names, voters, min(n, 3))
		if o.tls {
			maps.Copy(p, map[string]string{
				"ssl.keystore.type": "PEM", "ssl.keystore.location": serverPEM,
				"ssl.truststore.type": "PEM", "ssl.truststore.location": caPEM,
				"listener.name.mtls.ssl.client.auth": "required",
			})
		}
		if o.sasl {
			for _, name := range names {
				if !strings.HasPrefix(protocols[name], "SASL") {
					continue
				}
				prefix := "listener.name." + strings.ToLower(name) + "."
				p[prefix+"sasl.enabled.mechanisms"] = "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"
				p[prefix+"plain.sasl.jaas.config"] = fmt.Sprintf("org.apache.kafka.common.security.plain.PlainLoginModule required user_%s=%q;", User, Password)
				for _, mechanism := range []string{"scram-sha-256", "scram-sha-512"} {
					p[prefix+mechanism+".sasl.jaas.config"] = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
				}
			}
		}
		if len(o.advertised) > 0 {
			p["advertised.listeners"] = strings.Replace(p["advertised.listeners"], behind+"://"+b.addrs[behind], behind+"://"+o.advertised[b.id-1], 1)
		}
		maps.Copy(p, o.properties)
		var text strings.Builder
		for _, key := range slices.Sorted(maps.Keys(p)) {
			fmt.Fprintf(&text, "%s=%s\n", key, p[key])
		}
		b.config = filepath.Join(b.dir, "server.properties")
		if err := os.WriteFile(b.config, []byte(text.String()), 0o600); err != nil {
			return nil, err
		}
	}
	errs := make([]error, n)
	var all sync.WaitGroup
	for i, b := range nodes {
		all.Go(func() {
			out, err := exec.Command(b.script, append([]string{"format", b.config}, format...)...).CombinedOutput()
			if err != nil {
				errs[i] = fmt.Errorf("formatting the storage: %w\n%s", err, out)
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return nodes, nil
}

// properties is the configuration of one node: broker and controller in one process.
func (b *Broker) properties(names, voters []string, replicas int) map[string]string {
	var listen, advertise, speak []string
	for _, name := range names {
		at := name + "://" + b.addrs[name]
		listen = append(listen, at)
		if name != controller {
			advertise = append(advertise, at)
		}
		speak = append(speak, name+":"+protocols[name])
	}
	r := strconv.Itoa(replicas)
	return map[string]string{
		"process.roles":                  "broker,controller",
		"node.id":                        strconv.Itoa(b.id),
		"controller.quorum.voters":       strings.Join(voters, ","),
		"controller.listener.names":      controller,
		"inter.broker.listener.name":     plain,
		"listeners":                      strings.Join(listen, ","),
		"advertised.listeners":           strings.Join(advertise, ","),
		"listener.security.protocol.map": strings.Join(speak, ","),
		"log.dirs":                       filepath.Join(b.dir, "data"),

		// Nothing comes into being by a misspelt name.
		"auto.create.topics.enable": "false",

		// A group forms as soon as its first member joins, and a member that died is
		// missed after the session timeout that a test chooses.
		"group.initial.rebalance.delay.ms": "0",
		"group.min.session.timeout.ms":     "500",

		// A node that was killed is given up after three seconds instead of nine.
		"broker.heartbeat.interval.ms": "500",
		"broker.session.timeout.ms":    "3000",

		"default.replication.factor":                       r,
		"offsets.topic.replication.factor":                 r,
		"offsets.topic.num.partitions":                     r,
		"transaction.state.log.replication.factor":         r,
		"transaction.state.log.min.isr":                    "1",
		"transaction.state.log.num.partitions":             "1",
		"share.coordinator.state.topic.replication.factor": r,
		"share.coordinator.state.topic.min.isr":            "1",
		"share.coordinator.state.topic.num.partitions":     "1",

		// The defaults of these are made for a server's memory and cores.
		"log.cleaner.dedupe.buffer.size": "8388608",
		"num.network.threads":            "2",
		"num.io.threads":                 "2",
		"background.threads":             "2",
	}
}
