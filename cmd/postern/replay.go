package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/detect"
	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/sink"
)

// replayOptions is what `postern replay` was asked for.
type replayOptions struct {
	config   string
	policy   string
	policyAt string
	findings string
	flows    string
	noStore  bool
	notify   bool
	format   string
}

func replayCommand() *cobra.Command {
	var o replayOptions
	cmd := &cobra.Command{
		Use:   "replay [-c postern.yaml] [--policy DIR] [--format NAME] FILE…",
		Short: "Send captures or logs through the whole pipeline",
		Long: `Reads captures (pcap, pcapng, either in gzip) and does with their flows what the service does: orients,
judges, detects, stores. Exporters' clocks are believed, and each file is an input of its own.

Rows go to the ClickHouse of the configuration, which may be that of a running service. Replaying the
same file under the same policy changes nothing; under another policy the file's earlier rows are
replaced, and the summary says so. --no-store needs no ClickHouse and no configuration.

With --format the files are logs (see decode), plain or in gzip.

Flows are judged by who was behind them at their time, as far as the data directory of the
configuration knows that.

Targets are told only with --notify: what happened long ago is seldom news.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			return replay(cmd.Context(), o, files, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.config, "config", "c", "", "configuration file")
	f.StringVar(&o.policy, "policy", "", "policy folder; by default that of the configuration")
	f.StringVar(&o.policyAt, "policy-at", "", "when the policy came into force (RFC 3339); by default it is in force always")
	f.StringVar(&o.findings, "findings", "", "write findings to this file as JSON lines; - is standard output")
	f.StringVar(&o.flows, "flows", "", "write every judged flow to this file as JSON lines; - is standard output")
	f.BoolVar(&o.noStore, "no-store", false, "store nothing; needs no ClickHouse and no configuration")
	f.StringVar(&o.format, "format", "", "the files are logs of this format, or auto")
	f.BoolVar(&o.notify, "notify", false, "tell the configured targets of the findings as well")
	return cmd
}

func replay(ctx context.Context, o replayOptions, files []string, stdout, stderr io.Writer) error {
	cfg, err := loadConfig(o.config)
	if err != nil {
		return err
	}
	if o.policy != "" {
		cfg.Policy.Dir = o.policy
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: max(cfg.Log.Level, slog.LevelWarn)}))
	r := &replayer{cfg: cfg, log: log, names: flow.NewNames(0), stderr: stderr, ledger: flow.Ledger{}, format: o.format}
	if err := r.loadPolicy(o.policyAt); err != nil {
		return err
	}
	closeOutputs, err := r.openOutputs(o, stdout)
	if err != nil {
		return err
	}
	if o.noStore {
		err = r.run(ctx, files, nowhere{}, nil)
	} else {
		err = withClickHouse(ctx, cfg, log, func(ctx context.Context, db *sink.ClickHouse) error {
			s := &replayStore{db: db, names: r.names}
			if o.notify {
				stop, err := s.openTargets(ctx, cfg, log)
				if err != nil {
					return err
				}
				defer stop()
			}
			return r.run(ctx, files, s, s)
		})
	}
	err = errors.Join(err, closeOutputs())
	if err != nil {
		return err
	}
	return r.summary(stderr)
}

// replayer sends files through a pipeline of their own each. Findings are kept
// over all of them. Without a history nothing is judged, as in `postern collect`.
type replayer struct {
	cfg       config
	log       *slog.Logger
	names     *flow.Names
	identity  *enrich.Identity // what this data directory knows of who is behind addresses
	history   *policy.History
	hash      string
	key       string // what the rows are judged by: the policy, and since when
	source    []byte
	commit    string // of the policy
	since     flow.Time
	detector  *detect.Detector
	contacts  *detect.Contacts
	behaviour *detect.Behaviour
	stderr    io.Writer
	format    string // of logs; empty: captures
	logs      logFile

	onFlow func(*flow.Batch) error

	stats    ingest.CaptureStats
	ledger   flow.Ledger
	verdicts tally
	findings map[string]*flow.Finding // newest revision by id
	notes    []string
}

// loadPolicy reads the folder and puts it in force always, or since at.
func (r *replayer) loadPolicy(at string) error {
	var err error
	if r.identity, err = knownIdentities(r.cfg, r.names); err != nil {
		return err
	}
	r.history = policy.NewHistory(r.names, r.cfg.judging(r.identity.Domains()))
	r.since = policy.Always
	if at != "" {
		if err := r.since.UnmarshalText([]byte(at)); err != nil {
			return fmt.Errorf("--policy-at %q is no time; write it as 2026-10-02T00:00:00Z", at)
		}
	}
	p, diags := loadPolicy(r.cfg.Policy.Dir)
	if p == nil {
		fmt.Fprintln(r.stderr, diags.String())
		return fmt.Errorf("the policy in %s has errors; nothing was replayed", r.cfg.Policy.Dir)
	}
	r.hash, r.source, r.commit = p.Hash(), p.Source(), p.Commit
	r.key = r.hash
	if r.format != "" {
		r.key += "/" + r.format
	}
	if at != "" {
		r.key += "@" + r.since.String()
	}
	if err := r.history.Add(p, r.since); err != nil {
		return err
	}
	r.identity.NameGroups(p.Groups())
	r.findings = map[string]*flow.Finding{}
	if r.detector, err = detect.New(r.cfg.Detect, detect.Versions{History: r.history}, r.names, nil); err != nil {
		return err
	}
	if r.contacts, err = detect.NewContacts(r.cfg.Detect, r.names, nil); err != nil {
		return err
	}
	r.behaviour, err = detect.NewBehaviour(r.cfg.Detect, 1, detect.Versions{History: r.history}, r.names, nil)
	return err
}

// openOutputs prepares --flows and --findings; the returned function writes what
// is left and closes them.
func (r *replayer) openOutputs(o replayOptions, stdout io.Writer) (func() error, error) {
	var closers []func() error
	open := func(path string) (*bufio.Writer, error) {
		w, done, err := stdoutOr(path, stdout)
		if err != nil {
			return nil, err
		}
		b := bufio.NewWriterSize(w, 1<<16)
		closers = append(closers, func() error { return errors.Join(b.Flush(), done()) })
		return b, nil
	}
	if o.flows != "" {
		w, err := open(o.flows)
		if err != nil {
			return nil, err
		}
		var line []byte
		r.onFlow = func(b *flow.Batch) error {
			texts := r.names.Texts()
			for i := range b.Records {
				line = append(b.Records[i].AppendJSON(line[:0], texts), '\n')
				if _, err := w.Write(line); err != nil {
					return err
				}
			}
			return nil
		}
	}
	var findings *bufio.Writer
	if o.findings != "" {
		var err error
		if findings, err = open(o.findings); err != nil {
			return nil, err
		}
	}
	// Every finding is printed once, in its last revision, in the order of first sight.
	closers = append([]func() error{func() error {
		if findings == nil {
			return nil
		}
		for _, f := range r.sorted() {
			var line bytes.Buffer
			enc := json.NewEncoder(&line)
			enc.SetEscapeHTML(false)
			if err := enc.Encode(f); err != nil {
				return err
			}
			if _, err := findings.Write(flow.EscapeDEL(line.Bytes())); err != nil {
				return err
			}
		}
		return nil
	}}, closers...)
	return func() (err error) {
		for _, c := range closers {
			err = errors.Join(err, c())
		}
		return err
	}, nil
}

// sorted lists the findings by first sight, then id.
func (r *replayer) sorted() []*flow.Finding {
	list := make([]*flow.Finding, 0, len(r.findings))
	for _, f := range r.findings {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b *flow.Finding) int {
		if a.FirstSeen != b.FirstSeen {
			return int(a.FirstSeen - b.FirstSeen)
		}
		return bytes.Compare([]byte(a.ID), []byte(b.ID))
	})
	return list
}

// loader prepares the store for a file: it says whether its rows are there
// already, and replaces those of another policy.
type loader interface {
	begin(ctx context.Context, input, policy string) (at flow.Time, note string, err error)
	done(ctx context.Context, input, policy string, at flow.Time, rows uint64) error
	policyVersion(ctx context.Context, hash string, since flow.Time, source []byte, commit string) error
}

func (r *replayer) run(ctx context.Context, files []string, s store, l loader) error {
	if l != nil {
		if err := l.policyVersion(ctx, r.hash, max(r.since, 0), r.source, r.commit); err != nil {
			return err
		}
	}
	for i, file := range files {
		if err := r.file(ctx, file, s, l, i == len(files)-1); err != nil {
			return err
		}
	}
	return nil
}

// unitDatagrams is how many datagrams of a file make a unit: results become
// durable, and memory is given back, after each.
const unitDatagrams = 50_000

func (r *replayer) file(ctx context.Context, file string, s store, l loader, last bool) error {
	sum, err := fileHash(file)
	if err != nil {
		return err
	}
	input := "file/" + sum
	u := unit{Insert: sink.Insert{Input: input, At: 1}}
	if l != nil {
		var note string
		if u.At, note, err = l.begin(ctx, input, r.key); err != nil {
			return err
		}
		if note != "" {
			r.notes = append(r.notes, file+": "+note)
		}
	}
	dcfg := r.cfg.Ingest.Decode
	dcfg.SourceID, dcfg.BelieveClock = sourceID(input), true
	var stages judging
	if r.history != nil {
		set := stageSettings{Enrich: r.cfg.Enrich, Detect: r.cfg.Detect, Sessions: r.cfg.Sessions}
		if stages, err = judges(set, r.history, r.identity, r.names, nil); err != nil {
			return err
		}
		stages.detector, stages.contacts, stages.behaviour = r.detector, r.contacts, r.behaviour // findings are of all files
	}
	p := newPipeline(pipelineConfig{
		names: r.names, decoder: ingest.NewDecoder(dcfg, r.names, nil), judging: stages,
		store: s, log: r.log, chunkRows: r.cfg.Ingest.Spool.ChunkRows,
	})
	p.onFlow, p.onEvents = r.onFlow, r.keep
	// Whichever of the two fails stops the other: where the store gives up, the
	// file is not read on, and the store's reason is the one that is told.
	work, wctx := errgroup.WithContext(ctx)
	work.Go(func() error { return p.runStore(wctx, checkpoints{}) })
	work.Go(func() error {
		defer close(p.out)
		return r.feed(wctx, p, file, u, last)
	})
	if err := work.Wait(); err != nil {
		return err
	}
	account := p.ledger(nil)
	r.ledger.Add(account)
	r.verdicts.merge(p.judgedSoFar)
	if l != nil {
		total := account.Total()
		return l.done(ctx, input, r.key, u.At, total.Records.Written+total.Records.Duplicate)
	}
	return nil
}

// feed sends a file's datagrams through p, in units.
func (r *replayer) feed(ctx context.Context, p *pipeline, file string, u unit, last bool) error {
	units, inUnit := 0, 0
	begin := func() {
		u.Token, u.number = fmt.Sprintf("%s/%s/%d", u.Input, r.key, units), uint64(units)
		p.begin(u)
	}
	begin()
	took := func(n, most int) error {
		if inUnit += n; inUnit < most {
			return nil
		}
		inUnit = 0
		units++
		if err := p.end(ctx, nil, nil, nil); err != nil {
			return err
		}
		begin()
		return nil
	}
	if r.format != "" {
		if err := r.feedLog(ctx, p, file, u.Input, took); err != nil {
			return err
		}
	} else {
		stats, err := eachDatagram(ctx, file, r.stderr, func(d *ingest.Datagram) error {
			p.gate.Lock()
			p.admit(d.Exporter, 1)
			p.gate.Unlock()
			if err := p.datagram(ctx, d); err != nil {
				return err
			}
			return took(1, unitDatagrams)
		})
		addStats(&r.stats, stats)
		if err != nil {
			return err
		}
	}
	if err := p.drain(ctx, last); err != nil {
		return err
	}
	return p.end(ctx, nil, nil, nil)
}

// unitFlows is unitDatagrams for logs, whose flows are counted.
const unitFlows = 1_000_000

// feedLog sends the flows of a log through p.
func (r *replayer) feedLog(ctx context.Context, p *pipeline, file, input string, took func(n, most int) error) error {
	l := &r.logs
	before := l.lines
	l.cfg, l.format, l.names, l.diag, l.seed, l.why = r.cfg.Ingest.Logs, r.format, r.names, r.stderr, sourceID(input), ""
	err := l.each(ctx, file, func(b *flow.Batch) error {
		if err := p.records(ctx, func(to *flow.Batch) { to.Records = append(to.Records, b.Records...) }); err != nil {
			return err
		}
		return took(len(b.Records), unitFlows)
	})
	p.gate.Lock()
	a := p.totals[flow.Addr{}]
	a.Lines.Received += l.lines.Received - before.Received
	a.Lines.Read += l.lines.Read - before.Read
	a.Lines.NotFlow += l.lines.NotFlow - before.NotFlow
	a.Lines.Rejected += l.lines.Rejected - before.Rejected
	p.totals[flow.Addr{}] = a
	p.gate.Unlock()
	if l.why != "" {
		r.notes = append(r.notes, l.why)
	}
	return err
}

// told says what was read.
func (r *replayer) told(w io.Writer) error {
	if r.format != "" {
		return r.logs.summary(w, r.ledger)
	}
	return decodeSummary(w, r.stats, r.ledger)
}

// keep remembers the newest revision of every finding.
func (r *replayer) keep(events []*flow.Finding) error {
	for _, f := range events {
		if old := r.findings[f.ID]; old == nil || old.Revision < f.Revision {
			r.findings[f.ID] = f
		}
	}
	return nil
}

// summary says what was read, how it was judged and what was found.
func (r *replayer) summary(w io.Writer) error {
	for _, n := range r.notes {
		fmt.Fprintln(w, n)
	}
	if err := r.told(w); err != nil {
		return err
	}
	fmt.Fprint(w, r.verdicts.table())
	fmt.Fprintf(w, "findings:  %d\n", len(r.findings))
	return r.ledger.Check()
}

// fileHash is the content hash of a file: what a replay is known by.
func fileHash(path string) (string, error) {
	if path == "-" {
		return "", errors.New("replay reads files, not standard input: a file's content is what its rows are known by")
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// replayStore stores a replay in ClickHouse.
type replayStore struct {
	db    *sink.ClickHouse
	names *flow.Names
	told  *receivers // nil: nobody is told
	// repeated: this file's rows are all there already. They are sent all the same,
	// and ClickHouse recognises their tokens; over HTTP it does not say so.
	repeated bool
}

func (s *replayStore) writer() rowWriter { return sink.NewFlowWriter(s.names) }

func (s *replayStore) rows(ctx context.Context, u unit, _ int, b *block) (bool, error) {
	w := b.writer.(*sink.FlowWriter)
	w.Bind(s.db)
	_, err := w.FlushWithRetry(ctx, u.Insert)
	return s.repeated, err
}

func (s *replayStore) findings(ctx context.Context, ins sink.Insert, contribs []flow.Contribution, events []*flow.Finding) error {
	if len(contribs) > 0 {
		if err := storeContributions(ctx, s.db, ins, contribs); err != nil {
			return err
		}
	}
	if s.told == nil {
		return nil
	}
	return s.told.tell(ctx, events)
}

func (s *replayStore) policyVersion(ctx context.Context, hash string, since flow.Time, source []byte, commit string) error {
	registered, err := s.db.Registered(ctx)
	if err != nil {
		return err
	}
	return storePolicyVersion(ctx, s.db, sink.PolicyVersion{Hash: hash, Since: since, AcceptedAt: wallClock(), Instance: "replay", Source: string(source), Commit: commit}, registered)
}

// begin finds out what an earlier replay of the same file left.
func (s *replayStore) begin(ctx context.Context, input, policy string) (at flow.Time, note string, err error) {
	last, err := s.db.LastReplay(ctx, input)
	if err != nil {
		return 0, "", err
	}
	stored, err := s.db.InsertedAt(ctx, input)
	if err != nil {
		return 0, "", err
	}
	now := wallClock()
	s.repeated = false
	switch {
	case last.Policy == policy && stored != 0:
		if last.Rows == 0 {
			return last.Started, "was replayed in part before; the rest follows", nil
		}
		s.repeated = true
		return last.Started, fmt.Sprintf("was replayed under this policy before, at %s; nothing changes", last.Started), nil
	case stored != 0:
		if err := s.db.DeleteInput(ctx, input); err != nil {
			return 0, "", err
		}
		note = fmt.Sprintf("was replayed under another policy (%.16s); its %d rows are replaced", last.Policy, last.Rows)
	}
	return now, note, s.db.NoteReplay(ctx, sink.Replay{Input: input, Policy: policy, Started: now}, now)
}

func (s *replayStore) done(ctx context.Context, input, policy string, at flow.Time, rows uint64) error {
	return s.db.NoteReplay(ctx, sink.Replay{Input: input, Policy: policy, Started: at, Rows: rows}, max(wallClock(), at+1))
}

// openTargets opens the configured receivers for the time of the replay; stop
// gives them a moment to be told.
func (s *replayStore) openTargets(ctx context.Context, cfg config, log *slog.Logger) (stop func(), err error) {
	s.told, err = newReceivers(cfg, log, prometheus.NewRegistry())
	if err != nil {
		return nil, err
	}
	if err := s.told.open(); err != nil {
		return nil, err
	}
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { _ = s.told.run(runCtx) }) // what fails stays in the outbox, and is told by it
	return func() {
		flushCtx, done := context.WithTimeout(runCtx, 30*time.Second)
		defer done()
		_ = s.told.flush(flushCtx) // what is left waits for the service
		cancel()
		running.Wait()
		_ = s.told.close()
	}, nil
}

func (s *replayStore) sessions(ctx context.Context, ins sink.Insert, versions []flow.Session) error {
	return storeSessions(ctx, s.db, s.names, ins, versions)
}

func (s *replayStore) edges(ctx context.Context, ins sink.Insert, edges []flow.EdgeContribution) error {
	return storeEdges(ctx, s.db, s.names, ins, edges)
}

func (s *replayStore) blindSpots(ctx context.Context, ins sink.Insert, spots []flow.BlindSpot) error {
	return storeBlindSpots(ctx, s.db, ins, spots)
}
