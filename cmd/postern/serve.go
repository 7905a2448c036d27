package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/intake"
	"github.com/postern/postern/ingest/kafka"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/sink"
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve -c postern.yaml",
		Short: "Receive flows, judge them, store them, tell what was misused",
		Long: `Runs the whole pipeline in one process: UDP listeners, spool, decoding, judging, ClickHouse
(a server, or the embedded engine), targets. The policy folder is watched; SIGHUP reads it
at once. SIGTERM stops the listeners, works through what was received, and flushes.

With kafka.brokers set, flows and findings go through Kafka on their way: the process is then
collector, detector and forwarder in one, and others of any of these roles can work beside it.`,
	}
	return roleCommand(cmd, func(cfg config, log *slog.Logger) (role, error) {
		if cfg.Kafka.Enabled() {
			return newAllRoles(cfg, log)
		}
		return newService(cfg, log)
	})
}

// backend is a store that the service keeps going.
type backend interface {
	store
	open() error
	// run keeps connections and deliveries going until ctx ends.
	run(ctx context.Context) error
	close() error
	ready() error
	// report tells what should be known beside flows and findings.
	report(ctx context.Context, r report)
}

// service is `postern serve`: the pipeline between a spool and a store, and what
// keeps it fed, watched and answerable. As `postern collect` it ends behind decoding:
// then keeper is nil, and the store is a topic.
type service struct {
	cfg      config
	log      *slog.Logger
	registry *prometheus.Registry
	names    *flow.Names
	history  *policy.History
	pipe     *pipeline
	identity *enrich.Identity
	facts    *factLog // nil: flows are judged elsewhere
	// past is set while somebody tells of days gone by, as the demo does: then the clock is not noted, or
	// what they tell would be late.
	past   atomic.Bool
	keeper *policyKeeper
	store  backend
	saved  checkpoints

	spool     *ingest.Spool
	listeners []*ingest.Listener
	intake    *intake.Intake // logs
	sources   *identitySources
	answering *admin

	stopping  chan struct{} // closed when no more is received
	cursor    uint64        // segment the pipeline is in; guarded by pipe.gate
	listening atomic.Bool

	settings string         // of the stages at work, as the checkpoint keeps them
	next     *stageSettings // what comes into use once the waiting segments are done; nil: in use already

	checkpointed time.Time          // when the newest checkpoint was taken; paces them, nothing else
	notify       func(state string) // the demo waits for states; may be nil
}

// wallClock is the one place where the service's clock comes from.
func wallClock() flow.Time { return flow.TimeOf(time.Now()) }

// newService puts the parts together. It opens nothing and starts nothing.
func newService(cfg config, log *slog.Logger) (*service, error) {
	s := &service{
		cfg: cfg, log: log,
		registry: newRegistry(),
		names:    flow.NewNames(0),
		saved:    checkpoints{filepath.Join(cfg.Data, "state")},
		stopping: make(chan struct{}),
	}
	var err error
	s.registry.MustRegister(newNamesCollector(s.names))
	if s.identity, err = enrich.NewIdentity(cfg.Identity.IdentityConfig, s.names, s.registry); err != nil {
		return nil, err
	}
	s.history = policy.NewHistory(s.names, cfg.judging(s.identity.Domains()))
	s.keeper = newPolicyKeeper(cfg.Policy, s.saved.dir, s.names, s.history, log, s.registry)
	s.keeper.onGroups = s.identity.NameGroups
	s.store, err = newDurableStore(cfg, s.names, log, s.registry)
	return s, err
}

