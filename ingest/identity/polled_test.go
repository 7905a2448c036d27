package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/postern/postern/flow"
)

// recorder is what sources tell to: it keeps facts by what they are about.
type recorder struct {
	mu    sync.Mutex
	facts map[factIdentity]flow.Fact
	all   []flow.Fact
	beats []flow.Heartbeat
	fail  func() error
}

func (r *recorder) tell(_ context.Context, facts []flow.Fact, beat flow.Heartbeat) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.facts == nil {
		r.facts = map[factIdentity]flow.Fact{}
	}
	for _, f := range facts {
		if f.Source == "" || f.Kind == 0 || f.Since == 0 {
			panic(fmt.Sprintf("a fact without source, kind or since: %+v", f))
		}
		r.facts[identityOf(&f)] = f
	}
	r.all = append(r.all, facts...)
	if beat != (flow.Heartbeat{}) {
		r.beats = append(r.beats, beat)
	}
	if r.fail != nil {
		return r.fail()
	}
	return nil
}

// open are the facts of an address without end, or of all addresses.
func (r *recorder) open() (out []flow.Fact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.facts {
		if f.Until == 0 {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b flow.Fact) int { return compareHeld(heldFact{Fact: a}, heldFact{Fact: b}) })
	return out
}

// of are the facts about an address by their begin.
func (r *recorder) of(addr string) (out []flow.Fact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.facts {
		if f.Addr == flow.MustParseAddr(addr) {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b flow.Fact) int { return compareHeld(heldFact{Fact: a}, heldFact{Fact: b}) })
	return out
}

func (r *recorder) take() (facts []flow.Fact, beats []flow.Heartbeat) {
	r.mu.Lock()
	defer r.mu.Unlock()
	facts, beats = r.all, r.beats
	r.all, r.beats = nil, nil
	return facts, beats
}

type readFunc func() ([]flow.Fact, error)

func (f readFunc) read(context.Context) ([]flow.Fact, error) { return f() }

func clockNow() flow.Time { return flow.TimeOf(time.Now()) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// running runs a source until stop is called.
func running(t *testing.T, s Source, tell Tell) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, tell) }()
	return func() error {
		cancel()
		return <-done
	}
}

func host(addr, workload string) flow.Fact {
	return flow.Fact{Addr: flow.MustParseAddr(addr), Workload: workload}
}

