package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	kgo "github.com/segmentio/kafka-go"
)

// ErrDeposed says that another member may own the partition by now: the coordinator
// refuses what we commit. What was begun is left as it is; the new owner repeats it.
var ErrDeposed = errors.New("the partition was given to another member of the group")

// Member takes part in a consumer group. kafka-go's ConsumerGroup joins, balances and
// beats; everything that bears on what is delivered (positions, fetching, committing)
// is done here, since kafka-go's Reader is known to go on with messages of a
// partition it lost, and to skip offsets.
type Member struct {
	client *Client
	group  string
	topics []string
	log    *slog.Logger

	rebalances prometheus.Counter
	commits    prometheus.Histogram
}

// NewMember makes a member of a group that reads topics. It joins in Run. reg may be nil.
func NewMember(c *Client, group string, topics []string, log *slog.Logger, reg prometheus.Registerer) (*Member, error) {
	m := &Member{
		client: c, group: group, topics: topics, log: log,
		rebalances: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_kafka_rebalances_total",
			Help: "Times this process was given partitions by its consumer group.",
		}),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "postern_kafka_commit_duration_seconds",
			Help:    "Time until the coordinator had made a position durable.",
			Buckets: []float64{.001, .002, .005, .01, .025, .05, .1, .25, 1, 5},
		}),
	}
	if reg == nil {
		return m, nil
	}
	return m, errors.Join(reg.Register(m.rebalances), reg.Register(m.commits))
}

// Times of a member. A session of ten seconds finds a dead member soon and outlasts
// a pause of the garbage collector or a slow network by far.
const (
	sessionTimeout    = 10 * time.Second
	heartbeatInterval = 2 * time.Second
	rebalanceTimeout  = 15 * time.Second
	joinBackoff       = time.Second
)

// Run takes part until ctx ends. For each partition that the group gives it, it runs
// work in a goroutine of its own; work ends when its ctx ends, which is when the
// partition is given away or Run's ctx has ended for longer than grace. When Run's ctx
// ends, the assignment's Stopping closes first, so that work can close what it has
// open. An error of work is logged and the work begun again after a while.
func (m *Member) Run(ctx context.Context, grace time.Duration, work func(ctx context.Context, a *Assignment) error) error {
	group, err := kgo.NewConsumerGroup(kgo.ConsumerGroupConfig{
		ID: m.group, Brokers: m.client.cfg.Brokers, Dialer: m.client.Dialer(), Topics: m.topics,
		GroupBalancers:    []kgo.GroupBalancer{kgo.RangeGroupBalancer{}},
		HeartbeatInterval: heartbeatInterval, SessionTimeout: sessionTimeout, RebalanceTimeout: rebalanceTimeout, JoinGroupBackoff: joinBackoff,
		WatchPartitionChanges: true, StartOffset: kgo.FirstOffset, Timeout: m.client.cfg.Timeout,
	})
	if err != nil {
		return err
	}
	stopping := make(chan struct{})
	inner, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	var workers sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { close(stopping) })
	defer stop()
	for {
		gen, err := group.Next(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			m.log.Warn("joining the consumer group; trying again", "group", m.group, "error", err)
			continue
		}
		m.rebalances.Inc()
		for topic, partitions := range gen.Assignments {
			for _, p := range partitions {
				a := &Assignment{member: m, Topic: topic, Partition: p.ID, generation: int(gen.ID), id: gen.MemberID, Stopping: stopping}
				workers.Add(1)
				gen.Start(func(ended context.Context) {
					defer workers.Done()
					ctx, cancel := context.WithCancel(inner)
					defer cancel()
					go func() { // ended is no context that AfterFunc knows
						select {
						case <-ended.Done():
							cancel()
						case <-ctx.Done():
						}
					}()
					m.keepWorking(ctx, a, work)
				})
			}
		}
		m.log.Info("joined the consumer group", "group", m.group, "generation", gen.ID, "assigned", assigned(gen.Assignments))
	}
	done := make(chan struct{})
	go func() { workers.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(grace):
		m.log.Warn("what is open stays open; the next owner repeats it", "group", m.group)
	}
	abort()
	return group.Close()
}

func assigned(list map[string][]kgo.PartitionAssignment) map[string]int {
	out := map[string]int{}
	for topic, partitions := range list {
		out[topic] = len(partitions)
	}
	return out
}