func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// run serves until ctx ends, then works through what was received.
func (s *service) run(ctx context.Context) (err error) {
	if err := os.MkdirAll(s.cfg.Data, 0o700); err != nil {
		return err
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, s.store.close(), s.spool.Close())
		if s.facts != nil {
			err = errors.Join(err, s.facts.close())
		}
	}()

	// Phases of a stop: sources end with asked; what they handed on is worked
	// through under grace; what serves others (store, outbox, admin) ends last.
	asked := ctx
	ctx, endSources := context.WithCancel(asked)
	defer endSources()
	base := context.WithoutCancel(ctx)
	last, endLast := context.WithCancel(base)
	defer endLast()
	grace, endGrace := context.WithCancel(base)
	defer endGrace()

	sources, sctx := errgroup.WithContext(ctx)
	for _, l := range s.listeners {
		sources.Go(func() error { return l.Run(sctx) })
	}
	sources.Go(func() error { return s.intake.Run(sctx) })
	if topic, ok := s.store.(*flowTopic); ok && s.keeper == nil && s.cfg.Identity.enabled() {
		facts := newFactTopic(topic.client, nil, s.log)
		sources.Go(func() error { return s.sources.run(sctx, facts.tell, facts.told) })
	}
	if s.facts != nil {
		sources.Go(func() error { return s.sources.run(sctx, s.facts.tell, s.facts.told) })
		sources.Go(func() error {
			return every(sctx, compactEvery, func() {
				if err := s.facts.compact(wallClock()); err != nil {
					s.log.Error("the log of facts cannot be written anew; it goes on growing", "err", err)
				}
			})
		})
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	if s.keeper != nil {
		sources.Go(func() error { return s.keeper.watch(sctx, hup, wallClock) })
	}
	sources.Go(func() error { return s.tick(sctx) })

	work, wctx := errgroup.WithContext(grace)
	work.Go(func() error { return s.spool.Run(wctx) })
	work.Go(func() error { defer close(s.pipe.out); return s.consume(wctx) })
	stored := make(chan struct{})
	work.Go(func() error { defer close(stored); return s.pipe.runStore(wctx, s.saved) })

	outer, octx := errgroup.WithContext(last)
	outer.Go(func() error { return s.store.run(octx) })
	outer.Go(func() error { return s.report(octx) })
	outer.Go(func() error { return s.answering.run(octx) })
	s.listening.Store(true)
	if s.keeper != nil {
		s.log.Info("serving", "data", s.cfg.Data, "policy", s.cfg.Policy.Dir, "version", versionText())
	} else {
		s.log.Info("collecting", "data", s.cfg.Data, "topic", s.cfg.Kafka.Topic(kafka.TopicFlows), "version", versionText())
	}

	// Whatever ends first, ends all.
	failed := make(chan error, 3)
	go func() { failed <- sources.Wait() }()
	go func() { failed <- work.Wait() }()
	go func() { failed <- outer.Wait() }()
	ended := 1
	err = <-failed
	s.listening.Store(false)
	close(s.stopping)
	s.log.Info("stopping", "grace", s.cfg.Shutdown)
	if asked.Err() != nil { // and not because something failed: the sources have ended
		if e := s.spool.Stop(); e != nil {
			err = errors.Join(err, e)
		}
		select {
		case <-stored:
		case <-time.After(s.cfg.Shutdown):
			s.log.Warn("what is left stays in the spool for the next start", "bytes", s.spool.Bytes())
		}
		s.finalReport(base)
	}
	endSources()
	endGrace()
	endLast()
	err = unlessEnded(err)
	for ; ended < 3; ended++ {
		err = errors.Join(err, unlessEnded(<-failed))
	}
	return err
}

