package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/sink"
)

// flowTopic is the store of a process that hands its flows on: our own topic, cut by
// the pair of endpoints, so that both directions and all observers of a conversation
// come to the same detector.
//
// Of one partition a request is sent when the one before it is acknowledged, and values
// are numbered in that order. So whoever reads the partition knows what a retry, or a
// unit that was begun again after a crash, brought a second time: a number that does
// not rise.
type flowTopic struct {
	client *kafka.Client
	names  *flow.Names
	log    *slog.Logger
	topic  string
	// producer is who the flows are from.
	producer func() [16]byte
	// file keeps how the flows were divided; empty where that does not change while the
	// process lives.
	file string
	// segments says which unit is the oldest that waits, and which is not begun in any
	// life of the process; nil where file is empty.
	segments func() (oldest, open uint64)

	opened chan struct{} // closed once division is known
	division
	now atomic.Int64 // partitions that the topic has at present, where they are looked after

	mu      sync.Mutex
	lastErr error // why the topic is not open yet
}

// division is how flows are divided. What was begun under one must be finished under
// it: cut otherwise, what a crash makes a collector send again would not be recognised.
type division struct {
	Topic      string    `json:"topic"`
	Partitions int       `json:"partitions"`
	Epoch      uint32    `json:"epoch"`            // rises with every change
	From       uint64    `json:"from"`             // the first unit that is divided so
	Before     *division `json:"before,omitempty"` // how earlier units were
}

// of is the division of a unit.
func (d *division) of(unit uint64) *division {
	if d.Before != nil && unit < d.From {
		return d.Before
	}
	return d
}

// producerOf makes the number that a source of flows is known by.
func producerOf(name string) (p [16]byte) {
	sum := sha256.Sum256([]byte(name))
	return [16]byte(sum[:16])
}

func newFlowTopic(client *kafka.Client, names *flow.Names, log *slog.Logger, producer func() [16]byte, file string, segments func() (oldest, open uint64)) *flowTopic {
	return &flowTopic{client: client, names: names, log: log, topic: client.Config().Topic(kafka.TopicFlows), producer: producer,
		file: file, segments: segments, opened: make(chan struct{})}
}

// newDividedTopic is the flows topic where how flows are divided does not change.
func newDividedTopic(client *kafka.Client, names *flow.Names, log *slog.Logger, producer func() [16]byte, partitions int) *flowTopic {
	s := newFlowTopic(client, names, log, producer, "", nil)
	s.division = division{Topic: s.topic, Partitions: partitions}
	close(s.opened)
	return s
}

// connect learns how many partitions there are; it tries until the cluster answers.
func (s *flowTopic) connect(ctx context.Context) error {
	n, err := backoff.Retry(ctx, func() (int, error) {
		n, err := s.client.Partitions(ctx, s.topic)
		if err != nil && ctx.Err() == nil {
			s.trouble(err)
			s.log.Warn("Kafka is not there yet; flows wait in the spool", "error", err)
		}
		return n, err
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0))
	if err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the service stops; not having connected is no error
		}
		return err
	}
	if s.division, err = s.divide(n); err != nil {
		return err
	}
	s.now.Store(int64(n))
	s.trouble(nil)
	close(s.opened)
	return nil
}

// divide compares the topic as it is, with n partitions, with what was kept, and gives
// what holds from now on.
func (s *flowTopic) divide(n int) (division, error) {
	now := division{Topic: s.topic, Partitions: n}
	raw, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return now, s.keep(now)
	}
	if err != nil {
		return now, err
	}
	var kept division
	if err := json.Unmarshal(raw, &kept); err != nil {
		return now, fmt.Errorf("%s: %w", s.file, err)
	}
	if kept.Topic == now.Topic && kept.Partitions <= now.Partitions {
		return kept, nil // a larger number is taken over by [flowTopic.rows]
	}
	if oldest, open := s.segments(); oldest != open {
		return now, fmt.Errorf("topic %s has %d partitions, but what waits in the spool was begun for %d of %s; "+
			"let collectors drain before a topic is changed for another, or give this one a new data directory and lose what waits",
			now.Topic, now.Partitions, kept.Partitions, kept.Topic)
	}
	now.Epoch = kept.Epoch + 1
	return now, s.keep(now)
}

// grow takes a larger number of partitions over, if the topic has one, from the unit on
// that nothing is begun of, in no earlier life of the process either. Of units before two
// divisions back none may wait any more.
func (s *flowTopic) grow() error {
	n := int(s.now.Load())
	if n <= s.Partitions {
		return nil
	}
	oldest, open := s.segments()
	if oldest < s.From {
		return nil
	}
	before := s.division
	before.Before = nil
	next := division{Topic: s.topic, Partitions: n, Epoch: before.Epoch + 1, From: open + 1, Before: &before}
	if err := s.keep(next); err != nil {
		return err
	}
	s.log.Info("the flows topic has more partitions; flows are divided anew", "partitions", n, "before", before.Partitions)
	s.division = next
	return nil
}

// keep makes a division last.
func (s *flowTopic) keep(d division) error {
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.file), 0o700); err != nil {
		return err
	}
	return writeDurably(s.file, raw)
}

func (s *flowTopic) open() error { return nil }

func (s *flowTopic) run(ctx context.Context) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	return every(ctx, lookAfter, func() {
		if n, err := s.client.Partitions(ctx, s.topic); err == nil { // else producing tells
			s.now.Store(int64(n))
		}
	})
}

// lookAfter is how often a collector asks how many partitions there are.
const lookAfter = 15 * time.Second

func (s *flowTopic) close() error { return s.client.Close() }

func (s *flowTopic) ready() error {
	s.mu.Lock()
	err := s.lastErr
	s.mu.Unlock()
	select {
	case <-s.opened:
		return err
	default:
	}
	if err == nil {
		err = errors.New("Kafka is not connected yet")
	}
	return err
}

