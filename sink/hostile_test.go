package sink

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern/postern/flow"
)

// TestHostileFindings: what SQL would take for more than text goes in and out of the engine as the
// text that it is, in every member of a finding, and by itself as what is asked for (THREATS 36).
func TestHostileFindings(t *testing.T) {
	db := open(t, nil)
	texts := append(slices.Clone(hostile), "1) OR (1=1", "{name:String}", "$1", "?", "%s", `\\'; --`, "'';", "/*", "*/", "--", "a\x00'", "\u2028", "NULL", "\\N", "[1,2]", "{'a':1}", "\t", "\r\n")
	var stored []*flow.Finding
	for i, s := range texts {
		f := testFinding(fmt.Sprintf("%032x", i+1), 1)
		f.FirstSeen, f.LastSeen, f.Count, f.SuppressedBy, f.Suppressed = today, today+flow.Time(i), 1, "", 0
		f.Title, f.Sentence, f.Next, f.Rule, f.Exception, f.Ticket, f.Owner, f.Requester, f.Approver, f.Subject = s, s, s, s, s, s, s, s, s, s
		f.SrcSegment, f.DstSegment, f.Service, f.Client, f.Server, f.PolicyVersion = s, s, s, s, s, s
		f.Ends, f.Exporters, f.Observers = []flow.End{{Address: s, Workload: s, Host: s, Identity: s, Process: s}}, []string{s}, []string{s}
		f.Edges, f.Techniques = []flow.Edge{{Source: s, Destination: s, Port: 1, Protocol: s}}, []string{s}
		sample, err := json.Marshal(map[string]string{"client": s})
		if err != nil {
			t.Fatal(err)
		}
		f.Samples = []json.RawMessage{sample}
		f.Query = "SELECT " + quoted(s) + " AS said"
		stored = append(stored, f)
	}
	storeFindings(t, db, 1, stored...)
	wantQuery(t, db, "SELECT count() AS n FROM findings", fmt.Sprintf(`{"n":%d}`, len(texts)))
	for _, want := range stored {
		list, err := db.Findings(t.Context(), FindingFilter{Owner: want.Owner})
		if err != nil || len(list) != 1 {
			t.Errorf("%d findings of owner %.40q, %v", len(list), want.Owner, err)
			continue
		}
		told, read := hostileJSON(t, want), hostileJSON(t, &list[0].Finding)
		if diff := cmp.Diff(told, read); diff != "" {
			t.Errorf("%.40q (-told +read):\n%s", want.Owner, diff)
		}
		var row struct{ Said string }
		if err := json.Unmarshal([]byte(query(t, db, list[0].Query)), &row); err != nil || row.Said != told["owner"] {
			t.Errorf("its own query says %q (%v), want %q", row.Said, err, told["owner"])
		}
	}
	wantQuery(t, db, "SELECT count() AS n FROM findings", fmt.Sprintf(`{"n":%d}`, len(texts))) // nothing that was asked did anything
}

// hostileJSON is a finding as its receivers have it.
func hostileJSON(t *testing.T, f *flow.Finding) map[string]any {
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// quoted is a text as the queries of findings write it.
func quoted(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}
