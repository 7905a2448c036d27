package sink

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// storeFindings stores findings, each by one contribution of one session.
func storeFindings(t testing.TB, db *ClickHouse, n int, fs ...*flow.Finding) {
	t.Helper()
	var cs []flow.Contribution
	for _, f := range fs {
		cs = append(cs, flow.Contribution{Sessions: f.Count, FirstSeen: f.FirstSeen, LastSeen: f.LastSeen, Finding: f})
	}
	if _, err := db.InsertContributions(t.Context(), insertNo(n), cs); err != nil {
		t.Fatal(err)
	}
}

// TestFindingsRead reads findings back as they were told, hostile names and all, and by
// every filter.
func TestFindingsRead(t *testing.T) {
	db := open(t, nil)
	var want []*flow.Finding
	for i := range 4 {
		f := testFinding(fmt.Sprintf("%da%030x", i, i), uint64(i+1))
		f.FirstSeen, f.LastSeen, f.Count = today, today+flow.Time(1000*i), 1
		f.Severity, f.Owner, f.Type = flow.Severity(i), fmt.Sprintf("team-%d", i), flow.FindingTypes()[i]
		f.SuppressedBy, f.Suppressed = "", 0
		want = append(want, f)
	}
	want[2].SuppressedBy, want[2].Suppressed = hostile[0], 3
	storeFindings(t, db, 1, want...)
	for _, c := range []struct {
		what string
		q    FindingFilter
		want []int // newest first
	}{
		{"all", FindingFilter{}, []int{3, 2, 1, 0}},
		{"some", FindingFilter{Limit: 2}, []int{3, 2}},
		{"severity", FindingFilter{Severity: flow.Medium}, []int{3, 2}},
		{"since", FindingFilter{Since: today + 1000}, []int{3, 2, 1}},
		{"since later", FindingFilter{Since: today + 3001}, nil},
		{"type", FindingFilter{Type: want[1].Type}, []int{1}},
		{"owner", FindingFilter{Owner: "team-0"}, []int{0}},
		{"nobody's", FindingFilter{Owner: hostile[0]}, nil},
		{"suppressed", FindingFilter{SuppressedBy: "*"}, []int{2}},
		{"suppressed by", FindingFilter{SuppressedBy: hostile[0]}, []int{2}},
		{"suppressed by another", FindingFilter{SuppressedBy: hostile[1]}, nil},
		{"id", FindingFilter{ID: "3a"}, []int{3}},
		{"hostile id", FindingFilter{ID: hostile[0]}, nil},
		{"unjudged", FindingFilter{Unjudged: true}, []int{3, 2, 1, 0}},
	} {
		list, err := db.Findings(t.Context(), c.q)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		var got, expected []flow.Finding
		for i := range list {
			if list[i].Judgment != nil || list[i].Judgments != 0 {
				t.Errorf("%s: %s is judged", c.what, list[i].ID)
			}
			got = append(got, list[i].Finding)
		}
		for _, i := range c.want {
			expected = append(expected, *want[i])
		}
		if diff := cmp.Diff(expected, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.what, diff)
		}
	}
}

// TestJudgments keeps every judgment, lets the newest count, and counts a judgment that
// is sent again once.
func TestJudgments(t *testing.T) {
	db := open(t, nil)
	a, b := testFinding("aa01", 1), testFinding("aa02", 1)
	for _, f := range []*flow.Finding{a, b} {
		f.FirstSeen, f.LastSeen, f.Count, f.SuppressedBy, f.Suppressed = today, today, 1, "", 0
	}
	b.Type = flow.FindingDenied
	storeFindings(t, db, 1, a, b)
	judge := func(f *flow.Finding, word, by string, after flow.Time) Judgment {
		j := Judgment{Judgment: word, By: by, At: today + after, Reason: hostile[5], Revision: f.Revision, Via: "command"}
		for range 2 {
			if err := db.Judge(t.Context(), f, j); err != nil {
				t.Fatal(err)
			}
		}
		return j
	}
	first := judge(a, Acknowledged, "ana", 10)
	third := judge(a, JudgedFalsePositive, hostile[0], 30)
	second := judge(a, JudgedTrue, "raj", 20) // stored later, said earlier
	if err := db.Judge(t.Context(), a, Judgment{Judgment: "maybe", At: today}); err == nil || !strings.Contains(err.Error(), "write acknowledged, true, false-positive") {
		t.Errorf("an unknown judgment: %v", err)
	}

	got, err := db.Finding(t.Context(), "aa01")
	if err != nil {
		t.Fatal(err)
	}
	newest := third
	newest.Via = ""
	if diff := cmp.Diff(&JudgedFinding{Finding: *a, Judgment: &newest, Judgments: 3}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	all, err := db.JudgmentsOf(t.Context(), a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Judgment{third, second, first}, all); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	unjudged, err := db.Findings(t.Context(), FindingFilter{Unjudged: true})
	if err != nil || len(unjudged) != 1 || unjudged[0].ID != b.ID {
		t.Errorf("unjudged: %v, %v", unjudged, err)
	}

	// The finding goes on: what was judged is told by the revision.
	a.Revision, a.Count = 2, 2
	storeFindings(t, db, 2, a)
	if got, err = db.Finding(t.Context(), "aa01"); err != nil || got.Revision != 2 || got.Judgment.Revision != 1 {
		t.Errorf("%+v, %v", got, err)
	}

	judge(b, JudgedTrue, "ana", 40)
	counts, err := db.JudgmentCounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]JudgmentCount{{a.Type, JudgedFalsePositive, 1}, {b.Type, JudgedTrue, 1}}, counts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	wantQuery(t, db, "SELECT type, findings, unjudged, acknowledged, judged_true, judged_false_positive, true_ratio, false_ratio, suppressed FROM detector_judgments ORDER BY type",
		`{"type":"expired-exception","findings":1,"unjudged":0,"acknowledged":0,"judged_true":0,"judged_false_positive":1,"true_ratio":0,"false_ratio":1,"suppressed":0}`+"\n"+
			`{"type":"policy-violation","findings":1,"unjudged":0,"acknowledged":0,"judged_true":1,"judged_false_positive":0,"true_ratio":1,"false_ratio":0,"suppressed":0}`)
}

// TestFindingByPrefix takes the beginning of an id where it is the only one.
func TestFindingByPrefix(t *testing.T) {
	db := open(t, nil)
	var fs []*flow.Finding
	for i := range 8 {
		f := testFinding(fmt.Sprintf("abc%d", i), 1)
		f.FirstSeen, f.LastSeen, f.Count = today, today, 1
		fs = append(fs, f)
	}
	fs = append(fs, testFinding("abd0", 1))
	storeFindings(t, db, 1, fs...)
	if f, err := db.Finding(t.Context(), "abd"); err != nil || f.ID != "abd0" {
		t.Errorf("abd: %v, %v", f, err)
	}
	for _, id := range []string{"b", "", "%", "abd01", hostile[0]} {
		if _, err := db.Finding(t.Context(), id); !errors.Is(err, ErrNoFinding) {
			t.Errorf("%q: %v", id, err)
		}
	}
	_, err := db.Finding(t.Context(), "abc")
	if _, ok := errors.AsType[*AmbiguousError](err); !ok || !strings.Contains(err.Error(), "abc0, abc1, abc2, abc3, abc4, …") {
		t.Errorf("abc: %v", err)
	}
}