// trouble takes note of why flows wait, nil if they do not.
func (s *flowTopic) trouble(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastErr = err
}

// report has nobody to tell: a collector's ledger is in its metrics.
func (s *flowTopic) report(context.Context, report) {}

// undivided is copies of records, until they are divided.
type undivided struct {
	records []flow.Record
	index   [][]int32 // of records, by partition
	cut     []cut
}

// cut makes the values of one partition.
type cut struct {
	encoder  *kafka.Encoder
	records  []flow.Record
	values   []byte
	messages []kafka.Message // of values
}

func (d *undivided) AppendRecords(records []flow.Record) { d.records = append(d.records, records...) }
func (d *undivided) Reset()                              { d.records = d.records[:0] }

func (s *flowTopic) writer() rowWriter { return &undivided{} }

// divide sorts the records by partition, in their order.
func (d *undivided) divide(n int, names *flow.Names) {
	for len(d.index) < n {
		d.index = append(d.index, nil)
		d.cut = append(d.cut, cut{encoder: kafka.NewEncoder(names)})
	}
	for i := range d.index {
		d.index[i] = d.index[i][:0]
	}
	for i := range d.records {
		p := kafka.Partition(d.records[i].Src, d.records[i].Dst, n)
		d.index[p] = append(d.index[p], int32(i))
	}
}

// Bits of a value's number: the unit, the block in it, the value of one partition in that.
const (
	chunkBits = 12 // 4,096 blocks of 65,536 rows a unit
	valueBits = 12 // 65,536 rows are 64 values
)

// producing is how many partitions are written to at a time.
const producing = 8

func (s *flowTopic) rows(ctx context.Context, u unit, chunk int, b *block) (duplicate bool, err error) {
	select {
	case <-s.opened:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if chunk >= 1<<chunkBits {
		return false, fmt.Errorf("unit %d has more than %d blocks", u.number, 1<<chunkBits)
	}
	if s.file != "" {
		if err := s.grow(); err != nil {
			return false, err
		}
	}
	division := s.of(u.number)
	d := b.writer.(*undivided)
	d.divide(division.Partitions, s.names)
	for {
		err := s.produceAll(ctx, division, u, chunk, d)
		if err == nil || s.file == "" || ctx.Err() != nil {
			return false, err
		}
		// Behind it the spool takes what arrives, as while Kafka is away. What was sent
		// already is sent again under its number.
		s.trouble(err)
		s.log.Error("Kafka refuses flows for good; trying again in a while, flows wait in the spool", "error", err)
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(refusedPause):
		}
		s.trouble(nil)
	}
}

// refusedPause is how long what Kafka refused for good is let rest: somebody has to mend
// a right, a certificate or a topic.
const refusedPause = 15 * time.Second

// produceAll sends the values of all partitions of a block.
func (s *flowTopic) produceAll(ctx context.Context, division *division, u unit, chunk int, d *undivided) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(producing)
	for p := range division.Partitions {
		if len(d.index[p]) == 0 {
			continue
		}
		h := kafka.Header{Producer: s.producer(), Epoch: division.Epoch, Partition: uint32(p), Partitions: uint32(division.Partitions),
			Seq: (u.number<<chunkBits | uint64(chunk)) << valueBits}
		g.Go(func() error { return s.produce(ctx, h, d.records, d.index[p], &d.cut[p]) })
	}
	return g.Wait()
}

// requestSize bounds the values that go in one request: about as much as a second
// brings of a partition at 80,000 flows/s. A request costs as much as encoding a value.
const requestSize = 128 << 10

// produce sends one partition's records of a block, a request after the other, the first
// value under h. The values of a request come into the log together, in their order.
func (s *flowTopic) produce(ctx context.Context, h kafka.Header, records []flow.Record, index []int32, c *cut) error {
	limit := min(requestSize, int(s.client.Config().MaxMessage)/2)
	c.values, c.messages = c.values[:0], c.messages[:0]
	send := func() error {
		_, err := s.client.Produce(ctx, s.topic, int(h.Partition), c.messages...)
		c.messages = c.messages[:0]
		return err
	}
	for values := 0; len(index) > 0; values++ {
		if values >= 1<<valueBits {
			return fmt.Errorf("a block has more than %d values of one partition", 1<<valueBits)
		}
		n := min(len(index), kafka.BatchRows)
		c.records = c.records[:0]
		for _, at := range index[:n] {
			c.records = append(c.records, records[at])
		}
		index = index[n:]
		from := len(c.values)
		c.values = c.encoder.Append(c.values, h, c.records)
		if from > 0 && len(c.values) > limit {
			if err := send(); err != nil {
				return err
			}
			c.values, from = append(c.values[:0], c.values[from:]...), 0
		}
		c.messages = append(c.messages, kafka.Message{Value: c.values[from:]})
		h.Seq++
	}
	return send()
}

// sessions has nothing to do: they are merged where flows are judged.
func (s *flowTopic) sessions(context.Context, sink.Insert, []flow.Session) error { return nil }

// edges has nothing to do either.
func (s *flowTopic) edges(context.Context, sink.Insert, []flow.EdgeContribution) error { return nil }

// blindSpots has nothing to do either.
func (s *flowTopic) blindSpots(context.Context, sink.Insert, []flow.BlindSpot) error { return nil }

// findings has nothing to do: who hands flows on judges none.
func (s *flowTopic) findings(_ context.Context, _ sink.Insert, contribs []flow.Contribution, events []*flow.Finding) error {
	if len(contribs)+len(events) > 0 {
		return fmt.Errorf("%d contributions and %d events of findings before judging", len(contribs), len(events))
	}
	return nil
}
