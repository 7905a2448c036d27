package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	kgo "github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"
)

// ErrDeposed says that another member may own the partition by now: the coordinator
// refuses what we commit. What was begun is left as it is; the new owner repeats it.
var ErrDeposed = errors.New("the partition was given to another member of the group")

// Member takes part in a consumer group, by the requests of the classic group protocol
// (JoinGroup, SyncGroup, Heartbeat, LeaveGroup). Two things of kafka-go are not used:
//
//   - Its Reader, which goes on with messages of a partition that it lost, skips
//     offsets, and stands still after a broker's restart (issues 1398, 1276, 387 and 955
//     of segmentio/kafka-go).
//   - Its ConsumerGroup, which gives a generation up at the first heartbeat that fails
//     and forgets its member id when the coordinator cannot be reached, so that every
//     restart of a broker costs the whole group a rebalance that waits for a member
//     which will not come back; which joins again without a pause while one of its topics
//     does not exist; and which creates such a topic where brokers allow it.
type Member struct {
	client *Client
	joiner *kgo.Client // whose requests may take as long as a rebalance
	group  string
	topics []string
	log    *slog.Logger
	id     string // given by the coordinator, and kept for as long as it knows it

	rebalances prometheus.Counter
	commits    prometheus.Histogram
}

// NewMember makes a member of a group that reads topics. It joins in Run. reg may be nil.
func NewMember(c *Client, group string, topics []string, log *slog.Logger, reg prometheus.Registerer) (*Member, error) {
	joiner := *c.kafka
	joiner.Timeout = rebalanceTimeout + c.cfg.Timeout
	m := &Member{
		client: c, joiner: &joiner, group: group, topics: topics, log: log.With("group", group),
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
)

// errGrown says that a topic has more partitions than were assigned.
var errGrown = errors.New("a topic has more partitions than before")

// Run takes part until ctx ends. For each partition that the group gives it, it runs
// work in a goroutine of its own; work ends when its ctx ends, which is when the
// partition is given away or Run's ctx has ended for longer than grace. When Run's ctx
// ends, the assignment's Stopping closes first, so that work can close what it has
// open. An error of work is logged and the work begun again after a while. Run may be
// called once. It returns nil: what stands in the way of taking part is logged, and may
// be over some time.
//
// The next generation is not joined before all work of the last one has returned, so
// that in this process a partition has one owner at a time.
func (m *Member) Run(ctx context.Context, grace time.Duration, work func(ctx context.Context, a *Assignment) error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 100*time.Millisecond, 2*time.Second
	for ctx.Err() == nil {
		began := time.Now()
		g, err := m.join(ctx)
		if err == nil {
			err = m.live(ctx, g, grace, work)
		}
		rebalance := errors.Is(err, kgo.RebalanceInProgress) || errors.Is(err, errGrown)
		if rebalance || time.Since(began) > sessionTimeout {
			wait.Reset()
		}
		switch {
		case ctx.Err() != nil:
		case rebalance: // the coordinator waits for us, and makes us wait for the others
			m.log.Info("the consumer group divides its partitions anew")
		default:
			m.log.Warn("out of the consumer group; joining again", "error", err)
			m.client.Refresh()
			select {
			case <-ctx.Done():
			case <-time.After(wait.NextBackOff()):
			}
		}
	}
	m.leave(ctx)
	return nil
}

// generation is what one round of dividing partitions gave to a member.
type generation struct {
	id       int
	assigned map[string][]int
	counts   map[string]int // partitions of each topic as they were divided, if by us
}

// join waits until the group has divided the partitions. The member whom the
// coordinator makes the leader does it for all.
func (m *Member) join(ctx context.Context) (*generation, error) {
	req := kgo.JoinGroupRequest{
		GroupID: m.group, MemberID: m.id, SessionTimeout: sessionTimeout, RebalanceTimeout: rebalanceTimeout, ProtocolType: "consumer",
		Protocols: []kgo.GroupProtocol{{Name: kgo.RangeGroupBalancer{}.ProtocolName(), Metadata: kgo.GroupProtocolSubscription{Topics: m.topics}}},
	}
	joined, err := m.joiner.JoinGroup(ctx, &req)
	if err == nil && errors.Is(joined.Error, kgo.MemberIDRequired) { // the first time one is only given an id
		m.id, req.MemberID = joined.MemberID, joined.MemberID
		joined, err = m.joiner.JoinGroup(ctx, &req)
	}
	if err == nil {
		err = joined.Error
	}
	if errors.Is(err, kgo.UnknownMemberId) {
		m.id = ""
	}
	if err != nil {
		return nil, fmt.Errorf("joining: %w", err)
	}
	m.id = joined.MemberID
	g := &generation{id: joined.GenerationID}
	sync := kgo.SyncGroupRequest{GroupID: m.group, GenerationID: g.id, MemberID: m.id, ProtocolType: req.ProtocolType, ProtocolName: joined.ProtocolName}
	if joined.LeaderID == m.id {
		if g.counts, err = m.count(ctx); err != nil {
			return nil, err
		}
		sync.Assignments = divide(joined.Members, g.counts)
	}
	synced, err := m.joiner.SyncGroup(ctx, &sync)
	if err == nil {
		err = synced.Error
	}
	if err != nil {
		return nil, fmt.Errorf("joining: %w", err)
	}
	g.assigned = synced.Assignment.AssignedPartitions
	share := map[string]int{}
	for topic, partitions := range g.assigned {
		share[topic] = len(partitions)
	}
	m.rebalances.Inc()
	m.log.Info("joined the consumer group", "generation", g.id, "assigned", share)
	return g, nil
}

// count asks how many partitions each topic has. One that does not exist has none; when
// it does, the leader's heart notices.
func (m *Member) count(ctx context.Context) (map[string]int, error) {
	counts := map[string]int{}
	for _, topic := range m.topics {
		n, err := m.client.partitions(ctx, topic)
		if err != nil && !isMissing(err) {
			return nil, err
		}
		counts[topic] = n
	}
	return counts, nil
}

// divide gives each member its share of the partitions, which may be nothing.
func divide(members []kgo.JoinGroupResponseMember, counts map[string]int) (out []kgo.SyncGroupRequestAssignment) {
	var group []kgo.GroupMember
	for _, m := range members {
		group = append(group, kgo.GroupMember{ID: m.ID, Topics: m.Metadata.Topics})
	}
	var partitions []kgo.Partition
	for topic, n := range counts {
		for i := range n {
			partitions = append(partitions, kgo.Partition{Topic: topic, ID: i})
		}
	}
	shares := kgo.RangeGroupBalancer{}.AssignGroups(group, partitions)
	for _, m := range members {
		out = append(out, kgo.SyncGroupRequestAssignment{MemberID: m.ID, Assignment: kgo.GroupProtocolAssignment{AssignedPartitions: shares[m.ID]}})
	}
	return out
}

// live works on what a generation assigns until it is over, which the error says; or,
// once ctx has ended, until everything is closed or grace is over.
func (m *Member) live(ctx context.Context, g *generation, grace time.Duration, work func(context.Context, *Assignment) error) error {
	inner, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	stopping, stop := context.WithCancel(ctx)
	defer stop()
	all, inner := errgroup.WithContext(inner)
	all.Go(func() error { return m.beat(inner, g, stop) })
	var open sync.WaitGroup
	for topic, partitions := range g.assigned {
		for _, p := range partitions {
			a := &Assignment{member: m, Topic: topic, Partition: p, generation: g.id, id: m.id, Stopping: stopping.Done()}
			open.Add(1)
			all.Go(func() error {
				defer open.Done()
				return m.keepWorking(inner, a, work)
			})
		}
	}
	closed := make(chan struct{})
	go func() { open.Wait(); close(closed) }()
	select {
	case <-inner.Done():
	case <-stopping.Done():
		select {
		case <-inner.Done():
		case <-closed:
		case <-time.After(grace):
			m.log.Warn("what is open stays open; the next owner repeats it")
		}
	}
	end()
	err := all.Wait()
	if ctx.Err() == nil && stopping.Err() != nil {
		return errGrown
	}
	return err
}

// beat tells the coordinator that we live, until ctx ends or the generation is over.
// A coordinator that restarts or has moved does not end it: the one that follows knows
// the members. After a session's time without an answer others may own the partitions.
func (m *Member) beat(ctx context.Context, g *generation, grown func()) error {
	tick := time.NewTicker(heartbeatInterval)
	defer tick.Stop()
	answered := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := m.heartbeat(ctx, g)
		switch {
		case err == nil:
			answered = time.Now()
		case ctx.Err() != nil:
			return nil
		case !Retryable(err) || time.Since(answered) > sessionTimeout:
			return err
		default:
			m.log.Warn("the consumer group's coordinator does not answer; trying again", "error", err)
			m.client.Refresh()
		}
		if g.counts == nil { // another member looks after this
			continue
		}
		counts, err := m.count(ctx)
		for topic, n := range g.counts {
			if err == nil && counts[topic] > n {
				m.log.Info("a topic has more partitions than were shared out", "topic", topic, "partitions", counts[topic], "before", n)
				g.counts = nil
				grown() // what is open can be closed first
				break
			}
		}
	}
}

