package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	kgo "github.com/segmentio/kafka-go"
	"github.com/spf13/cobra"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/sink/siem"
)

func forwardCommand() *cobra.Command {
	cmd := roleCommand(&cobra.Command{
		Use:   "forward -c postern.yaml",
		Short: "Tell the receivers what detectors found",
		Long: `Reads the findings topic and delivers each event to every target that wants it. An event
waits in the outbox of its target, in the data directory, before the topic's offset is committed;
while an outbox is full, the rest waits on the topic. What is no event goes to the dead-letter topic.

The revisions of a finding are delivered in order. A second forwarder takes the partitions of one that is
away, with an outbox of its own: what waits in the outbox of the first is delivered when that is back, and
then possibly behind later revisions.`,
	}, func(cfg config, log *slog.Logger) (role, error) { return newForwarder(cfg, log) })
	cmd.AddCommand(forwardTestCommand())
	return cmd
}

// forwarder is `postern forward`.
type forwarder struct {
	cfg      config
	log      *slog.Logger
	registry *prometheus.Registry
	client   *kafka.Client
	member   *kafka.Member
	told     *receivers
	topic    string
	met      *logMetrics
	events   prometheus.Counter
	begun    atomic.Bool // the topic is there
}

// errNoReceiver is a forwarder that has nobody to tell.
var errNoReceiver = errors.New("targets is empty, so there is nobody to forward findings to; configure at least one")

// newForwarder puts the parts together. It opens nothing and starts nothing.
func newForwarder(cfg config, log *slog.Logger) (*forwarder, error) {
	if !cfg.Kafka.Enabled() {
		return nil, errNoKafka
	}
	if len(cfg.Targets) == 0 {
		return nil, errNoReceiver
	}
	f := &forwarder{cfg: cfg, log: log, registry: newRegistry(), topic: cfg.Kafka.Topic(kafka.TopicFindings),
		events: prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_forward_events_total",
			Help: "Events taken from the findings topic, after each was put in the outbox of every receiver that wants it."})}
	f.registry.MustRegister(f.events)
	f.met = newLogMetrics(f.registry)
	var err error
	if f.client, err = kafka.Open(cfg.Kafka, resolveSecret, kafka.Options{Logger: log, Metrics: f.registry}); err != nil {
		return nil, err
	}
	if f.member, err = kafka.NewMember(f.client, cfg.Kafka.Group+".forward", []string{f.topic}, log, f.registry); err != nil {
		return nil, err
	}
	f.told, err = newReceivers(cfg, log, f.registry)
	return f, err
}

// run forwards until ctx ends. What is in the outboxes by then stays there.
func (f *forwarder) run(ctx context.Context) (err error) {
	if err := f.told.open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.told.close(), f.client.Close()) }()
	answering, err := openAdmin(&f.cfg, f, f.log)
	if err != nil {
		return err
	}
	return around(ctx, func(ctx context.Context) error {
		defer f.log.Info("stopped forwarding")
		if err := f.begin(ctx); err != nil {
			return err
		}
		return f.member.Run(ctx, f.cfg.Shutdown, f.work)
	}, f.told.run, answering.run)
}

// begin waits until the topic is there.
func (f *forwarder) begin(ctx context.Context) error {
	n, err := backoff.Retry(ctx, func() (int, error) {
		n, err := f.client.Partitions(ctx, f.topic)
		if err != nil && ctx.Err() == nil {
			f.log.Warn("Kafka is not ready for forwarding; trying again", "error", err)
		}
		return n, err
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0))
	if err != nil {
		return err
	}
	f.begun.Store(true)
	f.log.Info("forwarding", "topic", f.topic, "partitions", n, "targets", len(f.cfg.Targets), "version", versionText())
	return nil
}

// ready says why the process cannot do its work, nil if it can.
func (f *forwarder) ready() error {
	if !f.begun.Load() {
		return errors.New("not forwarding yet: waiting for Kafka")
	}
	if err := f.told.full(); err != nil {
		return fmt.Errorf("findings wait on topic %s because they cannot be told: %w", f.topic, err)
	}
	return nil
}

// Gather implements prometheus.Gatherer.
func (f *forwarder) Gather() ([]*dto.MetricFamily, error) { return f.registry.Gather() }

// ledger is empty: no flow comes here.
func (f *forwarder) ledger() flow.Ledger { return flow.Ledger{} }