// unlessEnded is err, but for the error of a context that was ended on purpose,
// which says nothing.
func unlessEnded(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// open takes the data directory, loads the newest checkpoint and binds addresses.
func (s *service) open(ctx context.Context) error {
	var err error
	if err = s.openSpool(ctx); err != nil {
		return err
	}
	if s.keeper != nil {
		s.keeper.append = func(a activation) error {
			text, err := json.Marshal(a)
			if err != nil {
				return err
			}
			if err := s.spool.Policy(text, wallClock()); err != nil {
				return fmt.Errorf("%w: %w", errNotAppended, err)
			}
			return nil
		}
	}
	if err := s.store.open(); err != nil {
		return errors.Join(err, s.spool.Close())
	}
	if s.keeper != nil {
		if s.facts, err = openFacts(s.cfg.Data, s.identity, s.cfg.Identity.Retention, s.log); err != nil {
			return errors.Join(err, s.store.close(), s.spool.Close())
		}
	}
	if err := s.openPipeline(); err != nil {
		return errors.Join(err, s.store.close(), s.spool.Close())
	}
	if s.keeper != nil {
		s.bringPolicy(ctx)
	}
	if err := s.listen(ctx); err != nil {
		return errors.Join(err, s.spool.Close(), s.store.close())
	}
	return nil
}

// openSpool takes the spool. A process that was killed a moment ago may still hold
// it while the kernel tidies up, so a taken one is tried for a while.
func (s *service) openSpool(ctx context.Context) (err error) {
	for range 20 {
		s.spool, err = ingest.OpenSpool(filepath.Join(s.cfg.Data, "spool"), s.cfg.Ingest.Spool,
			ingest.SpoolOptions{Clock: wallClock, Logger: s.log, Registerer: s.registry})
		if !errors.Is(err, ingest.ErrSpoolLocked) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return err
}

func (s *service) openPipeline() error {
	id := s.spool.ID()
	cp, err := s.saved.load()
	if err != nil {
		return err
	}
	if cp != nil {
		if cp.Spool != id.String() {
			return fmt.Errorf("the checkpoint in %s belongs to spool %s, but the spool in the data directory is %s; "+
				"put back the spool that belongs to it, or move the state directory away to start afresh", s.saved.dir, cp.Spool, id)
		}
		s.cursor = cp.Segment
		s.spool.Seek(cp.Segment)
		if err := s.spool.Remove(cp.Segment); err != nil {
			return err
		}
	}
	set, reg, err := s.settle(cp)
	if err != nil {
		return err
	}
	decoder, stages, err := s.stages(set, reg)
	if err != nil {
		return err
	}
	s.pipe = newPipeline(pipelineConfig{
		names:     s.names,
		decoder:   decoder,
		judging:   stages,
		store:     s.store,
		log:       s.log,
		chunkRows: s.cfg.Ingest.Spool.ChunkRows,
	})
	s.registry.MustRegister(newLedgerCollector(s.ledger))
	if s.keeper != nil {
		s.registry.MustRegister(newPolicyCollector(s.pipe.verdicts, s.history))
	}
	if cp == nil {
		return nil
	}
	if s.keeper != nil {
		// Versions first: what waits in the other sections is judged by them.
		if err := s.keeper.Restore(cp.state["policy"]); err != nil {
			return err
		}
	} else if _, judged := cp.state["pairer"]; judged {
		return fmt.Errorf("%s is the data directory of a service that judges; what it holds would be lost to a collector: give the collector one of its own", s.cfg.Data)
	}
	if err := s.pipe.restore(cp); err != nil {
		return err
	}
	s.log.Info("going on after the checkpoint", "segment", cp.Segment, "waiting", s.spool.Bytes())
	return nil
}

// bringPolicy puts the folder's version into the spool before any datagram.
func (s *service) bringPolicy(ctx context.Context) {
	s.keeper.settle(ctx)
	_ = s.keeper.reload(wallClock()) // told and counted; without a version every flow is unverified
}

func (s *service) listen(ctx context.Context) error {
	for _, l := range []struct {
		name string
		cfg  ingest.ListenerConfig
	}{{"netflow", s.cfg.Ingest.NetFlow}, {"sflow", s.cfg.Ingest.SFlow}} {
		if l.cfg.Listen == "" {
			continue
		}
		listener, err := ingest.NewListener(l.cfg, ingest.ListenerOptions{Sink: s.spool, Clock: wallClock,
			Logger: s.log.With("listener", l.name), Registerer: prometheus.WrapRegistererWith(prometheus.Labels{"listener": l.name}, s.registry)})
		if err != nil {
			return fmt.Errorf("ingest.%s: %w", l.name, err)
		}
		if err := listener.Bind(ctx); err != nil {
			return fmt.Errorf("ingest.%s: %w", l.name, err)
		}
		s.listeners = append(s.listeners, listener)
	}
	domains := flow.NewDomains(s.cfg.Identity.DefaultDomain, s.cfg.Identity.Domains)
	var err error
	if s.sources, err = newSources(s.cfg, domains, s.log.With("stage", "identity"), s.registry); err != nil {
		return err
	}
	if err := s.openIntake(ctx); err != nil {
		return err
	}
	s.answering, err = openAdmin(&s.cfg, s, s.log)
	return err
}

// tick notes the clock in the spool every second, so that what the pipeline does
// when time passes without traffic is repeated by a re-read.
func (s *service) tick(ctx context.Context) error {
	return every(ctx, time.Second, func() {
		now := wallClock()
		if s.past.Load() {
			// Event time is what the flows say.
		} else if err := s.spool.Tick(now); err != nil {
			s.log.Warn("the clock could not be noted in the spool", "error", err)
		}
		if s.identity != nil {
			s.identity.Tick(now)
		}
	})
}

// consume works through the spool, segment by segment.
func (s *service) consume(ctx context.Context) error {
	for {
		seg, err := s.spool.Next(ctx)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			s.log.Error("the spool cannot be read; trying again", "error", err)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
			}
			continue
		}
		if !s.known(ctx, seg) {
			s.log.Info("what came last stays in the spool for the next start: who was behind it may still become known")
			return ctx.Err()
		}
		if err := s.segment(ctx, seg); err != nil {
			return err
		}
	}
}

