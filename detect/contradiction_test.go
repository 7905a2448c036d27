package detect

import (
	"strings"
	"testing"

	"github.com/postern/postern/flow"
)

// TestContradictions makes findings of what observers tell differently: the same id whenever it
// is told, who claims what in a sentence, and nothing of an open pair's culprit.
func TestContradictions(t *testing.T) {
	s := flow.Session{ID: 7, Conversation: 9, Began: 1_790_953_445_000, Start: 1_790_953_445_000, End: 1_790_953_446_000, Proto: flow.ProtoTCP, HasPorts: true, ObserversTotal: 2,
		Client: flow.SessionEnd{Addr: flow.MustParseAddr("10.50.0.7"), Port: 50000}, Server: flow.SessionEnd{Addr: flow.MustParseAddr("10.20.0.1"), Port: 443},
		Verdict: flow.Verdict{Reason: flow.ReasonPermitted, Expected: flow.ExpectAllow, Observed: flow.ObservedAllow, Outcome: flow.OutcomePermitted}}
	for _, c := range []struct {
		kind  flow.Contradictions
		typ   string
		wants []string
	}{
		{flow.ContradictIdentity, "identity-mismatch", []string{"node-a says that 10.50.0.7 was alice", "node-b that it was mallory"}},
		{flow.ContradictUnseen, "unseen-by-agent", []string{"The agent of 10.50.0.7", "never told of one", "node-b saw"}},
		{flow.ContradictVerdict, "verdict-mismatch", []string{"node-a says that it stopped", "node-b saw it"}},
	} {
		d := newTestDetector(t, DefaultConfig(), flow.NewNames(0))
		n := d.names
		contradiction := flow.Contradiction{ID: flow.ContradictionID(s.ID, c.kind, false), Kind: c.kind, Session: s, Confidence: 80,
			Claim:    [2]flow.Name{n.Intern("alice"), n.Intern("mallory")},
			Claimant: [2]flow.Name{n.Intern("node-a"), n.Intern("node-b")}, Source: [2]flow.Source{flow.SourceHubble, flow.SourceZeek}}
		d.Contradict([]flow.Contradiction{contradiction})
		contribs, events := d.Collect()
		if len(events) != 1 || len(contribs) != 1 {
			t.Fatalf("%s: %d events, %d contributions", c.typ, len(events), len(contribs))
		}
		f := events[0]
		if f.Type != c.typ || f.Confidence != 0.8 || f.Count != 1 || f.Severity < flow.Low || f.Title == "" || f.Next == "" || f.Service != "tcp/443" {
			t.Errorf("%+v", f)
		}
		for _, want := range c.wants {
			if !strings.Contains(f.Sentence, want) {
				t.Errorf("%s: %q does not say %q", c.typ, f.Sentence, want)
			}
		}
		if len(f.Samples) != 1 || !strings.Contains(string(f.Samples[0]), `"session":"7"`) {
			t.Errorf("%s: samples %s", c.typ, f.Samples)
		}
		// Another session of the pair adds to it, in another process too.
		b, err := d.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		e := newTestDetector(t, DefaultConfig(), d.names)
		if err := e.Restore(b); err != nil {
			t.Fatal(err)
		}
		contradiction.Session.ID, contradiction.Session.Client.Port = 8, 50001
		contradiction.ID = flow.ContradictionID(8, c.kind, false)
		e.Contradict([]flow.Contradiction{contradiction})
		if _, events = e.Flush(); len(events) != 1 || events[0].ID != f.ID || events[0].Count != 2 {
			t.Errorf("%s: the second is told as %+v", c.typ, events)
		}
	}
}
