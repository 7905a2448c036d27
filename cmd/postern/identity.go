package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/postern/postern/enrich"
	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/identity"
	"github.com/postern/postern/ingest/intake"
	"github.com/postern/postern/policy"
)

// identityConfig is who is behind addresses: where that is found out, and how it is joined.
type identityConfig struct {
	enrich.IdentityConfig `yaml:",inline"`
	Sources               identity.Config `yaml:",inline"`
}

// enabled says whether there is a source. Flows then wait until what may still become known
// about them has.
func (c *identityConfig) enabled() bool {
	s := &c.Sources
	return len(s.Inventory)+len(s.DHCP)+len(s.HTTP)+len(s.LDAP)+len(s.Sessions)+len(s.Kubernetes) > 0
}

// factLog keeps what sources say, in the order in which it became known. Judging asks the
// store for what was known by a flow's end and a hold; so it does not matter when facts are
// read, as long as those are there.
type factLog struct {
	path  string
	store *enrich.Identity
	keep  time.Duration
	log   *slog.Logger

	mu   sync.Mutex
	file *os.File
	size int64
}

// toldFacts is a line of the log.
type toldFacts struct {
	Facts []flow.Fact     `json:"facts,omitempty"`
	Beat  *flow.Heartbeat `json:"beat,omitempty"`
}

// maxToldFacts bounds a line: a source that knows more tells it in several.
const maxToldFacts = 10_000

func factsPath(data string) string { return filepath.Join(data, "facts", "facts.ndjson") }

// openFacts reads the log into store and goes on with it.
func openFacts(data string, store *enrich.Identity, keep time.Duration, log *slog.Logger) (*factLog, error) {
	l := &factLog{path: factsPath(data), store: store, keep: keep, log: log}
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return nil, err
	}
	whole, err := readFactsOf(l.path, store.Take)
	if err != nil {
		return nil, err
	}
	if l.file, err = os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	if err := l.file.Truncate(whole); err != nil { // the end that a crash left unfinished
		return nil, errors.Join(err, l.file.Close())
	}
	l.size = whole
	return l, nil
}

// readFactsOf reads the log at path, which may not be there, and says how much of it is whole
// lines.
func readFactsOf(path string, take func([]flow.Fact, flow.Heartbeat)) (whole int64, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return readFacts(path, f, take)
}

// readFacts is readFactsOf for what src gives of the log at path.
func readFacts(path string, src io.Reader, take func([]flow.Fact, flow.Heartbeat)) (whole int64, err error) {
	r := bufio.NewReaderSize(src, 1<<20)
	for number := 1; ; number++ {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return whole, nil
		}
		if err != nil {
			return whole, err
		}
		var t toldFacts
		if err := json.Unmarshal(line, &t); err != nil {
			return whole, fmt.Errorf("%s:%d: %w; what it says of identities cannot be left out: bring back the file, or move it away and sources tell anew what holds now", path, number, err)
		}
		var beat flow.Heartbeat
		if t.Beat != nil {
			beat = *t.Beat
		}
		take(t.Facts, beat)
		whole += int64(len(line))
	}
}

// tell implements [identity.Tell].
func (l *factLog) tell(_ context.Context, facts []flow.Fact, beat flow.Heartbeat) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := wallClock()
	for i := range facts {
		facts[i].Known = known
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for rest := facts; ; {
		n := min(len(rest), maxToldFacts)
		t := toldFacts{Facts: rest[:n]}
		if rest = rest[n:]; len(rest) == 0 && beat.Source != "" {
			t.Beat = &beat
		}
		if err := enc.Encode(t); err != nil {
			return err
		}
		if len(rest) == 0 {
			break
		}
	}
	if err := l.write(b.Bytes()); err != nil {
		return err
	}
	l.store.Take(facts, beat)
	return nil
}

// write appends whole lines, all of them or none.
func (l *factLog) write(b []byte) error {
	_, err := l.file.WriteAt(b, l.size)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil { // what is written next may be shorter, and must not stand before the rest of this
		return errors.Join(err, l.file.Truncate(l.size))
	}
	l.size += int64(len(b))
	return nil
}

// sofar opens what the log holds at this moment; it is only added to behind size.
func (l *factLog) sofar() (f *os.File, size int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err = os.Open(l.path)
	return f, l.size, err
}

