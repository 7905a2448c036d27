package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink"
	"github.com/postern/postern/sink/embedded"
)

// durableStore makes rows last in ClickHouse and events in the outboxes. Until
// ClickHouse answers, whoever wants to store waits.
type durableStore struct {
	cfg    config
	names  *flow.Names
	log    *slog.Logger
	reg    prometheus.Registerer
	engine *embedded.Engine // nil with a server
	opts   sink.Options

	told   *receivers
	judged *judgmentMetrics
	rollup *nightly
	// checks says whether it is for this process to check the roll-up, of those that share the store; nil is always.
	checks func() bool

	reporting sync.Mutex
	reported  int // policy versions that ClickHouse knows of
	// registered is when the versions in ClickHouse's register were accepted; nil until it was asked.
	registered map[string]flow.Time

	opened chan struct{} // closed once db is set
	db     *sink.ClickHouse

	mu      sync.Mutex
	lastErr error // why ClickHouse is not open yet
	refused error // what it refuses at present
}

// newDurableStore makes the store; it opens nothing.
func newDurableStore(cfg config, names *flow.Names, log *slog.Logger, reg prometheus.Registerer) (*durableStore, error) {
	s := &durableStore{cfg: cfg, names: names, log: log, reg: reg, opened: make(chan struct{}),
		opts: sink.Options{Logger: log, Metrics: reg}}
	if cfg.ClickHouse.URL != sink.URLEmbedded && cfg.ClickHouse.Password != "" {
		p, err := resolveSecret(cfg.ClickHouse.Password)
		if err != nil {
			return nil, fmt.Errorf("clickhouse.password: %w", err)
		}
		s.opts.Password = p
	}
	var err error
	s.judged = newJudgmentMetrics(reg)
	s.rollup = newNightly(cfg, log, reg)
	s.told, err = newReceivers(cfg, log, reg)
	return s, err
}

// open takes the outboxes, and prepares the embedded engine if there is one.
func (s *durableStore) open() (err error) {
	if err := s.told.open(); err != nil {
		return err
	}
	if s.cfg.ClickHouse.URL != sink.URLEmbedded {
		return nil
	}
	ecfg, err := embeddedConfig(s.cfg)
	if err != nil {
		return errors.Join(err, s.close())
	}
	if s.engine, err = embedded.New(ecfg, s.log, s.reg); err != nil {
		return errors.Join(err, s.close())
	}
	return nil
}

// embeddedConfig completes the engine's configuration: where its data lies, and
// the tokens that other commands and Grafana find in the data directory.
func embeddedConfig(cfg config) (embedded.Config, error) {
	e := cfg.Embedded
	if e.DataDir == "" {
		e.DataDir = filepath.Join(cfg.Data, "clickhouse")
	}
	e.Database = cfg.ClickHouse.Database
	var err error
	for _, t := range []struct {
		value *string
		key   string
		file  string
	}{{&e.Token, "token", "clickhouse.token"}, {&e.ReadOnlyToken, "readOnlyToken", "clickhouse-readonly.token"}} {
		if *t.value != "" {
			*t.value, err = resolveSecret(*t.value)
		} else {
			*t.value, err = keptToken(cfg.Data, t.file)
		}
		if err != nil {
			return e, fmt.Errorf("embedded.%s: %w", t.key, err)
		}
	}
	return e, nil
}

// close gives the outboxes free.
func (s *durableStore) close() error { return s.told.close() }

// run keeps the engine, the connection and the deliveries going until ctx ends.
func (s *durableStore) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if s.engine != nil {
		g.Go(func() error { return s.engine.Run(ctx) })
		g.Go(func() error {
			select {
			case <-ctx.Done():
				return nil
			case <-s.engine.Ready():
			}
			s.opts.Endpoint, s.opts.Token = "http://"+s.engine.Addr().String(), s.engine.Token()
			if err := writeEndpoint(s.cfg, s.opts.Endpoint); err != nil {
				return err
			}
			return s.connect(ctx)
		})
	} else {
		g.Go(func() error { return s.connect(ctx) })
	}
	g.Go(func() error { return s.told.run(ctx) })
	g.Go(func() error {
		if s.wait(ctx) != nil {
			return nil //nolint:nilerr // the service stops; not having counted is no error
		}
		s.judged.count(ctx, s.db, s.log)
		return every(ctx, reportEvery, func() { s.judged.count(ctx, s.db, s.log) })
	})
	g.Go(func() error {
		if s.wait(ctx) != nil {
			return nil //nolint:nilerr // the service stops; not having checked is no error
		}
		return every(ctx, reportEvery, func() {
			if s.checks == nil || s.checks() {
				s.rollup.look(ctx, s.db, wallClock())
			}
		})
	})
	g.Go(func() error { <-ctx.Done(); return nil }) // with a server and no receivers nothing else runs, and the connection is still used
	err := g.Wait()
	select {
	case <-s.opened:
		err = errors.Join(err, s.db.Close())
	default:
	}
	return err
}

