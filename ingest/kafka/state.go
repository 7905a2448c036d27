package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/klauspost/compress/zstd"
	kgo "github.com/segmentio/kafka-go"
)

// maxState bounds a checkpoint when it is unpacked.
const maxState = 2 << 30

// statePart is how much of a checkpoint one value holds: well below the megabyte
// that brokers take by default, before compression.
const statePart = 512 << 10

// maxStateParts bounds a checkpoint: 128 parts are 64 MiB, compressed, and their offsets still
// fit into the metadata of a committed offset.
const maxStateParts = 128

// stateSlots is how many checkpoints of a partition compaction leaves behind.
const stateSlots = 16

// ErrStateLost says that a checkpoint is not where the position says.
var ErrStateLost = errors.New("the checkpoint is gone")

// headerStateOf says of what a value is a part: the number of parts, the xxHash64 of the
// whole, and the number of the range it follows.
const headerStateOf = "of"

func stateKey(group, topic string, partition int) string {
	return fmt.Sprintf("%s/%s/%d/", group, topic, partition)
}

// SaveState makes the checkpoint of a partition last, in partition in of the state topic,
// and gives its place. number
// is the number of the range it follows: a key is used again every 16 ranges, so
// compaction keeps the topic small, and what a committed position names is not
// compacted away before long (see [Plan]).
func (c *Client) SaveState(ctx context.Context, group, topic string, partition, in int, number uint64, state []byte) (Place, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return Place{}, err
	}
	whole := len(state)
	state = enc.EncodeAll(state, nil)
	place := Place{Sum: xxhash.Sum64(state)}
	if len(state) > statePart*maxStateParts {
		return Place{}, fmt.Errorf("the checkpoint of %s/%d has %d bytes, compressed %d, more than %d", topic, partition, whole, len(state), statePart*maxStateParts)
	}
	parts := max(1, (len(state)+statePart-1)/statePart)
	of := kgo.Header{Key: headerStateOf, Value: fmt.Appendf(nil, "%d %016x %d", parts, place.Sum, number)}
	for part := range parts {
		n := min(len(state), statePart)
		key := fmt.Sprintf("%s%d/%d", stateKey(group, topic, partition), number%stateSlots, part)
		offset, err := c.Produce(ctx, c.cfg.Topic(TopicState), in, Message{Key: []byte(key), Value: state[:n], Headers: []kgo.Header{of}})
		if err != nil {
			return Place{}, fmt.Errorf("saving the checkpoint of %s/%d: %w", topic, partition, err)
		}
		place.Offsets = append(place.Offsets, offset)
		state = state[n:]
	}
	return place, nil
}

// LoadState reads a checkpoint in partition in of the state topic. If it is not there
// any more or not what was saved the error is ErrStateLost; any other may go away by
// itself.
func (c *Client) LoadState(ctx context.Context, in int, place Place) ([]byte, error) {
	var state []byte
	for _, offset := range place.Offsets {
		part, err := c.loadPart(ctx, in, offset)
		if err != nil {
			return nil, err
		}
		state = append(state, part...)
	}
	if xxhash.Sum64(state) != place.Sum {
		return nil, fmt.Errorf("%w: what lies at offsets %d of %s/%d is something else", ErrStateLost, place.Offsets, c.cfg.Topic(TopicState), in)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxState))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	return dec.DecodeAll(state, nil)
}

// hiddenFor is how long a record that was acknowledged may be behind the high watermark.
// A broker that was killed, or that just became leader, gives nothing beyond the one it
// knew of until its followers have fetched; one that does not is out of the game after
// replica.lag.time.max.ms, 30 s.
const hiddenFor = time.Minute

func (c *Client) loadPart(ctx context.Context, in int, offset int64) ([]byte, error) {
	for began := time.Now(); ; {
		f, err := c.Fetch(ctx, c.cfg.Topic(TopicState), in, offset, statePart*2, time.Second)
		switch {
		case errors.Is(err, kgo.OffsetOutOfRange):
			return nil, fmt.Errorf("%w: %w", ErrStateLost, err)
		case err != nil:
			return nil, err
		case len(f.Records) > 0 && f.Records[0].Offset == offset:
			return f.Records[0].Value, nil
		case f.High > offset || time.Since(began) > hiddenFor:
			return nil, fmt.Errorf("%w: nothing at offset %d of %s/%d", ErrStateLost, offset, c.cfg.Topic(TopicState), in)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// FindState finds the newest checkpoint of a partition in partition in of the state
// topic, where the position that named it is gone: offsets that somebody set, or that
// the cluster forgot of a group that was away for long. The place is not Known if there
// is none. It reads backwards, since the newest is near the end.
func (c *Client) FindState(ctx context.Context, group, topic string, partition, in int) (Place, error) {
	first, end, err := c.Offsets(ctx, c.cfg.Topic(TopicState), in)
	if err != nil {
		return Place{}, err
	}
	for back := int64(256); ; back *= 4 {
		from := max(first, end-back)
		place, err := c.newestState(ctx, stateKey(group, topic, partition), in, from, end)
		if err != nil || place.Known() || from == first {
			return place, err
		}
	}
}

// newestState is the last checkpoint under a key that lies whole in [from, to).
func (c *Client) newestState(ctx context.Context, key string, in int, from, to int64) (newest Place, err error) {
	var open Place
	var highest uint64
	for from < to {
		f, err := c.Fetch(ctx, c.cfg.Topic(TopicState), in, from, 8*statePart, c.cfg.Timeout)
		if err != nil {
			return newest, err
		}
		for _, r := range f.Records {
			slot, ours := strings.CutPrefix(string(r.Key), key)
			_, part, _ := strings.Cut(slot, "/")
			n, err := strconv.Atoi(part)
			if !ours || err != nil || r.Offset >= to {
				continue
			}
			var parts int
			var sum, number uint64
			for _, h := range r.Headers {
				if h.Key == headerStateOf {
					_, err = fmt.Sscanf(string(h.Value), "%d %x %d", &parts, &sum, &number)
				}
			}
			if n == 0 {
				open = Place{Sum: sum}
			}
			if err != nil || sum != open.Sum || n != len(open.Offsets) {
				continue // a part of what compaction or a crash left incomplete
			}
			// A deposed owner's save may lie behind its successor's.
			if open.Offsets = append(open.Offsets, r.Offset); len(open.Offsets) == parts && number >= highest {
				newest, open, highest = open, Place{}, number
			}
		}
		if f.Next == from {
			break
		}
		from = f.Next
	}
	return newest, nil
}