// compact leaves out of the log what ended longer ago than facts are kept. Sources go on
// telling meanwhile.
func (l *factLog) compact(now flow.Time) error {
	f, size, err := l.sofar()
	if err != nil {
		return err
	}
	defer f.Close()
	horizon := now.Add(-l.keep)
	// What counts of a fact that was told several times is when its last telling ends.
	ends := map[flow.FactKey]flow.Time{}
	if _, err := readFacts(l.path, io.NewSectionReader(f, 0, size), func(facts []flow.Fact, _ flow.Heartbeat) {
		for i := range facts {
			ends[facts[i].Key()] = facts[i].Until
		}
	}); err != nil {
		return err
	}
	path := l.path + ".next"
	next, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(next, 1<<20)
	enc := json.NewEncoder(w)
	var failed error
	_, err = readFacts(l.path, io.NewSectionReader(f, 0, size), func(facts []flow.Fact, beat flow.Heartbeat) {
		var t toldFacts
		for i := range facts {
			if end := ends[facts[i].Key()]; end == 0 || end > horizon {
				t.Facts = append(t.Facts, facts[i])
			}
		}
		if beat.At > horizon {
			t.Beat = &beat
		}
		if (len(t.Facts) > 0 || t.Beat != nil) && failed == nil {
			failed = enc.Encode(t)
		}
	})
	if err = errors.Join(err, failed, w.Flush(), next.Sync()); err == nil {
		err = l.replace(path, next, f, size)
	}
	if err != nil {
		return errors.Join(err, next.Close())
	}
	// Without its name on disk a power cut could bring the old file back, which lacks what is
	// written from here on.
	return syncDir(filepath.Dir(l.path))
}

// replace adds to next, the file at path, what was told since the log had size, and puts it in
// the place of the log. old is open on that. Where it fails the log stays what it was.
func (l *factLog) replace(path string, next, old *os.File, size int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, err := next.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	n, err := io.Copy(next, io.NewSectionReader(old, size, l.size-size))
	if err = errors.Join(err, next.Sync()); err != nil {
		return err
	}
	if err := os.Rename(path, l.path); err != nil {
		return err
	}
	_ = l.file.Close() // all of it is in next, and durable
	l.file, l.size = next, at+n
	return nil
}

// written waits for what a source is telling at this moment.
func (l *factLog) written() {
	l.mu.Lock()
	defer l.mu.Unlock()
}

func (l *factLog) close() error { return l.file.Close() }

// compactEvery is how often the log of facts is looked through.
const compactEvery = 24 * time.Hour

// identitySources are where it is found out who is behind addresses.
type identitySources struct {
	list     []identity.Source
	sessions []*identity.Sessions
	events   map[string]intake.EventSink // the same, by name
}

// newSources makes the sources of a configuration; it opens nothing.
func newSources(cfg config, domains *flow.Domains, log *slog.Logger, reg prometheus.Registerer) (*identitySources, error) {
	list, err := identity.New(cfg.Identity.Sources, identity.Options{
		Resolve: resolveSecret, StateDir: filepath.Join(cfg.Data, "facts", "sources"), Domains: domains,
		Clock: wallClock, Logger: log, Metrics: reg,
	})
	if err != nil {
		return nil, fmt.Errorf("identity.%w", err)
	}
	s := &identitySources{list: list, events: map[string]intake.EventSink{}}
	for _, one := range list {
		if sessions, ok := one.(*identity.Sessions); ok {
			s.sessions = append(s.sessions, sessions)
			s.events[sessions.Name()] = sessions
		}
	}
	return s, nil
}

