package identity

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/postern/postern/flow"
)

// reader reads everything that a polled source knows now. It owns neither Source nor
// Kind nor Known of a fact. A fact without Since began when it was first seen and is
// stamped by [polled]; one with Since passes through as it is.
//
// An error means that nothing was learned: not even that what is missing is gone. A
// *partialError beside facts means that the read was whole but for what it names.
// One made by permanent ends the source if it is that of the first read.
type reader interface {
	read(ctx context.Context) ([]flow.Fact, error)
}

// watcher is a reader that notices changes between polls. The channel has room for one
// notice and is closed by nobody; it ends with ctx.
type watcher interface {
	watch(ctx context.Context) <-chan struct{}
}

// partialError is that some entries of a whole read made no sense. What such an entry
// said before stays as it was, until it can be read again or is gone.
type partialError struct {
	entries  int // how many
	addrs    map[flow.Addr]bool
	subjects map[string]bool
	// all is set where an entry does not even say what it is about; then nothing that is
	// missing counts as gone, unless other entries speak of the same address or subject.
	all bool
	err error // the first few of them
}

func (e *partialError) Error() string {
	return fmt.Sprintf("%d entries could not be read: %v", e.entries, e.err)
}

func (e *partialError) Unwrap() error { return e.err }

// keeps says whether f, which is missing, stays. spoken is what the other entries are about.
func (e *partialError) keeps(f *flow.Fact, spoken map[factIdentity]bool) bool {
	return e != nil && (e.all && !spoken[aboutOf(f)] || e.addrs[f.Addr] && !f.Addr.IsZero() || e.subjects[f.Subject] && f.Subject != "")
}

// aboutOf is the address or subject of a fact alone.
func aboutOf(f *flow.Fact) factIdentity { return factIdentity{addr: f.Addr, subject: f.Subject} }

// maxPartialErrors is how many bad entries are told one by one; the others are counted.
const maxPartialErrors = 8

// add notes an entry that could not be read; about is what it is about, zero if that
// is what could not be read.
func (e *partialError) add(err error, addrs []flow.Addr, subject string) {
	e.note(err)
	if len(addrs) == 0 && subject == "" {
		e.all = true
	}
	for _, a := range addrs {
		if e.addrs == nil {
			e.addrs = map[flow.Addr]bool{}
		}
		e.addrs[a] = true
	}
	if subject != "" {
		if e.subjects == nil {
			e.subjects = map[string]bool{}
		}
		e.subjects[subject] = true
	}
}

// note counts an entry that keeps nothing of what was said before.
func (e *partialError) note(err error) {
	if e.entries++; e.entries <= maxPartialErrors {
		e.err = errors.Join(e.err, err)
	}
}

// orNil is e as an error, nil if nothing was noted.
func (e *partialError) orNil() error {
	if e.entries == 0 {
		return nil
	}
	return e
}

// permanentError is one that trying again does not mend.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

// permanent marks err as one that ends the source if its first read gives it.
func permanent(err error) error { return permanentError{err} }

const (
	// maxFacts bounds what one source may say at once: five times the 200 thousand
	// addresses that enrich is measured with, some 300 MB. A read beyond it fails.
	maxFacts = 1 << 20
	// firstRetry is how long after a failed read the next one comes; it doubles up to
	// the time between polls.
	firstRetry = time.Second
)

// polled is a source that is read whole from time to time. It compares each read with
// what it told before and tells only differences. See newPolled for the borders.
type polled struct {
	name       string
	kind       flow.FactKind
	every      time.Duration
	staleAfter time.Duration
	reader     reader
	state      stateFiles
	clock      func() flow.Time
	log        *slog.Logger
	met        *sourceMetrics

	held map[factKey]flow.Fact // what was told and has not ended
	last flow.Time             // when the last whole read began; 0 if there was none
}

// newPolled makes a source of a reader.
//
// A read sees each entry at some moment between its begin and its end. So what is new
// in it began by the end of the read, at the earliest at the begin of the one before:
// that is its Since and SinceSlack; and the same with Until of what is gone. What is
// there at the very first read holds from then on, without slack: how long it had been
// so before is not known, and is not claimed. The heartbeat is of the read's begin. An
// entry whose content changed is one that is gone and one that is new.
//
// Where a source says two things of one address at once, both are kept, told apart by
// their Session.
//
// stateDir is where it keeps what it told, so that a restart tells differences only;
// without one it begins anew each time, and what had gone in between stays open.
func newPolled(name string, kind flow.FactKind, every, staleAfter time.Duration, r reader, stateDir string, clock func() flow.Time, log *slog.Logger, met *metrics) *polled {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m := met.source(name)
	m.staleAfter.Set(staleAfter.Seconds())
	return &polled{
		name: name, kind: kind, every: every, staleAfter: staleAfter, reader: r,
		state: stateFiles{dir: stateDir, name: name}, clock: clock,
		log: log.With("source", name), met: m, held: map[factKey]flow.Fact{},
	}
}

