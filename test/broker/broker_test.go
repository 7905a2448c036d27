package broker_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	kgo "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/postern/postern/test/broker"
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// produce appends one batch of values, compressed by zstd, and returns the offset of
// the first.
func produce(ctx context.Context, c *kgo.Client, topic string, values ...string) (int64, error) {
	var records []kgo.Record
	for _, v := range values {
		records = append(records, kgo.Record{Value: kgo.NewBytes([]byte(v))})
	}
	res, err := c.Produce(ctx, &kgo.ProduceRequest{
		Topic: topic, RequiredAcks: kgo.RequireAll, Compression: kgo.Zstd, Records: kgo.NewRecordReader(records...),
	})
	if err != nil {
		return 0, err
	}
	return res.BaseOffset, res.Error
}

// fetch returns the values of partition 0 of topic from an offset on.
func fetch(ctx context.Context, c *kgo.Client, topic string, from int64) (values []string, err error) {
	res, err := c.Fetch(ctx, &kgo.FetchRequest{Topic: topic, Offset: from, MinBytes: 1, MaxBytes: 1 << 20, MaxWait: time.Second})
	if err != nil {
		return nil, err
	}
	if res.Error != nil {
		return nil, res.Error
	}
	for {
		r, err := res.Records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return values, nil
		}
		if err != nil {
			return nil, err
		}
		b, err := kgo.ReadAll(r.Value)
		if err != nil {
			return nil, err
		}
		values = append(values, string(b))
	}
}

