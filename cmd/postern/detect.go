package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	kgo "github.com/segmentio/kafka-go"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/sink"
	"github.com/postern/postern/sink/siem"
)

func detectCommand() *cobra.Command {
	return roleCommand(&cobra.Command{
		Use:   "detect -c postern.yaml",
		Short: "Read flows from Kafka, judge them, store them, find what was misused",
		Long: `Takes a share of the flows topic, as one of any number of detectors of the same group: judges
the flows, writes them to ClickHouse, and puts findings on the findings topic. Topics of others,
such as goflow2's, are read as well and divided anew, so that both directions of a conversation
come to the same detector. The policy folder is watched; all detectors bring a version into force
in the order of the policy topic.`,
	}, func(cfg config, log *slog.Logger) (role, error) { return newDetection(cfg, log) })
}

// detection is `postern detect`: a pipeline for each partition that the group gives it.
type detection struct {
	cfg      config
	log      *slog.Logger
	registry *prometheus.Registry
	names    *flow.Names
	identity *enrich.Identity
	facts    *factTopic
	history  *policy.History
	keeper   *policyKeeper
	policy   *policyLog
	client   *kafka.Client
	member   *kafka.Member
	store    *findingsTopic
	rows     store // where rows and findings go: store, but in tests
	blocks   chan *block
	met      *detectionMetrics

	set      stageSettings // of the configuration
	settings string        // as checkpoints keep them

	cluster    string // the cluster's own name for itself
	partitions int    // of the flows topic, and of the state topic

	mu     sync.Mutex
	owned  map[*partition]struct{}
	begun  bool             // partitions can be worked on
	judged tally            // by what is no longer owned
	failed map[string]error // why a partition that is ours is not worked on
}

type detectionMetrics struct {
	log                                         *logMetrics
	values, duplicates, refused, repeated, lost prometheus.Counter
	fill                                        prometheus.Histogram
}

func newDetectionMetrics(reg prometheus.Registerer) *detectionMetrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "postern_kafka_" + name, Help: help})
	}
	m := &detectionMetrics{
		log:        newLogMetrics(reg),
		values:     counter("values_total", "Values taken in."),
		duplicates: counter("duplicate_values_total", "Values of our own topic that were there before: a producer's retry, or a unit that a collector sent again after a crash."),
		refused:    counter("refused_messages_total", "Messages inside values of others that are no flows."),
		repeated:   counter("repeated_ranges_total", "Ranges that were found open when a partition was taken over, and done again under the same token."),
		lost:       counter("lost_checkpoints_total", "Checkpoints that were not where the position says; what waited and what findings had counted is forgotten. Alert on any."),
		fill: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "postern_kafka_batch_size",
			Help: "Flows a value of our own topic, of at most 1,024.", Buckets: []float64{1, 4, 16, 64, 256, 512, 1024}}),
	}
	reg.MustRegister(m.values, m.duplicates, m.refused, m.repeated, m.lost, m.fill)
	return m
}

// newDetection puts the parts together. It opens nothing and starts nothing.
func newDetection(cfg config, log *slog.Logger) (*detection, error) {
	if !cfg.Kafka.Enabled() {
		return nil, errNoKafka
	}
	d := &detection{cfg: cfg, log: log, registry: newRegistry(), names: flow.NewNames(0), owned: map[*partition]struct{}{}, failed: map[string]error{}}
	var err error
	if d.set, d.settings, err = cfg.stageSettings(); err != nil {
		return nil, err
	}
	d.registry.MustRegister(newNamesCollector(d.names))
	if d.identity, err = enrich.NewIdentity(cfg.Identity.IdentityConfig, d.names, d.registry); err != nil {
		return nil, err
	}
	d.history = policy.NewHistory(d.names, cfg.judging(d.identity.Domains()))
	d.keeper = newPolicyKeeper(cfg.Policy, filepath.Join(cfg.Data, "state"), d.names, d.history, log, d.registry)
	d.met = newDetectionMetrics(d.registry)
	if d.client, err = kafka.Open(cfg.Kafka, resolveSecret, kafka.Options{Logger: log, Metrics: d.registry}); err != nil {
		return nil, err
	}
	d.policy = newPolicyLog(d.client, d.keeper, log)
	d.keeper.onGroups = d.identity.NameGroups
	d.facts = newFactTopic(d.client, d.identity.Take, log)
	topics := []string{cfg.Kafka.Topic(kafka.TopicFlows), cfg.Kafka.Topic(kafka.TopicEdges)}
	for _, t := range cfg.Ingest.Kafka.Topics {
		topics = append(topics, t.Topic)
	}
	if d.member, err = kafka.NewMember(d.client, cfg.Kafka.Group, topics, log, d.registry); err != nil {
		return nil, err
	}
	rows := cfg
	rows.Targets = nil // told by whoever forwards
	db, err := newDurableStore(rows, d.names, log, d.registry)
	if err != nil {
		return nil, err
	}
	db.checks = func() bool { // who judges the first partition of flows
		return slices.ContainsFunc(d.mine(), func(w *partition) bool { return w.judges() && w.a.Partition == 0 })
	}
	d.store = &findingsTopic{durableStore: db, client: d.client, topic: cfg.Kafka.Topic(kafka.TopicFindings)}
	d.rows, d.blocks = d.store, newBlocks(detectBlocks, d.store)
	d.registry.MustRegister(newLedgerCollector(d.ledger), newPolicyCollector(d.verdicts, d.history))
	return d, nil
}