// keepWorking runs work until ctx ends, the partition is lost or the member stops.
// Having returned it would end the whole generation, so a failure is waited out here.
func (m *Member) keepWorking(ctx context.Context, a *Assignment, work func(context.Context, *Assignment) error) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 250*time.Millisecond, 15*time.Second
	for {
		err := work(ctx, a)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrDeposed):
			m.log.Info("gave a partition up", "topic", a.Topic, "partition", a.Partition, "generation", a.generation)
			return
		case a.stopping() && err == nil:
			<-ctx.Done() // others of this generation may still be closing what they have open
			return
		case err != nil:
			m.log.Error("working on a partition; beginning again", "topic", a.Topic, "partition", a.Partition, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait.NextBackOff()):
		}
	}
}

// Assignment is a partition that the group gave to this member, for as long as its
// generation lasts.
type Assignment struct {
	Topic     string
	Partition int
	// Stopping closes when the member is about to leave: nothing new should be opened.
	Stopping <-chan struct{}

	member     *Member
	generation int
	id         string
}

func (a *Assignment) stopping() bool {
	select {
	case <-a.Stopping:
		return true
	default:
		return false
	}
}

// Position asks the coordinator where the group stands. ours is false where another
// consumer, or a person, left an offset without a position of ours, or where there is
// none at all (Offset is then -1).
func (a *Assignment) Position(ctx context.Context) (p Position, ours bool, err error) {
	res, err := a.member.client.Kafka().OffsetFetch(ctx, &kgo.OffsetFetchRequest{GroupID: a.member.group, Topics: map[string][]int{a.Topic: {a.Partition}}})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return p, false, fmt.Errorf("asking for the position of %s/%d: %w", a.Topic, a.Partition, err)
	}
	for _, each := range res.Topics[a.Topic] {
		if each.Partition != a.Partition {
			continue
		}
		if each.Error != nil {
			return p, false, fmt.Errorf("asking for the position of %s/%d: %w", a.Topic, a.Partition, each.Error)
		}
		p, err = parsePosition(each.CommittedOffset, each.Metadata)
		if errors.Is(err, errForeignMetadata) {
			return p, false, nil
		}
		return p, err == nil, err
	}
	return p, false, fmt.Errorf("asking for the position of %s/%d: the answer does not speak of it", a.Topic, a.Partition)
}

// Commit makes p the group's position. When it returns nil the position survives any
// crash; with ErrDeposed it is not ours to write. Other failures are tried again until
// ctx ends.
func (a *Assignment) Commit(ctx context.Context, p Position) error {
	text, err := p.metadata()
	if err != nil {
		return err
	}
	began := time.Now()
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 50*time.Millisecond, 2*time.Second
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		err := a.commit(ctx, p.Offset, text)
		switch {
		case err == nil:
		case errors.Is(err, kgo.IllegalGeneration), errors.Is(err, kgo.UnknownMemberId), errors.Is(err, kgo.FencedInstanceID), errors.Is(err, kgo.RebalanceInProgress):
			err = backoff.Permanent(fmt.Errorf("%w (%w)", ErrDeposed, err))
		case !Retryable(err):
			err = backoff.Permanent(err)
		default:
			a.member.log.Warn("committing a position; trying again", "topic", a.Topic, "partition", a.Partition, "error", err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(0))
	if err != nil {
		return fmt.Errorf("committing the position of %s/%d: %w", a.Topic, a.Partition, err)
	}
	a.member.commits.Observe(time.Since(began).Seconds())
	return nil
}

func (a *Assignment) commit(ctx context.Context, offset int64, text string) error {
	res, err := a.member.client.Kafka().OffsetCommit(ctx, &kgo.OffsetCommitRequest{
		GroupID: a.member.group, GenerationID: a.generation, MemberID: a.id,
		Topics: map[string][]kgo.OffsetCommit{a.Topic: {{Partition: a.Partition, Offset: offset, Metadata: text}}},
	})
	if err != nil {
		return err
	}
	for _, each := range res.Topics[a.Topic] {
		if each.Partition == a.Partition {
			return each.Error
		}
	}
	return errors.New("the answer does not speak of the partition")
}
