package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/cenkalti/backoff/v5"
	kgo "github.com/segmentio/kafka-go"
)

// The requests by which a group's partitions are divided anew while nobody works on them.

// Positions are where a group stands: nil beside an offset that has no position of ours.
// Partitions without an offset are not in it.
type Positions map[string]map[int]*Position

// Set notes where the group stands on a partition.
func (p Positions) Set(topic string, partition int, at *Position) {
	if p[topic] == nil {
		p[topic] = map[int]*Position{}
	}
	p[topic][partition] = at
}

// Positions asks the coordinator where a group stands on every partition of all topics.
func (c *Client) Positions(ctx context.Context, group string) (Positions, error) {
	var res *kgo.OffsetFetchResponse
	err := c.again(ctx, func() (err error) {
		if res, err = c.kafka.OffsetFetch(ctx, &kgo.OffsetFetchRequest{GroupID: group}); err == nil {
			err = res.Error
		}
		return err
	})
	if err != nil {
		return nil, c.explain("ask where group "+group+" stands", err)
	}
	all := Positions{}
	for topic, partitions := range res.Topics {
		for _, each := range partitions {
			if each.Error != nil {
				return nil, c.explain(fmt.Sprintf("ask where group %s stands on %s/%d", group, topic, each.Partition), each.Error)
			}
			if each.CommittedOffset < 0 {
				continue
			}
			at, err := parsePosition(each.CommittedOffset, each.Metadata)
			switch {
			case errors.Is(err, errForeignMetadata):
				all.Set(topic, each.Partition, nil)
			case err != nil:
				return nil, fmt.Errorf("%s/%d: %w", topic, each.Partition, err)
			default:
				all.Set(topic, each.Partition, &at)
			}
		}
	}
	return all, nil
}

// ErrGroupBusy says that a group has members, and positions are theirs to change.
var ErrGroupBusy = errors.New("somebody is in the consumer group")

// SetPositions changes where a group stands on several partitions, in one step. The
// group must have no members; else the error is ErrGroupBusy and nothing is changed.
// Every partition must be known to the coordinator: one that was made just now is, for a
// moment, refused by itself while the others are changed. It is tried again for as long
// as one request may take.
func (c *Client) SetPositions(ctx context.Context, group string, positions Positions) error {
	if len(positions) == 0 {
		return nil
	}
	req := kgo.OffsetCommitRequest{GroupID: group, GenerationID: -1, Topics: map[string][]kgo.OffsetCommit{}}
	for topic, partitions := range positions {
		for p, at := range partitions {
			text, err := at.metadata()
			if err != nil {
				return err
			}
			req.Topics[topic] = append(req.Topics[topic], kgo.OffsetCommit{Partition: p, Offset: at.Offset, Metadata: text})
		}
	}
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := c.setPositions(ctx, &req)
		if err != nil && !Retryable(err) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithMaxElapsedTime(c.cfg.Timeout))
	if errors.Is(err, kgo.UnknownMemberId) || errors.Is(err, kgo.IllegalGeneration) || errors.Is(err, kgo.RebalanceInProgress) {
		err = fmt.Errorf("%w (%w)", ErrGroupBusy, err)
	}
	if err != nil {
		return c.explain("set where group "+group+" stands", err)
	}
	return nil
}

func (c *Client) setPositions(ctx context.Context, req *kgo.OffsetCommitRequest) error {
	res, err := c.kafka.OffsetCommit(ctx, req)
	if err != nil {
		c.Refresh()
		return err
	}
	for topic, sent := range req.Topics {
		if len(res.Topics[topic]) != len(sent) {
			return fmt.Errorf("the answer speaks of %d partitions of %s instead of %d", len(res.Topics[topic]), topic, len(sent))
		}
		for _, each := range res.Topics[topic] {
			if each.Error != nil {
				return fmt.Errorf("%s/%d: %w", topic, each.Partition, each.Error)
			}
		}
	}
	return nil
}

// Members are the clients that are in a group now.
func (c *Client) Members(ctx context.Context, group string) (members []string, err error) {
	doing := "ask who is in group " + group
	var res *kgo.DescribeGroupsResponse
	err = c.again(ctx, func() (err error) {
		res, err = c.kafka.DescribeGroups(ctx, &kgo.DescribeGroupsRequest{GroupIDs: []string{group}})
		if err == nil && len(res.Groups) == 1 && res.Groups[0].GroupState == "" {
			err = res.Groups[0].Error
		}
		return err
	})
	if err != nil {
		return nil, c.explain(doing, err)
	}
	if len(res.Groups) != 1 {
		return nil, c.explain(doing, fmt.Errorf("the answer speaks of %d groups", len(res.Groups)))
	}
	g := &res.Groups[0]
	if g.GroupState == "Empty" || g.GroupState == "Dead" { // "Dead" is also one that never was
		return nil, nil
	}
	for _, m := range g.Members {
		members = append(members, m.ClientID+m.ClientHost) // a host begins with a slash
	}
	if len(members) == 0 {
		members = append(members, "one that is joining")
	}
	return members, nil
}

// Grow gives a topic n partitions, if it has less, and waits until they can be used.
func (c *Client) Grow(ctx context.Context, topic string, n int) error {
	res, err := c.kafka.CreatePartitions(ctx, &kgo.CreatePartitionsRequest{Topics: []kgo.TopicPartitionsConfig{{Name: topic, Count: int32(n)}}})
	if err == nil {
		err = res.Errors[topic]
	}
	if err != nil && !errors.Is(err, kgo.InvalidPartitionNumber) { // it has as many, or they are found missing below
		return c.explain(fmt.Sprintf("give topic %s %s", topic, count(n, "partition")), err)
	}
	// The picture that the transport keeps goes on for seconds saying what was, also to who
	// asks for partitions next; and a broker may hear of it later than the one that was asked.
	if err := c.again(ctx, func() error {
		c.Refresh()
		has, err := c.partitions(ctx, topic)
		if err == nil && has < n {
			err = fmt.Errorf("%d of its %s are known: %w", has, count(n, "partition"), kgo.LeaderNotAvailable)
		}
		return err
	}); err != nil {
		return c.explain(fmt.Sprintf("give topic %s %s", topic, count(n, "partition")), err)
	}
	for p := range n {
		if _, _, err := c.Offsets(ctx, topic, p); err != nil {
			return err
		}
	}
	return nil
}