// detectBlocks is how many encoded blocks all partitions of a process share: some are
// inserted while others are filled. At 20 MB each they bound the rows in memory.
const detectBlocks = 6

// run detects until ctx ends; then what is open is closed, if that does not take longer
// than the configuration gives it.
func (d *detection) run(ctx context.Context) (err error) {
	if err := os.MkdirAll(d.cfg.Data, 0o700); err != nil {
		return err
	}
	if err := d.store.open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.store.close(), d.client.Close()) }()
	answering, err := openAdmin(&d.cfg, d, d.log)
	if err != nil {
		return err
	}
	if d.cfg.ClickHouse.URL == sink.URLEmbedded {
		d.log.Warn("clickhouse.url is embedded: what this detector stores is in a database of its own; name a server where there is more than one detector")
	}
	return around(ctx, func(ctx context.Context) error {
		defer d.log.Info("stopped detecting")
		if err := d.begin(ctx); err != nil {
			return err
		}
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		defer signal.Stop(hup)
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return d.policy.run(ctx) })
		if d.cfg.Identity.enabled() {
			g.Go(func() error { return d.facts.run(ctx) })
		}
		g.Go(func() error { return every(ctx, time.Minute, func() { d.identity.Tick(wallClock()) }) })
		g.Go(func() error { return d.keeper.watch(ctx, hup, wallClock) })
		g.Go(func() error { return every(ctx, reportEvery, func() { d.reportAll(ctx) }) })
		g.Go(func() error { return d.member.Run(ctx, d.cfg.Shutdown, d.work) })
		return g.Wait()
	}, d.store.run, answering.run)
}

// begin asks the cluster for what has to be known before anything can be worked on. It
// tries until the cluster answers.
func (d *detection) begin(ctx context.Context) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := d.ask(ctx)
		if err != nil && ctx.Err() == nil {
			d.log.Warn("Kafka is not ready for detecting; trying again", "error", err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0))
	if err != nil {
		return err
	}
	d.keeper.settle(ctx)
	if p, _ := loadPolicy(d.cfg.Policy.Dir); p != nil {
		d.policy.start(p.Hash())
	}
	d.policy.ctx = ctx
	_ = d.keeper.reload(wallClock()) // told and counted; without a version every flow is unverified
	if _, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, d.policy.catchUp(ctx) },
		backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0)); err != nil {
		return err
	}
	d.mu.Lock()
	d.begun = true
	d.mu.Unlock()
	d.log.Info("detecting", "cluster", d.cluster, "group", d.cfg.Kafka.Group, "partitions", d.partitions, "version", versionText())
	return nil
}

func (d *detection) ask(ctx context.Context) (err error) {
	if d.cluster, err = d.client.ClusterID(ctx); err != nil {
		return err
	}
	if d.partitions, err = d.client.Partitions(ctx, d.cfg.Kafka.Topic(kafka.TopicFlows)); err != nil {
		return err
	}
	if _, err = d.client.Partitions(ctx, d.cfg.Kafka.Topic(kafka.TopicEdges)); err != nil {
		return err
	}
	if d.store.partitions, err = d.client.Partitions(ctx, d.store.topic); err != nil {
		return err
	}
	n, err := d.client.Partitions(ctx, d.cfg.Kafka.Topic(kafka.TopicState))
	if err == nil && n != d.partitions {
		err = fmt.Errorf("topic %s has %d partitions and %s has %d; they must have as many as each other",
			d.cfg.Kafka.Topic(kafka.TopicFlows), d.partitions, d.cfg.Kafka.Topic(kafka.TopicState), n)
	}
	if err != nil {
		return err
	}
	if err := d.rememberedLongEnough(); err != nil {
		return backoff.Permanent(err)
	}
	if err := d.divisionKept(ctx); err != nil {
		return err
	}
	if d.cfg.Identity.enabled() {
		if err := d.facts.sync(ctx); err != nil {
			return err
		}
	}
	return d.policy.catchUp(ctx)
}

// tokenMemory is how long ClickHouse should remember the token of a range at least: a
// partition may be without an owner, a leader or a coordinator for that long, while the
// others go on, and is then begun again.
const tokenMemory = 10 * time.Minute

// rememberedLongEnough checks that all partitions together, at the pace that linger sets,
// do not make ClickHouse forget a token too soon.
func (d *detection) rememberedLongEnough() error {
	linger := d.cfg.Ingest.Kafka.Linger
	if memory := linger * sink.DedupWindow / time.Duration(d.partitions); memory < tokenMemory {
		return fmt.Errorf("ingest.kafka.linger: %v with %d partitions makes so many inserts that ClickHouse forgets their tokens after %v; set it to %v or more",
			linger, d.partitions, memory, (tokenMemory * time.Duration(d.partitions) / sink.DedupWindow).Round(10*time.Millisecond))
	}
	return nil
}