// connect tries until ClickHouse answers and its tables are as this binary needs them.
func (s *durableStore) connect(ctx context.Context) error {
	db, err := backoff.Retry(ctx, func() (*sink.ClickHouse, error) {
		db, err := sink.Open(ctx, s.cfg.ClickHouse, s.opts)
		if err == nil {
			err = db.Migrate(ctx, nil)
			if err != nil {
				_ = db.Close()
			}
		}
		if err != nil && ctx.Err() == nil {
			s.mu.Lock()
			s.lastErr = err
			s.mu.Unlock()
			if !sink.Retryable(err) {
				return nil, backoff.Permanent(err)
			}
			s.log.Warn("ClickHouse is not there yet; flows wait in the spool", "error", err)
		}
		return db, err
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0))
	if err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // the service stops; not having connected is no error
		}
		return err
	}
	s.db = db
	close(s.opened)
	return nil
}

// newBackOff waits from a quarter of a second to 15 seconds, with jitter.
func newBackOff() backoff.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 250*time.Millisecond, 15*time.Second
	return b
}

// database is where findings are, once it is open.
func (s *durableStore) database() (*sink.ClickHouse, error) {
	select {
	case <-s.opened:
		return s.db, nil
	default:
		return nil, s.ready()
	}
}

// ready says why nothing can be stored, nil if it can.
func (s *durableStore) ready() error {
	select {
	case <-s.opened:
	default:
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.lastErr != nil {
			return fmt.Errorf("ClickHouse: %w", s.lastErr)
		}
		return errors.New("ClickHouse is not connected yet")
	}
	s.mu.Lock()
	refused := s.refused
	s.mu.Unlock()
	if refused != nil {
		return fmt.Errorf("ClickHouse refuses: %w", refused)
	}
	if err := s.told.full(); err != nil {
		return fmt.Errorf("flows wait in the spool because findings cannot be told: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := s.db.Ping(ctx); err != nil {
		return fmt.Errorf("ClickHouse: %w", err)
	}
	return nil
}

func (s *durableStore) wait(ctx context.Context) error {
	select {
	case <-s.opened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *durableStore) writer() rowWriter { return sink.NewFlowWriter(s.names) }

func (s *durableStore) rows(ctx context.Context, u unit, _ int, b *block) (duplicate bool, err error) {
	if err := s.wait(ctx); err != nil {
		return false, err
	}
	// A re-read range counts as written even where the server had it already: the
	// process that wrote it did not live to count it.
	w := b.writer.(*sink.FlowWriter)
	w.Bind(s.db)
	return false, s.insist(ctx, "flows", func() error {
		_, err := w.FlushWithRetry(ctx, u.Insert)
		return err
	})
}

// insist repeats what ClickHouse refuses for good, slowly and loudly: such a
// refusal is a mistake in a schema or in Postern, and while it lasts nothing may
// be thrown away. The spool fills meanwhile, and /readyz fails.
func (s *durableStore) insist(ctx context.Context, what string, do func() error) error {
	for {
		err := do()
		if err == nil || ctx.Err() != nil {
			return err
		}
		s.log.Error("ClickHouse refuses an insert for good; trying again in a while, flows wait in the spool", "what", what, "error", err)
		s.mu.Lock()
		s.refused = err
		s.mu.Unlock()
		select {
		case <-time.After(15 * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
		s.mu.Lock()
		s.refused = nil
		s.mu.Unlock()
	}
}

func (s *durableStore) findings(ctx context.Context, ins sink.Insert, contribs []flow.Contribution, events []*flow.Finding) error {
	if err := s.contribute(ctx, ins, contribs); err != nil {
		return err
	}
	return s.told.tell(ctx, events)
}

// contribute makes contributions to findings last.
func (s *durableStore) contribute(ctx context.Context, ins sink.Insert, contribs []flow.Contribution) error {
	if len(contribs) == 0 {
		return nil
	}
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.insist(ctx, "findings", func() error { return storeContributions(ctx, s.db, ins, contribs) })
}

// storeContributions repeats what may succeed later.
func storeContributions(ctx context.Context, db *sink.ClickHouse, ins sink.Insert, contribs []flow.Contribution) error {
	return persist(ctx, func() (sink.Written, error) { return db.InsertContributions(ctx, ins, contribs) })
}

// persist repeats an insert until it succeeds, fails for good, or ctx ends.
func persist(ctx context.Context, insert func() (sink.Written, error)) error {
	_, err := backoff.Retry(ctx, func() (sink.Written, error) {
		w, err := insert()
		if err != nil && !sink.Retryable(err) {
			err = backoff.Permanent(err)
		}
		return w, err
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0))
	return err
}

// report is what ClickHouse should know of the service beside flows and findings.
type report struct {
	at        flow.Time
	spool     string
	ledger    flow.Ledger
	exporters []sink.Exporter
	versions  []activation
	source    func(hash string) ([]byte, error)
}

// report writes it if ClickHouse is there; what fails is told and comes again with
// the next report, since every report is complete.
func (s *durableStore) report(ctx context.Context, r report) {
	select {
	case <-s.opened:
	default:
		return
	}
	s.reporting.Lock()
	defer s.reporting.Unlock()
	warn := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			s.log.Warn("not reported to ClickHouse", "what", what, "error", err)
		}
	}
	ins := sink.Insert{Token: fmt.Sprintf("report/%s/%d", r.spool, r.at), Input: "spool/" + r.spool, At: r.at}
	_, err := s.db.InsertLedger(ctx, ins, r.spool, r.at, r.ledger)
	warn("ledger", err)
	_, err = s.db.InsertExporters(ctx, ins, r.spool, r.at, r.exporters)
	warn("exporters", err)
	for _, v := range r.versions[min(s.reported, len(r.versions)):] {
		source, err := r.source(v.Hash)
		if err == nil && s.registered == nil {
			s.registered, err = s.db.Registered(ctx)
		}
		if err == nil {
			err = storePolicyVersion(ctx, s.db, sink.PolicyVersion{Hash: v.Hash, Since: v.Since, AcceptedAt: v.Accepted,
				Instance: r.spool, Source: string(source), Commit: v.Commit}, s.registered)
		}
		if err != nil {
			warn("policy version", err)
			break
		}
		s.reported++
	}
}

// endpoint is where a running service's embedded ClickHouse answers; other
// commands read it from the data directory.
type endpoint struct {
	URL string `json:"url"`
	PID int    `json:"pid"`
}

func endpointFile(cfg config) string { return filepath.Join(cfg.Data, "clickhouse.json") }

func writeEndpoint(cfg config, url string) error {
	raw, err := json.Marshal(endpoint{URL: url, PID: os.Getpid()})
	if err != nil {
		return err
	}
	return writeDurably(endpointFile(cfg), raw)
}

// nowhere is the store of replay --no-store.
type nowhere struct{}

func (nowhere) writer() rowWriter { return nil }
func (nowhere) rows(context.Context, unit, int, *block) (bool, error) {
	return false, nil
}
func (nowhere) sessions(context.Context, sink.Insert, []flow.Session) error { return nil }
func (nowhere) edges(context.Context, sink.Insert, []flow.EdgeContribution) error {
	return nil
}
func (nowhere) blindSpots(context.Context, sink.Insert, []flow.BlindSpot) error { return nil }
func (nowhere) findings(context.Context, sink.Insert, []flow.Contribution, []*flow.Finding) error {
	return nil
}

// maxSessionRows is how many versions of sessions an insert holds.
const maxSessionRows = 50_000

// sessions makes versions of sessions last.
func (s *durableStore) sessions(ctx context.Context, ins sink.Insert, versions []flow.Session) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.insist(ctx, "sessions", func() error { return storeSessions(ctx, s.db, s.names, ins, versions) })
}

// storeSessions inserts versions of sessions under the tokens of their unit.
func storeSessions(ctx context.Context, db *sink.ClickHouse, names *flow.Names, ins sink.Insert, versions []flow.Session) error {
	w := sink.NewSessionWriter(names)
	w.Bind(db)
	for i := 0; len(versions) > 0; i++ {
		n := min(len(versions), maxSessionRows)
		w.Append(versions[:n])
		part := ins
		part.Token = fmt.Sprintf("%s/sessions/%d", ins.Token, i)
		if _, err := w.FlushWithRetry(ctx, part); err != nil {
			return err
		}
		versions = versions[n:]
	}
	return nil
}

// maxEdgeRows is how many contributions to edges an insert holds.
const maxEdgeRows = 50_000

// edges makes what sessions add to the hourly roll-up last.
func (s *durableStore) edges(ctx context.Context, ins sink.Insert, edges []flow.EdgeContribution) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.insist(ctx, "edges", func() error { return storeEdges(ctx, s.db, s.names, ins, edges) })
}

