package kafka

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func mustOpen(t *testing.T, cfg Config, opts Options) *Client {
	t.Helper()
	c, err := Open(cfg, nil, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(DefaultConfig(), nil, Options{}); err == nil || !strings.HasPrefix(err.Error(), "brokers: is empty") {
		t.Errorf("no broker: %v", err)
	}
	c := testConfig()
	c.Timeout = 0
	if _, err := Open(c, nil, Options{}); err == nil || !strings.HasPrefix(err.Error(), "timeout: ") {
		t.Errorf("an invalid configuration: %v", err)
	}
	c = testConfig()
	c.SASL = SASLConfig{Mechanism: "scram-sha-256", Username: "u", Password: "env:P"}
	if _, err := Open(c, nil, Options{}); err == nil || !strings.HasPrefix(err.Error(), "sasl.password: ") {
		t.Errorf("nobody resolves: %v", err)
	}
	missing := errors.New("the environment variable P is not set")
	if _, err := Open(c, func(string) (string, error) { return "", missing }, Options{}); !errors.Is(err, missing) || !strings.HasPrefix(err.Error(), "sasl.password: ") {
		t.Errorf("no secret: %v", err)
	}
	const secret = "geheim\u0007\u0340"
	if _, err := Open(c, func(string) (string, error) { return secret, nil }, Options{}); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("a password SASLprep forbids: %v", err)
	}
}

func TestOpenResolvesOnce(t *testing.T) {
	for _, mechanism := range []string{"plain", "scram-sha-256", "scram-sha-512"} {
		c := testConfig()
		c.SASL = SASLConfig{Mechanism: mechanism, Username: "u", Password: "file:/secret"}
		var asked []string
		client, err := Open(c, func(ref string) (string, error) { asked = append(asked, ref); return "s3cret", nil }, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if len(asked) != 1 || asked[0] != "file:/secret" {
			t.Errorf("%s: asked for %q", mechanism, asked)
		}
		if client.trans.SASL == nil || !strings.EqualFold(client.trans.SASL.Name(), mechanism) {
			t.Errorf("%s: the mechanism is not in use", mechanism)
		}
		client.Close()
	}
}

func TestMetricsAreTakenBack(t *testing.T) {
	reg := prometheus.NewRegistry()
	for range 2 {
		c, err := Open(testConfig(), nil, Options{Metrics: reg})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(testConfig(), nil, Options{Metrics: reg}); err == nil {
			t.Error("two clients share a registry")
		}
		c.Close()
	}
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.Brokers = []string{l.Addr().String()}
	l.Close()
	c := mustOpen(t, cfg, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := c.ClusterID(ctx); err == nil || !Retryable(err) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("cluster id: %v", err)
	}
	if _, err := c.Partitions(ctx, "x"); err == nil || !Retryable(err) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("partitions: %v", err)
	}
	// While nobody answers, a topic is not missing.
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = c.Produce(short, "x", 0, Message{Value: []byte("v")})
	p, ok := errors.AsType[*ProduceError](err)
	if !ok || p.Permanent || p.Attempts < 3 || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("produce: %v", err)
	}
}

// A broker that takes connections and says nothing must not hold up a request
// longer than the time limit, nor the log-in, for which kafka-go sets none.
func TestBrokerSaysNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
		}
	}()
	cfg := testConfig()
	cfg.Brokers, cfg.Timeout = []string{l.Addr().String()}, time.Second
	c := mustOpen(t, cfg, Options{})
	start := time.Now()
	if _, err := c.ClusterID(t.Context()); err == nil || !Retryable(err) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("it took %v", d)
	}

	conn, err := boundedDial(50*time.Millisecond)(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := make([]byte, 1)
	timed := func(what string, least, most time.Duration) {
		t.Helper()
		start := time.Now()
		if _, err := conn.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", what, err)
		}
		if d := time.Since(start); d < least || d > most {
			t.Errorf("%s: took %v", what, d)
		}
	}
	timed("without a deadline", 40*time.Millisecond, 2*time.Second)
	timed("and once more", 40*time.Millisecond, 2*time.Second)
	if err := conn.SetDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	timed("with a deadline of its own", 190*time.Millisecond, 2*time.Second)
	if err := conn.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	timed("the deadline taken back", 40*time.Millisecond, 2*time.Second)
}