// Name implements [Source].
func (p *polled) Name() string { return p.name }

// Run implements [Source].
func (p *polled) Run(ctx context.Context, tell Tell) error {
	if err := p.resume(ctx, tell); err != nil {
		return p.ended(ctx, err)
	}
	var changed <-chan struct{}
	if w, ok := p.reader.(watcher); ok {
		changed = w.watch(ctx)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for failures, first := 0, true; ; first = false {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-changed:
		}
		err := p.poll(ctx, tell)
		switch {
		case err == nil:
			failures = 0
			timer.Reset(p.every)
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		}
		if stop, ok := errors.AsType[permanentError](err); ok && first {
			return fmt.Errorf("identity source %s: %w", p.name, stop.error)
		}
		if stop, ok := errors.AsType[*stateError](err); ok {
			return p.ended(ctx, stop)
		}
		wait := retryDelay(failures, p.every)
		failures++
		p.met.failures.Inc()
		p.log.Warn("identity source could not be read", "error", err.Error(), "again_in", wait.String())
		timer.Reset(wait)
	}
}

func (p *polled) ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("identity source %s: %w", p.name, err)
}

// retryDelay is 1 s doubling with each failure up to the poll's own period, cut by a
// random part of up to half so that many instances do not ask in step.
func retryDelay(failures int, every time.Duration) time.Duration {
	d := min(firstRetry<<min(failures, 30), every)
	return d - rand.N(d/2+1)
}

// resume loads what was told before. What was being told when the process ended is told
// again first, just as it was.
func (p *polled) resume(ctx context.Context, tell Tell) error {
	var pending *pendingTell
	var err error
	if p.held, p.last, pending, err = p.state.load(); err != nil {
		return err
	}
	if pending != nil {
		if err := p.commit(ctx, tell, pending); err != nil {
			return err
		}
	}
	p.met.facts.Set(float64(len(p.held)))
	return nil
}

// poll reads once and tells the difference.
func (p *polled) poll(ctx context.Context, tell Tell) error {
	begin := p.clock()
	p.met.reads.Inc()
	facts, err := p.reader.read(ctx)
	partial, isPartial := errors.AsType[*partialError](err)
	if err != nil && !isPartial {
		return err
	}
	if len(facts) > maxFacts {
		return fmt.Errorf("it says %d things at once; %d is the most that is taken in, narrow what is asked for", len(facts), maxFacts)
	}
	p.met.badEntries.Set(0)
	if isPartial {
		p.met.badEntries.Set(float64(partial.entries))
		p.log.Warn("entries of an identity source could not be read; what they said before stays",
			"entries", partial.entries, "error", partial.err.Error())
	}
	end := max(p.clock(), begin)
	change := p.diff(facts, partial, end)
	change.Last = begin
	if err := p.commit(ctx, tell, change); err != nil {
		return err
	}
	p.met.lastSuccess.Set(float64(begin) / 1000)
	p.met.facts.Set(float64(len(p.held)))
	return nil
}

