package kafka

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kgo "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/test/broker"
)

// These tests speak to a real broker.

func realConfig(addr string) Config {
	c := DefaultConfig()
	c.Brokers, c.Partitions, c.Replication = []string{addr}, 3, 1
	return c
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// readAll is all that a partition has from the offset from on.
func readAll(t *testing.T, c *Client, topic string, partition int, from int64) []Record {
	t.Helper()
	ctx := within(t, 30*time.Second)
	_, end, err := c.Offsets(ctx, topic, partition)
	if err != nil {
		t.Fatal(err)
	}
	var out []Record
	for from < end {
		f, err := c.Fetch(ctx, topic, partition, from, 1<<20, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, f.Records...)
		from = f.Next
	}
	return out
}

func TestRealTopics(t *testing.T) {
	b := broker.Shared(t)
	ctx := within(t, time.Minute)
	cfg := realConfig(b.Addr())
	cfg.Prefix = b.Topic(t, "plan")
	c := mustOpen(t, cfg, Options{})

	if id, err := c.ClusterID(ctx); err != nil || len(id) < 10 {
		t.Errorf("cluster id %q, %v", id, err)
	}
	if _, err := c.Partitions(ctx, cfg.Topic(TopicFlows)); err == nil || !strings.Contains(err.Error(), cfg.Topic(TopicFlows)) || !strings.Contains(err.Error(), "postern kafka init") || !errors.Is(err, kgo.UnknownTopicOrPartition) {
		t.Errorf("no topic: %v", err)
	}

	apply := func(cfg Config) ([]string, error) {
		var lines []string
		err := c.Apply(ctx, Plan(cfg), func(s string) { lines = append(lines, s) })
		return lines, err
	}
	lines, err := apply(cfg)
	if err != nil || len(lines) != len(Plan(cfg)) {
		t.Fatalf("%q, %v", lines, err)
	}
	for i, s := range Plan(cfg) {
		if !strings.HasPrefix(lines[i], s.Name+": created with ") {
			t.Errorf("%q", lines[i])
		}
		if n, err := c.Partitions(ctx, s.Name); err != nil || n != s.Partitions {
			t.Errorf("%s has %d partitions, %v", s.Name, n, err)
		}
		if first, next, err := c.Offsets(ctx, s.Name, s.Partitions-1); err != nil || first != 0 || next != 0 {
			t.Errorf("%s: offsets %d to %d, %v", s.Name, first, next, err)
		}
	}
	lines, err = apply(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range Plan(cfg) {
		if lines[i] != s.Name+": exists, as planned" {
			t.Errorf("%q", lines[i])
		}
	}

	other := cfg
	other.Partitions, other.Retention = 4, 48*time.Hour
	lines, err = apply(other)
	if want := cfg.Topic(TopicFlows) + ": exists and is left as it is, with 3 partitions instead of 4, retention.ms=259200000 instead of 172800000"; err != nil || lines[0] != want {
		t.Errorf("%q, %v; want %q", lines[0], err, want)
	}
	if n, err := c.Partitions(ctx, cfg.Topic(TopicFlows)); err != nil || n != 3 {
		t.Errorf("changed to %d partitions, %v", n, err)
	}

	other = cfg
	other.Prefix, other.Replication = b.Topic(t, "replicas"), 3
	lines, err = apply(other)
	if err == nil || len(lines) != 0 || !errors.Is(err, kgo.InvalidReplicationFactor) || !strings.Contains(err.Error(), "kafka.replication") {
		t.Errorf("%q, %v", lines, err)
	}
	start := time.Now()
	if _, _, err := c.Offsets(ctx, cfg.Topic(TopicFlows), 99); err == nil || !strings.Contains(err.Error(), "partitions 0 to 2") || time.Since(start) > 3*time.Second {
		t.Errorf("offsets of a partition that does not exist: %v, after %v", err, time.Since(start))
	}
	if _, _, err := c.Offsets(ctx, b.Topic(t, "none"), 0); err == nil || !strings.Contains(err.Error(), "postern kafka init") {
		t.Errorf("offsets of a topic that does not exist: %v", err)
	}
}

func TestRealProduce(t *testing.T) {
	b := broker.Shared(t)
	ctx := within(t, time.Minute)
	cfg := realConfig(b.Addr())
	cfg.MaxMessage = 4 * flow.MiB
	c := mustOpen(t, cfg, Options{})
	topic := b.CreateTopic(t, "produce", 2, kgo.ConfigEntry{ConfigName: "max.message.bytes", ConfigValue: "100000"})

	at := time.UnixMilli(1_700_000_000_123)
	in := []Message{
		{Key: []byte("k"), Value: []byte("one"), Headers: []kgo.Header{{Key: "h", Value: []byte{0, 1}}}, Time: at},
		{Key: nil, Value: nil, Time: at.Add(-time.Hour)},
		{Key: []byte{}, Value: []byte{}, Time: at},
		{Value: make([]byte, 1<<20)}, // compresses to next to nothing
	}
	before := time.Now().Add(-time.Second)
	for i := range int64(2) {
		if offset, err := c.Produce(ctx, topic, 1, in...); err != nil || offset != i*int64(len(in)) {
			t.Fatalf("offset %d, %v", offset, err)
		}
	}
	if first, next, err := c.Offsets(ctx, topic, 1); err != nil || first != 0 || next != 8 {
		t.Errorf("offsets %d to %d, %v", first, next, err)
	}
	if _, next, err := c.Offsets(ctx, topic, 0); err != nil || next != 0 {
		t.Errorf("the other partition has %d, %v", next, err)
	}
	out := readAll(t, c, topic, 1, 0)
	if len(out) != 8 {
		t.Fatalf("%d records", len(out))
	}
	for i, r := range out {
		want := in[i%len(in)]
		if want.Time.IsZero() {
			if r.Time.Before(before) || r.Time.After(time.Now().Add(time.Second)) {
				t.Errorf("a message without a time got %v", r.Time)
			}
		} else if !r.Time.Equal(want.Time) {
			t.Errorf("%d: time %v, want %v", i, r.Time, want.Time)
		}
		if r.Offset != int64(i) || string(r.Key) != string(want.Key) || string(r.Value) != string(want.Value) || (r.Value == nil) != (want.Value == nil) || (r.Key == nil) != (want.Key == nil) {
			t.Errorf("%d: %d %q %.20q", i, r.Offset, r.Key, r.Value)
		}
		if d := cmp.Diff(want.Headers, r.Headers); d != "" {
			t.Error(d)
		}
	}
	res, err := c.Kafka().Fetch(ctx, &kgo.FetchRequest{Topic: topic, Partition: 1, MinBytes: 1, MaxBytes: 1 << 20})
	if err != nil || res.Error != nil {
		t.Fatal(err, res.Error)
	}
	batches := res.Records.(*protocol.RecordStream).Records
	if batch, ok := batches[0].(*protocol.RecordBatch); !ok || len(batches) != 2 || batch.Attributes.Compression() != kgo.Zstd {
		t.Errorf("%d batches, %T", len(batches), batches[0])
	}

	permanent := func(what string, is error, says, topic string, partition int, m Message) {
		t.Helper()
		start := time.Now()
		_, err := c.Produce(ctx, topic, partition, m)
		if p, ok := errors.AsType[*ProduceError](err); !ok || !p.Permanent || !errors.Is(err, is) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", what, err)
		}
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("%s: took %v", what, d)
		}
	}
	permanent("more than the topic takes", kgo.MessageSizeTooLarge, "max.message.bytes", topic, 0, Message{Value: noise(200_000)})
	permanent("no partition", kgo.UnknownTopicOrPartition, "partitions 0 to 1", topic, 2, Message{Value: []byte("v")})
	permanent("no topic", kgo.UnknownTopicOrPartition, "postern kafka init", b.Topic(t, "missing"), 0, Message{Value: []byte("v")})
	if _, err := c.Produce(ctx, topic, 0, Message{Value: []byte("still works")}); err != nil {
		t.Error(err)
	}

	// A topic that is made while somebody tries to write to it.
	late := b.Topic(t, "late")
	done := make(chan error)
	go func() {
		_, err := c.Produce(ctx, late, 0, Message{Value: []byte("v")})
		done <- err
	}()
	time.Sleep(100 * time.Millisecond)
	if _, err := c.kafka.CreateTopics(ctx, &kgo.CreateTopicsRequest{Topics: []kgo.TopicConfig{{Topic: late, NumPartitions: 1, ReplicationFactor: 1}}}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("a topic made just now: %v", err)
	}
}

