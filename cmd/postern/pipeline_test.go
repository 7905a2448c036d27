package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest"
	"github.com/postern/postern/ingest/exporter"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/sink"
)

// recorder is a store that keeps what it was given by token, as ClickHouse with its
// deduplication would: the same token again must bring the same.
type recorder struct {
	t *testing.T

	mu       sync.Mutex
	lines    []string            // rows that left judging and are in no block yet
	rowsBy   map[string][]string // by token
	contribs map[string]string
	events   map[string]string // by event id
	repeats  int               // tokens that came again

	names    *flow.Names
	edgesBy  map[string]string       // by token
	spots    map[string]string       // blind spots, by token
	rolledUp map[string]*rolled      // by edge and hour
	versions map[uint64]flow.Session // the newest of each session

	slow  time.Duration
	crash func() bool // asked before and after each step; true ends the life there
}

func newRecorder(t *testing.T) *recorder {
	return &recorder{t: t, rowsBy: map[string][]string{}, contribs: map[string]string{}, events: map[string]string{},
		edgesBy: map[string]string{}, spots: map[string]string{}, rolledUp: map[string]*rolled{}, versions: map[uint64]flow.Session{},
		crash: func() bool { return false }}
}

var errCrash = errors.New("the process is gone")

func (r *recorder) writer() rowWriter { return nil }

// flow takes the rows in the order in which they go into blocks.
func (r *recorder) flow(names *flow.Names) func(*flow.Batch) error {
	return func(b *flow.Batch) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		texts := names.Texts()
		for i := range b.Records {
			rec := &b.Records[i]
			r.lines = append(r.lines, fmt.Sprintf("%016x %s", rec.ID, rec.AppendJSON(nil, texts)))
		}
		return nil
	}
}

func (r *recorder) rows(_ context.Context, ins unit, _ int, b *block) (bool, error) {
	if r.crash() {
		return false, errCrash
	}
	time.Sleep(r.slow)
	r.mu.Lock()
	defer r.mu.Unlock()
	lines := slices.Clone(r.lines[:b.rows])
	r.lines = r.lines[b.rows:]
	key := fmt.Sprintf("%s at %d", ins.Token, ins.At)
	if old, ok := r.rowsBy[key]; ok {
		r.repeats++
		if diff := cmp.Diff(old, lines); diff != "" {
			r.t.Errorf("token %s came again with other rows:\n%s", key, diff)
		}
	}
	r.rowsBy[key] = lines
	if r.crash() {
		return false, errCrash
	}
	return false, nil
}

