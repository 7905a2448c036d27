package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/sink"
	"github.com/postern/postern/test/broker"
)

// counting is a store that counts rows by token and passes over a token it knows, as
// ClickHouse does.
type counting struct {
	mu     sync.Mutex
	rowsOf map[string]int
}

func (c *counting) writer() rowWriter { return nil }

func (c *counting) rows(_ context.Context, u unit, _ int, b *block) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.rowsOf[u.Token]; !known {
		c.rowsOf[u.Token] = b.rows
	}
	return false, nil
}

func (c *counting) findings(context.Context, sink.Insert, []flow.Contribution, []*flow.Finding) error {
	return nil
}

func (c *counting) total() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range c.rowsOf {
		n += v
	}
	return n
}

// TestThroughKafka takes flows through the topic that collectors write and detectors
// read, on a real broker: what a collector sends twice is taken in once, and a range
// that was open when its owner went away is made again under the same token.
func TestThroughKafka(t *testing.T) {
	b := broker.Shared(t)
	cfg := defaultConfig()
	cfg.Data, cfg.Admin.Listen = t.TempDir(), ""
	cfg.Kafka.Brokers, cfg.Kafka.Prefix, cfg.Kafka.Partitions, cfg.Kafka.Replication = []string{b.Addr()}, b.Topic(t, "through"), 2, 1
	cfg.Kafka.Group = b.Topic(t, "group")
	cfg.Ingest.Kafka.Linger = 100 * time.Millisecond
	cfg.Shutdown = 5 * time.Second
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client, err := kafka.Open(cfg.Kafka, nil, kafka.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Apply(ctx, kafka.Plan(cfg.Kafka), func(string) {}); err != nil {
		t.Fatal(err)
	}

	// A collector's hand: 5,000 flows in two units, the first of them sent again as after a crash.
	names := flow.NewNames(0)
	topic := newFlowTopic(client, names, log, func() [16]byte { return producerOf("a spool") }, filepath.Join(cfg.Data, "division.json"), func() bool { return true })
	if err := topic.connect(ctx); err != nil {
		t.Fatal(err)
	}
	const flows = 5000
	send := func(u uint64, from, to int) {
		block := &block{writer: topic.writer(), exporters: map[flow.Addr]uint64{}}
		var records []flow.Record
		for i := from; i < to; i++ {
			records = append(records, flow.Record{
				Src: addr("10.0.0.1"), Dst: addr(fmt.Sprintf("10.1.%d.%d", i/250, i%250)), SrcPort: 40000, DstPort: 443, Proto: flow.ProtoTCP,
				Start: 1_700_000_000_000, End: 1_700_000_001_000, Received: 1_700_000_002_000, Exporter: addr("192.0.2.1"), PacketsRaw: uint64(i + 1),
				Has: flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto | flow.HasPackets,
			})
		}
		block.add(records)
		if _, err := topic.rows(ctx, unit{number: u}, 0, block); err != nil {
			t.Fatal(err)
		}
	}
	send(1, 0, flows/2)
	send(1, 0, flows/2)
	send(2, flows/2, flows)

	// A detector, and the one that follows it in the group.
	last := &counting{rowsOf: map[string]int{}}
	detector := func(until func() bool) {
		d, err := newDetection(cfg, log)
		if err != nil {
			t.Fatal(err)
		}
		d.rows, d.blocks = last, newBlocks(detectBlocks, last)
		if err := d.ask(ctx); err != nil {
			t.Fatal(err)
		}
		run, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- d.member.Run(run, cfg.Shutdown, d.work) }()
		for deadline := time.Now().Add(25 * time.Second); !until() && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		}
		if err := d.ledger().Check(); err != nil {
			t.Error(err)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = d.client.Close()
	}
	detector(func() bool { return last.total() >= flows })
	if got := last.total(); got != flows {
		t.Errorf("%d rows were stored, want %d", got, flows)
	}
	for token := range last.rowsOf {
		if !strings.HasPrefix(token, "kafka/") {
			t.Errorf("token %q does not name the range", token)
		}
	}
	send(2, flows/2, flows) // known from the checkpoint
	send(3, 0, 100)
	detector(func() bool { return last.total() >= flows+100 })
	if got := last.total(); got != flows+100 {
		t.Errorf("%d rows after a second detector took over, want %d", got, flows+100)
	}
}

func addr(s string) flow.Addr { return flow.AddrFromNetip(netip.MustParseAddr(s)) }
