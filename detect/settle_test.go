package detect

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/postern/postern/flow"
)

// TestSettle has a client's agent let connections out against the policy that enforcement at the
// other end stops: what is told of the first is taken back once all observers were heard, and
// only where nothing speaks against it.
func TestSettle(t *testing.T) {
	n := theNames
	letOut := func(id uint64, port uint16, start, end float64) flow.Record {
		v := escaped(n)
		v.Observed = flow.ObservedAllow
		r := judged(n, id, "10.0.0.1", port, "10.9.0.1", 22, start, end, v)
		r.Reporter = flow.ReporterSource
		return r
	}
	session := func(port uint16, start, end float64, amend ...func(*flow.Session)) flow.Session {
		v := escaped(n)
		v.Observed, v.Outcome = flow.ObservedDeny, flow.OutcomeBlocked
		s := flow.Session{Began: at(start), Start: at(start), End: at(end), Proto: flow.ProtoTCP, HasPorts: true, Verdict: v,
			Client: flow.SessionEnd{Addr: flow.MustParseAddr("10.0.0.1"), Port: port}, Server: flow.SessionEnd{Addr: flow.MustParseAddr("10.9.0.1"), Port: 22},
			ObserversTotal: 2, Observers: [flow.MaxObservers]flow.SessionObserver{
				{Reporter: flow.ReporterSource, Observed: flow.ObservedAllow}, {Reporter: flow.ReporterDestination, Observed: flow.ObservedDeny}}}
		for _, f := range amend {
			f(&s)
		}
		return s
	}
	// tell has the detector take in steps, each a record or a session, with a restart after every one.
	tell := func(steps ...any) *flow.Finding {
		t.Helper()
		cfg := DefaultConfig()
		d, r := newTestDetector(t, cfg, n), &result{}
		for _, step := range steps {
			switch step := step.(type) {
			case flow.Record:
				d.Observe(batchOf(step))
			case flow.Session:
				settled(d, []flow.Session{step})
			}
			c, e := d.Collect()
			r.take(t, c, e)
			b, err := d.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			again := newTestDetector(t, cfg, n)
			if err := again.Restore(b); err != nil {
				t.Fatal(err)
			}
			if again.sessions != d.sessions {
				t.Errorf("%d spans remembered before a restart, %d after", d.sessions, again.sessions)
			}
			d = again
		}
		c, e := d.Flush()
		r.take(t, c, e)
		if len(r.Last) != 1 {
			t.Fatalf("%d findings, want one", len(r.Last))
		}
		for _, f := range r.Last {
			return f
		}
		return nil
	}
	check := func(name string, f *flow.Finding, outcome string, severity flow.Severity, count int64) {
		t.Helper()
		if f.Outcome != outcome || f.Severity != severity || f.Count != count || f.Type != flow.FindingDenied {
			t.Errorf("%s: %s %s %v of %d sessions, want %s %v of %d", name, f.Type, f.Outcome, f.Severity, f.Count, outcome, severity, count)
		}
	}
	first := letOut(1, 5000, 0, 1)
	check("let out", tell(first), "escaped", flow.Critical, 1)
	f := tell(first, session(5000, 0, 2))
	check("stopped", f, "blocked", flow.Medium, 1)
	if f.Observed != "deny" || !strings.Contains(f.Sentence, "was blocked from reaching") || strings.Contains(f.Next, "let it through") || !strings.Contains(f.Next, "stopped on its way") {
		t.Errorf("told as %s: %q %q", f.Observed, f.Sentence, f.Next)
	}
	check("told twice", tell(first, session(5000, 0, 2), session(5000, 0, 3)), "blocked", flow.Medium, 1)
	check("another session is open", tell(first, session(5000, 0, 2), letOut(2, 5001, 3, 4)), "escaped", flow.Critical, 2)
	check("all were stopped", tell(first, session(5000, 0, 2), letOut(2, 5001, 3, 4), session(5001, 3, 4)), "blocked", flow.Medium, 2)
	check("in another order", tell(letOut(2, 5001, 3, 4), first, session(5001, 3, 4), session(5000, 0, 2)), "blocked", flow.Medium, 2)
	check("it goes on", tell(first, session(5000, 0, 2), letOut(2, 5000, 3, 4)), "escaped", flow.Critical, 1)
	check("and is stopped as well", tell(first, session(5000, 0, 2), letOut(2, 5000, 3, 4), session(5000, 0, 4)), "blocked", flow.Medium, 1)
	check("only a part", tell(letOut(1, 5000, 0, 9), session(5000, 0, 2)), "escaped", flow.Critical, 1)
	check("another port", tell(first, session(5001, 0, 2)), "escaped", flow.Critical, 1)

	arrived := letOut(2, 5000, 1, 2)
	arrived.Reporter = flow.ReporterDestination
	check("it was let in before", tell(first, arrived, session(5000, 0, 2)), "escaped", flow.Critical, 1)
	check("it was let in after", tell(first, session(5000, 0, 2), arrived), "escaped", flow.Critical, 1)
	answered := letOut(2, 5000, 1, 2)
	answered.RevPacketsRaw, answered.Has = 3, answered.Has|flow.HasRevPackets
	check("it was answered", tell(first, answered, session(5000, 0, 2)), "escaped", flow.Critical, 1)
	answer := letOut(2, 22, 1, 2)
	answer.Src, answer.Dst, answer.SrcPort, answer.DstPort, answer.Oriented = answer.Dst, answer.Src, 22, 5000, flow.Reverse
	check("the answer was seen", tell(first, answer, session(5000, 0, 2)), "escaped", flow.Critical, 1)
	for name, amend := range map[string]func(*flow.Session){
		"part of another":   func(s *flow.Session) { s.Into = 7 },
		"both ways":         func(s *flow.Session) { s.BothWays = true },
		"open":              func(s *flow.Session) { s.Open = true },
		"behind a pool":     func(s *flow.Session) { s.NAT = flow.NATUnverified },
		"they contradict":   func(s *flow.Session) { s.Contradictions = flow.ContradictVerdict },
		"the client's word": func(s *flow.Session) { s.Observers[1].Reporter = flow.ReporterSource },
		"nobody stopped it": func(s *flow.Session) { s.Verdict.Outcome = flow.OutcomeEscaped },
		"an hour later":     func(s *flow.Session) { s.Start, s.End = at(3600), at(3601) },
		"of a wrong clock":  func(s *flow.Session) { s.Start, s.End = 1, math.MaxInt64 },
		"of another rule":   func(s *flow.Session) { s.Verdict.Rule = n.Intern("other") },
	} {
		check(name, tell(first, session(5000, 0, 2, amend)), "escaped", flow.Critical, 1)
	}
}