func (r *recorder) sessions(_ context.Context, _ sink.Insert, versions []flow.Session) error {
	if r.crash() {
		return errCrash
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range versions {
		if s.Version >= r.versions[s.ID].Version {
			r.versions[s.ID] = s
		}
	}
	return nil
}

// rolled is what contributions to an edge in an hour add up to.
type rolled struct {
	Sessions, Answered, Bytes, Packets int64
}

func (r *recorder) edges(_ context.Context, ins sink.Insert, edges []flow.EdgeContribution) error {
	if r.crash() {
		return errCrash
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, again := r.edgesBy[ins.Token]
	var all strings.Builder
	for i := range edges {
		e := &edges[i]
		key := fmt.Sprint(e.Hour, e.Client, e.Server, e.Proto, e.ServerPort, e.Open, e.Reason, e.Outcome, r.names.Text(e.Rule), " ", r.names.Text(e.Exception), " ",
			r.names.Text(e.ClientSegment), " ", r.names.Text(e.ServerSegment))
		fmt.Fprintln(&all, key, e.Sessions, e.Answered, e.Live, e.ClientBytes, e.ServerBytes, e.ClientPackets, e.ServerPackets, e.First, e.Last, e.Over)
		if again {
			continue
		}
		if r.rolledUp[key] == nil {
			r.rolledUp[key] = &rolled{}
		}
		sum := r.rolledUp[key]
		sum.Sessions, sum.Answered = sum.Sessions+int64(e.Sessions), sum.Answered+int64(e.Answered)
		sum.Bytes, sum.Packets = sum.Bytes+e.ClientBytes+e.ServerBytes, sum.Packets+e.ClientPackets+e.ServerPackets
	}
	if old, ok := r.edgesBy[ins.Token]; ok && old != all.String() {
		r.t.Errorf("%s came again with other edges:\n%s", ins.Token, cmp.Diff(old, all.String()))
	}
	r.edgesBy[ins.Token] = all.String()
	if r.crash() {
		return errCrash
	}
	return nil
}

// closeEdges ends what sessions p still holds and says whether the roll-up is that of the sessions.
func (r *recorder) closeEdges(p *pipeline) {
	r.t.Helper()
	rows, _ := p.sessions.Flush()
	ins := sink.Insert{Token: "the end"}
	if err := errors.Join(r.sessions(r.t.Context(), ins, rows), r.edges(r.t.Context(), ins, p.sessions.Edges())); err != nil {
		r.t.Fatal(err)
	}
	var want, got rolled
	for _, s := range r.versions {
		if s.Into != 0 {
			continue
		}
		want.Sessions++
		if s.BothWays {
			want.Answered++
		}
		want.Bytes, want.Packets = want.Bytes+int64(s.Client.Bytes+s.Server.Bytes), want.Packets+int64(s.Client.Packets+s.Server.Packets)
	}
	for _, e := range r.rolledUp {
		got.Sessions, got.Answered, got.Bytes, got.Packets = got.Sessions+e.Sessions, got.Answered+e.Answered, got.Bytes+e.Bytes, got.Packets+e.Packets
	}
	if want != got || got.Sessions == 0 {
		r.t.Errorf("the sessions stored are %+v, the roll-up counts %+v", want, got)
	}
}

func (r *recorder) blindSpots(_ context.Context, ins sink.Insert, spots []flow.BlindSpot) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	raw, err := json.Marshal(spots)
	if err != nil {
		r.t.Error(err)
	}
	if old, ok := r.spots[ins.Token]; ok && old != string(raw) {
		r.t.Errorf("blind spots of %s came again as something else:\n%s", ins.Token, cmp.Diff(old, string(raw)))
	}
	r.spots[ins.Token] = string(raw)
	return nil
}

func (r *recorder) findings(_ context.Context, ins sink.Insert, c []flow.Contribution, events []*flow.Finding) error {
	if r.crash() {
		return errCrash
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	keep := func(m map[string]string, key string, v any) {
		raw, err := json.Marshal(v)
		if err != nil {
			r.t.Error(err)
		}
		if old, ok := m[key]; ok && old != string(raw) {
			r.t.Errorf("%s came again as something else:\n%s", key, cmp.Diff(old, string(raw)))
		}
		m[key] = string(raw)
	}
	keep(r.contribs, ins.Token, c)
	if r.crash() {
		return errCrash
	}
	for _, f := range events {
		keep(r.events, f.EventID(), f)
	}
	if r.crash() {
		return errCrash
	}
	return nil
}

// spooled is a data directory with half an hour of the demo company's traffic in
// its spool: two halves a conversation, data before its template, misuse, a session
// that outlives its exception, ticks, and a policy change near the end.
func spooled(t *testing.T) string {
	t.Helper()
	data := t.TempDir()
	start := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
	now := flow.TimeOf(start.Add(-31 * time.Minute))
	cfg := ingest.DefaultSpoolConfig()
	cfg.ChunkRows = 40
	spool, err := ingest.OpenSpool(filepath.Join(data, "spool"), cfg, ingest.SpoolOptions{Clock: func() flow.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	bring := func(since time.Time, withBackup bool) {
		dir := t.TempDir()
		if err := writeDemoPolicy(dir, start, withBackup); err != nil {
			t.Fatal(err)
		}
		p, diags := policy.Load(os.DirFS(dir))
		if p == nil {
			t.Fatal(diags)
		}
		k := policyKeeper{sources: filepath.Join(data, "state", "policy")}
		if err := k.keep(p.Hash(), p.Source()); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(activation{Hash: p.Hash(), Since: flow.TimeOf(since), Accepted: now})
		if err != nil {
			t.Fatal(err)
		}
		if err := spool.Policy(text, now); err != nil {
			t.Fatal(err)
		}
	}
	bring(start.Add(-24*time.Hour), true)

	c := newCompany(7)
	c.everyday()
	c.misuse()
	before, biflows := c.records(start)
	c.all = nil
	c.afterDeletion(2 * time.Second)
	after, _ := c.records(start)
	names := flow.NewNames(0)
	var devices [2]*exporter.Exporter
	for i, x := range []exporter.Config{
		{Protocol: flow.SourceNetFlowV9, Domain: 1, HoldTemplates: 12, TemplatePackets: 7},
		{Protocol: flow.SourceIPFIX, Domain: 7, Biflow: true, BiflowDirection: true, Rich: true, Names: names, HoldTemplates: 1, TemplatePackets: 7},
	} {
		x.Boot = flow.TimeOf(start.Add(-2 * time.Hour))
		if devices[i], err = exporter.New(x); err != nil {
			t.Fatal(err)
		}
	}
	byEnd := func(rs []flow.Record) []flow.Record {
		slices.SortStableFunc(rs, func(a, b flow.Record) int { return int(a.End - b.End) })
		return rs
	}
	queues := [2][]flow.Record{byEnd(append(before, after...)), byEnd(biflows)}
	changed := false
	for end := flow.TimeOf(start.Add(25 * time.Minute)); now < end; now += 10_000 {
		if !changed && now > flow.TimeOf(start) {
			changed = true
			bring(start.Add(time.Second), false)
		}
		for i := range queues {
			n := 0
			for n < len(queues[i]) && queues[i][n].End <= now {
				n++
			}
			_, err := devices[i].Export(now, queues[i][:n], func(b []byte) error {
				d := ingest.Datagram{Exporter: flow.AddrFrom4(0x7f000002 + uint32(i)), Port: 5000, Received: now, Payload: b}
				if spool.Append([]ingest.Datagram{d}) != 1 {
					return errors.New("the spool refused a datagram")
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			queues[i] = queues[i][n:]
		}
		if err := spool.Tick(now); err != nil {
			t.Fatal(err)
		}
		if now/10_000%9 == 0 {
			if err := spool.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := spool.Close(); err != nil {
		t.Fatal(err)
	}
	return data
}

// revive makes a service on a data directory, as a new process would, with store
// for ClickHouse and outbox. It does not listen.
func revive(t *testing.T, data string, store *recorder) *service {
	t.Helper()
	cfg := defaultConfig()
	cfg.Data, cfg.Policy.Dir = data, filepath.Join(data, "no-policy-folder")
	s, err := newService(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if s.spool, err = ingest.OpenSpool(filepath.Join(data, "spool"), cfg.Ingest.Spool, ingest.SpoolOptions{Clock: wallClock}); err != nil {
		t.Fatal(err)
	}
	if err := s.openPipeline(); err != nil {
		t.Fatal(err)
	}
	s.pipe.store, s.pipe.onFlow, store.names = store, store.flow(s.names), s.names
	store.mu.Lock()
	store.lines = nil // what the last process held is gone with it
	store.mu.Unlock()
	return s
}

// live works through the spool until its end, or the crash.
func live(s *service) error {
	defer s.spool.Close()
	if err := s.spool.Stop(); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(context.Background())
	g.Go(func() error { defer close(s.pipe.out); return s.consume(ctx) })
	g.Go(func() error { return s.pipe.runStore(ctx, s.saved) })
	return g.Wait()
}

// TestRestarts: whatever is cut off where, a re-read from the last checkpoint gives
// the same rows under the same tokens, the same contributions and the same events
// (DESIGN invariants 2, 3, 6).
func TestRestarts(t *testing.T) {
	pristine := spooled(t)
	whole := newRecorder(t)
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(pristine)); err != nil {
		t.Fatal(err)
	}
	s := revive(t, dir, whole)
	var held uint64
	inner := s.pipe.onFlow
	s.pipe.onFlow = func(b *flow.Batch) error { // between two steps of the left side
		s.pipe.pairer.Held(func(_ flow.Addr, n uint64) { held = max(held, n) })
		return inner(b)
	}
	if err := live(s); err != nil {
		t.Fatal(err)
	}
	ledger := s.ledger()
	if err := ledger.Check(); err != nil {
		t.Fatal(err)
	}
	whole.closeEdges(s.pipe)
	total := ledger.Total()
	parked := total.SetsParked
	t.Logf("%d datagrams, %d records in %d inserts, %d events; %d sets were parked, %d records waiting for their other half",
		total.Datagrams.Received, total.Records.Decoded, len(whole.rowsBy), len(whole.events), parked, held)
	types := map[string]bool{}
	for _, e := range whole.events {
		var f flow.Finding
		if err := json.Unmarshal([]byte(e), &f); err != nil {
			t.Fatal(err)
		}
		types[f.Type] = true
	}
	for _, want := range []string{flow.FindingExpired, flow.FindingOutOfScope, flow.FindingOutlived, flow.FindingDenied} {
		if !types[want] {
			t.Errorf("no %s in the traffic; the test would not show that one survives", want)
		}
	}
	if parked == 0 || held == 0 || len(whole.rowsBy) < 40 || s.history.Latest() == nil || len(s.history.Intervals()) != 2 {
		t.Fatalf("the traffic lacks something: %d parked, %d waiting, %d inserts, %d versions", parked, held, len(whole.rowsBy), len(s.history.Intervals()))
	}

	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("POSTERN_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("repeat with POSTERN_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	lives := 0
	for round := range 4 {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(pristine)); err != nil {
			t.Fatal(err)
		}
		got := newRecorder(t)
		for {
			lives++
			s := revive(t, dir, got)
			var left atomic.Int64
			left.Store(1 + rng.Int64N(int64(60*(round+1))))
			got.crash = func() bool { return left.Add(-1) == 0 }
			err := live(s)
			if err == nil {
				if l := s.ledger(); !cmp.Equal(l, ledger) {
					t.Errorf("the ledger is another after crashes:\n%s", cmp.Diff(ledger, l))
				}
				got.crash = func() bool { return false }
				got.closeEdges(s.pipe)
				break
			}
			if !errors.Is(err, errCrash) {
				t.Fatal(err)
			}
			if rng.IntN(3) == 0 { // killed after the checkpoint and before the segments were removed
				segments, err := filepath.Glob(filepath.Join(pristine, "spool", "*"))
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range segments {
					to := filepath.Join(dir, "spool", filepath.Base(name))
					if _, err := os.Stat(to); err == nil {
						continue
					}
					if err := copyFile(name, to); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		for what, pair := range map[string][2]any{
			"rows": {whole.rowsBy, got.rowsBy}, "contributions": {whole.contribs, got.contribs}, "events": {whole.events, got.events},
			"edges": {whole.edgesBy, got.edgesBy}, "roll-ups": {whole.rolledUp, got.rolledUp},
		} {
			if diff := cmp.Diff(pair[0], pair[1]); diff != "" {
				t.Errorf("other %s after crashes (−whole +crashed):\n%.4000s", what, diff)
			}
		}
		if got.repeats == 0 && round == 0 {
			t.Error("no insert was ever repeated; the crashes hit nothing")
		}
	}
	t.Logf("%d lives", lives)
}

func copyFile(from, to string) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, raw, 0o600)
}

// TestLedgerWhileFlowing takes stock again and again while datagrams come in and a
// slow store falls behind: the sums close at every moment.
func TestLedgerWhileFlowing(t *testing.T) {
	data := t.TempDir()
	if err := os.CopyFS(data, os.DirFS(spooled(t))); err != nil {
		t.Fatal(err)
	}
	store := newRecorder(t)
	store.slow = time.Millisecond
	s := revive(t, data, store)
	defer s.spool.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.spool.Run(ctx) })
	g.Go(func() error { defer close(s.pipe.out); return s.consume(ctx) })
	g.Go(func() error { return s.pipe.runStore(ctx, s.saved) })

	x, err := exporter.New(exporter.Config{Protocol: flow.SourceIPFIX, Domain: 3, TemplatePackets: 9, HoldTemplates: 4})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			c := newCompany(3)
			c.everyday()
			records, _ := c.records(time.Now().Add(-time.Second))
			for i := 0; i+50 < len(records); i += 50 {
				_, err := x.Export(wallClock(), records[i:i+50], func(b []byte) error {
					s.spool.Append([]ingest.Datagram{{Exporter: flow.AddrFrom4(0x7f000009), Received: wallClock(), Payload: b}})
					return nil
				})
				if err != nil {
					return err
				}
				// Refused at the socket, and garbage that reaches the decoder.
				s.spool.Refuse(flow.AddrFrom4(0x7f000008), flow.RejectExporter, 2)
				s.spool.Append([]ingest.Datagram{{Exporter: flow.AddrFrom4(0x7f000007), Received: wallClock(), Payload: []byte{0, 9, 255, 255}}})
				if err := s.spool.Tick(wallClock()); err != nil {
					return err
				}
				if i%500 == 0 {
					if err := s.spool.Flush(); err != nil {
						return err
					}
				}
			}
			return s.spool.Flush()
		}()
	}()
	taken, inFlight, queued, busy := 0, uint64(0), uint64(0), true
	for deadline := time.Now().Add(60 * time.Second); ; taken++ {
		l := s.ledger()
		if err := l.Check(); err != nil {
			t.Fatalf("after %d times: %v", taken, err)
		}
		total := l.Total()
		inFlight, queued = max(inFlight, total.Records.InFlight), max(queued, total.Datagrams.Queued)
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			busy = false
		default:
		}
		if !busy && total.Datagrams.Queued == 0 && total.Datagrams.Rejected[flow.RejectExporter] > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("did not settle: %+v", total)
		}
	}
	t.Logf("stock was taken %d times; at most %d records in flight, %d datagrams queued", taken, inFlight, queued)
	if inFlight == 0 || queued == 0 {
		t.Error("nothing was ever on its way; the test shows nothing")
	}
	if err := s.spool.Stop(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// TestLedgerShowsLoss: a stage that drops something silently makes the sum fail.
func TestLedgerShowsLoss(t *testing.T) {
	pristine := spooled(t)
	for name, lossy := range map[string]func(p *pipeline, seg *ingest.Segment) error{
		"nothing": feedSegment(-1, func(*pipeline) {}),
		// Between the spool and the decoder.
		"datagram": feedSegment(2, func(*pipeline) {}),
		// Between the decoder and judging.
		"record": feedSegment(-1, func(p *pipeline) {
			if len(p.decoded.Records) > 0 {
				p.decoded.Drop()
			}
		}),
		// Between judging and the store.
		"block": feedSegment(-1, func(p *pipeline) {
			if p.block != nil && p.block.rows > 0 {
				clear(p.block.exporters)
			}
		}),
	} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			if err := os.CopyFS(data, os.DirFS(pristine)); err != nil {
				t.Fatal(err)
			}
			s := revive(t, data, newRecorder(t))
			defer s.spool.Close()
			if err := s.spool.Stop(); err != nil {
				t.Fatal(err)
			}
			stored := make(chan error, 1)
			go func() { stored <- s.pipe.runStore(t.Context(), s.saved) }()
			for {
				seg, err := s.spool.Next(t.Context())
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				s.takeIn(seg)
				s.pipe.begin(unit{Insert: sink.Insert{Token: fmt.Sprint(seg.Seq())}})
				for e := range seg.Entries() {
					if e.Kind == ingest.EntryPolicy {
						if err := s.activate(t.Context(), e.Payload); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := lossy(s.pipe, seg); err != nil {
					t.Fatal(err)
				}
			}
			close(s.pipe.out)
			if err := <-stored; err != nil {
				t.Fatal(err)
			}
			err := s.ledger().Check()
			if name == "nothing" {
				if err != nil {
					t.Errorf("nothing was lost: %v", err)
				}
				return
			}
			what := map[string]string{"datagram": "datagrams do not add up", "record": "records do not add up", "block": "records do not add up"}[name]
			if err == nil || !strings.Contains(err.Error(), what) {
				t.Errorf("a lost %s does not show: %v", name, err)
			}
		})
	}
}

// feedSegment works through a segment, skipping its datagram number skip and
// calling lose after each.
func feedSegment(skip int, lose func(*pipeline)) func(*pipeline, *ingest.Segment) error {
	return func(p *pipeline, seg *ingest.Segment) error {
		n := 0
		for e := range seg.Entries() {
			switch e.Kind {
			case ingest.EntryDatagram:
				if n++; n-1 == skip {
					continue
				}
				d := e.Datagram()
				if err := p.datagram(context.Background(), &d); err != nil {
					return err
				}
				lose(p)
			case ingest.EntryTick:
				if err := p.tick(context.Background(), e.Time); err != nil {
					return err
				}
				lose(p)
			}
		}
		return p.end(context.Background(), nil, nil, nil)
	}
}

func TestCheckpoints(t *testing.T) {
	c := checkpoints{filepath.Join(t.TempDir(), "state")}
	if cp, err := c.load(); cp != nil || err != nil {
		t.Fatalf("a checkpoint out of nothing: %v, %v", cp, err)
	}
	first := &checkpoint{Spool: "s", Segment: 3, Ledger: ledgerTotals{flow.AddrFrom4(1): {Records: flow.RecordAccount{Written: 7}}},
		state: map[string][]byte{"decoder": []byte("templates"), "pairer": []byte("one")}}
	if err := c.save(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	unchanged := filepath.Join(c.dir, first.Sections["decoder"])
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	if err := os.Chtimes(unchanged, old, old); err != nil {
		t.Fatal(err)
	}
	second := &checkpoint{Spool: "s", Segment: 4, Ledger: first.Ledger, state: map[string][]byte{"decoder": []byte("templates"), "pairer": []byte("two")}}
	if err := c.save(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(unchanged); err != nil || !st.ModTime().Equal(old) {
		t.Errorf("a section that did not change was written again: %v, %v", st.ModTime(), err)
	}
	if _, err := os.Stat(filepath.Join(c.dir, first.Sections["pairer"])); err == nil {
		t.Error("a section that nobody names any more was kept")
	}
	same := func(want *checkpoint) {
		t.Helper()
		got, err := c.load()
		if err != nil {
			t.Fatal(err)
		}
		if got.Segment != want.Segment || !maps.EqualFunc(got.state, want.state, slices.Equal) || !cmp.Equal(got.Ledger, want.Ledger) {
			t.Errorf("saved %+v, loaded %+v", want, got)
		}
	}
	same(second)

	t.Run("crash between section and manifest", func(t *testing.T) {
		b := []byte("three")
		if err := writeDurably(filepath.Join(c.dir, sectionFile("pairer", b)), b); err != nil {
			t.Fatal(err)
		}
		same(second)
		third := &checkpoint{Spool: "s", Segment: 5, Ledger: first.Ledger, state: map[string][]byte{"decoder": []byte("templates"), "pairer": b}}
		if err := c.save(t.Context(), third); err != nil {
			t.Fatal(err)
		}
		same(third)
		second = third
	})
	for name, spoil := range map[string]func([]byte) []byte{
		"torn":    func(b []byte) []byte { return b[:len(b)-1] },
		"changed": func(b []byte) []byte { b[0] ^= 1; return b },
		"empty":   func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(c.dir, second.Sections["decoder"])
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, spoil(slices.Clone(whole)), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := c.load(); err == nil || !strings.Contains(err.Error(), "checkpoint section decoder") {
				t.Errorf("loading gave %v", err)
			}
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			same(second)
		})
	}
	t.Run("other version", func(t *testing.T) {
		raw, err := os.ReadFile(c.manifest())
		if err != nil {
			t.Fatal(err)
		}
		raw = []byte(strings.Replace(string(raw), `"version":1`, `"version":99`, 1))
		if err := os.WriteFile(c.manifest(), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := c.load(); err == nil || !strings.Contains(err.Error(), "version 99") {
			t.Errorf("loading gave %v", err)
		}
	})
}