const (
	// forwardFetch is how much of a partition is asked for at once, compressed.
	forwardFetch = 256 << 10
	// forwardAtOnce is how many events are put in the outboxes before the position is
	// committed. Whoever waits for room offers all of them again, and an outbox knows
	// what it took and delivered meanwhile: 12 partitions have fewer on offer than the
	// 1,000 ids that the smallest outbox.remember keeps.
	forwardAtOnce = 64
	// forwardWait is how long a broker may wait for something to give.
	forwardWait = time.Second
)

// work forwards the events of a partition until ctx ends, the partition is lost or the
// process stops.
func (f *forwarder) work(ctx context.Context, a *kafka.Assignment) error {
	in := &partitionLog{a: a, client: f.client, log: f.log.With("topic", a.Topic, "partition", a.Partition), met: f.met, recognised: true}
	next, err := f.first(ctx, a)
	if err != nil {
		return err
	}
	defer in.follow(ctx, next)()
	// A stop interrupts what waits, for events or for room in an outbox: nothing is
	// lost by it, since the position stays behind what was not put in every outbox.
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		select {
		case <-a.Stopping:
			stop()
		case <-waiting.Done():
		}
	}()
	for {
		next, err = f.forward(ctx, waiting, in, next)
		switch {
		case ctx.Err() == nil && waiting.Err() != nil:
			return nil // stopping
		case err != nil:
			return err
		}
	}
}

// first is where to begin: where the group stands, or at the first offset.
func (f *forwarder) first(ctx context.Context, a *kafka.Assignment) (int64, error) {
	p, _, err := a.Position(ctx)
	if err != nil || p.Offset >= 0 {
		return p.Offset, err
	}
	first, _, err := f.client.Offsets(ctx, a.Topic, a.Partition)
	return first, err
}

// forward fetches what comes from an offset on, forwards it and gives where to go on.
func (f *forwarder) forward(ctx, waiting context.Context, in *partitionLog, next int64) (int64, error) {
	got, err := f.client.Fetch(waiting, in.a.Topic, in.a.Partition, next, forwardFetch, forwardWait)
	if errors.Is(err, kgo.OffsetOutOfRange) {
		to, _, err := in.skip(waiting, next, next)
		return to, err
	}
	if err != nil {
		return next, err
	}
	in.lag(next, got.High)
	for records := range slices.Chunk(got.Records, forwardAtOnce) {
		if err := f.take(waiting, in, records); err != nil {
			return next, err
		}
		next = records[len(records)-1].Offset + 1
		if err := in.a.Commit(ctx, kafka.Position{Offset: next}); err != nil {
			return next, err
		}
		in.lag(next, got.High)
	}
	return got.Next, nil
}

// take puts the events in the outboxes, and what is none on the dead-letter topic.
func (f *forwarder) take(ctx context.Context, in *partitionLog, records []kafka.Record) error {
	notices := make([]notice, 0, len(records))
	for i := range records {
		n, err := noticeOf(&records[i])
		if err == nil {
			notices = append(notices, n)
			continue
		}
		if err := in.dead(ctx, &records[i], err); err != nil {
			return err
		}
	}
	if err := f.told.put(ctx, notices); err != nil {
		return err
	}
	f.events.Add(float64(len(notices)))
	return nil
}

// noticeOf reads an event off the findings topic.
func noticeOf(r *kafka.Record) (notice, error) {
	header := func(key string) ([]byte, error) {
		for _, h := range r.Headers {
			if h.Key == key {
				return h.Value, nil
			}
		}
		return nil, fmt.Errorf("the header %q is missing; an event of a finding has it", key)
	}
	id, err := header(headerEvent)
	if err != nil {
		return notice{}, err
	}
	severity, err := header(headerSeverity)
	if err != nil {
		return notice{}, err
	}
	n := notice{event: siem.Event{ID: string(id), Key: string(r.Key), Body: r.Value}}
	var told flow.Severity
	if err := told.UnmarshalText(severity); err != nil {
		return notice{}, fmt.Errorf("the header %q: %w", headerSeverity, err)
	}
	if err := n.event.Validate(); err != nil {
		return notice{}, err
	}
	var f flow.Finding
	if err := json.Unmarshal(r.Value, &f); err != nil {
		return notice{}, fmt.Errorf("the value is no finding: %w", err)
	}
	if f.EventID() != n.event.ID || f.ID != n.event.Key {
		return notice{}, fmt.Errorf("the value is revision %d of finding %.80q, but the header %q says %.80q and the key %.80q; all three must speak of the same event",
			f.Revision, f.ID, headerEvent, n.event.ID, n.event.Key)
	}
	n.finding, n.event.Time, n.event.Urgent = &f, f.LastSeen, f.Severity == flow.Critical
	return n, nil
}
