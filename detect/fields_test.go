package detect_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/test/scenario"
)

// What findings about something else than sessions cannot have: it is the sessions that are
// missing, or too many.
var withoutSessions = []string{flow.FindingPressure, flow.FindingSilentExporter, flow.FindingSilentHost, flow.FindingAgentMissing, flow.FindingLoss,
	flow.FindingStale, flow.FindingSkew, flow.FindingSampling, flow.FindingDrift, flow.FindingSplit, flow.FindingUnmapped, flow.FindingMisplaced, flow.FindingUnseenSegment}

// ofNobody are about no single exporter or observer, or are made of bytes that are counted by the
// hour, whoever told of them.
var ofNobody = []string{flow.FindingStaging, flow.FindingPressure, flow.FindingAgentMissing, flow.FindingStale}

// TestFindingsAreWhole: whatever a finding is of, it tells all that people need who read it: what
// it is made of, who was where, who told of it, under which policy, and how to find the rest.
func TestFindingsAreWhole(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	came := map[string]int{}
	for _, path := range files {
		s, err := scenario.Read(path, scenario.DefaultSettings())
		if err != nil {
			t.Fatal(err)
		}
		res, err := s.Run(scenario.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range res.Findings {
			came[f.Type]++
			for _, what := range lacks(f, len(s.Versions()) > 0) {
				t.Errorf("%s: %s lacks %s: %s", path, f.Type, what, scenario.Brief(f))
			}
		}
	}
	for _, typ := range flow.FindingTypes() {
		if came[typ] == 0 {
			t.Errorf("no scenario has a finding of type %s", typ)
		}
	}
}

func lacks(f *flow.Finding, policy bool) (missing []string) {
	need := func(what string, there bool) {
		if !there {
			missing = append(missing, what)
		}
	}
	need("what every finding has", f.ID != "" && f.SchemaVersion == flow.FindingSchema && f.Revision > 0 && f.Count > 0 && f.FirstSeen != 0 && f.LastSeen >= f.FirstSeen)
	need("a title, a sentence and what to do next", f.Title != "" && strings.HasSuffix(f.Sentence, ".") && f.Next != "")
	need("the parts of its score", len(f.ScoreParts) > 0)
	for _, p := range f.ScoreParts {
		need("what a part of the score says", p.Name != "" && p.Says != "")
	}
	need("a score", f.Score > 0 && f.Score <= 1 || f.Score == 0 && f.Severity == flow.Informational)
	need("a query", strings.HasPrefix(f.Query, "SELECT * FROM ") && strings.Contains(f.Query, "time_start"))
	need("who told of it", len(f.Exporters)+len(f.Observers) > 0 || slices.Contains(ofNobody, f.Type) || strings.HasPrefix(f.Subject, "all") ||
		f.Client == "" && slices.Contains(withoutSessions, f.Type))
	if policy && (f.SrcSegment != "" || f.DstSegment != "") {
		need("the policy version", f.PolicyVersion != "")
	}
	for _, e := range f.Ends {
		need("the address of an end", e.Address != "")
		need("who says the identity and how sure that is", e.Identity == "" || e.IdentityFrom != "" && e.IdentityCertainty > 0 && e.IdentityAge != nil)
	}
	if f.Client != "" {
		need("an end", len(f.Ends) > 0)
	}
	if slices.Contains(withoutSessions, f.Type) {
		return missing
	}
	need("ends", len(f.Ends) > 0)
	need("edges", len(f.Edges) > 0 && f.EdgesTotal >= len(f.Edges))
	need("samples, at most 20", len(f.Samples) > 0 && len(f.Samples) <= 20)
	if f.Server != "" && len(f.Ends) == 2 {
		need("the segments of its ends", f.Ends[0].Segment == f.SrcSegment && f.Ends[1].Segment == f.DstSegment)
	}
	switch f.Type {
	case flow.FindingChain, flow.FindingPivot, flow.FindingSwitch:
		need("the way", len(f.Hops) > 1)
		for _, h := range f.Hops {
			need("a step's session and times", h.Session != "" && h.Service != "" && h.Start != 0 && h.End >= h.Start)
		}
	}
	return missing
}

// whole is a scenario whose every end is known in all ways there are.
const whole = `
policy since 2026-10-01T00:00:00Z
  postern: v1
  segments:
    - {name: vault, prefixes: [10.20.0.0/24], tier: crown-jewel, stage: enforced, default: deny, owner: team-vault}
    - {name: office, prefixes: [10.50.0.0/16]}
  workloads:
    - {name: desk-9, addresses: [10.50.0.9]}
    - {name: ledger, addresses: [10.20.0.11]}

host desk 10.50.0.9 agent
logon 2026-10-03T08:00:00Z ana 10.50.0.9
session 2026-10-03T09:00:00Z 10m desk > 10.20.0.11 tcp/22 process=ssh server-process=sshd
any finding
`

// TestEndsAreWhole: both ends, the source and age of what is known of each, and the policy.
func TestEndsAreWhole(t *testing.T) {
	s, err := scenario.Parse("whole.txt", []byte(whole), scenario.DefaultSettings(), func(folder string) fs.FS { return os.DirFS(folder) })
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.Run(scenario.Options{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(res.Findings, func(f *flow.Finding) bool { return f.Type == flow.FindingDenied })
	if i < 0 {
		t.Fatalf("no violation among %d findings", len(res.Findings))
	}
	f := res.Findings[i]
	age := int32(3600)
	want := []flow.End{
		{Address: "10.50.0.9", Workload: "desk-9", Segment: "office", Identity: "ana", IdentityFrom: "scenario", IdentityAge: &age, IdentityCertainty: 0.7, Process: "ssh"},
		{Address: "10.20.0.11", Workload: "ledger", Segment: "vault", Process: "sshd"},
	}
	if d := cmp.Diff(want, f.Ends); d != "" {
		t.Errorf("ends (-want +got):\n%s", d)
	}
	if f.PolicyVersion == "" || f.PolicySince.String() != "2026-10-01T00:00:00.000Z" || f.Owner != "team-vault" || len(f.Observers) != 1 || len(f.Exporters) != 2 {
		t.Errorf("policy %q since %v, owner %q, observers %q, exporters %q", f.PolicyVersion, f.PolicySince, f.Owner, f.Observers, f.Exporters)
	}
	// Medium against a default, one more for a crown jewel.
	parts := []flow.ScorePart{{Name: "type", Points: 50, Says: "policy-violation, escaped"}, {Name: "criticality", Points: 25, Says: "it is a crown jewel"}}
	if d := cmp.Diff(parts, f.ScoreParts); d != "" || f.Score != 0.75 || f.Severity != flow.High {
		t.Errorf("score %v, severity %v (-want +got):\n%s", f.Score, f.Severity, d)
	}
}