// diff is what to tell so that whoever was told so far knows what facts say.
func (p *polled) diff(facts []flow.Fact, partial *partialError, now flow.Time) *pendingTell {
	var slack time.Duration
	if p.last != 0 {
		slack = max(now.Sub(p.last), 0)
	}
	change := &pendingTell{}
	seen := make(map[factKey]bool, len(facts))
	var spoken map[factIdentity]bool
	if partial != nil {
		spoken = make(map[factIdentity]bool, len(facts))
	}
	var added []heldFact
	for i := range facts {
		f := facts[i]
		f.Source = p.name
		if f.Kind == 0 {
			f.Kind = p.kind
		}
		f.Addr = f.Addr.Canonical()
		key := keyOf(&f)
		if seen[key] {
			continue // said twice
		}
		seen[key] = true
		if partial != nil {
			spoken[aboutOf(&f)] = true
		}
		before, known := p.held[key]
		switch {
		case !known:
			if f.Since == 0 {
				f.Since, f.SinceSlack = now, slack
			}
			added = append(added, heldFact{key, f})
		case f.Until != before.Until || f.UntilSlack != before.UntilSlack:
			before.Until, before.UntilSlack = f.Until, f.UntilSlack
			added = append(added, heldFact{key, before})
		}
	}
	var gone []heldFact
	for key, f := range p.held {
		if !seen[key] && !partial.keeps(&f, spoken) {
			gone = append(gone, heldFact{key, f})
		}
	}
	if len(added) == 0 && len(gone) == 0 {
		return change
	}

	// What begins must not share its identity with what goes on.
	taken := make(map[factIdentity]factKey, len(p.held)+len(added))
	for key, f := range p.held {
		if seen[key] || partial.keeps(&f, spoken) {
			taken[identityOf(&f)] = key
		}
	}
	slices.SortFunc(added, compareHeld)
	for i := range added {
		a := &added[i]
		if other, clash := taken[identityOf(&a.Fact)]; clash && other != a.Key {
			a.Fact.Session = strings.TrimPrefix(a.Fact.Session+"/", "/") + fmt.Sprintf("%x", a.Key[:6])
		}
		taken[identityOf(&a.Fact)] = a.Key
	}
	slices.SortFunc(gone, compareHeld)
	for i := range gone {
		g := &gone[i]
		change.Gone = append(change.Gone, g.Key)
		if _, replaced := taken[identityOf(&g.Fact)]; replaced {
			continue // the same Since of its own with another content: the later one counts
		}
		if g.Fact.Until != 0 && g.Fact.Until <= now {
			continue // it had ended, and is no longer worth mentioning there
		}
		g.Fact.Until, g.Fact.UntilSlack = max(now, g.Fact.Since), slack
		change.Ended = append(change.Ended, g.Fact)
	}
	change.Held = added
	return change
}

// commit tells a change and remembers it. The change is written down before it is told,
// so that after a crash the same is told again and nothing else.
func (p *polled) commit(ctx context.Context, tell Tell, c *pendingTell) error {
	differs := len(c.Held)+len(c.Gone) > 0
	if differs {
		if err := p.state.savePending(p.last, c); err != nil {
			return err
		}
	}
	facts := make([]flow.Fact, 0, len(c.Ended)+len(c.Held))
	facts = append(facts, c.Ended...)
	for _, h := range c.Held {
		facts = append(facts, h.Fact)
	}
	beat := flow.Heartbeat{Source: p.name, At: c.Last, StaleAfter: p.staleAfter}
	if err := tellUntil(ctx, tell, facts, beat, p.every, p.log); err != nil {
		return err
	}
	p.met.told.Add(float64(len(facts)))
	for _, key := range c.Gone {
		delete(p.held, key)
	}
	for _, h := range c.Held {
		p.held[h.Key] = h.Fact
	}
	p.last = c.Last
	if differs {
		if err := p.state.saveFacts(p.held); err != nil {
			return err
		}
	}
	return p.state.savePending(p.last, nil)
}

