package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	kgo "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	metadataAPI "github.com/segmentio/kafka-go/protocol/metadata"
	produceAPI "github.com/segmentio/kafka-go/protocol/produce"
)

// scripted answers produce requests with one step after another, the last again
// and again, and says that it has topic t with two partitions.
type scripted struct {
	steps    []any // an error, a kgo.Error in the answer, or an offset
	requests []*produceAPI.Request
	values   []string
	metaErr  error
}

func (s *scripted) RoundTrip(_ context.Context, _ net.Addr, req kgo.Request) (kgo.Response, error) {
	switch req := req.(type) {
	case *metadataAPI.Request:
		if s.metaErr != nil {
			return nil, s.metaErr
		}
		res := &metadataAPI.Response{}
		for _, name := range req.TopicNames {
			topic := metadataAPI.ResponseTopic{Name: name}
			if name == "t" {
				topic.Partitions = make([]metadataAPI.ResponsePartition, 2)
			} else {
				topic.ErrorCode = int16(kgo.UnknownTopicOrPartition)
			}
			res.Topics = append(res.Topics, topic)
		}
		return res, nil
	case *produceAPI.Request:
		s.requests = append(s.requests, req)
		records := req.Topics[0].Partitions[0].RecordSet.Records
		r, err := records.ReadRecord()
		if err != nil {
			return nil, err
		}
		value, err := protocol.ReadAll(r.Value)
		if err != nil {
			return nil, err
		}
		s.values = append(s.values, string(value))
		step := s.steps[min(len(s.requests), len(s.steps))-1]
		partition := produceAPI.ResponsePartition{}
		switch step := step.(type) {
		case kgo.Error:
			partition.ErrorCode = int16(step)
		case error:
			return nil, step
		case int:
			partition.BaseOffset = int64(step)
		case produceAPI.ResponsePartition:
			partition = step
		}
		return &produceAPI.Response{Topics: []produceAPI.ResponseTopic{{Partitions: []produceAPI.ResponsePartition{partition}}}}, nil
	}
	return nil, fmt.Errorf("unexpected %T", req)
}

func scriptedClient(t *testing.T, s *scripted) *Client {
	t.Helper()
	c := mustOpen(t, testConfig(), Options{})
	c.kafka.Transport = s
	return c
}

func TestProduceRetries(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	for _, tc := range []struct {
		name  string
		steps []any
	}{
		{"at once", []any{7}},
		{"no leader is known", []any{produceAPI.NewError(protocol.NewErrNoLeader("t", 0)), 7}},
		{"leader moved", []any{kgo.NotLeaderForPartition, kgo.LeaderNotAvailable, 7}},
		{"broker restarts", []any{io.EOF, refused, refused, kgo.BrokerNotAvailable, kgo.NotEnoughReplicas, 7}},
		{"answer lost", []any{context.DeadlineExceeded, 7}},
		{"answer cut", []any{io.ErrUnexpectedEOF, 7}},
		{"replicas slow", []any{kgo.RequestTimedOut, kgo.NotEnoughReplicasAfterAppend, 7}},
		{"topic just made", []any{kgo.UnknownTopicOrPartition, protocol.NewErrNoTopic("t"), 7}},
		{"disk", []any{kgo.KafkaStorageError, kgo.Unknown, 7}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scripted{steps: tc.steps}
				c := scriptedClient(t, s)
				offset, err := c.Produce(t.Context(), "t", 1, Message{Value: []byte("v1")}, Message{Value: []byte("v2")})
				if err != nil || offset != 7 {
					t.Fatalf("offset %d, %v", offset, err)
				}
				if len(s.requests) != len(tc.steps) {
					t.Errorf("%d requests, want %d", len(s.requests), len(tc.steps))
				}
				for i, r := range s.requests {
					p := r.Topics[0].Partitions[0]
					if r.Acks != -1 || p.Partition != 1 || p.RecordSet.Attributes.Compression() != kgo.Zstd || s.values[i] != "v1" {
						t.Errorf("request %d: acks %d, partition %d, %v, value %q", i, r.Acks, p.Partition, p.RecordSet.Attributes, s.values[i])
					}
				}
			})
		})
	}
}

