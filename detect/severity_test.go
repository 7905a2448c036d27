package detect

import (
	"bufio"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/postern/postern/flow"
)

// TestSeverityTable: the table in docs/findings.md is the one in the code.
func TestSeverityTable(t *testing.T) {
	f, err := os.Open(filepath.Join("..", "docs", "findings.md"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := map[string][3]string{}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		cells := strings.Split(sc.Text(), "|")
		if len(cells) != 6 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`") {
			continue
		}
		var row [3]string
		for i := range row {
			row[i] = strings.TrimSpace(cells[2+i])
		}
		got[strings.Trim(cells[1], " `")] = row
	}
	want := map[string][3]string{}
	for typ, s := range severities {
		want[typ] = [3]string{s.escaped.String(), s.attempted.String(), s.blocked.String()}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestSeverity(t *testing.T) {
	for _, c := range []struct {
		name string
		typ  string
		told told
		want flow.Severity
	}{
		{"escaped by a default", flow.FindingDenied, told{Outcome: flow.OutcomeEscaped, Rule: "default:in:x"}, flow.Medium},
		{"escaped by a rule", flow.FindingDenied, told{Outcome: flow.OutcomeEscaped, Rule: "no-way"}, flow.High},
		{"into a crown jewel", flow.FindingDenied, told{Outcome: flow.OutcomeEscaped, Rule: "no-way", Tier: crownJewel}, flow.Critical},
		{"into a low tier", flow.FindingDenied, told{Outcome: flow.OutcomeEscaped, Rule: "no-way", Tier: "low"}, flow.Medium},
		{"never below low", flow.FindingOutOfScope, told{Outcome: flow.OutcomeAttempted, Tier: "low"}, flow.Low},
		{"expired and blocked", flow.FindingExpired, told{Outcome: flow.OutcomeBlocked}, flow.Low},
		{"blocked is medium at most", flow.FindingExpired, told{Outcome: flow.OutcomeBlocked, Tier: crownJewel, Facts: Facts{Class: "break-glass"}}, flow.Medium},
		{"critical is the most", flow.FindingExpired, told{Outcome: flow.OutcomeEscaped, Tier: crownJewel, Facts: Facts{Class: "break-glass"}}, flow.Critical},
		{"outlived", flow.FindingOutlived, told{Outcome: flow.OutcomePermitted}, flow.Medium},
		{"misblocked stays low", flow.FindingMisblocked, told{Outcome: flow.OutcomeMisblocked, Tier: crownJewel}, flow.Low},
	} {
		if got := severity(&c.told, c.typ); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestClassify: every reason against every outcome; never a finding of what is
// not known.
func TestClassify(t *testing.T) {
	exceptions := map[flow.Reason]string{flow.ReasonExpired: flow.FindingExpired, flow.ReasonNotYetValid: flow.FindingNotYetValid,
		flow.ReasonUnapproved: flow.FindingUnapproved, flow.ReasonOutOfScope: flow.FindingOutOfScope}
	for r := flow.ReasonNone; r <= flow.ReasonExpiryUncertain; r++ {
		for o := flow.OutcomeNone; o <= flow.OutcomeAttempted; o++ {
			want := exceptions[r]
			switch {
			case r == flow.ReasonDenied && o == flow.OutcomeEscaped:
				want = flow.FindingDenied
			case (r == flow.ReasonPermitted || r == flow.ReasonWaived) && o == flow.OutcomeMisblocked:
				want = flow.FindingMisblocked
			}
			got, ok := classify(&flow.Verdict{Reason: r, Outcome: o})
			if ok != (want != "") || ok && got != want {
				t.Errorf("%v, %v: %q, %v; want %q", r, o, got, ok, want)
			}
		}
	}
}

func TestTechniques(t *testing.T) {
	for _, c := range []struct {
		proto uint8
		port  uint16
		open  bool
		want  string
	}{{6, 3389, false, "T1021.001"}, {17, 3389, false, "T1021.001"}, {6, 445, false, "T1021.002"}, {6, 22, false, "T1021.004"},
		{6, 5900, false, "T1021.005"}, {6, 5986, false, "T1021.006"}, {6, 135, false, "T1021"}, {6, 49670, false, "T1021"},
		{6, 0, true, "T1021"}, {6, 443, false, ""}, {17, 53, false, ""}, {17, 0, true, ""}, {1, 0x800, false, ""}} {
		if got := technique(c.proto, c.port, c.open); got != c.want {
			t.Errorf("protocol %d port %d: %q, want %q", c.proto, c.port, got, c.want)
		}
	}
	k := key{Type: flow.FindingDenied, Proto: 6, Port: 3389}
	if got := techniques(&k, &told{SrcSegment: "internet", DstSegment: "office"}); got != nil {
		t.Errorf("from the internet: %v, want none", got)
	}
}
