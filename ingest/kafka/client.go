package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	kgo "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/compress/snappy"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

const (
	// metadataTTL is how old the client's picture of who leads what may become. The
	// transport asks again after a random part of it, and also gives each such
	// question no more time than this, so it must not be very short. What is found to
	// be out of date is not waited out, see [Client.Refresh].
	metadataTTL = 5 * time.Second
	// refreshPause is the least time between two pictures thrown away: many
	// partitions lose the same leader at once.
	refreshPause = 200 * time.Millisecond
	// idleTimeout closes connections nobody uses, well before brokers do after 10
	// minutes (connections.max.idle.ms).
	idleTimeout = time.Minute
)

// Options are what a client works with besides its configuration. All may be nil.
type Options struct {
	// Logger is told of what is tried again.
	Logger *slog.Logger
	// Metrics is where the client's metrics are registered.
	Metrics prometheus.Registerer
}

// Client is a connection to a cluster. It is safe for concurrent use.
type Client struct {
	cfg    Config
	log    *slog.Logger
	met    *clientMetrics
	kafka  *kgo.Client
	trans  *kgo.Transport
	cancel context.CancelFunc

	mu        sync.Mutex
	refreshed time.Time
}

// snappyOnce makes Snappy the quick one: kafka-go's default looks longer for a quarter
// of a byte a flow, and its codecs are set for the whole process.
var snappyOnce = sync.OnceFunc(func() { compress.SnappyCodec.Compression = snappy.FasterCompression })

// Open makes a client. It reads certificates and the password and does no other
// I/O: whether the cluster answers is seen at the first request. resolve turns a
// reference to a secret (env:NAME, file:PATH) into the secret; it may be nil when
// the configuration has no password.
func Open(cfg Config, resolve func(ref string) (string, error), opts Options) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if !cfg.Enabled() {
		return nil, errors.New("brokers: is empty; name at least one broker, such as kafka-1.example.net:9092")
	}
	tlsConfig, err := cfg.TLS.config()
	if err != nil {
		return nil, err
	}
	mechanism, err := cfg.SASL.mechanism(resolve)
	if err != nil {
		return nil, err
	}
	snappyOnce()
	met, err := newClientMetrics(opts.Metrics)
	if err != nil {
		return nil, err
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	trans := &kgo.Transport{
		Dial:        boundedDial(cfg.Timeout),
		DialTimeout: min(cfg.Timeout, 5*time.Second),
		IdleTimeout: idleTimeout,
		MetadataTTL: metadataTTL,
		ClientID:    cfg.ClientID,
		TLS:         tlsConfig,
		SASL:        mechanism,
		Context:     ctx,
	}
	return &Client{
		cfg:    cfg,
		log:    opts.Logger,
		met:    met,
		trans:  trans,
		kafka:  &kgo.Client{Addr: kgo.TCP(cfg.Brokers...), Timeout: cfg.Timeout, Transport: trans},
		cancel: cancel,
	}, nil
}

func (s SASLConfig) mechanism(resolve func(ref string) (string, error)) (sasl.Mechanism, error) {
	if s.Mechanism == "" {
		return nil, nil
	}
	if resolve == nil {
		return nil, errors.New("sasl.password: nobody is here to read the secret it refers to")
	}
	password, err := resolve(s.Password)
	if err != nil {
		return nil, fmt.Errorf("sasl.password: %w", err)
	}
	var m sasl.Mechanism
	switch s.Mechanism {
	case "plain":
		m = plain.Mechanism{Username: s.Username, Password: password}
	case "scram-sha-256":
		m, err = scram.Mechanism(scram.SHA256, s.Username, password)
	case "scram-sha-512":
		m, err = scram.Mechanism(scram.SHA512, s.Username, password)
	default:
		return nil, fmt.Errorf("sasl.mechanism: %q is not known; use scram-sha-512, scram-sha-256 or plain", s.Mechanism)
	}
	if err != nil {
		// The cause may repeat the password.
		return nil, fmt.Errorf("sasl.password: it or the user name has characters that %s does not allow (RFC 4013)", s.Mechanism)
	}
	return m, nil
}

