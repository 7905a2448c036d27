package kafka

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/cenkalti/backoff/v5"
	kgo "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// Message is one value, with what goes beside it.
type Message struct {
	// Key decides what compaction replaces; nil for none. It does not choose the
	// partition here.
	Key []byte
	// Value is the value; nil removes the key from a compacted topic.
	Value []byte
	// Headers go beside the value, in this order.
	Headers []kgo.Header
	// Time is the message's time, to the millisecond; the time of sending if zero.
	Time time.Time
}

// size is what a message adds to an uncompressed batch, at most.
func (m *Message) size() int {
	n := len(m.Key) + len(m.Value) + maxRecordOverhead
	for _, h := range m.Headers {
		n += len(h.Key) + len(h.Value) + 2*5
	}
	return n
}

// maxRecordOverhead is the longest form of a record's lengths, deltas and
// attributes (Kafka's record format, version 2).
const maxRecordOverhead = 5 + 1 + 10 + 5 + 5 + 5 + 5

// ProduceError is that messages were not acknowledged.
type ProduceError struct {
	Topic     string
	Partition int
	// Attempts were made, each of which may have put the messages into the log
	// although nobody heard of it, unless Permanent is set after the first.
	Attempts int
	// Permanent is that the same messages would fail again.
	Permanent bool
	Err       error
}

func (e *ProduceError) Error() string {
	s := fmt.Sprintf("kafka: cannot write to %s/%d", e.Topic, e.Partition)
	if e.Attempts > 1 {
		s += fmt.Sprintf(" (%d attempts)", e.Attempts)
	}
	s += ": " + e.Err.Error()
	if hint := hintFor(e.Err); hint != "" {
		s += "; " + hint
	}
	return s
}

// Unwrap is what went wrong.
func (e *ProduceError) Unwrap() error { return e.Err }

const (
	// produceBackoffFirst and produceBackoffMost bound the pause between attempts. A
	// leader is elected within some hundred milliseconds, a broker restarted within
	// seconds to minutes; once a second and partition is little to a broker that is
	// back, and soon enough.
	produceBackoffFirst = 50 * time.Millisecond
	produceBackoffMost  = time.Second
	// missingTopicAttempts is how often the cluster must say that a topic or partition
	// does not exist before it is believed: brokers that just started, and those a
	// new topic has not been told to, say so too.
	missingTopicAttempts = 6
)

// Produce writes messages to one partition as one batch, compressed as it suits the
// topic, and returns the offset of the first when all in-sync replicas have it. What may
// succeed later (a change of leader, a broker's restart, a connection cut, a
// time-out) is tried again until ctx ends; an attempt that failed may have left
// the batch in the log all the same, also behind later ones, so a reader must
// recognise duplicates. What can never succeed is returned at once. Every error is
// a *[ProduceError].
//
// The order of two calls for one partition is the order in the log only if the
// second begins after the first returned. Keys, values and headers are the
// caller's again on return.
func (c *Client) Produce(ctx context.Context, topic string, partition int, messages ...Message) (int64, error) {
	start := time.Now()
	perr := &ProduceError{Topic: topic, Partition: partition}
	if len(messages) == 0 {
		perr.Permanent, perr.Err = true, errors.New("there is no message")
		return 0, perr
	}
	var size int
	for i := range messages {
		size += messages[i].size()
	}
	if size > int(c.cfg.MaxMessage) {
		perr.Permanent, perr.Err = true, fmt.Errorf("%w: %d bytes, where maxMessage is %d", kgo.MessageSizeTooLarge, size, int64(c.cfg.MaxMessage))
		return 0, perr
	}
	messages = cloneMessages(messages)

	pause := &backoff.ExponentialBackOff{InitialInterval: produceBackoffFirst, RandomizationFactor: 0.3, Multiplier: 2, MaxInterval: produceBackoffMost}
	pause.Reset()
	missing := 0
	for {
		perr.Attempts++
		offset, err := c.produceOnce(ctx, topic, partition, messages)
		if err == nil {
			c.met.messages.WithLabelValues(topic).Add(float64(len(messages)))
			c.met.bytes.WithLabelValues(topic).Add(float64(size))
			c.met.seconds.Observe(time.Since(start).Seconds())
			return offset, nil
		}
		if ctx.Err() != nil {
			// What stood in the way before ctx ended says more than that it ended.
			if perr.Err == nil {
				perr.Err = err
			}
			perr.Err = endedError{context.Cause(ctx), perr.Err}
			return 0, perr
		}
		perr.Err = err
		if isMissing(err) {
			if missing++; missing >= missingTopicAttempts {
				perr.Permanent, perr.Err = true, c.describeMissing(ctx, topic, partition, err)
				return 0, perr
			}
		} else {
			missing = 0
			if !Retryable(err) {
				perr.Permanent = true
				return 0, perr
			}
		}
		wait := pause.NextBackOff()
		c.met.retries.WithLabelValues(topic).Inc()
		c.log.Warn("cannot write to Kafka; trying again", slog.String("topic", topic), slog.Int("partition", partition),
			slog.Int("attempt", perr.Attempts), slog.Duration("wait", wait), slog.Any("error", err))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			perr.Err = endedError{context.Cause(ctx), perr.Err}
			return 0, perr
		}
		c.Refresh()
	}
}

