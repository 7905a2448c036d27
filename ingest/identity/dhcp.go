package identity

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/fsnotify/fsnotify"

	"github.com/postern/postern/flow"
)

// lease is what one entry of a DHCP server's record says.
type lease struct {
	addr   flow.Addr
	device string // the client's hardware address, else its DUID or client id
	host   string // cleaned
	begin  flow.Time
	until  flow.Time // 0: never ends
	// over says that the client does not hold the address any more: it gave it back, it
	// expired, it was declined. ended is when, 0 if the entry does not say.
	over  bool
	ended flow.Time
}

// holder is the last that was told of an address.
type holder struct {
	Fact  flow.Fact `json:"fact"`
	Heard flow.Time `json:"heard"` // when the server last heard of the client
	Over  bool      `json:"over,omitempty"`
}

// leaseTable is who holds which address, last of all.
type leaseTable map[flow.Addr]holder

// apply takes in the next entry and gives every holder that changes by it: the one
// before, which ends, and the new one. now is when the entry was read, and from how far
// back in time an end that the entry does not date can lie.
//
// A client that renews keeps its Since; so does one whose record shows only its last
// renewal, as long as the leases touch. Another client, another name or a gap is a new
// fact, and the one before ends where that begins, if it has not ended earlier.
func (t leaseTable) apply(l lease, now, from flow.Time, changed func(holder)) {
	h, known := t[l.addr]
	set := func(h holder) {
		t[l.addr] = h
		changed(h)
	}
	same := known && (h.Fact.Device == l.device || l.over && l.device == "")
	switch {
	case l.over && same:
		if h.Over {
			return
		}
		h.Over = true
		end, slack := l.ended, time.Duration(0)
		if end == 0 || end > now {
			end, slack = now, max(now.Sub(max(h.Heard, from)), 0)
		}
		if h.Fact.Until != 0 && h.Fact.Until <= end {
			t[l.addr] = h // it had expired before
			return
		}
		h.Fact.Until, h.Fact.UntilSlack = max(end, h.Fact.Since), slack
		set(h)
	case l.over && l.device == "":
		// Nothing is known of who had it.
	case !known || !same || h.Fact.Workload != l.host && !l.over || h.Over || h.Fact.Until != 0 && l.begin > h.Fact.Until:
		if known && h.endAt(l.begin) {
			changed(h)
		}
		n := holder{Heard: l.begin, Over: l.over, Fact: flow.Fact{Kind: flow.FactLease, Addr: l.addr, Since: l.begin, Until: l.until,
			Device: l.device, Workload: l.host}}
		if l.over {
			if n.Fact.Until = l.ended; l.ended == 0 || l.ended > now {
				n.Fact.Until, n.Fact.UntilSlack = now, max(now.Sub(max(l.begin, from)), 0)
			}
			n.Fact.Until = max(n.Fact.Until, n.Fact.Since)
		}
		set(n)
	default: // renewed
		h.Heard = max(h.Heard, l.begin)
		if h.Fact.Until == l.until {
			t[l.addr] = h
			return
		}
		h.Fact.Until, h.Fact.UntilSlack = l.until, 0
		set(h)
	}
}

// endAt ends h at a time at the latest and says whether that changed anything.
func (h *holder) endAt(at flow.Time) bool {
	at = max(at, h.Fact.Since)
	if h.Fact.Until != 0 && h.Fact.Until <= at {
		return false
	}
	if h.Fact.UntilSlack > 0 { // what was uncertain stays so up to the new end
		h.Fact.UntilSlack = max(h.Fact.UntilSlack-h.Fact.Until.Sub(at), 0)
	}
	h.Fact.Until, h.Over = at, true
	return true
}

