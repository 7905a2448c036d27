package identity

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/ingest/agent"
)

// clockOf is a time of a scenario: hours and minutes of a day.
func clockOf(t testing.TB, s string) flow.Time {
	t.Helper()
	at, err := time.Parse("2006-01-02 15:04:05", "2026-10-02 "+s)
	if err != nil {
		if at, err = time.Parse("2006-01-02 15:04", "2026-10-02 "+s); err != nil {
			t.Fatal(err)
		}
	}
	return flow.TimeOf(at)
}

// sessionEvents reads events, one a line: time, kind, host/session, then user=, addr=,
// device=, on=, began=.
func sessionEvents(t testing.TB, script string) (out []agent.SessionEvent) {
	t.Helper()
	for line := range strings.Lines(script) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		var ev agent.SessionEvent
		ev.At = clockOf(t, words[0])
		if err := ev.Kind.UnmarshalText([]byte(words[1])); err != nil {
			t.Fatal(err)
		}
		ev.Host, ev.Session, _ = strings.Cut(words[2], "/")
		for _, w := range words[3:] {
			key, value, _ := strings.Cut(w, "=")
			switch key {
			case "user":
				ev.User = value
			case "addr":
				ev.Addr = flow.MustParseAddr(value)
			case "device":
				ev.Device = value
			case "on":
				ev.On = value
			case "began":
				ev.Began = clockOf(t, value)
			default:
				t.Fatalf("what is %q?", w)
			}
		}
		out = append(out, ev)
	}
	return out
}

// factLines are facts as tests write them; those taken back are left out.
func factLines(rec *recorder) (out []string) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	var facts []flow.Fact
	for _, f := range rec.facts {
		if f.Until != f.Since {
			facts = append(facts, f)
		}
	}
	slices.SortFunc(facts, compareFacts)
	day := func(t flow.Time, slack time.Duration) string {
		if t == 0 {
			return "open"
		}
		s := strings.TrimSuffix(t.Std().Format("15:04:05"), ":00")
		if slack > 0 {
			s += "-" + strings.NewReplacer("m0s", "m", "h0m0s", "h").Replace(slack.String())
		}
		return s
	}
	for _, f := range facts {
		out = append(out, fmt.Sprintf("%s %s %s…%s %s", f.Addr, f.User, day(f.Since, f.SinceSlack), day(f.Until, f.UntilSlack), f.Session))
	}
	return out
}

type sessionRig struct {
	*testing.T
	*Sessions
	rec  *recorder
	stop func() error
}

func sessionsConfig(format string) SessionsConfig {
	cfg := DefaultSessionsConfig()
	cfg.Name, cfg.Format, cfg.MaxLength = "log", format, 0
	return cfg
}