func TestProducePermanent(t *testing.T) {
	for _, tc := range []struct {
		name, topic string
		partition   int
		step        any
		requests    int
		is          error
		says        string
	}{
		{"too large", "t", 0, kgo.MessageSizeTooLarge, 1, kgo.MessageSizeTooLarge, "max.message.bytes"},
		{"not authorised", "t", 0, kgo.TopicAuthorizationFailed, 1, kgo.TopicAuthorizationFailed, "Write"},
		{"wrong password", "t", 0, kgo.SASLAuthenticationFailed, 1, kgo.SASLAuthenticationFailed, "kafka.sasl.password"},
		{"wrong authority", "t", 0, &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, 1, nil, "kafka.tls.ca"},
		{"invalid record", "t", 0, produceAPI.ResponsePartition{ErrorCode: int16(kgo.InvalidRecord), RecordErrors: []produceAPI.ResponseError{{BatchIndexErrorMessage: "no key"}}}, 1, kgo.InvalidRecord, "no key"},
		{"record errors alone", "t", 0, produceAPI.ResponsePartition{RecordErrors: []produceAPI.ResponseError{{BatchIndexErrorMessage: "no key"}}}, 1, kgo.InvalidRecord, "no key"},
		{"no topic", "u", 0, protocol.NewErrNoTopic("u"), missingTopicAttempts, kgo.UnknownTopicOrPartition, "postern kafka init"},
		{"no topic, says the broker", "u", 0, kgo.UnknownTopicOrPartition, missingTopicAttempts, kgo.UnknownTopicOrPartition, "postern kafka init"},
		{"no partition", "t", 2, protocol.NewErrNoPartition("t", 2), missingTopicAttempts, kgo.UnknownTopicOrPartition, "partitions 0 to 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &scripted{steps: []any{tc.step}}
				c := scriptedClient(t, s)
				_, err := c.Produce(t.Context(), tc.topic, tc.partition, Message{Value: []byte("v")})
				p, ok := errors.AsType[*ProduceError](err)
				if !ok || !p.Permanent || p.Attempts != tc.requests || len(s.requests) != tc.requests || Retryable(err) {
					t.Errorf("%v: permanent %v, %d requests, retryable %v", err, ok && p.Permanent, len(s.requests), Retryable(err))
				}
				if tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("%v; want %v and %q in it", err, tc.is, tc.says)
				}
			})
		})
	}
}

func TestProduceRefusesWithoutAsking(t *testing.T) {
	s := &scripted{steps: []any{7}}
	c := scriptedClient(t, s)
	if _, err := c.Produce(t.Context(), "t", 0); err == nil || Retryable(err) {
		t.Errorf("no messages: %v", err)
	}
	large := Message{Value: make([]byte, c.cfg.MaxMessage)}
	if _, err := c.Produce(t.Context(), "t", 0, large); !errors.Is(err, kgo.MessageSizeTooLarge) || Retryable(err) {
		t.Errorf("too large: %v", err)
	}
	if len(s.requests) != 0 {
		t.Errorf("%d requests", len(s.requests))
	}
}

func TestProduceEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{steps: []any{kgo.NotEnoughReplicas}}
		c := scriptedClient(t, s)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		_, err := c.Produce(ctx, "t", 0, Message{Value: []byte("v")})
		if time.Since(start) != time.Minute || !errors.Is(err, kgo.NotEnoughReplicas) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		// 50 ms doubled up to 1 s, 30 per cent more or less: about 64 in a minute.
		if n := len(s.requests); n < 48 || n > 90 {
			t.Errorf("%d attempts in a minute", n)
		}
		if p, ok := errors.AsType[*ProduceError](err); !ok || p.Permanent || p.Attempts != len(s.requests) {
			t.Errorf("%#v", err)
		}
	})
}

