package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	kgo "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/postern/postern/test/broker"
)

// made is what the members of a group made of a topic's ranges. Like ClickHouse it
// takes what comes under a known token a second time for the same.
type made struct {
	t       *testing.T
	mu      sync.Mutex
	ranges  map[rangeStart]madeRange
	by      map[string]int // values, by the member that made them first
	deposed atomic.Int64
}

type rangeStart struct {
	topic     string
	partition int
	from      int64
}

type madeRange struct {
	to      int64
	records []Record
}

func newMade(t *testing.T) *made {
	return &made{t: t, ranges: map[rangeStart]madeRange{}, by: map[string]int{}}
}

func (m *made) take(member string, at rangeStart, to int64, records []Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if before, known := m.ranges[at]; known {
		if before.to != to || len(before.records) != len(records) {
			m.t.Errorf("%v was made up to %d of %d values, and again up to %d of %d", at, before.to, len(before.records), to, len(records))
		}
		return
	}
	m.ranges[at] = madeRange{to, records}
	m.by[member] += len(records)
}

func (m *made) of(member string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.by[member]
}

func (m *made) all() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range m.by {
		n += v
	}
	return n
}

// check waits until all of the log is made, and holds what was made against it: the
// ranges of each partition follow one another without a gap or an overlap, up to the
// end, and hold the values of the log.
func (m *made) check(c *Client, topic string, partitions int) {
	t := m.t
	t.Helper()
	logs, values := make([][]Record, partitions), 0
	for p := range logs {
		logs[p] = readAll(t, c, topic, p, 0)
		values += len(logs[p])
	}
	eventually(t, "all is made", func() bool { return m.all() >= values })
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, want := range logs {
		var got []Record
		at, ranges := rangeStart{topic, p, 0}, 0
		for r, ok := m.ranges[at]; ok; r, ok = m.ranges[at] {
			delete(m.ranges, at)
			got, at.from, ranges = append(got, r.records...), r.to, ranges+1
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("partition %d: %d values were made, the log has %d", p, len(got), len(want))
		}
		t.Logf("partition %d: %d values in %d ranges", p, len(got), ranges)
	}
	for at := range m.ranges {
		t.Errorf("no range leads to the one that begins at %v", at)
	}
}

// work is what a detector does with a partition, without the detecting: open a range
// by a commit, make it, close it by a commit, and repeat what is found open.
func (m *made) work(c *Client, member string, note func(Assignment)) func(context.Context, *Assignment) error {
	return func(ctx context.Context, a *Assignment) (err error) {
		defer func() {
			if errors.Is(err, ErrDeposed) {
				m.deposed.Add(1)
			}
		}()
		if note != nil {
			note(*a)
		}
		pos, _, err := a.Position(ctx)
		if err != nil {
			return err
		}
		pos.Offset = max(pos.Offset, 0)
		for {
			var records []Record
			if pos.Open == nil {
				if a.stopping() {
					return nil
				}
				f, err := c.Fetch(ctx, a.Topic, a.Partition, pos.Offset, 32<<10, 100*time.Millisecond)
				switch {
				case err != nil:
					return err
				case f.Next == pos.Offset:
					continue
				}
				records, pos.Open = f.Records, &Range{To: f.Next}
				if err := a.Commit(ctx, pos); err != nil {
					return err
				}
			} else {
				for next := pos.Offset; next < pos.Open.To; {
					f, err := c.Fetch(ctx, a.Topic, a.Partition, next, 32<<10, 100*time.Millisecond)
					if err != nil {
						return err
					}
					next = f.Next
					records = append(records, f.Records...)
				}
				records = slices.DeleteFunc(records, func(r Record) bool { return r.Offset >= pos.Open.To })
			}
			m.take(member, rangeStart{a.Topic, a.Partition, pos.Offset}, pos.Open.To, records)
			pos = Position{Offset: pos.Open.To, Ranges: pos.Ranges + 1}
			if err := a.Commit(ctx, pos); err != nil {
				return err
			}
		}
	}
}

