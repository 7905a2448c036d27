package identity

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/agent"
)

// Sessions is a source that is told of sessions, a log's events at a time, and tells facts:
// who was at an address from when to when. See docs/identity-sessions.md.
//
// What it tells depends on the events alone and, but for the corners that a log itself leaves
// open, not on their order. Taking the same events again changes nothing.
//
// What it knows is written to a journal before it is told, so a restart goes on exactly where
// the last one ended. All methods may be called from any goroutine.
type Sessions struct {
	cfg    SessionsConfig
	format agent.EventFormat
	dir    string
	clock  func() flow.Time
	log    *slog.Logger
	met    *sessionMetrics

	ready  chan struct{} // closed when Run has loaded the state
	failed chan error    // has room for one: why nothing can be taken any more

	mu      sync.Mutex
	tell    Tell
	broken  error
	state   *sessionState
	seq     uint64                     // of the last line of the journal
	told    uint64                     // of the last line whose facts were told
	pending map[factIdentity]flow.Fact // of the lines behind it
	beat    flow.Time                  // the newest event
	journal journal
	saved   int64 // how large the state was when it was saved last
}

const (
	// sessionsChunk bounds the events of a line of the journal.
	sessionsChunk = 1024
	// journalBytes is how long a journal may be before the state is saved whole, unless
	// that is larger itself.
	journalBytes = 4 << 20
)

// newSessions makes a source of a log of sessions.
func newSessions(cfg SessionsConfig, stateDir string, clock func() flow.Time, log *slog.Logger, met *metrics) (*Sessions, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	format, err := agent.EventFormatOf(cfg.Format)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m := met.sessions(cfg.Name)
	m.staleAfter.Set(cfg.StaleAfter.Seconds())
	return &Sessions{cfg: cfg, format: format, dir: stateDir, clock: clock, log: log.With("source", cfg.Name), met: m,
		ready: make(chan struct{}), failed: make(chan error, 1), journal: journal{path: filepath.Join(stateDir, cfg.Name+".sessions.journal")}}, nil
}

// Name implements [Source].
func (s *Sessions) Name() string { return s.cfg.Name }

// NewDecoder makes a decoder of the log's lines; maxItem is how long one may be.
func (s *Sessions) NewDecoder(maxItem int) (*agent.EventDecoder, error) {
	return agent.NewEventDecoder(s.cfg.Format, s.cfg.EventConfig, maxItem)
}

// Run implements [Source]: it loads the state, tells what had not been told, and lets events
// be taken until ctx ends.
func (s *Sessions) Run(ctx context.Context, tell Tell) error {
	fail := func(err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("identity source %s: %w", s.cfg.Name, err)
	}
	s.mu.Lock()
	err := s.load()
	if err == nil {
		s.tell = tell
		// The configuration may have changed since: what follows from it is told too.
		err = s.commit(ctx, &sessionsLine{}, s.state.all())
	}
	s.mu.Unlock()
	if err != nil {
		return fail(err)
	}
	close(s.ready)
	defer s.close()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-s.failed:
		return fail(err)
	}
}

// close saves the state and lets nothing be taken any more.
func (s *Sessions) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == nil {
		if err := s.save(); err != nil {
			s.log.Error("the state of a source could not be saved; its journal is there", "error", err.Error())
		}
		s.broken = errors.New("the source has ended")
	}
	s.journal.close()
}

// Take takes in events and returns when what follows from them is durable. It waits for Run.
// Events that were taken before change nothing, so after an error they may be brought again.
func (s *Sessions) Take(ctx context.Context, events []agent.SessionEvent) error {
	for chunk := range slices.Chunk(events, sessionsChunk) {
		if err := s.do(ctx, func() error {
			dirty := dirtySessions{}
			for i := range chunk {
				s.met.events[s.state.apply(&chunk[i], dirty)].Inc()
				s.beat = max(s.beat, min(chunk[i].At, s.clock()))
			}
			return s.commit(ctx, &sessionsLine{Events: chunk}, dirty)
		}); err != nil {
			return err
		}
	}
	return nil
}

// Learn takes in facts of other sources, in which those that the configuration lists as
// hosts say which device or workload is at which address: who is logged on at a host is then
// at its addresses. Facts that say nothing of the kind cost nothing. It waits for Run.
func (s *Sessions) Learn(ctx context.Context, facts []flow.Fact) error {
	var learned []flow.Fact
	for i := range facts {
		if f := &facts[i]; slices.Contains(s.cfg.Hosts, f.Source) && !f.Addr.IsZero() && (f.Device != "" || f.Workload != "") {
			learned = append(learned, hostFact(f))
		}
	}
	for chunk := range slices.Chunk(learned, sessionsChunk) {
		if err := s.do(ctx, func() error {
			dirty := dirtySessions{}
			fresh := slices.DeleteFunc(slices.Clone(chunk), func(f flow.Fact) bool { return !s.state.hosts.learn(&f, s.met, s.state, dirty) })
			if len(fresh) == 0 {
				return nil
			}
			return s.commit(ctx, &sessionsLine{Learned: fresh}, dirty)
		}); err != nil {
			return err
		}
	}
	return nil
}

// do runs a step with the state to itself, when there is one.
func (s *Sessions) do(ctx context.Context, step func() error) error {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return fmt.Errorf("identity source %s does not run: %w", s.cfg.Name, ctx.Err())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return fmt.Errorf("identity source %s: %w", s.cfg.Name, s.broken)
	}
	return step()
}