// eventually repeats what a client repeats while the cluster settles.
func eventually(t *testing.T, ctx context.Context, what string, do func() error) {
	t.Helper()
	for {
		err := do()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func client(t *testing.T, addr string, transport *kgo.Transport) *kgo.Client {
	t.Helper()
	transport.MetadataTTL = 200 * time.Millisecond
	t.Cleanup(transport.CloseIdleConnections)
	return &kgo.Client{Addr: kgo.TCP(addr), Transport: transport}
}

func commit(ctx context.Context, c *kgo.Client, group, topic string, offset int64, metadata string) error {
	res, err := c.OffsetCommit(ctx, &kgo.OffsetCommitRequest{
		GroupID: group, GenerationID: -1,
		Topics: map[string][]kgo.OffsetCommit{topic: {{Partition: 0, Offset: offset, Metadata: metadata}}},
	})
	if err != nil {
		return err
	}
	return res.Topics[topic][0].Error
}

func committed(ctx context.Context, c *kgo.Client, group, topic string) (int64, string, error) {
	res, err := c.OffsetFetch(ctx, &kgo.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{topic: {0}}})
	if err != nil {
		return 0, "", err
	}
	if res.Error != nil {
		return 0, "", res.Error
	}
	p := res.Topics[topic][0]
	return p.CommittedOffset, p.Metadata, p.Error
}

func TestProduceFetchCommit(t *testing.T) {
	b := broker.Shared(t)
	if again := broker.Shared(t); again != b {
		t.Fatal("a second shared broker")
	}
	ctx, c := within(t, 30*time.Second), client(t, b.Addr(), &kgo.Transport{})
	topic, group := b.CreateTopic(t, "produce", 1), b.Topic(t, "group")
	for i, want := range []int64{0, 2} {
		if at, err := produce(ctx, c, topic, fmt.Sprint("a", i), fmt.Sprint("b", i)); err != nil || at != want {
			t.Fatalf("produced at %d, %v; want %d", at, err, want)
		}
	}
	got, err := fetch(ctx, c, topic, 2)
	if err != nil || fmt.Sprint(got) != "[a1 b1]" {
		t.Fatalf("fetched %v, %v", got, err)
	}
	eventually(t, ctx, "commit", func() error { return commit(ctx, c, group, topic, 3, "to=4 tick=7") })
	if offset, metadata, err := committed(ctx, c, group, topic); err != nil || offset != 3 || metadata != "to=4 tick=7" {
		t.Fatalf("committed %d %q, %v", offset, metadata, err)
	}
	if _, err := produce(ctx, c, b.Topic(t, "nobody-made-it"), "x"); err == nil {
		t.Error("a topic that nobody created came into being")
	}
}

// TestNoneLeftBehind: the shared broker ends with the test process, even one that
// is killed.
func TestNoneLeftBehind(t *testing.T) {
	const child = "POSTERN_TEST_CHILD"
	if os.Getenv(child) != "" {
		b := broker.Shared(t)
		fmt.Printf("\nbroker %d %s\n", b.Pid(), b.Addr())
		select {}
	}
	broker.Shared(t) // skips where there is no Kafka
	cmd := exec.Command(os.Args[0], "-test.run=^TestNoneLeftBehind$")
	dir := t.TempDir()
	cmd.Env = append(os.Environ(), child+"=1", "TMPDIR="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	var addr string
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "broker %d %s", &pid, &addr) // other lines are passed over
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if pid == 0 {
		t.Fatal("the child started no broker")
	}
	eventually(t, within(t, 10*time.Second), "the end of the broker", func() error {
		if conn, err := net.Dial("tcp4", addr); err == nil {
			conn.Close()
			return fmt.Errorf("the broker at %s still answers", addr)
		}
		left, err := os.ReadDir(dir)
		if err == nil && len(left) > 0 {
			return fmt.Errorf("left behind: %v", left)
		}
		return err
	})
}

func TestRestartKeepsData(t *testing.T) {
	began := time.Now()
	b := broker.Start(t)
	t.Logf("started after %v", time.Since(began))
	ctx, c := within(t, 60*time.Second), client(t, b.Addr(), &kgo.Transport{})
	topic, addr := b.CreateTopic(t, "kept", 1), b.Addr()
	for i, again := range []func(){b.Restart, func() { b.Kill(); b.Restart() }} {
		if _, err := produce(ctx, c, topic, fmt.Sprint("v", i)); err != nil {
			t.Fatal(err)
		}
		eventually(t, ctx, "commit", func() error { return commit(ctx, c, "kept", topic, int64(i), "range") })
		pid := b.Pid()
		began := time.Now()
		again()
		t.Logf("restarted after %v", time.Since(began))
		if b.Addr() != addr || b.Pid() == pid {
			t.Fatalf("%s, process %d; it was %s, process %d", b.Addr(), b.Pid(), addr, pid)
		}
		eventually(t, ctx, "fetch after the restart", func() error {
			got, err := fetch(ctx, c, topic, 0)
			if err == nil && len(got) != i+1 {
				t.Fatalf("after %d restarts there is %v", i+1, got)
			}
			return err
		})
		eventually(t, ctx, "the committed offset after the restart", func() error {
			offset, metadata, err := committed(ctx, c, "kept", topic)
			if err == nil && (offset != int64(i) || metadata != "range") {
				t.Fatalf("committed %d %q", offset, metadata)
			}
			return err
		})
	}
}

func TestSecurity(t *testing.T) {
	b := broker.Start(t, broker.WithTLS(), broker.WithSASL())
	ctx := within(t, 60*time.Second)
	topic := b.CreateTopic(t, "secure", 1)
	trusted, err := b.TLS().Config()
	if err != nil {
		t.Fatal(err)
	}
	nameless := trusted.Clone()
	nameless.Certificates = nil
	login := func(algorithm scram.Algorithm, password string) sasl.Mechanism {
		m, err := scram.Mechanism(algorithm, broker.User, password)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, try := range []struct {
		name, addr string
		tls        *tls.Config
		sasl       sasl.Mechanism
		refused    bool
	}{
		{name: "TLS", addr: b.TLSAddr(), tls: nameless},
		{name: "TLS by who does not trust the authority", addr: b.TLSAddr(), tls: &tls.Config{}, refused: true},
		{name: "mTLS", addr: b.MTLSAddr(), tls: trusted},
		{name: "mTLS without a certificate", addr: b.MTLSAddr(), tls: nameless, refused: true},
		{name: "PLAIN", addr: b.SASLAddr(), sasl: plain.Mechanism{Username: broker.User, Password: broker.Password}},
		{name: "SCRAM-SHA-256", addr: b.SASLAddr(), sasl: login(scram.SHA256, broker.Password)},
		{name: "no login", addr: b.SASLAddr(), refused: true},
		{name: "TLS, SCRAM-SHA-512", addr: b.SASLTLSAddr(), tls: nameless, sasl: login(scram.SHA512, broker.Password)},
		{name: "TLS, SCRAM-SHA-512, a wrong password", addr: b.SASLTLSAddr(), tls: nameless, sasl: login(scram.SHA512, "wrong"), refused: true},
		{name: "TLS, PLAIN, a wrong password", addr: b.SASLTLSAddr(), tls: nameless, sasl: plain.Mechanism{Username: broker.User, Password: "wrong"}, refused: true},
	} {
		t.Run(try.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			c := client(t, try.addr, &kgo.Transport{TLS: try.tls, SASL: try.sasl})
			_, err := produce(ctx, c, topic, try.name)
			if (err != nil) != try.refused {
				t.Fatalf("%v; refused should be %v", err, try.refused)
			}
		})
	}
	got, err := fetch(ctx, client(t, b.Addr(), &kgo.Transport{}), topic, 0)
	if want := "[TLS mTLS PLAIN SCRAM-SHA-256 TLS, SCRAM-SHA-512]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("the topic holds %v, %v; want %s", got, err, want)
	}
}

