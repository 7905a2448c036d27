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

	"github.com/google/go-cmp/cmp"
	kgo "github.com/segmentio/kafka-go"

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

func (c *counting) blindSpots(context.Context, sink.Insert, []flow.BlindSpot) error { return nil }

func (c *counting) sessions(context.Context, sink.Insert, []flow.Session) error { return nil }

func (c *counting) edges(context.Context, sink.Insert, []flow.EdgeContribution) error { return nil }

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

// kafkaRig is a cluster with our topics, a collector's hand and detectors, all in this
// process, and a store that counts.
type kafkaRig struct {
	*testing.T
	ctx    context.Context
	cfg    config
	client *kafka.Client
	stored *counting
}

func newKafkaRig(t *testing.T) *kafkaRig {
	b := broker.Shared(t)
	cfg := defaultConfig()
	cfg.Data, cfg.Admin.Listen = t.TempDir(), ""
	cfg.Kafka.Brokers, cfg.Kafka.Prefix, cfg.Kafka.Partitions, cfg.Kafka.Replication = []string{b.Addr()}, b.Topic(t, "through"), 2, 1
	cfg.Kafka.Group = b.Topic(t, "group")
	cfg.Ingest.Kafka.Linger = 100 * time.Millisecond
	cfg.Shutdown = 5 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	client, err := kafka.Open(cfg.Kafka, nil, kafka.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if err := client.Apply(ctx, kafka.Plan(cfg.Kafka), func(string) {}); err != nil {
		t.Fatal(err)
	}
	return &kafkaRig{t, ctx, cfg, client, &counting{rowsOf: map[string]int{}}}
}

// collector is the flows topic as a collector writes to it that knows of so many
// partitions; 0: as many as there are.
func (k *kafkaRig) collector(partitions int) *flowTopic {
	names, log, producer := flow.NewNames(0), slog.New(slog.DiscardHandler), func() [16]byte { return producerOf("a spool") }
	if partitions > 0 {
		return newDividedTopic(k.client, names, log, producer, partitions)
	}
	topic := newFlowTopic(k.client, names, log, producer, filepath.Join(k.cfg.Data, "division.json"), func() (uint64, uint64) { return 1, 1 })
	if err := topic.connect(k.ctx); err != nil {
		k.Fatal(err)
	}
	return topic
}

// send hands on flows [from, to) as unit u.
func (k *kafkaRig) send(topic *flowTopic, u uint64, from, to int) {
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
	if _, err := topic.rows(k.ctx, unit{number: u}, 0, block); err != nil {
		k.Fatal(err)
	}
}

// detector runs a detector until so many rows are stored, and stops it in order.
func (k *kafkaRig) detector(rows int) {
	k.Helper()
	d, err := newDetection(k.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		k.Fatal(err)
	}
	d.rows, d.blocks = k.stored, newBlocks(detectBlocks, k.stored)
	if err := d.ask(k.ctx); err != nil {
		k.Fatal(err)
	}
	run, stop := context.WithCancel(k.ctx)
	done := make(chan error, 1)
	go func() { done <- d.member.Run(run, k.cfg.Shutdown, d.work) }()
	for deadline := time.Now().Add(25 * time.Second); k.stored.total() < rows && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
	}
	if err := d.ledger().Check(); err != nil {
		k.Error(err)
	}
	stop()
	if err := <-done; err != nil {
		k.Error(err)
	}
	_ = d.client.Close()
	if got := k.stored.total(); got != rows {
		k.Errorf("%d rows are stored, want %d", got, rows)
	}
}

// TestThroughKafka takes flows through the topic that collectors write and detectors
// read, on a real broker: what a collector sends twice is taken in once, by the detector
// that saw it first and by the one that follows it in the group.
func TestThroughKafka(t *testing.T) {
	k := newKafkaRig(t)
	topic := k.collector(0)
	k.send(topic, 1, 0, 2500)
	k.send(topic, 1, 0, 2500) // again, as after a crash
	k.send(topic, 2, 2500, 5000)
	k.detector(5000)
	for token := range k.stored.rowsOf {
		if !strings.HasPrefix(token, "kafka/") {
			t.Errorf("token %q does not name the range", token)
		}
	}
	k.send(topic, 2, 2500, 5000) // known from the checkpoint
	k.send(topic, 3, 0, 100)
	k.detector(5100)
}

// TestOffsetsSetBack is what a person does with Kafka's tools, and what the cluster does
// to a group that was away for long: neither has flows stored twice (THREATS 29).
func TestOffsetsSetBack(t *testing.T) {
	k := newKafkaRig(t)
	topic := k.collector(0)
	k.send(topic, 1, 0, 2500)
	k.detector(2500)
	for _, to := range []int64{0, -1} { // -1: gone
		if to < 0 {
			_, err := k.client.Kafka().OffsetDelete(k.ctx, &kgo.OffsetDeleteRequest{GroupID: k.cfg.Kafka.Group, Topics: map[string][]int{topic.topic: {0, 1}}})
			if err != nil {
				t.Fatal(err)
			}
		} else {
			res, err := k.client.Kafka().OffsetCommit(k.ctx, &kgo.OffsetCommitRequest{GroupID: k.cfg.Kafka.Group, GenerationID: -1,
				Topics: map[string][]kgo.OffsetCommit{topic.topic: {{Partition: 0, Offset: to}, {Partition: 1, Offset: to}}}})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range res.Topics[topic.topic] {
				if p.Error != nil {
					t.Fatal(p.Error)
				}
			}
		}
		rows := k.stored.total()
		k.send(topic, uint64(3-to), 0, 100)
		k.detector(rows + 100)
	}
}

