package detect

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
)

// suppressedHistory is a policy whose versions are in force from hours after the midnight
// of the tests on, each with the suppressions of its text.
func suppressedHistory(t testing.TB, names *flow.Names, versions map[float64]string) *policy.History {
	t.Helper()
	h := policy.NewHistory(names, policy.DefaultConfig())
	for hours, text := range versions {
		p, diags := policy.Load(fstest.MapFS{"p.yaml": {Data: []byte(`postern: v1
segments:
- {name: office, prefixes: [10.0.0.0/16], stage: enforced}
- {name: vault, prefixes: [10.9.0.0/24], stage: enforced, tier: high}
- {name: crown, prefixes: [10.8.0.0/24], stage: enforced, tier: crown-jewel}
rules: [{id: no-way, action: deny, from: {segment: office}, to: {segment: vault}}]
` + text)}})
		if p == nil {
			t.Fatal(diags)
		}
		if err := h.Add(p, at(hours*3600)); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// suppression is one of the test's pair, over hours after the midnight; more is put in it.
func suppression(id string, from, to float64, more string) string {
	text := func(hours float64) string { return at(hours * 3600).String() }
	if !strings.Contains(more, "approved") {
		more += fmt.Sprintf(", approved: [{by: raj, role: lead, at: %s}]", text(from))
	}
	if !strings.Contains(more, "detector") {
		more += ", detector: policy-violation"
	}
	return fmt.Sprintf("- {id: %s, key: {client: 10.0.0.1, server: 10.9.0.1, service: tcp/443, rule: no-way}, ticket: T, owner: o, reason: r, requested: {by: ana, at: %s}, notBefore: %s, expires: %s%s}\n",
		id, text(from), text(from), text(to), more)
}

// flowAt is an escaped flow of the test's pair at an hour after the midnight; each has a
// port of its own.
func flowAt(names *flow.Names, hours float64) flow.Record {
	r := judged(names, uint64(hours*3600), "10.0.0.1", 1024+uint16(hours*60), "10.9.0.1", 443, hours*3600, hours*3600+1, escaped(names))
	r.SrcSegment, r.DstSegment = names.Intern("office"), names.Intern("vault")
	return r
}

// toldRun is what a run of flows, one a segment of input, gave.
type toldRun struct {
	events []string // "hour count+suppressed" of what was told
	stored []string // "hour suppressor" of each contribution
	last   *flow.Finding
	d      *Detector
}

func (r *toldRun) take(now flow.Time, c []flow.Contribution, e []*flow.Finding) {
	hour := func() string { return fmt.Sprintf("%.1f", float64(now-base)/3.6e6) }
	for i := range c {
		r.stored = append(r.stored, strings.TrimSpace(hour()+" "+c[i].Finding.SuppressedBy))
	}
	for _, f := range e {
		if f.SuppressedBy != "" {
			r.events = append(r.events, "told though suppressed by "+f.SuppressedBy)
		}
		r.events = append(r.events, fmt.Sprintf("%s %s %d+%d", hour(), f.Severity, f.Count, f.Suppressed))
		r.last = f
	}
}

// runSuppressed puts flows through a detector, and ticks of every tenth of an hour until
// the end; between any two it may be made anew from its snapshot.
func runSuppressed(t testing.TB, names *flow.Names, h *policy.History, until float64, restarts bool, flows ...flow.Record) *toldRun {
	t.Helper()
	cfg := DefaultConfig()
	cfg.UpdateEvery = time.Hour
	make := func() *Detector {
		d, err := New(cfg, Versions{h}, names, nil)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	r := &toldRun{d: make()}
	i := 0
	for tick := 0; float64(tick)/10 <= until; tick++ {
		now := at(float64(tick) * 360)
		for ; i < len(flows) && flows[i].Start <= now; i++ {
			r.d.Observe(batchOf(flows[i]))
		}
		r.d.Tick(now)
		c, e := r.d.Collect()
		r.take(now, c, e)
		if restarts {
			state, err := r.d.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			r.d = make()
			if err := r.d.Restore(state); err != nil {
				t.Fatal(err)
			}
		}
	}
	return r
}

// TestSuppressed is THREATS 35: what a suppression holds back and what not, and that it
// is over when it is over. Each case runs with and without restarts, which must not show.
func TestSuppressed(t *testing.T) {
	names := flow.NewNames(0)
	section := func(list ...string) map[float64]string {
		return map[float64]string{-24 * 60: "suppressions:\n" + strings.Join(list, "")}
	}
	crown := func(hours float64) flow.Record {
		r := flowAt(names, hours)
		r.DstSegment = names.Intern("crown")
		return r
	}
	for _, c := range []struct {
		what     string
		versions map[float64]string
		flows    []flow.Record
		until    float64
		told     []string
		// stored is each contribution; unsaid: not looked at.
		stored []string
	}{
		{
			what: "none", versions: map[float64]string{-24: ""},
			flows: []flow.Record{flowAt(names, 1), flowAt(names, 1.5), flowAt(names, 3)}, until: 4,
			told:   []string{"1.0 high 1+0", "2.1 high 2+0", "3.1 high 3+0"},
			stored: []string{"1.0", "1.5", "3.0"},
		},
		{
			what: "held back, and told at the end with what happened meanwhile", versions: section(suppression("SUP-1", 0, 5, "")),
			flows: []flow.Record{flowAt(names, 1), flowAt(names, 2), flowAt(names, 4.9)}, until: 8,
			told:   []string{"5.0 high 3+3"},
			stored: []string{"1.0 SUP-1", "2.0 SUP-1", "4.9 SUP-1", "5.0"},
		},
		{
			what: "told before, during and after", versions: section(suppression("SUP-1", 2, 5, "")),
			flows: []flow.Record{flowAt(names, 1), flowAt(names, 3), flowAt(names, 4), flowAt(names, 6)}, until: 8,
			told: []string{"1.0 high 1+0", "5.0 high 3+2", "6.0 high 4+2"},
		},
		{
			what: "what came before it began is told though it holds", versions: section(suppression("SUP-1", 1.45, 5, "")),
			flows: []flow.Record{flowAt(names, 1), flowAt(names, 1.4), flowAt(names, 1.5)}, until: 3,
			told: []string{"1.0 high 1+0", "2.1 high 3+1"},
		},
		{
			what: "ended long ago", versions: section(suppression("SUP-1", -48, -24, "")),
			flows: []flow.Record{flowAt(names, 1)}, until: 3, told: []string{"1.0 high 1+0"}, stored: []string{"1.0"},
		},
		{
			what: "unapproved", versions: section(suppression("SUP-1", 0, 5, ", approved: []")),
			flows: []flow.Record{flowAt(names, 1)}, until: 3, told: []string{"1.0 high 1+0"},
		},
		{
			what: "approved after it happened", versions: section(suppression("SUP-1", 0, 5, fmt.Sprintf(", approved: [{by: raj, at: %v}]", at(1.05*3600)))),
			flows: []flow.Record{flowAt(names, 1), flowAt(names, 1.1)}, until: 6,
			told: []string{"1.0 high 1+0", "5.0 high 2+1"},
		},
		{
			what: "of another detector", versions: section(suppression("SUP-1", 0, 5, ", detector: misblocked")),
			flows: []flow.Record{flowAt(names, 1)}, until: 3, told: []string{"1.0 high 1+0"},
		},
		{
			what: "only up to medium", versions: section(suppression("SUP-1", 0, 5, ", upTo: medium")),
			flows: []flow.Record{flowAt(names, 1)}, until: 3, told: []string{"1.0 high 1+0"},
		},
		{
			what: "critical is told always", versions: section(suppression("SUP-1", 0, 5, "")),
			flows: []flow.Record{crown(1), crown(1.5)}, until: 3,
			told: []string{"1.0 critical 1+0", "2.1 critical 2+0"}, stored: []string{"1.0", "1.5"},
		},
		{
			what: "what becomes critical is told at once", versions: section(suppression("SUP-1", 0, 5, "")),
			flows: []flow.Record{flowAt(names, 1), crown(2), flowAt(names, 2.5)}, until: 4,
			told: []string{"2.0 critical 2+1", "3.1 critical 3+2"},
		},
		{
			what: "taken out of the files before its end", versions: map[float64]string{-24: "suppressions:\n" + suppression("SUP-1", 0, 5, ""), 3: ""},
			flows: []flow.Record{flowAt(names, 1), flowAt(names, 2)}, until: 6,
			told: []string{"3.0 high 2+2"},
		},
		{
			what: "put in after it happened", versions: map[float64]string{-24: "", 3: "suppressions:\n" + suppression("SUP-1", 0, 5, "")},
			flows: []flow.Record{flowAt(names, 1), flowAt(names, 3.5)}, until: 6,
			told: []string{"1.0 high 1+0", "5.0 high 2+1"},
		},
		{
			what: "another follows: told in between all the same", versions: section(suppression("SUP-1", 0, 3, ""), suppression("SUP-2", 3, 6, "")),
			flows: []flow.Record{flowAt(names, 1), flowAt(names, 4), flowAt(names, 5)}, until: 8,
			told: []string{"3.0 high 1+1", "6.0 high 3+3"},
		},
	} {
		t.Run(c.what, func(t *testing.T) {
			h := suppressedHistory(t, names, c.versions)
			for _, restarts := range []bool{false, true} {
				r := runSuppressed(t, names, h, c.until, restarts, c.flows...)
				if diff := cmp.Diff(c.told, r.events); diff != "" {
					t.Errorf("told (restarts: %v):\n%s", restarts, diff)
				}
				if diff := cmp.Diff(c.stored, r.stored); c.stored != nil && diff != "" {
					t.Errorf("stored (restarts: %v):\n%s", restarts, diff)
				}
			}
		})
	}
}

// TestSuppressedInAnyOrder: how many records came under a suppression hangs on when they
// were, not on when they arrive or how they are cut. Nor do ids and counts differ from
// those without any suppression.
func TestSuppressedInAnyOrder(t *testing.T) {
	names := flow.NewNames(0)
	with := suppressedHistory(t, names, map[float64]string{-24: "suppressions:\n" + suppression("SUP-1", 2, 5, "")})
	without := suppressedHistory(t, names, map[float64]string{-24: ""})
	var flows []flow.Record
	for i := range 80 {
		flows = append(flows, flowAt(names, float64(i)/10+0.05))
	}
	run := func(h *policy.History, rng *rand.Rand) map[string]*flow.Finding {
		cfg := DefaultConfig()
		cfg.Lateness = 24 * time.Hour
		d, err := New(cfg, Versions{h}, names, nil)
		if err != nil {
			t.Fatal(err)
		}
		list := append([]flow.Record(nil), flows...)
		rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		stored := map[string]*flow.Finding{}
		for len(list) > 0 {
			n := 1 + rng.IntN(len(list))
			d.Observe(batchOf(list[:n]...))
			list = list[n:]
			c, _ := d.Collect()
			for i := range c {
				stored[c[i].Finding.ID] = c[i].Finding
			}
		}
		return stored
	}
	plain := run(without, rand.New(rand.NewPCG(0, 0)))
	for seed := range uint64(20) {
		got := run(with, rand.New(rand.NewPCG(seed, 1)))
		if len(got) != 1 || len(plain) != 1 {
			t.Fatalf("%d findings, %d without a suppression", len(got), len(plain))
		}
		for id, f := range got {
			p := plain[id]
			if p == nil || f.Count != p.Count || f.Count != 80 || f.Revision != p.Revision {
				t.Errorf("seed %d: finding %s: %+v, without a suppression %+v", seed, id, f, p)
			}
			if f.Suppressed != 30 {
				t.Errorf("seed %d: %d suppressed, want 30", seed, f.Suppressed)
			}
		}
	}
}

// TestSuppressedAndForgotten: a cap ends what a suppression holds back, so that nothing is
// lost unsaid.
func TestSuppressedAndForgotten(t *testing.T) {
	names := flow.NewNames(0)
	h := suppressedHistory(t, names, map[float64]string{-24: "suppressions:\n" + suppression("SUP-1", 0, 5, "")})
	cfg := DefaultConfig()
	cfg.MaxFindings = 2
	d, err := New(cfg, Versions{h}, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.Observe(batchOf(flowAt(names, 1)))
	if _, e := d.Collect(); len(e) != 0 {
		t.Fatalf("told %v", e)
	}
	for i := range 4 {
		d.Observe(batchOf(judged(names, uint64(i), "10.0.0.2", 1024, "10.9.0.1", uint16(1000+i), 3700, 3701, escaped(names))))
		_, e := d.Collect()
		for _, f := range e {
			if f.Client == "10.0.0.1" {
				if f.Suppressed != 1 || !strings.Contains(f.Sentence, "One record of it came while a suppression held.") {
					t.Errorf("told %+v", f)
				}
				return
			}
		}
	}
	t.Error("it was forgotten and never told")
}

// TestSuppressedAtTheEnd: at the end of a replay what is over is told and what holds is not.
func TestSuppressedAtTheEnd(t *testing.T) {
	names := flow.NewNames(0)
	h := suppressedHistory(t, names, map[float64]string{-24: "suppressions:\n" + suppression("SUP-1", 0, 5, "")})
	for until, want := range map[float64]int{4.9: 0, 5: 1} {
		r := runSuppressed(t, names, h, 2, false, flowAt(names, 1))
		r.d.Tick(at(until * 3600))
		c, e := r.d.Flush()
		if len(e) != want || len(c) != want || len(r.events) != 0 {
			t.Errorf("at %v h: told %v before, then %v; stored %v", until, r.events, e, c)
		}
	}
}

// TestSuppressedBehaviour: findings that are not about one pair are known by their subject.
func TestSuppressedBehaviour(t *testing.T) {
	names := flow.NewNames(0)
	text := strings.Replace(suppression("SUP-1", 0, 5, ", detector: remote-admin-fan-out"),
		"{client: 10.0.0.1, server: 10.9.0.1, service: tcp/443, rule: no-way}", "{subject: \"ssh|jump-3\"}", 1)
	h := suppressedHistory(t, names, map[float64]string{-24: "suppressions:\n" + text})
	b, err := NewBehaviour(DefaultConfig(), 1, Versions{h}, names, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.clock = at(3600)
	for i, subject := range []string{"ssh|jump-3", "ssh|jump-4", "ssh"} {
		k := key{Type: flow.FindingFanOut, Subject: subject, Day: dayOf(base)}
		if i == 2 {
			k.Client = flow.MustParseAddr("10.0.0.1")
		}
		b.raise(k, told{Severity: flow.High, Start: at(3600), Service: "tcp/22", Rule: fmt.Sprint(i), Story: &story{Title: "title", Sentence: "sentence."}}, 1)
	}
	contributions, events := b.Collect()
	got := map[string]string{}
	for _, c := range contributions {
		got[c.Finding.Subject] = c.Finding.SuppressedBy
		if key := policy.KeyOf(c.Finding); key != (policy.FindingKey{Subject: c.Finding.Subject}) {
			t.Errorf("a suppression of it would be of %+v", key)
		}
	}
	if diff := cmp.Diff(map[string]string{"ssh|jump-3": "SUP-1", "ssh|jump-4": "", "ssh|10.0.0.1": ""}, got); diff != "" {
		t.Error(diff)
	}
	if len(events) != 2 {
		t.Errorf("%d events are told", len(events))
	}
}

// TestAbout: what suppressions know a finding by is what its message says, so that one
// that was drafted from the message is of it.
func TestAbout(t *testing.T) {
	names := flow.NewNames(0)
	d := newTestDetector(t, DefaultConfig(), names)
	d.Observe(batchOf(
		flowAt(names, 1),
		judged(names, 2, "10.0.0.3", 1024, "10.9.0.1", 443, 7200, 7201, expired(names, 30)),
		judged(names, 3, "fd00::1", 1024, "fd00::2", 443, 3600, 3601, escaped(names)),
	))
	n := 0
	for _, f := range d.findings {
		n++
		if diff := cmp.Diff(policy.KeyOf(f.render()), about(&f.Key, &f.Told)); diff != "" {
			t.Errorf("%s: %s", f.Key.Type, diff)
		}
	}
	if n != 3 {
		t.Errorf("%d findings", n)
	}
}