// storeEdges inserts contributions to edges under the tokens of their unit.
func storeEdges(ctx context.Context, db *sink.ClickHouse, names *flow.Names, ins sink.Insert, edges []flow.EdgeContribution) error {
	w := sink.NewEdgeWriter(names)
	w.Bind(db)
	for i := 0; len(edges) > 0; i++ {
		n := min(len(edges), maxEdgeRows)
		w.Append(edges[:n])
		part := ins
		part.Token = fmt.Sprintf("%s/edges/%d", ins.Token, i)
		if _, err := w.FlushWithRetry(ctx, part); err != nil {
			return err
		}
		edges = edges[n:]
	}
	return nil
}

// blindSpots makes versions of blind spots last.
func (s *durableStore) blindSpots(ctx context.Context, ins sink.Insert, spots []flow.BlindSpot) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.insist(ctx, "blind spots", func() error { return storeBlindSpots(ctx, s.db, ins, spots) })
}

// storeBlindSpots inserts versions of blind spots under the token of their unit. It repeats what
// may succeed later.
func storeBlindSpots(ctx context.Context, db *sink.ClickHouse, ins sink.Insert, spots []flow.BlindSpot) error {
	return persist(ctx, func() (sink.Written, error) { return db.InsertBlindSpots(ctx, ins, spots) })
}