// tellUntil tells until it was taken in or ctx ends: what was read is not given up
// because the place it goes to is away for a while.
func tellUntil(ctx context.Context, tell Tell, facts []flow.Fact, beat flow.Heartbeat, longest time.Duration, log *slog.Logger) error {
	for failures := 0; ; failures++ {
		err := tell(ctx, facts, beat)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		wait := retryDelay(failures, min(longest, time.Minute))
		log.Warn("facts could not be stored", "facts", len(facts), "error", err.Error(), "again_in", wait.String())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// factKey is what makes an entry of one read the same as an entry of another: all it
// says but how long.
type factKey [16]byte

// MarshalText implements encoding.TextMarshaler.
func (k factKey) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%x", k[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *factKey) UnmarshalText(b []byte) error {
	var v []byte
	if n, err := fmt.Sscanf(string(b), "%x", &v); err != nil || n != 1 || len(v) != len(k) {
		return fmt.Errorf("%q is no key of a fact", b)
	}
	copy(k[:], v)
	return nil
}

func keyOf(f *flow.Fact) factKey {
	b := make([]byte, 0, 256)
	ip := f.Addr.As16()
	b = append(b, ip[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(f.Since))
	b = append(b, byte(f.Kind), f.Confidence, 0)
	if f.Disabled {
		b[len(b)-1] = 1
	}
	for _, s := range [...]string{f.Subject, f.Session, f.Workload, f.Device, f.User, f.Account, f.Posture} {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	for _, s := range f.Groups {
		b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
	}
	sum := sha256.Sum256(b)
	return factKey(sum[:16])
}

// factIdentity is what a fact is about, within one source.
type factIdentity struct {
	addr             flow.Addr
	subject, session string
	since            flow.Time
}

func identityOf(f *flow.Fact) factIdentity {
	return factIdentity{f.Addr, f.Subject, f.Session, f.Since}
}

type heldFact struct {
	Key  factKey   `json:"key"`
	Fact flow.Fact `json:"fact"`
}

func compareHeld(a, b heldFact) int {
	return cmp.Or(a.Fact.Addr.Compare(b.Fact.Addr), strings.Compare(a.Fact.Subject, b.Fact.Subject), cmp.Compare(a.Fact.Since, b.Fact.Since),
		strings.Compare(a.Fact.Session, b.Fact.Session), slices.Compare(a.Key[:], b.Key[:]))
}

// pendingTell is one step of telling: what it tells and what is held after it.
type pendingTell struct {
	Last  flow.Time   `json:"last"` // when the read began
	Ended []flow.Fact `json:"ended,omitempty"`
	Held  []heldFact  `json:"held,omitempty"` // new, or with another end
	Gone  []factKey   `json:"gone,omitempty"`
}

// stateFiles is what a source keeps on disk: NAME.facts.json, which changes with the
// facts, and NAME.read.json, which is small and changes with each read. Without a
// folder it keeps nothing.
type stateFiles struct{ dir, name string }

// stateError is that the state cannot be kept or read back; trying again is of no use.
type stateError struct{ err error }

func (e *stateError) Error() string { return e.err.Error() }
func (e *stateError) Unwrap() error { return e.err }

// stateVersion changes with the meaning of what the files hold.
const stateVersion = 1

type factsFile struct {
	Version int        `json:"version"`
	Facts   []heldFact `json:"facts"`
}

type readFile struct {
	Version int          `json:"version"`
	Last    flow.Time    `json:"last"`
	Pending *pendingTell `json:"pending,omitempty"`
}

func (s stateFiles) path(what string) string {
	return filepath.Join(s.dir, s.name+"."+what+".json")
}

func (s stateFiles) load() (held map[factKey]flow.Fact, last flow.Time, pending *pendingTell, err error) {
	held = map[factKey]flow.Fact{}
	if s.dir == "" {
		return held, 0, nil, nil
	}
	var facts factsFile
	var read readFile
	if err := loadState(s.path("facts"), &facts, &facts.Version); err != nil {
		return nil, 0, nil, err
	}
	if err := loadState(s.path("read"), &read, &read.Version); err != nil {
		return nil, 0, nil, err
	}
	for _, h := range facts.Facts {
		held[h.Key] = h.Fact
	}
	return held, read.Last, read.Pending, nil
}

func (s stateFiles) saveFacts(held map[factKey]flow.Fact) error {
	if s.dir == "" {
		return nil
	}
	file := factsFile{Version: stateVersion, Facts: make([]heldFact, 0, len(held))}
	for key, f := range held {
		file.Facts = append(file.Facts, heldFact{key, f})
	}
	slices.SortFunc(file.Facts, compareHeld)
	return saveState(s.path("facts"), &file)
}

func (s stateFiles) savePending(last flow.Time, pending *pendingTell) error {
	if s.dir == "" {
		return nil
	}
	return saveState(s.path("read"), &readFile{stateVersion, last, pending})
}

// loadState reads a file of state; one that is not there leaves into as it is.
func loadState(path string, into any, version *int) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err == nil && *version != stateVersion {
		err = fmt.Errorf("it is of version %d, this program knows version %d", *version, stateVersion)
	}
	if err != nil {
		return &stateError{fmt.Errorf("its state %s cannot be read: %w; remove the file to begin anew", path, err)}
	}
	return nil
}

// saveState replaces a file of state as a whole: a crash leaves the old or the new one.
func saveState(path string, v any) error {
	fail := func(err error) error { return &stateError{fmt.Errorf("its state cannot be kept: %w", err)} }
	b, err := json.Marshal(v)
	if err != nil {
		return fail(err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*.tmp")
	if err != nil {
		return fail(err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fail(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fail(err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fail(err)
	}
	return nil
}