// known waits until all that counts of who was behind the flows of a segment has become
// known. false is that the process stops before.
func (s *service) known(ctx context.Context, seg *ingest.Segment) bool {
	if s.keeper == nil || !s.cfg.Identity.enabled() {
		return true
	}
	var last flow.Time
	for e := range seg.Entries() {
		last = max(last, e.Time)
	}
	if !waitUntil(ctx, s.stopping, last.Add(s.cfg.Identity.Hold+factsGrace)) {
		return false
	}
	s.facts.written() // a disk may take longer than the grace, and what it takes may count
	return true
}

// checkpointEvery is how far apart checkpoints are at least while segments wait, and
// checkpointShare which part of the time they may take at most: where stages remember much,
// checkpoints are rarer. Both bound what a restart reads again; tokens make that
// harmless, and at most maxUncheckpointed goes by without one: far fewer segments than the
// tokens that ClickHouse remembers. A spool that fills up is given back at once.
const (
	checkpointEvery   = time.Second
	checkpointShare   = 20 // a twentieth
	maxUncheckpointed = 5 * time.Minute
)

// checkpointDue says whether a checkpoint should be made behind this segment.
func (s *service) checkpointDue() bool {
	apart := min(checkpointShare*time.Duration(s.pipe.snapshotTook.Load()+s.pipe.saveTook.Load()), maxUncheckpointed)
	if s.spool.Behind() {
		apart = max(apart, checkpointEvery)
	}
	since := time.Since(s.checkpointed)
	return s.stoppingNow() || since >= apart || since >= checkpointEvery && s.spool.Bytes() > int64(s.cfg.Ingest.Spool.MaxBytes)/4
}

// stoppingNow says whether nothing more is received.
func (s *service) stoppingNow() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

func (s *service) segment(ctx context.Context, seg *ingest.Segment) error {
	s.takeIn(seg)
	s.pipe.chunkRows = seg.ChunkRows()
	spool := seg.Spool().String()
	s.pipe.begin(unit{sink.Insert{Token: fmt.Sprintf("spool/%s/%d", spool, seg.Seq()), Input: "spool/" + spool, At: seg.Created()}, seg.Seq()})
	for e := range seg.Entries() {
		var err error
		switch e.Kind {
		case ingest.EntryDatagram:
			d := e.Datagram()
			err = s.pipe.datagram(ctx, &d)
		case ingest.EntryTick:
			err = s.pipe.tick(ctx, e.Time)
		case ingest.EntryPolicy:
			err = s.activate(ctx, e.Payload)
		case ingest.EntryLines:
			if l, ok := e.Lines(); ok {
				err = s.pipe.lines(ctx, &l)
			}
		}
		if err != nil {
			return err
		}
	}
	if !s.checkpointDue() { // what lies between two is read again after a crash
		return s.pipe.end(ctx, nil, nil, nil)
	}
	s.checkpointed = time.Now()
	seq := seg.Seq()
	extra := map[string][]byte{}
	if s.keeper != nil {
		var err error
		if extra["policy"], err = s.keeper.Snapshot(); err != nil {
			return err
		}
	}
	change := s.next != nil && !s.spool.Behind()
	if change {
		var err error
		if _, s.settings, err = s.cfg.stageSettings(); err != nil {
			return err
		}
	}
	cp := &checkpoint{Spool: spool, Segment: seq, Settings: s.settings}
	if err := s.pipe.end(ctx, cp, extra, func() error { return s.spool.Remove(seq) }); err != nil || !change {
		return err
	}
	return s.adopt(cp)
}

