package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	kgo "github.com/segmentio/kafka-go"
)

// statePart is how much of a checkpoint one value holds: well below the megabyte
// that brokers take by default, before compression.
const statePart = 512 << 10

// maxStateParts bounds a checkpoint: 128 parts are 64 MiB, and their offsets still
// fit into the metadata of a committed offset.
const maxStateParts = 128

// stateSlots is how many checkpoints of a partition compaction leaves behind.
const stateSlots = 16

// ErrStateLost says that a checkpoint is not where the position says.
var ErrStateLost = errors.New("the checkpoint is gone")

// SaveState makes the checkpoint of a partition last, in partition in of the state topic,
// and gives its place. number
// is the number of the range it follows: a key is used again every 16 ranges, so
// compaction keeps the topic small, and what a committed position names is not
// compacted away before long (see [Plan]).
func (c *Client) SaveState(ctx context.Context, group, topic string, partition, in int, number uint64, state []byte) (Place, error) {
	place := Place{Sum: xxhash.Sum64(state)}
	if len(state) > statePart*maxStateParts {
		return Place{}, fmt.Errorf("the checkpoint of %s/%d has %d bytes, more than %d", topic, partition, len(state), statePart*maxStateParts)
	}
	for part := 0; part == 0 || len(state) > 0; part++ {
		n := min(len(state), statePart)
		key := fmt.Sprintf("%s/%s/%d/%d/%d", group, topic, partition, number%stateSlots, part)
		offset, err := c.Produce(ctx, c.cfg.Topic(TopicState), in, Message{Key: []byte(key), Value: state[:n]})
		if err != nil {
			return Place{}, fmt.Errorf("saving the checkpoint of %s/%d: %w", topic, partition, err)
		}
		place.Offsets = append(place.Offsets, offset)
		state = state[n:]
	}
	return place, nil
}

// LoadState reads a checkpoint in partition in of the state topic. If it is not there any more or not what was saved the
// error is ErrStateLost; any other may go away by itself.
func (c *Client) LoadState(ctx context.Context, in int, place Place) ([]byte, error) {
	var state []byte
	for _, offset := range place.Offsets {
		f, err := c.Fetch(ctx, c.cfg.Topic(TopicState), in, offset, statePart*2, c.cfg.Timeout)
		if err != nil {
			if errors.Is(err, kgo.OffsetOutOfRange) {
				return nil, fmt.Errorf("%w: %w", ErrStateLost, err)
			}
			return nil, err
		}
		if len(f.Records) == 0 || f.Records[0].Offset != offset {
			return nil, fmt.Errorf("%w: nothing at offset %d of %s/%d", ErrStateLost, offset, c.cfg.Topic(TopicState), in)
		}
		state = append(state, f.Records[0].Value...)
	}
	if xxhash.Sum64(state) != place.Sum {
		return nil, fmt.Errorf("%w: what lies at offsets %d of %s/%d is something else", ErrStateLost, place.Offsets, c.cfg.Topic(TopicState), in)
	}
	return state, nil
}