// endedError is that ctx ended, and what had gone wrong until then.
type endedError struct{ cause, last error }

func (e endedError) Error() string {
	if errors.Is(e.last, e.cause) {
		return e.last.Error()
	}
	return e.last.Error() + " (given up: " + e.cause.Error() + ")"
}
func (e endedError) Unwrap() []error { return []error{e.cause, e.last} }

// cloneMessages copies what the messages point to: a request that was given up on
// goes on being encoded for a moment, and is read by each attempt.
func cloneMessages(messages []Message) []Message {
	out := make([]Message, len(messages))
	for i, m := range messages {
		out[i] = Message{Key: bytes.Clone(m.Key), Value: bytes.Clone(m.Value), Time: m.Time}
		for _, h := range m.Headers {
			out[i].Headers = append(out[i].Headers, kgo.Header{Key: h.Key, Value: bytes.Clone(h.Value)})
		}
	}
	return out
}

func (c *Client) produceOnce(ctx context.Context, topic string, partition int, messages []Message) (int64, error) {
	records := make([]kgo.Record, len(messages))
	for i, m := range messages {
		records[i] = kgo.Record{Time: m.Time, Key: kgo.NewBytes(m.Key), Value: kgo.NewBytes(m.Value), Headers: m.Headers}
	}
	res, err := c.kafka.Produce(ctx, &kgo.ProduceRequest{
		Topic:        topic,
		Partition:    partition,
		RequiredAcks: kgo.RequireAll,
		Records:      kgo.NewRecordReader(records...),
		Compression:  c.compression(topic),
	})
	if err != nil {
		if errors.Is(err, protocol.ErrNoTopic) {
			// The transport says this also as long as no broker has answered it, and then
			// its metadata knows why.
			if _, merr := c.kafka.Metadata(ctx, &kgo.MetadataRequest{Topics: []string{topic}}); merr != nil {
				return 0, merr
			}
		}
		return 0, err
	}
	if res.Error != nil {
		for i, err := range res.RecordErrors {
			return 0, fmt.Errorf("%w (message %d: %w)", res.Error, i, err)
		}
		return 0, res.Error
	}
	for i, err := range res.RecordErrors {
		return 0, fmt.Errorf("%w (message %d: %w)", kgo.InvalidRecord, i, err)
	}
	return res.BaseOffset, nil
}

// compression is Snappy for batches of flows, whose layout by column leaves little to
// find: it takes away as much as zstd in a third of the time, which is a twentieth, and
// through kafka-go costs a third less than LZ4. Checkpoints and findings are JSON, of
// which zstd leaves less.
func (c *Client) compression(topic string) kgo.Compression {
	if topic == c.cfg.Topic(TopicFlows) {
		return kgo.Snappy
	}
	return kgo.Zstd
}