func TestRealDeadLetters(t *testing.T) {
	b := broker.Shared(t)
	ctx := within(t, time.Minute)
	cfg := realConfig(b.Addr())
	cfg.Prefix = b.Topic(t, "dead")
	c := mustOpen(t, cfg, Options{})
	each := func(int64, DeadLetter) error { return nil }
	if _, err := c.DeadLetters(ctx, 0, each); err == nil || !strings.Contains(err.Error(), "postern kafka init") {
		t.Errorf("no topic: %v", err)
	}
	if err := c.Apply(ctx, Plan(cfg), func(string) {}); err != nil {
		t.Fatal(err)
	}
	if next, err := c.DeadLetters(ctx, 0, each); err != nil || next != 0 {
		t.Errorf("an empty topic: %d, %v", next, err)
	}
	origin := b.CreateTopic(t, "origin", 3)
	var want []DeadLetter
	for i := range 50 {
		d := DeadLetter{Topic: origin, Partition: i % 3, Offset: int64(i), Time: time.UnixMilli(1_700_000_000_000 + int64(i)).UTC(), Key: fmt.Appendf(nil, "k%d", i),
			Value: noise(20_000 + i), Reason: fmt.Sprintf("reason %d", i), Headers: []kgo.Header{{Key: "h", Value: []byte("v")}}}
		if i == 25 { // somebody else writes here
			if _, err := c.Produce(ctx, cfg.Topic(TopicDead), 0, Message{Value: []byte("x")}); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.PutDead(ctx, d); err != nil {
			t.Fatal(err)
		}
		want = append(want, d)
	}
	var got []DeadLetter
	var places []int64
	next, err := c.DeadLetters(ctx, -1, func(at int64, d DeadLetter) error {
		got, places = append(got, d), append(places, at)
		return nil
	})
	if err != nil || next != 51 {
		t.Fatalf("next %d, %v", next, err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	stop := errors.New("enough")
	if next, err := c.DeadLetters(ctx, 30, func(at int64, _ DeadLetter) error {
		if at == 33 {
			return stop
		}
		return nil
	}); !errors.Is(err, stop) || next != 33 {
		t.Errorf("stopped at %d, %v", next, err)
	}
	if d, err := c.DeadLetter(ctx, places[40]); err != nil || d.Offset != 40 {
		t.Errorf("%+v, %v", d, err)
	}
	for _, at := range []int64{25, 51, 1000} {
		if _, err := c.DeadLetter(ctx, at); err == nil {
			t.Errorf("a dead letter at %d", at)
		}
	}
	if _, err := c.ReplayDead(ctx, want[4]); err != nil {
		t.Fatal(err)
	}
	if r := readAll(t, c, origin, 1, 0); len(r) != 1 || string(r[0].Value) != string(want[4].Value) || string(r[0].Key) != "k4" || !r[0].Time.Equal(want[4].Time) || len(r[0].Headers) != 2 || !r[0].Replayed() {
		t.Errorf("%d records were replayed, or not as they were", len(r))
	}

	// Larger than anything of ours, and a dead-letter topic that somebody made small.
	large := DeadLetter{Topic: origin, Partition: 2, Offset: 9, Value: noise(3 << 20), Reason: "large"}
	if err := c.PutDead(ctx, large); err != nil {
		t.Fatal(err)
	}
	if d, err := c.DeadLetter(ctx, next); err != nil || d.Cut == 0 || d.Cut+len(d.Value) != 3<<20 || len(d.Value) < 1<<20-1000 {
		t.Errorf("%d left, %d cut, %v", len(d.Value), d.Cut, err)
	}
	small := cfg
	small.Prefix = b.Topic(t, "smalldead")
	plan := Plan(small)
	dead := plan[len(plan)-1]
	for i := range dead.Config {
		if dead.Config[i].Key == "max.message.bytes" {
			dead.Config[i].Value = "100000"
		}
	}
	if err := c.Apply(ctx, []TopicSpec{dead}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	c = mustOpen(t, small, Options{})
	if err := c.PutDead(ctx, large); err != nil {
		t.Fatal(err)
	}
	if d, err := c.DeadLetter(ctx, 0); err != nil || d.Cut+len(d.Value) != 3<<20 || len(d.Value) < 50_000 {
		t.Errorf("%d left, %d cut, %v", len(d.Value), d.Cut, err)
	}
}

func TestRealSecurity(t *testing.T) {
	b := broker.Start(t, broker.WithTLS(), broker.WithSASL())
	id := b.TLS()
	trust := TLSConfig{Enabled: true, CA: id.CAFile}
	both := TLSConfig{Enabled: true, CA: id.CAFile, Cert: id.CertFile, Key: id.KeyFile}
	login := func(mechanism, password string) SASLConfig {
		return SASLConfig{Mechanism: mechanism, Username: broker.User, Password: password}
	}
	for _, tc := range []struct {
		name, addr string
		tls        TLSConfig
		sasl       SASLConfig
		says       string // in the error; empty if it works
		is         error
	}{
		{"plain", b.Addr(), TLSConfig{}, SASLConfig{}, "", nil},
		{"TLS", b.TLSAddr(), trust, SASLConfig{}, "", nil},
		{"TLS, anything goes", b.TLSAddr(), TLSConfig{Enabled: true, Insecure: true}, SASLConfig{}, "", nil},
		{"TLS, other name", b.TLSAddr(), TLSConfig{Enabled: true, CA: id.CAFile, ServerName: "localhost"}, SASLConfig{}, "", nil},
		{"mTLS", b.MTLSAddr(), both, SASLConfig{}, "", nil},
		{"PLAIN", b.SASLAddr(), TLSConfig{}, login("plain", broker.Password), "", nil},
		{"SCRAM-SHA-256", b.SASLAddr(), TLSConfig{}, login("scram-sha-256", broker.Password), "", nil},
		{"SCRAM-SHA-512", b.SASLAddr(), TLSConfig{}, login("scram-sha-512", broker.Password), "", nil},
		{"TLS and SCRAM", b.SASLTLSAddr(), trust, login("scram-sha-512", broker.Password), "", nil},
		{"TLS and PLAIN", b.SASLTLSAddr(), trust, login("plain", broker.Password), "", nil},

		{"wrong authority", b.TLSAddr(), TLSConfig{Enabled: true}, SASLConfig{}, "kafka.tls.ca", nil},
		{"wrong name", b.TLSAddr(), TLSConfig{Enabled: true, CA: id.CAFile, ServerName: "kafka.example.net"}, SASLConfig{}, "kafka.tls.serverName", nil},
		{"no certificate", b.MTLSAddr(), trust, SASLConfig{}, "kafka.tls.cert", nil},
		{"wrong password, PLAIN", b.SASLAddr(), TLSConfig{}, login("plain", "wrong"), "kafka.sasl.password", kgo.SASLAuthenticationFailed},
		{"wrong password, SCRAM", b.SASLAddr(), TLSConfig{}, login("scram-sha-512", "wrong"), "kafka.sasl.password", kgo.SASLAuthenticationFailed},
		{"wrong user, SCRAM", b.SASLTLSAddr(), trust, SASLConfig{Mechanism: "scram-sha-256", Username: "nobody", Password: broker.Password}, "kafka.sasl.password", kgo.SASLAuthenticationFailed},
		{"TLS to a plain port", b.Addr(), trust, SASLConfig{}, "kafka.tls.enabled", nil},
		{"plain to a TLS port", b.TLSAddr(), TLSConfig{}, SASLConfig{}, "kafka.tls.enabled", nil},
		{"no log-in where one is asked", b.SASLAddr(), TLSConfig{}, SASLConfig{}, "kafka.sasl", nil},
		{"log-in where none is asked", b.Addr(), TLSConfig{}, login("plain", broker.Password), "kafka.sasl.mechanism", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := within(t, 20*time.Second)
			cfg := realConfig(tc.addr)
			cfg.TLS, cfg.SASL, cfg.Timeout = tc.tls, tc.sasl, 5*time.Second
			if cfg.SASL.Password != "" {
				cfg.SASL.Password = "env:PASSWORD"
			}
			c, err := Open(cfg, func(string) (string, error) { return tc.sasl.Password, nil }, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			start := time.Now()
			_, err = c.ClusterID(ctx)
			if tc.says != "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) || tc.is != nil && !errors.Is(err, tc.is) {
					t.Errorf("got %v; want %q in it", err, tc.says)
				}
				if err != nil && (strings.Contains(err.Error(), broker.Password) || time.Since(start) > 7*time.Second) {
					t.Errorf("after %v: %v", time.Since(start), err)
				}
				t.Log(err, Retryable(err))
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			topic := b.Topic(t, "secure")
			if err := c.Apply(ctx, []TopicSpec{{Name: topic, Partitions: 1, Replication: 1}}, func(string) {}); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Produce(ctx, topic, 0, Message{Value: []byte("v")}); err != nil {
				t.Fatal(err)
			}
			if r := readAll(t, c, topic, 0, 0); len(r) != 1 || string(r[0].Value) != "v" {
				t.Errorf("%v", r)
			}
		})
	}
}

// proxy forwards connections to a broker, cuts them all when asked to, and can cut
// instead of passing an answer on.
type proxy struct {
	listener net.Listener
	to       string
	mute     atomic.Int32 // so many produce answers are not passed on
	mu       sync.Mutex
	conns    map[net.Conn]bool
}

func startProxy(t *testing.T) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); p.cut() })
	return p
}