// boundedDial makes connections on which no read or write lasts longer than
// timeout unless a deadline was set. kafka-go logs in without one, and a broker
// that is stopped in that moment would otherwise hold up its transport for ever.
func boundedDial(timeout time.Duration) func(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{Timeout: min(timeout, 5*time.Second), KeepAlive: 15 * time.Second}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &boundedConn{Conn: c, timeout: timeout}, nil
	}
}

// boundedConn is a connection with a time limit on each read and write that has no
// deadline. kafka-go reads only while it waits for an answer, so an idle
// connection is not cut by it.
type boundedConn struct {
	net.Conn
	timeout     time.Duration
	mu          sync.Mutex
	read, write bool // a deadline was set from outside
}

func (c *boundedConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	if !c.read {
		_ = c.Conn.SetReadDeadline(time.Now().Add(c.timeout))
	}
	c.mu.Unlock()
	return c.Conn.Read(b)
}

func (c *boundedConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	if !c.write {
		_ = c.Conn.SetWriteDeadline(time.Now().Add(c.timeout))
	}
	c.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *boundedConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read, c.write = !t.IsZero(), !t.IsZero()
	return c.Conn.SetDeadline(t)
}

func (c *boundedConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read = !t.IsZero()
	return c.Conn.SetReadDeadline(t)
}

func (c *boundedConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.write = !t.IsZero()
	return c.Conn.SetWriteDeadline(t)
}

// Config is what the client was opened with.
func (c *Client) Config() Config { return c.cfg }

// Kafka is the client for requests this package has no method for. Errors of its
// requests may mean that leadership moved: see [Retryable] and [Client.Refresh].
func (c *Client) Kafka() *kgo.Client { return c.kafka }

// Close ends all connections that are idle, the others as soon as their request is
// over, and takes the metrics back. Requests must have ended before.
func (c *Client) Close() error {
	c.trans.CloseIdleConnections()
	c.cancel()
	c.met.unregister()
	return nil
}

// Refresh forgets which broker leads which partition; the next request asks again.
// Call it after an error that says so ([kgo.NotLeaderForPartition],
// [kgo.UnknownTopicOrPartition], a connection refused), since the transport by
// itself keeps its picture for up to five seconds. It costs a new connection, and
// does nothing when it was done just now.
func (c *Client) Refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.refreshed) >= refreshPause {
		c.refreshed = now
		c.trans.CloseIdleConnections()
	}
}

// ClusterID is the cluster's own name for itself, which no two clusters share.
func (c *Client) ClusterID(ctx context.Context) (string, error) {
	res, err := c.kafka.Metadata(ctx, &kgo.MetadataRequest{Topics: []string{}})
	if err != nil {
		return "", c.explain("ask for the cluster's id", err)
	}
	return res.ClusterID, nil
}

// errNoTopic is that a topic does not exist, or that we may not see it.
type errNoTopic struct{ topic string }

func (e errNoTopic) Error() string {
	return fmt.Sprintf("topic %s does not exist, or this user may not see it; create it, for instance by `postern kafka init`", e.topic)
}

func (e errNoTopic) Is(target error) bool { return target == kgo.UnknownTopicOrPartition }

// Partitions is how many partitions a topic has.
func (c *Client) Partitions(ctx context.Context, topic string) (int, error) {
	n, err := c.partitions(ctx, topic)
	if errors.Is(err, kgo.UnknownTopicOrPartition) {
		// It may have been created after the transport last asked.
		c.Refresh()
		n, err = c.partitions(ctx, topic)
	}
	return n, err
}

func (c *Client) partitions(ctx context.Context, topic string) (int, error) {
	res, err := c.kafka.Metadata(ctx, &kgo.MetadataRequest{Topics: []string{topic}})
	if err != nil {
		return 0, c.explain("ask for topic "+topic, err)
	}
	for _, t := range res.Topics {
		if t.Name != topic {
			continue
		}
		if t.Error != nil && !errors.Is(t.Error, kgo.UnknownTopicOrPartition) && len(t.Partitions) == 0 {
			return 0, c.explain("ask for topic "+topic, t.Error)
		}
		if t.Error == nil && len(t.Partitions) > 0 {
			return len(t.Partitions), nil
		}
	}
	return 0, errNoTopic{topic}
}