// isMissing says whether the cluster does not know a topic or partition.
func isMissing(err error) bool {
	return errors.Is(err, protocol.ErrNoTopic) || errors.Is(err, protocol.ErrNoPartition) ||
		errors.Is(err, kgo.UnknownTopicOrPartition) || errors.Is(err, kgo.UnknownTopicID)
}

func (c *Client) describeMissing(ctx context.Context, topic string, partition int, err error) error {
	n, perr := c.Partitions(ctx, topic)
	switch {
	case errors.Is(perr, kgo.UnknownTopicOrPartition):
		return perr
	case perr == nil && partition >= n:
		return fmt.Errorf("%w: topic %s has the partitions 0 to %d", kgo.UnknownTopicOrPartition, topic, n-1)
	}
	return err
}

// Retryable says whether what failed with err may succeed when it is tried again
// as it is: brokers that restart, elect leaders or cannot be reached do; wrong
// passwords, certificates, permissions and messages do not. That a topic is
// missing counts as retryable, since brokers say it for a moment of topics that
// exist. A context that was cancelled is not.
func Retryable(err error) bool {
	if err == nil {
		return false
	}
	if p, ok := errors.AsType[*ProduceError](err); ok && p.Permanent {
		return false
	}
	if errors.Is(err, context.Canceled) {
		return false
	}
	if isTrust(err) {
		return false
	}
	if code, ok := errors.AsType[kgo.Error](err); ok {
		return retryableCode(code)
	}
	for _, e := range []error{
		protocol.ErrNoTopic, protocol.ErrNoPartition, protocol.ErrNoLeader,
		context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	_, network := errors.AsType[net.Error](err) // refused, reset, unreachable, no such host, timed out
	return network
}

func retryableCode(code kgo.Error) bool {
	switch code {
	case kgo.Unknown, // what a broker says when it is in trouble itself
		kgo.BrokerNotAvailable,     // what kafka-go says of a broker it has not heard of yet
		kgo.ReplicaNotAvailable,    //
		kgo.StaleBrokerEpoch,       //
		kgo.ReassignmentInProgress, //
		kgo.ConcurrentTransactions, //
		kgo.BrokerIDNotRegistered,  // a broker that is starting
		kgo.PreferredLeaderNotAvailable:
		return true
	case kgo.ElectionNotNeeded, kgo.NoReassignmentInProgress, kgo.GroupSubscribedToTopic: // Temporary, says kafka-go
		return false
	}
	return code.Temporary()
}

// isTrust says whether two sides do not trust each other's certificates, or do not
// both speak TLS.
func isTrust(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return true
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && (op.Op == "remote error" || op.Op == "local error") {
		return true // how crypto/tls reports an alert
	}
	return false
}

// hintFor is what would be right after err, if that can be told.
func hintFor(err error) string {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "the broker does not speak TLS at this port: unset kafka.tls.enabled, or use the broker's TLS port"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the broker's certificate is not trusted: check kafka.tls.ca and kafka.tls.serverName"
	}
	if isTrust(err) {
		return "the broker refuses our certificate: check kafka.tls.cert and kafka.tls.key"
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "the broker closed the connection: if it keeps doing so, check kafka.tls.enabled and kafka.sasl.mechanism, since that is all a broker says to who does not speak as its port expects"
	}
	code, _ := errors.AsType[kgo.Error](err)
	switch code {
	case kgo.SASLAuthenticationFailed:
		return "check kafka.sasl.username and kafka.sasl.password"
	case kgo.UnsupportedSASLMechanism, kgo.IllegalSASLState:
		return "the broker does not offer this at this port: check kafka.sasl.mechanism"
	case kgo.TopicAuthorizationFailed:
		return "this user may not do that to the topic: give it Describe, Read and Write"
	case kgo.GroupAuthorizationFailed:
		return "this user may not use the consumer group: give it Read on the group"
	case kgo.ClusterAuthorizationFailed:
		return "this user may not do that to the cluster"
	case kgo.MessageSizeTooLarge, kgo.RecordListTooLarge:
		return "raise max.message.bytes of the topic and kafka.maxMessage, or make batches smaller"
	}
	return ""
}