// While no broker has answered, the transport says that there is no such topic.
func TestProduceUnreachableIsNotMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{steps: []any{protocol.NewErrNoTopic("t")}, metaErr: io.EOF}
		c := scriptedClient(t, s)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := c.Produce(ctx, "t", 0, Message{Value: []byte("v")})
		if !errors.Is(err, io.EOF) || errors.Is(err, kgo.UnknownTopicOrPartition) || len(s.requests) <= missingTopicAttempts {
			t.Errorf("%d attempts, %v", len(s.requests), err)
		}
	})
}

// A wrong password must not be tried for ever, although no topic is known then.
func TestProduceWrongPasswordBeforeMetadata(t *testing.T) {
	s := &scripted{steps: []any{protocol.NewErrNoTopic("t")}, metaErr: kgo.SASLAuthenticationFailed}
	c := scriptedClient(t, s)
	_, err := c.Produce(t.Context(), "t", 0, Message{Value: []byte("v")})
	if p, ok := errors.AsType[*ProduceError](err); !ok || !p.Permanent || p.Attempts != 1 || !strings.Contains(err.Error(), "kafka.sasl.password") {
		t.Errorf("%v", err)
	}
}

func TestRetryable(t *testing.T) {
	for err, want := range map[error]bool{
		fmt.Errorf("x: %w", kgo.NotLeaderForPartition):    true,
		kgo.GroupLoadInProgress:                           true,
		kgo.NotCoordinatorForGroup:                        true,
		kgo.BrokerNotAvailable:                            true,
		kgo.OffsetOutOfRange:                              false,
		kgo.IllegalGeneration:                             false,
		kgo.UnknownMemberId:                               false,
		kgo.RebalanceInProgress:                           false,
		kgo.MessageSizeTooLarge:                           false,
		kgo.GroupAuthorizationFailed:                      false,
		kgo.UnsupportedVersion:                            false,
		context.Canceled:                                  false,
		context.DeadlineExceeded:                          true,
		io.EOF:                                            true,
		net.ErrClosed:                                     true,
		&net.OpError{Op: "read", Err: syscall.ECONNRESET}: true,
		&net.DNSError{Name: "kafka", IsNotFound: true}:    true,
		&net.OpError{Op: "remote error", Err: tls.AlertError(42)}: false,
		tls.AlertError(42):                                                        false,
		tls.RecordHeaderError{}:                                                   false,
		&ProduceError{Permanent: true, Err: io.EOF}:                               false,
		&ProduceError{Err: io.EOF}:                                                true,
		errors.New("something else"):                                              false,
		produceAPI.NewError(protocol.NewErrNoLeader("t", 1)):                      true,
		protocol.NewErrNoPartition("t", 1):                                        true,
		&tls.CertificateVerificationError{Err: x509.HostnameError{Host: "kafka"}}: false,
	} {
		if Retryable(err) != want {
			t.Errorf("%T %v: retryable is not %v", err, err, want)
		}
	}
	if Retryable(nil) {
		t.Error("success is retryable")
	}
}

// The caller may use its buffers again at once, whether or not an abandoned
// request is still being written.
func TestProduceCopies(t *testing.T) {
	key, value, header := []byte("k"), []byte("v"), []byte("h")
	m := cloneMessages([]Message{{Key: key, Value: value, Headers: []kgo.Header{{Key: "n", Value: header}}}, {}})
	key[0], value[0], header[0] = 'x', 'x', 'x'
	if string(m[0].Key)+string(m[0].Value)+string(m[0].Headers[0].Value) != "kvh" {
		t.Error("not copied")
	}
	if m[1].Key != nil || m[1].Value != nil {
		t.Error("nil became empty: a tombstone would be lost")
	}
}