// run runs the sources until ctx ends. Sessions of logons name hosts; they learn the hosts'
// addresses from what the other sources tell, and have told before.
func (s *identitySources) run(ctx context.Context, tell identity.Tell, told func(ctx context.Context, take func([]flow.Fact)) error) error {
	learn := func(ctx context.Context, facts []flow.Fact) error {
		for _, sessions := range s.sessions {
			if err := sessions.Learn(ctx, facts); err != nil {
				return err
			}
		}
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, one := range s.list {
		to := tell
		if _, ok := one.(*identity.Sessions); !ok && len(s.sessions) > 0 {
			to = func(ctx context.Context, facts []flow.Fact, beat flow.Heartbeat) error {
				if err := tell(ctx, facts, beat); err != nil {
					return err
				}
				return learn(ctx, facts)
			}
		}
		g.Go(func() error {
			if err := one.Run(ctx, to); err != nil {
				return fmt.Errorf("identity: %s: %w", one.Name(), err)
			}
			return nil
		})
	}
	if len(s.sessions) > 0 {
		g.Go(func() error {
			newest := map[flow.FactKey]flow.Fact{}
			if err := told(ctx, func(facts []flow.Fact) {
				for i := range facts {
					newest[facts[i].Key()] = facts[i]
				}
			}); err != nil {
				return err
			}
			facts := slices.SortedFunc(maps.Values(newest), func(a, b flow.Fact) int { return cmp.Compare(a.Since, b.Since) })
			if err := learn(ctx, facts); err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	return g.Wait()
}

// told gives what the log holds.
func (l *factLog) told(_ context.Context, take func([]flow.Fact)) error {
	f, size, err := l.sofar()
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = readFacts(l.path, io.NewSectionReader(f, 0, size), func(facts []flow.Fact, _ flow.Heartbeat) { take(facts) })
	return err
}

// factsGrace is how much later than the hold flows are judged: what became known at the last
// moment is in the store by then.
const factsGrace = 2 * time.Second

// waitUntil waits for a time of the clock; false is that stopping was closed or ctx ended
// before.
func waitUntil(ctx context.Context, stopping <-chan struct{}, at flow.Time) bool {
	left := at.Sub(wallClock())
	if left <= 0 {
		return true
	}
	t := time.NewTimer(left)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-stopping:
	case <-ctx.Done():
	}
	return false
}

// judging is the policy's configuration with the domains that names are read by.
func (c *config) judging(domains *flow.Domains) policy.Config {
	judge := c.Policy.Judge
	judge.Domains = domains
	return judge
}

// knownIdentities is what the sources of a data directory have said, for commands that look
// back; the service may be running.
func knownIdentities(cfg config, names *flow.Names) (*enrich.Identity, error) {
	who, err := enrich.NewIdentity(cfg.Identity.IdentityConfig, names, nil)
	if err != nil {
		return nil, err
	}
	if _, err := readFactsOf(factsPath(cfg.Data), who.Take); err != nil {
		return nil, err
	}
	return who, nil
}

// whoText says in words who an address is taken for, and by which facts.
func whoText(w io.Writer, end string, e enrich.Explanation, names *flow.Names) {
	name := func(label string, n flow.Name) string {
		if n == flow.NoName {
			return ""
		}
		return fmt.Sprintf(", %s %s", label, names.Text(n))
	}
	a := &e.Answer
	if len(e.Facts)+len(e.Subject) == 0 {
		return
	}
	who := name("identity", a.Identity) + name("workload", a.Workload) + name("device", a.Device) + name("posture", a.Posture)
	for _, g := range a.Groups {
		who += name("group", g)
	}
	if a.Disabled {
		who += ", disabled"
	}
	if who == "" {
		who = ", not known"
	}
	fmt.Fprintf(w, "%s %s at %s%s", end, e.Addr, e.At, who)
	if a.Why != 0 {
		fmt.Fprintf(w, " (%s)", strings.Join(a.Why.Texts(), ", "))
	}
	if a.GroupsWhy != 0 {
		fmt.Fprintf(w, " (groups: %s)", strings.Join(a.GroupsWhy.Texts(), ", "))
	}
	fmt.Fprintln(w)
	for _, c := range append(slices.Clip(e.Facts), e.Subject...) {
		until := "until told otherwise"
		if c.Until != 0 {
			until = "until " + c.Until.String()
		}
		fmt.Fprintf(w, "    %s: %s from %s %s, known since %s", c.Source, factText(&c.Fact), c.Since, until, c.Known)
		if c.Heard != 0 && c.Age > 0 {
			fmt.Fprintf(w, ", last heard %s before", c.Age.Round(time.Second))
		}
		fmt.Fprintf(w, ": %s\n", c.Counts)
	}
}

// factText is what a fact says.
func factText(f *flow.Fact) string {
	var parts []string
	add := func(label, text string) {
		if text != "" {
			parts = append(parts, label+" "+text)
		}
	}
	add("subject", f.Subject)
	add("user", f.User)
	add("account", f.Account)
	add("workload", f.Workload)
	add("device", f.Device)
	add("posture", f.Posture)
	if len(f.Groups) > 0 {
		add("groups", strings.Join(f.Groups, ", "))
	}
	if f.Disabled {
		parts = append(parts, "disabled")
	}
	if len(parts) == 0 {
		return "nobody"
	}
	return strings.Join(parts, ", ")
}
