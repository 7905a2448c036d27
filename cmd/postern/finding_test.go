package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/postern/postern/flow"
	"github.com/postern/postern/policy"
	"github.com/postern/postern/sink"
	"github.com/postern/postern/sink/embedded/embeddedtest"
)

// findingStore is a ClickHouse with some findings, the configuration that leads there, and
// the findings.
func findingStore(t *testing.T) (config string, db *sink.ClickHouse, stored []*flow.Finding) {
	t.Helper()
	url, token := embeddedtest.Start(t)
	t.Setenv("POSTERN_TEST_CLICKHOUSE", token)
	database := fmt.Sprintf("finding_%d", time.Now().UnixNano())
	cfg := sink.DefaultClickHouseConfig()
	cfg.URL, cfg.Database = url, database
	db, err := sink.Open(t.Context(), cfg, sink.Options{Password: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if err := db.Migrate(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	now := wallClock()
	var cs []flow.Contribution
	for i, f := range []*flow.Finding{
		{ID: "aaaa1000000000000000000000000001", Type: flow.FindingDenied, Severity: flow.High, Rule: "no-rdp", Owner: "team-a",
			Client: "10.50.1.23", Server: "10.20.0.11", Service: "tcp/3389", LastSeen: now - 1000, GroupedBy: "dddd0000000000000000000000000005"},
		{ID: "aaaa2000000000000000000000000002", Type: flow.FindingExpired, Severity: flow.Medium, Rule: "no-rdp", Exception: "EX-1", Owner: "team-b",
			Client: "10.50.1.24", Server: "10.20.0.11", Service: "tcp/443", LastSeen: now - 2000, SuppressedBy: "SUP-9", Suppressed: 4},
		{ID: "bbbb0000000000000000000000000003", Type: flow.FindingMisblocked, Severity: flow.Low, Rule: "\x1b[2Jboo\u202e", Owner: "team-a",
			Client: "10.50.1.25", Server: "2001:db8::1", Service: "udp/53", Orientation: "open", LastSeen: now - flow.Time(10*24*time.Hour/time.Millisecond)},
		{ID: "cccc0000000000000000000000000004", Type: flow.FindingDenied, Severity: flow.Critical, Rule: "default:in:crown", Owner: "team-a",
			Client: "10.50.1.26", Server: "10.20.0.12", Service: "tcp/22", LastSeen: now - 3000},
	} {
		f.SchemaVersion, f.Revision, f.Count = flow.FindingSchema, uint64(i+1), int64(i+1)
		f.FirstSeen, f.Confidence, f.Title, f.Sentence, f.Next = f.LastSeen-500, 0.9, "title "+f.ID, "sentence "+f.ID, "next "+f.ID
		f.Outcome, f.Expected, f.Observed, f.Reason = "escaped", "deny", "allow", "denied"
		f.Edges, f.EdgesTotal = []flow.Edge{{Source: f.Client, Destination: f.Server, Port: 443, Protocol: "tcp"}}, 1
		f.Samples = []json.RawMessage{[]byte(`{"sample":1}`)}
		stored = append(stored, f)
		cs = append(cs, flow.Contribution{Sessions: f.Count, FirstSeen: f.FirstSeen, LastSeen: f.LastSeen, Finding: f})
	}
	if _, err := db.InsertContributions(t.Context(), sink.Insert{Token: database, Input: "test", At: now}, cs); err != nil {
		t.Fatal(err)
	}
	path := writeFile(t, filepath.Join(t.TempDir(), "postern.yaml"), fmt.Sprintf(
		"clickhouse: {url: \"%s\", database: %s, user: default, password: env:POSTERN_TEST_CLICKHOUSE}\n", url, database))
	return path, db, stored
}

// TestFindingList lists by every filter, for people and as JSON, and says what a filter
// should have been.
func TestFindingList(t *testing.T) {
	config, _, stored := findingStore(t)
	for _, c := range []struct {
		args string
		want []int
	}{
		{"", []int{0, 1, 3}},
		{"--since=", []int{0, 1, 3, 2}},
		{"--since 30d", []int{0, 1, 3, 2}},
		{"--since 2020-01-01T00:00:00Z", []int{0, 1, 3, 2}},
		{"--severity high", []int{0, 3}},
		{"--type expired-exception", []int{1}},
		{"--owner team-a --since=", []int{0, 3, 2}},
		{"--suppressed-by *", []int{1}},
		{"--suppressed-by SUP-9", []int{1}},
		{"--suppressed-by SUP-8", nil},
		{"--grouped-by *", []int{0}},
		{"--grouped-by dddd", []int{0}},
		{"--grouped-by eeee", nil},
		{"--unjudged", []int{0, 1, 3}},
		{"--limit 2", []int{0, 1}},
		{"--since 1500ms", []int{0}},
	} {
		out, diag, err := command(t, append(append([]string{"finding", "list", "-c", config}, strings.Fields(c.args)...), "--json")...)
		if err != nil {
			t.Errorf("%s: %v", c.args, err)
			continue
		}
		var got, want []string
		for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
			var f sink.JudgedFinding
			if err := dec.Decode(&f); err != nil {
				t.Fatal(err)
			}
			got = append(got, f.ID)
		}
		for _, i := range c.want {
			want = append(want, stored[i].ID)
		}
		// The clock goes on between storing and asking: the last filter may have passed the first.
		if c.args == "--since 1500ms" && len(got) == 0 {
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", c.args, diff)
		}
		if more := strings.Contains(diag, "there are more than 2"); more != (c.args == "--limit 2") {
			t.Errorf("%s: %s", c.args, diag)
		}
	}
	out, _, err := command(t, "finding", "list", "-c", config, "--since=")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"aaaa10000000", "high", "policy-violation", "10.50.1.23 → 10.20.0.11 tcp/3389 against no-rdp", "team-b", "by EX-1",
		"(suppressed by SUP-9)", "(told with others by dddd00000000)", "10.50.1.25 ↔ 2001:db8::1", `\x1b[2Jboo\u202e`} {
		if !strings.Contains(out, want) {
			t.Errorf("the table lacks %q:\n%s", want, out)
		}
	}
	if strings.ContainsAny(out, "\x1b\u202e") {
		t.Errorf("the table acts on what is stored: %q", out)
	}
	for args, want := range map[string]string{
		"--since yesterday": `since "yesterday" is no time; write 24h, 7d or 2026-10-05T12:00:00Z`,
		"--since -1h":       "is no time",
		"--since 36501d":    "is no time",
		"--since 2562047d":  "is no time", // 24 times as much is beyond what a duration holds
		"--severity grave":  `severity: "grave" is no severity; write informational, low, medium, high or critical`,
		"--type denied":     `type "denied" is none of a finding; write one of expired-exception, `,
		"--limit 0":         "limit is 0; write a number from 1 to 1000",
	} {
		if _, _, err := command(t, append([]string{"finding", "list", "-c", config}, strings.Fields(args)...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// TestFindingJudge records judgments by the beginning of an id, and shows all of them.
func TestFindingJudge(t *testing.T) {
	config, _, stored := findingStore(t)
	id := stored[0].ID
	said := func(args ...string) string {
		t.Helper()
		out, _, err := command(t, append([]string{"finding"}, append(args, "-c", config)...)...)
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return out
	}
	if got, want := said("ack", "BBBB", "--by", "ana"), stored[2].ID+": acknowledged by ana\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := said("ack", id); got != fmt.Sprintf("%s: acknowledged by %s\n", id, osUser()) || osUser() == "" {
		t.Errorf("%q", got)
	}
	time.Sleep(2 * time.Millisecond) // judgments of one millisecond have no order that means anything
	if got := said("true", id, "--by", "raj", "--reason", "seen on the host"); !strings.HasPrefix(got, id+": true by raj (before: acknowledged by "+osUser()+" at ") {
		t.Errorf("%q", got)
	}
	time.Sleep(2 * time.Millisecond)
	said("false-positive", id, "--by", "eva", "--reason", "a drill")

	out := said("show", id)
	for _, want := range []string{"title " + id, "sentence " + id, "What to do: next " + id, "severity high", "10.50.1.23", "tcp/3389", "no-rdp", "team-a",
		"escaped: expected deny (denied), observed allow", "judged         false-positive", "edges, 1 of 1", `{"sample":1}`,
		"false-positive by eva (command): a drill", "true by raj (command): seen on the host", "acknowledged by " + osUser()} {
		if !strings.Contains(out, want) {
			t.Errorf("show lacks %q:\n%s", want, out)
		}
	}
	if i, j := strings.Index(out, "by eva"), strings.Index(out, "by raj"); i > j {
		t.Errorf("the newest judgment is not the first:\n%s", out)
	}
	if got := said("list", "--unjudged", "--json", "--since="); strings.Contains(got, id) || strings.Contains(got, stored[2].ID) || !strings.Contains(got, stored[1].ID) {
		t.Errorf("unjudged: %s", got)
	}
	var shown shownFinding
	if err := json.Unmarshal([]byte(said("show", id, "--json")), &shown); err != nil || len(shown.History) != 3 || shown.Judgment.Judgment != sink.JudgedFalsePositive {
		t.Errorf("%+v, %v", shown, err)
	}
	for args, want := range map[string]string{
		"show dddd":                             `there is no such finding: no id begins with "dddd"`,
		"show aaaa":                             "several findings' ids begin with \"aaaa\"; write more of it: " + stored[0].ID + ", " + stored[1].ID,
		"show aaa":                              "write at least 4 of its hexadecimal digits",
		"show ' OR 1=1":                         "is no id of a finding",
		"false-positive " + id:                  "it has no reason; say why",
		"true " + id + " --by a\x07b":           "hold control characters",
		"true " + id + " --by " + big(257):      "keep it within 256",
		"true " + id + " --reason " + big(4097): "keep it within 4096",
	} {
		fields := strings.SplitN(args, " ", 3)
		if len(fields) == 3 && strings.HasPrefix(fields[2], "--") {
			fields = strings.Fields(args)
		} else if len(fields) == 3 {
			fields = []string{fields[0], fields[1] + " " + fields[2]}
		}
		_, _, err := command(t, append(append([]string{"finding"}, fields...), "-c", config)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v", args, err)
		}
	}
}

func big(n int) string { return strings.Repeat("x", n) }

// TestFindingText prints what detectors add to what every finding has, and shows what is
// hostile.
func TestFindingText(t *testing.T) {
	var b strings.Builder
	err := findingText(&b, &shownFinding{JudgedFinding: sink.JudgedFinding{Finding: flow.Finding{Title: "A way\x1b[2J", Revision: 3, Detail: flow.Detail{
		Subject: "chain|10.0.0.1", Score: 0.7, ScoreParts: []flow.ScorePart{{Name: "rare", Points: -4, Says: "seen before"}},
		Ends:      []flow.End{{Address: "10.0.0.1", Workload: "jump-3", Segment: "office", Identity: "ana", IdentityFrom: "vpn", IdentityAge: new(int32), IdentityCertainty: 0.8}},
		Hops:      []flow.Hop{{Client: flow.End{Address: "10.0.0.1"}, Server: flow.End{Address: "10.0.0.2"}, Service: "tcp/22", Exception: "EX-1", Session: "77"}},
		Exporters: []string{"192.0.2.1", "192.0.2.2"}, Observers: []string{"agent\u202e"}, Query: "SELECT 1",
	}}, Judgment: &sink.Judgment{Judgment: sink.JudgedTrue, Revision: 2}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`A way\x1b[2J`, "about          chain|10.0.0.1", "score          0.70", "-4 rare: seen before",
		"10.0.0.1, workload jump-3, segment office, identity ana (says vpn, silent for 0 s, certain to 80 %)",
		"10.0.0.1 → 10.0.0.2 on tcp/22 by exception EX-1 (session 77)", "192.0.2.1, 192.0.2.2", `agent\u202e`, "SELECT 1", "true, at revision 2; more came since"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("it lacks %q:\n%s", want, b.String())
		}
	}
}

// TestFindingRest prints members that a later detector gives, and what is told already only
// once.
func TestFindingRest(t *testing.T) {
	var b strings.Builder
	told := map[string]bool{"id": true}
	err := rest(struct {
		ID    string           `json:"id"`
		Hops  []map[string]int `json:"hops"`
		Query string           `json:"query"`
		Score float64          `json:"score_sum"`
	}{"x", []map[string]int{{"a": 1}, {"b": 2}}, "SELECT\n1", 0.5}, told, func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%s|"+format+"\n", append([]any{label}, args...)...)
	})
	if want := "hops|{\"a\":1}\n|{\"b\":2}\nquery|SELECT\n1\nscore sum|0.5\n"; err != nil || b.String() != want {
		t.Errorf("%q, %v; want %q", b.String(), err, want)
	}
}

// TestFindingDraft drafts suppressions that do nothing until somebody else approves them,
// and then hold for findings like the one they were drafted of and no others.
func TestFindingDraft(t *testing.T) {
	const base = "postern: v1\nsegments: [{name: s, prefixes: [10.20.0.0/24], stage: enforced}]\nrules: [{id: no-rdp, action: deny, from: {any: true}, to: {segment: s}}]\n"
	now := flow.Time(1_790_000_000_000)
	later := now + 3600_000
	load := func(text string) *policy.Index {
		t.Helper()
		p, diags := policy.Load(fstest.MapFS{"base.yaml": {Data: []byte(base)}, "s.yaml": {Data: []byte(text)}})
		if p == nil {
			t.Fatalf("%v\n%s", diags, text)
		}
		return policy.Compile(p, flow.NewNames(0), policy.DefaultConfig())
	}
	for i, typ := range flow.FindingTypes() {
		f := &flow.Finding{ID: fmt.Sprintf("%032x", 0xabc0+i), Type: typ, Severity: flow.Severity(i % 4), Client: "10.50.1.23", Server: "fd00::1", Service: "tcp/3389",
			Rule: []string{"no-rdp", "default:in:s", ""}[i%3], Exception: []string{"", "EX-1"}[i%2], Owner: "team"}
		if i%4 == 3 {
			f.Subject = "ssh|jump-3: 'x'"
		}
		r := draftRequest{verdict{By: "ana: {x}", Reason: "\"quoted\": - [a] # no remark 'x' \u2028 &b *c"}, "CHG-1", "", 30}
		text, err := draftOf(f, r, now)
		if err != nil {
			t.Fatal(err)
		}
		key := policy.KeyOf(f)
		if s := load(text).Suppression(later, typ, key, f.Severity); s != nil {
			t.Errorf("%s: the draft acts", typ)
		}
		approved := strings.Replace(text, "approved: []", "approved: [{by: raj, role: lead, at: 2026-09-21T14:15:00Z}]", 1)
		x := load(approved)
		s := x.Suppression(later, typ, key, f.Severity)
		if s == nil {
			t.Errorf("%s: approved, it does not act:\n%s", typ, approved)
			continue
		}
		if s.RequestedBy != "ana: {x}" || s.Ticket != "CHG-1" || s.Owner != "team" || !strings.HasPrefix(s.Reason, `"quoted": - [a] # no remark`) || s.Expires != now+flow.Time(policy.MaxSuppression/time.Millisecond) {
			t.Errorf("%s: %+v", typ, s)
		}
		if x.Suppression(later, typ, key, f.Severity+1) != nil {
			t.Errorf("%s: it holds for what is graver", typ)
		}
		other := key
		if other.Server = "fd00::2"; key.Subject != "" {
			other.Subject += "0"
		}
		if x.Suppression(later, typ, other, f.Severity) != nil {
			t.Errorf("%s: it holds for another key", typ)
		}
		// Its own requester cannot approve it.
		self := strings.Replace(text, "approved: []", `approved: [{by: "Ana: {x}", at: 2026-09-21T14:15:00Z}]`, 1)
		if _, diags := policy.Load(fstest.MapFS{"base.yaml": {Data: []byte(base)}, "s.yaml": {Data: []byte(self)}}); diags.Err() == nil || !strings.Contains(diags.Err().Error(), "approved by its own requester") {
			t.Errorf("%s: %v", typ, diags)
		}
	}
	if _, err := draftOf(&flow.Finding{ID: "abcd", Severity: flow.Critical}, draftRequest{}, now); err == nil || !strings.Contains(err.Error(), "never suppressed") {
		t.Errorf("critical: %v", err)
	}
}

// TestFindingSuppress drafts on the command line, printed or into a file.
func TestFindingSuppress(t *testing.T) {
	config, _, stored := findingStore(t)
	dir := t.TempDir()
	draft := func(args ...string) (string, error) {
		out, _, err := command(t, append([]string{"finding", "suppress", "-c", config}, args...)...)
		return out, err
	}
	out, err := draft(stored[0].ID, "--by", "ana", "--reason", "known", "--ticket", "T-1")
	if err != nil || !strings.Contains(out, "id: SUP-aaaa10000000") || !strings.Contains(out, "rule: no-rdp") || !strings.Contains(out, "upTo: high") {
		t.Errorf("%v\n%s", err, out)
	}
	writeFile(t, filepath.Join(dir, "base.yaml"), "postern: v1\nsegments: [{name: s, prefixes: [10.20.0.0/24], stage: enforced}]\nrules: [{id: no-rdp, action: deny, from: {any: true}, to: {segment: s}}]")
	for i, into := range []string{"new.yaml", "base.yaml"} {
		out, err := draft(stored[i].ID, "--by", "ana", "--reason", "known", "--ticket", "T-1", "--into", filepath.Join(dir, into))
		if err != nil || !strings.Contains(out, "have somebody other than ana approve it there") {
			t.Errorf("%v\n%s", err, out)
		}
	}
	p, diags := policy.Load(os.DirFS(dir))
	if p == nil || len(p.Suppressions) != 2 || len(p.Rules) != 1 {
		t.Errorf("%v\n%v", p, diags)
	}
	for args, want := range map[string]string{
		stored[3].ID + " --reason x":                        "is critical, and what is critical is never suppressed",
		stored[0].ID:                                        "it has no reason",
		stored[0].ID + " --reason x --days 31":              "days is 31; a suppression lasts 1 to 30 days",
		stored[0].ID + " --reason x --into " + dir + "/x.t": "is no policy file; name one that ends in .yaml",
	} {
		if _, err := draft(strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

// storingRole is a role with a store, for the admin API.
type storingRole struct {
	role
	db  *sink.ClickHouse
	err error
}

func (r *storingRole) database() (*sink.ClickHouse, error) { return r.db, r.err }

// TestFindingAPI asks and judges through the admin API.
func TestFindingAPI(t *testing.T) {
	_, db, stored := findingStore(t)
	r := &storingRole{db: db}
	a := &admin{role: r, token: "secret", log: slog.New(slog.DiscardHandler)}
	mux := http.NewServeMux()
	a.findings(mux)
	type answer struct {
		status int
		body   string
		header http.Header
	}
	ask := func(method, path, body string, headers ...string) answer {
		t.Helper()
		req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+a.token)
		req.Header.Set("Content-Type", "application/json; charset=utf-8")
		for _, h := range headers {
			k, v, _ := strings.Cut(h, ": ")
			req.Header.Set(k, v)
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, req)
		return answer{w.Code, w.Body.String(), w.Header()}
	}
	id := stored[0].ID

	var list struct {
		Findings []sink.JudgedFinding `json:"findings"`
		More     bool                 `json:"more"`
	}
	if got := ask("GET", "/findings?severity=medium&owner=team-a&limit=1&unjudged=true", ""); got.status != 200 || json.Unmarshal([]byte(got.body), &list) != nil ||
		len(list.Findings) != 1 || list.Findings[0].ID != id || !list.More {
		t.Errorf("%+v", got)
	}
	if got := ask("GET", "/findings?owner=nobody", ""); got.body != "{\"findings\":[],\"more\":false}\n" {
		t.Errorf("%+v", got)
	}
	var shown shownFinding
	got := ask("POST", "/findings/"+id[:31]+"1/false-positive", `{"by":"ana","reason":"a drill"}`)
	if got.status != 200 || json.Unmarshal([]byte(got.body), &shown) != nil || shown.Judgment == nil || shown.Judgment.By != "ana" || shown.Judgment.Reason != "a drill" || shown.History[0].Via != "api" {
		t.Errorf("%+v", got)
	}
	if got := ask("GET", "/findings/"+id, ""); got.status != 200 || !strings.Contains(got.body, `"judgment":"false-positive"`) {
		t.Errorf("%+v", got)
	}
	got = ask("POST", "/findings/"+id+"/suppress", `{"by":"ana","reason":"a drill","ticket":"T","days":3}`)
	if got.status != 200 || got.header.Get("Content-Type") != "application/yaml" || !strings.Contains(got.body, "suppressions:") {
		t.Errorf("%+v", got)
	}
	for _, c := range []struct {
		method, path, body string
		header             string
		status             int
		want               string
	}{
		{"GET", "/findings", "", "Authorization: Bearer wrong", 401, "a bearer token is needed"},
		{"POST", "/findings/" + id + "/ack", `{"by":"ana"}`, "Authorization: ", 401, "a bearer token is needed"},
		{"POST", "/findings/" + id + "/ack", `{"by":"ana"}`, "Content-Type: text/plain", 400, "send Content-Type: application/json"},
		{"POST", "/findings/" + id + "/ack", `{"by":"ana","judgment":"true"}`, "", 400, "unknown field"},
		{"POST", "/findings/" + id + "/ack", `{}`, "", 400, "nobody judges"},
		{"POST", "/findings/" + id + "/ack", `{"by":"` + big(maxFindingBody) + `"}`, "", 400, "too large"},
		{"POST", "/findings/" + id + "/true", `{"by":"a\u0000b"}`, "", 400, "control characters"},
		{"POST", "/findings/" + id + "/false-positive", `{"by":"ana"}`, "", 400, "no reason"},
		{"POST", "/findings/" + id + "/delete", `{"by":"ana"}`, "", 404, ""},
		{"POST", "/findings/" + stored[3].ID + "/suppress", `{"by":"ana","reason":"x"}`, "", 400, "never suppressed"},
		{"GET", "/findings/dddd", "", "", 404, "no such finding"},
		{"GET", "/findings/aaaa", "", "", 400, "write more of it"},
		{"GET", "/findings/x'y", "", "", 400, "is no id"},
		{"GET", "/findings?limit=5000", "", "", 400, "limit is 5000"},
		{"GET", "/findings?limit=ten", "", "", 400, "write a number"},
		{"GET", "/findings?unjudged=maybe", "", "", 400, "write true or false"},
		{"GET", "/findings?severty=low", "", "", 400, `"severty" is no filter`},
	} {
		var headers []string
		if c.header != "" {
			headers = []string{c.header}
		}
		if got := ask(c.method, c.path, c.body, headers...); got.status != c.status || !strings.Contains(got.body, c.want) {
			t.Errorf("%s %s %.40s: %d %.200s", c.method, c.path, c.body, got.status, got.body)
		}
	}

	a.token = "" // admin.open
	if got := ask("GET", "/findings/"+id, ""); got.status != 200 {
		t.Errorf("reading where it is open: %+v", got)
	}
	if got := ask("POST", "/findings/"+id+"/true", `{"by":"ana"}`); got.status != 403 || !strings.Contains(got.body, "set admin.open to false") {
		t.Errorf("judging where it is open: %+v", got)
	}
	if n, err := db.JudgmentsOf(t.Context(), id); err != nil || len(n) != 1 {
		t.Errorf("judgments %v, %v", n, err)
	}
	r.err = errNoFindings
	if got := ask("GET", "/findings", ""); got.status != 404 {
		t.Errorf("without a store: %+v", got)
	}
	r.err = io.ErrUnexpectedEOF
	if got := ask("GET", "/findings", ""); got.status != 503 {
		t.Errorf("while the store is away: %+v", got)
	}
	a.role = nil
	if got := ask("GET", "/findings", ""); got.status != 404 {
		t.Errorf("without a store: %+v", got)
	}
}

// TestFindingAPIBounded answers at most a few at a time.
func TestFindingAPIBounded(t *testing.T) {
	waiting, release := make(chan struct{}), make(chan struct{})
	a := &admin{role: slowRole{waiting: waiting, release: release}, token: "secret", log: slog.New(slog.DiscardHandler)}
	mux := http.NewServeMux()
	a.findings(mux)
	ask := func() int {
		req := httptest.NewRequestWithContext(context.Background(), "GET", "/findings", nil)
		req.Header.Set("Authorization", "Bearer secret")
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, req)
		return w.Code
	}
	for range findingAnswers {
		go ask()
		<-waiting
	}
	req := httptest.NewRequestWithContext(t.Context(), "GET", "/findings", nil)
	req.Header.Set("Authorization", "Bearer secret")
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, req)
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("one more is answered %d", w.Code)
	}
	close(release)
}

// slowRole takes its time to say that it has no store.
type slowRole struct {
	role
	waiting chan<- struct{}
	release <-chan struct{}
}

func (r slowRole) database() (*sink.ClickHouse, error) {
	r.waiting <- struct{}{}
	<-r.release
	return nil, errNoFindings
}

// TestJudgmentMetrics tells how many findings have which judgment, and how often each
// detector is right.
func TestJudgmentMetrics(t *testing.T) {
	_, db, stored := findingStore(t)
	reg := prometheus.NewRegistry()
	m := newJudgmentMetrics(reg)
	value := func(name string, labels ...string) float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, x := range f.Metric {
				if f.GetName() == name && labelsOf(x) == strings.Join(labels, " ") {
					return x.GetGauge().GetValue()
				}
			}
		}
		return math.NaN()
	}
	judge := func(i int, word string, at flow.Time) {
		if err := db.Judge(t.Context(), stored[i], sink.Judgment{Judgment: word, By: "ana", At: stored[i].LastSeen + at}); err != nil {
			t.Fatal(err)
		}
		m.count(t.Context(), db, slog.New(slog.DiscardHandler))
	}
	judge(0, sink.JudgedTrue, 1)
	judge(3, sink.JudgedFalsePositive, 1)
	judge(1, sink.Acknowledged, 1)
	if got := value("postern_findings_judged", "judgment=true", "type=policy-violation"); got != 1 {
		t.Errorf("true: %v", got)
	}
	if got := value("postern_findings_true_ratio", "type=policy-violation"); got != 0.5 {
		t.Errorf("ratio: %v", got)
	}
	if got := value("postern_findings_true_ratio", "type=expired-exception"); !math.IsNaN(got) {
		t.Errorf("a ratio of none: %v", got)
	}
	judge(3, sink.JudgedTrue, 2) // they thought again
	if got := value("postern_findings_judged", "judgment=false-positive", "type=policy-violation"); !math.IsNaN(got) {
		t.Errorf("false-positive: %v", got)
	}
	if got := value("postern_findings_true_ratio", "type=policy-violation"); got != 1 {
		t.Errorf("ratio: %v", got)
	}
}

func labelsOf(m *dto.Metric) string {
	var out []string
	for _, l := range m.Label {
		out = append(out, l.GetName()+"="+l.GetValue())
	}
	return strings.Join(out, " ")
}