// leases is what all DHCP sources share: the table, what a whole read changes in it, and
// how it outlives a restart.
type leases struct {
	name       string
	every      time.Duration // between heartbeats, and between polls
	staleAfter time.Duration
	stateDir   string
	clock      func() flow.Time
	log        *slog.Logger
	met        *sourceMetrics
	snapshots  bool // a read shows each lease as it is now, not how it came to be so

	table leaseTable
	last  flow.Time // until when everything was read
	saved flow.Time
	dirty bool // the table changed since it was saved
	// What changed since the table was saved is in a journal: a line is written before it
	// is told, so that a start after a crash tells it again just as it was.
	journal journal
	seq     uint64 // of the last line
	pending []flow.Fact
	// untold is set while the last line has not been told; it is then not saved away, so that
	// the next start tells it.
	untold bool
}

const (
	// saveLeasesEvery is how often the table as a whole is saved if it changed.
	saveLeasesEvery = 10 * time.Minute
	// forgetLeases is how long after its end a lease is kept.
	forgetLeases = 24 * time.Hour
	// maxHistory bounds the holders that one whole read may show: four an address.
	maxHistory = 4 * maxFacts
)

func newLeases(name string, every, staleAfter time.Duration, stateDir string, clock func() flow.Time, log *slog.Logger, met *metrics) leases {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m := met.source(name)
	m.staleAfter.Set(staleAfter.Seconds())
	return leases{name: name, every: every, staleAfter: staleAfter, stateDir: stateDir, clock: clock,
		log: log.With("source", name), met: m, table: leaseTable{}, journal: journal{path: filepath.Join(stateDir, name+".leases.journal")}}
}

// Name implements [Source].
func (s *leases) Name() string { return s.name }

type leasesFile struct {
	Version int       `json:"version"`
	Seq     uint64    `json:"seq"`
	Last    flow.Time `json:"last"`
	Holders []holder  `json:"holders"`
}

// leasesLine is a line of the journal.
type leasesLine struct {
	Seq     uint64      `json:"seq"`
	Last    flow.Time   `json:"last"`
	Holders []holder    `json:"holders,omitempty"`
	Gone    []flow.Addr `json:"gone,omitempty"`
	Facts   []flow.Fact `json:"facts"`
}

func (s *leases) statePath() string { return filepath.Join(s.stateDir, s.name+".leases.json") }

