package broker_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	kgo "github.com/segmentio/kafka-go"

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

func TestRestartKeepsData(t *testing.T) {
	b := broker.Start(t)
	ctx, c := within(t, 60*time.Second), client(t, b.Addr(), &kgo.Transport{})
	topic, addr := b.CreateTopic(t, "kept", 1), b.Addr()
	for i, again := range []func(){b.Restart, func() { b.Kill(); b.Restart() }} {
		if _, err := produce(ctx, c, topic, fmt.Sprint("v", i)); err != nil {
			t.Fatal(err)
		}
		eventually(t, ctx, "commit", func() error { return commit(ctx, c, "kept", topic, int64(i), "range") })
		pid := b.Pid()
		again()
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