// Offsets are the first offset a partition still has, and the next that will be
// given to a message. It is tried again for as long as one request may take: a
// partition that was just made, or just moved, has nobody who answers for it.
func (c *Client) Offsets(ctx context.Context, topic string, partition int) (first, next int64, err error) {
	doing := fmt.Sprintf("ask for the offsets of %s/%d", topic, partition)
	err = c.again(ctx, func() error {
		first, next, err = c.offsets(ctx, topic, partition)
		return err
	})
	if isMissing(err) {
		err = c.describeMissing(ctx, topic, partition, err)
	}
	if err != nil {
		return 0, 0, c.explain(doing, err)
	}
	return first, next, nil
}

func (c *Client) offsets(ctx context.Context, topic string, partition int) (first, next int64, err error) {
	res, err := c.kafka.ListOffsets(ctx, &kgo.ListOffsetsRequest{
		Topics: map[string][]kgo.OffsetRequest{topic: {kgo.FirstOffsetOf(partition), kgo.LastOffsetOf(partition)}},
	})
	if err != nil {
		return 0, 0, err
	}
	for _, p := range res.Topics[topic] {
		if p.Partition == partition {
			return p.FirstOffset, p.LastOffset, p.Error
		}
	}
	return 0, 0, kgo.UnknownTopicOrPartition
}

// again does what may go well the next time until it does, or for as long as one
// request may take. What is missing gets a second chance alone.
func (c *Client) again(ctx context.Context, do func() error) error {
	deadline := time.Now().Add(c.cfg.Timeout)
	pause, missing := 20*time.Millisecond, false
	for {
		err := do()
		if err == nil || !Retryable(err) || missing && isMissing(err) || time.Now().Add(pause).After(deadline) {
			return err
		}
		missing = isMissing(err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
		c.Refresh()
	}
}

// explain says what was being done, at whom, and, where it can be known, what to do.
func (c *Client) explain(doing string, err error) error {
	if hint := hintFor(err); hint != "" {
		return fmt.Errorf("kafka: cannot %s: %w; %s", doing, err, hint)
	}
	return fmt.Errorf("kafka: cannot %s: %w", doing, err)
}

type clientMetrics struct {
	messages *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	retries  *prometheus.CounterVec
	seconds  prometheus.Histogram
	dead     *prometheus.CounterVec
	reg      prometheus.Registerer
}

func newClientMetrics(reg prometheus.Registerer) (*clientMetrics, error) {
	m := &clientMetrics{
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_kafka_produced_messages_total",
			Help: "Messages that all replicas acknowledged, by topic."}, []string{"topic"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_kafka_produced_bytes_total",
			Help: "Bytes of keys and values acknowledged, before compression, by topic."}, []string{"topic"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_kafka_produce_retries_total",
			Help: "Attempts to produce that failed and were made again, by topic; each may have left a duplicate in the log."}, []string{"topic"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "postern_kafka_produce_duration_seconds",
			Help: "From handing messages over to their acknowledgement, retries included.", Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .5, 1, 5, 30}}),
		dead: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "postern_kafka_dead_letters_total",
			Help: "Values put on the dead-letter topic, by the topic they came from."}, []string{"topic"}),
		reg: reg,
	}
	if reg == nil {
		return m, nil
	}
	for i, c := range m.collectors() {
		if err := reg.Register(c); err != nil {
			for _, c := range m.collectors()[:i] {
				reg.Unregister(c)
			}
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	return m, nil
}

func (m *clientMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.messages, m.bytes, m.retries, m.seconds, m.dead}
}

func (m *clientMetrics) unregister() {
	if m.reg == nil {
		return
	}
	for _, c := range m.collectors() {
		m.reg.Unregister(c)
	}
}