// takeIn opens a segment for the ledger: what it holds moves from "in the spool"
// to "in the open unit" in one step.
func (s *service) takeIn(seg *ingest.Segment) {
	s.pipe.gate.Lock()
	defer s.pipe.gate.Unlock()
	s.cursor = seg.Seq()
	for e := range seg.Entries() {
		switch e.Kind {
		case ingest.EntryDatagram:
			s.pipe.admit(e.Exporter, 1)
		case ingest.EntryRefused:
			s.pipe.refuse(e.Exporter, e.Reason, e.Count)
		case ingest.EntryLines:
			if l, ok := e.Lines(); ok {
				s.pipe.admitLines(e.Exporter, l.Counts.Sum())
			}
		}
	}
	for exporter, n := range seg.LostLines() {
		s.pipe.loseLines(exporter, n)
	}
	for exporter, n := range seg.Lost() {
		s.pipe.refuse(exporter, flow.RejectSpoolLost, n)
	}
}

// activate brings a version into force between two datagrams.
func (s *service) activate(ctx context.Context, text []byte) error {
	var a activation
	if err := json.Unmarshal(text, &a); err != nil {
		return fmt.Errorf("the spool names a policy version in a way this postern does not read: %w", err)
	}
	if err := s.pipe.advance(ctx, nil); err != nil {
		return err
	}
	if err := s.keeper.enter(a); err != nil {
		return err
	}
	if s.notify != nil {
		s.notify("policy " + a.Hash)
	}
	return nil
}

// ledger takes stock of everything from the sockets to the store.
func (s *service) ledger() flow.Ledger {
	return s.pipe.ledger(func(l flow.Ledger) {
		waiting := s.spool.Counts(s.cursor)
		for exporter, n := range waiting.Datagrams {
			d := &l.Of(exporter).Datagrams
			d.Received += n
			d.Queued += n
		}
		for exporter, n := range waiting.Lines {
			a := &l.Of(exporter).Lines
			a.Received += n
			a.Queued += n
		}
		for exporter, r := range waiting.Refused {
			d := &l.Of(exporter).Datagrams
			d.Received += r.Sum()
			for i, n := range r {
				d.Rejected[i] += n
			}
		}
	})
}

// Gather implements prometheus.Gatherer.
func (s *service) Gather() ([]*dto.MetricFamily, error) { return s.registry.Gather() }

// ready says why the service cannot do its work, nil if it can.
func (s *service) ready() error {
	if !s.listening.Load() {
		return errors.New("not listening: starting or stopping")
	}
	if s.keeper != nil {
		if err := s.keeper.ready(); err != nil {
			return err
		}
	}
	return s.store.ready()
}

// reportEvery is how often the ledgers and exporters are written to ClickHouse.
const reportEvery = time.Minute

// report writes what ClickHouse should know beside flows and findings.
func (s *service) report(ctx context.Context) error {
	s.store.report(ctx, s.reportNow())
	return every(ctx, reportEvery, func() { s.store.report(ctx, s.reportNow()) })
}

// finalReport writes the ledger once more at a stop.
func (s *service) finalReport(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	s.store.report(ctx, s.reportNow())
}

func (s *service) reportNow() report {
	r := report{at: wallClock(), spool: s.spool.ID().String(), ledger: s.ledger(), exporters: s.exporters()}
	if s.keeper != nil {
		r.versions, r.source = s.keeper.versions()
	}
	return r
}

// sourceID makes the number that record ids are built on from an input's name.
func sourceID(name string) uint64 { return xxhash.Sum64String(name) }

// exporters is who sends, as the decoder knows them.
func (s *service) exporters() []sink.Exporter {
	s.pipe.gate.Lock()
	heard := s.pipe.decoder.Heard()
	s.pipe.gate.Unlock()
	out := make([]sink.Exporter, len(heard))
	for i, h := range heard {
		out[i] = sink.Exporter{
			Exporter: h.Exporter, Domain: h.Domain, Source: h.Source, FirstSeen: h.First, LastSeen: h.Last,
			Datagrams: h.Messages, Records: h.Records, Templates: uint32(h.Templates), SamplingRate: h.SamplingRate, Gaps: h.Gaps, Skew: h.Skew,
		}
	}
	return out
}