// commit writes down what was taken and what follows from it, and tells that.
func (s *Sessions) commit(ctx context.Context, line *sessionsLine, dirty dirtySessions) error {
	line.Facts = s.state.changes(dirty)
	for i := range line.Facts {
		line.Facts[i].Source, line.Facts[i].Kind = s.cfg.Name, flow.FactSession
	}
	if len(line.Events)+len(line.Learned)+len(line.Facts) > 0 {
		if err := s.note(line); err != nil {
			// What is in memory is not what a restart would find.
			s.broken = err
			s.failed <- err
			return err
		}
	}
	for i := range line.Facts {
		s.pending[identityOf(&line.Facts[i])] = line.Facts[i]
	}
	facts := make([]flow.Fact, 0, len(s.pending))
	for _, f := range s.pending {
		facts = append(facts, f)
	}
	slices.SortFunc(facts, compareFacts)
	beat := flow.Heartbeat{}
	if s.beat > 0 {
		beat = flow.Heartbeat{Source: s.cfg.Name, At: s.beat, StaleAfter: s.cfg.StaleAfter}
	}
	if len(facts) > 0 || len(line.Events) > 0 && s.beat > 0 {
		if err := tellUntil(ctx, s.tell, facts, beat, time.Minute, s.log); err != nil {
			return err // they stay pending
		}
	}
	clear(s.pending)
	s.told = s.seq
	s.met.told.Add(float64(len(facts)))
	s.met.lastSuccess.Set(float64(s.beat) / 1000)
	s.met.facts.Set(float64(s.state.facts))
	s.met.open.Set(float64(s.state.count))
	if s.journal.size > max(journalBytes, s.saved) {
		if err := s.save(); err != nil {
			s.broken = err
			s.failed <- err
			return err
		}
	}
	return nil
}

func compareFacts(a, b flow.Fact) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Since, b.Since), strings.Compare(a.Session, b.Session))
}

// sessionsLine is a line of the journal: what was taken, and what it led to.
type sessionsLine struct {
	Seq     uint64               `json:"seq"`
	Told    uint64               `json:"told"` // the last line before this one whose facts were told
	Beat    flow.Time            `json:"beat,omitempty"`
	Events  []agent.SessionEvent `json:"events,omitempty"`
	Learned []flow.Fact          `json:"learned,omitempty"`
	Facts   []flow.Fact          `json:"facts,omitempty"`
}

// sessionsFile is the state as a whole.
type sessionsFile struct {
	Version int         `json:"version"`
	Seq     uint64      `json:"seq"`
	Told    uint64      `json:"told"`
	Beat    flow.Time   `json:"beat,omitempty"`
	Pending []flow.Fact `json:"pending,omitempty"`
	savedSessions
}

func (s *Sessions) statePath() string { return filepath.Join(s.dir, s.cfg.Name+".sessions.json") }

// load reads what was known. Lines of the journal are applied, and what they told is what
// they say they did: a configuration that changed since makes a difference to tell.
func (s *Sessions) load() error {
	s.state, s.pending = newSessionState(&s.cfg, s.format.Shared), map[factIdentity]flow.Fact{}
	if s.dir == "" {
		return nil
	}
	var file sessionsFile
	if err := loadState(s.statePath(), &file, &file.Version); err != nil {
		return err
	}
	s.state.restore(&file.savedSessions)
	s.seq, s.beat = file.Seq, file.Beat
	var lines []sessionsLine
	err := s.journal.read(func(text []byte) error {
		var line sessionsLine
		if err := json.Unmarshal(text, &line); err != nil || line.Seq <= s.seq { // saved with the state
			return err
		}
		s.seq, s.beat = line.Seq, max(s.beat, line.Beat)
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		return err
	}
	if s.told = file.Told; len(lines) > 0 {
		s.told = max(s.told, lines[len(lines)-1].Told)
	}
	if s.told < file.Seq {
		for _, f := range file.Pending {
			s.pending[identityOf(&f)] = f
		}
	}
	for i := range lines {
		line, touched := &lines[i], dirtySessions{}
		for k := range line.Events {
			s.state.apply(&line.Events[k], touched)
		}
		for k := range line.Learned {
			s.state.hosts.learn(&line.Learned[k], s.met, s.state, touched)
		}
		for k := range line.Facts {
			s.state.note(&line.Facts[k])
		}
		s.state.trim(slices.Collect(maps.Keys(touched)))
		if line.Seq > s.told {
			for _, f := range line.Facts {
				s.pending[identityOf(&f)] = f
			}
		}
	}
	return nil
}

// note writes a line to the journal, durably.
func (s *Sessions) note(line *sessionsLine) error {
	s.seq++
	line.Seq, line.Told, line.Beat = s.seq, s.told, s.beat
	if s.dir == "" {
		return nil
	}
	return s.journal.add(line)
}

// save keeps the state as a whole and begins a new journal. What ended long ago is forgotten.
func (s *Sessions) save() error {
	s.state.forget(s.beat)
	if s.dir == "" {
		return nil
	}
	file := sessionsFile{Version: stateVersion, Seq: s.seq, Told: s.told, Beat: s.beat, savedSessions: s.state.save()}
	for _, f := range s.pending {
		file.Pending = append(file.Pending, f)
	}
	slices.SortFunc(file.Pending, compareFacts)
	if err := saveState(s.statePath(), &file); err != nil {
		return err
	}
	if st, err := os.Stat(s.statePath()); err == nil {
		s.saved = st.Size()
	}
	return s.journal.clear()
}