// TestTroubleIsTold: a partition that cannot be worked on makes the detector not ready,
// and says why.
func TestTroubleIsTold(t *testing.T) {
	k := newKafkaRig(t)
	topic := k.collector(0).topic
	place, err := k.client.SaveState(k.ctx, k.cfg.Kafka.Group, topic, 1, 1, 1, []byte(`{"version": 99}`))
	if err != nil {
		t.Fatal(err)
	}
	at := kafka.Positions{}
	at.Set(topic, 1, &kafka.Position{State: place})
	if err := k.client.SetPositions(k.ctx, k.cfg.Kafka.Group, at); err != nil {
		t.Fatal(err)
	}
	d, err := newDetection(k.cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer d.client.Close()
	d.partitions, d.begun = 2, true
	run, stop := context.WithCancel(k.ctx)
	done := make(chan error, 1)
	go func() { done <- d.member.Run(run, time.Second, d.work) }()
	eventually(t, "the trouble to be told", func() bool {
		err := d.ready()
		return err != nil && strings.Contains(err.Error(), topic+"/1 is not worked on: the checkpoint: it is of version 99")
	})
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestOtherDivision: what was cut for another number of partitions is divided anew.
func TestOtherDivision(t *testing.T) {
	k := newKafkaRig(t)
	behind := k.collector(1) // does not know yet that there are two
	k.send(behind, 1, 0, 2500)
	k.send(behind, 1, 0, 2500)
	k.detector(2500)
	partitions := map[string]bool{}
	for token := range k.stored.rowsOf {
		partitions[strings.Split(token, "/")[4]] = true
	}
	if len(partitions) != 2 {
		t.Errorf("rows came by %d partitions, want 2", len(partitions))
	}
	k.send(behind, 1, 0, 2500)
	k.send(behind, 2, 0, 100)
	k.detector(2600)
}

// TestDeadLettersReplayed: a value of ours that was put aside and is put back comes behind
// later ones of its producer, is taken in all the same, and only once.
func TestDeadLettersReplayed(t *testing.T) {
	k := newKafkaRig(t)
	topic := k.collector(0)
	record := flow.Record{Src: addr("10.0.0.1"), Dst: addr("10.1.0.1"), SrcPort: 40000, DstPort: 443, Proto: flow.ProtoTCP,
		Start: 1_700_000_000_000, End: 1_700_000_001_000, Received: 1_700_000_002_000, Has: flow.HasSrc | flow.HasDst | flow.HasSrcPort | flow.HasDstPort | flow.HasProto}
	p := kafka.Partition(record.Src, record.Dst, 2)
	letter := kafka.DeadLetter{Topic: topic.topic, Partition: p, Value: kafka.NewEncoder(topic.names).Append(nil,
		kafka.Header{Producer: topic.producer(), Partition: uint32(p), Partitions: 2, Seq: 1}, []flow.Record{record})}
	k.send(topic, 2, 0, 100)
	k.detector(100)
	for u := range uint64(2) {
		if _, err := k.client.ReplayDead(k.ctx, letter); err != nil {
			t.Fatal(err)
		}
		k.send(topic, 3+u, 0, 100) // behind it, so that it is seen when these are stored
		k.detector(201 + 100*int(u))
	}
}

// TestDivisionGrows: a collector takes more partitions over behind what it began, and
// what a crash makes it send again is cut as it was at first.
func TestDivisionGrows(t *testing.T) {
	k := newKafkaRig(t)
	topic := k.collector(0)
	k.send(topic, 1, 0, 50)
	res, err := k.client.Kafka().CreatePartitions(k.ctx, &kgo.CreatePartitionsRequest{Topics: []kgo.TopicPartitionsConfig{{Name: topic.topic, Count: 3}}})
	if err != nil || res.Errors[topic.topic] != nil {
		t.Fatal(err, res.Errors)
	}
	restart := func(oldest, open uint64) *flowTopic {
		// Connecting again and again, since a broker may not know of its new partition yet.
		for {
			topic := k.collector(0)
			topic.segments = func() (uint64, uint64) { return oldest, open }
			if topic.now.Load() == 3 {
				return topic
			}
			k.client.Refresh()
			if k.ctx.Err() != nil {
				t.Fatal("the topic does not grow")
			}
		}
	}
	topic = restart(1, 3)
	k.send(topic, 1, 0, 50) // again
	k.send(topic, 2, 0, 50)
	topic = restart(2, 4)
	k.send(topic, 2, 0, 50) // again
	k.send(topic, 3, 0, 50)
	k.send(topic, 4, 0, 50) // the first that no life had begun when the topic had grown
	topic = restart(3, 5)
	k.send(topic, 3, 0, 50) // again, divided as at first
	k.send(topic, 4, 0, 50) // again
	type sent struct {
		Unit       uint64
		Partitions int
		Epoch      uint32
	}
	seen := map[sent]int{}
	for p := range 3 {
		_, end, err := k.client.Offsets(k.ctx, topic.topic, p)
		if err != nil {
			t.Fatal(err)
		}
		for next := int64(0); next < end; {
			f, err := k.client.Fetch(k.ctx, topic.topic, p, next, 1<<20, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range f.Records {
				h, rows, err := kafka.ReadHeader(r.Value)
				if err != nil {
					t.Fatal(err)
				}
				seen[sent{h.Seq >> (chunkBits + valueBits), int(h.Partitions), h.Epoch}] += rows
			}
			next = f.Next
		}
	}
	want := map[sent]int{{1, 2, 0}: 100, {2, 2, 0}: 100, {3, 2, 0}: 100, {4, 3, 1}: 100}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("flows by unit and division: (-want +got)\n%s", diff)
	}
}

func addr(s string) flow.Addr { return flow.AddrFromNetip(netip.MustParseAddr(s)) }