// TestSettleLate: where logs of clouds come in a session is told a quarter of an hour after it
// began. A protocol of short silences has to be remembered until then.
func TestSettleLate(t *testing.T) {
	n := theNames
	for lateness, want := range map[time.Duration]string{15 * time.Minute: "blocked", 0: "escaped"} {
		cfg := DefaultConfig()
		cfg.SessionLateness = lateness
		d, r := newTestDetector(t, cfg, n), &result{}
		v := escaped(n)
		v.Observed = flow.ObservedAllow
		rec := judged(n, 1, "10.0.0.1", 5000, "10.9.0.1", 53, 0, 1, v)
		rec.Proto, rec.Reporter = flow.ProtoUDP, flow.ReporterSource
		d.Observe(batchOf(rec))
		c, e := d.Collect()
		r.take(t, c, e)
		d.Tick(at(14 * 60))
		c, e = d.Collect()
		r.take(t, c, e)
		v.Observed, v.Outcome = flow.ObservedDeny, flow.OutcomeBlocked
		settled(d, []flow.Session{{Began: at(0), Start: at(0), End: at(1), Proto: flow.ProtoUDP, HasPorts: true, Verdict: v,
			Client: flow.SessionEnd{Addr: flow.MustParseAddr("10.0.0.1"), Port: 5000}, Server: flow.SessionEnd{Addr: flow.MustParseAddr("10.9.0.1"), Port: 53},
			ObserversTotal: 1, Observers: [flow.MaxObservers]flow.SessionObserver{{Reporter: flow.ReporterDestination, Observed: flow.ObservedDeny}}}})
		c, e = d.Flush()
		r.take(t, c, e)
		for _, f := range r.Last {
			if f.Outcome != want {
				t.Errorf("told %v after it began: %s, want %s", lateness, f.Outcome, want)
			}
		}
		if len(r.Last) != 1 {
			t.Errorf("%d findings", len(r.Last))
		}
	}
}

// TestSettleNoNews: that all observers say what the finding told anyway is no news: it is not
// told again, and counts where others of its sessions were let out.
func TestSettleNoNews(t *testing.T) {
	n := theNames
	stopped := expired(n, 10)
	stopped.Observed, stopped.Outcome = flow.ObservedDeny, flow.OutcomeBlocked
	out := expired(n, 10)
	out.Observed = flow.ObservedAllow
	session := func(port uint16, start, end float64) flow.Session {
		return flow.Session{Began: at(start), Start: at(start), End: at(end), Proto: flow.ProtoTCP, HasPorts: true, Verdict: stopped,
			Client: flow.SessionEnd{Addr: flow.MustParseAddr("10.0.0.1"), Port: port}, Server: flow.SessionEnd{Addr: flow.MustParseAddr("10.9.0.1"), Port: 22},
			ObserversTotal: 1, Observers: [flow.MaxObservers]flow.SessionObserver{{Observed: flow.ObservedDeny}}}
	}
	d, r := newTestDetector(t, DefaultConfig(), n), &result{}
	collect := func(what, outcome string, news int) {
		t.Helper()
		c, e := d.Collect()
		r.take(t, c, e)
		if len(c)+len(e) != news {
			t.Errorf("%s: %d contributions and %d events, want %d of both", what, len(c), len(e), news)
		}
		for _, f := range e {
			if f.Outcome != outcome {
				t.Errorf("%s: told as %s, want %s", what, f.Outcome, outcome)
			}
		}
		b, err := d.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		d = newTestDetector(t, DefaultConfig(), n)
		if err := d.Restore(b); err != nil {
			t.Fatal(err)
		}
	}
	d.Observe(batchOf(judged(n, 1, "10.0.0.1", 5000, "10.9.0.1", 22, 3000, 3001, stopped)))
	collect("stopped", "blocked", 2)
	settled(d, []flow.Session{session(5000, 3000, 3001)})
	d.Tick(at(3000 + 2*3600))
	collect("all say so", "", 0)

	let := judged(n, 2, "10.0.0.1", 5001, "10.9.0.1", 22, 9000, 9001, out)
	let.Reporter = flow.ReporterSource
	d.Observe(batchOf(let))
	collect("let out", "escaped", 2)
	settled(d, []flow.Session{session(5001, 9000, 9001)})
	d.Tick(at(9000 + 2*3600))
	collect("and stopped", "blocked", 2)
}