// foreign reads the values of a topic that others write.
type foreign interface {
	// Decode appends the flows of one value to out and says how many of its messages were
	// refused; only if nothing of the value can be read is err set. seed makes the ids,
	// received stands in where a message has no time.
	Decode(value []byte, seed uint64, received flow.Time, out *flow.Batch) (refused int, err error)
	// Reason is why the first message that the last Decode refused was refused.
	Reason() error
}

// foreignOf makes the reader of a topic of others, nil for our own.
func (d *detection) foreignOf(topic string, set stageSettings) (foreign, error) {
	for _, t := range d.cfg.Ingest.Kafka.Topics {
		switch {
		case t.Topic != topic:
		case slices.Contains(kafka.Formats(), t.Format):
			return kafka.NewForeign(t.Format, d.names)
		default:
			return newLogValues(t.Format, set.Logs, d.cfg.Ingest.Logs.MaxLine, d.names)
		}
	}
	return nil, nil
}

func (d *detection) own(w *partition) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.owned[w] = struct{}{}
}

func (d *detection) disown(w *partition) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.owned, w)
	d.judged.merge(w.pipe.verdicts())
}

// trouble takes note of why a partition is not worked on, nil if it is, or is not ours.
func (d *detection) trouble(name string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.failed, name)
	if err != nil {
		d.failed[name] = fmt.Errorf("%s is not worked on: %w", name, err)
	}
}

func (d *detection) mine() []*partition {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.SortedFunc(maps.Keys(d.owned), func(a, b *partition) int { return strings.Compare(a.name, b.name) })
}

// ledger takes stock of the partitions this process has at present.
func (d *detection) ledger() flow.Ledger {
	l := flow.Ledger{}
	for _, w := range d.mine() {
		if w.judges() { // what is handed on is counted where it arrives
			l.Add(w.pipe.ledger(nil))
		}
	}
	return l
}

// verdicts is how this process judged since it started.
func (d *detection) verdicts() tally {
	mine := d.mine()
	d.mu.Lock()
	t := tally{}
	t.merge(d.judged)
	d.mu.Unlock()
	for _, w := range mine {
		t.merge(w.pipe.verdicts())
	}
	return t
}

// Gather implements prometheus.Gatherer: the process's metrics and those of the
// stages of every partition.
func (d *detection) Gather() ([]*dto.MetricFamily, error) {
	all := prometheus.Gatherers{d.registry}
	for _, w := range d.mine() {
		all = append(all, w.reg)
	}
	return all.Gather()
}

// ready says why the process cannot do its work, nil if it can.
func (d *detection) ready() error {
	d.mu.Lock()
	begun := d.begun
	failed := slices.Sorted(maps.Keys(d.failed))
	for i, name := range failed {
		failed[i] = d.failed[name].Error()
	}
	d.mu.Unlock()
	if !begun {
		return errors.New("not detecting yet: waiting for Kafka")
	}
	if len(failed) > 0 {
		return errors.New(strings.Join(failed, "; "))
	}
	if err := d.keeper.ready(); err != nil {
		return err
	}
	return d.store.ready()
}

// reportAll writes what ClickHouse should know beside flows and findings.
func (d *detection) reportAll(ctx context.Context) {
	for _, w := range d.mine() {
		d.tell(ctx, w)
	}
}

func (d *detection) tell(ctx context.Context, w *partition) {
	if !w.judges() {
		return
	}
	versions, source := d.keeper.versions()
	d.store.report(ctx, report{at: wallClock(), spool: w.name, ledger: w.pipe.ledger(nil), versions: versions, source: source})
}

// findingsTopic is a detector's store: rows and contributions in ClickHouse, events on
// the findings topic.
type findingsTopic struct {
	*durableStore
	client     *kafka.Client
	topic      string
	partitions int // of the topic
}

// Headers of an event on the findings topic; its key is the finding's id, so that the
// revisions of a finding keep their order.
const (
	headerEvent    = "event"    // finding id and revision: the same for every attempt to tell it
	headerSeverity = "severity" // informational to critical
)

func (s *findingsTopic) findings(ctx context.Context, ins sink.Insert, contribs []flow.Contribution, events []*flow.Finding) error {
	if err := s.contribute(ctx, ins, contribs); err != nil {
		return err
	}
	for _, f := range events {
		e, err := siem.NewEvent(f)
		if err != nil {
			return err
		}
		_, err = s.client.Produce(ctx, s.topic, int(sourceID(f.ID)%uint64(s.partitions)), kafka.Message{Key: []byte(f.ID), Value: e.Body, Headers: []kgo.Header{
			{Key: headerEvent, Value: []byte(e.ID)}, {Key: headerSeverity, Value: []byte(f.Severity.String())},
		}})
		if err != nil {
			return err
		}
	}
	return nil
}