// join runs a member until leave is called.
func (m *made) join(c *Client, group string, topics []string, member string, note func(Assignment)) (leave func()) {
	m.t.Helper()
	log := slog.New(slog.NewTextHandler(m.t.Output(), nil)).With("member", member)
	g, err := NewMember(c, group, topics, log, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(m.t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx, 5*time.Second, m.work(c, member, note)) }()
	leave = sync.OnceFunc(func() {
		start := time.Now()
		stop()
		if err := <-done; err != nil {
			m.t.Error(err)
		}
		if d := time.Since(start); d > 4*time.Second {
			m.t.Errorf("member %s took %v to leave", member, d)
		}
	})
	m.t.Cleanup(leave)
	return leave
}

// writeAll writes numbered values to all partitions of a topic until stop is called.
func writeAll(t *testing.T, c *Client, topic string, partitions int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for p := range partitions {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				// Not ctx: what is being written when it ends shall be written.
				if _, err := c.Produce(t.Context(), topic, p, Message{Value: fmt.Append(nil, i)}, Message{Value: noise(200)}); err != nil {
					if t.Context().Err() == nil {
						t.Error(err)
					}
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	stop = func() { cancel(); writers.Wait() }
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, is func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !is() {
		if time.Since(start) > 40*time.Second {
			t.Fatalf("not after %v: %s", time.Since(start).Round(time.Second), what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

// groupClient is a client of its own, as another process has it.
func groupClient(t *testing.T, addrs ...string) *Client {
	t.Helper()
	cfg := realConfig(addrs[0])
	cfg.Brokers = addrs
	return mustOpen(t, cfg, Options{})
}

// Members come and go while a topic is written. kafka-go's Reader goes on with what it
// had fetched of a partition that is another's by then (segmentio/kafka-go issue 1398).
func TestNothingStaleAfterRebalance(t *testing.T) {
	b := broker.Shared(t)
	topic, group := b.CreateTopic(t, "rebalance", 4), b.Topic(t, "group")
	missing := b.Topic(t, "later")
	topics := []string{topic, missing}
	c := groupClient(t, b.Addr())
	m := newMade(t)
	stop := writeAll(t, c, topic, 4)

	var first atomic.Pointer[Assignment]
	leaveA := m.join(c, group, topics, "A", func(a Assignment) { first.CompareAndSwap(nil, &a) })
	eventually(t, "A makes something", func() bool { return m.of("A") > 100 })
	leaveB := m.join(groupClient(t, b.Addr()), group, topics, "B", nil)
	eventually(t, "B makes something", func() bool { return m.of("B") > 100 })
	m.join(groupClient(t, b.Addr()), group, topics, "C", nil)
	eventually(t, "C makes something", func() bool { return m.of("C") > 100 })

	// What the first generation was given is not its any more.
	old := first.Load()
	before, _, err := old.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Commit(t.Context(), Position{Offset: 1}); !errors.Is(err, ErrDeposed) {
		t.Errorf("the commit of a member that lost its partition: %v", err)
	}
	if after, ours, err := old.Position(t.Context()); err != nil || !ours || after.Offset < before.Offset {
		t.Errorf("the position went from %d back to %d, %v", before.Offset, after.Offset, err)
	}

	leaveB()
	leaveA()
	n := m.of("C")
	eventually(t, "C makes what the others made", func() bool { return m.of("C") > n+100 })
	stop()
	m.check(c, topic, 4)
	t.Logf("values made by each: %v; %d times deposed", m.by, m.deposed.Load())

	// A topic that did not exist when the group formed.
	if err := c.Apply(t.Context(), []TopicSpec{{Name: missing, Partitions: 1, Replication: 1}}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	n = m.of("C")
	if _, err := c.Produce(t.Context(), missing, 0, Message{Value: []byte("late")}); err != nil {
		t.Fatal(err)
	}
	t.Logf("a new topic is read after %v", eventually(t, "the new topic is read", func() bool { return m.of("C") > n }))
}

// Offsets are missing where compaction or the marks of transactions were. kafka-go's
// Reader was seen to be ahead of values it had not given out (segmentio/kafka-go issue 1276),
// and to stand still where the end of a batch was compacted away (621).
func TestNoOffsetIsSkipped(t *testing.T) {
	b := broker.Start(t, broker.With("log.cleaner.backoff.ms", "100"))
	c := groupClient(t, b.Addr())
	topic := b.CreateTopic(t, "compacted", 1, kgo.ConfigEntry{ConfigName: "cleanup.policy", ConfigValue: "compact"},
		kgo.ConfigEntry{ConfigName: "segment.ms", ConfigValue: "50"}, kgo.ConfigEntry{ConfigName: "min.cleanable.dirty.ratio", ConfigValue: "0.01"})
	ctx := within(t, 2*time.Minute)
	produce := func(from, to int) {
		t.Helper()
		var batch []Message
		for i := from; i < to; i++ {
			batch = append(batch, Message{Key: fmt.Append(nil, i), Value: []byte("v")})
		}
		if _, err := c.Produce(ctx, topic, 0, batch...); err != nil {
			t.Fatal(err)
		}
		time.Sleep(60 * time.Millisecond) // the next batch begins a segment
	}
	produce(0, 10)    // offsets 0 to 9, of which 5 to 9 will be gone
	produce(5, 10)    // 10 to 14, of which 12 will be gone
	produce(7, 8)     // 15
	produce(99, 99+1) // the last segment is not compacted
	// One batch at a time, as where each is the last of a segment.
	read := func() (offsets []int64, requests int) {
		t.Helper()
		for next := int64(0); next < 17; requests++ {
			f, err := c.Fetch(ctx, topic, 0, next, 1, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if f.Next <= next {
				t.Fatalf("stands still at offset %d", next)
			}
			for _, r := range f.Records {
				offsets = append(offsets, r.Offset)
			}
			next = f.Next
		}
		return offsets, requests
	}
	want := []int64{0, 1, 2, 3, 4, 10, 11, 13, 14, 15, 16}
	eventually(t, "the topic is compacted", func() bool {
		got, _ := read()
		return len(got) <= len(want)
	})
	got, requests := read()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	t.Logf("%d requests", requests)

	// Transactions of two producers, one of which takes back what it wrote.
	topic = b.CreateTopic(t, "transactions", 1)
	keeps, takesBack := newTransaction(t, c, topic), newTransaction(t, c, topic)
	var wanted []string
	for i := range 3 {
		plain, kept := fmt.Sprint("plain ", i), fmt.Sprint("kept ", i)
		if _, err := c.Produce(ctx, topic, 0, Message{Value: []byte(plain)}); err != nil {
			t.Fatal(err)
		}
		takesBack.produce(fmt.Sprint("taken back ", i))
		keeps.produce(kept)
		takesBack.end(i == 1) // the second time it does not
		wanted = append(wanted, plain)
		if i == 1 {
			wanted = append(wanted, "taken back 1")
		}
		wanted = append(wanted, kept)
		keeps.end(true)
	}
	if _, err := c.Produce(ctx, topic, 0, Message{Value: []byte("end")}); err != nil {
		t.Fatal(err)
	}
	wanted = append(wanted, "end")
	for _, size := range []int64{1, 1 << 20} {
		var values []string
		for next := int64(0); len(values) == 0 || values[len(values)-1] != "end"; {
			f, err := c.Fetch(ctx, topic, 0, next, size, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range f.Records {
				values = append(values, string(r.Value))
			}
			next = f.Next
		}
		if diff := cmp.Diff(wanted, values); diff != "" {
			t.Errorf("%d bytes at a time:\n%s", size, diff)
		}
	}
}

// transaction is a producer with transactions, which kafka-go cannot produce by itself.
type transaction struct {
	t       *testing.T
	c       *Client
	topic   string
	id      string
	session *kgo.ProducerSession
	seq     uint32
}

func newTransaction(t *testing.T, c *Client, topic string) *transaction {
	t.Helper()
	tx := &transaction{t: t, c: c, topic: topic, id: topic + strconv.FormatInt(time.Now().UnixNano(), 36)}
	eventually(t, "there is a coordinator of transactions", func() bool {
		res, err := c.kafka.InitProducerID(t.Context(), &kgo.InitProducerIDRequest{TransactionalID: tx.id, TransactionTimeoutMs: 60_000})
		if err == nil {
			err = res.Error
		}
		if err != nil {
			return false
		}
		tx.session = res.Producer
		return true
	})
	return tx
}

func (tx *transaction) produce(value string) {
	t, ctx := tx.t, tx.t.Context()
	t.Helper()
	eventually(t, "the partition is part of the transaction", func() bool { // the last one may still be ending
		res, err := tx.c.kafka.AddPartitionsToTxn(ctx, &kgo.AddPartitionsToTxnRequest{TransactionalID: tx.id, ProducerID: tx.session.ProducerID,
			ProducerEpoch: tx.session.ProducerEpoch, Topics: map[string][]kgo.AddPartitionToTxn{tx.topic: {{Partition: 0}}}})
		if err != nil {
			t.Fatal(err)
		}
		return res.Topics[tx.topic][0].Error == nil
	})
	set := protocol.RecordSet{Version: 2, Attributes: protocol.Transactional,
		Records: protocol.NewRecordReader(protocol.Record{Value: protocol.NewBytes([]byte(value))})}
	var buf bytes.Buffer
	if _, err := set.WriteTo(&buf); err != nil {
		t.Fatal(err)
	}
	batch := buf.Bytes()[4:] // behind the size of the set; offsets are those of Kafka's record format, version 2
	be := binary.BigEndian
	be.PutUint64(batch[43:], uint64(tx.session.ProducerID))
	be.PutUint16(batch[51:], uint16(tx.session.ProducerEpoch))
	be.PutUint32(batch[53:], tx.seq)
	be.PutUint32(batch[17:], crc32.Checksum(batch[21:], crc32.MakeTable(crc32.Castagnoli)))
	tx.seq++
	res, err := tx.c.kafka.RawProduce(ctx, &kgo.RawProduceRequest{Topic: tx.topic, RequiredAcks: kgo.RequireAll, TransactionalID: tx.id,
		RawRecords: protocol.RawRecordSet{Reader: &buf}})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (tx *transaction) end(commit bool) {
	tx.t.Helper()
	res, err := tx.c.kafka.EndTxn(tx.t.Context(), &kgo.EndTxnRequest{TransactionalID: tx.id, ProducerID: tx.session.ProducerID,
		ProducerEpoch: tx.session.ProducerEpoch, Committed: commit})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		tx.t.Fatal(err)
	}
}

// A broker restarts under a group with more members than partitions: kafka-go's Reader
// gives nothing out any more (segmentio/kafka-go issue 387).
func TestGroupGoesOnAfterRestart(t *testing.T) {
	b := broker.Start(t)
	topic, group := b.CreateTopic(t, "restart", 2), b.Topic(t, "group")
	c := groupClient(t, b.Addr())
	m := newMade(t)
	stop := writeAll(t, c, topic, 2)
	for _, member := range []string{"A", "B", "C"} {
		m.join(groupClient(t, b.Addr()), group, []string{topic}, member, nil)
	}
	eventually(t, "something is made", func() bool { return m.all() > 200 })
	for _, end := range []func(){b.Stop, b.Kill} {
		end()
		time.Sleep(300 * time.Millisecond) // what is in flight fails
		n := m.all()
		b.Restart()
		t.Logf("goes on %v after the restart", eventually(t, "it goes on", func() bool { return m.all() > n+200 }))
	}
	stop()
	m.check(c, topic, 2)
}

// The broker that coordinates the group and leads a partition is lost for good: kafka-go's
// readers stall, and the lag grows (segmentio/kafka-go issue 955).
func TestCoordinatorLost(t *testing.T) {
	cluster := broker.StartCluster(t, 3)
	c := groupClient(t, cluster.Addrs()...)
	topic, group := cluster.CreateTopic(t, "coordinator", 3), "coordinated"
	m := newMade(t)
	stop := writeAll(t, c, topic, 3)
	for _, member := range []string{"A", "B"} {
		m.join(groupClient(t, cluster.Addrs()...), group, []string{topic}, member, nil)
	}
	eventually(t, "both make something", func() bool { return m.of("A") > 50 && m.of("B") > 50 })
	res, err := c.kafka.FindCoordinator(t.Context(), &kgo.FindCoordinatorRequest{Key: group, KeyType: kgo.CoordinatorKeyTypeConsumer})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(cluster.Addrs(), func(a string) bool { return a == fmt.Sprintf("127.0.0.1:%d", res.Coordinator.Port) })
	cluster.Kill(at)
	a, bb := m.of("A"), m.of("B")
	t.Logf("goes on %v after the coordinator was killed", eventually(t, "both go on", func() bool { return m.of("A") > a+50 && m.of("B") > bb+50 }))
	stop()
	m.check(c, topic, 3)
}