func (p *proxy) serve(to string) {
	p.to = to
	go func() {
		for {
			conn, err := p.listener.Accept()
			if err != nil {
				return
			}
			go p.forward(conn)
		}
	}()
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

func (p *proxy) forward(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer server.Close()
	p.mu.Lock()
	p.conns[client], p.conns[server] = true, true
	p.mu.Unlock()
	var produced atomic.Bool
	go func() {
		defer server.Close()
		buf := make([]byte, 1<<20)
		for {
			n, err := client.Read(buf)
			if n >= 8 && buf[4] == 0 && buf[5] == 0 { // API key 0 is Produce
				produced.Store(true)
			}
			if err != nil {
				return
			}
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 1<<20)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		if produced.Swap(false) && p.mute.Add(-1) >= 0 {
			return
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

// deduplicated is the order in which values first appear.
func deduplicated(records []Record) (values []string, duplicates int) {
	seen := map[string]bool{}
	for _, r := range records {
		if seen[string(r.Value)] {
			duplicates++
			continue
		}
		seen[string(r.Value)] = true
		values = append(values, string(r.Value))
	}
	return values, duplicates
}

func TestRealConnectionCut(t *testing.T) {
	p := startProxy(t)
	b := broker.Start(t, broker.WithAdvertised(p.listener.Addr().String()))
	p.serve(b.BehindAddr())
	topic := b.CreateTopic(t, "cut", 1)
	c := mustOpen(t, realConfig(p.listener.Addr().String()), Options{})
	ctx := within(t, time.Minute)

	// An idle connection is cut: the next batch goes through all the same.
	for i := range 5 {
		if _, err := c.Produce(ctx, topic, 0, Message{Value: fmt.Appendf(nil, "idle %d", i)}); err != nil {
			t.Fatal(err)
		}
		p.cut()
	}
	// An answer is lost: the batch is in the log twice, and its second place is told.
	p.mute.Store(1)
	offset, err := c.Produce(ctx, topic, 0, Message{Value: []byte("twice")})
	if err != nil {
		t.Fatal(err)
	}
	records := readAll(t, c, topic, 0, 0)
	values, duplicates := deduplicated(records)
	if duplicates != 1 || len(values) != 6 || string(records[offset].Value) != "twice" || string(records[offset-1].Value) != "twice" {
		t.Errorf("%d duplicates in %q, offset %d", duplicates, values, offset)
	}

	// Cuts at any time, and mostly not before something got through, which may take long on a busy machine.
	stop := make(chan struct{})
	var cuts sync.WaitGroup
	var through atomic.Int64
	cuts.Go(func() {
		last := int64(-1)
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				if n := through.Load(); n != last || rand.IntN(4) == 0 {
					p.cut()
					last = n
				}
			}
		}
	})
	var want []string
	for i := range 300 {
		value := fmt.Sprintf("at any time %d", i)
		if _, err := c.Produce(ctx, topic, 0, Message{Value: []byte(value)}); err != nil {
			t.Fatal(err)
		}
		through.Add(1)
		want = append(want, value)
	}
	close(stop)
	cuts.Wait()
	values, duplicates = deduplicated(readAll(t, c, topic, 0, offset+1))
	if d := cmp.Diff(want, values); d != "" {
		t.Error(d)
	}
	t.Logf("%d duplicates of %d", duplicates, len(want))
}

func TestRealRestart(t *testing.T) {
	b := broker.Start(t)
	topic := b.CreateTopic(t, "restart", 1)
	c := mustOpen(t, realConfig(b.Addr()), Options{})
	ctx := within(t, 2*time.Minute)
	var produced atomic.Int64
	done := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := c.Produce(ctx, topic, 0, Message{Value: fmt.Append(nil, i)}); err != nil {
				done <- err
				return
			}
			produced.Add(1)
		}
	}()
	for _, end := range []func(){b.Stop, b.Kill} {
		time.Sleep(300 * time.Millisecond)
		end()
		n := produced.Load()
		time.Sleep(500 * time.Millisecond)
		b.Restart()
		start := time.Now()
		for produced.Load() < n+10 && time.Since(start) < 30*time.Second {
			time.Sleep(10 * time.Millisecond)
		}
		if produced.Load() < n+10 {
			t.Fatal("it does not go on after the restart")
		}
		t.Logf("went on %v after the restart", time.Since(start))
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	values, duplicates := deduplicated(readAll(t, c, topic, 0, 0))
	if len(values) != int(produced.Load()) {
		t.Errorf("%d of %d acknowledged values in the log", len(values), produced.Load())
	}
	for i, v := range values {
		if v != fmt.Sprint(i) {
			t.Fatalf("%s at place %d", v, i)
		}
	}
	t.Logf("%d values, %d duplicates", len(values), duplicates)
}

// A leader is killed while somebody writes to its partition: the writer goes on at the
// new one, and everything acknowledged is there, in order.
func TestRealLeaderLost(t *testing.T) {
	cluster := broker.StartCluster(t, 3)
	cfg := realConfig(cluster.Addrs()[0])
	cfg.Brokers, cfg.Prefix, cfg.Partitions, cfg.Replication = cluster.Addrs(), "lost", 1, 3
	c := mustOpen(t, cfg, Options{})
	ctx := within(t, 2*time.Minute)
	if err := c.Apply(ctx, Plan(cfg)[:1], func(string) {}); err != nil {
		t.Fatal(err)
	}
	topic := cfg.Topic(TopicFlows)
	leader := func() int {
		c.Refresh()
		res, err := c.kafka.Metadata(ctx, &kgo.MetadataRequest{Topics: []string{topic}})
		if err != nil {
			t.Fatal(err)
		}
		at := fmt.Sprintf("127.0.0.1:%d", res.Topics[0].Partitions[0].Leader.Port)
		for i, b := range cluster.Brokers() {
			if b.Addr() == at {
				return i
			}
		}
		t.Fatalf("no broker is at %s", at)
		return 0
	}
	n := 0
	produce := func(count int) time.Duration {
		var longest time.Duration
		for range count {
			start := time.Now()
			if _, err := c.Produce(ctx, topic, 0, Message{Value: fmt.Append(nil, n)}); err != nil {
				t.Fatal(err)
			}
			longest = max(longest, time.Since(start))
			n++
		}
		return longest
	}
	for _, end := range []func(int){cluster.Kill, cluster.Stop} {
		produce(50)
		was := leader()
		var ended sync.WaitGroup
		ended.Go(func() { end(was) })
		t.Logf("leader %d ended: the longest wait was %v", was, produce(200))
		ended.Wait()
		produce(50)
		if is := leader(); is == was {
			t.Errorf("broker %d leads although it is gone", is)
		}
		cluster.Restart(was)
	}
	values, duplicates := deduplicated(readAll(t, c, topic, 0, 0))
	if len(values) != n {
		t.Errorf("%d of %d acknowledged values in the log", len(values), n)
	}
	for i, v := range values {
		if v != fmt.Sprint(i) {
			t.Fatalf("%s at place %d", v, i)
		}
	}
	t.Logf("%d values, %d duplicates", len(values), duplicates)
}

// During an upgrade a topic holds values of every version that the files of
// testdata/wire tell of, and new ones between them; and, if collectors were upgraded
// first, values of a version that is not known yet.
func TestMixedVersions(t *testing.T) {
	b := broker.Shared(t)
	ctx := within(t, time.Minute)
	cfg := realConfig(b.Addr())
	cfg.Prefix = b.Topic(t, "mixed")
	c := mustOpen(t, cfg, Options{})
	topic := cfg.Topic(TopicFlows)
	if err := c.Apply(ctx, Plan(cfg)[:1], func(string) {}); err != nil {
		t.Fatal(err)
	}
	names := flow.NewNames(0)
	current := withIDs(testHeader, randomRecords(rand.New(rand.NewPCG(1, 1)), names, 50))
	unknown := testHeader.append(nil, 0)
	unknown[4] = wireMajor + 1
	files := goldenFiles(t)
	for _, g := range files {
		if _, err := c.Produce(ctx, topic, 0, Message{Value: g.value}, Message{Value: NewEncoder(names).Append(nil, testHeader, current)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Produce(ctx, topic, 0, Message{Value: unknown}); err != nil {
		t.Fatal(err)
	}
	values := readAll(t, c, topic, 0, 0)
	if len(values) != 2*len(files)+1 {
		t.Fatalf("%d values", len(values))
	}
	dec, out := NewDecoder(names), flow.NewBatch(0, nil)
	for i, v := range values[:len(values)-1] {
		out.Records = out.Records[:0]
		if _, err := dec.Decode(v.Value, out); err != nil {
			t.Fatal(err)
		}
		want, what := readables(names, current), "a value of now"
		if i%2 == 0 {
			want, what = files[i/2].want, files[i/2].name
		}
		if diff := cmp.Diff(want, readables(names, out.Records)); diff != "" {
			t.Errorf("%s reads differently:\n%s", what, diff)
		}
	}
	if _, err := dec.Decode(values[len(values)-1].Value, out); err == nil || !strings.HasSuffix(err.Error(), "upgrade detectors before collectors") {
		t.Errorf("a version that is not known yet: %v", err)
	}
}

// One writer waits for each acknowledgement: what a partition takes in a second.
func BenchmarkProduce(b *testing.B) {
	br := broker.Shared(b)
	c, err := Open(realConfig(br.Addr()), nil, Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	topic := br.CreateTopic(b, "bench", 1)
	value := append(noise(20<<10), make([]byte, 20<<10)...)
	b.SetBytes(int64(len(value)))
	for b.Loop() {
		if _, err := c.Produce(b.Context(), topic, 0, Message{Value: value}); err != nil {
			b.Fatal(err)
		}
	}
}