func TestPolledBorders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := clockNow()
		var mu sync.Mutex
		var now []flow.Fact
		var fail error
		say := func(err error, facts ...flow.Fact) {
			mu.Lock()
			defer mu.Unlock()
			now, fail = facts, err
		}
		var rec recorder
		reg := prometheus.NewRegistry()
		met, err := newMetrics(reg)
		if err != nil {
			t.Fatal(err)
		}
		p := newPolled("inv", flow.FactStatic, time.Minute, 5*time.Minute, readFunc(func() ([]flow.Fact, error) {
			mu.Lock()
			defer mu.Unlock()
			return now, fail
		}), t.TempDir(), clockNow, quiet(), met)
		want := func(what string, facts ...flow.Fact) {
			t.Helper()
			got, _ := rec.take()
			if diff := cmp.Diff(facts, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		fact := func(addr, workload string, since, until flow.Time, sinceSlack, untilSlack time.Duration) flow.Fact {
			return flow.Fact{Source: "inv", Kind: flow.FactStatic, Addr: flow.MustParseAddr(addr), Workload: workload,
				Since: since, Until: until, SinceSlack: sinceSlack, UntilSlack: untilSlack}
		}
		at := func(minutes int) flow.Time { return start.Add(time.Duration(minutes) * time.Minute) }

		say(nil, host("10.0.0.1", "web"), host("10.0.0.2", "db"), host("::ffff:10.0.0.2", "db"))
		stop := running(t, p, rec.tell)
		synctest.Wait()
		want("first read", fact("10.0.0.1", "web", at(0), 0, 0, 0), fact("10.0.0.2", "db", at(0), 0, 0, 0))

		time.Sleep(time.Minute)
		synctest.Wait()
		want("nothing changed")

		say(nil, host("10.0.0.1", "mail"), host("10.0.0.2", "db"), host("10.0.0.3", "dns"))
		time.Sleep(time.Minute)
		synctest.Wait()
		want("another holder",
			fact("10.0.0.1", "web", at(0), at(2), 0, time.Minute),
			fact("10.0.0.1", "mail", at(2), 0, time.Minute, 0), fact("10.0.0.3", "dns", at(2), 0, time.Minute, 0))

		// Two failures: nothing ends, no heartbeat, tried again within the minute.
		say(errors.New("away"))
		rec.take()
		time.Sleep(time.Minute)
		synctest.Wait()
		facts, beats := rec.take()
		if len(facts)+len(beats) != 0 {
			t.Errorf("a failed read told %v and %v", facts, beats)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		say(nil, host("10.0.0.2", "db"), host("10.0.0.3", "dns"))
		time.Sleep(time.Minute)
		synctest.Wait()
		facts, beats = rec.take()
		if len(facts) != 1 || facts[0].Workload != "mail" || facts[0].Until < at(6) || facts[0].Until > at(7) || facts[0].UntilSlack != facts[0].Until.Sub(at(2)) {
			t.Errorf("after the failures: %+v", facts)
		}
		if len(beats) == 0 || beats[0].StaleAfter != 5*time.Minute || beats[0].At != facts[0].Until {
			t.Errorf("heartbeats %v", beats)
		}
		if reads, failures := counterOf(t, reg, "postern_identity_source_reads_total"), counterOf(t, reg, "postern_identity_source_failures_total"); failures < 2 || reads != failures+4 {
			t.Errorf("%v reads, %v failures", reads, failures)
		}
		if held := counterOf(t, reg, "postern_identity_source_facts"); held != 2 {
			t.Errorf("%v facts held", held)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func counterOf(t *testing.T, reg prometheus.Gatherer, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			if f.GetType() == dto.MetricType_COUNTER {
				return m.GetCounter().GetValue()
			}
			return m.GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestPolledPartial(t *testing.T) {
	p := newPolled("inv", flow.FactStatic, time.Minute, 0, nil, "", nil, nil, nil)
	a, b := host("10.0.0.1", "web"), host("10.0.0.2", "db")
	commit := func(facts []flow.Fact, partial *partialError, now flow.Time) []flow.Fact {
		var rec recorder
		c := p.diff(facts, partial, now)
		c.Last = now
		if err := p.commit(t.Context(), rec.tell, c); err != nil {
			t.Fatal(err)
		}
		return rec.all
	}
	commit([]flow.Fact{a, b}, nil, 1000)
	bad := &partialError{}
	bad.add(errors.New("row 1"), []flow.Addr{a.Addr}, "")
	if got := commit([]flow.Fact{b}, bad, 2000); len(got) != 0 {
		t.Errorf("a row that could not be read ended %v", got)
	}
	bad.add(errors.New("row 9"), nil, "")
	if got := commit(nil, bad, 3000); len(got) != 0 {
		t.Errorf("a row that says nothing about whom ended %v", got)
	}
	if got := commit([]flow.Fact{b}, nil, 4000); len(got) != 1 || got[0].Workload != "web" || got[0].Until != 4000 || got[0].UntilSlack != time.Second {
		t.Errorf("gone after all: %+v", got)
	}
}

// TestPolledTwoHolders: an address that two entries claim has both, told apart by their
// session, and each goes when its entry goes.
func TestPolledTwoHolders(t *testing.T) {
	p := newPolled("inv", flow.FactStatic, time.Minute, 0, nil, "", nil, nil, nil)
	var rec recorder
	step := func(now flow.Time, facts ...flow.Fact) {
		c := p.diff(facts, nil, now)
		c.Last = now
		if err := p.commit(t.Context(), rec.tell, c); err != nil {
			t.Fatal(err)
		}
	}
	a, b := host("10.0.0.1", "a"), host("10.0.0.1", "b")
	step(1000, a, b)
	if open := rec.open(); len(open) != 2 || open[0].Session == open[1].Session {
		t.Fatalf("two holders: %+v", open)
	}
	told := len(rec.all)
	step(2000, b, a)
	if len(rec.all) != told {
		t.Error("told again in another order")
	}
	step(3000, b)
	if open := rec.open(); len(open) != 1 || open[0].Workload != "b" {
		t.Errorf("one is gone: %+v", open)
	}
}

// TestPolledOwnTimes: a fact with a Since of its own is passed on as it is; its content
// and its end may change.
func TestPolledOwnTimes(t *testing.T) {
	p := newPolled("api", flow.FactLease, time.Minute, 0, nil, "", nil, nil, nil)
	var rec recorder
	step := func(now flow.Time, facts ...flow.Fact) []flow.Fact {
		rec.take()
		c := p.diff(facts, nil, now)
		c.Last = now
		if err := p.commit(t.Context(), rec.tell, c); err != nil {
			t.Fatal(err)
		}
		out, _ := rec.take()
		return out
	}
	f := host("10.0.0.1", "a")
	f.Since, f.Until = 500, 9000
	if got := step(1000, f); len(got) != 1 || got[0].Since != 500 || got[0].SinceSlack != 0 || got[0].Until != 9000 {
		t.Errorf("new: %+v", got)
	}
	f.Until = 12000
	if got := step(2000, f); len(got) != 1 || got[0].Since != 500 || got[0].Until != 12000 {
		t.Errorf("extended: %+v", got)
	}
	f.User = "alice"
	if got := step(3000, f); len(got) != 1 || got[0].User != "alice" || got[0].Until != 12000 {
		t.Errorf("with a user: %+v", got)
	}
	if got := step(13000); len(got) != 0 {
		t.Errorf("what had ended by itself was ended again: %+v", got)
	}
}

// TestPolledCrash: a process that dies between telling and writing down that it told
// tells the same again, and nothing else.
func TestPolledCrash(t *testing.T) {
	dir := t.TempDir()
	facts := []flow.Fact{host("10.0.0.1", "a"), host("10.0.0.2", "b")}
	clock := flow.Time(1000)
	newOne := func() *polled {
		return newPolled("inv", flow.FactStatic, time.Minute, 0, readFunc(func() ([]flow.Fact, error) { return facts, nil }), dir,
			func() flow.Time { return clock }, quiet(), nil)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var rec recorder
	rec.fail = func() error { cancel(); return errors.New("the power went") }
	if err := newOne().Run(ctx, rec.tell); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	before, _ := rec.take()

	clock, facts = 50_000, []flow.Fact{host("10.0.0.1", "a"), host("10.0.0.2", "c")}
	rec.fail = nil
	p := newOne()
	if err := p.resume(t.Context(), rec.tell); err != nil {
		t.Fatal(err)
	}
	again, _ := rec.take()
	if diff := cmp.Diff(before, again); diff != "" || len(before) != 2 {
		t.Errorf("told after the crash (-before +after):\n%s", diff)
	}
	if err := p.poll(t.Context(), rec.tell); err != nil {
		t.Fatal(err)
	}
	got, _ := rec.take()
	if len(got) != 2 || got[0].Workload != "b" || got[0].Until != 50_000 || got[0].UntilSlack != 49*time.Second || got[1].Workload != "c" {
		t.Errorf("then: %+v", got)
	}
}

// TestPolledRandom runs random versions of a source, with failures, restarts and crashes,
// against the obvious: what is open at the place that is told to is what the source says.
func TestPolledRandom(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 5))
		dir := t.TempDir()
		clock := flow.Time(1_000_000)
		var now []flow.Fact
		var readErr error
		var rec recorder
		newOne := func() *polled {
			p := newPolled("src", flow.FactStatic, time.Minute, 0, readFunc(func() ([]flow.Fact, error) { return now, readErr }), dir,
				func() flow.Time { return clock }, quiet(), nil)
			if err := p.resume(t.Context(), rec.tell); err != nil {
				t.Fatal(err)
			}
			return p
		}
		p := newOne()
		for range 30 {
			clock += flow.Time(1 + rng.IntN(100_000))
			now = nil
			for range rng.IntN(6) {
				f := host(fmt.Sprintf("10.0.0.%d", 1+rng.IntN(3)), string(rune('a'+rng.IntN(3))))
				if rng.IntN(3) == 0 {
					f.Addr, f.Subject, f.User = flow.Addr{}, fmt.Sprintf("u%d", rng.IntN(3)), f.Workload
					f.Groups = []string{"g"}
				}
				now = append(now, f)
			}
			readErr = nil
			switch rng.IntN(5) {
			case 0:
				readErr = errors.New("away")
			case 1:
				p = newOne()
			case 2: // dies in the middle of telling
				ctx, cancel := context.WithCancel(t.Context())
				rec.fail = func() error { cancel(); return errors.New("dead") }
				if err := p.poll(ctx, rec.tell); err == nil {
					t.Fatal("the poll did not notice")
				}
				rec.fail = nil
				p = newOne()
			}
			if err := p.poll(t.Context(), rec.tell); err != nil {
				if readErr == nil {
					t.Fatal(err)
				}
				continue
			}
			want, got := map[string]bool{}, map[string]bool{}
			key := func(f flow.Fact) string { return fmt.Sprint(f.Addr, f.Subject, f.Workload, f.User, f.Groups) }
			for _, f := range now {
				want[key(f)] = true
			}
			for _, f := range rec.open() {
				if got[key(f)] {
					t.Fatalf("seed %d: open twice: %+v", seed, f)
				}
				got[key(f)] = true
			}
			if diff := cmp.Diff(slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got))); diff != "" {
				t.Fatalf("seed %d: open (-the source says +told):\n%s", seed, diff)
			}
		}
	}
}

func TestPolledState(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "inv.facts.json"), []byte(`{"version":1,"facts":[{"key":"zz"`), 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPolled("inv", flow.FactStatic, time.Minute, 0, readFunc(func() ([]flow.Fact, error) { return nil, nil }), dir, clockNow, quiet(), nil)
	err := p.Run(t.Context(), new(recorder).tell)
	if err == nil || !strings.Contains(err.Error(), "inv.facts.json") || !strings.Contains(err.Error(), "remove the file") {
		t.Errorf("a broken state: %v", err)
	}
}

func TestPolledPermanent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolled("inv", flow.FactStatic, time.Minute, 0, readFunc(func() ([]flow.Fact, error) { return nil, permanent(errors.New("no inventory")) }), "", clockNow, quiet(), nil)
		if err := p.Run(t.Context(), new(recorder).tell); err == nil || !strings.Contains(err.Error(), "identity source inv: no inventory") {
			t.Errorf("at start: %v", err)
		}
	})
}