func TestBehindProxy(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := broker.Start(t, broker.WithAdvertised(l.Addr().String()))
	var through atomic.Int64 // bytes that passed
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp4", b.BehindAddr())
				if err != nil {
					return
				}
				defer out.Close()
				go func() { _, _ = io.Copy(in, out) }()
				n, _ := io.Copy(out, in)
				through.Add(n)
			}()
		}
	}()
	topic := b.CreateTopic(t, "proxied", 1)
	const size = 100_000
	c := client(t, l.Addr().String(), &kgo.Transport{})
	value := rand.Text() + strings.Repeat("x", size)
	_, err = c.Produce(within(t, 20*time.Second), &kgo.ProduceRequest{
		Topic: topic, RequiredAcks: kgo.RequireAll, Records: kgo.NewRecordReader(kgo.Record{Value: kgo.NewBytes([]byte(value))}),
	})
	if err != nil {
		t.Fatal(err)
	}
	c.Transport.(*kgo.Transport).CloseIdleConnections()
	eventually(t, within(t, 10*time.Second), "what was produced", func() error {
		if n := through.Load(); n < size {
			return fmt.Errorf("%d bytes went through the proxy", n)
		}
		return nil
	})
}

func TestLostLeader(t *testing.T) {
	began := time.Now()
	cluster := broker.StartCluster(t, 3)
	t.Logf("started after %v", time.Since(began))
	ctx, c := within(t, 90*time.Second), client(t, "", &kgo.Transport{})
	c.Addr = kgo.TCP(cluster.Addrs()...)
	topic := cluster.CreateTopic(t, "led", 1, kgo.ConfigEntry{ConfigName: "min.insync.replicas", ConfigValue: "2"})
	eventually(t, ctx, "produce", func() error { // the replicas of a new topic may not have found each other yet
		_, err := produce(ctx, c, topic, "before")
		return err
	})
	eventually(t, ctx, "commit", func() error { return commit(ctx, c, "led", topic, 1, "before") })
	lost := cluster.Leader(t, topic, 0)
	began = time.Now()
	cluster.Kill(lost)
	if next := cluster.Leader(t, topic, 0); next == lost {
		t.Fatalf("node %d leads, and is dead", lost)
	}
	t.Logf("another leader after %v", time.Since(began))
	eventually(t, ctx, "produce to the new leader", func() error {
		_, err := produce(ctx, c, topic, "after")
		return err
	})
	eventually(t, ctx, "the committed offset", func() error {
		offset, metadata, err := committed(ctx, c, "led", topic)
		switch {
		case err != nil:
			return err
		case offset == -1: // a new coordinator tells what is below its high watermark, which its followers' next fetch raises
			return errors.New("the new coordinator does not tell the commit yet")
		case offset != 1 || metadata != "before":
			t.Fatalf("committed %d %q", offset, metadata)
		}
		return nil
	})
	began = time.Now()
	cluster.Restart(lost)
	t.Logf("restarted after %v", time.Since(began))
	// A leader that misses replicas may have appended what it refuses; a second try is then a second record.
	got, err := fetch(ctx, c, topic, 0)
	if each := slices.Compact(slices.Clone(got)); err != nil || !slices.Equal(each, []string{"before", "after"}) {
		t.Fatalf("fetched %v, %v", got, err)
	}
}
