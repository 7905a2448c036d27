package siem

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// KafkaConfig is a topic in a Kafka cluster that others read, keyed by the finding's id, so that what is told of a
// finding stays in order and a compacted topic keeps its last state. It need not be the cluster under kafka:, which
// carries Postern's own topics.
type KafkaConfig struct {
	// Brokers are addresses (host:port) to find the cluster by.
	Brokers []string `yaml:"brokers"`
	// Topic is the topic; it must exist, unless the brokers create what is asked for.
	Topic string `yaml:"topic"`
	// Plain connects without TLS, for private and loopback destinations only.
	Plain bool `yaml:"plain"`
	// Mechanism is how to log in: plain, scram-sha-256 or scram-sha-512; empty is not at all.
	Mechanism string `yaml:"mechanism"`
	// Username is who logs in.
	Username string `yaml:"username"`
	// Password is a reference to the password.
	Password string `yaml:"password"`
	// Timeout bounds one attempt.
	Timeout time.Duration `yaml:"timeout"`

	DoorConfig `yaml:",inline"`
	TLSConfig  `yaml:",inline"`
}

// Fill gives c the defaults of what it does not say.
func (c *KafkaConfig) Fill() {
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
}

var topicForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,249}$`)

func (c *KafkaConfig) validate() error {
	if len(c.Brokers) == 0 {
		return errors.New("brokers is empty; give at least one, host:port")
	}
	for i, b := range c.Brokers {
		host, port, err := net.SplitHostPort(b)
		if n, e := strconv.ParseUint(port, 10, 16); err != nil || e != nil || n == 0 || host == "" {
			return fmt.Errorf("brokers[%d]: %q is no address; write host:port, such as kafka-1.example.net:9093", i, b)
		}
	}
	switch {
	case !topicForm.MatchString(c.Topic) || c.Topic == "." || c.Topic == "..":
		return fmt.Errorf("topic %q is no name of a topic; use letters, digits, dots, - and _", c.Topic)
	case c.Plain && !c.AllowPrivate && len(c.AllowCIDRs) == 0:
		return errors.New("plain sends findings unencrypted, which is for private and loopback destinations only; set allowPrivate or allowCIDRs too, or use TLS")
	case c.Plain && (c.CAFile != "" || c.CertFile != ""):
		return errors.New("plain means no TLS, so caFile and certFile have no effect; take plain out, or them")
	case !slices.Contains([]string{"", "plain", "scram-sha-256", "scram-sha-512"}, c.Mechanism):
		return fmt.Errorf("mechanism %q is not known; use plain, scram-sha-256 or scram-sha-512", c.Mechanism)
	case (c.Mechanism == "") != (c.Username == "") || (c.Mechanism == "") != (c.Password == ""):
		return errors.New("mechanism, username and password go together; give all or none")
	case c.Plain && c.Mechanism == "plain":
		return errors.New("mechanism plain sends the password as it is, which needs TLS; use scram-sha-512, or take plain out")
	case c.Timeout < time.Second || c.Timeout > 2*time.Minute:
		return fmt.Errorf("timeout %s; it must lie between 1s and 2m", c.Timeout)
	}
	if err := c.DoorConfig.validate(); err != nil {
		return err
	}
	return c.TLSConfig.validate()
}

func (c *KafkaConfig) references() map[string]string {
	if c.Password == "" {
		return nil
	}
	return map[string]string{"password": c.Password}
}

func (c *KafkaConfig) login(get func(string) (string, error)) (sasl.Mechanism, error) {
	if c.Mechanism == "" {
		return nil, nil
	}
	password, err := get(c.Password)
	if err != nil {
		return nil, fmt.Errorf("password: %w", err)
	}
	switch c.Mechanism {
	case "scram-sha-256":
		return scram.Mechanism(scram.SHA256, c.Username, password)
	case "scram-sha-512":
		return scram.Mechanism(scram.SHA512, c.Username, password)
	}
	return plain.Mechanism{Username: c.Username, Password: password}, nil
}

func (c *KafkaConfig) open(get func(string) (string, error), at *place) (Sender, error) {
	login, err := c.login(get)
	if err != nil {
		return nil, err
	}
	var trust *tls.Config
	if !c.Plain {
		if trust, err = c.client(""); err != nil {
			return nil, err
		}
	}
	door := c.door(c.Plain)
	transport := &kafka.Transport{TLS: trust, SASL: login, ClientID: "postern", DialTimeout: c.Timeout,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			host, _, _ := net.SplitHostPort(address) // only for the log
			d := net.Dialer{KeepAlive: 30 * time.Second, Control: door.control(at, host)}
			return d.DialContext(ctx, network, address)
		}}
	return &topic{as: at.as, timeout: c.Timeout, transport: transport, writer: &kafka.Writer{
		Addr: kafka.TCP(c.Brokers...), Topic: c.Topic, Transport: transport,
		// As Java's clients divide, so that joins by key find their partition.
		Balancer: &kafka.Murmur2Balancer{Consistent: true},
		// Every replica in sync has it. Attempts are the outbox's, which knows when to wait.
		RequiredAcks: kafka.RequireAll, MaxAttempts: 1, BatchSize: topicBatch, BatchTimeout: time.Millisecond,
		WriteTimeout: c.Timeout, ReadTimeout: c.Timeout, Compression: kafka.Snappy,
	}}, nil
}

// topicBatch times MaxMessage is below the usual limit of a broker for one batch, 1 MiB.
const topicBatch = 50

type topic struct {
	as        encoder
	timeout   time.Duration
	transport *kafka.Transport
	writer    *kafka.Writer
}

func (t *topic) Close() error {
	err := t.writer.Close()
	t.transport.CloseIdleConnections()
	return err
}

// Batch implements [BatchSender].
func (t *topic) Batch() Batch { return Batch{Events: topicBatch} }

// Send implements [Sender].
func (t *topic) Send(ctx context.Context, e *Event) error { return t.SendBatch(ctx, []*Event{e})[0] }

// SendBatch implements [BatchSender].
func (t *topic) SendBatch(ctx context.Context, events []*Event) []error {
	messages, o := eachOf(events, func(e *Event) (kafka.Message, error) {
		value, err := t.as(e)
		return kafka.Message{Key: []byte(e.Key), Value: value, Time: e.Time.Std(), Headers: []kafka.Header{{Key: "postern-event", Value: []byte(e.ID)}}}, err
	})
	if len(o.sent) == 0 {
		return o.errs
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	err := t.writer.WriteMessages(ctx, messages...)
	each, several := errors.AsType[kafka.WriteErrors](err)
	for n, i := range o.sent {
		one := err
		if several {
			one = each[n]
		}
		if one != nil {
			o.errs[i] = kafkaVerdict(one)
		}
	}
	return o.errs
}

// kafkaVerdict says what is to be done about an error.
func kafkaVerdict(err error) *DeliveryError {
	d := &DeliveryError{Retry: true, Err: err}
	var code kafka.Error
	switch {
	case errors.As(err, &code):
		switch code {
		case kafka.MessageSizeTooLarge, kafka.InvalidMessage, kafka.InvalidRecord:
			d.Retry = false
		case kafka.TopicAuthorizationFailed, kafka.ClusterAuthorizationFailed, kafka.SASLAuthenticationFailed, kafka.UnsupportedSASLMechanism, kafka.IllegalSASLState:
			d.Denied = true
		}
	case strings.Contains(err.Error(), "SASL"): // the library's own words, without a code
		d.Denied = true
	}
	return d
}
