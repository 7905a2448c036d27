package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	kgo "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
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
// wait. An offset that retention has taken away is an OffsetOutOfRange error. It does
// not retry.
func (c *Client) Fetch(ctx context.Context, topic string, partition int, offset int64, maxBytes int64, wait time.Duration) (Fetched, error) {
	out := Fetched{Next: offset}
	res, err := c.Kafka().Fetch(ctx, &kgo.FetchRequest{Topic: topic, Partition: partition, Offset: offset, MinBytes: 1, MaxBytes: maxBytes, MaxWait: wait})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return out, fmt.Errorf("reading %s/%d at offset %d: %w", topic, partition, offset, err)
	}
	out.First, out.High = res.LogStartOffset, res.HighWatermark
	if err := out.read(res.Records, offset, false); err != nil {
		return out, fmt.Errorf("reading %s/%d at offset %d: %w", topic, partition, offset, err)
	}
	return out, nil
}

// read takes in what lies at or behind offset. Control records (the marks of
// transactions) only move Next on.
func (f *Fetched) read(records kgo.RecordReader, offset int64, control bool) error {
	switch r := records.(type) {
	case *protocol.RecordStream:
		for _, each := range r.Records {
			if err := f.read(each, offset, control); err != nil {
				return err
			}
		}
		return nil
	case *protocol.ControlBatch:
		control = true
	}
	for {
		r, err := records.ReadRecord()
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
		if control {
			continue
		}
		f.Bytes += len(rec.Key) + len(rec.Value)
		f.Records = append(f.Records, rec)
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