func runSessions(t *testing.T, cfg SessionsConfig, dir string, rec *recorder) *sessionRig {
	t.Helper()
	s, err := newSessions(cfg, dir, func() flow.Time { return clockOf(t, "23:00") }, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceValue(running(t, s, rec.tell))
	t.Cleanup(func() { _ = stop() })
	<-s.ready
	return &sessionRig{t, s, rec, stop}
}

func (r *sessionRig) take(events ...agent.SessionEvent) {
	r.Helper()
	if err := r.Take(r.Context(), events); err != nil {
		r.Fatal(err)
	}
}

func hosts(t testing.TB, script string) (out []flow.Fact) {
	t.Helper()
	for line := range strings.Lines(script) {
		w := strings.Fields(line)
		if len(w) == 0 {
			continue
		}
		f := flow.Fact{Source: "dhcp", Kind: flow.FactLease, Addr: flow.MustParseAddr(w[0]), Workload: w[1], Since: clockOf(t, w[2])}
		if len(w) > 3 {
			f.Until = clockOf(t, w[3])
		}
		if len(w) > 4 {
			f.Device = w[4]
		}
		out = append(out, f)
	}
	return out
}

// TestSessions are logs and what they come to, in any order where `ordered` does not say
// otherwise, however often they are told, and with a restart anywhere in between.
func TestSessions(t *testing.T) {
	for _, c := range []struct {
		name    string
		windows bool
		change  func(*SessionsConfig)
		hosts   string
		events  string
		want    []string
		ordered bool
	}{
		{name: "a session", events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			08:10 update nas/1 user=alice addr=10.8.0.5
			09:00 stop nas/1 user=alice addr=10.8.0.5`,
			want: []string{"10.8.0.5 alice 08:00…09:00 nas/1"}},
		{name: "still open", events: `08:00 start nas/1 user=alice addr=10.8.0.5`,
			want: []string{"10.8.0.5 alice 08:00…open nas/1"}},
		{name: "an address used again", events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			09:00 stop nas/1
			09:05 start nas/2 user=bob addr=10.8.0.5
			10:00 stop nas/2`,
			want: []string{"10.8.0.5 alice 08:00…09:00 nas/1", "10.8.0.5 bob 09:05…10:00 nas/2"}},
		{name: "used again, and the end was lost", events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			08:50 update nas/1 user=alice addr=10.8.0.5
			09:05 start nas/2 user=bob addr=10.8.0.5`,
			want: []string{"10.8.0.5 alice 08:00…09:05-15m nas/1", "10.8.0.5 bob 09:05…open nas/2"}},
		{name: "used again by a machine", events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			09:05 start nas/2 addr=10.8.0.5`,
			want: []string{"10.8.0.5 alice 08:00…09:05-1h5m nas/1"}},
		{name: "two claim an address at once", events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			09:00 start nas/2 user=bob addr=10.8.0.5
			09:10 update nas/1 user=alice addr=10.8.0.5`,
			want: []string{"10.8.0.5 alice 08:00…open nas/1", "10.8.0.5 bob 09:00…open nas/2"}},
		{name: "an end without a beginning", events: `09:00 stop nas/1 user=alice addr=10.8.0.5`, want: nil},
		{name: "an end that tells how long it was", events: `09:00 stop nas/1 user=alice addr=10.8.0.5 began=08:00`, want: nil},
		{name: "a word in between that tells since when", events: `
			09:00 update nas/1 user=alice addr=10.8.0.5 began=08:00
			10:00 stop nas/1`,
			want: []string{"10.8.0.5 alice 09:00-1h…10:00 nas/1"}},
		{name: "an address that is told later", events: `
			08:00 start nas/1 user=alice
			08:01 update nas/1 user=alice addr=10.8.0.5
			10:00 stop nas/1`,
			want: []string{"10.8.0.5 alice 08:01-1m…10:00 nas/1"}},
		{name: "another address", events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			08:20 update nas/1 user=alice addr=10.8.0.5
			08:30 update nas/1 user=alice addr=10.8.0.6
			10:00 stop nas/1`,
			want: []string{"10.8.0.5 alice 08:00…08:30-10m nas/1", "10.8.0.6 alice 08:30-10m…10:00 nas/1"}},
		{name: "both families", events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			08:00 start nas/1 user=alice addr=2001:db8::5
			10:00 stop nas/1`,
			want: []string{"10.8.0.5 alice 08:00…10:00 nas/1", "2001:db8::5 alice 08:00…10:00 nas/1"}},
		{name: "away and back", windows: true, change: func(c *SessionsConfig) { c.Clients = true }, events: `
			08:00 start ts1/0x1 user=alice addr=10.1.0.7
			09:00 away ts1/0x1 user=alice
			10:00 update ts1/0x1 user=alice addr=10.1.0.8
			11:00 stop ts1/0x1`,
			want: []string{"10.1.0.7 alice 08:00…09:00 ts1/0x1", "10.1.0.8 alice 10:00…11:00 ts1/0x1"}},
		{name: "the NAS begins anew", events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			08:30 update nas/1 user=alice addr=10.8.0.5
			08:00 start nas2/1 user=carol addr=10.9.0.5
			09:00 on nas
			09:10 start nas/9 user=bob addr=10.8.0.6`,
			want: []string{"10.8.0.5 alice 08:00…09:00-30m nas/1", "10.8.0.6 bob 09:10…open nas/9", "10.9.0.5 carol 08:00…open nas2/1"}},
		{name: "the NAS is turned off", events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			09:00 off nas
			09:05 on nas`,
			want: []string{"10.8.0.5 alice 08:00…09:00 nas/1"}},
		{name: "an id used again", events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			09:00 stop nas/1
			10:00 start nas/1 user=bob addr=10.8.0.6
			11:00 stop nas/1`, ordered: true,
			want: []string{"10.8.0.5 alice 08:00…09:00 nas/1", "10.8.0.6 bob 10:00…11:00 nas/1"}},
		{name: "an id used again after the end was lost", events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			10:00 start nas/1 user=bob addr=10.8.0.6
			11:00 stop nas/1`, ordered: true,
			want: []string{"10.8.0.5 alice 08:00…10:00-2h nas/1", "10.8.0.6 bob 10:00…11:00 nas/1"}},
		{name: "sent again with a delay in whole seconds", ordered: true, events: `
			08:00:00 start nas/1 user=alice addr=10.8.0.5
			08:00:01 start nas/1 user=alice addr=10.8.0.5
			09:00:00 stop nas/1
			09:00:01 stop nas/1`,
			want: []string{"10.8.0.5 alice 08:00…09:00 nas/1"}},
		{name: "two words of the end", windows: true, hosts: `10.1.0.5 ws1 07:00`, events: `
			08:00 start ws1/0x1 user=alice on=ws1
			09:00 stop ws1/0x1 user=alice
			09:30 stop ws1/0x1 user=alice`,
			want: []string{"10.1.0.5 alice 08:00…09:00 ws1/0x1"}},
		{name: "no word for long", change: func(c *SessionsConfig) { c.Idle = 30 * time.Minute }, events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			08:20 update nas/1 user=alice addr=10.8.0.5`,
			want: []string{"10.8.0.5 alice 08:00…08:50 nas/1"}},
		{name: "too long", change: func(c *SessionsConfig) { c.MaxLength = 10 * time.Hour }, events: `
			08:00 start nas/1 user=alice addr=10.8.0.5
			17:50 update nas/1 user=alice addr=10.8.0.5`,
			want: []string{"10.8.0.5 alice 08:00…18:00 nas/1"}},
		{name: "several users of a host", windows: true, hosts: `10.1.0.9 ts1 07:00`, events: `
			08:00 start ts1/0x1 user=alice on=ts1
			08:30 start ts1/0x2 user=bob on=ts1
			09:00 stop ts1/0x1`,
			want: []string{"10.1.0.9 alice 08:00…09:00 ts1/0x1", "10.1.0.9 bob 08:30…open ts1/0x2"}},
		{name: "a host that nobody knows", windows: true, hosts: `10.1.0.9 other 07:00`, events: `08:00 start ts1/0x1 user=alice on=ts1`},
		{name: "a host that moves", windows: true, hosts: `
			10.1.0.5 ws1 07:00 09:00
			10.1.0.6 ws1 09:10`, events: `
			08:00 start ws1/0x1 user=alice on=ws1.corp.example
			10:00 stop ws1/0x1`,
			want: []string{"10.1.0.5 alice 08:00…09:00 ws1/0x1", "10.1.0.6 alice 09:10…10:00 ws1/0x1"}},
		{name: "a host that had left before", windows: true, hosts: `10.1.0.5 ws1 06:00 07:00`, events: `08:00 start ws1/0x1 user=alice on=ws1`},
		{name: "one name in two domains", windows: true, hosts: `
			10.1.0.5 ws1.a.example 07:00
			10.1.0.6 ws1.b.example 07:00
			10.1.0.7 ws2.a.example 07:00`, events: `
			08:00 start ws1/0x1 user=alice on=ws1
			08:00 start ws2/0x1 user=bob on=ws2
			08:00 start ws1.b.example/0x1 user=carol on=ws1.b.example`,
			want: []string{"10.1.0.6 carol 08:00…open ws1.b.example/0x1", "10.1.0.7 bob 08:00…open ws2/0x1"}},
		{name: "by the calling station", change: func(c *SessionsConfig) { c.Hosts = []string{"dhcp"} },
			hosts:  `10.2.0.5 phone 07:00 12:00 00:00:5e:00:53:01`,
			events: `08:00 start ap/1 user=alice device=00:00:5e:00:53:01 on=00:00:5e:00:53:01`,
			want:   []string{"10.2.0.5 alice 08:00…12:00 ap/1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := sessionsConfig("radius")
			if c.windows {
				cfg = sessionsConfig("windows-logon")
				cfg.Hosts = []string{"dhcp"}
			}
			if c.change != nil {
				c.change(&cfg)
			}
			events, known := sessionEvents(t, c.events), hosts(t, c.hosts)
			check := func(what string, rec *recorder) {
				t.Helper()
				if d := cmp.Diff(c.want, factLines(rec)); d != "" {
					t.Fatalf("%s: %s", what, d)
				}
			}
			learn := func(r *sessionRig) {
				if err := r.Learn(t.Context(), known); err != nil {
					t.Fatal(err)
				}
			}

			r := runSessions(t, cfg, t.TempDir(), &recorder{})
			learn(r)
			r.take(events...)
			check("at once", r.rec)
			before := len(r.rec.all)
			for range 2 {
				r.take(events...)
				learn(r)
			}
			if more := r.rec.all[before:]; len(more) > 0 {
				t.Errorf("told again it told %+v", more)
			}

			rng := rand.New(rand.NewPCG(1, 2))
			for range 20 {
				mixed := slices.Clone(events)
				if !c.ordered {
					rng.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
				}
				dir, rec, when := t.TempDir(), &recorder{}, rng.IntN(len(mixed)+1)
				r := runSessions(t, cfg, dir, rec)
				for i := range mixed {
					if i == when {
						learn(r)
					}
					if rng.IntN(3) == 0 { // a restart, as of kill -9: the journal is all there is
						r.Sessions = restarted(t, r, cfg, dir, rng.IntN(2) == 0)
					}
					r.take(mixed[i])
				}
				learn(r)
				check(fmt.Sprintf("in the order %v", mixed), rec)
			}
		})
	}
}

// restarted ends a source, with its goodbye or as kill -9 does, and runs it again.
func restarted(t *testing.T, r *sessionRig, cfg SessionsConfig, dir string, killed bool) *Sessions {
	t.Helper()
	if killed {
		r.mu.Lock()
		r.broken = errors.New("killed") // nothing is saved any more
		r.mu.Unlock()
	}
	if err := r.stop(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	again := runSessions(t, cfg, dir, r.rec)
	r.stop = again.stop
	return again.Sessions
}

// TestSessionsUntold: what was written down and not told before the process died is told by
// the next one, and what could not be told at first is told with what comes later.
func TestSessionsUntold(t *testing.T) {
	for _, killed := range []bool{false, true} {
		cfg, dir, rec := sessionsConfig("radius"), t.TempDir(), &recorder{}
		r := runSessions(t, cfg, dir, rec)
		events := sessionEvents(t, `
			08:00 start nas/1 user=alice addr=10.8.0.5
			09:00 stop nas/1
			10:00 start nas/2 user=bob addr=10.8.0.5`)
		r.take(events[0])
		lost := &recorder{fail: func() error { return errors.New("the disk is full") }}
		r.mu.Lock()
		r.Sessions.tell = lost.tell
		r.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := r.Take(ctx, events[1:2]); err == nil {
			t.Fatal("it was taken although it could not be told")
		}
		cancel()
		if d := cmp.Diff([]string{"10.8.0.5 alice 08:00…open nas/1"}, factLines(rec)); d != "" {
			t.Fatal(d)
		}
		r.Sessions = restarted(t, r, cfg, dir, killed)
		if d := cmp.Diff([]string{"10.8.0.5 alice 08:00…09:00 nas/1"}, factLines(rec)); d != "" {
			t.Errorf("after a restart (killed: %v): %s", killed, d)
		}
		r.take(events...) // the sender brings it again
		if d := cmp.Diff([]string{"10.8.0.5 alice 08:00…09:00 nas/1", "10.8.0.5 bob 10:00…open nas/2"}, factLines(rec)); d != "" {
			t.Errorf("brought again (killed: %v): %s", killed, d)
		}
	}
}

// TestSessionsTorn: of a journal whose last line a crash left half, the others count.
func TestSessionsTorn(t *testing.T) {
	cfg, dir, rec := sessionsConfig("radius"), t.TempDir(), &recorder{}
	r := runSessions(t, cfg, dir, rec)
	events := sessionEvents(t, `
		08:00 start nas/1 user=alice addr=10.8.0.5
		09:00 stop nas/1`)
	r.take(events[0])
	path := filepath.Join(dir, "log.sessions.journal")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"seq":2,"events":[{"kind":"stop","at":"2026-10-02T08`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for range 2 {
		r.Sessions = restarted(t, r, cfg, dir, true)
		if d := cmp.Diff([]string{"10.8.0.5 alice 08:00…open nas/1"}, factLines(rec)); d != "" {
			t.Fatal(d)
		}
	}
	r.take(events[1])
	r.Sessions = restarted(t, r, cfg, dir, true)
	if d := cmp.Diff([]string{"10.8.0.5 alice 08:00…09:00 nas/1"}, factLines(rec)); d != "" {
		t.Error(d)
	}
	if err := os.WriteFile(filepath.Join(dir, "log.sessions.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "log.sessions.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := newSessions(cfg, dir, clockNow, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), rec.tell); err == nil || !strings.Contains(err.Error(), "log.sessions.json cannot be read") {
		t.Errorf("of a broken state it says %v", err)
	}
}

// TestSessionsReconfigured: what follows from another configuration is told at the start.
func TestSessionsReconfigured(t *testing.T) {
	cfg, dir, rec := sessionsConfig("radius"), t.TempDir(), &recorder{}
	r := runSessions(t, cfg, dir, rec)
	r.take(sessionEvents(t, `08:00 start nas/1 user=alice addr=10.8.0.5`)...)
	for _, killed := range []bool{true, false} {
		cfg.MaxLength += 2 * time.Hour
		r.Sessions = restarted(t, r, cfg, dir, killed)
		want := "10.8.0.5 alice 08:00…" + clockOf(t, "08:00").Add(cfg.MaxLength).Std().Format("15:04") + " nas/1"
		if d := cmp.Diff([]string{want}, factLines(rec)); d != "" {
			t.Error(d)
		}
	}
}

// TestSessionsHeartbeat: the log was heard at its newest event, never in the future.
func TestSessionsHeartbeat(t *testing.T) {
	cfg, rec := sessionsConfig("radius"), &recorder{}
	cfg.StaleAfter = time.Hour
	r := runSessions(t, cfg, "", rec)
	r.take(sessionEvents(t, `09:00 start nas/1 user=alice addr=10.8.0.5`)...)
	r.take(sessionEvents(t, `08:00 start nas/2 user=bob addr=10.8.0.6`)...)
	r.take(sessionEvents(t, `23:30 stop nas/2`)...)
	var got []string
	for _, b := range rec.beats {
		if b.Source != "log" || b.StaleAfter != time.Hour {
			t.Errorf("a heartbeat %+v", b)
		}
		got = append(got, b.At.Std().Format("15:04"))
	}
	if d := cmp.Diff([]string{"09:00", "09:00", "23:00"}, got); d != "" {
		t.Error(d)
	}
}

// TestSessionsBounds: what ended is forgotten, what is too much is counted, and a journal
// that has grown gives way to the state as a whole.
func TestSessionsBounds(t *testing.T) {
	cfg, dir, rec := sessionsConfig("radius"), t.TempDir(), &recorder{}
	reg := prometheus.NewRegistry()
	met, err := newMetrics(reg)
	if err != nil {
		t.Fatal(err)
	}
	base := clockOf(t, "00:00")
	s, err := newSessions(cfg, dir, func() flow.Time { return base.Add(60 * time.Hour) }, nil, met)
	if err != nil {
		t.Fatal(err)
	}
	stop := running(t, s, rec.tell)
	var events []agent.SessionEvent
	for i := range 20_000 {
		id, addr := fmt.Sprintf("%d", i), flow.AddrFrom4(0x0a000000+uint32(i%4000))
		at := base.Add(time.Duration(i) * 10 * time.Second)
		events = append(events, agent.SessionEvent{Kind: agent.SessionStart, At: at, Host: "nas", Session: id, User: "user" + id, Addr: addr},
			agent.SessionEvent{Kind: agent.SessionStop, At: at.Add(time.Minute), Host: "nas", Session: id})
	}
	events = append(events, agent.SessionEvent{Kind: agent.SessionStop, At: base, Host: "nas", Session: "none"},
		agent.SessionEvent{Kind: agent.SessionStop, Host: "nas", Session: "none"})
	begun := time.Now()
	if err := s.Take(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d events in %v", len(events), time.Since(begun))
	if n := len(rec.facts); n != 20_000 {
		t.Errorf("%d facts", n)
	}
	if st, err := os.Stat(s.journal.path); err != nil || st.Size() > 8<<20 {
		t.Errorf("the journal: %v %v", st, err)
	}
	_ = stop()
	// Sessions of the last day and those since are left: 20,000 of 10 s are 55 hours.
	if n := s.state.count; n > 10_000 || n < 8640 {
		t.Errorf("%d sessions are held", n)
	}
	if len(s.state.byAddr) > 4000 || len(s.state.byHost) != 1 || s.state.facts > 10_000 {
		t.Errorf("%d addresses, %d hosts, %d facts", len(s.state.byAddr), len(s.state.byHost), s.state.facts)
	}
	for outcome, want := range map[sessionOutcome]float64{sessionTaken: 40_000, sessionUnpaired: 1, sessionInvalid: 1} {
		var got dto.Metric
		if err := s.met.events[outcome].Write(&got); err != nil || got.Counter.GetValue() != want {
			t.Errorf("%s: %v %v; want %v", sessionOutcomeTexts[outcome], got.Counter, err, want)
		}
	}
}

// TestSessionsRandom: whatever comes, what was told in the end is what is derived from the
// state, ends are behind beginnings, and a restart changes nothing.
func TestSessionsRandom(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 7))
		cfg, dir, rec := sessionsConfig("radius"), t.TempDir(), &recorder{}
		if seed%2 == 1 {
			cfg = sessionsConfig("windows-logon")
		}
		cfg.Hosts, cfg.Idle = []string{"dhcp"}, time.Duration(rng.IntN(2))*time.Hour
		r := runSessions(t, cfg, dir, rec)
		base := clockOf(t, "08:00")
		for range 200 {
			if rng.IntN(40) == 0 {
				r.Sessions = restarted(t, r, cfg, dir, rng.IntN(2) == 0)
			}
			at := base.Add(time.Duration(rng.IntN(36_000)) * time.Second)
			if rng.IntN(10) == 0 {
				f := flow.Fact{Source: "dhcp", Addr: flow.AddrFrom4(0x0a000000 + rng.Uint32N(4)), Since: at, Workload: "pc" + fmt.Sprint(rng.IntN(3))}
				if rng.IntN(2) == 0 {
					f.Until = at.Add(time.Duration(rng.IntN(7200)) * time.Second)
				}
				if err := r.Learn(t.Context(), []flow.Fact{f}); err != nil {
					t.Fatal(err)
				}
				continue
			}
			ev := agent.SessionEvent{Kind: agent.SessionKind(1 + rng.IntN(6)), At: at, Host: fmt.Sprint("nas", rng.IntN(2))}
			if ev.Kind != agent.SessionOn && ev.Kind != agent.SessionOff {
				ev.Session, ev.User = fmt.Sprint(rng.IntN(4)), []string{"", "alice", "bob"}[rng.IntN(3)]
				if rng.IntN(3) > 0 {
					ev.Addr = flow.AddrFrom4(0x0a000000 + rng.Uint32N(4))
				}
				if rng.IntN(3) == 0 {
					ev.On = "pc" + fmt.Sprint(rng.IntN(3)) + []string{"", ".corp.example"}[rng.IntN(2)]
				}
				if rng.IntN(4) == 0 {
					ev.Began = at - 1000*flow.Time(rng.IntN(3600))
				}
			}
			r.take(ev)
		}
		var want recorder
		want.facts = map[factIdentity]flow.Fact{}
		for g := range r.state.all() {
			for _, f := range r.state.derive(g) {
				want.facts[identityOf(&f)] = f
			}
		}
		if d := cmp.Diff(factLines(&want), factLines(rec)); d != "" {
			t.Fatalf("seed %d: what was told is not what holds: %s", seed, d)
		}
		for _, f := range rec.facts {
			if f.Until != 0 && f.Until < f.Since || f.SinceSlack < 0 || f.UntilSlack < 0 || f.User == "" || f.Kind != flow.FactSession {
				t.Fatalf("seed %d: a fact %+v", seed, f)
			}
		}
		told := len(rec.all)
		r.Sessions = restarted(t, r, cfg, dir, false)
		if more := rec.all[told:]; len(more) > 0 {
			t.Fatalf("seed %d: a restart told %+v", seed, more)
		}
	}
}

func TestSessionsConfig(t *testing.T) {
	parse := func(text string) (Config, error) {
		var c Config
		err := yaml.UnmarshalWithOptions([]byte(text), &c, yaml.Strict())
		return c, err
	}
	c, err := parse(`
sessions:
  - name: vpn
    format: radius
    idle: 30m
    staleAfter: 1h
  - name: logons
    format: windows-logon
    hosts: [office]
    logonTypes: [2, 10]
  - name: gateway
    format: custom
    maxLength: 0s
    custom:
      type: json
      time: s
      fields: {kind: event, at: ts, session: sid, user: user, address: ip}
      values: {kind: {login: start, logout: stop}}
`)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if s := c.Sessions; s[0].MaxLength != 24*time.Hour || s[0].Idle != 30*time.Minute || s[2].MaxLength != 0 ||
		!slices.Equal(s[1].LogonTypes, []int{2, 10}) || !slices.Equal(s[0].LogonTypes, []int{2, 7, 10, 11}) || s[2].Custom.Fields["at"] != "ts" {
		t.Errorf("%+v", c.Sessions)
	}
	sources, err := New(c, Options{StateDir: t.TempDir()})
	if err != nil || len(sources) != 3 || sources[2].Name() != "gateway" {
		t.Fatalf("%v %v", sources, err)
	}
	for _, s := range sources {
		if _, err := s.(*Sessions).NewDecoder(1 << 10); err != nil {
			t.Error(err)
		}
	}
	for text, want := range map[string]string{
		"{name: a b, format: radius}":                                   `sessions[0].name: "a b" cannot name a source; use 1 to 64 letters, digits, dots, - and _, such as office`,
		"{name: x, format: radus}":                                      `sessions[0].format: "radus" is no format of session events; did you mean radius? It may be one of custom, radius, windows-logon`,
		"{name: x, format: windows-logon}":                              `sessions[0].hosts: is empty, and Windows names hosts without their addresses; name a source that knows them, such as dhcp`,
		"{name: x, format: windows-logon, hosts: [x]}":                  `sessions[0].hosts: has x itself; name other sources`,
		"{name: x, format: radius, clients: true}":                      `sessions[0].clients: is for format windows-logon, this one is radius; take it out`,
		"{name: x, format: radius, idle: -1s}":                          `sessions[0].idle: -1s is out of range; it must be 0, or lie between 1s and 8784h0m0s`,
		"{name: x, format: radius, idle: 48h}":                          `sessions[0].idle: 48h0m0s is longer than maxLength (24h0m0s), so that it has no use; make it shorter or 0`,
		"{name: x, format: custom}":                                     `sessions[0].custom is missing; it says how the lines are read`,
		"{name: x, format: radius, custom: {type: json}}":               `sessions[0].custom: is for format custom, this one is radius; take it out`,
		"{name: x, format: windows-logon, hosts: [y], logonTypes: [3]}": `sessions[0].logonTypes: 3 is a logon over the network, which says something of the client only; set clients, or take it out`,
	} {
		c, err := parse("sessions:\n  - " + text)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Validate(); err == nil || err.Error() != want {
			t.Errorf("%s: %v; want %s", text, err, want)
		}
	}
	if c, _ = parse("sessions: [{name: x, format: radius}, {name: x, format: radius}]"); c.Validate() == nil {
		t.Error("two sources of one name")
	}
}

// TestSessionsManyStays: a session that is at ever more addresses keeps what it told.
func TestSessionsManyStays(t *testing.T) {
	rec := &recorder{}
	r := runSessions(t, sessionsConfig("radius"), "", rec)
	base := clockOf(t, "08:00")
	var events []agent.SessionEvent
	for i := range 5 * maxStays {
		ev := agent.SessionEvent{Kind: agent.SessionUpdate, At: base.Add(time.Duration(i) * time.Minute), Host: "nas", Session: "1", User: "alice", Addr: flow.AddrFrom4(0x0a000000 + uint32(i))}
		if i == 0 {
			ev.Kind = agent.SessionStart
		}
		events = append(events, ev)
	}
	r.take(events...)
	told := len(rec.all)
	for i := range events {
		r.take(events[i])
	}
	if len(rec.all) != told {
		t.Errorf("told again it told %+v", rec.all[told:])
	}
	for i := range events {
		f := rec.of(events[i].Addr.String())
		if len(f) != 1 || f[0].Since != events[i].At || i+1 < len(events) && f[0].Until != events[i+1].At {
			t.Fatalf("at %v: %+v", events[i].At, f)
		}
	}
	if n := r.state.count; n != 5 {
		t.Errorf("%d sessions", n)
	}
}

// TestSessionsUncertainEnds: where two things end a fact, the earlier end counts, and nothing
// is certain from when either may have come.
func TestSessionsUncertainEnds(t *testing.T) {
	lease := func(since, until string, slack time.Duration) flow.Fact {
		return flow.Fact{Source: "dhcp", Kind: flow.FactLease, Addr: flow.MustParseAddr("10.1.0.5"), Workload: "ws1",
			Since: clockOf(t, since), Until: clockOf(t, until), UntilSlack: slack}
	}
	for _, c := range []struct {
		name, events, want string
		host               flow.Fact
		idle               time.Duration
	}{
		{"a logoff while the host may have left already", `
			08:00 start ws1/0x1 user=alice on=ws1
			09:50 stop ws1/0x1`, "10.1.0.5 alice 08:00…09:50-20m ws1/0x1", lease("07:00", "10:00", 30*time.Minute), 0},
		{"a logoff before the host can have left", `
			08:00 start ws1/0x1 user=alice on=ws1
			09:20 stop ws1/0x1`, "10.1.0.5 alice 08:00…09:20 ws1/0x1", lease("07:00", "10:00", 30*time.Minute), 0},
		{"the host leaves while the session may have ended already", `
			08:00 start ws1/0x1 user=alice on=ws1
			10:00 on ws1`, "10.1.0.5 alice 08:00…09:50-1h50m ws1/0x1", lease("07:00", "09:50", 0), 0},
		{"idle for long, and at some time the host began anew", `
			08:00 start ws1/0x1 user=alice on=ws1
			10:00 on ws1`, "10.1.0.5 alice 08:00…09:00-1h ws1/0x1", lease("07:00", "12:00", 0), time.Hour},
		{"idle, and the host was turned off later", `
			08:00 start ws1/0x1 user=alice on=ws1
			10:00 off ws1`, "10.1.0.5 alice 08:00…09:00 ws1/0x1", lease("07:00", "12:00", 0), time.Hour},
	} {
		cfg, rec := sessionsConfig("windows-logon"), &recorder{}
		cfg.Hosts, cfg.Idle = []string{"dhcp"}, c.idle
		r := runSessions(t, cfg, "", rec)
		if err := r.Learn(t.Context(), []flow.Fact{c.host}); err != nil {
			t.Fatal(err)
		}
		r.take(sessionEvents(t, c.events)...)
		if d := cmp.Diff([]string{c.want}, factLines(rec)); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
	}
}

// TestSessionsEvictedForGood: who lost an address to another does not get it back because the
// other's session is forgotten one day, neither in one family of two nor at a restart.
func TestSessionsEvictedForGood(t *testing.T) {
	cfg, dir, rec := sessionsConfig("radius"), t.TempDir(), &recorder{}
	r := runSessions(t, cfg, dir, rec)
	base := clockOf(t, "08:00")
	v4, v6 := flow.MustParseAddr("10.8.0.5"), flow.MustParseAddr("2001:db8::5")
	ev := func(kind agent.SessionKind, after time.Duration, id, user string, addr flow.Addr) agent.SessionEvent {
		return agent.SessionEvent{Kind: kind, At: base.Add(after), Host: "nas", Session: id, User: user, Addr: addr}
	}
	r.take(ev(agent.SessionStart, 0, "1", "alice", v4), ev(agent.SessionUpdate, 0, "1", "alice", v6),
		ev(agent.SessionStart, time.Hour, "2", "bob", v4), ev(agent.SessionStop, 2*time.Hour, "2", "bob", flow.Addr{}))
	check := func(when string) {
		t.Helper()
		f := rec.of("10.8.0.5")
		if len(f) != 2 || f[0].User != "alice" || f[0].Until != base.Add(time.Hour) || f[0].UntilSlack != time.Hour {
			t.Errorf("%s: %+v", when, f)
		}
		if g := rec.of("2001:db8::5"); len(g) != 1 || g[0].Until != 0 {
			t.Errorf("%s: %+v", when, g)
		}
	}
	check("at first")
	r.take(ev(agent.SessionUpdate, 40*time.Hour, "1", "alice", v6)) // a word from the other family's address
	r.mu.Lock()
	r.state.forget(base.Add(40 * time.Hour))
	if len(r.state.groups) != 1 {
		t.Errorf("%d sessions are remembered", len(r.state.groups))
	}
	r.mu.Unlock()
	r.take(ev(agent.SessionUpdate, 41*time.Hour, "1", "alice", v6))
	check("once the other was forgotten")
	r.Sessions = restarted(t, r, cfg, dir, false)
	check("after a restart")

	// Heard there again, it is at the address after all.
	r.take(ev(agent.SessionUpdate, 42*time.Hour, "1", "alice", v4))
	if f := rec.of("10.8.0.5"); f[0].Until != 0 {
		t.Errorf("heard there again: %+v", f)
	}
}

// TestSessionsOneID: a log that uses one id for ever is forgotten like others, what it told
// stays told, and it has no more room than others.
func TestSessionsOneID(t *testing.T) {
	cfg := sessionsConfig("custom")
	st := newSessionState(&cfg, false)
	at, told := clockOf(t, "00:00"), 0
	take := func(n int, every time.Duration) {
		t.Helper()
		for range n {
			at = at.Add(every)
			dirty := dirtySessions{}
			for _, ev := range []agent.SessionEvent{
				{Kind: agent.SessionStart, At: at, Host: "vpn", Session: "alice", User: "alice", Addr: flow.AddrFrom4(0x0a000000 + uint32(told%50))},
				{Kind: agent.SessionStop, At: at.Add(20 * time.Second), Host: "vpn", Session: "alice"},
			} {
				if got := st.apply(&ev, dirty); got != sessionTaken {
					t.Fatal(sessionOutcomeTexts[got])
				}
			}
			facts := st.changes(dirty)
			if len(facts) != 1 || facts[0].Since != at || facts[0].Until != at.Add(20*time.Second) {
				t.Fatalf("at %v it told %+v", at, facts)
			}
			told++
		}
	}
	check := func(what string, least, most int) {
		t.Helper()
		if more := st.changes(st.all()); len(more) != 0 {
			t.Errorf("%s: it told again %+v", what, more)
		}
		if st.count < least || st.count > most || st.facts != st.count || len(st.byAddr) > 50 {
			t.Errorf("%s: %d sessions with %d facts at %d addresses are remembered", what, st.count, st.facts, len(st.byAddr))
		}
	}
	take(100, 30*time.Minute)
	st.forget(at)
	check("after a day", 48, 49)
	take(1000, 5*time.Minute)
	check("used again and again", maxUses, maxUses)
	late := agent.SessionEvent{Kind: agent.SessionUpdate, At: at.Add(-12 * time.Hour), Host: "vpn", Session: "alice", User: "alice", Addr: flow.MustParseAddr("10.0.0.1")}
	if got := st.apply(&late, dirtySessions{}); got != sessionTaken || st.count != maxUses {
		t.Errorf("a word of what is forgotten: %s, %d sessions", sessionOutcomeTexts[got], st.count)
	}
	check("a word of what is forgotten", maxUses, maxUses)
	st.count += maxSessions // as if others had taken the room
	st.looked = at
	full := agent.SessionEvent{Kind: agent.SessionStart, At: at.Add(40 * time.Second), Host: "vpn", Session: "alice", User: "alice"}
	if got := st.apply(&full, dirtySessions{}); got != sessionFull || len(st.groups["vpn/alice"].sessions) != maxUses {
		t.Errorf("one more where there is no room: %s", sessionOutcomeTexts[got])
	}
}

// TestSessionsForget: whatever is forgotten, what was told stays as it is.
func TestSessionsForget(t *testing.T) {
	forgot := 0
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 11))
		cfg := sessionsConfig("radius")
		cfg.Hosts = []string{"dhcp"}
		if rng.IntN(2) == 0 {
			cfg.MaxLength = time.Duration(1+rng.IntN(100)) * time.Hour
		}
		if rng.IntN(2) == 0 {
			cfg.Idle = time.Duration(1+rng.IntN(30)) * time.Hour
		}
		st := newSessionState(&cfg, seed%3 == 0)
		met := (*metrics)(nil).sessions("log")
		at, base := clockOf(t, "08:00"), clockOf(t, "08:00")
		leased := map[flow.Addr]flow.Time{} // until when an address is a host's
		for range 400 {
			at = at.Add(time.Duration(rng.IntN(3600)) * time.Second)
			dirty := dirtySessions{}
			if rng.IntN(10) == 0 {
				f := flow.Fact{Source: "dhcp", Addr: flow.AddrFrom4(0x0a000000 + rng.Uint32N(6)), Since: at, Workload: "pc" + fmt.Sprint(rng.IntN(3)), Until: at.Add(time.Duration(1+rng.IntN(40)) * time.Hour)}
				if leased[f.Addr] < f.Since {
					leased[f.Addr] = f.Until
					st.hosts.learn(&f, met, st, dirty)
				}
			} else {
				ev := agent.SessionEvent{Kind: agent.SessionKind(1 + rng.IntN(6)), At: at, Host: fmt.Sprint("nas", rng.IntN(2))}
				if ev.Kind != agent.SessionOn && ev.Kind != agent.SessionOff {
					ev.Session, ev.User = fmt.Sprint(rng.IntN(6)), []string{"", "alice", "bob"}[rng.IntN(3)]
					if rng.IntN(3) > 0 {
						ev.Addr = flow.AddrFrom4(0x0a000000 + rng.Uint32N(6))
					}
					if rng.IntN(3) == 0 {
						ev.On = "pc" + fmt.Sprint(rng.IntN(3))
					}
				} else if rng.IntN(5) > 0 {
					continue
				}
				st.apply(&ev, dirty)
			}
			st.changes(dirty)
			if rng.IntN(4) > 0 {
				continue
			}
			before := st.facts
			if rng.IntN(2) == 0 {
				st.forget(at)
			} else {
				st.forgetTo(at, 0, nil)
			}
			forgot += before - st.facts
			if more := st.changes(st.all()); len(more) > 0 {
				t.Fatalf("seed %d: after %v it told %+v", seed, at.Sub(base), more)
			}
			count, facts := 0, 0
			for _, g := range st.groups {
				count, facts = count+len(g.sessions), facts+len(g.told)
			}
			if st.count != count || st.facts != facts {
				t.Fatalf("seed %d: %d sessions and %d facts are counted, there are %d and %d", seed, st.count, st.facts, count, facts)
			}
		}
	}
	if forgot < 1000 {
		t.Errorf("only %d facts were forgotten", forgot)
	}
}

