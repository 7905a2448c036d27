package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/sink"
)

// TestFeedback judges findings of a running service, by the commands and by the admin API,
// and of one that is stopped; and takes a suppression through its life: drafted it is
// silent about nothing, approved by somebody else it is, and changes no verdict (THREATS 35).
func TestFeedback(t *testing.T) {
	soc := newReceiver(t)
	s := newServer(t, livePolicy(false), soc.section()+"detect: {lateness: 1s, updateEvery: 1s}\n")
	s.start()
	fw, port := firewall(t, s.udp), uint16(30000)
	violate := func(sport uint16) {
		port++
		fw.export(session(time.Now(), "10.50.1.1", "10.20.0.1", port, sport))
	}
	told := func(n int) {
		t.Helper()
		s.until(fmt.Sprintf("%d events", n), 30*time.Second, func() bool { return soc.count() >= n })
		if got := soc.count(); got != n {
			t.Fatalf("%d events were told, want %d", got, n)
		}
	}
	violate(8080)
	told(1)
	var f flow.Finding
	for _, f = range soc.findings(t) {
	}
	if f.Type != flow.FindingDenied || f.Service != "tcp/8080" {
		t.Fatalf("told of %+v", f)
	}
	s.settle()

	// The service has the database; the commands ask it.
	finding := func(args ...string) string {
		t.Helper()
		return run(t, append(append([]string{"finding"}, args...), "-c", s.config)...)
	}
	if out := finding("list", "--since", "1h", "--unjudged"); !strings.Contains(out, f.ID[:12]) || !strings.Contains(out, "10.50.1.1 → 10.20.0.1 tcp/8080 against default:in:servers") {
		t.Errorf("list:\n%s", out)
	}
	if out := finding("ack", f.ID[:8]); !strings.HasPrefix(out, f.ID+": acknowledged by ") {
		t.Errorf("ack: %s", out)
	}
	if _, diag, err := try(t, "finding", "false-positive", f.ID, "-c", s.config); err == nil || !strings.Contains(diag, "it has no reason") {
		t.Errorf("without a reason: %v %s", err, diag)
	}

	// The admin API has the same verbs.
	post := func(path, token, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.admin+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(raw)
	}
	token, err := os.ReadFile(filepath.Join(s.data, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := post("/findings/"+f.ID+"/true", "wrong", `{"by":"raj"}`); status != http.StatusUnauthorized {
		t.Errorf("a wrong token is answered %d", status)
	}
	if status, body := post("/findings/"+f.ID[:8]+"/true", strings.TrimSpace(string(token)), `{"by":"raj","reason":"seen on the host"}`); status != http.StatusOK || !strings.Contains(body, `"judgment":"true"`) {
		t.Errorf("true: %d %s", status, body)
	}
	var list struct {
		Findings []sink.JudgedFinding `json:"findings"`
	}
	if err := s.get("/findings?since=1h&severity=low", &list); err != nil || len(list.Findings) != 1 || list.Findings[0].Judgment.By != "raj" || list.Findings[0].Judgments != 2 {
		t.Errorf("%+v, %v", list, err)
	}

	// A draft is loaded, and is silent about nothing.
	hup := func() {
		t.Helper()
		before := s.metric("postern_policy_loads_total", `result="accepted"`)
		if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		s.until("the policy to be taken", 30*time.Second, func() bool { return s.metric("postern_policy_loads_total", `result="accepted"`) > before })
	}
	draft := filepath.Join(s.policyDir(), "suppressions.yaml")
	finding("suppress", f.ID[:8], "--by", "ana", "--reason", "until the agent is replaced", "--ticket", "CHG-9", "--days", "30", "--into", draft)
	if out, _, err := try(t, "check", s.policyDir()); err != nil || !strings.Contains(out, "is not approved and does nothing yet") {
		t.Errorf("check: %v\n%s", err, out)
	}
	hup()
	violate(8080)
	told(2)

	// Its requester cannot approve it: the version is refused, and all stays as it was.
	text, err := os.ReadFile(draft)
	if err != nil {
		t.Fatal(err)
	}
	approve := func(by string) {
		t.Helper()
		at := time.Now().UTC().Format(time.RFC3339) // not before it was requested, which is said in seconds too
		approved := strings.Replace(string(text), "approved: []", "approved: [{by: "+by+", role: soc-lead, at: "+at+"}]", 1)
		if approved == string(text) {
			t.Fatalf("the draft has no place for an approval:\n%s", text)
		}
		if err := os.WriteFile(draft, []byte(approved), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	approve("ANA")
	if out, diag, err := try(t, "check", s.policyDir()); err == nil || !strings.Contains(out+diag, "is approved by its own requester") {
		t.Errorf("check: %v\n%s%s", err, out, diag)
	}

	// Approved by somebody else it holds its own finding back, and no other. A receiver
	// gets events in the order they are told, so the other one's shows that it was not.
	approve("raj")
	hup()
	violate(8080)
	s.until("a suppressed finding to be stored", 30*time.Second, func() bool {
		return len(s.query("SELECT 1 AS x FROM findings WHERE suppressed_by != '' AND count = 3")) == 1
	})
	violate(8081)
	told(3)
	if got := soc.findings(t)[f.ID]; got.Count != 2 || got.Suppressed != 0 {
		t.Errorf("of what is suppressed was told %+v", got)
	}
	if got := s.metric("postern_detect_suppressed_events_total", `type="policy-violation"`); got != 1 {
		t.Errorf("%v events held back", got)
	}
	s.settle()
	if rows := s.query("SELECT DISTINCT reason, outcome, rule, exception FROM flows WHERE service = 'tcp/8080'"); len(rows) != 1 || rows[0]["reason"] != "denied" || rows[0]["outcome"] != "escaped" {
		t.Errorf("verdicts: %v", rows)
	}
	if out := finding("list", "--suppressed-by", "SUP-"+f.ID[:12]); !strings.Contains(out, f.ID[:12]) {
		t.Errorf("list:\n%s", out)
	}

	// Nothing runs: the command starts the engine on what is stored.
	s.stop()
	if out := finding("false-positive", f.ID, "--by", "eva", "--reason", "a drill"); !strings.Contains(out, "(before: true by raj at ") {
		t.Errorf("false-positive: %s", out)
	}
	var shown struct {
		sink.JudgedFinding
		History []sink.Judgment `json:"history"`
	}
	if err := json.Unmarshal([]byte(finding("show", f.ID, "--json")), &shown); err != nil {
		t.Fatal(err)
	}
	if shown.Count != 3 || shown.Suppressed != 1 || shown.SuppressedBy == "" || len(shown.History) != 3 || shown.Judgment.By != "eva" {
		t.Errorf("%+v", shown)
	}
	if out := finding("show", f.ID); !strings.Contains(out, "by SUP-") || !strings.Contains(out, "false-positive by eva (command): a drill") {
		t.Errorf("show:\n%s", out)
	}

	// Taken out of the files it is over: what it held back is told.
	if err := os.Remove(draft); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.until("the judgments to be counted", 30*time.Second, func() bool {
		return s.metric("postern_findings_judged", `judgment="false-positive"`, `type="policy-violation"`) == 1
	})
	s.until("it to be told again", 100*time.Second, func() bool { return soc.findings(t)[f.ID].Count == 3 })
	if got := soc.findings(t)[f.ID]; got.Suppressed != 1 || got.SuppressedBy != "" {
		t.Errorf("told again: %+v", got)
	}
	if len(soc.bad) > 0 {
		t.Error(soc.bad)
	}
}
