package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	kgo "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
)

// Record is one value of a partition's log.
type Record struct {
	Offset     int64
	Time       time.Time
	Key, Value []byte
	Headers    []kgo.Header
}

// Fetched is what one request brought.
type Fetched struct {
	Records []Record
	Next    int64 // the offset to ask for next; beyond the last record where offsets are missing
	First   int64 // the oldest offset that the log still has
	High    int64 // the offset that the next record of the log will have
	Bytes   int   // of keys and values
}

// Fetch reads a partition from an offset on: up to about maxBytes (of compressed
// data, and always at least one whole batch), or nothing if nothing comes within
// wait. What a producer's transaction took back is passed over, and what one has not
// yet committed is not read before it is. An offset that retention has taken away is
// an OffsetOutOfRange error. Fetch does not retry; after an error that may be over
// the next time (see [Retryable]) the next call asks anew who leads the partition.
func (c *Client) Fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int64, wait time.Duration) (Fetched, error) {
	out := Fetched{Next: offset}
	err := c.fetch(ctx, &out, topic, partition, offset, maxBytes, wait)
	if err != nil {
		if Retryable(err) {
			c.Refresh()
		}
		return Fetched{Next: offset}, fmt.Errorf("reading %s/%d at offset %d: %w", topic, partition, offset, err)
	}
	return out, nil
}

// fetch speaks to the transport, since kafka-go's own Fetch drops the list of aborted
// transactions from the answer.
func (c *Client) fetch(ctx context.Context, out *Fetched, topic string, partition int, offset int64, maxBytes int64, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout+wait)
	defer cancel()
	m, err := c.trans.RoundTrip(ctx, c.kafka.Addr, &fetch.Request{
		ReplicaID: -1, MinBytes: 1, MaxBytes: int32(maxBytes), MaxWaitTime: int32(wait.Milliseconds()),
		IsolationLevel: int8(kgo.ReadCommitted), SessionID: -1, SessionEpoch: -1,
		Topics: []fetch.RequestTopic{{Topic: topic, Partitions: []fetch.RequestPartition{{
			Partition: int32(partition), CurrentLeaderEpoch: -1, FetchOffset: offset, LogStartOffset: -1, PartitionMaxBytes: int32(maxBytes),
		}}}},
	})
	if err != nil {
		return err
	}
	res := m.(*fetch.Response)
	if res.ErrorCode != 0 {
		return kgo.Error(res.ErrorCode)
	}
	if len(res.Topics) != 1 || len(res.Topics[0].Partitions) != 1 {
		return errors.New("the answer does not speak of the partition")
	}
	p := &res.Topics[0].Partitions[0]
	if p.ErrorCode != 0 {
		return kgo.Error(p.ErrorCode)
	}
	out.First, out.High = p.LogStartOffset, p.HighWatermark
	stream, ok := p.RecordSet.Records.(*protocol.RecordStream)
	if !ok {
		return nil
	}
	aborted := p.AbortedTransactions
	for _, batch := range stream.Records {
		keep := true
		switch b := batch.(type) {
		case *protocol.ControlBatch: // ends the transaction of its producer
			keep = false
			aborted = slices.DeleteFunc(aborted, func(t fetch.ResponseTransaction) bool {
				return t.ProducerID == b.ProducerID && t.FirstOffset <= b.BaseOffset
			})
		case *protocol.RecordBatch:
			keep = !b.Attributes.Transactional() || !slices.ContainsFunc(aborted, func(t fetch.ResponseTransaction) bool {
				return t.ProducerID == b.ProducerID && t.FirstOffset <= b.BaseOffset
			})
		}
		if err := out.read(batch, offset, keep); err != nil {
			return err
		}
	}
	if out.Next == offset && len(stream.Records) > 0 {
		// The batch that covers the offset came, and has no record at it or behind it:
		// compaction took them. How far the batch reaches kafka-go does not say, so its
		// end is felt for. Where the batch is the last of a segment the broker would
		// give this one alone, again and again.
		out.Next++
	}
	return nil
}

// read takes in what of a batch lies at or behind offset; without keep it only moves
// Next on.
func (f *Fetched) read(batch kgo.RecordReader, offset int64, keep bool) error {
	for {
		r, err := batch.ReadRecord()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		rec := Record{Offset: r.Offset, Time: r.Time, Headers: r.Headers}
		if rec.Key, err = bytesOf(r.Key); err != nil {
			return err
		}
		if rec.Value, err = bytesOf(r.Value); err != nil {
			return err
		}
		if rec.Offset < offset { // a batch may begin before the offset asked for
			continue
		}
		f.Next = max(f.Next, rec.Offset+1)
		if keep {
			f.Bytes += len(rec.Key) + len(rec.Value)
			f.Records = append(f.Records, rec)
		}
	}
}

func bytesOf(b protocol.Bytes) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	defer b.Close()
	out := make([]byte, b.Len())
	_, err := io.ReadFull(b, out)
	return out, err
}