// heartbeat works around two faults of kafka-go 0.4.51: it does not send heartbeats to
// the coordinator by itself, and it reads the answer's throttle time (4 bytes) and error
// (2 bytes) in the wrong order, so that the error is in the lower half of the time.
func (m *Member) heartbeat(ctx context.Context, g *generation) error {
	ctx, cancel := context.WithTimeout(ctx, heartbeatInterval)
	defer cancel()
	at, err := m.client.kafka.FindCoordinator(ctx, &kgo.FindCoordinatorRequest{Key: m.group, KeyType: kgo.CoordinatorKeyTypeConsumer})
	if err == nil {
		err = at.Error
	}
	if err != nil {
		return err
	}
	res, err := m.client.kafka.Heartbeat(ctx, &kgo.HeartbeatRequest{
		Addr:    kgo.TCP(net.JoinHostPort(at.Coordinator.Host, strconv.Itoa(at.Coordinator.Port))),
		GroupID: m.group, GenerationID: int32(g.id), MemberID: m.id,
	})
	if err != nil {
		return err
	}
	if code := kgo.Error(int16(res.Throttle.Milliseconds())); code != 0 {
		return code
	}
	return res.Error
}

// leave lets the others have our partitions at once, rather than when they miss us.
func (m *Member) leave(ctx context.Context) {
	if m.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), heartbeatInterval)
	defer cancel()
	if _, err := m.client.kafka.LeaveGroup(ctx, &kgo.LeaveGroupRequest{GroupID: m.group, Members: []kgo.LeaveGroupRequestMember{{ID: m.id}}}); err != nil {
		m.log.Info("leaving the consumer group; it will miss us in a while", "error", err)
	}
}