// TestSessionsManyBoots: what the first of many restarts ended has ended then.
func TestSessionsManyBoots(t *testing.T) {
	cfg, dir, rec := sessionsConfig("radius"), t.TempDir(), &recorder{}
	r := runSessions(t, cfg, dir, rec)
	r.take(sessionEvents(t, `
		08:00 start nas/1 user=alice addr=10.8.0.5
		09:00 off nas`)...)
	told := len(rec.all)
	for i := range 3 * maxBoots {
		at := clockOf(t, "09:01").Add(time.Duration(i) * time.Minute)
		r.take(agent.SessionEvent{Kind: agent.SessionOn, At: at, Host: "nas"}, agent.SessionEvent{Kind: agent.SessionOff, At: at.Add(30 * time.Second), Host: "nas"})
		if i == maxBoots {
			r.Sessions = restarted(t, r, cfg, dir, false)
		}
	}
	if d := cmp.Diff([]string{"10.8.0.5 alice 08:00…09:00 nas/1"}, factLines(rec)); d != "" || len(rec.all) != told {
		t.Errorf("%s; told again: %+v", d, rec.all[told:])
	}
	r.take(sessionEvents(t, `09:30 update nas/1 user=alice addr=10.8.0.5`)...)
	if n := len(r.state.groups["nas/1"].sessions); n != 2 {
		t.Errorf("a word long after went on with what had ended: %d sessions", n)
	}
}