func (s *leases) load() error {
	s.table, s.pending, s.untold = leaseTable{}, nil, false
	if s.stateDir == "" {
		return nil
	}
	var file leasesFile
	if err := loadState(s.statePath(), &file, &file.Version); err != nil {
		return fmt.Errorf("identity source %s: %w", s.name, err)
	}
	for _, h := range file.Holders {
		s.table[h.Fact.Addr] = h
	}
	s.last, s.seq = file.Last, file.Seq
	err := s.journal.read(func(text []byte) error {
		var line leasesLine
		if err := json.Unmarshal(text, &line); err != nil || line.Seq <= s.seq { // saved with the table
			return err
		}
		s.seq, s.last, s.pending, s.dirty = line.Seq, line.Last, line.Facts, true
		for _, h := range line.Holders {
			s.table[h.Fact.Addr] = h
		}
		for _, addr := range line.Gone {
			delete(s.table, addr)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("identity source %s: %w", s.name, err)
	}
	s.untold = len(s.pending) > 0
	s.met.facts.Set(float64(len(s.table)))
	return nil
}

// close gives the journal's file up.
func (s *leases) close() { s.journal.close() }

// note writes down what is about to be told.
func (s *leases) note(o *told, at flow.Time) error {
	if s.stateDir == "" || len(o.facts) == 0 {
		return nil
	}
	line := leasesLine{Seq: s.seq + 1, Last: at, Facts: o.facts}
	seen := make(map[flow.Addr]bool, len(o.facts))
	for i := range o.facts {
		addr := o.facts[i].Addr
		if seen[addr] {
			continue
		}
		seen[addr] = true
		if h, ok := s.table[addr]; ok {
			line.Holders = append(line.Holders, h)
		} else {
			line.Gone = append(line.Gone, addr)
		}
	}
	if err := s.journal.add(&line); err != nil {
		return err
	}
	s.seq++
	return nil
}

// save keeps the table, begins a new journal and forgets leases that ended long ago.
func (s *leases) save() error {
	now := s.clock()
	for addr, h := range s.table {
		if h.Fact.Until != 0 && h.Fact.Until.Add(forgetLeases) < now {
			delete(s.table, addr)
		}
	}
	s.met.facts.Set(float64(len(s.table)))
	s.saved, s.dirty = now, false
	if s.stateDir == "" {
		return nil
	}
	file := leasesFile{Version: stateVersion, Seq: s.seq, Last: s.last, Holders: make([]holder, 0, len(s.table))}
	for _, h := range s.table {
		file.Holders = append(file.Holders, h)
	}
	slices.SortFunc(file.Holders, func(a, b holder) int { return a.Fact.Addr.Compare(b.Fact.Addr) })
	if err := saveState(s.statePath(), &file); err != nil {
		return err
	}
	return s.journal.clear()
}

// stopped saves at the end.
func (s *leases) stopped(ctx context.Context) error {
	if err := s.saveIfDue(true); err != nil {
		return fmt.Errorf("identity source %s: %w", s.name, err)
	}
	return ctx.Err()
}

func (s *leases) saveIfDue(force bool) error {
	if !s.untold && (force || s.dirty && s.clock().Sub(s.saved) >= saveLeasesEvery) {
		return s.save()
	}
	return nil
}

// told gathers holders to tell; of several versions of one the last counts.
type told struct {
	facts []flow.Fact
	index map[factIdentity]int
}

func (o *told) add(h holder) {
	if o.index == nil {
		o.index = map[factIdentity]int{}
	}
	if i, ok := o.index[identityOf(&h.Fact)]; ok {
		o.facts[i] = h.Fact
		return
	}
	o.index[identityOf(&h.Fact)] = len(o.facts)
	o.facts = append(o.facts, h.Fact)
}

// tell tells what changed when everything up to at was known, with a heartbeat unless that is zero.
func (s *leases) tell(ctx context.Context, tell Tell, o *told, at flow.Time, beat flow.Heartbeat) error {
	// What was being told when the process ended goes first.
	if len(s.pending) > 0 {
		again := &told{}
		for _, f := range slices.Concat(s.pending, o.facts) {
			again.add(holder{Fact: f})
		}
		o = again
	}
	for i := range o.facts {
		o.facts[i].Source = s.name
	}
	if err := s.note(o, at); err != nil {
		return err
	}
	if err := tellUntil(ctx, tell, o.facts, beat, s.every, s.log); err != nil {
		s.untold = true
		return err
	}
	s.pending, s.untold = nil, false
	s.met.told.Add(float64(len(o.facts)))
	s.last = at
	s.dirty = s.dirty || len(o.facts) > 0
	return nil
}

// tellRead tells what changed and that everything up to at was read.
func (s *leases) tellRead(ctx context.Context, tell Tell, o *told, at flow.Time) error {
	if err := s.tell(ctx, tell, o, at, flow.Heartbeat{Source: s.name, At: at, StaleAfter: s.staleAfter}); err != nil {
		return err
	}
	s.met.lastSuccess.Set(float64(at) / 1000)
	s.met.facts.Set(float64(len(s.table)))
	return nil
}

// history is what a whole read showed: the holders of each address in their order.
type history struct {
	table   leaseTable
	holders map[flow.Addr][]holder
	count   int
	now     flow.Time
}

func newHistory(now flow.Time) *history {
	return &history{table: leaseTable{}, holders: map[flow.Addr][]holder{}, now: now}
}

func (h *history) add(l lease) error {
	h.table.apply(l, h.now, 0, func(c holder) {
		// Only the last holder can change, by a renewal or an end.
		list := h.holders[c.Fact.Addr]
		if n := len(list); n > 0 && list[n-1].Fact.Since == c.Fact.Since {
			list[n-1] = c
			return
		}
		h.holders[c.Fact.Addr] = append(list, c)
		h.count++
	})
	if h.count > maxHistory || len(h.table) > maxFacts {
		return fmt.Errorf("it shows more than %d leases", maxFacts)
	}
	return nil
}

// merge makes the table what a whole read showed, and gives what that changes. An
// address that has no entry any more ends now, unless partial, where entries could not
// be read: one of them may have been its.
func (s *leases) merge(h *history, partial bool) *told {
	out := &told{}
	addrs := make([]flow.Addr, 0, len(h.holders))
	for a := range h.holders {
		addrs = append(addrs, a)
	}
	slices.SortFunc(addrs, flow.Addr.Compare)
	for _, addr := range addrs {
		list := h.holders[addr]
		before, known := s.table[addr]
		s.table[addr] = h.table[addr]
		if !known {
			for _, n := range list {
				if !s.past(&n, h.now) {
					out.add(n)
				}
			}
			if last := s.table[addr]; s.past(&last, h.now) {
				delete(s.table, addr)
			}
			continue
		}
		start := s.mergeOne(before, list, out, h.now)
		for _, n := range list[start:] {
			out.add(n)
		}
		if n := len(list); start < n || n > 0 && sameLease(before, list[n-1]) {
			s.table[addr] = list[n-1]
		} else {
			before.endAt(h.now)
			s.table[addr] = before
		}
	}
	var gone []flow.Addr
	for addr := range s.table {
		if _, there := h.holders[addr]; !there && !partial {
			gone = append(gone, addr)
		}
	}
	slices.SortFunc(gone, flow.Addr.Compare)
	for _, addr := range gone {
		g := s.table[addr]
		delete(s.table, addr)
		if s.lost(&g, h.now) {
			out.add(g)
		}
	}
	return out
}

// past says whether a lease was told once and is forgotten: it ended long ago, before the
// last read.
func (s *leases) past(h *holder, now flow.Time) bool {
	return h.Fact.Until != 0 && h.Fact.Until <= s.last && h.Fact.Until.Add(forgetLeases) < now
}

// mergeOne carries what was known of an address over into what a whole read shows of
// it: list is altered in place. start is where in list the holders begin that are news.
func (s *leases) mergeOne(before holder, list []holder, out *told, now flow.Time) (start int) {
	// In answers to commands, which show the last renewal alone, one client in two reads
	// one after the other is one lease, as it is with every source that is polled.
	next := s.snapshots && now.Sub(s.last) <= 3*s.every && sameLease(before, list[0])
	if list[0].Fact.Since > before.Heard && !next {
		// The last entry that was read is not there any more: a clean-up took it away, and
		// whoever had the address between. That the next is the same client says nothing.
		if s.lost(&before, list[0].Fact.Since) {
			out.add(before)
		}
		return 0
	}
	// The one that began just then, else the first that can be the same.
	i := slices.IndexFunc(list, func(n holder) bool { return n.Fact.Since == before.Fact.Since && sameLease(before, n) })
	if i < 0 {
		i = slices.IndexFunc(list, func(n holder) bool { return sameLease(before, n) })
	}
	if i >= 0 {
		m := list[i]
		m.Fact.Since, m.Fact.SinceSlack, m.Fact.Workload = before.Fact.Since, before.Fact.SinceSlack, before.Fact.Workload
		m.Heard = max(m.Heard, before.Heard)
		switch {
		case m.Over && before.Over:
			m.Fact.Until, m.Fact.UntilSlack = before.Fact.Until, before.Fact.UntilSlack
		case m.Over && m.Fact.UntilSlack > 0: // it was still held at the last read
			m.Fact.UntilSlack = min(m.Fact.UntilSlack, max(m.Fact.Until.Sub(s.last), 0))
		}
		if i+1 < len(list) {
			m.endAt(list[i+1].Fact.Since)
		}
		if m.Fact.Until != before.Fact.Until || m.Fact.UntilSlack != before.Fact.UntilSlack {
			out.add(m)
		}
		list[i] = m
		return i + 1
	}
	// The file speaks of older leases and not of that one: it is another file, or one
	// that was restored. What still holds in it counts.
	start = slices.IndexFunc(list, func(n holder) bool {
		return n.Fact.Since >= before.Fact.Since || n.Fact.Until == 0 || n.Fact.Until > now
	})
	end := now
	if start < 0 {
		start = len(list)
	} else {
		end = list[start].Fact.Since
	}
	if s.lost(&before, end) {
		out.add(before)
	}
	return start
}

// lost ends a lease of which nothing more is known at a time at the latest, and says
// whether that changed anything. It was held at the last read, unless it had ended; when
// after that it ended is uncertain.
func (s *leases) lost(h *holder, at flow.Time) bool {
	if h.Over {
		return h.endAt(at)
	}
	h.Over = true
	if h.Fact.Until != 0 {
		at = min(at, h.Fact.Until)
	}
	if at = max(at, h.Fact.Since); at == h.Fact.Until && at <= s.last {
		return false // it had expired before
	}
	h.Fact.Until, h.Fact.UntilSlack = at, max(at.Sub(max(s.last, h.Fact.Since)), 0)
	return true
}

// sameLease says whether b goes on what a was: one client with one name, without a gap.
// The entry of a lease that is over may have lost the name, as Kea's reclaimed ones have.
func sameLease(a, b holder) bool {
	return a.Fact.Device == b.Fact.Device && (a.Fact.Workload == b.Fact.Workload || b.Over && b.Fact.Workload == "") &&
		(a.Fact.Until == 0 || b.Fact.Since <= a.Fact.Until) && (b.Fact.Until == 0 || b.Fact.Until > a.Fact.Since || b.Fact.Since == a.Fact.Since)
}

// cleanHost makes a name of what a client called itself: lower case, without control
// characters, blanks and closing dots, at most 253 bytes (RFC 1035, 2.3.4). What is not
// of a host name's characters becomes an underscore.
func cleanHost(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '.' || r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		case unicode.IsControl(r):
			return -1
		}
		return '_'
	}, strings.TrimSpace(strings.ToValidUTF8(s, "_")))
	s = strings.Trim(s, ".")
	for len(s) > 253 {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// leaseParser reads the record of a DHCP server piece by piece.
type leaseParser interface {
	// parse reads the entries that are whole in b and gives how many bytes they took;
	// what is behind is given again with more. bad is told of entries that make no sense;
	// err ends the file.
	parse(b []byte, entry func(lease) error, bad func(error)) (n int, err error)
}

const (
	// followEvery is how often a file is looked at where the system does not tell of
	// changes (a network file system), so that a new line is seen within a second.
	followEvery = 500 * time.Millisecond
	// gatherFor is how long lines are gathered after the system told of one.
	gatherFor = 100 * time.Millisecond
	// maxLeaseEntry bounds one entry; Kea's longest, with user context, are some 10 KB.
	maxLeaseEntry = 256 << 10
	leaseChunk    = 1 << 20
)

// leaseFile follows the lease file of a DHCP server.
type leaseFile struct {
	leases
	path string
	// older lists files that hold what came before, oldest first, as they are now.
	older func() []string
	parse func(file string) leaseParser

	info   os.FileInfo // of the file that was read last
	before []fileState // the older files then
	offset int64       // read up to here
	tail   []byte      // the last bytes before offset, to see whether it is still the same file
	parser leaseParser
	beat   flow.Time // when the last heartbeat was told
	bad    partialError
}

// Run implements [Source].
func (f *leaseFile) Run(ctx context.Context, tell Tell) error {
	if err := f.load(); err != nil {
		return err
	}
	defer f.close()
	events := f.watch(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	failures := 0
	for {
		notices := events
		if failures > 1 {
			notices = nil // in a folder where much happens it would be tried without a pause
		}
		select {
		case <-ctx.Done():
			return f.stopped(ctx)
		case <-timer.C:
		case <-notices:
			// A busy server writes many lines; they are told together.
			select {
			case <-ctx.Done():
				return f.stopped(ctx)
			case <-time.After(gatherFor):
			}
		}
		wait := followEvery
		err := f.follow(ctx, tell)
		if err == nil {
			err = f.saveIfDue(false)
		}
		switch {
		case err == nil:
			failures = 0
		case ctx.Err() != nil:
			continue
		default:
			if stop, ok := errors.AsType[*stateError](err); ok {
				return fmt.Errorf("identity source %s: %w", f.name, stop)
			}
			f.info = nil
			// While a file is being replaced there may be none for a moment.
			if failures++; failures > 1 || !errors.Is(err, os.ErrNotExist) {
				wait = max(retryDelay(failures-1, f.every), followEvery)
				f.met.failures.Inc()
				f.log.Warn("identity source could not be read", "error", err.Error(), "again_in", wait.String())
			}
		}
		timer.Reset(wait)
	}
}

// watch tells of changes in the file's folder, if the system does.
func (f *leaseFile) watch(ctx context.Context) <-chan struct{} {
	return watchFolder(ctx, filepath.Dir(f.path), f.log)
}

// watchFolder gives a notice when something changes in a folder. Where the system
// cannot tell there is none, and whoever waits polls.
func watchFolder(ctx context.Context, dir string, log *slog.Logger) <-chan struct{} {
	out := make(chan struct{}, 1)
	w, err := fsnotify.NewWatcher()
	if err == nil {
		if err = w.Add(dir); err != nil {
			w.Close()
		}
	}
	if err != nil {
		log.Info("changes are found by looking", "folder", dir, "reason", err.Error())
		return out
	}
	go func() {
		defer w.Close()
		for {
			select {
			case <-ctx.Done():
				return
			case _, ok := <-w.Events:
				if !ok {
					return
				}
				select {
				case out <- struct{}{}:
				default:
				}
			case _, ok := <-w.Errors: // an overflow: the next look finds what it was about
				if !ok {
					return
				}
			}
		}
	}()
	return out
}

// follow looks at the file once and tells what is new.
func (f *leaseFile) follow(ctx context.Context, tell Tell) error {
	now := f.clock()
	info, err := os.Stat(f.path)
	if err != nil {
		return err
	}
	// A new file can have the old one's number and size; but then what came before it
	// has changed as well.
	_, before, err := statAll(f.older())
	if err != nil {
		return err
	}
	switch {
	case f.info == nil || !os.SameFile(f.info, info) || info.Size() < f.offset || !slices.Equal(before, f.before):
		return f.readWhole(ctx, tell)
	case info.Size() > f.offset || !info.ModTime().Equal(f.info.ModTime()):
		same, err := f.readOn(ctx, tell, now)
		if err == nil && !same {
			return f.readWhole(ctx, tell)
		}
		return err
	case now.Sub(f.beat) >= f.every:
		f.beat = now
		return f.tellRead(ctx, tell, &told{}, now)
	}
	f.last = max(f.last, now)
	return nil
}

func (f *leaseFile) reportBad() {
	if f.bad.entries > 0 {
		f.log.Warn("entries of a lease file could not be read", "entries", f.bad.entries, "error", f.bad.err.Error())
	}
}

// readWhole reads the file and those before it from their begin.
func (f *leaseFile) readWhole(ctx context.Context, tell Tell) error {
	f.met.reads.Inc()
	begin := f.clock()
	for attempt := 0; ; attempt++ {
		f.bad = partialError{}
		h := newHistory(0)
		older := f.older()
		before, states, err := statAll(older)
		if err != nil {
			return err
		}
		h.now = f.clock()
		for _, path := range older {
			if _, _, _, err = f.readFile(path, f.parse(path), 0, h.add); err != nil {
				break
			}
		}
		parser := f.parse(f.path)
		var info os.FileInfo
		var offset int64
		var tail []byte
		if err == nil {
			info, offset, tail, err = f.readFile(f.path, parser, 0, h.add)
		}
		// The server may have moved its files while they were being read.
		after, _, statErr := statAll(f.older())
		now, nowErr := os.Stat(f.path)
		if moved := statErr != nil || nowErr != nil || !sameFiles(before, after) || info != nil && !os.SameFile(info, now); moved && attempt < 5 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
			continue
		} else if moved && err == nil {
			err = cmp.Or(statErr, nowErr, errors.New("its files were moved each time while they were being read"))
		}
		if err != nil {
			return err
		}
		f.met.badEntries.Set(float64(f.bad.entries))
		f.reportBad()
		out := f.merge(h, f.bad.entries > 0)
		f.info, f.before, f.offset, f.tail, f.parser = info, states, offset, tail, parser
		f.beat = begin
		return f.tellRead(ctx, tell, out, begin)
	}
}

// readOn reads what was appended; same is false if it is another file after all.
func (f *leaseFile) readOn(ctx context.Context, tell Tell, now flow.Time) (same bool, err error) {
	r, err := os.Open(f.path)
	if err != nil {
		return false, err
	}
	tail := make([]byte, len(f.tail))
	_, err = r.ReadAt(tail, f.offset-int64(len(tail)))
	r.Close()
	if err != nil || !bytes.Equal(tail, f.tail) {
		return false, nil //nolint:nilerr // it was truncated; reading it whole says what else is wrong
	}
	f.bad = partialError{}
	// The table changes only once the file was read without trouble: what is in it and was
	// not told would be taken for told.
	var entries []lease
	info, offset, tail, err := f.readFile(f.path, f.parser, f.offset, func(l lease) error {
		if entries = append(entries, l); len(f.table)+len(entries) > maxFacts+maxHistory {
			return fmt.Errorf("it shows more than %d leases", maxFacts)
		}
		return nil
	})
	if err != nil {
		return true, err
	}
	if !os.SameFile(info, f.info) {
		return false, nil
	}
	out, read := &told{}, f.clock()
	for _, l := range entries {
		if _, known := f.table[l.addr]; !known && len(f.table) >= maxFacts {
			f.bad.note(fmt.Errorf("%s: it shows more than %d leases; that of %v is passed over", f.path, maxFacts, l.addr))
			continue
		}
		f.table.apply(l, read, f.last, out.add)
	}
	f.info, f.offset = info, offset
	if len(tail) > 0 {
		f.tail = tail
	}
	f.met.badEntries.Add(float64(f.bad.entries))
	f.reportBad()
	if len(out.facts) == 0 && now.Sub(f.beat) < f.every {
		f.last = max(f.last, now)
		return true, nil
	}
	f.beat = now
	return true, f.tellRead(ctx, tell, out, now)
}

// readFile reads a file from an offset to its end as far as entries are whole.
func (f *leaseFile) readFile(path string, p leaseParser, offset int64, entry func(lease) error) (info os.FileInfo, end int64, tail []byte, err error) {
	r, err := os.Open(path)
	if err != nil {
		return nil, 0, nil, err
	}
	defer r.Close()
	if info, err = r.Stat(); err != nil {
		return nil, 0, nil, err
	}
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return nil, 0, nil, err
	}
	buf, fill := make([]byte, min(leaseChunk, max(info.Size()-offset, 0)+4096)), 0
	for {
		n, rerr := r.Read(buf[fill:])
		fill += n
		used, err := p.parse(buf[:fill], entry, f.bad.note)
		if err != nil {
			return nil, 0, nil, err
		}
		if used > 0 {
			tail = append(tail[:0], buf[max(0, used-64):used]...)
		}
		offset += int64(used)
		fill = copy(buf, buf[used:fill])
		switch {
		case rerr == io.EOF:
			return info, offset, tail, nil
		case rerr != nil:
			return nil, 0, nil, rerr
		case fill >= maxLeaseEntry:
			return nil, 0, nil, fmt.Errorf("%s: an entry is longer than %d bytes; this is no lease file", path, maxLeaseEntry)
		case fill == len(buf):
			buf = append(buf, make([]byte, len(buf))...)
		}
	}
}

func statAll(paths []string) (infos []os.FileInfo, states []fileState, err error) {
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, nil, err
		}
		infos = append(infos, info)
		states = append(states, fileState{p, info.Size(), info.ModTime()})
	}
	return infos, states, nil
}

func sameFiles(a, b []os.FileInfo) bool { return slices.EqualFunc(a, b, os.SameFile) }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