// keepWorking runs work until ctx ends, the partition is lost, or, when the member
// stops, everything is closed. Any other failure is waited out here, since returning
// it would end the whole generation.
func (m *Member) keepWorking(ctx context.Context, a *Assignment, work func(context.Context, *Assignment) error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 250*time.Millisecond, 15*time.Second
	for {
		began := time.Now()
		err := work(ctx, a)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrDeposed):
			return err
		case a.stopping() && err == nil:
			return nil
		case err != nil:
			m.log.Error("working on a partition; beginning again", "topic", a.Topic, "partition", a.Partition, "error", err)
		}
		if time.Since(began) > time.Minute { // what went well for so long is a new matter
			wait.Reset()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
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
	var at kgo.OffsetFetchPartition
	err = a.member.client.again(ctx, func() error {
		at, err = a.committed(ctx)
		return err
	})
	if err != nil {
		return p, false, fmt.Errorf("asking for the position of %s/%d: %w", a.Topic, a.Partition, err)
	}
	p, err = parsePosition(at.CommittedOffset, at.Metadata)
	if errors.Is(err, errForeignMetadata) {
		return p, false, nil
	}
	return p, err == nil, err
}

func (a *Assignment) committed(ctx context.Context) (kgo.OffsetFetchPartition, error) {
	res, err := a.member.client.kafka.OffsetFetch(ctx, &kgo.OffsetFetchRequest{GroupID: a.member.group, Topics: map[string][]int{a.Topic: {a.Partition}}})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		return kgo.OffsetFetchPartition{}, err
	}
	for _, each := range res.Topics[a.Topic] {
		if each.Partition == a.Partition {
			return each, each.Error
		}
	}
	return kgo.OffsetFetchPartition{}, errors.New("the answer does not speak of the partition")
}

// Commit makes p the group's position. When it returns nil the position survives any
// crash; with ErrDeposed it is not ours to write. Other failures are tried again until
// ctx ends, at the coordinator's successor if it moved.
//
// While the group divides its partitions anew a commit of the last generation is still
// taken; RebalanceInProgress, or that the generation is an old one, is said when the
// partition may have its next owner. Giving up is safe at any time: what is
// open is repeated by whoever comes next, be it this member.
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
			a.member.client.Refresh()
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
	res, err := a.member.client.kafka.OffsetCommit(ctx, &kgo.OffsetCommitRequest{
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
